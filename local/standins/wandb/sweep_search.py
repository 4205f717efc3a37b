"""The runs that a sweep tries: every combination of a grid, or random ones without end. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any

from local.standins.wandb.errors import invalid

METHODS = ("grid", "random", "custom")
"""The search methods. ``custom`` is a search by the sweep's scheduler, for which the server suggests nothing."""

Suggestion = dict[str, Any]
"""The value of each parameter."""


def check(config: object) -> None:
    """Raise Refused with every problem of a sweep's configuration."""
    if not isinstance(config, Mapping) or not isinstance(config.get("parameters"), Mapping):
        raise invalid("a sweep's configuration has to be an object with parameters")
    method, parameters = config.get("method"), {} if config.get("method") == "custom" else config["parameters"]
    problems = [] if method in METHODS else [f'method "{method}" is not one of {", ".join(METHODS)}']
    for name, given in parameters.items():
        if not isinstance(given, Mapping) or (_values(given) is None and not _is_range(given)):
            problems.append(f'parameter "{name}" has neither value, values, nor min and max, uniform or int_uniform')
        elif method == "grid" and _values(given) is None:
            problems.append(f'parameter "{name}": a grid needs values, or min and max that are integers')
    if problems:
        raise invalid(f"the local W&B cannot search this sweep: {'; '.join(problems)}")


def suggestions(config: Mapping[str, Any], seed: str) -> Iterator[Suggestion] | None:
    """Return the runs to try in order, at most ``run_cap``. The same ``seed`` gives the same runs.

    Return None if the server does not search.
    """
    parameters = config["parameters"]
    if config["method"] == "custom":
        return None
    found = _grid(parameters) if config["method"] == "grid" else _random(parameters, random.Random(seed))
    return islice(found, config.get("run_cap"))


def expected(config: Mapping[str, Any]) -> int | None:
    """Return the number of runs, or None if there is no end."""
    cap: int | None = config.get("run_cap")
    if config["method"] != "grid":
        return cap
    size = math.prod(len(_values(given) or ()) for given in config["parameters"].values())
    return size if cap is None else min(size, cap)


def _grid(parameters: Mapping[str, Any]) -> Iterator[Suggestion]:
    for values in product(*(_values(given) or () for given in parameters.values())):
        yield dict(zip(parameters, values, strict=True))


def _random(parameters: Mapping[str, Any], chance: random.Random) -> Iterator[Suggestion]:
    while True:
        yield {name: _drawn(given, chance) for name, given in parameters.items()}


def _drawn(given: Mapping[str, Any], chance: random.Random) -> Any:
    values = _values(given)
    return chance.uniform(given["min"], given["max"]) if values is None else chance.choice(values)


def _values(given: Mapping[str, Any]) -> Sequence[Any] | None:
    """Return all values of a parameter, or None for a range without steps and for an invalid parameter."""
    if "value" in given:
        return [given["value"]]
    if isinstance(given.get("values"), list):
        return given["values"] or None
    if _is_range(given) and given.get("distribution") == "int_uniform":
        return range(given["min"], given["max"] + 1)
    return None


def _is_range(given: Mapping[str, Any]) -> bool:
    kinds = {"int_uniform": (int,), "uniform": (int, float)}.get(given.get("distribution", ""), ())
    return all(isinstance(given.get(end), kinds) for end in ("min", "max"))
