"""Parse a W&B run spec, including what it asks of Vertex AI. Pure; called by ``prepare`` and the preflight.

The shape is the official client's (wandb/sdk/launch/utils.py, ``construct_launch_spec``; ``LaunchProject.from_spec``). Keys
that it adds over time are ignored; those under ``resource_args`` are checked one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from vertex_launch import json_reader
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected, Message
from vertex_launch.job import arguments, labels
from vertex_launch.job.arguments import Arguments, escape
from vertex_launch.job.findings import Findings, printable
from vertex_launch.job.proto_reader import Reader
from vertex_launch.limits import DEEPEST, LONGEST_ITEM, LONGEST_NAME, MOST_PROBLEMS, MOST_VALUES
from vertex_launch.model import LOCAL_RESOURCES, SCHEDULER_COMMAND, SCHEDULER_URI, VERTEX_RESOURCES, Item, Kind, RunId
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings

# What wandb.Settings refuses, so that the job could never report. W&B's entities have letters, digits, - and _ only.
NOT_IN_NAMES = {"run_id": frozenset(":;,#?/'"), "project": frozenset("/\\#?%:"), "entity": frozenset("/\\#?%:")}
LONGEST_PROJECT = 128
PYTHON = "3.11"
PYTHON_IMAGE = f"python:{PYTHON}-slim"
"""The image for what names none."""
KEY = re.compile(rf"\S{{40,{LONGEST_NAME}}}")
"""What may be a W&B API key. Real ones are 40 hexadecimal digits, also after ``local-``, or ``wandb_v1_`` and 77 characters."""


@dataclass(frozen=True)
class RunSpec:
    """A run spec that has been checked; absent parts are empty.

    ``run`` is the W&B run that the job reports as: the spec's own id, else one derived from the item. ``resource`` says
    whether ``arguments`` and ``builder`` come from ``vertex`` or from ``gcp-vertex``.
    """

    run: RunId
    entity: str
    project: str
    image: str
    job: str
    name: str
    author: str
    sweep_id: str
    kind: Kind
    entry_point: tuple[str, ...]
    args: tuple[str, ...]
    run_config: Mapping[str, Any]
    files: Mapping[str, Any]
    artifacts: Mapping[str, Any]
    working_dir: str
    dockerfile: str
    resume_count: int
    api_key: str = field(default="", repr=False)
    needs_client: bool = False
    """Whether its image may lack W&B's client, which it runs."""
    resource: str = ""
    arguments: Arguments = field(default_factory=Arguments)
    builder: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[Message, ...] = ()


def parse(item: Item, settings: Settings, entity: str) -> RunSpec:
    """Parse the run spec, a mapping or its JSON, of an item from a queue of ``entity``.

    Raises ItemRejected with every problem.
    """
    spec, findings = _mapping(item), Findings()
    reader = Reader(findings)
    parsed = _read(spec, reader, item, settings, entity)
    is_local = parsed.kind is Kind.SCHEDULER and spec.get("resource") in LOCAL_RESOURCES
    if is_local:
        parsed, root = _with_image(parsed, settings), "sweeps.scheduler"
        resource, resource_args = VERTEX_RESOURCES[0], _scheduler_args(settings)
    else:
        resource, resource_args = _resource_args(spec, reader)
        root = f"resource_args.{resource}"
    _check(parsed, labels.run_id(settings.base_url, entity, item.id, settings.deployment), findings)
    builder = reader.mapping(resource_args.pop("builder", None), f"{root}.builder")
    found = Arguments()
    if resource:
        found = arguments.read(_fill_macros(resource_args, parsed, settings), root, findings)
    findings.check()
    warnings = tuple(findings.warnings)
    return replace(parsed, resource=resource, arguments=found, builder=builder, warnings=warnings)


def _read(spec: Mapping[str, Any], reader: Reader, item: Item, settings: Settings, entity: str) -> RunSpec:
    """Read everything but the resource args."""

    def text(name: str, parent: Mapping[str, Any] = spec, at: str = "") -> str:
        value = "" if parent.get(name) is None else reader.text(parent[name], f"{at}{name}")
        if len(value) <= LONGEST_NAME:
            return value
        found = f"it has {len(value)} characters, and at most {LONGEST_NAME} are accepted (LONGEST_NAME)"
        reader.findings.wrong(f"{at}{name}", found, "Shorten it", Code.SPEC_SIZE)
        return ""

    overrides, at = reader.mapping(spec.get("overrides"), "overrides"), "overrides."
    owner, project, resume_count = text("entity"), text("project"), spec.get("_resume_count")
    run_id = text("run_id") or labels.run_id(settings.base_url, entity, item.id, settings.deployment)
    return RunSpec(
        run=RunId(entity if owner.lower() in ("", entity.lower()) else owner, project.lower(), run_id),
        entity=owner,
        project=project,
        image=text("docker_image", reader.mapping(spec.get("docker"), "docker"), "docker.") or text("image_uri"),
        job=text("job"),
        name=text("name"),
        author=text("author"),
        sweep_id=text("sweep_id"),
        kind=Kind.SCHEDULER if text("uri") == SCHEDULER_URI and _schedules(overrides, spec) else Kind.JOB,
        entry_point=reader.texts(overrides.get("entry_point"), "overrides.entry_point"),
        args=reader.texts(overrides.get("args"), "overrides.args"),
        run_config=reader.mapping(overrides.get("run_config"), "overrides.run_config"),
        files=reader.mapping(overrides.get("files"), "overrides.files"),
        artifacts=reader.mapping(overrides.get("artifacts"), "overrides.artifacts"),
        working_dir=text("working_dir", overrides, at),
        dockerfile=text("dockerfile", overrides, at),
        resume_count=0 if resume_count is None else reader.whole(resume_count, "_resume_count", 0, 2**31),
        api_key=text("_wandb_api_key"),
    )


