"""What a job's state and error mean: every JobState, and every error text whose wording is known."""

from __future__ import annotations

import pytest
from google.cloud.aiplatform_v1.types import JobState
from hypothesis import given
from hypothesis import strategies as st

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
        cancelling=outcome.is_cancelling(state),
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


def test_a_state_that_this_version_does_not_know_is_no_end() -> None:
    assert outcome.name(99) == "JOB_STATE_99"
    assert not outcome.is_ended(99)
    assert outcome.of(job(99)) is None
    assert "JOB_STATE_99" not in outcome.KNOWN


EXITED = "The replica workerpool0-0 exited with a non-zero status of"
ERRORS = [
    # text, again, elsewhere, a word of the meaning
    ("Resources are insufficient in region: us-central1. Try a different region or use a different accelerator.", True, True, "machine"),
    ("STOCKOUT", True, True, "taken away"),
    ("The replica workerpool0-0 was preempted and could not be started again: STOCKOUT.", True, True, "taken away"),
    (f"{EXITED} 1. Termination reason: STOCKOUT.", True, True, "taken away"),
    (f"{EXITED} 143. Termination reason: Preempted.", True, True, "taken away"),
    ("Internal error occurred for the current attempt", True, False, "Vertex AI itself"),
    ("INTERNAL ERROR. Please retry.", True, False, "Vertex AI itself"),
    (f"{EXITED} 1. Termination reason: Error.", False, False, "its own log"),
    (f"{EXITED} 3.", False, False, "its own log"),
    (f"{EXITED} 127. Termination reason: ContainerCannotRun.", False, False, "entry_point"),
    (f"{EXITED} 137. Termination reason: Error.", False, False, "memory"),
    (f"{EXITED} 139. Termination reason: Error.", False, False, "segmentation"),
    ("The replica workerpool1-3 exited with a non-zero status of 2. Termination reason: Error.", False, False, "its own log"),
    ("The replica workerpool0-0 ran out of memory and exited with a non-zero status of 137.", False, False, "machine_type"),
    ("The replica workerpool0-0, workerpool1-0 ran out of memory and exited with a non-zero status of 137.", False, False, "machine_type"),
    ("You do not have permission to act as service_account: a@p.iam.gserviceaccount.com. (or it may not exist).", False, False, "iam.serviceAccountUser"),
    ("Permission 'storage.objects.get' denied on resource 'b'", False, False, "runs as"),
    ('Failed to pull image "us-docker.pkg.dev/p/r/i:1": not found', False, False, "service-415104041262@gcp-sa-aiplatform"),
    ('The image "us-docker.pkg.dev/p/r/i:1" does not exist, or the service agent has no permission to pull it.', False, False, "artifactregistry.reader"),
    ("Error: manifest for us-docker.pkg.dev/p/r/i:1 is unknown", False, False, "artifactregistry.reader"),
    ("The following quota metrics exceed quota limits: aiplatform.googleapis.com/custom_model_training_a100", False, False, "higher quota"),
    ("Image us-docker.pkg.dev/p/train/stockout-forecast:1 not found.", False, False, "artifactregistry.reader"),
    ("ImagePullBackOff: Back-off pulling image", False, False, "artifactregistry.reader"),
    ("code 13", True, False, "Vertex AI itself"),
    # A failed program's own words mean nothing.
    (f"{EXITED} 1. Termination reason: Error.\nTraceback (most recent call last):\nKeyError: 'STOCKOUT'", False, False, "its own log"),
    (f"{EXITED} 1. Termination reason: Error. \nRuntimeError: Resources are insufficient in region: x", False, False, "its own log"),
    (f"{EXITED} 1. Termination reason: Error. \nInternal error occurred for the current attempt", False, False, "its own log"),
    (f"{EXITED} 1. Termination reason: Error. \nThe replica workerpool0-0 ran out of memory", False, False, "its own log"),
    ("Something that nobody has seen yet.", False, False, ""),
    ("", False, False, ""),
]  # fmt: skip


@pytest.mark.parametrize(("error", "again", "elsewhere", "word"), ERRORS)
def test_what_vertex_ai_says_about_a_failed_job(error: str, again: bool, elsewhere: bool, word: str) -> None:
    found = outcome.of(job(error=error))
    assert found is not None
    assert (found.again, found.elsewhere) == (again, elsewhere)
    assert word in found.meaning
    assert bool(found.meaning) == bool(word)


@given(st.text())
def test_any_text_has_an_outcome(error: str) -> None:
    assert outcome.of(job(error=error)) is not None


@given(st.text())
def test_what_a_program_says_never_makes_another_attempt(words: str) -> None:
    found = outcome.of(job(error=f"{EXITED} 1. Termination reason: Error. {words}"))
    assert found is not None
    assert not found.again
