"""The service account that a job runs as. Pure; called by ``build`` and by a pass before a retry.

A job that names none runs as Google's custom code agent of the project, which reads and writes much of the project
(``CustomJobSpec.service_account``). So a job has an account of its own, unless the settings name that agent.
"""

from __future__ import annotations

import re

from vertex_launch.codes import Code
from vertex_launch.job.findings import Findings
from vertex_launch.settings.config import Settings

_AGENT = re.compile(r".+@gcp-sa-[a-z0-9-]+\.iam\.gserviceaccount\.com", re.IGNORECASE)
"""An agent of Google's."""


def choose(named: str, place: str, settings: Settings, findings: Findings) -> str:
    """Return the account of a job whose run spec names this one or, if empty, none.

    An empty text lets Vertex AI run the job as Google's custom code agent, if the settings name that agent.
    """
    default, named = settings.jobs_account or settings.custom_code_agent, named.strip()
    chosen = named or default
    if not chosen:
        found = "the run spec names no service account, and this deployment has none for its jobs"
        remedy = f"Set it to the account that the job runs as, or set {settings.where('jobs_account')}"
        findings.wrong(place, found, remedy, Code.SPEC_NO_ACCOUNT)
    elif _AGENT.fullmatch(chosen) and chosen not in (default, *(settings.policy.service_accounts or ())):
        found = f"{chosen} is one of Google's own agents, which reach far more than a job needs"
        remedy = f"Name another account, or have {settings.where('jobs_account')} changed to it"
        findings.wrong(place, found, remedy, Code.POLICY_SERVICE_ACCOUNT)
    return "" if settings.is_custom_code_agent(chosen) else chosen
