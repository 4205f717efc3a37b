"""The local W&B's artifacts, jobs and sweeps, with W&B's own unmodified clients."""

from __future__ import annotations

import hashlib
import itertools
import json
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import requests

from local.standins.wandb import WandbServer
from local.standins.wandb.artifacts import Artifact, Entry
from local.standins.wandb.contents import md5
from local.standins.wandb.errors import Refused
from local.standins.wandb.launch import Item, ItemError
from local.standins.wandb.run_spec import ResourceConfig, resolve
from local.standins.wandb.sweep_search import check, expected, suggestions
from tests.local_cloud.conftest import ALICE, BOB, Serve
from tests.local_cloud.test_local_wandb import Asked, Client, ask
from tests.support import wandb as product
from tests.support.bootstrap_world import repository
from vertex_launch.model import RunId, SchedulerView


@pytest.fixture
def serve(serve: Serve) -> Serve:
    return lambda **options: serve(**{"default_entities": {"alice": "acme"}, **options})


@pytest.fixture
def client(serve: Serve, tmp_path: Path) -> Client:
    return Client(serve(), tmp_path)


def artifact(server: WandbServer, name: str) -> Artifact:
    found = server.store.artifacts.find("acme", "demo", name)
    assert found is not None, [one.path for one in server.store.artifacts]
    return found


def source(server: WandbServer, job: str) -> dict[str, Any]:
    """Return the source of a job, with its type and Python version."""
    described = json.loads(server.store.artifacts.content(artifact(server, job), "wandb-job.json"))
    return {"type": described["source_type"], "runtime": described["runtime"], **described["source"]}


JOB_FILE = "wandb-job.json"


def committed(server: WandbServer, text: str) -> Artifact:
    """Create a version of a job without a client."""
    return server.store.create_artifact("acme", "demo", "job", "train", {JOB_FILE: text.encode()})


# All commands run in one process, because the client takes long to start.
COMMANDS = """
import json, sys
from wandb.cli.cli import cli

for command in json.loads(sys.argv[1]):
    cli(command, standalone_mode=False)
"""


