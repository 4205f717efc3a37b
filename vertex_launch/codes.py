"""Stable codes for everything that people are told: problems, rejections, deferrals, warnings and notices.

A code never changes its meaning. Each has an entry in ``docs/troubleshooting.md`` that says what it means and what to do.
"""

from __future__ import annotations

from enum import StrEnum, auto


class Code(StrEnum):
    """One member for each kind of message; its value is ``VL-`` and its name with hyphens."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[str]) -> str:
        return f"VL-{name.replace('_', '-')}"

    NONE = auto()
    """For messages that have no code yet."""

    # Settings (settings/)

    # Requests and events

    # Run specs and jobs (job/)

    # A pass (dispatch/, state/)

    # Services (adapters/)

    # The preflight (preflight/)
