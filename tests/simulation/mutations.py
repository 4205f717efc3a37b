"""Defects put into the product, one at a time, each of which the simulation must find."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from vertex_launch.dispatch import run as dispatcher
from vertex_launch.dispatch import settle as settling
from vertex_launch.dispatch import watch
from vertex_launch.dispatch.prepare import build_request, prepare
from vertex_launch.dispatch.reconcile import Reconciler
from vertex_launch.dispatch.run import _Pass
from vertex_launch.dispatch.settle import Do, Unknown
from vertex_launch.errors import ItemDeferred, ItemRejected, PassBusy
from vertex_launch.job import labels, outcome, retry
from vertex_launch.log import Redactor
from vertex_launch.model import Hold, Item, ItemView, Kind, Phase
from vertex_launch.state.ledger import Ledger, OpenJob, Stage
from vertex_launch.state.record import HOLD, LEDGER, Record

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


def _breaks(*breaks: str) -> Callable[[Callable[[Patch], None]], Callable[[Patch], None]]:
    def add(apply: Callable[[Patch], None]) -> Callable[[Patch], None]:
        MUTATIONS.append(Mutation(apply, breaks))
        return apply

    return add


def _wrap(patch: Patch, owner: Any, name: str, around: Callable[..., Any]) -> None:
    """Put ``around`` in the place of a function, which it gets as its first argument."""
    real = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **named: around(real, *args, **named))


# Items, intents, the hold


@_breaks("I1")
def ack_before_create(patch: Patch) -> None:
    """Items are claimed first, as the official agent does, and their jobs created then."""

    def create(real: Any, self: _Pass, starts: Any) -> Any:
        if first := [(start.item.id, start.request.run.id) for start in starts if start.attempt == 1]:
            self._services.queue.ack(first, 10)
        return real(self, starts)

    _wrap(patch, _Pass, "_create", create)


@_breaks("I2", "I4")
def no_adoption(patch: Patch) -> None:
    """An item that comes back after its lease is taken for a new one."""

    def check(real: Any, self: _Pass, item: Item, prepared: Any, starts: Any) -> Any:
        return real(self, item, prepare(self._settings, self._services, self._seen.entity, [item]), starts)

    patch.setattr(_Pass, "_adopt", lambda self, item: None)
    _wrap(patch, _Pass, "_check", check)


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

    def create(real: Any, self: _Pass, starts: Any) -> Any:
        write, self._write_ledger = self._write_ledger, lambda: None  # type: ignore[method-assign]
        try:
            return real(self, starts)
        finally:
            self._write_ledger = write  # type: ignore[method-assign]

    _wrap(patch, _Pass, "_create", create)


@_breaks("I1", "I2", "I3")
def intents_are_forgotten_at_once(patch: Patch) -> None:
    """A create of unknown outcome is taken for one that failed."""

    def create(real: Any, self: _Pass, starts: Any) -> Any:
        claims = real(self, starts)
        for entry in list(self._ledger.at(Stage.INTENDED)):
            self._ledger.no_create(entry.item, self._clock())
        return claims

    _wrap(patch, _Pass, "_create", create)


@_breaks("I4: nothing justifies")
def every_refused_ack_cancels(patch: Patch) -> None:
    """A refused ack is taken for the proof that somebody else has the item."""

    def ack(real: Any, self: _Pass, claims: Any) -> None:
        reconciler = self._reconciler

        def cancel(entry: Any, item: Any) -> None:
            reconciler._cancel(entry.item, entry.job, "its ack was refused")

        reconciler.judge_claim = cancel  # type: ignore[method-assign]
        real(self, claims)

    _wrap(patch, _Pass, "_ack", ack)


@_breaks("I0")
def the_hold_is_taken_by_force(patch: Patch) -> None:
    """An expired hold is taken over without naming its generation."""

    def take_hold(self: Record, pass_id: str, now: float, expires: float, free: int) -> Hold:
        content = json.dumps({"pass_id": pass_id, "expires": expires}).encode()
        if (taken := self._objects.write(HOLD, content, free)) is not None:
            return Hold(pass_id, expires, taken)
        found = self._objects.read(HOLD)
        if found and (left := json.loads(found[0])["expires"] - now) > 0:
            raise PassBusy("a pass is running", left)
        return Hold(pass_id, expires, _force(self, HOLD, content), taken_over=True)

    patch.setattr(Record, "take_hold", take_hold)


@_breaks("I1", "I2", "I3", "I4")
def the_ledger_is_written_by_force(patch: Patch) -> None:
    """A pass that has lost its hold writes the ledger all the same."""

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

    def open_ledger(real: Any, self: _Pass, stored: Any) -> None:
        real(self, stored)
        self._ledger.rebuild = False

    _wrap(patch, _Pass, "_open_ledger", open_ledger)


@_breaks("I4")
def leases_last_for_ever(patch: Patch) -> None:
    """Items are acked and failed although their lease is over."""

    def pop(real: Any, self: _Pass) -> Any:
        popped = real(self)
        self._ack_by += 1000
        return popped

    _wrap(patch, _Pass, "_pop", pop)


@_breaks("I1", "I4")
def an_ack_counts_as_accepted(patch: Patch) -> None:
    """Whatever W&B says to an ack, the item is taken for claimed."""

    def ack(real: Any, self: _Pass, claims: Any) -> None:
        real(self, claims)
        for claim in claims:
            if claim.item in self._ledger.open:
                self._ledger.acked(claim.item)

    _wrap(patch, _Pass, "_ack", ack)


@_breaks("I1", "I4")
def claims_are_never_checked(patch: Patch) -> None:
    """Jobs whose ack was not heard of are not compared with their item."""
    patch.setattr(Reconciler, "judge_claim", lambda self, entry, item: None)
    patch.setattr(Reconciler, "_confirm_acks", lambda self, gone: None)


@_breaks("I1: job", "I2", "I4")
def twins_live(patch: Patch) -> None:
    """Of two jobs for one item none is cancelled."""

    def cancel(real: Any, self: Reconciler, item: str, name: str, why: str) -> Any:
        return True if "the same item" in why else real(self, item, name, why)

    _wrap(patch, Reconciler, "_cancel", cancel)


@_breaks("I1", "I2", "I3", "I4")
def creates_are_sent_however_late(patch: Patch) -> None:
    """A pass that was frozen after it wrote its intents goes on with them."""

    def create(real: Any, self: _Pass, start: Any) -> Any:
        self._ack_by, self._hold = 1e12, replace(self._hold, expires=1e12)
        return real(self, start)

    _wrap(patch, _Pass, "_create_one", create)


@_breaks("I4")
def a_new_policy_fails_what_trains(patch: Patch) -> None:
    """An item that comes back is checked before its job is adopted."""

    def adopt(real: Any, self: _Pass, item: Any) -> Any:
        prepared, redact = prepare(self._settings, self._services, self._seen.entity, [item]), self._services.redact
        build_request(item, prepared, self._settings, api_key="k" * 40, now=datetime.now(UTC), redact=redact)
        return real(self, item)

    _wrap(patch, _Pass, "_adopt", adopt)


# What may start


@_breaks("I3")
def schedulers_are_not_limited(patch: Patch) -> None:
    """Sweep schedulers start in any number."""
    _wrap(patch, _Pass, "_free", lambda real, self, kind: 99 if kind is Kind.SCHEDULER else real(self, kind))


@_breaks("I3")
def further_attempts_need_no_slot(patch: Patch) -> None:
    """What is submitted again does not ask whether a slot is free."""

    def resubmit(real: Any, self: _Pass) -> None:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(self, "_free", lambda kind: 99)
            meanwhile.setattr(self, "_check_limits", lambda *limits: None)
            real(self)

    _wrap(patch, _Pass, "_resubmit", resubmit)


@_breaks("I2: two items")
def runs_are_shared(patch: Patch) -> None:
    """Two items with one run id start at the same time."""
    patch.setattr(Ledger, "holder", lambda self, run, item: None)


@_breaks("I3")
def limits_of_requests_are_ignored(patch: Patch) -> None:
    """A person's ``limit`` changes nothing."""

    def run(real: Any, self: _Pass, *args: Any) -> Any:
        self._request = replace(self._request, limit=None)
        return real(self, *args)

    _wrap(patch, _Pass, "run", run)


