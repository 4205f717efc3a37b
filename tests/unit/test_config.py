"""The settings: what is accepted, which source wins, and the place and code of each problem."""

from __future__ import annotations

import base64
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from wandb.sdk.lib.urls import DEFAULT_BASE_URL

from tests.support import reference
from tests.support.numbers import examples
from vertex_launch import addresses
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, Problem
from vertex_launch.settings import config
from vertex_launch.settings.config import AgentSettings, DeploymentSettings, Region, Settings
from vertex_launch.settings.sources import LAUNCH_FILE, VARIABLES, VERTEX_FILE

ROOT = Path(__file__).resolve().parents[2]
L, V, E = "launch-config.yaml", "vertex-launch.yaml", "the environment variable"
SECRET = "projects/p/secrets/s/versions/latest"
LAUNCH = "queues: [q]\n"
VERTEX: dict[str, str] = {
    "project": "my-project",
    "regions": "[{name: us-central1, staging_bucket: gs://one}]",
    "key_secret": SECRET,
    "state_bucket": "gs://state",
}
OLD_KEY, LOCAL_KEY, NEW_KEY = "0123456789abcdef" * 2 + "01234567", "local-" + "f0" * 20, "wandb_v1_" + "AbC9_" * 15
KEYS = (OLD_KEY, LOCAL_KEY, NEW_KEY)
FEW = settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def vertex(**changes: str | None) -> str:
    """Write a vertex-launch.yaml that is right but for the changes; None takes a line out."""
    lines = {**VERTEX, **changes}
    return "".join(f"{key}: {value}\n" for key, value in lines.items() if value is not None)


Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(launch: str | bytes | None = LAUNCH, own: str | bytes | None = None, **environ: str) -> Settings:
        own = vertex() if own is None else own
        for name, content in ((LAUNCH_FILE, launch), (VERTEX_FILE, own)):
            path = tmp_path / name
            if content is None or content == "":
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content.encode() if isinstance(content, str) else content)
        return config.load(environ, tmp_path)

    return load


def problems(load: Load, *args: Any, **environ: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(*args, **environ)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None, "pydantic's error repeats its input, keys included"
    return caught.value.problems


# What is accepted


def test_the_smallest_files(load: Load) -> None:
    loaded = load("max_jobs: 3\nqueues: [a, b]\n")
    assert (loaded.queues, loaded.job_limit, loaded.entity) == (("a", "b"), 3, None)
    assert loaded.regions == (Region(name="us-central1", staging_bucket="gs://one"),)
    assert (loaded.project, loaded.key_secret, loaded.state_bucket) == ("my-project", SECRET, "gs://state")
    assert (loaded.deployment, loaded.base_url, loaded.tick_topic) == ("default", DEFAULT_BASE_URL, None)
    assert (loaded.warnings, loaded.macro_values, loaded.lock_seconds) == ((), {}, 75)


def test_the_environment_wins_over_both_files(load: Load) -> None:
    own = vertex(base_url="https://file.example", start_timeout="5", tick_topic="projects/p/topics/file")
    launch = "queues: [q]\nentity: file\nmax_jobs: 2\n"
    from_files = load(launch, own)
    wins: dict[str, tuple[str, Any]] = {
        "VERTEX_LAUNCH_DEPLOYMENT": ("env", "env"),
        "WANDB_BASE_URL": ("http://127.0.0.1:9/", "http://127.0.0.1:9"),
        "WANDB_ENTITY": ("env", "env"),
        "WANDB_LAUNCH_MAX_JOBS": ("-1", -1),
        "WANDB_LAUNCH_START_TIMEOUT": ("1.5", 1.5),
        "WANDB_API_KEY_SECRET": ("projects/env/secrets/s/versions/3", "projects/env/secrets/s/versions/3"),
        "GOOGLE_CLOUD_PROJECT": ("p-1", "p-1"),
        "GOOGLE_CLOUD_REGION": (" us-east4 ,us-west1,", (Region(name="us-east4"), Region(name="us-west1"))),
        "JOBS_ACCOUNT": ("env@p.iam.gserviceaccount.com", "env@p.iam.gserviceaccount.com"),
        "STATE_BUCKET": ("gs://env/folder/", "gs://env/folder"),
        "DISPATCH_TOPIC": ("projects/env/topics/t", "projects/env/topics/t"),
        "AIPLATFORM_ENDPOINT": ("http://127.0.0.1:8080/", "http://127.0.0.1:8080"),
        "SECRETMANAGER_ENDPOINT": ("https://s.us-east4.rep.googleapis.com", "s.us-east4.rep.googleapis.com"),
        "LOGGING_ENDPOINT": ("localhost:3", "localhost:3"),
    }
    assert wins.keys() == VARIABLES.keys()
    for variable, (value, expected) in wins.items():
        changed = load(launch, own, **{variable: value})
        assert getattr(changed, VARIABLES[variable]) == expected != getattr(from_files, VARIABLES[variable])
        others = {VARIABLES[variable]}
        assert changed.model_dump(exclude=others) == from_files.model_dump(exclude=others), "it overrides nothing else"
        assert load(launch, own, **{variable: ""}) == from_files, "an empty variable counts as unset"
    alone = load(LAUNCH, "", **{variable: value for variable, (value, _) in wins.items()})
    assert alone.model_dump(include=set(VARIABLES.values())) == {
        VARIABLES[variable]: value if variable != "GOOGLE_CLOUD_REGION" else tuple(map(dict, value))
        for variable, (_, value) in wins.items()
    }


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"GOOGLE_CLOUD_REGION": "us-east4,us-west1"}, {"us-east4": "gs://two", "us-west1": None}),
        ({"STAGING_BUCKETS": " , gs://jobs/x"}, {"us-central1": None, "us-east4": "gs://jobs/x"}),
        (
            {"GOOGLE_CLOUD_REGION": "us-east4,us-west1", "STAGING_BUCKETS": "gs://jobs,"},
            {"us-east4": "gs://jobs", "us-west1": None},
        ),
    ],
)
def test_staging_buckets_of_the_environment_and_the_file(
    load: Load, environ: dict[str, str], expected: dict[str, str | None]
) -> None:
    own = vertex(regions="[{name: us-central1, staging_bucket: gs://one/}, {name: us-east4, staging_bucket: gs://two}]")
    loaded = load(LAUNCH, own, **environ)
    assert {region.name: region.staging_bucket for region in loaded.regions} == expected
    assert all(loaded.region(region.name) == region for region in loaded.regions)
    assert loaded.region("asia-east1") is None


