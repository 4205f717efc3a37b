"""What goes wrong on purpose: latency, failures, lost answers and lag, for any stand-in server.

A server asks ``before`` when a request has arrived and nothing is done yet, and ``after`` when all is done and nothing
is answered yet. Operations are named as their service names them: ``popFromRunQueue``, ``CreateCustomJob``,
``storage.insert``. Tests call the methods; another process sends the same as JSON (``apply``), as in
``{"latency": 0.08, "faults": [{"operation": "ackRunQueueItem", "kind": "lose", "times": 1}]}``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, ValidationError

ANY = "*"
"""The operation of a fault that meets every request."""

PATH = "/_local/faults"
"""Where a stand-in takes ``apply`` over HTTP (POST) and shows what is set (GET)."""


class Fault(BaseModel):
    """One thing that goes wrong the next ``times`` times that ``operation`` is asked for; ``times`` None is for ever.

    ``fail``: answer ``status`` (an HTTP status, or a gRPC code's name) and ``message``, do nothing.
    ``refuse``: only this field of a batch is an error with ``message``, its neighbours are done (GraphQL).
    ``lose``: do it, then break the connection without an answer.
    ``delay``: begin ``seconds`` later.
    ``lag``: reads show the state of ``seconds`` ago; counts down at each read.
    """

    model_config = ConfigDict(extra="forbid")

    operation: str
    kind: Literal["fail", "refuse", "lose", "delay", "lag"]
    times: PositiveInt | None = 1
    status: int | str = 503
    message: str = "a fault that was asked for"
    seconds: NonNegativeFloat = 0.0


class FaultError(Exception):
    """The server must fail this request: ``status`` and ``message`` as the fault has them; nothing was done."""

    def __init__(self, status: int | str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    @property
    def http_status(self) -> int:
        """The status for an HTTP server, which knows no names of gRPC codes."""
        return self.status if isinstance(self.status, int) else 503


class AnswerLost(Exception):
    """The server must break the connection without an answer; everything was done."""


class FaultRequestError(ValueError):
    """What another process sent is no valid set of faults; the message has every problem."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")

    clear: bool = False
    latency: NonNegativeFloat | None = None
    faults: list[Fault] = Field(default_factory=list)


class Faults:
    """The faults of one server; safe to use from many threads. ``latency`` in seconds is added to every request."""

    def __init__(self, latency: float = 0.0, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.latency = latency
        self._sleep = sleep
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def fail(
        self, operation: str, status: int | str = 503, *, times: int | None = 1, message: str = "unavailable"
    ) -> None:
        """Answer the next ``times`` requests of ``operation`` with ``status``, without doing them."""
        self.add(Fault(operation=operation, kind="fail", status=status, times=times, message=message))

    def refuse(self, operation: str, message: str, *, status: int = 400, times: int | None = 1) -> None:
        """Make the next ``times`` fields ``operation`` errors, without doing them; other fields are done."""
        self.add(Fault(operation=operation, kind="refuse", status=status, times=times, message=message))

    def lose(self, operation: str, *, times: int | None = 1) -> None:
        """Do the next ``times`` requests of ``operation``, but break the connection instead of answering."""
        self.add(Fault(operation=operation, kind="lose", times=times))

    def delay(self, operation: str, seconds: float, *, times: int | None = 1) -> None:
        """Begin the next ``times`` requests of ``operation`` ``seconds`` later."""
        self.add(Fault(operation=operation, kind="delay", seconds=seconds, times=times))

    def lag(self, operation: str, seconds: float, *, times: int | None = None) -> None:
        """Let the next ``times`` reads ``operation`` show the state of ``seconds`` ago."""
        self.add(Fault(operation=operation, kind="lag", seconds=seconds, times=times))

    def add(self, fault: Fault) -> None:
        """Set one fault; it joins those that are set already."""
        with self._lock:
            self._faults.append(fault.model_copy())

    def clear(self) -> None:
        """Nothing goes wrong any more; ``latency`` stays."""
        with self._lock:
            self._faults.clear()

    def before(self, *operations: str) -> None:
        """A request for these operations has arrived: wait as asked for. Raises FaultError when it has to fail.

        A request counts once for each operation in it, however often it is there.
        """
        named = dict.fromkeys(operations)
        delays = [fault.seconds for operation in named for fault in self._take("delay", operation)]
        if seconds := self.latency + sum(delays):
            self._sleep(seconds)
        for operation in named:
            for fault in self._take("fail", operation):
                raise FaultError(fault.status, fault.message)

    def before_field(self, operation: str) -> None:
        """One field of a batch is about to be done. Raises FaultError when it alone has to fail."""
        for fault in self._take("refuse", operation):
            raise FaultError(fault.status, fault.message)

    def after(self, *operations: str) -> None:
        """These operations are done. Raises AnswerLost when nobody may hear of it."""
        if any(self._take("lose", operation) for operation in operations):
            raise AnswerLost

    def lag_of(self, operation: str) -> float:
        """How many seconds a read is behind."""
        return max((fault.seconds for fault in self._take("lag", operation)), default=0.0)

    def apply(self, body: object) -> dict[str, Any]:
        """Set what another process asks for in JSON, see this module's head; give what is set now.

        Raises FaultRequestError, with every problem, when ``body`` is not of that form; nothing is changed then.
        """
        try:
            request = _Request.model_validate(body)
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
        """What is set now, in JSON types."""
        with self._lock:
            return {"latency": self.latency, "faults": [fault.model_dump() for fault in self._faults]}

    def _take(self, kind: str, operation: str) -> list[Fault]:
        """The first fault that meets this operation now, counted down; none is an empty list."""
        with self._lock:
            met = [fault for fault in self._faults if fault.kind == kind and fault.operation in (operation, ANY)][:1]
            for fault in met:
                if fault.times is not None:
                    fault.times -= 1
            self._faults = [fault for fault in self._faults if fault.times != 0]
            return met