def commands(client: Client, *given: str, **more: str) -> str:
    """Run commands of ``wandb`` in the client's home, and return their output."""
    done = client.run("-c", COMMANDS, json.dumps([shlex.split(one) for one in given]), WANDB_ENTITY="acme", **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def local_ssh(folder: Path) -> dict[str, str]:
    """Return the environment in which git's ``ssh://`` reaches this machine without a server.

    The client does not accept other addresses of a repository on disk: it forbids git's ``file`` transport.
    """
    script = folder / "ssh"
    script.write_text('#!/bin/sh\nfor command; do :; done\nexec sh -c "$command"\n')
    script.chmod(0o755)
    return {"GIT_SSH_COMMAND": str(script), "GIT_SSH_VARIANT": "simple"}


def test_jobs_of_every_kind_are_created_found_and_launched(client: Client) -> None:
    server, home = client.server, client.home
    server.store.create_queue("acme", "vertex")
    code = home / "code"
    (code / "pkg").mkdir(parents=True)
    (code / "train.py").write_text("print(1)\n")
    (code / "pkg" / "__init__.py").write_text("")
    (code / "requirements.txt").write_text("wandb\nsix==1.16\n")
    _, (commit,) = repository(home / "repository", {"train.py": "print('from git')\n"})
    remote = f"ssh://git@localhost{home}/repository"
    image = "job create image registry.local/train:7 --project demo --name image --alias prod"
    said = commands(
        client,
        image,
        image,
        "job create code code -p demo -n code -E 'python train.py --lr 1' -r 3.12 -a dev -B python:3.12-slim",
        "job create code code -p demo -E 'python train.py'",
        f"job create git {remote} -p demo -n git -E 'python train.py' --git-hash {commit} -r 3.11",
        "job list -e acme -p demo",
        "job describe acme/demo/code:dev",
        "job describe acme/demo/code:v7",
        "launch -j acme/demo/git:v0 -q vertex",
        "launch -u code -E 'python train.py' --job-name made -q vertex -e acme -p demo",
        **local_ssh(home),
    )
    for words in (
        "Created job: acme/demo/image:v0, with aliases: prod, 7, latest",
        "No changes detected for job: acme/demo/image:v0",
        "Created job: acme/demo/code:v0, with aliases: dev, latest",
        "Created job: acme/demo/job-code-code_train.py:v0",
        "Created job: acme/demo/git:v0, with alias: latest",
        "image -- versions (4): ",
        "runtime: 3.12",
        "ERROR Job artifact acme/demo/code:v7 not found",
    ):
        assert words in said
    assert source(server, "image:7") == {"type": "image", "runtime": "", "image": "registry.local/train:7"}
    code_version = artifact(server, "code-code:latest")
    assert source(server, "code:dev") == {
        "type": "artifact",
        "runtime": "3.12",
        "artifact": f"wandb-artifact://_id/{code_version.id}",
        "entrypoint": ["python", "train.py", "--lr", "1"],
        "base_image": "python:3.12-slim",
        "notebook": False,
    }
    assert source(server, "git:v0")["git"] == {"remote": remote, "commit": commit}
    assert set(code_version.entries) == {"train.py", "pkg/__init__.py", "requirements.txt"}
    assert server.store.artifacts.content(code_version, "train.py") == b"print(1)\n"
    frozen = server.store.artifacts.content(artifact(server, "code"), "requirements.frozen.txt")
    assert frozen.decode().split() == ["wandb", "six==1.16"]
    assert (code_version.of.kind, artifact(server, "code").of.kind, artifact(server, "code").metadata) == (
        "code",
        "job",
        {"_partial": True},
    )
    assert artifact(server, "code").username == "alice"
    assert server.store.runs.all() == [], "the runs that made them were hidden and are deleted"
    assert [item.run_spec["job"] for item in server.store.items.values()] == ["acme/demo/git:v0", "acme/demo/made:v0"]
    assert client.unexpected() == []


LOG = """
import json, os, sys, wandb
run = wandb.init()
told = []
for text in ("one", "two", "one", "three"):
    data = wandb.Artifact("data", type="dataset", description=text, metadata={"text": text})
    with data.new_file("a folder/ä+b.txt") as file:
        file.write(text)
    data.add_reference("file://" + sys.argv[1])
    run.log_artifact(data, aliases=["best"] if text == "two" else None, tags=["tiny"]).wait()
    told.append([data.name, sorted(data.aliases), data.tags, data.state, data.size, data.description])
run.log_artifact(wandb.Artifact("empty", "other")).wait()
run.finish()
print(json.dumps(told))
"""

USE = """
import json, os, wandb
run = wandb.init()
used = [run.use_artifact("acme/demo/data:best"), run.use_artifact("data:v0", type="dataset")]
folder = used[0].download()
table = wandb.Artifact("table", "dataset")
table.add(wandb.Table(columns=["a"], data=[[1]]), "t")
run.use_artifact(table)
draft = used[0].new_draft()
with draft.new_file("more.txt") as file:
    file.write("more")
run.log_artifact(draft).wait()
run.finish()
api = wandb.Api()
seen = api.run("acme/demo/use")
print(json.dumps({
    "files": {os.path.relpath(os.path.join(at, name), folder): open(os.path.join(at, name)).read()
              for at, _, names in os.walk(folder) for name in names},
    "used": [one.name for one in used] + [one.name for one in seen.used_artifacts()],
    "logged": [one.name for one in seen.logged_artifacts()],
    "by": [api.artifact("acme/demo/data:best").logged_by().id,
           *(one.id for one in api.artifact("acme/demo/data:best").used_by())],
    "versions": [one.version for one in api.artifacts("dataset", "acme/demo/data")],
    "types": {kind.name: [one.name for one in kind.collections()] for kind in api.artifact_types("acme/demo")},
}))
"""


def test_runs_log_and_use_artifacts(client: Client) -> None:
    server, artifacts = client.server, client.server.store.artifacts
    refers = client.home / "elsewhere.txt"
    refers.write_text("referred")
    where = {"WANDB_ENTITY": "acme", "WANDB_PROJECT": "demo"}
    logged = client.run("-c", LOG, str(refers), WANDB_RUN_ID="log", **where)
    assert logged.returncode == 0, logged.stderr
    size = len("referred")
    assert json.loads(logged.stdout.splitlines()[-1]) == [
        ["data:v0", ["latest"], ["tiny"], "COMMITTED", size + 3, "one"],
        ["data:v1", ["best", "latest"], ["tiny"], "COMMITTED", size + 3, "two"],
        ["data:v0", ["latest"], ["tiny"], "COMMITTED", size + 3, "one"],
        ["data:v2", ["latest"], ["tiny"], "COMMITTED", size + 5, "three"],
    ]
    assert 'Artifact "data" already exists with the same content. No new version will be created.' in logged.stderr
    before = [(one.name, one.aliases, one.logged_by, one.used_by) for one in artifacts]
    assert before == [
        ("data:v0", ["v0"], ["acme/demo/log"], []),
        ("data:v1", ["v1", "best"], ["acme/demo/log"], []),
        ("data:v2", ["v2", "latest"], ["acme/demo/log"], []),
        ("empty:v0", ["v0", "latest"], ["acme/demo/log"], []),
    ]
    told = client.script(USE, WANDB_RUN_ID="use", **where)
    assert told == {
        "files": {"a folder/ä+b.txt": "two", "elsewhere.txt": "referred"},
        "used": ["data:best", "data:v0", "data:v0", "data:v1", "table:v0"],
        "logged": ["data:v3"],
        "by": ["log", "use"],
        "versions": ["v3", "v2", "v1", "v0"],
        "types": {"dataset": ["data", "table"], "other": ["empty"]},
    }
    used = [one.path for one in artifacts if "acme/demo/use" in one.used_by]
    assert used == ["acme/demo/data:v0", "acme/demo/data:v1", "acme/demo/table:v0"]
    newest = artifact(server, "data")
    assert (newest.name, newest.logged_by) == ("data:v3", ["acme/demo/use"])
    assert set(newest.entries) == {"a folder/ä+b.txt", "elsewhere.txt", "more.txt"}
    assert artifacts.content(newest, "a folder/ä+b.txt") == b"two", "which came with another version"
    assert newest.entries["a folder/ä+b.txt"].birth == artifact(server, "data:best").id
    assert client.unexpected() == []


CHANGE = """
import json, wandb
from wandb.errors import CommError
from wandb.sdk.artifacts.artifact import artifact_instance_cache

def refused(call, *args, **how):
    try:
        return call(*args, **how)
    except (CommError, ValueError) as error:
        return f"{type(error).__name__}: {error}"

def look(name):
    return wandb.Api().artifact(f"acme/demo/{name}")

one, two = look("train:v0"), look("train:v1")
one.aliases.append("prod")
one.metadata["rows"] = 3
one.description = "better"
one.tags.append("t")
one.save()
moved = [look("train:prod").version]
two.aliases.append("prod")
two.save()
moved.append(look("train:prod").version)
two.aliases.remove("prod")
two.save()
told = {
    "moved": moved,
    "prod": wandb.Api().artifact_exists("acme/demo/train:prod"),
    "kept": refused(two.delete),
    "id": wandb.Api()._artifact_from_id(two.id).source_name,
    "nobody": wandb.Api()._artifact_from_id("QXJ0aWZhY3Q6OTk5OTk="),
    "missing": [refused(look, name) for name in ("train:none", "none:v0")],
    "nowhere": [refused(wandb.Api().artifact, name) for name in ("acme/none/train:v0", "other/demo/train:v0")],
    "type": refused(wandb.Api().artifact, "acme/demo/train:v0", type="code"),
}
two.delete(delete_aliases=True)
artifact_instance_cache.clear()
print(json.dumps({**told,
    "latest": refused(look, "train:latest"),
    "versions": [one.version for one in wandb.Api().artifacts("job", "acme/demo/train")],
    "state": [look("train:v1").state, wandb.Api()._artifact_from_id(two.id).state],
    "job": refused(wandb.Api().job, "acme/demo/train:v1"),
}))
"""


def test_aliases_move_and_missing_versions_are_reported(client: Client) -> None:
    one, two = (committed(client.server, text) for text in ("one", "two"))
    one.metadata = {}
    assert client.script(CHANGE) == {
        "moved": ["v0", "v1"],
        "prod": False,
        "kept": "CommError: artifact acme/demo/train:v1 has aliases and cannot be deleted: latest",
        "id": "train:v1",
        "nobody": None,
        "missing": [
            "CommError: artifact membership 'train:none' not found in 'acme/demo'",
            "CommError: artifact membership 'none:v0' not found in 'acme/demo'",
        ],
        "nowhere": [
            "CommError: project 'none' not found under entity 'acme'",
            "CommError: project 'demo' not found under entity 'other'",
        ],
        "type": "CommError: type 'code' specified but this artifact is of type 'job'",
        "latest": "CommError: artifact membership 'train:latest' not found in 'acme/demo'",
        "versions": ["v0"],
        "state": ["DELETED", "DELETED"],
        "job": "CommError: Failed to fetch artifact manifest",
    }
    assert (one.metadata, one.description, one.tags) == ({"rows": 3}, "better", ["t"])
    assert (two.state, two.version, two.aliases, two.entries) == ("DELETED", 1, [], {})


TRAIN = """
import sys, wandb
run = wandb.init(settings=wandb.Settings(disable_job_creation=False), config={"lr": 0.1})
if len(sys.argv) > 1:
    run.log_code(".")
run.log({"loss": 1})
run.finish()
"""

JOB = """
import json, wandb
api = wandb.Api()
(job,) = [edge["node"] for one in api.list_jobs("acme", "demo") for edge in one["edges"]]
found = api.job(f"acme/demo/{job['artifactSequence']['name']}:latest")
print(json.dumps([found._job_info["source_type"], found._input_types.to_json()["params"]["type_map"],
                  found._get_code_artifact(found._job_info["source"]["artifact"]).name]))
"""


def test_a_run_creates_a_job_and_the_next_run_uses_it(client: Client) -> None:
    (client.home / "train.py").write_text(TRAIN)

    def train(*args: str, **more: str) -> None:
        done = client.run("train.py", *args, WANDB_ENTITY="acme", WANDB_PROJECT="demo", **more)
        assert done.returncode == 0, done.stderr

    train("code", WANDB_RUN_ID="first")
    artifacts = client.server.store.artifacts
    job = artifact(client.server, "job-source-demo-train.py")
    code = artifact(client.server, "source-demo-train.py")
    assert source(client.server, job.name)["artifact"] == f"wandb-artifact://_id/{code.id}"
    assert artifacts.content(code, "train.py").decode() == TRAIN
    assert (code.logged_by, job.used_by) == (["acme/demo/first"], ["acme/demo/first"])
    assert client.script(JOB) == ["artifact", {"lr": {"wb_type": "number"}}, "source-demo-train.py:v0"]

    launched = {"WANDB_LAUNCH": "True", "WANDB_ARTIFACTS": json.dumps({"_wandb_job": job.path})}
    train(WANDB_RUN_ID="second", **launched)
    assert job.used_by == ["acme/demo/first", "acme/demo/second"]
    assert [one.path for one in artifacts] == [code.path, job.path], "no second job is made of the same"
    assert client.unexpected() == []


class TestArtifacts:
    """What no client does, or what takes long to show with a client."""

    @pytest.fixture
    def server(self, serve: Serve) -> WandbServer:
        return serve()

    def change(self, server: WandbServer, mutation: str, given: str, **how: Any) -> Asked:
        return ask(server, f"mutation {{ {mutation}(input: {{{given}}}) {{ clientMutationId }} }}", **how)

    def test_a_version_is_committed_once_and_only_when_complete(self, server: WandbServer) -> None:
        whole, artifacts = committed(server, "one"), server.store.artifacts
        manifest = artifacts.contents.get("acme", whole.manifest or "")
        part = artifacts.create("acme", "other", "job", "train", "digest", username="alice")
        assert (part.state, part.path, part.aliases) == ("PENDING", "acme/other/train", [])
        for announced, status, says in ((None, 409, "no manifest yet"), (md5(b"nothing"), 404, md5(b"nothing"))):
            part.manifest = announced
            refused = self.change(server, "commitArtifact", f'artifactID: "{part.id}"')
            assert (refused.status, part.state, part.entries) == (status, "PENDING", {})
            assert says in refused.errors[0]["message"]
        lists_more = manifest.replace(md5(b"one").encode(), md5(b"two").encode())
        artifacts.contents.put("acme", md5(lists_more), lists_more)
        part.manifest = md5(lists_more)
        refused = self.change(server, "commitArtifact", f'artifactID: "{part.id}"')
        assert refused.errors[0]["message"] == f"content {md5(b'two')} of acme not found"
        artifacts.contents.put("acme", md5(b"two"), b"two")
        assert self.change(server, "commitArtifact", f'artifactID: "{part.id}"').status == 200
        assert (part.state, part.path, part.aliases) == ("COMMITTED", "acme/other/train:v0", ["v0", "latest"])
        assert artifacts.content(part, JOB_FILE) == b"two"
        again = self.change(server, "commitArtifact", f'artifactID: "{part.id}"')
        assert again.errors[0]["message"] == "artifact acme/other/train:v0 is committed already"

    def test_a_content_must_be_what_was_announced(self, server: WandbServer) -> None:
        address = f"{server.url}/_artifacts/acme/{hashlib.md5(b'one').hexdigest()}"
        response = requests.put(address, data=b"two", timeout=10)
        assert response.status_code == 400
        assert "announced was" in response.json()["error"]
        assert requests.get(address, timeout=10).status_code == 404
        assert requests.put(address, data=b"one", timeout=10).status_code == 200
        assert requests.get(address, timeout=10).content == b"one"
        assert requests.get(f"{server.url}/_artifacts/acme/no-digest", timeout=10).status_code == 404
        assert server.store.asked() == {"uploadArtifactFile": 2, "downloadArtifactFile": 3}

    def test_a_content_that_the_server_has_is_not_uploaded_again(self, server: WandbServer) -> None:
        first = committed(server, "one")
        second = server.store.artifacts.create("acme", "demo", "job", "other", "another digest", username="alice")
        files = f'artifactFiles: [{{artifactID: "{second.id}", name: "b.txt", md5: "%s"}}]'
        text = (
            "mutation { createArtifactFiles(input: {%s}) { files { edges { node { uploadUrl artifact { id } } } } } }"
        )
        known, new = (
            ask(server, text % (files % md5(content))).data["createArtifactFiles"]["files"]["edges"][0]["node"]
            for content in (b"one", b"two")
        )
        assert known == {"uploadUrl": None, "artifact": {"id": first.id}}
        hexadecimal = hashlib.md5(b"two").hexdigest()
        assert new == {"uploadUrl": f"{server.url}/_artifacts/acme/{hexadecimal}", "artifact": {"id": second.id}}

    def test_references_keep_their_address(self, server: WandbServer) -> None:
        made = committed(server, "one")
        made.entries["far.bin"] = Entry("far.bin", "gs://bucket/far.bin", 9, ref="gs://bucket/far.bin")
        files = "files { totalCount edges { node { name directUrl sizeBytes } } }"
        found = ask(server, f'{{ artifact(id: "{made.id}") {{ size fileCount {files} }} }}').data["artifact"]
        assert (found["size"], found["fileCount"], found["files"]["totalCount"]) == (12, 2, 2)
        far = {"name": "far.bin", "directUrl": "gs://bucket/far.bin", "sizeBytes": 9}
        assert found["files"]["edges"][1]["node"] == far
        with pytest.raises(Refused, match=r"file far\.bin of artifact acme/demo/train:v0 not found"):
            server.store.artifacts.content(made, "far.bin")

    def test_faults_apply_to_uploads_and_downloads(self, server: WandbServer) -> None:
        address = f"{server.url}/_artifacts/acme/{hashlib.md5(b'one').hexdigest()}"
        server.faults.fail("uploadArtifactFile", 503)
        assert [requests.put(address, data=b"one", timeout=10).status_code for _ in range(2)] == [503, 200]
        server.faults.lose("downloadArtifactFile")
        with pytest.raises(requests.ConnectionError):
            requests.get(address, timeout=10)

    def test_only_members_of_its_entity_see_an_artifact(self, server: WandbServer) -> None:
        made = committed(server, "one")
        look = f'{{ artifact(id: "{made.id}") {{ state currentManifest {{ file {{ directUrl }} }} }} }}'
        seen = ask(server, look).data["artifact"]
        assert seen["state"] == "COMMITTED"
        listed = requests.get(seen["currentManifest"]["file"]["directUrl"], timeout=10).json()["contents"]
        assert listed == {JOB_FILE: {"digest": md5(b"one"), "size": 3}}
        assert ask(server, look, key=BOB).data == {"artifact": None}
        assert self.change(server, "deleteArtifact", f'artifactID: "{made.id}"', key=BOB).status == 403
        path = f"artifactsV2/default/acme/demo/train/{made.id}/{hashlib.md5(b'one').hexdigest()}/{JOB_FILE}"
        answers = [
            requests.get(f"{server.url}/{path}", auth=("api", key) if key else None, timeout=10)
            for key in (ALICE, BOB, None)
        ]
        assert [answer.status_code for answer in answers] == [200, 403, 401]
        assert answers[0].content == b"one"

    def test_a_deleted_version_keeps_its_number_and_can_lose_its_name(self, serve: Serve) -> None:
        for by_name in (True, False):
            server = serve(deleted_by_name=by_name)
            artifacts = server.store.artifacts
            made = committed(server, "one")
            artifacts.delete(made, with_aliases=True)
            membership = 'artifactCollectionMembership(name: "train:v0") { artifact { state } }'
            found = ask(server, f'{{ project(entityName: "acme", name: "demo") {{ {membership} }} }}').data["project"]
            assert found == {"artifactCollectionMembership": {"artifact": {"state": "DELETED"}} if by_name else None}
            again = committed(server, "one")
            assert (again.name, again.aliases) == ("train:v1", ["v1", "latest"]), (
                "what is deleted is not what is logged"
            )
            with pytest.raises(Refused, match="is deleted and cannot be used"):
                artifacts.use(made, "acme/demo/run1")
            with pytest.raises(Refused, match="is deleted and cannot have aliases"):
                artifacts.add_aliases(made, ["prod"])

    def test_a_name_has_one_type_and_a_version_is_not_an_alias(self, server: WandbServer) -> None:
        made = committed(server, "one")
        with pytest.raises(Refused, match='artifacts called train have the type "job" in acme/demo, not "code"'):
            server.store.artifacts.create("acme", "demo", "code", "train", "digest", username="alice")
        alias = '{entityName: "acme", projectName: "demo", artifactCollectionName: "train", alias: "v7"}'
        answer = self.change(server, "addAliases", f'artifactID: "{made.id}", aliases: [{alias}]')
        assert (answer.status, answer.errors[0]["message"]) == (400, "v7: a version cannot be set as an alias")

    def test_the_state_for_a_live_table(self, server: WandbServer) -> None:
        made = committed(server, "one")
        server.store.artifacts.use(made, "acme/demo/run1")
        server.store.set_sweep("acme", "demo", "sw1", "RUNNING")
        state = requests.get(f"{server.url}/_local/state", timeout=10).json()
        assert state["artifacts"] == [
            {
                "id": made.id,
                "path": "acme/demo/train:v0",
                "type": "job",
                "state": "COMMITTED",
                "aliases": ["v0", "latest"],
                "logged_by": [],
                "used_by": ["acme/demo/run1"],
            }
        ]
        sweep = {"entity": "acme", "project": "demo", "name": "sw1", "state": "RUNNING", "runs": []}
        assert state["sweeps"] == [sweep]


SWEEP = """
method: grid
image_uri: registry.local/train:1
metric: {name: loss, goal: minimize}
parameters:
  lr: {values: [0.1, 0.2, 0.3]}
  epochs: {value: 2}
scheduler: {resource: gcp-vertex, docker_image: "registry.local/scheduler:1", num_workers: 2}
"""


@pytest.fixture
def queue(client: Client) -> Client:
    client.server.store.create_queue("acme", "vertex", resource_args={"run": {"timeout": 60}})
    (client.home / "sweep.yaml").write_text(SWEEP)
    return client


class LaunchAgent(threading.Thread):
    """Claims what a scheduler pushes, and ends each run as ``ends`` says for its ``lr``: an exit code, or no start."""

    def __init__(self, server: WandbServer, ends: Mapping[float, int | None]) -> None:
        super().__init__(daemon=True)
        self.specs: list[dict[str, Any]] = []
        self.seen: list[str] = []
        self._server = server
        self._ends = ends
        self._done = threading.Event()

    def run(self) -> None:
        launch = self._server.store.launch
        (queue,) = launch.queues.values()
        while not self._done.wait(0.02):
            while item := launch.pop(queue, None):
                self._start(item)

    def stop(self) -> None:
        self._done.set()
        self.join()

    def _start(self, item: Item) -> None:
        store, spec = self._server.store, item.run_spec
        self.specs.append(spec)
        run = store.runs.get("acme", "demo", spec["run_id"])
        assert run is not None
        self.seen.append(run.state)
        store.launch.ack(item, run.name)
        exit_code = self._ends[spec["overrides"]["run_config"]["lr"]]
        if exit_code is None:
            store.launch.fail(item, ItemError("no such image", "run", []))
        else:
            store.runs.stream(run, {"complete": True, "exitcode": exit_code})


def test_the_real_scheduler_drives_a_sweep_through_a_queue(queue: Client) -> None:
    server = queue.server
    created = queue.run("-m", "wandb", "launch-sweep", "sweep.yaml", "-q", "vertex", "-e", "acme", "-p", "demo")
    assert "Created sweep with ID: sweep001" in created.stderr, created.stderr
    sweep = server.store.sweeps["acme", "demo", "sweep001"]
    assert (sweep.state, sweep.runs, sweep.config["method"]) == ("PENDING", [], "grid")
    (item,) = server.store.items.values()
    spec = item.run_spec
    assert {key: spec[key] for key in ("uri", "run_id", "name", "resource", "docker", "resource_args")} == {
        "uri": "placeholder-uri-scheduler",
        "run_id": "sweep001",
        "name": "Scheduler.sweep001",
        "resource": "gcp-vertex",
        "docker": {"docker_image": "registry.local/scheduler:1"},
        "resource_args": {"gcp-vertex": {"run": {"timeout": 60}}},
    }
    assert "sweep_id" not in spec, "a scheduler is not a run of its sweep"
    server.store.launch.pop(server.store.queues[item.queue_id], None)
    server.store.launch.ack(item, "sweep001")

    # The client quotes its arguments for a shell. Its own interval between two looks is 5 s.
    command: list[str] = spec["overrides"]["entry_point"] + shlex.split(" ".join(spec["overrides"]["args"]))
    agent = LaunchAgent(server, {0.1: 0, 0.2: None, 0.3: 1})
    agent.start()
    scheduler = queue.run(
        *["-m", *command, "--polling_sleep", "0"],
        WANDB_ENTITY="acme",
        WANDB_PROJECT="demo",
        WANDB_RUN_ID="sweep001",
        WANDB_LAUNCH="True",
        WANDB_CONFIG=json.dumps(spec["overrides"]["run_config"]),
    )
    agent.stop()
    assert scheduler.returncode == 0, scheduler.stderr
    assert "Scheduler completed" in scheduler.stderr
    assert agent.seen == ["pending"] * 3, "a run is there before its item is"
    assert [one["overrides"]["run_config"] for one in agent.specs] == [
        {"lr": lr, "epochs": 2} for lr in (0.1, 0.2, 0.3)
    ]
    assert {(one["sweep_id"], one["author"], one["docker"]["docker_image"]) for one in agent.specs} == {
        ("sweep001", "alice", "registry.local/train:1")
    }
    assert sweep.runs == [one["run_id"] for one in agent.specs]
    runs = [server.store.runs.get("acme", "demo", name) for name in sweep.runs]
    assert [run and run.state for run in runs] == ["finished", "crashed", "failed"]
    assert [run and run.sweep for run in runs] == ["sweep001"] * 3
    assert (sweep.state, len(server.store.sweeps.agents)) == ("FINISHED", 2)
    own = server.store.runs.get("acme", "demo", "sweep001")
    assert own is not None
    assert (own.state, own.sweep) == ("finished", None)
    assert queue.unexpected() == []


HEARTBEATS = """
import json, wandb
from wandb.apis.public.sweeps import (
    _agent_heartbeat, _get_sweep_state, _register_agent, _set_sweep_state, _upsert_sweep)
from wandb.errors import CommError
from wandb.sdk.launch.api import LaunchApi

where = {"entity": "acme", "project": "demo"}
api = LaunchApi()

def new(**config):
    try:
        return _upsert_sweep(api, config, **where)[0]["name"]
    except CommError as error:
        return str(error)

def told(agent, *running):
    return [one["type"] for one in _agent_heartbeat(api, agent, {}, dict.fromkeys(running, True))]

def set_to(state):
    _set_sweep_state(api, name, state, **where)

lr = {"values": [1, 2]}
name = new(method="random", run_cap=2, parameters={"lr": lr})
one, two = (_register_agent(api, "host", sweep_id=name, **where)["id"] for _ in range(2))
(first,) = _agent_heartbeat(api, one, {}, {})
seen = [_get_sweep_state(api, name, **where), told(one, first["run_id"])]
set_to("PAUSED")
seen.append(told(two))
set_to("RUNNING")
(second,) = _agent_heartbeat(api, two, {}, {})
seen += [told(two, second["run_id"]), told(one), told(two), told(one), _get_sweep_state(api, name, **where)]
sweep = wandb.Api().sweep(f"acme/demo/{name}")
public = [sweep.state, sweep.config["method"], [run.id for run in sweep.runs], sweep.expected_run_count]
name = new(method="grid", parameters={"lr": lr})
agent = _register_agent(api, "host", sweep_id=name, **where)["id"]
(third,) = _agent_heartbeat(api, agent, {}, {})
set_to("CANCELED")
ended = [told(agent, third["run_id"])]
name = new(method="custom", parameters={"lr": {"anything": 1}})
agent = _register_agent(api, "host", sweep_id=name, **where)["id"]
ended += [told(agent), _get_sweep_state(api, name, **where)]
set_to("FINISHED")
ended.append(told(agent))
problems = [new(method="bayes", parameters={"lr": lr}),
            new(method="grid", parameters={"x": {"min": 0.5, "max": 1.5}, "y": {"distribution": "normal"}})]
print(json.dumps([seen, public, ended, problems]))
"""


def test_a_run_whose_item_failed_does_not_block_the_end_of_a_sweep(serve: Serve) -> None:
    """A scheduler asks for its next worker only while the earlier workers get runs. So the run's agent does not matter."""
    store = serve().store
    store.create_queue("acme", "vertex")
    store.project("acme", "demo")
    sweep = store.sweeps.draft("acme", "demo", {"method": "grid", "parameters": {"lr": {"value": 1}}})
    store.sweeps.keep(sweep, "PENDING")
    one, two = (store.sweeps.create_agent("acme", "demo", sweep.name, host="h", username="alice") for _ in range(2))
    (command,) = store.sweeps.heartbeat(two, [])
    item = store.launch.item(store.push("acme", "vertex", {"run_id": command["run_id"], "sweep_id": sweep.name}))
    assert store.sweeps.heartbeat(one, []) == []
    store.launch.fail(item, ItemError("no such image", "agent", []))
    assert (store.sweeps.heartbeat(one, []), sweep.state) == ([{"type": "exit"}], "FINISHED")
    run = store.runs.get("acme", "demo", command["run_id"])
    assert run is not None
    assert run.state == "crashed"


def test_agents_get_runs_until_a_sweep_ends(client: Client) -> None:
    seen, public, ended, problems = client.script(HEARTBEATS)
    sweep = client.server.store.sweeps["acme", "demo", "sweep001"]
    assert seen == ["RUNNING", [], [], [], [], ["exit"], ["exit"], "FINISHED"]
    assert public == ["FINISHED", "random", sweep.runs, 2]
    assert ended == [["exit"], [], "RUNNING", ["exit"]]
    refused = "the local W&B cannot search this sweep: "
    assert problems == [
        f'{refused}method "bayes" is not one of grid, random, custom',
        f'{refused}parameter "x": a grid needs values, or min and max that are integers; '
        'parameter "y" has neither value, values, nor min and max, uniform or int_uniform',
    ]
    assert len(client.server.store.sweeps) == 3


NO_TYPES = {"wb_type": "typedDict", "params": {"type_map": {}}}


def test_a_sweep_is_launched_again_or_with_a_job_for_its_scheduler(queue: Client) -> None:
    server = queue.server
    source = {"source_type": "image", "source": {"image": "i:1"}, "input_types": NO_TYPES, "output_types": NO_TYPES}
    job = committed(server, json.dumps(source)).path
    random = {"method": "random", "run_cap": 1, "job": job, "parameters": {"lr": {"values": [1]}}}
    configs = {
        "missing": {**random, "job": "acme/demo/none:v0"},
        "random": random,
        "custom": {**random, "method": "custom", "scheduler": {"job": job, "resource": "gcp-vertex"}},
    }
    for name, config in configs.items():
        (queue.home / f"{name}.yaml").write_text(json.dumps(config))
    said = commands(
        queue,
        *(f"launch-sweep {name}.yaml -q vertex -p demo" for name in configs),
        "sweep --stop acme/demo/sweep001",
        "launch-sweep -r sweep001 -q vertex -p demo",
    )
    assert "Failed to load job. Job artifact acme/demo/none:v0 not found" in said
    assert "Resumed sweep with ID: sweep001" in said
    assert [(one.name, one.state) for one in server.store.sweeps.values()] == [
        ("sweep001", "PENDING"),
        ("sweep002", "PENDING"),
    ]
    specs = [item.run_spec for item in server.store.items.values()]
    assert [(spec["run_id"], spec["resource"], spec.get("job")) for spec in specs] == [
        ("sweep001", "local-process", None),
        ("sweep002", "gcp-vertex", job),
        ("sweep001", "local-process", None),
    ], "a local process is the client's default"
    assert ["resource_args" in spec for spec in specs] == [False, True, False]
    assert specs[1]["overrides"]["run_config"]["sweep_args"]["sweep_id"] == "sweep002"
    sweeps = [RunId("acme", "demo", name) for name in ("sweep001", "sweep002", "none")]
    asking = product.client(server.url, product.Keys([ALICE]))
    assert asking.schedulers(sweeps) == {
        sweeps[0]: SchedulerView("sweep001", "vertex", ""),
        sweeps[1]: SchedulerView("sweep002", "vertex", job),
        sweeps[2]: None,
    }, "what the product believes about schedulers is what the client launches"
    for sweep in sweeps[:2]:
        assert asking.cancel_sweep("acme", "demo", sweep.id, sweep.id, "other") is None
        assert asking.cancel_sweep("acme", "demo", sweep.id, sweep.id, "vertex") is True
    assert queue.unexpected() == []


def test_only_a_scheduler_keeps_a_resource_that_differs_from_its_queues() -> None:
    queue = ResourceConfig("c1", "acme", "gcp-vertex", {"resource_args": {"gcp-vertex": {"run": {}}}})
    for uri, asked, resource in (
        (None, "local-process", "gcp-vertex"),
        ("placeholder-uri-scheduler", "local-process", "local-process"),
        ("placeholder-uri-scheduler", "gcp-vertex", "gcp-vertex"),
        ("placeholder-uri-scheduler", None, "gcp-vertex"),
    ):
        spec = resolve({"uri": uri, "resource": asked}, queue, None)
        assert spec["resource"] == resource
        assert ("resource_args" in spec) is (resource == "gcp-vertex")


class TestSearch:
    def test_a_grid_is_every_combination_once(self) -> None:
        config = {
            "method": "grid",
            "parameters": {
                "a": {"values": [1, 2]},
                "b": {"value": "x"},
                "c": {"distribution": "int_uniform", "min": 0, "max": 2},
            },
        }
        check(config)
        found = suggestions(config, "seed")
        assert found is not None
        assert list(found) == [{"a": a, "b": "x", "c": c} for a in (1, 2) for c in (0, 1, 2)]
        assert (expected(config), expected({**config, "run_cap": 4})) == (6, 4)
        capped = suggestions({**config, "run_cap": 4}, "seed")
        assert capped is not None
        assert len(list(capped)) == 4

    def test_a_random_search_goes_on_and_can_be_repeated(self) -> None:
        config = {
            "method": "random",
            "parameters": {"a": {"values": [1, 2]}, "x": {"distribution": "uniform", "min": 0.5, "max": 1}},
        }
        check(config)
        one, two, other = (suggestions(config, seed) for seed in ("seed", "seed", "other"))
        assert one is not None
        assert two is not None
        assert other is not None
        drawn = list(itertools.islice(one, 100))
        assert drawn == list(itertools.islice(two, 100)) != list(itertools.islice(other, 100))
        assert {values["a"] for values in drawn} == {1, 2}
        assert all(0.5 <= values["x"] <= 1 for values in drawn)
        assert expected(config) is None

    @pytest.mark.parametrize("config", [None, [], {}, {"method": "grid"}, {"method": "grid", "parameters": [1]}])
    def test_an_invalid_configuration_is_refused(self, config: object) -> None:
        with pytest.raises(Refused, match="has to be an object with parameters"):
            check(config)

    @pytest.mark.parametrize(
        "given", [1, {}, {"values": []}, {"min": 1, "max": 2}, {"distribution": "uniform", "min": "a"}]
    )
    def test_a_parameter_without_values_is_refused(self, given: object) -> None:
        with pytest.raises(Refused, match='parameter "p" has neither value'):
            check({"method": "random", "parameters": {"p": given}})
