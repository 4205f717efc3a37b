"""Ledgers of version 1, in which an open item was a set of flags.

Jobs are running when someone upgrades, so such a ledger is still read. It is never written again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_ITEM = ("item", "queue", "entity", "project", "run", "kind", "claimed", "stopped_before")
_SEEN = ("state", "state_since", "stop_seen", "cancelled")
_RENAMED = {"free_hold": "free_lock"}


def renamed(ledger: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a ledger of version 1 with the names of version 2. Its open items are migrated by ``item``."""
    return {_RENAMED.get(name, name): value for name, value in ledger.items()}


def item(old: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of an open item. Raises errors of any kind for a damaged one."""
    stage, number = old.get("stage", "intended"), old.get("attempt", 1)
    last, retrying = old.get("last", ""), stage == "again"
    before = {
        "number": number if retrying else number - 1,
        "region": last.split("/")[3] if last else old["region"],
        "planned": old["since"],
        "job": last,
        "ended": old.get("ended_at", 0) or old["since"],
        "began": old.get("began", False),
        "reason": old.get("reason", ""),
    }
    ended = old.get("ended", False) and (old.get("ended_at", 0) or old["since"])
    current = {
        "number": number,
        "region": old["region"],
        "planned": old["since"],
        "job": old.get("job", ""),
        "ended": ended or 0,
        "found_ended": old.get("quiet", False),
        **{name: old[name] for name in _SEEN if name in old},
    }
    attempts = [*([before] if last else []), *([] if retrying else [current])]
    new = {name: old[name] for name in _ITEM if name in old}
    new |= {"attempts": attempts, "refused": old.get("refused", []), "warned": old.get("told", [])}
    if retrying or (stage == "intended" and last):
        new["retry"] = {
            "at": old.get("again_at", 0),
            "elsewhere": old.get("elsewhere", False),
            "blocked": old.get("final", ""),
        }
    else:
        new["no_retry"] = old.get("final", "")
    return new
