"""Google credentials for the preflight, and whose they are: a person's, a service account's, or impersonated."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import google.auth
from google.auth import impersonated_credentials
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import Request

from vertex_launch.errors import LaunchError, Unavailable
from vertex_launch.preflight.rest import Endpoints, Rest

SERVICE = "Google credentials"
SCOPES = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email")

LOG_IN = "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"


@dataclass(frozen=True)
class Identity:
    """Credentials that work, and the account that they are for; empty text where nobody tells."""

    credentials: Credentials
    account: str


def find(impersonate: str | None, endpoints: Endpoints, *, timeout: float) -> Identity:
    """Get the application default credentials, or with them those of another service account. Raises Unavailable."""
    request = functools.partial(Request(), timeout=timeout)
    try:
        own, _ = google.auth.default(scopes=SCOPES, request=request)
        own.refresh(request)
    except GoogleAuthError as error:
        raise Unavailable(SERVICE, f"{_said(error)}; {LOG_IN}") from error
    if impersonate is None:
        return Identity(own, _account(own, endpoints, timeout))
    return Identity(_impersonated(own, impersonate, endpoints, request, timeout), impersonate)


def _impersonated(
    own: Credentials, target: str, endpoints: Endpoints, request: Callable[..., Any], timeout: float
) -> Credentials:
    """Get the credentials of the account ``target``. Raises Unavailable."""
    address = f"{endpoints.iamcredentials}/v1/projects/-/serviceAccounts/{target}:generateAccessToken"
    theirs = impersonated_credentials.Credentials(
        source_credentials=own, target_principal=target, target_scopes=SCOPES, iam_endpoint_override=address
    )
    try:
        theirs.refresh(request)
    except GoogleAuthError as error:
        who = _account(own, endpoints, timeout) or "the account of the application default credentials"
        raise Unavailable(
            SERVICE,
            f"{who} cannot impersonate {target}: {_said(error)}; correct --as, or grant {who} "
            f"roles/iam.serviceAccountTokenCreator on {target}",
        ) from error
    return theirs


def _account(credentials: Credentials, endpoints: Endpoints, timeout: float) -> str:
    """Tell whose credentials they are, as far as somebody knows."""
    for name in ("service_account_email", "account"):
        if account := getattr(credentials, name, None):
            return str(account)
    try:
        told = Rest("OpenID Connect", endpoints.openidconnect, credentials, timeout=timeout).ask("GET", "/v1/userinfo")
    except LaunchError:  # credentials without the scope for it are good for all the rest
        return ""
    return str(told.get("email") or "")


def _said(error: GoogleAuthError) -> str:
    """Give Google's own words, those of the JSON that came with the error where there is one."""
    words = str(error.args[0] if error.args else error)
    for detail in error.args[1:]:
        try:
            words += f" ({json.loads(detail)['error']['message']})"
        except (TypeError, ValueError, LookupError):
            continue  # no JSON, or none in Google's form
    return words.rstrip(".")
