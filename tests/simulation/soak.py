"""``python -m tests.simulation.soak 50000``: live simulated worlds, and print how many there were and what they covered.

``--first`` is the first seed. It goes on after a failure, and ends with status 1 if there was one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import starmap

from tests.simulation.world import FOCUS, simulate

CHUNK = 100


@dataclass
class Covered:
    """What some worlds did: how many of them had an event, and which event followed which."""

    worlds: int = 0
    failures: list[str] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    pairs: set[tuple[str, str]] = field(default_factory=set)

    def add(self, other: Covered) -> None:
        """Add what other worlds did."""
        self.worlds += other.worlds
        self.failures += other.failures
        self.events += other.events
        self.pairs |= other.pairs

    def lines(self) -> Iterator[str]:
        """Return what to print."""
        kinds = {
            "faults of calls": [name for name in self.events if ": " in name and not name.startswith("deadline")],
            "states of jobs": [name for name in self.events if name.startswith("a job is")],
            "codes": [name for name in self.events if name.startswith("VL-")],
            "things that people did": [name for name in self.events if name.startswith("a person")],
        }
        numbers = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items())
        yield f"{self.worlds} worlds lived, {len(self.failures)} broke an invariant"
        yield f"covered: {numbers}; {len(self.pairs)} pairs of events"
        for name in sorted(name for name in self.events if name.startswith("deadline")):
            yield f"{name} was reached in {self.events[name]} worlds"
        missing = [f"{operation}: {kind.value}" for operation, kind in FOCUS]
        yield f"faults that did not happen: {', '.join(one for one in missing if one not in self.events) or 'none'}"


def live(first: int, after: int) -> Covered:
    """Live the worlds of these seeds."""
    covered = Covered()
    for seed in range(first, after):
        covered.worlds += 1
        try:
            scheduler = simulate(seed).scheduler
        except AssertionError as error:
            covered.failures.append(str(error).partition("\n")[0])
            continue
        covered.events.update(list(scheduler.events))
        covered.pairs |= set(scheduler.pairs)
    return covered


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.soak", description=__doc__)
    parser.add_argument("seeds", type=int, help="how many worlds")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    given = parser.parse_args()
    last, began, covered = given.first + given.seeds, time.monotonic(), Covered()
    parts = [(first, min(first + CHUNK, last)) for first in range(given.first, last, CHUNK)]
    with ProcessPoolExecutor(given.workers) as pool:
        results = pool.map(live, *zip(*parts, strict=True)) if given.workers > 1 else starmap(live, parts)
        for number, part in enumerate(results, 1):
            covered.add(part)
            for failure in part.failures:
                print(failure, flush=True)
            if number % 50 == 0:
                took = time.monotonic() - began
                print(f"{covered.worlds} worlds in {took:.0f} s, {len(covered.pairs)} pairs of events", flush=True)
    print("\n".join(covered.lines()))
    return 1 if covered.failures else 0


if __name__ == "__main__":
    sys.exit(main())
