"""The client of W&B's queues, against the local W&B and against servers that answer badly on purpose."""

from __future__ import annotations

import base64
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import graphql
import pytest
import requests
from google.api_core.retry import retry_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wandb.apis.public.sweeps import _set_sweep_state
from wandb.sdk.launch.api import LaunchApi

from local.standins.wandb import WandbServer
from local.standins.web import Handler, WebServer
from tests.support.fakes import Clock
from tests.support.numbers import examples
from vertex_launch.adapters.graphql import BACKOFF, GraphQL
from vertex_launch.adapters.wandb_queue import LONGEST_MESSAGE, WandbQueue
from vertex_launch.codes import Code
from vertex_launch.errors import KeyRefused, Unavailable
from vertex_launch.log import LOGGER, Redactor
from vertex_launch.model import Ack, AgentView, ItemView, Look, Phase, Queued, RunId, RunView
from vertex_launch.settings.config import Batches, Timeouts

KEY, OLD_KEY = "k" * 40, "o" * 40
BASIC = base64.b64encode(f"api:{KEY}".encode()).decode()
ENTITY = "acme"
HOST = "vertex-launch/test"
OFTEN = BACKOFF.with_delay(initial=0.1, maximum=0.1)
SPEC = {"entity": ENTITY, "project": "demo", "docker": {"docker_image": "image:1"}}
TOO_MANY = {"errors": [{"message": "too many operations"}]}

pytestmark = pytest.mark.usefixtures("retry_clock")


@dataclass
class Keys:
    """A secret: the key in memory, and what is read when that is refused."""

    versions: list[str] = field(default_factory=lambda: [KEY])
    renewed: int = 0

    def get(self) -> str:
        return self.versions[0]

    def renew(self, refused: str) -> str:
        assert refused == self.versions[0]
        self.renewed += 1
        if len(self.versions) > 1:
            self.versions.pop(0)
        return self.versions[0]


@pytest.fixture(autouse=True)
def _plain_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """As before any function was loaded in this process."""
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def serve(clock: Clock) -> Iterator[Callable[..., WandbServer]]:
    servers: list[WandbServer] = []

    def start(**options: Any) -> WandbServer:
        server = WandbServer(
            clock=clock,
            api_keys={KEY: "ada"},
            teams={ENTITY: ["ada"], "empty": ["ada"]},
            default_entities={"ada": ENTITY},
            **options,
        ).start()
        servers.append(server)
        server.store.create_queue(ENTITY, "cpu")
        server.store.create_queue(ENTITY, "gpu")
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(serve: Callable[..., WandbServer]) -> WandbServer:
    return serve()


def client(url: str, keys: Keys | None = None, *, read: float = 10.0, **batches: int) -> WandbQueue:
    timeouts, clock = Timeouts(connect=1, read=read), retry_base.time.monotonic
    return WandbQueue(url, keys or Keys(), timeouts, Batches(**batches), version="1.2.3", backoff=OFTEN, clock=clock)


@pytest.fixture
def queue(server: WandbServer) -> WandbQueue:
    return client(server.url)


def refusal(act: Callable[[], Any], code: Code, kind: type[Unavailable] = Unavailable) -> str:
    """Return the reason of the error that an act raises."""
    with pytest.raises(kind) as error:
        act()
    assert error.value.message.code is code
    return error.value.reason


def look(queue: WandbQueue, **changes: Any) -> Look:
    nothing: dict[str, Any] = {
        "agent": "",
        "items": {},
        "runs": (),
        "queues": ("cpu", "gpu"),
        "peek": 5,
        "viewer": False,
    }
    return queue.look(ENTITY, **nothing | changes)


def start_run(server: WandbServer, name: str, state: str = "running") -> RunId:
    server.store.project(ENTITY, "demo")
    server.store.runs.upsert(ENTITY, "demo", name, username="ada", state=state)
    return RunId(ENTITY, "demo", name)


def push(server: WandbServer, queue: str = "cpu", count: int = 1) -> list[str]:
    return [server.store.push(ENTITY, queue, SPEC) for _ in range(count)]


def agent(server: WandbServer, queue: WandbQueue) -> str:
    return queue.create_agent(ENTITY, [one.id for one in server.store.queues.values()], HOST, {"max_jobs": 3})


def graphql_requests(server: WandbServer) -> list[tuple[str, ...]]:
    return [request.operations for request in server.store.operations]


@dataclass
class Answer:
    status: int = 200
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)


Say = Callable[[dict[str, Any]], Answer | None]


