"""The environment of a job's containers: how W&B's client inside learns which run it is; called by ``custom_job``.

Vertex AI expands values as Kubernetes does (``$(NAME)``, ``$$``); commands and arguments, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vertex_launch.job.findings import Findings
from vertex_launch.model import Item, RunId, RunSpec

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
"""What the bootstrap (``vertex_launch.job.bootstrap``) has to do in the container."""

# How a run is shown, where its image came from and what a second start does is the user's business. Who the run is, whose it
# is and what it was launched with is not: WANDB_USERNAME would let a job report in another person's name.
_USERS_CHOICE = frozenset({"WANDB_NAME", "WANDB_DOCKER", RESUME})
_RESERVED = re.compile(
    r"WANDB_(BASE_URL|API_KEY|PROJECT|ENTITY|RUN_ID|SWEEP_ID|ARTIFACTS|LAUNCH(_.*)?|CONFIG(_\d+)?)|VERTEX_LAUNCH_PLAN",
    re.DOTALL,
)


def escape(text: str) -> str:
    """Write text so that expansion gives it back unchanged.

    Expansion touches ``$(`` and ``$$`` only, so a run of dollars is doubled before an opening parenthesis and where it is
    longer than one; a lone dollar stays as it is.
    """
    return re.sub(r"\$+(?=\()|\${2,}", lambda dollars: dollars[0] * 2, text)


def unescape(text: str) -> str:
    """Give what expansion makes of escaped text."""
    return text.replace("$$", "$")


def official(
    item: Item, spec: RunSpec, run: RunId, *, base_url: str, entity: str, api_key: str, image: str, restarts: bool
) -> dict[str, str]:
    """Give the official agent's variables in its order (``LaunchProject.get_env_vars_dict``), escaped.

    ``entity`` owns the queue; ``api_key`` is empty where the key is not to be in the spec, ``image`` where the code is not the
    image's; ``restarts`` says whether Vertex AI may start the container again.
    """
    # A restarted container gets the same run id; without WANDB_RESUME its run would begin anew and lose its history. On a
    # first start `allow` does nothing, also for a run that the server made beforehand, as sweeps and acks do: the client
    # resumes only what has been initialised. For the run of a sweep it is as sound: neither the client's settings nor
    # wandb.init connect `resume` with WANDB_SWEEP_ID, the run keeps its place in the sweep by its id, and losing the history
    # would mislead the sweep's optimizer. (The official agent resumes sweeps' runs, too; it drops the sweep id then only to
    # get past its own check of the sweep's state.) A program that forks or rewinds runs cannot be resumed: `disable_retries`.
    resume = spec.resume_count > 0 or restarts
    artifacts = {"_wandb_job": spec.job} if spec.job else {}
    variables = {
        BASE_URL: base_url,
        API_KEY: spec.api_key or api_key,
        PROJECT: run.project,
        ENTITY: run.entity,
        "WANDB_LAUNCH": "True",
        RUN: run.id,
        "WANDB_DOCKER": image,
        "WANDB_NAME": spec.name,
        "WANDB_USERNAME": "" if spec.api_key else spec.author or "",
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
    """Give a container's variables, one value per name: the user's own first, then the official ones.

    Of a name that the user gives twice the last one counts, as it does for the container runtime.
    """
    last = {variable["name"]: index for index, variable in enumerate(own)}
    kept: dict[str, str] = {}
    for index, variable in enumerate(own):
        name, value = variable["name"], variable.get("value", "")
        if last[name] != index:
            findings.odd(f"{place}: {name} is given more than once; the last value counts.")
        elif _RESERVED.fullmatch(name) or (name in official and name not in _USERS_CHOICE):
            findings.odd(
                f"{place}: {name} says which run this is and is set for you; the value given here is not used."
            )
        else:
            kept[name] = value
    added = {name: value for name, value in official.items() if name not in kept}
    total = len(kept) + len(added)
    if total > MOST:
        parts = sum(1 for name in added if re.search(r"_\d+$", name))
        findings.wrong(
            place,
            f"the container needs {total} environment variables and Vertex AI takes {MOST}: {len(kept)} are given here and "
            f"W&B adds {len(added)}, {parts} of them parts of {LONGEST} characters of the run's config and files",
            "Give fewer variables, or pass what is large in overrides.run_config or overrides.files as an artifact",
        )
    return [{"name": name, "value": value} for name, value in (kept | added).items()]


def read(variables: Iterable[Any]) -> dict[str, str]:
    """Give the variables of a job's container as the program in it sees them, as far as they are ours."""
    return {variable.name: unescape(variable.value) for variable in variables}


def _split(name: str, text: str) -> dict[str, str]:
    parts = list(_parts(text))
    return {name: parts[0]} if len(parts) == 1 else {f"{name}_{index}": part for index, part in enumerate(parts)}


def _parts(text: str) -> Iterator[str]:
    """Cut text into parts that are no longer than allowed when escaped, each by itself as they are expanded."""
    while text:
        part = text[:LONGEST]
        while (excess := len(escape(part)) - LONGEST) > 0:
            part = part[: -max(1, excess // 3)]  # a character is worth three at most
        yield escape(part)
        text = text[len(part) :]
