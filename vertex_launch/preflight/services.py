"""The services as the preflight sees them: what it asks, and the errors it distinguishes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import LaunchError, Unavailable
from vertex_launch.job.queue_config import QueueConfig
from vertex_launch.model import ManagedJob

T_co = TypeVar("T_co", covariant=True)


class NotThere(LaunchError):
    """The resource does not exist; the message holds the service's own words."""


class Refuses(Unavailable):
    """The service does not let this caller ask, so whether the permission is granted is unknown."""


class BucketView(NamedTuple):
    """What a bucket does with its objects; ``soft_delete`` and ``retention`` are seconds, 0 for off."""

    versioning: bool
    soft_delete: float
    lifecycle: bool
    retention: float


class Permissions(Protocol):
    """Tests what the caller may do."""

    def granted(self, resource: str, permissions: Sequence[str]) -> Collection[str]:
        """Return those of the permissions that the caller has. Raises NotThere, Refuses, Unavailable."""


class BucketPermissions(Permissions, Protocol):
    """Tests what the caller may do with a bucket, and describes the bucket."""

    def view(self, resource: str) -> BucketView | None:
        """Return what the bucket does with its objects, or None if the caller may not see it.

        Raises NotThere, Unavailable.
        """


class Wandb(Protocol):
    """What the preflight asks W&B. All methods raise Unavailable."""

    def viewer(self) -> tuple[str, str]:
        """Return the owner of the API key and the key's default entity; empty texts for none."""

    def queue_names(self, entity: str) -> Sequence[str]:
        """Return the names of all queues of the entity."""

    def queue_configs(self, entity: str, queues: Sequence[str]) -> Mapping[str, QueueConfig | None]:
        """Return the configs of these queues, None for a queue without one; queues that W&B does not show are missing."""


class Jobs(Protocol):
    """What the preflight asks Vertex AI."""

    def active(self, region: str) -> Sequence[ManagedJob]:
        """List the deployment's jobs that have not ended. Raises Unavailable."""


@dataclass(frozen=True)
class Asked(Generic[T_co]):
    """A service and the identity that it is asked with."""

    service: T_co
    who: str


@dataclass(frozen=True)
class Outside:
    """All services. None stands for a service that needs credentials while there are none; ``wandb`` also needs the key."""

    key: Asked[Key] | None
    wandb: Wandb | None
    jobs: Asked[Jobs] | None
    projects: Asked[Permissions] | None
    accounts: Asked[Permissions] | None
    buckets: Asked[BucketPermissions] | None
    topics: Asked[Permissions] | None
