"""The W&B API key, read from Secret Manager and kept in memory for a while."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import google_crc32c
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import Credentials
from google.cloud.secretmanager_v1 import SecretManagerServiceClient

from vertex_launch.adapters import grpc_endpoint
from vertex_launch.adapters.grpc_endpoint import BACKOFF, TROUBLE
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable
from vertex_launch.log import Redactor

SERVICE = "Secret Manager"


class SecretKey:
    """The API key in one secret version. Each value that is read is registered with the redactor before it is returned."""

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
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._clock = clock
        self._client = grpc_endpoint.client(SecretManagerServiceClient, endpoint, credentials)
        self._lock = threading.Lock()
        self._key = ""
        self._read_at = 0.0

    def get(self) -> str:
        """Return the key, at most ``ttl`` seconds old. Raises Unavailable."""
        with self._lock:
            if not self._key or self._clock() - self._read_at >= self._ttl:
                self._read()
            return self._key

    def renew(self, refused: str) -> str:
        """Return the key, read again unless another thread has replaced ``refused`` already. Raises Unavailable."""
        with self._lock:
            if self._key == refused:
                self._read()
            return self._key

    def _read(self) -> None:
        version = self._version
        try:
            payload = self._client.access_secret_version(name=version, **self._limits).payload
        except exceptions.PermissionDenied as error:
            raise Unavailable(
                SERVICE,
                f"the function's service account may not read {version}. Grant it roles/secretmanager.secretAccessor on "
                f"that secret ({error.message})",
                code=Code.SECRET_PERMISSION,
            ) from error
        except exceptions.NotFound as error:
            raise Unavailable(
                SERVICE,
                f"{version} does not exist. Add a version that holds the W&B API key, or correct WANDB_API_KEY_SECRET "
                f"({error.message})",
                code=Code.SECRET_NOT_FOUND,
            ) from error
        except exceptions.FailedPrecondition as error:
            raise Unavailable(
                SERVICE,
                f"{version} is disabled or destroyed. Enable it, or add a new version ({error.message})",
                code=Code.SECRET_NOT_FOUND,
            ) from error
        except TROUBLE as error:
            raise Unavailable(SERVICE, f"cannot read {version}: {error}", code=Code.SECRET_UNAVAILABLE) from error
        if payload.data_crc32c and google_crc32c.value(payload.data) != payload.data_crc32c:
            raise Unavailable(
                SERVICE,
                f"{version} arrived damaged: its checksum differs. The next pass reads it again",
                code=Code.SECRET_UNAVAILABLE,
            )
        self._key = _key(payload.data, version)
        self._redact.add(self._key)
        self._read_at = self._clock()


def _key(data: bytes, version: str) -> str:
    """Return the secret as a key, without the line break that ``echo`` adds. Raises Unavailable."""
    try:
        key = data.decode("ascii").strip()
    except UnicodeDecodeError:
        key = ""
    if not key or not key.isprintable() or " " in key:
        raise Unavailable(
            SERVICE,
            f"{version} does not hold a W&B API key: it is empty, or not one word of ASCII text. Add a version that holds "
            "only the key",
            code=Code.SECRET_INVALID,
        )
    return key
