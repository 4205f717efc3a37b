"""What the policy allows, and the sentence for what it does not."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.specs import ENTITY, IMAGE, KEY, SETTINGS, item, pool, run_spec
from vertex_launch.job.custom_job import build, parse
from vertex_launch.job.policy import violations
from vertex_launch.settings.config import Policy, Settings


def found(spec: dict[str, Any], *, secure_mode: bool = False, **policy: Any) -> list[str]:
    settings: Settings = SETTINGS.model_copy(update={"policy": Policy(**policy), "secure_mode": secure_mode})
    one = item(spec)
    parsed = parse(one)
    job = build(one, parsed, settings, entity=ENTITY, api_key=KEY, now=datetime(2026, 1, 1)).custom_job
    return violations(job, parsed, settings)


def gpu(count: int, kind: str = "NVIDIA_TESLA_T4") -> dict[str, Any]:
    return {
        **pool(),
        "machine_spec": {"machine_type": "n1-standard-4", "accelerator_type": kind, "accelerator_count": count},
    }


PACKAGE = {
    "machine_spec": {"machine_type": "n1-standard-4"},
    "python_package_spec": {
        "executor_image_uri": "us-docker.pkg.dev/vertex-ai/training/tf:1",
        "python_module": "train",
    },
}
NETWORKED = {"network": "projects/1/global/networks/vpc", "psc_interface_config": {"network_attachment": "att"}}


def test_without_a_policy_everything_goes() -> None:
    assert (
        found(run_spec(gpu(8), spec={"service_account": "a@b", **NETWORKED}, overrides={"entry_point": ["sh"]})) == []
    )


@pytest.mark.parametrize(
    ("spec", "policy", "sentence"),
    [
        (
            run_spec(),
            {"images": ["gcr.io/acme/*"]},
            f"Worker pool 0 asks for image {IMAGE}; allowed are gcr.io/acme/* (vertex-launch.yaml: policy.images).",
        ),
        (
            run_spec(PACKAGE),
            {"images": []},
            "Worker pool 0 asks for image us-docker.pkg.dev/vertex-ai/training/tf:1; allowed are none "
            "(vertex-launch.yaml: policy.images).",
        ),
        (
            run_spec(spec={"service_account": "root@x"}),
            {"service_accounts": ["a@x", "b@x"]},
            "The job asks to run as service account root@x; allowed are a@x, b@x "
            "(vertex-launch.yaml: policy.service_accounts).",
        ),
        (
            run_spec(),
            {"service_accounts": ["a@x"]},
            "The job names no service account and would run as Vertex AI's own agent; allowed as service_account are a@x "
            "(vertex-launch.yaml: policy.service_accounts).",
        ),
        (
            run_spec(pool(), {}, {**pool(), "machine_spec": {"machine_type": "a2-highgpu-1g"}}),
            {"machine_types": ["n1-*"]},
            "Worker pool 2 asks for machine type a2-highgpu-1g; allowed are n1-* "
            "(vertex-launch.yaml: policy.machine_types).",
        ),
        (
            run_spec({**pool(), "machine_spec": {}}),
            {"machine_types": ["n1-*"]},
            "Worker pool 0 asks for machine type (none named); allowed are n1-* (vertex-launch.yaml: policy.machine_types).",
        ),
        (
            run_spec(gpu(4)),
            {"accelerators": {"NVIDIA_TESLA_T4": 2, "NVIDIA_L4": 1}},
            "Worker pool 0 asks for 4 NVIDIA_TESLA_T4 per replica; allowed are up to 2 NVIDIA_TESLA_T4, up to 1 NVIDIA_L4 "
            "(vertex-launch.yaml: policy.accelerators).",
        ),
        (
            run_spec(gpu(1, "TPU_V3")),
            {"accelerators": {}},
            "Worker pool 0 asks for 1 TPU_V3 per replica; allowed are none (vertex-launch.yaml: policy.accelerators).",
        ),
        (
            run_spec(gpu(0)),
            {"accelerators": {}},
            "Worker pool 0 asks for 0 NVIDIA_TESLA_T4 per replica; allowed are none "
            "(vertex-launch.yaml: policy.accelerators).",
        ),
        (
            run_spec({**pool(), "replica_count": None}, {}, {**pool(), "replica_count": 3}),
            {"max_replicas": 3},
            "The job asks for 4 replicas in all; allowed are 3 (vertex-launch.yaml: policy.max_replicas).",
        ),
        (
            run_spec(spec={"network": "projects/1/global/networks/vpc"}),
            {"networks": ["projects/2/*"]},
            "The job asks for network projects/1/global/networks/vpc; allowed are projects/2/* "
            "(vertex-launch.yaml: policy.networks).",
        ),
        (
            run_spec(run={"psc_interface_config": {"network_attachment": "att"}}),
            {"networks": []},
            "The job asks for network att; allowed are none (vertex-launch.yaml: policy.networks).",
        ),
    ],
)
def test_what_is_not_allowed_is_said_with_what_is(spec: dict[str, Any], policy: dict[str, Any], sentence: str) -> None:
    assert found(spec, **policy) == [sentence]


@pytest.mark.parametrize(
    ("spec", "policy"),
    [
        (run_spec(), {"images": ["us-docker.pkg.dev/demo-project/*"]}),
        (run_spec(spec={"service_account": "a@x"}), {"service_accounts": ["?@x"]}),
        (run_spec(), {"service_accounts": ["*"]}),
        (run_spec(), {"machine_types": ["n1-standard-4"]}),
        (run_spec(gpu(2)), {"accelerators": {"NVIDIA_TESLA_T4": 2}}),
        (run_spec(), {"accelerators": {}}),
        (run_spec(pool(), pool()), {"max_replicas": 2}),
        (run_spec(), {"networks": []}),
        (run_spec(spec=NETWORKED), {"networks": ["att", "projects/1/*"]}),
    ],
)
def test_what_is_allowed_goes(spec: dict[str, Any], policy: dict[str, Any]) -> None:
    assert found(spec, **policy) == []


def test_every_violation_is_said() -> None:
    spec = run_spec(gpu(1), spec=NETWORKED, overrides={"entry_point": ["sh"]})
    policy: dict[str, Any] = {
        "images": [],
        "service_accounts": [],
        "machine_types": [],
        "accelerators": {},
        "networks": [],
    }
    assert len(found(spec, secure_mode=True, **policy)) == 7


def test_secure_mode_refuses_an_overridden_entry_point_and_nothing_else() -> None:
    assert found(run_spec(overrides={"args": ["--lr", "1"]}), secure_mode=True) == []
    assert found(run_spec(overrides={"entry_point": ["sh"]}), secure_mode=True) == [
        "The item overrides the entry point (overrides.entry_point), and this deployment allows the image's own only "
        "(launch-config.yaml: secure_mode)."
    ]


def test_a_macro_leads_not_around_it() -> None:
    spec = run_spec(pool(image_uri="${author}"), author="docker.io/evil")
    assert found(spec, images=[IMAGE]) == [
        f"Worker pool 0 asks for image docker.io/evil; allowed are {IMAGE} (vertex-launch.yaml: policy.images)."
    ]


@given(st.text("ab[]!-*?", min_size=1, max_size=6))
def test_a_bracket_in_a_pattern_stands_for_itself(name: str) -> None:
    machine = name.replace("*", "x").replace("?", "y")
    spec = run_spec({**pool(), "machine_spec": {"machine_type": machine}})
    assert found(spec, machine_types=[name]) == []
    assert found(spec, machine_types=[f"{name}z"]) != []
