"""The outside as a pass sees it: W&B's queues, Vertex AI, the record, the key and the clock.

``adapters`` speak to the real ones, tests to fakes; ``app`` puts them together.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from vertex_launch.job.request import JobRequest
from vertex_launch.log import Redactor
from vertex_launch.model import Ack, Hold, ItemView, JobArtifact, Look, ManagedJob, Phase, Popped, RunId, RunView
from vertex_launch.state.ledger import Ledger, Stored

T = TypeVar("T")


class Queue(Protocol):
    """What a pass needs of W&B; ``adapters.wandb_queue`` says more. All raise Unavailable."""

    def default_entity(self) -> str:
        """Give the API key's default entity."""

    def look(
        self,
        entity: str,
        *,
        agent: str,
        items: Mapping[str, str],
        runs: Sequence[RunId],
        queues: Sequence[str],
        peek: int,
        viewer: bool,
    ) -> Look:
        """Ask everything that a pass must know beforehand."""

    def items(self, entity: str, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        """Look up items (id to queue); those that W&B cannot tell about are missing."""

    def runs(self, wanted: Sequence[RunId]) -> Mapping[RunId, RunView | None]:
        """Look up runs, None for one that does not exist; those that W&B cannot tell about are missing."""

    def resources(self, entity: str, queues: Sequence[str]) -> Mapping[str, str]:
        """Give what each queue's items run on, empty text for nothing; queues of which W&B cannot tell now are missing."""

    def create_agent(self, entity: str, queue_ids: Sequence[str], hostname: str, config: Mapping[str, Any]) -> str:
        """Make an agent and give its id."""

    def pop(self, entity: str, queues: Sequence[str], agent: str, status: str = "") -> list[Popped]:
        """Lease one item for each entry of ``queues``, refreshing the agent's status on the way."""

    def ack(self, claims: Sequence[tuple[str, str]], within: float) -> list[Ack]:
        """Claim items (first) for runs (second); none is sent later than ``within`` seconds from now."""

    def fail(self, failures: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        """Fail items (first) for a reason (second) within so many seconds; says of each whether W&B took it."""

    def warn(self, warnings: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        """Put warnings (second) on items (first) within so many seconds; says of each whether W&B took it."""

    def cancel_sweep(self, entity: str, project: str, sweep: str) -> bool:
        """End a sweep whose scheduler has failed; says whether W&B did, False for one that has ended already."""

    def set_status(self, agent: str, status: str) -> None:
        """Refresh the agent's status."""

    def sweeps(self, wanted: Sequence[RunId]) -> Mapping[RunId, str]:
        """Give the state of sweeps, empty text for one that does not exist; those that W&B cannot tell about are missing."""


class Jobs(Protocol):
    """What a pass needs of W&B's job artifacts; ``adapters.job_artifacts`` says more."""

    def find(self, name: str) -> JobArtifact:
        """Give the job artifact ``entity/project/name:alias``. Raises ItemRejected, Unavailable."""

    def forget(self) -> None:
        """Empty the caches on disk."""


class Vertex(Protocol):
    """What a pass needs of Vertex AI; ``adapters.vertex_jobs`` says more."""

    def active(self, region: str) -> list[ManagedJob]:
        """List the deployment's jobs that have not ended. Raises Unavailable."""

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        """List the deployment's jobs created since, whatever their state. Raises Unavailable."""

    def get(self, name: str) -> ManagedJob | None:
        """Give the job of that resource name, None when there is none. Raises Unavailable."""

    def request_of(self, name: str) -> JobRequest | None:
        """Give what made the job of that resource name, to be submitted again; None when there is none. Raises Unavailable."""

    def cancel(self, name: str) -> None:
        """Ask for the job's end; a job that has ended already or is gone is no error. Raises Unavailable."""

    def create(self, request: JobRequest, timeout: float) -> str:
        """Create a job and give its resource name. Raises ItemRejected, ItemDeferred, OutcomeUnknown."""


class Record(Protocol):
    """What a pass needs of the record; ``adapters.record`` says more. All raise Unavailable."""

    def take_hold(self, pass_id: str, now: float, expires: float, free: int) -> Hold:
        """Become the one pass that runs, ``free`` being the hold that the ledger gives back. Raises PassBusy."""

    def read(self) -> Stored:
        """Read the ledger."""

    def write(self, ledger: Ledger, pass_id: str, generation: int) -> int:
        """Replace the ledger of that generation and give the new one. Raises PassLost."""


class Key(Protocol):
    """Where the API key that jobs get comes from."""

    def get(self) -> str:
        """Give the key. Raises Unavailable."""


class Ticks(Protocol):
    """What ``job_state`` needs of the topic of ticks; ``adapters.ticks`` implements it."""

    def publish(self, body: Mapping[str, str]) -> None:
        """Publish a tick. Raises Unavailable."""


class Logs(Protocol):
    """Where the output of jobs is found; ``adapters.job_logs`` says more."""

    def tail(self, job: str) -> Sequence[str]:
        """Give the last lines that the job wrote, the oldest first; none where they cannot be read."""


Calls = Sequence[Callable[[], T]]


def side_by_side(calls: Calls[T], at_once: int) -> list[T]:
    """Run calls in threads, so many at once, and give what they give in their order; raises what the first of them raises."""
    if not calls:
        return []
    with ThreadPoolExecutor(min(len(calls), at_once)) as pool:
        return [begun.result() for begun in [pool.submit(call) for call in calls]]


@dataclass(frozen=True)
class Services:
    """The outside as a pass sees it. ``logs`` is None where the output of jobs is not to be read."""

    queue: Queue
    vertex: Vertex
    record: Record
    key: Key
    redact: Redactor
    jobs: Jobs
    logs: Logs | None = None
    together: Callable[[Calls[Any], int], list[Any]] = side_by_side
    clock: Callable[[], float] = time.time
    new_pass_id: Callable[[], str] = field(default=lambda: uuid.uuid4().hex[:12])
