"""A deployment's objects in a Cloud Storage bucket; ``vertex_launch.state.record`` keeps its lock and ledger there.

An object answers 429 to more than about one write a second. The client library's own retry waits for that.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import urlsplit

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage import Blob, Client
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY
from requests import RequestException, Response

from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable

# Otherwise the client reads the bucket's metadata in a thread of its own, which needs one more permission.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

T = TypeVar("T")

SERVICE = "Cloud Storage"

TROUBLE = (exceptions.GoogleAPIError, GoogleAuthError, DataCorruption, RequestException, OSError)
"""Everything that an operation on an object can raise."""

BACKOFF = DEFAULT_RETRY.with_delay(initial=0.3, maximum=1.0, multiplier=1.3)
"""Pauses between two attempts, at most as long as an object needs between two writes."""

NO_BUCKET = "bucket does not exist"
"""In the text of a 404 if the bucket is missing; if only the object is missing, the text has: No such object."""


class Bucket:
    """The objects in one deployment's folder under ``gs://bucket[/prefix]``; ``project`` is the requests' own."""

    def __init__(
        self,
        location: str,
        deployment: str,
        *,
        project: str,
        timeout: float,
        client: Client | None = None,
        backoff: Retry = BACKOFF,
    ) -> None:
        parts = urlsplit(location)
        self._prefix = "/".join(part for part in (parts.path.strip("/"), deployment) if part)
        self._where = f"gs://{parts.netloc}/{self._prefix}"
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._bucket = (client or Client(project=project)).bucket(parts.netloc)

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Return an object and its generation, None if it does not exist. Raises Unavailable."""

        def download() -> tuple[bytes, int]:
            blob = self._blob(name)
            content: bytes = blob.download_as_bytes(**self._limits)
            # Cloud Storage sends the generation with the content; not every stand-in does.
            return self._read_generation(name) if blob.generation is None else (content, int(blob.generation))

        return self._call(download, "read", name)

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        """Write the object if it has this generation, 0 for a new object. Return its new generation, None if it has another.

        Raises Unavailable.
        """

        def upload() -> int:
            blob = self._blob(name)
            blob.upload_from_string(
                content, content_type="application/json", if_generation_match=generation, **self._limits
            )
            return int(blob.generation)

        return self._call(upload, "write", name)

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(f"{self._prefix}/{name}")

    def _read_generation(self, name: str) -> tuple[bytes, int]:
        """Return the object's content and generation, asked for one after the other."""
        for _ in range(3):
            blob = self._blob(name)
            blob.reload(**self._limits)
            generation = int(blob.generation)
            with suppress(exceptions.NotFound):  # replaced in between
                exactly = self._bucket.blob(blob.name, generation=generation)
                return exactly.download_as_bytes(**self._limits), generation
        raise Unavailable(SERVICE, f"{self._where}/{name} changes too often to be read", code=Code.STORAGE_UNAVAILABLE)

    def _call(self, operation: Callable[[], T], verb: str, name: str) -> T | None:
        """Run an operation on an object. Return None if the object is missing or has another generation."""
        try:
            return operation()
        except exceptions.PreconditionFailed:
            return None
        except exceptions.NotFound as error:
            if verb == "read" and NO_BUCKET not in str(error):
                return None
            raise Unavailable(
                SERVICE,
                f"the bucket of {self._where} does not exist. Create it, or correct STATE_BUCKET",
                code=Code.STORAGE_BUCKET_NOT_FOUND,
            ) from error
        except exceptions.Forbidden as error:
            raise Unavailable(
                SERVICE,
                f"the function's service account may not {verb} {self._where}/{name}. Grant it "
                f"roles/storage.objectUser on that bucket ({words(error)})",
                code=Code.STORAGE_PERMISSION,
            ) from error
        except TROUBLE as error:
            raise Unavailable(
                SERVICE, f"cannot {verb} {self._where}/{name}: {words(error)}", code=Code.STORAGE_UNAVAILABLE
            ) from error


def words(error: Exception) -> str:
    """Return Cloud Storage's own words, those of the last attempt if there were several."""
    last = getattr(error, "cause", None) or error
    response = None if isinstance(last, DataCorruption) else getattr(last, "response", None)
    # The words of an HTTP response, without the client's own technical remarks.
    return str(exceptions.from_http_response(response) if isinstance(response, Response) else last)
