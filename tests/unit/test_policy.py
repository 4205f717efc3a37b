"""What the policy allows, and how it refuses the rest."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.aiplatform_v1.types import CustomJob
from hypothesis import given
from hypothesis import strategies as st

from tests.support.specs import IMAGE, PACKAGE, SETTINGS, built, pool, run_spec
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job import powers, retry
from vertex_launch.settings.config import Policy, Region

AGENT = "service-123456789@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"
"""Google's agent that runs custom code without an account."""
SPEC = "resource_args.vertex.spec"
POOL = f"{SPEC}.worker_pool_specs[0]"
VPC = "projects/1/global/networks/vpc"
ATTACHED = {"psc_interface_config": {"network_attachment": "att"}}


def refused(
    spec: dict[str, Any], *, secure_mode: bool = False, jobs_account: str | None = SETTINGS.jobs_account, **policy: Any
) -> str:
    """Return why the policy refuses a job, the empty text if it does not."""
    changes = {"policy": Policy(**policy), "secure_mode": secure_mode, "jobs_account": jobs_account}
    settings = SETTINGS.model_copy(update=changes)
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
        (run_spec(pool(), {}, machine("a2-highgpu-1g")), {"machine_types": ["n1-*"]}, f"{SPEC}.worker_pool_specs[2].machine_spec.machine_type", Code.POLICY_MACHINE_TYPE, "a2-highgpu-1g", "n1-*"),
        (run_spec(spec={"service_account": "root@x"}), {"service_accounts": []}, f"{SPEC}.service_account", Code.POLICY_SERVICE_ACCOUNT, "root@x", "Remove"),
        (run_spec(spec={"service_account": "root@x"}), {"service_accounts": ["?@x"]}, f"{SPEC}.service_account", Code.POLICY_SERVICE_ACCOUNT, "root@x", "?@x"),
        (run_spec(machine(None)), {"machine_types": ["n1-*"]}, f"{POOL}.machine_spec.machine_type", Code.POLICY_MACHINE_TYPE, "no machine type", "n1-*"),
        (run_spec(gpu(4)), {"accelerators": {"NVIDIA_TESLA_T4": 2, "NVIDIA_L4": 1}}, f"{POOL}.machine_spec.accelerator_count", Code.POLICY_ACCELERATOR, "4 NVIDIA_TESLA_T4", "up to 2 NVIDIA_TESLA_T4 or up to 1 NVIDIA_L4"),
        (run_spec(gpu(1, "TPU_V3")), {"accelerators": {}}, f"{POOL}.machine_spec.accelerator_count", Code.POLICY_ACCELERATOR, "1 TPU_V3", "Remove"),
        (run_spec(gpu(0)), {"accelerators": {}}, f"{POOL}.machine_spec.accelerator_count", Code.POLICY_ACCELERATOR, "0 NVIDIA_TESLA_T4", "Remove"),
        (run_spec({**pool(), "replica_count": None}, {}, {**pool(), "replica_count": 3}), {"max_replicas": 3}, f"{SPEC}.worker_pool_specs", Code.POLICY_REPLICAS, "replicas 4", "at most 3"),
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


