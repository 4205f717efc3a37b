"""Git repositories on this disk that people's tools and containers reach at https addresses.

There is no server. A Git configuration maps an address to a folder, and ``ssh`` to that folder to a local command. W&B's
client fetches only from https and ssh addresses.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

HOST = "git.example.com"
_SSH = '#!/bin/sh\n# Called as `ssh HOST COMMAND`; the host is this machine.\nfor command; do :; done\nexec sh -c "$command"\n'
_WHO = ("-c", "user.name=ada", "-c", "user.email=ada@example.com")


class Repositories:
    """Repositories below ``folder``. ``configure`` a home folder to find them. They need git."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, name: str, files: Mapping[str, str]) -> tuple[str, str]:
        """Create a repository with one commit of these files. Return its address and the commit."""
        folder = self._folder / f"{name}.git"
        folder.mkdir(parents=True)
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        for command in (("init", "--quiet"), ("add", "."), (*_WHO, "commit", "--quiet", "--message", "Begin")):
            _git(folder, *command)
        return f"https://{HOST}/{folder.name}", _git(folder, "rev-parse", "HEAD")

    def configure(self, home: Path) -> None:
        """Make Git in a home folder find the repositories at their addresses."""
        if not self._folder.exists():
            return
        ssh = self._folder / "ssh"
        ssh.write_text(_SSH)
        ssh.chmod(0o755)
        (home / ".gitconfig").write_text(
            f'[url "ssh://git@{HOST}{self._folder}/"]\n\tinsteadOf = https://{HOST}/\n'
            f"[core]\n\tsshCommand = {ssh}\n[ssh]\n\tvariant = simple\n"
        )


def _git(folder: Path, *command: str) -> str:
    done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
