"""The preflight against the local services: what it says when all is well, and when one thing is not."""

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
from typing import Any, NoReturn

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.auth.credentials import AnonymousCredentials
from google.cloud.secretmanager_v1 import SecretVersion
from google.pubsub_v1 import PublisherClient

from local.standins.iam import TOKEN_PATH, IamServer
from local.standins.pubsub import PubSubServer
from local.standins.secrets import SecretServer
from local.standins.storage import StorageServer
from local.standins.vertex.server import PROJECTS, VertexServer
from local.standins.wandb import WandbServer
from local.standins.web import Handler, WebServer
from tests.support.permissions import LOG_LINES, NEEDED
from tests.support.processes import ROOT
from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, Unavailable
from vertex_launch.job.queue_config import IMAGE, QueueConfig
from vertex_launch.log import LOGGER, Redactor
from vertex_launch.preflight import checks as check
from vertex_launch.preflight.checks import Function, NotThere, Refuses
from vertex_launch.preflight.cli import main
from vertex_launch.preflight.rest import Endpoints, Rest
from vertex_launch.preflight.rights import AccountRights, _project
from vertex_launch.settings.config import Batches, Timeouts

PROJECT, REGION, ENTITY = "demo-project", "us-central1", "acme"
KEY, WRONG = "preflight" * 5, "mistaken" * 5
SECRET = f"projects/{PROJECT}/secrets/wandb-api-key"
TOPIC = f"projects/{PROJECT}/topics/ticks"
JOBS, OTHER, GHOST = (f"{name}@{PROJECT}.iam.gserviceaccount.com" for name in ("jobs", "other-jobs", "ghost"))
DEPLOYER, DISPATCH, JOB_STATE = (
    f"{name}@{PROJECT}.iam.gserviceaccount.com" for name in ("deployer", "vl-dispatch", "vl-job-state")
)
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
            "CLOUDRESOURCEMANAGER_ENDPOINT": self.iam.url,
            "IAM_ENDPOINT": self.iam.url,
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


def verdicts(output: str) -> list[str]:
    """Give the first word of each line but the last."""
    return [line.split()[0] for line in output.splitlines()[:-2]]


# All is well


def test_all_is_well(run: Run) -> None:
    assert run() == (
        0,
        f"""\
ok    configuration: it can be used: deployment default, project {PROJECT}, jobs in {REGION}.
ok    Google credentials: none are used: each service is asked in plaintext, at an address that the environment names.
ok    API key: {NOBODY} may read {SECRET}/versions/latest; it is not shown.
ok    W&B: {os.environ["WANDB_BASE_URL"]} takes the key of ada; the queues are those of acme, the entity in the configuration.
ok    queue cpu: it exists and is a Vertex AI queue (gcp-vertex).
ok    config of queue cpu: it builds a CustomJob that the policy allows, in {REGION} as {JOBS}.
ok    jobs in {REGION}: {NOBODY} may list them; of this deployment 0 are active.
ok    CustomJobs in project {PROJECT}: {NOBODY} may create, list, get and cancel them.
ok    record gs://demo-state/record: {NOBODY} may create, get, delete and list objects.
ok    staging bucket gs://demo-staging: it exists; the account of the jobs writes there, which is not tested.
ok    service account {JOBS}: {NOBODY} may act as it.
ok    topic {TOPIC}: {NOBODY} may publish there.

Safe to deploy: nothing fails.
""",
    )


def test_it_changes_nothing(world: World, run: Run) -> None:
    run()
    operations = {name for request in world.wandb.store.operations for name in request.operations}
    assert operations == {"viewer", "project", "entity"}
    assert set(world.vertex.calls) == {"ListCustomJobs"}
    assert set(world.storage.calls) == {"storage.testPermissions", "storage.getBucket"}
    assert set(world.pubsub.calls) == {"CreateTopic", "TestIamPermissions"}


def test_it_asks_for_what_the_functions_were_seen_to_need() -> None:
    asked = {check.CREATE, check.LIST, check.GET, check.CANCEL, check.ACT_AS, check.PUBLISH, *check.OBJECTS}
    needed = {permission for permissions in NEEDED.values() for _, permission in permissions}
    assert asked == needed - {"secretmanager.versions.access"}  # which is tested by reading the key
    assert {permission for _, permission in LOG_LINES} == {check.READ_LOGS}


