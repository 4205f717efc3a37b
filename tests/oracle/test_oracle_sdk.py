"""Google's own ``aiplatform.CustomJob(...).submit(...)`` sends the message that we build from the same arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import aiplatform
from google.cloud.aiplatform_v1.types import CustomJob, CustomJobSpec, Scheduling
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.numbers import examples
from tests.support.specs import IMAGE, SETTINGS, built, run_spec
from tests.support.wire import NOW, Wire, captured
from vertex_launch.job import labels
from vertex_launch.job.arguments import IN_JOB_SPEC, NAMES, TASKS

CONTEXT = "projects/1/locations/us-central1/metadataStores/default/contexts/"
IN_MESSAGE_ONLY = {"reserved_ip_ranges", "enable_dashboard_access", "protected_artifact_location_id", "models"}


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with captured() as one:
        yield one


def arguments_of(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def test_we_know_exactly_the_arguments_of_the_sdk_and_the_fields_that_it_has_none_for() -> None:
    sdk = arguments_of(aiplatform.CustomJob.__init__) | arguments_of(aiplatform.CustomJob.run)
    assert arguments_of(aiplatform.CustomJob.submit) < sdk
    assert sdk | IN_MESSAGE_ONLY == NAMES


def test_every_field_of_the_message_has_an_argument() -> None:
    through_another_name = {"scheduling", "base_output_directory"}
    assert {one.name for one in CustomJobSpec.pb(CustomJobSpec()).DESCRIPTOR.fields} == (
        IN_JOB_SPEC | through_another_name
    )


def sdk_job(wire: Wire, spec: dict[str, Any], run: dict[str, Any]) -> CustomJob:
    """Return the message that the SDK sends."""
    spec, run = copy.deepcopy(spec), copy.deepcopy(run)
    strategy = run.pop("scheduling_strategy", None)
    for name in ("experiment", "experiment_run"):
        if name in run:  # text would be looked up; an object of the SDK's own knows its resource name
            run[name] = SimpleNamespace(resource_name=run[name])
    job = aiplatform.CustomJob(
        **{"display_name": "first run", "project": SETTINGS.project, "location": "us-central1", **spec},
        credentials=AnonymousCredentials(),
    )
    job.submit(**run, scheduling_strategy=Scheduling.Strategy[strategy] if strategy else None)
    return wire.last()


def our_job(spec: dict[str, Any], run: dict[str, Any]) -> CustomJob:
    """Return the message that we build, without the labels and variables that we add."""
    agent = SETTINGS.model_copy(update={"jobs_account": "service-1@gcp-sa-aiplatform-cc.iam.gserviceaccount.com"})
    job = built(run_spec(spec=spec, run=run), agent, now=NOW).custom_job
    job.labels = {key: value for key, value in job.labels.items() if key not in labels.OWN_KEYS}
    for pool in job.job_spec.worker_pool_specs:
        for task in [getattr(pool, name) for name in TASKS]:
            if task:
                task.env = [variable for variable in task.env if not variable.name.startswith("WANDB_")]
    return job


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
strings = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0${}<")), max_size=3)
variables = st.lists(
    st.builds(
        lambda name, value: {"name": name.replace("-", "_"), "value": value}, names, st.text("ab$()", max_size=6)
    ),
    max_size=3,
    unique_by=lambda one: one["name"],
)
containers = st.fixed_dictionaries(
    {"image_uri": st.just(IMAGE)}, optional={"command": strings, "args": strings, "env": variables}
)
packages = st.fixed_dictionaries(
    {"executor_image_uri": st.just("us-docker.pkg.dev/vertex-ai/training/tf:1"), "python_module": names},
    optional={"package_uris": strings, "args": strings, "env": variables},
)
chips = st.sampled_from(["NVIDIA_TESLA_T4", "TPU_V3", 8])
no_chips: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.just(
    {"accelerator_type": "ACCELERATOR_TYPE_UNSPECIFIED", "accelerator_count": 0}
)
accelerators = no_chips | st.builds(
    lambda chip, count: {"accelerator_type": chip, "accelerator_count": count}, chips, st.integers(1, 2**31 - 1)
)
machines_alone = st.fixed_dictionaries(
    {"machine_type": names},
    optional={
        "gpu_partition_size": names,
        "tpu_topology": st.just("2x2"),
        "reservation_affinity": st.fixed_dictionaries(
            {"reservation_affinity_type": st.sampled_from(["ANY_RESERVATION", "SPECIFIC_RESERVATION"])},
            optional={"key": names, "values": strings},
        ),
    },
)
machines = st.builds(lambda one, chips: one | chips, machines_alone, accelerators)
extras = {
    "machine_spec": machines,
    "replica_count": st.integers(0, 2**63 - 1),
    "nfs_mounts": st.lists(st.fixed_dictionaries({"server": names, "path": names, "mount_point": names}), max_size=2),
    "lustre_mounts": st.lists(st.fixed_dictionaries({"instance_ip": names, "filesystem": names}), max_size=1),
    "disk_spec": st.fixed_dictionaries({"boot_disk_type": names, "boot_disk_size_gb": st.integers(100, 64_000)}),
}
pools = st.fixed_dictionaries({"container_spec": containers}, optional=extras) | st.fixed_dictionaries(
    {"python_package_spec": packages}, optional=extras
)
specs = st.fixed_dictionaries(
    {
        "worker_pool_specs": st.builds(
            lambda first, rest: [first | {"replica_count": 1}, *rest], pools, st.lists(pools | st.just({}), max_size=2)
        ),
        "staging_bucket": st.sampled_from(
            ["gs://demo-staging", "gs://demo-staging/", "gs://demo-staging/a/b", "demo-staging"]
        ),
    },
    optional={
        "display_name": names,
        "base_output_dir": st.just("gs://demo-output/x"),
        "project": st.just(SETTINGS.project),
        "location": st.sampled_from([region.name for region in SETTINGS.regions]),
        "labels": st.dictionaries(names, names, max_size=3),
        "encryption_spec_key_name": names,
        "persistent_resource_id": names,
    },
)
durations = st.integers(0, 10**6)
runs = st.fixed_dictionaries(
    {},
    optional={
        "service_account": names.map("{}@p.iam.gserviceaccount.com".format) | st.just(""),
        "network": names.map("projects/1/global/networks/{}".format),
        "timeout": durations,
        "restart_job_on_worker_restart": st.booleans(),
        "enable_web_access": st.booleans(),
        "disable_retries": st.booleans(),
        "scheduling_strategy": st.sampled_from(["STANDARD", "SPOT", "FLEX_START"]),
        "max_wait_duration": durations,
        "create_request_timeout": st.floats(5, 60),
        "psc_interface_config": st.fixed_dictionaries(
            {},
            optional={
                "network_attachment": names,
                "dns_peering_configs": st.lists(
                    st.fixed_dictionaries({"domain": names, "target_project": names, "target_network": names}),
                    max_size=2,
                ),
            },
        ),
    },
)
reports = st.sampled_from(
    [
        {},
        {"tensorboard": "projects/1/locations/us-central1/tensorboards/2"},
        {"experiment": f"{CONTEXT}exp"},
        {"experiment": f"{CONTEXT}exp", "experiment_run": f"{CONTEXT}exp-run"},
    ]
)


@settings(max_examples=examples(150), deadline=None)
@given(specs, runs, reports)
def test_the_same_arguments_make_the_same_message(
    wire: Wire, spec: dict[str, Any], run: dict[str, Any], report: dict[str, str]
) -> None:
    run = run | report
    theirs = sdk_job(wire, spec, run)
    assert our_job(spec, run) == theirs
    assert wire.request.parent.endswith(f"/locations/{spec.get('location', 'us-central1')}")


@settings(max_examples=examples(15), deadline=None)
@given(runs)
def test_an_argument_may_stand_in_spec_as_well_as_in_run(wire: Wire, run: dict[str, Any]) -> None:
    spec = {"worker_pool_specs": [{"container_spec": {"image_uri": IMAGE}}], "staging_bucket": "gs://demo-staging"}
    assert our_job(spec | run, {}) == our_job(spec, run) == our_job(spec | run, run) == sdk_job(wire, spec, run)


def test_a_timeout_of_nothing_is_dropped_and_a_wait_without_end_is_kept(wire: Wire) -> None:
    spec = {"worker_pool_specs": [{"container_spec": {"image_uri": IMAGE}}], "staging_bucket": "gs://demo-staging"}
    run = {"timeout": 0, "max_wait_duration": 0}
    ours = our_job(spec, run)
    assert ours == sdk_job(wire, spec, run)
    scheduling = CustomJob.pb(ours).job_spec.scheduling
    assert not scheduling.HasField("timeout")
    assert scheduling.HasField("max_wait_duration")


def test_fields_without_an_argument_reach_the_message() -> None:
    job = our_job(
        {
            "reserved_ip_ranges": ["range-a"],
            "enable_dashboard_access": True,
            "protected_artifact_location_id": "us-central1",
            "models": ["projects/p/locations/l/models/m@2"],
        },
        {},
    ).job_spec
    assert list(job.reserved_ip_ranges) == ["range-a"]
    assert job.enable_dashboard_access is True
    assert job.protected_artifact_location_id == "us-central1"
    assert list(job.models) == ["projects/p/locations/l/models/m@2"]


def test_the_deadline_of_the_create_is_the_specs_own() -> None:
    assert built(run_spec(run={"create_request_timeout": 7.5})).create_timeout == 7.5
    assert built(run_spec()).create_timeout is None
