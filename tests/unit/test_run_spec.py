"""What is wrong with a run spec: every kind of problem with its place and code, whatever the shape of the input."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import CustomJob
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.numbers import examples
from tests.support.specs import (
    ENTITY,
    FULL,
    IMAGE,
    KEY,
    MINIMAL,
    PACKAGE,
    SETTINGS,
    built,
    item,
    json_values,
    pool,
    run_spec,
)
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job.readback import as_json, managed
from vertex_launch.job.run_spec import own_key, parse
from vertex_launch.model import SCHEDULER_URI, Kind, RunId
from vertex_launch.settings.config import Scheduler, Sweeps

VERTEX = "resource_args.vertex"
POOLS = f"{VERTEX}.spec.worker_pool_specs"
POOL = f"{POOLS}[0]"
TASK = f"{POOL}.container_spec"
EXPERIMENT = "projects/1/locations/l/metadataStores/d/contexts/c"
ECR = "1234.dkr.ecr.us-east-1.amazonaws.com/a:1"


def rejected(spec: Any) -> ItemRejected:
    with pytest.raises(ItemRejected) as caught:
        built(spec)
    return caught.value


def put(spec: Any, at: str, value: Any) -> Any:
    """Put a value into a copy of a run spec, at a place such as ``a.b[0].c``."""
    spec = copy.deepcopy(spec)
    keys = [int(key) if key.isdigit() else key for key in re.findall(r"[^.\[\]]+", at)]
    inner = spec
    for key in keys[:-1]:
        if isinstance(inner, dict):
            inner = inner.setdefault(key, {})
        else:
            inner += [{}] * (key + 1 - len(inner))
            inner = inner[key]
    inner[keys[-1]] = value
    return spec


# Where a value is put, the value, the code, what the message must repeat, and the place of the problem if it is another.
PROBLEMS: list[tuple[Any, ...]] = [
    ("project", None, Code.SPEC_MISSING, ""),
    ("docker.docker_image", None, Code.SPEC_MISSING, "wandb launch -d"),
    ("resource_args", {"kubernetes": {}}, Code.SPEC_MISSING, "kubernetes"),
    (f"{VERTEX}.spec.staging_bucket", None, Code.SPEC_MISSING, "us-central1"),
    (POOLS, [], Code.SPEC_MISSING, ""),
    (POOLS, [{}], Code.SPEC_MISSING, "", POOL),
    (POOLS, [{"replica_count": 1}], Code.SPEC_MISSING, "", POOL),
    (TASK, None, Code.SPEC_MISSING, "", POOL),
    (f"{TASK}.image_uri", "", Code.SPEC_MISSING, "${image_uri}"),
    (f"{TASK}.env", [{"value": "1"}], Code.SPEC_MISSING, "", f"{TASK}.env[0]"),
    ("project", 7, Code.SPEC_VALUE, "a number"),
    ("name", ["x"], Code.SPEC_VALUE, "a list"),
    ("name", "a\0b", Code.SPEC_VALUE, "NUL"),
    ("author", "\ud800", Code.SPEC_VALUE, "surrogate"),
    ("_wandb_api_key", 5, Code.SPEC_VALUE, "a number"),
    ("_wandb_api_key", "unknown key", Code.SPEC_KEY, "not a W&B API key"),
    ("_wandb_api_key", "resource_args", Code.SPEC_KEY, "not a W&B API key"),
    ("_wandb_api_key", "Write a number of seconds greater than 0, or remove it", Code.SPEC_KEY, "not a W&B API key"),
    ("_resume_count", -1, Code.SPEC_VALUE, "-1"),
    ("run_id", "a/b", Code.SPEC_VALUE, "'a/b'"),
    ("run_id", " a", Code.SPEC_VALUE, "' a'"),
    ("run_id", "a\nb", Code.SPEC_VALUE, "invisible"),
    ("run_id", "a\u200bb", Code.SPEC_VALUE, "invisible"),
    ("run_id", "..", Code.SPEC_VALUE, "'..'"),
    ("project", "a/../b", Code.SPEC_VALUE, "'a/../b'"),
    ("project", ".", Code.SPEC_VALUE, "'.'"),
    ("project", "p" * 129, Code.SPEC_VALUE, "129"),
    ("project", "50%", Code.SPEC_VALUE, "'50%'"),
    ("entity", "acme\x07", Code.SPEC_VALUE, "invisible"),
    ("entity", "acme/other", Code.SPEC_VALUE, "'acme/other'"),
    ("docker", "img", Code.SPEC_VALUE, "text"),
    ("resource_args", [], Code.SPEC_VALUE, "a list"),
    ("overrides.args", "--lr 1", Code.SPEC_VALUE, "a list"),
    ("overrides.args", ["--lr", 1], Code.SPEC_VALUE, "a number", "overrides.args[1]"),
    ("overrides.entry_point", "python t.py", Code.SPEC_VALUE, "text"),
    ("overrides.run_config", [1], Code.SPEC_VALUE, "a mapping"),
    (f"{VERTEX}.builder", 1, Code.SPEC_VALUE, "a mapping"),
    (f"{VERTEX}.spec", "x", Code.SPEC_VALUE, "a mapping"),
    (f"{VERTEX}.run.sync", "no", Code.SPEC_VALUE, "without quotes"),
    (f"{VERTEX}.spec.staging_bucket", "s3://x", Code.SPEC_VALUE, "'s3://x'"),
    (f"{VERTEX}.spec.base_output_dir", "out", Code.SPEC_VALUE, "'out'"),
    (f"{VERTEX}.run.timeout", "3600", Code.SPEC_VALUE, "without quotes"),
    (f"{VERTEX}.run.timeout", 1.5, Code.SPEC_VALUE, "seconds"),
    (f"{VERTEX}.run.max_wait_duration", -1, Code.SPEC_VALUE, "315576000000"),
    (f"{VERTEX}.run.create_request_timeout", 0, Code.SPEC_VALUE, "0 is not"),
    (f"{VERTEX}.run.create_request_timeout", 0.001, Code.SPEC_VALUE, "0.001 is not"),
    (f"{VERTEX}.run.create_request_timeout", 4.9, Code.SPEC_VALUE, "4.9 is not"),
    (f"{VERTEX}.run.disable_retries", 1, Code.SPEC_VALUE, "true or false"),
    (f"{VERTEX}.run.scheduling_strategy", "spot", Code.SPEC_VALUE, "Did you mean SPOT?"),
    (f"{VERTEX}.run.scheduling_strategy", 5, Code.SPEC_VALUE, "STANDARD"),
    (f"{VERTEX}.run.scheduling_strategy", "\ud800", Code.SPEC_VALUE, "STANDARD"),
    (f"{VERTEX}.run.scheduling_strategy", 2**70, Code.SPEC_VALUE, str(2**70)),
    (f"{VERTEX}.run.scheduling_strategy", True, Code.SPEC_VALUE, "true or false"),
    (f"{VERTEX}.run.experiment", "exp", Code.SPEC_VALUE, "contexts/NAME"),
    (POOLS, {}, Code.SPEC_VALUE, "a list"),
    (POOLS, [7], Code.SPEC_VALUE, "a mapping", POOL),
    (f"{POOL}.replica_count", "2", Code.SPEC_VALUE, "without quotes"),
    (f"{POOL}.replica_count", 2**63, Code.SPEC_VALUE, "9223372036854775807"),
    (f"{POOL}.replica_count", -1, Code.SPEC_VALUE, "-1"),
    (f"{POOL}.machine_spec.accelerator_count", -2, Code.SPEC_VALUE, "-2"),
    (f"{POOL}.disk_spec", {"boot_disk_size_gb": -100}, Code.SPEC_VALUE, "-100", f"{POOL}.disk_spec.boot_disk_size_gb"),
    (f"{POOL}.machine_spec.accelerator_type", "nvidia-tesla-t4", Code.SPEC_VALUE, "Did you mean NVIDIA_TESLA_T4?"),
    (f"{POOL}.machine_spec.accelerator_type", "T4", Code.SPEC_VALUE, "Did you mean NVIDIA_TESLA_T4?"),
    (f"{POOL}.machine_spec.accelerator_type", "NVIDA_TESLA_L4", Code.SPEC_VALUE, "Did you mean NVIDIA_L4?"),
    (f"{POOL}.machine_spec.accelerator_type", "NVIDIA_H100", Code.SPEC_VALUE, "Did you mean NVIDIA_H100_80GB?"),
    (f"{POOL}.machine_spec.accelerator_type", "H100_MEGA", Code.SPEC_VALUE, "Did you mean NVIDIA_H100_MEGA_80GB?"),
    (f"{POOL}.machine_spec.accelerator_type", "NVIDIA_H200", Code.SPEC_VALUE, "Did you mean NVIDIA_H200_141GB?"),
    (f"{POOL}.machine_spec.accelerator_type", "NVIDIA_TESLA_A100_80GB", Code.SPEC_VALUE, "Did you mean NVIDIA_A100_80GB?"),
    (f"{POOL}.machine_spec.accelerator_type", "a100-80g", Code.SPEC_VALUE, "Did you mean NVIDIA_A100_80GB?"),
    (f"{POOL}.machine_spec.accelerator_type", "A100", Code.SPEC_VALUE, "Did you mean NVIDIA_TESLA_A100?"),
    (f"{POOL}.machine_spec.accelerator_type", "RTX PRO 6000", Code.SPEC_VALUE, "Did you mean NVIDIA_RTX_PRO_6000?"),
    (f"{POOL}.machine_spec.accelerator_type", "TPU_V5E", Code.SPEC_VALUE, "Did you mean TPU_V5_LITEPOD?"),
    (f"{POOL}.machine_spec.accelerator_type", "tpu-v4", Code.SPEC_VALUE, "Did you mean TPU_V4_POD?"),
    (f"{VERTEX}.run.timeout", "3600s", Code.SPEC_VALUE, "Write 3600 without quotes and without a unit"),
    (f"{VERTEX}.run.timeout", "3600", Code.SPEC_VALUE, "Write 3600 without quotes"),
    (f"{VERTEX}.run.timeout", 1.5, Code.SPEC_VALUE, "Write a whole number, such as 2"),
    (f"{TASK}.env", {"LEARNING_RATE": "0.1"}, Code.SPEC_VALUE, "- name: "),
    (f"{TASK}.command", "sh", Code.SPEC_VALUE, "a list"),
    (f"{TASK}.args", [None], Code.SPEC_VALUE, "null", f"{TASK}.args[0]"),
    (f"{TASK}.env", {"A": "1"}, Code.SPEC_VALUE, "a list"),
    (f"{TASK}.env", [{"name": "A", "value": 1}], Code.SPEC_VALUE, "a number", f"{TASK}.env[0].value"),
    (f"{VERTEX}.worker_pool_specs", [], Code.SPEC_UNKNOWN_KEY, f"under {VERTEX}.spec"),
    (f"{VERTEX}.Spec", {}, Code.SPEC_UNKNOWN_KEY, "Did you mean spec?"),
    (f"{VERTEX}.spec.workerPoolSpecs", [], Code.SPEC_UNKNOWN_KEY, "Did you mean worker_pool_specs?"),
    (f"{VERTEX}.spec.${{image_uri}}", 1, Code.SPEC_UNKNOWN_KEY, ""),
    (f"{VERTEX}.spec.scheduling", {}, Code.SPEC_UNKNOWN_KEY, "scheduling_strategy"),
    (f"{VERTEX}.spec.base_output_directory", {}, Code.SPEC_UNKNOWN_KEY, "base_output_dir"),
    (f"{VERTEX}.run.strategy", "SPOT", Code.SPEC_UNKNOWN_KEY, "scheduling_strategy"),
    (f"{VERTEX}.run.serviceAccount", "a@b", Code.SPEC_UNKNOWN_KEY, "Did you mean service_account?"),
    (f"{VERTEX}.run.psc_interface_config", {"networkAttachment": "a"}, Code.SPEC_UNKNOWN_KEY, "Did you mean network_attachment?", f"{VERTEX}.run.psc_interface_config.networkAttachment"),
    (f"{POOL}.machine_spec.machineType", "n1", Code.SPEC_UNKNOWN_KEY, "Did you mean machine_type?"),
    (f"{POOL}.machine_spec.zone", "a", Code.SPEC_UNKNOWN_KEY, "tpu_topology"),
    (f"{POOL}.nfs_mounts", [{"mountPoint": "/x"}], Code.SPEC_UNKNOWN_KEY, "Did you mean mount_point?", f"{POOL}.nfs_mounts[0].mountPoint"),
    (f"{VERTEX}.spec.network", "<REQUIRED>", Code.SPEC_TEMPLATE, "<REQUIRED>"),
    (f"{POOL}.disk_spec", "<REQUIRED>", Code.SPEC_TEMPLATE, "<REQUIRED>"),
    (f"{VERTEX}.spec.network", "{{ net }}", Code.SPEC_TEMPLATE, "{{ net }}"),
    (f"{POOL}.replica_count", "{{n}}", Code.SPEC_TEMPLATE, "{{n}}"),
    (f"{VERTEX}.run.experiment_run", EXPERIMENT, Code.SPEC_CONFLICT, ""),
    (f"{VERTEX}.run", {"experiment": EXPERIMENT, "tensorboard": "t"}, Code.SPEC_CONFLICT, "tensorboard", f"{VERTEX}.run.experiment"),
    (f"{VERTEX}.run.staging_bucket", "gs://another", Code.SPEC_CONFLICT, f"{VERTEX}.spec.staging_bucket"),
    (f"{POOL}.python_package_spec", PACKAGE["python_package_spec"], Code.SPEC_CONFLICT, "", POOL),
    (f"{VERTEX}.spec.labels", {"vertex_launch": "x"}, Code.SPEC_LABEL, "", f"{VERTEX}.spec.labels.vertex_launch"),
    (f"{VERTEX}.spec.labels", {"1a": "x"}, Code.SPEC_LABEL, "", f"{VERTEX}.spec.labels.1a"),
    (f"{VERTEX}.spec.labels", {"a": "Big"}, Code.SPEC_LABEL, "'Big'", f"{VERTEX}.spec.labels.a"),
    (f"{VERTEX}.spec.labels", {"a": 1}, Code.SPEC_VALUE, "a number", f"{VERTEX}.spec.labels.a"),
    (f"{VERTEX}.spec.labels", {f"k{index}": "" for index in range(57)}, Code.SPEC_LABEL, "57"),
    ("resource", "kubernetes", Code.SPEC_RESOURCE, "'kubernetes'"),
    (f"{VERTEX}.spec.project", "other", Code.SPEC_PROJECT, "'other'"),
    (f"{VERTEX}.spec.location", "asia-east1", Code.SPEC_REGION, "us-central1 or europe-west4"),
    (f"{VERTEX}.spec.credentials", {}, Code.SPEC_CREDENTIALS, "service_account"),
    (f"{TASK}.image_uri", ECR, Code.SPEC_IMAGE_HOST, ECR),
    (f"{TASK}.image_uri", "https://acme.azurecr.io/a", Code.SPEC_IMAGE_HOST, "azurecr"),
]  # fmt: skip


@pytest.mark.parametrize("case", PROBLEMS, ids=lambda case: f"{case[0]}-{case[2].name}")
def test_a_problem_has_its_place_its_code_and_what_was_found(case: tuple[Any, ...]) -> None:
    at, value, code, repeats, *other = case
    error = rejected(put(MINIMAL, at, value))
    assert error.message.text.startswith(f"{other[0] if other else at}: ")
    assert error.message.code is code
    assert repeats in error.message.text


@pytest.mark.parametrize("spec", ["{", "[1]", None, b"{}"])
def test_what_is_not_a_json_object_is_not_read(spec: Any) -> None:
    assert rejected(spec).message.code is Code.SPEC_UNREADABLE


@pytest.mark.parametrize(
    "chip", ["NVIDIA_TESLA_T5", "NVIDIA_L40", "TPU_V5P", "NVIDIA_H100_94GB", "GPU", "NVIDIA", "é1"]
)
def test_no_other_chip_is_suggested_for_one_that_is_not_known(chip: str) -> None:
    spec = put(run_spec(), f"{POOL}.machine_spec.accelerator_type", chip)
    assert "Did you mean" not in str(rejected(spec))


@pytest.mark.parametrize("resource", ["local-process", "local-container"])
def test_what_only_has_the_address_of_a_scheduler_gets_no_machine_of_one(resource: str) -> None:
    error = rejected(run_spec(uri=SCHEDULER_URI, resource=resource, resource_args={}))
    assert error.message.code is Code.SPEC_RESOURCE
    assert "scheduler.resource" in str(error)


SCHEDULER = {"entry_point": ["wandb", "scheduler", "s1"]}
SWEEP_JOB = {"run_config": {"sweep_args": {"sweep_id": "s1"}}}


@pytest.mark.parametrize("resource", ["local-process", "local-container"])
@pytest.mark.parametrize("from_queue", [{}, {"gcp-vertex": {"spec": {"worker_pool_specs": [{"replica_count": 8}]}}}])
def test_a_scheduler_that_asks_for_no_machine_gets_one_of_the_settings(
    resource: str, from_queue: dict[str, Any]
) -> None:
    asked = run_spec(uri=SCHEDULER_URI, docker={}, resource=resource, resource_args=from_queue, overrides=SCHEDULER)
    machine = {"machine_type": "n1-highmem-2", "service_account": "sweeps@p.iam.gserviceaccount.com"}
    for own, image, account in (
        ({}, "python:3.11-slim", None),
        (machine | {"image": "gcr.io/p/wandb:1"}, "gcr.io/p/wandb:1", machine["service_account"]),
    ):
        made = parse(item(asked), SETTINGS.model_copy(update={"sweeps": Sweeps(scheduler=Scheduler(**own))}), ENTITY)
        (pool_,) = made.arguments["worker_pool_specs"]
        assert (made.image, made.needs_client, made.kind) == (image, True, Kind.SCHEDULER)
        assert pool_["container_spec"]["image_uri"] == image
        assert pool_["machine_spec"] == {"machine_type": own.get("machine_type", "e2-standard-4")}
        assert made.arguments["service_account"] == account


@pytest.mark.parametrize("what", [{"docker": {"docker_image": IMAGE}}, {"docker": {}, "job": "acme/demo/sched:v0"}])
def test_a_scheduler_with_an_image_or_a_job_of_its_own_keeps_it(what: dict[str, Any]) -> None:
    overrides = SWEEP_JOB if "job" in what else SCHEDULER
    asked = run_spec(uri=SCHEDULER_URI, resource="local-container", resource_args={}, overrides=overrides, **what)
    made = parse(item(asked), SETTINGS, ENTITY)
    assert (made.image, made.needs_client) == (what["docker"].get("docker_image", ""), False)


def test_a_scheduler_without_an_image_learns_where_to_set_it() -> None:
    error = rejected(run_spec(uri=SCHEDULER_URI, docker={}, overrides=SCHEDULER))
    assert error.message.code is Code.SPEC_MISSING
    assert "scheduler.docker_image" in str(error)


def test_a_public_registry_of_amazon_can_be_pulled_from() -> None:
    built(run_spec(docker={"docker_image": "public.ecr.aws/x/y:1"}))


def test_an_argument_may_be_in_both_sections_with_the_same_value() -> None:
    built(run_spec(spec={"service_account": "a@x", "timeout": 5}, run={"service_account": "a@x", "timeout": 5}))


def test_all_problems_of_an_item_are_reported_together_each_with_its_code() -> None:
    spec = run_spec(
        pool(image_uri=""),
        {**PACKAGE, "machine_spec": {"acceleratorType": "x"}},
        spec={"location": "${author}", "labels": {"A": "b"}},
        run={"timeout": "1"},
        overrides={"args": 3},
        project="",
    )
    error = rejected(spec)
    assert error.message.code is Code.SPEC_PROBLEMS
    head, *lines = str(error).splitlines()
    assert "6 problems" in head
    assert [(line.split(": ")[0], line.split("[")[-1]) for line in lines] == [
        ("- overrides.args", f"{Code.SPEC_VALUE}]"),
        ("- project", f"{Code.SPEC_MISSING}]"),
        (f"- {POOLS}[1].machine_spec.acceleratorType", f"{Code.SPEC_UNKNOWN_KEY}]"),
        (f"- {VERTEX}.spec.labels.A", f"{Code.SPEC_LABEL}]"),
        (f"- {VERTEX}.run.timeout", f"{Code.SPEC_VALUE}]"),
        (f"- {TASK}.image_uri", f"{Code.SPEC_MISSING}]"),
    ]


def test_only_the_first_of_very_many_problems_are_listed() -> None:
    lines = str(rejected(run_spec(overrides={"args": [{"odd": 1}] * 300}))).splitlines()
    assert "at least 20 problems" in lines[0]
    assert len(lines) == 21


def test_what_only_the_value_of_a_macro_makes_wrong_is_found() -> None:
    spec = run_spec(
        {**pool(), "machine_spec": {"accelerator_type": "${author}"}},
        spec={"staging_bucket": "s3://${author}", "labels": {"who": "${author}"}},
        author="Alice",
    )
    assert "3 problems" in str(rejected(spec))
    machine = {"machine_type": "g2-standard-4", "accelerator_type": "${author}", "accelerator_count": 1}
    good = {**pool(), "machine_spec": machine}
    job = built(run_spec(good, author="NVIDIA_L4")).custom_job.job_spec
    assert job.worker_pool_specs[0].machine_spec.accelerator_type.name == "NVIDIA_L4"
    assert rejected(run_spec(spec={"location": "${author}"})).message.code is Code.SPEC_REGION


def test_a_template_variable_in_the_programs_own_text_is_passed_on() -> None:
    (warning,) = built(run_spec(pool(args=["--prompt", "{{name}}"]))).warnings
    assert warning.code is Code.SPEC_TEMPLATE
    assert warning.text.startswith(f"{TASK}.args[1]: ")


def test_a_run_is_named_by_the_spec_or_derived_from_the_item() -> None:
    derived = built(run_spec()).run
    assert (derived.entity, derived.project) == ("acme", "demo")
    assert derived.id.startswith("vl")
    assert built(run_spec(run_id="r1", entity="other")).run == RunId("other", "demo", "r1")
    assert built(run_spec(entity=None)).run.entity == ENTITY


def test_a_spec_may_come_as_json_text_and_under_either_key() -> None:
    assert built(json.dumps(FULL)).custom_job == built(FULL).custom_job
    moved = copy.deepcopy(FULL)
    moved["resource_args"]["gcp-vertex"] = moved["resource_args"].pop("vertex") | {"builder": {"type": "docker"}}
    moved["resource"] = "gcp-vertex"
    assert built(moved).custom_job == built(FULL).custom_job
    parsed = parse(item(moved), SETTINGS, ENTITY)
    assert (parsed.resource, parsed.builder) == ("gcp-vertex", {"type": "docker"})


def test_only_a_sweeps_scheduler_is_a_job_of_its_own_kind() -> None:
    for uri, kind in ((SCHEDULER_URI, Kind.SCHEDULER), ("https://wandb.ai/x", Kind.JOB)):
        assert parse(item(run_spec(uri=uri, overrides=SCHEDULER)), SETTINGS, ENTITY).kind is kind


# Any shape at all


def places(value: Any, at: str = "") -> Iterator[str]:
    if at:
        yield at
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from places(inner, f"{at}[{index}]")


WIDE = put(
    put(
        put(FULL, f"{POOL}.machine_spec.reservation_affinity", {"reservation_affinity_type": "ANY_RESERVATION"}),
        f"{VERTEX}.run.psc_interface_config",
        {"network_attachment": "a", "dns_peering_configs": [{"domain": "d."}]},
    ),
    f"{VERTEX}.run.scheduling_strategy",
    "SPOT",
)
deep: list[Any] = []
for _ in range(5000):
    deep = [deep]
cyclic: dict[str, Any] = {}
cyclic["again"] = cyclic
hostile = st.one_of(
    json_values,
    st.sampled_from(
        [deep, cyclic, float("nan"), float("inf"), 10**5000, 2**70, -(2**63), "\ud800", "\0", "${", "x" * 10**5]
    ),
    st.sampled_from(
        [{"\ud800": 1}, {1: 2}, {None: 3}, (1,), b"x", {1}, object(), "<REQUIRED>", "{{x}}", "$(", "${author}"]
    ),
    st.lists(json_values, max_size=3),
)


@settings(max_examples=examples(250), deadline=None)
@given(st.sampled_from(list(places(WIDE))), hostile, st.sampled_from(list(places(WIDE))), hostile)
def test_whatever_comes_is_a_job_or_rejected(at: str, value: Any, then_at: str, then: Any) -> None:
    spec = put(WIDE, at, value)
    with suppress(TypeError, AttributeError, KeyError, IndexError, RecursionError):  # the second place may be gone
        spec = put(spec, then_at, then)
    spec["_wandb_api_key"] = KEY[::-1]
    try:
        request = built(spec)
    except ItemRejected as error:
        assert KEY[::-1] not in str(error)
        str(error).encode()
    else:
        assert CustomJob.deserialize(CustomJob.serialize(request.custom_job)) == request.custom_job
        assert managed(request.custom_job, deployment="default", region="us-central1")


@given(json_values)
def test_anything_at_all_is_a_run_spec_or_rejected(spec: Any) -> None:
    rejected(spec)
    assert own_key(item(spec)) == ""


@pytest.mark.parametrize("key", ["unknown key", "resource_args", "x" * 39, "x" * 5000, "a b " * 20, "x" * 40 + "\n"])
def test_what_cannot_be_a_key_is_not_hidden_in_messages(key: str) -> None:
    assert own_key(item(run_spec(_wandb_api_key=key))) == ""


def test_no_key_is_shown() -> None:
    own = "f" * 40
    spec = run_spec(_wandb_api_key=own)
    request = built(spec)
    assert own not in repr(request)
    assert own not in repr(parse(item(spec), SETTINGS, ENTITY))
    assert own_key(item(json.dumps(spec))) == own
    assert own not in json.dumps(as_json(request))
    assert own not in str(rejected(run_spec(spec={"location": own})))
