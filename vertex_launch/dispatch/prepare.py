"""What W&B knows about the items of a round: their job artifacts and their sweeps; and the request for an item's CustomJob.

W&B is asked for all items of a round at once. Called by ``run`` and ``preview``.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

from google.cloud.aiplatform_v1.types import CustomJob

from vertex_launch import log
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Services
from vertex_launch.errors import ItemDeferred, ItemFault, ItemRejected, LaunchError, Message, Unavailable
from vertex_launch.job import environment, job_source, run_spec
from vertex_launch.job.build import build
from vertex_launch.job.job_source import JobSource, SourceType
from vertex_launch.job.queue_config import IMAGE as ANY_IMAGE
from vertex_launch.job.request import JobRequest
from vertex_launch.job.run_spec import RunSpec
from vertex_launch.log import Event, Redactor
from vertex_launch.model import Item, Kind, RunId, SchedulerView
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings

T = TypeVar("T")

AT_ONCE = 8
"""Job artifacts that are looked up in parallel."""
ACTIVE_SWEEP = ("RUNNING", "PAUSED")
"""States of a sweep in which its runs start, as in the official agent."""


@dataclass(frozen=True)
class Prepared:
    """What is known about a round of items from the queues of ``entity``.

    ``specs`` are by item id, ``sources`` by the job artifact's full name. ``sweeps`` are states, the empty text if a sweep does
    not exist; a sweep that W&B does not show is missing. ``schedulers`` are those of the sweeps for which items say that their
    W&B job is the scheduler.
    """

    entity: str
    specs: Mapping[str, RunSpec | ItemRejected | ItemDeferred]
    sources: Mapping[str, JobSource | ItemRejected | ItemDeferred]
    sweeps: Mapping[RunId, str]
    schedulers: Mapping[RunId, SchedulerView | None]


def prepare(
    settings: Settings, services: Services, entity: str, items: Sequence[Item], until: float = math.inf
) -> Prepared:
    """Parse the run specs of items, none after ``until``, and ask W&B for the job artifacts and sweeps that they name."""
    parsed: dict[str, RunSpec | ItemRejected | ItemDeferred] = {}
    for item in items:
        try:
            check_time(services.clock(), until)
            parse = partial(run_spec.parse, item, settings, entity)
            parsed[item.id] = checked(parse, f"item {item.id}", item=item.id)
        except (ItemRejected, ItemDeferred) as error:
            parsed[item.id] = error
    specs = [spec for spec in parsed.values() if isinstance(spec, RunSpec)]
    names = sorted({_job(spec, entity) for spec in specs if _needs_source(spec)})
    found = services.run_parallel([partial(_find, services, settings, name, entity, until) for name in names], AT_ONCE)
    sweeps = sorted({_sweep(spec, entity) for spec in specs if _is_of_sweep(spec)}, key=str)
    swept = sorted({spec.run for spec in specs if _is_job_that_schedules(spec, entity)}, key=str)
    states = _ask(services.queue.sweeps, sweeps)
    schedulers = _ask(services.queue.schedulers, swept)
    return Prepared(entity, parsed, dict(zip(names, found, strict=True)), states, schedulers)


def _ask(question: Callable[[Sequence[RunId]], Mapping[RunId, T]], wanted: Sequence[RunId]) -> Mapping[RunId, T]:
    """Return W&B's answers, none if it cannot answer now."""
    try:
        return question(wanted) if wanted else {}
    except Unavailable as error:
        log.warning(error.message)
        return {}


def checked(check: Callable[[], T], what: str, **fields: str) -> T:
    """Return what a check returns. Any error that is not one of ours is logged and raised as ItemFault."""
    try:
        return check()
    except LaunchError:
        raise
    except Exception as error:
        unexpected = Message(Code.ITEM_FAULT, f"Unexpected error in the check of {what}.")
        log.write(logging.ERROR, unexpected, error=error, event=Event.FAILED, **fields)
        raise ItemFault from error


