"""A queue configuration, and the plainest item with which the preflight tests it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

IMAGE = "us-docker.pkg.dev/any-project/any-repository/any-image:latest"
"""A placeholder for the image that an item brings."""

_TEMPLATE = re.compile(r"\{\{\s*([\w.-]+)\s*\}\}")


@dataclass(frozen=True)
class QueueConfig:
    """A queue's default resource config: ``resource`` such as gcp-vertex, and the ``resource_args`` that each item gets.

    ``variables`` are the JSON schemas of its template variables by name.
    """

    resource: str
    resource_args: Mapping[str, Any]
    variables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def open_variables(self) -> list[str]:
        """Return the template variables whose values depend on the item."""
        return [name for name, schema in self.variables.items() if _likely(schema) is None]

    def likely_values(self) -> dict[str, Any]:
        """Return likely values of the other template variables: the default, else the first allowed value."""
        likely = {name: _likely(schema) for name, schema in self.variables.items()}
        return {name: value for name, value in likely.items() if value is not None}

    def item(self) -> dict[str, Any]:
        """Return the run spec of an item that brings only an image; open variables stay as they are."""
        return {
            "project": "preflight",
            "name": "preflight",
            "resource": self.resource,
            "resource_args": _filled(self.resource_args, self.likely_values()),
            "docker": {"docker_image": IMAGE},
        }


def _likely(schema: Mapping[str, Any]) -> Any:
    """Return a value that the schema of a template variable names, or None."""
    choices = schema.get("enum")
    several = choices if isinstance(choices, list) else []
    named = (schema.get("default"), *several, schema.get("minimum"), schema.get("maximum"))
    return next((value for value in named if value is not None), None)


def _filled(value: Any, values: Mapping[str, Any]) -> Any:
    """Fill in template variables as W&B does: a text that is only a variable gets the type of its value."""
    if isinstance(value, Mapping):
        return {key: _filled(one, values) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, values) for one in value]
    if not isinstance(value, str):
        return value
    if (whole := _TEMPLATE.fullmatch(value)) and whole[1] in values:
        return values[whole[1]]
    return _TEMPLATE.sub(lambda found: str(values.get(found[1], found[0])), value)
