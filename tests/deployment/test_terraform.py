"""What Terraform plans for infra/, checked without the network. `infra/tests` has the tests in Terraform's own language."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import terraform_plan
from tests.support.terraform_plan import (
    NUMBER,
    PROJECT,
    ROOT,
    TERRAFORM,
    bindings,
    permissions,
    plan,
    plan_of_example,
    resources,
)
from vertex_launch.settings import config

pytestmark = [terraform_plan.needs_terraform, pytest.mark.deployment]

MAPS = {"userLabels", "labelExtractors"}
"""Fields of Google's API that are maps. Terraform has a block for every other object."""


def account(name: str) -> str:
    return f"serviceAccount:vertex-launch-{name}@my-project.iam.gserviceaccount.com"


def agent(name: str) -> str:
    return f"serviceAccount:service-{NUMBER}@gcp-sa-{name}.iam.gserviceaccount.com"


def role(name: str) -> str:
    return f"projects/my-project/roles/vertex_launch_{name}"


JOBS_ACCOUNT = (
    "service_account projects/my-project/serviceAccounts/vertex-launch-jobs@my-project.iam.gserviceaccount.com"
)


def only(bucket: str) -> str:
    """Return the project under the condition that a role holds for one bucket, whose objects can be listed, and its objects."""
    name = f"projects/_/buckets/{bucket}"
    return f'project my-project if resource.name == "{name}" || resource.name.startsWith("{name}/")'


CHECKOUT, SOURCES = only("my-project_cloudbuild"), only(f"gcf-v2-sources-{NUMBER}-us-central1")
PUSH_ACCOUNT = JOBS_ACCOUNT.replace("-jobs@", "-push@")
RIGHTS = {
    # Passes: jobs, the accounts that jobs run as, the key, the record.
    *(("project my-project", role("dispatch"), account(who)) for who in ("dispatch", "now")),
    *((JOBS_ACCOUNT, role("act_as"), account(who)) for who in ("dispatch", "now")),
    *(
        ("secret_manager_secret vertex-launch-wandb-api-key", "roles/secretmanager.secretAccessor", account(who))
        for who in ("dispatch", "now")
    ),
    *(("storage_bucket my-project-vertex-launch-state", role("record"), account(who)) for who in ("dispatch", "now")),
    # A job's end.
    ("project my-project", role("job_state"), account("job-state")),
    ("pubsub_topic vertex-launch-ticks", "roles/pubsub.publisher", account("job-state")),
    # Messages: who pushes, who makes the tokens for it, who moves dead letters, who writes log entries.
    ("cloud_run_v2_service vertex-launch-dispatch", "roles/run.invoker", account("push")),
    ("cloud_run_v2_service vertex-launch-job-state", "roles/run.invoker", account("push")),
    (PUSH_ACCOUNT, "roles/iam.serviceAccountTokenCreator", agent("pubsub")),
    ("pubsub_topic vertex-launch-ticks-dead", "roles/pubsub.publisher", agent("pubsub")),
    ("pubsub_topic vertex-launch-job-logs-dead", "roles/pubsub.publisher", agent("pubsub")),
    ("pubsub_subscription vertex-launch-ticks", "roles/pubsub.subscriber", agent("pubsub")),
    ("pubsub_subscription vertex-launch-job-logs", "roles/pubsub.subscriber", agent("pubsub")),
    ("pubsub_topic vertex-launch-job-logs", "roles/pubsub.publisher", "SINK"),
    # Jobs: their output. Google's own role lets Vertex AI read images in the same project.
    ("storage_bucket my-project-vertex-launch-staging-us-central1", "roles/storage.objectUser", account("jobs")),
    # Builds.
    ("project my-project", "roles/logging.logWriter", account("build")),
    (SOURCES, "roles/storage.objectViewer", account("build")),
    ("storage_bucket my-project-vertex-launch-source", "roles/storage.objectViewer", account("build")),
    ("artifact_registry_repository vertex-launch-functions", "roles/artifactregistry.writer", account("build")),
}
"""Every role that a deployment grants by default."""
MORE = {
    "invokers": ["user:ada@example.com"],
    "read_job_logs": True,
    "deploy_with_cloud_build": True,
    "notification_channels": ["projects/my-project/notificationChannels/1"],
}


