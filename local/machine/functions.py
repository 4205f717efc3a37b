"""Run the functions as Cloud Functions does: each in a process of its own, served by functions-framework."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from local.machine.loopback import without_proxy
from local.standins.processes import uninterrupted
from local.standins.web import free_port

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "local" / "config"
"""The two configuration files of the local cloud. Those at the root are the user's."""
_PATIENCE = 30.0
"""Seconds that a function may take to answer for the first time."""


class FunctionFailed(Exception):
    """A function's process ended or did not answer. The message has the end of its log."""


class Function:
    """One deployed function: ``start`` it, post to ``url``, and ``stop`` it, which is what a crash does.

    ``variables`` is its environment in addition to PATH. Its output goes to ``log``, and its other files go to that folder.
    """

    def __init__(self, target: str, signature: str, variables: Mapping[str, str], log: Path, port: int = 0) -> None:
        self._target = target
        self._signature = signature
        self._variables = dict(variables)
        self._log = log
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address it answers on: ``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def log(self) -> Path:
        """The file with its output."""
        return self._log

    def start(self) -> None:
        """Start the process. ``wait`` returns when it answers."""
        command = [sys.executable, "-m", "functions_framework", "--target", self._target]
        command += ["--source", str(ROOT / "main.py"), "--signature-type", self._signature]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        # A killed function leaves files behind. They must not stay in the user's home and temporary folder.
        base = {
            "PATH": os.environ["PATH"],
            "PYTHONUNBUFFERED": "1",
            **dict.fromkeys(("HOME", "TMPDIR"), str(self._log.parent)),
        }
        with self._log.open("ab") as log, uninterrupted():
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**base, **without_proxy(self._variables), **self._variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait until it answers. Raises FunctionFailed."""
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise FunctionFailed(
                    f"function {self._target} ended while it started. Its log ends with:\n{self._tail()}"
                )
            with contextlib.suppress(OSError, http.client.HTTPException):
                _probe(self.url)
                return
            time.sleep(0.05)
        found = f"function {self._target} did not answer within {_PATIENCE:.0f} s"
        raise FunctionFailed(f"{found}. Its log ends with:\n{self._tail()}")

    def stop(self) -> None:
        """Kill the process and its workers."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def peak_memory(self) -> int:
        """Return the most bytes that a process of the function has had resident since its start (Linux)."""
        peaks = [0]
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended in the meantime
                group = int((path / "stat").read_text().rpartition(")")[2].split()[2])
                if self._process is not None and group == self._process.pid:
                    peak = re.search(r"VmHWM:\s*(\d+) kB", (path / "status").read_text())
                    peaks.append(int(peak[1]) * 1024 if peak else 0)
        return max(peaks)

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def _probe(url: str) -> None:
    """Send a request. Every HTTP answer, also a refusal, means that the function is ready."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/")
        connection.getresponse()
