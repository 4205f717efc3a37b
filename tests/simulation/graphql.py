"""A small GraphQL server over the simulated W&B, reached by the product's own client: no sockets, and every fault.

``client`` makes a ``WandbQueue`` whose session ends here. Each request is one call of a service, as those of the other
services are: it is refused or lost, and its program dies or freezes around it. Some fields of a request may fail alone. A
server may refuse several operations in one request, or fields that others know.
"""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import requests
import urllib3
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry
from requests.adapters import BaseAdapter, HTTPAdapter

from tests.simulation.scheduler import Program
from tests.support.memory import ENTITY, Secret, Service
from vertex_launch.adapters.wandb_answer import Retryable
from vertex_launch.adapters.wandb_queue import SHORT_MESSAGE, WandbQueue
from vertex_launch.adapters.wandb_server import REGISTRY
from vertex_launch.model import Ack, AgentView, Pace, Phase, RunId
from vertex_launch.settings.config import Settings

if TYPE_CHECKING:
    from tests.simulation.world import World

NAMES = {
    "popFromRunQueue": "pop",
    "ackRunQueueItem": "ack",
    "failRunQueueItem": "fail",
    "updateRunQueueItemWarning": "warn",
    "createLaunchAgent": "create_agent",
    "upsertSweep": "cancel_sweep",
}
"""The operation that a request with this field stands for."""
TOKEN = re.compile(r"\$?\w+|[{}():]")


SCHEDULER = json.dumps({"run_spec": json.dumps({"run_id": "WANDB_SWEEP_ID"})})
"""What a sweep says about its scheduler."""


class FieldError(Exception):
    """One field of a request has no value, and an error instead."""


@dataclass(frozen=True)
class Selected:
    """One field of a document."""

    alias: str
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[Selected, ...] = ()

    def names(self) -> Iterator[str]:
        """Return the names of this field and of all in it."""
        yield self.name
        for one in self.fields:
            yield from one.names()


@lru_cache(2000)
def parse(document: str) -> tuple[str, tuple[Selected, ...]]:
    """Parse the documents that the product's client writes, into their kind and their fields."""
    kind, _, rest = document.partition(" ")
    tokens = TOKEN.findall(rest[rest.index("{") :])
    fields, end = _selection(tokens, 0)
    assert end == len(tokens), document
    return kind, fields


def _selection(tokens: list[str], at: int) -> tuple[tuple[Selected, ...], int]:
    fields, at = list[Selected](), at + 1
    while tokens[at] != "}":
        alias = name = tokens[at]
        at += 1
        if tokens[at] == ":":
            name, at = tokens[at + 1], at + 2
        arguments: dict[str, Any] = {}
        if tokens[at] == "(":
            arguments, at = _arguments(tokens, at, ")")
        inner: tuple[Selected, ...] = ()
        if tokens[at] == "{":
            inner, at = _selection(tokens, at)
        fields.append(Selected(alias, name, arguments, inner))
    return tuple(fields), at + 1


def _arguments(tokens: list[str], at: int, end: str) -> tuple[dict[str, Any], int]:
    values, at = dict[str, Any](), at + 1
    while tokens[at] != end:
        name, value, at = tokens[at], tokens[at + 2], at + 3
        if value == "{":
            value, at = cast(Any, _arguments(tokens, at - 1, "}"))
        values[name] = value
    return values, at + 1


