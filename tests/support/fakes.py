"""The outside of a pass in memory: W&B's queues, Vertex AI, the record and the clock.

Vertex AI's side holds real CustomJob messages and real JobState members, so that what is believed about them is tested.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.cloud.aiplatform_v1.types import CustomJob, JobState
from google.protobuf.timestamp_pb2 import Timestamp

from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.preview import preview
from vertex_launch.dispatch.run import Skipped, run_pass
from vertex_launch.errors import ItemDeferred, ItemRejected, OutcomeUnknown, Unavailable
from vertex_launch.job import readback
from vertex_launch.job.request import JobRequest
from vertex_launch.log import Redactor
from vertex_launch.model import (
    Ack,
    AgentView,
    Item,
    ItemView,
    JobArtifact,
    ManagedJob,
    PassReport,
    PassRequest,
    Phase,
    Popped,
    Question,
    Queued,
    RunId,
    RunView,
    WandbState,
)
from vertex_launch.settings.config import Region, Settings
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.record import LEDGER, LOCK, Record

KEY = "k" * 40
ENTITY = "acme"


@dataclass
class Clock:
    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        """Give a time that is never the same twice, as a real clock does."""
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Crash(BaseException):
    """The process is gone: nothing that follows in it happens."""


@dataclass
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


class FakeQueue:
    """W&B: queues with leases that run out, agents, acks of which the first one wins."""

    def __init__(self, clock: Clock, lease: float = 60.0) -> None:
        self.clock = clock
        self.lease = lease
        self.queues = {"cpu": "gcp-vertex", "gpu": "gcp-vertex"}
        self.contents: dict[str, QueueItem] = {}
        self.agents: dict[str, AgentView] = {}
        self.run_views: dict[RunId, RunView] = {}
        self.unknown_runs: set[RunId] = set()
        self.cancelled_sweeps: list[str] = []
        self.sweep_states: dict[str, str | None] = {}
        self.asked_sweeps: set[RunId] = set()
        self.statuses: list[str] = []
        self.requests: Counter[str] = Counter()
        self.trouble: dict[str, Callable[[], None]] = {}
        self._ids = itertools.count(1)

    # for tests

    def push(self, queue: str, spec: dict[str, Any]) -> str:
        item = QueueItem(f"Item{next(self._ids)}", queue, spec)
        self.contents[item.id] = item
        return item.id

    def state(self, item: str) -> str:
        one = self.contents[item]
        if one.state == "LEASED" and self.clock() >= one.leased_until:
            one.state = "PENDING"
        return one.state

    def _called(self, operation: str) -> None:
        self.requests[operation] += 1
        if trouble := self.trouble.get(operation):
            trouble()

    # the protocol

    def default_entity(self) -> str:
        self._called("default_entity")
        return ENTITY

    def ask(self, question: Question) -> WandbState:
        self._called("ask")
        assert question.entity == ENTITY
        return WandbState(
            viewer_entity=ENTITY if question.viewer else "",
            agent=self.agents.get(question.agent),
            agents=() if question.agent else tuple(self.agents.values()),
            queues={name: f"id-{name}" for name in self.queues},
            items=self._views(question.items),
            runs=self._runs(question.runs, heartbeats=False),
            queued={name: self._queued(name, question.peek) for name in question.queues},
        )

    def _queued(self, queue: str, peek: int) -> Queued:
        shown = [item for item, one in self.contents.items() if one.queue == queue][:peek]
        return Queued(tuple(item for item in shown if self.state(item) == "PENDING"), complete=len(shown) < peek)

    def items(self, entity: str, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        self._called("items")
        return self._views(wanted)

    def _views(self, wanted: Mapping[str, str]) -> dict[str, ItemView]:
        return {one: ItemView(self.state(one), self.contents[one].run) for one in wanted if one in self.contents}

    def runs(self, wanted: Sequence[RunId]) -> Mapping[RunId, RunView | None]:
        self._called("runs")
        return self._runs(wanted, heartbeats=True)

    def _runs(self, wanted: Sequence[RunId], *, heartbeats: bool) -> dict[RunId, RunView | None]:
        views = {run: self.run_views.get(run) for run in wanted if run not in self.unknown_runs}
        return {run: view and (view if heartbeats else replace(view, heartbeat=None)) for run, view in views.items()}

    def cancel_sweep(self, entity: str, project: str, sweep: str) -> bool:
        self._called("cancel_sweep")
        self.cancelled_sweeps.append(f"{entity}/{project}/{sweep}")
        return True

    def sweeps(self, wanted: Sequence[RunId]) -> Mapping[RunId, str]:
        self._called("sweeps")
        self.asked_sweeps |= set(wanted)
        known = {sweep: self.sweep_states.get(sweep.id, "RUNNING") for sweep in wanted}
        return {sweep: state for sweep, state in known.items() if state is not None}

    def resources(self, entity: str, queues: Sequence[str]) -> Mapping[str, str]:
        self._called("resources")
        return {name: self.queues[name] for name in queues}

    def create_agent(self, entity: str, queue_ids: Sequence[str], hostname: str, config: Mapping[str, Any]) -> str:
        self._called("create_agent")
        name = f"agent{len(self.agents) + 1}"
        self.agents[name] = AgentView(name, hostname, stop_polling=False, queues=tuple(queue_ids))
        return name

    def stop(self, agent: str) -> None:
        self.agents[agent] = replace(self.agents[agent], stop_polling=True)

    def pop(self, entity: str, queues: Sequence[str], agent: str, status: str = "") -> list[Popped]:
        self._called("pop")
        if status:
            self.statuses.append(status)
        answers = []
        for queue in queues:
            found = next(
                (it for it in self.contents.values() if it.queue == queue and self.state(it.id) == "PENDING"), None
            )
            if found is None:
                answers.append(Popped(queue))
                continue
            found.state, found.leased_until = "LEASED", self.clock() + self.lease
            answers.append(Popped(queue, Item(found.id, queue, found.spec)))
        return answers

    def ack(self, claims: Sequence[tuple[str, str]], within: float) -> list[Ack]:
        assert within >= 0
        self._called("ack")
        return [self._ack(item, run) for item, run in claims]

    def _ack(self, item: str, run: str) -> Ack:
        if self.state(item) not in ("PENDING", "LEASED"):
            return Ack.REFUSED
        self.contents[item].state, self.contents[item].run = "CLAIMED", run
        return Ack.ACCEPTED

    def fail(self, failures: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        assert within >= 0
        self._called("fail")
        for item, message in failures:
            one = self.contents[item]
            one.state, one.message, one.phase = "FAILED", message, phase
        return [True] * len(failures)

    def warn(self, warnings: Sequence[tuple[str, str]], phase: Phase, within: float) -> list[bool]:
        assert within >= 0
        self._called("warn")
        for item, message in warnings:
            self.contents[item].warnings.append(message)
            self.contents[item].phase = phase
        return [True] * len(warnings)

    def set_status(self, agent: str, status: str) -> None:
        self._called("set_status")
        self.statuses.append(status)


class FakeVertex:
    """Vertex AI: CustomJobs as real messages, whose states tests set with real enum members."""

    def __init__(self, clock: Clock, deployment: str) -> None:
        self.clock = clock
        self.deployment = deployment
        self.jobs: dict[str, CustomJob] = {}
        self.lag = 0.0
        self.begins_runs = True
        self.runs: dict[RunId, RunView] = {}
        self.calls: Counter[str] = Counter()
        self.trouble: dict[str, Callable[[], None]] = {}
        self.on_create: Callable[[JobRequest, Callable[[], str]], str] = lambda request, create: create()
        self.most_active = 0
        self._lock = threading.Lock()

    # for tests

    def set(self, name: str, state: JobState, error: str = "") -> None:
        """Let a job enter a state, as Vertex AI does it, and its program begin its run unless a test says otherwise."""
        job = self.jobs[name]
        job.state = state
        if error:
            job.error.message = error
        if state is JobState.JOB_STATE_RUNNING:
            job.start_time = self._now()
        if self._managed(job).ended:
            job.end_time = self._now()
        if self.begins_runs and state in (JobState.JOB_STATE_RUNNING, JobState.JOB_STATE_SUCCEEDED):
            self.runs[self._managed(job).run] = RunView("running", stopped=False, heartbeat=self.clock())

    def _now(self) -> Timestamp:
        at = Timestamp()
        at.FromNanoseconds(int(self.clock() * 1e9) + len(self.jobs))
        return at

    def of(self, item: str) -> list[CustomJob]:
        return [job for job in self.jobs.values() if self._managed(job).item == item]

    def living(self) -> list[CustomJob]:
        return [job for job in self.jobs.values() if not self._managed(job).ended]

    def add(self, request: JobRequest) -> str:
        with self._lock:
            return self._add(request)

    def _add(self, request: JobRequest) -> str:
        name = f"projects/p/locations/{request.region}/customJobs/{len(self.jobs) + 1}"
        job = CustomJob(request.custom_job)
        job.name, job.state = name, JobState.JOB_STATE_PENDING
        job.create_time = self._now()
        self.jobs[name] = job
        self.most_active = max(self.most_active, len(self.living()))
        return name

    def _managed(self, job: CustomJob) -> ManagedJob:
        managed = readback.managed(job, deployment=self.deployment, region=job.name.split("/")[3])
        assert managed is not None
        return managed

    def _called(self, operation: str) -> None:
        self.calls[operation] += 1
        if trouble := self.trouble.get(operation):
            trouble()

    # the protocol

    def active(self, region: str) -> list[ManagedJob]:
        return [job for job in self._listed(region) if not job.ended]

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        return [job for job in self._listed(region) if job.created > since]

    def _listed(self, region: str) -> list[ManagedJob]:
        self._called("list")
        managed = [self._managed(job) for job in self.jobs.values()]
        return [job for job in managed if job.region == region and job.created <= self.clock() - self.lag + 1e-3]

    def get(self, name: str) -> ManagedJob | None:
        self._called("get")
        return self._managed(self.jobs[name]) if name in self.jobs else None

    def request_of(self, name: str) -> JobRequest | None:
        self._called("get")
        if name not in self.jobs:
            return None
        return readback.request_of(self.jobs[name], deployment=self.deployment, region=name.split("/")[3])

    def create(self, request: JobRequest, timeout: float) -> str:
        self._called("create")
        return self.on_create(request, lambda: self.add(request))

    def cancel(self, name: str) -> None:
        self._called("cancel")
        if not self._managed(self.jobs[name]).ended:
            self.jobs[name].state = JobState.JOB_STATE_CANCELLING


class FakeObjects:
    """The bucket: objects with generations. ``calls`` and ``trouble`` go by names such as ``write ledger.json``."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.calls: Counter[str] = Counter()
        self.trouble: dict[str, Callable[[], None]] = {}
        self._generations = itertools.count(1)

    def _called(self, operation: str) -> None:
        self.calls[operation] += 1
        if trouble := self.trouble.get(operation):
            trouble()

    def read(self, name: str) -> tuple[bytes, int] | None:
        self._called(f"read {name}")
        return self.objects.get(name)

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        self._called(f"write {name}")
        if generation != self.objects.get(name, (b"", 0))[1]:
            return None
        self.put(name, content)
        return self.objects[name][1]

    def put(self, name: str, content: bytes) -> None:
        """Replace an object, whatever its generation."""
        self.objects[name] = content, next(self._generations)


