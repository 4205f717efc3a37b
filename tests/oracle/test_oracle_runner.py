"""The official VertexRunner, run in process, sends the CustomJob that we build, but for differences that are meant.

Only its edges to the network are replaced: Google's credentials, and the JobService that it creates the job at. Each
difference is a function of ``DIFFERENCES``: it asserts what the official runner sends and what we send instead, and only
then takes ours over. Whatever else differs fails the comparison.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.aiplatform_v1.types import CustomJob, Scheduling
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb.sdk.launch._project_spec import LaunchProject
from wandb.sdk.launch.environment.gcp_environment import GcpEnvironment
from wandb.sdk.launch.errors import LaunchError
from wandb.sdk.launch.runner.vertex_runner import VertexRunner
from wandb.sdk.launch.utils import MACRO_REGEX, MAX_ENV_LENGTHS, PROJECT_SYNCHRONOUS, load_wandb_config
from wandb.sdk.wandb_settings import Settings as SdkSettings

from tests.support.numbers import examples
from tests.support.specs import (
    ENTITY,
    FULL,
    IMAGE,
    KEY,
    MINIMAL,
    SAMPLES,
    SETTINGS,
    built,
    json_values,
    pool,
    run_spec,
    texts,
    words,
)
from tests.support.wire import NOW, Wire, captured
from vertex_launch.addresses import server
from vertex_launch.errors import ItemRejected
from vertex_launch.job import arguments, environment
from vertex_launch.job.request import JobRequest
from vertex_launch.model import SCHEDULER_URI
from vertex_launch.settings.config import Settings

OTHER_IMAGE = "gcr.io/demo/reduction:1"


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with captured() as one:
        yield one


class Google(GcpEnvironment):  # type: ignore[misc]
    """The runner's environment without the network."""

    def __init__(self) -> None:
        super().__init__("us-central1")
        self._project = SETTINGS.project

    async def verify(self) -> None:
        """Nothing to verify."""

    async def get_credentials(self) -> AnonymousCredentials:
        return AnonymousCredentials()


def official(wire: Wire, spec: dict[str, Any], *, run_id: str) -> CustomJob:
    """Return what the official runner sends for an item; its random run ids are replaced by ``run_id``."""
    api = SimpleNamespace(settings={"base_url": SETTINGS.base_url}, api_key=KEY)
    project = LaunchProject.from_spec(copy.deepcopy(spec), api)
    project.queue_name, project.queue_entity, project.run_queue_item_id = "gpu", ENTITY, "SXRlbTox"
    if not spec.get("run_id"):
        assert re.fullmatch("[a-z0-9]{8}", project.run_id)
        project.run_id = run_id
    runner = VertexRunner(api, {PROJECT_SYNCHRONOUS: False}, Google(), None)
    asyncio.run(runner.run(project, project.docker_image))
    return wire.last()


def ours(spec: dict[str, Any], settings: Settings = SETTINGS) -> JobRequest:
    return built(spec, settings, now=NOW)


@dataclass
class Case:
    """A run spec, what was sent for it, and its parts as the differences need them."""

    spec: dict[str, Any]
    theirs: CustomJob
    ours: CustomJob
    run_id: str

    @property
    def run(self) -> dict[str, Any]:
        """The arguments that the run spec gives under ``run``."""
        run: dict[str, Any] = self._vertex["run"]
        return run

    @property
    def asked(self) -> dict[str, Any]:
        """Every argument that the run spec gives."""
        return {**self._vertex["spec"], **self.run}

    @property
    def _vertex(self) -> dict[str, Any]:
        vertex: dict[str, Any] = next(iter(self.spec["resource_args"].values()))
        return vertex

    @property
    def overrides(self) -> dict[str, Any]:
        overrides: dict[str, Any] = self.spec.get("overrides") or {}
        return overrides

    def filled(self, text: str, *, no_name: str = "", expanded: bool = False) -> str:
        """Replace the macros of one text, by W&B's documentation."""
        values = {
            "project_name": self.spec["project"].lower(),
            "entity_name": self.spec["entity"],
            "run_id": self.run_id,
            "run_name": self.spec.get("name") or no_name,
            "image_uri": IMAGE,
            "author": self.spec.get("author") or no_name,
        }
        if expanded:
            values = {name: doubled(value) for name, value in values.items()}
        return str(MACRO_REGEX.sub(lambda match: values.get(match[1], match[0]), text))

    def pools(self) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        """Go through the pools: as asked for, as they send it, as we send it."""
        wanted = [one["container_spec"] for one in self.asked["worker_pool_specs"]]
        theirs = [one.container_spec for one in self.theirs.job_spec.worker_pool_specs]
        mine = [one.container_spec for one in self.ours.job_spec.worker_pool_specs]
        yield from zip(wanted, theirs, mine, strict=True)


