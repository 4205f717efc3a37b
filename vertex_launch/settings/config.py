"""Settings: launch-config.yaml, vertex-launch.yaml and the environment, checked once, every problem in one error.

Called by ``app`` when a function starts. Nothing below the settings reads the environment.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from vertex_launch.errors import ConfigError, Problem
from vertex_launch.problems import dotted, nearest, problem, shown, translate, written_names, wrong
from vertex_launch.settings import field_types as forms
from vertex_launch.settings.field_types import (
    BaseUrl,
    Bucket,
    Count,
    Deployment,
    Endpoint,
    Flag,
    Host,
    Macro,
    Name,
    Names,
    ProjectId,
    Seconds,
    SecretVersion,
    Topic,
    distinct,
)
from vertex_launch.settings.sources import Sources
from vertex_launch.settings.yaml_file import SettingsFile


class Strict(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Tolerant(BaseModel):
    """Base of the official agent's sections: unknown keys are kept, to be warned about."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Environment(Tolerant):
    """Where the official agent runs jobs; only its region matters here."""

    type: str | None = Field(None, description="gcp")
    region: str | None = Field(None, description="Google Cloud region, where nothing else names one")

    @field_validator("type")
    @classmethod
    def _only_gcp(cls, value: str | None) -> str | None:
        if value not in ("gcp", None):
            remedy = (
                "Write gcp: this deployment submits to Vertex AI; keep other clouds in the official agent's own file"
            )
            raise wrong(f"{shown(value)} is not gcp", remedy)
        return value


class Registry(Tolerant):
    """Where the official agent keeps the images that it builds. Accepted, and without effect."""

    type: Literal["ecr", "acr", "gcr"] | None = None
    uri: str | None = None
    account_id: Any = None
    region: Any = None
    repository: Any = None
    image_name: Any = Field(None, alias="image-name")
    project: Any = None


class Builder(Tolerant):
    """How the official agent builds images. Accepted, and without effect."""

    type: Literal["docker", "kaniko", "noop"] | None = None
    destination: str | None = None
    platform: Literal["linux/amd64", "linux/arm64"] | None = None
    build_context_store: str | None = Field(None, alias="build-context-store")
    build_job_name: str | None = Field(None, alias="build-job-name")
    secret_name: str | None = Field(None, alias="secret-name")
    secret_key: str | None = Field(None, alias="secret-key")
    kaniko_image: str | None = Field(None, alias="kaniko-image")
    kaniko_config: Any = Field(None, alias="kaniko-config")


class Region(Strict):
    """A place where jobs may run."""

    name: forms.Region = Field(description="Google Cloud region", examples=["us-central1"])
    staging_bucket: Bucket | None = Field(
        None, description="where jobs write if their spec names no bucket", examples=["gs://my-bucket/staging"]
    )


class Timeouts(Strict):
    """Limits in seconds."""

    connect: Seconds = Field(5, gt=0, description="seconds to open a connection to W&B")
    read: Seconds = Field(20, gt=0, description="seconds for an answer of W&B")
    look: Seconds = Field(20, gt=0, description="seconds to list or get jobs, to read the secret or the record")
    create: Seconds = Field(20, gt=0, description="seconds for one create at Vertex AI; far below the lease")
    pass_budget: Seconds = Field(45, gt=0, description="seconds after which a pass begins nothing new")
    margin: Seconds = Field(
        10, gt=0, description="seconds by which the hold outlives, and the last ack precedes, what they guard"
    )
    intent_grace: Seconds = Field(
        120,
        gt=0,
        validate_default=True,
        description="seconds after which a create that no list shows did not take effect",
    )
    settle_grace: Seconds = Field(
        90, ge=0, description="seconds after a job's end within which its error or its run may still show up"
    )

    @field_validator("intent_grace")
    @classmethod
    def _outlives_a_create(cls, value: float, info: ValidationInfo) -> float:
        least = info.data.get("create", 0) + info.data.get("margin", 0)
        if value <= least:
            found = f"{value:g} s is not longer than create and margin together, {least:g} s"
            raise wrong(
                found, "Lengthen intent_grace, or shorten create: a create still under way must not be given up"
            )
        return value


