"""One world from a seed: deployments and what their passes meet, people, other agents, Pub/Sub, and time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.simulation import graphql, jobs
from tests.simulation.graphql import GraphQL, Instance
from tests.simulation.invariants import Invariants
from tests.simulation.jobs import Job, Plan, Vertex
from tests.simulation.objects import Folder
from tests.simulation.people import REGIONS, People
from tests.simulation.queues import Wandb
from tests.simulation.scheduler import KINDS, START, Broken, Fault, Program, Scheduler
from tests.support.memory import (
    CANCELLED,
    ENTITY,
    EXPIRED,
    FAILED,
    PARTLY,
    QUEUES,
    SETTINGS,
    SUCCEEDED,
    Artifacts,
    Secret,
    Topic,
    image_spec,
    through,
)
from vertex_launch.dispatch.ports import Key, Queue, Services
from vertex_launch.dispatch.run import run_pass
from vertex_launch.dispatch.watch import follow
from vertex_launch.errors import JobNotEnded, PassBusy, PassLost, Unavailable
from vertex_launch.log import LOGGER
from vertex_launch.model import SCHEDULER_URI, JobHint, Pace, PassReport, PassRequest, RunId
from vertex_launch.settings.config import Batches, Settings
from vertex_launch.state.record import Record

MINUTE = 60.0
LONGEST_DRAIN = 120
"""Minutes without a fault after which everything must have ended."""
NOTICED = 30.0
"""Seconds in which job_state looks at a job that has ended."""
TRIES = 6
"""Deliveries of one message."""
OPERATIONS = (
    "read",
    "write",
    "ask",
    "active",
    "pop",
    "ack",
    "fail",
    "warn",
    "create",
    "cancel",
    "get",
    "runs",
    "items",
)
TENSE = {"create": 0.5, "write": 0.25, "runs": 0.15, "items": 0.15}
"""How often a program freezes after these operations in a tense world."""
FOCUS = tuple((operation, kind) for operation in OPERATIONS for kind in KINDS)


def simulate(seed: int) -> World:
    """Run the world of this seed to its end. Raises AssertionError with its history when an invariant breaks."""
    world = World(seed)
    before = LOGGER.handlers[:], LOGGER.propagate, LOGGER.level
    LOGGER.handlers[:], LOGGER.propagate = [_Records(world)], False
    LOGGER.setLevel(logging.INFO)
    try:
        world.live()
    except Broken as error:
        history = "\n".join(world.scheduler.history())
        raise AssertionError(f"seed {seed}: {error}\n{history}\nseed {seed}: {error}") from error
    finally:
        world.scheduler.end()
        LOGGER.handlers[:], LOGGER.propagate = before[:2]
        LOGGER.setLevel(before[2])
    return world


class _Records(logging.Handler):
    """Finds keys in what the product logs, redacted as by the process that logs it."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            raise Broken(f"unexpected error: {record.exc_info[1]!r}") from record.exc_info[1]
        program = self._world.scheduler.program
        text = program.redact(f"{record.getMessage()} {record.__dict__}")
        self._world.scheduler.note(program.name, "  logs: %s", record.getMessage())
        if code := getattr(record, "code", ""):
            self._world.scheduler.happens(str(code))
        self._world.invariants.secret(text, "the log")


@dataclass
class Deployment:
    """One vertex-launch: its settings and its objects."""

    settings: Settings
    folder: Folder
    instance: Instance
    """The process that its passes run in, until one is killed."""