def doubled(text: str) -> str:
    """Escape text for expansion, written another way than in the product."""
    out, index = "", 0
    while index < len(text):
        end = index
        while end < len(text) and text[end] == "$":
            end += 1
        dollars = end - index
        dangerous = dollars > 1 or (dollars == 1 and text[end : end + 1] == "(")
        out += "$" * (dollars * 2 if dangerous else dollars)
        if not dollars:
            out, end = out + text[index], index + 1
        index = end
    return out


def labels(case: Case) -> None:
    """Ours say which deployment, item, run, queue and attempt it is for; the official runner knows only its own memory."""
    own = {name: case.filled(value) for name, value in (case.asked.get("labels") or {}).items()}
    assert dict(case.theirs.labels) == {**own, "wandb-run-id": case.run_id}
    hashed = hashlib.sha256("\0".join((server(SETTINGS.base_url), ENTITY, "SXRlbTox")).encode()).hexdigest()[:40]
    assert dict(case.ours.labels) == {
        **own,
        "wandb-run-id": case.run_id,
        "vertex_launch": "default",
        "vertex_launch_item": hashed,
        "vertex_launch_run": case.run_id,
        "vertex_launch_queue": "gpu",
        "vertex_launch_attempt": "1",
        "vertex_launch_kind": "scheduler" if case.spec.get("uri") == SCHEDULER_URI else "job",
        **({"vertex_launch_key": "item"} if case.spec.get("_wandb_api_key") else {}),
    }
    case.theirs.labels = dict(case.ours.labels)


def display_name(case: Case) -> None:
    """Vertex AI takes 128 characters, and a run without a name is easier to find by its id than by the SDK's time."""
    name = case.spec.get("name")
    if name:
        assert case.theirs.display_name == name
        assert case.ours.display_name == name[:128]
    else:
        assert re.fullmatch(r"CustomJob \d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+", case.theirs.display_name)
        assert case.ours.display_name == f"demo {case.run_id}"
    case.theirs.display_name = case.ours.display_name


def command(case: Case) -> None:
    """The official runner replaces the user's command, in every pool, even by nothing; override args replace the image's
    ENTRYPOINT where there is no entry point. Text from W&B is escaped, so that `$(NAME)` in it is not expanded."""
    entry_point, args = case.overrides.get("entry_point") or [], case.overrides.get("args") or []
    for asked, theirs, mine in case.pools():
        own_command = [case.filled(text, expanded=True) for text in asked.get("command", ())]
        own_args = [case.filled(text, expanded=True) for text in asked.get("args", ())]
        assert list(theirs.command) == entry_point + args
        assert list(theirs.args) == [case.filled(text, no_name="None") for text in asked.get("args", ())]
        if asked["image_uri"] == OTHER_IMAGE:
            assert list(mine.command) == own_command
            assert list(mine.args) == own_args
        elif entry_point:
            assert list(mine.command) == [doubled(text) for text in entry_point + args]
            assert list(mine.args) == own_args
        else:
            assert list(mine.command) == own_command
            assert list(mine.args) == own_args + [doubled(text) for text in args]
        theirs.command, theirs.args = list(mine.command), list(mine.args)


