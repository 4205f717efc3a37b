"""The local W&B server: GraphQL, run files, file streams, and the control endpoints of this stand-in."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from local import faults as faults_module
from local.faults import AnswerLost, FaultError, FaultRequestError, Faults
from local.wandb_server.errors import Refused, not_found
from local.wandb_server.execution import Answer, BadRequest, ErrorStatus, Operation, execute, read, refused
from local.wandb_server.resolvers import Context
from local.wandb_server.runs import Run
from local.wandb_server.store import Request, Store, User

STOP_SECONDS = 5.0
"""How long ``stop`` waits for requests that are being answered."""

DEFAULT_API_KEYS: Mapping[str, str] = {"local" + "0" * 35: "alice"}
"""A key of the length that W&B's clients accept, and whose it is."""


class WandbServer:
    """W&B on loopback, in threads of this process; everything it knows is in ``store``, what goes wrong in ``faults``.

    ``lease`` and ``crash_after`` in seconds of ``clock``. ``api_keys`` gives the username of each key, ``teams`` the
    members of each team, ``default_entities`` where a user's runs go if not to the entity of his own name.
    ``max_operations``: a request with more top-level fields is refused as a whole. ``acks_refused_in_errors``: a late
    ack is an error of its field, else it is ``success: false``. ``error_status``: see ``ErrorStatus``.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        lease: float = 60.0,
        api_keys: Mapping[str, str] = DEFAULT_API_KEYS,
        teams: Mapping[str, Collection[str]] | None = None,
        default_entities: Mapping[str, str] | None = None,
        faults: Faults | None = None,
        port: int = 0,
        max_operations: int | None = None,
        acks_refused_in_errors: bool = True,
        ack_after_lease: bool = True,
        error_status: ErrorStatus = "alone",
        crash_after: float = 300.0,
    ) -> None:
        self.faults = faults or Faults()
        self.max_operations = max_operations
        self.acks_refused_in_errors = acks_refused_in_errors
        self.error_status = error_status
        self.store = Store(
            clock,
            lease=lease,
            api_keys=api_keys,
            teams=teams or {},
            default_entities=default_entities or {},
            ack_after_lease=ack_after_lease,
            crash_after=crash_after,
        )
        self._http = _HttpServer(self, port)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), name="wandb-server", daemon=True)

    @property
    def url(self) -> str:
        """The base URL, for WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Answer nothing more and close every connection."""
        self._http.shutdown()
        self._http.close_all(STOP_SECONDS)
        self._thread.join(STOP_SECONDS)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.stop()

    def graphql(self, operation: Operation, user: User | None) -> Answer:
        """Answer a valid request of ``user``, None for a key that is refused."""
        if user is None:
            return refused(operation, 401, "user is not logged in", code="PERMISSION_ERROR")
        if self.max_operations is not None and len(operation.fields) > self.max_operations:
            message = f"{len(operation.fields)} operations in one request, at most {self.max_operations} are allowed"
            return Answer(400, {"errors": [{"message": message}]})
        context = Context(self.store, self.faults, user, self.url, self.acks_refused_in_errors)
        return execute(operation, context, self.error_status)


class _HttpServer(ThreadingHTTPServer):
    """Knows its connections, so that it can close them: clients keep theirs open."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, wandb: WandbServer, port: int) -> None:
        self.wandb = wandb
        self._connections: dict[threading.Thread, socket.socket] = {}
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        thread = threading.Thread(target=self._serve, args=(request, client_address), daemon=True)
        self._connections[thread] = request
        thread.start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):  # a client that went away is no error
            super().handle_error(request, client_address)

    def close_all(self, seconds: float) -> None:
        self.server_close()
        for thread, connection in list(self._connections.items()):
            _break(connection)
            thread.join(seconds)

    def _serve(self, request: Any, client_address: Any) -> None:
        try:
            self.process_request_thread(request, client_address)
        finally:
            del self._connections[threading.current_thread()]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # unbuffered writes cost 45 ms a request on a kept connection
    disable_nagle_algorithm = True
    server: _HttpServer

    def do_POST(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def log_message(self, *_: object) -> None:
        """Requests are in ``store.operations``."""

    def _serve(self) -> None:
        began = time.perf_counter()
        wandb = self.server.wandb
        body = self._body()
        path = urlsplit(self.path).path
        operations: list[str] = []
        try:
            answer = self._answer(wandb, path, body, operations)
            content = answer if isinstance(answer, bytes) else json.dumps(answer.body).encode()
            status = 200 if isinstance(answer, bytes) else answer.status
            wandb.faults.after(*operations)
        except AnswerLost:
            content, status = b"", 0
        if not path.startswith("/_local/"):
            seconds = time.perf_counter() - began
            wandb.store.operations.append(
                Request(wandb.store.clock(), path, tuple(operations), len(body), len(content), status, seconds)
            )
        if status:
            self._send(status, content, "application/octet-stream" if isinstance(answer, bytes) else "application/json")
        else:
            self.close_connection = True
            _break(self.connection)

    def _answer(self, wandb: WandbServer, path: str, body: bytes, operations: list[str]) -> Answer | bytes:
        try:
            match self.command, path.strip("/").split("/"):
                case "POST", ["graphql"]:
                    return self._graphql(wandb, body, operations)
                case "POST", ["files", entity, project, run, "file_stream"]:
                    operations.append("fileStream")
                    wandb.faults.before(*operations)
                    return self._file_stream(wandb, _run(wandb, entity, project, run), body)
                case "PUT", ["_files", entity, project, run, *name]:
                    operations.append("uploadFile")
                    wandb.faults.before(*operations)
                    wandb.store.runs.upload(_run(wandb, entity, project, run), unquote("/".join(name)), body)
                    return Answer(200, {})
                case "GET", ["_files", entity, project, run, *name]:
                    return _content(_run(wandb, entity, project, run), unquote("/".join(name)))
                case "GET", ["_local", "state"]:
                    return Answer(200, wandb.store.snapshot())
                case "GET", _ if path == faults_module.PATH:
                    return Answer(200, wandb.faults.state())
                case "POST", _ if path == faults_module.PATH:
                    return Answer(200, wandb.faults.apply(json.loads(body)))
                case _:
                    raise not_found(path)
        except BadRequest as error:
            return error.answer
        except FaultError as error:
            return Answer(int(error.status), {"errors": [{"message": error.message}]})
        except FaultRequestError as error:
            return Answer(400, {"error": str(error)})
        except Refused as error:
            return Answer(error.status, {"error": error.message})

    def _graphql(self, wandb: WandbServer, body: bytes, operations: list[str]) -> Answer:
        operation = read(self._plain(body))
        operations.extend(operation.fields)
        wandb.faults.before(*operations)
        return wandb.graphql(operation, self._user(wandb))

    def _file_stream(self, wandb: WandbServer, run: Run, body: bytes) -> Answer:
        if self._user(wandb) is None:
            raise Refused(401, "user is not logged in")
        wandb.store.runs.stream(run, json.loads(self._plain(body)))
        return Answer(200, {"exitcode": run.exit_code, "stopped": run.stopped, "limits": {}})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            """Trailers mean nothing here."""
        return b"".join(chunks)

    def _plain(self, body: bytes) -> bytes:
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _user(self, wandb: WandbServer) -> User | None:
        scheme, _, credentials = self.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        try:
            username, _, api_key = base64.b64decode(credentials, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
        return wandb.store.user_of(api_key) if username == "api" else None

    def _send(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _run(wandb: WandbServer, entity: str, project: str, name: str) -> Run:
    entity, project, name = unquote(entity), unquote(project), unquote(name)
    run = wandb.store.runs.get(entity, project, name)
    if run is None:
        raise not_found(f"run {entity}/{project}/{name}")
    return run


def _content(run: Run, name: str) -> bytes:
    file = run.files.get(name)
    if file is None or file.content is None:
        raise not_found(f"file {name} of run {run.name}")
    return file.content


def _break(connection: socket.socket) -> None:
    """End a connection so that its other side notices; one that is closed already has ended."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError as error:
        if connection.fileno() != -1 and error.errno is None:
            raise
