"""The filter language of ListCustomJobs. What could not be verified on the real service is refused.

Known: ``state`` (= !=), ``display_name`` (= != and ``:`` with ``*``), ``create_time`` (= != < <= > >=),
``labels.key=value``, ``labels.key:*``, AND, OR, NOT. As in Google's filters, OR binds more tightly than AND. Refused:
parentheses, label keys with hyphens, other comparisons of labels.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from google.cloud.aiplatform_v1 import JobState

Test = Callable[[Any], bool]
"""Returns whether a CustomJob (the plain protobuf message) matches."""

_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|(!=|<=|>=|=|<|>|:)|([()])|([^\s"=!<>:()]+))')
_LABEL = re.compile(r"labels\.([a-z][a-z0-9_]*)")
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class FilterError(ValueError):
    """The filter is not valid. The message says where and why."""


def parse(text: str) -> Test:
    """Turn a filter into a test of jobs. The empty filter matches every job. Raise FilterError."""
    if not text.strip():
        return lambda _: True
    reader = _Reader(text)
    test = reader.conjunction()
    if reader.peek:
        raise FilterError(f"AND, OR or the end was expected before {reader.peek!r} in filter {text!r}")
    return test


class _Reader:
    """Parses one filter from left to right, the loosest operator first."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = self._split(text)

    @property
    def peek(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def conjunction(self) -> Test:
        tests = [self._disjunction()]
        while self._take("AND"):
            tests.append(self._disjunction())
        return lambda job: all(test(job) for test in tests)

    def _disjunction(self) -> Test:
        tests = [self._negation()]
        while self._take("OR"):
            tests.append(self._negation())
        return lambda job: any(test(job) for test in tests)

    def _negation(self) -> Test:
        if self._take("NOT"):
            test = self._comparison()
            return lambda job: not test(job)
        return self._comparison()

    def _comparison(self) -> Test:
        field, sign, value = self._next("a field"), self._next("a comparison"), self._next("a value")
        if sign not in (*_COMPARISONS, ":"):
            raise FilterError(f"a comparison was expected after {field!r}, not {sign!r}, in filter {self._text!r}")
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        elif value in (*_COMPARISONS, ":"):
            raise FilterError(f"a value was expected after {field}{sign} in filter {self._text!r}")
        return _comparison(field, sign, value)

    def _next(self, wanted: str) -> str:
        if not self._tokens:
            raise FilterError(f"{wanted} was expected at the end of filter {self._text!r}")
        return self._tokens.pop(0)

    def _take(self, keyword: str) -> bool:
        if self.peek == keyword:
            self._tokens.pop(0)
            return True
        return False

    @staticmethod
    def _split(text: str) -> list[str]:
        tokens, place = [], 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if match is None:
                raise FilterError(f"{text[place:].strip()!r} cannot be read in filter {text!r}")
            if match.group(3):
                raise FilterError(f"parentheses are not supported in filter {text!r}")
            tokens.append(match.group(1) or match.group(2) or match.group(4))
            place = match.end()
        return tokens


def _comparison(field: str, sign: str, value: str) -> Test:
    label = _LABEL.fullmatch(field)
    if label:
        return _label(label.group(1), sign, value)
    if field == "state" and sign in ("=", "!="):
        return _state(sign, value)
    if field == "display_name" and sign in ("=", "!=", ":"):
        return _display_name(sign, value)
    if field == "create_time" and sign != ":":
        return _create_time(sign, value)
    raise FilterError(
        f"{field}{sign} is not supported: fields are state (= !=), display_name (= != :), "
        "create_time (= != < <= > >=), labels.key=value and labels.key:*"
    )


def _label(key: str, sign: str, value: str) -> Test:
    if sign == "=":
        return lambda job: job.labels.get(key) == value
    if sign == ":" and value == "*":
        return lambda job: key in job.labels
    raise FilterError(f"labels.{key}{sign}{value} is not supported: labels take labels.key=value and labels.key:*")


def _state(sign: str, value: str) -> Test:
    if value not in JobState.__members__:
        raise FilterError(f"{value!r} is not a state: use one of {', '.join(JobState.__members__)}")
    compare, state = _COMPARISONS[sign], int(JobState[value])
    return lambda job: compare(job.state, state)


def _display_name(sign: str, value: str) -> Test:
    if sign == ":":
        pattern = value.replace("[", "[[]").replace("?", "[?]")
        return lambda job: fnmatchcase(job.display_name, pattern)
    compare = _COMPARISONS[sign]
    return lambda job: compare(job.display_name, value)


def _create_time(sign: str, value: str) -> Test:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise FilterError(f"create_time takes RFC 3339 with a time zone, as 2021-05-18T00:00:00Z, not {value!r}")
    compare, microseconds = _COMPARISONS[sign], round(moment.timestamp() * 1e6)
    return lambda job: compare(job.create_time.ToMicroseconds(), microseconds)
