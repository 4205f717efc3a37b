"""Passes against a server that refuses one field, each field of each document of the product in turn, in many forms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import graphql
import pytest
from graphql import FieldNode, GraphQLError, GraphQLResolveInfo, TypeInfo, TypeInfoVisitor, Visitor, visit

from local.standins.wandb import WandbServer
from local.standins.wandb.execution import SCHEMA
from local.standins.wandb.execution import Answer as Reply
from tests.support.memory import FAILED, World, image_spec, scheduler_spec
from tests.support.numbers import FULL
from tests.support.wandb import ENTITY, KEY, client
from vertex_launch.dispatch.run import run_pass
from vertex_launch.errors import Unavailable
from vertex_launch.model import Pace, PassReport, PassRequest

TYPES = graphql.build_schema(graphql.print_schema(SCHEMA))
"""The types without resolvers: what is executed with them takes its values from an answer."""

FORMS = {
    "unknown": (400, 'Cannot query field "{name}" on type "{type}".'),
    "unknown, as success": (200, 'Cannot query field "{name}" on type "{type}". Did you mean "state" or "runQueues"?'),
    "without a reason": (400, "bad request"),
    "relogin": (401, "relogin required"),
    "no right": (403, "permission denied"),
    "its error": (200, None),
    "its error, 401": (401, None),
    "its error, 500": (500, None),
    "an error without a place": (200, ""),
}
"""Status, and the words with which the whole request is refused; without any, the field's own error makes it null."""

ESSENTIAL = {
    *(
        "Query.viewer",
        "User.entity",
        "Query.project",
        "RunQueue.id",
        "Mutation.popFromRunQueue",
        "Mutation.ackRunQueueItem",
    ),
    *("PopFromRunQueuePayload.runQueueItemId", "PopFromRunQueuePayload.runSpec", "AckRunQueueItemPayload.success"),
}
"""Without these no item can start, or be acknowledged."""

UNDONE = {
    *("Project.runQueue", "Project.sweep", "Sweep.id", "Sweep.name", "Sweep.scheduler", "Sweep.state"),
    *(
        "Mutation.upsertSweep",
        "UpsertSweepPayload.sweep",
        "Mutation.failRunQueueItem",
        "FailRunQueueItemPayload.success",
    ),
}
"""Without these something stays open, and is tried again, or more requests are needed."""


@dataclass
class _Fields(Visitor):
    """Collects the fields of a document by their types."""

    types: TypeInfo
    found: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        super().__init__()

    def enter_field(self, node: FieldNode, *_: Any) -> None:
        self.found.add(f"{self.types.get_parent_type()}.{node.name.value}")


def fields_of(document: str) -> set[str]:
    """Return the fields that a document asks for, as ``Type.name``."""
    types = TypeInfo(TYPES)
    fields = _Fields(types)
    visit(graphql.parse(document), TypeInfoVisitor(types, fields))
    return fields.found


class Refusing(WandbServer):
    """A W&B that refuses one field (``Type.name``) in one of the forms, and keeps the documents."""

    refused, form = "", "unknown"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.documents: list[str] = []

    def graphql(self, body: bytes, user: Any, operations: list[str]) -> Reply:
        asked = json.loads(body)
        self.documents.append(asked["query"])
        if self.refused not in fields_of(asked["query"]):
            return super().graphql(body, user, operations)
        status, words = FORMS[self.form]
        type_, _, name = self.refused.partition(".")
        if words:
            return Reply(status, {"errors": [{"message": words.format(type=type_, name=name)}]})
        less = _without(asked["query"], self.refused)
        reply = (
            super().graphql(json.dumps(asked | {"query": less}).encode(), user, operations) if less else Reply(200, {})
        )
        answer = _with_error(asked, reply.body.get("data") or {}, self.refused)
        if words == "":
            answer["errors"] = [{"message": "permission denied"}]
        return Reply(status, answer)


def _without(document: str, refused: str) -> str:
    """Return a document without a field, the empty text if nothing is left of it."""
    types = TypeInfo(TYPES)

    class Without(Visitor):
        def leave_field(self, node: FieldNode, *_: Any) -> Any:
            if f"{types.get_parent_type()}.{node.name.value}" == refused:
                return graphql.REMOVE
            return graphql.REMOVE if node.selection_set and not node.selection_set.selections else None

    left = visit(graphql.parse(document), TypeInfoVisitor(types, Without()))
    (operation,) = left.definitions
    if not operation.selection_set.selections:
        return ""
    used = set[str]()

    class Used(Visitor):
        def enter_variable(self, node: Any, _: Any, parent: Any, *__: Any) -> None:
            if not isinstance(parent, graphql.VariableDefinitionNode):
                used.add(node.name.value)

    visit(left, Used())
    kept = tuple(one for one in operation.variable_definitions or () if one.variable.name.value in used)
    return graphql.print_ast(replace(operation, variable_definitions=kept))


def _with_error(asked: Mapping[str, Any], data: Mapping[str, Any], refused: str) -> dict[str, Any]:
    """Return an answer as it is with an error of one field, which makes null what may not be without it."""

    def resolve(found: Mapping[str, Any], info: GraphQLResolveInfo[Any], **_: Any) -> Any:
        if f"{info.parent_type}.{info.field_name}" == refused:
            raise GraphQLError("permission denied")
        return found.get(
            str(info.path.key), {} if graphql.is_composite_type(graphql.get_named_type(info.return_type)) else None
        )

    result = graphql.execute_sync(
        TYPES, graphql.parse(asked["query"]), data, variable_values=asked["variables"], field_resolver=resolve
    )
    return {"data": result.data, "errors": [error.formatted for error in result.errors or ()]}


