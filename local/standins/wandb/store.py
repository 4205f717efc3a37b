"""The memory of the local W&B: users, projects, queues, runs, sweeps, and the requests so far."""

from __future__ import annotations

import json
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

from local.standins.wandb.artifacts import Artifact, Artifacts
from local.standins.wandb.contents import md5
from local.standins.wandb.errors import not_found, permission_denied
from local.standins.wandb.launch import Agent, Item, Launch, Queue
from local.standins.wandb.runs import Run, Runs
from local.standins.wandb.sweeps import Sweep, Sweeps

REMEMBERED_REQUESTS = 100_000
RUN = "entity project name display_name state stopped exit_code summary heartbeat_at"
ARTIFACT = "id path state aliases logged_by used_by"
SWEEP = "entity project name state runs"
"""What a snapshot shows of these."""


@dataclass(frozen=True)
class User:
    """A person or a service account. ``entity`` is the default entity of its runs."""

    id: str
    username: str
    entity: str
    flags: str = "{}"

    @property
    def name(self) -> str:
        """The display name."""
        return self.username

    @property
    def email(self) -> str:
        """An address that does not exist."""
        return f"{self.username}@localhost"


@dataclass(frozen=True)
class Entity:
    """A team, or the personal entity of the user with its name."""

    id: str
    name: str
    is_team: bool
    members: frozenset[str]


@dataclass(frozen=True)
class Project:
    """A project of an entity."""

    id: str
    entity_name: str
    name: str
    created_at: float

    @property
    def internal_id(self) -> str:
        """The id again: clients ask for both, and convert this one to a number."""
        return self.id


@dataclass(frozen=True)
class Request:
    """One HTTP request. ``operations`` are its top-level GraphQL fields, including repeated ones. Sizes are bytes."""

    at: float
    path: str
    operations: tuple[str, ...]
    received: int
    sent: int
    status: int
    seconds: float


