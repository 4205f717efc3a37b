"""The stand-in for Cloud Storage: the JSON API for small objects, as Google's client uses it.

It inserts (multipart and resumable), gets, downloads, lists and deletes objects, with preconditions on generation and
metageneration. Like the real service, it accepts about one write a second for each name and answers 429 to more. The
operations for faults and counts are storage.insert, .get, .download, .delete, .list, .getBucket and .testPermissions.
"""

from __future__ import annotations

import itertools
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import Message
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from local.standins.faults import PATH as CONTROL
from local.standins.faults import AnswerLost, FaultError, FaultRequestError, Faults
from local.standins.objects import HttpRefused, Objects, StoredObject
from local.standins.web import Handler, WebServer


@dataclass
class _Upload:
    """A resumable upload in progress."""

    bucket: str
    wanted: dict[str, Any]
    query: dict[str, str]
    data: bytearray = field(default_factory=bytearray)


class StorageServer(WebServer):
    """A local Cloud Storage. ``url`` is the value of STORAGE_EMULATOR_HOST.

    ``clock`` returns Unix seconds. ``calls`` counts operations. ``objects`` is what is stored; its ``write_interval`` can
    change, and 0 allows any rate. ``denied`` are permissions that testPermissions does not grant; only storage.buckets.get
    is enforced. ``described`` adds to the metadata of a bucket.
    """

    def __init__(
        self,
        *,
        buckets: Sequence[str],
        clock: Callable[[], float] = time.time,
        faults: Faults | None = None,
        write_interval: float = 1.0,
        port: int = 0,
    ) -> None:
        self.faults = faults or Faults()
        self.calls: Counter[str] = Counter()
        self.denied: set[str] = set()
        self.described: dict[str, dict[str, Any]] = {}
        self.objects = Objects(buckets, clock, write_interval)
        self._lock = threading.Lock()
        self._uploads: dict[str, _Upload] = {}
        self._upload_ids = (f"upload-{number}" for number in itertools.count(1))
        super().__init__(_Handler, port)

    def count(self, operation: str) -> None:
        """Count a call."""
        with self._lock:
            self.calls[operation] += 1

    def begin_upload(self, bucket: str, wanted: dict[str, Any], query: dict[str, str]) -> str:
        """Start a resumable upload and return its id."""
        with self._lock:
            upload_id = next(self._upload_ids)
            self._uploads[upload_id] = _Upload(bucket, wanted, query)
            return upload_id

    def upload(self, upload_id: str) -> _Upload:
        """Return a resumable upload. Raise HttpRefused."""
        with self._lock:
            if upload_id not in self._uploads:
                raise HttpRefused(404, "notFound", f"No such upload: {upload_id}")
            return self._uploads[upload_id]


@dataclass(frozen=True)
class _Answer:
    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class _Handler(Handler):
    """Turns requests into operations on the objects."""

    server: StorageServer

    def serve(self) -> None:
        """Answer one request."""
        body = self.body()
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        try:
            answer = self._control(body) if url.path == CONTROL else self._operate(url.path, query, body)
        except HttpRefused as refused:
            answer = _json(refused.body(), refused.status)
        except FaultError as fault:
            status = fault.status if isinstance(fault.status, int) else 500
            answer = _json(HttpRefused(status, "backendError", fault.message).body(), status)
        except AnswerLost:
            self.hang_up()
            return
        self.answer(answer.status, answer.body, answer.headers)

    def _control(self, body: bytes) -> _Answer:
        """Return or set the faults, for other processes."""
        if self.command == "GET":
            return _json(self.server.faults.state())
        try:
            return _json(self.server.faults.apply(body))
        except FaultRequestError as error:
            raise HttpRefused(400, "invalid", str(error)) from error

    def _operate(self, path: str, query: dict[str, str], body: bytes) -> _Answer:
        match = _ROUTE.fullmatch(path)
        if match is None:
            raise _not_served(self.command, path)
        service, bucket, below, name = (unquote(part or "") for part in match.groups())
        level = "object" if name else {"/o": "objects", "/iam/testPermissions": "permissions"}.get(below, "bucket")
        operation = _OPERATIONS.get((self.command, service, level))
        if operation is None:
            raise _not_served(self.command, path)
        if operation == "storage.get" and query.get("alt") == "media":
            operation = "storage.download"
        if operation == "storage.insert" and query.get("uploadType") == "resumable" and self.command == "POST":
            operation = "storage.startUpload"
        self.server.count(operation)
        self.server.faults.before(operation)
        answer = self._act(operation, bucket, name, query, body)
        self.server.faults.after(operation)
        return answer

    def _act(self, operation: str, bucket: str, name: str, query: dict[str, str], body: bytes) -> _Answer:
        objects = self.server.objects
        match operation:
            case "storage.getBucket":
                objects.list(bucket)
                if "storage.buckets.get" in self.server.denied:
                    raise HttpRefused(
                        403, "forbidden", f"The caller does not have storage.buckets.get access to {bucket}."
                    )
                described = self.server.described.get(bucket, {})
                return _json({"kind": "storage#bucket", "id": bucket, "name": bucket, **described})
            case "storage.testPermissions":
                objects.list(bucket)
                asked = parse_qs(urlsplit(self.path).query).get("permissions", [])
                granted = [one for one in asked if one not in self.server.denied]
                return _json({"kind": "storage#testIamPermissionsResponse", "permissions": granted})
            case "storage.list":
                return _json(_page(objects.list(bucket, query.get("prefix", "")), query, self.server.url))
            case "storage.get":
                return _json(objects.get(bucket, name, query).resource(self.server.url))
            case "storage.download":
                return _media(objects.get(bucket, name, query))
            case "storage.delete":
                objects.delete(bucket, name, query)
                return _Answer(204)
            case "storage.startUpload":
                return self._start_upload(bucket, query, body)
            case _:
                return self._insert(bucket, query, body)

    def _insert(self, bucket: str, query: dict[str, str], body: bytes) -> _Answer:
        objects = self.server.objects
        if query.get("uploadType") == "resumable":
            return self._resume(query, body)
        if query.get("uploadType") == "multipart":
            wanted, data = _parts(self.headers.get("Content-Type", ""), body)
        else:
            wanted, data = {"contentType": self.headers.get("Content-Type", "")}, body
        return _json(objects.insert(bucket, wanted, data, query).resource(self.server.url))

    def _start_upload(self, bucket: str, query: dict[str, str], body: bytes) -> _Answer:
        wanted = json.loads(body or b"{}")
        wanted.setdefault("contentType", self.headers.get("X-Upload-Content-Type", ""))
        upload_id = self.server.begin_upload(bucket, wanted, query)
        place = f"{self.server.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload_id}"
        return _Answer(200, headers={"Location": place, "X-GUploader-UploadID": upload_id})

    def _resume(self, query: dict[str, str], body: bytes) -> _Answer:
        upload = self.server.upload(query.get("upload_id", ""))
        place = _RANGE.fullmatch(self.headers.get("Content-Range", ""))
        if place is None:
            raise HttpRefused(400, "invalid", "Content-Range must be of the form bytes FIRST-LAST/SIZE.")
        if place.group(1) is not None:
            if int(place.group(1)) != len(upload.data):
                raise HttpRefused(503, "backendError", f"{len(upload.data)} bytes were persisted before this chunk.")
            upload.data += body
        if place.group(2) != str(len(upload.data)):
            persisted = {"Range": f"bytes=0-{len(upload.data) - 1}"} if upload.data else {}
            return _Answer(308, headers=persisted)
        stored = self.server.objects.insert(upload.bucket, upload.wanted, bytes(upload.data), upload.query)
        return _json(stored.resource(self.server.url))


