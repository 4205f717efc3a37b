"""What reaches the functions, as a ``PassRequest`` or a ``JobHint``: Pub/Sub messages in both forms, and HTTP bodies.

Pure parsing, shared by the entry points; the only module besides ``app`` and ``main`` that knows how an event looks.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from itertools import chain, islice
from typing import Any

from cloudevents.http import CloudEvent
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from vertex_launch.dispatch.watch import JobHint
from vertex_launch.errors import Problem, RequestError
from vertex_launch.job import labels
from vertex_launch.model import PassRequest
from vertex_launch.problems import shown

MOST_BODY = 1024 * 1024
"""Bytes that the JSON of a body or a message may have; a run spec is far smaller."""

MOST_DEPTH = 100
"""Lists and objects in each other that it may have; Python's own limit is met at some ten times as many."""

MOST_PROBLEMS = 20
"""Problems of one request that are told."""

MOST_SHOWN = 1000
"""Characters of a text that a problem still repeats a part of; in more of it nobody looks for keys."""

_JOB_NAME = re.compile(r"projects/([^/\s]{1,100})/locations/([a-z0-9-]{1,40})/customJobs/([0-9]{1,20})")
_JOB_NUMBER = re.compile("[0-9]{1,20}")
_END = re.compile("Job (completed successfully|failed|cancelled|canceled)")
_SURROGATE = re.compile("[\ud800-\udfff]")
_STATE = "ml.googleapis.com/job_state"


class Body(BaseModel):
    """What a tick or a request may say."""

    model_config = ConfigDict(extra="forbid")

    queues: list[str] = Field(default_factory=list, fail_fast=True, description='a list of queue names, as ["gpu"]')
    limit: StrictInt | None = Field(None, ge=0, description="a whole number, 0 or more")
    dry_run: StrictBool = Field(False, description="true or false")
    resume: StrictBool = Field(False, description="true or false")
    run_spec: dict[str, Any] | None = Field(None, description="a W&B run spec, as a JSON object")
    ended: str | None = Field(
        None, pattern=f"^{_JOB_NAME.pattern}$", description="a job's name, as projects/P/locations/R/customJobs/1"
    )


def tick(event: CloudEvent, served: Sequence[str] | None = None) -> PassRequest:
    """Read a tick, see ``request``. Raises RequestError; a message without data asks for a full pass."""
    remedy = 'Publish an empty message, or a JSON object such as {"limit": 5}, to the tick topic'
    message = _message(event.get_data(), "tick", remedy)
    return request(_payload(message, "tick", remedy), served, place="tick", published=_published(message, event))


def job_hint(event: CloudEvent, arrived: float = math.inf) -> JobHint | None:
    """Read a log entry, or ``{"job": "projects/P/locations/R/customJobs/N"}`` of a person; None for one about something else.

    ``arrived`` is when the request came (Unix seconds); a time later than that counts as none. Raises RequestError.
    """
    place, remedy = "log entry", 'Let the log sink publish to this topic, or a person {"job": a job\'s name}'
    message = _message(event.get_data(), place, remedy)
    entry = _payload(message, place, remedy)
    if not isinstance(entry, dict):
        raise RequestError([Problem(place, f"found {_kind(entry)}, expected a JSON object", remedy)])
    published = _published(message, event, entry.get("timestamp"))
    published = published if published is not None and published <= arrived else None
    if "job" in entry and "resource" not in entry:
        return _named(entry["job"], published)
    resource = entry.get("resource")
    if not isinstance(resource, dict):
        found = f"found {_kind(resource)} as its resource, expected a JSON object"
        raise RequestError([Problem(place, found, remedy)])
    about = _object(resource.get("labels"))
    number = about.get("job_id")
    if resource.get("type") != "ml_job" or about.get("task_name") != "service":
        return None
    if not isinstance(number, str) or not _JOB_NUMBER.fullmatch(number):
        return None  # as of AI Platform's jobs of old, which have names
    return JobHint(number, ended=_is_end(entry), published=published)


def message_id(event: CloudEvent) -> str:
    """Give the id of the event's message for a log line, as far as it has one."""
    try:
        message = _message(event.get_data(), "", "")
    except RequestError:
        message = {}
    return _shown(message.get("messageId") or message.get("message_id") or event.get("id"))


def request(
    body: Any, served: Sequence[str] | None = None, *, place: str = "body", published: float | None = None
) -> PassRequest:
    """Read the JSON value of a tick or of an HTTP body to a deployment that serves these queues, None for any.

    Raises RequestError with every problem.
    """
    if body is None:
        body = {}
    if not isinstance(body, dict):
        found = f"found {_kind(body)}, expected a JSON object"
        raise RequestError([Problem(place, found, 'Send an object such as {"limit": 5}, or nothing at all')])
    errors: Sequence[Any] = ()
    try:
        parsed = Body.model_validate(body)
    except ValidationError as error:
        errors = error.errors(include_url=False)
    problems = chain((_problem(place, one) for one in errors), _unserved(body, served, place), _misplaced(body, place))
    if told := list(islice(problems, MOST_PROBLEMS)):
        raise RequestError(told)
    return PassRequest(
        queues=tuple(dict.fromkeys(parsed.queues)),
        limit=parsed.limit,
        dry_run=parsed.dry_run,
        run_spec=parsed.run_spec,
        resume=parsed.resume,
        published=published,
        ended=parsed.ended or "",
    )


