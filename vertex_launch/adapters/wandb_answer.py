"""What W&B answers: values, refusals, limits, and what cannot be read. Errors quote W&B, cut between words only.

So the exits find whole keys to redact.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import requests

from vertex_launch import json_reader
from vertex_launch.codes import Code
from vertex_launch.errors import KeyRefused, Unavailable
from vertex_launch.json_reader import Unreadable
from vertex_launch.limits import LONGEST_ID
from vertex_launch.log import shorten
from vertex_launch.problems import kind as kind_of
from vertex_launch.problems import redact

SERVICE = "W&B"


class Retryable(Exception):
    """The request may be sent again: it did nothing, or doing it twice is harmless."""


class RequestRefused(Unavailable):
    """W&B refused the whole request before it did any part of it."""

    suspects: Sequence[str] = ()
    """The optional parts of the document that may be the reason."""
    is_sure = False
    """Whether W&B says that the suspect is the reason."""
    answers: Sequence[Result] = ()
    """What it answered nevertheless."""


class NotSent(Unavailable):
    """There was no time to send the request."""


class RateLimited(Unavailable):
    """W&B takes no request of this key's user for so many ``seconds``."""

    def __init__(self, reason: str, seconds: float) -> None:
        self.seconds = seconds
        text = f"{reason}. W&B takes no more requests of this key's user for {seconds:.0f} s"
        super().__init__(SERVICE, text, code=Code.WANDB_RATE_LIMIT)


class UnreadableAnswer(Unavailable):
    """W&B accepted the request, but what it answered is not the JSON of an answer. No message quotes any of it."""

    def __init__(self, url: str, status: int, content: bytes | Unreadable, why: Unreadable) -> None:
        self.content = content if isinstance(content, bytes) else b""
        self.why = why
        is_json = isinstance(content, Unreadable) or content.lstrip().startswith(b"{")
        code = Code.WANDB_ANSWER if is_json and why.found != NO_ANSWER else Code.WANDB_ADDRESS
        text = f"the answer from {url} {why.found} (HTTP {status})"
        remedy = "Check WANDB_BASE_URL and any proxy" if code is Code.WANDB_ADDRESS else "The next pass asks again"
        super().__init__(SERVICE, f"{text}. {remedy}", code=code)

    def results(self, count: int) -> Iterator[Result]:
        """Return the answers to the first ``count`` fields, as far as each can be read, which is done when its turn comes."""
        found = json_reader.parts(self.content, 3)
        return (self._part(found, ("data", f"f{i}")) for i in range(count))

    def _part(self, found: Mapping[tuple[str, ...], bytes], field: tuple[str, ...]) -> Result:
        lost = Result(error=self.reason, lost=True, unreadable=self.why)
        if field not in found:
            return lost
        try:
            value = json_reader.read(found[field])
        except Unreadable as error:
            inner = {keys[-1]: text for keys, text in found.items() if keys[:-1] == field}
            return replace(lost, value=_readable(inner), unreadable=self.why if error.cut_off else error)
        # A null may have an error beside it that was not read.
        return Result(value) if isinstance(value, dict) else lost


MAYBE_TOO_LARGE = (400, 413, 422)
"""Statuses with which a proxy also refuses a request for its size or its form."""


REMEDIES = {
    403: "Check what the API key has access to, WANDB_BASE_URL, and any proxy",
    404: "Check WANDB_BASE_URL: /graphql is added to it, so it must not have a path of its own",
}
"""What to do about a status that concerns a whole request."""


NO_ANSWER = "is not a GraphQL answer"


LONGEST_QUOTE = 300
"""Characters of W&B's own words in a message."""


RESET = 5.0
"""Seconds to wait after an answer 429 that does not say when W&B takes requests again."""


@dataclass(frozen=True)
class Result:
    """The answer to one field: an object, or W&B's own words on why there is none; ``lost`` if nothing is known.

    With ``unreadable`` the object has only what could be read of it. ``refused`` is a field that W&B does not take at all.
    """

    value: Mapping[str, Any] | None = None
    error: str = ""
    lost: bool = False
    unreadable: Unreadable | None = None
    refused: bool = False

    def get(self, name: str) -> Any:
        """Return one entry of the value, None if it has none."""
        return self.value.get(name) if self.value else None

    def lacks(self, name: str) -> bool:
        """Return whether W&B says that the entry does not exist. A missing answer does not say that."""
        return not (self.error or self.lost) and (self.value is None or self.value.get(name, "") is None)

    def refusal(self, what: str, lacking: str = "the answer is empty") -> Unavailable:
        """Return the error for a value that is missing; ``lacking`` is the reason if W&B does not name one."""
        return Unavailable(SERVICE, f"{what}: {self.error or lacking}", code=Code.WANDB_REFUSED)


