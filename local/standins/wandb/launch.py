"""Run queues, their items and the agents that pop them, in memory."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal, TypeVar

from local.standins.wandb import run_spec
from local.standins.wandb.errors import conflict, invalid, not_found
from local.standins.wandb.run_spec import ResourceConfig

LAUNCH_PROJECT = "model-registry"
"""The project of an entity that contains its run queues."""

DEFAULT_PRIORITY = 2
"""The priority ``medium``; ``critical`` is 0 and pops first, ``low`` is 3."""

NOT_ELIGIBLE = "item already claimed or not eligible to be claimed"
"""W&B's message for an ack that comes too late."""

T = TypeVar("T")


@dataclass
class ItemError:
    """The reason why an item failed (``stage`` agent or run), or a warning on it."""

    message: str
    stage: str
    file_paths: list[str]


@dataclass
class Item:
    """A run queue item. ``settled`` is its final state; without one the lease decides. Times are Unix seconds."""

    id: str
    queue_id: str
    run_spec: dict[str, Any]
    priority: int
    created_at: float
    author: str
    settled: Literal["CLAIMED", "FAILED"] | None = None
    leased_until: float = 0.0
    launch_agent_id: str | None = None
    associated_run_id: str | None = None
    error: ItemError | None = None
    warnings: list[ItemError] = field(default_factory=list)
    pops: int = 0
    raw: str | None = None
    """What a pop sends as its run spec instead of ``run_spec``, valid JSON or not."""

    def state(self, now: float) -> str:
        """Return PENDING, LEASED, CLAIMED or FAILED."""
        return self.settled or ("LEASED" if now < self.leased_until else "PENDING")


@dataclass
class Queue:
    """A run queue. ``items`` are in the order of their pushes; ``waiting`` are those that can still be popped."""

    id: str
    entity: str
    project: str
    name: str
    access: str
    created_at: float
    prioritization_mode: str = "DISABLED"
    config: ResourceConfig | None = None
    external_links: Mapping[str, Any] = field(default_factory=dict)
    items: dict[str, Item] = field(default_factory=dict)
    waiting: dict[str, Item] = field(default_factory=dict)

    @property
    def default_resource_config_id(self) -> str | None:
        """The id of the config, if the queue has one."""
        return self.config.id if self.config else None

    def next_item(self, now: float) -> Item | None:
        """Return the next item without a lease: by priority if the queue has priorities, else the oldest."""
        free = (item for item in self.waiting.values() if item.state(now) == "PENDING")
        if self.prioritization_mode == "DISABLED":
            return next(free, None)
        return min(free, key=lambda item: item.priority, default=None)


@dataclass
class Agent:
    """A launch agent. ``run_queues`` are ids. ``stop_polling`` is a person's request to stop."""

    id: str
    entity: str
    project: str
    name: str
    hostname: str
    run_queues: list[str]
    created_at: float
    heartbeat_at: float
    agent_config: Any = None
    version: str | None = None
    agent_status: str = "POLLING"
    stop_polling: bool = False