def _schedules(overrides: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Return whether a sweep's scheduler runs: W&B's own, or a W&B job that gets the sweep (``wandb launch-sweep``)."""
    command, config = overrides.get("entry_point") or (), overrides.get("run_config")
    if isinstance(command, list) and command:
        return tuple(command[:2]) == SCHEDULER_COMMAND
    return bool(spec.get("job")) and isinstance(config, dict) and "sweep_args" in config  # which W&B has to confirm


def _with_image(scheduler: RunSpec, settings: Settings) -> RunSpec:
    """Return a scheduler that asks for no machine with the image that it runs in."""
    if scheduler.image or scheduler.job:
        return scheduler
    return replace(scheduler, image=settings.sweeps.scheduler.image or PYTHON_IMAGE, needs_client=True)


def _scheduler_args(settings: Settings) -> dict[str, Any]:
    """Return the resource args of a scheduler that asks for no machine (``wandb launch-sweep`` without ``scheduler.resource``).

    The official agent runs it in its own process. The arguments of its queue are for training, and do not apply.
    """
    scheduler = settings.sweeps.scheduler
    pool = {
        "machine_spec": {"machine_type": scheduler.machine_type},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}"},
    }
    account = {"service_account": scheduler.service_account} if scheduler.service_account else {}
    return {"spec": {"worker_pool_specs": [pool], **account}}


def _check(parsed: RunSpec, own_run: str, findings: Findings) -> None:
    """Report what is missing, and a run id that the client in the job would refuse or that is made for another item."""
    run_id = parsed.run.id
    if labels.is_derived(run_id) and run_id != own_run:
        found = f"run id {shown(run_id)} has the form of those that this deployment makes for items"
        findings.wrong("run_id", found, "Remove it, or use an id of another form", Code.SPEC_RUN_ID)
    if not parsed.project and not findings.about("project"):
        remedy = "Name the W&B project that the run belongs to"
        findings.wrong("project", "it is missing", remedy, Code.SPEC_MISSING)
    if parsed.api_key and not KEY.fullmatch(parsed.api_key):
        remedy = "Launch it again without one, or with W&B's own client"
        findings.wrong("_wandb_api_key", "it is not a W&B API key", remedy, Code.SPEC_KEY)
    for place, name in (("entity", parsed.entity), ("project", parsed.project), ("run_id", run_id)):
        _check_name(place, name, findings)
    if parsed.image or parsed.job or findings.about("docker", "docker.docker_image", "image_uri", "job"):
        return
    if parsed.kind is Kind.SCHEDULER:
        found = "the sweep's scheduler names neither an image nor a job to run in"
        remedy = "Set scheduler.docker_image in the sweep's launch config to an image that has W&B's client"
    else:
        found, remedy = "the item names neither an image nor a job", "Launch it with wandb launch -d IMAGE or -j JOB"
    findings.wrong("docker.docker_image", found, remedy, Code.SPEC_MISSING)


def _check_name(place: str, name: str, findings: Findings) -> None:
    """Report a name that W&B's client in the job would refuse, or that looks like another one in an address or a log."""
    refused = NOT_IN_NAMES[place]
    if name != name.strip() or not name.isprintable():
        found = f"{shown(name)} has spaces at its ends or invisible characters, so it could pass for another name"
        findings.wrong(place, found, "Remove them", Code.SPEC_VALUE)
    elif name in (".", "..") or refused & set(name):
        found = f"{shown(name)} is not accepted by W&B's client"
        remedy = f"Use another name than . and .., without the characters {' '.join(sorted(refused))}"
        findings.wrong(place, found, remedy, Code.SPEC_VALUE)
    elif place == "project" and len(name) > LONGEST_PROJECT:
        found = f"it has {len(name)} characters, and W&B's client accepts {LONGEST_PROJECT}"
        findings.wrong(place, found, "Shorten it", Code.SPEC_VALUE)


def own_key(item: Item) -> str:
    """Return the API key that an item brings, however malformed the rest of it is; the empty text if it brings none.

    A text that cannot be a key is not kept, because keys are hidden in all messages.
    """
    key = peek(item).get("_wandb_api_key")
    return key if isinstance(key, str) and KEY.fullmatch(key) else ""


def peek(item: Item) -> Mapping[str, Any]:
    """Return the run spec, a mapping or its JSON, before it is checked; empty if it is neither."""
    try:
        return _mapping(item)
    except (ItemRejected, MemoryError):
        return {}  # its check reports why


def _mapping(item: Item) -> dict[str, Any]:
    """Return the run spec as plain JSON values. Raises ItemRejected."""
    _check_size("characters", item.characters, LONGEST_ITEM, "LONGEST_ITEM")
    if item.unreadable:
        found = f"W&B's answer with the run spec {item.unreadable}. Correct the item, and push it again."
        raise ItemRejected(found, code=Code.SPEC_UNREADABLE)
    try:
        text = item.spec if isinstance(item.spec, str) else json.dumps(item.spec, ensure_ascii=False)
        _check_size("characters", len(text), LONGEST_ITEM, "LONGEST_ITEM")
        spec = json_reader.read(text) if isinstance(item.spec, str) else json.loads(text)
    except json_reader.Unreadable as error:
        found = f"The run spec {error.found}. Push the item again with wandb launch."
        raise ItemRejected(found, code=Code.SPEC_UNREADABLE) from error
    except (TypeError, ValueError, RecursionError) as error:
        found = "The run spec cannot be read as JSON. Push the item again with wandb launch."
        raise ItemRejected(found, code=Code.SPEC_UNREADABLE) from error
    if not isinstance(spec, dict):
        found = "The run spec is not a JSON object. Push the item again with wandb launch."
        raise ItemRejected(found, code=Code.SPEC_UNREADABLE)
    level: list[Any] = [spec]
    total = 0
    for _ in range(DEEPEST):
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        total += sum(map(len, nested))
        _check_size("values", total, MOST_VALUES, "MOST_VALUES")
        level = [value for values in nested for value in values]
        if not level:
            return spec
    found = f"The run spec is nested more than {DEEPEST} levels deep (DEEPEST). Pass such data as an artifact instead."
    raise ItemRejected(found, code=Code.SPEC_UNREADABLE)


def _check_size(unit: str, size: int, most: int, bound: str) -> None:
    """Raise ItemRejected for a run spec that is larger than a bound."""
    if size > most:
        found = f"The run spec has {size} {unit}, and at most {most} are accepted ({bound}). Pass large data as an artifact."
        raise ItemRejected(found, code=Code.SPEC_SIZE)


def _fill_macros(resource_args: Mapping[str, Any], spec: RunSpec, settings: Settings) -> Mapping[str, Any]:
    """Fill in W&B's macros and the environment variables that the policy names; an unknown image stays a macro."""
    run = spec.run
    macros = {"project_name": run.project, "entity_name": run.entity, "run_id": run.id}
    macros |= {"run_name": spec.name, "author": spec.author}
    if spec.image:
        macros["image_uri"] = spec.image
    escaped = {name: escape(value) for name, value in macros.items()}
    filled: Mapping[str, Any] = arguments.fill(
        resource_args, {**settings.macro_values, **macros}, {**settings.macro_values, **escaped}
    )
    return filled


def _resource_args(spec: Mapping[str, Any], reader: Reader) -> tuple[str, dict[str, Any]]:
    """Return which of ``vertex`` and ``gcp-vertex`` has arguments, the runner's own name first, and those arguments."""
    findings, resource = reader.findings, spec.get("resource")
    if resource in LOCAL_RESOURCES and spec.get("uri") == SCHEDULER_URI:
        found = f"the sweep's scheduler is launched as a {resource}, which a Vertex AI queue cannot run"
        remedy = "Set scheduler.resource to gcp-vertex, and its resource_args, in the sweep's launch config"
        findings.wrong("resource", found, remedy, Code.SPEC_RESOURCE)
    elif resource not in (None, "", *VERTEX_RESOURCES):
        found = f"{shown(resource)} is not the resource of this queue"
        remedy = f"Push the item to a queue of that resource, or set resource to {VERTEX_RESOURCES[-1]}"
        findings.wrong("resource", found, remedy, Code.SPEC_RESOURCE)
    sections = reader.mapping(spec.get("resource_args"), "resource_args")
    name = next((name for name in VERTEX_RESOURCES if sections.get(name)), "")
    if not name and not findings.about("resource", "resource_args"):
        held = ", ".join(map(printable, islice(sections, MOST_PROBLEMS))) or "nothing"
        found = f"neither {' nor '.join(VERTEX_RESOURCES)} is set (found: {held})"
        remedy = "Put spec and run under resource_args.vertex, or into the queue configuration"
        findings.wrong("resource_args", found, remedy, Code.SPEC_MISSING)
    return name, dict(reader.mapping(sections.get(name), f"resource_args.{name}")) if name else {}
