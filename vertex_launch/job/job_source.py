"""What a W&B job artifact describes, and which image runs it. Pure; called by ``prepare`` and ``build``.

``wandb-job.json`` is written by the official client (wandb/sdk/internal/job_builder.py, wandb/sdk/launch/create_job.py) and
read as wandb.apis.public.jobs.Job reads it; unlike there, the code is not fetched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import unquote, urlsplit

from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job.container.remotes import NoRemote, remote_url
from vertex_launch.job.proto_reader import is_plain
from vertex_launch.job.run_spec import PYTHON, RunSpec
from vertex_launch.model import JobArtifact
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings

PARTS = ("source_type", "source", "runtime")
"""What is read of ``wandb-job.json``."""

"""The Python of a job that does not name the version it was created with."""

_USERS = frozenset({"git", "oauth2", "x-access-token", "x-token-auth", "x-oauth-basic", "gitlab-ci-token"})


class SourceType(StrEnum):
    """What a job is made from (``source_type``)."""

    IMAGE = "image"
    ARTIFACT = "artifact"
    REPO = "repo"


@dataclass(frozen=True)
class JobSource:
    """What a job artifact describes; absent parts are empty.

    ``name`` is the artifact's full name with its version. An image job has ``image``, a code job has its code in
    ``artifact``, and a git job at ``commit`` of the URL ``remote``. With ``ssh`` that was a URL for SSH. ``python`` is the
    version that the job was created with.
    """

    name: str
    type: SourceType
    entry_point: tuple[str, ...] = ()
    image: str = ""
    artifact: str = ""
    remote: str = ""
    ssh: bool = False
    commit: str = ""
    notebook: bool = False
    base_image: str = ""
    build_context: str = ""
    dockerfile: str = ""
    python: str = ""

    @property
    def credentials(self) -> tuple[str, ...]:
        """What may be secret in ``remote``: the password, and the user unless all share it."""
        url = urlsplit(self.remote)
        parts = [part for part in (url.username, url.password) if part and part not in _USERS]
        return tuple(dict.fromkeys(form for part in parts for form in (part, unquote(part))))


class _Broken(Exception):
    """A job artifact cannot be run; the text says why."""


def read(job: JobArtifact, settings: Settings) -> JobSource:
    """Read what a job artifact describes. Raises ItemRejected if it cannot be run."""
    try:
        return _read(job, settings)
    except NoRemote as error:
        place = settings.where("git_hosts")
        remedy = f"Push the commit to a host that jobs can reach, or name an SSH host in {place}."
        if not error.is_far:
            remedy = "Create it again, for example with wandb job create."
        code = Code.ARTIFACT_REMOTE if error.is_far else Code.ARTIFACT_INVALID
        raise ItemRejected(f"job: {job.name} cannot be run: {error}. {remedy}", code=code) from error
    except _Broken as error:
        found = f"job: {job.name} cannot be run: {error}. Create it again, for example with wandb job create."
        raise ItemRejected(found, code=Code.ARTIFACT_INVALID) from error


def _read(job: JobArtifact, settings: Settings) -> JobSource:
    """Read a job artifact. Raises _Broken, NoRemote."""
    description = _mapping(job.description, "wandb-job.json")
    kind = description.get("source_type")
    if kind not in list(SourceType):
        raise _Broken(f"its source_type is {shown(kind)}, not {' or '.join(SourceType)}")
    source = _mapping(description.get("source"), "its source")
    command = source.get("entrypoint") or []
    if not isinstance(command, list) or not all(isinstance(part, str) and is_plain(part) for part in command):
        raise _Broken(f"its entrypoint is {shown(command)}, not a list of texts")
    command = list(filter(None, command))  # the client turns a superfluous space into an empty part
    # wandb 0.31 writes `pythonCPython 3.11` for the job that a run makes of itself.
    entry_point = [re.sub(r"^python\w+ (?=3\.)", "python", part) for part in command[:1]] + command[1:]
    git = _mapping(source.get("git") or {}, "its source.git")
    remote, ssh = _text(git, "remote"), False
    if remote.strip():
        bases = {name: host.url for name, host in settings.git_hosts.items()}
        remote, ssh = remote_url(remote, bases, tuple(settings.git_token_secrets))
    found = JobSource(
        name=job.name,
        type=SourceType(kind),
        entry_point=tuple(entry_point),
        image=_text(source, "image"),
        artifact=_text(source, "artifact"),
        remote=remote,
        ssh=ssh,
        commit=_text(git, "commit"),
        notebook=bool(source.get("notebook")),
        base_image=_text(source, "base_image"),
        build_context=_text(source, "build_context"),
        dockerfile=_text(source, "dockerfile"),
        python=_text(description, "runtime"),
    )
    needed = {SourceType.IMAGE: ["image"], SourceType.ARTIFACT: ["artifact"], SourceType.REPO: ["remote", "commit"]}
    if missing := [name for name in needed[found.type] if not getattr(found, name)]:
        raise _Broken(f"it is a job of type {kind} but has no {' and no '.join(missing)}")
    if found.commit.startswith("-"):
        raise _Broken(f"its commit {shown(found.commit)} is not a valid revision")
    return found


def image_of(source: JobSource, spec: RunSpec, settings: Settings) -> str:
    """Return the image that a job runs in: an image job's own, else one with Python for the bootstrap. Raises ItemRejected.

    The first that is set counts: the job's own base image, that of the item or the queue (``builder``), the deployment's.
    The last resort is the official Python image of the job's version.
    """
    # A builder of images comes in here: it returns the image of this job's version and Dockerfile, or defers the item.
    if spec.dockerfile:
        raise ItemRejected(
            f"overrides.dockerfile: {shown(spec.dockerfile)} needs an image build, but this deployment does not build images. "
            "Build the image elsewhere and launch it (wandb launch -d IMAGE), or remove the override.",
            code=Code.ARTIFACT_DOCKERFILE,
        )
    if source.dockerfile:
        raise ItemRejected(
            f"job: {source.name} has a Dockerfile ({shown(source.dockerfile)}), but this deployment does not build images. "
            "Build the image elsewhere and launch it (wandb job create image IMAGE), or create the job without a Dockerfile.",
            code=Code.ARTIFACT_DOCKERFILE,
        )
    if source.type is SourceType.IMAGE:
        return source.image
    if source.base_image:
        return source.base_image
    for accelerator in ("", "accelerator", "cuda"):  # the last two in the order of wandb.sdk.launch._project_spec
        section, place = spec.builder, f"resource_args.{spec.resource}.builder"
        if accelerator:
            section, place = spec.builder.get(accelerator) or {}, f"{place}.{accelerator}"
        image = section.get("base_image") if isinstance(section, Mapping) else section
        if image and not (isinstance(image, str) and re.fullmatch(r"\S+", image)):
            found = f"{place}.base_image: {shown(image)} is not an image name. Write REGISTRY/REPOSITORY/NAME:TAG."
            raise ItemRejected(found, code=Code.SPEC_VALUE)
        if image:
            return str(image)
    minor = re.search(r"3\.\d+", source.python)  # wandb 0.31 may write `CPython 3.11.7`
    return settings.base_image or f"python:{minor[0] if minor else PYTHON}-slim"


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _Broken(f"{name} is {shown(value)}, not a JSON object")
    return value


def _text(mapping: Mapping[str, Any], name: str) -> str:
    value = mapping.get(name)
    if value is not None and not (isinstance(value, str) and is_plain(value)):
        raise _Broken(f"its {name} is {shown(value)}, not text")
    return value or ""
