"""The errors with which the server refuses a request, in W&B's own words if they are known."""

from __future__ import annotations


class Refused(Exception):
    """One field is refused. ``status`` is the HTTP status of a request without other fields."""

    def __init__(self, status: int, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.extensions = {"code": code} if code else None


def invalid(message: str) -> Refused:
    """Return the error for an input that has the right types and is not valid."""
    return Refused(400, message)


def permission_denied() -> Refused:
    """Return the error for a valid key without access to the entity."""
    return Refused(403, "permission denied", code="PERMISSION_ERROR")


def not_found(what: str) -> Refused:
    """Return the error for something that does not exist; ``what`` names it."""
    return Refused(404, f"{what} not found")


def conflict(message: str) -> Refused:
    """Return the error for a change that comes too late."""
    return Refused(409, message)
