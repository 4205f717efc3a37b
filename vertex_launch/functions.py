"""What the three functions do with a request: parse it, run a pass or follow a hint, and answer.

Errors become answers in one place, the table ``ANSWERS``.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from flask import Request, Response
from werkzeug.exceptions import MethodNotAllowed

from vertex_launch import events, log
from vertex_launch.clients import Clients
from vertex_launch.codes import Code
from vertex_launch.dispatch.preview import preview
from vertex_launch.dispatch.run import STALE_TICK, Skipped, run_pass
from vertex_launch.dispatch.watch import follow
from vertex_launch.errors import (
    CodedError,
    ConfigError,
    JobNotEnded,
    Message,
    PassBusy,
    PassLost,
    ProblemsError,
    RequestError,
    Unavailable,
)
from vertex_launch.log import LOGGER, Event
from vertex_launch.model import PassReport
from vertex_launch.settings import config

ROOT = Path(__file__).resolve().parent.parent
"""The folder of main.py, where the configuration is unless the environment names another place."""

REDACT = log.Redactor()
"""Removes API keys from everything that this process logs and answers."""


class _Row(NamedTuple):
    """How an error is answered and logged.

    ``request`` is the HTTP status for a person, ``pushed`` the one for Pub/Sub, which delivers the message again unless it
    is 2xx. ``retry_after`` is the most seconds to wait. ``code`` and ``text`` are those of an error without its own.
    """

    error: type[Exception]
    request: int
    pushed: int
    level: int
    event: Event | None = None
    retry_after: int = 0
    code: Code = Code.UNEXPECTED
    text: str = "Unexpected error. The traceback is in the log of the function."


ANSWERS = (
    _Row(MethodNotAllowed, 405, 405, logging.NOTSET, None, 0, Code.REQUEST_METHOD, "The method must be POST."),
    _Row(RequestError, 400, 200, logging.ERROR, Event.DROPPED, 0, Code.REQUEST_INVALID, "The request is invalid."),
    _Row(JobNotEnded, 409, 429, logging.INFO, None, 5),
    _Row(PassBusy, 409, 429, logging.INFO, Event.BUSY, 5),
    _Row(PassLost, 409, 429, logging.WARNING, None, 1),
    _Row(Unavailable, 503, 503, logging.ERROR, Event.FAILED, 10),
    _Row(ConfigError, 500, 500, logging.ERROR, Event.FAILED, 0, Code.CONFIG_INVALID, "The configuration is invalid."),
    _Row(Exception, 500, 500, logging.ERROR, Event.FAILED),
)
"""The answer to each error: the first row that fits. A person's own errors (4xx) are answered and not logged."""


SKIPPED = {
    Skipped.STALE: Message(
        Code.TICK_STALE, f"The tick is older than {STALE_TICK:g} s and was dropped. A newer one follows."
    ),
    Skipped.COVERED: Message(Code.TICK_SERVED, "A full pass that began after this tick was published has served it."),
}


class Deployment(NamedTuple):
    """What the functions of this process work with."""

    settings: config.Settings
    clients: Clients


@functools.cache
def load() -> Deployment:
    """Load the configuration, once. Raises ConfigError."""
    log.configure(REDACT)
    settings = config.load(os.environ, ROOT)
    log.configure(REDACT, project=settings.project, debug=settings.verbosity > 0)
    for warning in settings.warnings:
        log.warning(warning)
    return Deployment(settings, Clients(settings, REDACT))


def dispatch(request: Request, *, pushed: bool) -> Response:
    """Run a pass for a tick that Pub/Sub has pushed, or for a person."""
    with _answering(request, pushed=pushed) as answer:
        settings, clients = load()
        raw = _posted(request)
        wanted = events.tick(raw, settings) if pushed else events.request(raw, settings)
        with clients.pass_services() as services:
            if wanted.dry_run:
                _send(answer, 200, _logged(preview(settings, services, wanted)))
            elif isinstance(report := run_pass(settings, services, wanted), Skipped):
                log.write(logging.INFO, SKIPPED[report])
            else:
                _send(answer, 200, report.body())
    return answer


def job_state(request: Request) -> Response:
    """Publish a tick if the job of a log entry is ours and has ended."""
    with _answering(request, pushed=True) as answer:
        settings, clients = load()
        hint = events.job_hint(_posted(request))
        if hint is None:
            LOGGER.debug("The log entry is not about a job")
        else:
            follow(hint, settings, clients.vertex, clients.ticks)
    return answer


@contextmanager
def _answering(request: Request, *, pushed: bool) -> Iterator[Response]:
    """Yield the answer to a request: 200 until the block sends another, or what ``ANSWERS`` has for an error of the block."""
    # Cloud Logging groups the lines of one request by its trace.
    found = re.match(r"([0-9a-f]{32})", request.headers.get("X-Cloud-Trace-Context", ""))
    found = found or re.match(r"00-([0-9a-f]{32})-", request.headers.get("traceparent", ""))
    log.trace.set(found[1] if found else "")
    answer = Response(status=200)
    try:
        yield answer
    except Exception as error:  # noqa: BLE001 - answered and logged
        _fail(answer, error, pushed=pushed)


def _fail(answer: Response, error: Exception, *, pushed: bool) -> None:
    """Answer with an error and log it, as the table has it."""
    row = next(row for row in ANSWERS if isinstance(error, row.error))
    status = row.pushed if pushed else row.request
    message = error.message if isinstance(error, CodedError) else Message(row.code, row.text)
    problems = error.lines if isinstance(error, ProblemsError) else []
    body: dict[str, Any] = {"error": str(message), "code": message.code}
    if isinstance(error, Unavailable):
        body["service"] = error.service
    if problems:
        body["problems"] = problems
    _send(answer, status, body)
    if row.retry_after:
        wait = round(getattr(error, "retry_after", row.retry_after))
        answer.headers["Retry-After"] = str(max(1, min(wait, row.retry_after)))
    if isinstance(error, MethodNotAllowed):
        answer.headers["Allow"] = "POST"
    if pushed:
        outcome = "The message is dropped." if status < 300 else "Pub/Sub delivers the message again."
        message = replace(message, text=f"{message.text.rstrip('.')}. {outcome}")
    if row.level and (pushed or status >= 500):
        text = "\n".join([message.text, *problems])
        cause = error if row.error is Exception else None
        log.write(row.level, Message(message.code, text), error=cause, event=row.event)


def _send(answer: Response, status: int, body: dict[str, Any]) -> None:
    """Answer with this status and this JSON, without API keys."""
    answer.status_code, answer.mimetype = status, "application/json"
    answer.set_data(json.dumps(REDACT.json(body)))


def _posted(request: Request) -> bytes:
    """Return the body. Raises MethodNotAllowed for another method than POST."""
    if request.method != "POST":
        raise MethodNotAllowed
    return request.get_data()


def _logged(report: PassReport) -> dict[str, Any]:
    """Log the report of a dry run and return its JSON."""
    body = report.body()
    # Only the author of a posted run spec may see its CustomJob, or what is wrong with it.
    public = {name: value for name, value in body.items() if name not in ("custom_job", "rejected")}
    LOGGER.info("Dry run", extra={"pass_id": report.pass_id, "report": public})
    return body
