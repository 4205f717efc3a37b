"""The processes of a test: functions that can be killed and paused, and commands. None of them outlives its test.

Functions are forked from a server process that has imported the product and has no threads, channels or files. So a new
function starts in a tenth of a second, and the fork is safe because gRPC starts in the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.support.peak import peak

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 30.0
"""Seconds after which a process without an answer has failed."""

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    [
        "main",
        "tests.support.processes",
        *(
            f"vertex_launch.adapters.{name}"
            for name in ("record_storage", "job_artifacts", "secrets", "vertex_jobs", "wandb_queue")
        ),
    ]
)

_SET_BY_IMPORTS = ("DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA",)
"""Variables that the product sets when it is imported, which happens before the fork."""


class Function:
    """The function ``dispatch_now`` of ``main.py`` in its own process, with ``variables`` as its environment.

    ``post`` sends a request. ``answer`` waits for the status and the JSON of the answer. ``log`` gets the output.
    """

    def __init__(self, variables: Mapping[str, str], log: Path) -> None:
        self._log = log
        self._connection, theirs = multiprocessing.Pipe()
        self._process = _FORKS.Process(target=_serve, args=(theirs, dict(variables), str(log)), daemon=True)
        self._process.start()
        theirs.close()

    def post(self, body: Mapping[str, Any] | None = None) -> None:
        """Send a request. The answer may come later or never."""
        self._connection.send(dict(body or {}))

    def answer(self) -> tuple[int, dict[str, Any]]:
        """Return status and JSON of the answer. Raise EOFError if the process has ended, or TimeoutError."""
        if not self._connection.poll(PATIENCE):
            raise TimeoutError(f"no answer within {PATIENCE:.0f} s:\n{self.said()}")
        status, body = self._connection.recv()
        return status, body

    def peak(self) -> int:
        """Return the most memory that it has taken, in MB."""
        return peak(self._process.pid or 0)

    def kill(self) -> None:
        """Kill it, like a crash, and wait until it is gone."""
        self._signal(signal.SIGKILL)
        multiprocessing.connection.wait([self._process.sentinel], PATIENCE)

    def pause(self) -> None:
        """Pause it."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Resume it after ``pause``."""
        self._signal(signal.SIGCONT)

    def was_killed(self) -> bool:
        """Wait for its end, and return whether SIGKILL caused it."""
        self._process.join(PATIENCE)
        return bool(self._process.exitcode == -signal.SIGKILL)

    def close(self) -> None:
        """End it if it still runs."""
        self.kill()
        self._process.join(PATIENCE)
        self._process.close()
        self._connection.close()

    def said(self) -> str:
        """Return the end of its output."""
        return self._log.read_text(errors="replace")[-4000:] if self._log.exists() else ""

    def _signal(self, which: signal.Signals) -> None:
        if self._process.pid is not None and self._process.is_alive():
            os.kill(self._process.pid, which)


def _serve(connection: Connection, variables: Mapping[str, str], log: str) -> None:
    """Serve the requests that arrive through the connection, like functions-framework."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    imported = {name: os.environ[name] for name in _SET_BY_IMPORTS if name in os.environ}
    os.environ.clear()
    os.environ.update(imported | {"TMPDIR": str(Path(log).parent)} | dict(variables))
    from functions_framework import create_app

    client = create_app("dispatch_now", str(ROOT / "main.py")).test_client()
    with contextlib.suppress(EOFError):
        while True:
            response = client.post("/", json=connection.recv())
            connection.send((response.status_code, response.get_json()))


class Command:
    """A command line, started like by a person whose home is ``folder``.

    ``variables`` is its environment in addition to PATH. Its orphaned processes become children of this process, even if
    they detach themselves. So ``left_behind`` finds all of them, and none outlives ``close``.
    """

    def __init__(self, command: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self._before = set(_children())
        self._log = folder / "output"
        _adopt_orphans(True)
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                cwd=ROOT,
                env={**environment, **(variables or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self) -> str:
        """Return all of its output so far."""
        return self._log.read_text(errors="replace")

    def says(self, words: str, patience: float) -> bool:
        """Wait until its output has these words, or until it has ended. Return whether the words came in time (seconds)."""
        return eventually(lambda: words in self.output() or self._process.poll() is not None, patience) and (
            words in self.output()
        )

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        """Send a signal like a terminal. SIGINT is Ctrl-C."""
        os.killpg(self._process.pid, number)

    def wait(self, patience: float) -> int:
        """Return its exit status. Raise TimeoutExpired after ``patience`` seconds."""
        return self._process.wait(patience)

    def left_behind(self, patience: float = 3.0) -> list[str]:
        """Return the command lines of the processes that outlive it, after a moment for those that are ending."""
        eventually(lambda: not self._orphans(), patience)
        return [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ") for pid in self._orphans()]

    def close(self) -> None:
        """End it and everything that it has started."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        while orphans := self._orphans():
            for pid in orphans:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        _adopt_orphans(False)

    def _orphans(self) -> list[int]:
        """Return its processes that are now children of this one. Reap those that have ended."""
        orphans = {pid: state for pid, state in _children().items() if pid not in {self._process.pid, *self._before}}
        for pid in [pid for pid, state in orphans.items() if state == "Z"]:
            os.waitpid(pid, 0)
            del orphans[pid]
        return list(orphans)


def _children() -> dict[int, str]:
    """Map the children of this process to their states, as ``ps`` shows them."""
    children = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended in the meantime
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid():
                children[int(path.parent.name)] = state
    return children


def _adopt_orphans(yes: bool) -> None:
    """Become the parent of orphaned descendants instead of init (Linux: PR_SET_CHILD_SUBREAPER), or stop to be it."""
    if ctypes.CDLL(None).prctl(36, int(yes), 0, 0, 0):
        raise OSError("this process cannot adopt orphans")


def eventually(true: Callable[[], object], patience: float = PATIENCE) -> bool:
    """Wait until something is true. Return whether it became true in time (seconds)."""
    return any(true() for _ in _moments(patience))


def _moments(patience: float) -> Iterator[None]:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        yield
        time.sleep(0.02)
