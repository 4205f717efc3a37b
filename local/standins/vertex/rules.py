"""What CreateCustomJob refuses. Pure.

The rules are documented, or were seen in answers of the real service. Two entries of one name in ``env`` are accepted,
because the official agent submits jobs with them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from google.cloud.aiplatform_v1 import AcceleratorType

Violation = tuple[str, str]
"""The path of a field, and what is wrong with its value."""

MAX_VARIABLES = 100
MAX_LABELS = 64
LABELS = (
    "There can be no more than 64 labels attached to a single resource. Label keys and values can only contain "
    "lowercase letters, numbers, dashes and underscores. Label keys must start with a letter or number, must be less "
    "than 64 characters in length, and must be less that 128 bytes in length when encoded in UTF-8. Label values must "
    "be less than 64 characters in length, and must be less that 128 bytes in length when encoded in UTF-8."
)
"""The words of the real service, including its mistakes."""

_IMAGE = re.compile(
    r"[a-zA-Z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def violations(job: Any) -> list[Violation]:
    """Return everything that is wrong with a CustomJob (the plain protobuf message)."""
    return [*_head(job), *_pools(job.job_spec)]


def message(found: list[Violation]) -> str:
    """Return violations in the form of the real service, separated by tabs."""
    lines = [f"{n}.Field: {field}; Message: {text}" for n, (field, text) in enumerate(found, 1)]
    return "List of found errors:\t" + "\t".join(lines) + "\t"


def accelerators(job: Any) -> Counter[str]:
    """Return the number of accelerators in all pools of a job, by the name of their type."""
    taken: Counter[str] = Counter()
    for pool in job.job_spec.worker_pool_specs:
        if pool.machine_spec.accelerator_type:
            name = AcceleratorType(pool.machine_spec.accelerator_type).name
            taken[name] += pool.machine_spec.accelerator_count * max(1, pool.replica_count)
    return taken


def quota_metric(accelerator: str) -> str:
    """Return the quota of an accelerator type: custom_model_training_nvidia_t4_gpus for NVIDIA_TESLA_T4."""
    name = accelerator.lower().replace("tesla_", "")
    unit = "_gpus" if name.startswith("nvidia") else ""
    return f"aiplatform.googleapis.com/custom_model_training_{name}{unit}"


def _head(job: Any) -> Iterator[Violation]:
    if not job.display_name:
        yield "display_name", "The display name is required."
    if len(job.display_name) > 128:
        yield "display_name", "The display name must be at most 128 characters long."
    if len(job.labels) > MAX_LABELS or not all(_legal(k, v) for k, v in job.labels.items()):
        yield "labels", LABELS
    output = job.job_spec.base_output_directory.output_uri_prefix
    if output and not output.startswith("gs://"):
        yield "job_spec.base_output_directory.output_uri_prefix", f"{output} is not a Cloud Storage path (gs://)."


def _legal(key: str, value: str) -> bool:
    if not key[:1].isalpha():
        return False
    return all(
        len(text) < 64 and len(text.encode()) < 128 and all(_legal_character(c) for c in text) for text in (key, value)
    )


def _legal_character(character: str) -> bool:
    return character in "_-" or (character.isalnum() and not character.isupper())


def _pools(spec: Any) -> Iterator[Violation]:
    if not spec.worker_pool_specs:
        yield "job_spec.worker_pool_specs", "At least one worker pool must be specified."
    for index, pool in enumerate(spec.worker_pool_specs):
        path = f"job_spec.worker_pool_specs[{index}]"
        if pool.ByteSize():
            yield from _pool(path, pool, first=index == 0, own_machines=not spec.persistent_resource_id)
        elif index == 0:
            yield path, "The first worker pool must not be empty."


def _pool(path: str, pool: Any, *, first: bool, own_machines: bool) -> Iterator[Violation]:
    task = pool.WhichOneof("task")
    if task is None:
        yield path, "One of `container_spec` and `python_package_spec` must be specified."
    elif task == "container_spec":
        yield from _image(f"{path}.container_spec.image_uri", pool.container_spec.image_uri)
        yield from _env(f"{path}.container_spec.env", pool.container_spec.env)
    else:
        yield from _package(f"{path}.python_package_spec", pool.python_package_spec)
    for name, count in (
        ("replica_count", pool.replica_count),
        ("machine_spec.accelerator_count", pool.machine_spec.accelerator_count),
        ("disk_spec.boot_disk_size_gb", pool.disk_spec.boot_disk_size_gb),
    ):
        if count < 0:
            yield f"{path}.{name}", "The value must not be negative."
    if first and pool.replica_count > 1:
        yield f"{path}.replica_count", "The replica count of the first worker pool must be 1."
    machine = pool.machine_spec
    if own_machines and not machine.machine_type:
        yield f"{path}.machine_spec.machine_type", "The machine type is required."
    if bool(machine.accelerator_type) != bool(machine.accelerator_count):
        yield (
            f"{path}.machine_spec.accelerator_type",
            "Both `accelerator_type` and `accelerator_count` should be specified or none.",
        )


def _package(path: str, package: Any) -> Iterator[Violation]:
    yield from _image(f"{path}.executor_image_uri", package.executor_image_uri)
    if not package.package_uris:
        yield f"{path}.package_uris", "At least one package is required."
    if not package.python_module:
        yield f"{path}.python_module", "The Python module is required."
    yield from _env(f"{path}.env", package.env)


def _image(path: str, image_uri: str) -> Iterator[Violation]:
    if not _IMAGE.fullmatch(image_uri):
        yield path, f'"{image_uri}" is not a valid container image URI.'


def _env(path: str, variables: Any) -> Iterator[Violation]:
    if len(variables) > MAX_VARIABLES:
        yield path, f"At most {MAX_VARIABLES} environment variables can be specified, got {len(variables)}."
    for variable in variables:
        if not _VARIABLE.fullmatch(variable.name):
            yield path, f'"{variable.name}" is not a valid environment variable name: it must be a C identifier.'
