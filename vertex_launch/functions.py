"""The one place where everything is put together, and what the entry points do with what comes out.

Google's clients are made when they are first needed: ``job_state`` never makes one for W&B, the key or the record.
"""

from __future__ import annotations

import functools
import math
import os
import re
import threading
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import flask
from cloudevents.http import CloudEvent
from flask import Request, Response, jsonify
from google.auth.exceptions import GoogleAuthError
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    ServiceUnavailable,
    TooManyRequests,
    UnsupportedMediaType,
)

from vertex_launch import events, log
from vertex_launch.adapters.bucket import Bucket
from vertex_launch.adapters.job_artifacts import JobArtifacts
from vertex_launch.adapters.job_logs import JobLogs
from vertex_launch.adapters.secrets import SecretKey
from vertex_launch.adapters.vertex_jobs import VertexJobs
from vertex_launch.adapters.wandb_queue import WandbQueue
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.preview import preview
from vertex_launch.dispatch.run import Dispatcher
from vertex_launch.dispatch.watch import JobWatch
from vertex_launch.errors import ConfigError, PassBusy, PassLost, Problem, ProblemsError, RequestError, Unavailable
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import PassReport, PassRequest
from vertex_launch.settings import config
from vertex_launch.state.record import Record

ROOT = Path(__file__).resolve().parent.parent
"""The folder of main.py, where the configuration lies unless the environment says otherwise."""

LOG_PATIENCE = 5.0
"""Seconds for the last lines of a job's log: they are welcome, and nothing waits for them."""

USUAL_PASS = 5
"""Seconds that a pass takes at most when all is well."""

_BUSY, _DROPPED, _FAILED = ({"event": event} for event in (Event.BUSY, Event.DROPPED, Event.FAILED))


