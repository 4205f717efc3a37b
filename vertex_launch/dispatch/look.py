"""Ask Vertex AI and W&B in parallel what they show now. Changes nothing; ``Seen`` has what was learned."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from vertex_launch import addresses, log
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Services, all_of
from vertex_launch.errors import Message, Unavailable
from vertex_launch.job import outcome
from vertex_launch.model import (
    VERTEX_RESOURCES,
    AgentView,
    ItemView,
    JobName,
    ManagedJob,
    Question,
    RunId,
    RunView,
    WandbState,
)
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger
from vertex_launch.state.open_item import OpenItem, Stage

PEEK = 20
"""Items of each queue that W&B is asked to show, as a hint of how many to pop and for a dry run."""
REBUILD_WINDOW = 86400.0
"""Seconds into the past in which a lost ledger looks for jobs that ended before their item was claimed."""
CLOCK_SKEW = 300.0
"""Seconds by which Vertex AI's clock may differ from ours."""
AT_ONCE = 16
AGENT_LASTS = 3600.0
"""Seconds for which no other agent is made, whatever W&B shows."""
REFUSED_LASTS = 600.0
"""Seconds for which none is asked for after W&B refused to make one."""
AGENTS = "project.launchAgents"
"""The list of all agents, among what W&B may refuse."""
MOST_GETS = 200
"""Open jobs that one pass gets one by one; the others hold their slots until a later one."""


@dataclass(frozen=True)
class Seen:
    """What there is: the deployment's jobs by name, W&B's answer, and the queues that can be served, in turn.

    ``missing`` has the names of open jobs that Vertex AI says do not exist. ``resources`` maps queue ids to what they run on.
    ``unlisted`` has the regions whose jobs could not be listed: what is not seen there may exist.
    ``at`` is when the last answer came (Unix seconds): what is seen for the first time was not seen earlier than that.
    """

    at: float
    entity: str
    jobs: Mapping[str, ManagedJob]
    missing: frozenset[str]
    unlisted: frozenset[str]
    wandb: WandbState
    queues: tuple[str, ...]
    resources: Mapping[str, str]
    notices: tuple[Message, ...]

    def queue_ids(self, names: Sequence[str]) -> list[str]:
        """Return the ids of those queues that exist."""
        return sorted(self.wandb.queues[name] for name in names if name in self.wandb.queues)

    def resource(self, queue: str) -> str:
        """Return what the items of a queue run on, the empty text if W&B does not say."""
        return self.resources.get(self.wandb.queues.get(queue, ""), "")

    def elsewhere(self, job: str, settings: Settings) -> bool:
        """Return whether a job reports to another W&B server than today's."""
        found = self.jobs.get(job)
        return found is not None and found.server not in ("", addresses.server(settings.base_url))

    @property
    def agents(self) -> Mapping[str, AgentView]:
        """The agents that W&B shows, by their ids."""
        return {one.id: one for one in ([self.wandb.agent] if self.wandb.agent else self.wandb.agents)}

    def agent(self, hostname: str, queues: Sequence[str], ledger: Ledger, now: float) -> AgentView | None:
        """Return the agent of that host name, None if a new one has to be made. Its id is empty if W&B refused that.

        One that serves these queues and is not stopped comes first. Else the one ``made`` last for them, whatever queues W&B
        shows for it. No other one is made within an hour, or if that one was stopped. If W&B does not show agents, the last
        one counts, as it was last seen.
        """
        made = ledger.made
        last = AgentView(ledger.agent or (made.id if made else ""), hostname, ledger.stopped, ())
        young = made is not None and now < made.at + (AGENT_LASTS if made.id else REFUSED_LASTS)
        if not self.wandb.agents_shown:
            return last if last.id or ledger.stopped or young else None
        mine = [one for one in self.agents.values() if one.hostname == hostname or one.id == last.id]
        serving = [one for one in mine if sorted(one.queues) == self.queue_ids(queues)]
        found = [one for one in serving if not one.stop_polling]
        if made:
            fits = made.queues == tuple(queues)
            found += [one for one in mine if made.id in ("", one.id) and (young or fits or one.stop_polling)]
            hidden = AgentView(made.id, hostname, stop_polling=False, queues=())
            serving += [hidden] * (young and made.id not in [one.id for one in mine])
        return next(iter([*found, *serving]), None)


