"""Requests: retries, batches and the modes of a server, answers that are not answers, and the key."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
import requests

from local.standins.wandb import WandbServer
from local.standins.web import Handler, WebServer
from tests.support.memory import Clock
from tests.support.specs import with_settings
from tests.support.wandb import (
    BASIC,
    ENTITY,
    KEY,
    OLD_KEY,
    PROJECT,
    Answer,
    Answering,
    Keys,
    Serve,
    agent,
    ask,
    client,
    data,
    graphql_requests,
    ids,
    push,
    refusal,
    start_run,
)
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.errors import KeyRefused, Unavailable
from vertex_launch.log import Redactor
from vertex_launch.model import Ack, Phase, Queued, RunId, RunView


@pytest.mark.parametrize("fault", [500, 502, 503, 504, "lose"])
def test_what_may_be_repeated_is_repeated(server: WandbServer, queue: WandbQueue, fault: int | str) -> None:
    (item,) = push(server)

    def burst(operation: str) -> None:
        if isinstance(fault, int):
            server.faults.fail(operation, fault, times=3)
        else:
            server.faults.lose(operation, times=3)

    for operation in ("project", "viewer", "failRunQueueItem", "updateRunQueueItemWarning", "upsertSweep"):
        burst(operation)
    assert ask(queue, viewer=True, items={item: "cpu"}).items
    assert queue.warn([(item, "w")], Phase.RUN) == [True]
    assert queue.fail([(item, "f")], Phase.RUN) == [True]
    server.store.set_sweep(ENTITY, "demo", "sw1", "RUNNING")
    burst("project")
    assert queue.cancel_sweep(ENTITY, "demo", "sw1", "sw1", "cpu")


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_refused_batch_is_sent_one_by_one_and_that_is_remembered(serve: Serve, most: int) -> None:
    server = serve(max_operations_per_request=most)
    queue = client(server.url)
    pushed = push(server, count=4)
    mine = agent(server, queue)
    assert ids(queue.pop(ENTITY, ["cpu"] * 5, mine, "RUNNING")) == [*pushed, None]
    assert len(max(graphql_requests(server), key=len)) == 6
    server.store.operations.clear()
    assert queue.ack([(item, "run") for item in pushed]) == [Ack.ACCEPTED] * 4
    assert queue.runs([RunId(ENTITY, "demo", "one"), RunId(ENTITY, "demo", "two")])
    assert graphql_requests(server) == [("ackRunQueueItem",)] * 4 + [("project",)] * 2


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_question_to_a_server_that_takes_one_question_a_request(serve: Serve, batch_first: bool) -> None:
    server = serve(max_operations_per_request=1)
    queue = client(server.url)
    one, two = push(server, count=2)
    run, absent = start_run(server, "run1"), RunId(ENTITY, "demo", "absent")
    mine = agent(server, queue)
    if batch_first:
        queue.warn([(one, "a"), (two, "b")], Phase.AGENT)
    for _ in range(3):
        server.store.operations.clear()
        found = ask(queue, agent=mine, items={one: "cpu", two: "cpu"}, runs=[run, absent], viewer=True)
        assert found.agent is not None
        assert (found.agent.id, found.viewer_entity) == (mine, ENTITY)
        assert set(found.items) == {one, two}
        assert found.runs == {run: RunView("running", stopped=False), absent: None}
        assert found.queued["cpu"] == Queued((one, two), complete=True)
    assert graphql_requests(server) == [("project",), ("launchAgent",), ("viewer",), *[("project",)] * 4]


def test_a_server_that_does_not_show_what_a_queue_holds_is_asked_without_it_from_then_on(answering: Answering) -> None:
    asked: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        asked.append(body["query"])
        if "runQueueItems" in body["query"]:
            return Answer(400, {"errors": [{"message": 'Cannot query field "runQueueItems" on type "RunQueue".'}]})
        return data(f0=PROJECT, f1={"run": None}, f2={"entity": ENTITY})

    queue, run = client(answering(say=say)), RunId(ENTITY, "demo", "run1")
    for _ in range(2):
        found = ask(queue, runs=[run], viewer=True)
        assert (found.queues, found.queued, found.viewer_entity) == ({"cpu": "Q1"}, {}, ENTITY)
        assert found.runs == {run: None}
    assert ["runQueueItems" in text for text in asked] == [True, False, False]


def test_batches_go_on_after_an_operation_that_the_server_does_not_support(answering: Answering) -> None:
    """An unknown mutation is refused with the whole request, batch or not: that says nothing about batches."""
    sizes: list[int] = []

    def say(body: dict[str, Any]) -> Answer:
        sizes.append(body["query"].count("input:"))
        if "Warning" in body["query"]:
            return Answer(400, {"errors": [{"message": 'Cannot query field "updateRunQueueItemWarning"'}]})
        return data(**{f"f{i}": {"success": True} for i in range(sizes[-1])})

    queue = client(answering(say=say))
    assert queue.warn([("one", "a"), ("two", "b")], Phase.AGENT) == [False, False]
    assert queue.fail([("one", "a"), ("two", "b")], Phase.AGENT) == [True, True]
    assert sizes == [2, 2], "what it does not know is not sent again"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_proxy_may_also_refuse_a_batch(answering: Answering, status: int) -> None:
    def say(body: dict[str, Any]) -> Answer:
        return data(f0={"success": True}) if body["query"].count("input:") == 1 else Answer(status, b"<h1>Too big</h1>")

    assert client(answering(say=say)).fail([("one", "a"), ("two", "b")], Phase.AGENT) == [True, True]


def test_requests_one_by_one_end_when_they_take_too_long(answering: Answering, retry_clock: Clock) -> None:
    asked: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        asked.append(body["variables"]["item_0"])
        retry_clock.sleep(9)
        return data(f0={"success": True})

    queue = client(answering(say=say), read=20, updates=1)
    assert queue.ack([(str(number), "run") for number in range(100)]) == [Ack.ACCEPTED] * 3 + [Ack.UNKNOWN] * 97
    assert asked == ["0", "1", "2"]


def test_batches_are_as_large_as_configured(server: WandbServer) -> None:
    queue = client(server.url, pops=3, updates=2)
    mine, pushed = agent(server, queue), push(server, count=5)
    server.store.operations.clear()
    queue.pop(ENTITY, ["cpu"] * 5, mine)
    queue.ack([(item, "run") for item in pushed])
    assert [len(operations) for operations in graphql_requests(server)] == [3, 2, 2, 2, 1]


NULLS = {"errors": [{"message": "permission denied"}], "data": {"f0": None}}
PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>"
MOVED = {"Location": "https://login.example"}
REFUSED, ADDRESS, DOWN = Code.WANDB_REFUSED, Code.WANDB_ADDRESS, Code.WANDB_UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "quoted", "code"),
    [
        (Answer(200, PAGE), "the answer from {url} is HTML or XML, not JSON (HTTP 200)", ADDRESS),
        (Answer(200, b"[1]"), "the answer from {url} is not a JSON object (HTTP 200)", ADDRESS),
        (Answer(200, b"{}"), "the answer from {url} is not a GraphQL answer (HTTP 200)", ADDRESS),
        (Answer(302, b"", MOVED), "{url} redirects to https://login.example", ADDRESS),
        (Answer(404, b"404 page not found\n"), "HTTP 404 from {url}: 404 page not found", ADDRESS),
        (Answer(404, b"{}"), "HTTP 404 from {url}: {{}}", ADDRESS),
        (Answer(403, {"error": "no access"}), 'HTTP 403 from {url}: {{"error": "no access"}}', ADDRESS),
        (Answer(413, b""), "HTTP 413 from {url}: (nothing more)", ADDRESS),
        (Answer(200, {"errors": [{"message": "rotten"}], "data": None}), "the request failed: rotten", REFUSED),
        (Answer(404, {"errors": [{"message": "not found"}]}), "HTTP 404 from {url}: not found", REFUSED),
        (Answer(404, {"errors": [{"message": "x"}], "data": {}}), "HTTP 404 from {url}: x", REFUSED),
        (Answer(403, {"errors": [{"message": "no right"}]}), "HTTP 403 from {url}: no right", REFUSED),
        (Answer(403, NULLS), "HTTP 403 from {url}: permission denied", REFUSED),
        (Answer(400, {"errors": [{"message": "no"}]}), "HTTP 400 from {url}: no", REFUSED),
        (Answer(405, {"errors": [{"message": "no"}], "data": None}), "HTTP 405 from {url}: no", REFUSED),
        (Answer(502, PAGE), "HTTP 502 from {url}: 502 Bad Gateway nginx", DOWN),
        (Answer(500, {"errors": [{"message": "panic: oh no"}]}), "HTTP 500 from {url}: panic: oh no", DOWN),
        (Answer(429, {"errors": [{"message": "slow down"}]}), "HTTP 429 from {url}: slow down", Code.WANDB_RATE_LIMIT),
        (None, "no answer from {url}: ", DOWN),
    ],
)
def test_what_a_server_says_instead_of_an_answer_is_quoted_with_its_address_unless_it_is_2xx(
    answering: Answering, answer: Answer | None, quoted: str, code: Code
) -> None:
    queue = client(url := answering(answer))
    quoted = quoted.format(url=f"{url}/graphql")
    assert quoted in refusal(lambda: ask(queue), code)
    try:
        reason = queue.pop(ENTITY, ["cpu"], "A1")[0].error
    except Unavailable as error:
        reason = error.reason
    assert quoted in reason
    assert "W&B: " not in reason


def slow(seconds: float, retry_clock: Clock, taken: list[int]) -> Callable[[dict[str, Any]], Answer | None]:
    """Answer like a server that runs mutations one after another and gives up after ten seconds."""

    def say(body: dict[str, Any]) -> Answer | None:
        count = body["query"].count("input:")
        taken.append(count)
        retry_clock.sleep(min(10, count * seconds))
        if count * seconds > 10:
            return None
        value = {"success": True, "runQueueItemId": None}
        return data(**{f"f{i}": value for i in range(count)})

    return say


def test_a_slow_server_gets_fewer_operations_at_once_and_later_more_again(
    answering: Answering, retry_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    taken: list[int] = []
    queue = client(answering(say=slow(0.3, retry_clock, taken)))
    refusal(lambda: queue.pop(ENTITY, ["cpu"] * 64, "A1"), Code.WANDB_UNAVAILABLE)
    assert taken == [64]
    assert len(queue.pop(ENTITY, ["cpu"] * 30, "A1")) == 30
    for _ in range(20):
        queue.pop(ENTITY, ["cpu"] * 20, "A1")
    assert taken[1] == 30, "half of 64 would be 32"
    assert max(taken[4:]) * 0.3 <= 5.5, "an answer takes no more than about half of the time"
    assert min(taken[4:]) >= 1
    assert "0.30 s for each of" in caplog.text
    before = queue._pace.operations
    taken.clear()
    fast = client(answering(say=slow(0.001, retry_clock, taken)))
    fast._pace.operations = before
    for _ in range(40):
        fast.pop(ENTITY, ["cpu"] * 64, "A1")
    assert max(taken) == 64


@pytest.mark.parametrize("status", [302, 400, 401, 403, 404, 409, 429])
def test_a_refusal_does_not_make_requests_smaller(answering: Answering, status: int) -> None:
    queue = client(answering(Answer(status, {"errors": [{"message": "no"}]}, MOVED)))
    before = queue._pace.operations
    queue.ack([(f"item{number}", "run") for number in range(8)])
    assert queue._pace.operations == before


@pytest.mark.parametrize("act", ["warn", "fail", "ack"])
def test_what_a_null_answer_leaves_out_is_sent_one_by_one(answering: Answering, act: str) -> None:
    sizes: list[int] = []

    def say(body: dict[str, Any]) -> Answer:
        sizes.append(body["query"].count("input:"))
        if sizes[-1] == 1:
            return data(f0={"success": True})
        return Answer(409, {"data": None, "errors": [{"message": "already claimed", "path": ["f1", "success"]}]})

    queue, pairs = client(answering(say=say)), [("a", "r"), ("b", "r"), ("c", "r")]
    if act == "ack":
        assert queue.ack(pairs) == [Ack.ACCEPTED, Ack.REFUSED, Ack.ACCEPTED]
    else:
        assert getattr(queue, act)(pairs, Phase.RUN) == [True, False, True]
    assert sizes == [3, 1, 1]


def test_pops_that_a_null_answer_leaves_out_are_not_sent_again(answering: Answering) -> None:
    sent: list[object] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(body)
        return Answer(409, {"data": None, "errors": [{"message": "no", "path": ["f1"]}]})

    queue = client(answering(say=say))
    assert [one.error != "" for one in queue.pop(ENTITY, ["cpu"] * 3, "A1")] == [True] * 3
    assert len(sent) == 1


LIMITED = {"error": "rate limit exceeded"}


@pytest.mark.parametrize("header", ["RateLimit-Reset", "Retry-After"])
def test_a_short_limit_of_the_rate_is_waited_for(answering: Answering, retry_clock: Clock, header: str) -> None:
    sent: list[float] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(retry_clock())
        return Answer(429, LIMITED, {header: "7"}) if len(sent) == 1 else data(f0=PROJECT)

    assert ask(client(answering(say=say)), peek=0).queues == {"cpu": "Q1"}
    assert len(sent) == 2
    assert 7 <= sent[1] - sent[0] < 8


@pytest.mark.parametrize("reset", ["60", "nan", "-5", "soon", "", "1e99"])
def test_a_limit_of_the_rate_costs_few_requests(answering: Answering, retry_clock: Clock, reset: str) -> None:
    sent: list[object] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(body)
        return Answer(429, LIMITED, {"RateLimit-Reset": reset})

    queue = client(answering(say=say))
    began = retry_clock()
    while retry_clock() < began + 20:
        refusal(lambda: ask(queue), Code.WANDB_RATE_LIMIT)
        retry_clock.sleep(1)
    assert len(sent) <= (1 if reset in ("60", "1e99") else 9 if reset != "-5" else 40)


def test_a_limit_of_the_rate_ends_with_its_time(answering: Answering, retry_clock: Clock) -> None:
    queue = client(answering(Answer(429, LIMITED, {"RateLimit-Reset": "60"}), data(f0=PROJECT)))
    refusal(lambda: ask(queue), Code.WANDB_RATE_LIMIT)
    assert queue.ack([("one", "run")]) == [Ack.UNKNOWN], "nothing is sent"
    retry_clock.sleep(60)
    assert ask(queue, peek=0).queues == {"cpu": "Q1"}


@pytest.mark.parametrize("status", [200, 400, 401, 403, 404, 409, 500])
def test_an_answer_with_a_value_counts_whatever_its_status(answering: Answering, status: int) -> None:
    body = {"data": {"f0": PROJECT, "f1": None}, "errors": [{"message": "permission denied", "path": ["f1", "entity"]}]}
    keys = Keys()
    found = ask(client(answering(Answer(status, body)), keys), peek=0, viewer=True)
    assert (found.queues, found.viewer_entity, keys.renewed) == ({"cpu": "Q1"}, "", 0)


def test_relogin_required_is_no_refused_key(answering: Answering) -> None:
    keys = Keys()
    queue = client(answering(Answer(401, {"errors": [{"message": "relogin required"}]})), keys)
    assert "user_agent" in refusal(lambda: ask(queue), Code.WANDB_CLIENT)
    assert keys.renewed == 0


def test_requests_name_the_product_and_the_client_library_unless_an_operator_names_another() -> None:
    names: list[str] = []

    class Names(Handler):
        def serve(self) -> None:
            names.append(self.headers["User-Agent"])
            self.answer(200, b'{"data": {"f0": {"runQueues": []}}}')

    with WebServer(Names) as server:
        for given in (None, "own/1 (x)"):
            settings = with_settings(base_url=server.url, user_agent=given)
            ask(WandbQueue(settings, Keys()), peek=0)
    assert re.fullmatch(r"vertex-launch/[\d.]+\S* W&B Public Client [\d.]+", names[0])
    assert names[1:] == ["own/1 (x)"]


def test_an_address_without_a_server() -> None:
    with WebServer(Handler) as gone:
        queue = client(gone.url, read=1)
    for act in (lambda: ask(queue), lambda: queue.pop(ENTITY, ["cpu"], "A1")):
        reason = refusal(act, Code.WANDB_UNAVAILABLE)
        assert f"no answer from {gone.url}/graphql: " in reason
        assert "Connection refused" in reason


def test_a_pop_that_could_not_be_sent_is_sent_again(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that was never opened has carried nothing."""
    queue = client(server.url)
    mine = agent(server, queue)
    (item,) = push(server)
    post, tries = requests.Session.post, iter([True, True, False])

    def sometimes(session: requests.Session, url: str, **how: Any) -> requests.Response:
        return post(session, "http://127.0.0.1:1/graphql" if next(tries) else url, **how)

    monkeypatch.setattr(requests.Session, "post", sometimes)
    assert ids(queue.pop(ENTITY, ["cpu"], mine)) == [item]


