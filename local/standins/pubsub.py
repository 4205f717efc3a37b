"""The stand-in for Pub/Sub: the RPCs that a deployment needs, and push over HTTP with backoff and dead letters.

It behaves like Google's emulator (one set of tests runs against both) and starts without Java. Its pushes have
``deliveryAttempt`` if there is a dead letter policy, like those of the real service. It has no ordering, filters,
StreamingPull or OIDC header.
"""

from __future__ import annotations

import base64
import heapq
import itertools
import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import grpc
from google.cloud.pubsub_v1 import types
from google.iam.v1 import iam_policy_pb2  # type: ignore[import-untyped]
from google.protobuf import empty_pb2

from local.standins.faults import AnswerLost, FaultError, Faults
from local.standins.rpc import Method, Refused, RpcServer
from local.standins.web import is_loopback, post

ACCEPTED = frozenset({102, 200, 201, 202, 204})
"""The statuses of a push endpoint that acknowledge the message."""

_PUBLISHER = "/google.pubsub.v1.Publisher/"
_SUBSCRIBER = "/google.pubsub.v1.Subscriber/"
_POLICY = "/google.iam.v1.IAMPolicy/"
_NAME = r"projects/[^/]+/{}/[A-Za-z][A-Za-z0-9._~+%-]{{2,254}}"
_NAMES = {kind: re.compile(_NAME.format(kind)) for kind in ("topics", "subscriptions")}
_PULL_WAIT = 0.9
_CODE = grpc.StatusCode


@dataclass
class _Delivery:
    """The delivery of one message to one subscription. ``attempt`` is 1 for the first push or pull."""

    message: Any
    attempt: int = 0


@dataclass
class _Subscription:
    config: Any
    """The Subscription as its plain message."""
    deleted: bool = False
    ready: deque[_Delivery] = field(default_factory=deque)
    leased: dict[str, tuple[float, _Delivery]] = field(default_factory=dict)
    """Pulled messages by ack id, each with the end of its lease in monotonic seconds."""

    @property
    def is_push(self) -> bool:
        return bool(self.config.push_config.push_endpoint)

    def backoff(self, attempt: int) -> float:
        """Return the seconds to wait after a failed attempt."""
        policy = self.config.retry_policy
        if not self.config.HasField("retry_policy"):
            least, most = 0.1, 60.0
        else:
            least = _seconds(policy.minimum_backoff) if policy.HasField("minimum_backoff") else 10.0
            most = _seconds(policy.maximum_backoff) if policy.HasField("maximum_backoff") else 600.0
        return min(most, least * 2.0 ** min(attempt - 1, 30))


