"""``verify`` against a deployment on the local cloud: functions that work, and functions that do not."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from google.pubsub_v1 import SubscriberClient

from local.machine.cloud import ENTITY, JOB_LOGS, PROJECT, Cloud, Options
from local.standins.web import Handler, WebServer
from tests.support.processes import eventually
from vertex_launch.codes import Code
from vertex_launch.log import LOGGER
from vertex_launch.verify import assumptions, cli, deployment, jobs
from vertex_launch.verify.assumptions import Group

TOKEN = "a-token-of-a-caller"
QUEUES = ("vertex-cpu", "vertex-gpu")
Verdicts = dict[str, str]
Run = Callable[..., tuple[int, Verdicts, dict[str, Any]]]


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    cloud = Cloud(Options(tick_every=5.0))
    try:
        for name in QUEUES:
            cloud.wandb.store.create_queue(ENTITY, name)
        cloud.start()
        yield cloud
    finally:
        cloud.stop()


@pytest.fixture
def run(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in list(os.environ):
        if re.match(r"(WANDB|GOOGLE|VERTEX_LAUNCH|CLOUDSDK)_", name):
            monkeypatch.delenv(name)
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)
    for name, seconds in (("TICK", 40), ("START", 60), ("LOG", 6), ("DEAD", 30), ("DATA", 20)):
        monkeypatch.setattr(deployment, f"{name}_PATIENCE", float(seconds))

    def run(only: str, **variables: str) -> tuple[int, Verdicts, dict[str, Any]]:
        for name, value in (cloud.preflight_variables() | variables).items():
            monkeypatch.setenv(name, value)
        parser = argparse.ArgumentParser()
        cli.add(parser.add_subparsers())
        file = tmp_path / "report.json"
        given = parser.parse_args(["verify", "--yes", "--only", only, "--json", str(file)])
        status = cli.run(given)
        print(capsys.readouterr().out)
        report = json.loads(file.read_text())
        return status, {one["name"]: one["verdict"] for one in report["findings"]}, report

    return run


@pytest.fixture
def guarded(cloud: Cloud) -> Iterator[WebServer]:
    """Starts ``dispatch_now`` behind a front that knows one token, as Google's does."""

    class Front(Handler):
        def serve(self) -> None:
            body = self.body()
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.answer(403, b"Your client does not have permission to get this URL")
                return
            kind = {"Content-Type": "application/json"}
            answer = requests.post(cloud.dispatch_now.url, data=body, headers=kind, timeout=60)
            self.answer(answer.status_code, answer.content)

    with WebServer(Front) as front:
        yield front


def leftovers(cloud: Cloud) -> list[str]:
    """Return the subscriptions, topics and items of the command that are still there, and its jobs that run."""
    made = [name for name in (*cloud.pubsub._subscriptions, *cloud.pubsub._topics) if "verify" in name]  # type: ignore[union-attr]
    made += [item.id for item in cloud.wandb.store.items.values() if "verify" in str(item.run_spec.get("name"))]
    made += [run.name for run in cloud.wandb.store.runs.all() if run.project == "vertex-launch-verify"]
    running = [job for job in cloud.vertex.jobs.values() if not job.end_time]
    return made + [job.name for job in running if "verify" in job.display_name]


def test_a_deployment_that_works(cloud: Cloud, run: Run, guarded: WebServer) -> None:
    status, verdicts, report = run("deployment", DISPATCH_NOW=guarded.url, DISPATCH_NOW_TOKEN=TOKEN)
    assert set(verdicts) == {one.name for one in assumptions.ASSUMPTIONS if one.group is Group.DEPLOYMENT}
    assert verdicts.pop("deployment-metrics") in ("ok", "note"), "nothing has failed, so nothing counted failures"
    assert (status, set(verdicts.values())) == (0, {"ok"}), report
    assert eventually(lambda: leftovers(cloud) == [], 20), leftovers(cloud)
    text = json.dumps(report)
    assert "Job completed successfully" in text, "the log entry of the end is in the report"
    for name in (PROJECT, ENTITY, TOKEN, *QUEUES):
        assert name not in text


def test_entries_that_do_not_arrive(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud.log_sink, "write", lambda entry: None)
    status, verdicts, report = run("deployment-log-entry,deployment-next-pass")
    assert (status, verdicts["deployment-log-entry"]) == (1, "FAIL")
    assert verdicts["deployment-next-pass"] in ("ok", "note"), "ticks make up for it"
    assert report["findings"][0]["code"] == Code.VERIFY_DEPLOYMENT


