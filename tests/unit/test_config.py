"""The settings: what is accepted, what wins, and every sentence that a wrong configuration gets."""

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

from tests.support.numbers import examples
from vertex_launch.errors import ConfigError, Problem
from vertex_launch.settings import config
from vertex_launch.settings.config import AgentSettings, DeploymentSettings, Region, Settings
from vertex_launch.settings.sources import LAUNCH_FILE, VARIABLES, VERTEX_FILE

ROOT = Path(__file__).resolve().parents[2]
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


WARNED = [
    ("environment: {type: gcp, zone: a}", {}, "launch-config.yaml: environment.zone: is ignored"),
    ("environment: {type: gcp, regoin: a}", {}, "Did you mean region?"),
    ("registry: {type: gcr, urli: a}", {}, "launch-config.yaml: registry.urli: is ignored"),
    ("builder: {type: noop, build_context_store: a}", {}, "Did you mean build-context-store?"),
    (
        "",
        {"WANDB_API_KEY": "hunter2"},
        "environment variable WANDB_API_KEY: is ignored. Remove it; the key is read from",
    ),
    (
        "",
        {"WANDB_BASE_URL": "http://wandb.example:80"},
        "environment variable WANDB_BASE_URL: the W&B API key goes to wandb.ex",
    ),
    (
        "",
        {"AIPLATFORM_ENDPOINT": "http://10.0.0.1:80"},
        "environment variable AIPLATFORM_ENDPOINT: the W&B API key goes to 10",
    ),
    (
        "",
        {"CLOUD_RUN_TIMEOUT_SECONDS": "60"},
        "the function is stopped after 60 s, a pass may take 75 s. Deploy with --timeout=75s",
    ),
]


@pytest.mark.parametrize(("launch", "environ", "expected"), WARNED)
def test_what_is_tolerated_is_said_once(load: Load, launch: str, environ: dict[str, str], expected: str) -> None:
    (warning,) = load(f"{LAUNCH}{launch}\n", **environ).warnings
    assert expected in warning
    assert "hunter2" not in warning


@pytest.mark.parametrize(
    ("launch", "environ"),
    [
        ("environment: {type: gcp, region: us-central1}", {}),
        ("registry: {type: gcr, uri: u, repository: r, image-name: i, project: p, region: r}", {}),
        ("registry: {type: ecr, account_id: 1, repository: r, region: r}", {}),
        (
            "builder: {type: kaniko, build-context-store: 'gs://b', build-job-name: j, secret-name: n, secret-key: k}",
            {},
        ),
        ("builder: {type: docker, destination: d, platform: linux/amd64, kaniko-image: i, kaniko-config: {}}", {}),
        ("", {"WANDB_BASE_URL": "http://localhost:8080"}),
        ("", {"WANDB_BASE_URL": "http://[::1]:8080"}),
        ("", {"SECRETMANAGER_ENDPOINT": "http://127.0.0.1:80"}),
        ("", {"CLOUD_RUN_TIMEOUT_SECONDS": "75"}),
        ("", {"CLOUD_RUN_TIMEOUT_SECONDS": "0"}),
        ("", {"CLOUD_RUN_TIMEOUT_SECONDS": "soon"}),
    ],
)
def test_what_is_usual_gets_no_warning(load: Load, launch: str, environ: dict[str, str]) -> None:
    assert load(f"{LAUNCH}{launch}\n", **environ).warnings == ()


# What is wrong: (launch-config.yaml without queues, changes of vertex-launch.yaml, environment, place, found, remedy)

L, V, E = "launch-config.yaml", "vertex-launch.yaml", "environment variable"
Row = tuple[str, dict[str, str | None], dict[str, str], str, str, str]


def in_launch(text: str, place: str, found: str, remedy: str) -> Row:
    return (f"{LAUNCH}{text}", {}, {}, f"{L}: {place}", found, remedy)


def alone(text: str, place: str, found: str, remedy: str) -> Row:
    return (text, {}, {}, f"{L}{place}", found, remedy)


def in_vertex(key: str, value: str | None, place: str, found: str, remedy: str) -> Row:
    return (LAUNCH, {key: value}, {}, f"{V}: {place}", found, remedy)


def in_environment(variable: str, value: str, found: str, remedy: str, place: str = "") -> Row:
    return (LAUNCH, {}, {variable: value}, f"{E} {variable}{place}", found, remedy)


