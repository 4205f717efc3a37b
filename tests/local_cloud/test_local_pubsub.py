"""One contract for the local Pub/Sub and for Google's emulator, then the shim and the scheduler."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import functions_framework
import pytest
from google.api_core import exceptions
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.protobuf import duration_pb2
from werkzeug.serving import make_server

from local.machine.scheduler import Scheduler
from local.machine.shim import PushShim
from local.standins.faults import Faults
from local.standins.pubsub import PubSubServer
from local.standins.pubsub_emulator import EmulatorFailed, EmulatorMissing, Installed, PubSubEmulator, find
from local.standins.web import Handler, WebServer, post
from tests.support.processes import eventually

PROJECT = "projects/demo-project"
_numbers = itertools.count(1)


@dataclass
class Endpoint:
    """Takes pushes and answers with the next of its statuses, then with 204. ``hold`` delays the answers."""

    statuses: list[int] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    hold: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, body: bytes, headers: dict[str, str]) -> int:
        self.bodies.append(json.loads(body))
        self.headers.append(headers)
        status = self.statuses.pop(0) if self.statuses else 204
        self.hold.wait(10)
        return status


class EndpointHandler(Handler):
    endpoint: Endpoint

    def serve(self) -> None:
        self.answer(self.endpoint.answer(self.body(), {k.lower(): v for k, v in self.headers.items()}), b"")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    endpoint = Endpoint()
    endpoint.hold.set()
    with WebServer(type("Bound", (EndpointHandler,), {"endpoint": endpoint})) as web:
        endpoint.url = web.url
        yield endpoint
        endpoint.hold.set()


@dataclass
class Cloud:
    """A Pub/Sub with Google's own clients."""

    address: str
    publisher: Any
    subscriber: Any

    def topic(self) -> str:
        name = f"{PROJECT}/topics/topic-{next(_numbers)}"
        self.publisher.create_topic(name=name)
        return name

    def subscribe(self, topic: str, endpoint: str = "", **settings: Any) -> str:
        name = f"{PROJECT}/subscriptions/subscription-{next(_numbers)}"
        push = {"push_config": {"push_endpoint": endpoint}} if endpoint else {}
        self.subscriber.create_subscription(request={"name": name, "topic": topic, **push, **settings})
        return name

    def publish(self, topic: str, data: bytes, **attributes: str) -> str:
        message_id: str = self.publisher.publish(topic, data, **attributes).result(timeout=10)
        return message_id

    def pull(self, subscription: str) -> list[Any]:
        answer = self.subscriber.pull(subscription=subscription, max_messages=10, timeout=5)
        return list(answer.received_messages)

    def pull_until_some(self, subscription: str) -> list[Any]:
        for _ in range(20):
            found = self.pull(subscription)
            if found:
                return found
        raise AssertionError("no message came")


@pytest.fixture(scope="module", params=["ours", "emulator"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    server: PubSubServer | PubSubEmulator
    if request.param == "ours":
        server = PubSubServer(pace=0.05)
    else:
        try:
            server = PubSubEmulator(find())
        except EmulatorMissing as missing:
            pytest.skip(str(missing))
    server.start()
    yield server.address
    server.stop()


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Cloud]]:
    clouds: list[Cloud] = []

    def to(address: str) -> Cloud:
        monkeypatch.setenv("PUBSUB_EMULATOR_HOST", address)
        clouds.append(Cloud(address, PublisherClient(), SubscriberClient()))
        return clouds[-1]

    yield to
    for cloud in clouds:
        cloud.publisher.stop()
        cloud.publisher.transport.close()
        cloud.subscriber.close()


@pytest.fixture
def cloud(connect: Callable[[str], Cloud], address: str) -> Cloud:
    return connect(address)


def test_a_push_has_the_message_and_is_not_repeated_once_acknowledged(cloud: Cloud, endpoint: Endpoint) -> None:
    topic = cloud.topic()
    subscription = cloud.subscribe(topic, endpoint.url)
    message_id = cloud.publish(topic, b'{"limit": 1}', origin="test")
    cloud.publish(topic, b"", only="attributes")
    assert eventually(lambda: len(endpoint.bodies) == 2)
    body = next(body for body in endpoint.bodies if body["message"]["data"])
    message = body["message"]
    assert body["subscription"] == subscription
    assert base64.b64decode(message["data"]) == b'{"limit": 1}'
    assert message["attributes"] == {"origin": "test"}
    assert message["messageId"] == message["message_id"] == message_id
    assert message["publishTime"] == message["publish_time"]
    assert message["publishTime"].endswith("Z")
    assert endpoint.headers[0]["content-type"] == "application/json"
    # A later message arrives, and nothing else with it.
    cloud.publish(topic, b"last")
    assert eventually(lambda: len(endpoint.bodies) >= 3)
    assert len(endpoint.bodies) == 3
    cloud.subscriber.delete_subscription(subscription=subscription)


