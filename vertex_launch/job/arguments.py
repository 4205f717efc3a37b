"""What a run spec asks of Vertex AI: the arguments of ``aiplatform.CustomJob`` and of its ``run``; called by ``run_spec``.

``spec`` and ``run`` take the same arguments, because W&B's documentation and Google's disagree on where some of them belong.
Most are fields of the CustomJobSpec message; its descriptor says which, and of what type.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from google.cloud.aiplatform_v1.types import CustomJobSpec, Scheduling

from vertex_launch.codes import Code
from vertex_launch.errors import ItemRejected
from vertex_launch.job import labels
from vertex_launch.job.findings import Findings, printable
from vertex_launch.job.proto_reader import Reader
from vertex_launch.limits import LONGEST_FILLED
from vertex_launch.problems import kind, nearest, shown

SECTIONS = ("spec", "run")
TASKS = ("container_spec", "python_package_spec")
IMAGE_FIELDS = {"container_spec": "image_uri", "python_package_spec": "executor_image_uri"}

_TEXTS = ("display_name", "project", "location", "staging_bucket", "base_output_dir", "encryption_spec_key_name")
_SECONDS = ("timeout", "max_wait_duration")
SHORTEST_CREATE = 5.0
"""Seconds that a run spec must at least leave for its create."""

_OTHERS = ("labels", "credentials", "sync", "create_request_timeout", "scheduling_strategy")
_MESSAGE_ONLY = {
    "scheduling": "timeout, max_wait_duration, scheduling_strategy, disable_retries and restart_job_on_worker_restart",
    "strategy": "scheduling_strategy",
    "base_output_directory": "base_output_dir",
    "encryption_spec": "encryption_spec_key_name",
}
"""Names that the message has but the SDK's arguments do not, and the arguments that mean the same."""

_JOB_FIELDS = {one.name: one for one in CustomJobSpec.pb(CustomJobSpec()).DESCRIPTOR.fields}
_SCHEDULING_FIELDS = {one.name: one for one in Scheduling.pb(Scheduling()).DESCRIPTOR.fields}
_FIELDS = {
    name: one
    for name, one in (_JOB_FIELDS | _SCHEDULING_FIELDS).items()
    if name not in _MESSAGE_ONLY and name not in _SECONDS
}
IN_JOB_SPEC = frozenset(_FIELDS.keys() & _JOB_FIELDS.keys())
"""Arguments that are fields of CustomJobSpec under the same name."""
NAMES = frozenset((*_FIELDS, *_TEXTS, *_SECONDS, *_OTHERS))

MOST_LABELS = 64
_LABEL = "1 to 63 lowercase letters, digits, _ and -"
_LONGEST = 315_576_000_000  # seconds that a protocol buffer Duration can hold
_CONTEXT = re.compile(r"projects/[^/]+/locations/[^/]+/metadataStores/[^/]+/contexts/[^/]+")
_BUCKET = re.compile(r"(gs://)?[a-z0-9][a-z0-9._-]*[a-z0-9](/.*)?", re.DOTALL)
_NOT_PULLED = re.compile(
    r"[\w-]+\.dkr\.ecr[\w-]*\.[\w-]+\.amazonaws\.com(\.cn)?|[\w-]+\.azurecr\.(io|cn|us)", re.IGNORECASE
)
_MACRO = re.compile(r"\$\{(\w+)\}")  # wandb.sdk.launch.utils.MACRO_REGEX
_EXPANDED = ("command", "args", "env")


@dataclass(frozen=True)
class Arguments:
    """The arguments that a run spec sets, by name; without nulls. ``root`` is the place of ``spec`` and ``run``."""

    root: str = ""
    values: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def place(self, name: str) -> str:
        """Return the place of an argument, or the one where it belongs if it is not set."""
        return f"{self.root}.{self.sections.get(name, SECTIONS[0])}.{name}"

    def but(self, **values: Any) -> Arguments:
        """Return the arguments with these values instead."""
        return replace(self, values={**self.values, **values})

    def with_image(self, image: str) -> Arguments:
        """Fill in the image of an item whose job artifact names it."""
        return replace(self, values=fill(self.values, {"image_uri": image}, {"image_uri": escape(image)}))


