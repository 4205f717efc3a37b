"""Run the containers of local Vertex AI jobs as processes of this machine, from the queue to the end.

A job is QUEUED until there is capacity and then PENDING for a while. Then the first container of its first worker pool
runs as a process with its own working directory, home, environment and metadata server: nothing of this process reaches
it. Other replicas and pools do not run. A container's processes end with it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import venv
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from google.cloud.aiplatform_v1 import JobState

from local.machine.container_spec import account, command_line, environment, service_variables, task
from local.machine.images import EXAMPLES, Image
from local.machine.loopback import without_proxy
from local.machine.repositories import Repositories
from local.standins.metadata import MetadataServer, Tokens
from local.standins.vertex import job_errors
from local.standins.vertex.job_errors import JobError
from local.standins.vertex.jobs import Jobs

_MARK = "LOCAL_VERTEX_CONTAINER"
"""The variable that marks a container's processes, including those that started a session of their own."""

_LOGGED = 32_768
"""How many bytes at the end of a container's output go to the log."""

_LOOK_AGAIN = 0.2


class Fate(StrEnum):
    """How Vertex AI disturbs a job."""

    STOCKOUT = "stockout"
    """The job becomes FAILED instead of RUNNING because no machine is free."""

    PREEMPTED = "preempted"
    """The job loses its machine. It starts again, or becomes FAILED if it may not restart."""

    INTERNAL = "internal"
    """Vertex AI has an internal error. The job starts again, or becomes FAILED if it may not restart."""


@dataclass
class Script:
    """The fate of the next ``times`` jobs whose display name and region match these shell patterns.

    ``labels`` narrows it to jobs with one of the values for each label. A script that must not depend on how many jobs an
    item gets has labels and no end of its ``times`` (None).

    PREEMPTED and INTERNAL end the container ``after`` seconds after each of its first ``strikes`` starts. It starts again
    with the same environment at most ``restarts`` times, or never if the job has ``disable_retries``. ``args`` are added to
    the container's arguments in the starts that are struck: they can keep a fast program from ending before its strike.
    """

    fate: Fate
    display_name: str = "*"
    region: str = "*"
    times: int | None = 1
    after: float = 0.0
    strikes: int = 1
    restarts: int = 0
    args: Sequence[str] = ()
    labels: Mapping[str, Collection[str]] = field(default_factory=dict)

    def matches(self, job: Any) -> bool:
        """Return whether the script applies to a job."""
        region = job.name.split("/")[3]
        named = fnmatchcase(job.display_name, self.display_name) and fnmatchcase(region, self.region)
        return self.times != 0 and named and all(job.labels[key] in some for key, some in self.labels.items())


@dataclass
class _Life:
    """What one job needs from its start to its end. One thread leads it."""

    name: str
    jobs: Jobs
    folder: Path
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set when the job is cancelled, and when the runner stops."""
    thread: threading.Thread | None = None
    process: subprocess.Popen[bytes] | None = None
    timer: threading.Timer | None = None
    """Sends SIGKILL when the grace period after SIGTERM is over."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class _Stopped(Exception):
    """The job was cancelled, or the runner stops."""


