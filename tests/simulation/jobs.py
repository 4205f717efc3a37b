"""Vertex AI: CustomJobs as real messages in real states, the lives they lead, and lists that lag behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from google.cloud.aiplatform_v1.types import CustomJob, JobState

from tests.simulation.queues import Life
from tests.simulation.scheduler import Program
from tests.support import memory
from tests.support.memory import CANCELLED, CANCELLING, ENDED, FAILED, PENDING, QUEUED, RUNNING, SUCCEEDED
from vertex_launch.codes import Code
from vertex_launch.errors import ItemDeferred, ItemRejected, OutcomeUnknown
from vertex_launch.job import readback
from vertex_launch.job.request import JobRequest
from vertex_launch.model import ManagedJob

if TYPE_CHECKING:
    from tests.simulation.world import World

UNHEARD_OF = 42
ODD = (UNHEARD_OF, JobState.JOB_STATE_PAUSED.value, JobState.JOB_STATE_UPDATING.value)
PROJECT = "123456"
"""The number of the project, which Vertex AI's names hold instead of its id."""
STOPPING = ENDED | {CANCELLING}

STOCKOUT = "Resources are insufficient in region: us-central1. Try a different region or use a different accelerator."
AGAIN = (STOCKOUT, "Internal error occurred for the current attempt", "STOCKOUT")
ELSEWHERE = (STOCKOUT, "STOCKOUT")
"""Errors after which another region may be better."""
EXITED = "The replica workerpool0-0 exited with a non-zero status of {status}. Termination reason: Error. {said}"
BAD = (
    EXITED.format(status=1, said="The key {key} was refused."),
    "The replica workerpool0-0 ran out of memory and exited with a non-zero status of 137.",
    "Permission 'artifactregistry.repositories.downloadArtifacts' denied on resource train.",
)


@dataclass(frozen=True)
class Plan:
    """What becomes of an undisturbed job; in seconds, each from the one before."""

    queued: float
    pending: float
    running: float  # 0 for a job that ends before it runs
    odd: int  # a state that it is in for a while, 0 for none
    init: float  # when its run begins; later than its end for never
    shown: float  # how long it takes W&B to show that
    announced: float  # how long before its end its log says that it has ended, 0 for not
    end: int
    error: str
    said: float  # how long it takes Vertex AI to say why it failed
    cancelling: float
    cancelled: int  # how it ends when it is cancelled
    deleted: float  # when a person deletes it, 0 for never
    stubborn: bool  # whether it ends only when it is cancelled, once it has to be


class Version(NamedTuple):
    """A job as it was from some time on."""

    since: float
    state: int
    message: CustomJob


@dataclass(eq=False)
class Job(memory.Job):
    """A CustomJob as it really is and was."""

    plan: Plan
    by: Program  # the program that created it
    created: float
    visible: float  # when lists begin to show it
    intended: float  # when the ledger that may mention it was written
    sent: float  # when its create was called
    planned: float  # when its pass decided to create it
    started: float = 0.0
    ended: float = 0.0
    deleted: float = 0.0
    error: str = ""  # what Vertex AI reports about its end, sooner or later
    reported: bool = False  # whether job_state has asked for a pass because of its end
    cancelled: bool = False  # whether a pass asked for its end, perhaps too late
    cancels: list[tuple[Program, float]] = field(default_factory=list)  # which programs asked for its end in time
    versions: list[Version] = field(default_factory=list)
    views: dict[int, ManagedJob] = field(default_factory=dict)

    @property
    def state(self) -> int:
        return self.versions[-1].state

    @property
    def lives(self) -> bool:
        """Whether something of it may run."""
        return not (self.ended or self.deleted)

    @property
    def stays(self) -> bool:
        """Whether it lives and its end is not asked for."""
        return self.lives and self.state != CANCELLING

    @property
    def survives(self) -> bool:
        """Whether it is there, and lives or has ended by itself."""
        return not self.deleted and self.state not in (CANCELLING, CANCELLED)

    @property
    def order(self) -> tuple[int, bool, bool, float, str]:
        """The key that sorts the jobs of an item, the one that is to live first."""
        return -self.attempt, bool(self.deleted), not self.survives, self.created, self.name

    def spans(self) -> Iterator[tuple[int, float, float]]:
        """Return its states: which, from when, to when."""
        ends = [version.since for version in self.versions[1:]] + [float("inf")]
        return ((version.state, version.since, end) for version, end in zip(self.versions, ends, strict=True))

    def view(self, when: float = float("inf")) -> ManagedJob:
        """Return what the product makes of the job as it was then."""
        index = max((i for i, version in enumerate(self.versions) if version.since <= when), default=0)
        if index not in self.views:
            found = readback.managed(self.versions[index].message, deployment=self.owner, region=self.region)
            assert found
            self.views[index] = found
        return self.views[index]


