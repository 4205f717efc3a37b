"""Settings: launch-config.yaml, vertex-launch.yaml and the environment, checked once, with every problem in one error.

Called by ``functions`` when a function starts. Nothing below the settings reads the environment. The text below a
field describes it: the first sentence goes into error messages, all of it into ``docs/configuration.md`` (``make docs``).
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, ValidationInfo, field_validator

from vertex_launch import addresses
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, Message, Problem
from vertex_launch.problems import Codes, dotted, nearest, problem, translate, wrong
from vertex_launch.settings import field_types as types
from vertex_launch.settings.sources import LAUNCH_FILE, VERTEX_FILE, Origins, SettingsFile, Sources

CODES = Codes(unknown=Code.CONFIG_UNKNOWN, missing=Code.CONFIG_MISSING, value=Code.CONFIG_VALUE)

_HARMLESS = (
    *("CUDA_DEVICE_ORDER", "CUDA_LAUNCH_BLOCKING", "CUDA_VISIBLE_DEVICES", "HF_HUB_OFFLINE", "HYDRA_FULL_ERROR"),
    *("LANG", "LC_ALL", "MKL_NUM_THREADS", "NCCL_DEBUG", "OMP_NUM_THREADS", "PYTHONHASHSEED", "PYTHONUNBUFFERED"),
    *("PYTORCH_CUDA_ALLOC_CONF", "TF_CPP_MIN_LOG_LEVEL", "TOKENIZERS_PARALLELISM", "TRANSFORMERS_OFFLINE"),
    *("WANDB_DOCKER", "WANDB_JOB_TYPE", "WANDB_NAME", "WANDB_NOTES", "WANDB_RESUME", "WANDB_RUN_GROUP", "WANDB_TAGS"),
)


def _longer(value: float, least: float, remedy: str) -> float:
    """Return the value of a setting that must be longer than timeouts.create and timeouts.margin, ``least`` together."""
    if value <= least:
        found = f"{value:g} s is not longer than timeouts.create and timeouts.margin together ({least:g} s)"
        raise wrong(found, remedy, code=Code.CONFIG_CONFLICT)
    return value


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Environment(Section):
    """Where the official agent runs jobs. Unknown keys are ignored with a warning, as they may be its own."""

    model_config = ConfigDict(extra="allow")

    type: Literal["gcp"] | None = None
    """cloud that jobs run in; this deployment submits to Vertex AI"""
    region: str | None = None
    """Google Cloud region, used if nothing else names regions"""


class Region(Section):
    """A place where jobs may run."""

    name: types.RegionName = Field(examples=["us-central1"])
    """Google Cloud region"""
    staging_bucket: types.Bucket | None = Field(None, examples=["gs://my-bucket/staging"])
    """path that jobs write to if their run spec names no bucket"""


class GitHost(Section):
    """How jobs reach a host of git repositories over HTTPS, because they have no SSH key."""

    url: types.GitBase = Field(examples=["https://git.example.com/scm"])
    """URL that the paths of its repositories belong to"""
    token_secret: types.SecretVersion | None = Field(
        None, examples=["projects/my-project/secrets/git-token/versions/latest"]
    )
    """secret version with a token for it, as in `git_token_secrets`"""
    archive: types.Archive | None = Field(
        None, examples=["https://git.example.com/api/v1/repos/{path}/archive/{commit}.tar.gz"]
    )
    """address of a commit as `.tar.gz`, for images without git. It has `{commit}` and `{path}`, or `{owner}` and `{name}`."""

    def archive_of(self, remote: str, commit: str) -> str:
        """Return the address of a commit's archive; ``remote`` begins with ``url``."""
        path = remote[len(self.url) :].strip("/").removesuffix(".git")
        owner, _, name = path.rpartition("/")
        parts = {"path": path, "owner": owner, "name": name, "commit": commit}
        return (self.archive or "").format(**{key: quote(unquote(part)) for key, part in parts.items()})


