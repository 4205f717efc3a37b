"""What is asked of W&B: queues and what they hold, items, runs, sweeps, agents, and the queue configurations.

A null beside an error is not absence: what W&B cannot answer now is missing from the results, or raises Unavailable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from vertex_launch import json_reader, log
from vertex_launch.adapters.wandb_answer import SERVICE, RequestRefused, Result, dicts, id_of, mapping_of, text_of
from vertex_launch.adapters.wandb_server import (
    REGISTRY,
    Field,
    QueryMode,
    WandbServer,
    chunks,
    in_best_mode,
    project_field,
)
from vertex_launch.codes import Code
from vertex_launch.errors import Message, Unavailable
from vertex_launch.job.queue_config import QueueConfig
from vertex_launch.log import LOGGER
from vertex_launch.model import AgentView, ItemView, Question, Queued, RunId, RunView, SchedulerView, WandbState

QUEUES = "runQueues { id name }"
AGENT_FIELDS = "id hostname stopPolling runQueues"
AGENTS = f"launchAgents {{ {AGENT_FIELDS} }}"
ITEM_FIELDS = "id state associatedRunId"
RUN = "run(name: $id:String!) { state stopped }"
RUN_WITH_HEARTBEAT = "run(name: $id:String!) { state stopped heartbeatAt }"
CONFIG_FIELDS = "resource config templateVariables { name schema }"
LEASED = 200
"""Items of a queue among which a leased one is looked for."""
VIEWER = Field("viewer { entity username }")


class WandbReads(WandbServer):
    """The questions to a W&B server, several in one request where it accepts that. All raise Unavailable."""

    def viewer(self) -> tuple[str, str]:
        """Return the user of the API key and the key's default entity, empty texts for none."""
        answer = self._ask(VIEWER)
        if answer.error or answer.value is None:
            raise answer.refusal("cannot read whose API key this is", "the answer has no user")
        return id_of(answer.get("username")), id_of(answer.get("entity"))

    def default_entity(self) -> str:
        """Return the API key's default entity."""
        _, entity = self.viewer()
        if not entity:
            text = f"the API key has no default entity. Set {self._settings.where('entity')}"
            raise Unavailable(SERVICE, text, code=Code.WANDB_ENTITY)
        return entity

    def ask(self, question: Question) -> WandbState:
        """Ask everything that a pass needs beforehand in one request, or in several if there are many items or runs.

        Heartbeats of runs are not asked.
        """
        question = replace(question, runs=list(dict.fromkeys(question.runs)))
        found, self._modes = in_best_mode(self._modes, lambda mode: self._answer(mode, question))
        return found

    def _answer(self, mode: QueryMode, question: Question) -> WandbState:
        entity, agent, items, runs = question.entity, question.agent, question.items, question.runs
        peek = question.peek if mode.extended else 0
        queues = question.queues if peek else ()
        most = self._batches.lookups if mode.batched else 0
        first_items, first_runs = dict(list(items.items())[:most]), runs[:most]
        registry = _Registry(entity, QUEUES if agent else f"{QUEUES} {AGENTS}")
        registry.add_queues(queues, first_items, peek)
        agent_fields = [Field(f"launchAgent(id: $agent:ID!) {{ {AGENT_FIELDS} }}", agent=agent)] if agent else []
        run_fields = [project_field(run, RUN) for run in first_runs]
        fields = [registry.field(), *agent_fields, *run_fields, *([VIEWER] if question.viewer else [])]
        requests = [fields] if mode.batched else [[one] for one in fields]
        answers = [answer for request in requests for answer in self._request("query", request)]
        project = _project(entity, answers[0])
        views = _item_views(project, registry.aliases)
        views |= self._items(entity, {item: items[item] for item in items if item not in first_items}, mode)
        views_of_runs = _run_views(first_runs, answers[1 + len(agent_fields) :])
        return WandbState(
            viewer_entity=id_of(answers[-1].get("entity")) if question.viewer else "",
            agent=self._agent(entity, agent, answers[1]) if agent else None,
            agents=_agent_views(project.get("launchAgents")),
            queues=_queues(entity, answers[0]),
            items=views,
            runs=views_of_runs | self._runs(runs[len(first_runs) :], mode._replace(extended=False)),
            queued={name: _queued(project.get(registry.queue_aliases[name]), peek) for name in queues},
        )

    def _agent(self, entity: str, agent: str, answer: Result) -> AgentView | None:
        """Return the agent, None if it does not exist. If the answer does not show that, the list of all agents decides."""
        if shown := _agent_views([answer.value]):
            return shown[0]
        if answer.value is None and not answer.error:
            return None
        listed = _project(entity, self._ask(_Registry(entity, AGENTS).field())).get("launchAgents")
        if not isinstance(listed, list):
            raise answer.refusal(f"cannot look up launch agent {agent}", "the answer has another form")
        return next((one for one in _agent_views(listed) if one.id == agent), None)

    def items(self, entity: str, wanted: Mapping[str, str]) -> dict[str, ItemView]:
        """Look up items (id to queue name). Items about which W&B cannot answer are missing."""
        return self._items(entity, wanted, self._modes[0])

    def _items(self, entity: str, wanted: Mapping[str, str], mode: QueryMode) -> dict[str, ItemView]:
        views: dict[str, ItemView] = {}
        for chunk in chunks(list(wanted.items()), self._batches.lookups if mode.batched else 1):
            registry = _Registry(entity)
            registry.add_queues((), dict(chunk), 0)
            views |= _item_views(_project(entity, self._ask(registry.field())), registry.aliases)
        return views

    def leased(self, entity: str, queue: str, agent: str) -> set[str]:
        """Return the items of a queue that this agent has leased, as far as W&B shows them."""
        selected = f"runQueueItems(first: {LEASED}) {{ edges {{ node {{ id state launchAgentId }} }} }}"
        registry = _Registry(entity)
        registry.add_queues([queue], {}, 0, selected)
        shown = mapping_of(_project(entity, self._ask(registry.field())).get(registry.queue_aliases[queue]))
        edges = dicts(mapping_of(shown.get("runQueueItems")).get("edges"))
        nodes = [mapping_of(edge.get("node")) for edge in edges]
        mine = [node for node in nodes if node.get("state") == "LEASED" and id_of(node.get("launchAgentId")) == agent]
        return {item for node in mine if (item := id_of(node.get("id")))}

    def runs(self, wanted: Sequence[RunId]) -> dict[RunId, RunView | None]:
        """Look up runs with their last heartbeats, None if one does not exist. Unknown ones are missing."""
        modes = [mode for mode in self._run_modes if self._modes[0].batched or not mode.batched]
        views, self._run_modes = in_best_mode(modes, lambda mode: self._runs(wanted, mode))
        return views

    def _runs(self, wanted: Sequence[RunId], mode: QueryMode) -> dict[RunId, RunView | None]:
        views: dict[RunId, RunView | None] = {}
        question = RUN_WITH_HEARTBEAT if mode.extended else RUN
        for chunk in chunks(list(wanted), self._batches.lookups if mode.batched else 1):
            try:
                views |= _run_views(chunk, self._request("query", [project_field(run, question) for run in chunk]))
            except RequestRefused as error:
                if mode.batched or mode.extended:
                    raise
                LOGGER.info("W&B does not show run %s: %s", chunk[0], error.reason)
        return views

    def sweeps(self, wanted: Sequence[RunId]) -> dict[RunId, str]:
        """Return the state of sweeps, as RUNNING, empty text if one does not exist. Unknown ones are missing."""
        fields = [project_field(one, "sweep(sweepName: $id:String!) { state }") for one in wanted]
        states: dict[RunId, str] = {}
        for sweep, answer in zip(wanted, self._batch(fields, self._batches.lookups, kind="query"), strict=True):
            if state := text_of(mapping_of(answer.get("sweep")).get("state")):
                states[sweep] = state.upper()
            elif answer.lacks("sweep"):
                states[sweep] = ""
        return states

    def schedulers(self, wanted: Sequence[RunId]) -> dict[RunId, SchedulerView | None]:
        """Return how the schedulers of sweeps were launched, None if they were not. Unknown ones are missing."""
        fields = [project_field(one, "sweep(sweepName: $id:String!) { scheduler }") for one in wanted]
        views: dict[RunId, SchedulerView | None] = {}
        for sweep, answer in zip(wanted, self._batch(fields, self._batches.lookups, kind="query"), strict=True):
            if (found := mapping_of(answer.get("sweep"))) and not answer.error:
                views[sweep] = scheduler_of(found, sweep.id)
            elif answer.lacks("sweep"):
                views[sweep] = None
        return views

    def queue_names(self, entity: str) -> list[str]:
        """Return the names of all queues of the entity."""
        return list(_queues(entity, self._ask(_Registry(entity, QUEUES).field())))

    def resources(self, entity: str, queues: Sequence[str]) -> dict[str, str]:
        """Return the resource of each queue's items, as ``gcp-vertex``. Queues that W&B does not show are missing.

        The text is empty for a queue without a config, and for all if the server does not know the question.
        """
        try:
            found = self._queue_configs(entity, queues, "resource")
        except RequestRefused as error:
            LOGGER.info("W&B does not show which resource the queues' items run on: %s", error.reason)
            return dict.fromkeys(queues, "")
        return {name: text_of(config.get("resource")) if config else "" for name, config in found.items()}

    def queue_configs(self, entity: str, queues: Sequence[str]) -> dict[str, QueueConfig | None]:
        """Return what these queues set for their items, None for a queue without a config. Unknown ones are missing."""
        found = self._queue_configs(entity, queues, CONFIG_FIELDS)
        return {name: _queue_config(config) if config else None for name, config in found.items()}

    def _queue_configs(self, entity: str, queues: Sequence[str], fields: str) -> dict[str, Mapping[str, Any] | None]:
        """Return these fields of each queue's default config, None if it has none. Unknown ones are missing."""
        registry = _Registry(entity)
        registry.add_queues(queues, {}, 0, "id defaultResourceConfigID")
        project = _project(entity, self._ask(registry.field()))
        shown = {name: project.get(alias) for name, alias in registry.queue_aliases.items()}
        ids = {
            name: id_of(queue.get("defaultResourceConfigID"))
            for name, queue in shown.items()
            if isinstance(queue, dict)
        }
        aliases = {f"c{i}": config for i, config in enumerate(filter(None, ids.values()))}
        if not aliases:
            return dict.fromkeys(ids)
        parts = (f"{alias}: defaultResourceConfig(id: ${alias}:ID!) {{ {fields} }}" for alias in aliases)
        answer = self._ask(Field(f"entity(name: $entity:String!) {{ {' '.join(parts)} }}", entity=entity, **aliases))
        found = {config: mapping_of(answer.get(alias)) for alias, config in aliases.items()}
        return {name: found.get(config) for name, config in ids.items() if not config or found[config]}


