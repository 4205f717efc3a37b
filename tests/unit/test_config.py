"""The settings: what is accepted, which source wins, and the place and code of each problem."""

from __future__ import annotations

import base64
import math
import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.support import reference
from tests.support.numbers import examples
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
    assert (loaded.deployment, loaded.base_url, loaded.tick_topic) == ("default", "https://api.wandb.ai", None)
    assert (loaded.warnings, loaded.macro_values, loaded.hold_seconds) == ((), {}, 75)


def test_the_environment_can_replace_the_second_file(load: Load) -> None:
    loaded = load(
        LAUNCH,
        "",
        GOOGLE_CLOUD_PROJECT="p-1",
        GOOGLE_CLOUD_REGION=" us-east4 ,us-central1,",
        WANDB_API_KEY_SECRET=SECRET,
        STATE_BUCKET="gs://state/folder/",
        DISPATCH_TOPIC="projects/p/topics/ticks",
        AIPLATFORM_ENDPOINT="http://127.0.0.1:8080/",
        SECRETMANAGER_ENDPOINT="https://secretmanager.us-east4.rep.googleapis.com",
        WANDB_BASE_URL="http://127.0.0.1:9/",
        WANDB_ENTITY="me",
        WANDB_LAUNCH_MAX_JOBS="-1",
        WANDB_LAUNCH_START_TIMEOUT="1.5",
    )
    assert (loaded.project, loaded.regions) == ("p-1", (Region(name="us-east4"), Region(name="us-central1")))
    assert (loaded.state_bucket, loaded.tick_topic) == ("gs://state/folder", "projects/p/topics/ticks")
    assert loaded.aiplatform_endpoint == "http://127.0.0.1:8080"
    assert loaded.secretmanager_endpoint == "secretmanager.us-east4.rep.googleapis.com"
    assert (loaded.base_url, loaded.entity, loaded.start_timeout) == ("http://127.0.0.1:9", "me", 1.5)
    assert (loaded.job_limit, loaded.warnings) == (math.inf, ())


def test_the_environment_wins_over_both_files(load: Load) -> None:
    own = vertex(base_url="https://file.example", start_timeout="5", tick_topic="projects/p/topics/file")
    launch = "queues: [q]\nentity: file\nmax_jobs: 2\n"
    from_files = load(launch, own)
    given_ = {
        "VERTEX_LAUNCH_DEPLOYMENT": "env",
        "WANDB_BASE_URL": "https://env.example",
        "WANDB_ENTITY": "env",
        "WANDB_LAUNCH_MAX_JOBS": "7",
        "WANDB_LAUNCH_START_TIMEOUT": "9",
        "WANDB_API_KEY_SECRET": "projects/env/secrets/s/versions/3",
        "GOOGLE_CLOUD_PROJECT": "env",
        "GOOGLE_CLOUD_REGION": "europe-west4",
        "STATE_BUCKET": "gs://env",
        "DISPATCH_TOPIC": "projects/env/topics/t",
        "AIPLATFORM_ENDPOINT": "localhost:1",
        "SECRETMANAGER_ENDPOINT": "localhost:2",
        "LOGGING_ENDPOINT": "localhost:3",
    }
    assert given_.keys() == VARIABLES.keys()
    for variable, value in given_.items():
        field = VARIABLES[variable]
        changed = load(launch, own, **{variable: value}).model_dump()
        assert changed.pop(field) != getattr(from_files, field)
        assert changed == from_files.model_dump(exclude={field}), "a variable overrides its own setting only"
        assert load(launch, own, **{variable: ""}) == from_files, "an empty variable counts as unset"


def test_a_region_named_by_the_environment_keeps_its_staging_bucket(load: Load) -> None:
    own = vertex(regions="[{name: us-central1, staging_bucket: gs://one/}, {name: us-east4, staging_bucket: gs://two}]")
    loaded = load(LAUNCH, own, GOOGLE_CLOUD_REGION="us-east4,us-west1")
    assert loaded.regions == (Region(name="us-east4", staging_bucket="gs://two"), Region(name="us-west1"))
    found = loaded.region("us-east4")
    assert found is not None
    assert found.staging_bucket == "gs://two"
    assert loaded.region("us-central1") is None


