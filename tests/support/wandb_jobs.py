"""A local W&B with jobs in it, how its client makes them, and passes over items that name them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from local.standins.wandb import WandbServer
from local.standins.wandb.artifacts import Artifact
from tests.local_cloud.conftest import KEYS, TEAMS
from tests.local_cloud.test_local_wandb import Client
from tests.support.memory import KEY, World, image_spec
from vertex_launch.adapters.job_artifacts import DESCRIPTION, JobArtifacts
from vertex_launch.dispatch.run import run_pass
from vertex_launch.model import PassReport, PassRequest

MAKE = """
import json, sys
from wandb.cli.cli import cli
from wandb.sdk.launch.create_job import create_job

commands, calls = map(json.loads, sys.argv[1:])
for command in commands:
    cli(command, standalone_mode=False)
for call in calls:
    assert create_job(entity="acme", project="demo", **call), call
"""

# wandb asks IPython where it runs. This kernel is none; that it is one is all that the client needs to know.
IN_A_NOTEBOOK = """
import sys
from unittest.mock import MagicMock
kernel = MagicMock()
kernel.get_ipython.return_value.__module__ = "ipykernel.zmqshell"
kernel.get_ipython.return_value.config = {"IPKernelApp": {"connection_file": "/jupyter/kernel.json"}}
parts = ("", ".core", ".core.magic", ".core.magic_arguments", ".core.getipython", ".display")
sys.modules |= {f"IPython{part}": MagicMock() if part else kernel for part in parts}
import wandb
run = wandb.init(settings=wandb.Settings(disable_job_creation=False))
run.log_code(".", include_fn=lambda path: path.endswith((".ipynb", ".txt")))
run.finish()
"""
NOTEBOOK: dict[str, Any] = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": "1"}],
}


@dataclass
class Made:
    """A W&B with jobs in it, and the client that made them."""

    server: WandbServer
    client: Client
    jobs: JobArtifacts

    def artifact(self, id_: str) -> Artifact:
        return self.server.store.artifacts.by_id(id_)

    def named(self, name: str) -> Artifact:
        found = self.server.store.artifacts.find("acme", "demo", name)
        assert found is not None, [one.path for one in self.server.store.artifacts]
        return found

    def named_in_full(self, name: str) -> Artifact:
        return self.named(name.removeprefix("acme/demo/"))

    def description(self, name: str) -> dict[str, Any]:
        text = self.server.store.artifacts.content(self.named(name), DESCRIPTION)
        return dict(json.loads(text))


@contextmanager
def server() -> Iterator[WandbServer]:
    """Run a W&B in which alice's key has the entity acme."""
    one = WandbServer(api_keys={**KEYS, KEY: "alice"}, teams=TEAMS, default_entities={"alice": "acme"}).start()
    yield one
    one.faults.clear()
    one.stop()


def store(
    server: WandbServer, name: str, content: Any, *, entity: str = "acme", project: str = "demo", kind: str = "job"
) -> Artifact:
    """Store an artifact that the client of today does not make; bytes are the text of its description."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return server.store.create_artifact(entity, project, kind, name, {DESCRIPTION: text})


def spec(job: str, overrides: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Return the run spec of a job; its run has an id, because the official one is random."""
    name = job if "/" in job else f"acme/demo/{job}"
    return image_spec(docker={}, job=name, overrides=dict(overrides or {}), **{"run_id": "run1", **changes})


@dataclass
class Passed:
    """A pass over a queue in memory, with Vertex AI in memory and the jobs of a real W&B."""

    world: World
    items: list[str]
    report: PassReport

    def message(self, item: int = 0) -> str:
        """What the item was failed with."""
        assert self.items[item] in [one["item"] for one in self.report.rejected], self.report.body()
        return self.world.queue.contents[self.items[item]].message

    def job(self, item: int = 0) -> Any:
        """The item's CustomJob."""
        assert self.report.rejected == [], self.report.body()
        return self.world.vertex.of(self.items[item])[0].message


def passed(jobs: JobArtifacts, server: WandbServer, *specs: Mapping[str, Any], **settings: Any) -> Passed:
    world = World(base_url=server.url, **settings)
    world.queue.sweep_states["sw1"] = "RUNNING"
    items = [world.queue.push("cpu", dict(one)) for one in specs]
    report = run_pass(world.settings, replace(world.services(), jobs=jobs), PassRequest())
    assert isinstance(report, PassReport)
    return Passed(world, items, report)
