"""Vertex AI's CustomJobs: create, list, get, cancel, each with a deadline, each error said in what it means for an item."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import Credentials
from google.cloud.aiplatform_v1 import JobServiceClient
from google.cloud.aiplatform_v1.types import CustomJob, ListCustomJobsRequest

from vertex_launch.adapters.grpc_endpoint import BACKOFF, TROUBLE, insecure_channel, is_plaintext
from vertex_launch.errors import ItemDeferred, ItemRejected, OutcomeUnknown, Unavailable
from vertex_launch.job import labels, readback
from vertex_launch.job.request import JobRequest
from vertex_launch.model import ManagedJob

SERVICE = "Vertex AI"
PAGE = 100

# gRPC and REST raise different subclasses of these parents, so the parents are named wherever there is one.
PERMANENT = (exceptions.BadRequest, exceptions.Forbidden, exceptions.NotFound, exceptions.MethodNotImplemented)


class VertexJobs:
    """The CustomJobs of one deployment in one project; a client per region, made when it is first needed.

    ``credentials`` are the application default ones where none are given.
    """

    def __init__(
        self,
        project: str,
        deployment: str,
        *,
        timeout: float,
        endpoint: str | None = None,
        credentials: Credentials | None = None,
        backoff: Retry = BACKOFF,
    ) -> None:
        self._project = project
        self._deployment = deployment
        self._again = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._endpoint = endpoint
        self._credentials = credentials
        self._clients: dict[str, JobServiceClient] = {}
        self._lock = threading.Lock()

    def active(self, region: str) -> list[ManagedJob]:
        """List the deployment's jobs that have not ended. Raises Unavailable."""
        jobs = self._list(region, labels.list_filter(self._deployment, active=True))
        return [job for job in jobs if not job.ended]

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        """List the deployment's jobs created after ``since`` (Unix seconds), whatever their state. Raises Unavailable."""
        created = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return self._list(region, f'{labels.list_filter(self._deployment, active=False)} AND create_time>"{created}"')

    def _list(self, region: str, wanted: str) -> list[ManagedJob]:
        parent = f"projects/{self._project}/locations/{region}"
        request = ListCustomJobsRequest(parent=parent, filter=wanted, page_size=PAGE)
        try:
            jobs = list(self._client(region).list_custom_jobs(request, **self._again))
        except TROUBLE as error:
            raise Unavailable(
                SERVICE, f"cannot list the jobs in {parent}: {_said(error)}{_remedy(error, 'list')}"
            ) from error
        managed = (readback.managed(job, deployment=self._deployment, region=region) for job in jobs)
        return [job for job in managed if job is not None]

    def get(self, name: str) -> ManagedJob | None:
        """Give the job of that resource name, None when Vertex AI has none or it is not ours. Raises Unavailable."""
        job = self._get(name)
        return job and readback.managed(job, deployment=self._deployment, region=_region(name))

    def request_of(self, name: str) -> JobRequest | None:
        """Give what made that job, None when Vertex AI has none or it is not ours. Raises Unavailable."""
        job = self._get(name)
        return job and readback.request_of(job, deployment=self._deployment, region=_region(name))

    def _get(self, name: str) -> CustomJob | None:
        try:
            return self._client(_region(name)).get_custom_job(name=name, **self._again)
        except exceptions.NotFound:
            return None
        except TROUBLE as error:
            raise Unavailable(SERVICE, f"cannot get {name}: {_said(error)}{_remedy(error, 'get')}") from error

    def create(self, request: JobRequest, timeout: float) -> str:
        """Create the job, once, and give its resource name.

        Raises ItemRejected when Vertex AI will never take it, ItemDeferred when it surely did not now, and
        OutcomeUnknown when the job may exist all the same: a create has no id that would make it safe to repeat.
        """
        parent = f"projects/{self._project}/locations/{request.region}"
        try:
            job: CustomJob = self._client(request.region).create_custom_job(
                parent=parent, custom_job=request.custom_job, timeout=timeout, retry=None
            )
        except exceptions.TooManyRequests as error:
            raise ItemDeferred(
                f"Vertex AI has no quota for it now in {request.region}: {_said(error)} It is tried again; where that does "
                "not help, raise the quota of the project, or ask for less."
            ) from error
        except exceptions.Unauthorized as error:
            raise ItemDeferred(f"Vertex AI does not accept the function's service account: {_said(error)}") from error
        except exceptions.Conflict as error:
            raise ItemDeferred(f"Vertex AI could not take the job now: {_said(error)}") from error
        except PERMANENT as error:
            raise ItemRejected(f"Vertex AI refused the job: {_said(error)}{_remedy(error, 'create')}") from error
        except TROUBLE as error:
            # A connection that was never opened looks the same as one that broke before the answer came.
            raise OutcomeUnknown(
                f"Vertex AI did not say whether it took the job: {_said(error)} The job is looked for before anything else "
                "is tried."
            ) from error
        name: str = job.name
        return name

    def cancel(self, name: str) -> None:
        """Ask for the job's end; one that has ended already or is gone is no error. Raises Unavailable."""
        try:
            self._client(_region(name)).cancel_custom_job(name=name, **self._again)
        except (exceptions.NotFound, exceptions.BadRequest):
            return  # BadRequest is also the parent of FailedPrecondition: not in a state that can be cancelled
        except TROUBLE as error:
            raise Unavailable(SERVICE, f"cannot cancel {name}: {_said(error)}{_remedy(error, 'cancel')}") from error

    def _client(self, region: str) -> JobServiceClient:
        with self._lock:
            if region not in self._clients:
                self._clients[region] = _client(region, self._endpoint, self._credentials)
            return self._clients[region]


def _region(name: str) -> str:
    """Give the region of a job's resource name."""
    return name.split("/")[3]


def _client(region: str, endpoint: str | None, credentials: Credentials | None = None) -> JobServiceClient:
    if is_plaintext(endpoint):
        return JobServiceClient(
            transport=JobServiceClient.get_transport_class("grpc")(channel=insecure_channel(endpoint))
        )
    options = {"api_endpoint": endpoint or f"{region}-aiplatform.googleapis.com"}
    return JobServiceClient(credentials=credentials, client_options=options)


def _said(error: Exception) -> str:
    """Give Vertex's own words as a sentence; those of the last attempt where there were several."""
    last = getattr(error, "cause", None) or error
    words = " ".join((getattr(last, "message", "") or str(last) or type(last).__name__).split())
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _remedy(error: Exception, verb: str) -> str:
    """Say what to do about an error whose cause is known."""
    said = _said(error)
    if "act as service_account" in said or "actAs" in said:
        return (
            " Grant the dispatching function's service account roles/iam.serviceAccountUser on that account, "
            "or correct service_account in the run spec or the queue's config."
        )
    if isinstance(error, exceptions.Forbidden):
        return (
            f" Grant the function's service account aiplatform.customJobs.{verb} in the project, and check that the "
            "Vertex AI API is enabled there."
        )
    return ""
