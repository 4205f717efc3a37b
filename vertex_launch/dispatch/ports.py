"""The outside as a pass sees it: one Protocol for each service, and ``Services``, what a pass uses of them.

``adapters`` implement them for the real services, tests in memory; ``clients`` puts them together. The objects of Cloud
Storage have theirs beside the lock and the ledger (``state.record.Objects``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from vertex_launch.errors import LaunchError
from vertex_launch.job.request import JobRequest
from vertex_launch.log import Redactor
from vertex_launch.model import (
    Ack,
    ItemView,
    JobArtifact,
    ManagedJob,
    Pace,
    Phase,
    Popped,
    Question,
    RunId,
    RunView,
    SchedulerView,
    WandbState,
)
from vertex_launch.state.record import Record

T = TypeVar("T")


class Queue(Protocol):
    """W&B's queues, agents, runs and sweeps. All raise Unavailable."""

    def default_entity(self) -> str:
        """Return the API key's default entity."""

    def ask(self, question: Question) -> WandbState:
        """Ask everything that a pass must know at its beginning."""

    def items(self, entity: str, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        """Look up items (id to queue); those that W&B cannot answer now are missing."""

    def runs(self, wanted: Sequence[RunId]) -> Mapping[RunId, RunView | None]:
        """Look up runs, None for one that does not exist; those that W&B cannot answer now are missing."""

    def resources(self, entity: str, queues: Sequence[str]) -> Mapping[str, str]:
        """Return what each queue's items run on, empty for nothing; queues that W&B cannot answer now are missing."""

    def create_agent(self, entity: str, queue_ids: Sequence[str], hostname: str, config: Mapping[str, Any]) -> str:
        """Create an agent and return its id."""

    def pop(
        self, entity: str, queues: Sequence[str], agent: str, status: str = "", *, singly: bool = False
    ) -> list[Popped]:
        """Lease one item for each entry of ``queues``; a ``status`` refreshes the agent's in the same request.

        With ``singly`` no answer holds two items.
        """

    def ack(self, claims: Sequence[tuple[str, str]], within: float) -> list[Ack]:
        """Claim items (first) for runs (second); none is sent later than ``within`` seconds from now."""

    def fail(self, failures: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        """Fail items (first) for a reason (second) within so many seconds; return for each whether W&B took it."""

    def warn(self, warnings: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        """Put warnings (second) on items (first) within so many seconds; return for each whether W&B took it."""

    def cancel_sweep(self, entity: str, project: str, sweep: str, scheduler: str, queue: str) -> bool | None:
        """End a sweep whose scheduler failed, the run of this id from this queue.

        Return False if it has ended or does not exist, None if W&B does not show that this is its scheduler.
        """

    def set_status(self, agent: str, status: str) -> None:
        """Refresh the agent's status."""

    def sweeps(self, wanted: Sequence[RunId]) -> Mapping[RunId, str]:
        """Return the state of sweeps, empty for one that does not exist; those that W&B cannot answer now are missing."""

    def schedulers(self, wanted: Sequence[RunId]) -> Mapping[RunId, SchedulerView | None]:
        """Return how sweeps' schedulers were launched, None for none; those that W&B cannot answer now are missing."""


class Artifacts(Protocol):
    """W&B's job artifacts."""

    def find(self, name: str) -> JobArtifact:
        """Return the job artifact ``entity/project/name:alias``. Raises ItemRejected, Unavailable."""

    def forget(self) -> None:
        """Empty the caches on disk."""


class Vertex(Protocol):
    """Vertex AI's CustomJobs of this deployment."""

    def active(self, region: str) -> list[ManagedJob]:
        """List the jobs that have not ended. Raises Unavailable."""

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        """List the jobs created since then, whatever their state. Raises Unavailable."""

    def get(self, name: str) -> ManagedJob | None:
        """Return the job of that resource name, None if it does not exist. Raises Unavailable."""

    def request_of(self, name: str) -> JobRequest | None:
        """Return what the job was created from, to submit it again; None if it does not exist. Raises Unavailable."""

    def cancel(self, name: str) -> None:
        """Ask for the job's end; a job that has ended or is gone is not an error. Raises Unavailable."""

    def create(self, request: JobRequest, timeout: float) -> str:
        """Create a job and return its resource name. Raises ItemRejected, ItemDeferred, OutcomeUnknown."""


class Key(Protocol):
    """The W&B API key."""

    def get(self) -> str:
        """Return the key. Raises Unavailable."""


class Logs(Protocol):
    """The output of jobs."""

    def tail(self, job: str) -> Sequence[str]:
        """Return the last lines that the job wrote, the oldest first; none if they cannot be read."""


class Ticks(Protocol):
    """The topic on which a pass is requested."""

    def publish(self, body: Mapping[str, str]) -> None:
        """Publish a tick. Raises Unavailable."""


Calls = Sequence[Callable[[], T]]


def run_parallel(calls: Calls[T], at_once: int) -> list[T | LaunchError]:
    """Run calls in threads, at most ``at_once`` at a time. Return what each returned, or the LaunchError that it raised."""
    if not calls:
        return []
    with ThreadPoolExecutor(min(len(calls), at_once)) as pool:
        return list(pool.map(outcome, calls))


def outcome(call: Callable[[], T]) -> T | LaunchError:
    """Return what a call returns, or the LaunchError that it raises."""
    try:
        return call()
    except LaunchError as error:
        return error


def all_of(outcomes: Sequence[T | LaunchError]) -> list[T]:
    """Return the results of parallel calls. Raises the first error among them."""
    results: list[T] = []
    for one in outcomes:
        if isinstance(one, LaunchError):
            raise one
        results.append(one)
    return results


@dataclass(frozen=True)
class Services:
    """Everything outside that a pass uses. ``logs`` is None if the output of jobs is not to be read."""

    queue: Queue
    vertex: Vertex
    record: Record
    key: Key
    redact: Redactor
    jobs: Artifacts
    logs: Logs | None = None
    run_parallel: Callable[[Calls[Any], int], list[Any]] = run_parallel
    clock: Callable[[], float] = time.time
    new_pass_id: Callable[[], str] = field(default=lambda: uuid.uuid4().hex[:12])
    pace: Pace = field(default_factory=Pace)
    """What ``queue`` adapts to the server."""