def variables(case: Case) -> None:
    """One value per name, of which the official runner makes two; WANDB_RESUME=allow wherever Vertex AI may start the
    container again; text from W&B escaped; no WANDB_USERNAME where the author is null."""
    for asked, theirs, mine in case.pools():
        sent = [(one.name, one.value) for one in theirs.env]
        own = [(one["name"], one.get("value", "")) for one in asked.get("env", ())]
        added = sent[len(own) :]
        assert sent[: len(own)] == [(name, case.filled(value, no_name="None")) for name, value in own]
        assert len({name for name, _ in added}) == len(added)
        assert ("WANDB_RESUME", "allow") in added or not case.spec.get("_resume_count")
        official_names = {name for name, _ in added}
        expected = [
            (name, case.filled(value, expanded=True))
            for name, value in own
            if name not in official_names or name in ("WANDB_NAME", "WANDB_DOCKER", "WANDB_RESUME")
        ]
        kept = {name for name, _ in expected}
        if case.spec.get("author", "") is None:
            added = [(name, value) for name, value in added if name != "WANDB_USERNAME"]
        if not case.spec.get("_resume_count") and not case.asked.get("disable_retries"):
            before = [name for name, _ in added].index("WANDB_LAUNCH_QUEUE_NAME")
            added.insert(before, ("WANDB_RESUME", "allow"))
        expected += [(name, doubled(value)) for name, value in added if name not in kept]
        assert [(one.name, one.value) for one in mine.env] == expected
        theirs.env = list(mine.env)


def no_account(case: Case) -> None:
    """The official runner leaves a job without an account to Google's custom code agent; ours gets that of the settings."""
    theirs, mine = CustomJob.pb(case.theirs).job_spec, CustomJob.pb(case.ours).job_spec
    if not case.asked.get("service_account"):
        assert theirs.service_account == ""
        assert mine.service_account == SETTINGS.jobs_account
        theirs.service_account = mine.service_account


def dropped_arguments(case: Case) -> None:
    """The official runner silently drops whatever it does not know, the service account under `spec` among it, so that
    Spot is impossible."""
    theirs, mine, asked = CustomJob.pb(case.theirs).job_spec, CustomJob.pb(case.ours).job_spec, case.asked
    if asked.get("service_account") and "service_account" not in case.run:
        assert theirs.service_account == ""
        assert mine.service_account == asked["service_account"]
        theirs.service_account = mine.service_account
    for name in ("persistent_resource_id", "protected_artifact_location_id"):
        if name in asked:
            assert getattr(theirs, name) == ""
            assert getattr(mine, name) == asked[name]
            setattr(theirs, name, asked[name])
    if "scheduling_strategy" in asked:
        assert theirs.scheduling.strategy == 0
        assert mine.scheduling.strategy == Scheduling.Strategy[asked["scheduling_strategy"]]
        theirs.scheduling.strategy = mine.scheduling.strategy
    if "disable_retries" in asked:
        assert theirs.scheduling.disable_retries is False
        assert mine.scheduling.disable_retries is asked["disable_retries"]
        theirs.scheduling.disable_retries = asked["disable_retries"]
    if "max_wait_duration" in asked:
        assert not theirs.scheduling.HasField("max_wait_duration")
        assert mine.scheduling.max_wait_duration.seconds == asked["max_wait_duration"]
        theirs.scheduling.max_wait_duration.CopyFrom(mine.scheduling.max_wait_duration)
    if "psc_interface_config" in asked:
        assert not theirs.HasField("psc_interface_config")
        assert mine.psc_interface_config.network_attachment == asked["psc_interface_config"]["network_attachment"]
        theirs.psc_interface_config.CopyFrom(mine.psc_interface_config)


DIFFERENCES: list[Callable[[Case], None]] = [labels, display_name, command, variables, no_account, dropped_arguments]


def compare(wire: Wire, spec: dict[str, Any]) -> Case:
    request = ours(spec)
    case = Case(spec, official(wire, spec, run_id=request.run.id), request.custom_job, request.run.id)
    sent = copy.deepcopy(case)
    for difference in DIFFERENCES:
        difference(case)
    assert case.theirs == case.ours
    assert wire.request.parent == f"projects/{SETTINGS.project}/locations/{request.region}"
    return sent


@pytest.mark.parametrize("name", [name for name, spec in SAMPLES.items() if not spec.get("job")])
def test_samples(wire: Wire, name: str) -> None:
    compare(wire, SAMPLES[name])


