"""W&B's job artifacts, through the SDK's public API, which is imported when the first item with a job comes.

That costs a helper process of the SDK's and its memory, which deployments that launch only images never pay. Of an artifact
its own description is downloaded, never code; what the SDK writes goes to a folder that is emptied after the pass, for a
function's disk is its memory. The SDK downloads without a time limit and tries again for many minutes, so the description
is fetched here, from the address that the SDK tells.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import requests

from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import ItemRejected, LaunchError, Unavailable
from vertex_launch.log import LOGGER
from vertex_launch.model import JobArtifact
from vertex_launch.problems import shown

SERVICE = "W&B"
DESCRIPTION = "wandb-job.json"
KEPT = 256
"""Versions that are remembered; a version never changes, an alias may."""
LARGEST = 2**20
"""Bytes that are read of a description; the client's own have one or two thousand."""
_CHUNK = 2**14
IMPATIENT = 0.1
"""What is left of the timeout for a look-up in a pass in which W&B has failed to answer one."""

_NAME = re.compile(r"([^/:\x00-\x1f]+/){2}[^/:\x00-\x1f]+:[^/:\x00-\x1f]+")
_ABSENT = re.compile(
    r"not found|does not exist|no such|could not find|unable to fetch artifact|permission|forbidden|not authorized",
    re.IGNORECASE,
)
_VERSION = re.compile(r"v\d+")


