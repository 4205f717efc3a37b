"""Queries: from the store to the schema's types."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from ariadne import ObjectType, QueryType, ScalarType
from graphql import GraphQLResolveInfo

from local.faults import Faults
from local.wandb_server.errors import invalid
from local.wandb_server.launch import Agent, Item, Queue
from local.wandb_server.run_spec import ResourceConfig, TemplateVariable
from local.wandb_server.runs import CONSOLE, EVENTS, HISTORY, Run, RunFile
from local.wandb_server.store import Entity, Project, Store, Sweep, User

FILTERS = ("state", "name", "display_name", "group", "job_type")
"""What the runs of a project can be filtered by; each only by its equal."""


@dataclass(frozen=True)
class Context:
    """What the resolvers of one request know: whose request it is, and the server."""

    store: Store
    faults: Faults
    user: User
    base_url: str
    refusals_in_errors: bool


datetime_scalar = ScalarType("DateTime", serializer=lambda at: datetime.fromtimestamp(at, UTC).isoformat())
int64_scalar = ScalarType("Int64", serializer=int, value_parser=int)
json_scalar = ScalarType("JSON")
json_string_scalar = ScalarType(
    "JSONString", serializer=lambda value: value if isinstance(value, str) else json.dumps(value)
)


@json_string_scalar.value_parser
def _json_string(value: object) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"JSONString has to be text, not {type(value).__name__}")  # noqa: TRY004 - GraphQL's contract
    return json.loads(value)


query = QueryType()
user_type = ObjectType("User")
entity_type = ObjectType("Entity")
project_type = ObjectType("Project")
queue_type = ObjectType("RunQueue")
config_type = ObjectType("DefaultResourceConfig")
item_type = ObjectType("RunQueueItem")
agent_type = ObjectType("LaunchAgent")
run_type = ObjectType("Run")


@dataclass(frozen=True)
class FileOfRun:
    """A run's file together with the run, for its address."""

    run: Run
    file: RunFile
    base_url: str

    @property
    def address(self) -> str:
        """Where the file is put to and got from."""
        return (
            f"{self.base_url}/_files/{quote(f'{self.run.entity}/{self.run.project}/{self.run.name}/{self.file.name}')}"
        )


def connection(nodes: Sequence[Any], first: int | None, after: str | None) -> dict[str, Any]:
    """A page of ``nodes`` behind the cursor ``after``."""
    start = int(after) if after else 0
    end = len(nodes) if first is None else min(start + first, len(nodes))
    edges = [{"cursor": str(number), "node": node} for number, node in enumerate(nodes[start:end], start=start + 1)]
    page = {
        "end_cursor": edges[-1]["cursor"] if edges else None,
        "start_cursor": edges[0]["cursor"] if edges else None,
        "has_next_page": end < len(nodes),
        "has_previous_page": start > 0,
    }
    return {"edges": edges, "page_info": page, "total_count": len(nodes)}


@query.field("viewer")
def _viewer(_: None, info: GraphQLResolveInfo, **__: object) -> User:
    return _context(info).user


@query.field("serverInfo")
def _server_info(_: None, info: GraphQLResolveInfo) -> dict[str, Any]:
    return {
        "cli_version_info": {},
        "exposes_explicit_run_queue_ack_path": True,
        "features": [],
        "frontend_host": _context(info).base_url,
    }


@query.field("entity")
def _entity(_: None, info: GraphQLResolveInfo, name: str | None = None, **__: object) -> Entity | None:
    context = _context(info)
    return context.store.entities.get(name or context.user.entity)


@query.field("project")
@query.field("model")
def _project(
    _: None, info: GraphQLResolveInfo, name: str | None = None, entity_name: str | None = None
) -> Project | None:
    context = _context(info)
    entity = context.store.entities.get(entity_name or context.user.entity)
    if entity is None or context.user.username not in entity.members:
        return None
    return context.store.projects.get((entity.name, name or ""))


