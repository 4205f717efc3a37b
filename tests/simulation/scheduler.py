"""Time, and programs as coroutines of one thread, each of which may fail whenever it calls a service."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from functools import partial
from random import Random
from typing import Any

import greenlet

from tests.support.memory import Service
from vertex_launch.dispatch.ports import outcome
from vertex_launch.log import Redactor
from vertex_launch.model import PassRequest
from vertex_launch.settings.config import Settings

START = 1_800_000_000.0


class Killed(BaseException):
    """The process has died, so that nothing else in it happens."""


class Broken(BaseException):
    """An invariant is broken. It is not an Exception, because no program may catch it."""


class Fault(StrEnum):
    """What may happen to a call."""

    NONE = ""
    REFUSED = "an error, nothing was done"
    LOST = "done, but the answer is lost"
    KILLED_BEFORE = "killed before it"
    KILLED_AFTER = "done, killed before the answer came"
    PAUSED_BEFORE = "paused before it"
    PAUSED_AFTER = "done, paused before the answer came"


KINDS = [kind for kind in Fault if kind]
PAUSES = ((1, 20), (20, 80), (80, 150), (150, 900))
"""Seconds for which a process is frozen: not for long, past a lease, past a lock, past the grace of intents."""
NEAR = -5.0, 1.0
"""Seconds around a deadline at which a process goes on that was frozen until then."""

NEXT = {
    "pop": ("create", "budget"),
    "write": ("create", "ack"),
    "create": ("ack",),
    "runs": ("lock", "create"),
    "items": ("lock",),
    "get": ("lock",),
    "warn": ("lock",),
}
"""The deadlines of what a pass may do after an operation."""


class Scheduler:
    """The clock and what is due; keeps the history. ``draw`` gives the fault of a call, ``slow`` is how slow calls are."""

    def __init__(self, random: Random, draw: Callable[[str], Fault], slow: float) -> None:
        self.now = START
        self.random = random
        self.draw = draw
        self.slow = slow
        self.tense = False
        """Whether programs often freeze until a deadline is near."""
        self.slow_failures = 0.8
        """How often what they call then takes a while; half of it is refused after that."""
        self.on_death: Callable[[Program], object] = lambda program: None
        self.hub = greenlet.getcurrent()
        self.program: Program
        """The one that runs now, or on whose behalf something happens."""
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self._programs: list[Program] = []
        self._history: list[tuple[float, str, str, tuple[Any, ...]]] = []
        self.events: Counter[str] = Counter()
        self.pairs: Counter[tuple[str, str]] = Counter()
        """What happened, and what happened next."""
        self._last = ""

    def clock(self) -> float:
        """Return a time that is never the same twice, as a real clock does."""
        self.now += 1e-6
        return self.now

    def after(self, seconds: float, act: Callable[..., object], *args: Any) -> None:
        due: tuple[float, int, Callable[[], object]] = self.now + seconds, next(self._count), partial(act, *args)
        heapq.heappush(self._due, due)

    def run(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            when, _, act = heapq.heappop(self._due)
            self.now = max(self.now, when)
            act()
        self.now = max(self.now, until)

    def begin(self, program: Program) -> None:
        """Let a program run from now on."""
        self._programs.append(program)
        self.after(0, program.resume)

    def end(self) -> None:
        """End the programs that still wait, without effect: they would keep the whole world in memory."""
        for program in self._programs:
            program.end()

    def happens(self, event: str) -> None:
        """Count something that is worth reaching, and that it followed what happened before."""
        self.events[event] += 1
        self.pairs[self._last, event] += 1
        self._last = event

    def note(self, who: str, text: str, *values: Any) -> None:
        """Add to the history; the line is formatted only when it is read."""
        self._history.append((self.now, who, text, values))

    def history(self) -> Iterator[str]:
        for number, (when, who, text, values) in enumerate(self._history, 1):
            yield f"{number:4} {when - START:8.1f} s  {who:12} {text % values if values else text}"


class Program:
    """A process on behalf of ``owner`` (a deployment, another agent), from its beginning to its end or its death."""

    def __init__(self, scheduler: Scheduler, name: str, owner: str, main: Callable[[Program], None]) -> None:
        self.scheduler = scheduler
        self.name = name
        self.owner = owner
        self.request = PassRequest()
        self.settings: Settings
        """Those of its deployment when it began."""
        self.redact = Redactor()
        self.looked = self.asked = float("inf")
        """When it listed jobs first, and asked W&B last."""
        self.began = self.called = self.read = self.wrote = self.planned = 0.0
        """When it began and its last call did, when it last read and wrote the ledger, and when that write was called."""
        self.deadlines: dict[str, float] = {}
        """When its last lease and its lock end, and until when it may begin something."""
        self.writes: list[float] = []
        self.held = float("inf")
        """Until when it has the lock."""
        self.creates = 0
        self.completed = False
        self._dead = self._tense = self.slowly = False
        self._main = main
        self._greenlet = greenlet.greenlet(self._run, scheduler.hub)
        self.resume = self._greenlet.switch
        scheduler.begin(self)

    def __repr__(self) -> str:
        return self.name

    def _run(self) -> None:
        self.scheduler.program, self.began = self, self.scheduler.now
        try:
            self._main(self)
        except Killed:
            return

    def sleep(self, seconds: float) -> None:
        self.scheduler.after(seconds, self.resume)
        self.scheduler.hub.switch()
        self.scheduler.program = self

    def _die(self) -> None:
        """End here; what the program still tries on its way out has no effect."""
        self._dead = True
        self.scheduler.on_death(self)
        raise Killed

    def _freeze(self, operation: str) -> None:
        """Stand still for a while, as often as not until a deadline is near, preferably the one of what comes next."""
        random, now = self.scheduler.random, self.scheduler.now
        seconds = random.uniform(*random.choice(PAUSES))
        if self.deadlines and random.random() < (0.9 if self.scheduler.tense else 0.5):
            likely = NEXT.get(operation, ()) if self.scheduler.tense else ()
            ahead = [self.deadlines[name] - now for name in likely or self.deadlines if name in self.deadlines]
            ahead = [one for one in ahead if one > 0] or [seconds]
            seconds = max(0.0, random.choice(ahead) + random.uniform(*NEAR))
            self._tense = self.scheduler.tense
        self.sleep(seconds)

    def end(self) -> None:
        """End a program that waits; what it still tries has no effect."""
        if self._greenlet:
            self._dead = True
            self._greenlet.throw(Killed)

    def call(self, service: Service, operation: str, *args: Any, **named: Any) -> Any:
        if self._dead:
            raise Killed
        scheduler, random = self.scheduler, self.scheduler.random
        self.called, fault = scheduler.now, scheduler.draw(operation)
        self.slowly, self._tense = self._tense and random.random() < scheduler.slow_failures, False
        refused = self.slowly and random.random() < 0.5
        fault = Fault.REFUSED if refused else Fault.NONE if self.slowly else fault
        scheduler.note(self.name, "%s %.150s%s", operation, args, f": {fault.value}" if fault else "")
        if fault:
            scheduler.happens(f"{operation}: {fault.value}")
        if fault is Fault.PAUSED_BEFORE:
            self._freeze(operation)
        self.sleep(random.uniform(8, 20) if self.slowly else random.random() * scheduler.slow)
        if fault is Fault.KILLED_BEFORE:
            self._die()
        if fault is Fault.REFUSED:
            self.sleep(0 if self.slowly else random.random() * 15)
            return service.refuse(operation, *args)
        answer = getattr(service, operation)(*args, **named)
        if fault is Fault.KILLED_AFTER:
            self._die()
        self.sleep(random.random() * scheduler.slow)
        if fault is Fault.PAUSED_AFTER:
            self._freeze(operation)
        if fault is Fault.LOST:
            self.sleep(random.random() * 15)
            return service.lose(operation, *args)
        return answer

    def run_parallel(self, calls: Sequence[Callable[[], Any]], at_once: int) -> list[Any]:
        """Run calls as ``ports.run_parallel`` does, but one after the other, in an order that the seed gives."""
        order = self.scheduler.random.sample(range(len(calls)), len(calls))
        results = {index: outcome(calls[index]) for index in order}
        return [results[index] for index in range(len(calls))]
