"""The stand-in for a log sink: publish the entries that match a filter to a topic, in the form of Cloud Logging."""

from __future__ import annotations

import json
import logging
import queue
import re
import threading
from collections import Counter

import grpc
from google.api_core.exceptions import GoogleAPICallError
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport
from google.pubsub_v1.types import PubsubMessage

from local.standins.vertex.job_log import Entry

_log = logging.getLogger(__name__)
_PUBLISH_SECONDS = 10.0
_TEXT = re.compile("Job (completed successfully|failed|cancelled|canceled)")


def matches(entry: Entry) -> bool:
    """Return whether an entry matches the filter for ``job_state`` (``infra/job-ends.filter``)."""
    resource = entry["resource"]
    if resource["type"] != "ml_job" or resource["labels"].get("task_name") != "service":
        return False
    texts = (entry.get("textPayload", ""), entry.get("jsonPayload", {}).get("message", ""))
    return "ml.googleapis.com/job_state" in entry.get("labels", {}) or any(map(_TEXT.match, texts))


class LogSink:
    """Publishes to ``topic`` (``projects/P/topics/T``) at ``pubsub`` (``host:port``).

    A thread publishes the entries in order, so that ``write`` never waits. ``calls`` counts the messages that were
    published and that failed.
    """

    def __init__(self, pubsub: str, topic: str) -> None:
        self.calls: Counter[str] = Counter()
        self._topic = topic
        self._entries: queue.SimpleQueue[Entry | None] = queue.SimpleQueue()
        self._client = PublisherClient(transport=PublisherGrpcTransport(channel=grpc.insecure_channel(pubsub)))
        self._thread = threading.Thread(target=self._run, name="log sink", daemon=True)

    def start(self) -> None:
        """Start to publish, beginning with the entries that were written before."""
        self._thread.start()

    def stop(self) -> None:
        """Publish the entries that are written already, and stop."""
        self._entries.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self._client.transport.close()

    def write(self, entry: Entry) -> None:
        """Queue an entry if it matches the filter."""
        if matches(entry):
            self._entries.put(entry)

    def _run(self) -> None:
        while (entry := self._entries.get()) is not None:
            message = PubsubMessage(
                data=json.dumps(entry).encode(), attributes={"logging.googleapis.com/timestamp": entry["timestamp"]}
            )
            try:
                self._client.publish(topic=self._topic, messages=[message], timeout=_PUBLISH_SECONDS)
            except GoogleAPICallError as error:
                _log.warning("the log sink could not publish to %s: %s", self._topic, error)
                self.calls["failed"] += 1
            else:
                self.calls["published"] += 1
