"""How an ended job is settled: what is done about its item, and the sentences for its author. Pure.

An item is settled, never a job. The item's job is the one that ``reconcile`` has chosen. Its duplicates are cancelled
without a message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from vertex_launch.codes import Code
from vertex_launch.dispatch.context import Action, Keep, RetryLater, Settle, Verdict
from vertex_launch.dispatch.look import Seen
from vertex_launch.errors import Message
from vertex_launch.job import outcome
from vertex_launch.job.outcome import End, Outcome
from vertex_launch.model import ItemView, JobName, Kind, ManagedJob, Pace, RunId, RunView
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.open_item import OpenItem, Stage, pause

CLOCKS = 300.0
"""Seconds that a run's heartbeat may lie before its job's start, because the clocks of W&B and Vertex AI differ."""
WAITING = ("PENDING", "LEASED")
"""States of an item that no run has claimed; a claimed one may leave CLAIMED once its run has ended."""
FRESH = 1800.0
"""Seconds since its end within which a job that a rebuilt ledger found ended may get another attempt."""
SWEEP_TRIES = 900.0
"""Seconds since a scheduler's end for which its sweep is tried to be cancelled."""
MOST_QUOTED = 1500
"""Characters of Vertex AI's own words in a message; a failed program's traceback can be long."""


class Unknown(Enum):
    """The answer that W&B could not give."""

    NOW = auto()
    """It may give it later."""
    EVER = auto()
    """The run belongs to an entity that the API key cannot see."""
    HIDDEN = auto()
    """The job reports with a key of its item's own, perhaps in a project that is hidden from the deployment's key."""


@dataclass(frozen=True)
class Wait:
    """Decide later; ``why`` is for the log."""

    why: str


@dataclass(frozen=True)
class Ended:
    """An item whose job has ended, None if it was deleted, and what W&B shows of them.

    ``run`` is None if it does not exist; ``item`` is None if W&B does not show it.
    """

    entry: OpenItem
    job: ManagedJob | None
    run: RunView | Unknown | None
    item: ItemView | None


def ended_items(ledger: Ledger, seen: Seen) -> list[OpenItem]:
    """Return the claimed items whose job is seen to have ended or to be gone."""

    def has_ended(entry: OpenItem) -> bool:
        job = seen.jobs.get(entry.job)
        return job.ended if job else bool(entry.current.ended) and (entry.job in seen.missing or not entry.job)

    return [entry for entry in ledger.at(Stage.CLAIMED) if has_ended(entry)]


def settle(
    entries: Sequence[OpenItem],
    seen: Seen,
    items: Mapping[str, ItemView],
    runs: Mapping[RunId, RunView | None],
    settings: Settings,
    now: float,
    pace: Pace,
) -> list[Action]:
    """Decide about items whose job has ended, each by itself. ``items`` and ``runs`` have what W&B shows of them."""
    actions: list[Action] = []
    for entry in entries:
        never = pace.hides_runs or entry.entity != (entry.home or seen.entity)
        run = runs.get(entry.run_id, Unknown.EVER if never else Unknown.NOW)
        job = seen.jobs.get(entry.job)
        if run is None and job and job.own_key and job.started:
            run = Unknown.HIDDEN
        if job and seen.elsewhere(entry.job, settings):
            why = f"it reports to {job.server}, which is not this deployment's W&B server any more"
            actions.append(_done(Ended(entry, job, None, None), why))
            continue
        decision = decide(Ended(entry, job, run, items.get(entry.item)), settings, now)
        if isinstance(decision, Wait):
            actions.append(Keep(entry, note=f"Job {entry.job} has ended and is not settled yet: {decision.why}"))
        else:
            actions.append(decision)
    return actions


