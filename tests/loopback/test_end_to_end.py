"""The product with real servers on loopback, from a pushed item to its job: parallel dispatchers, long runs, W&B's tools."""

from __future__ import annotations

import json
import random
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest
from google.cloud.aiplatform_v1.types import CustomJob, JobState

from local.standins.vertex import job_errors
from tests.support.deployment import ENTITY, IMAGE, KEY, UNREACHABLE, Clock, Deployment, resource_args, run_spec
from tests.support.processes import Command, Function, eventually
from vertex_launch.job import labels

# Many dispatchers at once


@pytest.mark.parametrize(("count", "write_interval"), [(40, 0.05), (10, 1.0)])
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


def _keep_asking(process: Function, ending: threading.Event, answers: Counter[int]) -> None:
    while not ending.wait(random.uniform(0, 0.1)):
        process.post()
        answers[process.answer()[0]] += 1


def _all_claimed_and_ended(world: Deployment) -> bool:
    """End some of the jobs at random."""
    active = [job for job in world.jobs() if not job.ended]
    world.end_jobs(*{job.item for job in active if random.random() < 0.3})
    return not active and set(world.states().values()) == {"CLAIMED"}


# Long runs


def test_an_hour_of_ticks(tmp_path: Path) -> None:
    """Items come, jobs run for some minutes and end in every way. Requests and memory stay bounded."""
    chance = random.Random(4)
    with Deployment(tmp_path, Clock(), queues=["cpu", "gpu"], max_jobs=8) as world:
        good: list[str] = []
        bad: list[str] = []
        until: dict[str, float] = {}
        ticks = 75
        for minute in range(ticks):
            if minute < 60:
                good += [world.push(chance.choice(["cpu", "gpu"])) for _ in range(chance.choice([0, 1, 1, 2, 3]))]
                bad += [world.push("gpu", UNREACHABLE) for _ in range(chance.random() < 0.1)]
            before = len(world.wandb.store.operations)
            report = world.tick()
            assert report
            asked = len(world.wandb.store.operations) - before
            if minute:
                begun, ended = bool(report.submitted or report.rejected), bool(report.settled)
                assert asked <= 3 + 3 * begun + 3 * ended, "look, pop, warn; pop, fail, ack; items, runs, warn"
            assert len(world.ledger.open) <= 8
            settled = 120 * len(world.ledger.settled) + 60 * len(world.ledger.settled_items)
            assert len(world.ledger.dump()) < 800 + 500 * len(world.ledger.open) + settled
            assert len(world.ledger.settled) <= 8 * 11, "of the last ten minutes"
            world.clock.sleep(60)
            for job in world.jobs():
                if (
                    not job.ended
                    and until.setdefault(job.name, world.clock() + 60 * chance.uniform(0, 7)) <= world.clock()
                ):
                    world.vertex.advance(job.name, JobState.JOB_STATE_RUNNING)
                    world.begin_run(job)
                    state = chance.choice(ENDS)
                    world.vertex.advance(job.name, state, job_errors.exited(1) if state is FAILED else None)
        assert world.states() == {**dict.fromkeys(good, "CLAIMED"), **dict.fromkeys(bad, "FAILED")}
        assert [len(world.jobs_of(item)) for item in good] == [1] * len(good)
        assert world.most_active() == 8
        assert report
        assert report.slots == {"max_jobs": 8, "active": 0, "free": 8}
        assert world.vertex.calls == {
            "CreateCustomJob": len(good),
            "GetCustomJob": len(good),  # each job once, when it has ended
            "ListCustomJobs": ticks + 1,  # and once more in the first pass
        }
        assert world.secrets.calls == {"AccessSecretVersion": 1}
        assert world.storage.calls["storage.download"] == ticks
        assert world.storage.calls["storage.insert"] <= 4 * ticks, "lock, note, plans and ledger"
        assert len(world.ledger.dump()) < 700 + 180 * len(world.ledger.settled)


