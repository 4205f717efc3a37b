"""What the tests of the client of W&B's queues share: a client, items, and servers that answer from a script."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import graphql
import pytest
from google.api_core.retry import retry_base

from local.standins.wandb import WandbServer
from local.standins.web import Handler
from tests.support.specs import with_settings
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.adapters.wandb_server import BACKOFF
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable
from vertex_launch.model import Popped, Question, RunId, WandbState
from vertex_launch.settings.config import Batches, Timeouts

KEY, OLD_KEY = "k" * 40, "o" * 40
BASIC = base64.b64encode(f"api:{KEY}".encode()).decode()
ENTITY = "acme"
HOST = "vertex-launch/test"
OFTEN = BACKOFF.with_delay(initial=0.5, maximum=1.0)
SPEC = {"entity": ENTITY, "project": "demo", "docker": {"docker_image": "image:1"}}
PROJECT = {"runQueues": [{"id": "Q1", "name": "cpu"}], "launchAgents": []}

Serve = Callable[..., WandbServer]
Answering = Callable[..., str]


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


def client(url: str, keys: Keys | None = None, *, read: float = 10.0, **batches: int) -> WandbQueue:
    timeouts = Timeouts(connect=1, read=read)
    settings = with_settings(base_url=url, timeouts=timeouts, batches=Batches(**batches))
    return WandbQueue(
        settings, keys or Keys(), backoff=OFTEN, clock=retry_base.time.monotonic, sleep=retry_base.time.sleep
    )


def refusal(act: Callable[[], Any], code: Code, kind: type[Unavailable] = Unavailable) -> str:
    """Return the reason of the error that an act raises."""
    with pytest.raises(kind) as error:
        act()
    assert error.value.message.code is code
    return error.value.reason


def ask(queue: WandbQueue, **changes: Any) -> WandbState:
    given: dict[str, Any] = {"queues": ("cpu", "gpu"), "peek": 5} | changes
    return queue.ask(Question(ENTITY, **given))


def start_run(server: WandbServer, name: str, state: str = "running") -> RunId:
    server.store.project(ENTITY, "demo")
    server.store.runs.upsert(ENTITY, "demo", name, username="ada", state=state)
    return RunId(ENTITY, "demo", name)


def push(server: WandbServer, queue: str = "cpu", count: int = 1) -> list[str]:
    return [server.store.push(ENTITY, queue, SPEC) for _ in range(count)]


def ids(popped: Sequence[Popped]) -> list[str | None]:
    """Return the items' ids, None for a queue that gave none."""
    return [answer.item.id if answer.item else None for answer in popped]


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


class Scripted(Handler):
    say: Say

    def serve(self) -> None:
        answer = type(self).say(json.loads(self.body()))
        if answer is None:
            self.hang_up()
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.answer(answer.status, body, answer.headers)


def data(**fields: Any) -> Answer:
    return Answer(body={"data": fields})


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
