"""A job's end: what is told to W&B, what is tried again, and what is cancelled, with an outside in memory."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import JobState

from tests.support.memory import ENTITY, KEY, Job, World, die_once, image_spec, lost, never, no_quota, scheduler_spec
from vertex_launch.codes import Code
from vertex_launch.errors import ItemDeferred, ItemRejected, Unavailable
from vertex_launch.job.labels import ENDED_STATES
from vertex_launch.job.request import JobRequest
from vertex_launch.log import Redactor
from vertex_launch.model import Ack, PassReport, PassRequest, Phase, RunId, RunView, SchedulerView
from vertex_launch.settings.config import Region
from vertex_launch.state.open_item import Stage

STATE = JobState
STOCKOUT = "Resources are insufficient in region: us-central1. Try a different region or use a different accelerator."
EXITED = "The replica workerpool0-0 exited with a non-zero status of 1. Termination reason: Error."
INTERNAL = "Internal error occurred for the current attempt"
TWO_REGIONS = (
    Region(name="us-central1", staging_bucket="gs://staging"),
    Region(name="us-east4", staging_bucket="gs://staging-east"),
)


class One(World):
    """A deployment with one item, submitted."""

    def __init__(self, spec: dict[str, Any] | None = None, **changes: Any) -> None:
        super().__init__(**changes)
        self.item = self.queue.push("cpu", spec or image_spec())
        self.run()
        assert self.queue.state(self.item) == "CLAIMED"

    @property
    def jobs(self) -> list[Job]:
        return self.vertex.of(self.item)

    @property
    def job(self) -> Job:
        return self.jobs[-1]

    @property
    def it(self) -> Any:
        return self.queue.contents[self.item]

    def end(self, state: JobState, error: str = "", *, ran: bool = True, began: bool = True) -> None:
        """Let the job run, its run begin, and the job end."""
        self.vertex.begins_runs = began
        if ran:
            self.vertex.set(self.job.name, STATE.JOB_STATE_RUNNING)
        self.vertex.set(self.job.name, state, error)

    def after(self, seconds: float, **changes: Any) -> PassReport:
        self.clock.sleep(seconds)
        return self.run(**changes)

    def stop(self, *, stopped: bool = True) -> None:
        """Let a person stop the run in W&B."""
        run = self.job.run
        view = self.queue.run_views.get(run, RunView("pending", stopped=False))
        self.queue.run_views[run] = replace(view, stopped=stopped)

    @property
    def link(self) -> str:
        return f"training/{self.job.name.rsplit('/', 1)[-1]}?project=p"


# The table, each row with every state


BAD = [STATE.JOB_STATE_FAILED, STATE.JOB_STATE_EXPIRED, STATE.JOB_STATE_PARTIALLY_SUCCEEDED]


def test_a_job_that_ended_well_leaves_nothing_to_say() -> None:
    world = One()
    world.end(STATE.JOB_STATE_SUCCEEDED)
    report = world.after(60)
    assert [(one["item"], one["outcome"]) for one in report.settled] == [(world.item, "done")]
    assert (world.it.state, world.it.message, world.it.warnings) == ("CLAIMED", "", [])
    assert world.ledger.open == {}
    assert world.after(60).settled == []


def test_the_log_says_how_long_a_freed_slot_was_empty(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="vertex_launch")
    world = One(max_jobs=1)
    world.queue.push("cpu", image_spec())
    world.end(STATE.JOB_STATE_SUCCEEDED)
    world.queue.push("cpu", image_spec())
    world.after(7)
    world.end(STATE.JOB_STATE_SUCCEEDED)
    lines = [record for record in caplog.records if getattr(record, "event", "") == "submitted"]
    waits = [getattr(line, "refill_s", None) for line in lines]
    assert (waits[0], round(waits[1] or 0)) == (None, 7), "the first took a slot that was free anyway"
    counted = [getattr(record, "event", "") for record in caplog.records]
    assert [counted.count(one) for one in ("pass", "submitted", "settled")] == [2, 2, 1]


def test_a_job_that_ended_well_without_a_run_fails_its_item() -> None:
    world = One()
    world.end(STATE.JOB_STATE_SUCCEEDED, began=False)
    assert world.after(60).settled == [], "its run may still show up"
    report = world.after(60)
    assert [one["outcome"] for one in report.settled] == ["failed"]
    assert world.it.state == "FAILED"
    assert world.it.phase is Phase.RUN
    assert Code.RUN_NEVER_BEGAN in world.it.message
    assert "attempt 1 of 5, us-central1" in world.it.message
    assert world.link in world.it.message


@pytest.mark.parametrize(
    ("error", "quick"),
    [
        ('Failed to pull image "gcr.io/p/i": not found', True),
        (
            EXITED.replace("1. Termination reason: Error", "128. Termination reason: StartError")
            + " exec: executable file not found",
            True,
        ),
        (EXITED.replace("of 1.", "of 127."), True),
        (EXITED, False),
        ("", False),
    ],
)
def test_a_job_that_could_not_start_is_reported_at_once(error: str, *, quick: bool) -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, error, began=False, ran=False)
    assert [one["outcome"] for one in world.after(10).settled] == ["failed"] * quick
    assert [one["outcome"] for one in world.after(100).settled] == ["failed"] * (not quick)
    assert world.it.state == "FAILED"


@pytest.mark.parametrize("state", [STATE.JOB_STATE_FAILED, STATE.JOB_STATE_CANCELLED, STATE.JOB_STATE_EXPIRED])
def test_a_job_that_never_started_has_not_begun_a_run_that_was_there_before(state: JobState) -> None:
    world = One(image_spec(run_id="mine"))
    world.queue.run_views[world.job.run] = RunView("finished", stopped=False)  # by a server that shows no heartbeats
    world.end(state, "No machine.", ran=False)
    world.after(100)
    assert world.it.state == "FAILED"
    assert "before it started" in world.it.message


@pytest.mark.parametrize("beats", [True, False])
def test_an_item_that_ran_in_an_attempt_that_is_gone_does_not_fail_after_the_ledger_is_lost(beats: bool) -> None:
    world = One(regions=TWO_REGIONS)
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)
    world.after(60)
    world.after(60)
    assert len(world.jobs) == 2
    world.end(STATE.JOB_STATE_CANCELLED)
    view = world.queue.run_views[world.job.run]
    world.queue.run_views[world.job.run] = replace(view, state="finished", heartbeat=view.heartbeat if beats else None)
    del world.vertex.jobs[world.job.name]
    world.bucket.lose_ledger()
    for _ in range(4):
        world.clock.sleep(2000)
        world.run()
    assert (world.it.state, world.ledger.open) == ("CLAIMED", {})


def test_a_run_that_shows_up_late_is_not_failed() -> None:
    world = One()
    world.end(STATE.JOB_STATE_SUCCEEDED, began=False)
    world.after(60)
    world.queue.run_views[world.job.run] = RunView("finished", stopped=False, heartbeat=world.clock())
    assert [one["outcome"] for one in world.after(60).settled] == ["done"]
    assert world.it.state == "CLAIMED"


@pytest.mark.parametrize("state", BAD)
@pytest.mark.parametrize("run", [None, RunView("pending", stopped=False)])
def test_a_job_that_failed_before_its_run_began_fails_its_item(state: JobState, run: RunView | None) -> None:
    world = One()
    world.end(state, EXITED, began=False)
    if run:
        world.queue.run_views[world.job.run] = run
    assert world.after(60).settled == []
    assert [one["outcome"] for one in world.after(60).settled] == ["failed"]
    assert world.it.state == "FAILED"
    assert world.it.phase is Phase.RUN
    assert f"Vertex AI says: {EXITED}" in world.it.message
    assert world.link in world.it.message
    assert world.it.warnings == []
    assert world.after(60).settled == []


@pytest.mark.parametrize("state", BAD)
def test_a_job_that_failed_after_its_run_began_warns_about_its_item_once(state: JobState) -> None:
    world = One()
    world.end(state, EXITED)
    assert [one["outcome"] for one in world.after(30).settled] == ["warned"]
    for _ in range(3):
        world.after(60)
    assert world.it.state == "CLAIMED"
    assert world.it.phase is Phase.RUN
    (warning,) = world.it.warnings
    assert EXITED in warning
    assert world.link in warning


@pytest.mark.parametrize(("began", "state", "outcome"), [(True, "CLAIMED", "warned"), (False, "FAILED", "failed")])
def test_a_job_that_was_cancelled_elsewhere(began: bool, state: str, outcome: str) -> None:
    world = One()
    world.end(STATE.JOB_STATE_CANCELLED, began=began)
    assert [one["outcome"] for one in world.after(100).settled] == [outcome]
    assert world.it.state == state
    assert "was cancelled" in (world.it.message or world.it.warnings[0])
    assert "console" in (world.it.message or world.it.warnings[0])


def test_an_error_that_is_not_there_yet_is_waited_for() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED)
    assert world.after(30).settled == []
    world.job.message.error.message = STOCKOUT
    report = world.after(30)
    assert (report.settled, len(report.resubmitted)) == ([], 1)


def test_a_failure_without_a_reason_is_reported_after_a_while() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED)
    world.after(89)
    assert world.it.warnings == []
    world.after(2)
    assert "gave no reason" in world.it.warnings[0]


@pytest.mark.parametrize("state", [*(member for member in STATE if member.name not in ENDED_STATES), 99])
def test_a_job_that_has_not_ended_is_left_alone(state: int) -> None:
    """Also one in a state of another age, and where it may take any time to start."""
    world = One(start_timeout=0)
    world.vertex.turn(world.job, state)
    for _ in range(5):
        assert world.after(600).settled == []
    assert (world.it.state, world.vertex.calls["cancel"]) == ("CLAIMED", 0)
    assert world.run().slots["active"] == 1


def test_the_stopped_run_of_a_job_in_a_state_of_another_age_is_left_alone() -> None:
    world = One()
    world.vertex.turn(world.job, 99)
    world.stop()
    world.after(600)
    assert (world.it.state, world.vertex.calls["cancel"]) == ("CLAIMED", 0)


# What W&B cannot tell


def test_a_run_that_wandb_cannot_look_up_now_is_waited_for() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    world.queue.unknown_runs.add(world.job.run)
    assert world.after(600).settled == []
    world.queue.unknown_runs.clear()
    assert [one["outcome"] for one in world.after(60).settled] == ["failed"]


@pytest.mark.parametrize("operation", ["runs", "items", "fail"])
def test_what_wandb_does_not_accept_is_sent_later(operation: str) -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    world.queue.trouble[operation] = world.queue.refuse
    assert world.after(100).settled == []
    world.queue.trouble.clear()
    assert [one["outcome"] for one in world.after(60).settled] == ["failed"]


def test_a_run_that_wandb_never_shows_ends_in_a_warning() -> None:
    world = One(give_up_after=3600)
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    world.queue.unknown_runs.add(world.job.run)
    for _ in range(62):
        world.after(60)
    assert world.it.state == "CLAIMED", "it may have begun"
    assert EXITED in world.it.warnings[0]
    assert world.ledger.open == {}


@pytest.mark.parametrize(("state", "warned"), [(STATE.JOB_STATE_FAILED, 1), (STATE.JOB_STATE_SUCCEEDED, 0)])
def test_the_run_of_another_entity_is_not_looked_up(state: JobState, warned: int) -> None:
    world = One(image_spec(entity="others"))
    world.queue.calls.clear()
    world.end(state, EXITED if warned else "", began=False)
    world.after(100)
    assert (world.it.state, len(world.it.warnings)) == ("CLAIMED", warned)
    assert world.queue.calls["runs"] == 0
    assert world.ledger.open == {}


@pytest.mark.parametrize("changes", [{"state": "FAILED", "message": "a person's reason"}, {"run": "theirs"}])
def test_an_item_that_someone_failed_or_owns_is_left_alone(changes: dict[str, str]) -> None:
    world = One()
    vars(world.it).update(changes)
    before = (world.it.state, world.it.message)
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    world.after(100)
    assert (world.it.state, world.it.message, world.it.warnings) == (*before, [])
    assert world.ledger.open == {}


@pytest.mark.parametrize(("before", "state", "warned"), [(3600.0, "FAILED", 0), (None, "CLAIMED", 1)])
def test_an_old_run_that_the_job_never_continued_counts_as_not_begun(
    before: float | None, state: str, warned: int
) -> None:
    """But one without a heartbeat may have begun."""
    world = One(image_spec(run_id="old"))
    heartbeat = None if before is None else world.clock() - before
    world.queue.run_views[world.job.run] = RunView("crashed", stopped=False, heartbeat=heartbeat)
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    world.after(100)
    assert (world.it.state, len(world.it.warnings)) == (state, warned)


@pytest.mark.parametrize("ahead", [-200, 180, 290])
@pytest.mark.parametrize("state", [STATE.JOB_STATE_SUCCEEDED, STATE.JOB_STATE_FAILED])
def test_clocks_that_differ_by_minutes_do_not_fail_an_item_whose_run_lived(ahead: float, state: JobState) -> None:
    """Vertex AI's clock is ahead of W&B's by so many seconds."""
    world = One()
    world.end(state, EXITED if state == STATE.JOB_STATE_FAILED else "")
    world.queue.run_views[world.job.run] = RunView("finished", stopped=False, heartbeat=world.clock() - ahead)
    world.after(100)
    assert world.it.state == "CLAIMED"


@pytest.mark.parametrize(("ran", "state"), [(True, "CLAIMED"), (False, "FAILED")])
def test_a_run_that_an_items_own_key_reports_is_never_missing(ran: bool, state: str) -> None:
    """Its project may be hidden from the deployment's key. But a job that never started has no run."""
    world = One(image_spec(_wandb_api_key="1own" * 10))
    world.end(STATE.JOB_STATE_FAILED, EXITED, ran=ran, began=False)
    world.after(100)
    assert world.it.state == state
    assert EXITED[:20] in (world.it.message or "".join(world.it.warnings))


