"""The cost of a pass that finds nothing to do, and the memory of a pass."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml

from bench import idle_cost, memory
from tests.support.deployment import Deployment
from tests.support.processes import ROOT


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
    assert f"us-central1 in {idle_cost.PRICES_OF}" in guide


def test_the_metrics_and_alerts_that_are_paid_for_are_those_that_are_deployed() -> None:
    monitoring = ROOT / "infra/monitoring"
    alerts = [yaml.safe_load(file.read_text()) for file in (monitoring / "alerts").glob("*.yaml")]
    assert sum(len(alert["conditions"]) for alert in alerts) == idle_cost.CONDITIONS
    for name, kind in idle_cost.IDLE_METRICS.items():
        metric = yaml.safe_load((monitoring / f"metrics/{name}.yaml").read_text())
        assert metric["metricDescriptor"]["valueType"] == kind, name
    total = f"{sum(line.usd for line in idle_cost.bill()):.2f} USD a month"
    for page in ("README.md", "infra/README.md"):
        assert total in (ROOT / page).read_text()


def test_the_memory_that_is_paid_for_is_the_one_that_is_deployed() -> None:
    terraform = (ROOT / "infra/variables.tf").read_text()
    script = (ROOT / "infra/deploy.sh").read_text()
    (variable,) = re.findall(r'variable "dispatch_memory" \{.*?default += "(\w+)"', terraform, re.DOTALL)
    (option,) = re.findall(r"^memory=\$\{memory:-(\w+)\}$", script, re.MULTILINE)
    assert variable == option == f"{idle_cost.GIB:g}Gi"


@pytest.mark.skipif(sys.platform != "linux", reason="a process's memory is read from /proc, which only Linux has")
def test_a_pass_with_jobs_leaves_half_of_its_memory_free() -> None:
    before, empty, first, many = memory.measure(30)
    assert [before.helpers, empty.helpers, first.helpers, many.helpers] == [0, 0, 1, 1], "only for who launches jobs"
    assert first.processes > empty.processes + 20
    assert many.unshared + many.disk < idle_cost.GIB * 1024 / 2
    assert many.disk < 1
