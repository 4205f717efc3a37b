"""From run spec to CustomJob by our own rules, every sentence that a user can meet, and back to the item."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import CustomJob, JobState
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.numbers import examples
from tests.support.specs import (
    ENTITY,
    FULL,
    IMAGE,
    KEY,
    MINIMAL,
    SETTINGS,
    dollars,
    item,
    json_values,
    pool,
    run_spec,
)
from vertex_launch.errors import ItemRejected
from vertex_launch.job import custom_job, environment, labels
from vertex_launch.job.custom_job import JobRequest, build, managed, parse, run_of
from vertex_launch.model import SCHEDULER_URI, Kind, RunId
from vertex_launch.settings.config import Settings

NOW = datetime(2026, 2, 3, 4, 5, 6, 789_000, tzinfo=UTC)
PACKAGE = {
    "python_package_spec": {"executor_image_uri": "us-docker.pkg.dev/vertex-ai/training/tf:1", "python_module": "train"}
}


def made(spec: Any, settings: Settings = SETTINGS, **more: Any) -> JobRequest:
    one = item(spec)
    return build(one, parse(one), settings, entity=ENTITY, api_key=KEY, now=NOW, **more)


def job_spec(spec: Any, settings: Settings = SETTINGS) -> Any:
    return made(spec, settings).custom_job.job_spec


def container(spec: Any, index: int = 0) -> Any:
    return job_spec(spec).worker_pool_specs[index].container_spec


def env(spec: Any, index: int = 0) -> dict[str, str]:
    variables = container(spec, index).env
    values = {one.name: one.value for one in variables}
    assert len(values) == len(variables)
    return values


def warned(spec: Any) -> tuple[str, ...]:
    return tuple(map(str, made(spec).warnings))


def rejected(spec: Any, settings: Settings = SETTINGS) -> str:
    with pytest.raises(ItemRejected) as caught:
        made(spec, settings)
    return str(caught.value)


# Expansion: what the container runtime does with $(NAME) and $$, as Kubernetes does it (third_party/forked/golang/expansion).


def expand(text: str, values: Mapping[str, str]) -> str:
    out, index = "", 0
    while index < len(text):
        if text[index] != "$" or index + 1 == len(text):
            out, index = out + text[index], index + 1
        elif text[index + 1] == "$":
            out, index = out + "$", index + 2
        elif text[index + 1] == "(" and (end := text.find(")", index)) > 0:
            name = text[index + 2 : end]
            out, index = out + values.get(name, f"$({name})"), end + 1
        else:
            out, index = out + text[index : index + 2], index + 2
    return out


class Everything(dict[str, str]):
    """Resolves every name, so that nothing escapes notice."""

    def get(self, key: str, default: Any = None) -> str:
        return f"LEAK({key})"


def test_the_reference_expands_as_kubernetes_does() -> None:
    cases = {
        "$(A)": "1",
        "$$(A)": "$(A)",
        "$$$(A)": "$1",
        "$$$$(A)": "$$(A)",
        "$(B)": "$(B)",
        "$(A": "$(A",
        "$A $ $$ a$": "$A $ $ a$",
        "$$$": "$$",
    }
    assert {text: expand(text, {"A": "1"}) for text in cases} == cases


@given(dollars)
def test_expansion_gives_escaped_text_back(text: str) -> None:
    escaped = environment.escape(text)
    assert expand(escaped, Everything()) == text
    assert environment.unescape(escaped) == text


@given(dollars)
def test_only_text_that_expansion_looks_at_is_touched(text: str) -> None:
    assert (environment.escape(text) == text) == ("$(" not in text and "$$" not in text)


@given(name=dollars, author=dollars, word=dollars, own=dollars)
def test_wandbs_text_survives_expansion_and_the_users_own_is_expanded(
    name: str, author: str, word: str, own: str
) -> None:
    own = own.replace("${", "{")
    spec = run_spec(
        pool(args=[own, "${run_name}"], env=[{"name": "OWN", "value": own}, {"name": "MACRO", "value": "${author}"}]),
        name=name,
        author=author,
        overrides={"args": [word], "run_config": {word: word}, "files": {word: 1}, "artifacts": {word: word}},
    )
    variables = env(spec)
    seen = {key: expand(value, Everything()) for key, value in variables.items()}
    assert variables["OWN"] == own
    assert seen["MACRO"] == author
    assert seen.get("WANDB_NAME", "") == name
    assert seen.get("WANDB_USERNAME", "") == author
    assert json.loads(seen["WANDB_CONFIG"]) == {word: word}
    assert json.loads(seen["WANDB_LAUNCH_FILE_OVERRIDES"]) == {word: 1}
    assert json.loads(seen["WANDB_ARTIFACTS"]) == {word: word}
    args = list(container(spec).args)
    assert args[0] == own
    assert [expand(one, Everything()) for one in args[1:]] == [name, word]


# Command and arguments.


def command_of(spec: dict[str, Any], index: int = 0) -> tuple[list[str], list[str]]:
    task = container(spec, index)
    return list(task.command), list(task.args)


OWN = {"command": ["own"], "args": ["-v"]}


@pytest.mark.parametrize(
    ("own", "overrides", "command", "args"),
    [
        ({}, {}, [], []),
        ({}, {"args": ["a"]}, [], ["a"]),
        ({}, {"entry_point": ["py", "t.py"]}, ["py", "t.py"], []),
        ({}, {"entry_point": ["py", "t.py"], "args": ["a"]}, ["py", "t.py", "a"], []),
        (OWN, {}, ["own"], ["-v"]),
        (OWN, {"args": ["a", "b"]}, ["own"], ["-v", "a", "b"]),
        (OWN, {"entry_point": ["py"], "args": ["a"]}, ["py", "a"], ["-v"]),
        (OWN, {"entry_point": [], "args": None}, ["own"], ["-v"]),
        ({}, {"entry_point": ["$(X)"], "args": ["$$"]}, ["$$(X)", "$$$$"], []),
    ],
)
def test_where_an_entry_point_and_arguments_go(
    own: dict[str, Any], overrides: dict[str, Any], command: list[str], args: list[str]
) -> None:
    assert command_of(run_spec(pool(**own), overrides=overrides)) == (command, args)


def test_a_pool_with_another_image_keeps_its_command() -> None:
    spec = run_spec(
        pool(), pool(image_uri="gcr.io/x/y", **OWN), {}, pool(image_uri=IMAGE), overrides={"entry_point": ["py"]}
    )
    assert [command_of(spec, index) for index in (0, 1, 3)] == [(["py"], []), (["own"], ["-v"]), (["py"], [])]
    assert env(spec, 1)["WANDB_RUN_ID"] == env(spec, 0)["WANDB_RUN_ID"]
    assert not CustomJob.pb(made(spec).custom_job).job_spec.worker_pool_specs[2].HasField("container_spec")


def test_a_python_package_takes_arguments_and_the_environment() -> None:
    spec = run_spec(
        {"python_package_spec": {**PACKAGE["python_package_spec"], "args": ["-v"]}}, overrides={"args": ["a"]}
    )
    task = job_spec(spec).worker_pool_specs[0].python_package_spec
    assert list(task.args) == ["-v", "a"]
    assert {"WANDB_RUN_ID", "WANDB_CONFIG"} <= {one.name for one in task.env}


def test_an_entry_point_for_a_python_package_is_an_error() -> None:
    assert rejected(run_spec(PACKAGE, overrides={"entry_point": ["py"]})) == (
        "resource_args.vertex.spec.worker_pool_specs[0].python_package_spec: the item has an entry point, and a Python "
        "package pool cannot take one. Remove overrides.entry_point, or use a container_spec."
    )


def test_overrides_that_would_reach_nothing_are_an_error_and_an_image_that_runs_nowhere_is_odd() -> None:
    spec = run_spec(pool(image_uri="gcr.io/x/y"))
    assert warned(spec) == (
        f"resource_args.vertex.spec.worker_pool_specs: no worker pool runs the item's image '{IMAGE}'. Write ${{image_uri}} as "
        "the image_uri of the pools that are to run it.",
    )
    spec["overrides"] = {"args": ["--lr", "1"]}
    assert "so its entry point and args would reach nothing. Write ${image_uri}" in rejected(spec)


# The environment.


def test_the_official_variables_stand_in_the_official_order() -> None:
    spec = {**FULL, "_resume_count": 1}
    assert list(env(spec)) == [
        "NCCL_DEBUG",
        "WANDB_BASE_URL",
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "WANDB_ENTITY",
        "WANDB_LAUNCH",
        "WANDB_RUN_ID",
        "WANDB_DOCKER",
        "WANDB_NAME",
        "WANDB_USERNAME",
        "WANDB_SWEEP_ID",
        "WANDB_RESUME",
        "WANDB_LAUNCH_QUEUE_NAME",
        "WANDB_LAUNCH_QUEUE_ENTITY",
        "WANDB_LAUNCH_TRACE_ID",
        "WANDB_CONFIG",
        "WANDB_LAUNCH_FILE_OVERRIDES",
        "WANDB_ARTIFACTS",
    ]


def test_an_items_own_key_is_used_and_then_no_author_is_named() -> None:
    values = env(run_spec(_wandb_api_key="f" * 40))
    assert values["WANDB_API_KEY"] == "f" * 40
    assert "WANDB_USERNAME" not in values
    assert env(run_spec())["WANDB_API_KEY"] == KEY


@pytest.mark.parametrize(
    ("run", "top", "resumes"),
    [
        ({}, {}, True),
        ({"restart_job_on_worker_restart": True}, {"sweep_id": "sw1"}, True),
        ({"disable_retries": False}, {}, True),
        ({"disable_retries": True}, {}, False),
        ({"disable_retries": True}, {"_resume_count": 1}, True),
    ],
)
def test_a_run_resumes_wherever_its_container_may_start_again(
    run: dict[str, Any], top: dict[str, Any], *, resumes: bool
) -> None:
    assert env(run_spec(run=run, **top)).get("WANDB_RESUME") == ("allow" if resumes else None)


@pytest.mark.parametrize("name", ["WANDB_NAME", "WANDB_DOCKER", "WANDB_RESUME"])
def test_how_a_run_is_shown_and_resumed_is_the_users_choice(name: str) -> None:
    request = made(run_spec(pool(env=[{"name": name, "value": "mine"}])))
    assert env(run_spec(pool(env=[{"name": name, "value": "mine"}])))[name] == "mine"
    assert request.warnings == ()


@pytest.mark.parametrize(
    "name",
    [
        "WANDB_BASE_URL",
        "WANDB_API_KEY",
        "WANDB_PROJECT",
        "WANDB_ENTITY",
        "WANDB_RUN_ID",
        "WANDB_USERNAME",
        "WANDB_SWEEP_ID",
        "WANDB_LAUNCH",
        "WANDB_LAUNCH_TRACE_ID",
        "WANDB_CONFIG",
        "WANDB_CONFIG_0",
        "WANDB_LAUNCH_FILE_OVERRIDES_7",
        "WANDB_ARTIFACTS",
    ],
)
def test_who_a_run_is_cannot_be_overridden(name: str) -> None:
    spec = run_spec(pool(env=[{"name": name, "value": "mine"}, {"name": "WANDB_CONFIG_DIR", "value": "/c"}]))
    assert env(spec) == {"WANDB_CONFIG_DIR": "/c", **env(run_spec())}
    assert warned(spec) == (
        f"resource_args.vertex.spec.worker_pool_specs[0].container_spec.env: {name} says which run this is and is set for "
        "you; the value given here is not used.",
    )


def test_of_a_variable_given_twice_the_last_one_counts() -> None:
    spec = run_spec(pool(env=[{"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "2"}]))
    assert list(env(spec).items())[:2] == [("B", ""), ("A", "2")]
    assert warned(spec) == (
        "resource_args.vertex.spec.worker_pool_specs[0].container_spec.env: A is given more than once; the last value counts.",
    )


@pytest.mark.parametrize("unit", ["x", "é", "$", "$(", "a$$(HOME) "])
@pytest.mark.parametrize("size", [32_660, 32_670, 65_400, 130_000])
def test_long_config_is_split_so_that_the_client_gets_it_back(unit: str, size: int) -> None:
    config = {"k": (unit * size)[:size]}
    values = env(run_spec(overrides={"run_config": config}))
    parts = {name: value for name, value in values.items() if name.startswith("WANDB_CONFIG")}
    assert max(map(len, parts.values())) <= 32_670
    assert list(parts) in (["WANDB_CONFIG"], [f"WANDB_CONFIG_{index}" for index in range(len(parts))])
    assert (len(parts) == 1) == (len(environment.escape(json.dumps(config))) <= 32_670)
    assert json.loads("".join(expand(part, Everything()) for part in parts.values())) == config


def test_a_hundred_variables_go_and_one_more_is_an_error() -> None:
    official = len(env(run_spec()))
    names = [{"name": f"V{index}", "value": ""} for index in range(100 - official)]
    assert len(env(run_spec(pool(env=names)))) == 100
    spec = run_spec(pool(env=names), overrides={"run_config": {"k": "x" * 40_000}})
    assert rejected(spec) == (
        "resource_args.vertex.spec.worker_pool_specs[0].container_spec.env: the container needs 101 environment variables and "
        f"Vertex AI takes 100: {100 - official} are given here and W&B adds {official + 1}, 2 of them parts of 32670 characters "
        "of the run's config and files. Give fewer variables, or pass what is large in overrides.run_config or overrides.files "
        "as an artifact."
    )


# Macros, names, places.


def test_macros_are_replaced_in_values_but_not_in_keys_and_not_twice() -> None:
    env_vars = [{"name": "M", "value": "${project_name}/${entity_name}/${run_id}/${run_name}/${author}/${HOME}/${x"}]
    spec = run_spec(pool(env=env_vars), run_id="r1", name="${author}")
    assert env(spec)["M"] == "demo/acme/r1/${author}/alice/${HOME}/${x"
    nameless = run_spec(pool(env=[{"name": "M", "value": "<${run_name}${author}>"}]), name=None, author=None)
    assert env(nameless)["M"] == "<>"
    assert "${image_uri}: this key is not known" in rejected(run_spec(spec={"${image_uri}": 1}))


def test_only_the_listed_environment_variables_are_macros(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    allowed = SETTINGS.model_copy(update={"macro_values": {"TEAM": "gs://team-$(X)", "run_id": "no"}})
    args = ["${TEAM}", "${WANDB_API_KEY}", "${run_id}"]
    task = job_spec(run_spec(pool(args=args), run_id="r1"), allowed).worker_pool_specs[0].container_spec
    assert list(task.args) == ["gs://team-$(X)", "${WANDB_API_KEY}", "r1"]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (run_spec(), "first run"),
        (run_spec(name="x" * 200), "x" * 128),
        (run_spec(name=""), "demo vlwxohvb9dqbnu"),
        (run_spec(name=None, run_id="r1"), "demo r1"),
        (run_spec(spec={"display_name": "team ${author}"}), "team alice"),
    ],
)
def test_the_display_name_comes_from_the_run(spec: dict[str, Any], name: str) -> None:
    assert made(spec).custom_job.display_name == name


def test_a_run_is_named_by_the_spec_or_derived_from_the_item() -> None:
    one = item(run_spec())
    derived = run_of(one, parse(one), SETTINGS, ENTITY)
    assert derived == RunId("acme", "demo", labels.run_id(SETTINGS.base_url, ENTITY, one.id, "default"))
    assert made(run_spec()).run == derived
    assert made(run_spec(run_id="r1", entity="other")).run == RunId("other", "demo", "r1")
    assert made(run_spec(entity=None)).run.entity == ENTITY


@pytest.mark.parametrize(
    ("spec", "region", "output"),
    [
        ({}, "us-central1", "gs://demo-staging/aiplatform-custom-job-2026-02-03-04:05:06.789"),
        ({"staging_bucket": "gs://b-1/a/"}, "us-central1", "gs://b-1/a/aiplatform-custom-job-2026-02-03-04:05:06.789"),
        (
            {"staging_bucket": None, "location": "europe-west4"},
            "europe-west4",
            "gs://demo-europe/aiplatform-custom-job-2026-02-03-04:05:06.789",
        ),
        ({"base_output_dir": "gs://out/${run_id}"}, "us-central1", "gs://out/r1"),
        ({"project": "demo-project", "sync": False}, "us-central1", None),
    ],
)
def test_where_a_job_runs_and_writes(spec: dict[str, Any], region: str, output: str | None) -> None:
    request = made(run_spec(spec=spec, run_id="r1"))
    assert request.region == region
    if output:
        assert request.custom_job.job_spec.base_output_directory.output_uri_prefix == output


def test_a_spec_may_come_as_json_text_and_under_either_key() -> None:
    assert made(json.dumps(FULL)).custom_job == made(FULL).custom_job
    moved = copy.deepcopy(FULL)
    moved["resource_args"]["gcp-vertex"] = moved["resource_args"].pop("vertex") | {"builder": {"type": "docker"}}
    moved["resource"] = "gcp-vertex"
    assert made(moved).custom_job == made(FULL).custom_job
    one = item(moved)
    assert parse(one).resource == "gcp-vertex"
    assert parse(one).builder == {"type": "docker"}


def test_an_image_beside_a_job_wins_and_the_job_is_told_to_the_run() -> None:
    values = env(run_spec(job="acme/Demo/j:v3", overrides={"artifacts": {"data": 1}}))
    assert json.loads(values["WANDB_ARTIFACTS"]) == {"_wandb_job": "acme/Demo/j:v3", "data": 1}


def test_a_sweeps_scheduler_is_a_job_of_its_own_kind() -> None:
    one = item(run_spec(uri=SCHEDULER_URI, overrides={"entry_point": ["wandb", "scheduler", "sw1"]}))
    assert parse(one).kind is Kind.SCHEDULER
    assert made(one.spec).custom_job.labels["vertex_launch_kind"] == "scheduler"
    assert parse(item(run_spec(uri="https://wandb.ai/x"))).kind is Kind.JOB


def test_labels_of_the_user_stand_beside_ours() -> None:
    many = {f"k{index}": "v" for index in range(56)}
    got = made(run_spec(spec={"labels": {**many}}, _wandb_api_key="k" * 40), attempt=3).custom_job.labels
    assert len(got) == 64
    assert got["vertex_launch_attempt"] == "3"
    assert made(run_spec(spec={"labels": {"équipe": "vision_2", "a": ""}})).custom_job.labels["équipe"] == "vision_2"


# What is wrong: every sentence. `at` is where in the run spec `value` is put; the place in the sentence is the same.

VERTEX = "resource_args.vertex"
POOL = f"{VERTEX}.spec.worker_pool_specs[0]"
WHOLE = "a whole number from"
STRATEGIES = "STRATEGY_UNSPECIFIED, ON_DEMAND, LOW_COST, STANDARD, SPOT, FLEX_START"
CONTEXT = "Write projects/P/locations/R/metadataStores/default/contexts/NAME, the name of the experiment's context"
PULLS = "It pulls from Artifact Registry (REGION-docker.pkg.dev) and from public registries only; push a copy there"
NOT_SET = "it still holds <REQUIRED>, the blank of W&B's queue template. Write a value there, or remove it"
LABEL = "1 to 63 lowercase letters, digits, _ and -"


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


@pytest.mark.parametrize(
    ("at", "value", "sentence"),
    [
        ("project", None, "it is missing. Name the W&B project that the run belongs to."),
        ("project", 7, "a number stands where text is expected. Write it in quotes."),
        ("name", ["x"], "a list stands where text is expected. Write text there."),
        ("name", "a\0b", "it holds a NUL character or half of a surrogate pair. Write it as plain Unicode text."),
        ("author", "\ud800", "it holds a NUL character or half of a surrogate pair. Write it as plain Unicode text."),
        ("_wandb_api_key", 5, "a number stands where text is expected. Write it in quotes."),
        ("_resume_count", -1, f"-1 is out of range. Write {WHOLE} 0 to 2147483648."),
        ("run_id", "a/b", "'a/b' is no run id that W&B's client accepts. Leave out the characters : ; , # ? / ' and spaces at the ends."),
        ("docker", "img", "text stands where a mapping is expected. Write a mapping there."),
        ("docker.docker_image", None, "the item names neither an image nor a job. Launch it with wandb launch -d IMAGE or -j JOB."),
        ("resource", "kubernetes", "'kubernetes' is not what this queue launches on. Push the item to a queue of that resource, or with resource gcp-vertex."),
        ("resource_args", {"kubernetes": {}}, "there is nothing under vertex or gcp-vertex (found: kubernetes). Put spec and run under resource_args.vertex, or into the queue's config."),
        ("resource_args", [], "a list stands where a mapping is expected. Write a mapping there."),
        ("overrides.args", "--lr 1", "text stands where a list is expected. Write a list there."),
        ("overrides.args", ["--lr", 1], "overrides.args[1]: a number stands where text is expected. Write it in quotes."),
        ("overrides.entry_point", "python t.py", "text stands where a list is expected. Write a list there."),
        ("overrides.run_config", [1], "a list stands where a mapping is expected. Write a mapping there."),
        (f"{VERTEX}.worker_pool_specs", [], f"this key is not known here. Put worker_pool_specs under {VERTEX}.spec."),
        (f"{VERTEX}.Spec", {}, "this key is not known here. Did you mean spec?"),
        (f"{VERTEX}.builder", 1, "a number stands where a mapping is expected. Write a mapping there."),
        (f"{VERTEX}.spec", "x", f"{VERTEX}.spec: text stands where a mapping is expected. Write a mapping there."),
        (f"{VERTEX}.spec.workerPoolSpecs", [], "this key is not known. Did you mean worker_pool_specs?"),
        (f"{VERTEX}.spec.scheduling", {}, "this key is not known. Use timeout, max_wait_duration, scheduling_strategy, disable_retries and restart_job_on_worker_restart."),
        (f"{VERTEX}.spec.base_output_directory", {}, "this key is not known. Use base_output_dir."),
        (f"{VERTEX}.run.strategy", "SPOT", "this key is not known. Use scheduling_strategy."),
        (f"{VERTEX}.run.serviceAccount", "a@b", "this key is not known. Did you mean service_account?"),
        (f"{VERTEX}.spec.credentials", {}, "a run spec cannot bring credentials; jobs are submitted by the function's own service account. Remove it, and name the account that the job is to run as in service_account."),
        (f"{VERTEX}.run.sync", "no", "text stands where true or false is expected. Write it without quotes."),
        (f"{VERTEX}.spec.project", "other", "this deployment runs jobs in project demo-project, not in 'other'. Remove it, or push the item to a queue of the other project."),
        (f"{VERTEX}.spec.location", "asia-east1", "this deployment has no region 'asia-east1'. Use us-central1 or europe-west4, or add the region to regions in vertex-launch.yaml."),
        (f"{VERTEX}.spec.staging_bucket", None, "it is missing, and the deployment has none for us-central1. Write gs://BUCKET there, or set staging_bucket of the region in vertex-launch.yaml."),
        (f"{VERTEX}.spec.staging_bucket", "s3://x", "'s3://x' is no place in Cloud Storage. Write gs://BUCKET or gs://BUCKET/PREFIX."),
        (f"{VERTEX}.spec.base_output_dir", "out", "'out' is no place in Cloud Storage. Write gs://BUCKET or gs://BUCKET/PREFIX."),
        (f"{VERTEX}.run.timeout", "3600", "text stands where a whole number of seconds is expected. Write it without quotes."),
        (f"{VERTEX}.run.timeout", 1.5, "a number stands where a whole number of seconds is expected. Write a whole number of seconds there."),
        (f"{VERTEX}.run.max_wait_duration", -1, "-1 is out of range. Write a whole number of seconds from 0 to 315576000000."),
        (f"{VERTEX}.run.create_request_timeout", 0, "0 is no time that a create may take. Write a number of seconds above 0."),
        (f"{VERTEX}.run.disable_retries", 1, "a number stands where true or false is expected. Write true or false there."),
        (f"{VERTEX}.run.scheduling_strategy", "spot", f"'spot' is not known. Did you mean SPOT? Allowed are {STRATEGIES}."),
        (f"{VERTEX}.run.scheduling_strategy", 5, f"5 is not known. Allowed are {STRATEGIES}."),
        (f"{VERTEX}.run.scheduling_strategy", "\ud800", f"'\\ud800' is not known. Allowed are {STRATEGIES}."),
        (f"{VERTEX}.run.scheduling_strategy", 2**70, f"{2**70} is not known. Allowed are {STRATEGIES}."),
        (f"{VERTEX}.run.scheduling_strategy", True, f"true or false stands where a name is expected. Allowed are {STRATEGIES}."),
        (f"{VERTEX}.run.experiment", "exp", f"'exp' is no resource name, and nothing here looks one up. {CONTEXT}."),
        (f"{VERTEX}.run.experiment_run", "projects/1/locations/l/metadataStores/d/contexts/c", "it means nothing without experiment. Name the experiment, too, or remove it."),
        (f"{VERTEX}.run.psc_interface_config", {"networkAttachment": "a"}, f"{VERTEX}.run.psc_interface_config.networkAttachment: this key is not known. Did you mean network_attachment?"),
        (f"{VERTEX}.spec.network", "<REQUIRED>", f"{NOT_SET}."),
        (f"{VERTEX}.spec.network", "{{ net }}", "the template variable {{ net }} was not filled in. Declare it among the queue's template variables, or write the value itself."),
        (f"{VERTEX}.spec.labels", {"vertex_launch": "x"}, f"{VERTEX}.spec.labels.vertex_launch: this label is how the job is found again and is set for you. Remove it."),
        (f"{VERTEX}.spec.labels", {"1a": "x"}, f"{VERTEX}.spec.labels.1a: this is no legal label key. A key begins with a letter and has {LABEL}."),
        (f"{VERTEX}.spec.labels", {"a": "Big"}, f"{VERTEX}.spec.labels.a: 'Big' is no legal label value. A value has {LABEL}, or is empty."),
        (f"{VERTEX}.spec.labels", {"a": 1}, f"{VERTEX}.spec.labels.a: a number stands where text is expected. Write it in quotes."),
        (f"{VERTEX}.spec.labels", {f"k{index}": "" for index in range(57)}, "there are 57 labels. Keep 56: Vertex AI takes 64, and the rest is needed for ours."),
        (f"{VERTEX}.spec.worker_pool_specs", [], "it is missing or empty. Describe at least one worker pool: machine_spec, replica_count and container_spec."),
        (f"{VERTEX}.spec.worker_pool_specs", {}, "a mapping stands where a list is expected. Write a list there."),
        (f"{VERTEX}.spec.worker_pool_specs", [{}], f"{POOL}: the first worker pool is empty. Describe the primary replica there; only a later pool may be skipped with {{}}."),
        (f"{VERTEX}.spec.worker_pool_specs", [7], f"{POOL}: a number stands where a mapping is expected. Write a mapping there."),
        (f"{VERTEX}.spec.worker_pool_specs", [{"replica_count": 1}], f"{POOL}: the pool has no container_spec or python_package_spec. Give exactly one of the two."),
        (f"{POOL}.python_package_spec", PACKAGE["python_package_spec"], f"{POOL}: the pool has both container_spec and python_package_spec. Give exactly one of the two."),
        (f"{POOL}.replica_count", "2", "text stands where a whole number is expected. Write it without quotes."),
        (f"{POOL}.replica_count", "{{n}}", "the template variable {{n}} was not filled in. Declare it among the queue's template variables, or write the value itself."),
        (f"{POOL}.replica_count", 2**63, f"9223372036854775808 is out of range. Write {WHOLE} -9223372036854775808 to 9223372036854775807."),
        (f"{POOL}.machine_spec.machineType", "n1", "this key is not known. Did you mean machine_type?"),
        (f"{POOL}.machine_spec.zone", "a", "this key is not known. Remove it; known here are accelerator_count, accelerator_type, gpu_partition_size, machine_type, reservation_affinity, tpu_topology."),
        (f"{POOL}.disk_spec", "<REQUIRED>", f"{NOT_SET}."),
        (f"{POOL}.nfs_mounts", [{"mountPoint": "/x"}], f"{POOL}.nfs_mounts[0].mountPoint: this key is not known. Did you mean mount_point?"),
        (f"{POOL}.container_spec", None, f"{POOL}: the pool has no container_spec or python_package_spec. Give exactly one of the two."),
        (f"{POOL}.container_spec.image_uri", "", "it is missing or empty. Write ${image_uri} there to run the item's image."),
        (f"{POOL}.container_spec.image_uri", "1234.dkr.ecr.us-east-1.amazonaws.com/a:1", f"Vertex AI cannot pull '1234.dkr.ecr.us-east-1.amazonaws.com/a:1'. {PULLS}."),
        (f"{POOL}.container_spec.image_uri", "https://acme.azurecr.io/a", f"Vertex AI cannot pull 'https://acme.azurecr.io/a'. {PULLS}."),
        (f"{POOL}.container_spec.command", "sh", "text stands where a list is expected. Write a list there."),
        (f"{POOL}.container_spec.args", [None], f"{POOL}.container_spec.args[0]: null stands where text is expected. Write text there."),
        (f"{POOL}.container_spec.env", {"A": "1"}, "a mapping stands where a list is expected. Write a list there."),
        (f"{POOL}.container_spec.env", [{"value": "1"}], f'{POOL}.container_spec.env[0]: the variable has no name. Write {{"name": …, "value": …}}.'),
        (f"{POOL}.container_spec.env", [{"name": "A", "value": 1}], f"{POOL}.container_spec.env[0].value: a number stands where text is expected. Write it in quotes."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_place_and_a_remedy(at: str, value: Any, sentence: str) -> None:
    said = rejected(put(MINIMAL, at, value))
    assert said in (sentence, f"{at}: {sentence}")


def test_an_unknown_accelerator_names_the_known_ones() -> None:
    said = rejected(put(MINIMAL, f"{POOL}.machine_spec.accelerator_type", "NVIDIA_TESLA_T5"))
    assert said.startswith(
        f"{POOL}.machine_spec.accelerator_type: 'NVIDIA_TESLA_T5' is not known. Did you mean NVIDIA_TESLA_T4? Allowed are "
        "ACCELERATOR_TYPE_UNSPECIFIED, NVIDIA_TESLA_K80, "
    )


def test_a_public_registry_of_amazon_can_be_pulled_from() -> None:
    assert container(run_spec(docker={"docker_image": "public.ecr.aws/x/y:1"})).image_uri == "public.ecr.aws/x/y:1"


def test_an_experiment_excludes_a_tensorboard() -> None:
    run = {"experiment": "projects/1/locations/l/metadataStores/d/contexts/c", "tensorboard": "t"}
    assert rejected(run_spec(run=run)) == (
        f"{VERTEX}.run.experiment: it excludes tensorboard, which is given, too. Keep one of the two."
    )


def test_an_argument_in_both_sections_must_say_the_same() -> None:
    spec = run_spec(spec={"service_account": "a@x", "timeout": 5}, run={"service_account": "b@x", "timeout": 5})
    assert rejected(spec) == (
        f"{VERTEX}.run.service_account: it differs from {VERTEX}.spec.service_account. Write it once, under either."
    )


@pytest.mark.parametrize("resource", ["local-process", "local-container"])
def test_a_scheduler_that_wants_to_be_local_is_told_how_to_run_here(resource: str) -> None:
    spec = run_spec(uri=SCHEDULER_URI, resource=resource, resource_args={})
    assert rejected(spec) == (
        f"resource: the sweep's scheduler asks to run as a {resource}, which a Vertex AI queue cannot give it. Set "
        "scheduler.resource to gcp-vertex, and its resource_args, in the sweep's launch config."
    )


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (
            "{",
            "The run spec is not JSON (Expecting property name enclosed in double quotes: line 1 column 2 (char 1)).",
        ),
        ("[1]", "The run spec is not a JSON object."),
        (None, "The run spec is not a JSON object."),
        (b"{}", "The run spec is not JSON (Object of type bytes is not JSON serializable)."),
    ],
)
def test_what_is_no_run_spec_at_all(spec: Any, sentence: str) -> None:
    assert rejected(spec) == f"{sentence} Push the item again with wandb launch."


def test_all_problems_of_an_item_are_reported_together() -> None:
    spec = run_spec(
        pool(image_uri=""),
        {"machine_spec": {"acceleratorType": "x"}, **PACKAGE},
        spec={"location": "${author}", "labels": {"A": "b"}},
        run={"timeout": "1"},
        overrides={"args": 3},
        project="",
    )
    said = rejected(spec).splitlines()
    assert said[0].startswith("The run spec has 6 problems:")
    assert [line.split(": ")[0] for line in said[1:]] == [
        "- project",
        "- overrides.args",
        f"- {POOL.replace('[0]', '[1]')}.machine_spec.acceleratorType",
        f"- {VERTEX}.spec.labels.A",
        f"- {VERTEX}.run.timeout",
        f"- {POOL}.container_spec.image_uri",
    ]


def test_what_only_a_macros_value_makes_wrong_is_found_too() -> None:
    spec = run_spec(
        {**pool(), "machine_spec": {"accelerator_type": "${author}"}},
        spec={"location": "${author}", "staging_bucket": "s3://${author}", "labels": {"who": "${author}"}},
        author="Alice",
    )
    parse(item(spec))
    assert rejected(spec).startswith("The run spec has 4 problems:")
    good = {**pool(), "machine_spec": {"accelerator_type": "${author}"}}
    machine = job_spec(run_spec(good, author="NVIDIA_L4")).worker_pool_specs[0].machine_spec
    assert machine.accelerator_type.name == "NVIDIA_L4"


def test_a_template_variable_in_the_programs_own_text_is_passed_on() -> None:
    assert warned(run_spec(pool(args=["--prompt", "{{name}}"]))) == (
        f"{POOL}.container_spec.args[1]: the template variable {{{{name}}}} was not filled in, and is passed on as it is.",
    )


# Hostile shapes.


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
round_about: dict[str, Any] = {}
round_about["again"] = round_about
hostile = st.one_of(
    json_values,
    st.sampled_from(
        [deep, round_about, float("nan"), float("inf"), 10**5000, 2**70, -(2**63), "\ud800", "\0", "${", "x" * 10**5]
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
        request = made(spec)
    except ItemRejected as error:
        assert KEY[::-1] not in str(error)
        str(error).encode()
    else:
        assert CustomJob.deserialize(CustomJob.serialize(request.custom_job)) == request.custom_job
        assert managed(request.custom_job, deployment="default", region="us-central1")


@given(json_values)
def test_anything_at_all_is_a_run_spec_or_rejected(spec: Any) -> None:
    with pytest.raises(ItemRejected):
        made(spec)
    assert custom_job.own_key(item(spec)) == (spec.get("_wandb_api_key", "") if isinstance(spec, dict) else "")


def test_no_key_is_shown() -> None:
    own = "f" * 40
    request = made(run_spec(_wandb_api_key=own))
    assert own not in repr(request)
    assert own not in repr(parse(item(run_spec(_wandb_api_key=own))))
    assert custom_job.own_key(item(json.dumps(run_spec(_wandb_api_key=own)))) == own
    assert own not in json.dumps(custom_job.shown(request))
    assert own not in rejected(run_spec(spec={"location": own}))


# Back from a CustomJob to its item.


def listed(spec: Any = FULL, change: Callable[[CustomJob], None] = lambda job: None, **more: Any) -> CustomJob:
    """Give the job as Vertex AI would list it."""
    job = CustomJob(made(spec, **more).custom_job)
    job.name = "projects/1/locations/us-central1/customJobs/7"
    job.state = JobState.JOB_STATE_RUNNING
    job.create_time = NOW
    change(job)
    return job


def test_a_job_says_which_item_it_serves() -> None:
    job = managed(listed(attempt=2), deployment="default", region="us-central1")
    assert job is not None
    assert job.name == "projects/1/locations/us-central1/customJobs/7"
    assert (job.region, job.item, job.queue, job.attempt) == ("us-central1", "SXRlbTox", "gpu", 2)
    assert (job.run, job.kind, job.created, job.error) == (
        RunId("acme", "demo", "abcd1234"),
        Kind.JOB,
        NOW.timestamp(),
        "",
    )
    package = managed(listed(run_spec(PACKAGE)), deployment="default", region="r")
    assert package is not None
    assert package.item == "SXRlbTox"


@given(dollars.filter(bool), dollars.filter(bool))
def test_identity_survives_escaping(id: str, queue: str) -> None:  # noqa: A002
    one = item(run_spec(uri=SCHEDULER_URI), id=id, queue=queue)
    request = build(one, parse(one), SETTINGS, entity=ENTITY, api_key=KEY, now=NOW)
    job = managed(request.custom_job, deployment="default", region="us-central1")
    assert job is not None
    assert (job.item, job.queue, job.run, job.kind) == (id, queue, request.run, Kind.SCHEDULER)
    assert (job.created, job.state) == (0, "JOB_STATE_UNSPECIFIED")


@pytest.mark.parametrize("state", JobState)
def test_every_state_of_a_job(state: JobState) -> None:
    job = managed(listed(change=lambda one: setattr(one, "state", state)), deployment="default", region="r")
    assert job is not None
    assert job.state == state.name
    assert job.ended == (state.value in (4, 5, 7, 9, 11))
    assert job.cancelling == (state.value == 6)


def test_a_state_that_this_version_does_not_know_has_not_ended() -> None:
    job = managed(listed(change=lambda one: setattr(CustomJob.pb(one), "state", 99)), deployment="default", region="r")
    assert job is not None
    assert (job.state, job.ended, job.cancelling) == ("JOB_STATE_99", False, False)


def test_an_error_is_passed_on_in_vertexs_words() -> None:
    def fail(job: CustomJob) -> None:
        CustomJob.pb(job).error.message = "The replica workerpool0-0 exited with a non-zero status of 1."

    job = managed(listed(change=fail), deployment="default", region="r")
    assert job is not None
    assert job.error == "The replica workerpool0-0 exited with a non-zero status of 1."


def without(name: str) -> Callable[[CustomJob], None]:
    def change(job: CustomJob) -> None:
        task = job.job_spec.worker_pool_specs[0].container_spec
        task.env = [one for one in task.env if one.name != name]

    return change


def label(key: str, value: str) -> Callable[[CustomJob], None]:
    return lambda job: job.labels.update({key: value})


def clear(job: CustomJob) -> None:
    del job.job_spec.worker_pool_specs[:]


@pytest.mark.parametrize(
    "change",
    [
        label("vertex_launch", "other"),
        lambda job: job.labels.clear(),
        label("vertex_launch_item", labels.item_value(SETTINGS.base_url, ENTITY, "SXRLBTOX")),
        without("WANDB_LAUNCH_TRACE_ID"),
        without("WANDB_LAUNCH_QUEUE_ENTITY"),
        without("WANDB_BASE_URL"),
        clear,
    ],
)
def test_a_job_whose_labels_and_environment_disagree_is_not_ours(change: Callable[[CustomJob], None]) -> None:
    assert managed(listed(change=change), deployment="default", region="us-central1") is None


def test_labels_that_somebody_has_broken_do_no_harm() -> None:
    def change(job: CustomJob) -> None:
        job.labels.update({"vertex_launch_attempt": "x", "vertex_launch_kind": "y"})

    job = managed(listed(change=change), deployment="default", region="r")
    assert job is not None
    assert (job.attempt, job.kind) == (1, Kind.JOB)


def test_a_deployments_name_is_compared_as_its_label() -> None:
    blue = SETTINGS.model_copy(update={"deployment": "Blue Team"})
    job = made(FULL, blue).custom_job
    assert managed(job, deployment="Blue Team", region="r")
    assert managed(job, deployment="blue team", region="r") is None


def test_of_very_many_problems_the_first_are_told() -> None:
    said = rejected(run_spec(overrides={"args": [{"odd": 1}] * 300}))
    assert said.startswith("The run spec has 300 problems:")
    assert said.endswith("- and 280 more")
    assert len(said.splitlines()) == 22
