"""What ``secure_mode`` means: only the entry point of the image or of the W&B job runs. Pure; called by ``build``.

W&B merges the queue's configuration and the item's own resource args before anyone else sees them. So a run spec counts as
written by the person who pushed the item, and whatever in it could run another program is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from vertex_launch.codes import Code
from vertex_launch.job import environment
from vertex_launch.job.arguments import IMAGE_FIELDS, TASKS
from vertex_launch.job.findings import Findings, printable
from vertex_launch.job.run_spec import RunSpec
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings

# Not a program, not a command for `sh -c`, and not an option of a shell's `exec "$@"`.
_DATA = re.compile(r"(--[A-Za-z][\w.-]*|--[A-Za-z][\w.-]*=[^\s;&|<>()$`'\"\\]*|[A-Za-z_][\w.-]*=[^\s;&|<>()$`'\"\\]*)")

_FOLDER = re.compile(r"(?:/mnt/(?:nfs|lustre)/)?[A-Za-z0-9_][A-Za-z0-9_./-]*")
"""A mount point below the folder in which Vertex AI mounts (``NfsMount.mount_point``, ``LustreMount.mount_point``)."""

Found = tuple[str, str, str]
"""A place, what is wrong there, and the remedy."""


def check(asked: RunSpec, spec: RunSpec, settings: Settings, findings: Findings) -> None:
    """Report everything by which an item could run another program than the entry point that its image or job brings.

    ``asked`` is the run spec as it was pushed, ``spec`` the same with what its W&B job describes.
    """
    if not settings.secure_mode:
        return
    change = f", or have {settings.where('secure_mode')} changed"
    for place, found, remedy in _programs(asked, spec):
        findings.wrong(place, f"{found}, which secure_mode does not allow", remedy + change, Code.POLICY_ENTRY_POINT)
    allowed = settings.secure_mode_variables
    for where, task in _tasks(asked):
        for variable in task.get("env", ()):
            name = variable["name"]
            if not environment.is_reserved(name) and not any(fnmatchcase(name, one) for one in allowed):
                findings.wrong(
                    f"{where}.env",
                    f"secure_mode does not allow the variable {printable(name)}, which could make another program run",
                    f"Remove it, or have it added to {settings.where('secure_mode_variables')}",
                    Code.POLICY_VARIABLE,
                )


def _programs(asked: RunSpec, spec: RunSpec) -> Iterator[Found]:
    if asked.entry_point and not asked.needs_client:  # the scheduler of a sweep, in an image of the settings
        yield "overrides.entry_point", "the item overrides the entry point", "Launch it without one"
    if asked.working_dir:
        yield "overrides.working_dir", "the item starts the entry point in another folder", "Launch it without one"
    if spec.builder:
        place = f"resource_args.{spec.resource}.builder"
        yield place, "a base image of the item's own can be any program under the name of Python", "Remove it"
    if spec.arguments["enable_web_access"]:
        place = spec.arguments.place("enable_web_access")
        yield place, "an interactive shell can run any program", "Remove it"
    for where, task in _tasks(spec):
        image = task.get(IMAGE_FIELDS[TASKS[0]])
        if image is None:
            yield where, "a Python package is another program than the image's own", "Use container_spec"
            continue
        if image != spec.image:
            remedy = "Write ${image_uri} there, or remove the pool"
            yield f"{where}.image_uri", f"the image {shown(image)} is not the item's own ({shown(spec.image)})", remedy
        if task.get("command"):
            yield f"{where}.command", "it replaces the entry point of the image", "Remove it"
        yield from _args(where, task, spec)
    yield from _mounts(spec)


def _mounts(spec: RunSpec) -> Iterator[Found]:
    """Check where file systems are mounted: over the image's own folders they could replace its programs."""
    place = spec.arguments.place("worker_pool_specs")
    for index, pool in enumerate(spec.arguments["worker_pool_specs"] or ()):
        for name in ("nfs_mounts", "lustre_mounts"):
            for mount in pool.get(name, ()):
                point = mount.get("mount_point", "")
                if point and (".." in point or not _FOLDER.fullmatch(point)):
                    found = f"the mount point {shown(point)} may lie over programs of the image"
                    yield (
                        f"{place}[{index}].{name}",
                        found,
                        "Write a name such as data, which lies in a folder of its own",
                    )


def _args(where: str, task: Mapping[str, Any], spec: RunSpec) -> Iterator[Found]:
    """Check the first argument: without an entry point of its own, an image starts it as a program."""
    own: Sequence[str] = task.get("args", ())
    if not spec.entry_point and (words := [*own, *spec.args]) and not _DATA.fullmatch(words[0]):
        place = f"{where}.args" if own else "overrides.args"
        found = f"the first argument {shown(words[0])} is a program if the image has no entry point"
        yield place, found, "Begin with an option such as --name=value, or launch a W&B job with an entry point"


def _tasks(spec: RunSpec) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Return the place and content of each pool's task."""
    place = spec.arguments.place("worker_pool_specs")
    for index, pool in enumerate(spec.arguments["worker_pool_specs"] or ()):
        for name in [name for name in TASKS if name in pool]:
            yield f"{place}[{index}].{name}", pool[name]
