"""Identities and permissions on loopback: the methods of Google's that only the preflight calls.

Over gRPC: ``TestIamPermissions`` and ``GetIamPolicy`` of projects (Resource Manager) and of service accounts (IAM). Over HTTP:
``generateAccessToken`` (IAM Credentials), the token endpoint that a key file names, and ``userinfo`` (OpenID Connect).
Both are plaintext or use TLS. A caller is identified by the bearer token.
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
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote

import grpc
from google.iam.v1.iam_policy_pb2 import (  # type: ignore[import-untyped]
    GetIamPolicyRequest,
    TestIamPermissionsRequest,
    TestIamPermissionsResponse,
)
from google.iam.v1.policy_pb2 import Binding, Policy  # type: ignore[import-untyped]

from local.standins.rpc import Refused, RpcServer, bearer, http_status, quota_project
from local.standins.web import Handler, WebServer

TOKEN_PATH = "/token"
"""The path that a service account's key file must name as its token URI."""

_TOKEN = "local-token-of-"
_GENERATE = re.compile(r"/v1/projects/[^/]+/serviceAccounts/([^/:]+):generateAccessToken")
_CODE = grpc.StatusCode


class IamServer(WebServer):
    """A local IAM. gRPC clients use ``endpoint``, HTTP clients ``url``.

    ``accounts`` are the service accounts that exist, ``bindings`` the roles of members by project or account: Google's own
    accounts have none before one is granted. Reading them takes the permission ``getIamPolicy``. ``denied`` holds pairs of a
    caller, empty for one without a token, and a permission that the caller lacks; every other permission is granted.
    ``disabled`` holds methods that answer like an API that is not enabled. ``calls`` counts requests by method and caller.
    ``certificate`` is a PEM file with a key, for TLS.
    """

    def __init__(
        self, *, projects: Collection[str], accounts: Collection[str], port: int = 0, certificate: Path | None = None
    ) -> None:
        self.accounts = set(accounts)
        self.bindings: dict[str, list[tuple[str, str]]] = {}
        self.quota_projects: set[str] = set()
        """Those that calls over gRPC have named; empty text for none."""
        self.denied: set[tuple[str, str]] = set()
        self.disabled: set[str] = set()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._projects = frozenset(projects)
        self._lock = threading.Lock()
        pem = certificate.read_bytes() if certificate else b""
        services = (("project", "cloud.resourcemanager.v3.Projects"), ("account", "iam.admin.v1.IAM"))
        self._rpc = RpcServer(
            {
                f"/google.{service}/{method}": (request, partial(answer, kind))
                for kind, service in services
                for method, request, answer in (
                    ("TestIamPermissions", TestIamPermissionsRequest, self._test),
                    ("GetIamPolicy", GetIamPolicyRequest, self._policy),
                )
            },
            port=port,
            certificate=(pem, pem) if pem else None,
        )
        super().__init__(_Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.scheme = "https"

    @property
    def endpoint(self) -> str:
        """The address of the gRPC server, with the scheme that clients use to choose between plaintext and TLS."""
        return f"{self.scheme}://{self._rpc.address}"

    def start(self) -> Self:
        """Start to answer."""
        self._rpc.start()
        return super().start()

    def stop(self) -> None:
        """Stop at once."""
        super().stop()
        self._rpc.stop()

    def answer(self, method: str, path: str, token: str, body: bytes) -> Mapping[str, Any]:
        """Answer a request over HTTP. Raises Refused."""
        if path == TOKEN_PATH:
            return self._token(body)
        caller = _caller(token)
        if path == "/v1/userinfo":
            self._count("userinfo", caller)
            return {"sub": "1", "email": caller} if caller else {}
        if method == "POST" and (found := _GENERATE.fullmatch(path)):
            return self._generate(caller, unquote(found[1]))
        raise Refused(_CODE.UNIMPLEMENTED, f"{method} {path} is not part of this local IAM.")

    def _count(self, method: str, caller: str) -> None:
        with self._lock:
            self.calls[method, caller] += 1
        if method in self.disabled:
            message = "The API has not been used in this project before or it is disabled."
            raise Refused(_CODE.PERMISSION_DENIED, message)

    def _find(self, kind: str, request: Any) -> str:
        """Return the caller, if what it asks about exists."""
        caller, known = _caller(bearer.get()), self.accounts if kind == "account" else self._projects
        self._count(kind, caller)
        self.quota_projects.add(quota_project.get())
        if request.resource.rpartition("/")[2] not in known:
            if kind == "account":
                raise Refused(_CODE.NOT_FOUND, "Unknown service account.")
            message = "The caller does not have permission, or the project does not exist."
            raise Refused(_CODE.PERMISSION_DENIED, message)
        return caller

    def _policy(self, kind: str, request: Any) -> Any:
        caller = self._find(kind, request)
        if (caller, "getIamPolicy") in self.denied:
            raise Refused(_CODE.PERMISSION_DENIED, "Permission 'getIamPolicy' denied on resource.")
        given = self.bindings.get(request.resource.rpartition("/")[2], [])
        return Policy(bindings=[Binding(role=role, members=[member]) for role, member in given])

    def _test(self, kind: str, request: Any) -> Any:
        caller = self._find(kind, request)
        granted = [one for one in request.permissions if (caller, one) not in self.denied]
        return TestIamPermissionsResponse(permissions=granted)

    def _generate(self, caller: str, account: str) -> Mapping[str, Any]:
        self._count("generateAccessToken", caller)
        if account not in self.accounts:
            raise Refused(_CODE.NOT_FOUND, f"Not found; Gaia id not found for email {account}")
        if (caller, "iam.serviceAccounts.getAccessToken") in self.denied or not caller:
            message = "Permission 'iam.serviceAccounts.getAccessToken' denied on resource."
            raise Refused(_CODE.PERMISSION_DENIED, message)
        end = datetime.now(UTC) + timedelta(hours=1)
        return {"accessToken": f"{_TOKEN}{account}", "expireTime": end.strftime("%Y-%m-%dT%H:%M:%SZ")}

    def _token(self, body: bytes) -> Mapping[str, Any]:
        """Issue a token for a service account's signed assertion, unchecked, or for a refresh token: a person's address."""
        form = parse_qs(body.decode())
        account = form["refresh_token"][0] if "refresh_token" in form else _issuer(form["assertion"][0])
        self._count("token", account)
        return {"access_token": f"{_TOKEN}{account}", "token_type": "Bearer", "expires_in": 3600}


def _caller(token: str) -> str:
    """Return whose token it is: one of ours, or a JWT that a service account signed itself."""
    return token.removeprefix(_TOKEN) if not token or token.startswith(_TOKEN) else _issuer(token)


def _issuer(jwt: str) -> str:
    """Return the issuer of a JWT, whose signature is not checked."""
    claims = jwt.split(".")[1]
    return str(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["iss"])


class _Handler(Handler):
    """Turns HTTP requests into answers."""

    server: IamServer

    def serve(self) -> None:
        """Answer one request."""
        body = self.body()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        try:
            self.answer_json(200, self.server.answer(self.command, self.path, token, body))
        except Refused as refused:
            status = http_status(refused.code)
            self.answer_json(
                status, {"error": {"code": status, "message": refused.message, "status": refused.code.name}}
            )
