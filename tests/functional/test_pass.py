"""The pass against an outside in memory: its ten steps, its limits, and what is left behind when it dies anywhere."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import pytest
from google.cloud.aiplatform_v1.types import JobState

from tests.support.memory import FAILED, KEY, Crash, World, die_once, image_spec, lost, never, no_quota, scheduler_spec
from vertex_launch.codes import Code
from vertex_launch.dispatch import perform, start
from vertex_launch.dispatch.context import derived_run
from vertex_launch.dispatch.run import Skipped, run_pass
from vertex_launch.errors import ItemDeferred, ItemDoubtful, ItemRejected, PassBusy, PassLost, Unavailable
from vertex_launch.job.request import JobRequest
from vertex_launch.model import Ack, AgentView, ManagedJob, PassReport, PassRequest, Popped, Question, WandbState
from vertex_launch.settings.config import Region
from vertex_launch.state.open_item import Stage
from vertex_launch.state.record import LEDGER, Record


def test_an_item_becomes_one_job_and_is_claimed_for_its_run() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec(run_id="abc"))
    report = world.run()
    (job,) = world.vertex.jobs.values()
    assert report.submitted == [
        {"item": item, "queue": "cpu", "run": "acme/demo/abc", "job": job.name, "region": "us-central1"}
    ]
    assert world.queue.contents[item].state == "CLAIMED"
    assert world.queue.contents[item].run == "abc"
    assert report.slots == {"max_jobs": 5, "active": 1, "free": 4}
    assert world.run().submitted == []


def test_no_two_jobs_of_a_pass_share_an_output_directory() -> None:
    world = World()
    for _ in range(5):
        world.queue.push("cpu", image_spec())
    world.run()
    places = {job.message.job_spec.base_output_directory.output_uri_prefix for job in world.vertex.jobs.values()}
    assert len(places) == 5


def test_max_jobs_is_never_exceeded_and_slots_free_up_when_jobs_end() -> None:
    world = World(max_jobs=2)
    items = [world.queue.push("cpu", image_spec()) for _ in range(5)]
    assert len(world.run().submitted) == 2
    assert world.run().submitted == []
    world.vertex.set(world.vertex.living()[0].name, JobState.JOB_STATE_SUCCEEDED)
    assert len(world.run().submitted) == 1
    assert world.vertex.most_active == 2
    assert [world.queue.state(item) for item in items] == ["CLAIMED"] * 3 + ["PENDING"] * 2


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_holds_its_slot_until_the_job_has_ended(state: JobState) -> None:
    world = World(max_jobs=1)
    world.queue.push("cpu", image_spec())
    world.run()
    (name,) = world.vertex.jobs
    world.vertex.set(name, state)
    assert world.run().slots["active"] == (0 if state.value in (4, 5, 7, 9, 11) else 1)


def test_no_limit() -> None:
    world = World(max_jobs=-1)
    for _ in range(70):
        world.queue.push("cpu", image_spec())
    report = world.run()
    assert len(report.submitted) == 60, "the quota of submissions a minute"
    assert report.slots == {"max_jobs": -1, "active": 60, "free": None}
    world.clock.sleep(61)
    assert len(world.run().submitted) == 10


def test_queues_take_turns() -> None:
    world = World(max_jobs=3)
    for queue in ("cpu", "cpu", "cpu", "gpu", "gpu", "gpu"):
        world.queue.push(queue, image_spec())
    assert [one["queue"] for one in world.run().submitted] == ["cpu", "gpu", "cpu"]
    for name in world.vertex.jobs:
        world.vertex.set(name, JobState.JOB_STATE_SUCCEEDED)
    assert [one["queue"] for one in world.run().submitted] == ["gpu", "cpu", "gpu"]


def test_an_idle_pass_costs_two_requests_to_wandb_and_one_list_a_region() -> None:
    world = World(max_jobs=1)
    world.run()
    world.queue.calls.clear()
    world.vertex.calls.clear()
    world.run()
    assert world.queue.calls == {"ask": 1, "pop": 1}
    assert world.vertex.calls == {"active": 1}


@pytest.mark.parametrize("history", [0, 1, 30])
def test_fifty_items_cost_as_many_requests_as_one(history: int) -> None:
    world = World(max_jobs=-1)
    for _ in range(history):
        world.queue.contents[world.queue.push("cpu", image_spec())].state = "CLAIMED"
    world.run()
    for _ in range(50):
        world.queue.push("cpu", image_spec())
    world.queue.calls.clear()
    assert len(world.run().submitted) == 50
    probes = 1 if history == 30 else 0
    assert world.queue.calls == {"ask": 1, "pop": 1 + probes, "ack": 1}


def test_many_jobs_that_ended_are_fetched_in_parallel() -> None:
    world = World(max_jobs=16)
    for _ in range(16):
        world.queue.push("cpu", image_spec())
    world.run()
    for job in world.vertex.living():
        world.vertex.turn(job, JobState.JOB_STATE_SUCCEEDED)
    together = threading.Barrier(8, timeout=10)
    world.vertex.trouble["get"] = lambda: (together.wait(), None)[1]
    assert world.run().slots["active"] == 0


def test_a_long_line_of_what_cannot_start_is_passed_in_few_requests() -> None:
    world = World(max_jobs=1, max_schedulers=0)
    for _ in range(90):
        world.queue.push("cpu", scheduler_spec())
    good = world.queue.push("cpu", image_spec())
    assert [one["item"] for one in world.run().submitted] == [good]
    assert world.queue.calls["pop"] < 10


def test_items_for_another_resource_are_left_to_others_with_one_notice() -> None:
    world = World()
    world.queue.queues["gpu"] = ""
    others = [world.queue.push("gpu", image_spec(resource="kubernetes")) for _ in range(3)]
    good, behind = world.queue.push("cpu", image_spec()), world.queue.push("gpu", image_spec())
    report = world.run()
    assert {one["item"] for one in report.submitted} == {good, behind}
    assert len(report.notices) == 1
    assert "kubernetes" in report.notices[0]
    assert all(world.queue.state(item) in ("LEASED", "PENDING") for item in others)


@pytest.mark.parametrize("others", [1, 3])
def test_a_queue_that_holds_only_items_of_others_is_asked_less_and_less_often(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(max_jobs=9)
    world.queue.queues["gpu"] = ""
    foreign = [world.queue.push("gpu", image_spec(resource="sagemaker")) for _ in range(others)]
    leased, lease = Counter[str](), world.queue.lease

    def counted(queue: str) -> Popped:
        popped = lease(queue)
        leased[popped.item.id if popped.item else ""] += 1
        return popped

    monkeypatch.setattr(world.queue, "lease", counted)
    for _ in range(30):
        world.run()
        world.clock.sleep(60)
    assert all(3 <= leased[item] <= 6 for item in foreign)
    behind = world.queue.push("gpu", image_spec())
    world.run()
    assert world.queue.state(behind) == "CLAIMED"


def test_a_queue_is_asked_while_a_job_of_it_is_not_claimed_although_its_other_items_wait() -> None:
    world = World(max_jobs=9)
    world.queue.queues["gpu"] = ""
    world.queue.push("gpu", image_spec(resource="sagemaker"))
    world.run()
    unclaimed = world.queue.push("gpu", image_spec())
    world.queue.trouble["ack"] = world.queue.refuse
    world.clock.sleep(200)
    with pytest.raises(Unavailable):
        world.run()
    world.queue.trouble.clear()
    world.clock.sleep(61)
    world.run()
    assert world.queue.state(unclaimed) == "CLAIMED"
    assert len(world.vertex.of(unclaimed)) == 1


@pytest.mark.parametrize("resource", ["kubernetes", "sagemaker", "local-container", "Vertex", "\N{SNOWMAN}" * 99])
def test_an_item_for_another_resource_fails_in_a_vertex_queue_and_stops_nothing(resource: str) -> None:
    world = World(max_jobs=9)
    bad = [world.queue.push("cpu", image_spec(resource=resource)) for _ in range(3)]
    good = world.queue.push("cpu", image_spec())
    report = world.run()
    assert [one["item"] for one in report.submitted] == [good]
    assert {one["item"]: one["code"] for one in report.rejected} == dict.fromkeys(bad, Code.ITEM_RESOURCE)
    assert {world.queue.state(item) for item in bad} == {"FAILED"}
    assert report.notices == []


def test_a_limit_and_chosen_queues() -> None:
    world = World()
    for queue in ("cpu", "cpu", "gpu", "gpu"):
        world.queue.push(queue, image_spec())
    report = world.run(PassRequest(queues=("gpu",), limit=1))
    assert [one["queue"] for one in report.submitted] == ["gpu"]
    assert report.deferred == []
    assert world.run(PassRequest(limit=0)).submitted == []


def test_a_bad_item_fails_at_once_and_does_not_delay_the_good_one_behind_it() -> None:
    world = World(max_jobs=1)
    bad = [
        world.queue.push("cpu", image_spec(docker={})),
        world.queue.push("cpu", image_spec(docker={}, job="acme/demo/train:v1")),
        world.queue.push("cpu", {"nonsense": [KEY]}),
    ]
    good = world.queue.push("cpu", image_spec())
    report = world.run()
    assert [one["item"] for one in report.submitted] == [good]
    assert [one["item"] for one in report.rejected] == bad
    for item in bad:
        assert world.queue.contents[item].state == "FAILED"
        assert world.queue.contents[item].message
    assert "acme/demo/train:v1" in world.queue.contents[bad[1]].message


def test_what_vertex_refuses_permanently_fails_the_item() -> None:
    world = World(max_jobs=1)
    item = world.queue.push("cpu", image_spec())
    good = world.queue.push("cpu", image_spec())

    def refuse_first(request: JobRequest, create: Callable[[], str]) -> str:
        world.vertex.on_create = lambda request, create: create()
        raise ItemRejected(f"Vertex AI refused the job: bad machine {KEY}", code=Code.CREATE_INVALID)

    world.vertex.on_create = refuse_first
    report = world.run()
    assert (
        world.queue.contents[item].message
        == f"Vertex AI refused the job: bad machine <redacted> [{Code.CREATE_INVALID}]"
    )
    assert [one["item"] for one in report.submitted] == [good], "a second round fills the slot"


def test_no_quota_defers_warns_once_and_lets_others_through() -> None:
    world = World(max_jobs=1)
    short = world.queue.push("cpu", image_spec())
    good = world.queue.push("cpu", image_spec())

    def first_has_no_quota(request: JobRequest, create: Callable[[], str]) -> str:
        return create() if request.run.id == good_run else no_quota(request, create)

    good_run = "good"
    world.queue.contents[good].spec["run_id"] = good_run
    world.vertex.on_create = first_has_no_quota
    report = world.run()
    assert [one["item"] for one in report.submitted] == [good]
    assert [one["item"] for one in report.deferred] == [short]
    assert world.queue.contents[short].warnings == [f"no quota [{Code.QUOTA_CREATE}]"]
    world.vertex.set(world.vertex.of(good)[0].name, JobState.JOB_STATE_SUCCEEDED)
    world.clock.sleep(61)
    assert world.run().deferred
    assert world.queue.contents[short].warnings == [f"no quota [{Code.QUOTA_CREATE}]"], "said once"
    world.vertex.on_create = lambda request, create: create()
    world.clock.sleep(61)
    assert [one["item"] for one in world.run().submitted] == [short]
    assert world.ledger.waiting == {}


def test_many_items_without_quota_do_not_keep_others_from_starting() -> None:
    world = World(max_jobs=-1)
    for _ in range(70):
        world.queue.push("cpu", image_spec())
    good = world.queue.push("cpu", image_spec(run_id="good"))
    world.vertex.on_create = lambda request, create: create() if request.run.id == "good" else no_quota(request, create)
    for _ in range(5):
        world.run()
        world.clock.sleep(61)
    assert world.queue.state(good) == "CLAIMED"


def test_an_item_without_quota_is_tried_again_less_and_less_often() -> None:
    world = World(max_jobs=1)
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = no_quota
    for _ in range(60):
        world.run()
        world.clock.sleep(61)
    assert 5 <= world.vertex.calls["create"] <= 10
    world.vertex.on_create = lambda request, create: create()
    for _ in range(16):
        world.run()
        world.clock.sleep(61)
    assert world.queue.state(item) == "CLAIMED"


@pytest.mark.parametrize(("trouble", "reason"), [(no_quota, "no quota"), (never, "no answer")])
def test_an_item_that_waits_too_long_fails_with_the_reason(trouble: Any, reason: str) -> None:
    world = World(max_jobs=1, give_up_after=3600)
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = trouble
    for _ in range(70):
        world.run()
        world.clock.sleep(61)
    assert world.queue.state(item) == "FAILED"
    assert Code.WAITED_TOO_LONG in world.queue.contents[item].message
    assert reason in world.queue.contents[item].message
    assert world.run().slots["active"] == 0


@pytest.mark.parametrize("limit", ["schedulers", "run"])
def test_what_waits_for_another_job_waits_for_as_long_as_that_takes(limit: str) -> None:
    world = World(max_jobs=5, give_up_after=3600, start_timeout=0)
    first, second = (
        world.queue.push("cpu", scheduler_spec(f"s{index}") if limit == "schedulers" else image_spec(run_id="abc"))
        for index in range(2)
    )
    for _ in range(70):
        world.run()
        world.clock.sleep(61)
    assert world.queue.state(first) == "CLAIMED"
    assert len(world.queue.contents[second].warnings) <= 2
    world.vertex.set(world.vertex.of(first)[0].name, JobState.JOB_STATE_SUCCEEDED)
    for _ in range(3):
        world.run()
        world.clock.sleep(61)
    assert world.queue.state(second) == "CLAIMED", world.queue.contents[second].message


def test_many_refusals_are_sent_in_one_request() -> None:
    world = World(max_jobs=5)
    items = [world.queue.push("cpu", image_spec()) for _ in range(5)]

    def refuse(request: JobRequest, create: Callable[[], str]) -> str:
        raise ItemRejected("Vertex AI refused the job", code=Code.CREATE_INVALID)

    world.vertex.on_create = refuse
    assert len(world.run().rejected) == len(items)
    assert world.queue.calls["fail"] == 1


def test_what_was_done_is_reported_although_the_record_cannot_be_written_at_the_end() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())

    def down_after_the_intents() -> None:
        if world.bucket.calls["write ledger.json"] > 1:
            world.bucket.refuse()

    world.bucket.trouble["write ledger.json"] = down_after_the_intents
    report = world.run()
    assert [one["item"] for one in report.submitted] == [item]
    assert "Cloud Storage: down" in report.notices[0]
    world.bucket.trouble.clear()
    world.clock.sleep(76)
    assert world.run().slots["active"] == 1
    assert len(world.vertex.of(item)) == 1


def test_a_lease_is_counted_from_before_the_pop() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.queue.trouble["pop"] = lambda: world.clock.sleep(35)
    assert [one["item"] for one in world.run().deferred] == [item]
    assert world.vertex.jobs == {}


def test_a_region_of_the_ledger_that_cannot_be_listed_stops_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    first = world.queue.push("cpu", image_spec())
    world.run()
    ledger = world.ledger
    strange = replace(ledger.open[first], item="Strange", run="strange")
    attempt = replace(strange.current, region="zz-nowhere9", job="")
    ledger.open["Strange"] = replace(strange, attempts=(attempt,), claimed=False)
    world.bucket.put(LEDGER, ledger.dump())
    listed = world.vertex.active

    def active(region: str) -> list[ManagedJob]:
        return listed(region) if region == "us-central1" else world.vertex.refuse("active")

    monkeypatch.setattr(world.vertex, "active", active)
    good = world.queue.push("cpu", image_spec())
    assert [one["item"] for one in world.run().submitted] == [good]
    world.settings = world.settings.model_copy(update={"regions": (Region(name="zz-nowhere9"),)})
    with pytest.raises(Unavailable):
        world.run()


def test_a_create_in_a_region_that_cannot_be_listed_does_not_lapse(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = lost
    world.run()
    world.vertex.on_create = lambda request, create: create()
    listed, down = world.vertex.active, {"us-central1"}

    def active(region: str) -> list[ManagedJob]:
        return world.vertex.refuse("active") if region in down else listed(region)

    monkeypatch.setattr(world.vertex, "active", active)
    world.settings = world.settings.model_copy(update={"regions": (Region(name="us-east4"),)})
    for _ in range(4):
        world.clock.sleep(70)
        assert world.run().submitted == []
    down.clear()
    world.clock.sleep(70)
    world.run()
    assert [job.region for job in world.vertex.of(item)] == ["us-central1"]
    assert world.queue.state(item) == "CLAIMED"


def test_slow_pops_leave_time_to_start_what_they_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(max_jobs=30)
    items = [world.queue.push("cpu", image_spec()) for _ in range(30)]
    pop = world.queue.pop

    def five(entity: str, queues: Sequence[str], *args: Any, **named: Any) -> list[Popped]:
        world.clock.sleep(12)
        return pop(entity, queues[:5], *args, **named)

    monkeypatch.setattr(world.queue, "pop", five)
    for _ in range(3):
        world.run()
        world.clock.sleep(60)
    assert all(world.queue.state(item) == "CLAIMED" for item in items)


def test_the_pace_of_the_server_is_kept_also_if_the_pass_fails() -> None:
    world = World()
    world.queue.push("cpu", image_spec())
    services = world.services()

    def lost() -> None:
        services.pace.slower(64)
        world.queue.refuse("pop")

    world.queue.trouble["pop"] = lost
    with pytest.raises(Unavailable):
        run_pass(world.settings, services, PassRequest())
    assert world.ledger.operations == 32
    world.queue.trouble.clear()
    services.pace.operations = 1000  # of another instance
    run_pass(world.settings, services, PassRequest())
    assert services.pace.operations == world.ledger.operations == 32


def test_nothing_is_said_on_an_item_that_turns_out_to_be_someone_elses() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.queue.trouble["ack"] = lambda: (_ for _ in ()).throw(Crash())
    with pytest.raises(Crash):
        world.run()
    world.queue.trouble.clear()
    world.clock.sleep(world.settings.lock_seconds)
    (job,) = world.vertex.jobs
    world.vertex.set(job, JobState.JOB_STATE_QUEUED)
    world.run(PassRequest(queues=("gpu",)))
    world.clock.sleep(400)
    world.queue.claim(item, "anothers")
    assert len(world.run().cancelled) == 1
    assert world.queue.contents[item].warnings == []


@pytest.mark.parametrize("lag", [0.0, 100.0])
def test_a_job_that_lost_its_item_in_this_pass_holds_its_slot_until_it_has_ended(lag: float) -> None:
    world = World(max_jobs=1)
    world.vertex.lag = lag
    items = [world.queue.push("cpu", image_spec()) for _ in range(2)]

    def take(request: JobRequest, create: Callable[[], str]) -> str:
        world.vertex.on_create = lambda request, create: create()
        world.queue.claim(items[0], "anothers")
        return create()

    world.vertex.on_create = take
    assert len(world.run().cancelled) == 1
    world.clock.sleep(61)
    world.run()
    assert len(world.vertex.living()) == 1
    world.vertex.set(next(iter(world.vertex.jobs)), JobState.JOB_STATE_CANCELLED)
    world.clock.sleep(61)
    assert [one["item"] for one in world.run().submitted] == [items[1]]
    assert world.ledger.dying == {}


def test_two_items_with_one_run_id_never_run_at_once() -> None:
    world = World()
    first, second = (world.queue.push("cpu", image_spec(run_id="same")) for _ in range(2))
    report = world.run()
    assert [one["item"] for one in report.submitted] == [first]
    assert [one["item"] for one in report.deferred] == [second]
    world.clock.sleep(61)
    assert world.run().submitted == []
    world.vertex.set(world.vertex.of(first)[0].name, JobState.JOB_STATE_SUCCEEDED)
    world.clock.sleep(61)
    assert [one["item"] for one in world.run().submitted] == [second]
    assert all(Code.RUN_IN_USE in warning for warning in world.queue.contents[second].warnings)
    assert len(world.queue.contents[second].warnings) == 2, "by a job of this round, then by one of the first item"


@pytest.mark.parametrize("lag", [0.0, 100.0])
def test_the_run_of_a_job_that_lost_its_item_is_not_used_before_the_job_has_ended(lag: float) -> None:
    world = World()
    world.vertex.lag = lag
    first, second = (world.queue.push(queue, image_spec(run_id="same")) for queue in ("cpu", "gpu"))

    def take(request: JobRequest, create: Callable[[], str]) -> str:
        world.vertex.on_create = lambda request, create: create()
        world.queue.claim(first, "anothers")
        return create()

    world.vertex.on_create = take
    assert len(world.run(PassRequest(queues=("cpu",))).cancelled) == 1
    assert world.run(PassRequest(queues=("gpu",))).submitted == []
    assert Code.RUN_IN_USE in world.queue.contents[second].warnings[0]
    world.vertex.set(next(iter(world.vertex.jobs)), JobState.JOB_STATE_CANCELLED)
    world.clock.sleep(130)
    assert [one["item"] for one in world.run().submitted] == [second]


def test_few_items_may_wait_for_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "MOST_FOR_A_RUN", 3)
    world = World(max_jobs=10)
    items = [world.queue.push("cpu", image_spec(run_id="same")) for _ in range(6)]
    good = world.queue.push("cpu", image_spec())
    report = world.run()
    assert {one["item"] for one in report.submitted} == {items[0], good}
    assert [one["item"] for one in report.deferred] == items[1:4]
    assert [world.queue.state(one) for one in items[4:]] == ["FAILED"] * 2
    assert all(Code.RUN_CROWDED in world.queue.contents[one].message for one in items[4:])


@pytest.mark.parametrize("changes", [{"entity": "ACME"}, {"project": "DEMO"}, {"entity": "Acme", "project": "Demo"}])
def test_a_run_that_differs_only_by_case_is_the_same_run(changes: dict[str, str]) -> None:
    world = World()
    first = world.queue.push("cpu", image_spec(run_id="same"))
    second = world.queue.push("gpu", image_spec(run_id="same", **changes))
    assert [one["item"] for one in world.run().submitted] == [first]
    world.clock.sleep(61)
    assert world.run().submitted == []
    assert Code.RUN_IN_USE in world.queue.contents[second].warnings[0]


@pytest.mark.parametrize("together", [True, False])
def test_a_run_of_another_entity_is_compared_without_its_case_as_well(together: bool) -> None:
    world = World()
    first = world.queue.push("cpu", image_spec(entity="Others", run_id="same"))
    if not together:
        world.run()
    second = world.queue.push("gpu", image_spec(entity="OTHERS", run_id="same"))
    world.run()
    assert [world.queue.state(first), world.queue.state(second)] == ["CLAIMED", "LEASED"]
    assert Code.RUN_IN_USE in world.queue.contents[second].warnings[0]


@pytest.mark.parametrize("other", ["vl0123456789ab", "VL0123456789ab", "of another item"])
def test_an_item_cannot_name_a_run_that_is_made_for_another(other: str) -> None:
    world = World()
    victim = world.queue.push("cpu", image_spec())
    run = other if other.lower().startswith("vl") else derived_run(world.settings, "acme", victim)
    thief = world.queue.push("cpu", image_spec(run_id=run))
    world.run()
    assert world.queue.state(victim) == "CLAIMED"
    assert Code.SPEC_RUN_ID in world.queue.contents[thief].message


def test_schedulers_have_slots_of_their_own() -> None:
    world = World(max_jobs=5, max_schedulers=1)
    first, second = (world.queue.push("cpu", scheduler_spec(f"s{index}")) for index in range(2))
    job = world.queue.push("cpu", image_spec())
    report = world.run()
    assert [one["item"] for one in report.submitted] == [first, job]
    assert report.slots["active"] == 1
    assert world.queue.state(second) == "LEASED"
    assert "max_schedulers" in world.queue.contents[second].warnings[0]


# Outcomes that are not known


def test_a_lost_answer_keeps_the_slot_and_its_job_is_adopted() -> None:
    world = World(max_jobs=1)
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = lost
    assert world.run().slots["active"] == 1
    assert world.queue.state(item) == "LEASED"
    world.vertex.on_create = never
    world.clock.sleep(61)
    report = world.run()
    assert [one["item"] for one in report.adopted] == [item]
    assert world.queue.state(item) == "CLAIMED"
    assert len(world.vertex.jobs) == 1


def test_an_intent_holds_its_slot_until_the_grace_has_passed() -> None:
    world = World(max_jobs=1)
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = never
    world.run()
    world.vertex.on_create = lambda request, create: create()
    world.clock.sleep(world.settings.timeouts.intent_grace - 1)
    report = world.run()
    assert report.submitted == []
    assert report.slots["active"] == 1
    world.clock.sleep(62)
    assert [one["item"] for one in world.run().submitted] == [item]


def test_lists_that_lag_neither_free_a_slot_nor_start_an_item_twice() -> None:
    world = World(max_jobs=1)
    world.vertex.lag = 30
    item = world.queue.push("cpu", image_spec())
    other = world.queue.push("cpu", image_spec())
    world.run()
    for _ in range(4):
        world.clock.sleep(10)
        assert world.run().submitted == []
    assert len(world.vertex.of(item)) == 1
    assert world.vertex.of(other) == []


def test_a_job_that_ended_before_its_item_was_acked_is_adopted_not_repeated() -> None:
    world = World(max_jobs=1)
    item = world.queue.push("cpu", image_spec())
    world.queue.trouble["ack"] = lambda: (_ for _ in ()).throw(Crash())
    world.crash()
    world.vertex.set(world.vertex.of(item)[0].name, JobState.JOB_STATE_SUCCEEDED)
    world.queue.trouble.clear()
    world.clock.sleep(200)
    world.run()
    assert world.queue.state(item) == "CLAIMED"
    assert len(world.vertex.jobs) == 1
    world.run()
    assert world.ledger.open == {}


# Twins and other people's claims


def twin(world: World, item: str) -> str:
    """Create the item's job a second time, as a dispatcher does that was paused for minutes before its create."""
    (job,) = world.vertex.of(item)
    world.clock.sleep(5)
    return world.vertex.add(JobRequest("us-central1", job.message, None, job.run))


