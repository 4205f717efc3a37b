"""How fast free slots were filled while items waited, and whether an event or the clock caused it. Pure.

A tick of ``job_state`` names the job that has ended. A tick of the scheduler names no job.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

PASS = 3.0
"""Seconds that a pass may take: a scheduled tick up to that long before a job's end may have started the pass that saw it."""


@dataclass(frozen=True)
class Span:
    """The time in Unix seconds that a job held its slot, or an item waited for one. ``end`` is None if it still does."""

    begin: float
    end: float | None


@dataclass(frozen=True)
class Fill:
    """When a job freed a slot while items waited, and when the next submission filled it, in Unix seconds."""

    freed: float
    filled: float

    @property
    def seconds(self) -> float:
        """How long the slot was free."""
        return self.filled - self.freed

    def by_event(self, scheduled: Iterable[float]) -> bool:
        """Return whether an event caused it: no tick that the scheduler published at these times can have."""
        return not any(self.freed - PASS <= tick <= self.filled for tick in scheduled)


def fills(jobs: Collection[Span], waits: Collection[Span], slots: int) -> list[Fill]:
    """Return when each slot was filled that became free while all were in use and an item waited, in their order."""
    moments = [(job.begin, 1) for job in jobs] + [(job.end, -1) for job in jobs if job.end is not None]
    taken, freed, found = 0, deque[float](), list[Fill]()
    for moment, change in sorted(moments):
        if change < 0 and taken == slots and any(w.begin < moment and (w.end or moment) >= moment for w in waits):
            freed.append(moment)
        if change > 0 and freed:
            found.append(Fill(freed.popleft(), moment))
        taken += change
    return found
