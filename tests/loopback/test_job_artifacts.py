"""W&B's job artifacts through the real SDK, against the local W&B."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from local.standins.wandb import WandbServer
from tests.support.processes import eventually
from vertex_launch.adapters.job_artifacts import DESCRIPTION, JobArtifacts
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected, Unavailable

KEY = "artifact" * 5
IMAGE = {"source_type": "image", "source": {"image": "us-docker.pkg.dev/p/train/mnist:1"}}


class Key:
    def __init__(self) -> None:
        self.key = KEY

    def get(self) -> str:
        return self.key


@pytest.fixture(scope="module")
def server() -> Iterator[WandbServer]:
    server = WandbServer(
        api_keys={KEY: "ada", KEY[::-1]: "bob"},
        teams={"acme": ["ada"], "other": ["bob"]},
        default_entities={"ada": "acme"},
    ).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def key() -> Key:
    return Key()


@pytest.fixture(scope="module")
def jobs(server: WandbServer, key: Key) -> JobArtifacts:
    return JobArtifacts(server.url, key, timeout=20)


def made(server: WandbServer, name: str, description: Any = None, **files: bytes) -> Any:
    """Make a version of a job."""
    content = {DESCRIPTION: json.dumps(description or IMAGE).encode(), **files}
    return server.store.create_artifact("acme", "demo", "job", name, content, username="ada")


def test_an_alias_is_resolved_to_its_current_version(server: WandbServer, jobs: JobArtifacts) -> None:
    made(server, "train")
    assert jobs.find("acme/demo/train:latest").name == "acme/demo/train:v0"
    made(server, "train", {**IMAGE, "runtime": "3.12"})
    found = jobs.find("acme/demo/train:latest")
    assert (found.name, found.description["runtime"]) == ("acme/demo/train:v1", "3.12")
    assert "runtime" not in jobs.find("acme/demo/train:v0").description


def test_a_version_is_asked_for_once(server: WandbServer, jobs: JobArtifacts) -> None:
    made(server, "once")
    first = jobs.find("acme/demo/once:v0")
    found = server.store.artifacts.find("acme", "demo", "once:v0")
    assert found is not None
    server.store.artifacts.delete(found, with_aliases=True)
    assert jobs.find("acme/demo/once:v0") is first, "a version never changes"


def test_only_the_description_is_downloaded_and_nothing_is_kept(
    server: WandbServer, jobs: JobArtifacts, tmp_path: Path
) -> None:
    made(server, "large", **{"requirements.frozen.txt": b"x" * 100_000})
    jobs.find("acme/demo/large:v0")
    assert jobs.folder is not None
    assert not [path for path in jobs.folder.rglob("*") if path.is_file() and path.stat().st_size >= 100_000]
    jobs.forget()
    assert list(jobs.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("train:v0", Code.ARTIFACT_NAME),
        ("acme/demo/train:v99", Code.ARTIFACT_NOT_FOUND),
        ("acme/demo/nothing:latest", Code.ARTIFACT_NOT_FOUND),
        ("acme/nowhere/train:v0", Code.ARTIFACT_NOT_FOUND),
        ("other/demo/train:v0", Code.ARTIFACT_NOT_FOUND),
        ("acme/demo/gone:v0", Code.ARTIFACT_NOT_FOUND),
        ("acme/demo/data:v0", Code.ARTIFACT_INVALID),
        ("acme/demo/odd:v0", Code.ARTIFACT_INVALID),
    ],
)
def test_what_is_not_a_job_is_rejected_by_name(server: WandbServer, jobs: JobArtifacts, name: str, code: Code) -> None:
    server.store.create_artifact("acme", "demo", "dataset", "data", {"a": b"1"}, username="ada")
    server.store.create_artifact("acme", "demo", "job", "odd", {"a": b"1"}, username="ada")
    server.store.artifacts.delete(made(server, "gone"), with_aliases=True)
    with pytest.raises(ItemRejected) as error:
        jobs.find(name)
    assert error.value.message.code is code
    assert name in error.value.message.text


def test_a_new_key_is_used(server: WandbServer, jobs: JobArtifacts, key: Key) -> None:
    made(server, "secret")
    key.key = KEY[::-1]
    try:
        with pytest.raises(ItemRejected):
            jobs.find("acme/demo/secret:latest")
    finally:
        key.key = KEY
    assert jobs.find("acme/demo/secret:latest").name == "acme/demo/secret:v0"


def test_a_job_that_was_deleted_and_made_again_is_the_new_one(server: WandbServer, jobs: JobArtifacts) -> None:
    old = made(server, "again")
    assert "runtime" not in jobs.find("acme/demo/again:latest").description
    del server.store.artifacts.collections["acme", "demo", old.of.name]
    made(server, "again", {**IMAGE, "runtime": "3.13"})
    found = jobs.find("acme/demo/again:latest")
    assert (found.name, found.description["runtime"]) == ("acme/demo/again:v0", "3.13")


def helpers() -> list[int]:
    """Return the live helper processes of W&B's client, children of this process."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("processes are looked for in /proc, which is not here")
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # processes come and go meanwhile
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            state, parent = rest.split()[:2]
            if name.startswith("wandb-core") and state != "Z" and int(parent) == os.getpid():
                found.append(int(path.parent.name))
    return found


def test_the_pass_after_one_in_which_the_helper_process_died_has_another(
    server: WandbServer, jobs: JobArtifacts
) -> None:
    made(server, "helped")
    jobs.find("acme/demo/helped:latest")
    (helper,) = helpers()
    os.kill(helper, signal.SIGKILL)
    assert eventually(lambda: not helpers())
    with pytest.raises(Unavailable, match="acme/demo/helped:latest"):
        jobs.find("acme/demo/helped:latest")
    jobs.forget()
    assert jobs.find("acme/demo/helped:latest").name == "acme/demo/helped:v0"


def test_a_server_that_is_down_is_not_a_missing_job(server: WandbServer) -> None:
    gone = WandbServer(api_keys={KEY: "ada"}, teams={"acme": ["ada"]}, default_entities={"ada": "acme"}).start()
    url = gone.url
    gone.stop()
    with pytest.raises(Unavailable) as error:
        JobArtifacts(url, Key(), timeout=1).find("acme/demo/train:v0")
    assert error.value.message.code is Code.WANDB_UNAVAILABLE
