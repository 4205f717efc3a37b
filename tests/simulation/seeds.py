"""Which seed finds each mutation: tried first, because a search takes up to 2,000 worlds.

``python -m tests.simulation.seeds`` searches anew and writes ``seeds.json``; a wrong entry costs time, never a fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Protocol

import pytest

from tests.simulation.mutations import MUTATIONS
from tests.simulation.world import simulate

FILE = Path(__file__).with_name("seeds.json")
MOST = 2000


class Defect(Protocol):
    """Something that a simulated world has to find."""

    @property
    def name(self) -> str: ...

    @property
    def apply(self) -> Callable[[pytest.MonkeyPatch], None]: ...


def find(defect: Defect, seeds: Iterable[int]) -> tuple[int, str] | None:
    """Return the first of these seeds whose world finds the defect, and what breaks there."""
    with closing(broken(defect, seeds)) as found:
        return next(found, None)


def broken(defect: Defect, seeds: Iterable[int]) -> Generator[tuple[int, str], None, None]:
    """Return those seeds whose worlds find the defect, and what breaks there; close it before the next defect."""
    with pytest.MonkeyPatch.context() as patch:
        defect.apply(patch)
        for seed in seeds:
            try:
                simulate(seed)
            except AssertionError as error:
                yield seed, str(error).partition(": ")[2]


def likely(defect: Defect, file: Path = FILE) -> Iterator[int]:
    """Return the seed that found the defect last, then all others."""
    known = json.loads(file.read_text()).get(defect.name)
    yield from (known,) * (known is not None)
    yield from range(MOST)


def _search(index: int) -> tuple[str, int | None]:
    found = find(MUTATIONS[index], range(MOST))
    return MUTATIONS[index].name, found and found[0]


if __name__ == "__main__":
    with ProcessPoolExecutor(max_workers=2) as pool:
        found = dict(pool.map(_search, range(len(MUTATIONS))))
    FILE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
