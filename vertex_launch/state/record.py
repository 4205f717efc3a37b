"""The record: the hold and the ledger, two small JSON objects. Pure: ``adapters.bucket`` keeps the objects.

Two, because an object takes about one write a second. Every write carries the generation that it replaces, so that of two
writers one is told so. An answer may be lost after its write took effect, and the retry is then refused: what stands in the
object says whose write it was.

The hold is never deleted: the ledger that a pass writes at its end names the generation of the hold that it gives back, and
the next pass replaces exactly that one. So a pass costs one write of the hold, and needs not wait to give it back.
"""

from __future__ import annotations

import json
from typing import Protocol

from vertex_launch.errors import PassBusy, PassLost
from vertex_launch.model import Hold
from vertex_launch.state.ledger import Ledger, Stored

HOLD = "hold.json"
LEDGER = "ledger.json"
ABSENT = 0
"""The generation that means: must not exist yet."""


class Objects(Protocol):
    """Named objects with generations; ``adapters.bucket`` says more. Both raise Unavailable."""

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Read an object and its generation; None when there is none."""

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        """Replace the object of that generation and give the new one; None when it is of another generation."""


class Record:
    """Hold and ledger among the objects of one deployment."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    # The hold

    def take_hold(self, pass_id: str, now: float, expires: float, free: int) -> Hold:
        """Become the one pass that runs; ``free`` is the generation of the hold that the ledger gives back, 0 for none.

        A hold that was not given back is taken over once it has expired. Raises PassBusy while another pass runs,
        Unavailable when the objects cannot be had.
        """
        content = json.dumps({"pass_id": pass_id, "expires": expires}).encode()
        generation = free
        for _ in range(3):
            taken = self._objects.write(HOLD, content, generation)
            if taken is not None:
                return Hold(pass_id, expires, taken, taken_over=generation != free)
            found = self._objects.read(HOLD)
            if found is None:
                generation = ABSENT  # somebody deleted it
                continue
            held, generation = found
            holder, until = _parse_hold(held)
            if holder == pass_id:
                return Hold(pass_id, expires, generation, taken_over=True)
            if now < until:
                raise PassBusy(f"pass {holder} is running, for {until - now:.0f} s more at most", until - now)
        raise PassBusy("other passes are beginning at this moment", 1.0)

    # The ledger

    def read(self) -> Stored:
        """Read the ledger. Raises Unavailable."""
        found = self._objects.read(LEDGER)
        if found is None:
            return Stored(None, ABSENT)
        content, generation = found
        return Stored(Ledger.parse(content), generation)

    def write(self, ledger: Ledger, pass_id: str, generation: int) -> int:
        """Replace the ledger of that generation and give the new one.

        Raises PassLost when somebody else wrote since, Unavailable when the objects cannot be had.
        """
        ledger.writer, ledger.writes = pass_id, ledger.writes + 1
        for _ in range(2):
            written = self._objects.write(LEDGER, ledger.dump(), generation)
            if written is not None:
                return written
            stored = self.read()
            if stored.ledger is None or stored.ledger.writer != pass_id:
                break
            if stored.ledger == ledger:
                return stored.generation  # the answer to this very write was lost
            generation = stored.generation  # the answer to an earlier one was
        raise PassLost("another pass has taken over: this one outlived its hold; nothing more is changed")


def _parse_hold(content: bytes) -> tuple[str, float]:
    """Read who holds and until when; a damaged hold counts as expired, for nobody can be waiting behind it."""
    try:
        hold = json.loads(content)
        return str(hold["pass_id"]), float(hold["expires"])
    except (ValueError, TypeError, KeyError):
        return "", 0.0
