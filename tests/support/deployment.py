"""A deployment with its services: the local W&B, Vertex AI, Secret Manager and Cloud Storage in this process.

The services share a clock, so that no test waits for a lease or a lock to expire. Passes use the product's adapters,
in this process with the same clock (``tick``), or in their own process in real time (``process``).
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.cloud.aiplatform_v1.types import JobState

from local.standins.faults import Faults
from local.standins.secrets import SecretServer
from local.standins.storage import StorageServer
from local.standins.vertex.jobs import ENDED
from local.standins.vertex.server import PROJECTS, VertexServer
from local.standins.wandb import WandbServer
from tests.support.processes import ROOT, Function
from vertex_launch.adapters.job_artifacts import JobArtifacts
from vertex_launch.adapters.record_storage import RecordStorage
from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.run import run_pass
from vertex_launch.errors import PassBusy, PassLost, Unavailable
from vertex_launch.job import readback
from vertex_launch.log import Redactor
from vertex_launch.model import ManagedJob, PassReport, PassRequest
from vertex_launch.settings import config
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.record import Record

PROJECT, REGION, ENTITY, BUCKET = "demo-project", "us-central1", "acme", "demo-state"
KEY = "endtoend" * 5
SECRET = f"projects/{PROJECT}/secrets/wandb-api-key"
IMAGE = "us-docker.pkg.dev/demo-project/train/mnist:1"
UNREACHABLE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/train:1"
"""An image that Vertex AI cannot pull."""
REASON = "Artifact Registry"
SUCCEEDED, CANCELLED = JobState.JOB_STATE_SUCCEEDED, JobState.JOB_STATE_CANCELLED

SERVICES = WANDB, VERTEX, SECRETS, STORAGE = "W&B", "Vertex AI", "Secret Manager", "Cloud Storage"


class Clock:
    """Real time moved by some seconds: it starts ``behind`` the real time, and jumps instead of waiting."""

    def __init__(self, behind: float = 0.0) -> None:
        self._moved = -behind

    def __call__(self) -> float:
        return time.time() + self._moved

    def sleep(self, seconds: float) -> None:
        """Jump forward."""
        self._moved += seconds

    def catch_up(self) -> None:
        """Show real time from now on, like the clocks of other processes."""
        assert self._moved <= 0, "a clock must not go back"
        self._moved = 0.0


@dataclass(frozen=True)
class Point:
    """A moment of a pass: before or after (``done``) the service does the nth request of an operation."""

    operation: str
    nth: int
    done: bool

    def __str__(self) -> str:
        return f"{'after' if self.done else 'before'} {self.operation} {self.nth}"


class Requests:
    """The requests to all services, and an action at one point of them.

    A request with several W&B operations counts as the first one that does not only update the agent's status.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.reached = threading.Event()
        """Set when the point was reached."""
        self._point: Point | None = None
        self._act: Callable[[], None] = lambda: None
        self._lock = threading.Lock()
        self._here = threading.local()

    def at(self, point: Point | None, act: Callable[[], None] = lambda: None) -> None:
        """Start to count, and call ``act`` when the point is reached. It may raise what a fault raises."""
        with self._lock:
            self.asked.clear()
            self.done.clear()
            self.reached.clear()
            self._point, self._act = point, act

    def arrived(self, operations: tuple[str, ...]) -> None:
        """Count a request before it is done."""
        name = next((one for one in operations if one != "updateLaunchAgent"), operations[0])
        with self._lock:
            self.asked[name] += 1
            self._here.request = Point(name, self.asked[name], done=False)
        self._reach(self._here.request)

    def ended(self) -> None:
        """Count a request after it is done and before it is answered."""
        request: Point = self._here.request
        with self._lock:
            self.done[request.operation] += 1
        self._reach(Point(request.operation, request.nth, done=True))

    def _reach(self, point: Point) -> None:
        if point == self._point:
            self.reached.set()
            self._act()


