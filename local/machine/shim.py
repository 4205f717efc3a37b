"""What stands between a push subscription and a function in the cloud: Eventarc's event, and one instance.

A gen2 function with a Pub/Sub trigger gets a binary CloudEvent, not the push. A function deployed for HTTP gets the push
as it is. Either has one instance with concurrency one here, so that whatever arrives while a request is in the function
is answered 429 by the platform.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

from local.standins.web import Handler, WebServer, post

TYPE = "google.cloud.pubsub.topic.v1.messagePublished"


class PushShim(WebServer):
    """Hands pushes on to ``function_url``: ``start`` and ``stop`` it; ``url`` is the push endpoint.

    ``topic`` (``projects/P/topics/T``) is where the messages come from. ``raw`` hands the push on unchanged. A function
    that takes longer than ``timeout`` seconds is answered for with 504; one that is not there with 503. ``calls`` counts
    the answers by their status.
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

    def hand_on(self, push: bytes) -> tuple[int, bytes]:
        """Give status and body for one push."""
        try:
            headers, body = self._request(push)
        except (ValueError, KeyError, TypeError) as error:
            status, answer = 400, f"This is no push of Pub/Sub: {error!r}".encode()
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
        self.answer(*self.server.hand_on(self.body()))
