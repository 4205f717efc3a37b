"""Perform what a pass has decided: the only module that changes anything.

Each action has all of its effects here: it calls the service, moves the ledger, adds to the report, and logs. W&B gets no
text that was not redacted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from vertex_launch import log
from vertex_launch.codes import Code
from vertex_launch.dispatch.context import (
    Action,
    After,
    Cancel,
    Claim,
    Create,
    Defer,
    Drop,
    Keep,
    Notice,
    Pass,
    Reject,
    RetryBlocked,
    RetryLater,
    Settle,
    StopRetrying,
    Verdict,
    Warn,
    derived_run,
)
from vertex_launch.dispatch.look import AT_ONCE, Seen
from vertex_launch.errors import CodedError, ItemDeferred, LaunchError, Message, OutcomeUnknown, Unavailable
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import Ack, Item, Kind, ManagedJob, Phase, Popped
from vertex_launch.problems import shown
from vertex_launch.state.ledger import MadeAgent

POP_SINGLY = 900.0
"""Seconds for which items are popped one by one after an answer that could not be read: many leases and passes."""

REFUSALS = (Code.WANDB_REFUSED, Code.WANDB_CLIENT, Code.WANDB_KEY_REFUSED)
"""How W&B may refuse one change, after it has answered questions with the same key."""

LOGS_AT_ONCE = 4
"""Jobs whose last lines are read at the same time; one answer may have 2.5 MiB."""

MOST_CANCELS = 100
"""Jobs that one pass cancels; a later one cancels the others."""


def apply(pass_: Pass, actions: Iterable[Action], until: float = float("inf")) -> None:
    """Perform actions: first what only this pass notes, then cancels, settlements and rejections, each in one batch.

    Items are not rejected after ``until``.
    """
    cancels, settles, rejects = list[Cancel](), list[Settle](), list[Reject]()
    for action in actions:
        match action:
            case Cancel():
                cancels.append(action)
            case Settle():
                settles.append(action)
            case Reject():
                rejects.append(action)
            case Warn():
                pass_.outbox.append(action)
            case _:
                _SIMPLE[type(action)](pass_, action)
    _cancel(pass_, cancels[:MOST_CANCELS])
    _settle(pass_, settles)
    _reject(pass_, rejects, until)


# The ledger and the report


def _keep(pass_: Pass, action: Keep) -> None:
    pass_.ledger.keep(action.entry)
    if action.freed:
        pass_.report.freed.append(action.freed)
    if action.note:
        LOGGER.info("%s", action.note, extra={"item": action.entry.item, "job": action.entry.job})


def _drop(pass_: Pass, action: Drop) -> None:
    pass_.ledger.drop(action.item)
    _take_back_warnings(pass_, action.item)
    LOGGER.info("%s", action.note, extra={"item": action.item})


def _take_back_warnings(pass_: Pass, item: str) -> None:
    """Let nothing be said on an item that has turned out to be someone else's."""
    pass_.outbox[:] = [warn for warn in pass_.outbox if warn.item != item]


def _notice(pass_: Pass, action: Notice) -> None:
    pass_.report.notices.append(str(action.message))
    log.warning(action.message, event=Event.NOTICE, pass_id=pass_.report.pass_id)


def _defer(pass_: Pass, action: Defer) -> None:
    """Leave an item unacknowledged, and warn its author once."""
    item, message = action.item, action.message
    pass_.report.deferred.append(_row(message, item=item.id, queue=item.queue))
    fields = {"event": Event.DEFERRED, "code": message.code, "item": item.id, "queue": item.queue}
    LOGGER.info("Deferred item %s: %s", item.id, message, extra=fields)
    if action.back_off:
        why = {"fault": action.fault, "doubtful": action.doubtful, "foreign": action.foreign}
        pass_.ledger.back_off(item.id, pass_.now, **why)
    if not action.warn:
        return
    waiting = pass_.ledger.wait(item.id, pass_.now, patient=action.patient)
    if pass_.services.redact(str(message)) not in waiting.warned:
        pass_.outbox.append(Warn(item.id, message, Phase.AGENT))


