"""infra/deploy.sh and infra/destroy.sh: what they create, change and leave, and that the uploaded code runs."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from contextlib import ExitStack
from importlib import metadata
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.cloud.aiplatform_v1.types import JobState
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport
from google.pubsub_v1.types import PubsubMessage, Subscription
from packaging.requirements import Requirement

from local.machine.functions import Function
from local.standins.log_sink import LogSink
from local.standins.pubsub import PubSubServer
from local.standins.secrets import SecretServer
from local.standins.storage import StorageServer
from local.standins.vertex.server import PROJECTS, VertexServer
from local.standins.wandb import WandbServer
from tests.support import deploy_runs, gcloud_server
from tests.support.deploy_runs import (
    ALONE,
    CHANNEL,
    CONNECTOR,
    DELETED,
    DEPLOY,
    FUNCTIONS,
    INVOKERS,
    NAME,
    OPTIONS,
    QUEUE,
    REGION,
    REGIONS,
    SCHEDULE,
    SINK,
    STRANGER,
    STRANGERS,
    SUBSCRIPTION,
    TAKEN,
    TEAM,
    THEIR_RIGHTS,
    TOKENS,
    WIDENED,
    Story,
    checkout,
    needs_gcloud,
)
from tests.support.deployment import KEY, run_spec
from tests.support.google_apis import NUMBER, PROJECT, GoogleApis
from tests.support.permissions import ACCOUNTS, NEEDED, granted
from tests.support.processes import ROOT, eventually

pytestmark = pytest.mark.deployment

P = f"projects/{PROJECT}"
HERE = f"{P}/locations/{REGION}"
PROJECT_ITSELF = f"cloudresourcemanager/{P}"
BUCKET = f"storage/b/{PROJECT}-{NAME}"
"""How the keys of our buckets begin."""


def account(name: str) -> str:
    return f"serviceAccount:{NAME}-{name}@{PROJECT}.iam.gserviceaccount.com"


def agent(service: str) -> str:
    return f"serviceAccount:service-{NUMBER}@gcp-sa-{service}.iam.gserviceaccount.com"


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    return deploy_runs.story(tmp_path_factory)


# What is created


@needs_gcloud
def test_every_run_succeeds_and_calls_nothing_unknown(story: Story) -> None:
    """Each works at the first try, also in a new project, and ten days after the end of another deployment."""
    for run in story.runs():
        assert run.status == 0, run.output
    assert story.unknown == []


@needs_gcloud
@pytest.mark.parametrize(
    "words", ["has not been used", "does not exist", "Cannot find metric", "new roles take a while"]
)
def test_the_first_run_met_what_takes_time(story: Story, words: str) -> None:
    """New APIs, accounts, roles and metrics; only the first run did."""
    assert words in story.deploy.output
    assert words not in story.repeat.output.replace("-cc.iam.gserviceaccount.com does not exist", "")


@needs_gcloud
@pytest.mark.parametrize("run", ["deploy", "change", "later"])
def test_pubsub_can_call_the_functions(story: Story, run: str) -> None:
    after = getattr(story, run).after
    assert (
        len([name for name in after.resources if after.resources[name].get("pushConfig", {}).get("pushEndpoint")]) == 2
    )
    assert after.refused_pushes() == {}


FUNCTION = {
    "dispatch": ("dispatch", "dispatch", 120, 1, "1Gi"),
    "dispatch-now": ("dispatch_now", "now", 120, 1, "1Gi"),
    "job-state": ("job_state", "job-state", 60, 3, "512Mi"),
}
"""Name of each function to its entry point, account, timeout, greatest number of instances, and memory."""


@needs_gcloud
@pytest.mark.parametrize("name", FUNCTION)
def test_functions(story: Story, name: str) -> None:
    made = story.deploy.after.resources[f"{FUNCTIONS}/{NAME}-{name}"]
    entry_point, runs_as, timeout, instances, memory = FUNCTION[name]
    build, service = made["buildConfig"], made["serviceConfig"]
    assert "eventTrigger" not in made, "HTTP"
    assert (build["runtime"], build["entryPoint"]) == ("python313", entry_point)
    assert build["serviceAccount"] == f"{P}/serviceAccounts/{NAME}-build@{PROJECT}.iam.gserviceaccount.com"
    assert build["dockerRepository"] == f"{HERE}/repositories/{NAME}-functions"
    assert service["serviceAccountEmail"] == account(runs_as).partition(":")[2]
    assert service["timeoutSeconds"] == timeout
    assert (service["availableMemory"], service["availableCpu"]) == (memory, "1")
    assert (service["maxInstanceCount"], service["minInstanceCount"]) == (instances, 0)
    assert service["maxInstanceRequestConcurrency"] == 1
    assert service["ingressSettings"] == ("ALLOW_ALL" if name == "dispatch-now" else "ALLOW_INTERNAL_ONLY")
    assert service["environmentVariables"] == {
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "GOOGLE_CLOUD_REGION": ",".join(REGIONS),
        "STAGING_BUCKETS": ",".join(f"gs://{PROJECT}-{NAME}-staging-{region}" for region in REGIONS),
        "JOBS_ACCOUNT": account("jobs").removeprefix("serviceAccount:"),
        "STATE_BUCKET": f"gs://{PROJECT}-{NAME}-state",
        "DISPATCH_TOPIC": f"{P}/topics/{NAME}-ticks",
        "WANDB_API_KEY_SECRET": f"{P}/secrets/{NAME}-wandb-api-key/versions/latest",
        "VERTEX_LAUNCH_DEPLOYMENT": NAME,
        "WANDB_BASE_URL": "https://wandb.example.com",
    }


SOURCES = f"projects/_/buckets/gcf-v2-sources-{NUMBER}-{REGION}"
KEY_SECRET, READ_SECRET = f"secretmanager/{P}/secrets/{NAME}-wandb-api-key", "roles/secretmanager.secretAccessor"
RIGHTS = {
    PROJECT_ITSELF: {
        f"{P}/roles/vertex_launch_dispatch": {account("dispatch"), account("now")},
        f"{P}/roles/vertex_launch_job_state": {account("job-state")},
        "roles/logging.logWriter": {account("build")},
        f'roles/storage.objectViewer if resource.name == "{SOURCES}" || resource.name.startsWith("{SOURCES}/")': {
            account("build")
        },
        "roles/aiplatform.serviceAgent": {agent("aiplatform")},
        "roles/viewer": {STRANGER},
        "roles/editor if request.time < x": {STRANGER},
    },
    f"iam/{P}/serviceAccounts/{account('jobs').partition(':')[2]}": {
        f"{P}/roles/vertex_launch_act_as": {account("dispatch"), account("now")}
    },
    f"iam/{P}/serviceAccounts/{account('push').partition(':')[2]}": {
        "roles/iam.serviceAccountTokenCreator": {agent("pubsub")}
    },
    KEY_SECRET: {READ_SECRET: {account("dispatch"), account("now"), account("jobs")}},
    **{f"secretmanager/{token}": {READ_SECRET: {account("jobs")}} for token in TOKENS},
    f"{BUCKET}-state": {f"{P}/roles/vertex_launch_record": {account("dispatch"), account("now")}},
    **{f"{BUCKET}-staging-{region}": {"roles/storage.objectUser": {account("jobs")}} for region in REGIONS},
    f"artifactregistry/{HERE}/repositories/{NAME}-functions": {"roles/artifactregistry.writer": {account("build")}},
    TAKEN: {"roles/artifactregistry.reader": {agent("aiplatform")}},
    f"pubsub/{P}/topics/{NAME}-ticks": {"roles/pubsub.publisher": {account("job-state")}},
    f"pubsub/{P}/topics/{NAME}-job-logs": {"roles/pubsub.publisher": {agent("logging")}},
    **{
        f"pubsub/{P}/{kind}": {role: {agent("pubsub")}}
        for kind, role in (
            (f"topics/{NAME}-ticks-dead", "roles/pubsub.publisher"),
            (f"topics/{NAME}-job-logs-dead", "roles/pubsub.publisher"),
            (f"subscriptions/{NAME}-ticks", "roles/pubsub.subscriber"),
            (f"subscriptions/{NAME}-job-logs", "roles/pubsub.subscriber"),
        )
    },
    f"run/{HERE}/services/{NAME}-dispatch": {"roles/run.invoker": {account("push")}},
    f"run/{HERE}/services/{NAME}-job-state": {"roles/run.invoker": {account("push")}},
    f"run/{HERE}/services/{NAME}-dispatch-now": {"roles/run.invoker": set(INVOKERS)},
}
"""All roles on all resources, none of them for everyone."""


@needs_gcloud
def test_destroying_what_cloud_build_deployed(tmp_path: Path) -> None:
    """The build account has one role under two conditions, and gcloud removes both at once."""
    apis, build = GoogleApis(), account("build")
    names = "artifactregistry cloudfunctions cloudresourcemanager cloudscheduler iam logging monitoring pubsub run secretmanager storage"
    apis.enabled |= {f"{name}.googleapis.com" for name in names.split()}
    apis.resources[f"iam/{P}/serviceAccounts/{build.partition(':')[2]}"] = {"email": build.partition(":")[2]}
    apis.bindings[f"cloudresourcemanager/{P}"] = [
        {"role": "roles/storage.objectViewer", "members": [build], "condition": {"title": title, "expression": where}}
        for title, where in ((f"{NAME}-sources", "resource.name.startsWith('a')"), (f"{NAME}-builds", "true"))
    ]
    apis.start()
    try:
        place = deploy_runs.checkout(tmp_path / "checkout")
        script = [str(place / "infra/destroy.sh"), *OPTIONS, "--yes"]
        done = deploy_runs.run(script, place, apis, tmp_path / "gcloud")
    finally:
        apis.stop()
    assert done.status == 0, done.output
    assert apis.unknown == []
    assert not done.after.policies().get(f"cloudresourcemanager/{P}")
    for token in TOKENS:  # they do not exist, and the script continues
        assert f"Roles on {token} stay" in done.output


@needs_gcloud
@pytest.mark.parametrize("function", NEEDED)
def test_the_functions_have_exactly_the_permissions_that_they_use(story: Story, function: str) -> None:
    after = story.deploy.after
    given = [
        (resource, role, member)
        for resource, roles in after.policies().items()
        for role, members in roles.items()
        for member in members
    ]
    custom = {
        f"{P}/roles/vertex_launch_{name}": after.permissions(f"{P}/roles/vertex_launch_{name}")
        for name in ("dispatch", "job_state", "record", "act_as")
    }
    assert granted(given, custom, f"{NAME}-{ACCOUNTS[function]}") == NEEDED[function]


@needs_gcloud
def test_roles(story: Story) -> None:
    assert story.deploy.after.policies() == RIGHTS
    key_in_specs = {KEY_SECRET: {READ_SECRET: {account("dispatch"), account("now")}}}
    assert story.change.after.policies() == RIGHTS | key_in_specs, "a role that jobs no longer need is removed"


@needs_gcloud
@pytest.mark.parametrize(("topic", "function", "deadline"), [("ticks", "dispatch", 130), ("job-logs", "job-state", 70)])
def test_subscriptions(story: Story, topic: str, function: str, deadline: int) -> None:
    resources = story.deploy.after.resources
    uri = resources[f"{FUNCTIONS}/{NAME}-{function}"]["serviceConfig"]["uri"]
    push = resources[f"pubsub/{P}/subscriptions/{NAME}-{topic}"]
    assert push["topic"] == f"{P}/topics/{NAME}-{topic}"
    token = {"serviceAccountEmail": account("push").partition(":")[2], "audience": uri}
    assert push["pushConfig"] == {"pushEndpoint": uri, "oidcToken": token}
    assert push["ackDeadlineSeconds"] == deadline
    assert push["retryPolicy"] == {"minimumBackoff": "10s", "maximumBackoff": "60s"}
    dead = f"{P}/topics/{NAME}-{topic}-dead"
    assert push["deadLetterPolicy"] == {"deadLetterTopic": dead, "maxDeliveryAttempts": 20}
    assert (push["messageRetentionDuration"], push["expirationPolicy"]) == ("86400s", {})
    kept = resources[f"pubsub/{P}/subscriptions/{NAME}-{topic}-dead"]
    assert (kept["topic"], kept["messageRetentionDuration"], kept["expirationPolicy"]) == (dead, "604800s", {})
    assert "pushConfig" not in kept


@needs_gcloud
def test_the_scheduler_and_the_sink(story: Story) -> None:
    job, sink = (story.deploy.after.resources[name] for name in (SCHEDULE, SINK))
    assert (job["schedule"], job["timeZone"]) == ("* * * * *", "Etc/UTC")
    assert job["pubsubTarget"] == {"topicName": f"{P}/topics/{NAME}-ticks", "data": "e30="}, "{} in base64"
    assert sink["destination"] == f"pubsub.googleapis.com/{P}/topics/{NAME}-job-logs"
    assert sink["filter"].split() == (ROOT / "infra/job-ends.filter").read_text().split()
    assert "running" not in sink["filter"]


@needs_gcloud
def test_buckets_and_the_secret(story: Story) -> None:
    resources = story.deploy.after.resources
    record = resources[f"{BUCKET}-state"]
    assert record["location"] == REGION
    assert int(record["softDeletePolicy"]["retentionDurationSeconds"]) == 0
    assert not record.keys() & {"versioning", "lifecycle", "retentionPolicy"}
    for name in ("state", *(f"staging-{region}" for region in REGIONS)):
        access = resources[f"{BUCKET}-{name}"]["iamConfiguration"]
        assert access["uniformBucketLevelAccess"]["enabled"], name
        assert access["publicAccessPrevention"] == "enforced", name
    assert [resources[f"{BUCKET}-staging-{region}"]["location"] for region in REGIONS] == list(REGIONS)
    secret = f"secretmanager/{P}/secrets/{NAME}-wandb-api-key"
    assert resources[secret]["replication"] == {"automatic": {}}
    assert not [name for name in resources if name.startswith(f"{secret}/")], "the script never writes the key"
    assert resources[f"artifactregistry/{HERE}/repositories/{NAME}-functions"]["format"] == "DOCKER"


@needs_gcloud
def test_monitoring(story: Story) -> None:
    resources = story.deploy.after.resources
    kinds = {"metrics": f"logging/{P}/metrics/", "alerts": f"monitoring/{P}/alertPolicies/"}
    made = {
        kind: [value for name, value in resources.items() if name.startswith(start) and name not in STRANGERS]
        for kind, start in kinds.items()
    }
    for kind, found in made.items():
        assert len(found) == len(list((ROOT / "infra/monitoring" / kind).glob("*.yaml"))) > 0
        assert "${" not in json.dumps(found)
    assert {metric["name"].partition("/")[0] for metric in made["metrics"]} == {NAME}
    assert {alert["userLabels"]["deploy_sh"] for alert in made["alerts"]} == {NAME}
    boards = [value for name, value in resources.items() if name.startswith(f"monitoring/{P}/dashboards/")]
    assert [(board["displayName"], board["labels"]) for board in boards] == [(NAME, {"deploy_sh": NAME})]


@needs_gcloud
def test_the_command_that_adds_the_key_is_printed_first(story: Story) -> None:
    ask = f"gcloud secrets versions add {NAME}-wandb-api-key --project={PROJECT} --data-file=-"
    for run in (story.deploy, story.repeat, story.change):
        assert ask in run.output
    assert "NOT READY YET" in story.deploy.output
    assert "NOT READY YET" not in story.change.output


# Again, after changes, the end


@needs_gcloud
def test_a_second_run_changes_nothing(story: Story) -> None:
    """Except that it grants Google's second account of Vertex AI its role again, which is created with the first job."""
    tried = f"POST artifactregistry/{HERE}/repositories/{NAME}-images:setIamPolicy"
    assert story.repeat.changes() == [tried]
    assert [call.status for call in story.repeat.after.calls if call.changes] == [400]
    assert story.repeat.after.resources == story.deploy.after.resources
    assert story.repeat.after.policies() == story.deploy.after.policies()