class _Oracle(Handler):
    say: Say

    def serve(self) -> None:
        answer = type(self).say(json.loads(self.body()))
        if answer is None:
            self.hang_up()
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.answer(answer.status, body, answer.headers)


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Serves what it is given: answers one after another, the last one for ever, or what a function says; None hangs up."""
    servers: list[WebServer] = []

    def start(*answers: Answer | None, say: Say | None = None) -> str:
        left = list(answers)

        def next_answer(_: dict[str, Any]) -> Answer | None:
            return left.pop(0) if len(left) > 1 else left[0]

        servers.append(WebServer(type("Oracle", (_Oracle,), {"say": staticmethod(say or next_answer)})))
        servers[-1].start()
        return servers[-1].url

    yield start
    for one in servers:
        one.stop()


def data(**fields: Any) -> Answer:
    return Answer(body={"data": fields})


PROJECT = {"runQueues": [{"id": "Q1", "name": "cpu"}], "launchAgents": []}


# Looking


def test_a_look_shows_queues_agents_items_and_what_waits_in_one_request(server: WandbServer, queue: WandbQueue) -> None:
    one, two, three = push(server, count=3)
    there = push(server, "gpu", count=5)
    mine = agent(server, queue)
    server.store.launch.pop(server.store.launch.queue(ENTITY, "model-registry", "cpu"), mine)
    queue.ack([(one, "run1")])
    server.store.operations.clear()
    found = look(
        queue, items={one: "cpu", two: "cpu", there[0]: "gpu", "Unknown": "cpu", "Nowhere": "tpu"}, viewer=True
    )
    ids = {one.name: one.id for one in server.store.queues.values()}
    assert found == Look(
        viewer_entity=ENTITY,
        agents=(AgentView(mine, HOST, stop_polling=False, queues=tuple(ids.values())),),
        queues=ids,
        items={one: ItemView("CLAIMED", "run1"), two: ItemView("PENDING", ""), there[0]: ItemView("PENDING", "")},
        queued={"cpu": Queued((two, three), complete=True), "gpu": Queued(tuple(there), complete=False)},
    )
    assert graphql_requests(server) == [("project", "viewer")]


def test_a_known_agent_is_looked_up_by_its_id(server: WandbServer, queue: WandbQueue) -> None:
    mine = agent(server, queue)
    server.store.agents[mine].stop_polling = True
    server.store.operations.clear()
    found = look(queue, agent=mine)
    assert found.agents == ()
    assert found.agent is not None
    assert (found.agent.id, found.agent.stop_polling) == (mine, True)
    assert graphql_requests(server) == [("project", "launchAgent")]


def test_an_agent_that_w_and_b_has_forgotten_is_none(server: WandbServer, queue: WandbQueue) -> None:
    mine = agent(server, queue)
    del server.store.agents[mine]
    assert look(queue, agent=mine).agent is None


@pytest.mark.parametrize("listed", [True, False])
def test_a_null_with_an_error_beside_it_is_not_absence(answering: Callable[..., str], listed: bool) -> None:
    """Of an agent: then the list of all agents decides."""
    agents = [{"id": "A1", "hostname": HOST, "stopPolling": False, "runQueues": ["Q1"]}] if listed else []

    def say(body: dict[str, Any]) -> Answer:
        if "launchAgent(" in body["query"]:
            errors = [{"message": "internal error", "path": ["f1"]}]
            return Answer(body={"data": {"f0": PROJECT, "f1": None}, "errors": errors})
        return data(f0={"launchAgents": agents})

    found = look(client(answering(say=say)), agent="A1").agent
    assert (found is not None) == listed


def test_an_agent_about_which_w_and_b_cannot_answer_is_an_error(answering: Callable[..., str]) -> None:
    def say(body: dict[str, Any]) -> Answer:
        project = PROJECT if "launchAgent(" in body["query"] else {"launchAgents": None}
        errors = [{"message": "internal error", "path": ["f1"]}]
        return Answer(body={"data": {"f0": project, "f1": None}, "errors": errors})

    reason = refusal(lambda: look(client(answering(say=say)), agent="A1"), Code.WANDB_REFUSED)
    assert "A1: internal error" in reason


def test_an_error_that_names_no_field_may_be_about_any_that_is_null(answering: Callable[..., str]) -> None:
    def say(body: dict[str, Any]) -> Answer:
        project = PROJECT if "launchAgent(" in body["query"] else {"launchAgents": None}
        return Answer(body={"data": {"f0": project, "f1": None}, "errors": [{"message": "slow down"}]})

    queue = client(answering(say=say))
    assert "A1: slow down" in refusal(lambda: look(queue, agent="A1"), Code.WANDB_REFUSED)
    assert queue.pop(ENTITY, ["cpu", "gpu"], "A1")[1].error == "slow down"


def test_queues_that_the_key_may_not_see(answering: Callable[..., str]) -> None:
    errors = [{"message": "permission denied", "path": ["f0"]}]
    url = answering(Answer(403, {"data": {"f0": None}, "errors": errors}))
    assert "entity acme: permission denied" in refusal(lambda: look(client(url)), Code.WANDB_ENTITY)


def test_a_null_agent_without_an_error_is_gone(answering: Callable[..., str]) -> None:
    assert look(client(answering(data(f0=PROJECT, f1=None))), agent="A1").agent is None


def test_an_item_that_cannot_be_looked_up_spoils_no_other(answering: Callable[..., str]) -> None:
    project = {**PROJECT, "q0": {"id": "Q1", "i0": None, "i1": {"id": "b", "state": "FAILED", "associatedRunId": None}}}
    errors = [{"message": "internal error", "path": ["f0", "q0", "i0"]}]
    url = answering(Answer(body={"data": {"f0": project}, "errors": errors}))
    assert look(client(url), items={"a": "cpu", "b": "cpu"}, peek=0).items == {"b": ItemView("FAILED", "")}


def test_what_a_queue_holds_is_not_complete_when_w_and_b_did_not_say(answering: Callable[..., str]) -> None:
    errors = [{"message": "internal error", "path": ["f0", "q0"]}]
    url = answering(Answer(body={"data": {"f0": {**PROJECT, "q0": None, "q1": None}}, "errors": errors}))
    assert look(client(url)).queued["cpu"] == Queued((), complete=False)


def test_more_items_than_fit_into_a_request(server: WandbServer) -> None:
    queue = client(server.url, lookups=3)
    ids = push(server, count=4) + push(server, "gpu", count=4)
    asked = {item: "cpu" if number < 4 else "gpu" for number, item in enumerate(ids)}
    assert set(look(queue, items=asked).items) == set(ids)
    assert len(server.store.operations) == 3
    assert set(queue.items(ENTITY, asked)) == set(ids)
    assert len(server.store.operations) == 6


def test_a_look_shows_runs_in_the_same_request(server: WandbServer, queue: WandbQueue) -> None:
    running, pending = start_run(server, "running"), start_run(server, "pending", "pending")
    server.store.runs.stop(server.store.runs.all()[0])
    absent, nowhere = RunId(ENTITY, "demo", "absent"), RunId(ENTITY, "nowhere", "absent")
    mine = agent(server, queue)
    server.store.operations.clear()
    found = look(queue, agent=mine, runs=[running, absent, pending, nowhere, running], viewer=True)
    assert found.runs == {
        running: RunView("running", stopped=True),
        pending: RunView("pending", stopped=False),
        absent: None,
        nowhere: None,
    }
    assert (found.agent and found.agent.id, found.viewer_entity) == (mine, ENTITY)
    assert graphql_requests(server) == [("project", "launchAgent", *["project"] * 4, "viewer")]


def test_more_runs_than_fit_into_a_request(server: WandbServer) -> None:
    queue = client(server.url, lookups=3)
    runs = [start_run(server, f"run{number}") for number in range(8)]
    found = look(queue, runs=runs, viewer=True)
    assert found.runs == dict.fromkeys(runs, RunView("running", stopped=False))
    assert found.viewer_entity == ENTITY
    assert [len(operations) for operations in graphql_requests(server)] == [5, 3, 2]


NO_FIELD: dict[str, Any] = {}
NULL_RUN, NULL_PROJECT, NULL_STATE = {"run": None}, None, {"run": {"state": None, "stopped": None}}


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        (NULL_RUN, ["f1", "run"]),
        (NULL_RUN, ["f1"]),
        (NULL_RUN, None),
        (NULL_PROJECT, ["f1"]),
        (NULL_PROJECT, None),
        (NULL_STATE, ["f1", "run", "state"]),
        (NO_FIELD, None),
    ],
)
def test_a_run_that_cannot_be_looked_up_is_not_absent_in_a_look(
    answering: Callable[..., str], answer: Any, path: list[str] | None
) -> None:
    error = {"message": "no access"} | ({"path": path} if path else {})
    fields = {"f0": PROJECT, "f1": answer, "f2": {"run": {"state": "running", "stopped": False}}}
    if answer is NO_FIELD:
        del fields["f1"]
    theirs, mine = RunId("others", "demo", "theirs"), RunId(ENTITY, "demo", "mine")
    queue = client(answering(Answer(body={"data": fields, "errors": [error]})))
    assert look(queue, runs=[theirs, mine]).runs == {mine: RunView("running", stopped=False)}


@pytest.mark.parametrize("entity", ["unknown", "empty"])
def test_an_entity_without_queues_is_named(queue: WandbQueue, entity: str) -> None:
    def ask() -> Look:
        return queue.look(entity, agent="", items={}, runs=(), queues=("cpu",), peek=5, viewer=False)

    assert f"entity {entity}" in refusal(ask, Code.WANDB_ENTITY)


@pytest.mark.parametrize(
    ("project", "code"), [(None, Code.WANDB_ENTITY), ({"runQueues": None, "launchAgents": []}, Code.WANDB_REFUSED)]
)
def test_queues_that_w_and_b_cannot_show_are_not_absent(
    answering: Callable[..., str], project: Any, code: Code
) -> None:
    errors = [{"message": "database is locked", "path": ["f0", "runQueues"]}]
    url = answering(Answer(body={"data": {"f0": project}, "errors": errors}))
    assert "entity acme: database is locked" in refusal(lambda: look(client(url)), code)


@pytest.mark.parametrize("batch", [50, 1])
def test_runs_are_looked_up_together(server: WandbServer, clock: Clock, batch: int) -> None:
    then = float(int(clock.now))
    running, stopped, pending = (start_run(server, name, name) for name in ("running", "stopped", "pending"))
    server.store.runs.stop(server.store.runs.all()[1])
    absent = RunId(ENTITY, "demo", "absent")
    queue = client(server.url, lookups=batch)
    server.store.operations.clear()
    assert queue.runs([running, absent, stopped, pending]) == {
        running: RunView("running", stopped=False, heartbeat=then),
        absent: None,
        stopped: RunView("stopped", stopped=True, heartbeat=then),
        pending: RunView("pending", stopped=False, heartbeat=None),
    }
    assert len(server.store.operations) == (1 if batch == 50 else 4)


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2024-05-01T12:34:56Z", 1714566896.0),
        ("2024-05-01t12:34:56z", 1714566896.0),
        ("2024-05-01T12:34:56", 1714566896.0),
        ("2024-05-01T12:34:56.25", 1714566896.25),
        ("2024-05-01T12:34:56.250000999Z", 1714566896.25),
        ("2024-05-01T14:34:56+02:00", 1714566896.0),
        *(
            (nothing, None)
            for nothing in (None, "", "soon", 1714566896, "2024-13-01T00:00:00Z", "0001-01-01T00:00:00Z")
        ),
        (["2024-05-01T12:34:56Z"], None),
    ],
)
@pytest.mark.usefixtures("far_from_utc")
def test_heartbeats(answering: Callable[..., str], text: Any, seconds: float | None) -> None:
    run = RunId(ENTITY, "demo", "mine")
    answer = {"run": {"state": "crashed", "stopped": False, "heartbeatAt": text}}
    assert client(answering(data(f0=answer))).runs([run]) == {run: RunView("crashed", False, seconds)}


@pytest.mark.parametrize("most", [1, 50])
def test_a_server_that_does_not_show_heartbeats_is_asked_without_them_from_then_on(
    answering: Callable[..., str], most: int
) -> None:
    """Whether or not it takes several questions in one request."""
    asked: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        asked.append(body["query"])
        count = len(operations(body["query"]))
        if count > most:
            return Answer(400, TOO_MANY)
        if "heartbeatAt" in body["query"]:
            return Answer(400, {"errors": [{"message": 'Cannot query field "heartbeatAt" on type "Run".'}]})
        return data(**{f"f{number}": {"run": {"state": "running", "stopped": True}} for number in range(count)})

    queue = client(answering(say=say))
    runs = [RunId(ENTITY, "demo", name) for name in ("one", "two")]
    for _ in range(2):
        assert queue.runs(runs) == dict.fromkeys(runs, RunView("running", stopped=True))
    refused = [True, False] if most == 50 else [True, False, True, False, False]
    again = [False] if most == 50 else [False, False]
    assert ["heartbeatAt" in text for text in asked] == refused + again


def test_a_run_about_which_the_server_refuses_every_question_spoils_no_other(answering: Callable[..., str]) -> None:
    def say(body: dict[str, Any]) -> Answer:
        if "others" in body["variables"].values():
            return Answer(403, {"errors": [{"message": "permission denied"}]})
        if "runQueues" in body["query"]:
            return data(f0=PROJECT)
        return data(f0={"run": {"state": "running", "stopped": False}})

    theirs, mine = RunId("others", "demo", "theirs"), RunId(ENTITY, "demo", "mine")
    seen = {mine: RunView("running", stopped=False)}
    assert client(answering(say=say)).runs([theirs, mine]) == seen
    assert look(client(answering(say=say)), runs=[theirs, mine]).runs == seen


def test_a_run_that_cannot_be_looked_up_is_not_absent(answering: Callable[..., str]) -> None:
    errors = [{"message": "no access", "path": ["f1"]}]
    url = answering(Answer(body={"data": {"f0": {"run": None}, "f1": None}, "errors": errors}))
    mine, theirs = RunId(ENTITY, "demo", "mine"), RunId("others", "demo", "theirs")
    assert client(url).runs([mine, theirs]) == {mine: None}


def test_the_default_entity(queue: WandbQueue, answering: Callable[..., str]) -> None:
    assert queue.default_entity() == ENTITY
    refusal(client(answering(data(f0={"entity": None}))).default_entity, Code.WANDB_ENTITY)


def test_resources(server: WandbServer, queue: WandbQueue) -> None:
    server.store.create_queue(ENTITY, "k8s", resource="kubernetes")
    server.store.launch.create_queue(ENTITY, "bare")
    names = ("cpu", "k8s", "bare", "missing")
    expected = {"cpu": "gcp-vertex", "k8s": "kubernetes", "bare": ""}
    assert queue.resources(ENTITY, names) == expected
    assert queue.resources(ENTITY, ["bare"]) == {"bare": ""}


def test_resources_of_a_server_that_does_not_know_the_question(answering: Callable[..., str]) -> None:
    unknown = {"errors": [{"message": 'Cannot query field "defaultResourceConfigID" on type "RunQueue".'}]}
    assert client(answering(Answer(400, unknown))).resources(ENTITY, ["cpu"]) == {"cpu": ""}
    assert client(answering(Answer(200, unknown))).resources(ENTITY, ["cpu"]) == {"cpu": ""}


def test_resources_are_not_guessed_while_w_and_b_is_down(server: WandbServer) -> None:
    server.faults.fail("project", 503, times=None)
    refusal(lambda: client(server.url).resources(ENTITY, ["cpu"]), Code.WANDB_UNAVAILABLE)


# Changing


def test_an_agent_is_made_with_its_host_and_queues(server: WandbServer, queue: WandbQueue) -> None:
    made = server.store.agents[agent(server, queue)]
    assert (made.hostname, made.run_queues) == (HOST, list(server.store.queues))
    assert (made.agent_config, made.version) == ({"max_jobs": 3}, "vertex-launch@1.2.3")
    queue.set_status(made.id, "RUNNING")
    assert made.agent_status == "RUNNING"


def test_an_agent_that_cannot_be_made_is_an_error_in_w_and_bs_words(server: WandbServer, queue: WandbQueue) -> None:
    reason = refusal(lambda: queue.create_agent(ENTITY, ["nonsense"], HOST, {}), Code.WANDB_REFUSED)
    assert 'entity acme: run queue "nonsense" not found' in reason


def test_pops_come_in_order_with_the_agents_status(server: WandbServer, queue: WandbQueue) -> None:
    first, second = push(server, count=2)
    (third,) = push(server, "gpu")
    mine = agent(server, queue)
    server.store.operations.clear()
    popped = queue.pop(ENTITY, ["cpu", "gpu", "cpu", "cpu", "gpu"], mine, "RUNNING")
    assert [answer.item and answer.item.id for answer in popped] == [first, third, second, None, None]
    assert [answer.queue for answer in popped] == ["cpu", "gpu", "cpu", "cpu", "gpu"]
    assert not any(answer.error for answer in popped)
    assert popped[0].item is not None
    assert popped[0].item.spec["docker"] == SPEC["docker"]
    assert server.store.items[first].launch_agent_id == mine
    assert server.store.agents[mine].agent_status == "RUNNING"
    assert graphql_requests(server) == [("updateLaunchAgent", *["popFromRunQueue"] * 5)]


def test_an_unknown_queue_spoils_no_other(server: WandbServer, queue: WandbQueue) -> None:
    (item,) = push(server)
    nothing, found = queue.pop(ENTITY, ["missing", "cpu"], agent(server, queue))
    assert (nothing.item, nothing.error) == (None, 'run queue "missing" of acme/model-registry not found')
    assert found.item is not None
    assert found.item.id == item


@pytest.mark.parametrize("status", ["alone", "always", "never"])
def test_one_fields_error_spoils_no_other_whatever_the_status(
    serve: Callable[..., WandbServer], status: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the failed one is a fault of the server, for which the whole answer has status 500."""
    server = serve(error_status=status)
    queue = client(server.url)
    first, second = push(server, count=2)
    mine = agent(server, queue)
    server.faults.refuse("updateLaunchAgent", "internal error", status=500)
    server.faults.refuse("popFromRunQueue", "database is locked", status=500)
    with caplog.at_level(logging.WARNING):
        failed, popped = queue.pop(ENTITY, ["cpu", "cpu"], mine, "RUNNING")
    assert failed.error == "database is locked"
    assert popped.item is not None
    assert popped.item.id == first
    assert "internal error [VL-WANDB-AGENT-STATUS]" in caplog.text
    server.faults.refuse("ackRunQueueItem", "database is locked", status=500)
    assert queue.ack([(first, "run1"), (second, "run2")]) == [Ack.REFUSED, Ack.ACCEPTED]
    assert server.store.state(first) == "LEASED"


