"""How fast slots were filled that became free while items waited, and whether an event or the clock made it so. Pure.

For the demo's summary: a tick that ``job_state`` publishes names the job that has ended, one of the scheduler names none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

PASS = 3.0
"""Seconds that a pass may take: a scheduled tick so long before a job's end may have begun the one that saw it."""


@dataclass(frozen=True)
class Span:
    """From when to when a job held its slot, or an item waited for one; Unix seconds, ``end`` None for still."""

    begin: float
    end: float | None


@dataclass(frozen=True)
class Fill:
    """A slot that a job freed while items waited, and that the next submission took; Unix seconds."""

    freed: float
    filled: float

    @property
    def seconds(self) -> float:
        """How long the slot was empty."""
        return self.filled - self.freed

    def by_event(self, scheduled: Iterable[float]) -> bool:
        """Tell whether no scheduled tick, published at these times, can have had a part in it."""
        return not any(self.freed - PASS <= tick <= self.filled for tick in scheduled)


def fills(jobs: Collection[Span], waits: Collection[Span], slots: int) -> list[Fill]:
    """Find what became of each slot that was freed while all were taken and an item waited, the first freed first."""
    moments = [(job.begin, 1) for job in jobs] + [(job.end, -1) for job in jobs if job.end is not None]
    taken, freed, found = 0, deque[float](), list[Fill]()
    for moment, change in sorted(moments):
        if change < 0 and taken == slots and any(w.begin < moment and (w.end or moment) >= moment for w in waits):
            freed.append(moment)
        if change > 0 and freed:
            found.append(Fill(freed.popleft(), moment))
        taken += change
    return found
