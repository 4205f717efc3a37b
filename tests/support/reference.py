"""The configuration reference, made from the settings' own descriptions: ``make docs`` writes it to ``PAGE``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from vertex_launch.preflight.credentials import Endpoints
from vertex_launch.settings.config import (
    AgentSettings,
    Batches,
    DeploymentSettings,
    GitHost,
    Policy,
    Region,
    Scheduler,
    Settings,
    Sweeps,
    Timeouts,
)
from vertex_launch.settings.sources import LAUNCH_FILE, STAGING, VARIABLES, VERTEX_FILE

PAGE = Path(__file__).parents[2] / "docs/configuration.md"

HEAD = f"""\
# Configuration reference

<!-- `make docs` writes this page from the descriptions in vertex_launch/settings/config.py. -->

A deployment reads two files beside `main.py`, and environment variables that override some of their settings:

* [`{LAUNCH_FILE}`](#{LAUNCH_FILE.replace(".", "")}) is the file of the official W&B Launch agent: which queues to serve, and how many jobs.
* [`{VERTEX_FILE}`](#{VERTEX_FILE.replace(".", "")}) has the settings that the official file does not have. It is optional if the environment sets what is required.
* [Environment variables](#environment-variables) win over both files. `infra/deploy.sh` and Terraform set most of them. An empty one counts as unset.

The smallest `{LAUNCH_FILE}` names one queue:

```yaml
entity: my-team
queues: [my-queue]
```

Both files at the root of the repository hold `YOUR-…` placeholders, and every optional setting as a comment. A placeholder that no variable overrides is an error.
Every problem is reported at once, with its place, a remedy and a [code](troubleshooting.md). `python -m vertex_launch check` reads the configuration as the functions do.
Times are in seconds.
"""

OTHERS = {
    "LAUNCH_CONFIG": f"path of `{LAUNCH_FILE}`. Default: beside `main.py`.",
    "VERTEX_LAUNCH_CONFIG": f"path of `{VERTEX_FILE}`. Default: beside `main.py`.",
    STAGING: "comma list of the regions' `staging_bucket`, in the order of the regions. An entry may be empty. "
    "Example: `gs://one,gs://two`.",
    "STORAGE_EMULATOR_HOST": "address of another Cloud Storage, as Google's client reads it.",
    "PUBSUB_EMULATOR_HOST": "address of another Pub/Sub, as Google's client reads it.",
}
"""Variables that override no setting of their own name."""


def render() -> str:
    """Return the page."""
    parts = [
        HEAD,
        *_section(LAUNCH_FILE, AgentSettings),
        *_section(VERTEX_FILE, DeploymentSettings),
        *_section("regions", Region, "Each entry of `regions` has these settings."),
        *_section("policy", Policy, "A list that is absent allows everything, an empty one allows nothing."),
        *_section("git_hosts", GitHost, "Each entry of `git_hosts` has these settings."),
        *_section("sweeps", Sweeps),
        *_section(
            "scheduler",
            Scheduler,
            "The scheduler of a sweep runs there if it names no resource, as `wandb launch-sweep` lets it do by itself.",
        ),
        *_section("timeouts", Timeouts),
        *_section("batches", Batches),
        *_environment(),
    ]
    return "\n".join(parts)


def _section(title: str, section: type[BaseModel], about: str = "") -> Iterator[str]:
    """Return a table of settings, the required ones first."""
    yield f"{'##' if '.' in title else '###'} `{title}`\n"
    if about:
        yield f"{about}\n"
    by_setting = {setting: variable for variable, setting in VARIABLES.items()}
    has_variables = section in (AgentSettings, DeploymentSettings)
    head = ["Setting", "Meaning", "Type", "Default", *(["Variable"] if has_variables else [])]
    yield f"| {' | '.join(head)} |\n|{'---|' * len(head)}"
    schema = section.model_json_schema()
    for name, field in sorted(section.model_fields.items(), key=lambda item: not item[1].is_required()):
        kind = _kind(schema["properties"][name], schema.get("$defs", {}))
        cells = [f"`{name}`", _meaning(field), kind, _default(field)]
        if has_variables:
            cells.append(f"`{by_setting[name]}`" if name in by_setting else "")
        yield f"| {' | '.join(cells)} |"
    yield ""


def _environment() -> Iterator[str]:
    yield "## Environment variables\n"
    yield "The functions' service account is their only credential; no variable holds a key.\n"
    yield "| Variable | Meaning |\n|---|---|"
    for variable, setting in VARIABLES.items():
        field = Settings.model_fields[setting]
        if setting == "regions":
            meaning = f"Comma list that overrides the names of `regions`. A region keeps its `staging_bucket` from the file, unless `{STAGING}` is set."
        elif setting in DeploymentSettings.model_fields or setting in AgentSettings.model_fields:
            meaning = f"{_sentence(field).partition('. ')[0].removesuffix('.')}. Overrides `{setting}`."
        else:
            meaning = f"{_sentence(field)} With `http://` it is called in plaintext and without credentials."
        yield f"| `{variable}` | {meaning} |"
    for variable, meaning in OTHERS.items():
        yield f"| `{variable}` | {meaning[0].upper()}{meaning[1:]} |"
    for endpoint in fields(Endpoints):
        yield f"| `{endpoint.name.upper()}_ENDPOINT` | Address to use instead of `{endpoint.default}`. Only the preflight reads it. |"
    yield ""


def _sentence(field: FieldInfo) -> str:
    assert field.description, "a setting has no description"
    text = " ".join(field.description.split())
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _meaning(field: FieldInfo) -> str:
    return f"{_sentence(field)} Example: `{field.examples[0]}`." if field.examples else _sentence(field)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel) or field.default in (None, (), {}):
        return ""
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"


def _kind(schema: Mapping[str, Any], sections: Mapping[str, Any]) -> str:
    """Return the type of a JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(_kind(one, sections) for one in schema["anyOf"] if one != {"type": "null"})
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2].lower()
        return "mapping" if name == "environment" else f"[{name}](#{'regions' if name == 'region' else name})"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    match schema["type"]:
        case "array":
            return f"list of {_kind(schema['items'], sections).replace('[region]', '[regions]')}"
        case "object":
            return "mapping"
        case "boolean":
            return "`true` or `false`"
        case "string":
            return "text"
        case kind:
            return f"{'whole number' if kind == 'integer' else 'number'}{_range(schema)}"


def _range(schema: Mapping[str, Any]) -> str:
    if "exclusiveMinimum" in schema:
        return f" above {schema['exclusiveMinimum']:g}"
    if "maximum" in schema:
        return f", {schema['minimum']:g} to {schema['maximum']:g}"
    return f", at least {schema['minimum']:g}" if "minimum" in schema else ""


if __name__ == "__main__":
    PAGE.write_text(render())