def test_the_older_of_two_twins_survives() -> None:
    world = World(max_jobs=3)
    item = world.queue.push("cpu", image_spec())
    world.run()
    younger = twin(world, item)
    report = world.run()
    assert [one["job"] for one in report.cancelled] == [younger]
    assert report.slots["active"] == 2, "a job that is being cancelled holds its slot"
    assert world.run().cancelled == []
    world.vertex.set(younger, JobState.JOB_STATE_CANCELLED)
    assert world.run().slots["active"] == 1
    assert world.ledger.open[item].stage is Stage.CLAIMED


def test_a_twin_that_the_list_shows_late_does_not_cost_the_older_job() -> None:
    world = World(max_jobs=3)
    item = world.queue.push("cpu", image_spec())
    world.run()
    (older,) = [job.name for job in world.vertex.of(item)]
    younger = twin(world, item)
    ledger = world.ledger
    ledger.open[item] = ledger.open[item]._noted(job=younger)
    world.bucket.lose_ledger(ledger.dump())
    assert [one["job"] for one in world.run().cancelled] == [younger]
    assert world.ledger.open[item].job == older


@pytest.mark.parametrize(
    ("state", "run", "cancelled"),
    [
        ("CLAIMED", "someone-elses", True),
        ("FAILED", "", True),
        ("PENDING", "", False),
        ("LEASED", "", False),
        ("SOMETHING_NEW", "", False),
        ("CLAIMED", "", False),
    ],
)
def test_a_job_whose_ack_was_refused_is_cancelled_on_positive_evidence_only(
    state: str, run: str, cancelled: bool
) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())

    def refuse(claims: Sequence[tuple[str, str]], within: float) -> list[Ack]:
        world.queue.contents[item].state, world.queue.contents[item].run = state, run
        world.queue.contents[item].leased_until = world.clock() + 1000
        return [Ack.REFUSED]

    world.queue.ack = refuse  # type: ignore[method-assign]
    world.run()
    assert bool(world.vertex.living()[0].state == JobState.JOB_STATE_CANCELLING) == cancelled
    assert world.queue.contents[item].message == "", "an item that someone else owns is never failed"


