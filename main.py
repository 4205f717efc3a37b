"""The entry points of the functions; `vertex_launch.functions` does the rest."""

from __future__ import annotations

import flask
import functions_framework
from cloudevents.http import CloudEvent

from vertex_launch import functions


@functions_framework.cloud_event  # type: ignore[untyped-decorator]
def dispatch(event: CloudEvent) -> None:
    """Run a pass for a message of the tick topic."""
    functions.on_event("dispatch", event, flask.request.headers)


@functions_framework.cloud_event  # type: ignore[untyped-decorator]
def job_state(event: CloudEvent) -> None:
    """Publish a tick when the job of a log entry is ours and has ended."""
    functions.on_event("job_state", event, flask.request.headers)


@functions_framework.http  # type: ignore[untyped-decorator]
def dispatch_now(request: flask.Request) -> flask.Response:
    """Run a pass at once for a person: POST, with a JSON object or nothing."""
    return functions.on_request(request)


functions.accept_any_body("dispatch", "job_state")
