"""Jobs that read the W&B key, or a token for git, as their own account: the functions, the real client and a whole local cloud."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from google.cloud.aiplatform_v1 import CustomJob
from google.cloud.secretmanager_v1 import SecretVersion

from local.machine.cloud import API_KEY, ENTITY, JOB_ACCOUNT, PROJECT, SECRET, USER, Cloud, Options
from local.machine.containers import Fate, Script
from local.machine.images import REGISTRY
from local.standins.vertex.jobs import ENDED
from tests.local_cloud.test_local_artifacts import COMMANDS
from tests.support.bootstrap_world import Internet, repository
from tests.support.deployment import resource_args, run_spec
from tests.support.processes import eventually
from vertex_launch.codes import Code
from vertex_launch.job import labels

OTHER_ACCOUNT = f"other@{PROJECT}.iam.gserviceaccount.com"
AGENT = "service-415104041262@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"
"""Google's own custom code agent, as which jobs without an account run if the settings name it."""
OTHER_KEY = "another0" * 5
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSION = f"{SECRET}/versions/latest"
NUMBERED = "projects/415104041262/secrets/wandb-api-key/versions"
PATIENCE = 120.0
"""Seconds within which everything has to end."""

PROGRAM = "import wandb\nwith wandb.init() as run:\n    run.log({'loss': 0.5})\n"

PUSH = """mutation($entity: String!, $queue: String!, $spec: JSONString!) { pushToRunQueueByName(input: {
    entityName: $entity, projectName: "model-registry", queueName: $queue, runSpec: $spec}) { runQueueItemId } }"""

READ_THE_KEY = """
import json, os, sys, urllib.error, urllib.request

def get(url, **headers):
    request = urllib.request.Request(url, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return urllib.request.urlopen(request).read().decode()

account = f"http://{os.environ['GCE_METADATA_HOST']}/computeMetadata/v1/instance/service-accounts/default/"
print(get(account + "email", Metadata_Flavor="Google"))
token = json.loads(get(account + "token", Metadata_Flavor="Google"))["access_token"]
try:
    print(get(sys.argv[1], Authorization="Bearer " + token))
except urllib.error.HTTPError as error:
    print(error.code)
"""


