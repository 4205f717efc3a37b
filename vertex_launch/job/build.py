"""Build the CustomJob of an item: what the SDK's ``aiplatform.CustomJob(...).submit(...)`` would send for its arguments.

It has the item's image, command, environment and labels in it. The tests compare it with the SDK and with the official
runner. Pure; called by ``prepare`` and the preflight.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from google.cloud.aiplatform_v1.types import CustomJob, CustomJobSpec
from google.protobuf.duration_pb2 import Duration

from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job import account, boot, environment, job_source, labels, policy, refusals, secure_mode
from vertex_launch.job.arguments import IMAGE_FIELDS, IN_JOB_SPEC, TASKS, Arguments, check_images, escape
from vertex_launch.job.boot import Boot
from vertex_launch.job.findings import Findings
from vertex_launch.job.job_source import JobSource, SourceType
from vertex_launch.job.request import JobRequest
from vertex_launch.job.run_spec import RunSpec
from vertex_launch.limits import LONGEST_JOB
from vertex_launch.log import Redactor
from vertex_launch.model import SCHEDULER_COMMAND, Item, Kind
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings

MOST_NAME = 128
"""Characters of a display name."""


def build(
    item: Item,
    spec: RunSpec,
    settings: Settings,
    *,
    entity: str,
    api_key: str,
    now: datetime,
    source: JobSource | None = None,
) -> JobRequest:
    """Build the CustomJob for the first attempt of an item. Raises ItemRejected with every problem.

    ``entity`` owns the item's queue. The job reports with ``api_key`` unless the item brings a key of its own. ``source`` is
    what the item's job artifact describes, None if the item names an image.
    """
    asked, findings, run = spec, Findings(warnings=list(spec.warnings)), spec.run
    if spec.entry_point[:2] == SCHEDULER_COMMAND:
        spec = replace(spec, args=tuple(map(_unquoted, spec.args)))
    if source:
        spec = _with_source(spec, source, settings)
    named, place = spec.arguments["service_account"] or "", spec.arguments.place("service_account")
    runs_as = account.choose(named, place, settings, findings)
    spec = replace(spec, arguments=spec.arguments.but(service_account=runs_as))
    arguments, bootstrap = spec.arguments, Boot(spec, source, settings)
    check_images(arguments, findings)
    region = _region(arguments, settings, findings)
    image, api_key = "" if bootstrap.brings_code else spec.image, "" if bootstrap.brings_key else api_key
    variables = environment.official(item, spec, settings, entity=entity, api_key=api_key, image=image)
    if bootstrap.is_needed:
        bootstrap.check(findings)
    pools = _pools(spec, variables, bootstrap, findings)
    output = _output(arguments, settings, region, now, findings)
    findings.check()
    job = _message(arguments, pools, output)
    job.display_name = (arguments["display_name"] or spec.name or f"{run.project} {run.id}")[:MOST_NAME]
    _check_size(CustomJob.pb(job).ByteSize())
    spec = replace(spec, kind=_kind(spec))
    job.labels = {**(arguments["labels"] or {}), **job_labels(item, spec, settings, entity)}
    _check_keys(asked, spec, api_key, findings)
    policy.check(job, asked, settings, findings)
    if job.job_spec.persistent_resource_id and settings.policy.persistent_resources is None:
        findings.warn(
            f"{arguments.place('persistent_resource_id')}: the job can run as the account of the persistent resource "
            f"{shown(job.job_spec.persistent_resource_id)}, whatever account it names. If it enforces another account than "
            f"Google's, have it added to {settings.where('policy', 'persistent_resources')}.",
            Code.POLICY_POWER,
        )
    secure_mode.check(asked, spec, settings, findings)
    findings.check()
    refusals.check(arguments, findings)
    findings.check()
    return JobRequest(region, job, arguments["create_request_timeout"], run, tuple(findings.warnings))


def _kind(spec: RunSpec) -> Kind:
    """Return what the job is for. Only a scheduler that runs alone is a scheduler: a first pool has one replica."""
    pools = [pool for pool in spec.arguments["worker_pool_specs"] or () if pool]
    if spec.kind is Kind.JOB or len(pools) != 1:
        return Kind.JOB
    task = pools[0].get(TASKS[0], {})
    is_own = task.get(IMAGE_FIELDS[TASKS[0]]) == spec.image and (spec.entry_point or not task.get("command"))
    return Kind.SCHEDULER if is_own else Kind.JOB


def _check_keys(asked: RunSpec, spec: RunSpec, api_key: str, findings: Findings) -> None:
    """Report a key in what everyone who lists jobs and runs can read, and what later passes know the job by.

    Warn about one in what W&B shows of the run, in names as well as in values. ``asked`` is the run spec as it was pushed.
    """
    keys = [_json(key)[1:-1] for key in (spec.api_key, api_key) if len(key) >= Redactor.SHORTEST]
    places: dict[str, Any] = {"run_id": spec.run.id, "name": spec.name, "project": spec.project, "entity": spec.entity}
    places |= {spec.arguments.place(name): spec.arguments[name] or "" for name in ("display_name", "labels")}
    for place, value in places.items():
        if _holds(value, keys):
            findings.wrong(place, "it contains a W&B API key, which everyone would see", "Remove it", Code.SPEC_KEY)
    for name in ("run_config", "files", "artifacts", "entry_point", "args"):
        if _holds(getattr(asked, name), keys):
            found = "it contains a W&B API key, which everyone who may see the run or its job can read"
            findings.warn(f"overrides.{name}: {found}. Remove it.", Code.SPEC_KEY)


def _holds(value: Any, keys: Sequence[str]) -> bool:
    text = _json(value) if keys else ""
    return any(key in text for key in keys)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).lower()


def job_labels(item: Item, spec: RunSpec, settings: Settings, entity: str) -> Mapping[str, str]:
    """Return the labels of the first job of an item from the queue of ``entity``."""
    return {
        **({labels.KEY: "item"} if spec.api_key else {}),
        labels.DEPLOYMENT: labels.value(settings.deployment),
        labels.ITEM: labels.item_value(settings.base_url, entity, item.id),
        labels.RUN: labels.value(spec.run.id),
        labels.QUEUE: labels.value(item.queue),
        labels.ATTEMPT: "1",
        labels.KIND: spec.kind.value,
        labels.OFFICIAL_RUN: labels.value(spec.run.id),
    }


def _with_source(spec: RunSpec, source: JobSource, settings: Settings) -> RunSpec:
    """Return the run spec with what its job artifact describes; the item's own entry point wins. Raises ItemRejected."""
    image, entry_point = job_source.image_of(source, spec, settings), spec.entry_point or source.entry_point
    if not entry_point and source.type is not SourceType.IMAGE:
        other = "" if settings.secure_mode else ", or launch it with wandb launch --entry-point"
        found = (
            f"job: {source.name} has no entry point. Create it again with one (wandb job create --entry-point){other}."
        )
        raise ItemRejected(found, code=Code.ARTIFACT_INVALID)
    return replace(spec, image=image, entry_point=entry_point, arguments=spec.arguments.with_image(image))


