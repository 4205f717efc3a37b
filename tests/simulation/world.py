"""One world from a seed: deployments and what their passes meet, people, other agents, Pub/Sub, and time."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.simulation import graphql, jobs
from tests.simulation.graphql import GraphQL
from tests.simulation.invariants import Invariants
from tests.simulation.jobs import Job, Plan, Vertex
from tests.simulation.objects import Folder
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
from vertex_launch.settings.config import Batches, Policy, Region, Settings
from vertex_launch.state.record import Record

MINUTE = 60.0
LONGEST_DRAIN = 120
"""Minutes without a fault after which everything must have ended."""
NOTICED = 30.0
"""Seconds in which job_state looks at a job that has ended."""
REGIONS = tuple(Region(name=one, staging_bucket=f"gs://staging-{one}") for one in ("us-central1", "us-east4"))
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
        self.short_leases = random.random() < 0.03
        """Whether W&B's leases may be shorter than configured, which excuses messages after a lease."""
        self.snatches = random.choice((0.0, 0.0, 0.3))
        """How often another agent asks for an item just after a lease of it has ended."""
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
        self._programs = 0
        self._restores = self._ledger_lost = self._regions_changed = False
        self._plan_what_happens()

    @property
    def troubled(self) -> bool:
        return self.scheduler.now < START + self.trouble

    def _fault(self, operation: str) -> Fault:
        """Draw the fault of a call, preferably one that this operation has not met yet in this world."""
        if not self.troubled:
            return Fault.NONE
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
        if self.random.random() > 0.4:
            return None
        extended = self.random.random() < 0.8
        self.wandb.silent |= not extended
        return GraphQL(self, batched=self.random.random() < 0.8, extended=extended)

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
            "give_up_after": 1200,
        }
        return Deployment(Settings(**SETTINGS | changes), Folder(self.scheduler))

    def lease(self) -> float:
        """Draw the length of one lease; 60 seconds are configured."""
        if self.short_leases and self.random.random() < 0.3:
            return self.random.uniform(5, 60)
        return self.random.choice((60.0, 60.0, self.random.uniform(60, 400)))

    def _push(self, number: int) -> None:
        random, chance = self.random, self.random.random()
        entry = self.wandb.contents[self.wandb.push(random.choice(QUEUES), image_spec())]
        entry.pushed = self.scheduler.now
        entry.hopeless, entry.refused, entry.quota = chance < 0.08, 0.08 < chance < 0.14, not 0.14 < chance < 0.18
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
        elif random.random() < 0.15 and alone:
            entry.spec["run_id"] = run = random.choice(("preset", f"preset{number}"))
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
        end = FAILED if dies_early else random.choices(ends, (28, 55, 4, 4, 9))[0]
        errors = {FAILED: jobs.AGAIN + jobs.BAD, EXPIRED: jobs.BAD, PARTLY: jobs.BAD}
        return Plan(
            queued=random.choices((0.0, random.uniform(5, 400)), (85, 15))[0],
            pending=random.choices((random.uniform(1, 60), 1e5 if may_hang else 30.0), (94, 6))[0],
            running=0.0 if dies_early else random.uniform(10, 400),
            odd=random.choices((0, random.choice(jobs.ODD)), (90, 10))[0],
            init=random.choices((random.uniform(1, 30), 1e5), (85, 15))[0],
            shown=random.choices((0.0, random.uniform(0, 60)), (60, 40))[0],
            announced=random.choices((0.0, 9.0), (80, 20))[0],
            end=end,
            error=random.choice(errors.get(end, ("",))),
            said=random.choice((0.0, random.uniform(1, 60))) if end == FAILED else 0.0,
            cancelling=random.uniform(1, 90),
            cancelled=random.choices((CANCELLED, SUCCEEDED, FAILED), (85, 8, 7))[0],
            deleted=random.uniform(5, 300) if random.random() < self._deletes else 0.0,
            stubborn=random.random() < 0.7,
        )

    # What happens

    def _plan_what_happens(self) -> None:
        random, after, busy = self.random, self.scheduler.after, max(300, self.trouble)
        spread = random.choice((1, 300))
        for number in range(random.randint(2, 4)):
            after(random.random() * spread, self._push, number + 1)
        for owner in self.deployments:
            after(random.random() * MINUTE, self._scheduled, owner)
        doings: list[tuple[float, Callable[[], None], int]] = [
            (1.0, self._dispatch_now, 4),
            (0.3, self._reconfigure, 4),
            (0.3, self.official, 15),
            (0.4, self._stop_run, 3),
            (0.2, self._stop_between, 2),
            (0.1, self.wandb.stop_agents, 1),
            (0.2, self._lose_ledger, 1),
            (0.2, self._new_key, 1),
            (0.1, self._stricter_policy, 1),
        ]
        for chance, act, times in doings:
            if random.random() < chance:
                for _ in range(random.randint(1, times)):
                    after(random.random() * busy, act)
        if random.random() < 0.1:  # a person is there before the scheduler
            after(2, self._start_pass, "test", PassRequest(limit=1), 1)
        after(busy, self._resume)
        after(self.trouble, self._calm)

    def _calm(self) -> None:
        """Let calls be as fast as a pass needs them to be to get anything done."""
        self.scheduler.slow = min(self.scheduler.slow, 2.0)

    def _scheduled(self, owner: str) -> None:
        """Publish the scheduled tick, each minute."""
        self._publish(owner, PassRequest(published=self.scheduler.now))
        self.scheduler.after(MINUTE, self._scheduled, owner)

    def _publish(self, owner: str, request: PassRequest) -> None:
        self._deliver(self._start_pass, owner, request)

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

    def _program(self, name: str, owner: str, main: Callable[[Program], None]) -> Program:
        self._programs += 1
        return Program(self.scheduler, f"{name}{self._programs}{' (2)' * (owner == 'other')}", owner, main)

    def _start_pass(self, owner: str, request: PassRequest, number: int) -> None:
        """Run a pass in a fresh instance; what fails or dies is delivered again."""

        def main(program: Program) -> None:
            done, program.request = False, request
            try:
                done = self._pass(program, request)
            finally:
                if not done and request.published is not None:
                    self._again(self._start_pass, owner, request, number)

        self._program("pass", owner, main)

    def _pass(self, program: Program, request: PassRequest) -> bool:
        """Run a pass and return whether it completed."""
        deployment = self.deployments[program.owner]
        program.settings = settings = deployment.settings
        queue: Queue = through(program.call, self.wandb)
        key: Key = _Key(program, self.secret)
        pace = Pace()
        if self.graphql:
            queue, key = graphql.client(program, self.graphql, settings, self.secret, pace)
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

        self._program("job_state", owner, main)

    # What people and others do

    def _dispatch_now(self) -> None:
        limited = PassRequest(limit=self.random.choice((0, 1, 2, 3)))
        wanted = self.random.choice(
            (PassRequest(), limited, PassRequest(queues=("gpu",), limit=1), PassRequest(queues=("gpu",)))
        )
        self._start_pass(self.random.choice(list(self.deployments)), wanted, 1)

    def official(self, queue: str = "") -> None:
        """Pop and claim at once, as the official agent does; its job has none of our labels."""

        def main(program: Program) -> None:
            popped = self.wandb.lease(queue or self.random.choice(QUEUES))
            program.sleep(self.random.uniform(0, 10))
            if popped.item:
                self.wandb.claim(popped.item.id, f"official{popped.item.id}")

        self._program("official", "official", main)

    def _stop_run(self) -> None:
        """Ask a run to stop whose job lives or ended a while ago; the program in it obeys or does not."""
        recent = [job for job in self.vertex.jobs.values() if job.lives or job.ended > self.scheduler.now - 60]
        if recent:
            job = self.random.choice(recent)
            self.wandb.stop_run(job.run)
            if not job.plan.stubborn and self.random.random() < 0.6:
                self.scheduler.after(self.random.uniform(1, 50), self.vertex.obey, job)

    def _stop_between(self) -> None:
        """Ask a run to stop that waits for its next attempt, as soon as there is one."""
        now, made = self.scheduler.now, self.vertex.jobs.values()
        waiting = [job for job in made if job.error in jobs.AGAIN and now - 20 < job.ended]
        if waiting:
            self.wandb.stop_run(self.random.choice(waiting).run)
        elif self.troubled:
            self.scheduler.after(5, self._stop_between)

    def _resume(self) -> None:
        """Resume deployments whose agents were stopped, until that has worked."""
        going = {(agent.hostname, agent.queues) for agent in self.wandb.agents.values() if not agent.stop_polling}
        wanted = {
            owner: (f"vertex-launch/{owner}", tuple(sorted(f"id-{name}" for name in one.settings.queues)))
            for owner, one in self.deployments.items()
        }
        for owner in [one for one, agent in wanted.items() if agent not in going]:
            self._start_pass(owner, PassRequest(resume=True), 1)
        self.scheduler.after(45, self._resume)

    def _lose_ledger(self) -> None:
        """Damage the ledger, preferably just after a job was created."""
        young = any(job.created > self.scheduler.now - 20 for job in self.vertex.jobs.values())
        if self._regions_changed or self.vertex.stale > 20:
            return  # no promise covers these: a rebuilt ledger knows what the lists of the configured regions show
        if young or not self.troubled:
            self._ledger_lost = True
            self.deployments["test"].folder.lose_ledger()
        else:
            self.scheduler.after(5, self._lose_ledger)

    def _new_key(self) -> None:
        self.secret.versions.append("morrow" * 7)
        self.all_keys.append(self.secret.get())
        if self.graphql and self.random.random() < 0.5:
            self.graphql.valid = {self.secret.get()}

    def _stricter_policy(self) -> None:
        """Allow no image from now on: items with a job go on, the others fail."""
        policy = Policy(images=())
        for deployment in self.deployments.values():
            deployment.settings = deployment.settings.model_copy(update={"policy": policy})

    def _reconfigure(self) -> None:
        """Deploy with other settings, which the next pass has: limits, regions, queues, how the entity is given."""
        random, owner = self.random, self.random.choice(list(self.deployments))
        deployment = self.deployments[owner]
        regions = random.choice((REGIONS[:1], REGIONS, REGIONS[::-1]))
        changes: list[dict[str, Any]] = [
            {"max_jobs": random.choice((0, 1, 2, 5))},
            {"queues": random.choice((QUEUES, QUEUES[::-1], QUEUES[:1], QUEUES[1:]))},
            {"entity": random.choice((ENTITY, None))},
        ]
        if not self._ledger_lost:  # what a region holds that is not configured any more, only the ledger knows
            changes.append({"regions": regions})
        change = random.choice(changes)
        self._regions_changed |= "regions" in change
        self._deploy(owner, deployment.settings.model_copy(update=change))
        if not self._restores:
            self._restores = True
            self.scheduler.after(max(300.0, self.trouble), self._restore)

    def _restore(self) -> None:
        """Serve everything again, so that everything can end."""
        for owner, one in self.deployments.items():
            change = {"queues": QUEUES, "max_jobs": max(1, one.settings.max_jobs)}
            self._deploy(owner, one.settings.model_copy(update=change))

    def _deploy(self, owner: str, settings: Settings) -> None:
        self.deployments[owner].settings = settings
        shown = f"max_jobs {settings.max_jobs}, queues {settings.queues}, entity {settings.entity}"
        self.scheduler.happens("a person deploys other settings")
        self.scheduler.note(
            "a person", "deploys %s: %s, regions %s", owner, shown, [one.name for one in settings.regions]
        )

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
            all(self.wandb.state(entry.id) in ("CLAIMED", "FAILED") for entry in self.wandb.contents.values())
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