# Twins: an item is settled, not a job


def test_a_twin_ends_without_a_word() -> None:
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    request = world.vertex.request_of(world.job.name)
    assert request
    world.clock.sleep(5)
    twin = world.vertex.add(request)
    report = world.after(60)
    assert [one["job"] for one in report.cancelled] == [twin]
    world.vertex.set(twin, STATE.JOB_STATE_CANCELLED)
    for _ in range(3):
        assert world.after(60).settled == []
    assert (world.it.state, world.it.warnings) == ("CLAIMED", [])
    assert len(world.vertex.living()) == 1


@pytest.mark.parametrize("ended", [STATE.JOB_STATE_SUCCEEDED, STATE.JOB_STATE_FAILED])
def test_a_twin_whose_create_was_late_ends_after_the_item_was_settled(ended: JobState) -> None:
    world = One()
    request = world.vertex.request_of(world.job.name)
    assert request
    world.end(ended, EXITED if ended == STATE.JOB_STATE_FAILED else "")
    assert len(world.run().settled) == 1
    said = list(world.it.warnings)
    twin = world.vertex.add(request)
    report = world.after(60)
    assert [one["job"] for one in report.cancelled] == [twin]
    assert report.slots["active"] == 1, "it holds a slot until it has ended"
    world.vertex.set(twin, STATE.JOB_STATE_CANCELLED)
    for _ in range(3):
        assert world.after(60).settled == []
    assert (world.it.state, world.it.warnings) == ("CLAIMED", said)


