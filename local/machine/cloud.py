"""The cloud on one machine: every service that the functions use, on loopback, and the functions themselves.

Everything runs in this process and its children, and ends with ``stop``. The functions and people's tools find the
services through environment variables only, as they find the real ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import yaml
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

from local.machine.containers import Containers
from local.machine.functions import CONFIG, ROOT, Function
from local.machine.loopback import is_free, without_proxy
from local.machine.repositories import Repositories
from local.machine.scheduler import Scheduler
from local.machine.shim import PushShim
from local.standins.control import ControlServer
from local.standins.faults import Faults
from local.standins.iam import IamServer
from local.standins.log_sink import LogSink
from local.standins.logs import LogServer
from local.standins.metadata import Tokens
from local.standins.monitoring import MonitoringServer
from local.standins.pubsub import PubSubServer
from local.standins.pubsub_emulator import EmulatorMissing, PubSubEmulator, find
from local.standins.secrets import SecretServer
from local.standins.storage import StorageServer
from local.standins.vertex.job_log import Entry
from local.standins.vertex.server import PROJECTS, Limits, VertexServer
from local.standins.wandb import WandbServer

PROJECT = "demo-project"
ENTITY = "acme"
USER = "ada"
API_KEY = "local0" * 6 + "demo"
"""The W&B key of the local cloud. It has a real key's 40 characters, and no other server accepts it."""
SECRET = f"projects/{PROJECT}/secrets/wandb-api-key"
JOB_ACCOUNT = f"jobs@{PROJECT}.iam.gserviceaccount.com"
BUCKETS = ("demo-state", "demo-staging", "demo-staging-east")
TICKS = f"projects/{PROJECT}/topics/ticks"
JOB_LOGS = f"projects/{PROJECT}/topics/job-logs"
METRICS = ROOT / "infra/monitoring/metrics"
SERVICES = ("wandb", "vertex", "secrets", "storage", "pubsub")


@dataclass(frozen=True)
class Options:
    """How the cloud behaves. Times are in seconds. ``ports`` maps the names of services and functions to fixed ports."""

    tick_every: float = 60.0
    lease: float = 60.0
    queued: float = 0.3
    pending: float = 0.7
    list_lag: float = 0.0
    latencies: Mapping[str, float] = field(default_factory=dict)
    google_pubsub: bool = False
    raw_pushes: bool = False
    ports: Mapping[str, int] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What this cloud's vertex-launch.yaml has in addition to, or instead of, the one in local/config."""
    api_keys: Mapping[str, str] = field(default_factory=lambda: {API_KEY: USER})
    """The user of each W&B key. Every user is a member of ``ENTITY``."""
    secret_readers: Mapping[str, Collection[str]] | None = None
    """The service accounts of jobs that may read each secret (``projects/P/secrets/S``).

    By default ``JOB_ACCOUNT`` may read the secrets that the settings name for jobs, and nothing else.
    """


class PortsTaken(Exception):
    """Other processes listen on ports that the cloud needs. The message names all of them."""


