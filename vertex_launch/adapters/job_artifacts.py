"""W&B's job artifacts, through the SDK's public API, which is imported when the first item with a job is prepared.

The SDK starts a helper process, whose memory deployments that launch only images do not need. Only an artifact's
description is downloaded, never code. The SDK writes to a folder that is emptied after the pass, because a function's disk
is its memory. The SDK's own download has no time limit and retries for many minutes. This module downloads the description
from the SDK's address instead. The SDK also reads what people wrote about an artifact, however much that is, so this module
asks first how much it is.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import requests

from vertex_launch import json_reader
from vertex_launch.adapters.http_body import body_of
from vertex_launch.adapters.wandb_answer import SERVICE
from vertex_launch.adapters.wandb_server import user_agent
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import ItemRejected, LaunchError, Unavailable
from vertex_launch.job import job_source
from vertex_launch.log import LOGGER
from vertex_launch.model import JobArtifact
from vertex_launch.problems import shown

T = TypeVar("T")

DESCRIPTION = "wandb-job.json"
KEPT = 256
"""Number of versions kept in memory; a version never changes, an alias may."""
LARGEST = 2**20
"""Most bytes that are read of a description; W&B's client writes one or two thousand."""
LARGEST_ABOUT = 2**20
"""Most bytes of what W&B answers about an artifact: its metadata, description, tags and aliases."""
ABOUT = (
    "query VertexLaunch($project: String!, $entity: String!, $name: String!) { project(name: $project, entityName: $entity) { "
    "artifactCollectionMembership(name: $name) { artifact { description metadata tags { name } "
    "aliases { id alias artifactCollection { name project { id name entity { name } } } } } } } }"
)
"""The fields of any size that the SDK asks for (``ArtifactFragment`` in wandb/sdk/artifacts/_generated/operations.py)."""
LARGEST_KEPT = 2**16
"""Most characters of what is kept of one description: what the job is made from, without the types of its inputs."""
MOST_KEPT = 2**20
"""Most characters of what is kept of all descriptions."""
UNPACKED = {"Accept-Encoding": "gzip"}
IMPATIENT = 0.1
"""Part of the timeout that is left for each look-up after one has failed in the same pass."""

_NAME = re.compile(r"([^/:\x00-\x1f]+/){2}[^/:\x00-\x1f]+:[^/:\x00-\x1f]+")
_ABSENT = re.compile(
    r"not found|does not exist|no such|could not find|unable to fetch artifact|permission|forbidden|not authorized",
    re.IGNORECASE,
)
_VERSION = re.compile(r"v\d+")
MOST_FILES = 1000
"""Files of an artifact whose list is read, as a whole, if its description cannot be downloaded at the first address."""


