"""Requests to a W&B server, as large as it accepts them: what ``wandb_reads`` and ``wandb_queue`` share.

The SDK's own client for launch operations is private and starts a helper process, so the few operations needed are written
out. Their texts and variable types are those of wandb/sdk/launch/api.py and wandb/apis/public/{jobs,sweeps}.py (0.31.0).
W&B runs aliased mutations of one request one after another and answers them together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from google.api_core.retry import Retry

from vertex_launch import __version__
from vertex_launch.adapters.graphql import BACKOFF, Field, GraphQL, RenewableKey, RequestRefused, Result
from vertex_launch.errors import Unavailable
from vertex_launch.log import LOGGER
from vertex_launch.model import RunId
from vertex_launch.settings.config import Settings

T = TypeVar("T")

REGISTRY = "model-registry"
"""The project that owns an entity's launch queues (LAUNCH_DEFAULT_PROJECT in wandb/sdk/launch/utils.py)."""


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
        agent = f"vertex-launch/{__version__}"
        self._server = GraphQL(settings.base_url, key, settings.timeouts, agent=agent, backoff=backoff)
        self._settings = settings
        self._batches = settings.batches
        self._clock = clock
        self._modes: tuple[QueryMode, ...] = MODES
        self._run_modes: tuple[QueryMode, ...] = MODES

    def _ask(self, question: Field) -> Result:
        return self._server.ask("query", [question])[0]

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

        The operations of a batch that the server refuses as a whole are sent one by one, and if that succeeds, so are all
        later ones. No request starts after the read timeout, or ``within`` seconds from now.
        """
        until = self._clock() + min(self._settings.timeouts.read, within)
        batched = self._modes[0].batched
        waiting, results = list(fields), list[Result]()
        while waiting and (not results or self._clock() < until):
            chunk = waiting[: size if batched else 1]
            try:
                left = until - self._clock()
                results += self._server.ask(kind, chunk, repeatable=repeatable, within=left)
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
