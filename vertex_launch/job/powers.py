"""What a CustomJob asks for that gives power: over accounts, data, networks, machines and money. Pure; called by ``policy``.

The finished job is read, so neither macros nor other argument locations can hide anything.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from google.cloud.aiplatform_v1.types import CustomJob, Scheduling

from vertex_launch.job.arguments import IMAGE_FIELDS, TASKS, Arguments
from vertex_launch.model import RunId
from vertex_launch.settings.config import Policy, Settings

DEFAULT_TIMEOUT = 604_800
"""Seconds that Vertex AI lets a job run that sets no timeout: seven days (Scheduling.timeout)."""

DEFAULT_WAIT = 86_400
"""Seconds that a job with FLEX_START waits for its machines if it sets no max_wait_duration."""

LONGEST_WAIT = 315_576_000_000
"""Seconds that stand for a wait without an end: what a protocol buffer Duration can hold."""

LONGEST_TYPE = 100
"""Characters of a machine type; Google's have up to 30."""

_WITH_GPUS = re.compile(r"(a\d+x?|g(?!1-)\d+)-")
"""Series of machine types that have GPUs by themselves."""

_GPUS = re.compile(r"-(\d{1,6})g(?:-|$)")
_VCPUS = re.compile(r"-(\d{1,6})(?:-|$)")
GPUS_BY_VCPUS = {
    "g2": {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8},
    "g4": {6: 1, 12: 1, 24: 1, 48: 1, 96: 2, 192: 4, 384: 8},  # the first three have a part of one
}
"""GPUs of the series whose machine types have their number of vCPUs in the name instead."""

MOST_GPUS = 16
"""GPUs that a machine type counts with if its series has GPUs and their number is not known: the most that any has."""

_TPUS = re.compile(r"(?:cloud-tpu|ct\d\w*|tpu\w*)(?:-.*?)?(?:-(\d{1,6})t)?")
_TOPOLOGY = re.compile(r"\d{1,6}(x\d{1,6}){0,3}")
"""Machine types that are TPUs, and their number of chips."""

_POOL = "job_spec.worker_pool_specs"
WITHOUT_POWER = frozenset(
    {
        "display_name",
        "labels",
        "job_spec.scheduling.disable_retries",
        "job_spec.scheduling.restart_job_on_worker_restart",
        f"{_POOL}.disk_spec.boot_disk_type",  # changes speed and price; the size has a line
        f"{_POOL}.lustre_mounts.mount_point",
        f"{_POOL}.machine_spec.gpu_partition_size",
        f"{_POOL}.nfs_mounts.mount_point",
        f"{_POOL}.machine_spec.reservation_affinity.key",
        *(f"{_POOL}.container_spec.{name}" for name in ("args", "command", "env.name", "env.value")),
        *(f"{_POOL}.python_package_spec.{name}" for name in ("args", "env.name", "env.value", "python_module")),
    }
)
"""Fields that give a job no more than its image has, or that only change its speed, price or names.

The other ones that are known are read by ``asked``. A test compares both with the fields of the message.
"""

READ = frozenset(
    {
        "encryption_spec.kms_key_name",
        "job_spec.base_output_directory.output_uri_prefix",
        "job_spec.enable_dashboard_access",
        "job_spec.enable_web_access",
        "job_spec.experiment",
        "job_spec.experiment_run",
        "job_spec.models",
        "job_spec.network",
        "job_spec.persistent_resource_id",
        "job_spec.protected_artifact_location_id",
        "job_spec.psc_interface_config.dns_peering_configs.domain",
        "job_spec.psc_interface_config.dns_peering_configs.target_network",
        "job_spec.psc_interface_config.dns_peering_configs.target_project",
        "job_spec.psc_interface_config.network_attachment",
        "job_spec.reserved_ip_ranges",
        "job_spec.scheduling.max_wait_duration",
        "job_spec.scheduling.strategy",
        "job_spec.scheduling.timeout",
        "job_spec.service_account",
        "job_spec.tensorboard",
        f"{_POOL}.container_spec.image_uri",
        f"{_POOL}.disk_spec.boot_disk_size_gb",
        f"{_POOL}.lustre_mounts.filesystem",
        f"{_POOL}.lustre_mounts.instance_ip",
        f"{_POOL}.lustre_mounts.volume_handle",
        f"{_POOL}.machine_spec.accelerator_count",
        f"{_POOL}.machine_spec.accelerator_type",
        f"{_POOL}.machine_spec.machine_type",
        f"{_POOL}.machine_spec.reservation_affinity.reservation_affinity_type",
        f"{_POOL}.machine_spec.reservation_affinity.values",
        f"{_POOL}.machine_spec.tpu_topology",
        f"{_POOL}.nfs_mounts.path",
        f"{_POOL}.nfs_mounts.server",
        f"{_POOL}.python_package_spec.executor_image_uri",
        f"{_POOL}.python_package_spec.package_uris",
        f"{_POOL}.replica_count",
    }
)
"""Fields that ``asked`` reads."""


