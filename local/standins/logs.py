"""The stand-in for Cloud Logging: ListLogEntries, which reads the lines of a job, and ListLogMetrics.

Its query language has comparisons (``field="text"``, ``!=``, ``>=``) of a few fields, joined by AND or line breaks. Any
other query is refused, so that a caller that needs more finds out immediately.
"""

from __future__ import annotations

import operator
import re
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import grpc
from google.cloud.logging_v2.types import (
    ListLogEntriesRequest,
    ListLogEntriesResponse,
    ListLogMetricsRequest,
    ListLogMetricsResponse,
    LogEntry,
    LogMetric,
)
from google.protobuf import json_format

from local.standins.faults import Faults
from local.standins.rpc import Refused, RpcServer
from local.standins.vertex.job_log import Entry

MAX_PAGE = 1000
_PAGE = 50
_ENTRIES = "/google.logging.v2.LoggingServiceV2/ListLogEntries"
_METRICS = "/google.logging.v2.MetricsServiceV2/ListLogMetrics"
_NAME = re.compile(r"projects/([^/]+)")
_COMPARISON = re.compile(r'(resource\.type|resource\.labels\.\w+|timestamp)\s*(=|!=|>=)\s*"([^"\\]*)"')
_JOINT = re.compile(r"\s+AND\s+|\s*\n\s*")
_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {"=": operator.eq, "!=": operator.ne, ">=": operator.ge}
_CODE = grpc.StatusCode


class LogServer(RpcServer):
    """A local Cloud Logging for clients of ``url``.

    ``projects`` maps ids to numbers. While ``searching`` is positive, each answer counts it down and has only the token for
    the next page, as in a search that takes long. ``metrics`` are the names of the log-based metrics in each project.
    """

    def __init__(self, *, projects: Mapping[str, str], faults: Faults | None = None, port: int = 0) -> None:
        self.searching = 0
        self._ids = {number: project for project, number in projects.items()}
        self.metrics: set[str] = set()
        self._lock = threading.Lock()
        self._entries: list[Any] = []
        table = {
            _ENTRIES: (ListLogEntriesRequest, self._list),
            _METRICS: (ListLogMetricsRequest, self._list_metrics),
        }
        super().__init__(table, faults=faults, port=port)

    @property
    def url(self) -> str:
        """The address for plaintext gRPC: ``http://127.0.0.1:port``."""
        return f"http://{self.address}"

    def add(self, entry: Entry) -> None:
        """Store an entry in the form of a log sink, as ``VertexServer.on_log`` passes it."""
        kept = json_format.ParseDict(entry, LogEntry.pb(LogEntry()))
        with self._lock:
            self._entries.append(kept)

    def _list(self, request: Any) -> Any:
        projects = {self._project(name) for name in request.resource_names}
        if not projects:
            raise Refused(_CODE.INVALID_ARGUMENT, "At least one resource name is required.")
        if not 0 <= request.page_size <= MAX_PAGE:
            raise Refused(_CODE.INVALID_ARGUMENT, f"page_size must be from 0 to {MAX_PAGE}.")
        if request.order_by not in ("", "timestamp asc", "timestamp desc"):
            raise Refused(_CODE.INVALID_ARGUMENT, f'order_by "{request.order_by}" is not supported.')
        if not re.fullmatch(r"\d*", request.page_token):
            raise Refused(_CODE.INVALID_ARGUMENT, "page_token is invalid.")
        meant = _conditions(request.filter)
        with self._lock:
            # The service orders entries with one timestamp by their insert ids; here they keep the order of their arrival.
            found = sorted(self._entries, key=_moment)
            searching, self.searching = self.searching > 0, max(self.searching - 1, 0)
        found = [one for one in found if one.log_name.split("/")[1] in projects and all(true(one) for true in meant)]
        if request.order_by == "timestamp desc":
            found.reverse()
        begin = int(request.page_token or 0)
        end = begin if searching else begin + (request.page_size or _PAGE)
        return ListLogEntriesResponse(
            entries=[LogEntry.wrap(one) for one in found[begin:end]],
            next_page_token=str(end) if searching or end < len(found) else "",
        )

    def _list_metrics(self, request: Any) -> Any:
        self._project(request.parent)
        return ListLogMetricsResponse(metrics=[LogMetric(name=name) for name in sorted(self.metrics)])

    def _project(self, name: str) -> str:
        """Return the id of a known project, which log names contain."""
        match = _NAME.fullmatch(name)
        project = self._ids.get(match.group(1), match.group(1)) if match else name
        if project not in self._ids.values():
            raise Refused(
                _CODE.PERMISSION_DENIED,
                f"Permission 'logging.logEntries.list' denied on resource '{name}' (or it may not exist).",
            )
        return project


def _conditions(text: str) -> list[Callable[[Any], bool]]:
    """Parse a filter into conditions that an entry must all meet."""
    return [_condition(part) for part in _JOINT.split(text.strip()) if part]


def _condition(part: str) -> Callable[[Any], bool]:
    match = _COMPARISON.fullmatch(part)
    if match is None:
        raise Refused(_CODE.INVALID_ARGUMENT, f"Unparseable filter: {part}")
    field, sign, text = match.groups()
    compare = _OPERATORS[sign]
    if field == "timestamp":
        try:
            moment = datetime.fromisoformat(text).timestamp()
        except ValueError as error:
            raise Refused(_CODE.INVALID_ARGUMENT, f"Unparseable filter: {text} is not a time.") from error
        return lambda entry: compare(_moment(entry), moment)
    if field == "resource.type":
        return lambda entry: compare(entry.resource.type, text)
    label = field.rpartition(".")[2]
    # As in the query language, no comparison of a missing label is true, not even !=.
    return lambda entry: label in entry.resource.labels and compare(entry.resource.labels[label], text)


def _moment(entry: Any) -> float:
    seconds: float = entry.timestamp.ToNanoseconds() / 1e9
    return seconds
