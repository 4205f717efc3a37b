"""What a W&B job artifact describes, and the plan by which its code is run in a container. Pure; called by ``custom_job``.

``wandb-job.json`` is written by the official client (wandb/sdk/internal/job_builder.py, wandb/sdk/launch/create_job.py) and
read as wandb.apis.public.jobs.Job reads it; unlike that, nothing of the code is fetched here.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vertex_launch.errors import ItemRejected
from vertex_launch.job.proto_reader import encodable
from vertex_launch.model import JobArtifact, RunSpec
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings

PYTHON = "3.11"
"""The Python of a job that does not say which one it was made with."""

# A parser of addresses that takes less than any other, so that no two of them see different hosts in one.
_URL = re.compile(r"(https?|file|ssh)://(?:([^/@]*)@)?([A-Za-z0-9._-]*)(:\d+)?(/.*)")
_SCP = re.compile(r"(?:[\w.+-]+@)?([A-Za-z0-9._-]+):(?!//)/*(.+)", re.ASCII)


class SourceType(StrEnum):
    """What a job is made from (``source_type``)."""

    IMAGE = "image"
    ARTIFACT = "artifact"
    REPO = "repo"


@dataclass(frozen=True)
class JobSource:
    """What a job artifact describes; absent parts are empty.

    ``name`` is the artifact's full name with its version. ``image`` is what an image job runs, ``artifact`` where the code of
    a code job is, ``remote`` and ``commit`` where that of a git job is: a URL, that was for SSH where ``ssh`` says so.
    ``python`` is the version that it was made with.
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


def read(job: JobArtifact) -> JobSource:
    """Read what a job artifact describes. Raises ItemRejected where it cannot be run."""
    said, type_ = _mapping(job.description, job, "wandb-job.json"), job.description.get("source_type")
    if type_ not in list(SourceType):
        raise _broken(job, f"its source_type is {shown(type_)}; known are {', '.join(SourceType)}")
    source = _mapping(said.get("source"), job, "source")
    command = source.get("entrypoint") or []
    if not isinstance(command, list) or not all(isinstance(part, str) and _is_plain(part) for part in command):
        raise _broken(job, f"its entrypoint is {shown(command)}, not a list of texts")
    command = list(filter(None, command))  # the client makes an empty part of a space too many
    # wandb 0.31 writes `pythonCPython 3.11` for the job that a run makes of itself.
    entry_point = [re.sub(r"^python\w+ (?=3\.)", "python", part) for part in command[:1]] + command[1:]
    git = _mapping(source.get("git") or {}, job, "source.git")
    remote, ssh = _remote(_text(git, "remote", job), job)
    found = JobSource(
        name=job.name,
        type=SourceType(type_),
        entry_point=tuple(entry_point),
        image=_text(source, "image", job),
        artifact=_text(source, "artifact", job),
        remote=remote,
        ssh=ssh,
        commit=_text(git, "commit", job),
        notebook=bool(source.get("notebook")),
        base_image=_text(source, "base_image", job),
        build_context=_text(source, "build_context", job),
        dockerfile=_text(source, "dockerfile", job),
        python=_text(said, "runtime", job),
    )
    needed = {
        SourceType.IMAGE: ("image",),
        SourceType.ARTIFACT: ("artifact",),
        SourceType.REPO: ("remote", "commit"),
    }[found.type]
    if missing := [name for name in needed if not getattr(found, name)]:
        raise _broken(job, f"it is a job of type {type_} and does not say its {' and '.join(missing)}")
    if found.commit.startswith("-"):
        raise _broken(job, f"its commit is {shown(found.commit)}, which is none")
    return found


