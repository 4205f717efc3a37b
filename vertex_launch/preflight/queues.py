"""The checks of W&B: the entity, each queue, and the job that a queue configuration leads to."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected, Unavailable
from vertex_launch.job.build import build
from vertex_launch.job.queue_config import IMAGE, QueueConfig
from vertex_launch.job.request import JobRequest
from vertex_launch.job.run_spec import parse
from vertex_launch.log import Redactor
from vertex_launch.model import VERTEX_RESOURCES, Item
from vertex_launch.preflight.lines import Line, fail, no_answer, ok, skip, warn
from vertex_launch.settings.config import Settings


class Queues:
    """The queues and their configurations.

    ``built`` holds the jobs that they lead to, ``unknown`` the queues for which that is not known.
    """

    def __init__(self, settings: Settings, wandb: WandbQueue | None, wrong_regions: Collection[str]) -> None:
        self._settings = settings
        self._wandb = wandb
        self._wrong_regions = wrong_regions
        self.built: list[JobRequest] = []
        self.unknown = list(settings.queues)

    def lines(self) -> list[Line]:
        """Check the key's owner, the entity and each queue."""
        what, settings, wandb = "W&B", self._settings, self._wandb
        if wandb is None:
            return [skip(what, "needs Google credentials")]
        try:
            user, default = wandb.viewer()
        except Unavailable as error:
            line = no_answer(what, error)
            if line.code is Code.CHECK_CONNECTION:
                address = f"{settings.base_url} ({settings.where('base_url')})"
                line = replace(line, remedy=f"Check the network, the proxy and the address {address}")
            return [line, skip("queues and their configurations", "need W&B")]
        user, entity = user or "an unnamed user", settings.entity or default
        if not entity:
            found = f"the API key of {user} has no default entity"
            line = fail(Code.CHECK_ENTITY, what, found, f"Set {settings.where('entity')}")
            return [line, skip("queues and their configurations", "need an entity")]
        whose = settings.where("entity") if settings.entity else "the key's default entity"
        found = f"{settings.base_url} accepts the key of {user}; the queues belong to {entity} ({whose})"
        return [ok(what, found), *self._queues(wandb, entity, whose)]

    def _queues(self, wandb: WandbQueue, entity: str, whose: str) -> Iterator[Line]:
        try:
            names = wandb.queue_names(entity)
            there = [name for name in self._settings.queues if name in names]
            configs = wandb.queue_configs(entity, there)
        except Unavailable as error:
            line = no_answer("queues", error)
            if line.code is Code.WANDB_ENTITY:
                remedy = f"{'Correct' if self._settings.entity else 'Set'} {self._settings.where('entity')}"
                line = replace(line, remedy=remedy)
            yield line
            return
        for name in self._settings.queues:
            what = f"queue {name}"
            if name not in there:
                found = f"entity {entity} has no queue with this name (it has: {', '.join(sorted(names)) or 'none'})"
                remedy = f"Create it in the W&B app with the resource gcp-vertex, or correct {self._settings.where('queues')}"
                yield fail(Code.CHECK_QUEUE, what, found, remedy)
            elif name not in configs:
                found = "it exists, but W&B does not show its config, so its jobs could not be checked"
                yield warn(Code.CHECK_CONFIG, what, found, "Grant the key's owner access to the queue")
            else:
                yield from self._queue(name, entity, configs[name])

    def _queue(self, name: str, entity: str, config: QueueConfig | None) -> Iterator[Line]:
        what = f"queue {name}"
        if config is None:
            found = "it exists but has no config, so each item must bring its own resource and resource args"
            yield warn(Code.CHECK_CONFIG, what, found, "Set the queue's resource to gcp-vertex in the W&B app")
        elif config.resource not in VERTEX_RESOURCES:
            found = f"its resource is {config.resource or 'not named'}, and only Vertex AI queues are served"
            remedy = f"Use a queue with the resource gcp-vertex, or remove it from {self._settings.where('queues')}"
            yield fail(Code.CHECK_QUEUE, what, found, remedy)
        else:
            yield ok(what, f"it exists and is a Vertex AI queue ({config.resource})")
            yield self._config(name, entity, config)

    def _config(self, name: str, entity: str, config: QueueConfig) -> Line:
        """Build the job of an item that brings only an image, and check it against the policy."""
        what = f"config of queue {name}"
        if not any(config.resource_args.values()):
            return warn(Code.CHECK_CONFIG, what, "it is empty, so each item must bring all of its resource args")
        try:
            request = self._request(name, entity, config.item())
        except ItemRejected as error:
            return self._rejected(what, name, entity, config, error)
        account = request.custom_job.job_spec.service_account or "Vertex AI's own agent"
        found = f"it builds a CustomJob that the policy allows, in {request.region} as {account}"
        if values := ", ".join(f"{variable} = {value}" for variable, value in config.likely_values().items()):
            found += f", with {values}"
        if request.warnings:
            return warn(Code.CHECK_ITEM, what, f"{found}, but: {' '.join(map(str, request.warnings))}")
        return ok(what, found)

    def _rejected(self, what: str, name: str, entity: str, config: QueueConfig, error: ItemRejected) -> Line:
        if self._wrong_regions:
            return skip(what, f"needs a region that exists, which {', '.join(self._wrong_regions)} does not")
        found = f"an item that brings only an image would fail: {error.message.text}"
        if open_ones := ", ".join(config.open_variables()):
            remedy = "Set a default or an enum for them to have them tested, or check what items write there"
            return warn(Code.CHECK_ITEM, what, f"{found} (template variables without a value: {open_ones})", remedy)
        try:
            if self._settings.api_key_delivery == "secret":  # which may require an entry point
                self._request(name, entity, {**config.item(), "overrides": {"entry_point": ["python", "train.py"]}})
                remedy = "Items with an entry point, such as code and git jobs, can be built"
                return warn(Code.CHECK_ITEM, what, found, remedy)
        except ItemRejected:
            pass  # for the reason that is reported anyway
        return fail(error.message.code, what, found, "Correct the queue configuration in the W&B app, or the policy")

    def _request(self, queue: str, entity: str, run_spec: Mapping[str, Any]) -> JobRequest:
        """Build the job of an item, check it against the policy, and remember it. Raises ItemRejected."""
        item, now = Item("preflight", queue, run_spec), datetime.now(UTC)
        settings, policy = self._settings, self._settings.policy
        if policy.images:  # allow the placeholder for the items' own images
            policy = policy.model_copy(update={"images": (*policy.images, IMAGE)})
            settings = settings.model_copy(update={"policy": policy})
        spec = parse(item, settings, entity)
        request = build(item, spec, settings, entity=entity, api_key=Redactor.MARK, now=now)
        self.built.append(request)
        self.unknown.remove(queue)
        return request