def fill(value: Any, macros: Mapping[str, str], expanded: Mapping[str, str]) -> Any:
    """Replace ``${name}`` in all text of a JSON value, except in keys; unknown names stay as they are.

    ``expanded`` has the values for commands, arguments and variables: Vertex AI expands ``$(NAME)`` and ``$$`` in them as
    Kubernetes does. Raises ItemRejected once the values add more text than ``LONGEST_FILLED``.
    """
    added = 0

    def filled(value: Any, values: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            return _MACRO.sub(partial(replaced, values), value)
        if isinstance(value, list):
            return [filled(one, values) for one in value]
        if isinstance(value, dict):
            return {key: filled(one, expanded if key in _EXPANDED else values) for key, one in value.items()}
        return value

    def replaced(values: Mapping[str, str], macro: re.Match[str]) -> str:
        nonlocal added
        text = values.get(macro[1], macro[0])
        added += len(text)
        if added > LONGEST_FILLED:
            found = (
                f"The values of its macros add more than {LONGEST_FILLED} characters to the run spec (LONGEST_FILLED)."
            )
            raise ItemRejected(f"{found} Use fewer macros, or shorter names.", code=Code.SPEC_SIZE)
        return text

    return filled(value, macros)


def escape(text: str) -> str:
    """Escape text so that expansion returns it unchanged.

    Expansion changes only ``$(`` and ``$$``, so a sequence of dollars is doubled before an opening parenthesis and if it is
    longer than one. A lone dollar stays as it is.
    """
    return re.sub(r"\$+(?=\()|\${2,}", lambda dollars: dollars[0] * 2, text)


def unescape(text: str) -> str:
    """Return what expansion makes of escaped text."""
    return text.replace("$$", "$")


def read(resource_args: Mapping[str, Any], root: str, findings: Findings) -> Arguments:
    """Read ``spec`` and ``run``, whose macros are filled in except that of an image that only a job artifact names."""
    reader, arguments = Reader(findings), Arguments(root)
    for key in resource_args:
        if key not in SECTIONS:
            remedy = f"Put {key} under {root}.spec" if key in NAMES else nearest(key, (*SECTIONS, "builder"))
            reader.unknown(key, SECTIONS, root, remedy)
    for section in SECTIONS:
        place = f"{root}.{section}"
        for name, value in reader.mapping(resource_args.get(section), place).items():
            if name not in NAMES:
                reader.unknown(name, NAMES, place, f"Use {_MESSAGE_ONLY[name]}" if name in _MESSAGE_ONLY else "")
            elif value is not None:
                read_value = _argument(name, value, f"{place}.{name}", reader)
                if arguments.values.setdefault(name, read_value) != read_value:
                    found, remedy = f"it differs from {arguments.place(name)}", "Set it in only one of the two"
                    findings.wrong(f"{place}.{name}", found, remedy, Code.SPEC_CONFLICT)
                arguments.sections.setdefault(name, section)
    _check_pools(arguments, findings)
    _check_experiment(arguments, findings)
    for name in ("staging_bucket", "base_output_dir"):
        path = arguments[name]
        # The SDK takes a staging bucket without gs:// as well.
        if path and not (_BUCKET.fullmatch(path) and (name == "staging_bucket" or path.startswith("gs://"))):
            found, remedy = f"{shown(path)} is not a Cloud Storage path", "Write gs://BUCKET or gs://BUCKET/FOLDER"
            findings.wrong(arguments.place(name), found, remedy, Code.SPEC_VALUE)
    return arguments


def check_images(arguments: Arguments, findings: Findings) -> None:
    """Report images of registries from which Vertex AI cannot pull."""
    for index, pool in enumerate(arguments["worker_pool_specs"] or ()):
        for task in [name for name in TASKS if name in pool]:
            image = pool[task].get(IMAGE_FIELDS[task]) or ""
            if _NOT_PULLED.fullmatch(re.sub(r"^\w+://", "", image).split("/")[0]):
                findings.wrong(
                    f"{arguments.place('worker_pool_specs')}[{index}].{task}.{IMAGE_FIELDS[task]}",
                    f"Vertex AI cannot pull {shown(image)}",
                    "Push a copy to Artifact Registry (REGION-docker.pkg.dev) or to a public registry",
                    Code.SPEC_IMAGE_HOST,
                )


def _argument(name: str, value: Any, place: str, reader: Reader) -> Any:
    if name == "scheduling_strategy":
        return reader.field(value, _SCHEDULING_FIELDS["strategy"], place)
    if name in _FIELDS:
        return reader.field(value, _FIELDS[name], place)
    if name in _SECONDS:
        return reader.whole(value, place, 0, _LONGEST, "a whole number of seconds")
    if name == "labels":
        return _labels(value, place, reader)
    if name == "create_request_timeout":
        return _timeout(value, place, reader.findings)
    if name == "sync":
        return reader.flag(value, place)
    if name == "credentials":
        found = "a run spec cannot bring credentials, because the function submits jobs with its own service account"
        remedy = "Remove it, and name the account that the job runs as in service_account"
        reader.findings.wrong(place, found, remedy, Code.SPEC_CREDENTIALS)
        return None
    return reader.text(value, place)


def _timeout(value: Any, place: str, findings: Findings) -> float:
    """Read for how long a create may take: after a shorter time it would be unknown whether the job exists."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and SHORTEST_CREATE <= value <= _LONGEST:
        return float(value)
    found = f"{shown(value) if number else kind(value)} is not a valid timeout"
    findings.wrong(place, found, f"Write a number of seconds, at least {SHORTEST_CREATE:g}", Code.SPEC_VALUE)
    return math.inf


def _labels(value: Any, place: str, reader: Reader) -> dict[str, str]:
    """Read labels by Google's rules (https://goo.gl/xmQnxf); those of this product cannot be set."""
    read_labels: dict[str, str] = {}
    for key, raw in reader.mapping(value, place).items():
        where, found, remedy = f"{place}.{printable(key)}", "", "Remove it"
        if key in labels.OWN_KEYS:
            found = "this label identifies the job and is set automatically"
        elif not _is_label(key) or not unicodedata.category(key[0]).startswith("L"):
            found, remedy = "this is not a valid label key", f"Begin it with a letter and use {_LABEL}"
        else:
            read_labels[key] = reader.text(raw, where)
            if read_labels[key] and not _is_label(read_labels[key]):
                found = f"{shown(read_labels[key])} is not a valid label value"
                remedy = f"Use {_LABEL}, or leave it empty"
        if found:
            reader.findings.wrong(where, found, remedy, Code.SPEC_LABEL)
    most = MOST_LABELS - len(labels.OWN_KEYS)
    if len(read_labels) > most:
        remedy = f"Remove some labels: at most {most} may be set"
        reader.findings.wrong(place, f"found {len(read_labels)} labels", remedy, Code.SPEC_LABEL)
    return read_labels


def _is_label(text: str) -> bool:
    return 0 < len(text) <= labels.MAX_LENGTH and all(
        char in "_-" or unicodedata.category(char) in ("Ll", "Lo", "Nd", "Nl", "No") for char in text
    )


def _check_experiment(arguments: Arguments, findings: Findings) -> None:
    experiment, run = arguments.place("experiment"), arguments.place("experiment_run")
    if arguments["experiment"] and arguments["tensorboard"]:
        findings.wrong(experiment, "it cannot be combined with tensorboard", "Keep one of the two", Code.SPEC_CONFLICT)
    if arguments["experiment_run"] and not arguments["experiment"]:
        findings.wrong(run, "it needs experiment", "Set experiment as well, or remove it", Code.SPEC_CONFLICT)
    for place, value in ((experiment, arguments["experiment"]), (run, arguments["experiment_run"])):
        if value and not _CONTEXT.fullmatch(value):
            found = f"{shown(value)} is not the full resource name of an experiment's context"
            remedy = "Write projects/PROJECT/locations/REGION/metadataStores/default/contexts/NAME"
            findings.wrong(place, found, remedy, Code.SPEC_VALUE)


def _check_pools(arguments: Arguments, findings: Findings) -> None:
    place, pools = arguments.place("worker_pool_specs"), arguments["worker_pool_specs"] or []
    if not pools and not findings.about(place, f"{arguments.root}.{SECTIONS[0]}"):
        remedy = "Describe at least one worker pool: machine_spec, replica_count and container_spec"
        findings.wrong(place, "it is missing or empty", remedy, Code.SPEC_MISSING)
    for index, pool in enumerate(pools):
        where = f"{place}[{index}]"
        if pool:
            _check_task(pool, where, findings)
        elif index == 0 and not findings.about(where):
            remedy = "Describe the primary replica there. Only a later pool may be skipped with {}"
            findings.wrong(where, "the first worker pool is empty", remedy, Code.SPEC_MISSING)


def _check_task(pool: Mapping[str, Any], place: str, findings: Findings) -> None:
    tasks = [name for name in TASKS if name in pool]
    if len(tasks) != 1:
        found = f"the pool has both {' and '.join(TASKS)}" if tasks else f"the pool has no {' or '.join(TASKS)}"
        findings.wrong(place, found, "Set exactly one of the two", Code.SPEC_CONFLICT if tasks else Code.SPEC_MISSING)
    for task in tasks:
        where = f"{place}.{task}.{IMAGE_FIELDS[task]}"
        if not pool[task].get(IMAGE_FIELDS[task]) and not findings.about(where, f"{place}.{task}"):
            remedy = "Write ${image_uri} there to run the item's image" if task == TASKS[0] else "Name a prebuilt image"
            findings.wrong(where, "it is missing or empty", remedy, Code.SPEC_MISSING)
        for index, variable in enumerate(pool[task].get("env", ())):
            where = f"{place}.{task}.env[{index}]"
            if not variable.get("name") and not findings.about(f"{where}.name"):
                remedy = 'Write {"name": …, "value": …}'
                findings.wrong(where, "the variable has no name", remedy, Code.SPEC_MISSING)
