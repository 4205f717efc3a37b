"""From a CustomJob back to the item that it serves and to the request that made it. Pure; called by adapters and passes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from google.cloud.aiplatform_v1.types import CustomJob, CustomJobSpec, Scheduling

from vertex_launch import addresses
from vertex_launch.job import environment, labels, outcome
from vertex_launch.job.arguments import TASKS
from vertex_launch.job.request import JobRequest
from vertex_launch.log import Redactor
from vertex_launch.model import Kind, ManagedJob, RunId

DEFAULT_TIMEOUT = 7 * 86400
"""Seconds after which Vertex AI ends a job that names no timeout."""
DEFAULT_DISK = ("pd-ssd", 100)
"""Type and gigabytes of the boot disk of a pool that names none."""

_STRATEGIES = {member.value: member.name for member in Scheduling.Strategy}


def managed(job: CustomJob, *, deployment: str, region: str) -> ManagedJob | None:
    """Return what a CustomJob is for, None if it is not this deployment's.

    Its item label is believed only if the environment of its first worker pool says the same.
    """
    marks = dict(job.labels)
    if marks.get(labels.DEPLOYMENT) != labels.value(deployment) or not job.job_spec.worker_pool_specs:
        return None
    first = next((task.env for task in tasks(job.job_spec.worker_pool_specs[0])), ())
    variable = defaultdict(str, environment.read(first))
    item = variable[environment.ITEM]
    owner = variable[environment.BASE_URL], variable[environment.QUEUE_ENTITY]
    if marks.get(labels.ITEM) != labels.item_value(*owner, item):
        return None
    state = CustomJob.pb(job).state  # the bare number: reading an unknown one through proto-plus warns
    attempt = marks.get(labels.ATTEMPT, "")
    return ManagedJob(
        name=job.name,
        region=region,
        state=outcome.name(state),
        ended=outcome.is_ended(state),
        cancelling=outcome.name(state) == outcome.CANCELLING,
        item=item,
        run=RunId(variable[environment.ENTITY], variable[environment.PROJECT], variable[environment.RUN]),
        queue=variable[environment.QUEUE],
        attempt=int(attempt) if attempt.isdecimal() else 1,
        kind=Kind.SCHEDULER if marks.get(labels.KIND) == Kind.SCHEDULER.value else Kind.JOB,
        created=_seconds(job.create_time),
        started=_seconds(job.start_time),
        finished=_seconds(job.end_time),
        error=job.error.message or (f"code {job.error.code}" if job.error.code else ""),
        sweep=variable[environment.SWEEP],
        server=addresses.server(variable[environment.BASE_URL]),
        queue_entity=variable[environment.QUEUE_ENTITY],
        own_key=labels.KEY in marks,
        repeatable=not (job.job_spec.scheduling.disable_retries and job.start_time),
        strategy=_STRATEGIES.get(CustomJob.pb(job).job_spec.scheduling.strategy, ""),
        api_key=variable[environment.API_KEY],
    )


def _seconds(moment: Any) -> float:
    """Return Unix seconds, 0 for none. The message declares a Timestamp, and proto-plus gives a datetime for it."""
    return float(moment.timestamp()) if moment else 0


def request_of(job: CustomJob, *, deployment: str, region: str) -> JobRequest | None:
    """Return what made a CustomJob, without what Vertex AI added; None if it is not this deployment's."""
    mine = managed(job, deployment=deployment, region=region)
    if mine is None:
        return None
    asked = CustomJob(
        display_name=job.display_name,
        job_spec=job.job_spec,
        labels={key: value for key, value in job.labels.items() if _is_ours(key)},
        encryption_spec=job.encryption_spec if job.encryption_spec.kms_key_name else None,
    )
    _drop_defaults(asked.job_spec)
    return JobRequest(region, asked, None, mine.run)


def _is_ours(label: str) -> bool:
    """Return whether a create accepts a label: those of Google's services come back in a job, and are refused."""
    return re.fullmatch(r"[^\W\d_][\w-]{0,62}", label) is not None and not label.startswith("goog-")


def _drop_defaults(spec: CustomJobSpec) -> None:
    """Remove what Vertex AI may have filled in: what it takes if a create names none."""
    plain = CustomJobSpec.pb(spec)
    if plain.scheduling.timeout.seconds == DEFAULT_TIMEOUT:
        plain.scheduling.ClearField("timeout")
    if plain.scheduling.strategy == Scheduling.Strategy.STANDARD:
        plain.scheduling.ClearField("strategy")
    if not plain.scheduling.ListFields():
        plain.ClearField("scheduling")
    for pool in plain.worker_pool_specs:
        if pool.disk_spec.boot_disk_type == DEFAULT_DISK[0]:
            pool.disk_spec.ClearField("boot_disk_type")
        if pool.disk_spec.boot_disk_size_gb == DEFAULT_DISK[1]:
            pool.disk_spec.ClearField("boot_disk_size_gb")
        if not pool.disk_spec.ListFields():
            pool.ClearField("disk_spec")


def key_of(request: JobRequest) -> str:
    """Return the API key that a job reports with, the empty text if it is not in its spec."""
    all_tasks = [task for pool in request.custom_job.job_spec.worker_pool_specs for task in tasks(pool)]
    return next((environment.read(task.env).get(environment.API_KEY, "") for task in all_tasks), "")


def as_json(request: JobRequest) -> dict[str, Any]:
    """Return a request's CustomJob as JSON, without the API key, whoever brought it, and without a repository's credentials."""
    job: dict[str, Any] = CustomJob.to_dict(
        request.custom_job, use_integers_for_enums=False, always_print_fields_with_no_presence=False
    )
    for pool in job["job_spec"]["worker_pool_specs"]:
        for variable in [one for name in TASKS for one in pool.get(name, {}).get("env", ())]:
            if variable["name"] == environment.API_KEY:
                variable["value"] = Redactor.MARK
            elif variable["name"] == environment.PLAN:
                variable["value"] = re.sub(r'://[^/"\s]*@', f"://{Redactor.MARK}@", variable["value"])
    return job


def tasks(pool: Any) -> Iterator[Any]:
    """Return the container or Python package of a worker pool, nothing for an empty pool."""
    return (task for name in TASKS if (task := getattr(pool, name)))
