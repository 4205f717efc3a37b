"""``verify`` against the local services on a clock that a test owns: what it measures, and what it leaves behind."""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.aiplatform_v1 import JobState

from local.standins.secrets import SecretServer
from local.standins.vertex import job_errors
from local.standins.vertex.job_errors import JobError
from local.standins.vertex.jobs import Jobs
from local.standins.vertex.server import Limits, VertexServer
from local.standins.wandb import WandbServer
from tests.support.processes import ROOT
from vertex_launch.__main__ import main
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.codes import Code
from vertex_launch.job import environment
from vertex_launch.log import LOGGER
from vertex_launch.verify import assumptions, cli
from vertex_launch.verify.assumptions import Group
from vertex_launch.verify.bench import Clock

PROJECT, ENTITY, QUEUE = "demo-project", "acme-research", "vertex-cpu"
KEY = "verifies" * 5
SECRET = f"projects/{PROJECT}/secrets/wandb-api-key"
JOBS = f"jobs@{PROJECT}.iam.gserviceaccount.com"
OFFLINE = ("wandb", "vertex")
"""The groups that need no deployment."""


class Time:
    """A clock that a test owns. What is due happens while the command sleeps."""

    def __init__(self) -> None:
        self.now = 1_790_000_000.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __call__(self) -> float:
        return self.now

    def later(self, seconds: float, what: Callable[[], object]) -> None:
        with self._lock:
            heapq.heappush(self._due, (self.now + seconds, next(self._numbers), what))

    def sleep(self, seconds: float) -> None:
        until = self.now + seconds
        while self._due and self._due[0][0] <= until:
            with self._lock:
                at, _, what = heapq.heappop(self._due)
            self.now = max(self.now, at)
            what()
        self.now = until


class Machines:
    """Runs jobs on the clock: what each does is in the name that the command gives it."""

    def __init__(self, time: Time, wandb: WandbServer) -> None:
        self.errors: dict[str, JobError | None] = {
            "run": None,
            "exit": job_errors.exited(3),
            "memory": job_errors.out_of_memory(137),
            "image": job_errors.image_not_found("python:none"),
        }
        self.run_lag = 1.0
        self.on_launch: Callable[[], object] = lambda: None
        self._time = time
        self._wandb = wandb
        self._jobs: Jobs | None = None

    def launch(self, name: str, jobs: Jobs) -> None:
        self._jobs, kind = jobs, jobs.get(name).display_name.rpartition(" ")[2]
        waits = frozenset({JobState.JOB_STATE_QUEUED, JobState.JOB_STATE_PENDING})
        self._time.later(30, lambda: self._begin(name, kind, jobs, waits))
        if kind in self.errors:
            self._time.later(200, lambda: self._end(name, kind, jobs))
        self.on_launch()

    def _begin(self, name: str, kind: str, jobs: Jobs, waits: frozenset[JobState]) -> None:
        if jobs.move(name, waits, JobState.JOB_STATE_RUNNING) and kind == "run":
            entity, project, run = self._run(name)
            self._wandb.store.project(entity, project)
            self._wandb.store.runs.upsert(entity, project, run, username="ada")

    def _end(self, name: str, kind: str, jobs: Jobs) -> None:
        error = self.errors[kind]
        end = JobState.JOB_STATE_FAILED if error else JobState.JOB_STATE_SUCCEEDED
        if jobs.move(name, {JobState.JOB_STATE_RUNNING}, end, error) and kind == "run":
            self._time.later(self.run_lag, lambda: self._finish(self._run(name)))

    def _finish(self, run: tuple[str, str, str]) -> None:
        if self._wandb.store.runs.get(*run):
            self._wandb.store.runs.upsert(*run, username="ada", state="finished")

    def _run(self, name: str) -> tuple[str, str, str]:
        assert self._jobs is not None
        variables = environment.read(self._jobs.get(name).job_spec.worker_pool_specs[0].container_spec.env)
        return variables[environment.ENTITY], variables[environment.PROJECT], variables[environment.RUN]

    def cancel(self, name: str) -> None:
        cancelling, cancelled = {JobState.JOB_STATE_CANCELLING}, JobState.JOB_STATE_CANCELLED
        jobs = self._jobs
        assert jobs is not None
        self._time.later(5, lambda: jobs.move(name, cancelling, cancelled, job_errors.CANCELLED))

    def stop(self) -> None:
        pass


