"""The ledger: every open queue item with its attempts, as one small JSON object that each pass reads and writes.

Pure: ``state.record`` stores it. It holds what the next pass cannot learn from Vertex AI or W&B. That is creates whose
outcome is unknown, jobs whose item is not claimed yet, times when a pass first saw something, and warnings already shown.
It is bounded by what is open, never by history. A lost ledger is rebuilt from the lists of the deployment's jobs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import (
    AfterValidator,
    BaseModel,
    FailFast,
    Field,
    PrivateAttr,
    TypeAdapter,
    ValidationError,
)

from vertex_launch import json_reader
from vertex_launch.limits import LARGEST_LEDGER, MOST_DAMAGED, MOST_LEDGER_VALUES, MOST_WARNINGS
from vertex_launch.model import MOST_OPERATIONS, Item, Kind, ManagedJob, RunId
from vertex_launch.state import ledger_v1
from vertex_launch.state.open_item import (
    CLOCK_SKEW,
    Attempt,
    Count,
    Due,
    Generation,
    Seconds,
    Texts,
    Time,
    bounded,
    consistent,
    pause,
)
from vertex_launch.state.open_item import FIRST_PAUSE as FIRST_PAUSE
from vertex_launch.state.open_item import OpenItem as OpenItem
from vertex_launch.state.open_item import Stage as Stage

VERSION = 2
MINUTE = 60.0
REFUSED_FOR = 3600.0
"""Seconds for which requests to W&B leave out what it refused."""
LISTS_LAG = 600.0
"""Seconds for which a list may still show an ended job as active, with a good margin."""

NAMES = frozenset(
    {
        *("writer", "entity", "agent", "turn", "item", "queue", "project", "run", "region", "job", "state", "kind"),
        *("refused", "resources", "left_out", "home", "server"),
    }
)
"""Fields that identify something: an item's "key" hides nothing in them, because it could be another item's id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dying:
    """A job that a pass cancelled, the run that it reports as (in lower case where W&B ignores the case), and when."""

    kind: Kind = Kind.JOB
    run: str = ""
    since: Time


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
    full_pass_began: Annotated[Seconds, bounded(CLOCK_SKEW, instead=0)] = 0
    """Start time of the last completed pass over all queues. Ticks that are older need no pass."""
    submissions: dict[str, Annotated[list[Time], FailFast()]] = Field(default_factory=dict)
    """Region to the times of the creates of the last minute, or to the last one if that may still take effect."""
    open: dict[str, Annotated[OpenItem, AfterValidator(consistent)]] = Field(default_factory=dict)
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
