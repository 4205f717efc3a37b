"""The bootstrap with W&B's real client: as the CustomJob starts it, in empty Pythons, against the local W&B.

Nothing is there but a Python with pip, what the CustomJob's spec sets, PATH and HOME. The client comes from a package index,
as in a job; what needs no empty Python finds it in its own, as in an image with wandb.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from local.machine import container_spec
from tests.local_cloud.test_local_wandb import Client
from tests.support.bootstrap_world import (
    ACCOUNT,
    PATIENCE,
    SECRET,
    Ended,
    Google,
    Internet,
    git,
    packages,
    python,
    virtual_environment,
)
from tests.support.memory import KEY, Secret
from tests.support.numbers import BOOTSTRAP_PYTHONS, FULL
from tests.support.wandb_jobs import IN_A_NOTEBOOK, MAKE, NOTEBOOK, Made, passed, server, spec
from vertex_launch.adapters.job_artifacts import JobArtifacts
from vertex_launch.codes import Code

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSIONS = BOOTSTRAP_PYTHONS[1:] if FULL else (THIS,)
"""W&B's client needs a Python of today."""
WRONG = "w" * 40

PROGRAM = """
import json, os, sys, wandb
run = wandb.init()
report = {"argv": sys.argv, "config": dict(run.config), "cwd": os.getcwd(), "run": run.path, "python": sys.version_info[:2]}
report["files"] = sorted(name for name in os.listdir() if name != "wandb")
report["environment"] = sorted(os.environ)
print("report: " + json.dumps(report), flush=True)
run.log({"loss": 1})
run.finish()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """A W&B with a job of each kind, of which the program tells how it was started."""
    with server() as w_and_b:
        client = Client(w_and_b, tmp_path_factory.mktemp("home"))
        where = {"WANDB_ENTITY": "acme", "WANDB_PROJECT": "demo", "WANDB_API_KEY": KEY}
        code = client.home / "code"
        (code / "sub").mkdir(parents=True)
        (code / "train.py").write_text(PROGRAM)
        (code / "sub" / "gr\u00fc\u00dfe.txt").write_text("1")
        (code / "requirements.txt").write_text("wandb\n")
        (client.home / "notebook").mkdir()
        notebook = replace(client, home=client.home / "notebook")
        cells = [
            {**NOTEBOOK["cells"][0], "id": id_, "source": text}
            for id_, text in (("a", "%magic\nx = 1"), ("b", PROGRAM))
        ]
        (notebook.home / "notes.ipynb").write_text(json.dumps({**NOTEBOOK, "cells": cells}))
        (notebook.home / "requirements.txt").write_text("wandb\n")
        remote = client.home / "remote"
        remote.mkdir()
        git(remote, "init", "-q", "-b", "main")
        (remote / "train.py").write_text("raise SystemExit('this is as it was committed')\n")
        (remote / "requirements.txt").write_text("wandb\n")
        git(remote, "add", ".")
        git(remote, "commit", "-q", "-m", "first")
        clone = replace(client, home=client.home / "clone")
        (client.home / "internet").mkdir()
        host = Internet(client.home / "internet")  # a job cannot fetch from a path of its author's computer
        host.repositories = {"https:///remote": remote / ".git"}
        host.start()
        git(client.home, "clone", "-q", f"{host.url}/remote", str(clone.home))
        for name, value in (("diff.noprefix", "true"), ("color.ui", "always")):
            git(clone.home, "config", name, value)
        (clone.home / "train.py").write_text(PROGRAM)
        create = "job create code code -p demo -n {name} -E 'python train.py --lr 1'"
        typed = json.dumps([shlex.split(create.format(name=name)) for name in ("code", "lost")])
        for who, command, more in (
            (client, ("-c", MAKE, typed, "[]"), {}),
            (notebook, ("-c", IN_A_NOTEBOOK), {"WANDB_JOB_NAME": "notebook", "WANDB_NOTEBOOK_NAME": "notes.ipynb"}),
            (
                clone,
                ("train.py",),
                {"WANDB_JOB_NAME": "git", "WANDB_SAVE_CODE": "1", "WANDB_DISABLE_JOB_CREATION": "0"},
            ),
        ):
            done = who.run(*command, **where, **more)
            assert done.returncode == 0, done.stdout + done.stderr
        yield Made(w_and_b, client, JobArtifacts(w_and_b.url, Secret(), timeout=20))
        host.stop()


# ---- the container


@pytest.fixture(scope="module")
def index() -> dict[str, str]:
    """The variables by which this machine reaches its package index; skips where it reaches none."""
    variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    here = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **variables}
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--no-deps",
        "--ignore-installed",
        "--quiet",
        "wandb",
    ]
    try:
        asked = subprocess.run(command, env=here, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer, and a job in an empty Python needs one")
    if asked.returncode:
        pytest.skip(f"no package index within reach, and a job in an empty Python needs one: {asked.stderr[-300:]}")
    return {**variables, "PIP_NO_COMPILE": "1"}  # two seconds less for each installation


def run(
    made: Made,
    place: Path,
    environment: Path,
    asked: Mapping[str, Any],
    *tools: str,
    variables: Mapping[str, str] | None = None,
    **settings: Any,
) -> Ended:
    """Run an item's container, in a ``place`` of its own; ``variables`` come on top of what its CustomJob sets."""
    pool = passed(made.jobs, made.server, asked, **settings).job().job_spec.worker_pool_specs[0]
    _, command, args, declared = container_spec.task(type(pool).pb(pool))
    declared = container_spec.environment(declared, {})
    for name in ("tmp", "tools", "app"):
        (place / name).mkdir(parents=True)
    for tool in tools:
        found = shutil.which(tool)
        assert found, tool
        (place / "tools" / tool).symlink_to(found)
    own = {"PATH": f"{environment / 'bin'}:{place / 'tools'}", "HOME": str(place.parent), "TMPDIR": str(place / "tmp")}
    done = subprocess.run(
        container_spec.command_line([], [], command, args, declared),
        env={**own, **declared, **(variables or {})},
        cwd=place / "app",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
        text=True,
    )
    assert KEY not in done.stdout
    return Ended(done.returncode, done.stdout)


