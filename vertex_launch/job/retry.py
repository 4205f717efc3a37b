"""The next attempt of a job that has ended: the same job, perhaps in another region. Pure; called by a pass."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from google.cloud.aiplatform_v1.types import CustomJob

from vertex_launch import addresses
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job import account, environment, labels, policy
from vertex_launch.job.arguments import Arguments, escape
from vertex_launch.job.findings import Findings
from vertex_launch.job.readback import tasks
from vertex_launch.job.request import JobRequest
from vertex_launch.model import RunId
from vertex_launch.settings.config import Settings

_REGIONAL = (
    "network",
    "reserved_ip_ranges",
    "psc_interface_config",
    "tensorboard",
    "experiment",
    "persistent_resource_id",
    "protected_artifact_location_id",
    "models",
)
"""Parts of a job spec that name something in the job's own region."""

STAMPED = re.compile(r"/aiplatform-custom-job-[\d:.-]+$")
"""The folder in a staging bucket that a job gets which names no output directory."""


def next_attempt(request: JobRequest, *, attempt: int, region: str, settings: Settings, api_key: str) -> JobRequest:
    """Return the request for the next attempt: the same job, which continues the same run.

    ``api_key`` is today's; an item's own key stays. In another region the job writes to that region's staging bucket. Raises
    ItemRejected if today's settings do not allow the job.
    """
    job = CustomJob(request.custom_job)
    _check_server(job, settings)
    job.labels = {**job.labels, labels.ATTEMPT: str(attempt)}
    for task in [task for pool in job.job_spec.worker_pool_specs for task in tasks(pool)]:
        changed = {environment.RESUME: "allow"}
        if any(variable.name == environment.BASE_URL for variable in task.env):
            changed[environment.BASE_URL] = escape(settings.base_url)
        if labels.KEY not in job.labels and any(variable.name == environment.API_KEY for variable in task.env):
            changed[environment.API_KEY] = escape(api_key)
        kept = [variable for variable in task.env if variable.name not in changed]
        task.env = [*kept, *({"name": name, "value": value} for name, value in changed.items())]
    if region != request.region:
        output = job.job_spec.base_output_directory
        here, there = _staging(request.region, settings), _staging(region, settings)
        output.output_uri_prefix = there + output.output_uri_prefix.removeprefix(here)
    _check(job, request.run, settings)
    return replace(request, region=region, custom_job=job)


def _check_server(job: CustomJob, settings: Settings) -> None:
    """Raise ItemRejected if a job reports to another W&B server than today's, whose key it must not send there."""
    for task in [task for pool in job.job_spec.worker_pool_specs for task in tasks(pool)]:
        url = environment.read(task.env).get(environment.BASE_URL, settings.base_url)
        if addresses.server(url) != addresses.server(settings.base_url):
            found = (
                f"its job reports to {url}, and this deployment uses {settings.base_url} now. Launch it again there."
            )
            raise ItemRejected(found, code=Code.NOT_RETRIED)


@dataclass(frozen=True)
class _Asker:
    """What a run spec asked for, as far as its job shows it."""

    run: RunId
    arguments: Arguments


def _check(job: CustomJob, run: RunId, settings: Settings) -> None:
    """Choose the account of a next attempt, and hold it to the policy like a first one. Raises ItemRejected."""
    findings, spec, values = Findings(), job.job_spec, dict[str, str]()
    place = Arguments("the job").place("service_account")
    spec.service_account = account.choose(spec.service_account, place, settings, findings)
    if spec.service_account != settings.default_account:
        values["service_account"] = spec.service_account
    output = spec.base_output_directory.output_uri_prefix
    staging = STAMPED.sub("", output)
    values["base_output_dir" if staging == output else "staging_bucket"] = staging
    policy.check(job, _Asker(run, Arguments("the job", values)), settings, findings)
    findings.check()


def other_regions(request: JobRequest, settings: Settings) -> list[str]:
    """Return the other regions in which the job could run, those after its own in the configuration first.

    None if its spec names anything in its region, or if its output is not in that region's staging bucket.
    """
    spec, here = request.custom_job.job_spec, _staging(request.region, settings)
    pools = spec.worker_pool_specs
    bound = (
        any(getattr(spec, name) for name in _REGIONAL)
        or request.custom_job.encryption_spec.kms_key_name
        or any(pool.nfs_mounts or getattr(pool, "lustre_mounts", ()) for pool in pools)
        or any(pool.machine_spec.reservation_affinity for pool in pools)
    )
    if bound or not here or not spec.base_output_directory.output_uri_prefix.startswith(here):
        return []
    names = [region.name for region in settings.regions]
    own = names.index(request.region)
    return [name for name in names[own + 1 :] + names[:own] if _staging(name, settings)]


def _staging(region: str, settings: Settings) -> str:
    """Return a region's staging bucket with a slash at its end, the empty text if it has none."""
    configured = settings.region(region)
    return f"{configured.staging_bucket.rstrip('/')}/" if configured and configured.staging_bucket else ""
