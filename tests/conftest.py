"""What holds for all tests."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from local.machine.loopback import without_proxy
from tests.support.numbers import examples

os.environ.update(without_proxy(os.environ))  # a proxy cannot reach what the tests start
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC writes a line for each server that a test ends

settings.register_profile("vertex-launch", max_examples=examples(100), deadline=None, print_blob=True)
settings.load_profile("vertex-launch")

SLOW = (
    "tests/local_cloud/test_programs",
    "tests/deployment/test_deploy",
    "tests/bootstrap/test_bootstrap_client",
    "tests/loopback/test_secret_delivery",
)
"""Files whose tests take longest. They run first, so that no process ends long after the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the slowest files first."""
    items.sort(key=lambda item: next((at for at, name in enumerate(SLOW) if item.nodeid.startswith(name)), len(SLOW)))
