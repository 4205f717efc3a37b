"""W&B: leases of any length, runs that show up a little late, and answers that get lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.simulation.scheduler import Program
from tests.support import memory
from tests.support.memory import ENTITY
from vertex_launch.model import Ack, Phase, Popped, Question, RunId, RunView, WandbState

if TYPE_CHECKING:
    from tests.simulation.world import World


@dataclass
class Warned:
    """A warning that a program put on an item; ``unheard`` if the program never got the answer."""

    when: float
    text: str
    by: Program
    unheard: bool = False

    @property
    def final(self) -> bool:
        """Whether it reports how a job ended, with a link to the job."""
        return "/training/" in self.text


@dataclass(eq=False)
class Entry(memory.QueueItem):
    """A queue item and what the simulation knows about it."""

    pushed: float = 0.0
    hopeless: bool = False  # whether it can never start
    refused: bool = False  # whether Vertex AI refuses its job
    quota: bool = True  # whether Vertex AI ever has room for it
    key: str = ""  # the key that it brings
    refusals: list[tuple[Program, float]] = field(
        default_factory=list
    )  # which programs heard of no room for it, and when
    leases: dict[Program, float] = field(default_factory=dict)  # when the last lease of each program ends
    owner: str = ""  # the owner of the program that claimed it
    warned: list[Warned] = field(default_factory=list)

    def leased_to(self, program: Program) -> bool:
        """Return whether what the program sent last was sent while it held a lease."""
        return program.called < self.leases.get(program, 0)


@dataclass
class Life:
    """A time in which a run was alive: in which job, from when to when, and from when on W&B shows it."""

    job: str
    began: float
    shown: float
    ended: float = 0.0


@dataclass
class Run:
    """A W&B run as it really is; ``pending`` if it exists although no program has reported as it yet."""

    pending: bool = False
    lives: list[Life] = field(default_factory=list)
    stopped: float = 0.0  # when a person asked it to stop; 0 for never


class Wandb(memory.Wandb[Entry]):
    """The server. ``silent`` if it shows no heartbeats, ``eager`` if an ack creates the run, which is then pending."""

    def __init__(self, world: World, *, silent: bool, eager: bool) -> None:
        super().__init__(world.scheduler.clock, Entry, world.lease)
        self._world = world
        self._scheduler = world.scheduler
        self._eager = eager
        self.silent = silent
        self.runs_made: dict[RunId, Run] = {}
        self.agents_stopped = 0.0

    def run(self, run: RunId) -> Run:
        return self.runs_made.setdefault(run, Run())

    def started(self, run: RunId, since: float) -> bool:
        """Return whether the run was alive after ``since``, as far as W&B will ever show."""
        return any(self.silent or (life.ended or self._scheduler.now) >= since for life in self.run(run).lives)

    # What people do

    def stop_run(self, run: RunId) -> None:
        self.run(run).pending = True
        self.run(run).stopped = self.run(run).stopped or self._scheduler.now
        self._scheduler.note("a person", "stops run %s", run)
        self._scheduler.happens("a person stops a run")

    def stop_agents(self) -> None:
        for agent in self.agents:
            self.stop(agent)
        self.agents_stopped = self._scheduler.now
        self._scheduler.note("a person", "stops the agents")
        self._scheduler.happens("a person stops the agents")

    # What programs do

    def lease(self, queue: str) -> Popped:
        popped, program = super().lease(queue), self._scheduler.program
        if popped.item:
            entry = self.contents[popped.item.id]
            entry.leases[program] = entry.leased_until
            self._world.people.on_lease(program, entry)
            self._scheduler.note(program.name, "  leases %s until %.0f", entry.id, entry.leased_until)
        return popped

    def claim(self, item: str, run: str) -> Ack:
        entry, program = self.contents[item], self._scheduler.program
        if self.state(item) in ("PENDING", "LEASED"):
            self._world.invariants.on_ack(program, entry, run)
            entry.owner = program.owner
            self.run(RunId(ENTITY, entry.spec["project"], run)).pending |= self._eager
        answer = super().claim(item, run)
        self._scheduler.note(program.name, "  ack of %s for run %s is %s", item, run, answer)
        self._scheduler.happens(f"an ack by {program.owner} is {answer.value}")
        return answer

    def fail_item(self, item: str, reason: str, phase: Phase) -> bool:
        self._world.invariants.on_fail(self._scheduler.program, self.contents[item], reason)
        self._scheduler.note(self._scheduler.program.name, "  fails %s (%s): %s", item, phase, reason)
        return super().fail_item(item, reason, phase)

    def warn_item(self, item: str, text: str, phase: Phase) -> bool:
        entry, program = self.contents[item], self._scheduler.program
        self._world.invariants.on_warn(program, entry, text, phase)
        self._scheduler.note(program.name, "  warns %s (%s): %s", item, phase, text)
        entry.warned.append(Warned(self._scheduler.now, text, program))
        return super().warn_item(item, text, phase)

    def in_time(self, within: float) -> bool:
        """Return whether the program was not held up for longer than the request may wait."""
        in_time = self._scheduler.now <= self._scheduler.program.called + within
        if not in_time:
            self._scheduler.happens("deadline: the patience of a request")
        return in_time

    def state(self, item: str) -> str:
        before, state = self.contents[item].state, super().state(item)
        if state != before:
            self._scheduler.happens("deadline: a lease")
        return state

    def can_show(self, one: object) -> bool:
        return not self._world.troubled or self._world.random.random() > (0.5 if self._world.people.tidy else 0.1)

    def run_view(self, run: RunId) -> RunView | None:
        found, now = self.run(run), self._scheduler.now
        shown = [life for life in found.lives if life.shown <= now]
        if not shown:
            return RunView("pending", bool(found.stopped)) if found.pending else None
        last = shown[-1]
        state = "finished" if last.ended and last.ended + 5 < now else "running"
        return RunView(state, bool(found.stopped), None if self.silent else last.ended or now)

    def ask(self, question: Question) -> WandbState:
        program = self._scheduler.program
        program.asked = self._scheduler.now
        program.redact.add(self._world.secret.get())  # because a program that asks W&B has read the key
        return super().ask(question)

    def pop(
        self, entity: str, queues: Sequence[str], agent: str, status: str = "", *, singly: bool = False
    ) -> list[Popped]:
        if agent:
            self._world.invariants.on_pop(self._scheduler.program, self.agents[agent])
        return super().pop(entity, queues, agent, status)

    def cancel_sweep(self, entity: str, project: str, sweep: str, scheduler: str, queue: str = "") -> bool | None:
        self._world.invariants.on_sweep(sweep)
        return super().cancel_sweep(entity, project, sweep, scheduler, queue)

    # What is heard when a call goes wrong

    def refuse(self, operation: str = "", *args: Any) -> Any:
        answers: Mapping[str, Any] = {"ack": Ack.UNKNOWN, "fail": False, "warn": False}
        return [answers[operation]] * len(args[0]) if operation in answers else super().refuse(operation)

    def lose(self, operation: str, *args: Any) -> Any:
        """Answer an ack as its retry is answered, which is refused what the first had, or answer nothing."""
        program = self._scheduler.program
        for one in [one for entry in self.contents.values() for one in entry.warned]:
            one.unheard |= one.by is program and one.when >= program.called
        refused = operation == "ack" and self._world.random.random() < 0.5
        return [Ack.REFUSED] * len(args[0]) if refused else self.refuse(operation, *args)