def _filled(value: Any, variables: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        return {name: _filled(one, variables) for name, one in value.items()}
    return variables[value[1:]] if value.startswith("$") else int(value)


class GraphQL(Service):
    """The server. ``batched`` if it takes several operations in one request, ``extended`` if it knows the newer fields.

    ``rotating`` if its keys are replaced again and again, while passes use them; ``grumpy`` if it often refuses messages.
    """

    name = "W&B's address"

    def __init__(self, world: World, *, batched: bool, extended: bool, rotating: bool, grumpy: bool) -> None:
        super().__init__()
        self._world, self._wandb, self._scheduler = world, world.wandb, world.scheduler
        self._batched, self._extended, self._rotating = batched, extended, rotating
        self._grumpy = grumpy
        self.valid: set[str] = set()
        """Keys that this server takes, empty for all."""
        self._long: dict[tuple[str, str], str] = {}
        """Long messages by item and beginning: a refused one is sent once more, cut."""

    def handle(self, key: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Answer one request with a status and a body."""
        self._remember(body["variables"])
        kind, fields = parse(body["query"])
        if self._rotating and kind == "mutation" and self._world.troubled and self._world.random.random() < 0.1:
            self.valid = {self._world.people.new_key()}
        if self.valid and key not in self.valid:
            return 401, {"errors": [{"message": "user is not logged in"}]}
        busy = self._world.troubled and (
            0.3 if self._grumpy and _operation(body["query"]) in ("fail", "warn") else 0.01
        )
        if busy and self._world.random.random() < busy:
            return self._world.random.choice((400, 403, 409)), {"errors": [{"message": "not now"}]}
        if len(fields) > 1 and not self._batched:
            return 400, {"errors": [{"message": "one operation in a request"}]}
        newer = {"runQueueItems", "heartbeatAt"}
        if not self._extended and (asked := newer.intersection(name for one in fields for name in one.names())):
            return 400, {"errors": [{"message": f'Cannot query field "{min(asked)}"'}]}
        data: dict[str, Any] = {}
        errors: list[dict[str, Any]] = []
        if any(name == "runQueues" for one in fields for name in one.names()):
            self._scheduler.program.asked = self._scheduler.now
        for one in fields:
            try:
                if kind == "mutation" and self._world.troubled and self._world.random.random() < 0.02:
                    raise FieldError("this operation failed, try again")
                data[one.alias] = self._resolve(one, body["variables"])
            except FieldError as error:
                data[one.alias] = None
                errors.append({"message": str(error), "path": [one.alias]})
        return 200, {"data": data} | ({"errors": errors} if errors else {})

    def _remember(self, variables: Mapping[str, Any]) -> None:
        for name, text in variables.items():
            if name.startswith("message_") and len(text) > SHORT_MESSAGE:
                self._long[variables[name.replace("message", "item")], text[: SHORT_MESSAGE - 1]] = text

    def _whole(self, item: str, text: str) -> str:
        """Return a message as it was before the client cut it because it was refused."""
        return self._long.get((item, text.removesuffix("…")), text) if text.endswith("…") else text

    def _resolve(self, one: Selected, variables: Mapping[str, Any]) -> Any:
        arguments = _filled(dict(one.arguments), variables)
        return getattr(self, f"_{one.name}")(one, arguments, variables)

    # Queries

    def _viewer(self, one: Selected, arguments: Any, variables: Any) -> Any:
        return {"entity": ENTITY, "username": "ada"}

    def _launchAgent(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        agent = self._wandb.agents.get(arguments["id"])
        return agent and _agent(agent)

    def _entity(self, one: Selected, arguments: Any, variables: Any) -> Any:
        found = {each.alias: _filled(dict(each.arguments), variables)["id"] for each in one.fields}
        return {
            alias: {"resource": self._wandb.queues[config.removeprefix("config-")]} for alias, config in found.items()
        }

    def _project(self, one: Selected, arguments: Any, variables: Any) -> Any:
        if arguments["entityName"] != ENTITY:
            raise FieldError("entity not found")
        if arguments["name"] == REGISTRY:
            return {each.alias: self._of_registry(each, variables) for each in one.fields}
        found: dict[str, Any] = {}
        for each in one.fields:
            name = _filled(dict(each.arguments), variables)
            if each.name == "run":
                found[each.alias] = self._run(RunId(ENTITY, arguments["name"], name["name"]), each)
            else:
                sweep = RunId(ENTITY, arguments["name"], name["sweepName"])
                state = self._wandb.sweeps([sweep]).get(sweep)
                found[each.alias] = {"id": f"ID-{sweep.id}", "state": state, "scheduler": SCHEDULER} if state else None
        return found

    def _run(self, run: RunId, one: Selected) -> Any:
        if not self._wandb.can_show(run):
            raise FieldError(f"cannot load run {run.id}")
        view = self._wandb.run_view(run)
        beat = view and view.heartbeat and datetime.fromtimestamp(view.heartbeat, UTC).isoformat()
        return view and {"state": view.state, "stopped": view.stopped, "heartbeatAt": beat}

    def _of_registry(self, one: Selected, variables: Mapping[str, Any]) -> Any:
        if one.name == "runQueues":
            return [{"id": f"id-{name}", "name": name} for name in self._wandb.queues]
        if one.name == "launchAgents":
            return [_agent(agent) for agent in self._wandb.agents.values()]
        name = _filled(dict(one.arguments), variables)["name"]
        if name not in self._wandb.queues:
            return None
        queue: dict[str, Any] = {"id": f"id-{name}", "defaultResourceConfigID": f"config-{name}"}
        for each in one.fields:
            if each.name == "runQueueItems":
                most = _filled(dict(each.arguments), variables)["first"]
                shown = [item for item in self._wandb.contents.values() if item.queue == name][:most]
                nodes = [{"node": {"id": item.id, "state": self._wandb.state(item.id)}} for item in shown]
                queue[each.alias] = {"edges": nodes}
            elif each.name == "runQueueItem":
                item = _filled(dict(each.arguments), variables)["id"]
                view = self._wandb.items(ENTITY, {item: name}).get(item)
                queue[each.alias] = view and {"id": item, "state": view.state, "associatedRunId": view.run}
        return queue

    # Mutations

    def _createLaunchAgent(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        said = arguments["input"]
        config = json.loads(said["agentConfig"])
        return {"launchAgentId": self._wandb.create_agent(ENTITY, said["runQueues"], said["hostname"], config)}

    def _updateLaunchAgent(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        self._wandb.set_status(arguments["input"]["launchAgentId"], arguments["input"]["agentStatus"])
        return {"success": True}

    def _popFromRunQueue(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        said = arguments["input"]
        if said["queueName"] not in self._wandb.queues:
            raise FieldError("no such queue")
        (popped,) = self._wandb.pop(ENTITY, [said["queueName"]], said["launchAgentId"])
        return popped.item and {"runQueueItemId": popped.item.id, "runSpec": popped.item.spec}

    def _ackRunQueueItem(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        said = arguments["input"]
        return {"success": self._wandb.claim(said["runQueueItemId"], said["runName"]) is Ack.ACCEPTED}

    def _failRunQueueItem(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        said, item = arguments["input"], arguments["input"]["runQueueItemId"]
        return {"success": self._wandb.fail_item(item, self._whole(item, said["message"]), Phase(said["stage"]))}

    def _updateRunQueueItemWarning(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        said, item = arguments["input"], arguments["input"]["runQueueItemId"]
        return {"success": self._wandb.warn_item(item, self._whole(item, said["message"]), Phase(said["stage"]))}

    def _upsertSweep(self, one: Selected, arguments: Any, variables: Any) -> Any:  # noqa: N802
        said = arguments["input"]
        sweep = said["id"].removeprefix("ID-")
        self._wandb.cancel_sweep(said["entityName"], said["projectName"], sweep, sweep)
        return {"sweep": {"name": said["id"]}}

    # What is heard when a request goes wrong

    def refuse(self, operation: str = "", *args: Any) -> Any:
        """Answer that the server is busy, or do not answer, or refuse all of a change."""
        _, body = args
        self._remember(body["variables"])
        kind = self._world.random.choice(("429", "503", "503", "400", "400", "nothing", "nothing"))
        if kind in ("429", "503"):
            return int(kind), {"errors": [{"message": "try again later"}]}
        if kind == "400" and not self._scheduler.program.slowly and body["query"].startswith("mutation"):
            return 400, {"errors": [{"message": "this request cannot be served"}]}
        raise requests.ConnectTimeout("no connection")

    def lose(self, operation: str, *args: Any) -> Any:
        for one in [one for entry in self._wandb.contents.values() for one in entry.warned]:
            one.unheard |= one.by is self._scheduler.program and one.when >= self._scheduler.program.called
        raise requests.ReadTimeout("no answer")

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation.startswith("_"):
            raise AttributeError(operation)
        return self.handle


def _agent(agent: AgentView) -> dict[str, Any]:
    queues = list(agent.queues)
    return {"id": agent.id, "hostname": agent.hostname, "stopPolling": agent.stop_polling, "runQueues": queues}


class _Wire(BaseAdapter):
    """Ends the client's session in the server."""

    def __init__(self, program: Program, server: GraphQL) -> None:
        super().__init__()
        self._program, self._server = program, server
        self._build = HTTPAdapter().build_response

    def send(self, request: requests.PreparedRequest, *args: Any, **named: Any) -> requests.Response:
        body = json.loads(request.body or b"")
        word = str(request.headers["Authorization"]).removeprefix("Basic ")
        key = base64.b64decode(word).decode().partition(":")[2]
        status, answer = self._program.call(self._server, _operation(body["query"]), key, body)
        content = json.dumps(answer).encode()
        raw = urllib3.HTTPResponse(
            io.BytesIO(content),
            {"Content-Type": "application/json"},
            status,
            preload_content=False,
            decode_content=False,
        )
        return self._build(request, raw)

    def close(self) -> None:
        """Do nothing, because no connection is open."""


@lru_cache(2000)
def _operation(document: str) -> str:
    """Return the operation of ``ports.Queue`` that a request stands for."""
    _, fields = parse(document)
    names = [name for one in fields for name in one.names()]
    mutation = next((NAMES[name] for name in names if name in NAMES), "")
    if mutation:
        return mutation
    if "updateLaunchAgent" in names:
        return "set_status"
    return "ask" if "runQueues" in names else "runs" if "run" in names else "items"


@dataclass
class _Backoff:
    """Repeats requests in simulated time, by the rules of ``google.api_core.retry``."""

    program: Program
    seconds: float = 0.0

    def with_timeout(self, seconds: float) -> _Backoff:
        return _Backoff(self.program, seconds)

    def __call__(self, act: Callable[..., Any]) -> Callable[..., Any]:
        scheduler = self.program.scheduler

        def repeated(*args: Any) -> Any:
            until, pause = scheduler.clock() + self.seconds, 0.2
            while True:
                try:
                    return act(*args)
                except Retryable as error:
                    wait, pause = scheduler.random.uniform(0, 2 * pause), min(2 * pause, 2.0)
                    if scheduler.clock() + wait > until:
                        raise RetryError("the time is over", error) from error
                    self.program.sleep(wait)

        return repeated


@dataclass
class Instance:
    """A process that lives from pass to pass, until one of its programs is killed; it keeps the key."""

    key: str = ""


@dataclass
class _Key:
    """The API key as an instance keeps it: read once, and again when W&B refuses it."""

    program: Program
    secret: Secret
    instance: Instance

    def get(self) -> str:
        self.program.redact.pin(self.instance.key)
        return self.instance.key or self.renew("")

    def renew(self, refused: str) -> str:
        if self.instance.key == refused:
            self.instance.key = self.program.call(self.secret, "get")
        self.program.redact.pin(self.instance.key)
        return self.instance.key


def client(
    program: Program, server: GraphQL, settings: Settings, secret: Secret, instance: Instance, pace: Pace
) -> tuple[WandbQueue, _Key]:
    """Return the product's client, connected to the server, and the key that it uses."""
    key = _Key(program, secret, instance)
    backoff, clock = cast(Retry, _Backoff(program)), program.scheduler.clock
    queue = WandbQueue(settings, key, backoff=backoff, clock=clock, sleep=program.sleep, pace=pace)
    queue._session.trust_env = False
    queue._session.mount("https://", _Wire(program, server))
    return queue, key
