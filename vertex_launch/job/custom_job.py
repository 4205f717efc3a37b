"""From run spec to CustomJob, and back from a CustomJob to the item it serves. Pure; called by ``dispatcher`` and adapters.

``parse`` checks a run spec's shape, ``build`` makes the CustomJob that the SDK's ``aiplatform.CustomJob(...).submit(...)``
would send for the same arguments, with the item's image, command, environment and labels in it. Both report every problem
at once. The tests hold it against the SDK and against the official runner.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from google.cloud.aiplatform_v1.types import CustomJob, CustomJobSpec, Scheduling
from google.protobuf.duration_pb2 import Duration

from vertex_launch import problems
from vertex_launch.errors import ItemRejected, Message
from vertex_launch.job import environment, job_source, labels, outcome, policy, run_spec
from vertex_launch.job.arguments import IMAGE_FIELDS, TASKS, Given, JobArguments
from vertex_launch.job.findings import Findings
from vertex_launch.job.job_source import JobSource, SourceType
from vertex_launch.job.run_spec import own_key
from vertex_launch.log import Redactor
from vertex_launch.model import Item, Kind, ManagedJob, RunId, RunSpec
from vertex_launch.settings.config import Settings

__all__ = [
    "ARGUMENTS",
    "JobRequest",
    "build",
    "elsewhere",
    "managed",
    "next_attempt",
    "own_key",
    "parse",
    "request_of",
    "run_of",
    "shown",
]

ARGUMENTS = JobArguments(CustomJobSpec.pb(CustomJobSpec()).DESCRIPTOR, Scheduling.pb(Scheduling()).DESCRIPTOR)
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

SCHEDULER_COMMAND = ("wandb", "scheduler")
"""Entry point of a sweep's scheduler that is no job (wandb/sdk/launch/sweeps/scheduler.py)."""

MOST_NAME = 128
"""Characters of a display name."""


@dataclass(frozen=True)
class JobRequest:
    """A CustomJob ready to be created in ``region``.

    ``create_timeout`` is the spec's own deadline for that in seconds, ``run`` the W&B run that the job reports as,
    ``warnings`` what the item's author should be told although the job can start.
    """

    region: str
    custom_job: CustomJob = field(repr=False)
    create_timeout: float | None
    run: RunId
    warnings: tuple[Message, ...] = ()


def parse(item: Item) -> RunSpec:
    """Check the shape of an item's run spec, a mapping or its JSON. Raises ItemRejected with every problem."""
    findings = Findings()
    spec = run_spec.read(item, findings)
    if spec.resource:
        ARGUMENTS.read(spec.resource_args, _root(spec), findings, final=False)
    findings.check()
    return spec


def run_of(item: Item, spec: RunSpec, settings: Settings, entity: str) -> RunId:
    """Give the W&B run of an item from the queue of ``entity``: the spec's own, else one derived from the item."""
    run = spec.run_id or labels.run_id(settings.base_url, entity, item.id, settings.deployment)
    return RunId(spec.entity or entity, spec.project.lower(), run)