KEYS = tuple(key for key in Policy.model_fields if key not in ("unlisted", "environment_macros"))
"""The lines of the policy, one for each power."""


class Ask(NamedTuple):
    """One thing that a job asks for: the key of the policy that limits it, its place in the run spec, and what it is.

    ``value`` is a name, a number, true for a switch, or an accelerator with its count.
    """

    key: str
    place: str
    noun: str
    value: str | int | bool | tuple[str, int]


class Asker(Protocol):
    """Who asks for a job: a run spec, or what is left of one in the job itself."""

    @property
    def run(self) -> RunId:
        """The W&B run that the job reports as."""

    @property
    def arguments(self) -> Arguments:
        """The arguments that are the run spec's own, and their places."""


def asked(job: CustomJob, spec: Asker, settings: Settings) -> Iterator[Ask]:
    """Return everything that a job asks for. What the settings give by themselves, it does not ask for."""
    wanted, place = job.job_spec, spec.arguments.place
    if wanted.service_account and spec.arguments["service_account"]:
        yield Ask("service_accounts", place("service_account"), "service account", wanted.service_account)
    yield from _data(job, spec, settings)
    yield from _networks(wanted, place)
    for index, pool in enumerate(wanted.worker_pool_specs):
        yield from _pool(pool, f"{place('worker_pool_specs')}[{index}]")
    replicas = sum(max(1, pool.replica_count) for pool in wanted.worker_pool_specs if pool)  # an unset count is 1
    yield Ask("max_replicas", place("worker_pool_specs"), "number of replicas", replicas)
    yield from _times(CustomJob.pb(job).job_spec.scheduling, place)
    for name, key in (("enable_web_access", "web_access"), ("enable_dashboard_access", "dashboard_access")):
        if getattr(wanted, name):
            yield Ask(key, place(name), "access", True)
    yield Ask("projects", "project", "W&B project", f"{spec.run.entity}/{spec.run.project}".lower())


def _times(scheduling: Any, place: Any) -> Iterator[Ask]:
    """Return how long a job may hold a slot: while it runs, and while it waits for machines that only FLEX_START waits for."""
    yield Ask("max_run_time", place("timeout"), "run time in seconds", scheduling.timeout.seconds or DEFAULT_TIMEOUT)
    if scheduling.strategy == Scheduling.Strategy.FLEX_START:
        is_set = scheduling.HasField("max_wait_duration")
        seconds = (scheduling.max_wait_duration.seconds or LONGEST_WAIT) if is_set else DEFAULT_WAIT
        yield Ask("max_wait_time", place("max_wait_duration"), "wait in seconds", seconds)


def _data(job: CustomJob, spec: Asker, settings: Settings) -> Iterator[Ask]:
    """Return what a job reads and writes, and with which keys."""
    wanted, place = job.job_spec, spec.arguments.place
    configured = {_folder(region.staging_bucket) for region in settings.regions if region.staging_bucket}
    output = (
        "base_output_dir" if spec.arguments["base_output_dir"] else "staging_bucket"
    )  # the first makes the other idle
    path = _folder(spec.arguments[output] or "")
    if path and path not in configured:
        yield Ask("buckets", place(output), "Cloud Storage path", path)
    for name, key, noun, value in (
        ("encryption_spec_key_name", "kms_keys", "encryption key", job.encryption_spec.kms_key_name),
        ("tensorboard", "tensorboards", "Tensorboard", wanted.tensorboard),
        ("experiment", "experiments", "experiment", wanted.experiment),
        ("experiment_run", "experiments", "experiment run", wanted.experiment_run),
        ("persistent_resource_id", "persistent_resources", "persistent resource", wanted.persistent_resource_id),
        (
            "protected_artifact_location_id",
            "artifact_locations",
            "artifact location",
            wanted.protected_artifact_location_id,
        ),
        *(("models", "models", "model", model) for model in wanted.models),
    ):
        if value:
            yield Ask(key, place(name), noun, value)


def paths(job: CustomJob, arguments: Arguments) -> Iterator[tuple[str, str]]:
    """Return the Cloud Storage paths that a job writes to and installs packages from, each after its place."""
    output = "base_output_dir" if arguments["base_output_dir"] else "staging_bucket"
    yield arguments.place(output), job.job_spec.base_output_directory.output_uri_prefix
    pools = arguments.place("worker_pool_specs")
    for index, pool in enumerate(job.job_spec.worker_pool_specs):
        for path in pool.python_package_spec.package_uris:
            yield f"{pools}[{index}].python_package_spec.package_uris", path


def _folder(path: str) -> str:
    """Return a Cloud Storage path with its scheme and a slash at its end, so that ``gs://bucket/*`` fits a bucket as well."""
    return f"gs://{path.removeprefix('gs://').rstrip('/')}/" if path else ""


