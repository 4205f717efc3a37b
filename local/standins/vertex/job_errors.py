"""The errors of jobs that did not succeed: a code of google.rpc.Code and the sentence of Vertex AI."""

from __future__ import annotations

from typing import NamedTuple


class JobError(NamedTuple):
    """The ``error`` of a CustomJob."""

    code: int
    message: str


CANCELLED = JobError(1, "CANCELED")
INTERNAL = JobError(13, "Internal error occurred for the current attempt")
PREEMPTED = JobError(8, "The replica workerpool0-0 was preempted and could not be started again: STOCKOUT.")
"""Of the real sentence only the word STOCKOUT is known."""


def stockout(region: str) -> JobError:
    """Return the error if no machine is free."""
    return JobError(
        8, f"Resources are insufficient in region: {region}. Try a different region or use a different accelerator."
    )


def exited(status: int) -> JobError:
    """Return the error if the user's program failed."""
    return JobError(
        3, f"The replica workerpool0-0 exited with a non-zero status of {status}. Termination reason: Error."
    )


def out_of_memory(status: int) -> JobError:
    """Return the error if the user's program needed more memory than the machine has."""
    return JobError(8, f"The replica workerpool0-0 ran out of memory and exited with a non-zero status of {status}.")


def image_not_found(image_uri: str) -> JobError:
    """Return the error if the image does not exist, or the service agent may not read it."""
    return JobError(
        3,
        f'Failed to pull image "{image_uri}": the image does not exist, or the Vertex AI service agent has no '
        "permission to pull it.",
    )
