"""The outside of the product in memory: W&B, Vertex AI, a bucket, a topic and a secret, on one clock.

Unit tests use these classes as they are, the simulation extends them. Vertex AI holds real CustomJob messages in real
states, so that what the product believes about them is tested.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar, cast

from google.cloud.aiplatform_v1.types import CustomJob, JobState
from google.protobuf.timestamp_pb2 import Timestamp

from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.preview import preview
from vertex_launch.dispatch.run import Skipped, run_pass
from vertex_launch.errors import ItemDeferred, ItemRejected, OutcomeUnknown, Unavailable
from vertex_launch.job import environment, labels, readback
from vertex_launch.job.request import JobRequest
from vertex_launch.log import Redactor
from vertex_launch.model import (
    SCHEDULER_URI,
    Ack,
    AgentView,
    Item,
    ItemView,
    JobArtifact,
    Kind,
    ManagedJob,
    PassReport,
    PassRequest,
    Phase,
    Popped,
    Question,
    Queued,
    RunId,
    RunView,
    SchedulerView,
    WandbState,
)
from vertex_launch.settings.config import Region, Settings
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.record import LEDGER, LOCK, Record

KEY = "k" * 40
ENTITY = "acme"
QUEUES = ("cpu", "gpu")
QUEUED, PENDING, RUNNING = JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING
SUCCEEDED, FAILED = JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_FAILED
CANCELLING, CANCELLED = JobState.JOB_STATE_CANCELLING, JobState.JOB_STATE_CANCELLED
EXPIRED, PARTLY = JobState.JOB_STATE_EXPIRED, JobState.JOB_STATE_PARTIALLY_SUCCEEDED
ENDED = frozenset({SUCCEEDED, FAILED, CANCELLED, EXPIRED, PARTLY})
SETTINGS: dict[str, Any] = {
    "entity": ENTITY,
    "queues": QUEUES,
    "max_jobs": 5,
    "deployment": "test",
    "project": "p",
    "regions": (Region(name="us-central1", staging_bucket="gs://staging"),),
    "key_secret": "projects/p/secrets/s/versions/latest",
    "state_bucket": "gs://state",
    "jobs_account": "jobs@p.iam.gserviceaccount.com",
}

S = TypeVar("S", bound="Service")
Q = TypeVar("Q", bound="QueueItem")
J = TypeVar("J", bound="Job")


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        """Return a time that is never the same twice, as a real clock does."""
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Service:
    """Something outside. It keeps what was ``sent`` to it, counts ``calls``, and has the ``trouble`` of an operation."""

    name = ""
    code = Code.UNEXPECTED

    def __init__(self) -> None:
        self.sent: list[tuple[Any, ...]] = []
        self.calls: Counter[str] = Counter()
        self.trouble: dict[str, Callable[[], object]] = {}

    def refuse(self, operation: str = "", *args: Any) -> Any:
        """Answer a call that had no effect."""
        raise Unavailable(self.name, "down", code=self.code)

    def lose(self, operation: str, *args: Any) -> Any:
        """Answer a call that had its effect, but whose answer is lost."""
        return self.refuse(operation, *args)


def through(call: Callable[..., Any], service: S) -> S:
    """Return the service as the product reaches it: ``call`` gets the service, the operation, and its arguments."""
    return cast(S, _Through(call, service))


class _Through:
    def __init__(self, call: Callable[..., Any], service: Service) -> None:
        self._call, self._service = call, service

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        return partial(self._call, self._service, operation)


def call(service: Service, operation: str, *args: Any, **named: Any) -> Any:
    """Note a call, run into the trouble that a test has prepared, and call."""
    service.sent.append((operation, *args))
    counted = f"{operation} {args[0]}" if isinstance(service, Objects) else operation
    service.calls[counted] += 1
    if trouble := service.trouble.get(counted):
        trouble()
    return getattr(service, operation)(*args, **named)


@dataclass(eq=False)
class QueueItem:
    id: str
    queue: str
    spec: dict[str, Any]
    state: str = "PENDING"
    leased_until: float = 0.0
    run: str = ""
    message: str = ""
    phase: Phase | None = None
    warnings: list[str] = field(default_factory=list)


class Wandb(Service, Generic[Q]):
    """W&B: queues with leases that expire, acks of which the first one wins, agents, runs and sweeps."""

    name, code = "W&B", Code.WANDB_UNAVAILABLE

    def __init__(
        self, clock: Callable[[], float], new: Callable[[str, str, Any], Q], lease: Callable[[], float]
    ) -> None:
        super().__init__()
        self.clock = clock
        self._new = new
        self._lease = lease
        self.queues = dict.fromkeys(QUEUES, "gcp-vertex")
        self.contents: dict[str, Q] = {}
        self.agents: dict[str, AgentView] = {}
        self.run_views: dict[RunId, RunView] = {}
        self.unknown_runs: set[RunId] = set()
        self.cancelled_sweeps: list[str] = []
        self.sweep_states: dict[str, str | None] = {}
        self.launched: dict[str, SchedulerView] = {}
        """The schedulers of sweeps, by default runs with the sweep's id that are no W&B jobs."""
        self.statuses: list[str] = []

    # What people, other agents and tests do

    def push(self, queue: str, spec: dict[str, Any]) -> str:
        item = self._new(f"Item{len(self.contents) + 1}", queue, spec)
        self.contents[item.id] = item
        return item.id

    def state(self, item: str) -> str:
        """Return an item's state, after the end of a lease that has expired."""
        one = self.contents[item]
        if one.state == "LEASED" and self.clock() >= one.leased_until:
            one.state = "PENDING"
        return one.state

    def stop(self, agent: str) -> None:
        self.agents[agent] = replace(self.agents[agent], stop_polling=True)

    # One item at a time

    def lease(self, queue: str) -> Popped:
        for one in self.contents.values():
            if one.queue == queue and self.state(one.id) == "PENDING":
                one.state, one.leased_until = "LEASED", self.clock() + self._lease()
                return Popped(queue, Item(one.id, queue, one.spec))
        return Popped(queue)

    def claim(self, item: str, run: str) -> Ack:
        if self.state(item) not in ("PENDING", "LEASED"):
            return Ack.REFUSED
        self.contents[item].state, self.contents[item].run = "CLAIMED", run
        return Ack.ACCEPTED

    def fail_item(self, item: str, reason: str, phase: Phase) -> bool:
        one = self.contents[item]
        one.state, one.message, one.phase = "FAILED", reason, phase
        return True

    def warn_item(self, item: str, text: str, phase: Phase) -> bool:
        self.contents[item].warnings.append(text)
        self.contents[item].phase = phase
        return True

    def in_time(self, within: float) -> bool:
        """Return whether a request that may be sent within so many seconds is still sent."""
        assert within >= 0
        return True

    def can_show(self, one: object) -> bool:
        """Return whether W&B can answer about an item or a run now."""
        return one not in self.unknown_runs

    def run_view(self, run: RunId) -> RunView | None:
        return self.run_views.get(run)

    # ports.Queue

    def default_entity(self) -> str:
        return ENTITY

    def ask(self, question: Question) -> WandbState:
        views = self.runs(question.runs)
        return WandbState(
            viewer_entity=ENTITY if question.viewer else "",
            agent=self.agents.get(question.agent),
            agents=() if question.agent else tuple(self.agents.values()),
            queues={name: f"id-{name}" for name in self.queues},
            items=self.items(question.entity, question.items),
            runs={run: view and replace(view, heartbeat=None) for run, view in views.items()},
            queued={name: self._queued(name, question.peek) for name in question.queues},
        )

    def _queued(self, queue: str, peek: int) -> Queued:
        shown = [one.id for one in self.contents.values() if one.queue == queue][:peek]
        return Queued(tuple(item for item in shown if self.state(item) == "PENDING"), complete=len(shown) < peek)

    def items(self, entity: str, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        shown = [item for item in wanted if item in self.contents and self.can_show(item)]
        return {item: ItemView(self.state(item), self.contents[item].run) for item in shown}

    def runs(self, wanted: Sequence[RunId]) -> Mapping[RunId, RunView | None]:
        return {run: self.run_view(run) for run in wanted if self.can_show(run)}

    def resources(self, entity: str, queues: Sequence[str]) -> Mapping[str, str]:
        return {name: self.queues[name] for name in queues}

    def create_agent(self, entity: str, queue_ids: Sequence[str], hostname: str, config: Mapping[str, Any]) -> str:
        name = f"agent{len(self.agents) + 1}"
        self.agents[name] = AgentView(name, hostname, stop_polling=False, queues=tuple(queue_ids))
        return name

    def pop(
        self, entity: str, queues: Sequence[str], agent: str, status: str = "", *, singly: bool = False
    ) -> list[Popped]:
        self.statuses += [status] if status else []
        return [self.lease(queue) for queue in queues]

    def ack(self, claims: Sequence[tuple[str, str]], within: float) -> list[Ack]:
        in_time = self.in_time(within)
        return [self.claim(item, run) if in_time else Ack.UNKNOWN for item, run in claims]

    def fail(self, failures: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        in_time = self.in_time(within)
        return [in_time and self.fail_item(item, reason, phase) for item, reason in failures]

    def warn(self, warnings: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        in_time = self.in_time(within)
        return [in_time and self.warn_item(item, text, phase) for item, text in warnings]

    def cancel_sweep(self, entity: str, project: str, sweep: str, scheduler: str, queue: str = "") -> bool | None:
        if not self.launched.get(sweep, SchedulerView(sweep, "", "")).fits(scheduler, queue):
            return None
        name = f"{entity}/{project}/{sweep}"
        self.cancelled_sweeps.append(name)
        return self.cancelled_sweeps.count(name) == 1

    def sweeps(self, wanted: Sequence[RunId]) -> Mapping[RunId, str]:
        known = {sweep: self.sweep_states.get(sweep.id, "RUNNING") for sweep in wanted}
        return {sweep: state for sweep, state in known.items() if state is not None}

    def schedulers(self, wanted: Sequence[RunId]) -> Mapping[RunId, SchedulerView | None]:
        known = {sweep: self.launched.get(sweep.id) for sweep in wanted}
        return {sweep: view for sweep, view in known.items() if self.sweep_states.get(sweep.id, "") is not None}

    def set_status(self, agent: str, status: str) -> None:
        self.statuses.append(status)


@dataclass(eq=False)
class Job:
    """A CustomJob, and what its labels and environment say, read without the product's own code."""

    message: CustomJob
    owner: str = field(init=False)
    """The deployment that it belongs to."""
    item: str = field(init=False)
    run: RunId = field(init=False)
    attempt: int = field(init=False)
    kind: Kind = field(init=False)
    key: str = field(init=False)
    sweep: str = field(init=False)

    def __post_init__(self) -> None:
        said, marks = self.variables, dict(self.message.labels)
        self.owner, self.item = marks.get(labels.DEPLOYMENT, ""), said.get(environment.ITEM, "")
        self.run = RunId(*(said.get(name, "") for name in (environment.ENTITY, environment.PROJECT, environment.RUN)))
        self.attempt, self.kind = int(marks.get(labels.ATTEMPT, 0)), Kind(marks.get(labels.KIND, Kind.JOB))
        self.key, self.sweep = said.get(environment.API_KEY, ""), said.get(environment.SWEEP, "")

    @property
    def variables(self) -> dict[str, str]:
        """The environment of its first worker pool."""
        pools = CustomJob.pb(self.message).job_spec.worker_pool_specs
        return {one.name: one.value for pool in pools[:1] for one in pool.container_spec.env}

    @property
    def name(self) -> str:
        return str(CustomJob.pb(self.message).name)

    @property
    def region(self) -> str:
        return self.name.split("/")[3]

    @property
    def number(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def state(self) -> int:
        """The bare number, which may be one that this version of the client does not know."""
        return int(CustomJob.pb(self.message).state)

    @property
    def lives(self) -> bool:
        return self.state not in ENDED


class Vertex(Service, Generic[J]):
    """Vertex AI: CustomJobs that change their states when a test or the simulation says so."""

    name, code = "Vertex AI", Code.VERTEX_UNAVAILABLE

    def __init__(
        self, clock: Callable[[], float], new: Callable[..., J], deployment: Callable[[], str], project: str = "p"
    ) -> None:
        super().__init__()
        self.clock = clock
        self._new = new
        self._deployment = deployment
        """The deployment that asks."""
        self._project = project
        self.jobs: dict[str, J] = {}
        self.lag = 0.0
        """Seconds until lists show a new job."""
        self.down: set[str] = set()
        """Regions that do not answer."""
        self.begins_runs = True
        self.runs: dict[RunId, RunView] = {}
        self.on_create: Callable[[JobRequest, Callable[[], str]], str] = lambda request, create: create()
        self.most_active = 0
        self._lock = threading.Lock()

    # What happens to jobs

    def add(self, request: JobRequest, **facts: Any) -> str:
        """Create a job without any objection."""
        with self._lock:
            message = CustomJob(request.custom_job)
            message.name = f"projects/{self._project}/locations/{request.region}/customJobs/{len(self.jobs) + 1}"
            message.create_time = moment(self.clock())
            job = self._new(message, **facts)
            self.begin(job)
            self.jobs[job.name] = job
            self.most_active = max(self.most_active, len(self.living()))
            return job.name

    def begin(self, job: J) -> None:
        self.turn(job, PENDING)

    def turn(self, job: J, state: int) -> None:
        """Let a job enter a state, given as a number that may be unknown."""
        CustomJob.pb(job.message).state = state
        if state == RUNNING and not job.message.start_time:
            job.message.start_time = moment(self.clock())
        if state in ENDED and not job.message.end_time:
            job.message.end_time = moment(self.clock())

    def set(self, name: str, state: int, error: str = "") -> None:
        """Let a job enter a state, and its program begin its run unless a test says otherwise."""
        job = self.jobs[name]
        if error:
            job.message.error.message = error
        self.turn(job, state)
        if self.begins_runs and state in (RUNNING, SUCCEEDED):
            self.runs[job.run] = RunView("running", stopped=False, heartbeat=self.clock())

    def of(self, item: str, owner: str = "") -> list[J]:
        return [job for job in self.jobs.values() if job.item == item and owner in ("", job.owner)]

    def living(self) -> list[J]:
        return [job for job in self.jobs.values() if job.lives]

    def find(self, name: str) -> J | None:
        """Return the job of that resource name, in which the project may be an ID or a number."""
        if name.split("/")[3] in self.down:
            self.refuse()
        return self.jobs.get(f"projects/{self._project}/locations/{name.partition('/locations/')[2]}")

    def view(self, job: J) -> ManagedJob | None:
        return readback.managed(job.message, deployment=self._deployment(), region=job.region)

    def listed(self, region: str) -> Iterator[ManagedJob]:
        views = [self.view(job) for job in self.jobs.values() if job.region == region]
        return (view for view in views if view and view.created <= self.clock() - self.lag + 1e-3)

    # ports.Vertex

    def active(self, region: str) -> list[ManagedJob]:
        return [job for job in self.listed(region) if not job.ended]

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        return [job for job in self.listed(region) if job.created > since]

    def get(self, name: str) -> ManagedJob | None:
        job = self.find(name)
        return self.view(job) if job else None

    def request_of(self, name: str) -> JobRequest | None:
        job = self.find(name)
        return readback.request_of(job.message, deployment=self._deployment(), region=job.region) if job else None

    def create(self, request: JobRequest, timeout: float) -> str:
        return self.on_create(request, lambda: self.add(request))

    def cancel(self, name: str) -> None:
        job = self.find(name)
        if job and job.lives:
            self.turn(job, CANCELLING)


def moment(seconds: float) -> Timestamp:
    at = Timestamp()
    at.FromNanoseconds(int(seconds * 1e9))
    return at


class Objects(Service):
    """The bucket: objects with generations. ``calls`` and ``trouble`` go by names such as ``write ledger.json``."""

    name, code = "Cloud Storage", Code.STORAGE_UNAVAILABLE

    def __init__(self, clock: Callable[[], float] = lambda: Clock.now) -> None:
        super().__init__()
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.times: dict[str, float] = {}
        self._clock = clock
        self._generations = itertools.count(1)

    def read(self, name: str) -> tuple[bytes, int] | None:
        return self.objects.get(name)

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        if generation != self.objects.get(name, (b"", 0))[1]:
            return None
        return self.put(name, content)

    def put(self, name: str, content: bytes) -> int:
        """Replace an object, whatever its generation, and return the new one."""
        self.objects[name] = content, next(self._generations)
        self.times[name] = self._clock()
        return self.objects[name][1]

    def written(self, name: str) -> float:
        return self.times.get(name, 0.0)

    def lose_ledger(self, left: bytes = b"damaged") -> None:
        self.put(LEDGER, left)


class Secret(Service):
    """Secret Manager, which holds W&B's API key."""

    name, code = "Secret Manager", Code.SECRET_UNAVAILABLE

    def __init__(self, *versions: str) -> None:
        super().__init__()
        self.versions = list(versions or (KEY,))

    def get(self) -> str:
        return self.versions[-1]


class Topic(Service):
    """The topic of ticks; ``deliver`` gets what is published."""

    name, code = "Pub/Sub", Code.PUBSUB_UNAVAILABLE

    def __init__(self, deliver: Callable[[Mapping[str, str]], object] = lambda body: None) -> None:
        super().__init__()
        self.published: list[Mapping[str, str]] = []
        self._deliver = deliver

    def publish(self, body: Mapping[str, str]) -> None:
        self.published.append(body)
        self._deliver(body)


class Artifacts(Service):
    """Job artifacts by their names, or the error that a look-up raises. ``asked`` lists the look-ups."""

    def __init__(self) -> None:
        super().__init__()
        self.artifacts: dict[str, JobArtifact | Exception] = {}
        self.asked: list[str] = []

    def find(self, name: str) -> JobArtifact:
        self.asked.append(name)
        missing = ItemRejected(f"job: W&B does not have {name}", code=Code.ARTIFACT_NOT_FOUND)
        found = self.artifacts.get(name, missing)
        if isinstance(found, Exception):
            raise found
        return found

    def forget(self) -> None:
        """Empty the caches, of which there are none."""


class Crash(BaseException):
    """The process has died, so that nothing else in it happens."""


class World:
    """A deployment with its outside, on one clock."""

    def __init__(self, now: float = Clock.now, **changes: Any) -> None:
        self.settings = Settings(**SETTINGS | changes)
        self.clock = Clock(now)
        self.queue = Wandb(self.clock, QueueItem, lambda: self.settings.lease)
        self.vertex = Vertex(self.clock, Job, lambda: self.settings.deployment)
        self.vertex.runs = self.queue.run_views
        self.bucket = Objects(self.clock)
        self.topic = Topic()
        self.artifacts = Artifacts()
        self.redact = Redactor()
        self.redact.pin(KEY)
        self._passes = itertools.count(1)

    @property
    def ledger(self) -> Ledger:
        ledger = Ledger.parse(self.bucket.objects[LEDGER][0])
        assert ledger is not None
        return ledger

    @property
    def locked(self) -> bool:
        """Whether a pass runs, or died without giving the lock back."""
        return self.ledger.free_lock != self.bucket.objects[LOCK][1]

    def tick(self, published: float) -> PassReport | Skipped:
        return run_pass(self.settings, self.services(), PassRequest(published=published))

    def preview(self, **wanted: Any) -> PassReport:
        return preview(self.settings, self.services(), PassRequest(dry_run=True, **wanted))

    def services(self) -> Services:
        return Services(
            queue=through(call, self.queue),
            vertex=through(call, self.vertex),
            record=Record(through(call, self.bucket), self.redact),
            key=Secret(),
            jobs=through(call, self.artifacts),
            redact=self.redact,
            clock=self.clock,
            new_pass_id=lambda: f"pass{next(self._passes)}",
        )

    def run(self, request: PassRequest | None = None, **changes: Any) -> PassReport:
        settings = self.settings.model_copy(update=changes)
        report = run_pass(settings, self.services(), request or PassRequest())
        assert isinstance(report, PassReport)
        return report

    def crash(self) -> None:
        """Run a pass that dies where the trouble prepared by the test raises Crash."""
        try:
            self.run()
        except Crash:
            return
        raise AssertionError("the pass did not crash")


def image_spec(**changes: Any) -> dict[str, Any]:
    """Return the run spec of a small image job."""
    container = {"image_uri": "${image_uri}"}
    pool = {"machine_spec": {"machine_type": "n1-standard-4"}, "replica_count": 1, "container_spec": container}
    return {
        "entity": ENTITY,
        "project": "demo",
        "resource": "gcp-vertex",
        "resource_args": {"gcp-vertex": {"spec": {"worker_pool_specs": [pool]}}},
        "docker": {"docker_image": "us-docker.pkg.dev/p/train/mnist:1"},
        "overrides": {"args": ["--epochs", "3"], "run_config": {"lr": 0.1}},
    } | changes


def scheduler_spec(sweep: str = "sw1", **changes: Any) -> dict[str, Any]:
    """Return the run spec of a sweep's scheduler, which W&B launches with the sweep."""
    command = {"entry_point": ["wandb", "scheduler", sweep]}
    return image_spec(uri=SCHEDULER_URI, sweep_id=sweep, run_id=sweep, overrides=command) | changes


def lost(request: JobRequest, create: Callable[[], str]) -> str:
    """Create the job and lose the answer."""
    create()
    return never(request, create)


def never(request: JobRequest, create: Callable[[], str]) -> str:
    """Lose the request."""
    raise OutcomeUnknown("no answer", code=Code.CREATE_OUTCOME_UNKNOWN)


def no_quota(request: JobRequest, create: Callable[[], str]) -> str:
    raise ItemDeferred("no quota", code=Code.QUOTA_CREATE)


def die_once(side: Any, operation: str, nth: int, *, after: bool) -> None:
    """Make the process die at the nth call of that operation: before it has an effect, or after."""
    real, calls = getattr(side, operation), itertools.count(1)

    def dying(*args: Any, **kwargs: Any) -> Any:
        if next(calls) != nth:
            return real(*args, **kwargs)
        setattr(side, operation, real)
        if after:
            real(*args, **kwargs)
        raise Crash

    setattr(side, operation, dying)