def _retry(pass_: Pass, action: RetryLater) -> None:
    entry = pass_.ledger.open[action.item]
    pass_.ledger.keep(entry.retry_later(action.at, action.reason, elsewhere=action.elsewhere, began=action.began))


def _retry_blocked(pass_: Pass, action: RetryBlocked) -> None:
    entry, message = action.entry, action.message
    log.warning(Message(message.code, f"No next attempt for item {entry.item}: {message.text}"), item=entry.item)
    pass_.report.deferred.append(_row(message, item=entry.item, queue=entry.queue))
    if action.region:
        pass_.ledger.keep(entry.refuse_region(action.region, pass_.now))
    elif action.warn:
        pass_.ledger.keep(entry.block_retry(str(message)))
        if pass_.services.redact(str(message)) not in entry.warned:
            pass_.outbox.append(Warn(entry.item, message, Phase.RUN))


def _stop_retrying(pass_: Pass, action: StopRetrying) -> None:
    pass_.ledger.keep(pass_.ledger.open[action.item].stop_retrying(str(action.why)))
    LOGGER.info("Item %s: %s", action.item, action.why, extra={"code": action.why.code, "item": action.item})


_SIMPLE: Mapping[type, Callable[[Pass, Any], None]] = {
    Keep: _keep,
    Drop: _drop,
    Notice: _notice,
    Defer: _defer,
    RetryLater: _retry,
    RetryBlocked: _retry_blocked,
    StopRetrying: _stop_retrying,
}


def _row(message: Message, **values: str) -> dict[str, str]:
    """Return an entry of the report."""
    return {**values, "code": str(message.code), "reason": message.text}


def learn(pass_: Pass, seen: Seen) -> None:
    """Keep what was learned for good, the key's entity and what queues run on, and report what cannot be served."""
    pass_.ledger.learn(seen.entity, seen.resources)
    pass_.ledger.listed(seen.jobs, pass_.started - pass_.settings.timeouts.intent_grace)
    apply(pass_, map(Notice, seen.notices))
    if lost := pass_.held.lost:
        text = (
            f"The ledger cannot be used in {len(lost)} places ({', '.join(map(shown, lost[:3]))}). They are left out, and the "
            "deployment's jobs of the last day are looked for again."
        )
        apply(pass_, [Notice(Message(Code.LEDGER_REPAIRED, text))])


# Vertex AI


def create(pass_: Pass, creates: Sequence[Create], until: float) -> list[tuple[Create, str | CodedError]]:
    """Record what is about to be created, then create it in parallel, none after ``until``.

    Return the name of each job, or why there is none or none is known.
    """
    if not creates:
        return []
    ledger, now = pass_.ledger, pass_.now
    for each in creates:
        item, request = each.item, each.request
        ledger.submitted(request.region, now)
        if each.attempt > 1:
            ledger.keep(ledger.open[item.id].plan_retry(request.region, now))
        else:
            ledger.plan(item, request.run, request.region, each.kind, now, stopped_before=each.stopped_before)
    pass_.held.save()
    calls = [partial(_create, pass_, each, until) for each in creates]
    outcomes = pass_.services.run_parallel(calls, pass_.settings.parallel_creates)
    pass_.report.creates += len(creates)
    for each, outcome in zip(creates, outcomes, strict=True):
        if isinstance(outcome, str):
            _created(pass_, each, outcome)
        elif not isinstance(outcome, OutcomeUnknown):  # else the plan stays open and keeps the slot
            _create_failed(pass_, each.item.id)
    return list(zip(creates, outcomes, strict=True))


