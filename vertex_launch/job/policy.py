"""What a run spec may ask for under the deployment's policy. Pure; called by ``build`` and ``retry``.

The finished CustomJob is checked, so neither macros nor alternative argument locations can bypass the policy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from vertex_launch.codes import Code
from vertex_launch.job import powers
from vertex_launch.job.findings import Findings
from vertex_launch.job.powers import Ask, Asker
from vertex_launch.problems import shown
from vertex_launch.settings.config import Settings, bucket_of

if TYPE_CHECKING:
    from google.cloud.aiplatform_v1.types import CustomJob

_CLIMBS = re.compile(r"(^|[/:])\.\.?(/|$)")

_CODES = {
    "images": Code.POLICY_IMAGE,
    "service_accounts": Code.POLICY_SERVICE_ACCOUNT,
    "machine_types": Code.POLICY_MACHINE_TYPE,
    "networks": Code.POLICY_NETWORK,
    "accelerators": Code.POLICY_ACCELERATOR,
    "max_replicas": Code.POLICY_REPLICAS,
}


def check(job: CustomJob, spec: Asker, settings: Settings, findings: Findings) -> None:
    """Report everything that the job asks for but the policy does not allow, at its place in the run spec."""
    strict = settings.policy.unlisted == "refuse"
    for place, path in powers.paths(job, spec.arguments):
        if bucket_of(path) == bucket_of(settings.state_bucket):  # whatever the policy says
            found = f"{shown(path)} is in the bucket of this deployment's record, which no job may use"
            findings.wrong(place, found, "Use another bucket", Code.POLICY_POWER)
    for ask in powers.asked(job, spec, settings):
        if getattr(settings.policy, ask.key) is not None:
            _check_listed(ask, settings, findings)
        elif strict:
            where = settings.where("policy", ask.key)
            found = f"{_words(ask)} is not allowed, because the policy has no line for it (unlisted: refuse)"
            remedy = f"Remove it, or have {where} set: {ask.key}: {_line(ask)}"
            findings.wrong(ask.place, found, remedy, Code.POLICY_UNLISTED)
    for field in powers.unknown(job) if strict else ():
        remedy = f"Remove it, or have {settings.where('policy', 'unlisted')} changed to allow"
        findings.wrong(field, "the policy does not know this field (unlisted: refuse)", remedy, Code.POLICY_UNLISTED)


def _check_listed(ask: Ask, settings: Settings, findings: Findings) -> None:
    allowed, code = getattr(settings.policy, ask.key), _CODES.get(ask.key, Code.POLICY_POWER)
    match ask.value:
        case bool():
            fits, choices = allowed, list[str]()
        case int():
            fits, choices = ask.value <= allowed, [f"at most {allowed}"]
        case str():
            fits, choices = _matches(ask.value, allowed), list(allowed)
        case kind, count:
            fits, choices = count <= allowed.get(kind, -1), [f"up to {most} {name}" for name, most in allowed.items()]
    if not fits:
        use = f"Use {' or '.join(choices)}" if choices else "Remove it"
        remedy = f"{use}, or have {settings.where('policy', ask.key)} changed"
        findings.wrong(ask.place, f"{_words(ask)} is not allowed", remedy, code)


def _words(ask: Ask) -> str:
    match ask.value:
        case "":
            return f"no {ask.noun}"
        case bool():
            return f"this {ask.noun}"
        case kind, count:
            return f"{count} {kind} per replica"
        case value:
            return f"{ask.noun} {value}"


def _line(ask: Ask) -> str:
    """Return the value of the policy that allows what was asked for."""
    match ask.value:
        case bool():
            return "true"
        case int():
            return str(ask.value)
        case str():
            return f"[{json.dumps(ask.value, ensure_ascii=False)}]"  # quoted: a value must not add to the list
        case kind, count:
            return f"{{{kind}: {count}}}"


def _matches(value: str, patterns: Sequence[str]) -> bool:
    """Return whether a pattern fits the whole value, which is not empty; ``*`` and ``?`` are special, a bracket is not.

    No wildcard fits a path that climbs: ``server:/team/*`` must not reach ``server:/team/../other``.
    """
    if _CLIMBS.search(value):
        return value in patterns
    return bool(value) and any(fnmatchcase(value, pattern.replace("[", "[[]")) for pattern in patterns)
