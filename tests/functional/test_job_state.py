"""job_state: what a log entry says, what Vertex AI answers about the job, and the tick that follows."""

from __future__ import annotations

import base64
import json
import logging
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.cloud.aiplatform_v1.types import JobState

from local.standins import log_sink
from local.standins.vertex.job_log import SERVICE_TEXTS, output_entry, service_entry
from tests.support import specs
from tests.support.memory import KEY, SETTINGS, Job, Vertex, World, call, image_spec, through
from vertex_launch import events
from vertex_launch.codes import Code
from vertex_launch.dispatch.watch import PATIENCE, follow
from vertex_launch.errors import JobNotEnded, RequestError, Unavailable
from vertex_launch.job import labels, outcome
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import Item, JobHint, JobName
from vertex_launch.settings.config import Region, Settings

SAMPLES = Path(__file__).parents[1] / "samples" / "log-entries"
NUMBER = "3000721679224668160"
PUBLISHED, WRITTEN = 1771881079.1, 1771881069.1
REGIONS = ("us-central1", "us-east4", "europe-west4")
ENDED = sorted(state for state in JobState if state.name in labels.ENDED_STATES)
NOT_ENDED = sorted(set(JobState) - set(ENDED))


def when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# What an entry says


def entry(text: str | None = "Job failed.", **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "insertId": "a1b2c3",
        "logName": f"projects/p/logs/ml.googleapis.com%2F{NUMBER}",
        "timestamp": when(WRITTEN),
        "severity": "INFO",
        "resource": {"type": "ml_job", "labels": {"job_id": NUMBER, "project_id": "p", "task_name": "service"}},
        "labels": {"ml.googleapis.com/endpoint": ""},
        "textPayload": text,
    }
    return {name: value for name, value in (found | changes).items() if value is not None}


def about(**changes: Any) -> dict[str, Any]:
    """Return an entry with other labels of its resource."""
    found = entry()
    found["resource"]["labels"] |= changes
    return found


def encoded(payload: object) -> str:
    return base64.b64encode(payload if isinstance(payload, bytes) else json.dumps(payload).encode()).decode()


def event(payload: object, **message: Any) -> bytes:
    message = {"data": encoded(payload), "messageId": "1", "publishTime": when(PUBLISHED)} | message
    return json.dumps({"message": message, "subscription": "projects/p/subscriptions/s"}).encode()


