"""Run specs for the tests: the recorded samples, small ones of our own, and strategies for many more."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from vertex_launch.job.build import build
from vertex_launch.job.request import JobRequest
from vertex_launch.job.run_spec import parse
from vertex_launch.model import Item
from vertex_launch.settings.config import Region, Settings

ENTITY = "acme"
KEY = "0123456789abcdef" * 2 + "01234567"
IMAGE = "us-docker.pkg.dev/demo-project/train/mnist:1"
SETTINGS = Settings(
    queues=("gpu",),
    project="demo-project",
    regions=(Region(name="us-central1"), Region(name="europe-west4", staging_bucket="gs://demo-europe")),
    key_secret="projects/demo-project/secrets/wandb/versions/1",
    state_bucket="gs://demo-state",
    jobs_account="jobs@demo-project.iam.gserviceaccount.com",
)

_ROOT = Path(__file__).parents[2]
_FOLDERS = {"": _ROOT / "tests/samples/run-specs", "shared-": _ROOT.parent / "shared/samples/run-specs"}
SAMPLES: dict[str, Any] = {
    prefix + path.stem: json.loads(path.read_text())
    for prefix, folder in _FOLDERS.items()
    for path in sorted(folder.glob("*.json"))
}
"""Run specs as the client pushes them, by name: those of the repository, and more if there is a folder beside it."""


def with_settings(**changes: Any) -> Settings:
    """Return the settings of the tests with changes, which are not checked."""
    return SETTINGS.model_copy(update=changes)


def item(spec: Any, *, id: str = "SXRlbTox", queue: str = "gpu") -> Item:  # noqa: A002
    return Item(id, queue, spec)


def built(
    asked: Any,
    settings: Settings = SETTINGS,
    *,
    entity: str = ENTITY,
    api_key: str = KEY,
    now: datetime = datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC),
    **more: Any,
) -> JobRequest:
    """Parse and build an item or the run spec of one."""
    one = asked if isinstance(asked, Item) else item(asked)
    spec = parse(one, settings, entity)
    return build(one, spec, settings, entity=entity, api_key=api_key, now=now, **more)


def pool(**task: Any) -> dict[str, Any]:
    """Return a worker pool that runs the item's image, with ``task`` beside it in its container_spec."""
    return {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}", **task},
    }


PACKAGE = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "python_package_spec": {
        "executor_image_uri": "us-docker.pkg.dev/vertex-ai/training/tf:1",
        "python_module": "train",
    },
}
"""A worker pool that runs a Python package."""


def run_spec(
    *pools: dict[str, Any],
    spec: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
    **top: Any,
) -> dict[str, Any]:
    """Return a run spec; ``spec`` and ``run`` are added under resource_args.vertex, ``top`` at the top level."""
    vertex = {
        "spec": {"worker_pool_specs": list(pools) or [pool()], "staging_bucket": "gs://demo-staging", **(spec or {})},
        "run": run or {},
    }
    return copy.deepcopy(
        {
            "entity": ENTITY,
            "project": "Demo",
            "resource": "vertex",
            "resource_args": {"vertex": vertex},
            "name": "first run",
            "author": "alice",
            "overrides": overrides or {},
            "git": {},
            "docker": {"docker_image": IMAGE},
            **top,
        }
    )


MINIMAL = run_spec()
FULL = run_spec(
    pool(command=["python"], args=["-m", "train"], env=[{"name": "NCCL_DEBUG", "value": "INFO"}]),
    {},
    {
        "machine_spec": {"machine_type": "n1-highcpu-16"},
        "container_spec": {"image_uri": "gcr.io/demo/reduction:1", "command": ["serve"]},
        "replica_count": 2,
    },
    spec={"labels": {"team": "vision"}, "encryption_spec_key_name": "projects/p/keys/k"},
    run={"timeout": 3600, "restart_job_on_worker_restart": True, "network": "projects/1/global/networks/vpc"},
    overrides={
        "entry_point": ["python", "train.py"],
        "args": ["--epochs", "3"],
        "run_config": {"lr": 0.01, "nested": {"a": [1, 2]}},
        "files": {"configs/a.yaml": {"depth": 3}},
        "artifacts": {"data": {"name": "mnist:v3"}},
    },
    run_id="abcd1234",
    sweep_id="sw1",
)

words = st.text(st.characters(codec="utf-8", exclude_characters="\0${}<"), max_size=12)
"""Text that means nothing to macros, expansion or templates."""
dollars = st.lists(st.sampled_from(["$", "$$", "$(", "$(A)", "(", ")", "a", "{", "é"]), max_size=5).map("".join)
"""Text that expansion looks at."""
texts = words | dollars | st.sampled_from(["${author}", '"', "\\", "漢 "])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