class _Registry:
    """Builds the selection on the project that owns the queues, and records what each alias stands for."""

    def __init__(self, entity: str, *parts: str) -> None:
        self._parts = list(parts)
        self._variables = {"registry": REGISTRY, "entity": entity}
        self.aliases: dict[str, tuple[str, str]] = {}
        """Item id to the alias of its queue and its own."""
        self.queue_aliases: dict[str, str] = {}

    def add_queues(self, queues: Sequence[str], items: Mapping[str, str], peek: int, fields: str = "id") -> None:
        """Select these fields of ``queues`` and of the queues of ``items``, and in them the items and ``peek`` others."""
        names = dict.fromkeys([*queues, *items.values()])
        self.queue_aliases = {name: f"q{i}" for i, name in enumerate(names)}
        for name, alias in self.queue_aliases.items():
            parts = [fields]
            if peek and name in queues:
                parts.append(f"runQueueItems(first: {peek}) {{ edges {{ node {{ id state }} }} }}")
            for item in [one for one, queue in items.items() if queue == name]:
                own = f"i{len(self.aliases)}"
                self.aliases[item] = (alias, own)
                self._variables[own] = item
                parts.append(f"{own}: runQueueItem(id: ${own}:ID!) {{ {ITEM_FIELDS} }}")
            self._variables[alias] = name
            self._parts.append(f"{alias}: runQueue(name: ${alias}:String!) {{ {' '.join(parts)} }}")

    def field(self) -> Field:
        text = f"project(name: $registry:String!, entityName: $entity:String!) {{ {' '.join(self._parts)} }}"
        return Field(text, **self._variables)


