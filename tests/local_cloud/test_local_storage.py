"""The local Cloud Storage with Google's own client."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from typing import Any

import google_crc32c
import pytest
import requests
from google.api_core import exceptions
from google.cloud.storage import Client
from google.cloud.storage.retry import DEFAULT_RETRY

from local.standins.faults import PATH
from local.standins.storage import StorageServer
from tests.local_cloud.conftest import Clock

BUCKET = "demo-state"
QUICKLY = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.02).with_timeout(5)
RATE = r"The object demo-state/one exceeded the rate limit for object mutation operations"


class TickingClock(Clock):
    """A clock that also moves by ``tick`` at every look."""

    tick = 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@pytest.fixture
def clock() -> TickingClock:
    return TickingClock()


@pytest.fixture
def server(clock: TickingClock) -> Iterator[StorageServer]:
    with StorageServer(buckets=[BUCKET], clock=clock) as server:
        yield server


@pytest.fixture
def client(server: StorageServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    client = Client(project="demo-project")
    yield client
    client.close()


@pytest.fixture
def bucket(client: Any) -> Any:
    return client.bucket(BUCKET)


def test_an_object_is_read_as_it_was_written(bucket: Any, server: StorageServer, clock: TickingClock) -> None:
    blob = bucket.blob("launch/hold one.json")
    blob.metadata = {"pass": "p1"}
    blob.upload_from_string(b'{"a": 1}', content_type="application/json", if_generation_match=0)
    found = bucket.get_blob("launch/hold one.json")
    assert found.download_as_bytes() == b'{"a": 1}'
    assert (found.generation, found.metageneration) == (blob.generation, 1)
    assert (found.size, found.content_type, found.metadata) == (8, "application/json", {"pass": "p1"})
    assert found.crc32c == base64.b64encode(google_crc32c.value(b'{"a": 1}').to_bytes(4, "big")).decode()
    assert found.updated.timestamp() == pytest.approx(clock.now, abs=1e-3)
    clock.now += 1
    blob.upload_from_string(b"next", if_generation_match=found.generation)
    assert blob.generation > found.generation
    clock.now += 1
    blob.delete(if_generation_match=blob.generation)
    assert not blob.exists()
    for operation, times in {"insert": 2, "download": 1, "delete": 1}.items():
        assert server.calls[f"storage.{operation}"] == times


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (lambda blob, now: blob.upload_from_string("x", if_generation_match=0), exceptions.PreconditionFailed),
        (lambda blob, now: blob.upload_from_string("x", if_generation_match=now - 1), exceptions.PreconditionFailed),
        (lambda blob, now: blob.upload_from_string("x", if_generation_not_match=now), exceptions.PreconditionFailed),
        (lambda blob, now: blob.upload_from_string("x", if_metageneration_match=2), exceptions.PreconditionFailed),
        (lambda blob, now: blob.delete(if_generation_match=now + 1), exceptions.PreconditionFailed),
        (lambda blob, now: blob.download_as_bytes(if_generation_match=now + 1), exceptions.PreconditionFailed),
        (lambda blob, now: blob.download_as_bytes(if_generation_not_match=now), exceptions.NotModified),
        (lambda blob, now: blob.reload(if_generation_not_match=now), exceptions.NotModified),
        (lambda blob, now: blob.bucket.blob("none").download_as_bytes(), exceptions.NotFound),
        (lambda blob, now: blob.bucket.blob("none").delete(), exceptions.NotFound),
        (lambda blob, now: blob.bucket.blob("one", generation=now + 1).download_as_bytes(), exceptions.NotFound),
        (lambda blob, now: blob.client.bucket("none").blob("x").upload_from_string("x"), exceptions.NotFound),
    ],
)
def test_preconditions_and_missing_things(
    bucket: Any, clock: TickingClock, act: Callable[[Any, int], None], error: type[Exception]
) -> None:
    blob = bucket.blob("one")
    blob.upload_from_string("first", if_generation_match=0)
    clock.now += 1
    with pytest.raises(error):
        act(bucket.blob("one"), blob.generation)
    assert bucket.blob("one").download_as_bytes(if_generation_match=blob.generation) == b"first"


def test_a_name_takes_one_write_a_second(bucket: Any, server: StorageServer, clock: TickingClock) -> None:
    bucket.blob("one").upload_from_string("a", retry=None)
    bucket.blob("two").upload_from_string("a", retry=None)
    clock.now += 0.9
    with pytest.raises(exceptions.TooManyRequests, match=RATE):
        bucket.blob("one").upload_from_string("b", retry=None)
    with pytest.raises(exceptions.TooManyRequests, match=RATE):
        bucket.blob("one").delete(retry=None)
    # A failed precondition does not count as a write.
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("one").upload_from_string("b", if_generation_match=0, retry=None)
    clock.now += 0.1
    bucket.blob("one").upload_from_string("b", retry=None)
    server.objects.write_interval = 0
    bucket.blob("one").delete(retry=None)


def test_the_client_waits_out_a_429_by_itself(bucket: Any, server: StorageServer, clock: TickingClock) -> None:
    blob = bucket.blob("one")
    blob.upload_from_string("a")
    clock.tick = 0.2
    blob.upload_from_string("b", if_generation_match=blob.generation, retry=QUICKLY)
    assert blob.download_as_bytes() == b"b"
    assert server.calls["storage.insert"] > 2


def test_a_lost_answer_makes_the_client_refuse_its_own_write(
    bucket: Any, server: StorageServer, clock: TickingClock
) -> None:
    server.faults.lose("storage.insert")
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.blob("one").upload_from_string("mine", if_generation_match=0, retry=QUICKLY)
    assert server.calls["storage.insert"] == 2
    assert bucket.blob("one").download_as_bytes() == b"mine"


def test_large_objects_are_uploaded_in_chunks(bucket: Any, server: StorageServer, clock: TickingClock) -> None:
    content = bytes(range(256)) * 4096 * 9
    blob = bucket.blob("large", chunk_size=2**22)
    blob.upload_from_string(content, if_generation_match=0)
    assert server.calls["storage.startUpload"] == 1
    assert server.calls["storage.insert"] == 3
    assert blob.size == len(content)
    assert bucket.blob("large").download_as_bytes() == content
    clock.now += 1
    with pytest.raises(exceptions.PreconditionFailed):
        blob.upload_from_string(content, if_generation_match=0)


def test_lists_by_prefix_in_pages(client: Any, bucket: Any) -> None:
    for name in ("a/1", "a/2", "a/3", "b/1"):
        bucket.blob(name).upload_from_string("x")
    pages = client.list_blobs(BUCKET, prefix="a/", page_size=2).pages
    assert [[blob.name for blob in page] for page in pages] == [["a/1", "a/2"], ["a/3"]]
    assert client.get_bucket(BUCKET).name == BUCKET
    with pytest.raises(exceptions.NotFound):
        client.get_bucket("none")


def test_damaged_uploads_and_strange_requests_are_refused(server: StorageServer, bucket: Any) -> None:
    place = f"{server.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart"
    body = b'--x\r\ncontent-type: application/json\r\n\r\n{"name": "one", "crc32c": "AAAAAA=="}\r\n'
    body += b"--x\r\ncontent-type: text/plain\r\n\r\ndata\r\n--x--"
    head = {"Content-Type": 'multipart/related; boundary="x"'}
    assert requests.post(place, body, headers=head, timeout=5).status_code == 400
    assert requests.post(place, b"nonsense", headers=head, timeout=5).status_code == 400
    assert not bucket.blob("one").exists()
    blob = bucket.blob("two")
    blob.upload_from_string("x")
    blob.metadata = {"a": "b"}
    with pytest.raises(exceptions.MethodNotImplemented, match="not supported"):
        blob.patch()
    assert requests.get(f"{server.url}/elsewhere", timeout=5).status_code == 501


def test_faults_can_be_set_by_other_processes(server: StorageServer, bucket: Any) -> None:
    control = f"{server.url}{PATH}"
    asked = {"faults": [{"operation": "storage.insert", "kind": "fail", "status": 503, "times": 1}]}
    assert requests.post(control, json=asked, timeout=5).json() == requests.get(control, timeout=5).json()
    with pytest.raises(exceptions.ServiceUnavailable):
        bucket.blob("one").upload_from_string("x", retry=None)
    bucket.blob("one").upload_from_string("x", retry=None)
    refused = requests.post(control, json={"faults": [{"operation": "x"}]}, timeout=5)
    assert (refused.status_code, "kind" in refused.json()["error"]["message"]) == (400, True)


def test_a_kept_connection_is_quick(bucket: Any) -> None:
    bucket.blob("one").upload_from_string("x")
    begin = time.monotonic()
    for _ in range(30):
        bucket.blob("one").reload()
    # If head and body were sent separately, each request would take 40 ms more.
    assert time.monotonic() - begin < 1
