"""What a job's state and error mean: whether and how it has ended, and the remedy. Pure, for every JobState.

States are compared as numbers of real enum members, and by name once read. ``str(JobState.X)`` is the number from Python
3.11 on, and a state that Google adds later is a number without a member. A job in such a state has not ended and keeps its
slot. Vertex AI describes a failure in free text; ``RULES`` has every assumption about its wording.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum

from google.cloud.aiplatform_v1.types import JobState, Scheduling

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
SPOT, FLEX_START = Scheduling.Strategy.SPOT.name, Scheduling.Strategy.FLEX_START.name
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
    another region. ``began`` is False if the program cannot have begun, whatever W&B shows by and by.
    """

    end: End
    verb: str
    code: Code
    meaning: str = ""
    again: bool = False
    try_other_region: bool = False
    began: bool = True


_ABORTED, _KILLED, _CRASHED = (
    "The program aborted (SIGABRT).",
    "The program was killed (SIGKILL), most likely because it ran out of memory.",
    "The program crashed (SIGSEGV, a segmentation fault).",
)
_EXIT_STATUSES = {
    6: _ABORTED,
    9: _KILLED,
    11: _CRASHED,
    126: "The command could not be executed. Check that the file is executable and built for this machine type.",
    127: "The command was not found in the image. Check entry_point and args.",
    129: "The program lost its terminal (SIGHUP).",
    130: "The program was interrupted, as W&B's client does when its run is stopped.",
    131: "The program was asked to quit (SIGQUIT).",
    132: "The program used an instruction that this machine lacks (SIGILL). Choose another machine_type or build.",
    134: _ABORTED,
    135: "The program had a bus error (SIGBUS), often because shared memory (/dev/shm) was full.",
    136: "The program divided by zero or had another arithmetic error (SIGFPE).",
    137: _KILLED,
    139: _CRASHED,
    141: "The program wrote to a pipe that nothing reads any more (SIGPIPE).",
    143: "The program was asked to end (SIGTERM).",
}
_NO_COMMAND, _TERMINATED = (126, 127), 143

_EXITED = r"exited with a non-zero status of (?P<status>\d{1,9})"
_REASON = r"(?:\s*\(\w+\))?\.? Termination reason: [^.\n]*"
_WITHOUT_THE_PROGRAMS_WORDS = re.compile(rf".*?{_EXITED}(?:{_REASON})?", re.S)
_NOT_STARTED = re.compile(rf"{_EXITED}{_REASON}(?:StartError|ContainerCannotRun|CreateContainer\w*Error)", re.I)
_START_ERRORS = (
    (
        "executable file not found|no such file or directory",
        "The image has no such program. Check entry_point, args and the image.",
    ),
    (
        "permission denied",
        "The program may not be executed. Make the file executable (chmod +x) in the image.",
    ),
    (
        "exec format error",
        "The program is built for another processor. Build the image for that of the machine_type (--platform).",
    ),
)
_PREEMPTED = "Its machine was preempted, and Google Cloud had no replacement."
_ELSEWHERE = {"again": True, "try_other_region": True}


def _rule(pattern: str, code: Code, meaning: str, **how: bool) -> tuple[re.Pattern[str], Outcome]:
    return re.compile(pattern, re.I | re.S), Outcome(End.BAD, "failed", code, meaning, **how)


