"""One settings file in YAML, read with the care that PyYAML leaves out: keys twice, API keys, odd values.

Called by ``config``, which knows what the settings mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vertex_launch.errors import Problem
from vertex_launch.problems import API_KEY, Location, dotted, problem, shown

KEY_NAMES = frozenset({"api_key", "apikey", "wandb_api_key", "_wandb_api_key", "wandb_key"})
"""Settings by which people try to give the API key itself."""

MERGE = "tag:yaml.org,2002:merge"


@dataclass(frozen=True)
class SettingsFile:
    """What stands in a file, and what is wrong with it as a file.

    ``name`` is the file as the user knows it, ``fields`` the settings that it may hold. ``values`` is None where nothing
    could be read, empty for an empty file.
    """

    name: str
    fields: Collection[str]
    values: dict[Any, Any] | None
    problems: tuple[Problem, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Give the known settings that have a value."""
        return {key: value for key, value in (self.values or {}).items() if key in self.fields and value is not None}


class _Loader(yaml.SafeLoader):
    """SafeLoader whose every refusal is a YAMLError that knows its line."""

    # Without the one for binary data, whose text nobody could look through for a key.
    yaml_constructors = {  # noqa: RUF012 - PyYAML's own name and shape
        tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag != "tag:yaml.org,2002:binary"
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, ArithmeticError) as error:
            # What PyYAML lets through for a date such as 2024-13-45, `!!bool maybe` or a number of 5,000 digits.
            reason = f"{shown(node.value)} cannot be read, put it in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark) from error


def read(path: Path, name: str, fields: Collection[str], *, if_missing: str) -> SettingsFile:
    """Read a file; nothing is raised, what is wrong stands in ``problems``. ``if_missing`` is the remedy for no file."""
    try:
        values, problems = _parse(path.read_bytes(), name)
        return SettingsFile(name, fields, values, problems)
    except FileNotFoundError:
        found, remedy = f"there is no file {path}", if_missing
    except OSError as error:
        found, remedy = f"cannot be read: {error.strerror}", "Make it a file that this process may read"
    except yaml.YAMLError as error:
        return SettingsFile(name, fields, None, (_syntax_problem(error, name),))
    except RecursionError:
        found, remedy = "is nested too deeply", "Keep to the settings that are known"
    return SettingsFile(name, fields, None, (problem(name, found, remedy),))


def _parse(text: bytes, name: str) -> tuple[dict[Any, Any] | None, tuple[Problem, ...]]:
    """Give the values, None where they are no mapping, and the problems. Raises YAMLError, RecursionError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}, ()
        problems = tuple(_problems(node, name, (), set()))
        values = loader.construct_document(node)
    finally:
        loader.dispose()
    if values is None or isinstance(values, dict):
        return values or {}, problems
    found = f"holds {shown(values)} instead of settings"
    return None, (*problems, problem(name, found, "Write one setting a line, as max_jobs: 5"))


def _syntax_problem(error: yaml.YAMLError, name: str) -> Problem:
    remedy = "Mend it there: indent with spaces, not tabs, put a space after each colon, close what is opened"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        place = f"{name}, line {mark.line + 1}, column {mark.column + 1}"
        return problem(place, f"is no valid YAML: {error.problem}", remedy)
    reason = getattr(error, "reason", "it cannot be parsed")
    return problem(name, f"is no text that YAML allows: {reason}", "Save it as plain UTF-8 text")


def _problems(node: yaml.Node, name: str, location: Location, seen: set[int]) -> Iterator[Problem]:
    """Look for what is lost or must not be told once the nodes have become values. Anchored nodes are visited once."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode) and API_KEY.fullmatch(node.value.strip()):
        yield _key_problem(name, location)
    elif isinstance(node, yaml.SequenceNode):
        for index, inner in enumerate(node.value):
            yield from _problems(inner, name, (*location, index), seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, inner in node.value:
            text = key.value if isinstance(key, yaml.ScalarNode) else shown(key.value)
            here, line = (*location, text), key.start_mark.line + 1
            if text in lines and key.tag != MERGE:
                found = f"stands there twice, in lines {lines[text]} and {line}"
                yield problem(f"{name}: {dotted(here)}", found, "Keep one of the two")
            lines[text] = line
            if text.lower().replace("-", "_") in KEY_NAMES or API_KEY.fullmatch(text):
                yield _key_problem(name, here)
            yield from _problems(inner, name, here, seen)


def _key_problem(name: str, location: Location) -> Problem:
    return problem(
        f"{name}: {dotted(location)}",
        "looks like a W&B API key, and files are copied and committed",
        "Take it out, store the key in Secret Manager and name the secret's version in key_secret; "
        "if the file has left your hands, make a new key",
    )
