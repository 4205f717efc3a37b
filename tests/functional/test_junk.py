"""Malformed and hostile events and requests: none crashes a function, none is redelivered without end, none leaks a key.

Valid shapes are damaged (JSON of any depth, numbers of any length, text that is not Unicode, duplicate keys, broken base64) and
sent as Eventarc, a push subscription or a stranger would send them. Every run sends the same.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from random import Random
from typing import Any
from urllib.parse import quote

import flask
import functions_framework
import pytest
from google.cloud.aiplatform_v1.types import JobState
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from local.machine.functions import ROOT
from tests.functional.test_job_state import NUMBER, SHAPES, encoded, entry, put, when
from tests.support.memory import KEY, Job, Vertex, World, call, image_spec, through
from tests.support.numbers import FULL, JUNK, examples
from vertex_launch import functions, log
from vertex_launch.clients import Clients
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Calls, outcome
from vertex_launch.dispatch.watch import PATIENCE, follow

# functions-framework asks for the time in a way that later Pythons warn of.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

CHUNKS = 8 if FULL else 2
EACH = JUNK // CHUNKS
CUT = [json.dumps(said).encode() for said, _ in SHAPES.values()]

ITEM_KEY = "deadbeef" * 5
NOW = 1_770_000_000.0
FUNCTIONS = ("dispatch", "dispatch_now", "job_state")
LONGEST_LINE = 20_000
"""Characters of a log line; Cloud Logging takes some ten times as many."""


def one_by_one(calls: Calls[Any], _: int) -> list[Any]:
    return [outcome(call) for call in calls]


class Here:
    """The functions as they are deployed, with an outside in memory: one job of ours runs, no item waits."""

    def __init__(self) -> None:
        self.world = World(NOW, tick_topic="projects/p/topics/ticks")
        self.clock, self.topic = self.world.clock, self.world.topic
        self.vertex = Vertex(self.clock, Job, lambda: "test")
        self.vertex.view = functools.cache(self.vertex.view)  # type: ignore[method-assign]  # what takes longest
        self.job = put(self.vertex, JobState.JOB_STATE_RUNNING)
        self.output = io.StringIO()
        self.seen: Counter[str] = Counter()
        settings, redact = self.world.settings, self.world.redact
        log.configure(redact)
        handler = log.LOGGER.handlers[0]
        handler.setStream(self.output)  # type: ignore[attr-defined]
        clients = Clients(settings, redact)
        services = replace(self.world.services(), run_parallel=one_by_one)
        vars(clients).update(services=services, vertex=self.vertex, ticks=through(call, self.topic))
        self.deployment = functions.Deployment(settings, clients)
        self.follow = functools.partial(follow, clock=self.clock, parallel=one_by_one)
        self.functions = {name: functions_framework.create_app(name, str(ROOT / "main.py")) for name in FUNCTIONS}

    def send(self, function: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Post to a function through the framework and return the status of the answer."""
        started: list[Any] = []
        answer = self.functions[function](environ(body, headers), lambda *how: started.append(how))
        keyless(b"".join(answer).decode())
        answer.close()
        return int(started[0][0].split()[0])

    def hand(self, function: str, body: bytes, headers: Mapping[str, str]) -> int:
        """Call a function without the framework and return the status of its answer."""
        with self.functions[function].app_context():
            request = flask.Request(environ(body, headers))
            pushed = function == "dispatch"
            answer = (
                functions.job_state(request) if function == "job_state" else functions.dispatch(request, pushed=pushed)
            )
            keyless(answer.get_data(as_text=True))
            return answer.status_code

    def check(self, function: str, send: Callable[..., int], body: bytes, headers: Mapping[str, str]) -> None:
        """Send junk, and once more ten minutes later if it has to be redelivered; then it must be acknowledged."""
        status = send(function, body, headers)
        if function == "job_state" and status in (429, 503):
            self.seen[f"job_state {status}, later"] += 1
            self.clock.now += PATIENCE
            status = send(function, body, headers)
            self.clock.now -= PATIENCE
        assert status in ((200, 400) if function == "dispatch_now" else (200,)), (function, body[:500], headers)
        self.seen[f"{function} {status}"] += 1
        if self.output.tell() > 1_000_000:
            self.read_log()

    def read_log(self) -> None:
        """Check the log so far and clear it."""
        for line in self.output.getvalue().splitlines():
            said = json.loads(line)
            assert said["severity"] in ("INFO", "WARNING", "ERROR")
            assert said.get("code") not in (Code.UNEXPECTED, Code.CONFIG_INVALID), line
            keyless(line)
            assert len(line) < LONGEST_LINE, line[:2000]
            self.seen[said["severity"]] += 1
        self.output.seek(0)
        self.output.truncate()

    def still_works(self) -> None:
        """Push an item and end a job, and check that the functions see both."""
        item = self.world.queue.push("cpu", image_spec())
        self.vertex.down.clear()
        self.topic.trouble.clear()
        self.topic.published.clear()
        put(self.vertex, JobState.JOB_STATE_SUCCEEDED)
        self.check("job_state", self.send, push(encoded(entry()), NOW), JSON)
        assert self.topic.published == [{"ended": self.job}]
        self.clock.now += 3600  # the waits that the junk asked for are over
        self.check("dispatch", self.send, push(encoded({}), self.clock.now), JSON)
        assert self.world.queue.state(item) == "CLAIMED"
        self.read_log()


