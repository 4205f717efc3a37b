"""What the demo creates with W&B's tools: two queues, jobs, a sweep, and items. Each item declares how it must end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local.machine.cloud import ENTITY
from local.machine.containers import Fate, Script
from local.machine.images import REGISTRY
from vertex_launch.codes import Code
from vertex_launch.job import labels


@dataclass(frozen=True)
class Push:
    """One ``wandb launch``, and the states in which its item, its last job and its run must end; "" means none."""

    name: str
    queue: str
    image: str = ""
    options: Sequence[str] = ()
    made: Sequence[str] = ()
    """The arguments of ``wandb job create`` for a job to launch instead of an image."""
    sweep: int | None = None
    """Its place in the sweep: ``wandb launch-sweep`` pushes the scheduler, which is 0, and the scheduler pushes the others."""
    item: str = "CLAIMED"
    job: str = "SUCCEEDED"
    run: str = "finished"
    codes: Sequence[Code] = ()
    """The codes that W&B must show on the item, in its message or in its warnings."""
    attempts: int = 1
    stop: bool = False
    """Whether a person stops the run once it is running."""

    def commands(self, places: Mapping[str, str]) -> list[list[str]]:
        """Return the command lines of a person. ``places`` replace the names in braces in a job's arguments."""
        where = ["-e", ENTITY, "-p", "demo"]
        if self.sweep is not None:
            return [] if self.sweep else [["wandb", "launch-sweep", places["sweep"], "-q", self.queue, *where]]
        made, what = [], ["-d", self.image if "/" in self.image else f"{REGISTRY}/{self.image}"]
        if self.made:
            arguments = [one.format_map(places) for one in self.made]
            made = [["wandb", "job", "create", *arguments, *where, "-n", self.name]]
            what = ["-j", f"{ENTITY}/demo/{self.name}:latest"]
        return [*made, ["wandb", "launch", *what, "-q", self.queue, *where, "--name", self.name, *self.options]]


def _config(**config: Any) -> tuple[str, str]:
    return "-c", json.dumps(config)


def _args(*args: str) -> tuple[str, str]:
    return _config(overrides={"args": list(args)})


def _fails(name: str, queue: str, image: str, *codes: Code) -> Push:
    """Return a push whose job ends before its run begins."""
    return Push(name, queue, image, item="FAILED", job="FAILED", run="", codes=codes)


def _job(name: str, *job: str, **expected: Any) -> Push:
    return Push(name, "vertex-cpu", options=_args("--epochs", "2"), made=job, **expected)


def _sweep(name: str, place: int) -> Push:
    return Push(name, "vertex-cpu", sweep=place)


_PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
_RUN = ("-E", "python main.py", "-r", _PYTHON)
PUSHES = (
    _sweep("sweep-scheduler", 0),
    _job("job-of-code", "code", "{code}", *_RUN),
    _job("job-in-git", "git", "{repository}", "--git-hash", "{commit}", *_RUN),
    _job("job-of-image", "image", f"{REGISTRY}/mnist:1"),
    Push(
        "preempted-twice",
        "vertex-cpu",
        "steps:1",
        _args("--steps", "50", "--pause", "0.2"),
        codes=(Code.RETRIED,),
        attempts=3,
    ),
    Push(
        "stopped-by-hand",
        "vertex-gpu",
        "steps:1",
        _args("--steps", "100000"),
        job="FAILED",
        run="killed",
        codes=(Code.RUN_STOPPED,),
        stop=True,
    ),
    Push("train-lr-0.01", "vertex-cpu", "mnist:1", _args("--learning-rate", "0.01")),
    Push("train-lr-0.02", "vertex-cpu", "mnist:1", _args("--learning-rate", "0.02")),
    Push("train-lr-0.05", "vertex-cpu", "mnist:1", _args("--learning-rate", "0.05")),
    Push("train-noisy", "vertex-gpu", "mnist:1", _args("--noise", "0.8")),
    Push("train-other-seed", "vertex-gpu", "mnist:1", (*_args("--seed", "7"), "-P", "critical")),
    Push("train-entry-point", "vertex-gpu", "mnist:1", ("-E", "python main.py --epochs 2")),
    Push("train-big-machine", "vertex-cpu", "mnist:1", ("--set-var", "machine=n1-standard-8")),
    Push("quick-1", "vertex-cpu", "quick:1"),
    Push("quick-2", "vertex-gpu", "quick:1"),
    _fails("crashes", "vertex-cpu", "crash:1", Code.JOB_EXIT),
    _fails("out-of-memory", "vertex-gpu", "hog:1", Code.JOB_MEMORY),
    _fails("exits-with-3", "vertex-cpu", "fail:1", Code.JOB_EXIT),
    _fails("no-such-image", "vertex-gpu", "missing:1", Code.JOB_IMAGE),
    Push(
        "wrong-registry",
        "vertex-cpu",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1",
        item="FAILED",
        job="",
        run="",
        codes=(Code.SPEC_IMAGE_HOST,),
    ),
    Push(
        "camel-case",
        "vertex-gpu",
        "quick:1",
        ("-R", json.dumps({"gcp-vertex": {"run": {"restartJobOnWorkerRestart": True}}})),
        item="FAILED",
        job="",
        run="",
        codes=(Code.SPEC_UNKNOWN_KEY,),
    ),
    _sweep("sweep-run-1", 1),
    _sweep("sweep-run-2", 2),
)

SWEEP = {
    "image_uri": f"{REGISTRY}/mnist:1",
    "method": "grid",
    "metric": {"name": "loss", "goal": "minimize"},
    "parameters": {"learning_rate": {"values": [0.01, 0.1]}, "epochs": {"value": 3}},
    "run_cap": 2,
    "scheduler": {"num_workers": 2},
}


def disturb(fate: Fate, name: str, attempts: int, after: float) -> Script:
    """Return a script that ends the first attempts of an item, however fast its program is and however often it is created.

    The program is that of the image steps:1, unless the fate ends the job before it starts.
    """
    first = {labels.ATTEMPT: [str(attempt) for attempt in range(1, attempts + 1)]}
    return Script(fate, name, times=None, after=after, args=("--steps", "1000000"), labels=first)


SCRIPTS = (disturb(Fate.PREEMPTED, "preempted-twice", 2, 6),)


def pool(machine: str, **accelerator: Any) -> dict[str, Any]:
    """Return a queue configuration with one worker pool."""
    worker_pool = {
        "machine_spec": {"machine_type": machine, **accelerator},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}"},
    }
    return {"spec": {"worker_pool_specs": [worker_pool], "staging_bucket": "gs://demo-staging"}, "run": {}}


QUEUES: Sequence[tuple[str, dict[str, Any], dict[str, Any] | None]] = (
    (
        "vertex-cpu",
        pool("{{machine}}"),
        {
            "machine": {
                "schema": {"type": "string", "default": "n1-standard-4", "enum": ["n1-standard-4", "n1-standard-8"]}
            }
        },
    ),
    ("vertex-gpu", pool("n1-standard-8", accelerator_type="NVIDIA_TESLA_T4", accelerator_count=1), None),
)