DNS = {"domain": "corp.example.", "target_project": "other", "target_network": "vpc"}
POWERS: list[tuple[str, dict[str, Any], dict[str, Any], Any]] = [
    ("images", pool(), {}, [IMAGE]),
    ("machine_types", pool(), {}, ["n1-*"]),
    ("service_accounts", pool(), {"service_account": "root@x"}, ["root@*"]),
    ("max_replicas", pool(), {"worker_pool_specs": [pool(), {**pool(), "replica_count": 2}]}, 3),
    ("networks", pool(), {"network": VPC}, [VPC]),
    ("networks", pool(), {"psc_interface_config": {"dns_peering_configs": [DNS]}}, ["projects/other/*"]),
    ("dns_domains", pool(), {"psc_interface_config": {"dns_peering_configs": [DNS]}}, ["*.example."]),
    ("ip_ranges", pool(), {"reserved_ip_ranges": ["range"]}, ["range"]),
    ("accelerators", gpu(2), {}, {"NVIDIA_TESLA_T4": 2}),
    ("accelerators", machine("ct5lp-hightpu-4t", tpu_topology="2x2"), {}, {"TPU": 4}),
    ("accelerators", machine("ct6e-standard-8t"), {}, {"TPU": 8}),
    ("accelerators", machine("cloud-tpu"), {}, {"TPU": 1}),
    ("accelerators", machine("a3-ultragpu-8g"), {}, {"GPU": 8}),
    ("accelerators", machine("g2-standard-96"), {}, {"GPU": 8}),
    ("accelerators", machine("g2-standard-96", accelerator_type="NVIDIA_L4", accelerator_count=8), {}, {"NVIDIA_L4": 8}),
    ("reservations", machine(reservation_affinity={"reservation_affinity_type": "ANY_RESERVATION"}), {}, ["ANY_RESERVATION"]),
    ("max_boot_disk_gb", {**pool(), "disk_spec": {"boot_disk_size_gb": 4000}}, {}, 4000),
    ("nfs_mounts", {**pool(), "nfs_mounts": [{"server": "10.0.0.2", "path": "/all", "mount_point": "x"}]}, {}, ["10.0.0.2:/*"]),
    ("max_run_time", pool(), {"timeout": 3600}, 3600),
    ("max_run_time", pool(), {}, 604_800),
    ("max_wait_time", pool(), {"scheduling_strategy": "FLEX_START", "max_wait_duration": 3600}, 3600),
    ("max_wait_time", pool(), {"scheduling_strategy": "FLEX_START"}, 86_400),
    ("max_wait_time", pool(), {"scheduling_strategy": "FLEX_START", "max_wait_duration": 0}, 315_576_000_000),
    ("web_access", pool(), {"enable_web_access": True, "service_account": "a@b"}, True),
    ("dashboard_access", pool(), {"enable_dashboard_access": True}, True),
    ("buckets", pool(), {"base_output_dir": "gs://theirs/x"}, ["gs://theirs/*"]),
    ("buckets", pool(), {"staging_bucket": "theirs"}, ["gs://theirs/*"]),
    ("kms_keys", pool(), {"encryption_spec_key_name": "projects/p/keys/k"}, ["projects/p/*"]),
    ("tensorboards", pool(), {"tensorboard": "projects/p/tb", "service_account": "a@b"}, ["projects/p/*"]),
    ("experiments", pool(), {"experiment": "projects/p/locations/l/metadataStores/default/contexts/c"}, ["projects/p/*"]),
    ("persistent_resources", pool(), {"persistent_resource_id": "pr"}, ["pr"]),
    ("models", pool(), {"models": ["projects/p/models/1"]}, ["*"]),
    ("artifact_locations", pool(), {"protected_artifact_location_id": "us"}, ["us"]),
    ("projects", pool(), {}, ["acme/demo"]),
]  # fmt: skip
"""Each power: the key of the policy, a pool and a spec that ask for it, and what allows it."""
NOTHING: dict[str, Any] = {"max_replicas": 1, "max_boot_disk_gb": 1, "max_run_time": 1, "max_wait_time": 1, "accelerators": {}, "web_access": False, "dashboard_access": False}  # fmt: skip


@pytest.mark.parametrize(("key", "one", "spec", "allowed"), POWERS)
def test_each_power_is_refused_by_an_empty_line_and_allowed_by_its_own(
    key: str, one: dict[str, Any], spec: dict[str, Any], allowed: Any
) -> None:
    asked = run_spec(one, spec=spec)
    assert refused(asked) == ""
    text = refused(asked, **{key: NOTHING.get(key, [])})
    assert f"policy.{key} in vertex-launch.yaml" in text
    assert "[VL-POLICY-" in text
    assert refused(asked, **{key: allowed}) == ""


