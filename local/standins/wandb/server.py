"""The local W&B server: GraphQL, run files, file streams, and the control paths of a stand-in."""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from urllib.parse import unquote, urlsplit

from local.standins import faults as fault_control
from local.standins.faults import AnswerLost, FaultError, FaultRequestError, Faults
from local.standins.wandb.contents import digest_of
from local.standins.wandb.context import Context, Raw
from local.standins.wandb.errors import Refused, invalid, not_found
from local.standins.wandb.execution import Answer, BadRequest, ErrorStatus, execute, read, refused
from local.standins.wandb.runs import Run
from local.standins.wandb.store import Request, Store, User
from local.standins.web import Handler, WebServer

DEFAULT_API_KEYS: Mapping[str, str] = {"local" + "0" * 35: "alice"}
"""A key that has the length of a real one, and its user."""

NOT_LOGGED_IN = "user is not logged in"

_NAMES: Mapping[tuple[str, str], str] = {
    ("POST", "files"): "fileStream",
    ("PUT", "_files"): "uploadFile",
    ("PUT", "_artifacts"): "uploadArtifactFile",
    ("GET", "_artifacts"): "downloadArtifactFile",
    ("GET", "artifactsV2"): "downloadArtifactFile",
}
"""Operations that are not GraphQL, by method and beginning of the path."""

LOST = 0
"""The status in ``store.operations`` of an answer that was never sent."""