def test_an_ack_that_was_refused_because_it_had_won_before_counts() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    ack = world.queue.ack
    world.queue.ack = lambda claims, within: (ack(claims, within), ack(claims, within))[1]  # type: ignore[method-assign]
    world.run()
    assert world.ledger.open[item].stage is Stage.CLAIMED
    assert world.vertex.living()[0].state == JobState.JOB_STATE_PENDING


def test_no_ack_is_sent_when_the_lease_may_be_over() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())

    def slow(request: JobRequest, create: Callable[[], str]) -> str:
        world.clock.sleep(55)
        return create()

    world.vertex.on_create = slow
    world.run()
    assert world.queue.calls["ack"] == 0
    world.clock.sleep(10)
    assert [one["item"] for one in world.run().adopted] == [item]
    assert len(world.vertex.jobs) == 1


def test_a_pass_that_runs_late_creates_nothing() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.bucket.trouble["write ledger.json"] = lambda: world.clock.sleep(40)
    report = world.run()
    assert world.vertex.jobs == {}
    assert [one["item"] for one in report.deferred] == [item]
    assert world.ledger.open == {}


# Crashes


@pytest.mark.parametrize(
    ("where", "nth"),
    [
        *((where, 1) for where in ("queue.ask", "vertex.active", "queue.pop", "queue.ack", "queue.warn")),
        *(("bucket.write", nth) for nth in (1, 2, 3)),  # of the lock, and of the ledger before and after the creates
    ],
)
@pytest.mark.parametrize("after", [False, True])
def test_no_item_is_lost_or_doubled_when_the_process_dies(where: str, nth: int, after: bool) -> None:
    world = World(max_jobs=2)
    items = [world.queue.push("cpu", image_spec()) for _ in range(3)]
    side, operation = where.split(".")
    die_once(getattr(world, side), operation, nth, after=after)
    dead = False
    for _ in range(12):
        try:
            world.run()
        except Crash:
            dead = True
        except PassBusy:
            pass
        for job in world.vertex.living():
            if world.queue.state(items[0]) == "CLAIMED":
                world.vertex.set(job.name, JobState.JOB_STATE_SUCCEEDED)
        world.clock.sleep(61)
    assert dead or where == "queue.warn"
    assert [world.queue.state(item) for item in items] == ["CLAIMED"] * 3
    assert [len(world.vertex.of(item)) for item in items] == [1, 1, 1]
    assert world.vertex.most_active <= 2


