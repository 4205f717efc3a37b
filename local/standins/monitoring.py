"""The stand-in for Cloud Monitoring: whether a metric has any data, which is all that ``timeSeries.list`` is asked here."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from local.standins.web import Handler, WebServer

_PATH = re.compile(r"/v3/projects/([^/]+)/timeSeries")
_FILTER = re.compile(r'metric\.type="([^"]+)"')


class MonitoringServer(WebServer):
    """A local Cloud Monitoring. ``has_data`` returns whether a metric type has any data, None for an unknown type."""

    def __init__(self, has_data: Callable[[str], bool | None], *, port: int = 0) -> None:
        self.has_data = has_data
        super().__init__(_Handler, port)


class _Handler(Handler):
    server: MonitoringServer

    def serve(self) -> None:
        url = urlsplit(self.path)
        asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
        found = _FILTER.fullmatch(asked.get("filter", ""))
        times = {"interval.startTime", "interval.endTime"} <= asked.keys()
        if self.command != "GET" or not _PATH.fullmatch(url.path) or not found or not times:
            self.answer_json(400, {"error": {"code": 400, "message": "Request contains an invalid argument."}})
            return
        has_data = self.server.has_data(found[1])
        if has_data is None:
            message = f"Cannot find metric(s) that match type = {found[1]!r}."
            self.answer_json(404, {"error": {"code": 404, "message": message}})
            return
        series = {"metric": {"type": found[1]}, "points": []}
        self.answer_json(200, {"timeSeries": [series]} if has_data else {})
