"""How Google's gRPC clients are pointed at another host, in one place for all of them."""

from __future__ import annotations

from typing import TypeGuard
from urllib.parse import urlsplit

import grpc


def is_plaintext(endpoint: str | None) -> TypeGuard[str]:
    """Tell whether the endpoint asks for plaintext gRPC without credentials: it begins with ``http://``."""
    return endpoint is not None and endpoint.startswith("http://")


def insecure_channel(endpoint: str) -> grpc.Channel:
    """Open a plaintext channel to ``http://host:port``, without a limit on an answer's size, as Google's clients do."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    return grpc.insecure_channel(urlsplit(endpoint).netloc, options=unlimited)
