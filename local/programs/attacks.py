"""Hostile items, as data: what a person could push to stop the others or to get more than they were given.

A spec is what a pop answers, as text: it need not be JSON. ``attacks`` returns all of them. Chaos pushes them all the time,
and tests/local_cloud/test_attacks.py pushes each of them once.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from local.machine.cloud import ENTITY, JOB_ACCOUNT
from local.machine.images import REGISTRY

ITEM_KEY = "1tem" * 10
"""A W&B key that items bring. No output may contain it, as it is or in base64."""
OTHERS_SWEEP = "others"
"""A sweep of the entity that no item may end."""
CODE_AGENT = "service-123456789012@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"
"""The account of Google that a job without an account gets."""
PROJECT = "hostile"
IMAGE = f"{REGISTRY}/no-init:1"
SCHEDULER_URI = "placeholder-uri-scheduler"

Spec = dict[str, Any]


@dataclass(frozen=True)
class Attack:
    """A hostile item. ``fails`` is false if it may start a job, because nothing is wrong with that."""

    name: str
    text: str
    fails: bool = True
    secure: bool = False
    """Whether only ``secure_mode`` refuses it."""


def attacks() -> Iterator[Attack]:
    """Return every attack."""
    for name, text in _TEXTS.items():
        yield Attack(f"text-{name}", text)
    for name, made in _SPECS.items():
        yield Attack(f"spec-{name}", json.dumps(made))
    for name, made in _HARMLESS.items():
        yield Attack(f"ordinary-{name}", json.dumps(made), fails=False)
    for name, made in _SECURE.items():
        yield Attack(f"secure-{name}", json.dumps(made), secure=True)


def honest(name: str, **changes: Any) -> Spec:
    """Return the run spec of a small image job, with the arguments that a queue for Vertex AI would add."""
    return _spec(name=name, **changes)


def _spec(
    *,
    name: str = "hostile",
    pool: Mapping[str, Any] | None = None,
    container: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Spec:
    """Return a run spec. ``spec`` and ``run`` change those of Vertex AI, ``container`` and ``pool`` those of its pool."""
    given = {"image_uri": "${image_uri}", **(container or {})}
    worker = {
        "machine_spec": {"machine_type": "n1-standard-4"},
        "replica_count": 1,
        "container_spec": given,
        **(pool or {}),
    }
    job = {"worker_pool_specs": [worker], "staging_bucket": "gs://demo-staging", **rest.pop("spec", {})}
    arguments = {"spec": job, "run": {"service_account": JOB_ACCOUNT, **rest.pop("run", {})}}
    return {
        "entity": ENTITY,
        "project": PROJECT,
        "name": name,
        "resource": "gcp-vertex",
        "resource_args": {"gcp-vertex": arguments},
        "docker": {"docker_image": IMAGE},
        "overrides": {},
        **rest,
    }


def _env(**variables: str) -> Spec:
    return {"env": [{"name": name, "value": value} for name, value in variables.items()]}


def _with(fragment: str, key: str = "overrides") -> str:
    """Return an ordinary run spec with a value that json.dumps cannot write."""
    return json.dumps({**_spec(), key: "@"}).replace('"@"', fragment)


def _twice(text: str, times: int) -> str:
    """Return ``text`` repeated as often as a nested macro would repeat it."""
    return text * times


_KEY_FORMS = base64.b64encode(f"api:{ITEM_KEY}".encode()).decode()

_TEXTS: Mapping[str, str] = {
    "nested": _with('{"a":' * 1_200 + "1" + "}" * 1_200),
    "nested-lists": "[" * 100_000 + "]" * 100_000,
    "cut-off": json.dumps(_spec(_wandb_api_key=ITEM_KEY))[:-3],
    "html": f"<html><body>502 Bad Gateway {ITEM_KEY}</body></html>",
    "digits": _with("7" * 5_000),
    "digits-in-a-limit": _with("-" + "9" * 5_000, "priority"),
    "float": _with("1e999"),
    "nan": _with('{"run_config": {"a": NaN, "b": -Infinity}, "args": [NaN]}'),
    "not-utf-8": _with('{"args": ["\udcff\udcfe"]}'),
    "surrogate": _with('{"args": ["\\ud800"]}'),
    "surrogate-name": _with('"\\udfff"', "name"),
    "null-byte": _with('{"args": ["a\\u0000b"]}'),
    "list": "[]",
    "number": "7",
    "text": json.dumps("\\" * 3_000),
    "empty": "",
    "twice-the-key": '{"resource": "gcp-vertex", ' + json.dumps(_spec())[1:].replace("gcp-vertex", "sagemaker"),
}
"""Run specs that JSON cannot hold, or that its readers refuse."""

_SPECS: Mapping[str, Spec] = {
    # Size and time
    "megabytes": _spec(notes="x" * 3_000_000),
    "macros": _spec(container={"args": ["${run_name}" * 9_000]}, name="x" * 12_000),
    "macros-of-macros": _spec(
        container=_env(**{f"V{i}": _twice("${project_name}", 400) for i in range(90)}), project="p" * 400
    ),
    "empty-variables": _spec(container={"env": [{}] * 78_000}),
    "empty-pools": _spec(spec={"worker_pool_specs": [{}] * 60_000}),
    "labels": _spec(spec={"labels": {f"k{i}": "v" for i in range(30_000)}}),
    "warnings": _spec(container=_env(**{f"WANDB_{i}": "" for i in range(3_000)})),
    "unknown-keys": _spec(run={f"key{i}": i for i in range(3_000)}),
    "arguments": _spec(container={"args": ["x" * 100] * 20_000}),
    "too-large-for-vertex": _spec(container={"args": ["y" * 8_000] * 1_000}),
    "html-name": _spec(name="<script>alert(1)</script>", run={"<img src=x onerror=alert(2)>": 1}),
    "long-key": _spec(run={"z" * 60_000: 1}),
    # Shapes
    "args-a-number": _spec(resource_args={"gcp-vertex": 7}),
    "spec-a-list": _spec(resource_args={"gcp-vertex": {"spec": [], "run": []}}),
    "docker-a-list": _spec(docker=[1]),
    "entity-an-object": _spec(entity={"a": 1}),
    "overrides-a-text": _spec(overrides="x"),
    "pool-null": _spec(spec={"worker_pool_specs": [None]}),
    "replicas-huge": _spec(pool={"replica_count": 10**80}),
    "timeout-huge": _spec(spec={"scheduling": {"timeout": "9" * 40 + "s"}}),
    # Reach
    "foreign-resource": {**_spec(), "resource": "sagemaker", "resource_args": {"sagemaker": {}}},
    "no-resource": _spec(resource_args={}),
    "others-run": _spec(run_id="vl" + "a" * 12),
    "others-run-by-case": _spec(run_id="VL" + "B" * 12),
    "bad-run": _spec(run_id="../../x"),
    "google-account": _spec(run={"service_account": CODE_AGENT}),
    "others-sweep": _spec(sweep_id="does-not-exist"),
    "look-alike": {
        **_spec(uri=SCHEDULER_URI, run={"no_such_argument": 1}),
        "overrides": {"entry_point": ["wandb", "scheduler", f"WANDB_SWEEP_ID={OTHERS_SWEEP}"], "args": [OTHERS_SWEEP]},
        "sweep_id": OTHERS_SWEEP,
    },
    "key-in-name": _spec(name=f"run {ITEM_KEY}", _wandb_api_key=ITEM_KEY),
    "key-in-labels": _spec(spec={"labels": {"key": ITEM_KEY}}, _wandb_api_key=ITEM_KEY),
    "key-then-fault": _spec(_wandb_api_key=ITEM_KEY, run={f"no_{ITEM_KEY}": _KEY_FORMS}),
    "image-elsewhere": _spec(docker={"docker_image": "evil.example:5000/x"}, container={"image_uri": "${nowhere}"}),
}
"""Run specs that must fail, whatever the settings are."""

_HARMLESS: Mapping[str, Spec] = {
    "account-missing": _spec(run={"service_account": None}),
    "account-empty": _spec(run={"service_account": ""}),
    "scheduler-address": _spec(uri=SCHEDULER_URI),
    "own-key": _spec(_wandb_api_key=ITEM_KEY),
    "replicas-negative": _spec(pool={"replica_count": -1}),
    "bidi-name": _spec(name="\u202egnp.exe\u202c\x1b[2J"),
}
"""Run specs that may start as ordinary jobs, or fail. Only their effect could be wrong."""

_SECURE: Mapping[str, Spec] = {
    "entry-point": _spec(overrides={"entry_point": ["sh", "-c", "id"]}),
    "command": _spec(container={"command": ["sh", "-c", "id"]}),
    **{
        name.lower().replace("_", "-"): _spec(container=_env(**{name: "/tmp/x"}))
        for name in ("LD_PRELOAD", "BASH_ENV", "PYTHONSTARTUP", "PYTHONPATH", "GCONV_PATH", "GIT_SSH_COMMAND")
    },
    "second-pool": _spec(
        spec={
            "worker_pool_specs": [
                {
                    "machine_spec": {"machine_type": "n1-standard-4"},
                    "replica_count": 1,
                    "container_spec": {"image_uri": one},
                }
                for one in ("${image_uri}", f"{REGISTRY}/hog:1")
            ]
        }
    ),
    "package": _spec(
        spec={
            "worker_pool_specs": [
                {
                    "machine_spec": {"machine_type": "n1-standard-4"},
                    "replica_count": 1,
                    "python_package_spec": {
                        "executor_image_uri": "${image_uri}",
                        "package_uris": ["gs://demo-staging/x.tar.gz"],
                        "python_module": "x",
                    },
                }
            ]
        }
    ),
}
"""Run specs that another program than the image's own would run for; ``secure_mode`` refuses them."""