# fmt: off
WRONG = [
    # files
    alone("queues: [q\n", ", line 2, column 1", "is no valid YAML: expected ',' or ']'", "Mend it there: indent with spaces"),
    alone("queues: [q]\n\tmax_jobs: 5", ", line 2, column 1", "character '\\t' that cannot start", "spaces, not tabs"),
    alone("queues: [q]\nmax_jobs: 1: 2", ", line 2, column 12", "mapping values are not allowed", "a space after each colon"),
    alone("queues: !!python/object:os.x []", ", line 1, column 9", "could not determine a constructor", "Mend it there"),
    alone("queues: [q]\nentity: 2024-13-45", ", line 2, column 9", "'2024-13-45' cannot be read, put it in quotes", "Mend"),
    alone("queues: [q]\nmax_jobs: !!bool maybe", ", line 2, column 11", "'maybe' cannot be read", "Mend"),
    alone("queues: [q]\n? [a]\n: 1", ", line 2, column 3", "unhashable key", "Mend"),
    alone("queues: [*a]", ", line 1, column 10", "undefined alias", "Mend"),
    alone("queues: [q]\n---\na: 1", ", line 2, column 1", "but found another document", "Mend"),
    alone("- q", "", "holds a list instead of settings", "Write one setting a line, as max_jobs: 5"),
    alone("just words", "", "holds 'just words' instead of settings", "Write one setting a line"),
    alone("[" * 5000, "", "is nested too deeply", "Keep to the settings that are known"),
    alone("queues: [q]\nqueues: [r]", ": queues", "stands there twice, in lines 1 and 2", "Keep one of the two"),
    alone("{queues: [q], queues: [q]}", ": queues", "stands there twice, in lines 1 and 1", "Keep one"),
    in_vertex("timeouts", "\n  read: 5\n  read: 6", "timeouts.read", "twice, in lines 6 and 7", "Keep one of the two"),
    # the API key
    in_launch(f"entity: {OLD_KEY}", "entity", "looks like a W&B API key", "store the key in Secret Manager and name"),
    in_launch("wandb_api_key: hunter2", "wandb_api_key", "looks like a W&B API key", "Take it out"),
    in_launch("builder: {api-key: hunter2}", "builder.api-key", "looks like a W&B API key", "make a new key"),
    in_vertex("key_secret", NEW_KEY, "key_secret", "looks like a W&B API key", "name the secret's version in key_secret"),
    in_vertex("policy", f"{{images: ['{LOCAL_KEY}']}}", "policy.images[0]", "looks like a W&B API key", "Take it out"),
    in_environment("WANDB_API_KEY_SECRET", OLD_KEY, "is not the name of a secret version", "where the key is, not the key"),
    in_environment("WANDB_ENTITY", NEW_KEY, "looks like a W&B API key", "see key_secret"),
    # launch-config.yaml
    alone("max_jobs: 5", ": queues", "is not set", "Set it, as [my-queue] (names of the queues"),
    alone("# nothing", ": queues", "is not set", "Set it, as [my-queue]"),
    alone("queues:", ": queues", "is not set", "Set it, as [my-queue]"),
    alone("queues: []", ": queues", "is empty", "Name at least one, as [my-queue]"),
    alone("queues: gpu", ": queues", "'gpu' is not a list", "Write a list, as [my-queue]"),
    alone("queues: [a, a, b]", ": queues", "'a' stands there more than once", "Name each one once"),
    alone("queues: [a, ' b']", ": queues[1]", "' b' is empty or has spaces around it", "without spaces around it"),
    alone("queues: [7]", ": queues[0]", "7 is not text", "Write text, in quotes where it looks like a number"),
    alone("queues: [2024-01-01]", ": queues[0]", "a date is not text", "in quotes"),
    in_launch("entity: 0x" + "1" * 5000, "entity", "a huge number is not text", "in quotes"),
    in_launch("entity: ''", "entity", "'' is empty", "Write the name alone"),
    in_launch("max_jobs: five", "max_jobs", "'five' is not a whole number", "Write a whole number, as 5 (jobs that may be"),
    in_launch("max_jobs: 2.5", "max_jobs", "2.5 is not a whole number", "WANDB_LAUNCH_MAX_JOBS wins"),
    in_launch("max_jobs: yes", "max_jobs", "true is not a whole number", "Write a whole number"),
    in_launch("max_jobs: .inf", "max_jobs", "inf is not a finite number", "-1 is no limit"),
    in_launch("max_jobs: -2", "max_jobs", "-2 is not a number of -1 or more", "Write a number of -1 or more"),
    in_launch("max_jobs: [5]", "max_jobs", "a list is not a whole number", "Write a whole number"),
    in_launch("max_schedulers: {}", "max_schedulers", "a mapping is not a whole number", "Write a whole number, as 1"),
    in_launch("secure_mode: 'no'", "secure_mode", "'no' is not true or false", "true or false, without quotes"),
    in_launch("secure_mode: 3", "secure_mode", "3 is not true or false", "true or false, without quotes"),
    in_launch("stopped_run_timeout: -1", "stopped_run_timeout", "-1 is not a number of 0 or more", "number of 0 or more"),
    in_launch("stopped_run_timeout: soon", "stopped_run_timeout", "'soon' is not a finite number", "seconds that a stopped"),
    in_launch("verbosity: -1", "verbosity", "-1 is not a number of 0 or more", "debug lines"),
    in_launch("environment: gcp", "environment", "'gcp' is not a mapping", "Write a mapping, key: value, as {type: gcp}"),
    in_launch("environment: {type: aws}", "environment.type", "'aws' is not gcp", "submits to Vertex AI"),
    in_launch("environment: {type: azure}", "environment.type", "'azure' is not gcp", "keep other clouds in the official"),
    in_launch("environment: {region: 3}", "environment.region", "3 is not text", "in quotes"),
    in_launch("registry: {type: hub}", "registry.type", "'hub' is not one of 'ecr', 'acr' or 'gcr'", "Write one of 'ecr'"),
    in_launch("registry: {1: 2}", "registry[1]", "is no key, keys are text", "Put it in quotes if you mean it"),
    in_launch("builder: {type: podman}", "builder.type", "'podman' is not one of 'docker', 'kaniko' or 'noop'", "Write one"),
    in_launch("builder: {platform: vax}", "builder.platform", "'vax' is not one of", "'linux/arm64'"),
    in_launch("builder: {build-job-name: 3}", "builder.build-job-name", "3 is not text", "Write text"),
    in_launch("max_job: 5", "max_job", "is no setting", "Did you mean max_jobs?"),
    in_launch("queue: a", "queue", "is no setting", "Did you mean queues?"),
    in_launch("Verbosity: 1", "Verbosity", "is no setting", "Did you mean verbosity?"),
    in_launch("colour: red", "colour", "is no setting", "Remove it; known here are builder, entity, environment, max_jobs,"),
    in_launch("project: p", "project", "does not belong here", "Move it to vertex-launch.yaml"),
    in_launch("5: 5", "[5]", "is no key, keys are text", "remove it"),
    # vertex-launch.yaml
    in_vertex("project", None, "project", "is not set", "Set it, as my-project-123 (project in which jobs run; GOOGLE_CLOUD_P"),
    in_vertex("regions", None, "regions", "is not set", "(where jobs may run, the first is the default; GOOGLE_CLOUD_REGION"),
    in_vertex("key_secret", None, "key_secret", "is not set", "WANDB_API_KEY_SECRET wins"),
    in_vertex(
        "state_bucket", None, "state_bucket", "is not set", "Set it, as gs://my-bucket (where the record is kept; STATE_"
    ),
    in_vertex("deployment", "Team_A", "deployment", "'Team_A' is not the name of a deployment", "40 small letters, digits"),
    in_vertex("deployment", "z" * 41, "deployment", "is not the name of a deployment", "as team-a"),
    in_vertex("deployment", "12", "deployment", "12 is not text", "in quotes where it looks like a number"),
    in_vertex("project", "My Project", "project", "'My Project' is not a project id", "Write the id, not the name"),
    in_vertex("regions", "[]", "regions", "is empty", "Name at least one, as [{name: us-central1, staging_bucket: gs://my"),
    in_vertex("regions", "us-central1", "regions", "'us-central1' is not a list", "Write a list, as [{name: us-central1"),
    in_vertex("regions", "{us-central1: gs://a}", "regions", "a mapping is not a list", "Write a list, as [{name: us-central1"),
    in_vertex("regions", "[us-central1]", "regions[0]", "'us-central1' is not a mapping", "as [{name: us-central1"),
    in_vertex("regions", "[{name: us-east4}, {}]", "regions[1].name", "is not set", "Set it, as us-central1 (Google Cloud reg"),
    in_vertex("regions", "[{name: us-east4-a}]", "regions[0].name", "'us-east4-a' is a zone", "Write its region, us-east4"),
    in_vertex("regions", "[{name: Iowa}]", "regions[0].name", "'Iowa' is not a region", "Google Cloud region, as us-central1"),
    in_vertex("regions", "[{name: us-east4}, {name: us-east4}]", "regions", "'us-east4' stands there more", "each one once"),
    in_vertex("regions", "[{name: us-east4, bucket: b}]", "regions[0].bucket", "is no setting", "Did you mean staging_bucket?"),
    in_vertex(
        "regions", "[{name: us-east4, staging_bucket: b}]", "regions[0].staging_bucket", "'b' is not the address", "gs://"
    ),
    in_vertex("base_url", "wandb.ai", "base_url", "'wandb.ai' is not an http or https", "Write the server's address, as https"),
    in_vertex("base_url", "https://[", "base_url", "is not an address", "as https://api.wandb.ai"),
    in_vertex("base_url", "api:hunter2@c", "base_url", "holds a user name or a password", "from Secret Manager"),
    in_vertex("base_url", "https://a:b@c", "base_url", "holds a user name or a password", "the key comes from Secret Manager"),
    in_vertex("base_url", "https://w.example/graphql/", "base_url", "is the address of the GraphQL API", "https://w.example"),
    in_vertex("base_url", "https://wandb.ai", "base_url", "'https://wandb.ai' is the website", "Write https://api.wandb.ai"),
    in_vertex("base_url", "'https://a b'", "base_url", "'https://a b' is not an http or https", "as https://api.wandb.ai"),
    in_vertex("key_secret", "wandb-key", "key_secret", "is not the name of a secret version", "projects/my-project/secrets/"),
    in_vertex("key_secret", "projects/p/secrets/s", "key_secret", "names a secret without its version", "Append /versions/lat"),
    in_vertex("key_ttl", "-1", "key_ttl", "-1 is not a number of 0 or more", "seconds for which the key is kept"),
    in_vertex("state_bucket", "state", "state_bucket", "'state' is not the address of a bucket", "gs://my-bucket/folder"),
    in_vertex("state_bucket", "gs://State", "state_bucket", "'gs://State' is not the address", "in small letters"),
    in_vertex("tick_topic", "ticks", "tick_topic", "'ticks' is not the name of a topic", "as projects/my-project/topics/ticks"),
    in_vertex("timeouts", "5", "timeouts", "5 is not a mapping", "as {create: 20} (limits in seconds)"),
    in_vertex("timeouts", "{raed: 5}", "timeouts.raed", "is no setting", "Did you mean read?"),
    in_vertex("timeouts", "{read: 0}", "timeouts.read", "0 is not a number greater than 0", "seconds for an answer of W&B"),
    in_vertex("timeouts", "{read: }", "timeouts.read", "has no value", "Write a finite number"),
    in_vertex("timeouts", "{read: 1 min}", "timeouts.read", "'1 min' is not a finite number", "Write a finite number"),
    in_vertex("timeouts", "{read: true}", "timeouts.read", "true is not a whole number", "seconds for an answer"),
    in_vertex(
        "timeouts", "{intent_grace: 30}", "timeouts.intent_grace", "30 s is not longer than create and margin", "Lengthen"
    ),
    in_vertex("timeouts", "{create: 50}", "lease", "60 s is not longer than timeouts.create and", "Shorten timeouts.create"),
    in_vertex("lease", "30", "lease", "30 s is not longer than timeouts.create and timeouts.margin together, 30 s", "acked"),
    in_vertex("batches", "{pops: 0}", "batches.pops", "0 is not a number of 1 or more", "queue items asked for in one request"),
    in_vertex("submissions_per_minute", "many", "submissions_per_minute", "'many' is not a whole number", "Vertex AI's quota"),
    in_vertex("parallel_creates", "0", "parallel_creates", "0 is not a number of 1 or more", "creates under way at once"),
    in_vertex("give_up_after", "0", "give_up_after", "0 is not a number greater than 0", "seconds of deferrals"),
    *(
        in_vertex(
            "git_token_secrets",
            f'{{"{host}": {SECRET}}}',
            f"git_token_secrets.{host}",
            "is not the name of a host",
            "Write it alone",
        )
        for host in ("https://github.com", "github.com/acme", "gitlab.corp:8443", "*.corp")
    ),
    in_vertex("start_timeout", ".nan", "start_timeout", "nan is not", "WANDB_LAUNCH_START_TIMEOUT wins"),
    in_vertex("api_key_secret", SECRET, "api_key_secret", "is no setting", "Did you mean key_secret?"),
    in_vertex("max_jobs", "5", "max_jobs", "does not belong here", "Move it to launch-config.yaml"),
    in_vertex("policy", "{image: [a]}", "policy.image", "is no setting", "Did you mean images?"),
    in_vertex("policy", "{images: }", "policy.images", "has no value", "Remove the line to allow everything, or write what is"),
    in_vertex("policy", "{max_replicas: }", "policy.max_replicas", "has no value", "Remove the line"),
    in_vertex("policy", "{images: '*'}", "policy.images", "'*' is not a list", "Write a list (container and executor images)"),
    in_vertex("policy", "{images: ['']}", "policy.images[0]", "'' is empty", "Write the name alone"),
    in_vertex("policy", "{accelerators: [T4]}", "policy.accelerators", "a list is not a mapping", "as {NVIDIA_TESLA_T4: 2}"),
    in_vertex("policy", "{accelerators: {T4: x}}", "policy.accelerators.T4", "'x' is not a whole number", "greatest count"),
    in_vertex("policy", "{accelerators: {T4: -1}}", "policy.accelerators.T4", "-1 is not a number of 0 or more", "greatest"),
    in_vertex("policy", "{accelerators: {4: 1}}", "policy.accelerators[4]", "is no key, keys are text", "Put it in quotes"),
    in_vertex("policy", "{environment_macros: }", "policy.environment_macros", "has no value", "Remove the line"),
    in_vertex(
        "policy", "{environment_macros: [A]}", "policy.environment_macros[0]", "A is not set in the env", "Set A for the"
    ),
    in_vertex(
        "policy", "{environment_macros: [a b]}", "policy.environment_macros[0]", "'a b' is not the name", "as TEAM_BUCKET"
    ),
    *(
        in_vertex(
            "policy", f"{{environment_macros: [{name}]}}", "policy.environment_macros[0]", f"{name} looks like a cred", "Rem"
        )
        for name in ("WANDB_API_KEY", "KEY", "my_key", "HF_TOKEN", "TOKENS", "A_SECRET_B", "PGPASSWORD", "GOOGLE_CREDENTIALS")
    ),
    # the environment
    in_environment("WANDB_LAUNCH_MAX_JOBS", "five", "'five' is not a whole number", "Write a whole number, as 5"),
    in_environment("WANDB_LAUNCH_START_TIMEOUT", "-5", "'-5' is not a number of 0 or more", "0 is no limit"),
    in_environment("WANDB_LAUNCH_START_TIMEOUT", "nan", "'nan' is not a", "seconds that a job may be PENDING"),
    in_environment("WANDB_BASE_URL", "api.wandb.ai", "'api.wandb.ai' is not an http or https address", "as https://api."),
    in_environment("WANDB_ENTITY", " me", "' me' is empty or has spaces", "Write the name alone"),
    in_environment("GOOGLE_CLOUD_PROJECT", "a b", "'a b' is not a project id", "Write the id"),
    in_environment("GOOGLE_CLOUD_REGION", "us-east4,moon", "'moon' is not a region", "as us-central1", ", entry 2"),
    in_environment("GOOGLE_CLOUD_REGION", " , ", "is empty", "Name at least one"),
    in_environment("GOOGLE_CLOUD_REGION", "us-east4,us-east4", "'us-east4' stands there more than once", "each one once"),
    in_environment("STAGING_BUCKETS", "gs://a,gs://b", "names 2 buckets for 1 regions", "STAGING_BUCKETS=gs://one,gs://two"),
    in_environment("STAGING_BUCKETS", "staging", "'staging' is not the address", "gs://", ", entry 1"),
    in_environment("STATE_BUCKET", "bucket", "'bucket' is not the address of a bucket", "gs://my-bucket"),
    in_environment("DISPATCH_TOPIC", "ticks", "'ticks' is not the name of a topic", "projects/my-project/topics/ticks"),
    in_environment("AIPLATFORM_ENDPOINT", "ftp://x", "'ftp://x' is not host or host:port", "http://127.0.0.1:8080 for plain"),
    in_environment("SECRETMANAGER_ENDPOINT", "a/b", "'a/b' is not host or host:port", "without credentials"),
]
# fmt: on