@dataclass
class Launch:
    """A deployment whose W&B is the server, and what its passes reported."""

    world: World
    server: Refusing
    said: list[str] = field(default_factory=list)

    def run(self) -> PassReport | None:
        """Run a pass in a new instance."""
        pace = Pace()
        queue = client(self.server.url)
        queue._pace = pace
        services = replace(self.world.services(), queue=queue, pace=pace)
        before = len(self.server.documents)
        try:
            report = run_pass(self.world.settings, services, PassRequest())
        except Unavailable as error:
            self.said.append(str(error))
            return None
        finally:
            self.cost = len(self.server.documents) - before
            self.world.clock.sleep(100)
        assert isinstance(report, PassReport)
        self.said += report.notices
        return report

    def begin(self) -> None:
        """Let items start, wait, and fail."""
        store = self.server.store
        self.items = [store.push(ENTITY, queue, image_spec()) for queue in ("cpu", "gpu", "cpu")]
        bad = store.push(ENTITY, "cpu", {"project": "demo", "resource": "gcp-vertex"})
        store.set_sweep(ENTITY, "demo", "sw1", "RUNNING")
        store.set_sweep(ENTITY, "demo", "sw2", "PENDING")
        scheduler = store.push(ENTITY, "gpu", scheduler_spec("sw1"))
        store.push(ENTITY, "gpu", image_spec(sweep_id="sw2"))
        self.run()
        self.run()
        self.bad, self.scheduler = bad, scheduler

    def live(self) -> None:
        """Let items start, wait, and fail, and jobs and a sweep end, so that every document is sent."""
        self.begin()
        self.world.vertex.begins_runs = False
        for item in (self.items[0], self.scheduler):
            for job in self.world.vertex.of(item):
                self.world.vertex.set(job.name, FAILED, "The replica exited with a non-zero status of 1.")
        self.run()
        self.run()
        self.run()

    @property
    def told(self) -> bool:
        """Whether the author of the item whose job failed knows."""
        item = self.server.store.items[self.items[0]]
        return item.error is not None or bool(item.warnings)

    @property
    def started(self) -> list[int]:
        """How many jobs each good item has."""
        return [len(self.world.vertex.of(item)) for item in self.items]


@contextmanager
def launched(refused: str = "", form: str = "unknown") -> Iterator[Launch]:
    world = World(max_jobs=10, entity=None)
    people: dict[str, Any] = {"api_keys": {KEY: "ada"}, "teams": {ENTITY: ["ada"]}, "default_entities": {"ada": ENTITY}}
    with Refusing(clock=world.clock, **people) as server:
        for queue in ("cpu", "gpu"):
            server.store.create_queue(ENTITY, queue)
        server.refused, server.form = refused, form
        world.settings = world.settings.model_copy(update={"base_url": server.url})
        yield Launch(world, server)


def test_the_passes_send_every_document_of_the_product() -> None:
    with launched() as plain:
        plain.live()
    asked = set().union(*map(fields_of, plain.server.documents))
    assert {name for name in asked if name.startswith(("Query.", "Mutation."))} == {
        *(f"Query.{name}" for name in ("project", "launchAgent", "entity", "viewer")),
        *(f"Mutation.{name}" for name in ("createLaunchAgent", "updateLaunchAgent", "popFromRunQueue")),
        *(f"Mutation.{name}" for name in ("ackRunQueueItem", "failRunQueueItem", "updateRunQueueItemWarning")),
        "Mutation.upsertSweep",
    }
    assert plain.started == [1, 1, 1]
    assert plain.server.store.state(plain.bad) == "FAILED"
    assert plain.said == []


@pytest.fixture(scope="module")
def fields() -> list[str]:
    """The fields of all documents."""
    with launched() as plain:
        plain.live()
        return sorted(set().union(*map(fields_of, plain.server.documents)))


@pytest.mark.parametrize("form", FORMS)
def test_passes_start_items_although_one_field_is_refused(
    fields: Sequence[str], caplog: pytest.LogCaptureFixture, form: str
) -> None:
    """Or they report in W&B's words why they cannot, if the field is essential."""
    assert len(fields) > 30
    wrong = dict[str, object]()
    some = fields if form == "unknown" or FULL else fields[list(FORMS).index(form) % 3 :: 3]
    for name in some:
        caplog.clear()
        with launched(name, form) as one:
            one.begin()
            said = [*one.said, *(record.getMessage() for record in caplog.records if record.levelname == "WARNING")]
            if one.started != [1, 1, 1] if name not in ESSENTIAL else not said:
                wrong[name] = one.started, said
    assert wrong == {}


def test_what_is_refused_is_asked_once_an_hour_and_costs_nothing_else(fields: Sequence[str]) -> None:
    """The reason why a job failed arrives all the same. What the field is for may stay undone."""
    with launched() as plain:
        plain.live()
        always = set().union(*map(fields_of, plain.server.documents[-plain.cost :]))
    wrong = dict[str, object]()
    for name in sorted(set(fields) - ESSENTIAL - UNDONE):
        with launched(name) as one:
            one.live()
            said = one.server.documents[-one.cost :]
            if one.cost > plain.cost or name in set().union(*map(fields_of, said)) or not one.told:
                wrong[name] = one.cost, one.told, said
            one.world.clock.sleep(3600)
            one.run()
            if name in always and name not in set().union(*map(fields_of, one.server.documents[-one.cost :])):
                wrong[name] = "not asked again"
    assert wrong == {}
