"""Where settings come from: two YAML files and the environment, merged but not yet checked.

Called by ``config``, which knows what each setting may hold. PyYAML leaves some care to its callers, which is taken here:
keys that are set twice, API keys in a file, and values that cannot be built.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vertex_launch.codes import Code
from vertex_launch.errors import Problem
from vertex_launch.problems import API_KEY, Location, dotted, problem, shown

LAUNCH_FILE, VERTEX_FILE = "launch-config.yaml", "vertex-launch.yaml"

REGIONS, STAGING = "GOOGLE_CLOUD_REGION", "STAGING_BUCKETS"
VARIABLES = {
    "VERTEX_LAUNCH_DEPLOYMENT": "deployment",
    "WANDB_BASE_URL": "base_url",
    "WANDB_ENTITY": "entity",
    "WANDB_LAUNCH_MAX_JOBS": "max_jobs",
    "WANDB_LAUNCH_START_TIMEOUT": "start_timeout",
    "WANDB_API_KEY_SECRET": "key_secret",
    "GOOGLE_CLOUD_PROJECT": "project",
    REGIONS: "regions",
    "JOBS_ACCOUNT": "jobs_account",
    "STATE_BUCKET": "state_bucket",
    "DISPATCH_TOPIC": "tick_topic",
    "AIPLATFORM_ENDPOINT": "aiplatform_endpoint",
    "SECRETMANAGER_ENDPOINT": "secretmanager_endpoint",
    "LOGGING_ENDPOINT": "logging_endpoint",
}
"""Environment variables and the settings that they override."""

KEY_NAMES = frozenset({"api_key", "apikey", "wandb_api_key", "_wandb_api_key", "wandb_key"})
"""Settings in which people try to write the API key itself."""

_MERGE = "tag:yaml.org,2002:merge"
_BINARY = "tag:yaml.org,2002:binary"


@dataclass(frozen=True)
class SettingsFile:
    """The content of a file, and what is wrong with it as a file.

    ``name`` is the file as the user knows it, ``fields`` the settings that it may hold. ``values`` is None if the file
    cannot be read. Known settings without a value are left out, as the official agent does.
    """

    name: str
    fields: Collection[str]
    values: dict[Any, Any] | None
    problems: Sequence[Problem] = ()

    def settings(self) -> dict[str, Any]:
        """Return the known settings."""
        return {key: value for key, value in (self.values or {}).items() if key in self.fields}


@dataclass(frozen=True)
class Origins:
    """Where each value comes from. ``files`` names the file of a setting, ``others`` has what is not a file's own."""

    files: Mapping[str, str]
    others: dict[Location, str] = field(default_factory=dict)

    def where(self, location: Location) -> str:
        """Return the place of a value in words that fit into a sentence; for a missing value, where it can be set."""
        for end in range(len(location), 0, -1):
            if location[:end] in self.others:
                return self.others[location[:end]]
        return f"{dotted(location)} in {self.files[str(location[0])]}"


