"""Measures what is assumed about Vertex AI, with jobs on the smallest machine that runs a public Python image."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Key
from vertex_launch.errors import CodedError, ItemDeferred, ItemRejected, OutcomeUnknown
from vertex_launch.job import outcome
from vertex_launch.job.build import build
from vertex_launch.job.run_spec import parse
from vertex_launch.model import Item, ManagedJob, RunId
from vertex_launch.settings.config import Policy, Settings
from vertex_launch.verify.bench import Bench
from vertex_launch.verify.findings import Finding, fail, note, ok, short, unmeasured
from vertex_launch.verify.queues import PROJECT, REPORT, Queues

MACHINE = "e2-standard-4"
"""The smallest machine of Vertex AI's custom jobs."""
IMAGE = f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
NO_IMAGE = "python:vertex-launch-verify-does-not-exist"
PRICE = 0.25
"""US dollars for an hour of the machine, rounded up: regions differ, and prices change."""
LIMIT = 900
"""Seconds after which Vertex AI ends a job of the command."""
PATIENCE = LIMIT + 300.0
"""Seconds after its create after which the end of a job is not waited for."""
STATUS = 3
LAST_WORDS = 60.0
"""Seconds that a cancelled job has to end before its run is deleted."""
LAST_STATES = ("finished", "failed", "crashed", "killed")

_START = """
try:
    import wandb
except ImportError:
    import subprocess, sys
    subprocess.check_call([sys.executable, "-m", "pip", "install", "--quiet", "--root-user-action=ignore", "wandb"])
    import wandb
"""
PROGRAMS = {
    "run": f"{_START}\nimport time\nrun = wandb.init()\nrun.log({{'verify': 1}})\ntime.sleep(20)\nrun.finish()\n",
    "item": f"{_START}\nrun = wandb.init()\nrun.log({{'verify': 1}})\nrun.finish()\n",
    "exit": f"raise SystemExit({STATUS})",
    "memory": (
        "import os, signal\ntaken = []\ntry:\n    while len(taken) < 4096:\n        taken.append(b'x' * 2**25)\n"
        "except MemoryError:\n    pass\nos.kill(os.getpid(), signal.SIGKILL)\n"
    ),
    "image": "raise SystemExit(0)",
    "cancel": "import time\ntime.sleep(600)\n",
}
"""What the jobs run. ``memory`` ends as a program does for which the kernel has no memory, also if it gets an error."""

EXPECTED = {
    "exit": ("vertex-exit", Code.JOB_EXIT),
    "memory": ("vertex-memory", Code.JOB_MEMORY),
    "image": ("vertex-image", Code.JOB_IMAGE),
}
"""The assumption that a failed job is for, and what the product takes its error for."""

ACCOUNT_CODES = frozenset({Code.CREATE_PERMISSION})
"""What the product takes the refusal of a create with a wrong account for."""


@dataclass
class Made:
    """A job: its name, when its create was sent, and when it was first seen ended and with an error."""

    name: str
    asked: float
    created: float
    run: RunId
    ended: float = 0.0
    error_seen: float = 0.0
    run_seen: float = 0.0
    """When its run was first seen in its last state, which is ``run_state``."""
    run_state: str = ""
    view: ManagedJob | None = None


