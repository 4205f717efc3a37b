"""What holds for all tests."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC writes a line for each server that a test ends