def environ(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/",
        "SCRIPT_NAME": "",
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        **headers,
    }


def keyless(text: str) -> None:
    assert ITEM_KEY not in text
    assert KEY not in text


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    monkeypatch.setattr(log.LOGGER, "handlers", [])
    here = Here()
    monkeypatch.setattr(log.LOGGER, "addHandler", lambda _: None)  # pytest would keep all lines
    monkeypatch.setattr(functions, "load", lambda: here.deployment)
    monkeypatch.setattr(functions, "follow", here.follow)
    monkeypatch.setattr(functions, "REDACT", here.world.redact)
    yield here
    here.still_works()
    out, err = capsys.readouterr()
    assert (out, err) == ("", ""), "flask or logging wrote something"


# What is sent, and how

JSON = {"CONTENT_TYPE": "application/json"}
EVENT = {
    "HTTP_CE_ID": "1",
    "HTTP_CE_SOURCE": "//pubsub.googleapis.com/projects/p/topics/t",
    "HTTP_CE_SPECVERSION": "1.0",
    "HTTP_CE_TYPE": "google.cloud.pubsub.topic.v1.messagePublished",
    "HTTP_CE_TIME": when(NOW),
}
HEADERS: list[dict[str, str]] = [
    JSON,
    JSON | EVENT,
    JSON | EVENT,
    {"CONTENT_TYPE": "application/cloudevents+json"},
    {"CONTENT_TYPE": "application/cloudevents-batch+json"},
    {},
    {"CONTENT_TYPE": "text/plain; charset=utf-16"} | EVENT,
    {"CONTENT_TYPE": "application/x-www-form-urlencoded"},
    {"CONTENT_TYPE": "multipart/form-data; boundary=x"},
    JSON | EVENT | {"HTTP_CE_SPECVERSION": "9.9"},
    JSON | EVENT | {"HTTP_CE_SPECVERSION": "0.3", "HTTP_CE_TIME": "yesterday"},
    JSON | EVENT | {"HTTP_CE_ID": "x" * 5000, "HTTP_CE_TIME": "9999-12-31T23:59:59Z"},
    JSON | {"HTTP_CE_ID": "1", "HTTP_CE_TYPE": "t"},
    JSON | EVENT | {"HTTP_X_CLOUD_TRACE_CONTEXT": "\xff" * 40, "HTTP_TRACEPARENT": "00-x"},
]


def push(data: str, published: float) -> bytes:
    message = {"data": data, "messageId": "1", "publishTime": when(published)}
    return json.dumps({"message": message, "subscription": "projects/p/subscriptions/s"}).encode()


