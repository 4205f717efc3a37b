"""Answers of any shape, through the functions: what cannot be read is W&B's fault or one item's, and good items start."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import functions_framework
import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from requests.adapters import HTTPAdapter
from urllib3 import HTTPResponse

from local.machine.functions import ROOT
from local.standins.wandb import WandbServer
from tests.support.memory import ENTITY, KEY, World, image_spec
from tests.support.numbers import examples
from tests.support.shapes import nodes, put
from tests.support.wandb import Keys, Serve
from vertex_launch import functions, limits, log
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.clients import Clients

# functions-framework asks for the time in a way that later Pythons warn of.
pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")

THEIR_KEY = "wandb_v1_" + "Secret" * 10
MARK = b'"MARK"'
Change = Callable[[bytes], bytes | tuple[bytes, str]]


class Altered(HTTPAdapter):
    """Changes what a server answers before it reaches the client."""

    def __init__(self) -> None:
        super().__init__()
        self.change: Change = lambda content: content
        self.requests: list[bytes] = []

    def send(self, request: requests.PreparedRequest, *args: Any, **how: Any) -> requests.Response:
        response = super().send(request, *args, **how)
        assert isinstance(request.body, bytes)
        self.requests.append(request.body)
        changed = self.change(response.raw.read())
        content, packed = changed if isinstance(changed, tuple) else (changed, "")
        response.raw.release_conn()
        headers = {"Content-Encoding": packed} if packed else {}
        response.headers = requests.structures.CaseInsensitiveDict(headers)
        response.raw = HTTPResponse(cast(Any, Body(content)), headers, response.status_code, preload_content=False)
        return response


class Body:
    def __init__(self, content: bytes) -> None:
        self.left = content
        self.closed = False

    def read(self, size: int | None = None) -> bytes:
        size = len(self.left) if size is None else size
        piece, self.left = self.left[:size], self.left[size:]
        return piece

    read1 = read

    def close(self) -> None:
        self.closed = True


class Deployed:
    """The functions with a W&B whose answers are altered, and everything that leaves them."""

    def __init__(self, server: WandbServer, patch: pytest.MonkeyPatch) -> None:
        self.world = World(base_url=server.url, max_jobs=20)
        server.store.clock = server.store.launch.clock = self.world.clock
        self.server, self.altered, self.said = server, Altered(), list[str]()
        queue = WandbQueue(self.world.settings, Keys())
        queue._session.mount("http://", self.altered)
        clients = Clients(self.world.settings, self.world.redact)
        vars(clients).update(services=replace(self.world.services(), queue=queue))
        patch.setattr(functions, "load", lambda: functions.Deployment(self.world.settings, clients))
        patch.setattr(functions, "REDACT", self.world.redact)
        patch.setattr(log.LOGGER, "handlers", [])
        log.configure(self.world.redact, project="p")
        (handler,) = log.LOGGER.handlers
        patch.setattr(handler, "emit", lambda record: self.said.append(handler.format(record)))
        self.client = functions_framework.create_app("dispatch_now", str(ROOT / "main.py")).test_client()

    def push(self, queue: str, **changes: Any) -> str:
        return self.server.store.push(ENTITY, queue, image_spec(**changes))

    def run(self) -> int:
        """Run a pass after every lease has ended; return the status."""
        self.world.clock.sleep(self.server.store.launch.lease + 30)
        answer = self.client.post("/", json={})
        self.said.append(answer.get_data(as_text=True))
        assert answer.status_code in (200, 503), self.said
        return int(answer.status_code)

    def states(self, items: list[str]) -> list[str]:
        return [self.server.store.state(item) for item in items]

    def failure(self, item: str) -> str:
        error = self.server.store.items[item].error
        return error.message if error else ""


def instead(of_mark: bytes) -> Change:
    return lambda content: content.replace(MARK, of_mark)


def whole(page: bytes, packed: str = "") -> Change:
    return lambda content: ((page, packed) if packed else page) if MARK in content else content


ATTACKS: dict[str, tuple[Change, str]] = {
    "nested": (instead(b"[" * 1200 + b"]" * 1200), "DEEPEST"),
    "nested objects": (instead(b'{"a":' * 1200 + b"1" + b"}" * 1200), "DEEPEST"),
    "digits": (instead(b"9" * 5000), "MOST_DIGITS"),
    "infinite": (instead(b"-1e999"), "too large"),
    "not a number": (instead(b"NaN"), "not JSON"),
    "surrogate": (instead(b'"\\udc00"'), "surrogate"),
    "not UTF-8": (instead(b'"\xff"'), "UTF-8"),
    "values": (instead(b"[" + b"{}," * 500_000 + b"{}]"), "MOST_ANSWER_VALUES"),
    "many values": (instead(b"[" + b"1," * 150_000 + b"1]"), "MOST_VALUES"),
    "large": (instead(b'"' + b"x" * limits.LARGEST_ANSWER + b'"'), "LARGEST_ANSWER"),
    "cut off": (lambda content: content.partition(MARK)[0] if MARK in content else content, "cut off"),
    "page": (whole(b"<!DOCTYPE html><title>" + THEIR_KEY.encode()), "HTML"),
    "empty": (whole(b""), "empty"),
    "a list": (whole(b"[1]"), "not a JSON object"),
    "bomb": (whole(gzip.compress(b'{"data": "' + b"0" * 200_000_000), "gzip"), "LARGEST_ANSWER"),
    "damaged": (whole(b"not gzip", "gzip"), "unpacked"),
    "brotli": (whole(b"\x0b", "br"), "another way"),
}


@pytest.mark.parametrize("most", [64, 1])
@pytest.mark.parametrize("name", ATTACKS)
def test_an_answer_that_cannot_be_read_fails_its_item_and_no_other(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    deployed = Deployed(serve(max_operations_per_request=most if most == 1 else None), monkeypatch)
    change, found = ATTACKS[name]
    deployed.altered.change = change
    before = deployed.push("cpu")
    bad = deployed.push("cpu", _wandb_api_key=THEIR_KEY, more="MARK")
    good = [before, deployed.push("cpu"), *(deployed.push("gpu") for _ in range(3))]
    for _ in range(2):
        assert deployed.run() == 200
    assert deployed.states(good) == ["CLAIMED"] * 5
    assert deployed.states([bad]) == ["FAILED"], deployed.said
    assert found in deployed.failure(bad)
    said = "\n".join([*deployed.said, deployed.failure(bad)])
    assert "Traceback" not in said
    assert THEIR_KEY not in said
    assert "x" * 50 not in said
    assert "codec" not in said


VALUES: st.SearchStrategy[Any] = st.sampled_from(
    [None, 0, -1, 1e308, 10**200, False, "", "x", "y" * 600, [], {}, [1], [None], [[]], {"a": 1}, {"id": []}]
)


@settings(
    max_examples=examples(600),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@example(at=0, where=619, new=0, lasting=True)
@given(at=st.integers(0, 25), where=st.integers(0, 10_000), new=VALUES, lasting=st.booleans())
def test_any_value_may_be_anywhere_in_an_answer(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, at: int, where: int, new: Any, lasting: bool
) -> None:
    with monkeypatch.context() as patch:
        server = serve()
        deployed = Deployed(server, patch)
        count, popped = 0, False

        def change(content: bytes) -> bytes:
            nonlocal count, popped
            count += 1
            answer = json.loads(content)
            paths = list(nodes(answer))
            path = paths[where % len(paths)]
            if not (count - 1 == at or (lasting and count > at)):
                return content
            popped = popped or "runSpec" in path
            return json.dumps(put(answer, path, new)).encode()

        deployed.altered.change = change
        first = [deployed.push(queue) for queue in ("cpu", "gpu")]
        for _ in range(2):
            deployed.run()
        later = [deployed.push(queue) for queue in ("cpu", "gpu", "gpu")]
        deployed.run()
        deployed.altered.change = lambda content: content
        for _ in range(2):
            assert deployed.run() == 200, deployed.said
        assert not [line for line in deployed.said if "Traceback" in line]
        states = deployed.states(first + later)
        assert set(states) <= {"CLAIMED", "FAILED"}
        assert states.count("FAILED") <= (5 if popped else 0), deployed.said
        server.stop()
        assert KEY not in "".join(deployed.said)
