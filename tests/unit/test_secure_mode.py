"""Under secure_mode only the entry point of the image or of the W&B job runs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.shapes import put
from tests.support.specs import IMAGE, PACKAGE, SETTINGS, built, pool, run_spec
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job import job_source
from vertex_launch.job.job_source import JobSource
from vertex_launch.model import JobArtifact

SECURE = SETTINGS.model_copy(update={"secure_mode": True})
SPEC = "resource_args.vertex.spec"
TASK = f"{SPEC}.worker_pool_specs[0].container_spec"
OTHER = "docker.io/evil/tool:1"


def source(kind: str, **changes: Any) -> JobSource:
    """Return a W&B job: an image, or code with an entry point of its own."""
    own = {"image": IMAGE} if kind == "image" else {"artifact": "wandb-artifact://_id/QXJ0"}
    return job_source.read(
        JobArtifact("acme/demo/train:v3", {"source_type": kind, "source": {**own, **changes}}), SETTINGS
    )


def refused(spec: dict[str, Any], found: JobSource | None = None, **settings: Any) -> str:
    """Return why an item is refused under secure_mode; the empty text if it is not. Without secure_mode it starts."""
    built(spec, SETTINGS, source=found)
    try:
        built(spec, SECURE.model_copy(update=settings), source=found)
    except ItemRejected as error:
        return str(error)
    return ""


def of_job(*pools: Any, **spec: Any) -> dict[str, Any]:
    return run_spec(*pools, **{"docker": {}, "job": "acme/demo/train:v3", **spec})


CODE = source("artifact", entrypoint=["python", "train.py"])
PROGRAMS: dict[str, tuple[dict[str, Any], JobSource | None, str]] = {
    "an entry point": (run_spec(overrides={"entry_point": ["sh"]}), None, "overrides.entry_point"),
    "a scheduler's entry point": (run_spec(overrides={"entry_point": ["wandb", "scheduler", "x"]}), None, "overrides.entry_point"),
    "an entry point for code": (of_job(overrides={"entry_point": ["python", "-c", "1"]}), CODE, "overrides.entry_point"),
    "another folder of the code": (of_job(overrides={"working_dir": "tests"}), CODE, "overrides.working_dir"),
    "a command": (run_spec(pool(command=["sh", "-c", "evil"])), None, f"{TASK}.command"),
    "a command from a macro": (run_spec(pool(command=["${author}"]), author="sh"), None, f"{TASK}.command"),
    "a command for code": (of_job(pool(command=["sh"])), CODE, f"{TASK}.command"),
    "a second pool's image": (run_spec(pool(), pool(image_uri=OTHER)), None, f"{SPEC}.worker_pool_specs[1].container_spec.image_uri"),
    "a second pool's command": (run_spec(pool(), {}, pool(command=["sh"])), None, f"{SPEC}.worker_pool_specs[2].container_spec.command"),
    "another image": (run_spec(pool(image_uri=OTHER)), None, f"{TASK}.image_uri"),
    "another image beside code": (of_job(pool(), pool(image_uri=OTHER)), CODE, f"{SPEC}.worker_pool_specs[1].container_spec.image_uri"),
    "a Python package": (run_spec(PACKAGE), None, f"{SPEC}.worker_pool_specs[0].python_package_spec"),
    "a base image of the item": (put(of_job(), ("resource_args", "vertex", "builder"), {"base_image": OTHER}), CODE, "resource_args.vertex.builder"),
    "a mount over programs": (run_spec({**pool(), "nfs_mounts": [{"server": "s", "path": "/p", "mount_point": "../../usr/bin"}]}), None, f"{SPEC}.worker_pool_specs[0].nfs_mounts"),
    "a mount at the root": (run_spec({**pool(), "nfs_mounts": [{"server": "s", "path": "/p", "mount_point": "/usr"}]}), None, f"{SPEC}.worker_pool_specs[0].nfs_mounts"),
    "a web shell": (run_spec(spec={"enable_web_access": True}), None, f"{SPEC}.enable_web_access"),
    "a program in args": (run_spec(overrides={"args": ["sh", "-c", "evil"]}), None, "overrides.args"),
    "a path in args": (run_spec(overrides={"args": ["/gcs/bucket/evil"]}), None, "overrides.args"),
    "an option of exec": (run_spec(overrides={"args": ["-l", "sh"]}), None, "overrides.args"),
    "a dash for exec": (run_spec(overrides={"args": ["--", "sh"]}), None, "overrides.args"),
    "a command for sh -c": (run_spec(overrides={"args": ["--x=1;evil"]}), None, "overrides.args"),
    "another command for sh -c": (run_spec(overrides={"args": ["x=$(evil)"]}), None, "overrides.args"),
    "an empty program": (run_spec(overrides={"args": ["", "sh"]}), None, "overrides.args"),
    "a line break": (run_spec(overrides={"args": ["--x\nevil"]}), None, "overrides.args"),
    "args of the queue": (run_spec(pool(args=["bash"]), overrides={"args": ["--x"]}), None, f"{TASK}.args"),
    "args of an image job": (of_job(overrides={"args": ["bash"]}), source("image"), "overrides.args"),
}  # fmt: skip


@pytest.mark.parametrize("what", PROGRAMS)
def test_what_could_run_another_program_is_refused_at_its_place(what: str) -> None:
    spec, found, place = PROGRAMS[what]
    text = refused(spec, found)
    assert text.startswith(f"{place}: "), text
    assert text.endswith(f"[{Code.POLICY_ENTRY_POINT}]")
    assert "secure_mode in launch-config.yaml" in text


@pytest.mark.parametrize(
    "name",
    [
        *("LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "BASH_ENV", "ENV", "PYTHONSTARTUP", "PYTHONPATH", "PYTHONHOME"),
        *("PYTHONINSPECT", "PYTHONUSERBASE", "PERL5OPT", "NODE_OPTIONS", "RUBYOPT", "JAVA_TOOL_OPTIONS", "R_PROFILE"),
        *(
            "GIT_SSH_COMMAND",
            "GIT_CONFIG_COUNT",
            "PIP_INDEX_URL",
            "PATH",
            "HOME",
            "SHELL",
            "PROMPT_COMMAND",
            "MPLBACKEND",
        ),
        *("CUDA_INJECTION64_PATH", "NCCL_NET_PLUGIN", "WANDB__EXECUTABLE", "GCE_METADATA_HOST", "X"),
    ],
)
@pytest.mark.parametrize("index", [0, 1])
def test_a_variable_that_is_not_listed_is_refused(name: str, index: int) -> None:
    pools: list[Any] = [pool(), pool()]
    pools[index] = pool(env=[{"name": "NCCL_DEBUG", "value": "INFO"}, {"name": name, "value": "1"}])
    text = refused(run_spec(*pools))
    assert text.startswith(f"{SPEC}.worker_pool_specs[{index}].container_spec.env: ")
    assert text.endswith(f"[{Code.POLICY_VARIABLE}]")
    assert f" {name}," in text
    assert "secure_mode_variables in vertex-launch.yaml" in text
    assert refused(run_spec(*pools), secure_mode_variables=("NCCL_*", name)) == ""


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        (run_spec(), None),
        (run_spec(pool(command=[], args=[])), None),
        (run_spec(pool(), {}, pool()), None),
        (run_spec(pool(image_uri=IMAGE)), None),
        (run_spec(overrides={"args": ["--lr", "1", "sh"]}), None),
        (run_spec(overrides={"args": ["--lr=0.1", "$(HOME)"]}), None),
        (run_spec(overrides={"args": ["lr=0.1", "model.depth=3"]}), None),
        (
            run_spec(pool(env=[{"name": "WANDB_NAME", "value": "a"}, {"name": "WANDB_RUN_ID", "value": "ignored"}])),
            None,
        ),
        (run_spec(overrides={"run_config": {"lr": 1}, "files": {"c.yaml": {}}}), None),
        (of_job(), source("image")),
        (of_job(overrides={"args": ["sh"]}), source("image", entrypoint=["python", "train.py"])),
        (of_job(pool(args=["data"]), overrides={"args": ["sh"]}), CODE),
        (of_job(), source("artifact", entrypoint=["bash", "run.sh"], base_image=OTHER)),
    ],
)
def test_the_own_entry_point_runs_with_arguments(spec: dict[str, Any], found: JobSource | None) -> None:
    assert refused(spec, found) == ""


def test_everything_is_reported_at_once() -> None:
    spec = run_spec(
        pool(command=["sh"], env=[{"name": "LD_PRELOAD", "value": "x"}]),
        pool(image_uri=OTHER),
        overrides={"entry_point": ["sh"], "working_dir": "x"},
    )
    text = refused(spec)
    assert f"[{Code.SPEC_PROBLEMS}]" in text
    assert len(text.splitlines()) == 1 + 5
