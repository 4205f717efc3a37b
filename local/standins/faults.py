"""Faults of a stand-in server: latency, failures, lost answers and lag.

A server calls ``before`` when a request has arrived, and ``after`` when it is done and not yet answered. Operations have
the names of their service: ``popFromRunQueue``, ``CreateCustomJob``, ``storage.insert``. Tests call the methods. Other
processes send JSON (``apply``): ``{"latency": 0.08, "faults": [{"operation": "ackRunQueueItem", "kind": "lose"}]}``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

ANY = "*"
"""The operation of a fault that applies to every request."""

PATH = "/_local/faults"
"""The path at which a stand-in sets faults (POST) and shows them (GET)."""


class Fault(BaseModel):
    """A fault of the next ``times`` requests for ``operation``; None means all of them.

    ``fail``: do nothing, and answer with ``status`` (an HTTP status, or a gRPC code's name) and ``message``.
    ``refuse``: make only this field of a GraphQL batch an error with ``message``, and do the others.
    ``lose``: do everything, then break the connection without an answer.
    ``delay``: start ``seconds`` later.
    ``lag``: show reads the state of ``seconds`` ago. Each read counts.
    ``answer``: do everything, and send ``message`` as it is instead of the field's value in a GraphQL answer.
    ``body``: do everything, and send ``message`` as it is instead of the whole answer, with the status 200.
    """

    model_config = ConfigDict(extra="forbid")

    operation: str
    kind: Literal["fail", "refuse", "lose", "delay", "lag", "answer", "body"]
    times: PositiveInt | None = 1
    status: int | str = 503
    message: str = "an injected fault"
    seconds: NonNegativeFloat = 0.0


class FaultError(Exception):
    """The server must fail this request with ``status`` and ``message``. Nothing was done."""

    def __init__(self, status: int | str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def http_status(self) -> int:
        """The status for an HTTP server, which does not know the names of gRPC codes."""
        return self.status if isinstance(self.status, int) else 503


class AnswerLost(Exception):
    """The server must break the connection without an answer. Everything was done."""


class FaultRequestError(ValueError):
    """The JSON is not a valid set of faults. The message lists every problem."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    clear: bool = False
    latency: NonNegativeFloat | None = None
    faults: list[Fault] = Field(default_factory=list)


class Faults:
    """The faults of one server, for use from many threads. ``latency`` in seconds is added to every request."""

    def __init__(self, latency: float = 0.0, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.latency = latency
        self._sleep = sleep
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def fail(
        self, operation: str, status: int | str = 503, *, times: int | None = 1, message: str = "unavailable"
    ) -> None:
        """Answer the next ``times`` requests of ``operation`` with ``status``, and do not do them."""
        self.add(Fault(operation=operation, kind="fail", status=status, times=times, message=message))

    def refuse(self, operation: str, message: str, *, status: int = 400, times: int | None = 1) -> None:
        """Make the next ``times`` fields ``operation`` errors, and do the other fields."""
        self.add(Fault(operation=operation, kind="refuse", status=status, times=times, message=message))

    def lose(self, operation: str, *, times: int | None = 1) -> None:
        """Do the next ``times`` requests of ``operation``, and break the connection instead of answering."""
        self.add(Fault(operation=operation, kind="lose", times=times))

    def delay(self, operation: str, seconds: float, *, times: int | None = 1) -> None:
        """Delay the next ``times`` requests of ``operation`` by ``seconds``."""
        self.add(Fault(operation=operation, kind="delay", seconds=seconds, times=times))

    def answer(self, operation: str, text: str, *, times: int | None = 1) -> None:
        """Send ``text`` instead of the value of the next ``times`` fields ``operation``, which are done."""
        self.add(Fault(operation=operation, kind="answer", message=text, times=times))

    def body(self, operation: str, text: str, *, times: int | None = 1) -> None:
        """Send ``text`` instead of the next ``times`` answers to requests with ``operation``, which are done."""
        self.add(Fault(operation=operation, kind="body", message=text, times=times))

    def lag(self, operation: str, seconds: float, *, times: int | None = None) -> None:
        """Show the next ``times`` reads ``operation`` the state of ``seconds`` ago."""
        self.add(Fault(operation=operation, kind="lag", seconds=seconds, times=times))

    def add(self, fault: Fault) -> None:
        """Add a fault to those that are set."""
        with self._lock:
            self._faults.append(fault.model_copy())

    def clear(self) -> None:
        """Remove all faults. ``latency`` stays."""
        with self._lock:
            self._faults.clear()

    def before(self, *operations: str) -> None:
        """Wait for the latency and the delays of a request that has arrived. Raise FaultError if it must fail.

        A request counts once for each operation in it, even if it contains the operation several times.
        """
        named = dict.fromkeys(operations)
        delays = [fault.seconds for operation in named for fault in self._take("delay", operation)]
        if seconds := self.latency + sum(delays):
            self._sleep(seconds)
        for operation in named:
            for fault in self._take("fail", operation):
                raise FaultError(fault.status, fault.message)

    def before_field(self, operation: str) -> None:
        """Raise FaultError if one field of a batch must fail before it is done."""
        for fault in self._take("refuse", operation):
            raise FaultError(fault.status, fault.message)

    def after(self, *operations: str) -> None:
        """Raise AnswerLost if the answer to operations that are done must get lost."""
        if any(self._take("lose", operation) for operation in operations):
            raise AnswerLost

    def lag_of(self, operation: str) -> float:
        """Return by how many seconds a read lags."""
        return max((fault.seconds for fault in self._take("lag", operation)), default=0.0)

    def answer_of(self, operation: str) -> str | None:
        """Return the text to send instead of a field's value, None without such a fault."""
        return next((fault.message for fault in self._take("answer", operation)), None)

    def body_of(self, *operations: str) -> str | None:
        """Return the text to send instead of a whole answer, None without such a fault."""
        return next((fault.message for one in dict.fromkeys(operations) for fault in self._take("body", one)), None)

    def apply(self, body: bytes) -> dict[str, Any]:
        """Set the faults in JSON that another process sent, and return what is set now.

        Raise FaultRequestError with every problem, and change nothing, if ``body`` is not valid.
        """
        try:
            request = _Request.model_validate_json(body)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()]
            raise FaultRequestError("; ".join(problems)) from error
        if request.clear:
            self.clear()
        if request.latency is not None:
            self.latency = request.latency
        for fault in request.faults:
            self.add(fault)
        return self.state()

    def state(self) -> dict[str, Any]:
        """Return the latency and the faults that are set, in JSON types."""
        with self._lock:
            return {"latency": self.latency, "faults": [fault.model_dump() for fault in self._faults]}

    def _take(self, kind: str, operation: str) -> list[Fault]:
        """Count down the first fault that applies to an operation. Return a list of it, or an empty list."""
        with self._lock:
            met = [fault for fault in self._faults if fault.kind == kind and fault.operation in (operation, ANY)][:1]
            for fault in met:
                if fault.times is not None:
                    fault.times -= 1
            self._faults = [fault for fault in self._faults if fault.times != 0]
            return met