def test_a_pop_whose_answer_is_lost_is_not_repeated_and_loses_nothing(
    server: WandbServer, queue: WandbQueue, clock: Clock
) -> None:
    (item,) = push(server)
    mine = agent(server, queue)
    server.faults.lose("popFromRunQueue")
    reason = refusal(lambda: queue.pop(ENTITY, ["cpu"], mine), Code.WANDB_UNAVAILABLE)
    assert f"no answer from {server.url}/graphql" in reason
    assert server.store.asked()["popFromRunQueue"] == 1
    assert server.store.state(item) == "LEASED"
    assert queue.pop(ENTITY, ["cpu"], mine)[0].item is None
    clock.now += 61
    (back,) = queue.pop(ENTITY, ["cpu"], mine)
    assert back.item is not None
    assert back.item.id == item


def test_the_answers_that_did_arrive_are_kept(server: WandbServer) -> None:
    queue = client(server.url, pops=2)
    ids = push(server, count=4)
    mine = agent(server, queue)
    server.faults.lose("popFromRunQueue")
    popped = queue.pop(ENTITY, ["cpu"] * 4, mine)
    assert [answer.item and answer.item.id for answer in popped] == [None, None, ids[2], ids[3]]
    assert "no answer from" in popped[0].error


@pytest.mark.parametrize("status", [429, 503])
def test_a_pop_that_was_not_done_is_repeated(server: WandbServer, queue: WandbQueue, status: int) -> None:
    (item,) = push(server)
    mine = agent(server, queue)
    server.faults.fail("popFromRunQueue", status, times=3)
    (popped,) = queue.pop(ENTITY, ["cpu"], mine)
    assert popped.item is not None
    assert popped.item.id == item


