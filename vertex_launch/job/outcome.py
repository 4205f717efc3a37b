"""What a job's state and error mean: whether and how it has ended, and the remedy. Pure, for every JobState.

States are compared as numbers of real enum members, and by name once read. ``str(JobState.X)`` is the number from Python
3.11 on, and a state that Google adds later is a number without a member. A job in such a state has not ended and keeps its
slot. Vertex AI describes a failure in free text; ``RULES`` has every assumption about its wording.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from google.cloud.aiplatform_v1.types import JobState

from vertex_launch.codes import Code
from vertex_launch.job import labels
from vertex_launch.model import JobName, ManagedJob

_ENDED = frozenset(JobState[name].value for name in labels.ENDED_STATES)


def is_ended(state: int) -> bool:
    """Return whether a job in this state has ended."""
    return state in _ENDED


def name(state: int) -> str:
    """Return the name of a state, such as ``JOB_STATE_RUNNING``; ``JOB_STATE_<number>`` if this version does not know it."""
    try:
        return str(JobState(state).name)
    except ValueError:
        return f"JOB_STATE_{int(state)}"


QUEUED = JobState.JOB_STATE_QUEUED.name
PENDING = JobState.JOB_STATE_PENDING.name
RUNNING = JobState.JOB_STATE_RUNNING.name
CANCELLING = JobState.JOB_STATE_CANCELLING.name
CANCELLED = JobState.JOB_STATE_CANCELLED.name
FAILED = JobState.JOB_STATE_FAILED.name
KNOWN = frozenset(member.name for member in JobState if member is not JobState.JOB_STATE_UNSPECIFIED)


class End(StrEnum):
    """How a job ended."""

    GOOD = "succeeded"
    BAD = "failed"
    CANCELLED = "was cancelled"


@dataclass(frozen=True)
class Outcome:
    """How a job ended, and what it means.

    ``verb`` is the word for it ("expired") and ``code`` is where the documentation explains it. ``meaning`` names the cause
    and the remedy if both are known. With ``again`` another attempt may succeed, with ``try_other_region`` rather in
    another region.
    """

    end: End
    verb: str
    code: Code
    meaning: str = ""
    again: bool = False
    try_other_region: bool = False


_EXIT_STATUSES = {
    126: "The command could not be executed. Check that the file is executable and built for this machine type.",
    127: "The command was not found in the image. Check entry_point and args.",
    130: "The program was interrupted, as W&B's client does when its run is stopped.",
    134: "The program aborted.",
    137: "The program was killed (SIGKILL), most likely because it ran out of memory.",
    139: "The program crashed (segmentation fault).",
    143: "The program was asked to end (SIGTERM).",
}


_EXITED = r"exited with a non-zero status of (?P<status>\d{1,9})"
_REASON = r"\.? Termination reason: [^.\n]*"
_WITHOUT_THE_PROGRAMS_WORDS = re.compile(rf".*?{_EXITED}(?:{_REASON})?", re.S)
_PREEMPTED = "Its machine was preempted, and Google Cloud had no replacement."
_ELSEWHERE = {"again": True, "try_other_region": True}


def _rule(pattern: str, code: Code, meaning: str, **how: bool) -> tuple[re.Pattern[str], Outcome]:
    return re.compile(pattern, re.I | re.S), Outcome(End.BAD, "failed", code, meaning, **how)


# The word STOCKOUT is all that is known about how Vertex AI describes a preempted job.
RULES = (
    _rule(
        "ran out of memory",
        Code.JOB_MEMORY,
        "The program needed more memory than its machine has. Choose a machine_type with more, or a smaller batch.",
    ),
    _rule(f"{_EXITED}{_REASON}(?:STOCKOUT|preempt)", Code.JOB_PREEMPTED, _PREEMPTED, **_ELSEWHERE),
    _rule(_EXITED, Code.JOB_EXIT, "The program itself failed. See its log."),
    _rule(
        r"\b(?:image|pull\w*|manifest)\b.*\b(?:not found|not exist|unknown|backoff|denied|permission"
        r"|unauthori[sz]ed|forbidden|failed)"
        r"|failed to pull|ImagePull|downloadArtifacts",
        Code.JOB_IMAGE,
        "Check the image's name and tag. Grant roles/artifactregistry.reader on its repository to Vertex AI's service agent "
        "service-PROJECT_NUMBER@gcp-sa-aiplatform.iam.gserviceaccount.com, which pulls the image.",
    ),
    _rule(
        r"Resources are insufficient|RESOURCE_POOL_EXHAUSTED|not have enough resources",
        Code.JOB_STOCKOUT,
        "Google Cloud had no such machine available there. Try another region, machine_type or accelerator.",
        **_ELSEWHERE,
    ),
    _rule(r"STOCKOUT|\bpreempt", Code.JOB_PREEMPTED, _PREEMPTED, **_ELSEWHERE),
    _rule(
        r"\binternal (?:server )?error\b|\bcode 1[34]\b",
        Code.JOB_INTERNAL,
        "Vertex AI reported an internal error. The job itself is not at fault.",
        again=True,
    ),
    _rule(
        r"permission to act as|\bactAs\b",
        Code.JOB_ACT_AS,
        "Grant the dispatching function's service account roles/iam.serviceAccountUser on that account, or correct "
        "service_account in the run spec or the queue configuration.",
    ),
    _rule(
        "quota", Code.JOB_QUOTA, "Request a higher quota for this project and region, or ask for less in the run spec."
    ),
    _rule(
        r"permission\b.*\bdenied|\bforbidden\b|PERMISSION_DENIED",
        Code.JOB_PERMISSION,
        "Grant that permission to the account that the job runs as (service_account in the run spec).",
    ),
)
"""What an error text means: the first rule whose pattern it contains counts."""

_OTHER_ENDS = {
    JobState.JOB_STATE_SUCCEEDED.name: Outcome(End.GOOD, "succeeded", Code.RUN_NEVER_BEGAN),
    CANCELLED: Outcome(End.CANCELLED, "was cancelled", Code.JOB_CANCELLED),
    JobState.JOB_STATE_EXPIRED.name: Outcome(
        End.BAD, "expired", Code.JOB_EXPIRED, "It took longer than its timeout or max_wait_duration allows."
    ),
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED.name: Outcome(
        End.BAD, "succeeded only in part", Code.JOB_PARTIAL, "Some of its work is missing. See its log."
    ),
}
"""A job that succeeded has a code for the one case that is reported: its run never began."""


def of(job: ManagedJob) -> Outcome | None:
    """Return the outcome of a job; None while it has not ended, or if this version does not know its state."""
    if job.state != FAILED:
        return _OTHER_ENDS.get(job.state)
    # Text that a failed program wrote can follow "Termination reason: Error." and can say anything.
    own = _WITHOUT_THE_PROGRAMS_WORDS.match(job.error)
    error = own[0] if own else job.error
    for pattern, outcome in RULES:
        if found := pattern.search(error):
            meaning = outcome.meaning
            if outcome.code is Code.JOB_EXIT:
                meaning = _EXIT_STATUSES.get(int(found["status"]), meaning)
            elif outcome.code is Code.JOB_IMAGE and (project := JobName.parse(job.name).project).isdecimal():
                meaning = meaning.replace("PROJECT_NUMBER", project)
            return replace(outcome, meaning=meaning)
    return Outcome(End.BAD, "failed", Code.JOB_FAILED)