def build(
    item: Item,
    spec: RunSpec,
    settings: Settings,
    *,
    entity: str,
    api_key: str,
    now: datetime,
    source: JobSource | None = None,
    attempt: int = 1,
) -> JobRequest:
    """Make the CustomJob of an item from the queue of ``entity``. Raises ItemRejected with every problem.

    ``api_key`` is what the job reports with unless the item brings a key of its own. ``source`` is what the item's job
    artifact describes, None where the item names an image.
    """
    run, findings = run_of(item, spec, settings, entity), Findings()
    if spec.entry_point[:2] == SCHEDULER_COMMAND:
        spec = replace(spec, args=tuple(map(_unquoted, spec.args)))
    if source:
        spec = _sourced(spec, source, settings)
    given = ARGUMENTS.read(_filled(spec, run, settings), _root(spec), findings, final=True)
    region = _region(given, settings, findings)
    boot = _Boot(source, settings)
    variables = environment.official(
        item,
        spec,
        run,
        base_url=settings.base_url,
        entity=entity,
        api_key="" if boot.brings_key else api_key,
        image="" if boot.brings_code else spec.image,
        restarts=not given["disable_retries"],
    )
    if boot.needed:
        boot.check(given, spec, findings)
    pools = _pools(given, spec, variables, boot, findings)
    output = _output(given, settings, region, now, findings)
    findings.check()
    own_labels = labels.job_labels(
        deployment=settings.deployment,
        item=labels.item_value(settings.base_url, entity, item.id),
        run=run.id,
        queue=item.queue,
        attempt=attempt,
        kind=spec.kind,
        own_key=bool(spec.api_key),
    )
    job = _message(given, pools, output)
    job.display_name = (given["display_name"] or spec.name or f"{run.project} {run.id}")[:MOST_NAME]
    job.labels = {**(given["labels"] or {}), **own_labels}
    policy.check(job, given, spec, settings, findings)
    findings.check()
    return JobRequest(region, job, given["create_request_timeout"], run, tuple(findings.warnings))


def managed(job: CustomJob, *, deployment: str, region: str) -> ManagedJob | None:
    """Read what a CustomJob is for; None when it is not this deployment's.

    Its item label is believed only where the environment of its first worker pool says the same.
    """
    marks = dict(job.labels)
    if marks.get(labels.DEPLOYMENT) != labels.value(deployment) or not job.job_spec.worker_pool_specs:
        return None
    pool = job.job_spec.worker_pool_specs[0]
    said = environment.read(next((pool_task.env for name in TASKS if (pool_task := getattr(pool, name))), ()))
    base_url, entity, item = (
        said.get(name, "") for name in (environment.BASE_URL, environment.QUEUE_ENTITY, environment.ITEM)
    )
    if marks.get(labels.ITEM) != labels.item_value(base_url, entity, item):
        return None
    state = CustomJob.pb(job).state  # the bare number: reading an unknown one through proto-plus warns
    attempt = marks.get(labels.ATTEMPT, "")
    return ManagedJob(
        name=job.name,
        region=region,
        state=outcome.name(state),
        ended=outcome.is_ended(state),
        cancelling=outcome.is_cancelling(state),
        item=item,
        run=RunId(*(said.get(name, "") for name in (environment.ENTITY, environment.PROJECT, environment.RUN))),
        queue=said.get(environment.QUEUE, ""),
        attempt=int(attempt) if attempt.isdecimal() else 1,
        kind=Kind.SCHEDULER if marks.get(labels.KIND) == Kind.SCHEDULER.value else Kind.JOB,
        created=job.create_time.timestamp() if job.create_time else 0,
        started=job.start_time.timestamp() if job.start_time else 0,
        finished=job.end_time.timestamp() if job.end_time else 0,
        error=job.error.message or (f"code {job.error.code}" if job.error.code else ""),
        sweep=said.get(environment.SWEEP, ""),
        repeatable=not (job.job_spec.scheduling.disable_retries and job.start_time),
        api_key=said.get(environment.API_KEY, ""),
    )


def request_of(job: CustomJob, *, deployment: str, region: str) -> JobRequest | None:
    """Give what made a CustomJob, without what Vertex AI added; None when it is not this deployment's."""
    mine = managed(job, deployment=deployment, region=region)
    if mine is None:
        return None
    asked = CustomJob(
        display_name=job.display_name,
        job_spec=job.job_spec,
        labels=dict(job.labels),
        encryption_spec=job.encryption_spec,
    )
    return JobRequest(region, asked, None, mine.run)


def key_of(request: JobRequest) -> str:
    """Give the API key that a job reports with, so that it can be hidden; empty text for none."""
    pools = request.custom_job.job_spec.worker_pool_specs
    tasks = [task for pool in pools for name in TASKS if (task := getattr(pool, name))]
    return next((environment.read(task.env).get(environment.API_KEY, "") for task in tasks), "")