def look(
    settings: Settings, services: Services, ledger: Ledger, queues: Sequence[str], now: float, ended: str = ""
) -> Seen:
    """Look at the jobs of every region that has some or may get some, and at these queues.

    ``ended`` names a job that has ended according to a log entry. Raises Unavailable.
    """
    configured = [region.name for region in settings.regions]
    regions = list(dict.fromkeys([*configured, *ledger.regions]))
    calls: list[Callable[[], Any]] = [partial(_ask_wandb, settings, services, ledger, queues)]
    calls += [partial(_list, services, ledger, region, now, must=region in configured) for region in regions]
    (entity, state, changed), *lists = all_of(services.run_parallel(calls, len(calls)))
    jobs = {job.name: job for listed in lists for job in listed or ()}
    missing = _get_unlisted(services, ledger, jobs, ended)
    resources = _resources(settings, services, ledger, entity, state, queues)
    unserved = {name: why for name in queues if (why := _unserved(settings, name, entity, state, resources))}
    notices = [changed] if changed else []
    return Seen(
        at=services.clock(),
        entity=entity,
        jobs=jobs,
        missing=missing,
        unlisted=frozenset(region for region, listed in zip(regions, lists, strict=True) if listed is None),
        wandb=state,
        queues=tuple(name for name in _in_turn(queues, ledger.turn) if name not in unserved),
        resources=resources,
        notices=(*notices, *unserved.values()),
    )


def look_up_items(services: Services, ledger: Ledger, entries: Iterable[OpenItem]) -> Mapping[str, ItemView]:
    """Look up items in the entities of their queues; what W&B cannot answer now is missing, and stays as it is."""
    wanted, found = defaultdict[str, dict[str, str]](dict), dict[str, ItemView]()
    for entry in entries:
        wanted[ledger.home(entry, "")][entry.item] = entry.queue
    for entity, items in wanted.items():
        try:
            found |= services.queue.items(entity, items)
        except Unavailable as error:
            log.warning(Message(Code.LOOKUP_FAILED, f"Cannot look up {len(items)} queue items: {error.message.text}"))
    return found


def look_up_runs(services: Services, wanted: Sequence[RunId]) -> Mapping[RunId, RunView | None]:
    """Look up runs of the key's entity; what W&B cannot answer now is missing."""
    try:
        return services.queue.runs(wanted) if wanted else {}
    except Unavailable as error:
        log.warning(Message(Code.LOOKUP_FAILED, f"Cannot look up {len(wanted)} runs: {error.message.text}"))
        return {}


# Vertex AI


def _list(services: Services, ledger: Ledger, region: str, now: float, *, must: bool) -> list[ManagedJob] | None:
    """List a region's active jobs, and the ended ones that a planned create or a lost ledger may need.

    If a region that is not configured any more (not ``must``) cannot be listed, its open jobs are got one by one.
    """
    try:
        return _listed(services, ledger, region, now)
    except Unavailable as error:
        if must:
            raise
        log.warning(Message(Code.LOOKUP_FAILED, f"Cannot list the jobs in {region}, which is not configured: {error}"))
        return None


def _listed(services: Services, ledger: Ledger, region: str, now: float) -> list[ManagedJob]:
    jobs = services.vertex.active(region)
    planned = {entry.item: entry for entry in ledger.at(Stage.PLANNED) if entry.current.region == region}
    if ledger.rebuild:
        jobs += services.vertex.recent(region, now - REBUILD_WINDOW)
    elif planned:
        since = min(entry.current.planned for entry in planned.values()) - CLOCK_SKEW
        jobs += [job for job in services.vertex.recent(region, since) if job.item in planned]
    return jobs


def _get_unlisted(services: Services, ledger: Ledger, jobs: dict[str, ManagedJob], ended: str) -> frozenset[str]:
    """Get open jobs that the lists lack into ``jobs``: they have ended, are gone, or the list lags. Return missing ones.

    A job that has ended according to a log entry is asked for first, because a list may still show it as active. So is a
    listed job that failed without a reason. A list may show the reason long after Vertex AI has it.
    """
    hinted = {entry.job for entry in ledger.open.values() if entry.job and _same(entry.job, ended)}
    open_jobs = [entry for entry in ledger.at(Stage.UNCLAIMED, Stage.CLAIMED) if entry.job]
    wanted = [entry for entry in open_jobs if entry.job not in jobs or entry.job in hinted]
    wanted.sort(key=lambda entry: (entry.job not in hinted, bool(entry.current.ended)))
    listed = [job.name for job in jobs.values() if job.state == outcome.FAILED and not job.error]
    unexplained = [name for name in listed if name not in ledger.settled and name not in hinted]
    names = [*(entry.job for entry in wanted), *unexplained][:MOST_GETS]
    got = services.run_parallel([partial(services.vertex.get, name) for name in names], AT_ONCE)
    missing = set()
    for name, job in zip(names, got, strict=True):
        if isinstance(job, ManagedJob):
            jobs[name] = job
        elif job is None:
            jobs.pop(name, None)
            missing.add(name)
        else:
            log.warning(Message(Code.LOOKUP_FAILED, f"Cannot look up job {name}: {job}"), job=name)
    return frozenset(missing)


