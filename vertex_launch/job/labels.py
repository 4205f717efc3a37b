"""Identity in Google labels: which deployment, item, run, queue and attempt a CustomJob is for.

Identity is derived, never random, so that a crashed pass and its successor use the same names. Label keys use
underscores, because it could not be verified that Vertex AI's list filters accept hyphens in keys.
"""

from __future__ import annotations

import hashlib
import re

from vertex_launch import addresses

DEPLOYMENT = "vertex_launch"
ITEM = "vertex_launch_item"
RUN = "vertex_launch_run"
QUEUE = "vertex_launch_queue"
ATTEMPT = "vertex_launch_attempt"
KIND = "vertex_launch_kind"
KEY = "vertex_launch_key"
"""Set to ``item`` if the item brought an API key of its own, which every later attempt keeps."""
OFFICIAL_RUN = "wandb-run-id"
"""The one label that the official runner sets; kept, so that existing searches continue to work."""

OWN_KEYS = frozenset({DEPLOYMENT, ITEM, RUN, QUEUE, ATTEMPT, KIND, KEY, OFFICIAL_RUN})
"""Keys that a run spec must not set."""

MAX_LENGTH = 63
ENDED_STATES = (
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLED",
    "JOB_STATE_EXPIRED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
)
"""Names of the JobState members in which a job has ended. Every other state holds a slot, including unknown ones."""


def value(text: str) -> str:
    """Return a valid label value for any text: at most 63 lowercase letters, digits, ``_`` and ``-``.

    If the text itself is not valid, a hash is appended, so that two texts never share a value.
    """
    legal = re.sub(r"[^a-z0-9_-]", "-", text.lower())
    if legal == text and len(legal) <= MAX_LENGTH:
        return legal
    digest = _hash(text).hex()[:8]
    return f"{legal[: MAX_LENGTH - 9]}-{digest}"


def item_value(base_url: str, entity: str, item: str) -> str:
    """Return the label value that finds an item's jobs: 40 hexadecimal digits, because item ids are case-sensitive."""
    return _hash(addresses.server(base_url), entity, item).hex()[:40]


def run_id(base_url: str, entity: str, item: str, deployment: str) -> str:
    """Return the W&B run id of an item that brings none: the same for every job of the item in this deployment."""
    digest = _hash(addresses.server(base_url), entity, item, deployment)
    return "vl" + "".join("0123456789abcdefghijklmnopqrstuvwxyz"[byte % 36] for byte in digest[:12])


def is_derived(text: str) -> bool:
    """Return whether a run id has the form of ``run_id``, in any case."""
    return re.fullmatch(r"vl[0-9a-z]{12}", text, re.IGNORECASE | re.ASCII) is not None


def list_filter(deployment: str, *, active: bool) -> str:
    """Return the ListCustomJobs filter for a deployment's jobs, without parentheses (unverified there).

    With ``active`` the ended states are excluded by name, so that an unknown state still holds its slot.
    """
    terms = [f'labels.{DEPLOYMENT}="{value(deployment)}"']
    if active:
        terms += [f'state!="{state}"' for state in ENDED_STATES]
    return " AND ".join(terms)


def _hash(*parts: str) -> bytes:
    """Hash any texts that a str can hold, because malformed names are refused elsewhere."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()
