"""Defects put into the product, one at a time, each of which the simulation must find."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from vertex_launch.codes import Code
from vertex_launch.dispatch import look, perform, reconcile, run, settle, start, watch
from vertex_launch.dispatch.context import Cancel, Keep, Pass, Reject, Verdict
from vertex_launch.dispatch.prepare import prepare
from vertex_launch.dispatch.settle import Unknown
from vertex_launch.dispatch.start import Room
from vertex_launch.errors import ItemDeferred, ItemRejected, LaunchError, PassBusy
from vertex_launch.job import labels, outcome, retry
from vertex_launch.log import Redactor
from vertex_launch.model import ItemView, Kind, Lock, Phase
from vertex_launch.state.ledger import Ledger, OpenItem, Stage
from vertex_launch.state.record import LEDGER, LOCK, Held, Record

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutation:
    """``apply`` changes the product; ``breaks`` is how what goes wrong then begins."""

    apply: Callable[[Patch], None]
    breaks: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.apply.__name__


MUTATIONS: list[Mutation] = []


RAISES = "pass"
"""What breaks if a pass raises an error that it does not expect."""


def _breaks(*breaks: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def add(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTATIONS.append(Mutation(apply, breaks))
        return apply

    return add


def _wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put ``around`` in the place of a function, which it gets as its first argument."""
    real = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **named: around(real, *args, **named))


def _without(patch: Patch, unwanted: Callable[[Any], bool]) -> None:
    """Let a pass not perform some actions."""

    def apply(real: Any, one: Pass, actions: Any, *args: Any) -> None:
        real(one, [action for action in actions if not unwanted(action)], *args)

    _wrap(patch, perform, "apply", apply)