class App:
    """A deployment: its settings, its clients, and its answers to events and requests."""

    def __init__(
        self,
        settings: config.Settings,
        redact: log.Redactor,
        services: Services | None = None,
        watch: JobWatch | None = None,
    ) -> None:
        self._settings = settings
        self._redact = redact
        self._lock = threading.Lock()
        self._services = services
        self._watch = watch
        for warning in settings.warnings:
            LOGGER.warning("%s", warning)

    def dispatch(self, event: CloudEvent) -> None:
        """Run a pass for a tick. Returning acknowledges the message; an HTTP error makes Pub/Sub deliver it again."""
        try:
            request = events.tick(event, self._settings.queues)
        except RequestError as error:
            LOGGER.error("dropped a malformed tick: %s (message %s)", error, events.message_id(event), extra=_DROPPED)
            return
        try:
            report = self._run(request)
        except PassBusy as error:
            LOGGER.info("%s; Pub/Sub delivers this tick again", error, extra=_BUSY)
            raise TooManyRequests("another pass is running", retry_after=_wait(error)) from error
        except PassLost as error:
            LOGGER.warning("%s", error)
            raise TooManyRequests(str(error)) from error
        except Unavailable as error:
            LOGGER.error("no pass: %s", error, extra=_FAILED)
            raise ServiceUnavailable(self._redact(str(error))) from error
        if report is None:
            LOGGER.info("a pass has done what this tick asks for")

    def job_state(self, event: CloudEvent) -> None:
        """Publish a tick when the job of a log entry is ours and has ended; acknowledges as ``dispatch`` does."""
        try:
            hint = events.job_hint(event, flask.g.get("arrived", math.inf))
            if hint is None:
                LOGGER.debug("a log entry about something else than a job")
                return
            done = self._job_watch().run(hint)
        except RequestError as error:
            message = events.message_id(event)
            LOGGER.error("dropped a malformed log entry: %s (message %s)", error, message, extra=_DROPPED)
            return
        except Unavailable as error:
            raise ServiceUnavailable(self._redact(str(error))) from error
        if not done:
            raise TooManyRequests("the job has not ended yet", retry_after=USUAL_PASS)

    def dispatch_now(self, request: Request) -> Response:
        """Run a pass at once for a person, and answer with its report."""
        if request.method != "POST":
            return self._answer(405, {"error": f"{request.method} is not supported; use POST"}, {"Allow": "POST"})
        try:
            wanted = events.request(events.http_body(request.get_data()), self._settings.queues)
            report = self._run(wanted)
        except RequestError as error:
            return self._answer(400, {"error": "the request cannot be used", "problems": _lines(error)})
        except (PassBusy, PassLost) as error:
            return self._answer(409, {"error": str(error)}, {"Retry-After": str(_wait(error))})
        except Unavailable as error:
            LOGGER.error("no pass: %s", error, extra=_FAILED)
            return self._answer(503, {"error": str(error), "service": error.service}, {"Retry-After": "10"})
        return self._answer(200, report.body() if report else {})

    def _run(self, request: PassRequest) -> PassReport | None:
        with self._lock:
            self._services = self._services or self._assemble()
        try:
            if not request.dry_run:
                return Dispatcher(self._settings, self._services).run(request)
            report = preview(self._settings, self._services, request)
        finally:
            self._services.jobs.forget()
        # A posted run spec may hold what only its author has to see: so may its CustomJob, and what is wrong with it.
        shown = {name: value for name, value in report.body().items() if name not in ("custom_job", "rejected")}
        LOGGER.info("dry run", extra={"pass_id": report.pass_id, "report": self._redact.json(shown)})
        return report

    def _assemble(self) -> Services:
        """Make the clients. Raises Unavailable where there are no credentials."""
        settings, timeouts = self._settings, self._settings.timeouts
        try:
            key = SecretKey(
                settings.key_secret,
                self._redact,
                ttl=settings.key_ttl,
                timeout=timeouts.look,
                endpoint=settings.secretmanager_endpoint,
            )
            bucket = Bucket(settings.state_bucket, settings.deployment, project=settings.project, timeout=timeouts.look)
        except GoogleAuthError as error:
            remedy = "run the function with a service account attached, or `gcloud auth application-default login`"
            raise Unavailable("Google credentials", f"{error}; {remedy}") from error
        return Services(
            queue=WandbQueue(settings.base_url, key, timeouts, settings.batches, version=version()),
            vertex=self._vertex(),
            record=Record(bucket),
            key=key,
            redact=self._redact,
            jobs=JobArtifacts(settings.base_url, key, timeout=timeouts.read),
            logs=self._logs(),
        )

    def _logs(self) -> JobLogs | None:
        """Give the client for the output of jobs, where the deployment wants their last lines."""
        settings = self._settings
        if not settings.log_lines:
            return None
        return JobLogs(
            settings.project,
            settings.log_lines,
            self._redact,
            timeout=LOG_PATIENCE,
            endpoint=settings.logging_endpoint,
        )

    def _job_watch(self) -> JobWatch:
        """Make the two clients of ``job_state``, once. Raises ConfigError."""
        settings = self._settings
        if settings.tick_topic is None:
            found = "is missing, and job_state asks for passes there"
            remedy = "Set it, or the environment variable DISPATCH_TOPIC, to the topic of ticks: projects/P/topics/T"
            raise ConfigError([Problem("vertex-launch.yaml: tick_topic", found, remedy)])
        with self._lock:
            if self._watch is None:
                from vertex_launch.adapters.ticks import Ticks  # of no use to the other functions

                ticks = Ticks(settings.tick_topic, timeout=settings.timeouts.look)
                self._watch = JobWatch(settings, self._vertex(), ticks)
            return self._watch

    def _vertex(self) -> VertexJobs:
        settings = self._settings
        return VertexJobs(
            settings.project,
            settings.deployment,
            timeout=settings.timeouts.look,
            endpoint=settings.aiplatform_endpoint,
        )

    def _answer(self, status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
        response = jsonify(self._redact.json(body))
        response.status_code = status
        response.headers.update(headers or {})
        return response


@functools.cache
def load() -> App:
    """Give the app of this process, made once. Raises ConfigError."""
    redact = log.Redactor()
    log.configure(redact)
    settings = config.load(os.environ, ROOT)
    log.configure(redact, project=settings.project, debug=settings.verbosity > 0)
    return App(settings, redact)


def on_event(function: str, event: CloudEvent, headers: Any) -> None:
    """Handle an event in the process's app. Whatever goes wrong is logged here, and the message delivered again."""
    _set_trace(headers)
    try:
        app = load()
        {"dispatch": app.dispatch, "job_state": app.job_state}[function](event)
    except HTTPException:
        raise
    except ConfigError as error:
        LOGGER.error("the configuration cannot be used:\n%s", error, extra=_FAILED)
        raise InternalServerError("the configuration cannot be used; the function's log says why") from error
    except Exception as error:
        LOGGER.exception("unexpected error", extra=_FAILED)
        raise InternalServerError("unexpected error; the function's log has the traceback") from error


def on_request(request: Request) -> Response:
    """Handle an HTTP request in the process's app; never answers with a traceback."""
    _set_trace(request.headers)
    try:
        return load().dispatch_now(request)
    except ConfigError as error:
        LOGGER.error("the configuration cannot be used:\n%s", error, extra=_FAILED)
        response = jsonify({"error": "the configuration cannot be used", "problems": _lines(error)})
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001 - a person gets JSON, the log the traceback
        LOGGER.exception("unexpected error", extra=_FAILED)
        response = jsonify({"error": "unexpected error; the function's log has the traceback"})
    response.status_code = 500
    return response


def accept_any_body(*functions: str) -> None:
    """Let these functions decide about what functions-framework cannot read as an event, instead of refusing it.

    A pushed Pub/Sub message without data is such a thing, and is a tick like any other. The rest is logged and acknowledged:
    no number of deliveries makes it better, and Pub/Sub would repeat it for ever.
    """
    if flask.has_app_context() and flask.current_app.name in functions:
        flask.current_app.before_request(_note_arrival)
        flask.current_app.register_error_handler(Exception, _on_unread)


def _note_arrival() -> None:
    """Note when a request came: the framework makes up the time of a message without one, and anew at each delivery."""
    flask.g.arrived = time.time()


def _on_unread(error: Exception) -> Response | HTTPException:
    """Answer a request of which functions-framework made no event, for whatever reason."""
    if isinstance(error, HTTPException) and not isinstance(error, BadRequest | UnsupportedMediaType):
        return error  # our own answer, or about the request's method
    headers = flask.request.headers
    attributes = {
        "type": "google.cloud.pubsub.topic.v1.messagePublished",
        "source": "//pubsub.googleapis.com/",
        "id": headers.get("ce-id", "unknown"),
        "time": headers.get("ce-time", ""),
    }
    try:
        on_event(flask.current_app.name, CloudEvent(attributes, flask.request.get_data()), headers)
    except HTTPException as refusal:
        return refusal
    return Response(status=204)


def version() -> str:
    """Give the installed version; a function is deployed from its folder, not installed."""
    try:
        return metadata.version("vertex-launch")
    except metadata.PackageNotFoundError:
        return "0.1.0"


def _wait(error: PassBusy | PassLost) -> int:
    """Give the seconds to wait for another pass: mostly it takes a few, even where its hold lasts longer."""
    return max(1, min(USUAL_PASS, round(error.retry_after))) if isinstance(error, PassBusy) else 1


def _lines(error: ProblemsError) -> list[str]:
    return [str(problem) for problem in error.problems]


def _set_trace(headers: Any) -> None:
    """Join the log lines of one request, as Cloud Logging groups them."""
    found = re.match(r"([0-9a-f]{32})", headers.get("X-Cloud-Trace-Context", ""))
    found = found or re.match(r"00-([0-9a-f]{32})-", headers.get("traceparent", ""))
    log.trace.set(found[1] if found else "")
