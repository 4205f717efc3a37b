"""The bootstrap run for real: as text, in empty virtual environments, against stand-ins on loopback; nothing leaves the machine."""

from __future__ import annotations

import ast
import base64
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from local.standins.web import Handler, WebServer
from tests.support.bootstrap_world import (
    ACCOUNT,
    FAKE_WANDB,
    KEY,
    PROGRAM,
    SECRET,
    TEXT,
    Container,
    Ended,
    Google,
    Internet,
    git,
    packages,
    python,
    relocated,
    repository,
    tarball,
    virtual_environment,
    wheel,
    write,
)
from tests.support.numbers import BOOTSTRAP_PYTHONS, FULL
from vertex_launch.codes import Code
from vertex_launch.job import boot
from vertex_launch.job.container import base, requirements, source
from vertex_launch.job.container.notebook import convert, without_magics
from vertex_launch.job.container.patch import apply_patch

THIS = f"{sys.version_info[0]}.{sys.version_info[1]}"
VERSIONS = BOOTSTRAP_PYTHONS if FULL else (THIS,)
GIT_SECRET = "projects/acme/secrets/git/versions/2"
TOKEN = "glpat-a-token-for-git"
SUBMODULE_TOOLS = ("basename", "sed", "uname")  # that command of git is a script


