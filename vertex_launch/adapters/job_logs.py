"""The last lines that a job's containers wrote, from Cloud Logging; ``reconciler`` puts them below the reason of a failure.

They are an extra that ``log_lines`` switches on: google-cloud-logging is imported when the first lines are asked for, and
whatever keeps them away, the message goes out without them.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from google.api_core import exceptions
from google.api_core.retry import Retry

from vertex_launch.adapters.grpc_endpoint import BACKOFF, insecure_channel, is_plaintext
from vertex_launch.log import LOGGER, Redactor

if TYPE_CHECKING:
    from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client

WIDTH = 300
"""Characters of a line that are shown."""

REACH = 3 * 86_400
"""How many seconds back lines are looked for.

Without a bound Cloud Logging searches all that it keeps, 30 days and more, which can take longer than a pass has. A job's
last lines are about as old as its end, and the pass that follows asks for them; three days outlast a weekend of trouble.
"""

_COLOUR = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


class JobLogs:
    """The logs of one project's jobs; of each the last ``lines`` lines, read within about ``timeout`` seconds.

    Lines are redacted before they are cut, for no redactor finds half a key.
    """

    def __init__(
        self,
        project: str,
        lines: int,
        redact: Redactor,
        *,
        timeout: float,
        endpoint: str | None = None,
        clock: Callable[[], float] = time.time,
        backoff: Retry = BACKOFF,
    ) -> None:
        self._project = project
        self._wanted = lines
        self._redact = redact
        self._timeout = timeout
        self._endpoint = endpoint
        self._clock = clock
        self._retry = backoff.with_timeout(timeout)
        self._lock = threading.Lock()
        self._made: LoggingServiceV2Client | None = None
        self._warned = False

    def tail(self, job: str) -> Sequence[str]:
        """Give the last lines that the containers of ``projects/P/locations/R/customJobs/N`` wrote, the oldest first.

        None where they cannot be read; the log says why, once.
        """
        try:
            return self._read(job.rsplit("/", 1)[-1])
        except Exception as error:  # noqa: BLE001 - an extra may not cost its reader the message that it belongs to
            self._warn(job, error)
            return []

    def _read(self, job_id: str) -> list[str]:
        began = self._clock()
        since = datetime.fromtimestamp(began - REACH, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        request = {
            "resource_names": [f"projects/{self._project}"],
            "filter": f'resource.type="ml_job" AND resource.labels.job_id="{job_id}" '
            f'AND resource.labels.task_name!="service" AND timestamp>="{since}"',
            "order_by": "timestamp desc",
            "page_size": self._wanted,
        }
        newest_first: list[str] = []
        # A page may be empty although others follow: Cloud Logging answers so when a search takes long.
        for page in self._client().list_log_entries(request=request, timeout=self._timeout, retry=self._retry).pages:
            for entry in page.entries:
                newest_first += reversed(self._lines(entry))
            if len(newest_first) >= self._wanted or self._clock() - began >= self._timeout:
                break
        return newest_first[: self._wanted][::-1]

    def _lines(self, entry: Any) -> list[str]:
        """Give the lines of an entry that say something."""
        text = entry.text_payload or (entry.json_payload or {}).get("message")
        if not isinstance(text, str):
            return []
        readable = (_readable(line) for line in text.split("\n"))
        return [self._redact(line)[:WIDTH] for line in readable if line]

    def _client(self) -> LoggingServiceV2Client:
        with self._lock:
            if self._made is None:
                self._made = _client(self._endpoint)
            return self._made

    def _warn(self, job: str, error: Exception) -> None:
        with self._lock:
            if self._warned:
                return
            self._warned = True
        if isinstance(error, exceptions.Forbidden):
            remedy = f"grant the function's service account roles/logging.viewer in project {self._project}"
        elif isinstance(error, ImportError):
            remedy = "install google-cloud-logging"
        else:
            remedy = "it is tried again for the next job; where that does not help, mend what it says"
        LOGGER.warning(
            "Cloud Logging does not give the last lines of %s; messages go out without them: %s; %s, or set log_lines: 0",
            job,
            " ".join(str(error).split()) or type(error).__name__,
            remedy,
        )


def _client(endpoint: str | None) -> LoggingServiceV2Client:
    # Most deployments never ask for a line, so none of them pays for the import before it does.
    from google.cloud.logging_v2.services.logging_service_v2 import LoggingServiceV2Client

    if is_plaintext(endpoint):
        transport = LoggingServiceV2Client.get_transport_class("grpc")
        return LoggingServiceV2Client(transport=transport(channel=insecure_channel(endpoint)))
    return LoggingServiceV2Client(client_options={"api_endpoint": endpoint} if endpoint else None)


def _readable(line: str) -> str:
    """Give a line as a terminal would show it last: a progress bar's final state, no colours, nothing that steers."""
    shown = _COLOUR.sub("", line).rstrip("\r").rpartition("\r")[2].replace("\t", " ")
    return "".join(character for character in shown if character.isprintable()).rstrip()
