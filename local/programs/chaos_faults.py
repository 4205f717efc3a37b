"""The faults with which chaos disturbs the services."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from local.standins.faults import Fault

OPERATIONS = {
    "vertex": ("CreateCustomJob", "GetCustomJob", "ListCustomJobs", "CancelCustomJob"),
    "wandb": (
        "popFromRunQueue",
        "ackRunQueueItem",
        "failRunQueueItem",
        "updateRunQueueItemWarning",
        "entity",
        "project",
    ),
    "secrets": ("AccessSecretVersion",),
    "storage": ("storage.insert", "storage.download"),
    "pubsub": ("Push",),
}
"""The operations to disturb, by service."""


def fault(chance: random.Random, service: str, operation: str, *, early: bool) -> Fault:
    """Create a fault: an error or, for an operation that changes something, perhaps a lost answer."""
    lost = operation not in ("entity", "project") and chance.random() < 0.3
    status: int | str = chance.choice((503, 429))
    if service in ("vertex", "secrets"):
        # After a refused create the dispatcher waits for 90 s, then longer. The last of them must end before the patience does.
        full = operation != "CreateCustomJob" or early
        status = chance.choice(("UNAVAILABLE", "RESOURCE_EXHAUSTED")) if full else "UNAVAILABLE"
    return Fault(operation=operation, kind="lose" if lost else "fail", status=status, times=chance.randint(1, 5))


def times(faults: Iterable[dict[str, Any]]) -> int:
    """Return how many calls the faults would still disturb."""
    return sum(fault["times"] for fault in faults)
