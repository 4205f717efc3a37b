"""Metrics, alerts and the dashboard: their form, and what they count in the log of the real functions, with and without faults."""

from __future__ import annotations

import base64
import json
import operator
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.cloud.aiplatform_v1.types import JobState
from google.cloud.logging_v2.types import LogEntry, LogMetric
from google.cloud.pubsub_v1 import PublisherClient, SubscriberClient
from google.protobuf import json_format

from local.machine.cloud import ENTITY, PROJECT, USER, Cloud, Options
from local.machine.functions import Function
from local.machine.images import REGISTRY
from local.machine.shim import PushShim
from local.standins.objects import HttpRefused
from local.standins.pubsub import PubSubServer
from local.standins.web import post
from tests.support import log_samples
from tests.support.deployment import UNREACHABLE, run_spec
from tests.support.logging_filter import Entry, extract, parse
from tests.support.processes import eventually
from vertex_launch.job import outcome, readback

ROOT = Path(__file__).resolve().parents[2]
INFRA, OPERATIONS = ROOT / "infra", ROOT / "docs" / "operations.md"
SAMPLES = ROOT / "tests" / "samples" / "log-entries"
NAME = "vertex-launch"
SERVICES = {"dispatch": f"{NAME}-dispatch", "dispatch_now": f"{NAME}-dispatch-now", "job_state": f"{NAME}-job-state"}
"""The service of each entry point."""


def named(path: Path) -> str:
    """Return a file with its placeholder filled in."""
    return path.read_text().replace("${name}", NAME)


FILES = sorted((INFRA / "monitoring").rglob("*.*"))
METRICS = {path.stem: yaml.safe_load(named(path)) for path in FILES if path.parent.name == "metrics"}
ALERTS = {path.stem: yaml.safe_load(named(path)) for path in FILES if path.parent.name == "alerts"}
DASHBOARD = json.loads(named(INFRA / "monitoring" / "dashboard.json"))
FILTERS = {name: parse(metric["filter"]) for name, metric in METRICS.items()}

FAILURES = {"notices", "pass_failures", "job_state_failures", "dropped", "rejected", "deferrals", "start_failures"}
"""Metrics that stay at zero without faults."""
ALERTED = {"passes", "notices", "pass_failures", "job_state_failures", "dropped", "rejected", "start_failures"}
"""Metrics with an alert; the others do not count faults."""
DEAD_LETTERS = "pubsub.googleapis.com/subscription/num_undelivered_messages"
TYPES = {DEAD_LETTERS: "pubsub_subscription"}
TYPES |= {f"logging.googleapis.com/user/{metric['name']}": "cloud_run_revision" for metric in METRICS.values()}
"""The resource type of each metric type."""


# The files


def test_the_only_placeholder_is_the_name() -> None:
    """Terraform fills it in as a template, deploy.sh replaces it: the results must be the same."""
    assert {path.suffix for path in FILES} == {".yaml", ".json"}
    for path in FILES:
        text = path.read_text().replace("${name}", "")
        assert "$" not in text, path
        assert "%{" not in text, path


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_has_the_form_of_the_api(name: str) -> None:
    metric = METRICS[name]
    message = json_format.ParseDict(metric, LogMetric.pb(LogMetric()))
    assert message.name == f"{NAME}/{name}"
    assert message.description
    assert len(message.filter) < 20_000
    kind = message.metric_descriptor.DESCRIPTOR.enum_types_by_name["MetricKind"].values_by_number
    assert kind[message.metric_descriptor.metric_kind].name == "DELTA"
    is_distribution = metric["metricDescriptor"]["valueType"] == "DISTRIBUTION"
    assert is_distribution or metric["metricDescriptor"]["valueType"] == "INT64"
    assert is_distribution == bool(message.value_extractor) == ("bucketOptions" in metric)