# What is known about how Vertex AI describes a preempted job: the word STOCKOUT, and exit status 143 (SIGTERM).
RULES = (
    _rule(
        r"out[- ]of[- ]memory|\blow on (?:resource: )?memory|OOMKilled",
        Code.JOB_MEMORY,
        "The program needed more memory than its machine has. Choose a machine_type with more, or a smaller batch.",
    ),
    _rule(
        r"\blow on (?:disk|resource: ephemeral-storage)|no space left on device",
        Code.JOB_DISK,
        "The program filled its machine's disk. Set disk_spec.boot_disk_size_gb of the worker pool to more than its default "
        "of 100 GB, or write to Cloud Storage.",
    ),
    _rule(f"{_EXITED}{_REASON}(?:STOCKOUT|preempt)", Code.JOB_PREEMPTED, _PREEMPTED, **_ELSEWHERE),
    _rule(_EXITED, Code.JOB_EXIT, "The program itself failed. See its log."),
    _rule(
        r"\b(?:image|pull\w*|manifest)\b(?:(?!\.\s).){0,300}\b(?:not found|not exist|unknown|backoff|denied|permission"
        r"|unauthori[sz]ed|forbidden|failed)"
        r"|failed to pull|ImagePull|downloadArtifacts|access Artifact Registry|toomanyrequests",
        Code.JOB_IMAGE,
        "Check the image's name and tag. Grant roles/artifactregistry.reader on its repository to Vertex AI's service agent "
        "service-PROJECT_NUMBER@gcp-sa-aiplatform.iam.gserviceaccount.com, which pulls the image.",
        began=False,
    ),
    _rule(
        r"(?:Resources are insufficient|insufficient (?:resources|capacity))\b|RESOURCE_POOL_EXHAUSTED|resource pool exhausted"
        r"|not have enough (?:resources|capacity)",
        Code.JOB_STOCKOUT,
        "Google Cloud had no such machine available there. Try another region, machine_type or accelerator.",
        **_ELSEWHERE,
    ),
    _rule(r"STOCKOUT|\bpreempt", Code.JOB_PREEMPTED, _PREEMPTED, **_ELSEWHERE),
    _rule(
        "service agents? (?:is|are) (?:still )?being (?:provisioned|created)",
        Code.JOB_SERVICE_AGENTS,
        "Google is still making the project's service agents, which takes some minutes after Vertex AI was enabled.",
        again=True,
    ),
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
        r"\bquotas?\b.{0,80}\bexceed|\bexceed\w*\b.{0,80}\bquota|quota metric|insufficient quota",
        Code.JOB_QUOTA,
        "Request a higher quota for this project and region, or ask for less in the run spec.",
    ),
    _rule(
        r"permission\b.{0,200}\bdenied|\bforbidden\b|PERMISSION_DENIED|does not have (?:the )?\S* ?(?:permission|access)",
        Code.JOB_PERMISSION,
        "Grant that permission to the account that the job runs as (service_account in the run spec).",
    ),
)
"""What an error text means: the first rule whose pattern it contains counts."""

_TIME_LIMIT = re.compile(
    r"timed? ?out|deadline|exceed\w*.{0,80}\b(?:time|timeout|duration|runtime)\b|max_(?:wait|run)", re.I | re.S
)
_EXPIRED = Outcome(End.BAD, "expired", Code.JOB_EXPIRED, "It took longer than its timeout or max_wait_duration allows.")
_OTHER_ENDS = {
    JobState.JOB_STATE_SUCCEEDED.name: Outcome(End.GOOD, "succeeded", Code.RUN_NEVER_BEGAN),
    CANCELLED: Outcome(End.CANCELLED, "was cancelled", Code.JOB_CANCELLED),
    JobState.JOB_STATE_EXPIRED.name: _EXPIRED,
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED.name: Outcome(
        End.BAD, "succeeded only in part", Code.JOB_PARTIAL, "Some of its work is missing. See its log."
    ),
}
"""A job that succeeded has a code for the one case that is reported: its run never began."""


def of(job: ManagedJob) -> Outcome | None:
    """Return the outcome of a job; None while it has not ended, or if this version does not know its state."""
    if job.state == CANCELLED and _TIME_LIMIT.search(job.error):
        return _EXPIRED  # Vertex AI also cancels what has reached its time limit
    if job.state != FAILED:
        return _OTHER_ENDS.get(job.state)
    if found := _NOT_STARTED.search(job.error):
        return _not_started(job.error[found.end() :])
    # Text that a failed program wrote can follow "Termination reason: Error." and can say anything.
    own = _WITHOUT_THE_PROGRAMS_WORDS.match(job.error)
    error = own[0] if own else job.error
    for pattern, outcome in RULES:
        if found := pattern.search(error):
            meaning = outcome.meaning
            if outcome.code is Code.JOB_EXIT:
                status = int(found["status"])
                if job.strategy == SPOT and status == _TERMINATED:
                    return Outcome(End.BAD, "failed", Code.JOB_PREEMPTED, _PREEMPTED, **_ELSEWHERE)
                found_meaning = _EXIT_STATUSES.get(status, meaning)
                return replace(outcome, meaning=found_meaning, began=status not in _NO_COMMAND)
            if outcome.code is Code.JOB_IMAGE and (project := JobName.parse(job.name).project).isdecimal():
                meaning = meaning.replace("PROJECT_NUMBER", project)
            return replace(outcome, meaning=meaning, began=outcome.began or bool(job.started))
    return Outcome(End.BAD, "failed", Code.JOB_FAILED)


def _not_started(words: str) -> Outcome:
    """Return the outcome of a job whose container did not start. The words are the container runtime's, not a program's."""
    remedies = (remedy for pattern, remedy in _START_ERRORS if re.search(pattern, words, re.I))
    meaning = next(remedies, "Its container could not start. Check the image, entry_point and args.")
    return Outcome(End.BAD, "failed", Code.JOB_START, meaning, began=False)