class Jobs:
    """The jobs that the command creates, in the first region, under a deployment of their own that no function serves."""

    def __init__(self, bench: Bench, vertex: VertexJobs, key: Key, queues: Queues) -> None:
        """Take ``vertex`` for the settings that ``own_settings`` returns."""
        self._bench = bench
        self._vertex = vertex
        self._key = key
        self._queues = queues
        self._made: dict[str, Made] = {}
        self._failed: dict[str, CodedError] = {}
        self._swept = False
        bench.watchers.append(self._note_ends)
        self.region = bench.settings.regions[0].name
        self._settings = own_settings(bench)

    def begin(self, *wanted: str) -> None:
        """Create jobs that later measurements wait for."""
        for kind in wanted:
            if kind not in self._made and kind not in self._failed:
                try:
                    self._made[kind] = self._create(kind)
                except (ItemRejected, ItemDeferred, OutcomeUnknown) as error:  # their measurements report it
                    self._failed[kind] = error

    def create(self) -> Iterator[Finding]:
        """Create the first job, and look at it at once and in lists."""
        made = self._job("run")
        took, limit = made.created - made.asked, self._settings.timeouts.create
        yield ok(
            "vertex-create", f"it is accepted after {took:.1f} s; timeouts.create: {limit:g}", value=round(took, 2)
        )
        job, at_once = self._vertex.get(made.name), True
        if job is None:
            (job, seconds), at_once = self._bench.until(lambda: self._vertex.get(made.name), 60), False
        if job is None:
            yield unmeasured("vertex-labels", "a get does not show the job")
            yield fail(
                Code.VERIFY_DIFFERS, "vertex-get", "a get does not show the job, or not as the deployment's", REPORT
            )
        else:
            if at_once:
                yield ok("vertex-get", "a get shows it at once")
            else:
                yield note("vertex-get", f"a get shows it after {seconds:.0f} s; passes wait for two signs")
            yield self._labels(job, made)
        yield self._list(made)

    def _labels(self, job: ManagedJob, made: Made) -> Finding:
        name = "vertex-labels"
        if job.run == made.run and job.item == _item(self._bench, "run") and not job.error:
            return ok(name, "they come back as they were sent")
        return fail(Code.VERIFY_DIFFERS, name, "they come back changed", REPORT, words=str(job.run))

    def _list(self, made: Made) -> Finding:
        name, settings, setting = "vertex-list", self._bench.settings, "timeouts.intent_grace"
        grace = settings.timeouts.intent_grace
        most = max(300.0, 3 * grace)

        def listed() -> bool | None:
            shown = self._vertex.recent(self.region, made.asked - 600)
            return True if any(job.name == made.name for job in shown) else None

        seen, _ = self._bench.until(listed, most)
        seconds = self._bench.clock.now() - made.created
        fits = max(grace, _rounded(2 * seconds))
        more: dict[str, Any] = {"value": round(seconds, 1), "suggested": {setting: fits}}
        where = settings.where("timeouts", "intent_grace")
        if seen is None:
            measured = f"no list shows it after {seconds:.0f} s"
            return fail(Code.VERIFY_DIFFERS, name, measured, f"{REPORT}, and set {where} to {fits:g}", **more)
        measured = f"a list shows it after {seconds:.0f} s; intent_grace: {grace:g}"
        if seconds > grace:
            return fail(Code.VERIFY_SETTING, name, measured, f"Set {where} to {fits:g}", **more)
        if seconds > grace / 2:
            return note(name, f"{measured} leaves little room", f"Set {where} to {fits:g}", **more)
        return ok(name, f"{measured} fits", **more)

    def cancel(self) -> Iterator[Finding]:
        """Cancel a job and wait for its end."""
        name, made = "vertex-cancel", self._job("cancel")
        began = self._bench.clock.now()
        self._vertex.cancel(made.name)
        job = self._end("cancel")
        if job is None:
            yield fail(Code.VERIFY_DIFFERS, name, self._goes_on("cancel"), REPORT)
            return
        seconds = self._bench.clock.now() - began
        measured = f"it is {job.state.removeprefix('JOB_STATE_')} after {seconds:.0f} s"
        more: dict[str, Any] = {"value": round(seconds, 1), "words": job.error}
        if job.state == outcome.CANCELLED:
            yield ok(name, measured, **more)
        else:
            yield fail(Code.VERIFY_DIFFERS, name, measured, REPORT, **more)

    def account(self) -> Iterator[Finding]:
        """Create a job as an account that does not exist."""
        name = "vertex-account"
        account = f"vertex-launch-none-{self._bench.mark}@{self._settings.project}.iam.gserviceaccount.com"
        try:
            made = self._create("account", account=account)
        except (ItemRejected, ItemDeferred) as error:
            kind = "deferred" if isinstance(error, ItemDeferred) else "rejected"
            measured = f"it is {kind} as {error.message.code}"
            if error.message.code in ACCOUNT_CODES:
                yield ok(name, measured, words=error.message.text)
            else:
                yield note(name, f"{measured}; the item shows Vertex AI's words", REPORT, words=error.message.text)
            return
        self._vertex.cancel(made.name)
        yield note(name, "the create is accepted, so the job fails later; it is cancelled now")

    def failed(self, kind: str) -> Iterator[Finding]:
        """Wait for a job that fails and look at its error."""
        name, expected = EXPECTED[kind]
        self.begin(kind)
        if kind in self._failed:
            error = self._failed[kind]
            measured, words = f"the create is refused as {error.message.code}", error.message.text
            fits = kind == "image" and isinstance(error, ItemRejected)
            yield note(name, measured, words=words) if fits else unmeasured(name, f"{measured}: {words}")
        elif (job := self._end(kind)) is None:
            yield unmeasured(name, self._goes_on(kind))
        else:
            yield self._text(name, expected, kind, job)

    def error_delay(self) -> Iterator[Finding]:
        """Wait for the jobs that fail, and return how late their errors appear."""
        name = "vertex-error-delay"
        self.begin(*EXPECTED)
        made = [self._made[kind] for kind in EXPECTED if kind in self._made and self._end(kind)]
        failed = [one for one in made if one.view and one.view.state == outcome.FAILED]
        if not failed:
            yield unmeasured(name, "no job has failed")
        elif not all(one.error_seen for one in failed):
            yield self._grace(name, "a job has no error", math.inf)
        else:
            late = max(one.error_seen - one.ended for one in failed)
            yield self._grace(name, f"the error appears after {late:.0f} s", late)

    def _text(self, name: str, expected: Code, kind: str, job: ManagedJob) -> Finding:
        found, more = outcome.of(job), {"words": job.error}
        if found is None or job.state != outcome.FAILED:
            return fail(Code.VERIFY_DIFFERS, name, f"the job is {job.state}", REPORT, **more)
        fits = found.code is expected and (kind != "exit" or f"status of {STATUS}" in job.error)
        if fits:
            return ok(name, f"its error is recognized ({expected})", **more)
        if not found.again and found.code is Code.JOB_FAILED:
            measured = f"its error has other words, and the item shows them: {short(job.error)}"
            return note(name, measured, REPORT, **more)
        measured = f"its error is taken for {found.code}: {short(job.error)}"
        return fail(Code.VERIFY_DIFFERS, name, measured, REPORT, **more)

    def run(self) -> Iterator[Finding]:
        """Wait for the job with a run to end, and for the run's last state."""
        name, made, job = "vertex-run-delay", self._job("run"), self._end("run")
        if job is None:
            yield unmeasured(name, self._goes_on("run"))
            return
        if job.state == outcome.FAILED:
            yield unmeasured(name, f"the job failed: {short(job.error)}")
            return

        most = max(300.0, 3 * self._settings.timeouts.settle_grace)
        self._bench.until(lambda: made.run_state or None, most)
        seconds = max(0.0, made.run_seen - made.ended)
        if not made.run_state:
            yield self._grace(name, "the run has no last state", math.inf)
        else:
            yield self._grace(name, f"the run is {made.run_state} after {seconds:.0f} s", seconds)

    def _grace(self, name: str, measured: str, seconds: float) -> Finding:
        """Return whether ``settle_grace`` fits so many seconds."""
        settings, setting = self._bench.settings, "timeouts.settle_grace"
        grace, where = settings.timeouts.settle_grace, settings.where("timeouts", "settle_grace")
        if seconds == math.inf:
            return fail(Code.VERIFY_DIFFERS, name, measured, REPORT)
        fits = max(grace, _rounded(2 * seconds))
        more: dict[str, Any] = {"value": round(seconds, 1), "suggested": {setting: fits}}
        measured = f"{measured}; settle_grace: {grace:g}"
        if seconds > grace:
            return fail(Code.VERIFY_SETTING, name, measured, f"Set {where} to {fits:g}", **more)
        return ok(name, f"{measured} fits", **more)

    def _job(self, kind: str) -> Made:
        """Return a job, created now if it was not. Raises what its create raised."""
        self.begin(kind)
        if kind in self._failed:
            raise self._failed[kind]
        return self._made[kind]

    def _end(self, kind: str) -> ManagedJob | None:
        """Wait until a job has ended and, if it failed, has an error. Return it as it is then, None if it goes on."""
        made, clock = self._job(kind), self._bench.clock
        if made.view is not None:
            return made.view

        self._note_ends()

        def ended() -> ManagedJob | None:
            return made.view if made.ended else None

        job, _ = self._bench.until(ended, max(0.0, made.created + PATIENCE - clock.now()), every=2)
        if job is None or job.state != outcome.FAILED:
            return job
        most = max(180.0, 3 * self._settings.timeouts.settle_grace)
        while not made.error_seen and clock.now() - made.ended < most:
            self._bench.pause(2)
        return made.view

    def _goes_on(self, kind: str) -> str:
        """Return that a job has not ended, and its state."""
        made = self._made[kind]
        job, took = self._vertex.get(made.name), self._bench.clock.now() - made.created
        state = job.state.removeprefix("JOB_STATE_") if job else "not shown"
        return f"the job is {state} after {took / 60:.0f} min"

    def _note_ends(self) -> None:
        """Look at all jobs that are waited for, so that each end is seen when it happens."""
        for kind, made in self._made.items():
            if not (made.error_seen or (made.view is not None and made.view.state != outcome.FAILED)):
                self._note_end(made)
            if kind == "run" and made.ended and not made.run_state:
                view = self._queues.view(made.run)
                if view is not None and view.state in LAST_STATES:
                    made.run_state, made.run_seen = view.state, self._bench.clock.now()

    def _note_end(self, made: Made) -> None:
        job = self._vertex.get(made.name)
        if job is not None and job.ended:
            made.view, now = job, self._bench.clock.now()
            made.ended = made.ended or now
            if job.error:
                made.error_seen = now

    def _create(self, kind: str, account: str = "") -> Made:
        bench, settings = self._bench, self._settings
        item = Item(_item(bench, kind), "verify", self._spec(kind, account))
        if not self._swept:
            self._swept = True
            bench.remove(f"jobs with the label vertex_launch={settings.deployment}", self._remove)
        entity = self._queues.entity
        request = build(
            item,
            parse(item, settings, entity),
            settings,
            entity=entity,
            api_key=self._key.get(),
            now=datetime.fromtimestamp(bench.clock.now(), UTC),
        )
        bench.progress(f"creates the job {kind}")
        with bench.interrupts.shielded():
            asked = bench.clock.now()
            name = self._vertex.create(request, settings.timeouts.create)
            made = self._made[kind] = Made(name, asked, bench.clock.now(), request.run)
        return made

    def _spec(self, kind: str, account: str) -> dict[str, Any]:
        spec = item_spec(self._queues.entity, kind, PROGRAMS.get(kind, PROGRAMS["image"]))
        if kind == "image":
            spec["docker"] = {"docker_image": NO_IMAGE}
        if account:
            spec["resource_args"]["gcp-vertex"]["run"]["service_account"] = account
        return spec

    def _remove(self) -> None:
        """Cancel every job that may still run, and delete the run of the one that has one. Raises Unavailable."""
        names = [made.name for made in self._made.values() if not made.ended]
        unknown = any(isinstance(error, OutcomeUnknown) for error in self._failed.values())
        # A create without an answer may have made a job, which lists show later.
        self._bench.until(lambda: not unknown or self._vertex.active(self.region) or None, LAST_WORDS)
        names += [job.name for job in self._vertex.active(self.region) if job.name not in names]
        for name in names:
            self._vertex.cancel(name)
        if "run" in self._made:
            self._bench.until(self._run_is_over, LAST_WORDS)
            self._queues.forget(self._made["run"].run)

    def _run_is_over(self) -> bool | None:
        """Return whether the job with a run has ended, because its client could create the run again."""
        job = self._vertex.get(self._made["run"].name)
        return True if job is None or job.ended else None