class Batches(Strict):
    """How many operations go into one request to W&B."""

    pops: Count = Field(64, ge=1, description="queue items asked for in one request, the agent's status counted in")
    updates: Count = Field(50, ge=1, description="acks, failures or warnings in one request")
    lookups: Count = Field(50, ge=1, description="items or runs looked up in one request")


class Policy(Strict):
    """What a run spec may ask for. Every list is optional: absent allows everything, empty allows nothing.

    Entries of ``images``, ``service_accounts``, ``machine_types`` and ``networks`` may hold ``*`` and ``?``.
    """

    images: tuple[Name, ...] | None = Field(None, description="container and executor images")
    service_accounts: tuple[Name, ...] | None = Field(None, description="accounts that jobs may run as")
    machine_types: tuple[Name, ...] | None = Field(None, description="machine types", examples=["[n1-standard-*]"])
    accelerators: Mapping[str, Annotated[Count, Field(ge=0)]] | None = Field(
        None,
        description="accelerator type to its greatest count per replica",
        examples=["{NVIDIA_TESLA_T4: 2}"],
    )
    max_replicas: Count | None = Field(
        None, ge=1, description="greatest number of replicas of a job, all pools together"
    )
    networks: tuple[Name, ...] | None = Field(None, description="networks and network attachments that a job may join")
    environment_macros: tuple[Macro, ...] = Field(
        (), description="environment variables that ${NAME} may insert", examples=["[TEAM_BUCKET]"]
    )

    @field_validator("*", mode="before")
    @classmethod
    def _meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a list in a file whose entries are all commented out: it would allow everything."""
        if value is None and info.context is not None:
            remedy = "Remove the line to allow everything, or write what is allowed; [] and {} allow nothing"
            raise wrong("has no value", remedy)
        return value


class FileSettings(Strict):
    """Base of what stands at the top level of a file."""

    @model_validator(mode="before")
    @classmethod
    def _no_value_is_absent(cls, values: Any) -> Any:
        """Take ``entity:`` without a value for no entity at all, as the official agent does."""
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or key not in cls.model_fields}


class AgentSettings(FileSettings):
    """What launch-config.yaml may say, as the official agent reads it."""

    entity: Name | None = Field(None, description="owner of the queues; default: the key's own; WANDB_ENTITY wins")
    queues: Names = Field(min_length=1, description="names of the queues, served in turn", examples=["[my-queue]"])
    max_jobs: Count = Field(
        1,
        ge=-1,
        description="jobs that may be active at once, -1 is no limit; WANDB_LAUNCH_MAX_JOBS wins",
        examples=["5"],
    )
    max_schedulers: Count = Field(
        1, ge=-1, description="sweep schedulers active at once, -1 is no limit", examples=["1"]
    )
    secure_mode: Flag = Field(False, description="refuse items that override the entry point")
    stopped_run_timeout: Seconds = Field(60, ge=0, description="seconds that a stopped run gets to end by itself")
    verbosity: Count = Field(0, ge=0, description="1 and more: debug lines in the log")
    environment: Environment | None = Field(None, description="the official agent's", examples=["{type: gcp}"])
    registry: Registry | None = Field(None, description="the official agent's, without effect here")
    builder: Builder | None = Field(None, description="the official agent's, without effect here")


class DeploymentSettings(FileSettings):
    """What vertex-launch.yaml may say."""

    deployment: Deployment = Field(
        "default", description="name of this deployment; jobs are labelled with it; VERTEX_LAUNCH_DEPLOYMENT wins"
    )
    project: ProjectId = Field(
        description="project in which jobs run; GOOGLE_CLOUD_PROJECT wins", examples=["my-project-123"]
    )
    regions: tuple[Region, ...] = Field(
        min_length=1,
        description="where jobs may run, the first is the default; GOOGLE_CLOUD_REGION wins",
        examples=["[{name: us-central1, staging_bucket: gs://my-bucket}]"],
    )
    base_url: BaseUrl = Field("https://api.wandb.ai", description="the W&B server; WANDB_BASE_URL wins")
    key_secret: SecretVersion = Field(
        description="the secret version that holds the W&B API key; WANDB_API_KEY_SECRET wins",
        examples=["projects/my-project/secrets/wandb-api-key/versions/latest"],
    )
    key_ttl: Seconds = Field(300, ge=0, description="seconds for which the key is kept in memory")
    state_bucket: Bucket = Field(description="where the record is kept; STATE_BUCKET wins", examples=["gs://my-bucket"])
    tick_topic: Topic | None = Field(
        None, description="the topic of the ticks; DISPATCH_TOPIC wins", examples=["projects/my-project/topics/ticks"]
    )
    timeouts: Timeouts = Field(Timeouts(), description="limits in seconds", examples=["{create: 20}"])
    batches: Batches = Field(Batches(), description="operations in one request to W&B", examples=["{pops: 64}"])
    submissions_per_minute: Count = Field(
        60, ge=1, description="creates and deletes a minute and region, Vertex AI's quota"
    )
    parallel_creates: Count = Field(50, ge=1, description="creates under way at once")
    lease: Seconds = Field(
        60, gt=0, validate_default=True, description="seconds after which W&B puts a popped, un-acked item back"
    )
    give_up_after: Seconds = Field(86400, gt=0, description="seconds of deferrals after which an item fails")
    start_timeout: Seconds = Field(
        1800, ge=0, description="seconds that a job may be PENDING, 0 is no limit; WANDB_LAUNCH_START_TIMEOUT wins"
    )
    queue_timeout: Seconds = Field(
        0, ge=0, description="seconds that a job may be QUEUED for quota before it is cancelled, 0 is no limit"
    )
    max_attempts: Count = Field(
        5, ge=1, description="jobs for one item when Vertex AI preempts them, has no machine or breaks; 1: never again"
    )
    resubmit_after: Seconds = Field(
        30, ge=0, description="seconds before the second attempt; doubled before each later one, up to 15 minutes"
    )
    log_lines: Count = Field(
        0, ge=0, le=100, description="last lines of a failed job's own log in its item's message; needs logging.viewer"
    )
    base_image: str | None = Field(
        None,
        min_length=1,
        description="image with Python in which code and git jobs run that name none; default: the official Python image",
        examples=["us-central1-docker.pkg.dev/my-project/images/python-gpu:3.11"],
    )
    api_key_delivery: Literal["env", "secret"] = Field(
        "env", description="how jobs get the W&B key: env, in their spec, or secret, read in the job by its own account"
    )
    git_token_secrets: dict[Host, SecretVersion] = Field(
        {},
        description="by host, the secret version that holds a token for private repositories there",
        examples=["{github.com: projects/my-project/secrets/github-token/versions/latest}"],
    )
    policy: Policy = Field(Policy(), description="what a run spec may ask for", examples=["{max_replicas: 4}"])

    @field_validator("regions")
    @classmethod
    def _each_once(cls, value: tuple[Region, ...]) -> tuple[Region, ...]:
        distinct(tuple(region.name for region in value))
        return value

    @field_validator("lease")
    @classmethod
    def _outlives_a_create(cls, value: float, info: ValidationInfo) -> float:
        timeouts: Timeouts | None = info.data.get("timeouts")
        if timeouts and value <= timeouts.create + timeouts.margin:
            least = timeouts.create + timeouts.margin
            found = f"{value:g} s is not longer than timeouts.create and timeouts.margin together, {least:g} s"
            raise wrong(found, "Shorten timeouts.create: an item must be acked before W&B gives it to somebody else")
        return value


class Settings(AgentSettings, DeploymentSettings):
    """Everything that a pass needs to know beforehand."""

    aiplatform_endpoint: Endpoint | None = Field(None, description="another host than Vertex AI's own")
    secretmanager_endpoint: Endpoint | None = Field(None, description="another host than Secret Manager's own")
    logging_endpoint: Endpoint | None = Field(None, description="another host than Cloud Logging's own")
    macro_values: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Values of ``policy.environment_macros`` as the environment had them at load."""
    warnings: tuple[str, ...] = ()
    """What is odd but tolerated, to be logged once."""

    @property
    def job_limit(self) -> float:
        """Greatest number of active jobs, ``math.inf`` for none."""
        return math.inf if self.max_jobs == -1 else self.max_jobs

    @property
    def scheduler_limit(self) -> float:
        """Greatest number of active sweep schedulers, ``math.inf`` for none."""
        return math.inf if self.max_schedulers == -1 else self.max_schedulers

    @property
    def hold_seconds(self) -> float:
        """How long a pass may hold the record: its budget, one create begun at its end, and a margin."""
        return self.timeouts.pass_budget + self.timeouts.create + self.timeouts.margin

    def region(self, name: str) -> Region | None:
        """Give the configured region of that name, or None."""
        return next((region for region in self.regions if region.name == name), None)