def parse(response: requests.Response, content: bytes | Unreadable, repeatable: bool) -> dict[str, Any]:
    """Return a response's JSON object. Raises KeyRefused, Retryable, RequestRefused, Unavailable."""
    status, body, why = response.status_code, dict[str, Any](), Unreadable(NO_ANSWER)
    try:
        if isinstance(content, Unreadable):
            raise content
        body = json_reader.read_object(content)
    except Unreadable as error:
        why = error
    answered = "data" in body or "errors" in body
    if answered and status == 200:
        return body
    if 200 <= status < 300 and not answered:
        raise UnreadableAnswer(response.url, status, content, why)
    quoted = f"HTTP {status} from {response.url}: {_words(content, body)}"
    data = body.get("data")
    # One failed field may give the whole answer a bad status, and make everything around it null.
    has_value = isinstance(data, dict) and any(value is not None for value in data.values())
    depth = max((len(path_of(error)) for error in dicts(body.get("errors"))), default=0)
    has_value = has_value or depth > 1
    if status == 401 and not has_value and "relogin required" in quoted:
        text = f"W&B accepts no request of a client with this name, {quoted}. Set user_agent to a name that it accepts"
        raise RequestRefused(SERVICE, text, code=Code.WANDB_CLIENT)
    if status == 401 and not has_value:
        text = f"the API key is refused, {quoted}. Add a valid key of this server to the secret, as a new version"
        raise KeyRefused(SERVICE, text, code=Code.WANDB_KEY_REFUSED)
    if status == 429:
        raise RateLimited(quoted, _reset(response))
    if response.is_redirect:
        text = f"{response.url} redirects to {response.headers['Location']}. Correct WANDB_BASE_URL or base_url"
        raise Unavailable(SERVICE, text, code=Code.WANDB_ADDRESS)
    if status >= 500 and not has_value and not depth:
        if repeatable:
            raise Retryable(quoted)
        raise Unavailable(SERVICE, f"the request failed, {quoted}", code=Code.WANDB_UNAVAILABLE)
    if not answered:
        refusal = RequestRefused if status in MAYBE_TOO_LARGE else Unavailable
        remedy = REMEDIES.get(status, "Check WANDB_BASE_URL and any proxy")
        raise refusal(SERVICE, f"this is not a GraphQL answer, {quoted}. {remedy}", code=Code.WANDB_ADDRESS)
    if not has_value and not depth:
        remedy = f". {REMEDIES[status]}" if status in REMEDIES else ""
        raise RequestRefused(SERVICE, f"the request is refused, {quoted}{remedy}", code=Code.WANDB_REFUSED)
    return body


def path_of(error: Mapping[str, Any]) -> list[Any]:
    """Return where in the answer an error is, empty if it does not say."""
    path = error.get("path")
    return path if isinstance(path, list) else []


def _reset(response: requests.Response) -> float:
    """Return the seconds after which W&B takes requests again, at most an hour."""
    for name in ("RateLimit-Reset", "Retry-After"):
        with suppress(ValueError):
            seconds = float(response.headers.get(name, ""))
            if math.isfinite(seconds):
                return min(max(seconds, 0.1), 3600)
    return RESET


def _words(content: bytes | Unreadable, body: Mapping[str, Any]) -> str:
    """Return the words of a server that refuses a request, shortened and without markup and keys."""
    messages = [text_of(error.get("message")) for error in dicts(body.get("errors"))]
    text = content.decode(errors="replace") if isinstance(content, bytes) else ""
    return quote("; ".join(messages) or re.sub(r"<[^>]*>", " ", shorten(text, 10 * LONGEST_QUOTE)))


def quote(text: str) -> str:
    """Return words of W&B as messages repeat them."""
    return shorten(" ".join(redact(shorten(text, 20 * LONGEST_QUOTE)).split()), LONGEST_QUOTE) or "(nothing more)"


def result_of(data: Mapping[str, Any], errors: Mapping[str, Sequence[str]], alias: str) -> Result:
    """Return one field's answer. A null beside an error is not absence, and a field that is left out has no answer.

    An error that names no field may be about any field that is null or has a null in it.
    """
    if alias not in data and alias not in errors:
        return Result(error="the answer leaves this operation out", lost=True)
    value = data.get(alias)
    if not isinstance(value, dict | None):
        return Result(error=f"the answer to this operation is {kind_of(value)}, not an object", lost=True)
    lacking = None in (value.values() if value else [value])
    words = errors.get(alias) or (errors.get("", ()) if lacking else ())
    return Result(value, "; ".join(words))


# Fields of an answer, whatever type they have


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects of a list, none if the value is not a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def mapping_of(value: Any) -> Mapping[str, Any]:
    """Return a JSON object, an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def text_of(value: Any) -> str:
    """Return a text, or a number as text, which is how some servers write ids; the empty text for anything else."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) else ""


def id_of(value: Any) -> str:
    """Return an id or a name, the empty text for what cannot be one."""
    text = text_of(value)
    return text if len(text) <= LONGEST_ID else ""


def _readable(parts: Mapping[str, bytes]) -> dict[str, Any]:
    """Return those parts of an object that can be read."""
    found = {}
    for name, text in parts.items():
        with suppress(Unreadable):
            found[name] = json_reader.read(text)
    return found
