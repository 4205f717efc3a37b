"""Runs the measurements one after another. One that fails does not stop the others, and everything is removed at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass

from vertex_launch.errors import LaunchError
from vertex_launch.verify import jobs
from vertex_launch.verify.assumptions import ASSUMPTIONS, Group
from vertex_launch.verify.bench import Bench, Interrupted
from vertex_launch.verify.findings import Finding, skip, unmeasured


@dataclass(frozen=True)
class Step:
    """A measurement: the assumptions that it has findings for, what it does, and the jobs that it needs."""

    names: tuple[str, ...]
    about: str
    run: Callable[[], Iterator[Finding]]
    jobs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a run of the command will do: the names of its ``jobs``, its longest time and its highest price."""

    jobs: tuple[str, ...]
    minutes: int
    dollars: float


MINUTES = {Group.WANDB: 4, Group.VERTEX: 20, Group.DEPLOYMENT: 20}
"""How long the measurements of a group usually take at most. Jobs run while others are measured."""


def selected(only: Sequence[str]) -> frozenset[str]:
    """Return the assumptions with these names or in these groups, all for none. Raises KeyError for an unknown name."""
    names = {one.name for one in ASSUMPTIONS}
    if unknown := [one for one in only if one not in names and one not in set(Group)]:
        raise KeyError(unknown[0])
    return frozenset(one.name for one in ASSUMPTIONS if not only or one.name in only or one.group in only)


def plan(steps: Sequence[Step], wanted: Set[str]) -> Plan:
    """Return what measuring these assumptions takes."""
    needed = tuple(dict.fromkeys(job for step in steps if wanted & set(step.names) for job in step.jobs))
    groups = {one.group for one in ASSUMPTIONS if one.name in wanted}
    dollars = len(needed) * jobs.LIMIT / 3600 * jobs.PRICE
    return Plan(needed, max((MINUTES[group] for group in groups), default=0), dollars)


def measure(
    bench: Bench, steps: Sequence[Step], wanted: Set[str], begin: Callable[[], None]
) -> tuple[list[Finding], Interrupted | None]:
    """Measure these assumptions and remove what was made. Return the findings, and the signal that ended it early.

    ``begin`` starts what takes long, first. If it fails, each measurement starts its own and reports that.
    """
    findings: list[Finding] = []
    interrupted = None
    try:
        with suppress(LaunchError):
            begin()
        for step in steps:
            if wanted & set(step.names):
                findings += [one for one in _run(bench, step) if one.name in wanted]
    except Interrupted as signal:
        interrupted = signal
    finally:
        bench.interrupts.ignore()
        bench.progress("keeps what was made" if bench.keep else "removes what was made")
        bench.ends.close()
    known = {one.name for one in findings}
    findings += [skip(one.name, "stopped before it was measured") for one in ASSUMPTIONS if one.name in wanted - known]
    order = [one.name for one in ASSUMPTIONS]
    return sorted(findings, key=lambda one: order.index(one.name)), interrupted


def _run(bench: Bench, step: Step) -> Iterator[Finding]:
    bench.progress(step.about)
    missing = dict.fromkeys(step.names)
    try:
        for finding in step.run():
            missing.pop(finding.name, None)
            yield finding
    except LaunchError as error:
        why = bench.redact(str(error))
    except Exception as error:  # noqa: BLE001 - the other measurements are worth having
        why = bench.redact(f"unexpected {type(error).__name__}: {error}")
    else:
        why = "nothing was found"
    for name in missing:
        yield unmeasured(name, why)