@pytest.mark.parametrize("status", [500, 502, 504])
def test_a_pop_with_an_unknown_outcome_is_not_repeated(server: WandbServer, queue: WandbQueue, status: int) -> None:
    mine = agent(server, queue)
    server.faults.fail("popFromRunQueue", status, message="upstream failed")
    reason = refusal(lambda: queue.pop(ENTITY, ["cpu"], mine), Code.WANDB_UNAVAILABLE)
    assert f"HTTP {status} from {server.url}/graphql: upstream failed" in reason
    assert server.store.asked()["popFromRunQueue"] == 1


@pytest.mark.parametrize("in_errors", [True, False])
def test_acks(serve: Callable[..., WandbServer], in_errors: bool) -> None:
    server = serve(acks_refused_in_errors=in_errors)
    queue = client(server.url)
    one, two = push(server, count=2)
    queue.pop(ENTITY, ["cpu", "cpu"], agent(server, queue))
    queue.ack([(one, "theirs")])
    assert queue.ack([(one, "ours"), (two, "ours"), ("Unknown", "ours")]) == [Ack.REFUSED, Ack.ACCEPTED, Ack.REFUSED]
    assert server.store.items[one].associated_run_id == "theirs"
    assert server.store.items[two].associated_run_id == "ours"


def test_an_ack_is_repeated_after_a_lost_answer_and_then_refused(server: WandbServer, queue: WandbQueue) -> None:
    """Its item shows that the ack was ours; so a refusal alone is no evidence."""
    (item,) = push(server)
    queue.pop(ENTITY, ["cpu"], agent(server, queue))
    server.faults.lose("ackRunQueueItem")
    assert queue.ack([(item, "run1")]) == [Ack.REFUSED]
    assert queue.items(ENTITY, {item: "cpu"}) == {item: ItemView("CLAIMED", "run1")}


