"""An open queue item with its attempts, and what happens to it. Pure; ``state.ledger`` keeps them.

The stage of an open item follows from its attempts::

    plan                  created, observe              claim
     │  ┌──────────────────────────────▶ UNCLAIMED ────────────▶ CLAIMED ──── settle ───▶ (settled)
     ▼  │                                                       ▲      │
    PLANNED ◀──── plan_retry ──── RETRYING ─── stop_retrying ───┘      │
     │  │                          ▲    ▲                              │
     │  └── create_failed (later) ─┘    └─────── retry_later ──────────┘
     └───── create_failed (first) ───▶ (forgotten)

Only this module changes an item: each method of ``OpenItem`` returns a new one, and ``Ledger`` keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Self, TypeAlias

from pydantic import AfterValidator, FailFast, Field, ValidationInfo

from vertex_launch.limits import MOST_WARNINGS
from vertex_launch.model import JobName, Kind, ManagedJob, RunId

DAY = 86_400.0
FIRST_PAUSE, LONGEST_PAUSE = 90.0, 900.0
"""Seconds between two tries of an item that Vertex AI has no room for; they double."""

CLOCK_SKEW = 300.0
"""Seconds by which the clocks of two functions and of the storage may differ."""


def pause(tries: int, first: float) -> float:
    """Return the seconds to wait after so many tries: ``first`` after one, doubled each time, up to 15 minutes."""
    return min(LONGEST_PAUSE, first * 2.0 ** min(tries - 1, 10))


def bounded(most: float, instead: float | None = None) -> AfterValidator:
    """Check a time that was read, if the context says when it was: one of another day was not written by a pass.

    One that is more than ``most`` seconds ahead becomes ``instead``, without that the latest that it may be. So no clock
    that was wrong lets anything last for longer than it would from now on.
    """

    def check(at: float, info: ValidationInfo) -> float:
        read_at: float | None = info.context
        if read_at is not None and not 0 <= at <= read_at + DAY:
            raise ValueError("not a time that a pass wrote")
        if read_at is None or at <= read_at + most:
            return at
        return read_at + most if instead is None else instead

    return AfterValidator(check)


def _job_name(name: str) -> str:
    """Check a job's resource name. Raises ValueError."""
    return str(JobName.parse(name)) if name else ""


Seconds: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]

Time: TypeAlias = Annotated[Seconds, bounded(CLOCK_SKEW)]
"""When something was, in Unix seconds, 0 for never."""

Due: TypeAlias = Annotated[Seconds, bounded(LONGEST_PAUSE + CLOCK_SKEW)]
"""Until when something waits, in Unix seconds, 0 for never."""

Texts: TypeAlias = Annotated[tuple[str, ...], FailFast()]

Generation: TypeAlias = Annotated[int, Field(ge=0, lt=2**63)]
"""Of an object, 0 for none."""


Count: TypeAlias = Annotated[int, Field(ge=0)]

Number: TypeAlias = Annotated[int, Field(ge=1, lt=2**31)]
"""Of an attempt."""

Region: TypeAlias = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,40}$")]


