"""Queries for people, projects, queues and agents. Fields that are attributes of the store's objects need no resolver."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ariadne import ObjectType, QueryType

from local.standins.wandb.context import page
from local.standins.wandb.errors import invalid
from local.standins.wandb.launch import Agent, Item, Queue
from local.standins.wandb.run_spec import ResourceConfig
from local.standins.wandb.runs import Run
from local.standins.wandb.store import Entity, Project, User

if TYPE_CHECKING:
    from local.standins.wandb.context import Info

FILTERS = ("state", "name", "display_name", "group_name", "job_type", "sweep")
"""The fields by which runs can be filtered: each for equality, and several with ``$and``."""

query = QueryType()
user_type = ObjectType("User")
entity_type = ObjectType("Entity")
config_type = ObjectType("DefaultResourceConfig")
project_type = ObjectType("Project")
queue_type = ObjectType("RunQueue")
item_type = ObjectType("RunQueueItem")

TYPES = (query, user_type, entity_type, config_type, project_type, queue_type, item_type)


@query.field("viewer")
def _viewer(_: None, info: Info, **__: object) -> User:
    return info.context.user


@query.field("serverInfo")
def _server_info(_: None, info: Info) -> dict[str, Any]:
    return {
        "cli_version_info": {},
        "features": [],
        "frontend_host": info.context.base_url,
    }


@query.field("entity")
def _entity(_: None, info: Info, name: str | None = None, **__: object) -> Entity | None:
    return info.context.store.entities.get(name or info.context.user.entity)


@query.field("project")
@query.field("model")
def _project(_: None, info: Info, name: str | None = None, entity_name: str | None = None) -> Project | None:
    store, user = info.context.store, info.context.user
    entity = store.entities.get(entity_name or user.entity)
    if entity is None or user.username not in entity.members:
        return None
    return store.projects.get((entity.name, name or ""))


@query.field("launchAgent")
def _launch_agent(_: None, info: Info, id: str) -> Agent:  # noqa: A002 - the schema's name
    agent = info.context.store.launch.agent(id)
    info.context.store.entity_for(info.context.user, agent.entity)
    return agent


@user_type.field("teams")
def _teams(user: User, info: Info) -> dict[str, Any]:
    entities = info.context.store.entities.values()
    return page([entity for entity in entities if entity.is_team and user.username in entity.members])


@entity_type.field("defaultResourceConfig")
def _default_resource_config(entity: Entity, info: Info, id: str) -> ResourceConfig | None:  # noqa: A002
    config = info.context.store.launch.configs.get(id)
    return config if config and config.entity == entity.name else None


@config_type.field("templateVariables")
def _template_variables(config: ResourceConfig, _: Info) -> list[Any]:
    return list(config.template_variables.values())


@project_type.field("entity")
def _entity_of_project(project: Project, info: Info) -> Entity:
    return info.context.store.entities[project.entity_name]


@project_type.field("run")
@project_type.field("bucket")
def _run(project: Project, info: Info, name: str, **_: object) -> Run | None:
    return info.context.store.runs.get(project.entity_name, project.name, name)


@project_type.field("runs")
def _runs(
    project: Project,
    info: Info,
    filters: Mapping[str, Any] | None = None,
    order: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    runs = _found(project, info, filters)
    return page(runs[::-1] if (order or "").startswith("-") else runs, first, after)


@project_type.field("runCount")
def _run_count(project: Project, info: Info, filters: Mapping[str, Any] | None = None) -> int:
    return len(_found(project, info, filters))


@project_type.field("runQueues")
def _run_queues(project: Project, info: Info) -> list[Queue]:
    return info.context.store.launch.queues_of(project.entity_name, project.name)


@project_type.field("runQueue")
def _run_queue(project: Project, info: Info, name: str) -> Queue | None:
    return next((queue for queue in _run_queues(project, info) if queue.name == name), None)


@project_type.field("launchAgents")
def _launch_agents(project: Project, info: Info) -> list[Agent]:
    return info.context.store.launch.agents_of(project.entity_name, project.name)


@queue_type.field("runQueueItem")
def _run_queue_item(queue: Queue, _: Info, id: str) -> Item | None:  # noqa: A002 - the schema's name
    return queue.items.get(id)


@queue_type.field("runQueueItems")
def _run_queue_items(queue: Queue, _: Info, first: int | None = None, after: str | None = None) -> dict[str, Any]:
    return page(list(queue.items.values()), first, after)


@item_type.field("state")
def _state(item: Item, info: Info) -> str:
    return item.state(info.context.store.clock())


def _found(project: Project, info: Info, filters: Mapping[str, Any] | None) -> Sequence[Run]:
    plain = {key: value for key, value in (filters or {}).items() if key != "$and"}
    wanted = [*plain.items(), *(pair for one in (filters or {}).get("$and", ()) for pair in one.items())]
    if unknown := [key for key, value in wanted if key not in FILTERS or not isinstance(value, str)]:
        raise invalid(f"the local W&B finds runs by a text of {', '.join(FILTERS)} only, not by {', '.join(unknown)}")
    runs = info.context.store.runs.of(project.entity_name, project.name)
    return [run for run in runs if all(getattr(run, key) == value for key, value in wanted)]
