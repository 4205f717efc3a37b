"""HTTP/1.1 and gRPC on one port, as the hosts of Google's APIs have them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import Any

from local.standins.web import Handler, WebServer

_HTTP_2 = b"PRI "
"""How a connection of HTTP/2 begins without TLS (RFC 9113, 3.4), and no request of HTTP/1.1."""


class SharedPort(WebServer):
    """Serves ``handler`` on 127.0.0.1, and hands connections that begin as gRPC's do on to ``rpc_port``.

    ``port`` 0 takes a free one. ``start`` and ``stop`` it; ``stop`` cuts off the connections of both kinds.
    """

    def __init__(self, handler: type[Handler], rpc_port: int, port: int = 0) -> None:
        self._rpc_address = ("127.0.0.1", rpc_port)
        super().__init__(handler, port)

    @property
    def address(self) -> str:
        """Where channels find it: ``127.0.0.1:port``."""
        return self.url.removeprefix("http://")

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Serve one connection to its end, in a thread of its own."""
        if request.recv(len(_HTTP_2), socket.MSG_PEEK | socket.MSG_WAITALL) != _HTTP_2:
            super().finish_request(request, client_address)
            return
        with socket.create_connection(self._rpc_address) as rpc:
            back = threading.Thread(target=_pass_on, args=(rpc, request), name="gRPC back", daemon=True)
            back.start()
            _pass_on(request, rpc)
            back.join()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    """Send what comes from one end to the other until either of them is closed."""
    # Whichever end breaks, the other one learns it by the end of its input.
    with contextlib.suppress(OSError):
        target.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := source.recv(65536):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
