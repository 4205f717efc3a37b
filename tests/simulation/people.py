"""What people and other agents do in a simulated world: when it hurts most, and at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.simulation import jobs
from tests.simulation.graphql import Instance
from tests.simulation.queues import Entry
from tests.simulation.scheduler import Program
from tests.support.memory import ENTITY, QUEUES
from vertex_launch.model import PassRequest
from vertex_launch.settings.config import Policy, Region, Settings

if TYPE_CHECKING:
    from tests.simulation.world import World

REGIONS = tuple(Region(name=one, staging_bucket=f"gs://staging-{one}") for one in ("us-central1", "us-east4"))


class People:
    """Draws from the seed what they are like, and does what they do."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._scheduler = world.scheduler
        self._random = random = world.random
        self.snatches = 1.0 if world.short_leases else random.choice((0.0, 0.0, 0.3, 1.0))
        """How often another agent asks for an item just after a lease of it has ended."""
        self.tidy = random.random() < 0.15
        """Whether the jobs of a pass that was killed are deleted soon."""
        self._moving = random.random() < 0.2
        """Whether a region is left when it has not answered a create."""
        self._restores = self._ledger_lost = self.regions_changed = False

    def plan(self, busy: float) -> None:
        """Plan what they do in the first ``busy`` seconds."""
        random = self._random
        doings: list[tuple[float, Callable[[], object], int]] = [
            (1.0, self._dispatch_now, 4),
            (0.3, self._reconfigure, 4),
            (0.3, self._official, 15),
            (0.4, self._stop_run, 3),
            (0.2, self._stop_between, 2),
            (0.15, self._stop_agents, 1),
            (0.2, self._lose_ledger, 1),
            (0.2, self.new_key, 1),
            (0.1, self._stricter_policy, 1),
        ]
        for chance, act, times in doings:
            if random.random() < chance:
                for _ in range(random.randint(1, times)):
                    self._scheduler.after(random.random() * busy, act)
        if random.random() < 0.1:  # a person is there before the scheduler
            self._scheduler.after(2, self._world.start_pass, "test", PassRequest(limit=1))
        self._scheduler.after(busy, self._resume_until_it_works)

    # When it hurts most

    def on_lease(self, program: Program, entry: Entry) -> None:
        """Send another agent to the queue when the lease of an item ends, and let the program freeze until then."""
        if program.owner not in self._world.deployments:
            return
        settings = program.settings
        ends = self._scheduler.now + settings.lease
        budget = program.began + settings.timeouts.pass_budget
        program.deadlines |= {"lease": ends, "ack": ends - settings.timeouts.margin, "budget": budget}
        if self._world.troubled and self._random.random() < self.snatches:
            self._scheduler.after(entry.leased_until + 0.1 - self._scheduler.now, self._official, entry.queue)

    def on_death(self, program: Program) -> None:
        """Begin a new instance, and delete what a pass leaves behind that was killed."""
        if deployment := self._world.deployments.get(program.owner):
            deployment.instance = Instance()
        if self.tidy and self._random.random() < 0.5:
            for job in self._world.vertex.jobs.values():
                if job.by is program and not job.ended:
                    self._scheduler.after(self._random.uniform(1, 40), self._world.vertex.delete, job)

    def on_lost_create(self, owner: str, region: str) -> None:
        """Remove a region that may hold a job which no pass has seen."""
        settings = self._world.deployments[owner].settings
        others = tuple(one for one in REGIONS if one.name != region)
        if self._moving and not self._ledger_lost:
            self.regions_changed = True
            self._deploy(owner, settings.model_copy(update={"regions": others}))

    # At random

    def _dispatch_now(self) -> None:
        limited = PassRequest(limit=self._random.choice((0, 1, 2, 3)))
        wanted = self._random.choice(
            (PassRequest(), limited, PassRequest(queues=("gpu",), limit=1), PassRequest(queues=("gpu",)))
        )
        self._world.start_pass(self._random.choice(list(self._world.deployments)), wanted)

    def _official(self, queue: str = "") -> None:
        """Pop and claim at once, as the official agent does; its job has none of our labels."""

        def main(program: Program) -> None:
            popped = self._world.wandb.lease(queue or self._random.choice(QUEUES))
            program.sleep(self._random.uniform(0, 10))
            if popped.item:
                self._world.wandb.claim(popped.item.id, f"official{popped.item.id}")

        self._world.program("official", "official", main)

    def _stop_run(self) -> None:
        """Ask a run to stop whose job lives or ended a while ago; the program in it obeys or does not."""
        now = self._scheduler.now
        recent = [job for job in self._world.vertex.jobs.values() if job.lives or job.ended > now - 60]
        if recent:
            job = self._random.choice(recent)
            self._world.wandb.stop_run(job.run)
            if not job.plan.stubborn and self._random.random() < 0.6:
                self._scheduler.after(self._random.uniform(1, 50), self._world.vertex.obey, job)

    def _stop_between(self) -> None:
        """Ask a run to stop that waits for its next attempt, as soon as there is one."""
        now, made = self._scheduler.now, self._world.vertex.jobs.values()
        waiting = [job for job in made if job.error in jobs.AGAIN and now - 20 < job.ended]
        if waiting:
            self._world.wandb.stop_run(self._random.choice(waiting).run)
        elif self._world.troubled:
            self._scheduler.after(5, self._stop_between)

    def _stop_agents(self) -> None:
        """Stop the agents in W&B, and perhaps change one's mind soon."""
        self._world.wandb.stop_agents()
        if self._random.random() < 0.7:
            self._scheduler.after(self._random.uniform(2, 90), self._resume)

    def _resume(self) -> None:
        """Resume deployments whose agents were stopped."""
        going = {(one.hostname, one.queues) for one in self._world.wandb.agents.values() if not one.stop_polling}
        wanted = {
            owner: (f"vertex-launch/{owner}", tuple(sorted(f"id-{name}" for name in one.settings.queues)))
            for owner, one in self._world.deployments.items()
        }
        for owner in [one for one, agent in wanted.items() if agent not in going]:
            self._world.start_pass(owner, PassRequest(resume=True))

    def _resume_until_it_works(self) -> None:
        self._resume()
        self._scheduler.after(45, self._resume_until_it_works)

    def _lose_ledger(self) -> None:
        """Damage the ledger, preferably just after a job was created."""
        vertex = self._world.vertex
        young = any(job.created > self._scheduler.now - 20 for job in vertex.jobs.values())
        if self.regions_changed or vertex.stale > 20:
            return  # no promise covers these: a rebuilt ledger knows what the lists of the configured regions show
        if young or not self._world.troubled:
            self._ledger_lost = True
            self._world.deployments["test"].folder.lose_ledger()
        else:
            self._scheduler.after(5, self._lose_ledger)

    def new_key(self) -> str:
        """Put another key into the secret; W&B's server may refuse the one before from now on. Return it."""
        world = self._world
        world.secret.versions.append(f"morrow{len(world.secret.versions)}" * 7)
        world.all_keys.append(world.secret.get())
        if world.graphql and (world.graphql.valid or self._random.random() < 0.5):
            world.graphql.valid = {world.secret.get()}
        return world.secret.get()

    def _stricter_policy(self) -> None:
        """Allow no image from now on: items with a job go on, the others fail."""
        policy = Policy(images=())
        for deployment in self._world.deployments.values():
            deployment.settings = deployment.settings.model_copy(update={"policy": policy})

    def _reconfigure(self) -> None:
        """Deploy with other settings, which the next pass has: limits, regions, queues, how the entity is given."""
        random, owner = self._random, self._random.choice(list(self._world.deployments))
        deployment = self._world.deployments[owner]
        regions = random.choice((REGIONS[:1], REGIONS, REGIONS[::-1]))
        changes: list[dict[str, Any]] = [
            {"max_jobs": random.choice((0, 1, 2, 5))},
            {"queues": random.choice((QUEUES, QUEUES[::-1], QUEUES[:1], QUEUES[1:]))},
            {"entity": random.choice((ENTITY, None))},
        ]
        if not self._ledger_lost:  # what a region holds that is not configured any more, only the ledger knows
            changes.append({"regions": regions})
        change = random.choice(changes)
        self.regions_changed |= "regions" in change
        self._deploy(owner, deployment.settings.model_copy(update=change))
        if not self._restores:
            self._restores = True
            self._scheduler.after(max(300.0, self._world.trouble), self._restore)

    def _restore(self) -> None:
        """Serve everything again, so that everything can end."""
        for owner, one in self._world.deployments.items():
            change = {"queues": QUEUES, "max_jobs": max(1, one.settings.max_jobs)}
            self._deploy(owner, one.settings.model_copy(update=change))

    def _deploy(self, owner: str, settings: Settings) -> None:
        self._world.deployments[owner].settings = settings
        shown = f"max_jobs {settings.max_jobs}, queues {settings.queues}, entity {settings.entity}"
        self._scheduler.happens("a person deploys other settings")
        self._scheduler.note(
            "a person", "deploys %s: %s, regions %s", owner, shown, [one.name for one in settings.regions]
        )
