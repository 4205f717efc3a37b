"""Jobs that W&B's own client made mean to us what they mean to its LaunchProject, but for differences that are meant.

The client makes them at the local W&B: its command line, its Python function, and runs that log their code. The official
code then reads each as its agent does, and says what it would run, in which image and with which environment; ours is the
container that the CustomJob describes, expanded as Kubernetes does it. Each difference is a function that asserts both
sides and only then takes ours over.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from local.machine import container_spec
from tests.local_cloud.test_local_artifacts import TRAIN, local_ssh
from tests.local_cloud.test_local_wandb import Client
from tests.support.bootstrap_world import repository
from tests.support.memory import KEY, Secret
from tests.support.wandb_jobs import IN_A_NOTEBOOK, MAKE, NOTEBOOK, Made, passed, server, spec
from vertex_launch.adapters.job_artifacts import JobArtifacts
from vertex_launch.codes import Code
from vertex_launch.job import boot

# ---- the jobs


PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"


def make(client: Client) -> None:
    """Let the client make jobs of every kind."""
    home, where = client.home, {"WANDB_ENTITY": "acme", "WANDB_PROJECT": "demo", "WANDB_API_KEY": KEY}
    code = home / "code"
    (code / "sub").mkdir(parents=True)
    (code / "train.py").write_text("print(1)\n")
    (code / "sub" / "other.py").write_text("print(2)\n")
    (code / "Dockerfile").write_text("FROM scratch\n")
    (code / "requirements.txt").write_text("wandb\n")
    _, (commit,) = repository(home / "repository", {"train.py": "print('from git')\n"})
    commands = [
        "job create image registry.local/train:7 -p demo -n image -a prod",
        "job create image registry.local/train:8 -p demo -n image",
        "job create code code -p demo -n code -E 'python train.py --lr 1' -r 3.13 -a dev",
        "job create code code -p demo -n code -E 'bash -c $(HOME)' -r 3.10",
        "job create code code -p demo -n based -E 'python train.py' -B registry.local/python:1",
        "job create code code -p demo -n built -E 'python train.py' --dockerfile Dockerfile",
        f"job create git ssh://git@localhost{home}/repository -p demo -n git -E 'python train.py' -g {commit} -r 3.12",
    ]
    calls = [
        {"path": "code", "job_type": "code", "entrypoint": "python sub/other.py", "name": "function", "runtime": "3.9"},
        {"path": "registry.local/train@sha256:0f", "job_type": "image", "name": "digest"},
    ]
    typed = json.dumps([shlex.split(command) for command in commands])
    (home / "train.py").write_text(TRAIN)
    (home / "notes.ipynb").write_text(json.dumps(NOTEBOOK))
    clone = replace(client, home=home / "clone")
    subprocess.run(["git", "clone", "-q", home / "repository", clone.home], check=True)
    subprocess.run(
        ["git", "remote", "set-url", "origin", f"ssh://git@localhost{home}/repository"], cwd=clone.home, check=True
    )
    (clone.home / "train.py").write_text(TRAIN)
    runs: list[tuple[Client, tuple[str, ...], dict[str, str]]] = [
        (client, ("-c", MAKE, typed, json.dumps(calls)), local_ssh(home)),
        (client, ("train.py", "code"), {"WANDB_JOB_NAME": "run-code"}),
        (client, ("train.py",), {"WANDB_JOB_NAME": "run-image", "WANDB_DOCKER": "registry.local/run:1"}),
        (client, ("-c", IN_A_NOTEBOOK), {"WANDB_JOB_NAME": "notebook", "WANDB_NOTEBOOK_NAME": "notes.ipynb"}),
        (clone, ("train.py",), {"WANDB_JOB_NAME": "run-git"}),
    ]
    with ThreadPoolExecutor(3) as threads:
        ended = list(threads.map(lambda one: one[0].run(*one[1], **where, **one[2]), runs))
    for done in ended:
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    with server() as w_and_b:
        client = Client(w_and_b, tmp_path_factory.mktemp("home"))
        make(client)
        yield Made(w_and_b, client, JobArtifacts(w_and_b.url, Secret(), timeout=20))


# ---- what each side makes of them


OFFICIAL = """
import json, sys
from wandb.sdk.launch._project_spec import LaunchProject
from wandb.sdk.launch.agent.agent import _DEFAULT_BASE_IMAGE
from wandb.sdk.launch.api import LaunchApi
from wandb.sdk.launch.utils import MAX_ENV_LENGTHS

