"""The demo: push items with the real W&B tools, let the functions run them, and show how each of them ends.

Every item declares how it must end and with how many jobs. The demo succeeds if all of them end so, if there were never
more active jobs than ``max_jobs``, and if the ends of jobs, not the clock, filled the slots that items waited for.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import grpc
import yaml
from google.pubsub_v1 import SubscriberClient
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from rich.console import Console, RenderableType
from rich.live import Live

from local.machine.cloud import ENTITY, PROJECT, TICKS, Cloud, Options
from local.machine.functions import CONFIG
from local.machine.images import FOLDERS
from local.programs.demo_items import PUSHES, QUEUES, SCRIPTS, SWEEP, Push
from local.programs.demo_summary import Evidence, summarize
from local.programs.demo_table import Line, show, show_summary
from local.programs.items import ENDED_STATES, STARTING, Changes, Item, Items, clock
from vertex_launch.job import labels
from vertex_launch.model import Kind

PATIENCE = 300.0
"""Seconds after which an item that has not ended counts as failed."""
SETTINGS = {"timeouts": {"settle_grace": 5}, "resubmit_after": 2}
"""The defaults allow for delays of the real services. The local ones have none."""
PENDING = 2.5
"""Seconds that a job waits for its machine: long enough that other items wait for its slot."""
_PUSHERS = 3
_COUNTER = f"projects/{PROJECT}/subscriptions/demo"

_STOP = "import sys, wandb; wandb.Api().run(sys.argv[1]).stop()"
NEXT = (
    ("make up", "keep such a cloud running and launch your own jobs into it"),
    ("make chaos", "kill functions and disturb services, then account for every item"),
    ("README.md", "deploy the functions to your own project"),
)
_QUEUES = f"""
import json, sys, wandb
api = wandb.Api()
for name, config, variables in json.load(sys.stdin):
    api.create_run_queue(name, "gcp-vertex", entity={ENTITY!r}, prioritization_mode="V0", config=config,
                         template_variables=variables)