def http_body(raw: bytes) -> Any:
    """Decode an HTTP body; empty means no wishes. Raises RequestError."""
    if len(raw) > MOST_BODY:
        found = f"it has {len(raw)} bytes, expected {MOST_BODY} at most"
        raise RequestError([Problem("body", found, "Send a smaller one; big inputs of a job belong in artifacts")])
    try:
        return _json(raw) if raw.strip() else None
    except ValueError as error:
        raise RequestError([Problem("body", str(error), "Send a JSON object or nothing at all")]) from error


def _unserved(body: Mapping[str, Any], served: Sequence[str] | None, place: str) -> Iterator[Problem]:
    """Find queues that this deployment does not serve."""
    names = body.get("queues")
    if served is None or not isinstance(names, list):
        return
    remedy = f"This deployment serves {', '.join(served)}; to serve more, add them to queues in launch-config.yaml"
    for name in dict.fromkeys(one for one in names if isinstance(one, str) and one not in served):
        yield Problem(f"{place}: queues", f"queue {_shown(name)} is not configured", remedy)


def _misplaced(body: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Find a run spec outside of a dry run."""
    if body.get("run_spec") is not None and body.get("dry_run", False) is False:
        remedy = 'Add "dry_run": true to see its CustomJob; to start it, put it on a queue with `wandb launch`'
        yield Problem(f"{place}: run_spec", "a run spec can be posted for a dry run only", remedy)


def _named(name: Any, published: float | None) -> JobHint:
    """Read the name of a job that a person gave."""
    found = _JOB_NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None:
        remedy = "Give a job's name, as projects/P/locations/R/customJobs/1"
        raise RequestError([Problem("log entry: job", f"found {_shown(name)}", remedy)])
    project, region, number = found.groups()
    return JobHint(number, project, region, published=published)


def _is_end(entry: Mapping[str, Any]) -> bool:
    """Tell whether an entry of Vertex AI's service says that its job has ended."""
    state = _object(entry.get("labels")).get(_STATE)
    name = state.upper().removeprefix("JOB_STATE_").replace("CANCELED", "CANCELLED") if isinstance(state, str) else ""
    if f"JOB_STATE_{name}" in labels.ENDED_STATES:
        return True
    texts = (entry.get("textPayload"), _object(entry.get("jsonPayload")).get("message"))
    return any(isinstance(text, str) and _END.match(text.strip()) for text in texts)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _message(data: Any, place: str, remedy: str) -> Mapping[str, Any]:
    """Find the Pub/Sub message in an event, whichever way it was delivered."""
    if isinstance(data, bytes | str):
        try:
            data = _json(data)
        except ValueError as error:
            raise RequestError([Problem(place, f"the event's data is {error}", remedy)]) from error
    message = data.get("message") if isinstance(data, dict) else data
    if not isinstance(message, dict):
        found = f"found {_kind(message)} where a Pub/Sub message was expected"
        raise RequestError([Problem(place, found, remedy)])
    return message


def _payload(message: Mapping[str, Any], place: str, remedy: str) -> Any:
    """Decode a message's data: base64 of nothing or of JSON."""
    data = message.get("data")
    if not data:
        return None
    try:
        text = base64.b64decode(data, validate=True)
    except (ValueError, TypeError) as error:
        raise RequestError([Problem(place, "the message's data is not JSON in base64", remedy)]) from error
    try:
        if len(text) > MOST_BODY:
            raise ValueError(f"too long: it has {len(text)} bytes, expected {MOST_BODY} at most")
        return _json(text) if text.strip() else None
    except ValueError as error:
        raise RequestError([Problem(place, f"the message's data is {error}", remedy)]) from error


def _json(raw: bytes | str) -> Any:
    """Decode JSON that the rest of the program can take. Raises ValueError, which says what it is instead."""
    try:
        value = json.loads(raw, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    except (json.JSONDecodeError, UnicodeDecodeError, _NoNumberError) as error:
        raise ValueError(f"not JSON ({error})") from error
    except ValueError as error:
        raise ValueError("not usable: a number in it is longer than Python reads, some 4000 digits") from error
    level = [value]
    for _ in range(MOST_DEPTH + 1):
        if any(_SURROGATE.search(text) for text in level if isinstance(text, str)):
            raise ValueError("not usable: text in it is not Unicode")
        inside = [one for one in level if isinstance(one, dict | list)]
        if not inside:
            return value
        level = [inner for one in inside for inner in (one if isinstance(one, list) else chain(one, one.values()))]
    raise ValueError("nested too deeply")


class _NoNumberError(ValueError):
    """JSON does not have it, though Python's reader does."""


def _no_number(name: str) -> Any:
    raise _NoNumberError(f"{name} is no number there")


def _published(message: Mapping[str, Any], event: CloudEvent, otherwise: Any = None) -> float | None:
    """Give when a message was published (Unix seconds), None where that cannot be read."""
    text = message.get("publishTime") or message.get("publish_time") or event.get("time") or otherwise
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _problem(place: str, error: Any) -> Problem:
    key, *inner = map(str, error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(Body.model_fields)
        near = get_close_matches(key[:MOST_SHOWN], known, 1)
        remedy = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}"
        said = _shown(key)
        where = said.strip("'")
        return Problem(f"{place}: {where}", f"unknown key {said}", remedy)
    remedy = f"Give {Body.model_fields[key].description}"
    return Problem(f"{place}: {'.'.join([key, *inner])}", f"found {_shown(error['input'])}", remedy)


def _shown(value: Any) -> str:
    """Give a value as a problem repeats it: short, on one line, without keys."""
    if isinstance(value, str) and len(value) > MOST_SHOWN:
        return f"a text of {len(value)} characters"
    return shown(value)


def _kind(value: Any) -> str:
    names = {
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)
