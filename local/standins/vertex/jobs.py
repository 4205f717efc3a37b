"""The jobs of the local Vertex AI: what each one was at any time, and what it wrote to the log when it changed.

Every change adds a version that holds from a moment on. So a list can lag behind, and an error can become visible some
time after its state, without a thread that waits: a read at a time finds the last version of that time.
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
    "name",
    "state",
    "create_time",
    "start_time",
    "end_time",
    "update_time",
    "error",
    "web_access_uris",
    "satisfies_pzs",
    "satisfies_pzi",
)
_FIRST_ID = 3_000_721_679_224_668_160


@dataclass
class Capacity:
    """What is free for the jobs of one region; None is as much as anybody wants. May be changed at any time.

    ``jobs`` is how many may be out of their queue at once; ``accelerators`` how many of a type there are in all.
    """

    jobs: int | None = None
    accelerators: dict[str, int] = field(default_factory=dict)


@dataclass
class _Kept:
    number: int
    parent: str
    versions: list[tuple[float, Any]]
    """Pairs (Unix seconds, the plain CustomJob, or None once deleted), the oldest first."""

    def at(self, moment: float) -> Any:
        return next((job for time, job in reversed(self.versions) if time <= moment), None)


class Jobs:
    """Keeps jobs; safe to use from many threads. ``clock`` gives Unix seconds, ``error_lag`` is in seconds.

    ``project_ids`` maps project numbers, as they stand in names, to ids, as they stand in log entries. ``on_log`` gets
    every log entry. Names are ``projects/NUMBER/locations/REGION/customJobs/ID``.
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
        """Notified at every change of a job."""
        self._clock = clock
        self._project_ids = project_ids
        self._on_log = on_log
        self._numbers = itertools.count()
        self._kept: dict[str, _Kept] = {}

    def add(self, parent: str, asked: Any) -> Any:
        """Make a job, QUEUED, of the fields that a caller may set; gives it with its name and times."""
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
        """Give a job as it is now, None where there is none."""
        with self.changed:
            kept = self._kept.get(name)
            return kept and kept.at(self._clock())

    def in_region(self, parent: str, behind: float = 0.0) -> list[tuple[int, Any]]:
        """Give the jobs of a region as they were ``behind`` seconds ago, the newest first, each with its number."""
        with self.changed:
            moment = self._clock() - behind
            found = [(kept.number, kept.at(moment)) for kept in self._kept.values() if kept.parent == parent]
        return [(number, job) for number, job in reversed(found) if job is not None]

    def names(self) -> list[str]:
        """Name all jobs that are not deleted, the oldest first."""
        with self.changed:
            return [name for name, kept in self._kept.items() if kept.at(self._clock()) is not None]

    def delete(self, name: str) -> None:
        """Forget a job from now on."""
        with self.changed:
            self._kept[name].versions.append((self._clock(), None))
            self.changed.notify_all()

    def move(self, name: str, before: Collection[JobState], after: JobState, error: JobError | None = None) -> bool:
        """Let a job enter a state if it is in one of ``before``; says whether it was."""
        with self.changed:
            job = self.get(name)
            if job is None or job.state not in before:
                return False
            self._put(_copied(job), after, error)
        self._write(job, after)
        return True

    def leave_queue(self, name: str) -> bool:
        """Let a QUEUED job become PENDING if there is capacity for it; says whether it did."""
        with self.changed:
            return self.has_room(name) and self.move(name, {JobState.JOB_STATE_QUEUED}, JobState.JOB_STATE_PENDING)

    def has_room(self, name: str) -> bool:
        """Say whether there is capacity for a job beside those that are out of their queue."""
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
        """Write what a job's container wrote."""
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
            told = _copied(job)
            told.error.code, told.error.message = error
            versions.append((now + self.error_lag, told))
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
