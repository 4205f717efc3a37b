"""gRPC servers on loopback as one table of methods; Vertex AI, Secret Manager and Pub/Sub are each such a table.

Plaintext, no credentials, exact status codes. A method that is not in the table answers UNIMPLEMENTED, so that a client
that begins to need more says so at once.
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
"""The request's type (proto-plus or plain) and the function that answers it."""


bearer: ContextVar[str] = ContextVar("bearer", default="")
"""The access token of the call being answered; empty without one, as in plaintext."""


class Refused(Exception):
    """The call ends with this status, and its caller reads this message.

    ``violations`` are pairs (field, description), sent as ``google.rpc.BadRequest`` beside the message.
    """

    def __init__(self, code: grpc.StatusCode, message: str, violations: Sequence[tuple[str, str]] = ()) -> None:
        self.code = code
        self.message = message
        self.violations = tuple(violations)
        super().__init__(f"{code.name}: {message}")


class RpcServer:
    """Serves ``table`` ({"/package.Service/Method": (request type, function)}) on 127.0.0.1.

    ``calls`` counts by method name without its package. ``faults`` meets the same names. ``port`` 0 takes a free one.
    ``certificate`` is a key and a certificate in PEM, for TLS.
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
        # Without SO_REUSEPORT a second server on the same port fails instead of taking half of the calls.
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
        """The address as gRPC channels take it: ``127.0.0.1:port``."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Begin to answer; calls sent before wait in the socket."""
        self._server.start()

    def stop(self) -> None:
        """End at once: calls under way are cut off."""
        self._server.stop(grace=None).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def count(self, operation: str) -> None:
        """Count a call."""
        with self._calls_lock:
            self.calls[operation] += 1

    def _handler(self, operation: str, request_type: type[Any], function: Callable[[Any], Any]) -> Any:
        def answer(request: Any, context: Any) -> Any:
            self.count(operation)
            bearer.set(dict(context.invocation_metadata()).get("authorization", "").removeprefix("Bearer "))
            try:
                self.faults.before(operation)
                response = function(request)
                self.faults.after(operation)
            except Refused as refused:
                return _abort(context, refused)
            except FaultError as fault:
                return _abort(context, Refused(_code(fault.status), fault.message))
            except AnswerLost:
                # What gRPC tells a client whose connection breaks before the answer is there.
                return _abort(context, Refused(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
            return response

        return grpc.unary_unary_rpc_method_handler(
            answer, request_deserializer=_deserializer(request_type), response_serializer=_serialize
        )


def _deserializer(request_type: type[Any]) -> Callable[[bytes], Any]:
    """Proto-plus types have ``deserialize``, plain ones ``FromString``."""
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
    """Give the HTTP status that Google's REST APIs answer with where gRPC has this code."""
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return 400
    return next((status for status, paired in _BY_HTTP_STATUS.items() if paired is code), 500)


def _code(status: int | str) -> grpc.StatusCode:
    """The gRPC code of a fault: by its name, or the one that Google's APIs pair with an HTTP status."""
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
