"""W&B's GraphQL API: several operations in one request where the server accepts that, and retries of what is safe to repeat.

The SDK's own client for launch operations is private and starts a helper process, so the few operations needed are written
out. Their texts and variable types are those of wandb/sdk/launch/api.py and wandb/apis/public/{jobs,sweeps}.py (0.31.0).
W&B runs aliased mutations of one request one after another and answers them together. Errors quote W&B, cut between words
only, so that the exits find whole keys to redact.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from itertools import chain
from typing import Any, Protocol, TypeVar

import requests
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry, if_exception_type
from urllib3.exceptions import NewConnectionError

from vertex_launch import __version__, log
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
    mapping_of,
    parse,
    path_of,
    quote,
    result_of,
    text_of,
)
from vertex_launch.adapters.wandb_document import Field, document, named_in, removable, spoiler
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import KeyRefused, Message, Unavailable
from vertex_launch.log import LOGGER
from vertex_launch.model import BATCHES, Pace
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


LEFT_OUT = Result(error="this W&B server refuses it, as it said before", refused=True)
"""The answer to a field that is not sent."""


class WandbServer:
    """One W&B server, and what it refuses: optional parts of documents, and several operations in one request."""

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

    @property
    def _batched(self) -> bool:
        """Whether the server takes several operations in one request, as far as is known."""
        return BATCHES not in self._pace.refused

    def _ask(self, question: Field) -> Result:
        return self._request("query", [question])[0]

    def _ask_alone(self, question: Field) -> Result:
        """Ask a question; one that the server refuses has an error. Raises Unavailable."""
        try:
            return self._ask(question)
        except RequestRefused as error:
            self._pace.explain()
            LOGGER.info("W&B refuses a question: %s", error.reason)
            return Result(error=error.reason, refused=True)

    def _ask_all(self, questions: Sequence[Field]) -> list[Result]:
        """Ask questions, many in one request if the server takes that. Raises Unavailable."""
        answers = list[Result]()
        for chunk in chunks(list(questions), self._batches.lookups if self._batched else 1):
            try:
                answers += self._request("query", chunk) if len(chunk) > 1 else [self._ask_alone(chunk[0])]
            except RequestRefused as error:
                self._doubt(len(chunk), error)
                answers += map(self._ask_alone, chunk)
        return answers

    def _doubt(self, count: int, error: Unavailable) -> None:
        LOGGER.info("W&B refuses %d operations in one request: %s", count, error.reason)
        self._pace.doubt()

    def _batch(
        self,
        fields: Sequence[Field],
        size: int,
        *,
        kind: str = "mutation",
        repeatable: bool = True,
        within: float = math.inf,
        keep: Callable[[Result], Result] = lambda answer: answer,
        enough: Callable[[Sequence[Result]], bool] = lambda answers: False,
    ) -> list[Result]:
        """Send operations in as few requests as possible; a failed request does not affect the others.

        Of a batch that the server refuses as a whole, the first operation is sent alone. After two such batches all are, if
        the server takes each of them by itself. No request starts after the read timeout, or ``within`` seconds from now.

        ``keep`` gets each answer and returns what of it is kept. Once that is ``enough``, no further request is sent, and the
        operations that were not sent have no answer.
        """
        until = self._clock() + min(self._timeout[1], within)
        waiting, results, alone = list(fields), list[Result](), False
        while waiting and self._clock() < until:
            most = 1 if alone or not self._batched else min(size, self._pace.operations)
            chunk, alone = waiting[:most], False
            answers: Iterable[Result]
            try:
                answers = self._timed(kind, chunk, repeatable=repeatable, within=until - self._clock())
            except RequestRefused as error:
                if len(chunk) > 1:
                    self._doubt(len(chunk), error)
                    alone = True
                    continue
                self._pace.explain()
                answers = [Result(error=error.reason, refused=True)]
            except UnreadableAnswer as error:
                answers = error.results(len(chunk))
            except Unavailable as error:
                answers = [Result(error=error.reason, lost=True)] * len(chunk)
            else:
                if repeatable and len(chunk) > 1:
                    answers = self._completed(kind, chunk, list(answers), until)
            results += map(keep, answers)
            waiting = waiting[len(chunk) :]
            if enough(results):
                return results
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
        """Send one request and return the answers in the order of its fields, without the parts that the server refuses.

        A part that it names is left out. Of a question that it refuses without naming one, each optional part is tried. Raises
        RequestRefused, Unavailable. Retries start at most ``within`` seconds from now.
        """
        until, without = self._clock() + within, frozenset(self._pace.refused)

        def send(without: frozenset[str]) -> list[Result]:
            return self._request_once(kind, fields, without, repeatable, until - self._clock())

        while True:
            try:
                answers = send(without)
                break
            except RequestRefused as error:
                if not error.suspects:
                    raise
                if error.is_sure or kind == "mutation":
                    without |= frozenset(error.suspects)
                    continue
                if found := _search(send, without, error):
                    answers, without = found
                    break
                self._pace.refused.add(_fruitless(error.suspects))
                if not error.answers:
                    raise
                return list(error.answers)
        self._leave_out(without - self._pace.refused)
        return answers

    def _leave_out(self, parts: Set[str]) -> None:
        """Remember what the server refuses."""
        if parts:
            self._pace.explain()
            self._pace.refused |= parts
            text = f"W&B refuses {', '.join(sorted(parts))} in requests. It is left out for an hour."
            log.warning(Message(Code.WANDB_FIELD, text))

    def _request_once(
        self, kind: str, fields: Sequence[Field], without: frozenset[str], repeatable: bool, within: float
    ) -> list[Result]:
        text, variables, sent = document(kind, fields, without)
        if not sent:
            return [LEFT_OUT] * len(fields)
        try:
            body = self._send({"query": text, "variables": variables}, repeatable, within)
            return _results(kind, fields, without, sent, body)
        except RequestRefused as error:
            named = [one for one in error.suspects or named_in(error.reason, kind, fields) if one not in without]
            error.is_sure = len(named) == 1
            # A question can be repeated to find out what is the reason.
            others = removable(fields) if kind == "query" and len(fields) == 1 else ()
            error.suspects = named or [one for one in others if one not in without]
            if _fruitless(error.suspects) in without:
                error.suspects = ()
            raise

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


def _fruitless(suspects: Sequence[str]) -> str:
    """Return what stands for a search among these optional parts, none being the reason."""
    return "?".join(["", *suspects])


def _search(
    send: Callable[[frozenset[str]], list[Result]], without: frozenset[str], error: RequestRefused
) -> tuple[list[Result], frozenset[str]] | None:
    """Return the answers to a question with all that the server takes of what may be the reason, and what it refuses.

    Return None if it refuses the question without that as well.
    """

    def answered(left_out: frozenset[str]) -> list[Result]:
        with suppress(RequestRefused):
            return [answer for answer in send(left_out) if answer.value is not None]
        return []

    suspects = frozenset(error.suspects)
    smaller = (frozenset([one]) for one in error.suspects), (suspects - {one} for one in error.suspects)
    refused = next((parts for parts in chain(*smaller, [suspects]) if answered(without | parts)), None)
    if refused is None:
        return None
    # It may have been refused for another reason, which is over.
    for one in error.suspects:
        if one in refused and answered(without | refused - {one}):
            refused -= {one}
    return send(without | refused), without | refused


def _results(
    kind: str, fields: Sequence[Field], without: frozenset[str], sent: Sequence[int], body: Mapping[str, Any]
) -> list[Result]:
    """Return the answers in the order of the fields. Raises RequestRefused if one part of a question spoiled others."""
    errors: dict[str, list[str]] = {}
    data, blamed = mapping_of(body.get("data")), set[str]()
    for error in dicts(body.get("errors")):
        path, words = path_of(error), quote(text_of(error.get("message")))
        alias = text_of(path[0]) if path else ""
        errors.setdefault(alias, []).append(words)
        if kind == "query" and alias in (names := [f"f{i}" for i in sent]):
            blamed.add(spoiler(fields[sent[names.index(alias)]], data.get(alias), path[1:]))
    if not isinstance(body.get("data"), dict) and not errors.keys() - {""}:
        words = "; ".join(errors.get("", ["an answer without data"]))
        raise RequestRefused(SERVICE, f"the request failed: {words}", code=Code.WANDB_REFUSED)
    results = [result_of(data, errors, f"f{i}") if i in sent else LEFT_OUT for i in range(len(fields))]
    is_null = kind == "query" and len(fields) == 1 and results[0].value is None and "" in errors
    if (blamed := blamed - {""} - without) or (is_null and set(removable(fields)) - without):
        words = "; ".join(word for each in errors.values() for word in each)
        refused = RequestRefused(SERVICE, f"the request failed: {words}", code=Code.WANDB_REFUSED)
        refused.suspects, refused.answers = sorted(blamed), results
        raise refused
    return results


def chunks(values: list[T], size: int) -> Iterator[list[T]]:
    """Split a list into parts of at most this size."""
    return (values[i : i + size] for i in range(0, len(values), size))
