"""What holds for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

from local.machine.loopback import without_proxy
from tests.support.numbers import examples

os.environ.update(without_proxy(os.environ))  # a proxy cannot reach what the tests start
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC writes a line for each server that a test ends

settings.register_profile("vertex-launch", max_examples=examples(100), deadline=None, print_blob=True)
settings.load_profile("vertex-launch")
