"""The query language of Cloud Logging, as far as the filters of ``infra`` use it; anything else is an error.

Written after https://cloud.google.com/logging/docs/view/logging-query-language. Known: comparisons of a field with a word, a
number, a quoted string or ``(a OR b)`` by ``= != > >= < <= : =~ !~``; ``field:*``; AND (which may be left out), OR, NOT,
parentheses and comments. NOT binds more tightly than OR, and OR more tightly than AND.

If an entry lacks a field of the payload or a label, no comparison with it is true, not even ``!=``. Fields that every entry
has, such as the severity, have a default. Comparisons of strings ignore case, regular expressions do not.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Entry = Mapping[str, Any]
"""A LogEntry in the JSON form of the API."""

Test = Callable[[Entry], bool]
"""Returns whether an entry matches a filter."""

SEVERITIES = ("DEFAULT", "DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY")
DEFAULTS = {
    "severity": "DEFAULT",
    "textPayload": "",
    "logName": "",
    "trace": "",
    "resource.type": "",
    "httpRequest.status": 0,
}
"""The fields that every entry has, with their defaults."""
OPEN = ("jsonPayload", "labels", "resource.labels")
"""Fields that may be followed by any name."""

_TOKEN = re.compile(
    r"""\s+ | --[^\n]*
    | (?P<string> "(?:[^"\\]|\\.)*" )
    | (?P<sign> =~ | !~ | != | >= | <= | [=<>:] )
    | (?P<bracket> [()] )
    | (?P<word> [^\s"()=!<>:~,]+ (?: "(?:[^"\\]|\\.)*" [^\s"()=!<>:~,]* )* )""",
    re.VERBOSE,
)
_PART = re.compile(r'([^."]+)|"((?:[^"\\]|\\.)+)"')
_PATH = re.compile(rf"(?:{_PART.pattern})(?:\.(?:{_PART.pattern}))*")
_ORDER: Mapping[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_BEYOND_RE2 = re.compile(r"\(\?(?:[=!]|<[=!])|\\[1-9]")


class FilterError(ValueError):
    """A filter is malformed, or compares values that cannot be compared."""


class Missing:
    """The value of a field that an entry lacks."""


def parse(text: str) -> Test:
    """Turn a filter into a test of entries. Raises FilterError, and so may the test."""
    reader = _Reader(text)
    if not reader.peek:
        return lambda _: True
    test = reader.conjunction()
    if reader.peek:
        raise FilterError(f"AND, OR, NOT or a field was expected before {reader.peek!r} in {text!r}")
    return test


def extract(extractor: str, entry: Entry) -> float | None:
    """Return what a metric's ``valueExtractor`` takes from an entry, None without a number. Raises FilterError."""
    match = re.fullmatch(r"EXTRACT\(([^()\s]+)\)", extractor)
    if match is None:
        raise FilterError(f"{extractor!r} is not supported; write EXTRACT(field)")
    found = value(match[1], entry)
    try:
        return float(found)
    except (TypeError, ValueError):
        return None


def value(path: str, entry: Entry) -> Any:
    """Return the value at a path such as ``labels."a/b"`` or ``jsonPayload.event``, or Missing(). Raises FilterError."""
    found = _given(path, entry)
    return DEFAULTS.get(path, found) if isinstance(found, Missing) else found


def _given(path: str, entry: Entry) -> Any:
    found: Any = entry
    for part in _parts(path):
        if not isinstance(found, Mapping) or part not in found:
            return Missing()
        found = found[part]
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
            self._close()
            return test
        return self._comparison()

    def _comparison(self) -> Test:
        path = self._next("a field")
        if not re.match(r"\w", path) or path in ("AND", "OR"):
            raise FilterError(f"a field was expected, not {path!r}, in {self._text!r}")
        sign = self._next("a comparison")
        if sign not in (*_ORDER, ":", "=~", "!~"):
            raise FilterError(f"a comparison was expected between {path!r} and {sign!r} in {self._text!r}")
        tests = [_comparison(path, sign, literal) for literal in self._literals()]
        return lambda entry: any(test(entry) for test in tests)

    def _literals(self) -> list[str]:
        """Read a value, or several in parentheses with OR between them; strings keep their quotes."""
        if not self._take("("):
            return [self._literal()]
        found = [self._literal()]
        while self._take("OR"):
            found.append(self._literal())
        self._close()
        return found

    def _literal(self) -> str:
        literal = self._next("a value")
        if not re.match(r'[\w"*.+-]', literal):
            raise FilterError(f"a value was expected, not {literal!r}, in {self._text!r}")
        return literal

    def _close(self) -> None:
        if not self._take(")"):
            raise FilterError(f"a closing parenthesis was expected before {self.peek or 'the end'!r} in {self._text!r}")

    def _next(self, wanted: str) -> str:
        if not self._tokens:
            raise FilterError(f"{wanted} was expected at the end of {self._text!r}")
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


def _parts(path: str) -> list[str]:
    """Split a path. Only known fields of a LogEntry are allowed."""
    parts = [plain or _unquoted(quoted) for plain, quoted in _PART.findall(path)]
    known = path in DEFAULTS or any(path.startswith(f"{prefix}.") for prefix in OPEN)
    if not known or not _PATH.fullmatch(path):
        fields = ", ".join([*DEFAULTS, *(f"{prefix}.…" for prefix in OPEN)])
        raise FilterError(f"{path!r} is not a known field: {fields}")
    return parts


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


def _comparison(path: str, sign: str, literal: str) -> Test:
    _parts(path)
    if (sign, literal) == (":", "*"):
        return lambda entry: not isinstance(_given(path, entry), Missing)
    quoted = literal.startswith('"')
    text = _unquoted(literal[1:-1]) if quoted else literal
    if sign in ("=~", "!~"):
        return _regular(path, sign, text, quoted=quoted)
    if literal in ("*", "NULL_VALUE"):
        raise FilterError(f"{path}{sign}{literal} is not supported; field:* asks whether there is a value")
    if path == "severity":
        return _severity(sign, text)
    return lambda entry: _is_true(value(path, entry), sign, text)


def _regular(path: str, sign: str, pattern: str, *, quoted: bool) -> Test:
    if not quoted or _BEYOND_RE2.search(pattern):
        raise FilterError(f"{path}{sign}{pattern}: a regular expression of RE2 was expected, in quotes")
    compiled = re.compile(pattern)

    def test(entry: Entry) -> bool:
        found = value(path, entry)
        return isinstance(found, str) and bool(compiled.search(found)) == (sign == "=~")

    return test


def _severity(sign: str, text: str) -> Test:
    if text.upper() not in SEVERITIES or sign == ":":
        raise FilterError(f"severity{sign}{text} is not supported; severities are {', '.join(SEVERITIES)}")
    bound = SEVERITIES.index(text.upper())
    return lambda entry: _ORDER[sign](SEVERITIES.index(value("severity", entry)), bound)


def _is_true(found: Any, sign: str, text: str) -> bool:
    """Compare a value with a word of the filter, converted to the value's type; False if that is impossible."""
    if found is None or isinstance(found, Missing):
        return False
    if isinstance(found, bool):
        return text.lower() in ("true", "false") and _ORDER["=" if sign == ":" else sign](found, text.lower() == "true")
    if isinstance(found, int | float):
        try:
            return _ORDER["=" if sign == ":" else sign](found, float(text))
        except ValueError:
            return False
    if not isinstance(found, str):
        raise FilterError(f"a {type(found).__name__} cannot be compared with {text!r} here")
    if sign == ":":
        return _folded(text) in _folded(found)
    return _ORDER[sign](_folded(found), _folded(text))


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
