"""Measure the memory of a function that runs passes, with a real function and real job artifacts.

``python -m bench.memory`` starts the local cloud, creates jobs with ``wandb job create``, and lets ``dispatch_now`` start
them. It prints the memory of the function's processes and files: a function's disk is memory. Linux only: it reads /proc.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from local.machine.cloud import ENTITY, Cloud, Options
from local.programs.demo_items import pool
from local.standins.web import post

QUEUE = "cpu"
FUNCTION = "dispatch_now"
MIB = 2**20
JOBS = 60
"""The jobs that Vertex AI's quota of one minute allows."""
HELPER = "wandb-core"
"""The program of the SDK's helper process."""


@dataclass(frozen=True)
class Taken:
    """The memory at one moment in MiB: of all processes, with shared memory counted once, and of the files."""

    when: str
    processes: float
    unshared: float
    """The memory of all processes with shared memory counted for each: the most it can be if nothing is shared."""
    disk: float
    helpers: int
    """The number of the SDK's helper processes."""


def measure(jobs: int) -> Iterator[Taken]:
    """Measure a function before and after its first pass, with a first code job, and with ``jobs`` more."""
    with _cloud() as cloud:
        disk = cloud.folder / "tmp"
        yield _taken("its start", disk)
        _pass(cloud, 0)
        yield _taken("a pass without an item", disk)
        job = _make_job(cloud)
        for count, when in ((1, "the first code job"), (jobs, f"{jobs} code jobs in a pass")):
            for _ in range(count):
                cloud.wandb.store.push(ENTITY, QUEUE, _run_spec(job))
            _pass(cloud, count)
            yield _taken(when, disk)


@contextmanager
def _cloud() -> Iterator[Cloud]:
    """Start a cloud whose functions have their own disk and slots for all jobs. The jobs never start."""
    settings = {"submissions_per_minute": 10_000}
    variables: dict[str, str] = {}
    cloud = Cloud(Options(tick_every=3600, queued=3600, variables=variables, settings=settings))
    launch = cloud.folder / "launch-config.yaml"
    launch.write_text(yaml.safe_dump({"entity": ENTITY, "queues": [QUEUE], "max_jobs": -1}))
    (cloud.folder / "tmp").mkdir()
    variables |= {"LAUNCH_CONFIG": str(launch), "TMPDIR": str(cloud.folder / "tmp")}
    cloud.vertex.limits.submissions_per_minute = 10_000
    cloud.start()
    try:
        cloud.wandb.store.create_queue(ENTITY, QUEUE)
        yield cloud
    finally:
        cloud.stop()


def _make_job(cloud: Cloud) -> str:
    """Create a job from a program with W&B's tool. Return its name."""
    home = cloud.folder / "home"
    (home / "code").mkdir(parents=True)
    (home / "code" / "train.py").write_text("import wandb\nwandb.init()\n")
    (home / "code" / "requirements.txt").write_text("wandb\n")
    command = [sys.executable, "-m", "wandb", "job", "create", "code", "code", "--project=demo", f"--entity={ENTITY}"]
    command += ["--name=train", "--entry-point=python train.py", "--runtime=3.11"]
    variables = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), **cloud.person_variables()}
    subprocess.run(command, cwd=home, env=variables, check=True, capture_output=True)  # noqa: S603 - all of it is ours
    return f"{ENTITY}/demo/train:latest"


def _run_spec(job: str) -> dict[str, Any]:
    resource_args = {"gcp-vertex": pool("n1-standard-4")}
    return {"entity": ENTITY, "project": "demo", "job": job, "resource": "gcp-vertex", "resource_args": resource_args}


def _pass(cloud: Cloud, submitted: int) -> None:
    """Run a pass that must start ``submitted`` jobs."""
    status, answer = post(cloud.dispatch_now.url, b"{}", {"Content-Type": "application/json"}, 120)
    if status != 200 or len(json.loads(answer)["submitted"]) != submitted:
        raise RuntimeError(f"the pass answered {status} instead of starting {submitted} jobs: {answer.decode()}")


def _taken(when: str, disk: Path) -> Taken:
    function = next(process for process in _family(os.getpid()) if FUNCTION in _command(process))
    processes = list(_family(function))
    taken = [_sizes(process) for process in processes]
    files = sum(path.lstat().st_size for path in disk.rglob("*") if path.is_file())
    return Taken(
        when,
        processes=sum(sizes["Pss"] for sizes in taken),
        unshared=sum(sizes["Rss"] for sizes in taken),
        disk=files / MIB,
        helpers=sum(_command(process)[0].endswith(HELPER) for process in processes),
    )


def _family(pid: int) -> Iterator[int]:
    """Return a process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _command(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def _sizes(pid: int) -> dict[str, float]:
    """Return the sizes in a process's smaps_rollup, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: float(value.split()[0]) / 1024 for name, _, value in (line.partition(":") for line in lines)}


if __name__ == "__main__":
    print("| after | MiB | MiB if nothing is shared | MiB on disk | helpers |\n|---|---|---|---|---|")
    for taken in measure(JOBS):
        print(f"| {taken.when} | {taken.processes:.0f} | {taken.unshared:.0f} | {taken.disk:.1f} | {taken.helpers} |")
