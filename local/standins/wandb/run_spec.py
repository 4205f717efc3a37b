"""How the server changes a pushed run spec: it merges the queue configuration and replaces template variables. Pure."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from local.standins.wandb.errors import invalid

SCHEDULER_URI = "placeholder-uri-scheduler"
"""The ``uri`` of the item that starts a sweep's scheduler."""

PLACEHOLDER = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}")

_TYPES: Mapping[str, tuple[type, ...]] = {"string": (str,), "integer": (int,), "number": (int, float)}


@dataclass(frozen=True)
class TemplateVariable:
    """A value that a person chooses at launch. ``schema`` has type, default, minimum, maximum, enum."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""


@dataclass(frozen=True)
class ResourceConfig:
    """A queue's default resource config. ``config`` is ``{"resource_args": {<resource>: {...}}}``."""

    id: str
    entity: str
    resource: str
    config: Mapping[str, Any]
    template_variables: Mapping[str, TemplateVariable] = field(default_factory=dict)


def template_variables(given: Mapping[str, Any]) -> dict[str, TemplateVariable]:
    """Parse template variables as clients send them: ``{name: {"schema": {...}, "description": "..."}}``.

    Raise Refused with every problem, such as an unknown type or a default that the schema forbids.
    """
    found = {}
    problems = []
    for name, variable in given.items():
        schema = variable.get("schema") if isinstance(variable, Mapping) else None
        if not isinstance(schema, Mapping) or schema.get("type") not in _TYPES:
            problems.append(f'template variable "{name}" has no schema with a type of {", ".join(_TYPES)}')
            continue
        if "default" in schema and (problem := _problem(name, schema["default"], schema)):
            problems.append(f"default of {problem}")
        found[name] = TemplateVariable(name, dict(schema), str(variable.get("description") or ""))
    if problems:
        raise invalid("; ".join(problems))
    return found


def resolve(
    run_spec: Mapping[str, Any], config: ResourceConfig | None, values: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the run spec for an agent: the queue's resource and resource args, overridden by the spec's own.

    Dictionaries are merged deeply. Lists and scalars of the spec replace the queue's. A string that is a single placeholder
    becomes the variable's value with its type. A sweep's scheduler can have another resource, and then gets none of the
    queue's args. Raise Refused with every problem of ``values``.
    """
    spec: dict[str, Any] = copy.deepcopy(dict(run_spec))
    elsewhere = spec.get("uri") == SCHEDULER_URI and spec.get("resource") not in (None, config and config.resource)
    if config is None or elsewhere:
        if values:
            raise invalid(f"the queue has no template variables, got {', '.join(sorted(values))}")
        return spec
    filled = _filled(config.template_variables, values or {})
    merged = _merged(config.config.get("resource_args") or {}, spec.get("resource_args") or {})
    spec["resource_args"] = _substituted(merged, filled)
    spec["resource"] = config.resource
    return spec


def _filled(variables: Mapping[str, TemplateVariable], values: Mapping[str, Any]) -> dict[str, Any]:
    problems = [f'the queue has no template variable "{name}"' for name in values if name not in variables]
    filled = {}
    for name, variable in variables.items():
        if name in values:
            filled[name] = values[name]
            if problem := _problem(name, values[name], variable.schema):
                problems.append(problem)
        elif "default" in variable.schema:
            filled[name] = variable.schema["default"]
        else:
            problems.append(f'template variable "{name}" has no default and was not given')
    if problems:
        raise invalid("; ".join(problems))
    return filled


def _problem(name: str, value: object, schema: Mapping[str, Any]) -> str | None:
    shown = f'template variable "{name}": {value!r}'
    if isinstance(value, bool) or not isinstance(value, _TYPES[schema["type"]]):
        return f"{shown} is not of type {schema['type']}"
    if "enum" in schema and value not in schema["enum"]:
        return f"{shown} is not one of {schema['enum']}"
    if isinstance(value, int | float):
        if "minimum" in schema and value < schema["minimum"]:
            return f"{shown} is less than the minimum {schema['minimum']}"
        if "maximum" in schema and value > schema["maximum"]:
            return f"{shown} is more than the maximum {schema['maximum']}"
    return None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        ours = merged.get(key)
        both = isinstance(ours, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(ours, value) if both else value  # type: ignore[arg-type]
    return merged


def _substituted(value: Any, filled: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _substituted(item, filled) for key, item in value.items()}
    if isinstance(value, list):
        return [_substituted(item, filled) for item in value]
    if not isinstance(value, str):
        return value
    if (whole := PLACEHOLDER.fullmatch(value)) and whole[1] in filled:
        return filled[whole[1]]
    return PLACEHOLDER.sub(lambda found: str(filled.get(found[1], found[0])), value)
