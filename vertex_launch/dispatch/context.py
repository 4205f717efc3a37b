"""What a pass carries, and what it may decide to do."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from vertex_launch.dispatch.ports import Services
from vertex_launch.errors import Message
from vertex_launch.job import labels
from vertex_launch.job.request import JobRequest
from vertex_launch.model import Item, Kind, ManagedJob, PassReport, PassRequest, Phase, RunId
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.open_item import OpenItem
from vertex_launch.state.record import Held


@dataclass(frozen=True)
class Pass:
    """One pass while it holds the lock; only ``held``, ``report`` and ``outbox`` change. Times are Unix seconds."""

    settings: Settings
    services: Services
    request: PassRequest
    started: float
    held: Held
    report: PassReport
    outbox: list[Warn] = field(default_factory=list)
    """Warnings that are sent when the pass ends."""
    waiting_for: Counter[RunId] = field(default_factory=Counter)
    """How many items of this pass wait for each run (``RunId.folded``)."""

    @property
    def ledger(self) -> Ledger:
        """What is open."""
        return self.held.ledger

    @property
    def now(self) -> float:
        """The time."""
        return self.services.clock()

    def keep_pace(self) -> None:
        """Let the next pass begin with what this one found out about W&B's server."""
        self.ledger.operations = self.services.pace.operations
        self.ledger.keep_refused(self.services.pace.refused, self.now)

    @property
    def in_time(self) -> bool:
        """Whether the pass may begin something new."""
        return self.now - self.started < self.settings.timeouts.pass_budget

    @property
    def last_word(self) -> float:
        """Until when this pass may report to W&B how jobs ended; after that the next pass does."""
        return self.held.lock.expires


def derived_run(settings: Settings, entity: str, item: str) -> str:
    """Return the run id that is made for an item that names none, so that no stop of it can be older than its job."""
    return labels.run_id(settings.base_url, entity, item, settings.deployment)


class After(StrEnum):
    """What becomes of an item whose job Vertex AI agreed to cancel."""

    NOTHING = "nothing"
    NOTE = "note"
    """Its author learns why when the job has ended."""
    DROP = "drop"
    """It is someone else's."""


@dataclass(frozen=True)
class Keep:
    """Keep an open item as it is now. ``freed`` is when its job ended, if this pass is the first to see that."""

    entry: OpenItem
    freed: float = 0
    note: str = ""
    """What the log says about it."""


@dataclass(frozen=True)
class Drop:
    """Forget an open item."""

    item: str
    note: str
    """What the log says about it."""


@dataclass(frozen=True)
class Cancel:
    """Cancel a job."""

    item: str
    job: str
    why: Message
    after: After = After.NOTHING


@dataclass(frozen=True)
class Warn:
    """Put a warning on an item, once."""

    item: str
    message: Message
    phase: Phase


@dataclass(frozen=True)
class Notice:
    """Report something that concerns no single item."""

    message: Message


@dataclass(frozen=True)
class Reject:
    """Fail an item that can never start."""

    item: Item
    message: Message


@dataclass(frozen=True)
class Defer:
    """Leave an item unacknowledged. With ``warn`` its author learns why; ``patient`` waits have no time limit."""

    item: Item
    message: Message
    warn: bool = True
    patient: bool = False
    back_off: bool = False
    """Whether it is tried again later and later, because Vertex AI refused it, or for the following reasons."""
    fault: bool = False
    """Whether its check met a bug."""
    doubtful: bool = False
    """Whether Vertex AI refused it for what may be over soon."""
    foreign: bool = False
    """Whether other agents have to take it."""


@dataclass(frozen=True)
class RetryLater:
    """Submit an item again at ``at``, with the same run."""

    item: str
    at: float
    reason: str
    elsewhere: bool
    began: bool


@dataclass(frozen=True)
class RetryBlocked:
    """Report that an item's next attempt cannot begin now; ``region`` refuses it for good if it is given."""

    entry: OpenItem
    message: Message
    region: str = ""
    warn: bool = False


@dataclass(frozen=True)
class StopRetrying:
    """Settle an item with the attempt that has ended."""

    item: str
    why: Message


class Verdict(StrEnum):
    """How an ended job is settled; the values stand in the report and the log."""

    DONE = "done"
    """There is nothing to report."""
    FAILED = "failed"
    WARNED = "warned"


@dataclass(frozen=True)
class Settle:
    """Report to W&B how an item's job ended; ``job`` is None if it was deleted.

    ``sweep`` is cancelled first. An item that is ``late`` is settled even if W&B does not take the message.
    """

    entry: OpenItem
    job: ManagedJob | None
    verdict: Verdict
    message: Message
    sweep: str = ""
    late: bool = False


Action = Keep | Drop | Cancel | Warn | Notice | Reject | Defer | RetryLater | RetryBlocked | StopRetrying | Settle


@dataclass(frozen=True)
class Create:
    """A job to create: the first one of an item, or the ``attempt`` that follows one that has ended."""

    item: Item
    kind: Kind
    request: JobRequest
    attempt: int = 1
    stopped_before: bool | None = None


@dataclass(frozen=True)
class Claim:
    """An item to acknowledge for the run of its job, which was ``created`` in this round or long ago."""

    item: str
    queue: str
    run: str
    job: str
    created: bool = False
