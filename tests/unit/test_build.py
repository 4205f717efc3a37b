"""From run spec to CustomJob: command, environment, macros, names and places."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import CustomJob
from hypothesis import given
from hypothesis import strategies as st

from tests.support.specs import FULL, IMAGE, KEY, PACKAGE, SETTINGS, built, dollars, pool, run_spec
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job.arguments import escape, unescape
from vertex_launch.model import SCHEDULER_URI
from vertex_launch.settings.config import Settings

PLACE = "resource_args.vertex.spec.worker_pool_specs"
PYTHON = PACKAGE["python_package_spec"]


def job_spec(spec: Any, settings: Settings = SETTINGS) -> Any:
    return built(spec, settings).custom_job.job_spec


def container(spec: Any, index: int = 0) -> Any:
    return job_spec(spec).worker_pool_specs[index].container_spec


def env(spec: Any, index: int = 0) -> dict[str, str]:
    variables = container(spec, index).env
    values = {one.name: one.value for one in variables}
    assert len(values) == len(variables)
    return values


def rejected(spec: Any) -> ItemRejected:
    with pytest.raises(ItemRejected) as caught:
        built(spec)
    return caught.value


def warned(spec: Any) -> list[tuple[Code, str]]:
    """Return the code and the place of each warning."""
    return [(one.code, one.text.split(": ")[0]) for one in built(spec).warnings]


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
    """Resolves every name, so that no expansion goes unnoticed."""

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
def test_expansion_returns_escaped_text_and_no_other_text_is_touched(text: str) -> None:
    escaped = escape(text)
    assert expand(escaped, Everything()) == text
    assert unescape(escaped) == text
    assert (escaped == text) == ("$(" not in text and "$$" not in text)


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


# Command and arguments


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
    assert not CustomJob.pb(built(spec).custom_job).job_spec.worker_pool_specs[2].HasField("container_spec")


def test_a_python_package_takes_arguments_and_the_environment_but_no_entry_point() -> None:
    package = {"machine_spec": {"machine_type": "n1-standard-4"}, "python_package_spec": {**PYTHON, "args": ["-v"]}}
    task = job_spec(run_spec(package, overrides={"args": ["a"]})).worker_pool_specs[0].python_package_spec
    assert list(task.args) == ["-v", "a"]
    assert {"WANDB_RUN_ID", "WANDB_CONFIG"} <= {one.name for one in task.env}
    error = rejected(run_spec(package, overrides={"entry_point": ["py"]}))
    assert error.message.code is Code.SPEC_COMMAND
    assert error.message.text.startswith(f"{PLACE}[0].python_package_spec: ")


def test_overrides_that_reach_no_pool_are_wrong_and_an_image_that_no_pool_runs_is_odd() -> None:
    spec = run_spec(pool(image_uri="gcr.io/x/y"))
    assert warned(spec) == [(Code.SPEC_UNUSED_IMAGE, PLACE)]
    spec["overrides"] = {"args": ["--lr", "1"]}
    assert rejected(spec).message.code is Code.SPEC_UNUSED_IMAGE


# The environment


def test_the_official_variables_are_in_the_official_order() -> None:
    order = [
        "BASE_URL",
        "API_KEY",
        "PROJECT",
        "ENTITY",
        "LAUNCH",
        "RUN_ID",
        "DOCKER",
        "NAME",
        "USERNAME",
        "SWEEP_ID",
        "RESUME",
        "LAUNCH_QUEUE_NAME",
        "LAUNCH_QUEUE_ENTITY",
        "LAUNCH_TRACE_ID",
        "CONFIG",
        "LAUNCH_FILE_OVERRIDES",
        "ARTIFACTS",
    ]
    assert list(env({**FULL, "_resume_count": 1})) == ["NCCL_DEBUG", *(f"WANDB_{name}" for name in order)]


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
def test_a_run_resumes_if_its_container_may_start_again(
    run: dict[str, Any], top: dict[str, Any], *, resumes: bool
) -> None:
    assert env(run_spec(run=run, **top)).get("WANDB_RESUME") == ("allow" if resumes else None)


@pytest.mark.parametrize("name", ["WANDB_NAME", "WANDB_DOCKER", "WANDB_RESUME"])
def test_how_a_run_is_shown_and_resumed_is_the_users_choice(name: str) -> None:
    spec = run_spec(pool(env=[{"name": name, "value": "mine"}]))
    assert env(spec)[name] == "mine"
    assert warned(spec) == []


OURS = "BASE_URL API_KEY PROJECT ENTITY RUN_ID USERNAME SWEEP_ID LAUNCH LAUNCH_TRACE_ID CONFIG CONFIG_0 ARTIFACTS"


@pytest.mark.parametrize(
    "name", [*(f"WANDB_{name}" for name in OURS.split()), "WANDB_LAUNCH_FILE_OVERRIDES_7", "VERTEX_LAUNCH_PLAN"]
)
def test_which_run_it_is_cannot_be_overridden(name: str) -> None:
    spec = run_spec(pool(env=[{"name": name, "value": "mine"}, {"name": "WANDB_CONFIG_DIR", "value": "/c"}]))
    assert env(spec) == {"WANDB_CONFIG_DIR": "/c", **env(run_spec())}
    assert warned(spec) == [(Code.SPEC_ENV_IGNORED, f"{PLACE}[0].container_spec.env")]


def test_the_last_value_of_a_variable_that_is_set_twice_counts() -> None:
    spec = run_spec(pool(env=[{"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "2"}]))
    assert list(env(spec).items())[:2] == [("B", ""), ("A", "2")]
    assert warned(spec) == [(Code.SPEC_ENV_IGNORED, f"{PLACE}[0].container_spec.env")]


@pytest.mark.parametrize("unit", ["x", "é", "$", "$(", "a$$(HOME) "])
@pytest.mark.parametrize("size", [32_660, 32_670, 65_400])
def test_long_config_is_split_so_that_the_client_gets_it_back(unit: str, size: int) -> None:
    config = {"k": (unit * size)[:size]}
    values = env(run_spec(overrides={"run_config": config}))
    parts = {name: value for name, value in values.items() if name.startswith("WANDB_CONFIG")}
    assert max(map(len, parts.values())) <= 32_670
    assert list(parts) in (["WANDB_CONFIG"], [f"WANDB_CONFIG_{index}" for index in range(len(parts))])
    assert (len(parts) == 1) == (len(escape(json.dumps(config))) <= 32_670)
    assert json.loads("".join(expand(part, Everything()) for part in parts.values())) == config


def test_a_hundred_variables_are_accepted_and_one_more_is_not() -> None:
    official = len(env(run_spec()))
    names = [{"name": f"V{index}", "value": ""} for index in range(100 - official)]
    assert len(env(run_spec(pool(env=names)))) == 100
    error = rejected(run_spec(pool(env=names), overrides={"run_config": {"k": "x" * 40_000}}))
    assert error.message.code is Code.SPEC_ENV_LIMIT
    assert error.message.text.startswith(f"{PLACE}[0].container_spec.env: ")
    for number in (101, 100, 100 - official, official + 1):
        assert str(number) in str(error)


# Macros, names, places


def test_macros_are_replaced_in_values_but_not_twice() -> None:
    env_vars = [{"name": "M", "value": "${project_name}/${entity_name}/${run_id}/${run_name}/${author}/${HOME}/${x"}]
    spec = run_spec(pool(env=env_vars), run_id="r1", name="${author}")
    assert env(spec)["M"] == "demo/acme/r1/${author}/alice/${HOME}/${x"
    nameless = run_spec(pool(env=[{"name": "M", "value": "<${run_name}${author}>"}]), name=None, author=None)
    assert env(nameless)["M"] == "<>"


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
    assert built(spec).custom_job.display_name == name


STAMPED = "aiplatform-custom-job-2026-02-03-04:05:06.789"


@pytest.mark.parametrize(
    ("spec", "region", "output"),
    [
        ({}, "us-central1", f"gs://demo-staging/{STAMPED}"),
        ({"staging_bucket": "gs://b-1/a/"}, "us-central1", f"gs://b-1/a/{STAMPED}"),
        ({"staging_bucket": None, "location": "europe-west4"}, "europe-west4", f"gs://demo-europe/{STAMPED}"),
        ({"base_output_dir": "gs://out/${run_id}"}, "us-central1", "gs://out/r1"),
        ({"project": "demo-project", "sync": False}, "us-central1", f"gs://demo-staging/{STAMPED}"),
    ],
)
def test_where_a_job_runs_and_writes(spec: dict[str, Any], region: str, output: str) -> None:
    request = built(run_spec(spec=spec, run_id="r1"))
    assert request.region == region
    assert request.custom_job.job_spec.base_output_directory.output_uri_prefix == output


def test_the_run_learns_its_job_even_if_an_image_runs_instead() -> None:
    values = env(run_spec(job="acme/Demo/j:v3", overrides={"artifacts": {"data": 1}}))
    assert json.loads(values["WANDB_ARTIFACTS"]) == {"_wandb_job": "acme/Demo/j:v3", "data": 1}


def test_the_users_labels_are_kept_beside_those_that_identify_the_job() -> None:
    many = {f"k{index}": "v" for index in range(56)}
    got = built(run_spec(spec={"labels": {**many}}, _wandb_api_key="k" * 40)).custom_job.labels
    assert len(got) == 64
    assert got["vertex_launch_attempt"] == "1"
    assert built(run_spec(spec={"labels": {"équipe": "vision_2", "a": ""}})).custom_job.labels["équipe"] == "vision_2"
    assert (
        built(run_spec(uri=SCHEDULER_URI, overrides=SCHEDULER)).custom_job.labels["vertex_launch_kind"] == "scheduler"
    )


SCHEDULER = {"entry_point": ["wandb", "scheduler", "s1"]}


@given(st.sampled_from(["wandb", "other"]), st.sampled_from(["'a b'", '"a"', "''", "a'b'", "'a"]))
def test_only_a_scheduler_loses_the_quotes_that_were_for_a_shell(program: str, arg: str) -> None:
    spec = run_spec(run_id="s1", overrides={"entry_point": [program, "scheduler", "s1"], "args": [arg]})
    stripped = arg[1:-1] if arg in ("'a b'", '"a"', "''") else arg
    assert command_of(spec)[0][-1] == (stripped if program == "wandb" else arg)


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        ({"run_id": "of-KEY"}, "run_id"),
        ({"name": "KEY"}, "name"),
        ({"project": "KEY"}, "project"),
        ({"spec": {"display_name": "with KEY"}}, "resource_args.vertex.spec.display_name"),
        ({"run": {"labels": {"mine": "KEY"}}}, "resource_args.vertex.run.labels"),
    ],
)
@pytest.mark.parametrize("own", ["", "local-" + "0a" * 20])
def test_a_key_in_what_everyone_sees_is_refused(spec: dict[str, Any], place: str, own: str) -> None:
    asked = json.loads(json.dumps(spec).replace("KEY", own or KEY))
    asked |= {"_wandb_api_key": own} if own else {}
    with pytest.raises(ItemRejected) as error:
        built(run_spec(**asked))
    assert error.value.message.code is Code.SPEC_KEY
    assert str(error.value).startswith(f"{place}: ")


@pytest.mark.parametrize(
    ("overrides", "place"),
    [
        ({"run_config": {"KEY": 1}}, "run_config"),
        ({"run_config": {"a": [{"of-KEY": {}}]}}, "run_config"),
        ({"run_config": {"a": "KEY"}}, "run_config"),
        ({"files": {"a.json": {"KEY": "b"}}}, "files"),
        ({"artifacts": {"KEY": {}}}, "artifacts"),
        ({"args": ["--key=KEY"]}, "args"),
        ({"entry_point": ["python", "KEY"]}, "entry_point"),
    ],
)
@pytest.mark.parametrize("own", ["", "local-" + "0a" * 20, "wandb_v1_" + 'a/b"\\é' * 9])
def test_a_key_in_what_wandb_shows_of_a_run_is_warned_about(overrides: dict[str, Any], place: str, own: str) -> None:
    asked = json.loads(json.dumps(overrides).replace("KEY", json.dumps(own or KEY)[1:-1]))
    brought: dict[str, Any] = {"_wandb_api_key": own} if own else {}
    [warning] = built(run_spec(overrides=asked, **brought)).warnings
    assert warning.code is Code.SPEC_KEY
    assert warning.text.startswith(f"overrides.{place}: ")
    assert (own or KEY) not in warning.text
    assert built(run_spec(overrides={"run_config": {"lr": 1}, "args": ["--a"]})).warnings == ()
