"""Start the program in the container of a job whose code is not in its image, or whose W&B key is not in its spec.

``boot.text`` joins this module and those in ``container`` into one text for ``python3 -c``. The program and its arguments are
its arguments, and VERTEX_LAUNCH_PLAN has the plan. It reads the key, fetches the code, installs its requirements and becomes
the program, so that signals and the exit status are the program's own. It needs only Python 3.8. Each step logs what it does.
A step that fails logs the remedy and exits with status 1.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from vertex_launch.job.container.base import (
    KEY,
    PLAN,
    Failed,
    children,
    different,
    differs,
    doubtful,
    get,
    hide,
    inside,
    kept,
    masked,
    say,
    secret,
    steps,
)
from vertex_launch.job.container.entry import PYTHON, fit
from vertex_launch.job.container.notebook import convert
from vertex_launch.job.container.patch import apply_patch
from vertex_launch.job.container.requirements import ask_python, find_room, install_requirements
from vertex_launch.job.container.source import fetch_artifacts, fetch_repository, install_client

VERSION = "\nprint('\"%d.%d\"' % sys.version_info[:2])"


def prepare(plan: dict[str, Any], command: list[str], key: str) -> Path:
    """Fetch and prepare the code, and return the folder to start in. Raises Failed."""
    base = os.environ.get("VERTEX_LAUNCH_DIR") or tempfile.gettempdir()
    Path(base).mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="vertex-launch-", dir=base))  # a new one at each start of the container
    code, job, private = work / "code", work / "job", work / "private"
    for place in (code, job, private):
        place.mkdir()
    wanted = {plan["job"]: job}
    if plan["source"] == "artifact":
        wanted[plan["artifact"]] = code
    fetch_artifacts(wanted, key, private)
    if plan["source"] == "repo":
        fetch_repository(plan, code, private)
        attributes = code / ".gitattributes"
        if attributes.is_file() and b"filter=lfs" in attributes.read_bytes() and not shutil.which("git-lfs"):
            differs("source", "VL-BOOT-GIT", "files in Git LFS are only pointers, because the image has no git-lfs")
    if (job / "diff.patch").is_file():
        apply_patch((job / "diff.patch").read_bytes(), code)
    say("folder", plan.get("working_dir") or "the code's own")
    folder = inside(code, plan.get("working_dir") or "", ". Correct overrides.working_dir")
    if not folder.is_dir():
        raise Failed("VL-BOOT-PATH", f"the code has no folder {plan['working_dir']}. Correct overrides.working_dir")
    fit(command, folder)
    python = shutil.which(command[0]) if PYTHON.fullmatch(command[0]) else None
    made = re.search(r"3\.\d+", plan.get("python") or "")
    here = ask_python(python or sys.executable, VERSION, "", private)
    if made and here and made[0] != here:
        differs("start", "", f"the job was made with Python {made[0]}, and this container has {here}")
    say("requirements", "reading what to install")
    try:
        find_room(python or sys.executable, work)
        bases = plan.get("git_hosts") or {}
        install_requirements(job / "requirements.frozen.txt", code, folder, python or sys.executable, bases)
    except Exception as error:  # noqa: BLE001 - the program may run without them
        differs("requirements", "VL-BOOT-REQUIREMENTS", f"not installed ({error!r}); the program starts without them")
    script = next((at for at, word in enumerate(command) if at and not word.startswith("-")), 0)
    is_python = PYTHON.fullmatch(Path(command[0]).name)
    for at, word in enumerate(command):  # `wandb job create` does not mark notebooks
        if word.endswith(".ipynb") and (plan.get("notebook") or (is_python and at == script)):
            say("notebook", "converting")
            notebook = inside(folder, word, ". Correct the entry point")
            command[at] = str(convert(notebook).relative_to(folder))
    for place in sorted({(folder / word).parent / "Dockerfile.wandb" for word in command}):
        if os.path.isfile(str(place)):  # noqa: PTH113 - a Path raises an error for a word that cannot be a name
            name = os.path.relpath(str(place), str(folder))
            found = f"{name} is not used, because this deployment does not build images. Build one, or set a base image"
            differs("folder", "VL-ARTIFACT-DOCKERFILE", found)
    # File overrides need no work: launch.manage_config_file in the program applies WANDB_LAUNCH_FILE_OVERRIDES, relative to
    # the folder in which it starts (wandb/sdk/launch/inputs/files.py).
    shutil.rmtree(str(private), ignore_errors=True)
    return folder


def start(command: list[str], folder: Path, key: str) -> None:
    """Become the program. Raises Failed."""
    environment = {"PYTHONUNBUFFERED": "1", **os.environ}  # as in the images that W&B's builder makes
    del environment[PLAN]
    if key:
        environment[KEY] = key
    if PYTHON.fullmatch(command[0]) and not shutil.which(command[0]):
        here = "python{}.{}".format(*sys.version_info)
        code = "" if here.startswith(command[0]) else "VL-BOOT-COMMAND"
        differs("start", code, f"the image has no {command[0]}, using {sys.executable} ({sys.version.split()[0]})")
        command[0] = sys.executable
    report(key or os.environ.get(KEY, ""))
    say("start", f"{shlex.join(command)} in {folder}")
    os.chdir(str(folder))
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and the program would inherit that
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606 - the program is the user's own
    except OSError as error:
        raise Failed(
            "VL-BOOT-COMMAND",
            f"{command[0]} cannot be started ({error.strerror}). Begin the entry point with a program in the image or an "
            "executable file in the code, for example `python train.py`",
        ) from error


def report(key: str) -> None:
    """Log what differs from the job as made, and warn about it on the item where results can change."""
    if different:
        say("differs", "what differs from the job as made:")
    for text in different:
        say("differs", f"- {text}")
    item = os.environ.get("WANDB_LAUNCH_TRACE_ID")
    other = re.search(r'"task":\s*\{[^}]*("workerpool[1-9]|"index":\s*[1-9])', os.environ.get("CLUSTER_SPEC", ""))
    if not (doubtful and item and key) or other:
        return  # one replica warns for all
    text = masked("The job differs from what was made. " + "; ".join(doubtful))[:4000]
    wanted = f'runQueueItemId: {json.dumps(item)}, message: {json.dumps(text)}, stage: "run"'
    query = json.dumps({"query": f"mutation {{ updateRunQueueItemWarning(input: {{ {wanted} }}) {{ success }} }}"})
    login = base64.b64encode(f"api:{key}".encode()).decode()
    url = f"{os.environ.get('WANDB_BASE_URL', 'https://api.wandb.ai').rstrip('/')}/graphql"
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    try:
        answer = json.loads(get(url, headers, 0.1, data=query.encode()))
        if not answer["data"]["updateRunQueueItemWarning"]["success"]:
            raise ValueError("refused")
    except (OSError, ValueError, LookupError, TypeError) as error:
        say("differs", f"W&B did not take the warning for the item ({error!r})")


def stop(*_: object) -> None:
    """End at once on SIGTERM, which the first process of a container ignores by default."""
    for child in children:
        child.terminate()
    os.write(1, f"vertex-launch: {steps[-1]}: stopped by SIGTERM\n".encode())
    os._exit(143)


def main() -> None:
    """Do all steps. Raises Failed."""
    signal.signal(signal.SIGTERM, stop)
    plan = json.loads(os.environ[PLAN])
    key = os.environ.get(KEY, "")
    hide(key)
    kept.add(key)
    if plan.get("api_key_secret"):
        key = secret(plan, plan["api_key_secret"], "the W&B API key")
    if plan.get("client"):
        install_client()
    command = sys.argv[1:]
    if not command:
        raise Failed("VL-BOOT-COMMAND", "there is no command to run. Create the job with an entry point")
    start(command, Path.cwd() if plan["source"] == "image" else prepare(plan, command, key), key)


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        say(steps[-1], f"failed [{error.code}]: {error}.")
    except Exception:  # noqa: BLE001 - the log names the step of any error
        say(steps[-1], f"failed unexpectedly [VL-BOOT-ERROR]: {traceback.format_exc()}")
    sys.exit(1)
