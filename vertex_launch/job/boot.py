"""Whether and how a container runs the bootstrap before its program, its text, and the plan that it follows.

The bootstrap fetches code that is not in the image, and reads the W&B key if that is not in the job's spec.
"""

from __future__ import annotations

import ast
import base64
import functools
import io
import json
import tokenize
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job.arguments import escape
from vertex_launch.job.findings import Findings
from vertex_launch.job.job_source import JobSource, SourceType
from vertex_launch.job.run_spec import RunSpec
from vertex_launch.problems import shown
from vertex_launch.settings.config import GitHost, Settings


@dataclass(frozen=True)
class Boot:
    """What the bootstrap does in the containers of one job; ``source`` is None if no job artifact describes the job."""

    spec: RunSpec
    source: JobSource | None
    settings: Settings

    @property
    def brings_code(self) -> bool:
        """Whether the job's code is not in its image."""
        return self.source is not None and self.source.type is not SourceType.IMAGE

    @property
    def brings_key(self) -> bool:
        """Whether the W&B key is not in the job's spec."""
        return self.settings.api_key_delivery == "secret"

    @property
    def is_needed(self) -> bool:
        """Whether any container needs the bootstrap."""
        return self.brings_code or self.brings_key or self.spec.needs_client

    def check(self, findings: Findings) -> None:
        """Report what keeps the bootstrap from reading the secrets that it needs, and credentials in the job's spec."""
        if self.brings_key and self.spec.api_key:
            setting = self.settings.where("api_key_delivery")
            found = f"the item brings a W&B key, but this deployment keeps keys out of job specs (see {setting})"
            findings.wrong("_wandb_api_key", found, "Launch it without a key", Code.SPEC_KEY)
        token = self.source and _token_secret(self.source, self.settings)
        if self.source and not token and self.source.credentials:
            findings.warn(
                f"job: the repository address of {self.source.name} contains credentials, which the job's spec shows. "
                f"Set a secret for its host in {self.settings.where('git_token_secrets')}.",
                Code.ARTIFACT_PASSWORD,
            )
        for what, setting, secret in (
            ("the W&B key", "api_key_delivery", self.settings.key_secret if self.brings_key else None),
            ("the token for its repository", "git_token_secrets", token),
        ):
            if secret and not self.spec.arguments["service_account"]:
                findings.wrong(
                    self.spec.arguments.place("service_account"),
                    f"it is missing, but the job must read {what} as its own service account "
                    f"(see {self.settings.where(setting)})",
                    f"Name an account that has roles/secretmanager.secretAccessor on {secret}",
                    Code.SPEC_SERVICE_ACCOUNT,
                )

    def plan(self, image: str) -> str | None:
        """Return the plan for a container with that image, None if it needs none: only the item's image needs its code.

        Raises ItemRejected.
        """
        source = self.source if self.brings_code and image == self.spec.image else None
        client = self.spec.needs_client and image == self.spec.image
        if not (source or client or self.brings_key):
            return None
        wanted: dict[str, Any] = {"source": (source.type if source else SourceType.IMAGE).value}
        if client:
            wanted["client"] = True
        if self.brings_key:
            wanted["api_key_secret"] = self.settings.key_secret
        if source:
            wanted |= {"job": source.name, "notebook": source.notebook, "working_dir": _folder(source, self.spec)}
            wanted["python"] = source.python
            if self.settings.git_hosts:
                wanted["git_hosts"] = {name: host.url for name, host in self.settings.git_hosts.items()}
        if source and source.type is SourceType.ARTIFACT:
            wanted["artifact"] = source.artifact
        if source and source.type is SourceType.REPO:
            token = _token_secret(source, self.settings)
            remote = _without_credentials(source.remote) if token else source.remote
            wanted |= {"remote": remote, "ssh": source.ssh, "commit": source.commit, "token_secret": token}
            host = _host(source, self.settings)
            if host and host.archive:
                wanted["archive"] = host.archive_of(_without_credentials(source.remote), source.commit)
        if wanted.get("api_key_secret") or wanted.get("token_secret"):
            endpoint = self.settings.secretmanager_endpoint or "secretmanager.googleapis.com"
            wanted["secretmanager"] = endpoint if "://" in endpoint else f"https://{endpoint}"
        return json.dumps(wanted)


