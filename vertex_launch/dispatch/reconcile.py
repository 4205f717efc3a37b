"""Compare what is open in the ledger with what Vertex AI and W&B show now. Pure.

A pass reads the objects again and never trusts a memory of their state, so that it finds the side effects of one that died.
Each item is decided by itself, from what is known to a list of actions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vertex_launch.codes import Code
from vertex_launch.dispatch import settle
from vertex_launch.dispatch.context import Action, After, Cancel, Drop, Keep, Warn, derived_run
from vertex_launch.dispatch.look import Seen
from vertex_launch.errors import Message
from vertex_launch.job import outcome
from vertex_launch.model import ItemView, ManagedJob, Phase
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.open_item import OpenItem, Stage, discovered

QUEUED_LONG = 300.0
"""Seconds after which the author of a job that waits for quota is warned."""
WAITS_FOR_QUOTA = Message(
    Code.WAITS_FOR_QUOTA,
    "The job waits for quota (QUEUED). Vertex AI starts it when other jobs of this project and region that use the same "
    "machine type or accelerator have ended, or when the quota is raised.",
)


@dataclass(frozen=True)
class Known:
    """What the decisions about one item need beside the item and its jobs.

    ``now`` is when the pass began (Unix seconds), before it asked: a process can freeze between a question and its answer. So
    what has lasted is compared with ``now``, and what is seen for the first time is noted as of ``seen.at``.
    """

    settings: Settings
    seen: Seen
    rebuild: bool
    now: float
    settled: Collection[str] = ()
    """Items that were settled a short time ago."""

    def derived(self, entry: OpenItem) -> str:
        """Return the run id that is made for the item if it names none."""
        return derived_run(self.settings, entry.home or self.seen.entity, entry.item)

    def elsewhere(self, entry: OpenItem) -> bool:
        """Return whether the item's job reports to another W&B server than today's."""
        return self.seen.elsewhere(entry.job, self.settings)

    @property
    def grace(self) -> float:
        """Seconds within which a job may only not be shown yet."""
        return self.settings.timeouts.settle_grace


def reconcile(ledger: Ledger, seen: Seen, settings: Settings, now: float) -> list[Action]:
    """Decide what follows from what was seen for every open item and every listed job that is not settled."""
    known = Known(settings, seen, ledger.rebuild, now, ledger.settled_items)
    jobs: defaultdict[str, list[ManagedJob]] = defaultdict(list)
    for job in seen.jobs.values():
        if job.name not in ledger.settled:
            jobs[job.item].append(job)
    items = dict.fromkeys([*ledger.open, *jobs])
    return [action for item in items for action in _reconcile_item(ledger.open.get(item), jobs[item], known)]


def active_jobs(ledger: Ledger, seen: Seen) -> list[ManagedJob]:
    """Return the jobs that have not ended: those listed, and those that only the ledger knows and a get confirmed."""
    return [job for job in seen.jobs.values() if not job.ended and job.name not in ledger.settled]


def unchecked(ledger: Ledger, seen: Seen) -> list[OpenItem]:
    """Return the unclaimed items about which W&B has not been asked yet."""
    return [entry for entry in ledger.at(Stage.UNCLAIMED) if entry.item not in seen.wandb.items]


def judge_claims(
    entries: Sequence[OpenItem], items: Mapping[str, ItemView], seen: Seen, settings: Settings, now: float
) -> list[Action]:
    """Decide about jobs whose item is not claimed as far as we know, by their items as W&B shows them."""
    known = Known(settings, seen, rebuild=False, now=now)
    shown = {entry.item: items.get(entry.item) for entry in entries if not known.elsewhere(entry)}
    return [action for entry in entries for action in _judge(entry, shown.get(entry.item), known)]


def _reconcile_item(entry: OpenItem | None, jobs: Sequence[ManagedJob], known: Known) -> Iterator[Action]:
    """Decide about one item: which job is its own, and whether that may live."""
    before, note = entry, ""
    if entry and _lapsed(entry, jobs, known):
        item, note = entry.item, f"The create for item {entry.item} made no job"
        entry = _without_create(entry, known)
        if entry is None:
            yield Drop(item, note)
    elif entry and entry.job in known.seen.missing and known.now - entry.current.planned > known.grace:
        entry = entry.miss(known.seen.at)
        if known.now - entry.current.missing > known.grace and not entry.current.ended:
            note = f"Job {entry.job} of item {entry.item} was deleted"
            entry = entry.gone(known.seen.at)
    entry, twins = _choose(entry, jobs, known)
    if entry:
        job = None if entry.stage is Stage.RETRYING else known.seen.jobs.get(entry.job)
        entry = _watched(entry, job, known)
        cancel = _must_end(entry, job, known)
        if not cancel and job and job.state == outcome.RUNNING:
            entry = entry.cancelled("")
        yield from _warnings(entry, job, known) if not known.elsewhere(entry) else ()
        yield Keep(entry, _freed(before, entry, job), note)
        if cancel:
            yield Cancel(entry.item, entry.job, cancel, After.NOTE)
    yield from twins


# Which job is the item's


def _lapsed(entry: OpenItem, jobs: Sequence[ManagedJob], known: Known) -> bool:
    """Return whether a create was planned so long ago, without a job to be seen, that it did not take effect."""
    shown = any(job.attempt >= entry.current.number for job in jobs)
    waited = known.now - entry.current.planned
    # An item that W&B does not show now may be claimed: its job was created, acknowledged, and deleted.
    clear = entry.claimed or entry.item in known.seen.wandb.items
    clear = (clear and entry.current.region not in known.seen.unlisted) or waited > known.settings.give_up_after
    return entry.stage is Stage.PLANNED and not shown and waited > known.settings.timeouts.intent_grace and clear


def _without_create(entry: OpenItem, known: Known) -> OpenItem | None:
    """Return the item after a create that gave no job, as far as anyone can see."""
    item = known.seen.wandb.items.get(entry.item)
    if item and item.run == entry.run and entry.run == known.derived(entry):
        # Only our own ack names that run: there was a job, and it was deleted before a pass could see it.
        return entry.claim().gone(entry.current.planned)
    return entry.create_failed(known.now)


def _choose(entry: OpenItem | None, jobs: Sequence[ManagedJob], known: Known) -> tuple[OpenItem | None, list[Action]]:
    """Choose the item's job: the oldest live job of its newest attempt. Cancel the duplicates."""
    jobs = [job for job in jobs if not (entry and job.name in entry.past_jobs)]
    least = entry.current.number + (entry.stage is Stage.RETRYING) if entry else 0
    newest = [job for job in jobs if job.attempt >= least]
    if entry is None and not known.rebuild and all(job.cancelling for job in jobs):
        return None, []  # cancelled because it must not live: it holds its slot until it ends, and has no item
    if entry is None and jobs and jobs[0].item in known.settled:
        return None, [_cancel_twin(job, "its item was settled with another job") for job in jobs if not _ends(job)]
    ours = min(newest, key=lambda job: (-job.attempt, _is_dying(job), job.created, job.name), default=None)
    if ours:
        entry = entry.observe(ours, known.seen.at) if entry else _discovered(ours, known)
    other = f"job {ours.name} runs for the same item" if ours else "its item has a later attempt"
    return entry, [_cancel_twin(job, other) for job in jobs if job is not ours and not _ends(job)]