ALIGNERS = {
    "INT64": ("ALIGN_SUM", "REDUCE_SUM"),
    "DISTRIBUTION": ("ALIGN_DELTA", "REDUCE_(MEAN|PERCENTILE_50|PERCENTILE_95)"),
}
"""Valid aligners and reducers of counters and distributions."""


def check_query(query: Mapping[str, Any], aggregation: Mapping[str, Any]) -> str:
    """Check a query of Cloud Monitoring and return its metric's name."""
    found = re.match(r'metric\.type="([^"]+)" AND resource\.type="([^"]+)"', query["filter"])
    assert found, query
    kind = found[1].removeprefix(f"logging.googleapis.com/user/{NAME}/")
    assert TYPES[found[1]] == found[2]
    assert int(aggregation["alignmentPeriod"].removesuffix("s")) % 60 == 0
    if found[1] == DEAD_LETTERS:
        for topic in ("ticks", "job-logs"):
            assert f'"{NAME}-{topic}-dead"' in query["filter"]
        wanted = ("ALIGN_MAX", "REDUCE_SUM")
    else:
        wanted = ALIGNERS[METRICS[kind]["metricDescriptor"]["valueType"]]
    for name, pattern in zip(("perSeriesAligner", "crossSeriesReducer"), wanted, strict=True):
        assert re.fullmatch(pattern, aggregation[name]), query
    return kind


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_has_the_form_of_the_api(name: str) -> None:
    alert = ALERTS[name]
    assert set(alert) == {
        "displayName",
        "severity",
        "documentation",
        "userLabels",
        "combiner",
        "conditions",
        "alertStrategy",
    }
    assert alert["displayName"].startswith(f"{NAME}: ")
    assert alert["severity"] in ("CRITICAL", "ERROR", "WARNING")
    assert alert["combiner"] == "OR"
    assert alert["userLabels"] == {"deployment": NAME}
    assert alert["documentation"]["mimeType"] == "text/markdown"
    assert alert["documentation"]["content"].endswith(f" docs/operations.md#{name}")
    assert 1800 <= int(alert["alertStrategy"]["autoClose"].removesuffix("s")) <= 604_800
    for condition in alert["conditions"]:
        assert set(condition) == {"displayName", "conditionThreshold"}
        threshold = condition["conditionThreshold"]
        (aggregation,) = threshold["aggregations"]
        check_query(threshold, aggregation)
        duration = int(threshold["duration"].removesuffix("s"))
        assert duration % 60 == 0
        assert duration or "evaluationMissingData" not in threshold, (
            "the API refuses it for a duration of less than a minute"
        )
        assert threshold["comparison"] in ("COMPARISON_GT", "COMPARISON_LT")


def test_each_metric_of_a_fault_has_one_alert() -> None:
    found = [
        check_query(condition["conditionThreshold"], condition["conditionThreshold"]["aggregations"][0])
        for alert in ALERTS.values()
        for condition in alert["conditions"]
    ]
    assert Counter(found) == Counter([*ALERTED, DEAD_LETTERS])


def test_calls_of_dispatch_now_do_not_hide_that_the_scheduler_is_gone() -> None:
    (condition,) = ALERTS["no-pass"]["conditions"]
    assert f'resource.labels.service_name="{SERVICES["dispatch"]}"' in condition["conditionThreshold"]["filter"]


