"""How Google's gRPC clients are pointed at another host and when they ask again, in one place for all of them."""

from __future__ import annotations

from typing import TypeGuard
from urllib.parse import urlsplit

import grpc
from google.api_core import exceptions
from google.api_core.retry import Retry, if_exception_type
from google.auth.exceptions import GoogleAuthError

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
"""Pauses between two attempts at what may be repeated: an instance that slept finds its connections broken."""


def is_plaintext(endpoint: str | None) -> TypeGuard[str]:
    """Tell whether the endpoint asks for plaintext gRPC without credentials: it begins with ``http://``."""
    return endpoint is not None and endpoint.startswith("http://")


def insecure_channel(endpoint: str) -> grpc.Channel:
    """Open a plaintext channel to ``http://host:port``, without a limit on an answer's size, as Google's clients do."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(urlsplit(endpoint).netloc, options=unlimited)