def test_a_lost_ledger_is_rebuilt_from_the_lists() -> None:
    world = World(max_jobs=2)
    items = [world.queue.push("cpu", image_spec()) for _ in range(3)]
    world.run()
    world.vertex.set(world.vertex.of(items[0])[0].name, JobState.JOB_STATE_SUCCEEDED)
    world.bucket.lose_ledger()
    with pytest.raises(PassBusy):
        world.run()
    world.clock.sleep(76)
    report = world.run()
    assert [one["item"] for one in report.submitted] == [items[2]]
    assert set(world.ledger.open) == {items[1], items[2]}
    assert world.ledger.open[items[1]].stage is Stage.CLAIMED
    assert len(world.queue.agents) == 1, "the agent is found again by its host name"


def test_a_pass_that_lost_its_lock_writes_nothing() -> None:
    world = World()
    world.queue.push("cpu", image_spec())

    world.bucket.trouble["write ledger.json"] = world.bucket.lose_ledger
    with pytest.raises(PassLost):
        world.run()
    assert world.vertex.jobs == {}


# Ticks, locks, and services that are down


def test_a_second_pass_is_busy_until_the_lock_is_given_back_or_expires() -> None:
    world = World()
    Record(world.bucket, world.redact).take_lock("other", world.clock(), world.clock() + 75, 0)
    with pytest.raises(PassBusy) as busy:
        world.run()
    assert busy.value.retry_after == pytest.approx(75, abs=0.1)
    world.clock.sleep(76)
    world.run()
    assert not world.locked
    world.run()


