"""The jobs of the local Vertex AI: each job's versions over time, and its log entries.

Every change adds a version that is valid from a moment on, and a read finds the last version of its moment. So a list can
lag, and an error can become visible some time after its state, without a thread that waits.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.cloud.aiplatform_v1 import CustomJob, JobState

from local.standins.vertex.job_errors import JobError
from local.standins.vertex.job_log import SERVICE_TEXTS, Entry, output_entry, service_entry
from local.standins.vertex.rules import accelerators

ENDED = frozenset(
    {
        JobState.JOB_STATE_SUCCEEDED,
        JobState.JOB_STATE_FAILED,
        JobState.JOB_STATE_CANCELLED,
        JobState.JOB_STATE_EXPIRED,
        JobState.JOB_STATE_PARTIALLY_SUCCEEDED,
    }
)
_ON_MACHINES = frozenset(
    {JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_CANCELLING, JobState.JOB_STATE_UPDATING}
)
_OUTPUT_ONLY = (
    *("name", "state", "create_time", "start_time", "end_time", "update_time"),
    *("error", "web_access_uris", "satisfies_pzs", "satisfies_pzi"),
)
_FIRST_ID = 3_000_721_679_224_668_160


@dataclass
class Capacity:
    """The capacity of one region, which can change at any time. None is unlimited.

    ``jobs`` limits the jobs that have left their queue. ``accelerators`` is the number of each type.
    """

    jobs: int | None = None
    accelerators: dict[str, int] = field(default_factory=dict)


@dataclass
class _Kept:
    number: int
    parent: str
    versions: list[tuple[float, Any]]
    """Pairs (Unix seconds, the plain CustomJob or None after the deletion), the oldest first."""

    def at(self, moment: float) -> Any:
        return next((job for time, job in reversed(self.versions) if time <= moment), None)


class Jobs:
    """Stores jobs, for use from many threads. ``clock`` returns Unix seconds. ``error_lag`` is in seconds.

    ``project_ids`` maps project numbers, which names contain, to ids, which log entries contain. ``on_log`` gets every log
    entry. Names are ``projects/NUMBER/locations/REGION/customJobs/ID``.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        project_ids: Mapping[str, str],
        on_log: Callable[[Entry], None] | None = None,
        error_lag: float = 0.0,
        capacity: Capacity | None = None,
    ) -> None:
        self.capacity = capacity or Capacity()
        self.error_lag = error_lag
        self.changed = threading.Condition(threading.RLock())
        """Notified when a job changes."""
        self._clock = clock
        self._project_ids = project_ids
        self._on_log = on_log
        self._numbers = itertools.count()
        self._kept: dict[str, _Kept] = {}

    def add(self, parent: str, asked: Any) -> Any:
        """Create a QUEUED job from the fields that a caller may set. Return it with its name and times."""
        with self.changed:
            number = next(self._numbers)
            job = _copied(asked)
            for output in _OUTPUT_ONLY:
                job.ClearField(output)
            job.name = f"{parent}/customJobs/{_FIRST_ID + number * 8192}"
            self._kept[job.name] = _Kept(number, parent, [])
            self._put(job, JobState.JOB_STATE_QUEUED)
        self._write(job, JobState.JOB_STATE_QUEUED)
        return job

    def get(self, name: str) -> Any:
        """Return a job as it is now, or None if it does not exist."""
        with self.changed:
            kept = self._kept.get(name)
            return kept and kept.at(self._clock())

    def in_region(self, parent: str, behind: float = 0.0) -> list[tuple[int, Any]]:
        """Return the jobs of a region as they were ``behind`` seconds ago, the newest first, with their numbers."""
        with self.changed:
            moment = self._clock() - behind
            found = [(kept.number, kept.at(moment)) for kept in self._kept.values() if kept.parent == parent]
        return [(number, job) for number, job in reversed(found) if job is not None]

    def names(self) -> list[str]:
        """Return the names of all jobs that are not deleted, the oldest first."""
        with self.changed:
            return [name for name, kept in self._kept.items() if kept.at(self._clock()) is not None]

    def delete(self, name: str) -> None:
        """Delete a job from now on."""
        with self.changed:
            self._kept[name].versions.append((self._clock(), None))
            self.changed.notify_all()

    def move(self, name: str, before: Collection[JobState], after: JobState, error: JobError | None = None) -> bool:
        """Move a job to a state if it is in one of ``before``. Return whether it was."""
        with self.changed:
            job = self.get(name)
            if job is None or job.state not in before:
                return False
            self._put(_copied(job), after, error)
        self._write(job, after)
        return True

    def leave_queue(self, name: str) -> bool:
        """Move a QUEUED job to PENDING if there is capacity for it. Return whether there was."""
        with self.changed:
            return self.has_room(name) and self.move(name, {JobState.JOB_STATE_QUEUED}, JobState.JOB_STATE_PENDING)

    def has_room(self, name: str) -> bool:
        """Return whether there is capacity for a job in addition to those that have left their queue."""
        with self.changed:
            running = [
                job
                for _, job in self.in_region(self._kept[name].parent)
                if job.state in _ON_MACHINES and job.name != name
            ]
            taken: Counter[str] = sum(map(accelerators, running), accelerators(self.get(name)))
        if self.capacity.jobs is not None and len(running) >= self.capacity.jobs:
            return False
        return all(taken[kind] <= limit for kind, limit in self.capacity.accelerators.items())

    def log_output(self, name: str, lines: Collection[str]) -> None:
        """Log the output of a job's container."""
        project_id, job_id = self._ids(name)
        for line in lines:
            self._send(output_entry(project_id, job_id, line, self._clock()))

    def _put(self, job: Any, state: JobState, error: JobError | None = None) -> None:
        now = self._clock()
        job.state = state
        job.update_time.FromMicroseconds(round(now * 1e6))
        if state == JobState.JOB_STATE_QUEUED:
            job.create_time.CopyFrom(job.update_time)
        if state == JobState.JOB_STATE_RUNNING and not job.HasField("start_time"):
            job.start_time.CopyFrom(job.update_time)
        if state in ENDED:
            job.end_time.CopyFrom(job.update_time)
        versions = self._kept[job.name].versions
        versions.append((now, job))
        if error is not None:
            with_error = _copied(job)
            with_error.error.code, with_error.error.message = error
            versions.append((now + self.error_lag, with_error))
        self.changed.notify_all()

    def _write(self, job: Any, state: JobState) -> None:
        project_id, job_id = self._ids(job.name)
        for text in SERVICE_TEXTS.get(state, ()):
            self._send(service_entry(project_id, job_id, text, self._clock()))

    def _send(self, entry: Entry) -> None:
        if self._on_log is not None:
            self._on_log(entry)

    def _ids(self, name: str) -> tuple[str, str]:
        parts = name.split("/")
        return self._project_ids[parts[1]], parts[-1]


def _copied(job: Any) -> Any:
    copy = CustomJob.pb(CustomJob())
    copy.CopyFrom(job)
    return copy
