"""W&B's job artifacts, through the SDK's public API, which is imported when the first item with a job comes.

That costs a helper process of the SDK's and its memory, which deployments that launch only images never pay. Of an artifact
its own description is downloaded, never code; what the SDK writes goes to a folder that is emptied after the pass, for a
function's disk is its memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from vertex_launch.errors import ItemRejected, LaunchError, Unavailable
from vertex_launch.model import JobArtifact
from vertex_launch.services import Key

SERVICE = "W&B"
DESCRIPTION = "wandb-job.json"
KEPT = 256
"""Versions that are remembered; a version never changes, an alias may."""

_ABSENT = re.compile(r"not found|does not exist|no such|could not find|unable to fetch artifact", re.IGNORECASE)
_VERSION = re.compile(r"v\d+")


class JobArtifacts:
    """Finds job artifacts at ``base_url`` with the key; safe to use from many threads. ``timeout`` in seconds."""

    def __init__(self, base_url: str, key: Key, *, timeout: float) -> None:
        self._base_url = base_url
        self._key = key
        self._timeout = timeout
        self._lock = threading.Lock()
        self._known: OrderedDict[str, JobArtifact] = OrderedDict()
        self.folder: Path | None = None
        """Where the SDK writes, once it has been asked."""
        self._api: Any = None
        self._api_key = ""

    def find(self, name: str) -> JobArtifact:
        """Give the job artifact ``entity/project/name:alias``. Raises ItemRejected, Unavailable."""
        if _VERSION.fullmatch(name.rpartition(":")[2]) and (known := self._remembered(name)):
            return known
        try:
            api, folder = self._open()
            artifact = api.artifact(name, type="job")
            collection = artifact.name.partition(":")[0]
            full = f"{artifact.entity}/{artifact.project}/{collection}:{artifact.version}"
            if artifact.state == "DELETED":
                raise ItemRejected(f"job: {name} was deleted. Launch a version that is still there.")
            if known := self._remembered(full):
                return known
            with tempfile.TemporaryDirectory(dir=folder) as here:
                path = artifact.get_entry(DESCRIPTION).download(root=here, skip_cache=True)
                description = json.loads(Path(path).read_bytes())
        except LaunchError:
            raise
        except KeyError as error:
            raise ItemRejected(f"job: {name} has no {DESCRIPTION}, so it is no job. Make it anew.") from error
        except Exception as error:
            raise _reason(name, error) from error
        return self._remember(JobArtifact(full, description if isinstance(description, dict) else {}))

    def forget(self) -> None:
        """Empty the folder that the SDK writes to."""
        with self._lock:
            if self.folder is not None:
                for path in self.folder.iterdir():
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

    def _open(self) -> tuple[Any, Path]:
        """Give the SDK's API with today's key, and the folder that it may write to."""
        key = self._key.get()
        with self._lock:
            if self.folder is None:
                self.folder = Path(tempfile.mkdtemp(prefix="vertex-launch-wandb-"))
                for variable in (
                    "WANDB_CACHE_DIR",
                    "WANDB_DATA_DIR",
                    "WANDB_ARTIFACT_DIR",
                    "WANDB_CONFIG_DIR",
                    "WANDB_DIR",
                ):
                    os.environ[variable] = str(self.folder)
                os.environ["WANDB_SILENT"] = "true"
            if self._api is None or self._api_key != key:
                import wandb

                self._api = wandb.Api({"base_url": self._base_url}, timeout=round(self._timeout), api_key=key)
                self._api_key = key
            return self._api, self.folder

    def _remembered(self, name: str) -> JobArtifact | None:
        with self._lock:
            return self._known.get(name)

    def _remember(self, job: JobArtifact) -> JobArtifact:
        with self._lock:
            self._known[job.name] = job
            while len(self._known) > KEPT:
                self._known.popitem(last=False)
        return job


def _reason(name: str, error: Exception) -> ItemRejected | Unavailable:
    """Tell what cannot be found, or is no job, from what W&B could not answer just now."""
    said = str(error) or type(error).__name__
    if "this artifact is of type" in said:
        return ItemRejected(f"job: {name} is no job ({said}). Launch a job, as wandb job list shows them.")
    if _ABSENT.search(said):
        return ItemRejected(
            f"job: W&B does not show {name} to this deployment's API key ({said}). Check the name and the version, or give the "
            "key's user access to its project."
        )
    return Unavailable(SERVICE, f"cannot look up job {name}: {said}")
