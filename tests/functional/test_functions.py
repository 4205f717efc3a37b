"""The functions under functions-framework with an outside in memory: what each request and each error is answered."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import functions_framework
import pytest
import yaml
from google.cloud.aiplatform_v1.types import JobState
from werkzeug.test import TestResponse

from local.machine.functions import ROOT
from tests.functional.test_job_state import encoded, entry
from tests.support.memory import KEY, World, image_spec
from vertex_launch import functions, log
from vertex_launch.clients import Clients
from vertex_launch.codes import Code
from vertex_launch.dispatch.preview import preview
from vertex_launch.errors import ConfigError, JobNotEnded, PassBusy, PassLost, Problem, RequestError, Unavailable
from vertex_launch.log import Event

# functions-framework asks for the time in a way that later Pythons warn of.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

NAMES = ("dispatch", "dispatch_now", "job_state")
JSON = {"Content-Type": "application/json"}
STRUCTURED = {"Content-Type": "application/cloudevents+json"}
BINARY = {
    **JSON,
    "ce-id": "1234",
    "ce-source": "//pubsub.googleapis.com/projects/p/topics/ticks",
    "ce-specversion": "1.0",
    "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
    "ce-time": "2026-02-23T21:11:09.100Z",
}
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Here:
    """The three functions, and everything that leaves them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.world = World(tick_topic="projects/p/topics/ticks")
        settings = self.world.settings
        clients = Clients(settings, self.world.redact)
        vars(clients).update(services=self.world.services(), vertex=self.world.vertex, ticks=self.world.topic)
        self.deployment = functions.Deployment(settings, clients)
        self._functions = {name: functions_framework.create_app(name, str(ROOT / "main.py")) for name in NAMES}
        self._capsys = capsys

    def send(
        self, name: str, body: object = b"", headers: Mapping[str, str] = JSON, method: str = "POST"
    ) -> TestResponse:
        log.configure(self.world.redact, project="p")  # not earlier: sys.stdout changes between the phases of a test
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        client = self._functions[name].test_client()
        response: TestResponse = client.open("/", method=method, data=data, headers=headers)
        return response

    def log(self) -> list[dict[str, Any]]:
        """Return what was logged since the last time."""
        out, err = self._capsys.readouterr()
        assert err == ""
        return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    monkeypatch.setattr(log.LOGGER, "handlers", [])
    here = Here(capsys)
    monkeypatch.setattr(functions, "load", lambda: here.deployment)
    monkeypatch.setattr(functions, "REDACT", here.world.redact)
    return here


def raiser(error: Exception) -> Callable[..., None]:
    def burst(*_: object, **__: object) -> None:
        raise error

    return burst


def push(payload: object = None, published: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"messageId": "1234"}
    if payload is not None:
        found["data"] = encoded(payload)
    if published is not None:
        found["publishTime"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(published))
    return {"message": found, "subscription": "projects/p/subscriptions/s"}


# The table of answers

PROBLEM = Problem("limit in request body", "is wrong", "Write another", Code.REQUEST_VALUE)
DOWN = Unavailable("W&B", "down", code=Code.WANDB_UNAVAILABLE)
ERRORS: list[tuple[Exception, Code, tuple[int, int], str | None, str, Event | None]] = [
    (RequestError([PROBLEM]), Code.REQUEST_INVALID, (400, 200), None, "ERROR", Event.DROPPED),
    (PassBusy("busy", 3.2), Code.PASS_BUSY, (409, 429), "3", "INFO", Event.BUSY),
    (PassBusy("busy", 0.0), Code.PASS_BUSY, (409, 429), "1", "INFO", Event.BUSY),
    (PassBusy("busy", 75.0), Code.PASS_BUSY, (409, 429), "5", "INFO", Event.BUSY),
    (PassLost("lost", code=Code.PASS_LOST), Code.PASS_LOST, (409, 429), "1", "WARNING", None),
    (JobNotEnded("runs", code=Code.JOB_NOT_ENDED), Code.JOB_NOT_ENDED, (409, 429), "5", "INFO", None),
    (DOWN, Code.WANDB_UNAVAILABLE, (503, 503), "10", "ERROR", Event.FAILED),
    (ConfigError([PROBLEM]), Code.CONFIG_INVALID, (500, 500), None, "ERROR", Event.FAILED),
    (ZeroDivisionError("oh"), Code.UNEXPECTED, (500, 500), None, "ERROR", Event.FAILED),
]


