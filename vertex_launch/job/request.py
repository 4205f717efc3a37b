"""What it takes to create a CustomJob; without Google's types at run time, so that ports and decisions can name it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vertex_launch.errors import Message
from vertex_launch.job import labels
from vertex_launch.model import Kind, RunId

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import CustomJob


@dataclass(frozen=True)
class JobRequest:
    """A CustomJob that is ready to be created in ``region``.

    ``create_timeout`` is the spec's own deadline for that in seconds, ``run`` the W&B run that the job reports as.
    ``warnings`` are for the item's author, although the job can start.
    """

    region: str
    custom_job: CustomJob = field(repr=False)
    create_timeout: float | None
    run: RunId
    warnings: tuple[Message, ...] = ()

    @property
    def kind(self) -> Kind:
        """What the job is for, as its label says."""
        return Kind(self.custom_job.labels[labels.KIND])

    @property
    def size(self) -> int:
        """Bytes of the CustomJob."""
        return int(type(self.custom_job).pb(self.custom_job).ByteSize())