def next_attempt(request: JobRequest, *, attempt: int, region: str, settings: Settings, api_key: str) -> JobRequest:
    """Give the request for the next attempt: the same job, which goes on with the same run.

    ``api_key`` is today's; an item's own key stays. In another region it writes to that region's staging bucket.
    """
    job = CustomJob(request.custom_job)
    job.labels = {**job.labels, labels.ATTEMPT: str(attempt)}
    for pool in job.job_spec.worker_pool_specs:
        for task in [task for name in TASKS if (task := getattr(pool, name))]:
            changed = {environment.RESUME: "allow"}
            if labels.KEY not in job.labels and any(variable.name == environment.API_KEY for variable in task.env):
                changed[environment.API_KEY] = environment.escape(api_key)
            kept = [variable for variable in task.env if variable.name not in changed]
            task.env = [*kept, *({"name": name, "value": value} for name, value in changed.items())]
    if region != request.region:
        output = job.job_spec.base_output_directory
        here, there = _staging(request.region, settings), _staging(region, settings)
        output.output_uri_prefix = there + output.output_uri_prefix.removeprefix(here)
    return replace(request, region=region, custom_job=job)


def elsewhere(request: JobRequest, settings: Settings) -> list[str]:
    """Give the other regions in which the job could run as well, those after its own in the configuration first.

    None when anything in its spec is bound to its region, or its output does not lie in that region's staging bucket.
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
    """Give a region's staging bucket with a slash behind it, empty text where it has none."""
    configured = settings.region(region)
    return f"{configured.staging_bucket.rstrip('/')}/" if configured and configured.staging_bucket else ""


def shown(request: JobRequest) -> dict[str, Any]:
    """Give a request's CustomJob as JSON, with the API key hidden whoever brought it."""
    job: dict[str, Any] = CustomJob.to_dict(
        request.custom_job, use_integers_for_enums=False, always_print_fields_with_no_presence=False
    )
    for pool in job["job_spec"]["worker_pool_specs"]:
        for variable in [one for name in TASKS for one in pool.get(name, {}).get("env", ())]:
            if variable["name"] == environment.API_KEY:
                variable["value"] = Redactor.MARK
    return job


def _root(spec: RunSpec) -> str:
    return f"resource_args.{spec.resource}"


def _filled(spec: RunSpec, run: RunId, settings: Settings) -> dict[str, Any]:
    """Give the resource args with W&B's macros, and those environment variables that the policy names, replaced."""
    macros = {
        "project_name": run.project,
        "entity_name": run.entity,
        "run_id": run.id,
        "run_name": spec.name,
        "image_uri": spec.image,
        "author": spec.author or "",
    }
    escaped = {name: environment.escape(value) for name, value in macros.items()}
    filled: dict[str, Any] = run_spec.fill(
        spec.resource_args, {**settings.macro_values, **macros}, {**settings.macro_values, **escaped}
    )
    return filled


def _region(given: Given, settings: Settings, findings: Findings) -> str:
    """Choose where the job runs: the spec's location, else the first region of the deployment."""
    if given["project"] and given["project"] != settings.project:
        found = f"this deployment runs jobs in project {settings.project}, not in {problems.shown(given['project'])}"
        findings.wrong(given.place("project"), found, "Remove it, or push the item to a queue of the other project")
    names = [region.name for region in settings.regions]
    region = given["location"] or names[0]
    if region not in names:
        found = f"this deployment has no region {problems.shown(region)}"
        remedy = f"Use {' or '.join(names)}, or add the region to regions in vertex-launch.yaml"
        findings.wrong(given.place("location"), found, remedy)
    return str(region)


