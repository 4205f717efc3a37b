"""What Vertex AI refuses in a job: reported before it is created, and by a dry run. Pure; called by ``build``.

The rules are documented for ``MachineSpec``, ``WorkerPoolSpec``, ``EnvVar`` and ``CustomJobSpec``. Which series carries which
accelerator is Compute Engine's table of GPU machine types, as public copies of it showed it in November 2026. A machine type
that is not known here is only warned about, because Google adds some every year.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from google.cloud.aiplatform_v1.types import AcceleratorType

from vertex_launch.codes import Code
from vertex_launch.job.arguments import IMAGE_FIELDS, TASKS, Arguments
from vertex_launch.job.findings import Findings
from vertex_launch.problems import shown

CARRIES = {
    "n1": ("NVIDIA_TESLA_K80", "NVIDIA_TESLA_P4", "NVIDIA_TESLA_P100", "NVIDIA_TESLA_V100", "NVIDIA_TESLA_T4"),
    "a2": ("NVIDIA_TESLA_A100", "NVIDIA_A100_80GB"),
    "a3": ("NVIDIA_H100_80GB", "NVIDIA_H100_MEGA_80GB", "NVIDIA_H200_141GB"),
    "a4": ("NVIDIA_B200",),
    "a4x": ("NVIDIA_GB200",),
    "g2": ("NVIDIA_L4",),
    "g4": ("NVIDIA_RTX_PRO_6000",),
    "cloud-tpu": ("TPU_V2", "TPU_V3"),
    **dict.fromkeys(("e2", "n2", "n2d", "c2", "c2d", "c3", "c3d", "c4", "m1", "m2", "m3", "t2d", "h3", "z3"), ()),
}
"""Series of machine types, and the accelerators that a job may attach to one; none for those that take no accelerator."""

_KINDS = ("standard", "highmem", "highcpu", "highgpu", "megagpu", "ultragpu", "megamem", "ultramem")
_TPU = re.compile(r"cloud-tpu|ct\d\w*-\w+-\d+t|tpu\w*(-\w+)*")
_MACHINE = re.compile(r"(?P<series>[a-z]\d+[a-z]*)-(?P<kind>[a-z]+)-(?P<size>\d+g?)(-\w+)*")
_IMAGE = re.compile(
    r"[a-zA-Z0-9.-]+(:[0-9]+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]+)?"
)
_MACROS = ("${image_uri}", "${project_name}", "${entity_name}", "${run_id}", "${run_name}", "${author}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+")
_NETWORK = re.compile(r"projects/[^/\s]+/global/networks/[^/\s]+")


def check(arguments: Arguments, findings: Findings) -> None:
    """Report everything that Vertex AI would refuse, and machine types that are not known here."""
    account, network = arguments["service_account"] or "", arguments["network"] or ""
    if account and not _ACCOUNT.fullmatch(account):
        remedy = "Write its whole address, NAME@PROJECT.iam.gserviceaccount.com"
        found = f"{shown(account)} is not the address of a service account"
        findings.wrong(arguments.place("service_account"), found, remedy, Code.SPEC_VALUE)
    if network and not _NETWORK.fullmatch(network):
        remedy = "Write projects/PROJECT_NUMBER/global/networks/NAME"
        found = f"{shown(network)} is not the full name of a network"
        findings.wrong(arguments.place("network"), found, remedy, Code.SPEC_VALUE)
    for index, pool in enumerate(arguments["worker_pool_specs"] or ()):
        if not pool:
            continue
        place = f"{arguments.place('worker_pool_specs')}[{index}]"
        for task in [name for name in TASKS if name in pool]:
            _check_image(pool[task].get(IMAGE_FIELDS[task]) or "", f"{place}.{task}.{IMAGE_FIELDS[task]}", findings)
            _check_variables(pool[task].get("env", ()), f"{place}.{task}.env", findings)
        if index == 0 and pool.get("replica_count", 1) != 1:
            found = f"the first worker pool has {pool['replica_count']} replicas, and it takes exactly one"
            remedy = "Set it to 1, and put other replicas into a second pool"
            findings.wrong(f"{place}.replica_count", found, remedy, Code.SPEC_VALUE)
        _check_machine(pool.get("machine_spec") or {}, f"{place}.machine_spec", findings)


def _check_image(image: str, place: str, findings: Findings) -> None:
    if not image or _IMAGE.fullmatch(image):
        return
    if "://" in image:
        remedy = f"Write it without {image.partition('://')[0]}://"
    elif "${" in image:
        near = difflib.get_close_matches(image, _MACROS, n=1)
        remedy = f"Did you mean {near[0]}?" if near else f"Write an image, or {_MACROS[0]}"
    else:
        remedy = "Write REGISTRY/REPOSITORY/NAME:TAG, with the name in lowercase"
    findings.wrong(place, f"{shown(image)} is not the name of an image", remedy, Code.SPEC_VALUE)


def _check_variables(variables: Any, place: str, findings: Findings) -> None:
    for index, variable in enumerate(variables):
        name = variable.get("name") or ""
        if name and not _VARIABLE.fullmatch(name):
            found = f"Vertex AI does not accept the name {shown(name)} for a variable"
            remedy = "Use letters, digits and _ only, and do not begin with a digit"
            findings.wrong(f"{place}[{index}].name", found, remedy, Code.SPEC_VALUE)


def _check_machine(spec: Mapping[str, Any], place: str, findings: Findings) -> None:
    machine, chip, count = spec.get("machine_type") or "", spec.get("accelerator_type"), spec.get("accelerator_count")
    if bool(chip) != bool(count):
        missing, given = (
            ("accelerator_count", "accelerator_type") if chip else ("accelerator_type", "accelerator_count")
        )
        findings.wrong(f"{place}.{missing}", f"it is missing beside {given}", "Set both or none", Code.SPEC_MISSING)
    series = _series(machine)
    if machine and series not in CARRIES and not _TPU.fullmatch(machine):
        findings.warn(
            f"{place}.machine_type: {shown(machine)} is not known here. {_advice(machine)}", Code.SPEC_MACHINE
        )
    elif chip and series in CARRIES and (name := AcceleratorType(chip).name) not in CARRIES[series]:
        others = [f"{other} machine types" for other, chips in CARRIES.items() if name in chips]
        fits = " or ".join(CARRIES[series]) or "no accelerator"
        remedy = f"Choose one of the {' or '.join(others)}, or {fits}" if others else f"Use {fits}"
        found = f"a {series} machine type cannot have {name}"
        findings.wrong(f"{place}.accelerator_type", found, remedy, Code.SPEC_VALUE)


def _series(machine: str) -> str:
    """Return the series of a machine type, the empty text if it has not the form of one."""
    if machine.startswith("cloud-tpu"):
        return "cloud-tpu"
    found = _MACHINE.fullmatch(machine)
    return found["series"] if found and found["kind"] in _KINDS else ""


def _advice(machine: str) -> str:
    series, _, rest = machine.partition("-")
    kind, _, size = rest.partition("-")
    near = difflib.get_close_matches(kind, _KINDS, n=1)
    fits = series in CARRIES and near and size
    return f"Did you mean {series}-{near[0]}-{size}?" if fits else "Vertex AI refuses the job if it is misspelt."