def test_a_hundred_ticks_at_once_cost_one_more_pass() -> None:
    world = World()
    passes = 0
    published = world.clock()
    for _ in range(100):
        world.clock.sleep(0.01)
        passes += isinstance(world.tick(published), PassReport)
    assert passes == 1
    assert isinstance(world.tick(world.clock()), PassReport)


def test_a_tick_for_a_full_pass_is_not_covered_by_a_partial_one() -> None:
    world = World()
    world.clock.sleep(1)
    world.run(PassRequest(queues=("gpu",)))
    assert isinstance(world.tick(world.clock() - 1), PassReport)


def test_an_old_tick_is_dropped() -> None:
    world = World()
    assert world.tick(world.clock() - 601) is Skipped.STALE
    assert world.bucket.calls == {}


@pytest.mark.parametrize(("service", "operation"), [("queue", "ask"), ("queue", "pop"), ("vertex", "active")])
def test_a_service_that_is_down_means_no_pass(service: str, operation: str) -> None:
    world = World()
    world.queue.push("cpu", image_spec())
    down = getattr(world, service)
    down.trouble[operation] = down.refuse
    with pytest.raises(Unavailable, match=f"{down.name}: down"):
        world.run()
    assert world.vertex.jobs == {}
    down.trouble.clear()
    assert len(world.run().submitted) == 1, "the lock was given back"


