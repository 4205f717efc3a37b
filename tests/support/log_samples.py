"""Log entries as Cloud Logging stores them: from the lines of a function, and from Cloud Run itself.

The texts of Cloud Run are from reports of the real service. Entries are LogEntry messages in JSON form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PROJECT = "demo-project"
DOCS = "https://cloud.google.com/run/docs"
MOVED = {"severity": "severity", "time": "timestamp", "logging.googleapis.com/trace": "trace"}
"""What the agent takes out of a JSON line, and which field of the entry it becomes."""

Entry = dict[str, Any]


def of_line(line: str, service: str) -> Entry:
    """Return the entry that the agent makes of one line of a service's output, with ``message`` left in the payload.

    See https://cloud.google.com/logging/docs/structured-logging#special-payload-fields.
    """
    entry = _entry(service, "stdout")
    try:
        payload = json.loads(line)
    except json.JSONDecodeError:
        payload = None
    if not isinstance(payload, dict):
        return entry | {"textPayload": line}
    entry |= {field: payload.pop(name) for name, field in MOVED.items() if name in payload}
    return entry | ({"textPayload": payload["message"]} if list(payload) == ["message"] else {"jsonPayload": payload})


def system(service: str, text: str, severity: str) -> Entry:
    """Return an entry of Cloud Run about a container."""
    return _entry(service, "varlog%2Fsystem") | {"textPayload": text, "severity": severity}


def request(service: str, status: int, text: str = "") -> Entry:
    """Return the entry of one request; Cloud Run adds ``text`` if it did not reach the function or got no answer."""
    severity = "INFO" if status < 400 else "WARNING" if status < 500 else "ERROR"
    asked = {"requestMethod": "POST", "requestUrl": f"https://{service}-a1b2c3-uc.a.run.app/", "status": status}
    entry = _entry(service, "requests") | {"httpRequest": {**asked, "latency": "0.8s"}, "severity": severity}
    return entry | ({"textPayload": text} if text else {})


NO_INSTANCE = (
    "The request was aborted because there was no available instance. Additional troubleshooting documentation can be found "
    f"at: {DOCS}/troubleshooting#abort-request"
)


def harmless(service: str) -> Mapping[str, Entry]:
    """Return entries of Cloud Run without a fault, including a busy function and mistakes of callers."""
    return {
        "start": system(
            service,
            "Starting new instance. Reason: AUTOSCALING - Instance started due to configured scaling factors (e.g. CPU "
            "utilization, request throughput, etc.) or no existing capacity for current traffic.",
            "INFO",
        ),
        "probe": system(
            service, 'Default STARTUP TCP probe succeeded after 1 attempt for container "worker" on port 8080.', "INFO"
        ),
        "end": system(service, "Container called exit(0).", "INFO"),
        "success": request(service, 200),
        "a pass that met another one": request(service, 429),
        "a request that met a pass": request(service, 409),
        "the one instance is busy": request(service, 429, NO_INSTANCE),
        "the one instance was being started": request(service, 500, NO_INSTANCE),
        "a bad request": request(service, 400),
        "a stranger": request(
            service,
            403,
            "The request was not authenticated. Either allow unauthenticated invocations or set the proper Authorization "
            "header. Empty Authorization header value.",
        ),
        "our own 503, of which our own line tells": request(service, 503),
        "a line of a library": of_line("[2026-02-23 21:11:09 +0000] [2] [INFO] Booting worker with pid: 2", service),
    }


def faults(service: str) -> Mapping[str, Entry]:
    """Return entries of Cloud Run about faults that a function cannot report itself."""
    lost = (
        "The request failed because either the HTTP response was malformed or connection to the instance had an error."
    )
    return {
        "out of memory": system(
            service,
            "Memory limit of 512 MiB exceeded with 531 MiB used. Consider increasing the memory limit, see "
            f"{DOCS}/configuring/memory-limits",
            "ERROR",
        ),
        "the request that ran out of memory": request(
            service,
            503,
            f"{lost} Additional troubleshooting documentation can be found at: "
            f"{DOCS}/troubleshooting#malformed-response-or-connection-error\nWhile handling this request, the container "
            "instance was found to be using too much memory and was terminated. This is likely to cause a new container "
            "instance to be used for the next request to this revision.",
        ),
        "timeout": request(
            service,
            504,
            "The request has been terminated because it has reached the maximum request timeout. To change this limit, see "
            f"{DOCS}/configuring/request-timeout",
        ),
        "not started": system(
            service,
            'Default STARTUP TCP probe failed 1 time consecutively for container "worker" on port 8080. The instance was '
            "not started. Connection failed with status CANCELLED.",
            "ERROR",
        ),
        "a request to what has not started": request(
            service, 500, "The request failed because the instance could not start successfully."
        ),
        "not ready": request(service, 503, "The request failed because the instance failed the readiness check."),
        "crash": system(service, "Uncaught signal: 11, pid=2, tid=2, fault_addr=0.", "ERROR"),
        "crash while it is loaded": _entry(service, "stderr")
        | {
            "textPayload": 'Traceback (most recent call last):\n  File "/workspace/main.py", line 9, in <module>\n'
            "    from vertex_launch import app\nModuleNotFoundError: No module named 'vertex_launch'",
            "severity": "ERROR",
        },
    }


def _entry(service: str, log: str) -> Entry:
    labels = {
        "project_id": PROJECT,
        "location": "us-central1",
        "service_name": service,
        "configuration_name": service,
        "revision_name": f"{service}-00001-abc",
    }
    return {
        "insertId": "a1b2c3",
        "logName": f"projects/{PROJECT}/logs/run.googleapis.com%2F{log}",
        "timestamp": "2026-02-23T21:11:09.100Z",
        "resource": {"type": "cloud_run_revision", "labels": labels},
    }
