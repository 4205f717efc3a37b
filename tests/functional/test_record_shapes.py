"""A ledger, a lock and a note of any shape: a pass runs, and what was lost is found again or reported."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support.memory import FAILED, RUNNING, SUCCEEDED, Crash, World, image_spec, never, no_quota
from tests.support.numbers import examples
from tests.support.shapes import nodes, put
from vertex_launch.codes import Code
from vertex_launch.errors import PassBusy
from vertex_launch.model import PassReport
from vertex_launch.state.open_item import CLOCK_SKEW, Stage
from vertex_launch.state.record import LEDGER, LOCK, NOTE

YEAR_30000 = 884_541_340_800
STOCKOUT = "Resources are insufficient in region: us-central1."


def busy() -> World:
    """Return a world whose ledger has items at every stage."""
    world = World(max_jobs=30)
    world.settings = world.settings.model_copy(update={"max_attempts": 3})
    items = [world.queue.push("cpu", image_spec()) for _ in range(4)]
    world.run()
    jobs = {item: world.vertex.of(item)[0].name for item in items}
    world.vertex.set(jobs[items[0]], FAILED, STOCKOUT)
    world.vertex.set(jobs[items[1]], SUCCEEDED)
    world.vertex.set(jobs[items[2]], RUNNING)
    world.clock.sleep(100)
    world.queue.push("cpu", image_spec())
    world.vertex.on_create = never
    world.run()
    world.queue.push("gpu", image_spec())
    world.vertex.on_create = no_quota
    world.run()
    world.vertex.on_create = lambda request, create: create()
    assert {Stage.PLANNED, Stage.CLAIMED} <= {entry.stage for entry in world.ledger.open.values()}
    assert world.ledger.waiting
    return world


def ledger_of(world: World) -> Any:
    """Return the world's ledger as JSON; which of its jobs has which name depends on threads."""
    return json.loads(world.bucket.objects[LEDGER][0])


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1e308,
        10**25,
        10**200,
        YEAR_30000,
        "",
        "x",
        "nan",
        "inf",
        "../..",
        [],
        {},
        [1],
        [[]],
        {"a": 1},
        [None],
    ]
)


PLACES = [place for place in nodes(ledger_of(busy())) if place != ("entity",)]
"""What may be changed. Another entity cannot be distinguished from one that was really there before."""


def passes(world: World) -> None:
    """Run passes until what was open is settled; good items start within two."""
    later = [world.queue.push(queue, image_spec()) for queue in ("cpu", "gpu")]
    for _ in range(2):
        world.clock.sleep(400)
        world.run()
    assert [world.queue.state(item) for item in later] == ["CLAIMED"] * 2
    for _ in range(8):
        for job in world.vertex.living():
            world.vertex.set(job.name, SUCCEEDED)
        world.clock.sleep(1000)
        world.run()
    assert all(world.queue.state(item) in ("CLAIMED", "FAILED") for item in world.queue.contents)
    assert max(len(world.vertex.of(item)) for item in world.queue.contents) <= 3
    assert not world.ledger.open