# The agent and its queues


def test_one_agent_is_made_and_found_again() -> None:
    world = World()
    for _ in range(3):
        world.run()
    (agent,) = world.queue.agents.values()
    assert agent == AgentView("agent1", "vertex-launch/test", stop_polling=False, queues=("id-cpu", "id-gpu"))
    assert world.queue.statuses == ["POLLING"] * 3
    world.queue.push("cpu", image_spec())
    world.run()
    world.run()
    assert world.queue.statuses[-1] == "RUNNING"


def test_changed_queues_and_a_deleted_agent_make_a_new_agent() -> None:
    world = World()
    world.run()
    world.run(queues=("cpu",))
    assert len(world.queue.agents) == 1, "at most one an hour"
    world.clock.sleep(3600)
    world.run(queues=("cpu",))
    assert [agent.queues for agent in world.queue.agents.values()] == [("id-cpu", "id-gpu"), ("id-cpu",)]
    world.queue.agents.clear()
    world.run()
    assert len(world.queue.agents) == 0
    world.clock.sleep(3600)
    world.run()
    assert len(world.queue.agents) == 1


@pytest.mark.parametrize("shown", ["another form", "not at all", "as deleted"])
@pytest.mark.parametrize("fails", [False, True])
def test_at_most_one_agent_an_hour_is_made_whatever_wandb_shows(
    monkeypatch: pytest.MonkeyPatch, shown: str, fails: bool
) -> None:
    world = World()
    ask, made = world.queue.ask, list[str]()
    create = world.queue.create_agent

    def answer(question: Question) -> WandbState:
        state = ask(question)
        agent = state.agent and replace(state.agent, queues=tuple(f"other-{one}" for one in state.agent.queues))
        agents = [replace(one, queues=("x",)) for one in state.agents]
        shows = shown == "another form"
        return replace(state, agent=agent if shows else None, agents=tuple(agents) if shows else ())

    def note(*args: Any) -> str:
        made.append(create(*args))
        return made[-1]

    monkeypatch.setattr(world.queue, "ask", answer)
    monkeypatch.setattr(world.queue, "create_agent", note)
    if fails:
        world.queue.trouble["pop"] = lambda: world.queue.refuse("pop")
    for _ in range(100):
        with suppress(Unavailable):
            world.run()
        world.clock.sleep(60)
    assert len(made) == (1 if shown == "another form" else 2)
    if shown == "another form":
        world.queue.trouble.clear()
        world.queue.stop(made[0])
        item = world.queue.push("cpu", image_spec())
        assert "stopped in W&B" in world.run().notices[0]
        assert world.queue.state(item) == "PENDING"
        world.run(PassRequest(resume=True))
        assert world.queue.state(item) == "CLAIMED"


def test_an_agent_whose_id_was_told_wrongly_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    items = [world.queue.push("cpu", image_spec())]
    create, pop = world.queue.create_agent, world.queue.pop

    def wrong(*args: Any) -> str:
        return f"not-{create(*args)}"

    def known(entity: str, queues: Sequence[str], agent: str, *args: Any, **named: Any) -> list[Popped]:
        if agent not in world.queue.agents:
            return [Popped(queue, error="no such agent") for queue in queues]
        return pop(entity, queues, agent, *args, **named)

    monkeypatch.setattr(world.queue, "create_agent", wrong)
    monkeypatch.setattr(world.queue, "pop", known)
    for _ in range(2):
        world.run()
    assert [world.queue.state(item) for item in items] == ["CLAIMED"]
    assert len(world.queue.agents) == 1