class World:
    """The services and the settings of a deployment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = Time()
        self.settings: dict[str, Any] = {
            "project": PROJECT,
            "regions": [{"name": "us-central1", "staging_bucket": "gs://demo-staging"}],
            "key_secret": f"{SECRET}/versions/latest",
            "state_bucket": "gs://demo-state/record",
            "jobs_account": JOBS,
        }
        people = {"teams": {ENTITY: ["ada"]}, "default_entities": {"ada": ENTITY}, "api_keys": {KEY: "ada"}}
        self.wandb = WandbServer(clock=self.time, lease=60, crash_after=10_000, **people)  # type: ignore[arg-type]
        self.machines = Machines(self.time, self.wandb)
        limits = Limits(submissions_per_minute=10_000, requests_per_minute=10_000)
        self.vertex = VertexServer(clock=self.time, runner=self.machines, limits=limits)
        self.secrets = SecretServer(projects={PROJECT: "415104041262"})
        self.secrets.add(SECRET, KEY)
        self.wandb.store.create_queue(ENTITY, QUEUE)
        self.servers = (self.wandb, self.vertex, self.secrets)
        self.limits = limits
        limits.denied_accounts = _Unknown()

    def variables(self) -> dict[str, str]:
        for name, content in (
            ("launch.yaml", {"entity": ENTITY, "queues": [QUEUE]}),
            ("vertex.yaml", self.settings),
        ):
            (self.folder / name).write_text(yaml.safe_dump(content))
        return {
            "LAUNCH_CONFIG": str(self.folder / "launch.yaml"),
            "VERTEX_LAUNCH_CONFIG": str(self.folder / "vertex.yaml"),
            "WANDB_BASE_URL": self.wandb.url,
            "AIPLATFORM_ENDPOINT": f"http://{self.vertex.address}",
            "SECRETMANAGER_ENDPOINT": f"http://{self.secrets.address}",
            "STORAGE_EMULATOR_HOST": "http://127.0.0.1:9",
            "PUBSUB_EMULATOR_HOST": "127.0.0.1:9",
        }

    def leftovers(self) -> dict[str, list[str]]:
        """Return what is left in W&B and Vertex AI besides what was there before."""
        self.time.sleep(60)
        store = self.wandb.store
        alive = [job.display_name for job in self.vertex.jobs.values() if not job.end_time]
        agents = [agent.id for agent in store.agents.values() if agent.agent_status != "KILLED"]
        queues = [queue.name for queue in store.queues.values() if queue.name != QUEUE]
        return {"jobs": alive, "agents": agents, "queues": queues, "runs": [run.name for run in store.runs.all()]}


NOTHING: dict[str, list[str]] = {"jobs": [], "agents": [], "queues": [], "runs": []}


class _Unknown(set[str]):
    """Every account but the deployment's own."""

    def __contains__(self, account: object) -> bool:
        return account != JOBS


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    for server in world.servers:
        server.start()
    yield world
    for server in world.servers:
        server.stop()


class Ran:
    """What one run of the command returned, printed and wrote."""

    def __init__(self, status: int, printed: str, progress: str, report: dict[str, Any]) -> None:
        self.status = status
        self.printed = printed
        self.progress = progress
        self.report = report
        self.findings: Mapping[str, Mapping[str, Any]] = {one["name"]: one for one in report.get("findings", ())}

    @property
    def verdicts(self) -> dict[str, str]:
        return {name: one["verdict"] for name, one in self.findings.items()}

    def unusual(self) -> dict[str, str]:
        return {name: verdict for name, verdict in self.verdicts.items() if verdict != "ok"}