def test_the_default_entity_of_the_key(world: World, run: Run) -> None:
    del world.launch["entity"]
    status, output = run()
    assert status == 0
    assert "the queues are those of acme, the key's default entity." in output


# One thing is wrong

Break = Callable[[World], object]

FAILING: Mapping[str, tuple[Break, str]] = {
    "another server's key": (
        lambda world: world.secrets.add(SECRET, WRONG),
        r"FAIL  W&B: the API key is refused, HTTP 401 .*; put a valid key of this server into the secret, as a new version\.",
    ),
    "a secret without a version": (
        lambda world: world.settings.update(key_secret=f"{SECRET}/versions/7"),
        rf"FAIL  API key: Secret Manager: {SECRET}/versions/7 does not exist; add a version",
    ),
    "a disabled version": (
        lambda world: world.secrets.set_state(f"{SECRET}/versions/1", SecretVersion.State.DISABLED),
        r"FAIL  API key: .* is disabled or destroyed; enable it",
    ),
    "no right to the secret": (
        lambda world: world.secrets.faults.fail("AccessSecretVersion", "PERMISSION_DENIED", message="denied"),
        rf"FAIL  API key: Secret Manager: {NOBODY} may not read .*grant it roles/secretmanager\.secretAccessor",
    ),
    "no W&B": (
        lambda world: world.wandb.stop(),
        r"FAIL  W&B: no answer from http://127\.0\.0\.1:\d+/graphql: ",
    ),
    "a key without an entity": (
        lambda world: world.without_entity(),
        r"FAIL  W&B: the API key of ada has no default entity\. Set entity in launch-config\.yaml, or WANDB_ENTITY\.",
    ),
    "another entity": (
        lambda world: world.launch.update(entity="others"),
        r"FAIL  queues: entity others has no launch queues that this API key can see",
    ),
    "no such queue": (
        lambda world: world.launch.update(queues=["cpu", "gpu"]),
        r"FAIL  queue gpu: entity acme has no such queue \(it has: cpu\)\. Make it in the W&B app, with the resource gcp-vertex,",
    ),
    "a queue of another resource": (
        lambda world: world.queue("cpu", resource="kubernetes"),
        r"FAIL  queue cpu: its resource is kubernetes, and only Vertex AI queues are served\.",
    ),
    "a machine that the policy forbids": (
        lambda world: world.settings.update(policy={"machine_types": ["e2-*"]}),
        rf"FAIL  config of queue cpu: .*machine_spec\.machine_type: .*n1-standard-4.*{Code.POLICY_MACHINE_TYPE}",
    ),
    "a key that no job of the queue can read": (
        lambda world: world.without_account_of_jobs(api_key_delivery="secret"),
        r"FAIL  config of queue cpu: .*service_account: it is missing, and the job has to read the W&B key from Secret Manager",
    ),
    "a key that no image may read": (
        lambda world: (world.settings.update(api_key_delivery="secret"), world.launch.update(secure_mode=True)),
        r"FAIL  config of queue cpu: .*nothing can be put before that to read the W&B key",
    ),
    "a policy without any image": (
        lambda world: world.settings.update(policy={"images": []}),
        rf"FAIL  config of queue cpu: .*{Code.POLICY_IMAGE}",
    ),
    "a blank in a config": (
        lambda world: world.queue("cpu", staging_bucket="<REQUIRED>", service_account=JOBS),
        r"FAIL  config of queue cpu: .*staging_bucket: it still holds <REQUIRED>",
    ),
    "a config for another region": (
        lambda world: world.queue("cpu", location="europe-west4"),
        r"FAIL  config of queue cpu: .*this deployment has no region 'europe-west4'",
    ),
    "no right to list": (
        lambda world: world.vertex.faults.fail("ListCustomJobs", "PERMISSION_DENIED", message="denied"),
        rf"FAIL  jobs in {REGION}: .*Grant {NOBODY} aiplatform\.customJobs\.list in the project",
    ),
    "no right to create": (
        lambda world: world.iam.denied.update({("", check.CREATE), ("", check.CANCEL)}),
        rf"FAIL  CustomJobs in project {PROJECT}: {NOBODY} lacks {check.CREATE}, {check.CANCEL}\. "
        rf"Grant {check.CREATE}, {check.CANCEL} in project {PROJECT}\.",
    ),
    "no bucket for the record": (
        lambda world: world.settings.update(state_bucket="gs://elsewhere/x"),
        r"FAIL  record gs://elsewhere/x: it does not exist \(The specified bucket does not exist\)\. Run gcloud storage buckets create gs://elsewhere, or correct",
    ),
    "a record that cannot be overwritten": (
        lambda world: world.storage.denied.add("storage.objects.delete"),
        rf"FAIL  record gs://demo-state/record: {NOBODY} lacks storage\.objects\.delete\. Grant storage\.objects\.delete on gs://demo-state",
    ),
    "a record that has to be retained": (
        lambda world: world.storage.described.update({"demo-state": {"retentionPolicy": {"retentionPeriod": "60"}}}),
        r"FAIL  record .*forbids overwriting for 60 s.*buckets update gs://demo-state --clear-retention-period\.",
    ),
    "no staging bucket of a region": (
        lambda world: world.settings.update(regions=[{"name": REGION, "staging_bucket": "gs://nowhere"}]),
        r"FAIL  staging bucket gs://nowhere: it does not exist .*correct staging_bucket or the queue's config\.",
    ),
    "no staging bucket of a queue": (
        lambda world: world.queue("cpu", staging_bucket="gs://queues-own"),
        r"FAIL  staging bucket gs://queues-own: it does not exist",
    ),
    "an account that does not exist": (
        lambda world: world.iam.accounts.remove(JOBS),
        rf"FAIL  service account {JOBS}: it does not exist \(.*Unknown service account.*\)\. Create it, or correct service_account",
    ),
    "an account to act as": (
        lambda world: world.iam.denied.add(("", check.ACT_AS)),
        rf"FAIL  service account {JOBS}: {NOBODY} lacks {check.ACT_AS}\. Grant {check.ACT_AS} on it, as roles/iam\.",
    ),
    "an account of the policy": (
        lambda world: world.settings.update(policy={"service_accounts": [JOBS, GHOST, "team-*"]}),
        rf"FAIL  service account {GHOST}: it does not exist",
    ),
    "no topic": (
        lambda world: world.settings.update(tick_topic=f"{TOPIC}-2"),
        rf"FAIL  topic {TOPIC}-2: it does not exist \(Topic not found\)\. Run gcloud pubsub topics create {TOPIC}-2, or correct DISPATCH_TOPIC\.",
    ),
    "no right to publish": (
        lambda world: world.pubsub.denied.add(check.PUBLISH),
        rf"FAIL  topic {TOPIC}: {NOBODY} lacks {check.PUBLISH}\. Grant {check.PUBLISH} on it, as roles/pubsub\.publisher does\.",
    ),
    "no topic in the configuration": (
        lambda world: world.settings.pop("tick_topic"),
        r"FAIL  topic of ticks: it is not configured, and job_state asks for passes there\. Set tick_topic",
    ),
    "no Pub/Sub": (
        lambda world: world.pubsub.faults.fail("TestIamPermissions", "UNAVAILABLE", times=None),
        rf"FAIL  topic {TOPIC}: Pub/Sub: cannot ask about {TOPIC}: ",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_one_thing_fails(name: str, world: World, run: Run) -> None:
    """It alone fails, and what does not depend on it is still checked."""
    break_it, said = FAILING[name]
    break_it(world)
    status, output = run()
    assert status == 1
    assert re.search(f"^{said}", output, re.MULTILINE), output
    assert verdicts(output).count("FAIL") == 1, output
    assert WRONG not in output
    assert output.endswith("\nNot safe to deploy: 1 FAIL.\n")
    subjects = {line.split(":")[0].split(maxsplit=1)[1] for line in output.splitlines()[:-2]}
    assert {"configuration", "API key", f"jobs in {REGION}", f"CustomJobs in project {PROJECT}"} <= subjects


WARNING: Mapping[str, tuple[Break, str]] = {
    "a queue without a config": (
        lambda world: (
            world.launch.update(queues=["cpu", "bare"]),
            world.wandb.store.launch.create_queue(ENTITY, "bare"),
        ),
        r"warn  queue bare: it exists and has no config, so that each item must bring its resource and its resource args\.",
    ),
    "an empty config": (
        lambda world: world.queue("cpu", args={}),
        r"warn  config of queue cpu: it is empty, so that each item must bring all of its resource args\.",
    ),
    "a config that W&B does not show": (
        lambda world: world.wandb.store.launch.configs.clear(),
        r"warn  queue cpu: it exists, but W&B does not show its config",
    ),
    "a template variable that is open": (
        lambda world: world.queue(
            "cpu",
            pool={**POOL, "machine_spec": {"machine_type": "{{machine}}"}},
            variables={"machine": {"schema": {"type": "string"}}},
        ),
        r"warn  config of queue cpu: .*\(template variables without a value here: machine\)",
    ),
    "an image of the queue's own": (
        lambda world: world.queue("cpu", pool={**POOL, "container_spec": {"image_uri": "python:3.13"}}),
        r"warn  config of queue cpu: it builds a CustomJob .*, but: .*no worker pool runs the item's image",
    ),
    "rights that cannot be asked": (
        lambda world: world.iam.disabled.update({"project", "account"}),
        rf"warn  CustomJobs in project {PROJECT}: Resource Manager does not tell whether {NOBODY} may create, .*disabled",
    ),
    "accounts that cannot be asked": (
        lambda world: world.iam.disabled.add("account"),
        rf"warn  service account {JOBS}: IAM does not tell whether {NOBODY} may act as it: ",
    ),
    "no IAM": (
        lambda world: world.iam.stop(),
        rf"warn  service account {JOBS}: IAM does not tell whether .*Connection",
    ),
    "a bucket that does not say": (
        lambda world: world.storage.faults.fail("storage.testPermissions", 403, times=None),
        rf"warn  record gs://demo-state/record: Cloud Storage does not tell whether {NOBODY} may create, get, delete",
    ),
    "an emulator that knows no rights": (
        lambda world: world.pubsub.faults.fail("TestIamPermissions", "UNIMPLEMENTED"),
        rf"warn  topic {TOPIC}: Pub/Sub does not tell whether {NOBODY} may publish there",
    ),
    "versioning": (
        lambda world: world.storage.described.update({"demo-state": {"versioning": {"enabled": True}}}),
        r"warn  record gs://demo-state/record: versioning keeps every overwrite for ever\. Run gcloud .* --no-versioning\.",
    ),
    "soft delete": (
        lambda world: world.storage.described.update(
            {"demo-state": {"softDeletePolicy": {"retentionDurationSeconds": "604800"}}}
        ),
        r"warn  record .*: soft delete keeps every overwrite for 7 days\. Run gcloud .* --clear-soft-delete\.",
    ),
    "a lifecycle": (
        lambda world: world.storage.described.update(
            {"demo-state": {"lifecycle": {"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30}}]}}}
        ),
        r"warn  record .*: a lifecycle rule may delete the record\. Run gcloud .* --clear-lifecycle\.",
    ),
    "logs that cannot be read": (
        lambda world: world.settings.update(log_lines=5),
        rf"warn  log_lines: {NOBODY} lacks logging\.logEntries\.list.*or set log_lines: 0\.",
    ),
    "a key that an image cannot read by itself": (
        lambda world: world.settings.update(api_key_delivery="secret"),
        r"warn  config of queue cpu: an item that brings only an image would fail: .*to read the W&B key .*the item an "
        r"entry point.*\. Items that say what to run, as W&B jobs made of code or of git do, are built\.",
    ),
    "an unknown key in the configuration": (
        lambda world: world.launch.update(environment={"type": "gcp", "colour": "red"}),
        r"warn  configuration: environment\.colour in .*\[VL-CONFIG-IGNORED\]",
    ),
}


@pytest.mark.parametrize("name", WARNING)
def test_one_thing_is_worth_a_look(name: str, world: World, run: Run) -> None:
    break_it, said = WARNING[name]
    break_it(world)
    status, output = run()
    assert status == 0, output
    assert re.search(f"^{said}", output, re.MULTILINE), output
    assert re.search(r"^Safe to deploy: nothing fails, [12] to look at\.$", output, re.MULTILINE)


def test_what_the_bucket_does_may_be_hidden(world: World, run: Run) -> None:
    """The functions' accounts may not see it."""
    world.storage.denied.add("storage.buckets.get")
    world.storage.described["demo-state"] = {"versioning": {"enabled": True}}
    status, output = run()
    assert (status, set(verdicts(output))) == (0, {"ok", "skip"})
    assert "versioning" in output


def test_no_cloud_storage(world: World, run: Run) -> None:
    world.storage.faults.fail("storage.testPermissions", 503, times=None)
    status, output = run()
    assert (status, verdicts(output).count("FAIL")) == (1, 2)
    for what in ("record gs://demo-state/record", "staging bucket gs://demo-staging"):
        assert f"\nFAIL  {what}: Cloud Storage: cannot ask about gs://demo-st" in output


def test_what_depends_on_the_key_is_skipped(world: World, run: Run) -> None:
    world.settings["policy"] = {"service_accounts": [OTHER]}
    world.settings["key_secret"] = f"{SECRET}/versions/7"
    _, output = run()
    assert "\nskip  W&B, queues and their configs: need the API key.\n" in output
    assert "\nskip  service accounts of jobs from cpu: need a queue's config that builds a job.\n" in output
    assert f"\nok    service account {OTHER}: {NOBODY} may act as it.\n" in output
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
    assert "as Vertex AI's own agent, where machine = n1-standard-8, gpu = TESLA_T4, count = 1.\n" in output
    world.settings["policy"] = {"accelerators": {"NVIDIA_TESLA_V100": 4}}
    assert Code.POLICY_ACCELERATOR in run()[1]


def test_jobs_that_read_the_key_themselves(world: World, run: Run) -> None:
    """The account of an item with an entry point is tested; and where the queue names a command, any image is fine."""
    world.settings["api_key_delivery"] = "secret"
    assert f"ok    service account {JOBS}: {NOBODY} may act as it." in run()[1]
    container = {"image_uri": "${image_uri}", "command": ["python", "train.py"]}
    world.queue("cpu", pool={**POOL, "container_spec": container}, service_account=JOBS)
    status, output = run()
    assert (status, set(verdicts(output))) == (0, {"ok"})


def test_an_image_is_the_items_business(world: World, run: Run) -> None:
    world.settings["policy"] = {"images": ["europe-docker.pkg.dev/*"]}
    assert run()[0] == 0


# The configuration itself


def test_broken_yaml(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = world.folder / "broken.yaml"
    broken.write_text("queues: [cpu\nmax_jobs: 3")
    status, output = run(LAUNCH_CONFIG=str(broken))
    assert status == 1
    assert re.match(r"FAIL  configuration: .*broken\.yaml, line 2, column \d+: .*\[VL-CONFIG-YAML\]", output)
    assert verdicts(output) == ["FAIL", "ok", "skip"]
    assert "\nskip  everything else: needs the configuration.\n" in output


def test_every_problem_of_the_configuration(world: World, run: Run) -> None:
    world.settings.update(state_bucket="demo-state", project="Demo Project", colour="red")
    status, output = run(IAM_ENDPOINT="127.0.0.1:80")
    assert (status, verdicts(output)) == (1, ["FAIL"] * 4 + ["skip"])
    for place in ("state_bucket", "project", "colour", "environment variable IAM_ENDPOINT"):
        assert re.search(rf"^FAIL  configuration: .*{place}( in .*)?: ", output, re.MULTILINE)


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [
        ("IAM_ENDPOINT", "ftp://iam.googleapis.com", "is not an http or https address"),
        ("CLOUDRESOURCEMANAGER_ENDPOINT", "https://host/path", "is not an http or https address without a path"),
        (
            "IAMCREDENTIALS_ENDPOINT",
            "http://10.0.0.7:8080",
            "credentials would go to http://10.0.0.7:8080 in clear text",
        ),
        ("OPENIDCONNECT_ENDPOINT", "http://127.0.0.1.example.com", "credentials would go to"),
    ],
)
def test_endpoints_that_cannot_be_used(variable: str, value: str, found: str) -> None:
    with pytest.raises(ConfigError, match=f"^environment variable {variable}: .*{re.escape(found)}"):
        Endpoints.of({variable: value})


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
def iam(world: World, certificate: Path) -> Iterator[IamServer]:
    """Another IAM, which is met with TLS and so with credentials."""
    server = IamServer(projects=PROJECTS, accounts=world.iam.accounts, certificate=certificate)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def secured(iam: IamServer, certificate: Path, world: World) -> dict[str, str]:
    """Give the variables by which it is met as a service account with a key file."""
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
        **{f"{name}_ENDPOINT": iam.url for name in ("CLOUDRESOURCEMANAGER", "IAM", "IAMCREDENTIALS", "OPENIDCONNECT")},
    }


def test_ones_own_rights(iam: IamServer, secured: dict[str, str], run: Run) -> None:
    iam.denied = {(DEPLOYER, check.ACT_AS)}
    status, output = run(**secured)
    assert status == 1
    mine = f"\nok    Google credentials: {DEPLOYER}; those rights are tested, not the functions' (--as ACCOUNT tests theirs).\n"
    assert mine in output
    assert f"\nok    CustomJobs in project {PROJECT}: {DEPLOYER} may create, list, get and cancel them.\n" in output
    assert f"\nFAIL  service account {JOBS}: {DEPLOYER} lacks {check.ACT_AS}." in output
    assert f"\nok    topic {TOPIC}: {NOBODY} may publish there.\n" in output  # Pub/Sub is still in plaintext
    assert set(iam.calls) == {("token", DEPLOYER), ("project", DEPLOYER), ("account", DEPLOYER)}


def test_a_persons_rights(iam: IamServer, secured: dict[str, str], world: World, run: Run) -> None:
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
    assert status == 0
    assert "\nok    Google credentials: ada@example.com; those rights are tested" in output
    assert f"\nok    service account {JOBS}: ada@example.com may act as it.\n" in output
    iam.disabled.add("userinfo")
    status, output = run(**secured)
    assert status == 0
    assert f"\nok    service account {JOBS}: whoever these credentials are for may act as it.\n" in output


def test_as_the_account_of_dispatch(iam: IamServer, secured: dict[str, str], run: Run) -> None:
    iam.denied = {(DEPLOYER, check.CREATE), (DEPLOYER, check.ACT_AS)}  # which is not asked
    status, output = run("--as", DISPATCH, **secured)
    assert status == 0, output
    assert f"\nok    Google credentials: {DISPATCH}, impersonated; its rights are tested.\n" in output
    assert f"\nok    CustomJobs in project {PROJECT}: {DISPATCH} may create, list, get and cancel them.\n" in output
    assert f"\nok    service account {JOBS}: {DISPATCH} may act as it.\n" in output
    assert f"\nskip  topic {TOPIC}: only job_state publishes there.\n" in output
    assert set(iam.calls) == {
        ("token", DEPLOYER),
        ("generateAccessToken", DEPLOYER),
        ("project", DISPATCH),
        ("account", DISPATCH),
    }
    iam.denied = {(DISPATCH, check.CREATE)}
    status, output = run("--as", DISPATCH, **secured)
    assert status == 1
    assert f"\nFAIL  CustomJobs in project {PROJECT}: {DISPATCH} lacks {check.CREATE}." in output


def test_as_the_account_of_job_state(iam: IamServer, secured: dict[str, str], world: World, run: Run) -> None:
    iam.denied = {(JOB_STATE, permission) for permission in (check.CREATE, check.LIST, check.CANCEL, check.ACT_AS)}
    status, output = run("--as", JOB_STATE, **secured)
    assert status == 0, output
    assert verdicts(output) == ["ok", "ok", "skip", "ok", "ok"]
    assert f"\nok    CustomJobs in project {PROJECT}: {JOB_STATE} may get them.\n" in output
    assert f"\nok    topic {TOPIC}: {NOBODY} may publish there.\n" in output
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
    assert status == 1
    found = rf"\nFAIL  Google credentials: {DEPLOYER} cannot impersonate {target}: .*{words}.*; correct --as, or grant "
    assert re.search(found, output), output
    assert f"\nskip  CustomJobs in project {PROJECT}: needs Google credentials.\n" in output
    assert f"\nskip  service account {JOBS}: needs Google credentials.\n" in output
    assert "\nok    config of queue cpu: " in output  # which needs none here


def test_no_credentials_at_all(secured: dict[str, str], world: World, run: Run) -> None:
    del secured["GOOGLE_APPLICATION_CREDENTIALS"]
    status, output = run(**secured)
    assert status == 1
    assert re.search(
        r"^FAIL  Google credentials: .*; run `gcloud auth application-default login`", output, re.MULTILINE
    )
    (world.folder / "nothing.json").write_text("{}")
    output = run(**secured, GOOGLE_APPLICATION_CREDENTIALS=str(world.folder / "nothing.json"))[1]
    assert re.search(r"^FAIL  Google credentials: .*nothing\.json", output, re.MULTILINE)


def test_credentials_are_of_no_use_in_plaintext(run: Run) -> None:
    status, output = run("--as", DISPATCH)
    assert status == 0
    assert re.search(
        rf"^warn  Google credentials: none are used.*the rights of {DISPATCH} are not what", output, re.MULTILINE
    )


def test_clients_use_the_credentials_that_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """And do not look for others, of which there are none here."""
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere.json")
    given = AnonymousCredentials()
    key = SecretKey(f"{SECRET}/versions/1", Redactor(), ttl=1, timeout=0.01, endpoint="127.0.0.1:9", credentials=given)
    with pytest.raises(Unavailable, match="cannot read"):
        key.get()
    jobs = VertexJobs(PROJECT, "default", timeout=0.01, endpoint="127.0.0.1:9", credentials=given)
    with pytest.raises(Unavailable, match="cannot list") as error:
        jobs.active(REGION)
    assert "nowhere" not in str(error.value)


# The key stays where it is


def test_no_error_shows_the_key(world: World, run: Run) -> None:
    message = f"Basic {KEY} is not welcome"
    world.storage.faults.fail("storage.testPermissions", 403, times=None, message=message)
    world.wandb.faults.fail("entity", 500, times=None, message=message)
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
    done = command(world, "check")
    assert (done.returncode, done.stderr, set(verdicts(done.stdout))) == (0, "", {"ok"})
    world.launch["queues"] = ["cpu", "gpu"]
    world.pubsub.denied.add(check.PUBLISH)
    done = command(world, "check")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("\nNot safe to deploy: 2 FAIL.\n")


def test_how_to_use_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "check     check the configuration and all that the functions will need" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["check", "--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for word in ("--as ACCOUNT", "--function NAME", "exit status: 0 safe to deploy, 1 something fails, 2 wrong usage"):
        assert word in shown
    for wrong in (["deploy"], ["check", "--as", "ada@example.com"], ["check", "--function", "tick"]):
        with pytest.raises(SystemExit) as ended:
            main(wrong)
        assert ended.value.code == 2
        assert capsys.readouterr().err.startswith("usage: python -m vertex_launch")


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
    assert _project(account) == project


def test_an_account_cannot_lead_elsewhere(world: World) -> None:
    rights = AccountRights(Rest("IAM", world.iam.url, None, timeout=2))
    for odd in ("../../v3/projects/demo-project", f"{JOBS}/keys", f"{JOBS}?x=y", "a b\n"):
        with pytest.raises((NotThere, Refuses)):
            rights.granted(odd, [check.ACT_AS])
    assert not [method for method, _ in world.iam.calls if method != "account"]


@pytest.mark.parametrize(
    ("status", "answer", "kind", "said"),
    [
        (200, b"[]", Unavailable, "answers with something else than a JSON object"),
        (200, b"<html>", Unavailable, "IAM: Expecting value"),
        (302, b"", Unavailable, r"HTTP 302 from http.*: \(nothing more\)"),
        (403, b"<p>Ask the proxy</p>", Refuses, "HTTP 403 from http.*: Ask the proxy"),
        (404, b'{"error": "gone"}', NotThere, 'HTTP 404 from http.*: {"error": "gone"}'),
        (500, b"", Unavailable, "HTTP 500 from"),
    ],
)
def test_answers_that_are_none(status: int, answer: bytes, kind: type[Exception], said: str) -> None:
    class Odd(Handler):
        def serve(self) -> None:
            self.answer(status, answer)

    server = WebServer(Odd)
    server.start()
    try:
        with pytest.raises(kind, match=said):
            Rest("IAM", server.url, None, timeout=0.2).ask("GET", "/x")
    finally:
        server.stop()


def test_queues_as_w_and_b_tells_them(world: World) -> None:
    class Key:
        def get(self) -> str:
            return KEY

        def renew(self, refused: str) -> str:
            return KEY

    schema: dict[str, Any] = {"type": "integer", "minimum": 1}
    world.queue("gpu", variables={"count": {"schema": schema}}, args={"spec": {"x": "{{count}}"}})
    world.wandb.store.launch.create_queue(ENTITY, "bare")
    queue = WandbQueue(world.wandb.url, Key(), Timeouts(), Batches(), version="0")
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