class Vertex(memory.Vertex[Job]):
    """The service; lists show a job within ``lag`` seconds from its create, and its state within ``stale`` seconds."""

    def __init__(self, world: World, lag: float, stale: float) -> None:
        super().__init__(world.scheduler.clock, Job, lambda: world.scheduler.program.owner, PROJECT)
        self._world = world
        self._scheduler = world.scheduler
        self.lag, self.stale = lag, stale
        self.on_create = self._judge
        self.rejected: set[str] = set()
        """Items whose job was refused, rightly or not."""

    # What a pass asks

    def listed(self, region: str) -> Iterator[ManagedJob]:
        now, program = self._scheduler.now, self._scheduler.program
        program.looked = min(program.looked, now)
        return (
            job.view(now - min(self.lag, self.stale, now - job.visible))
            for job in self.jobs.values()
            if (job.owner, job.region) == (program.owner, region) and job.visible <= now and not job.deleted
        )

    def find(self, name: str) -> Job | None:
        job = super().find(name)
        return job if job and not job.deleted and job.owner == self._scheduler.program.owner else None

    def view(self, job: Job) -> ManagedJob:
        return job.view()

    def cancel(self, name: str) -> None:
        job = self.find(name)
        if job:
            job.cancelled = True
        if job and job.stays:
            self._world.invariants.on_cancel(self._scheduler.program, job)
            self.turn(job, CANCELLING)
            job.cancels.append((self._scheduler.program, self._scheduler.now))
            again = AGAIN[1] if job.plan.cancelled == FAILED else ""
            self._scheduler.after(job.plan.cancelling, self._end, job, job.plan.cancelled, again, True)

    def create(self, request: JobRequest, timeout: float) -> str:
        self._world.invariants.on_send(self._scheduler.program, self._world.wandb.contents[_item(request)], timeout)
        return super().create(request, timeout)

    def _judge(self, request: JobRequest, create: Callable[[], str]) -> str:
        if error := self._objection(request):
            self._no_room(request, error)
            raise error
        return self._create(*self._facts(request))

    def refuse(self, operation: str = "", *args: Any) -> Any:
        """Refuse a create for now or for good, or do not answer it; then it may still be on its way."""
        if operation != "create":
            return super().refuse(operation)
        request, timeout = args
        random = self._world.random
        kind = random.choice(("429", "403", "503", "soon", "late", "late"))
        if kind == "429":
            error = _no_quota("The following quota metrics exceed quota limits: C.")
            self._no_room(request, error)
            raise error
        if kind == "403":
            self.rejected.add(_item(request))
            raise _refused("403 Permission denied on resource.")
        if kind != "503" and not self._objection(request):
            delay = random.random() * (timeout if kind == "soon" else 400)
            self._scheduler.after(delay, self._create, *self._facts(request))
        return self.lose(operation, *args)

    def lose(self, operation: str, *args: Any) -> Any:
        if operation == "create":
            self._world.people.on_lost_create(self._scheduler.program.owner, args[0].region)
            raise OutcomeUnknown("Vertex AI did not say whether it took the job.", code=Code.CREATE_OUTCOME_UNKNOWN)
        return super().lose(operation)

    def _no_room(self, request: JobRequest, error: Exception) -> None:
        """Remember which program was told that there is no room for a job."""
        if isinstance(error, ItemDeferred):
            refusals = self._world.wandb.contents[_item(request)].refusals
            refusals.append((self._scheduler.program, self._scheduler.now))

    def _objection(self, request: JobRequest) -> Exception | None:
        entry = self._world.wandb.contents[_item(request)]
        if entry.refused:
            self.rejected.add(entry.id)
            return _refused("400 You do not have permission to act as service_account.")
        return None if entry.quota else _no_quota("The quota is 0.")

    # A job's life

    def _facts(self, request: JobRequest) -> tuple[Program, JobRequest, Mapping[str, float]]:
        program = self._scheduler.program
        return program, request, {"intended": program.wrote, "sent": program.called, "planned": program.planned}

    def _create(self, program: Program, request: JobRequest, facts: Mapping[str, float]) -> str:
        now, plan = self._scheduler.clock(), self._world.plan(program.owner)
        visible = now + self.lag * self._world.random.random()
        return self.add(request, plan=plan, by=program, created=now, visible=visible, **facts)

    def begin(self, job: Job) -> None:
        self._scheduler.note(job.by.name, "  creates %s for %s, attempt %d", job.name, job.item, job.attempt)
        self.turn(job, QUEUED if job.plan.queued else PENDING)
        self._world.invariants.on_create(job.by, job)
        if job.plan.deleted:
            self._scheduler.after(job.plan.deleted, self.delete, job)
        self._scheduler.after(job.plan.queued, self._wait, job)

    def _wait(self, job: Job) -> None:
        if job.stays and job.state == QUEUED:
            self.turn(job, PENDING)
        if job.plan.running:
            self._scheduler.after(job.plan.pending, self._run, job)
        else:
            self._scheduler.after(job.plan.pending, self._end, job, job.plan.end, job.plan.error)

    def _run(self, job: Job) -> None:
        if not job.stays:
            return
        job.started = self._scheduler.clock()
        self.turn(job, RUNNING)
        self._world.log(job, "Job is running.")
        self._scheduler.after(job.plan.init, self._report, job)
        if job.plan.odd:
            self._scheduler.after(job.plan.running / 3, self._turn_odd, job, job.plan.odd)
            self._scheduler.after(job.plan.running / 2, self._turn_odd, job, RUNNING)
        if job.plan.announced:
            self._scheduler.after(job.plan.running - job.plan.announced, self._world.log, job, "Job failed.")
        self._scheduler.after(job.plan.running, self._end, job, job.plan.end, job.plan.error)

    def _turn_odd(self, job: Job, state: int) -> None:
        if job.stays:
            self.turn(job, state)

    def _report(self, job: Job) -> None:
        if job.lives:
            now = self._scheduler.now
            self._scheduler.note(f"job {job.number}", "calls wandb.init for run %s", job.run)
            self._world.wandb.run(job.run).lives.append(Life(job.name, now, now + job.plan.shown))

    def obey(self, job: Job) -> None:
        """End the program in the job by itself, as the SDK does when its run is stopped."""
        if job.started:
            self._end(job, FAILED, EXITED.format(status=255, said=""))

    def _end(self, job: Job, state: int, error: str, cancelled: bool = False) -> None:
        if not job.lives or (job.state == CANCELLING and not cancelled):
            return
        if job.stays and job.plan.stubborn and (why := self._world.invariants.must_end(job)):
            self._scheduler.note(f"job {job.number}", "goes on although %s", why)
            self._scheduler.after(30, self._end, job, state, error)
            return
        job.ended, job.error = self._scheduler.clock(), error.format(key=job.key)
        if error and job.plan.said:
            self._scheduler.after(job.plan.said, self._say, job)
        else:
            job.message.error.message = job.error
        self.turn(job, state)
        self._silence(job)
        self._world.log(job, "Job completed successfully." if state == SUCCEEDED else "Job failed.")

    def _say(self, job: Job) -> None:
        job.message.error.message = job.error
        self.turn(job, job.state)

    def delete(self, job: Job) -> None:
        if job.deleted:
            return
        self._scheduler.note("a person", "deletes job %s", job.number)
        self._scheduler.happens("a person deletes a job")
        job.deleted = self._scheduler.now
        self._silence(job)

    def _silence(self, job: Job) -> None:
        for life in self._world.wandb.run(job.run).lives:
            if life.job == job.name:
                life.ended = life.ended or self._scheduler.now

    def turn(self, job: Job, state: int) -> None:
        super().turn(job, state)
        job.versions.append(Version(self._scheduler.now, state, CustomJob(job.message)))
        name = "in an unknown state" if state == UNHEARD_OF else JobState(state).name
        self._scheduler.note(f"job {job.number}", "is %s %s", name, job.message.error.message)
        self._scheduler.happens(f"a job is {name}, attempt {min(job.attempt, 3)}")


def _item(request: JobRequest) -> str:
    return memory.Job(request.custom_job).item


def _refused(reason: str) -> ItemRejected:
    return ItemRejected(f"Vertex AI refused the job: {reason}", code=Code.CREATE_PERMISSION)


def _no_quota(reason: str) -> ItemDeferred:
    return ItemDeferred(f"Vertex AI has no quota for it now: 429 {reason}", code=Code.QUOTA_CREATE)