def _output(given: Given, settings: Settings, region: str, now: datetime, findings: Findings) -> str:
    """Give the job's output directory: the spec's own, else the SDK's timestamped one in the staging bucket."""
    configured = settings.region(region)
    staging = given["staging_bucket"] or (configured and configured.staging_bucket)
    if not staging:
        if configured and not findings.about(given.place("staging_bucket")):
            findings.wrong(
                given.place("staging_bucket"),
                f"it is missing, and the deployment has none for {region}",
                "Write gs://BUCKET there, or set staging_bucket of the region in vertex-launch.yaml",
            )
        return ""
    if given["base_output_dir"]:
        return str(given["base_output_dir"])
    stamp = now.replace(tzinfo=None).isoformat(sep="-", timespec="milliseconds")
    root = staging.removesuffix("/") if staging.startswith("gs://") else f"gs://{staging.removesuffix('/')}"
    return f"{root}/aiplatform-custom-job-{stamp}"


def _unquoted(arg: str) -> str:
    """Take away the quotes that ``wandb launch-sweep`` puts round arguments for a shell, which is none of ours."""
    found = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"", arg)
    return (found[1] or found[2] or "") if found else arg


def _sourced(spec: RunSpec, source: JobSource, settings: Settings) -> RunSpec:
    """Give the run spec with the image and the entry point of its job artifact in it; the item's own entry point wins."""
    image = job_source.image_of(source, spec, settings)
    entry_point = spec.entry_point or source.entry_point
    if not entry_point and source.type is not SourceType.IMAGE:
        raise ItemRejected(
            f"job: {source.name} has no entry point. Make it anew with one (wandb job create --entry-point), or launch it with "
            "wandb launch --entry-point."
        )
    return replace(spec, image=image, entry_point=entry_point)


@dataclass(frozen=True)
class _Boot:
    """Whether, and for what, a container begins with the bootstrap instead of the program itself."""

    source: JobSource | None
    settings: Settings

    @property
    def brings_code(self) -> bool:
        return self.source is not None and self.source.type is not SourceType.IMAGE

    @property
    def brings_key(self) -> bool:
        return self.settings.api_key_delivery == "secret"

    @property
    def needed(self) -> bool:
        return self.brings_code or self.brings_key

    def check(self, given: Given, spec: RunSpec, findings: Findings) -> None:
        """Report what keeps the bootstrap from reading the secrets that it has to."""
        account = given["service_account"]
        if self.brings_key and spec.api_key:
            findings.wrong(
                "_wandb_api_key",
                "the item brings a key of its own, which would stand in the job's spec, and this deployment keeps keys out of "
                "it (vertex-launch.yaml: api_key_delivery)",
                "Launch it without one",
            )
        if self.brings_key and not account:
            findings.wrong(
                given.place("service_account"),
                "it is missing, and the job has to read the W&B key from Secret Manager as its own account "
                "(vertex-launch.yaml: api_key_delivery)",
                f"Name an account that has roles/secretmanager.secretAccessor on {self.settings.key_secret}",
            )
        token = self.source and job_source.token_secret(self.source, self.settings)
        if self.source and not token and job_source.has_password(self.source):
            findings.odd(
                f"job: the address of the repository of {self.source.name} holds a password, which stands in the job's spec. "
                "Name a secret for its host in git_token_secrets (vertex-launch.yaml)."
            )
        if token and not account:
            findings.wrong(
                given.place("service_account"),
                "it is missing, and the job has to read the token for its repository as its own account (vertex-launch.yaml: "
                "git_token_secrets)",
                f"Name an account that has roles/secretmanager.secretAccessor on {token}",
            )

    def plan(self, task: Mapping[str, Any], spec: RunSpec) -> str | None:
        """Give what a container has to do before its program; in one that is not of the item's image its code is there."""
        own = task.get(IMAGE_FIELDS[TASKS[0]]) == spec.image
        if not (self.brings_key or (own and self.brings_code)):
            return None
        return job_source.plan(self.source if own else None, spec, self.settings)


