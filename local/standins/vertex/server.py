"""The stand-in for Vertex AI's JobService: create, get, list, cancel and delete CustomJobs.

It stores real messages and refuses what the real service is known to refuse. A test moves jobs through their states
(``server.advance``), or a runner runs their containers (``local.machine.containers``). Names in answers have the project's
number, like those of the real service. Requests may have number or id.
"""

from __future__ import annotations

import base64
import binascii
import re
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import grpc
from google.cloud.aiplatform_v1 import CustomJob, JobState
from google.cloud.aiplatform_v1 import types as v1
from google.longrunning import operations_pb2  # type: ignore[import-untyped]
from google.protobuf import any_pb2, empty_pb2

from local.standins.faults import Faults
from local.standins.rpc import Method, Refused, RpcServer
from local.standins.vertex import job_filter
from local.standins.vertex import rules as vertex_rules
from local.standins.vertex.job_errors import JobError
from local.standins.vertex.job_log import Entry
from local.standins.vertex.jobs import ENDED, Capacity, Jobs

PROJECTS = {"demo-project": "415104041262"}
"""Project ids and their numbers."""

MAX_PAGE = 100
_SERVICE = "/google.cloud.aiplatform.v1.JobService/"
_PARENT = re.compile(r"projects/([^/]+)/locations/([^/]+)")
_JOB = re.compile(r"(projects/[^/]+/locations/[^/]+)/customJobs/([^/]+)")
_CODE = grpc.StatusCode


class Runner(Protocol):
    """Moves jobs through their states."""

    def launch(self, name: str, jobs: Jobs) -> None:
        """Start with a new job, which is QUEUED."""

    def cancel(self, name: str) -> None:
        """Bring a job that is CANCELLING to its end."""

    def stop(self) -> None:
        """End everything that runs."""


@dataclass
class Limits:
    """The limits of the service, which can change at any time.

    Creates and deletes of a project in a region are ``submissions``, all other calls are ``requests``. A list shows changes
    ``list_lag`` seconds late. Jobs cannot run as one of ``denied_accounts``.
    """

    submissions_per_minute: int = 60
    requests_per_minute: int = 600
    list_lag: float = 0.0
    denied_accounts: Collection[str] = field(default_factory=set)


