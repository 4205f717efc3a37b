"""The kinds of items that chaos pushes, and the check that each item has ended as its kind declares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from local.machine.containers import Fate
from local.programs.items import ENDED_STATES
from vertex_launch.codes import Code


@dataclass(frozen=True)
class Kind:
    """A kind of item, and how it must end: its state, the states of its last attempt, its attempts, the code on it."""

    name: str
    image: str
    item: str = "CLAIMED"
    ends: Sequence[str] = ("SUCCEEDED",)
    attempts: int = 1
    code: str = ""
    args: Sequence[str] = ()
    fate: Fate | None = None
    run: str = ""
    """A key that the run spec adds, and that does not exist."""


KINDS = (
    Kind("quick", "quick:1"),
    Kind("silent", "no-init:1", "FAILED", code=Code.RUN_NEVER_BEGAN),
    Kind("crash", "crash:1", "FAILED", ("FAILED",), code=Code.JOB_EXIT),
    Kind("hog", "hog:1", "FAILED", ("FAILED",), code=Code.JOB_MEMORY),
    Kind("no-image", "missing:1", "FAILED", ("FAILED",), code=Code.JOB_IMAGE),
    Kind("bad", "quick:1", "FAILED", (), 0, Code.SPEC_UNKNOWN_KEY, run="restartJobOnWorkerRestart"),
    Kind("preempted", "steps:1", attempts=3, args=("--steps", "20", "--pause", "0.1"), fate=Fate.PREEMPTED),
    Kind("stockout", "quick:1", attempts=3, fate=Fate.STOCKOUT),
    Kind("stopped", "steps:1", ends=("FAILED", "CANCELLED"), code=Code.RUN_STOPPED, args=("--steps", "100000")),
)
WEIGHTS = (4, 2, 2, 2, 1, 2, 1, 1, 1)
"""How often each kind is pushed, in relation to the others."""


@dataclass(frozen=True)
class Account:
    """How an item ended: its state, W&B's messages, and its jobs as pairs of attempt and state, the oldest first."""

    name: str
    kind: Kind
    state: str
    messages: str
    jobs: Sequence[tuple[int, str]]

    @property
    def settled(self) -> bool:
        """Whether its state is final as far as W&B and its jobs show."""
        return self.state not in ("PENDING", "LEASED") and all(state in ENDED_STATES for _, state in self.jobs)

    def problems(self) -> list[str]:
        """Return what differs from how the item must end."""
        kind, found = self.kind, []
        if self.state != kind.item:
            found.append(f"the item is {self.state}, expected {kind.item}")
        if kind.code not in self.messages:
            found.append(f"W&B shows {self.messages!r}, expected {kind.code}")
        attempts = sorted({attempt for attempt, _ in self.jobs})
        if attempts != list(range(1, kind.attempts + 1)):
            found.append(f"the attempts are {attempts}, expected 1 to {kind.attempts}")
        for attempt in attempts:
            states = [state for number, state in self.jobs if number == attempt]
            if sum(state != "CANCELLED" for state in states) > 1:
                found.append(f"attempt {attempt} has more than one surviving job: {states}")
        last = {state for attempt, state in self.jobs if attempt == kind.attempts}
        if kind.ends and not last & set(kind.ends):
            found.append(f"the last attempt is {sorted(last)}, expected {' or '.join(kind.ends)}")
        return [f"{self.name}: {one}" for one in found]
