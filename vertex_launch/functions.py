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
from pathlib import Path
from typing import Any

import flask
from cloudevents.http import CloudEvent
from flask import Request, Response, jsonify
from werkzeug.exceptions import (
    BadRequest,
    HTTPException,
    InternalServerError,
    ServiceUnavailable,
    TooManyRequests,
    UnsupportedMediaType,
)

from vertex_launch import events, log
from vertex_launch.clients import Clients
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.preview import preview
from vertex_launch.dispatch.run import Dispatcher
from vertex_launch.dispatch.watch import JobWatch
from vertex_launch.errors import ConfigError, PassBusy, PassLost, ProblemsError, RequestError, Unavailable
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import PassReport, PassRequest
from vertex_launch.settings import config

ROOT = Path(__file__).resolve().parent.parent
"""The folder of main.py, where the configuration lies unless the environment says otherwise."""

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
        self._clients = Clients(settings, redact)
        self._services = services
        self._watch = watch
        for warning in settings.warnings:
            log.warning(warning)

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
            clients = self._clients
            watch = self._watch or JobWatch(self._settings, clients.vertex, clients.ticks)
            done = watch.run(hint)
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
            self._services = self._services or self._clients.services
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
