"""A dry run: what a pass would see, and the CustomJob that a posted run spec would become. Changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from vertex_launch import addresses
from vertex_launch.dispatch.look import Seen, look
from vertex_launch.dispatch.ports import Services
from vertex_launch.dispatch.prepare import build_request, checked, prepare
from vertex_launch.dispatch.reconcile import active_jobs
from vertex_launch.errors import ItemDeferred, ItemRejected
from vertex_launch.job import readback, run_spec
from vertex_launch.model import Item, Kind, ManagedJob, PassReport, PassRequest
from vertex_launch.settings.config import Settings
from vertex_launch.state.ledger import Ledger


def preview(settings: Settings, services: Services, request: PassRequest) -> PassReport:
    """Look, and report what was seen. Raises Unavailable."""
    started = services.clock()
    ledger = services.record.read(services.clock).ledger or Ledger()
    ledger.only_planned()
    ledger.move(addresses.server(settings.base_url))
    services.pace.begin(ledger.operations, ledger.refused(started))
    queues = request.queues or settings.queues
    seen = look(settings, services, ledger, queues, started)
    active = active_jobs(ledger, seen)
    report = PassReport(services.new_pass_id(), dry_run=True, notices=[str(notice) for notice in seen.notices])
    report.count_slots(settings.max_jobs, ledger.slots_used(active)[Kind.JOB])
    report.shown.update(active_jobs=_jobs(active), queued=_queued(seen))
    if request.run_spec is not None:
        _show_custom_job(settings, services, Item("dry-run", queues[0], request.run_spec), seen.entity, report)
    report.took_ms = round(1000 * (services.clock() - started))
    return report


def _jobs(active: Sequence[ManagedJob]) -> list[dict[str, str]]:
    return [
        {"item": job.item, "queue": job.queue, "run": str(job.run), "job": job.name, "state": job.state}
        for job in active
    ]


def _queued(seen: Seen) -> dict[str, Any]:
    return {name: {"pending": list(one.pending), "complete": one.complete} for name, one in seen.wandb.queued.items()}


def _show_custom_job(settings: Settings, services: Services, item: Item, entity: str, report: PassReport) -> None:
    """Add the CustomJob of the item, or why it cannot start; the API key is not in it."""
    services.redact.add(run_spec.own_key(item))
    now = datetime.fromtimestamp(services.clock(), UTC)
    prepared, redact = prepare(settings, services, entity, [item]), services.redact
    try:
        build = partial(build_request, item, prepared, settings, api_key=redact.MARK, now=now, redact=redact)
        _, request = checked(build, "the posted run spec")
    except (ItemRejected, ItemDeferred) as error:
        message = error.message
        row = {"item": item.id, "queue": item.queue, "code": str(message.code), "reason": message.text}
        report.rejected.append(row)
    else:
        report.shown["custom_job"] = readback.as_json(request)
