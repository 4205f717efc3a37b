"""The local W&B: its protocol, its queues with a test's clock, and W&B's own unmodified clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st

from local.standins.faults import AnswerLost, FaultError, FaultRequestError, Faults
from local.standins.wandb import WandbServer
from local.standins.wandb.errors import Refused
from local.standins.wandb.launch import ItemError
from local.standins.wandb.run_spec import ResourceConfig, resolve, template_variables
from tests.local_cloud.conftest import ALICE, BOB, Clock, Serve

SPEC = {"entity": "acme", "project": "demo", "docker": {"docker_image": "image:1"}, "resource": None}
POP = 'popFromRunQueue(input: {entityName: "acme", projectName: "model-registry", queueName: "vertex"%s})'
RESOURCE_ARGS: dict[str, Any] = {
    "spec": {
        "labels": {"machine": "is-{{machine}}"},
        "worker_pool_specs": [
            {
                "machine_spec": {"machine_type": "{{machine}}"},
                "replica_count": "{{replicas}}",
                "container_spec": {"image_uri": "${image_uri}"},
            }
        ],
        "staging_bucket": "gs://demo-staging",
    },
    "run": {"timeout": 60},
}
VARIABLES: dict[str, Any] = {
    "machine": {"schema": {"type": "string", "default": "n1-standard-4", "enum": ["n1-standard-4", "a2-highgpu-1g"]}},
    "replicas": {"schema": {"type": "integer", "default": 1, "minimum": 1, "maximum": 4}},
}


@dataclass
class Asked:
    status: int
    data: Any
    errors: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def clock() -> Clock:
    return Clock(1_000_000.0)


@pytest.fixture
def serve(serve: Serve, clock: Clock) -> Serve:
    return lambda **options: serve(**{"clock": clock, **options})


@pytest.fixture
def server(serve: Serve) -> WandbServer:
    server = serve()
    server.store.create_queue("acme", "vertex")
    return server


def ask(server: WandbServer, query: str, *, key: str | None = ALICE, **variables: Any) -> Asked:
    auth = ("api", key) if key else None
    body = {"query": query, "variables": variables}
    response = requests.post(f"{server.url}/graphql", json=body, auth=auth, timeout=10)
    answer = response.json()
    return Asked(response.status_code, answer.get("data"), answer.get("errors", []))


def push(server: WandbServer, name: str, **how: Any) -> str:
    return server.store.push("acme", "vertex", {**SPEC, "name": name}, **how)


def popped(server: WandbServer, agent: str = "") -> str | None:
    """Pop one item and return the name in its run spec."""
    of_agent = f', launchAgentId: "{agent}"' if agent else ""
    answer = ask(server, f"mutation {{ {POP % of_agent} {{ runSpec }} }}").data["popFromRunQueue"]
    return answer and str(answer["runSpec"]["name"])


def ack(server: WandbServer, item: str, run: str = "run1") -> Asked:
    text = "mutation($i: ID!, $r: String!) { ackRunQueueItem(input: {runQueueItemId: $i, runName: $r}) { success } }"
    return ask(server, text, i=item, r=run)


class TestProtocol:
    @pytest.mark.parametrize("key", [None, "x" * 40])
    def test_a_refused_key_gets_401_with_the_error_of_each_field(self, server: WandbServer, key: str | None) -> None:
        answer = ask(server, "{ me: viewer { id } serverInfo { frontendHost } }", key=key)
        assert answer.status == 401
        assert answer.data == {"me": None, "serverInfo": None}
        assert [error["path"] for error in answer.errors] == [["me"], ["serverInfo"]]
        assert {error["message"] for error in answer.errors} == {"user is not logged in"}
        assert {error["extensions"]["code"] for error in answer.errors} == {"PERMISSION_ERROR"}

    def test_an_unknown_field_is_an_error_in_the_words_that_clients_expect(self, server: WandbServer) -> None:
        item = push(server, "one")
        answer = ask(server, f"mutation {{ {POP % ''} {{ runQueueItemId nonsense }} }}")
        assert answer.status == 400
        assert answer.data is None
        assert answer.errors[0]["message"].startswith('Cannot query field "nonsense" on type "PopFromRunQueuePayload".')
        assert server.store.state(item) == "PENDING"

    @pytest.mark.parametrize(
        ("body", "says"),
        [
            (b"{", "the body is not JSON"),
            (b"[]", "the body has to be an object with a query"),
            (b'{"query": "{"}', "Syntax Error"),
            (b'{"query": "query A {viewer{id}} query B {viewer{id}}"}', "operationName"),
            (b'{"query": "query($i: ID!) {launchAgent(id: $i) {id}}"}', 'Variable "$i"'),
        ],
    )
    def test_a_malformed_request_is_a_400(self, server: WandbServer, body: bytes, says: str) -> None:
        response = requests.post(f"{server.url}/graphql", data=body, auth=("api", ALICE), timeout=10)
        assert response.status_code == 400
        assert says in response.json()["errors"][0]["message"].replace("'", '"')

    @pytest.mark.parametrize(("error_status", "status"), [("alone", 200), ("always", 404), ("never", 200)])
    def test_an_error_of_one_field_does_not_affect_the_others(
        self, serve: Serve, error_status: str, status: int
    ) -> None:
        server = serve(error_status=error_status)
        server.store.create_queue("acme", "vertex")
        push(server, "one")
        lost = POP.replace("vertex", "nowhere") % ""
        answer = ask(server, f"mutation {{ a: {lost} {{ runSpec }} b: {POP % ''} {{ runSpec }} }}")
        assert answer.status == status
        assert answer.data["a"] is None
        assert answer.data["b"]["runSpec"]["name"] == "one"
        assert [(error["path"], error["message"]) for error in answer.errors] == [
            (["a"], 'run queue "nowhere" of acme/model-registry not found')
        ]
        empty = ask(server, f"mutation {{ a: {lost} {{ runSpec }} b: {POP % ''} {{ runSpec }} }}")
        assert (empty.status, empty.data, len(empty.errors)) == (status, {"a": None, "b": None}, 1)

    def test_aliased_mutations_are_done_in_order(self, server: WandbServer) -> None:
        for name in ("one", "two", "three"):
            push(server, name)
        aliases = " ".join(f"f{n}: {POP % ''} {{ runSpec }}" for n in range(4))
        data = ask(server, f"mutation {{ {aliases} }}").data
        assert [data[f"f{n}"] and data[f"f{n}"]["runSpec"]["name"] for n in range(4)] == ["one", "two", "three", None]
        assert server.store.operations[-1].operations == ("popFromRunQueue",) * 4
        assert server.store.asked()["popFromRunQueue"] == 4
        assert server.store.operations[-1].received > 400

    def test_a_batch_that_is_too_large_is_refused_as_a_whole(self, serve: Serve) -> None:
        server = serve(max_operations_per_request=2)
        server.store.create_queue("acme", "vertex")
        items = [push(server, name) for name in ("one", "two", "three")]
        pops = [f"f{n}: {POP % ''} {{ runSpec }}" for n in range(3)]
        answer = ask(server, f"mutation {{ {' '.join(pops)} }}")
        assert (answer.status, answer.data) == (400, None)
        assert answer.errors == [{"message": "3 operations in one request, at most 2 are allowed"}]
        assert {server.store.state(item) for item in items} == {"PENDING"}
        assert ask(server, f"mutation {{ {' '.join(pops[:2])} }}").status == 200
        assert [server.store.state(item) for item in items] == ["LEASED", "LEASED", "PENDING"]

    def test_a_key_reaches_only_its_own_entities(self, server: WandbServer) -> None:
        push(server, "one")
        assert ask(server, '{ project(name: "model-registry", entityName: "acme") { id } }', key=BOB).data == {
            "project": None
        }
        answer = ask(server, f"mutation {{ {POP % ''} {{ runSpec }} }}", key=BOB)
        assert (answer.status, answer.errors[0]["message"]) == (403, "permission denied")
        who = "{ viewer { username entity teams { edges { node { name isTeam } } } } entity { name isTeam } }"
        assert ask(server, who, key=BOB).data == {
            "viewer": {
                "username": "bob",
                "entity": "bob",
                "teams": {"edges": [{"node": {"name": "other", "isTeam": True}}]},
            },
            "entity": {"name": "bob", "isTeam": False},
        }


class TestItems:
    def test_first_in_first_out_and_priority_only_if_the_queue_has_it(self, serve: Serve) -> None:
        server = serve()
        for mode, order in (("DISABLED", "abcde"), ("V0", "dbace")):
            server.store.create_queue("acme", mode, prioritization_mode=mode)
            for name, priority in (("a", None), ("b", 1), ("c", 2), ("d", 0), ("e", 3)):
                server.store.push("acme", mode, {**SPEC, "name": name}, priority=priority)
            pop = POP.replace("vertex", mode) % ""
            data = ask(server, "mutation {" + " ".join(f"p{n}: {pop} {{ runSpec }}" for n in range(5)) + "}").data
            assert "".join(data[f"p{n}"]["runSpec"]["name"] for n in range(5)) == order

    def test_a_lease_runs_out_and_the_item_keeps_its_place(self, server: WandbServer, clock: Clock) -> None:
        one, two = push(server, "one"), push(server, "two")
        assert popped(server) == "one"
        assert [server.store.state(item) for item in (one, two)] == ["LEASED", "PENDING"]
        clock.now += 59.9
        assert server.store.state(one) == "LEASED"
        clock.now += 0.1
        assert server.store.state(one) == "PENDING"
        assert [popped(server), popped(server), popped(server)] == ["one", "two", None]
        assert server.store.items[one].pops == 2

    def test_many_agents_at_once_never_get_the_same_item(self, server: WandbServer) -> None:
        names = [str(number) for number in range(40)]
        for name in names:
            push(server, name)
        with ThreadPoolExecutor(8) as agents:
            got = list(agents.map(lambda _: popped(server), range(44)))
        assert sorted(filter(None, got), key=int) == names
        assert got.count(None) == 4

    @pytest.mark.parametrize("allowed", [True, False])
    def test_an_ack_after_the_lease(self, serve: Serve, clock: Clock, allowed: bool) -> None:
        server = serve(ack_after_lease=allowed)
        server.store.create_queue("acme", "vertex")
        item = push(server, "one")
        popped(server)
        clock.now += 61
        assert (ack(server, item).status == 200) is allowed
        assert server.store.state(item) == ("CLAIMED" if allowed else "PENDING")

    def test_a_claimed_item_cannot_be_acked_again(self, server: WandbServer) -> None:
        item = push(server, "one")
        popped(server)
        assert ack(server, item).data == {"ackRunQueueItem": {"success": True}}
        for run in ("run1", "run2"):
            answer = ack(server, item, run)
            assert (answer.status, answer.data) == (409, {"ackRunQueueItem": None})
            assert answer.errors[0]["message"] == "item already claimed or not eligible to be claimed"
            assert answer.errors[0]["path"] == ["ackRunQueueItem"]
        assert server.store.items[item].associated_run_id == "run1"
        assert popped(server) is None

    def test_a_late_ack_can_be_a_success_that_is_false(self, serve: Serve) -> None:
        server = serve(acks_refused_in_errors=False)
        server.store.create_queue("acme", "vertex")
        item = push(server, "one")
        assert ack(server, item).data == {"ackRunQueueItem": {"success": True}}
        answer = ack(server, item)
        assert (answer.status, answer.data, answer.errors) == (200, {"ackRunQueueItem": {"success": False}}, [])

    def test_an_item_shows_failures_and_warnings(self, server: WandbServer, clock: Clock) -> None:
        item = push(server, "one")
        tell = 'input: {runQueueItemId: "%s", message: "%s", stage: "agent", filePaths: ["a/b.log"]}'
        warn = f"updateRunQueueItemWarning({tell % (item, 'careful')}) {{ success }}"
        fail = f"failRunQueueItem({tell % (item, 'no such image')}) {{ success }}"
        assert ask(server, f"mutation {{ {warn} {fail} }}").data == {
            "updateRunQueueItemWarning": {"success": True},
            "failRunQueueItem": {"success": True},
        }
        assert ack(server, item).status == 409
        clock.now += 61
        assert popped(server) is None
        fields = "id state associatedRunId error { message stage } warnings { message filePaths }"
        node = f'runQueueItem(id: "{item}") {{ {fields} }} runQueueItems(first: 5) {{ edges {{ node {{ id }} }} }}'
        query = f'{{ project(name: "model-registry", entityName: "acme") {{ runQueue(name: "vertex") {{ {node} }} }} }}'
        assert ask(server, query).data["project"]["runQueue"] == {
            "runQueueItem": {
                "id": item,
                "state": "FAILED",
                "associatedRunId": None,
                "error": {"message": "no such image", "stage": "agent"},
                "warnings": [{"message": "careful", "filePaths": ["a/b.log"]}],
            },
            "runQueueItems": {"edges": [{"node": {"id": item}}]},
        }

    def test_a_claimed_item_can_fail_once(self, server: WandbServer) -> None:
        item = push(server, "one")
        ack(server, item)
        given = "(input: {runQueueItemId: $i, message: $m, stage: $s}) { success }"
        text = f"mutation($i: ID!, $m: String!, $s: String!) {{ updateRunQueueItemWarning{given} failRunQueueItem{given} }}"
        for message, stage in (("out of memory", "run"), ("something else", "agent")):
            told = {"success": True}
            answer = ask(server, text, i=item, m=message, s=stage)
            assert answer.data == {"updateRunQueueItemWarning": told, "failRunQueueItem": told}
        failed = server.store.items[item]
        assert (failed.state(0), failed.associated_run_id) == ("FAILED", "run1")
        assert failed.error == ItemError("out of memory", "run", [])
        assert failed.warnings == [ItemError("out of memory", "run", []), ItemError("something else", "agent", [])]
        assert ack(server, item).status == 409

    def test_ids_are_case_sensitive_and_unknown_ones_are_errors(self, server: WandbServer) -> None:
        item = push(server, "one")
        answer = ack(server, item.swapcase())
        assert (answer.status, answer.errors[0]["message"]) == (404, f'run queue item "{item.swapcase()}" not found')
        of_agent = ', launchAgentId: "nobody"'
        answer = ask(server, f"mutation {{ {POP % of_agent} {{ runSpec }} }}")
        assert (answer.status, answer.errors[0]["message"]) == (404, 'launch agent "nobody" not found')
        assert server.store.state(item) == "PENDING"

    def test_pages_of_items(self, server: WandbServer) -> None:
        items = [push(server, str(number)) for number in range(5)]
        seen: list[str] = []
        after = None
        while True:
            text = (
                'query($a: String) { project(name: "model-registry", entityName: "acme") { runQueue(name: "vertex") {'
                " runQueueItems(first: 2, after: $a) { edges { node { id } } pageInfo { hasNextPage endCursor } } } } }"
            )
            found = ask(server, text, a=after).data["project"]["runQueue"]["runQueueItems"]
            seen += [edge["node"]["id"] for edge in found["edges"]]
            after = found["pageInfo"]["endCursor"]
            if not found["pageInfo"]["hasNextPage"]:
                break
        assert seen == items

    def test_a_deleted_queue_takes_its_items_with_it(self, server: WandbServer) -> None:
        item = push(server, "one")
        (queue,) = server.store.queues.values()
        text = "mutation($q: [ID!]!) { deleteRunQueues(input: {queueIDs: $q}) { success } }"
        assert ask(server, text, q=[queue.id]).data == {"deleteRunQueues": {"success": True}}
        assert item not in server.store.items
        assert ask(server, text, q=[queue.id]).status == 404


class TestAgents:
    def create(self, server: WandbServer, queue: str = "vertex") -> Asked:
        (queue_id,) = [one.id for one in server.store.queues.values() if one.name == queue]
        text = (
            'mutation($q: [ID!]!, $c: JSONString) { createLaunchAgent(input: {entityName: "acme", '
            'projectName: "model-registry", runQueues: $q, hostname: "vertex-launch/demo", agentConfig: $c}) '
            "{ launchAgentId } }"
        )
        return ask(server, text, q=[queue_id], c='{"max_jobs": 2}')

    def test_an_agent_is_found_by_its_host_name_and_kept_fresh(self, server: WandbServer, clock: Clock) -> None:
        agent = self.create(server).data["createLaunchAgent"]["launchAgentId"]
        push(server, "one")
        clock.now += 100
        assert popped(server, agent) == "one"
        fields = "id hostname agentStatus stopPolling runQueues heartbeatAt agentConfig"
        query = f'{{ project(name: "model-registry", entityName: "acme") {{ launchAgents {{ {fields} }} }} }}'
        (seen,) = ask(server, query).data["project"]["launchAgents"]
        assert seen == {
            "id": agent,
            "hostname": "vertex-launch/demo",
            "agentStatus": "POLLING",
            "stopPolling": False,
            "runQueues": list(server.store.queues),
            "heartbeatAt": "1970-01-12T13:48:20Z",
            "agentConfig": '{"max_jobs": 2}',
        }
        assert next(iter(server.store.items.values())).launch_agent_id == agent

    def test_an_agents_status_and_a_request_to_stop(self, server: WandbServer) -> None:
        agent = self.create(server).data["createLaunchAgent"]["launchAgentId"]
        text = 'updateLaunchAgent(input: {launchAgentId: "%s", agentStatus: "RUNNING", stopPolling: true}) { success }'
        assert ask(server, f"mutation {{ {text % agent} }}").data == {"updateLaunchAgent": {"success": True}}
        look = f'{{ launchAgent(id: "{agent}") {{ agentStatus stopPolling }} }}'
        assert ask(server, look).data == {"launchAgent": {"agentStatus": "RUNNING", "stopPolling": True}}
        assert ask(server, look, key=BOB).status == 403
        assert ask(server, '{ launchAgent(id: "nobody") { id } }').status == 404

    def test_an_agent_cannot_serve_another_entitys_queues(self, server: WandbServer) -> None:
        server.store.create_queue("other", "theirs")
        answer = self.create(server, "theirs")
        assert (answer.status, answer.errors[0]["message"]) == (400, "queues of another entity than acme: theirs")


class TestRuns:
    def start(self, server: WandbServer, name: str = "run1", **more: str) -> str:
        given = "".join(f', {key}: "{value}"' for key, value in more.items())
        text = f'upsertBucket(input: {{entityName: "acme", modelName: "demo", name: "{name}"{given}}}) {{ bucket {{ id }} }}'
        return str(ask(server, f"mutation {{ {text} }}").data["upsertBucket"]["bucket"]["id"])

    def look(self, server: WandbServer, fields: str) -> Any:
        query = f'{{ project(name: "demo", entityName: "acme") {{ run(name: "run1") {{ {fields} }} }} }}'
        return ask(server, query).data["project"]["run"]

    def stream(self, server: WandbServer, **update: Any) -> Any:
        url = f"{server.url}/files/acme/demo/run1/file_stream"
        response = requests.post(url, json=update, auth=("api", ALICE), timeout=10)
        response.raise_for_status()
        return response.json()

    def test_a_silent_run_has_crashed_and_can_come_back(self, serve: Serve, clock: Clock) -> None:
        server = serve(crash_after=300)
        self.start(server)
        clock.now += 300
        assert self.look(server, "state") == {"state": "running"}
        clock.now += 1
        assert self.look(server, "state") == {"state": "crashed"}
        self.stream(server)
        assert self.look(server, "state") == {"state": "running"}

    @pytest.mark.parametrize(
        ("exit_code", "stop", "state"), [(0, False, "finished"), (3, False, "failed"), (255, True, "killed")]
    )
    def test_how_a_run_ends(self, server: WandbServer, exit_code: int, stop: bool, state: str) -> None:
        run = self.start(server)
        if stop:
            ask(server, f'mutation {{ stopRun(input: {{id: "{run}"}}) {{ success }} }}')
        lines: dict[str, Any] = {
            "offset": 0,
            "content": ['{"_step": 0, "loss": 1.5}', '{"_step": 1}', '{"_step": 2, "loss": 0.5}'],
        }
        summary = {"offset": 0, "content": ['{"loss": 0.5}']}
        files = {"wandb-history.jsonl": lines, "wandb-summary.json": summary}
        assert self.stream(server, files=files)["stopped"] is stop
        self.stream(server, complete=True, exitcode=exit_code)
        sampled = r'sampledHistory(specs: ["{\"keys\": [\"loss\"], \"samples\": 9}"])'
        fields = f"state stopped exitcode summaryMetrics historyLineCount history historyTail {sampled}"
        assert self.look(server, fields) == {
            "state": state,
            "stopped": stop,
            "exitcode": exit_code,
            "summaryMetrics": '{"loss": 0.5}',
            "historyLineCount": 3,
            "history": lines["content"],
            "historyTail": json.dumps(lines["content"][-1:]),
            "sampledHistory": [[{"loss": 1.5}, {"loss": 0.5}]],
        }

    def test_a_pending_run_is_made_without_the_sdk(self, server: WandbServer) -> None:
        self.start(server, state="pending")
        assert self.look(server, "state stopped") == {"state": "pending", "stopped": False}
        self.start(server)
        assert self.look(server, "state") == {"state": "running"}

    def test_a_heartbeat_is_the_time_of_the_sdks_last_request(self, server: WandbServer, clock: Clock) -> None:
        def heartbeat() -> Any:
            return self.look(server, "heartbeatAt")["heartbeatAt"]

        run = self.start(server, state="pending")
        assert heartbeat() is None
        clock.now += 10
        self.start(server)
        assert heartbeat() == "1970-01-12T13:46:50Z"
        clock.now += 10
        ask(server, f'mutation {{ upsertBucket(input: {{id: "{run}", notes: "good"}}) {{ inserted }} }}')
        ask(server, f'mutation {{ stopRun(input: {{id: "{run}"}}) {{ success }} }}')
        assert heartbeat() == "1970-01-12T13:46:50Z", "no sign of life"
        self.stream(server)
        assert heartbeat() == "1970-01-12T13:47:00Z"
        clock.now += 301
        assert self.look(server, "state heartbeatAt") == {"state": "crashed", "heartbeatAt": "1970-01-12T13:47:00Z"}

    def test_changing_an_ended_run_does_not_revive_it(self, server: WandbServer) -> None:
        run = self.start(server)
        self.stream(server, complete=True, exitcode=0)
        ask(server, f'mutation {{ upsertBucket(input: {{id: "{run}", notes: "good"}}) {{ inserted }} }}')
        assert self.look(server, "state notes") == {"state": "finished", "notes": "good"}

    def test_streams_of_unknown_runs_and_keys_are_refused(self, server: WandbServer) -> None:
        url = f"{server.url}/files/acme/demo/run1/file_stream"
        assert requests.post(url, json={}, auth=("api", ALICE), timeout=10).status_code == 404
        self.start(server)
        assert requests.post(url, json={}, auth=("api", "x" * 40), timeout=10).status_code == 401

    def test_a_sweeps_state(self, server: WandbServer) -> None:
        server.store.set_sweep("acme", "demo", "sw1", "RUNNING")
        sweeps = 'a: sweep(sweepName: "sw1") { state } b: sweep(sweepName: "sw2") { state }'
        query = f'{{ project(name: "demo", entityName: "acme") {{ {sweeps} }} }}'
        assert ask(server, query).data["project"] == {"a": {"state": "RUNNING"}, "b": None}

    def test_a_sweeps_state_is_changed_by_its_id(self, server: WandbServer, clock: Clock) -> None:
        for project in ("demo", "other"):
            server.store.set_sweep("acme", project, "sw1", "RUNNING")
        clock.now += 10
        sweep, other = server.store.sweeps.values()
        text = "mutation($i: ID, $s: String) { upsertSweep(input: {id: $i, state: $s}) { sweep { name state } } }"
        changed = ask(server, text, i=sweep.id, s="PAUSED")
        assert changed.data == {"upsertSweep": {"sweep": {"name": "sw1", "state": "PAUSED"}}}
        assert [one.state for one in server.store.sweeps.values()] == ["PAUSED", "RUNNING"]
        times = '{ project(name: "demo", entityName: "acme") { sweep(sweepName: "sw1") { createdAt updatedAt } } }'
        seen = ask(server, times).data["project"]["sweep"]
        assert seen == {"createdAt": "1970-01-12T13:46:40Z", "updatedAt": "1970-01-12T13:46:50Z"}
        assert ask(server, text, i=other.id, s="CANCELED", key=BOB).status == 403
        assert ask(server, text, i=other.id, s="PENDING").status == 400
        assert ask(server, text, i="sw1", s="PAUSED").status == 404
        assert ask(server, text, i=None, s="PAUSED").status == 400, "a new sweep needs a project and a configuration"


def config(**more: Any) -> ResourceConfig:
    args = {"resource_args": {"gcp-vertex": RESOURCE_ARGS}}
    return ResourceConfig("c1", "acme", "gcp-vertex", args, template_variables({**VARIABLES, **more}))


NESTED = st.recursive(
    st.integers() | st.text(max_size=3) | st.lists(st.integers(), max_size=2),
    lambda children: st.dictionaries(st.sampled_from("abc"), children, max_size=3),
    max_leaves=8,
)


class TestRunSpecs:
    def test_template_variables_keep_their_types(self) -> None:
        spec = resolve(SPEC, config(), {"replicas": 3})
        assert spec["resource"] == "gcp-vertex"
        args = spec["resource_args"]["gcp-vertex"]["spec"]
        assert args["labels"] == {"machine": "is-n1-standard-4"}
        assert args["worker_pool_specs"] == [
            {
                "machine_spec": {"machine_type": "n1-standard-4"},
                "replica_count": 3,
                "container_spec": {"image_uri": "${image_uri}"},
            }
        ]

    @pytest.mark.parametrize(
        ("values", "says"),
        [
            ({"replicas": 5}, 'template variable "replicas": 5 is more than the maximum 4'),
            ({"replicas": 0}, 'template variable "replicas": 0 is less than the minimum 1'),
            ({"replicas": "2"}, "template variable \"replicas\": '2' is not of type integer"),
            ({"replicas": True}, 'template variable "replicas": True is not of type integer'),
            ({"machine": "huge"}, "'huge' is not one of ['n1-standard-4', 'a2-highgpu-1g']"),
            ({"machin": "n1-standard-4"}, 'the queue has no template variable "machin"'),
            ({}, 'template variable "zone" has no default and was not given'),
        ],
    )
    def test_bad_values_are_refused(self, values: Mapping[str, Any], says: str) -> None:
        zone = {} if values else {"zone": {"schema": {"type": "string"}}}
        with pytest.raises(Refused) as caught:
            resolve(SPEC, config(**zone), values)
        assert says in caught.value.message
        assert caught.value.status == 400

    def test_a_template_variable_needs_a_schema_that_its_default_obeys(self) -> None:
        with pytest.raises(Refused, match='"a" has no schema with a type of string, integer, number'):
            template_variables({"a": {"schema": {"type": "object"}}})
        with pytest.raises(Refused, match='default of template variable "b": 9 is more than the maximum 4'):
            template_variables({"b": {"schema": {"type": "integer", "maximum": 4, "default": 9}}})

    @settings(deadline=None)
    @given(
        below=st.dictionaries(st.sampled_from("abc"), NESTED, max_size=3),
        above=st.dictionaries(st.sampled_from("abc"), NESTED, max_size=3),
    )
    def test_the_specs_own_args_win_and_nothing_else_is_lost(self, below: Any, above: Any) -> None:
        queue = ResourceConfig("c1", "acme", "gcp-vertex", {"resource_args": below})
        merged = resolve({**SPEC, "resource_args": above}, queue, None)["resource_args"]

        def check(low: Any, high: Any, got: Any) -> None:
            assert got.keys() == low.keys() | high.keys()
            for key, value in got.items():
                if key not in high:
                    assert value == low[key]
                elif isinstance(high[key], dict) and isinstance(low.get(key), dict):
                    check(low[key], high[key], value)
                else:
                    assert value == high[key]

        check(below, above, merged)

    def test_pushing_changes_neither_the_queue_nor_what_was_pushed(self, serve: Serve) -> None:
        server = serve()
        queue = server.store.create_queue("acme", "vertex", resource_args=RESOURCE_ARGS, template_variables=VARIABLES)
        before = json.dumps(queue.config and queue.config.config)
        item = push(server, "one", template_variables={"replicas": 2})
        server.store.items[item].run_spec["resource_args"]["gcp-vertex"]["spec"]["labels"]["x"] = "y"
        server.store.items[item].run_spec["docker"]["docker_image"] = "image:2"
        assert json.dumps(queue.config and queue.config.config) == before
        assert SPEC["docker"] == {"docker_image": "image:1"}

    def test_a_priority_has_four_steps(self, server: WandbServer) -> None:
        with pytest.raises(Refused, match="priority 4 is not one of 0"):
            push(server, "one", priority=4)


class TestFaults:
    def test_a_lost_answer_was_done(self, server: WandbServer) -> None:
        item = push(server, "one")
        server.faults.lose("popFromRunQueue")
        with pytest.raises(requests.ConnectionError):
            popped(server)
        assert server.store.state(item) == "LEASED"
        assert server.store.operations[-1].status == 0
        assert popped(server) is None

    def test_a_failure_did_nothing_and_counts_down(self, server: WandbServer) -> None:
        push(server, "one")
        server.faults.fail("popFromRunQueue", 503, times=2, message="try later")
        for _ in range(2):
            answer = ask(server, f"mutation {{ {POP % ''} {{ runSpec }} }}")
            assert (answer.status, answer.data, answer.errors) == (503, None, [{"message": "try later"}])
        assert popped(server) == "one"

    def test_one_field_of_a_batch_can_fail_alone(self, server: WandbServer) -> None:
        one, two = push(server, "one"), push(server, "two")
        server.faults.refuse("ackRunQueueItem", "internal error")
        claim = 'ackRunQueueItem(input: {runQueueItemId: "%s", runName: "r"}) { success }'
        answer = ask(server, f"mutation {{ a: {claim % one} b: {claim % two} }}")
        assert answer.status == 200
        assert answer.data == {"a": None, "b": {"success": True}}
        assert [(error["path"], error["message"]) for error in answer.errors] == [(["a"], "internal error")]

    def test_another_process_sets_and_clears_faults(self, server: WandbServer) -> None:
        url = f"{server.url}/_local/faults"
        body = {"latency": 0.05, "faults": [{"operation": "*", "kind": "fail", "status": 502, "times": None}]}
        assert requests.post(url, json=body, timeout=10).json()["latency"] == 0.05
        began = time.perf_counter()
        assert ask(server, "{ viewer { id } }").status == 502
        assert time.perf_counter() - began >= 0.05
        state = requests.post(url, json={"clear": True, "latency": 0}, timeout=10).json()
        assert state == {"latency": 0, "faults": []} == requests.get(url, timeout=10).json()
        assert ask(server, "{ viewer { id } }").status == 200

    def test_a_request_for_faults_that_is_wrong_changes_nothing(self, server: WandbServer) -> None:
        body = {"latency": 1, "faults": [{"operation": "x", "kind": "explode"}], "typo": 1}
        response = requests.post(f"{server.url}/_local/faults", json=body, timeout=10)
        assert response.status_code == 400
        assert all(place in response.json()["error"] for place in ("faults.0.kind", "typo"))
        assert server.faults.state() == {"latency": 0, "faults": []}

    def test_waits_are_counted_once_for_each_request(self) -> None:
        slept: list[float] = []
        faults = Faults(0.1, sleep=slept.append)
        faults.delay("pop", 2.0, times=2)
        faults.before("pop", "pop", "ack")
        faults.before("ack")
        faults.before("pop")
        faults.before("pop")
        assert slept == [2.1, 0.1, 2.1, 0.1]

    def test_each_fault_applies_to_its_own_operation(self) -> None:
        faults = Faults()
        faults.fail("create", "UNAVAILABLE")
        faults.lose("create")
        faults.lag("list", 5.0)
        faults.before("list")
        with pytest.raises(FaultError) as caught:
            faults.before("create")
        assert (caught.value.status, caught.value.http_status) == ("UNAVAILABLE", 503)
        faults.before("create")
        with pytest.raises(AnswerLost):
            faults.after("create")
        faults.after("create")
        assert [faults.lag_of("list"), faults.lag_of("list"), faults.lag_of("get")] == [5.0, 5.0, 0.0]
        with pytest.raises(FaultRequestError, match="body"):
            faults.apply(b"[]")

    def test_the_state_for_a_live_table(self, server: WandbServer) -> None:
        item = push(server, "one")
        popped(server)
        ack(server, item)
        state = requests.get(f"{server.url}/_local/state", timeout=10).json()
        (queue,) = state["queues"]
        (shown,) = queue["items"]
        assert (queue["name"], queue["resource"]) == ("vertex", "gcp-vertex")
        assert [shown[key] for key in ("id", "name", "state", "run", "error", "warnings")] == [
            item,
            "one",
            "CLAIMED",
            "run1",
            None,
            [],
        ]
        assert state["requests"] == 2
        assert state["operations"] == {"popFromRunQueue": 1, "ackRunQueueItem": 1}


# W&B's own clients, each in its own process with its own home.


@dataclass
class Client:
    server: WandbServer
    home: Path

    def environment(self, **more: str) -> dict[str, str]:
        home = str(self.home)
        places = dict.fromkeys(
            ("HOME", "TMPDIR", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR"), home
        )
        own = {"PATH": os.environ["PATH"], "WANDB_BASE_URL": self.server.url, "WANDB_API_KEY": ALICE}
        return {**places, **own, "NO_GCE_CHECK": "true", "WANDB_ERROR_REPORTING": "false", **more}

    def run(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            env=self.environment(**more),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def script(self, text: str, **more: str) -> Any:
        """Run a script and return the JSON in the last line of its output."""
        done = self.run("-c", text, **more)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def launch(self, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = ("-m", "wandb", "launch", "-d", "image:1", "-q", "vertex", "-e", "acme", "-p", "demo")
        return self.run(*command, *options, **more)

    def unexpected(self) -> list[tuple[str, int]]:
        """Return the requests that failed, without those for metrics, which no stand-in supports."""
        asked = [(request.path, request.status) for request in self.server.store.operations]
        return [(path, status) for path, status in asked if status != 200 and path != "/sdk/otel/v1/metrics"]


@pytest.fixture
def client(serve: Serve, tmp_path: Path) -> Client:
    return Client(serve(clock=time.time), tmp_path)


@pytest.fixture
def queue(client: Client) -> Client:
    client.server.store.create_queue(
        "acme", "vertex", resource_args=RESOURCE_ARGS, template_variables=VARIABLES, prioritization_mode="V0"
    )
    return client


TRAIN = """
import sys, time, wandb
run = wandb.init(config={"lr": 0.1})
for step in range(int(sys.argv[2])):
    run.log({"loss": 1 / (step + 1)})
    time.sleep(float(sys.argv[3]))
