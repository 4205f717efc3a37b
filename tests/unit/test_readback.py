"""From a CustomJob back to its item, and on to its next attempt."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import CustomJob, JobState, Scheduling
from hypothesis import given

from tests.support.specs import ENTITY, FULL, PACKAGE, SETTINGS, built, dollars, item, pool, run_spec
from vertex_launch.job import labels
from vertex_launch.job.readback import managed, request_of
from vertex_launch.model import SCHEDULER_URI, Kind, ManagedJob, RunId

NOW = datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)


def listed(spec: Any = FULL, change: Callable[[CustomJob], None] = lambda job: None) -> CustomJob:
    """Return the job as Vertex AI lists it."""
    job = CustomJob(built(spec).custom_job)
    job.name = "projects/1/locations/us-central1/customJobs/7"
    job.state = JobState.JOB_STATE_RUNNING
    job.create_time = NOW  # type: ignore[assignment]
    change(job)
    return job


def read(job: CustomJob) -> ManagedJob:
    found = managed(job, deployment="default", region="us-central1")
    assert found is not None
    return found


def test_a_job_shows_which_item_it_serves() -> None:
    job = read(listed(change=label("vertex_launch_attempt", "2")))
    assert job.name == "projects/1/locations/us-central1/customJobs/7"
    assert (job.region, job.item, job.queue, job.attempt) == ("us-central1", "SXRlbTox", "gpu", 2)
    assert (job.run, job.kind) == (RunId("acme", "demo", "abcd1234"), Kind.JOB)
    assert (job.created, job.error) == (NOW.timestamp(), "")
    package = read(listed(run_spec(PACKAGE)))
    assert package.item == "SXRlbTox"


@given(dollars.filter(bool), dollars.filter(bool))
def test_identity_survives_escaping(id: str, queue: str) -> None:  # noqa: A002
    command = {"entry_point": ["wandb", "scheduler", "s1"]}
    one = item(run_spec(uri=SCHEDULER_URI, overrides=command), id=id, queue=queue)
    request = built(one)
    job = read(request.custom_job)
    assert (job.item, job.queue, job.run, job.kind) == (id, queue, request.run, Kind.SCHEDULER)
    assert (job.created, job.state) == (0, "JOB_STATE_UNSPECIFIED")


@pytest.mark.parametrize("state", [*(member.value for member in JobState), 99])
def test_every_state_of_a_job(state: int) -> None:
    """Also one that this version does not know: it has not ended."""
    job = read(listed(change=lambda one: setattr(CustomJob.pb(one), "state", state)))
    assert job.state == ("JOB_STATE_99" if state == 99 else JobState(state).name)
    assert (job.ended, job.cancelling) == (state in (4, 5, 7, 9, 11), state == 6)


def test_an_error_is_passed_on_in_vertexs_words() -> None:
    def fail(job: CustomJob) -> None:
        CustomJob.pb(job).error.message = "The replica workerpool0-0 exited with a non-zero status of 1."

    job = read(listed(change=fail))
    assert job.error == "The replica workerpool0-0 exited with a non-zero status of 1."


def without(name: str) -> Callable[[CustomJob], None]:
    def change(job: CustomJob) -> None:
        task = job.job_spec.worker_pool_specs[0].container_spec
        task.env = [one for one in task.env if one.name != name]

    return change


def label(key: str, value: str) -> Callable[[CustomJob], None]:
    return lambda job: job.labels.update({key: value})


def clear(job: CustomJob) -> None:
    del job.job_spec.worker_pool_specs[:]


@pytest.mark.parametrize(
    "change",
    [
        label("vertex_launch", "other"),
        lambda job: job.labels.clear(),
        label("vertex_launch_item", labels.item_value(SETTINGS.base_url, ENTITY, "SXRLBTOX")),
        without("WANDB_LAUNCH_TRACE_ID"),
        without("WANDB_LAUNCH_QUEUE_ENTITY"),
        without("WANDB_BASE_URL"),
        clear,
    ],
)
def test_a_job_whose_labels_and_environment_disagree_is_not_ours(change: Callable[[CustomJob], None]) -> None:
    assert managed(listed(change=change), deployment="default", region="us-central1") is None


def test_labels_that_were_changed_by_hand_do_no_harm() -> None:
    def change(job: CustomJob) -> None:
        job.labels.update({"vertex_launch_attempt": "x", "vertex_launch_kind": "y"})

    job = read(listed(change=change))
    assert (job.attempt, job.kind) == (1, Kind.JOB)


def test_a_deployments_name_is_compared_as_its_label() -> None:
    blue = SETTINGS.model_copy(update={"deployment": "Blue Team"})
    job = built(FULL, blue).custom_job
    assert managed(job, deployment="Blue Team", region="r")
    assert managed(job, deployment="blue team", region="r") is None


def filled_in(job: CustomJob) -> None:
    """Add what Vertex AI adds to a job."""
    for key in ("goog-vertex-ai-product", "aiplatform.googleapis.com/workload", "goog/terraform"):
        job.labels[key] = "true"
    job.web_access_uris = {"workerpool0-0": "https://shell.example"}
    CustomJob.pb(job).satisfies_pzs = True
    plain = CustomJob.pb(job).job_spec
    if not plain.scheduling.timeout.seconds:
        plain.scheduling.timeout.seconds = 604800
    plain.scheduling.strategy = plain.scheduling.strategy or Scheduling.Strategy.STANDARD
    for one in plain.worker_pool_specs:
        one.disk_spec.boot_disk_type = one.disk_spec.boot_disk_type or "pd-ssd"
        one.disk_spec.boot_disk_size_gb = one.disk_spec.boot_disk_size_gb or 100


DISK = {"disk_spec": {"boot_disk_type": "pd-standard", "boot_disk_size_gb": 500}}


@pytest.mark.parametrize(
    "spec",
    [run_spec(), FULL, run_spec(run={"scheduling_strategy": "SPOT", "timeout": 60}), run_spec({**pool(), **DISK})],
)
def test_the_next_attempt_asks_for_what_the_first_one_asked_for(spec: Any) -> None:
    asked = built(spec).custom_job
    again = request_of(listed(spec, filled_in), deployment="default", region="us-central1")
    assert again is not None
    assert again.custom_job == asked


def test_a_label_of_an_item_stays() -> None:
    spec = run_spec(spec={"labels": {"google": "x", "team": "vision", "größe": "l"}})
    again = request_of(listed(spec, filled_in), deployment="default", region="us-central1")
    assert again is not None
    assert {"google", "team", "größe"} <= set(again.custom_job.labels)