@pytest.mark.parametrize(("key", "one", "spec", "allowed"), POWERS)
def test_a_strict_policy_shows_the_line_that_allows_a_power(
    key: str, one: dict[str, Any], spec: dict[str, Any], allowed: Any
) -> None:
    others = {name: line for name, _, _, line in POWERS} | {
        "networks": ["*"],
        "dns_domains": ["*"],
        "accelerators": None,
    }
    others |= {
        "accelerators": {"NVIDIA_TESLA_T4": 9, "NVIDIA_L4": 9, "TPU": 9, "GPU": 9},
        "service_accounts": ["*"],
        "machine_types": ["*"],
    }
    others |= {"max_run_time": 604_800, "buckets": ["*"], key: None}
    text = refused(run_spec(one, spec=spec), unlisted="refuse", **others)
    assert f"[{Code.POLICY_UNLISTED}]" in text
    assert f"{key}: " in text
    line = yaml.safe_load(text.split(f"set: {key}: ")[1].split(" [VL-")[0].splitlines()[0].rstrip("."))
    assert refused(run_spec(one, spec=spec), unlisted="refuse", **others | {key: line}) == ""


def test_the_strict_policy_of_the_docs_refuses_every_power_but_those_that_it_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (Path(__file__).parents[2] / "docs/security.md").read_text()
    policy = yaml.safe_load(page.split("```yaml\npolicy:")[1].split("```")[0].replace("\n  ", "\n"))
    policy |= {"images": [IMAGE], "projects": ["acme/*"]}
    region = Region(name="us-central1", staging_bucket="gs://demo-staging")
    monkeypatch.setattr(sys.modules[__name__], "SETTINGS", SETTINGS.model_copy(update={"regions": (region,)}))
    assert refused(run_spec(), **policy) == ""
    assert refused(run_spec(gpu(2)), **policy) == ""
    listed = set(policy) - {"unlisted"}
    powers_of = {key: run_spec(one, spec=spec) for key, one, spec, _ in POWERS if key not in listed}
    assert powers_of.keys() == set(powers.KEYS) - listed - {"lustre_mounts"}
    assert [key for key, spec in powers_of.items() if f"policy.{key} " not in refused(spec, **policy)] == []


@pytest.mark.parametrize(
    ("one", "spec", "policy"),
    [
        (machine("ct5lp-hightpu-8t", accelerator_type="NVIDIA_TESLA_T4", accelerator_count=1), {}, {"accelerators": {"NVIDIA_TESLA_T4": 1}}),
        (machine("ct5lp-hightpu-4t", tpu_topology="16x16"), {}, {"accelerators": {"TPU": 255}}),
        (machine("cloud-tpu", accelerator_type="TPU_V3", accelerator_count=8, tpu_topology="4x4"), {}, {"accelerators": {"TPU_V3": 8}}),
        (machine("CT5LP-hightpu-4t"), {}, {"accelerators": {}}),
        (machine("A2-highgpu-1g"), {}, {"accelerators": {}}),
        (machine("g2-standard-48", accelerator_type="NVIDIA_L4", accelerator_count=1), {}, {"accelerators": {"NVIDIA_L4": 3}}),
        (machine("a3-highgpu-8g", accelerator_type="NVIDIA_H100_80GB", accelerator_count=1), {}, {"accelerators": {"NVIDIA_H100_80GB": 7}}),
        (machine(tpu_topology="2x2"), {}, {"accelerators": {"TPU": 3}}),
        ({**pool(), "nfs_mounts": [{"server": "s", "path": "/team/../all", "mount_point": "m"}]}, {}, {"nfs_mounts": ["s:/team/*"]}),
        ({**pool(), "nfs_mounts": [{"server": "s", "path": "/team/..", "mount_point": "m"}]}, {}, {"nfs_mounts": ["*"]}),
        (machine(reservation_affinity={"reservation_affinity_type": "ANY_RESERVATION", "values": ["mine"]}), {}, {"reservations": ["mine"]}),
        (pool(), {"base_output_dir": "gs://theirs-too/x"}, {"buckets": ["gs://theirs/*"]}),
    ],
)  # fmt: skip
def test_ways_around_a_line_are_closed(one: dict[str, Any], spec: dict[str, Any], policy: dict[str, Any]) -> None:
    asked = run_spec(one, spec=spec)
    assert refused(asked) == ""
    assert f"policy.{next(iter(policy))} in vertex-launch.yaml" in refused(asked, **policy)


