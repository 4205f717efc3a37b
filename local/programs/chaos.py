"""Chaos: push items while passes are killed and services fail, then check what became of every item.

It uses the local cloud with real processes. When the disturbances end, the remaining items get time to finish. Every item
must end as its kind declares, with at most one surviving job for each attempt. The seed selects what is disturbed and when;
what the processes make of that differs from run to run.
"""

from __future__ import annotations

import base64
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from local.machine.cloud import API_KEY, ENTITY, Cloud, Options
from local.machine.functions import CONFIG, Function
from local.machine.images import REGISTRY
from local.programs.attacks import ITEM_KEY, Attack, attacks
from local.programs.chaos_faults import OPERATIONS, fault, times
from local.programs.chaos_items import KINDS, WEIGHTS, Account, Kind
from local.programs.demo_items import disturb, pool
from local.programs.items import STARTING, Items, clock
from local.standins.objects import HttpRefused
from local.standins.pubsub_emulator import PubSubEmulator
from local.standins.wandb.launch import Item as QueueItem
from local.standins.web import post
from vertex_launch.job import labels
from vertex_launch.state import record

PATIENCE = 300.0
"""Seconds without any change after which it gives up. The longest pause of the dispatcher after a refusal is 180."""
SURE = 8
"""Passes in which a settled item that differs from what it must be stays as it is, before that counts as its end."""
LEASE = 8.0
SETTINGS = {
    "lease": LEASE,
    "resubmit_after": 2,
    "timeouts": {
        "connect": 2,
        "read": 3,
        "look": 3,
        "create": 2,
        "pass_budget": 3,
        "margin": 1,
        "intent_grace": 6,
        "settle_grace": 5,
    },
}
"""A killed pass keeps the lock for six seconds, and an item that it popped is back in its queue after eight."""
TICK = 2.0
_PUSH_EVERY = 2.5
_ATTACK_EVERY = 1.0
_POST_EVERY = 5.0
_BURST = 3.0
_KILLED = 0.5
"""The share of passes that are killed."""
_REPORT_EVERY = 5.0
_QUEUES = ("vertex-cpu", "vertex-gpu")
_FOLDER = "vertex-launch/default"
_ATTACKS = [attack for attack in attacks() if not attack.secure]
_MEMORY = 400_000_000
"""Bytes that a function may have resident."""

_PUSH = """mutation($queue: String!, $spec: JSONString!) { pushToRunQueueByName(input: {entityName: "acme", projectName:
    "model-registry", queueName: $queue, runSpec: $spec}) { runQueueItemId } }"""
_FIND = """query($project: String!, $run: String!) { project(name: $project, entityName: "acme") { run(name: $run) { id } } }"""
_STOP = """mutation($id: ID!) { stopRun(input: {id: $id}) { success } }"""


