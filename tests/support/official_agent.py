"""Runs W&B's official command line, unmodified but for Google's edges: whose credentials, and which JobService.

Used by ``test_end_to_end`` as ``python -m tests.support.official_agent HOST:PORT launch-agent …``. The official agent has no setting
for Vertex AI's address, so the channel that Google's client opens leads to HOST:PORT, and the credentials that it asks this
machine for are those of nobody. All else, W&B's side included, is what people install.
"""

from __future__ import annotations

import sys
from typing import Any

import google.auth
import grpc
from google.auth.credentials import AnonymousCredentials
from google.cloud.aiplatform_v1.services.job_service.transports.grpc import JobServiceGrpcTransport
from wandb.cli.cli import cli

from local.machine.cloud import PROJECT


class Nobody(AnonymousCredentials):  # type: ignore[misc]
    """Credentials that never run out."""

    def refresh(self, request: Any) -> None:
        """Be as good as before."""


def main() -> None:
    """Run the command line with the arguments behind the address."""
    address = sys.argv.pop(1)
    google.auth.default = lambda *_, **__: (Nobody(), PROJECT)
    JobServiceGrpcTransport.create_channel = lambda *_, **__: grpc.insecure_channel(address)  # type: ignore[method-assign]
    cli()


if __name__ == "__main__":
    main()
