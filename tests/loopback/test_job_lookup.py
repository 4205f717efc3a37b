"""Passes over items whose job artifact is flawed, gone or out of reach: each fails or waits, and the good item behind it starts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from local.standins.wandb import WandbServer
from tests.local_cloud.test_local_wandb import Client
from tests.support.fakes import FakeKey
from tests.support.wandb_jobs import Made, passed, server, spec, store
from vertex_launch.adapters import job_artifacts
from vertex_launch.adapters.job_artifacts import DESCRIPTION, JobArtifacts
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected, Unavailable


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A W&B with an image job."""
    with server() as w_and_b:
        store(w_and_b, "image", {"source_type": "image", "source": {"image": "registry.local/train:7"}})
        client = Client(w_and_b, tmp_path_factory.mktemp("home"))
        yield Made(w_and_b, client, JobArtifacts(w_and_b.url, FakeKey(), timeout=20))


def good(made: Made) -> dict[str, Any]:
    return spec("image:v0", run_id="good")


def refused(made: Made, job: str, **changes: Any) -> str:
    """Return the message with which an item of that job fails, while the item behind it starts."""
    done = passed(made.jobs, made.server, spec("x", **changes) | {"job": job}, good(made))
    assert [one["item"] for one in done.report.submitted] == done.items[1:], done.report.body()
    message = done.message()
    assert job in message
    return message


def test_a_description_with_a_flaw_fails_its_item(made: Made) -> None:
    store(made.server, "flaw", {"source_type": "image", "source": {"image": "\ud800"}})
    assert Code.ARTIFACT_INVALID in refused(made, "acme/demo/flaw:v0")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty", b""),
        ("half", b'{"source_type": "ima'),
        ("bytes", b"\xff\xfe\0"),
        ("list", b"[]"),
        ("null", b"null"),
        ("deep", b"[" * 100_000),
        ("large", b'{"a": "' + b"x" * 2**21 + b'"}'),
    ],
)
def test_a_description_that_is_not_an_object_fails_its_item(made: Made, name: str, text: bytes) -> None:
    store(made.server, f"none-{name}", text)
    assert f"[{Code.ARTIFACT_INVALID}]" in refused(made, f"acme/demo/none-{name}:latest")


def test_what_is_not_there_fails_its_item(made: Made) -> None:
    artifacts = made.server.store.artifacts
    for name in ("gone", "version-gone"):
        store(made.server, name, {"source_type": "image", "source": {"image": "i"}})
    artifacts.delete(made.named("gone:v0"), with_aliases=True)
    store(made.server, "version-gone", {"source_type": "image", "source": {"image": "i:2"}})
    artifacts.delete(made.named("version-gone:v0"))
    made.server.store.create_artifact("acme", "demo", "job", "no-description", {"a": b"1"})
    made.server.store.create_artifact("acme", "demo", "dataset", "data", {"a": b"1"})
    store(made.server, "secret", {"source_type": "image", "source": {"image": "i"}}, entity="other")
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
        ("nobody/demo/image:v0", "not found"),
        ("other/demo/secret:v0", "access"),
        ("acme/demo/image :v0", "not found"),
        ("acme/demo/g\u00fc\u00dfe \u6f22:v0", "not found"),
        ("acme/demo/%2e%2e:v0", "not found"),
        ('acme/demo/a"b{}$\\:v0', "not found"),
        (f"acme/demo/{'x' * 5000}:v0", "not found"),
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
    assert "is not the name of a job. Write entity/project/name:version" in message
    assert made.server.store.asked() == before


def test_a_job_is_looked_up_where_its_run_is(made: Made) -> None:
    for job in ("image:v0", "demo/image:v0", "acme/demo/image:v0"):
        found = passed(made.jobs, made.server, spec("x", project="demo") | {"job": job}).job()
        assert found.job_spec.worker_pool_specs[0].container_spec.image_uri == "registry.local/train:7"


def test_a_renamed_job_is_found_by_its_new_name_alone(made: Made) -> None:
    collections = made.server.store.artifacts.collections
    store(made.server, "old-name", {"source_type": "image", "source": {"image": "i"}})
    collection = collections.pop(("acme", "demo", "old-name"))
    collection.name = "new-name"
    collections["acme", "demo", "new-name"] = collection
    assert "not found" in refused(made, "acme/demo/old-name:latest")
    assert passed(made.jobs, made.server, spec("new-name:latest")).report.submitted


def test_an_alias_that_moves_is_followed_and_its_versions_are_asked_for_once(made: Made) -> None:
    jobs = JobArtifacts(made.server.url, FakeKey(), timeout=20)
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


# ---- a W&B in trouble


@pytest.fixture
def troubled() -> Iterator[WandbServer]:
    """A W&B with 21 jobs, with which the SDK has spoken, so that its start takes no time of a pass."""
    with server() as w_and_b:
        for number in range(21):
            store(w_and_b, f"job{number}", {"source_type": "image", "source": {"image": f"i:{number}"}})
        JobArtifacts(w_and_b.url, FakeKey(), timeout=20).find("acme/demo/job0:v0")
        yield w_and_b


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
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=1)
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


def test_one_job_that_cannot_be_read_does_not_keep_others_from_starting(troubled: WandbServer) -> None:
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=50)  # a tenth of it after the first trouble
    troubled.faults.fail("downloadArtifactFile", 503, times=1)
    done = passed(jobs, troubled, *TWENTY, max_jobs=30)
    assert (len(done.report.submitted), len(done.report.deferred)) == (19, 1)


def test_a_pass_after_the_trouble_waits_its_full_timeout_again(troubled: WandbServer) -> None:
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=5)
    troubled.faults.fail("downloadArtifactFile", 503, times=1)
    with pytest.raises(Unavailable, match=r"cannot download wandb-job\.json of job acme/demo/job1:v0: status 503"):
        jobs.find("acme/demo/job1:v0")
    jobs.forget()
    troubled.faults.delay("downloadArtifactFile", 1, times=1)  # longer than a tenth of its timeout
    assert jobs.find("acme/demo/job1:v0").name == "acme/demo/job1:v0"


def test_the_address_of_a_description_is_in_no_message(troubled: WandbServer) -> None:
    """Whoever has it can read the file: it is signed."""
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=5)
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