@pytest.mark.parametrize("names", [None, "us-central1,us-east4"])
def test_the_environment_names_staging_buckets_in_the_order_of_the_regions(load: Load, names: str | None) -> None:
    own = vertex(regions="[{name: us-central1, staging_bucket: gs://one}, {name: us-east4}]")
    where = {"GOOGLE_CLOUD_REGION": names} if names else {}
    loaded = load(LAUNCH, own, STAGING_BUCKETS=" , gs://two/jobs", **where)
    assert loaded.regions == (Region(name="us-central1"), Region(name="us-east4", staging_bucket="gs://two/jobs"))


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


@pytest.mark.parametrize("absolute", [False, True])
def test_paths_of_both_files(tmp_path: Path, absolute: bool) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.yaml").write_text("queues: [other]")
    (tmp_path / "files" / "b.yaml").write_text(vertex(deployment="other"))
    folder = tmp_path / "files" if absolute else Path("files")
    environ = {"LAUNCH_CONFIG": str(folder / "a.yaml"), "VERTEX_LAUNCH_CONFIG": str(folder / "b.yaml")}
    loaded = config.load(environ, tmp_path)
    assert (loaded.queues, loaded.deployment) == (("other",), "other")


def test_keys_without_a_value_count_as_absent(load: Load) -> None:
    nothing = "".join(f"{name}:\n" for name in AgentSettings.model_fields if name != "queues")
    own = vertex() + "".join(f"{name}:\n" for name in DeploymentSettings.model_fields if name not in VERTEX)
    assert load(LAUNCH + nothing, own) == load()


def test_a_later_definition_over_a_merged_one_is_no_duplicate(load: Load) -> None:
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


# What is odd


