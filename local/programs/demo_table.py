"""The tables of the demo: the items while they run, as many as the terminal has room for, and the summary at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from local.programs.items import ENDED_STATES, Item

_WIDE = 120
"""Columns from which on the table also shows the job's id, the run and its metrics."""
_AROUND = 4
"""Lines of a frame that are not rows: the title, the headings, the summary of hidden rows, and one for the cursor."""
_COLUMNS = {"item": 17, "queue": 10, "item is": 18, "try": 3, "job is": 10, "region": 11, "time": 5}
"""The headings and their widths, 80 columns with the spaces between them."""
_MORE = {"job id": 7, "run is": 8, "metrics": 20}
_STYLES = {"SUCCEEDED": "green", "RUNNING": "cyan", "CANCELLING": "magenta"}


@dataclass(frozen=True)
class Line:
    """A row of the table: an item that is pushed to a queue, or that will be."""

    name: str
    queue: str
    item: Item | None
    as_expected: bool

    @property
    def phase(self) -> str:
        """Where the item is on its way; the names are shown when rows are hidden."""
        if self.item is None:
            return "not pushed yet"
        if self.as_expected or self.item.ended:
            return "ended"
        return "active" if self.item.jobs else "waiting"


def show(title: str, lines: Sequence[Line], width: int, height: int | None = None) -> RenderableType:
    """Return the table of a moment. With a ``height`` it holds the rows that matter most, and counts the others."""
    room = len(lines) if height is None else max(height - _AROUND, 1)
    shown = sorted(sorted(range(len(lines)), key=lambda at: _rank(lines[at]))[:room])
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    wide = width >= _WIDE
    for heading, columns in {**_COLUMNS, **(_MORE if wide else {})}.items():
        table.add_column(heading, no_wrap=True, min_width=columns)
    for at in shown:
        table.add_row(*_cells(lines[at], wide=wide), style=_style(lines[at]))
    parts: list[RenderableType] = [Text(title, "bold"), table]
    if hidden := Counter(line.phase for at, line in enumerate(lines) if at not in shown):
        parts.append(Text(f"and {', '.join(f'{count} {phase}' for phase, count in hidden.items())}", "dim"))
    return Group(*parts)


def show_summary(lines: Sequence[tuple[str, str]]) -> Table:
    """Return the table of what the demo showed."""
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("\nwhat was shown", style="bold")
    table.add_column("\nwhat happened")
    for topic, result in lines:
        table.add_row(topic, Text(result))
    return table


def _rank(line: Line) -> tuple[int, float]:
    """Sort active items first, then waiting ones, then the latest that ended, then those that are not pushed yet."""
    order = ("active", "waiting", "ended", "not pushed yet").index(line.phase)
    return order, -(line.item.ended or 0.0) if line.item else 0.0


def _cells(line: Line, *, wide: bool) -> list[str]:
    item = line.item
    if item is None:
        return [line.name, line.queue]
    expected = " as expected" if line.as_expected and item.state == "FAILED" else ""
    cells = [line.name, line.queue, f"{item.state}{expected}", item.attempt, item.job, item.region]
    cells.append(item.elapsed(time.time()))
    return (
        [*cells, item.job_id, item.run.get("state", ""), shorten(item.metrics, 22, placeholder="")] if wide else cells
    )


def _style(line: Line) -> str:
    """Return the colour: green for success, yellow for a failure that must happen, red for any other."""
    item = line.item
    if item is None:
        return "dim"
    failed = item.state == "FAILED" or item.job in ENDED_STATES - {"SUCCEEDED"}
    if failed and (line.as_expected or item.state == "CLAIMED"):
        return "yellow"  # a claimed item's job may be tried again
    return "red" if failed else _STYLES.get(item.job, "")
