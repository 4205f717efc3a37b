"""What the client changes: agents, pops, acks, failures, warnings, and the end of a sweep."""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from typing import Any

import pytest

from local.standins.wandb import WandbServer
from tests.support.memory import Clock
from tests.support.specs import SETTINGS
from tests.support.wandb import (
    ENTITY,
    HOST,
    SPEC,
    Answer,
    Answering,
    Serve,
    agent,
    client,
    data,
    graphql_requests,
    ids,
    push,
    refusal,
)
from vertex_launch import __version__
from vertex_launch.adapters.wandb_queue import LONGEST_MESSAGE, WandbQueue
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job import run_spec
from vertex_launch.limits import LARGEST_LEASE, LONGEST_ITEM
from vertex_launch.model import Ack, ItemView, Phase, RunId, SchedulerView


def test_an_agent_is_made_with_its_host_and_queues(server: WandbServer, queue: WandbQueue) -> None:
    made = server.store.agents[agent(server, queue)]
    assert (made.hostname, made.run_queues) == (HOST, list(server.store.queues))
    assert (made.agent_config, made.version) == ({"max_jobs": 3}, f"vertex-launch@{__version__}")
    queue.set_status(made.id, "RUNNING")
    assert made.agent_status == "RUNNING"


def test_an_agent_that_cannot_be_created_is_an_error(server: WandbServer, queue: WandbQueue) -> None:
    reason = refusal(lambda: queue.create_agent(ENTITY, ["nonsense"], HOST, {}), Code.WANDB_REFUSED)
    assert 'entity acme: run queue "nonsense" not found' in reason


def test_pops_come_in_order_with_the_agents_status(server: WandbServer, queue: WandbQueue) -> None:
    first, second = push(server, count=2)
    (third,) = push(server, "gpu")
    mine = agent(server, queue)
    server.store.operations.clear()
    popped = queue.pop(ENTITY, ["cpu", "gpu", "cpu", "cpu", "gpu"], mine, "RUNNING")
    assert ids(popped) == [first, third, second, None, None]
    assert [answer.queue for answer in popped] == ["cpu", "gpu", "cpu", "cpu", "gpu"]
    assert not any(answer.error for answer in popped)
    assert popped[0].item is not None
    assert json.loads(popped[0].item.spec)["docker"] == SPEC["docker"]
    assert server.store.items[first].launch_agent_id == mine
    assert server.store.agents[mine].agent_status == "RUNNING"
    assert graphql_requests(server) == [("updateLaunchAgent", *["popFromRunQueue"] * 5)]


def test_of_a_run_spec_over_the_bound_only_its_length_is_kept(server: WandbServer, queue: WandbQueue) -> None:
    items = [server.store.push(ENTITY, "cpu", SPEC | {"x": "é" * size}) for size in (LONGEST_ITEM, 10)]
    large, small = queue.pop(ENTITY, ["cpu"] * 2, agent(server, queue))
    assert ids([large, small]) == items
    assert large.item
    assert large.item.spec is None
    assert large.item.characters > LONGEST_ITEM
    with pytest.raises(ItemRejected) as error:
        run_spec.parse(large.item, SETTINGS, ENTITY)
    assert (error.value.message.code, str(large.item.characters) in error.value.message.text) == (Code.SPEC_SIZE, True)
    assert small.item
    assert (json.loads(small.item.spec)["x"], small.item.size) == ("é" * 10, len(small.item.spec))


@pytest.mark.parametrize("pops", [1, 2])
def test_no_more_items_are_popped_than_fit_into_memory(server: WandbServer, pops: int) -> None:
    queue = client(server.url, pops=pops)
    items = [server.store.push(ENTITY, "cpu", SPEC | {"x": "x" * (LONGEST_ITEM - 2_000)}) for _ in range(8)]
    popped = queue.pop(ENTITY, ["cpu"] * 8, agent(server, queue), "RUNNING")
    assert ids(popped) == items[: len(popped)]
    assert LARGEST_LEASE < sum(one.item.size for one in popped if one.item) <= LARGEST_LEASE + (pops + 1) * LONGEST_ITEM
    assert [server.store.state(item) for item in items[len(popped) :]] == ["PENDING"] * (8 - len(popped))