@pytest.mark.parametrize(
    ("regions", "environ", "expected"),
    [
        (None, {}, ["europe-west1"]),
        ("", {}, ["europe-west1"]),
        ("[{name: us-east4}]", {}, ["us-east4"]),
        ("[{name: us-east4}]", {"GOOGLE_CLOUD_REGION": "asia-east1"}, ["asia-east1"]),
        (None, {"GOOGLE_CLOUD_REGION": "asia-east1"}, ["asia-east1"]),
    ],
)
def test_the_official_region_counts_where_nothing_else_names_one(
    load: Load, regions: str | None, environ: dict[str, str], expected: list[str]
) -> None:
    launch = "queues: [q]\nenvironment: {type: gcp, region: europe-west1}\n"
    loaded = load(launch, vertex(regions=regions), **environ)
    assert [region.name for region in loaded.regions] == expected


def test_paths_of_both_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("queues: [other]\nentity: me")
    (tmp_path / "b.yaml").write_text(vertex(deployment="other"))
    absolute = str(tmp_path / "b.yaml")
    loaded = config.load({"LAUNCH_CONFIG": "a.yaml", "VERTEX_LAUNCH_CONFIG": absolute}, tmp_path)
    assert (loaded.queues, loaded.deployment) == (("other",), "other")
    assert (loaded.where("entity"), loaded.where("lease")) == ("entity in a.yaml", f"lease in {absolute}")


def test_keys_without_a_value_count_as_absent(load: Load) -> None:
    nothing = "".join(f"{name}:\n" for name in AgentSettings.model_fields if name != "queues")
    own = vertex() + "".join(f"{name}:\n" for name in DeploymentSettings.model_fields if name not in VERTEX)
    assert load(LAUNCH + nothing, own) == load()


def test_a_later_definition_over_a_merged_one_is_not_a_duplicate(load: Load) -> None:
    own = vertex(timeouts="{<<: &base {read: 5}, read: 6}", batches=None)
    assert load(LAUNCH, own).timeouts.read == 6


def test_macros_take_their_values_from_the_environment(load: Load) -> None:
    own = vertex(policy="{environment_macros: [TEAM_BUCKET]}")
    loaded = load(LAUNCH, own, TEAM_BUCKET="gs://team", OTHER="x")
    assert loaded.macro_values == {"TEAM_BUCKET": "gs://team"}
    assert "gs://team" not in repr(loaded)


def test_an_empty_list_of_the_policy_is_not_an_absent_one(load: Load) -> None:
    policy = load(LAUNCH, vertex(policy="{images: [], accelerators: {}, max_replicas: 2}")).policy
    assert (policy.images, policy.accelerators, policy.max_replicas) == ((), {}, 2)
    assert (policy.networks, policy.environment_macros) == (None, ())


def test_limits(load: Load) -> None:
    loaded = load("queues: [q]\nmax_jobs: 0\nmax_schedulers: -1\n")
    assert (loaded.job_limit, loaded.scheduler_limit) == (0, math.inf)
    assert load("queues: [q]\nmax_jobs: '4'\nmax_schedulers: 2.0\n").job_limit == 4


@pytest.mark.parametrize(
    ("regions", "state", "environ", "place"),
    [
        ("[{name: us-east4, staging_bucket: gs://one}]", "gs://one", {}, f"regions[0].staging_bucket in {V}"),
        ("[{name: us-east4, staging_bucket: gs://one/jobs}]", "gs://one/record/", {}, f"regions[0].staging_bucket in {V}"),
        ("[{name: us-east4}, {name: us-west1, staging_bucket: gs://two}]", "gs://two/x", {}, f"regions[1].staging_bucket in {V}"),
        (VERTEX["regions"], "gs://state", {"STATE_BUCKET": "gs://one/r"}, f"regions[0].staging_bucket in {V}"),
        (VERTEX["regions"], "gs://state", {"STAGING_BUCKETS": "gs://state/jobs"}, f"{E} STAGING_BUCKETS, entry 1"),
    ],
)  # fmt: skip
def test_no_region_writes_to_the_bucket_of_the_record(
    load: Load, regions: str, state: str, environ: dict[str, str], place: str
) -> None:
    [found] = problems(load, LAUNCH, vertex(regions=regions, state_bucket=state), **environ)
    assert (found.place, found.code) == (place, Code.CONFIG_CONFLICT)
    loaded = load(LAUNCH, vertex(regions=regions, state_bucket=state), STATE_BUCKET="gs://ones/one", STAGING_BUCKETS="")
    assert loaded.state_bucket == "gs://ones/one"


# What is odd


