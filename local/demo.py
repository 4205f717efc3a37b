"""The demo: queues and items made with the real W&B tools, run by the functions, watched to their end.

Every item says beforehand how it must end; the demo succeeds only if all of them do, each with exactly one job, and if no
moment saw more active jobs than ``max_jobs``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.live import Live
from rich.table import Table

from local.cloud import ENTITY, Cloud, Options
from local.functions import ROOT
from local.images import REGISTRY
from local.vertex_jobs import ENDED
from vertex_launch import labels

PATIENCE = 180.0
"""Seconds after which what has not ended counts as failed."""
_PUSHERS = 3
_SHORT = {"JOB_STATE_": "", "SUCCEEDED": "succeeded", "FAILED": "failed"}


@dataclass(frozen=True)
class Push:
    """One ``wandb launch``, and what must become of it: the item's state, its job's, its run's; "" for none."""

    name: str
    queue: str
    image: str
    options: Sequence[str] = ()
    item: str = "CLAIMED"
    job: str = "JOB_STATE_SUCCEEDED"
    run: str = "finished"
    said: str = ""
    """Words that a rejected item's message must have."""

    def command(self) -> list[str]:
        """Give the command line, as a person would type it."""
        image = self.image if "/" in self.image else f"{REGISTRY}/{self.image}"
        base = ["wandb", "launch", "-d", image, "-q", self.queue, "-e", ENTITY, "-p", "demo", "--name", self.name]
        return [*base, *self.options]


def _config(**config: Any) -> tuple[str, str]:
    return "-c", json.dumps(config)


def _args(*args: str) -> tuple[str, str]:
    return _config(overrides={"args": list(args)})


PUSHES = (
    Push("train-lr-0.01", "vertex-cpu", "mnist:1", _args("--learning-rate", "0.01")),
    Push("train-lr-0.02", "vertex-cpu", "mnist:1", _args("--learning-rate", "0.02")),
    Push("train-lr-0.05", "vertex-cpu", "mnist:1", _args("--learning-rate", "0.05")),
    Push("train-noisy", "vertex-gpu", "mnist:1", _args("--noise", "0.8")),
    Push("train-other-seed", "vertex-gpu", "mnist:1", (*_args("--seed", "7"), "-P", "critical")),
    Push("train-entry-point", "vertex-gpu", "mnist:1", ("-E", "python main.py --epochs 2")),
    Push("train-big-machine", "vertex-cpu", "mnist:1", ("--set-var", "machine=n1-standard-8")),
    Push("quick-1", "vertex-cpu", "quick:1"),
    Push("quick-2", "vertex-gpu", "quick:1"),
    Push("exits-with-3", "vertex-cpu", "fail:1", job="JOB_STATE_FAILED", run=""),
    Push(
        "wrong-registry",
        "vertex-cpu",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1",
        item="FAILED",
        job="",
        run="",
        said="Artifact Registry",
    ),
    Push(
        "camel-case",
        "vertex-gpu",
        "quick:1",
        ("-R", json.dumps({"gcp-vertex": {"run": {"restartJobOnWorkerRestart": True}}})),
        item="FAILED",
        job="",
        run="",
        said="restart_job_on_worker_restart",
    ),
)

_QUEUES = f"""
import json, sys, wandb
api = wandb.Api()
for name, config, variables in json.load(sys.stdin):
    api.create_run_queue(name, "gcp-vertex", entity={ENTITY!r}, prioritization_mode="V0", config=config,
                         template_variables=variables)
"""


def _pool(machine: str, **accelerator: Any) -> dict[str, Any]:
    pool = {
        "machine_spec": {"machine_type": machine, **accelerator},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}"},
    }
    return {"spec": {"worker_pool_specs": [pool], "staging_bucket": "gs://demo-staging"}, "run": {}}


QUEUES: Sequence[tuple[str, dict[str, Any], dict[str, Any] | None]] = (
    (
        "vertex-cpu",
        _pool("{{machine}}"),
        {
            "machine": {
                "schema": {"type": "string", "default": "n1-standard-4", "enum": ["n1-standard-4", "n1-standard-8"]}
            }
        },
    ),
    ("vertex-gpu", _pool("n1-standard-8", accelerator_type="NVIDIA_TESLA_T4", accelerator_count=1), None),
)


@dataclass
class Row:
    """What is known of one push at a moment."""

    push: Push
    state: str = ""
    message: str = ""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def job_state(self) -> str:
        """The state of its job, "" when it has none."""
        return self.jobs[0]["state"] if self.jobs else ""

    @property
    def as_expected(self) -> bool:
        """Whether it has come to the end that it must come to."""
        return (
            self.state == self.push.item
            and self.job_state == self.push.job
            and len(self.jobs) == (1 if self.push.job else 0)
            and (not self.push.run or self.run.get("state") == self.push.run)
            and self.push.said in self.message
        )


