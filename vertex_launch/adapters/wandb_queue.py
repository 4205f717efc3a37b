"""W&B's queue protocol over plain GraphQL: look, pop, ack, fail, warn, the deployment's agent, and the end of a sweep.

The SDK's own client for these operations is private and starts a helper process, so the few operations needed are written
out here. Their texts and variable types are those of wandb/sdk/launch/api.py and wandb/apis/public/{jobs,sweeps}.py (0.31.0).
Several go into one request by aliases; W&B runs aliased mutations one after another and answers them together.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

from google.api_core.retry import Retry

from vertex_launch.adapters.graphql import BACKOFF, Field, GraphQL, Key, Refused, Result, dicts
from vertex_launch.errors import Unavailable
from vertex_launch.job.queue_config import QueueConfig
from vertex_launch.log import LOGGER
from vertex_launch.model import Ack, AgentView, Item, ItemView, Look, Phase, Popped, Queued, RunId, RunView
from vertex_launch.settings.config import Batches, Timeouts

T = TypeVar("T")

SERVICE = "W&B"
REGISTRY = "model-registry"
"""The project that owns an entity's launch queues (LAUNCH_DEFAULT_PROJECT in wandb/sdk/launch/utils.py)."""

LONGEST_MESSAGE = 5_000
"""Characters of a failure or a warning; of a longer one the middle is left out."""

LIVE_SWEEP = ("RUNNING", "PAUSED", "PENDING")
"""States of a sweep that can still be cancelled (``_set_sweep_state`` in wandb/apis/public/sweeps.py)."""

ACCESS = "check the entity's name and the API key's access to it"

AGENT_FIELDS = "id hostname stopPolling runQueues"
ITEM_FIELDS = "id state associatedRunId"
RUN_FIELDS = "state stopped"
CONFIG_FIELDS = "resource config templateVariables { name schema }"
VIEWER = Field("viewer { entity username }")


class Way(NamedTuple):
    """How a server lets itself be asked: ``together``, several operations in one request; ``more``, also about what not
    every server may show, which is what a queue holds and when a run was last alive.
    """

    together: bool
    more: bool


WAYS: tuple[Way, ...] = (Way(True, True), Way(True, False), Way(False, True), Way(False, False))
"""The best way first."""