class World:
    """A cloud, a person at a terminal in ``home``, and all reports of ``dispatch_now``."""

    def __init__(self, home: Path, **options: Any) -> None:
        settings = {"resubmit_after": 1, "timeouts": {"settle_grace": 3}, **options.pop("settings", {})}
        self.cloud = Cloud(Options(queued=0.05, pending=0.05, settings=settings, **options))
        self.home = home
        self.person: dict[str, str] = {}
        self.reports: list[str] = []

    def __enter__(self) -> World:
        self.cloud.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.cloud.stop()

    def run(self, *arguments: str) -> None:
        """Run Python like a person at a terminal."""
        variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "TMPDIR": str(self.home),
            **self.cloud.person_variables(),
            **self.person,
        }
        done = subprocess.run(
            [sys.executable, *arguments], env=variables, cwd=self.home, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def commands(self, *given: str) -> None:
        """Run commands of ``wandb`` as people type them."""
        self.run("-c", COMMANDS, json.dumps([shlex.split(one) for one in given]))

    def make_queues(self, **container: Any) -> None:
        """Create ``vertex-cpu``, whose variable ``account`` is ``JOB_ACCOUNT``, and ``vertex-gpu`` without an account."""
        pool = {
            "machine_spec": {"machine_type": "n1-standard-4"},
            "replica_count": 1,
            "container_spec": {"image_uri": "${image_uri}", **container},
        }
        spec = {"worker_pool_specs": [pool], "staging_bucket": "gs://demo-staging"}
        account = {"account": {"schema": {"type": "string", "default": JOB_ACCOUNT}}}
        with_account = {**spec, "service_account": "{{account}}"}
        create = self.cloud.wandb.store.create_queue
        create(ENTITY, "vertex-cpu", resource_args={"spec": with_account}, template_variables=account)
        create(ENTITY, "vertex-gpu", resource_args={"spec": spec})

    def push(self, queue: str, name: str, *entry_point: str, **spec: Any) -> None:
        """Push a run spec that the client's commands cannot create."""
        pushed = {
            **run_spec(image=f"{REGISTRY}/quick:1", project="demo"),
            "name": name,
            "overrides": {"entry_point": entry_point},
            "resource_args": {},
            **spec,
        }
        variables = {"entity": ENTITY, "queue": queue, "spec": json.dumps(pushed)}
        body = {"query": PUSH, "variables": variables}
        answer = requests.post(f"{self.cloud.wandb.url}/graphql", json=body, auth=("api", API_KEY), timeout=30)
        assert "errors" not in answer.json(), answer.text

    def ask(self, **body: Any) -> dict[str, Any]:
        """Request a pass from ``dispatch_now``."""
        answer = requests.post(self.cloud.dispatch_now.url, json=body, timeout=60)
        assert answer.status_code in (200, 409), answer.text
        self.reports.append(answer.text)
        report: dict[str, Any] = answer.json()
        return report

    def items(self) -> dict[str, dict[str, Any]]:
        """Return W&B's items by name."""
        queues = self.cloud.state()["wandb"]["queues"]
        return {item["name"]: item for queue in queues for item in queue["items"]}

    def jobs_of(self, name: str) -> list[Any]:
        """Return the jobs of an item, the oldest first."""
        label = labels.item_value(self.cloud.wandb.url, ENTITY, self.items()[name]["id"])
        return [job for job in self.cloud.vertex.jobs.values() if job.labels[labels.ITEM] == label]

    def output(self, name: str) -> str:
        """Return the output of the container of an item's last job."""
        return (self.cloud.containers.files(self.jobs_of(name)[-1].name) / "output").read_text()

    def finish(self, *good: str, bad: tuple[str, ...] = ()) -> None:
        """Wait until the runs of the good items have finished and the bad items have failed."""

        def is_done() -> bool:
            self.ask()
            items = self.items()
            runs = {run["name"]: run for run in self.cloud.state()["wandb"]["runs"]}
            return (
                all(runs.get(items[name]["run"], {}).get("state") == "finished" for name in good)
                and all(items[name]["state"] == "FAILED" for name in bad)
                and all(job.state in ENDED for job in self.cloud.vertex.jobs.values())
            )

        assert eventually(is_done, PATIENCE), json.dumps(self.items(), indent=1)

    def owner(self, name: str) -> str:
        """Return the user of the key that an item's run reported with."""
        run = self.cloud.wandb.store.runs.get(ENTITY, "demo", self.items()[name]["run"])
        assert run is not None
        return run.username

    def places(self, *words: str) -> set[str]:
        """Return where one of these words is found: in what others than the job see, and in what the job leaves behind."""
        jobs = self.cloud.vertex.jobs
        files = [path for name in jobs for path in self.cloud.containers.files(name).rglob("*") if path.is_file()]
        texts = {
            "jobs": [CustomJob.serialize(job) + repr(job).encode() for job in jobs.values()],
            "containers": [path.read_bytes() for path in files],
            "function logs": [path.read_bytes() for path in self.cloud.folder.glob("*.log")],
            "reports": [report.encode() for report in self.reports],
            "W&B": [repr([self.cloud.state(), *map(vars, self.cloud.wandb.store.runs.all())]).encode()],
        }
        return {
            place for place, found in texts.items() if any(word.encode() in text for text in found for word in words)
        }


SECRETLY = {"api_key_delivery": "secret"}


def test_only_the_jobs_see_the_key(tmp_path: Path) -> None:
    with World(tmp_path, settings=SECRETLY) as world:
        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "train.py").write_text(PROGRAM)
        world.make_queues()
        world.cloud.containers.scripts.append(Script(Fate.PREEMPTED, display_name="again"))
        entry_point = '-E "python main.py"'
        launch = "launch -q vertex-cpu -p demo"
        world.commands(
            f'job create code code -p demo -n code -E "python train.py" -r {PYTHON}',
            f"job create image {REGISTRY}/quick:1 -p demo -n image",
            f"{launch} --name code -j {ENTITY}/demo/code:latest",
            f"{launch} --name image -j {ENTITY}/demo/image:latest {entry_point}",
            f"{launch} --name plain -d {REGISTRY}/quick:1 {entry_point}",
            f"{launch} --name again -d {REGISTRY}/quick:1 {entry_point}",
        )
        names = ("code", "image", "plain", "again")
        world.finish(*names)
        args = resource_args(service_account=JOB_ACCOUNT, staging_bucket="gs://demo-staging")
        world.ask(dry_run=True, run_spec=run_spec(resource_args=args, overrides={"entry_point": ["a"]}))
        assert {name: len(world.jobs_of(name)) for name in names} == {"code": 1, "image": 1, "plain": 1, "again": 2}
        assert [world.owner(name) for name in names] == [USER] * 4
        read = world.cloud.secrets.read
        assert set(read) == {(JOB_ACCOUNT, f"{NUMBERED}/1")}
        assert len(read) >= 4
        assert world.places(API_KEY, *world.cloud.tokens.given()) == set()
        # These words may be seen and are found, so the search works.
        assert world.places(VERSION) == {"jobs", "containers", "reports"}
        assert world.places(world.items()["code"]["run"]) == {"jobs", "containers", "function logs", "reports", "W&B"}


