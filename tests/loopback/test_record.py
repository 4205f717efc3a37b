"""The record in the local Cloud Storage, through Google's own client: who may run a pass, and what is open."""

from __future__ import annotations

import gc
import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from google.cloud.storage import Client
from requests.structures import CaseInsensitiveDict

from local.standins import objects, storage
from local.standins.storage import StorageServer
from tests.support.memory import Clock
from tests.support.specs import with_settings
from vertex_launch.adapters.record_storage import RecordStorage
from vertex_launch.codes import Code
from vertex_launch.errors import PassBusy, PassLost, Unavailable
from vertex_launch.log import Redactor
from vertex_launch.model import Lock
from vertex_launch.settings.config import Timeouts
from vertex_launch.state.ledger import Ledger, Waiting
from vertex_launch.state.record import Record, Stored

BUCKET = "demo-state"
# Google's client leaves the connection of a refused download to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("retry_clock"),
]
LOCK, LEDGER = "folder/test/hold.json", "folder/test/ledger.json"


@pytest.fixture
def server(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[StorageServer]:
    server = StorageServer(buckets=[BUCKET], clock=clock, write_interval=0)
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
    yield server
    server.stop()


Open = Callable[..., Record]


@pytest.fixture
def open_record(server: StorageServer) -> Iterator[Open]:
    clients: list[Client] = []

    def make(location: str = f"gs://{BUCKET}/folder", deployment: str = "test", timeout: float = 2.0) -> Record:
        clients.append(Client(project="any"))
        settings = with_settings(state_bucket=location, deployment=deployment, timeouts=Timeouts(look=timeout))
        return Record(RecordStorage(settings, clients[-1]), Redactor())

    yield make
    for client in clients:
        client.close()


@pytest.fixture(scope="module", autouse=True)
def _no_connection_is_left_to_other_tests() -> Iterator[None]:
    yield
    gc.collect()


@pytest.fixture
def record(open_record: Open) -> Record:
    return open_record()


@dataclass
class Passes:
    """Takes locks for passes, at the time of the clock and for 60 seconds."""

    record: Record
    clock: Clock

    def take(self, pass_id: str, free: int = 0) -> Lock:
        return self.record.take_lock(pass_id, self.clock.now, self.clock.now + 60, free)


@pytest.fixture
def passes(record: Record, clock: Clock) -> Passes:
    return Passes(record, clock)


def names(server: StorageServer) -> list[str]:
    return [found.name for found in server.objects.list(BUCKET)]


Before = Callable[..., None]


@pytest.fixture
def before(server: StorageServer, monkeypatch: pytest.MonkeyPatch) -> Before:
    """Do something just before the nth next operation on an object, as another process may; 0 stands for each."""

    def hook(operation: str, act: Callable[[], object], nth: int = 1) -> None:
        real, calls = getattr(server.objects, operation), itertools.count(1)

        def hooked(*args: Any) -> Any:
            if next(calls) == nth or nth == 0:
                act()
            return real(*args)

        monkeypatch.setattr(server.objects, operation, hooked)

    return hook


# The lock


def test_a_free_lock_is_taken_in_one_write(server: StorageServer, record: Record) -> None:
    lock = record.take_lock("one", 1000.0, 1060.0, 0)
    stored = server.objects.get(BUCKET, LOCK, {})
    assert lock == Lock("one", 1060.0, stored.generation)
    assert json.loads(stored.data) == {"pass_id": "one", "expires": 1060.0}
    assert (server.calls["storage.insert"], server.calls["storage.download"]) == (1, 0)


def test_a_lock_that_was_given_back_is_replaced_in_one_write(server: StorageServer, passes: Passes) -> None:
    first = passes.take("one")
    server.calls.clear()
    second = passes.take("two", free=first.generation)
    assert second.generation > first.generation
    assert not second.taken_over
    assert server.calls == {"storage.insert": 1}


def test_a_busy_lock_shows_how_long_to_wait(passes: Passes, clock: Clock) -> None:
    passes.take("one")
    clock.now += 20
    with pytest.raises(PassBusy) as error:
        passes.take("two")
    assert error.value.retry_after == pytest.approx(40)
    with pytest.raises(PassBusy):
        passes.take("two", free=12345)


def test_an_expired_lock_is_taken_over(passes: Passes, clock: Clock) -> None:
    first = passes.take("one")
    clock.now += 60
    second = passes.take("two")
    assert second.taken_over
    assert second.generation > first.generation
    with pytest.raises(PassBusy):
        passes.take("one", free=first.generation)


@pytest.mark.parametrize("free", [True, False])
def test_a_lock_whose_answer_was_lost_is_ours(server: StorageServer, passes: Passes, clock: Clock, free: bool) -> None:
    known = 0
    if not free:
        known = passes.take("zero").generation
        clock.now += 61
    server.faults.lose("storage.insert")
    lock = passes.take("one", free=known)
    assert lock.generation == server.objects.get(BUCKET, LOCK, {}).generation
    assert lock.taken_over, "what happened meanwhile is unknown, so the ledger has to be read again"


def test_a_lock_deleted_in_between_is_taken(server: StorageServer, passes: Passes, before: Before) -> None:
    passes.take("one")
    before("get", lambda: server.objects.delete(BUCKET, LOCK, {}))
    assert passes.take("two").pass_id == "two"


def test_another_pass_takes_an_expired_lock_first(
    passes: Passes, open_record: Open, clock: Clock, before: Before
) -> None:
    passes.take("one")
    clock.now += 61
    other = Passes(open_record(), clock)
    before("insert", lambda: other.take("three"), nth=2)
    with pytest.raises(PassBusy):
        passes.take("two")


@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b'{"pass_id": "one"}', b'{"expires": "soon"}', b"\xff"])
def test_a_lock_that_cannot_be_read_counts_as_expired(server: StorageServer, passes: Passes, junk: bytes) -> None:
    server.objects.insert(BUCKET, {"name": LOCK}, junk, {})
    assert passes.take("one").taken_over