FAILED = JobState.JOB_STATE_FAILED
ENDS = (
    JobState.JOB_STATE_SUCCEEDED,
    FAILED,
    JobState.JOB_STATE_CANCELLED,
    JobState.JOB_STATE_EXPIRED,
    JobState.JOB_STATE_PARTIALLY_SUCCEEDED,
)


def test_history_costs_nothing(tmp_path: Path) -> None:
    """A pass in which a job has ended sends the same requests with 2,000 ended jobs of the deployment as with none."""
    asked = []
    for history in (0, 2_000):
        folder = tmp_path / str(history)
        folder.mkdir()
        with Deployment(folder) as world:
            item = world.push()
            world.tick()
            (job,) = world.vertex.jobs.values()
            for _ in range(history):
                name = world.vertex.store.add(job.name.rsplit("/customJobs/", 1)[0], CustomJob.pb(job)).name
                world.vertex.store.move(name, {JobState.JOB_STATE_QUEUED}, JobState.JOB_STATE_SUCCEEDED)
            world.vertex.advance(job.name, JobState.JOB_STATE_RUNNING)
            world.begin_run(world.jobs_of(item)[0])
            world.vertex.advance(job.name, FAILED, job_errors.exited(1))
            world.requests.at(None)
            report = world.tick()
            assert report
            assert [one["outcome"] for one in report.settled] == ["warned"]
            asked.append(world.requests.asked.copy())
    assert asked[0] == asked[1]
    assert asked[0]["ListCustomJobs"] == asked[0]["GetCustomJob"] == 1


# W&B's tools


def test_a_functions_disk_is_empty_after_it_read_jobs(tmp_path: Path) -> None:
    with Deployment(tmp_path) as world:
        world.variables["TMPDIR"] = str(tmp_path / "tmp")
        (tmp_path / "tmp").mkdir()
        described = json.dumps({"source_type": "image", "source": {"image": IMAGE}}).encode()
        world.wandb.store.create_artifact(ENTITY, "demo", "job", "train", {"wandb-job.json": described}, username="ada")
        spec = {**run_spec(), "docker": {}, "job": f"{ENTITY}/demo/train:latest"}
        item = world.push(docker={}, job=spec["job"])
        process = world.process()
        reports = []
        for body in ({"dry_run": True, "run_spec": spec}, {}):
            process.post(body)
            status, report = process.answer()
            assert (status, report["rejected"]) == (200, []), report
            (folder,) = (tmp_path / "tmp").glob("vertex-launch-wandb-*")
            assert list(folder.iterdir()) == []
            reports.append(report)
        shown, done = reports
        assert shown["custom_job"]["job_spec"]["worker_pool_specs"][0]["container_spec"]["image_uri"] == IMAGE
        assert [one["item"] for one in done["submitted"]] == [item]


def test_the_official_agent_takes_an_item_and_leaves_nothing_to_a_pass(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text(
        "max_jobs: 1\nqueues: [gpu]\nenvironment: {type: gcp, region: us-central1}\nbuilder: {type: noop}\n"
    )
    with Deployment(tmp_path) as world:
        item = world.push(name="theirs", resource_args=resource_args(staging_bucket="gs://staging"))
        launch_agent = [sys.executable, "-m", "tests.support.official_agent", world.vertex.address, "launch-agent"]
        variables = {"WANDB_BASE_URL": world.wandb.url, "WANDB_API_KEY": KEY, "WANDB_ENTITY": ENTITY}
        with closing(Command([*launch_agent, "--config", str(config)], tmp_path, variables)) as agent:
            assert eventually(lambda: world.vertex.jobs), agent.output()
        (job,) = world.vertex.jobs.values()
        assert job.display_name == "theirs"
        assert job.job_spec.worker_pool_specs[0].container_spec.image_uri == IMAGE
        assert world.wandb.store.items[item].associated_run_id == job.labels[labels.OFFICIAL_RUN]
        assert world.states() == {item: "CLAIMED"}
        assert {"popFromRunQueue", "ackRunQueueItem", "createLaunchAgent"} <= set(world.wandb.store.asked())
        report = world.tick()
        assert report
        assert (report.submitted, report.slots["active"]) == ([], 0), "jobs of others do not count"