class _Counted(Faults):
    """The faults of one service, which also count its requests."""

    def __init__(self, requests: Requests) -> None:
        super().__init__()
        self._requests = requests

    def before(self, *operations: str) -> None:
        self._requests.arrived(operations)
        super().before(*operations)

    def after(self, *operations: str) -> None:
        self._requests.ended()
        super().after(*operations)


LAUNCH = frozenset(config.AgentSettings.model_fields)
"""The settings of launch-config.yaml. All others are in vertex-launch.yaml."""


class Deployment:
    """The product, configured by files in ``folder`` and environment variables, and its services.

    ``settings`` are those of both files. ``faults`` has the faults of each service by name.
    """

    def __init__(
        self, folder: Path, clock: Clock | None = None, *, write_interval: float = 0.0, **settings: Any
    ) -> None:
        self.clock = clock or Clock()
        self.requests = Requests()
        self.faults = {name: _Counted(self.requests) for name in SERVICES}
        self.wandb = WandbServer(
            clock=self.clock,
            lease=settings.get("lease", 60.0),
            api_keys={KEY: "ada"},
            teams={ENTITY: ["ada"]},
            default_entities={"ada": ENTITY},
            faults=self.faults[WANDB],
        )
        self.vertex = VertexServer(clock=self.clock, faults=self.faults[VERTEX])
        self.secrets = SecretServer(projects=PROJECTS, faults=self.faults[SECRETS])
        self.storage = StorageServer(
            buckets=[BUCKET], clock=self.clock, faults=self.faults[STORAGE], write_interval=write_interval
        )
        self.secrets.add(SECRET, KEY)
        self._folder = folder
        self._settings = {"queues": ["gpu"], "entity": ENTITY, "max_jobs": 5, **settings}
        self._processes: list[Function] = []
        self._closers: list[Callable[[], None]] = []

    def __enter__(self) -> Self:
        for server in (self.wandb, self.vertex, self.secrets, self.storage):
            server.start()
        for queue in self._settings["queues"]:
            self.wandb.store.create_queue(ENTITY, queue)
        self.variables = self._configure()
        self.start_anew()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.close()
        for close in self._closers:
            close()
        for server in (self.wandb, self.vertex, self.secrets, self.storage):
            server.stop()

    def service_of(self, point: Point) -> str:
        """Return the service of a point's operation."""
        if point.operation.startswith("storage."):
            return STORAGE
        if point.operation == "AccessSecretVersion":
            return SECRETS
        return VERTEX if point.operation.endswith(("CustomJob", "CustomJobs")) else WANDB

    # Passes

    def process(self) -> Function:
        """Start a dispatcher in its own process."""
        self._processes.append(Function(self.variables, self._folder / f"dispatcher-{len(self._processes)}.log"))
        return self._processes[-1]

    def start_anew(self, **changes: Any) -> None:
        """Replace the dispatcher of this process with a new one, whose settings differ by ``changes``."""
        settings = config.load(self.variables, ROOT)
        self.settings = settings.model_copy(update=changes)
        self.services = self._assemble(self.settings)

    def tick(self, request: PassRequest | None = None) -> PassReport | None:
        """Run a pass in this process. Return None if another one holds the lock or a service is down."""
        try:
            report = run_pass(self.settings, self.services, request or PassRequest())
        except (PassBusy, PassLost, Unavailable):
            return None
        return report if isinstance(report, PassReport) else None

    def _configure(self) -> dict[str, str]:
        rest = {"project": PROJECT, "regions": [{"name": REGION, "staging_bucket": "gs://staging"}]}
        rest["jobs_account"] = f"jobs@{PROJECT}.iam.gserviceaccount.com"
        files = {"launch-config.yaml": {}, "vertex-launch.yaml": rest}
        for name, value in self._settings.items():
            files["launch-config.yaml" if name in LAUNCH else "vertex-launch.yaml"][name] = value
        for name, content in files.items():
            (self._folder / name).write_text(yaml.safe_dump(content))
        return {
            "LAUNCH_CONFIG": str(self._folder / "launch-config.yaml"),
            "VERTEX_LAUNCH_CONFIG": str(self._folder / "vertex-launch.yaml"),
            "WANDB_BASE_URL": self.wandb.url,
            "WANDB_API_KEY_SECRET": f"{SECRET}/versions/latest",
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "STATE_BUCKET": f"gs://{BUCKET}",
            "AIPLATFORM_ENDPOINT": f"http://{self.vertex.address}",
            "SECRETMANAGER_ENDPOINT": f"http://{self.secrets.address}",
            "STORAGE_EMULATOR_HOST": self.storage.url,
        }

    def _assemble(self, settings: config.Settings) -> Services:
        """Create the services as ``vertex_launch.clients`` does, with this clock."""
        redact = Redactor()
        key = SecretKey(settings, redact)
        client = storage.Client(
            project=settings.project,
            credentials=AnonymousCredentials(),
            client_options={"api_endpoint": self.storage.url},
        )
        self._closers.append(client.close)
        return Services(
            queue=WandbQueue(settings, key),
            vertex=VertexJobs(settings),
            record=Record(RecordStorage(settings, client), redact),
            key=key,
            jobs=JobArtifacts(settings.base_url, key, timeout=settings.timeouts.read),
            redact=redact,
            clock=self.clock,
        )

    # W&B

    def push(self, queue: str = "gpu", image: str = IMAGE, **changes: Any) -> str:
        """Push a run spec and return its item's id."""
        return self.wandb.store.push(ENTITY, queue, run_spec(image, **changes))

    def states(self) -> Mapping[str, str]:
        """Return the state of every item."""
        return {item: self.wandb.store.state(item) for item in list(self.wandb.store.items)}

    # Vertex AI

    def jobs(self) -> list[ManagedJob]:
        """Return all jobs, the oldest first."""
        found = (readback.managed(job, deployment="default", region=REGION) for job in self.vertex.jobs.values())
        return [job for job in found if job is not None]

    def jobs_of(self, item: str) -> list[ManagedJob]:
        """Return the jobs of an item."""
        return [job for job in self.jobs() if job.item == item]

    def end_jobs(self, *items: str) -> None:
        """End the active jobs of these items successfully, and all jobs that are being cancelled."""
        for job in self.jobs():
            if not job.ended and (job.cancelling or job.item in items):
                if not job.cancelling:
                    self.begin_run(job)
                self.vertex.advance(job.name, CANCELLED if job.cancelling else SUCCEEDED)

    def begin_run(self, job: ManagedJob) -> None:
        """Start a job's run, as its program does with wandb.init."""
        self.wandb.store.project(job.run.entity, job.run.project)
        self.wandb.store.runs.upsert(job.run.entity, job.run.project, job.run.id, username="ada")

    def most_active(self) -> int:
        """Return the most jobs that were active at once, from the times of Vertex AI."""
        changes = [(job.create_time.timestamp(), 1) for job in self.vertex.jobs.values()]
        changes += [(job.end_time.timestamp(), -1) for job in self.vertex.jobs.values() if job.state in ENDED]
        return max(itertools.accumulate(change for _, change in sorted(changes)), default=0)

    # The record

    @property
    def ledger(self) -> Ledger:
        """The ledger as it is stored now."""
        text = self.storage.objects.get(BUCKET, "default/ledger.json", {}).data
        ledger = Ledger.parse(text)
        assert ledger is not None
        return ledger


def run_spec(image: str = IMAGE, **changes: Any) -> dict[str, Any]:
    """Return the run spec of a small image job."""
    spec = {
        "entity": ENTITY,
        "project": "demo",
        "resource": "gcp-vertex",
        "resource_args": resource_args(),
        "docker": {"docker_image": image},
    }
    return spec | changes


def resource_args(**spec: Any) -> dict[str, Any]:
    """Return resource arguments of one small worker pool, with ``spec`` added to it."""
    pool = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}"},
    }
    return {"gcp-vertex": {"spec": {"worker_pool_specs": [pool], **spec}}}