def test_an_ack_without_any_answer_is_unknown(server: WandbServer) -> None:
    queue = client(server.url)
    server.faults.lose("ackRunQueueItem", times=None)
    assert queue.ack([("one", "r"), ("two", "r")]) == [Ack.UNKNOWN, Ack.UNKNOWN]


@pytest.mark.parametrize("phase", Phase)
def test_failures_and_warnings(
    server: WandbServer, queue: WandbQueue, caplog: pytest.LogCaptureFixture, phase: Phase
) -> None:
    one, two = push(server, count=2)
    text = 'quotes " and \\ and $dollars and\nlines and {braces} and 🚀'
    assert queue.fail([(one, text), ("Unknown", "x")], phase) == [True, False]
    assert queue.warn([(two, text), ("Unknown", "x")], phase) == [True, False]
    error, (warning,) = server.store.items[one].error, server.store.items[two].warnings
    assert error is not None
    assert (error.message, error.stage) == (warning.message, warning.stage) == (text, phase.value)
    assert 'item Unknown: run queue item "Unknown" not found [VL-WANDB-ITEM-UPDATE]' in caplog.text
    assert (queue.fail([], phase), queue.warn([], phase), queue.ack([])) == ([], [], [])


def test_a_claimed_item_is_warned_about_and_failed(server: WandbServer, queue: WandbQueue) -> None:
    (item,) = push(server)
    queue.pop(ENTITY, ["cpu"], agent(server, queue))
    assert queue.ack([(item, "run1")]) == [Ack.ACCEPTED]
    assert queue.warn([(item, "no quota")], Phase.AGENT) == [True]
    assert queue.warn([(item, "attempt 2 of 5")], Phase.RUN) == [True]
    assert queue.fail([(item, "out of memory")], Phase.RUN) == [True]
    assert queue.items(ENTITY, {item: "cpu"}) == {item: ItemView("FAILED", "run1")}
    stored = server.store.items[item]
    assert [(one.message, one.stage) for one in stored.warnings] == [("no quota", "agent"), ("attempt 2 of 5", "run")]
    assert stored.error is not None
    assert (stored.error.message, stored.error.stage) == ("out of memory", "run")


@pytest.mark.parametrize("longer", [0, 1, 7_000, 10_000_000])
def test_a_message_that_is_too_long_is_cut_in_its_middle(server: WandbServer, queue: WandbQueue, longer: int) -> None:
    """Its beginning says what happened, its end is that of the job's log."""
    one, two = push(server, count=2)
    text = "Vertex AI says: " + "🚀" * (LONGEST_MESSAGE + longer - 27) + "MemoryError"
    assert len(text) == LONGEST_MESSAGE + longer
    queue.fail([(one, text)], Phase.RUN)
    queue.warn([(two, text)], Phase.RUN)
    error, (warning,) = server.store.items[one].error, server.store.items[two].warnings
    assert error is not None
    assert error.message == warning.message
    if not longer:
        assert error.message == text
        return
    assert LONGEST_MESSAGE - 10 < len(error.message) <= LONGEST_MESSAGE
    found = re.fullmatch(r"(.*)\n\[… (\d+) characters are left out here …\]\n(.*)", error.message)
    assert found is not None
    assert text.startswith(found[1])
    assert text.endswith(found[3])
    assert len(found[1]) + int(found[2]) + len(found[3]) == len(text)


# Sweeps


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "PENDING", "FINISHED", "CANCELED", "CRASHED"])
def test_a_sweep_is_cancelled_unless_it_has_ended(server: WandbServer, queue: WandbQueue, state: str) -> None:
    server.store.set_sweep(ENTITY, "demo", "sw1", state)
    server.store.set_sweep(ENTITY, "other", "sw1", "RUNNING")
    live = state in ("RUNNING", "PAUSED", "PENDING")
    server.store.operations.clear()
    assert queue.cancel_sweep(ENTITY, "demo", "sw1") is live
    assert [sweep.state for sweep in server.store.sweeps.values()] == ["CANCELED" if live else state, "RUNNING"]
    assert graphql_requests(server) == ([("project",), ("upsertSweep",)] if live else [("project",)])
    assert not queue.cancel_sweep(ENTITY, "demo", "sw1")


def test_a_sweep_that_does_not_exist_is_not_cancelled(server: WandbServer, queue: WandbQueue) -> None:
    server.store.project(ENTITY, "demo")
    assert not queue.cancel_sweep(ENTITY, "demo", "sw1")
    assert not queue.cancel_sweep(ENTITY, "nowhere", "sw1")