class World:
    """Draws from the seed what there is and what will happen, and runs it."""

    def __init__(self, seed: int) -> None:
        self.random = random = Random(seed)
        self.trouble = random.choice((0, 300, 300, 600, 600, 900))
        """For how many seconds things go wrong."""
        self._focus = FOCUS[seed % len(FOCUS)] if random.random() < 0.5 else ("", Fault.NONE)
        """What goes wrong more often than anything else; seeds that follow each other try everything."""
        self._rates = dict.fromkeys(OPERATIONS, random.choice((0.0, 0.01, 0.02, 0.04, 0.06)))
        if random.random() < 0.7:
            self._rates[random.choice((*OPERATIONS, *["create", "ack"] * 5))] = random.choice((0.2, 0.6))
        self.scheduler = Scheduler(random, self._fault, random.choices((0.05, 0.3, 2, 6), (3, 3, 3, 1))[0])
        self.scheduler.tense = random.random() < 0.3
        if self.scheduler.tense:
            self.trouble = max(self.trouble, 600)
        self.short_leases = random.random() < 0.08
        """Whether W&B's leases may be shorter than configured, which excuses messages after a lease."""
        if self.short_leases:
            self.scheduler.slow_failures = 0.0
        self.people = People(self)
        self.scheduler.on_death = self.people.on_death
        if self.people.tidy and random.random() < 0.7:
            self._focus = "ack", Fault.KILLED_AFTER
        self.secret = Secret("today" * 8)
        self.all_keys = self.secret.versions[:]
        self.wandb = Wandb(self, silent=random.random() < 0.1, eager=random.random() < 0.5)
        self.vertex = Vertex(self, random.choice((0, 0, 5, 80, 150)), random.choice((20, 20, 100)))
        self.invariants = Invariants(self)
        self.graphql = self._graphql()
        self.deployments = {"test": self._deployment("test")}
        if random.random() < 0.2:
            self.deployments["other"] = self._deployment("other")
        self._deletes = random.choice((0.02, 0.02, 0.3))
        self._flaky = random.random() < 0.15
        """Whether most jobs end soon, through no fault of their own."""
        self._shared = random.random() < (0.5 if self.people.snatches == 1.0 else 0.1)
        """Whether many items name the same run."""
        self._late_creates = random.random() < 0.2
        """Whether Vertex AI often takes a job after the pass has given up on its answer."""
        self._hopeless = random.random() < 0.15
        """Whether many items can never start."""
        self._programs = 0
        self._plan_what_happens()

    @property
    def troubled(self) -> bool:
        return self.scheduler.now < START + self.trouble

    def _fault(self, operation: str) -> Fault:
        """Draw the fault of a call, preferably one that this operation has not met yet in this world."""
        if not self.troubled:
            return Fault.NONE
        if self.scheduler.tense and self.random.random() < TENSE.get(operation, 0.05):
            return Fault.PAUSED_AFTER
        if operation == "create" and self._late_creates and self.random.random() < 0.5:
            return Fault.REFUSED
        if operation == self._focus[0] and self.random.random() < 0.2:
            return self._focus[1]
        if self.random.random() >= self._rates.get(operation, 0.02):
            return Fault.NONE
        met = self.scheduler.events
        fresh = [kind for kind in KINDS if f"{operation}: {kind.value}" not in met]
        return self.random.choice(fresh or KINDS)

    # What there is

    def _graphql(self) -> GraphQL | None:
        """Return the server that the product's own client talks to; None if passes call W&B directly, which is faster."""
        if self.random.random() > (0.7 if self.scheduler.tense else 0.35):
            return None
        extended = self.random.random() < 0.8
        self.wandb.silent |= not extended
        rotating, batched = self.random.random() < 0.25, self.random.random() < 0.8
        if rotating:
            self._rates["get"] = 0.3
        grumpy = self.random.random() < 0.25
        return GraphQL(self, batched=batched, extended=extended, rotating=rotating, grumpy=grumpy)

    def _deployment(self, name: str) -> Deployment:
        random = self.random
        changes = {
            "deployment": name,
            "entity": random.choice((ENTITY, None)),
            "regions": REGIONS[: random.choice((1, 2))],
            "max_jobs": random.choice((1, 2, 5)),
            "batches": Batches(
                pops=random.choice((1, 3, 64)), updates=random.choice((1, 64)), lookups=random.choice((1, 64))
            ),
            "start_timeout": random.choice((0, 200, 400)),
            "queue_timeout": random.choice((0, 0, 200)),
            "stopped_run_timeout": random.choice((0, 60)),
            "max_attempts": random.choice((1, 2, 3, 3)),
            "resubmit_after": random.choice((10, 30)),
            "submissions_per_minute": random.choice((60, 60, 60, 60, 2, 1)),
            "give_up_after": 1200,
        }
        return Deployment(Settings(**SETTINGS | changes), Folder(self.scheduler), Instance())

    def lease(self) -> float:
        """Draw the length of one lease; 60 seconds are configured."""
        if self.short_leases and self.random.random() < 0.5:
            return self.random.uniform(2, 60)
        return self.random.choice((60.0, 60.0, 60.0 if self.scheduler.tense else self.random.uniform(60, 400)))

    def _push(self, number: int) -> None:
        random, chance = self.random, self.random.random()
        entry = self.wandb.contents[self.wandb.push(random.choice(QUEUES), image_spec())]
        entry.pushed = self.scheduler.now
        entry.hopeless, entry.refused, entry.quota = chance < 0.08, 0.08 < chance < 0.14, not 0.14 < chance < 0.18
        entry.hopeless |= self._hopeless and random.random() < 0.5
        if entry.hopeless:
            entry.spec["resource_args"] = {"gcp-vertex": {"spec": {}}}
        elif random.random() < 0.1:  # which its author is warned about
            spec = entry.spec["resource_args"]["gcp-vertex"]["spec"]
            spec["worker_pool_specs"][0]["container_spec"]["image_uri"], entry.spec["overrides"] = (
                "gcr.io/other/image",
                {},
            )
        alone = len(self.deployments) == 1  # because otherwise a run id in the spec is a known limit
        if chance > 0.9 and alone:
            sweep = f"sweep{number}"
            entry.spec |= {"uri": SCHEDULER_URI, "sweep_id": sweep, "run_id": sweep}
            entry.spec["overrides"] = {"entry_point": ["wandb", "scheduler", sweep]}
            for one in entry.spec["resource_args"]["gcp-vertex"]["spec"].get("worker_pool_specs", ()):
                one["container_spec"]["image_uri"] = "${image_uri}"
        elif random.random() < (0.7 if self._shared or self.people.tidy else 0.15) and alone:
            entry.spec["run_id"] = run = random.choice(("preset", "preset" if self._shared else f"preset{number}"))
            if random.random() < 0.5:
                self.wandb.stop_run(RunId(ENTITY, "demo", run))
        if random.random() < 0.25:
            entry.key = entry.spec["_wandb_api_key"] = f"{number}own" * 10
            self.all_keys.append(entry.key)
        self.scheduler.note("a person", "pushes %s", entry)

    def plan(self, owner: str) -> Plan:
        """Draw what becomes of a job."""
        random = self.random
        ends = (SUCCEEDED, FAILED, EXPIRED, PARTLY, CANCELLED)
        dies_early, may_hang = random.random() < 0.1, self.deployments[owner].settings.start_timeout
        flaky = self._flaky and random.random() < 0.8
        end = FAILED if dies_early or flaky else random.choices(ends, (28, 55, 4, 4, 9))[0]
        errors = {FAILED: jobs.AGAIN + jobs.BAD * (not flaky), EXPIRED: jobs.BAD, PARTLY: jobs.BAD}
        return Plan(
            queued=random.choices((0.0, random.uniform(5, 400)), (85, 15))[0],
            pending=random.choices((random.uniform(1, 60), 1e5 if may_hang else 30.0), (94, 6))[0],
            running=0.0 if dies_early else random.uniform(10, 60 if flaky else 400),
            odd=random.choices((0, random.choice(jobs.ODD)), (90, 10))[0],
            init=random.choices((random.uniform(1, 30), 1e5), (85, 60 if self._shared else 15))[0],
            shown=random.choices((0.0, random.uniform(0, 60)), (60, 40))[0],
            announced=random.choices((0.0, 9.0), (80, 20))[0],
            end=end,
            error=random.choice(errors.get(end, ("",))),
            said=random.choice((0.0, random.uniform(1, 60))) if end == FAILED else 0.0,
            cancelling=random.uniform(1, 90),
            cancelled=random.choices((CANCELLED, SUCCEEDED, FAILED), (75, 8, 17))[0],
            deleted=random.uniform(5, 300) if random.random() < self._deletes else 0.0,
            stubborn=random.random() < 0.7,
        )

    # What happens

    def _plan_what_happens(self) -> None:
        random, after, busy = self.random, self.scheduler.after, max(300, self.trouble)
        spread = random.choice((1, 300, 1500) if self._shared else (1, 300))
        self._expected = random.randint(2, 4)
        for number in range(self._expected):
            after(random.random() * spread, self._push, number + 1)
        for owner in self.deployments:
            after(random.random() * MINUTE, self._scheduled, owner)
        self.people.plan(busy)
        after(self.trouble, self._calm)

    def _calm(self) -> None:
        """Let calls be as fast as a pass needs them to be to get anything done."""
        self.scheduler.slow = min(self.scheduler.slow, 2.0)

    def _scheduled(self, owner: str) -> None:
        """Publish the scheduled tick, each minute."""
        self._publish(owner, PassRequest(published=self.scheduler.now))
        self.scheduler.after(MINUTE, self._scheduled, owner)

    def _publish(self, owner: str, request: PassRequest) -> None:
        self._deliver(self.start_pass, owner, request)

    def log(self, job: Job, text: str) -> None:
        """Publish a log entry to all deployments, as their log sinks do."""
        self.scheduler.note(f"job {job.number}", "logs: %s", text)
        for owner in self.deployments:
            hint = JobHint(job.number, ended="running" not in text, published=self.scheduler.now)
            self._deliver(self._start_watch, owner, hint)

    def _deliver(self, start: Callable[..., None], *args: Any) -> None:
        """Deliver a message: late, twice, after younger ones, or never."""
        for _ in range(self.random.choices((1, 0, 2), (80, 10, 10))[0] if self.troubled else 1):
            late = self.troubled and self.random.random() < 0.2
            self.scheduler.after(self.random.uniform(0, 120 if late else 1), start, *args, 1)

    def _again(self, start: Callable[..., None], owner: str, message: Any, number: int) -> None:
        if number < TRIES:
            self.scheduler.after(self.random.uniform(5, 60), start, owner, message, number + 1)

    def program(self, name: str, owner: str, main: Callable[[Program], None]) -> Program:
        self._programs += 1
        return Program(self.scheduler, f"{name}{self._programs}{' (2)' * (owner == 'other')}", owner, main)

    def start_pass(self, owner: str, request: PassRequest, number: int = 1) -> None:
        """Run a pass in a fresh instance; what fails or dies is delivered again."""

        def main(program: Program) -> None:
            done, program.request = False, request
            try:
                done = self._pass(program, request)
            finally:
                if not done and request.published is not None:
                    self._again(self.start_pass, owner, request, number)

        self.program("pass", owner, main)

    def _pass(self, program: Program, request: PassRequest) -> bool:
        """Run a pass and return whether it completed."""
        deployment = self.deployments[program.owner]
        program.settings = settings = deployment.settings
        queue: Queue = through(program.call, self.wandb)
        key: Key = _Key(program, self.secret)
        pace = Pace()
        if self.graphql:
            queue, key = graphql.client(program, self.graphql, settings, self.secret, deployment.instance, pace)
        services = Services(
            queue=queue,
            vertex=through(program.call, self.vertex),
            record=Record(through(program.call, deployment.folder), program.redact),
            key=key,
            jobs=Artifacts(),
            redact=program.redact,
            run_parallel=program.run_parallel,
            clock=self.scheduler.clock,
            new_pass_id=lambda: program.name,
            pace=pace,
        )
        try:
            report = run_pass(settings, services, request)
        except (PassBusy, PassLost, Unavailable) as error:
            self.scheduler.note(program.name, "ends: %s %s", type(error).__name__, error)
            self.invariants.secret(program.redact(str(error)), "an error")
            return False
        except Exception as error:
            raise Broken(f"{program.name} raises {error!r}") from error
        program.completed = True
        if isinstance(report, PassReport):
            text = program.redact(json.dumps(report.body()))
            self.scheduler.note(program.name, "ends: %s", text)
            self.invariants.secret(text, "a report")
        return True

    def _start_watch(self, owner: str, hint: JobHint, number: int) -> None:
        """Run job_state for a log entry."""

        def main(program: Program) -> None:
            done, settings = False, self.deployments[owner].settings
            topic = Topic(lambda body: self._tick(owner, body["ended"]))
            vertex, ticks = through(program.call, self.vertex), through(program.call, topic)
            try:
                follow(hint, settings, vertex, ticks, self.scheduler.clock, program.run_parallel)
                done = True
            except (JobNotEnded, Unavailable) as error:
                self.scheduler.note(program.name, "ends: %s", error)
            finally:
                if not done:
                    self._again(self._start_watch, owner, hint, number)

        self.program("job_state", owner, main)

    def _tick(self, owner: str, ended: str) -> None:
        self.invariants.on_tick(owner, ended)
        self._publish(owner, PassRequest(published=self.scheduler.now, ended=ended))

    # From beginning to end

    def live(self) -> None:
        until = START + max(300, self.trouble) + 2 * MINUTE
        self.scheduler.run(until)
        for _ in range(LONGEST_DRAIN):
            if self._over():
                break
            until += MINUTE
            self.scheduler.run(until)
        self.invariants.at_end()

    def _over(self) -> bool:
        return (
            len(self.wandb.contents) >= self._expected
            and all(self.wandb.state(entry.id) in ("CLAIMED", "FAILED") for entry in self.wandb.contents.values())
            and not any(job.lives or job.ended > self.scheduler.now - NOTICED for job in self.vertex.jobs.values())
            and not any(
                one.folder.ledger.open or one.folder.rebuilt > self.scheduler.now for one in self.deployments.values()
            )
        )


class _Key:
    """The secret as one instance reads it: once."""

    def __init__(self, program: Program, secret: Secret) -> None:
        self._program = program
        self._secret = through(program.call, secret)
        self._key = ""

    def get(self) -> str:
        if not self._key:
            self._key = self._secret.get()
            self._program.redact.add(self._key)
        return self._key