ARGS = ["--name", "gr\u00fc\u00dfe $(HOME) $$ $PATH", "a b", "", "\u6f22" * 10_000, "x" * 100_000]
OVERRIDES = {
    "args": ARGS,
    "run_config": {"lr": 0.1, "money": "$$ $(HOME)", "text": "y" * 70_000},
}


@pytest.fixture
def with_wandb(tmp_path: Path) -> Path:
    """A Python as in an image with wandb: the packages of these tests are its own, and nothing has to be installed."""
    if python(THIS) is None:
        pytest.skip(f"no Python {THIS} on this machine but the one of the tests")
    environment = virtual_environment(THIS, tmp_path / "python", pip=False)
    (packages(environment) / "tests.pth").write_text(sysconfig.get_path("purelib"))
    return environment


# ---- jobs


@pytest.mark.parametrize("version", VERSIONS)
def test_a_code_job_in_an_empty_python(made: Made, index: dict[str, str], tmp_path: Path, version: str) -> None:
    if python(version) is None:
        pytest.skip(f"no Python {version} on this machine")
    environment, name = virtual_environment(version, tmp_path / "python"), f"run-{version}"
    ended = run(made, tmp_path / "container", environment, spec("code:v0", OVERRIDES, run_id=name), variables=index)
    assert ended.status == 0, ended.log
    report = ended.report
    assert report["argv"] == ["train.py", "--lr", "1", *ARGS]
    assert report["config"] == OVERRIDES["run_config"]
    assert (report["run"], report["python"]) == (f"acme/demo/{name}", [int(part) for part in version.split(".")])
    assert {"train.py", "sub", "requirements.txt"} <= set(report["files"])
    assert "VERTEX_LAUNCH_PLAN" not in report["environment"]
    steps = [line.split(": ")[1] for line in ended.log.splitlines() if line.startswith("vertex-launch: ")]
    before, after = ([], []) if version == THIS else (["start"], ["differs", "differs"])  # it was made with this Python
    assert steps == ["source", "wandb", "source", "folder", *before, "requirements", "requirements", *after, "start"]
    assert f"acme/demo/{name}" in made.named("code:v0").used_by
    finished = made.server.store.runs.get("acme", "demo", name)
    assert finished is not None
    assert finished.state == "finished"


