"""``python -m local``: what newcomers type, and what the programs show them."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from rich.console import Console, Group
from rich.table import Table

from local.machine.cloud import Cloud, Options, PortsTaken
from local.machine.functions import FunctionFailed
from local.machine.loopback import without_proxy
from local.programs.chaos_items import KINDS, Account, Kind
from local.programs.demo_items import PUSHES
from local.programs.demo_table import Line, show
from local.programs.fills import Fill, Span, fills
from local.programs.items import Changes, Item
from local.programs.up import PORTS
from tests.support.processes import ROOT, Command, eventually
from vertex_launch.codes import Code
from vertex_launch.job import labels

CLOSED = "http://127.0.0.1:9"
PROXIES = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), CLOSED)
LOCAL = (sys.executable, "-m", "local")


# The demo


def test_the_demo_ends_well_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with closing(Command([*LOCAL, "demo", "--plain"], tmp_path, PROXIES)) as demo:
        assert demo.wait(360) == 0, demo.output()
        assert "23 of 23 items ended as they should" in demo.output()
        assert demo.left_behind() == []
        assert [path.name for path in tmp_path.iterdir()] == ["output"]
    lines = demo.output().splitlines()
    for push in PUSHES:
        assert any(line[7:].startswith(f"{push.name} ") for line in lines), push.name
    assert any("CLAIMED job RUNNING in us-east4, attempt 2" in line for line in lines)


def item(name: str = "train", **changes: object) -> Item:
    """Return a claimed item with a running job."""
    name_of_job = "projects/1/locations/us-central1/customJobs/3000721679224668160"
    job = {"name": name_of_job, "state": "JOB_STATE_RUNNING", "labels": {labels.ATTEMPT: "1"}}
    made = Item(name, name, "vertex-cpu", "CLAIMED", time.time() - 61, None, [], [job], "run", {})
    return replace(made, **changes)  # type: ignore[arg-type]


def test_the_table_fits_a_small_terminal() -> None:
    done = item(ended=time.time(), state="FAILED")
    lines = [Line("a-name-of-17-char", "vertex-cpu", done, as_expected=True) for _ in range(30)]
    lines += [Line("sweep-scheduler", "vertex-cpu", item(), as_expected=False), Line("late", "vertex-gpu", None, False)]
    console = Console(width=80, height=24, record=True, file=io.StringIO())
    console.print(show("title", lines, console.width, console.height))
    shown = console.export_text().splitlines()
    assert len(shown) < 24
    assert max(map(len, shown)) <= 80
    assert "…" not in "".join(shown)
    assert any(
        re.fullmatch(r"sweep-scheduler +vertex-cpu CLAIMED +1 +RUNNING +us-central1 01:0\d", one.strip())
        for one in shown
    )
    assert shown[-1] == "and 11 ended, 1 not pushed yet"


@pytest.mark.parametrize(
    ("state", "job", "expected", "style"),
    [
        ("CLAIMED", "SUCCEEDED", True, "green"),
        ("CLAIMED", "RUNNING", False, "cyan"),
        ("FAILED", "FAILED", True, "yellow"),
        ("FAILED", "FAILED", False, "red"),
        ("CLAIMED", "FAILED", False, "yellow"),
    ],
)
def test_an_expected_failure_is_not_green(state: str, job: str, expected: bool, style: str) -> None:
    seen = item(state=state, jobs=[{**item().jobs[0], "state": f"JOB_STATE_{job}"}])
    group = show("title", [Line("a", "vertex-cpu", seen, expected)], 80)
    assert isinstance(group, Group)
    table = group.renderables[1]
    assert isinstance(table, Table)
    assert table.rows[0].style == style


def test_a_change_is_shown_once() -> None:
    changes = Changes()
    assert len(changes.lines(item())) == 1
    assert changes.lines(item()) == []
    (line,) = changes.lines(item(messages=["its run\nstopped"]))
    assert line == "train: W&B shows: its run stopped"


def test_who_filled_a_slot() -> None:
    jobs = [Span(0, 100), Span(5, 40), Span(41, None), Span(101.5, None)]
    found = fills(jobs, [Span(1, 41), Span(90, 101.5)], slots=2)
    assert found == [Fill(40, 41), Fill(100, 101.5)]
    assert [fill.by_event([39, 80]) for fill in found] == [False, True]
    assert fills(jobs, [], slots=2) == [], "nothing waited"
    assert fills(jobs, [Span(1, 41)], slots=3) == [], "a slot was free all the time"


# A cloud that stays


def test_the_printed_commands_run_a_first_job(tmp_path: Path) -> None:
    with closing(Command([*LOCAL, "up", "--free-ports"], tmp_path, PROXIES)) as cloud:
        assert cloud.says("Stop    Press Ctrl-C", 60), cloud.output()
        printed = cloud.output()
        page = _printed(printed, r"This page: (\S+)")
        assert requests.get(page, timeout=30).text.startswith(printed[printed.index("The cloud is up") :])
        launch = _printed(printed, r"(  \. \S+person\.sh\n.* launch .*\\\n.*)\n")
        curl = _printed(printed, r"(  curl .*)\n")
        _shell(f"{launch}\n{curl}", tmp_path)
        assert cloud.says("first             vertex-cpu CLAIMED job SUCCEEDED", 60), cloud.output()
        assert "first             vertex-cpu CLAIMED job SUCCEEDED" in requests.get(page, timeout=30).text
        check = _shell(_printed(printed, r"Check   (.*\n.*)\n"), tmp_path)
        assert "warn" not in check
        sleep = launch.replace("mnist:1", "sleep:1").replace("--name first", "--name sleeps")
        _shell(f"{sleep}\n{curl}", tmp_path)
        assert cloud.says("sleeps            vertex-cpu CLAIMED job RUNNING", 60), cloud.output()
        cloud.interrupt()
        assert cloud.wait(20) == 130, cloud.output()
        assert cloud.left_behind() == []
    assert list(tmp_path.glob("vertex-launch-*")) == []


@pytest.mark.parametrize(
    ("command", "moment", "number"),
    [
        (["up", "--free-ports"], "dispatch.log", signal.SIGTERM),
        (["up", "--free-ports"], "job_state.log", signal.SIGHUP),
        (["demo"], "code", signal.SIGINT),
    ],
    ids=str,
)
def test_a_signal_leaves_nothing_behind(
    command: list[str], moment: str, number: signal.Signals, tmp_path: Path
) -> None:
    """At these moments functions are being started, and three items are being pushed."""
    with closing(Command([*LOCAL, *command], tmp_path)) as cloud:
        assert eventually(lambda: list(tmp_path.glob(f"vertex-launch-*/{moment}")), 60), cloud.output()
        cloud.interrupt(number)
        assert cloud.wait(20) == 128 + number, cloud.output()
        assert cloud.left_behind() == []
    assert list(tmp_path.glob("vertex-launch-*")) == []


def test_a_function_that_cannot_start_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(FunctionFailed, match="ended while it started"):
        Cloud(Options(variables={"PYTHONHOME": "/nowhere"})).start()
    assert list(tmp_path.iterdir()) == []


def test_taken_ports_are_named_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortsTaken, match=rf"{port} \(wandb\)"):
            Cloud(Options(ports={"wandb": port}))
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_has_a_remedy(tmp_path: Path) -> None:
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # another program has it, which is as good
            taken.bind(("127.0.0.1", PORTS["wandb"]))
            taken.listen()
        with closing(Command([*LOCAL, "up"], tmp_path)) as cloud:
            assert cloud.wait(60) == 1
            assert str(PORTS["wandb"]) in cloud.output()
            assert "--free-ports" in cloud.output()


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (
            ["-c", "import sys, runpy; sys.version_info = (3, 10, 4); runpy.run_module('local', run_name='__main__')"],
            "3.11",
        ),
        (["-S", "-m", "local", "demo"], "local/requirements.txt"),
    ],
    ids=["an old Python", "no packages"],
)
def test_what_is_missing_is_reported_in_one_line(start: list[str], words: str) -> None:
    done = subprocess.run([sys.executable, *start], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"no_proxy": "a.b, localhost", "NO_PROXY": "c"}, "a.b,localhost,c,127.0.0.1,::1"),
        ({"NO_PROXY": "*"}, "*"),
    ],
)
def test_what_avoids_a_proxy_still_does(before: dict[str, str], after: str) -> None:
    variables = without_proxy(before)
    assert variables["no_proxy"] == variables["NO_PROXY"] == after


def _printed(text: str, pattern: str) -> str:
    found = re.search(pattern, text)
    assert found, text
    return found[1]


def _shell(commands: str, home: Path) -> str:
    """Run commands in another shell, as a person does who has a proxy."""
    variables = {"PATH": "/usr/bin:/bin", "HOME": str(home), "TMPDIR": str(home), **PROXIES}
    done = subprocess.run(["sh", "-c", commands], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# Chaos


def test_the_account_after_chaos_finds_what_is_wrong() -> None:
    quick, bad, preempted = (
        next(kind for kind in KINDS if kind.name == name) for name in ("quick", "bad", "preempted")
    )
    shown = f"[{Code.SPEC_UNKNOWN_KEY}]"

    def wrong(kind: Kind, state: str, *jobs: tuple[int, str], messages: str = shown) -> int:
        return len(Account("item", kind, state, messages, jobs).problems())

    assert wrong(quick, "CLAIMED", (1, "SUCCEEDED")) == 0
    assert wrong(quick, "CLAIMED", (1, "CANCELLED"), (1, "SUCCEEDED")) == 0, "a twin that was cancelled"
    assert wrong(bad, "FAILED") == 0
    assert wrong(preempted, "CLAIMED", (1, "FAILED"), (2, "FAILED"), (3, "SUCCEEDED")) == 0
    assert wrong(quick, "lost") == 3, "no state, no attempt, no end"
    assert wrong(quick, "PENDING", (1, "SUCCEEDED")) == 1
    assert wrong(quick, "CLAIMED", (1, "SUCCEEDED"), (1, "SUCCEEDED")) == 1
    assert wrong(quick, "CLAIMED", (1, "RUNNING")) == 1
    assert wrong(bad, "FAILED", messages="no") == 1
    assert wrong(preempted, "CLAIMED", (1, "FAILED"), (3, "SUCCEEDED")) == 1


def test_a_short_chaos_accounts_for_every_item(tmp_path: Path) -> None:
    """One item of each kind. Patience is wide: only the number of passes decides when an item has ended wrong."""
    with closing(
        Command([*LOCAL, "chaos", "--seconds", "10", "--seed", "1", "--items", str(len(KINDS))], tmp_path)
    ) as chaos:
        assert chaos.wait(500) == 0, chaos.output()
        assert chaos.left_behind() == []
    lines = chaos.output().splitlines()
    assert f"\n{len(KINDS)} items, " in chaos.output()
    for number, kind in enumerate(KINDS, start=1):
        assert any(line.split()[:2] == [f"{kind.name}-{number}", kind.item] for line in lines), kind.name
    assert max(map(len, lines)) <= 80, [line for line in lines if len(line) > 80]


# The tests' own tool


def test_what_a_command_leaves_behind_is_found(tmp_path: Path) -> None:
    leave = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()'], stdin=-1, start_new_session=True)"
    )
    with closing(Command([sys.executable, "-c", f"{leave}; import os; os._exit(0)"], tmp_path)) as command:
        assert command.wait(20) == 0
        assert command.left_behind() == []
    with closing(
        Command([sys.executable, "-c", leave.replace("input()", "import time; time.sleep(60)")], tmp_path)
    ) as command:
        assert command.wait(20) == 0
        assert len(command.left_behind(0.1)) == 1