class Store:
    """The server's memory. Tests read ``queues``, ``items``, ``agents``, ``runs``, ``artifacts``, ``sweeps``, ``operations``.

    ``lock`` is held for each field of a mutation and for each query as a whole.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        lease: float,
        api_keys: Mapping[str, str],
        teams: Mapping[str, Collection[str]],
        default_entities: Mapping[str, str],
        ack_after_lease: bool,
        crash_after: float,
        deleted_by_name: bool = True,
    ) -> None:
        self.clock = clock
        self.lock = threading.RLock()
        self.launch = Launch(clock, self.lock, lease=lease, ack_after_lease=ack_after_lease)
        self.runs = Runs(clock, self.lock, crash_after=crash_after)
        self.artifacts = Artifacts(clock, self.lock, deleted_by_name=deleted_by_name)
        self.sweeps = Sweeps(clock, self.lock, self.runs, self.launch)
        self.projects: dict[tuple[str, str], Project] = {}
        self.operations: deque[Request] = deque(maxlen=REMEMBERED_REQUESTS)
        names = sorted({*api_keys.values(), *(name for members in teams.values() for name in members)})
        numbers = count(1)
        self.users = {name: User(str(next(numbers)), name, default_entities.get(name, name)) for name in names}
        personal = [Entity(str(next(numbers)), name, False, frozenset({name})) for name in names]
        shared = [Entity(str(next(numbers)), name, True, frozenset(members)) for name, members in teams.items()]
        self.entities = {entity.name: entity for entity in (*personal, *shared)}
        self._keys = dict(api_keys)

    @property
    def queues(self) -> dict[str, Queue]:
        """Run queues by id."""
        return self.launch.queues

    @property
    def items(self) -> dict[str, Item]:
        """Run queue items by id."""
        return self.launch.items

    @property
    def agents(self) -> dict[str, Agent]:
        """Launch agents by id."""
        return self.launch.agents

    def push(self, entity: str, queue: str, run_spec: Mapping[str, Any], **how: Any) -> str:
        """Push an item without a client, see ``Launch.push``. Return its id."""
        return self.launch.push(entity, queue, run_spec, **how)

    def create_queue(
        self,
        entity: str,
        name: str,
        *,
        resource: str = "gcp-vertex",
        resource_args: Mapping[str, Any] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        prioritization_mode: str = "DISABLED",
    ) -> Queue:
        """Create a queue without a client. ``resource_args`` are the arguments of ``resource``."""
        with self.lock:
            config = {"resource_args": {resource: resource_args or {}}}
            made = self.launch.create_config(self.entity(entity).name, resource, config, template_variables)
            queue = self.launch.create_queue(entity, name, prioritization_mode=prioritization_mode, config_id=made.id)
            self.project(entity, queue.project)
            return queue

    def create_artifact(
        self, entity: str, project: str, kind: str, name: str, files: Mapping[str, bytes], **details: Any
    ) -> Artifact:
        """Create a version of an artifact without a client, or return the version with the same files.

        It belongs to a member of the entity. For ``details`` see ``Artifacts.create``.
        """
        with self.lock:
            self.project(entity, project)
            owner = {"username": min(self.entity(entity).members)}
            digest = md5(repr(sorted(files.items())).encode())
            made = self.artifacts.create(entity, project, kind, name, digest, **{**owner, **details})
            return self.artifacts.put(made, files)

    def state(self, item_id: str) -> str:
        """Return PENDING, LEASED, CLAIMED or FAILED."""
        return self.launch.item(item_id).state(self.clock())

    def user_of(self, api_key: str) -> User | None:
        """Return the user of a key."""
        username = self._keys.get(api_key)
        return self.users[username] if username is not None else None

    def entity(self, name: str) -> Entity:
        """Return the entity with a name. Raise Refused."""
        if name not in self.entities:
            raise not_found(f"entity {name}")
        return self.entities[name]

    def entity_for(self, user: User, name: str | None) -> str:
        """Return an entity that ``user`` can write to, by default the user's own. Raise Refused."""
        entity = self.entity(name or user.entity)
        if user.username not in entity.members:
            raise permission_denied()
        return entity.name

    def project(self, entity: str, name: str) -> tuple[Project, bool]:
        """Return the project, which is created if necessary, and whether it is new."""
        with self.lock:
            inserted = (entity, name) not in self.projects
            if inserted:
                self.projects[entity, name] = Project(str(len(self.projects) + 1), entity, name, self.clock())
            return self.projects[entity, name], inserted

    def set_sweep(self, entity: str, project: str, name: str, state: str) -> None:
        """Create a sweep that only has a state and a scheduler, or change the state of a sweep."""
        with self.lock:
            self.project(entity, project)
            now = self.clock()
            known = self.sweeps.get((entity, project, name))
            scheduler = {"run_spec": json.dumps({"run_id": name})}
            self.sweeps.keep(known or Sweep(entity, project, name, state, now, now, scheduler=scheduler), state)

    def asked(self) -> Counter[str]:
        """Return how often each operation was requested; each field of a batch counts."""
        return Counter(operation for request in list(self.operations) for operation in request.operations)

    def snapshot(self) -> dict[str, Any]:
        """Return what a live table shows, in JSON types."""
        with self.lock:
            now = self.clock()
            return {
                "now": now,
                "queues": [_queue(queue, now) for queue in self.queues.values()],
                "runs": [_shown(run, RUN) for run in self.runs.all()],
                "agents": [asdict(agent) for agent in self.agents.values()],
                "artifacts": [{**_shown(one, ARTIFACT), "type": one.of.kind} for one in self.artifacts],
                "sweeps": [_shown(sweep, SWEEP) for sweep in self.sweeps.values()],
                "requests": len(self.operations),
                "operations": dict(self.asked()),
            }


def _queue(queue: Queue, now: float) -> dict[str, Any]:
    return {
        "id": queue.id,
        "entity": queue.entity,
        "name": queue.name,
        "resource": queue.config.resource if queue.config else None,
        "items": [_item(item, now) for item in queue.items.values()],
    }


def _item(item: Item, now: float) -> dict[str, Any]:
    return {
        "id": item.id,
        "name": item.run_spec.get("name"),
        "project": item.run_spec.get("project"),
        "state": item.state(now),
        "run": item.associated_run_id,
        "agent": item.launch_agent_id,
        "priority": item.priority,
        "pops": item.pops,
        "created_at": item.created_at,
        "error": asdict(item.error) if item.error else None,
        "warnings": [asdict(warning) for warning in item.warnings],
    }


def _shown(thing: object, keys: str) -> dict[str, Any]:
    return {key: getattr(thing, key) for key in keys.split()}
