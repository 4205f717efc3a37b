"""Who is who and who may do what, on loopback: the few REST methods of Google's that only the preflight asks.

Served are ``testIamPermissions`` of projects (Resource Manager) and of service accounts (IAM), ``generateAccessToken``
(IAM Credentials), the token endpoint that a key file names, and ``userinfo`` (OpenID Connect). One server plays all of these
hosts, in plaintext or with a certificate; a caller is known by the bearer token that he got here.
"""

from __future__ import annotations

import base64
import json
import re
import ssl
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from local.standins.web import Handler, WebServer

TOKEN_PATH = "/token"
"""Where a service account's key file has to say that tokens are."""

_TOKEN = "local-token-of-"
_TEST = "testIamPermissions"
_ACCOUNTS = r"/v1/projects/([^/]+)/serviceAccounts/([^/:]+)"
_PROJECT = re.compile(rf"/v3/projects/([^/:]+):{_TEST}")
_ACCOUNT = re.compile(rf"{_ACCOUNTS}:{_TEST}")
_GENERATE = re.compile(rf"{_ACCOUNTS}:generateAccessToken")


class _Refused(Exception):
    """The request is answered with this status in Google's JSON form of an error."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.body = {"error": {"code": status, "message": message, "status": code}}
        super().__init__(message)


class IamServer:
    """A local IAM: ``start`` and ``stop`` it; every overridden endpoint is its ``url``.

    ``accounts`` are the service accounts that exist. ``denied`` are pairs of a caller, empty for one without a token, and
    a permission that he has not; every other one he has. ``disabled`` are methods that answer as an API does that nobody
    enabled. ``calls`` counts requests by method and caller. ``certificate`` is a PEM file with a key, for TLS.
    """

    def __init__(
        self, *, projects: Collection[str], accounts: Collection[str], port: int = 0, certificate: Path | None = None
    ) -> None:
        self.accounts = set(accounts)
        self.denied: set[tuple[str, str]] = set()
        self.disabled: set[str] = set()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._projects = frozenset(projects)
        self._lock = threading.Lock()
        self._web = WebServer(type("IamHandler", (_Handler,), {"iam": self}), port)
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._web.socket = context.wrap_socket(self._web.socket, server_side=True)
            self._scheme = "https"

    @property
    def url(self) -> str:
        """Where it is."""
        return self._web.url.replace("http", self._scheme, 1)

    def start(self) -> None:
        """Begin to answer."""
        self._web.start()

    def stop(self) -> None:
        """End at once."""
        self._web.stop()

    def answer(self, method: str, path: str, caller: str, body: bytes) -> Mapping[str, Any]:
        """Do what a request asks for. Raises _Refused."""
        if path == TOKEN_PATH:
            return self._token(body)
        if path == "/v1/userinfo":
            self._count("userinfo", caller)
            return {"sub": "1", "email": caller} if caller else {}
        if method == "POST" and (found := _PROJECT.fullmatch(path)):
            return self._test(caller, json.loads(body), "project", known=found[1] in self._projects)
        if method == "POST" and (found := _ACCOUNT.fullmatch(path)):
            return self._test(caller, json.loads(body), "account", known=unquote(found[2]) in self.accounts)
        if method == "POST" and (found := _GENERATE.fullmatch(path)):
            return self._generate(caller, unquote(found[2]))
        raise _Refused(501, "UNIMPLEMENTED", f"{method} {path} is no part of this local IAM.")

    def _count(self, method: str, caller: str) -> None:
        with self._lock:
            self.calls[method, caller] += 1
        if method in self.disabled:
            raise _Refused(
                403, "PERMISSION_DENIED", "The API has not been used in this project before or it is disabled."
            )

    def _test(self, caller: str, body: Mapping[str, Any], kind: str, *, known: bool) -> Mapping[str, Any]:
        self._count(kind, caller)
        if not known and kind == "account":
            raise _Refused(404, "NOT_FOUND", "Unknown service account.")
        if not known:
            raise _Refused(
                403, "PERMISSION_DENIED", "The caller does not have permission, or the project does not exist."
            )
        granted = [one for one in body["permissions"] if (caller, one) not in self.denied]
        return {"permissions": granted} if granted else {}

    def _generate(self, caller: str, account: str) -> Mapping[str, Any]:
        self._count("generateAccessToken", caller)
        if account not in self.accounts:
            raise _Refused(404, "NOT_FOUND", f"Not found; Gaia id not found for email {account}")
        if (caller, "iam.serviceAccounts.getAccessToken") in self.denied or not caller:
            raise _Refused(
                403, "PERMISSION_DENIED", "Permission 'iam.serviceAccounts.getAccessToken' denied on resource."
            )
        end = datetime.now(UTC) + timedelta(hours=1)
        return {"accessToken": f"{_TOKEN}{account}", "expireTime": end.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def _token(self, body: bytes) -> Mapping[str, Any]:
        """Give a token for what a service account has signed, unchecked, or for a refresh token: a person's address."""
        form = parse_qs(body.decode())
        if "refresh_token" in form:
            account = form["refresh_token"][0]
        else:
            claims = form["assertion"][0].split(".")[1]
            account = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iss"]
        self._count("token", account)
        return {"access_token": f"{_TOKEN}{account}", "token_type": "Bearer", "expires_in": 3600}


class _Handler(Handler):
    """Turns requests into answers."""

    iam: IamServer

    def serve(self) -> None:
        """Answer one request."""
        body = self.body()
        caller = self.headers.get("Authorization", "").removeprefix("Bearer ").removeprefix(_TOKEN)
        try:
            self.answer_json(200, self.iam.answer(self.command, self.path, caller, body))
        except _Refused as refused:
            self.answer_json(refused.status, refused.body)