def load(environ: Mapping[str, str], root: Path) -> Settings:
    """Read both files, those beside main.py in ``root`` unless the environment names others, and what overrides them.

    Variables that are empty count as unset. Raises ConfigError with every problem.
    """
    sources = Sources(environ, root, AgentSettings.model_fields, DeploymentSettings.model_fields)
    problems = [
        *sources.launch.problems,
        *sources.vertex.problems,
        *sources.problems,
        *_file_problems(sources.launch, AgentSettings, sources.environ, other=sources.vertex),
        *_file_problems(sources.vertex, DeploymentSettings, sources.environ, other=sources.launch),
    ]
    settings = None
    try:
        settings = Settings.model_validate(sources.values, context=sources.environ)
    except ValidationError as error:
        problems += translate(error, Settings, sources.place, not_missing=sources.unread())
    if settings is None or problems:
        # Raised outside the handler: pydantic's error, which repeats what it was given, must not get into a traceback.
        raise ConfigError(_one_a_place(problems))
    macros = {name: sources.environ[name] for name in settings.policy.environment_macros}
    warnings = tuple(str(odd) for odd in _warnings(settings, sources))
    return settings.model_copy(update={"macro_values": macros, "warnings": warnings})


def _file_problems(
    file: SettingsFile, section: type[FileSettings], environ: Mapping[str, str], other: SettingsFile
) -> list[Problem]:
    """Check a file for itself, also what the environment overrides today; nothing has to be in it."""
    try:
        section.model_validate(file.values or {}, context=environ)
    except ValidationError as error:
        return translate(
            error,
            section,
            lambda location: f"{file.name}: {dotted(location)}",
            not_missing=file.fields,
            elsewhere=dict.fromkeys(other.fields, other.name),
        )
    return []