@pytest.mark.parametrize(
    ("launch", "environ", "code", "place", "mentions"),
    [
        ("environment: {type: gcp, zone: a}", {}, Code.CONFIG_IGNORED, "environment.zone in launch-config", "region"),
        ("environment: {regoin: a}", {}, Code.CONFIG_IGNORED, "environment.regoin in launch-config.yaml", "region"),
        ("max_jobs: 0", {}, Code.CONFIG_NO_JOBS, "max_jobs in launch-config.yaml", ""),
        ("", {"WANDB_LAUNCH_MAX_JOBS": "0"}, Code.CONFIG_NO_JOBS, "variable WANDB_LAUNCH_MAX_JOBS", ""),
        ("", {"WANDB_API_KEY": "hunter2"}, Code.CONFIG_IGNORED, "variable WANDB_API_KEY", "key_secret"),
        ("", {"WANDB_BASE_URL": "http://w.example:80"}, Code.CONFIG_PLAIN_HTTP, "variable WANDB_BASE_URL", "w.example"),
        ("", {"AIPLATFORM_ENDPOINT": "http://10.0.0.1:80"}, Code.CONFIG_PLAIN_HTTP, "AIPLATFORM_ENDPOINT", "10.0.0.1"),
        ("", {"CLOUD_RUN_TIMEOUT_SECONDS": "60"}, Code.CONFIG_TIMEOUT, "CLOUD_RUN_TIMEOUT_SECONDS", "--timeout=75s"),
    ],
)
def test_warnings(load: Load, launch: str, environ: dict[str, str], code: Code, place: str, mentions: str) -> None:
    (warning,) = load(f"{LAUNCH}{launch}\n", **environ).warnings
    assert warning.code is code
    assert place in warning.text.partition(": ")[0]
    assert mentions in warning.text
    assert "hunter2" not in warning.text


@pytest.mark.parametrize(
    ("launch", "environ"),
    [
        ("environment: {type: gcp, region: us-central1}", {}),
        ("registry: {type: ecr, account_id: 1, image-name: i}", {}),
        ("builder: {type: kaniko, build-context-store: 'gs://b', kaniko-config: {}}", {}),
        ("", {"WANDB_BASE_URL": "http://localhost:8080"}),
        ("", {"WANDB_BASE_URL": "http://[::1]:8080"}),
        ("", {"SECRETMANAGER_ENDPOINT": "http://127.0.0.1:80"}),
        ("", {"CLOUD_RUN_TIMEOUT_SECONDS": "75"}),
        ("", {"CLOUD_RUN_TIMEOUT_SECONDS": "0"}),
        ("", {"CLOUD_RUN_TIMEOUT_SECONDS": "soon"}),
    ],
)
def test_no_warnings(load: Load, launch: str, environ: dict[str, str]) -> None:
    assert load(f"{LAUNCH}{launch}\n", **environ).warnings == ()


# What is wrong

BAD, MISSING, UNKNOWN, MACRO = Code.CONFIG_VALUE, Code.CONFIG_MISSING, Code.CONFIG_UNKNOWN, Code.CONFIG_MACRO
YAML, KEY, CONFLICT, PLACEHOLDER = Code.CONFIG_YAML, Code.CONFIG_API_KEY, Code.CONFIG_CONFLICT, Code.CONFIG_PLACEHOLDER

# The whole of launch-config.yaml, and where in it the problem is
BROKEN: list[tuple[str | bytes, str]] = [
    ("queues: [q\n", ", line 2, column 1"),
    ("queues: [q]\n\tmax_jobs: 5", ", line 2, column 1"),
    ("queues: [q]\nmax_jobs: 1: 2", ", line 2, column 12"),
    ("queues: !!python/object:os.x []", ", line 1, column 9"),
    ("queues: [q]\nentity: 2024-13-45", ", line 2, column 9"),
    ("queues: [q]\nmax_jobs: !!bool maybe", ", line 2, column 11"),
    ("queues: [q]\n? [a]\n: 1", ", line 2, column 3"),
    ("queues: [*a]", ", line 1, column 10"),
    ("queues: [q]\n---\na: 1", ", line 2, column 1"),
    *((text, "") for text in ("- q", "just words")),
    ("[" * 700, ", line 1, column 51"),
    (b"queues: [\xff]", ", line 1"),
]

