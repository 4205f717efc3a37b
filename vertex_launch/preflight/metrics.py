"""The log-based metrics that alerts watch: which there should be, and which there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from google.api_core import exceptions

from vertex_launch.adapters import google_api
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable
from vertex_launch.preflight.permissions import Refuses

_WATCHED = re.compile(r"logging\.googleapis\.com/user/\$\{name\}/(\w+)")


def watched(alerts: Path) -> frozenset[str]:
    """Return the metrics that the alerts in this folder watch, without the deployment's name."""
    return frozenset(name for file in alerts.glob("*.yaml") for name in _WATCHED.findall(file.read_text()))


class Metrics:
    """The log-based metrics of a project, from Cloud Logging."""

    def __init__(self, service: str, client: Any, *, timeout: float) -> None:
        self._service = service
        self._client = client
        self._again = {"timeout": timeout, "retry": google_api.BACKOFF.with_timeout(timeout)}

    def names(self, project: str) -> frozenset[str]:
        """Return their names. Raises Refuses, Unavailable."""
        try:
            request = {"parent": f"projects/{project}", "page_size": 1000}
            return frozenset(metric.name for metric in self._client.list_log_metrics(request=request, **self._again))
        except (exceptions.Forbidden, exceptions.MethodNotImplemented) as error:
            raise Refuses(self._service, google_api.words(error), code=Code.CHECK_UNVERIFIED) from error
        except google_api.TROUBLE as error:
            reason = f"cannot list the metrics of {project}: {google_api.words(error)}"
            raise Unavailable(self._service, reason, code=Code.CHECK_CONNECTION) from error
