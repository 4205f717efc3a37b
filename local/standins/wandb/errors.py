"""Why the server refuses a request, in W&B's own words where they are known."""

from __future__ import annotations


class Refused(Exception):
    """One field is refused: ``status`` is the HTTP status of a request in which nothing else was asked for."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.extensions = {"code": code} if code else None


def invalid(message: str) -> Refused:
    """The input has the right types and makes no sense."""
    return Refused(400, message)


def permission_denied() -> Refused:
    """The key is good, but not for this entity."""
    return Refused(403, "permission denied", code="PERMISSION_ERROR")


def not_found(what: str) -> Refused:
    """There is no such thing, ``what`` names it."""
    return Refused(404, f"{what} not found")


def conflict(message: str) -> Refused:
    """It would have been possible before."""
    return Refused(409, message)
