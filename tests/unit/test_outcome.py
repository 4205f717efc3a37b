"""What a job's state and error mean: every JobState, and every error text whose wording is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
from google.cloud.aiplatform_v1.types import JobState
from hypothesis import given
from hypothesis import strategies as st

from vertex_launch.codes import Code
from vertex_launch.job import outcome
from vertex_launch.job.outcome import End
from vertex_launch.model import Kind, ManagedJob, RunId

NAME = "projects/415104041262/locations/us-central1/customJobs/7"

GOOD, BAD, CANCELLED = End
ENDS = {
    JobState.JOB_STATE_SUCCEEDED: GOOD,
    JobState.JOB_STATE_FAILED: BAD,
    JobState.JOB_STATE_CANCELLED: CANCELLED,
    JobState.JOB_STATE_EXPIRED: BAD,
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED: BAD,
}


def job(state: JobState | int = JobState.JOB_STATE_FAILED, error: str = "") -> ManagedJob:
    return ManagedJob(
        name=NAME,
        region="us-central1",
        state=outcome.name(state),
        ended=outcome.is_ended(state),
        cancelling=outcome.name(state) == outcome.CANCELLING,
        item="i",
        run=RunId("acme", "demo", "r"),
        queue="cpu",
        attempt=1,
        kind=Kind.JOB,
        created=1.0,
        error=error,
    )


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_has_an_outcome_once_it_has_ended(state: JobState) -> None:
    found = outcome.of(job(state))
    assert (found.end if found else None) == ENDS.get(state)
    assert outcome.is_ended(state) == (state in ENDS)


def test_a_state_that_this_version_does_not_know_is_not_an_end() -> None:
    assert outcome.name(99) == "JOB_STATE_99"
    assert not outcome.is_ended(99)
    assert outcome.of(job(99)) is None
    assert "JOB_STATE_99" not in outcome.KNOWN


EXITED = "The replica workerpool0-0 exited with a non-zero status of"
AGAIN, ELSEWHERE = ("again",), ("again", "elsewhere")
ERRORS: list[tuple[str, Code, tuple[str, ...]]] = [
    ("Resources are insufficient in region: us-central1. Try a different region or use a different accelerator.", Code.JOB_STOCKOUT, ELSEWHERE),
    ("STOCKOUT", Code.JOB_PREEMPTED, ELSEWHERE),
    ("The replica workerpool0-0 was preempted and could not be started again: STOCKOUT.", Code.JOB_PREEMPTED, ELSEWHERE),
    (f"{EXITED} 1. Termination reason: STOCKOUT.", Code.JOB_PREEMPTED, ELSEWHERE),
    (f"{EXITED} 143. Termination reason: Preempted.", Code.JOB_PREEMPTED, ELSEWHERE),
    ("Internal error occurred for the current attempt", Code.JOB_INTERNAL, AGAIN),
    ("INTERNAL ERROR. Please retry.", Code.JOB_INTERNAL, AGAIN),
    ("code 13", Code.JOB_INTERNAL, AGAIN),
    (f"{EXITED} 1. Termination reason: Error.", Code.JOB_EXIT, ()),
    (f"{EXITED} 3.", Code.JOB_EXIT, ()),
    ("The replica workerpool1-3 exited with a non-zero status of 2. Termination reason: Error.", Code.JOB_EXIT, ()),
    ("The replica workerpool0-0 ran out of memory and exited with a non-zero status of 137.", Code.JOB_MEMORY, ()),
    ("The replica workerpool0-0, workerpool1-0 ran out of memory and exited with a non-zero status of 137.", Code.JOB_MEMORY, ()),
    ("The replica master 0 ran out-of-memory and exited with a non-zero status of 9(SIGKILL)", Code.JOB_MEMORY, ()),
    ("Replicas low on memory: workerpool0. Specify a machine with larger memory and try again.", Code.JOB_MEMORY, ()),
    ("Replicas low on memory: workerpool0, workerpool1. Specify a machine with larger memory and try again.", Code.JOB_MEMORY, ()),
    (f"{EXITED} 137. Termination reason: OOMKilled.", Code.JOB_MEMORY, ()),
    ("The node was low on resource: memory. Container training was using 14Gi.", Code.JOB_MEMORY, ()),
    (
        "Replicas low on disk: workerpool0. Specify a larger bootDiskSizeGb "
        "https://cloud.google.com/vertex-ai/docs/reference/rest/v1/DiskSpec and try again.",
        Code.JOB_DISK,
        (),
    ),
    ("The node was low on resource: ephemeral-storage. Container training was using 96Gi.", Code.JOB_DISK, ()),
    (
        f"{EXITED} 128. Termination reason: StartError. \n Termination log message: failed to create containerd task: failed to "
        'create shim task: OCI runtime create failed: exec: "trainer.task": executable file not found in $PATH: unknown',
        Code.JOB_START,
        (),
    ),
    (f'{EXITED} 127. Termination reason: ContainerCannotRun. \nexec: "/app/run.sh": permission denied', Code.JOB_START, ()),
    (f"{EXITED} 128. Termination reason: StartError. \n exec /usr/bin/python: exec format error", Code.JOB_START, ()),
    (f"{EXITED} 128. Termination reason: StartError.", Code.JOB_START, ()),
    (
        f"{EXITED} 143. To find out more about why your job exited please check the logs: "
        "https://console.cloud.google.com/logs/viewer?project=1&resource=ml_job%2Fjob_id%2F2",
        Code.JOB_EXIT,
        (),
    ),
    (
        "Vertex AI Service Agent service-1@gcp-sa-aiplatform-cc.iam.gserviceaccount.com does not have permission to access "
        "Artifact Registry repository projects/p/locations/europe-west4/repositories/r",
        Code.JOB_IMAGE,
        (),
    ),
    ("toomanyrequests: You have reached your pull rate limit.", Code.JOB_IMAGE, ()),
    (
        "UNAVAILABLE, errorSource: COMPUTE_ENGINE, Error Message: The zone 'projects/p/zones/us-central1-f' does not have "
        "enough resources available to fulfill the request. (state:STOCKOUT, sub-state:STOCKOUT, resource type:compute)",
        Code.JOB_STOCKOUT,
        ELSEWHERE,
    ),
    ("Insufficient resources in zone us-east1-b", Code.JOB_STOCKOUT, ELSEWHERE),
    ("ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS", Code.JOB_STOCKOUT, ELSEWHERE),
    (
        "400 FAILED_PRECONDITION: Service agents are being provisioned "
        "(https://cloud.google.com/vertex-ai/docs/general/access-control#service-agents). Service agents are needed to read "
        "the Cloud Storage file provided. So please try again in a few minutes.",
        Code.JOB_SERVICE_AGENTS,
        AGAIN,
    ),
    ("Quota exceeded for quota metric 'Custom model training A100 GPUs'", Code.JOB_QUOTA, ()),
    ("service-1@p.iam.gserviceaccount.com does not have storage.objects.get access to the object.", Code.JOB_PERMISSION, ()),
    # What only sounds like one of them is shown as it is.
    ("The dataset of images named pull-request was replaced. Please read the release notes, which were not found.", Code.JOB_FAILED, ()),
    ("Your quota dashboard has moved.", Code.JOB_FAILED, ()),
    ("You do not have permission to act as service_account: a@p.iam.gserviceaccount.com. (or it may not exist).", Code.JOB_ACT_AS, ()),
    ("Permission 'storage.objects.get' denied on resource 'b'", Code.JOB_PERMISSION, ()),
    ('Failed to pull image "us-docker.pkg.dev/p/r/i:1": not found', Code.JOB_IMAGE, ()),
    ('The image "us-docker.pkg.dev/p/r/i:1" does not exist, or the service agent has no permission to pull it.', Code.JOB_IMAGE, ()),
    ("Error: manifest for us-docker.pkg.dev/p/r/i:1 is unknown", Code.JOB_IMAGE, ()),
    ("Image us-docker.pkg.dev/p/train/stockout-forecast:1 not found.", Code.JOB_IMAGE, ()),
    ("ImagePullBackOff: Back-off pulling image", Code.JOB_IMAGE, ()),
    ("The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_a100", Code.JOB_QUOTA, ()),
    # A failed program's own words mean nothing.
    (f"{EXITED} 1. Termination reason: Error.\nTraceback (most recent call last):\nKeyError: 'STOCKOUT'", Code.JOB_EXIT, ()),
    (f"{EXITED} 1. Termination reason: Error. \nRuntimeError: Resources are insufficient in region: x", Code.JOB_EXIT, ()),
    (f"{EXITED} 1. Termination reason: Error. \nInternal error occurred for the current attempt", Code.JOB_EXIT, ()),
    (f"{EXITED} 1. Termination reason: Error. \nThe replica workerpool0-0 ran out of memory", Code.JOB_EXIT, ()),
    ("Something that has never been seen.", Code.JOB_FAILED, ()),
    ("", Code.JOB_FAILED, ()),
]  # fmt: skip


def failed(error: str) -> outcome.Outcome:
    found = outcome.of(job(error=error))
    assert found is not None
    return found


@pytest.mark.parametrize(("error", "code", "what"), ERRORS)
def test_what_vertex_ai_says_about_a_failed_job(error: str, code: Code, what: tuple[str, ...]) -> None:
    found = failed(error)
    assert found.code is code
    assert (found.again, found.try_other_region) == ("again" in what, "elsewhere" in what)
    assert bool(found.meaning) == (code is not Code.JOB_FAILED)


def test_known_exit_statuses_have_meanings_of_their_own() -> None:
    statuses = (1, 6, 9, 11, 126, 127, 129, 130, 131, 132, 135, 136, 141, 143)
    found = {failed(f"{EXITED} {status}. Termination reason: Error.").meaning for status in statuses}
    assert len(found) == len(statuses)
    for custom, other in ((134, 6), (137, 9), (139, 11)):  # a custom container adds 128
        assert failed(f"{EXITED} {custom}.").meaning == failed(f"{EXITED} {other}.").meaning


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ('exec: "train": executable file not found in $PATH', "entry_point"),
        ("fork/exec /train.sh: permission denied", "chmod"),
        ("exec /usr/bin/python: exec format error", "--platform"),
        ("something else", "entry_point"),
    ],
)
def test_why_a_container_did_not_start(words: str, remedy: str) -> None:
    found = failed(f"{EXITED} 128. Termination reason: StartError. \n Termination log message: {words}")
    assert remedy in found.meaning
    assert not found.began


@pytest.mark.parametrize(("status", "again"), [(143, True), (137, False), (1, False)])
def test_a_spot_job_that_was_asked_to_end_was_preempted(status: int, again: bool) -> None:
    spot = replace(job(error=f"{EXITED} {status}. Termination reason: Error."), strategy="SPOT")
    found = outcome.of(spot)
    assert found
    assert (found.again, found.code is Code.JOB_PREEMPTED) == (again, again)
    plain = outcome.of(replace(spot, strategy="STANDARD"))
    assert plain
    assert not plain.again


@pytest.mark.parametrize(
    ("error", "code"),
    [
        ("", Code.JOB_CANCELLED),
        ("CANCELED", Code.JOB_CANCELLED),
        ("The job was cancelled by the user.", Code.JOB_CANCELLED),
        ("The job exceeded its timeout of 3600 s.", Code.JOB_EXPIRED),
        ("Job timed out.", Code.JOB_EXPIRED),
        ("DEADLINE_EXCEEDED", Code.JOB_EXPIRED),
        ("code 4: the job exceeded the maximum runtime", Code.JOB_EXPIRED),
    ],
)
def test_a_job_that_vertex_ai_cancels_at_its_time_limit_has_expired(error: str, code: Code) -> None:
    found = outcome.of(job(JobState.JOB_STATE_CANCELLED, error))
    assert found
    assert (found.code, found.again) == (code, False)


@pytest.mark.parametrize("started", [0.0, 5.0])
def test_a_program_whose_image_cannot_be_pulled_has_not_begun(started: float) -> None:
    found = outcome.of(replace(job(error="ImagePullBackOff: Back-off pulling image"), started=started))
    assert found
    assert found.began is bool(started), "another worker pool may have begun"


def test_the_account_that_pulls_images_is_named_by_the_projects_number() -> None:
    found = failed("failed to pull")
    assert "service-415104041262@gcp-sa-aiplatform" in found.meaning


@given(st.text())
def test_any_text_has_an_outcome(error: str) -> None:
    failed(error)


@given(st.text())
def test_what_a_program_says_never_makes_another_attempt(words: str) -> None:
    found = failed(f"{EXITED} 1. Termination reason: Error. {words}")
    assert not found.again