def _pools(
    given: Given, spec: RunSpec, variables: Mapping[str, str], boot: _Boot, findings: Findings
) -> Sequence[Mapping[str, Any]]:
    """Give the worker pools with the item's command, arguments and environment in them."""
    place, command, reached = given.place("worker_pool_specs"), spec.entry_point, False
    pools = []
    for index, pool in enumerate(given["worker_pool_specs"] or ()):
        done = dict(pool)
        for name in TASKS:
            if name in pool:
                where, task = f"{place}[{index}].{name}", dict(pool[name])
                plan = boot.plan(task, spec) if name == TASKS[0] else None
                official = {**variables, environment.PLAN: environment.escape(plan)} if plan else variables
                task["env"] = environment.merged(task.get("env", ()), official, f"{where}.env", findings)
                done[name] = task
                if name == TASKS[1] and command:
                    found = "the item has an entry point, and a Python package pool cannot take one"
                    findings.wrong(where, found, "Remove overrides.entry_point, or use a container_spec")
                elif name == TASKS[1] or task.get(IMAGE_FIELDS[name]) == spec.image:
                    _command(task, command, spec.args)
                    reached = True
                if plan:
                    _wrap(task, where, findings)
                elif name == TASKS[1] and boot.needed:
                    found = "a Python package pool cannot read the W&B key or a job's code by itself"
                    findings.wrong(where, found, "Use a container_spec with a command")
        pools.append(done)
    if not reached and pools and not findings.problems:
        _not_reached(given, spec, command, findings)
    return pools


def _wrap(task: dict[str, Any], place: str, findings: Findings) -> None:
    """Put the bootstrap before the command of a container, which follows as its arguments."""
    if not task.get("command"):
        findings.wrong(
            place,
            "the image runs a command that only the image knows, and nothing can be put before that to read the W&B key "
            "(vertex-launch.yaml: api_key_delivery)",
            "Give the container_spec a command, or the item an entry point (wandb launch --entry-point) for its own image",
        )
        return
    task["args"] = [*task["command"], *task.get("args", ())]
    task["command"] = ["python3", "-c", environment.escape(job_source.bootstrap())]


def _command(task: dict[str, Any], entry_point: Sequence[str], args: Sequence[str]) -> None:
    """Put the item's command into a pool's task; without an entry point the image's or the user's own stays."""
    escaped = [environment.escape(text) for text in args]
    if entry_point:
        task["command"] = [*map(environment.escape, entry_point), *escaped]
    else:
        task["args"] = [*task.get("args", ()), *escaped]


def _not_reached(given: Given, spec: RunSpec, command: Sequence[str], findings: Findings) -> None:
    """Say that no worker pool runs the item's image: wrong where it overrides a command, else only odd."""
    found = f"no worker pool runs the item's image {problems.shown(spec.image)}"
    remedy = "Write ${image_uri} as the image_uri of the pools that are to run it"
    if command or spec.args:
        findings.wrong(
            given.place("worker_pool_specs"), f"{found}, so its entry point and args would reach nothing", remedy
        )
    else:
        findings.odd(f"{given.place('worker_pool_specs')}: {found}. {remedy}.")


def _message(given: Given, pools: Sequence[Mapping[str, Any]], output: str) -> CustomJob:
    """Map arguments to the message as the SDK does: what is empty, zero or false stays unset, but for max_wait_duration."""
    fields = {name: given[name] for name in ARGUMENTS.in_job_spec if given[name]}
    job_spec = {**fields, "worker_pool_specs": pools, "base_output_directory": {"output_uri_prefix": output}}
    scheduling = {name: given[name] for name in ("restart_job_on_worker_restart", "disable_retries") if given[name]}
    if given["timeout"]:
        scheduling["timeout"] = Duration(seconds=given["timeout"])
    if given["scheduling_strategy"]:
        scheduling["strategy"] = given["scheduling_strategy"]
    if given["max_wait_duration"] is not None:
        scheduling["max_wait_duration"] = Duration(seconds=given["max_wait_duration"])
    if scheduling:
        job_spec["scheduling"] = scheduling
    job = CustomJob(job_spec=CustomJobSpec(**job_spec))
    if given["encryption_spec_key_name"]:
        job.encryption_spec.kms_key_name = given["encryption_spec_key_name"]
    return job