@pytest.mark.parametrize(("launch", "changes", "environ", "place", "found", "remedy"), WRONG)
def test_each_problem_says_where_what_and_how_to_mend_it(
    load: Load,
    launch: str,
    changes: dict[str, str | None],
    environ: dict[str, str],
    place: str,
    found: str,
    remedy: str,
) -> None:
    (problem,) = problems(load, launch, vertex(**changes), **environ)
    assert problem.place == place
    assert found in problem.found
    assert remedy in problem.remedy
    assert not any(key in str(problem) for key in (*KEYS, "hunter2"))


def test_a_macro_whose_value_is_a_key(load: Load) -> None:
    (problem,) = problems(load, LAUNCH, vertex(policy="{environment_macros: [HARMLESS]}"), HARMLESS=NEW_KEY)
    assert problem.found.startswith("HARMLESS looks like a credential")
    assert NEW_KEY not in str(problem)


def test_a_staging_bucket_keeps_its_place_when_the_environment_picks_its_region(load: Load) -> None:
    own = vertex(regions="[{name: us-east4}, {name: us-west1, staging_bucket: b}]")
    (problem,) = problems(load, LAUNCH, own, GOOGLE_CLOUD_REGION="us-west1")
    assert problem.place == "vertex-launch.yaml: regions[1].staging_bucket"


