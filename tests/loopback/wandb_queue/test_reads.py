"""What the client asks: queues and what they hold, items, runs, agents, sweeps, and the queues' configs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from local.standins.wandb import WandbServer
from tests.support.memory import Clock
from tests.support.wandb import (
    ENTITY,
    HOST,
    PROJECT,
    Answer,
    Answering,
    agent,
    ask,
    client,
    data,
    graphql_requests,
    operations,
    push,
    refusal,
    start_run,
)
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.model import AgentView, ItemView, Question, Queued, RunId, RunView, WandbState


def test_one_request_shows_queues_agents_items_and_what_waits(server: WandbServer, queue: WandbQueue) -> None:
    one, two, three = push(server, count=3)
    there = push(server, "gpu", count=5)
    mine = agent(server, queue)
    server.store.launch.pop(server.store.launch.queue(ENTITY, "model-registry", "cpu"), mine)
    queue.ack([(one, "run1")])
    server.store.operations.clear()
    found = ask(queue, items={one: "cpu", two: "cpu", there[0]: "gpu", "Unknown": "cpu", "Nowhere": "tpu"}, viewer=True)
    ids = {one.name: one.id for one in server.store.queues.values()}
    assert found == WandbState(
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
    found = ask(queue, agent=mine)
    assert found.agents == ()
    assert found.agent is not None
    assert (found.agent.id, found.agent.stop_polling) == (mine, True)
    assert graphql_requests(server) == [("project", "launchAgent")]
    del server.store.agents[mine]
    assert ask(queue, agent=mine).agent is None


@pytest.mark.parametrize("listed", [True, False])
def test_a_null_with_an_error_beside_it_is_not_absence(answering: Answering, listed: bool) -> None:
    """Of an agent: then the list of all agents decides."""
    agents = [{"id": "A1", "hostname": HOST, "stopPolling": False, "runQueues": ["Q1"]}] if listed else []

    def say(body: dict[str, Any]) -> Answer:
        if "launchAgent(" in body["query"]:
            errors = [{"message": "internal error", "path": ["f1"]}]
            return Answer(body={"data": {"f0": PROJECT, "f1": None}, "errors": errors})
        return data(f0={"launchAgents": agents})

    found = ask(client(answering(say=say)), agent="A1").agent
    assert (found is not None) == listed


@pytest.mark.parametrize("error", [{"message": "slow down"}, {"message": "slow down", "path": ["f1"]}])
def test_an_agent_about_which_w_and_b_cannot_answer_is_unknown(answering: Answering, error: dict[str, Any]) -> None:
    """An error that names no field may be about any that is null."""

    def say(body: dict[str, Any]) -> Answer:
        project = PROJECT if "launchAgent(" in body["query"] else {"launchAgents": None}
        return Answer(body={"data": {"f0": project, "f1": None}, "errors": [error]})

    queue = client(answering(say=say))
    found = ask(queue, agent="A1")
    assert (found.agent, found.agents_shown) == (None, False)
    assert queue.pop(ENTITY, ["cpu", "gpu"], "A1")[1].error == "slow down"


def test_an_item_that_cannot_be_looked_up_spoils_no_other(answering: Answering) -> None:
    project = {**PROJECT, "q0": {"id": "Q1", "i0": None, "i1": {"id": "b", "state": "FAILED", "associatedRunId": None}}}
    errors = [{"message": "internal error", "path": ["f0", "q0", "i0"]}]
    url = answering(Answer(body={"data": {"f0": project}, "errors": errors}))
    assert ask(client(url), items={"a": "cpu", "b": "cpu"}, peek=0).items == {"b": ItemView("FAILED", "")}


def test_what_a_queue_holds_is_not_complete_when_w_and_b_did_not_say(answering: Answering) -> None:
    errors = [{"message": "internal error", "path": ["f0", "q0"]}]
    url = answering(Answer(body={"data": {"f0": {**PROJECT, "q0": None, "q1": None}}, "errors": errors}))
    assert ask(client(url)).queued["cpu"] == Queued((), complete=False)


def test_more_items_than_fit_into_a_request(server: WandbServer) -> None:
    queue = client(server.url, lookups=3)
    ids = push(server, count=4) + push(server, "gpu", count=4)
    asked = {item: "cpu" if number < 4 else "gpu" for number, item in enumerate(ids)}
    assert set(ask(queue, items=asked).items) == set(ids)
    assert len(server.store.operations) == 3
    assert set(queue.items(ENTITY, asked)) == set(ids)
    assert len(server.store.operations) == 6


def test_the_same_request_shows_runs(server: WandbServer, queue: WandbQueue) -> None:
    running, pending = start_run(server, "running"), start_run(server, "pending", "pending")
    server.store.runs.stop(server.store.runs.all()[0])
    absent, nowhere = RunId(ENTITY, "demo", "absent"), RunId(ENTITY, "nowhere", "absent")
    mine = agent(server, queue)
    server.store.operations.clear()
    found = ask(queue, agent=mine, runs=[running, absent, pending, nowhere, running], viewer=True)
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
    found = ask(queue, runs=runs, viewer=True)
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
def test_a_run_that_cannot_be_looked_up_is_not_absent(
    answering: Answering, answer: Any, path: list[str] | None
) -> None:
    error = {"message": "no access"} | ({"path": path} if path else {})
    fields = {"f0": PROJECT, "f1": answer, "f2": {"run": {"state": "running", "stopped": False}}}
    if answer is NO_FIELD:
        del fields["f1"]
    theirs, mine = RunId("others", "demo", "theirs"), RunId(ENTITY, "demo", "mine")
    queue = client(answering(Answer(body={"data": fields, "errors": [error]})))
    assert ask(queue, runs=[theirs, mine]).runs == {mine: RunView("running", stopped=False)}


@pytest.mark.parametrize("entity", ["unknown", "empty"])
def test_an_entity_without_queues_is_named(queue: WandbQueue, entity: str) -> None:
    def ask() -> WandbState:
        return queue.ask(Question(entity, queues=("cpu",), peek=5))

    assert f"entity {entity}" in refusal(ask, Code.WANDB_ENTITY)


@pytest.mark.parametrize(
    ("status", "project", "code"),
    [(403, None, Code.WANDB_ENTITY), (200, {"runQueues": None, "launchAgents": []}, Code.WANDB_REFUSED)],
)
def test_queues_that_w_and_b_cannot_show_are_not_absent(
    answering: Answering, status: int, project: Any, code: Code
) -> None:
    errors = [{"message": "database is locked", "path": ["f0", "runQueues"]}]
    url = answering(Answer(status, {"data": {"f0": project}, "errors": errors}))
    assert "entity acme: database is locked" in refusal(lambda: ask(client(url)), code)


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
def test_heartbeats(answering: Answering, text: Any, seconds: float | None) -> None:
    run = RunId(ENTITY, "demo", "mine")
    answer = {"run": {"state": "crashed", "stopped": False, "heartbeatAt": text}}
    assert client(answering(data(f0=answer))).runs([run]) == {run: RunView("crashed", False, seconds)}


TOO_MANY = {"errors": [{"message": "too many operations"}]}


@pytest.mark.parametrize("most", [1, 50])
def test_a_server_that_does_not_show_heartbeats_is_asked_without_them_from_then_on(
    answering: Answering, most: int
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
    for _ in range(4):
        assert queue.runs(runs) == dict.fromkeys(runs, RunView("running", stopped=True))
    with_it = ["heartbeatAt" in text for text in asked]
    assert with_it == ([True, *[False] * 4] if most == 50 else [True, True, *[False] * (2 + 3 + 3 + 2)])
    assert [len(operations(text)) for text in asked[-2:]] == ([2, 2] if most == 50 else [1, 1])


def test_a_run_about_which_the_server_refuses_every_question_spoils_no_other(answering: Answering) -> None:
    def say(body: dict[str, Any]) -> Answer:
        if "others" in body["variables"].values():
            return Answer(403, {"errors": [{"message": "permission denied"}]})
        if "runQueues" in body["query"]:
            return data(f0=PROJECT)
        return data(f0={"run": {"state": "running", "stopped": False}})

    theirs, mine = RunId("others", "demo", "theirs"), RunId(ENTITY, "demo", "mine")
    seen = {mine: RunView("running", stopped=False)}
    assert client(answering(say=say)).runs([theirs, mine]) == seen
    assert ask(client(answering(say=say)), runs=[theirs, mine]).runs == seen


def test_the_default_entity(queue: WandbQueue, answering: Answering) -> None:
    assert queue.default_entity() == ENTITY
    refusal(client(answering(data(f0={"entity": None}))).default_entity, Code.WANDB_ENTITY)


def test_resources(server: WandbServer, queue: WandbQueue) -> None:
    server.store.create_queue(ENTITY, "k8s", resource="kubernetes")
    server.store.launch.create_queue(ENTITY, "bare")
    names = ("cpu", "k8s", "bare", "missing")
    expected = {"cpu": "gcp-vertex", "k8s": "kubernetes", "bare": ""}
    assert queue.resources(ENTITY, names) == expected
    assert queue.resources(ENTITY, ["bare"]) == {"bare": ""}


def test_resources_of_a_server_that_does_not_support_the_question(answering: Answering) -> None:
    unknown = {"errors": [{"message": 'Cannot query field "defaultResourceConfigID" on type "RunQueue".'}]}
    for status in (400, 200):
        queue = client(answering(Answer(status, unknown)))
        assert queue.resources(ENTITY, ["cpu"]) == {}
        assert "entity.defaultResourceConfig" in queue._pace.refused


@pytest.mark.parametrize("place", ["queue", "entity"])
def test_resources_that_are_null_beside_an_error_are_unknown(answering: Answering, place: str) -> None:
    error = [{"message": "permission denied", "path": ["f0"]}]

    def say(body: dict[str, Any]) -> Answer:
        if "entity(" in body["query"]:
            return Answer(403, {"data": {"f0": None}, "errors": error})
        value = None if place == "queue" else "C1"
        fields = {"f0": {"q0": {"defaultResourceConfigID": value}}}
        return Answer(body={"data": fields, "errors": error if place == "queue" else []})

    assert client(answering(say=say)).resources(ENTITY, ["cpu"]) == {}


def test_resources_are_not_guessed_while_w_and_b_is_down(server: WandbServer) -> None:
    server.faults.fail("project", 503, times=None)
    refusal(lambda: client(server.url).resources(ENTITY, ["cpu"]), Code.WANDB_UNAVAILABLE)
