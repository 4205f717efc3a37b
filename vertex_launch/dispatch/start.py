"""Decide what may start now, what has to wait, and what can never start. Changes nothing; it looks up what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial

from vertex_launch import log
from vertex_launch.codes import Code
from vertex_launch.dispatch import settle
from vertex_launch.dispatch.context import (
    Action,
    Claim,
    Create,
    Defer,
    Notice,
    Pass,
    Reject,
    RetryBlocked,
    StopRetrying,
    derived_run,
)
from vertex_launch.dispatch.look import AT_ONCE, Seen, look_up_runs
from vertex_launch.dispatch.prepare import Prepared, build_request, check_time, checked
from vertex_launch.errors import (
    CodedError,
    ItemDeferred,
    ItemDoubtful,
    ItemFault,
    ItemRejected,
    LaunchError,
    Message,
    OutcomeUnknown,
)
from vertex_launch.job import readback, retry, run_spec
from vertex_launch.job.request import JobRequest
from vertex_launch.limits import LARGEST_ROUND, MOST_FAULTS, MOST_FOR_A_RUN, MOST_KILLS
from vertex_launch.model import LOCAL_RESOURCES, SCHEDULER_URI, VERTEX_RESOURCES, Item, Kind, ManagedJob, RunId, RunView
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings
from vertex_launch.state.open_item import OpenItem, Stage

DOUBT = 600.0
"""Seconds for which a create is tried again that a new role or account may make possible."""


@dataclass
class Room:
    """What may still start: free slots by kind, creates a minute by region, and the limit of the request."""

    settings: Settings
    slots: dict[Kind, float]
    left: dict[str, int]
    limit: float
    runs: set[str] = field(default_factory=set)
    """Runs of the jobs that have not ended, and of those that start in this round."""

    @classmethod
    def of(cls, pass_: Pass, active: Iterable[ManagedJob]) -> Room:
        """Return the room that is left now beside the active jobs and what the ledger knows."""
        settings, ledger, now = pass_.settings, pass_.ledger, pass_.now
        active = list(active)
        used = ledger.slots_used(active)
        limits = {Kind.JOB: settings.job_limit, Kind.SCHEDULER: settings.scheduler_limit}
        wanted, per_minute = pass_.request.limit, settings.submissions_per_minute
        regions = {region.name for region in settings.regions} | {e.current.region for e in ledger.open.values()}
        return cls(
            settings,
            slots={kind: max(0, limit - used[kind]) for kind, limit in limits.items()},
            left={region: ledger.submissions_left(region, per_minute, now) for region in regions},
            limit=float("inf") if wanted is None else max(0, wanted - pass_.report.creates),
            runs={str(job.run.folded) for job in active} | {one.run for one in ledger.dying.values()},
        )

    @property
    def jobs(self) -> int:
        """How many jobs may start in the default region; a number of items to pop."""
        return int(max(0, min(self.slots[Kind.JOB], self.left[self.settings.regions[0].name], self.limit)))

    def take(self, kind: Kind, region: str) -> None:
        """Take the place of one job. Raises ItemDeferred if a limit leaves none."""
        if self.slots[kind] < 1 and kind is Kind.SCHEDULER:
            raise ItemDeferred(
                f"The limit of {self.settings.max_schedulers} sweep schedulers ({self.settings.where('max_schedulers')}) is "
                "reached. This one starts when another ends.",
                code=Code.SCHEDULER_LIMIT,
                patient=True,
            )
        if self.slots[kind] < 1:
            raise ItemDeferred("No slot is free.", code=Code.NO_SLOT, warn=False)
        if self.left[region] < 1:
            text = f"The submissions per minute of region {region} are used up (submissions_per_minute)."
            raise ItemDeferred(text, code=Code.SUBMISSIONS_PER_MINUTE, warn=False)
        if self.limit < 1:
            raise ItemDeferred("The limit of this request is reached.", code=Code.REQUEST_LIMIT, warn=False)
        self.slots[kind] -= 1
        self.left[region] -= 1
        self.limit -= 1


# Items that were popped


def is_foreign(item: Item) -> bool:
    """Return whether an item is for another resource, whose agents take it; one for no resource at all fails instead."""
    spec = run_spec.peek(item)
    resource = spec.get("resource")
    if not isinstance(resource, str) or resource in (*VERTEX_RESOURCES, "", "local-process"):
        return False
    return resource not in LOCAL_RESOURCES or spec.get("uri") != SCHEDULER_URI


def adopt(pass_: Pass, seen: Seen, items: Sequence[Item]) -> Iterator[Claim | Defer]:
    """Claim items that have a job, before anything else is checked: what trains does not fail by a new policy."""
    for item in items:
        entry = pass_.ledger.open.get(item.id)
        if entry and entry.stage is Stage.PLANNED:
            text = "Vertex AI has not shown yet whether it took the job of an earlier attempt."
            yield Defer(item, Message(Code.CREATE_OUTCOME_UNKNOWN, text), warn=False)
        elif entry and seen.elsewhere(entry.job, pass_.settings):
            text = (
                "An item with the same id, from the W&B server that was used before, still has a job. This one waits."
            )
            yield Defer(item, Message(Code.RUN_IN_USE, text), patient=True)
        elif entry:
            yield Claim(item.id, item.queue, entry.run, entry.job)


def suspects(pass_: Pass, items: Sequence[Item]) -> tuple[list[Reject], list[Item]]:
    """Return the failures of items that passes died of, and the items that have to be tried alone.

    An item that has a job is neither: its check is done.
    """
    known = pass_.ledger.suspects
    mine = [item for item in items if item.id in known and item.id not in pass_.ledger.open]
    text = (
        f"{MOST_KILLS} passes died or stood still while they checked this item alone, so it is not tried again. Make its run "
        "spec smaller, or pass large data as an artifact."
    )
    failed = [Reject(item, Message(Code.ITEM_KILLS, text)) for item in mine if known[item.id].kills >= MOST_KILLS]
    return failed, [item for item in mine if known[item.id].kills < MOST_KILLS]


def put_off(items: Sequence[Item]) -> Iterator[Defer]:
    """Leave suspects to later passes, because a slot or time is missing."""
    text = "A pass died while it checked this item, so it is tried alone and after all others."
    for item in items:
        yield Defer(item, Message(Code.ITEM_SUSPECT, text), warn=False)


def start(
    pass_: Pass, items: Sequence[Item], prepared: Prepared, room: Room, key: str, until: float
) -> Iterator[Create | Reject | Defer]:
    """Decide which items start now, within ``room``; no check begins after ``until``. Their jobs get ``key``."""
    report, size = pass_.report, 0
    done = report.creates + len(report.rejected) + len(report.deferred)
    begun = datetime.fromtimestamp(pass_.now, UTC)
    for index, item in enumerate(items, done):
        now = begun + timedelta(milliseconds=index)  # it names the job's output directory: no two jobs share one
        build = partial(
            build_request, item, prepared, pass_.settings, api_key=key, now=now, redact=pass_.services.redact
        )
        try:
            check_time(pass_.now, until)
            _check_waiting(pass_, item)
            spec, request = checked(build, f"item {item.id}", item=item.id)
            _check_run(pass_, item, request.run, room)
            if size + request.size > LARGEST_ROUND:
                text = "The jobs that start before this one are very large. The next pass starts it."
                raise ItemDeferred(text, code=Code.ROUND_SIZE, warn=False)
            room.take(spec.kind, request.region)
        except ItemRejected as error:
            yield Reject(item, error.message)
        except ItemFault as error:
            yield _fault(pass_, item, error)
        except ItemDeferred as error:
            yield Defer(item, error.message, error.warn, error.patient)
        else:
            size += request.size
            room.runs.add(str(request.run.folded))
            yield Create(item, spec.kind, request)


def _fault(pass_: Pass, item: Item, error: ItemFault) -> Reject | Defer:
    """Try an item again whose check met a bug, and fail it if that does not help."""
    waiting = pass_.ledger.waiting.get(item.id)
    if waiting is None or waiting.faults + 1 < MOST_FAULTS:
        return Defer(item, error.message, back_off=True, fault=True)
    text = f"{error.message.text} That happened {MOST_FAULTS} times, so the item is not tried again."
    return Reject(item, Message(error.message.code, text))


def _check_waiting(pass_: Pass, item: Item) -> None:
    """Raise ItemRejected for an item that has waited for too long, ItemDeferred for one whose time has not come."""
    waiting, now, give_up_after = pass_.ledger.waiting.get(item.id), pass_.now, pass_.settings.give_up_after
    if waiting and now - waiting.since > give_up_after:
        why = (
            "; ".join(Message.parse(text, Code.NO_ROOM).text for text in waiting.warned)
            or "the function's log has the reason"
        )
        text = f"The item could not start within {give_up_after / 3600:g} hours (give_up_after): {why}"
        raise ItemRejected(text, code=Code.WAITED_TOO_LONG)
    if waiting and now < waiting.until:
        text = f"The job could not start at the last try. It is tried again in {waiting.until - now:.0f} s."
        raise ItemDeferred(text, code=Code.NO_ROOM, warn=False)


def _check_run(pass_: Pass, item: Item, run: RunId, room: Room) -> None:
    """Raise ItemDeferred while another job reports as the same run."""
    user = pass_.ledger.user_of(run, item.id)
    if user or str(run.folded) in room.runs:
        pass_.waiting_for[run.folded] += 1
        if pass_.waiting_for[run.folded] > MOST_FOR_A_RUN:
            text = f"More than {MOST_FOR_A_RUN} items wait for run {run}, which is used by another job."
            raise ItemRejected(f"{text} Launch this one again later, or without a run id.", code=Code.RUN_CROWDED)
        other = f" of item {user.item}" if user else ""
        text = f"Run {run} is used by another job{other}. This item waits until that job has ended."
        raise ItemDeferred(text, code=Code.RUN_IN_USE, patient=True)


def foreign(pass_: Pass, seen: Seen, items: Sequence[Item]) -> Iterator[Reject | Defer | Notice]:
    """Fail items for another resource if W&B says that their queue is for Vertex AI; else leave them to its agents.

    A queue with items that are left is reported once.
    """
    resources = {item.id: shown(run_spec.peek(item)["resource"]) for item in items}
    left: dict[str, Item] = {}
    for item in items:
        if seen.resource(item.queue) in VERTEX_RESOURCES:
            found = f"resource: {resources[item.id]} is not the resource of queue {item.queue}"
            text = f"{found}. Launch it on a queue of that resource."
            yield Reject(item, Message(Code.ITEM_RESOURCE, text))
        else:
            text = f"The item is for {resources[item.id]}, so another agent has to take it."
            yield Defer(item, Message(Code.ITEM_RESOURCE, text), warn=False, back_off=True, foreign=True)
            left.setdefault(item.queue, item)
    for queue, item in left.items():
        text = (
            f"Queue {queue} holds items for {resources[item.id]}; this deployment serves Vertex AI queues (resource "
            f"gcp-vertex). Remove it from {pass_.settings.where('queues')}."
        )
        yield Notice(Message(Code.ITEM_RESOURCE, text))


def with_stops(pass_: Pass, seen: Seen, creates: Sequence[Create]) -> list[Create]:
    """Return the creates with whether their run was asked to stop before; None if W&B cannot answer now.

    Only a run that the item names can exist before its job.
    """
    runs = {create.item.id: create.request.run for create in creates}
    named = {run for item, run in runs.items() if run.id != derived_run(pass_.settings, seen.entity, item)}
    visible = [run for run in named if run.entity == seen.entity]
    found = look_up_runs(pass_.services, visible)
    stopped = {run: is_stopped(found[run]) if run in found else None for run in visible}
    return [replace(create, stopped_before=stopped.get(create.request.run, False)) for create in creates]


def is_stopped(run: RunView | None) -> bool:
    """Return whether someone asked a run to stop."""
    return run is not None and run.stopped


# Next attempts


def due_retries(pass_: Pass, seen: Seen, room: Room) -> tuple[list[OpenItem], list[Action | Create]]:
    """Return the items whose next attempt may begin now, the longest waiting first, and which ones never retry."""
    ready, actions = list[OpenItem](), list[Action | Create]()
    for entry in sorted(pass_.ledger.at(Stage.RETRYING), key=lambda entry: entry.retry_at):
        if entry.retry_at > pass_.now:
            continue
        known = (
            entry.entity != (entry.home or seen.entity) or entry.run_id in seen.wandb.runs
        )  # else the next pass asks again
        if why := _never(entry, seen, pass_.settings, pass_.now):
            actions.append(StopRetrying(entry.item, why))
        elif known and room.slots[entry.kind] >= 1:
            room.slots[entry.kind] -= 1
            ready.append(entry)
    return ready, actions


def _never(entry: OpenItem, seen: Seen, settings: Settings, now: float) -> Message | None:
    """Return why an item's next attempt may not begin any more, if so."""
    if now - entry.current.ended > settings.give_up_after:
        blocked = f": {entry.retry.blocked}" if entry.retry and entry.retry.blocked else ""
        text = f"Not retried: the next attempt could not begin within {settings.give_up_after:g} s (give_up_after){blocked}"
        return Message(Code.NOT_RETRIED, text)
    if is_stopped(seen.wandb.runs.get(entry.run_id)) and not entry.stopped_before:
        return Message(Code.RUN_STOPPED, "Not retried: its run was stopped in W&B.")
    return None


