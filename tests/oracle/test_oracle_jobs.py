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
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest

from local.machine import container_spec
from local.standins.wandb import WandbServer
from local.standins.wandb.artifacts import Artifact
from tests.local_cloud.test_local_artifacts import TRAIN, local_ssh, repository
from tests.local_cloud.test_local_wandb import KEYS, TEAMS, Client
from tests.support.fakes import KEY, FakeKey, World, image_spec
from vertex_launch.adapters import job_artifacts
from vertex_launch.adapters.job_artifacts import DESCRIPTION, JobArtifacts
from vertex_launch.codes import Code
from vertex_launch.dispatch.run import run_pass
from vertex_launch.errors import ItemRejected, Unavailable
from vertex_launch.job import boot
from vertex_launch.model import PassReport, PassRequest

# ---- the jobs


PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
MAKE = """
import json, sys
from wandb.cli.cli import cli
from wandb.sdk.launch.create_job import create_job

commands, calls = map(json.loads, sys.argv[1:])
for command in commands:
    cli(command, standalone_mode=False)
for call in calls:
    assert create_job(entity="acme", project="demo", **call), call
"""

# wandb asks IPython where it runs. This kernel is none; that it is one is all that the client needs to know.
IN_A_NOTEBOOK = """
import sys
from unittest.mock import MagicMock
kernel = MagicMock()
kernel.get_ipython.return_value.__module__ = "ipykernel.zmqshell"
kernel.get_ipython.return_value.config = {"IPKernelApp": {"connection_file": "/jupyter/kernel.json"}}
parts = ("", ".core", ".core.magic", ".core.magic_arguments", ".core.getipython", ".display")
sys.modules |= {f"IPython{part}": MagicMock() if part else kernel for part in parts}
import wandb
run = wandb.init(settings=wandb.Settings(disable_job_creation=False))
run.log_code(".", include_fn=lambda path: path.endswith((".ipynb", ".txt")))
run.finish()
"""
NOTEBOOK: dict[str, Any] = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [{"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": "1"}],
}


@dataclass
class Made:
    """A W&B with jobs in it, and the client that made them."""

    server: WandbServer
    client: Client
    jobs: JobArtifacts

    def artifact(self, id_: str) -> Artifact:
        return self.server.store.artifacts.by_id(id_)

    def named(self, name: str) -> Artifact:
        found = self.server.store.artifacts.find("acme", "demo", name)
        assert found is not None, [one.path for one in self.server.store.artifacts]
        return found

    def named_in_full(self, name: str) -> Artifact:
        return self.named(name.removeprefix("acme/demo/"))

    def description(self, name: str) -> dict[str, Any]:
        text = self.server.store.artifacts.content(self.named(name), DESCRIPTION)
        return dict(json.loads(text))


def make(client: Client) -> None:
    """Let the client make jobs of every kind."""
    home, where = client.home, {"WANDB_ENTITY": "acme", "WANDB_PROJECT": "demo", "WANDB_API_KEY": KEY}
    code = home / "code"
    (code / "sub").mkdir(parents=True)
    (code / "train.py").write_text("print(1)\n")
    (code / "sub" / "other.py").write_text("print(2)\n")
    (code / "Dockerfile").write_text("FROM scratch\n")
    (code / "requirements.txt").write_text("wandb\n")
    commit = repository(home / "repository")
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
    server = WandbServer(api_keys={**KEYS, KEY: "alice"}, teams=TEAMS, default_entities={"alice": "acme"}).start()
    client = Client(server, tmp_path_factory.mktemp("home"))
    make(client)
    yield Made(server, client, JobArtifacts(server.url, FakeKey(), timeout=20))
    server.stop()


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