class Cloud:
    """All services and functions: ``start`` and ``stop`` them. Tests and programs also use its parts directly."""

    def __init__(self, options: Options | None = None) -> None:
        self.options = options or Options()
        if taken := [f"{port} ({name})" for name, port in self.options.ports.items() if not is_free(port)]:
            raise PortsTaken(f"another process listens on {', '.join(taken)} of 127.0.0.1")
        os.environ.update(without_proxy(os.environ))  # before the first client: a proxy cannot reach loopback addresses
        with contextlib.ExitStack() as ends:
            self.folder = Path(tempfile.mkdtemp(prefix="vertex-launch-"))
            ends.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.faults = {name: Faults(self.options.latencies.get(name, 0.0)) for name in SERVICES}
            port = self.options.ports.get
            self.wandb = WandbServer(
                lease=self.options.lease,
                api_keys=self.options.api_keys,
                teams={ENTITY: [*self.options.api_keys.values()]},
                default_entities=dict.fromkeys(self.options.api_keys.values(), ENTITY),
                faults=self.faults["wandb"],
                port=port("wandb", 0),
            )
            self.tokens = Tokens()
            self.repositories = Repositories(self.folder / "repositories")
            self.containers = Containers(
                queued=self.options.queued,
                pending=self.options.pending,
                tokens=self.tokens,
                repositories=self.repositories,
            )
            self.vertex = VertexServer(
                faults=self.faults["vertex"],
                runner=self.containers,
                regions=("us-central1", "us-east4"),
                limits=Limits(list_lag=self.options.list_lag),
                port=port("vertex", 0),
                on_log=self._log,
            )
            self.secrets = SecretServer(
                projects=PROJECTS, tokens=self.tokens, faults=self.faults["secrets"], port=port("secrets", 0)
            )
            self.secrets.add(SECRET, API_KEY)
            for secret, accounts in self._secret_readers().items():
                self.secrets.allow(secret, *accounts)
            self.logs = LogServer(projects=PROJECTS, port=port("logs", 0))
            self.monitoring = MonitoringServer(self._has_data, port=port("monitoring", 0))
            self.storage = StorageServer(buckets=BUCKETS, faults=self.faults["storage"], port=port("storage", 0))
            self.iam = IamServer(projects=PROJECTS, accounts=[JOB_ACCOUNT], port=port("iam", 0))
            self.pubsub = self._pubsub()
            self.log_sink = LogSink(self.pubsub.address, JOB_LOGS)
            self.control = ControlServer(self.faults, self.state, port=port("control", 0))
            self._ends = ends.pop_all()

    def start(self) -> None:
        """Start everything. If a part cannot start, stop the others and raise its error."""
        try:
            for server in (
                self.wandb,
                self.vertex,
                self.secrets,
                self.storage,
                self.iam,
                self.pubsub,
                self.logs,
                self.monitoring,
            ):
                self._start(server)
            self._start(self.control)
            self.dispatch = self._function("dispatch", "cloudevent")
            self.dispatch_now = self._function("dispatch_now", "http")
            self.job_state = self._function("job_state", "cloudevent")
            functions = (self.dispatch, self.dispatch_now, self.job_state)
            for function in functions:
                self._start(function)
            self.shim = PushShim(self.dispatch.url, TICKS, raw=self.options.raw_pushes)
            self.log_shim = PushShim(self.job_state.url, JOB_LOGS, raw=self.options.raw_pushes)
            for part in (self.shim, self.log_shim):
                self._start(part)
            self._subscribe()
            self._start(self.log_sink)
            for function in functions:
                function.wait()
            self.scheduler = Scheduler(self.pubsub.address, TICKS, self.options.tick_every)
            self._start(self.scheduler)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End everything, the last started first. No process and no file is left."""
        self._ends.close()

    def function_variables(self) -> dict[str, str]:
        """Return the environment with which the functions find this cloud."""
        return {
            "LAUNCH_CONFIG": str(CONFIG / "launch-config.yaml"),
            "VERTEX_LAUNCH_CONFIG": str(self._settings()),
            "WANDB_BASE_URL": self.wandb.url,
            "WANDB_API_KEY_SECRET": f"{SECRET}/versions/latest",
            "GOOGLE_CLOUD_PROJECT": PROJECT,
            "STATE_BUCKET": "gs://demo-state/vertex-launch",
            "DISPATCH_TOPIC": TICKS,
            "AIPLATFORM_ENDPOINT": f"http://{self.vertex.address}",
            "SECRETMANAGER_ENDPOINT": f"http://{self.secrets.address}",
            "LOGGING_ENDPOINT": self.logs.url,
            "STORAGE_EMULATOR_HOST": self.storage.url,
            "PUBSUB_EMULATOR_HOST": self.pubsub.address,
            **self.options.variables,
        }

    def preflight_variables(self) -> dict[str, str]:
        """Return the environment with which ``python -m vertex_launch`` finds this cloud: it uses more services."""
        return {
            **without_proxy(os.environ),
            **self.function_variables(),
            "CLOUDRESOURCEMANAGER_ENDPOINT": self.iam.endpoint,
            "IAM_ENDPOINT": self.iam.endpoint,
            "MONITORING_ENDPOINT": self.monitoring.url,
            "DISPATCH_NOW": self.dispatch_now.url,
        }

    def person_variables(self) -> dict[str, str]:
        """Return the environment with which people's W&B tools find this cloud."""
        variables = {"WANDB_BASE_URL": self.wandb.url, "WANDB_API_KEY": API_KEY, "WANDB_ENTITY": ENTITY}
        return {**without_proxy(os.environ), **variables}

    def state(self) -> dict[str, Any]:
        """Return queues, items, runs and jobs as they are now, in JSON types."""
        jobs = [
            {
                "name": name,
                "display_name": job.display_name,
                "state": job.state.name,
                "created_at": job.create_time.timestamp(),
                "ended_at": job.end_time.timestamp() if job.end_time else None,
                "labels": dict(job.labels),
                "error": job.error.message,
            }
            for name, job in self.vertex.jobs.items()
        ]
        return {"wandb": self.wandb.store.snapshot(), "jobs": jobs}

    def _has_data(self, metric: str) -> bool | None:
        """Return whether a log-based metric of the deployment has counted any line of a function."""
        found = re.fullmatch(r"logging\.googleapis\.com/user/default/(\w+)", metric)
        if not found:
            return True if metric.startswith("pubsub.googleapis.com/") else None
        file = METRICS / f"{found[1]}.yaml"
        event = re.search(r'jsonPayload\.event="(\w+)"', file.read_text()) if file.exists() else None
        logs = (path.read_text(errors="replace") for path in self.folder.glob("*.log"))
        return any(f'"event": "{event[1]}"' in log for log in logs) if event else None

    def _settings(self) -> Path:
        """Return the path of the functions' vertex-launch.yaml: the one in local/config, or a copy with other values."""
        path = CONFIG / "vertex-launch.yaml"
        if not self.options.settings:
            return path
        ours = self.folder / path.name
        ours.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **self.options.settings}))
        return ours

    def _secret_readers(self) -> Mapping[str, Collection[str]]:
        """Return the readers that the options name, or those that the settings need."""
        if self.options.secret_readers is not None:
            return self.options.secret_readers
        settings = {**yaml.safe_load((CONFIG / "vertex-launch.yaml").read_text()), **self.options.settings}
        wanted = [SECRET] if settings.get("api_key_delivery") == "secret" else []
        wanted += [version.partition("/versions/")[0] for version in (settings.get("git_token_secrets") or {}).values()]
        tokens = [host.get("token_secret") for host in (settings.get("git_hosts") or {}).values()]
        wanted += [version.partition("/versions/")[0] for version in tokens if version]
        return {secret: [JOB_ACCOUNT] for secret in wanted}

    def _log(self, entry: Entry) -> None:
        """Store a log entry and pass it to the sink, as Cloud Logging does."""
        self.logs.add(entry)
        self.log_sink.write(entry)

    def _pubsub(self) -> PubSubServer | PubSubEmulator:
        port = self.options.ports.get("pubsub", 0)
        if self.options.google_pubsub:
            try:
                return PubSubEmulator(find(), port)
            except EmulatorMissing as missing:
                raise SystemExit(f"--google-pubsub: {missing}") from missing
        return PubSubServer(faults=self.faults["pubsub"], port=port)

    def _function(self, target: str, signature: str) -> Function:
        port = self.options.ports.get(target, 0)
        return Function(target, signature, self.function_variables(), self.folder / f"{target}.log", port)

    def _subscribe(self) -> None:
        """Create the topics, and the subscriptions that push their messages to the functions."""
        with grpc.insecure_channel(self.pubsub.address) as channel:
            publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
            subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
            for name, topic, shim in (("ticks", TICKS, self.shim), ("job-logs", JOB_LOGS, self.log_shim)):
                publisher.create_topic(name=topic)
                publisher.create_topic(name=f"{topic}-dead")
                grave = {"name": f"projects/{PROJECT}/subscriptions/{name}-dead", "topic": f"{topic}-dead"}
                subscriber.create_subscription(request={**grave, "ack_deadline_seconds": 60})
                subscriber.create_subscription(
                    request={
                        "name": f"projects/{PROJECT}/subscriptions/{name}",
                        "topic": topic,
                        "push_config": {"push_endpoint": shim.url},
                        "ack_deadline_seconds": 120,
                        "retry_policy": {"minimum_backoff": {"seconds": 2}, "maximum_backoff": {"seconds": 10}},
                        "dead_letter_policy": {"dead_letter_topic": f"{topic}-dead", "max_delivery_attempts": 100},
                    }
                )

    def _start(self, part: Any) -> None:
        self._ends.callback(part.stop)
        part.start()
