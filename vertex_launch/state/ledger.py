"""The ledger: what is open, as one small JSON object that every pass reads at its beginning and writes at its end.

Pure: ``adapters.record`` stores it. It holds what neither Vertex AI nor W&B can tell the next pass: creates whose outcome
is not known, jobs whose item is not acked yet, when something was first seen, what a person was already told, and whose
turn it is. Bounded by what is open, never by history; lost, it is rebuilt from a list of the deployment's jobs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, Field, ValidationError

from vertex_launch.model import Item, Kind, ManagedJob, RunId

MINUTE = 60.0
LISTS_LAG = 600.0
"""Seconds for which a list may still show an ended job as active, with a good margin."""
FIRST_PAUSE, LONGEST_PAUSE = 90.0, 900.0
"""Seconds between two tries of an item that Vertex AI has no room for; they double."""


def pause(tries: int, first: float) -> float:
    """Give the seconds to wait after so many tries: ``first`` after one, doubled each time, up to 15 minutes."""
    return min(LONGEST_PAUSE, first * 2.0 ** min(tries - 1, 10))


class Stage(StrEnum):
    """How far a job has come on its way from item to claimed run."""

    INTENDED = "intended"
    """A create may have been sent; whether a job exists is not known."""
    CREATED = "created"
    """The job exists; its item is not acked yet."""
    ACKED = "acked"
    """The item is claimed for the job's run."""
    AGAIN = "again"
    """The job ended through no fault of its own; the next attempt waits for its time and for a slot."""


class OpenJob(BaseModel):
    """One item's way to its job and to that job's end; times are Unix seconds, 0 for never."""

    item: str
    queue: str
    entity: str
    project: str
    run: str
    region: str
    kind: Kind = Kind.JOB
    attempt: int = 1
    stage: Stage = Stage.INTENDED
    claimed: bool = False
    """Whether the item is ours for good."""
    job: str = ""
    since: float
    """When the attempt's create was about to be sent."""
    state: str = ""
    state_since: float = 0
    """The job's state as a pass saw it last, and when one first did."""
    ended: bool = False
    ended_at: float = 0
    """When a pass first saw that the job has ended."""
    stopped_before: bool | None = None
    """Whether the run had been asked to stop before the job was submitted, so that this does not concern the job."""
    stop_seen: float = 0
    """When a pass first saw that somebody asked the run to stop."""
    cancelled: str = ""
    """Why a pass cancelled the job, for its author."""
    began: bool = False
    """Whether the run began in an earlier attempt."""
    told: list[str] = Field(default_factory=list)
    """What its author was warned about while it was open."""
    quiet: bool = False
    """It had ended when a lost ledger was rebuilt: what its author was told already is not known."""

    # For the next attempt
    last: str = ""
    """The ended job that the next attempt repeats."""
    reason: str = ""
    """Why there is another attempt, in Vertex AI's words."""
    again_at: float = 0
    elsewhere: bool = False
    """Whether another region would be better."""
    refused: list[str] = Field(default_factory=list)
    """Regions that never take this job."""
    final: str = ""
    """Why there is no further attempt, where that is not plain."""

    @property
    def run_id(self) -> RunId:
        """The W&B run that the job reports as."""
        return RunId(self.entity, self.project, self.run)

    def begin(self) -> None:
        """Forget what was seen of the job before this one."""
        self.state, self.state_since, self.ended, self.ended_at = "", 0, False, 0
        self.stop_seen, self.cancelled, self.final, self.quiet = 0, "", "", False


class Waiting(BaseModel):
    """An item that could not start yet: since when, last seen when, and the reasons its author was told.

    It was refused ``tries`` times by Vertex AI and is not tried again before ``until``.
    """

    since: float
    seen: float
    tries: int = 0
    until: float = 0
    warned: list[str] = Field(default_factory=list)