class Timeouts(Section):
    """Limits in seconds."""

    connect: types.Seconds = Field(5, gt=0)
    """seconds to open a connection to W&B"""
    read: types.Seconds = Field(20, gt=0)
    """seconds to wait for an answer from W&B"""
    look: types.Seconds = Field(20, gt=0)
    """seconds to list or get jobs, or to read the secret or the state"""
    create: types.Seconds = Field(20, gt=0)
    """seconds to create one job in Vertex AI"""
    pass_budget: types.Seconds = Field(45, gt=0)
    """seconds after which a pass starts nothing new"""
    margin: types.Seconds = Field(10, gt=0)
    """seconds left between the last ack and the end of its lease, and before the lock ends"""
    intent_grace: types.Seconds = Field(120, gt=0, validate_default=True)
    """seconds after which a create without a visible job counts as failed. Must be longer than `create` and `margin`
    together."""
    settle_grace: types.Seconds = Field(90, ge=0)
    """seconds to wait after a job's end for its error or its run to appear"""

    @field_validator("intent_grace")
    @classmethod
    def _outlives_a_create(cls, value: float, info: ValidationInfo) -> float:
        least = info.data.get("create", 0) + info.data.get("margin", 0)
        return _longer(value, least, "Lengthen intent_grace: a create that is under way must not be given up")


class Batches(Section):
    """How many operations go into one request to W&B."""

    pops: types.Count = Field(64, ge=1)
    """operations in a request for queue items: pops and the agent's status"""
    updates: types.Count = Field(50, ge=1)
    """acks, failures or warnings in one request"""
    lookups: types.Count = Field(50, ge=1)
    """items or runs looked up in one request"""