def _ends(job: ManagedJob) -> bool:
    return job.ended or job.cancelling


def _cancel_twin(job: ManagedJob, why: str) -> Action:
    return Cancel(job.item, job.name, Message(Code.DUPLICATE_JOB, why))


def _is_dying(job: ManagedJob) -> bool:
    return job.cancelling or job.state == outcome.CANCELLED


def _discovered(job: ManagedJob, known: Known) -> OpenItem:
    """Return the item of a job that the ledger does not know. Its author may have been warned about the quota before."""
    entry = discovered(job, known.seen.at, rebuild=known.rebuild)
    entry = entry.at_home("" if job.queue_entity == known.seen.entity else job.queue_entity)
    return entry.warn(str(WAITS_FOR_QUOTA))


def _freed(before: OpenItem | None, entry: OpenItem, job: ManagedJob | None) -> float:
    """Return when the job ended, if this pass is the first to see it ended."""
    had_ended = before and before.job == entry.job and before.current.ended
    if before is None or job is None or not job.ended or had_ended:
        return 0
    return job.finished or entry.current.ended


# Whose item it is


def _judge(entry: OpenItem, item: ItemView | None, known: Known) -> Iterator[Action]:
    """Decide what a job may do whose ack is not certain.

    Only positive evidence ends a job: its item is claimed by another run, or has failed. Anything else leaves it alone.
    """
    if item and item.run == entry.run and item.state not in (*settle.WAITING, "FAILED"):
        yield Keep(entry.claim())
    elif item and (item.state == "FAILED" or (item.state == "CLAIMED" and item.run)):
        why = "its item has failed" if item.state == "FAILED" else f"its item is claimed by run {item.run}"
        lost = Message(Code.ITEM_LOST, why)
        drop = Drop(entry.item, f"Item {entry.item} is owned by another agent: {why}")
        yield drop if entry.current.ended else Cancel(entry.item, entry.job, lost, After.DROP)
    elif entry.job in known.seen.missing and entry.current.ended and item and item.state in settle.WAITING:
        yield Drop(entry.item, f"Item {entry.item} returns through its queue and gets another job")
    elif settle.is_late(entry, known.settings, known.now):
        yield Drop(entry.item, f"Item {entry.item} was deleted in W&B")


