"""W&B: items that are leased and claimed, runs that show up a little late, agents that people stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.scheduler import Program, Service
from tests.support.fakes import ENTITY
from vertex_launch.model import (
    Ack,
    AgentView,
    Item,
    ItemView,
    Kind,
    Phase,
    Popped,
    Question,
    Queued,
    RunId,
    RunView,
    WandbState,
)

if TYPE_CHECKING:
    from tests.simulation.world import World

K = TypeVar("K")
V = TypeVar("V")
QUEUES = ("cpu", "gpu")


@dataclass
class Told:
    """A warning as it was put on an item by a program, ``unheard`` if that never got the answer."""

    when: float
    text: str
    phase: Phase
    by: Program
    unheard: bool = False

    @property
    def final(self) -> bool:
        """Whether it says how a job ended, which has a link to it."""
        return "/training/" in self.text


@dataclass
class Entry:
    """A queue item as it really is."""

    id: str
    queue: str
    spec: dict[str, Any]
    pushed: float
    kind: Kind = Kind.JOB
    hopeless: bool = False
    """Whether it can never start."""
    refused: bool = False
    """Whether Vertex AI refuses its job."""
    quota: bool = True
    """Whether Vertex AI ever has room for it."""
    key: str = ""
    """The key that it brings."""
    state: str = "PENDING"
    leased_until: float = 0.0
    leased_by: Program | None = None
    run: str = ""
    owner: str = ""
    """On whose behalf it was claimed."""
    warnings: list[Told] = field(default_factory=list)


@dataclass
class Life:
    """A time in which a run was alive: in which job, from when to when, and when W&B begins to show it."""

    job: str
    began: float
    shown: float
    ended: float = 0.0


@dataclass
class Run:
    """A W&B run as it really is: ``pending`` if it exists though nothing has reported as it yet."""

    pending: bool = False
    lives: list[Life] = field(default_factory=list)
    stopped: float = 0.0
    """When a person asked it to stop; 0 for never."""


class Wandb(Service):
    """The server. ``silent`` if it shows no heartbeats, ``eager`` if an ack makes the run, which is then pending."""

    name = "W&B"

    def __init__(self, world: World, *, silent: bool, eager: bool) -> None:
        self._world = world
        self._scheduler = world.scheduler
        self._eager = eager
        self.silent = silent
        self.entries: dict[str, Entry] = {}
        self.runs_made: dict[RunId, Run] = {}
        self.agents: dict[str, AgentView] = {}
        self.agents_stopped = 0.0
        self.sweeps: dict[str, bool] = {}
        """Whether the sweep is cancelled."""

    # As it is

    def state(self, entry: Entry) -> str:
        if entry.state == "LEASED" and self._scheduler.now >= entry.leased_until:
            entry.state, entry.leased_by = "PENDING", None
        return entry.state

    def run(self, run: RunId) -> Run:
        return self.runs_made.setdefault(run, Run())

    def started(self, run: RunId, since: float) -> bool:
        """Tell whether the run was alive after ``since``, as far as W&B will ever tell."""
        return any(self.silent or (life.ended or self._scheduler.now) >= since for life in self.run(run).lives)

    def pop_one(self, queue: str) -> Popped:
        program = self._scheduler.program
        for entry in self.entries.values():
            if entry.queue == queue and self.state(entry) == "PENDING":
                lease = self._world.lease()
                entry.state, entry.leased_until, entry.leased_by = "LEASED", self._scheduler.now + lease, program
                self._scheduler.tell(program.name, "  leases %s for %.0f s", entry.id, lease)
                return Popped(queue, Item(entry.id, queue, entry.spec))
        return Popped(queue)

    def ack_one(self, item: str, run: str) -> Ack:
        entry, program = self.entries[item], self._scheduler.program
        if self.state(entry) not in ("PENDING", "LEASED"):
            self._scheduler.tell(program.name, "  ack of %s refused, it is %s", item, entry.state)
            return Ack.REFUSED
        self._world.invariants.on_ack(program, entry, run)
        entry.state, entry.run, entry.owner = "CLAIMED", run, program.owner
        self.run(RunId(ENTITY, entry.spec["project"], run)).pending |= self._eager
        self._scheduler.tell(program.name, "  claims %s for run %s", item, run)
        return Ack.ACCEPTED

    # What people do

    def stop(self, run: RunId) -> None:
        self.run(run).pending = True
        self.run(run).stopped = self.run(run).stopped or self._scheduler.now
        self._scheduler.tell("a person", "stops run %s", run)

    def stop_agents(self) -> None:
        self.agents = {name: replace(agent, stop_polling=True) for name, agent in self.agents.items()}
        self.agents_stopped = self._scheduler.now
        self._scheduler.tell("a person", "stops the agents")

    # What a pass asks, see vertex_launch.services.Queue

    def default_entity(self) -> str:
        return ENTITY

    def ask(self, question: Question) -> WandbState:
        program = self._scheduler.program
        program.asked = self._scheduler.now
        program.redact.add(self._world.keys[-1])  # for whoever asks W&B has read the key
        return WandbState(
            viewer_entity=ENTITY if question.viewer else "",
            agent=self.agents.get(question.agent),
            agents=() if question.agent else tuple(self.agents.values()),
            queues={name: f"id-{name}" for name in QUEUES},
            items=self.items(question.entity, question.items),
            runs=self._sure((run, self._run_view(run, heartbeat=False)) for run in question.runs),
            queued={name: self._queued(name, question.peek) for name in question.queues},
        )

    def _queued(self, queue: str, peek: int) -> Queued:
        shown = [entry for entry in self.entries.values() if entry.queue == queue][:peek]
        pending = tuple(entry.id for entry in shown if self.state(entry) == "PENDING")
        return Queued(pending, complete=len(shown) < peek)

    def _run_view(self, run: RunId, *, heartbeat: bool) -> RunView | None:
        found, now = self.run(run), self._scheduler.now
        shown = [life for life in found.lives if life.shown <= now]
        if not shown:
            return RunView("pending", bool(found.stopped)) if found.pending else None
        last = shown[-1]
        state = "finished" if last.ended and last.ended + 5 < now else "running"
        return RunView(state, bool(found.stopped), last.ended or now if heartbeat and not self.silent else None)

    def _sure(self, views: Iterable[tuple[K, V]]) -> dict[K, V]:
        """Leave out what W&B cannot tell about just now."""
        return {one: view for one, view in views if not self._world.troubled or self._world.random.random() > 0.1}

    def items(self, entity: str, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        entries = [self.entries[one] for one in wanted if one in self.entries]
        return self._sure((one.id, ItemView(self.state(one), one.run)) for one in entries)

    def runs(self, wanted: Sequence[RunId]) -> Mapping[RunId, RunView | None]:
        return self._sure((run, self._run_view(run, heartbeat=True)) for run in wanted)

    def resources(self, entity: str, queues: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(queues, "gcp-vertex")

    def create_agent(self, entity: str, queue_ids: Sequence[str], hostname: str, config: Mapping[str, Any]) -> str:
        name = f"agent{len(self.agents) + 1}"
        self.agents[name] = AgentView(name, hostname, stop_polling=False, queues=tuple(queue_ids))
        return name

    def pop(self, entity: str, queues: Sequence[str], agent: str, status: str = "") -> list[Popped]:
        self._world.invariants.on_pop(self._scheduler.program, self.agents[agent])
        return [self.pop_one(queue) for queue in queues]

    def ack(self, claims: Sequence[tuple[str, str]], within: float) -> list[Ack]:
        if self._too_late(within):
            return [Ack.UNKNOWN] * len(claims)
        return [self.ack_one(item, run) for item, run in claims]

    def fail(self, failures: Sequence[tuple[str, str]], phase: Phase = Phase.AGENT, within: float = 1e9) -> list[bool]:
        if self._too_late(within):
            return [False] * len(failures)
        program = self._scheduler.program
        for item, message in failures:
            self._world.invariants.on_fail(program, self.entries[item], message)
            self._scheduler.tell(program.name, "  fails %s (%s): %s", item, phase, message)
            self.entries[item].state = "FAILED"
        return [True] * len(failures)

    def warn(self, warnings: Sequence[tuple[str, str]], phase: Phase = Phase.AGENT, within: float = 1e9) -> list[bool]:
        if self._too_late(within):
            return [False] * len(warnings)
        program = self._scheduler.program
        for item, text in warnings:
            self._world.invariants.on_warn(program, self.entries[item], text, phase)
            self._scheduler.tell(program.name, "  warns %s (%s): %s", item, phase, text)
            self.entries[item].warnings.append(Told(self._scheduler.now, text, phase, program))
        return [True] * len(warnings)

    def cancel_sweep(self, entity: str, project: str, sweep: str) -> bool:
        self._world.invariants.on_sweep(sweep)
        was, self.sweeps[sweep] = self.sweeps[sweep], True
        return not was

    def set_status(self, agent: str, status: str) -> None:
        """Refresh the agent's status."""

    # What is heard when that goes wrong

    def _too_late(self, within: float) -> bool:
        """Tell whether the program was held up for so long that the request is not to be sent any more."""
        return self._scheduler.now > self._scheduler.program.called + within

    def refuse(self, operation: str, *args: Any) -> Any:
        answers = {"ack": Ack.UNKNOWN, "fail": False, "warn": False}
        return [answers[operation]] * len(args[0]) if operation in answers else super().refuse(operation)

    def lose(self, operation: str, *args: Any) -> Any:
        """An ack is tried again, and then refused what it was given, or nothing is heard of it either."""
        program = self._scheduler.program
        for told in [told for entry in self.entries.values() for told in entry.warnings]:
            told.unheard |= told.by is program and told.when >= program.called
        refused = operation == "ack" and self._world.random.random() < 0.5
        return [Ack.REFUSED] * len(args[0]) if refused else self.refuse(operation, *args)