class Policy(Section):
    """What a run spec may ask for. Every line is optional: absent is decided by `unlisted`, empty allows nothing."""

    images: tuple[types.Name, ...] | None = Field(None, examples=["[us-central1-docker.pkg.dev/my-project/*]"])
    """container and executor images that jobs may use. `*` and `?` are wildcards."""
    service_accounts: tuple[types.Name, ...] | None = Field(
        None, examples=["[jobs@my-project.iam.gserviceaccount.com]"]
    )
    """service accounts that jobs may run as. `*` and `?` are wildcards."""
    machine_types: tuple[types.Name, ...] | None = Field(None, examples=["[n1-standard-*]"])
    """machine types that jobs may use. `*` and `?` are wildcards."""
    accelerators: Mapping[str, Annotated[types.Count, Field(ge=0)]] | None = Field(
        None, examples=["{NVIDIA_TESLA_T4: 2}"]
    )
    """largest count per replica of each accelerator type. `GPU` and `TPU` stand for those that a machine type has by
    itself, such as ct5lp-hightpu-4t."""
    max_replicas: types.Count | None = Field(None, ge=1, examples=["4"])
    """largest number of replicas of a job, all worker pools together"""
    networks: tuple[types.Name, ...] | None = Field(None, examples=["[projects/123456789/global/networks/training]"])
    """networks and network attachments that jobs may join or resolve names in. `*` and `?` are wildcards."""
    max_run_time: types.Seconds | None = Field(None, gt=0, examples=["86400"])
    """longest `timeout` of a job in seconds. A job without one may run for seven days, and is refused by less."""
    max_wait_time: types.Seconds | None = Field(None, gt=0, examples=["86400"])
    """longest `max_wait_duration` in seconds of a job with FLEX_START, which holds its slot meanwhile. A job without one
    waits for a day, one with 0 without an end. Each is refused by less."""
    max_boot_disk_gb: types.Count | None = Field(None, ge=1, examples=["500"])
    """largest boot disk of a replica in GB"""
    buckets: tuple[types.Name, ...] | None = Field(None, examples=["[gs://team-output/*]"])
    """Cloud Storage paths, with a slash at their end, that a run spec may name beside those of `regions`. `*` and `?` are
    wildcards."""
    projects: tuple[types.Name, ...] | None = Field(None, examples=["[my-team/*]"])
    """W&B projects that runs may belong to, as ENTITY/PROJECT in lowercase. `*` and `?` are wildcards."""
    persistent_resources: tuple[types.Name, ...] | None = Field(None, examples=["[shared-a100]"])
    """persistent resources that jobs may run on. `*` and `?` are wildcards."""
    reservations: tuple[types.Name, ...] | None = Field(
        None, examples=["[projects/my-project/zones/us-central1-a/reservations/gpus]"]
    )
    """reservations that jobs may use, or the type of the affinity if it names none. `*` and `?` are wildcards."""
    web_access: types.Flag | None = None
    """whether jobs may have an interactive shell (`enable_web_access`)"""
    dashboard_access: types.Flag | None = None
    """whether jobs may have a dashboard (`enable_dashboard_access`)"""
    kms_keys: tuple[types.Name, ...] | None = Field(
        None, examples=["[projects/my-project/locations/us-central1/keyRings/r/cryptoKeys/k]"]
    )
    """encryption keys that jobs may use. `*` and `?` are wildcards."""
    tensorboards: tuple[types.Name, ...] | None = Field(None, examples=["[projects/my-project/*]"])
    """Vertex AI TensorBoards that jobs may write to. `*` and `?` are wildcards."""
    experiments: tuple[types.Name, ...] | None = Field(None, examples=["[projects/my-project/*]"])
    """contexts of Vertex AI experiments and their runs that jobs may write to. `*` and `?` are wildcards."""
    models: tuple[types.Name, ...] | None = Field(None, examples=["[projects/my-project/locations/*/models/1]"])
    """Vertex AI models that jobs may read. `*` and `?` are wildcards."""
    artifact_locations: tuple[types.Name, ...] | None = Field(None, examples=["[us-central1]"])
    """locations of protected artifacts that jobs may use. `*` and `?` are wildcards."""
    nfs_mounts: tuple[types.Name, ...] | None = Field(None, examples=["['10.0.0.2:/data']"])
    """NFS mounts that jobs may have, as SERVER:PATH. `*` and `?` are wildcards."""
    lustre_mounts: tuple[types.Name, ...] | None = Field(None, examples=["[10.0.0.3]"])
    """addresses, volume handles and file systems of Lustre mounts that jobs may have. `*` and `?` are wildcards."""
    ip_ranges: tuple[types.Name, ...] | None = Field(None, examples=["[training-range]"])
    """reserved IP ranges that jobs may use. `*` and `?` are wildcards."""
    dns_domains: tuple[types.Name, ...] | None = Field(None, examples=["[internal.example.com.]"])
    """domains of DNS peerings that jobs may have; their networks are `networks`. `*` and `?` are wildcards."""
    unlisted: Literal["allow", "refuse"] = "allow"
    """what happens to an item that asks for something that has no line here. With `refuse` the message shows the line
    that would allow it."""
    environment_macros: tuple[types.Macro, ...] = Field((), examples=["[TEAM_BUCKET]"])
    """environment variables of the function that `${NAME}` in a run spec may insert. Everyone who can see a job can
    read them."""

    @field_validator("*", mode="before")
    @classmethod
    def _meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse a list in a file whose entries are all commented out: it would allow everything."""
        if value is None and info.context is not None:
            remedy = "Remove the line to allow everything, or list what is allowed; [] and {} allow nothing"
            raise wrong("has no value", remedy)
        return value


class Scheduler(Section):
    """Where the scheduler of a sweep runs that asks for no machine, as `wandb launch-sweep` does by itself."""

    machine_type: types.Name = Field("e2-standard-4")
    """machine type"""
    image: types.Name | None = Field(None, examples=["us-central1-docker.pkg.dev/my-project/images/wandb:1"])
    """image with Python. If it lacks W&B's client, it also needs pip. Default: the official Python image."""
    service_account: types.Account | None = Field(None, examples=["sweeps@my-project.iam.gserviceaccount.com"])
    """account that it runs as. Default: `jobs_account`."""


