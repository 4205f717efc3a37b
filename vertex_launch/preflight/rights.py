"""What a caller may do, asked of each service with its own testIamPermissions; called by the preflight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.cloud.storage import Client
from google.pubsub_v1 import PublisherClient

from vertex_launch.adapters import bucket, grpc_endpoint
from vertex_launch.errors import Unavailable
from vertex_launch.preflight.checks import BucketView, NotThere, Refuses
from vertex_launch.preflight.rest import Rest

_UNANSWERED = (exceptions.Forbidden, exceptions.Unauthorized, exceptions.BadRequest, exceptions.MethodNotImplemented)
"""A service refuses the question with these."""


class ProjectRights:
    """Rights on projects, from Resource Manager."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def granted(self, resource: str, permissions: Sequence[str]) -> frozenset[str]:
        """Give those of the permissions that the caller has in the project. Raises NotThere, Refuses, Unavailable."""
        return _tested(self._rest, f"/v3/projects/{quote(resource, safe='')}", permissions)


class AccountRights:
    """Rights on service accounts, from IAM."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def granted(self, resource: str, permissions: Sequence[str]) -> frozenset[str]:
        """Give those of the permissions that the caller has on the account of that email address.

        Raises NotThere, Refuses, Unavailable.
        """
        path = f"/v1/projects/{quote(_project(resource), safe='')}/serviceAccounts/{quote(resource, safe='@')}"
        return _tested(self._rest, path, permissions)


def _tested(rest: Rest, path: str, permissions: Sequence[str]) -> frozenset[str]:
    answer = rest.ask("POST", f"{path}:testIamPermissions", {"permissions": list(permissions)})
    return frozenset(answer.get("permissions") or ())


def _project(account: str) -> str:
    """Give the project of a service account; ``-``, for which a missing account is answered 403, where it tells none."""
    if found := re.fullmatch(r"[^@]+@([^.]+)\.iam\.gserviceaccount\.com", account):
        return found[1]
    if found := re.fullmatch(r"[^@]+@([^.]+)\.(.+)\.iam\.gserviceaccount\.com", account):
        return f"{found[2]}:{found[1]}"  # a project that belongs to a domain
    if found := re.fullmatch(r"(\d+)-compute@developer\.gserviceaccount\.com", account):
        return found[1]
    if found := re.fullmatch(r"([^@]+)@appspot\.gserviceaccount\.com", account):
        return found[1]
    return "-"


class BucketRights:
    """Rights on buckets, and what a bucket does with its objects."""

    def __init__(self, client: Client, *, timeout: float, backoff: Retry = bucket.BACKOFF) -> None:
        self._client = client
        self._again = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}

    def granted(self, resource: str, permissions: Sequence[str]) -> frozenset[str]:
        """Give those of the permissions that the caller has on the bucket. Raises NotThere, Refuses, Unavailable."""
        try:
            return frozenset(self._client.bucket(resource).test_iam_permissions(list(permissions), **self._again))
        except exceptions.NotFound as error:
            raise NotThere(_said(error)) from error
        except _UNANSWERED as error:
            raise Refuses(bucket.SERVICE, _said(error)) from error
        except bucket.TROUBLE as error:
            raise Unavailable(bucket.SERVICE, f"cannot ask about gs://{resource}: {bucket.said(error)}") from error

    def view(self, resource: str) -> BucketView | None:
        """Tell what the bucket does with its objects; None where the caller may not see that. Raises NotThere, Unavailable."""
        found = self._client.bucket(resource)
        try:
            found.reload(**self._again)
        except exceptions.NotFound as error:
            raise NotThere(_said(error)) from error
        except _UNANSWERED:
            return None
        except bucket.TROUBLE as error:
            raise Unavailable(bucket.SERVICE, f"cannot look at gs://{resource}: {bucket.said(error)}") from error
        return BucketView(
            versioning=bool(found.versioning_enabled),
            soft_delete=float(found.soft_delete_policy.retention_duration_seconds or 0),
            lifecycle=any(True for _ in found.lifecycle_rules),
            retention=float(found.retention_period or 0),
        )


def _said(error: exceptions.GoogleAPICallError) -> str:
    """Give Cloud Storage's own words without the address of the request, in which all permissions are."""
    words = [one["message"] for one in error.errors if isinstance(one, dict) and "message" in one]
    return "; ".join(words) or str(error.message)


class TopicRights:
    """Rights on Pub/Sub topics, at PUBSUB_EMULATOR_HOST where that is set."""

    SERVICE = "Pub/Sub"

    def __init__(self, client: PublisherClient, *, timeout: float, backoff: Retry = grpc_endpoint.BACKOFF) -> None:
        self._client = client
        self._again = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}

    def granted(self, resource: str, permissions: Sequence[str]) -> frozenset[str]:
        """Give those of the permissions that the caller has on the topic. Raises NotThere, Refuses, Unavailable."""
        request = {"resource": resource, "permissions": list(permissions)}
        try:
            granted = frozenset(self._client.test_iam_permissions(request, **self._again).permissions)
            if not granted:
                self._look_for(resource)  # a topic that does not exist may be answered like one on which all is denied
            return granted
        except exceptions.NotFound as error:
            raise NotThere(error.message) from error
        except _UNANSWERED as error:
            self._look_for(resource)
            raise Refuses(self.SERVICE, error.message) from error
        except grpc_endpoint.TROUBLE as error:
            raise Unavailable(self.SERVICE, f"cannot ask about {resource}: {error}") from error

    def _look_for(self, topic: str) -> None:
        """Raise NotThere when the topic surely does not exist."""
        try:
            self._client.get_topic(topic=topic, **self._again)
        except exceptions.NotFound as error:
            raise NotThere(error.message) from error
        except grpc_endpoint.TROUBLE:
            return  # who may publish need not be allowed to look