def decide(ended: Ended, settings: Settings, now: float) -> Settle | RetryLater | Wait:
    """Decide about an item whose job has ended."""
    entry, job, run, item = ended.entry, ended.job, ended.run, ended.item
    if entry.informed:
        only_sweep = _done(ended, "its author knows already")
        return replace(only_sweep, sweep=_sweep(ended), late=now - _ended_at(entry, job) > SWEEP_TRIES)
    since = _ended_at(entry, job)
    late = now - since > settings.give_up_after
    unclaimed = item is None or item.state in WAITING
    if item and (item.state == "FAILED" or (not unclaimed and item.run not in ("", entry.run))):
        return _done(ended, f"the item is {item.state} for run {item.run or '(none)'} already")
    if (unclaimed or run is Unknown.NOW) and not late:
        return Wait("W&B does not show its item as claimed, or its run, at the moment")
    young = now - since < settings.timeouts.settle_grace
    if job is None:
        return _deleted(ended, settings, now, young=young)
    end = outcome.of(job)
    if end is None:
        return Wait(f"this version does not know its state {job.state}")
    if job.state == outcome.FAILED and not job.error and young:
        return Wait("Vertex AI has not given the reason yet")
    stopped = bool(entry.current.stop_seen) or (isinstance(run, RunView) and run.stopped and not entry.stopped_before)
    began = True if entry.began_before else _began(entry, run, job, end.end)
    young = young and end.began
    if not stopped and _another(entry, job, end, settings, now - since):
        at = since + pause(entry.current.number, settings.resubmit_after)
        return RetryLater(entry.item, at, quoted(job.error), elsewhere=end.try_other_region, began=began is True)
    return _told(ended, _End(job, end, began, stopped), settings, now, young=young)


def is_late(entry: OpenItem, settings: Settings, now: float) -> bool:
    """Return whether the item's job ended so long ago that it is settled even if W&B does not take the message."""
    return bool(entry.current.ended) and now - entry.current.ended > settings.give_up_after


@dataclass(frozen=True)
class _End:
    """How a job ended. ``began`` is whether its run did, None if W&B does not show such runs."""

    job: ManagedJob
    outcome: Outcome
    began: bool | None
    stopped: bool


def _told(ended: Ended, end: _End, settings: Settings, now: float, *, young: bool) -> Settle | Wait:
    entry = ended.entry
    failed = end.outcome.end is End.BAD and not entry.current.found_ended
    if end.began is not False:  # that includes a run that cannot be seen
        if end.outcome.end is End.GOOD or entry.current.found_ended:
            return _done(ended)
        return _settle(ended, Verdict.WARNED, _sentence(entry, end, settings), failed, settings, now)
    if young:
        return Wait("its run may still appear")
    return _settle(ended, Verdict.FAILED, _sentence(entry, end, settings), failed, settings, now)


def _settle(ended: Ended, verdict: Verdict, message: Message, failed: bool, settings: Settings, now: float) -> Settle:
    """Settle an item; a sweep whose scheduler ``failed`` is cancelled because nothing else would continue it.

    It has to be a sweep of the queue's own entity: an item can name any other. W&B is not asked about a sweep of another
    entity, because the answer would show whether it exists.
    """
    entry, job, sweep = ended.entry, ended.job, ""
    if failed and entry.kind is Kind.SCHEDULER and ended.run is Unknown.EVER:
        text = (
            f"{message.text} If this was the scheduler of a sweep, stop the sweep in W&B: it belongs to another entity."
        )
        message = Message(message.code, text)
    elif failed and entry.kind is Kind.SCHEDULER:
        sweep = _sweep(ended)
    return Settle(entry, job, verdict, message, sweep, late=is_late(entry, settings, now))


def _sweep(ended: Ended) -> str:
    """Return the sweep that a scheduler is for."""
    return (ended.job and ended.job.sweep) or ended.entry.run


def _done(ended: Ended, why: str = "") -> Settle:
    return Settle(ended.entry, ended.job, Verdict.DONE, Message(Code.JOB_DONE, why))


def _deleted(ended: Ended, settings: Settings, now: float, *, young: bool) -> Settle | Wait:
    """Decide about an item whose job is gone: one whose run has begun never fails."""
    entry, run = ended.entry, ended.run
    if young:
        return Wait("Vertex AI does not show its job")
    reason = f"Vertex AI had reported: {entry.reason}" if entry.reason else ""
    text = " ".join(
        filter(None, [f"{_head(entry, settings)} was deleted in Vertex AI.", reason, quoted(entry.no_retry)])
    )
    if run is None or (isinstance(run, RunView) and run.state == "pending"):
        text = f"{text} Its run had not begun. Launch it again if it is still wanted."
        return _settle(ended, Verdict.FAILED, Message(Code.JOB_DELETED, text), True, settings, now)
    if entry.current.found_ended or (isinstance(run, RunView) and run.state == "finished"):
        return _done(ended)
    return _settle(ended, Verdict.WARNED, Message(Code.JOB_DELETED, text), True, settings, now)


def _ended_at(entry: OpenItem, job: ManagedJob | None) -> float:
    """Return when the job ended: as Vertex AI says, but never later than a pass saw it."""
    known = [moment for moment in (job.finished if job else 0, entry.current.ended) if moment]
    return min(known, default=entry.current.planned)


