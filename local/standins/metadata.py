"""The metadata server of one container: who the container acts as, and access tokens that prove it.

On Google's machines it is at ``metadata.google.internal``; here each container is told an address of its own
(``GCE_METADATA_HOST``), so that none gets the tokens of another. Of the real server's tree there is what clients of Google's
ask for on their way to a token; what is not there is not found.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable
from urllib.parse import parse_qs, unquote, urlsplit

from local.standins.web import Handler, WebServer

LIFETIME = 3599
"""Seconds for which an access token is good."""

_FLAVOR = {"Metadata-Flavor": "Google"}
_ACCOUNTS = "/computeMetadata/v1/instance/service-accounts/"
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


class Tokens:
    """Access tokens: random, each of one account and for a while. Safe to use from many threads.

    ``clock`` gives seconds. Servers that take tokens ask it whose they are.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._given: dict[str, tuple[str, float]] = {}

    def give(self, account: str) -> str:
        """Make a token of an account, good for ``LIFETIME`` seconds."""
        token = f"ya29.{secrets.token_urlsafe(40)}"
        with self._lock:
            self._given[token] = (account, self._clock() + LIFETIME)
        return token

    def account(self, token: str) -> str | None:
        """Say whose a token is; None for one that was never given or is too old."""
        with self._lock:
            account, end = self._given.get(token, (None, 0.0))
            return account if self._clock() < end else None

    def given(self) -> list[str]:
        """Give all tokens that there ever were, to look for them where they must not be."""
        with self._lock:
            return list(self._given)


class MetadataServer(WebServer):
    """Serves what a container of ``account`` may know, at ``host``: a context manager, or ``start`` and ``stop`` it."""

    def __init__(self, account: str, tokens: Tokens) -> None:
        self._account = account
        self._tokens = tokens
        super().__init__(_Handler)

    @property
    def host(self) -> str:
        """What ``GCE_METADATA_HOST`` has to be: ``127.0.0.1:port``."""
        return urlsplit(self.url).netloc

    def find(self, path: str, *, recursive: bool) -> object | None:
        """Give what is at a path, a text or what becomes JSON; None for nothing."""
        if path == "/":  # by which clients tell that they are on a machine of Google's
            return "computeMetadata/\n"
        name, _, field = path.removeprefix(_ACCOUNTS).partition("/")
        if not path.startswith(_ACCOUNTS) or unquote(name) not in ("default", self._account):
            return None
        if field == "token":
            return {"access_token": self._tokens.give(self._account), "expires_in": LIFETIME, "token_type": "Bearer"}
        fields = {"aliases": ["default"], "email": self._account, "scopes": _SCOPES}
        if not field and recursive:
            return fields
        found = fields.get(field)
        return "".join(f"{line}\n" for line in found) if isinstance(found, list) else found


class _Handler(Handler):
    """Turns requests into answers."""

    server: MetadataServer

    def serve(self) -> None:
        """Answer one request."""
        self.body()
        parts = urlsplit(self.path)
        # So that no page in a browser, and no URL that a program was talked into fetching, gets a token.
        if self.headers["Metadata-Flavor"] != "Google" or self.headers["X-Forwarded-For"]:
            return self._say(403, "text/html", "Missing required header: Metadata-Flavor: Google")
        if self.command != "GET":
            return self._say(405, "text/html", f"{self.command} is not allowed.")
        found = self.server.find(parts.path, recursive="true" in parse_qs(parts.query).get("recursive", ()))
        if found is None:
            return self._say(404, "text/html", f"{parts.path} is not there.")
        if isinstance(found, str):
            return self._say(200, "application/text", found)
        return self._say(200, "application/json", json.dumps(found))

    def _say(self, status: int, kind: str, text: str) -> None:
        self.answer(status, text.encode(), {**_FLAVOR, "Content-Type": kind})
