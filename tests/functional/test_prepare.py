"""Items that name a job artifact or a sweep, with an outside in memory."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support.memory import KEY, World, image_spec, scheduler_spec
from tests.support.specs import IMAGE, pool, run_spec
from tests.unit.test_job_source import CODE, PICTURE
from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected, Unavailable
from vertex_launch.job.environment import LONGEST, PLAN
from vertex_launch.log import Redactor
from vertex_launch.model import SCHEDULER_URI, JobArtifact, RunId, SchedulerView

JOB = "acme/demo/train:v3"


def world(**artifacts: Any) -> World:
    made = World(**artifacts.pop("settings", {}))
    made.artifacts.artifacts |= {JOB: JobArtifact(JOB, PICTURE), "acme/demo/code:latest": JobArtifact(JOB, CODE)}
    return made


def job_spec(job: str = JOB, **changes: Any) -> dict[str, Any]:
    return image_spec(docker={}, job=job, **changes)


def test_jobs_start_and_each_is_looked_up_once() -> None:
    one = world(settings={"max_jobs": 5})
    items = [one.queue.push("cpu", job_spec()) for _ in range(3)]
    code = one.queue.push("cpu", job_spec("code"))
    report = one.run()
    assert [started["item"] for started in report.submitted] == [*items, code]
    assert sorted(one.artifacts.asked) == ["acme/demo/code:latest", JOB]


def test_a_name_without_owner_is_the_runs_own() -> None:
    one = world()
    for name in ("train:v3", "demo/train:v3", JOB):
        one.queue.push("cpu", job_spec(name))
    one.run()
    assert one.artifacts.asked == [JOB]


def test_a_missing_job_fails_only_its_own_item() -> None:
    one = world(settings={"max_jobs": 2})
    bad, good = one.queue.push("cpu", job_spec("gone")), one.queue.push("cpu", job_spec())
    report = one.run()
    assert ([b["item"] for b in report.rejected], [g["item"] for g in report.submitted]) == ([bad], [good])


def test_an_item_waits_while_its_job_cannot_be_looked_up() -> None:
    one = world()
    one.artifacts.artifacts[JOB] = Unavailable("W&B", "503", code=Code.WANDB_UNAVAILABLE)
    item = one.queue.push("cpu", job_spec())
    assert [late["item"] for late in one.run().deferred] == [item]
    one.artifacts.artifacts[JOB] = JobArtifact(JOB, PICTURE)
    one.clock.sleep(120)
    assert [done["item"] for done in one.run().submitted] == [item]
    assert Code.ARTIFACT_UNAVAILABLE in one.queue.contents[item].warnings[0]


def test_an_image_beside_a_job_is_what_runs() -> None:
    one = world()
    one.queue.push("cpu", image_spec(job=JOB))
    one.run()
    assert one.artifacts.asked == []


def test_a_dry_run_shows_the_job_of_an_artifact() -> None:
    one = world()
    shown = one.preview(run_spec=job_spec()).shown["custom_job"]
    image: Any = PICTURE["source"]
    assert shown["job_spec"]["worker_pool_specs"][0]["container_spec"]["image_uri"] == image["image"]


@pytest.mark.parametrize("state", ["RUNNING", "PAUSED", "FINISHED", "CANCELED", "STOPPED", "CRASHED", ""])
def test_runs_of_a_sweep_start_until_it_is_over_and_then_fail(state: str) -> None:
    one = world()
    one.queue.sweep_states["s1"] = state
    item = one.queue.push("cpu", image_spec(sweep_id="s1"))
    one.run()
    if state in ("RUNNING", "PAUSED"):
        assert one.queue.state(item) == "CLAIMED"
    else:
        assert (Code.SWEEP_ENDED if state else Code.SWEEP_MISSING) in one.queue.contents[item].message


@pytest.mark.parametrize("state", ["PENDING", None])
def test_runs_of_a_sweep_that_is_pending_or_unknown_wait(state: str | None) -> None:
    one = world()
    one.queue.sweep_states["s1"] = state
    item = one.queue.push("cpu", image_spec(sweep_id="s1"))
    assert [late["item"] for late in one.run().deferred] == [item]
    one.queue.sweep_states["s1"] = "RUNNING"
    one.clock.sleep(120)
    assert [done["item"] for done in one.run().submitted] == [item]


def test_a_sweep_is_looked_up_in_its_project_as_written_although_runs_need_lower_case() -> None:
    one = world()
    item = one.queue.push("cpu", image_spec(sweep_id="s1", project="MyDemo"))
    one.run()
    assert ("sweeps", [RunId("acme", "MyDemo", "s1")]) in one.queue.sent
    assert one.vertex.of(item)[0].run.project == "mydemo"


def test_the_sweeps_of_a_round_cost_one_request() -> None:
    one = world(settings={"max_jobs": 5})
    for number in range(4):
        one.queue.push("cpu", image_spec(sweep_id=f"s{number % 2}"))
    one.run()
    assert one.queue.calls["sweeps"] == 1


def test_a_scheduler_does_not_wait_for_its_own_sweep() -> None:
    one = world()
    one.queue.sweep_states["s1"] = "PENDING"
    item = one.queue.push("cpu", scheduler_spec("s1"))
    assert [done["item"] for done in one.run().submitted] == [item]


SCHEDULER_JOB = job_spec(uri=SCHEDULER_URI, run_id="s1", overrides={"run_config": {"sweep_args": {"sweep_id": "s1"}}})


def test_a_scheduler_may_be_a_job() -> None:
    one = world()
    one.queue.launched["s1"] = SchedulerView("s1", "cpu", JOB)
    item = one.queue.push("cpu", SCHEDULER_JOB)
    assert [done["item"] for done in one.run().submitted] == [item]
    assert one.vertex.of(item)[0].kind == "scheduler"


@pytest.mark.parametrize(
    "view",
    [
        None,
        SchedulerView("s2", "cpu", JOB),
        SchedulerView("s1", "gpu", JOB),
        SchedulerView("s1", "cpu", ""),
        SchedulerView("s1", "cpu", "acme/demo/other:v1"),
    ],
)
def test_a_job_is_a_scheduler_only_if_its_sweep_says_so(view: SchedulerView | None) -> None:
    one = world()
    one.queue.launched |= {"s1": view} if view else {}
    item = one.queue.push("cpu", SCHEDULER_JOB)
    one.run()
    assert one.vertex.of(item)[0].kind == "job"


def test_a_job_of_another_entity_is_no_scheduler() -> None:
    one = world()
    one.queue.launched["s1"] = SchedulerView("s1", "cpu", JOB)
    item = one.queue.push("cpu", SCHEDULER_JOB | {"entity": "others"})
    one.run()
    assert one.vertex.of(item)[0].kind == "job"
    assert "schedulers" not in one.queue.calls


def test_a_scheduler_that_is_a_job_waits_for_an_answer_about_its_sweep() -> None:
    one = world()
    one.queue.launched["s1"] = SchedulerView("s1", "", JOB)
    one.queue.sweep_states["s1"] = None
    item = one.queue.push("cpu", SCHEDULER_JOB)
    assert [late["code"] for late in one.run().deferred] == [Code.SWEEP_UNAVAILABLE]
    one.queue.sweep_states["s1"] = "RUNNING"
    one.clock.sleep(120)
    one.run()
    assert one.vertex.of(item)[0].kind == "scheduler"


@pytest.mark.parametrize(
    "pools",
    [
        [pool(), pool(image_uri="other", command=["python", "train.py"])],
        [pool(), {}, pool()],
    ],
)
def test_a_scheduler_that_brings_other_work_takes_a_slot_of_jobs(pools: list[dict[str, Any]]) -> None:
    one = world()
    command = {"entry_point": ["wandb", "scheduler", "s1"]}
    spec = run_spec(*pools, uri=SCHEDULER_URI, run_id="s1", overrides=command)
    item = one.queue.push("cpu", spec)
    one.run()
    assert one.vertex.of(item)[0].kind == "job"


@pytest.mark.parametrize(
    "spec",
    [
        image_spec(uri=SCHEDULER_URI, overrides={"entry_point": ["python", "train.py"]}),
        image_spec(uri=SCHEDULER_URI),
        image_spec(uri=SCHEDULER_URI, overrides={"entry_point": ["wandb"], "args": ["scheduler"]}),
        job_spec(uri=SCHEDULER_URI, run_id="s1"),
        job_spec(uri=SCHEDULER_URI, overrides={"entry_point": ["python"], "run_config": {"sweep_args": {}}}),
    ],
)
def test_an_ordinary_job_that_calls_itself_a_scheduler_takes_a_slot_of_jobs(spec: dict[str, Any]) -> None:
    one = world()
    item = one.queue.push("cpu", spec)
    assert [done["item"] for done in one.run().submitted] == [item]
    assert one.vertex.of(item)[0].kind == "job"


@pytest.mark.parametrize("state", ["", None, "PENDING", "FINISHED", "CANCELED"])
def test_nothing_is_said_about_a_sweep_of_another_entity(state: str | None) -> None:
    one = world()
    one.queue.sweep_states["s1"] = state
    item = one.queue.push("cpu", image_spec(entity="others", sweep_id="s1"))
    one.run()
    (warning,) = one.queue.contents[item].warnings
    assert warning.endswith(f"[{Code.SWEEP_UNAVAILABLE}]")
    assert state is None or not state or state not in warning


def test_nothing_is_said_about_a_job_of_another_entity() -> None:
    def message(name: str) -> str:
        one = world()
        broken = JobArtifact("others/demo/exists:v0", {"_version": "v0", "source_type": "nothing"})
        one.artifacts.artifacts["others/demo/exists:v0"] = broken
        item = one.queue.push("cpu", image_spec(docker={}, job=name))
        one.run()
        return one.queue.contents[item].message.replace(name, "NAME")

    assert message("others/demo/exists:v0") == message("others/demo/missing:v0") != ""
    assert Code.ARTIFACT_NOT_FOUND in message("others/demo/missing:v0")


BUILT: Any = {"source_type": "artifact", "source": CODE["source"] | {"dockerfile": "Dockerfile"}}  # type: ignore[operator]
REPO = {"source_type": "repo", "source": {"git": {"remote": "https://g.example.com/a", "commit": "1"}}}


@pytest.mark.parametrize(
    ("description", "machine", "settings"),
    [
        (PICTURE, "m1-ultramem-160", {"policy": {"machine_types": ["n1-*"]}}),
        (PICTURE, "n1-standard-4", {"policy": {"images": ["ours/*"]}}),
        (PICTURE, "n1-standard-4", {"policy": {"images": []}}),
        (REPO, "n1-standard-4", {}),
        (BUILT, "n1-standard-4", {}),
    ],
)
def test_what_else_is_wrong_does_not_tell_whether_a_job_of_another_entity_exists(
    description: Any, machine: str, settings: dict[str, Any]
) -> None:
    def outcome(name: str) -> tuple[str, str]:
        one = world(settings=settings)
        one.artifacts.artifacts["others/demo/exists:v0"] = JobArtifact("others/demo/exists:v0", description)
        spec = run_spec(pool() | {"machine_spec": {"machine_type": machine}}, docker={}, job=name)
        item = one.queue.push("cpu", spec)
        one.run()
        return one.queue.state(item), one.queue.contents[item].message.replace(name, "NAME")

    assert outcome("others/demo/exists:v0") == outcome("others/demo/missing:v0")
    assert outcome("others/demo/missing:v0")[0] == "FAILED"


def test_a_job_of_another_entity_still_runs() -> None:
    one = world()
    for name, description in (("image", PICTURE), ("code", CODE)):
        one.artifacts.artifacts[f"others/demo/{name}:v0"] = JobArtifact(f"others/demo/{name}:v0", description)
        item = one.queue.push("cpu", job_spec(f"others/demo/{name}:v0"))
        assert [done["item"] for done in one.run().submitted] == [item]


@pytest.mark.parametrize("state", ["", None, "RUNNING", "FINISHED"])
def test_an_item_that_can_never_start_learns_nothing_about_a_sweep_of_another_entity(state: str | None) -> None:
    one = world(settings={"policy": {"machine_types": ["none"]}})
    one.queue.sweep_states["s1"] = state
    item = one.queue.push("cpu", image_spec(entity="others", sweep_id="s1"))
    one.run()
    assert Code.POLICY_MACHINE_TYPE in one.queue.contents[item].message


@pytest.mark.parametrize("resource", ["local-process", "local-container"])
def test_a_local_scheduler_that_is_none_is_rejected_and_not_left_to_other_agents(resource: str) -> None:
    one = world()
    item = one.queue.push("cpu", image_spec(uri=SCHEDULER_URI, resource=resource, resource_args={}))
    one.run()
    assert Code.SPEC_RESOURCE in one.queue.contents[item].message


LOCAL: dict[str, Any] = {"docker": {}, "resource": "local-process", "resource_args": {}}


@pytest.mark.parametrize("settings", [{}, {"secure_mode": True}, {"api_key_delivery": "secret"}], ids=str)
def test_a_scheduler_that_asks_for_no_machine_runs_by_itself(settings: dict[str, Any]) -> None:
    one = world(settings={"max_jobs": 5, **settings})
    command = {"entry_point": ["wandb", "scheduler", "sw1"], "args": ["--queue", "'cpu'", "--project", "demo"]}
    items = [one.queue.push("cpu", scheduler_spec(f"sw{number}", **LOCAL, overrides=command)) for number in (1, 2)]
    report = one.run()
    assert [(row["item"], row["run"]) for row in report.submitted] == [(items[0], "acme/demo/sw1")]
    assert [row["code"] for row in report.deferred] == [Code.SCHEDULER_LIMIT], "max_schedulers is 1"
    (job,) = one.vertex.jobs.values()
    (pool_,) = job.message.job_spec.worker_pool_specs
    container = pool_.container_spec
    assert (pool_.machine_spec.machine_type, pool_.replica_count) == ("e2-standard-4", 1)
    assert container.image_uri == "python:3.11-slim"
    assert list(container.command[:2]) == ["python3", "-c"]
    assert list(container.args) == ["wandb", "scheduler", "sw1", "--queue", "cpu", "--project", "demo"]
    plan = json.loads(next(one.value for one in container.env if one.name == PLAN).replace("$$", "$"))
    assert plan["client"] is True
    assert job.message.job_spec.service_account == "jobs@p.iam.gserviceaccount.com"


def test_a_policy_also_counts_for_a_scheduler_that_asks_for_no_machine() -> None:
    one = world(settings={"policy": {"machine_types": ["n1-*"]}})
    item = one.queue.push("cpu", scheduler_spec(**LOCAL))
    one.run()
    assert Code.POLICY_MACHINE_TYPE in one.queue.contents[item].message
    assert "sweeps.scheduler" in one.queue.contents[item].message


KEYS: dict[str, dict[str, Any]] = {
    "an argument": {"args": [f"--key={KEY}"]},
    "a variable": {"env": [{"name": "MINE", "value": KEY}]},
    "in base64": {"env": [{"name": "MINE", "value": base64.b64encode(KEY.encode()).decode()}]},
    "a name in the config": {"config": {"a": {KEY: 1}}},
    "a config that is split in the middle of it": {"config": {"a": "x" * (LONGEST - 27) + KEY}},
}


@pytest.mark.parametrize("place", KEYS)
@pytest.mark.parametrize("delivery", ["env", "secret"])
def test_a_key_in_a_run_spec_is_refused_if_the_deployment_keeps_keys_out_of_jobs(place: str, delivery: str) -> None:
    one = world(settings={"api_key_delivery": delivery})
    given = dict(KEYS[place])
    config = {"run_config": given.pop("config", {})}
    account = {"service_account": "jobs@p.iam.gserviceaccount.com"}
    asked = run_spec(pool(command=["python", "train.py"], **given), spec=account, overrides=config)
    item = one.queue.push("cpu", asked)
    report = one.run()
    if delivery == "env":
        assert [done["item"] for done in report.submitted] == [item]
    else:
        assert [bad["item"] for bad in report.rejected] == [item]
        assert Code.SPEC_KEY in one.queue.contents[item].message
        assert KEY not in one.queue.contents[item].message


def test_what_another_item_calls_its_key_does_not_count_as_a_key() -> None:
    """A name that stands in every item must not make all of them look as if they brought a key."""
    one = world(settings={"api_key_delivery": "secret"})
    account = {"service_account": "jobs@p.iam.gserviceaccount.com"}
    for own in (IMAGE, "worker_pool_specs", account["service_account"], "n1-standard-4"):
        one.queue.push("cpu", run_spec(_wandb_api_key=own))
    good = one.queue.push("cpu", run_spec(pool(command=["python", "train.py"]), spec=account))
    started = [row["item"] for _ in range(3) for row in one.run().submitted]
    assert started == [good]


def test_keys_that_items_bring_do_not_push_out_the_deployments_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Redactor, "MOST", 5)
    one = world()
    one.redact = Redactor()  # an instance that has just begun

    def refused(request: Any, create: Any) -> str:
        raise ItemRejected(f"Invalid environment: WANDB_API_KEY={KEY}.", code=Code.CREATE_INVALID)

    one.vertex.on_create = refused
    items = [one.queue.push("cpu", run_spec(_wandb_api_key=f"{number:040}")) for number in range(12)]
    items.append(one.queue.push("cpu", run_spec()))
    for _ in range(6):
        one.run()
    messages = [one.queue.contents[item].message for item in items]
    assert all("Invalid environment" in message for message in messages)
    assert KEY not in str(messages)
    assert KEY not in str(one.bucket.objects)


@pytest.mark.parametrize(
    "login", ["ghp_0123456789abcdefghij", "ann:ghp_0123456789abcdefghij", "ghp_0123:x-oauth-basic"]
)
def test_credentials_of_a_repository_are_not_shown(login: str) -> None:
    one = world()
    git = {"remote": f"https://{login}@git.example.com/a/b", "commit": "1"}
    source = {"git": git, "entrypoint": ["python", "train.py"]}
    one.artifacts.artifacts[JOB] = JobArtifact(JOB, {"source_type": "repo", "source": source})
    report = one.preview(run_spec=job_spec())
    assert "git.example.com/a/b" in str(report.body())
    assert "ghp_0123" not in str(one.redact.json(report.body()))

    def refused(request: Any, create: Any) -> str:
        raise ItemRejected(f"Invalid value: {request.custom_job}.", code=Code.CREATE_INVALID)

    one.vertex.on_create = refused
    item = one.queue.push("cpu", job_spec())
    one.redact = Redactor()
    one.run()
    assert "git.example.com/a/b" in one.queue.contents[item].message
    assert "ghp_0123" not in one.queue.contents[item].message
