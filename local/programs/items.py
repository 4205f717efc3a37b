"""What people see of the items in a local cloud: each with its last job, its run and what W&B says about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from local.machine.cloud import ENTITY, Cloud
from local.standins.vertex.jobs import ENDED
from vertex_launch.job import labels

STARTING = "Starting stand-ins for W&B and Google Cloud on this machine, and the functions …"
ENDED_STATES = frozenset(state.name.removeprefix("JOB_STATE_") for state in ENDED)


@dataclass(frozen=True)
class Item:
    """An item at one moment. Times are in Unix seconds; ``ended`` is None while something can still change."""

    id: str
    name: str
    queue: str
    state: str
    """PENDING, LEASED, CLAIMED or FAILED."""
    pushed: float
    ended: float | None
    messages: Sequence[str]
    """What W&B shows on the item: the message of a failure, then warnings."""
    jobs: Sequence[Mapping[str, Any]]
    """The oldest first, as ``Cloud.state`` returns them."""
    run_name: str
    """The id of its run, "" until W&B knows one."""
    run: Mapping[str, Any]

    @property
    def attempt(self) -> str:
        """The number of its last attempt, "" without a job."""
        return self.jobs[-1]["labels"][labels.ATTEMPT] if self.jobs else ""

    @property
    def job(self) -> str:
        """The state of its last job without JOB_STATE_, "" without a job."""
        return self.jobs[-1]["state"].removeprefix("JOB_STATE_") if self.jobs else ""

    @property
    def job_id(self) -> str:
        """The last digits of its last job's id, "" without a job."""
        return f"…{self.jobs[-1]['name'][-6:]}" if self.jobs else ""

    @property
    def region(self) -> str:
        """The region of its last job, "" without a job."""
        return self.jobs[-1]["name"].split("/")[3] if self.jobs else ""

    @property
    def metrics(self) -> str:
        """The last metrics of its run."""
        values = {name: value for name, value in (self.run.get("summary") or {}).items() if name[0] != "_"}
        return " ".join(f"{name}={value:.3g}" for name, value in values.items() if isinstance(value, float))

    def elapsed(self, now: float) -> str:
        """Return minutes and seconds from the push to the end, or until now."""
        return clock((self.ended or now) - self.pushed)

    def line(self) -> str:
        """Return the item in one line, without times."""
        job = f"job {self.job} in {self.region}" if self.jobs else ""
        attempt = f"attempt {self.attempt}" if self.attempt not in ("", "1") else ""
        run = f"run {self.run['state']}" if self.run else ""
        seen = ", ".join(part for part in (job, attempt, run, self.metrics) if part)
        return f"{self.name:<17} {self.queue:<10} {self.state:<7} {seen}".rstrip()


class Items:
    """Reads the items of a cloud again and again, and remembers when each of them ended."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._ended: dict[str, float] = {}

    def read(self, state: Mapping[str, Any]) -> list[Item]:
        """Return the items in what ``Cloud.state`` returned, in the order of their queues."""
        runs = {run["name"]: run for run in state["wandb"]["runs"]}
        jobs: dict[str, list[Mapping[str, Any]]] = {}
        for job in state["jobs"]:
            jobs.setdefault(job["labels"].get(labels.ITEM, ""), []).append(job)
        found = [(queue, item) for queue in state["wandb"]["queues"] for item in queue["items"]]
        return [self._item(queue, item, jobs, runs, state["wandb"]["now"]) for queue, item in found]

    def _item(
        self,
        queue: Mapping[str, Any],
        item: Mapping[str, Any],
        jobs: Mapping[str, Sequence[Mapping[str, Any]]],
        runs: Mapping[str, Mapping[str, Any]],
        now: float,
    ) -> Item:
        mine = jobs.get(labels.item_value(self._cloud.wandb.url, ENTITY, item["id"]), ())
        if mine and mine[-1]["ended_at"]:
            ended = mine[-1]["ended_at"]
        elif not mine and item["state"] == "FAILED":
            ended = self._ended.setdefault(item["id"], now)
        else:
            ended = None
        messages = [one["message"] for one in (item["error"], *item["warnings"]) if one]
        return Item(
            item["id"],
            item["name"] or item["id"],
            queue["name"],
            item["state"],
            item["created_at"],
            ended,
            messages,
            mine,
            item["run"] or "",
            runs.get(item["run"], {}),
        )


class Changes:
    """Finds what has changed between two looks, as one line each."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}
        self._messages: set[tuple[str, str]] = set()

    def lines(self, item: Item) -> list[str]:
        """Return the lines about an item that were not returned before."""
        found = []
        line = item.line()
        if self._shown.get(item.id) != line:
            self._shown[item.id] = line
            found.append(line)
        for message in item.messages:
            if (item.id, message) not in self._messages:
                self._messages.add((item.id, message))
                found.append(f"{item.name}: W&B shows: {' '.join(message.split())}")
        return found


def clock(seconds: float) -> str:
    """Return seconds as minutes and seconds: 01:05."""
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"
