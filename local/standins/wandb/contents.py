"""The contents of artifact files in memory, each stored once for an entity and found by its digest."""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading

from local.standins.wandb.errors import invalid, not_found


class Contents:
    """Contents by entity and digest. Methods are atomic. ``put`` and ``get`` raise Refused."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._contents: dict[tuple[str, str], bytes] = {}
        self._births: dict[tuple[str, str], str] = {}

    def announce(self, entity: str, digest: str, artifact_id: str) -> tuple[str, bool]:
        """Return the id of the artifact that a content comes with, and whether it must be uploaded."""
        with self._lock:
            missing = (entity, digest) not in self._contents
            if missing:
                self._births[entity, digest] = artifact_id
            return self._births.get((entity, digest), artifact_id), missing

    def put(self, entity: str, digest: str, content: bytes) -> None:
        """Store an uploaded content, which must be what was announced."""
        if md5(content) != digest:
            raise invalid(f"the content has the MD5 {md5(content)}, announced was {digest}")
        with self._lock:
            self._contents[entity, digest] = content

    def get(self, entity: str, digest: str) -> bytes:
        """Return the content with a digest."""
        with self._lock:
            if (entity, digest) not in self._contents:
                raise not_found(f"content {digest} of {entity}")
            return self._contents[entity, digest]


def md5(content: bytes) -> str:
    """Return the digest of a content: its MD5 in base64."""
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def hex_digest(digest: str) -> str:
    """Return a digest in the form of addresses. Raise Refused."""
    try:
        return base64.b64decode(digest, validate=True).hex()
    except ValueError as error:
        raise invalid(f'"{digest}" is not an MD5 in base64') from error


def digest_of(hex_digest: str) -> str:
    """Return the digest in an address. Raise Refused."""
    try:
        return base64.b64encode(binascii.unhexlify(hex_digest)).decode()
    except ValueError as error:
        raise not_found(f"content {hex_digest}") from error
