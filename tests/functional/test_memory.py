"""What a pass takes of memory and time when its ledger is damaged, large, or both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.memory import QUEUES, World, image_spec
from tests.support.numbers import FULL
from tests.support.peak import MOST, run
from vertex_launch import limits
from vertex_launch.state.ledger import Ledger, Waiting
from vertex_launch.state.record import LEDGER

MB = 1_000_000
JOB = '"projects/123456789012/locations/us-central1/customJobs/%d"'


def ledger(name: str, *entries: str) -> bytes:
    return f'{{"version":2,"{name}":{{{",".join(entries)}}}}}'.encode()


def many(entry: str, size: int = 12 * MB) -> list[str]:
    """Return entries of so many bytes together; ``%d`` stands for the number of each."""
    return [entry.replace("%d", str(number)) for number in range(size // (len(entry) + 5))]


def repeated(value: str, times: int = 880_000) -> str:
    """Return a JSON list."""
    return f"[{','.join([value] * times)}]"


def item(attempts: str, number: str = "1") -> str:
    names = f'"item":"i{number}","run":"r{number}","queue":"cpu","entity":"e","project":"p"'
    return f'"i{number}":{{{names},"claimed":true,"attempts":{attempts}}}'


def honest() -> bytes:
    attempt = f'{{"region":"us-central1","planned":1800000000.5,"job":{JOB},"state":"JOB_STATE_RUNNING"}}'
    waiting = '"UnVuUXVldWVJdGVtOj%d":{"since":1800000000.5,"seen":1800000000.5,"warned":["VL-QUOTA-CREATE: no quota"]}'
    opened, waits = (
        many(entry, 10**9)[:count] for entry, count in ((item(f"[{attempt}]", "%d"), 10_000), (waiting, 100_000))
    )
    return ledger("open", *opened)[:-1] + b"," + ledger("waiting", *waits).partition(b",")[2]


WAITING = '"i%d":{"since":1,"seen":1}'
WARNED = f'"i%d":{{"since":1,"seen":1,"warned":["{"x" * 4_800}\U0001f680"]}}'
ATTEMPTS = ",".join(many('{"number":1%d,"region":"a","planned":1}', 9 * MB))
LEDGERS: dict[str, Callable[[], bytes]] = {
    "open items without anything": lambda: ledger("open", *many('"i%d":{}')),
    "settled jobs without a time": lambda: ledger("settled", *many('"i%d":"x"')),
    "an item with attempts that are none": lambda: ledger("open", item(repeated("{}"))),
    "an item with many attempts": lambda: ledger("open", item(f"[{ATTEMPTS}]")),
    "warnings that are none": lambda: ledger("waiting", f'"i":{{"since":1,"seen":1,"warned":{repeated("1")}}}'),
    "creates without a time": lambda: ledger("submissions", f'"us-central1":{repeated("{}")}'),
    "items that wait": lambda: ledger("waiting", *many(WAITING, 9 * MB)),
    "items of version 1": lambda: ledger("open", *many('"i%d":{"region":"x","since":1}')).replace(b":2", b":1", 1),
    "a time that may be infinite": lambda: ledger("settled", *many('"i%d":1E100'), '"E999":1'),
    "texts": lambda: ledger("waiting", *many(WARNED, 25 * MB)),
    "nested": lambda: b'{"version":2,"x":%s}' % repeated('{"a":{"b":{}}}', 290_000).encode(),
    "ten thousand jobs and a hundred thousand items that wait": honest,
}

PASS = """
import sys, time
from pathlib import Path
from tests.support.memory import World, image_spec
world = World(max_jobs=20_000)
world.bucket.put("ledger.json", Path(sys.argv[1]).read_bytes())
good = [world.queue.push(queue, image_spec()) for queue in ("cpu", "gpu")]
began = time.process_time()
world.run()
print(peak())
print(time.process_time() - began)
print([world.queue.state(item) for item in good])
"""


@pytest.mark.parametrize("name", [*LEDGERS] if FULL else [*LEDGERS][::4])
def test_no_ledger_costs_much(name: str, tmp_path: Path) -> None:
    content = LEDGERS[name]()
    assert len(content) <= limits.LARGEST_LEDGER
    (tmp_path / "ledger").write_bytes(content)
    took, seconds, states = run(PASS, tmp_path / "ledger")
    assert int(took) < MOST
    assert float(seconds) < 60
    assert states == "['CLAIMED', 'CLAIMED']"


def test_what_a_pass_writes_the_next_one_can_read() -> None:
    world = World()
    warned = tuple(f"VL-X: {number} {'x' * 4_900}" for number in range(10))
    waiting = {
        f"Item-{number}": Waiting(since=1.8e9, seen=1.8e9 + number / 1e4, warned=warned) for number in range(1_200)
    }
    items = [world.queue.push(queue, image_spec()) for queue in QUEUES]
    world.run()
    known = world.ledger
    assert known.open.keys() == set(items)
    world.bucket.put(LEDGER, known.dump())
    record, (_, generation) = world.services().record, world.bucket.objects[LEDGER]
    known.waiting = waiting
    record.write(known, "pass", generation)
    written = world.bucket.objects[LEDGER][0]
    assert limits.LARGEST_LEDGER / 3 < len(written) <= limits.LARGEST_LEDGER
    read = Ledger.parse(written)
    assert read
    assert read.open == known.open
    assert "Item-1199" in read.waiting, "what was seen last stays"
    assert "Item-0" not in read.waiting