@pytest.mark.parametrize("status", [400, 429, 503])
def test_the_message_is_delivered_again_after_any_other_answer(cloud: Cloud, endpoint: Endpoint, status: int) -> None:
    topic = cloud.topic()
    subscription = cloud.subscribe(topic, endpoint.url)
    endpoint.statuses = [status]
    message_id = cloud.publish(topic, b"again")
    assert eventually(lambda: len(endpoint.bodies) == 2)
    assert [body["message"]["messageId"] for body in endpoint.bodies] == [message_id] * 2
    cloud.subscriber.delete_subscription(subscription=subscription)


def test_a_message_is_a_dead_letter_after_exactly_the_configured_attempts(cloud: Cloud, endpoint: Endpoint) -> None:
    topic, dead = cloud.topic(), cloud.topic()
    morgue = cloud.subscribe(dead)
    policy = {"dead_letter_topic": dead, "max_delivery_attempts": 5}
    subscription = cloud.subscribe(topic, endpoint.url, dead_letter_policy=policy)
    endpoint.statuses = [500] * 9
    message_id = cloud.publish(topic, b"bad", origin="test")
    found = cloud.pull_until_some(morgue)
    assert len(endpoint.bodies) == 5
    assert {body["message"]["messageId"] for body in endpoint.bodies} == {message_id}
    assert found[0].message.data == b"bad"
    attributes = dict(found[0].message.attributes)
    assert attributes["origin"] == "test"
    assert attributes["CloudPubSubDeadLetterSourceSubscription"] == subscription.rsplit("/", 1)[1]
    assert attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "5"
    cloud.subscriber.delete_subscription(subscription=subscription)


def test_pulled_messages_are_acknowledged_or_returned(cloud: Cloud) -> None:
    topic = cloud.topic()
    subscription = cloud.subscribe(topic)
    cloud.publish(topic, b"one")
    (first,) = cloud.pull(subscription)
    assert first.message.data == b"one"
    cloud.subscriber.modify_ack_deadline(subscription=subscription, ack_ids=[first.ack_id], ack_deadline_seconds=0)
    found = cloud.pull_until_some(subscription)
    assert found[0].message.message_id == first.message.message_id
    cloud.subscriber.acknowledge(subscription=subscription, ack_ids=[found[0].ack_id])
    assert cloud.pull(subscription) == []


def test_names_that_are_missing_taken_or_malformed(cloud: Cloud) -> None:
    topic = cloud.topic()
    missing = f"{PROJECT}/topics/no-such-topic"
    assert cloud.publisher.get_topic(topic=topic).name == topic
    with pytest.raises(exceptions.AlreadyExists):
        cloud.publisher.create_topic(name=topic)
    with pytest.raises(exceptions.InvalidArgument):
        cloud.publisher.create_topic(name="nonsense")
    with pytest.raises(exceptions.NotFound):
        cloud.publish(missing, b"x")
    with pytest.raises(exceptions.NotFound):
        cloud.subscribe(missing)
    with pytest.raises(exceptions.NotFound):
        cloud.subscribe(topic, dead_letter_policy={"dead_letter_topic": missing, "max_delivery_attempts": 5})
    subscription = cloud.subscribe(topic)
    with pytest.raises(exceptions.AlreadyExists):
        cloud.subscriber.create_subscription(name=subscription, topic=topic)
    assert cloud.subscriber.get_subscription(subscription=subscription).topic == topic
    cloud.subscriber.delete_subscription(subscription=subscription)
    with pytest.raises(exceptions.NotFound):
        cloud.subscriber.get_subscription(subscription=subscription)
    cloud.publisher.delete_topic(topic=topic)
    with pytest.raises(exceptions.NotFound):
        cloud.publisher.get_topic(topic=topic)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"dead_letter_policy": {"max_delivery_attempts": 4}}, exceptions.OutOfRange),
        ({"retry_policy": {"minimum_backoff": duration_pb2.Duration(seconds=601)}}, exceptions.InvalidArgument),
        ({"push_config": {"push_endpoint": "ftp://127.0.0.1/"}}, exceptions.InvalidArgument),
    ],
)
def test_settings_out_of_bounds(cloud: Cloud, settings: dict[str, Any], error: type[Exception]) -> None:
    topic = cloud.topic()
    if "dead_letter_policy" in settings:
        settings["dead_letter_policy"]["dead_letter_topic"] = topic
    with pytest.raises(error):
        cloud.subscribe(topic, **settings)