@pytest.mark.parametrize("expires", [884_541_340_800, 1e308])
def test_a_lock_that_claims_to_last_for_ever_lasts_as_long_after_its_write_as_a_pass(
    server: StorageServer, passes: Passes, clock: Clock, expires: float
) -> None:
    server.objects.insert(BUCKET, {"name": LOCK}, json.dumps({"pass_id": "other", "expires": expires}).encode(), {})
    for _ in range(2):
        with pytest.raises(PassBusy):
            passes.take("one")
        clock.now += 150
    with pytest.raises(PassBusy):
        passes.take("one")
    clock.now += 65
    assert passes.take("one").taken_over


@pytest.mark.parametrize("expired", [False, True])
def test_exactly_one_of_many_at_once_takes_the_lock(
    open_record: Open, passes: Passes, clock: Clock, expired: bool
) -> None:
    if expired:
        passes.take("earlier")
        clock.now += 61
    contestants = [open_record() for _ in range(8)]
    start = threading.Barrier(len(contestants))

    def compete(number: int) -> bool:
        start.wait()
        try:
            Passes(contestants[number], clock).take(f"pass{number}")
        except PassBusy:
            return False
        return True

    with ThreadPoolExecutor(len(contestants)) as pool:
        assert sum(pool.map(compete, range(len(contestants)))) == 1


# The ledger


def ledger() -> Ledger:
    return Ledger(entity="acme", waiting={"Item1": Waiting(since=1, seen=2, warned=("no quota",))})


def test_a_ledger_comes_back_as_it_was_written(server: StorageServer, record: Record) -> None:
    assert record.read() == Stored(None, 0)
    generation = record.write(ledger(), "one", 0)
    stored = record.read()
    assert stored.generation == generation == server.objects.get(BUCKET, LEDGER, {}).generation
    assert stored.ledger is not None
    assert (stored.ledger.writer, stored.ledger.writes) == ("one", 1)
    assert stored.ledger.waiting == ledger().waiting
    assert server.calls == {"storage.download": 2, "storage.insert": 1}


def test_a_damaged_ledger_is_lost_but_its_generation_counts(server: StorageServer, record: Record) -> None:
    kept = server.objects.insert(BUCKET, {"name": LEDGER}, b"{", {})
    stored = record.read()
    assert stored == Stored(None, kept.generation)
    assert record.write(ledger(), "one", stored.generation) > kept.generation


