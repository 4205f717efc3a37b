"""The local Secret Manager with Google's own client over gRPC and REST, and the metadata server that issues tokens."""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable, Iterator

import google_crc32c
import grpc
import pytest
import requests
from google.api_core import exceptions
from google.cloud.secretmanager_v1 import SecretManagerServiceClient, SecretVersion
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
    SecretManagerServiceGrpcTransport,
    SecretManagerServiceRestTransport,
)
from google.oauth2.credentials import Credentials

from local.standins.metadata import LIFETIME, MetadataServer, Tokens
from local.standins.secrets import SecretServer
from tests.local_cloud.conftest import Clock

SECRET = "projects/demo-project/secrets/wandb-api-key"
ACCOUNT = "jobs@demo-project.iam.gserviceaccount.com"
OTHER = "other@demo-project.iam.gserviceaccount.com"
FLAVOR = {"Metadata-Flavor": "Google"}


@pytest.fixture
def tokens(clock: Clock) -> Tokens:
    return Tokens(clock)


@pytest.fixture
def server(tokens: Tokens) -> Iterator[SecretServer]:
    with SecretServer(projects={"demo-project": "415104041262"}, tokens=tokens) as server:
        yield server


@pytest.fixture
def client(server: SecretServer) -> Iterator[SecretManagerServiceClient]:
    channel = grpc.insecure_channel(server.address)
    yield SecretManagerServiceClient(transport=SecretManagerServiceGrpcTransport(channel=channel))
    channel.close()


def test_a_secret_can_be_read_with_its_checksum_and_changed(
    server: SecretServer, client: SecretManagerServiceClient
) -> None:
    assert server.add(SECRET, "first") == f"{SECRET}/versions/1"
    answer = client.access_secret_version(name=f"{SECRET}/versions/latest")
    assert (answer.name, answer.payload.data) == ("projects/415104041262/secrets/wandb-api-key/versions/1", b"first")
    assert answer.payload.data_crc32c == google_crc32c.value(b"first")
    server.add(SECRET, "second")
    assert client.access_secret_version(name=f"{SECRET}/versions/latest").payload.data == b"second"
    assert client.access_secret_version(name=f"{SECRET}/versions/1").payload.data == b"first"
    by_number = answer.name.replace("versions/1", "versions/2")
    assert client.access_secret_version(name=by_number).payload.data == b"second"
    assert server.calls == {"AccessSecretVersion": 4}


def test_missing_and_disabled_versions_are_refused(server: SecretServer, client: SecretManagerServiceClient) -> None:
    with pytest.raises(exceptions.NotFound, match="not found or has no versions"):
        client.access_secret_version(name=f"{SECRET}/versions/latest")
    version = server.add(SECRET, "key")
    with pytest.raises(exceptions.NotFound, match=r"versions/2\] not found"):
        client.access_secret_version(name=f"{SECRET}/versions/2")
    for state in (SecretVersion.State.DISABLED, SecretVersion.State.DESTROYED):
        server.set_state(version, state)
        with pytest.raises(exceptions.FailedPrecondition, match=f"is in {state.name} state"):
            client.access_secret_version(name=f"{SECRET}/versions/latest")
    server.set_state(version, SecretVersion.State.ENABLED)
    assert client.access_secret_version(name=version).payload.data == b"key"
    with pytest.raises(exceptions.PermissionDenied, match=r"secretmanager.versions.access"):
        client.access_secret_version(name="projects/other/secrets/wandb-api-key/versions/1")
    with pytest.raises(exceptions.InvalidArgument):
        client.access_secret_version(name=SECRET)


@pytest.mark.parametrize("value", ["key", ""])
def test_a_corrupt_payload_does_not_fit_its_checksum(
    server: SecretServer, client: SecretManagerServiceClient, value: str
) -> None:
    version = server.add(SECRET, value)
    server.corrupt = True
    payload = client.access_secret_version(name=version).payload
    assert payload.data_crc32c == google_crc32c.value(value.encode()) != google_crc32c.value(payload.data)


def test_faults(server: SecretServer, client: SecretManagerServiceClient) -> None:
    version = server.add(SECRET, "key")
    server.faults.fail("AccessSecretVersion", 403)
    with pytest.raises(exceptions.PermissionDenied):
        client.access_secret_version(name=version)
    server.faults.fail("AccessSecretVersion", 503)
    with pytest.raises(exceptions.ServiceUnavailable):
        client.access_secret_version(name=version, retry=None)
    assert client.access_secret_version(name=version).payload.data == b"key"
    with pytest.raises(exceptions.MethodNotImplemented):
        client.get_secret(name=SECRET)


