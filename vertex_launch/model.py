"""The nouns of the product as frozen values, without any I/O and without Google's types."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate
from typing import Any, ClassVar

from vertex_launch.limits import LARGEST_REPORT, LONGEST_ID

VERTEX_RESOURCES = ("vertex", "gcp-vertex")
"""The resource names that mean Vertex AI: the runner's own, and the one that queues are made with."""

LOCAL_RESOURCES = ("local-process", "local-container")
"""What a sweep's scheduler asks for where its launch config names no resource (``wandb launch-sweep``)."""

SCHEDULER_URI = "placeholder-uri-scheduler"
"""``uri`` of the item that starts a sweep's scheduler (wandb/sdk/launch/sweeps/scheduler.py)."""


SCHEDULER_COMMAND = ("wandb", "scheduler")
"""Entry point of a sweep's scheduler that is not a job (wandb/sdk/launch/sweeps/scheduler.py)."""


MOST_OPERATIONS = 1000
"""Operations in one request to W&B, before anything is known about the server."""


BATCHES = "batches"
"""Stands for several operations in one request among what a server refuses."""


@dataclass
class Pace:
    """What was found out about W&B's server, to which requests adapt; the ledger keeps it.

    ``operations`` is how many operations one request takes at the moment. ``refused`` has the optional parts of documents that
    the server refuses, and BATCHES. ``doubts`` counts the requests of this pass that may have been refused for their number.
    """

    operations: int = MOST_OPERATIONS
    refused: set[str] = field(default_factory=set)
    doubts: int = 0

    @property
    def hides_items(self) -> bool:
        """Whether W&B does not show items."""
        return not self.refused.isdisjoint(("project.runQueue", "runQueue.runQueueItem"))

    @property
    def hides_runs(self) -> bool:
        """Whether W&B does not show runs."""
        return "project.run" in self.refused

    def begin(self, operations: int, refused: Iterable[str]) -> None:
        """Begin with what earlier passes found out."""
        self.operations, self.refused, self.doubts = operations, set(refused), 0

    def doubt(self) -> None:
        """Count a refused request with several operations: after two without another reason they are sent one by one."""
        self.doubts += 1
        if self.doubts > 1:
            self.refused.add(BATCHES)

    def explain(self) -> None:
        """Forget the doubts, because the server refuses one of the operations by itself."""
        if self.doubts:
            self.doubts = 0
            self.refused.discard(BATCHES)

    def slower(self, sent: int) -> None:
        """Halve it after a request with so many operations was not answered, or late."""
        self.operations = max(1, sent // 2)

    def faster(self, sent: int) -> None:
        """Let it grow by an eighth after a request as large as it may be was answered in time."""
        if sent >= self.operations:
            self.operations = min(MOST_OPERATIONS, self.operations + max(1, self.operations // 8))


class Kind(StrEnum):
    """What a job is for; each kind has a limit of its own (``max_jobs``, ``max_schedulers``)."""

    JOB = "job"
    SCHEDULER = "scheduler"


@dataclass(frozen=True)
class Item:
    """A W&B run queue item as popped: its id, its queue, and its run spec as it came (JSON, unchecked).

    ``unreadable`` is why W&B's answer did not show the run spec. ``characters`` is the length of one that is too long to keep.
    """

    id: str
    queue: str
    spec: Any
    unreadable: str = ""
    characters: int = 0

    @property
    def size(self) -> int:
        """Characters that are kept of it, if its run spec is text."""
        return len(self.spec) if isinstance(self.spec, str) else 0


@dataclass(frozen=True)
class JobArtifact:
    """A W&B job artifact: its full name with its version (``entity/project/name:v3``), and its ``wandb-job.json``."""

    name: str
    description: Mapping[str, Any]


@dataclass(frozen=True)
class RunId:
    """A W&B run by its full name."""

    entity: str
    project: str
    id: str

    def __str__(self) -> str:
        return f"{self.entity}/{self.project}/{self.id}"

    @property
    def folded(self) -> RunId:
        """The same run as W&B compares it: without regard to case in entity and project."""
        return RunId(self.entity.lower(), self.project.lower(), self.id)


@dataclass(frozen=True)
class SchedulerView:
    """How the scheduler of a sweep was launched, as W&B shows it: run id, queue, and W&B job if it is one."""

    run: str
    queue: str
    job: str

    def fits(self, run: str, queue: str) -> bool:
        """Return whether it is this run of this queue."""
        return bool(run) and self.run == run and self.queue in ("", queue)


@dataclass(frozen=True)
class JobName:
    """The resource name of a CustomJob, ``projects/P/locations/R/customJobs/N``; ``project`` may be an ID or a number."""

    PATTERN: ClassVar = r"projects/([^/\s]{1,100})/locations/([a-z0-9-]{1,40})/customJobs/([0-9]{1,20})"

    project: str
    region: str
    number: str

    @classmethod
    def parse(cls, text: str) -> JobName:
        """Parse a resource name. Raises ValueError."""
        found = re.fullmatch(cls.PATTERN, text)
        if found is None:
            what = repr(text) if len(text) <= LONGEST_ID else f"a text of {len(text)} characters"
            raise ValueError(f"{what} is not the name of a CustomJob")
        return cls(*found.groups())

    def __str__(self) -> str:
        return f"projects/{self.project}/locations/{self.region}/customJobs/{self.number}"

    def names(self, other: JobName) -> bool:
        """Return whether both name the same job: one may hold the project's ID and the other its number."""
        return (self.region, self.number) == (other.region, other.number)


@dataclass(frozen=True)
class JobHint:
    """A sign that something happened to the CustomJob with this number; not proof that it did.

    ``name`` is known only if a person named the job. ``ended`` means that the sign is about the job's end. ``published`` is
    when Pub/Sub got the message (Unix seconds), None if unknown.
    """

    number: str
    name: JobName | None = None
    ended: bool = True
    published: float | None = None


@dataclass(frozen=True)
class ManagedJob:
    """A CustomJob with this deployment's labels, as Vertex AI described it last.

    ``name`` is the resource name ``projects/P/locations/R/customJobs/N``; ``state`` the name of the JobState member, as
    ``JOB_STATE_RUNNING``. ``item``, ``run``, ``queue`` and ``sweep`` are read from its environment. ``created``,
    ``started`` (it began to run) and ``finished`` are Unix seconds, 0 if unset; ``error`` is what Vertex AI said when it
    failed. Not ``repeatable`` is a job that began to run and may not begin again (``disable_retries``). ``api_key`` is what
    it reports with.
    """

    name: str
    region: str
    state: str
    ended: bool
    cancelling: bool
    item: str
    run: RunId
    queue: str
    attempt: int
    kind: Kind
    created: float
    started: float = 0
    finished: float = 0
    error: str = field(default="", repr=False)
    sweep: str = ""
    server: str = ""
    """What stands for the W&B server to which it reports (``addresses.server``)."""
    queue_entity: str = ""
    """Owner of the item's queue."""
    own_key: bool = False
    """Whether its item brought the key with which it reports."""
    repeatable: bool = True
    strategy: str = ""
    """How it gets its machines, such as ``SPOT``: the name of a ``Scheduling.Strategy``, empty for one that is not known."""
    api_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class PassRequest:
    """What a tick or a person asks for. ``queues`` empty means all; ``published`` is a tick's own time (Unix seconds).

    ``ended`` is the resource name of a job that has ended according to a log entry: a hint to look at it, never the truth.
    """

    queues: tuple[str, ...] = ()
    limit: int | None = None
    dry_run: bool = False
    run_spec: Any = None
    resume: bool = False
    published: float | None = None
    ended: str = ""

    @property
    def full(self) -> bool:
        """Whether the pass serves all that any other tick could ask for."""
        return not self.queues and self.limit is None and not self.dry_run


@dataclass(frozen=True)
class Lock:
    """The right of one pass to change anything, until ``expires`` (Unix seconds).

    ``taken_over`` from a pass that did not give it back, so that the ledger may have been written since it was read.
    """

    pass_id: str
    expires: float
    generation: int
    taken_over: bool = False


@dataclass(frozen=True)
class ItemView:
    """A queue item as W&B shows it: PENDING, LEASED, CLAIMED or FAILED, and the run id of the ack that won."""

    state: str
    run: str


@dataclass(frozen=True)
class RunView:
    """A run as W&B shows it: its state, as ``pending``, ``running`` or ``finished``, and whether it was asked to stop.

    ``heartbeat`` is when it was last alive (Unix seconds), None where W&B does not say.
    """

    state: str
    stopped: bool
    heartbeat: float | None = None


@dataclass(frozen=True)
class AgentView:
    """A launch agent as W&B shows it."""

    id: str
    hostname: str
    stop_polling: bool
    queues: tuple[str, ...]


@dataclass(frozen=True)
class Queued:
    """Pending items of a queue, by id; not ``complete`` where the query showed only a part of the queue."""

    pending: tuple[str, ...]
    complete: bool


@dataclass(frozen=True)
class Question:
    """What a pass asks W&B at its beginning.

    ``items`` maps item ids to queue names. ``peek`` is how many items of each of ``queues`` to show. ``viewer`` asks for the
    API key's default entity. An empty ``agent`` asks for all agents of the entity.
    """

    entity: str
    agent: str = ""
    items: Mapping[str, str] = field(default_factory=dict)
    runs: Sequence[RunId] = ()
    queues: Sequence[str] = ()
    peek: int = 0
    viewer: bool = False


@dataclass(frozen=True)
class WandbState:
    """W&B's answer to a ``Question``.

    ``queues`` maps the names of all queues of the entity to their ids. ``items`` and ``runs`` have those asked for (None for a
    run that does not exist), without those that W&B cannot answer now. ``queued`` shows what is pending in the queues asked
    for, as far as one bounded query shows it. Without ``agents_shown`` W&B does not say which agents there are.
    """

    viewer_entity: str = ""
    agent: AgentView | None = None
    agents: tuple[AgentView, ...] = ()
    agents_shown: bool = True
    queues: Mapping[str, str] = field(default_factory=dict)
    items: Mapping[str, ItemView] = field(default_factory=dict)
    runs: Mapping[RunId, RunView | None] = field(default_factory=dict)
    queued: Mapping[str, Queued] = field(default_factory=dict)


@dataclass(frozen=True)
class Popped:
    """The answer to one pop: an item, nothing, or W&B's reason why not.

    ``unreadable`` says why an answer cannot be read; an item may be leased although not even its id is known.
    """

    queue: str
    item: Item | None = None
    error: str = ""
    unreadable: str = ""


class Ack(StrEnum):
    """The answer to one ack."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    UNKNOWN = "unknown"


class Phase(StrEnum):
    """Where an item was when it failed or was warned about (``stage`` in W&B's API)."""

    AGENT = "agent"
    """Before its job existed."""
    RUN = "run"
    """Since its job exists."""


@dataclass
class PassReport:
    """What one pass saw and did; the body of an HTTP answer and the summary in the log."""

    pass_id: str
    dry_run: bool = False
    slots: dict[str, int | None] = field(default_factory=dict)
    submitted: list[dict[str, str]] = field(default_factory=list)
    adopted: list[dict[str, str]] = field(default_factory=list)
    resubmitted: list[dict[str, str]] = field(default_factory=list)
    rejected: list[dict[str, str]] = field(default_factory=list)
    deferred: list[dict[str, str]] = field(default_factory=list)
    cancelled: list[dict[str, str]] = field(default_factory=list)
    settled: list[dict[str, str]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    took_ms: int = 0
    creates: int = 0
    """Creates that were sent, whatever came of them; not part of the body."""
    freed: list[float] = field(default_factory=list)
    """When the jobs ended whose slots this pass is the first to see free; not part of the body."""
    shown: dict[str, Any] = field(default_factory=dict)
    """Only in a dry run: active jobs, queued items, the CustomJob of a posted run spec."""

    def count_slots(self, max_jobs: int, active: int) -> None:
        """Record how many slots there are and how many are used; without a limit (-1) ``free`` is None."""
        free = None if max_jobs == -1 else max(0, max_jobs - active)
        self.slots = {"max_jobs": max_jobs, "active": active, "free": free}

    @property
    def counts(self) -> dict[str, int]:
        """How many entries each list has."""
        return {name: len(rows) for name, rows in self._whole().items() if isinstance(rows, list)}

    def _whole(self) -> dict[str, Any]:
        body = {name: value for name, value in vars(self).items() if name not in ("creates", "freed", "shown")}
        return body | self.shown

    def body(self) -> dict[str, Any]:
        """Return the report as a JSON object that is not too large: ``left_out`` counts the entries that lists lack."""
        body, left = self._whole(), LARGEST_REPORT
        # Bytes of the first entry, of the first two, and so on. Lists that need less than their share leave more to others.
        sizes = {name: list(accumulate(len(json.dumps(row)) + 2 for row in body[name])) for name in self.counts}
        for index, name in enumerate(sorted(sizes, key=lambda name: sizes[name][-1:])):
            fit = bisect_right(sizes[name], left // (len(sizes) - index))
            left -= sizes[name][fit - 1] if fit else 0
            body[name] = body[name][:fit]
        left_out = {name: lacking for name, count in self.counts.items() if (lacking := count - len(body[name]))}
        return body | ({"left_out": left_out} if left_out else {})
