"""The pass: ten steps from taking the hold to giving it back, the only thing that changes anything.

Called by ``app`` for a tick and for a person. What it may rely on after a crash is described with each step; what must
always hold: no item is lost, none is started twice, and never are more than ``max_jobs`` jobs active.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from vertex_launch.codes import Code
from vertex_launch.dispatch import settle as settling
from vertex_launch.dispatch.look import Looker, Seen
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.prepare import Prepared, build_request, prepare
from vertex_launch.dispatch.reconcile import Reconciler
from vertex_launch.errors import ItemDeferred, ItemRejected, Message, OutcomeUnknown, PassLost, Unavailable
from vertex_launch.job import labels, readback, retry, run_spec
from vertex_launch.job.request import JobRequest
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import (
    LOCAL_RESOURCES,
    SCHEDULER_URI,
    VERTEX_RESOURCES,
    Ack,
    Item,
    Kind,
    ManagedJob,
    PassReport,
    PassRequest,
    Phase,
    Popped,
    RunId,
    RunView,
)
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger, OpenJob, Stage, Stored

AT_ONCE = 16
STALE_TICK = 600.0
"""Seconds after which a tick is dropped, for a younger one follows."""


def is_stale(request: PassRequest, now: float) -> bool:
    """Return whether the request is a tick that is too old to be worth a pass."""
    return request.published is not None and now - request.published > STALE_TICK


class Dispatcher:
    """Runs passes, one at a time among all instances of this deployment."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self._settings = settings
        self._services = services

    def run(self, request: PassRequest) -> PassReport | None:
        """Run a pass and report it; None when a tick asks for nothing that another pass has not done since.

        Raises PassBusy, PassLost, Unavailable.
        """
        started = self._services.clock()
        if is_stale(request, started):
            return None
        stored = self._services.record.read()
        if request.published is not None and stored.ledger and request.published < stored.ledger.full_pass_began:
            return None
        one = _Pass(self._settings, self._services, request, started)
        report = one.run(stored)
        report.took_ms = round(1000 * (self._services.clock() - started))
        self._summarize(report)
        return report

    def _summarize(self, report: PassReport) -> None:
        body = self._services.redact.json(report.body())
        LOGGER.info(
            "pass: %d submitted, %d adopted, %d resubmitted, %d rejected, %d deferred, %d cancelled, %d settled, "
            "%s of %s slots active, %d ms",
            len(report.submitted),
            len(report.adopted),
            len(report.resubmitted),
            len(report.rejected),
            len(report.deferred),
            len(report.cancelled),
            len(report.settled),
            report.slots.get("active"),
            report.slots.get("max_jobs"),
            report.took_ms,
            extra={"event": Event.PASS, "pass_id": report.pass_id, "report": body},
        )


@dataclass(frozen=True)
class _Start:
    """A job to be created: the first one of a checked item, or the ``attempt`` that follows one that has ended."""

    item: Item
    kind: Kind
    request: JobRequest
    attempt: int = 1


@dataclass(frozen=True)
class _Claim:
    """An ack to be sent: the item is ours, for this run has this job; ``created`` in this very round or long ago."""

    item: str
    queue: str
    run: str
    job: str
    created: bool = False