def test_an_answer_that_takes_too_long(server: WandbServer) -> None:
    server.faults.delay("project", 0.1, times=None)
    reason = refusal(lambda: ask(client(server.url, read=0.02)), Code.WANDB_UNAVAILABLE)
    assert "read timed out" in reason.lower()


def test_a_refused_key_is_read_again_once(server: WandbServer) -> None:
    (item,) = push(server)
    keys = Keys([OLD_KEY, KEY])
    queue = client(server.url, keys)
    assert ask(queue, items={item: "cpu"}).items
    ask(queue)
    assert keys.renewed == 1


@pytest.mark.parametrize("within", [0.0, -5.0])
def test_nothing_is_sent_when_no_time_is_left(server: WandbServer, queue: WandbQueue, within: float) -> None:
    first, second = push(server, count=2)
    queue.pop(ENTITY, ["cpu", "cpu"], agent(server, queue))
    server.store.operations.clear()
    assert queue.fail([(first, "too late")], Phase.RUN, within) == [False]
    assert queue.warn([(first, "too late")], Phase.RUN, within) == [False]
    assert queue.ack([(first, "run1"), (second, "run2")], within) == [Ack.UNKNOWN] * 2
    assert graphql_requests(server) == []


def test_nothing_is_sent_after_a_refusal_that_took_all_the_time(answering: Answering, retry_clock: Clock) -> None:
    sent: list[object] = []

    def say(body: object) -> Answer:
        sent.append(body)
        retry_clock.sleep(5)
        return Answer(400, {"errors": [{"message": "one operation in a request"}]})

    queue = client(answering(say=say))
    assert queue.ack([("item1", "run1"), ("item2", "run2")], 4) == [Ack.UNKNOWN] * 2
    assert len(sent) == 1