def _project(entity: str, answer: Result) -> Mapping[str, Any]:
    """Return the project that owns the queues. Raises Unavailable if W&B does not show it."""
    if answer.value is not None:
        return answer.value
    words = answer.error or "there are none that this API key can see"
    text = (
        f"cannot read the launch queues of entity {entity}: {words}. Check the entity's name and the API key's access to it, "
        "and create a queue if it has none"
    )
    raise Unavailable(SERVICE, text, code=Code.WANDB_ENTITY)


def _queues(entity: str, answer: Result) -> dict[str, str]:
    """Return all queues of the entity, name to id. Raises Unavailable if W&B cannot answer: that is not the same as none."""
    queues = _project(entity, answer).get("runQueues")
    if not isinstance(queues, list):
        raise answer.refusal(f"cannot list the queues of entity {entity}", "the answer has no list of them")
    found = [(id_of(one.get("name")), id_of(one.get("id"))) for one in dicts(queues)]
    named = [(name, id_) for name, id_ in found if name and id_]
    if len(named) < len(queues):
        text = f"W&B's answer has {len(queues) - len(named)} queues of entity {entity} without a name or id. They are ignored."
        log.warning(Message(Code.WANDB_ANSWER, text))
    return dict(named)


def _agent_views(agents: Any) -> tuple[AgentView, ...]:
    """Return the agents of a list that have an id and queues."""
    return tuple(
        AgentView(
            id=id_of(agent.get("id")),
            hostname=text_of(agent.get("hostname")),
            stop_polling=agent.get("stopPolling") is True,
            queues=tuple(map(id_of, agent["runQueues"])),
        )
        for agent in dicts(agents)
        if id_of(agent.get("id")) and isinstance(agent.get("runQueues"), list)
    )