def test_a_repository_with_what_a_run_had_changed(made: Made, with_wandb: Path, tmp_path: Path) -> None:
    ended = run(
        made, tmp_path / "git", with_wandb, spec("git:v0", {"args": ["1"]}, run_id="git"), "git", "sh", "printenv"
    )
    assert ended.status == 0, ended.log
    assert ended.report["argv"] == ["train.py", "1"]
    assert "vertex-launch: patch: applying diff.patch to 1 files" in ended.log
    assert made.named("git:v0").used_by[-1] == "acme/demo/git"


def test_a_notebook(made: Made, with_wandb: Path, tmp_path: Path) -> None:
    ended = run(made, tmp_path / "notebook", with_wandb, spec("notebook:v0", {"args": ["1"]}, run_id="notes"))
    assert ended.status == 0, ended.log
    assert ended.report["argv"] == ["notes.py", "1"]
    assert f"vertex-launch: notebook: warning [{Code.BOOT_NOTEBOOK}]: skipped: %magic" in ended.log
    assert made.named("notebook:v0").used_by[-1] == "acme/demo/notes"


def test_a_key_that_is_in_no_spec(made: Made, with_wandb: Path, tmp_path: Path) -> None:
    google = Google()
    google.secrets = {SECRET: KEY.encode()}
    google.start()
    try:
        asked = spec("code:v0", run_id="secret")
        asked["resource_args"]["gcp-vertex"]["run"] = {"service_account": ACCOUNT}
        kept_out = {"api_key_delivery": "secret", "key_secret": SECRET, "secretmanager_endpoint": google.url}
        assert KEY not in str(passed(made.jobs, made.server, asked, **kept_out).job())
        metadata = {"GCE_METADATA_HOST": google.host}
        ended = run(made, tmp_path / "secret", with_wandb, asked, variables=metadata, **kept_out)
    finally:
        google.stop()
    assert ended.status == 0, ended.log
    assert made.named("code:v0").used_by[-1] == "acme/demo/secret"


# ---- steps that fail


def failed(ended: Ended, *words: str) -> None:
    """Check that fetching failed, with all these words."""
    assert ended.status == 1, ended.log
    assert ended.last.startswith(f"vertex-launch: source: failed [{Code.BOOT_ARTIFACT}]: "), ended.log
    for word in words:
        assert word in ended.last


def test_code_that_has_been_deleted(made: Made, with_wandb: Path, tmp_path: Path) -> None:
    made.server.store.artifacts.delete(made.named("code-lost:v0"), with_aliases=True)
    ended = run(made, tmp_path / "lost", with_wandb, spec("lost:v0"))
    failed(ended, "has been deleted", made.server.url)


def test_a_key_that_is_refused(made: Made, with_wandb: Path, tmp_path: Path) -> None:
    ended = run(made, tmp_path / "refused", with_wandb, spec("code:v0", _wandb_api_key=WRONG))
    failed(ended, made.server.url)
    assert WRONG not in ended.log


def test_a_w_and_b_out_of_reach(made: Made, with_wandb: Path, tmp_path: Path) -> None:
    away = {"WANDB_BASE_URL": "http://127.0.0.1:1", "WANDB_HTTP_TIMEOUT": "2"}
    failed(run(made, tmp_path / "away", with_wandb, spec("code:v0"), variables=away), "http://127.0.0.1:1")
