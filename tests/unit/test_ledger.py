"""The ledger: what it holds, what it forgets, and that it survives its JSON."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from vertex_launch.model import Item, Kind, ManagedJob, RunId
from vertex_launch.state.ledger import Ledger, OpenJob, Stage, Waiting

times = st.floats(0, 2e9)
texts = st.text(max_size=20)
jobs = st.builds(
    OpenJob,
    item=texts,
    queue=texts,
    entity=texts,
    project=texts,
    run=texts,
    region=texts,
    kind=st.sampled_from(Kind),
    attempt=st.integers(1, 9),
    stage=st.sampled_from(Stage),
    job=texts,
    since=times,
    ended=st.booleans(),
)
ledgers = st.builds(
    Ledger,
    entity=texts,
    agent=texts,
    turn=texts,
    full_pass_began=times,
    submissions=st.dictionaries(texts, st.lists(times, max_size=3), max_size=2),
    open=st.dictionaries(texts, jobs, max_size=3),
    waiting=st.dictionaries(texts, st.builds(Waiting, since=times, seen=times, warned=st.lists(texts, max_size=2))),
)


@given(ledgers)
def test_it_survives_its_json(ledger: Ledger) -> None:
    assert Ledger.parse(ledger.dump()) == ledger


@given(
    st.binary()
    | st.sampled_from([b"{}", b"{}[]", b"null", b"[]", b'{"version": 2}', b'{"open": 1}', b'{"open": {"a": {}}}'])
)
def test_what_is_no_ledger_counts_as_lost(text: bytes) -> None:
    assert Ledger.parse(text) is None


def test_slots_count_listed_jobs_open_jobs_and_intents_once() -> None:
    ledger = Ledger()
    run = RunId("e", "p", "r")
    for item in ("intent", "listed", "unlisted", "ended"):
        ledger.intend(Item(item, "q", {}), run, "r", Kind.JOB, 1.0)
    ledger.intend(Item("scheduler", "q", {}), run, "r", Kind.SCHEDULER, 1.0)
    for item in ("listed", "unlisted", "ended"):
        ledger.created(item, f"job of {item}")
    ledger.open["ended"].ended = True
    listed = [job("listed"), job("somebody's twin")]
    assert ledger.slots_used(listed) == {Kind.JOB: 4, Kind.SCHEDULER: 1}


def job(item: str) -> ManagedJob:
    return ManagedJob(
        name=f"job of {item}",
        region="r",
        state="JOB_STATE_RUNNING",
        ended=False,
        cancelling=False,
        item=item,
        run=RunId("e", "p", "r"),
        queue="q",
        attempt=1,
        kind=Kind.JOB,
        created=1.0,
    )


@given(st.lists(st.floats(0, 1000), max_size=80), st.floats(0, 1000))
def test_submissions_are_counted_within_a_minute(at: list[float], now: float) -> None:
    ledger = Ledger(submissions={"r": list(at)})
    left = ledger.submissions_left("r", 60, now)
    assert left == max(0, 60 - sum(1 for one in at if now - 60 < one <= now))
    ledger.prune(now, 1)
    assert ledger.submissions_left("r", 60, now) == left
    assert ledger.submissions_left("elsewhere", 60, now) == 60


def test_pruning_forgets_items_that_nobody_saw_for_long() -> None:
    ledger = Ledger(waiting={"old": Waiting(since=0, seen=0), "new": Waiting(since=0, seen=90)})
    ledger.prune(100, 50)
    assert set(ledger.waiting) == {"new"}
