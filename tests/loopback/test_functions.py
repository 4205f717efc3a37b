"""The functions under functions-framework with real clients against local servers."""

from __future__ import annotations

import base64
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import functions_framework
import pytest
import yaml
from google.cloud.aiplatform_v1 import JobState
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.cloud.secretmanager_v1 import SecretVersion
from werkzeug.test import TestResponse

from local.machine.functions import ROOT
from local.standins.pubsub import PubSubServer
from local.standins.vertex.job_log import service_entry
from tests.functional.test_job_state import encoded
from tests.support import specs
from tests.support.deployment import BUCKET, KEY, PROJECT, SECRET, SERVICES, Deployment, run_spec
from vertex_launch import functions as app
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.codes import Code
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import Item
from vertex_launch.settings.config import Region, Settings

# Google's client leaves the connection of a refused download to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

ITEM_KEY = "deadbeef" * 5
SECRETS = [form for key in (KEY, ITEM_KEY) for form in (key, base64.b64encode(f"api:{key}".encode()).decode())]
TICKS = f"projects/{PROJECT}/topics/ticks"
TOPIC = f"//pubsub.googleapis.com/{TICKS}"
TRACE = "0af7651916cd43dd8448eb211c80319c"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module", autouse=True)
def _no_connection_is_left_to_other_tests() -> Iterator[None]:
    yield
    gc.collect()