# What the emulator does not do, or does slowly.


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def server(faults: Faults) -> Iterator[PubSubServer]:
    server = PubSubServer(pace=0.02, faults=faults)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def ours(connect: Callable[[str], Cloud], server: PubSubServer) -> Cloud:
    return connect(server.address)


def test_a_message_is_delivered_again_if_its_handler_exceeds_the_ack_deadline(ours: Cloud, endpoint: Endpoint) -> None:
    topic = ours.topic()
    ours.subscribe(topic, endpoint.url, ack_deadline_seconds=10)
    endpoint.hold.clear()
    ours.publish(topic, b"slow")
    assert eventually(lambda: len(endpoint.bodies) == 2)
    endpoint.hold.set()


def test_backoff_grows_and_attempts_are_reported(ours: Cloud, endpoint: Endpoint, server: PubSubServer) -> None:
    topic, dead = ours.topic(), ours.topic()
    settings = {
        "retry_policy": {
            "minimum_backoff": duration_pb2.Duration(seconds=2),
            "maximum_backoff": duration_pb2.Duration(seconds=4),
        },
        "dead_letter_policy": {"dead_letter_topic": dead, "max_delivery_attempts": 100},
    }
    ours.subscribe(topic, endpoint.url, **settings)
    endpoint.statuses = [500, 500, 500]
    begin = time.monotonic()
    ours.publish(topic, b"x")
    assert eventually(lambda: len(endpoint.bodies) == 4)
    assert time.monotonic() - begin >= (2 + 4 + 4) * 0.02
    assert [body["deliveryAttempt"] for body in endpoint.bodies] == [1, 2, 3, 4]
    assert server.calls["Push"] == 4


def test_a_message_returns_when_its_lease_ends(ours: Cloud) -> None:
    topic = ours.topic()
    subscription = ours.subscribe(topic)
    ours.publish(topic, b"x")
    assert ours.pull(subscription)
    assert ours.pull(subscription)


def test_faults_apply_to_pushes_and_publishing(ours: Cloud, endpoint: Endpoint, faults: Faults) -> None:
    topic = ours.topic()
    ours.subscribe(topic, endpoint.url)
    faults.lose("Push")
    ours.publish(topic, b"twice")
    assert eventually(lambda: len(endpoint.bodies) == 2)
    faults.fail("Publish", 403)
    with pytest.raises(exceptions.PermissionDenied):
        ours.publish(topic, b"never")
    assert len(endpoint.bodies) == 2


@pytest.mark.parametrize(
    "settings",
    [
        {"ack_deadline_seconds": 5},
        {"push_config": {"push_endpoint": "http://192.0.2.1/"}},
        {"filter": 'attributes:"x"'},
        {"enable_message_ordering": True},
    ],
)
def test_unsupported_settings_are_refused(ours: Cloud, settings: dict[str, Any]) -> None:
    with pytest.raises((exceptions.InvalidArgument, exceptions.MethodNotImplemented)):
        ours.subscribe(ours.topic(), **settings)


def test_nothing_is_pushed_after_a_subscription_is_gone(ours: Cloud, endpoint: Endpoint) -> None:
    topic = ours.topic()
    subscription = ours.subscribe(topic, endpoint.url)
    endpoint.statuses = [500]
    endpoint.hold.clear()
    ours.publish(topic, b"x")
    assert eventually(lambda: endpoint.bodies)
    ours.subscriber.delete_subscription(subscription=subscription)
    endpoint.hold.set()
    ours.publish(topic, b"y")
    other = ours.subscribe(topic, endpoint.url)
    ours.publish(topic, b"z")
    assert eventually(lambda: endpoint.bodies[-1]["subscription"] == other)
    assert len(endpoint.bodies) == 2


def test_an_emulator_that_cannot_start_reports_why(tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho no such class >&2\nexit 1\n")
    java.chmod(0o755)
    with pytest.raises(EmulatorFailed, match="no such class"):
        PubSubEmulator(Installed(java, tmp_path / "none.jar")).start()


def test_a_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmulatorMissing, match="java"):
        find()


# Shim and scheduler

TOPIC = f"{PROJECT}/topics/ticks"
PUSH = {
    "message": {
        "data": base64.b64encode(b'{"limit": 1}').decode(),
        "attributes": {"a": "b"},
        "messageId": "17",
        "message_id": "17",
        "publishTime": "2026-02-23T21:11:09.100Z",
        "publish_time": "2026-02-23T21:11:09.100Z",
    },
    "subscription": f"{PROJECT}/subscriptions/dispatch",
    "deliveryAttempt": 2,
}


@pytest.fixture
def shim(endpoint: Endpoint) -> Iterator[PushShim]:
    with PushShim(endpoint.url, TOPIC) as shim:
        yield shim


def send(url: str, body: object = PUSH) -> int:
    return post(url, json.dumps(body).encode(), {"Content-Type": "application/json"}, 10)[0]


