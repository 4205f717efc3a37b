"""Start processes so that none of them is forgotten when a signal arrives."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold signals back during the block: an exception of their handlers could lose a process that was just started."""
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    ours = threading.current_thread() is threading.main_thread()  # handlers run there and nowhere else
    handlers = {number: handler for number, handler in handlers.items() if ours and callable(handler)}
    for number in handlers:
        signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)
