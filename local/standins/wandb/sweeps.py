"""Sweeps in memory: their states, the agents that ask for runs, and the runs that they are given."""

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
"""What people and schedulers may set a sweep to; a new one, or one that is launched again, is PENDING."""

Command = dict[str, Any]
"""What an agent has to do, see ``AgentHeartbeatPayload``."""


@dataclass
class Sweep:
    """A sweep: ``state`` is PENDING or one of ``SWEEP_STATES``.

    ``scheduler`` is how its scheduler was launched, ``runs`` are the names of those that it has begun, in order,
    ``untried`` is what comes next, None where the server does not search.
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
        """The id that mutations take."""
        return base64.b64encode(f"Sweep:v1:{self.name}:{self.project}:{self.entity}".encode()).decode()


@dataclass
class SweepAgent:
    """Who asks for a sweep's runs: a scheduler, one for each of its workers; ``runs`` are those that it was given."""

    id: str
    host: str
    sweep: Sweep
    username: str
    runs: list[str] = field(default_factory=list)


class Sweeps(Mapping[tuple[str, str, str], Sweep]):
    """All sweeps by entity, project and name. Methods are atomic; those that look something up raise Refused."""

    def __init__(self, clock: Callable[[], float], lock: threading.RLock, runs: Runs, launch: Launch) -> None:
        self.clock = clock
        self.agents: dict[str, SweepAgent] = {}
        self._lock = lock
        self._runs = runs
        self._launch = launch
        self._numbers = count(1)
        self._sweeps: dict[tuple[str, str, str], Sweep] = {}

    def __getitem__(self, key: tuple[str, str, str]) -> Sweep:
        """The sweep of an entity, a project and a name."""
        return self._sweeps[key]

    def __iter__(self) -> Iterator[tuple[str, str, str]]:
        """Entity, project and name of each, oldest first."""
        return iter(list(self._sweeps))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._sweeps)

    def draft(self, entity: str, project: str, config: Mapping[str, Any]) -> Sweep:
        """A new sweep, PENDING, that is not there before it is kept."""
        sweep_search.check(config)
        with self._lock:
            name, now = f"sweep{next(self._numbers):03d}", self.clock()
            untried = sweep_search.suggestions(config, name)
            return Sweep(entity, project, name, "PENDING", now, now, config, untried=untried)

    def keep(self, sweep: Sweep, state: str) -> None:
        """Keep a sweep, with this state from now on."""
        with self._lock:
            sweep.state, sweep.updated_at = state, self.clock()
            self._sweeps[sweep.entity, sweep.project, sweep.name] = sweep

    def by_id(self, id_: str) -> Sweep:
        """The sweep with that ``Sweep.id``."""
        with self._lock:
            if found := next((sweep for sweep in self._sweeps.values() if sweep.id == id_), None):
                return found
            raise not_found(f"sweep {id_}")

    def create_agent(self, entity: str, project: str, name: str, *, host: str, username: str) -> SweepAgent:
        """Register an agent, with which a pending sweep begins to run."""
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
        """The agent of that id."""
        if id_ not in self.agents:
            raise not_found(f'sweep agent "{id_}"')
        return self.agents[id_]

    def heartbeat(self, agent: SweepAgent, running: Collection[str]) -> list[Command]:
        """What an agent has to do of whose runs only those in ``running`` do still run.

        One that runs nothing gets a new run, which is pending, or the command to exit when the sweep has ended. The
        sweep ends when nothing is untried and all its runs have ended. One that was cancelled ends at once.
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
        """Runs will not begin any more that this agent has given up, or whose items have failed, whoever was given them.

        A scheduler does not ask for all of its workers once one of them gets nothing.
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
