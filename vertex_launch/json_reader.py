"""The one reader for JSON from outside: answers of W&B, the lock, the ledger, job descriptions, requests and run specs.

It is bounded in size, number of values, nesting and length of numbers, and knows neither NaN nor infinity. Of two entries with
the same key the last one counts. A refusal describes the text and never quotes it, because the text may hold keys.
"""

from __future__ import annotations

import math
import re
from typing import Any

from pydantic_core import from_json

from vertex_launch import limits

_SUSPECTS = re.compile(rb"(?<![0-9])[0-9]{%d}|[eE]\+?[0-9]{3}" % limits.MOST_DIGITS)
"""What may be a number that is too long or infinite, and may also be part of a text."""

_TEXT = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
"""A text. One that does not end counts as well: otherwise each quote in it would be tried, up to the end."""

_TEXT_OR_NUMBER = re.compile(rb'"(?:[^"\\]|\\.)*+"|-?[0-9][0-9.eE+-]*', re.DOTALL)

_POSITION = re.compile(r" at (line \d+) column \d+$")
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*+"(\s*:)?|"|[\[{]|[\]}]', re.DOTALL)
"""A text, which is a key if a colon follows; one that does not end; an opening or a closing bracket."""

KINDS = {
    "EOF while parsing": "is cut off",
    "recursion limit": f"is nested more than {limits.DEEPEST} levels deep (DEEPEST)",
    "number out of range": f"has a number of more than {limits.MOST_DIGITS} digits (MOST_DIGITS)",
    "invalid unicode": "is not UTF-8 text",
    "lone leading surrogate": "has half of a surrogate pair",
    "unexpected end of hex escape": "has half of a surrogate pair",
    "trailing characters": "has something after its end",
}
"""The beginning of the library's words, and what a person reads."""

CUT_OFF = KINDS["EOF while parsing"]
TOO_LARGE = f"has more than {limits.LARGEST_ANSWER} bytes (LARGEST_ANSWER)"


class Unreadable(ValueError):
    """A text is not JSON, or not JSON that is accepted; ``found`` is a predicate, such as ``is cut off``."""

    def __init__(self, found: str) -> None:
        self.found = found
        super().__init__(found)

    @property
    def cut_off(self) -> bool:
        """Whether there may be more of it than arrived."""
        return self.found in (CUT_OFF, TOO_LARGE)


def read(text: bytes | str, most: int = limits.LARGEST_ANSWER, most_values: int = limits.MOST_ANSWER_VALUES) -> Any:
    """Parse JSON of at most ``most`` bytes. Raises Unreadable."""
    try:
        raw = text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError:
        raise Unreadable("has half of a surrogate pair") from None
    if len(raw) > most:
        raise Unreadable(TOO_LARGE)
    if _has_more(raw, most_values):
        raise Unreadable(f"has more than {most_values} values (MOST_ANSWER_VALUES)")
    try:
        value = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        found = _found(raw, str(error))
    else:
        if _SUSPECTS.search(raw):
            _check_numbers(raw)
        return value
    # Raised outside the handler, because a traceback may repeat the input.
    raise Unreadable(found)


def is_too_large(raw: bytes, most: int, most_values: int) -> bool:
    """Return whether JSON has more bytes or values than ``read`` accepts."""
    return len(raw) > most or _has_more(raw, most_values)


def read_object(
    text: bytes | str, most: int = limits.LARGEST_ANSWER, most_values: int = limits.MOST_ANSWER_VALUES
) -> dict[str, Any]:
    """Parse a JSON object of at most ``most`` bytes. Raises Unreadable."""
    value = read(text, most, most_values)
    if not isinstance(value, dict):
        raise Unreadable("is not a JSON object")
    return value


def parts(raw: bytes, depth: int) -> dict[tuple[str, ...], bytes]:
    """Return the values in an object, down to ``depth``, each under its keys and still as JSON.

    This also works if one of the values cannot be read; the last ones are incomplete if the text is cut off.
    """
    found: dict[tuple[str, ...], bytes] = {}
    keys, starts, level, end, whole = list[str](), list[int](), 0, len(raw), len(raw.rstrip())

    def close(at: int) -> None:
        """End the values at this level and below it."""
        while keys and len(keys) >= level:
            found[tuple(keys)] = raw[starts.pop() : at].strip(b", \t\r\n")
            keys.pop()

    for token in _TOKEN.finditer(raw):
        text = token[0]
        if text in b"[{":
            level += 1
        elif text in b"]}":
            close(token.start())
            level -= 1
        elif text == b'"' or (token.end() == whole and text.startswith(b'"') and not token[1]):
            at = token.start()
            end = at if raw[max(0, at - 2) : at].endswith((b",", b", ")) else end  # of a key that is cut off
            break
        elif token[1] and level <= depth and len(keys) >= level - 1:
            close(token.start())
            keys.append(text.partition(b'"')[2].rpartition(b'"')[0].decode(errors="replace"))
            starts.append(token.end())
    level = 0
    close(end)
    return found


def _has_more(raw: bytes, most: int) -> bool:
    """Return whether there are more values than that, before they take memory. What stands in texts does not count."""
    if len(raw) <= most or 1 + _separators(raw) <= most:
        return False
    values, done = 1, 0
    for texts, text in enumerate(_TEXT.finditer(raw)):
        values += _separators(raw[done : text.start()])
        done = text.end()
        if values > most or texts > 2 * most:  # a value has two texts at most, its key and itself
            return True
    return values + _separators(raw[done:]) > most


def _separators(raw: bytes) -> int:
    """Count what stands before values: a comma, or a bracket that opens and does not close at once."""
    return sum(map(raw.count, (b",", b"[", b"{"))) - raw.count(b"{}") - raw.count(b"[]")


def _found(raw: bytes, words: str) -> str:
    """Return what a person reads for the library's own words."""
    if not raw.strip():
        return "is empty"
    if raw.lstrip()[:1] == b"<":
        return "is HTML or XML, not JSON"
    known = next((found for words_, found in KINDS.items() if words.startswith(words_)), "")
    position = _POSITION.search(words)
    return known or (f"is not JSON in {position[1]}" if position else "is not JSON")


def _check_numbers(raw: bytes) -> None:
    """Raise Unreadable for a number in JSON that is too long or infinite."""
    for found in _TEXT_OR_NUMBER.finditer(raw):
        number = found[0]
        if number.startswith(b'"'):
            continue
        if number.lstrip(b"-").isdigit():
            if len(number.lstrip(b"-")) > limits.MOST_DIGITS:
                raise Unreadable(KINDS["number out of range"])
        elif not math.isfinite(float(number)):
            raise Unreadable("has a number that is too large")
