"""Measures the deployment itself: ticks, the way of a job's end to the next pass, callers, dead letters and metrics."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from vertex_launch import events
from vertex_launch.adapters.record_storage import RecordStorage
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.codes import Code
from vertex_launch.errors import RequestError, Unavailable
from vertex_launch.model import JobName, ManagedJob, RunId
from vertex_launch.state.record import LOCK
from vertex_launch.verify import jobs
from vertex_launch.verify.bench import Bench
from vertex_launch.verify.findings import Finding, fail, note, ok, short, skip, unmeasured
from vertex_launch.verify.outside import DispatchNow, Monitoring, Pulled, Subscriptions
from vertex_launch.verify.queues import CLAIMED, FAILED, PROJECT, Queues

SOON = 60.0
"""Seconds in which a pass follows a job's end; the next tick is not later than that."""
TICK_PATIENCE, START_PATIENCE, LOG_PATIENCE, DEAD_PATIENCE, DATA_PATIENCE = 180.0, 420.0, 300.0, 180.0, 300.0
"""Seconds after which a tick, an item's job, a log entry, a dead letter or the data of a metric is not waited for."""
ATTEMPTS = 5
_METRIC = re.compile(r'metric\.type="([^"]+)"')
_SINK = "Check the log sink NAME-job-ends, its writer's right to publish, and the log of NAME-job-state"


@dataclass
class Outside:
    """The services of a deployment that the measurements use."""

    subscriptions: Callable[[], Subscriptions]
    record: Callable[[], RecordStorage]
    vertex: VertexJobs
    monitoring: Monitoring
    dispatch_now: DispatchNow | None
    alerts: Path


@dataclass
class Seen:
    """What happened to the item that was pushed, in seconds of this machine's clock; 0 for what did not happen yet."""

    item: str
    queue: str
    pushed: float
    ended: float = 0.0
    logged: float = 0.0
    ticked: float = 0.0
    passed: float = 0.0
    job: ManagedJob | None = None
    words: str = ""
    """The log entry of the end."""
    generation: int = 0
    """That of the lock when the job was last seen before its end."""


