"""The API key from the local Secret Manager: what counts as a key, how long it is kept, and the errors."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager_v1 import AccessSecretVersionResponse, SecretManagerServiceClient, SecretVersion

from local.standins.secrets import SecretServer
from tests.support.memory import Clock
from tests.support.specs import with_settings
from vertex_launch.adapters.google_api import BACKOFF
from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable
from vertex_launch.log import Redactor

SECRET = "projects/demo-project/secrets/wandb-api-key"
VERSION = f"{SECRET}/versions/latest"
FIRST, SECOND = "a1b2c3d4" * 5, "e5f6a7b8" * 5
OFTEN = BACKOFF.with_delay(initial=0.5, maximum=1.0)

pytestmark = pytest.mark.usefixtures("retry_clock")


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
    def make(version: str = VERSION) -> SecretKey:
        settings = with_settings(key_secret=version, secretmanager_endpoint=f"http://{server.address}")
        return SecretKey(settings, redact, clock=clock, backoff=OFTEN)

    return make


def refusal(act: Callable[[], object], code: Code) -> str:
    with pytest.raises(Unavailable) as error:
        act()
    assert (error.value.service, error.value.message.code) == ("Secret Manager", code)
    return error.value.reason


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
    assert secret.renew(FIRST) == SECOND, "another thread has read it since"
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
        refusal(key().get, Code.SECRET_INVALID)
    else:
        assert key().get() == FIRST


@pytest.mark.parametrize("junk", ["", " \n", "two words", "two\nlines", "schlüssel" * 5, "nul\0" * 10, "\x1b[31m" * 8])
def test_what_is_not_a_key_is_neither_used_nor_quoted(server: SecretServer, key: Key, junk: str) -> None:
    server.add(SECRET, junk)
    text = refusal(key().get, Code.SECRET_INVALID)
    assert VERSION in text
    assert not junk.strip() or junk not in text


def test_the_redactor_knows_each_key_that_was_read(server: SecretServer, key: Key, redact: Redactor) -> None:
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
    refusal(secret.get, Code.SECRET_UNAVAILABLE)
    server.corrupt = False
    assert secret.get() == FIRST


def test_a_payload_without_a_checksum_is_accepted(
    server: SecretServer, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    assert f"is in {state.name} state" in refusal(key().get, Code.SECRET_NOT_FOUND)


def test_a_secret_or_version_that_does_not_exist(server: SecretServer, key: Key) -> None:
    assert VERSION in refusal(key().get, Code.SECRET_NOT_FOUND)
    server.add(SECRET, FIRST)
    assert f"{SECRET}/versions/7" in refusal(key(f"{SECRET}/versions/7").get, Code.SECRET_NOT_FOUND)


def test_a_secret_that_may_not_be_read(key: Key) -> None:
    text = refusal(key("projects/other/secrets/s/versions/1").get, Code.SECRET_PERMISSION)
    assert "projects/other/secrets/s/versions/1" in text
    assert "roles/secretmanager.secretAccessor" in text


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_a_call_that_fails_a_few_times_is_repeated(server: SecretServer, key: Key, code: str) -> None:
    server.add(SECRET, FIRST)
    server.faults.fail("AccessSecretVersion", code, times=3)
    assert key().get() == FIRST
    server.faults.lose("AccessSecretVersion", times=3)
    assert key().get() == FIRST


def test_errors_that_go_on_are_quoted(server: SecretServer, key: Key, retry_clock: Clock) -> None:
    server.add(SECRET, FIRST)
    server.faults.fail("AccessSecretVersion", "UNAVAILABLE", times=None, message="The service is unavailable")
    began = retry_clock.now
    text = refusal(key().get, Code.SECRET_UNAVAILABLE)
    assert VERSION in text
    assert "The service is unavailable" in text
    assert retry_clock.now - began <= 20
    assert reads(server) > 2


def test_an_old_key_is_not_used_beyond_its_time_when_it_cannot_be_read_again(
    server: SecretServer, key: Key, clock: Clock
) -> None:
    server.set_state(server.add(SECRET, FIRST), SecretVersion.State.ENABLED)
    secret = key()
    secret.get()
    server.set_state(f"{SECRET}/versions/1", SecretVersion.State.DISABLED)
    assert secret.get() == FIRST
    clock.now += 300
    refusal(secret.get, Code.SECRET_NOT_FOUND)


@pytest.mark.parametrize(
    ("version", "endpoint", "address"),
    [
        (VERSION, None, "secretmanager.googleapis.com:443"),
        (
            "projects/p/locations/europe-west3/secrets/s/versions/1",
            None,
            "secretmanager.europe-west3.rep.googleapis.com:443",
        ),
        ("projects/p/locations/europe-west3/secrets/s/versions/1", "secret.example:8443", "secret.example:8443"),
    ],
)
def test_a_regional_secret_is_read_in_its_region(version: str, endpoint: str | None, address: str) -> None:
    settings = with_settings(key_secret=version, secretmanager_endpoint=endpoint)
    key = SecretKey(settings, Redactor(), AnonymousCredentials())
    assert key._client.transport.host == address
