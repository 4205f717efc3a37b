"""Terraform on a copy of ``infra/`` without the network: its plans, for tests of what a deployment has.

It is a copy to keep state, variables and providers of the checkout out of it. Stand-ins for the providers know their schemas.
"""

from __future__ import annotations

import atexit
import fcntl
import functools
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
OFFLINE = ROOT.parent / "shared" / "tools" / "terraform-offline"
TERRAFORM = shutil.which("terraform") or "terraform"
NUMBER = "google_project-number"
"""The project's number according to the stand-in for ``data.google_project``."""
PROJECT = {
    "project": "my-project",
    "region": "us-central1",
    "launch_config": str(ROOT / "infra/examples/one-queue/launch-config.yaml"),
}
"""The required variables, and a configuration without placeholders."""

needs_terraform = pytest.mark.skipif(
    not OFFLINE.exists(),
    reason=f"NOT CHECKED: infra/ with Terraform, which needs {OFFLINE} to work without the network",
)
"""For tests that use this module. If the tool is there and Terraform is not, they fail."""

SETTINGS = "max_attempts: 5\n"
"""A vertex-launch.yaml that changes nothing, in place of the user's."""

_PATIENCE = 240.0


def copy_of_checkout(target: Path) -> Path:
    """Copy what Terraform reads into the empty folder ``target``, and return the copy of ``infra/``."""
    for name in ("infra", "vertex_launch"):
        ignored = shutil.ignore_patterns(".terraform*", "*.tfstate*", "*.tfvars*", "*_override.tf", "__pycache__")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("main.py", "requirements.txt"):
        shutil.copy(ROOT / name, target / name)
    shutil.copy(PROJECT["launch_config"], target)
    (target / "vertex-launch.yaml").write_text(SETTINGS)
    return target / "infra"


def terraform(folder: Path, *commands: Sequence[str]) -> str:
    """Run terraform commands in ``folder``, starting the providers once, and return what they print.

    Raises CalledProcessError, with all output in ``output``, when one of them fails.
    """
    with tempfile.TemporaryDirectory() as scratch:
        # The tool runs one command, `terraform`: this script of several. It reports success in a file, because the tool's exit
        # status is that of the providers, which it kills at the end.
        several, succeeded = Path(scratch, "terraform"), Path(scratch, "succeeded")
        lines = (shlex.join([TERRAFORM, f"-chdir={folder}", *command]) for command in commands)
        several.write_text("\n".join(["#!/bin/sh", "set -e", *lines, f": >{shlex.quote(str(succeeded))}", ""]))
        several.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
        environment |= {"PATH": f"{scratch}{os.pathsep}{os.environ['PATH']}", "TF_CLI_ARGS": "-no-color"}
        # One at a time: the tool's first run on a machine installs what it needs.
        with Path(tempfile.gettempdir(), f"terraform-offline-{os.getuid()}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = subprocess.run(
                [OFFLINE], env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
            )
        if not succeeded.exists():
            raise subprocess.CalledProcessError(done.returncode, "terraform", output=done.stdout + done.stderr)
    return done.stdout


def plan_in(folder: Path, variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the plan for the configuration in ``folder``, in the form of ``terraform show -json``."""
    with tempfile.TemporaryDirectory() as scratch:
        values, planned = Path(scratch, "values.tfvars.json"), Path(scratch, "plan")
        values.write_text(json.dumps(variables))
        plan = ["plan", "-input=false", "-lock=false", f"-var-file={values}", f"-out={planned}"]
        printed = terraform(folder, ["get"], plan, ["show", "-json", str(planned)])
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result


def plan(variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the plan of ``infra/`` for ``variables`` and those of ``PROJECT``, cached. Do not change it.

    ``resources`` and ``bindings`` read it.
    """
    return _plan(json.dumps({**PROJECT, **(variables or {})}, sort_keys=True))


@functools.cache
def plan_of_example(name: str) -> dict[str, Any]:
    """Return the plan of ``infra/examples/name``, cached. Do not change it."""
    return plan_in(_checkout() / "examples" / name, {})


def resources(planned: Mapping[str, Any], kind: str, *, read: bool = False) -> dict[str, dict[str, Any]]:
    """Return the values of a plan's resources of one type by address, or with ``read`` those of its data sources.

    Values that are known only after ``apply`` are missing.
    """
    values = planned["prior_state"]["values"] if read else planned["planned_values"]
    return {r["address"]: r["values"] for r in _walk(values["root_module"]) if r["type"] == kind}


def bindings(planned: Mapping[str, Any]) -> set[tuple[str, str, str]]:
    """Return every role of a plan: on what, which role, for whom. The writer of the log sink, unknown in a plan, is ``SINK``.

    On what is a kind and a name, such as ``pubsub_topic vertex-launch-ticks``, and the condition if there is one.
    """
    return {
        (_scope(r["type"], r["values"]), r["values"]["role"], r["values"].get("member", "SINK"))
        for r in _walk(planned["planned_values"]["root_module"])
        if "_iam_" in r["type"] and r["type"] != "google_project_iam_custom_role"
    }


def permissions(planned: Mapping[str, Any]) -> dict[str, frozenset[str]]:
    """Return the permissions of each custom role of a plan, by its name in bindings."""
    return {
        f"projects/{role['project']}/roles/{role['role_id']}": frozenset(role["permissions"])
        for role in resources(planned, "google_project_iam_custom_role").values()
    }


@functools.cache
def _plan(variables: str) -> dict[str, Any]:
    return plan_in(_checkout(), json.loads(variables))


@functools.cache
def _checkout() -> Path:
    folder = tempfile.mkdtemp(prefix="terraform-plan-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return copy_of_checkout(Path(folder))


def _walk(module: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    yield from module.get("resources", [])
    for child in module.get("child_modules", []):
        yield from _walk(child)


def _scope(kind: str, values: Mapping[str, Any]) -> str:
    what = kind.removeprefix("google_").removesuffix("_iam_member")
    field = {
        "project": "project",
        "service_account": "service_account_id",
        "secret_manager_secret": "secret_id",
        "storage_bucket": "bucket",
        "pubsub_topic": "topic",
        "pubsub_subscription": "subscription",
        "cloud_run_v2_service": "name",
        "artifact_registry_repository": "repository",
    }[what]
    conditions = [f" if {condition['expression']}" for condition in values.get("condition", [])]
    return "".join([f"{what} {values[field]}", *conditions])