def test_what_the_environment_overrides_is_checked_all_the_same(load: Load) -> None:
    own = vertex(project="My Project", regions="{us-central1: gs://a}")
    environ = {"GOOGLE_CLOUD_PROJECT": "p-1", "GOOGLE_CLOUD_REGION": "us-central1", "WANDB_LAUNCH_MAX_JOBS": "1"}
    found = problems(load, "queues: [q]\nmax_jobs: five", own, **environ)
    assert [problem.place for problem in found] == [f"{L}: max_jobs", f"{V}: project", f"{V}: regions"]


def test_the_official_region_is_named_as_the_place(load: Load) -> None:
    launch = "queues: [q]\nenvironment: {type: gcp, region: us-east4-b}"
    (problem,) = problems(load, launch, vertex(regions=None))
    assert (problem.place, problem.remedy[:26]) == (f"{L}: environment.region", "Write its region, us-east4")


def test_every_problem_is_reported_at_once(load: Load) -> None:
    found = problems(
        load,
        "queue: a\nmax_jobs: five\nenvironment: {type: aws}\n",
        "lease: 10\ndeployment: A\npolicy: {environment_macros: [NO_SUCH]}\nregions: [{name: x}, {name: us-east4, b: 1}]\n",
        STATE_BUCKET="b",
        AIPLATFORM_ENDPOINT="a b",
    )
    assert {problem.place for problem in found} == {
        f"{L}: queue",
        f"{L}: queues",
        f"{L}: max_jobs",
        f"{L}: environment.type",
        f"{V}: lease",
        f"{V}: deployment",
        f"{V}: policy.environment_macros[0]",
        f"{V}: regions[0].name",
        f"{V}: regions[1].b",
        f"{V}: project",
        f"{V}: key_secret",
        f"{E} STATE_BUCKET",
        f"{E} AIPLATFORM_ENDPOINT",
    }
    assert len(found) == 13