class _Value:
    """A frozen value with slots, because a model of pydantic's takes ten times as much memory."""

    __slots__ = ()

    def _but(self, **changes: Any) -> Self:
        """Return a copy with these fields changed."""
        return replace(self, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(_Value):
    """One CustomJob for an item, from the plan to create it until it has ended."""

    number: Number = 1
    region: Region
    planned: Time
    """When its create was about to be sent."""
    job: Annotated[str, AfterValidator(_job_name)] = ""
    """Resource name; empty while the outcome of the create is unknown."""
    state: str = ""
    state_since: Time = 0
    """The job's state as a pass saw it last, and when one first did."""
    ended: Time = 0
    """When a pass first saw that the job has ended or is gone."""
    missing: Time = 0
    """Since when Vertex AI says that the job does not exist. Saying it once may be a mistake."""
    began: bool = False
    """Whether its run began."""
    reason: str = ""
    """Why another attempt follows, in Vertex AI's words."""
    stop_seen: Time = 0
    """When a pass first saw that someone asked the run to stop."""
    cancelled: str = ""
    """Why a pass cancelled the job, for its author."""
    found_ended: bool = False
    """Whether it had ended when a lost ledger was rebuilt: what its author has seen is then unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry(_Value):
    """The next attempt: from when on, whether another region is better, and why the last try to submit it failed."""

    at: Due
    elsewhere: bool = False
    blocked: str = ""


class Stage(StrEnum):
    """How far an open item has come."""

    PLANNED = "planned"
    """A create may have been sent; whether a job exists is unknown."""
    UNCLAIMED = "unclaimed"
    """The job exists; its item is not claimed yet."""
    CLAIMED = "claimed"
    """The item is claimed for the job's run; the job lives, or has ended and is not settled."""
    RETRYING = "retrying"
    """The job ended through no fault of its own; the next attempt waits for its time and for a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenItem(_Value):
    """An item on its way to its job and to that job's end. The last of ``attempts`` is the current one."""

    item: str
    queue: str
    entity: str
    project: str
    run: str
    kind: Kind = Kind.JOB
    home: str = ""
    """Owner of its queue, empty for the entity that the ledger has."""
    claimed: bool = False
    stopped_before: bool | None = None
    """Whether the run had been asked to stop before the job was submitted; such a stop does not concern the job."""
    attempts: Annotated[tuple[Attempt, ...], Field(min_length=1), FailFast()]
    retry: Retry | None = None
    refused: Texts = ()
    """Regions that never take this job."""
    no_retry: str = ""
    """Why it gets no further attempt, if that is not obvious."""
    warned: Texts = ()
    """What its author was warned about while it was open."""
    informed: bool = False
    """Whether its author knows how its job ended; what is left is to end its sweep."""

    @property
    def current(self) -> Attempt:
        """The last attempt."""
        return self.attempts[-1]

    @property
    def job(self) -> str:
        """Resource name of the current attempt's job."""
        return self.current.job

    @property
    def run_id(self) -> RunId:
        """The W&B run that the job reports as."""
        return RunId(self.entity, self.project, self.run)

    @property
    def stage(self) -> Stage:
        """How far it has come."""
        if not (self.job or self.current.ended):
            return Stage.PLANNED
        if self.retry:
            return Stage.RETRYING
        return Stage.CLAIMED if self.claimed else Stage.UNCLAIMED

    @property
    def past_jobs(self) -> set[str]:
        """Names of the jobs that have ended for good, whatever a list says."""
        past = self.attempts if self.stage is Stage.RETRYING else self.attempts[:-1]
        return {attempt.job for attempt in past}

    @property
    def retry_at(self) -> float:
        """When the next attempt may begin."""
        return self.retry.at if self.retry else 0

    @property
    def reason(self) -> str:
        """Why the current attempt followed the one before, in Vertex AI's words; of a retry, why it follows."""
        past = self.attempts if self.stage is Stage.RETRYING else self.attempts[:-1]
        return past[-1].reason if past else ""

    @property
    def began_before(self) -> bool:
        """Whether the run began in an earlier attempt."""
        return any(attempt.began for attempt in self.attempts[:-1])

    # What happens to it

    def _noted(self, **changes: Any) -> OpenItem:
        """Return it with these fields of the current attempt changed."""
        return self._but(attempts=(*self.attempts[:-1], self.current._but(**changes)))

    def at_home(self, home: str) -> OpenItem:
        """Return it as an item from a queue of that entity."""
        return self if self.home == home else self._but(home=home)

    def claim(self) -> OpenItem:
        """Return it as claimed."""
        return self._but(claimed=True)

    def inform(self) -> OpenItem:
        """Return it with its author informed of how its job ended."""
        return self._but(informed=True)

    def claim_now(self) -> OpenItem:
        """Return it as claimed by this pass, so that its author has no message yet."""
        return self.claim()._noted(found_ended=False)

    def created(self, job: str) -> OpenItem:
        """Return it with the job that its planned create gave."""
        return self._fresh(job)._but(retry=None, no_retry="")

    def _fresh(self, job: str, **changes: Any) -> OpenItem:
        """Put a job into the current attempt, which no pass has seen yet."""
        unseen = {
            "state": "",
            "state_since": 0,
            "ended": 0,
            "stop_seen": 0,
            "cancelled": "",
            "found_ended": False,
            "missing": 0,
        }
        return self._noted(job=job, **unseen | changes)

    def observe(self, job: ManagedJob, now: float) -> OpenItem:
        """Return it with its job as Vertex AI shows it; that may be another one than a pass saw last."""
        seen = self
        if job.name != self.job:
            if job.attempt > self.current.number:
                seen = seen._but(attempts=(*self.attempts, _attempt_of(job, now)))
            seen = seen._fresh(job.name, number=job.attempt, region=job.region)._but(retry=None, no_retry="")
        if job.state != seen.current.state:
            seen = seen._noted(state=job.state, state_since=now)
        if seen.current.missing:
            seen = seen._noted(missing=0)
        if job.ended != bool(seen.current.ended):
            seen = seen._noted(ended=now if job.ended else 0)
        return seen

    def miss(self, now: float) -> OpenItem:
        """Return it with its job not found."""
        return self._noted(missing=self.current.missing or now)

    def gone(self, now: float) -> OpenItem:
        """Return it with its job deleted."""
        return self._noted(ended=self.current.ended or now)

    def create_failed(self, now: float) -> OpenItem | None:
        """Return it after a planned create that gave no job: it retries later; None if there was no attempt before."""
        before = self.attempts[:-1]
        if not before:
            return None
        retry = self.retry or Retry(at=0)
        return self._but(attempts=before, retry=retry._but(at=now + pause(before[-1].number, FIRST_PAUSE)))

    def cancelled(self, why: str) -> OpenItem:
        """Return it with its job cancelled by a pass; empty if the job runs all the same."""
        return self._noted(cancelled=why)

    def watch_stop(self, *, stopped: bool, before: bool, now: float) -> OpenItem:
        """Return it with whether its run is asked to stop; ``before`` if that may be older than the job."""
        if not stopped:
            return self._noted(stop_seen=0)._but(stopped_before=False)
        known = self._but(stopped_before=before) if self.stopped_before is None else self
        return known if known.stopped_before else known._noted(stop_seen=known.current.stop_seen or now)

    def warn(self, text: str) -> OpenItem:
        """Return it with what was reported to its author, so that it is not repeated."""
        return self._but(warned=(*self.warned, text)[-MOST_WARNINGS:])

    # Its next attempt

    def retry_later(self, at: float, reason: str, *, elsewhere: bool, began: bool) -> OpenItem:
        """Return it after its job has ended: another attempt follows at ``at``."""
        return self._noted(reason=reason, began=began)._but(retry=Retry(at=at, elsewhere=elsewhere))

    def plan_retry(self, region: str, now: float) -> OpenItem:
        """Return it with a create for its next attempt that is about to be sent."""
        planned = Attempt(number=self.current.number + 1, region=region, planned=now)
        return self._but(attempts=(*self.attempts, planned))

    def block_retry(self, why: str) -> OpenItem:
        """Return it with why its next attempt cannot begin now; every region may have room by the next try."""
        return self._but(retry=(self.retry or Retry(at=0))._but(blocked=why), refused=())

    def refuse_region(self, region: str, now: float) -> OpenItem:
        """Return it after a region refused its job for good; another region is tried at once."""
        return self._but(retry=(self.retry or Retry(at=now))._but(at=now), refused=(*self.refused, region))

    def stop_retrying(self, why: str) -> OpenItem:
        """Return it without a further attempt: the one that ended is the last."""
        return self._but(retry=None, no_retry=why)


def consistent(entry: OpenItem) -> OpenItem:
    """Check that the parts of an item that was read fit. Raises ValueError."""
    numbers = [attempt.number for attempt in entry.attempts]
    if sorted(set(numbers)) != numbers:
        raise ValueError("its attempts do not follow one another")
    if entry.job and entry.retry and not entry.current.ended:
        raise ValueError("its next attempt is planned, and its job has not ended")
    if entry.retry and entry.current.ended and not entry.job:
        raise ValueError("its next attempt follows a job that it does not have")
    if entry.retry and not entry.claimed:
        raise ValueError("its next attempt is planned, and it is not claimed")
    if entry.claimed and not (entry.job or entry.current.ended or len(entry.attempts) > 1):
        raise ValueError("it is claimed for a job that it does not have")
    return entry


def _attempt_of(job: ManagedJob, now: float) -> Attempt:
    return Attempt(number=job.attempt, region=job.region, planned=job.created or now, job=job.name)


def discovered(job: ManagedJob, now: float, *, rebuild: bool) -> OpenItem:
    """Return the open item of a job that the ledger does not know; ``rebuild`` if an earlier ledger was lost."""
    run = job.run
    attempt = _attempt_of(job, now)
    entry = OpenItem(
        item=job.item,
        queue=job.queue,
        entity=run.entity,
        project=run.project,
        run=run.id,
        kind=job.kind,
        attempts=(attempt,),
    )
    return entry.observe(job, now)._noted(found_ended=rebuild and job.ended)
