"""What a run spec may ask for, as the deployment's settings allow it. Pure; called by ``dispatcher`` for each new item.

It is held against the finished CustomJob, so that no macro and no second place for an argument leads around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from vertex_launch.job.arguments import IMAGE_FIELDS
from vertex_launch.model import RunSpec
from vertex_launch.settings.config import Settings

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import CustomJob


def violations(job: CustomJob, spec: RunSpec, settings: Settings) -> list[str]:
    """Give a sentence for everything that the job asks for and is not allowed; none when it may run.

    Each says what was asked for, what is allowed, and where that is configured.
    """
    found = list(_entry_point(spec, settings))
    policy, wanted = settings.policy, job.job_spec
    found += _account(wanted.service_account, policy.service_accounts)
    for network in (wanted.network, wanted.psc_interface_config.network_attachment):
        if network:
            found += _listed("The job asks for network", network, policy.networks, "networks")
    pools = [(index, pool) for index, pool in enumerate(wanted.worker_pool_specs) if _image(pool)]
    for index, pool in pools:
        who = f"Worker pool {index} asks for"
        found += _listed(f"{who} image", _image(pool), policy.images, "images")
        machine = pool.machine_spec
        found += _listed(f"{who} machine type", machine.machine_type, policy.machine_types, "machine_types")
        if machine.accelerator_type or machine.accelerator_count:
            found += _accelerator(who, machine, settings)
    # A pool whose count is not set gets one replica.
    replicas = sum(max(1, pool.replica_count) for _, pool in pools)
    if policy.max_replicas is not None and replicas > policy.max_replicas:
        found.append(
            f"The job asks for {replicas} replicas in all; allowed are {policy.max_replicas} {_where('max_replicas')}."
        )
    return found


def _entry_point(spec: RunSpec, settings: Settings) -> Iterator[str]:
    if settings.secure_mode and spec.entry_point:
        yield (
            "The item overrides the entry point (overrides.entry_point), and this deployment allows the image's own only "
            "(launch-config.yaml: secure_mode)."
        )


def _account(account: str, allowed: Sequence[str] | None) -> Iterator[str]:
    if account or allowed is None:
        yield from _listed("The job asks to run as service account", account, allowed, "service_accounts")
    elif not _matches("", allowed):
        yield (
            "The job names no service account and would run as Vertex AI's own agent; "
            f"allowed as service_account are {_names(allowed)} {_where('service_accounts')}."
        )


def _accelerator(who: str, machine: Any, settings: Settings) -> Iterator[str]:
    allowed = settings.policy.accelerators
    if allowed is None:
        return
    name = machine.accelerator_type.name
    if machine.accelerator_count > allowed.get(name, 0) or name not in allowed:
        listed = _names([f"up to {count} {one}" for one, count in allowed.items()])
        yield f"{who} {machine.accelerator_count} {name} per replica; allowed are {listed} {_where('accelerators')}."


def _listed(asks: str, value: str, allowed: Sequence[str] | None, key: str) -> Iterator[str]:
    if allowed is not None and not _matches(value, allowed):
        yield f"{asks} {value or '(none named)'}; allowed are {_names(allowed)} {_where(key)}."


def _matches(value: str, patterns: Sequence[str]) -> bool:
    """Tell whether a pattern fits the whole value; ``*`` and ``?`` are special, a bracket is not."""
    return any(fnmatchcase(value, pattern.replace("[", "[[]")) for pattern in patterns)


def _image(pool: Any) -> str:
    return next((image for task, name in IMAGE_FIELDS.items() if (image := getattr(getattr(pool, task), name))), "")


def _names(allowed: Sequence[str]) -> str:
    return ", ".join(allowed) or "none"


def _where(key: str) -> str:
    return f"(vertex-launch.yaml: policy.{key})"