def test_a_refused_key_whose_renewal_takes_all_the_time_is_not_used(server: WandbServer, retry_clock: Clock) -> None:
    class Slow(Keys):
        def renew(self, refused: str) -> str:
            retry_clock.sleep(30)
            return super().renew(refused)

    (item,) = push(server)
    queue = client(server.url, Slow([OLD_KEY, KEY]))
    assert queue.fail([(item, "too late")], Phase.RUN, 20) == [False]
    assert server.store.state(item) == "PENDING"


def test_a_key_that_stays_refused(server: WandbServer) -> None:
    keys = Keys([OLD_KEY])
    reason = refusal(lambda: ask(client(server.url, keys)), Code.WANDB_KEY_REFUSED, KeyRefused)
    assert f"HTTP 401 from {server.url}/graphql: user is not logged in" in reason
    assert keys.renewed == 1
    assert len(server.store.operations) == 2
    assert client(server.url, keys).ack([("one", "run")]) == [Ack.UNKNOWN]


@pytest.mark.parametrize(
    ("status", "as_json"),
    [*((status, False) for status in (200, 400, 401, 403, 429, 500)), *((status, True) for status in (400, 401, 500))],
)
def test_a_key_that_the_server_repeats_is_quoted_whole_or_not_at_all(
    answering: Answering, status: int, as_json: bool
) -> None:
    """Whoever shows the text redacts it, and half a key would not be found."""
    filler, redact = "x" * 240, Redactor()
    redact.add(KEY)
    text = f"{filler} {KEY} Authorization: Basic {BASIC} {KEY}"
    body = {"errors": [{"message": text}]} if as_json else text.encode()
    with pytest.raises(Unavailable) as error:
        ask(client(answering(Answer(status, body))))
    assert (filler in error.value.reason) is (status != 200)
    assert not re.search(f"{KEY[:8]}|{BASIC[:8]}", redact(str(error.value)))


