"""Items that cost too much, meet a bug, or kill the pass that checks them: the others start all the same."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import JobState

from tests.support.memory import QUEUES, Crash, Secret, Service, World, die_once, image_spec
from vertex_launch import limits
from vertex_launch.codes import Code
from vertex_launch.errors import PassLost, Unavailable
from vertex_launch.job import build, environment, retry, run_spec
from vertex_launch.job.request import JobRequest
from vertex_launch.model import Item, PassRequest, Popped
from vertex_launch.state.record import NOTE

WORDS = ("sys.", "codec", "RecursionError", "MemoryError", "Traceback")


def trap(
    monkeypatch: pytest.MonkeyPatch, happens: Callable[[Item], None], place: Any = run_spec, name: str = "parse"
) -> None:
    """Let something happen when an item is checked."""
    check = getattr(place, name)

    def trapped(item: Item, *args: Any, **named: Any) -> Any:
        happens(item)
        return check(item, *args, **named)

    monkeypatch.setattr(place, name, trapped)


def killed_by(*items: str) -> Callable[[Item], None]:
    def happens(item: Item) -> None:
        if item.id in items:
            raise Crash

    return happens


def live(world: World, passes: int) -> list[bool]:
    """Run passes, each after the lock and the leases of the one before have expired; return which died."""
    died = []
    for _ in range(passes):
        try:
            world.run()
        except Crash:
            died.append(True)
        else:
            died.append(False)
        world.clock.sleep(world.settings.lock_seconds + world.settings.lease)
    return died


def states(world: World, items: list[str]) -> set[str]:
    return {world.queue.state(item) for item in items}


# A check that meets a bug


@pytest.mark.parametrize(
    "error", [KeyError("odd"), MemoryError(), RecursionError("maximum recursion"), ValueError("sys.x")]
)
@pytest.mark.parametrize("place", [run_spec, build], ids=["parse", "build"])
def test_a_bug_in_the_check_of_an_item_is_that_items_problem(
    monkeypatch: pytest.MonkeyPatch, error: Exception, place: Any
) -> None:
    world = World()
    bad, *good = [world.queue.push("cpu", image_spec()) for _ in range(4)]

    def happens(item: Item) -> None:
        if item.id == bad:
            raise error

    if place is run_spec:
        trap(monkeypatch, happens)
    else:
        from vertex_launch.dispatch import prepare

        trap(monkeypatch, happens, prepare, "build")
    report = world.run()
    assert [row["item"] for row in report.submitted] == good
    assert [row["code"] for row in report.deferred] == [Code.ITEM_FAULT]
    for _ in range(6):
        world.clock.sleep(300)
        world.run()
    one = world.queue.contents[bad]
    assert one.state == "FAILED"
    assert Code.ITEM_FAULT in one.message
    assert not any(word in one.message for word in WORDS)


def test_a_bug_that_is_fixed_in_time_costs_no_item(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    with monkeypatch.context() as patched:
        trap(patched, lambda item: json.loads("{"))
        world.run()
    world.clock.sleep(300)
    assert [row["item"] for row in world.run().submitted] == [item]
    assert world.ledger.waiting == {}


def test_slow_checks_leave_time_to_start_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_jobs=20)
    items = [world.queue.push("cpu", image_spec()) for _ in range(10)]
    trap(monkeypatch, lambda item: world.clock.sleep(10))
    report = world.run()
    begun = len(report.submitted)
    assert 1 <= begun < len(items)
    assert {row["code"] for row in report.deferred} == {Code.LATE_PASS}
    assert states(world, [row["item"] for row in report.submitted]) == {"CLAIMED"}
    live(world, 5)
    assert states(world, items) == {"CLAIMED"}


def test_a_slow_item_that_is_wrong_fails_in_its_own_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    bad = [world.queue.push("cpu", image_spec(project="")) for _ in range(8)]
    good = world.queue.push("gpu", image_spec())
    trap(monkeypatch, lambda item: world.clock.sleep(10 if item.id in bad else 0))
    world.run()
    assert "FAILED" in states(world, bad)
    live(world, 4)
    assert states(world, bad) == {"FAILED"}
    assert world.queue.state(good) == "CLAIMED"


def test_a_bug_in_a_retry_ends_only_that_items_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_attempts=3)
    first, second = (world.queue.push("cpu", image_spec()) for _ in range(2))
    world.run()
    for job in list(world.vertex.jobs.values()):
        world.vertex.set(job.name, JobState.JOB_STATE_FAILED, "Internal error occurred for the current attempt.")
    again = retry.next_attempt

    def next_attempt(request: JobRequest, **named: Any) -> JobRequest:
        if (
            environment.read(request.custom_job.job_spec.worker_pool_specs[0].container_spec.env)[environment.ITEM]
            == first
        ):
            raise KeyError("odd")
        return again(request, **named)

    monkeypatch.setattr(retry, "next_attempt", next_attempt)
    live(world, 4)
    assert [job.item for job in world.vertex.jobs.values()] == [first, second, second]
    assert world.queue.state(first) == "FAILED"
    assert Code.JOB_INTERNAL in world.queue.contents[first].message


# A check that kills the pass


@pytest.mark.parametrize("neighbours", [0, 1, 3])
@pytest.mark.parametrize("killer_first", [True, False])
def test_an_item_that_kills_passes_fails_and_the_others_start(
    monkeypatch: pytest.MonkeyPatch, neighbours: int, *, killer_first: bool
) -> None:
    world = World(max_jobs=20)
    before = [] if killer_first else [world.queue.push("cpu", image_spec()) for _ in range(neighbours)]
    killer = world.queue.push("cpu", image_spec())
    good = before or [world.queue.push("cpu", image_spec()) for _ in range(neighbours)]
    trap(monkeypatch, killed_by(killer))
    assert live(world, 1) == [True]
    others = [world.queue.push(queue, image_spec()) for queue in QUEUES]
    live(world, 2)
    assert states(world, [*good, *others]) == {"CLAIMED"}, "within two passes"
    died = live(world, 3)
    one = world.queue.contents[killer]
    assert one.state == "FAILED"
    assert Code.ITEM_KILLS in one.message
    assert not died[-1]
    assert world.ledger.suspects.keys() <= {killer}


def test_items_behind_many_suspects_start_in_the_next_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_jobs=10)
    killer = world.queue.push("cpu", image_spec())
    first = [world.queue.push("cpu", image_spec()) for _ in range(9)]
    trap(monkeypatch, killed_by(killer))
    live(world, 1)
    behind = [world.queue.push("cpu", image_spec()) for _ in range(4)]
    live(world, 1)
    assert states(world, behind) == {"CLAIMED"}
    live(world, 1)
    assert world.vertex.most_active == 10
    assert len([item for item in first if world.queue.state(item) == "CLAIMED"]) == 6


def test_two_killers_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_jobs=20)
    killers = [world.queue.push(queue, image_spec()) for queue in QUEUES]
    good = [world.queue.push(queue, image_spec()) for queue in QUEUES * 3]
    trap(monkeypatch, killed_by(*killers))
    live(world, 7)
    assert states(world, killers) == {"FAILED"}
    assert states(world, good) == {"CLAIMED"}


@pytest.mark.parametrize("operation", ["create", "ack", "write ledger.json", "pop", "ask"])
def test_passes_that_die_of_something_else_fail_no_item(operation: str) -> None:
    world = World()
    items = [world.queue.push("cpu", image_spec()) for _ in range(3)]

    def die() -> None:
        raise Crash

    service: Any = {"create": world.vertex, "write ledger.json": world.bucket}.get(operation, world.queue)
    for _ in range(4):
        service.trouble[operation] = die
        world.crash()
        world.clock.sleep(world.settings.lock_seconds + world.settings.lease + world.settings.timeouts.intent_grace)
    service.trouble.clear()
    live(world, 3)
    assert states(world, items) == {"CLAIMED"}
    assert world.ledger.suspects == {}


def test_a_pass_that_found_no_fault_in_a_suspect_forgets_the_suspicion(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    items = [world.queue.push("cpu", image_spec()) for _ in range(3)]
    with monkeypatch.context() as patched:
        trap(patched, killed_by(items[0]))
        live(world, 1)
    assert live(world, 1) == [False]
    assert world.ledger.suspects == {}
    assert states(world, items) == {"CLAIMED"}


def test_what_a_note_costs() -> None:
    world = World()
    world.run()
    assert world.bucket.calls[f"write {NOTE}"] == 0, "an idle pass writes none"
    [world.queue.push("cpu", image_spec()) for _ in range(3)]
    world.run()
    assert world.bucket.calls[f"write {NOTE}"] == 1, "one for a round with new items"
    world.clock.sleep(60)
    world.run()
    assert world.bucket.calls[f"write {NOTE}"] == 1
    assert world.bucket.calls[f"read {NOTE}"] == 0, "it is read only after a pass that died"


@pytest.mark.parametrize(
    "left", [b"", b"{", b"[]", b'{"items": 5}', b'{"items": ["a"], "suspects": 3}', b"null", b"\xff" * 99]
)
def test_a_damaged_note_stops_nothing(left: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    killer = world.queue.push("cpu", image_spec())
    with monkeypatch.context() as patched:
        trap(patched, killed_by(killer))
        live(world, 1)
    world.bucket.put(NOTE, left)
    world.run()
    assert world.queue.state(killer) == "CLAIMED"


def test_a_pass_that_failed_but_did_not_die_makes_nothing_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    with monkeypatch.context() as patched:
        patched.setattr(Secret, "get", lambda self: Service.refuse(self))
        with pytest.raises(Unavailable):
            world.run()
    assert world.bucket.calls[f"write {NOTE}"] == 1
    world.queue.trouble["ask"] = killed_by_anything
    assert live(world, 1) == [True]
    world.queue.trouble.clear()
    world.run()
    assert json.loads(world.bucket.objects[NOTE][0])["items"] == [item], "a suspect leaves an empty note"
    assert world.queue.state(item) == "CLAIMED"


def test_a_pass_that_does_not_know_of_its_own_note_makes_nothing_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    write = world.bucket.write

    def lose_the_answer(name: str, content: bytes, generation: int) -> int | None:
        written = write(name, content, generation)
        return world.bucket.refuse("write") if name == NOTE else written

    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(world.bucket, "write", lose_the_answer)
            with pytest.raises(Unavailable):
                world.run()
        world.queue.trouble["ask"] = killed_by_anything
        assert live(world, 1) == [True]
        world.queue.trouble.clear()
        world.run(PassRequest(limit=0))
        world.clock.sleep(world.settings.lease)
    world.run()
    assert world.queue.state(item) == "CLAIMED"


def test_a_pass_that_outlived_its_lock_does_not_replace_the_note_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.queue.push("cpu", image_spec())
    pop = world.queue.lease

    def lease(queue: str) -> Popped:
        leased = pop(queue)
        world.clock.sleep(world.settings.lock_seconds + 1)
        return leased

    monkeypatch.setattr(world.queue, "lease", lease)
    with pytest.raises(PassLost):
        world.run()
    assert world.bucket.calls[f"write {NOTE}"] == 0


def killed_by_anything() -> None:
    raise Crash


@pytest.mark.parametrize("lost_after", [1, 2, 3])
def test_a_lost_ledger_keeps_the_suspicion(lost_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    killer, good = (world.queue.push("cpu", image_spec()) for _ in range(2))
    trap(monkeypatch, killed_by(killer))
    live(world, lost_after)
    world.bucket.lose_ledger()
    live(world, 5 - lost_after)
    assert world.queue.state(killer) == "FAILED"
    assert world.queue.state(good) == "CLAIMED"


def test_a_lost_ledger_does_not_count_a_pass_that_got_further(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    with monkeypatch.context() as patched:
        trap(patched, killed_by(item))
        assert live(world, 1) == [True]
    die_once(world.vertex, "create", 1, after=False)
    assert live(world, 1) == [True], "after the check"
    world.bucket.lose_ledger()
    assert live(world, 2) == [False, False]
    assert world.queue.state(item) == "CLAIMED"


@pytest.mark.parametrize("times", [2, 3])
def test_a_pass_that_outlived_its_lock_did_not_die_of_what_it_checked(times: int) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    for _ in range(times):
        world.bucket.trouble["write ledger.json"] = world.bucket.lose_ledger
        with pytest.raises(PassLost):
            world.run()
        world.bucket.trouble.clear()
        world.clock.sleep(200)
    world.run()
    assert world.queue.state(item) == "CLAIMED"


# A round of large items


def test_a_round_keeps_a_bounded_amount_of_jobs_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_jobs=60)
    large = image_spec(overrides={"run_config": {"a": "x" * 900_000}})
    items = [world.queue.push("cpu", large) for _ in range(50)]
    report = world.run()
    assert {row["code"] for row in report.deferred} == {Code.ROUND_SIZE}
    assert sum(job.message._pb.ByteSize() for job in world.vertex.jobs.values()) <= limits.LARGEST_ROUND
    live(world, 3)
    assert states(world, items) == {"CLAIMED"}


class Text(str):
    """A text whose end can be seen."""


def test_large_items_leave_the_memory_before_the_next_ones_are_popped(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_jobs=30)
    lease, live_ones = world.queue.lease, list[weakref.ref[Text]]()

    def popped(queue: str) -> Popped:
        found = lease(queue)
        if found.item is None:
            return found
        text = Text(json.dumps(found.item.spec))
        live_ones.append(weakref.ref(text))
        return replace(found, item=replace(found.item, spec=text))

    pop, most = world.queue.pop, 0
    monkeypatch.setattr(world.queue, "lease", popped)
    monkeypatch.setattr(
        world.queue, "pop", lambda entity, queues, *args, **named: pop(entity, queues[:5], *args, **named)
    )

    def count(item: Item) -> None:
        nonlocal most
        most = max(most, sum(len(text) for one in live_ones if (text := one()) is not None))

    trap(monkeypatch, count)
    items = [world.queue.push(QUEUES[n % 2], image_spec(anything="x" * 1_000_000)) for n in range(24)]
    world.run()
    assert states(world, items) == {"CLAIMED"}
    assert limits.LARGEST_LEASE < most < 1.5 * limits.LARGEST_LEASE


def test_large_attempts_that_are_due_do_not_begin_all_at_once() -> None:
    world = World(max_jobs=60, max_attempts=3)
    large = image_spec(overrides={"run_config": {"a": "x" * 900_000}})
    for _ in range(3):
        [world.queue.push("cpu", large) for _ in range(15)]
        world.run()
        world.clock.sleep(70)
    first = list(world.vertex.jobs.values())
    assert len(first) == 45
    for job in first:
        world.vertex.set(job.name, JobState.JOB_STATE_FAILED, "Internal error occurred for the current attempt.")
    world.run()
    world.clock.sleep(400)
    again = len(world.run().resubmitted)
    assert limits.LARGEST_ROUND / 1e6 < again < 45
    live(world, 2)
    assert len(world.vertex.jobs) == 90


def test_every_item_over_a_bound_fails_and_the_good_ones_of_both_queues_start() -> None:
    world = World(max_jobs=20)
    env = {"worker_pool_specs": [{"container_spec": {"image_uri": "a", "env": [{}] * 50_000}}]}
    bad = [
        world.queue.push("cpu", image_spec(name="${run_name}" * 10_000)),
        world.queue.push("cpu", image_spec(anything="x" * 2_000_000)),
        world.queue.push("cpu", image_spec(resource_args={"vertex": {"spec": env}})),
        world.queue.push("gpu", image_spec(anything=[{}] * 300_000)),
    ]
    good = [world.queue.push(queue, image_spec()) for queue in QUEUES]
    world.run()
    assert states(world, bad) == {"FAILED"}
    assert states(world, good) == {"CLAIMED"}
    assert all(len(world.queue.contents[item].message) < limits.LONGEST_MESSAGE for item in bad)
