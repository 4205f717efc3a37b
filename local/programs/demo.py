"""The demo: queues, jobs, a sweep and items made with the real W&B tools, run by the functions, watched to their end.

Every item says beforehand how it must end and with how many jobs; the demo succeeds only if all of them do, if no moment saw
more active jobs than ``max_jobs``, and if jobs' ends, not the clock, filled the slots that became free while items waited.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from rich.console import Console
from rich.live import Live
from rich.table import Table

from local.machine.cloud import ENTITY, PROJECT, TICKS, Cloud, Options
from local.machine.functions import CONFIG
from local.machine.images import FOLDERS
from local.programs.demo_items import PUSHES, QUEUES, SCRIPTS, SWEEP, Push
from local.programs.fills import Fill, Span, fills
from local.standins.vertex.jobs import ENDED
from vertex_launch.job import labels
from vertex_launch.model import Kind

PATIENCE = 240.0
"""Seconds after which what has not ended counts as failed."""
SETTINGS = {"timeouts": {"settle_grace": 5}, "resubmit_after": 2}
"""The product's own patience is for the real services; here nothing shows up late."""
PENDING = 2.5
"""Seconds that a job waits for its machine: so long that others wait for its slot."""
_PUSHERS = 3
_COUNTER = f"projects/{PROJECT}/subscriptions/demo"

_STOP = "import sys, wandb; wandb.Api().run(sys.argv[1]).stop()"
_QUEUES = f"""
import json, sys, wandb
api = wandb.Api()
for name, config, variables in json.load(sys.stdin):
    api.create_run_queue(name, "gcp-vertex", entity={ENTITY!r}, prioritization_mode="V0", config=config,
                         template_variables=variables)
"""


@dataclass
class Row:
    """What is known of one push at a moment."""

    push: Push
    state: str = ""
    said: list[str] = field(default_factory=list)
    """What W&B says of it: the message of a failure, warnings."""
    pushed: float = 0.0
    """When, in Unix seconds."""
    jobs: list[dict[str, Any]] = field(default_factory=list)
    """The oldest first."""
    run: dict[str, Any] = field(default_factory=dict)

    @property
    def job_state(self) -> str:
        """The state of its last job, "" when it has none."""
        return self.jobs[-1]["state"] if self.jobs else ""

    @property
    def as_expected(self) -> bool:
        """Whether it has come to the end that it must come to."""
        return (
            self.state == self.push.item
            and self.job_state == self.push.job
            and len(self.jobs) == (self.push.attempts if self.push.job else 0)
            and (not self.push.run or self.run.get("state") == self.push.run)
            and all(any(words in one for one in self.said) for words in self.push.said)
        )


