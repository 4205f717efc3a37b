"""HTTP/1.1 and gRPC on one port, as on the hosts of Google's APIs."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from local.standins.web import Handler, WebServer

_HTTP_2 = b"PRI "
"""The first bytes of an HTTP/2 connection without TLS (RFC 9113, 3.4). No HTTP/1.1 request starts with them."""


class SharedPort(WebServer):
    """Serves ``handler`` on 127.0.0.1, and forwards gRPC connections to ``rpc_port``. ``stop`` cuts off both kinds."""

    def __init__(self, handler: type[Handler], rpc_port: int, port: int = 0) -> None:
        self._rpc_address = ("127.0.0.1", rpc_port)
        super().__init__(handler, port)

    @property
    def address(self) -> str:
        """The address for gRPC channels: ``127.0.0.1:port``."""
        return self.url.removeprefix("http://")

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection to its end."""
        if request.recv(len(_HTTP_2), socket.MSG_PEEK | socket.MSG_WAITALL) != _HTTP_2:
            super().finish_request(request, client_address)
            return
        with socket.create_connection(self._rpc_address) as rpc:
            back = threading.Thread(target=_pass_on, args=(rpc, request), name="gRPC back", daemon=True)
            back.start()
            _pass_on(request, rpc)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy bytes from one socket to the other until either is closed."""
    # If one end breaks, the other end sees the end of its input.
    with contextlib.suppress(OSError):
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
