"""Fit a job's command to this container: jobs are made on Windows, from absolute paths, and of plain files."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

from vertex_launch.job.container.base import differs

PYTHON = re.compile(r"python(3(\.\d+)?)?")
ABSOLUTE = re.compile(r"[\\/]|[A-Za-z]:[\\/]")
PROGRAM = re.compile(r".*\.(py|ipynb|sh|bash)", re.IGNORECASE)


def fit(command: list[str], folder: Path) -> None:
    """Change words of a command that mean nothing here, and log each. ``folder`` is the one it starts in."""
    has_program = False  # a later absolute path can be one to write to
    for at, word in enumerate(command):
        name = interpreter(word, folder) if at == 0 else ""
        is_path = at == 0 or (PROGRAM.fullmatch(word) is not None and not has_program)
        change(command, at, name if PYTHON.fullmatch(name) else counterpart(word, folder, is_path) or name)
        if at == 0 and "/" not in command[0] and is_here(command[0], folder) and word != command[0]:
            command[0] = f"./{command[0]}"
        has_program = has_program or PROGRAM.fullmatch(word) is not None
    if command[0] == "py" and re.fullmatch(
        r"-3(\.\d+)?", command[1] if len(command) > 1 else ""
    ):  # the launcher of Windows
        version = command.pop(1)[1:]
        change(command, 0, f"python{version}")
    elif command[0] == "py" and not shutil.which("py"):
        change(command, 0, "python")
    first = folder / command[0]
    is_file = os.path.isfile(str(first))  # noqa: PTH113 - a Path raises an error for some words
    can_run = shutil.which(command[0]) or ("/" in command[0] and os.access(str(first), os.X_OK))
    if is_file and not can_run:
        runner = runner_of(first)
        if runner:
            differs("start", "", f"{command[0]} is a file, so {shlex.join(runner)} runs it")
            command[:0] = runner


def change(command: list[str], at: int, word: str) -> None:
    """Replace a word of a command unless the new one is empty or the same."""
    if word and word != command[at]:
        differs("start", "", f"{command[at]} is {word} in this container")
        command[at] = word


def is_here(word: str, folder: Path) -> bool:
    """Return whether a word is a path that exists; too long a word is none."""
    return os.path.exists(os.path.join(str(folder), word))  # noqa: PTH110, PTH118 - a Path raises an error for some words


def interpreter(word: str, folder: Path) -> str:
    """Return the name of a program that another system has under a path or with .exe, empty for a program of this one."""
    if is_here(word, folder) or shutil.which(word):
        return ""
    name = re.split(r"[\\/]", word)[-1]
    plain = re.sub(r"\.exe\Z", "", name, flags=re.IGNORECASE)
    if PROGRAM.fullmatch(plain) or not (plain != name or ABSOLUTE.match(word)):
        return ""
    return plain.lower() if PYTHON.fullmatch(plain.lower()) else plain


def counterpart(word: str, folder: Path, is_path: bool) -> str:
    """Return the file of the code that a word means on another system, empty if there is none or the word needs none.

    Of an absolute path the longest end that the code has is meant, if the word ``is_path`` of the program.
    """
    is_absolute = bool(ABSOLUTE.match(word))
    if len(word) > 1000 or not (is_absolute or "\\" in word) or is_here(word, folder):
        return ""
    parts = [part for part in re.split(r"[\\/]+", word) if part not in ("", ".") and not part.endswith(":")]
    for start in range(len(parts)) if is_absolute and is_path else [0][: not is_absolute]:
        if ".." not in parts[start:] and is_here("/".join(parts[start:]), folder):
            return "/".join(parts[start:])
    return ""


def runner_of(program: Path) -> list[str]:
    """Return the command that runs a file, by its first line or its name, empty if neither says."""
    with program.open("rb") as file:
        first = file.readline(200).decode(errors="replace").strip()
    if first.startswith("#!"):
        return shlex.split(first[2:])
    kind = program.suffix.lower()
    return {".py": ["python"], ".ipynb": ["python"], ".sh": ["sh"], ".bash": ["bash"]}.get(kind, [])
