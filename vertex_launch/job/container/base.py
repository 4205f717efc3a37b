"""Log, secrets, commands and downloads of the bootstrap: what all of its steps use.

``boot.text`` joins the modules of this folder with ``bootstrap`` into the text that a container runs, so names must be unique
among them. Nothing needs more than Python 3.8.
"""

# ruff: noqa: E402, S310, S603 - imports follow the path; URLs and commands are our own, and no shell is involved
from __future__ import annotations

import sys

# `python -c` searches the current folder for modules first, and an image can have a json.py there.
sys.path[:] = filter(None, sys.path)

import base64
import http.client
import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

PLAN = "VERTEX_LAUNCH_PLAN"
KEY = "WANDB_API_KEY"
NAMES = ("", "git", "oauth2", "x-access-token", "x-token-auth", "x-oauth-basic", "gitlab-ci-token")  # no secrets
USER_OF_URL = re.compile(r"://([^/?#\s]*)@")
TRACES = re.compile("GIT_(TRACE_|TRACE2|TR2|CURL_VERBOSE).*")  # GIT_TRACE itself shows no header and no variable

hidden: set[str] = set()
kept: set[str] = set()  # secrets that no other program may see in its environment
steps = ["plan"]  # the last one runs
different: list[str] = []  # what differs from the job as made
doubtful: list[str] = []  # those of them that can change results
children: list[subprocess.Popen[str]] = []


class Failed(Exception):
    """A step failed; the text says why and what to do. The documentation explains the code."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


def hide(*words: str) -> None:
    """Hide secrets from the log: as they are, in URLs and JSON, and in base64 of any text such as a basic-auth header."""
    for word in filter(None, words):
        hidden.update((word, quote(word, ""), quote(word), quote_plus(word), json.dumps(word)[1:-1]))
        data = word.encode(errors="surrogateescape")
        for before in range(3 if len(data) > 5 else 0):
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                text = encode(bytes(before) + data).decode()
                # The first characters also hold bits of what stands before, and the last one of what follows.
                hidden.add(text[-(-before * 8 // 6) : (before + len(data)) * 8 // 6])


def masked(text: str) -> str:
    """Return text without secrets, and without users of URLs that may be tokens."""

    def user(match: re.Match[str]) -> str:
        name, colon, password = match[1].partition(":")
        is_name = name in NAMES or (password not in NAMES and len(name) < 16)
        return f"://{name if is_name else '***'}{':***' if colon else ''}@"

    for word in sorted(filter(None, hidden), key=len, reverse=True):
        text = text.replace(word, "***")
    return USER_OF_URL.sub(user, text)


def show(text: str) -> str:
    """Write text to the job's log without secrets, and return it so."""
    text = masked(text)
    sys.stdout.buffer.write(text.encode(errors="backslashreplace"))
    sys.stdout.flush()
    return text


def say(name: str, text: str) -> None:
    """Log a line of the step ``name``."""
    steps.append(name)
    show(f"vertex-launch: {name}: {text}\n")


def warn(name: str, code: str, text: str) -> None:
    """Log a warning of the step ``name``."""
    say(name, f"warning [{code}]: {text}")


def differs(name: str, code: str, text: str) -> None:
    """Record what differs from the job as made, and log it: as a warning if there is a ``code``, because results can change."""
    different.append(f"{name}: {text}")
    if code:
        doubtful.append(f"[{code}] {text}")
        warn(name, code, text)
    else:
        say(name, text)


def shared() -> dict[str, str]:
    """Return the environment without the plan, the key, and whatever repeats a secret."""
    words = [word for word in kept if len(word) > 7]
    return {
        name: value
        for name, value in os.environ.items()
        if name not in (PLAN, KEY) and not any(word in value for word in words)
    }


def run(command: list[str], folder: Path, variables: dict[str, str], hush: bool = False) -> tuple[int, str]:
    """Run a command that sees no secrets but those in ``variables``, log its output, and return its status and output.

    ``hush`` switches git's traces of headers and variables off.
    """
    environment = {name: value for name, value in shared().items() if not (hush and TRACES.fullmatch(name))}
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    environment.update(variables)
    with subprocess.Popen(command, cwd=folder, env=environment, encoding="utf-8", errors="replace", **pipes) as child:
        children[:] = [child]
        output = "".join(map(show, child.stdout or ()))
    children.clear()
    return child.returncode, output


