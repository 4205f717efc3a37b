"""What the files of artifacts are made of, in memory: each content once for an entity, known by its digest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading

from local.standins.wandb.errors import invalid, not_found


class Contents:
    """Contents by entity and digest. Methods are atomic; ``put`` and ``get`` raise Refused."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._contents: dict[tuple[str, str], bytes] = {}
        self._births: dict[tuple[str, str], str] = {}

    def announce(self, entity: str, digest: str, artifact_id: str) -> tuple[str, bool]:
        """Give the id of the artifact with which a content came or comes, and whether it has to be uploaded."""
        with self._lock:
            missing = (entity, digest) not in self._contents
            if missing:
                self._births[entity, digest] = artifact_id
            return self._births.get((entity, digest), artifact_id), missing

    def put(self, entity: str, digest: str, content: bytes) -> None:
        """A content has arrived, which must be what was announced."""
        if md5(content) != digest:
            raise invalid(f"the content has the MD5 {md5(content)}, announced was {digest}")
        with self._lock:
            self._contents[entity, digest] = content

    def get(self, entity: str, digest: str) -> bytes:
        """The content of that digest."""
        with self._lock:
            if (entity, digest) not in self._contents:
                raise not_found(f"content {digest} of {entity}")
            return self._contents[entity, digest]


def md5(content: bytes) -> str:
    """The digest of a content: its MD5 in Base64."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def hex_digest(digest: str) -> str:
    """A digest as it stands in addresses. Raises Refused."""
    try:
        return base64.b64decode(digest, validate=True).hex()
    except ValueError as error:
        raise invalid(f'"{digest}" is no MD5 in Base64') from error


def digest_of(hex_digest: str) -> str:
    """The digest of an address. Raises Refused."""
    try:
        return base64.b64encode(binascii.unhexlify(hex_digest)).decode()
    except ValueError as error:
        raise not_found(f"content {hex_digest}") from error
