"""A local W&B, a client of it, and servers that answer badly on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from local.standins.wandb import WandbServer
from local.standins.web import WebServer
from tests.support.memory import Clock
from tests.support.wandb import ENTITY, KEY, Answer, Answering, Say, Scripted, Serve, client
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.log import LOGGER


@pytest.fixture(autouse=True)
def _retries_take_no_time(retry_clock: Clock) -> None:
    """Pauses between attempts pass at once."""


@pytest.fixture(autouse=True)
def _plain_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before any function was loaded in this process."""
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)


@pytest.fixture
def serve(clock: Clock) -> Iterator[Serve]:
    servers: list[WandbServer] = []

    def start(**options: Any) -> WandbServer:
        server = WandbServer(
            clock=clock,
            api_keys={KEY: "ada"},
            teams={ENTITY: ["ada"], "empty": ["ada"]},
            default_entities={"ada": ENTITY},
            **options,
        ).start()
        servers.append(server)
        server.store.create_queue(ENTITY, "cpu")
        server.store.create_queue(ENTITY, "gpu")
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(serve: Serve) -> WandbServer:
    return serve()


@pytest.fixture
def queue(server: WandbServer) -> WandbQueue:
    return client(server.url)


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Serves what it is given: answers one after another, the last one again and again, or what a function says; None hangs up."""
    servers: list[WebServer] = []

    def start(*answers: Answer | None, say: Say | None = None) -> str:
        left = list(answers)

        def next_answer(_: dict[str, Any]) -> Answer | None:
            return left.pop(0) if len(left) > 1 else left[0]

        servers.append(WebServer(type("Oracle", (Scripted,), {"say": staticmethod(say or next_answer)})))
        servers[-1].start()
        return servers[-1].url

    yield start
    for one in servers:
        one.stop()