class JobArtifacts:
    """Finds job artifacts at ``base_url`` with the key; safe to use from many threads.

    A look-up takes at most ``timeout`` seconds. After one has failed it takes a tenth, so that a slow W&B does not use up
    the pass. ``forget`` resets that; after a failure it also replaces the helper process, which may have died.
    """

    def __init__(self, base_url: str, key: Key, *, timeout: float) -> None:
        self._base_url = base_url
        self._key = key
        self._timeout = timeout
        self._patience = timeout
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, JobArtifact]] = {}
        """Full name to id and job. With the id, a job that was created again under its name is another one."""
        self.folder: Path | None = None
        """Where the SDK writes, after its first use."""
        self._api: Future[Any] | None = None
        self._api_key = ""
        self._failed = False

    def find(self, name: str) -> JobArtifact:
        """Return the job artifact ``entity/project/name:alias``. Raises ItemRejected, Unavailable."""
        if not _NAME.fullmatch(name):
            wanted = "Write entity/project/name:version, as wandb job list shows it."
            raise ItemRejected(f"job: {shown(name)} is not the name of a job. {wanted}", code=Code.ARTIFACT_NAME)
        if _VERSION.fullmatch(name.rpartition(":")[2]) and (known := self._remembered(name)):
            return known
        patience = self._patience
        looking = _in_thread(partial(self._look_up, self._open(), name, self._api_key))
        try:
            return looking.result(patience)
        except (TimeoutError, Unavailable) as error:
            self._patience, self._failed = self._timeout * IMPATIENT, True
            if isinstance(error, Unavailable):
                raise
            words = f"cannot look up job {name}: no answer within {patience:g} s"
            raise Unavailable(SERVICE, words, code=Code.WANDB_UNAVAILABLE) from None

    def forget(self) -> None:
        """Empty the folder that the SDK writes to, and restore the full timeout."""
        self._patience = self._timeout
        with self._lock:
            if self._failed:
                self._api = None
            if self.folder is not None:
                for path in self.folder.iterdir():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _look_up(self, api: Future[Any], name: str, key: str) -> JobArtifact:
        try:
            self._check_size(name, key)
            artifact = api.result().artifact(name, type="job")
            collection = artifact.name.partition(":")[0]
            full = f"{artifact.entity}/{artifact.project}/{collection}:{artifact.version}"
            if artifact.state == "DELETED":
                text = f"job: {name} was deleted. Launch a version that exists."
                raise ItemRejected(text, code=Code.ARTIFACT_NOT_FOUND)
            if known := self._remembered(full, artifact.id):
                return known
            file = next(iter(artifact.files([DESCRIPTION], per_page=1)), None)
            if file is None:
                raise _invalid(name, f"has no {DESCRIPTION}")
            job = JobArtifact(full, self._described(name, artifact, file.direct_url))
            with self._lock:
                self._known[full] = (artifact.id, job)
                while (
                    len(self._known) > KEPT
                    or sum(_size(one.description) for _, one in self._known.values()) > MOST_KEPT
                ):
                    del self._known[next(iter(self._known))]
            return job
        except LaunchError:
            raise
        except Exception as error:
            raise _reason(name, error) from error

    def _check_size(self, name: str, key: str) -> None:
        """Raise ItemRejected if the SDK would read too much about an artifact. If W&B cannot answer, the SDK reports why."""
        entity, project, version = name.split("/")
        question = {"query": ABOUT, "variables": {"entity": entity, "project": project, "name": version}}
        how: dict[str, Any] = {"auth": ("api", key), "allow_redirects": False, "stream": True}
        how["headers"] = UNPACKED | {"User-Agent": user_agent()}
        url = f"{self._base_url.rstrip('/')}/graphql"
        try:
            with requests.post(url, json=question, timeout=self._timeout, **how) as answer:
                content = body_of(answer, time.monotonic() + self._timeout, time.monotonic, LARGEST_ABOUT)
        except requests.RequestException as error:
            LOGGER.info("W&B does not show how large job %s is: %s", name, type(error).__name__)
            return
        if isinstance(content, bytes) and len(content) > LARGEST_ABOUT:
            found = f"has metadata, a description, tags and aliases of more than {LARGEST_ABOUT} bytes"
            raise ItemRejected(
                f"job: {name} {found}. Make them smaller, then launch it again.", code=Code.ARTIFACT_INVALID
            )

    def _described(self, name: str, artifact: Any, url: str) -> dict[str, Any]:
        """Download a description. Its address grants access, so no message has it.

        Like W&B's client, ask W&B itself for a file that its bucket refuses.
        """
        trouble = f"cannot download {DESCRIPTION} of job {name}"
        status, content = self._download(trouble, url)
        if status >= requests.codes.bad_request and (other := _address(artifact)):
            status, content = self._download(trouble, other, auth=("api", self._key.get()))
        if status in (requests.codes.not_found, requests.codes.gone):
            text = f"job: W&B no longer has the content of {name} (status {status}). Create the job again."
            raise ItemRejected(text, code=Code.ARTIFACT_NOT_FOUND)
        if (
            isinstance(content, json_reader.Unreadable)
            or not requests.codes.ok <= status < requests.codes.multiple_choices
        ):
            raise Unavailable(SERVICE, f"{trouble}: status {status}", code=Code.WANDB_UNAVAILABLE)
        if len(content) > LARGEST:
            raise _invalid(name, f"has a {DESCRIPTION} of more than {LARGEST} bytes")
        try:
            described = json_reader.read_object(content)
        except json_reader.Unreadable as error:
            raise _invalid(name, f"has a {DESCRIPTION} that {error.found}") from error
        needed = {part: described[part] for part in job_source.PARTS if part in described}
        if _size(needed) > LARGEST_KEPT:
            raise _invalid(name, f"has a {DESCRIPTION} whose source has more than {LARGEST_KEPT} characters")
        return needed

    def _download(self, trouble: str, url: str, **options: Any) -> tuple[int, bytes | json_reader.Unreadable]:
        try:
            with requests.get(url, headers=UNPACKED, timeout=self._timeout, stream=True, **options) as answer:
                content = body_of(answer, time.monotonic() + self._timeout, time.monotonic, LARGEST)
                return answer.status_code, content
        except requests.RequestException as error:
            raise Unavailable(SERVICE, f"{trouble}: {type(error).__name__}", code=Code.WANDB_UNAVAILABLE) from None

    def _open(self) -> Future[Any]:
        """Return the SDK's API with the current key, which the SDK is still checking; one check serves all threads."""
        key = self._key.get()
        with self._lock:
            if self.folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="vertex-launch-wandb-"))
                atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
                for kind in ("CACHE_", "DATA_", "ARTIFACT_", "CONFIG_", ""):
                    os.environ[f"WANDB_{kind}DIR"] = str(self.folder)
                os.environ["WANDB_SILENT"] = "true"
            if self._api is None or self._api_key != key or (self._api.done() and self._api.exception()):
                self._api = _in_thread(partial(self._start, key, anew=self._failed))
                self._api_key, self._failed = key, False
            return self._api

    def _start(self, key: str, *, anew: bool) -> Any:
        import wandb

        if anew:
            try:
                wandb.teardown()  # the only way to make the SDK start another helper process
            except Exception as error:  # noqa: BLE001 - the old one is replaced, however it ended
                LOGGER.info("the helper process of W&B's client ended with %r", error)
        return wandb.Api({"base_url": self._base_url}, timeout=max(1, round(self._timeout)), api_key=key)

    def _remembered(self, name: str, artifact: str = "") -> JobArtifact | None:
        """Return a version from memory, None if it is not there or does not have this id, if one is passed."""
        with self._lock:
            known, job = self._known.get(name, ("", None))
        return job if not artifact or known == artifact else None


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Run work that may hang in a thread that does not keep the process from ending."""
    done: Future[T] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - result() raises it
            done.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return done


def _address(artifact: Any) -> str:
    """Return the address at W&B of an artifact's description (``WandbStoragePolicy._file_url``), empty if there is none."""
    try:
        if artifact.file_count > MOST_FILES:
            return ""
        manifest = artifact.manifest
        entry = manifest.entries[DESCRIPTION]
        return "" if entry.ref else str(manifest.storage_policy._file_url(artifact, entry))
    except Exception as error:  # noqa: BLE001 - then the first answer counts
        LOGGER.info("W&B's client has no other address of a file: %s", type(error).__name__)
        return ""


def _size(description: Mapping[str, Any]) -> int:
    return len(json.dumps(description))


def _invalid(name: str, found: str) -> ItemRejected:
    text = f"job: {name} {found}, so it is not a job. Create it again, for example with wandb job create."
    return ItemRejected(text, code=Code.ARTIFACT_INVALID)


def _reason(name: str, error: Exception) -> ItemRejected | Unavailable:
    """Return a rejection if the job does not exist or is not a job, Unavailable if W&B cannot answer at the moment."""
    words = str(error) or repr(error.__cause__ or error)
    if "this artifact is of type" in words:
        text = f"job: {name} is not a job ({words}). Launch a job, as wandb job list shows them."
        return ItemRejected(text, code=Code.ARTIFACT_INVALID)
    if _ABSENT.search(words) and "[Errno" not in words:  # an [Errno] is about this machine, not about the job
        text = (
            f"job: W&B does not show {name} to this deployment's API key ({words}). Check the name and the version, or give "
            "the key's user access to its project."
        )
        return ItemRejected(text, code=Code.ARTIFACT_NOT_FOUND)
    return Unavailable(SERVICE, f"cannot look up job {name}: {words}", code=Code.WANDB_UNAVAILABLE)