def test_a_job_state_that_does_not_answer(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud.log_shim, "_function_url", "http://127.0.0.1:9")
    _, verdicts, report = run("deployment-log-entry")
    assert verdicts == {"deployment-log-entry": "FAIL"}
    assert "no tick" in report["findings"][0]["measured"]
    assert report["findings"][0]["words"], "the log entry came"


def test_a_dispatch_that_does_not_answer(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "TICK_PATIENCE", 8.0)
    monkeypatch.setattr(deployment, "START_PATIENCE", 8.0)
    monkeypatch.setattr(cloud.shim, "_function_url", "http://127.0.0.1:9")
    status, verdicts, _ = run("deployment-tick,deployment-item")
    assert (status, verdicts) == (1, {"deployment-tick": "FAIL", "deployment-item": "FAIL"})
    monkeypatch.undo()
    assert eventually(lambda: leftovers(cloud) == [], 20), "the item was removed before anything started it"


def test_a_dispatch_now_that_anyone_may_call(run: Run) -> None:
    status, verdicts, _ = run("deployment-caller,deployment-refusal", DISPATCH_NOW_TOKEN=TOKEN)
    assert (status, verdicts) == (1, {"deployment-caller": "ok", "deployment-refusal": "FAIL"})


def test_a_dispatch_now_that_refuses_its_caller(run: Run, guarded: WebServer) -> None:
    wrong = {"DISPATCH_NOW": guarded.url, "DISPATCH_NOW_TOKEN": "another-token"}
    _, verdicts, report = run("deployment-caller,deployment-refusal", **wrong)
    assert verdicts == {"deployment-caller": "FAIL", "deployment-refusal": "ok"}
    assert "another-token" not in json.dumps(report)


def test_a_dispatch_now_that_is_unknown(run: Run) -> None:
    _, verdicts, _ = run("deployment-caller,deployment-refusal", DISPATCH_NOW="")
    assert set(verdicts.values()) == {"skip"}


def test_dead_letters_that_are_lost(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment, "DEAD_PATIENCE", 8.0)
    monkeypatch.setattr(cloud.pubsub, "_failed", lambda subscription, delivery: None)
    assert run("deployment-dead-letter")[1] == {"deployment-dead-letter": "FAIL"}
    assert leftovers(cloud) == []


def test_dead_letters_without_a_subscription(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", cloud.pubsub.address)
    grave = f"{JOB_LOGS.replace('topics', 'subscriptions')}-dead"
    subscriber = SubscriberClient()
    try:
        subscriber.delete_subscription(subscription=grave)
        assert run("deployment-dead-letter")[1] == {"deployment-dead-letter": "FAIL"}
    finally:
        topic = f"{JOB_LOGS}-dead"
        subscriber.create_subscription(request={"name": grave, "topic": topic, "ack_deadline_seconds": 60})
        subscriber.transport.close()


@pytest.mark.parametrize("answer", [False, None])
def test_metrics_without_data(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch, answer: bool | None) -> None:
    monkeypatch.setattr(cloud.monitoring, "has_data", lambda metric: answer)
    assert run("deployment-metrics")[:2] == (1, {"deployment-metrics": "FAIL"})


def test_a_signal_while_the_item_runs(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(jobs.PROGRAMS, "item", "import time\ntime.sleep(300)")

    def interrupt() -> None:
        if eventually(lambda: any("verify item" in job.display_name for job in cloud.vertex.jobs.values()), 60):
            os.kill(os.getpid(), signal.SIGTERM)

    for job in [name for name, job in cloud.vertex.jobs.items() if "verify item" in job.display_name]:
        cloud.vertex.store.delete(job)
    thread = threading.Thread(target=interrupt)
    thread.start()
    status, _, _ = run("deployment-item,deployment-log-entry")
    thread.join()
    assert status == 128 + signal.SIGTERM
    assert eventually(lambda: leftovers(cloud) == [], 30), leftovers(cloud)


def test_a_signal_before_lists_show_the_job(cloud: Cloud, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud.vertex.limits, "list_lag", 1000.0)
    monkeypatch.setattr(jobs, "LAST_WORDS", 5.0)
    store, before = cloud.wandb.store, len(cloud.vertex.jobs)

    def interrupt() -> None:
        claimed = lambda: any(item.settled for item in store.items.values() if "verify" in item.run_spec["name"])  # noqa: E731
        if eventually(claimed, 60):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, _, report = run("deployment-log-entry")
    thread.join()
    assert (status, len(cloud.vertex.jobs)) == (130, before + 1)
    assert any("which no list shows yet" in one for one in report["left"])
    assert [item for item in store.items.values() if "verify" in item.run_spec["name"]] == []