def image_of(source: JobSource, spec: RunSpec, settings: Settings) -> str:
    """Give the image that a job runs in: an image job's own, else one with Python for the bootstrap to run in.

    That is the job's own base image, the queue's or the item's (``builder``, also of its accelerator), the deployment's, or
    the official Python image of the version that the job was made with. Raises ItemRejected.
    """
    # A builder of images comes in here: it gives the image of this job's version and Dockerfile, or defers the item.
    if spec.dockerfile:
        raise ItemRejected(
            f"overrides.dockerfile: {shown(spec.dockerfile)} asks for an image to be built, and nothing here builds images. "
            "Build it where you build others and launch that (wandb launch -d IMAGE), or leave the override out."
        )
    if source.dockerfile:
        raise ItemRejected(
            f"job: {source.name} brings its own Dockerfile ({shown(source.dockerfile)}), and nothing here builds images. Build "
            "the image where you build others and launch that (wandb job create image IMAGE), or make the job without a "
            "Dockerfile."
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
            raise ItemRejected(f"{place}.base_image: {shown(image)} is not the name of an image.")
        if image:
            return str(image)
    return settings.base_image or f"python:{_minor(source.python)}-slim"


def plan(source: JobSource | None, spec: RunSpec, settings: Settings) -> str:
    """Give the JSON that tells the bootstrap (``vertex_launch.job.bootstrap``) what to do in the container.

    ``source`` is None for an image that no job artifact describes. Raises ItemRejected.
    """
    wanted: dict[str, Any] = {"source": (source.type if source else SourceType.IMAGE).value}
    if settings.api_key_delivery == "secret":
        wanted["api_key_secret"] = settings.key_secret
    if source and source.type is not SourceType.IMAGE:
        wanted |= {"job": source.name, "notebook": source.notebook, "working_dir": _folder(source, spec)}
    if source and source.type is SourceType.ARTIFACT:
        wanted["artifact"] = source.artifact
    if source and source.type is SourceType.REPO:
        token = token_secret(source, settings)
        remote = _without_password(source.remote) if token else source.remote
        wanted |= {"remote": remote, "ssh": source.ssh, "commit": source.commit, "token_secret": token}
    if wanted.get("api_key_secret") or wanted.get("token_secret"):
        endpoint = settings.secretmanager_endpoint or "secretmanager.googleapis.com"
        wanted["secretmanager"] = endpoint if "://" in endpoint else f"https://{endpoint}"
    return json.dumps(wanted)


@functools.cache
def bootstrap() -> str:
    """Give the text of the bootstrap, which the container runs with the Python of its image."""
    return (Path(__file__).parent / "bootstrap.py").read_text()


def token_secret(source: JobSource, settings: Settings) -> str | None:
    """Give the secret of the token for a repository; a token goes to the host that it is configured for and to no other."""
    return settings.git_token_secrets.get(urlsplit(source.remote).hostname or "")


def has_password(source: JobSource) -> bool:
    """Tell whether the address of a job's repository holds a password or a token."""
    return urlsplit(source.remote).password is not None


def _without_password(remote: str) -> str:
    url = urlsplit(remote)
    user, host = url.username, url.netloc.rpartition("@")[2]
    return url._replace(netloc=f"{user}@{host}" if user else host).geturl()


def _remote(remote: str, job: JobArtifact) -> tuple[str, bool]:
    """Give a repository's address as a URL that a job can fetch from, and whether it was one for SSH."""
    text = remote.strip()
    if not text:
        return "", False
    plain = not re.search(r"[\s?#\\\x00-\x1f]", text)
    if plain and (url := _URL.fullmatch(text)):
        scheme, user, host, port, path = (part or "" for part in url.groups())
        if scheme == "ssh":
            return f"https://{host}{path}", True
        if host or scheme == "file":
            return f"{scheme}://{user}{'@' if user else ''}{host}{port}{path}", False
    elif plain and (scp := _SCP.fullmatch(text)):
        return f"https://{scp[1]}/{scp[2]}", True
    raise _broken(job, f"its remote is {shown(_hidden(text))}, not https://HOST/PATH or git@HOST:PATH")


def _hidden(remote: str) -> str:
    """Give text that may be an address without what may be a password in it."""
    return re.sub(r":[^:/@]*@", ":***@", remote)


def _folder(source: JobSource, spec: RunSpec) -> str | None:
    """Give the folder of the code in which the program starts: the item's, in that to which the job's paths are relative."""
    folder = PurePosixPath(source.build_context, spec.working_dir)
    if folder.is_absolute() or ".." in folder.parts:
        place = "overrides.working_dir" if spec.working_dir else f"the build context of {source.name}"
        raise ItemRejected(f"{place}: {shown(str(folder))} leads out of the job's code. Name a folder inside of it.")
    return None if folder == PurePosixPath() else str(folder)


def _minor(python: str) -> str:
    found = re.search(r"3\.\d+", python)  # wandb 0.31 may write `CPython 3.11.7`
    return found[0] if found else PYTHON


def _mapping(value: Any, job: JobArtifact, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise _broken(job, f"{name} is {shown(value)}, not a JSON object")
    return value


def _text(mapping: Mapping[str, Any], name: str, job: JobArtifact) -> str:
    value = mapping.get(name)
    if value is not None and not (isinstance(value, str) and _is_plain(value)):
        raise _broken(job, f"its {name} is {shown(value)}, not a text")
    return value or ""


def _is_plain(text: str) -> bool:
    """Tell whether a process can be given the text: JSON can name NUL and half of a surrogate pair."""
    return "\0" not in text and encodable(text)


def _broken(job: JobArtifact, found: str) -> ItemRejected:
    return ItemRejected(f"job: {job.name} is no job that can be run: {found}. Make it anew, as with wandb job create.")
