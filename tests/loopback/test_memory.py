"""What a dispatcher takes of memory when large items fill its queues: a process of its own against the stand-ins."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support import processes
from tests.support.deployment import Deployment
from tests.support.numbers import FULL
from tests.support.peak import MOST
from vertex_launch.codes import Code

ROCKET = "\U0001f680"
QUEUES = ["cpu", "gpu"]


def config(value: Any) -> dict[str, Any]:
    return {"overrides": {"run_config": {"a": value}}}


ITEMS: dict[str, tuple[int, dict[str, Any], str]] = {
    "over the bound": (128, {"x": "x" * 1_200_000}, "FAILED"),
    "far over the bound, with four bytes for each character": (24, {"x": "x" * 6_000_000 + ROCKET}, "FAILED"),
    "as large as permitted": (64, config("x" * 900_000), "CLAIMED"),
    "as large as permitted, with four bytes for each character": (64, config("x" * 900_000 + ROCKET), "CLAIMED"),
    "with large jobs": (48, {"name": "n" * 4_000, **config("${run_name}")}, "CLAIMED"),
    "with many values": (24, config([[]] * 90_000), "CLAIMED"),
}
"""How many items, what they have, and how they end."""


@pytest.mark.parametrize("pops", [64, 1])
@pytest.mark.parametrize("name", ITEMS if FULL else ["over the bound", "as large as permitted"])
def test_large_items_cost_little_memory(name: str, pops: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if W&B takes one operation in each request, so that each answer may be as large as an answer can be."""
    monkeypatch.setattr(processes, "PATIENCE", 200.0)
    count, spec, end = ITEMS[name]
    settings: dict[str, Any] = {"submissions_per_minute": 1000, "batches": {"pops": pops}}
    with Deployment(tmp_path, queues=QUEUES, max_jobs=200, **settings) as world:
        large = [world.push(QUEUES[number % 2], **spec) for number in range(count)]
        dispatcher = world.process()
        for _ in range(6):  # how many a pass takes depends on the machine
            dispatcher.post()
            status, report = dispatcher.answer()
            assert status == 200
            assert {row["code"] for row in report["rejected"]} <= {Code.SPEC_SIZE}
            world.clock.sleep(100)
            ended = Counter(world.states()[item] for item in large)[end]
            if ended > count / 2:
                break
        else:
            pytest.fail(f"{ended} of {count} are {end}")
        assert dispatcher.peak() < MOST
