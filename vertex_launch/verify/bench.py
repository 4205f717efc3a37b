"""What the measurements share: the clock, the services, what was made, and how it is removed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from vertex_launch.errors import LaunchError, Unavailable
from vertex_launch.log import Redactor
from vertex_launch.settings.config import Settings

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds without any answer of a service after which it is not asked again."""


@dataclass(frozen=True)
class Clock:
    """The time of this machine (Unix seconds), and how to wait."""

    now: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep


class Interrupted(BaseException):
    """The user or the system asks to stop (``number`` is the signal): clean up and end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Interrupts:
    """Signals that end the command. While something is being made they wait, so that it is known and can be removed."""

    def __init__(self) -> None:
        self._shielded = 0
        self._pending = 0

    def arrive(self, number: int) -> None:
        """Raise Interrupted, now or when the shield ends."""
        if self._shielded:
            self._pending = number
            return
        raise Interrupted(number)

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let signals wait until the block has ended."""
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= 1
        if self._pending and not self._shielded:
            raise Interrupted(self._pending)

    def ignore(self) -> None:
        """Let no further signal end the command, because it cleans up."""
        self._shielded += 1


@dataclass
class Bench:
    """The state of one run of the command. ``mark`` is part of the names of everything that it makes."""

    settings: Settings
    redact: Redactor
    mark: str
    clock: Clock = field(default_factory=Clock)
    show: Callable[[str], None] = print
    keep: bool = False
    interrupts: Interrupts = field(default_factory=Interrupts)
    ends: ExitStack = field(default_factory=ExitStack)
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """What to look at while something else is waited for."""
    left: list[str] = field(default_factory=list)
    """What could not be removed, or is kept with ``--keep``."""

    def __post_init__(self) -> None:
        """Remember when the command began."""
        self.began = self.clock.now()

    def progress(self, text: str) -> None:
        """Show what is being done."""
        self.show(f"[{self.clock.now() - self.began:5.0f} s] {text}")

    def remove(self, what: str, how: Callable[[], object]) -> None:
        """Remove something at the end, the last made first. An error of that is shown and does not stop the rest."""

        def end() -> None:
            if self.keep:
                self.left.append(what)
                return
            try:
                how()
            except LaunchError as error:
                self.left.append(f"{what} ({self.redact(str(error))})")
            except Exception as error:  # noqa: BLE001 - the rest is removed all the same
                self.left.append(f"{what} ({self.redact(repr(error))})")

        self.ends.callback(end)

    def until(self, found: Callable[[], T | None], most: float, every: float = 1.0) -> tuple[T | None, float]:
        """Ask until there is an answer, at most ``most`` seconds. Return it, None for none, and how long it took.

        Raises Unavailable if a service does not answer for a while.
        """
        began = answered = self.clock.now()
        while True:
            answer, trouble = None, None
            try:
                answer = found()
            except Unavailable as error:  # one lost answer does not end a measurement of minutes
                trouble = error
            now = self.clock.now()
            answered = answered if trouble else now
            if answer is not None or (trouble is None and now - began >= most):
                return answer, now - began
            if trouble is not None and now - answered >= min(most, PATIENCE):
                raise trouble
            self.pause(every)

    def pause(self, seconds: float) -> None:
        """Wait, and look every two seconds at what is being watched."""
        until = self.clock.now() + seconds
        while (left := until - self.clock.now()) > 0:
            self.clock.sleep(min(left, 2.0))
            for look in self.watchers:
                with suppress(LaunchError):  # whoever waits for it looks again
                    look()
