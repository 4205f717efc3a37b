"""Small edits of the source that a maintainer could make by mistake: one expression of one function, replaced.

``python -m tests.simulation.edits`` prints which of 2,000 seeds find each of them, at most five, and writes the first one
to ``edits.json``. It takes long: each edit that no seed finds costs all of them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import textwrap
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.seeds import MOST, broken
from vertex_launch.adapters import wandb_answer, wandb_queue, wandb_reads, wandb_server
from vertex_launch.dispatch import lease, look, perform, reconcile, settle, start, watch
from vertex_launch.job import readback, retry
from vertex_launch.state import ledger, record

FILE = Path(__file__).with_name("edits.json")


@dataclass(frozen=True)
class Edit:
    """In this function of ``owner``, ``old`` becomes ``new``."""

    owner: Any
    function: str
    old: str
    new: str

    @property
    def name(self) -> str:
        return f"{self.owner.__name__.rpartition('.')[2]}.{self.function}: {self.old} -> {self.new}"

    def apply(self, patch: pytest.MonkeyPatch) -> None:
        real = inspect.getattr_static(self.owner, self.function)
        function = getattr(real, "fget", None) or getattr(real, "__func__", None) or real
        function = inspect.unwrap(function)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.name}: the source has changed, and this edit has to follow it"
        made: dict[str, Any] = {}
        code = compile(f"from __future__ import annotations\n{source.replace(self.old, self.new)}", self.name, "exec")
        exec(code, function.__globals__, made)
        patch.setattr(self.owner, self.function, made[self.function])
        for module in [one for name, one in list(sys.modules.items()) if name.startswith("vertex_launch.")]:
            if getattr(module, self.function, None) is real:  # imported by its name
                patch.setattr(module, self.function, made[self.function])


Q, R, S = wandb_queue.WandbQueue, wandb_reads.WandbReads, wandb_server.WandbServer
EDITS = [
    # Adapters
    Edit(S, "_batch", "min(self._timeout[1], within)", "self._timeout[1]"),
    Edit(S, "_batch", "answers = [Result(error=error.reason, refused=True)]", "answers = [Result({'success': True})]"),
    Edit(S, "_repeat", "if left <= 0", "if False"),
    Edit(S, "_send", "self._key.renew(key)", "key"),
    Edit(Q, "pop", "answers.pop(0)", "answers.pop()"),
    Edit(Q, "ack", ", within=within", ""),
    Edit(Q, "_update", "[_succeeded(answer) for", "[True for"),
    Edit(Q, "_update", ", within=until - self._clock()", ""),
    Edit(wandb_queue, "_succeeded", "is True", "is not None"),
    Edit(R, "_run_views", 'elif answer.lacks("run")', "else"),
    Edit(R, "_run_views", 'found.get("stopped")', 'found.get("stop")'),
    Edit(wandb_reads, "_agent_views", 'agent.get("stopPolling")', 'agent.get("stop_polling")'),
    Edit(R, "_answer", "answers[1 + by_id :]", "answers[1:]"),
    Edit(wandb_answer, "result_of", "value = data.get(alias)", "value = next(iter(data.values()), None)"),
    # Dispatch
    Edit(lease.Queues, "lease", "pass_.in_time and ", ""),
    Edit(look, "_listed", "- CLOCK_SKEW", "+ CLOCK_SKEW"),
    Edit(look, "look", ", *ledger.regions]", "]"),
    Edit(ledger.Ledger, "regions", ", *self.submissions]", "]"),
    Edit(look, "_get_unlisted", "entry.job not in jobs or ", ""),
    Edit(perform, "claim", "pass_.held.save()", "pass"),
    Edit(perform, "claim", "until - pass_.now)", "pass_.settings.timeouts.read)"),
    Edit(perform, "_reject", "until - pass_.now)", "pass_.settings.timeouts.read)"),
    Edit(perform, "_tell", "(known or settle.late) and not", "not"),
    Edit(perform, "_cancel", "pass_.ledger.lose(item, pass_.now)", "pass_.ledger.drop(item)"),
    Edit(perform, "_create", "min(until, pass_.held.lock.expires)", "until"),
    Edit(perform, "register", 'known if not stopped and known in seen.agents else ""', "known"),
    Edit(perform, "send_warnings", "if known:", "if False:"),
    Edit(reconcile, "_lapsed", " and clear", ""),
    Edit(reconcile, "_lapsed", "job.attempt >= entry.current.number", "True"),
    Edit(reconcile, "_choose", "(-job.attempt, _is_dying(job), job.created, job.name)", "(job.created, job.name)"),
    Edit(reconcile, "_judge", "if item and item.run == entry.run and", "if item and"),
    Edit(reconcile, "_watched", "if entry.run_id not in runs", "if False"),
    Edit(reconcile, "_stopped", "if waits else", "if not waits else"),
    Edit(settle, "decide", "now - since < settings.timeouts", "now - entry.current.planned < settings.timeouts"),
    Edit(settle, "_began", "- CLOCKS", "- 1e9"),
    Edit(settle, "_another", "or current.cancelled", ""),
    Edit(start, "due_retries", "if entry.retry_at > pass_.now", "if False"),
    Edit(start, "_check_waiting", "if waiting and now < waiting.until", "if False"),
    Edit(start, "with_stops", "run.id != derived_run", "run.id == derived_run"),
    Edit(start.Room, "of", "wanted - pass_.report.creates", "wanted"),
    Edit(watch, "find", "for name in names]", "for name in names[:1]]"),
    # Job
    Edit(retry, "next_attempt", 'environment.RESUME: "allow"', 'environment.RESUME: "never"'),
    Edit(retry, "next_attempt", "labels.KEY not in job.labels and ", ""),
    Edit(readback, "managed", "int(attempt) if attempt.isdecimal() else 1", "1"),
    # State
    Edit(record.Record, "take_lock", "if now < until", "if now < until - 20"),
    Edit(record.Record, "write", "stored.writer != pass_id", "False"),
    Edit(record.Held, "give_back", ", False", ", self.ledger.rebuild"),
    Edit(record.Held, "suspect", "not self._rebuilt and (not writer or writer != self._gave_back)", "True"),
    Edit(ledger.Ledger, "submissions_left", "now - MINUTE < at", "now - 1 < at"),
    Edit(ledger.Ledger, "settle", "self.settled |= dict", "self.settled = dict"),
    Edit(ledger.Ledger, "slots_used", "if not entry.current.ended", "if entry.job and not entry.current.ended"),
    Edit(ledger.Ledger, "prune", "now - waiting.seen < forget_waiting_after", "False"),
    Edit(ledger.OpenItem, "watch_stop", "known.current.stop_seen or now", "now"),
    Edit(ledger.OpenItem, "observe", "state_since=now", "state_since=0"),
    Edit(ledger.OpenItem, "created", "retry=None, ", ""),
]


def count(index: int, seeds: int, enough: int) -> tuple[Edit, list[int]]:
    """Return which of the first ``seeds`` find an edit, the first ``enough`` of them."""
    edit = EDITS[index]
    with closing(broken(edit, range(seeds))) as found:
        return edit, [seed for seed, _ in islice(found, enough)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.edits", description=__doc__)
    parser.add_argument("--seeds", type=int, default=MOST, help="how many worlds to try (default: %(default)s)")
    parser.add_argument("--enough", type=int, default=5, help="stop after so many that find it (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")
    given = parser.parse_args()
    known: dict[str, int] = {}
    with ProcessPoolExecutor(given.workers) as pool:
        every = range(len(EDITS))
        for edit, found in pool.map(count, every, [given.seeds] * len(EDITS), [given.enough] * len(EDITS)):
            print(f"{len(found)} seeds {found}: {edit.name}", flush=True)
            known |= {edit.name: found[0]} if found else {}
    FILE.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{len(known)} of {len(EDITS)} edits are found; their first seeds are in {FILE.name}")


if __name__ == "__main__":
    main()