Run = Callable[..., Ran]


@pytest.fixture
def run(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    for name in list(os.environ):
        if re.match(r"(WANDB|GOOGLE|VERTEX_LAUNCH|CLOUDSDK)_", name):
            monkeypatch.delenv(name)
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)

    def run(*arguments: str, only: str = ",".join(OFFLINE), yes: bool = True) -> Ran:
        for name, value in world.variables().items():
            monkeypatch.setenv(name, value)
        parser = argparse.ArgumentParser()
        cli.add(parser.add_subparsers())
        file = world.folder / "report.json"
        more = ["--json", str(file), *(["--only", only] if only else []), *(["--yes"] if yes else [])]
        status = cli.run(parser.parse_args(["verify", *more, *arguments]), Clock(world.time, world.time.sleep))
        printed = capsys.readouterr()
        assert KEY not in printed.out + printed.err
        return Ran(status, printed.out, printed.err, json.loads(file.read_text()) if file.exists() else {})

    return run


def names(*groups: str) -> set[str]:
    return {one.name for one in assumptions.ASSUMPTIONS if one.group in groups}


# Services that behave as assumed


def test_everything_fits_and_nothing_is_left(world: World, run: Run) -> None:
    ran = run()
    assert ran.unusual() == {}
    assert (ran.status, set(ran.verdicts)) == (0, names(*OFFLINE))
    assert world.leftovers() == NOTHING
    assert ran.report["left"] == []
    assert ran.findings["wandb-lease"]["suggested"]["lease"] == 60
    assert all(0 <= one["value"] < 90 for name, one in ran.findings.items() if one["value"] and "lease" in name)


def test_the_price_and_the_time_are_said_before(run: Run) -> None:
    assert "cost   nothing" in run(only="wandb-batches").printed
    ran = run(only="vertex-exit")
    assert re.search(r"cost   at most 0\.\d\d USD", ran.printed)
    assert re.search(r"time   about \d+ minutes", ran.printed)


def test_the_table_fits_eighty_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = run()
    assert max(len(line) for line in ran.printed.splitlines() if not line.startswith("Written to")) <= 80
    for name in names(*OFFLINE):
        assert re.search(rf"^ok    {name} ", ran.printed, re.MULTILINE)


def test_the_report_has_no_names(world: World, run: Run) -> None:
    world.settings |= {"deployment": "secret-team", "lease": 100}
    run("--keep")
    text = (world.folder / "report.json").read_text()
    for name in (KEY, ENTITY, PROJECT, QUEUE, JOBS, "secret-team", "demo-state", "wandb-api-key", str(world.folder)):
        assert name not in text


def test_names_that_are_words_do_not_garble_the_report(world: World, run: Run) -> None:
    world.settings |= {"deployment": "wandb", "jobs_account": f"lease@{PROJECT}.iam.gserviceaccount.com", "lease": 100}
    ran = run(only="wandb")
    assert set(ran.verdicts) == names("wandb")
    assert ran.findings["wandb-lease"]["setting"] == "lease"


# Services that do not


def test_a_lease_of_twenty_seconds(world: World, run: Run) -> None:
    world.wandb.store.launch.lease = 20
    ran = run(only="wandb")
    found = ran.findings["wandb-lease"]
    assert ran.unusual() == {"wandb-lease": "FAIL"}
    assert (ran.status, found["code"], found["suggested"]) == (1, Code.VERIFY_SETTING, {"lease": 20})
    assert "lease" in found["remedy"]
    assert "timeouts.create" in found["remedy"], "which has to be shorter than the lease"
    assert Code.VERIFY_SETTING in ran.printed


def test_a_lease_of_ten_minutes(world: World, run: Run) -> None:
    world.wandb.store.launch.lease = 200
    assert run(only="wandb-lease").findings["wandb-lease"]["suggested"] == {"lease": 200}
    world.wandb.store.launch.lease = 10_000
    assert run(only="wandb-lease").findings["wandb-lease"]["code"] == Code.VERIFY_DIFFERS


