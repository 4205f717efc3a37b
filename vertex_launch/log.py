"""Structured logs for Cloud Logging, one JSON object a line, and the redaction of API keys.

Cloud Logging reads ``severity``, ``message`` and ``logging.googleapis.com/trace`` from a line. The other fields, see
``FIELDS``, become ``jsonPayload`` (https://cloud.google.com/logging/docs/structured-logging).
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from enum import StrEnum
from threading import Lock
from typing import Any

from vertex_launch.errors import Message, brief
from vertex_launch.key_forms import forms
from vertex_launch.limits import LONGEST_WORD

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


_WORD = re.compile("[a-z_]{1,24}")

trace: ContextVar[str] = ContextVar("trace", default="")
"""Trace ID of the current request, 32 hexadecimal digits."""


class Redactor:
    """Replaces every known secret, in any of its forms, in texts and JSON values.

    It knows the deployment's own secrets, which are pinned, and those that were added last: ``MOST``, whose forms have
    ``LARGEST`` characters at most. So items cannot push out the deployment's own.
    Keys of a W&B server have 40 characters or more. Texts shorter than ``SHORTEST`` are not accepted, because replacing
    them would garble everything else.

    A text costs the same whatever the number of secrets: each place in it is looked up by the last characters of a form.
    """

    SHORTEST = 8
    MOST = 1000
    MOST_PINNED = 20
    LARGEST = 10_000_000
    MARK = "<redacted>"
    _FEW = 64
    """Forms that are faster to look for one by one."""
    _CROWDED = 64
    """Forms with the same last characters, above which each place where those stand is hidden as far as the longest."""

    def __init__(self) -> None:
        self._added: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._pinned: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._uses: Counter[str] = Counter()
        self._by_end: dict[str, dict[str, None]] = {}
        self._longest: dict[str, int] = {}
        self._size = 0
        self._lock = Lock()

    def add(self, secret: str) -> None:
        """Redact this secret from now on."""
        if secret not in self._pinned:
            self._keep(secret, self._added, self.MOST)

    def pin(self, secret: str) -> None:
        """Redact this secret of the deployment from now on, however many others are added."""
        self._keep(secret, self._pinned, self.MOST_PINNED)

    def _keep(self, secret: str, among: OrderedDict[str, frozenset[str]], most: int) -> None:
        if len(secret) < self.SHORTEST:
            return
        with self._lock:
            if secret in among:
                among.move_to_end(secret)
                return
            among[secret] = forms(secret, self.SHORTEST)
            for form in among[secret]:
                self._uses[form] += 1
                if self._uses[form] == 1:
                    self._size += len(form)
                    end = form[-self.SHORTEST :]
                    self._by_end.setdefault(end, {})[form] = None
                    self._longest[end] = max(len(form), self._longest.get(end, 0))
            while len(among) > most or (among is self._added and self._size > self.LARGEST and len(among) > 1):
                for form in among.popitem(last=False)[1]:
                    self._drop(form)

    def _drop(self, form: str) -> None:
        self._uses[form] -= 1
        if not self._uses[form]:
            del self._uses[form]
            self._size -= len(form)
            end = form[-self.SHORTEST :]
            del self._by_end[end][form]
            if not self._by_end[end]:
                del self._by_end[end], self._longest[end]

    def __call__(self, text: str) -> str:
        """Return the text without secrets."""
        if len(text) < self.SHORTEST or not self._uses:
            return text
        return self._masked(
            text, self._few(text, list(self._uses)) if len(self._uses) <= self._FEW else self._many(text)
        )

    def shows_ours(self, text: str) -> bool:
        """Return whether a text has a pinned secret in any form."""
        return self._ours(text) != text

    def _ours(self, text: str) -> str:
        return self._masked(text, self._few(text, [form for known in list(self._pinned.values()) for form in known]))

    def _few(self, text: str, wanted: Iterable[str]) -> Iterator[tuple[int, int]]:
        """Find where forms stand, by looking for each."""
        for form in wanted:
            at = text.find(form)
            while at >= 0:
                yield at, at + len(form)
                at = text.find(form, at + len(form))

    def _many(self, text: str) -> Iterator[tuple[int, int]]:
        """Find where forms stand, by looking each place up."""
        size, ends = self.SHORTEST, self._by_end
        for at in [at for at in range(len(text) - size + 1) if text[at : at + size] in ends]:
            end, known = at + size, ends.get(text[at : at + size], {})
            if len(known) > self._CROWDED:
                first = max(0, end - self._longest.get(text[at:end], size))
                yield max(first, text.rfind(" ", first, end) + 1), end
            else:
                yield from ((end - len(form), end) for form in list(known) if text.endswith(form, 0, end))

    def _masked(self, text: str, spans: Iterable[tuple[int, int]]) -> str:
        parts: list[str] = []
        done = 0
        for first, end in sorted(spans):
            if first >= done or not parts:  # it does not overlap with the one before
                parts += [text[done:first], self.MARK]
            done = max(done, end)
        return "".join([*parts, text[done:]])

    def json(self, value: Any, names: Collection[str] = ()) -> Any:
        """Return a JSON value without secrets in any of its texts; what is not JSON becomes a text.

        Keys of mappings that are plain words stay, because they are ours. With ``names``, all keys of mappings and the values
        of these are identifiers. Only pinned secrets are hidden there, because an item's "key" can be another item's id.
        """
        match value:
            case None | bool() | int() | float():
                return value
            case dict():
                named = self._ours if names else self
                return {
                    key if isinstance(key, str) and _WORD.fullmatch(key) else named(str(key)): (
                        self._identifiers(inner) if key in names else self.json(inner, names)
                    )
                    for key, inner in value.items()
                }
            case list() | tuple():
                return [self.json(inner, names) for inner in value]
            case _:
                return self(str(value))

    def _identifiers(self, value: Any) -> Any:
        """Return identifiers, alone or in a list or mapping, without pinned secrets."""
        if isinstance(value, dict):
            return {self._ours(key): self._identifiers(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._identifiers(inner) for inner in value]
        return self._ours(value) if isinstance(value, str) else value


def shorten(text: str, most: int) -> str:
    """Return a text that may hold keys, cut between words to so many characters: a redactor does not find half a key."""
    if len(text) <= most:
        return text
    gap = re.search(r"\s\S*\Z", text[:most])
    return f"{text[: gap.start()] if gap else ''}…"


def write(level: int, message: Message, *, error: BaseException | None = None, **fields: Any) -> None:
    """Log a message with its code, the traceback of ``error``, and some of ``FIELDS``."""
    LOGGER.log(level, "%s", message, exc_info=error, extra={"code": str(message.code), **fields})


def warning(message: Message, **fields: Any) -> None:
    """Log a warning with its code and some of ``FIELDS``."""
    write(logging.WARNING, message, **fields)


def _short(value: Any) -> Any:
    return brief(value, LONGEST_WORD) if isinstance(value, str) else value


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
        fields = {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        ours = {name: value for name, value in fields.items() if name == "code" or isinstance(value, StrEnum)}
        entry: dict[str, Any] = {
            "severity": record.levelname,
            "message": brief(self._redact(message)),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        }
        if self._project and (current := trace.get()):
            entry["logging.googleapis.com/trace"] = f"projects/{self._project}/traces/{current}"
        # What metrics and alerts filter on stays as it is, whatever an item calls its key.
        entry |= {name: _short(value) for name, value in self._redact.json(fields).items()} | ours
        line = json.dumps(entry, ensure_ascii=False)
        return line.encode(errors="backslashreplace").decode()  # UTF-8 cannot encode half of a surrogate pair


def configure(redact: Redactor, *, project: str = "", debug: bool = False) -> None:
    """Write the records of this package, and only those, to standard output; ``project`` is where traces are."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(redact, project))
    LOGGER.handlers[:] = [handler]
    LOGGER.propagate = False
    LOGGER.setLevel(logging.DEBUG if debug else logging.INFO)