@pytest.mark.parametrize("minutes", [3, 9])
def test_a_twin_whose_create_was_late_ends_in_a_region_that_was_left(minutes: int) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    sent: list[JobRequest] = []

    def answer_nothing(request: JobRequest, create: Any) -> str:
        sent.append(request)
        return never(request, create)

    world.vertex.on_create = answer_nothing
    world.run()
    world.vertex.on_create = lambda request, create: create()
    other = Region(name="us-east4", staging_bucket="gs://other")
    world.settings = world.settings.model_copy(update={"regions": (other,)})
    for _ in range(minutes):
        world.clock.sleep(60)
        world.run()
    [job] = world.vertex.of(item)
    late = world.vertex.add(sent[0])
    world.clock.sleep(55)
    assert [one["job"] for one in world.run().cancelled] == [late]
    assert (job.region, world.vertex.jobs[late].region) == ("us-east4", "us-central1")


def test_a_job_that_shows_up_after_it_counted_as_deleted_goes_on() -> None:
    world = One()
    jobs = dict(world.vertex.jobs)
    world.queue.run_views[world.job.run] = RunView("running", stopped=False)
    world.vertex.jobs.clear()
    ledger = world.ledger
    planned = replace(ledger.open[world.item].current, job="")  # as after a pass that died after its ack
    ledger.open[world.item] = replace(ledger.open[world.item], attempts=(planned,), claimed=False)
    world.bucket.put("ledger.json", ledger.dump())
    world.clock.sleep(world.settings.timeouts.intent_grace)
    assert len(world.after(world.settings.timeouts.settle_grace).settled) == 1
    world.vertex.jobs.update(jobs)
    for _ in range(3):
        assert world.after(60).cancelled == []
    assert list(world.ledger.open) == [world.item]


# Deleted jobs


@pytest.mark.parametrize(
    ("run", "state", "warned"),
    [
        (None, "FAILED", 0),
        (RunView("pending", stopped=False), "FAILED", 0),
        (RunView("running", stopped=False), "CLAIMED", 1),
        (RunView("crashed", stopped=False, heartbeat=1.0), "CLAIMED", 1),
        (RunView("finished", stopped=False), "CLAIMED", 0),
    ],
)
def test_a_deleted_job(run: RunView | None, state: str, warned: int) -> None:
    world = One()
    if run:
        world.queue.run_views[world.job.run] = run
    world.vertex.jobs.clear()
    assert world.after(60).slots["active"] == 1, "a young job may only not be shown yet"
    for seconds in (60, 100, 60, 100):
        world.after(seconds)
    assert (world.it.state, len(world.it.warnings)) == (state, warned)
    said = world.it.message or "".join(world.it.warnings)
    assert not said or Code.JOB_DELETED in said
    report = world.run()
    assert (report.slots["active"], world.ledger.open) == (0, {})


@pytest.mark.parametrize("answers", [1, 2])
def test_a_job_that_is_missing_for_a_moment_keeps_its_slot(answers: int) -> None:
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    world.after(300)
    jobs, active = dict(world.vertex.jobs), world.vertex.active
    world.vertex.active = lambda region: []  # type: ignore[method-assign]
    for _ in range(answers):
        world.vertex.jobs.clear()
        assert world.after(40).slots["active"] == 1
    world.vertex.jobs.update(jobs)
    world.after(40)
    world.vertex.active = active  # type: ignore[method-assign]
    world.vertex.jobs.clear()
    assert world.after(95).slots["active"] == 1, "it counts anew"
    world.vertex.jobs.update(jobs)
    assert world.after(95).slots["active"] == 1
    assert (world.it.state, world.it.warnings) == ("CLAIMED", [])


@pytest.mark.parametrize("spec", [{}, {"run_id": "mine"}])
def test_a_job_deleted_before_any_pass_saw_it_is_reported(spec: dict[str, str]) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec(**spec))
    writes = iter([*[None] * (1 + len(spec)), world.bucket.refuse])
    world.bucket.trouble["write ledger.json"] = lambda: (trouble := next(writes, None)) and trouble()
    assert "Cloud Storage" in world.run().notices[0]
    assert world.queue.state(item) == "CLAIMED"
    world.vertex.jobs.clear()
    for _ in range(8):
        world.clock.sleep(76)
        world.run()
    assert world.queue.state(item) == "FAILED"
    assert Code.JOB_DELETED in world.queue.contents[item].message
    assert world.ledger.open == {}


