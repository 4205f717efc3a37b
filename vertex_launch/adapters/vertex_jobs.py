"""Vertex AI's CustomJobs: create, list, get and cancel. Each has a deadline, and errors that fit what the item needs next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TypeVar

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import Credentials
from google.cloud.aiplatform_v1 import JobServiceClient
from google.cloud.aiplatform_v1.types import ListCustomJobsRequest, ListCustomJobsResponse

from vertex_launch.adapters.google_api import BACKOFF, TROUBLE, client, words
from vertex_launch.codes import Code
from vertex_launch.errors import ItemDeferred, ItemDoubtful, ItemRejected, LaunchError, OutcomeUnknown, Unavailable
from vertex_launch.job import labels, readback
from vertex_launch.job.request import JobRequest
from vertex_launch.limits import LARGEST_PAGE
from vertex_launch.model import JobName, ManagedJob
from vertex_launch.settings.config import Settings

T = TypeVar("T")

SERVICE = "Vertex AI"
PAGE = 100
FIRST_PAGE = 16
"""Jobs in the first answer to a list, when nothing is known about their size."""

TOO_LONG = (
    "Vertex AI does not accept this job, and its reason is too long to be read. Look for a very long value in the run spec or "
    "the queue configuration, such as an image name."
)
CORRECT = "Correct it in the run spec or the queue configuration."


class VertexJobs:
    """The CustomJobs of one deployment in one project, with one client per region, created on first use."""

    def __init__(self, settings: Settings, credentials: Credentials | None = None, *, backoff: Retry = BACKOFF) -> None:
        timeout = settings.timeouts.look
        self._settings = settings
        self._credentials = credentials
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}
        self._clients: dict[str, JobServiceClient] = {}
        self._lock = threading.Lock()

    def active(self, region: str) -> list[ManagedJob]:
        """List the deployment's jobs that have not ended. Raises Unavailable."""
        jobs = self._list(region, labels.list_filter(self._settings.deployment, active=True))
        return [job for job in jobs if not job.ended]

    def recent(self, region: str, since: float) -> list[ManagedJob]:
        """List the deployment's jobs created after ``since`` (Unix seconds), in any state. Raises Unavailable."""
        created = datetime.fromtimestamp(since, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return self._list(
            region, f'{labels.list_filter(self._settings.deployment, active=False)} AND create_time>"{created}"'
        )

    def _list(self, region: str, wanted: str) -> list[ManagedJob]:
        """List jobs page by page: of a page only what a pass needs is kept, and large jobs come in small pages."""
        parent = f"projects/{self._settings.project}/locations/{region}"
        request = ListCustomJobsRequest(parent=parent, filter=wanted, page_size=FIRST_PAGE)
        managed: list[ManagedJob | None] = []
        while True:
            with _reported("list", f"the jobs in {parent}"):
                page = next(iter(self._client(region).list_custom_jobs(request, **self._limits).pages))
            jobs = page.custom_jobs
            managed += [readback.managed(job, deployment=self._settings.deployment, region=region) for job in jobs]
            if not page.next_page_token:
                return [job for job in managed if job is not None]
            each = ListCustomJobsResponse.pb(page).ByteSize() // max(1, len(jobs))
            request.page_size = max(1, min(PAGE, LARGEST_PAGE // max(1, each)))
            request.page_token = page.next_page_token
            del page, jobs  # before the next one arrives

    def get(self, name: str) -> ManagedJob | None:
        """Return the job with this resource name, None if it does not exist or is not ours. Raises Unavailable."""
        return self._get(name, readback.managed)

    def request_of(self, name: str) -> JobRequest | None:
        """Return the request that created this job, None if it does not exist or is not ours. Raises Unavailable."""
        return self._get(name, readback.request_of)

    def _get(self, name: str, read: Callable[..., T | None]) -> T | None:
        region = JobName.parse(name).region
        with _reported("get", name):
            try:
                job = self._client(region).get_custom_job(name=name, **self._limits)
            except exceptions.NotFound:
                return None
        return read(job, deployment=self._settings.deployment, region=region)

    def create(self, request: JobRequest, timeout: float) -> str:
        """Create the job, in one attempt, and return its resource name.

        Raises ItemRejected if Vertex AI will never accept it, ItemDeferred if it certainly did not accept it now. Raises
        OutcomeUnknown if the job may exist: no request id makes a create safe to repeat.
        """
        parent = f"projects/{self._settings.project}/locations/{request.region}"
        try:
            job = self._client(request.region).create_custom_job(
                parent=parent, custom_job=request.custom_job, timeout=timeout, retry=None
            )
        except TROUBLE as error:
            raise _not_created(error, request) from error
        except ValueError as error:  # the client library cannot read a refusal whose words are cut off
            raise ItemRejected(TOO_LONG, code=Code.CREATE_INVALID) from error
        return str(job.name)

    def cancel(self, name: str) -> None:
        """Request the job's cancellation. A job that has ended or does not exist is not an error. Raises Unavailable."""
        # BadRequest is also the parent of FailedPrecondition: not in a state that can be cancelled.
        with _reported("cancel", name), suppress(exceptions.NotFound, exceptions.BadRequest):
            self._client(JobName.parse(name).region).cancel_custom_job(name=name, **self._limits)

    def _client(self, region: str) -> JobServiceClient:
        with self._lock:
            if region not in self._clients:
                endpoint = self._settings.aiplatform_endpoint or f"{region}-aiplatform.googleapis.com"
                self._clients[region] = client(JobServiceClient, endpoint, self._credentials)
            return self._clients[region]


@contextmanager
def _reported(verb: str, what: str) -> Iterator[None]:
    """Raise Unavailable for an error of the call inside, which is not a create."""
    try:
        yield
    except TROUBLE as error:
        sentence, grant = _sentence(error), _grant(error, verb)
        code = Code.VERTEX_PERMISSION if grant else Code.VERTEX_UNAVAILABLE
        raise Unavailable(SERVICE, f"cannot {verb} {what}: {sentence} {grant}".rstrip(), code=code) from error


def _not_created(error: Exception, request: JobRequest) -> LaunchError:
    """Return what a failed create means for the item."""
    sentence, grant, region = _sentence(error), _grant(error, "create"), request.region
    match error:
        case exceptions.TooManyRequests() if "message larger than max" in sentence:  # gRPC's own words
            text = (
                f"The job has {request.size} bytes, and Vertex AI accepts fewer: {sentence} Pass large arguments and variables "
                "as an artifact."
            )
            return ItemRejected(text, code=Code.SPEC_SIZE)
        case exceptions.TooManyRequests() if "metadata size" in sentence:  # gRPC's own words, about those of Vertex AI
            return ItemRejected(TOO_LONG, code=Code.CREATE_INVALID)
        case exceptions.TooManyRequests():
            text = (
                f"Vertex AI has no quota left for this job in {region}: {sentence} The item is retried. If that does not help, "
                "request more quota for the project, or smaller resources for the job."
            )
            return ItemDeferred(text, code=Code.QUOTA_CREATE)
        case exceptions.Unauthorized():
            text = f"Vertex AI does not accept the function's credentials: {sentence} The item is retried."
            return ItemDeferred(text, code=Code.CREATE_CREDENTIALS)
        case exceptions.Conflict():
            text = f"Vertex AI cannot create the job at the moment: {sentence} The item is retried."
            return ItemDeferred(text, code=Code.CREATE_CONFLICT)
        case exceptions.Forbidden() | exceptions.BadRequest() if grant:
            text = f"Vertex AI refused to create the job: {sentence} {grant}"
            refused = ItemRejected(text, code=Code.CREATE_PERMISSION)
            return ItemDoubtful(refused) if _acts_as(sentence) else refused
        case exceptions.BadRequest() if "service agent" in sentence.lower():
            text = f"Vertex AI refused to create the job: {sentence} Grant its service agents the roles that they usually get."
            return ItemDoubtful(ItemRejected(text, code=Code.CREATE_PERMISSION))
        case exceptions.NotFound():
            text = f"Vertex AI did not find something that the job refers to: {sentence} {CORRECT}"
            return ItemRejected(text, code=Code.CREATE_NOT_FOUND)
        case exceptions.BadRequest() | exceptions.MethodNotImplemented():
            return ItemRejected(f"Vertex AI does not accept this job: {sentence} {CORRECT}", code=Code.CREATE_INVALID)
    # A connection that was never opened looks the same as one that broke before the answer arrived.
    text = (
        f"Vertex AI did not report whether it created the job: {sentence} The next pass looks for the job before anything "
        "else is tried."
    )
    return OutcomeUnknown(text, code=Code.CREATE_OUTCOME_UNKNOWN)


def _sentence(error: Exception) -> str:
    """Return Vertex AI's own words as a sentence."""
    own = words(error)
    return own if own.endswith((".", "!", "?")) else f"{own}."


def _acts_as(sentence: str) -> bool:
    """Return whether a refusal is about the account as which a job runs."""
    return any(words in sentence for words in ("act as service_account", "permission to act as", "actAs"))


def _grant(error: Exception, verb: str) -> str:
    """Return which permission to grant, empty text if none is missing; ``verb`` is the last part of the job permission."""
    if _acts_as(words(error)):
        return (
            "Grant the function's service account roles/iam.serviceAccountUser on that account, or correct "
            "service_account in the run spec or the queue configuration."
        )
    if isinstance(error, exceptions.Forbidden):
        return (
            f"Grant the function's service account aiplatform.customJobs.{verb} in the project, and check that the "
            "Vertex AI API is enabled there."
        )
    return ""