def test_files_that_cannot_be_had(load: Load, tmp_path: Path) -> None:
    (missing,) = problems(load, None)
    assert missing.place == L
    assert missing.found == f"there is no file {tmp_path / L}"
    assert "set LAUNCH_CONFIG to its path; one line, `queues: [my-queue]`, will do" in missing.remedy
    (named,) = problems(load, LAUNCH, "", VERTEX_LAUNCH_CONFIG="other.yaml")
    assert (named.place, named.found) == ("other.yaml", f"there is no file {tmp_path / 'other.yaml'}")
    assert "unset VERTEX_LAUNCH_CONFIG" in named.remedy
    (folder,) = problems(load, LAUNCH, vertex(), LAUNCH_CONFIG=str(tmp_path))
    assert (folder.place, folder.found) == (str(tmp_path), "cannot be read: Is a directory")
    assert folder.remedy == "Make it a file that this process may read"
    (binary,) = problems(load, b"queues: [\xff]")
    assert binary.place == L
    assert binary.found.startswith("is no text that YAML allows: ")
    assert binary.remedy == "Save it as plain UTF-8 text"


def test_a_broken_file_does_not_make_its_settings_missing(load: Load) -> None:
    found = problems(load, "queues: [", "project: [", GOOGLE_CLOUD_REGION="")
    assert [problem.place.split(",")[0] for problem in found] == [L, V]


