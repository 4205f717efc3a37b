"""The base of the gRPC stand-ins: a server that is one table of methods.

A method that is not in the table answers UNIMPLEMENTED, so that a client that needs more finds out immediately.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from local.standins.faults import AnswerLost, FaultError, Faults

Method = tuple[type[Any], Callable[[Any], Any]]
"""The request's type (proto-plus or plain), and the function that answers it."""


bearer: ContextVar[str] = ContextVar("bearer", default="")
"""The access token of the call being answered; empty without one, as in plaintext."""
quota_project: ContextVar[str] = ContextVar("quota_project", default="")
"""The project whose quota the call uses; empty if it names none."""


class Refused(Exception):
    """The call ends with this status and message.

    ``violations`` are pairs (field, description), sent as ``google.rpc.BadRequest`` with the message.
    """

    def __init__(self, code: grpc.StatusCode, message: str, violations: Sequence[tuple[str, str]] = ()) -> None:
        self.code = code
        self.message = message
        self.violations = tuple(violations)
        super().__init__(f"{code.name}: {message}")


class RpcServer:
    """The base of every gRPC server: serve ``table`` on 127.0.0.1 from ``start`` to ``stop``.

    The table is {"/package.Service/Method": (request type, function)}. ``calls`` and ``faults`` use the method's name without
    its package. ``port`` 0 takes a free port. ``certificate`` is a key and a certificate in PEM, for TLS.
    """

    def __init__(
        self,
        table: Mapping[str, Method],
        *,
        faults: Faults | None = None,
        port: int = 0,
        workers: int = 64,
        certificate: tuple[bytes, bytes] | None = None,
    ) -> None:
        self.calls: Counter[str] = Counter()
        self.faults = faults or Faults()
        self._calls_lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="rpc")
        # With SO_REUSEPORT a second server on the port would get half of the calls. Without it, the second server fails.
        self._server = grpc.server(self._pool, options=[("grpc.so_reuseport", 0)])
        services: defaultdict[str, dict[str, Any]] = defaultdict(dict)
        for full_name, (request_type, function) in table.items():
            service, operation = full_name.strip("/").split("/")
            services[service][operation] = self._handler(operation, request_type, function)
        for service, handlers in services.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
        address = f"127.0.0.1:{port}"
        self.port: int = (
            self._server.add_secure_port(address, grpc.ssl_server_credentials([certificate]))
            if certificate
            else self._server.add_insecure_port(address)
        )

    @property
    def address(self) -> str:
        """The address for gRPC channels: ``127.0.0.1:port``."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start to answer. Earlier calls have waited in the socket."""
        self._server.start()

    def stop(self) -> None:
        """Stop, and cut off calls in progress."""
        self._server.stop(grace=None).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def count(self, operation: str) -> None:
        """Count a call."""
        with self._calls_lock:
            self.calls[operation] += 1

    def _handler(self, operation: str, request_type: type[Any], function: Callable[[Any], Any]) -> Any:
        def answer(request: Any, context: Any) -> Any:
            self.count(operation)
            metadata = dict(context.invocation_metadata())
            bearer.set(metadata.get("authorization", "").removeprefix("Bearer "))
            quota_project.set(metadata.get("x-goog-user-project", ""))
            try:
                self.faults.before(operation)
                response = function(request)
                self.faults.after(operation)
            except Refused as refused:
                return _abort(context, refused)
            except FaultError as fault:
                return _abort(context, Refused(_code(fault.status), fault.message))
            except AnswerLost:
                # gRPC reports this to a client whose connection breaks before the answer.
                return _abort(context, Refused(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
            return response

        return grpc.unary_unary_rpc_method_handler(
            answer, request_deserializer=_deserializer(request_type), response_serializer=_serialize
        )


def _deserializer(request_type: type[Any]) -> Callable[[bytes], Any]:
    """Return the deserializer of a proto-plus type (``deserialize``) or a plain type (``FromString``)."""
    read: Callable[[bytes], Any] = getattr(request_type, "deserialize", None) or request_type.FromString
    return read


def _serialize(message: Any) -> bytes:
    written: bytes = type(message).serialize(message) if hasattr(message, "_pb") else message.SerializeToString()
    return written


def _abort(context: Any, refused: Refused) -> None:
    if refused.violations:
        bad_request = error_details_pb2.BadRequest()
        for field, description in refused.violations:
            bad_request.field_violations.add(field=field, description=description)
        detail = any_pb2.Any()
        detail.Pack(bad_request)
        status = status_pb2.Status(code=refused.code.value[0], message=refused.message, details=[detail])
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
    context.abort(refused.code, refused.message)


def http_status(code: grpc.StatusCode) -> int:
    """Return the HTTP status that Google's REST APIs use for a gRPC code."""
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return 400
    return next((status for status, paired in _BY_HTTP_STATUS.items() if paired is code), 500)


def _code(status: int | str) -> grpc.StatusCode:
    """Return the gRPC code with a name, or the one that Google's APIs use for an HTTP status."""
    if isinstance(status, str):
        return grpc.StatusCode[status]
    return _BY_HTTP_STATUS.get(status, grpc.StatusCode.UNKNOWN)


_BY_HTTP_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.ABORTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