class Sweeps(Section):
    """Sweeps on Launch."""

    scheduler: Scheduler = Scheduler()
    """where schedulers run that ask for no machine"""


class AgentSettings(Section):
    """The settings of launch-config.yaml, which the official agent also reads."""

    entity: types.Name | None = Field(None, examples=["my-team"])
    """W&B team or user that owns the queues. Default: the default entity of the API key."""
    queues: types.Names = Field(min_length=1, examples=["[my-queue]"])
    """names of the queues, served in turn"""
    max_jobs: types.Count = Field(1, ge=-1, examples=["5"])
    """number of jobs that may be active at once. Includes jobs that wait in Vertex AI. -1 means no limit, 0 starts no
    jobs."""
    max_schedulers: types.Count = Field(1, ge=-1, examples=["1"])
    """number of sweep schedulers that may be active at once. -1 means no limit."""
    secure_mode: types.Flag = False
    """whether only the entry point of the image or of the W&B job may run. Refuses an entry point, folder, command,
    other image, Python package, web shell or environment variable of the run spec that could run another program."""
    stopped_run_timeout: types.Seconds = Field(60, ge=0)
    """seconds that a run stopped in W&B has to end before its job is cancelled"""
    verbosity: types.Count = Field(0, ge=0)
    """1 or more writes debug lines to the log"""
    environment: Environment | None = Field(None, examples=["{type: gcp, region: us-central1}"])
    """the official agent's cloud environment. Its `region` is used if neither `regions` in vertex-launch.yaml nor
    GOOGLE_CLOUD_REGION is set."""
    registry: dict[str, Any] | None = Field(None, examples=["{type: gcr}"])
    """the official agent's image registry. Accepted without effect."""
    builder: dict[str, Any] | None = Field(None, examples=["{type: noop}"])
    """the official agent's image builder. Accepted without effect."""


