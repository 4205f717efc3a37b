"""Install what the code of a job requires."""

# ruff: noqa: S603 - no shell is involved
from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vertex_launch.job.container.base import KEY, USER_OF_URL, differs, hide, masked, run, say, shared
from vertex_launch.job.container.remotes import NoRemote, remote_url

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

# Prints the packages of this Python that are kept (a build for its CUDA, and frameworks that come with one), and those that the
# requirements in argv[1] replace.
PROBE = """
import json, re, sys
from importlib.metadata import distributions
try:
    from pip._vendor.packaging.requirements import Requirement
except ImportError:
    from packaging.requirements import Requirement
def plain(name):
    return re.sub("[-_.]+", "-", name).lower()
kept, replaced = {}, []
for found in distributions():
    name, version = plain(found.metadata["Name"] or ""), found.version or ""
    if "+" in version or name in ("torch", "torchvision", "torchaudio", "tensorflow", "jax", "jaxlib"):
        kept.setdefault(name, version)
for line in json.loads(sys.argv[1]):
    try:
        one = Requirement(line)
    except ValueError:
        continue
    name = plain(one.name)
    if name in kept and (not one.marker or one.marker.evaluate()):
        if one.url or not one.specifier.contains(kept[name], prereleases=True):
            replaced.append([name, kept.pop(name), line])
print(json.dumps([kept, replaced]))
"""
TOML = """
import json, sys
try:
    import tomllib
except ImportError:
    try:
        from pip._vendor import tomli as tomllib
    except ImportError:
        import tomli as tomllib
with open(sys.argv[1], "rb") as file:
    print(json.dumps(tomllib.load(file), default=str))
"""
REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)\s*(\[[^]]*\])?\s*([^;]*)(;.*)?")
PLAIN_PIN = re.compile(r"===?\s*[\w.!+-]+\s*")  # a constraint that pip cannot read would fail every package
PIN = re.compile(r"===?\s*[^,*\s]+\s*|@.+")
OVER_SSH = re.compile(r"git\+(ssh://[^\s#;]+|[\w.-]+@[\w.-]+:[^\s#;]+)")
OF_A_FILE = re.compile(r"(-r|--requirement|-c|--constraint|-f|--find-links|-e|--editable)[ =]*(.+)")
VARIABLE = re.compile(r"\x24\{([A-Z0-9_]+)\}")
TORCH = re.compile(r"torch(?:vision|audio)?==\d+\.\d+\.\d+(?:\+(cu\d+|cpu))?")


def pip(python: str, arguments: list[str], folder: Path, **variables: str) -> tuple[int, str]:
    """Install packages with uv or pip, even if the image's system manages its packages (PEP 668): this is only a container.

    uv is faster, but does not read pip's configuration, so that alone decides unless the image has no pip.
    """
    ask = [python, "-c", RUN_PIP, "config", "list"]
    uv = shutil.which("uv")
    if uv:
        asked = subprocess.run(ask, cwd=str(folder), env=shared(), capture_output=True, check=False)
        if asked.returncode or not asked.stdout.strip():
            status, output = uv_pip(uv, python, arguments, folder)
            if status == 0 or asked.returncode:
                return status, output
            say("requirements", "uv cannot install them, trying pip")
    settings = {f"PIP_{name}": "1" for name in ("BREAK_SYSTEM_PACKAGES", "DISABLE_PIP_VERSION_CHECK", "NO_INPUT")}
    settings.update(
        PIP_PROGRESS_BAR="off", PIP_ROOT_USER_ACTION="ignore", PIP_NO_CACHE_DIR="1"
    )  # older pips ignore unknown ones
    return run([python, "-c", RUN_PIP, "install", *arguments], folder, {**settings, **variables})


