"""What was measured, and whether the settings fit: one finding for each assumption."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from vertex_launch.codes import Code
from vertex_launch.verify.assumptions import BY_NAME

SHOWN = 120
"""Characters of a service's words in the table."""
AGAIN = "Remove the cause and measure it again, with --only NAMES"


class Verdict(StrEnum):
    """The first word of a row."""

    OK = "ok"
    NOTE = "note"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Finding:
    """What was ``measured`` for the assumption ``name``, and what to do if it differs.

    ``value`` is the number in it. ``suggested`` maps settings to values that fit what was measured. ``words`` are those of
    the service, which the table does not show in full.
    """

    name: str
    verdict: Verdict
    measured: str
    remedy: str = ""
    code: Code | None = None
    value: float | None = None
    suggested: Mapping[str, float] = field(default_factory=dict)
    words: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the finding and its assumption as a JSON object."""
        assumption = BY_NAME[self.name]
        return {
            "name": self.name,
            "verdict": self.verdict.value,
            "assumed": assumption.assumed,
            "how": assumption.how,
            "measured": self.measured,
            "value": self.value,
            "setting": assumption.setting or None,
            "suggested": dict(self.suggested),
            "remedy": self.remedy or None,
            "code": self.code.value if self.code else None,
            "words": self.words or None,
        }


def ok(name: str, measured: str, **more: Any) -> Finding:
    """Return a finding that fits the assumption."""
    return Finding(name, Verdict.OK, measured, **more)


def note(name: str, measured: str, remedy: str = "", **more: Any) -> Finding:
    """Return a finding that differs from the assumption, and with which the product copes."""
    return Finding(name, Verdict.NOTE, measured, remedy, **more)


def fail(code: Code, name: str, measured: str, remedy: str, **more: Any) -> Finding:
    """Return a finding that differs from the assumption, and what to change."""
    return Finding(name, Verdict.FAIL, measured, remedy, code, **more)


def unmeasured(name: str, why: str, remedy: str = AGAIN) -> Finding:
    """Return the finding that an assumption could not be measured."""
    return Finding(name, Verdict.FAIL, f"not measured: {short(why)}", remedy, Code.VERIFY_NOT_MEASURED, words=why)


def short(text: str) -> str:
    """Return a text as the table shows it; the JSON has all of it."""
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1].rstrip()}…"


def skip(name: str, why: str) -> Finding:
    """Return the finding that an assumption was not measured because something needed is not there."""
    return Finding(name, Verdict.SKIP, why)