@_breaks("I3", "I4")
def unknown_states_have_ended(patch: Patch) -> None:
    """A state that nobody has heard of counts as an end."""
    _wrap(patch, outcome, "is_ended", lambda real, state: real(state) or state == 42)


@_breaks("I4")
def a_stopped_agent_goes_on(patch: Patch) -> None:
    """A stop in W&B's app is not obeyed."""

    def register(real: Any, self: _Pass) -> None:
        real(self)
        self._stopped = False

    _wrap(patch, _Pass, "_register", register)


@_breaks("I1")
def no_quota_fails_items(patch: Patch) -> None:
    """A 429 counts as final."""

    def create(real: Any, self: _Pass, start: Any) -> Any:
        answer = real(self, start)
        return ItemRejected(str(answer)) if isinstance(answer, ItemDeferred) else answer

    _wrap(patch, _Pass, "_create_one", create)


@_breaks("I1", "I6")
def hopeless_items_wait(patch: Patch) -> None:
    """A 403 counts as something that may pass, for ever."""

    def create(real: Any, self: _Pass, start: Any) -> Any:
        answer = real(self, start)
        return ItemDeferred(str(answer), tell=False) if isinstance(answer, ItemRejected) else answer

    _wrap(patch, _Pass, "_create_one", create)


@_breaks("I1: job", "I2", "I3", "I4")
def a_job_that_cannot_be_got_is_gone(patch: Patch) -> None:
    """An error of Vertex AI is taken for a deleted job."""
    _wrap(
        patch,
        Reconciler,
        "_get",
        lambda real, self, entry: None if isinstance(got := real(self, entry), Exception) else got,
    )


