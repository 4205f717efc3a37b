"""What can go wrong, as a tree in which the class says what the caller does next.

::

    LaunchError
    ├── ConfigError        the operator has to fix the configuration: no pass; HTTP 500
    ├── RequestError       the sender has to fix the request: HTTP 400, and a Pub/Sub message is dropped
    ├── ItemRejected       the item can never start: fail it in W&B with this message
    ├── ItemDeferred       the item cannot start now: do not ack it, so that its lease brings it back
    │   ├── ItemFault      its check met a bug: try it a few times, then fail it
    │   └── ItemDoubtful   a refusal that may be over soon: try it for ten minutes, then fail it
    ├── OutcomeUnknown     a create may have taken effect: its plan keeps the slot
    ├── PassBusy           another pass is running: try again later; HTTP 409
    ├── PassLost           another pass took the lock over: stop and write nothing more; HTTP 409
    ├── JobNotEnded        a job that should have ended still runs: Pub/Sub delivers the message again
    └── Unavailable        W&B, Vertex AI, Secret Manager or the bucket does not work: no pass; HTTP 503
        └── KeyRefused     W&B refuses the API key: read it again once, then give up

Every message has a code and at most two sentences: what is wrong and where, what is expected, what to do. API keys are
removed where messages leave the process: from the log, answers, and texts for W&B.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vertex_launch.codes import Code
from vertex_launch.limits import LONGEST_MESSAGE, LONGEST_WORD, MOST_PROBLEMS

_LONGEST_CODE = 100
"""Characters of a code and its brackets, and a few more for what an exit adds."""


class LaunchError(Exception):
    """Base of every error that this package raises on purpose."""


def brief(text: str, most: int = LONGEST_MESSAGE) -> str:
    """Return a text that may hold keys, with its middle left out if it is too long.

    It is cut between words, and very long words are left out as a whole: a redactor does not find half a key.
    """
    if len(text) <= most:
        return text
    text = re.sub(
        r"\S+", lambda word: word[0] if len(word[0]) <= LONGEST_WORD else f"({len(word[0])} characters)", text
    )
    if len(text) <= most:
        return text
    kept = (most - len(_LEFT_OUT)) // 2
    gaps = [gap.start() for gap in re.finditer(r"\s", text)]
    until = max((at for at in gaps if at <= kept), default=0)
    since = min((at for at in gaps if at >= len(text) - kept - 1), default=len(text) - 1)
    return f"{text[:until]}{_LEFT_OUT}{text[since + 1 :]}"


_LEFT_OUT = "\n[…]\n"


@dataclass(frozen=True)
class Message:
    """A text for a person and its code, which ``docs/troubleshooting.md`` explains; a text that is too long is cut."""

    code: Code
    text: str

    def __post_init__(self) -> None:
        """Cut the text so that it and its code are short enough."""
        if len(self.text) > LONGEST_MESSAGE - _LONGEST_CODE:
            object.__setattr__(self, "text", brief(self.text, LONGEST_MESSAGE - _LONGEST_CODE))

    def __str__(self) -> str:
        head, newline, rest = self.text.partition("\n")
        return f"{head} [{self.code}]{newline}{rest}"

    @classmethod
    def parse(cls, text: str, default: Code) -> Message:
        """Parse what ``str`` wrote; text without a known code has the ``default``."""
        found = re.fullmatch(r"([^\n]*) \[(VL-[A-Z-]+)\](.*)", text, re.S)
        if found is None or found[2] not in set(Code):
            return cls(default, text)
        return cls(Code(found[2]), found[1] + found[3])


@dataclass(frozen=True)
class Problem:
    """One mistake in a configuration, a request or a run spec.

    ``place`` is where it is (``max_jobs in launch-config.yaml``), ``found`` what is wrong there, ``remedy`` what to do.
    """

    place: str
    found: str
    remedy: str
    code: Code

    @property
    def message(self) -> Message:
        """The problem as a text with its code."""
        end = "" if self.remedy.endswith((".", "?")) else "."
        return Message(self.code, f"{self.place}: {self.found}. {self.remedy}{end}")

    def __str__(self) -> str:
        return str(self.message)


class ProblemsError(LaunchError):
    """An error that reports every problem at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines))

    @property
    def lines(self) -> list[str]:
        """The first problems as texts, and how many more there are."""
        lines = [str(problem) for problem in self.problems[:MOST_PROBLEMS]]
        more = len(self.problems) - len(lines)
        return [*lines, f"and {more} more"] if more else lines


class ConfigError(ProblemsError):
    """The configuration is invalid; ``problems`` has every reason."""


class RequestError(ProblemsError):
    """A Pub/Sub message or an HTTP request is invalid; ``problems`` has every reason."""


class CodedError(LaunchError):
    """An error with one code; ``message`` is what a person reads."""

    def __init__(self, message: str, *, code: Code) -> None:
        self.message = Message(code, message)
        super().__init__(str(self.message))


class ItemRejected(CodedError):
    """The item can never start as it is; the message is shown to its author in W&B."""


class ItemDeferred(CodedError):
    """The item cannot start now (quota, a limit, a busy service) but may later. With ``warn`` its author is warned.

    A ``patient`` item waits without a time limit for something that surely ends, such as another job.
    """

    def __init__(self, message: str, *, code: Code, warn: bool = True, patient: bool = False) -> None:
        self.warn = warn
        self.patient = patient
        super().__init__(message, code=code)


class ItemFault(ItemDeferred):
    """An unexpected error ended the item's check: a bug here, which must not stop the other items."""

    def __init__(self) -> None:
        text = "An unexpected error ended the check of this item. The function's log has the traceback."
        super().__init__(text, code=Code.ITEM_FAULT)


class ItemDoubtful(ItemDeferred):
    """Vertex AI refused the item's job, which may only mean that a new role or account does not work yet.

    ``refusal`` is why the item fails if that goes on.
    """

    def __init__(self, refusal: ItemRejected) -> None:
        self.refusal = refusal
        text = f"{refusal.message.text} A role or account that is new can take minutes to work, so it is tried for ten minutes."
        super().__init__(text, code=refusal.message.code)


class OutcomeUnknown(CodedError):
    """A create was sent and its answer was lost: the job may exist or may still come to exist."""

    warn = True
    patient = False


class PassBusy(CodedError):
    """Another pass is running; trying again in ``retry_after`` seconds may succeed."""

    def __init__(self, message: str, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__(message, code=Code.PASS_BUSY)


class PassLost(CodedError):
    """This pass outlived its lock and another pass took over; nothing more may be changed."""


class JobNotEnded(CodedError):
    """A log entry reports the end of a job that Vertex AI still runs."""


class Unavailable(CodedError):
    """A service that a pass needs failed or refused; ``service`` is its name for people."""

    def __init__(self, service: str, reason: str, *, code: Code) -> None:
        self.service = service
        self.reason = reason
        super().__init__(f"{service}: {reason}", code=code)


class KeyRefused(Unavailable):
    """W&B answered 401: the API key is wrong, revoked or for another server."""