def _another(entry: OpenItem, job: ManagedJob, end: Outcome, settings: Settings, age: float) -> bool:
    """Return whether the item gets another attempt."""
    current = entry.current
    if (current.found_ended and age > FRESH) or current.cancelled or entry.no_retry:
        return False
    return end.again and job.repeatable and current.number < settings.max_attempts


def _began(entry: OpenItem, run: RunView | Unknown | None, job: ManagedJob, end: End) -> bool | None:
    """Return whether the run was alive after the job began; None if W&B does not show such runs."""
    if isinstance(run, Unknown):
        return None
    if run is None or run.state == "pending":
        return False
    if entry.current.number > 1 and entry.current.found_ended:
        return True  # perhaps in an earlier attempt that a lost ledger does not list
    if run.heartbeat is None:  # without a start of the job, what W&B shows is the run of an earlier item
        return bool(job.started) or end is End.GOOD or entry.current.found_ended
    return run.heartbeat >= (job.started or job.created) - CLOCKS


# Sentences


def retried(entry: OpenItem, attempt: int, region: str, settings: Settings) -> Message:
    """Return the message that there is another attempt, and why."""
    return Message(Code.RETRIED, f"Attempt {attempt} of {settings.max_attempts} in {region}. Reason: {entry.reason}")


def quoted(words: str) -> str:
    """Return someone else's words as one line that ends like a sentence; empty text stays empty.

    Long text is cut between words, so that no key in it is cut in half and missed by the redaction at the exits.
    """
    text = " ".join(words.split())
    if not text:
        return ""
    if len(text) > MOST_QUOTED:
        text = f"{text[:MOST_QUOTED].rpartition(' ')[0]} […]"
    return text if text.endswith((".", "!", "?", "]")) else f"{text}."


def link(job: str, project: str) -> str:
    """Return the address of a job's page in the console, as the SDK does (``aiplatform.jobs``, ``_dashboard_uri``)."""
    name = JobName.parse(job)
    return f"https://console.cloud.google.com/agent-platform/locations/{name.region}/training/{name.number}?project={project}"


def _sentence(entry: OpenItem, end: _End, settings: Settings) -> Message:
    """Return the message to the author: what happened, Vertex AI's words, what they mean, and where to look."""
    job, cause = end.job, _cause(entry, end)
    code, parts = end.outcome.code, [_what(entry, end, settings)]
    if end.outcome.end is End.CANCELLED:
        elsewhere = "It was cancelled outside of W&B, for example in the Google Cloud console."
        parts.append(cause.text if cause else elsewhere)
    elif end.outcome.end is End.BAD:
        if job.error:
            parts.append(f"Vertex AI says: {quoted(job.error)}")
        elif job.state == outcome.FAILED:
            parts.append("Vertex AI gave no reason.")
        parts += [end.outcome.meaning, cause.text if cause else ""]
        if end.outcome.again and not job.repeatable:
            parts.append("It is not retried because its run spec sets disable_retries.")
    parts += [quoted(Message.parse(entry.no_retry, code).text), f"Details: {link(job.name, settings.project)}"]
    return Message(cause.code if cause else code, " ".join(filter(None, parts)))


def _cause(entry: OpenItem, end: _End) -> Message | None:
    """Return why the job was asked to end, if it was."""
    if entry.current.cancelled:
        cancelled = Message.parse(entry.current.cancelled, Code.JOB_CANCELLED)
        return Message(cancelled.code, quoted(f"It was cancelled because {cancelled.text}"))
    return Message(Code.RUN_STOPPED, "Its run was stopped in W&B.") if end.stopped else None


def _what(entry: OpenItem, end: _End, settings: Settings) -> str:
    head, verb = _head(entry, settings), end.outcome.verb
    if end.began is not False:
        return f"{head} {verb}."
    if end.outcome.end is End.GOOD:
        return (
            f"{head} succeeded, but its run never began: the program did not call wandb.init, or called it with another "
            "identity than that in its environment (WANDB_RUN_ID, WANDB_PROJECT and WANDB_ENTITY)."
        )
    if not end.job.started:
        return f"{head} {verb} before it started, so its run never began."
    return f"{head} {verb} before its run began: wandb.init was not called."


def _head(entry: OpenItem, settings: Settings) -> str:
    attempt = entry.current
    number = JobName.parse(attempt.job).number if attempt.job else "(unknown)"
    return f"Vertex AI job {number} (attempt {attempt.number} of {settings.max_attempts}, {attempt.region})"