def test_what_cannot_get_the_key_fails_with_the_reason(tmp_path: Path) -> None:
    with World(tmp_path, settings={**SECRETLY, "log_lines": 3, "jobs_account": AGENT}) as world:
        world.make_queues()
        image = f"-p demo -d {REGISTRY}/quick:1"
        world.commands(
            f"launch {image} -q vertex-cpu --name no-command",
            f'launch {image} -q vertex-gpu --name no-account -E "python main.py"',
            f'launch {image} -q vertex-cpu --name no-right -E "python main.py" --set-var account={OTHER_ACCOUNT}',
        )
        world.push("vertex-cpu", "own-key", "python", "main.py", _wandb_api_key=OTHER_KEY)
        refused = ("no-command", "no-account", "own-key")
        world.finish(bad=(*refused, "no-right"))

        messages = {name: item["error"]["message"] for name, item in world.items().items()}
        assert [world.jobs_of(name) for name in refused] == [[], [], []]
        assert Code.SPEC_COMMAND in messages["no-command"]
        assert Code.SPEC_SERVICE_ACCOUNT in messages["no-account"]
        assert Code.SPEC_KEY in messages["own-key"]

        (job,) = world.jobs_of("no-right")
        assert job.job_spec.service_account == OTHER_ACCOUNT
        refusal = f"key: failed [{Code.BOOT_SECRET}]: {OTHER_ACCOUNT} cannot read {VERSION} (403 Permission "
        assert f"vertex-launch: {refusal}" in world.output("no-right")
        assert "exited with a non-zero status of 1" in messages["no-right"]
        assert refusal in messages["no-right"]
        assert world.cloud.secrets.read == []
        assert world.places(API_KEY, OTHER_KEY, *world.cloud.tokens.given()) == set()


def test_if_the_settings_name_vertex_ais_agent_a_job_runs_as_it_and_cannot_read_the_key(tmp_path: Path) -> None:
    with World(tmp_path, settings={"jobs_account": AGENT}, secret_readers={SECRET: [JOB_ACCOUNT]}) as world:
        world.make_queues()
        url = f"http://{world.cloud.secrets.address}/v1/{VERSION}:access"
        for queue in ("vertex-cpu", "vertex-gpu"):
            world.push(queue, queue, "python", "-c", READ_THE_KEY, url)
        world.finish(bad=("vertex-cpu", "vertex-gpu"))  # because they never call wandb.init
        account, answer = world.output("vertex-cpu").split("\n", 1)
        assert (account, json.loads(answer)["name"]) == (JOB_ACCOUNT, f"{NUMBERED}/1")
        assert world.output("vertex-gpu").split() == [AGENT, "403"]


