"""Identity in Google labels: which deployment, item, run, queue and attempt a CustomJob is for.

Identity is derived, never random, so that a crashed pass and its successor name the same things alike. Label keys use
underscores, for whether Vertex's list filters take hyphens in keys could not be verified.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from vertex_launch.model import Kind

DEPLOYMENT = "vertex_launch"
ITEM = "vertex_launch_item"
RUN = "vertex_launch_run"
QUEUE = "vertex_launch_queue"
ATTEMPT = "vertex_launch_attempt"
KIND = "vertex_launch_kind"
KEY = "vertex_launch_key"
"""Set to ``item`` where the item brought an API key of its own, which every later attempt keeps."""
OFFICIAL_RUN = "wandb-run-id"
"""The one label that the official runner sets; kept, so that people's own searches go on working."""

OWN_KEYS = frozenset({DEPLOYMENT, ITEM, RUN, QUEUE, ATTEMPT, KIND, KEY, OFFICIAL_RUN})
"""Keys that a run spec may not set."""

MAX_LENGTH = 63
ENDED_STATES = (
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLED",
    "JOB_STATE_EXPIRED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
)
"""Names of the JobState members after which nothing runs any more; every other state holds a slot, unknown ones too."""


def value(text: str) -> str:
    """Make any text a legal label value: lowercase letters, digits, ``_`` and ``-``, at most 63.

    Text that does not fit as it is gets a hash behind it, so that two texts never share a value.
    """
    legal = re.sub(r"[^a-z0-9_-]", "-", text.lower())
    if legal == text and len(legal) <= MAX_LENGTH:
        return legal
    digest = _hash(text).hex()[:8]
    return f"{legal[: MAX_LENGTH - 9]}-{digest}"


def item_value(base_url: str, entity: str, item: str) -> str:
    """Give the label value that finds an item's jobs: 40 hexadecimal digits, since item ids are case-sensitive."""
    return _hash(base_url.rstrip("/"), entity, item).hex()[:40]


def run_id(base_url: str, entity: str, item: str, deployment: str) -> str:
    """Give the W&B run id of an item that brings none: the same for every job made for the item by this deployment."""
    digest = _hash(base_url.rstrip("/"), entity, item, deployment)
    return "vl" + "".join("0123456789abcdefghijklmnopqrstuvwxyz"[byte % 36] for byte in digest[:12])


def job_labels(
    *, deployment: str, item: str, run: str, queue: str, attempt: int, kind: Kind, own_key: bool
) -> Mapping[str, str]:
    """Give the labels of one job; ``item`` is already an ``item_value``, the others are plain text."""
    return {
        **({KEY: "item"} if own_key else {}),
        DEPLOYMENT: value(deployment),
        ITEM: item,
        RUN: value(run),
        QUEUE: value(queue),
        ATTEMPT: str(attempt),
        KIND: kind.value,
        OFFICIAL_RUN: value(run),
    }


def list_filter(deployment: str, *, active: bool) -> str:
    """Give the ListCustomJobs filter for a deployment's jobs, without parentheses (unverified there).

    With ``active`` the ended states are excluded by name, so that a state not known here still holds its slot.
    """
    terms = [f"labels.{DEPLOYMENT}={value(deployment)}"]
    if active:
        terms += [f'state!="{state}"' for state in ENDED_STATES]
    return " AND ".join(terms)


def _hash(*parts: str) -> bytes:
    """Hash texts; any that a str can hold, so that a malformed name is refused where it belongs and not here."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
