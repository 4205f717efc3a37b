"""Each attack once through the functions, on the local cloud with its real processes. Only the services' state is read."""

from __future__ import annotations

import base64
import gc
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from local.machine.cloud import API_KEY, BUCKETS, ENTITY, Cloud, Options
from local.machine.functions import CONFIG
from local.programs import attacks
from local.programs.attacks import ANSWERS, BODIES, ITEM_KEY, OTHERS_SWEEP, PROJECT, Attack, honest
from local.standins.web import post

QUEUES = ("vertex-cpu", "vertex-gpu")
MOST_MEMORY = 400_000_000
LONGEST = 5_000
PYTHON = re.compile(
    r"Traceback|\w+Error\b|codec can't|set_int_max_str_digits|recursion|NoneType|object has no attribute|<class '"
)
"""What a person never needs to see."""


def forms(key: str) -> list[str]:
    """Return the forms of a key that no output may contain."""
    return [key, *(base64.b64encode(f"{user}{key}".encode()).decode().rstrip("=") for user in ("", "api:", ":"))]


class Judge:
    """A cloud without a scheduler: ``run_pass`` asks for each pass. Jobs live until the end, and run no program."""

    def __init__(self, folder: Path) -> None:
        launch = yaml.safe_load((CONFIG / "launch-config.yaml").read_text())
        (folder / "launch-config.yaml").write_text(yaml.safe_dump({**launch, "max_jobs": 1_000, "secure_mode": True}))
        self.cloud = Cloud(
            Options(
                tick_every=1e6,
                lease=60,
                settings={"submissions_per_minute": 6_000},
                variables={"LAUNCH_CONFIG": str(folder / "launch-config.yaml")},
            )
        )
        self.cloud.containers.launch = lambda name, jobs: None  # type: ignore[method-assign]
        self.cloud.storage.objects.write_interval = 0  # a person may ask for a pass at once after another
        limits = self.cloud.vertex.limits
        limits.submissions_per_minute = limits.requests_per_minute = 100_000
        store = self.cloud.wandb.store
        self.queues = [store.create_queue(ENTITY, name, resource_args={}) for name in QUEUES]
        store.set_sweep(ENTITY, PROJECT, OTHERS_SWEEP, "RUNNING")
        self.outputs: list[str] = []
        self.cloud.start()

    def run_pass(self) -> int:
        """Ask for a pass, and return the status."""
        status, answer = post(self.cloud.dispatch_now.url, b"{}", {"Content-Type": "application/json"}, 100)
        self.outputs.append(answer.decode())
        return status

    def push(self, number: int, name: str, text: str) -> str:
        return self.cloud.wandb.store.launch.push_raw(self.queues[number % 2], name, text).id

    def push_good(self, name: str) -> list[str]:
        """Push an honest item to each queue, behind what is there."""
        return [self.push(number, name, json.dumps(honest(name))) for number in range(2)]

    def jobs(self, item: str) -> list[Any]:
        """Return the jobs of an item, by the label that people see."""
        state = self.cloud.state()
        named = [one for queue in state["wandb"]["queues"] for one in queue["items"] if one["id"] == item]
        runs = {one["run"] for one in named}
        return [job for job in self.cloud.vertex.jobs.values() if _run(job) in runs]

    def states(self, *items: str) -> list[str]:
        return [self.cloud.wandb.store.state(item) for item in items]

    def said(self, item: str) -> list[str]:
        """Return what W&B shows on an item."""
        found = self.cloud.wandb.store.items[item]
        return [one.message for one in (found.error, *found.warnings) if one]

    def wrong(self) -> list[str]:
        """Return what must not be, whatever was pushed."""
        cloud, wrong = self.cloud, []
        logs = [path.read_text(errors="replace") for path in cloud.folder.glob("*.log")]
        stored = [one.data.decode(errors="replace") for one in _objects(cloud)]
        shown = [text for item in cloud.wandb.store.items for text in self.said(item)]
        jobs = [_without_key(job) for job in cloud.vertex.jobs.values()]
        for what, texts in {"log": logs, "record": stored, "W&B": shown, "answer": self.outputs, "job": jobs}.items():
            for whose, key in (("W&B", API_KEY), ("an item", ITEM_KEY)):
                if any(form in text for text in texts for form in forms(key)):
                    wrong.append(f"a {what} contains the key of {whose}")
        if cloud.wandb.store.sweeps[ENTITY, PROJECT, OTHERS_SWEEP].state != "RUNNING":
            wrong.append("the sweep of others was ended")
        memory = max(one.peak_memory() for one in (cloud.dispatch, cloud.dispatch_now))
        if memory > MOST_MEMORY:
            wrong.append(f"a function took {memory / 1e6:.0f} MB")
        if any(len(line) > 256 * 1024 for log in logs for line in log.splitlines()):
            wrong.append("a log line is too long for Cloud Logging")
        return wrong


