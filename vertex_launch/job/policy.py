"""What a run spec may ask for under the deployment's settings. Pure; called by ``build``.

The finished CustomJob is checked, so neither macros nor alternative argument locations can bypass the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vertex_launch.codes import Code
from vertex_launch.job.arguments import IMAGE_FIELDS, TASKS, Arguments
from vertex_launch.job.findings import Findings
from vertex_launch.job.run_spec import RunSpec
from vertex_launch.settings.config import Settings

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import CustomJob

_CODES = {
    "images": Code.POLICY_IMAGE,
    "service_accounts": Code.POLICY_SERVICE_ACCOUNT,
    "machine_types": Code.POLICY_MACHINE_TYPE,
    "networks": Code.POLICY_NETWORK,
}


def check(job: CustomJob, spec: RunSpec, settings: Settings, findings: Findings) -> None:
    """Report everything that the job asks for but the policy does not allow, at its place in the run spec."""
    policy = settings.policy
    pools = [(index, pool) for index, pool in enumerate(job.job_spec.worker_pool_specs) if pool]
    for place, noun, value, key in _named(job, spec.arguments):
        allowed = getattr(policy, key)
        if allowed is not None and not _matches(value, allowed):
            found = f"{noun} {value} is not allowed" if value else f"no {noun} is set"
            findings.wrong(place, found, _remedy(allowed, key, settings, "Use" if value else "Set"), _CODES[key])
    for index, pool in pools:
        kind, count = pool.machine_spec.accelerator_type.name, pool.machine_spec.accelerator_count
        most = policy.accelerators
        asked = pool.machine_spec.accelerator_type or count
        if most is not None and asked and (kind not in most or count > most[kind]):
            findings.wrong(
                f"{spec.arguments.place('worker_pool_specs')}[{index}].machine_spec.accelerator_count",
                f"{count} {kind} per replica are not allowed",
                _remedy([f"up to {limit} {name}" for name, limit in most.items()], "accelerators", settings),
                Code.POLICY_ACCELERATOR,
            )
    replicas = sum(max(1, pool.replica_count) for _, pool in pools)  # Vertex AI takes an unset count as 1.
    if policy.max_replicas is not None and replicas > policy.max_replicas:
        findings.wrong(
            spec.arguments.place("worker_pool_specs"),
            f"the job asks for {replicas} replicas in all, which is not allowed",
            _remedy([f"at most {policy.max_replicas}"], "max_replicas", settings),
            Code.POLICY_REPLICAS,
        )


def _named(job: CustomJob, arguments: Arguments) -> Iterator[tuple[str, str, str, str]]:
    """Return the place, noun and value of everything that the policy restricts by name, and the setting that does."""
    wanted, pools = job.job_spec, arguments.place("worker_pool_specs")
    attachment, network = f"{arguments.place('psc_interface_config')}.network_attachment", arguments.place("network")
    yield arguments.place("service_account"), "service account", wanted.service_account, "service_accounts"
    if wanted.network:
        yield network, "network", wanted.network, "networks"
    if wanted.psc_interface_config.network_attachment:
        yield attachment, "network", wanted.psc_interface_config.network_attachment, "networks"
    for index, pool in enumerate(wanted.worker_pool_specs):
        for task in [name for name in TASKS if getattr(pool, name)]:
            field, machine = IMAGE_FIELDS[task], f"{pools}[{index}].machine_spec.machine_type"
            yield f"{pools}[{index}].{task}.{field}", "image", getattr(getattr(pool, task), field), "images"
            yield machine, "machine type", pool.machine_spec.machine_type, "machine_types"


def _matches(value: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern fits the whole value; ``*`` and ``?`` are special, a bracket is not."""
    return any(fnmatchcase(value, pattern.replace("[", "[[]")) for pattern in patterns)


def _remedy(allowed: Sequence[str], key: str, settings: Settings, verb: str = "Use") -> str:
    setting = settings.where("policy", key)
    if not allowed and verb == "Set":
        return f"Have {setting} changed"
    use = f"{verb} {' or '.join(allowed)}" if allowed else "Remove it"
    return f"{use}, or have {setting} changed"