def _region(arguments: Arguments, settings: Settings, findings: Findings) -> str:
    """Return where the job runs: the spec's location, else the first region of the deployment."""
    if arguments["project"] and arguments["project"] != settings.project:
        found = f"this deployment runs jobs in project {settings.project}, not in {shown(arguments['project'])}"
        remedy = "Remove it, or push the item to a queue of a deployment for that project"
        findings.wrong(arguments.place("project"), found, remedy, Code.SPEC_PROJECT)
    names = [region.name for region in settings.regions]
    region = arguments["location"] or names[0]
    if region not in names:
        found = f"this deployment has no region {shown(region)}"
        remedy = f"Use {' or '.join(names)}, or add the region to {settings.where('regions')}"
        findings.wrong(arguments.place("location"), found, remedy, Code.SPEC_REGION)
    return str(region)


def _output(arguments: Arguments, settings: Settings, region: str, now: datetime, findings: Findings) -> str:
    """Return the job's output directory: the spec's own, else the SDK's timestamped one in the staging bucket."""
    configured, place = settings.region(region), arguments.place("staging_bucket")
    staging = arguments["staging_bucket"] or (configured and configured.staging_bucket)
    if not staging:
        if configured:
            found = f"it is missing, and region {region} has no staging bucket in the configuration"
            bucket = settings.where("regions", settings.regions.index(configured), "staging_bucket")
            remedy = f"Set it to gs://BUCKET, or set {bucket}"
            findings.wrong(place, found, remedy, Code.SPEC_MISSING)
        return ""
    if arguments["base_output_dir"]:
        return str(arguments["base_output_dir"])
    stamp = now.replace(tzinfo=None).isoformat(sep="-", timespec="milliseconds")
    root = staging.removesuffix("/") if staging.startswith("gs://") else f"gs://{staging.removesuffix('/')}"
    return f"{root}/aiplatform-custom-job-{stamp}"


def _unquoted(arg: str) -> str:
    """Strip the shell quotes that ``wandb launch-sweep`` adds; no shell is involved here."""
    found = re.fullmatch(r"'([^']*)'|\"([^\"]*)\"", arg)
    return (found[1] or found[2] or "") if found else arg


