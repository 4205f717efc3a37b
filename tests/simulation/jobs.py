"""Vertex AI: CustomJobs as real messages in real states, the lives they lead, and lists that lag behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from google.cloud.aiplatform_v1.types import CustomJob, JobState
from google.protobuf.timestamp_pb2 import Timestamp

from tests.simulation.queues import Life
from tests.simulation.scheduler import Program, Service
from vertex_launch.codes import Code
from vertex_launch.errors import ItemDeferred, ItemRejected, OutcomeUnknown
from vertex_launch.job import environment, labels, readback
from vertex_launch.job.request import JobRequest
from vertex_launch.model import Kind, ManagedJob, RunId

if TYPE_CHECKING:
    from tests.simulation.world import World

QUEUED, PENDING, RUNNING = JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING
SUCCEEDED, FAILED = JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED
CANCELLING, CANCELLED = JobState.JOB_STATE_CANCELLING, JobState.JOB_STATE_CANCELLED
EXPIRED, PARTLY = JobState.JOB_STATE_EXPIRED, JobState.JOB_STATE_PARTIALLY_SUCCEEDED
UNHEARD_OF = 42
ODD = (UNHEARD_OF, JobState.JOB_STATE_PAUSED.value, JobState.JOB_STATE_UPDATING.value)
PROJECT = "123456"
"""The number of the project, which Vertex AI's names hold instead of its id."""
STOPPING = frozenset({CANCELLING, *(JobState[name] for name in labels.ENDED_STATES)})

STALE = 20.0
"""Seconds by which the state of a job in a list may lag behind; that there is such a job may be news for longer."""
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
    """What becomes of a job that nobody disturbs; in seconds, each from the one before."""

    queued: float
    pending: float
    running: float
    """0 for a job that ends before it runs."""
    odd: int
    """A state that it is in for a while, 0 for none."""
    init: float
    """When its run begins; later than its end for never."""
    shown: float
    """How long it takes W&B to show that."""
    announced: float
    """How long before its end its log says that it has ended, 0 for not."""
    end: int
    error: str
    said: float
    """How long it takes Vertex AI to say why it failed."""
    cancelling: float
    cancelled: int
    """How it ends when it is cancelled."""
    deleted: float
    """When somebody deletes it, 0 for never."""
    stubborn: bool
    """Whether it ends only when it is cancelled, once it has to be."""


class Version(NamedTuple):
    """A job as it was from some time on."""

    since: float
    state: int
    message: CustomJob


