"""Which seed finds each mutation: tried first, because a search takes up to 2,000 worlds.

``python -m tests.simulation.seeds`` searches anew and writes ``seeds.json``; a wrong entry costs time, never a fault.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.world import simulate

FILE = Path(__file__).with_name("seeds.json")
MOST = 2000


def find(mutation: Mutation, seeds: Iterator[int]) -> tuple[int, str] | None:
    """Return the first of these seeds whose world finds the mutation, and what breaks there."""
    with pytest.MonkeyPatch.context() as patch:
        mutation.apply(patch)
        for seed in seeds:
            try:
                simulate(seed)
            except AssertionError as error:
                return seed, str(error).partition(": ")[2]
    return None


def likely(mutation: Mutation) -> Iterator[int]:
    """Return the seed that found the mutation last, then all others."""
    known = json.loads(FILE.read_text()).get(mutation.name)
    yield from (known,) * (known is not None)
    yield from range(MOST)


def _search(index: int) -> tuple[str, int | None]:
    found = find(MUTATIONS[index], iter(range(MOST)))
    return MUTATIONS[index].name, found and found[0]


if __name__ == "__main__":
    with ProcessPoolExecutor(max_workers=2) as pool:
        found = dict(pool.map(_search, range(len(MUTATIONS))))
    FILE.write_text(json.dumps(dict(sorted(found.items())), indent=1) + "\n")
