"""What reaches the functions, as a ``PassRequest``: Pub/Sub messages in both forms, and HTTP bodies.

Pure parsing, shared by the entry points; the only module besides ``app`` and ``main`` that knows how an event looks.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from typing import Any

from cloudevents.http import CloudEvent
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, ValidationError

from vertex_launch.errors import Problem, RequestError
from vertex_launch.model import PassRequest

MOST_BODY = 1024 * 1024
"""Bytes that an HTTP body may have; a run spec is far smaller."""


class Body(BaseModel):
    """What a tick or a request may say."""

    model_config = ConfigDict(extra="forbid")

    queues: list[str] = Field(default_factory=list, description='a list of queue names, as ["gpu"]')
    limit: StrictInt | None = Field(None, ge=0, description="a whole number, 0 or more")
    dry_run: StrictBool = Field(False, description="true or false")
    resume: StrictBool = Field(False, description="true or false")
    run_spec: dict[str, Any] | None = Field(None, description="a W&B run spec, as a JSON object")


def tick(event: CloudEvent, served: Sequence[str] | None = None) -> PassRequest:
    """Read a tick, see ``request``. Raises RequestError; a message without data asks for a full pass."""
    message = _message(event.get_data())
    published = _time(message.get("publishTime") or message.get("publish_time") or event.get("time"))
    return request(_payload(message.get("data")), served, place="tick", published=published)


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
    problems = [*_unserved(body.get("queues"), served, place), *_misplaced(body, place)]
    try:
        parsed = Body.model_validate(body)
    except ValidationError as error:
        raise RequestError([*(_problem(place, one) for one in error.errors(include_url=False)), *problems]) from error
    if problems:
        raise RequestError(problems)
    return PassRequest(
        queues=tuple(dict.fromkeys(parsed.queues)),
        limit=parsed.limit,
        dry_run=parsed.dry_run,
        run_spec=parsed.run_spec,
        resume=parsed.resume,
        published=published,
    )


def http_body(raw: bytes) -> Any:
    """Decode an HTTP body; empty means no wishes. Raises RequestError."""
    if len(raw) > MOST_BODY:
        found = f"it has {len(raw)} bytes, expected {MOST_BODY} at most"
        raise RequestError([Problem("body", found, "Send a smaller one; big inputs of a job belong in artifacts")])
    if not raw.strip():
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise RequestError([Problem("body", f"not JSON ({error})", "Send a JSON object or nothing at all")]) from error


def _unserved(names: Any, served: Sequence[str] | None, place: str) -> Iterator[Problem]:
    """Find queues that this deployment does not serve."""
    if served is None or not isinstance(names, list):
        return
    remedy = f"This deployment serves {', '.join(served)}; to serve more, add them to queues in launch-config.yaml"
    for name in dict.fromkeys(one for one in names if isinstance(one, str) and one not in served):
        yield Problem(f"{place}: queues", f"queue {name!r} is not configured", remedy)


def _misplaced(body: Mapping[str, Any], place: str) -> Iterator[Problem]:
    """Find a run spec outside of a dry run."""
    if body.get("run_spec") is not None and body.get("dry_run", False) is False:
        remedy = 'Add "dry_run": true to see its CustomJob; to start it, put it on a queue with `wandb launch`'
        yield Problem(f"{place}: run_spec", "a run spec can be posted for a dry run only", remedy)


def _message(data: Any) -> Mapping[str, Any]:
    """Find the Pub/Sub message in an event, whichever way it was delivered."""
    remedy = "Publish to the tick topic instead"
    if isinstance(data, bytes | str):
        try:
            data = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise RequestError([Problem("tick", "the event's data is not JSON", remedy)]) from error
    message = data.get("message") if isinstance(data, dict) else data
    if not isinstance(message, dict):
        raise RequestError([Problem("tick", f"found {_kind(message)} where a Pub/Sub message was expected", remedy)])
    return message


def _payload(data: Any) -> Any:
    """Decode a message's data: base64 of nothing or of JSON."""
    if not data:
        return None
    try:
        text = base64.b64decode(data, validate=True)
        return json.loads(text) if text.strip() else None
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        remedy = 'Publish an empty message, or a JSON object such as {"limit": 5}'
        raise RequestError([Problem("tick", "the message's data is not JSON", remedy)]) from error


def _time(text: Any) -> float | None:
    """Read an RFC 3339 time as Unix seconds; None for anything else, which then counts as just now."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _problem(place: str, error: Any) -> Problem:
    key = str(error["loc"][0])
    where = f"{place}: " + ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = list(Body.model_fields)
        near = get_close_matches(key, known, 1)
        remedy = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(known)}"
        return Problem(where, f"unknown key {key!r}", remedy.rstrip("."))
    wanted = Body.model_fields[key].description
    return Problem(where, f"found {json.dumps(error['input'], default=str)[:80]}", f"Give {wanted}")


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
