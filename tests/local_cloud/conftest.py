"""What the tests of the local cloud share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from local.standins.wandb import WandbServer

Serve = Callable[..., WandbServer]
ALICE, BOB = "a" * 40, "b" * 40
KEYS, TEAMS = {ALICE: "alice", BOB: "bob"}, {"acme": ["alice"], "other": ["bob"]}


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now: float = 1_771_881_069.1) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a local W&B with two teams, and stops it after the test."""
    servers = []

    def start(**options: Any) -> WandbServer:
        servers.append(WandbServer(**{"api_keys": KEYS, "teams": TEAMS, **options}).start())
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