def test_lists_that_lag(world: World, run: Run) -> None:
    world.limits.list_lag = 200
    ran = run(only="vertex")
    found = ran.findings["vertex-list"]
    assert ran.unusual() == {"vertex-list": "FAIL"}
    assert 195 <= found["value"] <= 210
    assert found["suggested"]["timeouts.intent_grace"] >= 390
    assert found["code"] == Code.VERIFY_SETTING
    assert world.leftovers() == NOTHING


def test_lists_that_show_nothing(world: World, run: Run) -> None:
    world.limits.list_lag = 10_000
    assert run(only="vertex-list").findings["vertex-list"]["code"] == Code.VERIFY_DIFFERS
    assert world.leftovers() == NOTHING, "the names of the jobs are known"


def test_a_server_without_batches(world: World, run: Run) -> None:
    world.wandb.max_operations_per_request = 1
    ran = run(only="wandb")
    assert ran.verdicts["wandb-batches"] == "note"
    assert ran.findings["wandb-batches"]["suggested"]["batches.pops"] == 1
    assert "FAIL" not in ran.verdicts.values()


def test_errors_in_other_words(world: World, run: Run) -> None:
    world.machines.errors |= {
        "exit": JobError(3, "The training program did not succeed: 3."),
        "memory": JobError(8, "Resources are insufficient in region: us-central1."),
    }
    ran = run(only="vertex")
    assert ran.unusual() == {"vertex-exit": "note", "vertex-memory": "FAIL"}
    assert "did not succeed" in ran.findings["vertex-exit"]["words"]
    assert ran.findings["vertex-memory"]["code"] == Code.VERIFY_DIFFERS


def test_errors_that_come_late(world: World, run: Run) -> None:
    world.vertex.store.error_lag = 120
    world.machines.run_lag = 130
    ran = run(only="vertex")
    assert ran.unusual() == {"vertex-error-delay": "FAIL", "vertex-run-delay": "FAIL"}
    for name, seconds in (("vertex-error-delay", 120), ("vertex-run-delay", 130)):
        assert seconds - 5 <= ran.findings[name]["value"] <= seconds + 5
        assert ran.findings[name]["suggested"]["timeouts.settle_grace"] >= 1.8 * seconds


def test_errors_and_runs_that_never_come(world: World, run: Run) -> None:
    world.vertex.store.error_lag = 10_000
    world.machines.run_lag = 100_000
    ran = run(only="vertex")
    assert ran.verdicts["vertex-error-delay"] == ran.verdicts["vertex-run-delay"] == "FAIL"


def test_accounts_that_are_not_checked_at_once(world: World, run: Run) -> None:
    world.limits.denied_accounts = ()
    ran = run(only="vertex-account")
    assert ran.verdicts == {"vertex-account": "note"}
    assert world.leftovers() == NOTHING


def test_a_refusal_in_other_words(world: World, run: Run) -> None:
    world.vertex.faults.fail("CreateCustomJob", "INVALID_ARGUMENT", message="The account is not usable.", times=1)
    ran = run(only="vertex-account")
    assert ran.verdicts == {"vertex-account": "note"}
    assert "not usable" in ran.findings["vertex-account"]["words"]


@pytest.mark.parametrize("operation", ["launchAgent", "failRunQueueItem", "updateRunQueueItemWarning", "upsertSweep"])
def test_a_document_that_is_refused(world: World, run: Run, operation: str) -> None:
    world.wandb.faults.refuse(operation, "no such field", times=None)
    world.wandb.faults.fail(operation, 400, message="no such field", times=None)
    ran = run(only="wandb-documents")
    assert ran.verdicts["wandb-documents"] in ("note", "FAIL")
    assert "no such field" in ran.findings["wandb-documents"]["words"]
    assert world.leftovers()["queues"] == []


def test_a_run_whose_stop_is_not_shown(world: World, run: Run) -> None:
    world.wandb.store.runs.stop = lambda run: None  # type: ignore[method-assign]
    assert run(only="wandb-stop").verdicts == {"wandb-stop": "FAIL"}