@pytest.mark.parametrize(("error", "code", "statuses", "retry_after", "severity", "event"), ERRORS)
@pytest.mark.parametrize("name", NAMES)
def test_each_error_has_its_answer(
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    error: Exception,
    code: Code,
    statuses: tuple[int, int],
    retry_after: str | None,
    severity: str,
    event: Event | None,
) -> None:
    pushed = name != "dispatch_now"
    monkeypatch.setattr(functions, "load", raiser(error))
    answer = here.send(name)
    body, status = answer.get_json(), statuses[pushed]
    assert (answer.status_code, answer.headers.get("Retry-After")) == (status, retry_after)
    assert body["code"] == code
    assert body["error"].endswith(f"[{code}]")
    assert body.get("problems") == ([str(PROBLEM)] if hasattr(error, "problems") else None)
    assert body.get("service") == getattr(error, "service", None)
    logged = here.log()
    if not pushed and status < 500:
        assert logged == [], "a person's own errors are answered only"
        return
    (line,) = logged
    assert (line["severity"], line["code"], line.get("event")) == (severity, code, event)
    assert (str(PROBLEM) in line["message"]) == hasattr(error, "problems")
    assert ("Traceback" in line["message"]) == isinstance(error, ZeroDivisionError)
    assert "ZeroDivisionError" not in answer.get_data(as_text=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_only_posts(here: Here, name: str, method: str) -> None:
    answer = here.send(name, method=method)
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
    assert here.world.bucket.calls == {}


@pytest.mark.parametrize("signature", ["http", "cloudevent", "event", None])
@pytest.mark.parametrize("name", NAMES)
def test_a_trigger_changes_nothing(
    here: Here, monkeypatch: pytest.MonkeyPatch, name: str, signature: str | None
) -> None:
    """Deploying with a trigger sets FUNCTION_SIGNATURE_TYPE; the decorators in main.py win."""
    monkeypatch.setenv("FUNCTION_SIGNATURE_TYPE", signature or "cloudevent")
    client = functions_framework.create_app(name, str(ROOT / "main.py"), signature).test_client()
    body = push(entry()) if name == "job_state" else push({}) if name == "dispatch" else {}
    assert client.post("/", json=body, headers=BINARY).status_code == 200
    assert [line for line in here.log() if line["severity"] == "ERROR"] == []


# Messages

MALFORMED = [
    *((data, headers) for data in (b"", b"{", b"[1]", b"\xff") for headers in (JSON, STRUCTURED, BINARY)),
    (b"[" * 100_000, JSON),
    (b"a=b", {"Content-Type": "application/x-www-form-urlencoded"}),
    *((json.dumps(push(junk)).encode(), headers) for junk in (b"not json", [1]) for headers in (JSON, BINARY)),
]


@pytest.mark.parametrize(("data", "headers"), MALFORMED)
@pytest.mark.parametrize("name", ["dispatch", "job_state"])
def test_junk_is_logged_and_acknowledged(here: Here, name: str, data: bytes, headers: Mapping[str, str]) -> None:
    assert here.send(name, data, headers).status_code == 200
    (line,) = here.log()
    assert (line["severity"], line["code"], line["event"]) == ("ERROR", Code.REQUEST_INVALID, Event.DROPPED)
    assert here.world.bucket.calls == {}


def test_a_dropped_message_can_be_found_by_its_id(here: Here) -> None:
    for name in ("dispatch", "job_state"):
        here.send(name, push([1]))
        (line,) = here.log()
        assert "'1234'" in line["message"]


def test_a_tick_that_needs_no_pass_has_one_log_line_that_says_why(here: Here) -> None:
    here.world.run()
    before = here.world.bucket.calls["write ledger.json"]
    now = here.world.clock.now
    for published, code in ((now - 601, Code.TICK_STALE), (now - 5, Code.TICK_SERVED)):
        assert here.send("dispatch", push(published=published)).status_code == 200
        (line,) = here.log()
        assert (line["severity"], line["code"]) == ("INFO", code)
    assert here.world.bucket.calls["write ledger.json"] == before


def test_an_entry_about_something_else_is_acknowledged(here: Here) -> None:
    other = entry(resource={"type": "gce_instance", "labels": {"instance_id": "1"}})
    assert here.send("job_state", push(other)).status_code == 200
    assert (here.log(), here.world.topic.published) == ([], [])


# Requests


def test_a_request_that_is_invalid_is_answered_with_every_problem(here: Here) -> None:
    answer = here.send("dispatch_now", {"queues": ["tpu"], "limit": "3", "dryrun": True, "run_spec": {}})
    assert answer.status_code == 400
    codes = (Code.REQUEST_QUEUE, Code.REQUEST_VALUE, Code.REQUEST_RUN_SPEC, Code.REQUEST_KEY)
    problems = answer.get_json()["problems"]
    assert [text.rpartition(" ")[2] for text in problems] == [f"[{code}]" for code in codes]
    assert here.world.bucket.calls == {}


@pytest.mark.parametrize("header", ["X-Cloud-Trace-Context", "traceparent"])
def test_every_line_of_a_pass_has_the_trace_of_its_request(here: Here, header: str) -> None:
    here.world.queue.push("cpu", image_spec())
    value = f"{TRACE}/1;o=1" if header == "X-Cloud-Trace-Context" else f"00-{TRACE}-b7ad6b7169203331-01"
    report = here.send("dispatch_now", {}, {**JSON, header: value}).get_json()
    lines = here.log()
    assert {line["logging.googleapis.com/trace"] for line in lines} == {f"projects/p/traces/{TRACE}"}
    (summary,) = [line for line in lines if line.get("event") == Event.PASS]
    assert summary["report"] == report
    here.send("dispatch_now", {})
    assert "logging.googleapis.com/trace" not in here.log()[-1]


def test_a_dry_run_logs_nothing_of_a_posted_run_spec(here: Here) -> None:
    spec = image_spec(overrides={"args": ["--password=hunter2"]})
    report = here.send("dispatch_now", {"dry_run": True, "run_spec": spec}).get_json()
    assert "hunter2" in json.dumps(report["custom_job"])
    (line,) = here.log()
    assert line["report"]["slots"] == report["slots"]
    assert "hunter2" not in json.dumps(line)


@pytest.mark.parametrize("name", ["dispatch", "dispatch_now"])
def test_caches_on_disk_are_emptied_after_every_pass(here: Here, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for body in ({}, {"dry_run": True}):
        here.send(name, push(body) if name == "dispatch" else body)
    assert here.world.artifacts.calls["forget"] == 2
    monkeypatch.setattr(
        here.world.bucket, "read", raiser(Unavailable("Cloud Storage", "down", code=Code.STORAGE_UNAVAILABLE))
    )
    assert here.send(name, push({}) if name == "dispatch" else {}).status_code == 503
    assert here.world.artifacts.calls["forget"] == 3


def test_few_frames_lead_from_the_entry_point_to_a_new_job(here: Here) -> None:
    found: list[str] = []

    def create(request: object, real: Callable[[], str]) -> str:
        found.extend(frames_of_the_product())
        return real()

    here.world.vertex.on_create = create
    here.world.queue.push("cpu", image_spec())
    services = replace(here.world.services(), run_parallel=lambda calls, _: [call() for call in calls])
    vars(here.deployment.clients)["services"] = services  # all in one thread
    here.send("dispatch", push({}))
    assert found[:3] == ["dispatch in main.py", "dispatch in functions.py", "run_pass in run.py"]
    assert len(found) <= 6


def test_few_frames_lead_from_the_entry_point_to_a_tick(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[str] = []
    monkeypatch.setattr(here.world.topic, "publish", lambda _: found.extend(frames_of_the_product()))
    here.world.queue.push("cpu", image_spec())
    here.world.run()
    (name,) = here.world.vertex.jobs
    here.world.vertex.set(name, JobState.JOB_STATE_SUCCEEDED)
    here.send("job_state", push({"job": name}))
    assert found == ["job_state in main.py", "job_state in functions.py", "follow in watch.py"]


def frames_of_the_product() -> list[str]:
    """Return the functions of the product that are being called, the outermost first."""
    found = []
    for frame in traceback.extract_stack():
        path = Path(frame.filename)
        if path == ROOT / "main.py" or (ROOT / "vertex_launch") in path.parents:
            found.append(f"{frame.name} in {path.name}")
    return found


# The configuration


@pytest.fixture
def deployed(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Configure the functions with files in a folder, as a deployment does."""
    names = {"launch-config.yaml": "LAUNCH_CONFIG", "vertex-launch.yaml": "VERTEX_LAUNCH_CONFIG"}
    for name, variable in names.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(log.LOGGER, "handlers", [])
    functions.load.cache_clear()
    yield tmp_path
    functions.load.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_an_invalid_configuration(deployed: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    (deployed / "launch-config.yaml").write_text(yaml.safe_dump({"queue": ["cpu"], "max_jobs": "many"}))
    answer = functions_framework.create_app(name, str(ROOT / "main.py")).test_client().post("/", json=push({}))
    assert (answer.status_code, answer.get_json()["code"]) == (500, Code.CONFIG_INVALID)
    problems = answer.get_json()["problems"]
    assert len(problems) >= 3
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (line["severity"], line["code"], line["event"]) == ("ERROR", Code.CONFIG_INVALID, Event.FAILED)
    assert all(problem in line["message"] for problem in problems)


def test_job_state_needs_a_topic(here: Here) -> None:
    settings = here.world.settings.model_copy(update={"tick_topic": None})
    here.deployment = functions.Deployment(settings, Clients(settings, here.world.redact))
    answer = here.send("job_state", push(entry()))
    assert (answer.status_code, answer.get_json()["code"]) == (500, Code.CONFIG_INVALID)
    assert [text.rpartition(" ")[2] for text in answer.get_json()["problems"]] == [f"[{Code.CONFIG_TICK_TOPIC}]"]


# Every exit is redacted


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "error",
    [
        RequestError([Problem(KEY, KEY, KEY, Code.REQUEST_VALUE)]),
        ConfigError([Problem(KEY, KEY, KEY, Code.REQUEST_VALUE)]),
        Unavailable(f"W&B {KEY}", f"refused {KEY}", code=Code.WANDB_UNAVAILABLE),
        PassBusy(f"pass {KEY} is running", 5),
        PassLost(KEY, code=Code.PASS_LOST),
        JobNotEnded(KEY, code=Code.JOB_NOT_ENDED),
        ZeroDivisionError(KEY),
    ],
)
def test_no_key_leaves_with_an_error(here: Here, monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    monkeypatch.setattr(functions, "load", raiser(error))
    answer = here.send(name)
    lines = json.dumps(here.log())
    for text in (f"{answer.headers}", answer.get_data(as_text=True), lines):
        assert KEY not in text
    assert "<redacted>" in lines + answer.get_data(as_text=True) or isinstance(error, ZeroDivisionError)


def test_no_key_leaves_with_a_report(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaky(*args: Any) -> Any:
        report = preview(*args)
        report.notices.append(f"a notice with {KEY}")
        report.shown[KEY] = [{"key": KEY}]
        return report

    monkeypatch.setattr(functions, "preview", leaky)
    answer = here.send("dispatch_now", {"dry_run": True})
    assert "a notice with <redacted>" in answer.get_data(as_text=True)
    lines = json.dumps(here.log())
    assert "a notice with <redacted>" in lines
    assert KEY not in lines + answer.get_data(as_text=True)
