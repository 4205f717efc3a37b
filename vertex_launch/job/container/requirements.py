"""Install what the code of a job requires."""

# ruff: noqa: S603 - no shell is involved
from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

from vertex_launch.job.container.base import KEY, USER_OF_URL, hide, masked, run, say, shared, warn

NO_PIP = "No module named pip"
# Like `python -m pip`, but without the folder of the code on the path.
RUN_PIP = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; runpy.run_module('pip', None, '__main__', True)"
)

# Prints where packages go if the user may not write to those of this Python: the user's folder if possible, else argv[1].
USER_BASE = """
import os, site, sys, sysconfig
def can_write(path):
    while not os.path.exists(path):
        path = os.path.dirname(path) or "/"
    return os.access(path, os.W_OK)
if not all(map(can_write, map(sysconfig.get_path, ("purelib", "platlib")))):
    print(site.getuserbase() if can_write(site.getuserbase()) else sys.argv[1])
"""

REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(\[[^]]*\])?\s*([^;]*)(;.*)?")
PIN = re.compile(r"===?\s*[^,*\s]+\s*|@.+")
OF_A_FILE = re.compile(r"(-r|--requirement|-c|--constraint|-f|--find-links|-e|--editable)[ =]*(.+)")
VARIABLE = re.compile(r"\x24\{([A-Z0-9_]+)\}")
TORCH = re.compile(r"torch(?:vision|audio)?==\d+\.\d+\.\d+(?:\+(cu\d+|cpu))?")


def pip(python: str, arguments: list[str], folder: Path, **variables: str) -> tuple[int, str]:
    """Run ``pip install``, even if the image's system manages its packages (PEP 668): this is only a container."""
    settings = {f"PIP_{name}": "1" for name in ("BREAK_SYSTEM_PACKAGES", "DISABLE_PIP_VERSION_CHECK", "NO_INPUT")}
    settings.update(PIP_PROGRESS_BAR="off", PIP_ROOT_USER_ACTION="ignore")  # older pips ignore unknown ones
    return run([python, "-c", RUN_PIP, "install", *arguments], folder, {**settings, **variables})


def find_room(python: str, work: Path) -> None:
    """Set a folder for packages, also for the program, if the user may not write to those of its Python."""
    command = [python, "-c", USER_BASE, str(work / "user")]
    base = subprocess.check_output(command, cwd=str(work / "private"), env=shared(), encoding="utf-8").strip()
    if base:
        os.environ.update(PYTHONUSERBASE=base, PATH=f"{base}/bin:{os.environ.get('PATH', os.defpath)}")