class WandbServer(WebServer):
    """A local W&B. Its memory is ``store``, its faults are ``faults``.

    The operations of faults are the names of GraphQL's top-level fields, and ``fileStream``, ``uploadFile``,
    ``uploadArtifactFile`` and ``downloadArtifactFile``.

    ``lease`` and ``crash_after`` are seconds of ``clock``. ``api_keys`` maps keys to usernames, ``teams`` maps teams to
    their members, and ``default_entities`` maps users to the entity of their runs, if it is not their own. A request with
    more than ``max_operations_per_request`` top-level fields is refused. A late ack is an error of its field with
    ``acks_refused_in_errors``, else ``success: false``. For ``ack_after_lease`` see ``Launch``, for ``error_status`` see
    ``ErrorStatus``, for ``deleted_by_name`` see ``Artifacts``.
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
        max_operations_per_request: int | None = None,
        acks_refused_in_errors: bool = True,
        ack_after_lease: bool = True,
        error_status: ErrorStatus = "alone",
        crash_after: float = 300.0,
        deleted_by_name: bool = True,
    ) -> None:
        self.faults = faults or Faults()
        self.max_operations_per_request = max_operations_per_request
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
            deleted_by_name=deleted_by_name,
        )
        super().__init__(_Handler, port)

    def graphql(self, body: bytes, user: User | None, operations: list[str]) -> Answer:
        """Answer one GraphQL request of ``user``, None for an unknown key. Append its operations to ``operations``.

        Raise BadRequest, FaultError or AnswerLost.
        """
        operation = read(body)
        operations.extend(operation.fields.values())
        self.faults.before(*operations)
        if user is None:
            return refused(operation, 401, NOT_LOGGED_IN, code="PERMISSION_ERROR")
        most = self.max_operations_per_request
        if most is not None and len(operations) > most:
            message = f"{len(operations)} operations in one request, at most {most} are allowed"
            return Answer(400, {"errors": [{"message": message}]})
        context = Context(self.store, self.faults, user, self.url, self.acks_refused_in_errors)
        answer = execute(operation, context, self.error_status)
        self.faults.after(*operations)
        for key, name in operation.fields.items():
            if (text := self.faults.answer_of(name)) is not None:
                answer.body["data"][key] = Raw(text)
        text = self.faults.body_of(*operations)
        return answer if text is None else Answer(200, {}, text)

    def file_stream(self, run: Run, body: bytes, user: User | None) -> Answer:
        """Store what the SDK streams from a run. The answer reports whether the run was stopped in W&B."""
        if user is None:
            raise Refused(401, NOT_LOGGED_IN)
        self.store.runs.stream(run, _json(body))
        return Answer(200, {"exitcode": run.exit_code, "limits": {}, "stopped": run.stopped})

    def artifact_file(self, entity: str, digest: str, user: User | None) -> bytes:
        """Return a file of an artifact by the hexadecimal MD5 of its content, if the user has access."""
        if user is None:
            raise Refused(401, NOT_LOGGED_IN)
        return self.store.artifacts.contents.get(self.store.entity_for(user, entity), digest_of(digest))


class _Handler(Handler):
    server: WandbServer

    def serve(self) -> None:
        """Answer one request, and record it in ``store.operations`` unless it goes to ``/_local/``."""
        began = time.perf_counter()
        wandb = self.server
        path = urlsplit(self.path).path
        body = self.body()
        operations: list[str] = []
        try:
            answer = self._answer(wandb, path, body, operations)
            content = answer if isinstance(answer, bytes) else answer.content()
            status = 200 if isinstance(answer, bytes) else answer.status
        except AnswerLost:
            content, status = b"", LOST
        if not path.startswith("/_local/"):
            seconds = time.perf_counter() - began
            asked = Request(wandb.store.clock(), path, tuple(operations), len(body), len(content), status, seconds)
            wandb.store.operations.append(asked)
        if status == LOST:
            self.hang_up()
        else:
            kind = "application/octet-stream" if isinstance(answer, bytes) else "application/json"
            self.answer(status, content, {"Content-Type": kind})

    def _answer(self, wandb: WandbServer, path: str, body: bytes, operations: list[str]) -> Answer | bytes:
        try:
            if path.startswith("/_local/"):
                return self._control(wandb, path, body)
            return self._product(wandb, path, body, operations)
        except BadRequest as error:
            return error.answer
        except FaultError as error:
            return Answer(error.http_status, {"errors": [{"message": error.message}]})
        except Refused as error:
            return Answer(error.status, {"error": error.message})

    def _product(self, wandb: WandbServer, path: str, body: bytes, operations: list[str]) -> Answer | bytes:
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if (self.command, parts) == ("POST", ["graphql"]):
            return wandb.graphql(self._plain(body), self._user(wandb), operations)
        if name := _NAMES.get((self.command, parts[0])):
            operations.append(name)
            wandb.faults.before(name)
        answer = self._file(wandb, parts, body)
        wandb.faults.after(*operations)
        return answer

    def _file(self, wandb: WandbServer, parts: Sequence[str], body: bytes) -> Answer | bytes:
        """Answer a request for streams or files."""
        match self.command, parts:
            case "POST", ["files", entity, project, name, "file_stream"]:
                return wandb.file_stream(_run(wandb, entity, project, name), self._plain(body), self._user(wandb))
            case "PUT", ["_files", entity, project, name, *file]:
                wandb.store.runs.upload(_run(wandb, entity, project, name), "/".join(file), body)
                return Answer(200, {})
            case "GET", ["_files", entity, project, name, *file]:
                return _content(_run(wandb, entity, project, name), "/".join(file))
            case "PUT", ["_artifacts", entity, digest]:
                wandb.store.artifacts.contents.put(entity, digest_of(digest), body)
                return Answer(200, {})
            case "GET", ["_artifacts", entity, digest]:
                return wandb.store.artifacts.contents.get(entity, digest_of(digest))
            case "GET", ["artifactsV2", _, entity, _, _, *_, digest, _]:  # an address that clients build themselves
                return wandb.artifact_file(entity, digest, self._user(wandb))
        raise not_found("/".join(["", *parts]))

    def _control(self, wandb: WandbServer, path: str, body: bytes) -> Answer:
        match self.command, path:
            case "GET", "/_local/state":
                return Answer(200, wandb.store.snapshot())
            case "GET", fault_control.PATH:
                return Answer(200, wandb.faults.state())
            case "POST", fault_control.PATH:
                try:
                    return Answer(200, wandb.faults.apply(body))
                except FaultRequestError as error:
                    raise invalid(str(error)) from error
            case _:
                raise not_found(path)

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


def _json(body: bytes) -> dict[str, object]:
    try:
        value = json.loads(body)
    except ValueError as error:
        raise invalid(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise invalid("the body has to be a JSON object")
    return value


def _run(wandb: WandbServer, entity: str, project: str, name: str) -> Run:
    run = wandb.store.runs.get(entity, project, name)
    if run is None:
        raise not_found(f"run {entity}/{project}/{name}")
    return run


def _content(run: Run, name: str) -> bytes:
    file = run.files.get(name)
    if file is None or file.content is None:
        raise not_found(f"file {name} of run {run.name}")
    return file.content
