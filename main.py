"""The entry points of the functions. Every function takes HTTP, also what Pub/Sub and Eventarc push."""

from __future__ import annotations

import flask
import functions_framework

from vertex_launch import functions


@functions_framework.http  # type: ignore[untyped-decorator]
def dispatch(request: flask.Request) -> flask.Response:
    """Run a pass for a message of the tick topic."""
    return functions.dispatch(request, pushed=True)


@functions_framework.http  # type: ignore[untyped-decorator]
def dispatch_now(request: flask.Request) -> flask.Response:
    """Run a pass for a person: POST with a JSON object or an empty body."""
    return functions.dispatch(request, pushed=False)


@functions_framework.http  # type: ignore[untyped-decorator]
def job_state(request: flask.Request) -> flask.Response:
    """Publish a tick if the job of a log entry is ours and has ended."""
    return functions.job_state(request)