def test_the_shim_creates_the_event_of_a_function(shim: PushShim, endpoint: Endpoint) -> None:
    assert send(shim.url) == 204
    assert endpoint.bodies == [{"message": PUSH["message"], "subscription": PUSH["subscription"]}]
    event = {name: value for name, value in endpoint.headers[0].items() if name.startswith(("ce-", "content-type"))}
    assert event == {
        "ce-id": "17",
        "ce-source": "//pubsub.googleapis.com/projects/demo-project/topics/ticks",
        "ce-specversion": "1.0",
        "ce-time": "2026-02-23T21:11:09.100Z",
        "ce-type": "google.cloud.pubsub.topic.v1.messagePublished",
        "content-type": "application/json",
    }


def test_the_shim_can_forward_the_raw_push(endpoint: Endpoint) -> None:
    endpoint.statuses = [500]
    with PushShim(endpoint.url, TOPIC, raw=True) as shim:
        assert send(shim.url) == 500
    assert endpoint.bodies == [PUSH]
    assert "ce-id" not in endpoint.headers[0]


def test_a_push_to_a_busy_function_is_answered_429(shim: PushShim, endpoint: Endpoint) -> None:
    endpoint.hold.clear()
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(send(shim.url)))
    first.start()
    assert eventually(lambda: endpoint.bodies)
    assert [send(shim.url) for _ in range(3)] == [429] * 3
    endpoint.hold.set()
    first.join()
    assert (answers, send(shim.url)) == ([204], 204)
    assert len(endpoint.bodies) == 2
    assert shim.calls == {204: 2, 429: 3}


def test_the_shim_answers_for_a_function_that_cannot_be_reached(endpoint: Endpoint) -> None:
    endpoint.hold.clear()
    with PushShim(endpoint.url, TOPIC, timeout=0.05) as slow, PushShim("http://127.0.0.1:1", TOPIC) as gone:
        assert (send(slow.url), send(gone.url)) == (504, 503)
        assert send(gone.url, {"message": "nonsense"}) == 400


def test_a_real_function_gets_the_event_from_a_real_push(
    ours: Cloud, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "main.py"
    source.write_text(
        "import functions_framework, json\n"
        "seen = []\n"
        "@functions_framework.cloud_event\n"
        "def dispatch(event):\n"
        "    print('SEEN', json.dumps([event['id'], event['source'], event['type'], event.data['message']['data']]))\n"
    )
    app = functions_framework.create_app("dispatch", str(source), "cloudevent")
    function = make_server("127.0.0.1", 0, app)
    thread = threading.Thread(target=function.serve_forever, daemon=True)
    thread.start()
    topic = ours.topic()
    shim = PushShim(f"http://127.0.0.1:{function.port}/", topic)
    shim.start()
    ours.subscribe(topic, shim.url)
    message_id = ours.publish(topic, b"{}")
    assert eventually(lambda: shim.calls)
    assert shim.calls == {200: 1}
    seen = json.loads(capsys.readouterr().out.split("SEEN ", 1)[1].splitlines()[0])
    assert seen == [
        message_id,
        f"//pubsub.googleapis.com/{topic}",
        "google.cloud.pubsub.topic.v1.messagePublished",
        base64.b64encode(b"{}").decode(),
    ]
    shim.stop()
    function.shutdown()
    thread.join()
    function.server_close()


def test_the_scheduler_publishes_by_its_clock(ours: Cloud) -> None:
    topic = ours.topic()
    subscription = ours.subscribe(topic, ack_deadline_seconds=600)
    now = [0.0]
    scheduler = Scheduler(ours.address, topic, 60, data=b'{"tick": 1}', clock=lambda: now[0])
    ticks = []
    for _ in range(130):
        now[0] += 1
        ticks.append(scheduler.tick())
    assert [index + 1 for index, due in enumerate(ticks) if due] == [60, 120]
    assert scheduler.run_now()
    assert [found.message.data for found in ours.pull(subscription)] == [b'{"tick": 1}'] * 3
    assert scheduler.calls == {"published": 3}
    scheduler.stop()


def test_the_scheduler_runs_by_itself_and_survives_a_pubsub_that_is_down(
    ours: Cloud, faults: Faults, caplog: pytest.LogCaptureFixture
) -> None:
    topic = ours.topic()
    faults.fail("Publish", 503)
    scheduler = Scheduler(ours.address, topic, 0.02)
    scheduler.start()
    assert eventually(lambda: scheduler.calls["published"] >= 2)
    scheduler.stop()
    assert scheduler.calls["failed"] == 1
    assert topic in caplog.text
    count = scheduler.calls["published"]
    time.sleep(0.05)
    assert scheduler.calls["published"] == count
