"""W&B's GraphQL API: several operations in one request where the server accepts that, and retries of what is safe to repeat.

The SDK's own client for launch operations is private and starts a helper process, so the few operations needed are written
out. Their texts and variable types are those of wandb/sdk/launch/api.py and wandb/apis/public/{jobs,sweeps}.py (0.31.0).
W&B runs aliased mutations of one request one after another and answers them together. Errors quote W&B, cut between words
only, so that the exits find whole keys to redact.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, TypeVar

import requests
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry, if_exception_type
from urllib3.exceptions import NewConnectionError

from vertex_launch import __version__, json_reader
from vertex_launch.adapters.http_body import body_of
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import KeyRefused, Unavailable
from vertex_launch.json_reader import Unreadable
from vertex_launch.limits import LONGEST_ID
from vertex_launch.log import LOGGER, shorten
from vertex_launch.model import RunId
from vertex_launch.problems import kind as kind_of
from vertex_launch.problems import redact
from vertex_launch.settings.config import Settings

T = TypeVar("T")

REGISTRY = "model-registry"
"""The project that owns an entity's launch queues (LAUNCH_DEFAULT_PROJECT in wandb/sdk/launch/utils.py)."""

SERVICE = "W&B"


class RenewableKey(Key, Protocol):
    """A key that can be read again."""

    def renew(self, refused: str) -> str:
        """Return the key, read again because W&B refused ``refused``. Raises Unavailable."""


class Retryable(Exception):
    """The request may be sent again: it did nothing, or doing it twice is harmless."""


class RequestRefused(Unavailable):
    """W&B refused the whole request before it did any part of it."""


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

    def results(self, count: int) -> list[Result]:
        """Return the answers to the first ``count`` fields, as far as each of them can be read."""
        found = json_reader.parts(self.content, 3)
        return [self._part(found, ("data", f"f{i}")) for i in range(count)]

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


BACKOFF = Retry(predicate=if_exception_type(Retryable), initial=0.2, multiplier=2.0, maximum=2.0)
"""Pauses between two attempts, at random between nothing and twice as long each time."""

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

_VARIABLE = re.compile(r"\$(\w+):([\w!\[\]]+)")


class Field:
    """One field of a request: its text, in which each variable stands with its type (``$name:String!``), and their values."""

    def __init__(self, text: str, **variables: Any) -> None:
        self.text = text
        self.variables = variables


@dataclass(frozen=True)
class Result:
    """The answer to one field: an object, or W&B's own words on why there is none; ``lost`` if nothing is known.

    With ``unreadable`` the object has only what could be read of it.
    """

    value: Mapping[str, Any] | None = None
    error: str = ""
    lost: bool = False
    unreadable: Unreadable | None = None

    def get(self, name: str) -> Any:
        """Return one entry of the value, None if it has none."""
        return self.value.get(name) if self.value else None

    def lacks(self, name: str) -> bool:
        """Return whether W&B says that the entry does not exist. A missing answer does not say that."""
        return not (self.error or self.lost) and (self.value is None or self.value.get(name, "") is None)

    def refusal(self, what: str, lacking: str = "the answer is empty") -> Unavailable:
        """Return the error for a value that is missing; ``lacking`` is the reason if W&B does not name one."""
        return Unavailable(SERVICE, f"{what}: {self.error or lacking}", code=Code.WANDB_REFUSED)


class QueryMode(NamedTuple):
    """How a server accepts questions.

    ``batched``: several operations in one request. ``extended``: with fields that some servers lack, which are the content
    of a queue and a run's last heartbeat.
    """

    batched: bool
    extended: bool


MODES = (QueryMode(True, True), QueryMode(True, False), QueryMode(False, True), QueryMode(False, False))
"""The best mode first."""


