"""Step 2 of a pass: what Vertex AI and W&B say now, asked side by side. Changes nothing.

Called by ``dispatcher`` for a pass and by ``preview`` for a dry run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from vertex_launch.dispatch.ports import Services
from vertex_launch.model import VERTEX_RESOURCES, AgentView, Look, ManagedJob, RunId
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger, Stage

PEEK = 20
"""Items of each queue that W&B is asked to show, as a hint of how many to pop and for a dry run."""
REBUILD_WINDOW = 86400.0
"""Seconds into the past in which a lost ledger looks for jobs that ended before their item was acked."""
CLOCK_SKEW = 300.0
"""Seconds by which Vertex AI's clock may differ from ours."""


@dataclass(frozen=True)
class Seen:
    """What there is: the deployment's jobs, W&B's answer, and the queues that can be served, whose turn it is first."""

    entity: str
    jobs: tuple[ManagedJob, ...]
    wandb: Look
    queues: tuple[str, ...]

    def queue_ids(self, names: Sequence[str]) -> list[str]:
        """Give the ids of those queues that exist."""
        return sorted(self.wandb.queues[name] for name in names if name in self.wandb.queues)

    def agent(self, hostname: str, queue_ids: Sequence[str]) -> AgentView | None:
        """Give the agent of that host name that serves these queues, rather one that nobody has stopped."""
        candidates = [self.wandb.agent] if self.wandb.agent else self.wandb.agents
        mine = [one for one in candidates if one.hostname == hostname and sorted(one.queues) == list(queue_ids)]
        return min(mine, key=lambda one: one.stop_polling, default=None)


class Looker:
    """Asks once; what it learns for good (the key's entity, what a queue runs on) it notes in the ledger.

    ``notice`` takes sentences on what concerns no single item. ``look`` raises Unavailable.
    """

    def __init__(self, settings: Settings, services: Services, ledger: Ledger, notice: Callable[[str], None]) -> None:
        self._settings = settings
        self._services = services
        self._ledger = ledger
        self._notice = notice

    def look(self, queues: Sequence[str], now: float) -> Seen:
        """Look at the jobs of every region that has some or may get some, and at these queues."""
        configured = [region.name for region in self._settings.regions]
        regions = list(dict.fromkeys(configured + [entry.region for entry in self._ledger.open.values()]))
        calls: list[Callable[[], Any]] = [partial(self._list, region, now) for region in regions]
        (entity, answer), *lists = self._services.together([partial(self._ask_wandb, queues), *calls], len(calls) + 1)
        jobs = {job.name: job for listed in lists for job in listed}
        served = [name for name in self._in_turn(queues) if self._serves(name, entity, answer)]
        return Seen(entity, tuple(jobs.values()), answer, tuple(served))

    def _list(self, region: str, now: float) -> list[ManagedJob]:
        """List a region's active jobs, and the ended ones that an open intent or a lost ledger may have to know of."""
        jobs = self._services.vertex.active(region)
        intents = {entry.item: entry for entry in self._ledger.at(Stage.INTENDED) if entry.region == region}
        if self._ledger.rebuild:
            jobs += self._services.vertex.recent(region, now - REBUILD_WINDOW)
        elif intents:
            since = min(entry.since for entry in intents.values()) - CLOCK_SKEW
            jobs += [job for job in self._services.vertex.recent(region, since) if job.item in intents]
        return jobs

    def _ask_wandb(self, queues: Sequence[str]) -> tuple[str, Look]:
        ledger, configured = self._ledger, self._settings.entity
        entity = configured or ledger.entity or self._services.queue.default_entity()
        answer = self._ask_about(entity, queues)
        if not configured and answer.viewer_entity not in ("", entity):
            self._notice(f"The default entity of the API key was {entity} and is {answer.viewer_entity} now")
            entity, ledger.agent = answer.viewer_entity, ""
            answer = self._ask_about(entity, queues)
        ledger.entity = entity
        return entity, answer

    def _ask_about(self, entity: str, queues: Sequence[str]) -> Look:
        return self._services.queue.look(
            entity,
            agent=self._ledger.agent,
            items={entry.item: entry.queue for entry in self._ledger.open.values() if not entry.claimed},
            runs=self._running(entity),
            queues=queues,
            peek=PEEK,
            viewer=not self._settings.entity,
        )

    def _running(self, entity: str) -> list[RunId]:
        """Give the runs that somebody may have asked to stop, as far as this key can see them."""
        jobs = self._ledger.at(Stage.CREATED, Stage.ACKED, Stage.AGAIN)
        going_on = [entry for entry in jobs if entry.stage is Stage.AGAIN or not entry.ended]
        return [entry.run_id for entry in going_on if entry.entity == entity]

    def _in_turn(self, queues: Sequence[str]) -> Sequence[str]:
        turn = queues.index(self._ledger.turn) if self._ledger.turn in queues else 0
        return [*queues[turn:], *queues[:turn]]

    def _serves(self, name: str, entity: str, answer: Look) -> bool:
        """Tell whether a configured queue can be served, and say once a pass why one cannot."""
        if name not in answer.queues:
            known = ", ".join(sorted(answer.queues)) or "none"
            self._notice(
                f"Queue {name} does not exist for entity {entity} (there: {known}); make it in the W&B app or correct "
                "queues in launch-config.yaml"
            )
            return False
        resource = self._resource(name, entity, answer)
        if resource and resource not in VERTEX_RESOURCES:
            self._notice(
                f"Queue {name} is a {resource} queue; this deployment serves Vertex AI queues (resource gcp-vertex). Make "
                "one, or take it out of queues in launch-config.yaml"
            )
            return False
        return True

    def _resource(self, name: str, entity: str, answer: Look) -> str:
        """Give what the queue's items run on, asked once and then kept in the ledger."""
        ids, kept = answer.queues, self._ledger.resources
        if ids[name] not in kept:
            unknown = [one for one in self._settings.queues if one in ids and ids[one] not in kept]
            found = self._services.queue.resources(entity, list(dict.fromkeys([name, *unknown])))
            kept.update({ids[one]: resource for one, resource in found.items()})
        return kept.get(ids[name], "")
