"""What Vertex AI refuses is refused before, with its place and advice; a machine type that is not known is a warning."""

from __future__ import annotations

from typing import Any

import pytest

from local.standins.vertex.rules import violations
from tests.support.specs import built, pool, run_spec
from tests.unit.test_run_spec import POOL, TASK, VERTEX, put, rejected
from vertex_launch.codes import Code

MACHINE = f"{POOL}.machine_spec"


def machine(name: str, chip: str = "", count: int = 0) -> dict[str, Any]:
    given = {"machine_type": name, "accelerator_type": chip, "accelerator_count": count}
    return {key: value for key, value in given.items() if value}


@pytest.mark.parametrize(
    ("at", "value", "place", "advice"),
    [
        (MACHINE, machine("n1-standard-4", "NVIDIA_TESLA_T4"), f"{MACHINE}.accelerator_count", "Set both"),
        (MACHINE, machine("n1-standard-4", count=1), f"{MACHINE}.accelerator_type", "Set both"),
        (MACHINE, machine("n1-standard-4", "NVIDIA_TESLA_A100", 1), f"{MACHINE}.accelerator_type", "a2 machine types"),
        (MACHINE, machine("e2-standard-4", "NVIDIA_TESLA_T4", 1), f"{MACHINE}.accelerator_type", "n1 machine types"),
        (MACHINE, machine("g2-standard-12", "NVIDIA_TESLA_V100", 1), f"{MACHINE}.accelerator_type", "n1 machine types"),
        (MACHINE, machine("a3-highgpu-8g", "NVIDIA_A100_80GB", 8), f"{MACHINE}.accelerator_type", "a2 machine types"),
        (f"{TASK}.image_uri", "https://us-docker.pkg.dev/p/r/i:1", f"{TASK}.image_uri", "without https://"),
        (f"{TASK}.image_uri", "docker://python:3.11", f"{TASK}.image_uri", "without docker://"),
        (f"{TASK}.image_uri", "${image_url}", f"{TASK}.image_uri", "Did you mean ${image_uri}?"),
        (f"{TASK}.image_uri", "gcr.io/P/Train:1", f"{TASK}.image_uri", "lowercase"),
        (f"{TASK}.env", [{"name": "MY-VAR", "value": "1"}], f"{TASK}.env[0].name", "letters, digits and _"),
        (f"{TASK}.env", [{"name": "1A", "value": "1"}], f"{TASK}.env[0].name", "begin with a digit"),
        (f"{TASK}.env", [{"name": "BASH_FUNC_ls%%", "value": "1"}], f"{TASK}.env[0].name", "letters, digits and _"),
        (f"{VERTEX}.spec.service_account", "jobs", f"{VERTEX}.spec.service_account", "NAME@PROJECT"),
        (f"{VERTEX}.spec.network", "default", f"{VERTEX}.spec.network", "projects/PROJECT_NUMBER"),
        (f"{VERTEX}.spec.network", "global/networks/vpc", f"{VERTEX}.spec.network", "projects/PROJECT_NUMBER"),
        (f"{POOL}.replica_count", 0, f"{POOL}.replica_count", "Set it to 1"),
        (f"{POOL}.replica_count", 4, f"{POOL}.replica_count", "second pool"),
    ],
)
def test_what_vertex_ai_refuses(at: str, value: Any, place: str, advice: str) -> None:
    error = rejected(put(run_spec(), at, value))
    assert error.message.text.startswith(f"{place}: ")
    assert advice in error.message.text


@pytest.mark.parametrize(
    "one",
    [
        machine("n1-standard-4", "NVIDIA_TESLA_T4", 4),
        machine("a2-highgpu-1g", "NVIDIA_TESLA_A100", 1),
        machine("a2-ultragpu-8g", "NVIDIA_A100_80GB", 8),
        machine("a3-megagpu-8g", "NVIDIA_H100_MEGA_80GB", 8),
        machine("a3-ultragpu-8g", "NVIDIA_H200_141GB", 8),
        machine("g2-standard-96", "NVIDIA_L4", 8),
        machine("cloud-tpu", "TPU_V3", 8),
        machine("ct5lp-hightpu-4t"),
        machine("c2-standard-60"),
        machine("m1-ultramem-40"),
        machine("e2-highmem-2"),
    ],
    ids=lambda one: one["machine_type"],
)
def test_machines_of_all_kinds(one: dict[str, Any]) -> None:
    made = built(run_spec({**pool(), "machine_spec": one}))
    assert [warning.code for warning in made.warnings] == []
    assert violations(type(made.custom_job).pb(made.custom_job)) == []


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("n1-standrad-4", "Did you mean n1-standard-4?"),
        ("n9-standard-4", "misspelt"),
        ("big", "misspelt"),
        ("n1-standard", "misspelt"),
    ],
)
def test_a_machine_type_that_is_not_known_is_a_warning(name: str, advice: str) -> None:
    (warning,) = built(run_spec({**pool(), "machine_spec": machine(name)})).warnings
    assert warning.code is Code.SPEC_MACHINE
    assert advice in warning.text