class _Pass:
    """One pass; each method is a step or a part of one."""

    def __init__(self, settings: Settings, services: Services, request: PassRequest, started: float) -> None:
        self._settings = settings
        self._services = services
        self._request = request
        self._started = started
        self._clock = services.clock
        self._ledger = Ledger()
        self._kept = b""
        self._generation = 0
        self._agent = ""
        self._stopped = False
        self._refreshed = False
        self._returning = 0
        self._reach = 1
        self._foreign: set[str] = set()
        self._ack_by = 0.0
        self._active: list[ManagedJob] = []
        self._queues: list[str] = []
        self._submissions = 0
        self._built = 0
        self._warnings: list[tuple[str, str, Phase]] = []
        self.report = PassReport(pass_id=services.new_pass_id(), dry_run=request.dry_run)

    def run(self, stored: Stored) -> PassReport:
        """Go through the steps. Raises PassBusy, PassLost, Unavailable."""
        self._take_hold(stored)  # 1
        try:
            self._seen = self._look()  # 2
            self._reconcile()  # 3
            self._register()
            self._resubmit()
            while popped := self._pop():  # 4, 5
                claims, starts = self._sort(popped)  # 6, 7
                self._reach = 1 if starts or claims else 2 * self._reach
                claims += self._create(starts)  # 8
                self._ack(claims)  # 9
            return self._finish()  # 10
        except PassLost:
            raise
        except Exception:
            self._abandon()
            raise

    # 1. The hold and the ledger

    def _take_hold(self, stored: Stored) -> None:
        expires = self._started + self._settings.hold_seconds
        free = stored.ledger.free_hold if stored.ledger else 0
        self._hold = self._services.record.take_hold(self.report.pass_id, self._started, expires, free)
        self._open_ledger(self._services.record.read() if self._hold.taken_over else stored)

    def _open_ledger(self, stored: Stored) -> None:
        self._ledger, self._generation = stored.ledger or Ledger(rebuild=True), stored.generation
        self._ledger.free_hold = 0
        self._kept = self._ledger.dump()

    def _write_ledger(self) -> None:
        self._generation = self._services.record.write(self._ledger, self.report.pass_id, self._generation)
        self._kept = self._ledger.dump()

    def _abandon(self) -> None:
        """Give the hold back with the ledger as it was last written: what this pass learned, the next one learns again."""
        ledger = Ledger.model_validate_json(self._kept)
        ledger.free_hold = self._hold.generation
        try:
            self._services.record.write(ledger, self.report.pass_id, self._generation)
        except (Unavailable, PassLost) as error:
            LOGGER.warning("the hold is not given back and expires by itself: %s", error)

    # 2. Look

    def _look(self) -> Seen:
        looker = Looker(self._settings, self._services, self._ledger, self._notice)
        seen = looker.look(self._request.queues or self._settings.queues, self._started)
        self._queues = list(seen.queues)
        return seen

    # 3. Reconcile

    def _reconcile(self) -> None:
        self._reconciler = Reconciler(
            self._settings, self._services, self._ledger, self._seen, self._started, self._hold.expires, self.report
        )
        self._active = self._reconciler.reconcile(self._request.ended)
        self._warnings += [(item, text, Phase.RUN) for item, text in self._reconciler.warnings]
        self._kept = self._ledger.dump()  # what W&B was told is not told again, even if this pass comes to nothing
        self._returning = sum(1 for _ in self._ledger.at(Stage.CREATED))

    def _register(self) -> None:
        """Find or make the agent that W&B shows for this deployment, and obey a stop."""
        queue_ids = self._seen.queue_ids(self._settings.queues)
        hostname = f"vertex-launch/{self._settings.deployment}"
        agent = self._seen.agent(hostname, queue_ids)
        if queue_ids and (agent is None or (agent.stop_polling and self._request.resume)):
            config = {"queues": list(self._settings.queues), "max_jobs": self._settings.max_jobs}
            self._agent = self._services.queue.create_agent(self._seen.entity, queue_ids, hostname, config)
        elif agent is not None:
            self._agent, self._stopped = agent.id, agent.stop_polling
        self._ledger.agent = self._agent
        if self._stopped:
            self._notice(
                "The agent of this deployment was stopped in W&B, so nothing is popped; "
                'to go on, POST {"resume": true} to dispatch_now'
            )

    # 4. Slots

    def _used(self) -> Counter[Kind]:
        return self._ledger.slots_used(self._active)

    def _free(self, kind: Kind) -> float:
        limit = self._settings.job_limit if kind is Kind.JOB else self._settings.scheduler_limit
        return max(0, limit - self._used()[kind])

    def _room(self) -> float:
        """Count the jobs that may still be started in this pass."""
        bounds = [self._free(Kind.JOB), float(self._quota(self._settings.regions[0].name))]
        if self._request.limit is not None:
            bounds.append(self._request.limit - self._submissions)
        return max(0, min(bounds))

    def _quota(self, region: str) -> int:
        return self._ledger.submissions_left(region, self._settings.submissions_per_minute, self._clock())

    def _in_time(self) -> bool:
        return self._clock() - self._started < self._settings.timeouts.pass_budget

    def _resubmit(self) -> None:
        """Submit the next attempts whose time has come, before anything new takes the slots."""
        due = sorted(self._ledger.at(Stage.AGAIN), key=lambda entry: entry.again_at)
        ready = [entry for entry in due if entry.again_at <= self._clock() and self._may_go_on(entry)]
        of_kind = {kind: [entry for entry in ready if entry.kind is kind] for kind in Kind}
        ready = [entry for kind, its in of_kind.items() for entry in its[: int(min(len(its), self._free(kind)))]]
        if self._stopped or not ready or not self._in_time():
            return
        key, starts = self._services.key.get(), list[_Start]()
        asked = self._services.together([partial(self._request_of, entry) for entry in ready], AT_ONCE)
        for entry, request in zip(ready, asked, strict=True):
            if isinstance(request, Unavailable):
                LOGGER.warning("cannot submit item %s again: %s", entry.item, request, extra={"item": entry.item})
            elif request is None:
                self._ledger.give_up(entry.item, "It could not be submitted again")
            else:
                starts += self._next(entry, request, key, starts)
        self._ack_by = self._hold.expires
        self._create(starts)  # their items are claimed already

    def _may_go_on(self, entry: OpenJob) -> bool:
        """Tell whether an item's next attempt may begin; one that was stopped, or waited for too long, has had its last."""
        runs = self._reconciler.runs
        if self._clock() - entry.ended_at > self._settings.give_up_after:
            self._ledger.give_up(entry.item, entry.final or "No further attempt could begin within give_up_after")
        elif _is_stopped(runs.get(entry.run_id)) and not entry.stopped_before:
            self._ledger.give_up(entry.item, "It is not tried again, for somebody stopped its run in W&B")
        else:  # where nobody knows whether it was stopped, the next pass asks again
            return entry.entity != self._seen.entity or entry.run_id in runs
        return False

    def _request_of(self, entry: OpenJob) -> JobRequest | Unavailable | None:
        try:
            return self._services.vertex.request_of(entry.last)
        except Unavailable as error:
            return error

    def _next(self, entry: OpenJob, request: JobRequest, key: str, starts: Sequence[_Start]) -> list[_Start]:
        """Give the next attempt of an item, nothing where a limit leaves no room for it now."""
        spoken = readback.key_of(request)
        self._services.redact.add(spoken)
        if spoken and self._settings.api_key_delivery == "secret":
            self._ledger.give_up(
                entry.item,
                "It is not tried again, for its job was submitted with the W&B key in its spec, and this deployment now keeps "
                "keys out of it (vertex-launch.yaml: api_key_delivery); launch it again",
            )
            return []
        others = retry.other_regions(request, self._settings) if entry.elsewhere else []
        region = next((name for name in others if name not in entry.refused), request.region)
        try:
            self._check_limits(entry.kind, region, starts)
        except ItemDeferred as error:
            LOGGER.info("item %s waits for its next attempt: %s", entry.item, error, extra={"item": entry.item})
            return []
        attempt = entry.attempt + 1
        again = retry.next_attempt(request, attempt=attempt, region=region, settings=self._settings, api_key=key)
        said = Message(Code.NONE, settling.another_attempt(entry, attempt, region, self._settings))
        return [_Start(Item(entry.item, entry.queue, None), entry.kind, replace(again, warnings=(said,)), attempt)]

    def _not_resubmitted(self, start: _Start, error: ItemRejected | ItemDeferred | OutcomeUnknown) -> None:
        """Note why there is no next attempt: a region that refuses it leaves the others, its own the last word."""
        entry, region = self._ledger.open[start.item.id], start.request.region
        reason = self._services.redact(str(error))
        LOGGER.warning("item %s: no attempt %d in %s: %s", entry.item, start.attempt, region, reason)
        if isinstance(error, OutcomeUnknown):
            pass  # its intent stays open until the job is seen or the grace has passed
        elif region != entry.last.split("/")[3]:
            entry.refused.append(region)
            entry.again_at = self._clock()
        elif isinstance(error, ItemRejected):
            self._ledger.give_up(entry.item, f"It could not be submitted again: {reason}")
        elif error.tell:
            entry.final = f"No further attempt could begin within give_up_after: {reason}"
            entry.refused.clear()  # perhaps another region has room by then
            if reason not in entry.told:
                self._warnings.append((entry.item, reason, Phase.RUN))
        self.report.deferred.append({"item": entry.item, "queue": entry.queue, "reason": reason})

    # 5. Pop

    def _pop(self) -> list[Popped]:
        """Lease as many items as there is room for, going round the queues; nothing once they are empty or time is up.

        Jobs whose item is not acked add to their number, for their items come back through the queue. An item that cannot
        start stays leased meanwhile and does not come back to block the one behind it.
        """
        popped: list[Popped] = []
        # Rounds of which nothing could start grow, for one slot must not mean one item at a time past a long line.
        room = min(int(self._room()) * self._reach, max(int(self._room()), self._settings.batches.pops))
        self._ack_by = self._clock() + self._settings.lease - self._settings.timeouts.margin
        if self._agent and not self._stopped:
            while self._queues and self._in_time() and (want := room + self._returning - len(popped)) > 0:
                popped += self._lease(self._turns(want))
        self._returning -= min(self._returning, max(0, len(popped) - room))
        if popped:
            self._ledger.turn = _after(popped[-1].queue, self._settings.queues)
        elif self._agent and (status := self._status()):
            self._services.queue.set_status(self._agent, status)
        return popped

    def _status(self) -> str:
        """Give the agent's status, once a pass: W&B shows its queues as idle where nobody refreshes it."""
        if self._refreshed:
            return ""
        self._refreshed = True
        return "RUNNING" if self._used() else "POLLING"

    def _lease(self, wanted: Sequence[str]) -> list[Popped]:
        """Pop once for each entry; a queue that gives nothing is not asked again in this pass."""
        first = not self._refreshed
        try:
            answers = self._services.queue.pop(self._seen.entity, wanted, self._agent, self._status())
        except Unavailable as error:
            if first:
                raise
            self._notice(f"Nothing more is popped in this pass: {error}")
            self._queues.clear()
            return []
        for answer in answers:
            if answer.item is None and answer.queue in self._queues:
                self._queues.remove(answer.queue)
                if answer.error:
                    self._notice(f"Queue {answer.queue}: {answer.error}")
        return [answer for answer in answers if answer.item]

    def _turns(self, want: int) -> list[str]:
        """Give the queues to pop from, one entry a pop, going round them.

        The first request asks no queue for more than it seems to hold, and one more, and all of them at once where they
        seem empty: so an idle pass costs one request, and W&B no pops that come to nothing.
        """
        most = dict.fromkeys(self._queues, want)
        if not self._refreshed:
            shown = {name: self._seen.wandb.queued[name] for name in self._queues if name in self._seen.wandb.queued}
            most |= {name: len(one.pending) + 1 for name, one in shown.items() if one.complete or not one.pending}
            if all(name in shown and not shown[name].pending for name in self._queues):
                return list(self._queues)
        turns = [name for turn in range(want) for name in self._queues if turn < most[name]]
        return turns[:want]

    # 6 and 7. Adopt, check and build

    def _sort(self, popped: Sequence[Popped]) -> tuple[list[_Claim], list[_Start]]:
        """Tell apart what has a job already, what can start, and what cannot."""
        claims: list[_Claim] = []
        starts: list[_Start] = []
        rejected: list[tuple[Item, str]] = []
        items = [answer.item for answer in popped if answer.item]
        for item in items:
            self._services.redact.add(run_spec.own_key(item))
        new = [item for item in items if item.id not in self._ledger.open and not _is_foreign(item)]
        prepared = prepare(self._settings, self._services, self._seen.entity, new)
        for item in items:
            try:
                self._check_resource(item)
                claim = self._adopt(item)
                if claim:
                    claims.append(claim)
                else:
                    starts.append(self._check(item, prepared, starts))
            except ItemRejected as error:
                rejected.append((item, str(error)))
            except ItemDeferred as error:
                self._defer(item, error)
        self._reject(rejected)
        return claims, starts

    def _check_resource(self, item: Item) -> None:
        """Leave what runs on another resource to the agents of that; W&B may not have told what the queue is for."""
        if not _is_foreign(item):
            return
        resource = item.spec["resource"]
        self._queues = [name for name in self._queues if name != item.queue]
        if item.queue not in self._foreign:
            self._foreign.add(item.queue)
            self._notice(
                f"Queue {item.queue} holds items for {resource}; this deployment serves Vertex AI queues (resource "
                "gcp-vertex). Take it out of queues in launch-config.yaml"
            )
        raise ItemDeferred(f"it is an item for {resource}, which another agent has to take", tell=False)

    def _adopt(self, item: Item) -> _Claim | None:
        """Claim an item that has a job, before anything else is asked of it: what trains is not failed by a new policy."""
        entry = self._ledger.open.get(item.id)
        if entry is None:
            return None
        if entry.stage is Stage.INTENDED:
            raise ItemDeferred("Vertex AI has not shown yet whether it took the job of an earlier attempt", tell=False)
        return _Claim(item.id, item.queue, entry.run, entry.job)

    def _check(self, item: Item, prepared: Prepared, starts: Sequence[_Start]) -> _Start:
        """Build an item's job, as far as limits and policy allow it. Raises ItemRejected, ItemDeferred."""
        waiting = self._ledger.waiting.get(item.id)
        if waiting and self._clock() - waiting.since > self._settings.give_up_after:
            hours, why = self._settings.give_up_after / 3600, "; ".join(waiting.warned) or "the function's log says why"
            raise ItemRejected(f"It could not start within {hours:g} hours (give_up_after): {why}")
        if waiting and self._clock() < waiting.until:
            later = waiting.until - self._clock()
            raise ItemDeferred(f"Vertex AI had no room for it; it is tried again in {later:.0f} s", tell=False)
        key, now = self._services.key.get(), datetime.fromtimestamp(self._clock(), UTC)
        now += timedelta(milliseconds=self._built)  # which names the job's output directory: no two jobs share one
        self._built += 1
        redact = self._services.redact
        spec, request = build_request(item, prepared, self._settings, api_key=key, now=now, redact=redact)
        holder = self._ledger.holder(request.run, item.id)
        if holder or any(start.request.run == request.run for start in starts):
            other = f" of item {holder.item}" if holder else ""
            raise ItemDeferred(
                f"run {request.run} is used by another job{other}; this item waits until that has ended", patient=True
            )
        self._check_limits(spec.kind, request.region, starts)
        return _Start(item, spec.kind, request)

    def _check_limits(self, kind: Kind, region: str, starts: Sequence[_Start]) -> None:
        """Raise ItemDeferred where a limit leaves no room beside what already starts in this round."""
        if self._free(kind) <= sum(1 for start in starts if start.kind is kind):
            if kind is Kind.SCHEDULER:
                raise ItemDeferred(
                    f"as many sweep schedulers are running as may ({self._settings.max_schedulers}, max_schedulers in "
                    "launch-config.yaml); this one starts when one of them has ended",
                    patient=True,
                )
            raise ItemDeferred("no slot is free", tell=False)
        if self._quota(region) <= sum(1 for start in starts if start.request.region == region):
            raise ItemDeferred(f"the submissions per minute of region {region} are used up", tell=False)
        if self._request.limit is not None and self._request.limit <= self._submissions + len(starts):
            raise ItemDeferred("the limit of this request is reached", tell=False)

    def _reject(self, rejected: Sequence[tuple[Item, str]]) -> None:
        """Fail items that can never start, while their lease is surely ours; later they come back and fail then."""
        if not rejected or self._clock() > self._ack_by:
            return
        sentences = [(item.id, self._services.redact(reason)) for item, reason in rejected]
        told = self._services.queue.fail(sentences, Phase.AGENT, self._ack_by - self._clock())
        for (item, _), (_, reason), known in zip(rejected, sentences, told, strict=True):
            self._ledger.settle_waiting(item.id)
            self.report.rejected.append({"item": item.id, "queue": item.queue, "reason": reason})
            where = {"event": Event.REJECTED, "item": item.id, "queue": item.queue}
            LOGGER.warning("rejected item %s: %s", item.id, reason, extra=where)
            if not known:
                self._notice(f"W&B did not take the failure of item {item.id}; it comes back and is failed again")

    def _defer(self, item: Item, error: ItemDeferred | OutcomeUnknown) -> None:
        """Leave an item un-acked and tell its author once why."""
        reason = self._services.redact(str(error))
        self.report.deferred.append({"item": item.id, "queue": item.queue, "reason": reason})
        where = {"event": Event.DEFERRED, "item": item.id, "queue": item.queue}
        LOGGER.info("deferred item %s: %s", item.id, reason, extra=where)
        if not error.tell:
            return
        if reason not in self._ledger.defer(item.id, self._clock(), patient=error.patient).warned:
            self._warnings.append((item.id, reason, Phase.AGENT))

    # 8. Create

    def _create(self, starts: Sequence[_Start]) -> list[_Claim]:
        """Write down what is about to be created, then create it side by side; gives what is to be acked."""
        if not starts:
            return []
        before = self._runs_before(starts)
        now = self._clock()
        for start in starts:
            request = start.request
            if start.attempt > 1:
                self._ledger.intend_next(start.item.id, request.region, now)
            else:
                entry = self._ledger.intend(start.item, request.run, request.region, start.kind, now)
                entry.stopped_before = before.get(request.run, False)
        self._write_ledger()
        creates = [partial(self._create_one, start) for start in starts]
        outcomes = self._services.together(creates, self._settings.parallel_creates)
        self._submissions += len(starts)
        rejected: list[tuple[Item, str]] = []
        claims: list[_Claim] = []
        for start, outcome in zip(starts, outcomes, strict=True):
            if isinstance(outcome, str):
                claims.append(self._submitted(start, outcome))
                continue
            if not isinstance(outcome, OutcomeUnknown):  # else the intent stays open and keeps the slot
                self._ledger.no_create(start.item.id, self._clock())
            if start.attempt > 1:
                self._not_resubmitted(start, outcome)
            elif isinstance(outcome, ItemRejected):
                rejected.append((start.item, str(outcome)))
            else:
                self._defer(start.item, outcome)
                if isinstance(outcome, ItemDeferred) and outcome.tell:
                    self._ledger.put_off(start.item.id, self._clock())
        self._reject(rejected)
        return claims

    def _runs_before(self, starts: Sequence[_Start]) -> dict[RunId, bool | None]:
        """Tell which runs were asked to stop before their job is submitted; None where W&B cannot tell.

        Only a run that the item names can exist before its job.
        """
        named = [
            start.request.run
            for start in starts
            if start.attempt == 1
            and start.request.run.entity == self._seen.entity
            and start.request.run.id != self._derived(start.item)
        ]
        if not named:
            return {}
        try:
            runs = self._services.queue.runs(named)
        except Unavailable as error:
            LOGGER.warning("cannot look up %d runs: %s", len(named), error)
            runs = {}
        return {run: _is_stopped(runs[run]) if run in runs else None for run in named}

    def _derived(self, item: Item) -> str:
        settings = self._settings
        return labels.run_id(settings.base_url, self._seen.entity, item.id, settings.deployment)

    def _create_one(self, start: _Start) -> str | ItemRejected | ItemDeferred | OutcomeUnknown:
        """Create one job: its name, or why there is none, or that nobody knows."""
        timeout = min(self._settings.timeouts.create, start.request.create_timeout or self._settings.timeouts.create)
        if self._clock() + timeout > min(self._ack_by, self._hold.expires):
            return ItemDeferred("the pass ran late: the item's lease could end before its job is created", tell=False)
        try:
            return self._services.vertex.create(start.request, timeout)
        except (ItemRejected, ItemDeferred, OutcomeUnknown) as error:
            return error
        except Exception as error:  # noqa: BLE001 - the other creates of this round must not be forgotten for it
            extra = {"event": Event.FAILED, "item": start.item.id}
            LOGGER.exception("unexpected error while creating a job", extra=extra)
            return OutcomeUnknown(f"{type(error).__name__} while the job was created; the function's log has more")

    def _submitted(self, start: _Start, job: str) -> _Claim:
        """Note and report a job that was created."""
        item, run = start.item, start.request.run
        self._ledger.created(item.id, job)
        where = {"item": item.id, "queue": item.queue, "run": str(run), "job": job, "region": start.request.region}
        self.report.submitted.append(where)
        extra: dict[str, object] = {"event": Event.SUBMITTED, **where}
        if self._reconciler.freed:
            extra["refill_s"] = round(max(0.0, self._clock() - self._reconciler.freed.pop(0)), 3)
        LOGGER.info("submitted item %s as %s", item.id, job, extra=extra)
        if start.attempt > 1:
            self.report.resubmitted.append({**where, "attempt": str(start.attempt)})
        self._warnings += [(item.id, self._services.redact(str(one)), Phase.RUN) for one in start.request.warnings]
        return _Claim(item.id, item.queue, run.id, job, created=True)

    # 9. Ack

    def _ack(self, claims: Sequence[_Claim]) -> None:
        """Claim items for their jobs' runs while the leases are surely ours; later they come back and are adopted."""
        if not claims or self._clock() > self._ack_by:
            return
        pairs = [(claim.item, claim.run) for claim in claims]
        answers = self._services.queue.ack(pairs, self._ack_by - self._clock())
        refused: dict[str, str] = {}
        for claim, answer in zip(claims, answers, strict=True):
            if answer is Ack.ACCEPTED:
                self._ledger.acked(claim.item)
                self._ledger.open[claim.item].quiet = False  # claimed just now, so that nobody was told anything
                if not claim.created:
                    self.report.adopted.append({"item": claim.item, "queue": claim.queue, "job": claim.job})
            elif answer is Ack.REFUSED:
                refused[claim.item] = claim.queue
        for item, view in self._reconciler.look_up(refused).items():
            self._reconciler.judge_claim(self._ledger.open[item], view)

    # 10. Report

    def _finish(self) -> PassReport:
        """Tell W&B what is left to tell, keep what is open, and report."""
        in_time = self._clock() < self._hold.expires - self._settings.timeouts.margin  # else the next pass says it
        if in_time:
            self._warn()
        if self._request.full and self._in_time():
            self._ledger.full_pass_began = self._started
        self._ledger.prune(self._clock(), self._settings.give_up_after)
        self._ledger.free_hold, self._ledger.rebuild = self._hold.generation, False
        try:
            self._write_ledger()
        except Unavailable as error:
            self._notice(f"{error}. What was done is done; the next pass begins when the hold of this one has expired")
        self.report.count_slots(self._settings.max_jobs, self._used()[Kind.JOB])
        return self.report

    def _warn(self) -> None:
        """Send what authors are to be told, and keep in mind what W&B took."""
        for phase in Phase:
            mine = [(item, text) for item, text, when in self._warnings if when is phase]
            told = self._services.queue.warn(mine, phase, self._settings.timeouts.read) if mine else []
            for (item, text), known in zip(mine, told, strict=True):
                if known:
                    self._ledger.told(item, text)

    def _notice(self, sentence: str) -> None:
        """Put something that concerns no single item into the report and the log."""
        sentence = self._services.redact(sentence)
        self.report.notices.append(sentence)
        LOGGER.warning("%s", sentence, extra={"event": Event.NOTICE, "pass_id": self.report.pass_id})


def _is_foreign(item: Item) -> bool:
    """Tell whether an item is for another resource, whose agents take it; what is for no queue at all fails instead."""
    resource = item.spec.get("resource") if isinstance(item.spec, dict) else None
    if not isinstance(resource, str) or resource in (*VERTEX_RESOURCES, "", "local-process"):
        return False
    return resource not in LOCAL_RESOURCES or item.spec.get("uri") != SCHEDULER_URI


def _is_stopped(run: RunView | None) -> bool:
    return run is not None and run.stopped


def _after(queue: str, queues: Sequence[str]) -> str:
    """Give the queue whose turn comes after this one's."""
    return queues[(queues.index(queue) + 1) % len(queues)] if queue in queues else ""
