"""The lines that the preflight prints: what was checked, what was found, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from vertex_launch.codes import Code
from vertex_launch.errors import Message, Unavailable

_NETWORK = re.compile(
    r"Connection refused|Connection reset|timed out|DNS resolution failed|Name or service not known|No address associated"
    r"|Temporary failure in name resolution|No route to host|Network is unreachable|certificate verify failed",
    re.IGNORECASE,
)
"""What the messages of HTTP and gRPC clients say if the network or an address is at fault."""


class Verdict(StrEnum):
    """The first word of a line."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Line:
    """One check: ``what`` was checked, what was found, and what to do.

    ``code`` is None for ok and skip. Lines with the same ``cause`` have one fault in common.
    """

    verdict: Verdict
    what: str
    found: str
    remedy: str = ""
    code: Code | None = None
    cause: str = ""

    def __str__(self) -> str:
        sentences = [f"{self.what}: {self.found}", self.remedy]
        text = " ".join(one if one.endswith((".", "?", "!")) else f"{one}." for one in sentences if one)
        text = " ".join(text.split())
        return f"{self.verdict:<4}  {Message(self.code, text) if self.code else text}"


def ok(what: str, found: str) -> Line:
    """Return a line about something that works."""
    return Line(Verdict.OK, what, found)


def warn(code: Code, what: str, found: str, remedy: str = "") -> Line:
    """Return a line about something that works but needs attention, or could not be verified."""
    return Line(Verdict.WARN, what, found, remedy, code)


def fail(code: Code, what: str, found: str, remedy: str = "") -> Line:
    """Return a line about something that does not work; the remedy may stand at the end of ``found``."""
    return Line(Verdict.FAIL, what, found, remedy, code)


def skip(what: str, why: str) -> Line:
    """Return a line about something that was not checked."""
    return Line(Verdict.SKIP, what, why)


def no_answer(what: str, error: Unavailable) -> Line:
    """Return a line about a service that did not answer, without the client library's own description of a connection."""
    if found := _NETWORK.search(error.reason):
        reason = f"no connection to {error.service} ({found[0].lower()})"
        remedy = "Check the network, the proxy and the address of the service"
        return replace(fail(Code.CHECK_CONNECTION, what, reason, remedy), cause="the network")
    return replace(fail(error.message.code, what, f"{error.service}: {error.reason}"), cause=error.service)


def once(lines: Iterable[Line]) -> Iterator[Line]:
    """Yield the lines, each cause only once: later lines with the same cause become skip and name the first."""
    first: dict[tuple[str, Verdict], Line] = {}
    for line in lines:
        seen = first.get((line.cause, Verdict.FAIL)) or first.get((line.cause, line.verdict))
        if line.cause and seen:
            yield skip(line.what, f"same cause as {seen.what}")
            continue
        first[line.cause, line.verdict] = line
        yield line