def test_a_create_that_lapses_while_its_item_is_not_shown_is_not_forgotten() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    die_once(world.queue, "ack", 1, after=True)
    world.crash()
    world.vertex.jobs.clear()
    real = world.queue.can_show
    world.queue.can_show = lambda one: False  # type: ignore[method-assign]
    world.clock.sleep(130)
    world.run()
    world.queue.can_show = real  # type: ignore[method-assign]
    for _ in range(4):
        world.clock.sleep(76)
        world.run()
    assert world.queue.state(item) == "FAILED"
    assert Code.JOB_DELETED in world.queue.contents[item].message


@pytest.mark.parametrize("after", [False, True])
def test_an_item_with_its_own_run_is_not_left_claimed_when_its_pass_dies_and_its_job_is_deleted(after: bool) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec(run_id="mine"))
    die_once(world.queue, "ack", 1, after=after)
    world.crash()
    world.vertex.jobs.clear()
    for _ in range(8):
        world.clock.sleep(76)
        world.run()
    assert world.queue.state(item) == "FAILED"
    assert Code.JOB_DELETED in world.queue.contents[item].message
    assert (world.vertex.jobs, world.ledger.open) == ({}, {})


def test_another_agents_item_with_the_same_run_is_left_alone_after_a_create_that_made_no_job() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec(run_id="mine"))
    world.vertex.on_create = never
    world.run()
    world.clock.sleep(61)
    assert world.queue.claim(item, "mine") is Ack.ACCEPTED
    for _ in range(8):
        world.clock.sleep(76)
        world.run()
    assert (world.queue.state(item), world.ledger.open) == ("CLAIMED", {})


def test_a_pass_that_froze_before_it_looked_notes_ends_when_it_saw_them() -> None:
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)

    def freeze() -> None:
        world.bucket.trouble.clear()
        world.clock.sleep(120)
        world.end(STATE.JOB_STATE_FAILED)

    world.bucket.trouble["write hold.json"] = freeze
    assert world.run().settled == []
    assert world.after(60).settled == [], "Vertex AI may still give the reason"
    world.job.message.error.message = EXITED
    assert "exited with a non-zero status" in world.after(20).settled[0]["reason"]


@pytest.mark.parametrize("state", [STATE.JOB_STATE_PENDING, STATE.JOB_STATE_QUEUED])
def test_a_pass_that_froze_before_it_looked_does_not_shorten_the_wait_of_a_job(state: JobState) -> None:
    world = World(start_timeout=300, queue_timeout=300, stopped_run_timeout=0)
    world.queue.push("cpu", image_spec())
    world.run()
    (name,) = world.vertex.jobs
    world.vertex.set(name, STATE.JOB_STATE_UPDATING)
    world.run()

    def freeze() -> None:
        world.bucket.trouble.clear()
        world.clock.sleep(250)
        world.vertex.set(name, state)

    world.bucket.trouble["write hold.json"] = freeze
    world.run()
    world.clock.sleep(100)
    assert world.run().cancelled == []
    world.clock.sleep(201)
    assert len(world.run().cancelled) == 1


@pytest.mark.parametrize("state", [STATE.JOB_STATE_RUNNING, STATE.JOB_STATE_CANCELLING])
def test_a_deleted_job_with_a_twin_that_lives(state: JobState) -> None:
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    request = world.vertex.request_of(world.job.name)
    assert request
    gone = world.job.name
    world.clock.sleep(100)
    twin = world.vertex.add(request)
    world.vertex.set(twin, state)
    del world.vertex.jobs[gone]
    for _ in range(3):
        assert world.after(60).slots["active"] == 1
    assert (world.it.state, world.it.warnings) == ("CLAIMED", [])


def test_an_item_that_is_not_shown_keeps_its_deleted_job_open() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.queue.ack = lambda claims, within: [Ack.UNKNOWN] * len(claims)  # type: ignore[method-assign]
    world.run()
    world.queue.contents[item].state = "CLAIMED"
    world.queue.contents[item].run = next(iter(world.ledger.open.values())).run
    world.vertex.jobs.clear()
    kept = world.queue.contents.pop(item)
    world.clock.sleep(100)
    world.run()
    world.queue.contents[item] = kept
    for _ in range(4):
        world.clock.sleep(60)
        world.run()
    assert world.queue.state(item) == "FAILED"


# Another attempt


@pytest.mark.parametrize("error", [STOCKOUT, INTERNAL, "The replica workerpool0-0 was preempted: STOCKOUT"])
@pytest.mark.parametrize("began", [True, False])
def test_what_is_not_the_jobs_fault_is_retried_with_the_same_run(error: str, began: bool) -> None:
    world = One(image_spec(run_id="r1"))
    first = world.job
    world.end(STATE.JOB_STATE_FAILED, error, began=began)
    report = world.after(31)
    assert [(one["item"], one["attempt"]) for one in report.resubmitted] == [(world.item, "2")]
    _, second = world.jobs
    assert second.attempt == 2
    assert second.run == first.run
    assert second.variables | {"WANDB_RESUME": "allow"} == second.variables
    assert {**first.variables, "WANDB_RESUME": "allow"} == second.variables
    assert second.message.job_spec.base_output_directory == first.message.job_spec.base_output_directory, (
        "where its checkpoints are"
    )
    (warning,) = world.it.warnings
    assert Code.RETRIED in warning
    assert error in warning
    assert "us-central1" in warning
    assert (world.it.state, report.settled) == ("CLAIMED", [])
    world.end(STATE.JOB_STATE_SUCCEEDED)
    world.after(60)
    assert (world.it.state, len(world.it.warnings), len(world.jobs)) == ("CLAIMED", 1, 2)


def test_pauses_grow_and_attempts_end() -> None:
    world = One()
    begun = []
    for _ in range(60):
        if world.job.state == STATE.JOB_STATE_PENDING:
            begun.append(world.clock())
            world.end(STATE.JOB_STATE_FAILED, INTERNAL)
        world.after(30)
    assert [job.attempt for job in world.jobs] == [1, 2, 3, 4, 5]
    pauses = [later - earlier for earlier, later in itertools.pairwise(begun)]
    assert pauses == sorted(pauses)
    assert pauses[-1] > 4 * pauses[0]
    assert len(world.it.warnings) == 5
    assert "(attempt 5 of 5" in world.it.warnings[-1]
    assert INTERNAL in world.it.warnings[-1]
    assert world.ledger.open == {}


