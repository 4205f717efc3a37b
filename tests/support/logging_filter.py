"""The query language of Cloud Logging, as far as the filters of ``infra`` and the docs use it; anything else is an error.

Written after https://cloud.google.com/logging/docs/view/logging-query-language. Known: comparisons of a field with a word, a
number, a quoted string or ``(a OR b)`` by ``= >= : =~``; ``field:*``; AND (which may be left out), OR, NOT and parentheses. NOT
binds more tightly than OR, and OR more tightly than AND.

If an entry lacks a field of the payload or a label, no comparison with it is true. Fields that every entry has, such as the
severity, have a default. Comparisons of strings ignore case, regular expressions do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Entry = Mapping[str, Any]
"""A LogEntry in the JSON form of the API."""

Test = Callable[[Entry], bool]
"""Returns whether an entry matches a filter."""

SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY")
DEFAULTS = {"severity": "DEFAULT", "textPayload": "", "resource.type": ""}
"""The fields that every entry has, with their defaults."""
OPEN = ("jsonPayload", "labels", "resource.labels")
"""Fields that may be followed by any name."""

_TOKEN = re.compile(
    r"""\s+
    | (?P<string> "(?:[^"\\]|\\.)*" )
    | (?P<sign> =~ | >= | [=:] )
    | (?P<bracket> [()] )
    | (?P<word> [^\s"()=!<>:~,]+ (?: "(?:[^"\\]|\\.)*" [^\s"()=!<>:~,]* )* )""",
    re.VERBOSE,
)
_PART = re.compile(r'([^."]+)|"((?:[^"\\]|\\.)+)"')
_PATH = re.compile(rf"(?:{_PART.pattern})(?:\.(?:{_PART.pattern}))*")
_BEYOND_RE2 = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]")


class FilterError(ValueError):
    """A filter is malformed, or compares values that cannot be compared."""


def parse(text: str) -> Test:
    """Turn a filter into a test of entries. Raises FilterError, and so may the test."""
    reader = _Reader(text)
    test = reader.conjunction()
    if reader.peek:
        raise FilterError(f"{reader.peek!r} was not expected in {text!r}")
    return test


def extract(extractor: str, entry: Entry) -> float | None:
    """Return what a metric's ``valueExtractor`` takes from an entry, None without a number. Raises FilterError."""
    match = re.fullmatch(r"EXTRACT\(([^()\s]+)\)", extractor)
    if match is None:
        raise FilterError(f"{extractor!r} is not supported; write EXTRACT(field)")
    found = _value(match[1], entry)
    return float(found) if isinstance(found, int | float) else None


def _value(path: str, entry: Entry) -> Any:
    """Return the value at a path such as ``labels."a/b"`` or ``jsonPayload.event``; None if there is none."""
    known = path in DEFAULTS or any(path.startswith(f"{prefix}.") for prefix in OPEN)
    if not known or not _PATH.fullmatch(path):
        raise FilterError(f"{path!r} is not a known field")
    found: Any = entry
    for plain, quoted in _PART.findall(path):
        found = found.get(plain or _unquoted(quoted)) if isinstance(found, Mapping) else None
    return found


class _Reader:
    """Reads one filter from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_tokens(text))

    @property
    def peek(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def conjunction(self) -> Test:
        tests = [self._disjunction()]
        while self.peek and self.peek != ")":
            self._take("AND")
            tests.append(self._disjunction())
        return lambda entry: all(test(entry) for test in tests)

    def _disjunction(self) -> Test:
        tests = [self._negation()]
        while self._take("OR"):
            tests.append(self._negation())
        return lambda entry: any(test(entry) for test in tests)

    def _negation(self) -> Test:
        if self._take("NOT"):
            test = self._negation()
            return lambda entry: not test(entry)
        if self._take("("):
            test = self.conjunction()
            self._next(r"\)")
            return test
        path, sign = self._next(r"(?!(AND|OR)$)\w.*"), self._next("=~|>=|=|:")
        tests = [_comparison(path, sign, literal) for literal in self._literals()]
        return lambda entry: any(test(entry) for test in tests)

    def _literals(self) -> Iterator[str]:
        """Read a value, or several in parentheses with OR between them; strings keep their quotes."""
        several = self._take("(")
        yield self._next(r'[\w"*.+-].*')
        while several and self._take("OR"):
            yield self._next(r'[\w"*.+-].*')
        if several:
            self._next(r"\)")

    def _next(self, wanted: str) -> str:
        if not re.fullmatch(wanted, self.peek, re.DOTALL):
            raise FilterError(f"{self.peek or 'the end'!r} was not expected in {self._text!r}")
        return self._tokens.pop(0)

    def _take(self, token: str) -> bool:
        if self.peek == token:
            self._tokens.pop(0)
            return True
        return False


def _tokens(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise FilterError(f"{text[place : place + 20]!r} cannot be read in {text!r}")
        if match.lastgroup:
            yield match[0]
        place = match.end()


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _comparison(path: str, sign: str, literal: str) -> Test:
    _value(path, {})
    quoted = literal.startswith('"')
    text = _unquoted(literal[1:-1]) if quoted else literal
    if (sign, literal) == (":", "*"):
        return lambda entry: _value(path, entry) is not None
    if literal in ("*", "NULL_VALUE") or (sign == "=~" and (not quoted or _BEYOND_RE2.search(text))):
        raise FilterError(f"{path}{sign}{literal} is not supported")
    if path == "severity":
        if text not in SEVERITIES or sign not in ("=", ">="):
            raise FilterError(f"severity{sign}{text} is not supported")
        return lambda entry: _is_true(SEVERITIES.index(entry.get(path, "DEFAULT")), sign, str(SEVERITIES.index(text)))
    return lambda entry: _is_true(_value(path, {path: DEFAULTS.get(path), **entry}), sign, text)


def _is_true(found: Any, sign: str, text: str) -> bool:
    """Compare a value with a word of the filter, converted to the value's type; False without a value."""
    match found:
        case None:
            return False
        case int() | float() if sign != "=~" and re.fullmatch(r"-?[\d.]+", text):
            return found >= float(text) if sign == ">=" else found == float(text)
        case str() if sign == "=~":
            return bool(re.search(text, found))
        case str() if sign == ":":
            return text.casefold() in found.casefold()
        case str() if sign == "=":
            return text.casefold() == found.casefold()
    raise FilterError(f"{found!r} cannot be compared by {sign} with {text!r} here")
