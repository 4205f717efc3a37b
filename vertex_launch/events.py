"""Parse what reaches the functions: a tick or an HTTP body into a ``PassRequest``, a log entry into a ``JobHint``.

Ticks and log entries are Pub/Sub messages. They arrive as a push of Pub/Sub, as a CloudEvent of Eventarc in binary or
structured mode, or as an event of a first-generation function. The body always holds the message.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from vertex_launch import json_reader
from vertex_launch.codes import Code
from vertex_launch.errors import RequestError
from vertex_launch.job import labels
from vertex_launch.model import JobHint, JobName, PassRequest
from vertex_launch.problems import Codes, dotted, kind, problem, shown, translate, wrong
from vertex_launch.settings.config import Settings

Model = TypeVar("Model", bound=BaseModel)

MOST_BODY = 1024 * 1024
"""Bytes of JSON in a body or a message; a run spec is far smaller."""

MOST_PROBLEMS = 20
"""Problems that are reported for one request."""

BODY = "request body"

CODES = Codes(Code.REQUEST_KEY, Code.REQUEST_VALUE, Code.REQUEST_VALUE)

_JOB_NUMBER = re.compile("[0-9]{1,20}")
_END = re.compile("Job (completed successfully|failed|cancelled|canceled)")
_STATE = "ml.googleapis.com/job_state"


def _served(names: list[str], info: ValidationInfo) -> list[str]:
    """Check that the deployment serves these queues; any if the context has no settings."""
    settings: Settings | None = info.context
    other = [shown(name) for name in dict.fromkeys(names) if settings and name not in settings.queues]
    if settings and other:
        unknown, known = ", ".join(other[:MOST_PROBLEMS]), ", ".join(settings.queues)
        remedy = f"Name one of {known}, or add the queue to {settings.where('queues')}"
        raise wrong(f"this deployment does not serve {unknown}", remedy, code=Code.REQUEST_QUEUE)
    return names


def _for_a_dry_run(run_spec: dict[str, Any] | None, info: ValidationInfo) -> dict[str, Any] | None:
    """Check that a run spec comes with ``dry_run``, if that one is valid."""
    if run_spec is not None and info.data.get("dry_run") is False:
        remedy = 'Add "dry_run": true to see its CustomJob, or start it with wandb launch'
        raise wrong("a run spec is accepted only for a dry run", remedy, code=Code.REQUEST_RUN_SPEC)
    return run_spec


def _job_name(text: str) -> str:
    try:
        return str(JobName.parse(text))
    except ValueError:
        remedy = "Write its full name, for example projects/P/locations/us-central1/customJobs/1"
        raise wrong(f"{shown(text)} is not the name of a job", remedy, code=Code.REQUEST_JOB) from None


class Body(BaseModel):
    """What a tick or an HTTP request may ask for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    queues: Annotated[list[str], AfterValidator(_served)] = Field(
        default_factory=list, fail_fast=True, examples=['["gpu"]'], description="the queues to serve"
    )
    limit: int | None = Field(None, ge=0, examples=[5], description="the most jobs to start")
    dry_run: bool = Field(False, description="whether to show the state and change nothing")
    resume: bool = Field(False, description="whether to replace an agent that was stopped in W&B")
    run_spec: Annotated[dict[str, Any] | None, AfterValidator(_for_a_dry_run)] = Field(
        None, description="the W&B run spec whose CustomJob a dry run shows"
    )
    ended: Annotated[str, AfterValidator(_job_name)] | None = Field(None, description="the job that has ended")


class _Named(BaseModel):
    """A message of a person who names a job instead of a log entry."""

    model_config = ConfigDict(strict=True)

    job: Annotated[str, AfterValidator(_job_name)] = Field(description="the job that has ended")


def tick(raw: bytes, settings: Settings | None = None) -> PassRequest:
    """Parse a tick. A message without data asks for a full pass. Raises RequestError."""
    remedy = 'Publish an empty message or a JSON object, for example {"limit": 5}'
    place, payload, published = _message(raw, "tick", remedy)
    return _request(payload, settings, place, _seconds(published))


def request(raw: bytes, settings: Settings | None = None) -> PassRequest:
    """Parse an HTTP body. Without ``settings`` it may name any queue. Raises RequestError."""
    remedy = "Send a JSON object or an empty body"
    if len(raw) > MOST_BODY:
        remedy = "Send a smaller body; large inputs of a job belong in artifacts"
    return _request(_json(raw, BODY, remedy, MOST_BODY), settings, BODY, None)


