"""The topic of ticks: a message there asks for a pass. An extra one is harmless, so publishing is repeated."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.pubsub_v1 import PublisherClient
from google.pubsub_v1.types import PubsubMessage

from vertex_launch.adapters.grpc_endpoint import BACKOFF, TROUBLE
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable

SERVICE = "Pub/Sub"


class Ticks:
    """The topic ``projects/P/topics/T``, at PUBSUB_EMULATOR_HOST if that is set."""

    def __init__(self, topic: str, *, timeout: float, backoff: Retry = BACKOFF) -> None:
        self._topic = topic
        self._limits = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}

    @functools.cached_property
    def _client(self) -> PublisherClient:
        """The client that sends at once: threads that collect messages would freeze with the function."""
        return PublisherClient()

    def publish(self, body: Mapping[str, str]) -> None:
        """Publish a tick and wait until Pub/Sub has it. Raises Unavailable."""
        message = PubsubMessage(data=json.dumps(dict(body)).encode())
        try:
            self._client.publish(topic=self._topic, messages=[message], **self._limits)
        except exceptions.NotFound as error:
            raise Unavailable(
                SERVICE,
                f"{self._topic} does not exist. Create it, or correct DISPATCH_TOPIC ({error.message})",
                code=Code.PUBSUB_TOPIC_NOT_FOUND,
            ) from error
        except exceptions.Forbidden as error:
            raise Unavailable(
                SERVICE,
                f"the function's service account may not publish to {self._topic}. Grant it roles/pubsub.publisher on "
                f"that topic ({error.message})",
                code=Code.PUBSUB_PERMISSION,
            ) from error
        except TROUBLE as error:
            raise Unavailable(
                SERVICE, f"cannot publish to {self._topic}: {error}", code=Code.PUBSUB_UNAVAILABLE
            ) from error