@dataclass
class Job:
    """A CustomJob as it really is and was."""

    message: CustomJob
    plan: Plan
    region: str
    owner: str
    item: str
    run: RunId
    attempt: int
    kind: Kind
    key: str
    sweep: str
    created: float
    visible: float
    """When lists begin to show it."""
    intended: float
    """When the ledger that may speak of it was written."""
    sent: float
    """When its create was called."""
    started: float = 0.0
    ended: float = 0.0
    deleted: float = 0.0
    error: str = ""
    """What Vertex AI says about its end, sooner or later."""
    told: bool = False
    """Whether job_state has asked for a pass because of its end."""
    cancelled: bool = False
    """Whether a pass asked for its end, perhaps too late."""
    versions: list[Version] = field(default_factory=list)
    views: dict[int, ManagedJob] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.message.name)

    @property
    def number(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def state(self) -> int:
        return self.versions[-1].state

    @property
    def lives(self) -> bool:
        """Whether something of it may run."""
        return not (self.ended or self.deleted)

    @property
    def stays(self) -> bool:
        """Whether it lives and nobody has asked for its end."""
        return self.lives and self.state != CANCELLING

    @property
    def survives(self) -> bool:
        """Whether it is there, and lives or has ended by itself."""
        return not self.deleted and self.state not in (CANCELLING, CANCELLED)

    @property
    def order(self) -> tuple[int, bool, bool, float, str]:
        """What sorts the jobs of an item, the one that is to live first."""
        return -self.attempt, bool(self.deleted), not self.survives, self.created, self.name

    def spans(self) -> Iterator[tuple[int, float, float]]:
        """Go through its states: which, from when, to when."""
        ends = [version.since for version in self.versions[1:]] + [float("inf")]
        return ((version.state, version.since, end) for version, end in zip(self.versions, ends, strict=True))

    def view(self, when: float = float("inf")) -> ManagedJob:
        """Give what the product makes of the job as it was then."""
        index = max((i for i, version in enumerate(self.versions) if version.since <= when), default=0)
        if index not in self.views:
            found = readback.managed(self.versions[index].message, deployment=self.owner, region=self.region)
            assert found
            self.views[index] = found
        return self.views[index]


class Vertex(Service):
    """The service; lists show a job within ``lag`` seconds from its create."""

    name = "Vertex AI"

    def __init__(self, world: World, lag: float) -> None:
        self._world = world
        self._scheduler = world.scheduler
        self.lag = lag
        self.jobs: dict[str, Job] = {}
        self.rejected: set[str] = set()
        """Items whose job was refused, rightly or not."""

    def of(self, item: str, owner: str) -> list[Job]:
        return [job for job in self.jobs.values() if (job.item, job.owner) == (item, owner)]

    # What a pass asks, see vertex_launch.services.Vertex

    def active(self, region: str) -> list[ManagedJob]:
        return [job for job in self._listed(region) if not job.ended]

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        return [job for job in self._listed(region) if job.created > since]

    def _listed(self, region: str) -> list[ManagedJob]:
        now, program = self._scheduler.now, self._scheduler.program
        program.looked = min(program.looked, now)
        return [
            job.view(now - min(self.lag, STALE, now - job.visible))
            for job in self.jobs.values()
            if (job.owner, job.region) == (program.owner, region) and job.visible <= now and not job.deleted
        ]

    def get(self, name: str) -> ManagedJob | None:
        job = self._find(name)
        return job.view() if job else None

    def request_of(self, name: str) -> JobRequest | None:
        job = self._find(name)
        return readback.request_of(job.message, deployment=job.owner, region=job.region) if job else None

    def _find(self, name: str) -> Job | None:
        """Give the job of that name if it is there and the program's own; the project may stand there by id or number."""
        job = self.jobs.get(f"projects/{PROJECT}/locations/{name.partition('/locations/')[2]}")
        return job if job and not job.deleted and job.owner == self._scheduler.program.owner else None

    def create(self, request: JobRequest, timeout: float) -> str:
        if error := self._objection(request):
            raise error
        program = self._scheduler.program
        return self._create(program, request, program.wrote, program.called)

    def cancel(self, name: str) -> None:
        job = self._find(name)
        if job:
            job.cancelled = True
        if job and job.stays:
            self._world.invariants.on_cancel(self._scheduler.program, job)
            self._turn(job, CANCELLING)
            self._scheduler.after(job.plan.cancelling, self._end, job, job.plan.cancelled, "", True)

    def refuse(self, operation: str, *args: Any) -> Any:
        """A create is refused for now, for good, or nothing is heard of it; then it may still be on its way."""
        if operation != "create":
            return super().refuse(operation)
        request, timeout = args
        program, random = self._scheduler.program, self._world.random
        kind = random.choice(("429", "403", "503", "soon", "late", "late"))
        if kind == "429":
            raise ItemDeferred(
                "Vertex AI has no quota for it now: 429 The following quota metrics exceed quota limits: C.",
                code=Code.QUOTA_CREATE,
            )
        if kind == "403":
            self.rejected.add(variables(request.custom_job)[environment.ITEM])
            raise ItemRejected(
                "Vertex AI refused the job: 403 Permission denied on resource.", code=Code.CREATE_PERMISSION
            )
        if kind != "503" and not self._objection(request):
            delay = random.random() * (timeout if kind == "soon" else 400)
            self._scheduler.after(delay, self._create, program, request, program.wrote, program.called)
        return self.lose(operation)

    def lose(self, operation: str, *args: Any) -> Any:
        if operation == "create":
            raise OutcomeUnknown("Vertex AI did not say whether it took the job.", code=Code.CREATE_OUTCOME_UNKNOWN)
        return super().lose(operation)

    def _objection(self, request: JobRequest) -> Exception | None:
        entry = self._world.wandb.entries[variables(request.custom_job)[environment.ITEM]]
        if entry.refused:
            self.rejected.add(entry.id)
            return ItemRejected(
                "Vertex AI refused the job: 400 You do not have permission to act as service_account.",
                code=Code.CREATE_PERMISSION,
            )
        return (
            None
            if entry.quota
            else ItemDeferred("Vertex AI has no quota for it now: 429 The quota is 0.", code=Code.QUOTA_CREATE)
        )

    # A job's life

    def _create(self, program: Program, request: JobRequest, intended: float, sent: float) -> str:
        now, message = self._scheduler.clock(), CustomJob(request.custom_job)
        message.name = f"projects/{PROJECT}/locations/{request.region}/customJobs/{len(self.jobs) + 1}"
        message.create_time = _time(now)
        said, marks = variables(message), dict(message.labels)
        job = Job(
            message,
            self._world.plan(program.owner),
            request.region,
            program.owner,
            item=said[environment.ITEM],
            run=RunId(said[environment.ENTITY], said[environment.PROJECT], said[environment.RUN]),
            attempt=int(marks[labels.ATTEMPT]),
            kind=Kind(marks[labels.KIND]),
            key=said[environment.API_KEY],
            sweep=said.get(environment.SWEEP, ""),
            created=now,
            visible=now + self.lag * self._world.random.random(),
            intended=intended,
            sent=sent,
        )
        self._scheduler.tell(program.name, "  creates %s for %s, attempt %d", job.name, job.item, job.attempt)
        self._turn(job, QUEUED if job.plan.queued else PENDING)
        self._world.invariants.on_create(program, job)
        self.jobs[job.name] = job
        if job.plan.deleted:
            self._scheduler.after(job.plan.deleted, self._delete, job)
        self._scheduler.after(job.plan.queued, self._wait, job)
        return job.name

    def _wait(self, job: Job) -> None:
        if job.stays and job.state == QUEUED:
            self._turn(job, PENDING)
        if job.plan.running:
            self._scheduler.after(job.plan.pending, self._run, job)
        else:
            self._scheduler.after(job.plan.pending, self._end, job, job.plan.end, job.plan.error)

    def _run(self, job: Job) -> None:
        if not job.stays:
            return
        job.started = self._scheduler.clock()
        job.message.start_time = _time(job.started)
        self._turn(job, RUNNING)
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
            self._turn(job, state)

    def _report(self, job: Job) -> None:
        if job.lives:
            now = self._scheduler.now
            self._scheduler.tell(f"job {job.number}", "calls wandb.init for run %s", job.run)
            self._world.wandb.run(job.run).lives.append(Life(job.name, now, now + job.plan.shown))

    def obey(self, job: Job) -> None:
        """Let the program in the job end by itself, as the SDK does when its run is stopped."""
        if job.started:
            self._end(job, FAILED, EXITED.format(status=255, said=""))

    def _end(self, job: Job, state: int, error: str, cancelled: bool = False) -> None:
        if not job.lives or (job.state == CANCELLING and not cancelled):
            return
        if job.stays and job.plan.stubborn and (why := self._world.invariants.must_end(job)):
            self._scheduler.tell(f"job {job.number}", "goes on although %s", why)
            self._scheduler.after(30, self._end, job, state, error)
            return
        job.ended, job.error = self._scheduler.clock(), error.format(key=job.key)
        job.message.end_time = _time(job.ended)
        if error and job.plan.said:
            self._scheduler.after(job.plan.said, self._say, job)
        else:
            job.message.error.message = job.error
        self._turn(job, state)
        self._silence(job)
        self._world.log(job, "Job completed successfully." if state == SUCCEEDED else "Job failed.")

    def _say(self, job: Job) -> None:
        job.message.error.message = job.error
        self._turn(job, job.state)

    def _delete(self, job: Job) -> None:
        self._scheduler.tell("a person", "deletes job %s", job.number)
        job.deleted = self._scheduler.now
        self._silence(job)

    def _silence(self, job: Job) -> None:
        for life in self._world.wandb.run(job.run).lives:
            if life.job == job.name:
                life.ended = life.ended or self._scheduler.now

    def _turn(self, job: Job, state: int) -> None:
        CustomJob.pb(job.message).state = state
        job.versions.append(Version(self._scheduler.now, state, CustomJob(job.message)))
        name = "in a state nobody knows" if state == UNHEARD_OF else JobState(state).name
        self._scheduler.tell(f"job {job.number}", "is %s %s", name, job.message.error.message)


def variables(job: CustomJob) -> dict[str, str]:
    """Give the environment of a job's first worker pool."""
    return {one.name: one.value for one in CustomJob.pb(job).job_spec.worker_pool_specs[0].container_spec.env}


def _time(when: float) -> Timestamp:
    at = Timestamp()
    at.FromNanoseconds(int(when * 1e9))
    return at
