"""The services that only the measurements of a deployment use: subscriptions of Pub/Sub, Cloud Monitoring, dispatch_now."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import requests
from google.api_core import exceptions
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import id_token
from google.pubsub_v1 import PublisherClient, SubscriberClient
from google.pubsub_v1.types import PubsubMessage

from vertex_launch.adapters.google_api import reported
from vertex_launch.codes import Code
from vertex_launch.errors import Message

PUBSUB, MONITORING, FUNCTION = "Pub/Sub", "Cloud Monitoring", "dispatch_now"
TIMEOUT = 20.0
MONITORING_ADDRESS = "https://monitoring.googleapis.com"


@dataclass(frozen=True)
class Pulled:
    """A message of a subscription."""

    ack: str
    data: bytes
    attributes: Mapping[str, str]


class Subscriptions:
    """Topics and subscriptions, at PUBSUB_EMULATOR_HOST if that is set. All methods raise Unavailable."""

    def __init__(self, publisher: PublisherClient, credentials: Credentials | None) -> None:
        self._publisher = publisher
        self._subscriber = SubscriberClient(credentials=credentials)
        self._emulated = "PUBSUB_EMULATOR_HOST" in os.environ

    def create_topic(self, topic: str) -> None:
        """Create a topic."""
        with _trouble(f"create topic {topic}"):
            self._publisher.create_topic(name=topic, timeout=TIMEOUT)

    def delete_topic(self, topic: str) -> None:
        """Delete a topic if it exists."""
        with _trouble(f"delete topic {topic}"), suppress(exceptions.NotFound):
            self._publisher.delete_topic(topic=topic, timeout=TIMEOUT)

    def publish(self, topic: str, data: bytes) -> None:
        """Publish a message."""
        with _trouble(f"publish to {topic}"):
            self._publisher.publish(topic=topic, messages=[PubsubMessage(data=data)], timeout=TIMEOUT)

    def subscribe(self, name: str, topic: str, dead_letters: str = "", attempts: int = 5) -> None:
        """Create a pull subscription whose messages become dead letters after so many attempts."""
        request: dict[str, Any] = {
            "name": name,
            "topic": topic,
            "ack_deadline_seconds": 10,
            "message_retention_duration": {"seconds": 600},
            "expiration_policy": {"ttl": {"seconds": 86400}},
        }
        if dead_letters:
            request["dead_letter_policy"] = {"dead_letter_topic": dead_letters, "max_delivery_attempts": attempts}
        with _trouble(f"create subscription {name}"):
            self._subscriber.create_subscription(request=request, timeout=TIMEOUT)

    def copy_grants(self, source: str, to: str) -> None:
        """Let those use a subscription who may use another one, as Pub/Sub's own account moves dead letters."""
        if self._emulated:
            return
        with _trouble(f"grant on {to} what {source} grants"):
            policy = self._subscriber.get_iam_policy(request={"resource": source}, timeout=TIMEOUT)
            policy.etag = b""
            self._subscriber.set_iam_policy(request={"resource": to, "policy": policy}, timeout=TIMEOUT)

    def unsubscribe(self, name: str) -> None:
        """Delete a subscription if it exists."""
        with _trouble(f"delete subscription {name}"), suppress(exceptions.NotFound):
            self._subscriber.delete_subscription(subscription=name, timeout=TIMEOUT)

    def exists(self, name: str) -> bool:
        """Return whether there is a subscription with this name."""
        with _trouble(f"get subscription {name}"):
            try:
                self._subscriber.get_subscription(subscription=name, timeout=TIMEOUT)
            except exceptions.NotFound:
                return False
        return True

    def pull(self, name: str) -> list[Pulled]:
        """Return some messages, none if there are none for the moment."""
        with _trouble(f"pull from {name}"):
            try:
                answer = self._subscriber.pull(subscription=name, max_messages=100, timeout=2, retry=None)
            except (exceptions.DeadlineExceeded, exceptions.ServiceUnavailable):
                return []
        return [Pulled(one.ack_id, one.message.data, dict(one.message.attributes)) for one in answer.received_messages]

    def ack(self, name: str, messages: Sequence[Pulled]) -> None:
        """Acknowledge messages."""
        with _trouble(f"acknowledge in {name}"):
            ids = [one.ack for one in messages]
            self._subscriber.acknowledge(subscription=name, ack_ids=ids, timeout=TIMEOUT)

    def refuse(self, name: str, messages: Sequence[Pulled]) -> None:
        """Return messages to a subscription, so that they are delivered again."""
        with _trouble(f"give messages back to {name}"):
            request = {"subscription": name, "ack_ids": [one.ack for one in messages], "ack_deadline_seconds": 0}
            self._subscriber.modify_ack_deadline(request=request, timeout=TIMEOUT)