def retries(pass_: Pass, entries: Sequence[OpenItem], room: Room, key: str) -> Iterator[Create | Action]:
    """Decide about the next attempts of these items, whose jobs are read again. Those behind large ones wait."""
    size = 0
    for first in range(0, len(entries), AT_ONCE):
        some = entries[first : first + AT_ONCE]
        calls = [
            partial(
                checked, partial(pass_.services.vertex.request_of, entry.job), f"item {entry.item}", item=entry.item
            )
            for entry in some
        ]
        for entry, request in zip(some, pass_.services.run_parallel(calls, AT_ONCE), strict=True):
            size += request.size if isinstance(request, JobRequest) else 0
            yield from _retry_of(pass_, entry, request, room, key)
        if size > LARGEST_ROUND:
            return


def _retry_of(
    pass_: Pass, entry: OpenItem, request: JobRequest | LaunchError | None, room: Room, key: str
) -> Iterator[Create | Action]:
    """Decide about the next attempt of an item, whose job was created from ``request``."""
    if isinstance(request, LaunchError):
        text = f"Cannot read the ended job of item {entry.item} to retry it: {request}"
        log.warning(Message(Code.LOOKUP_FAILED, text), item=entry.item)
    elif request is None:
        text = "Not retried: its job was deleted before it could be submitted again."
        yield StopRetrying(entry.item, Message(Code.NOT_RETRIED, text))
    else:
        try:
            decided: Callable[[], list[Create | Action]] = partial(list, _retry(pass_, entry, request, room, key))
            yield from checked(decided, f"item {entry.item}", item=entry.item)
        except ItemFault as error:
            yield StopRetrying(entry.item, Message(error.message.code, f"Not retried: {error.message.text}"))


