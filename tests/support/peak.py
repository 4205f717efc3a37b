"""The most memory that a process has taken, and programs that print theirs. Linux only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 400
"""MB that a pass may take, with everything that a function imports."""

_IMPORTS = """
import vertex_launch.functions, google.cloud.storage, google.cloud.aiplatform_v1, google.cloud.secretmanager_v1
from tests.support.peak import peak
"""


def peak(process: int | str = "self") -> int:
    """Return the most memory that a process has taken, in MB; what its parent took does not count."""
    status = Path(f"/proc/{process}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) // 1024


def run(program: str, *arguments: object, timeout: float = 120) -> list[str]:
    """Run a program in a process that has imported what a function imports; return the lines that it prints."""
    command = [sys.executable, "-c", _IMPORTS + program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()
