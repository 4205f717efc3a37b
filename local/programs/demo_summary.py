"""What the demo showed, as one line for each feature, and what it should have shown and did not."""

from __future__ import annotations

import re
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local.machine.cloud import ENTITY
from local.programs.demo_items import PUSHES
from local.programs.fills import Span, fills
from local.programs.items import Item

_SENTENCE = re.compile(r"(?<=[.?]) +")


@dataclass(frozen=True)
class Evidence:
    """What is known at the end. ``ticks`` are pairs of a time and the job whose end a tick reports, "" for the scheduler."""

    items: Mapping[str, Item]
    jobs: Collection[Any]
    """Vertex AI's jobs, without those that schedule sweeps."""
    ticks: Sequence[tuple[float, str]]
    slots: int
    most_active: int
    tick_every: float
    state: Mapping[str, Any]


def summarize(evidence: Evidence) -> tuple[list[tuple[str, str]], list[str]]:
    """Return pairs of a feature and what became of it, and the failures."""
    items = evidence.items
    groups = {
        "Training images": [push for push in PUSHES if push.name.startswith(("train-", "quick-"))],
        "Failed jobs": [push for push in PUSHES if push.item == "FAILED" and push.job],
        "Refused items": [push for push in PUSHES if push.item == "FAILED" and not push.job],
    }
    number = {topic: sum(push.name in items for push in pushes) for topic, pushes in groups.items()}
    retried = items.get("preempted-twice")
    regions = " → ".join(job["name"].split("/")[3] for job in retried.jobs) if retried else "none"
    made, missing = _job_artifacts(evidence)
    sweep, unfinished = _sweep(evidence)
    filled, slow = _slots(evidence)
    lines = [
        ("Training images", f"{number['Training images']} jobs with arguments, variables and priorities"),
        ("Jobs as artifacts", made),
        ("Sweep", sweep),
        ("Preemption", f"one run continued over {len(retried.jobs) if retried else 0} jobs: {regions}"),
        ("Run stopped in W&B", _quoted(evidence, "stopped-by-hand", "stopped")),
        (
            "Failed jobs",
            f"{number['Failed jobs']}, each with its reason on the item: {_quoted(evidence, 'out-of-memory', 'memory')}",
        ),
        ("Refused items", f"{number['Refused items']}, before any job: {_quoted(evidence, 'camel-case', 'unknown')}"),
        ("Slots", filled),
    ]
    return lines, [*missing, *unfinished, *slow]


def _quoted(evidence: Evidence, name: str, word: str) -> str:
    """Return the last sentence with a word, or else the first, of what W&B shows on an item."""
    item = evidence.items.get(name)
    sentences = _SENTENCE.split(" ".join(item.messages)) if item else [""]
    return f"“{next((one for one in reversed(sentences) if word in one), sentences[0])}”"


def _job_artifacts(evidence: Evidence) -> tuple[str, list[str]]:
    """Check that W&B knows the one run of each job artifact."""
    names = [push.name for push in PUSHES if push.made and push.name in evidence.items]
    users = {one["path"]: one["used_by"] for one in evidence.state["wandb"]["artifacts"] if one["type"] == "job"}
    found = {name: len(users.get(f"{ENTITY}/demo/{name}:v0", [])) for name in names}
    failures = [f"W&B knows {runs} runs of job {name} instead of one" for name, runs in found.items() if runs != 1]
    return f"{', '.join(names)}: W&B links each to its run", failures


def _sweep(evidence: Evidence) -> tuple[str, list[str]]:
    """Check that the sweep is over."""
    sweeps = evidence.state["wandb"]["sweeps"]
    failures = [
        f"sweep {one['name']} is {one['state']} instead of FINISHED" for one in sweeps if one["state"] != "FINISHED"
    ]
    return ", ".join(f"a scheduler and {len(one['runs'])} runs: {one['state']}" for one in sweeps) or "none", failures


def _slots(evidence: Evidence) -> tuple[str, list[str]]:
    """Check that the ends of jobs, and not the clock, filled the slots that became free while items waited."""
    begins = {job.name: job.create_time.timestamp() for job in evidence.jobs}
    spans = [Span(begins[job.name], job.end_time.timestamp() if job.end_time else None) for job in evidence.jobs]
    first = [(item.pushed, item.jobs[0]["name"]) for item in evidence.items.values() if item.jobs]
    waits = [Span(pushed, begins[name]) for pushed, name in first if name in begins]
    scheduled = [moment for moment, ended in evidence.ticks if not ended]
    found = fills(spans, waits, evidence.slots)
    by_event = [fill for fill in found if fill.by_event(scheduled)]
    text = f"at most {evidence.most_active} of {evidence.slots} in use; {len(found)} became free while items waited"
    if not by_event:
        return text, [f"no job's end filled one of the {len(found)} slots that became free while items waited"]
    median = statistics.median(fill.seconds for fill in by_event)
    text += (
        f". The ends of jobs refilled {len(by_event)} of them without a scheduled tick (one every "
        f"{evidence.tick_every:g} s), in {median:.1f} s (median)"
    )
    few = 2 * len(by_event) < len(found)
    return text, [f"the ends of jobs filled only {len(by_event)} of {len(found)} free slots"] if few else []