def _create_failed(pass_: Pass, item: str) -> None:
    """A first attempt that gave no job is forgotten, a later one retries."""
    entry = pass_.ledger.open[item].create_failed(pass_.now)
    if entry is None:
        pass_.ledger.drop(item)
    else:
        pass_.ledger.keep(entry)


def _create(pass_: Pass, create: Create, until: float) -> str:
    """Create one job and return its name. Raises ItemRejected, ItemDeferred, OutcomeUnknown."""
    most = pass_.settings.timeouts.create
    timeout = min(most, create.request.create_timeout or most)
    if pass_.now + timeout > min(until, pass_.held.lock.expires):
        text = "Not enough time is left in this pass to create the job before the item's lease expires."
        raise ItemDeferred(text, code=Code.LATE_PASS, warn=False)
    try:
        return pass_.services.vertex.create(create.request, timeout)
    except LaunchError:
        raise
    except Exception as error:
        text = f"Unexpected {type(error).__name__} while the job of item {create.item.id} was created."
        unexpected = Message(Code.UNEXPECTED, f"{text} The function's log has the traceback.")
        log.write(logging.ERROR, unexpected, error=error, event=Event.FAILED, item=create.item.id)
        raise OutcomeUnknown(unexpected.text, code=unexpected.code) from error


def _created(pass_: Pass, create: Create, job: str) -> None:
    item, request = create.item, create.request
    pass_.ledger.keep(pass_.ledger.open[item.id].created(job))
    row = {"item": item.id, "queue": item.queue, "run": str(request.run), "job": job, "region": request.region}
    pass_.report.submitted.append(row)
    if create.attempt > 1:
        pass_.report.resubmitted.append({**row, "attempt": str(create.attempt)})
    fields: dict[str, object] = {"event": Event.SUBMITTED, **row}
    if pass_.report.freed:
        fields["refill_s"] = round(max(0.0, pass_.now - pass_.report.freed.pop(0)), 3)
    LOGGER.info("Submitted item %s as %s", item.id, job, extra=fields)
    pass_.outbox.extend(Warn(item.id, message, Phase.RUN) for message in request.warnings)


def _cancel(pass_: Pass, cancels: Sequence[Cancel]) -> None:
    """Cancel jobs in parallel; a later pass cancels those for which Vertex AI did not take the request."""
    calls = [partial(pass_.services.vertex.cancel, cancel.job) for cancel in cancels]
    for cancel, error in zip(cancels, pass_.services.run_parallel(calls, AT_ONCE), strict=True):
        item, job, why = cancel.item, cancel.job, cancel.why
        if isinstance(error, LaunchError):
            text = f"Cannot cancel job {job}: {error}"
            log.warning(Message(Code.CANCEL_FAILED, text), item=item, job=job)
            continue
        LOGGER.info("Cancelled job %s because %s", job, why, extra={"code": why.code, "item": item, "job": job})
        pass_.report.cancelled.append(_row(why, item=item, job=job))
        if cancel.after is After.DROP:
            pass_.ledger.lose(item, pass_.now)
            _take_back_warnings(pass_, item)
        elif cancel.after is After.NOTE:
            pass_.ledger.keep(pass_.ledger.open[item].cancelled(str(why)))


# W&B: the agent and the queues


