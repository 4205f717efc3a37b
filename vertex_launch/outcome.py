"""What a JobState means; called by ``custom_job`` when it reads a job that Vertex AI describes.

States are compared as numbers of real enum members: ``str(JobState.X)`` is the number from Python 3.11 on, and a state that
Google adds later arrives as a number without a member. Such a job counts as one that has not ended and keeps its slot.
"""

from __future__ import annotations

from google.cloud.aiplatform_v1.types import JobState

from vertex_launch import labels

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