def test_the_dashboard_has_the_form_of_the_api_and_shows_every_metric() -> None:
    assert set(DASHBOARD) == {"displayName", "mosaicLayout"}
    taken: Counter[tuple[int, int]] = Counter()
    shown = set()
    for tile in DASHBOARD["mosaicLayout"]["tiles"]:
        x, y = tile.get("xPos", 0), tile.get("yPos", 0)
        taken.update((x + dx, y + dy) for dx in range(tile["width"]) for dy in range(tile["height"]))
        assert set(tile["widget"]) == {"title", "xyChart"}
        assert set(tile["widget"]["xyChart"]) == {"dataSets", "yAxis"}
        for chart in tile["widget"]["xyChart"]["dataSets"]:
            assert chart["plotType"] in ("LINE", "STACKED_BAR")
            query = chart["timeSeriesQuery"]["timeSeriesFilter"]
            assert chart["minAlignmentPeriod"] == query["aggregation"]["alignmentPeriod"]
            shown.add(check_query(query, query["aggregation"]))
    assert set(taken.values()) == {1}, "tiles do not overlap"
    assert {x for x, _ in taken} == set(range(DASHBOARD["mosaicLayout"]["columns"]))
    assert shown == {*METRICS, DEAD_LETTERS}


def test_each_alert_has_a_section_and_every_query_there_can_be_parsed() -> None:
    text = OPERATIONS.read_text()
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(ALERTS) <= headings
    queries = re.findall(r"^```\n(resource\.type=.*?)^```$", text.replace("NAME", NAME), re.MULTILINE | re.DOTALL)
    assert len(queries) >= len(ALERTS)
    for query in queries:
        parse(query)


# When an alert fires

COMPARISONS = {"COMPARISON_GT": operator.gt, "COMPARISON_LT": operator.lt}
MINUTE = 60