def test_both_a_value_and_the_text_of_a_file_are_looked_at(load: Load) -> None:
    found = problems(load, f"queues: [a]\nqueues: 5\nentity: '{OLD_KEY}'\nmax_jobs: five", vertex())
    assert [problem.place for problem in found] == [f"{L}: queues", f"{L}: entity", f"{L}: max_jobs"]


def test_descriptions_name_the_variables_that_win() -> None:
    for variable, field in VARIABLES.items():
        if not field.endswith("_endpoint"):
            assert f"{variable} wins" in str(Settings.model_fields[field].description)


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
        said = "\n".join(load(launch, own, **environ).warnings)
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
    assert all(problem.place.startswith(f"{L}: ") for problem in found)


def test_the_official_agent_knows_the_same_top_level_keys(official: Any) -> None:
    from wandb.sdk.launch.agent.config import AgentConfig, BuilderConfig, RegistryConfig

    assert set(AgentConfig.model_fields) == set(AgentSettings.model_fields)
    own = {field.alias or name for name, field in config.Builder.model_fields.items()}
    assert {field.alias or name for name, field in BuilderConfig.model_fields.items()} <= own
    assert set(RegistryConfig.model_fields) <= set(config.Registry.model_fields)


@pytest.mark.parametrize("text", ["max_jobs: yes", "secure_mode: 'no'", "stopped_run_timeout: -5", "verbosity: -1"])
def test_where_we_are_stricter_on_purpose(load: Load, official: Any, tmp_path: Path, text: str) -> None:
    problems(load, f"{LAUNCH}{text}\n")
    assert official(tmp_path / LAUNCH_FILE) is not None