_ROUTE = re.compile(r"(/upload|/download)?/storage/v1/b/([^/]+)(/iam/testPermissions|/o(?:/(.+))?)?")
_RANGE = re.compile(r"bytes (?:([0-9]+)-[0-9]+|\*)/([0-9]+|\*)")
_OPERATIONS = {
    ("GET", "", "bucket"): "storage.getBucket",
    ("GET", "", "permissions"): "storage.testPermissions",
    ("GET", "", "objects"): "storage.list",
    ("GET", "", "object"): "storage.get",
    ("GET", "/download", "object"): "storage.download",
    ("DELETE", "", "object"): "storage.delete",
    ("POST", "/upload", "objects"): "storage.insert",
    ("PUT", "/upload", "objects"): "storage.insert",
}
"""Operations by method, first part of the path, and kind of resource."""


def _not_served(method: str, path: str) -> HttpRefused:
    return HttpRefused(501, "notImplemented", f"{method} {path} is not supported by this local Cloud Storage.")


def _json(value: object, status: int = 200) -> _Answer:
    return _Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"})


def _media(found: StoredObject) -> _Answer:
    return _Answer(
        200,
        found.data,
        {
            "Content-Type": found.content_type,
            "ETag": f"{found.generation:x}",
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Metageneration": "1",
            "X-Goog-Hash": f"crc32c={found.crc32c},md5={found.md5}",
            "X-Goog-Stored-Content-Encoding": "identity",
            "X-Goog-Stored-Content-Length": str(len(found.data)),
        },
    )


def _page(found: list[StoredObject], query: Mapping[str, str], url: str) -> dict[str, Any]:
    """Return one page of a list. A page's token is the last name of the page before."""
    rest = [one for one in found if one.name > query.get("pageToken", "")]
    size = int(query.get("maxResults", 1000))
    page: dict[str, Any] = {"kind": "storage#objects", "items": [one.resource(url) for one in rest[:size]]}
    if len(rest) > size:
        page["nextPageToken"] = rest[size - 1].name
    return page


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """Return metadata and data of a multipart/related body."""
    head = Message()
    head["Content-Type"] = content_type
    boundary = b"--" + str(head.get_param("boundary", "")).encode()
    pieces = body.split(b"\r\n" + boundary)
    if not body.startswith(boundary) or len(pieces) != 3:
        raise HttpRefused(400, "badRequest", "A multipart upload must have two parts: metadata and media.")
    metadata, media = (piece.partition(b"\r\n\r\n") for piece in pieces[:2])
    wanted = json.loads(metadata[2])
    kind = re.search(rb"content-type: *([^\r]+)", media[0], re.IGNORECASE)
    if kind:
        wanted.setdefault("contentType", kind.group(1).decode())
    return wanted, media[2]
