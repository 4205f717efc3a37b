"""The permissions that each function uses, from its calls during a job's whole life on local services.

Each function runs alone, as a process under functions-framework, and is called like the cloud calls it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import JobState
from google.cloud.pubsub_v1 import PublisherClient

from local.machine.functions import Function
from local.standins.logs import LogServer
from local.standins.pubsub import PubSubServer
from local.standins.vertex.job_errors import INTERNAL, exited
from local.standins.vertex.job_log import output_entry
from local.standins.vertex.server import PROJECTS
from local.standins.web import post
from tests.support.deployment import BUCKET, PROJECT, Deployment, resource_args
from tests.support.permissions import ACCOUNTS, JOB_ACCOUNT, LOG_LINES, NEEDED, OF_CALLS, RECORD, granted
from tests.support.terraform_plan import bindings, needs_terraform, permissions, plan
from vertex_launch.model import ManagedJob

TOPIC = f"projects/{PROJECT}/topics/ticks"
ACCOUNT = f"jobs@{PROJECT}.iam.gserviceaccount.com"
SIGNATURES = {"dispatch": "cloudevent", "dispatch_now": "http", "job_state": "cloudevent"}


class Alone:
    """One function and the services that it may use."""

    def __init__(self, name: str, outside: Deployment, logs: LogServer, pubsub: PubSubServer, url: str) -> None:
        self.name, self.outside, self.logs, self._url = name, outside, logs, url
        self._servers = (outside.vertex, outside.secrets, outside.storage, logs, pubsub)
        self._missed = False
        self.forget()

    def forget(self) -> None:
        """Count calls from now on."""
        self._before = self._calls()

    def ask(self, body: Mapping[str, Any] | None = None, *, again: bool = False) -> None:
        """Send a push or a request, whichever the function takes; ``again`` if it must be delivered again."""
        self._missed |= not self._objects()
        data = base64.b64encode(json.dumps(body or {}).encode()).decode()
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        push = {"message": {"data": data, "messageId": "1", "publishTime": now}, "subscription": "s"}
        sent = (body or {}) if self.name == "dispatch_now" else push
        status, answer = post(self._url, json.dumps(sent).encode(), {"Content-Type": "application/json"}, 30)
        assert status in ((429,) if again else (200, 204)), answer

    def used(self) -> set[tuple[str, str]]:
        """Return the permissions for all calls. Raises KeyError for a call whose permission is unknown."""
        calls = self._calls() - self._before
        used = {OF_CALLS[call] for call in calls}
        if calls["CreateCustomJob"] and any(job.job_spec.service_account for job in self.outside.vertex.jobs.values()):
            used.add((JOB_ACCOUNT, "iam.serviceAccounts.actAs"))
        if calls["storage.insert"] > len(self._objects()):
            used.add((RECORD, "storage.objects.delete"))  # overwriting includes deleting
        if calls["storage.download"] and self._missed:
            used.add((RECORD, "storage.objects.list"))  # otherwise a missing object is answered 403
        return used

    def _calls(self) -> Counter[str]:
        return sum((server.calls for server in self._servers), Counter())

    def _objects(self) -> Sequence[Any]:
        return self.outside.storage.objects.list(BUCKET)


@pytest.fixture
def alone(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Alone]:
    name, logs, pubsub = request.param, LogServer(projects=PROJECTS), PubSubServer()
    settings: dict[str, Any] = {"stopped_run_timeout": 0, "resubmit_after": 0, "log_lines": 5}
    with Deployment(tmp_path, **settings) as outside, contextlib.ExitStack() as started:
        for server in (logs, pubsub):
            server.start()
            started.callback(server.stop)
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", pubsub.address)
        publisher = PublisherClient()
        publisher.create_topic(name=TOPIC)
        publisher.transport.close()
        variables = {
            **outside.variables,
            "PUBSUB_EMULATOR_HOST": pubsub.address,
            "LOGGING_ENDPOINT": logs.url,
            "DISPATCH_TOPIC": TOPIC,
        }
        function = Function(name, SIGNATURES[name], variables, tmp_path / "function.log")
        function.start()
        started.callback(function.stop)
        function.wait()
        yield Alone(name, outside, logs, pubsub, function.url)


@pytest.mark.parametrize("alone", ["dispatch", "dispatch_now"], indirect=True)
def test_a_pass_uses_these_permissions_and_no_others(alone: Alone) -> None:
    outside, spec = alone.outside, resource_args(service_account=ACCOUNT)
    fails, stops = outside.push(resource_args=spec), outside.push(resource_args=spec)
    alone.ask()
    for item in (fails, stops):
        run(outside, outside.jobs_of(item)[0])
    its, runs = outside.jobs_of(stops)[0].run, outside.wandb.store.runs
    stopped = runs.get(its.entity, its.project, its.id)
    assert stopped is not None
    runs.stop(stopped)
    alone.ask()  # cancels that job
    outside.vertex.advance(outside.jobs_of(fails)[0].name, JobState.JOB_STATE_FAILED, INTERNAL)
    alone.ask()  # retries the other one
    second = outside.jobs_of(fails)[-1]
    run(outside, second)
    alone.logs.add(output_entry(PROJECT, second.name.rsplit("/", 1)[-1], "no such file", time.time()))
    outside.vertex.advance(second.name, JobState.JOB_STATE_FAILED, exited(1))
    alone.ask()  # reads its log and settles it
    assert alone.used() == NEEDED[alone.name] | LOG_LINES


@pytest.mark.parametrize("alone", ["job_state"], indirect=True)
def test_job_state_uses_these_permissions_and_no_others(alone: Alone) -> None:
    outside = alone.outside
    item = outside.push()
    outside.tick()
    (job,) = outside.jobs_of(item)
    alone.forget()
    alone.ask({"job": job.name}, again=True)  # has not ended
    outside.vertex.advance(job.name, JobState.JOB_STATE_SUCCEEDED)
    alone.ask({"job": job.name})
    alone.ask({"job": f"{job.name}9"})  # does not exist
    assert alone.used() == NEEDED["job_state"]


@pytest.mark.deployment
@needs_terraform
@pytest.mark.parametrize("function", NEEDED)
def test_terraform_grants_exactly_what_is_used(function: str) -> None:
    planned = plan()
    account = f"vertex-launch-{ACCOUNTS[function]}"
    assert granted(bindings(planned), permissions(planned), account) == NEEDED[function]


@pytest.mark.deployment
@needs_terraform
@pytest.mark.parametrize("function", NEEDED)
def test_terraform_grants_reading_logs_only_if_they_are_read(function: str) -> None:
    planned = plan({"read_job_logs": True})
    account = f"vertex-launch-{ACCOUNTS[function]}"
    more = set() if function == "job_state" else LOG_LINES
    assert granted(bindings(planned), permissions(planned), account) == NEEDED[function] | more


def run(outside: Deployment, job: ManagedJob) -> None:
    """Let a job run, and its program call wandb.init."""
    outside.vertex.advance(job.name, JobState.JOB_STATE_RUNNING)
    outside.begin_run(job)