@pytest.mark.parametrize("queues", [("cpu",), ("gpu", "cpu"), ("gpu",)])
def test_a_stopped_agent_is_not_used_again_once_another_one_serves(
    monkeypatch: pytest.MonkeyPatch, queues: tuple[str, ...]
) -> None:
    world = World()
    world.run()
    world.queue.stop("agent1")
    world.queue.create_agent(
        "acme", ("id-cpu", "id-gpu"), "vertex-launch/test", {}
    )  # by a pass that then lost its ledger
    pops, pop = list[str](), world.queue.pop

    def note(entity: str, queues: Sequence[str], agent: str, *args: Any, **named: Any) -> list[Popped]:
        pops.append(agent)
        return pop(entity, queues, agent, *args, **named)

    monkeypatch.setattr(world.queue, "pop", note)
    world.run()
    world.run(queues=queues)
    world.run(queues=queues)
    assert pops == ["agent2"] * 3


def test_a_stop_is_obeyed_after_the_queues_changed() -> None:
    world = World()
    world.run()
    world.queue.stop("agent1")
    world.queue.push("cpu", image_spec())
    for _ in range(3):
        world.clock.sleep(3600)
        assert world.run(queues=("cpu",)).submitted == []


def test_stop_polling_is_obeyed_with_a_notice_until_a_person_resumes() -> None:
    world = World()
    world.run()
    world.queue.stop("agent1")
    item = world.queue.push("cpu", image_spec())
    report = world.run()
    assert report.submitted == []
    assert "stopped in W&B" in report.notices[0]
    assert "resume" in report.notices[0]
    assert [one["item"] for one in world.run(PassRequest(resume=True)).submitted] == [item]
    assert world.run().notices == []


@pytest.mark.parametrize("where", ["pop", "set_status"])
def test_a_resume_whose_pass_died_before_it_wrote_has_resumed(where: str) -> None:
    world = World()
    world.run()
    world.queue.stop("agent1")
    die_once(world.queue, where, 1, after=False)
    if where == "set_status":  # a pass that cannot pop because no slot is free
        world.settings = world.settings.model_copy(update={"max_jobs": 0})
    with pytest.raises(Crash):
        world.run(PassRequest(resume=True))
    world.settings = World().settings
    item = world.queue.push("cpu", image_spec())
    world.clock.sleep(76)
    for _ in range(2):
        world.run()
    assert world.queue.state(item) == "CLAIMED"
    assert len(world.queue.agents) == 2


def test_a_queue_that_cannot_be_served_gets_a_notice_and_the_others_go_on() -> None:
    world = World(queues=("missing", "k8s", "cpu"))
    world.queue.queues["k8s"] = "kubernetes"
    item = world.queue.push("cpu", image_spec())
    report = world.run()
    assert [one["item"] for one in report.submitted] == [item]
    assert len(report.notices) == 2
    assert "Queue missing does not exist" in report.notices[0]
    assert "kubernetes queue" in report.notices[1]
    world.queue.queues["k8s"] = "gcp-vertex"
    assert len(world.run().notices) == 1
    world.run()
    assert world.queue.calls["resources"] == 2, "asked until a queue can be served, then never again"


def test_the_default_entity_is_the_keys() -> None:
    world = World(entity=None)
    world.queue.push("cpu", image_spec())
    assert len(world.run().submitted) == 1
    world.run()
    assert world.queue.calls["default_entity"] == 1


# Dry runs


def test_a_dry_run_changes_nothing_and_shows_what_there_is() -> None:
    world = World()
    first = world.queue.push("cpu", image_spec())
    world.run()
    second = world.queue.push("gpu", image_spec())
    before = (dict(world.bucket.objects), dict(world.queue.agents), world.queue.state(second))
    report = world.preview()
    assert (world.bucket.objects, dict(world.queue.agents), world.queue.state(second)) == before
    assert report.slots == {"max_jobs": 5, "active": 1, "free": 4}
    assert report.body()["active_jobs"][0]["item"] == first
    assert report.body()["queued"] == {
        "cpu": {"pending": [], "complete": True},
        "gpu": {"pending": [second], "complete": True},
    }


def test_a_dry_run_shows_the_custom_job_of_a_run_spec_without_any_key() -> None:
    world = World()
    report = world.preview(run_spec=image_spec(_wandb_api_key="x" * 40))
    job = report.body()["custom_job"]
    pool = job["job_spec"]["worker_pool_specs"][0]
    assert pool["container_spec"]["image_uri"] == "us-docker.pkg.dev/p/train/mnist:1"
    assert {"name": "WANDB_API_KEY", "value": "<redacted>"} in pool["container_spec"]["env"]
    assert "x" * 40 not in str(report.body())


def test_a_dry_run_shows_why_a_run_spec_cannot_start() -> None:
    report = World().preview(run_spec={})
    assert report.rejected[0]["reason"]
    assert "custom_job" not in report.body()


def test_an_item_that_is_not_shown_is_not_taken_for_absent() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = lost
    world.run()
    del world.queue.contents[item]
    world.run()
    assert world.vertex.living()[0].state == JobState.JOB_STATE_PENDING, "an item that cannot be seen proves nothing"


# What leaves a pass, and what only a late one shows


def test_a_key_leaves_through_no_warning_and_the_warning_is_sent_once() -> None:
    world = World(max_jobs=1)
    item = world.queue.push("cpu", image_spec())

    def quotes_the_key(request: JobRequest, create: Callable[[], str]) -> str:
        raise ItemDeferred(f"no quota for {KEY}", code=Code.QUOTA_CREATE)

    world.vertex.on_create = quotes_the_key
    for _ in range(3):
        world.run()
        world.clock.sleep(200)
    assert world.vertex.calls["create"] == 3
    (warning,) = world.queue.contents[item].warnings
    assert KEY not in warning
    assert KEY not in str(world.bucket.objects)


def test_a_dry_run_that_quotes_the_items_own_key_is_redacted_at_the_exit() -> None:
    world, own = World(), "my-own-key-is-secret" * 2
    report = world.preview(run_spec=image_spec(_wandb_api_key=own, run_id=f"{own}?"))
    assert own in str(report.rejected)
    assert own not in str(world.redact.json(report.body()))


def test_an_item_for_another_resource_is_left_alone_although_its_run_spec_is_text() -> None:
    world = World()
    world.queue.queues["cpu"] = ""
    item = world.queue.push("cpu", cast(Any, json.dumps(image_spec(resource="kubernetes"))))
    (deferred,) = world.run().deferred
    assert (deferred["item"], deferred["code"]) == (item, Code.ITEM_RESOURCE)


def test_a_named_run_of_another_entity_is_not_looked_up() -> None:
    world = World()
    world.queue.push("cpu", image_spec(entity="others", run_id="named"))
    assert len(world.run().submitted) == 1
    assert world.queue.calls["runs"] == 0


