"""The bucket: one folder for each deployment, and who writes to it."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

from tests.simulation.scheduler import Broken, Program, Scheduler
from tests.support.memory import Objects
from vertex_launch.settings.config import Timeouts
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.record import LEDGER, LOCK, NOTE

MARGIN, CREATE = Timeouts().margin, Timeouts().create


class Folder(Objects):
    """The objects of one deployment."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(lambda: scheduler.now)
        self._scheduler = scheduler
        self._given_back: set[int] = set()
        self.lost = self.rebuilt = 0.0
        """When the ledger was lost, and when one was written that makes up for it."""
        self._alone: defaultdict[str, list[tuple[Program, float]]] = defaultdict(list)
        self.noted: set[str] = set()
        """Jobs that a ledger has named."""

    @property
    def ledger(self) -> Ledger:
        found = self.objects.get(LEDGER)
        return Ledger.parse(found[0] if found else b"") or Ledger()

    def deaths(self, item: str) -> int:
        """Return how many passes noted that they check this item alone, and did not write that they got further in time."""
        alone = self._alone[item]
        return sum(1 for program, noted in alone if not any(noted < at <= program.held for at in program.writes))

    def lose_ledger(self, left: bytes = b"damaged") -> None:
        super().lose_ledger(left)
        self.lost, self.rebuilt = self._scheduler.now, float("inf")
        self._scheduler.note("a person", "damages the ledger")
        self._scheduler.happens("a person damages the ledger")

    def read(self, name: str) -> tuple[bytes, int] | None:
        if name == LEDGER:
            self._scheduler.program.read = self._scheduler.now
        return super().read(name)

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        found, current = self.objects.get(name, (b"", 0))
        program, now = self._scheduler.program, self._scheduler.now
        if generation != current:
            return None
        if name == LOCK and found and now < json.loads(found)["expires"] and current not in self._given_back:
            raise Broken(f"I0: {program.name} takes a lock that another pass still has")
        if name == LOCK and found and current not in self._given_back:
            self._scheduler.happens("deadline: a lock")
        if name == LOCK:
            program.held = json.loads(content)["expires"]
            program.deadlines = {"lock": program.held, "warn": program.held - MARGIN, "create": program.held - CREATE}
        elif name == LEDGER:
            program.wrote, program.planned = now, program.called
            program.writes.append(now)
            ledger = Ledger.model_validate_json(content)
            self._given_back.add(ledger.free_lock)
            self.noted |= {attempt.job for entry in ledger.open.values() for attempt in entry.attempts} | set(
                ledger.settled
            )
            self.rebuilt = self.rebuilt if ledger.rebuild else min(self.rebuilt, now)
        elif name == NOTE and len(items := json.loads(content)["items"]) == 1:
            self._alone[items[0]].append((program, now))
        return super().write(name, content, generation)

    def lose(self, operation: str, *args: Any) -> Any:
        """Answer a write as its retry is answered, which finds another generation, or answer nothing."""
        return None if operation == "write" and self._scheduler.random.random() < 0.5 else self.refuse(operation)