# Whether the job may live


def _is_watched(job: ManagedJob | None) -> bool:
    return job is not None and not job.ended and not job.cancelling and job.state in outcome.KNOWN


def _watched(entry: OpenItem, job: ManagedJob | None, known: Known) -> OpenItem:
    """Return the item with what was seen of a stop of its run."""
    runs = known.seen.wandb.runs
    run = runs.get(entry.run_id)
    if not _is_watched(job) or known.elsewhere(entry):
        return entry
    if entry.run_id not in runs:
        return entry
    stopped = run is not None and run.stopped
    return entry.watch_stop(stopped=stopped, before=entry.run != known.derived(entry), now=known.seen.at)


def _must_end(entry: OpenItem, job: ManagedJob | None, known: Known) -> Message | None:
    """Return why the job has to be cancelled, if it has to."""
    if job is None or not _is_watched(job):
        return None
    return _stopped(entry, job, known) or _waited(entry, job, known)


def _stopped(entry: OpenItem, job: ManagedJob, known: Known) -> Message | None:
    """Return a message if the run was stopped, once its job has had the time to end by itself."""
    run, seen = known.seen.wandb.runs.get(entry.run_id), entry.current.stop_seen
    waits = job.state in (outcome.QUEUED, outcome.PENDING)
    patience = 0 if waits else known.settings.stopped_run_timeout
    if run is None or not seen or (patience and known.now - seen < patience):
        return None
    return Message(Code.RUN_STOPPED, "its run was stopped in W&B")


def _waited(entry: OpenItem, job: ManagedJob, known: Known) -> Message | None:
    """Return a message if the job waited too long, for a machine or for quota.

    One that is to start when machines are free waits for its own max_wait_duration, after which Vertex AI ends it.
    """
    if job.strategy == outcome.FLEX_START:
        return None
    waited = known.now - entry.current.state_since
    start, quota = known.settings.start_timeout, known.settings.queue_timeout
    if job.state == outcome.PENDING and not job.started and start and waited > start:
        return Message(
            Code.START_TIMEOUT,
            f"it did not start within {start:g} s (start_timeout, WANDB_LAUNCH_START_TIMEOUT). Try another machine_type, "
            "accelerator or region",
        )
    if job.state == outcome.QUEUED and quota and waited > quota:
        return Message(
            Code.QUEUE_TIMEOUT,
            f"it waited for quota for more than {quota:g} s (queue_timeout). Request a higher quota, or ask for less",
        )
    return None


# What its author should know


def _warnings(entry: OpenItem, job: ManagedJob | None, known: Known) -> Iterator[Action]:
    """Warn about another attempt, if the pass that began it died before it could, and about a long wait for quota."""
    if job and entry.current.number > 1 and entry.reason:
        retried = settle.retried(entry, entry.current.number, entry.current.region, known.settings)
        if str(retried) not in entry.warned:
            yield Warn(entry.item, retried, Phase.RUN)
    queued = job is not None and _is_watched(job) and job.state == outcome.QUEUED
    long = queued and known.now - entry.current.state_since > QUEUED_LONG
    if long and str(WAITS_FOR_QUOTA) not in entry.warned:
        yield Warn(entry.item, WAITS_FOR_QUOTA, Phase.RUN)
