"""Tests the caller's permissions, asking each service with its own testIamPermissions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from google.api_core import exceptions
from google.api_core.retry import Retry
from google.cloud.storage import Client

from vertex_launch.adapters import bucket, grpc_endpoint
from vertex_launch.codes import Code
from vertex_launch.errors import Unavailable
from vertex_launch.preflight.services import BucketView, NotThere, Refuses

_UNANSWERED = (exceptions.Forbidden, exceptions.Unauthorized, exceptions.BadRequest, exceptions.MethodNotImplemented)
"""The errors with which a service refuses the question."""


class Permissions:
    """Permissions on the resources of one of Google's gRPC services; ``client`` has ``test_iam_permissions``."""

    def __init__(self, service: str, client: Any, *, timeout: float, backoff: Retry = grpc_endpoint.BACKOFF) -> None:
        self._service = service
        self._client = client
        self._again = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}

    def granted(self, resource: str, permissions: Sequence[str]) -> frozenset[str]:
        """Return those of the permissions that the caller has. Raises NotThere, Refuses, Unavailable."""
        request = {"resource": self._name(resource), "permissions": list(permissions)}
        try:
            granted = frozenset(self._client.test_iam_permissions(request=request, **self._again).permissions)
        except exceptions.NotFound as error:
            raise NotThere(error.message) from error
        except _UNANSWERED as error:
            self._look_for(resource)
            raise Refuses(self._service, error.message, code=Code.CHECK_UNVERIFIED) from error
        except grpc_endpoint.TROUBLE as error:
            raise _no_answer(self._service, resource, str(error)) from error
        if not granted:
            self._look_for(resource)
        return granted

    def _name(self, resource: str) -> str:
        return resource

    def _look_for(self, resource: str) -> None:
        """Raise NotThere if the resource certainly does not exist."""


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
        except grpc_endpoint.TROUBLE:
            return  # a publisher need not have the permission to get the topic


class BucketPermissions:
    """Permissions on buckets, and what a bucket does with its objects."""

    def __init__(self, client: Client, *, timeout: float, backoff: Retry = bucket.BACKOFF) -> None:
        self._client = client
        self._again = {"timeout": timeout, "retry": backoff.with_timeout(timeout)}

    def granted(self, resource: str, permissions: Sequence[str]) -> frozenset[str]:
        """Return those of the permissions that the caller has on the bucket. Raises NotThere, Refuses, Unavailable."""
        try:
            return frozenset(self._client.bucket(resource).test_iam_permissions(list(permissions), **self._again))
        except exceptions.NotFound as error:
            raise NotThere(_said(error)) from error
        except _UNANSWERED as error:
            raise Refuses(bucket.SERVICE, _said(error), code=Code.CHECK_UNVERIFIED) from error
        except bucket.TROUBLE as error:
            raise _no_answer(bucket.SERVICE, f"gs://{resource}", bucket.said(error)) from error

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
        except bucket.TROUBLE as error:
            raise _no_answer(bucket.SERVICE, f"gs://{resource}", bucket.said(error)) from error
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
    if found := re.fullmatch(r"[^@]+@([^.]+)\.iam\.gserviceaccount\.com", account):
        return found[1]
    if found := re.fullmatch(r"[^@]+@([^.]+)\.(.+)\.iam\.gserviceaccount\.com", account):
        return f"{found[2]}:{found[1]}"  # a project that belongs to a domain
    if found := re.fullmatch(r"(\d+)-compute@developer\.gserviceaccount\.com", account):
        return found[1]
    if found := re.fullmatch(r"([^@]+)@appspot\.gserviceaccount\.com", account):
        return found[1]
    return "-"


def _no_answer(service: str, resource: str, said: str) -> Unavailable:
    return Unavailable(service, f"cannot test the permissions on {resource}: {said}", code=Code.CHECK_CONNECTION)


def _said(error: exceptions.GoogleAPICallError) -> str:
    """Return Cloud Storage's own words, without the URL of the request, which holds all permissions."""
    words = [one["message"] for one in error.errors if isinstance(one, dict) and "message" in one]
    return "; ".join(words) or str(error.message)
