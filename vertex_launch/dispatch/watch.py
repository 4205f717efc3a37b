"""What ``job_state`` does: ask Vertex AI about the job that a log entry names, and publish a tick if it has ended.

Log entries arrive late, twice, out of order or not at all, and do not say whose job it is. Only Vertex AI's answer counts;
the next pass finds what was missed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from vertex_launch import log
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Calls, Ticks, Vertex, run_parallel
from vertex_launch.errors import JobNotEnded, Message, RequestError, Unavailable
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import JobHint, JobName, ManagedJob
from vertex_launch.problems import problem, shown
from vertex_launch.settings.config import Settings

PATIENCE = 600.0
"""Seconds after its publication in which a message is delivered again; after that the job is left to the next pass."""

AT_ONCE = 16
"""Regions asked in parallel."""


def follow(
    hint: JobHint,
    settings: Settings,
    vertex: Vertex,
    ticks: Ticks,
    clock: Callable[[], float] = time.time,
    parallel: Callable[[Calls[Any], int], list[Any]] = run_parallel,
) -> None:
    """Publish a tick if the job of a hint is ours and has ended.

    Raises JobNotEnded or Unavailable if the message has to be delivered again, RequestError if its job cannot be ours.
    """
    young = hint.published is not None and 0 <= clock() - hint.published < PATIENCE
    try:
        job = find(hint, settings, vertex, parallel)
        if job is not None and job.ended:
            ticks.publish({"ended": job.name})
    except Unavailable as error:
        if young:
            raise
        text = f"Job {hint.number} is left to the next pass. {error.message.text}"
        log.warning(Message(error.message.code, text), event=Event.FAILED)
        return
    if job is None:
        LOGGER.debug("Job %s does not belong to this deployment", hint.number)
        return
    where = {"job": job.name, "item": job.item, "run": str(job.run), "region": job.region, "state": job.state}
    if job.ended:
        LOGGER.info("%s has ended (%s): tick published", job.name, job.state, extra={"event": Event.JOB_ENDED, **where})
    elif hint.ended and young:
        raise JobNotEnded(f"{job.name} is {job.state}, although a log entry reports its end.", code=Code.JOB_NOT_ENDED)
    elif hint.ended:
        text = "%s is %s, although a log entry reports its end: left to the next pass"
        LOGGER.info(text, job.name, job.state, extra=where)


def find(
    hint: JobHint,
    settings: Settings,
    vertex: Vertex,
    parallel: Callable[[Calls[Any], int], list[Any]] = run_parallel,
) -> ManagedJob | None:
    """Find the job in all regions where it may be; None if it is not ours. Raises Unavailable, RequestError."""
    if hint.name is not None:
        _check(hint.name, settings)
    regions = [hint.name.region] if hint.name else [region.name for region in settings.regions]
    names = [JobName(settings.project, region, hint.number) for region in regions]
    answers = parallel([partial(vertex.get, str(name)) for name in names], AT_ONCE)
    for answer in answers:  # a region that does not answer must not hide the answer of another
        if isinstance(answer, ManagedJob):
            return answer
    for answer in answers:
        if isinstance(answer, Unavailable):
            raise answer
    return None


def _check(name: JobName, settings: Settings) -> None:
    """Refuse a job that cannot be ours. A project number may be, because Vertex AI writes that into its names."""
    place, problems = "job in log entry", []
    if name.project != settings.project and not name.project.isdecimal():
        found = f"project {shown(name.project)} is not the project of this deployment"
        problems.append(problem(place, found, f"Name a job in {settings.project}", code=Code.REQUEST_PROJECT))
    if settings.region(name.region) is None:
        known = ", ".join(region.name for region in settings.regions)
        fix = f"Name a job in {known}, or add the region to {settings.where('regions')}"
        problems.append(problem(place, f"region {shown(name.region)} is not configured", fix, code=Code.REQUEST_REGION))
    if problems:
        raise RequestError(problems)