def test_a_sweep_is_cancelled_although_answers_are_lost(server: WandbServer, queue: WandbQueue) -> None:
    server.store.set_sweep(ENTITY, "demo", "sw1", "RUNNING")
    server.faults.lose("project", times=2)
    server.faults.lose("upsertSweep", times=2)
    assert queue.cancel_sweep(ENTITY, "demo", "sw1")


@pytest.mark.parametrize("operation", ["project", "upsertSweep"])
def test_a_sweep_about_which_w_and_b_cannot_tell(server: WandbServer, operation: str) -> None:
    server.store.set_sweep(ENTITY, "demo", "sw1", "RUNNING")
    queue = client(server.url)
    server.faults.fail(operation, 503, times=None)
    reason = refusal(lambda: queue.cancel_sweep(ENTITY, "demo", "sw1"), Code.WANDB_UNAVAILABLE)
    assert "HTTP 503" in reason
    assert [sweep.state for sweep in server.store.sweeps.values()] == ["RUNNING"]


def test_a_sweep_that_w_and_b_does_not_show_or_change(answering: Callable[..., str]) -> None:
    errors = [{"message": "no access", "path": ["f0", "sweep"]}]
    found = data(f0={"sweep": {"id": "S1", "state": "Running"}})
    refused, hidden = (Answer(body={"data": {"f0": value}, "errors": errors}) for value in (None, {"sweep": None}))
    for answers in ([refused], [hidden], [found, refused], [found, data(f0=None)]):
        queue = client(answering(*answers))
        reason = refusal(lambda queue=queue: queue.cancel_sweep(ENTITY, "demo", "sw1"), Code.WANDB_REFUSED)  # type: ignore[misc]
        assert "acme/demo/sw1: " in reason
        assert ("no access" in reason) == (answers[-1] in (refused, hidden))


@pytest.mark.parametrize("fault", [429, 500, 502, 503, 504, "lose"])
def test_what_may_be_repeated_is_repeated(server: WandbServer, queue: WandbQueue, fault: int | str) -> None:
    (item,) = push(server)

    def burst(operation: str) -> None:
        if isinstance(fault, int):
            server.faults.fail(operation, fault, times=3)
        else:
            server.faults.lose(operation, times=3)

    for operation in ("project", "viewer", "failRunQueueItem", "updateRunQueueItemWarning"):
        burst(operation)
    assert look(queue, viewer=True, items={item: "cpu"}).items
    assert queue.warn([(item, "w")], Phase.RUN) == [True]
    assert queue.fail([(item, "f")], Phase.RUN) == [True]


# Batches


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_refused_batch_is_sent_one_by_one_and_that_is_remembered(
    serve: Callable[..., WandbServer], most: int
) -> None:
    server = serve(max_operations_per_request=most)
    queue = client(server.url)
    ids = push(server, count=4)
    mine = agent(server, queue)
    popped = queue.pop(ENTITY, ["cpu"] * 5, mine, "RUNNING")
    assert [answer.item and answer.item.id for answer in popped] == [*ids, None]
    assert len(max(graphql_requests(server), key=len)) == 6
    server.store.operations.clear()
    assert queue.ack([(item, "run") for item in ids]) == [Ack.ACCEPTED] * 4
    assert queue.runs([RunId(ENTITY, "demo", "one"), RunId(ENTITY, "demo", "two")])
    assert graphql_requests(server) == [("ackRunQueueItem",)] * 4 + [("project",)] * 2


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_look_at_a_server_that_takes_one_question_a_request(
    serve: Callable[..., WandbServer], batch_first: bool
) -> None:
    server = serve(max_operations_per_request=1)
    queue = client(server.url)
    one, two = push(server, count=2)
    run, absent = start_run(server, "run1"), RunId(ENTITY, "demo", "absent")
    mine = agent(server, queue)
    if batch_first:
        queue.warn([(one, "a"), (two, "b")], Phase.AGENT)
    for _ in range(2):
        server.store.operations.clear()
        found = look(queue, agent=mine, items={one: "cpu", two: "cpu"}, runs=[run, absent], viewer=True)
        assert found.agent is not None
        assert (found.agent.id, found.viewer_entity) == (mine, ENTITY)
        assert set(found.items) == {one, two}
        assert found.runs == {run: RunView("running", stopped=False), absent: None}
        assert found.queued["cpu"] == Queued((one, two), complete=True)
    assert graphql_requests(server) == [("project",), ("launchAgent",), ("viewer",), *[("project",)] * 4]


def test_a_server_that_does_not_show_what_a_queue_holds_is_asked_without_it_from_then_on(
    answering: Callable[..., str],
) -> None:
    asked: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        asked.append(body["query"])
        if "runQueueItems" in body["query"]:
            return Answer(400, {"errors": [{"message": 'Cannot query field "runQueueItems" on type "RunQueue".'}]})
        return data(f0=PROJECT, f1={"run": None}, f2={"entity": ENTITY})

    queue, run = client(answering(say=say)), RunId(ENTITY, "demo", "run1")
    for _ in range(2):
        found = look(queue, runs=[run], viewer=True)
        assert (found.queues, found.queued, found.viewer_entity) == ({"cpu": "Q1"}, {}, ENTITY)
        assert found.runs == {run: None}
    assert ["runQueueItems" in text for text in asked] == [True, False, False]


def test_one_operation_that_the_server_does_not_know_ends_no_batches(answering: Callable[..., str]) -> None:
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
    assert sizes == [2, 1, 1, 2]


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_proxy_may_refuse_a_batch_too(answering: Callable[..., str], status: int) -> None:
    def say(body: dict[str, Any]) -> Answer:
        return data(f0={"success": True}) if body["query"].count("input:") == 1 else Answer(status, b"<h1>Too big</h1>")

    assert client(answering(say=say)).fail([("one", "a"), ("two", "b")], Phase.AGENT) == [True, True]


def test_requests_one_by_one_end_when_they_take_too_long(answering: Callable[..., str], retry_clock: Clock) -> None:
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
    mine, ids = agent(server, queue), push(server, count=5)
    server.store.operations.clear()
    queue.pop(ENTITY, ["cpu"] * 5, mine)
    queue.ack([(item, "run") for item in ids])
    assert [len(operations) for operations in graphql_requests(server)] == [3, 2, 2, 2, 1]


