"""Settings that change while jobs run: the entity, W&B's address, and the regions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.functional.test_settle import EXITED, STATE, STOCKOUT, TWO_REGIONS, One
from tests.support.memory import ENTITY, KEY, World, image_spec, no_quota
from vertex_launch.codes import Code
from vertex_launch.job import environment, labels
from vertex_launch.model import Ack, ItemView
from vertex_launch.settings.config import Region
from vertex_launch.state.open_item import Stage

NEW: dict[str, Any] = {"entity": "other"}
CLOUD, SAME, ELSEWHERE = "https://api.wandb.ai", "https://api.forge.coreweave.com", "https://w.example"


def own_queues(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let W&B show items only in the entity of their queue."""
    items = world.queue.items

    def show(entity: str, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        return items(entity, wanted) if entity == ENTITY else {}

    monkeypatch.setattr(world.queue, "items", show)


@pytest.mark.parametrize("began", [True, False])
@pytest.mark.parametrize("passes", [0, 3])
def test_open_jobs_are_reported_after_the_entity_changed(
    monkeypatch: pytest.MonkeyPatch, began: bool, passes: int
) -> None:
    world = One()
    own_queues(world, monkeypatch)
    for _ in range(passes):
        world.after(60, **NEW)
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=began)
    world.after(300, **NEW)
    told = world.it.warnings if began else [world.it.message]
    assert [EXITED in text for text in told] == [True]
    assert world.it.state == ("CLAIMED" if began else "FAILED")
    assert world.ledger.open == {}


def test_a_stop_of_a_run_of_the_entity_before_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    world = One()
    own_queues(world, monkeypatch)
    world.after(60, **NEW)
    world.stop()
    world.after(60, **NEW)
    assert world.job.state == STATE.JOB_STATE_CANCELLING


def test_an_unclaimed_item_of_the_entity_before_is_claimed_as_w_and_b_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    item = world.queue.push("cpu", image_spec())
    ack = world.queue.ack

    def unheard(*args: Any) -> list[Ack]:
        return [Ack.UNKNOWN for _ in ack(*args)]

    monkeypatch.setattr(world.queue, "ack", unheard)
    world.run()
    own_queues(world, monkeypatch)
    world.clock.sleep(60)
    world.run(None, **NEW)
    assert [entry.stage for entry in world.ledger.open.values()] == [Stage.CLAIMED]
    assert world.queue.state(item) == "CLAIMED"


def test_a_lost_ledger_does_not_forget_the_entity_before(monkeypatch: pytest.MonkeyPatch) -> None:
    world = One()
    own_queues(world, monkeypatch)
    world.bucket.lose_ledger()
    world.clock.sleep(600)
    world.after(60, **NEW)
    world.end(STATE.JOB_STATE_FAILED, EXITED)
    world.after(300, **NEW)
    assert [EXITED in text for text in world.it.warnings] == [True]


def test_the_agent_of_another_entity_is_not_used() -> None:
    world = One()
    (before,) = world.queue.agents
    world.queue.queues["tpu"] = "gcp-vertex"
    world.after(60, **NEW, queues=("cpu", "tpu"))
    assert len(world.queue.agents) == 2
    assert world.ledger.made is not None
    assert world.ledger.made.id != before


@pytest.mark.parametrize("error", [STOCKOUT, "Internal error occurred for the current attempt"])
def test_a_next_attempt_does_not_go_to_the_server_before(error: str) -> None:
    world = One(base_url=CLOUD)
    world.end(STATE.JOB_STATE_FAILED, error, ran=False)
    world.run()
    assert [entry.stage for entry in world.ledger.open.values()] == [Stage.RETRYING]
    for _ in range(3):
        world.after(300, base_url=ELSEWHERE)
    assert len(world.jobs) == 1
    assert world.ledger.open == {}
    assert (world.it.state, world.it.message, world.it.warnings) == ("CLAIMED", "", []), (
        "the new server has other items"
    )


def test_a_job_that_reports_to_the_server_before_is_settled_without_a_word() -> None:
    """An item of the new server may have the same id."""
    world = One(base_url=CLOUD)
    world.stop()  # which is a run of the same name on the new server
    for _ in range(3):
        world.after(300, base_url=ELSEWHERE)
    assert world.job.lives
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    report = world.after(60, base_url=ELSEWHERE)
    assert [row["outcome"] for row in report.settled] == ["done"]
    assert (world.it.message, world.it.warnings) == ("", [])


@pytest.mark.parametrize(("before", "after"), [(CLOUD, SAME), (SAME, CLOUD), (SAME, f"{CLOUD}/")])
def test_the_other_address_of_the_cloud_is_the_same_server(before: str, after: str) -> None:
    world = One(base_url=before)
    first = world.job
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)
    world.run()
    world.after(300, base_url=after)
    assert len(world.jobs) == 2
    assert world.job.run == first.run
    assert (world.job.variables[environment.BASE_URL], world.job.key) == (after, KEY)
    assert world.job.message.labels[labels.ITEM] == first.message.labels[labels.ITEM]


def east() -> dict[str, Any]:
    spec = image_spec()
    spec["resource_args"]["gcp-vertex"]["spec"]["location"] = "us-east4"
    return spec


ONE_REGION = (Region(name="us-central1", staging_bucket="gs://staging"),)


def test_an_open_job_in_a_region_that_leaves_the_configuration_is_settled() -> None:
    world = One(east(), regions=TWO_REGIONS)
    assert world.job.region == "us-east4"
    world.after(60, regions=ONE_REGION)
    assert world.ledger.open[world.item].stage is Stage.CLAIMED
    world.end(STATE.JOB_STATE_FAILED, EXITED, began=False)
    world.after(120, regions=ONE_REGION)
    assert (world.it.state, EXITED in world.it.message) == ("FAILED", True)


@pytest.mark.parametrize("error", [STOCKOUT, "Internal error occurred for the current attempt"])
@pytest.mark.parametrize("waiting", [True, False])
def test_no_attempt_goes_to_a_region_that_left_the_configuration(error: str, waiting: bool) -> None:
    world = One(east(), regions=TWO_REGIONS)
    world.end(STATE.JOB_STATE_FAILED, error, ran=False, began=False)
    if waiting:
        world.run()
    for _ in range(3):
        world.after(300, regions=ONE_REGION)
    assert len(world.jobs) == 1
    assert world.it.state == "FAILED"
    assert "us-east4 is not configured any more" in world.it.message
    assert str(Code.ITEM_FAULT) not in world.it.message


def test_a_job_moves_no_more_to_a_region_that_left_the_configuration() -> None:
    world = One(regions=TWO_REGIONS)
    world.end(STATE.JOB_STATE_FAILED, STOCKOUT, ran=False)
    world.run()
    world.vertex.on_create = no_quota
    world.after(300, regions=TWO_REGIONS)
    world.vertex.on_create = lambda request, create: create()
    world.after(600, regions=ONE_REGION)
    assert [job.region for job in world.jobs] == ["us-central1", "us-central1"]


def test_an_item_with_the_id_of_one_of_the_server_before_waits_for_its_job() -> None:
    world = One(base_url=CLOUD)
    world.it.state, world.it.run = "PENDING", ""  # which is an item of the new server
    for _ in range(2):
        world.after(100, base_url=ELSEWHERE)
    assert (len(world.jobs), world.queue.state(world.item)) == (1, "LEASED")
    world.end(STATE.JOB_STATE_SUCCEEDED)
    for _ in range(3):
        world.after(100, base_url=ELSEWHERE)
    assert (len(world.jobs), world.queue.state(world.item)) == (2, "CLAIMED")
