"""Step 3 of a pass: what is open in the ledger against what Vertex AI and W&B say now.

Called by ``dispatcher`` while it holds the record. It reads the objects again and never trusts a memory of their state, so
that a pass finds the side effects of one that died. Each action stands on its own: one that fails stops nobody else.

How an ended job is told to W&B is settled here, too, once job states come back; until then an ended job frees its slot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from vertex_launch.config import Settings
from vertex_launch.errors import Unavailable
from vertex_launch.ledger import Ledger, OpenJob, Stage
from vertex_launch.log import LOGGER
from vertex_launch.model import ItemView, ManagedJob, PassReport
from vertex_launch.services import Queue, Vertex

GETS_AT_ONCE = 16
MOST_GETS = 200
"""Open jobs that one pass gets one by one; the others hold their slots until a later one."""


class Reconciler:
    """Brings the ledger up to date and ends the jobs that must not live."""

    def __init__(self, settings: Settings, vertex: Vertex, queue: Queue, entity: str) -> None:
        self._settings = settings
        self._vertex = vertex
        self._queue = queue
        self._entity = entity

    def reconcile(
        self,
        ledger: Ledger,
        listed: Sequence[ManagedJob],
        items: Mapping[str, ItemView],
        now: float,
        report: PassReport,
    ) -> list[ManagedJob]:
        """Apply what ``listed`` (jobs of the deployment, from all regions) and ``items`` (of open jobs) say.

        ``listed`` holds active jobs and, where the ledger was lost, recently ended ones, whose items may not be acked.
        Gives the active jobs: those listed, and those that only the ledger knows and a get confirms.
        """
        seen = {job.name: job for job in listed}
        self._follow_unlisted(ledger, seen, now)
        by_item: defaultdict[str, list[ManagedJob]] = defaultdict(list)
        for job in seen.values():
            by_item[job.item].append(job)
        for jobs in by_item.values():
            self._choose(ledger, jobs, now, report)
        self._confirm_acks(ledger, items, now, report)
        return [job for job in seen.values() if not job.ended]

    def _follow_unlisted(self, ledger: Ledger, seen: dict[str, ManagedJob], now: float) -> None:
        """Follow open jobs that the lists lack: they have ended, are gone, or the list lags behind."""
        shown = {job.item for job in seen.values()}
        for entry in list(ledger.at(Stage.INTENDED)):
            if entry.item not in shown and now - entry.since > self._settings.timeouts.intent_grace:
                LOGGER.info("no job came of the create for item %s", entry.item, extra={"item": entry.item})
                ledger.close(entry.item)
        unlisted = [one for one in ledger.at(Stage.CREATED, Stage.ACKED) if one.job not in seen and not one.ended]
        if unlisted:
            with ThreadPoolExecutor(GETS_AT_ONCE) as pool:
                jobs = list(pool.map(self._get, unlisted[:MOST_GETS]))
            for entry, job in zip(unlisted, jobs, strict=False):
                if isinstance(job, ManagedJob):
                    seen[job.name] = job
                elif job is None:
                    LOGGER.warning("job %s of item %s was deleted", entry.job, entry.item, extra={"item": entry.item})
                    ledger.close(entry.item)

    def _get(self, entry: OpenJob) -> ManagedJob | Unavailable | None:
        """Get an open job: None when it is gone, an error when nobody knows."""
        try:
            return self._vertex.get(entry.job)
        except Unavailable as error:
            LOGGER.warning("cannot look up job %s: %s", entry.job, error, extra={"job": entry.job})
            return error

    def _choose(self, ledger: Ledger, jobs: list[ManagedJob], now: float, report: PassReport) -> None:
        """Make one job the item's: the newest attempt's oldest that nobody ends. Its active twins are cancelled."""
        living = [job for job in jobs if not job.cancelling and not job.ended]
        if not living and jobs[0].item not in ledger.open and not any(job.ended for job in jobs):
            return  # being cancelled because it must not live: it holds its slot until then, and is nobody's job
        ours = min(living or jobs, key=lambda job: (job.ended, -job.attempt, job.created, job.name))
        entry = ledger.found(ours, now)
        if ours.ended and entry.stage is Stage.ACKED:
            ledger.close(ours.item)
        for twin in living:
            if twin is not ours:
                self._cancel(twin.item, twin.name, f"job {ours.name} serves the same item", report)

    def _confirm_acks(self, ledger: Ledger, items: Mapping[str, ItemView], now: float, report: PassReport) -> None:
        """Compare jobs whose item was not acked, as far as we know, with the item itself."""
        waiting = list(ledger.at(Stage.CREATED))
        unasked = {entry.item: entry.queue for entry in waiting if entry.item not in items}
        known = {**items, **self.look_up(unasked)}
        for entry in waiting:
            if entry.item in known:
                self.judge_claim(ledger, entry, known[entry.item], report)
            elif entry.ended and now - entry.since > self._settings.give_up_after:
                ledger.close(entry.item)  # its item is nowhere to be found: it was deleted

    def look_up(self, wanted: Mapping[str, str]) -> Mapping[str, ItemView]:
        """Look up items; what cannot be known now is left out and stays as it is."""
        if not wanted:
            return {}
        try:
            return self._queue.items(self._entity, wanted)
        except Unavailable as error:
            LOGGER.warning("cannot look up %d items: %s", len(wanted), error)
            return {}

    def judge_claim(self, ledger: Ledger, entry: OpenJob, item: ItemView, report: PassReport) -> None:
        """Decide what a job whose ack is not sure may do, by its item as W&B shows it.

        Only positive evidence ends a job: the item is claimed by another run, or has failed. Anything else leaves it alone.
        """
        if item.state == "CLAIMED" and item.run == entry.run:
            ledger.acked(entry.item)
        elif item.state == "FAILED" or (item.state == "CLAIMED" and item.run):
            why = "its item has failed" if item.state == "FAILED" else f"its item is claimed by run {item.run}"
            if entry.ended or self._cancel(entry.item, entry.job, why, report):
                ledger.close(entry.item)

    def _cancel(self, item: str, name: str, why: str, report: PassReport) -> bool:
        """Cancel a job and report it; says whether Vertex AI took the request."""
        try:
            self._vertex.cancel(name)
        except Unavailable as error:
            LOGGER.warning("cannot cancel job %s: %s", name, error, extra={"job": name, "item": item})
            return False
        LOGGER.info("cancelled job %s: %s", name, why, extra={"job": name, "item": item})
        report.cancelled.append({"item": item, "job": name, "reason": why})
        return True