class Demo:
    """Runs once; ``plain`` prints lines instead of a live table."""

    def __init__(self, options: Options, *, plain: bool = False) -> None:
        self._console = Console()
        self._plain = plain or not self._console.is_terminal
        self._cloud = Cloud(options)
        self._slots = int(yaml.safe_load((ROOT / "launch-config.yaml").read_text())["max_jobs"])
        self._rows = [Row(push) for push in PUSHES]
        self._most_active = 0
        self._failures: list[str] = []
        self._pushed = threading.Event()

    def run(self) -> int:
        """Run the demo; 0 only if everything ended as it must."""
        began = time.monotonic()
        self._console.print("Starting W&B, Vertex AI, Secret Manager, Cloud Storage, Pub/Sub and the functions …")
        self._cloud.start()
        try:
            self._console.print(f"Ready after {time.monotonic() - began:.1f} s. Making two queues with wandb.Api() …")
            self._tool([sys.executable, "-c", _QUEUES], json.dumps(QUEUES))
            self._console.print(f"Pushing {len(PUSHES)} items with `wandb launch` …")
            pushing = threading.Thread(target=self._push_all, name="pushing")
            pushing.start()
            self._watch(time.monotonic() + PATIENCE)
            pushing.join()
            return self._summary(time.monotonic() - began)
        finally:
            self._cloud.stop()

    def _push_all(self) -> None:
        try:
            with ThreadPoolExecutor(_PUSHERS) as pool:
                list(pool.map(lambda push: self._tool(push.command()), PUSHES))
        finally:
            self._pushed.set()

    def _tool(self, command: Sequence[str], stdin: str = "") -> None:
        """Run one of W&B's own tools as a person would, in a home of its own."""
        home = self._cloud.folder / f"home-{threading.get_ident()}"
        home.mkdir(exist_ok=True)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        variables = {"PATH": path, "HOME": str(home), "WANDB_SILENT": "true", **self._cloud.person_variables()}
        done = subprocess.run(
            list(command), input=stdin, cwd=home, env=variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            self._failures.append(f"{' '.join(command)[:120]} ended with {done.returncode}: {done.stderr[-500:]}")

    def _watch(self, deadline: float) -> None:
        if self._plain:
            self._watch_lines(deadline)
            return
        with Live(console=self._console, refresh_per_second=4, get_renderable=self._table):
            for _ in self._looks(deadline):
                pass

    def _watch_lines(self, deadline: float) -> None:
        shown: dict[str, str] = {}
        for _ in self._looks(deadline):
            for row in self._rows:
                line = " ".join(_cells(row))
                if row.state and shown.get(row.push.name) != line:
                    shown[row.push.name] = line
                    self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _looks(self, deadline: float) -> Iterator[None]:
        """Look again and again until all is done or time is up."""
        while time.monotonic() < deadline:
            self._look()
            yield
            done = self._pushed.is_set() and all(row.as_expected for row in self._rows)
            if done or (self._pushed.is_set() and self._failures):
                return
            time.sleep(0.2)

    def _look(self) -> None:
        state = self._cloud.state()
        items = [item for queue in state["wandb"]["queues"] for item in queue["items"]]
        runs = {run["name"]: run for run in state["wandb"]["runs"]}
        active = [job for job in state["jobs"] if job["state"] not in {one.name for one in ENDED}]
        self._most_active = max(self._most_active, len(active))
        for row in self._rows:
            item = next((one for one in items if one["name"] == row.push.name), None)
            if item is None:
                continue
            label = labels.item_value(self._cloud.wandb.url, ENTITY, item["id"])
            row.state = item["state"]
            row.message = (item["error"] or {}).get("message", "")
            row.jobs = [job for job in state["jobs"] if job["labels"].get(labels.ITEM) == label]
            row.run = runs.get(item["run"] or "", {})

    def _table(self) -> Table:
        active = sum(1 for row in self._rows if row.jobs and row.job_state not in {one.name for one in ENDED})
        table = Table(title=f"{active} of {self._slots} slots are used", title_justify="left")
        for column in ("item", "queue", "item is", "job", "job is", "run is", "last metrics"):
            table.add_column(column, no_wrap=True)
        for row in self._rows:
            style = "green" if row.as_expected else "dim" if not row.state else ""
            table.add_row(*_cells(row), style=style)
        return table

    def _summary(self, seconds: float) -> int:
        if not self._plain:
            self._console.print()
        for row in self._rows:
            if not row.as_expected:
                expected = f"expected item {row.push.item}, job {row.push.job or 'none'}, run {row.push.run or 'any'}"
                self._failures.append(f"{row.push.name}: {' '.join(_cells(row)[2:6])} {row.message} ({expected})")
            elif row.message:
                self._console.print(
                    f"W&B says of {row.push.name}: {row.message}", markup=False, highlight=False, soft_wrap=True
                )
        if self._most_active > self._slots:
            self._failures.append(f"{self._most_active} jobs were active at once, more than {self._slots}")
        good = sum(1 for row in self._rows if row.as_expected)
        ended = sum(1 for row in self._rows if row.jobs)
        self._console.print(
            f"{good} of {len(self._rows)} items ended as they should: {ended} ran, each as one job, and "
            f"{sum(1 for row in self._rows if row.message)} were refused with the reason; at most {self._most_active} of "
            f"{self._slots} slots were used. {seconds:.0f} s in all."
        )
        for failure in self._failures:
            self._console.print(f"FAILED: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
        if self._failures:
            self._console.print(
                self._cloud.dispatch.log.read_text(errors="replace")[-4000:], markup=False, soft_wrap=True
            )
        return 1 if self._failures else 0


def _cells(row: Row) -> list[str]:
    job = row.jobs[0]["name"].rsplit("/", 1)[-1] if row.jobs else ""
    state = row.job_state.removeprefix("JOB_STATE_")
    summary = row.run.get("summary") or {}
    metrics = " ".join(
        f"{name}={value:.3g}" for name, value in summary.items() if isinstance(value, float) and name[0] != "_"
    )
    return [row.push.name, row.push.queue, row.state, job, state, row.run.get("state", ""), metrics[:40]]
