"""The last lines that a job's containers wrote, from Cloud Logging, for the message about the job's failure.

``log_lines`` switches them on. google-cloud-logging is imported when the first lines are asked for. Any error is logged
once, and messages go out without the lines.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from google.api_core import exceptions
from google.api_core.retry import Retry

from vertex_launch import log
from vertex_launch.adapters.google_api import BACKOFF, client, words
from vertex_launch.codes import Code
from vertex_launch.errors import Message
from vertex_launch.model import JobName
from vertex_launch.settings.config import Settings

if TYPE_CHECKING:
    from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client

TIMEOUT = 5.0
"""Seconds that a pass waits for the last lines of a job's log; its message goes out without them after that."""

PAGE = 10
"""Entries in one answer: each may have 256 KiB."""

WIDTH = 300
"""Characters of a line that are returned."""

REACH = 3 * 86_400
"""Age of the oldest lines that are searched, in seconds.

Without a limit Cloud Logging searches all that it keeps, 30 days or more, which can take longer than a pass has. A job's
last lines are about as old as its end, and the next pass asks for them; three days outlast a weekend of trouble.
"""

_COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class JobLogs:
    """The logs of one project's jobs: the last ``log_lines`` lines of each, read within about ``timeout`` seconds.

    Lines may hold keys, so they are cut between words only: the exits redact them.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.time,
        backoff: Retry = BACKOFF,
    ) -> None:
        self._settings = settings
        self._timeout = timeout
        self._clock = clock
        self._retry = backoff.with_timeout(timeout)
        self._first = threading.Lock()
        """Taken by the first warning, and never released."""

    def tail(self, job: str) -> Sequence[str]:
        """Return the last lines of the containers of ``projects/P/locations/R/customJobs/N``, the oldest first.

        There are none if they cannot be read; the first time, the reason is logged.
        """
        try:
            return self._read(JobName.parse(job).number)
        except Exception as error:  # noqa: BLE001 - the lines are an extra: the message goes out without them
            self._warn(job, error)
            return []

    def _read(self, job_id: str) -> list[str]:
        began, wanted = self._clock(), self._settings.log_lines
        since = datetime.fromtimestamp(began - REACH, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        request = {
            "resource_names": [f"projects/{self._settings.project}"],
            "filter": f'resource.type="ml_job" AND resource.labels.job_id="{job_id}" '
            f'AND resource.labels.task_name!="service" AND timestamp>="{since}"',
            "order_by": "timestamp desc",
            "page_size": min(wanted, PAGE),
        }
        newest_first: list[str] = []
        # During a long search Cloud Logging sends empty pages that others follow.
        for page in self._client.list_log_entries(request=request, timeout=self._timeout, retry=self._retry).pages:
            for entry in page.entries:
                newest_first += reversed(_lines(entry))
            if len(newest_first) >= wanted or self._clock() - began >= self._timeout:
                break
        return newest_first[:wanted][::-1]

    @cached_property
    def _client(self) -> LoggingServiceV2Client:
        # Most deployments never ask for a line, so they do not pay for the import.
        from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client

        return client(LoggingServiceV2Client, self._settings.logging_endpoint)

    def _warn(self, job: str, error: Exception) -> None:
        if not self._first.acquire(blocking=False):
            return
        if isinstance(error, exceptions.Forbidden):
            remedy = f"Grant the function's service account roles/logging.viewer in project {self._settings.project}"
        elif isinstance(error, ImportError):
            remedy = "Install google-cloud-logging"
        else:
            remedy = "The next failed job asks again"
        text = (
            f"cannot read the last log lines of {job}, so messages do not show them: {words(error)}. {remedy}, "
            "or set log_lines: 0"
        )
        log.warning(Message(Code.LOG_LINES_UNAVAILABLE, text), job=job)


def _lines(entry: Any) -> list[str]:
    """Return the lines of an entry that are not empty."""
    text = entry.text_payload or (entry.json_payload or {}).get("message")
    if not isinstance(text, str):
        return []
    return [log.shorten(line, WIDTH) for line in map(_readable, text.split("\n")) if line]


def _readable(line: str) -> str:
    """Return a line as a terminal shows it in the end: a progress bar's last state, no colours, no control characters."""
    shown = _COLOUR.sub("", line).rstrip("\r").rpartition("\r")[2].replace("\t", " ")
    return "".join(character for character in shown if character.isprintable()).rstrip()
