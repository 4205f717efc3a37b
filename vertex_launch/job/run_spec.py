"""What a W&B run spec says, apart from what it asks of Vertex AI; called by ``custom_job``.

The shape is the official client's (wandb/sdk/launch/utils.py, ``construct_launch_spec``; ``LaunchProject.from_spec``). Keys
that it adds over time are ignored here; those under ``resource_args`` are checked one by one in ``job_arguments``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from vertex_launch.errors import ItemRejected
from vertex_launch.job.findings import Findings
from vertex_launch.job.proto_reader import Shapes, printable
from vertex_launch.model import LOCAL_RESOURCES, SCHEDULER_URI, VERTEX_RESOURCES, Item, Kind, RunSpec
from vertex_launch.problems import shown

DEEPEST = 100
"""Levels of nesting that a run spec may have; the official client's own have eight or so."""

_MACRO = re.compile(r"\$\{(\w+)\}")  # wandb.sdk.launch.utils.MACRO_REGEX
_EXPANDED = ("command", "args", "env")
_NOT_IN_RUN_IDS = frozenset(":;,#?/'")  # wandb.Settings refuses them, so that the job could never report


def read(item: Item, findings: Findings) -> RunSpec:
    """Read an item's run spec, a mapping or its JSON; what is wrong with it goes to ``findings``.

    Raises ItemRejected when it is no mapping at all.
    """
    spec = _mapping(item)
    shapes = Shapes(findings, final=False)

    def text(name: str) -> str:
        return shapes.text(spec[name], name) if spec.get(name) is not None else ""

    overrides = shapes.mapping(spec.get("overrides"), "overrides")
    key, arguments = _resource_args(spec, shapes)
    project, run_id, uri = text("project"), text("run_id"), text("uri")
    image = _image(spec, shapes) or text("image_uri")
    job = text("job")
    if not project and not findings.about("project"):
        findings.wrong("project", "it is missing", "Name the W&B project that the run belongs to")
    if _NOT_IN_RUN_IDS & set(run_id) or run_id != run_id.strip():
        found = f"{shown(run_id)} is no run id that W&B's client accepts"
        findings.wrong("run_id", found, "Leave out the characters : ; , # ? / ' and spaces at the ends")
    if not (image or job or findings.about("docker", "docker.docker_image", "image_uri", "job")):
        if uri == SCHEDULER_URI:
            found = "the sweep's scheduler names neither an image nor a job to run in"
            remedy = "Set scheduler.docker_image in the sweep's launch config to an image with W&B's client"
        else:
            found, remedy = (
                "the item names neither an image nor a job",
                "Launch it with wandb launch -d IMAGE or -j JOB",
            )
        findings.wrong("docker.docker_image", found, remedy)
    resume_count = spec.get("_resume_count")
    return RunSpec(
        entity=text("entity"),
        project=project,
        image=image,
        job=job,
        name=text("name"),
        author=text("author") or None,
        run_id=run_id,
        sweep_id=text("sweep_id"),
        kind=Kind.SCHEDULER if uri == SCHEDULER_URI else Kind.JOB,
        resource=key,
        resource_args={name: value for name, value in arguments.items() if name != "builder"},
        builder=shapes.mapping(arguments.get("builder"), f"resource_args.{key}.builder"),
        entry_point=shapes.texts(overrides.get("entry_point"), "overrides.entry_point"),
        args=shapes.texts(overrides.get("args"), "overrides.args"),
        run_config=shapes.mapping(overrides.get("run_config"), "overrides.run_config"),
        files=shapes.mapping(overrides.get("files"), "overrides.files"),
        artifacts=shapes.mapping(overrides.get("artifacts"), "overrides.artifacts"),
        working_dir=_override(overrides, "working_dir", shapes),
        dockerfile=_override(overrides, "dockerfile", shapes),
        resume_count=0 if resume_count is None else shapes.whole(resume_count, "_resume_count", 0, 2**31),
        api_key=text("_wandb_api_key"),
    )


def own_key(item: Item) -> str:
    """Give the API key that an item brings, however malformed the rest of it is; empty text when there is none."""
    try:
        key = _mapping(item).get("_wandb_api_key")
    except ItemRejected:
        return ""
    return key if isinstance(key, str) else ""


def fill(value: Any, macros: Mapping[str, str], expanded: Mapping[str, str]) -> Any:
    """Replace ``${name}`` in all text of a JSON value, keys excepted; unknown names stay as they are.

    ``expanded`` has the same values as ``macros`` for text that the container runtime expands: commands, arguments, variables.
    """
    if isinstance(value, str):
        return _MACRO.sub(lambda match: macros.get(match[1], match[0]), value)
    if isinstance(value, list):
        return [fill(one, macros, expanded) for one in value]
    if isinstance(value, dict):
        return {key: fill(one, expanded if key in _EXPANDED else macros, expanded) for key, one in value.items()}
    return value


def _mapping(item: Item) -> dict[str, Any]:
    """Give the run spec as plain JSON values. Raises ItemRejected."""
    try:
        spec = json.loads(item.spec if isinstance(item.spec, str) else json.dumps(item.spec))
    except (TypeError, ValueError, RecursionError) as error:
        raise ItemRejected(f"The run spec is not JSON ({error}). Push the item again with wandb launch.") from error
    if not isinstance(spec, dict):
        raise ItemRejected("The run spec is not a JSON object. Push the item again with wandb launch.")
    level: list[Any] = [spec]
    for _ in range(DEEPEST):
        nested = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)]
        level = [value for values in nested for value in values]
        if not level:
            return spec
    raise ItemRejected(
        f"The run spec is nested more than {DEEPEST} levels deep. Pass such data as an artifact instead."
    )


def _override(overrides: Mapping[str, Any], name: str, shapes: Shapes) -> str:
    return "" if overrides.get(name) is None else shapes.text(overrides[name], f"overrides.{name}")


def _image(spec: Mapping[str, Any], shapes: Shapes) -> str:
    image = shapes.mapping(spec.get("docker"), "docker").get("docker_image")
    return "" if image is None else shapes.text(image, "docker.docker_image")


def _resource_args(spec: Mapping[str, Any], shapes: Shapes) -> tuple[str, dict[str, Any]]:
    """Give what stands under ``vertex`` or ``gcp-vertex``, and which of the two it is; the runner's own key first."""
    findings = shapes.findings
    resource = spec.get("resource")
    if resource in LOCAL_RESOURCES and spec.get("uri") == SCHEDULER_URI:
        findings.wrong(
            "resource",
            f"the sweep's scheduler asks to run as a {resource}, which a Vertex AI queue cannot give it",
            "Set scheduler.resource to gcp-vertex, and its resource_args, in the sweep's launch config",
        )
    elif resource not in (None, "", *VERTEX_RESOURCES):
        findings.wrong(
            "resource",
            f"{shown(resource)} is not what this queue launches on",
            f"Push the item to a queue of that resource, or with resource {VERTEX_RESOURCES[-1]}",
        )
    given = shapes.mapping(spec.get("resource_args"), "resource_args")
    key = next((name for name in VERTEX_RESOURCES if given.get(name)), "")
    if not key and not findings.about("resource", "resource_args"):
        held = ", ".join(map(printable, given)) or "nothing"
        found = f"there is nothing under {' or '.join(VERTEX_RESOURCES)} (found: {held})"
        findings.wrong(
            "resource_args", found, "Put spec and run under resource_args.vertex, or into the queue's config"
        )
    return key, shapes.mapping(given.get(key), f"resource_args.{key}") if key else {}
