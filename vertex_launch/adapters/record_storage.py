"""The storage of the record: objects in a Cloud Storage bucket, where ``vertex_launch.state.record`` keeps lock and ledger.

An object answers 429 to more than about one write a second. The client library's own retry waits for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.cloud.storage import Client
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from vertex_launch.adapters.google_api import reported
from vertex_launch.codes import Code
from vertex_launch.errors import Message, Unavailable
from vertex_launch.settings.config import Settings

# Otherwise the client reads the bucket's metadata in a thread of its own, which needs one more permission.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

SERVICE = "Cloud Storage"

BACKOFF = DEFAULT_RETRY.with_delay(initial=0.3, maximum=1.0, multiplier=1.3)
"""Pauses between two attempts, at most as long as an object needs between two writes."""

NO_BUCKET = "bucket does not exist"
"""In the text of a 404 if the bucket is missing; if only the object is missing, the text has: No such object."""


class RecordStorage:
    """The objects in one deployment's folder under ``state_bucket``."""

    def __init__(self, settings: Settings, client: Client, *, backoff: Retry = BACKOFF) -> None:
        parts, timeout = urlsplit(settings.state_bucket), settings.timeouts.look
        self._prefix = f"{parts.path.strip('/')}/{settings.deployment}".removeprefix("/")
        self._where = f"gs://{parts.netloc}/{self._prefix}"
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._bucket = client.bucket(parts.netloc)

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Return an object and its generation, None if it does not exist. Raises Unavailable."""
        blob = self._bucket.blob(f"{self._prefix}/{name}")
        with self._reported("read", name):
            try:
                content: bytes = blob.download_as_bytes(**self._limits)
                # Cloud Storage sends the generation with the content; not every stand-in does.
                found = self._read_generation(name) if blob.generation is None else (content, int(blob.generation))
            except exceptions.NotFound as error:
                if NO_BUCKET in str(error):
                    raise
                return None
        return found

    def written(self, name: str) -> float:
        """Return when an object was written (Unix seconds by Cloud Storage's clock), 0 if it does not exist.

        Raises Unavailable.
        """
        blob = self._bucket.blob(f"{self._prefix}/{name}")
        with self._reported("read", name), suppress(exceptions.NotFound):
            blob.reload(**self._limits)
        return float(blob.updated.timestamp()) if blob.updated else 0.0

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        """Write the object if it has this generation, 0 for a new object. Return its new generation, None if it has another.

        Raises Unavailable.
        """
        blob = self._bucket.blob(f"{self._prefix}/{name}")
        how = {"content_type": "application/json", "if_generation_match": generation, **self._limits}
        with self._reported("write", name):
            try:
                blob.upload_from_string(content, **how)
            except exceptions.PreconditionFailed:
                return None
        return int(blob.generation)

    def _read_generation(self, name: str) -> tuple[bytes, int]:
        """Return the object's content and generation, asked for one after the other."""
        for _ in range(3):
            blob = self._bucket.blob(f"{self._prefix}/{name}")
            blob.reload(**self._limits)
            generation = int(blob.generation)
            with suppress(exceptions.NotFound):  # replaced in between
                exactly = self._bucket.blob(blob.name, generation=generation)
                return exactly.download_as_bytes(**self._limits), generation
        raise Unavailable(SERVICE, f"{self._where}/{name} changes too often to be read", code=Code.STORAGE_UNAVAILABLE)

    @contextmanager
    def _reported(self, verb: str, name: str) -> Iterator[None]:
        """Raise Unavailable for an error of the operation inside."""
        path = f"{self._where}/{name}"
        missing = f"the bucket of {self._where} does not exist. Create it, or correct STATE_BUCKET"
        forbidden = (
            f"the function's service account may not {verb} {path}. Grant it roles/storage.objectUser on that bucket"
        )
        known = {
            exceptions.NotFound: Message(Code.STORAGE_BUCKET_NOT_FOUND, missing),
            exceptions.Forbidden: Message(Code.STORAGE_PERMISSION, forbidden),
        }
        with reported(SERVICE, Message(Code.STORAGE_UNAVAILABLE, f"cannot {verb} {path}"), known):
            try:
                yield
            except DataCorruption as error:
                raise exceptions.DataLoss(str(error)) from error
