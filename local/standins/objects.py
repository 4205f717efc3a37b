"""The objects in the buckets of the local Cloud Storage, with preconditions and the limit of writes."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import google_crc32c


class HttpRefused(Exception):
    """The answer is this HTTP status and, except for 304, an error in Google's JSON form."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        self.status = status
        self.reason = reason
        self.message = message
        super().__init__(f"{status} {reason}: {message}")

    def body(self) -> dict[str, Any]:
        """Return the error in the JSON form of Google's APIs."""
        domain = "usageLimits" if self.status == 429 else "global"
        one = {"message": self.message, "domain": domain, "reason": self.reason}
        return {"error": {"code": self.status, "message": self.message, "errors": [one]}}


@dataclass(frozen=True)
class StoredObject:
    """One generation of an object. ``created`` is in Unix seconds."""

    bucket: str
    name: str
    data: bytes
    generation: int
    content_type: str
    metadata: Mapping[str, str]
    created: float

    @property
    def crc32c(self) -> str:
        """The checksum in Google's form: base64 of four bytes, the highest first."""
        return _crc32c(self.data)

    @property
    def md5(self) -> str:
        """The MD5 digest in base64."""
        return _md5(self.data)

    def resource(self, url: str) -> dict[str, Any]:
        """Return the object's metadata as JSON."""
        link = f"{url}/storage/v1/b/{self.bucket}/o/{self.name}"
        at = datetime.fromtimestamp(self.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return {
            "kind": "storage#object",
            "id": f"{self.bucket}/{self.name}/{self.generation}",
            "selfLink": link,
            "mediaLink": f"{url}/download/storage/v1/b/{self.bucket}/o/{self.name}?alt=media",
            "name": self.name,
            "bucket": self.bucket,
            "generation": str(self.generation),
            "metageneration": "1",
            "contentType": self.content_type,
            "storageClass": "STANDARD",
            "size": str(len(self.data)),
            "md5Hash": self.md5,
            "crc32c": self.crc32c,
            "etag": f"{self.generation:x}",
            "timeCreated": at,
            "updated": at,
            "metadata": dict(self.metadata),
        }


class Objects:
    """The contents of the buckets, for use from many threads. ``write_interval`` is the least time between two writes."""

    def __init__(self, buckets: Sequence[str], clock: Callable[[], float], write_interval: float) -> None:
        self.write_interval = write_interval
        self._buckets: dict[str, dict[str, StoredObject]] = {bucket: {} for bucket in buckets}
        self._written: dict[tuple[str, str], float] = {}
        self._generation = 0
        self._clock = clock
        self._lock = threading.Lock()

    def insert(self, bucket: str, wanted: Mapping[str, Any], data: bytes, query: Mapping[str, str]) -> StoredObject:
        """Write an object if the query's preconditions hold. Raise HttpRefused."""
        name = wanted.get("name") or query.get("name", "")
        if not name:
            raise HttpRefused(400, "required", "Required parameter: name")
        for key, found in (("crc32c", _crc32c(data)), ("md5Hash", _md5(data))):
            if wanted.get(key, found) != found:
                raise HttpRefused(
                    400, "invalid", f'Provided {key} "{wanted[key]}" doesn\'t match calculated "{found}".'
                )
        with self._lock:
            objects = self._objects(bucket)
            _check(objects.get(name), query, unchanged=412)
            self._write(bucket, name)
            now = self._clock()
            self._generation = max(self._generation + 1, round(now * 1e6))
            objects[name] = StoredObject(
                bucket,
                name,
                data,
                self._generation,
                wanted.get("contentType") or "application/octet-stream",
                wanted.get("metadata") or {},
                now,
            )
            return objects[name]

    def get(self, bucket: str, name: str, query: Mapping[str, str]) -> StoredObject:
        """Return an object if the query's preconditions hold. Raise HttpRefused."""
        with self._lock:
            found = self._find(bucket, name, query)
        _check(found, query, unchanged=304)
        return found

    def delete(self, bucket: str, name: str, query: Mapping[str, str]) -> None:
        """Delete an object if the query's preconditions hold. Raise HttpRefused."""
        with self._lock:
            _check(self._find(bucket, name, query), query, unchanged=412)
            self._write(bucket, name)
            del self._buckets[bucket][name]

    def list(self, bucket: str, prefix: str = "") -> list[StoredObject]:
        """Return objects in the order of their names. Raise HttpRefused."""
        with self._lock:
            return [found for name, found in sorted(self._objects(bucket).items()) if name.startswith(prefix)]

    def _objects(self, bucket: str) -> dict[str, StoredObject]:
        if bucket not in self._buckets:
            raise HttpRefused(404, "notFound", "The specified bucket does not exist.")
        return self._buckets[bucket]

    def _find(self, bucket: str, name: str, query: Mapping[str, str]) -> StoredObject:
        found = self._objects(bucket).get(name)
        if found is None or query.get("generation", str(found.generation)) != str(found.generation):
            raise HttpRefused(404, "notFound", f"No such object: {bucket}/{name}")
        return found

    def _write(self, bucket: str, name: str) -> None:
        """Record a write, or refuse it if the last one was less than ``write_interval`` ago."""
        now = self._clock()
        if now - self._written.get((bucket, name), -self.write_interval) < self.write_interval:
            raise HttpRefused(
                429,
                "rateLimitExceeded",
                f"The object {bucket}/{name} exceeded the rate limit for object mutation operations (create, update, "
                "and delete). Please reduce your request rate. See https://cloud.google.com/storage/docs/gcs429.",
            )
        self._written[bucket, name] = now


def _check(found: StoredObject | None, query: Mapping[str, str], *, unchanged: int) -> None:
    """Check the query's preconditions. ``unchanged`` is the status if a NotMatch precondition fails."""
    versions = {"Generation": found.generation if found else 0, "Metageneration": 1 if found else 0}
    for kind, version in versions.items():
        wanted, other = query.get(f"if{kind}Match", version), query.get(f"if{kind}NotMatch", "")
        if str(wanted) != str(version):
            raise HttpRefused(412, "conditionNotMet", _NOT_MET)
        if other == str(version):
            raise HttpRefused(unchanged, "conditionNotMet", _NOT_MET)


_NOT_MET = "At least one of the pre-conditions you specified did not hold."


def _crc32c(data: bytes) -> str:
    return base64.b64encode(int(google_crc32c.value(data)).to_bytes(4, "big")).decode()


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()