@pytest.mark.parametrize("status", ["alone", "always", "never"])
def test_one_fields_error_spoils_no_other_whatever_the_status(
    serve: Serve, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also when the failed one is a fault of the server, for which the whole answer has status 500."""
    server = serve(error_status=status)
    queue = client(server.url)
    first, second = push(server, count=2)
    mine = agent(server, queue)
    server.faults.refuse("updateLaunchAgent", "internal error", status=500)
    server.faults.refuse("popFromRunQueue", "database is locked", status=500)
    with caplog.at_level(logging.WARNING):
        failed, popped = queue.pop(ENTITY, ["cpu", "cpu"], mine, "RUNNING")
    assert failed.error == "database is locked"
    assert ids([popped]) == [first]
    assert "internal error [VL-WANDB-AGENT-STATUS]" in caplog.text
    server.faults.refuse("ackRunQueueItem", "database is locked", status=500)
    assert queue.ack([(first, "run1"), (second, "run2")]) == [Ack.REFUSED, Ack.ACCEPTED]
    assert server.store.state(first) == "LEASED"


def test_a_pop_whose_answer_is_lost_is_not_repeated_and_loses_nothing(
    server: WandbServer, queue: WandbQueue, clock: Clock
) -> None:
    (item,) = push(server)
    mine = agent(server, queue)
    server.faults.lose("popFromRunQueue")
    reason = refusal(lambda: queue.pop(ENTITY, ["cpu"], mine), Code.WANDB_UNAVAILABLE)
    assert f"no answer from {server.url}/graphql" in reason
    assert server.store.asked()["popFromRunQueue"] == 1
    assert server.store.state(item) == "LEASED"
    assert queue.pop(ENTITY, ["cpu"], mine)[0].item is None
    clock.now += 61
    assert ids(queue.pop(ENTITY, ["cpu"], mine)) == [item]


def test_the_answers_that_arrived_are_kept(server: WandbServer) -> None:
    queue = client(server.url, pops=2)
    pushed = push(server, count=4)
    mine = agent(server, queue)
    server.faults.lose("popFromRunQueue")
    popped = queue.pop(ENTITY, ["cpu"] * 4, mine)
    assert ids(popped) == [None, None, *pushed[2:]]
    assert "no answer from" in popped[0].error


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_pop_that_may_have_taken_effect_is_not_repeated(server: WandbServer, queue: WandbQueue, status: int) -> None:
    mine = agent(server, queue)
    server.faults.fail("popFromRunQueue", status, message="upstream failed")
    reason = refusal(lambda: queue.pop(ENTITY, ["cpu"], mine), Code.WANDB_UNAVAILABLE)
    assert f"HTTP {status} from {server.url}/graphql: upstream failed" in reason
    assert server.store.asked()["popFromRunQueue"] == 1


@pytest.mark.parametrize("in_errors", [True, False])
def test_acks(serve: Serve, in_errors: bool) -> None:
    server = serve(acks_refused_in_errors=in_errors)
    queue = client(server.url)
    one, two = push(server, count=2)
    queue.pop(ENTITY, ["cpu", "cpu"], agent(server, queue))
    queue.ack([(one, "theirs")])
    assert queue.ack([(one, "ours"), (two, "ours"), ("Unknown", "ours")]) == [Ack.REFUSED, Ack.ACCEPTED, Ack.REFUSED]
    assert server.store.items[one].associated_run_id == "theirs"
    assert server.store.items[two].associated_run_id == "ours"


def test_an_ack_is_repeated_after_a_lost_answer_and_then_refused(server: WandbServer, queue: WandbQueue) -> None:
    """Its item shows that the ack was ours; so a refusal alone is no evidence."""
    (item,) = push(server)
    queue.pop(ENTITY, ["cpu"], agent(server, queue))
    server.faults.lose("ackRunQueueItem")
    assert queue.ack([(item, "run1")]) == [Ack.REFUSED]
    assert queue.items(ENTITY, {item: "cpu"}) == {item: ItemView("CLAIMED", "run1")}


def test_an_ack_without_any_answer_is_unknown(server: WandbServer) -> None:
    queue = client(server.url)
    server.faults.lose("ackRunQueueItem", times=None)
    assert queue.ack([("one", "r"), ("two", "r")]) == [Ack.UNKNOWN, Ack.UNKNOWN]


@pytest.mark.parametrize("phase", Phase)
def test_failures_and_warnings(
    server: WandbServer, queue: WandbQueue, caplog: pytest.LogCaptureFixture, phase: Phase
) -> None:
    one, two = push(server, count=2)
    text = 'quotes " and \\ and $dollars and\nlines and {braces} and 🚀'
    assert queue.fail([(one, text), ("Unknown", "x")], phase) == [True, False]
    assert queue.warn([(two, text), ("Unknown", "x")], phase) == [True, False]
    error, (warning,) = server.store.items[one].error, server.store.items[two].warnings
    assert error is not None
    assert (error.message, error.stage) == (warning.message, warning.stage) == (text, phase.value)
    assert 'item Unknown: run queue item "Unknown" not found [VL-WANDB-ITEM-UPDATE]' in caplog.text
    assert (queue.fail([], phase), queue.warn([], phase), queue.ack([])) == ([], [], [])


@pytest.mark.parametrize("act", ["fail", "warn"])
def test_a_refused_message_is_sent_once_more_in_128_characters(answering: Answering, act: str) -> None:
    sent: list[list[str]] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append([text for name, text in body["variables"].items() if name.startswith("message")])
        return data(**{f"f{i}": {"success": len(text) <= 128} for i, text in enumerate(sent[-1])})

    queue = client(answering(say=say))
    items = [("a", "short"), ("b", "The reason. " + "x" * 400), ("c", "y" * 128)]
    assert getattr(queue, act)(items, Phase.RUN) == [True] * 3
    assert [len(one) for one in sent] == [3, 1]
    assert len(sent[1][0]) == 128
    assert sent[1][0].startswith("The reason. xxx")


def test_a_message_that_stays_refused_is_not_sent_again(answering: Answering) -> None:
    sent: list[object] = []

    def say(body: dict[str, Any]) -> Answer:
        sent.append(body)
        return data(f0={"success": False})

    assert client(answering(say=say)).fail([("a", "x" * 500)], Phase.RUN) == [False]
    assert len(sent) == 2


@pytest.mark.parametrize("longer", [0, 1, 7_000])
def test_a_message_that_is_too_long_is_cut_in_its_middle(server: WandbServer, queue: WandbQueue, longer: int) -> None:
    """The start says what happened, and the end is the end of the job's log."""
    one, two = push(server, count=2)
    text = "Vertex AI says: " + "🚀" * (LONGEST_MESSAGE + longer - 27) + "MemoryError"
    assert len(text) == LONGEST_MESSAGE + longer
    queue.fail([(one, text)], Phase.RUN)
    queue.warn([(two, text)], Phase.RUN)
    error, (warning,) = server.store.items[one].error, server.store.items[two].warnings
    assert error is not None
    assert error.message == warning.message
    if not longer:
        assert error.message == text
        return
    assert LONGEST_MESSAGE - 10 < len(error.message) <= LONGEST_MESSAGE
    found = re.fullmatch(r"(.*)\n\[… (\d+) characters are left out here …\]\n(.*)", error.message)
    assert found is not None
    assert text.startswith(found[1])
    assert text.endswith(found[3])
    assert len(found[1]) + int(found[2]) + len(found[3]) == len(text)


SCHEDULER = json.dumps({"run_spec": json.dumps({"run_id": "WANDB_SWEEP_ID"})})
"""What a sweep says about its scheduler."""


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "PENDING", "FINISHED", "CANCELED", "CRASHED"])
def test_a_sweep_is_cancelled_unless_it_has_ended(server: WandbServer, queue: WandbQueue, state: str) -> None:
    server.store.set_sweep(ENTITY, "demo", "sw1", state)
    server.store.set_sweep(ENTITY, "other", "sw1", "RUNNING")
    live = state in ("RUNNING", "PAUSED", "PENDING")
    server.store.operations.clear()
    assert queue.cancel_sweep(ENTITY, "demo", "sw1", "sw1", "cpu") is live
    assert [sweep.state for sweep in server.store.sweeps.values()] == ["CANCELED" if live else state, "RUNNING"]
    assert graphql_requests(server) == ([("project",), ("upsertSweep",)] if live else [("project",)])
    assert not queue.cancel_sweep(ENTITY, "demo", "sw1", "sw1", "cpu")