# Over REST

Rest = Callable[[str], SecretManagerServiceClient]


@pytest.fixture
def rest(server: SecretServer) -> Rest:
    """Creates clients over REST with an access token."""

    def make(token: str) -> SecretManagerServiceClient:
        transport = SecretManagerServiceRestTransport(
            host=server.address, credentials=Credentials(token=token), url_scheme="http"
        )
        return SecretManagerServiceClient(transport=transport)

    return make


def test_the_same_versions_can_be_read_over_rest_on_the_same_port(
    server: SecretServer, client: SecretManagerServiceClient, rest: Rest, tokens: Tokens
) -> None:
    server.add(SECRET, "first")
    server.allow(SECRET, ACCOUNT)
    job = rest(tokens.give(ACCOUNT))
    for version in ("1", "latest"):
        name = f"{SECRET}/versions/{version}"
        assert job.access_secret_version(name=name) == client.access_secret_version(name=name)
    second = server.add(SECRET, "second")
    by_number = "projects/415104041262/secrets/wandb-api-key/versions/2"
    assert job.access_secret_version(name=by_number).payload.data == b"second"
    assert server.read[1:] == [
        (ACCOUNT, "projects/415104041262/secrets/wandb-api-key/versions/1"),
        (ACCOUNT, by_number),
    ]
    assert server.calls == {"AccessSecretVersion": 5}
    server.corrupt = True
    payload = job.access_secret_version(name=second).payload
    assert payload.data_crc32c == google_crc32c.value(b"second") != google_crc32c.value(payload.data)


def test_the_json_of_a_version(server: SecretServer, tokens: Tokens) -> None:
    version = server.add(SECRET, "key")
    server.allow(SECRET, ACCOUNT)
    bearer = {"Authorization": f"Bearer {tokens.give(ACCOUNT)}"}
    with requests.get(f"http://{server.address}/v1/{version}:access", headers=bearer, timeout=5) as answer:
        assert answer.json() == {
            "name": "projects/415104041262/secrets/wandb-api-key/versions/1",
            "payload": {"data": base64.b64encode(b"key").decode(), "dataCrc32c": str(google_crc32c.value(b"key"))},
        }


def test_only_accounts_with_the_right_read_a_secret_and_no_other(
    server: SecretServer, rest: Rest, tokens: Tokens
) -> None:
    version, unseen = server.add(SECRET, "key"), server.add(f"{SECRET}-2", "key")
    server.allow(SECRET.replace("demo-project", "415104041262"), ACCOUNT)
    assert rest(tokens.give(ACCOUNT)).access_secret_version(name=version).payload.data == b"key"
    for account, name in ((OTHER, version), (ACCOUNT, unseen), (ACCOUNT, "projects/other/secrets/s/versions/1")):
        with pytest.raises(exceptions.Forbidden, match=r"'secretmanager.versions.access' denied for resource"):
            rest(tokens.give(account)).access_secret_version(name=name)
    assert [account for account, _ in server.read] == [ACCOUNT]


def test_a_token_is_valid_for_an_hour_and_cannot_be_forged(
    server: SecretServer, rest: Rest, tokens: Tokens, clock: Clock
) -> None:
    version = server.add(SECRET, "key")
    server.allow(SECRET, ACCOUNT)
    token = tokens.give(ACCOUNT)
    assert token != tokens.give(ACCOUNT)
    assert ACCOUNT not in token
    clock.now += LIFETIME - 1
    assert rest(token).access_secret_version(name=version).payload.data == b"key"
    clock.now += 1
    for headers in (*({"Authorization": f"Bearer {one}"} for one in (token, ACCOUNT, "made-up")), {}):
        with requests.get(f"http://{server.address}/v1/{version}:access", headers=headers, timeout=5) as answer:
            assert (answer.status_code, answer.json()["error"]["status"]) == (401, "UNAUTHENTICATED")