@_breaks("I4: attempt")
def attempts_are_not_counted(patch: Patch) -> None:
    """An item is submitted again and again."""

    def another(real: Any, entry: Any, job: Any, end: Any, settings: Any, age: float) -> Any:
        return real(entry, job, end, settings.model_copy(update={"max_attempts": 99}), age)

    _wrap(patch, settling, "_another", another)


@_breaks("I2", "I4")
def attempts_have_no_number(patch: Patch) -> None:
    """Every attempt is labelled as the first."""
    _wrap(patch, retry, "next_attempt", lambda real, request, **how: real(request, **how | {"attempt": 1}))


@_breaks("I4: attempt")
def a_stopped_run_is_submitted_again(patch: Patch) -> None:
    """A preempted job goes on although a person stopped its run."""

    def decide(real: Any, entry: Any, job: Any, run: Any, *args: Any) -> Any:
        run = replace(run, stopped=False) if hasattr(run, "stopped") else run
        return real(entry.model_copy(update={"stop_seen": 0, "cancelled": ""}), job, run, *args)

    _wrap(patch, settling, "decide", decide)
    a_stop_between_attempts_is_not_seen(patch)


@_breaks("I4: attempt")
def a_stop_between_attempts_is_not_seen(patch: Patch) -> None:
    """Before the next attempt nobody asks again whether its run was stopped."""

    def may_go_on(real: Any, self: _Pass, entry: OpenJob) -> bool:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(dispatcher, "_is_stopped", lambda run: False)
            return bool(real(self, entry))

    _wrap(patch, _Pass, "_may_go_on", may_go_on)


