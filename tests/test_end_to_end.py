"""The product and real servers on loopback, from a pushed item to its job: many dispatchers, long runs, and people's tools."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from google.cloud.aiplatform_v1.types import JobState

from tests.deployment import ENTITY, IMAGE, KEY, UNREACHABLE, Clock, Deployment
from tests.processes import ROOT, Dispatcher, eventually, marked

MARK = "END_TO_END_TEST"
"""The variable by which the processes of a test are found again."""


# Many dispatchers at once


@pytest.mark.parametrize(("count", "write_interval"), [(40, 0.05), (15, 1.0)])
def test_eight_dispatchers_at_once(count: int, write_interval: float, tmp_path: Path) -> None:
    with Deployment(tmp_path, write_interval=write_interval, queues=["cpu", "gpu"], max_jobs=5) as world:
        items = [world.push(random.choice(["cpu", "gpu"])) for _ in range(count)]
        ending = threading.Event()
        answers: Counter[int] = Counter()
        threads = [
            threading.Thread(target=_keep_asking, args=(world.process(), ending, answers), name=f"asking-{number}")
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        try:
            assert eventually(lambda: _all_claimed_and_ended(world), patience=60)
        finally:
            ending.set()
            for thread in threads:
                thread.join()
        assert world.states() == dict.fromkeys(items, "CLAIMED")
        assert [len(world.jobs_of(item)) for item in items] == [1] * count
        assert world.most_active() == 5
        assert set(answers) == {200, 409}


def _keep_asking(process: Dispatcher, ending: threading.Event, answers: Counter[int]) -> None:
    while not ending.wait(random.uniform(0, 0.1)):
        process.post()
        answers[process.answer()[0]] += 1


def _all_claimed_and_ended(world: Deployment) -> bool:
    """End some of the jobs, as time does."""
    active = [job for job in world.jobs() if not job.ended]
    world.end_jobs(*{job.item for job in active if random.random() < 0.3}, "none")
    return not active and set(world.states().values()) == {"CLAIMED"}


# Long runs


def test_an_hour_of_ticks(tmp_path: Path) -> None:
    """Items come, jobs run for some minutes and end in every way; what is asked and kept is bounded."""
    chance = random.Random(4)
    with Deployment(tmp_path, Clock(), queues=["cpu", "gpu"], max_jobs=8) as world:
        good: list[str] = []
        bad: list[str] = []
        until: dict[str, float] = {}
        for minute in range(75):
            if minute < 60:
                good += [world.push(chance.choice(["cpu", "gpu"])) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
                bad += [world.push("gpu", UNREACHABLE) for _ in range(chance.random() < 0.1)]
            before = len(world.wandb.store.operations)
            report = world.tick()
            assert report
            asked = len(world.wandb.store.operations) - before
            print(minute, asked, report.slots, len(report.submitted), len(report.rejected), len(world.ledger.dump()))
            world.clock.sleep(60)
            for job in world.jobs():
                if not job.ended and until.setdefault(job.name, world.clock() + 60 * chance.uniform(0, 7)) <= world.clock():
                    world.vertex.advance(job.name, chance.choice(ENDS))
        print(world.requests.asked, len(good), len(bad))
        assert 0


ENDS = (
    JobState.JOB_STATE_SUCCEEDED,
    JobState.JOB_STATE_FAILED,
    JobState.JOB_STATE_CANCELLED,
    JobState.JOB_STATE_EXPIRED,
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED,
)


def test_an_idle_pass_costs_little(tmp_path: Path) -> None:
    with Deployment(tmp_path, queues=["cpu", "gpu"]) as world:
        world.push()
        world.tick()
        for _ in range(3):
            world.requests.at(None)
            before = len(world.wandb.store.operations)
            assert world.tick()
            assert len(world.wandb.store.operations) - before <= 2
            del world.requests.asked["project"], world.requests.asked["popFromRunQueue"]
            assert world.requests.asked == {"storage.download": 1, "storage.insert": 2, "ListCustomJobs": 1}


# People's tools


def test_the_official_agent_is_served(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(
        "max_jobs: 1\nqueues: [gpu]\nenvironment: {type: gcp, region: us-central1}\nbuilder: {type: noop}\n"
    )
    with Deployment(tmp_path) as world:
        item = world.push(image=IMAGE)
        variables = {"WANDB_BASE_URL": world.wandb.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY}
        agent = [sys.executable, "-m", "tests.official_agent", world.vertex.address, "launch-agent", "--config", str(config)]
        with _running(agent, tmp_path, variables):
            assert eventually(lambda: world.vertex.jobs, 40), (tmp_path / "output").read_text()
        print(world.wandb.store.asked(), world.states(), world.vertex.jobs)


@contextmanager
def _running(command: list[str], folder: Path, variables: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a home of its own, marked; in the end it is interrupted and must leave nothing behind."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONUNBUFFERED": "1", MARK: str(folder)}
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(30)
    finally:
        left = marked(MARK, str(folder))
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        process.wait(30)