class Sources:
    """What the operator wrote.

    ``environ`` holds the variables that are not empty. ``values`` has the value in effect of each setting: the
    environment's, else the file's. ``origins`` says where it comes from.
    """

    def __init__(
        self, environ: Mapping[str, str], root: Path, launch_fields: Collection[str], vertex_fields: Collection[str]
    ) -> None:
        self.environ = {variable: value for variable, value in environ.items() if value}
        remedy = "Create it with at least `queues: [my-queue]`, or set LAUNCH_CONFIG to the path of your file"
        self.launch = _read(root, self.environ.get("LAUNCH_CONFIG", LAUNCH_FILE), launch_fields, remedy)
        named = self.environ.get("VERTEX_LAUNCH_CONFIG", "")
        self.vertex = SettingsFile(VERTEX_FILE, vertex_fields, {})
        if named or (root / VERTEX_FILE).exists():
            remedy = "Create it, or unset VERTEX_LAUNCH_CONFIG: this file is optional"
            self.vertex = _read(root, named or VERTEX_FILE, vertex_fields, remedy)
        self.values = self.launch.settings() | self.vertex.settings()
        self.problems = [*self.launch.problems, *self.vertex.problems]
        files = (self.launch, self.vertex)
        self.origins = Origins({setting: file.name for file in files for setting in file.fields})
        self._override()

    def unread(self) -> list[str]:
        """Return the settings that must not be reported as missing because their file could not be read."""
        launch = [*self.launch.fields, "regions"] if self.launch.values is None else []
        return launch + list(self.vertex.fields if self.vertex.values is None else ())

    def _override(self) -> None:
        others, files = self.origins.others, self.origins.files
        environment = self.values.get("environment")
        official = environment.get("region") if isinstance(environment, dict) else None
        for variable, setting in VARIABLES.items():
            if variable in self.environ:
                others[setting,] = f"the environment variable {variable}"
                value = self.environ[variable]
                self.values[setting] = self._regions(value) if variable == REGIONS else value
            elif setting not in self.values:
                in_file = f"{setting} in {files[setting]} or " if setting in files else ""
                others[setting,] = f"{in_file}the environment variable {variable}"
        if "regions" not in self.values and official:
            self.values["regions"] = [{"name": official}]
            others["regions", 0, "name"] = f"environment.region in {self.launch.name}"
        if STAGING in self.environ:
            self._stage(self.environ[STAGING].split(","))

    def _stage(self, buckets: Sequence[str]) -> None:
        """Set the regions' staging buckets from the environment; an empty entry is a region without one."""
        regions = self.values.get("regions")
        if not isinstance(regions, list) or not all(isinstance(region, dict) for region in regions):
            return  # reported as a problem of the regions
        if len(buckets) != len(regions):
            found = f"names {len(buckets)} buckets for {len(regions)} regions"
            remedy = f"List one bucket for each region, in the same order: {STAGING}=gs://one,gs://two"
            place = f"the environment variable {STAGING}"
            self.problems.append(problem(place, found, remedy, code=Code.CONFIG_CONFLICT))
            return
        self.values["regions"] = [
            {**region, "staging_bucket": bucket.strip() or None}
            for region, bucket in zip(regions, buckets, strict=True)
        ]
        for index in range(len(buckets)):
            here = f"the environment variable {STAGING}, entry {index + 1}"
            self.origins.others["regions", index, "staging_bucket"] = here

    def _regions(self, names: str) -> list[dict[str, Any]]:
        """Return the regions that the variable names, each with its staging bucket from the file."""
        listed = self.values.get("regions")
        in_file = {
            region["name"]: (f"regions[{index}].staging_bucket in {self.vertex.name}", region.get("staging_bucket"))
            for index, region in enumerate(listed if isinstance(listed, list) else ())
            if isinstance(region, dict) and isinstance(region.get("name"), str)
        }
        regions: list[dict[str, Any]] = []
        for name in filter(None, map(str.strip, names.split(","))):
            here: Location = ("regions", len(regions))
            self.origins.others[here] = f"the environment variable {REGIONS}, entry {len(regions) + 1}"
            nowhere = (f"the environment variable {STAGING}", None)
            self.origins.others[*here, "staging_bucket"], bucket = in_file.get(name, nowhere)
            regions.append({"name": name, "staging_bucket": bucket})
        return regions


DEEPEST = 50
"""Levels of nesting in a file; the settings have six."""

MOST_NODES = 100_000
"""Values in a file, counting what an alias stands for each time."""

LARGEST_FILE = 1024 * 1024
"""Bytes of a file."""