def _pools(
    spec: RunSpec, variables: Mapping[str, str], bootstrap: Boot, findings: Findings
) -> Sequence[Mapping[str, Any]]:
    """Return the worker pools with the item's command, arguments and environment in them."""
    place, reached, pools, size = spec.arguments.place("worker_pool_specs"), False, [], 0
    for index, pool in enumerate(spec.arguments["worker_pool_specs"] or ()):
        done = dict(pool)
        for name in [name for name in TASKS if name in pool]:
            where, task = f"{place}[{index}].{name}", dict(pool[name])
            is_package = name == TASKS[1]
            plan = None if is_package else bootstrap.plan(task[IMAGE_FIELDS[name]])
            official = {**variables, environment.PLAN: escape(plan)} if plan else variables
            task["env"] = environment.merged(task.get("env", ()), official, f"{where}.env", findings)
            done[name] = task
            if is_package and spec.entry_point:
                found = "the item has an entry point, but a Python package pool cannot run one"
                remedy = "Remove overrides.entry_point, or use container_spec"
                findings.wrong(where, found, remedy, Code.SPEC_COMMAND)
            elif is_package or task[IMAGE_FIELDS[name]] == spec.image:
                _add_command(task, spec.entry_point, spec.args)
                reached = True
            if plan:
                boot.wrap(task, where, bootstrap.settings, findings)
            elif is_package and bootstrap.is_needed:
                found = "a Python package pool cannot read the W&B key or the job's code"
                command = "" if bootstrap.settings.secure_mode else " with a command"
                findings.wrong(where, found, f"Use container_spec{command}", Code.SPEC_COMMAND)
            # Every pool gets its own copy of the item's arguments and variables.
            size += sum(len(text) + 8 for name in ("command", "args") for text in task.get(name, ()))
            size += sum(len(one["name"]) + len(one["value"]) for one in task["env"])
            _check_size(size)
        pools.append(done)
    if not reached and not findings.problems:
        _report_unused(spec, findings)
    return pools


def _check_size(size: int) -> None:
    """Raise ItemRejected for a job that is too large for one request to Vertex AI."""
    if size > LONGEST_JOB:
        found = f"The job has {size} bytes or more, and a request to Vertex AI takes {LONGEST_JOB} (LONGEST_JOB)."
        remedy = "Use fewer worker pools, or pass large arguments and variables as an artifact."
        raise ItemRejected(f"{found} {remedy}", code=Code.SPEC_SIZE)


def _add_command(task: dict[str, Any], entry_point: Sequence[str], args: Sequence[str]) -> None:
    """Put the item's command into a pool's task; without an entry point the image's or the user's own stays."""
    escaped = list(map(escape, args))
    if entry_point:
        task["command"] = [*map(escape, entry_point), *escaped]
    else:
        task["args"] = [*task.get("args", ()), *escaped]


def _report_unused(spec: RunSpec, findings: Findings) -> None:
    """Report that no worker pool runs the item's image: wrong if the item overrides a command, else only odd."""
    place, found = (
        spec.arguments.place("worker_pool_specs"),
        f"no worker pool runs the item's image {shown(spec.image)}",
    )
    remedy = "Write ${image_uri} as the image_uri of the pools that must run it"
    if spec.entry_point or spec.args:
        found = f"{found}, so its entry point and args have no effect"
        findings.wrong(place, found, remedy, Code.SPEC_UNUSED_IMAGE)
    else:
        findings.warn(f"{place}: {found}. {remedy}.", Code.SPEC_UNUSED_IMAGE)


def _message(arguments: Arguments, pools: Sequence[Mapping[str, Any]], output: str) -> CustomJob:
    """Map arguments to the message as the SDK does: empty, zero or false stays unset, except for max_wait_duration."""
    fields = {name: arguments[name] for name in IN_JOB_SPEC if arguments[name]}
    job_spec = {**fields, "worker_pool_specs": pools, "base_output_directory": {"output_uri_prefix": output}}
    flags = ("restart_job_on_worker_restart", "disable_retries")
    scheduling = {name: arguments[name] for name in flags if arguments[name]}
    if arguments["timeout"]:
        scheduling["timeout"] = Duration(seconds=arguments["timeout"])
    if arguments["scheduling_strategy"]:
        scheduling["strategy"] = arguments["scheduling_strategy"]
    if arguments["max_wait_duration"] is not None:
        scheduling["max_wait_duration"] = Duration(seconds=arguments["max_wait_duration"])
    if scheduling:
        job_spec["scheduling"] = scheduling
    job = CustomJob(job_spec=CustomJobSpec(**job_spec))
    if arguments["encryption_spec_key_name"]:
        job.encryption_spec.kms_key_name = arguments["encryption_spec_key_name"]
    return job