def register(pass_: Pass, seen: Seen) -> tuple[str, bool]:
    """Find or create the agent that W&B shows for this deployment; return its id and whether it was stopped there.

    The next pass asks for it by its id only if W&B shows it now and it was not stopped. Else it asks for all agents. The answer
    to a create may have had another id, and a pass that resumed may have died before it noted its agent.
    """
    settings, hostname, ledger = pass_.settings, f"vertex-launch/{pass_.settings.deployment}", pass_.ledger
    ids = seen.queue_ids(settings.queues)
    agent = seen.agent(hostname, settings.queues, ledger, pass_.now)
    if ids and (agent is None or (agent.stop_polling and pass_.request.resume)):
        known, stopped = _make_agent(pass_, seen.entity, ids, hostname, replaces=agent is not None), False
        ledger.made = MadeAgent(id=known, queues=settings.queues, at=pass_.now)
        pass_.held.keep()  # a pass that fails from now on makes no other one
    else:
        known, stopped = (agent.id, agent.stop_polling) if agent else ("", False)
        if known and not stopped and pass_.ledger.made and pass_.ledger.made.id != known:
            # Made by a pass that could not note it: the one before may be stopped, and must not be used again.
            pass_.ledger.made = replace(pass_.ledger.made, id=known, queues=settings.queues)
    if seen.wandb.agents_shown:
        ledger.agent = known if not stopped and known in seen.agents else ""
    ledger.stopped = stopped
    if stopped:
        text = (
            "The agent of this deployment was stopped in W&B, so no items are popped. To resume, POST "
            '{"resume": true} to dispatch_now.'
        )
        apply(pass_, [Notice(Message(Code.AGENT_STOPPED, text))])
    return known, stopped


def _make_agent(pass_: Pass, entity: str, queue_ids: Sequence[str], hostname: str, *, replaces: bool) -> str:
    """Create an agent and return its id, empty if W&B refuses that. Raises Unavailable if it does not answer.

    Items can be popped without one. If one that was stopped is to be replaced, a refusal is an error as well.
    """
    settings = pass_.settings
    config = {"queues": list(settings.queues), "max_jobs": settings.max_jobs}
    try:
        return pass_.services.queue.create_agent(entity, queue_ids, hostname, config)
    except Unavailable as error:
        if replaces or error.message.code not in REFUSALS:
            raise
        text = f"{error.message.text.rstrip('.')}. Items are popped without one, and W&B shows the queues as idle."
        apply(pass_, [Notice(Message(Code.AGENT_REFUSED, text))])
        return ""


def note(pass_: Pass, items: Sequence[Item]) -> None:
    """Record which items are checked from now on. The next pass reads that if this one dies. Raises PassLost, Unavailable."""
    pass_.held.note([item.id for item in items], pass_.now)


def pop(pass_: Pass, seen: Seen, agent: str, queues: Sequence[str], status: str) -> list[Popped]:
    """Lease one item for each entry of ``queues`` in an agent's name, refreshing its status. Raises Unavailable."""
    singly = pass_.now < pass_.ledger.singly_until
    try:
        answers = pass_.services.queue.pop(seen.entity, queues, agent, status, singly=singly)
    finally:
        pass_.keep_pace()
    if any(answer.unreadable for answer in answers):
        pass_.ledger.singly_until = pass_.now + POP_SINGLY
    if leased := [answer for answer in answers if answer.item]:
        served = pass_.settings.queues
        last = leased[-1].queue
        pass_.ledger.turn = served[(served.index(last) + 1) % len(served)] if last in served else ""
    return answers


def refresh_status(pass_: Pass, agent: str, status: str) -> None:
    """Refresh the agent's status in W&B, which otherwise shows its queues as idle."""
    pass_.services.queue.set_status(agent, status)


def claim(pass_: Pass, claims: Sequence[Claim], until: float) -> dict[str, str]:
    """Acknowledge items for their jobs' runs, none after ``until``: later they come back and are adopted.

    A new job is written down first if its run is the item's own. If the pass dies and someone deletes the job, nothing else
    distinguishes our ack from another agent's. Return the items (id to queue) whose ack was refused.
    """
    if any(
        claim.created and claim.run != derived_run(pass_.settings, pass_.ledger.entity, claim.item) for claim in claims
    ):
        pass_.held.save()
    if not claims or pass_.now > until:
        return {}
    answers = pass_.services.queue.ack([(claim.item, claim.run) for claim in claims], until - pass_.now)
    refused = {}
    for claim, answer in zip(claims, answers, strict=True):
        if answer is Ack.ACCEPTED:
            pass_.ledger.keep(pass_.ledger.open[claim.item].claim_now())
            if not claim.created:
                pass_.report.adopted.append({"item": claim.item, "queue": claim.queue, "job": claim.job})
        elif answer is Ack.REFUSED:
            refused[claim.item] = claim.queue
    return refused


