"""Sweeps in memory: their states, the agents that ask for runs, and the runs that they get."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from local.standins.wandb import sweep_search
from local.standins.wandb.errors import not_found
from local.standins.wandb.launch import Launch
from local.standins.wandb.runs import ALIVE, Runs

SWEEP_STATES = ("RUNNING", "PAUSED", "FINISHED", "CANCELED", "STOPPED")
"""The states that people and schedulers can set. A new sweep, or one that is launched again, is PENDING."""

Command = dict[str, Any]
"""The commands for an agent, see ``AgentHeartbeatPayload``."""


@dataclass
class Sweep:
    """A sweep: ``state`` is PENDING or one of ``SWEEP_STATES``.

    ``scheduler`` is how its scheduler was launched. ``runs`` are the names of its runs, in order. ``untried`` are the next
    runs, or None if the server does not search.
    """

    entity: str
    project: str
    name: str
    state: str
    created_at: float
    updated_at: float
    config: Mapping[str, Any] = field(default_factory=dict)
    display_name: str | None = None
    description: str | None = None
    scheduler: Mapping[str, Any] | None = None
    runs: list[str] = field(default_factory=list)
    heartbeat_at: float | None = None
    untried: Iterator[sweep_search.Suggestion] | None = field(default=None, repr=False)

    @property
    def id(self) -> str:
        """The id that mutations use."""
        return base64.b64encode(f"Sweep:v1:{self.name}:{self.project}:{self.entity}".encode()).decode()


@dataclass
class SweepAgent:
    """An agent that asks for a sweep's runs: one for each worker of a scheduler. ``runs`` are those that it got."""

    id: str
    host: str
    sweep: Sweep
    username: str
    runs: list[str] = field(default_factory=list)


class Sweeps(Mapping[tuple[str, str, str], Sweep]):
    """All sweeps by entity, project and name. Methods are atomic. Those that look something up raise Refused."""

    def __init__(self, clock: Callable[[], float], lock: threading.RLock, runs: Runs, launch: Launch) -> None:
        self.clock = clock
        self.agents: dict[str, SweepAgent] = {}
        self._lock = lock
        self._runs = runs
        self._launch = launch
        self._numbers = count(1)
        self._sweeps: dict[tuple[str, str, str], Sweep] = {}

    def __getitem__(self, key: tuple[str, str, str]) -> Sweep:
        """Return the sweep of an entity, a project and a name."""
        return self._sweeps[key]

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """Return entity, project and name of each sweep, the oldest first."""
        return iter(list(self._sweeps))

    def __len__(self) -> int:
        """Return the number of sweeps."""
        return len(self._sweeps)

    def draft(self, entity: str, project: str, config: Mapping[str, Any]) -> Sweep:
        """Return a new PENDING sweep, which is not stored yet."""
        sweep_search.check(config)
        with self._lock:
            name, now = f"sweep{next(self._numbers):03d}", self.clock()
            untried = sweep_search.suggestions(config, name)
            return Sweep(entity, project, name, "PENDING", now, now, config, untried=untried)

    def keep(self, sweep: Sweep, state: str) -> None:
        """Store a sweep with a new state."""
        with self._lock:
            sweep.state, sweep.updated_at = state, self.clock()
            self._sweeps[sweep.entity, sweep.project, sweep.name] = sweep

    def by_id(self, id_: str) -> Sweep:
        """Return the sweep with a ``Sweep.id``."""
        with self._lock:
            if found := next((sweep for sweep in self._sweeps.values() if sweep.id == id_), None):
                return found
            raise not_found(f"sweep {id_}")

    def create_agent(self, entity: str, project: str, name: str, *, host: str, username: str) -> SweepAgent:
        """Register an agent. A pending sweep starts to run with its first agent."""
        with self._lock:
            if (entity, project, name) not in self._sweeps:
                raise not_found(f"sweep {entity}/{project}/{name}")
            sweep = self._sweeps[entity, project, name]
            if sweep.state == "PENDING":
                self.keep(sweep, "RUNNING")
            id_ = base64.b64encode(f"Agent:{len(self.agents) + 1}".encode()).decode()
            self.agents[id_] = SweepAgent(id_, host, sweep, username)
            return self.agents[id_]

    def agent(self, id_: str) -> SweepAgent:
        """Return the agent with an id."""
        if id_ not in self.agents:
            raise not_found(f'sweep agent "{id_}"')
        return self.agents[id_]

    def heartbeat(self, agent: SweepAgent, running: Collection[str]) -> list[Command]:
        """Return the commands for an agent. Of its runs only those in ``running`` still run.

        An agent without a run gets a new pending run, or the command to exit after the sweep's end. The sweep ends when
        nothing is untried and all its runs have ended. A cancelled sweep ends at once.
        """
        with self._lock:
            sweep = agent.sweep
            sweep.heartbeat_at = self.clock()
            self._give_up(agent, running)
            if sweep.state == "CANCELED":
                return [{"type": "exit"}]
            if running or sweep.state in ("PENDING", "PAUSED"):
                return []
            if sweep.state == "RUNNING":
                if sweep.untried is None:
                    return []
                if (values := next(sweep.untried, None)) is not None:
                    return [self._begin(agent, values)]
                if self._under_way(sweep):
                    return []
                self.keep(sweep, "FINISHED")
            return [{"type": "exit"}]

    def _begin(self, agent: SweepAgent, values: sweep_search.Suggestion) -> Command:
        sweep = agent.sweep
        args = {name: {"value": value} for name, value in values.items()}
        run, _ = self._runs.upsert(
            sweep.entity,
            sweep.project,
            None,
            username=agent.username,
            state="pending",
            config=args,
            sweep=sweep.name,
        )
        sweep.runs.append(run.name)
        agent.runs.append(run.name)
        return {"type": "run", "run_id": run.name, "args": args, "program": sweep.config.get("program"), "logs": []}

    def _give_up(self, agent: SweepAgent, running: Collection[str]) -> None:
        """Drop runs that will not start: those that this agent has given up, and those of failed items.

        A scheduler stops asking for its other workers when one of them gets nothing.
        """
        sweep = agent.sweep
        failed = {str(item.run_spec.get("run_id")) for item in self._launch.items.values() if item.settled == "FAILED"}
        for name in failed.union(agent.runs).intersection(sweep.runs).difference(running):
            run = self._runs.get(sweep.entity, sweep.project, name)
            if run and run.state == "pending":
                self._runs.upsert(
                    sweep.entity, sweep.project, name, username=run.username, state="crashed", alive=False
                )

    def _under_way(self, sweep: Sweep) -> bool:
        runs = (self._runs.get(sweep.entity, sweep.project, name) for name in sweep.runs)
        return any(run and (run.state == "pending" or run.state in ALIVE) for run in runs)
