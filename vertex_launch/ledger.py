"""The ledger: what is open, as one small JSON object that every pass reads at its beginning and writes at its end.

Pure: ``adapters.record`` stores it. It holds what neither Vertex AI nor W&B can tell the next pass: creates whose outcome
is not known, jobs whose item is not acked yet, when something was first seen, what a person was already told, and whose
turn it is. Bounded by what is open, never by history; lost, it is rebuilt from a list of the deployment's jobs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, Field, ValidationError

from vertex_launch.model import Item, Kind, ManagedJob, RunId

MINUTE = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 90.0, 900.0
"""Seconds between two tries of an item that Vertex AI has no room for; they double."""


class Stage(StrEnum):
    """How far a job has come on its way from item to claimed run."""

    INTENDED = "intended"
    """A create may have been sent; whether a job exists is not known."""
    CREATED = "created"
    """The job exists; its item is not acked yet."""
    ACKED = "acked"
    """The item is claimed for the job's run."""


class OpenJob(BaseModel):
    """One item's way to its job; times are Unix seconds."""

    item: str
    queue: str
    entity: str
    project: str
    run: str
    region: str
    kind: Kind = Kind.JOB
    attempt: int = 1
    stage: Stage = Stage.INTENDED
    job: str = ""
    since: float
    ended: bool = False

    @property
    def run_id(self) -> RunId:
        """The W&B run that the job reports as."""
        return RunId(self.entity, self.project, self.run)


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
        """Give the ledger as JSON."""
        return self.model_dump_json().encode()

    # What is open

    def intend(self, item: Item, run: RunId, region: str, kind: Kind, now: float) -> None:
        """Note that a create for the item is about to be sent."""
        self.open[item.id] = OpenJob(
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

    def created(self, item: str, job: str) -> None:
        """Note the job that the item's create gave."""
        entry = self.open[item]
        entry.job, entry.stage = job, Stage.CREATED
        self.waiting.pop(item, None)

    def found(self, job: ManagedJob, now: float) -> OpenJob:
        """Note that the item's job is known by name; its stage stays what it was if that was later."""
        entry = self.open.get(job.item)
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
        entry.job, entry.ended, entry.region = job.name, job.ended, job.region
        if entry.stage is Stage.INTENDED:
            entry.stage = Stage.CREATED
        self.waiting.pop(job.item, None)
        return entry

    def acked(self, item: str) -> None:
        """Note that the item is claimed; where its job has already ended nothing is open any more."""
        entry = self.open[item]
        entry.stage = Stage.ACKED
        if entry.ended:
            self.close(item)

    def close(self, item: str) -> None:
        """Forget the item's job: nothing of it is open."""
        self.open.pop(item, None)

    def at(self, *stages: Stage) -> Iterator[OpenJob]:
        """Go through the open jobs at these stages."""
        return iter([entry for entry in self.open.values() if entry.stage in stages])

    def holder(self, run: RunId, item: str) -> OpenJob | None:
        """Give the open job of another item that reports as the same run."""
        return next((entry for entry in self.open.values() if entry.run_id == run and entry.item != item), None)

    # Items that wait

    def defer(self, item: str, now: float) -> Waiting:
        """Note that the item could not start; gives since when it waits and what its author was told."""
        waiting = self.waiting.setdefault(item, Waiting(since=now, seen=now))
        waiting.seen = now
        return waiting

    def put_off(self, item: str, now: float) -> None:
        """Note that Vertex AI had no room for the item: it is tried again later, and each time later still.

        The first pause outlasts a lease, so that what comes back first does not take the place of what can start.
        """
        waiting = self.defer(item, now)
        waiting.until = now + min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(waiting.tries, 10))
        waiting.tries += 1

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


@dataclass(frozen=True)
class Stored:
    """A ledger as read: None when there is none or it is damaged, and the generation that the next write replaces."""

    ledger: Ledger | None
    generation: int
