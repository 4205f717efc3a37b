"""The checks: does everything exist that the functions use, and may their account use it? Changes nothing.

Called by ``python -m vertex_launch check``. A check that fails skips those that depend on it, and no others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from google.api_core import exceptions

from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import all_of, run_parallel
from vertex_launch.errors import LaunchError, Unavailable
from vertex_launch.functions import ROOT
from vertex_launch.job import powers
from vertex_launch.job.request import JobRequest
from vertex_launch.preflight.lines import Line, Verdict, fail, no_answer, ok, once, skip, warn
from vertex_launch.preflight.metrics import Metrics, watched
from vertex_launch.preflight.permissions import BucketPermissions, NotThere, Permissions, Refuses
from vertex_launch.preflight.queues import Queues
from vertex_launch.settings.config import Settings, bucket_of

T_co = TypeVar("T_co", covariant=True)

CREATE, LIST, GET, CANCEL = (f"aiplatform.customJobs.{verb}" for verb in ("create", "list", "get", "cancel"))
READ_LOGS = "logging.logEntries.list"
OBJECTS = tuple(f"storage.objects.{verb}" for verb in ("create", "get", "delete", "list"))
"""What the record needs. Overwriting includes deleting, and without list Cloud Storage answers 403 for a missing object."""
ACT_AS = "iam.serviceAccounts.actAs"
PUBLISH = "pubsub.topics.publish"
MAKE_TOKENS = "roles/iam.serviceAccountTokenCreator"
PUBSUB_AGENT = re.compile(r"serviceAccount:service-\d+@gcp-sa-pubsub\.iam\.gserviceaccount\.com")

ASKED_AS = "the function's service account"
"""The name that adapters use for the caller. In the preflight it may be another one."""

AT_ONCE = 16


class Function(StrEnum):
    """The function whose service account is checked."""

    DISPATCH = "dispatch"
    DISPATCH_NOW = "dispatch_now"
    JOB_STATE = "job_state"

    @classmethod
    def of_account(cls, account: str) -> Function | None:
        """Return the function whose account a deployment gives this name; None for any other account."""
        name = account.partition("@")[0]
        ends = {"-dispatch": cls.DISPATCH, "-now": cls.DISPATCH_NOW, "-job-state": cls.JOB_STATE}
        return next((function for end, function in ends.items() if name.endswith(end)), None)


@dataclass(frozen=True)
class Asked(Generic[T_co]):
    """A service and the identity that it is asked with."""

    service: T_co
    who: str


@dataclass(frozen=True)
class Outside:
    """All services. None stands for a service that needs credentials while there are none; ``wandb`` also needs the key."""

    key: Asked[SecretKey] | None
    wandb: WandbQueue | None
    jobs: Asked[VertexJobs] | None
    projects: Asked[Permissions] | None
    accounts: Asked[Permissions] | None
    buckets: Asked[BucketPermissions] | None
    topics: Asked[Permissions] | None
    metrics: Asked[Metrics] | None = None


class Preflight:
    """The checks of one deployment: all of them, or those for ``function``."""

    def __init__(self, settings: Settings, outside: Outside, function: Function | None = None) -> None:
        self._settings = settings
        self._outside = outside
        self._passes = function is not Function.JOB_STATE
        self._publishes = function in (None, Function.JOB_STATE)
        self._whole = function is None  # the functions' accounts may not see what only deploying concerns

    def lines(self) -> Iterator[Line]:
        """Run the checks, independent ones in parallel, and yield their lines: each cause once, before what it affects."""
        return once(self._passes_lines() if self._passes else self._job_state_lines())

    def _job_state_lines(self) -> Iterator[Line]:
        yield skip("API key, W&B, queues, lists of jobs, buckets, service accounts", "job_state needs none of them")
        for lines in all_of(run_parallel([self._project, self._topic], AT_ONCE)):
            yield from lines

    def _passes_lines(self) -> Iterator[Line]:
        names = [region.name for region in self._settings.regions]
        first: list[Callable[[], list[Line]]] = [partial(self._list, name) for name in names]
        first += [self._key, self._project, self._record, self._topic]
        *regions, key, project, record, topic = all_of(run_parallel(first, AT_ONCE))
        wrong = [name for name, [line] in zip(names, regions, strict=True) if line.code is Code.CHECK_REGION]
        queues = Queues(self._settings, self._outside.wandb, wrong)
        wandb = [skip("W&B, queues and their configurations", "need the API key")]
        if key[0].verdict is Verdict.OK:
            wandb = queues.lines()
        buckets = self._staging_buckets(queues.built, wrong)
        checks: list[Callable[[], list[Line]]] = [partial(self._staging, bucket) for bucket in buckets]
        checks += [partial(self._act_as, account) for account in self._accounts(queues.built)]
        for lines in (*regions, key, wandb, project, record, *all_of(run_parallel(checks, AT_ONCE)), self._powers()):
            yield from lines
        if queues.unknown:
            what = f"service accounts of jobs from {', '.join(queues.unknown)}"
            yield skip(what, "need a queue configuration from which a job can be built")
        yield from topic
        # Only if the names are those that a deployment gives.
        if self._whole and self._settings.tick_topic == self._named("topics", "ticks"):
            yield from self._push()
            yield self._metrics()

    def _named(self, kind: str, name: str) -> str:
        return f"projects/{self._settings.project}/{kind}/{self._settings.deployment}-{name}"

    def _key(self) -> list[Line]:
        what, asked = "API key", self._outside.key
        if asked is None:
            return [_no_credentials(what)]
        try:
            asked.service.get()
        except Unavailable as error:
            return [_failed(what, error, asked.who)]
        return [ok(what, f"{asked.who} may read {self._settings.key_secret}; it is not shown")]

    # Vertex AI

    def _list(self, region: str) -> list[Line]:
        what, asked = f"jobs in {region}", self._outside.jobs
        if asked is None:
            return [_no_credentials(what)]
        try:
            active = asked.service.active(region)
        except Unavailable as error:
            if isinstance(error.__cause__, exceptions.BadRequest | exceptions.NotFound):
                found = f"Vertex AI does not run jobs in region {region} ({error.__cause__.message})"
                return [fail(Code.CHECK_REGION, what, found, f"Correct {self._settings.where('regions')}")]
            return [_failed(what, error, asked.who)]
        return [ok(what, f"{asked.who} may list them; {len(active)} jobs of this deployment are active")]

    def _project(self) -> list[Line]:
        project, asked = self._settings.project, self._outside.projects
        what = f"CustomJobs in project {project}"
        wanted = (CREATE, LIST, GET, CANCEL) if self._passes else (GET,)
        may = f"may {'create, list, get and cancel' if self._passes else 'get'} them"
        logs = (READ_LOGS,) if self._passes and self._settings.log_lines else ()
        remedy = f"Correct {self._settings.where('project')}"
        # The functions never use Resource Manager, so they do not need its answer.
        granted = _granted(what, asked, project, (*wanted, *logs), may, remedy, vital=False)
        lines = [granted.line(what, wanted, may, f"in project {project}")]
        if logs and not granted.unknown and READ_LOGS not in granted.permissions:
            found = f"{granted.who} lacks {READ_LOGS}, so messages do not hold the last lines of a job's log"
            remedy = f"Grant {READ_LOGS} in project {project}, or set log_lines: 0"
            lines.append(warn(Code.CHECK_LOGS, "log_lines", found, remedy))
        return lines

    # Cloud Storage

    def _record(self) -> list[Line]:
        where, asked = self._settings.state_bucket, self._outside.buckets
        what, bucket, may = f"record {where}", bucket_of(where), "may create, get, delete and list objects"
        remedy = f"Run gcloud storage buckets create gs://{bucket}, or correct {self._settings.where('state_bucket')}"
        if asked is None:
            return [_no_credentials(what)]
        granted = _granted(what, asked, bucket, OBJECTS, may, remedy)
        line = granted.line(what, OBJECTS, may, f"on gs://{bucket}, as roles/storage.objectUser does")
        return [line] if granted.unknown else [line, *_habits(what, bucket, asked.service)]

    def _staging_buckets(self, built: Sequence[JobRequest], wrong: Collection[str]) -> list[str]:
        """Return the buckets that jobs write to: the regions' own, and those that the queue configurations name."""
        outputs = [
            request.custom_job.job_spec.base_output_directory.output_uri_prefix
            for request in built
            if request.region not in wrong
        ]
        places = [*(one.staging_bucket for one in self._settings.regions if one.name not in wrong), *outputs]
        return list(dict.fromkeys(bucket_of(place) for place in places if place))

    def _staging(self, bucket: str) -> list[Line]:
        what, asked = f"staging bucket gs://{bucket}", self._outside.buckets
        remedy = (
            f"Run gcloud storage buckets create gs://{bucket}, or correct staging_bucket or the queue configuration"
        )
        granted = _granted(what, asked, bucket, OBJECTS, "may see it", remedy)
        return [granted.unknown or ok(what, "it exists; whether the jobs' account may write there is not tested")]

    # Accounts that jobs run as

    def _accounts(self, built: Sequence[JobRequest]) -> list[str]:
        """Return the accounts that the queue configurations name, and those that the policy names in full."""
        named = [
            self._settings.default_account,
            *(request.custom_job.job_spec.service_account for request in built),
        ]
        allowed = [one for one in self._settings.policy.service_accounts or () if not re.search(r"[*?]", one)]
        agent = self._settings.is_custom_code_agent  # no right is needed: a job gets it by naming no account
        return [account for account in dict.fromkeys([*named, *allowed]) if account and not agent(account)]

    def _powers(self) -> list[Line]:
        """Return which account jobs without one get, and what the policy leaves open."""
        settings, what = self._settings, "account of jobs"
        where, policy = settings.where("jobs_account"), settings.policy
        lines = [ok(what, f"{settings.jobs_account}, for run specs that name none")]
        if settings.custom_code_agent:
            found = "jobs may run as Google's custom code agent, which reaches the record and the W&B key"
            remedy = f"Set {where} to an account of your own"
            if settings.custom_code_agent != settings.jobs_account:
                remedy += f", and remove the agent from {settings.where('policy', 'service_accounts')}"
            lines = [warn(Code.CHECK_ACCOUNT, what, found, remedy)]
        elif not settings.jobs_account:
            remedy = f"Set {where}, unless every queue configuration names an account"
            lines = [warn(Code.SPEC_NO_ACCOUNT, what, "none is set, so items whose run spec names none fail", remedy)]
        open_powers = [key for key in powers.KEYS if getattr(policy, key) is None]
        found = f"run specs may ask for anything in {', '.join(open_powers)} (unlisted: allow)"
        if policy.unlisted == "refuse" or not open_powers:
            found = "run specs may ask only for what it lists"
        return [*lines, ok("policy", found)]

    def _act_as(self, account: str) -> list[Line]:
        what, asked, may = f"service account {account}", self._outside.accounts, "may act as it"
        remedy = (
            "Create it, or correct jobs_account, policy.service_accounts or service_account in the queue configuration"
        )
        granted = _granted(what, asked, account, (ACT_AS,), may, remedy, vital=False)
        return [granted.line(what, (ACT_AS,), may, "on it, as roles/iam.serviceAccountUser does")]

    # Pub/Sub

    def _topic(self) -> list[Line]:
        topic, asked, may = self._settings.tick_topic, self._outside.topics, "may publish there"
        what = f"topic {topic}" if topic else "topic of ticks"
        if not self._publishes:
            return [skip(what, "only job_state publishes there")]
        if topic is None:
            remedy = f"Set {self._settings.where('tick_topic')} to projects/P/topics/T"
            return [fail(Code.CHECK_TOPIC, what, "it is not configured, and job_state requests passes there", remedy)]
        remedy = f"Run gcloud pubsub topics create {topic}, or correct {self._settings.where('tick_topic')}"
        granted = _granted(what, asked, topic, (PUBLISH,), may, remedy)
        return [granted.line(what, (PUBLISH,), may, "on it, as roles/pubsub.publisher does")]

    def _push(self) -> Iterator[Line]:
        """Check that Pub/Sub's own account may make the tokens of pushes."""
        accounts, projects, project = self._outside.accounts, self._outside.projects, self._settings.project
        account, what = f"{self._settings.deployment}-push@{project}.iam.gserviceaccount.com", "pushes of Pub/Sub"
        if accounts is None or projects is None:
            yield _no_credentials(what)
            return
        try:
            makers = accounts.service.members(account, [MAKE_TOKENS])
            if not any(map(PUBSUB_AGENT.fullmatch, makers)):
                makers = projects.service.members(project, [MAKE_TOKENS, "roles/pubsub.serviceAgent"])
        except NotThere:
            yield skip(what, f"the account for Pub/Sub's pushes, {account}, does not exist")
        except Refuses as error:
            yield skip(what, f"{accounts.who} may not read who may make tokens of {account} ({error.reason})")
        except Unavailable as error:
            yield replace(no_answer(what, error), verdict=Verdict.WARN, code=Code.CHECK_UNVERIFIED)
        else:
            if any(map(PUBSUB_AGENT.fullmatch, makers)):
                yield ok(what, f"Pub/Sub's own account may make tokens of {account}")
                return
            found = f"Pub/Sub's own account may not make tokens of {account}, so the functions refuse its pushes"
            remedy = (
                f"Deploy again, or grant {MAKE_TOKENS} on {account} to "
                "service-PROJECT_NUMBER@gcp-sa-pubsub.iam.gserviceaccount.com"
            )
            yield fail(Code.CHECK_PUSH, what, found, remedy)

    def _metrics(self) -> Line:
        """Check that the metrics of the alerts in this checkout exist; an alert on a missing one never fires."""
        what, asked, name = "metrics of alerts", self._outside.metrics, self._settings.deployment
        wanted = watched(ROOT / "infra/monitoring/alerts")
        if asked is None or not wanted:
            return _no_credentials(what) if wanted else skip(what, "this is not a checkout with infra/")
        try:
            there = asked.service.names(self._settings.project)
        except Refuses as error:
            return skip(what, f"{asked.who} may not list them ({error.reason})")
        except Unavailable as error:
            return replace(no_answer(what, error), verdict=Verdict.WARN, code=Code.CHECK_UNVERIFIED)
        missing = ", ".join(f"{name}/{one}" for one in sorted(wanted) if f"{name}/{one}" not in there)
        if not missing:
            return ok(what, f"all {len(wanted)} exist")
        return warn(Code.CHECK_METRICS, what, f"{missing} do not exist, so their alerts cannot fire", "Deploy again")