def _reject(pass_: Pass, rejects: Sequence[Reject], until: float) -> None:
    """Fail items that can never start, while their lease is certain; later they come back and fail then."""
    if not rejects or pass_.now > until:
        return
    texts = [(reject.item.id, pass_.services.redact(str(reject.message))) for reject in rejects]
    taken = pass_.services.queue.fail(texts, Phase.AGENT, until - pass_.now)
    for reject, known in zip(rejects, taken, strict=True):
        item, message = reject.item, reject.message
        pass_.ledger.stop_waiting(item.id)
        pass_.report.rejected.append(_row(message, item=item.id, queue=item.queue))
        rejected = Message(message.code, f"Rejected item {item.id}: {message.text}")
        log.warning(rejected, event=Event.REJECTED, item=item.id, queue=item.queue)
        if not known:
            text = f"W&B did not accept the failure of item {item.id}. The item returns to its queue and fails again."
            apply(pass_, [Notice(Message(Code.MESSAGE_NOT_TAKEN, text))])


def send_warnings(pass_: Pass) -> None:
    """Put the warnings of this pass on their items, and record those that W&B took."""
    for phase in Phase:
        texts = [(warn.item, pass_.services.redact(str(warn.message))) for warn in pass_.outbox if warn.phase is phase]
        taken = pass_.services.queue.warn(texts, phase, pass_.settings.timeouts.read) if texts else []
        for (item, text), known in zip(texts, taken, strict=True):
            if known:
                pass_.ledger.warned(item, text)


# Jobs that have ended


def _settle(pass_: Pass, settles: Sequence[Settle]) -> None:
    """Report to W&B how jobs ended; the next pass sends what it does not accept."""
    for settle in settles:
        pass_.services.redact.add(settle.job.api_key if settle.job else "")
    settles = [_with_sweep(pass_, settle) if settle.sweep else settle for settle in settles]
    for settle in settles:
        if settle.verdict is Verdict.DONE and not settle.sweep:
            _settled(pass_, settle)
    for verdict in (Verdict.FAILED, Verdict.WARNED):
        _tell(pass_, verdict, [settle for settle in settles if settle.verdict is verdict])


def _with_sweep(pass_: Pass, settle: Settle) -> Settle:
    """Cancel the sweep of a scheduler that failed. Return what is left to do, with why the sweep goes on if it does.

    The message says so at once. If W&B did not take the cancellation, the next passes try again for a while.
    """
    entry, sweep, done = settle.entry, settle.sweep, replace(settle, sweep="")
    try:
        ended = pass_.services.queue.cancel_sweep(entry.entity, entry.project, sweep, entry.run, entry.queue)
    except Unavailable as error:
        log.warning(Message(Code.SWEEP_NOT_CANCELLED, f"Cannot cancel sweep {sweep}: {error}"), item=entry.item)
        if settle.verdict is Verdict.DONE:
            return done if settle.late else settle
        words = error.reason.rstrip(".")
        text = f"Sweep {sweep} goes on, because W&B did not cancel it: {words}. Stop it in W&B if it still runs in 15 minutes."
        return replace(done if settle.late else settle, message=_also(settle.message, text))
    if ended is None:
        text = (
            f"Sweep {sweep} goes on, because W&B does not show that run {entry.run} of queue {entry.queue} is its scheduler. "
            "Stop it in W&B if nothing else schedules its runs."
        )
        pass_.outbox.append(Warn(entry.item, Message(Code.SWEEP_NOT_CANCELLED, text), Phase.RUN))
    else:
        LOGGER.info("Sweep %s %s", sweep, "is cancelled" if ended else "had ended already", extra={"item": entry.item})
    return done