class VertexServer(RpcServer):
    """A local Vertex AI for channels to ``address``.

    ``clock`` returns Unix seconds. ``projects`` maps ids to numbers. Without a ``runner`` jobs stay QUEUED, or CANCELLING
    after a cancel, until ``advance`` is called. The error of a failed job becomes visible ``error_lag`` seconds after its
    state. ``on_log`` gets every log entry of the service and of containers.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        faults: Faults | None = None,
        runner: Runner | None = None,
        projects: Mapping[str, str] = PROJECTS,
        regions: Sequence[str] = ("us-central1",),
        port: int = 0,
        limits: Limits | None = None,
        capacity: Capacity | None = None,
        error_lag: float = 0.0,
        on_log: Callable[[Entry], None] | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self._runner = runner
        self._numbers = dict(projects)
        self._regions = tuple(regions)
        self._lock = threading.Lock()
        self._lately: defaultdict[tuple[str, str], deque[float]] = defaultdict(deque)
        ids = {number: project for project, number in projects.items()}
        self.store = Jobs(clock=clock, project_ids=ids, on_log=on_log, error_lag=error_lag, capacity=capacity)
        super().__init__(self._table(), faults=faults, port=port)

    @property
    def capacity(self) -> Capacity:
        """The capacity for jobs, which can change."""
        return self.store.capacity

    @property
    def jobs(self) -> dict[str, Any]:
        """All jobs as they are now: ``CustomJob`` messages by name, the oldest first."""
        return {name: CustomJob.wrap(self.store.get(name)) for name in self.store.names()}

    def stop(self) -> None:
        """Stop at once, and stop the runner with all its processes."""
        super().stop()
        if self._runner is not None:
            self._runner.stop()

    def advance(self, name: str, state: JobState, error: JobError | None = None) -> None:
        """Move a job to a state from any other, and log what the service logs.

        Raise KeyError if the job does not exist.
        """
        if not self.store.move(name, frozenset(JobState), state, error):
            raise KeyError(name)

    def _table(self) -> dict[str, Method]:
        return {
            f"{_SERVICE}CreateCustomJob": (v1.CreateCustomJobRequest, self._create),
            f"{_SERVICE}GetCustomJob": (v1.GetCustomJobRequest, self._get),
            f"{_SERVICE}ListCustomJobs": (v1.ListCustomJobsRequest, self._list),
            f"{_SERVICE}CancelCustomJob": (v1.CancelCustomJobRequest, self._cancel),
            f"{_SERVICE}DeleteCustomJob": (v1.DeleteCustomJobRequest, self._delete),
        }

    def _create(self, request: Any) -> Any:
        parent = self._parent(request.parent, "create")
        job = CustomJob.pb(request.custom_job)
        found = vertex_rules.violations(job)
        if found:
            raise Refused(_CODE.INVALID_ARGUMENT, vertex_rules.message(found), found)
        account = job.job_spec.service_account
        if account in self.limits.denied_accounts:
            raise Refused(
                _CODE.INVALID_ARGUMENT,
                f"You do not have permission to act as service_account: {account}. (or it may not exist).",
            )
        self._within_quota(vertex_rules.accelerators(job))
        job = self.store.add(parent, job)
        if self._runner is not None:
            self._runner.launch(job.name, self.store)
        return CustomJob.wrap(job)

    def _get(self, request: Any) -> Any:
        return CustomJob.wrap(self._job(request.name, "get"))

    def _list(self, request: Any) -> Any:
        parent = self._parent(request.parent, "list")
        try:
            meant = job_filter.parse(request.filter)
        except job_filter.FilterError as error:
            raise Refused(_CODE.INVALID_ARGUMENT, f"Invalid filter: {error}.") from error
        if request.page_size < 0:
            raise Refused(_CODE.INVALID_ARGUMENT, "page_size must not be negative.")
        asked = f"{parent} {request.filter}"
        before = _page_begin(request.page_token, asked)
        size = min(request.page_size or MAX_PAGE, MAX_PAGE)
        behind = max(self.limits.list_lag, self.faults.lag_of("ListCustomJobs"))
        found = [
            (number, job) for number, job in self.store.in_region(parent, behind) if number < before and meant(job)
        ]
        page, rest = found[:size], found[size:]
        return v1.ListCustomJobsResponse(
            custom_jobs=[CustomJob.wrap(_masked(job, request.read_mask)) for _, job in page],
            next_page_token=_page_token(page[-1][0], asked) if rest else "",
        )

    def _cancel(self, request: Any) -> Any:
        job = self._job(request.name, "cancel")
        before = set(JobState) - ENDED - {JobState.JOB_STATE_CANCELLING}
        if self.store.move(job.name, before, JobState.JOB_STATE_CANCELLING):
            if self._runner is not None:
                self._runner.cancel(job.name)
        elif job.state in ENDED:
            raise _wrong_state(job, "cancelled")
        return empty_pb2.Empty()

    def _delete(self, request: Any) -> Any:
        job = self._job(request.name, "delete")
        if job.state not in ENDED:
            raise _wrong_state(job, "deleted")
        self.store.delete(job.name)
        done = any_pb2.Any()
        done.Pack(empty_pb2.Empty())
        return operations_pb2.Operation(name=f"{job.name}/operations/1", done=True, response=done)

    def _parent(self, parent: str, verb: str) -> str:
        """Return the parent with the project's number. Refuse unknown parents, and too many calls a minute."""
        match = _PARENT.fullmatch(parent)
        if match is None:
            raise Refused(_CODE.INVALID_ARGUMENT, f'"{parent}" is not of the form projects/P/locations/R.')
        project, region = match.groups()
        number = self._numbers.get(project, project)
        if number not in self._numbers.values():
            raise Refused(
                _CODE.PERMISSION_DENIED,
                f"Permission 'aiplatform.customJobs.{verb}' denied on resource "
                f"'//aiplatform.googleapis.com/{parent}' (or it may not exist).",
            )
        if region not in self._regions:
            valid = ", ".join(f"`{name}`" for name in self._regions)
            raise Refused(
                _CODE.INVALID_ARGUMENT,
                f"The provided location ID doesn't match the endpoint. The valid location ID is {valid}.",
            )
        name = f"projects/{number}/locations/{region}"
        self._count(name, submission=verb in ("create", "delete"))
        return name

    def _job(self, name: str, verb: str) -> Any:
        match = _JOB.fullmatch(name)
        if match is None:
            raise Refused(_CODE.INVALID_ARGUMENT, f'"{name}" is not of the form projects/P/locations/R/customJobs/N.')
        job = self.store.get(f"{self._parent(match.group(1), verb)}/customJobs/{match.group(2)}")
        if job is None:
            raise Refused(_CODE.NOT_FOUND, f"The CustomJob {name} does not exist.")
        return job

    def _count(self, parent: str, *, submission: bool) -> None:
        """Count a call, or refuse it if there were too many of its kind in the last minute."""
        allowed = self.limits.submissions_per_minute if submission else self.limits.requests_per_minute
        metric = "job_submission_requests" if submission else "resource_management_requests"
        with self._lock:
            now, lately = self._clock(), self._lately[parent, metric]
            while lately and lately[0] <= now - 60:
                lately.popleft()
            if len(lately) >= allowed:
                raise _quota_exceeded([f"aiplatform.googleapis.com/{metric}"])
            lately.append(now)

    def _within_quota(self, asked: Mapping[str, int]) -> None:
        there_are = self.capacity.accelerators
        over = [vertex_rules.quota_metric(kind) for kind, count in asked.items() if count > there_are.get(kind, count)]
        if over:
            raise _quota_exceeded(over)


def _wrong_state(job: Any, done: str) -> Refused:
    state = JobState(job.state).name
    return Refused(_CODE.FAILED_PRECONDITION, f"CustomJob {job.name} is in state {state}: it cannot be {done}.")


def _quota_exceeded(metrics: Sequence[str]) -> Refused:
    return Refused(_CODE.RESOURCE_EXHAUSTED, f"The following quota metrics exceed quota limits: {', '.join(metrics)}")


def _masked(job: Any, mask: Any) -> Any:
    """Return the part of a job that a field mask names, or all of it if the mask is empty or ``*``."""
    if not mask.paths or "*" in mask.paths:
        return job
    if not mask.IsValidForDescriptor(job.DESCRIPTOR):
        raise Refused(_CODE.INVALID_ARGUMENT, f"Invalid read_mask: {', '.join(mask.paths)}.")
    part = CustomJob.pb(CustomJob())
    mask.MergeMessage(job, part)
    return part


def _page_token(last: int, asked: str) -> str:
    return base64.urlsafe_b64encode(f"{last} {asked}".encode()).decode()


def _page_begin(token: str, asked: str) -> float:
    """Return the number below which a page begins. A token is valid only for the list that it came from."""
    if not token:
        return float("inf")
    try:
        last, _, its = base64.urlsafe_b64decode(token).decode().partition(" ")
        if its == asked:
            return int(last)
    except (binascii.Error, ValueError):
        pass
    raise Refused(_CODE.INVALID_ARGUMENT, "Invalid page_token.")
