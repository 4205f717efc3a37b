"""How findings are shown: a table for people, JSON for bug reports."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from vertex_launch.codes import Code
from vertex_launch.errors import Message
from vertex_launch.verify.assumptions import BY_NAME
from vertex_launch.verify.findings import Finding, Verdict

NARROWEST = 80
_NAME = 22
"""Characters of the longest name; the rest of a line is shared by the two other columns."""


def table(findings: Sequence[Finding], width: int) -> str:
    """Return the findings in columns: verdict, name, what is assumed, what was measured."""
    each = (max(width, NARROWEST) - len("FAIL") - _NAME - 3 * 2) // 2
    lines = _row("", "assumption", "what the documentation says", "what was measured", each)
    for one in findings:
        lines += _row(one.verdict, one.name, BY_NAME[one.name].assumed, one.measured, each)
    return "\n".join(lines)


def remedies(findings: Sequence[Finding], width: int) -> str:
    """Return what to do about the findings, one paragraph for each remedy."""
    names: dict[tuple[str, Code | None], list[str]] = {}
    for one in findings:
        if one.remedy and one.verdict is not Verdict.OK:
            names.setdefault((one.remedy, one.code), []).append(one.name)
    shown = []
    for (remedy, code), of in names.items():
        text = f"{', '.join(of)}: {remedy}."
        text = str(Message(code, text)) if code else text
        shown.append(textwrap.fill(text, max(width, NARROWEST), subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(shown)


def _row(verdict: str, name: str, assumed: str, measured: str, each: int) -> list[str]:
    columns = [textwrap.wrap(text, each, break_on_hyphens=False) for text in (assumed, measured)]
    height = max(map(len, columns))
    left = [(verdict, name), *[("", "")] * (height - 1)]
    padded = [column + [""] * (height - len(column)) for column in columns]
    return [
        f"{one:<4}  {two:<{_NAME}}  {three:<{each}}  {four}".rstrip()
        for (one, two), three, four in zip(left, *padded, strict=True)
    ]


_EMAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")


class Anonymous:
    """Replaces the names of a deployment in texts, so that a report can be shown to others. Ids stay."""

    def __init__(self, names: Mapping[str, str]) -> None:
        known = {name: mark for name, mark in names.items() if name}
        self._marks = known
        longest_first = sorted(known, key=len, reverse=True)
        # A path ends where a file's name begins; another name must not be a part of a longer word.
        parts = (re.escape(name) + ("" if name.endswith("/") else r"(?!\w)") for name in longest_first)
        self._pattern = re.compile(rf"(?<![\w-])({'|'.join(parts)})") if known else None

    def __call__(self, value: Any) -> Any:
        """Return a JSON value without the names, and without any email address."""
        if isinstance(value, str):
            value = _EMAIL.sub("<account>", value)
            return self._pattern.sub(lambda found: self._marks[found[1]], value) if self._pattern else value
        if isinstance(value, Mapping):
            return {key: self(one) for key, one in value.items()}
        return [self(one) for one in value] if isinstance(value, list | tuple) else value
