"""The fields of runs and their files."""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ariadne import ObjectType

from local.standins.wandb.context import page, resolve_with
from local.standins.wandb.errors import invalid
from local.standins.wandb.runs import ALIVE, CONSOLE, EVENTS, HISTORY, Run, RunFile
from local.standins.wandb.store import Project, User

if TYPE_CHECKING:
    from local.standins.wandb.context import Info

run_type = ObjectType("Run")

_PLAIN: Mapping[str, Callable[[Run, Any], Any]] = {
    "project": lambda run, info: info.context.store.projects[run.entity, run.project],
    "projectId": lambda run, info: info.context.store.projects[run.entity, run.project].id,
    "user": lambda run, info: info.context.store.users[run.username],
    "eventsLineCount": lambda run, _: len(run.lines(EVENTS)),
    "eventsTail": lambda run, _: run.lines(EVENTS)[-1:],
    "exitcode": lambda run, _: run.exit_code,
    "fileCount": lambda run, _: len(run.files),
    "group": lambda run, _: run.group_name,
    "historyLineCount": lambda run, _: len(run.lines(HISTORY)),
    "historyTail": lambda run, _: run.lines(HISTORY)[-1:],
    "logLineCount": lambda run, _: len(run.lines(CONSOLE)),
    "summaryMetrics": lambda run, _: run.summary,
    "failed": lambda run, _: run.state == "failed",
    "running": lambda run, _: run.state in ALIVE,
    "shouldStop": lambda run, _: run.stopped,
    "sweepName": lambda run, _: run.sweep,
    "systemMetrics": lambda run, _: run.lines(EVENTS)[-1] if run.lines(EVENTS) else "{}",
}

resolve_with(run_type, _PLAIN)


def file_node(run: Run, file: RunFile, base_url: str) -> dict[str, Any]:
    """The schema's File. Upload and download have the same address. Before the upload it is empty."""
    path = quote(f"{run.entity}/{run.project}/{run.name}/{file.name}")
    address = f"{base_url}/_files/{path}"
    content = file.content or b""
    return {
        "id": f"{run.id}/{file.name}",
        "name": file.name,
        "url": address,
        "direct_url": address,
        "upload_url": address,
        "upload_headers": [],
        "size_bytes": len(content),
        "mimetype": mimetypes.guess_type(file.name)[0],
        "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
        "updated_at": file.updated_at,
    }


@run_type.field("wandbConfig")
def _wandb_config(run: Run, _: Info, keys: Sequence[str] | None = None) -> dict[str, Any]:
    internal = run.config.get("_wandb", {}).get("value", {})
    return {key: value for key, value in internal.items() if keys is None or key in keys}


@run_type.field("history")
def _history(
    run: Run, _: Info, min_step: int = 0, max_step: int | None = None, samples: int | None = None
) -> list[str]:
    rows = [row for row in run.history() if row["_step"] >= min_step and (max_step is None or row["_step"] < max_step)]
    return [json.dumps(row) for row in _sampled(rows, samples)]


@run_type.field("sampledHistory")
def _sampled_history(run: Run, _: Info, specs: Sequence[Mapping[str, Any]]) -> list[Any]:
    return [_rows(run, spec.get("keys"), spec.get("samples")) for spec in specs]


@run_type.field("parquetHistory")
def _parquet_history(run: Run, _: Info, live_keys: Sequence[str]) -> dict[str, Any]:
    return {"parquet_urls": [], "live_data": _rows(run, live_keys, None)}


@run_type.field("historyKeys")
def _history_keys(run: Run, _: Info) -> dict[str, Any]:
    rows = run.history()
    counts = Counter((key, _kind(value)) for row in rows for key, value in row.items())
    keys: dict[str, Any] = {}
    for (key, kind), count in counts.items():
        keys.setdefault(key, {"typeCounts": []})["typeCounts"].append({"type": kind, "count": count})
    return {"keys": keys, "lastStep": rows[-1]["_step"] if rows else 0, "sets": []}


@run_type.field("events")
def _events(run: Run, _: Info, samples: int | None = None) -> list[str]:
    return _sampled(run.lines(EVENTS), samples)


@run_type.field("files")
def _files(
    run: Run,
    info: Info,
    names: Sequence[str] | None = None,
    pattern: str | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    if pattern:
        raise invalid("the local W&B finds files by name only, not by pattern")
    files = [file for file in run.files.values() if not names or file.name in names]
    return page([file_node(run, file, info.context.base_url) for file in files], first, after)


def _kind(value: object) -> str:
    return "number" if isinstance(value, int | float) else "string" if isinstance(value, str) else "map"


def _rows(run: Run, keys: Sequence[str] | None, samples: int | None) -> list[dict[str, Any]]:
    """Return the steps that have all of ``keys``, with only those keys, or everything without keys."""
    rows = run.history()
    if keys:
        rows = [{key: row[key] for key in keys} for row in rows if row.keys() >= set(keys)]
    return _sampled(rows, samples)


def _sampled(rows: Sequence[Any], samples: int | None) -> list[Any]:
    if samples is None or samples >= len(rows):
        return list(rows)
    return [rows[number * len(rows) // samples] for number in range(samples)]