class DeploymentSettings(Section):
    """The settings of vertex-launch.yaml."""

    deployment: types.Deployment = Field("default", examples=["team-a"])
    """name of this deployment. Jobs are labelled with it, and the agent in W&B is called `vertex-launch/NAME`. Two
    deployments never touch each other's jobs."""
    project: types.ProjectId = Field(examples=["my-project-123"])
    """id of the project in which jobs run"""
    regions: tuple[Region, ...] = Field(
        min_length=1, examples=["[{name: us-central1, staging_bucket: gs://my-bucket}]"]
    )
    """regions in which jobs may run. The first is the default."""
    key_secret: types.SecretVersion = Field(examples=["projects/my-project/secrets/wandb-api-key/versions/latest"])
    """secret version that holds the W&B API key"""
    jobs_account: types.Account | None = Field(None, examples=["jobs@my-project.iam.gserviceaccount.com"])
    """service account of jobs whose run spec names none. Without it such an item fails. Google's custom code agent,
    service-PROJECT_NUMBER@gcp-sa-aiplatform-cc.iam.gserviceaccount.com, lets Vertex AI run them as that agent, which can
    reach everything in the project. So does that email in `policy.service_accounts` if this is not set."""
    key_ttl: types.Seconds = Field(300, ge=0)
    """seconds for which the key is kept in memory. It is also read again after W&B refuses it."""
    state_bucket: types.Bucket = Field(examples=["gs://my-bucket/vertex-launch"])
    """Cloud Storage path for the lock and the ledger. Its bucket must not be one that jobs write to."""
    tick_topic: types.Topic | None = Field(None, examples=["projects/my-project/topics/ticks"])
    """Pub/Sub topic whose messages start passes. `job_state` publishes there and needs it."""
    base_url: types.BaseUrl = addresses.default()
    """URL of the W&B server. The default is that of the installed client. `https://api.wandb.ai` is the same server as
    `https://api.forge.coreweave.com`."""
    user_agent: types.HeaderText | None = Field(None, examples=["my-launcher/1.0"])
    """what requests to W&B call their client. Default: `vertex-launch/VERSION W&B Public Client VERSION`."""
    start_timeout: types.Seconds = Field(1800, ge=0)
    """seconds that a job may be PENDING before it is cancelled and its item fails. Waiting for quota does not count, and
    a job with FLEX_START waits for its own max_wait_duration. 0 means no limit."""
    queue_timeout: types.Seconds = Field(0, ge=0)
    """seconds that a job may be QUEUED, waiting for quota, before it is cancelled and its item fails. 0 means no
    limit."""
    max_attempts: types.Count = Field(5, ge=1)
    """number of jobs for one item if Vertex AI preempts them, has no machine or fails. Each continues the same run. 1
    means no retries."""
    resubmit_after: types.Seconds = Field(30, ge=0)
    """seconds before the second attempt. Doubled for each later one, up to 15 minutes."""
    give_up_after: types.Seconds = Field(86400, gt=0)
    """seconds after which an item fails that Vertex AI has no room for. Waiting for another of your jobs to end has no
    limit."""
    log_lines: types.Count = Field(0, ge=0, le=100)
    """number of last lines of a failed job's log to show on its item. The function's account needs
    `roles/logging.viewer`."""
    base_image: str | None = Field(
        None, min_length=1, examples=["us-central1-docker.pkg.dev/my-project/images/python-gpu:3.11"]
    )
    """image for code and git jobs that name none. It needs Python and pip. Default: the official Python image of the
    job's version."""
    sweeps: Sweeps = Sweeps()
    """sweeps on Launch"""
    api_key_delivery: Literal["env", "secret"] = "env"
    """how jobs get the W&B API key. `env`: in the environment of the job's spec, which everyone who can see the job can
    read. `secret`: the job reads the secret as its own service account, which needs
    `roles/secretmanager.secretAccessor`; its image needs Python, and the job a command and a `service_account`."""
    git_token_secrets: dict[types.Host, types.SecretVersion] = Field(
        {}, examples=["{github.com: projects/my-project/secrets/github-token/versions/latest}"]
    )
    """secret versions with tokens for private git repositories, by host. A host with another port than 443 is
    `HOST:PORT`. Jobs read them as their own service account, and send them to that host and port over HTTPS only."""
    git_hosts: dict[types.Host, GitHost] = Field({}, examples=["{git.example.com: {url: https://git.example.com/scm}}"])
    """git hosts that SSH reaches under another name or path than HTTPS, and aliases of an `ssh_config`, by the host in
    the SSH address. GitHub, GitLab, Bitbucket and Azure Repos are known."""
    policy: Policy = Field(Policy(), examples=["{max_replicas: 4}"])
    """what a run spec may ask for. An item that asks for more fails. By default everything is allowed, except macros
    from the environment."""
    secure_mode_variables: tuple[types.Name, ...] = Field(_HARMLESS, examples=["[MODEL, DATA_*]"])
    """environment variables that a run spec may set under `secure_mode`. `*` and `?` are wildcards. The default names
    variables that cannot make a program run another one; a list here replaces it."""
    submissions_per_minute: types.Count = Field(60, ge=1)
    """creates and deletes per minute and region. Vertex AI has a quota for them."""
    parallel_creates: types.Count = Field(50, ge=1)
    """creates that may run in parallel"""
    timeouts: Timeouts = Field(Timeouts(), examples=["{create: 20}"])
    """limits in seconds. `pass_budget`, `create` and `margin` together must be shorter than the function's timeout."""
    lease: types.Seconds = Field(60, gt=0, validate_default=True)
    """seconds after which W&B returns a popped item without an ack to its queue. A property of the W&B server. Must be
    longer than `timeouts.create` and `timeouts.margin` together."""
    batches: Batches = Field(Batches(), examples=["{pops: 64}"])
    """operations in one request to W&B"""

    @field_validator("regions")
    @classmethod
    def _each_once(cls, value: tuple[Region, ...]) -> tuple[Region, ...]:
        types.distinct(tuple(region.name for region in value))
        return value

    @field_validator("lease")
    @classmethod
    def _outlives_a_create(cls, value: float, info: ValidationInfo) -> float:
        timeouts: Timeouts | None = info.data.get("timeouts")
        least = timeouts.create + timeouts.margin if timeouts else 0
        return _longer(value, least, "Shorten timeouts.create: an item must be acked before its lease expires")


