"""infra/deploy.sh and infra/destroy.sh with the real gcloud against a stand-in for Google's APIs.

A run calls gcloud a hundred times. So there is one story, run once in a test session by the process that needs it first, and the
tests read its record: a deployment in a new project, the same again, one that finds changes and gets no options, the end, another
one ten days later, and its end. When a script sleeps, only the clock of the stand-in moves.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support import gcloud_server
from tests.support.google_apis import DAY, PROJECT, GoogleApis, Snapshot
from tests.support.processes import ROOT

needs_gcloud = pytest.mark.skipif(shutil.which("gcloud") is None, reason="gcloud is not installed here")

NAME, REGION, REGIONS = "vertex-launch", "us-central1", ("us-central1", "us-east4")
TEAM, QUEUE = "ada-and-friends", "vertex-cpu"
"""The W&B team and the queue of the checkout that is deployed."""
INVOKERS = ("user:ada@example.com", f"serviceAccount:ci@{PROJECT}.iam.gserviceaccount.com")
OPTIONS = (f"--project={PROJECT}", f"--region={REGION}", f"--job-regions={','.join(REGIONS)}")
ALONE = OPTIONS[:2]
DEPLOY = (*OPTIONS, "--wandb-base-url", "https://wandb.example.com", *(f"--invoker={one}" for one in INVOKERS))
TOKENS = (f"projects/{PROJECT}/secrets/github-token", "projects/another-project/secrets/gitlab-token")
"""Secrets that its jobs read in addition to the key."""
SETTINGS = f"""
api_key_delivery: secret
git_token_secrets:
  # github.com: projects/{PROJECT}/secrets/other-wandb-api-key/versions/1
  github.com: {TOKENS[0]}/versions/latest
  gitlab.com: "{TOKENS[1]}/versions/3"
