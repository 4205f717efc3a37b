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
from functools import cache
from importlib.metadata import version
from typing import Any, NamedTuple, Protocol, TypeVar

import requests
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry, if_exception_type
from urllib3.exceptions import NewConnectionError

from vertex_launch import __version__
from vertex_launch.adapters.http_body import body_of
from vertex_launch.adapters.wandb_answer import (
    SERVICE,
    NotSent,
    RateLimited,
    RequestRefused,
    Result,
    Retryable,
    UnreadableAnswer,
    dicts,
    parse,
    quote,
    result_of,
    text_of,
)
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import KeyRefused, Unavailable
from vertex_launch.log import LOGGER
from vertex_launch.model import Pace, RunId
from vertex_launch.settings.config import Settings

T = TypeVar("T")

REGISTRY = "model-registry"
"""The project that owns an entity's launch queues (LAUNCH_DEFAULT_PROJECT in wandb/sdk/launch/utils.py)."""


class RenewableKey(Key, Protocol):
    """A key that can be read again."""

    def renew(self, refused: str) -> str:
        """Return the key, read again because W&B refused ``refused``. Raises Unavailable."""


BACKOFF = Retry(predicate=if_exception_type(Retryable), initial=0.2, multiplier=2.0, maximum=2.0)
"""Pauses between two attempts, at random between nothing and twice as long each time."""


_VARIABLE = re.compile(r"\$(\w+):([\w!\[\]]+)")


class Field:
    """One field of a request: its text, in which each variable stands with its type (``$name:String!``), and their values."""

    def __init__(self, text: str, **variables: Any) -> None:
        self.text = text
        self.variables = variables


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
        pace: Pace | None = None,
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
        self._pace = pace or Pace()
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
            chunk = waiting[: min(size, self._pace.operations) if batched else 1]
            try:
                answers = self._timed(kind, chunk, repeatable=repeatable, within=until - self._clock())
            except RequestRefused as error:
                if len(chunk) > 1:
                    LOGGER.info("W&B refuses %d operations in one request: %s", len(chunk), error.reason)
                    batched = False
                    continue
                answers = [Result(error=error.reason)]
            except UnreadableAnswer as error:
                answers = error.results(len(chunk))
            except Unavailable as error:
                answers = [Result(error=error.reason, lost=True)] * len(chunk)
            else:
                self._modes = tuple(mode for mode in self._modes if batched or not mode.batched)
                if repeatable and len(chunk) > 1:
                    answers = self._completed(kind, chunk, answers, until)
            results += answers
            waiting = waiting[len(chunk) :]
        unsent = Result(error="not sent, because no time was left for it", lost=True)
        return results + [unsent] * len(waiting)

    def _timed(self, kind: str, fields: Sequence[Field], *, repeatable: bool, within: float) -> list[Result]:
        """Send one request, and adapt how many operations the next ones have. Raises as ``_request``.

        W&B runs the operations of a request one after another, so that many slow ones are not answered in time.
        """
        sent, count = self._clock(), len(fields)
        try:
            answers = self._request(kind, fields, repeatable=repeatable, within=within)
        except NotSent:
            raise
        except Unavailable as error:
            if error.message.code is Code.WANDB_UNAVAILABLE:  # a refusal says nothing about the time
                self._pace.slower(count)
                LOGGER.info("W&B did not answer %d operations, so at most %d follow", count, self._pace.operations)
            raise
        took = self._clock() - sent
        if count > 1:
            LOGGER.info("W&B took %.2f s for each of %d operations", took / count, count)
        if took > self._timeout[1] / 2:
            self._pace.slower(count)
        else:
            self._pace.faster(count)
        return answers

    def _completed(self, kind: str, fields: Sequence[Field], answers: Sequence[Result], until: float) -> list[Result]:
        """Send the operations one by one that an answer leaves out, as it does if one field makes all others null."""
        complete = list(answers)
        for index, answer in enumerate(answers):
            if answer.lost and self._clock() < until:
                complete[index] = self._batch([fields[index]], 1, kind=kind, within=until - self._clock())[0]
        return complete

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
            errors.setdefault(field_alias, []).append(quote(text_of(error.get("message"))))
        data = body.get("data")
        if not isinstance(data, dict):
            if not errors.keys() - {""}:
                words = "; ".join(errors.get("", ["an answer without data"]))
                raise RequestRefused(SERVICE, f"the request failed: {words}", code=Code.WANDB_REFUSED)
            data = {}
        return [result_of(data, errors, f"f{i}") for i in range(len(fields))]

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
            raise NotSent(SERVICE, "no time was left to send the request", code=Code.WANDB_UNAVAILABLE)
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
        return parse(response, content, repeatable)


@cache
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
