"""Fetch the code of a job: artifacts from W&B, commits from repositories."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from vertex_launch.job.container.base import (
    KEY,
    NAMES,
    Failed,
    differs,
    end_of,
    get,
    hide,
    inside,
    kept,
    run,
    say,
    secret,
)
from vertex_launch.job.container.requirements import NO_PIP, pip

WANDB = "0.31.0"  # the deployment's own, see requirements.txt

FETCH = """
import json, re, sys
try:
    import wandb
    if not (hasattr(wandb.Api, "_artifact_from_id") or hasattr(wandb.Artifact, "_from_id")):
        raise ImportError("it is too old")
except Exception as error:
    print("the image has no usable wandb:", error)
    sys.exit(77)
try:
    api = wandb.Api()
    by_id = getattr(api, "_artifact_from_id", None) or (lambda id: wandb.Artifact._from_id(id, api.client))
    for name, folder in json.loads(sys.argv[1]).items():
        id = re.match("wandb-artifact://_id/([^/]+)", name)
        artifact = by_id(id.group(1)) if id else api.artifact(name.split("wandb-artifact://")[-1])
        if artifact is None or str(getattr(artifact, "state", "")).upper().endswith("DELETED"):
            raise ValueError(name + (" has been deleted" if artifact else " was not found"))
        artifact.download(root=folder)
except Exception as error:
    print(type(error).__name__ + ":", error)
    sys.exit(1)
"""

ARCHIVES = {
    "github.com": "https://github.com/{path}/archive/{commit}.tar.gz",
    "github.com with a token": "https://api.github.com/repos/{path}/tarball/{commit}",
    "gitlab.com": "https://gitlab.com/api/v4/projects/{quoted}/repository/archive.tar.gz?sha={commit}",
    "bitbucket.org": "https://bitbucket.org/{path}/get/{commit}.tar.gz",
}
USERS = {"github.com": "x-access-token", "bitbucket.org": "x-token-auth"}  # GitLab and others accept any user


def fetch_artifacts(wanted: dict[str, Path], key: str, private: Path) -> None:
    """Download artifacts with the image's own wandb, else with one from pip. Raises Failed.

    pip installs it into a private folder. In the program's environment it could change the versions of other packages, and
    hide that the program's requirements lack wandb.
    """
    names, folders = " and ".join(wanted), {name: str(folder) for name, folder in wanted.items()}
    command = [sys.executable, "-c", FETCH, json.dumps(folders)]
    variables = {f"WANDB_{kind}_DIR": str(private) for kind in ("CACHE", "CONFIG", "DATA")}  # HOME may not be writable
    variables[KEY] = key
    say("source", f"fetching {names}")
    status, output = run(command, private, variables)
    if status == 77:
        variables["PYTHONPATH"] = str(private / "lib")
        install_wandb(private / "lib", private)
        say("source", f"fetching {names} with that wandb")
        status, output = run(command, private, variables)
    if status:
        raise Failed(
            "VL-BOOT-ARTIFACT",
            f"{os.environ.get('WANDB_BASE_URL', 'W&B')} did not return {names} ({end_of(output)}). Check that the job and its "
            "code still exist and that the owner of the key may read their project",
        )


def install_wandb(folder: Path, private: Path) -> None:
    """Install W&B's client into a folder of its own. Raises Failed."""
    # Pythons before 3.10 get the newest version that still supports them.
    wandb = f"wandb{'==' if sys.version_info >= (3, 10) else '<='}{WANDB}"
    say("wandb", f"installing {wandb} into a private folder")
    status, output = pip(sys.executable, ["--target", str(folder), wandb], private, PIP_USER="0")
    if status:
        reason = "has no pip" if NO_PIP in output else f"pip cannot install {wandb} ({end_of(output)})"
        raise Failed(
            "VL-BOOT-WANDB",
            f"the image has no usable wandb and {reason}. Use a base image with wandb or pip, and check that the job "
            "can reach a package index (PIP_INDEX_URL sets a mirror)",
        )


def install_client() -> None:
    """Install W&B's client for the program, which is part of it, unless the image has one. Raises Failed."""
    if shutil.which("wandb"):
        return
    base = os.environ.get("VERTEX_LAUNCH_DIR") or tempfile.gettempdir()
    private = Path(tempfile.mkdtemp(prefix="vertex-launch-", dir=base))
    lib = private / "lib"
    install_wandb(lib, private)
    for name, place in (("PYTHONPATH", lib), ("PATH", lib / "bin")):
        os.environ[name] = os.pathsep.join(filter(None, (str(place), os.environ.get(name))))