ODD = [
    *("null", "true", "false", "0", "-1", "1.5", "-0.0", "1e999", "NaN", "-Infinity", "9" * 40, "9" * 5000, "01", "1_0"),
    *('""', '" "', '"\\u0000"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\x"', "'x'", '"\n"', '"../.."', '"٣٠٠٠"', '"%s%n{0}"'),
    *("[]", "{}", "[[]]", '[{"a": [1]}]', "{1: 2}", "[1,]", "[" * 99 + "]" * 99, "[" * 3000 + "]" * 3000, "[" * 3000),
    *('{"a":' * 150 + "1" + "}" * 150, f'"{"x" * 20_000}"', f'["{"x" * 200}", ' + "1, " * 300 + "1]"),
    *(f'"{ITEM_KEY}"', f'["{ITEM_KEY}"]', f'{{"{ITEM_KEY}": "{ITEM_KEY}"}}', f'"Bearer {ITEM_KEY}"'),
    *(f'"{NUMBER}"', NUMBER, f'"{"9" * 25}"', '"service"', '"Job failed."', '"JOB_STATE_FAILED"', '"ml_job"'),
    *(f'"{when(NOW)}"', '"9999-12-31T23:59:59Z"', '"0001-01-01T00:00:00+23:59"', '"2026-02-30T00:00:00Z"', '"now"'),
    *('"projects/p/locations/us-central1/customJobs/1"', '"projects/p/locations/../customJobs/1"', '"cpu"', '["cpu"]'),
]  # fmt: skip
"""JSON and text that is not JSON, put where something else is expected."""

ENTRY = entry(labels={"ml.googleapis.com/job_state": "FAILED"}, jsonPayload={"message": "Job failed."})
NAMES = {"job": f"projects/p/locations/us-central1/customJobs/{NUMBER}"}
WISHES = {"queues": ["cpu"], "limit": 1, "dry_run": False, "resume": False, "ended": NAMES["job"]}
SPEC = {"dry_run": True, "run_spec": image_spec(_wandb_api_key=ITEM_KEY)}
# In a run spec, a key counts as one only at its own place.
HARMLESS = [odd for odd in ODD if ITEM_KEY not in odd]


written = functools.cache(json.dumps)


STATES = [*(state.value for state in JobState), 99]


def spoiled(random: Random, value: Any, rate: float, odd: list[str] = ODD) -> str:
    """Write a value as JSON with something odd in many places."""
    if rate == 0.0:
        return json.dumps(value)
    if random.random() < rate:
        return random.choice(odd)
    if isinstance(value, list):
        return f"[{','.join(spoiled(random, one, rate, odd) for one in value)}]"
    if not isinstance(value, dict):
        return written(value)
    members = []
    for name, inner in value.items():
        key = written(name)
        if random.random() > rate / 2:
            members.append(f"{key}:{spoiled(random, inner, rate, odd)}")
        if random.random() < rate / 2:
            members.append(f"{random.choice((key, *odd))}:{random.choice(odd)}")
    return f"{{{','.join(members)}}}"


def damaged(random: Random, raw: bytes, rate: float) -> bytes:
    """Damage bytes in transit."""
    if random.random() > rate:
        return raw
    at = random.randrange(len(raw) + 1)
    match random.randrange(5):
        case 0:
            return raw[:at]
        case 1:
            return raw[:at] + random.randbytes(3) + raw[at + 3 :]
        case 2:
            return raw + raw[at:]
        case 3:
            return raw.decode(errors="replace").encode("utf-16")
        case _:
            return random.randbytes(at % 100)


def a_push(random: Random, payloads: list[dict[str, Any]]) -> bytes:
    """Return a message as Pub/Sub pushes it, damaged inside, outside or not at all."""
    payload = spoiled(random, random.choice(payloads), random.choice((0.02, 0.1, 0.3)))
    data = base64.b64encode(damaged(random, payload.encode(errors="surrogatepass"), 0.2))
    published = NOW - random.choice((0, 1, 5, 300, PATIENCE, 1e6, -1, -1e9))
    message = {
        "data": damaged(random, data, 0.1).decode(errors="replace"),
        "messageId": "1",
        "publishTime": when(published),
        "attributes": {"logging.googleapis.com/timestamp": when(NOW)},
    }
    whole = {"message": message, "subscription": "projects/p/subscriptions/s"}
    if random.random() < 0.1:
        whole = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": whole}
    return damaged(random, spoiled(random, whole, random.choice((0.0, 0.0, 0.1))).encode(errors="surrogatepass"), 0.1)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_spoiled_events_and_requests(here: Here, chunk: int) -> None:
    random = Random(chunk)
    for number in range(EACH):
        if number % 100 == 0:
            here.vertex.down = {"us-central1"} if random.random() < 0.1 else set()
            here.topic.trouble = {"publish": here.topic.refuse} if random.random() < 0.1 else {}
            put(here.vertex, random.choice(STATES))
        function, send = random.choice(FUNCTIONS), here.send if number % 10 == 0 else here.hand
        if function == "dispatch_now":
            meant, odd = random.choice((*[(WISHES, ODD)] * 4, (SPEC, HARMLESS)))
            text = spoiled(random, meant, 0.2, odd)
            here.check(function, send, damaged(random, text.encode(errors="surrogatepass"), 0.2), JSON)
            continue
        body = a_push(random, [WISHES] if function == "dispatch" else [ENTRY, ENTRY, NAMES])
        here.check(function, send, body, random.choice(HEADERS))
    here.read_log()
    for expected in (
        "job_state 200",
        "job_state 429, later",
        "job_state 503, later",
        "dispatch 200",
        "dispatch_now 400",
    ):
        assert here.seen[expected] > EACH / 1000, here.seen
    assert here.seen["dispatch_now 200"], here.seen


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
known = st.dictionaries(st.sampled_from([*WISHES, "run_spec", "job", "resource", "labels", "textPayload"]), anything)


