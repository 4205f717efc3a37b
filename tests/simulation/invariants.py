"""Check what must hold at every step and in the end, as the design numbers it; I0: one pass runs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tests.simulation.jobs import AGAIN, ELSEWHERE, STOPPING, Job
from tests.simulation.queues import Entry, Warned
from tests.simulation.scheduler import START, Broken, Program
from tests.support.memory import CANCELLED, PENDING, QUEUED, RUNNING, SUCCEEDED
from vertex_launch.codes import Code
from vertex_launch.dispatch.settle import CLOCKS
from vertex_launch.log import Redactor
from vertex_launch.model import AgentView, Kind, Phase
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import FIRST_PAUSE, MINUTE

if TYPE_CHECKING:
    from tests.simulation.world import World

MOMENT = 0.01
"""Seconds that nothing takes: between a look at the clock and the call that follows from it."""


class Invariants:
    """Called before anything takes effect, and raises Broken if it must not."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _settings(self, owner: str) -> Settings:
        return self._world.deployments[owner].settings

    def _chain(self, job: Job) -> list[Job]:
        """Return all jobs that the deployment created for the job's item."""
        return self._world.vertex.of(job.item, job.owner)

    def _excused(self, job: Job) -> bool:
        """Return whether the job could not be known: it showed up after the grace, or the ledger was lost before it did."""
        timeouts = self._settings(job.owner).timeouts
        in_time = job.sent <= job.intended + timeouts.intent_grace - timeouts.create
        late = in_time and job.visible > job.intended + timeouts.intent_grace
        lost = self._world.deployments[job.owner].folder.lost
        return bool(job.intended) and (late or job.intended <= lost < job.visible)

    def _given_up(self, job: Job) -> bool:
        """Return whether the job ended so long ago, without an ack, that its item counted as deleted."""
        return 0 < job.ended < self._world.scheduler.now - self._settings(job.owner).give_up_after

    def _forgotten(self, job: Job) -> bool:
        """Return whether the job was deleted before a pass could write it down, or before a lost ledger was rebuilt."""
        folder = self._world.deployments[job.owner].folder
        unwritten = job.attempt > 1 and job.name not in folder.noted
        return bool(job.deleted) and (unwritten or (job.created <= folder.lost and job.deleted <= folder.rebuilt))

    def _hidden(self, job: Job) -> bool:
        """Return whether a list may have shown the ended job as active when a lost ledger was rebuilt from it."""
        lag = min(self._world.vertex.lag, self._world.vertex.stale)
        return 0 < self._world.deployments[job.owner].folder.lost - job.ended < lag

    def _last(self, jobs: Sequence[Job]) -> Job:
        """Return the one of an item's jobs whose end is reported.

        A next attempt that is deleted before a pass could write it down is unknown for ever: it counts as not created.
        """
        noted = self._world.deployments[jobs[0].owner].folder.noted
        known = [job for job in jobs if job.attempt == 1 or not job.deleted or job.name in noted]
        return min(known or jobs, key=lambda job: job.order)

    def _reused(self, job: Job) -> bool:
        """Return whether a job of another item used the run so shortly before that it looks begun: clocks may differ."""
        others = [one for one in self._world.vertex.jobs.values() if one.run == job.run and one.item != job.item]
        return bool(others) and self._world.wandb.started(job.run, job.created - CLOCKS)

    def _started(self, job: Job) -> bool:
        return bool(job.started) and self._world.wandb.started(job.run, job.created)

    def secret(self, text: str, where: str) -> None:
        if any(key in text for key in self._world.all_keys):
            raise Broken(f"I5: a key is in {where}: {text}")

    # Jobs

    def on_send(self, program: Program, entry: Entry, timeout: float) -> None:
        """Check what a pass may know when it asks for a job, whatever comes of that."""
        if program.called + timeout > program.held + MOMENT:
            raise Broken(f"I2: {program.name} has {timeout:g} s for a create, and its lock ends before")
        lost = self._world.deployments[program.owner].folder.lost
        heard = [when for by, when in entry.refusals if by.owner == program.owner and by.completed and lost < when]
        chain = self._world.vertex.of(entry.id, program.owner)
        if not chain and any(0 < program.called - when < FIRST_PAUSE - MOMENT for when in heard):
            raise Broken(f"I7: {entry.id} is tried again although there was no room for it just before")

    def on_create(self, program: Program, job: Job) -> None:
        entry = self._world.wandb.contents[job.item]
        made = self._chain(job)
        twins = [one for one in made if one.attempt == job.attempt and not (one.deleted or self._given_up(one))]
        others = [one for one in made if one.stays or (one.lives and one.attempt == job.attempt)]
        if (twins or others) and not any(map(self._excused, [job, *made])):
            raise Broken(f"I2: another job for {job.item}, attempt {job.attempt}")
        shared = [one for one in self._world.vertex.jobs.values() if one.run == job.run and one.item != job.item]
        if any(one.lives and not self._excused(one) for one in shared) and not self._excused(job):
            raise Broken(f"I2: two items report as run {job.run}")
        self._check_slots(job)
        self._check_rate(job)
        self._check_request(program, entry)
        if job.key not in ([entry.key] if entry.key else self._world.secret.versions):
            raise Broken(f"I4: the job of {job.item} reports with the key of another user")
        self.secret(f"{job.message.labels} {job.message.display_name}", "the job's labels")
        if job.attempt > 1:
            self._check_attempt(program, job, made)

    def _check_slots(self, job: Job) -> None:
        both = [job.by.settings, self._settings(job.owner)]  # as they were when its pass began, and as they are by now
        limit = max(one.job_limit if job.kind is Kind.JOB else one.scheduler_limit for one in both)
        jobs = [job, *(one for one in self._world.vertex.jobs.values() if one.owner == job.owner and one.lives)]
        # Of two jobs for one attempt, of which one could not be known, the other one may be counted.
        active = [one for one in jobs if one.kind is job.kind and not any(map(self._excused, [one, *self._chain(one)]))]
        if len(active) > limit and job in active:
            raise Broken(f"I3: {len(active)} active jobs of kind {job.kind}, {limit:g} are allowed")

    def _check_rate(self, job: Job) -> None:
        """Check that no more creates were decided within a minute than the region takes."""
        most, lost = self._settings(job.owner).submissions_per_minute, self._world.deployments[job.owner].folder.lost
        same = [one for one in self._world.vertex.jobs.values() if (one.owner, one.region) == (job.owner, job.region)]
        minute = [one for one in same if max(job.planned - MINUTE + MOMENT, lost) < one.planned <= job.planned]
        if len(minute) >= most:
            raise Broken(f"I3: {len(minute) + 1} creates within a minute in {job.region}, {most} are allowed")

    def _check_request(self, program: Program, entry: Entry) -> None:
        """Compare a create with what the pass was asked to do."""
        program.creates += 1
        limit, queues = program.request.limit, program.request.queues
        if limit is not None and program.creates > limit:
            raise Broken(f"I3: {program.name} starts more than {limit} jobs")
        if queues and entry.queue not in queues and not entry.owner:
            raise Broken(f"I3: {program.name} starts {entry.id}, which is in queue {entry.queue}")

    def _check_attempt(self, program: Program, job: Job, made: Sequence[Job]) -> None:
        what, most = f"attempt {job.attempt} for {job.item}", self._settings(job.owner).max_attempts
        if job.attempt > most:
            raise Broken(f"I4: {what}, {most} are allowed")
        if not made or job.run != made[0].run or job.variables.get("WANDB_RESUME") != "allow":
            raise Broken(f"I4: {what} does not go on with the run of the first")
        if 0 < self._surely_stopped(job) < program.asked:
            raise Broken(f"I4: {what} although its run was stopped")
        if not any(map(self._excused, [job, *made])):
            known = [one for one in made if not self._forgotten(one)]
            if not any(one.attempt == job.attempt - 1 for one in known):
                raise Broken(f"I4: {what} leaves one out")
            before = max((one for one in known if one.error in AGAIN), key=lambda one: one.attempt, default=None)
            if before is None or before.attempt != job.attempt - 1:
                raise Broken(f"I4: {what} although the one before is not to be repeated")
            lost = self._world.deployments[job.owner].folder.lost
            noted = any(lost < when < write for by, when in before.cancels for write in by.writes)
            if noted and not before.started:  # a list that lags may have shown a cancelled job as running again
                raise Broken(f"I4: {what} although a pass cancelled the one before")
            if job.created < before.ended + self._settings(job.owner).resubmit_after * 2 ** (before.attempt - 1):
                raise Broken(f"I4: {what} follows too soon")
            if job.region != before.region and before.error not in ELSEWHERE:
                raise Broken(f"I4: {what} is in another region")

    def _stopped(self, job: Job) -> float:
        """Return when a person stopped the job's run; 0 for never, and for before the pass began that made the first job."""
        stopped = self._world.wandb.run(job.run).stopped
        return stopped if stopped >= min((one.by.began for one in self._chain(job)), default=job.by.began) else 0.0

    def _surely_stopped(self, job: Job) -> float:
        """Return the same if it cannot be older than the item: a run that the item names may have been stopped before."""
        named = "run_id" in self._world.wandb.contents[job.item].spec
        return 0.0 if named else self._stopped(job)

    def on_cancel(self, program: Program, job: Job) -> None:
        if not any(self._reasons(program, job)):
            raise Broken(f"I4: nothing justifies that job {job.number} of {job.item} is cancelled")

    def _reasons(self, program: Program, job: Job) -> Iterator[bool]:
        """Return what may justify a cancel; it must hold now, or must have held when the pass looked or since."""
        now, settings = self._world.scheduler.now, self._settings(job.owner)
        since = min(program.looked, now) - min(self._world.vertex.lag, self._world.vertex.stale)
        yield bool(self._lost(job))
        for twin in self._chain(job):
            yield self._excused(job) and 0 < twin.ended < now  # the item was settled before the job showed up
            lived = any(state not in STOPPING and then > since for state, _, then in twin.spans())
            if twin.order < job.order:
                yield twin.survives or lived
            yield (
                lived and twin.attempt == job.attempt and twin.created < job.created
            )  # even if it is cancelled as well
        if stopped := self._stopped(job):
            yield now - stopped >= settings.stopped_run_timeout
            yield any(state != RUNNING and then > since for state, _, then in job.spans())
        for waiting, limit in ((PENDING, settings.start_timeout), (QUEUED, settings.queue_timeout)):
            for state, begun, then in job.spans():
                shown = then + min(self._world.vertex.lag, self._world.vertex.stale)  # until when a list may show it
                yield bool(limit) and state == waiting and then > since and min(now, shown) - begun >= limit

    def _lost(self, job: Job) -> str:
        """Return how the job has lost its item."""
        entry = self._world.wandb.contents[job.item]
        if entry.state == "FAILED":
            return "its item has failed"
        ours = (entry.owner, entry.run) == (job.owner, job.run.id)
        return f"its item is claimed by {entry.owner}" if entry.state == "CLAIMED" and not ours else ""

    def must_end(self, job: Job) -> str:
        """Return why the job has to be cancelled, if it has to."""
        twins = [one for one in self._chain(job) if one.lives or one.ended > job.created]
        twin = any(one.survives and one.order < job.order for one in twins)
        return self._lost(job) or "it has a twin" * twin or "its run was stopped" * bool(self._surely_stopped(job))

    def on_tick(self, owner: str, name: str) -> None:
        job = self._world.vertex.jobs.get(name)
        if job is None or job.owner != owner or not job.ended:
            raise Broken(f"I4: job_state says that {name} has ended")
        job.reported = True

    # Items

    def on_pop(self, program: Program, agent: AgentView) -> None:
        if agent.stop_polling and self._world.wandb.agents_stopped < program.asked:
            raise Broken(f"I4: {program.name} pops although its agent was stopped")
        timeouts = program.settings.timeouts
        late = program.called - program.began - timeouts.pass_budget
        if late > (timeouts.read if self._world.graphql else MOMENT):
            raise Broken(f"I7: {program.name} pops {late:.0f} s after it may begin anything new")

    def on_ack(self, program: Program, entry: Entry, run: str) -> None:
        if program.owner not in self._world.deployments:
            return
        if not entry.leased_to(program) and not self._world.short_leases:
            raise Broken(f"I4: {entry.id} is acked after its lease")
        if not any(job.run.id == run for job in self._world.vertex.of(entry.id, program.owner)):
            raise Broken(f"I1: {entry.id} is claimed for run {run}, which has no job")

    def _check_lock(self, program: Program, text: str) -> None:
        if "/training/" in text and program.called > program.held:
            raise Broken(f"I4: {program.name} reports how a job ended after its lock expired: {text}")

    def on_fail(self, program: Program, entry: Entry, message: str) -> None:
        self.secret(message, "a failure")
        self._check_lock(program, message)
        ours = entry.leased_to(program) or (entry.state == "CLAIMED" and entry.owner == program.owner)
        if entry.state != "FAILED" and not (ours or self._world.short_leases):
            raise Broken(f"I4: {entry.id} is failed, and its owner is {entry.owner or 'another lease'}")
        jobs = self._world.vertex.of(entry.id, program.owner)
        if any(job.stays and not self._excused(job) for job in jobs):
            raise Broken(f"I4: {entry.id} is failed while its job lives")
        if not jobs:
            waited = self._world.scheduler.now - entry.pushed > self._settings(program.owner).give_up_after
            strict = self._settings(program.owner).policy.images is not None
            suspect = Code.ITEM_KILLS in message and self._world.deployments[program.owner].folder.deaths(entry.id) > 1
            if not (waited or strict or suspect or entry.hopeless or entry.id in self._world.vertex.rejected):
                raise Broken(f"I1: {entry.id} is failed, and nothing is wrong with it")
            return
        last = self._last(jobs)
        if last.deleted and not entry.owner:
            return  # it came back, and could not start again
        if any(map(self._excused, jobs)):
            return
        if last.lives:
            raise Broken(f"I4: {entry.id} is failed before job {last.number} has ended")
        if self._started(last):
            raise Broken(f"I4: {entry.id} is failed, and its run has started")
        self._check_message(entry, last, message)

    def _check_message(self, entry: Entry, job: Job, message: str) -> None:
        """Check that a message about an ended job has Vertex AI's own words and a link to the job."""
        for words in (job.error.replace(job.key, Redactor.MARK), f"{job.region}/training/{job.number}"):
            if words not in message and not job.deleted:
                raise Broken(f"I4: the message on {entry.id} is {message!r}, without {words!r}")

    def on_warn(self, program: Program, entry: Entry, text: str, phase: Phase) -> None:
        self.secret(text, "a warning")
        self._check_lock(program, text)
        jobs = self._world.vertex.of(entry.id, program.owner)
        for job in jobs:
            wrong = job.lives or not (job is self._last(jobs) or any(map(self._excused, jobs)))
            if f"/training/{job.number}?" in text and wrong:
                raise Broken(f"I4: {entry.id} has a report on the end of job {job.number}: {text}")
        # A pass whose ack was not answered cannot know that its lease has ended and another agent has the item now.
        if entry.state == "CLAIMED" and entry.owner != program.owner and program not in entry.leases:
            raise Broken(f"I4: {entry.id} is warned about, and it is {entry.owner}'s")
        again = any(one.text == text and self._remembered(one, program) for one in entry.warned)
        over = "/training/" not in text and any(job.deleted for job in jobs)  # the item came back, and started anew
        if again and not over and not any(map(self._excused, jobs)) and not any(map(self._hidden, jobs)):
            raise Broken(f"I4: {entry.id} is warned about twice: {text}")

    def _remembered(self, warned: Warned, program: Program) -> bool:
        """Return whether the program must know that a pass of its deployment has sent this warning."""
        ours = warned.by.owner == program.owner
        written = any(warned.when < write <= program.read for write in warned.by.writes)
        lost = self._world.deployments[program.owner].folder.lost > warned.when
        long_ago = self._world.scheduler.now - warned.when > self._settings(program.owner).give_up_after
        return ours and written and not warned.unheard and (warned.final or not (lost or long_ago))

    def on_sweep(self, sweep: str) -> None:
        ended = [job for job in self._world.vertex.jobs.values() if job.sweep == sweep and not job.lives]
        if all(job.state == SUCCEEDED and not job.deleted and self._started(job) for job in ended):
            raise Broken(f"I4: sweep {sweep} is cancelled, and its scheduler has not failed")

    # In the end

    def at_end(self) -> None:
        for entry in self._world.wandb.contents.values():
            self._check_end(entry)
        for deployment in self._world.deployments.values():
            if left := deployment.folder.ledger.open:
                raise Broken(f"I1: the ledger still has {left}")
            if deployment.folder.rebuilt > self._world.scheduler.now:
                raise Broken("I1: the lost ledger is still not rebuilt")

    def _check_end(self, entry: Entry) -> None:
        jobs = [job for job in self._world.vertex.jobs.values() if job.item == entry.id]
        for job in jobs:
            served = job.region in [region.name for region in self._settings(job.owner).regions] or not job.owner
            if job.ended > START + self._world.trouble and served and not (job.reported or job.deleted):
                raise Broken(f"I4: job_state has not seen that job {job.number} ended")
            if job.lives:
                raise Broken(f"I1: job {job.number} of {entry.id} still runs. {self.must_end(job)}")
        if self._world.wandb.state(entry.id) not in ("CLAIMED", "FAILED"):
            raise Broken(f"I1: {entry.id} is still in its queue")
        ours = entry.state == "CLAIMED" and entry.owner in self._world.deployments
        if ours and (entry.hopeless or entry.refused or not entry.quota):
            raise Broken(f"I6: {entry.id} cannot start and has not failed")
        if ours:
            self._check_settled(entry, [job for job in jobs if job.owner == entry.owner])

    def _check_settled(self, entry: Entry, chain: Sequence[Job]) -> None:
        """Check that W&B shows how the job of a claimed item ended."""
        if any(map(self._excused, chain)):
            return  # of two jobs for one attempt, the one that showed up too late may have been reported or not
        last = self._last(chain)
        unknown = max(last.ended, last.deleted) < self._world.deployments[entry.owner].folder.rebuilt
        warnings = [one for one in entry.warned if one.final and one.when > last.ended]
        began = self._world.wandb.run(last.run).lives if last.deleted else any(map(self._started, chain))
        hidden = bool(entry.key and last.started)  # an item's own key may see what the deployment's does not
        if not (began or hidden or any(map(self._reused, chain))) and not (last.deleted and unknown):
            raise Broken(f"I4: the run of {entry.id} never started, and the item has not failed")
        if last.deleted:
            return
        if last.state == SUCCEEDED:
            if warnings:
                raise Broken(
                    f"I4: job {last.number} of {entry.id} ended well, and its author is warned: {warnings[0].text}"
                )
            return
        again = last.error in AGAIN and last.attempt < self._settings(entry.owner).max_attempts
        over = self._world.wandb.run(last.run).stopped or last.cancelled or entry.id in self._world.vertex.rejected
        over = over or self._settings(entry.owner).policy.images is not None  # each attempt is held to today's policy
        over = over or self._world.people.regions_changed  # no attempt goes to a region that was left
        if again and not over:
            raise Broken(f"I4: {entry.id} was not submitted again")
        if warnings:
            self._check_message(entry, last, warnings[-1].text)
        elif not unknown:
            raise Broken(f"I4: the end of job {last.number} of {entry.id} was not reported")
        if (
            last.sweep
            and last.state != CANCELLED
            and not (unknown or str(last.run) in self._world.wandb.cancelled_sweeps)
        ):
            raise Broken(f"I4: the scheduler of sweep {last.sweep} failed, and the sweep goes on")
