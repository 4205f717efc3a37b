"""What the policy allows, and how it refuses the rest."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.specs import IMAGE, PACKAGE, SETTINGS, built, pool, run_spec
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.settings.config import Policy

SPEC = "resource_args.vertex.spec"
POOL = f"{SPEC}.worker_pool_specs[0]"
VPC = "projects/1/global/networks/vpc"
ATTACHED = {"psc_interface_config": {"network_attachment": "att"}}


def refused(spec: dict[str, Any], *, secure_mode: bool = False, **policy: Any) -> str:
    """Return why the policy refuses a job, the empty text if it does not."""
    settings = SETTINGS.model_copy(update={"policy": Policy(**policy), "secure_mode": secure_mode})
    try:
        built(spec, settings)
    except ItemRejected as error:
        return str(error)
    return ""


def machine(machine_type: str | None = "n1-standard-4", **more: Any) -> dict[str, Any]:
    return {**pool(), "machine_spec": {"machine_type": machine_type, **more}}


def gpu(count: int, kind: str = "NVIDIA_TESLA_T4") -> dict[str, Any]:
    return machine(accelerator_type=kind, accelerator_count=count)


EVERYTHING = run_spec(
    gpu(8), spec={"service_account": "a@b", "network": VPC, **ATTACHED}, overrides={"entry_point": ["sh"]}
)


def test_without_a_policy_everything_is_allowed() -> None:
    assert refused(EVERYTHING) == ""


@pytest.mark.parametrize(
    ("spec", "policy", "place", "code", "asked", "allowed"),
    [
        (run_spec(), {"images": ["gcr.io/acme/*"]}, f"{POOL}.container_spec.image_uri", Code.POLICY_IMAGE, IMAGE, "gcr.io/acme/*"),
        (run_spec(PACKAGE), {"images": []}, f"{POOL}.python_package_spec.executor_image_uri", Code.POLICY_IMAGE, "training/tf:1", "Remove"),
        (run_spec(pool(image_uri="${author}"), author="docker.io/evil"), {"images": [IMAGE]}, f"{POOL}.container_spec.image_uri", Code.POLICY_IMAGE, "docker.io/evil", IMAGE),
        (run_spec(spec={"service_account": "root@x"}), {"service_accounts": ["a@x", "b@x"]}, f"{SPEC}.service_account", Code.POLICY_SERVICE_ACCOUNT, "root@x", "a@x or b@x"),
        (run_spec(), {"service_accounts": ["a@x"]}, f"{SPEC}.service_account", Code.POLICY_SERVICE_ACCOUNT, "is set", "a@x"),
        (run_spec(pool(), {}, machine("a2-highgpu-1g")), {"machine_types": ["n1-*"]}, f"{SPEC}.worker_pool_specs[2].machine_spec.machine_type", Code.POLICY_MACHINE_TYPE, "a2-highgpu-1g", "n1-*"),
        (run_spec(), {"service_accounts": []}, f"{SPEC}.service_account", Code.POLICY_SERVICE_ACCOUNT, "is set", "set. Have policy"),
        (run_spec(machine(None)), {"machine_types": ["n1-*"]}, f"{POOL}.machine_spec.machine_type", Code.POLICY_MACHINE_TYPE, "is set", "n1-*"),
        (run_spec(gpu(4)), {"accelerators": {"NVIDIA_TESLA_T4": 2, "NVIDIA_L4": 1}}, f"{POOL}.machine_spec.accelerator_count", Code.POLICY_ACCELERATOR, "4 NVIDIA_TESLA_T4", "up to 2 NVIDIA_TESLA_T4 or up to 1 NVIDIA_L4"),
        (run_spec(gpu(1, "TPU_V3")), {"accelerators": {}}, f"{POOL}.machine_spec.accelerator_count", Code.POLICY_ACCELERATOR, "1 TPU_V3", "Remove"),
        (run_spec(gpu(0)), {"accelerators": {}}, f"{POOL}.machine_spec.accelerator_count", Code.POLICY_ACCELERATOR, "0 NVIDIA_TESLA_T4", "Remove"),
        (run_spec({**pool(), "replica_count": None}, {}, {**pool(), "replica_count": 3}), {"max_replicas": 3}, f"{SPEC}.worker_pool_specs", Code.POLICY_REPLICAS, "4 replicas", "at most 3"),
        (run_spec(spec={"network": VPC}), {"networks": ["projects/2/*"]}, f"{SPEC}.network", Code.POLICY_NETWORK, VPC, "projects/2/*"),
        (run_spec(run=ATTACHED), {"networks": []}, "resource_args.vertex.run.psc_interface_config.network_attachment", Code.POLICY_NETWORK, "att", "Remove"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_refused_at_its_place(
    spec: dict[str, Any], policy: dict[str, Any], place: str, code: Code, asked: str, allowed: str
) -> None:
    text = refused(spec, **policy)
    assert text.startswith(f"{place}: ")
    assert text.endswith(f"[{code}]")
    assert asked in text
    assert allowed in text
    assert f"policy.{next(iter(policy))} in vertex-launch.yaml" in text


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
        (EVERYTHING, {"networks": ["att", "projects/1/*"]}),
    ],
)
def test_what_is_allowed_starts(spec: dict[str, Any], policy: dict[str, Any]) -> None:
    assert refused(spec, **policy) == ""


def test_every_violation_is_reported() -> None:
    lists: dict[str, Any] = {name: [] for name in ("images", "service_accounts", "machine_types", "networks")}
    text = refused(EVERYTHING, secure_mode=True, accelerators={}, **lists)
    assert f"[{Code.SPEC_PROBLEMS}]" in text
    assert len(text.splitlines()) == 1 + 7


@given(st.text("ab[]!-*?", min_size=1, max_size=6))
def test_a_bracket_in_a_pattern_stands_for_itself(name: str) -> None:
    spec = run_spec(machine(name.replace("*", "x").replace("?", "y")))
    assert refused(spec, machine_types=[name]) == ""
    assert refused(spec, machine_types=[f"{name}z"]) != ""
