"""cloudbuild.yaml: whether gcloud accepts it, and the deployment as the build runs it."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import gcloud_server
from tests.support.deploy_runs import NAME, REGION, Run, checkout, needs_gcloud, run
from tests.support.google_apis import PROJECT, GoogleApis
from tests.support.processes import ROOT

pytestmark = pytest.mark.deployment

CONFIG: dict[str, Any] = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
TESTS: dict[str, Any] = yaml.safe_load((ROOT / "infra/cloudbuild-tests.yaml").read_text())
(DEPLOY,) = CONFIG["steps"]
(TEST,) = TESTS["steps"]
FUNCTIONS = f"cloudfunctions/projects/{PROJECT}/locations/{REGION}/functions"


@pytest.fixture
def apis() -> Iterator[GoogleApis]:
    """A project in which everything but the functions was deployed."""
    apis = GoogleApis()
    apis.enabled |= {f"{name}.googleapis.com" for name in ("artifactregistry", "cloudbuild", "cloudfunctions", "run")}
    apis.enabled.add("cloudresourcemanager.googleapis.com")
    for name in ("build", "dispatch", "job-state", "now"):
        email = f"{NAME}-{name}@{PROJECT}.iam.gserviceaccount.com"
        apis.resources[f"iam/projects/{PROJECT}/serviceAccounts/{email}"] = {"email": email}
    repository = f"projects/{PROJECT}/locations/{REGION}/repositories/{NAME}-functions"
    apis.resources[f"artifactregistry/{repository}"] = {"name": repository}
    build = {"members": [f"serviceAccount:{NAME}-build@{PROJECT}.iam.gserviceaccount.com"]}
    project = [build | {"role": role} for role in ("roles/logging.logWriter", "roles/storage.objectViewer")]
    apis.bindings[f"cloudresourcemanager/projects/{PROJECT}"] = project
    apis.bindings[f"artifactregistry/{repository}"] = [build | {"role": "roles/artifactregistry.writer"}]
    apis.start()
    yield apis
    apis.stop()


def arguments(**changes: str) -> list[str]:
    """Return the arguments of the deploying step, with the substitutions' defaults and these changes."""
    values = {**CONFIG["substitutions"], "PROJECT_ID": PROJECT, **changes}
    return [re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], word) for word in DEPLOY["args"]]


def test_what_the_tests_run_cannot_deploy() -> None:
    """They are a build of their own, with an account of its own; the other build runs nothing but our script."""
    assert (TEST["entrypoint"], TEST["args"]) == ("make", ["test"])
    assert (DEPLOY["entrypoint"], DEPLOY["args"][:2]) == ("bash", ["infra/deploy.sh", "--functions-only"])
    for config, name in ((TESTS, "test"), (CONFIG, "deploy")):
        assert config["options"] == {"logging": "CLOUD_LOGGING_ONLY"}
        assert config["serviceAccount"].startswith(f"projects/${{PROJECT_ID}}/serviceAccounts/${{_NAME}}-{name}@")
        assert int(config["timeout"].removesuffix("s")) >= 1800
        (step,) = config["steps"]
        assert config["substitutions"][step["name"].strip("${}")], "an image that can be pinned by its digest"


@needs_gcloud
def test_gcloud_accepts_the_tests(apis: GoogleApis, tmp_path: Path) -> None:
    command = ["gcloud", "builds", "submit", "--config=infra/cloudbuild-tests.yaml", "--no-source", "--async"]
    command += [f"--project={PROJECT}", f"--substitutions=_PYTHON_IMAGE=python@sha256:{'0' * 64}"]
    environment = {"PATH": gcloud_server.path(), "HOME": str(tmp_path), **apis.variables(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=60)
    (call,) = [call for call in apis.calls if call.changes]
    assert call.body["serviceAccount"] == TESTS["serviceAccount"]


@needs_gcloud
def test_gcloud_accepts_it(apis: GoogleApis, tmp_path: Path) -> None:
    command = ["gcloud", "builds", "submit", "--config=cloudbuild.yaml", "--no-source", "--async"]
    command += [f"--project={PROJECT}", "--region=europe-west4"]
    command += ["--substitutions=^;^_REGION=us-east4;_JOB_REGIONS=us-east4,us-central1"]
    environment = {"PATH": gcloud_server.path(), "HOME": str(tmp_path), **apis.variables(tmp_path)}
    subprocess.run(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, check=True, timeout=60)
    (call,) = [call for call in apis.calls if call.changes]
    assert call.path == f"cloudbuild/projects/{PROJECT}/locations/europe-west4/builds"
    assert call.body["steps"] == CONFIG["steps"]
    assert (call.body["serviceAccount"], call.body["timeout"]) == (CONFIG["serviceAccount"], CONFIG["timeout"])
    assert call.body["substitutions"]["_JOB_REGIONS"] == "us-east4,us-central1"


@needs_gcloud
def test_it_deploys_the_functions_and_changes_no_role(apis: GoogleApis, tmp_path: Path) -> None:
    """The first time, without changes, and with new code: it does not even read who may call a function."""
    place = checkout(tmp_path / "checkout")
    functions = {f"{FUNCTIONS}/{NAME}-{name}" for name in ("dispatch", "dispatch-now", "job-state")}

    def build(*more: str, **changes: str) -> Run:
        script, *options = arguments(**changes)
        done = run([str(place / script), *options, *more], place, apis, tmp_path / "gcloud")
        assert done.status == 0, done.output
        assert not [call for call in done.after.calls if "IamPolicy" in call.path]
        assert apis.unknown == []
        return done

    trainer = f"trainer@{PROJECT}.iam.gserviceaccount.com"
    first = build(f"--job-account={trainer}")  # as infra/deploy.sh or Terraform does before
    assert {name for name in first.after.resources if name.startswith(f"{FUNCTIONS}/")} == functions
    assert f"POST {FUNCTIONS}" in first.changes()
    assert build().changes() == []
    with (place / "main.py").open("a") as main:
        main.write("# new\n")
    changed = build(_JOB_REGIONS="us-central1,us-east4", _WANDB_BASE_URL="https://wandb.example.com", _MEMORY="2Gi")
    assert {change for change in changed.changes() if change.startswith("PATCH")} == {
        f"PATCH {name}" for name in functions
    }
    for name in functions:
        variables = changed.after.resources[name]["serviceConfig"]["environmentVariables"]
        assert variables["GOOGLE_CLOUD_REGION"] == "us-central1,us-east4"
        assert variables["JOBS_ACCOUNT"] == trainer
        assert variables["WANDB_BASE_URL"] == "https://wandb.example.com"
        memory = changed.after.resources[name]["serviceConfig"]["availableMemory"]
        assert memory == ("512Mi" if name.endswith("job-state") else "2Gi")
        assert "deploy_sh" not in changed.after.resources[name]["labels"], (
            "so that destroy.sh leaves what it did not create"
        )