"""
PATIENCE = 400.0
"""Seconds for one script."""

DEPLOYED = (
    ".gcloudignore",
    ".gitignore",
    "Makefile",
    "cloudbuild.yaml",
    "infra",
    "main.py",
    "requirements.txt",
    "vertex_launch",
)
SECRETS = (".env", "key.json", "vertex_launch/__pycache__/old.pyc", ".venv/lib/site.py", "wandb/debug.log")
"""Files in a checkout that must not get into a function."""


@dataclass(frozen=True)
class Run:
    """A script that has ended: its output, its duration in seconds, and what it left and called."""

    status: int
    output: str
    seconds: float
    after: Snapshot

    def commands(self) -> list[str]:
        """Return the commands that it has printed."""
        return [line.removeprefix("+ ") for line in self.output.splitlines() if line.startswith("+ ")]

    def changes(self) -> list[str]:
        """Return method and path of the requests that were sent to change something."""
        return [f"{call.method} {call.path}" for call in self.after.calls if call.changes]


@dataclass(frozen=True)
class Story:
    """The runs in their order; ``uploads`` is a folder with the zips of the functions from ``checkout``."""

    deploy: Run
    repeat: Run
    change: Run
    destroy: Run
    later: Run
    destroy_data: Run
    unknown: list[str]
    uploads: Path
    checkout: Path

    def runs(self) -> tuple[Run, ...]:
        """Return all of them."""
        return (self.deploy, self.repeat, self.change, self.destroy, self.later, self.destroy_data)


def checkout(folder: Path, settings: str = SETTINGS) -> Path:
    """Copy what is deployed, as a user has it: with a configuration, and with files that must not be deployed."""
    for name in DEPLOYED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns(".terraform*", "__pycache__"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    for name in SECRETS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("secret")
    (folder / "vertex-launch.yaml").write_text(settings)
    (folder / "launch-config.yaml").write_text(f"entity: {TEAM}\nqueues: [{QUEUE}]\nmax_jobs: 1\n")
    return folder


def run(script: Sequence[str], folder: Path, apis: GoogleApis, settings: Path) -> Run:
    """Run a script of the checkout in ``folder``; gcloud's own settings lie in ``settings``."""
    path = f"{_sleeps(settings, apis)}{os.pathsep}{gcloud_server.path()}"
    environment = {"PATH": path, "HOME": str(settings), **apis.variables(settings)}
    apis.snapshot()
    began = time.monotonic()
    done = subprocess.run(
        ["bash", *script],
        cwd=folder.parent,  # from anywhere
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    return Run(done.returncode, done.stdout, time.monotonic() - began, apis.snapshot())


def _sleeps(folder: Path, apis: GoogleApis) -> Path:
    """Return a folder for the search path with a ``sleep`` that returns at once and moves the clock of the stand-in."""
    tools, slept = folder / "tools", folder / "slept"
    tools.mkdir(parents=True, exist_ok=True)
    (tools / "sleep").write_text(f'#!/bin/sh\necho "$1" >>{slept}\n')
    (tools / "sleep").chmod(0o755)
    apis.clock = lambda: time.monotonic() + sum(map(float, slept.read_text().split() if slept.exists() else ()))
    return tools


def wait(folder: Path, seconds: float) -> None:
    """Move the clock of the stand-in."""
    with (folder / "slept").open("a") as slept:
        slept.write(f"{seconds}\n")


def story(factory: pytest.TempPathFactory) -> Story:
    """Return the record of the story, which the first process of the session that needs it makes."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder = folder / "deployment"
    folder.mkdir(exist_ok=True)
    record = folder / "record.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not record.exists():
            record.write_text(json.dumps(_tell(folder)))
    told = json.loads(record.read_text())
    runs = {name: Run(**{**one, "after": Snapshot.parse(one["after"])}) for name, one in told["runs"].items()}
    return Story(**runs, unknown=told["unknown"], uploads=folder / "uploads", checkout=folder / "checkout")


def _tell(folder: Path) -> dict[str, Any]:
    """Run everything; a script that fails ends the story, and the tests show what it said."""
    apis = GoogleApis()
    apis.start()
    place = checkout(folder / "checkout")
    deploy = [str(place / "infra/deploy.sh"), *DEPLOY]
    destroy = [str(place / "infra/destroy.sh"), *OPTIONS, "--yes"]
    chapters: tuple[tuple[str, Callable[[], object], list[str]], ...] = (
        ("deploy", lambda: strangers(apis), deploy),
        ("repeat", lambda: None, deploy),
        ("change", lambda: disturb(apis, place), [deploy[0], *ALONE]),
        ("destroy", lambda: forget(apis), destroy),
        ("later", lambda: wait(folder / "gcloud", 10 * DAY), [deploy[0], *ALONE]),
        ("destroy_data", lambda: None, [*destroy, "--with-data"]),
    )
    runs: dict[str, Any] = {}
    try:
        for name, before, script in chapters:
            before()
            done = run(script, place, apis, folder / "gcloud")
            runs[name] = {**vars(done), "after": done.after.dump()}
            if done.status:
                runs = {chapter: runs.get(chapter, runs[name]) for chapter, _, _ in chapters}
                break
    finally:
        apis.stop()
    (folder / "uploads").mkdir()
    for name, content in apis.uploads.items():
        (folder / "uploads" / name).write_bytes(content)
    return {"runs": runs, "unknown": apis.unknown}


# Existing resources of others, some with names like ours, one with the name of one of ours.

STRANGER = f"serviceAccount:{NAME}-other@{PROJECT}.iam.gserviceaccount.com"
TAKEN = f"artifactregistry/projects/{PROJECT}/locations/{REGION}/repositories/{NAME}-images"
"""A repository with the name of one of ours that existed before."""
STRANGERS: dict[str, dict[str, Any]] = {
    f"pubsub/projects/{PROJECT}/topics/{NAME}-ticks2": {"name": f"projects/{PROJECT}/topics/{NAME}-ticks2"},
    f"pubsub/projects/{PROJECT}/topics/other-ticks": {
        "name": f"projects/{PROJECT}/topics/other-ticks",
        "labels": {"deploy_sh": "other"},
    },
    f"storage/b/{PROJECT}-{NAME}-data": {"name": f"{PROJECT}-{NAME}-data", "id": f"{PROJECT}-{NAME}-data"},
    f"storage/b/{PROJECT}-{NAME}-data/o/model": {
        "name": "model",
        "bucket": f"{PROJECT}-{NAME}-data",
        "generation": "1",
    },
    f"secretmanager/projects/{PROJECT}/secrets/other-wandb-api-key": {
        "name": f"projects/{PROJECT}/secrets/other-wandb-api-key"
    },
    **{f"secretmanager/{name}": {"name": name} for name in TOKENS},
    f"monitoring/projects/{PROJECT}/alertPolicies/other": {
        "name": f"projects/{PROJECT}/alertPolicies/other",
        "displayName": "other: passes fail",
        "userLabels": {"deploy_sh": "other"},
    },
    f"logging/projects/{PROJECT}/metrics/{NAME}%2Fmine": {"name": f"{NAME}/mine", "filter": "severity>=ERROR"},
    f"iam/projects/{PROJECT}/roles/vertex_launch_mine": {
        "name": f"projects/{PROJECT}/roles/vertex_launch_mine",
        "title": "mine",
        "includedPermissions": ["storage.objects.get"],
    },
    TAKEN: {"name": TAKEN.partition("/")[2], "format": "DOCKER"},
    **{
        f"iam/projects/{PROJECT}/serviceAccounts/{email}": {
            "name": f"projects/{PROJECT}/serviceAccounts/{email}",
            "email": email,
        }
        for email in (STRANGER.partition(":")[2], INVOKERS[1].partition(":")[2])
    },
}
THEIR_RIGHTS: list[dict[str, Any]] = [
    {"role": "roles/viewer", "members": [STRANGER]},
    {"role": "roles/editor", "members": [STRANGER], "condition": {"title": "soon", "expression": "request.time < x"}},
]


def strangers(apis: GoogleApis) -> None:
    """Put things of others there; what is new takes as long to work as it does at Google when it is slow."""
    apis.resources.update(json.loads(json.dumps(STRANGERS)))
    apis.bindings[f"cloudresourcemanager/projects/{PROJECT}"] = json.loads(json.dumps(THEIR_RIGHTS))
    apis.spread, apis.metric_delay, apis.api_delay = 60.0, 300.0, 40.0


# What happens to a deployment as time goes by

FUNCTIONS = f"cloudfunctions/projects/{PROJECT}/locations/{REGION}/functions"
CONNECTOR = f"projects/{PROJECT}/locations/{REGION}/connectors/main"
SUBSCRIPTION = f"pubsub/projects/{PROJECT}/subscriptions/{NAME}-ticks"
SCHEDULE = f"cloudscheduler/projects/{PROJECT}/locations/{REGION}/jobs/{NAME}-tick"
SINK = f"logging/projects/{PROJECT}/sinks/{NAME}-job-ends"
WIDENED, DELETED = (f"iam/projects/{PROJECT}/roles/vertex_launch_{name}" for name in ("job_state", "record"))
CHANNEL = f"projects/{PROJECT}/notificationChannels/1"
KEPT_FILES = ("passes.yaml", "no-pass.yaml")
"""The metric and the alert that the change is about; the others are out of the way, to save time."""


def disturb(apis: GoogleApis, place: Path) -> None:
    """Change what was deployed by hand, and the checkout; give the secret its key."""
    apis.resources[SUBSCRIPTION]["ackDeadlineSeconds"] = 10
    apis.enabled.add("vpcaccess.googleapis.com")
    apis.resources[SCHEDULE] |= {"schedule": "*/5 * * * *", "timeZone": "Europe/Berlin"}
    for name in ("dispatch", "dispatch-now"):
        apis.resources[f"{FUNCTIONS}/{NAME}-{name}"]["serviceConfig"] |= {
            "availableMemory": "2Gi",
            "vpcConnector": CONNECTOR,
        }
    apis.resources[SINK]["filter"] = "severity>=ERROR"
    apis.resources[WIDENED]["includedPermissions"].append("aiplatform.customJobs.delete")
    apis.resources[DELETED]["deleted"] = True
    secret = f"projects/{PROJECT}/secrets/{NAME}-wandb-api-key/versions/1"
    apis.resources[f"secretmanager/{secret}"] = {"name": secret, "state": "ENABLED"}
    settings = place / "vertex-launch.yaml"
    settings.write_text(settings.read_text().replace("\napi_key_delivery: secret\n", "\napi_key_delivery: env\n"))
    for name, policy in apis.resources.items():
        if name.startswith("monitoring/") and policy["displayName"] == f"{NAME}: no pass for ten minutes":
            policy["notificationChannels"] = [CHANNEL]
    for file in [*place.glob("infra/monitoring/metrics/*"), *place.glob("infra/monitoring/alerts/*")]:
        if file.name in KEPT_FILES:
            file.write_text(f"# changed\n{file.read_text()}")
        else:
            file.unlink()
    with (place / "main.py").open("a") as main:
        main.write("# changed\n")


def forget(apis: GoogleApis) -> None:
    """Take away the metrics and alerts that the change was not about, to save time."""
    kept = (f"{NAME}/passes", f"{NAME}: no pass for ten minutes")
    for name, value in list(apis.resources.items()):
        watches = name not in STRANGERS and name.split("/")[-2] in ("metrics", "alertPolicies")
        if watches and value.get("displayName", value["name"]) not in kept:
            del apis.resources[name]