def _retry(pass_: Pass, entry: OpenItem, request: JobRequest, room: Room, key: str) -> Iterator[Create | Action]:
    """Decide about the next attempt of an item; nothing if a limit leaves no room for it now."""
    settings, brought = pass_.settings, readback.key_of(request)
    pass_.services.redact.add(brought)
    if brought and settings.api_key_delivery == "secret":
        text = (
            "Not retried: its job was submitted with the W&B key in its spec, and this deployment now keeps keys out of job "
            f"specs ({settings.where('api_key_delivery')}). Launch it again."
        )
        yield StopRetrying(entry.item, Message(Code.NOT_RETRIED, text))
        return
    again = _next_attempt(entry, request, settings, key)
    if isinstance(again, ItemRejected):
        yield StopRetrying(entry.item, Message(again.message.code, f"Not retried: {again.message.text}"))
        return
    attempt, region = entry.current.number + 1, again.region
    try:
        room.take(entry.kind, region)
    except ItemDeferred as error:
        log.LOGGER.info("Item %s waits for its next attempt: %s", entry.item, error, extra={"item": entry.item})
        return
    again = replace(again, warnings=(settle.retried(entry, attempt, region, settings),))
    yield Create(Item(entry.item, entry.queue, None), entry.kind, again, attempt)


