"""Google credentials for the preflight, and whose they are: a person's, a service account's, or impersonated."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

import google.auth
import requests
from google.auth import external_account_authorized_user, impersonated_credentials
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import credentials as of_person

from vertex_launch.adapters.google_api import is_plaintext
from vertex_launch.codes import Code
from vertex_launch.errors import ConfigError, Problem, Unavailable

SERVICE = "Google credentials"
SCOPES = ("https://www.googleapis.com/auth/cloud-platform", "https://www.googleapis.com/auth/userinfo.email")

LOG_IN = "Run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file"

_PERSONS = (of_person.Credentials, external_account_authorized_user.Credentials)

_ADDRESS = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_LOOPBACK = re.compile(r"http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")


@dataclass(frozen=True)
class Endpoints:
    """The addresses of the APIs that only the preflight uses.

    The environment variable of a field is its name in capitals and ``_ENDPOINT``, as IAM_ENDPOINT. With ``http://`` the first
    two are used without credentials. The others handle credentials, so they may be plaintext on this machine only.
    """

    cloudresourcemanager: str = "https://cloudresourcemanager.googleapis.com"
    iam: str = "https://iam.googleapis.com"
    iamcredentials: str = "https://iamcredentials.googleapis.com"
    openidconnect: str = "https://openidconnect.googleapis.com"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Endpoints:
        """Read them from the environment; an empty variable counts as unset. Raises ConfigError."""
        variables = {one.name: f"{one.name.upper()}_ENDPOINT" for one in fields(cls)}
        given = {name: environ[variable].rstrip("/") for name, variable in variables.items() if environ.get(variable)}
        problems = []
        for name, address in given.items():
            if found := _wrong(name, address):
                place, remedy = f"environment variable {variables[name]}", f"Write {getattr(cls, name)}, or unset it"
                problems.append(Problem(place, found, remedy, Code.CHECK_ENDPOINT))
        if problems:
            raise ConfigError(problems)
        return cls(**given)


def _wrong(name: str, address: str) -> str:
    """Return what is wrong with an address; empty text if it can be used."""
    if not _ADDRESS.fullmatch(address):
        return f"{address!r} is not an http or https address without a path"
    if name in ("iamcredentials", "openidconnect") and is_plaintext(address) and not _LOOPBACK.fullmatch(address):
        return f"credentials would go to {address} in clear text"
    return ""


@dataclass(frozen=True)
class Identity:
    """Credentials that work, and the account that they belong to; empty text if that is unknown.

    ``lent_quota`` is the project whose quota a person's credentials use because they name none; else empty text.
    """

    credentials: Credentials
    account: str
    lent_quota: str = ""


def find(impersonate: str | None, endpoints: Endpoints, *, timeout: float, project: str = "") -> Identity:
    """Return the application default credentials, or use them to impersonate a service account. Raises Unavailable.

    Vertex AI and other services refuse a person's credentials without a quota project: ``project`` is used if they name none.
    """
    request = functools.partial(Request(), timeout=timeout)
    try:
        own, _ = google.auth.default(scopes=SCOPES, request=request)
        own.refresh(request)
    except GoogleAuthError as error:
        raise Unavailable(SERVICE, f"{_said(error)}. {LOG_IN}", code=Code.CHECK_CREDENTIALS) from error
    account, lent = _account(own, endpoints, timeout) if impersonate is None else "", ""
    if project and isinstance(own, _PERSONS) and not own.quota_project_id:
        own, lent = own.with_quota_project(project), project
    if impersonate is None:
        return Identity(own, account, lent)
    address = f"{endpoints.iamcredentials}/v1/projects/-/serviceAccounts/{impersonate}:generateAccessToken"
    theirs = impersonated_credentials.Credentials(
        source_credentials=own, target_principal=impersonate, target_scopes=SCOPES, iam_endpoint_override=address
    )
    try:
        theirs.refresh(request)
    except GoogleAuthError as error:
        who = _account(own, endpoints, timeout) or "the account of the application default credentials"
        raise Unavailable(
            SERVICE,
            f"{who} cannot impersonate {impersonate}: {_said(error)}. Correct --as, or grant {who} "
            f"roles/iam.serviceAccountTokenCreator on {impersonate}",
            code=Code.CHECK_CREDENTIALS,
        ) from error
    return Identity(theirs, impersonate, lent)


def _account(credentials: Credentials, endpoints: Endpoints, timeout: float) -> str:
    """Return the account that the credentials belong to; empty text if neither they nor OpenID Connect reveal it."""
    for name in ("service_account_email", "account"):
        if account := getattr(credentials, name, None):
            return str(account)
    try:
        session = AuthorizedSession(credentials)
        answer = session.get(f"{endpoints.openidconnect}/v1/userinfo", timeout=timeout, allow_redirects=False)
        return str(answer.json().get("email") or "")
    except (requests.RequestException, GoogleAuthError, ValueError, AttributeError):
        return ""  # the account is only shown; the credentials may still be good for everything else


def _said(error: GoogleAuthError) -> str:
    """Return Google's own words, those of the JSON that came with the error if there is one."""
    words = str(error.args[0] if error.args else error)
    for detail in error.args[1:]:
        try:
            words += f" ({json.loads(detail)['error']['message']})"
        except (TypeError, ValueError, LookupError):
            continue  # not JSON, or not in Google's form
    return words.rstrip(".")
