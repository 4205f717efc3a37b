"""The metadata server of one container: the container's service account, and access tokens for it.

On Google's machines its address is ``metadata.google.internal``. Here each container has its own address in
``GCE_METADATA_HOST``, so that no container gets the tokens of another. It has the paths that Google's clients read to get a
token; other paths are not found.
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
"""Seconds for which an access token is valid."""

_FLAVOR = {"Metadata-Flavor": "Google"}
_ACCOUNTS = "/computeMetadata/v1/instance/service-accounts/"
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]


class Tokens:
    """Random access tokens, each for one account and a limited time. For use from many threads.

    ``clock`` returns seconds. Servers look up the account of a token here.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._given: dict[str, tuple[str, float]] = {}

    def give(self, account: str) -> str:
        """Create a token of an account, valid for ``LIFETIME`` seconds."""
        token = f"ya29.{secrets.token_urlsafe(40)}"
        with self._lock:
            self._given[token] = (account, self._clock() + LIFETIME)
        return token

    def account(self, token: str) -> str | None:
        """Return the account of a token, or None if it is unknown or too old."""
        with self._lock:
            account, end = self._given.get(token, (None, 0.0))
            return account if self._clock() < end else None

    def given(self) -> list[str]:
        """Return all tokens ever issued, to search for them in places where they must not be."""
        with self._lock:
            return list(self._given)


class MetadataServer(WebServer):
    """Serves the metadata of a container that acts as ``account``, at ``host``."""

    def __init__(self, account: str, tokens: Tokens) -> None:
        self._account = account
        self._tokens = tokens
        super().__init__(_Handler)

    @property
    def host(self) -> str:
        """The value of ``GCE_METADATA_HOST``: ``127.0.0.1:port``."""
        return urlsplit(self.url).netloc

    def find(self, path: str, *, recursive: bool) -> object | None:
        """Return the text or the JSON value at a path, or None if the path does not exist."""
        if path == "/":  # clients detect Google's machines by it
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
    """Answers the requests of one container."""

    server: MetadataServer

    def serve(self) -> None:
        """Answer one request."""
        self.body()
        parts = urlsplit(self.path)
        # This keeps tokens from pages in a browser, and from URLs that a program was tricked into fetching.
        if self.headers["Metadata-Flavor"] != "Google" or self.headers["X-Forwarded-For"]:
            return self._say(403, "text/html", "Missing required header: Metadata-Flavor: Google")
        if self.command != "GET":
            return self._say(405, "text/html", f"{self.command} is not allowed.")
        found = self.server.find(parts.path, recursive="true" in parse_qs(parts.query).get("recursive", ()))
        if found is None:
            return self._say(404, "text/html", f"{parts.path} does not exist.")
        if isinstance(found, str):
            return self._say(200, "application/text", found)
        return self._say(200, "application/json", json.dumps(found))

    def _say(self, status: int, kind: str, text: str) -> None:
        self.answer(status, text.encode(), {**_FLAVOR, "Content-Type": kind})