# Answers that are not answers


def test_data_null_without_a_path_refuses_the_request(answering: Callable[..., str]) -> None:
    url = answering(Answer(body={"data": None, "errors": [{"message": "something is rotten"}]}))
    assert "something is rotten" in refusal(lambda: look(client(url)), Code.WANDB_REFUSED)
    assert "something is rotten" in client(url).pop(ENTITY, ["cpu"], "A1")[0].error


def test_data_null_with_a_path_blames_that_field_and_leaves_the_others_open(answering: Callable[..., str]) -> None:
    """A field that may not be null takes all others with it; their outcome is unknown."""
    answer = {"data": None, "errors": [{"message": "already claimed", "path": ["f1", "success"]}]}
    queue = client(answering(Answer(body=answer)))
    assert queue.ack([("a", "r"), ("b", "r")]) == [Ack.UNKNOWN, Ack.REFUSED]


NULLS = {"errors": [{"message": "permission denied"}], "data": {"f0": None}}
PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><h1>nginx</h1></body></html>"
MOVED = {"Location": "https://login.example"}
REFUSED, ADDRESS, DOWN = Code.WANDB_REFUSED, Code.WANDB_ADDRESS, Code.WANDB_UNAVAILABLE


@pytest.mark.parametrize(
    ("answer", "quoted", "code"),
    [
        (Answer(200, PAGE), "HTTP 200 from {url}: 502 Bad Gateway nginx", ADDRESS),
        (Answer(200, b"[1]"), "HTTP 200 from {url}: [1]", ADDRESS),
        (Answer(200, b"{}"), "HTTP 200 from {url}: {{}}", ADDRESS),
        (Answer(302, b"", MOVED), "{url} redirects to https://login.example", ADDRESS),
        (Answer(404, b"404 page not found\n"), "HTTP 404 from {url}: 404 page not found", ADDRESS),
        (Answer(404, b"{}"), "HTTP 404 from {url}: {{}}", ADDRESS),
        (Answer(403, {"error": "no access"}), 'HTTP 403 from {url}: {{"error": "no access"}}', ADDRESS),
        (Answer(413, b""), "HTTP 413 from {url}: (nothing more)", ADDRESS),
        (Answer(404, {"errors": [{"message": "not found"}]}), "HTTP 404 from {url}: not found", REFUSED),
        (Answer(404, {"errors": [{"message": "x"}], "data": {}}), "HTTP 404 from {url}: x", REFUSED),
        (Answer(403, {"errors": [{"message": "no right"}]}), "HTTP 403 from {url}: no right", REFUSED),
        (Answer(403, NULLS), "HTTP 403 from {url}: permission denied", REFUSED),
        (Answer(400, {"errors": [{"message": "no"}]}), "HTTP 400 from {url}: no", REFUSED),
        (Answer(405, {"errors": [{"message": "no"}], "data": None}), "HTTP 405 from {url}: no", REFUSED),
        (Answer(502, PAGE), "HTTP 502 from {url}: 502 Bad Gateway nginx", DOWN),
        (Answer(500, {"errors": [{"message": "panic: oh no"}]}), "HTTP 500 from {url}: panic: oh no", DOWN),
        (Answer(429, {"errors": [{"message": "slow down"}]}), "HTTP 429 from {url}: slow down", DOWN),
        (None, "no answer from {url}: ", DOWN),
    ],
)
def test_an_answer_that_is_not_an_answer_is_quoted_with_its_address(
    answering: Callable[..., str], answer: Answer | None, quoted: str, code: Code
) -> None:
    queue = client(url := answering(answer))
    quoted = quoted.format(url=f"{url}/graphql")
    assert quoted in refusal(lambda: look(queue), code)
    try:
        reason = queue.pop(ENTITY, ["cpu"], "A1")[0].error
    except Unavailable as error:
        reason = error.reason
    assert quoted in reason
    assert "W&B: " not in reason


def test_an_address_without_a_server() -> None:
    with WebServer(Handler) as gone:
        queue = client(gone.url)
    for ask in (lambda: look(queue), lambda: queue.pop(ENTITY, ["cpu"], "A1")):
        reason = refusal(ask, Code.WANDB_UNAVAILABLE)
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
    (popped,) = queue.pop(ENTITY, ["cpu"], mine)
    assert popped.item is not None
    assert popped.item.id == item


def test_an_answer_that_takes_too_long(server: WandbServer) -> None:
    server.faults.delay("project", 0.1, times=None)
    reason = refusal(lambda: look(client(server.url, read=0.02)), Code.WANDB_UNAVAILABLE)
    assert "read timed out" in reason.lower()


# The key


def test_a_refused_key_is_read_again_once(server: WandbServer) -> None:
    (item,) = push(server)
    keys = Keys([OLD_KEY, KEY])
    (popped,) = client(server.url, keys).pop(ENTITY, ["cpu"], "")
    assert popped.item is None, "an empty agent id is unknown"
    keys = Keys([OLD_KEY, KEY])
    queue = client(server.url, keys)
    assert look(queue, items={item: "cpu"}).items
    look(queue)
    assert keys.renewed == 1


def test_a_key_that_stays_refused(server: WandbServer) -> None:
    keys = Keys([OLD_KEY])
    reason = refusal(lambda: look(client(server.url, keys)), Code.WANDB_KEY_REFUSED, KeyRefused)
    assert f"HTTP 401 from {server.url}/graphql: user is not logged in" in reason
    assert keys.renewed == 1
    assert len(server.store.operations) == 2
    assert client(server.url, keys).ack([("one", "run")]) == [Ack.UNKNOWN]


@pytest.mark.parametrize(
    ("status", "as_json"),
    [*((status, False) for status in (200, 400, 401, 403, 429, 500)), *((status, True) for status in (400, 401, 500))],
)
def test_a_key_that_the_server_repeats_is_quoted_whole_or_not_at_all(
    answering: Callable[..., str], status: int, as_json: bool
) -> None:
    """Whoever shows the text redacts it, and half a key would not be found."""
    filler, redact = "x" * 240, Redactor()
    redact.add(KEY)
    text = f"{filler} {KEY} Authorization: Basic {BASIC} {KEY}"
    body = {"errors": [{"message": text}]} if as_json else text.encode()
    with pytest.raises(Unavailable) as error:
        look(client(answering(Answer(status, body))))
    assert filler in error.value.reason
    assert not re.search(f"{KEY[:8]}|{BASIC[:8]}", redact(str(error.value)))


