"""What is sent to W&B besides what the product sends: a queue, items and runs of the command's own.

The texts are those of W&B's own client (wandb/sdk/launch/api.py and wandb/apis/public). ``Recorder`` is the product's
client; it also keeps what was sent and how W&B answered.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vertex_launch.adapters.wandb_answer import Result, dicts, id_of, mapping_of, text_of
from vertex_launch.adapters.wandb_document import Field, project_field
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.adapters.wandb_server import REGISTRY, WandbServer
from vertex_launch.errors import LaunchError
from vertex_launch.model import VERTEX_RESOURCES, RunId


@dataclass(frozen=True)
class Sent:
    """One request: the fields in its document, what W&B refused of them, and the seconds that it took."""

    fields: tuple[str, ...]
    document: str
    refused: tuple[str, ...]
    seconds: float

    @property
    def shape(self) -> str:
        """The document without the numbers of its aliases."""
        return re.sub(r"_\d+", "", self.document)


class Recorder(WandbQueue):
    """The product's client for W&B, which keeps what it sends."""

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self.sent: list[Sent] = []

    def _post(self, body: Mapping[str, Any], key: str, repeatable: bool) -> dict[str, Any]:
        began, document = self._clock(), str(body["query"])
        refused: list[str] = []
        try:
            answer = super()._post(body, key, repeatable)
            refused += [text_of(error.get("message")) for error in dicts(answer.get("errors"))]
            return answer
        except LaunchError as error:
            refused.append(str(error))
            raise
        finally:
            names = tuple(re.findall(r"\bf\d+: (\w+)", document))
            self.sent.append(Sent(names, document, tuple(refused), self._clock() - began))


@dataclass(frozen=True)
class Shown:
    """An item as W&B shows it to people."""

    state: str
    run: str
    error: str = ""
    warnings: Sequence[str] = field(default=())


