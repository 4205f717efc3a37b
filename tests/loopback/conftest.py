"""What several tests against the stand-ins share."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from google.api_core.retry import retry_base, retry_unary

from tests.support.memory import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def retry_clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all retries, which passes the time between two attempts at once."""
    clock = Clock()
    for module in (retry_base, retry_unary):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=clock, sleep=clock.sleep))
    return clock