def uv_pip(uv: str, python: str, arguments: list[str], folder: Path) -> tuple[int, str]:
    """Install packages with uv, from the indexes that pip's variables name and with pip's way to choose among them."""
    command, known = [uv, "pip", "install", "--python", python, "--break-system-packages", "--no-progress"], shared()
    if known.get("PYTHONUSERBASE") and "--target" not in arguments:
        command += ["--prefix", known["PYTHONUSERBASE"]]
    if known.get("PIP_NO_INDEX", "").lower() in ("1", "true", "yes", "on"):
        command.append("--no-index")
    names = {
        "PIP_INDEX_URL": "UV_INDEX_URL",
        "PIP_EXTRA_INDEX_URL": "UV_EXTRA_INDEX_URL",
        "PIP_FIND_LINKS": "UV_FIND_LINKS",
    }
    settings = {mine: known[name] for name, mine in names.items() if known.get(name) and mine not in known}
    settings.update(UV_NO_CACHE="1", UV_PYTHON_DOWNLOADS="never", UV_INDEX_STRATEGY="unsafe-best-match")
    return run([*command, *arguments], folder, settings)


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
        differs("requirements", "VL-BOOT-REQUIREMENTS", f"{path.name} does not exist")
        return []
    if path.resolve() in above:
        return []
    data, lines, known = path.read_bytes(), [], shared()
    code = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"  # PowerShell writes the first
    for raw in data.decode(code, "replace").replace("\r\n", "\n").replace("\\\n", " ").splitlines():
        line = re.sub(r"(\A|\s)#.*|\s--hash[ =]\S+|\A--require-hashes\b", "", raw).strip()
        if KEY in VARIABLE.findall(line):
            differs("requirements", "VL-BOOT-REQUIREMENTS", f"{path.name} refers to {KEY}, which pip does not get")
        line = VARIABLE.sub(lambda found: known.get(found[1], found[0]), line)
        hide(*(word for user in USER_OF_URL.findall(line) for word in user.split(":") if len(word) > 15))
        other = OF_A_FILE.fullmatch(line)
        if other and ":" not in other[2]:  # not a URL
            kind, near = other[1].strip("-")[0], path.parent / other[2]
            if kind == "r":
                lines += read_requirements(near, top, (*above, path.resolve()))
                continue
            if kind == "c" and not near.is_file():
                differs("requirements", "VL-BOOT-REQUIREMENTS", f"{near.name} does not exist")
                continue
            if kind == "e":
                line = line if (top / other[2]).exists() else f"-e {near}"
            elif near.exists():
                line = f"-{kind} {shlex.quote(str(near))}"
        lines += [line] if line else []
    return lines


def install_requirements(frozen: Path, code: Path, folder: Path, python: str, bases: Mapping[str, str]) -> None:
    """Install what W&B's own bootstrap would. What fails is reported by name and is not fatal.

    That is the frozen list without dependencies, or the packages in the code's requirements.txt, in their frozen versions.
    ``wandb job create`` does not freeze: a list with open versions needs its dependencies, an empty one does not count.
    ``bases`` are the URLs of hosts that are reached over SSH elsewhere.
    """
    lines, pins = read_requirements(frozen, folder), {}
    for match in map(REQUIREMENT.fullmatch, lines):
        if match and PIN.fullmatch(match[3]):
            pins[plain_name(match[1])] = match[3]
    alone = ["--no-deps"] if len(pins) == len(lines) else []
    errors, project = folder, None
    own = next((place / "requirements.txt" for place in (folder, code) if (place / "requirements.txt").is_file()), None)
    if own:
        folder = own.parent
        lines, alone = read_requirements(own, folder), []
        for index, match in enumerate(map(REQUIREMENT.fullmatch, lines)):
            if match and plain_name(match[1]) in pins:
                lines[index] = f"{match[1]}{match[2] or ''}{pins[plain_name(match[1])]}{match[4] or ''}"
    elif not lines and (folder / "pyproject.toml").is_file():
        lines, alone, project = ["."], [], read_project(folder, python)
    if project is not None and not is_package(folder):
        lines, project = project, None
    options, wanted = split_options([without_ssh(line, bases) for line in lines])
    options += keep(wanted, python, folder)
    say("requirements", f"installing {len(wanted)} packages")
    torch = [
        line for line in wanted if alone and TORCH.match(line)
    ]  # W&B's bootstrap wants the dependencies of these alone
    failed = install([line for line in wanted if line not in torch], [*options, *alone], python, folder)
    failed += install(torch, options, python, folder)
    if failed and project:
        found = "the project in pyproject.toml cannot be installed, only its dependencies"
        differs("requirements", "VL-BOOT-REQUIREMENTS", found)
        failed = install([without_ssh(line, bases) for line in project], options, python, folder)
    (errors / "_wandb_bootstrap_errors.json").write_text(json.dumps({"pip": list(map(masked, failed))}))
    if failed:
        lost = f"failed to install: {', '.join(failed)}; the program starts without them"
        differs("requirements", "VL-BOOT-REQUIREMENTS", lost)


def plain_name(name: str) -> str:
    """Return the normal form of a package's name."""
    return re.sub(r"[-_.]+", "-", name).lower()


def split_options(lines: list[str]) -> tuple[list[str], list[str]]:
    """Return the options among the lines of a list, and its requirements."""
    options: list[str] = []
    wanted: list[str] = []
    for line in lines:
        variant = TORCH.match(line)
        if variant and variant[1]:
            options.append(f"--extra-index-url=https://download.pytorch.org/whl/{variant[1]}")
        if re.match("-(?!e|r|-editable|-requirement)", line):
            try:
                options += shlex.split(line)
            except ValueError as error:
                differs("requirements", "VL-BOOT-REQUIREMENTS", f"skipped: {line} ({error})")
        else:  # no index has development versions of wandb
            wanted.append(re.sub(r"\Awandb==.*dev.*", "wandb", line))
    return options, wanted