def _habits(what: str, bucket: str, buckets: BucketPermissions) -> Iterator[Line]:
    """Return a line for each feature of the bucket that harms a record."""
    try:
        view = buckets.view(bucket)
    except LaunchError as error:
        found = f"versioning, soft delete and lifecycle could not be checked: {error}"
        yield warn(Code.CHECK_UNVERIFIED, what, found)
        return
    if view is None:
        why = "the account may not see whether versioning, soft delete or a lifecycle rule is on; you may without --as"
        yield skip(what, why)
        return
    run = f"Run gcloud storage buckets update gs://{bucket}"
    if view.versioning:
        found = "versioning keeps every overwritten version forever"
        yield warn(Code.CHECK_BUCKET, what, found, f"{run} --no-versioning")
    if view.soft_delete:
        found = f"soft delete keeps every overwritten version for {view.soft_delete / 86400:g} days"
        yield warn(Code.CHECK_BUCKET, what, found, f"{run} --clear-soft-delete")
    if view.lifecycle:
        yield warn(Code.CHECK_BUCKET, what, "a lifecycle rule may delete the record", f"{run} --clear-lifecycle")
    if view.retention:
        found = f"its retention policy forbids overwriting for {view.retention:g} s, and each pass overwrites"
        yield fail(Code.CHECK_BUCKET, what, found, f"{run} --clear-retention-period")