def wrap(task: dict[str, Any], place: str, settings: Settings, findings: Findings) -> None:
    """Put the bootstrap before the command of a container; the command becomes its arguments."""
    if not task.get("command"):
        found = "the container has no explicit command, so the bootstrap that reads the W&B key cannot be prepended"
        remedy = (
            "Launch a W&B job that has an entry point of its own (wandb launch --job), because secure_mode accepts no other "
            f"command, or have {settings.where('api_key_delivery')} changed to env"
            if settings.secure_mode
            else "Set command in container_spec, or launch the item's own image with --entry-point"
        )
        findings.wrong(place, found, remedy, Code.SPEC_COMMAND)
        return
    task["args"] = [*task["command"], *task.get("args", ())]
    task["command"] = ["python3", "-c", escape(packed())]


PARTS = (
    *(f"container/{name}.py" for name in ("base", "remotes", "requirements", "source", "patch", "notebook", "entry")),
    "bootstrap.py",
)
"""The modules of the bootstrap; each may use those before it."""


@functools.cache
def text() -> str:
    """Return the text of the bootstrap, which the container runs with the Python of its image.

    Docstrings and comments are left out.
    """
    return "from __future__ import annotations\n" + "".join(map(_part, PARTS))


@functools.cache
def packed() -> str:
    """Return the text as it travels: every pass reads the specs of active jobs, and the kernel takes 128 KiB in one argument.

    Vertex AI documents no limit, but it expands dollars, so there must be none.
    """
    data = base64.b64encode(zlib.compress(text().encode(), 9)).decode()
    return f"import base64, zlib; exec(zlib.decompress(base64.b64decode('{data}')))"


def _part(name: str) -> str:
    """Return a module without docstrings, comments on lines of their own, and imports that make no sense in one text."""
    source = (Path(__file__).parent / name).read_text()
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        is_import = isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in (
            "__future__",
            "vertex_launch",
        )
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (is_import or is_docstring):
            for index in range(node.lineno - 1, node.end_lineno or node.lineno):
                lines[index] = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
            lines[token.start[0] - 1] = ""
        if token.type == tokenize.NL and not token.line.strip():
            lines[token.start[0] - 1] = ""
    return "".join(lines)


def _token_secret(source: JobSource, settings: Settings) -> str | None:
    """Return the secret of the token for a repository.

    A token goes only to the host and port that it is configured for, and never over HTTP except on loopback.
    """
    url = urlsplit(source.remote)
    host = url.hostname or ""
    if url.scheme != "https" and not (url.scheme == "http" and host in ("127.0.0.1", "localhost")):
        return None
    known = _host(source, settings)
    if known and known.token_secret:
        return known.token_secret
    names = [f"{host}:{url.port or 443}", *([host] if url.port in (None, 443) else [])]
    return next((settings.git_token_secrets[name] for name in names if name in settings.git_token_secrets), None)


def _host(source: JobSource, settings: Settings) -> GitHost | None:
    """Return the settings of the host that a repository is fetched from, with a URL that its address begins with."""
    remote = _without_credentials(source.remote).lower()
    return next((host for host in settings.git_hosts.values() if remote.startswith(f"{host.url}/".lower())), None)


def _without_credentials(remote: str) -> str:
    url = urlsplit(remote)
    return url._replace(netloc=url.netloc.rpartition("@")[2]).geturl()


def _folder(source: JobSource, spec: RunSpec) -> str | None:
    """Return the folder of the code in which the program starts: the item's, relative to the job's build context."""
    folder = PurePosixPath(source.build_context, spec.working_dir)
    if folder.is_absolute() or ".." in folder.parts:
        place = "overrides.working_dir" if spec.working_dir else f"job: the build context of {source.name}"
        found = f"{place}: {shown(str(folder))} is outside of the job's code. Name a folder inside of it."
        raise ItemRejected(found, code=Code.SPEC_VALUE)
    return None if folder == PurePosixPath() else str(folder)
