"""Real passes in simulated worlds: no seed breaks an invariant, and each of these mutations does.

``make soak`` lives more worlds. One seed again, with its history where it fails:
``python -c "from tests.simulation.world import simulate; simulate(1234)"``.
"""

from __future__ import annotations

import json

import pytest

from tests.simulation.edits import EDITS, FILE, Edit
from tests.simulation.mutations import MUTATIONS, Mutation
from tests.simulation.seeds import find, likely
from tests.simulation.world import simulate
from tests.support.numbers import SEEDS

CHUNK = max(25, SEEDS // 500)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    for seed in range(first, min(first + CHUNK, SEEDS)):
        simulate(seed)


def test_a_seed_is_always_the_same_world() -> None:
    for seed in range(20):
        assert list(simulate(seed).scheduler.history()) == list(simulate(seed).scheduler.history())


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)
def test_a_mutation_is_found(mutation: Mutation) -> None:
    found = find(mutation, likely(mutation))
    assert found, f"no seed finds it: {mutation.apply.__doc__}"
    assert found[1].startswith(mutation.breaks)


@pytest.mark.parametrize(
    "edit", [one for one in EDITS if one.name in json.loads(FILE.read_text())], ids=lambda one: one.name
)
def test_an_edit_that_is_a_mutation_is_found(edit: Edit) -> None:
    assert find(edit, likely(edit, FILE)), "no seed finds it"
