"""Tests the caller's permissions, asking each service with its own testIamPermissions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

from google.api_core import exceptions

from vertex_launch.adapters import google_api, record_storage
from vertex_launch.codes import Code
from vertex_launch.errors import LaunchError, Unavailable

T = TypeVar("T")

_UNANSWERED = (exceptions.Forbidden, exceptions.Unauthorized, exceptions.BadRequest, exceptions.MethodNotImplemented)
"""The errors with which a service refuses the question."""


class NotThere(LaunchError):
    """The resource does not exist; the message holds the service's own words."""


class Refuses(Unavailable):
    """The service does not let this caller ask, so whether the permission is granted is unknown."""


class BucketView(NamedTuple):
    """What a bucket does with its objects; ``soft_delete`` and ``retention`` are seconds, 0 for off."""

    versioning: bool
    soft_delete: float
    lifecycle: bool
    retention: float


class Permissions:
    """Permissions on the resources of one of Google's services; ``client`` tests them with ``test_iam_permissions``."""

    BACKOFF = google_api.BACKOFF

    def __init__(self, service: str, client: Any, *, timeout: float) -> None:
        self._service = service
        self._client = client
        self._again = {"timeout": timeout, "retry": self.BACKOFF.with_timeout(timeout)}

    def granted(self, resource: str, permissions: Sequence[str]) -> frozenset[str]:
        """Return those of the permissions that the caller has. Raises NotThere, Refuses, Unavailable."""
        granted = self._ask(resource, lambda: frozenset(self._test(resource, list(permissions))))
        if not granted:
            self._look_for(resource)
        return granted

    def members(self, resource: str, roles: Sequence[str]) -> frozenset[str]:
        """Return who has one of the roles by the resource's own policy. Raises NotThere, Refuses, Unavailable."""
        request = {"resource": self._name(resource)}
        policy = self._ask(resource, lambda: self._client.get_iam_policy(request=request, **self._again))
        return frozenset(member for binding in policy.bindings if binding.role in roles for member in binding.members)

    def _ask(self, resource: str, ask: Callable[[], T]) -> T:
        try:
            return ask()
        except exceptions.NotFound as error:
            raise NotThere(_said(error)) from error
        except _UNANSWERED as error:
            self._look_for(resource)
            raise Refuses(self._service, _said(error), code=Code.CHECK_UNVERIFIED) from error
        except google_api.TROUBLE as error:
            raise self._no_answer(resource, error) from error

    def _test(self, resource: str, permissions: list[str]) -> Iterable[str]:
        request = {"resource": self._name(resource), "permissions": permissions}
        granted: Iterable[str] = self._client.test_iam_permissions(request=request, **self._again).permissions
        return granted

    def _name(self, resource: str) -> str:
        return resource

    def _look_for(self, resource: str) -> None:
        """Raise NotThere if the resource certainly does not exist."""

    def _no_answer(self, resource: str, error: Exception) -> Unavailable:
        reason = f"cannot test the permissions on {self._name(resource)}: {google_api.words(error)}"
        return Unavailable(self._service, reason, code=Code.CHECK_CONNECTION)


class ProjectPermissions(Permissions):
    """Permissions on projects, from Resource Manager."""

    def _name(self, resource: str) -> str:
        return f"projects/{resource}"


class AccountPermissions(Permissions):
    """Permissions on service accounts, named by their email addresses, from IAM."""

    def _name(self, resource: str) -> str:
        return f"projects/{project_of(resource)}/serviceAccounts/{resource}"


class TopicPermissions(Permissions):
    """Permissions on Pub/Sub topics."""

    def _look_for(self, resource: str) -> None:
        """Raise NotThere if there is no such topic: Pub/Sub may answer that question as if everything were denied."""
        try:
            self._client.get_topic(topic=resource, **self._again)
        except exceptions.NotFound as error:
            raise NotThere(error.message) from error
        except google_api.TROUBLE:
            return  # a publisher need not have the permission to get the topic


class BucketPermissions(Permissions):
    """Permissions on buckets, and what a bucket does with its objects."""

    BACKOFF = record_storage.BACKOFF

    def _name(self, resource: str) -> str:
        return f"gs://{resource}"

    def _test(self, resource: str, permissions: list[str]) -> Iterable[str]:
        granted: Iterable[str] = self._client.bucket(resource).test_iam_permissions(permissions, **self._again)
        return granted

    def view(self, resource: str) -> BucketView | None:
        """Return what the bucket does with its objects, or None if the caller may not see that.

        Raises NotThere, Unavailable.
        """
        found = self._client.bucket(resource)
        try:
            found.reload(**self._again)
        except exceptions.NotFound as error:
            raise NotThere(_said(error)) from error
        except _UNANSWERED:
            return None
        except google_api.TROUBLE as error:
            raise self._no_answer(resource, error) from error
        return BucketView(
            versioning=bool(found.versioning_enabled),
            soft_delete=float(found.soft_delete_policy.retention_duration_seconds or 0),
            lifecycle=any(True for _ in found.lifecycle_rules),
            retention=float(found.retention_period or 0),
        )


def project_of(account: str) -> str:
    """Return the project of a service account, or ``-`` if the address does not reveal it.

    With ``-``, IAM answers 403 for an account that does not exist.
    """
    if found := re.fullmatch(r"[^@]+@([^.]+)\.(.+)\.iam\.gserviceaccount\.com", account):
        return f"{found[2]}:{found[1]}"  # a project that belongs to a domain
    own = r"[^@]+@([^.]+)\.iam|(\d+)-compute@developer|([^@]+)@appspot"
    found = re.fullmatch(rf"(?:{own})\.gserviceaccount\.com", account)
    return found[found.lastindex or 0] if found else "-"


def _said(error: exceptions.GoogleAPICallError) -> str:
    """Return the service's own words, without the URL that Cloud Storage adds, which holds all permissions."""
    words = [one["message"] for one in error.errors if isinstance(one, dict) and "message" in one]
    return "; ".join(words) or str(error.message)
