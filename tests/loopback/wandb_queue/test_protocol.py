"""The documents that the client sends, compared with those of the official client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import graphql
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wandb.apis.public.sweeps import _set_sweep_state
from wandb.sdk.launch.api import LaunchApi

from tests.support.numbers import examples
from tests.support.wandb import ENTITY, HOST, PROJECT, Answer, Answering, Operation, ask, client, data, operations
from vertex_launch.adapters.wandb_server import WandbServer
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable
from vertex_launch.model import Phase, Question, RunId


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


def test_mutations_are_those_of_the_official_client(official: Mapping[str, Operation], answering: Answering) -> None:
    """But for the optional filePaths: the same fields of the same types, and nothing selected beyond."""
    sent: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(body["query"])
        sweep = {"id": "S1", "state": "RUNNING", "scheduler": '{"run_spec": "{\\"run_id\\": \\"sw1\\"}"}'}
        return data(f0={"launchAgentId": "A1", "success": True, "sweep": sweep}, f1=None)

    queue = client(answering(say=say))
    queue.create_agent(ENTITY, ["Q1"], HOST, {})
    queue.pop(ENTITY, ["cpu"], "A1", "POLLING")
    queue.ack([("I1", "r1")])
    queue.fail([("I1", "why")], Phase.AGENT)
    queue.warn([("I1", "why")], Phase.AGENT)
    queue.cancel_sweep(ENTITY, "demo", "sw1", "sw1", "cpu")
    ours = {one.name: one for text in sent for one in operations(text) if one.kind == "mutation"}
    assert set(ours) == {name for name, one in official.items() if one.kind == "mutation"}
    for name, one in ours.items():
        theirs = {key: type_ for key, type_ in official[name].arguments.items() if key != "filePaths"}
        assert (one.kind, one.arguments, one.selected) == ("mutation", theirs, official[name].selected), name


def test_the_agents_question_is_that_of_the_official_client(
    official: Mapping[str, Operation], answering: Answering
) -> None:
    sent: list[str] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(body["query"])
        return data(f0=PROJECT, f1={"id": "A1"})

    ask(client(answering(say=say)), agent="A1", items={"I1": "cpu"})
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

    def listen(_: WandbServer, body: Mapping[str, Any], repeatable: bool, within: float) -> dict[str, Any]:
        documents.append(body["query"])
        graphql.parse(body["query"])
        json.dumps(body)
        raise Unavailable("W&B", "only listening", code=Code.WANDB_UNAVAILABLE)

    monkeypatch.setattr(WandbServer, "_send", listen)
    plain = [f"n{number}" for number in range(len(names))]
    for these, whose in ((names, entity), (plain, "acme")):
        queue = client("http://127.0.0.1:1")
        with pytest.raises(Unavailable, match="only listening"):
            queue.ask(
                Question(
                    whose,
                    items={one: one for one in these},
                    runs=[RunId(whose, one, one) for one in these],
                    queues=these,
                    peek=peek,
                    viewer=True,
                )
            )
        queue.ack([(one, one) for one in these])
        queue.fail([(one, one) for one in these], Phase.AGENT)
    half = len(documents) // 2
    assert documents[:half] == documents[half:]