def _item_views(project: Mapping[str, Any], aliases: Mapping[str, tuple[str, str]]) -> dict[str, ItemView]:
    nodes = {item: mapping_of(mapping_of(project.get(queue)).get(own)) for item, (queue, own) in aliases.items()}
    return {
        item: ItemView(state=text_of(node.get("state")), run=text_of(node.get("associatedRunId")))
        for item, node in nodes.items()
        if text_of(node.get("state"))
    }


def _run_views(runs: Sequence[RunId], answers: Sequence[Result]) -> dict[RunId, RunView | None]:
    """Return the runs, None for one that does not exist; ``answers`` may have more at its end."""
    views: dict[RunId, RunView | None] = {}
    for run, answer in zip(runs, answers, strict=False):
        found = mapping_of(answer.get("run"))
        state, stopped = found.get("state", 0), found.get("stopped")
        if isinstance(state, str | None) and isinstance(stopped, bool | None) and (state or not answer.error):
            views[run] = RunView((state or "").lower(), stopped is True, _unix_seconds(found.get("heartbeatAt")))
        elif answer.lacks("run"):
            views[run] = None
    return views


def _unix_seconds(text: Any) -> float | None:
    """Parse a time of W&B's (RFC 3339, UTC if it has no zone). Return None for anything else, and for Go's zero time."""
    try:
        at = datetime.fromisoformat(text.upper())
        seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    except (AttributeError, ValueError, OverflowError):
        return None
    return seconds if seconds > 0 else None


def _queued(queue: Any, peek: int) -> Queued:
    edges = mapping_of(mapping_of(queue).get("runQueueItems")).get("edges")
    nodes = [mapping_of(edge.get("node")) for edge in dicts(edges)]
    pending = tuple(id_of(node.get("id")) for node in nodes if node.get("state") == "PENDING")
    return Queued(pending, complete=isinstance(edges, list) and len(nodes) < peek)


def _queue_config(config: Mapping[str, Any]) -> QueueConfig:
    arguments = json_object(json_object(config.get("config")).get("resource_args"))
    variables = {
        text_of(one.get("name")): json_object(one.get("schema")) for one in dicts(config.get("templateVariables"))
    }
    return QueueConfig(text_of(config.get("resource")), arguments, variables)


def scheduler_of(found: Mapping[str, Any], sweep: str) -> SchedulerView | None:
    """Return how a sweep's scheduler was launched, None if it was not.

    The sweep has the run spec of its scheduler, in which the run id is a placeholder for the sweep's own (``wandb
    launch-sweep`` in wandb/cli/cli.py).
    """
    launched = json_object(found.get("scheduler"))
    spec = json_object(launched.get("run_spec"))
    run = text_of(spec.get("run_id")).replace("WANDB_SWEEP_ID", sweep)
    return SchedulerView(run, text_of(launched.get("queue")), text_of(spec.get("job"))) if run else None


def json_object(found: Any) -> Mapping[str, Any]:
    """Return a JSON object that came as it is or as text, an empty one for anything else."""
    try:
        return mapping_of(json_reader.read(found) if isinstance(found, str) else found)
    except json_reader.Unreadable:
        return {}