class Deployment:
    """One deployment, whose functions are running."""

    def __init__(self, bench: Bench, outside: Outside, queues: Queues) -> None:
        self._bench = bench
        self._outside = outside
        self._queues = queues
        self._seen: Seen | None = None

    # Names

    @property
    def _ticks(self) -> str:
        if topic := self._bench.settings.tick_topic:
            return topic
        raise Unavailable("Pub/Sub", "tick_topic is not set", code=Code.CONFIG_TICK_TOPIC)

    def _beside(self, name: str) -> str:
        """Return the topic of log entries or of dead letters, which a deployment names like that of ticks."""
        if not self._ticks.endswith("ticks"):
            text = f"the name of {name} is unknown, because {self._ticks} does not end with ticks"
            raise Unavailable("Pub/Sub", text, code=Code.CONFIG_TICK_TOPIC)
        return f"{self._ticks.removesuffix('ticks')}{name}"

    def _own(self, name: str, kind: str = "subscriptions") -> str:
        return f"projects/{self._bench.settings.project}/{kind}/vertex-launch-verify-{self._bench.mark}-{name}"

    @cached_property
    def _pubsub(self) -> Subscriptions:
        return self._outside.subscriptions()

    @cached_property
    def _record(self) -> RecordStorage:
        return self._outside.record()

    def _generation(self) -> int:
        """Return the generation of the lock, which every pass replaces."""
        found = self._record.read(LOCK)
        return found[1] if found else 0

    def _subscribe(self, name: str, topic: str, dead_letters: str = "") -> str:
        subscription = self._own(name)
        self._bench.remove(f"subscription {subscription}", lambda: self._pubsub.unsubscribe(subscription))
        self._pubsub.subscribe(subscription, topic, dead_letters, ATTEMPTS)
        return subscription

    # Ticks

    def tick(self) -> Iterator[Finding]:
        """Publish a tick, and wait until a pass takes the lock."""
        name, before = "deployment-tick", self._generation()
        self._pubsub.publish(self._ticks, b"{}")
        found, took = self._bench.until(lambda: True if self._generation() != before else None, TICK_PATIENCE)
        if found:
            yield ok(name, f"a pass begins after {took:.0f} s", value=round(took, 1))
            return
        remedy = "Check the subscription NAME-ticks and the log of NAME-dispatch (docs/operations.md#no-pass)"
        yield fail(Code.VERIFY_DEPLOYMENT, name, f"no pass after {took:.0f} s", remedy, value=round(took, 1))

    # An item of the deployment

    def begin(self) -> Seen:
        """Push a small item to the first queue of the deployment, and request a pass."""
        if self._seen is not None:
            return self._seen
        bench, queue = self._bench, self._bench.settings.queues[0]
        self._logs = self._subscribe("logs", self._beside("job-logs"))
        self._passes = self._subscribe("ticks", self._ticks)
        with bench.interrupts.shielded():
            spec = jobs.item_spec(self._queues.entity, "item", jobs.PROGRAMS["item"])
            try:
                item = self._queues.push(queue, spec)
            except Unavailable:
                bench.left.append(f"perhaps an item {spec['name']} in queue {queue}, because W&B did not answer")
                raise
            self._seen = Seen(item, queue, bench.clock.now())
            bench.remove(f"item {item} in W&B, and its job", self._remove)
        self._pubsub.publish(self._ticks, b"{}")
        bench.watchers.append(self._watch)
        return self._seen

    def item(self) -> Iterator[Finding]:
        """Wait until a pass has created the job of the item and claimed it."""
        name, seen = "deployment-item", self.begin()
        states = (CLAIMED, FAILED)

        def settled() -> str | None:
            state = self._queues.state(seen.queue, seen.item)
            return state if state in states else None

        state, _ = self._bench.until(settled, START_PATIENCE)
        took = self._bench.clock.now() - seen.pushed
        shown = self._queues.shown(seen.queue, seen.item)
        if state == CLAIMED or shown.run:  # a job may have failed in the meantime
            yield ok(name, f"it is claimed after {took:.0f} s", value=round(took, 1), words=shown.error)
        elif state == FAILED:
            remedy = "Correct what the item's message in the JSON says, such as the policy"
            measured = f"it has failed: {short(shown.error)}"
            yield fail(Code.VERIFY_DEPLOYMENT, name, measured, remedy, words=shown.error)
        else:
            words = "; ".join(shown.warnings)
            remedy = "Look at the report of a pass in the log of NAME-dispatch, and whether a slot is free"
            yield fail(Code.VERIFY_DEPLOYMENT, name, f"it still waits after {took:.0f} s", remedy, words=words)

    def job_end(self) -> Iterator[Finding]:
        """Wait for the end of the item's job, its log entry, the tick of job_state, and the next pass."""
        entry, following, seen = "deployment-log-entry", "deployment-next-pass", self.begin()
        began, _ = self._bench.until(lambda: seen.job, START_PATIENCE)
        ended = None
        if began is not None:
            ended, _ = self._bench.until(lambda: seen.ended or None, jobs.LIMIT + 300)
        if ended is None:
            for name in (entry, following):
                yield unmeasured(name, "the item's job has not ended" if began else "the item has no job")
            return
        self._bench.until(lambda: seen.ticked or None, LOG_PATIENCE)
        yield self._entry(entry, seen)
        self._bench.until(lambda: seen.passed or None, TICK_PATIENCE)
        took = seen.passed - ended
        measured, value = f"a pass begins {took:.0f} s after the end", round(took, 1)
        if not seen.passed:
            measured = f"no pass {self._bench.clock.now() - ended:.0f} s after the end"
            yield fail(Code.VERIFY_DEPLOYMENT, following, measured, "See docs/operations.md#no-pass")
        elif took > SOON:
            yield note(following, f"{measured}; a tick makes up for it", _SINK, value=value)
        else:
            yield ok(following, measured, value=value)

    def _entry(self, name: str, seen: Seen) -> Finding:
        if not seen.logged:
            measured = "no log entry about the end reaches the topic"
            return fail(Code.VERIFY_DEPLOYMENT, name, measured, _SINK)
        late = max(0.0, seen.logged - seen.ended)
        if not seen.ticked:
            measured = f"the entry comes {late:.0f} s after the end, and job_state publishes no tick"
            return fail(Code.VERIFY_DEPLOYMENT, name, measured, _SINK, words=seen.words)
        tick = max(0.0, seen.ticked - seen.ended)
        measured = f"the entry comes {late:.0f} s after the end, and its tick after {tick:.0f} s"
        return ok(name, measured, value=round(tick, 1), words=seen.words)

    def _watch(self) -> None:
        """Look at the item's job, at the messages about it, and at the lock."""
        seen, now = self._seen, self._bench.clock.now
        if seen is None or seen.passed:
            return
        if seen.job is None:
            seen.job = self._find(seen.item)
        elif not seen.ended:
            job, generation = self._outside.vertex.get(seen.job.name), self._generation()
            if job is not None and job.ended:
                seen.ended, seen.generation = now(), seen.generation or generation
            else:
                seen.generation = generation
        if seen.job is not None:
            self._read_messages(seen, JobName.parse(seen.job.name))
        if seen.ended and self._generation() != seen.generation:
            seen.passed = now()

    def _find(self, item: str) -> ManagedJob | None:
        for region in self._bench.settings.regions:
            shown = self._outside.vertex.recent(region.name, self._bench.began - 600)
            if found := [job for job in shown if job.item == item]:
                return found[0]
        return None

    def _read_messages(self, seen: Seen, job: JobName) -> None:
        if not seen.logged:
            for one in self._take(self._logs):
                if _is_end(one, job):
                    seen.logged, seen.words = self._bench.clock.now(), one.data.decode(errors="replace")[:2000]
        if not seen.ticked:
            for one in self._take(self._passes):
                if _names(one, job):
                    seen.ticked = self._bench.clock.now()

    def _take(self, subscription: str) -> Sequence[Pulled]:
        messages = self._pubsub.pull(subscription)
        if messages:
            self._pubsub.ack(subscription, messages)
        return messages

    def _remove(self) -> None:
        """Cancel the item's job, and remove the item and its run. Raises Unavailable."""
        seen = self._seen
        if seen is None:
            return
        job, run = seen.job or self._find(seen.item), self._queues.shown(seen.queue, seen.item).run
        if job is None and run:  # claimed, so that there is a job
            job, _ = self._bench.until(lambda: self._find(seen.item), jobs.LAST_WORDS)
        if job is not None:
            name = job.name
            self._outside.vertex.cancel(name)
            self._bench.until(lambda: True if _over(self._outside.vertex.get(name)) else None, jobs.LAST_WORDS)
        elif run:
            self._bench.left.append(f"the job of item {seen.item}, which no list shows yet")
        if run:
            self._queues.forget(RunId(self._queues.entity, PROJECT, run))
        self._queues.delete_item(seen.queue, seen.item)

    # Callers

    def callers(self) -> Iterator[Finding]:
        """Call dispatch_now with and without a token."""
        caller, others, function = "deployment-caller", "deployment-refusal", self._outside.dispatch_now
        if function is None:
            for name in (caller, others):
                yield skip(name, "its URL is unknown: set DISPATCH_NOW or use --dispatch-now")
            return
        token, timeout = function.token(), self._bench.settings.lock_seconds
        self._bench.redact.add(token)
        status, body, words = function.ask(token, timeout)
        if status == 200 and "slots" in body:
            yield ok(caller, "it answers a dry run")
        else:
            remedy = "Check who may call it (--invoker, invokers) and from where (--ingress, dispatch_now_ingress)"
            measured = f"it answers {status}: {short(words)}"
            yield fail(Code.VERIFY_DEPLOYMENT, caller, measured, remedy, words=words)
        if not token:
            yield skip(others, "callers have no tokens here, so others cannot be distinguished")
            return
        answers = [function.ask(other, timeout)[0] for other in ("", "not.a.token")]
        if all(answer in (401, 403) for answer in answers):
            yield ok(others, f"without a token it answers {answers[0]}, with a wrong one {answers[1]}")
        elif 200 in answers:
            remedy = "Remove allUsers from the invokers of NAME-dispatch-now"
            yield fail(Code.VERIFY_DEPLOYMENT, others, "it answers anyone", remedy)
        else:
            yield note(others, f"it answers {answers[0]} and {answers[1]} instead of 401 or 403")

    # Dead letters

    def dead_letter(self) -> Iterator[Finding]:
        """Refuse a message until it becomes a dead letter of the deployment."""
        name, bench, pubsub = "deployment-dead-letter", self._bench, self._pubsub
        source = self._beside("job-logs").replace("/topics/", "/subscriptions/")
        dead, grave = self._beside("job-logs-dead"), f"{source}-dead"
        if not pubsub.exists(grave):
            yield fail(Code.VERIFY_DEPLOYMENT, name, "there is no subscription of dead letters", "Deploy again")
            return
        topic, marker = self._own("dead", "topics"), f"dead letter of verify {bench.mark}".encode()
        bench.remove(f"topic {topic}", lambda: pubsub.delete_topic(topic))
        pubsub.create_topic(topic)
        subscription = self._subscribe("dead", topic, dead)
        pubsub.copy_grants(source, subscription)
        pubsub.publish(topic, marker)

        def arrived() -> bool | None:
            if refused := pubsub.pull(subscription):
                pubsub.refuse(subscription, refused)
            kept = pubsub.pull(grave)
            mine = [one for one in kept if one.data == marker]
            if others := [one for one in kept if one.data != marker]:
                pubsub.refuse(grave, others)
            if mine:
                pubsub.ack(grave, mine)
            return True if mine else None

        found, took = bench.until(arrived, DEAD_PATIENCE)
        if found:
            yield ok(name, f"it arrives {took:.0f} s after the first attempt", value=round(took, 1))
        else:
            remedy = "Deploy again: Pub/Sub's own account may lack roles on the topic NAME-job-logs-dead"
            yield fail(Code.VERIFY_DEPLOYMENT, name, f"no dead letter after {took:.0f} s", remedy)

    # Metrics

    def metrics(self) -> Iterator[Finding]:
        """Look for data of each metric that an alert watches."""
        name, bench, passes = "deployment-metrics", self._bench, "passes"
        watched = sorted(
            {one for file in self._outside.alerts.glob("*.yaml") for one in _METRIC.findall(file.read_text())}
        )
        if not watched:
            yield skip(name, "infra/monitoring is not in this checkout")
            return

        def without() -> list[str] | None:
            lacking = [metric for metric in watched if not self._has_data(metric)]
            return lacking if not any(metric.endswith(f"/{passes}") for metric in lacking) else None

        lacking, _ = bench.until(without, DATA_PATIENCE, every=15)
        if lacking is None:
            remedy = "Create the metrics and alerts again: run deploy.sh or terraform apply"
            yield fail(Code.VERIFY_DEPLOYMENT, name, f"the metric {passes} has no data", remedy)
        elif lacking:
            names = ", ".join(metric.rpartition("/")[2] for metric in lacking)
            yield note(
                name,
                f"{len(watched) - len(lacking)} of {len(watched)} have data; not yet: {names}, which count failures",
            )
        else:
            yield ok(name, f"all {len(watched)} have data")

    def _has_data(self, metric: str) -> bool:
        settings, now = self._bench.settings, self._bench.clock.now()
        since, until = (datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for at in (now - 3600, now))
        kind = metric.replace("${name}", settings.deployment)
        return self._outside.monitoring.has_data(settings.project, kind, since, until)


def _is_end(message: Pulled, job: JobName) -> bool:
    """Return whether a message is a log entry that job_state takes for the end of this job."""
    push = {"message": {"data": base64.b64encode(message.data).decode()}}
    try:
        hint = events.job_hint(json.dumps(push).encode())
    except RequestError:
        return False
    return hint is not None and hint.ended and hint.number == job.number


def _names(message: Pulled, job: JobName) -> bool:
    """Return whether a message is the tick that job_state publishes for the end of this job."""
    try:
        body: Any = json.loads(message.data or b"{}")
        return JobName.parse(str(body["ended"])).names(job)
    except (ValueError, LookupError, TypeError):
        return False


def _over(job: ManagedJob | None) -> bool:
    return job is None or job.ended
