"""The topic of ticks: a message there asks for a pass. An extra one is harmless, so publishing is repeated."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.types import PubsubMessage

from vertex_launch.adapters.google_api import BACKOFF, reported
from vertex_launch.codes import Code
from vertex_launch.errors import Message


class Ticks:
    """The topic ``projects/P/topics/T``, at PUBSUB_EMULATOR_HOST if that is set."""

    def __init__(self, topic: str, *, timeout: float, backoff: Retry = BACKOFF) -> None:
        self._topic = topic
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}

    @cached_property
    def _client(self) -> PublisherClient:
        """The client that sends at once: threads that collect messages would freeze with the function."""
        return PublisherClient()

    def publish(self, body: Mapping[str, str]) -> None:
        """Publish a tick and wait until Pub/Sub has it. Raises Unavailable."""
        topic, messages = self._topic, [PubsubMessage(data=json.dumps(dict(body)).encode())]
        missing = f"{topic} does not exist. Create it, or correct DISPATCH_TOPIC"
        forbidden = (
            f"the function's service account may not publish to {topic}. Grant it roles/pubsub.publisher on that topic"
        )
        known = {
            exceptions.NotFound: Message(Code.PUBSUB_TOPIC_NOT_FOUND, missing),
            exceptions.Forbidden: Message(Code.PUBSUB_PERMISSION, forbidden),
        }
        with reported("Pub/Sub", Message(Code.PUBSUB_UNAVAILABLE, f"cannot publish to {topic}"), known):
            self._client.publish(topic=topic, messages=messages, **self._limits)
