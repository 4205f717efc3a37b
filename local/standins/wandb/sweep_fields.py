"""Sweeps: their fields, the mutations that create and change them, and the heartbeats of their agents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import yaml
from ariadne import ObjectType

from local.standins.wandb import sweep_search
from local.standins.wandb.context import Context, page, resolve_with
from local.standins.wandb.errors import invalid
from local.standins.wandb.launch import LAUNCH_PROJECT
from local.standins.wandb.mutation import Mutations, Payload
from local.standins.wandb.store import Project
from local.standins.wandb.sweeps import SWEEP_STATES, Sweep

if TYPE_CHECKING:
    from local.standins.wandb.context import Info

SWEEP_NAME = "WANDB_SWEEP_ID"
"""The placeholder for the sweep's name in the run spec of a scheduler that is launched with it."""

project_type = ObjectType("Project")
sweep_type = ObjectType("Sweep")

mutation = Mutations()

TYPES = (project_type, sweep_type, mutation)


@project_type.field("sweep")
def _sweep(project: Project, info: Info, sweep_name: str) -> Sweep | None:
    return info.context.store.sweeps.get((project.entity_name, project.name, sweep_name))


_OF_SWEEP: Mapping[str, Callable[[Sweep, Any], Any]] = {
    "project": lambda sweep, info: info.context.store.projects[sweep.entity, sweep.project],
    "runs": lambda sweep, info: page(
        [run for run in info.context.store.runs.of(sweep.entity, sweep.project) if run.sweep == sweep.name]
    ),
    "config": lambda sweep, _: yaml.safe_dump(dict(sweep.config)),
    "method": lambda sweep, _: sweep.config.get("method"),
    "runCount": lambda sweep, _: len(sweep.runs),
    "runCountExpected": lambda sweep, _: sweep_search.expected(sweep.config) if sweep.config else None,
}

resolve_with(sweep_type, _OF_SWEEP)


@mutation.performs("upsertSweep")
def _upsert_sweep(
    context: Context,
    id: str | None = None,  # noqa: A002 - the schema's name
    entity_name: str | None = None,
    project_name: str | None = None,
    config: str | None = None,
    state: str | None = None,
    launch_scheduler: Mapping[str, Any] | None = None,
    template_variable_values: Mapping[str, Any] | None = None,
    display_name: str | None = None,
    description: str | None = None,
    **other: Any,
) -> Payload:
    """Create or change a sweep, and push its scheduler's item if it has one."""
    store = context.store
    if unknown := [name for name, value in other.items() if value]:
        raise invalid(f"the local W&B has no sweeps with {', '.join(unknown)}")
    given = yaml.safe_load(config or "{}")
    if id:
        sweep = store.sweeps.by_id(id)
        store.entity_for(context.user, sweep.entity)
        if config and given != sweep.config:
            raise invalid("the local W&B does not change the configuration of a sweep that there is")
    else:
        entity = store.entity_for(context.user, entity_name)
        if not project_name:
            raise invalid("a new sweep needs a project")
        sweep = store.sweeps.draft(entity, store.project(entity, project_name)[0].name, given)
    changed = state or sweep.state
    if changed not in SWEEP_STATES and not (changed == "PENDING" and (launch_scheduler or not id)):
        raise invalid(f'the local W&B sets the state of a sweep, to one of {", ".join(SWEEP_STATES)}, not to "{state}"')
    if launch_scheduler:
        _launch(context, sweep, launch_scheduler, template_variable_values)
        sweep.scheduler = launch_scheduler
    sweep.display_name = display_name or sweep.display_name
    sweep.description = description or sweep.description
    store.sweeps.keep(sweep, changed)
    return {"sweep": sweep, "config_validation_warnings": []}


@mutation.performs("createAgent")
def _create_agent(
    context: Context, host: str, sweep: str, project_name: str | None = None, entity_name: str | None = None
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    agent = context.store.sweeps.create_agent(
        entity, project_name or "", sweep, host=host, username=context.user.username
    )
    return {"agent": agent}


@mutation.performs("agentHeartbeat")
def _agent_heartbeat(
    context: Context,
    id: str,  # noqa: A002 - the schema's name
    run_state: Mapping[str, bool] | None = None,
    **_: object,
) -> Payload:
    agent = context.store.sweeps.agent(id)
    context.store.entity_for(context.user, agent.sweep.entity)
    running = [name for name, runs in (run_state or {}).items() if runs]
    return {"agent": agent, "commands": context.store.sweeps.heartbeat(agent, running)}


def _launch(context: Context, sweep: Sweep, scheduler: Mapping[str, Any], values: Mapping[str, Any] | None) -> None:
    project = scheduler.get("run_queue_project") or LAUNCH_PROJECT
    queue = context.store.launch.queue(sweep.entity, project, scheduler["queue"])
    spec = json.loads(scheduler["run_spec"].replace(SWEEP_NAME, sweep.name))
    context.store.launch.push_to(queue, spec, template_variables=values, author=context.user.username)