class Setup(WandbServer):
    """Makes and removes what the measurements need. All methods raise Unavailable."""

    def create_queue(self, entity: str, name: str) -> str:
        """Create a queue for Vertex AI and return its id."""
        resource = VERTEX_RESOURCES[-1]
        text = (
            "createDefaultResourceConfig(input: { entityName: $entity:String!, resource: $resource:String!, "
            "config: $config:JSONString! }) { defaultResourceConfigID success }"
        )
        config = json.dumps({"resource_args": {resource: {}}})
        made = self._change(
            Field(text, entity=entity, resource=resource, config=config), f"cannot configure queue {name}"
        )
        text = (
            "createRunQueue(input: { entityName: $entity:String!, projectName: $project:String!, queueName: $queue:String!, "
            "access: $access:RunQueueAccessType!, defaultResourceConfigID: $config:ID }) { queueID success }"
        )
        names = {"entity": entity, "project": REGISTRY, "queue": name, "access": "PROJECT"}
        config = id_of(made.get("defaultResourceConfigID"))
        made = self._change(Field(text, config=config, **names), f"cannot create queue {name}")
        if not (queue := id_of(made.get("queueID"))):
            raise made.refusal(f"cannot create queue {name}", "the answer has no id")
        return queue

    def delete_queue(self, queue: str) -> None:
        """Remove a queue with its items."""
        text = "deleteRunQueues(input: { queueIDs: $queues:[ID!]! }) { success }"
        self._change(Field(text, queues=[queue]), f"cannot remove queue {queue}")

    def delete_item(self, queue: str, item: str) -> None:
        """Remove an item from its queue."""
        text = "deleteFromRunQueue(input: { queueID: $queue:ID!, runQueueItemId: $item:ID! }) { success }"
        self._change(Field(text, queue=queue, item=item), f"cannot remove item {item}")

    def push(self, entity: str, queue: str, run_spec: Mapping[str, Any]) -> str:
        """Push an item and return its id."""
        text = (
            "pushToRunQueueByName(input: { entityName: $entity:String!, projectName: $project:String!, "
            "queueName: $queue:String!, runSpec: $spec:JSONString! }) { runQueueItemId }"
        )
        names = {"entity": entity, "project": REGISTRY, "queue": queue, "spec": json.dumps(run_spec)}
        made = self._change(Field(text, **names), f"cannot push to queue {queue}")
        if not (item := id_of(made.get("runQueueItemId"))):
            raise made.refusal(f"cannot push to queue {queue}", "the answer has no id")
        return item

    def show(self, entity: str, queue: str, item: str) -> Shown:
        """Return an item with its messages."""
        text = (
            "project(name: $project:String!, entityName: $entity:String!) { runQueue(name: $queue:String!) { "
            "runQueueItem(id: $item:ID!) { state associatedRunId error { message } warnings { message } } } }"
        )
        answer = self._ask(Field(text, project=REGISTRY, entity=entity, queue=queue, item=item))
        found = mapping_of(mapping_of(answer.get("runQueue")).get("runQueueItem"))
        if not found:
            raise answer.refusal(f"cannot read item {item}")
        return Shown(
            text_of(found.get("state")),
            text_of(found.get("associatedRunId")),
            text_of(mapping_of(found.get("error")).get("message")),
            [text_of(one.get("message")) for one in dicts(found.get("warnings"))],
        )

    def start_run(self, run: RunId) -> str:
        """Create a run without a client and return its storage id."""
        text = (
            "upsertBucket(input: { modelName: $project:String, entityName: $entity:String, name: $id:String, "
            "state: $state:String }) { bucket { id } }"
        )
        field = Field(text, project=run.project, entity=run.entity, id=run.id, state="running")
        made = self._change(field, f"cannot create run {run.id}")
        if not (known := id_of(mapping_of(made.get("bucket")).get("id"))):
            raise made.refusal(f"cannot create run {run.id}", "the answer has no id")
        return known

    def start_sweep(self, entity: str, project: str, queue: str, run: str) -> str:
        """Create a sweep as ``wandb launch-sweep`` does and return its name. W&B pushes its scheduler's item to the queue."""
        text = (
            "upsertSweep(input: { config: $config:String, launchScheduler: $scheduler:JSONString, state: $state:String, "
            "entityName: $entity:String, projectName: $project:String }) { sweep { name } }"
        )
        spec = {"run_id": run, "entity": entity, "project": project, "resource": VERTEX_RESOURCES[-1]}
        scheduler = {"queue": queue, "run_queue_project": REGISTRY, "run_spec": json.dumps(spec)}
        config = json.dumps({"method": "random", "parameters": {"x": {"values": [1]}}})  # YAML has JSON in it
        names = {"entity": entity, "project": project, "scheduler": json.dumps(scheduler), "config": config}
        made = self._change(Field(text, state="PENDING", **names), "cannot create a sweep")
        if not (sweep := id_of(mapping_of(made.get("sweep")).get("name"))):
            raise made.refusal("cannot create a sweep", "the answer has no name")
        return sweep

    def storage_id(self, run: RunId) -> str:
        """Return the storage id of a run, the empty text if it does not exist."""
        answer = self._ask(project_field(run, "run(name: $id:String!) { id }"))
        return id_of(mapping_of(answer.get("run")).get("id"))

    def stop_run(self, known: str) -> None:
        """Ask a run to stop."""
        self._change(Field("stopRun(input: { id: $id:ID! }) { success }", id=known), "cannot stop a run")

    def delete_run(self, run: RunId) -> None:
        """Delete a run if it exists."""
        if known := self.storage_id(run):
            text = "deleteRun(input: { id: $id:ID! }) { clientMutationId }"
            self._change(Field(text, id=known), f"cannot delete run {run.id}")

    def _change(self, field: Field, what: str) -> Result:
        answer = self._request("mutation", [field], repeatable=False)[0]
        if answer.error or answer.value is None:
            raise answer.refusal(what)
        return answer