@needs_gcloud
def test_a_run_changes_what_differs_and_nothing_else(story: Story) -> None:
    before, after = story.repeat.after.resources, story.change.after.resources
    for name in (SUBSCRIPTION, SINK):
        assert after[name] == before[name], "as it was before it was changed by hand"
    assert after[SCHEDULE] == before[SCHEDULE] | {"schedule": "*/5 * * * *"}, "an option that is not given is kept"
    assert after[WIDENED]["includedPermissions"] == before[WIDENED]["includedPermissions"]
    assert not after[DELETED]["deleted"]
    changed = {
        path.rpartition(" ")[2] for path in story.change.changes() if not path.partition(" ")[2].startswith("upload")
    }
    alerts = {name for name in changed if "/alertPolicies/" in name}
    boards = {name for name in changed if "/dashboards/" in name}
    assert [after[name].get("notificationChannels") for name in alerts] == [[CHANNEL]], "what was added by hand is kept"
    assert len(boards) == 1
    assert changed - alerts - boards == {
        SUBSCRIPTION,
        SCHEDULE,
        SINK,
        WIDENED,
        f"{DELETED}:undelete",
        f"logging/{P}/metrics/{NAME}%2Fpasses",
        f"{BUCKET}-state",
        f"{KEY_SECRET}:setIamPolicy",
        f"artifactregistry/{HERE}/repositories/{NAME}-images:setIamPolicy",
        f"{FUNCTIONS}:generateUploadUrl",
        *(f"{FUNCTIONS}/{NAME}-{name}" for name in FUNCTION),
    }