def test_another_region_after_a_stockout() -> None:
    world = One(regions=TWO_REGIONS)
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)
    world.after(31)
    assert world.job.name.split("/")[3] == "us-east4"
    assert world.job.message.job_spec.base_output_directory.output_uri_prefix.startswith(
        "gs://staging-east/aiplatform-custom"
    )
    (warning,) = world.it.warnings
    assert Code.RETRIED in warning
    assert "us-east4" in warning
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)
    world.after(61)
    assert world.job.name.split("/")[3] == "us-central1", "and round again"


def _spec(run: dict[str, Any] | None = None, spec: dict[str, Any] | None = None, **pool: Any) -> dict[str, Any]:
    """Return a run spec with these arguments in its sections ``run`` and ``spec`` and in its worker pool."""
    made = image_spec()
    made["resource_args"]["gcp-vertex"]["spec"]["worker_pool_specs"][0] |= pool
    made["resource_args"]["gcp-vertex"]["spec"] |= spec or {}
    made["resource_args"]["gcp-vertex"] |= {"run": run or {}}
    return made


@pytest.mark.parametrize(
    "spec",
    [
        _spec({"network": "projects/1/global/networks/n", "service_account": "a@p.iam.gserviceaccount.com"}),
        _spec({"tensorboard": "projects/1/locations/us-central1/tensorboards/2", "service_account": "a@p.iam.gserviceaccount.com"}),
        _spec({"psc_interface_config": {"network_attachment": "projects/p/regions/us-central1/networkAttachments/a"}}),
        _spec({"persistent_resource_id": "mine"}),
        _spec({"experiment": "projects/1/locations/us-central1/metadataStores/default/contexts/e"}),
        _spec(nfs_mounts=[{"server": "10.0.0.1", "path": "/a", "mount_point": "b"}]),
        _spec(machine_spec={"machine_type": "n1-standard-4", "reservation_affinity": {"reservation_affinity_type": "SPECIFIC_RESERVATION", "key": "k", "values": ["v"]}}),
        _spec(spec={"staging_bucket": "gs://own"}),
        _spec(spec={"base_output_dir": "gs://own/x"}),
        _spec(spec={"encryption_spec_key_name": "projects/p/locations/us-central1/keyRings/r/cryptoKeys/k"}),
    ],
)  # fmt: skip
def test_what_is_bound_to_its_region_stays_there(spec: dict[str, Any]) -> None:
    _stays(One(spec, regions=TWO_REGIONS), STOCKOUT)


def _stays(world: One, error: str) -> None:
    """End the job with this error and check that the next attempt is in the same region."""
    world.end(STATE.JOB_STATE_FAILED, error, ran=False)
    world.after(31)
    assert [job.name.split("/")[3] for job in world.jobs] == ["us-central1"] * 2


def test_only_a_stockout_leads_to_another_region_and_only_to_one_with_a_bucket() -> None:
    _stays(One(regions=TWO_REGIONS), INTERNAL)
    _stays(One(regions=(TWO_REGIONS[0], Region(name="us-east4"))), STOCKOUT)


@pytest.mark.parametrize(
    "refusal",
    [
        ItemRejected("Machine type is not supported there.", code=Code.CREATE_INVALID),
        ItemDeferred("no quota", code=Code.QUOTA_CREATE),
    ],
)
def test_a_region_that_refuses_the_job_is_not_asked_again(refusal: Exception) -> None:
    world = One(regions=TWO_REGIONS)
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)

    def only_home(request: Any, create: Any) -> str:
        if request.region == "us-east4":
            raise refusal
        name: str = create()
        return name

    world.vertex.on_create = only_home
    world.after(31)
    assert len(world.jobs) == 1
    world.after(60)
    assert [job.name.split("/")[3] for job in world.jobs] == ["us-central1"] * 2
    assert world.job.attempt == 2


def test_regions_that_refused_the_job_are_asked_again_once_its_own_has_no_quota() -> None:
    world, asked = One(regions=TWO_REGIONS), list[str]()
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)

    def refused(request: Any, create: Any) -> str:
        asked.append(request.region)
        if request.region == "us-east4":
            raise ItemRejected("Machine type is not supported there.", code=Code.CREATE_INVALID)
        raise ItemDeferred("no quota", code=Code.QUOTA_CREATE)

    world.vertex.on_create = refused
    for _ in range(8):
        world.after(200)
    assert asked[:4] == ["us-east4", "us-central1"] * 2


@pytest.mark.parametrize("key", [KEY, 'quo"te\\\\schlüssel'])
def test_no_key_is_written_into_the_ledger(key: str) -> None:
    world = One()
    world.redact.add(key)
    world.end(STATE.JOB_STATE_FAILED, f"{INTERNAL} {key}")
    world.run()
    written = json.loads(world.bucket.objects["ledger.json"][0])
    assert INTERNAL in str(written)
    assert key not in written["open"][world.item]["attempts"][0]["reason"]


def test_a_job_that_its_own_region_refuses_is_settled_with_both_reasons() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)

    def refused(request: Any, create: Any) -> str:
        raise ItemRejected("Vertex AI refused the job: no such machine type.", code=Code.CREATE_INVALID)

    world.vertex.on_create = refused
    world.after(31)
    world.after(60)
    assert world.it.state == "FAILED"
    assert STOCKOUT in world.it.message
    assert "no such machine type" in world.it.message
    assert world.ledger.open == {}


def test_todays_key_and_an_items_own() -> None:
    own = "o" * 40
    for spec, key in ((image_spec(), KEY), (image_spec(_wandb_api_key=own), own)):
        world = One(spec)
        if key == KEY:
            for one in world.job.message.job_spec.worker_pool_specs[0].container_spec.env:
                one.value = "yesterdays" if one.name == "WANDB_API_KEY" else one.value
        world.end(STATE.JOB_STATE_FAILED, INTERNAL)
        world.after(31)
        assert world.job.variables["WANDB_API_KEY"] == key


@pytest.mark.parametrize("own", ["", "o" * 40])
@pytest.mark.parametrize("length", [0, 1480])
def test_no_part_of_a_key_in_vertex_ais_words_is_shown(own: str, length: int) -> None:
    """Also where a long text is cut, and in an instance that has just begun and knows no key."""
    key = own or KEY
    world = One(image_spec(_wandb_api_key=own) if own else image_spec())
    world.redact = Redactor()
    world.end(STATE.JOB_STATE_FAILED, f"{EXITED} ".ljust(length, "x") + f" {key} the end")
    world.after(31)
    assert EXITED in world.it.warnings[0]
    assert key[:12] not in world.it.warnings[0]


def test_an_items_own_key_in_a_refusal_is_hidden() -> None:
    own = "o" * 40
    world = One(image_spec(_wandb_api_key=own))
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.run()
    world.redact = Redactor()

    def refused(request: Any, create: Any) -> str:
        raise ItemRejected(f"WANDB_API_KEY={own} is odd.", code=Code.CREATE_INVALID)

    world.vertex.on_create = refused
    world.after(31)
    assert own not in str(world.bucket.objects)


