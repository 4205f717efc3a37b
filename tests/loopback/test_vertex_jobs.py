"""The client of Vertex AI's CustomJobs, against the local Vertex AI."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud.aiplatform_v1 import AcceleratorType, JobServiceClient, JobState

from local.standins.vertex.server import Limits, VertexServer
from tests.support import specs
from tests.support.memory import ENTITY, SETTINGS, Clock, image_spec
from vertex_launch.adapters import vertex_jobs
from vertex_launch.adapters.google_api import BACKOFF
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.codes import Code
from vertex_launch.errors import CodedError, ItemDeferred, ItemDoubtful, ItemRejected, OutcomeUnknown, Unavailable
from vertex_launch.job import labels
from vertex_launch.job.request import JobRequest
from vertex_launch.model import Item, Kind, RunId
from vertex_launch.settings.config import Region, Settings, Timeouts

PROJECT, REGION, OTHER = "demo-project", "us-central1", "us-east4"
PARENT = f"projects/{PROJECT}/locations/{REGION}"
OFTEN = BACKOFF.with_delay(initial=0.5, maximum=1.0)
REGIONS = tuple(Region(name=name, staging_bucket="gs://staging") for name in (REGION, OTHER))
SETTINGS_HERE = Settings(**SETTINGS | {"project": PROJECT, "regions": REGIONS})


pytestmark = pytest.mark.usefixtures("retry_clock")


@pytest.fixture
def server(clock: Clock) -> Iterator[VertexServer]:
    limits = Limits(submissions_per_minute=1000, denied_accounts={"denied@demo-project.iam.gserviceaccount.com"})
    server = VertexServer(clock=clock, regions=(REGION, OTHER), limits=limits)
    server.start()
    yield server
    server.stop()


def jobs_at(server: VertexServer, deployment: str = "test", **options: Any) -> VertexJobs:
    how: dict[str, Any] = {"project": PROJECT, "aiplatform_endpoint": f"http://{server.address}"}
    return VertexJobs(specs.with_settings(deployment=deployment, **how | options), backoff=OFTEN)


@pytest.fixture
def jobs(server: VertexServer) -> VertexJobs:
    return jobs_at(server)


def request(item: str = "Item1", deployment: str = "test", region: str = REGION, **spec: Any) -> JobRequest:
    settings = SETTINGS_HERE.model_copy(update={"deployment": deployment})
    asked = Item(item, "cpu", image_spec(**spec))
    asked.spec["resource_args"]["gcp-vertex"]["spec"]["location"] = region
    now = datetime(2026, 1, 2, tzinfo=UTC)
    return specs.built(asked, settings, now=now)


def raised(act: Callable[[], Any], kind: type[CodedError], code: Code) -> str:
    with pytest.raises(kind) as error:
        act()
    assert (type(error.value), error.value.message.code) == (kind, code)
    return error.value.message.text


# Create, list, get, cancel


def test_a_job_from_its_create_to_its_end(server: VertexServer, jobs: VertexJobs, clock: Clock) -> None:
    asked = request()
    name = jobs.create(asked, 5)
    assert server.jobs[name].labels[labels.DEPLOYMENT] == "test"
    (listed,) = jobs.active(REGION)
    assert (listed.name, listed.region, listed.state, listed.ended) == (name, REGION, "JOB_STATE_QUEUED", False)
    assert (listed.item, listed.queue, listed.attempt, listed.kind) == ("Item1", "cpu", 1, Kind.JOB)
    assert listed.run == asked.run == RunId(ENTITY, "demo", listed.run.id)
    assert listed.created == pytest.approx(clock.now, abs=1e-3)
    assert jobs.get(name) == listed
    jobs.cancel(name)
    (cancelling,) = jobs.active(REGION)
    assert cancelling.cancelling
    server.advance(name, JobState.JOB_STATE_CANCELLED)
    assert jobs.active(REGION) == []
    (ended,) = jobs.recent(REGION, clock.now - 1)
    assert (ended.name, ended.ended, ended.state) == (name, True, "JOB_STATE_CANCELLED")
    assert jobs.get(name) == ended
    assert server.calls["CreateCustomJob"] == 1


def test_active_are_all_states_but_the_ended_ones(server: VertexServer, jobs: VertexJobs) -> None:
    states = {state.name for state in JobState} - {"JOB_STATE_UNSPECIFIED"}
    for state in states:
        server.advance(jobs.create(request(state), 5), JobState[state])
    assert {job.state for job in jobs.active(REGION)} == states - set(labels.ENDED_STATES)
    assert {job.state for job in jobs.recent(REGION, 0)} == states


def test_recent_jobs_are_those_created_since(jobs: VertexJobs, clock: Clock) -> None:
    jobs.create(request("Old"), 5)
    clock.now += 100
    jobs.create(request("New"), 5)
    assert [job.item for job in jobs.recent(REGION, clock.now - 50)] == ["New"]
    assert {job.item for job in jobs.recent(REGION, clock.now - 150)} == {"Old", "New"}


def test_lists_have_pages(server: VertexServer, jobs: VertexJobs) -> None:
    names = {jobs.create(request(f"Item{number}"), 5) for number in range(101)}
    assert {job.name for job in jobs.active(REGION)} == names
    assert server.calls["ListCustomJobs"] == 2


def test_large_jobs_are_listed_in_small_pages(
    server: VertexServer, jobs: VertexJobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vertex_jobs, "LARGEST_PAGE", 40_000)
    names = set()
    for number in range(40):
        asked = request(f"Item{number}")
        asked.custom_job.job_spec.worker_pool_specs[0].container_spec.args = ["x" * 10_000]
        names.add(jobs.create(asked, 5))
    assert {job.name for job in jobs.active(REGION)} == names
    assert server.calls["ListCustomJobs"] == 1 + 8, "16 in the first page, then three in each"


@pytest.mark.parametrize("error", [exceptions.TooManyRequests("received trailing metadata size exceeds hard limit"), ValueError("Code in trailing metadata is not equal")])  # fmt: skip
def test_a_refusal_that_is_too_long_to_be_read_fails_the_item(
    jobs: VertexJobs, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise error

    monkeypatch.setattr(jobs._client(REGION), "create_custom_job", refuse)
    assert "too long" in raised(lambda: jobs.create(request(), 5), ItemRejected, Code.CREATE_INVALID)


def test_each_region_has_its_own_list(jobs: VertexJobs) -> None:
    here, there = jobs.create(request("Here"), 5), jobs.create(request("There", region=OTHER), 5)
    assert [job.name for job in jobs.active(REGION)] == [here]
    (far,) = jobs.active(OTHER)
    assert (far.name, far.region) == (there, OTHER)
    assert jobs.get(there) == far


def test_jobs_of_others_are_not_seen(server: VertexServer, jobs: VertexJobs) -> None:
    jobs_at(server, "test-2").create(request(deployment="test-2"), 5)
    stray = request().custom_job
    stray.labels = {"team": "vision"}
    forged = request("Forged").custom_job
    forged.labels[labels.ITEM] = labels.item_value(SETTINGS_HERE.base_url, ENTITY, "Another")
    client = JobServiceClient(
        transport=JobServiceClient.get_transport_class("grpc")(channel=grpc.insecure_channel(server.address))
    )
    others = [client.create_custom_job(parent=PARENT, custom_job=job).name for job in (stray, forged)]
    assert jobs.active(REGION) == jobs.recent(REGION, 0) == []
    assert [jobs.get(name) for name in others] == [None, None]
    client.transport.close()


def test_a_list_that_lags(server: VertexServer, jobs: VertexJobs, clock: Clock) -> None:
    server.limits.list_lag = 30
    name = jobs.create(request(), 5)
    assert jobs.active(REGION) == []
    assert jobs.get(name) is not None, "a get does not lag"
    clock.now += 30
    assert [job.name for job in jobs.active(REGION)] == [name]


def test_a_job_that_is_not_there(jobs: VertexJobs) -> None:
    assert jobs.get(f"{PARENT}/customJobs/12345") is None
    jobs.cancel(f"{PARENT}/customJobs/12345")


def test_cancelling_twice_or_too_late_is_not_an_error(server: VertexServer, jobs: VertexJobs) -> None:
    name = jobs.create(request(), 5)
    jobs.cancel(name)
    jobs.cancel(name)
    server.advance(name, JobState.JOB_STATE_SUCCEEDED)
    jobs.cancel(name)
    assert server.jobs[name].state == JobState.JOB_STATE_SUCCEEDED


# Errors of a create


def test_a_service_account_that_may_not_be_used(jobs: VertexJobs) -> None:
    account = "denied@demo-project.iam.gserviceaccount.com"
    asked = request()
    asked.custom_job.job_spec.service_account = account
    text = raised(lambda: jobs.create(asked, 5), ItemDoubtful, Code.CREATE_PERMISSION)
    assert f"act as service_account: {account}" in text
    assert "roles/iam.serviceAccountUser" in text


def test_a_project_in_which_jobs_may_not_be_created_or_listed(server: VertexServer) -> None:
    jobs = jobs_at(server, project="other-project")
    text = raised(lambda: jobs.create(request(), 5), ItemRejected, Code.CREATE_PERMISSION)
    assert text.count("aiplatform.customJobs.create") == 2, "in Vertex AI's words, and in the remedy"
    text = raised(lambda: jobs.active(REGION), Unavailable, Code.VERTEX_PERMISSION)
    assert "aiplatform.customJobs.list" in text


def test_what_vertex_finds_wrong_is_quoted_in_one_line(jobs: VertexJobs) -> None:
    asked = request()
    asked.custom_job.job_spec.worker_pool_specs[0].machine_spec.machine_type = ""
    text = raised(lambda: jobs.create(asked, 5), ItemRejected, Code.CREATE_INVALID)
    assert (
        ": List of found errors: 1.Field: job_spec.worker_pool_specs[0].machine_spec.machine_type; "
        "Message: The machine type is required. "
    ) in text


def test_an_accelerator_without_quota(server: VertexServer, jobs: VertexJobs) -> None:
    server.capacity.accelerators = {"NVIDIA_TESLA_T4": 0}
    asked = request()
    machine = asked.custom_job.job_spec.worker_pool_specs[0].machine_spec
    machine.accelerator_type, machine.accelerator_count = AcceleratorType.NVIDIA_TESLA_T4, 1
    text = raised(lambda: jobs.create(asked, 5), ItemDeferred, Code.QUOTA_CREATE)
    assert REGION in text
    assert "The following quota metrics exceed quota limits: aiplatform" in text


def test_a_job_that_is_too_large_for_a_request_fails_with_its_size(server: VertexServer, jobs: VertexJobs) -> None:
    """gRPC refuses it with the status of a quota; it would be tried again for ever."""
    asked = request()
    asked.custom_job.job_spec.worker_pool_specs[0].container_spec.args = ["x" * 1_000_000] * 9
    text = raised(lambda: jobs.create(asked, 5), ItemRejected, Code.SPEC_SIZE)
    assert str(asked.size) in text


def test_more_submissions_than_a_minute_has(server: VertexServer, jobs: VertexJobs, clock: Clock) -> None:
    server.limits.submissions_per_minute = 1
    jobs.create(request("One"), 5)
    raised(lambda: jobs.create(request("Two"), 5), ItemDeferred, Code.QUOTA_CREATE)
    clock.now += 61
    jobs.create(request("Two"), 5)


MEANINGS: list[tuple[str, type[CodedError], Code]] = [
    ("INVALID_ARGUMENT", ItemRejected, Code.CREATE_INVALID),
    ("FAILED_PRECONDITION", ItemRejected, Code.CREATE_INVALID),
    ("OUT_OF_RANGE", ItemRejected, Code.CREATE_INVALID),
    ("PERMISSION_DENIED", ItemRejected, Code.CREATE_PERMISSION),
    ("NOT_FOUND", ItemRejected, Code.CREATE_NOT_FOUND),
    ("UNIMPLEMENTED", ItemRejected, Code.CREATE_INVALID),
    ("RESOURCE_EXHAUSTED", ItemDeferred, Code.QUOTA_CREATE),
    ("UNAUTHENTICATED", ItemDeferred, Code.CREATE_CREDENTIALS),
    ("ABORTED", ItemDeferred, Code.CREATE_CONFLICT),
    ("ALREADY_EXISTS", ItemDeferred, Code.CREATE_CONFLICT),
    *(
        (code, OutcomeUnknown, Code.CREATE_OUTCOME_UNKNOWN)
        for code in ("CANCELLED", "UNKNOWN", "DEADLINE_EXCEEDED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
    ),
]


def test_every_status_has_a_meaning() -> None:
    assert {code for code, _, _ in MEANINGS} == {code.name for code in grpc.StatusCode} - {"OK"}


@pytest.mark.parametrize(("status", "kind", "code"), MEANINGS)
def test_what_a_status_means_for_an_item(
    server: VertexServer, jobs: VertexJobs, status: str, kind: type[CodedError], code: Code
) -> None:
    server.faults.fail("CreateCustomJob", status, message="In Vertex's words", times=None)
    assert "In Vertex's words." in raised(lambda: jobs.create(request(), 5), kind, code)
    assert server.calls["CreateCustomJob"] == 1, "a create is never repeated"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            "FAILED_PRECONDITION",
            "Service agents are being provisioned (https://cloud.google.com/x). Try again in a few minutes.",
        ),
        (
            "INVALID_ARGUMENT",
            "Vertex AI Service Agent service-1@gcp-sa-aiplatform-cc.iam.gserviceaccount.com does not exist",
        ),
        ("INVALID_ARGUMENT", "You do not have permission to act as service_account: x. (or it may not exist)."),
        ("PERMISSION_DENIED", "Permission 'iam.serviceAccounts.actAs' denied on service account x"),
    ],
)
def test_what_a_new_role_may_still_make_possible_is_doubtful(
    server: VertexServer, jobs: VertexJobs, status: str, words: str
) -> None:
    server.faults.fail("CreateCustomJob", status, message=words, times=None)
    text = raised(lambda: jobs.create(request(), 5), ItemDoubtful, Code.CREATE_PERMISSION)
    assert words.rstrip(".") in text
    assert "ten minutes" in text


def test_a_create_beyond_its_deadline_may_have_taken_effect(server: VertexServer, jobs: VertexJobs) -> None:
    server.faults.delay("CreateCustomJob", 0.1)
    raised(lambda: jobs.create(request(), 0.05), OutcomeUnknown, Code.CREATE_OUTCOME_UNKNOWN)
    with server.store.changed:
        server.store.changed.wait_for(lambda: server.jobs, timeout=5)
    assert [job.item for job in jobs.active(REGION)] == ["Item1"]


# Vertex AI is down


def test_an_address_without_a_server(server: VertexServer) -> None:
    """A create cannot be distinguished from one whose answer was lost, so its outcome counts as unknown."""
    server.stop()
    jobs, name = jobs_at(server), f"{PARENT}/customJobs/1"
    raised(lambda: jobs.create(request(), 1), OutcomeUnknown, Code.CREATE_OUTCOME_UNKNOWN)
    for act, place in (
        (lambda: jobs.active(REGION), PARENT),
        (lambda: jobs.recent(REGION, 0), PARENT),
        (lambda: jobs.get(name), name),
        (lambda: jobs.cancel(name), name),
    ):
        assert place in raised(act, Unavailable, Code.VERTEX_UNAVAILABLE)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "INTERNAL", "RESOURCE_EXHAUSTED"])
def test_what_changes_nothing_is_asked_again(server: VertexServer, jobs: VertexJobs, code: str) -> None:
    name = jobs.create(request(), 5)
    for operation in ("ListCustomJobs", "GetCustomJob", "CancelCustomJob"):
        server.faults.fail(operation, code, times=3)
    assert len(jobs.active(REGION)) == 1
    assert jobs.get(name) is not None
    jobs.cancel(name)
    assert server.jobs[name].state == JobState.JOB_STATE_CANCELLING


def test_errors_that_go_on_are_quoted(server: VertexServer, retry_clock: Clock) -> None:
    server.faults.fail("ListCustomJobs", "UNAVAILABLE", times=None, message="The service is currently unavailable")
    began = retry_clock.now
    text = raised(lambda: jobs_at(server).active(REGION), Unavailable, Code.VERTEX_UNAVAILABLE)
    assert text.endswith(f"{PARENT}: The service is currently unavailable.")
    assert server.calls["ListCustomJobs"] > 2
    assert retry_clock.now - began <= 20


# Endpoints and credentials


def test_the_host_is_the_regions_own_or_the_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With TLS and credentials; nothing is sent."""
    credentials = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "adc.json").write_text(json.dumps(credentials))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "adc.json"))
    for endpoint, host in (
        (None, "europe-west4-aiplatform.googleapis.com:443"),
        ("aiplatform.example.com", "aiplatform.example.com:443"),
        ("127.0.0.1:8443", "127.0.0.1:8443"),
    ):
        jobs = VertexJobs(specs.with_settings(aiplatform_endpoint=endpoint))
        client = jobs._client("europe-west4")
        assert client.transport._host == host
        client.transport.close()


def test_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    jobs = VertexJobs(specs.with_settings(timeouts=Timeouts(look=1)))
    assert "missing.json" in raised(lambda: jobs.active(REGION), Unavailable, Code.VERTEX_UNAVAILABLE)
