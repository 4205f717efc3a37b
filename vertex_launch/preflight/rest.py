"""Google's REST APIs that the preflight asks and no function does: where they are, and what their answers mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import requests
from google.api_core import exceptions
from google.api_core.retry import Retry
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession

from vertex_launch.adapters.grpc_endpoint import BACKOFF, is_plaintext
from vertex_launch.errors import ConfigError, Problem, Unavailable
from vertex_launch.preflight.checks import NotThere, Refuses

_ADDRESS = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_LOOPBACK = re.compile(r"http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?")


@dataclass(frozen=True)
class Endpoints:
    """Where the APIs are. The variable of a field is its name in capitals and ``_ENDPOINT``, as IAM_ENDPOINT.

    With ``http://`` the first two are asked without credentials; the others, which are about credentials, get them, so
    that they may be plaintext on this machine only.
    """

    cloudresourcemanager: str = "https://cloudresourcemanager.googleapis.com"
    iam: str = "https://iam.googleapis.com"
    iamcredentials: str = "https://iamcredentials.googleapis.com"
    openidconnect: str = "https://openidconnect.googleapis.com"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Endpoints:
        """Read them from the environment, where an empty variable counts as unset. Raises ConfigError."""
        variables = {one.name: f"{one.name.upper()}_ENDPOINT" for one in fields(cls)}
        given = {name: environ[variable].rstrip("/") for name, variable in variables.items() if environ.get(variable)}
        problems = [
            Problem(f"environment variable {variables[name]}", found, f"Write {getattr(cls, name)}, or unset it")
            for name, address in given.items()
            if (found := _wrong(name, address))
        ]
        if problems:
            raise ConfigError(problems)
        return cls(**given)


def _wrong(name: str, address: str) -> str:
    """Say what is wrong with an address; empty text for nothing."""
    if not _ADDRESS.fullmatch(address):
        return f"{address!r} is not an http or https address without a path"
    if name in ("iamcredentials", "openidconnect") and is_plaintext(address) and not _LOOPBACK.fullmatch(address):
        return f"credentials would go to {address} in clear text"
    return ""


class Rest:
    """One API, asked with credentials or with none; ``timeout`` bounds a question in seconds, with what is repeated."""

    def __init__(
        self,
        service: str,
        endpoint: str,
        credentials: Credentials | None,
        *,
        timeout: float,
        backoff: Retry = BACKOFF,
    ) -> None:
        self._service = service
        self._endpoint = endpoint
        self._session = requests.Session() if credentials is None else AuthorizedSession(credentials)
        self._timeout = timeout
        self._retry = backoff.with_timeout(timeout)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a request that may be repeated and give the JSON object that answers it.

        Raises NotThere, Refuses, Unavailable.
        """
        try:
            answer = self._retry(self._send)(method, f"{self._endpoint}{path}", body)
        except exceptions.NotFound as error:
            raise NotThere(error.message) from error
        except exceptions.ClientError as error:
            raise Refuses(self._service, error.message) from error
        except (exceptions.GoogleAPIError, GoogleAuthError, requests.RequestException) as error:
            raise Unavailable(self._service, str(getattr(error, "cause", None) or error)) from error
        if not isinstance(answer, dict):
            raise Unavailable(self._service, f"{self._endpoint}{path} answers with something else than a JSON object")
        return answer

    def _send(self, method: str, url: str, body: Mapping[str, Any] | None) -> Any:
        response = self._session.request(method, url, json=body, timeout=self._timeout, allow_redirects=False)
        if response.status_code != requests.codes.ok:
            said = f"HTTP {response.status_code} from {self._endpoint}: {_said(response)}"
            raise exceptions.from_http_status(response.status_code, said)
        return response.json()


def _said(response: requests.Response) -> str:
    """Give the message of Google's JSON form of an error, or how any other text begins, such as a proxy's."""
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return " ".join(re.sub(r"<[^>]*>", " ", response.text).split())[:300] or "(nothing more)"
