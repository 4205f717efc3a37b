"""The preflight: is everything there that the functions will meet, and may their account use it? Changes nothing.

Called by ``python -m vertex_launch check``, which says whom each service is asked as. Every step gives lines for a person;
one that fails skips what depends on it, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from vertex_launch.dispatch.ports import Key, side_by_side
from vertex_launch.errors import ItemRejected, LaunchError, Unavailable
from vertex_launch.job import custom_job
from vertex_launch.job.custom_job import JobRequest
from vertex_launch.job.queue_config import IMAGE, QueueConfig
from vertex_launch.log import Redactor
from vertex_launch.model import VERTEX_RESOURCES, Item, ManagedJob
from vertex_launch.settings.config import Settings

T_co = TypeVar("T_co", covariant=True)

CREATE, LIST, GET, CANCEL = (f"aiplatform.customJobs.{verb}" for verb in ("create", "list", "get", "cancel"))
READ_LOGS = "logging.logEntries.list"
OBJECTS = tuple(f"storage.objects.{verb}" for verb in ("create", "get", "delete", "list"))
"""What the record takes: overwriting is deleting, too, and without the right to list a missing object is answered 403."""
ACT_AS = "iam.serviceAccounts.actAs"
PUBLISH = "pubsub.topics.publish"

ASKED_AS = "the function's service account"
"""How adapters call whoever asks. Here that may be somebody else."""

AT_ONCE = 16


class Function(StrEnum):
    """A function, by its entry point, for whose account alone is checked what it needs."""

    DISPATCH = "dispatch"
    DISPATCH_NOW = "dispatch_now"
    JOB_STATE = "job_state"

    @classmethod
    def of_account(cls, account: str) -> Function | None:
        """Tell whose account that is by the name that a deployment gives it; None for any other."""
        name = account.partition("@")[0]
        ends = {"-dispatch": cls.DISPATCH, "-now": cls.DISPATCH_NOW, "-job-state": cls.JOB_STATE}
        return next((function for end, function in ends.items() if name.endswith(end)), None)


class Verdict(StrEnum):
    """What a line says first."""

    OK = "ok"
    WARN = "warn"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Line:
    """One thing that was checked: ``what``, what was found, and what to do about it."""

    verdict: Verdict
    what: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        sentences = [f"{self.what}: {self.found}", self.remedy]
        text = " ".join(one if one.endswith((".", "?", "!")) else f"{one}." for one in sentences if one)
        return f"{self.verdict:<4}  {' '.join(text.split())}"


class NotThere(LaunchError):
    """There is no such thing; the message holds the service's own words."""


class Refuses(Unavailable):
    """The service does not let this caller ask: whether the right is there, nobody knows."""


class BucketView(NamedTuple):
    """What a bucket does with its objects; ``soft_delete`` and ``retention`` are seconds, 0 for off."""

    versioning: bool
    soft_delete: float
    lifecycle: bool
    retention: float


class Rights(Protocol):
    """What the caller may do."""

    def granted(self, resource: str, permissions: Sequence[str]) -> Collection[str]:
        """Give those of the permissions that the caller has. Raises NotThere, Refuses, Unavailable."""


class BucketRights(Rights, Protocol):
    """What the caller may do with a bucket, and what the bucket does."""

    def view(self, resource: str) -> BucketView | None:
        """Tell what it does with its objects, None where the caller may not see it. Raises NotThere, Unavailable."""


class Queues(Protocol):
    """What the preflight asks of W&B. All raise Unavailable."""

    def viewer(self) -> tuple[str, str]:
        """Give the user whose API key it is, and the key's default entity; empty texts for none."""

    def queue_names(self, entity: str) -> Sequence[str]:
        """Give the names of all queues of the entity."""

    def queue_configs(self, entity: str, queues: Sequence[str]) -> Mapping[str, QueueConfig | None]:
        """Give what these queues say about their items, None for nothing; those that W&B does not tell are missing."""


class Jobs(Protocol):
    """What the preflight asks of Vertex AI."""

    def active(self, region: str) -> Sequence[ManagedJob]:
        """List the deployment's jobs that have not ended. Raises Unavailable."""


