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
from vertex_launch.adapters.wandb_document import Field, project_field
from vertex_launch.adapters.wandb_server import REGISTRY, WandbServer, chunks
from vertex_launch.codes import Code
from vertex_launch.errors import KeyRefused, Message, Unavailable
from vertex_launch.job.queue_config import QueueConfig
from vertex_launch.log import LOGGER
from vertex_launch.model import AgentView, ItemView, Question, Queued, RunId, RunView, SchedulerView, WandbState

QUEUES = "runQueues? { id name }"
AGENT_FIELDS = "id hostname? stopPolling? runQueues?"
AGENTS = f"launchAgents? {{ {AGENT_FIELDS} }}"
RUN = "run?(name: $id:String!) { state? stopped? }"
RUN_WITH_HEARTBEAT = "run?(name: $id:String!) { state? stopped? heartbeatAt? }"
RESOURCE, RESOURCES = "resource", "entity.defaultResourceConfig"
CONFIG_FIELDS = "resource config templateVariables { name schema }"
LEASED = 200
"""Items of a queue among which a leased one is looked for."""
VIEWER = Field("viewer { entity username? }")


class WandbReads(WandbServer):
    """The questions to a W&B server, several in one request where it accepts that. All raise Unavailable."""

    def viewer(self) -> tuple[str, str]:
        """Return the user of the API key and the key's default entity, empty texts for none."""
        answer = self._ask(VIEWER)
        if answer.value is None or (answer.error and not id_of(answer.get("entity"))):
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
        if self._batched:
            try:
                return self._answer(question, together=True)
            except RequestRefused as error:
                self._doubt(len(question.runs) + 2, error)
        return self._answer(question, together=False)

    def _answer(self, question: Question, *, together: bool) -> WandbState:
        """Ask in one request, or everything in a request of its own. Then what the server refuses alone spoils nothing else."""
        entity, agent, items, runs = question.entity, question.agent, question.items, question.runs
        peek, queues = question.peek, question.queues if question.peek else ()
        most = self._batches.lookups if together else 0
        first_items, first_runs = dict(list(items.items())[:most]), runs[:most]
        by_id = bool(agent) and "launchAgent" not in self._pace.refused
        registry = _Registry(entity, QUEUES if by_id else f"{QUEUES} {AGENTS}")
        registry.add_queues(queues, first_items, peek)
        fields = [registry.field()]
        if by_id:
            fields.append(Field(f"launchAgent?(id: $agent:ID!) {{ {AGENT_FIELDS} }}", agent=agent))
        fields += [project_field(run, RUN) for run in first_runs]
        if question.viewer:
            fields.append(Field("viewer? { entity }"))
        answers = self._request("query", fields) if together else [self._ask(fields[0]), *self._each(fields[1:])]
        if together and answers[0].value is None and answers[0].error:
            raise RequestRefused(SERVICE, answers[0].error, code=Code.WANDB_REFUSED)
        project = _project(entity, answers[0])
        views = _item_views(project, registry.aliases)
        views |= self._items(entity, {item: items[item] for item in items if item not in first_items}, together)
        views_of_runs = self._run_views(first_runs, answers[1 + by_id :])
        agents = project.get("launchAgents")
        shown, is_shown = self._agent(entity, agent, answers[1]) if by_id else (None, isinstance(agents, list))
        return WandbState(
            viewer_entity=id_of(answers[-1].get("entity")) if question.viewer else "",
            agent=shown,
            agents=_agent_views(agents),
            agents_shown=is_shown,
            queues=_queues(entity, answers[0], registry.queue_aliases),
            items=views,
            runs=views_of_runs | self._runs(runs[len(first_runs) :], RUN),
            queued={
                name: _queued(project.get(registry.queue_aliases[name]), peek)
                for name in queues
                if "runQueue.runQueueItems" not in self._pace.refused
            },
        )

    def _each(self, fields: Sequence[Field]) -> list[Result]:
        """Ask questions one by one. Those that are the same in each pass are left out from now on if they are refused."""
        answers = [self._ask_alone(one) for one in fields]
        refused = {one.part.key for one, answer in zip(fields, answers, strict=True) if answer.refused}
        self._leave_out(refused & {"viewer", "launchAgent"} - self._pace.refused)
        return answers

    def _agent(self, entity: str, agent: str, answer: Result) -> tuple[AgentView | None, bool]:
        """Return the agent, None if it does not exist, and whether W&B shows that: here or in the list of all agents.

        If it is not here, later passes ask for the list at once.
        """
        if shown := _agent_views([answer.value]):
            return shown[0], True
        if answer.value is None and not answer.error:
            return None, True
        self._leave_out({"launchAgent"} - self._pace.refused)
        listed = self._ask_alone(_Registry(entity, AGENTS).field()).get("launchAgents")
        return next((one for one in _agent_views(listed) if one.id == agent), None), isinstance(listed, list)

    def items(self, entity: str, wanted: Mapping[str, str]) -> dict[str, ItemView]:
        """Look up items (id to queue name). Items about which W&B cannot answer are missing."""
        return self._items(entity, wanted, self._batched)

    def _items(self, entity: str, wanted: Mapping[str, str], together: bool) -> dict[str, ItemView]:
        views: dict[str, ItemView] = {}
        for chunk in chunks(list(wanted.items()), self._batches.lookups if together else 1):
            registry = _Registry(entity)
            registry.add_queues((), dict(chunk), 0)
            answer = self._ask(registry.field())
            views |= {} if answer.refused else _item_views(_project(entity, answer), registry.aliases)
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
        return self._runs(wanted, RUN_WITH_HEARTBEAT)

    def _runs(self, wanted: Sequence[RunId], question: str) -> dict[RunId, RunView | None]:
        return self._run_views(wanted, self._ask_all([project_field(run, question) for run in wanted]))

    def _run_views(self, runs: Sequence[RunId], answers: Sequence[Result]) -> dict[RunId, RunView | None]:
        """Return the runs, None for one that does not exist; ``answers`` may have more at its end."""
        views: dict[RunId, RunView | None] = {}
        for run, answer in zip(runs, answers, strict=False):
            found = mapping_of(answer.get("run"))
            no_state = "" if found and "run.state" in self._pace.refused else 0
            state, stopped = found.get("state", no_state), found.get("stopped")
            if isinstance(state, str | None) and isinstance(stopped, bool | None) and (state or not answer.error):
                views[run] = RunView((state or "").lower(), stopped is True, _unix_seconds(found.get("heartbeatAt")))
            elif answer.lacks("run"):
                views[run] = None
        return views

    def sweeps(self, wanted: Sequence[RunId]) -> dict[RunId, str]:
        """Return the state of sweeps, as RUNNING, empty text if one does not exist. Unknown ones are missing."""
        fields = [project_field(one, "sweep?(sweepName: $id:String!) { state }") for one in wanted]
        states: dict[RunId, str] = {}
        for sweep, answer in zip(wanted, self._batch(fields, self._batches.lookups, kind="query"), strict=True):
            if state := text_of(mapping_of(answer.get("sweep")).get("state")):
                states[sweep] = state.upper()
            elif answer.lacks("sweep"):
                states[sweep] = ""
        return states

    def schedulers(self, wanted: Sequence[RunId]) -> dict[RunId, SchedulerView | None]:
        """Return how the schedulers of sweeps were launched, None if they were not. Unknown ones are missing."""
        fields = [project_field(one, "sweep?(sweepName: $id:String!) { scheduler? }") for one in wanted]
        views: dict[RunId, SchedulerView | None] = {}
        for sweep, answer in zip(wanted, self._batch(fields, self._batches.lookups, kind="query"), strict=True):
            if (found := mapping_of(answer.get("sweep"))) and not answer.error:
                views[sweep] = scheduler_of(found, sweep.id)
            elif answer.lacks("sweep"):
                views[sweep] = None
        return views

    def queue_names(self, entity: str) -> list[str]:
        """Return the names of all queues of the entity."""
        return list(_queues(entity, self._ask(_Registry(entity, QUEUES).field()), {}))

    def resources(self, entity: str, queues: Sequence[str]) -> dict[str, str]:
        """Return the resource of each queue's items, as ``gcp-vertex``, empty for a queue without a config.

        Queues that W&B does not show are missing. If it shows none, it is not asked again for a while.
        """
        if RESOURCES in self._pace.refused:
            return {}
        try:
            found = self._queue_configs(entity, queues, RESOURCE)
        except (RequestRefused, KeyRefused) as error:  # the key was taken before
            LOGGER.info("W&B does not show which resource the queues' items run on: %s", error.reason)
            found = {}
        if queues and not found:
            self._leave_out({RESOURCES} - self._pace.refused)
        return {name: text_of(config.get("resource")) if config else "" for name, config in found.items()}

    def queue_configs(self, entity: str, queues: Sequence[str]) -> dict[str, QueueConfig | None]:
        """Return what these queues set for their items, None for a queue without a config. Unknown ones are missing."""
        found = self._queue_configs(entity, queues, CONFIG_FIELDS)
        return {name: _queue_config(config) if config else None for name, config in found.items()}

    def _queue_configs(self, entity: str, queues: Sequence[str], fields: str) -> dict[str, Mapping[str, Any] | None]:
        """Return these fields of each queue's default config, None if it has none. Unknown ones are missing."""
        registry = _Registry(entity)
        registry.add_queues(queues, {}, 0, "defaultResourceConfigID?")
        answer = self._ask(registry.field())
        project = mapping_of(answer.value)
        shown = {name: mapping_of(project.get(alias)) for name, alias in registry.queue_aliases.items()}
        ids = {
            name: id_of(queue["defaultResourceConfigID"])
            for name, queue in shown.items()
            if "defaultResourceConfigID" in queue and not (queue["defaultResourceConfigID"] is None and answer.error)
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
                parts.append(f"runQueueItems?(first: {peek}) {{ edges {{ node {{ id state }} }} }}")
            for item in [one for one, queue in items.items() if queue == name]:
                own = f"i{len(self.aliases)}"
                self.aliases[item] = (alias, own)
                self._variables[own] = item
                parts.append(f"{own}: runQueueItem?(id: ${own}:ID!) {{ state associatedRunId? }}")
            self._variables[alias] = name
            self._parts.append(f"{alias}: runQueue?(name: ${alias}:String!) {{ {' '.join(parts)} }}")

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


def _queues(entity: str, answer: Result, aliases: Mapping[str, str]) -> dict[str, str]:
    """Return all queues of the entity, name to id; those that were asked for by name if the server refuses to list them.

    Raises Unavailable if W&B cannot answer: that is not the same as none.
    """
    project = _project(entity, answer)
    queues = project.get("runQueues")
    if not isinstance(queues, list):
        queues = [{**mapping_of(project[alias]), "name": name} for name, alias in aliases.items() if project.get(alias)]
        if not queues:
            raise answer.refusal(f"cannot list the queues of entity {entity}", "the answer has no list of them")
    found = [(id_of(one.get("name")), id_of(one.get("id"))) for one in dicts(queues)]
    named = [(name, id_) for name, id_ in found if name and id_]
    if len(named) < len(queues):
        text = f"W&B's answer has {len(queues) - len(named)} queues of entity {entity} without a name or id. They are ignored."
        log.warning(Message(Code.WANDB_ANSWER, text))
    return dict(named)


def _agent_views(agents: Any) -> tuple[AgentView, ...]:
    """Return the agents of a list that have an id."""
    return tuple(
        AgentView(
            id=id_of(agent.get("id")),
            hostname=text_of(agent.get("hostname")),
            stop_polling=agent.get("stopPolling") is True,
            queues=tuple(map(id_of, queues if isinstance(queues := agent.get("runQueues"), list) else ())),
        )
        for agent in dicts(agents)
        if id_of(agent.get("id"))
    )


def _item_views(project: Mapping[str, Any], aliases: Mapping[str, tuple[str, str]]) -> dict[str, ItemView]:
    nodes = {item: mapping_of(mapping_of(project.get(queue)).get(own)) for item, (queue, own) in aliases.items()}
    return {
        item: ItemView(state=text_of(node.get("state")), run=text_of(node.get("associatedRunId")))
        for item, node in nodes.items()
        if text_of(node.get("state"))
    }


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