def fetch_repository(plan: dict[str, Any], code: Path, private: Path) -> None:
    """Check out the commit with git. Without git, unpack the archive of the repository's host. Raises Failed."""
    url, commit, pause = urlsplit(plan["remote"]), plan["commit"], plan.get("retry_seconds", 1)
    host, user, token = url.hostname or "", unquote(url.username or ""), unquote(url.password or "")
    if re.search(r"[\0\r\n]", user + token):
        raise Failed("VL-BOOT-GIT", f"the address of {host} has a control character in its credentials. Correct it")
    hide(*(word for word in (url.password or "", token) if word not in NAMES))
    if len(user) > (7 if token in NAMES else 15) and user not in NAMES:  # a shorter one is hidden in URLs only
        hide(url.username or "", user)
    plain = url.scheme == "http" and host not in ("127.0.0.1", "localhost")
    known = bool(token) or (user not in NAMES and not plain)
    url = url._replace(netloc=url.netloc.rpartition("@")[2])
    advice = "Check that the commit has been pushed"
    if plan.get("token_secret"):
        own, _, token = secret(plan, plan["token_secret"], "the token for git").rpartition(":")
        user, known = own or USERS.get(host) or user, True
        hide(token)
        kept.add(token)
        advice += f", and that the token in {plan['token_secret']} may read it"
    elif not token:
        advice += ". A private repository needs a token (git_token_secrets)"
    over = " over HTTPS, because a job has no SSH key" if plan.get("ssh") else ""
    say("source", f"fetching {commit} of {url.geturl()}{over}")
    if token and plain:
        raise Failed("VL-BOOT-GIT", f"the token must not be sent to {host} unencrypted. Use an https:// remote")
    if shutil.which("git"):
        checkout(url, commit, f"username={user or 'oauth2'}\npassword={token}" if known else "", code, pause, advice)
        return
    if known and token in ("", "x-oauth-basic"):  # the user is the token, or only a name
        user, token = "", user if len(user) > 15 else ""
    if host not in ARCHIVES and not plan.get("archive"):
        raise Failed("VL-BOOT-GIT", f"the image has no git to fetch from {host or url.geturl()}. Use an image with git")
    template = ARCHIVES.get(f"{host} with a token" if token else host) or ARCHIVES.get(host, "")
    path = unquote(re.sub(r"\.git/*\Z", "", url.path).strip("/"))
    address = plan.get("archive") or template.format(path=quote(path), quoted=quote(path, ""), commit=quote(commit, ""))
    headers = {"PRIVATE-TOKEN": token} if host == "gitlab.com" else {"Authorization": f"Bearer {token}"}
    if host == "bitbucket.org" and user != USERS[host]:  # app passwords need their user, access tokens do not
        headers = {"Authorization": "Basic " + base64.b64encode(f"{user}:{token}".encode()).decode()}
    say("source", f"the image has no git, unpacking {address}")
    try:
        get(address, headers if token else {}, pause, private / "archive")
        unpack(private / "archive", code)
    except Failed as error:
        remedy = "Use an image with git, or remove that from the repository"
        raise Failed("VL-BOOT-ARCHIVE", f"{address}: {error}. {remedy}") from error
    except (OSError, EOFError, tarfile.TarError) as error:
        raise Failed("VL-BOOT-ARCHIVE", f"{address}: {error}. {advice}, or use an image with git") from error
    if (code / ".gitmodules").exists():
        differs("source", "VL-BOOT-ARCHIVE", "an archive has no submodules. Use an image with git if they are needed")


def checkout(url: SplitResult, commit: str, login: str, code: Path, pause: float, advice: str) -> None:
    """Fetch one commit with git, or all if the server does not allow that. Raises Failed."""
    base = ["git", "-c", "http.lowSpeedLimit=1000", "-c", "http.lowSpeedTime=60", "-c", "protocol.ext.allow=never"]
    base += ["-c", "http.followRedirects=initial"]
    variables = {"GIT_TERMINAL_PROMPT": "0"}
    if login:  # only for this host and port, and only in the environment; every git knows credential helpers
        name = f"VERTEX_LAUNCH_GIT_{os.urandom(8).hex()}"  # so that no configuration of traces can name it
        variables[name] = login
        base += ["-c", f"credential.{url.scheme}://{url.netloc}.helper=!printenv {name} #"]
    if url.scheme == "https":  # for submodules on the same host
        base += ["-c", f"url.https://{url.netloc}/.insteadOf=git@{url.hostname}:"]
        base += ["-c", f"url.https://{url.netloc}/.insteadOf=ssh://git@{url.hostname}/"]

    def git(*arguments: str) -> str:
        """Return the error, the empty text if there is none."""
        status, output = run([*base, *arguments], code, variables, hush=bool(login))
        first = re.search(r"(?:fatal|error): .*", output)
        return (first[0] if first else end_of(output)) if status else ""

    wanted, error = "FETCH_HEAD", git("init", "-q") or git("remote", "add", "origin", url.geturl())
    if not error and git("fetch", "-q", "--depth", "1", "origin", commit):
        say("source", "the server does not allow fetching a single commit; fetching the full history")
        time.sleep(pause)
        wanted, error = commit, git("fetch", "-q", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*")
    error = error or git("checkout", "-q", "--detach", wanted)
    if error:
        raise Failed("VL-BOOT-GIT", f"git cannot check out {commit} of {url.geturl()} ({error}). {advice}")
    if (code / ".gitmodules").exists() and (error := git("submodule", "update", "--init", "--recursive")):
        raise Failed(
            "VL-BOOT-GIT",
            f"git cannot fetch the submodules of {url.geturl()} ({error}). Each must be reachable over HTTPS, and a token is "
            f"used only on {url.hostname}",
        )


def unpack(archive: Path, code: Path) -> None:
    """Unpack a .tar.gz without its topmost folder. Raises Failed, OSError, TarError."""
    safely: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(str(archive), "r:gz") as tar:
        for member in tar:
            member.name = member.name.partition("/")[2]
            parent = inside(code, member.name).parent
            if member.issym():
                inside(code, str(parent / member.linkname))
            elif not (member.isfile() or member.isdir()):
                raise Failed("VL-BOOT-ARCHIVE", f"{member.name} is not a file, folder or symbolic link")
            if member.name:
                tar.extract(member, str(code), **safely)
