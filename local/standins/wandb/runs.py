"""Runs as the SDK reports them, in memory: state, config, history, summary, console, files."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from local.standins.wandb.errors import invalid, not_found

HISTORY, EVENTS, SUMMARY, CONSOLE = "wandb-history.jsonl", "wandb-events.jsonl", "wandb-summary.json", "output.log"

ALIVE = frozenset({"running", "preempting"})
"""The states in which the server expects a heartbeat."""


@dataclass
class RunFile:
    """A file of a run. ``content`` is None before the upload."""

    name: str
    content: bytes | None
    updated_at: float


@dataclass
class Run:
    """A W&B run. ``name`` is what people call the run id. ``streams`` has the lines that the SDK streams.

    ``heartbeat_at`` is the time of the SDK's last request, None before the first.
    """

    entity: str
    project: str
    name: str
    display_name: str
    created_at: float
    heartbeat_at: float | None
    username: str
    state: str = "running"
    stopped: bool = False
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)
    files: dict[str, RunFile] = field(default_factory=dict)
    description: str | None = None
    notes: str | None = None
    group_name: str | None = None
    job_type: str | None = None
    sweep: str | None = None
    tags: list[str] = field(default_factory=list)
    host: str | None = None
    commit: str | None = None

    @property
    def path(self) -> str:
        """The full name: ``entity/project/name``."""
        return f"{self.entity}/{self.project}/{self.name}"

    @property
    def id(self) -> str:
        """The id that mutations use, for example stopRun."""
        return base64.b64encode(f"Run:v1:{self.name}:{self.project}:{self.entity}".encode()).decode()

    def lines(self, stream: str) -> list[str]:
        """Return the lines of one stream, in order."""
        return [line for _, line in sorted(self.streams.get(stream, {}).items())]

    def history(self) -> list[dict[str, Any]]:
        """Return the dictionaries that ``wandb.log`` was called with, one for each step."""
        return [json.loads(line) for line in self.lines(HISTORY)]


class Runs:
    """All runs. A run without a heartbeat for ``crash_after`` seconds has crashed. Methods raise Refused."""

    def __init__(self, clock: Callable[[], float], lock: threading.RLock, *, crash_after: float = 300.0) -> None:
        self.clock = clock
        self.crash_after = crash_after
        self._lock = lock
        self._numbers = count(1)
        self._runs: dict[tuple[str, str, str], Run] = {}

    def all(self) -> list[Run]:
        """Return every run with its current state, the oldest first."""
        with self._lock:
            return [self._seen_now(run) for run in self._runs.values()]

    def of(self, entity: str, project: str) -> list[Run]:
        """Return the runs of a project, the oldest first."""
        return [run for run in self.all() if (run.entity, run.project) == (entity, project)]

    def get(self, entity: str, project: str, name: str) -> Run | None:
        """Return the run with a name, with its current state."""
        with self._lock:
            run = self._runs.get((entity, project, name))
            return self._seen_now(run) if run else None

    def by_path(self, path: str) -> Run | None:
        """Return the run with a ``Run.path``, with its current state."""
        entity, project, name = path.split("/")
        return self.get(entity, project, name)

    def by_id(self, id_: str) -> Run:
        """Return the run with a ``Run.id``."""
        try:
            kind, version, name, project, entity = base64.b64decode(id_, validate=True).decode().split(":")
        except ValueError as error:
            raise invalid(f'"{id_}" is not the id of a run') from error
        run = self.get(entity, project, name)
        if run is None or (kind, version) != ("Run", "v1"):
            raise not_found(f"run {entity}/{project}/{name}")
        return run

    def upsert(
        self,
        entity: str,
        project: str,
        name: str | None,
        *,
        username: str,
        state: str = "running",
        alive: bool = True,
        config: Mapping[str, Any] | None = None,
        summary: Mapping[str, Any] | None = None,
        **details: Any,
    ) -> tuple[Run, bool]:
        """Create or change a run, and return whether it is new. An ended run can start again.

        ``alive``: the request comes from the run's own SDK, not from an edit. A pending run is not alive yet. ``details``
        are fields of Run; None does not change a field.
        """
        with self._lock:
            inserted = name is None or (entity, project, name) not in self._runs
            number = next(self._numbers) if inserted else 0
            name = name or f"run{number:05d}"
            if inserted:
                now = self.clock()
                self._runs[entity, project, name] = Run(entity, project, name, f"run-{number}", now, None, username)
            run = self._runs[entity, project, name]
            if alive and state != "pending":
                run.heartbeat_at = self.clock()
            run.state = state
            run.config = run.config if config is None else dict(config)
            run.summary = run.summary if summary is None else dict(summary)
            for key, value in details.items():
                if value is not None:
                    setattr(run, key, value)
            return run, inserted

    def stream(self, run: Run, update: Mapping[str, Any]) -> None:
        """Store an update of the SDK's file stream: lines by offset, preempting, and the end with its exit code."""
        with self._lock:
            run.heartbeat_at = self.clock()
            for name, chunk in (update.get("files") or {}).items():
                lines = run.streams.setdefault(name, {})
                lines.update(enumerate(chunk["content"], start=chunk["offset"]))
            if (update.get("files") or {}).get(SUMMARY):
                run.summary = json.loads(run.lines(SUMMARY)[-1])
            if update.get("preempting"):
                run.state = "preempting"
            elif update.get("complete"):
                self._end(run, int(update.get("exitcode") or 0))
            elif run.state not in ALIVE:
                run.state = "running"

    def stop(self, run: Run) -> None:
        """Ask a run to stop. The next answer to its stream reports that to its SDK."""
        with self._lock:
            run.stopped = True

    def delete(self, run: Run) -> None:
        """Delete a run."""
        with self._lock:
            self._runs.pop((run.entity, run.project, run.name), None)

    def register_files(self, run: Run, names: Sequence[str]) -> None:
        """Announce files that will be uploaded."""
        with self._lock:
            for name in names:
                run.files.setdefault(name, RunFile(name, None, self.clock()))

    def upload(self, run: Run, name: str, content: bytes) -> None:
        """Store an uploaded file."""
        with self._lock:
            run.files[name] = RunFile(name, content, self.clock())

    def _end(self, run: Run, exit_code: int) -> None:
        run.exit_code = exit_code
        run.state = "finished" if exit_code == 0 else "killed" if run.stopped else "failed"

    def _seen_now(self, run: Run) -> Run:
        if run.state in ALIVE and self.clock() > (run.heartbeat_at or run.created_at) + self.crash_after:
            run.state = "preempted" if run.state == "preempting" else "crashed"
        return run