class PubSubServer(RpcServer):
    """A local Pub/Sub. ``address`` is the value of PUBSUB_EMULATOR_HOST.

    ``clock`` returns Unix seconds for publish times. ``pace`` is the length of one second of a subscription's settings (ack
    deadline, backoff). ``calls`` and faults also know Push: a push that fails or whose answer is lost is delivered again.
    ``denied`` are permissions on topics that TestIamPermissions does not grant; they are not enforced.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.time, faults: Faults | None = None, pace: float = 1.0, port: int = 0
    ) -> None:
        self.denied: set[str] = set()
        self._clock = clock
        self._pace = pace
        self._changed = threading.Condition(threading.RLock())
        self._topics: dict[str, list[_Subscription]] = {}
        self._subscriptions: dict[str, _Subscription] = {}
        self._numbers = itertools.count(1)
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="pubsub", daemon=True)
        super().__init__(self._table(), faults=faults, port=port)

    def start(self) -> None:
        """Start to answer and to deliver."""
        self._thread.start()
        super().start()

    def stop(self) -> None:
        """Stop, and drop what was not delivered."""
        super().stop()
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _table(self) -> dict[str, Method]:
        return {
            f"{_PUBLISHER}CreateTopic": (types.Topic, self._create_topic),
            f"{_PUBLISHER}GetTopic": (types.GetTopicRequest, self._get_topic),
            f"{_PUBLISHER}DeleteTopic": (types.DeleteTopicRequest, self._delete_topic),
            f"{_PUBLISHER}Publish": (types.PublishRequest, self._publish),
            f"{_POLICY}TestIamPermissions": (iam_policy_pb2.TestIamPermissionsRequest, self._test_iam_permissions),
            f"{_SUBSCRIBER}CreateSubscription": (types.Subscription, self._create_subscription),
            f"{_SUBSCRIBER}GetSubscription": (types.GetSubscriptionRequest, self._get_subscription),
            f"{_SUBSCRIBER}DeleteSubscription": (types.DeleteSubscriptionRequest, self._delete_subscription),
            f"{_SUBSCRIBER}Pull": (types.PullRequest, self._pull),
            f"{_SUBSCRIBER}Acknowledge": (types.AcknowledgeRequest, self._acknowledge),
            f"{_SUBSCRIBER}ModifyAckDeadline": (types.ModifyAckDeadlineRequest, self._modify_ack_deadline),
        }

    # Topics

    def _create_topic(self, request: Any) -> Any:
        _legal("topics", request.name)
        with self._changed:
            if request.name in self._topics:
                raise Refused(_CODE.ALREADY_EXISTS, "Topic already exists")
            self._topics[request.name] = []
        return request

    def _get_topic(self, request: Any) -> Any:
        self._topic(request.topic)
        return types.Topic(name=request.topic)

    def _delete_topic(self, request: Any) -> Any:
        with self._changed:
            for subscription in self._topic(request.topic):
                subscription.config.topic = "_deleted-topic_"
            del self._topics[request.topic]
        return empty_pb2.Empty()

    def _publish(self, request: Any) -> Any:
        if not request.messages:
            raise Refused(_CODE.INVALID_ARGUMENT, "The value for messages is too small. You passed 0 in the request.")
        for message in request.messages:
            if not message.data and not message.attributes:
                raise Refused(_CODE.INVALID_ARGUMENT, "Message must have data or attributes.")
        with self._changed:
            self._topic(request.topic)
            ids = [self._send(request.topic, message.data, dict(message.attributes)) for message in request.messages]
        return types.PublishResponse(message_ids=ids)

    def _send(self, topic: str, data: bytes, attributes: dict[str, str]) -> str:
        now = datetime.fromtimestamp(self._clock(), UTC)
        message_id = str(next(self._numbers))
        message = types.PubsubMessage(data=data, attributes=attributes, message_id=message_id, publish_time=now)
        for subscription in self._topics[topic]:
            self._deliver(subscription, _Delivery(message))
        return message_id

    def _test_iam_permissions(self, request: Any) -> Any:
        """Return the caller's permissions. A topic that does not exist has none, and is not an error."""
        granted = (
            [one for one in request.permissions if one not in self.denied] if request.resource in self._topics else []
        )
        return iam_policy_pb2.TestIamPermissionsResponse(permissions=granted)

    def _topic(self, name: str) -> list[_Subscription]:
        _legal("topics", name)
        if name not in self._topics:
            raise Refused(_CODE.NOT_FOUND, "Topic not found")
        return self._topics[name]

    # Subscriptions

    def _create_subscription(self, request: Any) -> Any:
        config = types.Subscription.pb(request)
        _legal("subscriptions", config.name)
        config.ack_deadline_seconds = config.ack_deadline_seconds or 10
        _check(config)
        dead_letters = config.dead_letter_policy.dead_letter_topic
        with self._changed:
            if config.name in self._subscriptions:
                raise Refused(_CODE.ALREADY_EXISTS, "Subscription already exists")
            if config.topic not in self._topics:
                raise Refused(_CODE.NOT_FOUND, "Subscription topic does not exist")
            if dead_letters and dead_letters not in self._topics:
                raise Refused(_CODE.NOT_FOUND, "Dead letter topic not found")
            subscription = self._subscriptions[config.name] = _Subscription(config)
            self._topics[config.topic].append(subscription)
        return request

    def _get_subscription(self, request: Any) -> Any:
        return types.Subscription.wrap(self._subscription(request.subscription).config)

    def _delete_subscription(self, request: Any) -> Any:
        with self._changed:
            subscription = self._subscription(request.subscription)
            subscription.deleted = True
            del self._subscriptions[request.subscription]
            others = self._topics.get(subscription.config.topic)
            if others is not None:
                others.remove(subscription)
        return empty_pb2.Empty()

    def _subscription(self, name: str) -> _Subscription:
        _legal("subscriptions", name)
        with self._changed:
            if name not in self._subscriptions:
                raise Refused(_CODE.NOT_FOUND, "Subscription does not exist")
            return self._subscriptions[name]

    # Delivery

    def _deliver(self, subscription: _Subscription, delivery: _Delivery) -> None:
        with self._changed:
            if subscription.deleted or self._stopped:
                return
            if subscription.is_push:
                delivery.attempt += 1
                threading.Thread(target=self._push, args=(subscription, delivery), name="push", daemon=True).start()
            else:
                subscription.ready.append(delivery)
                self._changed.notify_all()

    def _push(self, subscription: _Subscription, delivery: _Delivery) -> None:
        self.count("Push")
        config = subscription.config
        body = json.dumps(_push_body(config, delivery)).encode()
        try:
            self.faults.before("Push")
            status, _ = post(
                config.push_config.push_endpoint,
                body,
                {"Content-Type": "application/json", "User-Agent": "CloudPubSub-Google"},
                config.ack_deadline_seconds * self._pace,
            )
            self.faults.after("Push")
        except (OSError, FaultError, AnswerLost):
            status = 0
        if status not in ACCEPTED:
            self._failed(subscription, delivery)

    def _failed(self, subscription: _Subscription, delivery: _Delivery) -> None:
        """Publish a message to the dead letter topic, or deliver it again after the backoff."""
        policy = subscription.config.dead_letter_policy
        with self._changed:
            if policy.dead_letter_topic in self._topics and delivery.attempt >= (policy.max_delivery_attempts or 5):
                self._send(policy.dead_letter_topic, delivery.message.data, _dead(subscription.config, delivery))
                return
            self._later(subscription.backoff(delivery.attempt), lambda: self._deliver(subscription, delivery))

    def _later(self, seconds: float, function: Callable[[], None]) -> None:
        with self._changed:
            moment = time.monotonic() + seconds * self._pace
            heapq.heappush(self._due, (moment, next(self._numbers), function))
            self._changed.notify_all()

    def _run(self) -> None:
        """Call what is due, until the server stops."""
        with self._changed:
            while not self._stopped:
                while self._due and self._due[0][0] <= time.monotonic():
                    heapq.heappop(self._due)[2]()
                self._changed.wait(max(0.0, self._due[0][0] - time.monotonic()) if self._due else None)

    # Pull

    def _pull(self, request: Any) -> Any:
        with self._changed:
            subscription = self._subscription(request.subscription)
            self._changed.wait_for(lambda: subscription.ready or self._stopped, _PULL_WAIT)
            pulled: list[Any] = []
            while subscription.ready and len(pulled) < request.max_messages:
                delivery = subscription.ready.popleft()
                delivery.attempt += 1
                pulled.append(self._lease(subscription, delivery))
            return types.PullResponse(received_messages=pulled)

    def _lease(self, subscription: _Subscription, delivery: _Delivery) -> Any:
        config = subscription.config
        ack_id = f"{config.name}:{next(self._numbers)}"
        subscription.leased[ack_id] = (0.0, delivery)
        self._extend(subscription, ack_id, config.ack_deadline_seconds)
        counted = bool(config.dead_letter_policy.dead_letter_topic)
        return types.ReceivedMessage(
            ack_id=ack_id, message=delivery.message, delivery_attempt=delivery.attempt if counted else 0
        )

    def _extend(self, subscription: _Subscription, ack_id: str, seconds: float) -> None:
        """Set a lease to end after ``seconds``."""
        end = time.monotonic() + seconds * self._pace
        subscription.leased[ack_id] = (end, subscription.leased[ack_id][1])

        def expire() -> None:
            if subscription.leased.get(ack_id, (None,))[0] == end:
                self._failed(subscription, subscription.leased.pop(ack_id)[1])

        self._later(seconds, expire)

    def _acknowledge(self, request: Any) -> Any:
        with self._changed:
            subscription = self._subscription(request.subscription)
            for ack_id in request.ack_ids:
                subscription.leased.pop(ack_id, None)
        return empty_pb2.Empty()

    def _modify_ack_deadline(self, request: Any) -> Any:
        with self._changed:
            subscription = self._subscription(request.subscription)
            for ack_id in request.ack_ids:
                if ack_id in subscription.leased:
                    self._extend(subscription, ack_id, request.ack_deadline_seconds)
        return empty_pb2.Empty()