def _also(message: Message, text: str) -> Message:
    """Return a message with one more sentence; its code still says how the job ended."""
    return Message(message.code, f"{message.text} {text}")


def _tell(pass_: Pass, verdict: Verdict, settles: Sequence[Settle]) -> None:
    """Fail items or warn about them; those whose message W&B has taken are settled."""
    if not settles:
        return
    tails = pass_.services.run_parallel([partial(_last_lines, pass_, settle.job) for settle in settles], LOGS_AT_ONCE)
    texts = [
        (settle.entry.item, pass_.services.redact(f"{settle.message}{tail}"))
        for settle, tail in zip(settles, tails, strict=True)
    ]
    queue, within = pass_.services.queue, min(pass_.settings.timeouts.read, pass_.last_word - pass_.now)
    if within <= 0:
        return
    try:
        taken = (queue.fail if verdict is Verdict.FAILED else queue.warn)(texts, Phase.RUN, within)
    except Unavailable as error:
        log.warning(Message(Code.MESSAGE_NOT_TAKEN, f"Cannot report to W&B how {len(texts)} jobs ended: {error}"))
        return
    for settle, known in zip(settles, taken, strict=True):
        if settle.sweep and known:
            pass_.ledger.keep(settle.entry.inform())
        elif (known or settle.late) and not settle.sweep:
            _settled(pass_, settle)


def _last_lines(pass_: Pass, job: ManagedJob | None) -> str:
    """Return the last lines of a job's own log, if the deployment wants them."""
    if pass_.services.logs is None or job is None or not job.started:
        return ""
    lines = pass_.services.logs.tail(job.name)
    return "\nThe last lines of its log:\n" + "\n".join(lines) if lines else ""


def _settled(pass_: Pass, settle: Settle) -> None:
    entry, message, verdict = settle.entry, settle.message, settle.verdict
    pass_.ledger.settle(entry.item, pass_.now)
    state = settle.job.state if settle.job else "deleted"
    row = {"item": entry.item, "queue": entry.queue, "job": entry.job, "state": state, "outcome": verdict.value}
    pass_.report.settled.append(_row(message, **row))
    fields = {"event": Event.SETTLED, **row}
    if verdict is Verdict.DONE:
        LOGGER.info("Settled item %s (%s): %s", entry.item, verdict, message.text, extra=fields)
    else:
        log.warning(Message(message.code, f"Settled item {entry.item} ({verdict}): {message.text}"), **fields)


# The end of the pass


def finish(pass_: Pass, active: Sequence[ManagedJob]) -> None:
    """Send the warnings, give the lock back with what is open, and complete the report. Raises PassLost."""
    settings, held = pass_.settings, pass_.held
    if pass_.now < held.lock.expires - settings.timeouts.margin:  # else the next pass sends them
        send_warnings(pass_)
    if pass_.request.full and pass_.in_time:
        pass_.ledger.full_pass_began = pass_.started
    pass_.ledger.prune(pass_.now, settings.give_up_after)
    pass_.keep_pace()
    try:
        held.give_back()
    except Unavailable as error:
        text = f"{error.message.text.rstrip('.')}. The pass is complete, but the next one starts only when its lock expires."
        apply(pass_, [Notice(Message(error.message.code, text))])
    pass_.report.count_slots(settings.max_jobs, pass_.ledger.slots_used(active)[Kind.JOB])
    pass_.report.took_ms = round(1000 * (pass_.now - pass_.started))
    counts = ", ".join(f"{count} {name}" for name, count in pass_.report.counts.items())
    slots = f"{pass_.report.slots['active']} of {settings.max_jobs} slots active"
    extra = {"event": Event.PASS, "pass_id": pass_.report.pass_id, "report": pass_.report.body()}
    LOGGER.info("Pass: %s, %s, %d ms", counts, slots, pass_.report.took_ms, extra=extra)