@settings(
    max_examples=examples(300), derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)
@given(payload=anything | known, envelope=anything)
def test_anything_that_json_can_hold(here: Here, payload: Any, envelope: Any) -> None:
    """Python's JSON also holds NaN, infinities and halves of surrogate pairs."""
    data, outer = json.dumps(payload).encode(), json.dumps({"message": envelope, "subscription": "s"}).encode()
    for function in ("dispatch", "job_state"):
        here.check(function, here.send, push(encoded(data), NOW), JSON | EVENT)
        here.check(function, here.hand, push(encoded(data), NOW), JSON)
        here.check(function, here.send, outer, JSON)
    here.check("dispatch_now", here.send, data, JSON)
    here.check("dispatch_now", here.send, outer, JSON)


BIG = "x" * 1_100_000
BY_HAND: list[bytes] = [
    b"",
    b"\0",
    b"\xef\xbb\xbf{}",
    b'{"a": "\xed\xa0\x80"}',
    b'{"limit": 1' + b" " * 2_000_000,
    b"[" * 1_000_000,
    b'{"a":' * 100_000,
    b"[" + b"1," * 400_000 + b"1]",
    b'{"queues": [' + b"1," * 300_000 + b"1]}",
    b'{"limit": ' + b"9" * 1_000_000 + b"}",
    b'{"limit": 1' + b"0" * 60 + b"}",
    b'{"limit": 1, "limit": "x", "limit": [1]}',
    json.dumps({BIG[:900_000]: 1}).encode(),
    json.dumps({f"key {number}": number for number in range(50_000)}).encode(),
    json.dumps({"queues": [f"queue {number}" for number in range(50_000)]}).encode(),
    json.dumps({"queues": [BIG[:900_000]], "ended": BIG[:90_000]}).encode(),
    json.dumps({"dry_run": True, "run_spec": {"docker": {"docker_image": BIG[:900_000]}}}).encode(),
    b'{"dry_run": true, "run_spec": ' + b'{"docker":' * 97 + b"1" + b"}" * 97 + b"}",
    json.dumps(ENTRY | {"textPayload": BIG}).encode(),
    json.dumps(ENTRY | {"textPayload": BIG[:900_000], "resource": {"labels": {"job_id": BIG[:90_000]}}}).encode(),
    json.dumps({"job": BIG[:900_000]}).encode(),
    json.dumps({"job": f"projects/{BIG[:900_000]}/locations/x/customJobs/1"}).encode(),
    quote(json.dumps(WISHES)).encode(),
]


def test_shapes_made_by_hand(here: Here) -> None:
    for raw in BY_HAND:
        for function in ("dispatch", "job_state"):
            for headers in (JSON, JSON | EVENT):
                here.check(function, here.send, raw, headers)
                here.check(function, here.send, push(encoded(raw), NOW), headers)
        here.check("dispatch_now", here.send, raw, JSON)


def test_entries_of_the_real_service_cut_anywhere(here: Here) -> None:
    """The JSON, and its base64."""
    for raw in CUT:
        for end in range(0, len(raw), 1 if FULL else 11):
            here.check("job_state", here.hand, push(encoded(raw[:end]), NOW), JSON)
            here.check("job_state", here.hand, push(encoded(raw)[:end], NOW), JSON)
