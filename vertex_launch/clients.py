"""Every client of an outside service, made once and when it is first needed; the functions and the preflight share them.

A client library is imported by the property that needs it, so that ``job_state`` loads only the two that it uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

from google.auth.exceptions import GoogleAuthError

from vertex_launch.adapters import google_api
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, Problem, Unavailable
from vertex_launch.model import Pace

if TYPE_CHECKING:
    from google.auth.credentials import Credentials
    from google.cloud import storage
    from google.cloud.iam_admin_v1 import IAMClient
    from google.cloud.logging_v2.services.metrics_service_v2 import MetricsServiceV2Client
    from google.cloud.resourcemanager_v3 import ProjectsClient
    from google.pubsub_v1 import PublisherClient

    from vertex_launch.adapters.secrets import SecretKey
    from vertex_launch.adapters.ticks import Ticks
    from vertex_launch.adapters.vertex_jobs import VertexJobs
    from vertex_launch.adapters.wandb_queue import WandbQueue
    from vertex_launch.dispatch.ports import Services
    from vertex_launch.log import Redactor
    from vertex_launch.settings.config import Settings


class Clients:
    """The clients of one deployment, with its settings and timeouts.

    ``credentials`` default to the application default credentials. Each property raises Unavailable if it needs credentials
    and there are none; ``vertex`` and ``ticks`` look for them at the first call.
    """

    def __init__(self, settings: Settings, redact: Redactor, credentials: Credentials | None = None) -> None:
        self._settings = settings
        self._redact = redact
        self._credentials = credentials
        self._pace = Pace()

    @cached_property
    def key(self) -> SecretKey:
        """The W&B API key in Secret Manager."""
        from vertex_launch.adapters.secrets import SecretKey

        with _credentials():
            return SecretKey(self._settings, self._redact, self._credentials)

    @cached_property
    def queue(self) -> WandbQueue:
        """W&B's queues, runs and agents."""
        from vertex_launch.adapters.wandb_queue import WandbQueue

        return WandbQueue(self._settings, self.key, pace=self._pace)

    @cached_property
    def vertex(self) -> VertexJobs:
        """The CustomJobs of Vertex AI."""
        from vertex_launch.adapters.vertex_jobs import VertexJobs

        return VertexJobs(self._settings, self._credentials)

    @cached_property
    def storage(self) -> storage.Client:
        """Cloud Storage."""
        from google.cloud.storage import Client

        emulated = "STORAGE_EMULATOR_HOST" in os.environ
        with _credentials():
            return Client(project=self._settings.project, credentials=None if emulated else self._credentials)

    @cached_property
    def publisher(self) -> PublisherClient:
        """Pub/Sub, at PUBSUB_EMULATOR_HOST if that is set."""
        from google.pubsub_v1 import PublisherClient

        with _credentials():
            return PublisherClient(credentials=self._credentials)

    @cached_property
    def ticks(self) -> Ticks:
        """The topic of ticks. Raises ConfigError if the deployment has none."""
        from vertex_launch.adapters.ticks import Ticks

        settings = self._settings
        if settings.tick_topic is None:
            found, remedy = "is not set, and job_state publishes ticks there", "Set it to projects/P/topics/T"
            raise ConfigError([Problem(settings.where("tick_topic"), found, remedy, Code.CONFIG_TICK_TOPIC)])
        return Ticks(settings.tick_topic, timeout=settings.timeouts.look)

    def projects(self, endpoint: str) -> ProjectsClient:
        """Return a client for Resource Manager at ``endpoint``, for the preflight."""
        from google.cloud.resourcemanager_v3 import ProjectsClient

        return google_api.client(ProjectsClient, endpoint, self._credentials)

    def accounts(self, endpoint: str) -> IAMClient:
        """Return a client for IAM at ``endpoint``, for the preflight."""
        from google.cloud.iam_admin_v1 import IAMClient

        return google_api.client(IAMClient, endpoint, self._credentials)

    @cached_property
    def metrics(self) -> MetricsServiceV2Client:
        """The log-based metrics of Cloud Logging, for the preflight."""
        from google.cloud.logging_v2.services.metrics_service_v2 import MetricsServiceV2Client

        return google_api.client(MetricsServiceV2Client, self._settings.logging_endpoint, self._credentials)

    @cached_property
    def services(self) -> Services:
        """Everything that a pass needs. The output of jobs is read only with ``log_lines``."""
        from vertex_launch.adapters.job_artifacts import JobArtifacts
        from vertex_launch.adapters.job_logs import JobLogs
        from vertex_launch.adapters.record_storage import RecordStorage
        from vertex_launch.dispatch.ports import Services
        from vertex_launch.state.record import Record

        settings, redact = self._settings, self._redact
        record = Record(RecordStorage(settings, self.storage), redact)
        jobs = JobArtifacts(settings.base_url, self.key, timeout=settings.timeouts.read)
        logs = JobLogs(settings) if settings.log_lines else None
        return Services(self.queue, self.vertex, record, self.key, redact, jobs, logs, pace=self._pace)

    @contextmanager
    def pass_services(self) -> Iterator[Services]:
        """Lend the services to one pass, and empty their caches on disk afterwards, because the disk is memory."""
        try:
            yield self.services
        finally:
            self.services.jobs.forget()


@contextmanager
def _credentials() -> Iterator[None]:
    """Raise Unavailable if the client inside needs Google credentials and there are none."""
    try:
        yield
    except GoogleAuthError as error:
        text = f"{error}. Attach a service account to the function, or run gcloud auth application-default login"
        raise Unavailable("Google credentials", text, code=Code.CREDENTIALS_MISSING) from error
