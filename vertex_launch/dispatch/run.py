"""The pass: take the lock, look, reconcile, settle, retry, pop, start, claim, report.

Each step decides what to do from what is known, and ``perform`` does it. Always: no item is lost, none is started twice, and
at most ``max_jobs`` jobs are active, wherever a pass dies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from vertex_launch.dispatch import perform, reconcile, settle, start
from vertex_launch.dispatch.context import Action, Claim, Create, Pass
from vertex_launch.dispatch.lease import Queues
from vertex_launch.dispatch.look import Seen, look, look_up_items, look_up_runs
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.prepare import prepare
from vertex_launch.dispatch.start import Room
from vertex_launch.job import run_spec
from vertex_launch.model import Item, ManagedJob, PassReport, PassRequest
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Stage

STALE_TICK = 600.0
"""Seconds after which a tick is dropped, because a younger one follows."""


class Skipped(Enum):
    """Why a tick needs no pass."""

    STALE = auto()
    """It is too old."""
    COVERED = auto()
    """A pass that began since has served it."""


@dataclass(frozen=True)
class Batch:
    """What is decided in one round; nothing is created, claimed or rejected after ``until`` (Unix seconds)."""

    until: float
    decided: Sequence[Action | Create | Claim]

    @property
    def actions(self) -> list[Action]:
        """What is neither a job to create nor an item to claim."""
        return [one for one in self.decided if isinstance(one, Action)]

    @property
    def creates(self) -> list[Create]:
        """The jobs to create."""
        return [one for one in self.decided if isinstance(one, Create)]

    @property
    def claims(self) -> list[Claim]:
        """The items that have a job."""
        return [one for one in self.decided if isinstance(one, Claim)]


def run_pass(settings: Settings, services: Services, request: PassRequest) -> PassReport | Skipped:
    """Run a pass and return its report, or why the tick needs none. Raises PassBusy, PassLost, Unavailable."""
    started, pass_id = services.clock(), services.new_pass_id()
    if request.published is not None and started - request.published > STALE_TICK:
        return Skipped.STALE
    stored = services.record.read()
    if request.published is not None and stored.ledger and request.published < stored.ledger.full_pass_began:
        return Skipped.COVERED
    with services.record.hold(stored, pass_id, started, started + settings.hold_seconds) as held:
        one = Pass(settings, services, request, started, held, PassReport(pass_id))
        seen = look(settings, services, one.ledger, request.queues or settings.queues, started, request.ended)
        perform.learn(one, seen)
        perform.apply(one, reconcile.reconcile(one.ledger, seen, settings, started))
        _confirm_claims(one, seen)
        seen = _settle(one, seen)
        held.keep()  # what W&B was told is not repeated, even if the rest of this pass fails
        active = reconcile.active_jobs(one.ledger, seen)
        for batch in _batches(one, seen, active):
            perform.apply(one, batch.actions, batch.until)
            outcomes = perform.create(one, start.with_stops(one, seen, batch.creates), batch.until)
            perform.apply(one, start.after_creates(one, outcomes), batch.until)
            claims = [*batch.claims, *start.claims_of(outcomes)]
            _judge_refused(one, seen, perform.claim(one, claims, batch.until))
        perform.finish(one, active)
        return one.report


# What is open


def _confirm_claims(one: Pass, seen: Seen) -> None:
    """Compare jobs whose item is not claimed, as far as we know, with the item itself."""
    entries = list(one.ledger.at(Stage.UNCLAIMED))
    items = look_up_items(one.services, seen.entity, reconcile.unchecked(one.ledger, seen))
    items = {**seen.wandb.items, **items}
    perform.apply(one, reconcile.judge_claims(entries, items, seen, one.settings, one.started))


def _judge_refused(one: Pass, seen: Seen, refused: dict[str, str]) -> None:
    """Look up the items whose ack W&B refused, and decide whose they are."""
    items = look_up_items(one.services, seen.entity, refused)
    entries = [one.ledger.open[item] for item in items]
    perform.apply(one, reconcile.judge_claims(entries, items, seen, one.settings, one.started))


def _settle(one: Pass, seen: Seen) -> Seen:
    """Settle the items whose job has ended; return what was seen with their runs as W&B shows them now."""
    entries = settle.ended_items(one.ledger, seen)
    items = look_up_items(one.services, seen.entity, {entry.item: entry.queue for entry in entries})
    runs = look_up_runs(one.services, [entry.run_id for entry in entries if entry.entity == seen.entity])
    perform.apply(one, settle.settle(entries, seen, items, runs, one.settings, one.started))
    return replace(seen, wandb=replace(seen.wandb, runs={**seen.wandb.runs, **runs}))


# What starts


def _batches(one: Pass, seen: Seen, active: Sequence[ManagedJob]) -> Iterator[Batch]:
    """Decide round after round what to do: next attempts first, then what the queues hold, until slots or time are used up.

    The caller performs a batch before it asks for the next one.
    """
    agent, stopped = perform.register(one, seen)
    unclaimed = sum(1 for _ in one.ledger.at(Stage.UNCLAIMED))
    due, decided = start.due_retries(one, seen, Room.of(one, active))
    if due and not stopped and one.in_time:
        decided += start.retries(one, due, Room.of(one, active), one.services.key.get())
    yield Batch(one.held.lock.expires, decided)
    status = "RUNNING" if one.ledger.slots_used(active) else "POLLING"
    queues, factor = Queues(list(seen.queues) if agent and not stopped else []), 1
    while True:
        # Rounds in which nothing could start grow: one free slot must not mean one item at a time past a long line.
        room = Room.of(one, active).jobs
        want = min(room * factor, max(room, one.settings.batches.pops))
        until = one.now + one.settings.lease - one.settings.timeouts.margin
        # Items of jobs that are not claimed come back through the queue beside those that may start.
        items = queues.lease(one, seen, want + unclaimed, status)
        if not items:
            break
        unclaimed -= min(unclaimed, max(0, len(items) - want))
        batch = _round(one, seen, items, active, until)
        queues.without([item for item in items if start.is_foreign(item)])
        yield batch
        factor = 1 if batch.creates or batch.claims else 2 * factor
    if agent and not queues.asked:
        perform.refresh_status(one, status)


def _round(one: Pass, seen: Seen, items: Sequence[Item], active: Sequence[ManagedJob], until: float) -> Batch:
    """Decide about popped items: what has a job already, what can start, and what cannot."""
    for item in items:
        one.services.redact.add(run_spec.own_key(item))
    foreign = [item for item in items if start.is_foreign(item)]
    known = [item for item in items if item not in foreign and item.id in one.ledger.open]
    new = [item for item in items if item not in foreign and item not in known]
    prepared = prepare(one.settings, one.services, seen.entity, new)
    key = one.services.key.get() if new else ""
    started = start.start(one, new, prepared, Room.of(one, active), key)
    return Batch(until, [*start.foreign(one, foreign), *start.adopt(one, known), *started])
