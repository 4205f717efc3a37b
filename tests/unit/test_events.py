"""What reaches the functions: ticks in both forms of delivery, and the bodies of HTTP requests."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cloudevents.http import CloudEvent
from hypothesis import given
from hypothesis import strategies as st

from vertex_launch import events
from vertex_launch.errors import RequestError
from vertex_launch.model import PassRequest

ATTRIBUTES = {
    "id": "1",
    "source": "//pubsub.googleapis.com/projects/p/topics/ticks",
    "specversion": "1.0",
    "type": "google.cloud.pubsub.topic.v1.messagePublished",
    "time": "2026-02-23T21:11:09.100Z",
}
PUBLISHED = 1771881069.1


def tick(payload: bytes | None, **message: Any) -> CloudEvent:
    if payload is not None:
        message["data"] = base64.b64encode(payload).decode()
    return CloudEvent(ATTRIBUTES, {"message": message, "subscription": "projects/p/subscriptions/s"})


@pytest.mark.parametrize("payload", [None, b"", b"  \n", b"{}"])
def test_an_empty_tick_asks_for_a_full_pass(payload: bytes | None) -> None:
    request = events.tick(tick(payload))
    assert request == PassRequest(published=PUBLISHED)
    assert request.full


def test_a_tick_may_say_what_it_wants() -> None:
    event = tick(b'{"queues": ["gpu", "gpu"], "limit": 2}', publishTime="2026-02-23T21:11:10Z")
    request = events.tick(event)
    assert request == PassRequest(queues=("gpu",), limit=2, published=PUBLISHED + 0.9)
    assert not request.full


def test_a_tick_whose_data_is_text() -> None:
    event = CloudEvent(ATTRIBUTES, json.dumps({"message": {"data": ""}}))
    assert events.tick(event) == PassRequest(published=PUBLISHED)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"message": {"data": "%%%"}}, "tick: the message's data is not JSON"),
        ({"message": {"data": base64.b64encode(b"not json").decode()}}, "not JSON"),
        ({"message": {"data": base64.b64encode(b"\xff\xfe").decode()}}, "not JSON"),
        ({"message": {"data": base64.b64encode(b"[" * 100_000).decode()}}, "the message's data is nested too deeply"),
        ({"message": {"data": base64.b64encode(b"[1]").decode()}}, "found a list, expected a JSON object"),
        ({"message": [1]}, "found a list where a Pub/Sub message was expected"),
        ("nonsense", "the event's data is not JSON"),
    ],
)
def test_a_malformed_tick_is_an_error_that_says_so(data: Any, said: str) -> None:
    with pytest.raises(RequestError) as error:
        events.tick(CloudEvent(ATTRIBUTES, data))
    assert said in str(error.value)


def test_every_problem_of_a_body_is_reported_at_once() -> None:
    with pytest.raises(RequestError) as error:
        events.request({"queue": ["gpu"], "limit": -1, "dry_run": "yes", "queues": "gpu", "foo": 1, "run_spec": []})
    assert str(error.value).splitlines() == [
        "body: queues: found 'gpu'. Give a list of queue names, as [\"gpu\"].",
        "body: limit: found -1. Give a whole number, 0 or more.",
        "body: dry_run: found 'yes'. Give true or false.",
        "body: run_spec: found a list. Give a W&B run spec, as a JSON object.",
        "body: queue: unknown key 'queue'. Did you mean queues?",
        "body: foo: unknown key 'foo'. Known are queues, limit, dry_run, resume, run_spec, ended.",
    ]


@pytest.mark.parametrize("limit", [True, 1.5, "3", 10**40, float("nan")])
def test_a_limit_is_a_whole_number(limit: Any) -> None:
    if limit == 10**40:
        assert events.request({"limit": limit}).limit == limit
        return
    with pytest.raises(RequestError, match="limit"):
        events.request({"limit": limit})


def test_a_run_spec_is_for_a_dry_run_only() -> None:
    with pytest.raises(RequestError, match="dry run only"):
        events.request({"run_spec": {}})
    assert events.request({"run_spec": {}, "dry_run": True}).run_spec == {}


@pytest.mark.parametrize("raw", [b"", b" \n"])
def test_an_empty_body_has_no_wishes(raw: bytes) -> None:
    assert events.request(events.http_body(raw)) == PassRequest()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"{", "body: not JSON (Expecting property name"),
        (b"\xff", "body: not JSON ('utf-8' codec"),
        (b'{"limit": NaN}', "body: not JSON (NaN is no number there). Send a JSON object or nothing at all."),
        (b"[" * 100_000, "body: nested too deeply. Send"),
        (b"[" * 101 + b"]" * 101, "body: nested too deeply. Send"),
        (b"9" * 5000, "body: not usable: a number in it is longer than Python reads, some 4000 digits. Send"),
        (b'{"a": "\\udc00"}', "body: not usable: text in it is not Unicode. Send"),
        (b'{"\xed\xa0\x80": 1}', "body: not usable: text in it is not Unicode. Send"),
    ],
)
def test_a_body_that_is_no_usable_json(raw: bytes, said: str) -> None:
    with pytest.raises(RequestError) as error:
        events.http_body(raw)
    assert str(error.value).startswith(said)


def test_a_body_that_is_just_usable() -> None:
    assert events.http_body(b"[" * 100 + b"]" * 100)
    assert events.http_body(b"9" * 4000) == int("9" * 4000)
    assert events.http_body(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_a_tick_may_name_a_job_that_has_ended() -> None:
    name = "projects/415104041262/locations/us-central1/customJobs/3000721679224668160"
    request = events.tick(tick(json.dumps({"ended": name}).encode()))
    assert request == PassRequest(ended=name, published=PUBLISHED)
    assert request.full


@pytest.mark.parametrize(
    "name", [1, ["x"], "", "x", "projects/p/locations/r/customJobs/1\n", "a/customJobs/1", "b" * 10**6]
)
def test_an_ended_job_is_named_in_full(name: Any) -> None:
    with pytest.raises(RequestError) as error:
        events.request({"ended": name})
    assert "Give a job's name, as projects/P/locations/R/customJobs/1" in str(error.value)
    assert len(str(error.value)) < 300


def test_problems_repeat_no_key_and_not_much() -> None:
    key = "deadbeef" * 5
    body = {key: 1, "limit": f"x {key}", "queues": [key, f"q {key}"], "ended": key, "run_spec": [key], "dry_run": [key]}
    with pytest.raises(RequestError) as error:
        events.request(body, ("cpu",))
    assert len(error.value.problems) == 7
    assert key not in str(error.value)
    with pytest.raises(RequestError) as error:
        events.request({f"key {number} {'x' * 10_000}": number for number in range(1000)})
    assert len(error.value.problems) == events.MOST_PROBLEMS
    assert len(str(error.value)) < 10_000


@pytest.mark.parametrize(
    ("message", "event", "known"),
    [
        ({"messageId": "1234"}, {}, "'1234'"),
        ({"message_id": "1234"}, {}, "'1234'"),
        ({}, {"id": "5678"}, "'5678'"),
        ([], {"id": "5678"}, "'5678'"),
        ({"messageId": ["1"]}, {}, "a list"),
        ({"messageId": "x" * 1000}, {}, f"'{'x' * 79}…"),
        ({"messageId": "x" * 1001}, {}, "a text of 1001 characters"),
    ],
)
def test_the_id_of_a_message(message: Any, event: dict[str, Any], known: str) -> None:
    assert events.message_id(CloudEvent(ATTRIBUTES | event, {"message": message})) == known


def test_queues_must_be_configured() -> None:
    with pytest.raises(RequestError) as error:
        events.request({"queues": ["tpu", "cpu"], "limit": -1}, ("cpu", "gpu"))
    assert "queue 'tpu' is not configured" in str(error.value)
    assert "serves cpu, gpu" in str(error.value)
    assert "body: limit: found -1" in str(error.value)


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
bodies = json_values | st.dictionaries(
    st.sampled_from(["queues", "limit", "dry_run", "run_spec", "resume", "ended", "x"]), json_values
)


@given(bodies)
def test_any_json_is_a_request_or_a_clear_error(body: Any) -> None:
    try:
        assert isinstance(events.request(body), PassRequest)
    except RequestError as error:
        assert all(problem.found and problem.remedy for problem in error.problems)


@given(st.binary() | json_values | st.fixed_dictionaries({"message": st.fixed_dictionaries({"data": json_values})}))
def test_any_event_is_a_tick_or_a_clear_error(data: Any) -> None:
    try:
        assert isinstance(events.tick(CloudEvent(ATTRIBUTES, data)), PassRequest)
    except RequestError as error:
        assert error.problems