def test_a_pass_that_another_one_overtook_writes_nothing(record: Record) -> None:
    first = record.write(ledger(), "one", 0)
    second = record.write(ledger(), "two", first)
    for late in (0, first):
        with pytest.raises(PassLost):
            record.write(ledger(), "one", late)
    assert record.read().generation == second


def test_a_ledger_deleted_meanwhile_is_a_lost_pass(server: StorageServer, record: Record) -> None:
    generation = record.write(ledger(), "one", 0)
    server.objects.delete(BUCKET, LEDGER, {})
    with pytest.raises(PassLost):
        record.write(ledger(), "one", generation)


def test_a_write_whose_answer_was_lost_is_ours(server: StorageServer, record: Record) -> None:
    one = ledger()
    generation = record.write(one, "one", 0)
    server.faults.lose("storage.insert")
    written = record.write(one, "one", generation)
    assert written == server.objects.get(BUCKET, LEDGER, {}).generation > generation
    assert record.write(one, "one", written) > written


def test_a_pass_goes_on_or_gives_up_after_a_write_of_which_it_heard_nothing(
    server: StorageServer, record: Record
) -> None:
    """The first write took effect, but its answer was lost, and whose write it was could not be looked up."""
    generation = record.write(ledger(), "one", 0)
    for free_lock in (0, 7):  # the next write has the same number, but may have another content
        kept = record.read().ledger
        assert kept is not None
        lost = kept.model_copy(deep=True, update={"turn": "gpu"})
        server.faults.lose("storage.insert")
        server.faults.fail("storage.download", 503, times=None)
        unavailable(lambda lost=lost, known=generation: record.write(lost, "one", known))  # type: ignore[misc]
        server.faults.clear()
        generation = record.write(kept.model_copy(update={"free_lock": free_lock}), "one", generation)
        stored = record.read()
        assert stored.generation == generation
        assert stored.ledger is not None
        assert (stored.ledger.turn, stored.ledger.free_lock) == ("", free_lock)


# The bucket