@query.field("models")
def _projects(
    _: None,
    info: GraphQLResolveInfo,
    entity_name: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    context = _context(info)
    entity = context.store.entity_for(context.user, entity_name)
    return connection([p for p in context.store.projects.values() if p.entity == entity], first, after)


@query.field("launchAgent")
def _launch_agent(_: None, info: GraphQLResolveInfo, id: str) -> Agent:  # noqa: A002 - the schema's name
    context = _context(info)
    agent = context.store.launch.agent(id)
    context.store.entity_for(context.user, agent.entity)
    return agent


@user_type.field("id")
def _user_id(user: User, _: GraphQLResolveInfo) -> str:
    return str(user.number)


@user_type.field("name")
def _user_name(user: User, _: GraphQLResolveInfo) -> str:
    return user.username


@user_type.field("flags")
def _user_flags(_: User, __: GraphQLResolveInfo) -> str:
    return "{}"


@user_type.field("email")
def _user_email(user: User, _: GraphQLResolveInfo) -> str:
    return f"{user.username}@localhost"


@user_type.field("teams")
def _user_teams(user: User, info: GraphQLResolveInfo) -> dict[str, Any]:
    entities = _context(info).store.entities.values()
    return connection([e for e in entities if e.is_team and user.username in e.members], None, None)


@entity_type.field("id")
def _entity_id(entity: Entity, _: GraphQLResolveInfo) -> str:
    return str(entity.number)


@entity_type.field("available")
def _entity_available(_: Entity, __: GraphQLResolveInfo) -> bool:
    return False  # the name is taken


@entity_type.field("codeSavingEnabled")
@entity_type.field("xxhashDigestsEnabled")
def _off(_: Entity, __: GraphQLResolveInfo) -> bool:
    return False


@entity_type.field("defaultResourceConfig")
def _default_resource_config(entity: Entity, info: GraphQLResolveInfo, id: str) -> ResourceConfig | None:  # noqa: A002
    config = _context(info).store.launch.configs.get(id)
    return config if config and config.entity == entity.name else None


@config_type.field("templateVariables")
def _template_variables(config: ResourceConfig, _: GraphQLResolveInfo) -> Iterable[TemplateVariable]:
    return config.template_variables.values()


@project_type.field("id")
@project_type.field("internalId")
def _project_id(project: Project, _: GraphQLResolveInfo) -> str:
    return str(project.number)


@project_type.field("entityName")
def _project_entity_name(project: Project, _: GraphQLResolveInfo) -> str:
    return project.entity


@project_type.field("entity")
def _project_entity(project: Project, info: GraphQLResolveInfo) -> Entity:
    return _context(info).store.entity(project.entity)


@project_type.field("isBenchmark")
@project_type.field("readOnly")
@run_type.field("readOnly")
def _no(_: Project | Run, __: GraphQLResolveInfo) -> bool:
    return False


@project_type.field("run")
@project_type.field("bucket")
def _project_run(project: Project, info: GraphQLResolveInfo, name: str, **_: object) -> Run | None:
    return _context(info).store.runs.get(project.entity, project.name, name)


@project_type.field("runs")
def _project_runs(
    project: Project,
    info: GraphQLResolveInfo,
    filters: Mapping[str, Any] | None = None,
    names: Sequence[str] | None = None,
    order: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    runs = _filtered(_context(info).store.runs.of(project.entity, project.name), filters or {})
    if names:
        runs = [run for run in runs if run.name in names]
    if (order or "").startswith("-"):
        runs.reverse()
    return connection(runs, first, after)


@project_type.field("runCount")
def _project_run_count(project: Project, info: GraphQLResolveInfo, filters: Mapping[str, Any] | None = None) -> int:
    return len(_filtered(_context(info).store.runs.of(project.entity, project.name), filters or {}))


@project_type.field("sweep")
def _project_sweep(project: Project, info: GraphQLResolveInfo, sweep_name: str) -> Sweep | None:
    return _context(info).store.sweeps.get((project.entity, project.name, sweep_name))


@project_type.field("runQueues")
def _project_queues(project: Project, info: GraphQLResolveInfo) -> list[Queue]:
    return _context(info).store.launch.queues_of(project.entity, project.name)


@project_type.field("runQueue")
def _project_queue(project: Project, info: GraphQLResolveInfo, name: str) -> Queue | None:
    queues = _context(info).store.launch.queues_of(project.entity, project.name)
    return next((queue for queue in queues if queue.name == name), None)


@project_type.field("launchAgents")
def _project_agents(project: Project, info: GraphQLResolveInfo) -> list[Agent]:
    return _context(info).store.launch.agents_of(project.entity, project.name)


@queue_type.field("runQueueItem")
def _queue_item(queue: Queue, _: GraphQLResolveInfo, id: str) -> Item | None:  # noqa: A002 - the schema's name
    return queue.items.get(id)


@queue_type.field("runQueueItems")
def _queue_items(
    queue: Queue, _: GraphQLResolveInfo, first: int | None = None, after: str | None = None
) -> dict[str, Any]:
    return connection(list(queue.items.values()), first, after)


@item_type.field("state")
def _item_state(item: Item, info: GraphQLResolveInfo) -> str:
    return item.state(_context(info).store.clock())


@run_type.field("projectId")
def _run_project_id(run: Run, info: GraphQLResolveInfo) -> str:
    return str(_run_project(run, info).number)


@run_type.field("project")
def _run_project(run: Run, info: GraphQLResolveInfo) -> Project:
    return _context(info).store.projects[run.entity, run.project]


@run_type.field("exitcode")
def _run_exit_code(run: Run, _: GraphQLResolveInfo) -> int | None:
    return run.exit_code


@run_type.field("wandbConfig")
def _run_wandb_config(run: Run, _: GraphQLResolveInfo, keys: Sequence[str] | None = None) -> dict[str, Any]:
    internal = run.config.get("_wandb", {}).get("value", {})
    return {key: value for key, value in internal.items() if keys is None or key in keys}


@run_type.field("summaryMetrics")
def _run_summary(run: Run, _: GraphQLResolveInfo) -> dict[str, Any]:
    return run.summary


@run_type.field("systemMetrics")
def _run_system_metrics(run: Run, _: GraphQLResolveInfo) -> str:
    return run.lines(EVENTS)[-1] if run.lines(EVENTS) else "{}"


@run_type.field("history")
def _run_history(
    run: Run,
    _: GraphQLResolveInfo,
    min_step: int | None = None,
    max_step: int | None = None,
    samples: int | None = None,
) -> list[str]:
    rows = [
        row
        for row in run.history()
        if row.get("_step", 0) >= (min_step or 0) and (max_step is None or row.get("_step", 0) < max_step)
    ]
    return [json.dumps(row) for row in _sampled(rows, samples)]


@run_type.field("sampledHistory")
def _run_sampled_history(run: Run, _: GraphQLResolveInfo, specs: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [_spec_rows(run, spec) for spec in specs]


@run_type.field("historyKeys")
def _run_history_keys(run: Run, _: GraphQLResolveInfo) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    rows = run.history()
    for row in rows:
        for key, value in row.items():
            counts = keys.setdefault(key, {"typeCounts": [{"type": _type_name(value), "count": 0}]})["typeCounts"]
            counts[0]["count"] += 1
    return {"keys": keys, "lastStep": rows[-1].get("_step", 0) if rows else 0, "sets": []}


@run_type.field("historyLineCount")
def _run_history_line_count(run: Run, _: GraphQLResolveInfo) -> int:
    return len(run.lines(HISTORY))


@run_type.field("historyTail")
def _run_history_tail(run: Run, _: GraphQLResolveInfo) -> list[str]:
    return run.lines(HISTORY)[-1:]


@run_type.field("events")
def _run_events(run: Run, _: GraphQLResolveInfo, samples: int | None = None) -> list[str]:
    return _sampled(run.lines(EVENTS), samples)


@run_type.field("eventsLineCount")
def _run_events_line_count(run: Run, _: GraphQLResolveInfo) -> int:
    return len(run.lines(EVENTS))


@run_type.field("eventsTail")
def _run_events_tail(run: Run, _: GraphQLResolveInfo) -> list[str]:
    return run.lines(EVENTS)[-1:]


@run_type.field("logLineCount")
def _run_log_line_count(run: Run, _: GraphQLResolveInfo) -> int:
    return len(run.lines(CONSOLE))


@run_type.field("fileCount")
def _run_file_count(run: Run, _: GraphQLResolveInfo) -> int:
    return len(run.files)


@run_type.field("files")
def _run_files(
    run: Run,
    info: GraphQLResolveInfo,
    names: Sequence[str] | None = None,
    pattern: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    if pattern:
        raise invalid("the local W&B does not look for files by pattern; name them")
    base_url = _context(info).base_url
    files = [file for file in run.files.values() if not names or file.name in names]
    return connection([file_node(FileOfRun(run, file, base_url)) for file in files], first, after)


@run_type.field("user")
def _run_user(run: Run, info: GraphQLResolveInfo) -> User:
    return _context(info).store.users[run.username]


def _run_field(name: str) -> None:
    @run_type.field(name)
    def resolve(run: Run, info: GraphQLResolveInfo) -> Any:
        return run.fields.get({"group": "group_name", "jobType": "job_type", "sweepName": "sweep"}.get(name, name))


for _name in ("commit", "description", "group", "host", "jobType", "notes", "sweepName", "tags"):
    _run_field(_name)


def file_node(of: FileOfRun) -> dict[str, Any]:
    """The schema's File; one that has not been uploaded has no size."""
    content = of.file.content or b""
    return {
        "id": f"{of.run.id}/{of.file.name}",
        "name": of.file.name,
        "url": of.address,
        "direct_url": of.address,
        "upload_url": of.address,
        "upload_headers": [],
        "size_bytes": len(content),
        "mimetype": mimetypes.guess_type(of.file.name)[0],
        "md_5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "updated_at": of.file.updated_at,
    }


def _context(info: GraphQLResolveInfo) -> Context:
    context = info.context
    assert isinstance(context, Context)
    return context


def _filtered(runs: Sequence[Run], filters: Mapping[str, Any]) -> list[Run]:
    if unknown := [key for key, value in filters.items() if key not in FILTERS or not isinstance(value, str)]:
        raise invalid(f"the local W&B filters runs by a text of {', '.join(FILTERS)} only, not by {', '.join(unknown)}")
    return [run for run in runs if all(_filter_value(run, key) == value for key, value in filters.items())]


def _filter_value(run: Run, key: str) -> Any:
    fields = {"group": run.fields.get("group_name"), "job_type": run.fields.get("job_type")}
    return fields[key] if key in fields else getattr(run, key)


def _spec_rows(run: Run, spec: Mapping[str, Any]) -> list[dict[str, Any]]:
    keys = spec.get("keys") or []
    rows = [{key: row[key] for key in keys} for row in run.history() if all(key in row for key in keys)]
    return _sampled(rows if keys else run.history(), spec.get("samples"))


def _sampled(rows: Sequence[Any], samples: int | None) -> list[Any]:
    if samples is None or samples >= len(rows):
        return list(rows)
    return [rows[number * len(rows) // samples] for number in range(samples)]


def _type_name(value: object) -> str:
    if isinstance(value, bool | int | float):
        return "number"
    return "string" if isinstance(value, str) else "map"
