"""Secret Manager on loopback, as far as reading a secret goes: AccessSecretVersion, with its checksum.

Names that it gives hold the project's number, as the real service's do; it takes number and id.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import google_crc32c
import grpc
from google.cloud.secretmanager_v1 import (
    AccessSecretVersionRequest,
    AccessSecretVersionResponse,
    SecretPayload,
    SecretVersion,
)

from local.faults import Faults
from local.rpc import Refused, RpcServer

_METHOD = "/google.cloud.secretmanager.v1.SecretManagerService/AccessSecretVersion"
_SECRET = re.compile(r"projects/([^/]+)/secrets/([^/]+)")
_VERSION = re.compile(r"(projects/[^/]+/secrets/[^/]+)/versions/([0-9]+|latest)")
_CODE = grpc.StatusCode
_STATE = SecretVersion.State


class SecretServer:
    """A local Secret Manager. ``start`` and ``stop`` it; channels go to ``address``; ``calls`` counts RPCs by name.

    ``projects`` maps ids to numbers. While ``corrupt`` is true every payload arrives changed, its checksum does not.
    """

    def __init__(self, *, projects: Mapping[str, str], faults: Faults | None = None, port: int = 0) -> None:
        self.corrupt = False
        self.faults = faults or Faults()
        self._numbers = dict(projects)
        self._lock = threading.Lock()
        self._secrets: dict[str, list[tuple[bytes, Any]]] = {}
        self._rpc = RpcServer({_METHOD: (AccessSecretVersionRequest, self._access)}, faults=self.faults, port=port)

    @property
    def address(self) -> str:
        """Where a plaintext channel finds it: ``127.0.0.1:port``."""
        return self._rpc.address

    @property
    def calls(self) -> Counter[str]:
        """How often each RPC was called."""
        return self._rpc.calls

    def start(self) -> None:
        """Begin to answer."""
        self._rpc.start()

    def stop(self) -> None:
        """End at once."""
        self._rpc.stop()

    def add(self, secret: str, value: str) -> str:
        """Add a version to ``projects/P/secrets/S``, which is made if it is not there; give the version's name."""
        with self._lock:
            versions = self._secrets.setdefault(self._secret(secret), [])
            versions.append((value.encode(), _STATE.ENABLED))
            return f"{secret}/versions/{len(versions)}"

    def set_state(self, version: str, state: Any) -> None:
        """Give ``projects/P/secrets/S/versions/N`` a SecretVersion.State: ENABLED, DISABLED or DESTROYED."""
        secret, number = version.split("/versions/")
        with self._lock:
            versions = self._secrets[self._secret(secret)]
            versions[int(number) - 1] = (versions[int(number) - 1][0], state)

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
        """Give the secret's name with the project's number; refuse projects that are not ours."""
        match = _SECRET.fullmatch(name)
        project = match.group(1) if match else name
        number = self._numbers.get(project, project)
        if match is None or number not in self._numbers.values():
            raise Refused(
                _CODE.PERMISSION_DENIED,
                f"Permission 'secretmanager.versions.access' denied for resource '{name}' (or it may not exist).",
            )
        return f"projects/{number}/secrets/{match.group(2)}"