def end_of(output: str) -> str:
    """Return the last line of a command's output, which usually is the error."""
    return (output.strip().splitlines() or ["no output"])[-1]


def get(url: str, headers: dict[str, str], pause: float, into: Path | None = None, data: bytes | None = None) -> bytes:
    """Return the content of a URL, or write it ``into`` a file. Five tries, the second after ``pause`` s. Raises OSError."""
    request = urllib.request.Request(url, data)
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # a redirect must not carry a token to another host
    direct = [urllib.request.ProxyHandler({})] if "Metadata-Flavor" in headers else []  # never through a proxy
    for wait in (pause, 2 * pause, 4 * pause, 8 * pause, None):
        try:
            with urllib.request.build_opener(*direct).open(request, timeout=60) as response:
                if into is None:
                    return bytes(response.read())
                with into.open("wb") as file:
                    shutil.copyfileobj(response, file)
                return b""
        except (OSError, http.client.HTTPException) as error:
            if wait is None or (isinstance(error, urllib.error.HTTPError) and error.code != 429 and error.code < 500):
                raise error if isinstance(error, OSError) else OSError(repr(error)) from error
            time.sleep(wait)
    return b""


def _secret_manager(plan: dict[str, Any], version: str) -> str:
    """Return the address that has a secret: a regional one is only at its region's."""
    address = str(plan["secretmanager"]).rstrip("/")
    region = re.match(r"projects/[^/]+/locations/([^/]+)/", version)
    if region and address == "https://secretmanager.googleapis.com":
        return f"https://secretmanager.{region[1]}.rep.googleapis.com"
    return address


def secret(plan: dict[str, Any], version: str, what: str) -> str:
    """Read a secret as the job's own service account and hide it from the log. Raises Failed."""
    host, pause = os.environ.get("GCE_METADATA_HOST") or "metadata.google.internal", plan.get("retry_seconds", 1)
    identity = f"http://{host}/computeMetadata/v1/instance/service-accounts/default/"
    flavor = {"Metadata-Flavor": "Google"}
    say("key", f"reading {what} from {version}")
    try:
        token = json.loads(get(identity + "token", flavor, pause))["access_token"]
        hide(token)
        account = get(identity + "email", flavor, pause).decode().strip()
    except (OSError, ValueError, KeyError) as error:
        raise Failed(
            "VL-BOOT-IDENTITY",
            f"the metadata server returned no access token ({error}), so {what} cannot be read from Secret Manager. "
            "Run the job on Vertex AI with a service_account in its spec",
        ) from error
    try:
        url = f"{_secret_manager(plan, version)}/v1/{version}:access"
        data = json.loads(get(url, {"Authorization": f"Bearer {token}"}, pause))["payload"]["data"]
        text = base64.b64decode(data).decode("ascii").strip()
    except urllib.error.HTTPError as error:
        quoted = re.search(r'"message":\s*"([^"]*)', error.read().decode(errors="replace"))
        remedy = {
            403: "Grant the account roles/secretmanager.secretAccessor on that secret",
            404: "Add that version, or correct its name in the configuration",
        }.get(error.code, "Check that this version is enabled")
        reason = f"{error.code} {quoted[1] if quoted else error.reason}"
        raise Failed("VL-BOOT-SECRET", f"{account} cannot read {version} ({reason}). {remedy}") from error
    except UnicodeDecodeError:
        text = ""
    except (OSError, ValueError, KeyError) as error:
        found = f"Secret Manager did not return {version} ({error}). Check the network"
        raise Failed("VL-BOOT-SECRET", found) from error
    if not text or not text.isprintable() or " " in text:
        raise Failed("VL-BOOT-SECRET", f"{version} is not a single line of ASCII text. Add a version with only {what}")
    hide(text)
    kept.add(text)
    return text


def inside(root: Path, name: str, advice: str = "") -> Path:
    """Return a path in a folder. Raises Failed if it is outside of it, symbolic links resolved."""
    top = os.path.realpath(str(root))
    if os.path.commonpath([top, os.path.realpath(str(root / name))]) != top:
        raise Failed("VL-BOOT-PATH", f"{name} is outside of the code{advice}")
    return root / name