def _next_attempt(entry: OpenItem, request: JobRequest, settings: Settings, key: str) -> JobRequest | ItemRejected:
    """Return the next attempt in another region if there was no machine and the policy allows it there, else in its own."""
    if settings.region(request.region) is None:
        text = f"its region {request.region} is not configured any more. Launch it again."
        return ItemRejected(text, code=Code.NOT_RETRIED)
    others = retry.other_regions(request, settings) if entry.retry and entry.retry.elsewhere else []
    other = next((name for name in others if name not in entry.refused), request.region)
    attempt = entry.current.number + 1
    refused = ItemRejected("", code=Code.NOT_RETRIED)
    for region in dict.fromkeys([other, request.region]):
        try:
            return retry.next_attempt(request, attempt=attempt, region=region, settings=settings, api_key=key)
        except ItemRejected as error:
            refused = error
    return refused


# What came of the creates

Outcomes = Sequence[tuple[Create, str | CodedError]]
"""Creates with the name of their job, or with why there is none or none is known."""


def claims_of(outcomes: Outcomes) -> list[Claim]:
    """Return the claims of the jobs that were created; the items of next attempts are claimed already."""
    return [
        Claim(create.item.id, create.item.queue, create.request.run.id, job, created=True)
        for create, job in outcomes
        if isinstance(job, str) and create.attempt == 1
    ]


