"""The topic of ticks at Pub/Sub, and the log sink of the local cloud that feeds ``job_state``."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient

from local.standins import log_sink
from local.standins.pubsub import PubSubServer
from local.standins.vertex.job_log import output_entry
from tests.functional.test_job_state import NUMBER, WRITTEN, entry, when
from vertex_launch.adapters.google_api import BACKOFF
from vertex_launch.adapters.ticks import Ticks
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable

TICKS = "projects/p/topics/ticks"
OFTEN = BACKOFF.with_delay(initial=0.5, maximum=1.0)

pytestmark = pytest.mark.usefixtures("retry_clock")


@pytest.fixture
def pubsub(monkeypatch: pytest.MonkeyPatch) -> Iterator[PubSubServer]:
    server = PubSubServer()
    server.start()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    publisher = PublisherClient()
    publisher.create_topic(name=TICKS)
    publisher.transport.close()
    yield server
    server.stop()


def test_a_tick_reaches_its_topic(pubsub: PubSubServer) -> None:
    subscription = "projects/p/subscriptions/all"
    with SubscriberClient() as subscriber:
        subscriber.create_subscription(name=subscription, topic=TICKS)
        Ticks(TICKS, timeout=20).publish({"ended": "x"})
        (received,) = subscriber.pull(subscription=subscription, max_messages=10).received_messages
    assert json.loads(received.message.data) == {"ended": "x"}


def test_a_log_sink_forwards_what_matches(pubsub: PubSubServer) -> None:
    subscription = "projects/p/subscriptions/all"
    sink = log_sink.LogSink(pubsub.address, TICKS)
    with SubscriberClient() as subscriber:
        subscriber.create_subscription(name=subscription, topic=TICKS)
        for said in (
            entry("Job is preparing."),
            entry("Job failed."),
            output_entry("p", NUMBER, "Job failed.", WRITTEN),
        ):
            sink.write(said)
        sink.start()
        sink.stop()
        (received,) = subscriber.pull(subscription=subscription, max_messages=10).received_messages
    assert json.loads(received.message.data) == entry("Job failed.")
    assert dict(received.message.attributes) == {"logging.googleapis.com/timestamp": when(WRITTEN)}
    assert sink.calls == {"published": 1}


def test_a_tick_is_published_again_if_that_may_help(pubsub: PubSubServer) -> None:
    pubsub.faults.fail("Publish", 503)
    pubsub.faults.lose("Publish")
    Ticks(TICKS, timeout=20, backoff=OFTEN).publish({})
    assert pubsub.calls["Publish"] == 3


def test_a_topic_that_cannot_be_used(pubsub: PubSubServer) -> None:
    def refusal(topic: str, code: Code) -> str:
        with pytest.raises(Unavailable) as error:
            Ticks(topic, timeout=20, backoff=OFTEN).publish({})
        assert error.value.message.code is code
        assert topic in error.value.reason
        return error.value.reason

    refusal("projects/p/topics/none", Code.PUBSUB_TOPIC_NOT_FOUND)
    for status, code in (("PERMISSION_DENIED", Code.PUBSUB_PERMISSION), (503, Code.PUBSUB_UNAVAILABLE)):
        pubsub.faults.fail("Publish", status, times=None, message="in its own words")
        assert "in its own words" in refusal(TICKS, code)
        pubsub.faults.clear()
    pubsub.stop()
    refusal(TICKS, Code.PUBSUB_UNAVAILABLE)