# FULL has a pool that is skipped, which the official runner cannot.
SMALL = {
    "minimal": MINIMAL,
    "full": run_spec(
        *[one for one in FULL["resource_args"]["vertex"]["spec"]["worker_pool_specs"] if one],
        spec={
            "labels": {"team": "vision"},
            "encryption_spec_key_name": "projects/p/keys/k",
            "service_account": "a@b.c",
        },
        run=FULL["resource_args"]["vertex"]["run"],
        overrides=FULL["overrides"],
        run_id="abcd1234",
        sweep_id="sw1",
    ),
    "a key of the item's own": run_spec(_wandb_api_key="f" * 40),
    "image beside a job": run_spec(job="acme/Demo/job-train:v3"),
    "image_uri at the top": run_spec(docker={}, image_uri=IMAGE),
    "no author, no name": run_spec(author=None, name=None),
    "everything that is dropped": run_spec(
        spec={"persistent_resource_id": "pool-1", "protected_artifact_location_id": "us-central1"},
        run={
            "scheduling_strategy": "FLEX_START",
            "max_wait_duration": 0,
            "disable_retries": True,
            "psc_interface_config": {"network_attachment": "att"},
        },
    ),
    "a long config": run_spec(overrides={"run_config": {"text": "x" * 70_000}, "files": {"a": "é" * 40_000}}),
}


@pytest.mark.parametrize("name", SMALL)
def test_small_specs(wire: Wire, name: str) -> None:
    compare(wire, SMALL[name])


macros = st.sampled_from(
    ["${project_name}", "${entity_name}", "${run_id}", "${run_name}", "${image_uri}", "${no_such}"]
)
filled_in = st.lists(macros | words, max_size=3).map("".join)
names = st.sampled_from(
    ["A", "B", "NCCL_DEBUG", "WANDB_NAME", "WANDB_API_KEY", "WANDB_ENTITY", "WANDB_RESUME", "WANDB_USERNAME"]
)
containers = st.fixed_dictionaries(
    {"image_uri": st.sampled_from(["${image_uri}", IMAGE, OTHER_IMAGE])},
    optional={
        "command": st.lists(filled_in, max_size=2),
        "args": st.lists(filled_in, max_size=2),
        "env": st.lists(
            st.builds(lambda name, value: {"name": name, "value": value}, names, filled_in),
            max_size=3,
            unique_by=lambda one: one["name"],
        ),
    },
)
worker_pools = st.builds(
    lambda first, rest: [{"replica_count": 1, "container_spec": one} for one in ({**first, "image_uri": IMAGE}, *rest)],
    containers,
    st.lists(containers, max_size=2),
)
vertex = st.builds(
    lambda pools, spec, run: {
        "spec": {"worker_pool_specs": pools, "staging_bucket": "gs://demo-staging", **spec},
        "run": run,
    },
    worker_pools,
    st.fixed_dictionaries(
        {},
        optional={
            "base_output_dir": st.just("gs://demo-output/${project_name}"),
            "labels": st.dictionaries(
                st.from_regex("[a-z]{1,4}", fullmatch=True), st.just("${project_name}"), max_size=2
            ),
            "encryption_spec_key_name": st.just("projects/p/keys/k"),
        },
    ),
    st.fixed_dictionaries(
        {},
        optional={
            "service_account": st.just("trainer@${entity_name}.iam"),
            "network": st.just("projects/1/global/networks/vpc"),
            "timeout": st.integers(0, 10**6),
            "restart_job_on_worker_restart": st.booleans(),
            "enable_web_access": st.booleans(),
            "tensorboard": st.just("projects/1/locations/us-central1/tensorboards/2"),
        },
    ),
)
filled_text = texts.filter(bool)
specs = st.fixed_dictionaries(
    {
        "entity": st.just(ENTITY),
        "project": st.sampled_from(["Demo", "demo"]),
        "resource": st.just("vertex"),
        "resource_args": st.builds(lambda key, value: {key: value}, st.sampled_from(["vertex", "gcp-vertex"]), vertex),
        "docker": st.just({"docker_image": IMAGE}),
    },
    optional={
        "name": st.none() | filled_text | st.text("x", min_size=127, max_size=130),
        "author": filled_text,
        "run_id": st.from_regex("[a-z0-9]{1,12}", fullmatch=True),
        "sweep_id": st.sampled_from(["", "sw1"]),
        "_resume_count": st.integers(0, 2),
        "_wandb_api_key": st.just("f" * 40),
        "overrides": st.fixed_dictionaries(
            {},
            optional={
                "args": st.lists(texts, max_size=3),
                "entry_point": st.lists(texts, max_size=3),
                "run_config": st.dictionaries(texts, json_values, max_size=3),
                "files": st.dictionaries(texts, json_values, max_size=2),
                "artifacts": st.dictionaries(texts, json_values, max_size=2),
            },
        ),
    },
)