GPUS = {
    **dict.fromkeys((f"g2-standard-{vcpus}" for vcpus in (4, 8, 12, 16, 32)), 1),
    **{"g2-standard-24": 2, "g2-standard-48": 4, "g2-standard-96": 8, "G2-Standard-96": 8, "g2-custom-48-200000": 4},
    **dict.fromkeys(("g4-standard-6", "g4-standard-12", "g4-standard-24", "g4-standard-48"), 1),
    **{"g4-standard-96": 2, "g4-standard-192": 4, "g4-standard-384": 8, "g4-standard-384-lssd": 8},
    **{f"a2-highgpu-{count}g": count for count in (1, 2, 4, 8)},
    **{f"a2-ultragpu-{count}g": count for count in (1, 2, 4, 8)},
    **{f"a3-highgpu-{count}g": count for count in (1, 2, 4, 8)},
    **{"a2-megagpu-16g": 16, "a2-ultragpu-8g-nolssd": 8, "a3-edgegpu-8g": 8, "a3-edgegpu-8g-nolssd": 8, "a3-megagpu-8g": 8},
    **{"a3-ultragpu-8g": 8, "a4-highgpu-8g": 8, "a4x-highgpu-4g": 4, "a4x-highgpu-4g-nolssd": 4, "a4x-maxgpu-4g-metal": 4},
    **dict.fromkeys(("g5-standard-8", "g2-standard-1000", "g4-", "a9-newgpu"), 16),
}  # fmt: skip
"""Machine types and their GPUs (accelerator-optimized machine family, docs.cloud.google.com); unknown ones have the most."""


@pytest.mark.parametrize(("name", "count"), GPUS.items())
def test_the_gpus_of_a_machine_type_are_counted(name: str, count: int) -> None:
    assert f"[{Code.POLICY_ACCELERATOR}]" in refused(run_spec(machine(name)), accelerators={"GPU": count - 1})
    assert refused(run_spec(machine(name)), accelerators={"GPU": count}) == ""


@pytest.mark.parametrize("name", ["n1-standard-96", "g1-small", "c3-highcpu-88", "a", "ga2-highgpu-8g"])
def test_a_machine_type_without_gpus_has_none(name: str) -> None:
    assert refused(run_spec(machine(name)), accelerators={}) == ""


def test_only_a_job_that_waits_for_machines_is_held_to_the_longest_wait() -> None:
    endless = {"scheduling_strategy": "FLEX_START", "max_wait_duration": 0}
    assert "315576000000" in refused(run_spec(spec=endless), max_wait_time=1_000_000)
    assert "86400" in refused(run_spec(spec={"scheduling_strategy": 6}), max_wait_time=86_399)
    for strategy in ("SPOT", "STANDARD", "ON_DEMAND", None):
        assert refused(run_spec(spec=endless | {"scheduling_strategy": strategy}), max_wait_time=1) == ""


def test_a_whole_slice_is_allowed_by_its_chips() -> None:
    slice_ = run_spec(machine("ct5lp-hightpu-4t", tpu_topology="4x4"))
    assert refused(slice_, accelerators={"TPU": 16}) == ""


@pytest.mark.parametrize(
    "name", ["a2-" + "-" * 400_000 + "\n", "a2-highgpu-" + "9" * 5000 + "g", "tpu" + "-1" * 200_000, "ct5lp-" + "9" * 5000 + "t"]
)  # fmt: skip
def test_a_huge_machine_type_costs_no_time(name: str) -> None:
    began = time.process_time()
    assert refused(run_spec(machine(name)), accelerators={}) == ""
    assert f"[{Code.POLICY_MACHINE_TYPE}]" in refused(run_spec(machine(name)), machine_types=["n1-*"])
    assert refused(run_spec(machine(tpu_topology="9x" * 100_000 + "9" * 5000)), accelerators={"TPU": 1}) == ""
    assert time.process_time() - began < 5