def check_time(now: float, until: float) -> None:
    """Raise ItemDeferred if the time of the checks is over."""
    if now > until:
        text = "The items before this one took the time of this pass. The next pass checks it."
        raise ItemDeferred(text, code=Code.LATE_PASS, warn=False)


def build_request(
    item: Item, prepared: Prepared, settings: Settings, *, api_key: str, now: datetime, redact: Redactor
) -> tuple[RunSpec, JobRequest]:
    """Build the request for a prepared item's CustomJob. Raises ItemRejected, ItemDeferred.

    ``redact`` knows the key that must not be in the job's spec if ``api_key_delivery`` is ``secret``.
    """
    spec = prepared.specs[item.id]
    if not isinstance(spec, RunSpec):
        raise spec
    spec, entity = _with_kind(item, spec, prepared), prepared.entity
    make = partial(build, item, spec, entity=entity, api_key=api_key, now=now)
    if _needs_source(spec):
        request = _with_source(make, _job(spec, entity), prepared, settings, redact)
    else:
        request = make(settings=settings)
    spec = replace(spec, kind=request.kind)
    if _is_of_sweep(spec):
        _check_sweep(_sweep(spec, entity), prepared.sweeps, entity)
    if settings.api_key_delivery == "secret" and _shows_key(item, request, redact):
        raise ItemRejected(
            "The run spec or the queue configuration contains a W&B API key, but this deployment keeps keys out of job specs "
            f"(see {settings.where('api_key_delivery')}). Remove it: the job gets {environment.API_KEY} without it.",
            code=Code.SPEC_KEY,
        )
    return spec, request


def _shows_key(item: Item, request: JobRequest, redact: Redactor) -> bool:
    """Return whether our key is in what was asked for (values are whole) or in the job (macros are filled).

    Keys that other items bring do not count: what one item calls a key could be the name of another one's image.
    """
    spec = json.loads(item.spec) if isinstance(item.spec, str) else item.spec
    return redact.shows_ours(json.dumps([spec, CustomJob.to_dict(request.custom_job)]))


# Job artifacts


def _needs_source(spec: RunSpec) -> bool:
    """Return whether a job artifact describes what runs. If an item names both, its image counts."""
    return bool(spec.job) and not spec.image


def _job(spec: RunSpec, entity: str) -> str:
    """Return the job's full name, defaulting to the run's entity and project and to the version ``latest``."""
    parts = spec.job.split("/")
    owner = [spec.entity or entity, spec.project]
    name = "/".join([*owner[: max(0, 3 - len(parts))], *parts])
    return name if ":" in parts[-1] else f"{name}:latest"


def _with_source(
    make: Callable[..., JobRequest], name: str, prepared: Prepared, settings: Settings, redact: Redactor
) -> JobRequest:
    """Build the request for an item whose job artifact describes what runs.

    If the artifact belongs to another entity, what is wrong with the item itself comes first, whether or not the artifact
    exists. Whatever is wrong with the artifact has one sentence.
    """
    source, is_own = prepared.sources[name], _is_own(name, prepared.entity)
    if not is_own:
        _check_item(make, settings)
    if isinstance(source, ItemRejected | ItemDeferred):
        raise source
    for secret in source.credentials:
        redact.add(secret)
    try:
        return make(settings=settings, source=source)
    except ItemRejected as error:
        raise error if is_own else _hidden(name) from error


def _check_item(make: Callable[..., JobRequest], settings: Settings) -> None:
    """Raise ItemRejected if an item could run no job artifact at all, whatever its image and its entry point."""
    errors, policy = list[ItemRejected](), settings.policy
    if policy.images is not None:
        policy = policy.model_copy(update={"images": (*policy.images, ANY_IMAGE)})
    for entry_point in ((), ("python",)):
        source = JobSource("job", SourceType.IMAGE, entry_point, image=ANY_IMAGE)
        try:
            make(settings=settings.model_copy(update={"policy": policy}), source=source)
        except ItemRejected as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _is_own(name: str, entity: str) -> bool:
    return name.partition("/")[0].lower() == entity.lower()