@dataclass(frozen=True)
class Asked(Generic[T_co]):
    """A service, and as whom it is asked."""

    service: T_co
    who: str


@dataclass(frozen=True)
class Outside:
    """The services as the preflight sees them; None is one that wants credentials where there are none.

    ``queues`` is W&B, which is asked with the key.
    """

    key: Asked[Key] | None
    queues: Queues | None
    jobs: Asked[Jobs] | None
    projects: Asked[Rights] | None
    accounts: Asked[Rights] | None
    buckets: Asked[BucketRights] | None
    topics: Asked[Rights] | None


@dataclass
class _Jobs:
    """What the queues' configs come to: jobs that could be created, and the queues of which that is not known."""

    built: list[JobRequest] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


class Preflight:
    """The checks of one deployment, all of them or those that ``function`` needs."""

    def __init__(self, settings: Settings, outside: Outside, function: Function | None = None) -> None:
        self._settings = settings
        self._outside = outside
        self._passes = function is not Function.JOB_STATE
        self._publishes = function in (None, Function.JOB_STATE)
        self._jobs = _Jobs()

    def lines(self) -> Iterator[Line]:
        """Check everything, side by side, and tell it in the order in which it is needed."""
        first: list[Callable[[], list[Line]]] = [self._project, self._topic]
        if self._passes:
            first += [
                self._record,
                self._wandb,
                *(partial(self._list, region.name) for region in self._settings.regions),
            ]
        project, topic, *more = side_by_side(first, AT_ONCE)
        if not self._passes:
            yield skip("API key, W&B, queues, lists of jobs, buckets, service accounts", "job_state needs none of them")
            yield from [*project, *topic]
            return
        record, wandb, *lists = more
        second = [partial(self._staging, bucket) for bucket in self._staging_buckets()]
        second += [partial(self._act_as, account) for account in self._accounts()]
        rest = side_by_side(second, AT_ONCE)
        for lines in (wandb, *lists, project, record, *rest, self._unknown_accounts(), topic):
            yield from lines

    # W&B

    def _wandb(self) -> list[Line]:
        self._jobs.unknown = list(self._settings.queues)
        key, queues = self._key(), self._outside.queues
        if key.verdict is not Verdict.OK or queues is None:
            return [key, skip("W&B, queues and their configs", "need the API key")]
        found, entity = self._viewer(queues)
        if not entity:
            return [key, found, skip("queues and their configs", "need W&B and an entity")]
        return [key, found, *self._queues(queues, entity)]

    def _key(self) -> Line:
        what, asked = "API key", self._outside.key
        if asked is None:
            return _no_credentials(what)
        try:
            asked.service.get()
        except Unavailable as error:
            return fail(what, _said(error, asked.who))
        return ok(what, f"{asked.who} may read {self._settings.key_secret}; it is not shown")

    def _viewer(self, queues: Queues) -> tuple[Line, str]:
        """Give the line about W&B, and the entity that the queues belong to; empty text where that is not known."""
        what, settings = "W&B", self._settings
        try:
            user, default = queues.viewer()
        except Unavailable as error:
            return fail(what, error.reason), ""
        user, entity = user or "an unnamed user", settings.entity or default
        if not entity:
            found = f"the API key of {user} has no default entity"
            return fail(what, found, "Set entity in launch-config.yaml, or WANDB_ENTITY"), ""
        whose = "the entity in the configuration" if settings.entity else "the key's default entity"
        return ok(
            what, f"{settings.base_url} takes the key of {user}; the queues are those of {entity}, {whose}"
        ), entity

    def _queues(self, queues: Queues, entity: str) -> list[Line]:
        try:
            names = queues.queue_names(entity)
            there = [name for name in self._settings.queues if name in names]
            configs = queues.queue_configs(entity, there)
        except Unavailable as error:
            return [fail("queues", error.reason)]
        lines: list[Line] = []
        for name in self._settings.queues:
            what = f"queue {name}"
            if name not in there:
                found = f"entity {entity} has no such queue (it has: {', '.join(sorted(names)) or 'none'})"
                remedy = "Make it in the W&B app, with the resource gcp-vertex, or correct queues in launch-config.yaml"
                lines.append(fail(what, found, remedy))
            elif name not in configs:
                found = "it exists, but W&B does not show its config, so that nothing is known about its jobs"
                lines.append(warn(what, found, "Give the owner of the key access to the queue"))
            else:
                lines += self._queue(name, entity, configs[name])
        return lines

    def _queue(self, name: str, entity: str, config: QueueConfig | None) -> list[Line]:
        what = f"queue {name}"
        if config is None:
            found = "it exists and has no config, so that each item must bring its resource and its resource args"
            return [warn(what, found, "Give it the resource gcp-vertex in the W&B app")]
        if config.resource not in VERTEX_RESOURCES:
            found = f"its resource is {config.resource or 'not named'}, and only Vertex AI queues are served"
            remedy = "Make one with the resource gcp-vertex, or take it out of queues in launch-config.yaml"
            return [fail(what, found, remedy)]
        exists = ok(what, f"it exists and is a Vertex AI queue ({config.resource})")
        return [exists, self._config(name, entity, config)]

    def _config(self, name: str, entity: str, config: QueueConfig) -> Line:
        """Build the job of an item that brings an image and nothing else, and hold it against the policy."""
        what = f"config of queue {name}"
        if config.is_empty:
            return warn(what, "it is empty, so that each item must bring all of its resource args")
        plainest = config.item()
        try:
            request = self._request(name, entity, plainest)
        except ItemRejected as error:
            found = f"an item that brings only an image would fail: {error}"
            if open_ones := ", ".join(config.open_variables()):
                remedy = (
                    "Look at what items write there, or give them a default or an enum, with which they can be tested"
                )
                return warn(what, f"{found} (template variables without a value here: {open_ones})", remedy)
            started = self._with_entry_point(name, entity, plainest)
            if started is None:
                return fail(what, found, "Correct the queue's config in the W&B app, or the policy")
            self._known(name, started)
            return warn(what, found, "Items that say what to run, as W&B jobs made of code or of git do, are built")
        self._known(name, request)
        account = request.custom_job.job_spec.service_account or "Vertex AI's own agent"
        found = f"it builds a CustomJob that the policy allows, in {request.region} as {account}"
        if values := ", ".join(f"{variable} = {value}" for variable, value in config.likely_values().items()):
            found += f", where {values}"
        if request.warnings:
            return warn(what, f"{found}, but: {' '.join(map(str, request.warnings))}")
        return ok(what, found)

    def _request(self, queue: str, entity: str, run_spec: Mapping[str, Any]) -> JobRequest:
        """Build the job of an item and hold it against the policy. Raises ItemRejected."""
        item, now = Item("preflight", queue, run_spec), datetime.now(UTC)
        spec, settings = custom_job.parse(item), self._lenient()
        return custom_job.build(item, spec, settings, entity=entity, api_key=Redactor.MARK, now=now)

    def _with_entry_point(self, queue: str, entity: str, plainest: Mapping[str, Any]) -> JobRequest | None:
        """Build the job of an item that has an entry point, too, where only the way of the key may ask for that."""
        if self._settings.api_key_delivery != "secret":
            return None
        try:
            return self._request(queue, entity, {**plainest, "overrides": {"entry_point": ["python", "train.py"]}})
        except ItemRejected:
            return None  # what keeps this one from being built keeps the plainest one, too

    def _known(self, queue: str, request: JobRequest) -> None:
        self._jobs.built.append(request)
        self._jobs.unknown.remove(queue)

    def _lenient(self) -> Settings:
        """Give the settings with a policy that lets the image pass that stands for the items' own."""
        policy = self._settings.policy
        if not policy.images:
            return self._settings
        return self._settings.model_copy(
            update={"policy": policy.model_copy(update={"images": (*policy.images, IMAGE)})}
        )

    # Vertex AI

    def _list(self, region: str) -> list[Line]:
        what, asked = f"jobs in {region}", self._outside.jobs
        if asked is None:
            return [_no_credentials(what)]
        try:
            active = asked.service.active(region)
        except Unavailable as error:
            return [fail(what, _said(error, asked.who))]
        return [ok(what, f"{asked.who} may list them; of this deployment {len(active)} are active")]

    def _project(self) -> list[Line]:
        project, asked = self._settings.project, self._outside.projects
        what = f"CustomJobs in project {project}"
        wanted = (CREATE, LIST, GET, CANCEL) if self._passes else (GET,)
        may = f"may {'create, list, get and cancel' if self._passes else 'get'} them"
        logs = (READ_LOGS,) if self._passes and self._settings.log_lines else ()
        remedy = "Correct project or GOOGLE_CLOUD_PROJECT"
        if asked is None:
            return [_no_credentials(what)]
        # Only the preflight asks Resource Manager, so what it says or keeps to itself is not vital.
        granted = _granted(what, asked, project, (*wanted, *logs), may, remedy, vital=False)
        if isinstance(granted, Line):
            return [granted]
        lines = [_judged(what, asked.who, wanted, granted, may, f"in project {project}")]
        if logs and READ_LOGS not in granted:
            found = f"{asked.who} lacks {READ_LOGS}, so that messages go out without the last lines of a job's log"
            lines.append(warn("log_lines", found, f"Grant {READ_LOGS} in project {project}, or set log_lines: 0"))
        return lines

    # Cloud Storage

    def _record(self) -> list[Line]:
        where, asked = self._settings.state_bucket, self._outside.buckets
        what, bucket, may = f"record {where}", _bucket(where), "may create, get, delete and list objects"
        remedy = f"Run gcloud storage buckets create gs://{bucket}, or correct STATE_BUCKET"
        if asked is None:
            return [_no_credentials(what)]
        granted = _granted(what, asked, bucket, OBJECTS, may, remedy)
        if isinstance(granted, Line):
            return [granted]
        grant = f"on gs://{bucket}, as roles/storage.objectUser does"
        return [_judged(what, asked.who, OBJECTS, granted, may, grant), *self._habits(what, bucket, asked.service)]

    def _habits(self, what: str, bucket: str, buckets: BucketRights) -> list[Line]:
        """Tell what the bucket does that does a record no good."""
        try:
            view = buckets.view(bucket)
        except LaunchError as error:
            return [warn(what, f"what the bucket does with its objects cannot be seen: {error}")]
        if view is None:
            found = "the account may not see whether versioning, soft delete or a lifecycle rule is on"
            return [Line(Verdict.SKIP, what, f"{found}; without --as you may")]
        run = f"Run gcloud storage buckets update gs://{bucket}"
        lines = []
        if view.versioning:
            lines.append(warn(what, "versioning keeps every overwrite for ever", f"{run} --no-versioning"))
        if view.soft_delete:
            found = f"soft delete keeps every overwrite for {view.soft_delete / 86400:g} days"
            lines.append(warn(what, found, f"{run} --clear-soft-delete"))
        if view.lifecycle:
            lines.append(warn(what, "a lifecycle rule may delete the record", f"{run} --clear-lifecycle"))
        if view.retention:
            found = f"its retention policy forbids overwriting for {view.retention:g} s, and each pass overwrites"
            lines.append(fail(what, found, f"{run} --clear-retention-period"))
        return lines

    def _staging_buckets(self) -> list[str]:
        """Give the buckets that jobs write to: the regions' own, and those that the queues' configs name."""
        outputs = [request.custom_job.job_spec.base_output_directory.output_uri_prefix for request in self._jobs.built]
        places = [*(region.staging_bucket for region in self._settings.regions), *outputs]
        return list(dict.fromkeys(_bucket(place) for place in places if place))

    def _staging(self, bucket: str) -> list[Line]:
        what, asked = f"staging bucket gs://{bucket}", self._outside.buckets
        remedy = f"Run gcloud storage buckets create gs://{bucket}, or correct staging_bucket or the queue's config"
        if asked is None:
            return [_no_credentials(what)]
        granted = _granted(what, asked, bucket, OBJECTS, "may see it", remedy)
        if isinstance(granted, Line):
            return [granted]
        return [ok(what, "it exists; the account of the jobs writes there, which is not tested")]

    # Accounts that jobs run as

    def _accounts(self) -> list[str]:
        """Give the accounts that the queues' configs name, and those that the policy names in full."""
        named = [request.custom_job.job_spec.service_account for request in self._jobs.built]
        allowed = [one for one in self._settings.policy.service_accounts or () if not re.search(r"[*?]", one)]
        return [account for account in dict.fromkeys([*named, *allowed]) if account]

    def _act_as(self, account: str) -> list[Line]:
        what, asked, may = f"service account {account}", self._outside.accounts, "may act as it"
        remedy = "Create it, or correct service_account in the queue's config or policy.service_accounts"
        if asked is None:
            return [_no_credentials(what)]
        granted = _granted(what, asked, account, (ACT_AS,), may, remedy, vital=False)
        if isinstance(granted, Line):
            return [granted]
        return [_judged(what, asked.who, (ACT_AS,), granted, may, "on it, as roles/iam.serviceAccountUser does")]

    def _unknown_accounts(self) -> list[Line]:
        if not self._jobs.unknown:
            return []
        names = ", ".join(self._jobs.unknown)
        return [skip(f"service accounts of jobs from {names}", "need a queue's config that builds a job")]

    # Pub/Sub

    def _topic(self) -> list[Line]:
        topic, asked, may = self._settings.tick_topic, self._outside.topics, "may publish there"
        what = f"topic {topic}" if topic else "topic of ticks"
        if not self._publishes:
            return [skip(what, "only job_state publishes there")]
        if topic is None:
            remedy = "Set tick_topic in vertex-launch.yaml, or DISPATCH_TOPIC, to projects/P/topics/T"
            return [fail(what, "it is not configured, and job_state asks for passes there", remedy)]
        remedy = f"Run gcloud pubsub topics create {topic}, or correct DISPATCH_TOPIC"
        if asked is None:
            return [_no_credentials(what)]
        granted = _granted(what, asked, topic, (PUBLISH,), may, remedy)
        if isinstance(granted, Line):
            return [granted]
        return [_judged(what, asked.who, (PUBLISH,), granted, may, "on it, as roles/pubsub.publisher does")]