class Ledger(BaseModel):
    """What is open. ``writer`` and ``writes`` name the write, so that a writer whose answer was lost knows its own."""

    version: int = 1
    writer: str = ""
    writes: int = 0
    free_hold: int = 0
    """Generation of the hold that the writer gives back; 0 while it runs."""
    rebuild: bool = False
    """Whether an earlier ledger was lost, and no pass has looked for its jobs to the end yet."""
    entity: str = ""
    agent: str = ""
    """Id of the agent that W&B shows for this deployment."""
    resources: dict[str, str] = Field(default_factory=dict)
    """Queue id to the resource its items run on, as ``gcp-vertex``; empty text where W&B does not say."""
    turn: str = ""
    """The queue that the next pass asks first."""
    full_pass_began: float = 0
    """When the last pass over all queues that came to its end had begun."""
    submissions: dict[str, list[float]] = Field(default_factory=dict)
    """Region to the times of the creates of the last minute."""
    open: dict[str, OpenJob] = Field(default_factory=dict)
    """By item id."""
    waiting: dict[str, Waiting] = Field(default_factory=dict)
    """By item id."""
    settled: dict[str, float] = Field(default_factory=dict)
    """Ended jobs that are settled, and when: a list that lags may show them as active for a while."""

    @classmethod
    def parse(cls, text: bytes) -> Ledger | None:
        """Read a ledger; None when it is damaged or of another version, which counts as lost."""
        try:
            ledger = cls.model_validate_json(text)
        except ValidationError:
            return None
        known = ledger.version == cls.model_fields["version"].default and "version" in ledger.model_fields_set
        return ledger if known else None

    def dump(self) -> bytes:
        """Give the ledger as JSON; what is as it was at first is left out."""
        return json.dumps({"version": self.version, **self.model_dump(mode="json", exclude_defaults=True)}).encode()

    # What is open

    def intend(self, item: Item, run: RunId, region: str, kind: Kind, now: float) -> OpenJob:
        """Note that a create for the item is about to be sent."""
        entry = self.open[item.id] = OpenJob(
            item=item.id,
            queue=item.queue,
            entity=run.entity,
            project=run.project,
            run=run.id,
            region=region,
            kind=kind,
            since=now,
        )
        self.submissions.setdefault(region, []).append(now)
        return entry

    def intend_next(self, item: str, region: str, now: float) -> None:
        """Note that a create for the item's next attempt is about to be sent."""
        entry = self.open[item]
        entry.attempt, entry.stage, entry.ended = entry.attempt + 1, Stage.INTENDED, False
        entry.job, entry.region, entry.since = "", region, now
        self.submissions.setdefault(region, []).append(now)

    def no_create(self, item: str, now: float) -> None:
        """Note that nothing came of the item's create: a first attempt is forgotten, a later one waits again."""
        entry = self.open[item]
        if entry.last:
            entry.attempt, entry.stage, entry.ended = entry.attempt - 1, Stage.AGAIN, True
            entry.again_at = now + pause(entry.attempt, FIRST_PAUSE)
        else:
            self.close(item)

    def again(self, item: str, at: float, reason: str, *, elsewhere: bool) -> None:
        """Note that the item's job has ended and that another attempt is to begin at ``at``."""
        entry = self.open[item]
        entry.stage, entry.last, entry.again_at, entry.reason = Stage.AGAIN, entry.job, at, reason
        entry.elsewhere = elsewhere

    def give_up(self, item: str, why: str) -> None:
        """Note that there is no further attempt: the one that ended is the last."""
        entry = self.open[item]
        entry.stage, entry.job, entry.final, entry.last = Stage.ACKED, entry.last, why, ""
        entry.region = entry.job.split("/")[3]

    def created(self, item: str, job: str) -> None:
        """Note the job that the item's create gave."""
        entry = self.open[item]
        entry.job, entry.stage = job, Stage.ACKED if entry.claimed else Stage.CREATED
        entry.begin()
        self.waiting.pop(item, None)

    def found(self, job: ManagedJob, now: float) -> OpenJob:
        """Note that the item's job is known by name; its stage stays what it was if that was later."""
        entry, quiet = self.open.get(job.item), False
        if entry is None:
            entry = OpenJob(
                item=job.item,
                queue=job.queue,
                entity=job.run.entity,
                project=job.run.project,
                run=job.run.id,
                region=job.region,
                kind=job.kind,
                attempt=job.attempt,
                since=job.created or now,
            )
            self.open[job.item] = entry
            quiet = self.rebuild and job.ended
        if entry.job != job.name:
            entry.begin()
            entry.quiet = quiet
        entry.job, entry.region, entry.attempt = job.name, job.region, job.attempt
        if entry.stage in (Stage.INTENDED, Stage.AGAIN):
            entry.stage = Stage.ACKED if entry.claimed else Stage.CREATED
        if job.state != entry.state:
            entry.state, entry.state_since = job.state, now
        if job.ended != entry.ended:
            entry.ended, entry.ended_at = job.ended, now if job.ended else 0
        self.waiting.pop(job.item, None)
        return entry

    def acked(self, item: str) -> None:
        """Note that the item is claimed."""
        entry = self.open[item]
        entry.claimed = True
        if entry.stage is Stage.CREATED:
            entry.stage = Stage.ACKED

    def close(self, item: str) -> None:
        """Forget the item's job: nothing of it is open."""
        self.open.pop(item, None)

    def settle(self, item: str, now: float) -> None:
        """Forget the item, whose job has ended and about which everything is said."""
        entry = self.open.pop(item)
        self.settled[entry.job] = now

    def at(self, *stages: Stage) -> Iterator[OpenJob]:
        """Go through the open jobs at these stages."""
        return iter([entry for entry in self.open.values() if entry.stage in stages])

    def holder(self, run: RunId, item: str) -> OpenJob | None:
        """Give the open job of another item that reports as the same run."""
        return next((entry for entry in self.open.values() if entry.run_id == run and entry.item != item), None)

    def told(self, item: str, text: str) -> None:
        """Note that the item's author was told something, so that nobody says it again."""
        if item in self.waiting:
            self.waiting[item].warned.append(text)
        elif item in self.open:
            self.open[item].told.append(text)

    # Items that wait

    def defer(self, item: str, now: float, *, patient: bool = False) -> Waiting:
        """Note that the item could not start; gives since when it waits and what its author was told.

        A ``patient`` item's time has not begun to run.
        """
        waiting = self.waiting.setdefault(item, Waiting(since=now, seen=now))
        waiting.seen = now
        if patient:
            waiting.since = now
        return waiting

    def put_off(self, item: str, now: float) -> None:
        """Note that Vertex AI had no room for the item: it is tried again later, and each time later still.

        The first pause outlasts a lease, so that what comes back first does not take the place of what can start.
        """
        waiting = self.defer(item, now)
        waiting.tries += 1
        waiting.until = now + pause(waiting.tries, FIRST_PAUSE)

    def settle_waiting(self, item: str) -> None:
        """Forget that the item waits: it started, failed, or is somebody else's."""
        self.waiting.pop(item, None)

    # Bounds

    def slots_used(self, active: Iterable[ManagedJob]) -> Counter[Kind]:
        """Count what holds a slot, by kind: active jobs, open jobs not known to have ended, creates of unknown outcome."""
        held = {job.name: job.kind for job in active}
        for entry in self.open.values():
            if not entry.ended:
                held.setdefault(entry.job or f"intent of {entry.item}", entry.kind)
        return Counter(held.values())

    def submissions_left(self, region: str, per_minute: int, now: float) -> int:
        """Count the creates that the region's quota still allows within the minute that ends now."""
        return max(0, per_minute - sum(1 for at in self.submissions.get(region, ()) if now - MINUTE < at <= now))

    def prune(self, now: float, forget_waiting_after: float) -> None:
        """Drop what no later pass can use, so that the ledger is bounded by what is open."""
        self.submissions = {
            region: recent
            for region, times in self.submissions.items()
            if (recent := [at for at in times if now - MINUTE < at <= now])
        }
        self.waiting = {
            item: waiting for item, waiting in self.waiting.items() if now - waiting.seen < forget_waiting_after
        }
        self.settled = {job: at for job, at in self.settled.items() if now - at < LISTS_LAG}


@dataclass(frozen=True)
class Stored:
    """A ledger as read: None when there is none or it is damaged, and the generation that the next write replaces."""

    ledger: Ledger | None
    generation: int
