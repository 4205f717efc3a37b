"""The ledger: what it holds, what it forgets, that it survives its JSON, and that version 1 is still read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vertex_launch.model import Item, Kind, ManagedJob, RunId
from vertex_launch.state.ledger import Ledger, Waiting
from vertex_launch.state.open_item import Attempt, OpenItem, Retry, Stage, pause

NAME = "projects/p/locations/{region}/customJobs/{number}"
RUN = RunId("e", "p", "r")
times = st.floats(0, 2e9)
texts = st.text(max_size=20)
regions = st.from_regex("[a-z0-9-]{1,40}", fullmatch=True)
jobs = st.just("") | st.builds(
    lambda region, number: NAME.format(region=region, number=number), regions, st.integers(1, 99)
)
attempts = st.builds(Attempt, number=st.integers(1, 9), region=regions, planned=times, job=jobs, ended=times)


def item_of(tries: list[Attempt], claimed: bool, retry: Retry | None, **given: Any) -> OpenItem:
    last = tries[-1]
    claimed = claimed and bool(last.job or last.ended or len(tries) > 1)
    return OpenItem(
        attempts=tuple(tries), claimed=claimed, retry=retry if claimed and last.ended and last.job else None, **given
    )


items = st.builds(
    item_of,
    tries=st.lists(attempts, min_size=1, max_size=3, unique_by=lambda one: one.number).map(
        lambda tries: sorted(tries, key=lambda one: one.number)
    ),
    claimed=st.booleans(),
    retry=st.none() | st.builds(Retry, at=times),
    item=texts,
    queue=texts,
    entity=texts,
    project=texts,
    run=texts,
    kind=st.sampled_from(Kind),
    warned=st.lists(texts, max_size=2).map(tuple),
)
ledgers = st.builds(
    Ledger,
    entity=texts,
    agent=texts,
    turn=texts,
    full_pass_began=times,
    submissions=st.dictionaries(texts, st.lists(times, max_size=3), max_size=2),
    open=st.lists(items, max_size=3).map(lambda found: {one.item: one for one in found}),
    waiting=st.dictionaries(
        texts, st.builds(Waiting, since=times, seen=times, warned=st.lists(texts, max_size=2).map(tuple))
    ),
)


@given(ledgers)
def test_it_survives_its_json(ledger: Ledger) -> None:
    assert Ledger.parse(ledger.dump()) == ledger


@given(
    st.binary().filter(lambda text: not text.startswith(b"{"))
    | st.sampled_from([b"{}", b"{}[]", b"null", b"[]", b"[" * 100_000, b'{"version": 3}'])
)
def test_a_damaged_ledger_counts_as_lost(text: bytes) -> None:
    assert Ledger.parse(text) is None


@pytest.mark.parametrize("entry", ["1", "{}", '{"last": "x"}', "[]", '{"region": "a", "since": "b"}'])
def test_a_damaged_item_of_version_1_is_left_out(entry: str) -> None:
    ledger = Ledger.parse(f'{{"version": 1, "turn": "gpu", "open": {{"a": {entry}}}}}'.encode())
    assert ledger
    assert (ledger.open, ledger.dropped, ledger.rebuild, ledger.turn) == ({}, ["open.a"], True, "gpu")


def job(item: str, number: int = 1, attempt: int = 1, **changes: Any) -> ManagedJob:
    given: dict[str, Any] = {
        "state": "JOB_STATE_RUNNING",
        "ended": False,
        "cancelling": False,
        "created": 1.0,
    } | changes
    name = NAME.format(region="r", number=number)
    return ManagedJob(name=name, region="r", item=item, run=RUN, queue="q", attempt=attempt, kind=Kind.JOB, **given)


def planned(ledger: Ledger, item: str, kind: Kind = Kind.JOB) -> None:
    ledger.plan(Item(item, "q", {}), RUN, "r", kind, 1.0, stopped_before=False)


def opened(ledger: Ledger, item: str = "a") -> OpenItem:
    planned(ledger, item)
    return ledger.open[item]


def test_an_item_goes_through_its_stages() -> None:
    entry, stages = opened(Ledger()), list[Stage]()
    steps: list[Callable[[OpenItem], OpenItem | None]] = [
        lambda entry: entry,
        lambda entry: entry.created(job("a").name),
        lambda entry: entry.claim_now(),
        lambda entry: entry.observe(job("a", state="JOB_STATE_FAILED", ended=True), 50.0),
        lambda entry: entry.retry_later(60.0, "preempted", elsewhere=True, began=True),
        lambda entry: entry.plan_retry("s", 70.0),
        lambda entry: entry.create_failed(80.0),
        lambda entry: entry.plan_retry("s", 90.0),
        lambda entry: entry.created(job("a", 2).name),
    ]
    retries = []
    for step in steps:
        after = step(entry)
        assert after is not None
        entry = after
        stages.append(entry.stage)
        retries.append(entry.retry)
    again = [Stage.RETRYING, Stage.PLANNED]
    assert stages == [Stage.PLANNED, Stage.UNCLAIMED, Stage.CLAIMED, Stage.CLAIMED, *again, *again, Stage.CLAIMED]
    assert retries[6] == Retry(at=80 + pause(1, 90), elsewhere=True), "a later create that failed is tried again"
    assert retries[-1] is None
    assert (entry.current.number, entry.reason, entry.began_before) == (2, "preempted", True)
    assert entry.past_jobs == {job("a").name}


def test_a_settled_job_is_remembered_for_lists_that_lag() -> None:
    ledger = Ledger()
    ledger.keep(opened(ledger).created(job("a").name))
    ledger.settle("a", 100.0)
    assert (ledger.open, ledger.settled) == ({}, {job("a").name: 100.0})


def test_a_first_create_that_failed_leaves_nothing() -> None:
    assert opened(Ledger()).create_failed(2.0) is None


def test_a_retry_that_is_given_up_is_settled_with_the_attempt_that_ended() -> None:
    entry = opened(Ledger()).created(job("a").name).claim_now()
    entry = entry.retry_later(60.0, "preempted", elsewhere=False, began=False).stop_retrying("too late")
    assert (entry.stage, entry.no_retry, entry.job) == (Stage.CLAIMED, "too late", job("a").name)


def test_pauses_after_failed_creates_grow_with_the_attempts() -> None:
    entry = opened(Ledger()).created(job("a").name).claim_now()
    for number in (1, 2):
        entry = entry.retry_later(60.0, "preempted", elsewhere=False, began=False).plan_retry("s", 70.0)
        failed = entry.create_failed(80.0)
        assert failed is not None
        assert failed.retry_at == 80 + pause(number, 90)
        entry = entry.created(job("a", number + 1).name)


def test_a_newer_job_makes_an_item_retry_again() -> None:
    entry = opened(Ledger()).created(job("a").name).stop_retrying("too late")
    assert entry.observe(job("a", 2, attempt=2), 9.0).no_retry == ""


def test_a_job_of_a_later_attempt_than_the_known_one_is_appended() -> None:
    entry = opened(Ledger()).created(job("a").name).observe(job("a", 2, attempt=2), 9.0)
    assert [(one.number, one.job) for one in entry.attempts] == [(1, job("a").name), (2, job("a", 2).name)]


def test_slots_count_listed_jobs_open_jobs_and_planned_creates_once() -> None:
    ledger = Ledger()
    for number, item in enumerate(("planned", "listed", "unlisted", "ended"), 1):
        planned(ledger, item)
        if item != "planned":
            ledger.keep(ledger.open[item].created(job(item, number).name))
    planned(ledger, "scheduler", Kind.SCHEDULER)
    ledger.keep(ledger.open["ended"].gone(5.0))
    assert ledger.slots_used([job("listed", 2), job("another twin", 9)]) == {Kind.JOB: 4, Kind.SCHEDULER: 1}


@given(st.lists(st.floats(0, 1000), max_size=80), st.floats(0, 1000))
def test_submissions_are_counted_within_a_minute(at: list[float], now: float) -> None:
    ledger = Ledger(submissions={"r": list(at)})
    left = ledger.submissions_left("r", 60, now)
    assert left == max(0, 60 - sum(1 for one in at if now - 60 < one <= now))
    ledger.prune(now, 1)
    assert ledger.submissions_left("r", 60, now) == left
    assert ledger.submissions_left("elsewhere", 60, now) == 60


def test_pruning_forgets_items_that_were_not_seen_for_long() -> None:
    ledger = Ledger(waiting={"old": Waiting(since=0, seen=0), "new": Waiting(since=0, seen=90)})
    ledger.prune(100, 50)
    assert set(ledger.waiting) == {"new"}


# Version 1

FIRST, SECOND = (NAME.format(region=region, number=number) for region, number in (("us-central1", 1), ("us-east4", 2)))
OLD = {"entity": "acme", "project": "demo", "queue": "gpu", "run": "r", "region": "us-central1", "since": 100.0, "told": ["be patient"]}  # fmt: skip


@pytest.mark.parametrize(
    ("old", "stage", "expected"),
    [
        ({}, Stage.PLANNED, {"job": "", "planned": 100.0}),
        ({"stage": "created", "job": FIRST}, Stage.UNCLAIMED, {"job": FIRST}),
        ({"stage": "acked", "job": FIRST, "state": "JOB_STATE_RUNNING", "state_since": 7, "stop_seen": 8}, Stage.CLAIMED, {"job": FIRST, "state": "JOB_STATE_RUNNING", "state_since": 7, "stop_seen": 8, "ended": 0}),
        ({"stage": "acked", "job": FIRST, "ended": True, "ended_at": 9, "quiet": True}, Stage.CLAIMED, {"job": FIRST, "ended": 9, "found_ended": True}),
        ({"stage": "acked", "ended": True}, Stage.CLAIMED, {"job": "", "ended": 100.0}),
        ({"stage": "again", "job": FIRST, "last": FIRST, "reason": "gone", "again_at": 130, "began": True}, Stage.RETRYING, {"job": FIRST, "number": 1, "reason": "gone", "began": True, "ended": 100.0}),
        ({"attempt": 2, "region": "us-east4", "last": FIRST, "reason": "gone", "elsewhere": True}, Stage.PLANNED, {"job": "", "number": 2, "region": "us-east4"}),
        ({"stage": "acked", "attempt": 2, "region": "us-east4", "job": SECOND, "last": FIRST}, Stage.CLAIMED, {"job": SECOND, "number": 2, "region": "us-east4"}),
        ({"stage": "acked", "job": FIRST, "ended": True, "ended_at": 9, "final": "stopped"}, Stage.CLAIMED, {"job": FIRST, "ended": 9}),
    ],
)  # fmt: skip
def test_an_item_of_version_1_is_still_read(old: dict[str, Any], stage: Stage, expected: dict[str, Any]) -> None:
    claimed = old.get("stage") in ("acked", "again") or "last" in old
    item = {"item": "I", "claimed": claimed, **OLD, **old}
    value = {"version": 1, "free_hold": 5, "writer": "p", "open": {"I": item}, "settled": {FIRST: 3}}
    ledger = Ledger.parse(json.dumps(value).encode())
    assert ledger is not None
    entry = ledger.open["I"]
    assert (ledger.version, ledger.free_lock, ledger.writer, ledger.settled) == (2, 5, "p", {FIRST: 3})
    assert (entry.stage, entry.run_id, entry.warned) == (stage, RunId("acme", "demo", "r"), ("be patient",))
    assert asdict(entry.current) | expected == asdict(entry.current)
    assert (entry.reason == "gone") == (old.get("reason") == "gone")
    assert entry.no_retry == old.get("final", "")
    assert bool(entry.retry and entry.retry.elsewhere) == old.get("elsewhere", False)
    assert Ledger.parse(ledger.dump()) == ledger, "and written as version 2"