def after_creates(pass_: Pass, outcomes: Outcomes) -> Iterator[Action]:
    """Decide what follows from the creates that gave no job."""
    for create, outcome in outcomes:
        item = create.item
        if isinstance(outcome, str):
            continue
        if isinstance(outcome, ItemDoubtful) and _is_certain(pass_, create):
            outcome = outcome.refusal
        if create.attempt > 1:
            yield from _blocked(pass_.ledger.open[item.id], create, outcome)
        elif isinstance(outcome, ItemRejected):
            yield Reject(item, outcome.message)
        elif isinstance(outcome, ItemDeferred):
            yield Defer(
                item,
                outcome.message,
                outcome.warn,
                outcome.patient,
                back_off=outcome.warn,
                doubtful=isinstance(outcome, ItemDoubtful),
            )
        else:
            yield Defer(item, outcome.message)


def _is_certain(pass_: Pass, create: Create) -> bool:
    """Return whether a refusal that could have been over soon has lasted for too long."""
    if create.attempt > 1:
        entry = pass_.ledger.open[create.item.id]
        began = entry.current.ended if entry.retry and entry.retry.blocked else 0
    else:
        waiting = pass_.ledger.waiting.get(create.item.id)
        began = waiting.doubtful if waiting else 0
    return bool(began) and pass_.now - began > DOUBT


def _blocked(entry: OpenItem, create: Create, error: CodedError) -> Iterator[Action]:
    """Decide about a next attempt that was not created.

    A refusal by another region rules out that region only; a refusal by the job's own region is final.
    """
    message = error.message
    if isinstance(error, OutcomeUnknown):
        yield RetryBlocked(entry, message)  # its plan stays open until the job is seen or the grace has passed
    elif create.request.region != entry.current.region:
        yield RetryBlocked(entry, message, region=create.request.region)
    elif isinstance(error, ItemRejected):
        yield RetryBlocked(entry, message)
        yield StopRetrying(entry.item, Message(message.code, f"Not retried: {message.text}"))
    else:
        yield RetryBlocked(entry, message, warn=isinstance(error, ItemDeferred) and error.warn)
