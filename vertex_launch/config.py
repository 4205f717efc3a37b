"""Settings: launch-config.yaml, vertex-launch.yaml and the environment, checked once, every problem in one error.

Called by ``app`` when a function starts. Nothing below the settings reads the environment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Region(Strict):
    """A place where jobs may run."""

    name: str = Field(description="Google Cloud region, as us-central1")
    staging_bucket: str | None = Field(None, description="gs://bucket[/prefix] for job output where a spec names none")


class Timeouts(Strict):
    """Limits in seconds."""

    connect: float = Field(5, gt=0, description="to open a connection to W&B")
    read: float = Field(20, gt=0, description="for an answer of W&B")
    look: float = Field(20, gt=0, description="for a list or a get at Vertex AI, a read of the secret or of the record")
    create: float = Field(20, gt=0, description="for one create at Vertex AI; far below the lease")
    pass_budget: float = Field(45, gt=0, description="after which a pass begins nothing new")
    margin: float = Field(
        10, gt=0, description="by which the hold outlives, and the last ack precedes, what they guard"
    )
    intent_grace: float = Field(120, gt=0, description="after which a create that no list shows did not take effect")


class Batches(Strict):
    """How many operations go into one request to W&B."""

    pops: int = Field(50, ge=1, description="queue items asked for in one request")
    updates: int = Field(50, ge=1, description="acks, failures or warnings in one request")
    lookups: int = Field(50, ge=1, description="items or runs looked up in one request")


class Policy(Strict):
    """What a run spec may ask for. Every list is optional: absent allows everything, empty allows nothing.

    Entries of ``images``, ``service_accounts``, ``machine_types`` and ``networks`` may hold ``*`` and ``?``.
    """

    images: tuple[str, ...] | None = Field(None, description="container and executor images")
    service_accounts: tuple[str, ...] | None = Field(None, description="accounts that jobs may run as")
    machine_types: tuple[str, ...] | None = Field(None, description="as n1-standard-*")
    accelerators: Mapping[str, int] | None = Field(
        None, description="accelerator type to its greatest count per replica"
    )
    max_replicas: int | None = Field(None, ge=1, description="greatest number of replicas of a job, all pools together")
    networks: tuple[str, ...] | None = Field(None, description="networks and network attachments that a job may join")
    environment_macros: tuple[str, ...] = Field((), description="environment variables that ${NAME} may insert")


class Settings(Strict):
    """Everything that a pass needs to know beforehand."""

    # launch-config.yaml, as the official agent reads it
    entity: str | None = Field(None, description="owner of the queues; default: the API key's default entity")
    queues: tuple[str, ...] = Field(description="names of the queues, served in turn")
    max_jobs: int = Field(1, ge=-1, description="jobs that may be active at once; -1: no limit")
    max_schedulers: int = Field(1, ge=-1, description="sweep schedulers that may be active at once; -1: no limit")
    secure_mode: bool = Field(False, description="refuse items that override the entry point")
    stopped_run_timeout: float = Field(60, ge=0, description="seconds that a stopped run gets to end by itself")
    verbosity: int = Field(0, ge=0, description="1 and more: debug lines in the log")

    # vertex-launch.yaml
    deployment: str = Field("default", description="name of this deployment; jobs are labelled with it")
    project: str = Field(description="Google Cloud project in which jobs run")
    regions: tuple[Region, ...] = Field(min_length=1, description="where jobs may run; the first is the default")
    base_url: str = Field("https://api.wandb.ai", description="the W&B server")
    key_secret: str = Field(description="projects/P/secrets/S/versions/V of the W&B API key")
    key_ttl: float = Field(300, ge=0, description="seconds for which the key is kept in memory")
    state_bucket: str = Field(description="gs://bucket[/prefix] of the record")
    tick_topic: str | None = Field(None, description="projects/P/topics/T of the ticks")
    timeouts: Timeouts = Timeouts()
    batches: Batches = Batches()
    submissions_per_minute: int = Field(60, ge=1, description="creates and deletes a minute per region (Vertex quota)")
    parallel_creates: int = Field(50, ge=1, description="creates under way at once")
    lease: float = Field(60, gt=0, description="seconds after which W&B puts a popped, un-acked item back")
    give_up_after: float = Field(86400, gt=0, description="seconds of deferrals after which an item fails")
    start_timeout: float = Field(1800, ge=0, description="seconds that a job may be PENDING; 0: no limit")
    policy: Policy = Policy()

    # only from the environment
    aiplatform_endpoint: str | None = None
    secretmanager_endpoint: str | None = None
    macro_values: Mapping[str, str] = Field(default_factory=dict, repr=False)
    """Values of ``policy.environment_macros`` as the environment had them at load."""
    warnings: tuple[str, ...] = ()
    """What is odd but tolerated, to be logged once; unknown keys inside environment, builder and registry."""

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