def test_errors_have_googles_form(server: SecretServer, tokens: Tokens) -> None:
    version = server.add(SECRET, "key")
    server.allow(SECRET, ACCOUNT)

    def ask(path: str, account: str = ACCOUNT) -> tuple[int, str]:
        bearer = {"Authorization": f"Bearer {tokens.give(account)}"}
        with requests.get(f"http://{server.address}/v1/{path}", headers=bearer, timeout=5) as answer:
            error = answer.json()["error"]
            assert error["code"] == answer.status_code
            assert error["message"]
            return answer.status_code, error["status"]

    assert ask(f"{version}:access", OTHER) == (403, "PERMISSION_DENIED")
    assert ask(f"{SECRET}/versions/2:access") == (404, "NOT_FOUND")
    assert ask(f"{SECRET}/versions/x:access") == (400, "INVALID_ARGUMENT")
    assert ask(version) == (404, "NOT_FOUND")
    for state in (SecretVersion.State.DISABLED, SecretVersion.State.DESTROYED):
        server.set_state(version, state)
        assert ask(f"{version}:access") == (400, "FAILED_PRECONDITION")
    server.faults.fail("AccessSecretVersion", 503)
    assert ask(f"{version}:access")[0] == 503


def test_an_answer_over_rest_can_be_lost(server: SecretServer, tokens: Tokens) -> None:
    version = server.add(SECRET, "key")
    server.allow(SECRET, ACCOUNT)
    server.faults.lose("AccessSecretVersion")
    bearer = {"Authorization": f"Bearer {tokens.give(ACCOUNT)}"}
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{server.address}/v1/{version}:access", headers=bearer, timeout=5)
    assert len(server.read) == 1


def test_a_stopped_server_cuts_off_connections_of_both_kinds(tokens: Tokens) -> None:
    server = SecretServer(projects={"demo-project": "415104041262"}, tokens=tokens)
    server.start()
    version = server.add(SECRET, "key")
    with grpc.insecure_channel(server.address) as channel:
        client = SecretManagerServiceClient(transport=SecretManagerServiceGrpcTransport(channel=channel))
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=5) as idle:
            idle.sendall(b"GET / HTTP/1.1\r\n")
            assert client.access_secret_version(name=version).payload.data == b"key"
            server.stop()
            assert idle.recv(1) == b""
        with pytest.raises(exceptions.ServiceUnavailable):
            client.access_secret_version(name=version, retry=None, timeout=5)


# The metadata server


@pytest.fixture
def metadata(tokens: Tokens) -> Iterator[MetadataServer]:
    with MetadataServer(ACCOUNT, tokens) as metadata:
        yield metadata


def look(metadata: MetadataServer, path: str, **headers: str) -> requests.Response:
    with requests.get(f"http://{metadata.host}{path}", headers=headers, timeout=5) as answer:
        assert answer.headers["Metadata-Flavor"] == "Google"
        return answer


def test_a_container_gets_its_account_and_its_tokens(metadata: MetadataServer, tokens: Tokens) -> None:
    accounts = "/computeMetadata/v1/instance/service-accounts"
    for name in ("default", ACCOUNT):
        answer = look(metadata, f"{accounts}/{name}/token", **FLAVOR)
        assert answer.headers["Content-Type"] == "application/json"
        token = answer.json()
        assert {**token, "access_token": ""} == {"access_token": "", "expires_in": 3599, "token_type": "Bearer"}
        assert tokens.account(token["access_token"]) == ACCOUNT
    assert len(set(tokens.given())) == 2
    assert look(metadata, f"{accounts}/default/email", **FLAVOR).text == ACCOUNT
    assert look(metadata, f"{accounts}/default/scopes", **FLAVOR).text.endswith("/cloud-platform\n")
    assert look(metadata, f"{accounts}/default/?recursive=true", **FLAVOR).json()["email"] == ACCOUNT


def test_a_request_without_googles_header_gets_no_token(metadata: MetadataServer, tokens: Tokens) -> None:
    path = "/computeMetadata/v1/instance/service-accounts/default/token"
    for headers in ({}, {"Metadata-Flavor": "Other"}, {**FLAVOR, "X-Forwarded-For": "192.0.2.1"}):
        assert look(metadata, path, **headers).status_code == 403
    for unknown in (path.replace("default", OTHER), "/computeMetadata/v1/project/project-id", f"{path}s", "/v1"):
        assert look(metadata, unknown, **FLAVOR).status_code == 404
    with requests.post(f"http://{metadata.host}{path}", headers=FLAVOR, timeout=5) as answer:
        assert answer.status_code == 405
    assert tokens.given() == []
