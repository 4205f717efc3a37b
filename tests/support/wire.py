"""What Google's SDK sends: a JobService on loopback that keeps every CustomJob that it is asked to create."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.cloud.aiplatform_v1.services.job_service.transports.grpc import JobServiceGrpcTransport
from google.cloud.aiplatform_v1.types import CreateCustomJobRequest, CustomJob

from local.standins.faults import Faults
from local.standins.rpc import RpcServer

NOW = datetime(2026, 2, 3, 4, 5, 6, 789_000)
"""What time it is for the SDK."""


class Wire:
    """What arrived last."""

    def __init__(self) -> None:
        self.request = CreateCustomJobRequest()

    def create(self, request: CreateCustomJobRequest) -> CustomJob:
        self.request = request
        answer = CustomJob(request.custom_job)
        answer.name = f"{request.parent}/customJobs/1"
        return answer

    def last(self) -> CustomJob:
        job: CustomJob = self.request.custom_job
        return job


@contextmanager
def captured() -> Iterator[Wire]:
    """Point every JobServiceClient of this process to a server of our own, and stop the SDK's clock."""
    from google.cloud.aiplatform import utils

    wire = Wire()
    table = {"/google.cloud.aiplatform.v1.JobService/CreateCustomJob": (CreateCustomJobRequest, wire.create)}
    server = RpcServer(table, faults=Faults(), workers=4)
    server.start()
    channels: list[grpc.Channel] = []

    def channel(*_: Any, **__: Any) -> grpc.Channel:
        channels.append(grpc.insecure_channel(server.address))
        return channels[-1]

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(JobServiceGrpcTransport, "create_channel", channel)
            patch.setattr(utils, "datetime", SimpleNamespace(datetime=SimpleNamespace(now=lambda: NOW)))
            yield wire
    finally:
        for one in channels:
            one.close()
        server.stop()
