"""The assumptions about W&B, Vertex AI and the deployment that are measured: data, in the order of the table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Group(StrEnum):
    """What an assumption is about; ``--only`` takes these names."""

    WANDB = "wandb"
    VERTEX = "vertex"
    DEPLOYMENT = "deployment"


@dataclass(frozen=True)
class Assumption:
    """One assumption: its name, what is ``assumed``, how that is measured, and where it matters.

    ``setting`` is the one to change if it is wrong, empty if there is none. ``place`` is the page that relies on it.
    """

    name: str
    group: Group
    assumed: str
    how: str
    place: str
    setting: str = ""


_CLAIM, _OPEN = (f"docs/how-it-works.md#{anchor}" for anchor in ("a-pass", "what-could-not-be-verified"))

ASSUMPTIONS = (
    Assumption(
        "wandb-documents",
        Group.WANDB,
        "W&B accepts every document that a pass sends",
        "each question and change of the product is sent once, and the answers are searched for refusals",
        "docs/decisions/plain-graphql.md",
    ),
    Assumption(
        "wandb-batches",
        Group.WANDB,
        "one request may have many operations",
        "eight pops in one request",
        _OPEN,
        "batches",
    ),
    Assumption(
        "wandb-agent-queues",
        Group.WANDB,
        "an agent is found by its id, with its queues' ids",
        "an agent is created for a queue and looked up",
        _OPEN,
    ),
    Assumption(
        "wandb-lease",
        Group.WANDB,
        "an un-acked item comes back after about a minute",
        "an item is popped, and looked up each second until it is PENDING",
        _OPEN,
        "lease",
    ),
    Assumption(
        "wandb-late-ack",
        Group.WANDB,
        "an ack after the lease is refused or claims the item",
        "the item whose lease has ended is acked and looked up",
        _CLAIM,
    ),
    Assumption(
        "wandb-refused-ack",
        Group.WANDB,
        "an ack of an item that is claimed is refused",
        "a claimed item is acked for another run",
        _CLAIM,
    ),
    Assumption(
        "wandb-warning",
        Group.WANDB,
        "a warning on a leased item is shown",
        "a leased item gets a warning and is read again",
        "docs/decisions/create-before-ack.md",
    ),
    Assumption(
        "wandb-failure",
        Group.WANDB,
        "a claimed item can fail, and its reason is shown",
        "a claimed item is failed and read again",
        _OPEN,
    ),
    Assumption(
        "wandb-message-length",
        Group.WANDB,
        "messages may have 5,000 characters",
        "a warning of 5,000 characters is sent and read again",
        "docs/how-it-works.md#a-jobs-end",
    ),
    Assumption(
        "wandb-heartbeat",
        Group.WANDB,
        "a run's heartbeat stands still without its client",
        "a run without a client is read twice, 20 s apart",
        _OPEN,
    ),
    Assumption(
        "wandb-stop",
        Group.WANDB,
        "a stop of a run is shown within a minute",
        "a run is stopped and looked up each second",
        "docs/how-it-works.md#stopped-runs",
        "stopped_run_timeout",
    ),
    Assumption(
        "vertex-create",
        Group.VERTEX,
        "Vertex AI accepts the jobs that are built",
        "a job is created on the smallest machine",
        "docs/jobs.md",
        "timeouts.create",
    ),
    Assumption(
        "vertex-get",
        Group.VERTEX,
        "a job can be read as soon as it is created",
        "the job is looked up at once",
        _OPEN,
    ),
    Assumption(
        "vertex-labels",
        Group.VERTEX,
        "a job keeps its labels and environment",
        "the job is read back as a pass reads it",
        _OPEN,
    ),
    Assumption(
        "vertex-list",
        Group.VERTEX,
        "lists show a job within two minutes of its create",
        "the deployment's jobs are listed each second until they show it",
        _OPEN,
        "timeouts.intent_grace",
    ),
    Assumption(
        "vertex-cancel",
        Group.VERTEX,
        "a cancelled job becomes CANCELLED",
        "a job is cancelled and looked up until it has ended",
        "docs/how-it-works.md#stopped-runs",
    ),
    Assumption(
        "vertex-account",
        Group.VERTEX,
        "a create with a wrong account is refused as such",
        "a job is created as an account that does not exist",
        "docs/troubleshooting.md#vl-create-permission",
    ),
    Assumption(
        "vertex-exit",
        Group.VERTEX,
        "the error of a failed program has its exit status",
        "a program exits with status 3",
        _OPEN,
    ),
    Assumption(
        "vertex-memory",
        Group.VERTEX,
        "the error of a full memory says so",
        "a program takes memory until it is killed",
        _OPEN,
    ),
    Assumption(
        "vertex-image",
        Group.VERTEX,
        "the error of a missing image says so",
        "a job names an image that does not exist",
        _OPEN,
    ),
    Assumption(
        "vertex-error-delay",
        Group.VERTEX,
        "a job's error appears within 90 s of its end",
        "the failed jobs are looked up until they have an error",
        _OPEN,
        "timeouts.settle_grace",
    ),
    Assumption(
        "vertex-run-delay",
        Group.VERTEX,
        "its run has its last state within 90 s of its end",
        "a job with a run ends, and the run is looked up until it is finished",
        _OPEN,
        "timeouts.settle_grace",
    ),
    Assumption(
        "deployment-tick",
        Group.DEPLOYMENT,
        "a tick reaches dispatch",
        "a tick is published, and the record is read until a pass has locked it",
        "docs/operations.md#no-pass",
    ),
    Assumption(
        "deployment-item",
        Group.DEPLOYMENT,
        "an item starts within a tick",
        "an item is pushed to the deployment's first queue and looked up until it is claimed",
        "docs/operations.md#what-runs-and-what-waits",
    ),
    Assumption(
        "deployment-log-entry",
        Group.DEPLOYMENT,
        "the end of a job reaches job_state",
        "subscriptions of its own show the log entry of the end, and the tick that job_state publishes",
        "docs/operations.md#what-runs-and-what-waits",
    ),
    Assumption(
        "deployment-next-pass",
        Group.DEPLOYMENT,
        "a pass follows a job's end within seconds",
        "the record is read from the end on until a pass has locked it",
        "docs/operations.md#what-runs-and-what-waits",
    ),
    Assumption(
        "deployment-caller",
        Group.DEPLOYMENT,
        "dispatch_now answers its callers",
        "a dry run is requested with an identity token",
        "docs/http-api.md",
    ),
    Assumption(
        "deployment-refusal",
        Group.DEPLOYMENT,
        "dispatch_now refuses others",
        "a dry run is requested without a token, and with a wrong one",
        "docs/security.md",
    ),
    Assumption(
        "deployment-dead-letter",
        Group.DEPLOYMENT,
        "a message that always fails becomes a dead letter",
        "a message of its own is refused five times",
        "docs/decisions/push-subscriptions.md",
    ),
    Assumption(
        "deployment-metrics",
        Group.DEPLOYMENT,
        "each metric of an alert has data",
        "the metrics of the last hour are read",
        "docs/operations.md#alerts",
    ),
)
"""All assumptions. Their names are stable: ``--only`` and the JSON use them."""

BY_NAME = {one.name: one for one in ASSUMPTIONS}
