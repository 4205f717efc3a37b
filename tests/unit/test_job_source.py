"""W&B jobs: what their artifacts mean, which image runs them, and how the bootstrap and the key get into the CustomJob."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import CustomJob

from tests.support import specs
from tests.support.specs import IMAGE, KEY, PACKAGE, SETTINGS, pool, run_spec
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job import boot, environment, job_source, readback, retry
from vertex_launch.job.arguments import unescape
from vertex_launch.job.job_source import JobSource, SourceType
from vertex_launch.job.request import JobRequest
from vertex_launch.model import JobArtifact
from vertex_launch.settings.config import GitHost, Settings

NAME = "acme/demo/train:v3"
SECRET = "projects/demo-project/secrets/github/versions/latest"
CODE = {
    "_version": "v0",
    "source_type": "artifact",
    "source": {"artifact": "wandb-artifact://_id/QXJ0", "entrypoint": ["python", "train.py"], "notebook": False},
    "runtime": "3.12.1",
}
REPO = {
    "source_type": "repo",
    "source": {
        "git": {"remote": "https://github.com/acme/train.git", "commit": "0123abc"},
        "entrypoint": ["python", "src/train.py"],
        "notebook": False,
    },
    "runtime": "3.11",
}
PICTURE = {"source_type": "image", "source": {"image": IMAGE}, "runtime": "3.10"}
AGENT = "service-1@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"
KEPT_OUT = SETTINGS.model_copy(update={"api_key_delivery": "secret", "jobs_account": AGENT})
ACCOUNT = {"service_account": "jobs@demo-project.iam.gserviceaccount.com"}


def source(description: dict[str, Any], settings: Settings = SETTINGS, /, **changes: Any) -> JobSource:
    changed = description | {"source": description["source"] | changes}
    return job_source.read(JobArtifact(NAME, changed), settings)


def request_of(found: JobSource | None, settings: Settings = SETTINGS, /, **spec: Any) -> JobRequest:
    return specs.built(run_spec(**{"docker": {}, "job": NAME, **spec} if found else spec), settings, source=found)


def built(found: JobSource | None, settings: Settings = SETTINGS, /, **spec: Any) -> CustomJob:
    return request_of(found, settings, **spec).custom_job


def refused(found: JobSource | None, settings: Settings = SETTINGS, /, **spec: Any) -> ItemRejected:
    with pytest.raises(ItemRejected) as error:
        built(found, settings, **spec)
    return error.value


def container(job: CustomJob) -> Any:
    return job.job_spec.worker_pool_specs[0].container_spec


def variables(job: CustomJob) -> dict[str, str]:
    return environment.read(container(job).env)


def plan(job: CustomJob) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(variables(job)["VERTEX_LAUNCH_PLAN"])
    return found


# What an artifact describes


@pytest.mark.parametrize(
    ("description", "flaw"),
    [
        ([], "wandb-job.json is a list"),
        ({}, "source_type"),
        ({"source_type": "conda", "source": {}}, "'conda'"),
        ({"source_type": ["image"], "source": {}}, "a list"),
        ({"source_type": "image"}, "source is nothing"),
        ({"source_type": "image", "source": "image:1"}, "source is 'image:1'"),
        ({"source_type": "image", "source": {}}, "no image"),
        ({"source_type": "image", "source": {"image": ""}}, "no image"),
        ({"source_type": "image", "source": {"image": 5}}, "image is 5"),
        ({"source_type": "image", "source": {"image": "\ud800"}}, "image"),
        ({"source_type": "image", "source": {"image": "i"}, "runtime": 3.11}, "runtime is 3.11"),
        ({"source_type": "image", "source": {"image": "i", "entrypoint": "python"}}, "entrypoint is 'python'"),
        ({"source_type": "image", "source": {"image": "i", "entrypoint": ["python", 1]}}, "entrypoint"),
        ({"source_type": "image", "source": {"image": "i", "entrypoint": ["a\0b"]}}, "entrypoint"),
        ({"source_type": "image", "source": {"image": "i", "entrypoint": ["a\udfff"]}}, "entrypoint"),
        ({"source_type": "artifact", "source": {"entrypoint": ["a"]}}, "no artifact"),
        ({"source_type": "artifact", "source": {"artifact": 5}}, "artifact is 5"),
        ({"source_type": "artifact", "source": {"artifact": "x", "base_image": {}}}, "base_image is a mapping"),
        ({"source_type": "repo", "source": {"git": {}}}, "no remote and no commit"),
        ({"source_type": "repo", "source": {"git": "https://github.com/a/b"}}, "source.git is"),
        ({"source_type": "repo", "source": {"git": {"remote": "https://a/b", "commit": 1}}}, "commit is 1"),
        ({"source_type": "repo", "source": {"git": {"remote": "https://a/b", "commit": "--x"}}}, "'--x'"),
    ],
)
def test_a_description_that_cannot_be_run_is_refused_with_its_flaw(description: Any, flaw: str) -> None:
    with pytest.raises(ItemRejected) as error:
        job_source.read(JobArtifact(NAME, description), SETTINGS)
    assert error.value.message.code is Code.ARTIFACT_INVALID
    assert f"job: {NAME}" in str(error.value)
    assert flaw in str(error.value)


@pytest.mark.parametrize("description", [CODE, REPO])
def test_a_dockerfile_is_refused_because_images_are_not_built(description: dict[str, Any]) -> None:
    own = refused(source(description, dockerfile="Dockerfile.gpu"))
    assert own.message.code is Code.ARTIFACT_DOCKERFILE
    assert "'Dockerfile.gpu'" in str(own)
    overridden = refused(source(description), overrides={"dockerfile": "Dockerfile"})
    assert overridden.message.code is Code.ARTIFACT_DOCKERFILE
    assert str(overridden).startswith("overrides.dockerfile: ")


def test_an_image_job_runs_its_image() -> None:
    job = built(source(PICTURE, entrypoint=["python", "train.py"]), overrides={"args": ["--epochs", "3"]})
    assert container(job).image_uri == IMAGE
    assert list(container(job).command) == ["python", "train.py", "--epochs", "3"]
    assert variables(job)["WANDB_DOCKER"] == IMAGE
    assert json.loads(variables(job)["WANDB_ARTIFACTS"]) == {"_wandb_job": NAME}
    assert "VERTEX_LAUNCH_PLAN" not in variables(job)


def test_the_items_entry_point_comes_before_the_jobs() -> None:
    job = built(source(PICTURE, entrypoint=["python", "train.py"]), overrides={"entry_point": ["bash", "x.sh"]})
    assert list(container(job).command) == ["bash", "x.sh"]


def test_odd_values_that_the_client_writes_are_understood() -> None:
    odd = source(CODE | {"runtime": "CPython 3.11.7"}, entrypoint=["pythonCPython 3.11", "train.py"])
    assert odd.entry_point == ("python3.11", "train.py")
    assert container(built(odd)).image_uri == "python:3.11-slim"


# Code


@pytest.mark.parametrize(
    ("base", "builder", "settings", "image"),
    [
        ("mine:1", {"base_image": "queue:1"}, "default:1", "mine:1"),
        ("", {"base_image": "queue:1", "accelerator": {"base_image": "gpu:1"}}, "default:1", "queue:1"),
        ("", {"accelerator": {"base_image": "gpu:1"}, "cuda": {"base_image": "old:1"}}, "default:1", "gpu:1"),
        ("", {"cuda": {"base_image": "old:1"}}, None, "old:1"),
        ("", {}, "default:1", "default:1"),
        ("", {}, None, "python:3.12-slim"),
    ],
)
def test_the_image_for_code_is_the_nearest_that_is_named(
    base: str, builder: dict[str, Any], settings: str | None, image: str
) -> None:
    assert container(code_job(builder, settings, base_image=base)).image_uri == image


def code_job(builder: dict[str, Any], default: str | None = None, **changes: Any) -> CustomJob:
    asked = run_spec(docker={}, job=NAME)
    asked["resource_args"]["vertex"]["builder"] = builder
    settings = SETTINGS.model_copy(update={"base_image": default})
    return specs.built(asked, settings, source=source(CODE, **changes)).custom_job


def test_a_base_image_that_is_not_an_image_name_is_refused_at_its_place() -> None:
    with pytest.raises(ItemRejected) as error:
        code_job({"accelerator": {"base_image": "two words"}})
    assert error.value.message.code is Code.SPEC_VALUE
    assert str(error.value).startswith("resource_args.vertex.builder.accelerator.base_image: 'two words'")


def test_the_image_of_a_job_artifact_fills_its_macro_and_is_checked_like_any_other() -> None:
    named = pool(args=["${image_uri}"], env=[{"name": "IMAGE", "value": "${image_uri}"}])
    job = built(source(PICTURE, image="gcr.io/a/b:1"), spec={"worker_pool_specs": [named]})
    assert container(job).image_uri == "gcr.io/a/b:1"
    assert list(container(job).args) == ["gcr.io/a/b:1"]
    assert variables(job)["IMAGE"] == "gcr.io/a/b:1"
    assert refused(source(PICTURE, image="gcr.io/a/$(b)")).message.code is Code.SPEC_VALUE
    error = refused(source(PICTURE, image="1234.dkr.ecr.us-east-1.amazonaws.com/a:1"))
    assert error.message.code is Code.SPEC_IMAGE_HOST
    assert str(error).startswith("resource_args.vertex.spec.worker_pool_specs[0].container_spec.image_uri: ")


def test_code_runs_through_the_bootstrap() -> None:
    job = built(source(CODE), overrides={"args": ["--to", "$(HOME)"], "working_dir": "src"})
    assert container(job).image_uri == "python:3.12-slim"
    assert list(container(job).command[:2]) == ["python3", "-c"]
    assert unescape(container(job).command[2]) == boot.packed()
    assert list(container(job).args) == ["python", "train.py", "--to", "$$(HOME)"]
    assert plan(job) == {
        "source": "artifact",
        "job": NAME,
        "artifact": "wandb-artifact://_id/QXJ0",
        "notebook": False,
        "working_dir": "src",
        "python": "3.12.1",
    }
    assert "WANDB_DOCKER" not in variables(job)
    assert variables(job)["WANDB_API_KEY"] == KEY


@pytest.mark.parametrize(
    ("context", "working_dir", "folder"),
    [("", "", None), ("sub", "", "sub"), ("", "src", "src"), ("sub/", "./src", "sub/src"), (".", "", None)],
)
def test_a_program_starts_in_the_folder_that_its_paths_are_relative_to(
    context: str, working_dir: str, folder: str | None
) -> None:
    overrides = {"working_dir": working_dir} if working_dir else {}
    assert plan(built(source(CODE, build_context=context), overrides=overrides))["working_dir"] == folder


@pytest.mark.parametrize(
    ("context", "working_dir", "place"),
    [("", "../..", "overrides.working_dir"), ("a", "/srv", "overrides.working_dir"), ("../a", "", "build context of")],
)
def test_a_folder_outside_of_the_code_is_refused(context: str, working_dir: str, place: str) -> None:
    overrides = {"working_dir": working_dir} if working_dir else {}
    error = refused(source(CODE, build_context=context), overrides=overrides)
    assert error.message.code is Code.SPEC_VALUE
    assert place in str(error)


def test_empty_words_of_an_entry_point_are_not_arguments() -> None:
    assert list(container(built(source(CODE, entrypoint=["python", "", "train.py", ""]))).args) == [
        "python",
        "train.py",
    ]


def test_a_repository_names_its_commit_and_the_secret_of_its_host() -> None:
    private = SETTINGS.model_copy(update={"git_token_secrets": {"github.com": SECRET}})
    job = built(source(REPO), private, run=ACCOUNT)
    assert plan(job) == {
        "source": "repo",
        "job": NAME,
        "remote": "https://github.com/acme/train.git",
        "ssh": False,
        "commit": "0123abc",
        "token_secret": SECRET,
        "secretmanager": "https://secretmanager.googleapis.com",
        "notebook": False,
        "working_dir": None,
        "python": "3.11",
    }
    elsewhere = source(REPO, git={"remote": "https://github.com.evil.example/x.git", "commit": "1"})
    assert plan(built(elsewhere, private))["token_secret"] is None
    agents = private.model_copy(update={"jobs_account": AGENT})
    assert refused(source(REPO), agents).message.code is Code.SPEC_SERVICE_ACCOUNT


@pytest.mark.parametrize(
    ("remote", "url", "has_token"),
    [
        ("https://github.com/a/b", "https://github.com/a/b", True),
        (" https://GitHub.com/a/b.git\n", "https://GitHub.com/a/b.git", True),
        (f"https://user:{KEY}@github.com/a/b.git", "https://github.com/a/b.git", True),
        (f"https://{KEY}@github.com/a/b.git", "https://github.com/a/b.git", True),
        (f"https://{KEY}:x-oauth-basic@github.com:443/a/b.git", "https://github.com:443/a/b.git", True),
        (f"https://x-access-token:{KEY}@GITHUB.com/a/b.git", "https://GITHUB.com/a/b.git", True),
        (f"https://{KEY}@gitlab.com/a/b.git", f"https://{KEY}@gitlab.com/a/b.git", False),
        (f"https://user:{KEY}@gitlab.com/a/b.git", f"https://user:{KEY}@gitlab.com/a/b.git", False),
        ("https://github.com:8443/a", "https://github.com:8443/a", False),
        ("https://git.corp:8443/a", "https://git.corp:8443/a", True),
        ("https://git.corp/a", "https://git.corp/a", False),
        ("https://git.corp:443/a", "https://git.corp:443/a", False),
        ("http://github.com/a", "http://github.com/a", False),
        ("http://github.com:443/a", "http://github.com:443/a", False),
        ("http://127.0.0.1:8080/a", "http://127.0.0.1:8080/a", True),
        ("git@github.com:a/b.git", "https://github.com/a/b.git", True),
        ("git@github.com:/a/b.git", "https://github.com/a/b.git", True),
        ("github.com:a/b.git", "https://github.com/a/b.git", True),
        ("ssh://git@github.com:22/a/b", "https://github.com/a/b", True),
        ("https://github.com@evil.example/a", "https://github.com@evil.example/a", False),
        ("https://github.com.evil.example/a", "https://github.com.evil.example/a", False),
        ("git@10.0.0.5:a/b.git", "https://10.0.0.5/a/b.git", True),
        ("git@gitlab:a/b.git", "https://gitlab/a/b.git", True),
    ],
)
def test_a_repository_is_fetched_from_a_url_and_a_token_goes_to_its_own_host(
    remote: str, url: str, has_token: bool
) -> None:
    private = SETTINGS.model_copy(
        update={
            "git_token_secrets": dict.fromkeys(
                ("github.com", "10.0.0.5", "gitlab", "git.corp:8443", "127.0.0.1:8080"), SECRET
            )
        }
    )
    found = plan(built(source(REPO, private, git={"remote": remote, "commit": "1"}), private, run=ACCOUNT))
    assert (found["remote"], found["token_secret"]) == (url, SECRET if has_token else None)
    assert found["ssh"] == ("://" not in remote or remote.startswith("ssh"))


@pytest.mark.parametrize(
    "remote",
    [
        "https://evil.example#@github.com/a/b",
        "https://evil.example?x@github.com/a/b",
        "https://evil.example/?@github.com/a/b",
        "https://evil.example\\@github.com/a/b",
        "https://a@evil.example@github.com/a/b",
        f"https://u:{KEY}@[x/a/b",
        "https://github.com/a b",
        "https:///a/b",
        "git://github.com/a/b",
        "-oProxyCommand=true:a",
        f"{KEY}:x-oauth-basic@github.com/a/b",
        f"x-access-token:{KEY}@github.com/a/b",
        f"https://github.com:443:{KEY}/a/b",
        f"https://github.com/a/b?private_token={KEY}",
        f"https://github.com/a/b#{KEY}",
    ],
)
def test_an_address_that_two_programs_could_read_in_two_ways_is_refused(remote: str) -> None:
    with pytest.raises(ItemRejected, match="its remote is") as error:
        source(REPO, git={"remote": remote, "commit": "1"})
    assert error.value.message.code is Code.ARTIFACT_INVALID
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("git@ssh.dev.azure.com:v3/org/team/project", "https://dev.azure.com/org/team/_git/project"),
        ("ssh://git@ssh.dev.azure.com/v3/org/proj/repo", "https://dev.azure.com/org/proj/_git/repo"),
        ("ssh://git@ssh.dev.azure.com:22/v3/org/My%20Proj/repo", "https://dev.azure.com/org/My%20Proj/_git/repo"),
        ("org@vs-ssh.visualstudio.com:v3/org/proj/repo", "https://dev.azure.com/org/proj/_git/repo"),
        ("ssh://org@vs-ssh.visualstudio.com:22/proj/_ssh/repo", "https://org.visualstudio.com/proj/_git/repo"),
        ("ssh://org@org.visualstudio.com:22/proj/_ssh/repo", "https://org.visualstudio.com/proj/_git/repo"),
        ("ssh://git@ssh.github.com:443/acme/x.git", "https://github.com/acme/x.git"),
        ("ssh://git@SSH.GitHub.com:443/acme/x.git", "https://github.com/acme/x.git"),
        ("git@ssh.github.com:acme/x.git", "https://github.com/acme/x.git"),
        ("ssh://git@altssh.gitlab.com:443/acme/x.git", "https://gitlab.com/acme/x.git"),
        ("ssh://git@altssh.bitbucket.org:443/acme/x.git", "https://bitbucket.org/acme/x.git"),
        ("git@bitbucket.org:acme/x.git", "https://bitbucket.org/acme/x.git"),
        ("ssh://git@bitbucket.corp.example:7999/proj/repo.git", "https://bitbucket.corp.example/scm/proj/repo.git"),
        ("ssh://git@code.corp.example:7999/~ann/repo.git", "https://code.corp.example/scm/~ann/repo.git"),
        ("git@stash.corp.example:proj/repo.git", "https://stash.corp.example/scm/proj/repo.git"),
        ("ssh://git@gitlab.example.com:2222/group/x.git", "https://gitlab.example.com/group/x.git"),
        ("git@git.sr.ht:~ann/x", "https://git.sr.ht/~ann/x"),
        ("git@hf.co:ann/model", "https://huggingface.co/ann/model"),
        (
            "ssh://APKA1@git-codecommit.us-east-1.amazonaws.com/v1/repos/x",
            "https://git-codecommit.us-east-1.amazonaws.com/v1/repos/x",
        ),
        (
            "https://org@dev.azure.com/org/My%20Project/_git/repo",
            "https://org@dev.azure.com/org/My%20Project/_git/repo",
        ),
        ("git@work:acme/x.git", "https://github.com/acme/x.git"),
        ("git@github.com-work:acme/x.git", "https://github.com/acme/x.git"),
        ("ssh://git@git.corp.example:2222/team/x.git", "https://git.corp.example:8443/git/team/x.git"),
        ("ssh://git@git.corp.example/team/x.git", "https://git.corp.example/team/x.git"),
    ],
)
def test_an_address_for_ssh_becomes_one_for_https(remote: str, url: str) -> None:
    hosts = {
        "work": GitHost(url="https://github.com"),
        "github.com-work": GitHost(url="https://github.com/"),
        "git.corp.example:2222": GitHost(url="https://git.corp.example:8443/git"),
    }
    configured = SETTINGS.model_copy(update={"git_hosts": hosts})
    assert plan(built(source(REPO, configured, git={"remote": remote, "commit": "1"}), configured))["remote"] == url


@pytest.mark.parametrize(
    "remote",
    [
        *(
            "C:/Users/me/repo",
            "C:\\Users\\me\\repo",
            "d:repo",
            "\\\\server\\share\\x",
            "/srv/repository",
            "../x",
            "~/x",
            "./x",
            "x",
        ),
        *("file:///Users/me/repo", "codecommit::us-east-1://x", "ext::sh -c true", "gcrypt::git@github.com:a/b"),
        *("work:acme/x.git", "git@work:acme/x.git", "git@github.com-work:acme/x.git", "ssh://git@box/srv/x.git"),
    ],
)
def test_an_address_that_means_something_on_one_computer_alone_is_refused(remote: str) -> None:
    with pytest.raises(ItemRejected) as error:
        source(REPO, git={"remote": remote, "commit": "1"})
    assert error.value.message.code is Code.ARTIFACT_REMOTE
    assert "git_hosts" in str(error.value)


@pytest.mark.parametrize("remote", [f"{KEY}:acme/x", f"{KEY}@work:acme/x", f"{KEY}/x", f"ssh://{KEY}@box/x"])
def test_a_refusal_of_an_address_shows_no_token(remote: str) -> None:
    with pytest.raises(ItemRejected) as error:
        source(REPO, git={"remote": remote, "commit": "1"})
    assert KEY not in str(error.value)


def test_a_host_of_ones_own_has_a_token_and_archives() -> None:
    own = GitHost(
        url="https://git.corp.example/scm",
        token_secret=SECRET,
        archive="https://git.corp.example/rest/{owner}/repos/{name}/archive?at={commit}&format=tgz",
    )
    configured = SETTINGS.model_copy(update={"git_hosts": {"git.corp.example": own}})
    for remote in (
        "git@git.corp.example:team/a b.git".replace(" ", "%20"),
        "https://ann:x@git.corp.example/scm/team/a%20b",
    ):
        found = plan(
            built(source(REPO, configured, git={"remote": remote, "commit": "0123abc"}), configured, run=ACCOUNT)
        )
        assert found["token_secret"] == SECRET
        assert found["archive"] == "https://git.corp.example/rest/team/repos/a%20b/archive?at=0123abc&format=tgz"
        assert "ann" not in found["remote"]
    other_path = source(REPO, configured, git={"remote": "https://git.corp.example/x/y", "commit": "1"})
    assert plan(built(other_path, configured))["token_secret"] is None


def test_code_without_an_entry_point_is_refused() -> None:
    assert refused(source(CODE, entrypoint=[])).message.code is Code.ARTIFACT_INVALID
    assert list(container(built(source(CODE, entrypoint=[]), overrides={"entry_point": ["python", "x.py"]})).args) == [
        "python",
        "x.py",
    ]


# The key


@pytest.mark.parametrize("description", [CODE, REPO, None])
def test_a_key_that_is_kept_out_is_nowhere_in_the_job(description: dict[str, Any] | None) -> None:
    found = source(description) if description else None
    job = built(found, KEPT_OUT, run=ACCOUNT, overrides={"entry_point": ["python", "train.py"]})
    assert KEY not in str(job)
    assert plan(job)["api_key_secret"] == SETTINGS.key_secret
    assert list(container(job).args) == ["python", "train.py"]


def test_a_command_of_the_queues_own_is_wrapped_as_it_stands() -> None:
    own = pool(command=["bash", "-c"], args=["echo $(HOME)"])
    job = built(None, KEPT_OUT, spec={"worker_pool_specs": [own]}, run=ACCOUNT)
    assert list(container(job).args) == ["bash", "-c", "echo $(HOME)"]


def other(**task: Any) -> dict[str, Any]:
    """Return a pool with an image of its own."""
    given = pool(**task)
    return given | {"container_spec": given["container_spec"] | {"image_uri": f"{IMAGE}0"}}


@pytest.mark.parametrize("description", [CODE, None])
def test_every_container_reads_the_key_and_only_the_items_own_fetches_code(description: dict[str, Any] | None) -> None:
    pools = [pool(command=["a"]), other(command=["serve"], args=["--port", "1"])]
    found = source(description) if description else None
    job = built(found, KEPT_OUT, spec={"worker_pool_specs": pools}, run=ACCOUNT)
    second = job.job_spec.worker_pool_specs[1].container_spec
    found_plan = json.loads(environment.read(second.env)["VERTEX_LAUNCH_PLAN"])
    assert (found_plan["source"], found_plan["api_key_secret"]) == ("image", SETTINGS.key_secret)
    assert plan(job)["source"] == ("artifact" if found else "image")
    assert unescape(second.command[2]) == boot.packed()
    assert list(second.args) == ["serve", "--port", "1"]


def test_a_container_of_another_image_is_left_alone_where_it_has_the_key() -> None:
    job = built(source(CODE), spec={"worker_pool_specs": [pool(), other(command=["serve"])]})
    second = job.job_spec.worker_pool_specs[1].container_spec
    assert list(second.command) == ["serve"]
    assert "VERTEX_LAUNCH_PLAN" not in environment.read(second.env)
    assert environment.read(second.env)["WANDB_API_KEY"] == KEY


@pytest.mark.parametrize("pools", [[other()], [pool(command=["a"]), other()]])
def test_a_container_that_cannot_read_the_key_is_refused(pools: list[dict[str, Any]]) -> None:
    error = refused(None, KEPT_OUT, spec={"worker_pool_specs": pools}, run=ACCOUNT)
    assert error.message.code is Code.SPEC_COMMAND
    assert f"worker_pool_specs[{len(pools) - 1}].container_spec: " in str(error)


@pytest.mark.parametrize(
    "login", ["ann:ghp_1", "ghp_1", "ghp_1:x-oauth-basic", "x-access-token:ghp_1", "ghp_1:", "ghp%2D0123456789abcdef"]
)
def test_a_repository_whose_address_holds_credentials_is_warned_about(login: str) -> None:
    git = {"remote": f"https://{login}@github.com/a/b", "commit": "1"}
    private = SETTINGS.model_copy(update={"git_token_secrets": {"github.com": SECRET}})
    (warning,) = request_of(source(REPO, git=git)).warnings
    assert warning.code is Code.ARTIFACT_PASSWORD
    assert "ghp" not in warning.text
    request = request_of(source(REPO, git=git), private, run=ACCOUNT)
    assert request.warnings == ()
    assert login not in str(request.custom_job)
    assert "https://github.com/a/b" in str(request.custom_job)
    assert login not in json.dumps(readback.as_json(request_of(source(REPO, git=git))))


@pytest.mark.parametrize("user", ["git", "oauth2", "x-access-token"])
def test_a_user_that_all_share_is_not_a_secret(user: str) -> None:
    git = {"remote": f"https://{user}@github.com/a/b", "commit": "1"}
    assert request_of(source(REPO, git=git)).warnings == ()


@pytest.mark.parametrize(
    "remote",
    [f"https://{KEY}@github.com/a b", f"{KEY}@github.com", f"https://u:{KEY}/x@github.com/a", f"git://{KEY}@h/a"],
)
def test_credentials_in_an_address_that_cannot_be_used_are_not_repeated(remote: str) -> None:
    with pytest.raises(ItemRejected) as error:
        source(REPO, git={"remote": remote, "commit": "1"})
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        ({"run": ACCOUNT}, Code.SPEC_COMMAND),
        ({"overrides": {"entry_point": ["a"]}}, Code.SPEC_SERVICE_ACCOUNT),
        ({"run": ACCOUNT, "overrides": {"entry_point": ["a"]}, "_wandb_api_key": "k" * 40}, Code.SPEC_KEY),
        ({"run": ACCOUNT, "spec": {"worker_pool_specs": [PACKAGE]}}, Code.SPEC_COMMAND),
    ],
)
def test_a_key_that_cannot_be_kept_out_is_refused(spec: dict[str, Any], code: Code) -> None:
    assert refused(None, KEPT_OUT, **spec).message.code is code


@pytest.mark.parametrize(
    ("description", "spec", "advice"),
    [
        (None, {}, ("Set command", "--entry-point")),
        (None, {"spec": {"worker_pool_specs": [PACKAGE]}}, ("with a command",)),
        (PICTURE, {}, ("Set command", "--entry-point")),
        (REPO, {}, ("wandb launch --entry-point",)),
    ],
)
def test_no_remedy_advises_what_secure_mode_refuses(
    description: dict[str, Any] | None, spec: dict[str, Any], advice: tuple[str, ...]
) -> None:
    found = source(description, entrypoint=[]) if description else None
    text = str(refused(found, KEPT_OUT, run=ACCOUNT, **spec))
    assert all(one in text for one in advice)
    text = str(refused(found, KEPT_OUT.model_copy(update={"secure_mode": True}), run=ACCOUNT, **spec))
    assert not any(one in text for one in advice)


def test_a_further_attempt_brings_no_key_to_a_job_that_has_none() -> None:
    request = request_of(None, KEPT_OUT, run=ACCOUNT, overrides={"entry_point": ["a"]})
    again = retry.next_attempt(request, attempt=2, region=request.region, settings=KEPT_OUT, api_key=KEY)
    assert KEY not in str(again.custom_job)
    assert variables(again.custom_job)["WANDB_RESUME"] == "allow"


def test_types_are_those_of_the_official_client() -> None:
    assert list(SourceType) == ["image", "artifact", "repo"]
