"""Show the state of the local cloud to people and scripts, and set its faults while it runs.

``GET /`` is a page for people. ``GET /state`` returns queues, items, runs and jobs as JSON. ``GET /faults`` and
``POST /faults/SERVICE`` show and set faults, in the JSON of ``local.standins.faults``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from local.standins.faults import FaultRequestError, Faults
from local.standins.web import Handler, WebServer


class ControlServer(WebServer):
    """Serves ``page`` (plain text), ``state`` and the faults of every service."""

    def __init__(self, faults: Mapping[str, Faults], state: Callable[[], dict[str, Any]], port: int = 0) -> None:
        self.faults = faults
        self.state = state
        self.page: Callable[[], str] = lambda: "The state is at /state, the faults are at /faults.\n"
        super().__init__(_Handler, port)


class _Handler(Handler):
    server: ControlServer

    def serve(self) -> None:
        body = self.body()
        match self.command, self.path.strip("/").split("/"):
            case "GET", [""]:
                self.answer(200, self.server.page().encode(), {"Content-Type": "text/plain; charset=UTF-8"})
            case "GET", ["state"]:
                self.answer_json(200, self.server.state())
            case "GET", ["faults"]:
                self.answer_json(200, {name: faults.state() for name, faults in self.server.faults.items()})
            case "POST", ["faults", service] if service in self.server.faults:
                self._set(self.server.faults[service], body)
            case _:
                known = ", ".join(f"POST /faults/{name}" for name in self.server.faults)
                self.answer_json(
                    404, {"error": f"{self.path} does not exist. Use GET /, GET /state, GET /faults, {known}"}
                )

    def _set(self, faults: Faults, body: bytes) -> None:
        try:
            self.answer_json(200, faults.apply(body))
        except FaultRequestError as error:
            self.answer_json(400, {"error": str(error)})
