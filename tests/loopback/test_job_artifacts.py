"""W&B's job artifacts through the real SDK: passes over items that name one, whether it is there, flawed, gone or out of reach."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from local.standins.wandb import WandbServer
from tests.local_cloud.conftest import BOB
from tests.local_cloud.test_local_wandb import Client
from tests.support.memory import Secret
from tests.support.processes import eventually
from tests.support.wandb_jobs import Made, passed, server, spec, store
from vertex_launch.adapters import job_artifacts
from vertex_launch.adapters.job_artifacts import DESCRIPTION, JobArtifacts
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected, Unavailable

IMAGE = {"source_type": "image", "source": {"image": "registry.local/train:7"}}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A W&B with an image job, with which the SDK has spoken, so that its start takes no time of a pass."""
    with server() as w_and_b:
        store(w_and_b, "image", IMAGE)
        jobs = JobArtifacts(w_and_b.url, Secret(), timeout=60)
        jobs.find("acme/demo/image:v0")
        yield Made(w_and_b, Client(w_and_b, tmp_path_factory.mktemp("home")), jobs)


def refused(made: Made, job: str, **changes: Any) -> str:
    """Return the message with which an item of that job fails, while the item behind it starts."""
    done = passed(made.jobs, made.server, spec("x", **changes) | {"job": job}, spec("image:v0", run_id="good"))
    assert [one["item"] for one in done.report.submitted] == done.items[1:], done.report.body()
    message = done.message()
    assert job in message
    return message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("flaw", {"source_type": "image", "source": {"image": "\ud800"}}),
        ("empty", b""),
        ("half", b'{"source_type": "ima'),
        ("bytes", b"\xff\xfe\0"),
        ("list", b"[]"),
        ("null", b"null"),
        ("deep", b"[" * 100_000),
        ("large", b'{"a": "' + b"x" * 2**21 + b'"}'),
        ("digits", b'{"source_type": "image", "source": {"image": "i"}, "a": ' + b"9" * 5000 + b"}"),
        ("long", {"source_type": "image", "source": {"image": "i", "a": "x" * 100_000}}),
    ],
)
def test_a_description_that_is_not_of_a_job_fails_its_item(made: Made, name: str, content: object) -> None:
    store(made.server, name, content)
    message = refused(made, f"acme/demo/{name}:v0")
    assert f"[{Code.ARTIFACT_INVALID}]" in message
    for word in ("codec", "Expecting", "sys.", "xxx"):
        assert word not in message


def test_only_what_a_pass_needs_of_a_description_is_remembered_and_not_too_many_bytes(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_artifacts, "MOST_KEPT", 300)
    jobs = JobArtifacts(made.server.url, Secret(), timeout=20)
    for number in range(5):
        source = {"image": f"i:{number}", "more": "y" * 60}
        store(
            made.server,
            f"kept{number}",
            {"source_type": "image", "source": source, "input_types": {"z": "z" * 900_000}},
        )
        found = jobs.find(f"acme/demo/kept{number}:v0")
        assert found.description == {"source_type": "image", "source": source}
    assert list(jobs._known) == ["acme/demo/kept3:v0", "acme/demo/kept4:v0"]


@pytest.mark.parametrize(
    ("name", "about"),
    [
        ("metadata", {"metadata": json.dumps({"a": "x" * 8_000_000})}),
        ("words", {"description": "x" * 2_000_000}),
        ("tags", {"tags": [f"tag-{number}-{'a' * 100}" for number in range(10_000)]}),
    ],
)
def test_what_the_sdk_would_read_without_a_bound_fails_its_item(made: Made, name: str, about: dict[str, Any]) -> None:
    artifact = store(made.server, f"much-{name}", IMAGE)
    for field, value in about.items():
        setattr(artifact, field, value)
    made.server.store.operations.clear()
    message = refused(made, f"acme/demo/much-{name}:v0")
    assert f"[{Code.ARTIFACT_INVALID}]" in message
    assert str(job_artifacts.LARGEST_ABOUT) in message