def test_a_pass_that_took_too_long_does_not_cover_other_ticks() -> None:
    world = World()
    published = world.clock()
    world.queue.trouble["pop"] = lambda: world.clock.sleep(world.settings.timeouts.pass_budget)
    world.run()
    assert isinstance(world.tick(published), PassReport)


def test_a_pass_that_outlived_its_lock_leaves_the_warnings_to_the_next() -> None:
    world = World(max_jobs=1)
    item = world.queue.push("cpu", image_spec())

    def late(request: JobRequest, create: Callable[[], str]) -> str:
        world.clock.sleep(world.settings.lock_seconds)
        return no_quota(request, create)

    world.vertex.on_create = late
    world.run()
    assert world.queue.contents[item].warnings == []


def test_a_pass_cancels_only_so_many_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perform, "MOST_CANCELS", 2)
    world = World(max_jobs=10)
    for _ in range(3):
        world.queue.push("cpu", image_spec())
    world.run()
    for job in list(world.vertex.jobs.values()):
        twin(world, job.item)
    assert [len(world.run().cancelled) for _ in range(3)] == [2, 1, 0]


def hide_agents(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = world.queue.ask

    def hidden(question: Question) -> WandbState:
        return replace(ask(question), agent=None, agents=(), agents_shown=False)

    monkeypatch.setattr(world.queue, "ask", hidden)


@pytest.mark.parametrize("known", [True, False])
def test_one_agent_is_used_while_wandb_shows_none(monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    world = World()
    if known:
        world.run()
    hide_agents(world, monkeypatch)
    for _ in range(150):
        world.run()
        world.clock.sleep(60)
    assert len(world.queue.agents) == 1
    assert world.queue.calls["create_agent"] == 1


def test_a_stop_is_obeyed_also_while_wandb_shows_no_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.run()
    world.queue.stop("agent1")
    assert "stopped in W&B" in world.run().notices[0]
    hide_agents(world, monkeypatch)
    item = world.queue.push("cpu", image_spec())
    assert "stopped in W&B" in world.run().notices[0]
    assert world.queue.state(item) == "PENDING"
    world.run(PassRequest(resume=True))
    assert world.queue.state(item) == "CLAIMED"


def test_items_are_popped_without_an_agent_if_wandb_refuses_to_make_one() -> None:
    world = World()

    def refused() -> None:
        raise Unavailable("W&B", "permission denied", code=Code.WANDB_REFUSED)

    world.queue.trouble["create_agent"] = refused
    item = world.queue.push("cpu", image_spec())
    notices = [notice for _ in range(5) for notice in world.run().notices]
    assert world.queue.state(item) == "CLAIMED"
    assert world.queue.calls["create_agent"] == 1
    assert len(notices) == 1
    assert str(Code.AGENT_REFUSED) in notices[0]
    assert "permission denied" in notices[0]
    world.queue.trouble.clear()
    world.clock.sleep(700)
    world.run()
    assert len(world.queue.agents) == 1
    assert world.ledger.made is not None
    assert world.ledger.made.id == "agent1"


def test_what_wandb_refuses_is_kept_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    pop, services = world.queue.pop, world.services()

    def learn(*args: Any, **named: Any) -> list[Popped]:
        services.pace.refused.add("run.stopped")
        return pop(*args, **named)

    monkeypatch.setattr(world.queue, "pop", learn)
    run_pass(world.settings, services, PassRequest())
    monkeypatch.setattr(world.queue, "pop", pop)
    kept = []
    for _ in range(3):
        world.clock.sleep(1500)
        services = world.services()  # of another instance
        run_pass(world.settings, services, PassRequest())
        kept.append(services.pace.refused)
    assert kept == [{"run.stopped"}, {"run.stopped"}, set()]


def doubtful(request: JobRequest, create: Callable[[], str]) -> str:
    refusal = ItemRejected("You do not have permission to act as service_account x.", code=Code.CREATE_PERMISSION)
    raise ItemDoubtful(refusal)


def test_a_create_that_a_new_role_may_make_possible_is_tried_for_ten_minutes() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = doubtful
    for minute in range(25):
        world.run()
        if minute < 10:
            assert world.queue.state(item) != "FAILED"
        world.clock.sleep(60)
    one = world.queue.contents[item]
    assert (one.state, len(one.warnings)) == ("FAILED", 1)
    assert "ten minutes" in one.warnings[0]
    assert "permission to act as" in one.message
    assert "ten minutes" not in one.message
    assert world.ledger.waiting == {}


def test_a_new_role_that_works_a_little_later_starts_the_item() -> None:
    """Also if the item had waited for quota for an hour before."""
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.vertex.on_create = no_quota
    for _ in range(40):
        world.run()
        world.clock.sleep(90)
    world.vertex.on_create = doubtful
    for _ in range(11):
        world.run()
        world.clock.sleep(90)
    assert world.queue.state(item) != "FAILED"
    world.vertex.on_create = lambda request, create: create()
    for _ in range(11):
        world.run()
        world.clock.sleep(90)
    assert world.queue.state(item) == "CLAIMED"


def test_the_next_attempt_waits_for_a_new_role_as_well() -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    world.run()
    (job,) = world.vertex.of(item)
    world.vertex.set(job.name, FAILED, "Internal error occurred for the current attempt")
    world.vertex.on_create = doubtful
    for _ in range(5):
        world.run()
        world.clock.sleep(60)
    assert [entry.stage for entry in world.ledger.open.values()] == [Stage.RETRYING]
    for _ in range(10):
        world.run()
        world.clock.sleep(100)
    assert world.ledger.open == {}
    one = world.queue.contents[item]
    assert "Not retried: You do not have permission" in one.message + "".join(one.warnings)


def test_a_pass_of_an_instance_with_a_fast_clock_covers_no_ticks_of_others() -> None:
    world = World()
    world.clock.sleep(400)
    world.run()
    world.clock.now -= 350
    assert world.ledger.full_pass_began > world.clock.now
    item = world.queue.push("cpu", image_spec())
    world.clock.sleep(100)
    assert isinstance(world.tick(world.clock.now - 5), PassReport)
    assert world.queue.state(item) == "CLAIMED"
    assert world.tick(world.clock.now - 60) is Skipped.COVERED, "as after each full pass"
