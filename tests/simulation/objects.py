"""The bucket: objects with generations, one folder for each deployment."""

from __future__ import annotations

import json
from typing import Any

from tests.simulation.scheduler import Broken, Scheduler, Service
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.record import LEDGER, LOCK


class Folder(Service):
    """The objects of one deployment."""

    name = "Cloud Storage"

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._generation = 0
        self._given_back: set[int] = set()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.lost = self.rebuilt = 0.0
        """When the ledger was lost, and when one was written that makes up for it."""

    @property
    def ledger(self) -> Ledger:
        found = self.objects.get(LEDGER)
        return Ledger.parse(found[0] if found else b"") or Ledger()

    def lose_ledger(self) -> None:
        self._generation += 1
        self.objects[LEDGER] = b"damaged", self._generation
        self.lost, self.rebuilt = self._scheduler.now, float("inf")
        self._scheduler.tell("a person", "damages the ledger")

    def read(self, name: str) -> tuple[bytes, int] | None:
        self._scheduler.program.read = self._scheduler.now
        return self.objects.get(name)

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        found, current = self.objects.get(name, (b"", 0))
        if generation != current:
            return None
        program, now = self._scheduler.program, self._scheduler.now
        if name == LOCK and found and now < json.loads(found)["expires"] and current not in self._given_back:
            raise Broken(f"I0: {program.name} takes a hold that another pass has for a while yet")
        if name == LOCK:
            program.held = json.loads(content)["expires"]
        else:
            program.wrote = now
            program.writes.append(now)
            ledger = Ledger.model_validate_json(content)
            self._given_back.add(ledger.free_lock)
            self.rebuilt = self.rebuilt if ledger.rebuild else min(self.rebuilt, now)
        self._generation += 1
        self.objects[name] = content, self._generation
        return self._generation

    def lose(self, operation: str, *args: Any) -> Any:
        """A write is tried again, and is then told that the object is of another generation, or nothing."""
        return None if operation == "write" and self._scheduler.random.random() < 0.5 else self.refuse(operation)
