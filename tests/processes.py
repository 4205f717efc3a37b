"""Dispatchers in processes of their own, which can be killed and paused, and which leave nothing behind.

They are forked from a server process that has imported the product and opened nothing yet: no thread, no channel, no file.
So a fresh dispatcher is there in a tenth of a second, and fork is sound, for gRPC begins in the child.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 30.0
"""Seconds after which a process that does not answer has failed."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["main", "tests.processes", *(f"vertex_launch.adapters.{name}" for name in ("record", "vertex_jobs", "wandb_queue"))]
)

_SET_BY_IMPORTS = ("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA",)
"""What the product sets in the environment when it is imported, which was done before the fork."""


class Dispatcher:
    """The function ``dispatch_now`` of ``main.py`` in a process of its own; ``variables`` is its whole environment.

    ``post`` sends it a request, ``answer`` waits for the status and the JSON of its answer. ``log`` gets its output.
    """

    def __init__(self, variables: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._connection, theirs = multiprocessing.Pipe()
        self._process = _FORKS.Process(target=_serve, args=(theirs, dict(variables), str(log)), daemon=True)
        self._process.start()
        theirs.close()

    def post(self, body: Mapping[str, Any] | None = None) -> None:
        """Send a request; the answer comes later, or never."""
        self._connection.send(dict(body or {}))

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Give status and JSON of the answer. Raises EOFError when the process has ended, TimeoutError."""
        if not self._connection.poll(PATIENCE):
            raise TimeoutError(f"no answer within {PATIENCE:.0f} s:\n{self.said()}")
        status, body = self._connection.recv()
        return status, body

    def kill(self) -> None:
        """End it at once, as a crash does, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        multiprocessing.connection.wait([self._process.sentinel], PATIENCE)

    def pause(self) -> None:
        """Stop it where it is."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a paused one go on."""
        self._signal(signal.SIGCONT)

    def was_killed(self) -> bool:
        """Say whether SIGKILL ended it; waits for its end."""
        self._process.join(PATIENCE)
        return bool(self._process.exitcode == -signal.SIGKILL)

    def close(self) -> None:
        """End it if it still runs."""
        self.kill()
        self._process.join(PATIENCE)
        self._process.close()
        self._connection.close()

    def said(self) -> str:
        """Give the end of its output."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def _signal(self, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid or 0, which)


def _serve(connection: Connection, variables: Mapping[str, str], log: str) -> None:
    """Be the function, as functions-framework serves it, for the requests that come through the connection."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    imported = {name: os.environ[name] for name in _SET_BY_IMPORTS if name in os.environ}
    os.environ.clear()
    os.environ.update(imported | dict(variables))
    from functions_framework import create_app

    client = create_app("dispatch_now", str(ROOT / "main.py")).test_client()
    with contextlib.suppress(EOFError):
        while True:
            response = client.post("/", json=connection.recv())
            connection.send((response.status_code, response.get_json()))


def marked(name: str, value: str) -> list[int]:
    """Find the processes whose environment has this variable, those that have left their process group, too."""
    mark = f"{name}={value}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # Processes come and go meanwhile, and those of other users cannot be read.
        with contextlib.suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def eventually(true: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Wait until something is true; says whether it became so in time (seconds)."""
    return any(true() for _ in _moments(patience))


def _moments(patience: float) -> Iterator[None]:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
