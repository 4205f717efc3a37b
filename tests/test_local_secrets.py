"""The local Secret Manager, spoken to by Google's own client."""

from __future__ import annotations

from collections.abc import Iterator

import google_crc32c
import grpc
import pytest
from google.api_core import exceptions
from google.cloud.secretmanager_v1 import SecretManagerServiceClient, SecretVersion
from google.cloud.secretmanager_v1.services.secret_manager_service.transports import (
    SecretManagerServiceGrpcTransport,
)

from local.secrets import SecretServer

SECRET = "projects/demo-project/secrets/wandb-api-key"


@pytest.fixture
def server() -> Iterator[SecretServer]:
    server = SecretServer(projects={"demo-project": "415104041262"})
    server.start()
    yield server
    server.stop()


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


def test_what_is_not_there_or_not_enabled_is_refused(server: SecretServer, client: SecretManagerServiceClient) -> None:
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
