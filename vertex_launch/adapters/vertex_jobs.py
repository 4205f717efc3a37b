"""Vertex AI's CustomJobs: create, list, get and cancel. Each has a deadline, and errors that fit what the item needs next."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import Credentials
from google.cloud.aiplatform_v1 import JobServiceClient
from google.cloud.aiplatform_v1.types import CustomJob, ListCustomJobsRequest

from vertex_launch.adapters import grpc_endpoint
from vertex_launch.adapters.grpc_endpoint import BACKOFF, TROUBLE
from vertex_launch.codes import Code
from vertex_launch.errors import ItemDeferred, ItemRejected, LaunchError, OutcomeUnknown, Unavailable
from vertex_launch.job import labels, readback
from vertex_launch.job.request import JobRequest
from vertex_launch.model import JobName, ManagedJob

SERVICE = "Vertex AI"
PAGE = 100


class VertexJobs:
    """The CustomJobs of one deployment in one project, with one client per region, created on first use.

    ``credentials`` None means the application default credentials.
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
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._endpoint = endpoint
        self._credentials = credentials
        self._clients: dict[str, JobServiceClient] = {}
        self._lock = threading.Lock()

    def active(self, region: str) -> list[ManagedJob]:
        """List the deployment's jobs that have not ended. Raises Unavailable."""
        jobs = self._list(region, labels.list_filter(self._deployment, active=True))
        return [job for job in jobs if not job.ended]

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        """List the deployment's jobs created after ``since`` (Unix seconds), in any state. Raises Unavailable."""
        created = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return self._list(region, f'{labels.list_filter(self._deployment, active=False)} AND create_time>"{created}"')

    def _list(self, region: str, wanted: str) -> list[ManagedJob]:
        parent = f"projects/{self._project}/locations/{region}"
        request = ListCustomJobsRequest(parent=parent, filter=wanted, page_size=PAGE)
        try:
            jobs = list(self._client(region).list_custom_jobs(request, **self._limits))
        except TROUBLE as error:
            raise _unavailable(error, "list", f"the jobs in {parent}") from error
        managed = (readback.managed(job, deployment=self._deployment, region=region) for job in jobs)
        return [job for job in managed if job is not None]

    def get(self, name: str) -> ManagedJob | None:
        """Return the job with this resource name, None if it does not exist or is not ours. Raises Unavailable."""
        job = self._get(name)
        return (
            None
            if job is None
            else readback.managed(job, deployment=self._deployment, region=JobName.parse(name).region)
        )

    def request_of(self, name: str) -> JobRequest | None:
        """Return the request that created this job, None if it does not exist or is not ours. Raises Unavailable."""
        job = self._get(name)
        return (
            None
            if job is None
            else readback.request_of(job, deployment=self._deployment, region=JobName.parse(name).region)
        )

    def _get(self, name: str) -> CustomJob | None:
        try:
            return self._client(JobName.parse(name).region).get_custom_job(name=name, **self._limits)
        except exceptions.NotFound:
            return None
        except TROUBLE as error:
            raise _unavailable(error, "get", name) from error

    def create(self, request: JobRequest, timeout: float) -> str:
        """Create the job, in one attempt, and return its resource name.

        Raises ItemRejected if Vertex AI will never accept it, ItemDeferred if it certainly did not accept it now, and
        OutcomeUnknown if the job may exist: no request id makes a create safe to repeat.
        """
        parent = f"projects/{self._project}/locations/{request.region}"
        try:
            job: CustomJob = self._client(request.region).create_custom_job(
                parent=parent, custom_job=request.custom_job, timeout=timeout, retry=None
            )
        except TROUBLE as error:
            raise _not_created(error, request.region) from error
        name: str = job.name
        return name

    def cancel(self, name: str) -> None:
        """Request the job's cancellation. A job that has ended or does not exist is not an error. Raises Unavailable."""
        try:
            self._client(JobName.parse(name).region).cancel_custom_job(name=name, **self._limits)
        except (exceptions.NotFound, exceptions.BadRequest):
            return  # BadRequest is also the parent of FailedPrecondition: not in a state that can be cancelled
        except TROUBLE as error:
            raise _unavailable(error, "cancel", name) from error

    def _client(self, region: str) -> JobServiceClient:
        with self._lock:
            if region not in self._clients:
                endpoint = self._endpoint or f"{region}-aiplatform.googleapis.com"
                self._clients[region] = grpc_endpoint.client(JobServiceClient, endpoint, self._credentials)
            return self._clients[region]


def _not_created(error: Exception, region: str) -> LaunchError:
    """Return what a failed create means for the item."""
    words, grant = _words(error), _grant(error, "create")
    match error:
        case exceptions.TooManyRequests():
            return ItemDeferred(
                f"Vertex AI has no quota left for this job in {region}: {words} The item is retried. If that does not help, "
                "request more quota for the project, or smaller resources for the job.",
                code=Code.QUOTA_CREATE,
            )
        case exceptions.Unauthorized():
            return ItemDeferred(
                f"Vertex AI does not accept the credentials of the function's service account: {words} The item is retried.",
                code=Code.CREATE_CREDENTIALS,
            )
        case exceptions.Conflict():
            return ItemDeferred(
                f"Vertex AI cannot create the job at the moment: {words} The item is retried.",
                code=Code.CREATE_CONFLICT,
            )
        case exceptions.Forbidden() | exceptions.BadRequest() if grant:
            return ItemRejected(f"Vertex AI refused to create the job: {words} {grant}", code=Code.CREATE_PERMISSION)
        case exceptions.NotFound():
            return ItemRejected(
                f"Vertex AI did not find something that the job refers to: {words} Correct its name in the run spec or the "
                "queue's config.",
                code=Code.CREATE_NOT_FOUND,
            )
        case exceptions.BadRequest() | exceptions.MethodNotImplemented():
            return ItemRejected(
                f"Vertex AI does not accept this job: {words} Correct the run spec or the queue's config.",
                code=Code.CREATE_INVALID,
            )
    # A connection that was never opened looks the same as one that broke before the answer arrived.
    return OutcomeUnknown(
        f"Vertex AI did not report whether it created the job: {words} The next pass looks for the job before anything else "
        "is tried.",
        code=Code.CREATE_OUTCOME_UNKNOWN,
    )


def _unavailable(error: Exception, verb: str, what: str) -> Unavailable:
    """Return the error of a call other than create."""
    words, grant = _words(error), _grant(error, verb)
    if grant:
        return Unavailable(SERVICE, f"cannot {verb} {what}: {words} {grant}", code=Code.VERTEX_PERMISSION)
    return Unavailable(SERVICE, f"cannot {verb} {what}: {words}", code=Code.VERTEX_UNAVAILABLE)


def _words(error: Exception) -> str:
    """Return Vertex AI's own words as a sentence, those of the last attempt if there were several."""
    last = getattr(error, "cause", None) or error
    words = " ".join((getattr(last, "message", "") or str(last) or type(last).__name__).split())
    return words if words.endswith((".", "!", "?")) else f"{words}."


def _grant(error: Exception, verb: str) -> str:
    """Return which permission to grant, empty text if none is missing; ``verb`` is the last part of the job permission."""
    words = _words(error)
    if "act as service_account" in words or "actAs" in words:
        return (
            "Grant the function's service account roles/iam.serviceAccountUser on that account, or correct "
            "service_account in the run spec or the queue's config."
        )
    if isinstance(error, exceptions.Forbidden):
        return (
            f"Grant the function's service account aiplatform.customJobs.{verb} in the project, and check that the "
            "Vertex AI API is enabled there."
        )
    return ""