def _hidden(name: str) -> ItemRejected:
    """Return the one error for a job artifact of another entity, whatever is wrong with it."""
    found = (
        f"job: {shown(name)} is not a job that this deployment can run. Check its name, and whether the API key of this "
        "deployment may see it."
    )
    return ItemRejected(found, code=Code.ARTIFACT_NOT_FOUND)


def _find(
    services: Services, settings: Settings, name: str, entity: str, until: float
) -> JobSource | ItemRejected | ItemDeferred:
    """Look up a job artifact."""
    try:
        check_time(services.clock(), until)
        return checked(lambda: job_source.read(services.jobs.find(name), settings), f"job {name}")
    except ItemRejected as error:
        return error if error.message.code is Code.ARTIFACT_NAME or _is_own(name, entity) else _hidden(name)
    except ItemDeferred as error:
        return error
    except Unavailable as error:
        log.warning(error.message)
        found = f"W&B cannot show job {name} at the moment. The next pass asks again."
        return ItemDeferred(found, code=Code.ARTIFACT_UNAVAILABLE)


# Sweeps


def _is_job_that_schedules(spec: RunSpec, entity: str) -> bool:
    """Return whether an item says that its W&B job is a sweep's scheduler, about which W&B can be asked."""
    return spec.kind is Kind.SCHEDULER and not spec.entry_point and spec.run.entity == entity


def _with_kind(item: Item, spec: RunSpec, prepared: Prepared) -> RunSpec:
    """Return the run spec of an item, as that of an ordinary job unless it is or W&B shows that it is a scheduler."""
    if spec.kind is Kind.JOB or spec.entry_point:
        return spec
    is_known = _is_job_that_schedules(spec, prepared.entity)
    if is_known and spec.run not in prepared.schedulers:
        found = f"W&B cannot show sweep {spec.run} at the moment. The next pass asks again."
        raise ItemDeferred(found, code=Code.SWEEP_UNAVAILABLE)
    view = prepared.schedulers.get(spec.run) if is_known else None
    fits = view is not None and view.job == spec.job and view.fits(spec.run.id, item.queue)
    return spec if fits else replace(spec, kind=Kind.JOB)


def _is_of_sweep(spec: RunSpec) -> bool:
    return bool(spec.sweep_id) and spec.kind is Kind.JOB


def _sweep(spec: RunSpec, entity: str) -> RunId:
    return RunId(spec.entity or entity, spec.project, spec.sweep_id)


def _check_sweep(sweep: RunId, states: Mapping[RunId, str], entity: str) -> None:
    """Raise ItemDeferred or ItemRejected unless the sweep's runs may start.

    What is wrong with a sweep of another entity is not said, because that would show whether it exists.
    """
    state = states.get(sweep)
    if state not in ACTIVE_SWEEP and sweep.entity.lower() != entity.lower():
        found = f"Sweep {sweep} cannot be used now. It must be running, and visible to the API key of this deployment."
        raise ItemDeferred(found, code=Code.SWEEP_UNAVAILABLE)
    if state is None:
        found = f"W&B cannot show sweep {sweep} at the moment. The next pass asks again."
        raise ItemDeferred(found, code=Code.SWEEP_UNAVAILABLE)
    if state == "PENDING":
        found = f"Sweep {sweep} is pending. Its runs start once its scheduler runs."
        raise ItemDeferred(found, code=Code.SWEEP_PENDING)
    if not state:
        found = f"sweep_id: sweep {sweep} does not exist. Launch the run without it, or start the sweep again."
        raise ItemRejected(found, code=Code.SWEEP_MISSING)
    if state not in ACTIVE_SWEEP:
        raise ItemRejected(
            f"sweep_id: sweep {sweep} is {state}, and runs start only while their sweep is {' or '.join(ACTIVE_SWEEP)}. "
            "Resume the sweep, then launch the run again if it is still wanted.",
            code=Code.SWEEP_ENDED,
        )