@pytest.mark.parametrize("image", ["evil, '*'", 'x"], images: ["*', "a: {b", "*alias", "null"])
def test_the_line_that_allows_a_value_allows_nothing_else(image: str) -> None:
    text = refused(run_spec(pool(image_uri=image)), unlisted="refuse")
    [line] = re.findall(r"set: images: (.*?)\. \[VL-", text) or re.findall(r"set: images: (.*)\.", text)
    assert yaml.safe_load(line.partition("\n")[0].removesuffix(f". [{Code.POLICY_UNLISTED}]")) == [image]


@pytest.mark.parametrize("policy", [{}, {"buckets": ["*"]}, {"buckets": ["gs://demo-state/*"]}])
@pytest.mark.parametrize(
    "spec",
    [{"staging_bucket": "demo-state"}, {"base_output_dir": "gs://demo-state/x"}, {"base_output_dir": "gs://${author}"}],
)
def test_no_job_touches_the_record(spec: dict[str, Any], policy: dict[str, Any]) -> None:
    assert f"[{Code.POLICY_POWER}]" in refused(run_spec(spec=spec, author="demo-state"), **policy)
    package = {
        **PACKAGE,
        "python_package_spec": {**PACKAGE["python_package_spec"], "package_uris": ["gs://demo-state/a"]},
    }
    assert f"[{Code.POLICY_POWER}]" in refused(run_spec(package), **policy)


def test_a_persistent_resource_without_a_line_is_warned_about() -> None:
    spec = run_spec(spec={"persistent_resource_id": "shared"})
    assert [warning.code for warning in built(spec).warnings] == [Code.POLICY_POWER]
    named = SETTINGS.model_copy(update={"policy": Policy(persistent_resources=("shared",))})
    assert built(spec, named).warnings == ()


def retried(spec: dict[str, Any], region: str, **changes: Any) -> str:
    """Return what becomes of the next attempt of a job under other settings: its account, or why there is none."""
    regions = (
        Region(name="us-central1", staging_bucket="gs://one"),
        Region(name="us-east4", staging_bucket="gs://two"),
    )
    request = built(spec, SETTINGS.model_copy(update={"regions": regions, "jobs_account": AGENT}))
    later = SETTINGS.model_copy(update={"regions": regions, **changes})
    try:
        again = retry.next_attempt(request, attempt=2, region=region, settings=later, api_key="k" * 40)
    except ItemRejected as error:
        return str(error)
    return again.custom_job.job_spec.service_account or "Google's own"


def test_a_next_attempt_is_held_to_the_policy_like_a_first_one() -> None:
    plain = run_spec(spec={"staging_bucket": None})
    assert retried(plain, "us-east4") == SETTINGS.jobs_account
    assert retried(plain, "us-east4", jobs_account=AGENT) == "Google's own"
    assert f"[{Code.SPEC_NO_ACCOUNT}]" in retried(plain, "us-central1", jobs_account=None)
    assert f"[{Code.POLICY_IMAGE}]" in retried(plain, "us-central1", policy=Policy(images=()))
    lines = {"images": ("*",), "machine_types": ("*",), "projects": ("*",), "max_replicas": 1, "max_run_time": 604_800}
    strict = Policy(unlisted="refuse", **lines)
    assert retried(plain, "us-east4", policy=strict) == SETTINGS.jobs_account
    for key, spec, line in (
        ("service_accounts", run_spec(spec={"staging_bucket": None, "service_account": "root@x"}), ("root@x",)),
        ("web_access", run_spec(spec={"staging_bucket": None, "enable_web_access": True}), True),
        ("buckets", run_spec(spec={"staging_bucket": "theirs"}), ("gs://theirs/",)),
        ("buckets", run_spec(spec={"base_output_dir": "gs://theirs/x"}), ("gs://theirs/x/",)),
    ):
        text = retried(spec, "us-central1", policy=strict)
        assert f"[{Code.POLICY_UNLISTED}]" in text
        assert f"policy.{key} " in text
        assert "[VL-" not in retried(spec, "us-central1", policy=Policy(unlisted="refuse", **lines, **{key: line}))