"""


@dataclass
class Row:
    """A push, and its item as it was last seen."""

    push: Push
    item: Item | None = None

    @property
    def as_expected(self) -> bool:
        """Whether the item has ended as the push declares."""
        push, item = self.push, self.item
        return (
            item is not None
            and item.state == push.item
            and item.job == push.job
            and len(item.jobs) == (push.attempts if push.job else 0)
            and (not push.run or item.run.get("state") == push.run)
            and all(any(code in one for one in item.messages) for code in push.codes)
        )


class Demo:
    """Runs once. ``plain`` prints a line for each change instead of a live table, as without a terminal."""

    def __init__(self, options: Options, *, plain: bool = False) -> None:
        self._console = Console()
        self._plain = plain or not self._console.is_terminal
        self._cloud = Cloud(replace(options, pending=PENDING, settings={**SETTINGS, **options.settings}))
        self._cloud.containers.scripts += [replace(script) for script in SCRIPTS]
        self._slots = int(yaml.safe_load((CONFIG / "launch-config.yaml").read_text())["max_jobs"])
        self._rows = [Row(push) for push in PUSHES if shutil.which("git") or "git" not in push.made]
        self._items = Items(self._cloud)
        self._began = time.monotonic()
        self._active = self._most_active = 0
        self._failures: list[str] = []
        self._pushed = threading.Event()
        self._stopping = False
        self._over = threading.Event()
        self._people: list[threading.Thread] = []
        self._tools: list[subprocess.Popen[str]] = []

    def run(self) -> int:
        """Run the demo and return the exit status: 0 if everything ended as it must."""
        try:
            return self._run()
        finally:
            self._over.set()
            for tool in self._tools:
                tool.kill()
            for thread in self._people:
                thread.join()
            self._cloud.stop()

    def _run(self) -> int:
        self._say(STARTING)
        self._cloud.start()
        subscriber = SubscriberClient(
            transport=SubscriberGrpcTransport(channel=grpc.insecure_channel(self._cloud.pubsub.address))
        )
        try:
            subscriber.create_subscription(request={"name": _COUNTER, "topic": TICKS, "ack_deadline_seconds": 600})
            self._say(f"Ready after {time.monotonic() - self._began:.0f} s. Creating two queues with wandb.Api() …")
            self._tool([sys.executable, "-c", _QUEUES], json.dumps(QUEUES))
            if len(self._rows) < len(PUSHES):
                self._say("git is not installed, so the demo leaves out the job from git.")
            self._say(f"Pushing {len(self._rows)} items with `wandb launch`, `wandb launch-sweep` and `wandb job` …")
            self._act(self._push_all)
            self._watch(time.monotonic() + PATIENCE)
            for thread in self._people:
                thread.join()
            return self._report(_ticks(subscriber))
        finally:
            subscriber.transport.close()

    # What a person does

    def _act(self, action: Callable[[], None]) -> None:
        self._people.append(threading.Thread(target=action, name="person"))
        self._people[-1].start()

    def _push_all(self) -> None:
        try:
            places = self._places()
            with ThreadPoolExecutor(_PUSHERS) as pool:
                list(pool.map(lambda row: self._push(row.push, places), self._rows))
        finally:
            self._pushed.set()

    def _push(self, push: Push, places: Mapping[str, str]) -> None:
        for command in push.commands(places):
            if not self._over.is_set():
                self._tool(command)

    def _places(self) -> dict[str, str]:
        """Create a folder with code, a git repository with the same code, and the sweep's file. Return where they are."""
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
        """Run one of W&B's own tools as a person does, with its own home folder."""
        home = self._cloud.folder / f"home-{threading.get_ident()}"
        home.mkdir(exist_ok=True)
        self._cloud.repositories.configure(home)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        variables = {"PATH": path, "HOME": str(home), "TMPDIR": str(home), "WANDB_SILENT": "true"}
        with subprocess.Popen(
            list(command),
            cwd=home,
            env={**variables, **self._cloud.person_variables()},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as tool:
            self._tools.append(tool)
            _, errors = tool.communicate(stdin)
        if tool.returncode and not self._over.is_set():
            self._failures.append(f"{' '.join(command)[:120]} ended with {tool.returncode}: {errors[-500:]}")

    # Watching

    def _watch(self, deadline: float) -> None:
        if self._plain:
            changes = Changes()
            for _ in self._looks(deadline):
                for row in self._rows:
                    for line in changes.lines(row.item) if row.item else ():
                        self._say(f"{clock(time.monotonic() - self._began)}  {line}")
            return
        with Live(console=self._console, refresh_per_second=4, get_renderable=self._frame, transient=True):
            for _ in self._looks(deadline):
                pass
        self._console.print(self._frame(whole=True))

    def _frame(self, *, whole: bool = False) -> RenderableType:
        done = sum(row.as_expected for row in self._rows)
        title = (
            f"{clock(time.monotonic() - self._began)}   {self._active} of {self._slots} slots in use   "
            f"{done} of {len(self._rows)} items done"
        )
        lines = [Line(row.push.name, row.push.queue, row.item, row.as_expected) for row in self._rows]
        return show(title, lines, self._console.width, None if whole else self._console.height)

    def _looks(self, deadline: float) -> Iterator[None]:
        """Look again and again until all is done or the time is over."""
        while time.monotonic() < deadline:
            self._look()
            yield
            done = self._pushed.is_set() and all(row.as_expected for row in self._rows)
            if done or (self._pushed.is_set() and self._failures):
                return
            time.sleep(0.2)

    def _look(self) -> None:
        state = self._cloud.state()
        items = self._items.read(state)
        of_sweep = [name for sweep in state["wandb"]["sweeps"] for name in (sweep["name"], *sweep["runs"])]
        self._active = sum(
            job["labels"][labels.KIND] == Kind.JOB and job["state"].removeprefix("JOB_STATE_") not in ENDED_STATES
            for job in state["jobs"]
        )
        self._most_active = max(self._most_active, self._active)
        for row in self._rows:
            push = row.push
            if push.sweep is None:
                item = next((one for one in items if one.name == push.name), None)
            else:
                mine = of_sweep[push.sweep : push.sweep + 1]
                item = next((one for one in items if one.run_name in mine), None)
            if item is None:
                continue
            row.item = replace(item, name=push.name)
            if push.stop and item.run.get("state") == "running" and not self._stopping:
                self._stopping = True
                path = "/".join(item.run[part] for part in ("entity", "project", "name"))
                self._act(partial(self._tool, [sys.executable, "-c", _STOP, path]))

    # The end

    def _report(self, ticks: Sequence[tuple[float, str]]) -> int:
        for row in self._rows:
            if not row.as_expected:
                push = row.push
                expected = f"{push.item}, {push.attempts} attempts, job {push.job or 'none'}, run {push.run or 'any'}"
                found = f"{row.item.line()}; {' '.join(row.item.messages)}" if row.item else "not pushed"
                self._failures.append(f"{push.name}: {found} (expected {expected}, codes {list(push.codes)})")
        if self._most_active > self._slots:
            self._failures.append(f"{self._most_active} jobs were active at once, more than {self._slots}")
        jobs = [job for job in self._cloud.vertex.jobs.values() if job.labels[labels.KIND] == Kind.JOB]
        items = {row.push.name: row.item for row in self._rows if row.item}
        evidence = Evidence(
            items, jobs, ticks, self._slots, self._most_active, self._cloud.options.tick_every, self._cloud.state()
        )
        table, failures = summarize(evidence)
        self._failures += failures
        if self._plain:
            for line in table:
                self._say(": ".join(line))
        else:
            self._console.print(show_summary(table))
        good = sum(row.as_expected for row in self._rows)
        self._say(
            f"\n{good} of {len(self._rows)} items ended as they should. "
            f"The demo took {clock(time.monotonic() - self._began)}."
        )
        for failure in self._failures:
            self._console.print(f"FAILED: {failure}", style="red", markup=False, highlight=False, soft_wrap=True)
        if self._failures:
            log = self._cloud.dispatch.log.read_text(errors="replace")[-4000:]
            self._say(f"The log of dispatch ends with:\n{log}")
            return 1
        self._say("\n".join(("", "Try next:", *(f"  {command:<12} {what}" for command, what in NEXT))))
        return 0

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _ticks(subscriber: SubscriberClient) -> list[tuple[float, str]]:
    """Return when each tick was published, and the job whose end it reports, "" for a tick of the scheduler."""
    found = []
    request = {"subscription": _COUNTER, "max_messages": 1000, "return_immediately": True}
    while received := subscriber.pull(request=request).received_messages:
        messages = [one.message for one in received]
        found += [(one.publish_time.timestamp(), json.loads(one.data or b"{}").get("ended", "")) for one in messages]
    return found