class FakeKey:
    def get(self) -> str:
        return KEY


SETTINGS: dict[str, Any] = {
    "entity": ENTITY,
    "queues": ("cpu", "gpu"),
    "max_jobs": 5,
    "deployment": "test",
    "project": "p",
    "regions": (Region(name="us-central1", staging_bucket="gs://staging"),),
    "key_secret": "projects/p/secrets/s/versions/latest",
    "state_bucket": "gs://state",
}


class FakeJobs:
    """Job artifacts by their names; an error is raised in their place. ``asked`` counts look-ups."""

    def __init__(self) -> None:
        self.artifacts: dict[str, JobArtifact | Exception] = {}
        self.asked: list[str] = []
        self.forgotten = 0

    def find(self, name: str) -> JobArtifact:
        self.asked.append(name)
        found = self.artifacts.get(name, ItemRejected(f"job: W&B does not show {name}", code=Code.ARTIFACT_NOT_FOUND))
        if isinstance(found, Exception):
            raise found
        return found

    def forget(self) -> None:
        self.forgotten += 1


class World:
    """A deployment with its outside, on one clock."""

    def __init__(self, **changes: Any) -> None:
        self.settings = Settings(**SETTINGS | changes)
        self.clock = Clock()
        self.queue = FakeQueue(self.clock, lease=self.settings.lease)
        self.vertex = FakeVertex(self.clock, self.settings.deployment)
        self.vertex.runs = self.queue.run_views
        self.bucket = FakeObjects()
        self.job_artifacts = FakeJobs()
        self.redact = Redactor()
        self.redact.add(KEY)
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

    def lose_ledger(self, left: bytes = b"damaged") -> None:
        self.bucket.put(LEDGER, left)

    def tick(self, published: float) -> PassReport | Skipped:
        return run_pass(self.settings, self.services(), PassRequest(published=published))

    def preview(self, **wanted: Any) -> PassReport:
        return preview(self.settings, self.services(), PassRequest(dry_run=True, **wanted))

    def services(self) -> Services:
        return Services(
            queue=self.queue,
            vertex=self.vertex,
            record=Record(self.bucket, self.redact),
            key=FakeKey(),
            jobs=self.job_artifacts,
            redact=self.redact,
            clock=self.clock,
            new_pass_id=lambda: f"pass{next(self._passes)}",
        )

    def run(self, request: PassRequest | None = None, **changes: Any) -> PassReport:
        settings = self.settings.model_copy(update=changes)
        report = run_pass(settings, self.services(), request or PassRequest())
        assert isinstance(report, PassReport)
        return report

    def run_of(self, job: CustomJob) -> RunId:
        """Give the run that a job reports as."""
        managed = readback.managed(job, deployment=self.settings.deployment, region="us-central1")
        assert managed is not None
        return managed.run

    def crash(self) -> None:
        """Run a pass that dies where the trouble set up by the test raises Crash."""
        try:
            self.run()
        except Crash:
            return
        raise AssertionError("the pass did not crash")