def test_ordinary_words_about_a_job_do_not_matter(made: Made) -> None:
    artifact = store(made.server, "described", IMAGE)
    artifact.metadata, artifact.description = json.dumps({"a": "x" * 500_000}), "d" * 100_000
    assert made.jobs.find("acme/demo/described:v0").description == IMAGE


def test_what_is_not_there_fails_its_item(made: Made) -> None:
    artifacts = made.server.store.artifacts
    for name in ("gone", "version-gone"):
        store(made.server, name, IMAGE)
    artifacts.delete(made.named("gone:v0"), with_aliases=True)
    store(made.server, "version-gone", {"source_type": "image", "source": {"image": "i:2"}})
    artifacts.delete(made.named("version-gone:v0"))
    made.server.store.create_artifact("acme", "demo", "job", "no-description", {"a": b"1"})
    made.server.store.create_artifact("acme", "demo", "dataset", "data", {"a": b"1"})
    store(made.server, "secret", IMAGE, entity="other")
    for job, says in (
        ("acme/demo/gone:latest", "not found"),
        ("acme/demo/gone:v0", "was deleted"),
        ("acme/demo/version-gone:v0", "was deleted"),
        ("acme/demo/version-gone:v7", "not found"),
        ("acme/demo/no-description:v0", f"has no {DESCRIPTION}"),
        ("acme/demo/data:v0", "this artifact is of type 'dataset'"),
        ("acme/demo/nothing:latest", "not found"),
        ("acme/demo/image:no-such-alias", "not found"),
        ("acme/nowhere/image:v0", "not found"),
        ("nobody/demo/image:v0", "is not a job that"),
        ("other/demo/secret:v0", "is not a job that"),
        ("acme/demo/image :v0", "not found"),
        ("acme/demo/g\u00fc\u00dfe \u6f22:v0", "not found"),
        ("acme/demo/%2e%2e:v0", "not found"),
        ('acme/demo/a"b{}$\\:v0', "not found"),
        (f"acme/demo/{'x' * 2000}:v0", "not found"),
    ):
        assert says in refused(made, job)


@pytest.mark.parametrize(
    "job",
    [
        "acme/demo/image:v0:v1",
        "a/acme/demo/image:v0",
        "acme//image:v0",
        "/demo/image:v0",
        "acme/demo/:v0",
        "acme/demo/image:",
        "wandb-artifact://_id/QXJ0",
        "https://wandb.ai/acme/demo/artifacts/job/image/v0",
        "acme/demo/image\n:v0",
        "/",
        ":",
    ],
)
def test_what_is_not_a_job_name_fails_its_item_without_asking_w_and_b(made: Made, job: str) -> None:
    before = made.server.store.asked()
    done = passed(made.jobs, made.server, spec("x") | {"job": job})
    message = done.message()
    assert f"[{Code.ARTIFACT_NAME}]" in message
    assert made.server.store.asked() == before


def test_a_renamed_job_is_found_by_its_new_name_alone(made: Made) -> None:
    collections = made.server.store.artifacts.collections
    store(made.server, "old-name", IMAGE)
    collection = collections.pop(("acme", "demo", "old-name"))
    collection.name = "new-name"
    collections["acme", "demo", "new-name"] = collection
    assert "not found" in refused(made, "acme/demo/old-name:latest")
    assert passed(made.jobs, made.server, spec("new-name:latest")).report.submitted


def test_an_alias_that_moves_is_followed_and_its_versions_are_asked_for_once(made: Made) -> None:
    jobs = JobArtifacts(made.server.url, Secret(), timeout=20)
    images = []
    store(made.server, "moves", {"source_type": "image", "source": {"image": "i:0"}})
    counts = [made.server.store.asked()]
    for step in range(3):
        if step == 1:
            store(made.server, "moves", {"source_type": "image", "source": {"image": "i:1"}})
        job = passed(jobs, made.server, spec("moves:latest")).job()
        images.append(job.job_spec.worker_pool_specs[0].container_spec.image_uri)
        jobs.forget()
        counts.append(made.server.store.asked())
    assert images == ["i:0", "i:1", "i:1"]
    downloads = [after["downloadArtifactFile"] - before["downloadArtifactFile"] for before, after in pairwise(counts)]
    assert downloads == [1, 1, 0]
    assert jobs.find("acme/demo/moves:v0").name == "acme/demo/moves:v0"
    assert made.server.store.asked() == counts[-1], "a version never changes"