@settings(max_examples=examples(200), deadline=None)
@given(specs)
def test_generated_specs(wire: Wire, spec: dict[str, Any]) -> None:
    compare(wire, spec)


# What the official runner cannot do at all, or does on terms that we refuse.


def test_it_fills_macros_from_all_of_its_environment_and_we_only_from_the_list(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("TEAM_BUCKET", "gs://team")
    env = [{"name": "LEAK", "value": "${WANDB_API_KEY}"}, {"name": "OUT", "value": "${TEAM_BUCKET}"}]
    spec = run_spec(pool(env=env))
    theirs = official(wire, spec, run_id="r").job_spec.worker_pool_specs[0].container_spec.env
    assert [one.value for one in theirs[:2]] == [KEY, "gs://team"]
    allowed = SETTINGS.model_copy(update={"macro_values": {"TEAM_BUCKET": "gs://team"}})
    mine = ours(spec, allowed).custom_job.job_spec.worker_pool_specs[0].container_spec.env
    assert [one.value for one in mine[:2]] == ["${WANDB_API_KEY}", "gs://team"]


def test_it_refuses_pools_that_are_skipped_or_run_a_python_package(wire: Wire) -> None:
    package = {
        "python_package_spec": {"executor_image_uri": "us-docker.pkg.dev/vertex-ai/training/tf:1", "python_module": "t"}
    }
    for other in ({}, package):
        spec = run_spec(pool(), other)
        with pytest.raises(LaunchError, match="requires a container spec"):
            official(wire, spec, run_id="r")
        assert len(ours(spec).custom_job.job_spec.worker_pool_specs) == 2


def test_it_needs_a_staging_bucket_in_the_spec_and_we_take_the_regions(wire: Wire) -> None:
    spec = run_spec(spec={"staging_bucket": None, "location": "europe-west4"})
    with pytest.raises(LaunchError, match="staging bucket"):
        official(wire, spec, run_id="r")
    job = ours(spec)
    assert job.region == "europe-west4"
    assert job.custom_job.job_spec.base_output_directory.output_uri_prefix == (
        "gs://demo-europe/aiplatform-custom-job-2026-02-03-04:05:06.789"
    )


def test_it_ignores_keys_that_it_does_not_know_and_we_name_the_right_one(wire: Wire) -> None:
    spec = run_spec(run={"schedulingStrategy": "SPOT"})
    assert official(wire, spec, run_id="r").job_spec.scheduling.strategy == 0
    with pytest.raises(ItemRejected, match="Did you mean scheduling_strategy"):
        ours(spec)


# The other side of the environment: the SDK in the container.


@settings(max_examples=examples(25), deadline=None)
@given(specs)
def test_the_sdk_reads_back_from_the_environment_what_the_run_spec_says(spec: dict[str, Any]) -> None:
    for one in spec["resource_args"].values():
        for each in one["spec"]["worker_pool_specs"]:
            each["container_spec"].pop("env", None)
    request = ours(spec)
    env = environment.read(request.custom_job.job_spec.worker_pool_specs[0].container_spec.env)
    sdk = SdkSettings()
    sdk.update_from_env_vars(env)
    assert (sdk.entity, sdk.project, sdk.run_id) == (request.run.entity, request.run.project, request.run.id)
    assert (sdk.run_name or "") == (spec.get("name") or "")
    assert (sdk.sweep_id or "") == (spec.get("sweep_id") or "")
    assert sdk.resume == "allow"
    assert sdk.launch is True
    config = (spec.get("overrides") or {}).get("run_config", {})
    assert json.dumps(json.loads(env["WANDB_CONFIG"])) == json.dumps(config)


def test_the_sdk_puts_a_split_config_together_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"text": "ab$$(HOME) $(X" * 6000}
    env = environment.read(
        ours(run_spec(overrides={"run_config": config})).custom_job.job_spec.worker_pool_specs[0].container_spec.env
    )
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert "WANDB_CONFIG" not in env
    assert "WANDB_CONFIG_2" in env
    assert dict(load_wandb_config()) == config


def test_macros_and_the_size_of_parts_are_the_official_ones() -> None:
    assert arguments._MACRO.pattern == MACRO_REGEX.pattern
    assert MAX_ENV_LENGTHS["VertexRunner"] == environment.LONGEST