# The examples


def uncommented(name: str) -> str:
    """Give an example with its optional settings switched on: lines that begin with ``#`` and no space behind it."""
    lines = (ROOT / name).read_text().splitlines()
    return "\n".join(re.sub(r"^#(?=\w|  \w)", "", line) for line in lines)


def test_the_examples_load_as_they_are() -> None:
    loaded = config.load({}, ROOT)
    assert loaded.warnings == ()
    assert (loaded.entity, loaded.queues, loaded.max_jobs) == ("acme", ("vertex-cpu", "vertex-gpu"), 5)
    assert loaded.project == "demo-project"
    assert loaded.regions == (
        Region(name="us-central1", staging_bucket="gs://demo-staging"),
        Region(name="us-east4", staging_bucket="gs://demo-staging-east"),
    )
    assert loaded.key_secret == "projects/demo-project/secrets/wandb-api-key/versions/latest"
    assert (loaded.state_bucket, loaded.tick_topic) == (
        "gs://demo-state/vertex-launch",
        "projects/demo-project/topics/ticks",
    )


def test_the_official_agent_reads_the_example(official: Any) -> None:
    assert official(ROOT / LAUNCH_FILE)["limits"] == [5, 1]


def test_the_examples_show_every_setting_with_its_default(load: Load) -> None:
    launch, own = uncommented(LAUNCH_FILE), uncommented(VERTEX_FILE)
    assert yaml.safe_load(launch).keys() == AgentSettings.model_fields.keys()
    shown = yaml.safe_load(own)
    assert shown.keys() == DeploymentSettings.model_fields.keys()
    for section, model in (("timeouts", config.Timeouts), ("batches", config.Batches), ("policy", config.Policy)):
        assert shown[section].keys() == model.model_fields.keys()
    loaded = load(launch, own, TEAM_BUCKET="gs://team")
    assert loaded.warnings == ()
    as_they_are = config.load({}, ROOT)
    told_only = {"policy", "macro_values", "registry", "builder", "base_image", "git_token_secrets"}
    assert loaded.model_dump(exclude=told_only) == as_they_are.model_dump(exclude=told_only)