def test_messages_that_are_cut(world: World, run: Run) -> None:
    launch, warn = world.wandb.store.launch, world.wandb.store.launch.warn

    def cut(item: Any, warning: Any) -> None:
        warning.message = warning.message[:300]
        warn(item, warning)

    launch.warn = cut  # type: ignore[method-assign]
    ran = run(only="wandb-warning,wandb-message-length")
    assert ran.verdicts == {"wandb-warning": "ok", "wandb-message-length": "note"}
    assert ran.findings["wandb-message-length"]["value"] == 300


def test_acks_that_are_never_refused(world: World, run: Run) -> None:
    def ack(item: Any, run_name: str) -> bool:
        item.settled, item.associated_run_id = "CLAIMED", run_name
        return True

    world.wandb.store.launch.ack = ack  # type: ignore[method-assign]
    assert run(only="wandb-refused-ack").verdicts == {"wandb-refused-ack": "FAIL"}


def test_pops_that_take_long(world: World, run: Run) -> None:
    world.wandb.faults.delay("popFromRunQueue", 3.5)
    ran = run(only="wandb-batches")
    assert ran.verdicts == {"wandb-batches": "note"}
    assert 15 <= ran.findings["wandb-batches"]["suggested"]["batches.pops"] <= 23


def test_queue_ids_in_another_form(world: World, run: Run) -> None:
    launch, create = world.wandb.store.launch, world.wandb.store.launch.create_agent

    def another_form(*given: Any, **more: Any) -> Any:
        agent = create(*given, **more)
        agent.run_queues = [f"queue/{one}" for one in agent.run_queues]
        return agent

    launch.create_agent = another_form  # type: ignore[method-assign]
    ran = run(only="wandb-agent-queues")
    assert ran.verdicts == {"wandb-agent-queues": "note"}
    assert "queue/" in ran.findings["wandb-agent-queues"]["words"]


def test_a_server_that_creates_no_agents(world: World, run: Run) -> None:
    world.wandb.faults.refuse("createLaunchAgent", "no agents here", times=None)
    ran = run(only="wandb")
    assert ran.unusual() == {"wandb-agent-queues": "note", "wandb-documents": "FAIL"}
    assert "no agents here" in ran.findings["wandb-agent-queues"]["words"]


@pytest.mark.parametrize("form", ["always", "never", "success: false", "late ack"])
def test_other_forms_of_refusals(world: World, run: Run, form: str) -> None:
    match form:
        case "late ack":
            world.wandb.store.launch.ack_after_lease = False
        case "success: false":
            world.wandb.acks_refused_in_errors = False
        case _:
            world.wandb.error_status = form  # type: ignore[assignment]
    assert run(only="wandb").unusual() == {}


def test_jobs_that_a_get_does_not_show_at_once(world: World, run: Run) -> None:
    world.vertex.faults.fail("GetCustomJob", "NOT_FOUND", times=3)
    assert run(only="vertex-get,vertex-labels").verdicts == {"vertex-get": "note", "vertex-labels": "ok"}


def test_jobs_that_never_begin(world: World, run: Run) -> None:
    world.machines.errors.clear()
    began = world.time.now
    ran = run(only="vertex")
    assert "RUNNING" in ran.findings["vertex-exit"]["measured"]
    assert ran.findings["vertex-exit"]["code"] == Code.VERIFY_NOT_MEASURED
    assert world.time.now - began < 1500, "all are waited for together"
    assert world.leftovers() == NOTHING