def _outcomes(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Let a pass take the outcome of a create for another one."""

    def create(real: Any, one: Pass, create: Any, until: float) -> Any:
        try:
            return real(one, create, until)
        except LaunchError as error:
            raise change(error) from error

    _wrap(patch, perform, "_create", create)


def _deciding(patch: Patch, change: Callable[[Any], Any]) -> None:
    """Let a pass decide about an ended job from something else than it knows."""
    _wrap(patch, settle, "decide", lambda real, ended, *args: real(change(ended), *args))


# Items, plans, the lock


@_breaks("I1")
def ack_before_create(patch: Patch) -> None:
    """Items are claimed first, as the official agent does, and their jobs created then."""

    def create(real: Any, one: Pass, creates: Any, until: float) -> Any:
        if first := [(create.item.id, create.request.run.id) for create in creates if create.attempt == 1]:
            one.services.queue.ack(first, 10)
        return real(one, creates, until)

    _wrap(patch, perform, "create", create)


@_breaks("I2", "I4")
def no_adoption(patch: Patch) -> None:
    """An item that comes back after its lease is taken for a new one."""

    def decide(real: Any, one: Pass, seen: Any, items: Any, *rest: Any) -> Any:
        known = one.ledger.open
        one.ledger.open = {}
        try:
            return real(one, seen, items, *rest)
        finally:
            one.ledger.open = known

    _wrap(patch, run, "_round", decide)


@_breaks("I3")
def cancelling_jobs_hold_no_slot(patch: Patch) -> None:
    """A job that is being cancelled counts as ended."""

    def used(real: Any, self: Ledger, active: Any) -> Any:
        dying = {job.name for job in active if job.cancelling}
        kept = {item: entry for item, entry in self.open.items() if entry.job not in dying}
        return real(self.model_copy(update={"open": kept}), [job for job in active if not job.cancelling])

    _wrap(patch, Ledger, "slots_used", used)


@_breaks("I1", "I2", "I3", "I4")
def intents_are_not_written(patch: Patch) -> None:
    """Jobs are created without a word in the ledger beforehand."""

    def create(real: Any, one: Pass, *rest: Any) -> Any:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(one.held, "save", lambda: None)
            return real(one, *rest)

    _wrap(patch, perform, "create", create)


@_breaks("I1", "I2", "I3", "I4")
def intents_are_forgotten_at_once(patch: Patch) -> None:
    """A create of unknown outcome is taken for one that failed."""

    def create(real: Any, one: Pass, *rest: Any) -> Any:
        outcomes = real(one, *rest)
        for entry in list(one.ledger.at(Stage.PLANNED)):
            perform._create_failed(one, entry.item)
        return outcomes

    _wrap(patch, perform, "create", create)


@_breaks("I4: nothing justifies")
def every_refused_ack_cancels(patch: Patch) -> None:
    """A refused ack is taken for the proof that someone else has the item."""

    def judge(one: Pass, seen: Any, refused: Any) -> None:
        entries = [one.ledger.open[item] for item in refused]
        why = reconcile.WAITS_FOR_QUOTA
        perform.apply(one, [Cancel(entry.item, entry.job, why) for entry in entries])

    patch.setattr(run, "_judge_refused", judge)


@_breaks("I0")
def the_lock_is_taken_by_force(patch: Patch) -> None:
    """An expired lock is taken over without naming its generation."""

    def take_lock(self: Record, pass_id: str, now: float, expires: float, free: int) -> Lock:
        content = json.dumps({"pass_id": pass_id, "expires": expires}).encode()
        if (taken := self._objects.write(LOCK, content, free)) is not None:
            return Lock(pass_id, expires, taken)
        found = self._objects.read(LOCK)
        if found and (left := json.loads(found[0])["expires"] - now) > 0:
            raise PassBusy("a pass is running", left)
        return Lock(pass_id, expires, _force(self, LOCK, content), taken_over=True)

    patch.setattr(Record, "take_lock", take_lock)


@_breaks("I1", "I2", "I3", "I4")
def the_ledger_is_written_by_force(patch: Patch) -> None:
    """A pass that has lost its lock writes the ledger all the same."""

    def write(self: Record, ledger: Ledger, pass_id: str, generation: int) -> int:
        return _force(self, LEDGER, ledger.dump())

    patch.setattr(Record, "write", write)


def _force(record: Record, name: str, content: bytes) -> int:
    while True:
        found = record._objects.read(name)
        written = record._objects.write(name, content, found[1] if found else 0)
        if written is not None:
            return written


@_breaks("I1", "I2", "I4")
def a_lost_ledger_is_not_rebuilt(patch: Patch) -> None:
    """A pass without a ledger begins with an empty one."""

    def init(real: Any, self: Held, *args: Any) -> None:
        real(self, *args)
        self.ledger.rebuild = False

    _wrap(patch, Held, "__init__", init)


@_breaks("I4")
def leases_last_for_ever(patch: Patch) -> None:
    """Items are acked and failed although their lease is over."""

    def batches(real: Any, *args: Any) -> Any:
        return (replace(batch, until=batch.until + 1000) for batch in real(*args))

    _wrap(patch, run, "_batches", batches)


@_breaks("I1", "I4")
def an_ack_counts_as_accepted(patch: Patch) -> None:
    """Whatever W&B says to an ack, the item is taken for claimed."""

    def claim(real: Any, one: Pass, claims: Any, until: float) -> Any:
        refused = real(one, claims, until)
        for each in claims:
            if each.item in one.ledger.open:
                one.ledger.keep(one.ledger.open[each.item].claim_now())
        return refused

    _wrap(patch, perform, "claim", claim)


@_breaks("I1", "I4")
def claims_are_never_checked(patch: Patch) -> None:
    """Jobs whose ack was not heard of are not compared with their item."""
    patch.setattr(reconcile, "judge_claims", lambda *args: [])


@_breaks("I1: job", "I2", "I4")
def twins_live(patch: Patch) -> None:
    """Of two jobs for one item none is cancelled."""
    _without(patch, lambda action: isinstance(action, Cancel) and action.why.code is Code.DUPLICATE_JOB)


@_breaks("I1", "I2", "I3", "I4")
def creates_are_sent_however_late(patch: Patch) -> None:
    """A pass that was frozen after it wrote its plans goes on with them."""

    def create(real: Any, one: Pass, create: Any, until: float) -> Any:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(one.held, "lock", replace(one.held.lock, expires=1e12))
            return real(one, create, 1e12)

    _wrap(patch, perform, "_create", create)


@_breaks("I4", RAISES)
def a_new_policy_fails_what_trains(patch: Patch) -> None:
    """An item that comes back is checked before its job is adopted."""

    def adopt(real: Any, one: Pass, items: Any) -> Any:
        prepared = prepare(one.settings, one.services, "acme", items)
        room = Room(one.settings, dict.fromkeys(Kind, 99.0), {}, 99)
        for decision in start.start(one, items, prepared, room, "k" * 40, math.inf):
            if isinstance(decision, Reject):
                yield decision
        yield from real(one, items)

    _wrap(patch, start, "adopt", adopt)


# What may start


@_breaks("I3")
def schedulers_are_not_limited(patch: Patch) -> None:
    """Sweep schedulers start in any number."""

    def take(real: Any, self: Room, kind: Kind, region: str) -> None:
        self.slots[Kind.SCHEDULER] = 99
        real(self, kind, region)

    _wrap(patch, Room, "take", take)


@_breaks("I3")
def further_attempts_need_no_slot(patch: Patch) -> None:
    """What is submitted again does not ask whether a slot is free."""

    def endless(room: Room) -> Room:
        return replace(room, slots=dict.fromkeys(Kind, 99.0))

    _wrap(patch, start, "due_retries", lambda real, one, seen, room: real(one, seen, endless(room)))
    _wrap(patch, start, "retries", lambda real, one, entries, room, key: real(one, entries, endless(room), key))


@_breaks("I2: two items")
def runs_are_shared(patch: Patch) -> None:
    """Two items with one run id start at the same time."""
    patch.setattr(Ledger, "user_of", lambda self, run, item: None)


@_breaks("I3")
def limits_of_requests_are_ignored(patch: Patch) -> None:
    """A person's ``limit`` changes nothing."""
    _wrap(patch, run, "run_pass", lambda real, *args: real(*args[:2], replace(args[2], limit=None)))
    patch.setattr("tests.simulation.world.run_pass", run.run_pass)


@_breaks("I3", "I4")
def unknown_states_have_ended(patch: Patch) -> None:
    """A state that nobody has heard of counts as an end."""
    _wrap(patch, outcome, "is_ended", lambda real, state: real(state) or state == 42)


@_breaks("I4", RAISES)
def a_stopped_agent_goes_on(patch: Patch) -> None:
    """A stop in W&B's app is not obeyed."""
    _wrap(patch, perform, "register", lambda real, *args: (real(*args)[0], False))


@_breaks("I1")
def no_quota_fails_items(patch: Patch) -> None:
    """A 429 counts as final."""
    _outcomes(
        patch, lambda error: ItemRejected(str(error), code=Code.JOB_QUOTA) if isinstance(error, ItemDeferred) else error
    )


@_breaks("I1", "I6")
def hopeless_items_wait(patch: Patch) -> None:
    """A 403 counts as something that may pass, for ever."""

    def waits(error: Any) -> Any:
        return ItemDeferred(str(error), code=Code.NO_ROOM, warn=False) if isinstance(error, ItemRejected) else error

    _outcomes(patch, waits)


@_breaks("I1: job", "I2", "I3", "I4")
def a_job_that_cannot_be_got_is_gone(patch: Patch) -> None:
    """An error of Vertex AI is taken for a deleted job."""

    def get(real: Any, services: Any, *args: Any) -> Any:
        def run_parallel(calls: Any, at_once: int) -> Any:
            return [None if isinstance(got, LaunchError) else got for got in services.run_parallel(calls, at_once)]

        return real(replace(services, run_parallel=run_parallel), *args)

    _wrap(patch, look, "_get_unlisted", get)


@_breaks("I4: attempt")
def attempts_are_not_counted(patch: Patch) -> None:
    """An item is submitted again and again."""

    def another(real: Any, entry: Any, job: Any, end: Any, settings: Any, age: float) -> Any:
        return real(entry, job, end, settings.model_copy(update={"max_attempts": 99}), age)

    _wrap(patch, settle, "_another", another)


@_breaks("I2", "I4")
def attempts_have_no_number(patch: Patch) -> None:
    """Every attempt is labelled as the first."""
    _wrap(patch, retry, "next_attempt", lambda real, request, **how: real(request, **how | {"attempt": 1}))


@_breaks("I4: attempt")
def a_stopped_run_is_submitted_again(patch: Patch) -> None:
    """A preempted job goes on although a person stopped its run."""

    def decide(real: Any, ended: Any, *args: Any) -> Any:
        run = replace(ended.run, stopped=False) if hasattr(ended.run, "stopped") else ended.run
        return real(replace(ended, run=run, entry=ended.entry._noted(stop_seen=0, cancelled="")), *args)

    _wrap(patch, settle, "decide", decide)
    a_stop_between_attempts_is_not_seen(patch)


@_breaks("I4: attempt")
def a_stop_between_attempts_is_not_seen(patch: Patch) -> None:
    """Before the next attempt nobody asks again whether its run was stopped."""

    def never(real: Any, *args: Any) -> Any:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(start, "is_stopped", lambda run: False)
            return real(*args)

    _wrap(patch, start, "_never", never)


@_breaks("I4: attempt")
def attempts_follow_at_once(patch: Patch) -> None:
    """There is no pause before the next attempt."""
    _wrap(patch, OpenItem, "retry_later", lambda real, self, at, *args, **how: real(self, 0, *args, **how))


@_breaks("I4: the job")
def a_further_attempt_takes_todays_key(patch: Patch) -> None:
    """The key that an item brought is lost with its first attempt."""

    def following(real: Any, request: Any, **how: Any) -> Any:
        request.custom_job.labels.pop(labels.KEY, None)
        return real(request, **how)

    _wrap(patch, retry, "next_attempt", following)


@_breaks("I4")
def every_failure_is_final(patch: Patch) -> None:
    """A preempted job is not submitted again."""
    patch.setattr(settle, "_another", lambda *args: False)


@_breaks("I4: attempt")
def every_failure_is_repeated(patch: Patch) -> None:
    """A program that fails is submitted again, too."""
    _wrap(patch, outcome, "of", lambda real, job: (end := real(job)) and replace(end, again=end.verb == "failed"))


# How jobs end


@_breaks("I1", "I4")
def a_job_is_settled_instead_of_its_item(patch: Patch) -> None:
    """The end of a twin is told as if it were the item's."""

    def cancel(real: Any, one: Pass, cancels: Any) -> None:
        real(one, cancels)
        told = {row["job"] for row in one.report.cancelled}
        for each in [each for each in cancels if each.job in told and each.why.code is Code.DUPLICATE_JOB]:
            one.services.queue.fail([(each.item, f"Vertex AI job {each.job} was cancelled.")], Phase.RUN, 10)

    _wrap(patch, perform, "_cancel", cancel)


@_breaks("I2", "I3", "I4", RAISES)
def an_event_makes_its_job_the_items(patch: Patch) -> None:
    """The job that an event names is settled, whether or not it is its item's."""

    def looking(
        real: Any, settings: Any, services: Any, ledger: Ledger, queues: Any, now: float, ended: str = ""
    ) -> Any:
        job = services.vertex.get(ended) if ended else None
        if job and job.ended and job.item in ledger.open:
            ledger.keep(ledger.open[job.item].observe(job, now))
        return real(settings, services, ledger, queues, now, ended)

    _wrap(patch, run, "look", looking)


@_breaks("I4")
def a_frozen_pass_settles(patch: Patch) -> None:
    """A pass tells W&B how jobs ended although it has lost its lock."""
    patch.setattr(Pass, "last_word", 1e12)


@_breaks("I4")
def what_was_settled_is_forgotten(patch: Patch) -> None:
    """A pass that fails later gives back the ledger as it found it."""
    patch.setattr(Held, "keep", lambda self: None)
    _wrap(patch, Held, "save", _and_keep)


def _and_keep(real: Any, self: Held) -> None:
    real(self)
    self._kept = self.ledger.dump()


@_breaks("I4")
def lists_are_always_true(patch: Patch) -> None:
    """A settled job that a list still shows as active is a new one."""

    def decide(real: Any, ledger: Ledger, *args: Any) -> Any:
        ledger.settled.clear()
        ledger.settled_items.clear()
        return real(ledger, *args)

    _wrap(patch, reconcile, "reconcile", decide)


@_breaks("I4: job_state")
def the_text_of_an_entry_is_trusted(patch: Patch) -> None:
    """A log entry that says so is enough for an end."""
    _wrap(
        patch,
        watch,
        "find",
        lambda real, hint, *args: (job := real(hint, *args)) and replace(job, ended=job.ended or hint.ended),
    )


@_breaks("I1", "I4")
def only_events_settle(patch: Patch) -> None:
    """A job's end is seen only by the pass that an event asks for."""
    _wrap(patch, run, "_settle", lambda real, one, seen: real(one, seen) if one.request.ended else seen)


@_breaks("I4: job_state")
def job_state_is_deaf(patch: Patch) -> None:
    """Log entries ask for nothing."""
    patch.setattr(watch, "find", lambda *args: None)


@_breaks("I1", "I4")
def warnings_are_repeated(patch: Patch) -> None:
    """A job that was warned about is not done with."""

    def settled(real: Any, one: Pass, settle: Any) -> None:
        if settle.verdict is not Verdict.WARNED:
            real(one, settle)

    _wrap(patch, perform, "_settled", settled)


@_breaks("I4")
def a_lost_ledger_warns_again(patch: Patch) -> None:
    """What had ended before the ledger was lost is told once more."""
    _deciding(patch, lambda ended: replace(ended, entry=ended.entry._noted(found_ended=False)))


@_breaks("I4")
def the_reason_is_not_waited_for(patch: Patch) -> None:
    """A failed job is settled before Vertex AI says why."""
    _deciding(patch, lambda ended: replace(ended, job=ended.job and replace(ended.job, error=ended.job.error or " ")))


@_breaks("I4")
def the_run_is_not_waited_for(patch: Patch) -> None:
    """An item is failed although its run may still show up."""
    _wrap(patch, settle, "_told", lambda real, *args, young: real(*args, young=False))


@_breaks("I4")
def an_unknown_run_never_started(patch: Patch) -> None:
    """A run that W&B cannot tell about is taken for one that does not exist."""
    _deciding(patch, lambda ended: replace(ended, run=None) if ended.run is Unknown.NOW else ended)


@_breaks("I4")
def a_deleted_job_fails_its_item(patch: Patch) -> None:
    """An item whose job is gone fails although its run has begun."""
    _wrap(patch, settle, "_deleted", lambda real, ended, *args, **how: real(replace(ended, run=None), *args, **how))


@_breaks("I4")
def somebody_elses_items_are_settled(patch: Patch) -> None:
    """A job's end is told to its item whoever owns that."""
    _deciding(patch, lambda ended: replace(ended, item=ItemView("CLAIMED", ended.entry.run)))

    def judge(real: Any, entry: OpenItem, item: ItemView | None, known: Any) -> Any:
        return [Keep(entry.claim())] if item and item.state == "CLAIMED" else list(real(entry, item, known))

    _wrap(patch, reconcile, "_judge", judge)


@_breaks("I4: the scheduler")
def sweeps_go_on_without_a_scheduler(patch: Patch) -> None:
    """The sweep of a failed scheduler is left alone."""
    patch.setattr(perform, "_with_sweep", lambda one, settle: replace(settle, sweep=""))


@_breaks("I5")
def nothing_is_redacted(patch: Patch) -> None:
    """Error texts are passed on as they are."""
    patch.setattr(Redactor, "__call__", lambda self, text: text)


# Jobs that are asked to end


@_breaks("I4: nothing justifies")
def a_stopped_run_gets_no_time(patch: Patch) -> None:
    """A running job is cancelled as soon as its run is stopped."""
    _wrap(
        patch,
        reconcile,
        "_stopped",
        lambda real, entry, job, known: real(entry, replace(job, state=outcome.PENDING), known),
    )


@_breaks("I4: nothing justifies")
def old_stops_count(patch: Patch) -> None:
    """A stop from before the job was submitted ends it."""
    _wrap(patch, reconcile, "_watched", lambda real, entry, *args: real(entry._but(stopped_before=False), *args))


@_breaks("I1: job")
def stops_are_ignored(patch: Patch) -> None:
    """Nobody asks whether a run was stopped."""
    patch.setattr(reconcile, "_stopped", lambda *args: None)


@_breaks("I4: nothing justifies")
def quota_counts_as_start(patch: Patch) -> None:
    """The start timeout also counts the time in which a job is QUEUED."""

    def waited(real: Any, entry: Any, job: Any, known: Any) -> Any:
        return real(entry, replace(job, state=outcome.PENDING) if job.state == outcome.QUEUED else job, known)

    _wrap(patch, reconcile, "_waited", waited)


@_breaks("I1: job")
def jobs_may_wait_for_ever(patch: Patch) -> None:
    """There is no start timeout."""
    patch.setattr(reconcile, "_waited", lambda *args: None)
