"""The stand-in for Cloud Scheduler: publish a message to a topic at a fixed interval."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

import grpc
from google.cloud.pubsub_v1 import types

_log = logging.getLogger(__name__)
_PUBLISH_SECONDS = 10.0
_LONGEST_WAIT = 0.5
"""Seconds between two reads of the clock, because it may differ from the one that threads wait by."""


class Scheduler:
    """Publishes ``data`` to ``topic`` (``projects/P/topics/T``) at ``pubsub`` (``host:port``) every ``every`` seconds.

    The first message comes one interval after ``start``. ``clock`` returns seconds. A test that passes its own clock calls
    ``tick`` instead of ``start``. ``calls`` counts the messages that were published and that failed.
    """

    def __init__(
        self, pubsub: str, topic: str, every: float, *, data: bytes = b"{}", clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.calls: Counter[str] = Counter()
        self._topic = topic
        self._every = every
        self._data = data
        self._clock = clock
        self._due = clock() + every
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._channel = grpc.insecure_channel(pubsub)
        self._stub = self._channel.unary_unary(
            "/google.pubsub.v1.Publisher/Publish",
            request_serializer=types.PublishRequest.serialize,
            response_deserializer=types.PublishResponse.deserialize,
        )

    def start(self) -> None:
        """Start to publish."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to publish."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._channel.close()

    def tick(self) -> bool:
        """Publish if the interval is over, and return whether it was. Do not catch up on missed intervals."""
        with self._lock:
            now = self._clock()
            if now < self._due:
                return False
            self._due = now + self._every
        self.run_now()
        return True

    def run_now(self) -> bool:
        """Publish now, and return whether Pub/Sub accepted the message."""
        message = types.PubsubMessage(data=self._data)
        try:
            self._stub(types.PublishRequest(topic=self._topic, messages=[message]), timeout=_PUBLISH_SECONDS)
        except grpc.RpcError as error:
            _log.warning("the scheduler could not publish to %s: %s", self._topic, error)
            return self._count("failed")
        return self._count("published")

    def _run(self) -> None:
        while not self._stopped.wait(min(max(self._due - self._clock(), 0.01), _LONGEST_WAIT)):
            self.tick()

    def _count(self, outcome: str) -> bool:
        with self._lock:
            self.calls[outcome] += 1
        return outcome == "published"