# By code and place, the values of a setting in launch-config.yaml
IN_LAUNCH: dict[Code, dict[str, list[str]]] = {
    YAML: {"queues": ["[q]\nqueues: [r]", "[q]\n'queues': [r]"]},
    MISSING: {"queues": ["", "[]", "# nothing"]},
    BAD: {
        "queues": ["gpu", "[a, a, b]"],
        "queues[0]": ["[7]", "[2024-01-01]", "[' b']"],
        "entity": ["0x" + "1" * 5000, "''"],
        "max_jobs": ["five", "2.5", "yes", ".inf", "-2", "[5]", "{}"],
        "secure_mode": ["'no'", "3"],
        "stopped_run_timeout": ["-1", "soon"],
        "verbosity": ["-1"],
        "environment": ["gcp"],
        "environment.type": ["{type: aws}"],
        "environment.region": ["{region: 3}"],
        "registry": ["gcr"],
        "registry[1]": ["{1: 2}"],
    },
    UNKNOWN: {"max_job": ["5"], "Verbosity": ["1"], "project": ["p"]},
    KEY: {"entity": [OLD_KEY], "wandb_api_key": ["hunter2"], "builder.api-key": ["{api-key: hunter2}"]},
    PLACEHOLDER: {"entity": ["YOUR-TEAM"], "queues[0]": ["[YOUR-QUEUE]"]},
}
IN_VERTEX: dict[Code, dict[str, list[str]]] = {
    YAML: {"timeouts.read": ["\n  read: 5\n  read: 6"]},
    MISSING: {"regions": ["[]"], "regions[1].name": ["[{name: us-east4}, {}]"]},
    BAD: {
        "deployment": ["Team_A", "z" * 41, "12"],
        "project": ["My Project"],
        "regions": ["us-central1", "{us-central1: gs://a}", "[{name: us-east4}, {name: us-east4}]"],
        "regions[0]": ["[us-central1]"],
        "regions[0].name": ["[{name: us-east4-a}]", "[{name: Iowa}]"],
        "regions[0].staging_bucket": ["[{name: us-east4, staging_bucket: b}]"],
        "base_url": [
            *["wandb.ai", "https://[", "api:hunter2@c", "https://a:b@c", "https://w.example/graphql/"],
            "'https://a b'",
        ],
        "key_secret": ["wandb-key", "projects/p/secrets/s"],
        "key_ttl": ["-1"],
        "user_agent": ["''", "' a'", '"a\\nb"', "é", "a b " * 60 + "c"],
        "state_bucket": ["state", "gs://State"],
        "tick_topic": ["ticks"],
        "sweeps": ["5"],
        "sweeps.scheduler.machine_type": ["{scheduler: {machine_type: 4}}", "{scheduler: {machine_type: ''}}"],
        "sweeps.scheduler.service_account": ["{scheduler: {service_account: me}}"],
        "timeouts": ["5"],
        "timeouts.read": ["{read: 0}", "{read: }", "{read: 1 min}", "{read: true}"],
        "batches.pops": ["{pops: 0}"],
        "submissions_per_minute": ["many"],
        "parallel_creates": ["0"],
        "give_up_after": ["0"],
        "start_timeout": [".nan"],
        "git_token_secrets.https://github.com": [f"{{'https://github.com': {SECRET}}}"],
        "git_token_secrets.github.com/acme": [f"{{github.com/acme: {SECRET}}}"],
        "git_token_secrets.gitlab.corp:port": [f"{{'gitlab.corp:port': {SECRET}}}"],
        "git_hosts.git.corp.url": [
            "{git.corp: {url: git.corp}}",
            "{git.corp: {url: 'https://ann:x@git.corp'}}",
        ],
        "git_hosts.git.corp.archive": ["{git.corp: {url: 'https://git.corp', archive: 'https://git.corp/{path}'}}"],
        "git_token_secrets.*.corp": [f"{{'*.corp': {SECRET}}}"],
        "policy.images": ["{images: }", "{images: '*'}"],
        "policy.images[0]": ["{images: ['']}"],
        "policy.max_replicas": ["{max_replicas: }"],
        "policy.accelerators": ["{accelerators: [T4]}"],
        "policy.accelerators.T4": ["{accelerators: {T4: x}}", "{accelerators: {T4: -1}}"],
        "policy.accelerators[4]": ["{accelerators: {4: 1}}"],
        "policy.environment_macros": ["{environment_macros: }"],
        "policy.environment_macros[0]": ["{environment_macros: [a b]}"],
    },
    UNKNOWN: {
        "max_jobs": ["5"],
        "timeouts.raed": ["{raed: 5}"],
        "regions[0].bucket": ["[{name: us-east4, bucket: b}]"],
    },
    KEY: {"key_secret": [NEW_KEY], "policy.images[0]": [f"{{images: ['{LOCAL_KEY}']}}"]},
    PLACEHOLDER: {
        "project": ["YOUR-PROJECT"],
        "regions[0].staging_bucket": ["[{name: us-east4, staging_bucket: gs://YOUR-BUCKET}]"],
        "key_secret": ["projects/YOUR-PROJECT/secrets/s/versions/1"],
    },
    CONFLICT: {"timeouts.intent_grace": ["{intent_grace: 30}"], "lease": ["30"]},
    MACRO: {
        "policy.environment_macros[0]": [
            f"{{environment_macros: [{name}]}}"
            for name in ("A", "KEY", "my_key", "HF_TOKEN", "TOKENS", "A_SECRET_B", "PGPASSWORD", "GOOGLE_CREDENTIALS")
        ]
    },
}
IN_ENVIRONMENT: dict[Code, dict[str, list[str]]] = {
    MISSING: {"GOOGLE_CLOUD_REGION": [" , "]},
    BAD: {
        "WANDB_API_KEY_SECRET": [OLD_KEY],
        "WANDB_ENTITY": [" me"],
        "WANDB_LAUNCH_MAX_JOBS": ["five"],
        "WANDB_LAUNCH_START_TIMEOUT": ["-5", "nan"],
        "WANDB_BASE_URL": ["api.wandb.ai"],
        "GOOGLE_CLOUD_PROJECT": ["a b"],
        "GOOGLE_CLOUD_REGION": ["us-east4,us-east4"],
        "GOOGLE_CLOUD_REGION, entry 2": ["us-east4,moon"],
        "STAGING_BUCKETS, entry 1": ["staging"],
        "JOBS_ACCOUNT": ["jobs", "serviceAccount:a@p.iam.gserviceaccount.com", "a@example.com"],
        "STATE_BUCKET": ["bucket"],
        "DISPATCH_TOPIC": ["ticks"],
        "AIPLATFORM_ENDPOINT": ["ftp://x"],
        "SECRETMANAGER_ENDPOINT": ["a/b"],
    },
    CONFLICT: {"STAGING_BUCKETS": ["gs://a,gs://b"]},
    KEY: {"WANDB_ENTITY": [NEW_KEY]},
    PLACEHOLDER: {"WANDB_ENTITY": ["YOUR-TEAM"]},
}


def cases(table: dict[Code, dict[str, list[str]]]) -> Iterator[tuple[str, str, str, Code]]:
    """Return name, value, place and code of each case."""
    for code, places in table.items():
        for place, values in places.items():
            yield from ((re.split(r"[.\[,]", place)[0], value, place, code) for value in values)