def test_only_the_description_is_downloaded_and_nothing_is_kept(made: Made) -> None:
    content = {DESCRIPTION: json.dumps(IMAGE).encode(), "requirements.frozen.txt": b"x" * 100_000}
    made.server.store.create_artifact("acme", "demo", "job", "files", content)
    made.jobs.find("acme/demo/files:v0")
    assert made.jobs.folder is not None
    assert not [path for path in made.jobs.folder.rglob("*") if path.is_file() and path.stat().st_size >= 100_000]
    made.jobs.forget()
    assert list(made.jobs.folder.iterdir()) == []


def test_a_new_key_is_used(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Secret, "get", lambda _: BOB)
        with pytest.raises(ItemRejected):
            made.jobs.find("acme/demo/image:latest")
    assert made.jobs.find("acme/demo/image:latest").name == "acme/demo/image:v0"


def test_a_job_that_was_deleted_and_made_again_is_the_new_one(made: Made) -> None:
    old = store(made.server, "again", IMAGE)
    assert "runtime" not in made.jobs.find("acme/demo/again:latest").description
    del made.server.store.artifacts.collections["acme", "demo", old.of.name]
    store(made.server, "again", {**IMAGE, "runtime": "3.13"})
    found = made.jobs.find("acme/demo/again:latest")
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


def test_the_pass_after_one_in_which_the_helper_process_died_has_another(made: Made) -> None:
    made.jobs.find("acme/demo/image:latest")
    (helper,) = helpers()
    os.kill(helper, signal.SIGKILL)
    assert eventually(lambda: not helpers())
    with pytest.raises(Unavailable, match="acme/demo/image:latest") as error:
        made.jobs.find("acme/demo/image:latest")
    assert error.value.message.code is Code.WANDB_UNAVAILABLE
    made.jobs.forget()
    assert made.jobs.find("acme/demo/image:latest").name == "acme/demo/image:v0"


# A W&B in trouble


@pytest.fixture
def troubled() -> Iterator[WandbServer]:
    """A W&B with 21 jobs, with which the SDK has spoken, so that its start takes no time of a pass."""
    with server() as w_and_b:
        for number in range(21):
            store(w_and_b, f"job{number}", {"source_type": "image", "source": {"image": f"i:{number}"}})
        JobArtifacts(w_and_b.url, Secret(), timeout=20).find("acme/demo/job0:v0")
        yield w_and_b


