"""The entries of a CustomJob in Cloud Logging, in the form in which a log sink publishes them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from google.cloud.aiplatform_v1 import JobState

Entry = dict[str, Any]

SERVICE_TEXTS = {
    JobState.JOB_STATE_QUEUED: ("Waiting for job to be provisioned.",),
    JobState.JOB_STATE_PENDING: (
        "Vertex AI is provisioning job running framework. First time usage might take couple of minutes, "
        "and subsequent runs can be much faster.",
        "Vertex AI is setting up this job.",
        "Waiting for training program to start.",
    ),
    JobState.JOB_STATE_RUNNING: ("Job is preparing.", "Job is running."),
    JobState.JOB_STATE_SUCCEEDED: ("Finished tearing down training program.", "Job completed successfully."),
    JobState.JOB_STATE_FAILED: ("Finished tearing down training program.", "Job failed."),
    JobState.JOB_STATE_CANCELLED: ("Finished tearing down training program.", "Job cancelled."),
}
"""The texts that the service writes when a job enters a state, in order."""


def service_entry(project_id: str, job_id: str, text: str, now: float) -> Entry:
    """Return an entry of the service about a job (``task_name`` service). ``now`` is in Unix seconds."""
    entry = _entry(project_id, job_id, "service", f"ml.googleapis.com%2F{job_id}", now)
    entry["textPayload"] = text
    if text == "Job completed successfully.":
        del entry["severity"]
        entry["labels"]["ml.googleapis.com/job_state"] = "SUCCEEDED"
    elif text == "Job cancelled.":
        del entry["labels"]
    return entry


def output_entry(project_id: str, job_id: str, line: str, now: float) -> Entry:
    """Return the entry of a line that the container wrote."""
    entry = _entry(project_id, job_id, "workerpool0-0", "workerpool0-0", now)
    entry["jsonPayload"] = {"attrs": {"tag": "workerpool0-0"}, "levelname": "INFO", "message": line}
    return entry


def timestamp(now: float) -> str:
    """Return Unix seconds as RFC 3339 with milliseconds."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _entry(project_id: str, job_id: str, task_name: str, log: str, now: float) -> Entry:
    return {
        "insertId": uuid.uuid4().hex[:14],
        "logName": f"projects/{project_id}/logs/{log}",
        "timestamp": timestamp(now),
        "receiveTimestamp": timestamp(now),
        "severity": "INFO",
        "resource": {"type": "ml_job", "labels": {"job_id": job_id, "project_id": project_id, "task_name": task_name}},
        "labels": {"ml.googleapis.com/endpoint": ""},
    }
