"""How Google's gRPC clients are created, and when their calls are repeated: the same for all services."""

from __future__ import annotations

from typing import Any, TypeGuard, TypeVar
from urllib.parse import urlsplit

import grpc
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.auth.credentials import Credentials
from google.auth.exceptions import GoogleAuthError

C = TypeVar("C")

TROUBLE = (exceptions.GoogleAPIError, GoogleAuthError, OSError)
"""Everything that a call can raise."""

BACKOFF = Retry(
    predicate=if_exception_type(
        exceptions.TooManyRequests,
        exceptions.InternalServerError,
        exceptions.BadGateway,
        exceptions.ServiceUnavailable,
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