@pytest.fixture
def one_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file has no second address."""
    monkeypatch.setattr(job_artifacts, "_address", lambda artifact: "")


TWENTY = [spec(f"job{number}:latest", run_id=f"run{number}") for number in range(1, 21)]


TROUBLES: dict[str, Callable[[WandbServer], object]] = {
    "503": lambda server: server.faults.fail("*", 503, times=None),
    "500": lambda server: server.faults.fail("*", 500, times=None),
    "429": lambda server: server.faults.fail("*", 429, times=None),
    "a refused key": lambda server: server.faults.fail("*", 401, times=None),
    "lost answers": lambda server: server.faults.lose("*", times=None),
    "no answer": lambda server: server.faults.delay("*", 60, times=None),
    "503 for its file": lambda server: server.faults.fail("downloadArtifactFile", 503, times=None),
    "429 for its file": lambda server: server.faults.fail("downloadArtifactFile", 429, times=None),
    "no answer for its file": lambda server: server.faults.delay("downloadArtifactFile", 60, times=None),
    "its file lost on the way": lambda server: server.faults.lose("downloadArtifactFile", times=None),
    "a closed port": lambda server: server.stop(),
}


CASES = [(name, False) for name in TROUBLES] + [(name, True) for name in TROUBLES if "its file" not in name]
"""Each trouble when W&B is first asked, and those of every answer also when it has answered before."""


@pytest.mark.parametrize(("trouble", "warm"), CASES)
def test_a_w_and_b_in_trouble_defers_items_and_leaves_time_for_the_pass(
    troubled: WandbServer, trouble: str, warm: bool
) -> None:
    jobs = JobArtifacts(troubled.url, Secret(), timeout=1)
    if warm:
        jobs.find("acme/demo/job0:v0")
    TROUBLES[trouble](troubled)
    begun = time.monotonic()
    done = passed(jobs, troubled, *TWENTY, max_jobs=30)
    took = time.monotonic() - begun
    assert done.report.rejected == []
    assert {one["item"] for one in done.report.deferred} == set(done.items)
    assert {one["code"] for one in done.report.deferred} == {Code.ARTIFACT_UNAVAILABLE}
    assert took < 5, "a second for those that are asked for at once, a tenth of it for those behind them"


@pytest.mark.usefixtures("one_address")
def test_one_job_that_cannot_be_read_does_not_keep_others_from_starting(troubled: WandbServer) -> None:
    jobs = JobArtifacts(troubled.url, Secret(), timeout=50)  # a tenth of it after the first trouble
    troubled.faults.fail("downloadArtifactFile", 503, times=1)
    done = passed(jobs, troubled, *TWENTY, max_jobs=30)
    assert (len(done.report.submitted), len(done.report.deferred)) == (19, 1)


@pytest.mark.usefixtures("one_address")
def test_a_pass_after_the_trouble_waits_its_full_timeout_again(troubled: WandbServer) -> None:
    jobs = JobArtifacts(troubled.url, Secret(), timeout=5)
    troubled.faults.fail("downloadArtifactFile", 503, times=1)
    with pytest.raises(Unavailable, match=r"cannot download wandb-job\.json of job acme/demo/job1:v0: status 503"):
        jobs.find("acme/demo/job1:v0")
    jobs.forget()
    troubled.faults.delay("downloadArtifactFile", 1, times=1)  # longer than a tenth of its timeout
    assert jobs.find("acme/demo/job1:v0").name == "acme/demo/job1:v0"


@pytest.mark.usefixtures("one_address")
def test_the_address_of_a_description_is_in_no_message(troubled: WandbServer) -> None:
    """Whoever has it can read the file: it is signed."""
    jobs = JobArtifacts(troubled.url, Secret(), timeout=5)
    for trouble in (troubled.faults.lose, troubled.faults.fail):
        trouble("downloadArtifactFile")
        with pytest.raises(Unavailable) as error:
            jobs.find("acme/demo/job1:v0")
        assert "_artifacts/" not in str(error.value)
        assert error.value.__cause__ is None
    troubled.faults.fail("downloadArtifactFile", 404)
    with pytest.raises(ItemRejected) as rejected:
        jobs.find("acme/demo/job1:v0")
    assert rejected.value.message.code is Code.ARTIFACT_NOT_FOUND


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file or directory"), PermissionError(13, "Permission denied")]
)
def test_a_file_that_is_missing_on_this_machine_is_not_a_missing_job(error: OSError) -> None:
    assert isinstance(job_artifacts._reason("acme/demo/job1:v0", error), Unavailable)


@pytest.mark.parametrize("status", [400, 403, 404, 500])
def test_a_file_that_its_bucket_refuses_comes_from_w_and_b(
    made: Made, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """As in W&B's own client, at an address for which the key is needed."""
    store(made.server, f"second{status}", IMAGE)
    get, asked = requests.get, list[tuple[str, Any]]()

    def refuse_first(url: str, **options: Any) -> requests.Response:
        asked.append((url, options.get("auth")))
        answer = get(url, **options)
        if len(asked) == 1:
            answer.status_code = status
        return answer

    monkeypatch.setattr(requests, "get", refuse_first)
    found = JobArtifacts(made.server.url, Secret(), timeout=30).find(f"acme/demo/second{status}:v0")
    assert found.description == IMAGE
    (first, nothing), (second, auth) = asked
    assert (nothing, auth) == (None, ("api", Secret().get()))
    assert "/_artifacts/" in first
    assert second.startswith(f"{made.server.url}/artifactsV2/")