class WandbServer:
    """One W&B server, and the modes in which it has not yet refused a question."""

    def __init__(
        self,
        settings: Settings,
        key: RenewableKey,
        *,
        backoff: Retry = BACKOFF,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._settings = settings
        self._url = f"{settings.base_url.rstrip('/')}/graphql"
        self._timeout = (settings.timeouts.connect, settings.timeouts.read)
        self._batches = settings.batches
        self._key = key
        self._session = requests.Session()
        self._session.headers.update({"User-Agent": settings.user_agent or user_agent(), "Accept-Encoding": "gzip"})
        self._backoff = backoff
        self._clock = clock
        self._sleep = sleep
        self._quiet_until = 0.0
        """Until when W&B takes no request."""
        self._modes: tuple[QueryMode, ...] = MODES
        self._run_modes: tuple[QueryMode, ...] = MODES

    def _ask(self, question: Field) -> Result:
        return self._request("query", [question])[0]

    def _batch(
        self,
        fields: Sequence[Field],
        size: int,
        *,
        kind: str = "mutation",
        repeatable: bool = True,
        within: float = math.inf,
    ) -> list[Result]:
        """Send operations in as few requests as possible; a failed request does not affect the others.

        The operations of a batch that the server refuses as a whole are sent one by one. If that succeeds, so are all later
        ones. No request starts after the read timeout, or ``within`` seconds from now.
        """
        until = self._clock() + min(self._timeout[1], within)
        batched = self._modes[0].batched
        waiting, results = list(fields), list[Result]()
        while waiting and self._clock() < until:
            chunk = waiting[: size if batched else 1]
            try:
                left = until - self._clock()
                results += self._request(kind, chunk, repeatable=repeatable, within=left)
            except RequestRefused as error:
                if len(chunk) > 1:
                    LOGGER.info("W&B refuses %d operations in one request: %s", len(chunk), error.reason)
                    batched = False
                    continue
                results.append(Result(error=error.reason))
            except UnreadableAnswer as error:
                results += error.results(len(chunk))
            except Unavailable as error:
                results += [Result(error=error.reason, lost=True)] * len(chunk)
            else:
                self._modes = tuple(mode for mode in self._modes if batched or not mode.batched)
            waiting = waiting[len(chunk) :]
        unsent = Result(error="not sent, because no time was left for it", lost=True)
        return results + [unsent] * len(waiting)

    def _request(
        self, kind: str, fields: Sequence[Field], *, repeatable: bool = True, within: float = math.inf
    ) -> list[Result]:
        """Send one request and return the answers in the order of its fields. Raises RequestRefused, Unavailable.

        Retries start at most ``within`` seconds from now.
        """
        document, variables = _document(kind, fields)
        body = self._send({"query": document, "variables": variables}, repeatable, within)
        errors: dict[str, list[str]] = {}
        for error in dicts(body.get("errors")):
            path = error.get("path")
            field_alias = text_of(path[0]) if isinstance(path, list) and path else ""
            errors.setdefault(field_alias, []).append(_quoted(text_of(error.get("message"))))
        data = body.get("data")
        if not isinstance(data, dict):
            if not errors.keys() - {""}:
                words = "; ".join(errors.get("", ["an answer without data"]))
                raise RequestRefused(SERVICE, f"the request failed: {words}", code=Code.WANDB_REFUSED)
            data = {}
        return [_result(data, errors, f"f{i}") for i in range(len(fields))]

    def _send(self, body: Mapping[str, Any], repeatable: bool, within: float) -> dict[str, Any]:
        """Post a request with retries if it is repeatable; read a refused key again once."""
        until, key = self._clock() + within, self._key.get()
        try:
            return self._repeat(body, key, repeatable, until)
        except KeyRefused:
            return self._repeat(body, self._key.renew(key), repeatable, until)

    def _repeat(
        self, body: Mapping[str, Any], key: str, repeatable: bool, until: float, *, waited: bool = False
    ) -> dict[str, Any]:
        until = min(until, self._clock() + self._timeout[1])
        self._wait_for_limit(until)
        left = until - self._clock()
        if left <= 0:  # reading the key took it
            raise Unavailable(SERVICE, "no time was left to send the request", code=Code.WANDB_UNAVAILABLE)
        try:
            return self._backoff.with_timeout(left)(self._post)(body, key, repeatable)  # type: ignore[no-any-return]
        except RateLimited as error:
            limited, self._quiet_until = error, self._clock() + error.seconds
        except RetryError as error:
            trouble = f"the request and its retries failed: {error.cause}"
            raise Unavailable(SERVICE, trouble, code=Code.WANDB_UNAVAILABLE) from error
        if waited or not repeatable or self._quiet_until >= until:
            raise limited
        return self._repeat(body, key, repeatable, until, waited=True)

    def _wait_for_limit(self, until: float) -> None:
        """Wait until W&B takes requests again. Raises RateLimited if that is not before ``until``, or if it is over now."""
        wait = self._quiet_until - self._clock()
        if wait <= 0:
            return
        if self._quiet_until >= until:
            raise RateLimited("the limit of an earlier answer lasts", wait)
        self._sleep(wait)

    def _post(self, body: Mapping[str, Any], key: str, repeatable: bool) -> dict[str, Any]:
        how: dict[str, Any] = {"auth": ("api", key), "timeout": self._timeout, "allow_redirects": False}
        try:
            with self._session.post(self._url, json=body, stream=True, **how) as response:
                content = body_of(response, self._clock() + self._timeout[1], self._clock)
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            cause = getattr(cause, "reason", None) or cause
            trouble = f"no answer from {self._url}: {cause}"
            if repeatable or isinstance(error, requests.ConnectTimeout) or isinstance(cause, NewConnectionError):
                raise Retryable(trouble) from error
            raise Unavailable(SERVICE, trouble, code=Code.WANDB_UNAVAILABLE) from error
        return _parsed(response, content, repeatable)


def user_agent() -> str:
    """Return what the product calls itself: W&B's servers accept some questions only from clients that they know."""
    return f"vertex-launch/{__version__} W&B Public Client {version('wandb')}"


def in_best_mode(modes: Sequence[QueryMode], ask: Callable[[QueryMode], T]) -> tuple[T, tuple[QueryMode, ...]]:
    """Ask in the first of these modes that the server does not refuse; return the answer and the modes that are left."""
    *better, last = modes
    for mode in better:
        try:
            return ask(mode), tuple(modes[modes.index(mode) :])
        except RequestRefused as error:
            LOGGER.info("W&B refuses a question, so a simpler one follows: %s", error.reason)
    return ask(last), (last,)


def chunks(values: list[T], size: int) -> Iterator[list[T]]:
    """Split a list into parts of at most this size."""
    return (values[i : i + size] for i in range(0, len(values), size))


def project_field(of: RunId, selection: str) -> Field:
    """Return the question about a run or a sweep in its project; ``selection`` has ``$id:String!``."""
    text = f"project(name: $project:String!, entityName: $entity:String!) {{ {selection} }}"
    return Field(text, project=of.project, entity=of.entity, id=of.id)


def _parsed(response: requests.Response, content: bytes | Unreadable, repeatable: bool) -> dict[str, Any]:
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
    # One failed field may give the whole answer a bad status.
    has_value = isinstance(data, dict) and any(value is not None for value in data.values())
    if status == 401 and not has_value and "relogin required" in quoted:
        text = f"W&B accepts no request of a client with this name, {quoted}. Set user_agent to a name that it accepts"
        raise Unavailable(SERVICE, text, code=Code.WANDB_CLIENT)
    if status == 401 and not has_value:
        text = f"the API key is refused, {quoted}. Add a valid key of this server to the secret, as a new version"
        raise KeyRefused(SERVICE, text, code=Code.WANDB_KEY_REFUSED)
    if status == 429:
        raise RateLimited(quoted, _reset(response))
    if response.is_redirect:
        text = f"{response.url} redirects to {response.headers['Location']}. Correct WANDB_BASE_URL or base_url"
        raise Unavailable(SERVICE, text, code=Code.WANDB_ADDRESS)
    if status >= 500 and not has_value:
        if repeatable:
            raise Retryable(quoted)
        raise Unavailable(SERVICE, f"the request failed, {quoted}", code=Code.WANDB_UNAVAILABLE)
    if not answered:
        refusal = RequestRefused if status in MAYBE_TOO_LARGE else Unavailable
        remedy = REMEDIES.get(status, "Check WANDB_BASE_URL and any proxy")
        raise refusal(SERVICE, f"this is not a GraphQL answer, {quoted}. {remedy}", code=Code.WANDB_ADDRESS)
    if not has_value and not any(error.get("path") for error in dicts(body.get("errors"))):
        remedy = f". {REMEDIES[status]}" if status in REMEDIES else ""
        raise RequestRefused(SERVICE, f"the request is refused, {quoted}{remedy}", code=Code.WANDB_REFUSED)
    return body


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
    beginning = content[: 10 * LONGEST_QUOTE] if isinstance(content, bytes) else b""
    return _quoted("; ".join(messages) or re.sub(r"<[^>]*>", " ", beginning.decode(errors="replace")))


def _quoted(text: str) -> str:
    """Return words of W&B as messages repeat them."""
    return shorten(" ".join(redact(text[: 20 * LONGEST_QUOTE]).split()), LONGEST_QUOTE) or "(nothing more)"


def _document(kind: str, fields: Sequence[Field]) -> tuple[str, dict[str, Any]]:
    """Join fields into one document, each under an alias ``f<n>`` and with variables of its own."""
    declared: list[str] = []
    values: dict[str, Any] = {}
    selected: list[str] = []
    for i, one in enumerate(fields):
        declared += [f"${name}_{i}: {type_}" for name, type_ in dict(_VARIABLE.findall(one.text)).items()]
        values |= {f"{name}_{i}": value for name, value in one.variables.items()}
        selected.append(f"f{i}: " + _VARIABLE.sub(rf"$\1_{i}", one.text))
    head = f"{kind} VertexLaunch" + (f"({', '.join(declared)})" if declared else "")
    return f"{head} {{ {' '.join(selected)} }}", values


def _result(data: Mapping[str, Any], errors: Mapping[str, Sequence[str]], alias: str) -> Result:
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