@needs_gcloud
def test_options_that_are_not_given_are_kept(story: Story) -> None:
    """Also those that were changed by hand, and each is named."""
    for name in ("dispatch", "dispatch-now"):
        before, after = (
            run.after.resources[f"{FUNCTIONS}/{NAME}-{name}"]["serviceConfig"] for run in (story.repeat, story.change)
        )
        assert after["environmentVariables"] == before["environmentVariables"]
        assert (after["availableMemory"], after["vpcConnector"]) == ("2Gi", CONNECTOR)
    kept = (f"--job-regions={','.join(REGIONS)}", "--wandb-base-url=https://wandb.example.com", "--memory=2Gi")
    for option in (*kept, f"--vpc-connector={CONNECTOR}", "--schedule='*/5 * * * *'"):
        assert option in story.change.output
    assert "Kept" not in story.deploy.output + story.repeat.output


@needs_gcloud
def test_destroying_leaves_data_and_the_resources_of_others(story: Story) -> None:
    left = story.destroy.after.resources
    roles = {f"iam/{P}/roles/vertex_launch_{name}" for name in ("dispatch", "job_state", "record", "act_as")}
    assert not any(left[name].get("deleted") for name in roles), "Google would block their ids for 37 days"
    data = {
        f"secretmanager/{P}/secrets/{NAME}-wandb-api-key",
        f"secretmanager/{P}/secrets/{NAME}-wandb-api-key/versions/1",
        f"{BUCKET}-state",
        *(f"{BUCKET}-staging-{region}" for region in REGIONS),
    }
    assert set(left) == {*STRANGERS, *data, *roles, PROJECT_ITSELF}
    assert {name: left[name] for name in STRANGERS} == STRANGERS
    granted = [one for bindings in story.destroy.after.bindings.values() for one in bindings]
    assert granted == [*THEIR_RIGHTS, {"role": "roles/aiplatform.serviceAgent", "members": [agent("aiplatform")]}]
    assert story.destroy.after.enabled == story.change.after.enabled


@needs_gcloud
def test_destroying_with_data(story: Story) -> None:
    left = {name for name in story.destroy_data.after.resources if not name.startswith(f"iam/{P}/roles/vertex_launch_")}
    assert left == {*STRANGERS, PROJECT_ITSELF} - {f"iam/{P}/roles/vertex_launch_mine"}
    assert f"{NAME}-images stays: " in story.destroy_data.output


# What was uploaded


@needs_gcloud
@pytest.mark.parametrize("name", FUNCTION)
def test_nothing_but_the_product_is_uploaded(story: Story, name: str) -> None:
    product = {path.relative_to(story.checkout).as_posix() for path in story.checkout.glob("vertex_launch/**/*.py")}
    files = {"main.py", "requirements.txt", "launch-config.yaml", "vertex-launch.yaml", "vertex_launch/py.typed"}
    with zipfile.ZipFile(archive(story, name)) as uploaded:
        assert {entry for entry in uploaded.namelist() if not entry.endswith("/")} == product | files


def archive(story: Story, name: str) -> Path:
    """Return the zip of a function's last deployment."""
    made = story.change.after.resources[f"{FUNCTIONS}/{NAME}-{name}"]
    return story.uploads / str(made["buildConfig"]["source"]["storageSource"]["object"])