class Containers:
    """A runner for VertexServer that runs the containers of jobs. Times are in seconds.

    A job stays QUEUED and PENDING for at least ``queued`` and ``pending``. A cancelled container has ``grace`` between
    SIGTERM and SIGKILL. ``images`` maps image URIs to programs. ``scripts`` can change at any time. ``tokens`` issues the
    access tokens of the jobs' accounts. Git in a container finds ``repositories``.
    """

    def __init__(
        self,
        images: Mapping[str, Image] = EXAMPLES,
        *,
        queued: float = 0.1,
        pending: float = 0.3,
        grace: float = 5.0,
        scripts: Iterable[Script] = (),
        tokens: Tokens | None = None,
        repositories: Repositories | None = None,
    ) -> None:
        self.scripts = list(scripts)
        self._tokens = tokens or Tokens()
        self._repositories = repositories
        self._images = images
        self._queued = queued
        self._pending = pending
        self._grace = grace
        self._lives: dict[str, _Life] = {}
        self._lock = threading.Lock()
        self._ended = False
        self._root: Path | None = None

    def launch(self, name: str, jobs: Jobs) -> None:
        """Start a thread that leads a new job to its end."""
        with self._lock:
            if self._ended:
                return
            # Directly in /tmp: the W&B SDK creates a socket below TMPDIR, and a socket's path has at most 104 characters.
            self._root = self._root or Path(tempfile.mkdtemp(prefix="vertex-", dir="/tmp"))
            life = _Life(name, jobs, self._root / str(len(self._lives)))
            life.thread = threading.Thread(target=self._live, args=(life,), name=f"job-{life.folder.name}", daemon=True)
            self._lives[name] = life
            life.thread.start()

    def cancel(self, name: str) -> None:
        """End a job that is CANCELLING: do not start its container, or send it SIGTERM and later SIGKILL."""
        with self._lock:
            life = self._lives.get(name)
        if life is None:
            return  # launch comes later and finds the job CANCELLING
        with life.lock:
            _stop(life)
            if life.process is not None:
                life.process.terminate()
                life.timer = threading.Timer(self._grace, _kill, (life.process, life.folder))
                life.timer.daemon = True
                life.timer.start()

    def files(self, name: str) -> Path:
        """Return the folder of a job's last container: its ``output``, home and working directory."""
        with self._lock:
            return self._lives[name].folder

    def stop(self) -> None:
        """Kill and remove everything that still runs. The jobs keep their states."""
        with self._lock:
            self._ended = True
            lives = list(self._lives.values())
        for life in lives:
            with life.lock:
                _stop(life)
                if life.process is not None:
                    _kill(life.process, life.folder)
        for life in lives:
            if life.thread is not None:
                life.thread.join()
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)

    def _live(self, life: _Life) -> None:
        try:
            error = self._phases(life)
        except _Stopped:
            if self._ended:
                return
            life.jobs.move(
                life.name, {JobState.JOB_STATE_CANCELLING}, JobState.JOB_STATE_CANCELLED, job_errors.CANCELLED
            )
            return
        end = JobState.JOB_STATE_FAILED if error else JobState.JOB_STATE_SUCCEEDED
        life.jobs.move(life.name, {JobState.JOB_STATE_PENDING, JobState.JOB_STATE_RUNNING}, end, error)

    def _phases(self, life: _Life) -> JobError | None:
        """Lead a job from the queue to its end. Return its error, None for success. Raise _Stopped."""
        self._pause(life, self._queued)
        while not life.jobs.leave_queue(life.name):
            if life.jobs.get(life.name).state != JobState.JOB_STATE_QUEUED:
                raise _Stopped
            _await_room(life)
        self._pause(life, self._pending)
        job = life.jobs.get(life.name)
        image_uri = task(job.job_spec.worker_pool_specs[0])[0]
        script = self._script(job)
        if script and script.fate is Fate.STOCKOUT:
            return job_errors.stockout(job.name.split("/")[3])
        image = self._images.get(image_uri)
        if image is None:
            return job_errors.image_not_found(image_uri)
        if not life.jobs.move(life.name, {JobState.JOB_STATE_PENDING}, JobState.JOB_STATE_RUNNING):
            raise _Stopped
        return self._attempts(life, job, image, script)

    def _attempts(self, life: _Life, job: Any, image: Image, script: Script | None) -> JobError | None:
        """Run the container, and restart it after a strike as often as it may restart."""
        restarts = 0 if script is None or job.job_spec.scheduling.disable_retries else script.restarts
        for attempt in itertools.count():
            strike = script if script and attempt < script.strikes else None
            with MetadataServer(account(job), self._tokens) as metadata:
                status = self._run(life, job, image, metadata.host, strike)
            if status is not None:
                break
            if attempt == restarts:
                return job_errors.INTERNAL if script and script.fate is Fate.INTERNAL else job_errors.PREEMPTED
        if status in image.out_of_memory:
            return job_errors.out_of_memory(status)
        return job_errors.exited(status) if status else None

    def _run(self, life: _Life, job: Any, image: Image, metadata: str, strike: Script | None) -> int | None:
        """Run the container to its end. Return its exit status, or None if ``strike`` has ended it."""
        shutil.rmtree(life.folder, ignore_errors=True)
        app = life.folder / "app"
        if image.folder is None:
            app.mkdir(parents=True)
        else:
            shutil.copytree(image.folder, app, ignore=shutil.ignore_patterns("__pycache__"))
        argv, variables = _process(job, image, life.folder, metadata)
        argv += strike.args if strike else ()
        if self._repositories is not None:
            self._repositories.configure(life.folder / "home")
        try:
            process = self._start(life, argv, variables)
        except OSError as error:
            life.jobs.log_output(life.name, [f"{argv[0]}: {error.strerror}"])
            return 127
        try:
            status = process.wait(strike.after if strike else None)
        except subprocess.TimeoutExpired:
            status = None
        _kill(process, life.folder)
        process.wait()
        with life.lock:
            life.process = None
            if life.timer is not None:
                life.timer.cancel()
        life.jobs.log_output(life.name, _tail(life.folder / "output"))
        if life.stopped.is_set():
            raise _Stopped
        return 128 - status if status is not None and status < 0 else status

    def _start(self, life: _Life, argv: list[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with (life.folder / "output").open("wb") as output, life.lock:
            if life.stopped.is_set():
                raise _Stopped
            life.process = subprocess.Popen(
                argv,
                cwd=life.folder / "app",
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            return life.process

    def _script(self, job: Any) -> Script | None:
        with self._lock:
            script = next((script for script in self.scripts if script.matches(job)), None)
            if script is not None and script.times is not None:
                script.times -= 1
            return script

    def _pause(self, life: _Life, seconds: float) -> None:
        if life.stopped.wait(seconds):
            raise _Stopped


def _stop(life: _Life) -> None:
    life.stopped.set()
    with life.jobs.changed:
        life.jobs.changed.notify_all()


def _await_room(life: _Life) -> None:
    """Wait until there may be capacity for the job. Raise _Stopped."""
    with life.jobs.changed:
        # The timeout is for a raised capacity: no notification reports that.
        life.jobs.changed.wait_for(lambda: life.stopped.is_set() or life.jobs.has_room(life.name), _LOOK_AGAIN)
    if life.stopped.is_set():
        raise _Stopped


def _process(job: Any, image: Image, folder: Path, metadata: str) -> tuple[list[str], dict[str, str]]:
    """Return argv and environment of the job's first container, and create the folders that they name."""
    for name in ("home", "tmp"):
        (folder / name).mkdir()
    _, command, args, declared = task(job.job_spec.worker_pool_specs[0])
    programs = _packages(folder / "python") if image.own_packages else Path(sys.executable).parent
    base = {
        "PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "LANG": "C.UTF-8",
        **without_proxy({}),  # a job can name a proxy, which cannot reach the services of this machine
        # Google's clients, and the product in a job, use these instead of this machine's metadata server.
        "GCE_METADATA_HOST": metadata,
        "GCE_METADATA_IP": metadata,
    }
    variables = environment(declared, {**base, **service_variables(job, job.name.split("/")[1])})
    argv = command_line(image.entrypoint, image.cmd, command, args, variables)
    if image.memory is not None:
        argv = ["sh", "-c", f'ulimit -d {image.memory}; exec "$@"', "limited", *argv]
    return argv, {**variables, _MARK: str(folder)}


def _packages(folder: Path) -> Path:
    """Create a Python environment with the packages of this one, into which more can be installed. Return its programs."""
    venv.create(folder, symlinks=True)
    ours, theirs = (Path(sysconfig.get_path("purelib", vars={"base": str(base)})) for base in (sys.prefix, folder))
    (theirs / "cloud.pth").write_text(f"{ours}\n")
    return folder / "bin"


def _kill(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Kill a container's process and its descendants, as happens when the first process of a container ends."""
    process.kill()  # the kernel shows its environment only a moment after the start
    if not Path("/proc/self/environ").exists():
        # Without /proc only the process group can be found. The W&B SDK's helper leaves the group, but ends by itself.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        return
    while pids := _marked(folder):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _marked(folder: Path) -> list[int]:
    """Return the processes whose environment has the mark of the container in ``folder``."""
    mark = f"{_MARK}={folder}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        # Processes come and go in the meantime, and those of other users cannot be read.
        with contextlib.suppress(OSError):
            if mark in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def _tail(path: Path) -> list[str]:
    with path.open("rb") as output:
        output.seek(max(0, path.stat().st_size - _LOGGED))
        return output.read().decode(errors="replace").splitlines()