@_breaks("I4: attempt")
def attempts_follow_at_once(patch: Patch) -> None:
    """There is no pause before the next attempt."""
    _wrap(patch, Ledger, "again", lambda real, self, item, at, *args, **how: real(self, item, 0, *args, **how))


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
    patch.setattr(settling, "_another", lambda *args: False)


@_breaks("I4: attempt")
def every_failure_is_repeated(patch: Patch) -> None:
    """A program that fails is submitted again, too."""
    _wrap(patch, outcome, "of", lambda real, job: (end := real(job)) and replace(end, again=end.verb == "failed"))


# How jobs end


@_breaks("I4")
def a_job_is_settled_instead_of_its_item(patch: Patch) -> None:
    """The end of a twin is told as if it were the item's."""

    def cancel(real: Any, self: Reconciler, item: str, name: str, why: str) -> Any:
        done = real(self, item, name, why)
        if done and "serves the same item" in why:
            self.services.queue.fail([(item, f"Vertex AI job {name} was cancelled.")], Phase.RUN, 10)
        return done

    _wrap(patch, Reconciler, "_cancel", cancel)


@_breaks("I2", "I3", "I4")
def an_event_makes_its_job_the_items(patch: Patch) -> None:
    """The job that an event names is settled, whether or not it is its item's."""

    def reconcile(real: Any, self: Reconciler, hint: str = "") -> Any:
        job = self.services.vertex.get(hint) if hint else None
        if job and job.ended and job.item in self.ledger.open:
            self.ledger.found(job, self.now)
        return real(self, hint)

    _wrap(patch, Reconciler, "reconcile", reconcile)


@_breaks("I4")
def a_frozen_pass_settles(patch: Patch) -> None:
    """A pass tells W&B how jobs ended although it has lost its hold."""

    def send(real: Any, self: Reconciler, *args: Any) -> None:
        self.until = 1e12
        real(self, *args)

    _wrap(patch, Reconciler, "_send", send)


@_breaks("I4")
def what_was_settled_is_forgotten(patch: Patch) -> None:
    """A pass that fails later gives back the ledger as it found it."""

    def reconcile(real: Any, self: _Pass) -> None:
        kept = self._kept
        real(self)
        self._kept = kept

    _wrap(patch, _Pass, "_reconcile", reconcile)


@_breaks("I4")
def lists_are_always_true(patch: Patch) -> None:
    """A settled job that a list still shows as active is a new one."""

    def reconcile(real: Any, self: Reconciler, *args: Any) -> Any:
        self.ledger.settled.clear()
        return real(self, *args)

    _wrap(patch, Reconciler, "reconcile", reconcile)


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

    def settle(real: Any, self: Reconciler, jobs: Any, gone: Any) -> None:
        if self.hint:  # type: ignore[attr-defined]
            real(self, jobs, gone)

    def reconcile(real: Any, self: Reconciler, hint: str = "") -> Any:
        self.hint = hint  # type: ignore[attr-defined]
        return real(self, hint)

    _wrap(patch, Reconciler, "_settle", settle)
    _wrap(patch, Reconciler, "reconcile", reconcile)


@_breaks("I4: job_state")
def job_state_is_deaf(patch: Patch) -> None:
    """Log entries ask for nothing."""
    patch.setattr(watch, "find", lambda *args: None)


@_breaks("I1", "I4")
def warnings_are_repeated(patch: Patch) -> None:
    """A job that was warned about is not done with."""

    def close(real: Any, self: Reconciler, entry: Any, job: Any, do: Do, text: str) -> None:
        if do is not Do.WARN:
            real(self, entry, job, do, text)

    _wrap(patch, Reconciler, "_close", close)


@_breaks("I4")
def a_lost_ledger_warns_again(patch: Patch) -> None:
    """What had ended before the ledger was lost is told once more."""

    def decide(real: Any, entry: Any, *args: Any) -> Any:
        return real(entry.model_copy(update={"quiet": False}), *args)

    _wrap(patch, settling, "decide", decide)


