"""Mutations of queues, items, agents, runs and their files. Each is atomic; those of one request run in order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from local.standins.wandb.context import Context, Raw
from local.standins.wandb.errors import conflict, not_found
from local.standins.wandb.launch import NOT_ELIGIBLE, Item, ItemError, Queue
from local.standins.wandb.mutation import Mutations, Payload, run_by_id, run_called
from local.standins.wandb.run_fields import file_node

mutation = Mutations()

DEFAULT_PROJECT = "uncategorized"
"""The project of runs that do not name one."""

RUN_DETAILS = ("display_name", "description", "notes", "group_name", "job_type", "sweep", "tags", "host", "commit")
"""The fields that ``upsertBucket`` copies unchanged."""


@mutation.performs("createDefaultResourceConfig")
def _create_default_resource_config(
    context: Context,
    entity_name: str,
    resource: str,
    config: Mapping[str, Any],
    template_variables: Mapping[str, Any] | None = None,
    project_name: str | None = None,
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    made = context.store.launch.create_config(entity, resource, config, template_variables)
    return {"success": True, "default_resource_config_id": made.id}


@mutation.performs("createRunQueue")
def _create_run_queue(
    context: Context,
    entity_name: str,
    project_name: str,
    queue_name: str,
    access: str,
    prioritization_mode: str | None = None,
    default_resource_config_id: str | None = None,
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    context.store.project(entity, project_name)
    queue = context.store.launch.create_queue(
        entity,
        queue_name,
        project=project_name,
        access=access,
        prioritization_mode=prioritization_mode or "DISABLED",
        config_id=default_resource_config_id or None,
    )
    return {"success": True, "queue_id": queue.id}


@mutation.performs("upsertRunQueue")
def _upsert_run_queue(
    context: Context,
    entity_name: str,
    project_name: str,
    queue_name: str,
    resource_type: str,
    resource_config: Mapping[str, Any],
    template_variables: Mapping[str, Any] | None = None,
    prioritization_mode: str | None = None,
    external_links: Mapping[str, Any] | None = None,
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    context.store.project(entity, project_name)
    launch = context.store.launch
    launch.upsert_queue(
        entity,
        queue_name,
        launch.create_config(entity, resource_type, resource_config, template_variables),
        project=project_name,
        prioritization_mode=prioritization_mode,
        external_links=external_links,
    )
    return {"success": True, "config_schema_validation_errors": []}


@mutation.performs("deleteRunQueues")
def _delete_run_queues(context: Context, queue_ids: Sequence[str]) -> Payload:
    for queue_id in queue_ids:
        _queue(context, queue_id)
    context.store.launch.delete_queues(queue_ids)
    return {"success": True}


@mutation.performs("deleteFromRunQueue")
def _delete_from_run_queue(context: Context, queue_id: str, run_queue_item_id: str) -> Payload:
    _queue(context, queue_id)
    context.store.launch.delete_item(queue_id, run_queue_item_id)
    return {"success": True}


@mutation.performs("pushToRunQueue")
def _push_to_run_queue(context: Context, queue_id: str, **pushed: Any) -> Payload:
    return _push(context, _queue(context, queue_id), **pushed)


@mutation.performs("pushToRunQueueByName")
def _push_to_run_queue_by_name(
    context: Context, entity_name: str, project_name: str, queue_name: str, **pushed: Any
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    return _push(context, context.store.launch.queue(entity, project_name, queue_name), **pushed)


@mutation.performs("popFromRunQueue")
def _pop_from_run_queue(
    context: Context, entity_name: str, project_name: str, queue_name: str, launch_agent_id: str | None = None
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    queue = context.store.launch.queue(entity, project_name, queue_name)
    item = context.store.launch.pop(queue, launch_agent_id)
    if item is None:
        return None
    return {"run_queue_item_id": item.id, "run_spec": item.run_spec if item.raw is None else Raw(item.raw)}


@mutation.performs("ackRunQueueItem")
def _ack_run_queue_item(context: Context, run_queue_item_id: str, run_name: str) -> Payload:
    success = context.store.launch.ack(_item(context, run_queue_item_id), run_name)
    if not success and context.acks_refused_in_errors:
        raise conflict(NOT_ELIGIBLE)
    return {"success": success}


@mutation.performs("failRunQueueItem")
def _fail_run_queue_item(context: Context, run_queue_item_id: str, **error: Any) -> Payload:
    context.store.launch.fail(_item(context, run_queue_item_id), _item_error(**error))
    return {"success": True}


@mutation.performs("updateRunQueueItemWarning")
def _update_run_queue_item_warning(context: Context, run_queue_item_id: str, **warning: Any) -> Payload:
    context.store.launch.warn(_item(context, run_queue_item_id), _item_error(**warning))
    return {"success": True}


@mutation.performs("createLaunchAgent")
def _create_launch_agent(
    context: Context,
    entity_name: str,
    project_name: str,
    run_queues: Sequence[str],
    hostname: str,
    agent_config: Any = None,
    version: str | None = None,
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    context.store.project(entity, project_name)
    agent = context.store.launch.create_agent(
        entity, hostname, run_queues, project=project_name, agent_config=agent_config, version=version
    )
    return {"launch_agent_id": agent.id, "success": True}


@mutation.performs("updateLaunchAgent")
def _update_launch_agent(
    context: Context,
    launch_agent_id: str,
    agent_status: str | None = None,
    stop_polling: bool | None = None,
    run_queues: Sequence[str] | None = None,
) -> Payload:
    agent = context.store.launch.agent(launch_agent_id)
    context.store.entity_for(context.user, agent.entity)
    agent.heartbeat_at = context.store.clock()
    agent.agent_status = agent_status or agent.agent_status
    if stop_polling is not None:
        agent.stop_polling = stop_polling
    if run_queues is not None:
        agent.run_queues = list(run_queues)
    return {"success": True}


@mutation.performs("upsertModel")
def _upsert_model(context: Context, name: str | None = None, entity_name: str | None = None, **_: object) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    project, inserted = context.store.project(entity, name or DEFAULT_PROJECT)
    return {"project": project, "model": project, "inserted": inserted}


@mutation.performs("upsertBucket")
def _upsert_bucket(context: Context, **given: Any) -> Payload:
    store = context.store
    known = run_by_id(context, given["id"]) if given.get("id") else None
    entity = known.entity if known else store.entity_for(context.user, given.get("entity_name"))
    project = known.project if known else store.project(entity, given.get("model_name") or DEFAULT_PROJECT)[0].name
    run, inserted = store.runs.upsert(
        entity,
        project,
        known.name if known else given.get("name"),
        username=context.user.username,
        alive=known is None,
        state=given.get("state") or (known.state if known else "running"),
        config=given.get("config"),
        summary=given.get("summary_metrics"),
        **{key: given[key] for key in RUN_DETAILS if key in given},
    )
    return {"bucket": run, "inserted": inserted}


@mutation.performs("createRunFiles")
def _create_run_files(
    context: Context, entity_name: str, project_name: str, run_name: str, files: Sequence[str]
) -> Payload:
    run = run_called(context, entity_name, project_name, run_name)
    context.store.runs.register_files(run, files)
    nodes = [file_node(run, run.files[name], context.base_url) for name in files]
    return {"run_id": run.id, "upload_headers": [], "files": nodes}


@mutation.performs("markRunFilesUploaded")
def _mark_run_files_uploaded(
    context: Context, entity_name: str, project_name: str, run_name: str, files: Sequence[str]
) -> Payload:
    run = run_called(context, entity_name, project_name, run_name)
    return {"success": all(name in run.files for name in files)}


@mutation.performs("stopRun")
def _stop_run(context: Context, id: str) -> Payload:  # noqa: A002 - the schema's name
    context.store.runs.stop(run_by_id(context, id))
    return {"success": True}


@mutation.performs("deleteRun")
def _delete_run(context: Context, id: str) -> Payload:  # noqa: A002 - the schema's name
    context.store.runs.delete(run_by_id(context, id))
    return {}


def _push(
    context: Context,
    queue: Queue,
    run_spec: Mapping[str, Any],
    priority: int | None = None,
    template_variable_values: Mapping[str, Any] | None = None,
) -> Payload:
    item = context.store.launch.push_to(
        queue,
        run_spec,
        priority=priority,
        template_variables=template_variable_values,
        author=context.user.username,
    )
    return {"run_queue_item_id": item.id, "run_spec": json.dumps(item.run_spec)}


def _queue(context: Context, id_: str) -> Queue:
    queue = context.store.queues.get(id_)
    if queue is None:
        raise not_found(f'run queue "{id_}"')
    context.store.entity_for(context.user, queue.entity)
    return queue


def _item(context: Context, id_: str) -> Item:
    item = context.store.launch.item(id_)
    _queue(context, item.queue_id)
    return item


def _item_error(message: str, stage: str, file_paths: Sequence[str] | None = None) -> ItemError:
    return ItemError(message, stage, list(file_paths or ()))
