"""The W&B API key, read from Secret Manager and kept in memory for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import google_crc32c
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import Credentials
from google.cloud import secretmanager_v1

from vertex_launch.adapters.grpc_endpoint import BACKOFF, TROUBLE, insecure_channel, is_plaintext
from vertex_launch.errors import Unavailable
from vertex_launch.log import Redactor

SERVICE = "Secret Manager"


class SecretKey:
    """The API key of one secret version. Every value read is made known to the redactor before anybody sees it.

    ``credentials`` are the application default ones where none are given.
    """

    def __init__(
        self,
        version: str,
        redact: Redactor,
        *,
        ttl: float,
        timeout: float,
        endpoint: str | None = None,
        credentials: Credentials | None = None,
        clock: Callable[[], float] = time.monotonic,
        backoff: Retry = BACKOFF,
    ) -> None:
        self._version = version
        self._redact = redact
        self._ttl = ttl
        # The client's own retries would go on for a minute.
        self._again = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._clock = clock
        self._client = _client(endpoint, credentials)
        self._lock = threading.Lock()
        self._key = ""
        self._read_at = 0.0

    def get(self) -> str:
        """Give the key, at most ``ttl`` seconds old. Raises Unavailable with what to do."""
        with self._lock:
            if not self._key or self._clock() - self._read_at >= self._ttl:
                self._read()
            return self._key

    def renew(self, refused: str) -> str:
        """Give the key, read again unless somebody did since ``refused`` was given out. Raises Unavailable."""
        with self._lock:
            if self._key == refused:
                self._read()
            return self._key

    def _read(self) -> None:
        try:
            answer = self._client.access_secret_version(name=self._version, **self._again)
        except exceptions.PermissionDenied as error:
            raise Unavailable(
                SERVICE,
                f"the function's service account may not read {self._version}; grant it "
                f"roles/secretmanager.secretAccessor on that secret ({error.message})",
            ) from error
        except exceptions.NotFound as error:
            raise Unavailable(
                SERVICE,
                f"{self._version} does not exist; add a version that holds the W&B API key, or correct "
                f"WANDB_API_KEY_SECRET ({error.message})",
            ) from error
        except exceptions.FailedPrecondition as error:
            raise Unavailable(
                SERVICE,
                f"{self._version} is disabled or destroyed; enable it or add a new version ({error.message})",
            ) from error
        except TROUBLE as error:
            raise Unavailable(SERVICE, f"cannot read {self._version}: {error}") from error
        data = answer.payload.data
        if answer.payload.data_crc32c and google_crc32c.value(data) != answer.payload.data_crc32c:
            raise Unavailable(
                SERVICE, f"{self._version} arrived damaged (its checksum differs); the next pass reads it again"
            )
        self._key = _checked(data, self._version)
        self._redact.add(self._key)
        self._read_at = self._clock()


def _checked(data: bytes, version: str) -> str:
    """Give the secret as a key; a line break at its end, as ``echo`` leaves it, does no harm."""
    try:
        key = data.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable() or " " in key:
        raise Unavailable(
            SERVICE,
            f"{version} holds no W&B API key: it is empty or not a single line of ASCII text; add a version that holds the "
            "key alone",
        )
    return key


def _client(
    endpoint: str | None, credentials: Credentials | None = None
) -> secretmanager_v1.SecretManagerServiceClient:
    transport = secretmanager_v1.SecretManagerServiceClient.get_transport_class("grpc")
    if is_plaintext(endpoint):
        return secretmanager_v1.SecretManagerServiceClient(transport=transport(channel=insecure_channel(endpoint)))
    options = {"api_endpoint": endpoint} if endpoint else None
    return secretmanager_v1.SecretManagerServiceClient(credentials=credentials, client_options=options)