def _legal(kind: str, name: str) -> None:
    if not _NAMES[kind].fullmatch(name):
        raise Refused(_CODE.INVALID_ARGUMENT, f"Invalid [{kind}] name: (name={name})")


def _check(config: Any) -> None:
    """Refuse a subscription that the real service refuses, or that this server does not support."""
    endpoint = config.push_config.push_endpoint
    if endpoint and not is_loopback(endpoint):
        raise Refused(_CODE.INVALID_ARGUMENT, "Unsupported push_endpoint: this local Pub/Sub pushes to loopback only")
    if not 10 <= config.ack_deadline_seconds <= 600:
        raise Refused(
            _CODE.INVALID_ARGUMENT,
            f"The value for ack_deadline_seconds is out of bounds. You passed {config.ack_deadline_seconds} in the "
            "request, but the value must be between 10 and 600.",
        )
    attempts = config.dead_letter_policy.max_delivery_attempts
    if attempts and not 5 <= attempts <= 100:
        raise Refused(
            _CODE.OUT_OF_RANGE,
            f"The value for max_delivery_attempts is out of bounds. You passed {attempts} in the request, but the value "
            "must be between 5 and 100.",
        )
    for name in ("minimum_backoff", "maximum_backoff"):
        seconds = _seconds(getattr(config.retry_policy, name))
        if not 0 <= seconds <= 600:
            raise Refused(
                _CODE.INVALID_ARGUMENT,
                f"The value for {name} is out of bounds. You passed {seconds:g}s in the request, but the value must be "
                "between 0s and 600s.",
            )
    for name in ("filter", "enable_message_ordering"):
        if getattr(config, name):
            raise Refused(_CODE.UNIMPLEMENTED, f"{name} is not supported by this local Pub/Sub")


def _seconds(duration: Any) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _push_body(config: Any, delivery: _Delivery) -> dict[str, Any]:
    message = delivery.message
    published = message.publish_time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    body: dict[str, Any] = {
        "message": {
            "data": base64.b64encode(message.data).decode(),
            "attributes": dict(message.attributes),
            "messageId": message.message_id,
            "message_id": message.message_id,
            "publishTime": published,
            "publish_time": published,
        },
        "subscription": config.name,
    }
    if config.dead_letter_policy.dead_letter_topic:
        body["deliveryAttempt"] = delivery.attempt
    return body


def _dead(config: Any, delivery: _Delivery) -> dict[str, str]:
    """Return the attributes of a dead letter."""
    _, project, _, subscription = config.name.split("/")
    return {
        **delivery.message.attributes,
        "CloudPubSubDeadLetterSourceDeliveryCount": str(delivery.attempt),
        "CloudPubSubDeadLetterSourceSubscription": subscription,
        "CloudPubSubDeadLetterSourceSubscriptionProject": project,
        "CloudPubSubDeadLetterSourceTopicPublishTime": delivery.message.publish_time.isoformat(),
    }