ANSWERS: Mapping[str, str] = {
    "number": "7",
    "text": '"no"',
    "list": "[[]]",
    "true": "true",
    "wrong-types": '{"runQueueItemId": 7, "runSpec": []}',
    "no-id": '{"runQueueItemId": "", "runSpec": {}}',
    "only-null": '{"runQueueItemId": null, "runSpec": null}',
    "long-id": json.dumps({"runQueueItemId": "i" * 100_000, "runSpec": {}}),
    "nested": "[" * 2_000 + "]" * 2_000,
    "digits": "8" * 5_000,
    "cut-off": '{"runQueueItemId": "',
}
"""What a broken W&B, or a proxy before it, could send instead of a field's value. Faults of the kind ``answer`` send it."""

BODIES: Mapping[str, str] = {
    "html": "<html>welcome to the proxy</html>",
    "empty": "",
    "list": "[]",
    "null": "null",
    "data-a-number": '{"data": 7}',
    "errors-a-number": '{"errors": 7}',
    "errors-of-null": '{"data": null, "errors": [null]}',
    "not-utf-8": '{"data": "\udcff"}',
    "megabytes": '{"data": "' + "x" * 9_000_000 + '"}',
}
"""What it could send instead of a whole answer. Faults of the kind ``body`` send it."""
