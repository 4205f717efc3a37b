"""Structured logs for Cloud Logging, one JSON object a line, and the redaction of API keys.

Cloud Logging reads ``severity``, ``message`` and ``logging.googleapis.com/trace`` from a line. The other fields, see
``FIELDS``, become ``jsonPayload`` (https://cloud.google.com/logging/docs/structured-logging).
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
"""Names allowed in ``extra`` of a log call. Metrics and alerts filter on ``event``, see ``Event``."""


class Event(StrEnum):
    """What a log line is about, for lines that metrics count."""

    PASS = "pass"  # noqa: S105 - not a password
    """A pass has finished; ``report`` is what it saw and did."""
    BUSY = "busy"
    """Another pass is running."""
    FAILED = "failed"
    """A request failed: the configuration, a service, or a bug."""
    DROPPED = "dropped"
    """An invalid message was dropped."""
    SUBMITTED = "submitted"
    """A job was created. ``refill_s`` is how many seconds its slot was free since another job's end."""
    REJECTED = "rejected"
    """An item can never start and has failed."""
    DEFERRED = "deferred"
    """An item cannot start now."""
    SETTLED = "settled"
    """A job's end was reported, or there is nothing to report: ``outcome`` is failed, warned or done."""
    NOTICE = "notice"
    """Something other than a single item keeps a pass from all of its work: a missing queue, a stopped agent."""
    JOB_ENDED = "job_ended"
    """``job_state`` has published a tick."""


trace: ContextVar[str] = ContextVar("trace", default="")
"""Trace ID of the current request, 32 hexadecimal digits."""


class Redactor:
    """Replaces every known API key in texts and JSON values. It knows the last ``MOST`` keys that were added.

    Keys of a W&B server have 40 characters or more. Texts shorter than ``SHORTEST`` are not accepted as keys, because
    replacing them would garble everything else.
    """

    SHORTEST = 8
    MOST = 1000
    MARK = "<redacted>"

    def __init__(self) -> None:
        self._keys: OrderedDict[str, None] = OrderedDict()

    def add(self, key: str) -> None:
        """Redact this key from now on, also in base64 and in a basic-auth header."""
        if len(key) < self.SHORTEST:
            return
        for form in (key, *(base64.b64encode(text.encode()).decode() for text in (key, f"api:{key}"))):
            self._keys[form] = None
            self._keys.move_to_end(form)
        while len(self._keys) > 3 * self.MOST:
            self._keys.popitem(last=False)

    def __call__(self, text: str) -> str:
        """Return the text without keys."""
        for key in list(self._keys):
            if key in text:
                text = text.replace(key, self.MARK)
        return text

    def json(self, value: Any) -> Any:
        """Return a JSON value without keys in any of its texts; what is not JSON becomes a text."""
        match value:
            case None | bool() | int() | float():
                return value
            case dict():
                return {self(str(key)): self.json(inner) for key, inner in value.items()}
            case list() | tuple():
                return [self.json(inner) for inner in value]
            case _:
                return self(str(value))


def shorten(text: str, most: int) -> str:
    """Return a text that may hold keys, cut between words to so many characters: a redactor does not find half a key."""
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0]}…"


def write(level: int, message: Message, *, error: BaseException | None = None, **fields: Any) -> None:
    """Log a message with its code, the traceback of ``error``, and some of ``FIELDS``."""
    LOGGER.log(level, "%s", message, exc_info=error, extra={"code": str(message.code), **fields})


def warning(message: Message, **fields: Any) -> None:
    """Log a warning with its code and some of ``FIELDS``."""
    write(logging.WARNING, message, **fields)


class JsonFormatter(logging.Formatter):
    """Formats a log record as one line of JSON without API keys."""

    def __init__(self, redact: Redactor, project: str) -> None:
        super().__init__()
        self._redact = redact
        self._project = project

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A traceback follows the message, where Error Reporting looks for it."""
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
        entry |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        line = json.dumps(self._redact.json(entry), ensure_ascii=False)
        return line.encode(errors="backslashreplace").decode()  # UTF-8 cannot encode half of a surrogate pair


def configure(redact: Redactor, *, project: str = "", debug: bool = False) -> None:
    """Write the records of this package, and only those, to standard output; ``project`` is where traces are."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(redact, project))
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)