def read_requirements(path: Path, top: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """Return the lines of a requirements file and of those that it refers to, without syntax that pip takes only in a file.

    pip runs in ``top`` and searches editable projects there, else beside the file like all other paths. ``above`` are the
    files that referred to this one.
    """
    if not path.is_file():
        warn("requirements", "VL-BOOT-REQUIREMENTS", f"{path.name} does not exist")
        return []
    if path.resolve() in above:
        return []
    data, lines, known = path.read_bytes(), [], shared()
    code = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # PowerShell writes the first
    for raw in data.decode(code, "replace").replace("\r\n", "\n").replace("\\\n", " ").splitlines():
        line = re.sub(r"(\A|\s)#.*|\s--hash[ =]\S+|\A--require-hashes\b", "", raw).strip()
        if KEY in VARIABLE.findall(line):
            warn("requirements", "VL-BOOT-REQUIREMENTS", f"{path.name} refers to {KEY}, which pip does not get")
        line = VARIABLE.sub(lambda found: known.get(found[1], found[0]), line)
        hide(*(word for user in USER_OF_URL.findall(line) for word in user.split(":") if len(word) > 15))
        other = OF_A_FILE.fullmatch(line)
        if other and ":" not in other[2]:  # not a URL
            kind, near = other[1].strip("-")[0], path.parent / other[2]
            if kind == "r":
                lines += read_requirements(near, top, (*above, path.resolve()))
                continue
            if kind == "c" and not near.is_file():
                warn("requirements", "VL-BOOT-REQUIREMENTS", f"{near.name} does not exist")
                continue
            if kind == "e":
                line = line if (top / other[2]).exists() else f"-e {near}"
            elif near.exists():
                line = f"-{kind} {shlex.quote(str(near))}"
        lines += [line] if line else []
    return lines


def install_requirements(frozen: Path, code: Path, folder: Path, python: str) -> None:
    """Install what W&B's own bootstrap would. What fails is reported by name and is not fatal.

    That is the frozen list without dependencies, or the packages in the code's requirements.txt, in their frozen versions.
    ``wandb job create`` does not freeze: a list with open versions needs its dependencies, an empty one does not count.
    """
    lines, pins = read_requirements(frozen, folder), {}

    def name_of(match: re.Match[str]) -> str:
        return re.sub(r"[-_.]+", "-", match[1]).lower()

    for match in map(REQUIREMENT.fullmatch, lines):
        if match and PIN.fullmatch(match[3]):
            pins[name_of(match)] = match[3]
    alone = ["--no-deps"] if len(pins) == len(lines) else []
    errors = folder
    own = next((place / "requirements.txt" for place in (folder, code) if (place / "requirements.txt").is_file()), None)
    if own:
        folder = own.parent
        lines, alone = read_requirements(own, folder), []
        for index, match in enumerate(map(REQUIREMENT.fullmatch, lines)):
            if match and name_of(match) in pins:
                lines[index] = f"{match[1]}{match[2] or ''}{pins[name_of(match)]}{match[4] or ''}"
    elif not lines and (folder / "pyproject.toml").is_file():
        lines, alone = ["."], []
    options: list[str] = []
    torch: list[str] = []
    apart: list[str] = []  # if git fetches packages, pip does not report which one failed
    rest: list[str] = []
    for line in lines:
        variant = TORCH.match(line)
        if variant and variant[1]:
            options.append(f"--extra-index-url=https://download.pytorch.org/whl/{variant[1]}")
        if re.match("-(?!e|r|-editable|-requirement)", line):
            try:
                options += shlex.split(line)
            except ValueError as error:
                warn("requirements", "VL-BOOT-REQUIREMENTS", f"skipped: {line} ({error})")
        else:  # no index has development versions of wandb
            kind = torch if variant else apart if "git+" in line else rest
            kind.append(re.sub(r"\Awandb==.*dev.*", "wandb", line))
    say("requirements", f"installing {len(torch + apart + rest)} packages")
    failed = [line for some in (rest, apart) for line in install(some, [*options, *alone], python, folder)]
    failed += install(torch, options, python, folder)
    (errors / "_wandb_bootstrap_errors.json").write_text(json.dumps({"pip": list(map(masked, failed))}))
    if failed:
        lost = f"failed to install: {', '.join(failed)}; the program starts without them"
        warn("requirements", "VL-BOOT-REQUIREMENTS", lost)


def install(wanted: list[str], options: list[str], python: str, folder: Path) -> list[str]:
    """Install requirements and return those that failed. If pip refuses them together, try those that it names alone."""
    if not wanted:
        return []
    arguments = [word for line in wanted for word in (line.split(None, 1) if line.startswith("-") else [line])]
    status, output = pip(python, [*options, *arguments], folder)
    if status == 0:
        return []
    if len(wanted) == 1 or NO_PIP in output or "Retry(total=0" in output:  # the last: no index is reachable
        return wanted
    lines = re.findall(r".*(?:ERROR|error):.*", output) + re.findall(r"Collecting (.*)", output)[-1:]
    errors = set(re.findall(r"[\w.-]+", " ".join(lines)))
    named = [line for line in wanted if re.split(r"[^\w.-]", line)[0] in errors] or wanted
    parts = [[line for line in wanted if line not in named], *([line] for line in named)]
    return [line for part in parts for line in install(part, options, python, folder)]