class Monitoring:
    """The time series of a project, from Cloud Monitoring's REST API."""

    def __init__(self, address: str, credentials: Credentials | None) -> None:
        self._address = address.rstrip("/")
        plain = credentials is None or address.startswith("http://")
        self._session = requests.Session() if plain else AuthorizedSession(credentials)

    def has_data(self, project: str, metric: str, since: str, until: str) -> bool:
        """Return whether a metric has any data between two times (RFC 3339). Raises Unavailable."""
        names = {"filter": f'metric.type="{metric}"', "interval.startTime": since, "interval.endTime": until}
        with reported(MONITORING, Message(Code.VERIFY_NOT_MEASURED, f"cannot read metric {metric}"), {}):
            answer = self._session.get(
                f"{self._address}/v3/projects/{project}/timeSeries",
                params={**names, "view": "HEADERS", "pageSize": "1"},
                timeout=TIMEOUT,
                allow_redirects=False,
            )
            if answer.status_code == requests.codes.not_found:
                return False  # the metric has never had any
            answer.raise_for_status()
            try:
                return bool(answer.json().get("timeSeries"))
            except (ValueError, AttributeError) as error:
                raise OSError("the answer is not JSON") from error


class DispatchNow:
    """The function ``dispatch_now`` at its URL, called as a person calls it."""

    def __init__(self, url: str, credentials: Credentials | None) -> None:
        self.url = url
        self._credentials = credentials

    def token(self) -> str:
        """Return an identity token of the caller, the empty text if there is none."""
        if given := os.environ.get("DISPATCH_NOW_TOKEN"):
            return given
        if self.url.startswith("http://"):
            return ""  # a token must not travel in clear text
        with suppress(GoogleAuthError, ValueError, TypeError):  # a person's credentials make none for a function
            return str(id_token.fetch_id_token(Request(), self.url))
        program = shutil.which("gcloud")
        if program is None:
            return ""
        asked = [program, "auth", "print-identity-token"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=60)  # noqa: S603
        return done.stdout.strip()

    def ask(self, token: str, timeout: float) -> tuple[int, dict[str, Any], str]:
        """Ask for a dry run. Return the status, the JSON of the answer and its first words. Raises Unavailable."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        with reported(FUNCTION, Message(Code.VERIFY_NOT_MEASURED, "there is no answer"), {}):
            answer = requests.post(
                self.url, json={"dry_run": True}, headers=headers, timeout=timeout, allow_redirects=False
            )
        try:
            body = answer.json()
        except ValueError:
            body = {}
        return answer.status_code, body if isinstance(body, dict) else {}, " ".join(answer.text[:200].split())


@contextmanager
def _trouble(what: str) -> Iterator[None]:
    """Raise Unavailable for an error of the call inside."""
    known = {
        exceptions.NotFound: Message(Code.PUBSUB_TOPIC_NOT_FOUND, f"cannot {what}, because something is missing"),
        exceptions.Forbidden: Message(Code.PUBSUB_PERMISSION, f"these credentials may not {what}"),
    }
    with reported(PUBSUB, Message(Code.PUBSUB_UNAVAILABLE, f"cannot {what}"), known):
        yield