FILES = {LAUNCH_FILE: AgentSettings.model_fields, VERTEX_FILE: DeploymentSettings.model_fields}


class Settings(AgentSettings, DeploymentSettings):
    """Everything that a pass needs to know in advance."""

    aiplatform_endpoint: types.Endpoint | None = None
    """host to use instead of Vertex AI's own"""
    secretmanager_endpoint: types.Endpoint | None = None
    """host to use instead of Secret Manager's own"""
    logging_endpoint: types.Endpoint | None = None
    """host to use instead of Cloud Logging's own"""
    macro_values: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Values of ``policy.environment_macros`` in the environment at load."""
    warnings: tuple[Message, ...] = ()
    """Warnings to be logged once."""
    _origins: Origins = PrivateAttr(
        Origins({setting: file for file, settings in FILES.items() for setting in settings})
    )

    @property
    def job_limit(self) -> float:
        """Greatest number of active jobs, ``math.inf`` for none."""
        return math.inf if self.max_jobs == -1 else self.max_jobs

    @property
    def scheduler_limit(self) -> float:
        """Greatest number of active sweep schedulers, ``math.inf`` for none."""
        return math.inf if self.max_schedulers == -1 else self.max_schedulers

    @property
    def lock_seconds(self) -> float:
        """How long a pass may hold the lock: its budget, one create started at its end, and a margin."""
        return self.timeouts.pass_budget + self.timeouts.create + self.timeouts.margin

    @property
    def default_account(self) -> str:
        """The account of a job that names none; empty for Google's custom code agent."""
        account = self.jobs_account or ""
        return "" if self.is_custom_code_agent(account) else account

    @property
    def custom_code_agent(self) -> str:
        """The custom code agent of Google's that jobs may run as, because the settings have its name; empty if they do not."""
        named = [self.jobs_account or "", *(self.policy.service_accounts or ())]
        return next((name for name in named if self.is_custom_code_agent(name)), "")

    def is_custom_code_agent(self, account: str) -> bool:
        """Return whether this is the agent of Google's that runs custom code if a job names no account; a pattern is not."""
        agent = account.lower().endswith("@gcp-sa-aiplatform-cc.iam.gserviceaccount.com")
        return agent and not any(wildcard in account for wildcard in "*?")

    def region(self, name: str) -> Region | None:
        """Return the configured region of that name, or None."""
        return next((region for region in self.regions if region.name == name), None)

    def where(self, *location: str | int) -> str:
        """Return where a setting comes from, or can be set, in words that fit into "Add it to …".

        ``where("regions")`` is "regions in vertex-launch.yaml" or "the environment variable GOOGLE_CLOUD_REGION", and
        ``where("regions", 0, "staging_bucket")`` the place of that region's bucket.
        """
        return self._origins.where(location)


def load(environ: Mapping[str, str], root: Path) -> Settings:
    """Read both files, and the variables that override them. Raises ConfigError with every problem.

    The files are in ``root``, beside main.py, unless the environment names others. Empty variables count as unset.
    """
    sources = Sources(environ, root, FILES[LAUNCH_FILE], FILES[VERTEX_FILE])
    problems = [
        *sources.problems,
        *_file_problems(sources.launch, AgentSettings, sources.environ, other=sources.vertex),
        *_file_problems(sources.vertex, DeploymentSettings, sources.environ, other=sources.launch),
    ]
    settings = None
    try:
        settings = Settings.model_validate(sources.values, context=sources.environ)
    except ValidationError as error:
        problems += translate(error, Settings, sources.origins.where, codes=CODES, not_missing=sources.unread())
    if settings is None or problems:
        # Raised outside the handler: pydantic's error repeats its input and must not get into a traceback.
        # One per place, the first: a problem of a file's text explains the problems of its values.
        raise ConfigError([*{found.place: found for found in reversed(problems)}.values()][::-1])
    macros = {name: sources.environ[name] for name in settings.policy.environment_macros}
    settings._origins = sources.origins
    if conflicts := list(_conflicts(settings)):
        raise ConfigError(conflicts)
    warnings = tuple(odd.message for odd in _warnings(settings, sources.environ))
    return settings.model_copy(update={"macro_values": macros, "warnings": warnings})


