"""The ledger: every open queue item with its attempts, as one small JSON object that each pass reads and writes.

Pure: ``state.record`` stores it. It holds what the next pass cannot learn from Vertex AI or W&B. That is creates whose
outcome is unknown, jobs whose item is not claimed yet, times when a pass first saw something, and warnings already shown.
It is bounded by what is open, never by history. A lost ledger is rebuilt from the lists of the deployment's jobs.

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

import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Any, Self, TypeAlias, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    FailFast,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)

from vertex_launch import json_reader
from vertex_launch.limits import LARGEST_LEDGER, MOST_DAMAGED, MOST_LEDGER_VALUES, MOST_WARNINGS
from vertex_launch.model import MOST_OPERATIONS, Item, JobName, Kind, ManagedJob, RunId
from vertex_launch.state import ledger_v1

VERSION = 2
MINUTE, DAY = 60.0, 86_400.0
REFUSED_FOR = 3600.0
"""Seconds for which requests to W&B leave out what it refused."""
LISTS_LAG = 600.0
"""Seconds for which a list may still show an ended job as active, with a good margin."""
FIRST_PAUSE, LONGEST_PAUSE = 90.0, 900.0
"""Seconds between two tries of an item that Vertex AI has no room for; they double."""

CLOCK_SKEW = 300.0
"""Seconds by which the clocks of two functions and of the storage may differ."""

NAMES = frozenset(
    {
        *("writer", "entity", "agent", "turn", "item", "queue", "project", "run", "region", "job", "state", "kind"),
        *("refused", "resources", "left_out", "home", "server"),
    }
)
"""Fields that identify something: an item's "key" hides nothing in them, because it could be another item's id."""


def pause(tries: int, first: float) -> float:
    """Return the seconds to wait after so many tries: ``first`` after one, doubled each time, up to 15 minutes."""
    return min(LONGEST_PAUSE, first * 2.0 ** min(tries - 1, 10))


def _bounded(most: float, instead: float | None = None) -> AfterValidator:
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

Time: TypeAlias = Annotated[Seconds, _bounded(CLOCK_SKEW)]
"""When something was, in Unix seconds, 0 for never."""

Due: TypeAlias = Annotated[Seconds, _bounded(LONGEST_PAUSE + CLOCK_SKEW)]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Dying(_Value):
    """A job that a pass cancelled, the run that it reports as (in lower case where W&B ignores the case), and when."""

    kind: Kind = Kind.JOB
    run: str = ""
    since: Time


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
    """Why there is no further attempt, if that is not obvious."""
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


def _consistent(entry: OpenItem) -> OpenItem:
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


@dataclass(slots=True, kw_only=True)
class Waiting:
    """An item that cannot start yet: since when, when it was last seen, and what was reported to its author.

    It could not start ``tries`` times, and is not tried again before ``until``. Its check met a bug ``faults`` times. Its job
    is ``doubtful`` since then (``errors.ItemDoubtful``).
    """

    since: Time
    seen: Time
    tries: Count = 0
    faults: Count = 0
    until: Due = 0
    doubtful: Time = 0
    foreign: bool = False
    """Whether other agents have to take it."""
    warned: Texts = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeAgent:
    """The agent that this deployment made last, for which queues, and when. W&B may write the ids of queues in another form.

    The id is empty if W&B refused to make it.
    """

    id: str
    queues: Texts
    at: Time


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """An item that was checked when a pass died: in how many it was checked alone, and when the last one was found."""

    kills: int = 0
    since: Time


class Ledger(BaseModel):
    """What is open. ``writer`` and ``writes`` identify a write, so that a writer whose answer was lost knows its own."""

    version: int = VERSION
    writer: str = ""
    writes: int = Field(0, ge=0)
    free_lock: Generation = 0
    """Generation of the lock that the writer gives back; 0 while it runs."""
    rebuild: bool = False
    """Whether an earlier ledger was lost and no pass has looked for its jobs to the end yet."""
    entity: str = ""
    agent: str = ""
    """Id of the agent that W&B shows for this deployment."""
    stopped: bool = False
    """Whether the agent was stopped when W&B showed it last."""
    server: str = ""
    """What stands for the W&B server (``addresses.server``)."""
    made: MadeAgent | None = None
    resources: dict[str, str] = Field(default_factory=dict)
    """Queue id to the resource its items run on, such as ``gcp-vertex``; empty if W&B does not say."""
    turn: str = ""
    """The queue that the next pass asks first."""
    operations: int = Field(MOST_OPERATIONS, ge=1, le=MOST_OPERATIONS)
    """How many operations one request to W&B takes at the moment."""
    left_out: dict[str, Time] = Field(default_factory=dict)
    """What W&B's server refuses in requests (``model.Pace``), and since when it is left out."""
    singly_until: Due = 0
    """Until when items are popped one by one, because an answer with several could not be read."""
    full_pass_began: Annotated[Seconds, _bounded(CLOCK_SKEW, instead=0)] = 0
    """Start time of the last completed pass over all queues. Ticks that are older need no pass."""
    submissions: dict[str, Annotated[list[Time], FailFast()]] = Field(default_factory=dict)
    """Region to the times of the creates of the last minute, or to the last one if that may still take effect."""
    open: dict[str, Annotated[OpenItem, AfterValidator(_consistent)]] = Field(default_factory=dict)
    """By item id."""
    waiting: dict[str, Waiting] = Field(default_factory=dict)
    """By item id."""
    noted: Generation = 0
    """Generation of the note about what is checked (``state.record``), as of this write."""
    suspects: dict[str, Suspect] = Field(default_factory=dict)
    """By item id: what was checked when a pass died and was not tried since."""
    settled: dict[str, Time] = Field(default_factory=dict)
    """Settled jobs and when: a list that lags may show them as active for a while."""
    settled_items: dict[str, Time] = Field(default_factory=dict)
    """Items that were settled with a job, and when: a create that was late may give one of them another job."""
    dying: dict[str, Dying] = Field(default_factory=dict)
    """By job: cancelled, of an item that is someone else's, and not in a list yet."""

    _dropped: list[str] = PrivateAttr(default_factory=list)

    @property
    def dropped(self) -> Sequence[str]:
        """What was read and left out, because it contradicts itself or cannot have been written by a pass."""
        return self._dropped

    @classmethod
    def parse(cls, text: bytes, now: float | None = None) -> Ledger | None:
        """Parse a ledger, also one of version 1; None if it is damaged or of a later version, which counts as lost.

        Entries that contradict themselves, or that no pass can have written before ``now``, are left out. The jobs that they
        were about are looked for again. If there are many of them, the ledger counts as damaged.
        """
        try:
            value = json_reader.read_object(text, LARGEST_LEDGER, MOST_LEDGER_VALUES)
        except json_reader.Unreadable:
            return None
        if value.get("version") not in (1, VERSION):
            return None
        migrate = value["version"] == 1
        try:
            return cls._of(ledger_v1.renamed(value) if migrate else value, now, ledger_v1.item if migrate else _same)
        except _Damaged:
            return None

    @classmethod
    def _of(cls, value: dict[str, Any], now: float | None, item: Callable[[Any], Any]) -> Ledger:
        """Return the ledger of what was read, which it consumes, so that it never takes memory twice. Raises _Damaged."""
        dropped = list[str]()
        entries = {name: value.pop(name) for name in _ENTRIES if isinstance(value.get(name), dict)}
        for name, found in entries.items():
            dropped += _read_entries(found, name, now, item if name == "open" else _same)
        value["version"] = VERSION
        try:
            ledger = cls.model_validate(value, context=now)
        except ValidationError as error:
            for name in {str(detail["loc"][0]) for detail in error.errors(include_url=False, include_input=False)}:
                dropped.append(name)
                del value[name]
            ledger = cls.model_validate(value, context=now)
        for name, found in entries.items():
            setattr(ledger, name, found)
        ledger._dropped = dropped
        ledger.rebuild = ledger.rebuild or bool(dropped)
        return ledger

    def dump(self, redact: Callable[[Any], Any] = lambda value: value) -> bytes:
        """Serialize to JSON, omitting default values; ``redact`` hides keys in the JSON value.

        What has many entries is written one by one, so that it never takes memory twice.
        """
        value = {"version": self.version, **self.model_dump(mode="json", exclude=_MANY, exclude_defaults=True)}
        text = bytearray(json.dumps(redact(value)).encode()[:-1])
        for name, adapter in _ENTRIES.items():
            separator = f', "{name}": {{'
            for key, entry in getattr(self, name).items():
                written = adapter.dump_python(entry, mode="json", exclude_defaults=True)
                text += f"{separator}{json.dumps(redact({name: {key: written}})[name])[1:-1]}".encode()
                separator = ", "
            text += b"}" if separator == ", " else b""
        text += b"}"
        return bytes(text)

    # Open items

    def keep(self, entry: OpenItem) -> None:
        """Keep an open item as it is now; one that has a job does not wait any more."""
        self.open[entry.item] = entry
        if entry.stage is not Stage.PLANNED:
            self.waiting.pop(entry.item, None)

    def plan(self, item: Item, run: RunId, region: str, kind: Kind, now: float, *, stopped_before: bool | None) -> None:
        """Open an item for which a create is about to be sent."""
        self.open[item.id] = OpenItem(
            item=item.id,
            queue=item.queue,
            entity=run.entity,
            project=run.project,
            run=run.id,
            kind=kind,
            stopped_before=stopped_before,
            attempts=(Attempt(region=region, planned=now),),
        )

    def submitted(self, region: str, now: float) -> None:
        """Record that a create is about to be sent to a region."""
        self.submissions.setdefault(region, []).append(now)

    def drop(self, item: str) -> None:
        """Forget the item: nothing of it is open."""
        self.open.pop(item, None)

    def lose(self, item: str, now: float) -> None:
        """Forget the item, which is someone else's. Its job is cancelled, and holds its slot until a list shows it."""
        if entry := self.open.pop(item, None):
            self.dying[entry.job] = Dying(kind=entry.kind, run=str(entry.run_id.folded), since=now)

    def listed(self, jobs: Container[str], before: float) -> None:
        """Forget dying jobs that the lists show from now on, and those cancelled ``before``, which must have ended."""
        self.dying = {job: one for job, one in self.dying.items() if job not in jobs and one.since >= before}

    def settle(self, item: str, now: float) -> None:
        """Forget the item after its job has ended and its author was informed. A list may still show any of its jobs."""
        entry = self.open.pop(item)
        self.settled |= dict.fromkeys([attempt.job for attempt in entry.attempts if attempt.job], now)
        if entry.job:
            self.settled_items[item] = now

    def at(self, *stages: Stage) -> Iterator[OpenItem]:
        """Return the open items at these stages."""
        return iter([entry for entry in self.open.values() if entry.stage in stages])

    def user_of(self, run: RunId, item: str) -> OpenItem | None:
        """Return the open item, other than ``item``, whose job reports as this run."""
        same = (entry for entry in self.open.values() if entry.run_id.folded == run.folded)
        return next((entry for entry in same if entry.item != item), None)

    def warned(self, item: str, text: str) -> None:
        """Record what was reported to the item's author, so that it is not repeated."""
        if item in self.waiting:
            self.waiting[item].warned = (*self.waiting[item].warned, text)[-MOST_WARNINGS:]
        elif item in self.open:
            self.open[item] = self.open[item].warn(text)

    # What a pass learns

    def refused(self, now: float) -> list[str]:
        """Return what is left out of requests to W&B for now."""
        return [part for part, since in self.left_out.items() if now - since < REFUSED_FOR]

    def keep_refused(self, parts: Iterable[str], now: float) -> None:
        """Record what W&B's server refuses."""
        before = set(self.refused(now))
        self.left_out = {part: self.left_out[part] if part in before else now for part in parts}

    def home(self, entry: OpenItem, entity: str) -> str:
        """Return the owner of an item's queue; ``entity`` is today's if none was recorded."""
        return entry.home or self.entity or entity

    def move(self, server: str) -> None:
        """Record the W&B server; what was learned of another one is forgotten."""
        if self.server not in ("", server):
            self.entity, self.agent, self.made, self.stopped, self.resources = "", "", None, False, {}
            self.waiting, self.suspects, self.left_out, self.operations = {}, {}, {}, MOST_OPERATIONS
        self.server = server

    def learn(self, entity: str, resources: Mapping[str, str]) -> None:
        """Record the entity and what its queues run on; an agent of another entity is forgotten."""
        changed = self.entity not in ("", entity)
        for entry in list(self.open.values()) if changed else ():
            home = self.home(entry, entity)
            self.open[entry.item] = entry.at_home("" if home == entity else home)
        self.entity, self.resources = entity, dict(resources)
        self.agent = "" if changed else self.agent
        self.made = None if changed else self.made
        self.stopped = self.stopped and not changed

    def only_planned(self) -> None:
        """Forget all items but those whose job is not known: the lists show the others."""
        self.open = {entry.item: entry for entry in self.at(Stage.PLANNED)}

    # Items that wait

    def wait(self, item: str, now: float, *, patient: bool = False) -> Waiting:
        """Record that the item cannot start now. The time of a ``patient`` one has not begun to run."""
        waiting = self.waiting.setdefault(item, Waiting(since=now, seen=now))
        waiting.seen = now
        if patient:
            waiting.since = now
        return waiting

    def back_off(
        self, item: str, now: float, *, fault: bool = False, doubtful: bool = False, foreign: bool = False
    ) -> None:
        """Record that the item could not start, for Vertex AI had no room or by a ``fault``: each time it is tried again later.

        The first pause outlasts a lease, so that what comes back first does not take the place of what can start.
        """
        waiting = self.wait(item, now)
        waiting.tries += 1
        waiting.faults += fault
        waiting.doubtful = (waiting.doubtful or now) if doubtful else 0
        waiting.foreign = foreign
        waiting.until = now + pause(waiting.tries, FIRST_PAUSE)

    def forget_half_of_waiting(self) -> None:
        """Forget the items that were seen the longest ago, because it is too large."""
        last_seen_first = sorted(self.waiting.items(), key=lambda one: one[1].seen, reverse=True)
        self.waiting = dict(last_seen_first[: len(last_seen_first) // 2])

    def stop_waiting(self, item: str) -> None:
        """Forget that the item waits: it started, failed, or belongs to someone else."""
        self.waiting.pop(item, None)

    # Items of passes that died

    def suspect(self, items: Collection[str], before: Mapping[str, int], now: float, *, died: bool = True) -> None:
        """Suspect items that were checked when a pass died, and those that it suspected ``before`` (id to kills).

        Only one that was checked alone is surely the reason. One that is open had passed its check. Without ``died`` the
        pass may live or have died later.
        """
        kills = {item: before.get(item, 0) + (died and len(items) == 1) for item in items}
        for item, count in {**before, **kills}.items():
            if item not in self.open:
                self.suspects[item] = Suspect(kills=count, since=now)

    def acquit(self, item: str) -> None:
        """Forget a suspicion: the item was tried, and the pass lives."""
        self.suspects.pop(item, None)

    # Bounds

    def slots_used(self, active: Iterable[ManagedJob]) -> Counter[Kind]:
        """Count the slots in use by kind: active jobs, open jobs not known to have ended, creates of unknown outcome."""
        held = {job.name: job.kind for job in active}
        held |= {job: one.kind for job, one in self.dying.items()}
        for entry in self.open.values():
            if not entry.current.ended:
                held.setdefault(entry.job or f"create of {entry.item}", entry.kind)
        return Counter(held.values())

    def submissions_left(self, region: str, per_minute: int, now: float) -> int:
        """Count the creates that the region's quota still allows within the minute that ends now."""
        return max(0, per_minute - sum(1 for at in self.submissions.get(region, ()) if now - MINUTE < at <= now))

    @property
    def regions(self) -> list[str]:
        """The regions that hold open jobs, or may show the job of a create that is not long ago."""
        return [*(entry.current.region for entry in self.open.values()), *self.submissions]

    def prune(self, now: float, forget_waiting_after: float) -> None:
        """Drop what no later pass can use, so that the ledger is bounded by what is open."""
        self.submissions = {
            region: [at for at in recent if now - MINUTE < at] or [max(recent)]
            for region, times in self.submissions.items()
            if (recent := [at for at in times if now - LISTS_LAG < at <= now])
        }
        self.waiting = {
            item: waiting for item, waiting in self.waiting.items() if now - waiting.seen < forget_waiting_after
        }
        self.suspects = {
            item: one
            for item, one in self.suspects.items()
            if now - one.since < forget_waiting_after and item not in self.open
        }
        self.settled = {job: at for job, at in self.settled.items() if now - at < LISTS_LAG}
        self.settled_items = {item: at for item, at in self.settled_items.items() if now - at < LISTS_LAG}


# What is read and written entry by entry

_ENTRIES: Mapping[str, TypeAdapter[Any]] = {
    name: TypeAdapter(get_args(field.annotation)[1])
    for name, field in Ledger.model_fields.items()
    if get_origin(field.annotation) is dict
}
_MANY = set(_ENTRIES)


class _Damaged(Exception):
    """More is wrong than a pass, or several versions of it, can have written."""


def _same(value: Any) -> Any:
    return value


def _read_entries(
    found: MutableMapping[str, Any], name: str, now: float | None, convert: Callable[[Any], Any]
) -> Iterator[str]:
    """Check the entries of one field and put each in the place of what was read. Yield those that are left out.

    Raises _Damaged.
    """
    adapter, left_out = _ENTRIES[name], 0
    for key in list(found):
        try:
            entry = adapter.validate_python(convert(found[key]), context=now)
            if name == "open" and entry.item != key:
                raise ValueError("it is another item's")
        except (ValueError, TypeError, LookupError, AttributeError):
            del found[key]
            left_out += 1
            yield f"{name}.{key}"
            if left_out > MOST_DAMAGED:
                raise _Damaged from None
        else:
            found[key] = entry