def _run(job: Any) -> str:
    pools = job.job_spec.worker_pool_specs
    env = pools[0].container_spec.env or pools[0].python_package_spec.env
    return next((one.value for one in env if one.name == "WANDB_RUN_ID"), "")


def _without_key(job: Any) -> str:
    """Return a job as text without the variable in which the key belongs."""
    text = str(job)
    for pool in job.job_spec.worker_pool_specs:
        for one in pool.container_spec.env:
            if one.name == "WANDB_API_KEY" and one.value:
                text = text.replace(f'name: "WANDB_API_KEY"\n        value: "{one.value}"', "")
    return text


def _objects(cloud: Cloud) -> list[Any]:
    return [one for bucket in BUCKETS for one in cloud.storage.objects.list(bucket)]


def sentences(judge: Judge, item: str) -> list[str]:
    """Return what is wrong with the words that W&B shows on a failed item."""
    said = judge.said(item)
    wrong = [] if said and len(said[0].split()) >= 5 else [f"no sentence: {said!r}"]
    wrong += [f"{len(text)} characters" for text in said if len(text) > LONGEST]
    wrong += [f"Python's words: {text[:300]}" for text in said if PYTHON.search(text)]
    return wrong + ([f"{len(said)} messages"] if len(said) > 50 else [])


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    made = Judge(tmp_path_factory.mktemp("judge"))
    yield made
    made.cloud.stop()
    gc.collect()


@pytest.mark.parametrize("attack", list(attacks.attacks()), ids=lambda attack: attack.name)
def test_an_attack_stops_nobody(judge: Judge, attack: Attack) -> None:
    """The attack waits in front of the good items of both queues."""
    hostile = [judge.push(number, attack.name, attack.text) for number in range(2)]
    good = judge.push_good(f"after {attack.name}")
    statuses = [judge.run_pass() for _ in range(2)]
    assert statuses == [200, 200], judge.outputs[-1][:2_000]
    assert judge.states(*good) == ["CLAIMED"] * 2, [judge.said(item) for item in good]
    assert all(judge.jobs(item) for item in good)
    for item in hostile:
        (state,) = judge.states(item)
        assert state == "FAILED" or (state == "CLAIMED" and not attack.fails), (state, judge.said(item))
        assert state == "CLAIMED" or not sentences(judge, item), judge.said(item)
    assert judge.wrong() == []
    assert [job.name for job in judge.cloud.vertex.jobs.values() if not job.job_spec.service_account] == []


@pytest.mark.parametrize("operation", ["popFromRunQueue", "ackRunQueueItem", "failRunQueueItem", "project"])
def test_answers_of_other_shapes_lose_nothing(judge: Judge, operation: str) -> None:
    """An unreadable answer is the service's fault. The items behind it start when it answers again."""
    store, faults = judge.cloud.wandb.store, judge.cloud.faults["wandb"]
    good, bad, sent = [], [], 0
    for number, (kind, text) in enumerate([*ANSWERS.items(), *BODIES.items()]):
        good += judge.push_good(f"{operation} {kind} {number}")
        bad.append(judge.push(number, "bad", "[]"))
        (faults.answer if kind in ANSWERS and text == ANSWERS[kind] else faults.body)(operation, text)
        assert judge.run_pass() in (200, 503), (kind, judge.outputs[-1][:2_000])
        sent += not faults.state()["faults"]
        faults.clear()
        assert not PYTHON.search(judge.outputs[-1]), judge.outputs[-1][:2_000]
    for item in store.items.values():
        item.leased_until = min(item.leased_until, store.clock())  # what was popped into nothing comes back
    for _ in range(2):
        judge.run_pass()
    assert set(judge.states(*good)) == {"CLAIMED"}, [judge.said(item) for item in good]
    assert set(judge.states(*bad)) == {"FAILED"}, [judge.said(item) for item in bad]
    assert sent > 0, "the functions asked"
    assert judge.wrong() == []
