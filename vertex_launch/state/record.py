"""The record: the lock, the ledger and a note, small JSON objects. Pure: an adapter stores the objects.

There are several because an object takes about one write a second. Every write names the generation that it replaces, so that
of two writers one is refused. An answer may be lost after its write took effect, and the retry is then refused. The content
of the object shows whose write it was.

The note says which items a pass is checking. It is written before each round of new items, and read only if that pass died.

The lock is never deleted. The ledger that a pass writes at its end names the generation of the lock that it gives back. The
next pass replaces exactly that one. So a pass costs one write of the lock, and does not wait to give it back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from vertex_launch import json_reader, log
from vertex_launch.codes import Code
from vertex_launch.errors import Message, PassBusy, PassLost, Unavailable
from vertex_launch.limits import LARGEST_LEDGER, MOST_LEDGER_VALUES
from vertex_launch.log import Redactor
from vertex_launch.model import Lock
from vertex_launch.state.ledger import NAMES, Ledger
from vertex_launch.state.open_item import CLOCK_SKEW

LOCK = "hold.json"  # its name since the first release: old and new versions exclude each other during an upgrade
LEDGER = "ledger.json"
NOTE = "working.json"
ABSENT = 0
"""The generation that means: must not exist yet."""


class Objects(Protocol):
    """Named objects with generations. All methods raise Unavailable."""

    def read(self, name: str) -> tuple[bytes, int] | None:
        """Return an object and its generation; None if it does not exist."""

    def written(self, name: str) -> float:
        """Return when an object was written (Unix seconds by the storage's clock), 0 if it does not exist."""

    def write(self, name: str, content: bytes, generation: int) -> int | None:
        """Replace the object of that generation and return the new one; None if it has another generation."""


@dataclass(frozen=True)
class Stored:
    """A ledger as read: None if there is none or it is damaged, and the generation that the next write replaces.

    ``lost`` says what of it cannot be used.
    """

    ledger: Ledger | None
    generation: int
    lost: Sequence[str] = field(default=(), compare=False)


class Held:
    """The lock and the ledger while one pass holds them."""

    def __init__(self, record: Record, lock: Lock, stored: Stored) -> None:
        self.lock = lock
        self.lost = stored.lost
        self.ledger = stored.ledger or Ledger(rebuild=True)
        self._rebuilt = stored.ledger is None
        self._gave_back = self.ledger.writer if self.ledger.free_lock else ""
        self._noted = False
        self.ledger.free_lock = 0
        self._record = record
        self._generation = stored.generation
        self._kept = self.ledger.dump()

    def note(self, items: Sequence[str], now: float) -> None:
        """Record which items are checked from now on, besides those that are suspected. Raises PassLost, Unavailable."""
        if now > self.lock.expires:
            raise PassLost(_LOST, code=Code.PASS_LOST)
        kills = {item: one.kills for item, one in self.ledger.suspects.items()}
        self.ledger.noted = self._record.note(self.lock.pass_id, items, kills, self.ledger.noted)
        self._noted = True

    def suspect(self, now: float) -> None:
        """Suspect the items that a pass was checking which died since the ledger was written.

        A pass that gave its lock back did not die, even if it does not know of its note because the answer was lost.

        If the ledger is lost, the pass may have got further. So nothing is counted, and the ledger is written at once,
        because a pass that dies from now on does count. Raises PassLost, Unavailable.
        """
        items, kills, writer, generation = self._record.read_note()
        if generation == self.ledger.noted:
            return
        died = not self._rebuilt and (not writer or writer != self._gave_back)
        self.ledger.suspect(items, kills, now, died=died)
        self.ledger.noted = generation
        if self._rebuilt:
            self.save()
        else:
            self.keep()

    def withdraw_note(self) -> None:
        """Record that the pass did not die of what it checked, unless another pass has replaced its note since."""
        if not self._noted:
            return
        kills = {item: one.kills for item, one in self.ledger.suspects.items()}
        try:
            self._record.withdraw_note(self.lock.pass_id, kills, self.ledger.noted)
        except Unavailable as error:
            log.LOGGER.info("The note of pass %s stays: %s", self.lock.pass_id, error)

    def save(self) -> None:
        """Write the ledger. Raises PassLost, Unavailable."""
        self._generation = self._record.write(self.ledger, self.lock.pass_id, self._generation)
        self.keep()

    def keep(self) -> None:
        """Let what the ledger has now survive even if the rest of the pass fails."""
        self._kept = self.ledger.dump()

    def give_back(self) -> None:
        """Write the ledger of a completed pass, which gives the lock back. Raises PassLost, Unavailable."""
        self.ledger.free_lock, self.ledger.rebuild = self.lock.generation, False
        self.save()

    def abandon(self) -> None:
        """Release the lock with the ledger as it was kept last: what this pass learned since, the next one learns again."""
        kept = Ledger.model_validate_json(self._kept)
        kept.free_lock, kept.noted = self.lock.generation, self.ledger.noted
        kept.operations = self.ledger.operations
        try:
            self._record.write(kept, self.lock.pass_id, self._generation)
        except (Unavailable, PassLost) as error:
            text = f"The lock could not be released; it expires by itself. {error}"
            log.warning(Message(Code.LOCK_NOT_GIVEN_BACK, text), pass_id=self.lock.pass_id)


class Record:
    """Lock and ledger among the objects of one deployment. What is written holds no key that ``redact`` knows."""

    def __init__(self, objects: Objects, redact: Redactor) -> None:
        self._objects = objects
        self._redact = redact

    @contextmanager
    def locked(
        self, stored: Stored, pass_id: str, now: float, expires: float, clock: Callable[[], float]
    ) -> Iterator[Held]:
        """Hold the lock and the ledger for one pass that began ``now``, and give the lock back if that fails.

        A pass that completes calls ``Held.give_back``. Raises PassBusy, PassLost, Unavailable.
        """
        lock = self.take_lock(pass_id, now, expires, stored.ledger.free_lock if stored.ledger else ABSENT)
        held = Held(self, lock, self.read(clock) if lock.taken_over else stored)
        if lock.taken_over:
            held.suspect(now)
        try:
            yield held
        except PassLost:
            held.withdraw_note()
            raise
        except Exception:
            held.abandon()
            raise

    def take_lock(self, pass_id: str, now: float, expires: float, free: int) -> Lock:
        """Become the one pass that runs. ``free`` is the generation of the lock that the ledger gives back, 0 for none.

        A lock that was not given back is taken over once it has expired. It lasts no longer after its write than a pass may
        run, whatever it says. Raises PassBusy while another pass runs, and Unavailable.
        """
        content = json.dumps({"pass_id": pass_id, "expires": expires}).encode()
        generation = free
        for _ in range(3):
            taken = self._objects.write(LOCK, content, generation)
            if taken is not None:
                return Lock(pass_id, expires, taken, taken_over=generation != free)
            found = self._objects.read(LOCK)
            if found is None:
                generation = ABSENT  # someone deleted it
                continue
            held, generation = found
            holder, until = _parse_lock(held)
            if holder == pass_id:
                return Lock(pass_id, expires, generation, taken_over=True)
            if until > expires + CLOCK_SKEW:  # no pass has the lock that long
                until = min(until, self._objects.written(LOCK) + (expires - now) + CLOCK_SKEW)
            if now < until:
                raise PassBusy(f"Pass {holder} is running, for at most {until - now:.0f} s more.", until - now)
        raise PassBusy("Other passes are starting at this moment.", 1.0)

    def note(self, pass_id: str, items: Sequence[str], kills: Mapping[str, int], generation: int) -> int:
        """Replace the note of that generation, or of another one if the ledger was lost. Return its new generation.

        Raises PassLost, Unavailable.
        """
        content = _note(pass_id, items, kills)
        for _ in range(3):
            written = self._objects.write(NOTE, content, generation)
            if written is not None:
                return written
            found, generation = self._objects.read(NOTE) or (b"", ABSENT)
            if found == content:
                return generation  # the answer to this very write was lost
        raise PassLost(_LOST, code=Code.PASS_LOST)

    def withdraw_note(self, pass_id: str, kills: Mapping[str, int], generation: int) -> None:
        """Replace the note of that generation by one without items, if it is still the last one. Raises Unavailable."""
        self._objects.write(NOTE, _note(pass_id, [], kills), generation)

    def read_note(self) -> tuple[list[str], dict[str, int], str, int]:
        """Read which items a pass was checking, which it suspected, its id, and the note's generation. Raises Unavailable."""
        content, generation = self._objects.read(NOTE) or (b"", ABSENT)
        try:
            note = _Note.model_validate(json_reader.read(content))
        except ValueError:
            return [], {}, "", generation  # there is none, or it is damaged
        return note.items, note.suspects, note.pass_id, generation

    def read(self, clock: Callable[[], float] | None = None) -> Stored:
        """Read the ledger, with what a pass may have written until now. Raises Unavailable.

        The clock is asked after the answer has come: a pass may stand still for longer than clocks differ.
        """
        content, generation = self._objects.read(LEDGER) or (b"", ABSENT)
        ledger = Ledger.parse(content, clock() if clock else None)
        lost = ledger.dropped if ledger else [LEDGER] if generation != ABSENT else []
        return Stored(ledger, generation, lost)

    def write(self, ledger: Ledger, pass_id: str, generation: int) -> int:
        """Replace the ledger of that generation and return the new one.

        Raises PassLost if someone else wrote since, and Unavailable.
        """
        ledger.writer, ledger.writes = pass_id, ledger.writes + 1
        redact = partial(self._redact.json, names=NAMES)
        content = ledger.dump(redact)
        while ledger.waiting and json_reader.is_too_large(content, LARGEST_LEDGER, MOST_LEDGER_VALUES):
            ledger.forget_half_of_waiting()  # else the next pass could not read it
            content = ledger.dump(redact)
        for _ in range(2):
            written = self._objects.write(LEDGER, content, generation)
            if written is not None:
                return written
            found, stands = self._objects.read(LEDGER) or (b"", ABSENT)
            if found == content:
                return stands  # the answer to this very write was lost
            stored = Ledger.parse(found)
            if stored is None or stored.writer != pass_id:
                break
            generation = stands  # the answer to an earlier write was lost
        raise PassLost(_LOST, code=Code.PASS_LOST)


_LOST = "Another pass has taken over because this one outlived its lock. It changes nothing more."


def _note(pass_id: str, items: Sequence[str], kills: Mapping[str, int]) -> bytes:
    return json.dumps({"pass_id": pass_id, "items": items, "suspects": kills}).encode()


class _Lock(BaseModel):
    model_config = ConfigDict(strict=True)

    pass_id: str = Field(max_length=100)
    expires: float


class _Note(BaseModel):
    model_config = ConfigDict(strict=True)

    pass_id: str = ""
    items: list[str]
    suspects: dict[str, int]


def _parse_lock(content: bytes) -> tuple[str, float]:
    """Parse who holds the lock and until when; a damaged one counts as expired, because no pass can give it back."""
    try:
        lock = _Lock.model_validate(json_reader.read(content))
    except ValueError:
        return "", 0.0
    return lock.pass_id, lock.expires
