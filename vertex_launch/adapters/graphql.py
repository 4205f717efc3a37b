"""Requests to a GraphQL server: several fields in one, an answer for each, and retries of what may be repeated.

Called by ``wandb_queue``, which knows what to ask. Errors keep the server's own words, and never hold the key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import requests
from google.api_core.exceptions import RetryError
from google.api_core.retry import Retry, if_exception_type
from urllib3.exceptions import NewConnectionError

from vertex_launch.errors import KeyRefused, Unavailable
from vertex_launch.log import Redactor
from vertex_launch.settings.config import Timeouts


class Key(Protocol):
    """Where the API key comes from."""

    def get(self) -> str:
        """Give the key. Raises Unavailable."""

    def renew(self, refused: str) -> str:
        """Give the key, read again since ``refused`` was refused. Raises Unavailable."""


class Again(Exception):
    """The request may be sent again: it surely did nothing, or doing it twice is harmless."""


class Refused(Unavailable):
    """The server refused the whole request before doing anything of it."""


BACKOFF = Retry(predicate=if_exception_type(Again), initial=0.2, multiplier=2.0, maximum=2.0)
"""Pauses between two attempts, at random between nothing and twice as long each time."""

TOO_MUCH = (
    requests.codes.bad_request,
    requests.codes.request_entity_too_large,
    requests.codes.unprocessable_entity,
)
"""Statuses by which a proxy, too, may refuse a request for its size or its form."""

REMEDIES = {
    requests.codes.forbidden: "check what the API key has access to, WANDB_BASE_URL and what stands in between",
    requests.codes.not_found: "check WANDB_BASE_URL, to which /graphql is added: it may have a path too much",
}
"""What to do about a status that concerns a whole request."""


@dataclass(frozen=True)
class Field:
    """One field of a request: its text, in which ``$name`` stands for a variable, and (type, value) of each variable."""

    text: str
    variables: Mapping[str, tuple[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The answer to one field: a value, or W&B's own words on why not; ``lost`` when nothing is known."""

    value: Any = None
    error: str = ""
    lost: bool = False


class GraphQL:
    """One server, asked with an API key; ``service`` names it for people."""

    def __init__(
        self, service: str, base_url: str, key: Key, timeouts: Timeouts, *, agent: str, backoff: Retry = BACKOFF
    ) -> None:
        self._service = service
        self._url = f"{base_url.rstrip('/')}/graphql"
        self._key = key
        self._timeout = (timeouts.connect, timeouts.read)
        self._session = requests.Session()
        self._session.headers["User-Agent"] = agent
        self._backoff = backoff

    def ask(
        self, kind: str, fields: Sequence[Field], *, repeatable: bool = True, within: float = math.inf
    ) -> list[Result]:
        """Send one request and give the answers in the order of its fields. Raises Refused, Unavailable.

        It is sent again only within so many seconds from now.
        """
        document, variables = _document(kind, fields)
        body = self._send({"query": document, "variables": variables}, repeatable, within)
        errors: dict[str, list[str]] = {}
        for error in dicts(body.get("errors")):
            path = error.get("path")
            field_alias = str(path[0]) if isinstance(path, list) and path else ""
            errors.setdefault(field_alias, []).append(str(error.get("message", error)))
        data = body.get("data")
        if not isinstance(data, dict):
            if not errors.keys() - {""}:
                raise Refused(self._service, "; ".join(errors.get("", ["an answer without data"])))
            data = {}
        return [_result(data, errors, f"f{i}") for i in range(len(fields))]

    def _send(self, body: Mapping[str, Any], repeatable: bool, within: float) -> dict[str, Any]:
        """Post a request, with retries of what may be repeated; a refused key is read again once."""
        key, retry = self._key.get(), self._backoff.with_timeout(min(self._timeout[1], within))
        try:
            try:
                return retry(self._post)(body, key, repeatable)  # type: ignore[no-any-return]
            except KeyRefused:
                return retry(self._post)(body, self._key.renew(key), repeatable)  # type: ignore[no-any-return]
        except RetryError as error:
            raise Unavailable(self._service, str(error.cause)) from error

    def _post(self, body: Mapping[str, Any], key: str, repeatable: bool) -> dict[str, Any]:
        try:
            response = self._session.post(
                self._url, json=body, auth=("api", key), timeout=self._timeout, allow_redirects=False
            )
        except requests.RequestException as error:
            cause = error.args[0] if error.args else error
            cause = getattr(cause, "reason", None) or cause
            trouble = f"no answer from {self._url}: {cause}"
            if repeatable or isinstance(error, requests.ConnectTimeout) or isinstance(cause, NewConnectionError):
                raise Again(trouble) from error
            raise Unavailable(self._service, trouble) from error
        return _parsed(self._service, response, key, repeatable)


