"""What can go wrong, as a tree in which the class says what the caller does next.

::

    LaunchError
    ├── ConfigError        the operator mends the configuration; no pass
    ├── RequestError       the caller of the function mends the request; HTTP 400
    ├── ItemRejected       can never work: fail the item in W&B with this sentence
    ├── ItemDeferred       cannot start now: leave the item un-acked, its lease brings it back
    ├── OutcomeUnknown     a create may have taken effect: its intent keeps the slot
    ├── PassBusy           another pass is running: come back later; HTTP 409
    ├── PassLost           somebody else took the pass over: stop, write nothing more
    └── Unavailable        W&B, Vertex AI, Secret Manager or the bucket is down: no pass; HTTP 503
        └── KeyRefused     W&B refuses the API key: read it again once, then give up

Every message is a sentence for a person: what was found, what was expected, where, and what to do. None holds an API key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LaunchError(Exception):
    """Base of everything that this package raises on purpose."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a configuration or a request.

    ``place`` is where (``launch-config.yaml: max_jobs``), ``found`` what is wrong there, ``remedy`` how to mend it.
    """

    place: str
    found: str
    remedy: str

    def __str__(self) -> str:
        end = "" if self.remedy.endswith((".", "?")) else "."
        return f"{self.place}: {self.found}. {self.remedy}{end}"


class ProblemsError(LaunchError):
    """An error that reports every problem at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(ProblemsError):
    """The configuration cannot be used; ``problems`` has every reason."""


class RequestError(ProblemsError):
    """A tick or an HTTP request cannot be used; ``problems`` has every reason."""


class ItemRejected(LaunchError):
    """The item can never start as it is; the message is shown to its author in W&B."""


class ItemDeferred(LaunchError):
    """The item cannot start now (quota, a limit, a busy service) but may later; ``tell`` whether its author is warned.

    With ``patient`` it waits for something that surely ends, as another job does, and for however long that takes.
    """

    def __init__(self, message: str, *, tell: bool = True, patient: bool = False) -> None:
        self.tell = tell
        self.patient = patient
        super().__init__(message)


class OutcomeUnknown(LaunchError):
    """A create was sent and its answer was lost: the job may exist or may still come to exist."""

    tell = True
    patient = False


class PassBusy(LaunchError):
    """Another pass is running; ``retry_after`` is a good number of seconds to wait."""

    def __init__(self, message: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class PassLost(LaunchError):
    """This pass outlived its hold and another one took over; nothing more may be changed."""


class Unavailable(LaunchError):
    """A service that a pass needs did not answer as it should; ``service`` names it for people."""

    def __init__(self, service: str, reason: str) -> None:
        self.service = service
        self.reason = reason
        super().__init__(f"{service}: {reason}")


class KeyRefused(Unavailable):
    """W&B answered 401: the API key is wrong, revoked, or of another server."""