def test_more_than_one_write_a_second_is_waited_out(
    server: StorageServer, passes: Passes, record: Record, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.objects.write_interval = 1.0
    refused = 0

    def passing() -> float:
        nonlocal refused
        refused += 1
        clock.now += 0.3
        return clock.now

    lock = passes.take("one")
    generation = record.write(ledger(), "one", 0)
    monkeypatch.setattr(server.objects, "_clock", passing)
    assert passes.take("two", free=lock.generation).generation > lock.generation
    assert record.write(ledger(), "two", generation) > generation
    assert refused >= 4


@pytest.mark.parametrize("fault", [408, 429, 500, 502, 503, 504, "lose"])
def test_a_burst_of_trouble_is_waited_out(
    server: StorageServer, passes: Passes, record: Record, fault: int | str
) -> None:
    for operation in ("storage.insert", "storage.download"):
        if isinstance(fault, int):
            server.faults.fail(operation, fault, times=3)
        else:
            server.faults.lose(operation, times=3)
    lock = passes.take("one")
    generation = record.write(ledger(), "one", 0)
    assert record.read().generation == generation
    assert lock.pass_id == "one"


DOWN = Code.STORAGE_UNAVAILABLE


def unavailable(act: Callable[[], object], code: Code = DOWN) -> str:
    with pytest.raises(Unavailable) as error:
        act()
    assert (error.value.service, error.value.message.code) == ("Cloud Storage", code)
    return error.value.reason


TROUBLES: list[tuple[Callable[[StorageServer], object], Code, str]] = [
    (lambda server: server.faults.fail("*", 503, times=None, message="Backend Error"), DOWN, "Backend Error"),
    (lambda server: server.faults.fail("*", 403, times=None, message="access denied"), Code.STORAGE_PERMISSION, "access denied"),
    (lambda server: server.stop(), DOWN, "Connection refused"),
]  # fmt: skip


@pytest.mark.parametrize(("trouble", "code", "words"), TROUBLES)
def test_trouble_that_goes_on_ends_in_time(
    server: StorageServer, passes: Passes, trouble: Callable[[StorageServer], object], code: Code, words: str
) -> None:
    trouble(server)
    for act, place in ((lambda: passes.take("one"), LOCK), (passes.record.read, LEDGER)):
        text = unavailable(act, code)
        assert f"gs://{BUCKET}/{place}" in text
        assert words in text


def test_a_missing_bucket(open_record: Open, clock: Clock) -> None:
    record = open_record("gs://none")
    for act in (record.read, lambda: Passes(record, clock).take("one")):
        unavailable(act, Code.STORAGE_BUCKET_NOT_FOUND)


def test_content_that_was_damaged_on_its_way_is_not_believed(
    server: StorageServer, record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    record.write(ledger(), "one", 0)
    monkeypatch.setattr(objects.StoredObject, "crc32c", property(lambda _: "AAAAAA=="))
    monkeypatch.setattr(objects.StoredObject, "md5", property(lambda _: "AAAAAAAAAAAAAAAAAAAAAA=="))
    assert "cannot read gs://demo-state/folder/test/ledger.json: Checksum mismatch" in unavailable(record.read)


@pytest.mark.parametrize(
    ("location", "folder"),
    [
        (f"gs://{BUCKET}", "test"),
        (f"gs://{BUCKET}/", "test"),
        (f"gs://{BUCKET}/a/b/", "a/b/test"),
        (f"gs://{BUCKET}/über raum", "über raum/test"),
    ],
)
def test_where_the_record_lies(
    server: StorageServer, open_record: Open, clock: Clock, location: str, folder: str
) -> None:
    record = open_record(location)
    Passes(record, clock).take("one")
    record.write(ledger(), "one", 0)
    assert names(server) == [f"{folder}/hold.json", f"{folder}/ledger.json"]


def test_deployments_do_not_meet(open_record: Open, clock: Clock) -> None:
    for deployment in ("test", "test-2"):
        record = open_record(deployment=deployment)
        Passes(record, clock).take("one")
        assert record.read() == Stored(None, 0)
        record.write(ledger(), "one", 0)


# A server that tells no generation with the content


@pytest.fixture
def silent(server: StorageServer, monkeypatch: pytest.MonkeyPatch) -> StorageServer:
    real = storage._media

    def media(found: objects.StoredObject) -> Any:
        answer = real(found)
        headers = CaseInsensitiveDict(answer.headers)
        del headers["X-Goog-Generation"]
        return storage._Answer(answer.status, answer.body, dict(headers))

    monkeypatch.setattr(storage, "_media", media)
    return server


def test_the_generation_is_asked_for_where_it_does_not_come_along(
    silent: StorageServer, record: Record, passes: Passes, clock: Clock
) -> None:
    generation = record.write(ledger(), "one", 0)
    stored = record.read()
    assert stored.generation == generation
    assert stored.ledger is not None
    assert silent.calls == {"storage.insert": 1, "storage.download": 2, "storage.get": 1}
    passes.take("one")
    with pytest.raises(PassBusy):
        passes.take("two")
    clock.now += 61
    assert passes.take("two").taken_over


def test_content_and_generation_belong_together_whatever_happens_in_between(
    silent: StorageServer, record: Record, before: Before
) -> None:
    record.write(ledger(), "one", 0)
    other = Ledger(entity="other", writer="two", writes=1).dump()
    # The metadata were read, the content of that generation is about to be.
    before("get", lambda: silent.objects.insert(BUCKET, {"name": LEDGER}, other, {}), nth=3)
    stored = record.read()
    assert stored.generation == silent.objects.get(BUCKET, LEDGER, {}).generation
    assert stored.ledger is not None
    assert stored.ledger.entity == "other"


def test_an_object_that_changes_all_the_time_is_not_read(silent: StorageServer, record: Record, before: Before) -> None:
    record.write(ledger(), "one", 0)
    before("get", lambda: silent.objects.insert(BUCKET, {"name": LEDGER}, ledger().dump(), {}), nth=0)
    assert "changes too often" in unavailable(record.read)