def _parsed(service: str, response: requests.Response, key: str, repeatable: bool) -> dict[str, Any]:
    """Give a response's JSON object. Raises KeyRefused, Again, Refused, Unavailable."""
    status, body = response.status_code, _json(response)
    answered = "data" in body or "errors" in body
    if answered and status == requests.codes.ok:
        return body
    said = f"HTTP {status} from {response.url}: {_said(response, key)}"
    if status == requests.codes.unauthorized:
        remedy = "put a valid key of this server into the secret, as a new version"
        raise KeyRefused(service, f"the API key is refused, {said}; {remedy}")
    if status in (requests.codes.too_many_requests, requests.codes.service_unavailable):
        raise Again(said)
    if response.is_redirect:
        target = response.headers["Location"]
        raise Unavailable(service, f"{response.url} redirects to {target}; correct WANDB_BASE_URL or base_url")
    if status >= requests.codes.server_error and not _tells_something(body):
        if repeatable:
            raise Again(said)
        raise Unavailable(service, said)
    if not answered:
        refusal = Refused if status in TOO_MUCH else Unavailable
        remedy = REMEDIES.get(status, "check WANDB_BASE_URL and what stands in between")
        raise refusal(service, f"this is no GraphQL answer, {said}; {remedy}")
    if not _is_about_fields(body):
        remedy = f"; {REMEDIES[status]}" if status in REMEDIES else ""
        raise Refused(service, f"the request is refused, {said}{remedy}")
    return body


def _json(response: requests.Response) -> dict[str, Any]:
    """Give the JSON object of a response, an empty one where it has none."""
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _tells_something(body: Mapping[str, Any]) -> bool:
    """Say whether an answer has a value for at least one field: a failed neighbour may give all of it a bad status."""
    data = body.get("data")
    return isinstance(data, dict) and any(value is not None for value in data.values())


def _is_about_fields(body: Mapping[str, Any]) -> bool:
    """Say whether an answer has a value or an error of at least one field: else it is about the request as a whole."""
    return _tells_something(body) or any(error.get("path") for error in dicts(body.get("errors")))


def _said(response: requests.Response, key: str) -> str:
    """Give a server's own words, briefly, without markup and without the key, should it repeat that."""
    messages = [str(error.get("message", "")) for error in dicts(_json(response).get("errors"))]
    redact = Redactor()
    redact.add(key)
    text = redact("; ".join(messages) or re.sub(r"<[^>]*>", " ", response.text))
    return " ".join(text.split())[:300] or "(nothing more)"


def _document(kind: str, fields: Sequence[Field]) -> tuple[str, dict[str, Any]]:
    """Put fields into one document, each under an alias ``f<n>`` and with variables of its own."""
    declared: list[str] = []
    values: dict[str, Any] = {}
    selected: list[str] = []
    for i, one in enumerate(fields):
        names = {name: f"{name}_{i}" for name in one.variables}
        declared += [f"${names[name]}: {type_}" for name, (type_, _) in one.variables.items()]
        values |= {names[name]: value for name, (_, value) in one.variables.items()}
        selected.append(f"f{i}: " + re.sub(r"\$(\w+)", rf"$\1_{i}", one.text))
    head = f"{kind} VertexLaunch" + (f"({', '.join(declared)})" if declared else "")
    return f"{head} {{ {' '.join(selected)} }}", values


def _result(data: Mapping[str, Any], errors: Mapping[str, Sequence[str]], alias: str) -> Result:
    """Give one field's answer; a null with an error beside it is not absence, and a missing field is no answer.

    An error that names no field may be about any that is null or has a null in it.
    """
    if alias not in data and alias not in errors:
        return Result(error="the answer leaves this operation out", lost=True)
    value = data.get(alias)
    lacking = None in (value.values() if isinstance(value, dict) else [value])
    told = errors.get(alias) or (errors.get("", ()) if lacking else ())
    return Result(value, "; ".join(told))


def dicts(value: Any) -> list[dict[str, Any]]:
    """Give the JSON objects of a list, none where it is no list."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