def _file_problems(
    file: SettingsFile, section: type[Section], environ: Mapping[str, str], other: SettingsFile
) -> list[Problem]:
    """Check a file alone, including what the environment overrides. Nothing is required, placeholders may be overridden."""
    try:
        section.model_validate(file.values or {}, context=environ)
    except ValidationError as error:
        problems = translate(
            error,
            section,
            lambda location: f"{dotted(location)} in {file.name}",
            codes=CODES,
            not_missing=file.fields,
            elsewhere=dict.fromkeys(other.fields, other.name),
        )
        return [found for found in problems if found.code is not Code.CONFIG_PLACEHOLDER]
    return []


def _conflicts(settings: Settings) -> Iterator[Problem]:
    """Report regions whose jobs write to the bucket of the record: they could change what passes believe."""
    for index, region in enumerate(settings.regions):
        if region.staging_bucket and bucket_of(region.staging_bucket) == bucket_of(settings.state_bucket):
            place = settings.where("regions", index, "staging_bucket")
            found = f"is in the bucket of state_bucket ({settings.state_bucket}), which no job may write to"
            remedy = f"Use another bucket for one of the two ({settings.where('state_bucket')})"
            yield problem(place, found, remedy, code=Code.CONFIG_CONFLICT)


def bucket_of(path: str) -> str:
    """Return the bucket of ``gs://bucket/folder``; the SDK takes a path without ``gs://`` as well."""
    return path.removeprefix("gs://").partition("/")[0]


def _warnings(settings: Settings, environ: Mapping[str, str]) -> Iterator[Problem]:
    if settings.max_jobs == 0:
        found, remedy = "is 0, so no job ever starts", "Set it to the number of jobs that may be active at once"
        yield problem(settings.where("max_jobs"), found, remedy, code=Code.CONFIG_NO_JOBS)
    for key in (settings.environment and settings.environment.model_extra) or ():
        found, remedy = "is ignored, because it is not a known setting", nearest(key, Environment.model_fields)
        yield problem(settings.where("environment", key), found, remedy, code=Code.CONFIG_IGNORED)
    if "WANDB_API_KEY" in environ:
        remedy = f"Remove it; the key comes from the secret that {settings.where('key_secret')} names"
        yield problem("the environment variable WANDB_API_KEY", "is ignored", remedy, code=Code.CONFIG_IGNORED)
    for field in ("base_url", "aiplatform_endpoint", "secretmanager_endpoint"):
        url = urlsplit(getattr(settings, field) or "")
        if url.scheme == "http" and not _is_loopback(url.hostname or ""):
            found = f"the W&B API key is sent to {url.hostname} unencrypted"
            remedy = "Use https:// unless you trust the network in between"
            yield problem(settings.where(field), found, remedy, code=Code.CONFIG_PLAIN_HTTP)
    limit, longest = environ.get("CLOUD_RUN_TIMEOUT_SECONDS", ""), math.ceil(settings.lock_seconds)
    if re.fullmatch(r"[1-9]\d{0,5}", limit, re.ASCII) and int(limit) < longest:
        place, found = (
            "the function's timeout (CLOUD_RUN_TIMEOUT_SECONDS)",
            f"is {limit} s, but a pass may take {longest} s",
        )
        remedy = f"Deploy with --timeout={longest}s, or shorten timeouts.pass_budget"
        yield problem(place, found, remedy, code=Code.CONFIG_TIMEOUT)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
