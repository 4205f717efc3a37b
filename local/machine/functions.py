"""Runs the product's functions as the cloud does: each in a process of its own under functions-framework."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "local" / "config"
"""The two configuration files of the local cloud. Those at the root are the user's."""
_PATIENCE = 30.0
"""Seconds that a function may take to answer for the first time."""


class FunctionFailed(Exception):
    """A function's process ended or did not answer; the message has the end of its log."""


class Function:
    """One deployed function: ``start`` it, post to ``url``, ``kill`` it as a crash does, ``stop`` it.

    ``variables`` is its whole environment but for PATH and HOME. Its log goes to ``log``.
    """

    def __init__(self, target: str, signature: str, variables: Mapping[str, str], log: Path, port: int = 0) -> None:
        self._target = target
        self._signature = signature
        self._variables = dict(variables)
        self._log = log
        self._port = port or _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers: ``http://127.0.0.1:port``."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def log(self) -> Path:
        """The file that its output goes to."""
        return self._log

    def start(self) -> None:
        """Start the process; ``wait`` until it answers."""
        command = [sys.executable, "-m", "functions_framework", "--target", self._target]
        command += ["--source", str(ROOT / "main.py"), "--signature-type", self._signature]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        base = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**base, "PYTHONUNBUFFERED": "1", **self._variables},
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
                raise FunctionFailed(f"function {self._target} ended at its start:\n{self._tail()}")
            with contextlib.suppress(OSError):
                _probe(self.url)
                return
            time.sleep(0.05)
        raise FunctionFailed(f"function {self._target} did not answer within {_PATIENCE:.0f} s:\n{self._tail()}")

    def kill(self) -> None:
        """End the process and its workers at once, as a crash does."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """End the process and its workers."""
        self._signal(signal.SIGKILL)

    def _signal(self, which: signal.Signals) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, which)
        self._process.wait()
        self._process = None

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-3000:]


def _probe(url: str) -> None:
    """Ask for anything: every HTTP answer, also a refusal, means that the function is there."""
    try:
        with urlopen(url, timeout=5):
            pass
    except HTTPError as error:
        error.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
