"""Step 3 of a pass: what is open in the ledger against what Vertex AI and W&B say now.

Called by ``dispatcher`` while it holds the record. It reads the objects again and never trusts a memory of their state, so
that a pass finds the side effects of one that died. Each action stands on its own: one that fails stops nobody else.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from vertex_launch.dispatch import settle as settling
from vertex_launch.dispatch.look import Seen
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.settle import Decision, Do, Unknown
from vertex_launch.errors import Unavailable
from vertex_launch.job import labels, outcome
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import ItemView, Kind, ManagedJob, PassReport, Phase, RunId, RunView
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger, OpenJob, Stage

AT_ONCE = 16
MOST_GETS = 200
"""Open jobs that one pass gets one by one; the others hold their slots until a later one."""
MOST_CANCELS = 100
QUEUED_LONG = 300.0
"""Seconds after which the author of a job that waits for quota is told so."""


@dataclass
class Reconciler:
    """Brings the ledger up to date, ends the jobs that must not live, and tells W&B how the others ended."""

    settings: Settings
    services: Services
    ledger: Ledger
    seen: Seen
    now: float
    until: float
    """When the hold of this pass expires: nothing is told after that, for another pass tells it."""
    report: PassReport
    warnings: list[tuple[str, str]] = field(default_factory=list)
    """Items whose author is to be told something while their job is open."""
    freed: list[float] = field(default_factory=list)
    """When the jobs ended that this pass is the first to see ended."""
    runs: dict[RunId, RunView | None] = field(init=False)
    """Runs as W&B showed them last in this pass."""

    def __post_init__(self) -> None:
        self.runs = dict(self.seen.wandb.runs)

    def reconcile(self, hint: str = "") -> list[ManagedJob]:
        """Apply what was seen; ``hint`` names a job that is said to have ended.

        The jobs seen are the active ones and, where the ledger was lost, recently ended ones, whose items may not be acked.
        Gives the active jobs: those listed, and those that only the ledger knows and a get confirms.
        """
        jobs = {job.name: job for job in self.seen.jobs if job.name not in self.ledger.settled}
        gone = self._follow(jobs, hint)
        by_item: defaultdict[str, list[ManagedJob]] = defaultdict(list)
        for job in jobs.values():
            by_item[job.item].append(job)
        for item, its in by_item.items():
            self._choose(item, its)
        self._confirm_acks(gone)
        self._watch(jobs)
        self._settle(jobs, gone)
        return [job for job in jobs.values() if not job.ended]

    # Which job is the item's

    def _follow(self, jobs: dict[str, ManagedJob], hint: str) -> set[str]:
        """Follow open jobs that the lists lack: they have ended, are gone, or the list lags. Gives the names of gone ones."""
        open_ = self.ledger.open
        shown = {job.item for job in jobs.values() if job.item in open_ and job.attempt >= open_[job.item].attempt}
        for entry in list(self.ledger.at(Stage.INTENDED)):
            if entry.item not in shown and self.now - entry.since > self.settings.timeouts.intent_grace:
                self._no_create(entry)
        open_jobs = list(self.ledger.at(Stage.CREATED, Stage.ACKED))
        unlisted = [one for one in open_jobs if one.job and (one.job not in jobs or _same(one.job, hint))]
        unlisted = sorted(unlisted, key=lambda one: (not _same(one.job, hint), one.ended))[:MOST_GETS]
        gone: set[str] = {one.job for one in open_jobs if not one.job}
        for entry, job in zip(unlisted, self._get_all(unlisted), strict=True):
            if isinstance(job, ManagedJob):
                jobs[job.name] = job
            elif job is None and self.now - entry.since > self.settings.timeouts.settle_grace:
                LOGGER.warning("job %s of item %s was deleted", entry.job, entry.item, extra={"item": entry.item})
                jobs.pop(entry.job, None)
                gone.add(entry.job)
                entry.ended, entry.ended_at = True, entry.ended_at or self.now
        return gone

    def _no_create(self, entry: OpenJob) -> None:
        """Give up an intent of which nothing is to be seen."""
        item = self.seen.wandb.items.get(entry.item)
        if item and item.run == entry.run and self._derived(entry):
            # Only an ack of ours names that run: there was a job, and it was deleted before a pass could see it.
            self.ledger.acked(entry.item)
            entry.stage, entry.ended, entry.ended_at = Stage.ACKED, True, entry.since
            return
        LOGGER.info("no job came of the create for item %s", entry.item, extra={"item": entry.item})
        self.ledger.no_create(entry.item, self.now)

    def _get_all(self, entries: Sequence[OpenJob]) -> list[ManagedJob | Unavailable | None]:
        return self.services.together([partial(self._get, entry) for entry in entries], AT_ONCE)

    def _get(self, entry: OpenJob) -> ManagedJob | Unavailable | None:
        """Get an open job: None when it is gone, an error when nobody knows."""
        try:
            return self.services.vertex.get(entry.job)
        except Unavailable as error:
            LOGGER.warning("cannot look up job %s: %s", entry.job, error, extra={"job": entry.job})
            return error

    def _choose(self, item: str, jobs: list[ManagedJob]) -> None:
        """Make one job the item's: the newest attempt's oldest that nobody ends. Its active twins are cancelled."""
        entry = self.ledger.open.get(item)
        jobs = [job for job in jobs if not (entry and job.name == entry.last)]  # which has ended, whatever a list says
        least = 0 if entry is None else entry.attempt + (entry.stage is Stage.AGAIN)
        newest = [job for job in jobs if job.attempt >= least]
        if entry is None and not self.ledger.rebuild and all(job.cancelling for job in jobs):
            return  # being cancelled because it must not live: it holds its slot until then, and is nobody's job
        ours = min(newest, key=lambda job: (-job.attempt, _is_dying(job), job.created, job.name), default=None)
        if ours:
            self._open(ours)
        for twin in [job for job in jobs if job is not ours and not job.ended and not job.cancelling]:
            other = f"job {ours.name} serves" if ours else "a later attempt follows for"
            self._cancel(item, twin.name, f"{other} the same item")

    def _open(self, job: ManagedJob) -> None:
        """Note the item's job; what is not known of one from before the ledger is learned now."""
        before = self.ledger.open.get(job.item)
        known, had_ended = before is not None, bool(before and before.ended and before.job == job.name)
        entry = self.ledger.found(job, self.services.clock())
        if known and job.ended and not had_ended:
            self.freed.append(job.finished or entry.ended_at)
        if not known:
            entry.told.append(_WAITS_FOR_QUOTA)  # perhaps it was told already
        if entry.attempt > 1 and entry.reason:
            said = settling.another_attempt(entry, entry.attempt, entry.region, self.settings)
            if said not in entry.told:  # the pass that created the job died before it could say so
                self.warnings.append((entry.item, said))

    def _confirm_acks(self, gone: set[str]) -> None:
        """Compare jobs whose item was not acked, as far as we know, with the item itself."""
        waiting = list(self.ledger.at(Stage.CREATED))
        unasked = {entry.item: entry.queue for entry in waiting if entry.item not in self.seen.wandb.items}
        known = {**self.seen.wandb.items, **self.look_up(unasked)}
        for entry in waiting:
            if entry.item in known:
                self.judge_claim(entry, known[entry.item])
            view = known.get(entry.item)
            if entry.stage is Stage.CREATED and entry.job in gone and view and view.state in settling.WAITING:
                self.ledger.close(entry.item)  # its item comes back and gets another job
            elif entry.stage is Stage.CREATED and self._late(entry):
                self.ledger.close(entry.item)  # its item is nowhere to be found: it was deleted

    def _late(self, entry: OpenJob) -> bool:
        return entry.ended and self.now - entry.ended_at > self.settings.give_up_after

    def look_up(self, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        """Look up items; what cannot be known now is left out and stays as it is."""
        if not wanted:
            return {}
        try:
            return self.services.queue.items(self.seen.entity, wanted)
        except Unavailable as error:
            LOGGER.warning("cannot look up %d items: %s", len(wanted), error)
            return {}

    def judge_claim(self, entry: OpenJob, item: ItemView) -> None:
        """Decide what a job whose ack is not sure may do, by its item as W&B shows it.

        Only positive evidence ends a job: the item is claimed by another run, or has failed. Anything else leaves it alone.
        """
        if item.run == entry.run and item.state not in (*settling.WAITING, "FAILED"):
            self.ledger.acked(entry.item)
        elif item.state == "FAILED" or (item.state == "CLAIMED" and item.run):
            why = "its item has failed" if item.state == "FAILED" else f"its item is claimed by run {item.run}"
            if entry.ended or self._cancel(entry.item, entry.job, why):
                self.ledger.close(entry.item)

    # Jobs that are asked to end

    def _watch(self, jobs: Mapping[str, ManagedJob]) -> None:
        """Cancel jobs whose run somebody stopped, and those that wait for too long to begin."""
        cancels: list[tuple[OpenJob, str]] = []
        for entry in self.ledger.at(Stage.CREATED, Stage.ACKED):
            job = jobs.get(entry.job)
            if job is None or job.ended or job.cancelling or job.state not in outcome.KNOWN:
                continue
            self._tell_of_quota(entry, job)
            why = self._stop(entry, job) or self._waited(entry, job)
            if why:
                cancels.append((entry, why))
            elif job.state == outcome.RUNNING:
                entry.cancelled = ""  # the request came to nothing
        calls = [partial(self._cancel, entry.item, entry.job, why) for entry, why in cancels[:MOST_CANCELS]]
        for (entry, why), taken in zip(cancels, self.services.together(calls, AT_ONCE), strict=False):
            entry.cancelled = why if taken else entry.cancelled

    def _stop(self, entry: OpenJob, job: ManagedJob) -> str:
        """Say that somebody stopped the run, once its job is not left to end by itself."""
        run = self.runs.get(entry.run_id)
        if entry.stopped_before is None and entry.run_id in self.runs:
            entry.stopped_before = bool(run and run.stopped) and not self._derived(entry)
        if run is None:
            return ""
        if not run.stopped:
            entry.stop_seen, entry.stopped_before = 0, False
        elif not entry.stopped_before:
            entry.stop_seen = entry.stop_seen or self.now
        waits = job.state in (outcome.QUEUED, outcome.PENDING)
        patience = 0 if waits else self.settings.stopped_run_timeout
        stop = entry.stop_seen and self.now - entry.stop_seen >= patience
        return "somebody stopped its run in W&B" if stop else ""

    def _derived(self, entry: OpenJob) -> bool:
        """Tell whether the run's id was made for this item, so that no stop of it can be older than the job."""
        settings = self.settings
        return entry.run == labels.run_id(settings.base_url, self.seen.entity, entry.item, settings.deployment)

    def _waited(self, entry: OpenJob, job: ManagedJob) -> str:
        """Say that the job waited for too long: for its machines, or for quota."""
        waited = self.now - entry.state_since
        start, quota = self.settings.start_timeout, self.settings.queue_timeout
        if job.state == outcome.PENDING and not job.started and start and waited > start:
            return (
                f"it did not start within {start:g} s (start_timeout, WANDB_LAUNCH_START_TIMEOUT): Vertex AI had no machine "
                "ready by then; try another machine_type, accelerator or region"
            )
        if job.state == outcome.QUEUED and quota and waited > quota:
            return f"it waited for quota for more than {quota:g} s (queue_timeout); ask for a higher quota, or for less"
        return ""

    def _tell_of_quota(self, entry: OpenJob, job: ManagedJob) -> None:
        long = job.state == outcome.QUEUED and self.now - entry.state_since > QUEUED_LONG
        if long and _WAITS_FOR_QUOTA not in entry.told:
            self.warnings.append((entry.item, _WAITS_FOR_QUOTA))

    def _cancel(self, item: str, name: str, why: str) -> bool:
        """Cancel a job and report it; says whether Vertex AI took the request."""
        try:
            self.services.vertex.cancel(name)
        except Unavailable as error:
            LOGGER.warning("cannot cancel job %s: %s", name, error, extra={"job": name, "item": item})
            return False
        LOGGER.info("cancelled job %s: %s", name, why, extra={"job": name, "item": item})
        self.report.cancelled.append({"item": item, "job": name, "reason": why})
        return True

    # Jobs that have ended

    def _settle(self, jobs: Mapping[str, ManagedJob], gone: set[str]) -> None:
        """Tell W&B how jobs ended; what it does not take is told by the next pass."""
        ended = [
            (entry, job)
            for entry in self.ledger.at(Stage.ACKED)
            if ((job := jobs.get(entry.job)) is not None and job.ended) or entry.job in gone
        ]
        if not ended:
            return
        items = self.look_up({entry.item: entry.queue for entry, _ in ended})
        runs = self._runs([entry for entry, _ in ended])
        messages: dict[Do, list[tuple[OpenJob, ManagedJob | None, str]]] = {Do.FAIL: [], Do.WARN: []}
        for entry, found in ended:
            job = found
            if job is not None:
                self.services.redact.add(job.api_key)
                job = replace(job, error=self.services.redact(job.error))  # before anything is cut off
            decision = settling.decide(entry, job, runs[entry.item], items.get(entry.item), self.settings, self.now)
            if decision.failed and entry.kind is Kind.SCHEDULER and not self._end_sweep(entry, job):
                continue
            if decision.do in messages:
                messages[decision.do].append((entry, job, decision.text))
            else:
                self._go_on(entry, job, decision)
        for do, told in messages.items():
            self._send(do, told)

    def _go_on(self, entry: OpenJob, job: ManagedJob | None, decision: Decision) -> None:
        """Do what needs no word to W&B."""
        if decision.do is Do.AGAIN:
            entry.began = entry.began or decision.began
            self.ledger.again(entry.item, decision.at, decision.text, elsewhere=decision.elsewhere)
        elif decision.do is Do.CLOSE:
            self._close(entry, job, Do.CLOSE, decision.text)
        else:
            LOGGER.info("job %s has ended: %s", entry.job, decision.text, extra={"item": entry.item, "job": entry.job})

    def _runs(self, entries: Sequence[OpenJob]) -> Mapping[str, RunView | Unknown | None]:
        """Look up the runs of these jobs, by item; those of another entity cannot be seen."""
        wanted = [entry.run_id for entry in entries if entry.entity == self.seen.entity]
        try:
            found = self.services.queue.runs(wanted) if wanted else {}
        except Unavailable as error:
            LOGGER.warning("cannot look up %d runs: %s", len(wanted), error)
            found = {}
        self.runs |= found
        return {
            entry.item: found.get(entry.run_id, Unknown.NOW if entry.entity == self.seen.entity else Unknown.EVER)
            for entry in entries
        }

    def _end_sweep(self, entry: OpenJob, job: ManagedJob | None) -> bool:
        """Cancel the sweep of a scheduler that failed, for nothing would go on with it; says whether W&B could tell."""
        sweep = (job and job.sweep) or entry.run  # which a scheduler shares with its sweep
        try:
            ended = self.services.queue.cancel_sweep(entry.entity, entry.project, sweep)
        except Unavailable as error:
            LOGGER.warning("cannot cancel sweep %s: %s", sweep, error, extra={"item": entry.item})
            return self._late(entry)
        LOGGER.info("sweep %s: %s", sweep, "cancelled" if ended else "had ended", extra={"item": entry.item})
        return True

    def _send(self, do: Do, told: Sequence[tuple[OpenJob, ManagedJob | None, str]]) -> None:
        """Fail or warn about items; those that W&B has taken are settled."""
        if not told:
            return
        lines = self.services.together([partial(self._last_lines, job) for _, job, _ in told], AT_ONCE)
        texts = [self.services.redact(f"{text}{more}") for (_, _, text), more in zip(told, lines, strict=True)]
        queue, within = self.services.queue, min(self.settings.timeouts.read, self.until - self.services.clock())
        if within <= 0:
            return
        pairs = [(entry.item, text) for (entry, _, _), text in zip(told, texts, strict=True)]
        try:
            taken = (queue.fail if do is Do.FAIL else queue.warn)(pairs, Phase.RUN, within)
        except Unavailable as error:
            LOGGER.warning("cannot tell W&B how %d jobs ended: %s", len(pairs), error)
            return
        for (entry, job, _), text, known in zip(told, texts, taken, strict=True):
            if known or self._late(entry):
                self._close(entry, job, do, text)

    def _last_lines(self, job: ManagedJob | None) -> str:
        """Give the last lines of a job's own log, where the deployment wants them."""
        if self.services.logs is None or job is None or not job.started:
            return ""
        lines = self.services.logs.tail(job.name)
        return "\nThe last lines of its log:\n" + "\n".join(lines) if lines else ""

    def _close(self, entry: OpenJob, job: ManagedJob | None, do: Do, text: str) -> None:
        self.ledger.settle(entry.item, self.now)
        state = job.state if job else "deleted"
        settled = {"item": entry.item, "queue": entry.queue, "job": entry.job, "state": state, "outcome": do.value}
        self.report.settled.append({**settled, "reason": text})
        level = LOGGER.warning if do in (Do.FAIL, Do.WARN) else LOGGER.info
        level("settled item %s: %s %s", entry.item, do.value, text, extra={"event": Event.SETTLED, **settled})


_WAITS_FOR_QUOTA = (
    "Its job waits for quota (QUEUED): Vertex AI starts it when jobs of this project and region that use the same kind of "
    "machine or accelerator have ended, or when the quota is raised."
)


def _is_dying(job: ManagedJob) -> bool:
    return job.cancelling or job.state == outcome.CANCELLED


def _same(job: str, hint: str) -> bool:
    """Tell whether two names are of one job: the project may be named by its number or by its id."""
    return bool(hint) and job.split("/")[2:] == hint.split("/")[2:]
