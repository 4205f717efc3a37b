"""The pass: take the lock, look, reconcile, settle, retry, pop, start, claim, report.

Each step decides what to do from what is known, and ``perform`` does it. Always: no item is lost, none is started twice, and
at most ``max_jobs`` jobs are active, wherever a pass dies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from vertex_launch import addresses
from vertex_launch.codes import Code
from vertex_launch.dispatch import perform, reconcile, settle, start
from vertex_launch.dispatch.context import Action, Claim, Create, Notice, Pass
from vertex_launch.dispatch.lease import Queues
from vertex_launch.dispatch.look import Seen, look, look_up_items, look_up_runs
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.prepare import prepare
from vertex_launch.dispatch.start import Room
from vertex_launch.errors import Message
from vertex_launch.job import run_spec
from vertex_launch.limits import LARGEST_LEASE
from vertex_launch.model import Item, ItemView, ManagedJob, PassReport, PassRequest
from vertex_launch.settings.config import Settings
from vertex_launch.state.open_item import Stage

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
    stored = services.record.read(services.clock)
    began = stored.ledger.full_pass_began if stored.ledger else 0
    if request.published is not None and request.published < began <= started:  # else its clock, or ours, is wrong
        return Skipped.COVERED
    with services.record.locked(stored, pass_id, started, started + settings.lock_seconds, services.clock) as held:
        pass_ = Pass(settings, services, request, started, held, PassReport(pass_id))
        pass_.ledger.move(addresses.server(settings.base_url))
        services.pace.begin(pass_.ledger.operations, pass_.ledger.refused(started))
        seen = look(settings, services, pass_.ledger, request.queues or settings.queues, started, request.ended)
        perform.learn(pass_, seen)
        perform.apply(pass_, reconcile.reconcile(pass_.ledger, seen, settings, started))
        _confirm_claims(pass_, seen)
        seen = _settle(pass_, seen)
        held.keep()  # what was reported to W&B is not repeated, even if the rest of this pass fails
        active = reconcile.active_jobs(pass_.ledger, seen)
        for batch in _batches(pass_, seen, active):
            _perform(pass_, seen, batch)
            del batch  # its items and jobs leave the memory before the next ones are popped
        perform.finish(pass_, active)
        return pass_.report


def _perform(pass_: Pass, seen: Seen, batch: Batch) -> None:
    perform.apply(pass_, batch.actions, batch.until)
    outcomes = perform.create(pass_, start.with_stops(pass_, seen, batch.creates), batch.until)
    perform.apply(pass_, start.after_creates(pass_, outcomes), batch.until)
    claims = [*batch.claims, *start.claims_of(outcomes)]
    _judge_refused(pass_, seen, perform.claim(pass_, claims, batch.until))


# What is open


def _confirm_claims(pass_: Pass, seen: Seen) -> None:
    """Compare jobs whose item is not claimed, as far as we know, with the item itself."""
    entries = list(pass_.ledger.at(Stage.UNCLAIMED))
    items = look_up_items(pass_.services, pass_.ledger, reconcile.unchecked(pass_.ledger, seen))
    items = {**seen.wandb.items, **items}
    perform.apply(pass_, reconcile.judge_claims(entries, items, seen, pass_.settings, pass_.started))


def _judge_refused(pass_: Pass, seen: Seen, refused: dict[str, str]) -> None:
    """Look up the items whose ack W&B refused, and decide whose they are."""
    items = look_up_items(pass_.services, pass_.ledger, [pass_.ledger.open[item] for item in refused])
    if free := [item for item in refused if item not in items or items[item].state in settle.WAITING]:
        text = f"W&B refused to let this deployment claim items that no other agent has: {', '.join(sorted(free)[:5])}."
        perform.apply(
            pass_, [Notice(Message(Code.ACK_REFUSED, f"{text} Their jobs run, and the next pass claims them."))]
        )
    entries = [pass_.ledger.open[item] for item in items]
    perform.apply(pass_, reconcile.judge_claims(entries, items, seen, pass_.settings, pass_.started))


def _settle(pass_: Pass, seen: Seen) -> Seen:
    """Settle the items whose job has ended; return what was seen with their runs as W&B shows them now."""
    entries = settle.ended_items(pass_.ledger, seen)
    items = look_up_items(pass_.services, pass_.ledger, entries)
    if pass_.services.pace.hides_items:  # W&B took the ack
        items = {entry.item: ItemView("CLAIMED", entry.run) for entry in entries} | dict(items)
    visible = [entry for entry in entries if entry.entity == pass_.ledger.home(entry, "")]
    runs = look_up_runs(pass_.services, [entry.run_id for entry in visible])
    perform.apply(pass_, settle.settle(entries, seen, items, runs, pass_.settings, pass_.started, pass_.services.pace))
    return replace(seen, wandb=replace(seen.wandb, runs={**seen.wandb.runs, **runs}))


# What starts


def _batches(pass_: Pass, seen: Seen, active: Sequence[ManagedJob]) -> Iterator[Batch]:
    """Decide round after round what to do: next attempts first, then what the queues hold, until slots or time are used up.

    The caller performs a batch before it asks for the next one.
    """
    agent, stopped = perform.register(pass_, seen)
    unclaimed = sum(1 for _ in pass_.ledger.at(Stage.UNCLAIMED))
    due, decided = start.due_retries(pass_, seen, Room.of(pass_, active))
    if due and not stopped and pass_.in_time:
        decided += start.retries(pass_, due, Room.of(pass_, active), pass_.services.key.get())
    yield Batch(pass_.held.lock.expires, decided)
    status = "RUNNING" if pass_.ledger.slots_used(active) else "POLLING"
    queues, factor = Queues([] if stopped else list(seen.queues), agent), 1
    alone: dict[str, tuple[Item, float]] = {}
    while True:
        # Rounds in which nothing could start grow: one free slot must not mean one item at a time past a long line.
        room = Room.of(pass_, active).jobs
        want = min(room * factor, max(room, pass_.settings.batches.pops))
        until = pass_.now + pass_.settings.lease - pass_.settings.timeouts.margin
        # Items of jobs that are not claimed come back through the queue beside those that may start.
        items = queues.lease(pass_, seen, want + unclaimed, status)
        if not items:
            break
        unclaimed -= min(unclaimed, max(0, len(items) - want))
        failed, suspects = start.suspects(pass_, items)
        size = sum(item.size for item, _ in alone.values())
        later = [item for item in suspects if item.id not in alone and size > LARGEST_LEASE]
        alone |= {item.id: (item, until) for item in suspects if item not in later}
        apart = {item.id for item in suspects} | {reject.item.id for reject in failed}
        items = [item for item in items if item.id not in apart]
        batch = _round(pass_, seen, items, active, until)
        batch = replace(batch, decided=[*failed, *start.put_off(later), *batch.decided])
        factor = 1 if batch.creates or batch.claims else 2 * factor
        yield batch
        del batch, items, failed, suspects, later
    yield from _alone(pass_, seen, alone, active)
    if agent and not queues.asked:
        perform.refresh_status(pass_, agent, status)


def _alone(
    pass_: Pass, seen: Seen, suspects: Mapping[str, tuple[Item, float]], active: Sequence[ManagedJob]
) -> Iterator[Batch]:
    """Try what passes may have died of, one by one and the least suspicious first; there is one batch for each."""
    for item, until in sorted(suspects.values(), key=lambda one: pass_.ledger.suspects[one[0].id].kills):
        if not pass_.in_time or pass_.now > until or Room.of(pass_, active).jobs < 1:
            yield Batch(until, list(start.put_off([item])))
            continue
        yield _round(pass_, seen, [item], active, until)
        pass_.ledger.acquit(item.id)
    if suspects:
        perform.note(pass_, [])


def _round(pass_: Pass, seen: Seen, items: Sequence[Item], active: Sequence[ManagedJob], until: float) -> Batch:
    """Decide about popped items: what has a job already, what can start, and what cannot.

    No check begins after two thirds of the lease: the rest is for what follows from them.
    """
    unchecked = [item for item in items if item.id not in pass_.ledger.open]
    if unchecked:
        perform.note(pass_, unchecked)
    third = (until - pass_.now) / 3
    parse_until, check_until = pass_.now + third, pass_.now + 2 * third
    for item in items:
        pass_.services.redact.add(run_spec.own_key(item))
    foreign = [item for item in items if start.is_foreign(item)]
    known = [item for item in items if item not in foreign and item.id in pass_.ledger.open]
    new = [item for item in items if item not in foreign and item not in known]
    prepared = prepare(pass_.settings, pass_.services, seen.entity, new, parse_until)
    key = pass_.services.key.get() if new else ""
    pass_.services.redact.pin(key)
    started = start.start(pass_, new, prepared, Room.of(pass_, active), key, check_until)
    return Batch(until, [*start.foreign(pass_, seen, foreign), *start.adopt(pass_, seen, known), *started])