class _Granted(NamedTuple):
    """The permissions that an identity has, or the line that says why they are unknown."""

    who: str = ""
    permissions: Collection[str] = ()
    unknown: Line | None = None

    def line(self, what: str, wanted: Sequence[str], may: str, grant: str) -> Line:
        """Return ok if all wanted permissions are granted, else which are missing and how to grant them."""
        if self.unknown:
            return self.unknown
        lacking = ", ".join(permission for permission in wanted if permission not in self.permissions)
        if not lacking:
            return ok(what, f"{self.who} {may}")
        return fail(Code.CHECK_PERMISSION, what, f"{self.who} lacks {lacking}", f"Grant {lacking} {grant}")


def _granted(
    what: str,
    asked: Asked[Permissions] | None,
    resource: str,
    permissions: Sequence[str],
    may: str,
    if_missing: str,
    *,
    vital: bool = True,
) -> _Granted:
    """Return the granted permissions. If the preflight alone uses a service, it is not ``vital``: its silence is a warning."""
    if asked is None:
        return _Granted(unknown=_no_credentials(what))
    try:
        return _Granted(asked.who, asked.service.granted(resource, permissions))
    except NotThere as error:
        line = fail(Code.CHECK_MISSING, what, f"it does not exist ({str(error).rstrip('.')})", if_missing)
    except Refuses as error:
        found = f"{error.service} does not say whether {asked.who} {may}: {error.reason}"
        remedy = "Enable the API, use an account with access, or ignore this warning"
        line = warn(Code.CHECK_UNVERIFIED, what, found, remedy)
    except Unavailable as error:
        line = no_answer(what, error)
        line = line if vital else replace(line, verdict=Verdict.WARN, code=Code.CHECK_UNVERIFIED)
    return _Granted(unknown=line)


def _no_credentials(what: str) -> Line:
    return skip(what, "needs Google credentials")


def _failed(what: str, error: Unavailable, who: str) -> Line:
    line = no_answer(what, error)
    return replace(line, found=line.found.replace(ASKED_AS, who))