run.finish(exit_code=int(sys.argv[1]))
"""


CREATE_QUEUE = f"""
import json, wandb
api = wandb.Api()
api.create_run_queue("vertex", "gcp-vertex", entity="acme", prioritization_mode="V0",
                     config={RESOURCE_ARGS!r}, template_variables={VARIABLES!r})
queue = wandb.Api().run_queue("acme", "vertex")
names = {{one["name"]: json.loads(one["schema"]) for one in queue.template_variables}}
api.upsert_run_queue("second", {{"run": {{}}}}, "gcp-vertex", entity="acme", external_links={{"docs": "http://x"}})
second = wandb.Api().run_queue("acme", "second")
links = second.id and second.external_links
second.delete()
told = [queue.type, queue.access, queue.prioritization_mode, queue.default_resource_config, names, links]
print(json.dumps(told))
"""


def test_the_public_api_makes_queues(client: Client) -> None:
    resource, access, mode, default_config, names, links = client.script(CREATE_QUEUE)
    assert (resource, access, mode) == ("gcp-vertex", "PROJECT", "V0")
    assert default_config == {"resource_args": {"gcp-vertex": RESOURCE_ARGS}}
    assert names == {name: variable["schema"] for name, variable in VARIABLES.items()}
    assert links == {"links": [{"label": "docs", "url": "http://x"}]}
    assert [queue.name for queue in client.server.store.queues.values()] == ["vertex"]
    assert client.unexpected() == []


def test_the_launch_command_fills_a_queue(queue: Client) -> None:
    args = {"gcp-vertex": {"run": {"timeout": 90}, "spec": {"labels": {"team": "vision"}}}}
    done = queue.launch("--name", "first", "--priority", "high", "--resource-args", json.dumps(args))
    assert done.returncode == 0, done.stderr
    assert "Added run to queue vertex." in done.stderr
    (item,) = queue.server.store.items.values()
    assert item.priority == 1
    assert {key: item.run_spec[key] for key in ("entity", "project", "name", "resource", "author")} == {
        "entity": "acme",
        "project": "demo",
        "name": "first",
        "resource": "gcp-vertex",
        "author": "alice",
    }
    assert item.run_spec["docker"] == {"docker_image": "image:1"}
    merged = item.run_spec["resource_args"]["gcp-vertex"]
    assert merged["run"] == {"timeout": 90}
    assert merged["spec"]["labels"] == {"machine": "is-n1-standard-4", "team": "vision"}
    assert queue.unexpected() == []


def test_the_launch_command_sets_template_variables(queue: Client) -> None:
    done = queue.launch("--set-var", "machine=a2-highgpu-1g", "--set-var", "replicas=3")
    assert done.returncode == 0, done.stderr
    (item,) = queue.server.store.items.values()
    (pool,) = item.run_spec["resource_args"]["gcp-vertex"]["spec"]["worker_pool_specs"]
    assert (pool["machine_spec"], pool["replica_count"]) == ({"machine_type": "a2-highgpu-1g"}, 3)
    assert queue.unexpected() == []


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        (("--set-var", "replicas=9"), ALICE, 'template variable "replicas": 9 is more than the maximum 4'),
        (("-q", "nowhere"), ALICE, "Unable to push to run queue nowhere. Queue not found."),
        ((), "x" * 40, "user is not logged in"),
    ],
    ids=["value", "queue", "key"],
)
def test_the_launch_command_shows_what_the_server_refuses(
    queue: Client, options: Sequence[str], key: str, says: str
) -> None:
    done = queue.launch(*options, WANDB_API_KEY=key)
    assert done.returncode == 1
    assert says in done.stderr
    assert queue.server.store.items == {}


READ_RUN = """
import json, wandb
run = wandb.Api().run("acme/demo/run1")
run.stop()
rows = [len(run.history(pandas=False)), len(run.history(keys=["loss"], pandas=False)), len(list(run.scan_history()))]
metadata = json.load(run.file("wandb-metadata.json").download())
print(json.dumps([run.state, run.config, run.summary["loss"], rows, metadata["docker"], run.lastHistoryStep]))
"""


def test_a_job_reports_and_resumes(client: Client) -> None:
    identity = {
        "WANDB_ENTITY": "acme",
        "WANDB_PROJECT": "demo",
        "WANDB_RUN_ID": "run1",
        "WANDB_NAME": "first",
        "WANDB_LAUNCH": "True",
        "WANDB_LAUNCH_QUEUE_NAME": "vertex",
        "WANDB_DOCKER": "image:1",
        "WANDB_CONFIG": '{"lr": 0.3}',
    }
    first = client.run("-c", TRAIN, "0", "5", "0", **identity)
    assert first.returncode == 0, first.stderr
    assert "ERROR" not in first.stderr
    assert "WARNING" not in first.stderr
    run = client.server.store.runs.get("acme", "demo", "run1")
    assert run is not None
    assert (run.state, run.display_name, run.summary["loss"]) == ("finished", "first", 0.2)
    assert [row["loss"] for row in run.history()] == [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5]
    second = client.run("-c", TRAIN, "3", "2", "0", **identity, WANDB_RESUME="allow")
    assert second.returncode == 0, second.stderr
    assert (run.state, run.exit_code, [row["_step"] for row in run.history()]) == ("failed", 3, list(range(7)))
    assert client.script(READ_RUN) == ["failed", {"lr": 0.3}, 0.5, [7, 7, 7], "image:1", 6]
    assert run.stopped
    assert client.unexpected() == []


LAUNCH_API = """
import json
from wandb.errors import CommError
from wandb.sdk.launch.api import LaunchApi

