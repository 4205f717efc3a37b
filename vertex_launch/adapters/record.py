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
from urllib.parse import urlsplit

from google.api_core import exceptions
from google.auth.exceptions import GoogleAuthError
from google.cloud.storage import Blob, Client
from google.cloud.storage.retry import DEFAULT_RETRY
from requests.exceptions import RequestException

from vertex_launch.errors import PassBusy, PassLost, Unavailable
from vertex_launch.ledger import Ledger, Stored
from vertex_launch.model import Hold

# Else the client asks for the bucket's metadata in a thread of its own, which nothing here needs and which wants a right.
os.environ.setdefault("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA", "true")

SERVICE = "Cloud Storage"
HOLD = "hold.json"
LEDGER = "ledger.json"
ABSENT = 0
"""The generation that means: must not exist yet."""


class Record:
    """Hold and ledger under one ``gs://bucket[/prefix]``, a folder for each deployment."""

    def __init__(self, location: str, deployment: str, *, timeout: float, client: Client | None = None) -> None:
        parts = urlsplit(location)
        self._prefix = "/".join(part for part in (parts.path.strip("/"), deployment) if part)
        self._where = f"gs://{parts.netloc}/{self._prefix}"
        self._timeout = timeout
        self._retry = DEFAULT_RETRY.with_delay(initial=0.3, maximum=1.0, multiplier=1.3).with_timeout(timeout)
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
            if stored.ledger.writes == ledger.writes:
                return stored.generation  # the answer to this very write was lost
            generation = stored.generation  # the answer to an earlier one was
        raise PassLost("another pass has taken over: this one outlived its hold; nothing more is changed")

    # Objects

    def _blob(self, name: str) -> Blob:
        return self._bucket.blob(f"{self._prefix}/{name}")

    def _write(self, name: str, content: bytes, generation: int) -> int | None:
        """Write if the object's generation is that one; gives the new generation, None when it is another."""
        blob = self._blob(name)
        done = self._call(
            lambda: blob.upload_from_string(
                content,
                content_type="application/json",
                if_generation_match=generation,
                timeout=self._timeout,
                retry=self._retry,
            ),
            "write",
            name,
        )
        return int(blob.generation) if done else None

    def _read(self, name: str) -> tuple[bytes, int] | None:
        blob = self._blob(name)
        content: bytes = b""

        def download() -> None:
            nonlocal content
            content = blob.download_as_bytes(timeout=self._timeout, retry=self._retry)

        return (content, int(blob.generation)) if self._call(download, "read", name) else None

    def _call(self, operation: Callable[[], None], verb: str, name: str) -> bool:
        """Run an operation on an object; False when it is not there or is of another generation."""
        try:
            operation()
        except (exceptions.NotFound, exceptions.PreconditionFailed) as error:
            if isinstance(error, exceptions.NotFound) and verb == "write":
                raise Unavailable(
                    SERVICE, f"the bucket of {self._where} does not exist; create it or correct STATE_BUCKET"
                ) from error
            return False
        except exceptions.Forbidden as error:
            raise Unavailable(
                SERVICE,
                f"the function's service account may not {verb} {self._where}/{name}; grant it "
                f"roles/storage.objectUser on that bucket ({error.message})",
            ) from error
        except (exceptions.GoogleAPIError, GoogleAuthError, RequestException, OSError) as error:
            raise Unavailable(SERVICE, f"cannot {verb} {self._where}/{name}: {error}") from error
        return True


def _parse_hold(content: bytes) -> tuple[str, float]:
    """Read who holds and until when; a damaged hold counts as expired, for nobody can be waiting behind it."""
    try:
        hold = json.loads(content)
        return str(hold["pass_id"]), float(hold["expires"])
    except (ValueError, TypeError, KeyError):
        return "", 0.0