class JobArtifacts:
    """Finds job artifacts at ``base_url`` with the key; safe to use from many threads.

    A look-up takes ``timeout`` seconds at most, and a tenth of that once one has failed, so that W&B being slow does not eat
    a pass; ``forget`` begins anew, after a failure with another helper process, for the old one may be what is gone.
    """

    def __init__(self, base_url: str, key: Key, *, timeout: float) -> None:
        self._base_url = base_url
        self._key = key
        self._timeout = timeout
        self._patience = timeout
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, JobArtifact]] = OrderedDict()
        """By the full name, with the id: what is deleted and made again has the same name."""
        self.folder: Path | None = None
        """Where the SDK writes, once it has been asked."""
        self._api: Future[Any] | None = None
        self._api_key = ""
        self._failed = False

    def find(self, name: str) -> JobArtifact:
        """Give the job artifact ``entity/project/name:alias``. Raises ItemRejected, Unavailable."""
        if not _NAME.fullmatch(name):
            raise ItemRejected(
                f"job: {shown(name)} is not the name of a job. Write entity/project/name:version, as wandb job list shows it."
            )
        if _VERSION.fullmatch(name.rpartition(":")[2]) and (known := self._remembered(name)):
            return known
        looking, patience = _in_thread(partial(self._look_up, self._open(), name)), self._patience
        try:
            found: JobArtifact = looking.result(patience)
        except TimeoutError:
            self._fail()
            raise Unavailable(SERVICE, f"cannot look up job {name}: no answer within {patience:g} s") from None
        except Unavailable:
            self._fail()
            raise
        return found

    def _fail(self) -> None:
        self._patience, self._failed = self._timeout * IMPATIENT, True

    def forget(self) -> None:
        """Empty the folder that the SDK writes to, and have patience again."""
        self._patience = self._timeout
        with self._lock:
            if self._failed:
                self._api = None
            if self.folder is not None:
                for path in self.folder.iterdir():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _look_up(self, api: Future[Any], name: str) -> JobArtifact:
        try:
            artifact = api.result().artifact(name, type="job")
            collection = artifact.name.partition(":")[0]
            full = f"{artifact.entity}/{artifact.project}/{collection}:{artifact.version}"
            if artifact.state == "DELETED":
                raise ItemRejected(f"job: {name} was deleted. Launch a version that is still there.")
            if known := self._remembered(full, artifact.id):
                return known
            file = next(iter(artifact.files([DESCRIPTION], per_page=1)), None)
            if file is None:
                raise ItemRejected(f"job: {name} has no {DESCRIPTION}, so it is no job. Make it anew.")
            return self._remember(artifact.id, JobArtifact(full, self._described(name, file.direct_url)))
        except LaunchError:
            raise
        except Exception as error:
            raise _reason(name, error) from error

    def _described(self, name: str, url: str) -> dict[str, Any]:
        """Download a description. The address grants access by itself, so it is in no message."""
        trouble = f"cannot download {DESCRIPTION} of job {name}"
        try:
            with requests.get(url, timeout=self._timeout, stream=True) as answer:
                status = answer.status_code
                content = b"".join(itertools.islice(answer.iter_content(_CHUNK), LARGEST // _CHUNK))
        except requests.RequestException as error:
            raise Unavailable(SERVICE, f"{trouble}: {type(error).__name__}") from None
        if status in (requests.codes.not_found, requests.codes.gone):
            raise ItemRejected(f"job: the content of {name} is no longer at W&B (status {status}). Make the job anew.")
        if not requests.codes.ok <= status < requests.codes.multiple_choices:
            raise Unavailable(SERVICE, f"{trouble}: status {status}")
        try:
            description = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ItemRejected(
                f"job: {DESCRIPTION} of {name} is not JSON ({error}), so it is no job. Make it anew, as with wandb job create."
            ) from error
        if not isinstance(description, dict):
            raise ItemRejected(
                f"job: {DESCRIPTION} of {name} is no JSON object. Make it anew, as with wandb job create."
            )
        return description

    def _open(self) -> Future[Any]:
        """Give the SDK's API with today's key, which it is about to check; one check serves all who ask meanwhile."""
        key = self._key.get()
        with self._lock:
            if self.folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="vertex-launch-wandb-"))
                atexit.register(shutil.rmtree, self.folder, ignore_errors=True)
                for variable in (
                    "WANDB_CACHE_DIR",
                    "WANDB_DATA_DIR",
                    "WANDB_ARTIFACT_DIR",
                    "WANDB_CONFIG_DIR",
                    "WANDB_DIR",
                ):
                    os.environ[variable] = str(self.folder)
                os.environ["WANDB_SILENT"] = "true"
            if self._api is None or self._api_key != key or (self._api.done() and self._api.exception()):
                self._api = _in_thread(partial(self._begin, key, anew=self._failed))
                self._api_key, self._failed = key, False
            return self._api

    def _begin(self, key: str, *, anew: bool) -> Any:
        import wandb

        if anew:
            try:
                wandb.teardown()  # nothing else makes the SDK start another helper process
            except Exception as error:  # noqa: BLE001 - the old one's last words do not matter
                LOGGER.info("the helper process of W&B's client ended with %r", error)
        return wandb.Api({"base_url": self._base_url}, timeout=max(1, round(self._timeout)), api_key=key)

    def _remembered(self, name: str, artifact: str = "") -> JobArtifact | None:
        """Give what is known of a version; of one that W&B has just told the id of only if it is that."""
        with self._lock:
            known, job = self._known.get(name, ("", None))
        return job if not artifact or known == artifact else None

    def _remember(self, artifact: str, job: JobArtifact) -> JobArtifact:
        with self._lock:
            self._known[job.name] = (artifact, job)
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return job


def _in_thread(work: Callable[[], Any]) -> Future[Any]:
    """Do something that may hang in a thread of its own, which does not keep the process from ending."""
    done: Future[Any] = Future()

    def do() -> None:
        try:
            done.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            done.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return done


def _reason(name: str, error: Exception) -> ItemRejected | Unavailable:
    """Tell what cannot be found, or is no job, from what W&B could not answer just now."""
    said = str(error) or repr(error.__cause__ or error)
    if "this artifact is of type" in said:
        return ItemRejected(f"job: {name} is no job ({said}). Launch a job, as wandb job list shows them.")
    if _ABSENT.search(said) and "[Errno" not in said:  # that would be of this machine, and of no job
        return ItemRejected(
            f"job: W&B does not show {name} to this deployment's API key ({said}). Check the name and the version, or give the "
            "key's user access to its project."
        )
    return Unavailable(SERVICE, f"cannot look up job {name}: {said}")