def refused(call, *args):
    try:
        return call(*args)
    except CommError as error:
        return str(error)

api = LaunchApi()
agent = api.create_launch_agent("acme", "model-registry", ["vertex"], {"max_jobs": 1}, "wandb@0")["launchAgentId"]
seen = api.get_launch_agent(agent)
one, two = (api.pop_from_run_queue("vertex", "acme", "model-registry", agent) for _ in range(2))
told = {
    "agent": [seen["agentStatus"], seen["stopPolling"], len(seen["runQueues"])],
    "status": api.update_launch_agent_status(agent, "RUNNING"),
    "team": api.entity_is_team("acme"),
    "popped": [one["runSpec"]["name"], two["runSpec"]["name"]],
    "empty": api.pop_from_run_queue("vertex", "acme", "model-registry", agent),
    "nowhere": refused(api.pop_from_run_queue, "nowhere", "acme", "model-registry", agent),
    "ack": refused(api.ack_run_queue_item, one["runQueueItemId"], "run1"),
    "again": refused(api.ack_run_queue_item, one["runQueueItemId"], "run1"),
    "warn": api.update_run_queue_item_warning(one["runQueueItemId"], "careful", "Kubernetes", []),
    "fail": api.fail_run_queue_item(two["runQueueItemId"], "no image", "agent", ["error.log"]),
    "stopped": api.check_stop_requested("demo", "acme", "run1"),
    "state": refused(api.get_run_state, "acme", "demo", "run1"),
    "queued": [api.queued_run("acme", "demo", "vertex", id["runQueueItemId"], "model-registry").state for id in (one, two)],
}
print(json.dumps(told))
"""


def test_the_official_agents_operations(queue: Client) -> None:
    one, two = push(queue.server, "one"), push(queue.server, "two")
    assert queue.script(LAUNCH_API) == {
        "agent": ["POLLING", False, 1],
        "status": {"success": True},
        "team": True,
        "popped": ["one", "two"],
        "empty": None,
        "nowhere": 'run queue "nowhere" of acme/model-registry not found',
        "ack": True,
        "again": "item already claimed or not eligible to be claimed",
        "warn": True,
        "fail": True,
        "stopped": False,
        "state": "Error fetching run state for acme/demo/run1.",
        "queued": ["claimed", "failed"],
    }
    items = queue.server.store.items
    assert (items[one].associated_run_id, items[one].warnings[0].message) == ("run1", "careful")
    assert items[two].error == ItemError("no image", "agent", ["error.log"])


def test_the_official_agent_pops_and_acks(queue: Client) -> None:
    """Without credentials for Google Cloud, the agent fails the item with a message and a log file."""
    item = push(queue.server, "one")
    launch_config = queue.home / "launch-config.yaml"
    launch_config.write_text("entity: acme\nqueues: [vertex]\nenvironment: {type: gcp, region: us-central1}\n")
    with subprocess.Popen(
        [sys.executable, "-m", "wandb", "launch-agent", "-c", str(launch_config)],
        env=queue.environment(),
        cwd=queue.home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as agent:
        deadline = time.monotonic() + 30
        while queue.server.store.state(item) != "FAILED" and time.monotonic() < deadline:
            time.sleep(0.05)
        agent.send_signal(signal.SIGINT)
        said, _ = agent.communicate(timeout=30)
    settled = queue.server.store.items[item]
    assert settled.state(time.time()) == "FAILED", said
    assert settled.associated_run_id is not None
    assert settled.error is not None
    assert "Google Cloud Platform credentials" in settled.error.message
    assert queue.unexpected() == []
    (known,) = queue.server.store.agents.values()
    run = queue.server.store.runs.get("acme", "model-registry", known.name)
    assert run is not None
    assert settled.error.file_paths[0] in run.files
    (log,) = [file for name, file in run.files.items() if name.endswith("error.log")]
    assert log.content is not None
    assert b"credentials" in log.content


SWEEPS = """
import json, wandb
from wandb.apis.public.sweeps import _get_sweep_state, _set_sweep_state, _sweep_with_runs

def set_to(state):
    try:
        _set_sweep_state(api, "sw1", state, entity="acme", project="demo")
    except Exception as error:
        return str(error)

api = wandb.Api()
runs = [run["name"] for run in _sweep_with_runs(api, "sw1", "{}", entity="acme", project="demo")["runs"]]
told = [(set_to(state), _get_sweep_state(api, "sw1", entity="acme", project="demo")) for state in
        ("PAUSED", "RUNNING", "CANCELED", "CANCELED", "RUNNING")]
print(json.dumps([runs, *told]))
"""


def test_the_public_api_changes_a_sweeps_state(client: Client) -> None:
    store = client.server.store
    store.set_sweep("acme", "demo", "sw1", "PENDING")
    for name, sweep in (("run1", "sw1"), ("run2", "sw2"), ("run3", "sw1")):
        store.runs.upsert("acme", "demo", name, username="alice", sweep=sweep)
    assert client.script(SWEEPS) == [
        ["run1", "run3"],
        ["Cannot pause pending sweep.", "PENDING"],
        [None, "RUNNING"],
        [None, "CANCELED"],
        ["Sweep already canceled.", "CANCELED"],
        [None, "RUNNING"],
    ]
    assert client.unexpected() == []