@pytest.fixture(scope="module")
def google() -> Iterator[Google]:
    server = Google()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def internet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Internet]:
    server = Internet(tmp_path_factory.mktemp("internet"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package index of these tests."""
    folder = tmp_path_factory.mktemp("wheels")
    wheel(folder, "wandb", "0.31.0", FAKE_WANDB, ["helper"])
    wheel(folder, "helper", "2.0")
    wheel(folder, "helper", "1.0")
    wheel(folder, "model", "1.5", requires=["helper"])
    wheel(folder, "model", "1.0", requires=["helper"])
    wheel(folder, "lone_one", "1.0", requires=["missing"])
    return folder


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a virtual environment of a version, the same each time: empty, or with a ``wandb`` that saves an installation."""
    made: dict[tuple[str, bool], Path] = {}

    def environment(version: str, wandb: bool) -> Path:
        if (version, wandb) not in made:
            if python(version) is None:
                pytest.skip(f"no Python {version} on this machine")
            made[version, wandb] = virtual_environment(version, tmp_path_factory.mktemp("venv") / version)
            if wandb:
                add_wandb(made[version, wandb])
        return made[version, wandb]

    return environment


def add_wandb(environment: Path, text: str = FAKE_WANDB) -> None:
    (packages(environment) / "wandb.py").write_text(text)


@pytest.fixture
def empty(
    request: pytest.FixtureRequest, environments: Callable[..., Path], google: Google, wheels: Path, tmp_path: Path
) -> Container:
    """A container with git and an empty Python, of the version that a parameter names."""
    google.secrets = {SECRET: KEY.encode() + b"\n"}
    google.denied.clear()
    google.faults.clear()
    google.asked.clear()
    google.account = ACCOUNT
    return Container(environments(getattr(request, "param", THIS), wandb=False), tmp_path, google, wheels)


@pytest.fixture
def container(empty: Container, environments: Callable[..., Path]) -> Container:
    """A container with git and a Python that has wandb, and nothing else."""
    empty.environment = environments(THIS, wandb=True)
    return empty


@pytest.fixture
def spoilt(empty: Container, tmp_path: Path) -> Container:
    """The same, with a virtual environment of its own, into which a test may install."""
    empty.environment = virtual_environment(THIS, tmp_path / "venv")
    add_wandb(empty.environment)
    return empty


def without_python(environment: Path) -> None:
    """Leave ``python3`` in an environment, but no ``python``."""
    binaries = environment / "bin"
    base = (binaries / "python").resolve()
    for name in ("python", "python3"):
        (binaries / name).unlink()
    (binaries / "python3").symlink_to(base)


def failed(ended: Ended, step: str, code: Code, *words: str) -> None:
    """Check that it ended at a step, with a code and with all these words."""
    assert ended.status == 1
    assert ended.last.startswith(f"vertex-launch: {step}: failed [{code}]: "), ended.log
    for word in words:
        assert word in ended.last


# ---- the text


def test_the_text_can_be_handed_over() -> None:
    assert "$" not in TEXT  # Vertex AI expands dollars in commands
    assert TEXT.isascii()
    assert "$" not in boot.packed()
    assert len(boot.packed()) < 128 * 1024 // 4  # the kernel takes 128 KiB (MAX_ARG_STRLEN); no reason to come near it
    ast.parse(TEXT, feature_version=(3, 8))
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(ast.parse(TEXT))
        if isinstance(node, ast.Import)
        for name in node.names
    }
    assert imported <= sys.stdlib_module_names


def test_its_modules_share_no_name_but_those_that_they_import() -> None:
    defined: list[str] = []
    for part in boot.PARTS:
        for node in ast.parse((Path(boot.__file__).parent / part).read_text()).body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            names = [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]
            defined += [name for name in names if name]
    assert len(defined) == len(set(defined))
    assert set(boot.PARTS) == {
        "bootstrap.py",
        *(f"container/{path.name}" for path in Path(base.__file__).parent.glob("[a-z]*.py")),
    }


def test_its_codes_are_in_the_list_of_codes() -> None:
    found = set(re.findall(r"VL-[A-Z-]+", TEXT))
    assert found <= set(Code)
    assert {code for code in Code if code.startswith("VL-BOOT-")} <= found


def test_importing_it_does_nothing() -> None:
    said = subprocess.run([sys.executable, "-c", "import vertex_launch.job.bootstrap"], capture_output=True, check=True)
    assert said.stdout + said.stderr == b""


def test_what_it_knows_of_wandb_is_there() -> None:
    import wandb
    from wandb.sdk.launch.builder.templates import _wandb_bootstrap as official

    assert hasattr(wandb.Api, "_artifact_from_id")
    assert callable(wandb.Api.artifact)
    for line in (
        "torch==2.1.0+cu118",
        "torchvision==0.16.0",
        "torchaudio==2.1.0+cpu",
        "torchtext==0.1.0",
        "torch>=2",
        "torch",
    ):
        ours, theirs = requirements.TORCH.match(line), re.match(official.TORCH_DEP_REGEX, line)
        assert bool(ours) == bool(theirs)
        if ours and theirs:
            assert (ours[1] or "") == (theirs[2] or "")[1:]


# ---- a whole job


@pytest.mark.parametrize("empty", VERSIONS, indirect=True)
def test_a_code_job(empty: Container) -> None:
    ended = empty.succeed(
        {"sub/data.txt": "1"},
        variables={"WANDB_LAUNCH_FILE_OVERRIDES": '{"c.yaml": {}}'},
        args=["--epochs", "3", "a b", "$HOME"],
    )
    report = ended.report
    assert report["argv"] == ["train.py", "--epochs", "3", "a b", "$HOME"]
    assert report["key_is_right"]
    assert report["environment"]["WANDB_RUN_ID"] == "run1"
    assert report["environment"]["WANDB_LAUNCH_FILE_OVERRIDES"] == '{"c.yaml": {}}'
    assert not [name for name in report["environment"] if name.startswith("VERTEX_LAUNCH") or name == "PYTHONPATH"]
    assert report["packages"] == {}
    assert not report["wandb"]
    assert {"./train.py", "./sub/data.txt"} <= set(report["files"])
    work = Path(report["cwd"]).parent
    assert work.parent.name == "tmp"
    assert sorted(path.name for path in work.iterdir()) == ["code", "job"]
    steps = [line.split(": ")[1] for line in ended.log.splitlines() if line.startswith("vertex-launch: ")]
    assert steps == ["key", "source", "wandb", "source", "folder", "requirements", "requirements", "start"]


@pytest.mark.parametrize("empty", VERSIONS, indirect=True)
def test_a_repository_job_without_git(empty: Container, internet: Internet) -> None:
    empty.tools = ()
    empty.job(
        {"diff.patch": "diff --git a/more.txt b/more.txt\n--- a/more.txt\n+++ b/more.txt\n@@ -1 +1 @@\n-old\n+new\n"}
    )
    link = tarfile.TarInfo("acme-train-0123456/link.txt")
    link.type, link.linkname = tarfile.SYMTYPE, "more.txt"
    internet.pages["https://github.com/acme/train/archive/abc123.tar.gz"] = tarball(
        {"train.py": PROGRAM, "more.txt": "old\n"}, link
    )
    plan = empty.plan(source="repo", remote="https://github.com/acme/train.git", commit="abc123")
    ended = empty.run(plan, **internet.variables)
    assert ended.status == 0, ended.log
    assert ended.report["files"] == ["./_wandb_bootstrap_errors.json", "./link.txt", "./more.txt", "./train.py"]
    assert (Path(ended.report["cwd"]) / "link.txt").read_text() == "new\n"


def test_a_job_that_is_an_image(container: Container) -> None:
    with_key = container.plan(source="image", command=["python", "-c", PROGRAM], args=["1"])
    ended = container.run({name: with_key[name] for name in with_key if name not in ("job", "artifact", "working_dir")})
    assert ended.status == 0
    assert ended.report["argv"] == ["-c", "1"]
    assert ended.report["key_is_right"]
    assert Path(ended.report["cwd"]).name == "app"
    assert "VERTEX_LAUNCH_PLAN" not in ended.report["environment"]


def test_a_key_that_is_in_the_environment(container: Container) -> None:
    ended = container.succeed(variables={"WANDB_API_KEY": KEY}, api_key_secret=None)
    assert ended.report["key_is_right"]
    assert container.google.asked == []


def test_modules_of_the_image_and_of_the_code_are_not_taken_for_the_library(spoilt: Container) -> None:
    spoilt.job({"requirements.frozen.txt": "helper==1.0"})
    traps = dict.fromkeys(("logging.py", "pip.py", "runpy.py", "wandb/__init__.py"), "raise SystemExit('the code')")
    spoilt.code(traps)
    trap = spoilt.folder / "container-0" / "app" / "json.py"
    trap.parent.mkdir(parents=True)
    trap.write_text("raise SystemExit('the image')")
    ended = spoilt.run(spoilt.plan())
    assert ended.status == 0, ended.log
    assert ended.report["packages"] == {"helper": "1.0"}


def test_two_starts_in_one_place_do_not_meet(container: Container) -> None:
    container.job()
    container.code()
    place = container.folder / "disk" / "made when missing"
    first, second = (container.run(container.plan(), VERTEX_LAUNCH_DIR=str(place)) for _ in range(2))
    folders = {Path(ended.report["cwd"]).parent for ended in (first, second)}
    assert len(folders) == 2
    assert {folder.parent for folder in folders} == {place}


# ---- the key


WITHOUT_A_KEY: dict[str, tuple[Callable[[Google], object], int, Code, tuple[str, ...]]] = {
    "a refused account": (
        lambda google: google.denied.add(SECRET),
        3,
        Code.BOOT_SECRET,
        (ACCOUNT, SECRET, "roles/secretmanager.secretAccessor", "403"),
    ),
    "no secret": (lambda google: google.secrets.clear(), 3, Code.BOOT_SECRET, (ACCOUNT, SECRET, "404")),
    "no service account": (lambda google: setattr(google, "account", ""), 1, Code.BOOT_IDENTITY, ("service_account",)),
    "lasting faults": (lambda google: google.faults.extend([503] * 20), 5, Code.BOOT_IDENTITY, ("503",)),
}


@pytest.mark.parametrize("why", WITHOUT_A_KEY)
def test_a_job_that_gets_no_key(container: Container, why: str) -> None:
    change, requests, code, words = WITHOUT_A_KEY[why]
    change(container.google)
    failed(container.run(container.plan()), "key", code, *words)
    assert len(container.google.asked) == requests


@pytest.mark.parametrize(
    "payload", [b"", b"  \n", b"two words", b"two\nlines", "schl\u00fcssel".encode(), b"\xff\xfe\x00"]
)
def test_a_secret_without_a_key(container: Container, payload: bytes) -> None:
    container.google.secrets[SECRET] = payload
    failed(container.run(container.plan()), "key", Code.BOOT_SECRET, SECRET)


def test_a_container_that_is_not_in_google_cloud(container: Container) -> None:
    failed(container.run(container.plan(), GCE_METADATA_HOST="127.0.0.1:1"), "key", Code.BOOT_IDENTITY)


def test_transient_faults_are_retried(container: Container) -> None:
    container.google.faults = [503, 0, 429, 500]
    ended = container.run(container.plan(source="image", command=["python", "-c", PROGRAM]))
    assert ended.status == 0, ended.log
    assert ended.report["key_is_right"]


def test_the_metadata_server_is_not_asked_through_a_proxy(container: Container) -> None:
    plan = container.plan(source="image", command=["python", "-c", PROGRAM])
    plan["secretmanager"] = container.google.url.replace("127.0.0.1", "localhost")
    ended = container.run(plan, http_proxy="http://127.0.0.1:1", no_proxy="localhost")
    assert ended.status == 0, ended.log


# ---- wandb, to fetch with


def test_the_wandb_of_the_image(container: Container) -> None:
    ended = container.succeed(variables={"PIP_FIND_LINKS": "/nowhere"})
    assert "vertex-launch: wandb" not in ended.log


@pytest.mark.parametrize("module", ["raise RuntimeError('numpy is missing')", "class Api: pass\nclass Artifact: pass"])
def test_a_wandb_in_the_image_that_cannot_be_used(spoilt: Container, module: str) -> None:
    add_wandb(spoilt.environment, module)
    ended = spoilt.succeed()
    assert ("numpy is missing" if "numpy" in module else "it is too old") in ended.log


def test_the_wandb_that_is_installed_is_the_deployments(empty: Container) -> None:
    empty.wheels = shutil.copytree(empty.wheels, empty.folder / "wheels")
    wheel(empty.wheels, "wandb", "99.0", "raise SystemExit('an untested release')")
    ended = empty.succeed()
    assert f"wandb=={source.WANDB}" in ended.log


def test_a_wandb_that_no_index_has(empty: Container) -> None:
    empty.wheels = empty.folder / "wheels"
    wheel(empty.wheels, "wandb", "0.1", FAKE_WANDB)
    ended = empty.run(empty.plan())
    failed(ended, "wandb", Code.BOOT_WANDB, f"wandb=={source.WANDB}", "PIP_INDEX_URL")


def test_the_pinned_wandb_is_the_one_of_the_lock() -> None:
    lock = (Path(__file__).parents[2] / "requirements.txt").read_text()
    assert re.findall(r"^wandb==(\S+)", lock, re.MULTILINE) == [source.WANDB]


def test_an_image_without_pip(container: Container) -> None:
    container.environment = virtual_environment(THIS, container.folder / "bare", pip=False)
    failed(container.run(container.plan()), "wandb", Code.BOOT_WANDB, "no pip")


def test_no_package_index_within_reach(empty: Container) -> None:
    ended = empty.run(empty.plan(), PIP_FIND_LINKS="/nowhere")
    failed(ended, "wandb", Code.BOOT_WANDB, "No matching distribution found for wandb", "PIP_INDEX_URL")


def test_the_client_for_a_program_that_is_part_of_it(empty: Container) -> None:
    plan = empty.plan(source="image", client=True, command=["python", "-c", PROGRAM])
    ended = empty.run({name: plan[name] for name in plan if name not in ("job", "artifact", "working_dir")})
    assert ended.status == 0, ended.log
    assert ended.report["wandb"]
    lib = Path(ended.report["environment"]["PYTHONPATH"])
    assert ended.report["environment"]["PATH"].startswith(f"{lib / 'bin'}:")


def test_the_client_that_the_image_has(container: Container) -> None:
    plan = container.plan(source="image", client=True, command=["python", "-c", PROGRAM])
    program = container.environment / "bin" / "wandb"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    ended = container.run({name: plan[name] for name in plan if name not in ("job", "artifact", "working_dir")})
    assert ended.status == 0, ended.log
    assert "vertex-launch: wandb" not in ended.log


# ---- code artifacts


def test_a_job_that_is_gone(container: Container) -> None:
    container.code()
    ended = container.run(container.plan())
    failed(ended, "source", Code.BOOT_ARTIFACT, "https://wandb.example", "acme/vision/job-train:v3 not found")


def test_code_that_is_gone(container: Container) -> None:
    container.job()
    failed(container.run(container.plan()), "source", Code.BOOT_ARTIFACT, "QXJ0aWZhY3Q6MQ== was not found")


def test_code_that_has_been_deleted(container: Container) -> None:
    container.job()
    container.code({".deleted": ""})
    failed(container.run(container.plan()), "source", Code.BOOT_ARTIFACT, "QXJ0aWZhY3Q6MQ== has been deleted")


def test_code_that_is_given_by_name(container: Container) -> None:
    container.job()
    name = container.put("acme/vision/source-train:v0", {"train.py": PROGRAM})
    for given in (name, f"wandb-artifact://{name}"):
        ended = container.run(container.plan(artifact=given))
        assert ended.status == 0, ended.log


def test_a_project_that_looks_like_an_id(container: Container) -> None:
    name = container.put("acme/vision_id/job-train:v3", {"wandb-job.json": "{}", "requirements.frozen.txt": ""})
    container.code()
    ended = container.run(container.plan(job=name))
    assert ended.status == 0, ended.log


def test_a_key_that_wandb_refuses_is_not_shown(container: Container) -> None:
    container.google.secrets[SECRET] = b"another-key-that-is-a-secret-too"
    container.job()
    container.code()
    failed(container.run(container.plan()), "source", Code.BOOT_ARTIFACT, "401: the key is ***")


# ---- repositories


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A repository with three commits, the first of them with another program."""
    first = {"train.py": PROGRAM, "version": "1"}
    return repository(
        tmp_path_factory.mktemp("origin") / "train", first, {"version": "2"}, {"version": "3", "train.py": "1/0"}
    )


def test_a_repository(container: Container, origin: tuple[Path, list[str]]) -> None:
    folder, commits = origin
    container.job()
    for commit, version in zip(commits[:2], "12", strict=True):
        ended = container.run(container.plan(source="repo", remote=folder.as_uri(), commit=commit))
        assert ended.status == 0, ended.log
        assert (Path(ended.report["cwd"]) / "version").read_text() == version
    assert "full history" not in ended.log


def test_a_repository_with_pointers_to_large_files(container: Container, tmp_path: Path) -> None:
    folder, commits = repository(tmp_path / "large", {"train.py": PROGRAM, ".gitattributes": "*.bin filter=lfs\n"})
    container.job()
    ended = container.run(container.plan(source="repo", remote=folder.as_uri(), commit=commits[0]))
    assert ended.status == 0, ended.log
    assert f"vertex-launch: source: warning [{Code.BOOT_GIT}]: files in Git LFS" in ended.log


def test_a_server_that_gives_no_single_commit(container: Container, origin: tuple[Path, list[str]]) -> None:
    folder, commits = origin
    container.job()
    old = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.version", "GIT_CONFIG_VALUE_0": "0"}
    ended = container.run(container.plan(source="repo", remote=folder.as_uri(), commit=commits[1]), **old)
    assert ended.status == 0, ended.log
    assert "full history" in ended.log
    assert (Path(ended.report["cwd"]) / "version").read_text() == "2"


def test_submodules_come_along(container: Container, origin: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, commits = repository(tmp_path / "outer", {"train.py": PROGRAM})
    git(folder, "-c", "protocol.file.allow=always", "submodule", "add", "-q", origin[0].as_uri(), "inner")
    git(folder, "commit", "-q", "-m", "with a submodule")
    commits.append(git(folder, "rev-parse", "HEAD").decode().strip())
    container.job()
    container.tools += SUBMODULE_TOOLS
    plan = container.plan(source="repo", remote=folder.as_uri(), commit=commits[1])
    allowed = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "protocol.file.allow", "GIT_CONFIG_VALUE_0": "always"}
    ended = container.run(plan, **allowed)
    assert ended.status == 0, ended.log
    assert "./inner/version" in ended.report["files"]
    failed(container.run(plan), "source", Code.BOOT_GIT, "transport 'file' not allowed")


def test_a_commit_that_was_never_pushed(container: Container, origin: tuple[Path, list[str]]) -> None:
    container.job()
    ended = container.run(container.plan(source="repo", remote=origin[0].as_uri(), commit="0" * 40))
    failed(ended, "source", Code.BOOT_GIT, "0" * 40, "git_token_secrets")


@pytest.mark.parametrize(
    ("remote", "secret", "wanted"),
    [
        ("https://github.com/acme/private.git", TOKEN, ("x-access-token", TOKEN)),
        ("git@github.com:acme/private.git", TOKEN, ("x-access-token", TOKEN)),
        ("https://bitbucket.org/acme/private.git", TOKEN, ("x-token-auth", TOKEN)),
        ("https://gitlab.com/acme/group/private.git", TOKEN, ("oauth2", TOKEN)),
        ("ssh://git@git.acme.example:2222/private", TOKEN, ("oauth2", TOKEN)),
        ("https://deploy@git.acme.example/private", TOKEN, ("deploy", TOKEN)),
        ("https://git.acme.example/private", f"ann:{TOKEN}", ("ann", TOKEN)),
        (f"https://ann:{TOKEN}%40@git.acme.example/private", "", ("ann", f"{TOKEN}@")),
    ],
)
def test_a_private_repository(
    container: Container,
    internet: Internet,
    origin: tuple[Path, list[str]],
    remote: str,
    secret: str,
    wanted: tuple[str, str],
) -> None:
    folder, commits = origin
    address = re.sub(
        r"^(ssh|https)://([^/]*@)?|^git@", "https://", remote.replace("github.com:", "github.com/").replace(":2222", "")
    )
    internet.repositories = {address: folder / ".git"}
    internet.passwords = {address: wanted}
    container.job()
    plan = container.plan(source="repo", remote=remote, commit=commits[0])
    if secret:
        refused = container.run(plan, **internet.variables)
        failed(refused, "source", Code.BOOT_GIT, address, "git_token_secrets")
        container.google.secrets[GIT_SECRET] = secret.encode()
        plan["token_secret"] = GIT_SECRET
    else:
        container.google.secrets[GIT_SECRET] = wanted[1].encode()  # it is never read, but it must not be shown
    trace = container.folder / "trace"
    ended = container.run(plan, GIT_TRACE=str(trace), **internet.variables)
    assert ended.status == 0, ended.log
    assert ended.report["key_is_right"]
    assert "git fetch" in trace.read_text()
    assert TOKEN not in trace.read_text()  # these are the arguments of all that git ran
    assert TOKEN not in json.dumps(ended.report)
    assert TOKEN not in (Path(ended.report["cwd"]) / ".git" / "config").read_text()
    assert "no SSH key" in ended.log or "https://" in remote


def run_with_submodule(
    container: Container, internet: Internet, origin: tuple[Path, list[str]], url: str, reached: str
) -> Ended:
    """Run a job of a repository whose submodule has that ``url``; a host wants a password at the URL ``reached``."""
    folder, _ = repository(container.folder / "outer", {"train.py": PROGRAM})
    (folder / ".gitmodules").write_text(f'[submodule "inner"]\n\tpath = inner\n\turl = {url}\n')
    git(folder, "add", ".gitmodules")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{origin[1][0]},inner")
    git(folder, "commit", "-q", "-m", "with a submodule")
    outer, commit = "https://github.com/acme/outer", git(folder, "rev-parse", "HEAD").decode().strip()
    internet.repositories = {outer: folder / ".git", reached: origin[0] / ".git"}
    internet.passwords = {reached: ("x-access-token", TOKEN)}
    internet.seen.clear()
    container.tools += SUBMODULE_TOOLS
    container.google.secrets[GIT_SECRET] = TOKEN.encode()
    container.job()
    plan = container.plan(source="repo", remote=outer, commit=commit, token_secret=GIT_SECRET)
    return container.run(plan, **internet.variables)


def test_a_token_goes_to_its_own_host_alone(
    container: Container, internet: Internet, origin: tuple[Path, list[str]]
) -> None:
    inner = "https://git.acme.example/inner"
    ended = run_with_submodule(container, internet, origin, inner, inner)
    failed(ended, "source", Code.BOOT_GIT, "submodules of https://github.com/acme/outer")
    asked = [seen for seen in internet.seen if "git.acme.example" in seen.url]
    assert asked
    assert not [seen for seen in asked if "Authorization" in seen.headers]


@pytest.mark.parametrize("inner", ["git@github.com:acme/inner", "ssh://git@github.com/acme/inner"])
def test_submodules_on_the_same_host_need_no_ssh(
    container: Container, internet: Internet, origin: tuple[Path, list[str]], inner: str
) -> None:
    ended = run_with_submodule(container, internet, origin, inner, "https://github.com/acme/inner")
    assert ended.status == 0, ended.log
    assert "./inner/version" in ended.report["files"]


def test_a_token_does_not_go_over_plain_http(container: Container) -> None:
    container.google.secrets[GIT_SECRET] = TOKEN.encode()
    container.job()
    ended = container.run(
        container.plan(source="repo", remote="http://git.acme.example/x", commit="abc", token_secret=GIT_SECRET)
    )
    failed(ended, "source", Code.BOOT_GIT, "unencrypted", "git.acme.example")


def forms(secret: str) -> list[str]:
    """Return what a secret may look like in a log: as it is, and in the middle of base64."""
    middles = [base64.b64encode(before + secret.encode()).decode()[4:-4] for before in (b"", b"a", b"ab")]
    return [secret, *middles]


TRACES = {
    **dict.fromkeys(("GIT_TRACE", "GIT_TRACE_CURL", "GIT_CURL_VERBOSE", "GIT_TRACE_PACKET", "GIT_TRACE2"), "1"),
    "GIT_TRACE_REDACT": "0",
    "GIT_TRACE2_EVENT": "2",
    "GIT_TRACE2_ENV_VARS": "VERTEX_LAUNCH_GIT,WANDB_API_KEY,VERTEX_LAUNCH_PLAN",
}


@pytest.mark.parametrize(
    ("login", "wanted"),
    [
        (TOKEN, (TOKEN, "")),
        (f"{TOKEN}:", (TOKEN, "")),
        (f"{TOKEN}:x-oauth-basic", (TOKEN, "x-oauth-basic")),
        (f"x-access-token:{TOKEN}", ("x-access-token", TOKEN)),
        (f"ann:{TOKEN}%2B%40", ("ann", f"{TOKEN}+@")),
    ],
)
def test_credentials_in_an_address_reach_the_host_and_no_log(
    container: Container, internet: Internet, origin: tuple[Path, list[str]], login: str, wanted: tuple[str, str]
) -> None:
    folder, commits = origin
    address = "https://github.com/acme/private"
    internet.repositories, internet.passwords = {address: folder / ".git"}, {address: wanted}
    container.job()
    plan = container.plan(source="repo", remote=address.replace("//", f"//{login}@"), commit=commits[0])
    ended = container.run(plan, **internet.variables, **TRACES)
    assert ended.status == 0, ended.log
    assert "trace: built-in: git fetch" in ended.log
    refused = container.run({**plan, "remote": plan["remote"].replace("private", "absent")}, **internet.variables)
    internet.passwords = {address: ("ann", "another")}
    wrong = container.run(plan, **internet.variables, **TRACES)
    failed(wrong, "source", Code.BOOT_GIT)
    for log in (ended.log, refused.log, wrong.log):
        assert not [form for form in forms(TOKEN) if form in log]


def test_a_token_is_in_no_trace_that_bypasses_the_log(
    container: Container, internet: Internet, origin: tuple[Path, list[str]]
) -> None:
    folder, commits = origin
    address = "https://github.com/acme/private"
    internet.repositories, internet.passwords = {address: folder / ".git"}, {address: ("x-access-token", TOKEN)}
    container.google.secrets[GIT_SECRET] = TOKEN.encode()
    container.job()
    place = container.folder / "traces"
    place.mkdir()
    files = {name: str(place / name) for name in ("GIT_TRACE", "GIT_TRACE_CURL", "GIT_TRACE2_PERF", "GIT_TRACE2_EVENT")}
    plan = container.plan(source="repo", remote=address, commit=commits[0], token_secret=GIT_SECRET)
    ended = container.run(plan, **internet.variables, **{**TRACES, **files})
    assert ended.status == 0, ended.log
    text = ended.log + "".join(path.read_text() for path in place.iterdir())
    assert "git fetch" in text
    assert not [form for form in forms(TOKEN) if form in text]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Internet]:
    """Another server on loopback: the same host, another port."""
    (tmp_path / "elsewhere").mkdir()
    server = Internet(tmp_path / "elsewhere")
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("way", ["a submodule", "a redirect"])
def test_a_token_goes_to_its_own_port_alone(
    container: Container, internet: Internet, elsewhere: Internet, origin: tuple[Path, list[str]], way: str
) -> None:
    inner = f"{elsewhere.url}/inner"
    elsewhere.repositories = {"https:///inner": origin[0] / ".git"}
    if way == "a submodule":
        elsewhere.passwords = {"https:///inner": ("oauth2", TOKEN)}
    folder, _ = repository(container.folder / "outer", {"train.py": PROGRAM})
    (folder / ".gitmodules").write_text(f'[submodule "inner"]\n\tpath = inner\n\turl = {inner}\n')
    git(folder, "add", ".gitmodules")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{origin[1][0]},inner")
    git(folder, "commit", "-q", "-m", "with a submodule")
    commit = git(folder, "rev-parse", "HEAD").decode().strip()
    internet.repositories = {"https:///outer": folder / ".git"}
    internet.passwords = {"https:///outer": ("oauth2", TOKEN)}
    refs = "info/refs?service=git-upload-pack"
    internet.pages = {f"https:///moved/{refs}": f"{inner}/{refs}"}
    internet.seen.clear()
    container.tools += SUBMODULE_TOOLS
    container.google.secrets[GIT_SECRET] = TOKEN.encode()
    container.job()
    remote = f"{internet.url}/{'outer' if way == 'a submodule' else 'moved'}"
    commit = commit if way == "a submodule" else origin[1][0]
    plan = container.plan(source="repo", remote=remote, commit=commit, token_secret=GIT_SECRET)
    ended = container.run(plan, **TRACES)
    assert elsewhere.seen
    assert not [seen for seen in elsewhere.seen if "Authorization" in seen.headers]
    assert not [form for form in forms(TOKEN) if form in ended.log]
    if way == "a submodule":
        assert [seen for seen in internet.seen if "Authorization" in seen.headers]
        failed(ended, "source", Code.BOOT_GIT, "submodules of")
    else:
        assert ended.status == 0, ended.log


def test_a_control_character_in_credentials_is_refused(container: Container) -> None:
    container.job()
    remote = f"https://{TOKEN}%0Ahost=evil.example:x@github.com/a/b"
    ended = container.run(container.plan(source="repo", remote=remote, commit="abc"))
    failed(ended, "source", Code.BOOT_GIT, "control character")
    assert TOKEN not in ended.log


def test_credentials_of_a_submodule_are_not_shown(
    container: Container, internet: Internet, origin: tuple[Path, list[str]]
) -> None:
    ended = run_with_submodule(
        container, internet, origin, f"https://{OTHER}@git.acme.example/none", "https://github.com/x"
    )
    failed(ended, "source", Code.BOOT_GIT, "submodules of")
    assert OTHER not in ended.log


OTHER = "ghp_another0123456789"


def test_a_token_that_may_not_be_read(container: Container) -> None:
    container.google.denied.add(GIT_SECRET)
    container.job()
    plan = container.plan(source="repo", remote="https://github.com/a/b", commit="abc", token_secret=GIT_SECRET)
    failed(container.run(plan), "key", Code.BOOT_SECRET, ACCOUNT, GIT_SECRET)


@pytest.mark.parametrize(
    ("remote", "token", "address", "header"),
    [
        ("https://github.com/acme/train.git", "", "https://github.com/acme/train/archive/abc.tar.gz", None),
        ("git@github.com:acme/train.git", TOKEN, "https://api.github.com/repos/acme/train/tarball/abc", "Bearer"),
        (
            "https://gitlab.com/acme/group/train",
            TOKEN,
            "https://gitlab.com/api/v4/projects/acme%2Fgroup%2Ftrain/repository/archive.tar.gz?sha=abc",
            "PRIVATE-TOKEN",
        ),
        ("https://bitbucket.org/acme/train.git/", TOKEN, "https://bitbucket.org/acme/train/get/abc.tar.gz", "Bearer"),
        ("git@bitbucket.org:acme/train", f"ann:{TOKEN}", "https://bitbucket.org/acme/train/get/abc.tar.gz", "Basic"),
    ],
)
def test_archives_of_the_known_hosts(
    container: Container, internet: Internet, remote: str, token: str, address: str, header: str | None
) -> None:
    container.tools = ()
    container.job()
    elsewhere = "https://codeload.github.com/acme/train/legacy.tar.gz/abc"
    internet.pages |= {address: elsewhere, elsewhere: tarball({"train.py": PROGRAM, ".gitmodules": ""})}
    internet.seen.clear()
    if token:
        container.google.secrets[GIT_SECRET] = token.encode()
    plan = container.plan(source="repo", remote=remote, commit="abc", token_secret=GIT_SECRET if token else None)
    ended = container.run(plan, **internet.variables)
    assert ended.status == 0, ended.log
    first, second = internet.seen
    given = (
        first.headers.get("Private-Token") or first.headers.get("PRIVATE-TOKEN") or first.headers.get("Authorization")
    )
    basic = "Basic " + base64.b64encode(token.encode()).decode()
    assert given == {None: None, "Bearer": f"Bearer {TOKEN}", "PRIVATE-TOKEN": TOKEN, "Basic": basic}[header]
    assert second.url == elsewhere
    assert TOKEN not in str(second.headers)
    assert f"warning [{Code.BOOT_ARCHIVE}]: an archive has no submodules" in ended.log


@pytest.mark.parametrize(
    ("page", "words"),
    [
        (None, ("/acme/train/archive/abc.tar.gz", "404", "git_token_secrets")),
        (b"<html>Sign in</html>", ("abc.tar.gz",)),
        (tarball({"train.py": os.urandom(50_000)})[:20_000], ("abc.tar.gz",)),
    ],
    ids=["nothing", "a page", "half an archive"],
)
def test_an_archive_that_cannot_be_used(
    container: Container, internet: Internet, page: bytes | None, words: tuple[str, ...]
) -> None:
    container.tools = ()
    container.job()
    address = "https://github.com/acme/train/archive/abc.tar.gz"
    internet.pages = {address: page} if page else {}
    plan = container.plan(source="repo", remote="https://github.com/acme/train", commit="abc")
    failed(container.run(plan, **internet.variables), "source", Code.BOOT_ARCHIVE, *words)


def test_an_unknown_host_needs_git(container: Container) -> None:
    container.tools = ()
    container.job()
    ended = container.run(container.plan(source="repo", remote="https://git.acme.example/x", commit="abc"))
    failed(ended, "source", Code.BOOT_GIT, "no git", "git.acme.example")


def member(name: str, link: str = "", kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = (kind if link or kind != tarfile.SYMTYPE else tarfile.REGTYPE), link
    return info


HOSTILE = {
    "up": [member("top/../../evil")],
    "further up": [member("../../../evil")],
    "a link up": [member("top/a", "../evil")],
    "a link to a folder outside": [member("top/a", "/tmp")],
    "by way of links": [member("top/a", "."), member("top/a/b", ".."), member("top/a/b/evil")],
    "a hard link": [member("top/passwd", "/etc/passwd", tarfile.LNKTYPE)],
    "a device": [member("top/null", kind=tarfile.CHRTYPE)],
    "a pipe": [member("top/pipe", kind=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("way", HOSTILE)
def test_archives_that_lead_out_of_the_code(container: Container, internet: Internet, way: str) -> None:
    container.tools = ()
    container.job()
    internet.pages["https://github.com/acme/evil/archive/abc.tar.gz"] = tarball(
        {"train.py": PROGRAM}, *HOSTILE[way], top="top"
    )
    plan = container.plan(source="repo", remote="https://github.com/acme/evil", commit="abc")
    ended = container.run(plan, **internet.variables)
    is_special = way.startswith("a ") and "link " not in way
    failed(ended, "source", Code.BOOT_ARCHIVE, "is not a file" if is_special else "is outside of the code")
    assert "pushed" not in ended.last
    assert not list(container.folder.rglob("evil"))


@pytest.mark.parametrize("way", HOSTILE)
def test_archives_without_the_filter_of_newer_pythons(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(tarfile, "data_filter")
    monkeypatch.setattr(tarfile.TarFile, "extraction_filter", staticmethod(lambda info, _: info), raising=False)
    (tmp_path / "archive").write_bytes(tarball({"train.py": PROGRAM}, *HOSTILE[way], top="top"))
    code = tmp_path / "work" / "code"
    code.mkdir(parents=True)
    with pytest.raises(base.Failed):
        source.unpack(tmp_path / "archive", code)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "work"]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["code"]


# ---- diff.patch


Files = Mapping[str, str | bytes]


def changed(
    before: Files, after: Files, folder: Path, *options: str, configured: Sequence[str] = ()
) -> tuple[Path, bytes, Path]:
    """Commit files and change them; return a copy of them as they were, git's diff, and the changed ones.

    Afterwards programs in shell can be executed.
    """
    work, _ = repository(folder / "work", before)
    copy = folder / "copy"
    shutil.copytree(work, copy, ignore=shutil.ignore_patterns(".git"))
    for name in before:
        (work / name).unlink()
    write(work, after)
    for program in work.glob("*.sh"):
        program.chmod(0o755)
    git(work, "add", "-A")
    return (
        copy,
        git(
            work,
            *(word for option in configured for word in ("-c", option)),
            "diff",
            "HEAD",
            "--submodule=diff",
            *options,
        ),
        work,
    )


def tree(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(folder)): (path.stat().st_mode & 0o100, path.read_bytes()) for path in files}


LINES = "".join(f"line {number}\n" for number in range(1, 31))
NAMES = ("two words", 'a"quote', "gr\u00fc\u00dfe.txt", "tab\there", "back\\slash", " b/a ")
CHANGES: dict[str, tuple[Files, Files]] = {
    "lines": ({"a": LINES}, {"a": LINES.replace("line 2\n", "").replace("line 25\n", "x\ny\n")}),
    "first and last": ({"a": LINES}, {"a": f"0\n{LINES}31\n"}),
    "no newline at the end": ({"a": LINES + "end"}, {"a": LINES + "END"}),
    "a newline less": ({"a": LINES}, {"a": LINES.rstrip("\n")}),
    "a newline more": ({"a": LINES.rstrip("\n")}, {"a": LINES}),
    "a new file": ({}, {"new/folder/b.py": "1\n2\n"}),
    "a new empty file": ({}, {"b/__init__.py": ""}),
    "a file emptied": ({"a": "1\n"}, {"a": ""}),
    "an empty file filled": ({"a": ""}, {"a": "1\n"}),
    "a file deleted": ({"a": "1\n", "b": "2\n"}, {"b": "2\n"}),
    "an empty file deleted": ({"a": "", "b": "2\n"}, {"b": "2\n"}),
    "a file moved": ({"a": LINES}, {"b c": LINES}),
    "a file moved and changed": ({"a": LINES}, {"d/b": LINES.replace("line 3\n", "three\n")}),
    "a mode": ({"run.sh": "true\n"}, {"run.sh": "true\n"}),
    "a mode and lines": ({"run.sh": "true\n"}, {"run.sh": "false\n"}),
    "a new program": ({}, {"run.sh": "true\n"}),
    "names": (dict.fromkeys(NAMES, "1\n"), dict.fromkeys(NAMES, "2\n")),
    "names of empty files": ({}, dict.fromkeys(NAMES, "")),
    "odd names moved": ({"gr\u00fc\u00dfe": LINES}, {"\u00e9t\u00e9 2": LINES}),
    "line ends of Windows": ({"a": "1\r\n2\r\n"}, {"a": b"1\r\n2\r3\r\n"}),
    "bytes that are no text": ({"a": b"\xff\xfe\n1\n"}, {"a": b"\xff\xfd\n1\n"}),
    "what looks like a diff": (
        {"a": "diff --git a/x b/x\n@@ -1 +1 @@\n--- a/x\n"},
        {"a": "@@ -2 +2 @@\n+++ b/x\ndiff --git a/y b/y\n-- \n"},
    ),
    "nothing": ({"a": "1\n"}, {"a": "1\n"}),
}


@pytest.fixture(params=["git", "no git"])
def tools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the image has git."""
    if request.param == "no git":
        monkeypatch.setattr(shutil, "which", lambda _: None)
    return str(request.param)


@pytest.mark.parametrize("what", CHANGES)
def test_a_patch_does_what_git_did(tmp_path: Path, what: str, tools: str) -> None:
    copy, patch, work = changed(*CHANGES[what], tmp_path)
    for text in (patch, patch.rstrip(b"\n")):  # W&B's client may trim it
        here = tmp_path / f"here-{len(text)}"
        shutil.copytree(copy, here, dirs_exist_ok=True)
        apply_patch(text, here)
        assert tree(here) == tree(work)


CONFIGURED = {
    "nothing": (),
    "diff.mnemonicPrefix": ("diff.mnemonicPrefix=true",),
    "diff.noprefix": ("diff.noprefix=true",),
    "prefixes of one's own": ("diff.srcPrefix=before/it/", "diff.dstPrefix=now-"),
    "one prefix": ("diff.dstPrefix=",),
    "color.ui": ("color.ui=always",),
    "colours of one's own": (
        "color.diff=always",
        "color.diff.meta=normal",
        "color.diff.new=bold magenta ul",
        "color.diff.old=#ff0000",
    ),
    "colours of white space": ("color.ui=always", "diff.wsErrorHighlight=all", "diff.colorMoved=zebra"),
    "core.quotePath": ("core.quotePath=false",),
    "no context": ("diff.context=0",),
    "copies": ("diff.renames=copies",),
    "no renames": ("diff.renames=false",),
    "empty lines": ("diff.suppressBlankEmpty=true",),
    "whole hashes": ("core.abbrev=no",),
    "all of them": ("diff.noprefix=true", "color.ui=always", "core.quotePath=false", "diff.context=1"),
}
OPTIONS = {  # of which a git before 2.45 has no configuration
    "prefixes of one's own": ("--src-prefix=before/it/", "--dst-prefix=now-"),
    "one prefix": ("--dst-prefix=",),
}
BEFORE: Files = {
    "train.py": LINES + "\n\nend\n",
    "a/train.py": "another\n",
    "cfg/a.yaml": "x: 1\n",
    "old.txt": LINES,
    "gr\u00fc\u00dfe 1.txt": "1\r\n2\r\n",
    "run.sh": "true\n",
    "gone": "1\n",
    "white": "1  \n",
    "b/__init__.py": "",
}
AFTER: Files = {
    **{name: BEFORE[name] for name in ("a/train.py", "run.sh")},
    "train.py": LINES.replace("line 3\n", "three\n") + "\n\nend",
    "cfg/a.yaml": "x: 2\n",
    "new name.txt": LINES.replace("line 9\n", ""),
    "gr\u00fc\u00dfe 1.txt": "1\r\n3\r\n",
    "white": "2\t \n",
    "more/added.py": "n\n",
    "b/c/__init__.py": "",
}


@pytest.mark.parametrize("after", [AFTER, {**BEFORE, "only/new.py": "1\n"}, BEFORE], ids=["much", "one new", "a mode"])
@pytest.mark.parametrize("how", CONFIGURED)
def test_a_patch_of_an_odd_git(tmp_path: Path, how: str, after: Files, tools: str) -> None:
    copy, patch, work = changed(BEFORE, after, tmp_path, *OPTIONS.get(how, ()), configured=CONFIGURED[how])
    apply_patch(patch, copy)
    assert tree(copy) == tree(work)


def test_a_patch_in_the_line_ends_of_windows(tmp_path: Path, tools: str) -> None:
    windows = "gr\u00fc\u00dfe 1.txt"
    before = {name: text for name, text in BEFORE.items() if name != windows}
    after = {name: text for name, text in AFTER.items() if name != windows}
    copy, patch, work = changed(before, after, tmp_path)
    apply_patch(patch.replace(b"\n", b"\r\n"), copy)
    assert tree(copy) == tree(work)


def test_a_patch_of_files_whose_line_ends_git_changes(tmp_path: Path, tools: str) -> None:
    attributes = {".gitattributes": "*.txt text eol=crlf\n"}
    work, _ = repository(tmp_path / "work", {**attributes, "a.txt": "1\r\n2\r\n"})
    copy = shutil.copytree(work, tmp_path / "copy")
    write(work, {"a.txt": "1\r\n3\r\n4\r\n"})
    apply_patch(git(work, "diff", "HEAD"), copy)
    assert tree(copy) == tree(work)


def test_a_patch_of_one_folder(tmp_path: Path, tools: str, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    before = {"train.py": "1\n", "src/deep/train.py": "2\n", "other": "1\n"}
    after = {"train.py": "1\n", "src/deep/train.py": "3\n", "src/deep/new.py": "4\n", "other": "2\n"}
    copy, patch, work = changed(before, after, tmp_path, "--relative=src/deep")
    apply_patch(patch, copy)
    assert tree(copy) == {**tree(work), "other": (0, b"1\n")}
    assert re.search(rb"warning .VL-BOOT-PATCH.: .*src/deep.*diff.relative", capfdbinary.readouterr().out)


def test_a_patch_of_a_submodule(tmp_path: Path, tools: str) -> None:
    inner, commits = repository(tmp_path / "inner", {"x": LINES, "sub/y": "1\n"}, {"x": LINES + "31\n"})
    outer, _ = repository(tmp_path / "outer", {"train.py": "1\n"})
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", inner.as_uri(), "inner")
    git(outer / "inner", "checkout", "-q", commits[0])
    git(outer, "add", "-A")
    git(outer, "commit", "-q", "-m", "with a submodule")
    copy = shutil.copytree(outer, tmp_path / "copy")
    git(outer / "inner", "checkout", "-q", commits[1])
    write(outer, {"train.py": "2\n", "inner/sub/y": "2\n"})
    apply_patch(git(outer, "-c", "diff.mnemonicPrefix=true", "diff", "HEAD", "--submodule=diff"), copy)
    assert tree(copy) == tree(outer)
    old = git(outer, "diff", "HEAD", "--submodule=short")
    with pytest.raises(base.Failed, match=r"inner is a submodule at another commit.*push"):
        apply_patch(old, copy)


@pytest.mark.parametrize("seed", range(8))
def test_patches_of_random_changes(tmp_path: Path, seed: int, tools: str) -> None:
    chance = random.Random(seed)
    before = {f"{n}.txt": "\n".join(chance.choices(["", "a", "b", "c"], k=chance.randrange(80))) for n in range(12)}
    after = {}
    for name, text in before.items():
        lines = text.split("\n")
        for _ in range(chance.randrange(5)):
            where = chance.randrange(len(lines) + 1)
            lines[where : where + chance.randrange(3)] = [f"new {chance.random()}"] * chance.randrange(3)
        after[name] = "\n".join(lines)
    copy, patch, work = changed(before, after, tmp_path, f"-U{seed % 4}")  # lines of context
    apply_patch(patch, copy)
    assert tree(copy) == tree(work)


def test_a_patch_without_the_content_of_a_binary_file_ends_the_job(tmp_path: Path, tools: str) -> None:
    copy, patch, work = changed({"model.bin": b"\0\1", "a": "1\n"}, {"model.bin": b"\0\2", "a": "2\n"}, tmp_path)
    with pytest.raises(base.Failed, match=r"model.bin had changed, but it is binary.*push") as error:
        apply_patch(patch, copy)
    assert error.value.code == Code.BOOT_PATCH
    assert (copy / "a").read_text() == "1\n"
    if tools == "git":
        apply_patch(git(work, "diff", "--binary", "HEAD"), copy)
        assert tree(copy) == tree(work)


def test_binary_files_that_are_deleted_or_made_anew(tmp_path: Path, tools: str) -> None:
    before: Files = {"model.bin": b"\0\1", "a/__pycache__/b.pyc": b"\0\1", "x": "1\n"}
    copy, patch, _ = changed(before, {"a/__pycache__/b.pyc": b"\0\2", "x": "2\n"}, tmp_path)
    base.different.clear()
    apply_patch(patch, copy)
    assert tree(copy) == {"a/__pycache__/b.pyc": (0, b"\0\1"), "x": (0, b"2\n")}
    assert len(base.different) == 1


TOOLS = {
    "an external diff": {"diff.external": 'sh -c \'echo "$1 --- Python"; echo " 2 b   2 B"\' --'},
    "another diff": {"diff.external": 'sh -c \'diff -u "$2" "$5" || true\' --'},
    "a driver": {"diff.books.command": "sh -c 'echo nbdiff $1' --"},
    "a converter": {"diff.books.textconv": "sed s/^/converted/"},
}


@pytest.mark.parametrize("tool", TOOLS)
def test_a_patch_that_another_program_wrote_ends_the_job(tmp_path: Path, tool: str, tools: str) -> None:
    before: dict[str, str | bytes] = {".gitattributes": "*.ipynb diff=books\n", "a.ipynb": "1\n", "z.py": "1\n"}
    after: Files = {".gitattributes": "*.ipynb diff=books\n", "a.ipynb": "2\n", "b.ipynb": "3\n", "z.py": "2\n"}
    options = [f"{name}={value}" for name, value in TOOLS[tool].items()]
    copy, patch, _ = changed(before, after, tmp_path, configured=options)
    assert b"2" in patch
    with pytest.raises(base.Failed, match=r"git config|does not fit") as error:
        apply_patch(patch, copy)
    assert error.value.code == Code.BOOT_PATCH
    assert (copy / "a.ipynb").read_text() == "1\n"
    if tool == "a converter":  # what is new fits in any form
        copy, patch, _ = changed(before | {"a.ipynb": "2\n"}, after, tmp_path / "new", configured=options)
        with pytest.raises(base.Failed, match=r"b.ipynb is not what .*git config"):
            apply_patch(patch, copy)


@pytest.mark.parametrize(
    ("patch", "word"),
    [
        ("diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1 @@\n-another\n+2\n", "does not fit"),
        ("diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1,2 +1 @@\n 1\n-2\n", "does not fit"),
        ("diff --git a/b b/b\n--- a/b\n+++ b/b\n@@ -1 +1 @@\n-1\n+2\n", "does not fit"),
        (
            "diff --git a/../x b/../x\nnew file mode 100644\n--- /dev/null\n+++ b/../x\n@@ -0,0 +1 @@\n+1\n",
            "outside of the code",
        ),
        ("diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1 +1,3 @@\n-1\n+2\n+3\n", "incomplete"),
        ("* Unmerged path a\n", "line 1"),
        ("diff --git a/a b/a\n", "incomplete"),
        ("diff --git a/a b/a\nindex d00491f..0cfbf08 100644\n--- a/a\n+++ b/a\n", "incomplete"),
        ("Submodule in 7ba4f2c...53e0d29 (commits not present)\n", "submodule"),
        ("diff --git a/a b/a\nold mode 100644\nnew mode 100755\nsome words\n", "line 4"),
        ("diff --git a/a b/b\n--- a/a\n+++ b/b\n@@ -1 +1 @@\n-1\n+2\n", "common prefix"),
    ],
)
def test_patches_that_do_not_fit(tmp_path: Path, patch: str, word: str, tools: str) -> None:
    write(tmp_path / "code", {"a": "1\n"})
    with pytest.raises(base.Failed, match=word):
        apply_patch(patch.encode(), tmp_path / "code")
    assert tree(tmp_path / "code") == {"a": (0, b"1\n")}
    assert not (tmp_path / "x").exists()


LINKS: dict[str, Callable[[Path], object]] = {
    "changed": lambda work: (work / "other").replace(work / "link"),
    "new": lambda work: (work / "another").symlink_to("b"),
    "moved": lambda work: (work / "link").rename(work / "moved"),
    "deleted": lambda work: (work / "link").unlink(),
}


@pytest.mark.parametrize("what", LINKS)
def test_symbolic_links_in_a_patch(tmp_path: Path, what: str, tools: str) -> None:
    work, _ = repository(tmp_path / "work", {"a": "1\n", "b": "2\n"})
    (work / "link").symlink_to("a")
    (work / "other").symlink_to("b")
    git(work, "add", "-A")
    git(work, "commit", "-q", "-m", "with a link")
    copy = shutil.copytree(work, tmp_path / "copy", symlinks=True, ignore=shutil.ignore_patterns(".git"))
    before = tree(copy)
    LINKS[what](work)
    git(work, "add", "-A")
    patch = git(work, "diff", "HEAD", "-M")
    if tools == "git":
        apply_patch(patch, copy)
        assert tree(copy) == tree(work)
        return
    with pytest.raises(base.Failed, match=r"symbolic link.* commit and push the change") as error:
        apply_patch(patch, copy)
    assert "does not fit" not in str(error.value)
    assert tree(copy) == before


@pytest.mark.parametrize("name", ["link", "folder/a", "none/a"])
def test_nothing_is_patched_by_way_of_links(tmp_path: Path, name: str, tools: str) -> None:
    write(tmp_path / "code", {"a": "1\n"})
    for link, goal in (("link", "a"), ("folder", "."), ("none", "missing")):
        (tmp_path / "code" / link).symlink_to(goal)
    patch = f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-1\n+2\n"
    with pytest.raises(base.Failed, match=r"symbolic link|does not fit|common prefix"):
        apply_patch(patch.encode(), tmp_path / "code")
    assert (tmp_path / "code" / "a").read_text() == "1\n"


def test_a_patch_that_does_not_fit_fails_the_job(container: Container, origin: tuple[Path, list[str]]) -> None:
    container.job({"diff.patch": "diff --git a/version b/version\n--- a/version\n+++ b/version\n@@ -1 +1 @@\n-9\n+2\n"})
    ended = container.run(container.plan(source="repo", remote=origin[0].as_uri(), commit=origin[1][0]))
    failed(ended, "patch", Code.BOOT_PATCH, "version")


# ---- requirements


def test_a_frozen_list(spoilt: Container) -> None:
    frozen = "helper==1.0\nlone_one==1.0\nmodel==7.0\nwandb==0.31.0.dev1\nabsent==1.0\ngone @ file:///build/gone\n"
    ended = spoilt.succeed({"_wandb_bootstrap_errors.json": "{}"}, frozen=frozen)
    # lone_one needs `missing`, which no index has: of a frozen list dependencies are not asked for.
    assert ended.report["packages"] == {"helper": "1.0", "lone_one": "1.0", "wandb": "0.31.0"}
    lost = {"model==7.0", "absent==1.0", "gone @ file:///build/gone"}
    assert set(json.loads((Path(ended.report["cwd"]) / "_wandb_bootstrap_errors.json").read_text())["pip"]) == lost
    warning = next(line for line in ended.log.splitlines() if "failed to install: " in line)
    assert warning.startswith("vertex-launch: requirements: ")
    assert all(name in warning for name in lost)
    assert "PYTHONUSERBASE" not in ended.report["environment"]  # where packages can be written nothing else changes
    assert ended.report["environment"]["PATH"].startswith(f"{spoilt.environment}/bin:")


def test_what_is_installed_is_not_installed_again(spoilt: Container) -> None:
    spoilt.job({"requirements.frozen.txt": "helper==1.0\nmodel==1.0\n"})
    spoilt.code()
    spoilt.run(spoilt.plan())
    module = packages(spoilt.environment) / "helper" / "__init__.py"
    before = module.stat().st_ino, module.stat().st_mtime_ns
    ended = spoilt.run(spoilt.plan())
    assert ended.report["packages"] == {"helper": "1.0", "model": "1.0"}
    assert (module.stat().st_ino, module.stat().st_mtime_ns) == before
    requirements = ended.log.partition("vertex-launch: requirements")[2]
    assert "Successfully installed" not in requirements


@pytest.mark.parametrize("where", ["", "sub/"])
def test_code_with_requirements_of_its_own(spoilt: Container, where: str) -> None:
    frozen = "Model == 1.0\nhelper==1.0\nabsent==1.0\nlone-one==1.0\nwandb==0.31.0\n"
    own = "# ours\nmodel[all]>=0.5 ; python_version >= '3.8'  # frozen\n\n-r more.txt\n--no-color\nabsent\n"
    ended = spoilt.succeed(
        {f"{where}requirements.txt": own, f"{where}more.txt": "WANDB \\\n  >=0.1", "sub/train.py": PROGRAM},
        frozen=frozen,
        working_dir="sub",
    )
    # What it names comes in the frozen version; what that needs, as pip finds it.
    assert ended.report["packages"] == {"helper": "2.0", "model": "1.0", "wandb": "0.31.0"}
    assert "failed to install: absent==1.0;" in ended.log


def test_a_list_that_is_not_frozen_gets_its_dependencies(spoilt: Container) -> None:
    assert spoilt.succeed(frozen="model>=1\nwandb").report["packages"] == {
        "helper": "2.0",
        "model": "1.5",
        "wandb": "0.31.0",
    }


def test_what_pip_takes_in_a_file_alone(spoilt: Container) -> None:
    own = (
        "--require-hashes\n"
        "helper==1.0 \\\n    --hash=sha256:0000 \\\n    --hash=sha256:1111\n"
        "--find-links \x24{WHEELS}\n"
        "model==\x24{MODEL_VERSION} --hash=sha256:2222\n"
        "lone-one==\x24{NOT_SET}\n"
    )
    ended = spoilt.succeed(
        {"requirements.txt": own},
        variables={"PIP_FIND_LINKS": "", "WHEELS": str(spoilt.wheels), "MODEL_VERSION": "1.0"},
    )
    assert ended.report["packages"] == {"helper": "1.0", "model": "1.0"}
    assert "failed to install: lone-one==\x24{NOT_SET};" in ended.log


def test_a_list_that_refers_to_itself(spoilt: Container) -> None:
    ended = spoilt.succeed({"requirements.txt": "-r more.txt\n", "more.txt": "helper==1.0\n-r requirements.txt\n"})
    assert ended.report["packages"] == {"helper": "1.0"}


@pytest.mark.parametrize("code", ["utf-16", "utf-8-sig"])
def test_lists_as_windows_writes_them(spoilt: Container, code: str) -> None:
    ended = spoilt.succeed({"requirements.txt": "helper==1.0 \\\r\n --hash=sha256:0\r\nmodel==1.0\r\n".encode(code)})
    assert ended.report["packages"] == {"helper": "1.0", "model": "1.0"}


def test_an_option_that_cannot_be_read(spoilt: Container) -> None:
    ended = spoilt.succeed({"requirements.txt": "-f /it's/here\nhelper==1.0\n"})
    assert ended.report["packages"] == {"helper": "1.0"}
    assert (
        f"requirements: warning [{Code.BOOT_REQUIREMENTS}]: skipped: -f /it's/here (No closing quotation)" in ended.log
    )


def test_nothing_that_goes_wrong_with_requirements_holds_up_the_program(spoilt: Container) -> None:
    ended = spoilt.succeed({"_wandb_bootstrap_errors.json/a": "a folder of that name"}, frozen="helper==1.0\n")
    assert f"requirements: warning [{Code.BOOT_REQUIREMENTS}]: not installed (IsADirectoryError" in ended.log


EDITABLE = {
    "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "builder"\nbackend-path = ["."]\n',
    "builder.py": "def build_editable(*_):\n    raise SystemExit('built in ' + __file__)\nbuild_wheel = build_editable\n",
}


@pytest.mark.parametrize(("place", "found"), [("sub", "sub/own"), ("", "own")])
def test_paths_in_a_nested_list(spoilt: Container, place: str, found: str) -> None:
    shutil.copytree(spoilt.wheels, spoilt.store / "id-QXJ0aWZhY3Q6MQ==" / "sub" / "the wheels")
    spoilt.job()
    files = {"requirements.txt": "-r sub/more.txt\n", "sub/limits.txt": "helper<2\n"}
    files |= {"sub/more.txt": "-f ./the wheels\n-c limits.txt\n-c none.txt\n-e ./own\nhelper\n"}
    files |= {str(Path(place, "own", name)): text for name, text in EDITABLE.items()}
    spoilt.code(files)
    ended = spoilt.run(spoilt.plan(), PIP_FIND_LINKS="")
    assert ended.status == 0, ended.log
    assert ended.report["packages"] == {"helper": "1.0"}, ended.log
    assert f"built in {ended.report['cwd']}/{found}/" in ended.log
    assert f"warning [{Code.BOOT_REQUIREMENTS}]: none.txt does not exist" in ended.log


def test_a_list_on_the_web(spoilt: Container, google: Google) -> None:
    ended = spoilt.succeed(
        {"requirements.txt": f"-r {google.url}/list.txt\nhelper==1.0\n"}, variables={"PIP_RETRIES": "0"}
    )
    assert "/list.txt" in google.asked
    assert ended.report["packages"] == {"helper": "1.0"}
    assert f"failed to install: -r {google.url}/list.txt;" in ended.log


def test_what_needs_git_does_not_hold_up_the_rest(spoilt: Container) -> None:
    spoilt.tools = ()
    lost = ["-e git+https://git.acme.example/tool@abc#egg=tool", "other @ git+https://git.acme.example/other"]
    ended = spoilt.succeed(frozen="\n".join(["helper==1.0", lost[0], "model==1.0", lost[1]]))
    assert ended.report["packages"] == {"helper": "1.0", "model": "1.0"}
    assert f"failed to install: {', '.join(lost)};" in ended.log
    assert ended.log.count("Successfully installed") == 1


def test_a_package_that_cannot_be_built_is_found_at_once(spoilt: Container, internet: Internet, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.0.tar.gz"
    broken.write_bytes(tarball({"pyproject.toml": '[build-system]\nrequires = ["absent"]\n'}, top="broken-1.0"))
    whole = [wheel(tmp_path / "own", name, "1.0") for name in ("helper", "model")]
    internet.publish("https://pypi.org/simple/", broken, *whole)
    spoilt.job({"requirements.frozen.txt": "helper==1.0\nbroken==1.0\nmodel==1.0\n"})
    spoilt.code()
    ended = spoilt.run(spoilt.plan(), **internet.variables, PIP_NO_INDEX="", PIP_FIND_LINKS="")
    assert ended.report["packages"] == {"helper": "1.0", "model": "1.0"}
    assert "failed to install: broken==1.0;" in ended.log
    assert ended.log.count("Successfully installed") == 1, "the others are not tried one by one"


def test_a_list_that_refers_to_nothing(spoilt: Container) -> None:
    ended = spoilt.succeed(frozen="-r nowhere.txt\nhelper==1.0")
    assert ended.report["packages"] == {"helper": "1.0"}
    assert f"warning [{Code.BOOT_REQUIREMENTS}]: nowhere.txt does not exist" in ended.log


def test_code_that_is_a_project(spoilt: Container) -> None:
    project = '[build-system]\nrequires = []\nbuild-backend = "builder"\nbackend-path = ["."]\n[project]\nname = "vision"\nversion = "1"\n'
    backend = (
        "import os, pathlib, shutil\n"
        "assert not {'WANDB_API_KEY', 'VERTEX_LAUNCH_PLAN'} & set(os.environ), 'what installs has no need of a key'\n"
        "def build_wheel(folder, *_):\n"
        f"    source = pathlib.Path({str(wheel(spoilt.folder / 'own', 'vision', '1'))!r})\n"
        "    shutil.copy(source, folder)\n    return source.name\n"
    )
    spoilt.job()
    spoilt.code({"pyproject.toml": project, "builder.py": backend})
    ended = spoilt.run(spoilt.plan(api_key_secret=None), WANDB_API_KEY=KEY)
    assert ended.report["packages"] == {"vision": "1"}, ended.log


LEAKING = {
    "an index": {
        "requirements.txt": "-r nested/more.txt\nhelper==1.0\nlone-one==\x24{WANDB_API_KEY}\n",
        "nested/more.txt": "--index-url http://\x24{WANDB_API_KEY}@HOST/simple/\n--extra-index-url http://HOST/\x24{COPY}/\n"
        "--extra-index-url http://ann:\x24{MY_INDEX}@HOST/mine/\n",
    },
    "an archive": {
        "requirements.txt": "-c limits.txt\nhelper==1.0\nlone-one==\x24{WANDB_API_KEY}\n"
        "model @ http://ann:\x24{MY_INDEX}@HOST/mine/\x24{VERTEX_LAUNCH_PLAN}/model-1.0.tar.gz\n",
        "limits.txt": "helper @ http://ann:\x24{MY_INDEX}@HOST/mine/\x24{WANDB_API_KEY}/helper-1.0.tar.gz\n",
    },
}


@pytest.mark.parametrize("leaking", LEAKING)
@pytest.mark.parametrize("delivery", ["env", "secret"])
def test_pip_does_not_see_the_key(spoilt: Container, elsewhere: Internet, delivery: str, leaking: str) -> None:
    host = elsewhere.url.removeprefix("http://")
    spoilt.job()
    files = {name: text.replace("HOST", host) for name, text in LEAKING[leaking].items()}
    spoilt.code({**files, "train.py": "print('started')"})
    away = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0", "MY_INDEX": "of-my-own", "COPY": f"k={KEY}"}
    given = {"WANDB_API_KEY": KEY} if delivery == "env" else {}
    plan = spoilt.plan(api_key_secret=None if given else SECRET)
    del away["COPY" if delivery == "secret" else "PIP_RETRIES"]
    ended = spoilt.run(plan, **away, **given)
    assert ended.status == 0, ended.log
    assert elsewhere.seen
    basic = base64.b64encode(b"ann:of-my-own").decode()
    asked = [f"{seen.url} {seen.headers}" for seen in elsewhere.seen]
    assert not [text for text in asked for form in forms(KEY) if form in text]
    assert not [text for text in asked if "QXJ0aWZhY3Q6MQ" in text]
    assert [text for text in asked if "/mine/" in text]
    assert basic not in ended.log
    assert f"warning [{Code.BOOT_REQUIREMENTS}]: requirements.txt refers to WANDB_API_KEY" in ended.log


def test_what_builds_a_package_sees_the_users_variables_and_no_secret(
    spoilt: Container, origin: tuple[Path, list[str]]
) -> None:
    backend = (
        "import json, os, sys\n"
        "print('saw: ' + json.dumps(sorted(os.environ)) + repr(sys.argv), file=sys.stderr)\n"
        "print('leak' if any('WORD' in text[::-1] for text in os.environ.values()) else 'none', file=sys.stderr)\n"
        "raise SystemExit(1)\n"
    ).replace("WORD", KEY[::-1])
    spoilt.job()
    program = "import os; print(len(os.environ['COPY']), len(os.environ['WANDB_API_KEY']))"
    spoilt.code({"pyproject.toml": EDITABLE["pyproject.toml"], "builder.py": backend, "train.py": program})
    mine = {"MY_INDEX_PASSWORD": "kept", "COPY": f"x{KEY}", "WANDB_API_KEY": KEY}
    ended = spoilt.run(spoilt.plan(api_key_secret=None), **mine)
    assert ended.status == 0, ended.log
    saw = ended.log.partition("saw: ")[2].splitlines()[0]
    assert "MY_INDEX_PASSWORD" in saw
    for name in ("WANDB_API_KEY", "COPY", "VERTEX_LAUNCH_PLAN", "VERTEX_LAUNCH_GIT"):
        assert f'"{name}' not in saw
    assert "leak" not in ended.log
    assert ended.last == "41 40", "the program gets them"


def test_credentials_of_requirements_are_not_shown_and_not_kept(spoilt: Container) -> None:
    lines = [
        f"model @ git+http://{TOKEN}@127.0.0.1:1/model",
        f"--extra-index-url http://{OTHER}@127.0.0.1:1/simple",
        "helper==1.0",
    ]
    ended = spoilt.succeed(frozen="\n".join(lines), variables={"PIP_RETRIES": "0"})
    assert TOKEN not in ended.log
    assert OTHER not in ended.log
    kept = (Path(ended.report["cwd"]) / "_wandb_bootstrap_errors.json").read_text()
    assert "127.0.0.1:1/model" in kept
    assert TOKEN not in kept


def test_requirements_without_pip_are_reported(spoilt: Container) -> None:
    spoilt.environment = virtual_environment(THIS, spoilt.folder / "bare", pip=False)
    add_wandb(spoilt.environment)
    ended = spoilt.succeed(frozen="helper==1.0\nmodel==1.0")
    assert "failed to install: helper==1.0, model==1.0;" in ended.log
    assert ended.log.count("No module named pip") == 1


def test_a_token_in_a_requirement_is_not_shown(spoilt: Container) -> None:
    ended = spoilt.succeed(frozen=f"model @ git+http://ann:{TOKEN}@127.0.0.1:1/model\nhelper==1.0")
    assert "failed to install: model @ git+http://ann:***@127.0.0.1:1/model;" in ended.log
    assert TOKEN not in ended.log


def test_an_index_out_of_reach_is_asked_once(spoilt: Container) -> None:
    add_wandb(spoilt.environment)
    spoilt.job({"requirements.frozen.txt": "".join(f"package{number}==1.0\n" for number in range(50))})
    spoilt.code()
    away = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:1/simple", "PIP_RETRIES": "1"}
    ended = spoilt.run(spoilt.plan(), **away)
    assert ended.status == 0, ended.log
    assert re.search(r"failed to install: .*package49==1.0;", ended.log)
    assert ended.log.count("Retry(total=0") == 1


def test_a_list_is_resolved_as_a_whole_first(spoilt: Container, wheels: Path) -> None:
    frameworks(spoilt)
    ended = spoilt.succeed({"requirements.txt": "lightning\ntorch==1.13.1\nhelper\n"})
    assert ended.report["packages"] == {"lightning": "1.0", "torch": "1.13.1", "helper": "2.0"}
    assert ended.log.count("Successfully installed") == 1


def test_what_fails_does_not_change_what_the_list_pins(spoilt: Container) -> None:
    frameworks(spoilt)
    own = "lightning\nabsent\ntorch==1.13.1\nother @ git+https://git.acme.example/other\n"
    ended = spoilt.succeed({"requirements.txt": own}, variables={"PATH": f"{spoilt.environment}/bin"})
    assert ended.report["packages"] == {"lightning": "1.0", "torch": "1.13.1"}
    lost = re.findall("failed to install: (.*);", ended.log)[0].split(", ")
    assert sorted(lost) == ["absent", "other @ git+https://git.acme.example/other"]
    conflict = spoilt.succeed({"requirements.txt": "lightning==2.0\ntorch==1.13.1\nhelper\n"})
    assert conflict.report["packages"] == {"lightning": "1.0", "torch": "1.13.1", "helper": "2.0"}
    assert "failed to install: lightning==2.0;" in conflict.log


def frameworks(container: Container) -> None:
    """Add to the index a torch with builds, and what needs a version of it."""
    container.wheels = shutil.copytree(container.wheels, container.folder / "wheels")
    for version in ("1.13.1", "2.1.0", "2.2.0"):
        wheel(container.wheels, "torch", version)
    wheel(container.wheels, "lightning", "1.0", requires=["torch"])
    wheel(container.wheels, "lightning", "2.0", requires=["torch>=2.2"])


@pytest.mark.parametrize(
    ("own", "frozen", "torch", "lightning", "words"),
    [
        ("lightning\n", "", "2.1.0+cu121", "1.0", "kept from the image: torch 2.1.0+cu121"),
        ("torch\nlightning\n", "", "2.1.0+cu121", "1.0", "kept from the image: torch 2.1.0+cu121"),
        ("torch==2.1.0\n", "", "2.1.0+cu121", None, "kept from the image: torch 2.1.0+cu121"),
        ("torch>=2.2\nlightning\n", "", "2.2.0", "2.0", "torch 2.1.0+cu121 of the image is replaced"),
        ("torch\n", "torch==1.13.1\n", "1.13.1", None, "because the job requires torch==1.13.1"),
    ],
)
def test_the_framework_of_the_image_is_kept_unless_another_version_is_named(
    spoilt: Container, own: str, frozen: str, torch: str, lightning: str | None, words: str
) -> None:
    frameworks(spoilt)
    zipfile.ZipFile(wheel(spoilt.folder / "image", "torch", "2.1.0+cu121")).extractall(packages(spoilt.environment))
    ended = spoilt.succeed({"requirements.txt": own}, frozen=frozen)
    assert ended.report["packages"] == {"torch": torch, **({"lightning": lightning} if lightning else {})}, ended.log
    assert words in ended.log


FLAT = """
[project]
name = "evals-job"
version = "0.1.0"
readme = "README.md"
dependencies = ["model[x]>=1.0", "helper; python_version > '3'", "some-dep"]

[tool.uv.sources]
some-dep = { git = "https://git.acme.example/some-dep", rev = "v1" }
"""


def test_a_project_with_dependencies_only(spoilt: Container) -> None:
    ended = spoilt.succeed({"pyproject.toml": FLAT, "api_model/__init__.py": "", "other/__init__.py": ""})
    assert ended.report["packages"] == {"helper": "2.0", "model": "1.5"}
    assert "failed to install: some-dep @ git+https://git.acme.example/some-dep@v1;" in ended.log


def test_a_project_that_cannot_be_built_gets_its_dependencies(spoilt: Container) -> None:
    ended = spoilt.succeed({"pyproject.toml": FLAT + '[build-system]\nrequires = ["absent"]\n'})
    assert ended.report["packages"] == {"helper": "2.0", "model": "1.5"}
    assert "only its dependencies" in ended.log


def test_requirements_over_ssh(spoilt: Container, internet: Internet, origin: tuple[Path, list[str]]) -> None:
    internet.repositories = {"https://github.com/acme/tool.git": origin[0] / ".git"}
    internet.passwords = {}
    internet.seen.clear()
    lines = [
        "tool @ git+ssh://git@github.com/acme/tool.git@v1",
        "-e git+ssh://git@ssh.github.com:443/acme/tool.git#egg=tool",
    ]
    ended = spoilt.succeed(
        {"requirements.txt": "\n".join([*lines, "bad @ git+ssh://git@work/acme/tool.git"])},
        variables=internet.variables,
    )
    assert {seen.url.partition(".git")[0] for seen in internet.seen} == {"https://github.com/acme/tool"}
    assert "using git+https://github.com/acme/tool.git@v1" in ended.log
    assert f"warning [{Code.BOOT_REQUIREMENTS}]: bad @ git+ssh://git@work/acme/tool.git: its remote" in ended.log


def test_pip_writes_no_cache(spoilt: Container, internet: Internet, tmp_path: Path) -> None:
    internet.publish("https://pypi.org/simple/", wheel(tmp_path / "own", "helper", "1.0"))
    away = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_CACHE_DIR": str(tmp_path / "cache")}
    ended = spoilt.succeed(frozen="helper==1.0\n", variables={**internet.variables, **away})
    assert ended.report["packages"] == {"helper": "1.0"}
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("has_pip", [False, True])
def test_uv_where_the_image_has_it(spoilt: Container, tmp_path: Path, has_pip: bool) -> None:
    found = shutil.which("uv") or shutil.which("uv", path=str(Path(sys.executable).parent))
    if not found:
        pytest.skip("no uv on this machine")
    frameworks(spoilt)
    spoilt.environment = virtual_environment(THIS, tmp_path / "image", pip=has_pip)
    add_wandb(spoilt.environment)
    (spoilt.environment / "bin" / "uv").symlink_to(found)
    ended = spoilt.succeed({"requirements.txt": "lightning\ntorch==1.13.1\nhelper\nabsent\n"})
    assert ended.report["packages"] == {"lightning": "1.0", "torch": "1.13.1", "helper": "2.0"}
    assert "failed to install: absent;" in ended.log
    assert ("Successfully installed" in ended.log) == has_pip  # pip is configured here, which uv does not read


def test_torch_comes_from_its_own_index_and_with_dependencies(
    spoilt: Container, internet: Internet, tmp_path: Path
) -> None:
    torch = wheel(tmp_path / "own", "torch", "2.1.0+cu118", requires=["triton"])
    internet.publish("https://download.pytorch.org/whl/cu118/", torch)
    general = [wheel(tmp_path / "own", "triton", "1.0"), wheel(tmp_path / "own", "torch", "2.1.0")]
    internet.publish("https://pypi.org/simple/", *general, wheel(tmp_path / "own", "wandb", "1.0", FAKE_WANDB))
    spoilt.job({"requirements.frozen.txt": "torch==2.1.0+cu118\n"})
    spoilt.code()
    ended = spoilt.run(spoilt.plan(), **internet.variables, PIP_NO_INDEX="", PIP_FIND_LINKS="")
    assert ended.report["packages"] == {"torch": "2.1.0+cu118", "triton": "1.0"}, ended.log


def test_an_image_whose_system_manages_its_packages(container: Container) -> None:
    container.environment = relocated(container.folder / "system")
    plain = [str(container.environment / "bin" / "python3"), "-m", "pip", "install", "--no-index", "helper"]
    refused = subprocess.run(plain, capture_output=True, text=True, env={"PATH": "/usr/bin"}, check=False)
    assert "externally-managed-environment" in refused.stderr
    ended = container.succeed(frozen="helper==1.0")
    assert ended.report["packages"] == {"helper": "1.0"}


@pytest.fixture
def unprivileged(empty: Container) -> Iterator[Container]:
    """A container whose user may not write to the packages of its Python, which is not a virtual environment."""
    with tempfile.TemporaryDirectory() as name:  # other users may not read pytest's own folders
        folder = Path(name)
        folder.chmod(0o755)
        empty.folder, empty.wheels = folder, shutil.copytree(empty.wheels, folder / "wheels")
        empty.wheels.chmod(0o755)
        wheel(empty.wheels, "cowsay", "1.0", "def cow():\n    print('moo')\n", script="cow")
        empty.environment = relocated(folder / "system", copied=True)
        empty.variables = {"LD_LIBRARY_PATH": str(empty.environment / "lib")}
        add_wandb(empty.environment)
        place = packages(empty.environment)
        if os.geteuid() == 0:
            empty.user = 65534
        else:
            place.chmod(0o555)
        yield empty
        place.chmod(0o755)


@pytest.mark.parametrize("home", ["/nonexistent", ""])
def test_a_user_who_has_no_home(unprivileged: Container, home: str) -> None:
    ended = unprivileged.succeed(frozen="helper==1.0\ncowsay==1.0", variables={"HOME": home})
    assert ended.report["packages"] == {"helper": "1.0", "cowsay": "1.0"}, ended.log
    user = str(Path(ended.report["cwd"]).parent / "user")
    assert ended.report["environment"]["PYTHONUSERBASE"] == user
    assert ended.report["environment"]["PATH"].startswith(f"{user}/bin:")
    ended = unprivileged.run(unprivileged.plan(command=["cow"]), HOME=home)
    assert (ended.status, ended.last) == (0, "moo"), ended.log


def test_a_user_with_packages_at_home(unprivileged: Container) -> None:
    home = unprivileged.folder / "container-0" / "home"
    write(
        home / ".local" / packages(unprivileged.environment).relative_to(unprivileged.environment),
        {"own.py": "print('own')"},
    )
    for place in home.rglob("*"):
        os.chown(place, unprivileged.user or -1, unprivileged.user or -1)
    unprivileged.job({"requirements.frozen.txt": "cowsay==1.0"})
    unprivileged.code({"run.sh": "#!/bin/sh\npython -c 'import own' && cow\n"})
    (unprivileged.store / "id-QXJ0aWZhY3Q6MQ==" / "run.sh").chmod(0o755)
    ended = unprivileged.run(unprivileged.plan(command=["./run.sh"]))
    assert ended.status == 0, ended.log
    assert ended.log.endswith("own\nmoo\n")


def test_packages_go_to_the_python_that_runs_the_program(spoilt: Container) -> None:
    other = next((version for version in BOOTSTRAP_PYTHONS if python(version) and version != THIS), None)
    if other is None:
        pytest.skip("one Python on this machine")
    program = virtual_environment(other, spoilt.folder / "program")
    without_python(spoilt.environment)
    spoilt.job({"requirements.frozen.txt": "helper==1.0"})
    spoilt.code()
    ended = spoilt.run(spoilt.plan(), PATH=str(program / "bin"))
    assert ended.report["packages"] == {"helper": "1.0"}
    assert (packages(program) / "helper").is_dir()
    assert not (packages(spoilt.environment) / "helper").is_dir()


# ---- notebooks


def notebook(*cells: str | tuple[str, str]) -> str:
    """Write a notebook of code cells; a pair is the kind of a cell and its text."""
    kinds = [("code", cell) if isinstance(cell, str) else cell for cell in cells]
    return json.dumps(
        {
            "nbformat": 4,
            "cells": [{"cell_type": kind, "source": text.splitlines(keepends=True)} for kind, text in kinds],
        }
    )


def test_a_notebook(container: Container) -> None:
    text = notebook(
        ("markdown", "# Training\n!not code"),
        "%matplotlib inline\nx = 1\nif x:\n    !pip install model\nfiles = !ls\nx.bit_length?",
        "%%bash\nif true; then\n  echo $HOME || %1\n  !1\nfi",
        "%%time\nx = x + 1",
        "y = ('%d %d'\n     % (x, x))\n",
        PROGRAM + "print('x is', x, y)",
    )
    container.job()
    container.code({"notes/train.ipynb": text})
    plan = container.plan(command=["python", "notes/train.ipynb"], notebook=True, args=["--epochs", "3"])
    ended = container.run(plan)
    assert ended.status == 0, ended.log
    assert ended.report["argv"] == ["notes/train.py", "--epochs", "3"]
    assert "x is 2 2 2" in ended.log
    skipped = re.findall(rf"notebook: warning .{Code.BOOT_NOTEBOOK}.: skipped: (.*)", ended.log)
    magics = ["%matplotlib inline", "!pip install model", "files = !ls", "x.bit_length?"]
    assert skipped == [*magics, "%%bash and 4 lines", "%%time"]


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_notebook_that_the_plan_does_not_call_one(container: Container, options: list[str]) -> None:
    ended = container.succeed(
        {"a.ipynb": notebook(PROGRAM), "b.ipynb": "not for us"}, command=["python", *options, "a.ipynb", "b.ipynb"]
    )
    assert ended.report["argv"] == ["a.py", "b.ipynb"]


@pytest.mark.parametrize("command", [["python", "train.py", "a.ipynb"], ["python", "-m", "train", "a.ipynb"]])
def test_a_notebook_that_a_program_takes(container: Container, command: list[str]) -> None:
    ended = container.succeed({"a.ipynb": "not for us"}, command=command)
    assert ended.report["argv"][1:] == ["a.ipynb"]


def test_what_is_timed_in_a_notebook_runs(container: Container) -> None:
    timed = "x = %time 1 + 1\nfor _ in '12':\n    %time x = x + 1\n%timeit -n 10 x\ny = %timeit -o x\n%time !ls"
    ended = container.succeed(
        {"a.ipynb": notebook(timed, "print('x is', x)")}, command=["python", "a.ipynb"], notebook=True
    )
    assert ended.last == "x is 4"
    assert re.findall("]: skipped: (.*)", ended.log) == ["%timeit -n 10 x", "y = %timeit -o x", "%time !ls"]
    assert re.findall("launch: notebook: not timed: (.*)", ended.log) == ["x = %time 1 + 1", "%time x = x + 1"]


PYTHON_IN_CELLS = [
    "x = (7\n% 4\n/ 2,\n'?')",
    "y = 7 \\\n  % 4",
    "s = '''\n!no\n%no\n%%no\nno?\n'''",
    "# is it?\nt = 1  # really?",
    "k = {\n 'a': 1,  # what?\n 'b': '!'}",
    'def f(a=1):\n    """What?\n    !no\n    """\n    return a != 1',
    "print('50%', f'{s!r}')\nt %= 3\nt //= 4",
    "r = r'\\d' \"it's?\"",
]
COMMANDS = {
    "!ls -l": "!ls -l",
    "%load_ext a": "%load_ext a",
    "!pip install \\\n  'a>=1' \\\n  b": "!pip install \\ and 2 lines",
    "f?": "f?",
    "?f": "?f",
    "names = !ls | grep x": "names = !ls | grep x",
    "a, b = %magic c": "a, b = %magic c",
    "f.a??  # what?": "f.a??  # what?",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("indent", ["", "    "])
def test_only_commands_of_a_cell_are_changed(command: str, indent: str) -> None:
    base.different.clear()
    before, after = "\n".join(PYTHON_IN_CELLS), "\n".join(reversed(PYTHON_IN_CELLS))
    block = f"if True:\n{indent}" if indent else ""
    cell = without_magics(f"{before}\n{block}{command}\n{after}\n")
    assert cell.startswith(f"{before}\n{block}pass  # ")
    assert cell.endswith(f"\n{after}\n")
    middle = cell[len(before) : -len(after) - 1]
    assert ast.dump(ast.parse(middle)) == ast.dump(ast.parse(f"{block}pass"))
    assert base.different == [f"notebook: skipped: {COMMANDS[command]}"]


def test_a_cell_in_the_line_ends_of_windows() -> None:
    cell = without_magics("!pip install \\\r\n  a\r\nx = 1\r\n")
    assert ast.dump(ast.parse(cell)) == ast.dump(ast.parse("pass\nx = 1"))


@pytest.mark.parametrize("cell", [*PYTHON_IN_CELLS, "await x", "x = 1\n\n\n"])
def test_cells_of_python_stay_as_they_are(tmp_path: Path, cell: str) -> None:
    (tmp_path / "a.ipynb").write_text(notebook(cell))
    assert convert(tmp_path / "a.ipynb").read_text() == cell + "\n"


def test_a_command_that_goes_on_in_the_next_line(container: Container) -> None:
    cells = [
        'try:\n    import einops\nexcept ImportError:\n    !pip install -q \\\n        "torch>=2.1" \\\n        "einops"\n',
        "%%writefile 'helper of mine.py'\nanswer = '''\n!42\n'''\n",
        "   %cd here\n   x = open('helper of mine.py').read()",
        "from __future__ import annotations\nfrom __future__ import (\n    division,\n)\n!ls\n",
        "print(repr(x))",
    ]
    ended = container.succeed({"a.ipynb": notebook(*cells)}, command=["python", "a.ipynb"], notebook=True)
    assert ended.last == repr("answer = '''\n!42\n'''\n")
    assert re.findall("]: skipped: (.*)", ended.log) == ["!pip install -q \\ and 2 lines", "%cd here", "!ls"]


def test_a_cell_that_no_script_can_run(container: Container) -> None:
    container.job()
    container.code({"a.ipynb": notebook("x = 1", "%pylab\nawait x")})
    ended = container.run(container.plan(command=["python", "a.ipynb"], notebook=True))
    assert ended.status == 1
    assert (
        f"notebook: warning [{Code.BOOT_NOTEBOOK}]: code cell 2 cannot run in a script ('await' outside function"
        in ended.log
    )


def test_a_notebook_beside_a_module_of_its_name(container: Container) -> None:
    ended = container.succeed(
        {"train.ipynb": notebook("import train")}, command=["python", "train.ipynb"], notebook=True
    )
    assert ended.report["argv"] == ["train.ipynb.py"]


@pytest.mark.parametrize(
    ("name", "code", "word"),
    [
        ("none.ipynb", Code.BOOT_NOTEBOOK, "No such file"),
        ("bad.ipynb", Code.BOOT_NOTEBOOK, "bad.ipynb"),
        ("../x.ipynb", Code.BOOT_PATH, "../x.ipynb"),
    ],
)
def test_a_file_that_is_not_a_notebook(container: Container, name: str, code: Code, word: str) -> None:
    container.job()
    container.code({"bad.ipynb": "[]"})
    failed(container.run(container.plan(command=["python", name], notebook=True)), "notebook", code, word)


# ---- the folder


def test_a_working_directory(container: Container) -> None:
    ended = container.succeed({"sub/dir/train.py": PROGRAM}, working_dir="sub/dir")
    assert ended.report["cwd"].endswith("/code/sub/dir")


@pytest.mark.parametrize("place", ["..", "/tmp", "sub/../../..", "none", "train.py"])
def test_a_working_directory_that_is_not_a_folder_of_the_code(container: Container, place: str) -> None:
    container.job()
    container.code()
    ended = container.run(container.plan(working_dir=place))
    failed(ended, "folder", Code.BOOT_PATH, f"{place}", "overrides.working_dir")


# ---- the program


@pytest.mark.parametrize("status", [0, 3, 139])
def test_the_status_is_the_programs(container: Container, status: int) -> None:
    command = ["python", "-c", f"raise SystemExit({status})"]
    assert container.run(container.plan(source="image", command=command)).status == status
    container.job()
    container.code({"train.py": f"raise SystemExit({status})"})
    assert container.run(container.plan()).status == status


def test_a_program_that_crashes(container: Container) -> None:
    command = ["python", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    assert container.run(container.plan(source="image", command=command)).status == -signal.SIGSEGV


def test_signals_reach_the_program(container: Container) -> None:
    program = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    container.job()
    container.code({"train.py": program})
    with container.begin(container.plan()) as process:
        assert process.stdout
        assert any(line == "ready\n" for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 7


def test_a_program_that_is_not_python_dies_of_a_broken_pipe(container: Container) -> None:
    container.tools = ("sh", "yes", "head", "true")
    # Python ignores SIGPIPE; were that handed on, `yes` would complain of a write error.
    ended = container.run(container.plan(source="image", command=["sh", "-c", "yes | head -n 1"]))
    assert ended.status == 0
    assert ended.last == "y"


def test_sigterm_before_the_program_runs(container: Container) -> None:
    asked, done = threading.Event(), threading.Event()

    def hang() -> None:
        asked.set()
        done.wait(30)

    container.google.meanwhile = hang
    try:
        with container.begin(container.plan()) as process:
            assert asked.wait(30)
            process.send_signal(signal.SIGTERM)
            log, _ = process.communicate(timeout=30)
    finally:
        done.set()
        container.google.meanwhile = None
    assert process.returncode == 143
    assert log.endswith("vertex-launch: key: stopped by SIGTERM\n")


HANGING = """
import os, time
class Api:
    def __init__(self):
        self.alive = open(os.environ["STORE"] + "/alive", "w")
        time.sleep(60)
    def _artifact_from_id(self, id):
        pass
"""


def test_sigterm_while_a_command_runs_ends_that_too(spoilt: Container) -> None:
    add_wandb(spoilt.environment, HANGING)
    spoilt.store.mkdir()
    os.mkfifo(spoilt.store / "alive")
    with spoilt.begin(spoilt.plan()) as process:
        with (spoilt.store / "alive").open() as alive:
            process.send_signal(signal.SIGTERM)
            assert alive.read() == ""  # it ends when no process has it open
        log, _ = process.communicate(timeout=30)
    assert process.returncode == 143
    assert log.endswith("vertex-launch: source: stopped by SIGTERM\n")


def test_the_output_of_the_program_is_in_the_log_at_once(container: Container) -> None:
    container.job()
    container.code({"train.py": "import os\nprint('said')\nos._exit(9)"})
    ended = container.run(container.plan())
    assert (ended.status, ended.last) == (9, "said")
    ended = container.run(container.plan(), PYTHONUNBUFFERED="")
    assert ended.last == "said"


def test_a_dockerfile_in_the_code_is_reported(container: Container) -> None:
    ended = container.succeed(
        {"sub/Dockerfile.wandb": "FROM scratch", "sub/train.py": PROGRAM},
        command=["python", "sub/train.py", "sub/" + "x/" * 10_000],
    )
    assert len(re.findall(f"warning .{Code.ARTIFACT_DOCKERFILE}.: sub/Dockerfile.wandb", ended.log)) == 1


@pytest.mark.parametrize("name", ["python3.7", "python2", "none.py", "torchrun", "./notes"])
def test_a_command_that_is_not_there(container: Container, name: str) -> None:
    container.job()
    container.code({"notes": "true"})
    ended = container.run(container.plan(command=[name, "train.py"]))
    if name == "python3.7":
        assert ended.status == 0, ended.log
        assert f"warning [{Code.BOOT_COMMAND}]: the image has no python3.7, " in ended.log
    else:
        failed(ended, "start", Code.BOOT_COMMAND, name)


ELSEWHERE = {
    ("python.exe", "tools\\tune.py", "--data", "C:\\data"): ["tools/tune.py", "--data", "C:\\data"],
    ("python3.exe", ".\\tools\\tune.py"): ["tools/tune.py"],
    (f"C:\\Users\\me\\.venv\\Scripts\\PYTHON{THIS}.EXE", "C:\\Users\\me\\proj\\tools\\tune.py"): ["tools/tune.py"],
    ("/Users/me/miniconda3/bin/python", "/Users/me/proj/tools/tune.py", "x\\y"): ["tools/tune.py", "x\\y"],
    ("py", "-3", "tools\\tune.py", "tools\\data.txt"): ["tools/tune.py", "tools/data.txt"],
    ("tools/tune.py", "1"): ["tools/tune.py", "1"],
    ("D:/work/proj/tools/tune.py",): ["tools/tune.py"],
    ("python.exe", "tools/tune.py", "/out/tools/tune.py"): ["tools/tune.py", "/out/tools/tune.py"],
    ("python", "-u", "tools\\tune.py", "a\\", "/no/such/data.txt"): ["tools/tune.py", "a\\", "/no/such/data.txt"],
}


@pytest.mark.parametrize("command", ELSEWHERE, ids=" ".join)
def test_a_command_of_another_system(container: Container, command: tuple[str, ...]) -> None:
    ended = container.succeed({"tools/tune.py": PROGRAM, "tools/data.txt": "1", "data.txt": "2"}, command=list(command))
    assert ended.report["argv"] == ELSEWHERE[command]
    block = ended.log.partition("what differs from the job as made:")[2]
    assert "in this container" in block or "is a file" in block


@pytest.mark.parametrize("first", ["", "#!/bin/sh\n", "#!/usr/bin/env -S sh -e\r\n"])
def test_a_script_that_may_not_be_executed(container: Container, first: str) -> None:
    container.job()
    script = f"{first}echo ran\n"  # artifacts have no modes
    container.code({"run.sh": script, "bin/tool": script, "tool": "exit 1"})
    container.tools += ("env",)
    for command in ("./run.sh", "run.sh", "/home/me/proj/run.sh", *(["/home/me/proj/bin/tool"] if first else [])):
        ended = container.run(container.plan(command=[command]))
        assert (ended.status, ended.last) == (0, "ran"), ended.log


class Graph(WebServer):
    """W&B's GraphQL, as far as a warning needs it."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        graph = self

        class Answers(Handler):
            def serve(self) -> None:
                graph.asked.append((json.loads(self.body())["query"], dict(self.headers)))
                self.answer_json(200, {"data": {"updateRunQueueItemWarning": {"success": True}}})

        super().__init__(Answers)


def test_what_differs_is_a_block_in_the_log_and_a_warning_on_the_item(container: Container) -> None:
    graph = Graph()
    graph.start()
    files = {"a.ipynb": notebook("!ls", PROGRAM)}
    where = {"WANDB_BASE_URL": graph.url, "WANDB_LAUNCH_TRACE_ID": "item-1"}
    plan: dict[str, Any] = {"command": ["python.exe", "a.ipynb"], "notebook": True}
    try:
        ended = container.succeed(files, variables=where, **plan)
        other = {"CLUSTER_SPEC": json.dumps({"task": {"type": "workerpool1", "index": 0}})}
        container.succeed(files, variables={**where, **other}, **plan)
        container.succeed(variables=where)
    finally:
        graph.stop()
    lines = [line for line in ended.log.splitlines() if line.startswith("vertex-launch: differs: ")]
    assert [line.partition("differs: ")[2] for line in lines] == [
        "what differs from the job as made:",
        "- start: python.exe is python in this container",
        "- notebook: skipped: !ls",
    ]
    ((query, headers),) = graph.asked
    assert 'runQueueItemId: "item-1"' in query
    assert f"[{Code.BOOT_NOTEBOOK}] skipped: !ls" in query
    assert "python.exe" not in query
    assert headers["Authorization"] == "Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()
    lost = container.succeed(files, variables={**where, "WANDB_BASE_URL": "http://127.0.0.1:1"}, **plan)
    assert "vertex-launch: differs: W&B did not take the warning" in lost.log


@pytest.mark.parametrize("made", ["2.7.1", "3.2.1", f"CPython {THIS}.9", "", None])
def test_a_job_that_was_made_with_another_python(container: Container, made: str | None) -> None:
    container.job()
    container.code()
    ended = container.run(container.plan() | {"python": made})
    assert ended.status == 0, ended.log
    assert ("was made with Python 3.2, " in ended.log) == (made == "3.2.1")
    assert ("what differs" in ended.log) == (made == "3.2.1")


def test_an_image_that_calls_python_only_python3(spoilt: Container) -> None:
    without_python(spoilt.environment)
    ended = spoilt.succeed()
    assert "the image has no python, " in ended.log


def test_a_program_of_the_code(container: Container) -> None:
    container.job()
    container.code({"run.sh": '#!/bin/sh\necho ran with "$1"\n'})
    place = container.store / "id-QXJ0aWZhY3Q6MQ==" / "run.sh"
    place.chmod(0o755)
    ended = container.run(container.plan(command=["./run.sh"], args=["3"]))
    assert ended.status == 0, ended.log
    assert ended.last == "ran with 3"


def test_a_plan_without_a_command(container: Container) -> None:
    failed(container.run(container.plan(command=[], args=None)), "key", Code.BOOT_COMMAND)


@pytest.mark.parametrize("plan", ["", "{", "[]", "{}"])
def test_a_plan_that_cannot_be_read(container: Container, plan: str) -> None:
    ended = container.run(plan)
    assert ended.status == 1
    assert f"vertex-launch: plan: failed unexpectedly [{Code.BOOT_ERROR}]: Traceback" in ended.log


def test_output_that_is_not_text_of_the_locale(container: Container) -> None:
    ended = container.succeed(variables={"PYTHONIOENCODING": "ascii"}, args=["gr\u00fc\u00dfe", "\udcff"])
    assert "train.py 'gr\u00fc\u00dfe' '\\udcff' in " in ended.log


@pytest.mark.parametrize(
    ("version", "address", "expected"),
    [
        (
            "projects/p/secrets/s/versions/1",
            "https://secretmanager.googleapis.com/",
            "https://secretmanager.googleapis.com",
        ),
        (
            "projects/p/locations/us-east4/secrets/s/versions/1",
            "https://secretmanager.googleapis.com",
            "https://secretmanager.us-east4.rep.googleapis.com",
        ),
        ("projects/p/locations/us-east4/secrets/s/versions/1", "http://127.0.0.1:1", "http://127.0.0.1:1"),
    ],
)
def test_a_regional_secret_is_read_in_its_region(version: str, address: str, expected: str) -> None:
    assert base._secret_manager({"secretmanager": address}, version) == expected