@pytest.mark.parametrize(
    "scheduler",
    [
        None,
        "",
        "{",
        "[]",
        "{}",
        '{"run_spec": 7}',
        '{"run_spec": "{}"}',
        json.dumps({"run_spec": json.dumps({"run_id": "other"})}),
        json.dumps({"queue": "gpu", "run_spec": json.dumps({"run_id": "WANDB_SWEEP_ID"})}),
    ],
)
def test_a_sweep_that_names_another_scheduler_or_none_is_not_cancelled(
    answering: Answering, scheduler: str | None
) -> None:
    found = data(f0={"sweep": {"id": "S1", "state": "RUNNING", "scheduler": scheduler}})
    assert not client(answering(found)).cancel_sweep(ENTITY, "demo", "sw1", "sw1", "cpu")
    assert not client(answering(found)).cancel_sweep(ENTITY, "demo", "sw1", "", "cpu")


def test_how_schedulers_were_launched(answering: Answering) -> None:
    launched = {"queue": "cpu", "run_spec": json.dumps({"run_id": "WANDB_SWEEP_ID", "job": "acme/demo/optuna:v1"})}
    asked = [RunId(ENTITY, "demo", f"sw{number}") for number in range(5)]
    errors = [{"message": "no access", "path": ["f2", "sweep"]}]
    found = {
        "f0": {"sweep": {"scheduler": json.dumps(launched)}},
        "f1": {"sweep": {"scheduler": None}},
        "f2": {"sweep": None},
        "f3": {"sweep": None},
        "f4": {"sweep": 7},
    }
    views = client(answering(Answer(body={"data": found, "errors": errors}))).schedulers(asked)
    assert views == {
        asked[0]: SchedulerView("sw0", "cpu", "acme/demo/optuna:v1"),
        asked[1]: None,
        asked[3]: None,
    }, "and unknown ones are missing"