Case = tuple[str | bytes | None, str | None, dict[str, str], str, Code]
WRONG: list[Case] = [
    *((text, None, {}, f"{L}{place}", YAML) for text, place in BROKEN),
    *(
        (f"{name}: {value}" if name == "queues" else f"{LAUNCH}{name}: {value}", None, {}, f"{place} in {L}", code)
        for name, value, place, code in cases(IN_LAUNCH)
    ),
    *((LAUNCH, vertex(**{name: value}), {}, f"{place} in {V}", code) for name, value, place, code in cases(IN_VERTEX)),
    *((LAUNCH, None, {name: value}, f"{E} {place}", code) for name, value, place, code in cases(IN_ENVIRONMENT)),
    *(
        (LAUNCH, vertex(**{setting: None}), {}, f"{setting} in {V} or {E} {variable}", MISSING)
        for variable, setting in VARIABLES.items()
        if setting in VERTEX
    ),
    (None, None, {}, L, Code.CONFIG_FILE),
    (LAUNCH, None, {"LAUNCH_CONFIG": "/"}, "/", Code.CONFIG_FILE),
    (LAUNCH, "", {"VERTEX_LAUNCH_CONFIG": "other.yaml"}, "other.yaml", Code.CONFIG_FILE),
    (f"{LAUNCH}5: 5", None, {}, f"[5] in {L}", UNKNOWN),
    (LAUNCH, vertex(timeouts="{create: 50}"), {}, f"lease in {V}", CONFLICT),
    (LAUNCH, vertex(policy="{environment_macros: [HARMLESS]}"), {"HARMLESS": NEW_KEY}, f"policy.environment_macros[0] in {V}", MACRO),
    (LAUNCH, vertex(regions="[{name: us-east4}, {name: us-west1, staging_bucket: b}]"), {"GOOGLE_CLOUD_REGION": "us-west1"}, f"regions[1].staging_bucket in {V}", BAD),
    (f"{LAUNCH}environment: {{region: us-east4-b}}", vertex(regions=None), {}, f"environment.region in {L}", BAD),
]  # fmt: skip


@pytest.mark.parametrize(("launch", "own", "environ", "place", "code"), WRONG)
def test_each_problem_has_its_place_and_code(
    load: Load, launch: str | bytes | None, own: str | None, environ: dict[str, str], place: str, code: Code
) -> None:
    (problem,) = problems(load, launch, own, **environ)
    assert (problem.place, problem.code) == (place, code)
    assert not any(key in str(problem) for key in (*KEYS, "hunter2"))


@pytest.mark.parametrize(
    ("setting", "value", "inside", "remedy"),
    [
        ("api_key_secret", SECRET, "", "key_secret?"),
        ("Key_TTL", "5", "", "key_ttl?"),
        ("colour", "red", "", "api_key_delivery, base_image, base_url"),
        ("max_jobs", "5", "", L),
        ("timeouts", "{raed: 5}", ".raed", "read?"),
        ("regions", "[{name: us-east4, bucket: b}]", "[0].bucket", "staging_bucket?"),
        ("policy", "{image: [a]}", ".image", "images?"),
        ("regions", "[{name: us-east4-a}]", "[0].name", "us-east4;"),
        ("regions", "[]", "", "[{name: us-central1,"),
        ("base_url", "https://w.example/graphql/", "", "https://w.example"),
        ("base_url", "https://wandb.ai", "", DEFAULT_BASE_URL),
        ("base_url", "https://forge.coreweave.com/wandb", "", "https://api.forge.coreweave.com"),
        ("base_url", "http://api.forge.coreweave.com", "", "https://api.forge.coreweave.com"),
        ("key_secret", "projects/p/secrets/s", "", "projects/p/secrets/s/versions/latest"),
        ("project", "YOUR-PROJECT", "", "GOOGLE_CLOUD_PROJECT"),
        ("regions", "[{name: us-east4, staging_bucket: gs://YOUR-BUCKET}]", "[0].staging_bucket", "STAGING_BUCKETS"),
    ],
)
def test_a_remedy_has_what_to_write(load: Load, setting: str, value: str, inside: str, remedy: str) -> None:
    (problem,) = problems(load, LAUNCH, vertex(**{setting: value}))
    assert problem.place == f"{setting}{inside} in {V}"
    assert remedy in problem.remedy


def test_what_the_environment_overrides_is_still_checked(load: Load) -> None:
    own = vertex(project="My Project", regions="{us-central1: gs://a}")
    environ = {"GOOGLE_CLOUD_PROJECT": "p-1", "GOOGLE_CLOUD_REGION": "us-central1", "WANDB_LAUNCH_MAX_JOBS": "1"}
    found = problems(load, "queues: [q]\nmax_jobs: five", own, **environ)
    assert [problem.place for problem in found] == [f"max_jobs in {L}", f"project in {V}", f"regions in {V}"]


def test_a_variable_counts_instead_of_a_placeholder(load: Load) -> None:
    own = vertex(project="YOUR-PROJECT", regions="[{name: YOUR-REGION, staging_bucket: gs://YOUR-BUCKET}]")
    environ = {"GOOGLE_CLOUD_PROJECT": "p-1", "GOOGLE_CLOUD_REGION": "us-east4", "WANDB_ENTITY": "me"}
    loaded = load("queues: [q]\nentity: YOUR-TEAM", own, **environ)
    assert (loaded.project, loaded.regions, loaded.entity) == ("p-1", (Region(name="us-east4"),), "me")


def test_every_problem_is_reported_at_once(load: Load) -> None:
    found = problems(
        load,
        "queue: a\nmax_jobs: five\nentity: YOUR-TEAM\nenvironment: {type: aws}\n",
        "lease: 10\ndeployment: A\npolicy: {environment_macros: [NO_SUCH]}\nregions: [{name: x}, {name: us-east4, b: 1}]\n",
        STATE_BUCKET="b",
        AIPLATFORM_ENDPOINT="a b",
    )
    assert sorted(problem.place for problem in found) == sorted(
        [
            *(f"{setting} in {L}" for setting in ("queue", "queues", "max_jobs", "entity", "environment.type")),
            *(f"{setting} in {V}" for setting in ("lease", "deployment", "policy.environment_macros[0]")),
            *(f"{setting} in {V}" for setting in ("regions[0].name", "regions[1].b")),
            f"project in {V} or {E} GOOGLE_CLOUD_PROJECT",
            f"key_secret in {V} or {E} WANDB_API_KEY_SECRET",
            f"{E} STATE_BUCKET",
            f"{E} AIPLATFORM_ENDPOINT",
        ]
    )