class Uploaded(Function):
    """A deployed function, started like the platform does: from the uploaded files, with the packages in requirements.txt."""

    def __init__(self, python: Path, source: Path, made: dict[str, Any], outside: dict[str, str], log: Path) -> None:
        target = made["buildConfig"]["entryPoint"]
        super().__init__(target, "http", made["serviceConfig"]["environmentVariables"] | outside, log)
        self._python = python
        self._source = source

    def start(self) -> None:
        platform = {"FUNCTION_TARGET": self._target, "FUNCTION_SIGNATURE_TYPE": "http"}  # it has no event trigger
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._python), "-m", "functions_framework", "--host", "127.0.0.1", "--port", str(self._port)],
                cwd=self._source,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self._source), **platform, **self._variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@pytest.fixture(scope="module")
def python(story: Story, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the packages in the uploaded requirements.txt, and no others."""
    folder = tmp_path_factory.mktemp("python")
    with zipfile.ZipFile(archive(story, "dispatch")) as uploaded:
        uploaded.extract("requirements.txt", folder)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    found = folder / "venv/bin/python"
    packages = Path(
        subprocess.check_output([found, "-c", "import site; print(site.getsitepackages()[0])"], text=True).strip()
    )
    for line in (folder / "requirements.txt").read_text().splitlines():
        if (
            "==" in line
            and (needed := Requirement(line.strip(" \\")))
            and (not needed.marker or needed.marker.evaluate())
        ):
            link(metadata.distribution(needed.name), needed, packages)
    pip = [sys.executable, "-m", "pip", "--python", str(found), "--disable-pip-version-check"]
    check = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
    return found


def link(installed: metadata.Distribution, needed: Requirement, packages: Path) -> None:
    """Link a package that is installed for the tests into another Python, which is faster than to install it again."""
    assert needed.specifier.contains(installed.version), (
        f"{needed} is needed, not {installed.version}: install tests/requirements.txt"
    )
    for file in installed.files or ():
        if ".." not in file.parts and "__pycache__" not in file.parts:
            (packages / file).parent.mkdir(parents=True, exist_ok=True)
            (packages / file).symlink_to(file.locate())


@needs_gcloud
def test_what_was_uploaded_runs_as_it_was_configured(story: Story, python: Path, tmp_path: Path) -> None:
    """On the local cloud, with the deployed topics and subscriptions: a tick starts a job, its end the next one."""
    made = story.change.after.resources
    variables = made[f"{FUNCTIONS}/{NAME}-dispatch"]["serviceConfig"]["environmentVariables"]
    with ExitStack() as running:

        def start(server: Any) -> Any:
            running.callback(server.stop)
            server.start()
            return server

        pubsub = start(PubSubServer())
        sink = start(LogSink(pubsub.address, made[SINK]["destination"].partition("/")[2]))
        wandb = start(WandbServer(api_keys={KEY: "ada"}, teams={TEAM: ["ada"]}, default_entities={"ada": TEAM}))
        vertex = start(VertexServer(regions=REGIONS, on_log=sink.write))
        secrets = start(SecretServer(projects=PROJECTS))
        secrets.add(variables["WANDB_API_KEY_SECRET"].removesuffix("/versions/latest"), KEY)
        storage = start(StorageServer(buckets=[variables["STATE_BUCKET"].removeprefix("gs://")]))
        outside = {
            "WANDB_BASE_URL": wandb.url,
            "AIPLATFORM_ENDPOINT": f"http://{vertex.address}",
            "SECRETMANAGER_ENDPOINT": f"http://{secrets.address}",
            "STORAGE_EMULATOR_HOST": storage.url,
            "PUBSUB_EMULATOR_HOST": pubsub.address,
        }
        functions = {}
        for name in FUNCTION:
            with zipfile.ZipFile(archive(story, name)) as uploaded:
                uploaded.extractall(tmp_path / name)
            function = made[f"{FUNCTIONS}/{NAME}-{name}"]
            log = tmp_path / f"{name}.log"
            functions[function["serviceConfig"]["uri"]] = start(
                Uploaded(python, tmp_path / name, function, outside, log)
            )
        for function in functions.values():
            function.wait()
        subscribe(pubsub.address, made, {uri: function.url for uri, function in functions.items()})

        wandb.store.create_queue(TEAM, QUEUE)
        for _ in range(2):
            wandb.store.push(TEAM, QUEUE, run_spec(entity=TEAM))
        tick = made[SCHEDULE]["pubsubTarget"]
        publish(pubsub.address, tick["topicName"], base64.b64decode(tick["data"]))
        said = "\n".join(function.log.read_text() for function in functions.values())
        assert eventually(lambda: vertex.jobs), said
        (job,) = vertex.jobs.values()
        assert NAME in job.labels.values(), "the deployment"
        assert f"gs://{PROJECT}-{NAME}-staging-{REGION}" in job.job_spec.base_output_directory.output_uri_prefix
        wandb.store.project(TEAM, "demo")
        vertex.advance(job.name, JobState.JOB_STATE_SUCCEEDED)
        assert eventually(lambda: len(vertex.jobs) == 2), said


def subscribe(address: str, made: dict[str, Any], urls: dict[str, str]) -> None:
    """Make the recorded topics and subscriptions, with the functions' addresses here in place of those in the cloud."""
    with grpc.insecure_channel(address) as channel:
        publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        subscriber = SubscriberClient(transport=SubscriberGrpcTransport(channel=channel))
        ours = [name for name in made if name.startswith("pubsub/") and name not in STRANGERS]
        for name in sorted(ours, key=lambda name: "/subscriptions/" in name):
            if "/topics/" in name:
                publisher.create_topic(name=made[name]["name"])
            else:
                subscription = Subscription.from_json(json.dumps(made[name]))
                subscription.push_config.push_endpoint = urls.get(subscription.push_config.push_endpoint, "")
                subscriber.create_subscription(subscription)


def publish(address: str, topic: str, data: bytes) -> None:
    """Publish one message."""
    with grpc.insecure_channel(address) as channel:
        publisher = PublisherClient(transport=PublisherGrpcTransport(channel=channel))
        publisher.publish(topic=topic, messages=[PubsubMessage(data=data)])


# Commands


def script(*words: str, place: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script that needs no gcloud."""
    name, *options = words
    return subprocess.run(
        ["bash", str(place / "infra" / name), *options],
        env={"PATH": path or os.environ["PATH"]},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def without_gcloud(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A search path with the usual tools, but without gcloud."""
    folder = tmp_path_factory.mktemp("bin")
    tools = "bash awk basename cat cut dirname find grep head mkdir mktemp paste rm sed sha256sum sort tr uniq xargs"
    for tool in tools.split():
        (folder / tool).symlink_to(shutil.which(tool) or pytest.fail(f"{tool} is not here"))
    return str(folder)


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in which vertex-launch.yaml sets nothing."""
    return checkout(tmp_path_factory.mktemp("default") / "checkout", settings="")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkout(tmp_path_factory.mktemp("dry") / "checkout")


def plain(command: str) -> str:
    """Return a command as a dry run prints it: without the project's number, digests, addresses and temporary folders."""
    command = command.replace(NUMBER, "PROJECT_NUMBER")
    command = re.sub(r"https://(\S+)-abcdef-uc\.a\.run\.app", r"https://URL-OF-\1", command)
    command = command.replace(agent("logging").replace(NUMBER, "PROJECT_NUMBER"), "WRITER_OF_THE_SINK")
    return re.sub(r"(digest|monitoring)=[0-9a-f]{40}|/\S*/tmp\.\w+/", r"\1", command)


@needs_gcloud
def test_a_dry_run_shows_what_a_run_does(story: Story, place: Path, without_gcloud: str) -> None:
    shown = script("deploy.sh", *DEPLOY, "--dry-run", path=without_gcloud, place=place)
    assert shown.returncode == 0, shown.stderr
    commands = [plain(line[2:]) for line in shown.stdout.splitlines() if line.startswith("+ ")]
    done = list(dict.fromkeys(map(plain, story.deploy.commands())))  # what was tried twice is shown once
    created = f"gcloud artifacts repositories create {NAME}-images "
    assert [command for command in commands if not command.startswith(created)] == done, "that one existed"
    assert 'GOOGLE_CLOUD_REGION: "us-central1,us-east4"' in shown.stdout


ALL_OPTIONS = (
    f"--project={PROJECT}",
    "--region=us-central1",
    "--name=lab",
    "--job-regions=us-central1,europe-west4",
    "--wandb-base-url=https://wandb.example.com",
    "--schedule=*/5 * * * *",
    "--invoker=group:ml@example.com",
    f"--job-account=train@{PROJECT}.iam.gserviceaccount.com",
    "--job-account=train@another-project.iam.gserviceaccount.com",
    "--staging-buckets=gs://one,gs://two",
    "--secret=team-key",
    f"--notification-channels={CHANNEL}",
    "--vpc-connector=main",
    "--memory=2Gi",
    "--cloud-build",
    "--dry-run",
)


def shape(command: str) -> list[str]:
    """Return a command's group and the names of its flags."""
    words = shlex.split(command)
    return words[1:4] + sorted(word.partition("=")[0] for word in words if word.startswith("--"))


@needs_gcloud
def test_gcloud_accepts_the_commands_of_other_options(story: Story, tmp_path: Path) -> None:
    """According to gcloud's own check of commands, flags and values, without the network."""
    place = checkout(tmp_path / "checkout", settings="log_lines: 20\n")
    shared = [one for one in ALL_OPTIONS if one.partition("=")[0] in SHARED]
    runs = [script("deploy.sh", *ALL_OPTIONS, place=place)]
    runs += [script("destroy.sh", *shared, *more, "--dry-run", place=place) for more in ((), ("--with-data",))]
    assert [run.returncode for run in runs] == [0, 0, 0], [run.stderr for run in runs]
    commands = [line[2:] for run in runs for line in run.stdout.splitlines() if line.startswith("+ ")]
    for words in ("roles create lab_job_logs", "roles/cloudfunctions.developer", "roles/iam.serviceAccountUser"):
        assert any(words in command for command in commands), words
    memory = [re.findall(r" --memory=(\w+)", command)[0] for command in commands if "functions deploy" in command]
    assert memory == ["2Gi", "2Gi", "512Mi"]
    assert not any("secrets create" in command or "buckets create gs://one" in command for command in commands)
    known = [shape(command) for run in story.runs() for command in run.commands()]
    new = {" ".join(shape(command)): command for command in commands if shape(command) not in known}
    assert 3 <= len(new) <= 20
    (tmp_path / "file").write_text("{}")
    files = [re.sub(r"=\S*/tmp\.\S+", f"={tmp_path / 'file'}", command) for command in new.values()]
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": one} for one in files]))
    checked = subprocess.run(
        ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'commands.json'}"],
        env={"PATH": gcloud_server.path(), "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    results = json.loads(checked.stdout)
    assert len(results) == len(new)
    assert [(one["command_string"], one["error_message"]) for one in results if not one["success"]] == []


# Secrets that jobs read


TRAIN = f"serviceAccount:train@{PROJECT}.iam.gserviceaccount.com"
FORMS = {
    "nothing": "log_lines: 20\n",
    "what is commented out": "#api_key_delivery: secret\n#git_token_secrets: {a: projects/p/secrets/s/versions/1}\n",
    "plain": "api_key_delivery: secret\ngit_token_secrets: {github.com: projects/p/secrets/s/versions/latest}\n",
    "quoted": 'api_key_delivery: \'secret\'\ngit_token_secrets: {"h": "projects/p/secrets/s/versions/latest"}\n',
    "comments": "api_key_delivery: env # or secret\ngit_token_secrets:\n  # b: projects/p/secrets/s/versions/1\n"
    "  a: projects/p/secrets/t/versions/1 # projects/p/secrets/u/versions/1\n",
    "lines": "git_token_secrets: {\n  a: projects/p/secrets/s/versions/1,\n\n  b: projects/p/secrets/s/versions/2}\n"
    "key_secret: projects/p/secrets/key/versions/1\napi_key_delivery:\n  secret\n",
    "another system's lines": "api_key_delivery: secret\r\ngit_token_secrets:\r\n  a: projects/p/secrets/s/versions/1\r\n",
    "other projects": "git_token_secrets: {a: projects/b/secrets/s/versions/1, b: projects/123/secrets/s/versions/1}\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_the_scripts_read_the_settings_like_a_yaml_parser(form: str, tmp_path: Path) -> None:
    with (tmp_path / "vertex-launch.yaml").open("w", newline="") as file:
        file.write(FORMS[form])
    meant = yaml.safe_load(FORMS[form]) or {}
    ask = f". '{ROOT}/infra/common.sh'; set -euf -o pipefail; if jobs_read_key; then echo key; fi; token_secrets"
    read = subprocess.run(["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True)
    key = ["key"] if meant.get("api_key_delivery") == "secret" else []
    tokens = {version.partition("/versions/")[0] for version in meant.get("git_token_secrets", {}).values()}
    assert read.stdout.split() == key + sorted(tokens)


@pytest.mark.parametrize(
    "form", ["api_key_delivery : secret", '"api_key_delivery": secret', "{api_key_delivery: secret}"]
)
@pytest.mark.parametrize("name", ["deploy.sh", "destroy.sh"])
def test_settings_that_the_scripts_cannot_read_stop_them_before_anything_is_done(
    name: str, form: str, without_gcloud: str, tmp_path: Path
) -> None:
    place = checkout(tmp_path / "checkout")
    (place / "vertex-launch.yaml").write_text(form)
    ended = script(name, *OPTIONS, "--dry-run", path=without_gcloud, place=place)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "vertex-launch.yaml: write api_key_delivery" in ended.stderr


def test_by_default_no_job_reads_a_secret(without_gcloud: str, default: Path) -> None:
    shown = script("deploy.sh", *OPTIONS, "--dry-run", path=without_gcloud, place=default).stdout
    grants = [line for line in shown.splitlines() if READ_SECRET in line]
    assert [line.split()[5:7] for line in grants] == [
        [f"--member={account(name)}", f"--role={READ_SECRET}"] for name in ("dispatch", "now")
    ]


def with_gcloud(folder: Path, cases: str, path: str) -> str:
    """Add to a search path a gcloud that answers its arguments by these cases of a shell, and a sleep that returns at once."""
    (folder / "gcloud").write_text(f'#!/usr/bin/env bash\ncase "$*" in{cases}\nesac\n')
    (folder / "gcloud").chmod(0o755)
    (folder / "sleep").symlink_to("/bin/true")
    return f"{folder}{os.pathsep}{path}"


@pytest.fixture
def half_there(tmp_path: Path, without_gcloud: str) -> str:
    """A search path with a gcloud that knows one secret, which two accounts of jobs may read, and no bucket."""
    member = r"\t".join(("%s", READ_SECRET, r"\n"))
    cases = f"""
      "secrets list "*) echo {NAME}-wandb-api-key ;;
      "secrets get-iam-policy {NAME}-wandb-api-key "*) printf '{member}' {account("jobs")} {TRAIN} ;;
      "secrets get-iam-policy "* | "storage buckets list "*) echo "gcloud: NOT_FOUND" >&2 && exit 1 ;;"""
    return with_gcloud(tmp_path, cases, without_gcloud)


@pytest.mark.parametrize(
    ("options", "taken"), [((), [account("jobs")]), ((f"--job-account={TRAIN.partition(':')[2]}",), [])]
)
def test_a_role_is_removed_only_from_our_own_account(
    options: tuple[str, ...], taken: list[str], half_there: str, default: Path
) -> None:
    """If the key is in the jobs' specs: another account may have the role for another purpose."""
    run = script("deploy.sh", *OPTIONS, *options, path=half_there, place=default)
    removed = [line.split()[5] for line in run.stdout.splitlines() if "remove-iam-policy-binding" in line]
    assert removed == [f"--member={member}" for member in taken], run.stderr
    assert "== Secret, buckets, repositories" in run.stdout, "it got this far"


def test_a_token_that_is_not_there_is_named(tmp_path: Path, half_there: str) -> None:
    place = checkout(tmp_path / "checkout")
    (place / "vertex-launch.yaml").write_text(f"git_token_secrets: {{github.com: {TOKENS[0]}/versions/latest}}")
    run = script("deploy.sh", *OPTIONS, path=half_there, place=place)
    assert run.returncode == 2
    assert "gcloud: NOT_FOUND" in run.stderr
    assert f"vertex-launch.yaml names {TOKENS[0]} in git_token_secrets" in run.stderr


@pytest.mark.parametrize(("settings", "gave"), [("api_key_delivery: secret", True), ("api_key_delivery: env", False)])
def test_destroying_removes_granted_roles_from_accounts_of_others(settings: str, gave: bool, tmp_path: Path) -> None:
    place = checkout(tmp_path / "checkout")
    (place / "vertex-launch.yaml").write_text(settings)
    theirs = script("destroy.sh", *OPTIONS, f"--job-account={TRAIN.partition(':')[2]}", "--dry-run", place=place).stdout
    ours = script("destroy.sh", *OPTIONS, "--dry-run", place=place).stdout
    taken = f"gcloud secrets remove-iam-policy-binding {NAME}-wandb-api-key --member=%s --role={READ_SECRET}"
    assert (taken % TRAIN in theirs) is gave
    assert taken % account("jobs") in ours


SHARED = {"--project", "--region", "--name", "--job-regions", "--job-account", "--staging-buckets", "--secret"}


def test_data_is_deleted_only_with_its_option(default: Path) -> None:
    kept = script("destroy.sh", *OPTIONS, "--dry-run", place=default).stdout
    gone = script("destroy.sh", *OPTIONS, "--dry-run", "--with-data", place=default).stdout
    for words in ("secrets delete", "storage rm", f"repositories delete {NAME}-images"):
        assert words not in kept
        assert words in gone


def test_destroying_asks_for_confirmation(default: Path) -> None:
    run = script("destroy.sh", *OPTIONS, path=os.environ["PATH"], place=default)
    if shutil.which("gcloud"):
        assert run.returncode == 2
        assert "--yes" in run.stderr
        assert f"This deletes the deployment {NAME} in {PROJECT}." in run.stdout
    else:
        assert "gcloud is not installed" in run.stderr


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "--project"),
        (["--project=My Project"], "--project 'My Project'"),
        (["--project=123456789012"], "--project '123456789012'"),
        ([f"--project={PROJECT}"], "--region"),
        ([f"--project={PROJECT}", "--region=us-central1-a"], "--region 'us-central1-a'"),
        ([*OPTIONS, "--name=ab"], "--name 'ab'"),
        ([*OPTIONS, "--name=a-name-of-18-chars"], "--name 'a-name-of-18-chars'"),
        ([*OPTIONS, "--name=Research"], "--name 'Research'"),
        ([*OPTIONS, "--job-regions=us-central1,us"], "--job-regions has 'us'"),
        ([*OPTIONS, "--job-regions=us-central1,us-central1"], "--job-regions 'us-central1,us-central1'"),
        ([*OPTIONS, "--staging-buckets=gs://one"], "--staging-buckets 'gs://one'"),
        ([*OPTIONS, "--staging-buckets=gs://one,two"], "--staging-buckets has 'two'"),
        ([*OPTIONS, f"--staging-buckets=gs://one,gs://{PROJECT}-{NAME}-state"], "the bucket of the record"),
        ([f"--project={'p' * 30}", "--region=us-central1", "--name=seventeen-letters"], "63"),
        ([*OPTIONS, "--secret=projects/p/secrets/s"], "--secret 'projects/p/secrets/s'"),
        ([*OPTIONS, "--job-account=me@example.com"], "--job-account 'me@example.com'"),
        ([*OPTIONS, "--invoker=allUsers"], "--invoker 'allUsers'"),
        ([*OPTIONS, "--invoker=ada@example.com"], "--invoker 'ada@example.com'"),
        ([*OPTIONS, "--wandb-base-url=http://wandb.example.com"], "--wandb-base-url 'http://wandb.example.com'"),
        ([*OPTIONS, "--schedule=* * *"], "--schedule '* * *'"),
        ([*OPTIONS, "--memory=256Mi"], "--memory '256Mi'"),
        ([*OPTIONS, "--ingress=ALLOW_ALL"], "--ingress 'ALLOW_ALL'"),
        ([*OPTIONS, "--what=1"], "--what"),
        ([*OPTIONS, "--name", "--dry-run"], "--name"),
        ([*OPTIONS, "now"], "'now'"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_before_anything_is_done(
    options: list[str], named: str, default: Path
) -> None:
    run = script("deploy.sh", *options, "--dry-run", place=default)
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.startswith("deploy.sh: ")
    assert named in run.stderr


# What Google does not know at once


@pytest.mark.parametrize(
    ("answer", "tries"),
    [("NOT_FOUND: Cannot find metric(s) that match type", 61 + 5), ("INVALID_ARGUMENT: no such channel", 6)],
)
def test_alerts_that_fail_do_not_hide_the_instructions(
    answer: str, tries: int, default: Path, without_gcloud: str, tmp_path: Path
) -> None:
    """They are tried for ten minutes in all, if that can help."""
    cases = f"""
      "alpha monitoring policies create "*) echo "{answer}" >&2 && exit 1 ;;"""
    run = script("deploy.sh", *OPTIONS, path=with_gcloud(tmp_path, cases, without_gcloud), place=default)
    assert run.returncode == 2
    assert run.stdout.count("+ gcloud alpha monitoring policies create") == tries
    assert f"gcloud secrets versions add {NAME}-wandb-api-key" in run.stdout.partition("== Done")[2]
    assert run.stderr.count("the alert vertex-launch: ") == len(list((ROOT / "infra/monitoring/alerts").glob("*.yaml")))
    assert "--update-labels=monitoring=" not in run.stdout, "the next run tries again"


@pytest.mark.parametrize(
    ("options", "tries"), [((), 3), (("--functions-only", "--job-account=a@p.iam.gserviceaccount.com"), 1)]
)
def test_a_build_is_tried_again_after_roles_were_granted(
    options: tuple[str, ...], tries: int, default: Path, without_gcloud: str, tmp_path: Path
) -> None:
    cases = """
      "functions deploy "*) echo "Build failed" >&2 && exit 1 ;;"""
    run = script("deploy.sh", *OPTIONS, *options, path=with_gcloud(tmp_path, cases, without_gcloud), place=default)
    assert run.returncode == 2
    assert run.stdout.count("+ gcloud functions deploy") == tries
    assert f"{NAME}-dispatch was not deployed" in run.stderr


def test_a_grant_is_tried_until_a_new_account_is_known(default: Path, without_gcloud: str, tmp_path: Path) -> None:
    """For three minutes; what the account's policy says is not asked before."""
    cases = f"""
      "iam service-accounts get-iam-policy {NAME}-"*) echo "PERMISSION_DENIED" >&2 && exit 1 ;;
      "secrets add-iam-policy-binding "*) echo "Service account does not exist." >&2 && exit 1 ;;"""
    run = script("deploy.sh", *OPTIONS, path=with_gcloud(tmp_path, cases, without_gcloud), place=default)
    assert run.returncode != 0
    assert run.stdout.count("+ gcloud secrets add-iam-policy-binding") == 18


def test_the_policy_of_an_account_of_the_run_before_is_asked_for_again(
    default: Path, without_gcloud: str, tmp_path: Path
) -> None:
    emails = " ".join(
        account(name).partition(":")[2] for name in ("dispatch", "now", "job-state", "push", "build", "jobs")
    )
    cases = f"""
      "iam service-accounts list "*) printf '%s\\n' {emails} ;;
      "iam service-accounts get-iam-policy {NAME}-"*) echo "PERMISSION_DENIED" >&2 && exit 1 ;;"""
    run = script("deploy.sh", *OPTIONS, path=with_gcloud(tmp_path, cases, without_gcloud), place=default)
    assert run.returncode == 1
    assert run.stderr.count("PERMISSION_DENIED") == 18


def test_a_role_that_cannot_be_restored_is_named(default: Path, without_gcloud: str, tmp_path: Path) -> None:
    cases = r"""
      "iam roles list "*) printf 'vertex_launch_record\tTrue\n' ;;
      "iam roles undelete "*) echo "FAILED_PRECONDITION" >&2 && exit 1 ;;"""
    run = script("deploy.sh", *OPTIONS, path=with_gcloud(tmp_path, cases, without_gcloud), place=default)
    assert run.returncode == 2
    assert "vertex_launch_record" in run.stderr
    assert "--name" in run.stderr


def test_a_dead_condition_does_not_count(default: Path, without_gcloud: str, tmp_path: Path) -> None:
    """One with the same title that leaves out the bucket itself, as earlier versions granted it."""
    old = f'resource.name.startsWith("projects/_/buckets/gcf-v2-sources-{NUMBER}-{REGION}/")'
    new = f'resource.name == "{SOURCES}" || resource.name.startsWith("{SOURCES}/")'
    added = []
    for number, expression in enumerate((old, new)):
        row = "\t".join((account("build"), "roles/storage.objectViewer", f"{NAME}-sources", expression))
        cases = f"""
      "projects get-iam-policy "*) printf '%s\n' '{row}' ;;
      "projects describe "*) echo {NUMBER} ;;
      "secrets list "*) exit 1 ;;"""
        (tmp_path / str(number)).mkdir()
        path = with_gcloud(tmp_path / str(number), cases, without_gcloud)
        shown = script("deploy.sh", *OPTIONS, path=path, place=default).stdout
        added.append([line for line in shown.splitlines() if f"title={NAME}-sources" in line])
    assert [len(lines) for lines in added] == [1, 0]


# What is deployed, for options that are not given

DEPLOYED = {
    "name": f"{NAME}-dispatch",
    "state": "ACTIVE",
    "digest": "0",
    "uri": "https://dispatch",
    "regions": REGION,
    "staging": f"gs://{PROJECT}-{NAME}-staging-{REGION}",
    "record": f"gs://{PROJECT}-{NAME}-state",
    "secret": f"{P}/secrets/{NAME}-wandb-api-key/versions/latest",
    "wandb": "https://wandb.example.com",
    "memory": "4Gi",
    "connector": CONNECTOR,
    "timeout": "120",
    "jobs": f"trainer@{PROJECT}.iam.gserviceaccount.com",
    "ingress": "ALLOW_INTERNAL_ONLY",
}


def again(
    folder: Path, path: str, place: Path, deployed: dict[str, str], *options: str
) -> subprocess.CompletedProcess[str]:
    """Run deploy.sh with a gcloud that knows the function dispatch and no accounts."""
    row = "\t".join((DEPLOYED | deployed).values())
    cases = f"""
      "services list "*) echo cloudfunctions.googleapis.com ;;
      "functions list "*) echo '{row}' ;;
      "functions deploy "*) for one in "$@"; do case $one in --env-vars-file=*) cat "${{one#*=}}" >&2 ;; esac; done ;;"""
    return script("deploy.sh", *ALONE, *options, path=with_gcloud(folder, cases, path), place=place)


@pytest.mark.parametrize(
    ("deployed", "options", "flags", "kept"),
    [
        ({}, (), {"--memory=4Gi", f"--vpc-connector={CONNECTOR}"}, "--wandb-base-url --memory --vpc-connector"),
        ({}, ("--memory=1Gi", "--vpc-connector=none"), {"--memory=1Gi", "--clear-vpc-connector"}, "--wandb-base-url"),
        ({"memory": "1Gi", "connector": "", "wandb": ""}, (), {"--memory=1Gi", "--clear-vpc-connector"}, ""),
        (
            {"secret": f"{P}/secrets/team-key/versions/latest", "staging": "gs://one", "wandb": ""},
            ("--memory=2Gi",),
            {"--memory=2Gi"},
            "--staging-buckets --secret --vpc-connector",
        ),
        (
            dict.fromkeys(DEPLOYED, "") | {"name": f"{NAME}-dispatch", "state": "FAILED"},
            ("--job-account=a@p.iam.gserviceaccount.com",),
            {"--memory=1Gi"},
            "",
        ),
    ],
)
def test_the_functions_keep_what_they_were_deployed_with(
    deployed: dict[str, str],
    options: tuple[str, ...],
    flags: set[str],
    kept: str,
    default: Path,
    without_gcloud: str,
    tmp_path: Path,
) -> None:
    run = again(tmp_path, without_gcloud, default, deployed, "--functions-only", *options)
    assert run.returncode == 0, run.stderr
    first, *lines = run.stdout.splitlines()
    assert re.findall(r" (--[a-z-]+)=", first) == kept.split()
    [command] = [line for line in lines if line.startswith(f"+ gcloud functions deploy {NAME}-dispatch ")]
    assert flags <= set(shlex.split(command))


@pytest.mark.parametrize(
    ("deployed", "options", "ingress"),
    [
        ("ALLOW_ALL", (), "all"),
        ("ALLOW_INTERNAL_AND_GCLB", (), "internal-and-gclb"),
        ("ALLOW_INTERNAL_ONLY", (), "internal-only"),
        ("ALLOW_INTERNAL_ONLY", ("--ingress=all",), "all"),
    ],
)
def test_only_dispatch_now_can_be_called_from_outside(
    deployed: str, options: tuple[str, ...], ingress: str, default: Path, without_gcloud: str, tmp_path: Path
) -> None:
    known = {"name": f"{NAME}-dispatch-now", "ingress": deployed}
    options = (*options, "--functions-only", "--job-account=a@p.iam.gserviceaccount.com")
    run = again(tmp_path, without_gcloud, default, known, *options)
    assert run.returncode == 0, run.stderr
    found = re.findall(r"functions deploy (\S+) .*--ingress-settings=(\S+)", run.stdout)
    assert dict(found) == {
        f"{NAME}-dispatch": "internal-only",
        f"{NAME}-dispatch-now": ingress,
        f"{NAME}-job-state": "internal-only",
    }


@pytest.mark.parametrize(
    ("deployed", "options", "account_of_jobs"),
    [
        ("theirs@p.iam.gserviceaccount.com", (), "theirs@p.iam.gserviceaccount.com"),
        ("theirs@p.iam.gserviceaccount.com", ("--job-account=a@p.iam.gserviceaccount.com",), "a@p.iam.gserviceaccount.com"),
        ("", ("--job-account=a@p.iam.gserviceaccount.com", "--job-account=b@p.iam.gserviceaccount.com"), "a@p.iam.gserviceaccount.com"),
    ],
)  # fmt: skip
def test_the_account_of_jobs_without_one_is_kept(
    deployed: str,
    options: tuple[str, ...],
    account_of_jobs: str,
    default: Path,
    without_gcloud: str,
    tmp_path: Path,
) -> None:
    run = again(tmp_path, without_gcloud, default, {"jobs": deployed}, "--functions-only", *options)
    assert run.returncode == 0, run.stderr
    assert re.findall('^JOBS_ACCOUNT: "(.*)"$', run.stderr, re.MULTILINE) == [account_of_jobs] * 3


def test_the_setting_of_the_account_of_jobs_is_enough(tmp_path: Path, without_gcloud: str) -> None:
    setting = "jobs_account: mine@p.iam.gserviceaccount.com\n"
    place = checkout(tmp_path / "checkout", settings=setting)
    run = again(tmp_path, without_gcloud, place, {"jobs": ""}, "--functions-only")
    assert run.returncode == 0, run.stderr
    assert "JOBS_ACCOUNT" not in run.stderr
    assert f"+ gcloud functions deploy {NAME}-job-state " in run.stdout


@pytest.mark.parametrize(
    "settings",
    ["", "# jobs_account: a@p.iam.gserviceaccount.com\n", "jobs_account:\n", "max_runs: 1 # jobs_account: a@b\n"],
)
@pytest.mark.parametrize("deployed", [{"jobs": ""}, dict.fromkeys(DEPLOYED, "")])
def test_functions_without_an_account_of_jobs_are_not_deployed(
    settings: str, deployed: dict[str, str], tmp_path: Path, without_gcloud: str
) -> None:
    place = checkout(tmp_path / "checkout", settings=settings)
    run = again(tmp_path, without_gcloud, place, deployed, "--functions-only")
    assert run.returncode == 2
    assert all(name in run.stderr for name in ("--job-account", "jobs_account", f"{NAME}-dispatch"))
    assert "functions deploy" not in run.stdout


def test_a_new_deployment_sets_the_account_of_jobs(default: Path, without_gcloud: str) -> None:
    shown = script("deploy.sh", *ALONE, "--dry-run", path=without_gcloud, place=default).stdout
    assert f'JOBS_ACCOUNT: "{NAME}-jobs@{PROJECT}.iam.gserviceaccount.com"' in shown


@pytest.mark.parametrize(
    ("deployed", "options", "named"),
    [
        ({"record": "gs://shared/record"}, (), "gs://shared/record"),
        ({"timeout": "300"}, (), "300 s"),
        ({"secret": "projects/other/secrets/s/versions/latest"}, (), "--secret"),
        ({"staging": "gs://one"}, ("--job-regions=us-east4",), "--staging-buckets"),
        ({}, (), "--job-account"),
    ],
)
def test_what_options_cannot_keep_is_refused(
    deployed: dict[str, str], options: tuple[str, ...], named: str, default: Path, without_gcloud: str, tmp_path: Path
) -> None:
    run = again(tmp_path, without_gcloud, default, deployed, *options)
    assert run.returncode == 2
    assert named in run.stderr
    assert "functions deploy" not in run.stdout


def test_placeholders_are_not_deployed(place: Path, tmp_path: Path, without_gcloud: str) -> None:
    unedited = shutil.copytree(place, tmp_path / "unedited")
    (unedited / "launch-config.yaml").write_text("# Replace YOUR-TEAM.\nentity: me\nqueues: [YOUR-QUEUE]\n")
    run = script("deploy.sh", *OPTIONS, "--dry-run", path=without_gcloud, place=unedited)
    assert (run.returncode, run.stdout) == (2, "")
    assert "launch-config.yaml" in run.stderr
    (unedited / "launch-config.yaml").write_text("# Replace YOUR-TEAM.\nentity: me\nqueues: [q]\n")
    assert script("deploy.sh", *OPTIONS, "--dry-run", path=without_gcloud, place=unedited).returncode == 0


def test_without_gcloud(place: Path, without_gcloud: str) -> None:
    run = script("deploy.sh", *OPTIONS, path=without_gcloud, place=place)
    assert (run.returncode, run.stdout) == (2, "")
    assert "gcloud is not installed" in run.stderr


@pytest.mark.parametrize("name", ["deploy.sh", "destroy.sh"])
def test_help_names_every_option(name: str) -> None:
    text = (ROOT / "infra" / name).read_text() + (ROOT / "infra/common.sh").read_text()
    said = script(name, "--help", place=ROOT).stdout
    known = re.findall(r"^ +(--[a-z-]+)(?: \| -h)?\) ", text, re.MULTILINE)
    assert len(known) >= 10
    assert [option for option in known if option != "--help" and option not in said] == []
