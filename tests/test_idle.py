"""What a pass costs that finds nothing to do."""

from __future__ import annotations

from pathlib import Path

from bench import idle_cost
from tests.deployment import Deployment
from tests.processes import ROOT


def test_an_idle_pass_asks_for_this_and_nothing_else(tmp_path: Path) -> None:
    with Deployment(tmp_path, queues=["gpu", "cpu", "more"]) as outside:
        for _ in range(2):  # the first pass registers the agent and writes the first ledger
            assert outside.tick() is not None
        outside.requests.at(None)
        assert outside.tick() is not None
        assert outside.requests.asked == idle_cost.REQUESTS


def test_the_guide_shows_the_costs_as_computed() -> None:
    guide = (ROOT / "docs" / "operations.md").read_text()
    assert idle_cost.table() in guide
    for price in idle_cost.agent():
        assert f"{price:.2f} USD" in guide
    assert f"prices of {idle_cost.PRICES_OF}" in guide
