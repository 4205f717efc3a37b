"""The record: the hold and the ledger, two small objects in a Cloud Storage bucket.

Two, because an object takes about one write a second. Every write carries the generation that it replaces, so that of two
writers one is told so; a 429 is waited out by the client library's own retry. An answer may be lost after its write took
effect, and the retry is then refused: what stands in the object says whose write it was.

The hold is never deleted: the ledger that a pass writes at its end names the generation of the hold that it gives back, and
the next pass replaces exactly that one. So a pass costs one write of the hold, and needs not wait to give it back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from urllib.parse import urlsplit

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage import Blob, Client
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from vertex_launch.errors import PassBusy, PassLost, Unavailable
from vertex_launch.ledger import Ledger, Stored
from vertex_launch.model import Hold

# Else the client asks for the bucket's metadata in a thread of its own, which nothing here needs and which wants a right.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

T = TypeVar("T")

SERVICE = "Cloud Storage"
HOLD = "hold.json"
LEDGER = "ledger.json"
ABSENT = 0
"""The generation that means: must not exist yet."""

TROUBLE = (exceptions.GoogleAPIError, GoogleAuthError, DataCorruption, RequestException, OSError)
"""Everything that an operation on an object can raise."""

BACKOFF = DEFAULT_RETRY.with_delay(initial=0.3, maximum=1.0, multiplier=1.3)
"""Pauses between two attempts, up to the time that an object needs between two writes."""


class Record:
    """Hold and ledger under one ``gs://bucket[/prefix]``, a folder for each deployment."""

    def __init__(
        self,
        location: str,
        deployment: str,
        *,
        timeout: float,
        client: Client | None = None,
        backoff: Retry = BACKOFF,
    ) -> None:
        parts = urlsplit(location)
        self._prefix = "/".join(part for part in (parts.path.strip("/"), deployment) if part)
        self._where = f"gs://{parts.netloc}/{self._prefix}"
        self._again = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._bucket = (client or Client(project="unused-by-objects")).bucket(parts.netloc)

    # The hold

    def take_hold(self, pass_id: str, now: float, expires: float, free: int) -> Hold:
        """Become the one pass that runs; ``free`` is the generation of the hold that the ledger gives back, 0 for none.

        A hold that was not given back is taken over once it has expired. Raises PassBusy while another pass runs,
        Unavailable when the bucket does not answer.
        """
        content = json.dumps({"pass_id": pass_id, "expires": expires}).encode()
        generation = free
        for _ in range(3):
            taken = self._write(HOLD, content, generation)
            if taken is not None:
                return Hold(pass_id, expires, taken, taken_over=generation != free)
            found = self._read(HOLD)
            if found is None:
                generation = ABSENT  # somebody deleted it
                continue
            held, generation = found
            holder, until = _parse_hold(held)
            if holder == pass_id:
                return Hold(pass_id, expires, generation, taken_over=True)
            if now < until:
                raise PassBusy(f"pass {holder} is running, for {until - now:.0f} s more at most", until - now)
        raise PassBusy("other passes are beginning at this moment", 1.0)

    # The ledger

    def read(self) -> Stored:
        """Read the ledger. Raises Unavailable."""
        found = self._read(LEDGER)
        if found is None:
            return Stored(None, ABSENT)
        content, generation = found
        return Stored(Ledger.parse(content), generation)

    def write(self, ledger: Ledger, pass_id: str, generation: int) -> int:
        """Replace the ledger of that generation and give the new one.

        Raises PassLost when somebody else wrote since, Unavailable when the bucket does not answer.
        """
        ledger.writer, ledger.writes = pass_id, ledger.writes + 1
        for _ in range(2):
            written = self._write(LEDGER, ledger.dump(), generation)
            if written is not None:
                return written
            stored = self.read()
            if stored.ledger is None or stored.ledger.writer != pass_id:
                break
            if stored.ledger == ledger:
                return stored.generation  # the answer to this very write was lost
            generation = stored.generation  # the answer to an earlier one was
        raise PassLost("another pass has taken over: this one outlived its hold; nothing more is changed")

    # Objects

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(f"{self._prefix}/{name}")

    def _write(self, name: str, content: bytes, generation: int) -> int | None:
        """Write if the object's generation is that one; gives the new generation, None when it is another."""

        def upload() -> int:
            blob = self._blob(name)
            blob.upload_from_string(
                content, content_type="application/json", if_generation_match=generation, **self._again
            )
            return int(blob.generation)

        return self._call(upload, "write", name)

    def _read(self, name: str) -> tuple[bytes, int] | None:
        """Read an object and its generation; None when there is none."""

        def download() -> tuple[bytes, int]:
            blob = self._blob(name)
            content: bytes = blob.download_as_bytes(**self._again)
            # The real service tells the generation with the content, not every stand-in does.
            return self._read_generation(name) if blob.generation is None else (content, int(blob.generation))

        return self._call(download, "read", name)

    def _read_generation(self, name: str) -> tuple[bytes, int]:
        """Ask for the object's generation, then read the content of exactly that one."""
        for _ in range(3):
            blob = self._blob(name)
            blob.reload(**self._again)
            generation = int(blob.generation)
            with suppress(exceptions.NotFound):  # replaced in between
                exactly = self._bucket.blob(blob.name, generation=generation)
                return exactly.download_as_bytes(**self._again), generation
        raise Unavailable(SERVICE, f"{self._where}/{name} changes too often to be read")

    def _call(self, operation: Callable[[], T], verb: str, name: str) -> T | None:
        """Run an operation on an object; None when it is not there or is of another generation."""
        try:
            return operation()
        except (exceptions.NotFound, exceptions.PreconditionFailed) as error:
            if isinstance(error, exceptions.NotFound) and verb == "write":
                raise Unavailable(
                    SERVICE, f"the bucket of {self._where} does not exist; create it or correct STATE_BUCKET"
                ) from error
            return None
        except exceptions.Forbidden as error:
            raise Unavailable(
                SERVICE,
                f"the function's service account may not {verb} {self._where}/{name}; grant it "
                f"roles/storage.objectUser on that bucket ({error.message})",
            ) from error
        except TROUBLE as error:
            raise Unavailable(SERVICE, f"cannot {verb} {self._where}/{name}: {_said(error)}") from error


def _said(error: Exception) -> str:
    """Give Cloud Storage's own words, those of the last attempt where there were several."""
    last = getattr(error, "cause", None) or error
    return str(exceptions.from_http_response(last.response) if isinstance(last, InvalidResponse) else last)


def _parse_hold(content: bytes) -> tuple[str, float]:
    """Read who holds and until when; a damaged hold counts as expired, for nobody can be waiting behind it."""
    try:
        hold = json.loads(content)
        return str(hold["pass_id"]), float(hold["expires"])
    except (ValueError, TypeError, KeyError):
        return "", 0.0