def _networks(wanted: Any, place: Any) -> Iterator[Ask]:
    psc, at = wanted.psc_interface_config, place("psc_interface_config")
    if wanted.network:
        yield Ask("networks", place("network"), "network", wanted.network)
    if psc.network_attachment:
        yield Ask("networks", f"{at}.network_attachment", "network", psc.network_attachment)
    for index, peering in enumerate(psc.dns_peering_configs):
        network = f"projects/{peering.target_project}/global/networks/{peering.target_network}"
        yield Ask("networks", f"{at}.dns_peering_configs[{index}]", "network", network)
        yield Ask("dns_domains", f"{at}.dns_peering_configs[{index}].domain", "domain", peering.domain)
    for index, name in enumerate(wanted.reserved_ip_ranges):
        yield Ask("ip_ranges", f"{place('reserved_ip_ranges')}[{index}]", "IP range", name)


def _pool(pool: Any, place: str) -> Iterator[Ask]:
    """Return what one worker pool asks for."""
    for task in [name for name in TASKS if getattr(pool, name)]:
        image = getattr(getattr(pool, task), IMAGE_FIELDS[task])
        yield Ask("images", f"{place}.{task}.{IMAGE_FIELDS[task]}", "image", image)
        yield Ask("machine_types", f"{place}.machine_spec.machine_type", "machine type", pool.machine_spec.machine_type)
    for index, path in enumerate(pool.python_package_spec.package_uris):
        yield Ask("buckets", f"{place}.python_package_spec.package_uris[{index}]", "Cloud Storage path", path)
    yield from _accelerators(pool.machine_spec, f"{place}.machine_spec")
    affinity = pool.machine_spec.reservation_affinity
    if affinity:
        kind = affinity.reservation_affinity_type.name
        for name in [*affinity.values, *([kind] if kind == "ANY_RESERVATION" or not affinity.values else [])]:
            yield Ask("reservations", f"{place}.machine_spec.reservation_affinity", "reservation", name)
    if pool.disk_spec.boot_disk_size_gb:
        size = pool.disk_spec.boot_disk_size_gb
        yield Ask("max_boot_disk_gb", f"{place}.disk_spec.boot_disk_size_gb", "boot disk size in GB", size)
    for index, mount in enumerate(pool.nfs_mounts):
        yield Ask("nfs_mounts", f"{place}.nfs_mounts[{index}]", "NFS mount", f"{mount.server}:{mount.path}")
    for index, mount in enumerate(getattr(pool, "lustre_mounts", ())):
        for name in filter(None, (mount.instance_ip, mount.volume_handle, mount.filesystem)):
            yield Ask("lustre_mounts", f"{place}.lustre_mounts[{index}]", "Lustre mount", name)


def _accelerators(machine: Any, place: str) -> Iterator[Ask]:
    """Return the accelerators of a machine, also those that its type has by itself: ``GPU`` and ``TPU``."""
    kind, count, machine_type = machine.accelerator_type, machine.accelerator_count, machine.machine_type.lower()
    if len(machine_type) > LONGEST_TYPE:
        machine_type = ""  # it is none, and looking at it takes long
    sides = machine.tpu_topology.split("x") if _TOPOLOGY.fullmatch(machine.tpu_topology) else []
    chips = math.prod(map(int, sides)) if sides else 0  # of the whole slice, however many hosts it has
    gpus = _own_gpus(machine_type)
    if kind or count:
        most = max(count, chips, gpus or 0)
        yield Ask("accelerators", f"{place}.accelerator_count", "accelerator", (kind.name, most))
    if found := _TPUS.fullmatch(machine_type):
        if not kind.name.startswith("TPU_"):
            size = max(int(found[1] or 1), chips)
            yield Ask("accelerators", f"{place}.machine_type", "accelerator", ("TPU", size))
    elif machine.tpu_topology and not (kind or count):
        yield Ask("accelerators", f"{place}.tpu_topology", "accelerator", ("TPU", max(1, chips)))
    elif not (kind or count) and gpus != 0:
        yield Ask("accelerators", f"{place}.machine_type", "accelerator", ("GPU", gpus or MOST_GPUS))


def _own_gpus(machine_type: str) -> int | None:
    """Return how many GPUs a machine type has by itself; None if it has some and their number is not known."""
    if not (series := _WITH_GPUS.match(machine_type)):
        return 0
    if named := _GPUS.search(machine_type):
        return int(named[1]) or None
    vcpus = _VCPUS.search(machine_type)
    return GPUS_BY_VCPUS.get(series[1], {}).get(int(vcpus[1])) if vcpus else None


def unknown(job: CustomJob) -> list[str]:
    """Return the fields of a job that are set and that this module does not know, such as those of a newer client library."""
    return sorted(set(_paths(CustomJob.pb(job))) - READ - WITHOUT_POWER)


def _paths(message: Any, above: str = "") -> Iterator[str]:
    for shape, value in message.ListFields():
        path = f"{above}{shape.name}"
        inner = shape.message_type
        if inner is None or inner.GetOptions().map_entry or inner.full_name.startswith("google.protobuf."):
            yield path
        else:
            for one in value if shape.is_repeated else (value,):
                yield from _paths(one, f"{path}.")