def test_every_question_and_change_of_the_product_is_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    public = {name for name in dir(WandbQueue) if not name.startswith("_") and callable(getattr(WandbQueue, name))}
    called: set[str] = set()

    def counted(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            called.add(name)
            return method(*given, **more)

        return call

    for name in public:
        monkeypatch.setattr(WandbQueue, name, counted(name, getattr(WandbQueue, name)))
    run(only="wandb-documents")
    assert public - called - {"default_entity"} == set(), "the same document as viewer"


# What goes wrong on the way


def test_one_that_fails_does_not_stop_the_others(world: World, run: Run) -> None:
    world.vertex.faults.fail("CreateCustomJob", "PERMISSION_DENIED", times=None)
    ran = run()
    assert {name for name, verdict in ran.verdicts.items() if verdict == "ok"} >= names("wandb")
    assert ran.findings["vertex-create"]["code"] == Code.VERIFY_NOT_MEASURED
    assert ran.status == 1
    assert world.leftovers() == NOTHING


def test_a_bug_in_one_does_not_stop_the_others(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vertex_launch.verify.queues.Queues.batches", lambda self: 1 / 0)
    ran = run(only="wandb-batches,wandb-agent-queues")
    assert ran.verdicts == {"wandb-batches": "FAIL", "wandb-agent-queues": "ok"}


@pytest.mark.parametrize(("number", "after"), [(signal.SIGINT, 5), (signal.SIGTERM, 80), (signal.SIGINT, 190)])
def test_a_signal_leaves_nothing_behind(world: World, run: Run, number: signal.Signals, after: float) -> None:
    world.limits.list_lag = 3
    world.time.later(after, lambda: os.kill(os.getpid(), number))
    ran = run()
    assert ran.status == 128 + number
    assert "skip" in ran.verdicts.values()
    assert world.leftovers() == NOTHING


def test_a_signal_while_a_job_is_created(world: World, run: Run) -> None:
    world.limits.list_lag = 10_000
    world.machines.on_launch = lambda: os.kill(os.getpid(), signal.SIGINT)
    assert run().status == 130
    assert len(world.vertex.jobs) == 1
    assert world.leftovers() == NOTHING


def test_a_second_signal_does_not_stop_the_removal(world: World, run: Run) -> None:
    world.time.later(5, lambda: os.kill(os.getpid(), signal.SIGINT))
    world.limits.list_lag = 30
    world.wandb.store.launch.delete_queues = _interrupted(world.wandb.store.launch.delete_queues)  # type: ignore[method-assign]
    assert run(only="wandb-batches,vertex-list").status in (1, 130)
    assert world.leftovers() == NOTHING


def _interrupted(call: Callable[..., Any]) -> Callable[..., Any]:
    def interrupted(*given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return call(*given)

    return interrupted


def test_what_cannot_be_removed_is_named(world: World, run: Run) -> None:
    world.wandb.faults.refuse("deleteRunQueues", "not yours", times=None)
    ran = run(only="wandb-batches")
    assert ran.status == 1
    assert Code.VERIFY_LEFT_BEHIND in ran.printed
    assert any("queue vertex-launch-verify-" in one for one in ran.report["left"])


def test_one_lost_answer_does_not_end_a_measurement(world: World, run: Run) -> None:
    world.time.later(20, lambda: world.wandb.faults.fail("project", 500, times=30))
    world.time.later(25, world.wandb.faults.clear)
    assert run(only="wandb-lease").unusual() == {}


def test_a_queue_whose_create_is_not_answered(world: World, run: Run) -> None:
    world.wandb.faults.lose("createRunQueue")
    assert run(only="wandb-batches").unusual() == {}
    assert world.leftovers() == NOTHING


def test_a_key_that_may_not_create_queues(world: World, run: Run) -> None:
    world.wandb.faults.refuse("createRunQueue", "permission denied", status=403, times=None)
    ran = run(only="wandb-batches")
    assert "permission denied" in ran.findings["wandb-batches"]["words"]
    assert "--queue" in ran.findings["wandb-batches"]["words"]


def test_a_create_that_is_not_answered(world: World, run: Run) -> None:
    world.vertex.faults.lose("CreateCustomJob")
    world.limits.list_lag = 20
    ran = run(only="vertex-cancel")
    assert ran.verdicts == {"vertex-cancel": "FAIL"}
    assert len(world.vertex.jobs) == 1
    assert world.leftovers() == NOTHING


def test_a_run_whose_create_is_not_answered(world: World, run: Run) -> None:
    world.wandb.faults.lose("upsertBucket")
    assert run(only="wandb-stop").verdicts == {"wandb-stop": "FAIL"}
    assert world.leftovers() == NOTHING


# The options


def test_keep(world: World, run: Run) -> None:
    ran = run("--keep", only="wandb-batches,vertex-exit")
    assert ran.status == 0
    left = world.leftovers()
    assert len(left["queues"]) == 1
    assert left["queues"][0] in ran.printed
    assert any("vertex_launch=verify-" in one for one in ran.report["left"])


def test_the_help_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main(["verify", "--help"])
    shown = capsys.readouterr().out
    assert stopped.value.code == 0
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"  {one.name} " in shown for one in assumptions.ASSUMPTIONS)


def test_only(world: World, run: Run) -> None:
    ran = run(only="vertex-exit,wandb-batches")
    assert list(ran.verdicts) == ["wandb-batches", "vertex-exit"]
    assert [job.display_name.rpartition(" ")[2] for job in world.vertex.jobs.values()] == ["exit"]


def test_only_unknown_names(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(only="vertex-exit,wandb-leases")
    assert stopped.value.code == 2
    assert "wandb-leases" in capsys.readouterr().err


@pytest.mark.parametrize("answer", ["", "n\n", "no\n", "maybe\n"])
def test_the_question_is_refused(world: World, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    def read(question: str) -> str:
        if not answer:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", read)
    ran = run(yes=False)
    assert (ran.status, ran.report) == (3, {})
    assert world.leftovers() == NOTHING
    assert not world.wandb.store.asked().keys() & {"createRunQueue", "createLaunchAgent"}


def test_the_question_is_accepted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert run(yes=False, only="wandb-batches").status == 0


def test_a_named_queue_is_left_empty(world: World, run: Run) -> None:
    world.wandb.store.create_queue(ENTITY, "spare")
    ran = run("--queue", "spare", only="wandb")
    assert ran.unusual() == {}
    (spare,) = [queue for queue in world.wandb.store.queues.values() if queue.name == "spare"]
    assert spare.items == {}


@pytest.mark.parametrize("queue", [QUEUE, "missing", "full"])
def test_a_queue_that_cannot_be_used(world: World, run: Run, queue: str) -> None:
    world.wandb.store.create_queue(ENTITY, "full")
    world.wandb.store.push(ENTITY, "full", {"name": "of someone else"})
    ran = run("--queue", queue, only="wandb-batches")
    assert ran.status == (2 if queue == QUEUE else 1)
    assert not world.wandb.store.asked()["popFromRunQueue"]


def test_a_key_that_is_refused(world: World, run: Run) -> None:
    world.secrets.add(SECRET, "another0" * 5)
    assert run(yes=False).status == 2


def test_a_report_that_cannot_be_written(world: World, run: Run) -> None:
    assert run("--json", str(world.folder / "missing/report.json")).status == 2
    assert world.wandb.store.asked() == {}


def test_ctrl_c_at_the_question(world: World, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(question: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    assert run(yes=False).status == 130
    assert world.leftovers() == NOTHING


def test_every_group_has_a_name_for_only() -> None:
    assert {one.group for one in assumptions.ASSUMPTIONS} <= set(Group)
    assert len(assumptions.BY_NAME) == len(assumptions.ASSUMPTIONS)


def test_the_page_lists_every_assumption() -> None:
    page = (ROOT / "docs/verify.md").read_text()
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+?) \| `?([a-z_.]*)`? ?\|", page, re.MULTILINE)
    assert rows == [(one.name, one.assumed, one.setting) for one in assumptions.ASSUMPTIONS]


def test_every_place_exists() -> None:
    for one in assumptions.ASSUMPTIONS:
        path, _, anchor = one.place.partition("#")
        headings = re.findall(r"^#+ (.+)$", (ROOT / path).read_text(), re.MULTILINE)
        assert not anchor or anchor in [re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings]
