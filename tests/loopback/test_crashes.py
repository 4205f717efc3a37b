"""Kill a pass, or lose its requests and answers, at every point: no item is lost, and no job is duplicated.

The points are the requests of a pass, each before and after the service does it. The services kill the process, so that it
is the product as it is deployed. Then healthy dispatchers run, while the clock jumps over leases, locks and grace periods.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from local.standins.faults import ANY, AnswerLost
from tests.support.deployment import (
    IMAGE,
    REASON,
    SERVICES,
    STORAGE,
    UNREACHABLE,
    VERTEX,
    WANDB,
    Clock,
    Deployment,
    Point,
)
from tests.support.processes import PATIENCE, eventually
from vertex_launch.settings.config import Timeouts

MAX_JOBS = 8


@dataclass
class Expected:
    """How the items must end."""

    good: list[str] = field(default_factory=list)
    """Claimed, with exactly one job."""
    bad: list[str] = field(default_factory=list)
    """Failed once, with the reason and without a job."""
    foreign: list[str] = field(default_factory=list)
    """Claimed by another agent. The one job that was made for it is cancelled."""


def first_pass(world: Deployment) -> Expected:
    """Prepare a world without ledger, agent and entity. Two items share a run, so that the second has to wait."""
    twins = [world.push(run_id="shared") for _ in range(2)]
    return Expected(good=[world.push(), *twins, world.push()], bad=[world.push(image=UNREACHABLE)])


def later_pass(world: Deployment) -> Expected:
    """Prepare an ended job, an item without an ack, an item of another agent, and a create with an unknown outcome."""
    world.faults[WANDB].refuse("ackRunQueueItem", "try again", times=2)
    unacked, taken = world.push(), world.push()
    assert world.tick()
    done = world.push()
    assert world.tick()
    world.faults[VERTEX].lose("CreateCustomJob")
    unknown = world.push()
    assert world.tick()
    world.clock.sleep(61)
    world.wandb.store.launch.ack(world.wandb.store.items[taken], "of-another-agent")
    world.end_jobs(done)
    fresh = first_pass(world)
    return Expected(good=[unacked, done, unknown, *fresh.good], bad=fresh.bad, foreign=[taken])


@dataclass(frozen=True)
class Case:
    """The world before a pass, the entity in the settings, and the requests of the pass."""

    prepare: Callable[[Deployment], Expected]
    entity: str | None
    requests: Counter[str]
    refused: str = ""
    """An operation that is always refused, and therefore never done."""

    def points(self) -> Iterator[Point]:
        """Return the points of the pass."""
        for operation, times in self.requests.items():
            for nth in range(1, times + 1):
                yield Point(operation, nth, done=False)
                if operation != self.refused:
                    yield Point(operation, nth, done=True)


CASES = {
    "first": Case(
        first_pass,
        None,
        Counter(
            {
                "storage.download": 1,
                "storage.insert": 5,
                "AccessSecretVersion": 1,
                "ListCustomJobs": 2,
                "viewer": 1,
                "project": 3,
                "entity": 1,
                "createLaunchAgent": 1,
                "popFromRunQueue": 1,
                "failRunQueueItem": 1,
                "CreateCustomJob": 3,
                "ackRunQueueItem": 1,
                "updateRunQueueItemWarning": 1,
            }
        ),
        refused="storage.download",  # there is no ledger yet
    ),
    "later": Case(
        later_pass,
        "acme",
        Counter(
            {
                "storage.download": 1,
                "storage.insert": 5,
                "AccessSecretVersion": 1,
                "ListCustomJobs": 2,
                "project": 4,
                "GetCustomJob": 1,
                "CancelCustomJob": 1,
                "popFromRunQueue": 2,
                "failRunQueueItem": 1,
                "CreateCustomJob": 3,
                "ackRunQueueItem": 1,
                "updateRunQueueItemWarning": 2,
            }
        ),
    ),
}
ALL = [(name, point) for name, case in CASES.items() for point in case.points()]
NEW = [(name, point) for name, point in ALL if name == "later" or point.operation not in CASES["later"].requests]
"""The points to test once: those of the later pass, and those that only a first pass has."""


@pytest.mark.parametrize("name", CASES)
def test_a_pass_in_its_own_process_has_these_points(name: str, tmp_path: Path) -> None:
    with _world(name, tmp_path) as world:
        expected = _prepare(world, name)
        process = world.process()
        process.post()
        assert process.answer()[0] == 200, process.said()
        assert world.requests.asked == CASES[name].requests
        _recover(world)
        _assert_settled(world, expected)


@pytest.mark.parametrize(("name", "point"), ALL, ids=str)
def test_a_dispatcher_is_killed(name: str, point: Point, tmp_path: Path) -> None:
    with _world(name, tmp_path) as world:
        expected = _prepare(world, name)
        process = world.process()

        def kill() -> None:
            process.kill()
            raise AnswerLost

        world.requests.at(point, kill)
        process.post()
        with pytest.raises(EOFError):
            process.answer()
        assert process.was_killed()
        assert world.requests.reached.is_set()
        if point.done:
            world.end_jobs(*expected.good)  # before another pass has seen them
        _recover(world)
        _assert_settled(world, expected)
        assert world.requests.done["failRunQueueItem"] == len(expected.bad)


@pytest.mark.parametrize(("name", "point"), [one for one in NEW if one[1].done], ids=str)
def test_an_answer_is_lost(name: str, point: Point, tmp_path: Path) -> None:
    with _world(name, tmp_path) as world:
        expected = _prepare(world, name)

        def lose() -> None:
            raise AnswerLost

        world.requests.at(point, lose)
        world.tick()
        assert world.requests.reached.is_set()
        _recover(world)
        _assert_settled(world, expected)


@pytest.mark.parametrize(("name", "point"), [one for one in NEW if not one[1].done], ids=str)
def test_a_service_goes_down(name: str, point: Point, tmp_path: Path) -> None:
    with _world(name, tmp_path) as world, _leaks_forgiven(world.service_of(point)):
        expected = _prepare(world, name)
        world.start_anew(timeouts=Timeouts(read=0.5, look=0.5))
        faults = world.faults[world.service_of(point)]
        world.requests.at(point, lambda: faults.fail(ANY, 503, times=None))
        world.tick()
        assert world.requests.reached.is_set()
        faults.clear()
        world.start_anew()
        world.end_jobs(*expected.good)  # before another pass has seen them
        _recover(world)
        _assert_settled(world, expected)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("service", SERVICES)
def test_a_service_refuses_each_of_its_operations_at_first(service: str, status: int, tmp_path: Path) -> None:
    with _world("later", tmp_path) as world, _leaks_forgiven(service):
        expected = _prepare(world, "later")
        for operation in CASES["later"].requests:
            world.faults[service].fail(operation, status)
        _recover(world)
        _assert_settled(world, expected)


PAUSES = [
    Point("popFromRunQueue", 1, done=True),
    Point("storage.insert", 2, done=True),
    Point("CreateCustomJob", 2, done=True),
    Point("ackRunQueueItem", 1, done=True),
]
CHANGES = {"popFromRunQueue", "ackRunQueueItem", "failRunQueueItem", "CreateCustomJob", "CancelCustomJob"}


def test_a_paused_dispatcher_changes_nothing_when_it_resumes(tmp_path: Path) -> None:
    """A process pauses for longer than its lock, its leases and the grace of its intents. Another one does its work.

    This takes real time because the process has its own clock. So all pauses run in parallel.
    """
    with ThreadPoolExecutor(len(PAUSES)) as pool:
        list(pool.map(lambda point: _freeze(point, tmp_path / str(point)), PAUSES))


def _freeze(point: Point, folder: Path) -> None:
    folder.mkdir()
    timeouts = {"create": 1, "margin": 0.3, "pass_budget": 1, "intent_grace": 2}
    with Deployment(folder, max_jobs=MAX_JOBS, lease=2, timeouts=timeouts) as world:
        expected = first_pass(world)
        process = world.process()
        world.requests.at(point, process.pause)
        process.post()
        assert world.requests.reached.wait(PATIENCE)
        assert eventually(lambda: world.tick() and list(world.states().values()).count("CLAIMED") == 3)
        asked = world.requests.asked.copy()
        process.go_on()
        assert process.answer()[0] == 409, "it has lost its hold"
        assert (world.requests.asked - asked).keys().isdisjoint(CHANGES)
        _recover(world)
        _assert_settled(world, expected)


@pytest.mark.parametrize("operation", ["ackRunQueueItem", "failRunQueueItem"])
def test_an_item_is_not_changed_after_its_lease(operation: str, tmp_path: Path) -> None:
    """W&B fails until the lease is over and another agent has popped the item. This takes real time."""
    timeouts = {"create": 0.5, "margin": 0.3, "read": 6}
    with Deployment(tmp_path, lease=2, timeouts=timeouts) as world:
        item = world.push(image=UNREACHABLE if operation == "failRunQueueItem" else IMAGE)
        store = world.wandb.store

        def pop_as_another_agent() -> None:
            assert eventually(lambda: store.state(item) == "PENDING")
            store.launch.pop(next(iter(store.queues.values())), None)
            world.faults[WANDB].clear()

        world.faults[WANDB].fail(operation, 503, times=None)
        another_agent = threading.Thread(target=pop_as_another_agent)
        world.requests.at(Point(operation, 1, done=False), another_agent.start)
        world.tick()
        another_agent.join()
        assert world.states()[item] == "LEASED"


@contextmanager
def _leaks_forgiven(service: str) -> Iterator[None]:
    """Collect the connections of refused downloads, which Google's storage client does not close."""
    if service != STORAGE:
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


