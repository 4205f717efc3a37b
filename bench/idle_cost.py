"""Compute the cost of an idle month: the requests of a pass that finds nothing to do, times Google's list prices.

``python -m bench.idle_cost`` prints the table of docs/operations.md. A test counts the requests. The seconds of a pass are
an assumption, because they are the latency of other services.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PRICES_OF = "2025"
"""When Google's price pages were read (USD, us-central1, without the free tiers)."""

REQUESTS: Mapping[str, int] = {
    "storage.download": 1,
    "storage.insert": 2,
    "ListCustomJobs": 1,
    "project": 1,
    "popFromRunQueue": 1,
}
"""The requests of an idle pass with one region, on an instance that has the key in memory. The last two go to W&B."""

PASS_SECONDS = 1.0
KEY_SECONDS = 300
"""Seconds for which an instance keeps the key in memory (``key_ttl``)."""
MONTH = 730 * 3600
TICK = 60
VCPUS, GIB = 1.0, 1.0
"""The memory of a function that runs passes, in both ways of deploying. ``bench.memory`` measures what it uses."""

VCPU_SECOND, GIB_SECOND, REQUEST = 0.000024, 0.0000025, 0.40e-6
"""Cloud Run functions, request-based billing, tier 1 (https://cloud.google.com/run/pricing)."""
CLASS_A, CLASS_B = 0.005e-3, 0.0004e-3
"""Cloud Storage, operations on Standard storage in one region (https://cloud.google.com/storage/pricing)."""
SECRET_ACCESS, SECRET_VERSION = 0.03e-4, 0.06
"""Secret Manager (https://cloud.google.com/secret-manager/pricing)."""
SCHEDULER_JOB = 0.10
"""Cloud Scheduler, a month (https://cloud.google.com/scheduler/pricing)."""
PUBSUB_BYTE, LEAST_BYTES = 40 / 2**40, 1000
"""Pub/Sub, published and delivered, of at least 1,000 bytes (https://cloud.google.com/pubsub/pricing)."""
IDLE_METRICS: Mapping[str, str] = {
    "passes": "INT64",
    "pass_duration": "DISTRIBUTION",
    "active_jobs": "DISTRIBUTION",
    "max_jobs": "DISTRIBUTION",
}
"""The log-based metrics that get a value in each pass; the others have none while nothing happens."""
SAMPLE_BYTES: Mapping[str, int] = {"INT64": 8, "DISTRIBUTION": 80}
METRIC_MIB = 0.258
"""Cloud Monitoring, metrics by bytes (https://cloud.google.com/products/observability/pricing)."""
CONDITIONS, CONDITION, POINT, EVALUATION = 8, 0.10, 0.35e-6, 30
"""Alerts: their conditions, the price of one a month and of a value that it looks at, and every how many seconds it looks."""
E2_SMALL, E2_MEDIUM = 0.016751, 0.033503
"""An hour of the machines that an agent which always runs would need (https://cloud.google.com/compute/vm-instance-pricing)."""


@dataclass(frozen=True)
class Line:
    """A line of the bill for one month, in USD."""

    what: str
    how: str
    usd: float


def bill() -> list[Line]:
    """Compute the lines of a month in which nothing happens."""
    passes = MONTH / TICK
    seconds = passes * PASS_SECONDS
    writes, reads = REQUESTS["storage.insert"] * passes, REQUESTS["storage.download"] * passes
    keys, messages = MONTH / KEY_SECONDS, 2 * passes
    sampled = passes * sum(SAMPLE_BYTES[kind] for kind in IDLE_METRICS.values()) / 2**20
    looks = CONDITIONS * MONTH / EVALUATION
    compute = seconds * (VCPUS * VCPU_SECOND + GIB * GIB_SECOND) + passes * REQUEST
    return [
        Line(
            "Cloud Run functions", f"{passes:,.0f} passes of {PASS_SECONDS:g} s, {VCPUS:g} vCPU, {GIB:g} GiB", compute
        ),
        Line("Cloud Storage", f"{writes:,.0f} writes, {reads:,.0f} reads", writes * CLASS_A + reads * CLASS_B),
        Line("Secret Manager", f"{keys:,.0f} accesses, 1 version", keys * SECRET_ACCESS + SECRET_VERSION),
        Line("Cloud Scheduler", "1 job", SCHEDULER_JOB),
        Line("Pub/Sub", f"{messages:,.0f} messages", messages * LEAST_BYTES * PUBSUB_BYTE),
        Line(
            "Log-based metrics",
            f"{len(IDLE_METRICS)} with a value in each pass, {sampled:.1f} MiB",
            sampled * METRIC_MIB,
        ),
        Line("Alerts", f"{CONDITIONS} conditions, {looks:,.0f} values", CONDITIONS * CONDITION + looks * POINT),
        Line("Vertex AI, W&B", "lists and look-ups", 0.0),
    ]


def table() -> str:
    """Return the bill as a Markdown table."""
    lines = bill()
    rows = [f"| {line.what} | {line.how} | {line.usd:.2f} |" for line in lines]
    total = sum(line.usd for line in lines)
    return "\n".join(["| | a month | USD |", "|---|---|---|", *rows, f"| **together** | | **{total:.2f}** |"])


def agent() -> tuple[float, float]:
    """Return the least cost of an agent that always runs, on an e2-small and on an e2-medium, in USD a month."""
    hours = MONTH / 3600
    return hours * E2_SMALL, hours * E2_MEDIUM


if __name__ == "__main__":
    small, medium = agent()
    print(table())
    print(
        f"\nAn agent that always runs: {small:.2f} on an e2-small, {medium:.2f} on an e2-medium (prices of {PRICES_OF})."
    )
