"""What reaches the functions: ticks in every form of delivery, and the bodies of HTTP requests."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.specs import with_settings
from vertex_launch import events
from vertex_launch.codes import Code
from vertex_launch.errors import RequestError
from vertex_launch.model import PassRequest

WHEN, PUBLISHED = "2026-02-23T21:11:09.100Z", 1771881069.1
JOB = "projects/415104041262/locations/us-central1/customJobs/3000721679224668160"


def encoded(payload: bytes) -> str:
    return base64.b64encode(payload).decode()


def message(payload: bytes | None, **more: Any) -> dict[str, Any]:
    data = {} if payload is None else {"data": encoded(payload)}
    return {"publishTime": WHEN, **data, **more}


def push(payload: bytes | None, **more: Any) -> bytes:
    """Return a push of Pub/Sub, which is also the body of a binary CloudEvent."""
    return json.dumps({"message": message(payload, **more), "subscription": "projects/p/subscriptions/s"}).encode()


def structured(payload: bytes | None, **more: Any) -> bytes:
    event = {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": {"message": message(payload, **more)}}
    return json.dumps(event).encode()


def structured_in_base64(payload: bytes | None, **more: Any) -> bytes:
    data = encoded(json.dumps({"message": message(payload, **more)}).encode())
    return json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data_base64": data}).encode()


def first_generation(payload: bytes | None, **more: Any) -> bytes:
    context = {"eventId": "7", "timestamp": WHEN, "eventType": "google.pubsub.topic.publish", "resource": {}}
    data = {name: value for name, value in message(payload, **more).items() if name != "publishTime"}
    return json.dumps({"context": context, "data": {"@type": "t", "attributes": {}, **data}}).encode()


FORMS = (push, structured, structured_in_base64, first_generation)
Form = Callable[..., bytes]


def problems(call: Callable[..., Any], *args: Any) -> list[tuple[str, Code]]:
    """Return place and code of every problem that a call reports."""
    with pytest.raises(RequestError) as error:
        call(*args)
    assert all(problem.found and problem.remedy for problem in error.value.problems)
    return [(problem.place, problem.code) for problem in error.value.problems]


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("payload", [None, b"", b"  \n", b"{}", b"null"])
def test_an_empty_tick_asks_for_a_full_pass(form: Form, payload: bytes | None) -> None:
    request = events.tick(form(payload))
    assert request == PassRequest(published=PUBLISHED)
    assert request.full


@pytest.mark.parametrize("form", FORMS)
def test_a_tick_can_ask_for_more(form: Form) -> None:
    request = events.tick(form(b'{"queues": ["gpu", "gpu"], "limit": 2, "resume": true}'))
    assert request == PassRequest(queues=("gpu",), limit=2, resume=True, published=PUBLISHED)
    assert not request.full


@pytest.mark.parametrize("name", ["publishTime", "publish_time"])
def test_when_a_tick_was_published(name: str) -> None:
    times = {"publishTime": None, name: "2026-02-23T21:11:10Z"}
    assert events.tick(push(None, **times)).published == PUBLISHED + 0.9


@pytest.mark.parametrize(
    ("raw", "place", "code"),
    [
        (push(None, data="%%%"), "data in tick", Code.REQUEST_JSON),
        (push(None, data=[1]), "data in tick", Code.REQUEST_JSON),
        (push(b"not json"), "tick", Code.REQUEST_JSON),
        (push(b"[1]"), "tick", Code.REQUEST_FORMAT),
        (push(b"%d" % 1 + b" " * events.MOST_BODY), "tick", Code.REQUEST_SIZE),
        (push(b"[1]", messageId="1234"), "tick '1234'", Code.REQUEST_FORMAT),
        (push(b"[1]", message_id="1234"), "tick '1234'", Code.REQUEST_FORMAT),
        (push(b"[1]", messageId=["1"]), "tick a list", Code.REQUEST_FORMAT),
        (push(b"[1]", messageId="x" * 1000), "tick a text of 1002 characters", Code.REQUEST_FORMAT),
        (push(b"[1]", messageId="x" * 1001), "tick a text of 1001 characters", Code.REQUEST_FORMAT),
        (first_generation(b"[1]"), "tick '7'", Code.REQUEST_FORMAT),
        (body({"message": [1]}), "tick", Code.REQUEST_FORMAT),
        (body({"limit": 1}), "tick", Code.REQUEST_FORMAT),
        (body({"data": {"limit": 1}}), "tick", Code.REQUEST_FORMAT),
        (body({"data_base64": "%%%"}), "data in tick", Code.REQUEST_JSON),
        (body({"context": 1, "data": 2}), "tick", Code.REQUEST_FORMAT),
        (b"", "tick", Code.REQUEST_FORMAT),
        (b"nonsense", "tick", Code.REQUEST_JSON),
    ],
)
def test_a_malformed_tick(raw: bytes, place: str, code: Code) -> None:
    assert problems(events.tick, raw) == [(place, code)]


def test_every_problem_of_a_body_is_reported_at_once() -> None:
    wrong = {"queue": ["gpu"], "limit": -1, "dry_run": "yes", "queues": "gpu", "foo": 1, "run_spec": []}
    assert problems(events.request, body(wrong)) == [
        ("queues in request body", Code.REQUEST_VALUE),
        ("limit in request body", Code.REQUEST_VALUE),
        ("dry_run in request body", Code.REQUEST_VALUE),
        ("run_spec in request body", Code.REQUEST_VALUE),
        ("queue in request body", Code.REQUEST_KEY),
        ("foo in request body", Code.REQUEST_KEY),
    ]


def test_an_unknown_key_that_resembles_a_known_one() -> None:
    with pytest.raises(RequestError) as error:
        events.request(body({"dryrun": True, "foo": 1}))
    near, far = error.value.problems
    assert "dry_run?" in near.remedy
    assert all(name in far.remedy for name in events.Body.model_fields)


@pytest.mark.parametrize("limit", [True, 1.5, "3", [], {}])
def test_a_limit_is_a_whole_number(limit: Any) -> None:
    assert problems(events.request, body({"limit": limit})) == [("limit in request body", Code.REQUEST_VALUE)]
    assert events.request(body({"limit": 10**40})).limit == 10**40


def test_a_run_spec_is_for_a_dry_run_only() -> None:
    for more in ({}, {"dry_run": False}):
        assert problems(events.request, body({"run_spec": {}, **more})) == [
            ("run_spec in request body", Code.REQUEST_RUN_SPEC)
        ]
    assert events.request(body({"run_spec": {}, "dry_run": True})).run_spec == {}


@pytest.mark.parametrize(
    "raw", [b"", b" \n", b"null", b"{}", b'{"limit": null, "run_spec": null, "ended": null, "queues": []}']
)
def test_a_body_that_asks_for_nothing(raw: bytes) -> None:
    assert events.request(raw) == PassRequest()


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"\xff",
        b'{"limit": NaN}',
        b"[" * 100_000,
        b"[" * 300 + b"]" * 300,
        b"9" * 5000,
        b'{"a": "\\udc00"}',
        b'{"\xed\xa0\x80": 1}',
    ],
)
def test_a_body_that_is_not_usable_json(raw: bytes) -> None:
    assert problems(events.request, raw) == [("request body", Code.REQUEST_JSON)]


@pytest.mark.parametrize("raw", [b"[" * 100 + b"]" * 100, b"9" * 300, b'"\\ud83d\\ude00"', b"true"])
def test_a_body_that_is_json_but_not_an_object(raw: bytes) -> None:
    assert problems(events.request, raw) == [("request body", Code.REQUEST_FORMAT)]


def test_the_largest_body() -> None:
    assert events.request(b" " * events.MOST_BODY) == PassRequest()
    assert problems(events.request, b" " * (events.MOST_BODY + 1)) == [("request body", Code.REQUEST_SIZE)]


def test_a_tick_can_name_a_job_that_has_ended() -> None:
    request = events.tick(push(body({"ended": JOB})))
    assert request == PassRequest(ended=JOB, published=PUBLISHED)
    assert request.full


@pytest.mark.parametrize("name", ["", "x", f"{JOB}\n", "a/customJobs/1", "b" * 10**6])
def test_an_ended_job_is_named_in_full(name: str) -> None:
    with pytest.raises(RequestError) as error:
        events.request(body({"ended": name}))
    (problem,) = error.value.problems
    assert (problem.place, problem.code) == ("ended in request body", Code.REQUEST_JOB)
    assert len(str(problem)) < 300


@pytest.mark.parametrize("name", [1, ["x"], {}])
def test_the_name_of_an_ended_job_is_text(name: object) -> None:
    assert problems(events.request, body({"ended": name})) == [("ended in request body", Code.REQUEST_VALUE)]


def test_problems_are_few_and_short_and_repeat_no_key() -> None:
    key = "deadbeef" * 5
    wrong = {
        key: 1,
        "limit": f"x {key}",
        "queues": [key, f"q {key}"],
        "ended": key,
        "run_spec": [key],
        "dry_run": [key],
    }
    with pytest.raises(RequestError) as error:
        events.request(body(wrong), with_settings(queues=("cpu",)))
    assert len(error.value.problems) == 6
    assert key not in str(error.value)
    with pytest.raises(RequestError) as error:
        events.request(body({f"key {number} {'x' * 10_000}": number for number in range(100)}))
    assert len(error.value.problems) == events.MOST_PROBLEMS
    assert len(str(error.value)) < 10_000


def test_queues_must_be_configured() -> None:
    with pytest.raises(RequestError) as error:
        events.request(body({"queues": ["tpu", "cpu", "x\ny"], "limit": -1}), with_settings(queues=("cpu", "gpu")))
    queues, limit = error.value.problems
    assert (queues.place, queues.code) == ("queues in request body", Code.REQUEST_QUEUE)
    assert queues.found.endswith("'tpu', 'x\\ny'")
    assert "cpu, gpu" in queues.remedy
    assert limit.place == "limit in request body"
