"""What Vertex AI says about jobs that did not succeed: a code of google.rpc.Code and a sentence."""

from __future__ import annotations

from typing import NamedTuple


class JobError(NamedTuple):
    """The ``error`` of a CustomJob."""

    code: int
    message: str


CANCELLED = JobError(1, "CANCELED")
INTERNAL = JobError(13, "Internal error occurred for the current attempt")
PREEMPTED = JobError(8, "The replica workerpool0-0 was preempted and could not be started again: STOCKOUT.")
"""Only the word STOCKOUT is known of the real sentence."""


def stockout(region: str) -> JobError:
    """No machine was free."""
    return JobError(
        8,
        f"Resources are insufficient in region: {region}. Try a different region or use a different accelerator.",
    )


def exited(status: int) -> JobError:
    """The user's program failed."""
    return JobError(
        3, f"The replica workerpool0-0 exited with a non-zero status of {status}. Termination reason: Error."
    )


def out_of_memory(status: int) -> JobError:
    """The user's program took more memory than the machine has."""
    return JobError(8, f"The replica workerpool0-0 ran out of memory and exited with a non-zero status of {status}.")


def image_not_found(image_uri: str) -> JobError:
    """The image is not there, or the service agent may not read it."""
    return JobError(
        3,
        f'Failed to pull image "{image_uri}": the image does not exist, or the Vertex AI service agent has no '
        "permission to pull it.",
    )