@pytest.mark.parametrize(
    ("launch", "environ", "code", "place", "mentions"),
    [
        (
            "environment: {type: gcp, zone: a}",
            {},
            Code.CONFIG_IGNORED,
            "environment.zone in launch-config.yaml",
            "region",
        ),
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

BAD, MISSING, UNKNOWN = Code.CONFIG_VALUE, Code.CONFIG_MISSING, Code.CONFIG_UNKNOWN
YAML, KEY, MACRO, CONFLICT = Code.CONFIG_YAML, Code.CONFIG_API_KEY, Code.CONFIG_MACRO, Code.CONFIG_CONFLICT
PLACEHOLDER = Code.CONFIG_PLACEHOLDER

# The whole of launch-config.yaml, place, code, what the text mentions
IN_FILE = [
    ("queues: [q\n", f"{L}, line 2, column 1", YAML, "','"),
    ("queues: [q]\n\tmax_jobs: 5", f"{L}, line 2, column 1", YAML, ""),
    ("queues: [q]\nmax_jobs: 1: 2", f"{L}, line 2, column 12", YAML, ""),
    ("queues: !!python/object:os.x []", f"{L}, line 1, column 9", YAML, ""),
    ("queues: [q]\nentity: 2024-13-45", f"{L}, line 2, column 9", YAML, "'2024-13-45'"),
    ("queues: [q]\nmax_jobs: !!bool maybe", f"{L}, line 2, column 11", YAML, "'maybe'"),
    ("queues: [q]\n? [a]\n: 1", f"{L}, line 2, column 3", YAML, ""),
    ("queues: [*a]", f"{L}, line 1, column 10", YAML, ""),
    ("queues: [q]\n---\na: 1", f"{L}, line 2, column 1", YAML, ""),
    ("- q", L, YAML, "a list"),
    ("just words", L, YAML, "'just words'"),
    ("[" * 5000, L, YAML, ""),
    (b"queues: [\xff]", L, YAML, ""),
    ("queues: [q]\nqueues: [r]", f"queues in {L}", YAML, "lines 1 and 2"),
    ("{queues: [q], queues: [q]}", f"queues in {L}", YAML, "lines 1 and 1"),
    (None, L, Code.CONFIG_FILE, "LAUNCH_CONFIG"),
    ("max_jobs: 5", f"queues in {L}", MISSING, "[my-queue]"),
    ("# nothing", f"queues in {L}", MISSING, "[my-queue]"),
    ("queues:", f"queues in {L}", MISSING, "[my-queue]"),
    ("queues: []", f"queues in {L}", MISSING, "[my-queue]"),
    ("queues: gpu", f"queues in {L}", BAD, "'gpu'"),
    ("queues: [a, a, b]", f"queues in {L}", BAD, "'a'"),
    ("queues: [a, ' b']", f"queues[1] in {L}", BAD, "' b'"),
    ("queues: [7]", f"queues[0] in {L}", BAD, "7"),
    ("queues: [2024-01-01]", f"queues[0] in {L}", BAD, "a date"),
    ("queues: [YOUR-QUEUE]", f"queues[0] in {L}", PLACEHOLDER, "YOUR-QUEUE"),
]

# A line of launch-config.yaml, setting, code, what the text mentions
IN_LAUNCH = [
    (f"entity: {OLD_KEY}", "entity", KEY, "key_secret"),
    ("wandb_api_key: hunter2", "wandb_api_key", KEY, "key_secret"),
    ("builder: {api-key: hunter2}", "builder.api-key", KEY, ""),
    ("entity: YOUR-TEAM", "entity", PLACEHOLDER, "my-team"),
    ("entity: 0x" + "1" * 5000, "entity", BAD, "a huge number"),
    ("entity: ''", "entity", BAD, "''"),
    ("max_jobs: five", "max_jobs", BAD, "'five'"),
    ("max_jobs: 2.5", "max_jobs", BAD, "2.5"),
    ("max_jobs: yes", "max_jobs", BAD, "true"),
    ("max_jobs: .inf", "max_jobs", BAD, "inf"),
    ("max_jobs: -2", "max_jobs", BAD, "-1 or more"),
    ("max_jobs: [5]", "max_jobs", BAD, "a list"),
    ("max_schedulers: {}", "max_schedulers", BAD, "a mapping"),
    ("secure_mode: 'no'", "secure_mode", BAD, "'no'"),
    ("secure_mode: 3", "secure_mode", BAD, "3"),
    ("stopped_run_timeout: -1", "stopped_run_timeout", BAD, "0 or more"),
    ("stopped_run_timeout: soon", "stopped_run_timeout", BAD, "'soon'"),
    ("verbosity: -1", "verbosity", BAD, "0 or more"),
    ("environment: gcp", "environment", BAD, "'gcp'"),
    ("environment: {type: aws}", "environment.type", BAD, "Vertex AI"),
    ("environment: {region: 3}", "environment.region", BAD, "3"),
    ("registry: gcr", "registry", BAD, "'gcr'"),
    ("registry: {1: 2}", "registry[1]", BAD, "text"),
    ("max_job: 5", "max_job", UNKNOWN, "max_jobs?"),
    ("queue: a", "queue", UNKNOWN, "queues?"),
    ("Verbosity: 1", "Verbosity", UNKNOWN, "verbosity?"),
    ("colour: red", "colour", UNKNOWN, "builder, entity"),
    ("project: p", "project", UNKNOWN, V),
    ("5: 5", "[5]", UNKNOWN, ""),
]

# A setting of vertex-launch.yaml, its value, place within it, code, what the text mentions
IN_VERTEX = [
    ("timeouts", "\n  read: 5\n  read: 6", ".read", YAML, "lines 6 and 7"),
    ("key_secret", NEW_KEY, "", KEY, "key_secret"),
    ("policy", f"{{images: ['{LOCAL_KEY}']}}", ".images[0]", KEY, ""),
    ("deployment", "Team_A", "", BAD, "'Team_A'"),
    ("deployment", "z" * 41, "", BAD, "40"),
    ("deployment", "12", "", BAD, "12"),
    ("project", "My Project", "", BAD, "'My Project'"),
    ("project", "YOUR-PROJECT", "", PLACEHOLDER, "GOOGLE_CLOUD_PROJECT"),
    ("regions", "[]", "", MISSING, "us-central1"),
    ("regions", "us-central1", "", BAD, "'us-central1'"),
    ("regions", "{us-central1: gs://a}", "", BAD, "a mapping"),
    ("regions", "[us-central1]", "[0]", BAD, "'us-central1'"),
    ("regions", "[{name: us-east4}, {}]", "[1].name", MISSING, "us-central1"),
    ("regions", "[{name: us-east4-a}]", "[0].name", BAD, "us-east4;"),
    ("regions", "[{name: Iowa}]", "[0].name", BAD, "'Iowa'"),
    ("regions", "[{name: us-east4}, {name: us-east4}]", "", BAD, "'us-east4'"),
    ("regions", "[{name: us-east4, bucket: b}]", "[0].bucket", UNKNOWN, "staging_bucket?"),
    ("regions", "[{name: us-east4, staging_bucket: b}]", "[0].staging_bucket", BAD, "gs://"),
    (
        "regions",
        "[{name: us-east4, staging_bucket: gs://YOUR-BUCKET}]",
        "[0].staging_bucket",
        PLACEHOLDER,
        "STAGING_BUCKETS",
    ),
    ("base_url", "wandb.ai", "", BAD, "'wandb.ai'"),
    ("base_url", "https://[", "", BAD, "https://api.wandb.ai"),
    ("base_url", "api:hunter2@c", "", BAD, "Secret Manager"),
    ("base_url", "https://a:b@c", "", BAD, "Secret Manager"),
    ("base_url", "https://w.example/graphql/", "", BAD, "https://w.example"),
    ("base_url", "https://wandb.ai", "", BAD, "https://api.wandb.ai"),
    ("base_url", "'https://a b'", "", BAD, "'https://a b'"),
    ("key_secret", "wandb-key", "", BAD, "projects/my-project/secrets/"),
    ("key_secret", "projects/p/secrets/s", "", BAD, "projects/p/secrets/s/versions/latest"),
    ("key_secret", "projects/YOUR-PROJECT/secrets/s/versions/1", "", PLACEHOLDER, "projects/my-project/"),
    ("key_ttl", "-1", "", BAD, "0 or more"),
    ("state_bucket", "state", "", BAD, "'state'"),
    ("state_bucket", "gs://State", "", BAD, "'gs://State'"),
    ("tick_topic", "ticks", "", BAD, "projects/my-project/topics/ticks"),
    ("timeouts", "5", "", BAD, "{create: 20}"),
    ("timeouts", "{raed: 5}", ".raed", UNKNOWN, "read?"),
    ("timeouts", "{read: 0}", ".read", BAD, "greater than 0"),
    ("timeouts", "{read: }", ".read", BAD, ""),
    ("timeouts", "{read: 1 min}", ".read", BAD, "'1 min'"),
    ("timeouts", "{read: true}", ".read", BAD, "true"),
    ("timeouts", "{intent_grace: 30}", ".intent_grace", CONFLICT, "30 s"),
    ("lease", "30", "", CONFLICT, "30 s"),
    ("batches", "{pops: 0}", ".pops", BAD, "1 or more"),
    ("submissions_per_minute", "many", "", BAD, "'many'"),
    ("parallel_creates", "0", "", BAD, "1 or more"),
    ("give_up_after", "0", "", BAD, "greater than 0"),
    ("start_timeout", ".nan", "", BAD, "nan"),
    ("api_key_secret", SECRET, "", UNKNOWN, "key_secret?"),
    ("max_jobs", "5", "", UNKNOWN, L),
    ("policy", "{image: [a]}", ".image", UNKNOWN, "images?"),
    ("policy", "{images: }", ".images", BAD, "{}"),
    ("policy", "{max_replicas: }", ".max_replicas", BAD, ""),
    ("policy", "{images: '*'}", ".images", BAD, "'*'"),
    ("policy", "{images: ['']}", ".images[0]", BAD, "''"),
    ("policy", "{accelerators: [T4]}", ".accelerators", BAD, "{NVIDIA_TESLA_T4: 2}"),
    ("policy", "{accelerators: {T4: x}}", ".accelerators.T4", BAD, "'x'"),
    ("policy", "{accelerators: {T4: -1}}", ".accelerators.T4", BAD, "0 or more"),
    ("policy", "{accelerators: {4: 1}}", ".accelerators[4]", BAD, "text"),
    ("policy", "{environment_macros: }", ".environment_macros", BAD, ""),
    ("policy", "{environment_macros: [A]}", ".environment_macros[0]", MACRO, "Set A"),
    ("policy", "{environment_macros: [a b]}", ".environment_macros[0]", BAD, "'a b'"),
    *(
        ("git_token_secrets", f'{{"{host}": {SECRET}}}', f".{host}", BAD, f"'{host}'")
        for host in ("https://github.com", "github.com/acme", "gitlab.corp:8443", "*.corp")
    ),
    *(
        ("policy", f"{{environment_macros: [{name}]}}", ".environment_macros[0]", MACRO, name)
        for name in (
            "WANDB_API_KEY",
            "KEY",
            "my_key",
            "HF_TOKEN",
            "TOKENS",
            "A_SECRET_B",
            "PGPASSWORD",
            "GOOGLE_CREDENTIALS",
        )
    ),
]

# A variable, its value, the end of its place, code, what the text mentions
IN_ENVIRONMENT = [
    ("WANDB_API_KEY_SECRET", OLD_KEY, "", BAD, "versions/latest"),
    ("WANDB_ENTITY", NEW_KEY, "", KEY, "key_secret"),
    ("WANDB_ENTITY", "YOUR-TEAM", "", PLACEHOLDER, "YOUR-TEAM"),
    ("WANDB_ENTITY", " me", "", BAD, "' me'"),
    ("WANDB_LAUNCH_MAX_JOBS", "five", "", BAD, "'five'"),
    ("WANDB_LAUNCH_START_TIMEOUT", "-5", "", BAD, "0 or more"),
    ("WANDB_LAUNCH_START_TIMEOUT", "nan", "", BAD, "nan"),
    ("WANDB_BASE_URL", "api.wandb.ai", "", BAD, "https://api.wandb.ai"),
    ("GOOGLE_CLOUD_PROJECT", "a b", "", BAD, "'a b'"),
    ("GOOGLE_CLOUD_REGION", "us-east4,moon", ", entry 2", BAD, "'moon'"),
    ("GOOGLE_CLOUD_REGION", " , ", "", MISSING, "us-central1"),
    ("GOOGLE_CLOUD_REGION", "us-east4,us-east4", "", BAD, "'us-east4'"),
    ("STAGING_BUCKETS", "gs://a,gs://b", "", CONFLICT, "STAGING_BUCKETS=gs://one,gs://two"),
    ("STAGING_BUCKETS", "staging", ", entry 1", BAD, "'staging'"),
    ("STATE_BUCKET", "bucket", "", BAD, "gs://my-bucket"),
    ("DISPATCH_TOPIC", "ticks", "", BAD, "projects/my-project/topics/ticks"),
    ("AIPLATFORM_ENDPOINT", "ftp://x", "", BAD, "'ftp://x'"),
    ("SECRETMANAGER_ENDPOINT", "a/b", "", BAD, "'a/b'"),
]

WRONG = [
    *((text, None, {}, place, code, mentions) for text, place, code, mentions in IN_FILE),
    *((LAUNCH + line, None, {}, f"{where} in {L}", code, mentions) for line, where, code, mentions in IN_LAUNCH),
    *(
        (LAUNCH, vertex(**{key: value}), {}, f"{key}{inside} in {V}", code, mentions)
        for key, value, inside, code, mentions in IN_VERTEX
    ),
    *(
        (LAUNCH, vertex(**{setting: None}), {}, f"{setting} in {V} or {E} {variable}", MISSING, example)
        for setting, variable, example in (
            ("project", "GOOGLE_CLOUD_PROJECT", "my-project-123"),
            ("regions", "GOOGLE_CLOUD_REGION", "us-central1"),
            ("key_secret", "WANDB_API_KEY_SECRET", "versions/latest"),
            ("state_bucket", "STATE_BUCKET", "gs://my-bucket"),
        )
    ),
    (LAUNCH, vertex(timeouts="{create: 50}"), {}, f"lease in {V}", CONFLICT, "60 s"),
    *(
        (LAUNCH, None, {variable: value}, f"{E} {variable}{entry}", code, mentions)
        for variable, value, entry, code, mentions in IN_ENVIRONMENT
    ),
    (LAUNCH, "", {"VERTEX_LAUNCH_CONFIG": "other.yaml"}, "other.yaml", Code.CONFIG_FILE, "VERTEX_LAUNCH_CONFIG"),
    (LAUNCH, None, {"LAUNCH_CONFIG": "/"}, "/", Code.CONFIG_FILE, "Is a directory"),
    (
        LAUNCH,
        vertex(policy="{environment_macros: [HARMLESS]}"),
        {"HARMLESS": NEW_KEY},
        f"policy.environment_macros[0] in {V}",
        MACRO,
        "HARMLESS",
    ),
    (
        LAUNCH,
        vertex(regions="[{name: us-east4}, {name: us-west1, staging_bucket: b}]"),
        {"GOOGLE_CLOUD_REGION": "us-west1"},
        f"regions[1].staging_bucket in {V}",
        BAD,
        "'b'",
    ),
    (
        "queues: [q]\nenvironment: {type: gcp, region: us-east4-b}",
        vertex(regions=None),
        {},
        f"environment.region in {L}",
        BAD,
        "us-east4;",
    ),
]


@pytest.mark.parametrize(("launch", "own", "environ", "place", "code", "mentions"), WRONG)
def test_each_problem_has_its_place_and_code(
    load: Load,
    launch: str | bytes | None,
    own: str | None,
    environ: dict[str, str],
    place: str,
    code: Code,
    mentions: str,
) -> None:
    (problem,) = problems(load, launch, own, **environ)
    assert (problem.place, problem.code) == (place, code)
    assert mentions in f"{problem.found} {problem.remedy}"
    assert not any(key in str(problem) for key in (*KEYS, "hunter2"))


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
    assert [problem.place for problem in found] == [f"{name} in {L}" for name in ("queues", "entity", "max_jobs")]


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


def test_where_names_the_files_as_the_environment_does(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"{LAUNCH}entity: me\n")
    (tmp_path / "b.yaml").write_text(vertex())
    loaded = config.load({"LAUNCH_CONFIG": "a.yaml", "VERTEX_LAUNCH_CONFIG": str(tmp_path / "b.yaml")}, tmp_path)
    assert (loaded.where("entity"), loaded.where("lease")) == ("entity in a.yaml", f"lease in {tmp_path / 'b.yaml'}")


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
        "environment": st.none()
        | st.fixed_dictionaries({"type": st.none() | st.just("gcp"), "region": st.sampled_from([None, "us-east4"])}),
        "registry": st.none()
        | st.fixed_dictionaries(
            {}, optional={"type": st.sampled_from([None, "gcr", "acr", "ecr"]), "uri": st.none() | plain, "x": plain}
        ),
        "builder": st.none()
        | st.fixed_dictionaries(
            {},
            optional={
                "type": st.sampled_from([None, "docker", "kaniko", "noop"]),
                "destination": st.none() | plain,
                "platform": st.sampled_from([None, "linux/amd64", "linux/arm64"]),
                "build-context-store": st.sampled_from([None, "gs://bucket/folder"]),
                "kaniko-image": st.none() | plain,
                "kaniko-config": st.just({"a": 1}),
                "something": plain,
            },
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

REPLACED = {
    "YOUR-TEAM": "me",
    "YOUR-QUEUE": "q",
    "YOUR-PROJECT": "my-project",
    "YOUR-REGION": "us-east4",
    "YOUR-BUCKET": "b-1",
}


@pytest.fixture
def shipped() -> tuple[str, str]:
    """Return the two files at the root, if they are as shipped: a user's own are not tested."""
    files = (ROOT / L).read_text(), (ROOT / V).read_text()
    if "YOUR-QUEUE" not in files[0]:
        pytest.skip(f"{L} at the root is a user's own")
    return files


def replaced(text: str) -> str:
    return re.sub("YOUR-[A-Z]+", lambda found: REPLACED[found[0]], text)


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