def fires(alert: str, moments: Sequence[float], end: float) -> float | None:
    """Return when the first condition of an alert is met for a metric that counts at these moments; all in seconds.

    Like Cloud Monitoring: once a minute, over the past alignment period, as soon as the condition holds for ``duration``.
    """
    condition = ALERTS[alert]["conditions"][0]["conditionThreshold"]
    period = float(condition["aggregations"][0]["alignmentPeriod"].removesuffix("s"))
    since = None
    for now in range(int(moments[0]) // MINUTE * MINUTE, int(end), MINUTE):
        counted = sum(now - period < moment <= now for moment in moments)
        if counted or "evaluationMissingData" not in condition:
            met = COMPARISONS[condition["comparison"]](counted, condition["thresholdValue"])
        else:
            met = condition["evaluationMissingData"] == "EVALUATION_MISSING_DATA_ACTIVE"
        since = (now if since is None else since) if met else None
        if since is not None and now - since >= float(condition["duration"].removesuffix("s")):
            return now
    return None


def failures(outage: float) -> list[float]:
    """Return when passes fail in an outage: a tick a minute, each retried after 10 s and then with backoff, up to 60 s."""
    found = []
    for tick in range(0, int(outage), MINUTE):
        moment, pause = float(tick), 10.0
        while moment < outage:
            found.append(moment)
            moment, pause = moment + pause, min(60.0, 2 * pause)
    return sorted(found)


@pytest.mark.parametrize("minutes", [1, 2, 3, 4])
def test_a_short_outage_does_not_alert(minutes: int) -> None:
    assert fires("passes-fail", failures(minutes * MINUTE), 7200) is None


@pytest.mark.parametrize("minutes", [11, 60])
def test_an_outage_alerts_after_ten_minutes(minutes: int) -> None:
    found = fires("passes-fail", failures(minutes * MINUTE), 7200)
    assert found is not None
    assert 600 <= found <= 720


def test_repeated_failures_alert_and_a_rare_one_does_not() -> None:
    now_and_then = [float(moment) for moment in range(0, 3600, 4 * MINUTE)]
    assert fires("passes-fail", now_and_then, 3600) is not None
    assert fires("passes-fail", now_and_then[::3], 3600) is None


def test_no_pass_for_ten_minutes_alerts() -> None:
    passes = [float(moment) for moment in range(0, 3600, MINUTE)]
    found = fires("no-pass", passes, 7200)
    assert found is not None
    assert 600 <= found - passes[-1] <= 720
    assert fires("no-pass", passes, 3600) is None
    assert fires("no-pass", passes[::4], 3600) is None, "long passes, or ticks during a pass"


def test_one_rejected_item_alerts() -> None:
    assert fires("items-rejected", [30.0], 600) == 60
    assert fires("jobs-fail-to-start", [30.0], 600) == 60


# The log of the functions


def counted(entries: Sequence[Entry]) -> Counter[str]:
    """Return how many entries each metric counts."""
    return Counter(name for entry in entries for name, means in FILTERS.items() if means(entry))


def tripped(entries: Sequence[Entry]) -> set[str]:
    """Return the metrics of faults that count something."""
    return FAILURES & set(counted(entries))


def values(metric: str, entries: Sequence[Entry]) -> list[float | None]:
    """Return what a distribution records."""
    return [extract(METRICS[metric]["valueExtractor"], entry) for entry in entries if FILTERS[metric](entry)]


def written(log: Path, service: str, begin: int = 0) -> Sequence[Entry]:
    """Return the entries of a function's output from this byte on."""
    entries = [log_samples.of_line(line, service) for line in log.read_bytes()[begin:].decode().splitlines()]
    for entry in entries:
        json_format.ParseDict(entry, LogEntry.pb(LogEntry()))
    return entries


def tick_body(data: bytes = b"{}", published: float | None = None) -> bytes:
    """Return the body of a push from Pub/Sub."""
    when = datetime.fromtimestamp(published or time.time(), UTC).isoformat(timespec="milliseconds")
    message = {"data": base64.b64encode(data).decode(), "messageId": "1", "publishTime": when}
    return json.dumps({"message": message, "subscription": f"projects/{PROJECT}/subscriptions/{NAME}-ticks"}).encode()


def ask(function: Function, body: bytes) -> tuple[int, bytes]:
    return post(function.url, body, {"Content-Type": "application/json"}, 30)


def until_free(send: Callable[[], tuple[int, bytes]]) -> tuple[int, bytes]:
    """Send a request until no other pass is running, and return the answer."""
    answers: list[tuple[int, bytes]] = []

    def taken() -> bool:
        answers.append(send())
        return answers[-1][0] not in (409, 429)

    assert eventually(taken)
    return answers[-1]


class Recorder:
    """The local cloud, and the log of its functions since ``begin``."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.functions = {"dispatch": cloud.dispatch, "dispatch_now": cloud.dispatch_now, "job_state": cloud.job_state}
        self.begin()

    def begin(self) -> None:
        self._read = {name: function.log.stat().st_size for name, function in self.functions.items()}

    def entries(self) -> Sequence[Entry]:
        return [
            entry
            for name, function in self.functions.items()
            for entry in written(function.log, SERVICES[name], self._read[name])
        ]

    def await_count(self, metric: str, least: int = 1) -> None:
        assert eventually(lambda: counted(self.entries())[metric] >= least), counted(self.entries())

    def push(self, image: str, **changes: Any) -> str:
        return self.cloud.wandb.store.push(ENTITY, "vertex-cpu", run_spec(image, **changes))

    def tick(self, data: bytes = b"{}", published: float | None = None) -> int:
        """Deliver a tick until no other pass is running, as Pub/Sub does; jobs' ends also request passes."""
        return until_free(lambda: ask(self.cloud.dispatch, tick_body(data, published)))[0]

    def now(self, **wanted: Any) -> tuple[int, Any]:
        """Request a pass until no other one is running."""
        status, body = until_free(lambda: ask(self.cloud.dispatch_now, json.dumps(wanted).encode()))
        return status, json.loads(body)

    def hold(self, seconds: float) -> None:
        """Let another pass hold the lock for this long."""
        content = json.dumps({"pass_id": "somebody", "expires": time.time() + seconds}).encode()
        assert eventually(lambda: self._write({"name": "vertex-launch/default/hold.json"}, content))

    def _write(self, wanted: Mapping[str, str], content: bytes) -> bool:
        try:
            self.cloud.storage.objects.insert("demo-state", wanted, content, {})
        except HttpRefused:  # an object takes one write a second
            return False
        return True

    def jobs(self, *states: str) -> list[str]:
        return [
            name for name, job in self.cloud.vertex.jobs.items() if job.state.name.removeprefix("JOB_STATE_") in states
        ]

    def end_well(self, name: str) -> None:
        """Let a job's program begin its run, and end it."""
        assert eventually(lambda: name in self.jobs("RUNNING"))
        job = readback.managed(self.cloud.vertex.jobs[name], deployment="default", region="us-central1")
        assert job is not None
        store = self.cloud.wandb.store
        store.project(job.run.entity, job.run.project)
        store.runs.upsert(job.run.entity, job.run.project, job.run.id, username=USER)
        self.cloud.vertex.advance(name, JobState.JOB_STATE_SUCCEEDED)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """A cloud with two slots and without a schedule."""
    patience = {"settle_grace": 0, "read": 2, "look": 2}
    options = Options(
        tick_every=3600,
        queued=0,
        pending=0,
        raw_pushes=True,
        settings={"timeouts": patience, "key_ttl": 0},
        variables={"WANDB_LAUNCH_MAX_JOBS": "2"},
    )
    cloud = Cloud(options)
    cloud.start()
    for queue in ("vertex-cpu", "vertex-gpu"):
        cloud.wandb.store.create_queue(ENTITY, queue)
    yield cloud
    cloud.stop()


@pytest.fixture
def recorder(cloud: Cloud) -> Recorder:
    return Recorder(cloud)


def test_without_faults_no_metric_of_a_fault_counts(recorder: Recorder) -> None:
    """Jobs succeed and others take their slots; ticks meet a pass or come late or twice; there is a dry run."""
    for _ in range(3):
        recorder.push(f"{REGISTRY}/sleep:1")
    assert recorder.now(dry_run=True)[0] == 200
    assert recorder.tick() == 200
    first, second = recorder.jobs("QUEUED", "PENDING", "RUNNING")
    recorder.end_well(first)
    recorder.await_count("submissions", 3)
    (third,) = set(recorder.cloud.vertex.jobs) - {first, second}
    for name in (second, third):
        recorder.end_well(name)
    assert eventually(lambda: _settled(recorder.entries()) == ["done"] * 3)
    status, report = recorder.now()
    assert status == 200
    assert recorder.tick(published=time.time() - 5) == 200, "a pass has already done its work"
    assert recorder.tick(published=time.time() - 601) == 200, "a newer one follows"
    recorder.hold(60)
    assert ask(recorder.cloud.dispatch, tick_body())[0] == 429
    assert ask(recorder.cloud.dispatch_now, b"")[0] == 409
    recorder.hold(0)

    entries = recorder.entries()
    found = counted(entries)
    assert tripped(entries) == set()
    assert found["submissions"] == 3
    assert found["passes"] == _lines(entries, "Pass: ") >= 3
    assert _lines(entries, "Dry run") == 1
    assert any(entry.get("jsonPayload", {}).get("event") == "busy" for entry in entries)

    reports = [entry["jsonPayload"]["report"] for entry in entries if FILTERS["passes"](entry)]
    assert report in reports
    assert values("pass_duration", entries) == [one["took_ms"] for one in reports]
    assert all(one["took_ms"] > 0 for one in reports)
    assert values("active_jobs", entries) == [one["slots"]["active"] for one in reports]
    assert {0, 2} <= set(values("active_jobs", entries))
    assert set(values("max_jobs", entries)) == {2}
    (refill,) = values("refill_seconds", entries)
    jobs = recorder.cloud.vertex.jobs
    empty = (jobs[third].create_time - jobs[first].end_time).total_seconds()
    assert refill is not None
    assert empty - 0.01 <= refill <= empty + 10


def _settled(entries: Sequence[Entry]) -> list[str]:
    payloads = [entry.get("jsonPayload", {}) for entry in entries]
    return [payload["outcome"] for payload in payloads if payload.get("event") == "settled"]


def _lines(entries: Sequence[Entry], begin: str) -> int:
    return sum(
        (entry.get("jsonPayload", {}).get("message") or entry.get("textPayload", "")).startswith(begin)
        for entry in entries
    )


@pytest.mark.parametrize("service", SERVICES.values())
@pytest.mark.parametrize("sample", log_samples.harmless(NAME))
def test_harmless_messages_of_the_platform_are_not_counted(service: str, sample: str) -> None:
    entry = log_samples.harmless(service)[sample]
    json_format.ParseDict(entry, LogEntry.pb(LogEntry()))
    assert counted([entry]) == {}


# Faults


def broken_service(name: str, operation: str, status: int | str) -> Callable[[Recorder], None]:
    """Return a fault: a service refuses requests."""

    def happen(recorder: Recorder) -> None:
        recorder.cloud.faults[name].fail(operation, status, times=None)
        try:
            assert recorder.tick() == 503
        finally:
            recorder.cloud.faults[name].clear()

    return happen


def job_state_is_cut_off(recorder: Recorder) -> None:
    entry = {
        "resource": {"type": "ml_job", "labels": {"job_id": "1", "task_name": "service"}},
        "textPayload": "Job failed.",
    }
    recorder.cloud.faults["vertex"].fail("GetCustomJob", "UNAVAILABLE", times=None)
    try:
        status, _ = ask(recorder.cloud.job_state, tick_body(json.dumps(entry).encode()))
        assert status == 503
    finally:
        recorder.cloud.faults["vertex"].clear()


def an_item_is_rejected(recorder: Recorder) -> None:
    recorder.push(UNREACHABLE)
    assert recorder.tick() == 200


def an_item_is_deferred(recorder: Recorder) -> None:
    store = recorder.cloud.wandb.store
    item = recorder.push(f"{REGISTRY}/sleep:1")
    recorder.cloud.faults["vertex"].fail("CreateCustomJob", "RESOURCE_EXHAUSTED", message="quota metrics exceed limits")
    assert recorder.tick() == 200
    (queue,) = [queue.id for queue in store.queues.values() if queue.name == "vertex-cpu"]
    store.launch.delete_item(queue, item)


def a_queue_is_gone(recorder: Recorder) -> None:
    store = recorder.cloud.wandb.store
    (queue,) = [queue for queue in store.queues.values() if queue.name == "vertex-gpu"]
    queue.name = "renamed"
    try:
        assert recorder.tick() == 200
    finally:
        queue.name = "vertex-gpu"


def a_tick_is_malformed(recorder: Recorder) -> None:
    assert recorder.tick(b"junk") in (200, 204)


def a_log_entry_is_malformed(recorder: Recorder) -> None:
    assert ask(recorder.cloud.job_state, tick_body(b"junk"))[0] in (200, 204)


def a_job_cannot_start(image: str) -> Callable[[Recorder], None]:
    def happen(recorder: Recorder) -> None:
        recorder.push(f"{REGISTRY}/{image}")
        assert recorder.tick() == 200
        recorder.await_count("start_failures")

    return happen


FAULTS: Mapping[str, tuple[Callable[[Recorder], None], str]] = {
    "W&B is down": (broken_service("wandb", "*", 503), "pass_failures"),
    "W&B refuses the key": (broken_service("wandb", "*", 401), "pass_failures"),
    "the key cannot be read": (broken_service("secrets", "*", "PERMISSION_DENIED"), "pass_failures"),
    "Vertex AI is down": (broken_service("vertex", "ListCustomJobs", "UNAVAILABLE"), "pass_failures"),
    "the bucket refuses": (broken_service("storage", "*", 403), "pass_failures"),
    "job_state is cut off": (job_state_is_cut_off, "job_state_failures"),
    "an item is rejected": (an_item_is_rejected, "rejected"),
    "an item is deferred": (an_item_is_deferred, "deferrals"),
    "a queue is gone": (a_queue_is_gone, "notices"),
    "a tick is malformed": (a_tick_is_malformed, "dropped"),
    "a log entry is malformed": (a_log_entry_is_malformed, "dropped"),
    "an image cannot be pulled": (a_job_cannot_start("missing:1"), "start_failures"),
    "a program crashes at once": (a_job_cannot_start("crash:1"), "start_failures"),
    "a program never calls wandb.init": (a_job_cannot_start("no-init:1"), "start_failures"),
}
"""Faults, and the one metric that counts each."""


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_counted_by_its_metric_alone(recorder: Recorder, fault: str) -> None:
    happen, metric = FAULTS[fault]
    happen(recorder)
    assert tripped(recorder.entries()) == {metric}


def test_a_function_that_is_gone_shows_in_the_passes(recorder: Recorder) -> None:
    """It cannot report this itself. Cloud Run does, and no pass finishes."""
    shim, dispatch = recorder.cloud.shim, recorder.cloud.dispatch
    dispatch.stop()
    recorder.begin()
    before = shim.calls[503]
    assert recorder.cloud.scheduler.run_now()
    assert eventually(lambda: shim.calls[503] > before)
    assert counted(recorder.entries()) == {}
    dispatch.start()
    dispatch.wait()
    recorder.hold(0)  # its lock, if it had one, would expire by itself
    assert recorder.tick() == 200
    assert counted(recorder.entries())["passes"] >= 1
    assert tripped(recorder.entries()) == set()


@pytest.mark.parametrize("target", SERVICES)
@pytest.mark.parametrize("sample", log_samples.faults(NAME))
def test_a_fault_reported_by_the_platform_is_counted_by_the_metric_of_its_function(target: str, sample: str) -> None:
    entry = log_samples.faults(SERVICES[target])[sample]
    json_format.ParseDict(entry, LogEntry.pb(LogEntry()))
    assert counted([entry]) == {"job_state_failures" if target == "job_state" else "pass_failures": 1}


def test_other_services_are_not_counted() -> None:
    """Another deployment in the same project, or another program."""
    for service in (f"{NAME}-2-dispatch", f"my-{NAME}-dispatch", "frontend"):
        samples = [*log_samples.faults(service).values(), *log_samples.harmless(service).values()]
        line = json.dumps({"severity": "ERROR", "message": "no pass", "event": "failed"})
        assert counted([*samples, log_samples.of_line(line, service)]) == {}


# Functions that always fail, and dead letters


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Function]]:
    """The functions with a configuration that cannot be used."""
    folder = tmp_path_factory.mktemp("broken")
    variables = {"STATE_BUCKET": "nonsense", "WANDB_LAUNCH_MAX_JOBS": "many"}
    functions = {
        target: Function(
            target, "http" if target == "dispatch_now" else "cloudevent", variables, folder / f"{target}.log"
        )
        for target in SERVICES
    }
    try:
        for function in functions.values():
            function.start()
        for function in functions.values():
            function.wait()
        yield functions
    finally:
        for function in functions.values():
            function.stop()