class Cloud(Deployment):
    """A deployment with two queues and a tick topic."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, queues=["cpu", "gpu"], max_jobs=4)
        self.folder = folder
        self.pubsub = PubSubServer()

    def __enter__(self) -> Self:
        self.pubsub.start()
        super().__enter__()
        self.variables |= {"DISPATCH_TOPIC": TICKS, "PUBSUB_EMULATOR_HOST": self.pubsub.address}
        return self

    def set_timeouts(self, **seconds: float) -> None:
        """Configure limits, before the first request."""
        path = self.folder / "vertex-launch.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "timeouts": seconds}))

    def put(self, queue: str = "cpu", count: int = 1, **spec: Any) -> list[str]:
        return [self.push(queue, **spec) for _ in range(count)]

    def state(self, item: str) -> str:
        return self.states()[item]

    @property
    def changes(self) -> int:
        """Count the requests that changed something in the cloud."""
        mutations = sum(count for name, count in self.wandb.store.asked().items() if name not in QUESTIONS)
        calls = self.vertex.calls
        return mutations + calls["CreateCustomJob"] + calls["CancelCustomJob"] + self.storage.calls["storage.insert"]


QUESTIONS = ("viewer", "project", "launchAgent", "entity")


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    with Cloud(tmp_path) as cloud:
        yield cloud
    cloud.pubsub.stop()


class Functions:
    """The functions in this process, and everything that leaves it."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._clients = {
            name: functions_framework.create_app(name, str(ROOT / "main.py"))
            for name in ("dispatch", "dispatch_now", "job_state")
        }
        self.told: list[str] = []
        """Everything that was answered or logged."""
        self._lines: list[str] = []

    def now(
        self, body: object = None, *, method: str = "POST", headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Ask dispatch_now."""
        data = body if isinstance(body, bytes | None) else json.dumps(body)
        return self._call("dispatch_now", method, data, {**JSON, **(headers or {})})

    def tick(self, data: bytes | str, headers: Mapping[str, str] = JSON) -> TestResponse:
        """Post something to dispatch."""
        return self._call("dispatch", "POST", data, headers)

    def entry(self, data: bytes | str, headers: Mapping[str, str] = JSON) -> TestResponse:
        """Post something to job_state."""
        return self._call("job_state", "POST", data, headers)

    def _call(self, name: str, method: str, data: Any, headers: Mapping[str, str]) -> TestResponse:
        client = self._clients[name].test_client()
        response: TestResponse = client.open("/", method=method, data=data, headers=dict(headers))
        self.told.append(f"{response.headers}\n{response.get_data(as_text=True)}")
        return response

    def log(self) -> list[dict[str, Any]]:
        """Return the log so far; every line has to be an entry for Cloud Logging."""
        written = self._capsys.readouterr()
        self.told += [written.out, written.err]
        self._lines += written.out.splitlines()
        entries = [json.loads(line) for line in self._lines]
        assert all(entry["severity"] and entry["message"] and entry["time"] for entry in entries)
        return entries

    def codes(self, severity: str) -> list[str]:
        """Return the codes of the log lines with this severity."""
        return [entry["code"] for entry in self.log() if entry["severity"] == severity]

    def passes(self) -> int:
        return sum(entry.get("event") == Event.PASS for entry in self.log())


@pytest.fixture
def functions(cloud: Cloud, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Functions]:
    for name, value in cloud.variables.items():
        monkeypatch.setenv(name, value)
    for name in ("WANDB_API_KEY", "WANDB_ENTITY", "WANDB_LAUNCH_MAX_JOBS", "GOOGLE_CLOUD_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)
    app.load.cache_clear()
    functions = Functions(capsys)
    yield functions
    app.load.cache_clear()
    functions.log()
    for text in functions.told:
        for secret in SECRETS:
            assert secret not in text
        assert "Traceback" not in text or Code.UNEXPECTED in text


# Ticks


def message(payload: object = None, *, published: float | None = None) -> dict[str, Any]:
    when = datetime.fromtimestamp(published or time.time(), UTC).isoformat(timespec="milliseconds")
    found: dict[str, Any] = {"messageId": "1234", "message_id": "1234", "publishTime": when, "publish_time": when}
    if payload is not None:
        found["data"] = encoded(payload)
    return found


def push_body(found: Mapping[str, Any]) -> str:
    return json.dumps({"message": found, "subscription": f"projects/{PROJECT}/subscriptions/dispatch"})


def binary(found: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """As Eventarc delivers it."""
    headers = {
        "ce-id": "1234",
        "ce-source": TOPIC,
        "ce-specversion": "1.0",
        "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
        "ce-time": found["publishTime"],
    }
    return push_body(found), {**JSON, **headers}


def raw(found: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """As a push subscription of our own delivers it."""
    return push_body(found), JSON


def untyped(found: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    return push_body(found), {}


Form = Callable[[Mapping[str, Any]], tuple[str, dict[str, str]]]
FORMS = (binary, raw, untyped)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("payload", [None, {"queues": ["gpu"], "limit": 1}])
def test_a_tick_of_any_form_runs_a_pass(cloud: Cloud, functions: Functions, form: Form, payload: object) -> None:
    cpu, gpu = cloud.put("cpu"), cloud.put("gpu", 2)
    assert functions.tick(*form(message(payload))).status_code == 200
    assert functions.passes() == 1
    assert functions.codes("ERROR") == []
    claimed = [item for item in (*cpu, *gpu) if cloud.state(item) == "CLAIMED"]
    assert claimed == ([*cpu, *gpu] if payload is None else gpu[:1])


def hold(cloud: Cloud, until: float) -> None:
    content = json.dumps({"pass_id": "other", "expires": until}).encode()
    cloud.storage.objects.insert(BUCKET, {"name": "default/hold.json"}, content, {})


def test_a_hundred_ticks_at_once_cost_at_most_three_passes(cloud: Cloud, functions: Functions) -> None:
    """Every tick without a success is delivered again, as Pub/Sub does."""
    items = cloud.put(count=3)
    waiting = [binary(message()) for _ in range(100)]
    rounds = 0
    with ThreadPoolExecutor(16) as pool:
        while waiting:
            answers = list(pool.map(lambda tick: functions.tick(*tick).status_code, waiting))
            assert set(answers) <= {200, 429}
            waiting = [tick for tick, status in zip(waiting, answers, strict=True) if status != 200]
            rounds += 1
            assert rounds < 20
    assert 1 <= functions.passes() <= 3
    assert [cloud.state(item) for item in items] == ["CLAIMED"] * 3
    assert len(cloud.vertex.jobs) == 3


# Requests


def test_an_empty_request_runs_a_pass_and_returns_its_report(cloud: Cloud, functions: Functions) -> None:
    first, second = cloud.put(count=2)
    answer = functions.now()
    report = answer.get_json()
    assert (answer.status_code, answer.content_type) == (200, "application/json")
    lists = {"submitted", "adopted", "resubmitted", "rejected", "deferred", "cancelled", "settled", "notices"}
    assert set(report) == {"pass_id", "dry_run", "slots", "took_ms", *lists}
    assert {one["item"] for one in report["submitted"]} == {first, second}
    assert set(report["submitted"][0]) == {"item", "queue", "run", "job", "region"}
    assert report["slots"] == {"max_jobs": 4, "active": 2, "free": 2}
    assert report["dry_run"] is False
    assert {name for name in lists if report[name]} == {"submitted"}
    assert 0 < report["took_ms"] < 20_000
    assert set(cloud.vertex.jobs) == {one["job"] for one in report["submitted"]}


def test_only_one_of_two_requests_at_once_runs(cloud: Cloud, functions: Functions) -> None:
    cloud.put(count=2)
    functions.now({"dry_run": True})
    start = threading.Barrier(2)

    def ask(_: int) -> int:
        start.wait()
        return functions.now().status_code

    cloud.wandb.faults.delay("project", 0.2)
    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(ask, range(2))) == [200, 409]
    assert len(cloud.vertex.jobs) == 2


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("trouble", ["gone", "ill"])
def test_a_service_that_is_down_is_named(cloud: Cloud, functions: Functions, service: str, trouble: str) -> None:
    cloud.set_timeouts(read=0.5, look=1)
    (item,) = cloud.put()
    if trouble == "gone":
        servers: tuple[Any, ...] = (cloud.wandb, cloud.vertex, cloud.secrets, cloud.storage)
        servers[SERVICES.index(service)].stop()
    else:
        leak = KEY if service == "W&B" else "nothing"
        cloud.faults[service].fail("*", 503, times=None, message=f"ill, and {leak} leaks")
    answer = functions.now()
    told = answer.get_json()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert told["service"] == service
    assert told["error"].startswith(f"{service}: ")
    assert "onnect" in told["error"] if trouble == "gone" else "ill, and " in told["error"]
    line = functions.log()[-1]
    assert (line["severity"], line["event"], line["code"]) == ("ERROR", Event.FAILED, told["code"])
    assert cloud.state(item) == "PENDING"


def test_a_key_that_w_and_b_refuses(cloud: Cloud, functions: Functions) -> None:
    cloud.secrets.add(SECRET, "wrong" * 8)
    told = functions.now().get_json()
    assert told["service"] == "W&B"
    assert "[VL-WANDB-KEY-REFUSED]" in told["error"]
    cloud.secrets.set_state(cloud.secrets.add(SECRET, KEY), SecretVersion.State.ENABLED)
    assert functions.now().status_code == 200


def test_no_credentials(cloud: Cloud, functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SECRETMANAGER_ENDPOINT")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(cloud.folder / "none.json"))
    answer = functions.now()
    assert answer.status_code == 503
    assert answer.get_json()["service"] == "Google credentials"
    assert answer.get_json()["code"] == Code.CREDENTIALS_MISSING


# Dry runs


def test_a_dry_run_shows_and_changes_nothing(cloud: Cloud, functions: Functions) -> None:
    (running,) = cloud.put()
    functions.now()
    (job,) = cloud.vertex.jobs
    cloud.vertex.advance(job, JobState.JOB_STATE_RUNNING)
    waiting = cloud.put("gpu", 2)
    hold(cloud, time.time() + 30)  # a pass that runs does not hinder it
    before = cloud.changes
    report = functions.now({"dry_run": True}).get_json()
    assert cloud.changes == before
    assert report["dry_run"] is True
    assert report["slots"] == {"max_jobs": 4, "active": 1, "free": 3}
    (active,) = report["active_jobs"]
    assert (active["item"], active["job"], active["state"]) == (running, job, "JOB_STATE_RUNNING")
    assert report["queued"]["gpu"] == {"pending": waiting, "complete": True}
    assert report["submitted"] == []


# Job states


def job(cloud: Cloud, state: JobState, deployment: str = "default") -> str:
    """Create a job of ours in a state and return its name."""
    regions = (Region(name="us-central1", staging_bucket="gs://demo-staging"),)
    settings = Settings(
        queues=("cpu",),
        project=PROJECT,
        regions=regions,
        deployment=deployment,
        key_secret=f"{SECRET}/versions/1",
        state_bucket="gs://x1",
        jobs_account="jobs@demo-project.iam.gserviceaccount.com",
        aiplatform_endpoint=f"http://{cloud.vertex.address}",
    )
    item = Item("Item1", "cpu", run_spec())
    asked = specs.built(item, settings, api_key=ITEM_KEY, now=datetime.now(UTC))
    vertex = VertexJobs(settings)
    name = vertex.create(asked, 5)
    cloud.vertex.advance(name, state)
    return name


def ended(name: str, **changes: Any) -> dict[str, Any]:
    """Return the service's entry about the end of a job."""
    return service_entry(PROJECT, name.rsplit("/", 1)[1], "Job failed.", time.time() - 3600) | changes


def asked_for(cloud: Cloud) -> Callable[[], list[Any]]:
    """Return a function that pulls the ticks that are published from now on, at least one."""
    name = f"projects/{PROJECT}/subscriptions/all"
    publisher, subscriber = PublisherClient(), SubscriberClient()
    publisher.create_topic(name=TICKS)
    publisher.transport.close()
    subscriber.create_subscription(name=name, topic=TICKS)

    def pull() -> list[Any]:
        with subscriber:
            received = subscriber.pull(subscription=name, max_messages=100).received_messages
        return [json.loads(one.message.data) for one in received]

    return pull


@pytest.mark.parametrize("form", FORMS)
def test_the_end_of_a_job_of_ours_asks_for_a_pass(cloud: Cloud, functions: Functions, form: Form) -> None:
    """Only Vertex AI and Pub/Sub are asked for anything."""
    ticks = asked_for(cloud)
    name = job(cloud, JobState.JOB_STATE_FAILED)
    other = job(cloud, JobState.JOB_STATE_FAILED, "another")
    for one in (name, other, f"{name}0"):
        assert functions.entry(*form(message(ended(one)))).status_code == 200
    assert functions.entry(*form(message({"job": name}))).status_code == 200
    assert ticks() == [{"ended": name}] * 2
    assert [entry.get("job") for entry in functions.log()] == [name] * 2
    assert (cloud.wandb.store.asked(), cloud.secrets.calls, cloud.storage.calls) == ({}, {}, {})


@pytest.mark.parametrize("lacking", ["AIPLATFORM_ENDPOINT", "PUBSUB_EMULATOR_HOST"])
def test_without_credentials_an_entry_comes_again(
    cloud: Cloud, functions: Functions, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    name = job(cloud, JobState.JOB_STATE_FAILED)
    monkeypatch.delenv(lacking)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(cloud.folder / "none.json"))
    assert functions.entry(*binary(message(ended(name)))).status_code == 503
    assert functions.entry(*binary(message(ended(name), published=time.time() - 601))).status_code == 200
    assert all("none.json" in line["message"] for line in functions.log())


# The key


def test_no_key_leaves_the_process(cloud: Cloud, functions: Functions) -> None:
    """Items and services repeat keys wherever they can; the fixture searches everything that left the process."""
    cloud.put(_wandb_api_key=ITEM_KEY)
    cloud.put(_wandb_api_key=ITEM_KEY, docker={"docker_image": f"x.dkr.ecr.us-east-1.amazonaws.com/{ITEM_KEY}"})
    cloud.put(_wandb_api_key=ITEM_KEY, overrides={"args": f"--key={ITEM_KEY}", "run_config": {"key": KEY}})
    cloud.vertex.faults.fail("CreateCustomJob", "INVALID_ARGUMENT", message=f"key {ITEM_KEY} and {KEY}")
    cloud.wandb.faults.refuse("failRunQueueItem", f"no {KEY}")
    report = functions.now().get_json()
    assert len(report["rejected"]) == 3
    for form in (KEY, SECRETS[1]):
        cloud.wandb.faults.fail("project", 400, message=f"rejected credentials {form}", times=None)
        assert functions.now().status_code == 503
        assert functions.tick(*binary(message())).status_code == 503
        cloud.wandb.faults.clear()
    errors = [item.error.message for item in cloud.wandb.store.items.values() if item.error]
    assert len(errors) == 3, "one was refused and sent once more"
    assert not [error for error in errors if ITEM_KEY in error or KEY in error]


# What is loaded


LOADED = """
import functions_framework, json, os, sys
client = functions_framework.create_app("job_state", "main.py").test_client()
assert client.post("/", data=os.environ["PUSH"], headers={"Content-Type": "application/json"}).status_code == 200
print(json.dumps(sorted(sys.modules)))
"""


def test_job_state_loads_only_the_clients_that_it_uses(
    cloud: Cloud, functions: Functions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a fresh interpreter, for a whole request. google.api_core loads requests itself."""
    ticks = asked_for(cloud)
    name = job(cloud, JobState.JOB_STATE_SUCCEEDED)
    monkeypatch.setenv("PUSH", raw(message(ended(name)))[0])
    done = subprocess.run([sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert ticks() == [{"ended": name}]
    assert not loaded & {"google.cloud.storage", "google.cloud.secretmanager_v1", "google.cloud.logging_v2", "wandb"}
    ours = {
        module.removeprefix("vertex_launch.adapters.")
        for module in loaded
        if module.startswith("vertex_launch.adapters.")
    }
    assert ours == {"google_api", "ticks", "vertex_jobs"}


def test_log_entries_stay_entries_with_the_id_of_their_execution() -> None:
    """With LOG_EXECUTION_ID, which ``gcloud functions deploy`` sets, the framework writes each line anew."""
    program = (
        "import functions_framework; app = functions_framework.create_app('dispatch_now', 'main.py'); "
        "app.test_client().post('/', json={}, headers={'Function-Execution-Id': 'abc123'})"
    )
    environ = {"PATH": "", "LOG_EXECUTION_ID": "true", "K_SERVICE": "dispatch-now", "GOOGLE_CLOUD_REGION": "nowhere"}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True, check=True
    )
    (entry,) = map(json.loads, ran.stdout.splitlines())
    assert (entry["severity"], entry["code"], entry["event"]) == ("ERROR", Code.CONFIG_INVALID, Event.FAILED)
    assert entry["logging.googleapis.com/labels"] == {"execution_id": "abc123"}
    assert "\n" in entry["message"]