def test_the_files_are_formatted() -> None:
    command = [TERRAFORM, "fmt", "-check", "-recursive", "-diff", str(ROOT / "infra")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_tests_of_terraform_pass(tmp_path: Path) -> None:
    infra = terraform_plan.copy_of_checkout(tmp_path)
    try:
        printed = terraform_plan.terraform(infra, ["validate"], ["test"])
    except subprocess.CalledProcessError as error:
        pytest.fail(f"terraform test:\n{error.output}")
    assert re.search(r"Success! \d+ passed, 0 failed\.", printed), printed
    for file in infra.glob("tests/*.tftest.hcl"):
        assert f"tests/{file.name}... pass" in printed


def test_the_rights_are_exactly_these() -> None:
    assert bindings(plan()) == RIGHTS


def test_what_needs_an_agent_waits_for_it_and_builds_wait_for_roles() -> None:
    """In a new project Pub/Sub's agent does not exist, and new roles do not work at once."""
    planned = plan()
    written = planned["configuration"]["root_module"]["resources"]
    waits = {one["address"]: set(one.get("depends_on", ())) for one in written}
    agents = {
        one["address"] for one in written if "local.pubsub_agent" in str(one.get("expressions", {}).get("member"))
    }
    assert len(agents) == 3
    for address in agents:
        assert "terraform_data.pubsub_agent" in waits[address], address
    assert "google_project_service.this" in waits["terraform_data.pubsub_agent"]
    builds = {kind for kind in waits["terraform_data.roles_work"] if ".build_" in kind}
    assert builds == {
        one["address"] for one in written if one["type"].endswith("_iam_member") and ".build_" in one["address"]
    }
    assert waits["google_cloudfunctions2_function.this"] >= {"terraform_data.roles_work", "google_logging_metric.this"}
    assert "google_logging_metric.this" in waits["terraform_data.metrics_appear"]
    assert "terraform_data.metrics_appear" in waits["google_monitoring_alert_policy.this"]
    assert waits["google_pubsub_subscription.push"] >= {"google_service_account_iam_member.pubsub_makes_tokens"}
    assert "google_logging_metric.this" in waits["google_monitoring_alert_policy.this"]


def test_each_option_grants_exactly_what_it_needs() -> None:
    more = plan(MORE)
    accounts = [
        f"vertex-launch-{name}@my-project.iam.gserviceaccount.com" for name in ("dispatch", "now", "job-state", "build")
    ]
    assert bindings(more) - RIGHTS == {
        ("cloud_run_v2_service vertex-launch-dispatch-now", "roles/run.invoker", "user:ada@example.com"),
        *(("project my-project", role("job_logs"), account(who)) for who in ("dispatch", "now")),
        ("project my-project", "roles/cloudfunctions.developer", account("deploy")),
        *((CHECKOUT, "roles/storage.objectViewer", account(who)) for who in ("deploy", "test")),
        *(("project my-project", "roles/logging.logWriter", account(who)) for who in ("deploy", "test")),
        *(
            (f"service_account projects/my-project/serviceAccounts/{email}", role("act_as"), account("deploy"))
            for email in accounts
        ),
    }
    assert bindings(more) >= RIGHTS
    assert permissions(more)[role("job_logs")] == {"logging.logEntries.list"}


def test_jobs_may_read_exactly_the_secrets_in_the_settings(tmp_path: Path) -> None:
    """As the product reads the settings: the key only if they deliver it as a secret, and each token."""
    planned = plan({"vertex_launch_config": str(ROOT / "infra/tests/secrets.yaml")})
    settings = settings_of(planned, 'google_cloudfunctions2_function.this["dispatch"]', tmp_path)
    assert settings.api_key_delivery == "secret"
    versions = {settings.key_secret, *settings.git_token_secrets.values()}
    granted = resources(planned, "google_secret_manager_secret_iam_member").values()
    read = {f"projects/{g['project']}/secrets/{g['secret_id']}" for g in granted if g["member"] == account("jobs")}
    assert read == {version.partition("/versions/")[0] for version in versions}
    more = {
        (f"secret_manager_secret {name}", "roles/secretmanager.secretAccessor", account("jobs"))
        for name in ("vertex-launch-wandb-api-key", "github-token", "gitlab-token")
    }
    assert bindings(planned) == RIGHTS | more


def test_roles_are_granted_to_single_members_and_no_key_is_stored() -> None:
    """Bindings and policies would remove the roles of others. The value of a secret would be in Terraform's state."""
    kinds = {resource["type"] for resource in plan()["resource_changes"]}
    assert {kind for kind in kinds if "_iam_" in kind and not kind.endswith("_iam_member")} == {
        "google_project_iam_custom_role"
    }
    assert not kinds & {"google_secret_manager_secret_version", "google_service_account_key"}


def test_the_functions_get_the_code_and_nothing_else() -> None:
    [archive] = resources(plan(), "archive_file", read=True).values()
    files = {source["filename"]: source["content"] for source in archive["source"]}
    product = {path.relative_to(ROOT).as_posix() for path in (ROOT / "vertex_launch").rglob("*.py")}
    assert files.keys() == {"main.py", "requirements.txt", "launch-config.yaml", "vertex-launch.yaml"} | product
    assert files.pop("launch-config.yaml") == Path(PROJECT["launch_config"]).read_text()
    assert files.pop("vertex-launch.yaml") == terraform_plan.SETTINGS
    assert files == {name: (ROOT / name).read_text() for name in files}


@pytest.mark.parametrize("function", ["dispatch", "dispatch-now", "job-state"])
def test_the_functions_understand_their_environment(function: str, tmp_path: Path) -> None:
    planned = plan(
        {
            "job_regions": ["us-east4", "us-central1"],
            "staging_buckets": {"us-central1": "ours"},
            "wandb_base_url": "https://w.example",
        }
    )
    settings = settings_of(planned, f'google_cloudfunctions2_function.this["{function}"]', tmp_path)
    assert (settings.deployment, settings.project, settings.base_url) == (
        "vertex-launch",
        "my-project",
        "https://w.example",
    )
    assert [(region.name, region.staging_bucket) for region in settings.regions] == [
        ("us-east4", "gs://my-project-vertex-launch-staging-us-east4"),
        ("us-central1", "gs://ours"),
    ]
    assert settings.state_bucket == "gs://my-project-vertex-launch-state"
    assert settings.tick_topic == "projects/my-project/topics/vertex-launch-ticks"
    assert settings.key_secret == "projects/my-project/secrets/vertex-launch-wandb-api-key/versions/latest"
    assert settings.warnings == ()


def test_one_queue() -> None:
    planned = plan_of_example("one-queue")
    functions = resources(planned, "google_cloudfunctions2_function")
    assert {function["name"] for function in functions.values()} == {
        f"vertex-launch-{name}" for name in ("dispatch", "dispatch-now", "job-state")
    }


def test_two_deployments_in_one_project() -> None:
    """No resource of one has the name of a resource of the other."""
    planned = plan_of_example("many")
    named = {
        "google_cloudfunctions2_function": "name",
        "google_pubsub_topic": "name",
        "google_pubsub_subscription": "name",
        "google_cloud_scheduler_job": "name",
        "google_logging_project_sink": "name",
        "google_logging_metric": "name",
        "google_storage_bucket": "name",
        "google_service_account": "account_id",
        "google_project_iam_custom_role": "role_id",
        "google_artifact_registry_repository": "repository_id",
    }
    for kind, field in named.items():
        made = Counter(values[field] for values in resources(planned, kind).values())
        assert made, kind
        assert set(made.values()) == {1}, made
    keys = resources(planned, "google_secret_manager_secret_iam_member")
    grants = Counter((address.split(".")[1], values["secret_id"]) for address, values in keys.items())
    assert grants == {("research", "wandb-launch-key"): 2, ("trial", "wandb-launch-key"): 2}
    assert not resources(planned, "google_secret_manager_secret")


@pytest.mark.parametrize(
    ("name", "module", "queues"),
    [
        ("one-queue", "vertex_launch", ("vertex",)),
        ("many", "research", ("vertex-cpu", "vertex-t4", "vertex-a100")),
        ("many", "trial", ("vertex-trial",)),
    ],
)
def test_the_configuration_of_an_example_can_be_used(
    name: str, module: str, queues: tuple[str, ...], tmp_path: Path
) -> None:
    function = f'module.{module}.google_cloudfunctions2_function.this["dispatch"]'
    settings = settings_of(plan_of_example(name), function, tmp_path)
    assert settings.queues == queues
    assert settings.warnings == ()


@pytest.mark.parametrize("name", ["one-queue", "many"])
def test_only_named_members_may_call_an_example(name: str) -> None:
    members = {who for _, _, who in bindings(plan_of_example(name))}
    assert not members & {"allUsers", "allAuthenticatedUsers"}
    assert {who for who in members if not who.startswith("serviceAccount:")} - {"SINK"} == {
        "one-queue": {"user:ada@example.com"},
        "many": {"group:research@example.com"},
    }[name]


@pytest.mark.parametrize(
    ("kind", "folder"), [("google_logging_metric", "metrics"), ("google_monitoring_alert_policy", "alerts")]
)
def test_terraform_has_a_name_for_each_field_of_metrics_and_alerts(kind: str, folder: str) -> None:
    written = {
        f'{kind}.this["{file.stem}"]': as_terraform(
            yaml.safe_load(file.read_text().replace("${name}", "vertex-launch"))
        )
        for file in (ROOT / "infra/monitoring" / folder).glob("*.yaml")
    }
    assert {address: stated(values) for address, values in resources(plan(), kind).items()} == written


def test_the_dashboard_is_the_file() -> None:
    [dashboard] = resources(plan(), "google_monitoring_dashboard").values()
    file = (ROOT / "infra/monitoring/dashboard.json").read_text().replace("${name}", "vertex-launch")
    assert json.loads(dashboard["dashboard_json"]) == json.loads(file)


def test_alerts_go_to_the_named_channels() -> None:
    alerts = resources(plan(MORE), "google_monitoring_alert_policy")
    assert all(alert["notification_channels"] == MORE["notification_channels"] for alert in alerts.values())


def settings_of(planned: dict[str, Any], function: str, folder: Path) -> config.Settings:
    """Return the settings that the function of a plan reads from its files and its environment."""
    module = function.rpartition("google_cloudfunctions2_function")[0]
    archive = resources(planned, "archive_file", read=True)[f"{module}data.archive_file.source[0]"]
    for source in archive["source"]:
        if source["filename"].endswith(".yaml"):
            (folder / source["filename"]).write_text(source["content"])
    deployed = resources(planned, "google_cloudfunctions2_function")[function]
    return config.load(deployed["service_config"][0]["environment_variables"], folder)


def as_terraform(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message of Google's API in the form of Terraform's plan: snake case, and a list of one block for a message."""

    def value(field: str, held: Any) -> Any:
        if isinstance(held, list):
            return [as_terraform(entry) if isinstance(entry, dict) else entry for entry in held]
        if isinstance(held, dict) and field not in MAPS | {"labels"}:
            return [as_terraform(held)]
        return held

    return {
        re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", field): value(field, held)
        for field, held in message.items()
    }


def stated(values: Any) -> Any:
    """Drop what only the plan has: the project, the channels, and what is not set."""
    if isinstance(values, list):
        return [stated(value) for value in values]
    if not isinstance(values, dict):
        return values
    empty: tuple[Any, ...] = (None, [], {})
    return {
        field: stated(value)
        for field, value in values.items()
        if value not in empty and field not in {"project", "notification_channels"}
    }