@pytest.mark.parametrize("target", SERVICES)
def test_a_broken_configuration_is_counted_by_the_metric_of_its_function(
    broken: Mapping[str, Function], target: str
) -> None:
    begin = broken[target].log.stat().st_size
    assert ask(broken[target], tick_body())[0] == 500
    entries = written(broken[target].log, SERVICES[target], begin)
    assert counted(entries) == {"job_state_failures" if target == "job_state" else "pass_failures": 1}


@dataclass(frozen=True)
class Subscription:
    """A push subscription as ``infra`` creates it: its topic, its function, its ack deadline in seconds."""

    topic: str
    target: str
    ack_deadline: int


@pytest.mark.parametrize(
    "subscription", [Subscription("ticks", "dispatch", 130), Subscription("job-logs", "job_state", 70)], ids=str
)
def test_a_message_that_a_function_never_accepts_becomes_a_dead_letter(
    broken: Mapping[str, Function], subscription: Subscription, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 20 attempts; backoff and deadlines pass 500 times as fast."""
    function = broken[subscription.target]
    topic = f"projects/{PROJECT}/topics/{NAME}-{subscription.topic}"
    dead = f"projects/{PROJECT}/subscriptions/{NAME}-{subscription.topic}-dead"
    server = PubSubServer(pace=0.002)
    shim = PushShim(function.url, topic, raw=True)
    server.start()
    shim.start()
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", server.address)
    publisher = PublisherClient()
    try:
        with SubscriberClient() as subscriber:
            for name in (topic, f"{topic}-dead"):
                publisher.create_topic(name=name)
            subscriber.create_subscription(name=dead, topic=f"{topic}-dead")
            subscriber.create_subscription(
                request={
                    "name": dead.removesuffix("-dead"),
                    "topic": topic,
                    "push_config": {"push_endpoint": shim.url},
                    "ack_deadline_seconds": subscription.ack_deadline,
                    "retry_policy": {"minimum_backoff": {"seconds": 10}, "maximum_backoff": {"seconds": 60}},
                    "dead_letter_policy": {"dead_letter_topic": f"{topic}-dead", "max_delivery_attempts": 20},
                }
            )
            publisher.publish(topic, b'{"limit": 1}').result(timeout=10)
            arrived: list[Any] = []

            def seen() -> bool:
                arrived.extend(subscriber.pull(subscription=dead, max_messages=5).received_messages)
                return bool(arrived)

            assert eventually(seen)
            (letter,) = arrived
    finally:
        publisher.stop()
        publisher.transport.close()
        shim.stop()
        server.stop()
    assert letter.message.data == b'{"limit": 1}'
    attributes = letter.message.attributes
    assert attributes["CloudPubSubDeadLetterSourceSubscription"] == dead.rsplit("/", 1)[1].removesuffix("-dead")
    assert attributes["CloudPubSubDeadLetterSourceDeliveryCount"] == "20"
    assert server.calls["Push"] == 20
    assert set(shim.calls) <= {500, 429}
    assert shim.calls[500]


# The sink


SINK = parse((INFRA / "job-ends.filter").read_text())


def test_the_sink_passes_on_the_real_service_s_entries_about_an_end() -> None:
    handed = {path.stem: SINK(json.loads(path.read_text())) for path in SAMPLES.glob("*.json")}
    known = {"succeeded": True, "failed": True, "cancelled": True, "running": False, "provisioned": False}
    assert handed.items() >= known.items()


def job_entry(text: str = "", **labels: str) -> dict[str, Any]:
    job = {"job_id": "1", "project_id": PROJECT, "task_name": "service"}
    return {"resource": {"type": "ml_job", "labels": job}, "textPayload": text, "labels": labels}


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("prefix", ["", "JOB_STATE_"])
def test_the_sink_knows_the_states_that_a_label_may_name(state: JobState, prefix: str) -> None:
    label = {"ml.googleapis.com/job_state": state.name.replace("JOB_STATE_", prefix)}
    assert SINK(job_entry(**label)) == outcome.is_ended(state.value)


def test_the_sink_leaves_other_entries_alone() -> None:
    end = job_entry("Job failed.")
    assert SINK(end)
    assert SINK({**job_entry(), "jsonPayload": {"message": "Job completed successfully."}})
    assert not SINK(job_entry("The job said: Job failed."))
    assert not SINK(job_entry("Job is running."))
    replica = {**end["resource"]["labels"], "task_name": "workerpool0-0"}
    assert not SINK({**end, "resource": {"type": "ml_job", "labels": replica}})
    assert not SINK({**end, "resource": {**end["resource"], "type": "gce_instance"}})