def _same(job: str, hint: str) -> bool:
    with suppress(ValueError):
        return bool(hint) and JobName.parse(job).names(JobName.parse(hint))
    return False


# W&B


def _ask_wandb(
    settings: Settings, services: Services, ledger: Ledger, queues: Sequence[str]
) -> tuple[str, WandbState, Message | None]:
    """Ask W&B everything at once, and again if the API key's default entity has changed; then there is a message."""
    entity = settings.entity or ledger.entity or services.queue.default_entity()
    made = ledger.made.id if ledger.made and AGENTS in services.pace.refused else ""
    agent = ledger.agent or made if ledger.entity in ("", entity) else ""
    state = services.queue.ask(_question(settings, ledger, entity, queues, agent))
    if settings.entity or state.viewer_entity in ("", entity):
        return entity, state, None
    changed = f"The default entity of the API key was {entity} and is {state.viewer_entity} now."
    entity = state.viewer_entity
    return (
        entity,
        services.queue.ask(_question(settings, ledger, entity, queues, "")),
        Message(Code.ENTITY_CHANGED, changed),
    )


def _question(settings: Settings, ledger: Ledger, entity: str, queues: Sequence[str], agent: str) -> Question:
    homes = {entry.item: ledger.home(entry, entity) for entry in ledger.open.values()}
    going_on = [entry for entry in ledger.open.values() if entry.stage is Stage.RETRYING or not entry.current.ended]
    return Question(
        entity,
        agent=agent,
        items={one.item: one.queue for one in ledger.open.values() if not one.claimed and homes[one.item] == entity},
        runs=[one.run_id for one in going_on if one.stage is not Stage.PLANNED and one.entity == homes[one.item]],
        queues=queues,
        peek=PEEK,
        viewer=not settings.entity,
    )


def _in_turn(queues: Sequence[str], turn: str) -> Sequence[str]:
    first = queues.index(turn) if turn in queues else 0
    return [*queues[first:], *queues[:first]]


def _resources(
    settings: Settings, services: Services, ledger: Ledger, entity: str, state: WandbState, queues: Sequence[str]
) -> Mapping[str, str]:
    """Return what the queues' items run on, by queue id; it is kept in the ledger once this deployment can serve the queue."""
    ids = {name: state.queues[name] for name in dict.fromkeys([*queues, *settings.queues]) if name in state.queues}
    unknown = [name for name, one in ids.items() if ledger.resources.get(one) not in ("", *VERTEX_RESOURCES)]
    if not any(name in unknown for name in queues):
        return ledger.resources
    try:
        found = services.queue.resources(entity, unknown)
    except Unavailable as error:
        text = f"Cannot look up what the items of queues run on: {error.message.text}"
        log.warning(Message(Code.LOOKUP_FAILED, text))
        return ledger.resources
    # What W&B does not answer is not known: what it answered before may have been wrong.
    return ledger.resources | {ids[name]: found.get(name, "") for name in unknown}


def _unserved(
    settings: Settings, name: str, entity: str, state: WandbState, resources: Mapping[str, str]
) -> Message | None:
    """Return why a configured queue cannot be served, if it cannot."""
    if name not in state.queues:
        known = ", ".join(sorted(state.queues)) or "none"
        return Message(
            Code.QUEUE_MISSING,
            f"Queue {name} does not exist for entity {entity} (existing queues: {known}). Create it in the W&B app, or "
            f"correct {settings.where('queues')}.",
        )
    resource = resources.get(state.queues[name], "")
    if resource and resource not in VERTEX_RESOURCES:
        return Message(
            Code.QUEUE_RESOURCE,
            f"Queue {name} is a {resource} queue; this deployment serves Vertex AI queues (resource gcp-vertex). Create "
            f"one, or remove this one from {settings.where('queues')}.",
        )
    return None
