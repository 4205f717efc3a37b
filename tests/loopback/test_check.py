"""The preflight against the local services: what it reports when everything works, and when one thing does not."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager_v1 import SecretVersion
from google.pubsub_v1 import PublisherClient

from local.standins.iam import TOKEN_PATH, IamServer
from local.standins.logs import LogServer
from local.standins.pubsub import PubSubServer
from local.standins.secrets import SecretServer
from local.standins.storage import StorageServer
from local.standins.vertex.server import PROJECTS, VertexServer
from local.standins.wandb import WandbServer
from tests.support import specs
from tests.support.permissions import LOG_LINES, NEEDED
from tests.support.processes import ROOT
from vertex_launch import __version__
from vertex_launch.__main__ import main
from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, Unavailable
from vertex_launch.job.queue_config import IMAGE, QueueConfig
from vertex_launch.log import LOGGER, Redactor
from vertex_launch.preflight import checks as check
from vertex_launch.preflight import cli
from vertex_launch.preflight.checks import Function
from vertex_launch.preflight.credentials import Endpoints
from vertex_launch.preflight.lines import Verdict
from vertex_launch.preflight.permissions import project_of
from vertex_launch.settings.config import Timeouts

PROJECT, REGION, ENTITY = "demo-project", "us-central1", "acme"
KEY, WRONG = "preflight" * 5, "mistaken" * 5
SECRET = f"projects/{PROJECT}/secrets/wandb-api-key"
TOPIC = f"projects/{PROJECT}/topics/ticks"
JOBS, OTHER, GHOST = (f"{name}@{PROJECT}.iam.gserviceaccount.com" for name in ("jobs", "other-jobs", "ghost"))
DEPLOYER, DISPATCH, JOB_STATE = (
    f"{name}@{PROJECT}.iam.gserviceaccount.com" for name in ("deployer", "vl-dispatch", "vl-job-state")
)
AGENT = "service-1@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"
NOBODY = "a caller without credentials"
POOL = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "replica_count": 1,
    "container_spec": {"image_uri": "${image_uri}"},
}
SETTINGS = {
    "project": PROJECT,
    "regions": [{"name": REGION, "staging_bucket": "gs://demo-staging"}],
    "key_secret": f"{SECRET}/versions/latest",
    "state_bucket": "gs://demo-state/record",
    "jobs_account": JOBS,
    "tick_topic": TOPIC,
    "timeouts": {"read": 3, "look": 3},
}


class World:
    """The services, and a deployment that is ready but for what a test does to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = dict(SETTINGS)
        self.launch: dict[str, Any] = {"entity": ENTITY, "queues": ["cpu"]}
        self.wandb = WandbServer(
            api_keys={KEY: "ada"}, teams={ENTITY: ["ada"]}, default_entities={"ada": ENTITY}, lease=60
        )
        self.vertex = VertexServer()
        self.secrets = SecretServer(projects=PROJECTS)
        self.storage = StorageServer(buckets=["demo-state", "demo-staging"])
        self.pubsub = PubSubServer()
        self.iam = IamServer(projects=PROJECTS, accounts=[JOBS, OTHER, DEPLOYER, DISPATCH, JOB_STATE])
        self.servers = (self.wandb, self.vertex, self.secrets, self.storage, self.pubsub, self.iam)
        self.secrets.add(SECRET, KEY)
        self.iam.denied.add(("", check.READ_LOGS))  # which is of no interest but where log_lines is set
        self.queue("cpu", service_account=JOBS)

    def queue(self, name: str, *, resource: str = "gcp-vertex", pool: Mapping[str, Any] = POOL, **spec: Any) -> None:
        """Make a queue, or another one of that name."""
        launch = self.wandb.store.launch
        for old in [queue.id for queue in launch.queues.values() if queue.name == name]:
            launch.delete_queues([old])
        variables = spec.pop("variables", None)
        args = spec.pop("args", {"spec": {"worker_pool_specs": [pool], **spec}})
        self.wandb.store.create_queue(ENTITY, name, resource=resource, resource_args=args, template_variables=variables)

    def without_entity(self) -> None:
        """Name the entity neither in the configuration nor for the key."""
        del self.launch["entity"]
        users = self.wandb.store.users
        users["ada"] = replace(users["ada"], entity="")

    def without_account_of_jobs(self, **settings: Any) -> None:
        """Let the queue's config name no account, with these settings."""
        self.settings |= settings
        self.queue("cpu")

    def deployed(self, name: str) -> None:
        """Use the names that a deployment gives."""
        topic = f"projects/{PROJECT}/topics/{name}-ticks"
        self.settings |= {"deployment": name, "tick_topic": topic}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PUBSUB_EMULATOR_HOST", self.pubsub.address)
            publisher = PublisherClient()
            publisher.create_topic(name=topic)
            publisher.transport.close()

    def without_iam(self) -> None:
        """Stop IAM, which is asked about two accounts."""
        self.settings["policy"] = {"service_accounts": [JOBS, OTHER]}
        self.iam.stop()

    def variables(self) -> dict[str, str]:
        """Write the files, and give the environment that names them and the services."""
        for name, content in (("launch.yaml", self.launch), ("vertex.yaml", self.settings)):
            (self.folder / name).write_text(yaml.safe_dump(content))
        return {
            "LAUNCH_CONFIG": str(self.folder / "launch.yaml"),
            "VERTEX_LAUNCH_CONFIG": str(self.folder / "vertex.yaml"),
            "WANDB_BASE_URL": self.wandb.url,
            "AIPLATFORM_ENDPOINT": f"http://{self.vertex.address}",
            "SECRETMANAGER_ENDPOINT": f"http://{self.secrets.address}",
            "STORAGE_EMULATOR_HOST": self.storage.url,
            "PUBSUB_EMULATOR_HOST": self.pubsub.address,
            "CLOUDRESOURCEMANAGER_ENDPOINT": self.iam.endpoint,
            "IAM_ENDPOINT": self.iam.endpoint,
        }


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    for server in world.servers:
        server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PUBSUB_EMULATOR_HOST", world.pubsub.address)
        publisher = PublisherClient()
        publisher.create_topic(name=TOPIC)
        publisher.transport.close()
    yield world
    for server in world.servers:
        server.stop()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; gives its status and what it printed."""
    for name in list(os.environ):
        if re.match(r"(WANDB|GOOGLE|VERTEX_LAUNCH|CLOUDSDK)_", name):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_GCE_CHECK", "true")  # else Google's library looks for the metadata server of a machine
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(world.folder / "gcloud"))
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)

    def run(*arguments: str, **variables: str) -> tuple[int, str]:
        for name, value in (world.variables() | variables).items():
            monkeypatch.setenv(name, value)
        status = main(["check", *arguments])
        printed = capsys.readouterr()
        assert printed.err == ""
        assert KEY not in printed.out
        return status, printed.out

    return run


class Printed(NamedTuple):
    """One line that the command prints; ``code`` is empty for ok and skip."""

    verdict: str
    what: str
    text: str
    code: str


def parsed(output: str) -> list[Printed]:
    """Parse every line but the conclusion."""
    lines = [
        re.fullmatch(r"(ok|warn|FAIL|skip) +(.+?): (.+?)(?: \[(VL-[A-Z-]+)\])?", line)
        for line in output.splitlines()[:-2]
    ]
    return [Printed(line[1], line[2], line[3], line[4] or "") if line else pytest.fail(output) for line in lines]


def verdicts(output: str) -> list[str]:
    return [line.verdict for line in parsed(output)]


def found(output: str, verdict: str) -> list[Printed]:
    return [line for line in parsed(output) if line.verdict == verdict]


# All is well


def test_all_is_well(run: Run) -> None:
    status, output = run()
    lines = parsed(output)
    assert (status, {line.verdict for line in lines}, {line.code for line in lines}) == (0, {"ok"}, {""})
    assert [line.what for line in lines] == [
        "configuration",
        "Google credentials",
        f"jobs in {REGION}",
        "API key",
        "W&B",
        "queue cpu",
        "config of queue cpu",
        f"CustomJobs in project {PROJECT}",
        "record gs://demo-state/record",
        "staging bucket gs://demo-staging",
        f"service account {JOBS}",
        "account of jobs",
        "policy",
        f"topic {TOPIC}",
    ]
    shown = {line.what: line.text for line in lines}
    assert os.environ["WANDB_BASE_URL"] in shown["W&B"]
    assert "ada" in shown["W&B"]
    assert JOBS in shown["config of queue cpu"]


def test_it_changes_nothing(world: World, run: Run) -> None:
    run()
    operations = {name for request in world.wandb.store.operations for name in request.operations}
    assert operations == {"viewer", "project", "entity"}
    assert set(world.vertex.calls) == {"ListCustomJobs"}
    assert set(world.storage.calls) == {"storage.testPermissions", "storage.getBucket"}
    assert set(world.pubsub.calls) == {"CreateTopic", "TestIamPermissions"}


def test_it_asks_for_the_permissions_that_the_functions_use() -> None:
    asked = {check.CREATE, check.LIST, check.GET, check.CANCEL, check.ACT_AS, check.PUBLISH, *check.OBJECTS}
    needed = {permission for permissions in NEEDED.values() for _, permission in permissions}
    assert asked == needed - {"secretmanager.versions.access"}  # tested by reading the key
    assert {permission for _, permission in LOG_LINES} == {check.READ_LOGS}


def test_the_default_entity_of_the_key(world: World, run: Run) -> None:
    del world.launch["entity"]
    status, output = run()
    assert status == 0
    assert [ENTITY in line.text for line in parsed(output) if line.what == "W&B"] == [True]


# One thing is wrong

Break = Callable[[World], object]
Case = tuple[Break, tuple[str, Code | None, tuple[str, ...]]]


def says(what: str, code: Code | None, *values: str) -> tuple[str, Code | None, tuple[str, ...]]:
    """Return the subject of the only FAIL or warn, its code (None: the adapter's), and values that the line names."""
    return what, code, values


OWN = "config of queue cpu"


def setting(**values: Any) -> Break:
    return lambda world: world.settings.update(values)


def launch(**values: Any) -> Break:
    return lambda world: world.launch.update(values)


def queue(**values: Any) -> Break:
    return lambda world: world.queue("cpu", **values)


FAILING: Mapping[str, Case] = {
    "another server's key": (lambda world: world.secrets.add(SECRET, WRONG), says("W&B", None, "401")),
    "a secret without a version": (
        setting(key_secret=f"{SECRET}/versions/7"),
        says("API key", None, f"{SECRET}/versions/7"),
    ),
    "a disabled version": (
        lambda world: world.secrets.set_state(f"{SECRET}/versions/1", SecretVersion.State.DISABLED),
        says("API key", None, SECRET),
    ),
    "no permission on the secret": (
        lambda world: world.secrets.faults.fail("AccessSecretVersion", "PERMISSION_DENIED", message="denied"),
        says("API key", None, NOBODY, "roles/secretmanager.secretAccessor"),
    ),
    "no W&B": (
        lambda world: world.wandb.stop(),
        says("W&B", Code.CHECK_CONNECTION, "connection refused", "WANDB_BASE_URL"),
    ),
    "a key without an entity": (
        lambda world: world.without_entity(),
        says("W&B", Code.CHECK_ENTITY, "ada", "WANDB_ENTITY"),
    ),
    "another entity": (launch(entity="others"), says("queues", None, "others", "launch.yaml")),
    "no such queue": (
        launch(queues=["cpu", "gpu"]),
        says("queue gpu", Code.CHECK_QUEUE, "acme", "(it has: cpu)", "launch.yaml"),
    ),
    "a queue of another resource": (queue(resource="kubernetes"), says("queue cpu", Code.CHECK_QUEUE, "kubernetes")),
    "a machine that the policy forbids": (
        setting(policy={"machine_types": ["e2-*"]}),
        says(OWN, Code.POLICY_MACHINE_TYPE, "n1-standard-4", "e2-*", "policy.machine_types"),
    ),
    "a key that no image may read": (
        lambda world: (world.settings.update(api_key_delivery="secret"), world.launch.update(secure_mode=True)),
        says(OWN, None),
    ),
    "a policy without any image": (setting(policy={"images": []}), says(OWN, Code.POLICY_IMAGE, IMAGE)),
    "a blank in a config": (
        queue(staging_bucket="<REQUIRED>", service_account=JOBS),
        says(OWN, None, "staging_bucket", "<REQUIRED>"),
    ),
    "a config for another region": (queue(location="europe-west4"), says(OWN, None, "europe-west4")),
    "a region that does not exist": (
        setting(regions=[{"name": "us-central9", "staging_bucket": "gs://nowhere"}]),
        says("jobs in us-central9", Code.CHECK_REGION, "us-central9", "vertex.yaml"),
    ),
    "a region that does not exist, without a bucket": (
        setting(regions=[{"name": "us-central9"}]),
        says("jobs in us-central9", Code.CHECK_REGION),
    ),
    "no permission to list": (
        lambda world: world.vertex.faults.fail("ListCustomJobs", "PERMISSION_DENIED", message="denied"),
        says(f"jobs in {REGION}", None, NOBODY, check.LIST),
    ),
    "no permission to create": (
        lambda world: world.iam.denied.update({("", check.CREATE), ("", check.CANCEL)}),
        says(
            f"CustomJobs in project {PROJECT}", Code.CHECK_PERMISSION, NOBODY, f"lacks {check.CREATE}, {check.CANCEL}"
        ),
    ),
    "no bucket for the record": (
        setting(state_bucket="gs://elsewhere/x"),
        says(
            "record gs://elsewhere/x",
            Code.CHECK_MISSING,
            "gcloud storage buckets create gs://elsewhere,",
            "vertex.yaml",
        ),
    ),
    "a record that cannot be overwritten": (
        lambda world: world.storage.denied.add("storage.objects.delete"),
        says(
            "record gs://demo-state/record",
            Code.CHECK_PERMISSION,
            NOBODY,
            "Grant storage.objects.delete on gs://demo-state",
        ),
    ),
    "a record that has to be retained": (
        lambda world: world.storage.described.update({"demo-state": {"retentionPolicy": {"retentionPeriod": "60"}}}),
        says(
            "record gs://demo-state/record",
            Code.CHECK_BUCKET,
            "60 s",
            "gcloud storage buckets update gs://demo-state --clear-retention-period",
        ),
    ),
    "no staging bucket of a region": (
        setting(regions=[{"name": REGION, "staging_bucket": "gs://nowhere"}]),
        says(
            "staging bucket gs://nowhere",
            Code.CHECK_MISSING,
            "gcloud storage buckets create gs://nowhere",
            "staging_bucket",
        ),
    ),
    "no staging bucket of a queue": (
        queue(staging_bucket="gs://queues-own"),
        says("staging bucket gs://queues-own", Code.CHECK_MISSING),
    ),
    "an account that does not exist": (
        lambda world: world.iam.accounts.remove(JOBS),
        says(f"service account {JOBS}", Code.CHECK_MISSING, "service_account"),
    ),
    "an account to act as": (
        lambda world: world.iam.denied.add(("", check.ACT_AS)),
        says(f"service account {JOBS}", Code.CHECK_PERMISSION, NOBODY, check.ACT_AS, "roles/iam.serviceAccountUser"),
    ),
    "an account of the policy": (
        setting(policy={"service_accounts": [JOBS, GHOST, "team-*"]}),
        says(f"service account {GHOST}", Code.CHECK_MISSING, "policy.service_accounts"),
    ),
    "no topic": (
        setting(tick_topic=f"{TOPIC}-2"),
        says(f"topic {TOPIC}-2", Code.CHECK_MISSING, f"gcloud pubsub topics create {TOPIC}-2", "vertex.yaml"),
    ),
    "no permission to publish": (
        lambda world: world.pubsub.denied.add(check.PUBLISH),
        says(f"topic {TOPIC}", Code.CHECK_PERMISSION, NOBODY, check.PUBLISH, "roles/pubsub.publisher"),
    ),
    "no topic in the configuration": (
        lambda world: world.settings.pop("tick_topic"),
        says("topic of ticks", Code.CHECK_TOPIC, "tick_topic", "DISPATCH_TOPIC"),
    ),
    "no Pub/Sub": (
        lambda world: world.pubsub.stop(),
        says(f"topic {TOPIC}", Code.CHECK_CONNECTION, "connection refused"),
    ),
    "Cloud Storage fails": (
        lambda world: world.storage.faults.fail("storage.testPermissions", 503, times=None),
        says("record gs://demo-state/record", Code.CHECK_CONNECTION, "gs://demo-state"),
    ),
    "no service at all": (
        lambda world: [server.stop() for server in world.servers],
        says(f"jobs in {REGION}", Code.CHECK_CONNECTION, "Vertex AI", "connection refused"),
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_one_cause_is_one_fail(name: str, world: World, run: Run) -> None:
    """What depends on it is skipped, everything else is still checked."""
    break_it, (what, code, values) = FAILING[name]
    break_it(world)
    status, output = run()
    [line] = found(output, "FAIL")
    assert (status, line.what, line.code) == (1, what, code or line.code), output
    assert [value for value in values if value not in line.text] == []
    assert output.endswith("\nNot safe to deploy: 1 FAIL.\n"), output
    assert not re.search(f"{WRONG}|ConnectionPool|urllib3|Errno|object at 0x|ipv4:", output), output
    assert {"configuration", "API key", f"CustomJobs in project {PROJECT}"} <= {one.what for one in parsed(output)}


def described(**bucket: Any) -> Break:
    return lambda world: world.storage.described.update({"demo-state": bucket})


RECORD = "record gs://demo-state/record"
WARNING: Mapping[str, Case] = {
    "a queue without a config": (
        lambda world: (
            world.launch.update(queues=["cpu", "bare"]),
            world.wandb.store.launch.create_queue(ENTITY, "bare"),
        ),
        says("queue bare", Code.CHECK_CONFIG, "gcp-vertex"),
    ),
    "an empty config": (queue(args={}), says(OWN, Code.CHECK_CONFIG)),
    "a config that W&B does not show": (
        lambda world: world.wandb.store.launch.configs.clear(),
        says("queue cpu", Code.CHECK_CONFIG),
    ),
    "a template variable that is open": (
        lambda world: world.queue(
            "cpu",
            pool={**POOL, "machine_spec": {"machine_type": "{{machine}}"}},
            variables={"machine": {"schema": {"type": "string"}}},
        ),
        says(OWN, Code.CHECK_ITEM, ": machine)"),
    ),
    "an image of the queue's own": (
        queue(pool={**POOL, "container_spec": {"image_uri": "python:3.13"}}),
        says(OWN, Code.CHECK_ITEM),
    ),
    "projects that cannot be asked": (
        lambda world: world.iam.disabled.add("project"),
        says(f"CustomJobs in project {PROJECT}", Code.CHECK_UNVERIFIED, "Resource Manager", NOBODY, "disabled"),
    ),
    "accounts that cannot be asked": (
        lambda world: world.iam.disabled.add("account"),
        says(f"service account {JOBS}", Code.CHECK_UNVERIFIED, "IAM", NOBODY),
    ),
    "no IAM": (
        lambda world: world.without_iam(),
        says(f"CustomJobs in project {PROJECT}", Code.CHECK_UNVERIFIED, "Resource Manager", "connection refused"),
    ),
    "a bucket that does not say": (
        lambda world: world.storage.faults.fail("storage.testPermissions", 403),
        says("", Code.CHECK_UNVERIFIED, "Cloud Storage", NOBODY),
    ),
    "an emulator that knows no permissions": (
        lambda world: world.pubsub.faults.fail("TestIamPermissions", "UNIMPLEMENTED"),
        says(f"topic {TOPIC}", Code.CHECK_UNVERIFIED, "Pub/Sub", NOBODY),
    ),
    "versioning": (described(versioning={"enabled": True}), says(RECORD, Code.CHECK_BUCKET, "--no-versioning")),
    "soft delete": (
        described(softDeletePolicy={"retentionDurationSeconds": "604800"}),
        says(RECORD, Code.CHECK_BUCKET, "7 days", "--clear-soft-delete"),
    ),
    "a lifecycle": (
        described(lifecycle={"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30}}]}),
        says(RECORD, Code.CHECK_BUCKET, "--clear-lifecycle"),
    ),
    "logs that cannot be read": (setting(log_lines=5), says("log_lines", Code.CHECK_LOGS, NOBODY, check.READ_LOGS)),
    "a key that an image cannot read by itself": (
        setting(api_key_delivery="secret"),
        says(OWN, Code.CHECK_ITEM, "entry point"),
    ),
    "an unknown key in the configuration": (
        launch(environment={"type": "gcp", "colour": "red"}),
        says("configuration", None, "environment.colour"),
    ),
    "no account for jobs": (setting(jobs_account=None), says("account of jobs", Code.SPEC_NO_ACCOUNT, "jobs_account")),
    "Google's agent for jobs": (
        setting(jobs_account=AGENT),
        says("account of jobs", Code.CHECK_ACCOUNT, "jobs_account"),
    ),
    "Google's agent in the policy": (
        setting(policy={"service_accounts": [JOBS, AGENT]}, jobs_account=None),
        says("account of jobs", Code.CHECK_ACCOUNT, "policy.service_accounts"),
    ),
    "Google's agent beside an account of one's own": (
        setting(policy={"service_accounts": ["*", AGENT]}),
        says("account of jobs", Code.CHECK_ACCOUNT, "policy.service_accounts"),
    ),
    "no jobs allowed": (launch(max_jobs=0), says("configuration", None, "max_jobs")),
}


@pytest.mark.parametrize("account", [None, AGENT])
def test_a_key_that_no_job_of_the_queue_can_read(account: str | None, world: World, run: Run) -> None:
    world.without_account_of_jobs(api_key_delivery="secret", jobs_account=account)
    status, output = run()
    [line] = [line for line in found(output, "FAIL") if line.what == OWN]
    assert (status, "spec.service_account: " in line.text) == (1, True), output


@pytest.mark.parametrize(
    ("policy", "open_powers"),
    [({}, {"images", "web_access"}), ({"images": ["*"]}, {"web_access"}), ({"unlisted": "refuse"}, set())],
)
def test_the_powers_that_are_open_are_listed(
    policy: dict[str, Any], open_powers: set[str], world: World, run: Run
) -> None:
    world.settings["policy"] = policy
    [line] = [line for line in found(run()[1], "ok") if line.what == "policy"]
    assert {"images", "web_access"} & set(re.findall(r"\w+", line.text)) == open_powers


@pytest.mark.parametrize("name", WARNING)
def test_one_thing_needs_attention(name: str, world: World, run: Run) -> None:
    break_it, (what, code, values) = WARNING[name]
    break_it(world)
    status, output = run()
    [line] = found(output, "warn")
    assert (status, line.what, line.code) == (0, what or line.what, code or line.code), output
    assert [value for value in values if value not in line.text] == []
    assert output.endswith("\nSafe to deploy: nothing fails, 1 warn.\n")


def test_every_warn_and_fail_has_a_code(world: World, run: Run) -> None:
    for break_it in (
        FAILING["a queue of another resource"][0],
        FAILING["no permission to create"][0],
        WARNING["versioning"][0],
    ):
        break_it(world)
    lines = parsed(run()[1])
    assert {line.verdict for line in lines} == {"ok", "warn", "FAIL", "skip"}
    assert {bool(line.code) for line in lines if line.verdict in ("warn", "FAIL")} == {True}
    assert {line.code for line in lines if line.verdict not in ("warn", "FAIL")} == {""}


def test_what_the_bucket_does_may_be_hidden(world: World, run: Run) -> None:
    """The functions' accounts may not see it."""
    world.storage.denied.add("storage.buckets.get")
    world.storage.described["demo-state"] = {"versioning": {"enabled": True}}
    status, output = run()
    assert (status, set(verdicts(output))) == (0, {"ok", "skip"})
    assert [line.what for line in found(output, "skip")] == [RECORD]


def test_what_depends_on_the_key_is_skipped(world: World, run: Run) -> None:
    world.settings["policy"] = {"service_accounts": [OTHER]}
    world.settings["key_secret"] = f"{SECRET}/versions/7"
    _, output = run()
    skipped = [line.what for line in found(output, "skip")]
    assert skipped == ["W&B, queues and their configurations", "service accounts of jobs from cpu"]
    assert f"service account {OTHER}" in [line.what for line in found(output, "ok")]
    assert not world.wandb.store.operations


def test_template_variables(world: World, run: Run) -> None:
    machine = {"machine_type": "{{ machine }}", "accelerator_type": "NVIDIA_{{gpu}}", "accelerator_count": "{{count}}"}
    variables = {
        "machine": {
            "schema": {"type": "string", "default": "n1-standard-8", "enum": ["n1-standard-4", "n1-standard-8"]}
        },
        "gpu": {"schema": {"type": "string", "enum": ["TESLA_T4", "TESLA_V100"]}},
        "count": {"schema": {"type": "integer", "minimum": 1, "maximum": 4}},
    }
    world.queue("cpu", pool={**POOL, "machine_spec": machine}, variables=variables)
    status, output = run()
    assert status == 0
    assert "machine = n1-standard-8, gpu = TESLA_T4, count = 1" in output
    world.settings["policy"] = {"accelerators": {"NVIDIA_TESLA_V100": 4}}
    assert [line.code for line in found(run()[1], "FAIL")] == [Code.POLICY_ACCELERATOR]


def test_jobs_that_read_the_key_themselves(world: World, run: Run) -> None:
    """The account of an item with an entry point is tested; if the queue names a command, any image works."""
    world.settings["api_key_delivery"] = "secret"
    assert f"service account {JOBS}" in [line.what for line in found(run()[1], "ok")]
    container = {"image_uri": "${image_uri}", "command": ["python", "train.py"]}
    world.queue("cpu", pool={**POOL, "container_spec": container}, service_account=JOBS)
    status, output = run()
    assert (status, set(verdicts(output))) == (0, {"ok"})


def test_an_image_is_the_items_business(world: World, run: Run) -> None:
    world.settings["policy"] = {"images": ["europe-docker.pkg.dev/*"]}
    assert run()[0] == 0


# The configuration itself


def test_broken_yaml(world: World, run: Run) -> None:
    broken = world.folder / "broken.yaml"
    broken.write_text("queues: [cpu\nmax_jobs: 3")
    status, output = run(LAUNCH_CONFIG=str(broken))
    assert (status, verdicts(output)) == (1, ["FAIL", "ok", "skip"])
    assert re.search(r"broken\.yaml, line 2, column \d+", output)


def test_every_problem_of_the_configuration(world: World, run: Run) -> None:
    world.settings.update(state_bucket="demo-state", project="Demo Project", colour="red")
    status, output = run(IAM_ENDPOINT="127.0.0.1:80")
    assert (status, verdicts(output)) == (1, ["FAIL"] * 4 + ["skip"])
    for place in ("state_bucket", "project", "colour", "environment variable IAM_ENDPOINT"):
        assert re.search(rf"^FAIL  configuration: .*{place}( in .*)?: ", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IAM_ENDPOINT", "ftp://iam.googleapis.com"),
        ("CLOUDRESOURCEMANAGER_ENDPOINT", "https://host/path"),
        ("IAMCREDENTIALS_ENDPOINT", "http://10.0.0.7:8080"),
        ("OPENIDCONNECT_ENDPOINT", "http://127.0.0.1.example.com"),
    ],
)
def test_endpoints_that_cannot_be_used(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        Endpoints.of({variable: value})
    [problem] = error.value.problems
    assert (problem.place, problem.code) == (f"environment variable {variable}", Code.CHECK_ENDPOINT)
    assert value in problem.found


def test_endpoints() -> None:
    given = {"IAM_ENDPOINT": "https://iam.example.com/", "IAMCREDENTIALS_ENDPOINT": "http://[::1]:80"}
    expected = Endpoints(iam="https://iam.example.com", iamcredentials="http://[::1]:80")
    assert Endpoints.of({**given, "CLOUDRESOURCEMANAGER_ENDPOINT": ""}) == expected
    assert expected.cloudresourcemanager == "https://cloudresourcemanager.googleapis.com"


# Credentials


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 with its key, signed by itself."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(names, critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "certificate.pem"
    encoding = serialization.Encoding.PEM
    secret = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(made.public_bytes(encoding) + secret)
    return path


@pytest.fixture
def iam(world: World, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IamServer]:
    """Another IAM, which is used with TLS and so with credentials; gRPC reads its own list of authorities once a process."""
    trusted = grpc.ssl_channel_credentials(root_certificates=certificate.read_bytes())

    def secure(call: grpc.CallCredentials) -> grpc.ChannelCredentials:
        return grpc.composite_channel_credentials(trusted, call)

    monkeypatch.setattr(grpc, "compute_engine_channel_credentials", secure)
    server = IamServer(projects=PROJECTS, accounts=world.iam.accounts, certificate=certificate)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def secured(iam: IamServer, certificate: Path, world: World) -> dict[str, str]:
    """The variables with which it is used as a service account with a key file."""
    secret = rsa.generate_private_key(65537, 2048)
    pem = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key_file = {
        "type": "service_account",
        "client_email": DEPLOYER,
        "private_key": pem.decode(),
        "private_key_id": "1",
        "project_id": PROJECT,
        "token_uri": f"{iam.url}{TOKEN_PATH}",
    }
    (world.folder / "deployer.json").write_text(json.dumps(key_file))
    return {
        "GOOGLE_APPLICATION_CREDENTIALS": str(world.folder / "deployer.json"),
        "REQUESTS_CA_BUNDLE": str(certificate),
        **{f"{name}_ENDPOINT": iam.endpoint for name in ("CLOUDRESOURCEMANAGER", "IAM")},
        **{f"{name}_ENDPOINT": iam.url for name in ("IAMCREDENTIALS", "OPENIDCONNECT")},
    }


def who(output: str) -> dict[str, str]:
    """Return the text of each line by its subject."""
    return {line.what: line.text for line in parsed(output)}


PROJECT_JOBS = f"CustomJobs in project {PROJECT}"


def test_the_metrics_of_the_alerts_exist(world: World, run: Run) -> None:
    world.deployed("lab")
    alerts = [yaml.safe_load(file.read_text()) for file in (ROOT / "infra/monitoring/alerts").glob("*.yaml")]
    filters = " ".join(one["conditionThreshold"]["filter"] for alert in alerts for one in alert["conditions"])
    wanted = {f"lab/{name}" for name in re.findall(r"/user/\$\{name\}/(\w+)", filters)}
    assert len(wanted) >= 5

    def line(**variables: str) -> Printed:
        [line] = [line for line in parsed(run(**variables)[1]) if line.what == "metrics of alerts"]
        return line

    assert line().verdict == "skip", "without credentials"
    logs = LogServer(projects=PROJECTS)
    logs.metrics = {*wanted, "other/passes"}
    logs.start()
    try:
        assert line(LOGGING_ENDPOINT=logs.url).verdict == "ok"
        logs.metrics = (wanted - {"lab/passes"}) | {"other/passes"}
        missing = line(LOGGING_ENDPOINT=logs.url)
        assert (missing.verdict, missing.code) == ("warn", Code.CHECK_METRICS)
        assert [name for name in wanted if name in missing.text.split(" do not")[0].split(", ")] == ["lab/passes"]
        logs.faults.fail("ListLogMetrics", "PERMISSION_DENIED", times=1)
        assert line(LOGGING_ENDPOINT=logs.url).verdict == "skip"
    finally:
        logs.stop()
    assert line(LOGGING_ENDPOINT=logs.url).code == Code.CHECK_UNVERIFIED


PUSHES, PUSH = "pushes of Pub/Sub", f"lab-push@{PROJECT}.iam.gserviceaccount.com"
PUBSUB = "serviceAccount:service-1@gcp-sa-pubsub.iam.gserviceaccount.com"
TOKENS = "roles/iam.serviceAccountTokenCreator"


@pytest.mark.parametrize(
    ("bindings", "verdict"),
    [
        ({}, "FAIL"),
        ({PUSH: [(TOKENS, PUBSUB)]}, "ok"),
        ({PUSH: [("roles/iam.serviceAccountUser", PUBSUB), (TOKENS, "user:ada@example.com")]}, "FAIL"),
        ({PUSH: [(TOKENS, f"deleted:{PUBSUB}?uid=1")]}, "FAIL"),
        ({PROJECT: [("roles/pubsub.serviceAgent", PUBSUB)]}, "ok"),
        ({PROJECT: [("roles/pubsub.serviceAgent", PUBSUB.replace("-1@", "-1@evil."))]}, "FAIL"),
    ],
)
def test_pubsub_can_authenticate_its_pushes(
    bindings: dict[str, list[tuple[str, str]]], verdict: str, world: World, run: Run
) -> None:
    """For the topic and the account that a deployment makes."""
    world.deployed("lab")
    assert [line.verdict for line in parsed(run()[1]) if line.what == PUSHES] == ["skip"], "there is no such account"
    world.iam.accounts.add(PUSH)
    world.iam.bindings = bindings
    status, output = run()
    [line] = [line for line in parsed(output) if line.what == PUSHES]
    assert (status, line.verdict, line.code) == ((0, "ok", "") if verdict == "ok" else (1, "FAIL", Code.CHECK_PUSH))
    assert PUSH in line.text
    assert (TOKENS in line.text) is (verdict == "FAIL")
    world.iam.denied.add(("", "getIamPolicy"))
    assert [line.verdict for line in parsed(run()[1]) if line.what == PUSHES] == ["skip"], "unknown is not wrong"


def test_ones_own_permissions(iam: IamServer, secured: dict[str, str], run: Run) -> None:
    iam.denied = {(DEPLOYER, check.ACT_AS)}
    status, output = run(**secured)
    [line] = found(output, "FAIL")
    assert (status, line.what, line.code) == (1, f"service account {JOBS}", Code.CHECK_PERMISSION)
    assert f"{DEPLOYER} lacks {check.ACT_AS}" in line.text
    assert [DEPLOYER in who(output)[what] for what in ("Google credentials", PROJECT_JOBS)] == [True, True]
    assert NOBODY in who(output)[f"topic {TOPIC}"]  # Pub/Sub is still in plaintext
    assert set(iam.calls) == {("token", DEPLOYER), ("project", DEPLOYER), ("account", DEPLOYER)}


def test_a_persons_permissions(iam: IamServer, secured: dict[str, str], world: World, run: Run) -> None:
    person = {
        "type": "external_account_authorized_user",
        "audience": "//iam.googleapis.com/locations/global/workforcePools/people/providers/sso",
        "refresh_token": "ada@example.com",
        "token_url": f"{iam.url}{TOKEN_PATH}",
        "client_id": "id",
        "client_secret": "secret",
    }
    (world.folder / "person.json").write_text(json.dumps(person))
    secured["GOOGLE_APPLICATION_CREDENTIALS"] = str(world.folder / "person.json")
    status, output = run(**secured)
    assert status == 0, output
    named = [what for what, text in who(output).items() if "ada@example.com" in text]
    assert named == ["Google credentials", PROJECT_JOBS, f"service account {JOBS}"]
    iam.disabled.add("userinfo")
    status, output = run(**secured)
    assert (status, "ada@example.com" in output) == (0, False)


@pytest.mark.parametrize("named", ["", "finance"])
def test_a_person_needs_a_quota_project(
    named: str, iam: IamServer, secured: dict[str, str], world: World, run: Run
) -> None:
    """Google refuses the credentials of a person that name none, and Vertex AI is the first to do so."""
    person = {
        "type": "authorized_user",
        "refresh_token": "ada@example.com",
        "client_id": "id",
        "client_secret": "secret",
    }
    if named:
        person["quota_project_id"] = named
    (world.folder / "person.json").write_text(json.dumps(person))
    secured["GOOGLE_APPLICATION_CREDENTIALS"] = str(world.folder / "person.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{iam.url}{TOKEN_PATH}")
        status, output = run(**secured)
    assert status == 0, output
    assert iam.quota_projects == {named or PROJECT}
    assert (f"set-quota-project {PROJECT}" in who(output)["Google credentials"]) is (not named)


def test_as_the_account_of_dispatch(iam: IamServer, secured: dict[str, str], run: Run) -> None:
    iam.denied = {(DEPLOYER, check.CREATE), (DEPLOYER, check.ACT_AS)}  # whose permissions are not tested
    status, output = run("--as", DISPATCH, **secured)
    assert status == 0, output
    named = [what for what, text in who(output).items() if DISPATCH in text]
    assert named == ["Google credentials", PROJECT_JOBS, f"service account {JOBS}"]
    assert [line.what for line in found(output, "skip")] == [f"topic {TOPIC}"]
    assert set(iam.calls) == {
        ("token", DEPLOYER),
        ("generateAccessToken", DEPLOYER),
        ("project", DISPATCH),
        ("account", DISPATCH),
    }
    iam.denied = {(DISPATCH, check.CREATE)}
    [line] = found(run("--as", DISPATCH, **secured)[1], "FAIL")
    assert (line.what, line.code) == (PROJECT_JOBS, Code.CHECK_PERMISSION)
    assert f"{DISPATCH} lacks {check.CREATE}." in line.text


def test_as_the_account_of_job_state(iam: IamServer, secured: dict[str, str], world: World, run: Run) -> None:
    iam.denied = {(JOB_STATE, permission) for permission in (check.CREATE, check.LIST, check.CANCEL, check.ACT_AS)}
    status, output = run("--as", JOB_STATE, **secured)
    assert status == 0, output
    assert verdicts(output) == ["ok", "ok", "skip", "ok", "ok"]
    assert JOB_STATE in who(output)[PROJECT_JOBS]
    assert NOBODY in who(output)[f"topic {TOPIC}"]
    assert not world.secrets.calls
    status, output = run("--as", JOB_STATE, "--function", "dispatch", **secured)
    assert status == 1
    assert f"{JOB_STATE} lacks {check.CREATE}, {check.LIST}, {check.CANCEL}." in output


@pytest.mark.parametrize(
    ("account", "function"),
    [
        (DISPATCH, Function.DISPATCH),
        ("team-now@p.iam.gserviceaccount.com", Function.DISPATCH_NOW),
        (JOB_STATE, Function.JOB_STATE),
        (JOBS, None),
    ],
)
def test_whose_account_it_is(account: str, function: Function | None) -> None:
    assert Function.of_account(account) is function


@pytest.mark.parametrize(
    ("target", "words"),
    [("stranger@demo-project.iam.gserviceaccount.com", "Gaia id not found"), (DISPATCH, "getAccessToken' denied")],
)
def test_an_account_that_cannot_be_impersonated(
    target: str, words: str, iam: IamServer, secured: dict[str, str], run: Run
) -> None:
    iam.denied = {(DEPLOYER, "iam.serviceAccounts.getAccessToken")}
    status, output = run("--as", target, **secured)
    [line] = found(output, "FAIL")
    assert (status, line.what, line.code) == (1, "Google credentials", Code.CHECK_CREDENTIALS)
    for value in (DEPLOYER, target, words, "--as", "roles/iam.serviceAccountTokenCreator"):
        assert value in line.text
    skipped = [one.what for one in found(output, "skip")]
    assert skipped[:2] == [PROJECT_JOBS, f"service account {JOBS}"]
    assert OWN in [one.what for one in found(output, "ok")]  # which needs no credentials here


def test_no_credentials_at_all(secured: dict[str, str], world: World, run: Run) -> None:
    (world.folder / "nothing.json").write_text("{}")
    for file in ("", str(world.folder / "nothing.json")):
        secured["GOOGLE_APPLICATION_CREDENTIALS"] = file
        status, output = run(**secured)
        [line] = found(output, "FAIL")
        assert (status, line.what, line.code) == (1, "Google credentials", Code.CHECK_CREDENTIALS)
        assert "gcloud auth application-default login" in line.text
        assert file in line.text


def test_credentials_have_no_effect_in_plaintext(run: Run) -> None:
    status, output = run("--as", DISPATCH)
    [line] = found(output, "warn")
    assert (status, line.what, line.code) == (0, "Google credentials", Code.CHECK_IDENTITY)
    assert DISPATCH in line.text


def test_clients_use_the_credentials_that_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """And do not look for others, of which there are none here."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    given = AnonymousCredentials()
    gone, timeouts = "127.0.0.1:9", Timeouts(look=0.01)
    settings = specs.with_settings(timeouts=timeouts, secretmanager_endpoint=gone, aiplatform_endpoint=gone)
    key = SecretKey(settings, Redactor(), given)
    with pytest.raises(Unavailable):
        key.get()
    jobs = VertexJobs(settings, given)
    with pytest.raises(Unavailable) as error:
        jobs.active(REGION)
    assert "nowhere" not in str(error.value)


# The key stays where it is


def test_no_error_shows_the_key(world: World, run: Run) -> None:
    message = f"Basic {KEY} is not welcome"
    world.storage.faults.fail("storage.testPermissions", 403, times=None, message=message)
    world.wandb.faults.fail("entity", 400, times=None, message=message)
    status, output = run(WANDB_API_KEY=KEY)
    assert status == 1
    assert output.count("Basic <redacted> is not welcome") >= 3, output


def test_no_traceback_shows_the_key(
    world: World, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        """A place for output where nothing fits."""

        def write(self, text: str) -> NoReturn:
            raise ValueError(f"no room for {KEY}: {text}")

        def flush(self) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Full())
        for name, value in (world.variables() | {"WANDB_API_KEY": KEY}).items():
            patch.setenv(name, value)
        status = main(["check"])
    error = capsys.readouterr().err
    assert (status, KEY in error) == (1, False)
    assert "ValueError: no room for <redacted>" in error


def test_adapters_do_not_log_beside_the_lines(world: World, run: Run, caplog: pytest.LogCaptureFixture) -> None:
    run()
    LOGGER.warning("a word of %s", KEY)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


# From outside


def command(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "HOME": str(world.folder), "NO_GCE_CHECK": "true", **world.variables()}
    return subprocess.run(
        [sys.executable, "-m", "vertex_launch", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_command(world: World) -> None:
    world.launch["queues"] = ["cpu", "gpu"]
    world.pubsub.denied.add(check.PUBLISH)
    done = command(world, "check")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("\nNot safe to deploy: 2 FAIL.\n")


def test_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert " check " in capsys.readouterr().out
    for options, words in (
        (["check", "--help"], ("--as ACCOUNT", "--function", *Function, *Verdict, "exit status: 0")),
        (["--version"], (__version__,)),
    ):
        with pytest.raises(SystemExit) as ended:
            main(options)
        shown = capsys.readouterr().out
        assert (ended.value.code, [word for word in words if word not in shown]) == (0, [])
    for wrong, words in (
        (["deploy"], ("check",)),
        (["check", "--as", "ada@example.com"], ("ada@example.com",)),
        (["check", "--function", "tick"], tuple(Function)),
    ):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        shown = capsys.readouterr().err
        assert ended.value.code == 2
        assert [word for word in ("usage: python -m vertex_launch", *words) if word not in shown] == []


def test_a_missing_extra_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    assert main(["check"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "pip install '.[preflight]'" in printed.err
    assert printed.err.endswith(f"[{Code.CHECK_EXTRA}]\n")


# Parts


@pytest.mark.parametrize(
    ("account", "project"),
    [
        (JOBS, PROJECT),
        ("a@my-project.example.com.iam.gserviceaccount.com", "example.com:my-project"),
        ("123-compute@developer.gserviceaccount.com", "123"),
        ("my-project@appspot.gserviceaccount.com", "my-project"),
        ("ada@example.com", "-"),
        ("1234567890", "-"),
    ],
)
def test_the_project_of_an_account(account: str, project: str) -> None:
    assert project_of(account) == project


def test_queues_as_w_and_b_tells_them(world: World) -> None:
    class Key:
        def get(self) -> str:
            return KEY

        def renew(self, refused: str) -> str:
            return KEY

    schema: dict[str, Any] = {"type": "integer", "minimum": 1}
    world.queue("gpu", variables={"count": {"schema": schema}}, args={"spec": {"x": "{{count}}"}})
    world.wandb.store.launch.create_queue(ENTITY, "bare")
    queue = WandbQueue(specs.with_settings(base_url=world.wandb.url), Key())
    assert queue.viewer() == ("ada", ENTITY)
    assert queue.queue_names(ENTITY) == ["cpu", "gpu", "bare"]
    expected = QueueConfig("gcp-vertex", {"gcp-vertex": {"spec": {"x": "{{count}}"}}}, {"count": schema})
    assert queue.queue_configs(ENTITY, ["gpu", "bare", "missing"]) == {"gpu": expected, "bare": None}


def test_the_plainest_item_of_a_queue() -> None:
    args = {"vertex": {"spec": {"a": "{{n}}", "b": "{{n}}-{{ open }}", "c": [1, None, {"d": "{{r}}"}]}}}
    variables: dict[str, dict[str, Any]] = {"n": {"enum": [2, 3]}, "open": {"type": "string"}, "r": {"maximum": 0.5}}
    config = QueueConfig("vertex", args, variables)
    assert config.open_variables() == ["open"]
    item = config.item()
    assert item["resource_args"] == {"vertex": {"spec": {"a": 2, "b": "2-{{ open }}", "c": [1, None, {"d": 0.5}]}}}
    assert (item["resource"], item["docker"]) == ("vertex", {"docker_image": IMAGE})