def ok(what: str, found: str) -> Line:
    """Say that something is as it has to be."""
    return Line(Verdict.OK, what, found)


def warn(what: str, found: str, remedy: str = "") -> Line:
    """Say that something should be looked at."""
    return Line(Verdict.WARN, what, found, remedy)


def fail(what: str, found: str, remedy: str = "") -> Line:
    """Say that something does not work; the remedy may stand at the end of ``found``."""
    return Line(Verdict.FAIL, what, found, remedy)


def skip(what: str, why: str) -> Line:
    """Say that something was not looked at."""
    return Line(Verdict.SKIP, what, why)


def _granted(
    what: str,
    asked: Asked[Rights],
    resource: str,
    permissions: Sequence[str],
    may: str,
    if_missing: str,
    *,
    vital: bool = True,
) -> Collection[str] | Line:
    """Give those of the permissions that there are, or the line that says why nobody knows.

    A service that is not ``vital`` is one that no function meets: if it does not answer, that is no failure.
    """
    try:
        return asked.service.granted(resource, permissions)
    except NotThere as error:
        return fail(what, f"it does not exist ({str(error).rstrip('.')})", if_missing)
    except Unavailable as error:
        if vital and not isinstance(error, Refuses):
            return fail(what, str(error))
        found = f"{error.service} does not tell whether {asked.who} {may}: {error.reason}"
        return warn(what, found, "Enable its API or ask as somebody else; or go on without knowing")


def _judged(what: str, who: str, wanted: Sequence[str], granted: Collection[str], may: str, grant: str) -> Line:
    """Say that all is granted, or what is not and how it is."""
    lacking = ", ".join(permission for permission in wanted if permission not in granted)
    if not lacking:
        return ok(what, f"{who} {may}")
    return fail(what, f"{who} lacks {lacking}", f"Grant {lacking} {grant}")


def _no_credentials(what: str) -> Line:
    return skip(what, "needs Google credentials")


def _said(error: Unavailable, who: str) -> str:
    return str(error).replace(ASKED_AS, who)


def _bucket(place: str) -> str:
    """Give the bucket of ``gs://bucket/folder``."""
    return place.removeprefix("gs://").partition("/")[0]