@_breaks("I4")
def the_reason_is_not_waited_for(patch: Patch) -> None:
    """A failed job is settled before Vertex AI says why."""

    def decide(real: Any, entry: Any, job: Any, *args: Any) -> Any:
        return real(entry, replace(job, error=job.error or " ") if job else None, *args)

    _wrap(patch, settling, "decide", decide)


@_breaks("I4")
def the_run_is_not_waited_for(patch: Patch) -> None:
    """An item is failed although its run may still show up."""
    _wrap(patch, settling, "_tell", lambda real, *args, young: real(*args, young=False))


@_breaks("I4")
def an_unknown_run_never_started(patch: Patch) -> None:
    """A run that W&B cannot tell about is taken for one that does not exist."""

    def runs(real: Any, self: Reconciler, entries: Any) -> Any:
        return {item: None if run is Unknown.NOW else run for item, run in real(self, entries).items()}

    _wrap(patch, Reconciler, "_runs", runs)


@_breaks("I4")
def a_deleted_job_fails_its_item(patch: Patch) -> None:
    """An item whose job is gone fails although its run has begun."""
    _wrap(patch, settling, "_deleted", lambda real, entry, run, *args, **how: real(entry, None, *args, **how))


@_breaks("I4")
def somebody_elses_items_are_settled(patch: Patch) -> None:
    """A job's end is told to its item whoever owns that."""

    def decide(real: Any, entry: Any, job: Any, run: Any, item: Any, *args: Any) -> Any:
        return real(entry, job, run, ItemView("CLAIMED", entry.run), *args)

    def judge(self: Reconciler, entry: Any, item: Any) -> None:
        if item.state == "CLAIMED":
            self.ledger.acked(entry.item)

    _wrap(patch, settling, "decide", decide)
    patch.setattr(Reconciler, "judge_claim", judge)


@_breaks("I4: the scheduler")
def sweeps_go_on_without_a_scheduler(patch: Patch) -> None:
    """The sweep of a failed scheduler is left alone."""
    patch.setattr(Reconciler, "_end_sweep", lambda self, entry, job: True)


@_breaks("I5")
def nothing_is_redacted(patch: Patch) -> None:
    """Error texts are passed on as they are."""
    patch.setattr(Redactor, "__call__", lambda self, text: text)


# Jobs that are asked to end


@_breaks("I4: nothing justifies")
def a_stopped_run_gets_no_time(patch: Patch) -> None:
    """A running job is cancelled as soon as its run is stopped."""

    def stop(real: Any, self: Reconciler, entry: Any, job: Any) -> Any:
        return real(self, entry, replace(job, state=outcome.PENDING))

    _wrap(patch, Reconciler, "_stop", stop)


@_breaks("I4: nothing justifies")
def old_stops_count(patch: Patch) -> None:
    """A stop from before the job was submitted ends it."""

    def stop(real: Any, self: Reconciler, entry: Any, job: Any) -> Any:
        entry.stopped_before = False
        return real(self, entry, job)

    _wrap(patch, Reconciler, "_stop", stop)


@_breaks("I1: job")
def stops_are_ignored(patch: Patch) -> None:
    """Nobody asks whether a run was stopped."""
    patch.setattr(Reconciler, "_stop", lambda self, entry, job: "")


@_breaks("I4: nothing justifies")
def quota_counts_as_start(patch: Patch) -> None:
    """The start timeout also counts the time in which a job is QUEUED."""

    def waited(real: Any, self: Reconciler, entry: Any, job: Any) -> Any:
        return real(self, entry, replace(job, state=outcome.PENDING) if job.state == outcome.QUEUED else job)

    _wrap(patch, Reconciler, "_waited", waited)


@_breaks("I1: job")
def jobs_may_wait_for_ever(patch: Patch) -> None:
    """There is no start timeout."""
    patch.setattr(Reconciler, "_waited", lambda self, entry, job: "")