class Chaos:
    """Runs once: disturbances for ``seconds``, then the account of every item.

    With ``items`` it pushes that many, and no refusal makes the dispatcher wait for minutes: a test needs that.
    """

    def __init__(self, seconds: float, seed: int, items: int = 0) -> None:
        self._fixed = items
        self._push_every = seconds / (items + 1) if items else _PUSH_EVERY
        self._console = Console(soft_wrap=True)
        self._seconds = seconds
        self._seed = seed
        self._cloud = Cloud(Options(tick_every=TICK, lease=LEASE, settings=SETTINGS))
        self._items = Items(self._cloud)
        self._slots = int(yaml.safe_load((CONFIG / "launch-config.yaml").read_text())["max_jobs"])
        self._over = threading.Event()
        self._kinds: dict[str, Kind] = {}
        self._attacks: dict[str, Attack] = {}
        """Hostile items by id. They are in the queues, but have no account: each is failed, or runs like any other."""
        self._stopped: set[str] = set()
        self._count: Counter[str] = Counter()
        self._disturbed = ""
        self._began = time.monotonic()
        self._reported = 0.0
        self._freed: object = None

    def run(self) -> int:
        """Run it and return the exit status: 0 if every item ended as it must."""
        try:
            self._say(STARTING)
            for queue in _QUEUES:
                self._cloud.wandb.store.create_queue(ENTITY, queue, resource_args=pool("n1-standard-4"))
            self._cloud.start()
            self._say(f"For {self._seconds:g} s, kill passes, disturb services, and push good and hostile items.")
            expected = clock(1.6 * self._seconds + 45)
            self._say(f"Seed {self._seed}. It takes about {expected}, some minutes more on a busy machine.")
            self._trouble()
            self._say(f"{self._time()}  The disturbances are over. Waiting until every item has ended.")
            problems = self._drain()
            return self._report([*problems, *self._broken()])
        finally:
            self._over.set()
            self._cloud.stop()

    # Disturbances

    def _trouble(self) -> None:
        """Push, kill and disturb in parallel until the time is over. An error in one of them ends all and is raised."""
        parts: Sequence[Callable[[random.Random], None]] = (
            self._push,
            self._attack,
            self._kill,
            self._disturb,
            self._post,
        )
        deadline = time.monotonic() + self._seconds
        with ThreadPoolExecutor(len(parts)) as threads:
            running = [threads.submit(part, random.Random(f"{self._seed} {part.__name__}")) for part in parts]
            try:
                while time.monotonic() < deadline and not any(one.done() and one.exception() for one in running):
                    self._stop_runs()
                    self._progress(f", {self._disturbed} fails")
                    time.sleep(0.5)
            finally:
                self._over.set()
            for one in running:
                one.result()
        for faults in self._cloud.faults.values():
            faults.clear()
        for function in (self._cloud.dispatch, self._cloud.dispatch_now, self._cloud.job_state):
            function.wait()

    def _push(self, chance: random.Random) -> None:
        """Push an item of a random kind every few seconds."""
        while True:
            number = len(self._kinds)
            first = KINDS[number] if number < len(KINDS) else None  # one of each, however short the time
            kind = first or chance.choices(KINDS, WEIGHTS)[0]
            name = f"{kind.name}-{number + 1}"
            if kind.fate:
                self._cloud.containers.scripts.append(disturb(kind.fate, name, kind.attempts - 1, 3))
            own = pool("n1-standard-4")
            if kind.run:
                own["run"] = {kind.run: True}
            spec = {
                "entity": ENTITY,
                "project": "chaos",
                "name": name,
                "resource": "gcp-vertex",
                "resource_args": {"gcp-vertex": own},
                "docker": {"docker_image": f"{REGISTRY}/{kind.image}"},
                "overrides": {"args": list(kind.args)},
            }
            self._kinds[name] = kind
            self._ask(_PUSH, queue=chance.choice(_QUEUES), spec=json.dumps(spec))
            over = self._over.wait(self._push_every * chance.uniform(0.2, 1.8))
            if len(self._kinds) == self._fixed or (over and not self._fixed):
                return

    def _attack(self, chance: random.Random) -> None:
        """Push a hostile item to both queues all the time."""
        launch = self._cloud.wandb.store.launch
        turns = list[Attack]()
        while not self._over.wait(_ATTACK_EVERY * chance.uniform(0.2, 1.8)):
            turns = turns or chance.sample(_ATTACKS, len(_ATTACKS))
            attack = turns.pop()
            for queue in list(launch.queues.values()):
                item = launch.push_raw(queue, attack.name, attack.text)
                self._attacks[item.id] = attack

    def _kill(self, chance: random.Random) -> None:
        """Kill both dispatchers while a pass runs, sometimes also job_state, and start them again as the platform does."""
        seen = 0
        cloud = self._cloud
        while not self._over.wait(0.02):
            generation = self._held()
            if generation in (0, seen):
                continue
            seen = generation
            self._count["passes"] += 1
            if chance.random() > _KILLED:
                continue
            time.sleep(chance.uniform(0, 0.8))
            victims = [cloud.dispatch, cloud.dispatch_now, *([cloud.job_state] if chance.random() < 0.5 else [])]
            for function in victims:
                self._count["MB of memory, at most"] = max(self._count["MB of memory, at most"], self._peak(function))
                function.stop()
            self._count["kills"] += len(victims)
            self._count["passes killed halfway"] += self._held() == generation
            for function in victims:
                function.start()

    def _held(self) -> int:
        """Return the generation of the lock that a pass has, 0 without one."""
        try:
            hold = self._cloud.storage.objects.get("demo-state", f"{_FOLDER}/{record.LOCK}", {})
        except HttpRefused:
            return 0
        free = self._ledger().get("free_lock")
        return 0 if free == hold.generation or json.loads(hold.data)["expires"] < time.time() else hold.generation

    def _ledger(self) -> dict[str, Any]:
        """Return the ledger as it is stored, empty before the first pass has ended."""
        try:
            stored = self._cloud.storage.objects.get("demo-state", f"{_FOLDER}/{record.LEDGER}", {})
        except HttpRefused:
            return {}
        ledger: dict[str, Any] = json.loads(stored.data)
        return ledger

    def _disturb(self, chance: random.Random) -> None:
        """Make one service after another fail, refuse and lose answers for some seconds."""
        began, turns = time.monotonic(), list[str]()
        while not self._over.is_set():
            turns = turns or chance.sample(list(OPERATIONS), len(OPERATIONS))
            service = self._disturbed = turns.pop()
            early = not self._fixed and time.monotonic() - began < self._seconds / 3
            chosen = chance.sample(OPERATIONS[service], min(len(OPERATIONS[service]), 4))
            faults = [fault(chance, service, operation, early=early) for operation in chosen]
            for one in faults:
                self._cloud.faults[service].add(one)
            self._over.wait(_BURST)
            left = self._cloud.faults[service].state()["faults"]
            self._cloud.faults[service].clear()
            self._count[f"disturbed calls of {service}"] += sum(one.times or 0 for one in faults) - times(left)
            self._over.wait(chance.uniform(0, 1))

    def _post(self, chance: random.Random) -> None:
        """Request a pass from dispatch_now every few seconds, whatever the answer."""
        headers = {"Content-Type": "application/json"}
        while not self._over.wait(_POST_EVERY * chance.uniform(0.5, 1.5)):
            try:
                status, _ = post(self._cloud.dispatch_now.url, b"{}", headers, 20)
                self._count[f"answers {status} of dispatch_now"] += 1
            except OSError:
                self._count["requests that dispatch_now did not answer"] += 1

    def _stop_runs(self) -> None:
        """Stop the runs that go on until a person stops them."""
        for queue in self._cloud.state()["wandb"]["queues"]:
            for item in queue["items"]:
                name, run = item["name"], item["run"]
                kind = self._kinds.get(name)
                if run and name not in self._stopped and kind and kind.name == "stopped":
                    found = (self._ask(_FIND, project="chaos", run=run)["project"] or {}).get("run")
                    if found:
                        self._ask(_STOP, id=found["id"])
                        self._stopped.add(name)

    # The account

    def _drain(self) -> list[str]:
        """Wait until every item is settled, and return what is wrong.

        Wrong items count once they have been settled for some passes: between a pass that was killed and the next one,
        an item can look settled. Without any change for ``PATIENCE`` seconds, the open items are wrong as well.
        """
        seen: object = None
        since, passes = time.monotonic(), 0
        while True:
            self._stop_runs()
            accounts = self._accounts()
            hostile = self._hostile()
            ledger = self._ledger()
            wrong = [problem for account in accounts for problem in account.problems()]
            wrong += [f"{name}: the item is {state}" for name, state, right in hostile if not right]
            still = [f"item {item} is still open in the ledger" for item in ledger.get("open", {})]
            if not wrong and not still:
                return []
            now = _signature(accounts, hostile, still)
            if now != seen:
                seen, since, passes = now, time.monotonic(), self._count["passes"]
            self._watch(ledger)
            waiting = still or not all(account.settled for account in accounts)
            waiting = waiting or any(state in ("PENDING", "LEASED") for _, state, _ in hostile)
            if not waiting and self._count["passes"] - passes >= SURE:
                return wrong
            if time.monotonic() - since > PATIENCE:
                return [*wrong, *still]
            self._progress("")
            time.sleep(0.5)

    def _watch(self, ledger: Mapping[str, Any]) -> None:
        """Count the passes that have ended, as their locks are given back."""
        if (free := ledger.get("free_lock")) != self._freed:
            self._freed = free
            self._count["passes"] += 1

    def _hostile(self) -> list[tuple[str, str, bool]]:
        """Return name and state of each hostile item, and whether it has ended as it must."""
        items = self._cloud.wandb.store.items
        found = [(attack, items[id_].state(time.time())) for id_, attack in list(self._attacks.items())]
        return [
            (attack.name, state, state == "FAILED" or (state == "CLAIMED" and not attack.fails))
            for attack, state in found
        ]

    def _accounts(self) -> list[Account]:
        found = {}
        items = [item for item in self._items.read(self._cloud.state()) if item.name in self._kinds]
        for item in items:
            jobs = [(int(job["labels"][labels.ATTEMPT]), job["state"].removeprefix("JOB_STATE_")) for job in item.jobs]
            found[item.name] = Account(item.name, self._kinds[item.name], item.state, " ".join(item.messages), jobs)
        return [found.get(name, Account(name, kind, "lost", "", [])) for name, kind in list(self._kinds.items())]

    def _broken(self) -> list[str]:
        """Return what is wrong apart from the items."""
        moments = [(job.create_time, 1) for job in self._cloud.vertex.jobs.values()]
        moments += [(job.end_time, -1) for job in self._cloud.vertex.jobs.values() if job.end_time]
        active = most = 0
        for _, change in sorted(moments):
            active += change
            most = max(most, active)
        self._count["jobs active at once, at most"] = most
        broken = [f"{most} jobs were active at once, more than {self._slots}"] if most > self._slots else []
        for path in self._cloud.folder.glob("*.log"):
            text = path.read_text(errors="replace")
            broken += [f"{path.name} contains {whose}" for whose, key in _KEYS.items() if key in text]
        shown = [text for item in self._cloud.wandb.store.items.values() for text in _texts(item)]
        broken += [f"W&B shows {whose} on an item" for whose, key in _KEYS.items() if any(key in one for one in shown)]
        for function in (self._cloud.dispatch, self._cloud.dispatch_now):
            self._count["MB of memory, at most"] = max(self._count["MB of memory, at most"], self._peak(function))
        if self._count["MB of memory, at most"] * 1_000_000 > _MEMORY:
            broken.append(f"a function took {self._count['MB of memory, at most']} MB")
        return broken

    def _peak(self, function: Function) -> int:
        return function.peak_memory() // 1_000_000

    def _report(self, problems: Sequence[str]) -> int:
        accounts = self._accounts()
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        for heading in ("item", "item is", "jobs, by attempt"):
            table.add_column(heading, no_wrap=True)
        for account in accounts:
            ends = " ".join(f"{attempt}:{state}" for attempt, state in account.jobs)
            table.add_row(account.name, account.state, ends, style="red" if account.problems() else "")
        self._console.print(table)
        jobs = len(self._cloud.vertex.jobs)
        self._say(f"\n{len(accounts)} items, {len(self._attacks)} hostile ones and {jobs} jobs in {self._time()}:")
        for what, number in sorted(self._counted().items()):
            self._say(f"{number:>6} {what}")
        for problem in problems:
            self._console.print(f"FAILED: {problem}", style="red", markup=False, highlight=False)
        if problems:
            log = self._cloud.dispatch.log.read_text(errors="replace")[-6000:]
            self._say(f"The log of dispatch ends with:\n{log}")
            return 1
        self._say("\nEvery item ended as it must, and no log and no message contains a key.")
        return 0

    def _progress(self, now: str) -> None:
        """Print how far the items are, every few seconds."""
        if time.monotonic() - self._reported < _REPORT_EVERY:
            return
        self._reported = time.monotonic()
        done = sum(not account.problems() for account in self._accounts())
        hostile = sum(state in ("PENDING", "LEASED") for _, state, _ in self._hostile())
        killed = f"{self._count['passes killed halfway']} of {self._count['passes']} passes killed"
        self._say(f"{self._time()}  {done} of {len(self._kinds)} items ended, {hostile} hostile open, {killed}{now}")

    def _counted(self) -> Mapping[str, int]:
        calls = Counter[str]() if isinstance(self._cloud.pubsub, PubSubEmulator) else self._cloud.pubsub.calls
        again = calls["Push"] - calls["Publish"]  # each message has one subscription
        return {**self._count, "messages of Pub/Sub": calls["Publish"], "messages delivered again": again}

    def _time(self) -> str:
        return clock(time.monotonic() - self._began)

    def _ask(self, query: str, **variables: str) -> dict[str, Any]:
        """Send a query to W&B as a person's tool does, and try again after an error."""
        key = base64.b64encode(f"api:{API_KEY}".encode()).decode()
        headers = {"Content-Type": "application/json", "Authorization": f"Basic {key}"}
        body = json.dumps({"query": query, "variables": variables}).encode()
        for _ in range(20):
            status, answer = post(f"{self._cloud.wandb.url}/graphql", body, headers, 20)
            if status == 200:
                data: dict[str, Any] = json.loads(answer)["data"]
                return data
            time.sleep(0.5)
        raise RuntimeError(f"W&B answers {status}: {answer.decode(errors='replace')[:300]}")

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False)


_KEYS = {"the API key": API_KEY, "an item's key": ITEM_KEY}


def _signature(accounts: Iterable[Account], hostile: Iterable[tuple[str, str, bool]], still: object) -> object:
    """Return what must change for progress. An item that is popped and comes back, again and again, makes none."""
    ours = [(account.name, account.state.replace("LEASED", "PENDING"), list(account.jobs)) for account in accounts]
    return ours, [(name, state.replace("LEASED", "PENDING")) for name, state, _ in hostile], still


def _texts(item: QueueItem) -> list[str]:
    return [one.message for one in (item.error, *item.warnings) if one]