# The words of the protocol


@dataclass(frozen=True)
class Operation:
    """One top-level field of a document: what it takes, by the types of the variables, and what it selects."""

    kind: str
    name: str
    arguments: Mapping[str, str]
    selected: frozenset[str]


def operations(document: str) -> list[Operation]:
    """Take a document apart."""
    (definition,) = graphql.parse(document).definitions
    assert isinstance(definition, graphql.OperationDefinitionNode)
    types = {one.variable.name.value: graphql.print_ast(one.type) for one in definition.variable_definitions or ()}
    return [
        Operation(definition.operation.value, one.name.value, _arguments(one, types), _selected(one))
        for one in definition.selection_set.selections
        if isinstance(one, graphql.FieldNode)
    ]


def _arguments(node: graphql.FieldNode, types: Mapping[str, str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for argument in node.arguments or ():
        value = argument.value
        fields = value.fields if isinstance(value, graphql.ObjectValueNode) else [argument]
        for one in fields:
            assert isinstance(one.value, graphql.VariableNode), "every value is a variable"
            given[one.name.value] = types[one.value.name.value]
    return given


def _selected(node: graphql.FieldNode, prefix: str = "") -> frozenset[str]:
    if node.selection_set is None:
        return frozenset()
    found: set[str] = set()
    for one in node.selection_set.selections:
        assert isinstance(one, graphql.FieldNode)
        found |= {prefix + one.name.value, *_selected(one, f"{prefix}{one.name.value}.")}
    return frozenset(found)


@pytest.fixture(scope="module")
def official() -> dict[str, Operation]:
    """What the official agent's client sends, by the name of the top-level field, the first one of each name."""
    sent: list[str] = []

    class Service:
        def execute_graphql(self, text: str, variables: Mapping[str, Any]) -> Any:
            sent.append(text)
            sweep = {"id": "S1", "state": "RUNNING", "runs": {"edges": []}}
            answer = {"success": True, "runQueues": [{"id": "Q1", "name": "cpu"}], "sweep": sweep}
            return {name: answer for one in operations(text) for name in [one.name]}

    api = LaunchApi.__new__(LaunchApi)
    api._service_api = Service()
    api.get_project_run_queues(ENTITY, "model-registry")
    api.get_launch_agent("A1")
    api.create_launch_agent(ENTITY, "model-registry", ["cpu"], {}, "1")
    api.pop_from_run_queue("cpu", ENTITY, "model-registry", "A1")
    api.ack_run_queue_item("I1", "r1")
    api.fail_run_queue_item("I1", "why", "agent")
    api.update_run_queue_item_warning("I1", "why", "agent")
    api.update_launch_agent_status("A1", "POLLING")
    _set_sweep_state(api, "sw1", "CANCELED", entity=ENTITY, project="demo")
    return {one.name: one for text in reversed(sent) for one in operations(text)}


def test_mutations_are_those_of_the_official_client(
    official: Mapping[str, Operation], answering: Callable[..., str]
) -> None:
    """But for the optional filePaths: the same fields of the same types, and nothing selected beyond."""
    sent: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(body["query"])
        sweep = {"id": "S1", "state": "RUNNING"}
        return data(f0={"launchAgentId": "A1", "success": True, "sweep": sweep}, f1=None)

    queue = client(answering(say=say))
    queue.create_agent(ENTITY, ["Q1"], HOST, {})
    queue.pop(ENTITY, ["cpu"], "A1", "POLLING")
    queue.ack([("I1", "r1")])
    queue.fail([("I1", "why")], Phase.AGENT)
    queue.warn([("I1", "why")], Phase.AGENT)
    queue.cancel_sweep(ENTITY, "demo", "sw1")
    ours = {one.name: one for text in sent for one in operations(text) if one.kind == "mutation"}
    assert set(ours) == {name for name, one in official.items() if one.kind == "mutation"}
    for name, one in ours.items():
        theirs = {key: type_ for key, type_ in official[name].arguments.items() if key != "filePaths"}
        assert (one.kind, one.arguments, one.selected) == ("mutation", theirs, official[name].selected), name


def test_the_agents_question_is_that_of_the_official_client(
    official: Mapping[str, Operation], answering: Callable[..., str]
) -> None:
    sent: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(body["query"])
        return data(f0=PROJECT, f1={"id": "A1"})

    look(client(answering(say=say)), agent="A1", items={"I1": "cpu"})
    project, launch_agent = operations(sent[0])
    assert launch_agent.arguments == official["launchAgent"].arguments
    assert launch_agent.selected <= official["launchAgent"].selected
    assert {name: project.arguments[name] for name in ("name", "entityName")} == official["project"].arguments
    assert {"runQueues.id", "runQueues.name"} <= project.selected & official["project"].selected


@settings(deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(min_size=1), max_size=4, unique=True), st.text(), st.integers(0, 3))
def test_names_go_as_variables_never_as_text(
    monkeypatch: pytest.MonkeyPatch, names: Sequence[str], entity: str, peek: int
) -> None:
    """Whatever a queue, an item or an entity is called, the document stays the same and can be parsed."""
    documents: list[str] = []

    def listen(_: GraphQL, body: Mapping[str, Any], repeatable: bool, within: float) -> dict[str, Any]:
        documents.append(body["query"])
        graphql.parse(body["query"])
        json.dumps(body)
        raise Unavailable("W&B", "only listening")

    monkeypatch.setattr(GraphQL, "_send", listen)
    queue = client("http://127.0.0.1:1")
    plain = [f"n{number}" for number in range(len(names))]
    for these, whose in ((names, entity), (plain, "acme")):
        with pytest.raises(Unavailable, match="only listening"):
            queue.look(
                whose,
                agent="",
                items={one: one for one in these},
                runs=[RunId(whose, one, one) for one in these],
                queues=these,
                peek=peek,
                viewer=True,
            )
        queue.ack([(one, one) for one in these])
        queue.fail([(one, one) for one in these], Phase.AGENT)
    half = len(documents) // 2
    assert documents[:half] == documents[half:]
