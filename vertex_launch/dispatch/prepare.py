"""Step 7 of a pass: what an item needs to be known before its CustomJob can be made, and the CustomJob.

What W&B has to be asked for (job artifacts, sweeps) is asked for all items of a round at once. Called by ``dispatcher`` and
``preview``.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial

from google.cloud.aiplatform_v1.types import CustomJob

from vertex_launch.dispatch.ports import Services
from vertex_launch.errors import ItemDeferred, ItemRejected, Unavailable
from vertex_launch.job import custom_job, environment, job_source, policy
from vertex_launch.job.custom_job import JobRequest
from vertex_launch.job.job_source import JobSource
from vertex_launch.log import LOGGER
from vertex_launch.model import Item, Kind, RunId, RunSpec
from vertex_launch.settings.config import Settings

AT_ONCE = 8
"""Job artifacts looked up side by side."""
GOING_ON = ("RUNNING", "PAUSED")
"""States of a sweep in which its runs start, as in the official agent."""


class Preparer:
    """Makes CustomJobs of the items of ``entity``'s queues; ``look`` at items first."""

    def __init__(self, settings: Settings, services: Services, entity: str) -> None:
        self._settings = settings
        self._services = services
        self._entity = entity
        self._specs: dict[str, RunSpec | ItemRejected] = {}
        self._sources: dict[str, JobSource | ItemRejected | ItemDeferred] = {}
        self._sweeps: dict[RunId, str] = {}

    def look(self, items: Sequence[Item]) -> None:
        """Read run specs, and ask W&B about the job artifacts and the sweeps that they name."""
        for item in items:
            try:
                self._specs[item.id] = custom_job.parse(item)
            except ItemRejected as error:
                self._specs[item.id] = error
        specs = [spec for item in items if isinstance(spec := self._specs[item.id], RunSpec)]
        names = {self._job(spec) for spec in specs if _is_described(spec)} - self._sources.keys()
        found = self._services.together([partial(self._find, name) for name in sorted(names)], AT_ONCE)
        self._sources.update(zip(sorted(names), found, strict=True))
        sweeps = {self._sweep(spec) for spec in specs if _is_of_sweep(spec)} - self._sweeps.keys()
        self._sweeps.update(self._ask_for_sweeps(sorted(sweeps, key=str)))

    def build(self, item: Item, *, api_key: str, now: datetime) -> tuple[RunSpec, JobRequest]:
        """Make the CustomJob of an item and hold it against the policy. Raises ItemRejected, ItemDeferred."""
        spec = self._specs[item.id]
        if isinstance(spec, ItemRejected):
            raise spec
        if _is_of_sweep(spec):
            self._check_sweep(self._sweep(spec))
        source = self._sources[self._job(spec)] if _is_described(spec) else None
        if isinstance(source, ItemRejected | ItemDeferred):
            raise source
        request = build_job(item, spec, self._settings, entity=self._entity, api_key=api_key, now=now, source=source)
        if self._settings.api_key_delivery == "secret" and self._shows_key(item, request):
            raise ItemRejected(
                "A W&B API key stands in the run spec or in the queue's config, from where it would come into the job's spec, "
                "and this deployment keeps keys out of it (vertex-launch.yaml: api_key_delivery). Take it out: the job is "
                f"given {environment.API_KEY} without it."
            )
        return spec, request

    def _shows_key(self, item: Item, request: JobRequest) -> bool:
        """Tell whether a key stands in what was asked for, where values are whole, or in the job, where macros are filled."""
        spec = json.loads(item.spec) if isinstance(item.spec, str) else item.spec
        texts = [spec, CustomJob.to_dict(request.custom_job)]
        return bool(self._services.redact.json(texts) != texts)

    # Job artifacts

    def _job(self, spec: RunSpec) -> str:
        """Give the full name of an item's job: without them it is the entity's and the project's that the run belongs to."""
        parts = spec.job.split("/")
        owner = [spec.entity or self._entity, spec.project]
        name = "/".join([*owner[: max(0, 3 - len(parts))], *parts])
        return name if ":" in parts[-1] else f"{name}:latest"

    def _find(self, name: str) -> JobSource | ItemRejected | ItemDeferred:
        try:
            return job_source.read(self._services.jobs.find(name))
        except ItemRejected as error:
            return error
        except Unavailable as error:
            LOGGER.warning("cannot look up job %s: %s", name, error)
            return ItemDeferred(f"W&B does not show job {name} just now; it is asked again")

    # Sweeps

    def _sweep(self, spec: RunSpec) -> RunId:
        return RunId(spec.entity or self._entity, spec.project, spec.sweep_id)

    def _ask_for_sweeps(self, sweeps: Sequence[RunId]) -> dict[RunId, str]:
        try:
            return dict(self._services.queue.sweeps(sweeps)) if sweeps else {}
        except Unavailable as error:
            LOGGER.warning("cannot look up %d sweeps: %s", len(sweeps), error)
            return {}

    def _check_sweep(self, sweep: RunId) -> None:
        state = self._sweeps.get(sweep)
        if state is None:
            raise ItemDeferred(f"W&B does not show sweep {sweep} just now; it is asked again")
        if state == "PENDING":
            raise ItemDeferred(f"sweep {sweep} has not begun; its runs start when its scheduler runs")
        if not state:
            raise ItemRejected(f"sweep_id: there is no sweep {sweep}. Launch the run without it, or the sweep anew.")
        if state not in GOING_ON:
            raise ItemRejected(
                f"sweep_id: sweep {sweep} is {state}, and its runs start only while it is {' or '.join(GOING_ON)}. Resume the "
                "sweep, and launch the run again if it is still wanted."
            )


def build_job(
    item: Item,
    spec: RunSpec,
    settings: Settings,
    *,
    entity: str,
    api_key: str,
    now: datetime,
    source: JobSource | None = None,
) -> JobRequest:
    """Make the CustomJob of an item from a queue of ``entity`` and hold it against the policy. Raises ItemRejected."""
    request = custom_job.build(item, spec, settings, entity=entity, api_key=api_key, now=now, source=source)
    if broken := policy.violations(request.custom_job, spec, settings):
        raise ItemRejected(" ".join(broken))
    return request


def _is_described(spec: RunSpec) -> bool:
    """Tell whether a job artifact describes what runs; of an item that names both, the image counts."""
    return bool(spec.job) and not spec.image


def _is_of_sweep(spec: RunSpec) -> bool:
    return bool(spec.sweep_id) and spec.kind is Kind.JOB
