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
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import requests
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry, if_exception_type
from urllib3.exceptions import NewConnectionError

from vertex_launch import __version__
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import KeyRefused, Unavailable
from vertex_launch.log import LOGGER, shorten
from vertex_launch.model import RunId
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


BACKOFF = Retry(predicate=if_exception_type(Retryable), initial=0.2, multiplier=2.0, maximum=2.0)
"""Pauses between two attempts, at random between nothing and twice as long each time."""

MAYBE_TOO_LARGE = (400, 413, 422)
"""Statuses with which a proxy also refuses a request for its size or its form."""

REMEDIES = {
    403: "Check what the API key has access to, WANDB_BASE_URL, and any proxy",
    404: "Check WANDB_BASE_URL: /graphql is added to it, so it must not have a path of its own",
}
"""What to do about a status that concerns a whole request."""


_VARIABLE = re.compile(r"\$(\w+):([\w!\[\]]+)")


class Field:
    """One field of a request: its text, in which each variable stands with its type (``$name:String!``), and their values."""

    def __init__(self, text: str, **variables: Any) -> None:
        self.text = text
        self.variables = variables


@dataclass(frozen=True)
class Result:
    """The answer to one field: a value, or W&B's own words on why there is none; ``lost`` if nothing is known."""

    value: Any = None
    error: str = ""
    lost: bool = False

    def get(self, name: str) -> Any:
        """Return one entry of the value, None if it has none."""
        return self.value.get(name) if isinstance(self.value, dict) else None

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
    ) -> None:
        self._settings = settings
        self._url = f"{settings.base_url.rstrip('/')}/graphql"
        self._timeout = (settings.timeouts.connect, settings.timeouts.read)
        self._batches = settings.batches
        self._key = key
        self._session = requests.Session()
        self._session.headers["User-Agent"] = f"vertex-launch/{__version__}"
        self._backoff = backoff
        self._clock = clock
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
        while waiting and (not results or self._clock() < until):
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
            except Unavailable as error:
                results += [Result(error=error.reason, lost=True)] * len(chunk)
            else:
                self._modes = tuple(mode for mode in self._modes if batched or not mode.batched)
            waiting = waiting[len(chunk) :]
        unsent = Result(error="not sent, because the requests before it took too long", lost=True)
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
            field_alias = str(path[0]) if isinstance(path, list) and path else ""
            errors.setdefault(field_alias, []).append(str(error.get("message", error)))
        data = body.get("data")
        if not isinstance(data, dict):
            if not errors.keys() - {""}:
                words = "; ".join(errors.get("", ["an answer without data"]))
                raise RequestRefused(SERVICE, f"the request failed: {words}", code=Code.WANDB_REFUSED)
            data = {}
        return [_result(data, errors, f"f{i}") for i in range(len(fields))]

    def _send(self, body: Mapping[str, Any], repeatable: bool, within: float) -> dict[str, Any]:
        """Post a request with retries if it is repeatable; read a refused key again once."""
        key, retry = self._key.get(), self._backoff.with_timeout(min(self._timeout[1], within))
        try:
            try:
                return retry(self._post)(body, key, repeatable)  # type: ignore[no-any-return]
            except KeyRefused:
                return retry(self._post)(body, self._key.renew(key), repeatable)  # type: ignore[no-any-return]
        except RetryError as error:
            trouble = f"the request and its retries failed: {error.cause}"
            raise Unavailable(SERVICE, trouble, code=Code.WANDB_UNAVAILABLE) from error

    def _post(self, body: Mapping[str, Any], key: str, repeatable: bool) -> dict[str, Any]:
        try:
            response = self._session.post(
                self._url, json=body, auth=("api", key), timeout=self._timeout, allow_redirects=False
            )
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            cause = getattr(cause, "reason", None) or cause
            trouble = f"no answer from {self._url}: {cause}"
            if repeatable or isinstance(error, requests.ConnectTimeout) or isinstance(cause, NewConnectionError):
                raise Retryable(trouble) from error
            raise Unavailable(SERVICE, trouble, code=Code.WANDB_UNAVAILABLE) from error
        return _parsed(response, repeatable)


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


def _parsed(response: requests.Response, repeatable: bool) -> dict[str, Any]:
    """Return a response's JSON object. Raises KeyRefused, Retryable, RequestRefused, Unavailable."""
    status, body = response.status_code, _json(response)
    answered = "data" in body or "errors" in body
    if answered and status == 200:
        return body
    quoted = f"HTTP {status} from {response.url}: {_words(response, body)}"
    if status == 401:
        text = f"the API key is refused, {quoted}. Add a valid key of this server to the secret, as a new version"
        raise KeyRefused(SERVICE, text, code=Code.WANDB_KEY_REFUSED)
    if status in (429, 503):
        raise Retryable(quoted)
    if response.is_redirect:
        text = f"{response.url} redirects to {response.headers['Location']}. Correct WANDB_BASE_URL or base_url"
        raise Unavailable(SERVICE, text, code=Code.WANDB_ADDRESS)
    data = body.get("data")
    # One failed field may give the whole answer a bad status.
    has_value = isinstance(data, dict) and any(value is not None for value in data.values())
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


def _json(response: requests.Response) -> dict[str, Any]:
    """Return the JSON object of a response, an empty one if it has none."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _words(response: requests.Response, body: Mapping[str, Any]) -> str:
    """Return the server's own words, shortened and without markup."""
    messages = [str(error.get("message", "")) for error in dicts(body.get("errors"))]
    text = "; ".join(messages) or re.sub(r"<[^>]*>", " ", response.text)
    return shorten(" ".join(text.split()), 300) or "(nothing more)"


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
    lacking = None in (value.values() if isinstance(value, dict) else [value])
    words = errors.get(alias) or (errors.get("", ()) if lacking else ())
    return Result(value, "; ".join(words))


def dicts(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects of a list, none if the value is not a list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