class WandbQueue:
    """A typed client for the queues of one W&B server."""

    def __init__(
        self,
        base_url: str,
        key: Key,
        timeouts: Timeouts,
        batches: Batches,
        *,
        version: str,
        backoff: Retry = BACKOFF,
    ) -> None:
        self._server = GraphQL(SERVICE, base_url, key, timeouts, agent=f"vertex-launch/{version}", backoff=backoff)
        self._patience = timeouts.read
        self._batches = batches
        self._ways = WAYS
        self._run_ways = WAYS
        self._version = version

    # Questions

    def viewer(self) -> tuple[str, str]:
        """Give the user whose API key it is, and the key's default entity; empty texts for none. Raises Unavailable."""
        answer = self._server.ask("query", [VIEWER])[0]
        if answer.error or not isinstance(answer.value, dict):
            raise Unavailable(SERVICE, f"does not say whose API key it is: {answer.error or 'no user given'}")
        return str(answer.value.get("username") or ""), str(answer.value.get("entity") or "")

    def default_entity(self) -> str:
        """Give the API key's default entity. Raises Unavailable."""
        answer = self._server.ask("query", [VIEWER])[0]
        entity = (answer.value or {}).get("entity")
        if not entity:
            raise Unavailable(
                SERVICE,
                "the API key has no default entity; set entity in launch-config.yaml or WANDB_ENTITY"
                + (f" ({answer.error})" if answer.error else ""),
            )
        return str(entity)

    def look(
        self,
        entity: str,
        *,
        agent: str,
        items: Mapping[str, str],
        runs: Sequence[RunId],
        queues: Sequence[str],
        peek: int,
        viewer: bool,
    ) -> Look:
        """Ask everything that a pass must know beforehand in one request (more where there are many items or runs).

        ``agent`` is the id of the deployment's agent, empty to list all agents of the entity instead; ``items`` maps ids to
        queue names; of ``runs`` the heartbeat is not asked; ``peek`` bounds what is shown of each of ``queues``, 0 for
        nothing; ``viewer`` asks for the API key's default entity, too. Raises Unavailable.
        """
        runs = list(dict.fromkeys(runs))
        found, self._ways = _in_best_way(
            self._ways, lambda way: self._look(way, entity, agent, items, runs, queues, peek, viewer)
        )
        return found

    def _look(
        self,
        way: Way,
        entity: str,
        agent: str,
        items: Mapping[str, str],
        runs: Sequence[RunId],
        queues: Sequence[str],
        peek: int,
        viewer: bool,
    ) -> Look:
        most = self._batches.lookups if way.together else 0
        first, first_runs = dict(list(items.items())[:most]), runs[:most]
        peek = peek if way.more else 0
        registry = _Registry(entity)
        registry.add("runQueues { id name }")
        if not agent:
            registry.add(f"launchAgents {{ {AGENT_FIELDS} }}")
        registry.add_queues(queues if peek else (), first, peek)
        fields = [registry.field()]
        if agent:
            fields.append(_agent(agent))
        runs_from = len(fields)
        fields += [_run(run) for run in first_runs]
        if viewer:
            fields.append(VIEWER)
        requested = [fields] if way.together else [[one] for one in fields]
        answers = [answer for request in requested for answer in self._server.ask("query", request)]
        project = self._project(entity, answers[0])
        views = _item_views(project, registry.aliases)
        rest = {item: queue for item, queue in items.items() if item not in first}
        if rest:
            views |= self._items(entity, rest, way)
        known = self._agent(entity, agent, answers[1]) if agent else None
        return Look(
            viewer_entity=str((answers[-1].value or {}).get("entity") or "") if viewer else "",
            agent=known,
            agents=tuple(_agent_view(one) for one in dicts(project.get("launchAgents"))),
            queues={str(queue["name"]): str(queue["id"]) for queue in self._queues(entity, project, answers[0])},
            items=views,
            runs=_run_views(first_runs, answers[runs_from:])
            | self._runs(runs[len(first_runs) :], way._replace(more=False)),
            queued={name: _queued(project.get(registry.queue_aliases[name]), peek) for name in queues if peek},
        )

    def items(self, entity: str, wanted: Mapping[str, str]) -> dict[str, ItemView]:
        """Look up items (id to queue name); those that W&B cannot tell about are missing. Raises Unavailable."""
        return self._items(entity, wanted, self._ways[0])

    def _items(self, entity: str, wanted: Mapping[str, str], way: Way) -> dict[str, ItemView]:
        views: dict[str, ItemView] = {}
        for chunk in _chunks(list(wanted.items()), self._batches.lookups if way.together else 1):
            registry = _Registry(entity)
            registry.add_queues((), dict(chunk), 0)
            project = self._project(entity, self._server.ask("query", [registry.field()])[0])
            views |= _item_views(project, registry.aliases)
        return views

    def runs(self, wanted: Sequence[RunId]) -> dict[RunId, RunView | None]:
        """Look up runs with their last heartbeats, None for one that does not exist.

        Those that W&B cannot tell about are missing. Raises Unavailable.
        """
        ways = [way for way in self._run_ways if self._ways[0].together or not way.together]
        views, self._run_ways = _in_best_way(ways, lambda way: self._runs(wanted, way))
        return views

    def _runs(self, wanted: Sequence[RunId], way: Way) -> dict[RunId, RunView | None]:
        views: dict[RunId, RunView | None] = {}
        fields = f"{RUN_FIELDS} heartbeatAt" if way.more else RUN_FIELDS
        for chunk in _chunks(list(wanted), self._batches.lookups if way.together else 1):
            try:
                views |= _run_views(chunk, self._server.ask("query", [_run(run, fields) for run in chunk]))
            except Refused as error:
                if way.together or way.more:
                    raise
                LOGGER.info("W&B does not tell about run %s: %s", chunk[0], error.reason)
        return views

    def resources(self, entity: str, queues: Sequence[str]) -> dict[str, str]:
        """Give the resource that each queue's items run on, as ``gcp-vertex``; empty text where there is none.

        A queue without a config has none, and a server may not know the question: neither is an error. Queues of which W&B
        cannot tell now are missing. Raises Unavailable.
        """
        try:
            configs = self._configs(entity, queues)
            resources = self._default_configs(entity, [config for config in configs.values() if config], "resource")
        except Refused as error:
            LOGGER.info("W&B does not say what the queues' items run on: %s", error.reason)
            return dict.fromkeys(queues, "")
        return {
            name: str(resources[config].get("resource") or "") if config else ""
            for name, config in configs.items()
            if not config or config in resources
        }

    def queue_names(self, entity: str) -> list[str]:
        """Give the names of all queues of the entity. Raises Unavailable."""
        registry = _Registry(entity)
        registry.add("runQueues { name }")
        answer = self._server.ask("query", [registry.field()])[0]
        return [str(queue["name"]) for queue in self._queues(entity, self._project(entity, answer), answer)]

    def queue_configs(self, entity: str, queues: Sequence[str]) -> dict[str, QueueConfig | None]:
        """Give what these queues say about their items, None for one without a config.

        Queues of which W&B does not tell are missing. Raises Unavailable.
        """
        configs = self._configs(entity, queues)
        found = self._default_configs(entity, [config for config in configs.values() if config], CONFIG_FIELDS)
        return {
            name: _queue_config(found[config]) if config else None
            for name, config in configs.items()
            if not config or config in found
        }

    def _configs(self, entity: str, queues: Sequence[str]) -> dict[str, str]:
        """Give the id of each queue's default config, empty text for none; queues that W&B does not show are missing."""
        registry = _Registry(entity)
        names = registry.add_queues(queues, {}, 0, "id defaultResourceConfigID")
        project = self._project(entity, self._server.ask("query", [registry.field()])[0])
        shown = {name: project[alias] for name, alias in names.items() if isinstance(project.get(alias), dict)}
        return {name: str(queue.get("defaultResourceConfigID") or "") for name, queue in shown.items()}

    def _default_configs(self, entity: str, configs: Sequence[str], fields: str) -> dict[str, dict[str, Any]]:
        """Give these fields of each config that W&B tells about."""
        if not configs:
            return {}
        text = " ".join(f"c{i}: defaultResourceConfig(id: $c{i}) {{ {fields} }}" for i in range(len(configs)))
        ids = {f"c{i}": ("ID!", config) for i, config in enumerate(configs)}
        question = Field(f"entity(name: $entity) {{ {text} }}", {"entity": ("String!", entity), **ids})
        found = self._server.ask("query", [question])[0].value or {}
        return {config: found[f"c{i}"] for i, config in enumerate(configs) if found.get(f"c{i}")}

    # Mutations

    def create_agent(self, entity: str, queue_ids: Sequence[str], hostname: str, config: Mapping[str, Any]) -> str:
        """Make an agent that serves these queues and give its id. Raises Unavailable."""
        question = Field(
            "createLaunchAgent(input: { entityName: $entity, projectName: $project, runQueues: $queues, "
            "hostname: $hostname, agentConfig: $agentConfig, version: $version }) { launchAgentId }",
            {
                "entity": ("String!", entity),
                "project": ("String!", REGISTRY),
                "queues": ("[ID!]!", list(queue_ids)),
                "hostname": ("String!", hostname),
                "agentConfig": ("JSONString", json.dumps(config)),
                "version": ("String", f"vertex-launch@{self._version}"),
            },
        )
        answer = self._server.ask("mutation", [question], repeatable=False)[0]
        agent = (answer.value or {}).get("launchAgentId")
        if not agent:
            raise Unavailable(
                SERVICE, f"cannot make a launch agent for entity {entity}: {answer.error or 'no id given'}"
            )
        return str(agent)

    def pop(self, entity: str, queues: Sequence[str], agent: str, status: str = "") -> list[Popped]:
        """Lease one item for each entry of ``queues`` (a queue may stand there many times), in that order.

        With ``status`` the agent's status is refreshed in the same request. Raises Unavailable when no pop was answered.
        A pop whose answer is lost is not sent again: its lease brings the item back.
        """
        fields = [_status(agent, status)] if status else []
        fields += [
            Field(
                "popFromRunQueue(input: { entityName: $entity, projectName: $project, queueName: $queue, "
                "launchAgentId: $agent }) { runQueueItemId runSpec }",
                {
                    "entity": ("String!", entity),
                    "project": ("String!", REGISTRY),
                    "queue": ("String!", queue),
                    "agent": ("ID", agent),
                },
            )
            for queue in queues
        ]
        answers = self._batch(fields, self._batches.pops, repeatable=False)
        if status:
            _log_error("cannot refresh the agent's status", answers.pop(0))
        if queues and all(answer.lost for answer in answers):
            raise Unavailable(SERVICE, f"no answer to pops: {answers[0].error}")
        return [_popped(queue, answer) for queue, answer in zip(queues, answers, strict=True)]

    def ack(self, claims: Sequence[tuple[str, str]], within: float = math.inf) -> list[Ack]:
        """Claim items for runs: pairs of item id and run id; none is sent later than ``within`` seconds from now.

        A refusal may answer our own repeated request.
        """
        fields = [
            Field(
                "ackRunQueueItem(input: { runQueueItemId: $item, runName: $run }) { success }",
                {"item": ("ID!", item), "run": ("String!", run)},
            )
            for item, run in claims
        ]
        answers = self._batch(fields, self._batches.updates, within=within)
        for (item, _), answer in zip(claims, answers, strict=True):
            if answer.error:
                LOGGER.info("ack of item %s: %s", item, answer.error, extra={"item": item})
        return [
            Ack.UNKNOWN if answer.lost else Ack.ACCEPTED if _succeeded(answer) else Ack.REFUSED for answer in answers
        ]

    def fail(self, failures: Sequence[tuple[str, str]], phase: Phase, within: float = math.inf) -> list[bool]:
        """Fail items: pairs of item id and reason. Says of each whether W&B took it.

        None is sent later than ``within`` seconds from now.
        """
        return self._tell("failRunQueueItem", failures, phase, within)

    def warn(self, warnings: Sequence[tuple[str, str]], phase: Phase, within: float = math.inf) -> list[bool]:
        """Put warnings on items: pairs of item id and text. Says of each whether W&B took it.

        None is sent later than ``within`` seconds from now.
        """
        return self._tell("updateRunQueueItemWarning", warnings, phase, within)

    def _tell(self, mutation: str, messages: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        fields = [
            Field(
                f"{mutation}(input: {{ runQueueItemId: $item, message: $message, stage: $stage }}) {{ success }}",
                {
                    "item": ("ID!", item),
                    "message": ("String!", _shortened(message)),
                    "stage": ("String!", phase.value),
                },
            )
            for item, message in messages
        ]
        answers = self._batch(fields, self._batches.updates, within=within)
        for (item, _), answer in zip(messages, answers, strict=True):
            if not _succeeded(answer):
                LOGGER.warning("%s of item %s: %s", mutation, item, answer.error or "refused", extra={"item": item})
        return [_succeeded(answer) for answer in answers]

    def cancel_sweep(self, entity: str, project: str, sweep: str) -> bool:
        """End a sweep; False for one that has ended already or does not exist. Raises Unavailable where W&B cannot tell."""
        where = {"entity": ("String", entity), "project": ("String", project)}
        answer = self._server.ask("query", [_sweep(RunId(entity, project, sweep), "id state")])[0]
        found = (answer.value or {}).get("sweep")
        if not found and answer.error:
            raise Unavailable(SERVICE, f"cannot look up sweep {entity}/{project}/{sweep}: {answer.error}")
        if not found or str(found.get("state")).upper() not in LIVE_SWEEP:
            return False
        change = Field(
            "upsertSweep(input: { id: $id, state: $state, entityName: $entity, projectName: $project }) { sweep { name } }",
            {**where, "id": ("ID", found.get("id")), "state": ("String", "CANCELED")},
        )
        answer = self._server.ask("mutation", [change])[0]
        if not answer.value:
            reason = answer.error or "no sweep given"
            raise Unavailable(SERVICE, f"cannot cancel sweep {entity}/{project}/{sweep}: {reason}")
        return True

    def sweeps(self, wanted: Sequence[RunId]) -> dict[RunId, str]:
        """Give the state of sweeps, as RUNNING, empty text for one that does not exist; unknown ones are missing."""
        fields = [_sweep(one, "state") for one in wanted]
        states: dict[RunId, str] = {}
        for sweep, answer in zip(wanted, self._batch(fields, self._batches.lookups, kind="query"), strict=True):
            found = (answer.value or {}).get("sweep")
            if found or not answer.error:  # a null with an error beside it is not absence
                states[sweep] = str(found.get("state")).upper() if found else ""
        return states

    def set_status(self, agent: str, status: str) -> None:
        """Refresh the agent's status (POLLING or RUNNING), without which W&B shows its queues as idle."""
        _log_error("cannot refresh the agent's status", self._batch([_status(agent, status)], 1)[0])

    # Requests

    def _project(self, entity: str, answer: Result) -> Mapping[str, Any]:
        """Give the project that owns the queues. Raises Unavailable where W&B shows none."""
        if isinstance(answer.value, dict):
            return answer.value
        if answer.error:
            raise Unavailable(SERVICE, f"cannot see the launch queues of entity {entity}: {answer.error}; {ACCESS}")
        raise Unavailable(
            SERVICE,
            f"entity {entity} has no launch queues that this API key can see; {ACCESS}, and make a queue first",
        )

    def _queues(self, entity: str, project: Mapping[str, Any], answer: Result) -> list[dict[str, Any]]:
        """Give all queues of the entity. Raises Unavailable where W&B cannot tell: that is not the same as none."""
        if not isinstance(project.get("runQueues"), list):
            raise Unavailable(SERVICE, f"cannot tell the queues of entity {entity}: {answer.error or 'no list given'}")
        return dicts(project["runQueues"])

    def _agent(self, entity: str, agent: str, answer: Result) -> AgentView | None:
        """Give the agent, None when it is gone: a null with an error beside it is not absence, so then all are listed."""
        if isinstance(answer.value, dict):
            return _agent_view(answer.value)
        if not answer.error:
            return None
        registry = _Registry(entity)
        registry.add(f"launchAgents {{ {AGENT_FIELDS} }}")
        listed = self._project(entity, self._server.ask("query", [registry.field()])[0]).get("launchAgents")
        if not isinstance(listed, list):
            raise Unavailable(SERVICE, f"cannot look up launch agent {agent}: {answer.error}")
        return next((_agent_view(one) for one in dicts(listed) if one.get("id") == agent), None)

    def _batch(
        self,
        fields: Sequence[Field],
        size: int,
        *,
        kind: str = "mutation",
        repeatable: bool = True,
        within: float = math.inf,
    ) -> list[Result]:
        """Send operations in as few requests as their number allows; one request's failure does not spoil the others.

        A batch that the server refuses as a whole is sent again one by one; if that helps, so is everything after it.
        Nothing more is sent once the requests together took as long as one may.
        """
        until = time.monotonic() + min(self._patience, within)
        together = self._ways[0].together
        waiting, results = list(fields), list[Result]()
        while waiting and (not results or time.monotonic() < until):
            chunk = waiting[: size if together else 1]
            try:
                left = until - time.monotonic()
                results += self._server.ask(kind, chunk, repeatable=repeatable, within=left)
            except Refused as error:
                if len(chunk) > 1:
                    LOGGER.info("W&B refuses %d operations in one request: %s", len(chunk), error.reason)
                    together = False
                    continue
                results.append(Result(error=error.reason))
            except Unavailable as error:
                results += [Result(error=error.reason, lost=True)] * len(chunk)
            else:
                self._ways = tuple(way for way in self._ways if together or not way.together)
            waiting = waiting[len(chunk) :]
        unsent = Result(error="not sent, for the requests before it took too long", lost=True)
        return results + [unsent] * len(waiting)


def _in_best_way(ways: Sequence[Way], ask: Callable[[Way], T]) -> tuple[T, tuple[Way, ...]]:
    """Ask in the first of these ways that the server does not refuse; gives the answer and the ways that are left."""
    *better, last = ways
    for way in better:
        try:
            return ask(way), tuple(ways[ways.index(way) :])
        except Refused as error:
            LOGGER.info("W&B refuses a question, so a simpler one follows: %s", error.reason)
    return ask(last), (last,)


def _sweep(sweep: RunId, fields: str) -> Field:
    return Field(
        f"project(name: $project, entityName: $entity) {{ sweep(sweepName: $sweep) {{ {fields} }} }}",
        {"entity": ("String", sweep.entity), "project": ("String", sweep.project), "sweep": ("String!", sweep.id)},
    )


class _Registry:
    """Builds the selection on the project that owns the queues; remembers which alias stands for what."""

    def __init__(self, entity: str) -> None:
        self._parts: list[str] = []
        self._variables: dict[str, tuple[str, Any]] = {"registry": ("String!", REGISTRY), "entity": ("String!", entity)}
        self.aliases: dict[str, tuple[str, str]] = {}
        """Item id to the alias of its queue and its own."""
        self.queue_aliases: dict[str, str] = {}

    def add(self, part: str) -> None:
        self._parts.append(part)

    def add_queues(
        self, queues: Sequence[str], items: Mapping[str, str], peek: int, fields: str = "id"
    ) -> dict[str, str]:
        """Select these queues with what is wanted of each; gives queue name to alias."""
        names = list(dict.fromkeys([*queues, *items.values()]))
        self.queue_aliases = {name: f"q{i}" for i, name in enumerate(names)}
        for name, alias in self.queue_aliases.items():
            parts = [fields]
            if peek and name in queues:
                parts.append(f"runQueueItems(first: {peek}) {{ edges {{ node {{ id state }} }} }}")
            for item in [one for one, queue in items.items() if queue == name]:
                own = f"i{len(self.aliases)}"
                self.aliases[item] = (alias, own)
                self._variables[own] = ("ID!", item)
                parts.append(f"{own}: runQueueItem(id: ${own}) {{ {ITEM_FIELDS} }}")
            self._variables[alias] = ("String!", name)
            self.add(f"{alias}: runQueue(name: ${alias}) {{ {' '.join(parts)} }}")
        return self.queue_aliases

    def field(self) -> Field:
        return Field(f"project(name: $registry, entityName: $entity) {{ {' '.join(self._parts)} }}", self._variables)


def _queue_config(told: Mapping[str, Any]) -> QueueConfig:
    config = _json(told.get("config"))
    variables = {str(one.get("name")): _json(one.get("schema")) for one in dicts(told.get("templateVariables"))}
    return QueueConfig(str(told.get("resource") or ""), _json(config.get("resource_args")), variables)


def _json(value: Any) -> dict[str, Any]:
    """Give a JSON object that came as it is or as text, an empty one for anything else."""
    try:
        read = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return {}
    return read if isinstance(read, dict) else {}


def _popped(queue: str, answer: Result) -> Popped:
    value = answer.value
    if isinstance(value, dict) and value.get("runQueueItemId"):
        return Popped(queue, Item(str(value["runQueueItemId"]), queue, value.get("runSpec")))
    return Popped(queue, error=answer.error)


def _succeeded(answer: Result) -> bool:
    return isinstance(answer.value, dict) and answer.value.get("success") is True


def _log_error(what: str, answer: Result) -> None:
    if answer.error:
        LOGGER.warning("%s: %s", what, answer.error)


def _status(agent: str, status: str) -> Field:
    return Field(
        "updateLaunchAgent(input: { launchAgentId: $agent, agentStatus: $status }) { success }",
        {"agent": ("ID!", agent), "status": ("String", status)},
    )


def _run(run: RunId, fields: str = RUN_FIELDS) -> Field:
    return Field(
        f"project(name: $project, entityName: $entity) {{ run(name: $run) {{ {fields} }} }}",
        {"project": ("String!", run.project), "entity": ("String!", run.entity), "run": ("String!", run.id)},
    )


def _agent(agent: str) -> Field:
    return Field(f"launchAgent(id: $agent) {{ {AGENT_FIELDS} }}", {"agent": ("ID!", agent)})


def _agent_view(agent: Mapping[str, Any]) -> AgentView:
    return AgentView(
        id=str(agent.get("id", "")),
        hostname=str(agent.get("hostname") or ""),
        stop_polling=bool(agent.get("stopPolling")),
        queues=tuple(str(queue) for queue in agent.get("runQueues") or ()),
    )


def _item_views(project: Mapping[str, Any], aliases: Mapping[str, tuple[str, str]]) -> dict[str, ItemView]:
    views = {}
    for item, (queue, own) in aliases.items():
        node = (project.get(queue) or {}).get(own)
        if node:
            views[item] = ItemView(state=str(node.get("state") or ""), run=str(node.get("associatedRunId") or ""))
    return views


def _run_views(runs: Sequence[RunId], answers: Sequence[Result]) -> dict[RunId, RunView | None]:
    """Give the runs, None for one that does not exist; further answers are of no concern."""
    views: dict[RunId, RunView | None] = {}
    for run, answer in zip(runs, answers, strict=False):
        found = answer.value.get("run") if isinstance(answer.value, dict) else None
        if isinstance(found, dict) and (found.get("state") or not answer.error):
            heartbeat = _unix_seconds(found.get("heartbeatAt"))
            views[run] = RunView(str(found.get("state") or "").lower(), bool(found.get("stopped")), heartbeat)
        elif not (answer.error or answer.lost):
            views[run] = None
    return views


def _unix_seconds(text: Any) -> float | None:
    """Read a time as W&B writes it (RFC 3339; without a zone it is UTC); None for what is none, and for Go's zero time."""
    try:
        at = datetime.fromisoformat(text.upper())
    except (AttributeError, ValueError):
        return None
    seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    return seconds if seconds > 0 else None


def _shortened(text: str) -> str:
    """Give a message that is not too long: its beginning and its end, and between them how much is missing."""
    if len(text) <= LONGEST_MESSAGE:
        return text
    mark = "\n[… {} characters are left out here …]\n"
    kept = (LONGEST_MESSAGE - len(mark.format(len(text)))) // 2
    return text[:kept] + mark.format(len(text) - 2 * kept) + text[-kept:]


def _queued(queue: Any, peek: int) -> Queued:
    edges = ((queue or {}).get("runQueueItems") or {}).get("edges")
    nodes = [edge.get("node") or {} for edge in dicts(edges)]
    pending = tuple(str(node.get("id")) for node in nodes if node.get("state") == "PENDING")
    return Queued(pending, complete=isinstance(edges, list) and len(nodes) < peek)


def _chunks(values: list[T], size: int) -> Iterator[list[T]]:
    return (values[i : i + size] for i in range(0, len(values), size))