def read(spec):
    project = LaunchProject.from_spec(spec, api)
    project.queue_name, project.queue_entity, project.run_queue_item_id = "cpu", "acme", "Item1"
    project.fetch_and_validate_project()
    entry_point = project.override_entrypoint or project.get_job_entry_point()
    image = project.docker_image or project.job_base_image
    return {
        "image": image or project._resource_args_build.get("base_image") or _DEFAULT_BASE_IMAGE,
        "named": image is not None,
        "entry_point": entry_point.command if entry_point else [],
        "args": project.override_args,
        "environment": project.get_env_vars_dict(api, MAX_ENV_LENGTHS["VertexRunner"]),
        "source": project.job_source_info,
        "dockerfile": project.job_dockerfile or project.override_dockerfile,
    }

def said(spec):
    try:
        return read(spec)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}

api = LaunchApi()
with open(sys.argv[1]) as file:
    specs = json.load(file)
print(json.dumps({name: said(spec) for name, spec in specs.items()}))
"""

OVERRIDES = {
    "entry_point": ["python", "sub/other.py"],
    "args": ["--name", "grüße $(HOME) $$", "a b", "漢" * 50, "x" * 100_000],
    "run_config": {"lr": 0.1, "text": "y" * 70_000, "money": "$$ $(HOME)"},
    "files": {"configs/a.yaml": {"depth": 3}, "../b.yaml": {}},
    "artifacts": {"data": {"name": "mnist:v3"}},
    "working_dir": "sub",
}


def with_builder(job: str, **builder: Any) -> dict[str, Any]:
    given = spec(job)
    given["resource_args"]["gcp-vertex"]["builder"] = builder
    return given


SPECS: dict[str, dict[str, Any]] = {
    "image": spec("image:latest"),
    "image, an earlier version by an alias": spec("image:prod", {"args": ["--epochs", "3"]}),
    "image, an earlier version by its tag": spec("image:7", OVERRIDES),
    "image by its digest": spec("digest:v0", {"args": ["$(HOME)"], "entry_point": ["./run"]}),
    "image that a run was in": spec("run-image:latest", author="bob", name="a name"),
    "code": spec("code:latest"),
    "code, an earlier version by an alias": spec("code:dev", {"args": ["--epochs", "3"]}),
    "code, an earlier version": spec("code:v0", OVERRIDES, _resume_count=1, sweep_id="sw1"),
    "code in an image of its own": spec("based:v0", OVERRIDES),
    "code made by the function": spec("function:latest"),
    "code that a run logged": spec("run-code:latest", project="Another"),
    "code, with a base image of the queue's": with_builder("code:v0", base_image="registry.local/queue:1"),
    "code, with an accelerator's base image": with_builder(
        "code:v0", accelerator={"base_image": "registry.local/gpu:1"}
    ),
    "git": spec("git:v0", {"args": ["1"]}),
    "git, of a run": spec("run-git:v0", OVERRIDES, _wandb_api_key="f" * 40),
    "notebook": spec("notebook:v0", {"args": ["1"]}),
    "notebook, with another entry point": spec("notebook:v0", {"entry_point": ["python", "more.py"]}),
}
BROUGHT: dict[str, dict[str, Any]] = {
    "a Dockerfile": spec("built:v0"),
    "a Dockerfile of the item's": spec("code:v0", {"dockerfile": "Dockerfile"}),
    "no entity": spec("code:v0") | {"job": "demo/code:v0"},
    "no version": spec("code:v0") | {"job": "acme/demo/code"},
}


@pytest.fixture(scope="module")
def official(made: Made) -> dict[str, dict[str, Any]]:
    """What the official code makes of all these run specs."""
    file = made.client.home / "specs.json"
    file.write_text(json.dumps(SPECS | BROUGHT))
    done = made.client.run("-c", OFFICIAL, str(file), WANDB_API_KEY=KEY, **local_ssh(made.client.home))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@dataclass
class Case:
    """A run spec; what the official agent would run; and our container, as Kubernetes starts it.

    ``program`` is what the container runs in the end, ``plan`` what the bootstrap does before, empty without it.
    """

    made: Made
    spec: dict[str, Any]
    theirs: dict[str, Any]
    image: str
    program: list[str]
    environment: dict[str, str]
    plan: dict[str, Any]

    @property
    def description(self) -> dict[str, Any]:
        return self.made.description(self.spec["job"].removeprefix("acme/demo/"))


def case(made: Made, theirs: dict[str, Any], given: dict[str, Any]) -> Case:
    assert "error" not in theirs, theirs
    pool = passed(made.jobs, made.server, given).job().job_spec.worker_pool_specs[0]
    image, command, args, declared = container_spec.task(type(pool).pb(pool))
    environment = container_spec.environment(declared, {"HOME": "/root"})
    program = container_spec.command_line(["entrypoint"], ["cmd"], command, args, environment)
    del environment["HOME"]
    plan = json.loads(environment.pop("VERTEX_LAUNCH_PLAN", "{}"))
    if plan:
        assert program[:3] == ["python3", "-c", boot.packed()]
        program = program[3:]
    return Case(made, given, theirs, image, program, environment, plan)


# ---- differences


def no_builder(one: Case) -> None:
    """Without a builder and a base image the official agent takes one Python for all; ours is the one the job was made with,
    and a base image for an accelerator is none for the official agent unless it builds."""
    if one.theirs["named"] or one.image == one.theirs["image"]:
        return
    builder = one.spec["resource_args"]["gcp-vertex"].get("builder", {})
    assert one.theirs["image"] == "python:3.12-slim"
    version = re.search(r"3\.\d+", one.description["runtime"])
    assert version
    assert one.image == builder.get("accelerator", {}).get("base_image", f"python:{version[0]}-slim")
    one.theirs["image"] = one.image


def entry_point_of_a_run(one: Case) -> None:
    """The job that a run makes of itself is to be started with the likes of `pythonCPython 3.11`, which is in no image."""
    if one.theirs["entry_point"][:1] == [f"pythonCPython {PYTHON}"]:
        assert one.program[0] == f"python{PYTHON}"
        one.theirs["entry_point"][0] = f"python{PYTHON}"


def notebooks(one: Case) -> None:
    """A notebook is converted where its code is, which for us is the container."""
    if one.description["source"].get("notebook") and "entry_point" not in one.spec["overrides"]:
        assert one.theirs["entry_point"][-1] == "notes.py"
        assert one.plan["notebook"]
        one.theirs["entry_point"][-1] = "notes.ipynb"


def arguments_of_an_image(one: Case) -> None:
    """Where nothing but the image knows what to run, the official runner replaces that by the arguments."""
    if one.theirs["entry_point"] == [] and one.theirs["args"]:
        assert one.program[0] == "entrypoint"
        one.theirs["entry_point"] = ["entrypoint"]
    elif one.theirs["entry_point"] == []:
        assert one.program == ["entrypoint", "cmd"]
        one.theirs["entry_point"] = ["entrypoint", "cmd"]


def restarts(one: Case) -> None:
    """Vertex AI may start a container again, and that run has to go on."""
    assert one.environment["WANDB_RESUME"] == "allow"
    one.theirs["environment"]["WANDB_RESUME"] = "allow"


DIFFERENCES: list[Callable[[Case], None]] = [
    no_builder,
    entry_point_of_a_run,
    notebooks,
    arguments_of_an_image,
    restarts,
]


@pytest.mark.parametrize("name", SPECS)
def test_a_job_means_what_the_official_code_makes_of_it(
    made: Made, official: dict[str, dict[str, Any]], name: str
) -> None:
    one = case(made, official[name], SPECS[name])
    for difference in DIFFERENCES:
        difference(one)
    assert one.image == one.theirs["image"]
    assert one.program == one.theirs["entry_point"] + one.theirs["args"]
    assert one.environment == one.theirs["environment"]
    assert json.loads(one.environment["WANDB_ARTIFACTS"])["_wandb_job"] == one.spec["job"]

    source = one.theirs["source"]
    if not source:
        assert one.plan == {}, "an image brings its own code"
        return
    # The version, for an alias may have moved when the container starts; what the run tells W&B keeps the official name.
    assert made.named_in_full(one.plan["job"]) is made.named_in_full(source["job_artifact"])
    assert re.search(r":v\d+$", one.plan["job"])
    assert one.plan["working_dir"] == one.spec["overrides"].get("working_dir")
    assert one.plan["notebook"] is bool(one.description["source"]["notebook"])
    if "artifact_string" in source:
        id_ = one.plan["artifact"].removeprefix("wandb-artifact://_id/")
        assert one.made.artifact(id_).path == source["artifact_string"]
    else:
        over_https = re.sub(r"^ssh://(git@)?", "https://", source["git_remote"])  # for a job has no SSH key
        assert (one.plan["remote"], one.plan["commit"]) == (over_https, source["git_commit"])


def test_what_the_official_code_needs_and_we_bring(made: Made, official: dict[str, dict[str, Any]]) -> None:
    """It wants a job's full name, where a relative one is for us in the run's own project, and its latest version."""
    for name, job in (("no entity", "acme/demo/code:v0"), ("no version", "acme/demo/code:v1")):
        assert "A job must be of the form: <entity>/<project>/<job-name>:<alias-or-version>" in official[name]["error"]
        found = passed(made.jobs, made.server, BROUGHT[name]).job()
        variables = {one.name: one.value for one in found.job_spec.worker_pool_specs[0].container_spec.env}
        assert json.loads(variables["VERTEX_LAUNCH_PLAN"])["job"] == job


@pytest.mark.parametrize("name", ["a Dockerfile", "a Dockerfile of the item's"])
def test_what_the_official_code_builds_and_we_do_not(
    made: Made, official: dict[str, dict[str, Any]], name: str
) -> None:
    assert official[name]["dockerfile"] == "Dockerfile"
    assert Code.ARTIFACT_DOCKERFILE in passed(made.jobs, made.server, BROUGHT[name]).message()
