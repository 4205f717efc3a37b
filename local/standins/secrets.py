"""The stand-in for Secret Manager: AccessSecretVersion over gRPC and REST, on one port.

The functions use gRPC, in plaintext without credentials, and may read everything. Jobs use REST, each with an access token
of its own account. Names in answers have the project's number, like those of the real service. Requests may have number or
id.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import google_crc32c
import grpc
from google.cloud.secretmanager_v1 import (
    AccessSecretVersionRequest,
    AccessSecretVersionResponse,
    SecretPayload,
    SecretVersion,
)

from local.standins.faults import AnswerLost, FaultError, Faults
from local.standins.metadata import Tokens
from local.standins.rpc import Refused, RpcServer, http_status
from local.standins.shared_port import SharedPort
from local.standins.web import Handler

_ACCESS = "AccessSecretVersion"
_METHOD = f"/google.cloud.secretmanager.v1.SecretManagerService/{_ACCESS}"
_URL = re.compile(r"/v1/(.+):access")
_SECRET = re.compile(r"projects/([^/]+)/secrets/([^/]+)")
_VERSION = re.compile(r"(projects/[^/]+/secrets/[^/]+)/versions/([0-9]+|latest)")
_CODE = grpc.StatusCode
_STATE = SecretVersion.State


class SecretServer(SharedPort):
    """A local Secret Manager. Channels and URLs use ``address``.

    ``projects`` maps ids to numbers. ``tokens`` knows the account of an access token. ``calls`` counts calls by name, over
    gRPC and REST. ``read`` lists the account and the version of each secret read over REST. While ``corrupt`` is true,
    payloads arrive changed, and their checksums do not.
    """

    def __init__(
        self, *, projects: Mapping[str, str], tokens: Tokens | None = None, faults: Faults | None = None, port: int = 0
    ) -> None:
        self.corrupt = False
        self.read: list[tuple[str, str]] = []
        self.faults = faults or Faults()
        self._tokens = tokens or Tokens()
        self._numbers = dict(projects)
        self._lock = threading.Lock()
        self._secrets: dict[str, list[tuple[bytes, Any]]] = {}
        self._readers: defaultdict[str, set[str]] = defaultdict(set)
        self._rpc = RpcServer({_METHOD: (AccessSecretVersionRequest, self._access)}, faults=self.faults)
        super().__init__(_Handler, self._rpc.port, port)

    @property
    def calls(self) -> Counter[str]:
        """How often each method was called."""
        return self._rpc.calls

    def start(self) -> Self:
        """Start to answer."""
        self._rpc.start()
        return super().start()

    def stop(self) -> None:
        """Stop at once."""
        super().stop()
        self._rpc.stop()

    def allow(self, secret: str, *accounts: str) -> None:
        """Grant accounts roles/secretmanager.secretAccessor on ``projects/P/secrets/S``, which may not exist yet."""
        with self._lock:
            self._readers[self._secret(secret)].update(accounts)

    def add(self, secret: str, value: str) -> str:
        """Add a version to ``projects/P/secrets/S``, which is created if necessary. Return the version's name."""
        with self._lock:
            versions = self._secrets.setdefault(self._secret(secret), [])
            versions.append((value.encode(), _STATE.ENABLED))
            return f"{secret}/versions/{len(versions)}"

    def set_state(self, version: str, state: Any) -> None:
        """Set the SecretVersion.State of ``projects/P/secrets/S/versions/N``: ENABLED, DISABLED or DESTROYED."""
        secret, number = version.split("/versions/")
        with self._lock:
            versions = self._secrets[self._secret(secret)]
            versions[int(number) - 1] = (versions[int(number) - 1][0], state)

    def access(self, version: str, token: str) -> Any:
        """Answer a call over REST with an access token. Raise Refused, FaultError or AnswerLost."""
        self._rpc.count(_ACCESS)
        self.faults.before(_ACCESS)
        account = self._tokens.account(token)
        if account is None:
            raise Refused(
                _CODE.UNAUTHENTICATED,
                "Request had invalid authentication credentials. Expected OAuth 2 access token, login cookie or other valid "
                "authentication credential.",
            )
        secret = self._secret(version.partition("/versions/")[0])
        with self._lock:
            allowed = account in self._readers[secret]
        if not allowed:
            raise _denied(version)
        answer = self._access(AccessSecretVersionRequest(name=version))
        self.read.append((account, answer.name))
        self.faults.after(_ACCESS)
        return answer

    def _access(self, request: Any) -> Any:
        match = _VERSION.fullmatch(request.name)
        if match is None:
            raise Refused(
                _CODE.INVALID_ARGUMENT, f'"{request.name}" is not of the form projects/P/secrets/S/versions/V.'
            )
        secret = self._secret(match.group(1))
        with self._lock:
            versions = list(self._secrets.get(secret, ()))
        if not versions:
            raise Refused(_CODE.NOT_FOUND, f"Secret [{secret}] not found or has no versions.")
        number = len(versions) if match.group(2) == "latest" else int(match.group(2))
        name = f"{secret}/versions/{number}"
        if not 1 <= number <= len(versions):
            raise Refused(_CODE.NOT_FOUND, f"Secret Version [{name}] not found.")
        data, state = versions[number - 1]
        if state != _STATE.ENABLED:
            raise Refused(_CODE.FAILED_PRECONDITION, f"Secret Version [{name}] is in {_STATE(state).name} state.")
        checksum = google_crc32c.value(data)
        if self.corrupt:
            data = bytes([data[0] ^ 1]) + data[1:] if data else b"\0"
        return AccessSecretVersionResponse(name=name, payload=SecretPayload(data=data, data_crc32c=checksum))

    def _secret(self, name: str) -> str:
        """Return the secret's name with the project's number. Refuse unknown projects."""
        match = _SECRET.fullmatch(name)
        project = match.group(1) if match else name
        number = self._numbers.get(project, project)
        if match is None or number not in self._numbers.values():
            raise _denied(name)
        return f"projects/{number}/secrets/{match.group(2)}"


class _Handler(Handler):
    """Answers requests over REST."""

    server: SecretServer

    def serve(self) -> None:
        """Answer one request."""
        self.body()
        path = unquote(urlsplit(self.path).path)
        found = _URL.fullmatch(path)
        if found is None or self.command != "GET":
            return self._refuse(
                404, "NOT_FOUND", f"{self.command} {path} is not supported by this local Secret Manager."
            )
        try:
            answer = self.server.access(found[1], self.headers.get("Authorization", "").removeprefix("Bearer "))
        except Refused as refused:
            return self._refuse(http_status(refused.code), refused.code.name, refused.message)
        except FaultError as fault:
            return self._refuse(fault.http_status, "UNKNOWN", fault.message)
        except AnswerLost:
            return self.hang_up()
        return self.answer_json(200, AccessSecretVersionResponse.to_dict(answer, preserving_proto_field_name=False))

    def _refuse(self, status: int, name: str, message: str) -> None:
        """Answer in Google's JSON form of an error."""
        self.answer_json(status, {"error": {"code": status, "message": message, "status": name}})


def _denied(resource: str) -> Refused:
    return Refused(
        _CODE.PERMISSION_DENIED,
        f"Permission 'secretmanager.versions.access' denied for resource '{resource}' (or it may not exist).",
    )
