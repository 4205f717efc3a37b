"""The last lines of a job's own log, from the local Cloud Logging: which, in what order, and what happens without them."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.api_core import exceptions
from google.cloud.aiplatform_v1 import CustomJob, JobState
from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client
from google.cloud.logging_v2.services.logging_service_v2.transports import LoggingServiceV2GrpcTransport

from local.standins.logs import LogServer
from local.standins.vertex.job_log import output_entry, timestamp
from local.standins.vertex.jobs import Jobs
from local.standins.vertex.server import PROJECTS
from tests.support.memory import Clock
from tests.support.specs import with_settings
from vertex_launch.adapters.google_api import BACKOFF
from vertex_launch.adapters.job_logs import REACH, WIDTH, JobLogs
from vertex_launch.codes import Code
from vertex_launch.dispatch.ports import Logs
from vertex_launch.log import LOGGER, Redactor

PROJECT, NUMBER = "demo-project", PROJECTS["demo-project"]
PARENT = f"projects/{NUMBER}/locations/us-central1"
KEY = "a1b2c3d4" * 5
OFTEN = BACKOFF.with_delay(initial=0.5, maximum=1.0)
LIST = "ListLogEntries"

pytestmark = pytest.mark.usefixtures("retry_clock")


@pytest.fixture
def server() -> Iterator[LogServer]:
    server = LogServer(projects=PROJECTS)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def jobs(server: LogServer, clock: Clock) -> Jobs:
    """The jobs of a local Vertex AI, which writes the log."""
    return Jobs(clock=clock, project_ids={NUMBER: PROJECT}, on_log=server.add)


@pytest.fixture
def job(jobs: Jobs) -> str:
    name: str = jobs.add(PARENT, CustomJob.pb(CustomJob(display_name="a job"))).name
    return name


Make = Callable[..., Logs]


@pytest.fixture
def logs(server: LogServer, clock: Clock) -> Make:
    def make(lines: int = 3, *, project: str = PROJECT, **options: Any) -> Logs:
        settings = with_settings(project=project, log_lines=lines, logging_endpoint=server.url)
        return JobLogs(settings, **{"timeout": 20.0, "clock": clock, "backoff": OFTEN, **options})

    return make


Warnings = Callable[[], list[str]]


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Warnings:
    """Returns what has been logged so far, all of it one kind of warning."""
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)

    def logged() -> list[str]:
        records = [record for record in caplog.records if record.name == LOGGER.name]
        assert {record.levelno for record in records} <= {logging.WARNING}
        assert {vars(record)["code"] for record in records} <= {Code.LOG_LINES_UNAVAILABLE}
        return [record.getMessage() for record in records]

    return logged


def write(server: LogServer, job: str, now: float, **payload: Any) -> None:
    """Write an entry with any payload."""
    entry = output_entry(PROJECT, job.rsplit("/", 1)[1], "", now)
    del entry["jsonPayload"]
    server.add({**entry, **payload})


def test_the_last_lines_the_oldest_first(server: LogServer, jobs: Jobs, job: str, logs: Make) -> None:
    jobs.log_output(job, ["one", "two", "three", "four", "five"])
    assert logs(3).tail(job) == ["three", "four", "five"]
    assert logs(100).tail(job) == ["one", "two", "three", "four", "five"]
    assert server.calls == {LIST: 2}


def test_lines_that_arrive_late_stand_where_they_belong(
    server: LogServer, jobs: Jobs, job: str, clock: Clock, logs: Make
) -> None:
    clock.now += 10
    jobs.log_output(job, ["second", "third"])
    write(server, job, clock.now - 5, textPayload="first")
    assert logs().tail(job) == ["first", "second", "third"]


def test_only_what_the_jobs_own_containers_wrote(jobs: Jobs, job: str, logs: Make) -> None:
    other = jobs.add(PARENT, CustomJob.pb(CustomJob(display_name="another"))).name
    jobs.log_output(job, ["mine"])
    jobs.log_output(other, ["not mine"])
    assert jobs.move(job, {JobState.JOB_STATE_QUEUED}, JobState.JOB_STATE_FAILED)
    assert logs(10).tail(job) == ["mine"]
    assert logs(10).tail(other) == ["not mine"]


def test_what_is_old_is_not_searched(jobs: Jobs, job: str, clock: Clock, logs: Make) -> None:
    jobs.log_output(job, ["long ago"])
    clock.now += REACH - 60
    assert logs().tail(job) == ["long ago"]
    clock.now += 120
    assert logs().tail(job) == []


def test_a_job_that_wrote_nothing(job: str, logs: Make, warnings: Warnings) -> None:
    assert logs().tail(job) == []
    assert warnings() == []


@pytest.mark.parametrize(
    ("payload", "lines"),
    [
        ({"textPayload": "Traceback:\n  File 1\n\nOSError\n"}, ["Traceback:", "  File 1", "OSError"]),
        ({"jsonPayload": {"message": "m", "levelname": "ERROR"}}, ["m"]),
        ({"jsonPayload": {"message": {"a": 1}}}, []),
        ({"jsonPayload": {"message": 7.0}}, []),
        ({"jsonPayload": {"msg": "no message"}}, []),
        ({"protoPayload": {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": "x"}}, []),
        ({}, []),
        ({"textPayload": " \t\r\n"}, []),
        ({"textPayload": "word " * WIDTH}, [" ".join(["word"] * (WIDTH // 5)) + "…"]),
        ({"textPayload": "x" * (WIDTH + 1)}, ["…"]),
        ({"textPayload": "x" * WIDTH}, ["x" * WIDTH]),
        ({"textPayload": "a\tb\0c\x07\x7f\x85d\u202e"}, ["a bcd"]),
        ({"textPayload": "\x1b[1;31mError\x1b[0m: \x1b[2Kno"}, ["Error: no"]),
        ({"textPayload": " 1%|\r50%|#\r99%|##\r"}, ["99%|##"]),
        ({"textPayload": "schön 日本 🙂"}, ["schön 日本 🙂"]),
    ],
)
def test_what_a_line_is(
    server: LogServer, job: str, clock: Clock, logs: Make, payload: dict[str, Any], lines: list[str]
) -> None:
    write(server, job, clock.now, **payload)
    assert logs(10).tail(job) == lines


def test_the_last_lines_of_a_long_entry_are_taken(server: LogServer, job: str, clock: Clock, logs: Make) -> None:
    write(server, job, clock.now - 1, textPayload="before")
    write(server, job, clock.now, textPayload="\n".join(map(str, range(100))))
    assert logs(3).tail(job) == ["97", "98", "99"]


@pytest.mark.parametrize("place", [0, WIDTH - 45, WIDTH - 20, WIDTH - 1])
def test_a_key_is_either_whole_or_left_out_where_a_line_is_cut(jobs: Jobs, job: str, logs: Make, place: int) -> None:
    """Whoever shows the line redacts it, and half a key would not be found."""
    jobs.log_output(job, [f"{'.' * place} {KEY[:7]}\0{KEY[7:]} is a key"])
    (line,) = logs().tail(job)
    redact = Redactor()
    redact.add(KEY)
    assert len(line) <= WIDTH
    assert KEY[:2] not in redact(line)


def test_a_search_that_takes_long_is_followed_to_its_end(server: LogServer, jobs: Jobs, job: str, logs: Make) -> None:
    jobs.log_output(job, ["found late"])
    server.searching = 3
    assert logs().tail(job) == ["found late"]
    assert server.calls[LIST] == 4


def test_a_search_without_an_end_is_given_up(server: LogServer, jobs: Jobs, job: str, clock: Clock, logs: Make) -> None:
    def passing() -> float:
        clock.sleep(0.5)
        return clock()

    jobs.log_output(job, ["never found"])
    server.searching = 1000
    assert logs(timeout=2, clock=passing).tail(job) == []
    assert server.calls[LIST] == 4


@pytest.mark.parametrize("code", ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"])
def test_a_call_that_fails_a_few_times_is_repeated(
    server: LogServer, jobs: Jobs, job: str, logs: Make, warnings: Warnings, code: str
) -> None:
    jobs.log_output(job, ["there"])
    server.faults.fail(LIST, code, times=3)
    assert logs().tail(job) == ["there"]
    assert warnings() == []


def test_without_permission_there_are_no_lines_and_one_warning(
    server: LogServer, jobs: Jobs, job: str, logs: Make, warnings: Warnings
) -> None:
    jobs.log_output(job, ["secret"])
    server.faults.fail(LIST, 403, times=5, message="Permission denied for all log views")
    reader = logs()
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(reader.tail, [job] * 4)) == [[]] * 4
    assert reader.tail(job) == []
    (warning,) = warnings()
    assert "Permission denied for all log views" in warning
    assert f"roles/logging.viewer in project {PROJECT}" in warning
    assert reader.tail(job) == ["secret"], "a right that was granted since is used"
    server.faults.fail(LIST, 403)
    assert logs().tail(job) == []
    assert len(warnings()) == 2, "another instance warns for itself"


def test_errors_that_go_on_are_quoted(
    server: LogServer, job: str, logs: Make, warnings: Warnings, retry_clock: Clock
) -> None:
    server.faults.fail(LIST, "UNAVAILABLE", times=None, message="The service is unavailable")
    began = retry_clock.now
    assert logs().tail(job) == []
    assert retry_clock.now - began <= 20
    (warning,) = warnings()
    assert "The service is unavailable" in warning


def test_without_the_package(job: str, logs: Make, warnings: Warnings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, LoggingServiceV2Client.__module__.rsplit(".", 1)[0], None)
    reader = logs()
    assert [reader.tail(job), reader.tail(job)] == [[], []]
    (warning,) = warnings()
    assert "google-cloud-logging" in warning


def test_without_credentials(job: str, warnings: Warnings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/no/such/file")
    assert JobLogs(with_settings(log_lines=3), timeout=1).tail(job) == []
    (warning,) = warnings()
    assert "/no/such/file" in warning


def test_the_package_is_not_imported_before_the_first_line_is_asked_for() -> None:
    script = (
        "import sys\n"
        "from tests.support.specs import SETTINGS\n"
        "from vertex_launch.adapters.job_logs import JobLogs\n"
        "JobLogs(SETTINGS)\n"
        "print('google.cloud.logging_v2' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n", done.stderr


@pytest.fixture
def client(server: LogServer) -> Iterator[LoggingServiceV2Client]:
    channel = grpc.insecure_channel(server.url.removeprefix("http://"))
    yield LoggingServiceV2Client(transport=LoggingServiceV2GrpcTransport(channel=channel))
    channel.close()


def texts(client: LoggingServiceV2Client, **asked: Any) -> list[str]:
    request = {"resource_names": [f"projects/{PROJECT}"], **asked}
    return [entry.text_payload for entry in client.list_log_entries(request=request)]


def test_the_stand_in_filters_orders_and_pages(
    server: LogServer, client: LoggingServiceV2Client, clock: Clock, job: str
) -> None:
    for number in range(5):
        write(server, job, clock.now + number, textPayload=str(number))
    own = 'resource.labels.task_name = "workerpool0-0"'
    assert texts(client, filter=own) == ["0", "1", "2", "3", "4"]
    assert texts(client, filter=own, order_by="timestamp desc", page_size=2) == ["4", "3", "2", "1", "0"]
    assert server.calls[LIST] == 1 + 3
    late = f'{own}\n  timestamp>="{timestamp(clock.now + 3)}" AND resource.type!="gce_instance"'
    assert texts(client, filter=late, resource_names=[f"projects/{NUMBER}"]) == ["3", "4"]
    assert texts(client, filter='resource.labels.region!="x"') == [], "nothing is true of a label that is not there"
    assert len(texts(client)) == 6, "the service's own entry also has a text"


@pytest.mark.parametrize(
    "asked",
    [
        {"filter": "severity>=ERROR"},
        {"filter": 'resource.type="a" OR resource.type="b"'},
        {"filter": 'NOT resource.type="a"'},
        {"filter": '(resource.type="a")'},
        {"filter": 'resource.type="a" resource.type="b"'},
        {"filter": 'timestamp>="yesterday"'},
        {"order_by": "severity"},
        {"page_size": 1001},
        {"page_size": -1},
        {"page_token": "x"},
        {"resource_names": []},
    ],
)
def test_the_stand_in_refuses_what_it_does_not_support(client: LoggingServiceV2Client, asked: dict[str, Any]) -> None:
    with pytest.raises(exceptions.InvalidArgument):
        texts(client, **asked)


def test_the_stand_in_has_faults_and_one_method(server: LogServer, client: LoggingServiceV2Client) -> None:
    server.faults.fail(LIST, 403)
    with pytest.raises(exceptions.PermissionDenied):
        texts(client)
    with pytest.raises(exceptions.PermissionDenied, match=r"logging.logEntries.list"):
        texts(client, resource_names=["projects/other"])
    with pytest.raises(exceptions.MethodNotImplemented):
        client.list_logs(parent=f"projects/{PROJECT}")
