"""Google's Pub/Sub emulator, which needs Java and the emulator's jar (gcloud components install pubsub-emulator).

It replaces ``local.standins.pubsub`` and has the same ``start``, ``stop`` and ``address``. Java is started directly, because
gcloud's wrapper leaves Java running when it ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from local.standins.processes import uninterrupted
from local.standins.web import free_port

_JARS = "platform/pubsub-emulator/lib/cloud-pubsub-emulator-*-all.jar"
_START_SECONDS = 30.0


class EmulatorMissing(Exception):
    """Java or the jar is missing. The message says which one, and how to install it."""


class EmulatorFailed(Exception):
    """Java ended or did not answer. The message has the end of its output."""


@dataclass(frozen=True)
class Installed:
    """The paths of Java and of the emulator's jar."""

    java: Path
    jar: Path


def find() -> Installed:
    """Find Java and the newest jar of the emulator, without calling gcloud. Raise EmulatorMissing."""
    java = shutil.which("java")
    if java is None:
        raise EmulatorMissing("Google's Pub/Sub emulator needs Java, and PATH has no java. Install Java")
    jars = [jar for root in _sdk_roots() for jar in sorted(root.glob(_JARS))]
    if not jars:
        raise EmulatorMissing(
            "Google's Pub/Sub emulator is not installed. Run `gcloud components install pubsub-emulator` "
            "or `apt-get install google-cloud-cli-pubsub-emulator`"
        )
    return Installed(Path(java), jars[-1])


def _sdk_roots() -> Iterator[Path]:
    gcloud = shutil.which("gcloud")
    if gcloud is not None:
        yield Path(gcloud).resolve().parents[1]
    yield Path("/usr/lib/google-cloud-sdk")
    yield Path.home() / "google-cloud-sdk"


class PubSubEmulator:
    """Google's emulator as a child process. ``address`` is the value of PUBSUB_EMULATOR_HOST."""

    def __init__(self, installed: Installed, port: int = 0) -> None:
        self._installed = installed
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Its address: ``127.0.0.1:port``."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start Java and wait until it answers, for 1 to 4 s. Raise EmulatorFailed."""
        with tempfile.TemporaryFile() as said:
            self._launch(said)
            end = time.monotonic() + _START_SECONDS
            while not self._answers():
                if self._process is None or self._process.poll() is not None or time.monotonic() > end:
                    self.stop()
                    said.seek(0)
                    text = said.read().decode(errors="replace")[-2000:]
                    raise EmulatorFailed(f"Google's Pub/Sub emulator did not start at {self.address}: {text}")
                time.sleep(0.05)

    def _launch(self, output: IO[bytes]) -> None:
        with uninterrupted():
            self._process = subprocess.Popen(
                [
                    self._installed.java,
                    "-Xmx128m",
                    "-XX:+UseSerialGC",
                    "-jar",
                    self._installed.jar,
                    "--host=127.0.0.1",
                    f"--port={self._port}",
                ],
                env={name: os.environ[name] for name in ("PATH", "HOME", "JAVA_HOME") if name in os.environ},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Stop Java and wait for its end."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/", timeout=1) as answer:
                return bool(answer.read().strip() == b"Ok")
        except OSError:
            return False