def test_a_request_that_was_refused_once_says_nothing_about_its_fields(answering: Answering) -> None:
    """What is refused for a moment is asked whole again."""
    asked: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        asked.append(body["query"])
        refused = len(asked) <= 3
        return Answer(400, {"errors": [{"message": "not now"}]}) if refused else data(f0={"run": {"state": "running"}})

    queue, run = client(answering(say=say)), RunId(ENTITY, "demo", "one")
    assert queue.runs([run]) == {run: RunView("running", stopped=False)}
    assert (queue._pace.refused, asked[-1]) == (set(), asked[0])


def test_of_two_fields_that_a_server_does_not_know_neither_is_asked_again(answering: Answering) -> None:
    def say(body: dict[str, Any]) -> Answer:
        unknown = [name for name in ("heartbeatAt", "stopped") if name in body["query"]]
        errors = [{"message": f'Cannot query field "{name}" on type "Run".'} for name in unknown]
        return Answer(400, {"errors": errors}) if errors else data(f0={"run": {"state": "running"}})

    queue, run = client(answering(say=say)), RunId(ENTITY, "demo", "one")
    assert queue.runs([run]) == {run: RunView("running", stopped=False)}
    assert queue._pace.refused == {"run.heartbeatAt", "run.stopped"}


def test_a_run_that_is_hidden_is_not_searched_for_again(answering: Answering) -> None:
    """A server that refuses every question about a run costs one search, not one in each pass."""
    asked: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        asked.append(body["query"])
        return Answer(403, {"errors": [{"message": "permission denied"}]})

    queue, run = client(answering(say=say)), RunId(ENTITY, "demo", "hidden")
    assert queue.runs([run]) == {}
    first = len(asked)
    assert queue.runs([run]) == {}
    assert (first > 1, len(asked)) == (True, first + 1)


def test_a_message_with_the_name_of_its_change_does_not_end_all_messages(answering: Answering) -> None:
    def say(body: dict[str, Any]) -> Answer:
        if len(body["variables"]["message_0"]) > 128:
            return Answer(400, {"errors": [{"message": "failRunQueueItem: 'message' is too long"}]})
        return data(f0={"success": True})

    queue = client(answering(say=say))
    assert queue.fail([("one", "x" * 200)], Phase.RUN) == [True]
    assert queue.fail([("two", "short")], Phase.RUN) == [True]
