"""The API key from the local Secret Manager: what is taken for a key, how long it is kept, and what is said otherwise."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.cloud.secretmanager_v1 import AccessSecretVersionResponse, SecretManagerServiceClient, SecretVersion

from local.standins.secrets import SecretServer
from tests.support.fakes import Clock
from vertex_launch.adapters.grpc_endpoint import BACKOFF
from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.errors import Unavailable
from vertex_launch.log import Redactor

SECRET = "projects/demo-project/secrets/wandb-api-key"
VERSION = f"{SECRET}/versions/latest"
FIRST, SECOND = "a1b2c3d4" * 5, "e5f6a7b8" * 5
QUICKLY = BACKOFF.with_delay(initial=0.001, maximum=0.002)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def redact() -> Redactor:
    return Redactor()


@pytest.fixture
def server() -> Iterator[SecretServer]:
    server = SecretServer(projects={"demo-project": "415104041262"})
    server.start()
    yield server
    server.stop()


Key = Callable[..., SecretKey]


@pytest.fixture
def key(server: SecretServer, redact: Redactor, clock: Clock) -> Key:
    def make(version: str = VERSION, timeout: float = 2.0) -> SecretKey:
        return SecretKey(
            version,
            redact,
            ttl=300,
            timeout=timeout,
            endpoint=f"http://{server.address}",
            clock=clock,
            backoff=QUICKLY,
        )

    return make


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(Unavailable) as error:
        act()
    assert error.value.service == "Secret Manager"
    return str(error.value)


def reads(server: SecretServer) -> int:
    return server.calls["AccessSecretVersion"]


def test_the_key_is_kept_for_a_while(server: SecretServer, key: Key, clock: Clock) -> None:
    server.add(SECRET, FIRST)
    secret = key()
    assert [secret.get(), secret.get()] == [FIRST, FIRST]
    server.add(SECRET, SECOND)
    clock.now += 299
    assert (secret.get(), reads(server)) == (FIRST, 1)
    clock.now += 1
    assert (secret.get(), reads(server)) == (SECOND, 2)


def test_a_refused_key_is_read_again_at_once(server: SecretServer, key: Key, clock: Clock) -> None:
    server.add(SECRET, FIRST)
    secret = key()
    secret.get()
    server.add(SECRET, SECOND)
    assert secret.renew(FIRST) == SECOND
    assert secret.renew(FIRST) == SECOND, "somebody else has read it since"
    assert reads(server) == 2
    clock.now += 299
    assert (secret.get(), reads(server)) == (SECOND, 2), "the time counts from the last reading"


def test_many_at_once_read_it_once(server: SecretServer, key: Key) -> None:
    server.add(SECRET, FIRST)
    server.faults.delay("AccessSecretVersion", 0.05)
    secret = key()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: secret.get(), range(8))) == {FIRST}
        assert set(pool.map(lambda _: secret.renew(FIRST), range(8))) == {FIRST}
    assert reads(server) <= 9, "a key that did not change is read again by each that was refused"


@pytest.mark.parametrize("around", ["{}", "{}\n", "{}\r\n", " {} \n", "\ufeff{}"])
def test_white_space_around_the_key_does_no_harm(server: SecretServer, key: Key, around: str) -> None:
    server.add(SECRET, around.format(FIRST))
    if around.startswith("\ufeff"):
        assert "holds no W&B API key" in refusal(key().get)
    else:
        assert key().get() == FIRST


@pytest.mark.parametrize("junk", ["", " \n", "two words", "two\nlines", "schlüssel" * 5, "nul\0" * 10, "\x1b[31m" * 8])
def test_what_is_no_key_is_not_used_and_not_repeated(server: SecretServer, key: Key, junk: str) -> None:
    server.add(SECRET, junk)
    told = refusal(key().get)
    assert told == (
        f"Secret Manager: {VERSION} holds no W&B API key: it is empty or not a single line of ASCII text; "
        "add a version that holds the key alone"
    )


def test_the_redactor_knows_the_key_before_anybody_else(server: SecretServer, key: Key, redact: Redactor) -> None:
    server.add(SECRET, f"{FIRST}\n")
    secret = key()
    basic = base64.b64encode(f"api:{FIRST}".encode()).decode()
    assert redact(FIRST) == FIRST
    secret.get()
    assert redact(f"{FIRST} {basic}") == "<redacted> <redacted>"
    server.add(SECRET, SECOND)
    secret.renew(FIRST)
    assert redact(f"{FIRST} {SECOND}") == "<redacted> <redacted>"


def test_a_damaged_payload_is_refused(server: SecretServer, key: Key) -> None:
    server.add(SECRET, FIRST)
    server.corrupt = True
    secret = key()
    assert "arrived damaged (its checksum differs); the next pass reads it again" in refusal(secret.get)
    server.corrupt = False
    assert secret.get() == FIRST


def test_a_payload_without_a_checksum_is_taken(server: SecretServer, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    """The field is optional."""
    real = SecretManagerServiceClient.access_secret_version

    def bare(*args: Any, **kwargs: Any) -> AccessSecretVersionResponse:
        answer = real(*args, **kwargs)
        answer.payload.data_crc32c = None
        return answer

    monkeypatch.setattr(SecretManagerServiceClient, "access_secret_version", bare)
    server.add(SECRET, FIRST)
    assert key().get() == FIRST


@pytest.mark.parametrize("state", [SecretVersion.State.DISABLED, SecretVersion.State.DESTROYED])
def test_a_version_that_is_not_enabled(server: SecretServer, key: Key, state: Any) -> None:
    server.set_state(server.add(SECRET, FIRST), state)
    told = refusal(key().get)
    assert f"{VERSION} is disabled or destroyed; enable it or add a new version" in told
    assert f"is in {state.name} state" in told


def test_a_secret_or_version_that_does_not_exist(server: SecretServer, key: Key) -> None:
    assert f"{VERSION} does not exist; add a version that holds the W&B API key, or correct" in refusal(key().get)
    server.add(SECRET, FIRST)
    assert f"{SECRET}/versions/7 does not exist" in refusal(key(f"{SECRET}/versions/7").get)


def test_a_secret_that_may_not_be_read(key: Key) -> None:
    told = refusal(key("projects/other/secrets/s/versions/1").get)
    assert "may not read projects/other/secrets/s/versions/1" in told
    assert "grant it roles/secretmanager.secretAccessor on that secret" in told


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_a_burst_of_trouble_is_waited_out(server: SecretServer, key: Key, code: str) -> None:
    server.add(SECRET, FIRST)
    server.faults.fail("AccessSecretVersion", code, times=3)
    assert key().get() == FIRST
    server.faults.lose("AccessSecretVersion", times=3)
    assert key().get() == FIRST


def test_trouble_that_goes_on_ends_in_time(server: SecretServer, key: Key) -> None:
    server.add(SECRET, FIRST)
    server.faults.fail("AccessSecretVersion", "UNAVAILABLE", times=None, message="The service is unavailable")
    told = refusal(key(timeout=1).get)
    assert f"cannot read {VERSION}: " in told
    assert "The service is unavailable" in told


def test_an_answer_that_takes_too_long(server: SecretServer, key: Key) -> None:
    server.add(SECRET, FIRST)
    server.faults.delay("AccessSecretVersion", 0.3)
    assert "Deadline Exceeded" in refusal(key(timeout=0.1).get)


def test_nobody_listens(server: SecretServer, key: Key) -> None:
    secret = key(timeout=0.4)
    server.stop()
    assert "onnect" in refusal(secret.get)


def test_an_old_key_is_not_used_beyond_its_time_when_it_cannot_be_read_again(
    server: SecretServer, key: Key, clock: Clock
) -> None:
    server.set_state(server.add(SECRET, FIRST), SecretVersion.State.ENABLED)
    secret = key()
    secret.get()
    server.set_state(f"{SECRET}/versions/1", SecretVersion.State.DISABLED)
    assert secret.get() == FIRST
    clock.now += 300
    assert "is disabled or destroyed" in refusal(secret.get)