def test_a_job_reads_the_latest_version_when_it_starts(tmp_path: Path) -> None:
    with World(tmp_path, settings=SECRETLY, api_keys={API_KEY: USER, OTHER_KEY: "grace"}) as world:
        world.make_queues()
        world.cloud.vertex.capacity.jobs = 0
        world.commands(f'launch -q vertex-cpu -p demo --name late -d {REGISTRY}/quick:1 -E "python main.py"')
        assert eventually(lambda: world.ask().get("submitted"))
        world.cloud.secrets.add(SECRET, OTHER_KEY)
        world.cloud.secrets.set_state(f"{SECRET}/versions/1", SecretVersion.State.DESTROYED)
        world.cloud.vertex.capacity.jobs = None
        world.finish("late")
        assert world.cloud.secrets.read == [(JOB_ACCOUNT, f"{NUMBERED}/2")]
        assert world.owner("late") == "grace"
        assert world.places(API_KEY, OTHER_KEY) == set()


# Tokens for git


GIT_HOST = "git.acme.example"
GIT_SECRET = f"projects/{PROJECT}/secrets/git-token"
GIT_TOKEN = "glpat-0123456789abcdef"


@pytest.fixture
def internet(tmp_path: Path) -> Iterator[Internet]:
    folder = tmp_path / "internet"
    folder.mkdir()
    with Internet(folder) as server:
        yield server


@pytest.mark.parametrize("delivery", ["env", "secret"])
def test_a_job_fetches_a_private_repository_with_a_token_of_its_own(
    tmp_path: Path, internet: Internet, delivery: str
) -> None:
    _, (commit,) = repository(tmp_path / "repository", {"train.py": PROGRAM})
    address = f"https://{GIT_HOST}/acme/train"
    internet.repositories = {address: tmp_path / "repository" / ".git"}
    internet.passwords = {address: ("oauth2", GIT_TOKEN)}
    settings = {
        "jobs_account": AGENT,
        "api_key_delivery": delivery,
        "git_token_secrets": {GIT_HOST: f"{GIT_SECRET}/versions/latest"},
    }
    with World(tmp_path, settings=settings) as world:
        world.cloud.secrets.add(GIT_SECRET, GIT_TOKEN)
        world.make_queues(env=[{"name": name, "value": value} for name, value in internet.variables.items()])
        helper = f"!f() {{ echo username=oauth2; echo password={GIT_TOKEN}; }}; f"
        world.person = {
            **internet.variables,
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "credential.helper",
            "GIT_CONFIG_VALUE_0": helper,
        }
        world.commands(
            f'job create git {address} -p demo -n git -E "python train.py" --git-hash {commit} -r {PYTHON}',
            f"launch -q vertex-cpu -p demo --name git -j {ENTITY}/demo/git:latest",
            f"launch -q vertex-gpu -p demo --name no-account -j {ENTITY}/demo/git:latest",
        )
        world.finish("git", bad=("no-account",))
        assert f"fetching {commit} of {address}" in world.output("git")
        assert world.owner("git") == USER
        wanted = [GIT_SECRET, *([SECRET] if delivery == "secret" else [])]
        numbered = {f"{secret.replace(PROJECT, '415104041262')}/versions/1" for secret in wanted}
        assert set(world.cloud.secrets.read) == {(JOB_ACCOUNT, version) for version in numbered}
        assert "roles/secretmanager.secretAccessor" in world.items()["no-account"]["error"]["message"]
        hidden = [GIT_TOKEN, *world.cloud.tokens.given(), *([API_KEY] if delivery == "secret" else [])]
        assert world.places(*hidden) == set()
        if delivery == "env":
            assert "jobs" in world.places(API_KEY)