@pytest.mark.parametrize("lost", [False, True], ids=["", "and answers to creates are lost"])
@pytest.mark.parametrize("name", CASES)
def test_lists_lag_for_longer_than_a_lease(name: str, lost: bool, tmp_path: Path) -> None:
    with _world(name, tmp_path) as world:
        expected = _prepare(world, name)
        world.start_anew(max_jobs=4)
        world.vertex.limits.list_lag = 100
        if lost:
            world.faults[VERTEX].lose("CreateCustomJob", times=3)
        _recover(world)
        _assert_settled(world, expected, max_jobs=4)


def _world(name: str, folder: Path, **settings: Any) -> Deployment:
    """Return a world whose past is earlier than the clock of other processes."""
    return Deployment(folder, Clock(behind=1000), entity=CASES[name].entity, max_jobs=MAX_JOBS, **settings)


def _prepare(world: Deployment, name: str) -> Expected:
    expected = CASES[name].prepare(world)
    world.clock.catch_up()
    world.requests.at(None)
    world.start_anew()
    return expected


def _recover(world: Deployment) -> None:
    """Run healthy dispatchers until everything has ended. Jobs end after a pass has seen them."""
    for _ in range(12):
        world.clock.sleep(61)
        if world.tick():
            world.end_jobs(*(entry.item for entry in world.ledger.open.values() if entry.job))
            if set(world.states().values()) <= {"CLAIMED", "FAILED"} and not world.ledger.open:
                return


def _assert_settled(world: Deployment, expected: Expected, max_jobs: int = MAX_JOBS) -> None:
    items = world.wandb.store.items
    assert world.states() == {
        **dict.fromkeys([*expected.good, *expected.foreign], "CLAIMED"),
        **dict.fromkeys(expected.bad, "FAILED"),
    }
    jobs = {item: world.jobs_of(item) for item in items}
    assert {item: [job.state for job in made] for item, made in jobs.items() if made} == {
        **{item: ["JOB_STATE_SUCCEEDED"] for item in expected.good},
        **{item: ["JOB_STATE_CANCELLED"] for item in expected.foreign},
    }
    assert {item: items[item].associated_run_id for item in expected.good} == {
        item: jobs[item][0].run.id for item in expected.good
    }
    assert all(REASON in error.message for item in expected.bad if (error := items[item].error))
    assert world.most_active() <= max_jobs
    report = world.tick()
    assert report
    assert (report.slots, report.submitted) == ({"max_jobs": max_jobs, "active": 0, "free": max_jobs}, [])
    assert not world.ledger.open