def item_spec(entity: str, kind: str, program: str) -> dict[str, Any]:
    """Return the run spec of a small job, in the form in which W&B's client pushes it."""
    pool = {
        "machine_spec": {"machine_type": MACHINE},
        "replica_count": 1,
        "container_spec": {"image_uri": "${image_uri}"},
    }
    arguments = {"spec": {"worker_pool_specs": [pool]}, "run": {"timeout": LIMIT, "disable_retries": True}}
    return {
        "entity": entity,
        "project": PROJECT,
        "name": f"vertex-launch-verify {kind}",
        "resource": "gcp-vertex",
        "resource_args": {"gcp-vertex": arguments},
        "docker": {"docker_image": IMAGE},
        "overrides": {"entry_point": ["python3", "-c", program]},
    }


def own_settings(bench: Bench) -> Settings:
    """Return the settings of the jobs: a deployment of their own, without what restricts the items of others."""
    changes = {"deployment": f"verify-{bench.mark}", "policy": Policy(), "secure_mode": False}
    return bench.settings.model_copy(update=changes)


def _item(bench: Bench, kind: str) -> str:
    return f"verify-{bench.mark}-{kind}"


def _rounded(seconds: float) -> float:
    """Return seconds, rounded up to tens."""
    return math.ceil(seconds / 10) * 10