def image_spec(**changes: Any) -> dict[str, Any]:
    """Give the run spec of a small image job."""
    spec: dict[str, Any] = {
        "entity": ENTITY,
        "project": "demo",
        "resource": "gcp-vertex",
        "resource_args": {
            "gcp-vertex": {
                "spec": {
                    "worker_pool_specs": [
                        {
                            "machine_spec": {"machine_type": "n1-standard-4"},
                            "replica_count": 1,
                            "container_spec": {"image_uri": "${image_uri}"},
                        }
                    ]
                }
            }
        },
        "docker": {"docker_image": "us-docker.pkg.dev/p/train/mnist:1"},
        "overrides": {"args": ["--epochs", "3"], "run_config": {"lr": 0.1}},
    }
    return spec | changes


def lost(request: JobRequest, create: Callable[[], str]) -> str:
    """Create the job and lose the answer."""
    create()
    raise OutcomeUnknown("no answer", code=Code.CREATE_OUTCOME_UNKNOWN)


def never(request: JobRequest, create: Callable[[], str]) -> str:
    """Lose the request."""
    raise OutcomeUnknown("no answer", code=Code.CREATE_OUTCOME_UNKNOWN)


def no_quota(request: JobRequest, create: Callable[[], str]) -> str:
    raise ItemDeferred("no quota", code=Code.QUOTA_CREATE)


def down(service: str) -> Callable[[], None]:
    def raise_() -> None:
        raise Unavailable(service, "down", code=Code.WANDB_UNAVAILABLE)

    return raise_