def test_every_field_of_a_job_is_known_to_the_policy() -> None:
    def paths(shape: Any, above: str = "", inside: tuple[str, ...] = ()) -> Iterator[str]:
        for one in shape.fields:
            inner = one.message_type
            if inner and inner.full_name.startswith("google.cloud") and not inner.GetOptions().map_entry:
                if inner.full_name not in inside:
                    yield from paths(inner, f"{above}{one.name}.", (*inside, inner.full_name))
            else:
                yield above + one.name

    never_asked = {"name", "state", "create_time", "start_time", "end_time", "update_time", "error", "web_access_uris"}
    never_asked |= {"satisfies_pzs", "satisfies_pzi"}
    known = powers.READ | powers.WITHOUT_POWER | never_asked
    assert set(paths(CustomJob.pb(CustomJob()).DESCRIPTOR)) == known


def test_a_field_that_the_policy_does_not_know_is_refused_by_a_strict_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(powers, "WITHOUT_POWER", powers.WITHOUT_POWER - {"labels"})
    everything = {name: line for name, _, _, line in POWERS}
    assert "labels" in refused(run_spec(spec={"labels": {"a": "b"}}), unlisted="refuse", **everything)


@pytest.mark.parametrize("spec", [{}, {"service_account": None}, {"service_account": ""}, {"service_account": " "}])
def test_a_job_without_an_account_gets_that_of_the_deployment(spec: dict[str, Any]) -> None:
    request = built(run_spec(spec=spec))
    assert request.custom_job.job_spec.service_account == SETTINGS.jobs_account
    text = refused(run_spec(spec=spec), jobs_account=None, service_accounts=["*"])
    assert text.startswith(f"{SPEC}.service_account: ")
    assert f"[{Code.SPEC_NO_ACCOUNT}]" in text
    assert "jobs_account in vertex-launch.yaml" in text


@pytest.mark.parametrize("spec", [{}, {"service_account": AGENT}])
def test_googles_agent_runs_jobs_only_if_the_settings_name_it(spec: dict[str, Any]) -> None:
    settings = SETTINGS.model_copy(update={"jobs_account": AGENT})
    assert built(run_spec(spec=spec), settings).custom_job.job_spec.service_account == ""


@pytest.mark.parametrize("spec", [{}, {"service_account": None}, {"service_account": " "}, {"service_account": AGENT}])
@pytest.mark.parametrize("listed", [(AGENT,), ("jobs@x", AGENT), ("*", AGENT)])
def test_a_policy_that_names_googles_agent_allows_it(spec: dict[str, Any], listed: tuple[str, ...]) -> None:
    policy = Policy(unlisted="allow", service_accounts=listed)
    settings = SETTINGS.model_copy(update={"jobs_account": None, "policy": policy})
    request = built(run_spec(spec=spec), settings)
    assert request.custom_job.job_spec.service_account == ""
    again = retry.next_attempt(request, attempt=2, region=request.region, settings=settings, api_key="k" * 40)
    assert again.custom_job.job_spec.service_account == ""
    own = settings.model_copy(update={"jobs_account": "jobs@x"})
    assert built(run_spec(spec={}), own).custom_job.job_spec.service_account == "jobs@x"


@pytest.mark.parametrize(
    "pattern",
    ["*", f"*{AGENT[7:]}", AGENT.replace("1", "?"), "service-1@gcp-sa-aiplatform.iam.gserviceaccount.com", "root@x"],
)
def test_no_pattern_and_no_other_account_allows_googles_agent(pattern: str) -> None:
    text = refused(run_spec(spec={}), jobs_account=None, service_accounts=[pattern])
    assert f"[{Code.SPEC_NO_ACCOUNT}]" in text


@pytest.mark.parametrize(
    "account",
    [AGENT, AGENT.replace("123", "999"), AGENT.upper(), "service-1@gcp-sa-aiplatform.iam.gserviceaccount.com"],
)
def test_an_item_cannot_name_an_agent_of_googles(account: str) -> None:
    text = refused(run_spec(spec={"service_account": account}), service_accounts=["*"])
    assert f"[{Code.POLICY_SERVICE_ACCOUNT}]" in text
    macro = run_spec(spec={"service_account": "${author}"}, author=account)
    assert f"[{Code.POLICY_SERVICE_ACCOUNT}]" in refused(macro)