def without_ssh(line: str, bases: Mapping[str, str]) -> str:
    """Return a requirement that git fetches over HTTPS, because a job has no SSH key."""
    found = OVER_SSH.search(line)
    if not found:
        return line
    address, at, revision = found[1].rpartition("@")
    if not at or not re.search("[/:]", address.split("://")[-1]):  # the @ is that of the user
        address, at, revision = found[1], "", ""
    try:
        url = f"git+{remote_url(address, bases)[0]}{at}{revision}"
    except NoRemote as error:
        differs("requirements", "VL-BOOT-REQUIREMENTS", f"{line}: {error}")
        return line
    say("requirements", f"using {url} over HTTPS, because a job has no SSH key")
    return line[: found.start()] + url + line[found.end() :]


def ask_python(python: str, script: str, argument: str, folder: Path) -> Any:
    """Return what a script prints as JSON, None if it fails."""
    command = [python, "-c", "import sys; sys.path[:] = filter(None, sys.path)" + script, argument]
    asked = subprocess.run(
        command, cwd=str(folder), env=shared(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False
    )
    return json.loads(asked.stdout) if asked.returncode == 0 else None


def keep(wanted: list[str], python: str, folder: Path) -> list[str]:
    """Return the options that keep the frameworks of the image, which fit its GPUs, unless another version is required."""
    if not wanted:
        return []
    kept, replaced = ask_python(python, PROBE, json.dumps(wanted), folder) or ({}, [])
    for name, version, line in replaced:
        differs("requirements", "", f"{name} {version} of the image is replaced, because the job requires {line}")
    if not kept:
        return []
    differs("requirements", "", f"kept from the image: {', '.join(f'{name} {kept[name]}' for name in sorted(kept))}")
    return constrain(folder, [f"{name}=={version}" for name, version in kept.items()])


def constrain(folder: Path, lines: list[str]) -> list[str]:
    """Return the options that limit an installation to these versions; the file is beside the code."""
    with tempfile.NamedTemporaryFile("w", prefix="constraints-", suffix=".txt", delete=False) as file:
        file.write("\n".join([*lines, ""]))
    return ["-c", file.name]


def is_package(folder: Path) -> bool:
    """Return whether a pyproject.toml says how to build its project, or its modules lie where only a build finds them."""
    text = (folder / "pyproject.toml").read_text("utf-8", "replace")
    return bool(re.search(r"^\s*\[build-system\]", text, re.MULTILINE)) or any(
        (folder / name).exists() for name in ("setup.py", "setup.cfg", "src")
    )


def read_project(folder: Path, python: str) -> list[str]:
    """Return the dependencies of a project, from the sources that uv would take them from."""
    found = ask_python(python, TOML, str(folder / "pyproject.toml"), folder)
    if found is None:
        differs("requirements", "VL-BOOT-REQUIREMENTS", "pyproject.toml cannot be read")
        return []
    sources = {
        plain_name(name): source for name, source in found.get("tool", {}).get("uv", {}).get("sources", {}).items()
    }
    lines = []
    for line in found.get("project", {}).get("dependencies", []):
        match = REQUIREMENT.fullmatch(line)
        source = sources.get(plain_name(match[1]), {}) if match else {}
        source = source if isinstance(source, dict) else {}
        revision = source.get("rev") or source.get("tag") or source.get("branch")
        place = source.get("url") or (source.get("path") and (folder / source["path"]).resolve().as_uri())
        if source.get("git"):
            place = f"git+{source['git']}{f'@{revision}' if revision else ''}"
        if source.get("subdirectory"):
            place = f"{place}#subdirectory={source['subdirectory']}"
        lines.append(f"{match[1]}{match[2] or ''} @ {place} {match[4] or ''}".strip() if match and place else line)
    return lines


def install(wanted: list[str], options: list[str], python: str, folder: Path) -> list[str]:
    """Install requirements and return those that failed. If they cannot be installed together, try alone what fails."""
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
    # If git fetches packages, pip does not report which one failed.
    from_git = [line for line in wanted if "git+" in line]
    named = [line for line in wanted if re.split(r"[^\w.-]", line)[0] in errors or line in from_git] or wanted
    # What is installed alone must not change what the list pins.
    matches = [match for match in map(REQUIREMENT.fullmatch, wanted) if match and not match[4]]
    pins = [f"{match[1]}{match[3]}" for match in matches if PLAIN_PIN.fullmatch(match[3])]
    options = [*options, *constrain(folder, pins)]
    named.sort(key=lambda line: "==" not in line)
    parts = [[line for line in wanted if line not in named], *([line] for line in named)]
    return [line for part in parts for line in install(part, options, python, folder)]
