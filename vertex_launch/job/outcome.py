"""What a job's state and error mean: whether it has ended, how, and what to tell a person. Pure, for every JobState.

States are compared as numbers of real enum members, and by name once read: ``str(JobState.X)`` is the number from Python 3.11
on, and a state that Google adds later arrives as a number without a member. Such a job counts as one that has not ended and
keeps its slot. What Vertex AI says about a failed job is free text; all that is believed about its wording stands in ``RULES``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from google.cloud.aiplatform_v1.types import JobState

from vertex_launch.job import labels
from vertex_launch.model import ManagedJob

_ENDED = frozenset(JobState[name].value for name in labels.ENDED_STATES)


def is_ended(state: int) -> bool:
    """Tell whether nothing of a job in this state runs any more."""
    return state in _ENDED


def is_cancelling(state: int) -> bool:
    """Tell whether a job in this state still runs but was asked to end."""
    return bool(state == JobState.JOB_STATE_CANCELLING)


def name(state: int) -> str:
    """Give the name of a state, as ``JOB_STATE_RUNNING``; ``JOB_STATE_<number>`` when this version knows none."""
    try:
        return str(JobState(state).name)
    except ValueError:
        return f"JOB_STATE_{int(state)}"


QUEUED = JobState.JOB_STATE_QUEUED.name
PENDING = JobState.JOB_STATE_PENDING.name
RUNNING = JobState.JOB_STATE_RUNNING.name
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

    ``verb`` says it in words ("expired"), ``meaning`` is a sentence on the cause and the remedy where both are known. With
    ``again`` another attempt may end better, with ``elsewhere`` rather in another region.
    """

    end: End
    verb: str
    meaning: str = ""
    again: bool = False
    elsewhere: bool = False


@dataclass(frozen=True)
class Rule:
    """What an error text means: the first rule whose pattern is found in it counts."""

    pattern: re.Pattern[str]
    meaning: str | Callable[[re.Match[str], ManagedJob], str]
    again: bool = False
    elsewhere: bool = False


def _exit(found: re.Match[str], job: ManagedJob) -> str:
    """Say what an exit status usually means."""
    status = int(found["status"])
    known = {
        126: "The command could not be run: is the file executable, and made for this machine?",
        127: "The command was not found in the image: check entry_point and args.",
        130: "It was interrupted, as W&B's client does when somebody stops the run.",
        134: "The program aborted.",
        137: "It was killed (SIGKILL), which mostly means that its memory did not suffice.",
        139: "The program crashed (segmentation fault).",
        143: "It was asked to end (SIGTERM).",
    }
    return known.get(status, "The program itself failed; its own log says where.")


def _image(found: re.Match[str], job: ManagedJob) -> str:
    number = job.name.split("/")[1]
    number = number if number.isdecimal() else "PROJECT_NUMBER"
    return (
        "Check the image's name and tag, and that Vertex AI's service agent "
        f"service-{number}@gcp-sa-aiplatform.iam.gserviceaccount.com may read it (roles/artifactregistry.reader on its "
        "repository): it pulls the image, not the account that the job runs as."
    )


_EXITED = r"exited with a non-zero status of (?P<status>\d{1,9})"
_REASON = r"\.? Termination reason: [^.\n]*"
_WITHOUT_THE_PROGRAMS_WORDS = re.compile(rf".*?{_EXITED}(?:{_REASON})?", re.S)
_PREEMPTED = "Its machine was taken away or could not be had again."


def _rule(pattern: str, meaning: str | Callable[[re.Match[str], ManagedJob], str], flags: int = 0, **how: bool) -> Rule:
    return Rule(re.compile(pattern, flags), meaning, **how)


# Of a preempted job only the word STOCKOUT is known.
RULES = (
    _rule(
        "ran out of memory",
        "The program needed more memory than its machine has: choose a machine_type with more, or a smaller batch.",
    ),
    _rule(f"{_EXITED}{_REASON}(?:STOCKOUT|preempt)", _PREEMPTED, re.I, again=True, elsewhere=True),
    _rule(_EXITED, _exit),
    _rule(
        r"\b(?:image|pull\w*|manifest)\b.*\b(?:not found|not exist|unknown|backoff|denied|permission"
        r"|unauthori[sz]ed|forbidden|failed)"
        r"|failed to pull|ImagePull|downloadArtifacts",
        _image,
        re.I | re.S,
    ),
    _rule(
        r"Resources are insufficient|RESOURCE_POOL_EXHAUSTED|not have enough resources",
        "Google Cloud had no such machine free there: another region, machine_type or accelerator may help.",
        re.I,
        again=True,
        elsewhere=True,
    ),
    _rule(r"STOCKOUT|\bpreempt", _PREEMPTED, re.I, again=True, elsewhere=True),
    _rule(
        r"\binternal (?:server )?error\b|\bcode 1[34]\b",
        "Vertex AI itself broke; the job is not to blame.",
        re.I,
        again=True,
    ),
    _rule(
        r"permission to act as|\bactAs\b",
        "Grant the dispatching function's service account roles/iam.serviceAccountUser on that account, or correct "
        "service_account in the run spec or the queue's config.",
        re.I,
    ),
    _rule(
        "quota",
        "Ask for a higher quota in this project and region, or for less in the run spec.",
        re.I,
    ),
    _rule(
        r"permission\b.*\bdenied|\bforbidden\b|PERMISSION_DENIED",
        "Grant that permission to the account that the job runs as (service_account in the run spec).",
        re.I | re.S,
    ),
)

_OTHER_ENDS = {
    JobState.JOB_STATE_SUCCEEDED.name: Outcome(End.GOOD, "ended well"),
    CANCELLED: Outcome(End.CANCELLED, "was cancelled"),
    JobState.JOB_STATE_EXPIRED.name: Outcome(
        End.BAD, "expired", "It took longer than its timeout or max_wait_duration allows."
    ),
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED.name: Outcome(
        End.BAD, "succeeded only in part", "Some of what it had to do is missing; its own log says what."
    ),
}


def of(job: ManagedJob) -> Outcome | None:
    """Give the outcome of a job; None while it has not ended, or where this version does not know its state."""
    if job.state != FAILED:
        return _OTHER_ENDS.get(job.state)
    # What a failed program wrote may stand behind "Termination reason: Error." and may say anything.
    said = own[0] if (own := _WITHOUT_THE_PROGRAMS_WORDS.match(job.error)) else job.error
    for rule in RULES:
        if found := rule.pattern.search(said):
            meaning = rule.meaning if isinstance(rule.meaning, str) else rule.meaning(found, job)
            return Outcome(End.BAD, "failed", meaning, rule.again, rule.elsewhere)
    return Outcome(End.BAD, "failed")
