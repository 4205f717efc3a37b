"""`python -m vertex_launch`: the preflight, and the acceptance test in the user's own project."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vertex_launch import __version__
from vertex_launch.preflight import cli as preflight
from vertex_launch.verify import cli as verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m vertex_launch", description="Commands of vertex-launch.")
    parser.add_argument("--version", action="version", version=f"vertex-launch {__version__}")
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    for command in (preflight, verify):
        command.add(commands)
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help()
        return 2
    return int(given.run(given))


if __name__ == "__main__":
    sys.exit(main())
