"""The part of the platform between a push subscription and a function: Eventarc's event, and a single instance.

A gen2 function with a Pub/Sub trigger gets a binary CloudEvent instead of the push. A function with an HTTP trigger gets
the push unchanged. Both have one instance with concurrency one: while it is busy, the platform answers 429.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

from local.standins.web import Handler, WebServer, post

TYPE = "google.cloud.pubsub.topic.v1.messagePublished"


class PushShim(WebServer):
    """Forwards pushes to ``function_url``. Its ``url`` is the push endpoint.

    ``topic`` (``projects/P/topics/T``) is the source of the messages. ``raw`` forwards the push unchanged. The answer is
    504 if the function takes longer than ``timeout`` seconds, and 503 if it cannot be reached. ``calls`` counts the answers
    by status.
    """

    def __init__(
        self, function_url: str, topic: str, *, raw: bool = False, timeout: float = 540.0, port: int = 0
    ) -> None:
        self.calls: Counter[int] = Counter()
        self._function_url = function_url
        self._topic = topic
        self._raw = raw
        self._timeout = timeout
        self._instance = threading.Lock()
        self._lock = threading.Lock()
        super().__init__(_Handler, port)

    def forward(self, push: bytes) -> tuple[int, bytes]:
        """Return status and body of the answer to a push."""
        try:
            headers, body = self._request(push)
        except (ValueError, KeyError, TypeError) as error:
            status, answer = 400, f"The body is not a push of Pub/Sub: {error!r}".encode()
        else:
            status, answer = self._call(headers, body)
        with self._lock:
            self.calls[status] += 1
        return status, answer

    def _call(self, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if not self._instance.acquire(blocking=False):
            return 429, b"Rate exceeded."
        try:
            return post(self._function_url, body, headers, self._timeout)
        except TimeoutError:
            return 504, b"upstream request timeout"
        except OSError as error:
            return 503, f"The function is not available: {error}".encode()
        finally:
            self._instance.release()

    def _request(self, push: bytes) -> tuple[dict[str, str], bytes]:
        headers = {"Content-Type": "application/json"}
        if self._raw:
            return headers, push
        event: dict[str, Any] = json.loads(push)
        message = event["message"]
        headers |= {
            "ce-id": message["messageId"],
            "ce-source": f"//pubsub.googleapis.com/{self._topic}",
            "ce-specversion": "1.0",
            "ce-type": TYPE,
            "ce-time": message["publishTime"],
        }
        return headers, json.dumps({"message": message, "subscription": event["subscription"]}).encode()


class _Handler(Handler):
    server: PushShim

    def serve(self) -> None:
        self.answer(*self.server.forward(self.body()))
