"""The W&B API key, read from Secret Manager and kept in memory for a while."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

import google_crc32c
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import Credentials
from google.cloud.secretmanager_v1 import SecretManagerServiceClient

from vertex_launch.adapters.google_api import BACKOFF, client, reported
from vertex_launch.codes import Code
from vertex_launch.errors import Message, Unavailable
from vertex_launch.log import Redactor
from vertex_launch.settings.config import Settings

SERVICE = "Secret Manager"


def _regional(version: str) -> str | None:
    """Return the endpoint of a regional secret's region, None for a secret of the whole project."""
    region = re.match(r"projects/[^/]+/locations/([^/]+)/", version)
    return f"secretmanager.{region[1]}.rep.googleapis.com" if region else None


class SecretKey:
    """The API key in one secret version. Each value that is read is registered with the redactor before it is returned."""

    def __init__(
        self,
        settings: Settings,
        redact: Redactor,
        credentials: Credentials | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        backoff: Retry = BACKOFF,
    ) -> None:
        timeout = settings.timeouts.look
        self._settings = settings
        self._redact = redact
        # The client's own retries would go on for a minute.
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._clock = clock
        endpoint = settings.secretmanager_endpoint or _regional(settings.key_secret)
        self._client = client(SecretManagerServiceClient, endpoint, credentials)
        self._lock = threading.Lock()
        self._key = ""
        self._read_at = 0.0

    def get(self) -> str:
        """Return the key, at most ``key_ttl`` seconds old. Raises Unavailable."""
        with self._lock:
            if not self._key or self._clock() - self._read_at >= self._settings.key_ttl:
                self._read()
            return self._key

    def renew(self, refused: str) -> str:
        """Return the key, read again unless another thread has replaced ``refused`` already. Raises Unavailable."""
        with self._lock:
            if self._key == refused:
                self._read()
            return self._key

    def _read(self) -> None:
        version = self._settings.key_secret
        forbidden = (
            f"the function's service account may not read {version}. Grant it roles/secretmanager.secretAccessor on that "
            "secret"
        )
        missing = f"{version} does not exist. Add a version that holds the W&B API key, or correct WANDB_API_KEY_SECRET"
        disabled = f"{version} is disabled or destroyed. Enable it, or add a new version"
        known = {
            exceptions.PermissionDenied: Message(Code.SECRET_PERMISSION, forbidden),
            exceptions.NotFound: Message(Code.SECRET_NOT_FOUND, missing),
            exceptions.FailedPrecondition: Message(Code.SECRET_NOT_FOUND, disabled),
        }
        with reported(SERVICE, Message(Code.SECRET_UNAVAILABLE, f"cannot read {version}"), known):
            payload = self._client.access_secret_version(name=version, **self._limits).payload
        if payload.data_crc32c and google_crc32c.value(payload.data) != payload.data_crc32c:
            damaged = f"{version} arrived damaged: its checksum differs. The next pass reads it again"
            raise Unavailable(SERVICE, damaged, code=Code.SECRET_UNAVAILABLE)
        # ``echo`` adds a line break.
        key = payload.data.decode("ascii", errors="replace").strip()
        if not re.fullmatch("[!-~]+", key):
            text = (
                f"{version} does not hold a W&B API key: it is empty, or contains spaces or non-ASCII characters. Add a "
                "version that holds only the key"
            )
            raise Unavailable(SERVICE, text, code=Code.SECRET_INVALID)
        self._redact.pin(key)
        self._key, self._read_at = key, self._clock()