@pytest.mark.parametrize("error", [EXITED, STOCKOUT])
def test_a_run_that_began_in_an_earlier_attempt_is_not_failed(error: str) -> None:
    world = One(max_attempts=2)
    world.end(STATE.JOB_STATE_FAILED, "The replica workerpool0-0 was preempted: STOCKOUT")
    world.after(31)
    assert len(world.jobs) == 2
    world.end(STATE.JOB_STATE_FAILED, error, ran=False, began=False)
    world.after(100)
    assert world.it.state == "CLAIMED"
    assert "attempt 2 of 2" in world.it.warnings[-1]
    assert "before its run began" not in world.it.warnings[-1]


def test_what_waits_for_a_slot_costs_nothing() -> None:
    world = World(max_jobs=2)
    for _ in range(2):
        world.queue.push("cpu", image_spec())
    world.run()
    for job in world.vertex.living():
        world.vertex.set(job.name, STATE.JOB_STATE_RUNNING)
        world.vertex.set(job.name, STATE.JOB_STATE_FAILED, INTERNAL)
    for _ in range(2):
        world.queue.push("cpu", image_spec())
    world.run()
    world.vertex.calls.clear()
    world.clock.sleep(60)
    world.run()
    assert world.vertex.calls == {"active": 1}


def test_a_stopped_run_gets_no_other_attempt() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, "The replica workerpool0-0 was preempted: STOCKOUT")
    world.stop()
    world.after(100)
    assert len(world.jobs) == 1
    assert len(world.it.warnings) == 1


def test_a_run_that_is_stopped_during_the_pause_gets_no_other_attempt() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.run()
    world.stop()
    for _ in range(3):
        world.after(60)
    assert len(world.jobs) == 1
    assert Code.RUN_STOPPED in world.it.warnings[0]
    assert world.ledger.open == {}


def test_a_warning_is_not_repeated_because_the_rest_of_the_pass_came_to_nothing() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, EXITED)
    world.queue.trouble["pop"] = world.queue.refuse
    with pytest.raises(Unavailable):
        world.after(30)
    world.queue.trouble.clear()
    world.after(30)
    assert len(world.it.warnings) == 1


def test_disable_retries_is_obeyed_once_the_job_has_run() -> None:
    for ran, jobs in ((True, 1), (False, 2)):
        world = One(_spec({"disable_retries": True}))
        world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=ran, began=ran)
        world.after(31)
        assert len(world.jobs) == jobs
    assert "WANDB_RESUME" in world.job.variables


def test_other_attempts_take_slots_first() -> None:
    world = One(max_jobs=1)
    waiting = world.queue.push("cpu", image_spec())
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    report = world.after(31)
    assert [one["item"] for one in report.submitted] == [world.item]
    assert world.queue.state(waiting) == "PENDING"
    assert world.vertex.most_active == 1


def test_another_attempt_waits_for_a_slot() -> None:
    world = One(max_jobs=1)
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    other = world.queue.push("cpu", image_spec())
    world.run()
    assert world.queue.state(other) == "CLAIMED", "the pause leaves the slot to others"
    assert world.after(60).submitted == []
    world.vertex.set(world.vertex.of(other)[0].name, STATE.JOB_STATE_SUCCEEDED)
    assert len(world.after(60).resubmitted) == 1
    assert world.vertex.most_active == 1


@pytest.mark.parametrize("trouble", [lost, never, no_quota])
def test_an_attempt_whose_create_goes_wrong_is_neither_lost_nor_doubled(trouble: Any) -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.vertex.on_create = trouble
    world.after(31)
    world.vertex.on_create = lambda request, create: create()
    for _ in range(6):
        world.after(60)
    assert [job.attempt for job in world.jobs] == [1, 2]
    assert len([text for text in world.it.warnings if Code.RETRIED in text]) == 1
    assert len(world.it.warnings) == 1 + (trouble is no_quota)
    world.end(STATE.JOB_STATE_SUCCEEDED)
    world.after(60)
    assert (world.it.state, world.ledger.open) == ("CLAIMED", {})


def test_no_attempt_brings_a_key_to_where_keys_are_kept_out_of_jobs() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.after(31, api_key_delivery="secret")
    world.after(60, api_key_delivery="secret")
    assert len(world.jobs) == 1
    assert "api_key_delivery" in (world.it.message or world.it.warnings[-1])
    assert INTERNAL in (world.it.message or world.it.warnings[-1])


def test_an_attempt_is_not_begun_while_the_agent_is_stopped() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    (agent,) = world.queue.agents
    world.queue.stop(agent)
    assert world.after(60).resubmitted == []
    assert len(world.run(PassRequest(resume=True)).resubmitted) == 1


def test_a_job_deleted_before_its_next_attempt_is_reported() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.run()
    world.vertex.jobs.clear()
    for _ in range(4):
        world.after(60)
    assert Code.NOT_RETRIED in world.it.warnings[0]
    assert world.ledger.open == {}


def test_a_list_that_lags_does_not_bring_an_ended_attempt_back() -> None:
    world = One()
    old = world.vertex.active("us-central1")
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.run(PassRequest(ended=world.job.name))
    world.clock.sleep(31)
    world.run()
    assert len(world.jobs) == 2
    real = world.vertex.active
    world.vertex.active = lambda region: [*old, *(job for job in real(region))]  # type: ignore[method-assign]
    report = world.after(5)
    assert report.cancelled == []
    assert world.ledger.open[world.item].current.number == 2
    assert world.ledger.open[world.item].stage is Stage.CLAIMED


def test_a_list_that_lags_does_not_bring_a_settled_job_back() -> None:
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    old = world.vertex.active("us-central1")
    world.end(STATE.JOB_STATE_FAILED, EXITED)
    assert len(world.run(PassRequest(ended=world.job.name)).settled) == 1
    real, world.vertex.active = world.vertex.active, lambda region: old  # type: ignore[method-assign]
    assert world.after(30).slots["active"] == 0
    world.vertex.active = real  # type: ignore[method-assign]
    assert world.after(30).settled == []
    assert len(world.it.warnings) == 1
    for _ in range(11):
        world.after(60)
    assert world.ledger.settled == {}


