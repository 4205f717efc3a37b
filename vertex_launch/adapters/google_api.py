"""Google's services: how clients are created, when calls are repeated, and what their errors mean to a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeGuard, TypeVar
from urllib.parse import urlsplit

import grpc
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError
from requests import Response

from vertex_launch.errors import Message, Unavailable

C = TypeVar("C")

TROUBLE = (exceptions.GoogleAPIError, GoogleAuthError, OSError)
"""Everything that a call can raise; the errors of ``requests`` are OSErrors."""

BACKOFF = Retry(
    predicate=if_exception_type(
        exceptions.TooManyRequests, exceptions.InternalServerError, exceptions.BadGateway, exceptions.ServiceUnavailable
    ),
    initial=0.2,
    multiplier=2.0,
    maximum=2.0,
)
"""Pauses between attempts at a call that is safe to repeat: a function that was frozen finds its connections broken."""


def is_plaintext(endpoint: str | None) -> TypeGuard[str]:
    """Return whether the endpoint means plaintext gRPC without credentials: it begins with ``http://``."""
    return endpoint is not None and endpoint.startswith("http://")


def client(kind: type[C], endpoint: str | None, credentials: Credentials | None = None) -> C:
    """Create a client of this class for ``endpoint``; None means Google's own, or the default credentials."""
    create: Any = kind
    if not is_plaintext(endpoint):
        options = {"api_endpoint": endpoint.removeprefix("https://")} if endpoint else None
        return create(credentials=credentials, client_options=options)  # type: ignore[no-any-return]
    # Google's clients set the same limits: an answer may have any size.
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    channel = grpc.insecure_channel(urlsplit(endpoint).netloc, options=unlimited)
    return create(transport=create.get_transport_class("grpc")(channel=channel))  # type: ignore[no-any-return]


@contextmanager
def reported(service: str, other: Message, known: Mapping[type[Exception], Message]) -> Iterator[None]:
    """Raise Unavailable for an error of the call inside: what ``known`` has for its class, else ``other``."""
    try:
        yield
    except TROUBLE as error:
        for kind, message in known.items():
            if isinstance(error, kind):
                raise Unavailable(service, f"{message.text} ({words(error)})", code=message.code) from error
        raise Unavailable(service, f"{other.text}: {words(error)}", code=other.code) from error


def words(error: Exception) -> str:
    """Return the service's own words, those of the last attempt if there were several."""
    last = getattr(error, "cause", None) or error
    response = getattr(last, "response", None)
    # Those of an HTTP response are without the client's own technical remarks.
    last = exceptions.from_http_response(response) if isinstance(response, Response) else last
    return " ".join((getattr(last, "message", "") or str(last) or type(last).__name__).split())