def test_a_broken_file_does_not_make_its_settings_missing(load: Load) -> None:
    found = problems(load, "queues: [", "project: [", GOOGLE_CLOUD_REGION="")
    assert [problem.place.split(",")[0] for problem in found] == [L, V]


def test_both_a_value_and_the_text_of_a_file_are_checked(load: Load) -> None:
    found = problems(load, f"queues: [a]\nqueues: 5\nentity: '{OLD_KEY}'\nmax_jobs: five", vertex())
    assert sorted(problem.place for problem in found) == [f"{name} in {L}" for name in ("entity", "max_jobs", "queues")]


# Where a value comes from


def test_where_names_the_source_of_a_value(load: Load) -> None:
    own = vertex(regions="[{name: us-central1}, {name: us-east4, staging_bucket: gs://two}]")
    loaded = load(LAUNCH, own, GOOGLE_CLOUD_PROJECT="p-1")
    assert loaded.where("regions") == f"regions in {V}"
    assert loaded.where("policy", "images") == f"policy.images in {V}"
    assert loaded.where("queues") == f"queues in {L}"
    assert loaded.where("max_schedulers") == f"max_schedulers in {L}"
    assert loaded.where("project") == f"{E} GOOGLE_CLOUD_PROJECT"
    assert loaded.where("entity") == f"entity in {L} or {E} WANDB_ENTITY"
    assert loaded.where("logging_endpoint") == f"{E} LOGGING_ENDPOINT"
    assert loaded.where("regions", 0, "staging_bucket") == f"regions[0].staging_bucket in {V}"
    chosen = load(LAUNCH, own, GOOGLE_CLOUD_REGION="us-east4,us-west1")
    assert chosen.where("regions") == f"{E} GOOGLE_CLOUD_REGION"
    assert chosen.where("regions", 0, "staging_bucket") == f"regions[1].staging_bucket in {V}"
    assert chosen.where("regions", 1, "staging_bucket") == f"{E} STAGING_BUCKETS"
    staged = load(LAUNCH, own, STAGING_BUCKETS="gs://one,")
    assert staged.where("regions", 1, "staging_bucket") == f"{E} STAGING_BUCKETS, entry 2"


# Whatever comes

texts = st.one_of(st.text(max_size=8), st.sampled_from([*KEYS, *(f"x {key} y" for key in KEYS), f"gs://{OLD_KEY}"]))
names = st.one_of(
    st.sampled_from([*Settings.model_fields, "read", "images", "name", "type", "environment_macros"]), texts
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.dates(), texts)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.one_of(names, st.integers()), inner, max_size=4),
    max_leaves=12,
)
mappings = st.dictionaries(st.one_of(names, scalars.filter(lambda value: value == value)), values, max_size=6)
printable = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
environments = st.dictionaries(
    st.sampled_from([*VARIABLES, "WANDB_API_KEY", "HOME", "CLOUD_RUN_TIMEOUT_SECONDS", "LAUNCH_CONFIG"]),
    st.one_of(printable, st.sampled_from([*KEYS, *(f"x{key}" for key in KEYS), f"https://u:{OLD_KEY}@host"])),
)


def check_any(load: Load, launch: str | bytes, own: str | bytes, environ: Mapping[str, str]) -> None:
    error = None
    said = ""
    try:
        said = "\n".join(map(str, load(launch, own, **environ).warnings))
    except ConfigError as caught:
        error = caught
    if error:
        said = str(error)
        assert error.problems
        assert error.__context__ is None
        assert all(problem.place and problem.found and problem.remedy for problem in error.problems)
        assert len({problem.place for problem in error.problems}) == len(error.problems)
        assert not re.search(r"Input should|validation error|type=|pydantic|what belongs here", said)
    assert not any(key in said or key[:20] in said for key in KEYS)


@given(launch=mappings, own=mappings, environ=environments)
@FEW
def test_no_mapping_raises_anything_else_or_shows_a_key(
    load: Load, launch: dict[Any, Any], own: dict[Any, Any], environ: dict[str, str]
) -> None:
    check_any(load, yaml.safe_dump(launch), yaml.safe_dump({**yaml.safe_load(vertex()), **own}), environ)


@given(text=st.one_of(st.binary(max_size=60), st.text("ab:-[]{}&*!<> '\"\n\t#|?0123", max_size=60)))
@example(text="queues: &q [*q]\nentity: &e {a: *e}")
@example(text="a: &a [1]\nb: &b [*a, *a]\nc: &c [*b, *b]\nqueues: [*c, *c]")
@example(text="<<: [a]")
@example(text="queues: [a]\nentity: !!binary " + base64.b64encode(NEW_KEY.encode()).decode())
@example(text="max_jobs: " + "9" * 5000)
@example(text="entity: 0x" + "f" * 5000 + "\nlease: 0x" + "f" * 5000 + "\nproject: 1e999\nmax_jobs: 0x" + "f" * 99)
@example(text="max_jobs: 0x\nlease: !!float x\nentity: !!timestamp x\nqueues: !!binary x")
@FEW
def test_no_text_raises_anything_else(load: Load, text: str | bytes) -> None:
    check_any(load, text, text, {})


# The official agent