def test_a_list_that_lags_does_not_bring_an_earlier_attempt_of_a_settled_item_back() -> None:
    world = One(max_attempts=2)
    first = world.job.name
    world.vertex.set(first, STATE.JOB_STATE_RUNNING)
    old = world.vertex.active("us-central1")
    world.end(STATE.JOB_STATE_FAILED, "STOCKOUT")
    world.after(1)
    world.after(100)
    assert [job.attempt for job in world.jobs] == [1, 2]
    world.vertex.set(world.jobs[1].name, STATE.JOB_STATE_FAILED, EXITED)
    assert len(world.after(30).settled) == 1
    world.vertex.active = lambda region: old  # type: ignore[method-assign]
    report = world.after(30)
    assert (report.cancelled, report.submitted, world.ledger.open) == ([], [], {})
    assert len(world.jobs) == 2


@pytest.mark.parametrize("known", [True, False])
def test_a_reason_that_the_list_does_not_show_yet_is_asked_for(known: bool) -> None:
    world = One(max_attempts=2)
    job = world.job.name
    world.vertex.set(job, STATE.JOB_STATE_FAILED)
    old = world.vertex.recent("us-central1", 0)
    world.vertex.jobs[job].message.error.message = "STOCKOUT"
    world.vertex.recent = lambda region, since: old  # type: ignore[method-assign]
    if not known:
        world.bucket.lose_ledger()
        world.clock.sleep(world.settings.lock_seconds)
    world.after(300)
    world.after(300)
    assert [one.attempt for one in world.jobs] == [1, 2]


# Stop


@pytest.mark.parametrize("state", [STATE.JOB_STATE_QUEUED, STATE.JOB_STATE_PENDING])
def test_a_stopped_run_whose_job_has_not_started_is_cancelled_at_once(state: JobState) -> None:
    world = One()
    world.vertex.set(world.job.name, state)
    world.stop()
    report = world.after(10)
    assert [one["job"] for one in report.cancelled] == [world.job.name]
    assert report.cancelled[0]["code"] == Code.RUN_STOPPED
    world.vertex.set(world.job.name, STATE.JOB_STATE_CANCELLED)
    world.after(100)
    assert world.it.state == "FAILED"
    assert Code.RUN_STOPPED in world.it.message


def test_a_stopped_run_has_time_to_end_by_itself() -> None:
    world = One(stopped_run_timeout=60)
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    world.stop()
    assert world.after(10).cancelled == []
    assert world.after(59).cancelled == []
    assert len(world.after(2).cancelled) == 1
    world.vertex.set(world.job.name, STATE.JOB_STATE_CANCELLED)
    world.after(5)
    assert world.it.state == "CLAIMED"
    assert Code.RUN_STOPPED in world.it.warnings[0]


def test_a_stop_that_is_taken_back_does_nothing() -> None:
    world = One(stopped_run_timeout=60)
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    world.stop()
    world.after(10)
    world.stop(stopped=False)
    assert world.after(70).cancelled == []
    world.stop()
    assert world.after(10).cancelled == []


def test_a_stop_from_before_the_submission_does_not_concern_the_job() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec(run_id="old"))
    spec = world.queue.contents[item].spec
    run = RunId(ENTITY, spec["project"], "old")
    world.queue.run_views[run] = RunView("killed", stopped=True, heartbeat=1.0)
    world.run()
    (job,) = world.vertex.jobs.values()
    for _ in range(3):
        world.clock.sleep(100)
        assert world.run().cancelled == []
    world.vertex.set(job.name, STATE.JOB_STATE_RUNNING)
    world.queue.run_views[run] = RunView("running", stopped=False)
    world.run()
    world.queue.run_views[run] = RunView("running", stopped=True)
    world.run()
    world.clock.sleep(61)
    assert len(world.run().cancelled) == 1, "a new stop does"


@pytest.mark.parametrize("seen", [True, False])
def test_a_program_that_ended_because_of_a_stop_is_reported_so(seen: bool) -> None:
    """Whether a pass has seen the stop or not."""
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    world.stop()
    if seen:
        world.after(5)
    world.vertex.set(world.job.name, STATE.JOB_STATE_FAILED, EXITED)
    world.after(5)
    assert Code.RUN_STOPPED in world.it.warnings[0]


# Jobs that do not start


@pytest.mark.parametrize(
    ("state", "code"), [(STATE.JOB_STATE_PENDING, Code.START_TIMEOUT), (STATE.JOB_STATE_QUEUED, Code.QUEUE_TIMEOUT)]
)
def test_a_job_that_waits_too_long_is_cancelled_and_its_item_fails(state: JobState, code: Code) -> None:
    """For a machine or for quota, counted from when a pass has seen it wait."""
    world = One(start_timeout=1800 if code is Code.START_TIMEOUT else 60, queue_timeout=1800)
    world.vertex.set(world.job.name, state)
    assert world.after(1800).cancelled == []
    assert world.after(1799).cancelled == []
    assert len(world.after(2).cancelled) == 1
    world.vertex.set(world.job.name, STATE.JOB_STATE_CANCELLED)
    world.after(100)
    assert world.it.state == "FAILED"
    assert code in world.it.message
    assert len(world.jobs) == 1


@pytest.mark.parametrize("state", [STATE.JOB_STATE_PENDING, STATE.JOB_STATE_QUEUED])
@pytest.mark.parametrize(("strategy", "cancelled"), [("FLEX_START", 0), ("SPOT", 1)])
def test_a_job_that_starts_when_there_are_machines_waits_as_long_as_it_wants(
    state: JobState, strategy: str, cancelled: int
) -> None:
    spec = image_spec()
    spec["resource_args"]["gcp-vertex"]["run"] = {"scheduling_strategy": strategy, "max_wait_duration": 43200}
    world = One(spec, start_timeout=1800, queue_timeout=1800)
    world.vertex.set(world.job.name, state)
    world.after(0)
    assert len(world.after(1801).cancelled) == cancelled


def test_a_job_that_restarts_has_started_before() -> None:
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_RUNNING)
    world.run()
    world.vertex.set(world.job.name, STATE.JOB_STATE_PENDING)
    for _ in range(3):
        assert world.after(1801).cancelled == []


def test_a_cancel_that_failed_leaves_no_trace() -> None:
    world = One()
    world.run()
    world.vertex.trouble["cancel"] = world.vertex.refuse
    world.after(1801)
    world.vertex.trouble.clear()
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.after(31)
    assert len(world.jobs) == 2


def test_waiting_for_quota_is_reported_once_and_does_not_count_as_starting() -> None:
    world = One()
    world.vertex.set(world.job.name, STATE.JOB_STATE_QUEUED)
    for _ in range(10):
        assert world.after(600).cancelled == []
    (warning,) = world.it.warnings
    assert Code.WAITS_FOR_QUOTA in warning


# Sweeps