@settings(max_examples=examples(2_000), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
@example([(("open", "Item1", "claimed"), 0)])
@example([(("open",), {"a": {"item": "a"}})])
@example([(("full_pass_began",), YEAR_30000)])
@example([(("free_lock",), -1)])
@example([(("writes",), 10**200)])
def test_a_ledger_of_any_shape(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    world = busy()
    ledger = ledger_of(world)
    for place, new in changes:
        if place in set(nodes(ledger)):
            ledger = put(ledger, place, new)
    world.bucket.put(LEDGER, json.dumps(ledger).encode())
    passes(world)


def entry(**changes: Any) -> dict[str, Any]:
    attempt = {"region": "us-central1", "planned": 1.8e9}
    return {"item": "a", "queue": "cpu", "entity": "acme", "project": "p", "run": "r", "attempts": [attempt]} | changes


JOB = "projects/p/locations/us-central1/customJobs/99"
CONTRADICTIONS = {
    "no attempts": entry(attempts=[]),
    "another item's key": entry(item="b"),
    "a job without a name": entry(attempts=[{"region": "us-central1", "planned": 1.8e9, "job": "99"}]),
    "attempts backwards": entry(
        attempts=[{"number": number, "region": "us-central1", "planned": 1.8e9, "job": JOB} for number in (2, 1)]
    ),
    "a retry of a job that lives": entry(
        claimed=True, retry={"at": 1.0}, attempts=[{"region": "us-central1", "planned": 1.8e9, "job": JOB}]
    ),
    "claimed without a job": entry(claimed=True),
    "planned in the year 30000": entry(attempts=[{"region": "us-central1", "planned": YEAR_30000}]),
    "planned before 1970": entry(attempts=[{"region": "us-central1", "planned": -5}]),
    "a region that is none": entry(attempts=[{"region": "evil.example/", "planned": 1.8e9}]),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_an_entry_that_contradicts_itself_is_left_out_with_a_notice_and_the_others_stay(name: str) -> None:
    world = busy()
    others = set(world.ledger.open)
    value = ledger_of(world)
    value["open"]["a"] = CONTRADICTIONS[name]
    world.bucket.put(LEDGER, json.dumps(value).encode())
    report = world.run()
    assert any(Code.LEDGER_REPAIRED in notice and "open.a" in notice for notice in report.notices)
    assert others <= set(world.ledger.open) | {"a"}
    assert "a" not in world.ledger.open
    assert not world.run().notices


AHEAD = [310, 3_600, 80_000]


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_create_that_was_planned_in_the_future_holds_its_slot_no_longer_than_one_from_now(ahead: float) -> None:
    world = World(max_jobs=1)
    world.vertex.on_create = never
    lost = world.queue.push("cpu", image_spec())
    world.run()
    value = ledger_of(world)
    value["open"][lost]["attempts"][0]["planned"] += ahead
    world.bucket.put(LEDGER, json.dumps(value).encode())
    world.vertex.on_create = lambda request, create: create()
    for _ in range(3):
        world.run()
        world.clock.sleep(CLOCK_SKEW + world.settings.timeouts.intent_grace)
    assert len(world.vertex.of(lost)) == 1


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_dying_job_of_the_future_holds_its_slot_no_longer_than_one_from_now(ahead: float) -> None:
    world = World(max_jobs=1)
    world.run()
    value = ledger_of(world)
    value["dying"] = {JOB: {"since": world.clock.now + ahead}}
    world.bucket.put(LEDGER, json.dumps(value).encode())
    item = world.queue.push("cpu", image_spec())
    for _ in range(3):
        world.run()
        world.clock.sleep(CLOCK_SKEW + world.settings.timeouts.intent_grace)
    assert world.queue.state(item) == "CLAIMED"


@pytest.mark.parametrize("ahead", AHEAD)
def test_a_pass_of_the_future_covers_no_tick(ahead: float) -> None:
    world = World()
    world.run()
    value = ledger_of(world)
    value["full_pass_began"] = world.clock.now + ahead
    world.bucket.put(LEDGER, json.dumps(value).encode())
    assert isinstance(world.tick(world.clock.now), PassReport)


@pytest.mark.parametrize("ahead", AHEAD)
def test_no_item_waits_for_a_time_that_no_pass_would_set(ahead: float) -> None:
    world = busy()
    value = ledger_of(world)
    for waiting in value["waiting"].values():
        waiting["until"] = world.clock.now + 900 + ahead
    world.bucket.put(LEDGER, json.dumps(value).encode())
    read = world.services().record.read(world.clock).ledger
    assert read
    for waiting in read.waiting.values():
        assert waiting.until - world.clock.now == pytest.approx(900 + CLOCK_SKEW, abs=1)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"9" * 5000, b"[" * 10_000, b'{"version": 2, "open": 1e999}'])
def test_a_ledger_that_is_not_one_is_rebuilt_with_a_notice(content: bytes) -> None:
    world = busy()
    world.bucket.put(LEDGER, content)
    world.clock.sleep(world.settings.lock_seconds)
    assert any(Code.LEDGER_REPAIRED in notice for notice in world.run().notices)
    passes(world)


def test_the_first_pass_of_a_deployment_reports_no_damage() -> None:
    assert World().run().notices == []


LOCKS: list[Any] = [YEAR_30000, 1e308, 1.9e9, 1.8e9 + 2000]


@pytest.mark.parametrize("expires", LOCKS)
def test_a_lock_lasts_as_long_after_its_write_as_a_pass_may_run(expires: float) -> None:
    world = World()
    world.bucket.put(LOCK, json.dumps({"pass_id": "other", "expires": expires}).encode())
    for _ in range(3):
        with pytest.raises(PassBusy):
            world.run()
        world.clock.sleep(100)
    world.clock.sleep(world.settings.lock_seconds)
    world.run()
    assert not world.locked


def test_a_live_pass_keeps_its_lock_although_clocks_differ() -> None:
    """The pass that asks is behind by five minutes, so that a fresh lock seems to last for very long."""
    world = World()
    world.bucket.put(
        LOCK, json.dumps({"pass_id": "other", "expires": world.clock.now + 290 + world.settings.lock_seconds}).encode()
    )
    world.clock.sleep(world.settings.lock_seconds + 280)
    with pytest.raises(PassBusy):
        world.run()
    world.clock.sleep(20)
    world.run()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b'{"pass_id": "a"}',
        b'{"pass_id": "a", "expires": NaN}',
        b'{"pass_id": "a", "expires": -1}',
        b'{"pass_id": "a", "expires": Infinity}',
        b'{"pass_id": "a", "expires": 1e999}',
        b'{"pass_id": "a", "expires": true}',
        b'{"pass_id": ["a"], "expires": 9e9}',
        b'{"pass_id": "a", "expires": "inf"}',
        b"9" * 5000,
        b"[" * 10_000,
        b"\xff",
    ],
)
def test_a_lock_that_no_pass_can_have_written_counts_as_expired(content: bytes) -> None:
    world = World()
    world.bucket.put(LOCK, content)
    world.run()


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"items": "abc", "suspects": {}}',
        b'{"items": [1], "suspects": {}}',
        b'{"items": ["a"], "suspects": {"a": 1e999}}',
        b'{"items": ["a"], "suspects": {"a": null}}',
        b"[" * 10_000,
    ],
)
def test_a_note_of_any_shape(note: bytes) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())

    def die(*_: Any) -> str:
        raise Crash

    world.vertex.on_create = die
    world.crash()
    world.vertex.on_create = lambda request, create: create()
    world.bucket.put(NOTE, note)
    world.clock.sleep(400)
    world.run()
    world.clock.sleep(400)
    world.run()
    assert world.queue.state(item) == "CLAIMED"


def test_times_that_were_while_a_pass_stood_still_are_not_ahead() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.run()

    def stand_still() -> None:
        world.bucket.trouble.clear()
        world.clock.sleep(1000)
        attempt = put(ledger_of(world), ("open", item, "attempts", 0, "planned"), world.clock.now - 1)
        world.bucket.put(LEDGER, json.dumps(attempt).encode())

    world.bucket.trouble["read ledger.json"] = stand_still
    world.run()
    assert world.clock.now - world.ledger.open[item].current.planned < 100
