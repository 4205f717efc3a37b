"""What ``job_state`` does: ask Vertex AI about the job that a log entry hints at, and ask for a pass when it has ended.

Called by ``app`` for entries that a log sink publishes. They come late, twice, out of order or not at all, and do not say whose
job it is; so only the state that Vertex AI gives is believed, nothing is settled here, and the next pass sees what was missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from vertex_launch.dispatch.ports import Calls, Vertex, side_by_side
from vertex_launch.errors import Problem, RequestError, Unavailable
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import ManagedJob
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings

PATIENCE = 600.0
"""Seconds since its publication for which a message is delivered again; the passes go on without it."""

AT_ONCE = 16
"""Regions asked side by side."""


@dataclass(frozen=True)
class JobHint:
    """That something happened to a CustomJob: ``job`` is its number.

    ``project`` and ``region`` are empty where only the number is known. ``ended`` says that it is about the job's end, and
    ``published`` when Pub/Sub got the message (Unix seconds), None where nobody can tell: then it counts as old.
    """

    job: str
    project: str = ""
    region: str = ""
    ended: bool = True
    published: float | None = None


Answer = ManagedJob | Unavailable | None
"""What a region says about a job."""


class Ticks(Protocol):
    """Where a pass is asked for; ``adapters.ticks`` says more."""

    def publish(self, body: Mapping[str, str]) -> None:
        """Publish a tick. Raises Unavailable."""


class JobWatch:
    """Follows hints. It changes nothing but the tick topic, and a tick too many does no harm."""

    def __init__(
        self,
        settings: Settings,
        vertex: Vertex,
        ticks: Ticks,
        clock: Callable[[], float] = time.time,
        together: Callable[[Calls[Answer], int], list[Answer]] = side_by_side,
    ) -> None:
        self._settings = settings
        self._vertex = vertex
        self._ticks = ticks
        self._clock = clock
        self._together = together

    def run(self, hint: JobHint) -> bool:
        """Follow a hint; says whether that was all, False for a message to be delivered again.

        Raises Unavailable for one to be delivered again, too, and RequestError where a job elsewhere is named.
        """
        young = hint.published is not None and 0 <= self._clock() - hint.published < PATIENCE
        try:
            job = self._find(hint)
            if job is not None and job.ended:
                self._ticks.publish({"ended": job.name})
        except Unavailable as error:
            next_step = "Pub/Sub delivers this entry again" if young else "left to the next pass"
            LOGGER.warning("job %s: %s; %s", hint.job, error, next_step, extra={"event": Event.FAILED})
            if young:
                raise
            return True
        if job is None:
            LOGGER.debug("job %s is none of this deployment's", hint.job)
            return True
        where = {"job": job.name, "item": job.item, "run": str(job.run), "region": job.region}
        if job.ended:
            extra = {"event": Event.JOB_ENDED, "state": job.state, **where}
            LOGGER.info("%s has ended (%s): asked for a pass", job.name, job.state, extra=extra)
            return True
        if not hint.ended:
            return True
        next_step = "Pub/Sub delivers this entry again" if young else "left to the next pass"
        LOGGER.info("%s is said to have ended, but is %s: %s", job.name, job.state, next_step, extra=where)
        return not young

    def _find(self, hint: JobHint) -> ManagedJob | None:
        """Look for the job in all regions that it may be in; None when it is not ours. Raises Unavailable, RequestError."""
        regions = [hint.region] if hint.region else [region.name for region in self._settings.regions]
        if hint.region:
            self._check(hint)
        answers = self._together([partial(self._get, region, hint.job) for region in regions], AT_ONCE)
        for answer in answers:
            if isinstance(answer, ManagedJob):
                return answer
        for answer in answers:
            if isinstance(answer, Unavailable):
                raise answer
        return None

    def _get(self, region: str, job: str) -> Answer:
        """Ask one region; one that does not answer must not hide what another one says."""
        try:
            return self._vertex.get(f"projects/{self._settings.project}/locations/{region}/customJobs/{job}")
        except Unavailable as error:
            return error

    def _check(self, hint: JobHint) -> None:
        """Refuse a full name of a job that cannot be ours. A project's number could be, for Vertex AI's names hold it."""
        problems = []
        if hint.project != self._settings.project and not hint.project.isdecimal():
            found = f"project {shown(hint.project)} is not that of this deployment"
            problems.append(Problem("log entry: job", found, f"Its jobs are in project {self._settings.project}"))
        if self._settings.region(hint.region) is None:
            names = ", ".join(region.name for region in self._settings.regions)
            remedy = f"Configured are {names}; to have more, add them to regions in vertex-launch.yaml"
            problems.append(Problem("log entry: job", f"region {shown(hint.region)} is not configured", remedy))
        if problems:
            raise RequestError(problems)