def job_hint(raw: bytes) -> JobHint | None:
    """Parse a log entry or a person's ``{"job": "projects/P/locations/R/customJobs/N"}``. Raises RequestError.

    Return None for an entry about something else.
    """
    remedy = 'Publish log entries of Vertex AI to this topic, or {"job": "projects/P/locations/R/customJobs/N"}'
    place, entry, published_at = _message(raw, "log entry", remedy)
    if not isinstance(entry, dict):
        raise _error(place, f"is {kind(entry)}, not a JSON object", remedy, Code.REQUEST_FORMAT)
    published = _seconds(published_at or entry.get("timestamp"))
    if "job" in entry and "resource" not in entry:
        name = JobName.parse(_valid(_Named, entry, None, place).job)
        return JobHint(name.number, name, published=published)
    resource = entry.get("resource")
    if not isinstance(resource, dict):
        raise _error(f"resource in {place}", f"is {kind(resource)}, not a JSON object", remedy, Code.REQUEST_FORMAT)
    about = _object(resource.get("labels"))
    number = about.get("job_id")
    if resource.get("type") != "ml_job" or about.get("task_name") != "service":
        return None
    if not isinstance(number, str) or not _JOB_NUMBER.fullmatch(number):
        return None  # a job of the former AI Platform, which has a name instead
    return JobHint(number, ended=_is_end(entry), published=published)


def _request(body: Any, settings: Settings | None, place: str, published: float | None) -> PassRequest:
    if not isinstance(body, dict | None):
        remedy = 'Send an object, for example {"limit": 5}, or nothing'
        raise _error(place, f"is {kind(body)}, not a JSON object", remedy, Code.REQUEST_FORMAT)
    parsed = dict(_valid(Body, body or {}, settings, place))
    queues, ended = tuple(dict.fromkeys(parsed.pop("queues"))), parsed.pop("ended") or ""
    return PassRequest(**parsed, queues=queues, ended=ended, published=published)


def _valid(model: type[Model], body: Mapping[str, Any], context: Any, place: str) -> Model:
    """Return the body as a model. Raises RequestError."""
    try:
        return model.model_validate(body, context=context)
    except ValidationError as error:
        problems = translate(error, model, lambda at: f"{dotted(at)} in {place}", codes=CODES, most=MOST_PROBLEMS)
    # Raised outside the handler, because pydantic's error repeats its input in a traceback.
    raise RequestError(problems)


def _error(place: str, found: str, remedy: str, code: Code) -> RequestError:
    return RequestError([problem(place, found, remedy, code=code)])


def _is_end(entry: Mapping[str, Any]) -> bool:
    """Return whether Vertex AI says in an entry that the job has ended."""
    state = _object(entry.get("labels")).get(_STATE)
    name = state.upper().removeprefix("JOB_STATE_").replace("CANCELED", "CANCELLED") if isinstance(state, str) else ""
    if f"JOB_STATE_{name}" in labels.ENDED_STATES:
        return True
    texts = (entry.get("textPayload"), _object(entry.get("jsonPayload")).get("message"))
    return any(isinstance(text, str) and _END.match(text.strip()) for text in texts)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _message(raw: bytes, noun: str, remedy: str) -> tuple[str, Any, Any]:
    """Find the Pub/Sub message in a request, whichever way it was delivered. Raises RequestError.

    Return its place in problems, its JSON, and when it was published if that is known.
    """
    event = _object(_json(raw, noun, remedy))
    if "data_base64" in event:
        event = {**event, "data": _json(_decoded(event["data_base64"], noun, remedy), noun, remedy)}
    context, data = _object(event.get("context")), _object(event.get("data"))
    message = event.get("message", data.get("message", data if context else None))
    if not isinstance(message, dict):
        raise _error(noun, "is not a Pub/Sub message", remedy, Code.REQUEST_FORMAT)
    known = message.get("messageId") or message.get("message_id") or context.get("eventId")
    published = message.get("publishTime") or message.get("publish_time") or context.get("timestamp")
    place = f"{noun} {shown(known)}" if known else noun
    content = _decoded(message.get("data") or "", place, remedy)
    return place, _json(content, place, remedy, MOST_BODY), published


def _decoded(text: Any, place: str, remedy: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, TypeError):
        raise _error(f"data in {place}", "is not base64", remedy, Code.REQUEST_JSON) from None


def _json(raw: bytes, place: str, remedy: str, most: float = math.inf) -> Any:
    """Decode JSON, None if there is nothing. Raises RequestError."""
    if len(raw) > most:
        raise _error(place, f"has {len(raw)} bytes, and at most {most} are accepted", remedy, Code.REQUEST_SIZE)
    try:
        return json_reader.read(raw) if raw.strip() else None
    except json_reader.Unreadable as error:
        raise _error(place, error.found, remedy, Code.REQUEST_JSON) from error


def _seconds(text: Any) -> float | None:
    """Return a time in Unix seconds, None if it cannot be read."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
