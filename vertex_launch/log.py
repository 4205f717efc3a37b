"""Structured logs for Cloud Logging (one JSON object a line), and the redaction of keys from all that leaves the process.

Cloud Logging reads ``severity``, ``message`` and ``logging.googleapis.com/trace`` from a JSON line; the other fields of
``FIELDS`` become ``jsonPayload`` and can be searched for (https://cloud.google.com/logging/docs/structured-logging).
"""

from __future__ import annotations

import base64
import json
import logging
import sys
from collections import OrderedDict
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from vertex_launch.errors import Message

LOGGER = logging.getLogger("vertex_launch")
FIELDS = ("event", "code", "pass_id", "item", "queue", "run", "job", "region", "state", "outcome", "refill_s", "report")
"""Names that may be given in ``extra`` of a log call. ``event`` is what metrics and alerts go by, see ``Event``."""


class Event(StrEnum):
    """What a log line is about, for those that are counted."""

    PASS = "pass"  # noqa: S105 - no password
    """A pass has come to its end; ``report`` is what it saw and did."""
    BUSY = "busy"
    """Another pass is running."""
    FAILED = "failed"
    """A request came to nothing: the configuration, a service that is down, an error of ours."""
    DROPPED = "dropped"
    """A message was dropped that nobody can read."""
    SUBMITTED = "submitted"
    """A job was created; ``refill_s`` where it took a slot that another one's end had freed, seconds after that end."""
    REJECTED = "rejected"
    """An item can never start and has failed."""
    DEFERRED = "deferred"
    """An item cannot start now."""
    SETTLED = "settled"
    """How a job ended is told, or there is nothing to tell: ``outcome`` is failed, warned or done."""
    NOTICE = "notice"
    """Something keeps a pass from all of its work, and concerns no single item: a queue is missing, the agent was stopped."""
    JOB_ENDED = "job_ended"
    """``job_state`` has asked for a pass."""


trace: ContextVar[str] = ContextVar("trace", default="")
"""Trace id of the request being handled, 32 hexadecimal digits."""


class Redactor:
    """Replaces every key it has been told of in any text or JSON value.

    Keys of a W&B server are 40 characters and longer; texts under ``SHORTEST`` are not taken for keys, since replacing
    them would garble everything else. It remembers the last ``MOST`` keys.
    """

    SHORTEST = 8
    MOST = 1000
    MARK = "<redacted>"

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def add(self, key: str) -> None:
        """Never let this key out, nor its form in base64 or in a basic-auth header."""
        if len(key) < self.SHORTEST:
            return
        for form in (key, *(base64.b64encode(text.encode()).decode() for text in (key, f"api:{key}"))):
            self._keys[form] = None
            self._keys.move_to_end(form)
        while len(self._keys) > 3 * self.MOST:
            self._keys.popitem(last=False)

    def __call__(self, text: str) -> str:
        """Give the text without keys."""
        for key in list(self._keys):
            if key in text:
                text = text.replace(key, self.MARK)
        return text

    def json(self, value: Any) -> Any:
        """Give a JSON value without keys in any of its strings."""
        if isinstance(value, str):
            return self(value)
        if isinstance(value, dict):
            return {self(str(key)): self.json(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self.json(inner) for inner in value]
        return value


def warning(message: Message, **fields: object) -> None:
    """Log a warning with its code; ``fields`` are some of ``FIELDS``."""
    LOGGER.warning("%s", message, extra={"code": str(message.code), **fields})


def error(message: Message, **fields: object) -> None:
    """Log an error with its code; ``fields`` are some of ``FIELDS``."""
    LOGGER.error("%s", message, extra={"code": str(message.code), **fields})


class JsonFormatter(logging.Formatter):
    """One log record as one line of JSON, redacted."""

    def __init__(self, redact: Redactor, project: str) -> None:
        super().__init__()
        self._redact = redact
        self._project = project

    def format(self, record: logging.LogRecord) -> str:
        """Give the line; a traceback, where there is one, follows the message as Error Reporting expects it."""
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        entry: dict[str, Any] = {
            "severity": record.levelname,
            "message": message,
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        }
        if self._project and (current := trace.get()):
            entry["logging.googleapis.com/trace"] = f"projects/{self._project}/traces/{current}"
        entry.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        line = json.dumps(self._redact.json(entry), ensure_ascii=False, default=str)
        return line.encode(errors="backslashreplace").decode()  # half a surrogate pair cannot be written


def configure(redact: Redactor, *, project: str = "", debug: bool = False) -> None:
    """Send this package's records, and only them, to standard output as JSON lines; ``project`` is where traces are."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(redact, project))
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)