def spec(job: str, overrides: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Give the run spec of a job; its run has an id, for the official one is random."""
    name = job if "/" in job else f"acme/demo/{job}"
    return image_spec(docker={}, job=name, overrides=dict(overrides or {}), **{"run_id": "run1", **changes})


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
class Passed:
    """A pass over a queue in memory, with Vertex AI in memory and the jobs of a real W&B."""

    world: World
    items: list[str]
    report: PassReport

    def message(self, item: int = 0) -> str:
        """What the item was failed with."""
        assert self.items[item] in [one["item"] for one in self.report.rejected], self.report.body()
        return self.world.queue.contents[self.items[item]].message

    def job(self, item: int = 0) -> Any:
        """The item's CustomJob."""
        assert self.report.rejected == [], self.report.body()
        return self.world.vertex.of(self.items[item])[0]


def passed(jobs: JobArtifacts, server: WandbServer, *specs: Mapping[str, Any], **settings: Any) -> Passed:
    world = World(base_url=server.url, **settings)
    world.queue.sweep_states["sw1"] = "RUNNING"
    items = [world.queue.push("cpu", dict(one)) for one in specs]
    report = run_pass(world.settings, replace(world.services(), jobs=jobs), PassRequest())
    assert isinstance(report, PassReport)
    return Passed(world, items, report)


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
        assert program[:3] == ["python3", "-c", boot.text()]
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


# ---- what cannot be run


def good(made: Made) -> dict[str, Any]:
    return spec("image:v0", run_id="good")


def store(
    made: Made, name: str, content: Any, *, entity: str = "acme", project: str = "demo", kind: str = "job"
) -> Artifact:
    """Make an artifact that no client of today makes; bytes are the text of its description."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return made.server.store.create_artifact(entity, project, kind, name, {DESCRIPTION: text})


def refused(made: Made, job: str, **changes: Any) -> str:
    """Give the sentence with which an item of that job fails, in a pass that goes on: the item behind it starts."""
    done = passed(made.jobs, made.server, spec("x", **changes) | {"job": job}, good(made))
    assert [one["item"] for one in done.report.submitted] == done.items[1:], done.report.body()
    message = done.message()
    assert job in message
    return message


def test_a_description_with_a_flaw_fails_its_item(made: Made) -> None:
    store(made, "flaw", {"source_type": "image", "source": {"image": "\ud800"}})
    assert Code.ARTIFACT_INVALID in refused(made, "acme/demo/flaw:v0")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("empty", b""),
        ("half", b'{"source_type": "ima'),
        ("bytes", b"\xff\xfe\0"),
        ("list", b"[]"),
        ("null", b"null"),
        ("deep", b"[" * 100_000),
        ("large", b'{"a": "' + b"x" * 2**21 + b'"}'),
    ],
)
def test_a_description_that_is_not_an_object_fails_its_item(made: Made, name: str, text: bytes) -> None:
    store(made, f"none-{name}", text)
    assert f"[{Code.ARTIFACT_INVALID}]" in refused(made, f"acme/demo/none-{name}:latest")


def test_what_is_not_there_fails_its_item(made: Made) -> None:
    artifacts = made.server.store.artifacts
    for name in ("gone", "version-gone"):
        store(made, name, {"source_type": "image", "source": {"image": "i"}})
    artifacts.delete(made.named("gone:v0"), with_aliases=True)
    store(made, "version-gone", {"source_type": "image", "source": {"image": "i:2"}})
    artifacts.delete(made.named("version-gone:v0"))
    made.server.store.create_artifact("acme", "demo", "job", "no-description", {"a": b"1"})
    made.server.store.create_artifact("acme", "demo", "dataset", "data", {"a": b"1"})
    store(made, "secret", {"source_type": "image", "source": {"image": "i"}}, entity="other")
    for job, says in (
        ("acme/demo/gone:latest", "not found"),
        ("acme/demo/gone:v0", "was deleted"),
        ("acme/demo/version-gone:v0", "was deleted"),
        ("acme/demo/version-gone:v7", "not found"),
        ("acme/demo/no-description:v0", f"has no {DESCRIPTION}"),
        ("acme/demo/data:v0", "this artifact is of type 'dataset'"),
        ("acme/demo/nothing:latest", "not found"),
        ("acme/demo/image:no-such-alias", "not found"),
        ("acme/nowhere/image:v0", "not found"),
        ("nobody/demo/image:v0", "not found"),
        ("other/demo/secret:v0", "access"),
        ("acme/demo/image :v0", "not found"),
        ("acme/demo/g\u00fc\u00dfe \u6f22:v0", "not found"),
        ("acme/demo/%2e%2e:v0", "not found"),
        ('acme/demo/a"b{}$\\:v0', "not found"),
        (f"acme/demo/{'x' * 5000}:v0", "not found"),
    ):
        assert says in refused(made, job)


@pytest.mark.parametrize(
    "job",
    [
        "acme/demo/image:v0:v1",
        "a/acme/demo/image:v0",
        "acme//image:v0",
        "/demo/image:v0",
        "acme/demo/:v0",
        "acme/demo/image:",
        "wandb-artifact://_id/QXJ0",
        "https://wandb.ai/acme/demo/artifacts/job/image/v0",
        "acme/demo/image\n:v0",
        "/",
        ":",
    ],
)
def test_what_is_no_name_fails_its_item_and_w_and_b_is_not_asked(made: Made, job: str) -> None:
    before = made.server.store.asked()
    done = passed(made.jobs, made.server, spec("x") | {"job": job})
    message = done.message()
    assert "is not the name of a job. Write entity/project/name:version" in message
    assert made.server.store.asked() == before


def test_a_job_is_looked_up_where_its_run_is(made: Made) -> None:
    for job in ("image:v0", "demo/image:v0", "acme/demo/image:v0"):
        found = passed(made.jobs, made.server, spec("x", project="demo") | {"job": job}).job()
        assert found.job_spec.worker_pool_specs[0].container_spec.image_uri == "registry.local/train:7"


def test_a_renamed_job_is_found_by_its_new_name_alone(made: Made) -> None:
    collections = made.server.store.artifacts.collections
    store(made, "old-name", {"source_type": "image", "source": {"image": "i"}})
    collection = collections.pop(("acme", "demo", "old-name"))
    collection.name = "new-name"
    collections["acme", "demo", "new-name"] = collection
    assert "not found" in refused(made, "acme/demo/old-name:latest")
    assert passed(made.jobs, made.server, spec("new-name:latest")).report.submitted


def test_an_alias_that_moves_is_followed_and_its_versions_are_asked_for_once(made: Made) -> None:
    jobs = JobArtifacts(made.server.url, FakeKey(), timeout=20)
    images = []
    store(made, "moves", {"source_type": "image", "source": {"image": "i:0"}})
    counts = [made.server.store.asked()]
    for step in range(3):
        if step == 1:
            store(made, "moves", {"source_type": "image", "source": {"image": "i:1"}})
        job = passed(jobs, made.server, spec("moves:latest")).job()
        images.append(job.job_spec.worker_pool_specs[0].container_spec.image_uri)
        jobs.forget()
        counts.append(made.server.store.asked())
    assert images == ["i:0", "i:1", "i:1"]
    downloads = [after["downloadArtifactFile"] - before["downloadArtifactFile"] for before, after in pairwise(counts)]
    assert downloads == [1, 1, 0]


# ---- a W&B in trouble


@pytest.fixture
def troubled() -> Iterator[WandbServer]:
    """A W&B with 21 jobs, to which the SDK has spoken already, so that its own start takes no time of a pass."""
    server = WandbServer(api_keys={KEY: "alice"}, teams=TEAMS, default_entities={"alice": "acme"}).start()
    for number in range(21):
        description = {"source_type": "image", "source": {"image": f"i:{number}"}}
        files = {DESCRIPTION: json.dumps(description).encode()}
        server.store.create_artifact("acme", "demo", "job", f"job{number}", files)
    JobArtifacts(server.url, FakeKey(), timeout=20).find("acme/demo/job0:v0")
    yield server
    server.faults.clear()
    server.stop()


TWENTY = [spec(f"job{number}:latest", run_id=f"run{number}") for number in range(1, 21)]


TROUBLES: dict[str, Callable[[WandbServer], object]] = {
    "503": lambda server: server.faults.fail("*", 503, times=None),
    "500": lambda server: server.faults.fail("*", 500, times=None),
    "429": lambda server: server.faults.fail("*", 429, times=None),
    "a refused key": lambda server: server.faults.fail("*", 401, times=None),
    "lost answers": lambda server: server.faults.lose("*", times=None),
    "no answer": lambda server: server.faults.delay("*", 60, times=None),
    "503 for its file": lambda server: server.faults.fail("downloadArtifactFile", 503, times=None),
    "429 for its file": lambda server: server.faults.fail("downloadArtifactFile", 429, times=None),
    "no answer for its file": lambda server: server.faults.delay("downloadArtifactFile", 60, times=None),
    "its file lost on the way": lambda server: server.faults.lose("downloadArtifactFile", times=None),
    "nobody there": lambda server: server.stop(),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("warm", [False, True], ids=["at first", "later"])
def test_a_w_and_b_in_trouble_puts_items_off_and_does_not_eat_the_pass(
    troubled: WandbServer, trouble: str, warm: bool
) -> None:
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=1)
    if warm:
        jobs.find("acme/demo/job0:v0")
    TROUBLES[trouble](troubled)
    begun = time.monotonic()
    done = passed(jobs, troubled, *TWENTY, max_jobs=30)
    took = time.monotonic() - begun
    assert done.report.rejected == []
    assert {one["item"] for one in done.report.deferred} == set(done.items)
    assert Code.ARTIFACT_UNAVAILABLE in done.report.deferred[0]["reason"]
    assert took < 5, "a second for those that are asked for at once, a tenth of it for those behind them"


def test_one_job_that_cannot_be_read_does_not_keep_others_from_starting(troubled: WandbServer) -> None:
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=5)
    troubled.faults.fail("downloadArtifactFile", 503, times=1)
    done = passed(jobs, troubled, *TWENTY, max_jobs=30)
    assert (len(done.report.submitted), len(done.report.deferred)) == (19, 1)


def test_a_pass_after_the_trouble_has_patience_again(troubled: WandbServer) -> None:
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=5)
    troubled.faults.fail("downloadArtifactFile", 503, times=1)
    with pytest.raises(Unavailable, match=r"cannot download wandb-job\.json of job acme/demo/job1:v0: status 503"):
        jobs.find("acme/demo/job1:v0")
    jobs.forget()
    troubled.faults.delay("downloadArtifactFile", 1, times=1)  # longer than a tenth of its timeout
    assert jobs.find("acme/demo/job1:v0").name == "acme/demo/job1:v0"


def test_the_address_of_a_description_is_in_no_message(troubled: WandbServer) -> None:
    """Whoever has it can read the file: it is signed."""
    jobs = JobArtifacts(troubled.url, FakeKey(), timeout=5)
    for trouble in (troubled.faults.lose, troubled.faults.fail):
        trouble("downloadArtifactFile")
        with pytest.raises(Unavailable) as error:
            jobs.find("acme/demo/job1:v0")
        assert "_artifacts/" not in str(error.value)
        assert error.value.__cause__ is None
    troubled.faults.fail("downloadArtifactFile", 404)
    with pytest.raises(ItemRejected) as rejected:
        jobs.find("acme/demo/job1:v0")
    assert rejected.value.message.code is Code.ARTIFACT_NOT_FOUND


@pytest.mark.parametrize(
    "error", [FileNotFoundError(2, "No such file or directory"), PermissionError(13, "Permission denied")]
)
def test_what_is_missing_on_this_machine_is_no_missing_job(error: OSError) -> None:
    assert isinstance(job_artifacts._reason("acme/demo/job1:v0", error), Unavailable)