@pytest.fixture(scope="module")
def official() -> Any:
    """Give the official agent's own reading of a file: the settings it would run with, or None where it refuses."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package's own deprecations
        from wandb.sdk.launch import _launch, api
        from wandb.sdk.launch.agent import agent
        from wandb.sdk.launch.agent import config as agent_config
        from wandb.sdk.launch.errors import LaunchError

    patch = pytest.MonkeyPatch()
    patch.setattr(api, "LaunchApi", lambda overrides: SimpleNamespace(default_entity="the-keys-own"))

    def read(path: Path) -> dict[str, Any] | None:
        try:
            resolved, _ = _launch.resolve_agent_config(None, None, None, str(path), 0)
            checked = agent_config.AgentConfig(**resolved)
            limits = [agent._max_from_config(resolved, name) for name in ("max_jobs", "max_schedulers")]
        except (LaunchError, agent_config.ValidationError, TypeError, AttributeError):
            return None
        return {**checked.model_dump(), "limits": limits} if resolved["queues"] else None

    yield read
    patch.undo()


plain = st.text("abcdefghijklmnopqrstuvwxyz-_ 0123456789", min_size=1, max_size=12).map(str.strip).filter(bool)
counts = st.one_of(st.none(), st.integers(-1, 50), st.integers(-1, 50).map(str), st.integers(0, 50).map(float))
official_configs = st.fixed_dictionaries(
    {"queues": st.lists(plain, min_size=1, max_size=3, unique=True)},
    optional={
        "entity": st.none() | plain,
        "max_jobs": counts,
        "max_schedulers": counts,
        "secure_mode": st.sampled_from([None, True, False, 0, 1]),
        "verbosity": st.sampled_from([0, 1, 2, "2", 1.0]),
        "stopped_run_timeout": st.integers(0, 600) | st.integers(0, 600).map(str),
        "environment": st.fixed_dictionaries(
            {"type": st.none() | st.just("gcp"), "region": st.none() | st.just("us-east4")}
        ),
        "registry": st.fixed_dictionaries(
            {"type": st.sampled_from([None, "gcr", "ecr"]), "uri": st.none() | plain, "x": plain}
        ),
        "builder": st.fixed_dictionaries(
            {"type": st.sampled_from([None, "docker", "noop"]), "kaniko-config": st.just({"a": 1})}
        ),
    },
)


@given(wanted=official_configs)
@FEW
def test_what_the_official_agent_accepts_means_the_same_here(
    load: Load, official: Any, tmp_path: Path, wanted: dict[str, Any]
) -> None:
    ours = load(yaml.safe_dump(wanted))
    theirs = official(tmp_path / LAUNCH_FILE)
    assert theirs is not None
    assert list(ours.queues) == theirs["queues"]
    assert [ours.job_limit, ours.scheduler_limit] == theirs["limits"]
    assert (ours.entity or "the-keys-own") == theirs["entity"]
    assert ours.secure_mode == bool(theirs["secure_mode"])
    assert ours.verbosity == (theirs["verbosity"] or 0)
    assert ours.stopped_run_timeout == theirs["stopped_run_timeout"]


@given(key=st.one_of(plain, st.sampled_from(["queue", "project", "lease", "Queues", "environments"])))
@FEW
def test_top_level_keys_that_the_official_agent_refuses(load: Load, official: Any, tmp_path: Path, key: str) -> None:
    text = yaml.safe_dump({"queues": ["q"], key: "x"} if key not in AgentSettings.model_fields else {"queues": 5})
    found = problems(load, text)
    assert official(tmp_path / LAUNCH_FILE) is None
    assert all(problem.place.endswith(f" in {L}") for problem in found)


def test_the_official_agent_knows_the_same_top_level_keys(official: Any) -> None:
    from wandb.sdk.launch.agent.config import AgentConfig

    assert set(AgentConfig.model_fields) == set(AgentSettings.model_fields)


@pytest.mark.parametrize("text", ["max_jobs: yes", "secure_mode: 'no'", "stopped_run_timeout: -5", "verbosity: -1"])
def test_where_we_are_stricter_on_purpose(load: Load, official: Any, tmp_path: Path, text: str) -> None:
    problems(load, f"{LAUNCH}{text}\n")
    assert official(tmp_path / LAUNCH_FILE) is not None


# The reference


def test_the_reference_is_what_make_docs_writes() -> None:
    assert reference.PAGE.read_text() == reference.render()


# The files at the root

REPLACED = {"TEAM": "me", "QUEUE": "q", "PROJECT": "my-project", "REGION": "us-east4", "BUCKET": "b-1", "RECORD": "b-2"}


@pytest.fixture
def shipped() -> tuple[str, str]:
    """Return the two files at the root, if they are as shipped: a user's own are not tested."""
    files = (ROOT / L).read_text(), (ROOT / V).read_text()
    if "YOUR-QUEUE" not in files[0]:
        pytest.skip(f"{L} at the root is a user's own")
    return files


def replaced(text: str) -> str:
    return re.sub("YOUR-([A-Z]+)", lambda found: REPLACED[found[1]], text)


def uncommented(text: str) -> str:
    """Switch the optional settings on: lines that begin with ``#`` and a setting, or with ``#  `` in a section."""
    return re.sub(r"^#(?=\w|  \w)", "", replaced(text), flags=re.MULTILINE)


def test_each_placeholder_is_refused_by_name(load: Load, shipped: tuple[str, str]) -> None:
    found = problems(load, *shipped)
    assert {problem.code for problem in found} == {Code.CONFIG_PLACEHOLDER}
    needed = ["project", "regions[0].name", "regions[0].staging_bucket", "key_secret", "state_bucket", "tick_topic"]
    assert sorted(problem.place for problem in found) == sorted(
        [f"entity in {L}", f"queues[0] in {L}", *(f"{name} in {V}" for name in needed)]
    )
    deployed = {
        "GOOGLE_CLOUD_PROJECT": "p-1",
        "GOOGLE_CLOUD_REGION": "us-east4",
        "STAGING_BUCKETS": "gs://staging",
        "STATE_BUCKET": "gs://state",
        "DISPATCH_TOPIC": "projects/p/topics/t",
        "WANDB_API_KEY_SECRET": SECRET,
    }
    assert [problem.place for problem in problems(load, *shipped, **deployed)] == [
        f"entity in {L}",
        f"queues[0] in {L}",
    ]
    assert load("queues: [q]", shipped[1], **deployed).warnings == ()