class Demo:
    """Runs once; ``plain`` prints lines instead of a live table."""

    def __init__(self, options: Options, *, plain: bool = False) -> None:
        self._console = Console()
        self._plain = plain or not self._console.is_terminal
        self._cloud = Cloud(replace(options, pending=PENDING, settings={**SETTINGS, **options.settings}))
        self._cloud.containers.scripts += [replace(script) for script in SCRIPTS]
        self._slots = int(yaml.safe_load((CONFIG / "launch-config.yaml").read_text())["max_jobs"])
        self._rows = [Row(push) for push in PUSHES if shutil.which("git") or "git" not in push.made]
        self._most_active = 0
        self._failures: list[str] = []
        self._pushed = threading.Event()
        self._stops: list[threading.Thread] = []

    def run(self) -> int:
        """Run the demo; 0 only if everything ended as it must."""
        began = time.monotonic()
        self._console.print("Starting W&B, Vertex AI, Secret Manager, Cloud Storage, Pub/Sub and the functions …")
        self._cloud.start()
        subscriber = SubscriberClient(
            transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(self._cloud.pubsub.address))
        )
        try:
            subscriber.create_subscription(request={"name": _COUNTER, "topic": TICKS, "ack_deadline_seconds": 600})
            self._console.print(f"Ready after {time.monotonic() - began:.1f} s. Making two queues with wandb.Api() …")
            self._tool([sys.executable, "-c", _QUEUES], json.dumps(QUEUES))
            if len(self._rows) < len(PUSHES):
                self._console.print("Git is not installed here, so the job in git is left out.")
            self._console.print(
                f"Making jobs with `wandb job create`, pushing {len(self._rows)} items with `wandb launch` and "
                "`wandb launch-sweep` …"
            )
            pushing = threading.Thread(target=self._push_all, name="pushing")
            pushing.start()
            self._watch(time.monotonic() + PATIENCE)
            for thread in (pushing, *self._stops):
                thread.join()
            return self._summary(time.monotonic() - began, _ticks(subscriber))
        finally:
            subscriber.transport.close()
            self._cloud.stop()

    def _push_all(self) -> None:
        try:
            places = self._places()
            with ThreadPoolExecutor(_PUSHERS) as pool:
                list(pool.map(lambda row: self._push(row.push, places), self._rows))
        finally:
            self._pushed.set()

    def _push(self, push: Push, places: Mapping[str, str]) -> None:
        for command in push.commands(places):
            self._tool(command)

    def _places(self) -> dict[str, str]:
        """Make a person's folder of code, the same in a git repository, and the sweep's file; give where they are."""
        code, sweep = self._cloud.folder / "code", self._cloud.folder / "sweep.yaml"
        shutil.copytree(FOLDERS / "mnist", code, ignore=shutil.ignore_patterns("__pycache__"))
        (code / "requirements.txt").write_text("wandb\n")
        sweep.write_text(yaml.safe_dump(SWEEP))
        places = {"code": str(code), "sweep": str(sweep)}
        if any("git" in row.push.made for row in self._rows):
            files = {path.name: path.read_text() for path in code.iterdir()}
            places["repository"], places["commit"] = self._cloud.repositories.add("train", files)
        return places

    def _tool(self, command: Sequence[str], stdin: str = "") -> None:
        """Run one of W&B's own tools as a person would, in a home of its own."""
        home = self._cloud.folder / f"home-{threading.get_ident()}"
        home.mkdir(exist_ok=True)
        self._cloud.repositories.configure(home)
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
        of_sweep = [name for sweep in state["wandb"]["sweeps"] for name in (sweep["name"], *sweep["runs"])]
        active = [
            job
            for job in state["jobs"]
            if job["labels"][labels.KIND] == Kind.JOB and job["state"] not in {one.name for one in ENDED}
        ]
        self._most_active = max(self._most_active, len(active))
        for row in self._rows:
            if row.push.sweep is None:
                item = next((one for one in items if one["name"] == row.push.name), None)
            else:
                mine = of_sweep[row.push.sweep : row.push.sweep + 1]
                item = next((one for one in items if one["run"] in mine), None)
            if item is None:
                continue
            label = labels.item_value(self._cloud.wandb.url, ENTITY, item["id"])
            row.state = item["state"]
            row.said = [one["message"] for one in (item["error"], *item["warnings"]) if one]
            row.jobs = [job for job in state["jobs"] if job["labels"].get(labels.ITEM) == label]
            row.run = runs.get(item["run"] or "", {})
            row.pushed = item["created_at"]
            if row.push.stop and row.run.get("state") == "running" and not self._stops:
                path = "/".join(row.run[part] for part in ("entity", "project", "name"))
                self._stops.append(threading.Thread(target=self._tool, args=([sys.executable, "-c", _STOP, path],)))
                self._stops[-1].start()

    def _table(self) -> Table:
        active = sum(1 for row in self._rows if row.jobs and row.job_state not in {one.name for one in ENDED})
        table = Table(title=f"{active} of {self._slots} slots are used", title_justify="left")
        for column in ("item", "queue", "item is", "attempt", "job", "job is", "run is", "last metrics"):
            table.add_column(column, no_wrap=True)
        for row in self._rows:
            style = "green" if row.as_expected else "dim" if not row.state else ""
            table.add_row(*_cells(row), style=style)
        return table

    def _summary(self, seconds: float, ticks: Sequence[tuple[float, str]]) -> int:
        if not self._plain:
            self._console.print()
        for row in self._rows:
            if not row.as_expected:
                push = row.push
                expected = (
                    f"item {push.item}, {push.attempts} jobs, the last {push.job or 'none'}, run {push.run or 'any'}"
                )
                found = f"{' '.join(_cells(row)[2:7])}; W&B says: {' '.join(row.said) or 'nothing'}"
                self._failures.append(f"{push.name}: {found} (expected {expected}, words {list(push.said)})")
            for text in row.said if row.as_expected else ():
                self._say(f"W&B says of {row.push.name} ({_counted(len(row.jobs))}): {text}")
        if self._most_active > self._slots:
            self._failures.append(f"{self._most_active} jobs were active at once, more than {self._slots}")
        self._say_fills(ticks)
        self._say_made(self._cloud.state()["wandb"])
        good = sum(1 for row in self._rows if row.as_expected)
        jobs = sum(len(row.jobs) for row in self._rows)
        refused = sum(1 for row in self._rows if not row.jobs)
        self._say(
            f"{good} of {len(self._rows)} items ended as they should: {refused} were refused with the reason, the others had "
            f"{jobs} jobs in all; at most {self._most_active} of {self._slots} slots were used. {seconds:.0f} s in all."
        )
        for failure in self._failures:
            self._console.print(f"FAILED: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
        if self._failures:
            self._say(self._cloud.dispatch.log.read_text(errors="replace")[-4000:])
        return 1 if self._failures else 0

    def _say_fills(self, ticks: Sequence[tuple[float, str]]) -> None:
        """Say how fast freed slots were filled; it must have been the events' doing."""
        jobs = {name: job for name, job in self._cloud.vertex.jobs.items() if job.labels[labels.KIND] == Kind.JOB}
        spans = [
            Span(job.create_time.timestamp(), job.end_time.timestamp() if job.end_time else None)
            for job in jobs.values()
        ]
        begins = {name: job.create_time.timestamp() for name, job in jobs.items()}
        waits = [
            Span(row.pushed, begins[row.jobs[0]["name"]]) for row in self._rows if row.jobs and row.push.sweep != 0
        ]
        scheduled = [moment for moment, ended in ticks if not ended]
        found = fills(spans, waits, self._slots)
        by_event = [fill for fill in found if fill.by_event(scheduled)]
        self._say(
            f"{len(scheduled)} ticks came from the scheduler, one every {self._cloud.options.tick_every:g} s, and "
            f"{len(ticks) - len(scheduled)} from job_state, when a job had ended."
        )
        if not by_event:
            self._failures.append(f"no event filled one of the {len(found)} slots that became free while items waited")
            return
        self._say(
            f"{len(found)} slots became free while items waited; from a job's end to the next submission it took "
            f"{', '.join(f'{fill.seconds:.1f}' for fill in found)} s. {len(by_event)} of them were filled by the event of the "
            f"job's end, without any scheduled tick meanwhile, after {_median(by_event):.1f} s in the middle."
        )
        if 2 * len(by_event) < len(found):
            self._failures.append(f"an event alone filled {len(by_event)} of {len(found)} slots only")

    def _say_made(self, wandb: Mapping[str, Any]) -> None:
        """Say which jobs W&B knows that runs were made of, and what became of the sweep; all of it must be known."""
        made = [row.push.name for row in self._rows if row.push.made]
        users = {one["path"]: one["used_by"] for one in wandb["artifacts"] if one["type"] == "job"}
        for name in made:
            runs = users.get(f"{ENTITY}/demo/{name}:v0", [])
            if len(runs) != 1:
                self._failures.append(f"W&B knows {len(runs)} runs of job {name}, and there was one")
        self._say(f"W&B knows the run of each of the jobs {', '.join(made)}.")
        for sweep in wandb["sweeps"]:
            self._say(f"Sweep {sweep['name']} is {sweep['state']}, with {len(sweep['runs'])} runs.")
            if sweep["state"] != "FINISHED":
                self._failures.append(f"the sweep is {sweep['state']}, and should be FINISHED")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _counted(jobs: int) -> str:
    return {0: "no job", 1: "one job"}.get(jobs, f"{jobs} jobs")


def _median(found: Sequence[Fill]) -> float:
    return statistics.median(fill.seconds for fill in found)


def _ticks(subscriber: SubscriberClient) -> list[tuple[float, str]]:
    """Give when each tick was published, and the job whose end it tells of, "" for the scheduler's."""
    found = []
    request = {"subscription": _COUNTER, "max_messages": 1000, "return_immediately": True}
    while received := subscriber.pull(request=request).received_messages:
        messages = [one.message for one in received]
        found += [(one.publish_time.timestamp(), json.loads(one.data or b"{}").get("ended", "")) for one in messages]
    return found


def _cells(row: Row) -> list[str]:
    job = row.jobs[-1]["name"].rsplit("/", 1)[-1] if row.jobs else ""
    attempt = row.jobs[-1]["labels"][labels.ATTEMPT] if row.jobs else ""
    state = row.job_state.removeprefix("JOB_STATE_")
    summary = row.run.get("summary") or {}
    metrics = " ".join(
        f"{name}={value:.3g}" for name, value in summary.items() if isinstance(value, float) and name[0] != "_"
    )
    return [row.push.name, row.push.queue, row.state, attempt, job, state, row.run.get("state", ""), metrics[:40]]