def test_a_sweep_that_does_not_exist_is_not_cancelled(server: WandbServer, queue: WandbQueue) -> None:
    server.store.project(ENTITY, "demo")
    assert not queue.cancel_sweep(ENTITY, "demo", "sw1", "sw1", "cpu")
    assert not queue.cancel_sweep(ENTITY, "nowhere", "sw1", "sw1", "cpu")


@pytest.mark.parametrize("operation", ["project", "upsertSweep"])
def test_a_sweep_about_which_w_and_b_cannot_answer(server: WandbServer, operation: str) -> None:
    server.store.set_sweep(ENTITY, "demo", "sw1", "RUNNING")
    queue = client(server.url)
    server.faults.fail(operation, 503, times=None)
    reason = refusal(lambda: queue.cancel_sweep(ENTITY, "demo", "sw1", "sw1", "cpu"), Code.WANDB_UNAVAILABLE)
    assert "HTTP 503" in reason
    assert [sweep.state for sweep in server.store.sweeps.values()] == ["RUNNING"]


def test_a_sweep_that_w_and_b_does_not_show_or_change(answering: Answering) -> None:
    errors = [{"message": "no access", "path": ["f0", "sweep"]}]
    found = data(f0={"sweep": {"id": "S1", "state": "Running", "scheduler": SCHEDULER}})
    refused, hidden = (Answer(body={"data": {"f0": value}, "errors": errors}) for value in (None, {"sweep": None}))
    for answers in ([refused], [hidden], [found, refused], [found, data(f0=None)]):
        queue = client(answering(*answers))
        reason = refusal(partial(queue.cancel_sweep, ENTITY, "demo", "sw1", "sw1", "cpu"), Code.WANDB_REFUSED)
        assert "acme/demo/sw1: " in reason
        assert ("no access" in reason) == (answers[-1] in (refused, hidden))