class _Loader(yaml.SafeLoader):
    """SafeLoader whose every refusal is a YAMLError that knows its line.

    An alias stands for all that its anchor holds, so a small file can mean a huge value, or one that holds itself.
    """

    def __init__(self, stream: bytes) -> None:
        super().__init__(stream)
        self._level = 0
        self._sizes: dict[int, int] = {}

    # Without binary data, because its text cannot be searched for keys.
    yaml_constructors = {  # noqa: RUF012 - PyYAML's own name and shape
        tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag != _BINARY
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        self._level += 1
        if self._level > DEEPEST:
            raise _refused(f"it is nested more than {DEEPEST} levels deep", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._level -= 1
        if isinstance(event, yaml.AliasEvent) and id(node) not in self._sizes:
            raise _refused("an alias stands for a value that holds the alias", event.start_mark)
        if node is not None:
            self._count(node, event.start_mark)
        return node

    def _count(self, node: yaml.Node, mark: yaml.Mark) -> None:
        """Count the values that a node stands for."""
        pairs = node.value if isinstance(node, yaml.CollectionNode) else []
        inner = [one for pair in pairs for one in (pair if isinstance(pair, tuple) else [pair])]
        self._sizes[id(node)] = 1 + sum(self._sizes[id(one)] for one in inner)
        if self._sizes[id(node)] > MOST_NODES:
            raise _refused(f"its aliases stand for more than {MOST_NODES} values", mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # PyYAML raises these for a date such as 2024-13-45, for `!!bool maybe`, or for a number of 5,000 digits.
            raise _refused(
                f"{shown(node.value)} cannot be read; put it in quotes if it is text", node.start_mark
            ) from error


def _refused(reason: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, mark)


def _read(root: Path, name: str, fields: Collection[str], if_missing: str) -> SettingsFile:
    """Read a file. Nothing is raised: ``problems`` has what is wrong. ``if_missing`` is the remedy if there is no file."""
    place, code = name, Code.CONFIG_YAML
    try:
        with (root / name).open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        return _parse(text, name, fields)
    except FileNotFoundError:
        found, remedy, code = f"there is no file {root / name}", if_missing, Code.CONFIG_FILE
    except OSError as error:
        found, remedy = f"cannot be read: {error.strerror}", "Make it a file that this process can read"
        code = Code.CONFIG_FILE
    except yaml.MarkedYAMLError as error:
        if mark := error.problem_mark:
            place = f"{name}, line {mark.line + 1}, column {mark.column + 1}"
        found = f"is not valid YAML: {error.problem}"
        remedy = "Indent with spaces, put a space after each colon, and close all brackets and quotes"
    except yaml.reader.ReaderError as error:
        place = f"{name}, line {_line(text, error)}"
        found = "is not text that YAML allows: it has a byte that is not UTF-8, or a control character"
        remedy = "Save the file as UTF-8 text"
    return SettingsFile(name, fields, None, (problem(place, found, remedy, code=code),))


def _parse(text: bytes, name: str, fields: Collection[str]) -> SettingsFile:
    """Parse a file's text. Raises YAMLError."""
    if len(text) > LARGEST_FILE:
        raise _refused(f"the file has more than {LARGEST_FILE} bytes", None)
    loader = _Loader(text)
    values, problems = {}, list[Problem]()
    try:
        if node := _node(loader):
            problems += _problems(node, name, (), set())
            values = loader.construct_document(node)
    finally:
        loader.dispose()
    values = {} if values is None else values
    if not isinstance(values, dict):
        found = f"holds {shown(values)} instead of settings"
        problems.append(problem(name, found, "Write one setting per line, such as max_jobs: 5", code=Code.CONFIG_YAML))
        return SettingsFile(name, fields, None, problems)
    given = {key: value for key, value in values.items() if value is not None or key not in fields}
    return SettingsFile(name, fields, given, problems)


def _node(loader: _Loader) -> yaml.Node | None:
    """Return the document. Raises YAMLError."""
    try:
        node: yaml.Node | None = loader.get_single_node()
    except yaml.YAMLError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML's scanner raises these for an escape such as "\UFFFFFFFF", which no character has.
        raise _refused("an escape or a number is beyond what YAML allows", loader.get_mark()) from error
    return node


def _line(text: bytes, error: yaml.reader.ReaderError) -> int:
    """Return the line of what PyYAML's reader refuses; it counts bytes if they are not text, else characters."""
    decoded = text if isinstance(error.character, bytes) else text.decode("utf-8", errors="replace").encode("utf-32-le")
    width = 1 if decoded is text else 4
    return 1 + decoded[: width * error.position].count(b"\n")


def _problems(node: yaml.Node, name: str, location: Location, seen: set[int]) -> Iterator[Problem]:
    """Find what is lost, or must not be repeated, once nodes have become values. Anchored nodes are visited once."""
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
            if text in lines and key.tag != _MERGE:
                found = f"is set twice, in lines {lines[text]} and {line}"
                yield problem(f"{dotted(here)} in {name}", found, "Remove one of the two", code=Code.CONFIG_YAML)
            lines[text] = line
            if text.lower().replace("-", "_") in KEY_NAMES or API_KEY.fullmatch(text):
                yield _key_problem(name, here)
            yield from _problems(inner, name, here, seen)


def _key_problem(name: str, location: Location) -> Problem:
    return problem(
        f"{dotted(location)} in {name}" if location else name,
        "looks like a W&B API key, which must not be in a file",
        "Remove it, store the key in Secret Manager, and set key_secret; create a new key if the file was shared",
        code=Code.CONFIG_API_KEY,
    )