def _one_a_place(problems: Iterable[Problem]) -> list[Problem]:
    """Keep the first problem of each place: what is wrong with a file's text explains what is wrong with its values."""
    first: dict[str, Problem] = {}
    for found in problems:
        first.setdefault(found.place, found)
    return list(first.values())


def _warnings(settings: Settings, sources: Sources) -> Iterator[Problem]:
    for name, section in (
        ("environment", settings.environment),
        ("registry", settings.registry),
        ("builder", settings.builder),
    ):
        if section is None:
            continue
        for key in section.model_extra or {}:
            found = "is ignored, for neither the official agent nor this one knows it"
            yield problem(sources.place((name, key)), found, nearest(key, written_names(type(section))))
    if "WANDB_API_KEY" in sources.environ:
        remedy = "Remove it; the key is read from Secret Manager, as key_secret or WANDB_API_KEY_SECRET says"
        yield problem("environment variable WANDB_API_KEY", "is ignored", remedy)
    for field in ("base_url", "aiplatform_endpoint", "secretmanager_endpoint"):
        url = urlsplit(getattr(settings, field) or "")
        if url.scheme == "http" and not _is_loopback(url.hostname or ""):
            remedy = "Write https:// unless the network between is your own"
            yield problem(sources.place((field,)), f"the W&B API key goes to {url.hostname} in clear text", remedy)
    limit = sources.environ.get("CLOUD_RUN_TIMEOUT_SECONDS", "")
    if re.fullmatch(r"[1-9]\d{0,5}", limit, re.ASCII) and int(limit) < settings.hold_seconds:
        found = f"the function is stopped after {limit} s, a pass may take {settings.hold_seconds:g} s"
        remedy = f"Deploy with --timeout={math.ceil(settings.hold_seconds)}s, or shorten timeouts.pass_budget"
        yield problem("environment variable CLOUD_RUN_TIMEOUT_SECONDS", found, remedy)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