@pytest.mark.parametrize(("state", "swept"), [(STATE.JOB_STATE_FAILED, 1), (STATE.JOB_STATE_CANCELLED, 0), (STATE.JOB_STATE_SUCCEEDED, 0)])  # fmt: skip
def test_a_failed_scheduler_cancels_its_sweep(state: JobState, swept: int) -> None:
    world = One(scheduler_spec())
    world.end(state, EXITED)
    world.after(100)
    assert world.queue.cancelled_sweeps == [f"{ENTITY}/demo/sw1"] * swept


@pytest.mark.parametrize(
    "spec", [scheduler_spec(run_id="mine"), scheduler_spec(entity="others"), scheduler_spec(sweep_id="sw2")]
)
def test_an_item_cannot_have_a_sweep_cancelled_that_does_not_name_it(spec: dict[str, Any]) -> None:
    world = One(spec)
    world.end(STATE.JOB_STATE_FAILED, EXITED)
    world.after(100)
    assert world.queue.cancelled_sweeps == []
    told = [warning for warning in world.it.warnings if Code.SWEEP_NOT_CANCELLED in warning]
    assert len(told) == (spec["entity"] == ENTITY), "W&B is not asked about other entities' sweeps"
    assert ("another entity" in str(world.it.warnings)) == (spec["entity"] != ENTITY)


def test_a_sweep_whose_scheduler_was_launched_on_another_queue_goes_on() -> None:
    world = One(scheduler_spec())
    world.queue.launched["sw1"] = SchedulerView("sw1", "elsewhere", "")
    world.end(STATE.JOB_STATE_FAILED, EXITED)
    world.after(100)
    assert world.queue.cancelled_sweeps == []
    assert Code.SWEEP_NOT_CANCELLED in str(world.it.warnings)


def test_a_sweep_that_cannot_be_cancelled_now_is_cancelled_later() -> None:
    world = One(scheduler_spec())
    world.end(STATE.JOB_STATE_FAILED, EXITED)
    world.queue.trouble["cancel_sweep"] = world.queue.refuse
    assert world.after(100).settled == []
    assert [EXITED in text and "Sweep sw1 goes on" in text for text in world.it.warnings] == [True], "told at once"
    world.queue.trouble.clear()
    assert len(world.after(60).settled) == 1
    assert world.queue.cancelled_sweeps == [f"{ENTITY}/demo/sw1"]
    assert len(world.it.warnings) == 1


@pytest.mark.parametrize("began", [True, False])
@pytest.mark.parametrize("deleted", [True, False])
def test_a_sweep_that_can_never_be_cancelled_is_said_at_once_in_the_items_message(began: bool, deleted: bool) -> None:
    world = One(scheduler_spec())

    def refused() -> None:
        raise Unavailable("W&B", "HTTP 400: Sweep user not valid", code=Code.WANDB_REFUSED)

    world.queue.trouble["cancel_sweep"] = refused
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=began)
    if deleted:
        del world.vertex.jobs[world.job.name]
        world.after(100)
    for _ in range(2):
        world.after(100)
    (text,) = world.it.warnings if began else [world.it.message]
    assert "Sweep user not valid" in text
    assert deleted or EXITED in text
    for _ in range(10):
        world.after(100)
    assert world.ledger.open == {}
    assert len(world.it.warnings) == began
    tried = world.queue.calls["cancel_sweep"]
    world.after(100)
    assert world.queue.calls["cancel_sweep"] == tried


# The record


def test_a_lost_ledger_brings_no_second_word_and_no_second_attempt() -> None:
    world = World(max_jobs=10)
    ended = {}
    for name, (state, error, began) in {
        "good": (STATE.JOB_STATE_SUCCEEDED, "", True),
        "warned": (STATE.JOB_STATE_FAILED, EXITED, True),
        "failed": (STATE.JOB_STATE_FAILED, EXITED, False),
    }.items():
        item = world.queue.push("cpu", image_spec())
        world.run()
        world.vertex.begins_runs = began
        (job,) = world.vertex.of(item)
        world.vertex.set(job.name, STATE.JOB_STATE_RUNNING)
        world.vertex.set(job.name, state, error)
        world.clock.sleep(100)
        world.run()
        world.run()
        ended[name] = world.queue.contents[item]
    before = {name: (one.state, one.message, list(one.warnings)) for name, one in ended.items()}
    assert [state for state, _, _ in before.values()] == ["CLAIMED", "CLAIMED", "FAILED"]
    world.bucket.lose_ledger()
    world.clock.sleep(76)
    for _ in range(4):
        report = world.run()
        world.clock.sleep(60)
    assert {name: (one.state, one.message, list(one.warnings)) for name, one in ended.items()} == before
    assert len(world.vertex.jobs) == 3
    assert (world.ledger.open, report.slots["active"]) == ({}, 0)


def test_a_lost_ledger_does_not_hide_what_was_not_reported() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    world.bucket.lose_ledger()
    world.clock.sleep(100)
    world.run()
    world.after(100)
    assert world.it.state == "FAILED"


def test_the_attempt_of_a_lost_ledger_goes_on() -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, INTERNAL)
    world.run()
    world.bucket.lose_ledger()
    world.clock.sleep(76)
    world.run()
    world.after(60)
    assert [job.attempt for job in world.jobs] == [1, 2]


# Hints


def test_a_hint_frees_the_slot_of_a_job_that_a_lagging_list_still_shows() -> None:
    world = One(max_jobs=1)
    old = world.vertex.active("us-central1")
    world.end(STATE.JOB_STATE_SUCCEEDED)
    nxt = world.queue.push("cpu", image_spec())
    world.vertex.active = lambda region: old  # type: ignore[method-assign]
    assert world.run().submitted == []
    number = world.job.name.replace("projects/p/", "projects/415104041262/")
    assert [one["item"] for one in world.run(PassRequest(ended=number)).submitted] == [nxt]


def test_a_hint_about_a_job_that_runs_or_is_not_ours_changes_nothing() -> None:
    world = One()
    for name in (world.job.name, "projects/p/locations/us-central1/customJobs/999", "nonsense"):
        report = world.run(PassRequest(ended=name))
        assert (report.settled, report.cancelled, report.slots["active"]) == ([], [], 1)


# Logs


class Lines:
    def __init__(self, *lines: str) -> None:
        self.lines = lines

    def tail(self, job: str) -> tuple[str, ...]:
        return self.lines


@pytest.mark.parametrize(("lines", "said"), [(("a", "b"), True), ((), False)])
def test_the_last_lines_of_a_failed_job(lines: tuple[str, ...], said: bool) -> None:
    world = One()
    world.end(STATE.JOB_STATE_FAILED, EXITED)
    plain = world.services
    world.services = lambda: replace(plain(), logs=Lines(*lines))  # type: ignore[method-assign]
    world.after(10)
    assert world.it.warnings[0].endswith("The last lines of its log:\na\nb") == said
