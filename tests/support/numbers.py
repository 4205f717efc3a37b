"""How much the tests do: little by default, and everything with ``FULL`` in the environment (``make test``)."""

from __future__ import annotations

import os

FULL = bool(os.environ.get("FULL"))

SEEDS = int(os.environ.get("SEEDS") or (2_000 if FULL else 100))
"""Simulated worlds."""

JUNK = int(os.environ.get("JUNK") or (100_000 if FULL else 2_000))
"""Malformed events and requests."""

BOOTSTRAP_PYTHONS = ("3.8", "3.11", "3.12", "3.13")
"""Pythons of the images that the bootstrap is tested in, with ``FULL``."""


def examples(full: int) -> int:
    """Return how many examples hypothesis tries in a test that tries ``full`` of them with ``FULL``."""
    return full if FULL else max(full // 10, 10)
