"""The environment of a job's containers, from which W&B's client learns which run it is; called by ``build``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vertex_launch.codes import Code
from vertex_launch.job.arguments import escape, unescape
from vertex_launch.job.findings import Findings
from vertex_launch.job.run_spec import RunSpec
from vertex_launch.model import Item
from vertex_launch.settings.config import Settings

LONGEST = 32_670
"""Characters of one value, as in wandb.sdk.launch.utils.MAX_ENV_LENGTHS; longer JSON is split into ``_0``, ``_1``, …."""
MOST = 100
"""Variables that Vertex AI takes in a container."""

BASE_URL = "WANDB_BASE_URL"
API_KEY = "WANDB_API_KEY"
QUEUE = "WANDB_LAUNCH_QUEUE_NAME"
QUEUE_ENTITY = "WANDB_LAUNCH_QUEUE_ENTITY"
ITEM = "WANDB_LAUNCH_TRACE_ID"
ENTITY = "WANDB_ENTITY"
PROJECT = "WANDB_PROJECT"
RUN = "WANDB_RUN_ID"
SWEEP = "WANDB_SWEEP_ID"
RESUME = "WANDB_RESUME"
PLAN = "VERTEX_LAUNCH_PLAN"
"""The plan that the bootstrap (``vertex_launch.job.bootstrap``) follows in the container."""

# Users choose how a run is shown, where its image came from and what a second start does. They do not choose which run it is,
# whose it is and what it was launched with: WANDB_USERNAME would let a job report in another person's name.
_USERS_CHOICE = frozenset({"WANDB_NAME", "WANDB_DOCKER", RESUME})
_RESERVED = re.compile(
    rf"WANDB_(BASE_URL|API_KEY|PROJECT|ENTITY|RUN_ID|SWEEP_ID|ARTIFACTS|LAUNCH(_.*)?|CONFIG(_\d+)?)|{PLAN}", re.DOTALL
)


def official(item: Item, spec: RunSpec, settings: Settings, *, entity: str, api_key: str, image: str) -> dict[str, str]:
    """Return the official agent's variables in its order (``LaunchProject.get_env_vars_dict``), escaped.

    ``entity`` owns the queue. ``api_key`` is empty if the key must not be in the spec, ``image`` if the code is not in the
    image.
    """
    # A restarted container gets the same run id. Without WANDB_RESUME its run would start over and lose its history. On a
    # first start `allow` does nothing, even for a run that the server created before (for a sweep or an ack): the client
    # resumes only what has been initialized. It is as sound for the run of a sweep: neither the client's settings nor
    # wandb.init connect `resume` with WANDB_SWEEP_ID, the run keeps its place in the sweep by its id, and a lost history would
    # mislead the sweep's optimizer. (The official agent also resumes the runs of sweeps. It then drops the sweep id only to
    # pass its own check of the sweep's state.) A program that forks or rewinds runs cannot be resumed: `disable_retries`.
    resume = spec.resume_count > 0 or not spec.arguments["disable_retries"]
    artifacts = {"_wandb_job": spec.job} if spec.job else {}
    variables = {
        BASE_URL: settings.base_url,
        API_KEY: spec.api_key or api_key,
        PROJECT: spec.run.project,
        ENTITY: spec.run.entity,
        "WANDB_LAUNCH": "True",
        RUN: spec.run.id,
        "WANDB_DOCKER": image,
        "WANDB_NAME": spec.name,
        "WANDB_USERNAME": "" if spec.api_key else spec.author,
        SWEEP: spec.sweep_id,
        RESUME: "allow" if resume else "",
        QUEUE: item.queue,
        QUEUE_ENTITY: entity,
        ITEM: item.id,
    }
    return {
        **{name: escape(value) for name, value in variables.items() if value},
        **_split("WANDB_CONFIG", json.dumps(spec.run_config)),
        **_split("WANDB_LAUNCH_FILE_OVERRIDES", json.dumps(spec.files)),
        "WANDB_ARTIFACTS": escape(json.dumps({**artifacts, **spec.artifacts})),
    }


def merged(
    own: Sequence[Mapping[str, str]], official: Mapping[str, str], place: str, findings: Findings
) -> list[dict[str, str]]:
    """Return a container's variables, one value per name: the user's own first, then the official ones.

    If the user sets a name twice, the last value counts, as it does for the container runtime.
    """
    last = {variable["name"]: index for index, variable in enumerate(own)}
    kept: dict[str, str] = {}
    for index, variable in enumerate(own):
        name, value = variable["name"], variable.get("value", "")
        if last[name] != index:
            findings.warn(f"{place}: {name} is set more than once. The last value counts.", Code.SPEC_ENV_IGNORED)
        elif is_reserved(name) or (name in official and name not in _USERS_CHOICE):
            found = (
                f"{place}: {name} identifies the run and is set automatically. The value in the run spec is ignored."
            )
            findings.warn(found, Code.SPEC_ENV_IGNORED)
        else:
            kept[name] = value
    added = {name: value for name, value in official.items() if name not in kept}
    total = len(kept) + len(added)
    if total > MOST:
        parts = sum(1 for name in added if re.search(r"_\d+$", name))
        findings.wrong(
            place,
            f"the container needs {total} environment variables, but Vertex AI takes {MOST}: {len(kept)} are set here and "
            f"{len(added)} are W&B's ({parts} for parts of a long run_config or files override)",
            "Set fewer variables, or pass large parts of overrides.run_config and overrides.files as an artifact",
            Code.SPEC_ENV_LIMIT,
        )
    return [{"name": name, "value": value} for name, value in (kept | added).items()]


def is_reserved(name: str) -> bool:
    """Return whether a variable is always set here, whatever a run spec says."""
    return bool(_RESERVED.fullmatch(name))


def read(variables: Iterable[Any]) -> dict[str, str]:
    """Return the variables of a job's container as the program in it sees them."""
    return {variable.name: unescape(variable.value) for variable in variables}


def _split(name: str, text: str) -> dict[str, str]:
    """Return text in as many variables as needed for none to be longer than allowed once it is escaped."""
    parts, done = [], 0
    while done < len(text):
        part = text[done : done + LONGEST]
        while (excess := len(escape(part)) - LONGEST) > 0:
            part = part[: -max(1, excess // 3)]  # a character is worth three at most
        parts.append(escape(part))
        done += len(part)
    return {name: parts[0]} if len(parts) == 1 else {f"{name}_{index}": part for index, part in enumerate(parts)}