def test_without_placeholders_the_files_load(load: Load, shipped: tuple[str, str]) -> None:
    loaded = load(*map(replaced, shipped))
    assert (loaded.entity, loaded.queues, loaded.warnings) == ("me", ("q",), ())
    assert loaded.regions == (Region(name="us-east4", staging_bucket="gs://b-1"),)


def test_the_files_show_every_setting_with_its_default(load: Load, official: Any, shipped: tuple[str, str]) -> None:
    launch, own = map(uncommented, shipped)
    shown = yaml.safe_load(own)
    assert yaml.safe_load(launch).keys() == AgentSettings.model_fields.keys()
    assert shown.keys() == DeploymentSettings.model_fields.keys()
    for section in ("timeouts", "batches", "policy"):
        assert shown[section].keys() == getattr(config, section.title()).model_fields.keys()
    loaded = load(launch, own, TEAM_BUCKET="gs://team")
    assert loaded.warnings == ()
    assert official(ROOT / L)["limits"] == [1, 1]
    required = yaml.safe_load(replaced(shipped[0])).keys() | yaml.safe_load(replaced(shipped[1])).keys()
    for name, field in (AgentSettings.model_fields | DeploymentSettings.model_fields).items():
        if name not in required and field.default not in (None, {}, config.Policy()):
            assert getattr(loaded, name) == field.default, name


ALIASES = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)
)
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b'queues: [q]\nentity: "\\UFFFFFFFF"', 2),
        (b'queues: [q]\n\nentity: "\\UDFFFFFFF"', 3),
        (b"queues: [q]\nmax_jobs: " + b"9" * 5000, 2),
        (b"queues: [q]\nmax_jobs: " + b"[" * 5000, 2),
        (b"queues: [q]\nmax_jobs: " + b"{a: " * 5000, 2),
        (b"- " * 5000, 1),
        (b"queues: [q]\nmax_jobs: 2024-13-45", 2),
        (b"queues: [q]\nmax_jobs: !!int ''", 2),
        (b"queues: [q]\nmax_jobs: !!float abc", 2),
        (b"queues: [q]\nmax_jobs: !!timestamp soon", 2),
        (b"queues: [q]\nmax_jobs: !!python/object/apply:os.system [ls]", 2),
        (b"queues:\n\t- q", 2),
        (b"queues: [q]\n\nentity: \x00", 3),
        (b"queues: [q]\nentity: \xed\xa0\x80", 2),
        ("queues: [q]\nentity: 日本\x07".encode(), 2),
        (b"\n\nentity: &a [*a]", 3),
        (b"\n\nentity: &a {b: {c: *a}}", 3),
        (ALIASES.encode(), 6),
        (MERGES.encode(), 6),
    ],
)
def test_yaml_that_breaks_the_parser_has_its_line_and_no_word_of_python(load: Load, text: bytes, line: int) -> None:
    (found,) = problems(load, text)
    assert found.code is Code.CONFIG_YAML
    assert found.place.startswith(f"{L}, line {line}")
    for word in ("codec", "chr()", "sys.", "int()", "Error", "None", "0x110000"):
        assert word not in str(found)


def test_a_file_that_is_too_large(load: Load) -> None:
    (found,) = problems(load, b"#" * 2**20 + b"\nqueues: [q]")
    assert (found.place, found.code) == (L, Code.CONFIG_YAML)


def test_aliases_that_stand_for_little_are_accepted(load: Load) -> None:
    load("queues: &q [a, b]\nentity: &e acme\n", vertex() + "policy: {images: &i ['a/*'], machine_types: *i}\n")


FORGE = (
    *(f"https://forge.coreweave.com{path}" for path in ("", "/", "/wandb", "/wandb/acme", "/api", "//api/wandb")),
    *(f"https://forge.coreweave.com{path}" for path in ("/api/wandb", "/api/wandb/", "/api/wandb/graphql")),
    *("http://forge.coreweave.com/api/wandb", "https://FORGE.CoreWeave.com/api/wandb"),
    *("https://forge.coreweave.com:443/api/wandb", "https://qa.forge.coreweave.com/api/wandb"),
    *("https://api.forge.coreweave.com", "https://api.forge.coreweave.com/", "https://api.qa.forge.coreweave.com"),
    *(
        "https://api.wandb.ai",
        "http://api.wandb.ai",
        "https://wandb.ai",
        "https://app.wandb.ai",
        "https://w.example:8080",
    ),
)


@pytest.mark.parametrize("address", FORGE)
def test_an_address_is_read_as_by_the_official_client(load: Load, address: str) -> None:
    expected = ""
    with suppress(ValueError):
        expected = wandb.Settings(base_url=address).base_url
    if expected:
        assert load(LAUNCH, vertex(base_url=address)).base_url == expected
    else:
        (problem,) = problems(load, LAUNCH, vertex(base_url=address))
        assert "https://api." in problem.remedy


def test_the_default_address_is_that_of_another_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = tmp_path / "wandb/sdk/lib/urls.py"
    urls.parent.mkdir(parents=True)
    (tmp_path / "wandb/__init__.py").touch()
    urls.write_text('X = 1\nDEFAULT_BASE_URL = "https://api.w.example"\n')
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "wandb")
    assert addresses.default.__wrapped__() == "https://api.w.example"
    urls.unlink()
    assert addresses.default.__wrapped__() == "https://api.wandb.ai"


def test_a_regional_secret(load: Load) -> None:
    name = "projects/p/locations/europe-west3/secrets/s"
    assert load(LAUNCH, vertex(key_secret=f"{name}/versions/latest")).key_secret == f"{name}/versions/latest"
    (problem,) = problems(load, LAUNCH, vertex(key_secret=name))
    assert f"{name}/versions/latest" in problem.remedy
    problems(load, LAUNCH, vertex(key_secret="projects/p/locations/secrets/s/versions/1"))