class Launch:
    """All queues, items and agents. Every method is atomic and can raise Refused.

    With ``ack_after_lease`` an item can still be acked after its lease, until it is popped again.
    """

    def __init__(
        self, clock: Callable[[], float], lock: threading.RLock, *, lease: float, ack_after_lease: bool = True
    ) -> None:
        self.clock = clock
        self.lease = lease
        self.ack_after_lease = ack_after_lease
        self.queues: dict[str, Queue] = {}
        self.items: dict[str, Item] = {}
        self.agents: dict[str, Agent] = {}
        self.configs: dict[str, ResourceConfig] = {}
        self._lock = lock
        self._numbers = count(1001)

    def create_config(
        self, entity: str, resource: str, config: Mapping[str, Any], template_variables: Mapping[str, Any] | None = None
    ) -> ResourceConfig:
        """Create a default resource config. ``config`` is ``{"resource_args": {<resource>: {...}}}``."""
        variables = run_spec.template_variables(template_variables or {})
        with self._lock:
            made = ResourceConfig(self._id("DefaultResourceConfig"), entity, resource, config, variables)
            self.configs[made.id] = made
            return made

    def create_queue(
        self,
        entity: str,
        name: str,
        *,
        project: str = LAUNCH_PROJECT,
        access: str = "PROJECT",
        prioritization_mode: str = "DISABLED",
        config_id: str | None = None,
    ) -> Queue:
        """Create a queue with a new name."""
        with self._lock:
            if self._named(entity, project, name):
                raise conflict(f'run queue "{name}" already exists in {entity}/{project}')
            config = self._known(self.configs, config_id, "default resource config") if config_id else None
            made = Queue(self._id("RunQueue"), entity, project, name, access, self.clock(), prioritization_mode, config)
            self.queues[made.id] = made
            return made

    def upsert_queue(
        self,
        entity: str,
        name: str,
        config: ResourceConfig,
        *,
        project: str = LAUNCH_PROJECT,
        prioritization_mode: str | None = None,
        external_links: Mapping[str, Any] | None = None,
    ) -> Queue:
        """Create a queue, or change the config of an existing one. Its items do not change."""
        with self._lock:
            queue = self._named(entity, project, name) or self.create_queue(entity, name, project=project)
            queue.config = config
            queue.prioritization_mode = prioritization_mode or queue.prioritization_mode
            queue.external_links = external_links or queue.external_links
            return queue

    def delete_queues(self, ids: Collection[str]) -> None:
        """Delete queues with all their items."""
        with self._lock:
            queues = [self._known(self.queues, id_, "run queue") for id_ in ids]
            for queue in queues:
                del self.queues[queue.id]
                for id_ in queue.items:
                    del self.items[id_]

    def queue(self, entity: str, project: str, name: str) -> Queue:
        """Return the queue with a name."""
        with self._lock:
            if queue := self._named(entity, project, name):
                return queue
            raise not_found(f'run queue "{name}" of {entity}/{project}')

    def queues_of(self, entity: str, project: str) -> list[Queue]:
        """Return the project's queues, the oldest first."""
        with self._lock:
            return [queue for queue in self.queues.values() if (queue.entity, queue.project) == (entity, project)]

    def push(
        self,
        entity: str,
        queue: str,
        spec: Mapping[str, Any],
        *,
        project: str = LAUNCH_PROJECT,
        priority: int | None = None,
        template_variables: Mapping[str, Any] | None = None,
        author: str = "",
    ) -> str:
        """Push a run spec as clients do, merged with the config and the variables. Return the item's id."""
        with self._lock:
            return self.push_to(
                self.queue(entity, project, queue),
                spec,
                priority=priority,
                template_variables=template_variables,
                author=author,
            ).id

    def push_to(
        self,
        queue: Queue,
        spec: Mapping[str, Any],
        *,
        priority: int | None = None,
        template_variables: Mapping[str, Any] | None = None,
        author: str = "",
    ) -> Item:
        """Push to a queue."""
        if priority is not None and priority not in range(4):
            raise invalid(f"priority {priority} is not one of 0 (critical), 1 (high), 2 (medium), 3 (low)")
        with self._lock:
            resolved = run_spec.resolve(spec, queue.config, template_variables)
            if author:
                resolved.setdefault("author", author)
            chosen = DEFAULT_PRIORITY if priority is None else priority
            item = Item(self._id("RunQueueItem"), queue.id, resolved, chosen, self.clock(), author)
            self.items[item.id] = queue.items[item.id] = item
            queue.waiting[item.id] = item
            return item

    def push_raw(self, queue: Queue, name: str, text: str) -> Item:
        """Push an item whose run spec is ``text`` as it is. Only the name is known of it."""
        with self._lock:
            item = self.push_to(queue, {"name": name})
            item.raw = text
            return item

    def pop(self, queue: Queue, agent_id: str | None) -> Item | None:
        """Lease the next item, or return None if no item waits. A leased item keeps its place."""
        with self._lock:
            now = self.clock()
            if agent_id is not None:
                self.agent(agent_id).heartbeat_at = now
            item = queue.next_item(now)
            if item is not None:
                item.leased_until = now + self.lease
                item.launch_agent_id = agent_id
                item.pops += 1
            return item

    def ack(self, item: Item, run_name: str) -> bool:
        """Claim an item for the run ``run_name``. Return False if it is too late."""
        with self._lock:
            state = item.state(self.clock())
            if state != "LEASED" and not (state == "PENDING" and self.ack_after_lease):
                return False
            item.associated_run_id = run_name
            self._settle(item, "CLAIMED")
            return True

    def fail(self, item: Item, error: ItemError) -> None:
        """Fail an item in any state. A failed item keeps its reason."""
        with self._lock:
            item.error = item.error or error
            self._settle(item, "FAILED")

    def warn(self, item: Item, warning: ItemError) -> None:
        """Add a warning to an item."""
        with self._lock:
            item.warnings.append(warning)

    def item(self, id_: str) -> Item:
        """Return the item with an id. Ids are case-sensitive."""
        return self._known(self.items, id_, "run queue item")

    def delete_item(self, queue_id: str, id_: str) -> None:
        """Remove an item from its queue."""
        with self._lock:
            queue = self._known(self.queues, queue_id, "run queue")
            item = self._known(queue.items, id_, "run queue item")
            self._forget(item)
            del queue.items[id_], self.items[id_]

    def create_agent(
        self,
        entity: str,
        hostname: str,
        run_queues: Collection[str],
        *,
        project: str = LAUNCH_PROJECT,
        agent_config: Any = None,
        version: str | None = None,
    ) -> Agent:
        """Register an agent for queues of its entity, given by id."""
        with self._lock:
            queues = [self._known(self.queues, id_, "run queue") for id_ in run_queues]
            if strange := [queue.name for queue in queues if queue.entity != entity]:
                raise invalid(f"queues of another entity than {entity}: {', '.join(strange)}")
            now, number = self.clock(), next(self._numbers)
            made = Agent(
                _relay_id("LaunchAgent", number),
                entity,
                project,
                f"agent{number}",
                hostname,
                list(run_queues),
                now,
                now,
                agent_config,
                version,
            )
            self.agents[made.id] = made
            return made

    def agent(self, id_: str) -> Agent:
        """Return the agent with an id."""
        return self._known(self.agents, id_, "launch agent")

    def agents_of(self, entity: str, project: str) -> list[Agent]:
        """Return the project's agents, the oldest first."""
        with self._lock:
            return [agent for agent in self.agents.values() if (agent.entity, agent.project) == (entity, project)]

    def _named(self, entity: str, project: str, name: str) -> Queue | None:
        return next((queue for queue in self.queues_of(entity, project) if queue.name == name), None)

    def _settle(self, item: Item, state: Literal["CLAIMED", "FAILED"]) -> None:
        item.settled = state
        self._forget(item)

    def _forget(self, item: Item) -> None:
        self.queues[item.queue_id].waiting.pop(item.id, None)

    def _known(self, things: Mapping[str, T], id_: str, what: str) -> T:
        if id_ not in things:
            raise not_found(f'{what} "{id_}"')
        return things[id_]

    def _id(self, kind: str) -> str:
        return _relay_id(kind, next(self._numbers))


def _relay_id(kind: str, number: int) -> str:
    return base64.b64encode(f"{kind}:{number}".encode()).decode()