SHAPES = {
    "text": (entry(), True),
    "no labels": (entry("Job cancelled.", labels=None), True),
    "no severity": (entry("Job completed successfully.", severity=None), True),
    "American": (entry("Job canceled."), True),
    "JSON": (entry(None, jsonPayload={"message": "Job failed.", "levelname": "INFO"}), True),
    "the label alone": (entry(None, labels={"ml.googleapis.com/job_state": "SUCCEEDED"}), True),
    "running": (entry("Job is running."), False),
    "provisioned": (entry("Waiting for job to be provisioned."), False),
    "not an end": (entry("The job said: Job failed."), False),
    "no text": (entry(None), False),
    "odd parts": (entry(labels=["x"], jsonPayload="Job failed.", textPayload=5), False),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_what_an_entry_says(shape: str) -> None:
    said, ended = SHAPES[shape]
    assert events.job_hint(event(said)) == JobHint(NUMBER, ended=ended, published=PUBLISHED)


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("prefix", ["", "JOB_STATE_"])
def test_every_state_that_a_label_may_name(state: JobState, prefix: str) -> None:
    said = entry(None, labels={"ml.googleapis.com/job_state": state.name.replace("JOB_STATE_", prefix)})
    hint = events.job_hint(event(said))
    assert hint is not None
    assert hint.ended == outcome.is_ended(state.value)


@pytest.mark.parametrize("sample", ["cancelled", "failed", "provisioned", "running", "succeeded"])
def test_entries_as_the_real_service_writes_them(sample: str) -> None:
    said = (SAMPLES / f"{sample}.json").read_bytes()
    number = json.loads(said)["resource"]["labels"]["job_id"]
    ended = sample not in ("provisioned", "running")
    assert events.job_hint(event(said)) == JobHint(number, ended=ended, published=PUBLISHED)


@pytest.mark.parametrize("text", [text for texts in SERVICE_TEXTS.values() for text in texts])
def test_entries_of_the_local_service(text: str) -> None:
    """The sink forwards exactly the entries about an end."""
    said = service_entry("p", NUMBER, text, WRITTEN)
    hint = events.job_hint(event(said))
    assert hint is not None
    assert hint.ended == (text in ("Job completed successfully.", "Job failed.", "Job cancelled."))
    assert log_sink.matches(said) == hint.ended


@pytest.mark.parametrize(
    "other",
    [
        output_entry("p", NUMBER, "Job failed.", WRITTEN),
        about(task_name="workerpool0-0"),
        about(task_name=None),
        about(job_id=None),
        about(job_id=int(NUMBER)),
        about(job_id="my_training_2019"),
        about(job_id="../.."),
        about(job_id="٣٠٠٠"),
        about(job_id=f"{NUMBER}\n"),
        about(job_id="1" * 21),
        entry(resource={"type": "gce_instance", "labels": {"instance_id": "1"}}),
        entry(resource={"type": "ml_job"}),
        entry(resource={}),
    ],
)
def test_entries_about_something_else_are_ignored(other: object) -> None:
    assert events.job_hint(event(other)) is None


def test_the_name_that_a_person_gives() -> None:
    name = JobName("415104041262", "us-east4", NUMBER)
    assert events.job_hint(event({"job": str(name)})) == JobHint(NUMBER, name, ended=True, published=PUBLISHED)


MALFORMED = [
    ({"message": {"data": "%%%"}}, "data in log entry", Code.REQUEST_JSON),
    ({"message": {"data": [1]}}, "data in log entry", Code.REQUEST_JSON),
    *(
        ({"message": {"data": encoded(junk)}}, "log entry", Code.REQUEST_JSON)
        for junk in (b"Job failed.", json.dumps(entry()).encode()[:-5], b'{"resource": NaN}')
    ),
    ({"message": {"data": encoded(b" " * (1024 * 1024) + b"{}")}}, "log entry", Code.REQUEST_SIZE),
    *(
        ({"message": message}, "log entry", Code.REQUEST_FORMAT)
        for message in ({"data": encoded(b"[1]")}, {"data": encoded(b"null")}, {"data": ""}, {}, [1])
    ),
    ({"message": {"data": encoded({}), "messageId": "1"}}, "resource in log entry '1'", Code.REQUEST_FORMAT),
    ({"message": {"data": encoded({"resource": "ml_job"})}}, "resource in log entry", Code.REQUEST_FORMAT),
    ({"limit": 1}, "log entry", Code.REQUEST_FORMAT),
    (None, "log entry", Code.REQUEST_FORMAT),
    *(
        ({"message": {"data": encoded({"job": job})}}, "job in log entry", Code.REQUEST_VALUE)
        for job in (1, None, ["x"])
    ),
    *(
        ({"message": {"data": encoded({"job": job})}}, "job in log entry", Code.REQUEST_JOB)
        for job in (
            "",
            NUMBER,
            "projects/p/locations/us-central1/customJobs/",
            "projects/p/locations/us-central1/customJobs/../1",
            "projects/p/locations/us-central1/customJobs/1\n",
            "projects/p/locations/us-central1/hyperparameterTuningJobs/1",
            "projects/p/locations/../customJobs/1",
            KEY * 1000,
        )
    ),
]


@pytest.mark.parametrize(("data", "place", "code"), MALFORMED)
def test_a_malformed_entry(data: Any, place: str, code: Code) -> None:
    with pytest.raises(RequestError) as error:
        events.job_hint(json.dumps(data).encode())
    assert [(problem.place, problem.code) for problem in error.value.problems] == [(place, code)]
    assert len(str(error.value)) < 500


# When it was published

GARBAGE = ("yesterday", "2026-13-01T00:00:00Z", 5, [1], {"a": 1}, True, "9" * 1000)


@pytest.mark.parametrize(
    ("message", "published"),
    [
        ({}, PUBLISHED),
        ({"publishTime": None, "publish_time": when(PUBLISHED)}, PUBLISHED),
        ({"publishTime": None}, WRITTEN),
        ({"publishTime": ""}, WRITTEN),
        ({"publishTime": "2026-02-23T22:11:19.100123456+01:00"}, PUBLISHED),
        ({"publishTime": "0001-01-01T00:00:00+14:00"}, -62135647200.0),
        *(({"publishTime": garbage}, None) for garbage in GARBAGE),
    ],
)
def test_when_an_entry_was_published(message: Mapping[str, Any], published: float | None) -> None:
    """The time of the message, else that of the entry."""
    hint = events.job_hint(event(entry(), **message))
    assert hint is not None
    assert hint.published == (pytest.approx(published, abs=0.001) if published is not None else None)


# What follows


def put(vertex: Vertex[Job], state: int, region: str = REGIONS[0], deployment: str = "test") -> str:
    """Put a job in this state, given as a number that may be unknown, in the place of the last one there."""
    settings = Settings(**SETTINGS | {"deployment": deployment})
    now = datetime.fromtimestamp(vertex.clock(), UTC)
    job = Job(specs.built(Item("Item1", "cpu", image_spec()), settings, now=now).custom_job)
    job.message.name = f"projects/p/locations/{region}/customJobs/{NUMBER}"
    vertex.turn(job, state)
    vertex.jobs[job.name] = job
    return job.name


class Here(World):
    """A deployment that follows the entries about jobs in three regions."""

    def __init__(self) -> None:
        regions = tuple(Region(name=name) for name in REGIONS)
        super().__init__(regions=regions, tick_topic="projects/p/topics/ticks")

    def put(self, *args: Any, **others: Any) -> str:
        return put(self.vertex, *args, **others)

    def hear(self, *, age: float | None = 5.0, **hint: Any) -> bool:
        """Follow a hint whose message was published so many seconds ago; False if it has to be delivered again."""
        published = None if age is None else self.clock.now - age
        given = JobHint(**{"number": NUMBER, "published": published} | hint)
        try:
            follow(given, self.settings, through(call, self.vertex), through(call, self.topic), self.clock)
        except JobNotEnded as error:
            assert error.message.code is Code.JOB_NOT_ENDED
            return False
        return True


@pytest.fixture
def here() -> Here:
    return Here()


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Return the log lines so far, without those for debugging."""
    monkeypatch.setattr(LOGGER, "handlers", [])
    monkeypatch.setattr(LOGGER, "propagate", True)
    caplog.set_level(logging.INFO, LOGGER.name)
    return lambda: [f"{record.levelname} {record.getMessage()}" for record in caplog.records]


@pytest.mark.parametrize("state", ENDED)
@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("age", [0.0, 5.0, PATIENCE, 1e6, -1e6, None])
def test_a_job_that_has_ended_asks_for_a_pass(here: Here, state: JobState, ended: bool, age: float | None) -> None:
    """Whatever the entry says, and however late it arrives."""
    name = here.put(state.value)
    assert here.hear(ended=ended, age=age)
    assert here.topic.published == [{"ended": name}]


@pytest.mark.parametrize("state", [*(state.value for state in NOT_ENDED), 99])
def test_a_job_that_has_not_ended_is_waited_for_ten_minutes(
    here: Here, told: Callable[[], list[str]], state: int
) -> None:
    """Only if the entry is about its end; an unknown state counts as not ended."""
    here.put(state)
    assert here.hear(ended=False)
    assert told() == []
    assert not here.hear(age=0.0)
    assert not here.hear(age=PATIENCE - 1)
    for old in (PATIENCE, 1e9, -1.0, -1e9, math.nan, None):
        assert here.hear(age=old)
    assert here.topic.published == []
    lines = told()
    assert [(line.split()[0], outcome.name(state) in line) for line in lines] == [("INFO", True)] * 6


@pytest.mark.parametrize("region", REGIONS)
def test_a_job_is_looked_for_in_every_region(here: Here, region: str) -> None:
    name = here.put(JobState.JOB_STATE_FAILED, region)
    assert here.hear()
    assert here.topic.published == [{"ended": name}]
    assert sorted(here.vertex.sent) == [("get", str(JobName("p", one, NUMBER))) for one in sorted(REGIONS)]


def test_jobs_of_others_are_ignored(here: Here, told: Callable[[], list[str]]) -> None:
    """No job, one of another deployment, one without our labels, or one in another region."""
    assert here.hear()
    here.put(JobState.JOB_STATE_FAILED, deployment="another")
    assert here.hear()
    name = here.put(JobState.JOB_STATE_FAILED)
    here.vertex.jobs[name].message.labels = {"team": "a"}
    assert here.hear()
    here.vertex.jobs.clear()
    here.put(JobState.JOB_STATE_FAILED, "asia-east1")
    assert here.hear()
    assert (here.topic.published, told()) == ([], [])


@pytest.mark.parametrize("project", ["p", "415104041262"])
def test_a_person_names_a_job(here: Here, project: str) -> None:
    name = here.put(JobState.JOB_STATE_FAILED, "us-east4")
    assert here.hear(name=JobName(project, "us-east4", NUMBER))
    assert here.topic.published == [{"ended": name}]
    assert here.vertex.sent == [("get", name)]


def test_a_person_names_a_job_that_cannot_be_ours(here: Here) -> None:
    with pytest.raises(RequestError) as error:
        here.hear(name=JobName("another", "asia-east1", NUMBER))
    assert [problem.code for problem in error.value.problems] == [Code.REQUEST_PROJECT, Code.REQUEST_REGION]
    assert (here.vertex.sent, here.topic.published) == ([], [])


@pytest.mark.parametrize("down", REGIONS)
def test_a_region_that_is_down_hides_no_job_elsewhere(here: Here, down: str) -> None:
    here.vertex.down = {down}
    there = next(region for region in REGIONS if region != down)
    name = here.put(JobState.JOB_STATE_SUCCEEDED, there)
    assert here.hear()
    assert here.topic.published == [{"ended": name}]
    here.put(JobState.JOB_STATE_RUNNING, there)
    assert not here.hear()


@pytest.mark.parametrize("trouble", ["Vertex AI", "Pub/Sub"])
@pytest.mark.parametrize("ended", [True, False])
def test_while_a_service_is_down_an_entry_is_kept_for_ten_minutes(
    here: Here, caplog: pytest.LogCaptureFixture, told: Callable[[], list[str]], trouble: str, ended: bool
) -> None:
    here.put(JobState.JOB_STATE_FAILED)
    here.vertex.down = {REGIONS[0]} if trouble == "Vertex AI" else set()
    here.topic.trouble = {"publish": here.topic.refuse} if trouble == "Pub/Sub" else {}
    with pytest.raises(Unavailable) as error:
        here.hear(ended=ended, age=PATIENCE - 1)
    assert error.value.service == trouble
    for old in (PATIENCE, -1e9, None):
        assert here.hear(ended=ended, age=old)
    assert [line.split()[0] for line in told()] == ["WARNING"] * 3
    code = Code.VERTEX_UNAVAILABLE if trouble == "Vertex AI" else Code.PUBSUB_UNAVAILABLE
    assert {(vars(record)["event"], vars(record)["code"]) for record in caplog.records} == {(Event.FAILED, code)}
    assert here.topic.published == []
