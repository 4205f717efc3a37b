"""What a run spec asks of Vertex AI: the arguments of ``aiplatform.CustomJob`` and of its ``run``; called by ``custom_job``.

``spec`` and ``run`` take the same arguments, since W&B's documentation and Google's disagree on where some of them belong.
Most are fields of the CustomJobSpec message; which, and of what type, is read from its descriptor.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vertex_launch.job import labels
from vertex_launch.job.findings import Findings
from vertex_launch.job.proto_reader import Shapes, kind, printable
from vertex_launch.problems import nearest, shown

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor

SECTIONS = ("spec", "run")
TASKS = ("container_spec", "python_package_spec")
IMAGE_FIELDS = {"container_spec": "image_uri", "python_package_spec": "executor_image_uri"}

_TEXTS = ("display_name", "project", "location", "staging_bucket", "base_output_dir", "encryption_spec_key_name")
_SECONDS = ("timeout", "max_wait_duration")
_OTHERS = ("labels", "credentials", "sync", "create_request_timeout", "scheduling_strategy")
_MESSAGE_ONLY = {
    "scheduling": "timeout, max_wait_duration, scheduling_strategy, disable_retries and restart_job_on_worker_restart",
    "strategy": "scheduling_strategy",
    "base_output_directory": "base_output_dir",
    "encryption_spec": "encryption_spec_key_name",
}
"""Names that the message has and the SDK's arguments have not, and the arguments that mean the same."""

MOST_LABELS = 64
_LABEL = "1 to 63 lowercase letters, digits, _ and -"
_LONGEST = 315_576_000_000  # seconds that a protocol buffer Duration can hold
_CONTEXT = re.compile(r"projects/[^/]+/locations/[^/]+/metadataStores/[^/]+/contexts/[^/]+")
_BUCKET = re.compile(r"(gs://)?[a-z0-9][a-z0-9._-]*[a-z0-9](/.*)?", re.DOTALL)
_NOT_PULLED = re.compile(
    r"[\w-]+\.dkr\.ecr[\w-]*\.[\w-]+\.amazonaws\.com(\.cn)?|[\w-]+\.azurecr\.(io|cn|us)", re.IGNORECASE
)


@dataclass
class Given:
    """The arguments that a run spec gives, by name; without nulls. ``place`` is where one stands, for sentences."""

    root: str
    values: dict[str, Any] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def place(self, name: str) -> str:
        """Say where the argument stands, or where it belongs."""
        return f"{self.root}.{self.sections.get(name, SECTIONS[0])}.{name}"


class JobArguments:
    """The arguments that there are, and how each is read."""

    def __init__(self, job_spec: Descriptor, scheduling: Descriptor) -> None:
        self._strategy = scheduling.fields_by_name["strategy"]
        self._fields = {one.name: one for one in (*job_spec.fields, *scheduling.fields)}
        for name in (*_MESSAGE_ONLY, *_SECONDS):
            self._fields.pop(name, None)
        self.in_job_spec = frozenset(self._fields) & {one.name for one in job_spec.fields}
        """Arguments that are fields of CustomJobSpec under the same name."""
        self.names = frozenset((*self._fields, *_TEXTS, *_SECONDS, *_OTHERS))

    def read(self, resource_args: Mapping[str, Any], root: str, findings: Findings, *, final: bool) -> Given:
        """Read ``spec`` and ``run``. While ``final`` is false, macros are not replaced yet and may stand for anything."""
        shapes = Shapes(findings, final=final)
        given = Given(root)
        for key in resource_args:
            if key not in SECTIONS:
                inside = key in self.names
                remedy = f"Put {key} under {root}.spec" if inside else nearest(key, (*SECTIONS, "builder"))
                findings.wrong(f"{root}.{printable(key)}", "this key is not known here", remedy)
        for section in SECTIONS:
            place = f"{root}.{section}"
            for name, value in shapes.mapping(resource_args.get(section), place).items():
                if name not in self.names:
                    remedy = f"Use {_MESSAGE_ONLY[name]}" if name in _MESSAGE_ONLY else nearest(name, self.names)
                    findings.wrong(f"{place}.{printable(name)}", "this key is not known", remedy)
                elif value is not None:
                    self._add(given, section, name, self._argument(name, value, f"{place}.{name}", shapes), findings)
        self._check(given, shapes)
        return given

    def _add(self, given: Given, section: str, name: str, value: Any, findings: Findings) -> None:
        if name in given.values and given.values[name] != value:
            found = f"it differs from {given.place(name)}"
            findings.wrong(f"{given.root}.{section}.{name}", found, "Write it once, under either")
        given.values.setdefault(name, value)
        given.sections.setdefault(name, section)

    def _argument(self, name: str, value: Any, place: str, shapes: Shapes) -> Any:
        if name == "scheduling_strategy":
            return shapes.field(value, self._strategy, place)
        if name in self._fields:
            return shapes.field(value, self._fields[name], place)
        if name in _SECONDS:
            return shapes.whole(value, place, 0, _LONGEST, "a whole number of seconds")
        if name == "labels":
            return _labels(value, place, shapes)
        if name == "create_request_timeout":
            return _positive(value, place, shapes)
        if name == "sync":
            return shapes.flag(value, place)
        if name == "credentials":
            shapes.findings.wrong(
                place,
                "a run spec cannot bring credentials; jobs are submitted by the function's own service account",
                "Remove it, and name the account that the job is to run as in service_account",
            )
            return None
        return shapes.text(value, place)

    def _check(self, given: Given, shapes: Shapes) -> None:
        """Note what is wrong between arguments, or with a value whose type is right."""
        _check_pools(given, shapes)
        _check_experiment(given, shapes)
        for name in ("staging_bucket", "base_output_dir"):
            path = given[name]
            if path and not shapes.open(path) and not _is_bucket(path, bare=name == "staging_bucket"):
                found = f"{shown(path)} is no place in Cloud Storage"
                shapes.findings.wrong(given.place(name), found, "Write gs://BUCKET or gs://BUCKET/PREFIX")


def _is_bucket(path: str, *, bare: bool) -> bool:
    """Tell whether it is a Cloud Storage path; the SDK takes a staging bucket without ``gs://``, too (``bare``)."""
    return bool(_BUCKET.fullmatch(path)) and (bare or path.startswith("gs://"))


def _positive(value: Any, place: str, shapes: Shapes) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LONGEST:
        return float(value)
    found = shown(value) if isinstance(value, int | float) and not isinstance(value, bool) else kind(value)
    shapes.findings.wrong(place, f"{found} is no time that a create may take", "Write a number of seconds above 0")
    return math.inf


def _labels(value: Any, place: str, shapes: Shapes) -> dict[str, str]:
    """Read labels by Google's rules (https://goo.gl/xmQnxf); our own keys cannot be set."""
    read: dict[str, str] = {}
    for key, raw in shapes.mapping(value, place).items():
        where = f"{place}.{printable(key)}"
        if key in labels.OWN_KEYS:
            shapes.findings.wrong(where, "this label is how the job is found again and is set for you", "Remove it")
        elif not _is_label(key) or not unicodedata.category(key[0]).startswith("L"):
            shapes.findings.wrong(where, "this is no legal label key", f"A key begins with a letter and has {_LABEL}")
        else:
            read[key] = shapes.text(raw, where)
            if read[key] and not shapes.open(read[key]) and not _is_label(read[key]):
                found = f"{shown(read[key])} is no legal label value"
                shapes.findings.wrong(where, found, f"A value has {_LABEL}, or is empty")
    most = MOST_LABELS - len(labels.OWN_KEYS)
    if len(read) > most:
        found = f"there are {len(read)} labels"
        shapes.findings.wrong(
            place, found, f"Keep {most}: Vertex AI takes {MOST_LABELS}, and the rest is needed for ours"
        )
    return read


def _is_label(text: str) -> bool:
    return 0 < len(text) <= labels.MAX_LENGTH and all(
        char in "_-" or unicodedata.category(char) in ("Ll", "Lo", "Nd", "Nl", "No") for char in text
    )


def _check_experiment(given: Given, shapes: Shapes) -> None:
    experiment, run = given["experiment"], given["experiment_run"]
    if experiment and given["tensorboard"]:
        found = "it excludes tensorboard, which is given, too"
        shapes.findings.wrong(given.place("experiment"), found, "Keep one of the two")
    if run and not experiment:
        found = "it means nothing without experiment"
        shapes.findings.wrong(given.place("experiment_run"), found, "Name the experiment, too, or remove it")
    for name in ("experiment", "experiment_run"):
        value = given[name]
        if value and not shapes.open(value) and not _CONTEXT.fullmatch(value):
            shapes.findings.wrong(
                given.place(name),
                f"{shown(value)} is no resource name, and nothing here looks one up",
                "Write projects/P/locations/R/metadataStores/default/contexts/NAME, the name of the experiment's context",
            )


def _check_pools(given: Given, shapes: Shapes) -> None:
    place, findings = given.place("worker_pool_specs"), shapes.findings
    if not given["worker_pool_specs"] and not findings.about(place, f"{given.root}.{SECTIONS[0]}"):
        remedy = "Describe at least one worker pool: machine_spec, replica_count and container_spec"
        findings.wrong(place, "it is missing or empty", remedy)
    for index, pool in enumerate(given["worker_pool_specs"] or ()):
        where = f"{place}[{index}]"
        if pool:
            _check_task(pool, where, shapes)
        elif index == 0 and not findings.about(where):
            remedy = "Describe the primary replica there; only a later pool may be skipped with {}"
            findings.wrong(where, "the first worker pool is empty", remedy)


def _check_task(pool: Mapping[str, Any], place: str, shapes: Shapes) -> None:
    findings = shapes.findings
    tasks = [name for name in TASKS if name in pool]
    if len(tasks) != 1:
        found = f"the pool has both {' and '.join(TASKS)}" if tasks else f"the pool has no {' or '.join(TASKS)}"
        findings.wrong(place, found, "Give exactly one of the two")
    for task in tasks:
        where, image = f"{place}.{task}.{IMAGE_FIELDS[task]}", pool[task].get(IMAGE_FIELDS[task])
        if not image and not findings.about(where, f"{place}.{task}"):
            remedy = "Write ${image_uri} there to run the item's image" if task == TASKS[0] else "Name a prebuilt image"
            findings.wrong(where, "it is missing or empty", remedy)
        elif image and _NOT_PULLED.fullmatch(re.sub(r"^\w+://", "", image).split("/")[0]):
            findings.wrong(
                where,
                f"Vertex AI cannot pull {shown(image)}",
                "It pulls from Artifact Registry (REGION-docker.pkg.dev) and from public registries only; push a copy there",
            )
        for index, variable in enumerate(pool[task].get("env", ())):
            if not variable.get("name") and not findings.about(f"{place}.{task}.env[{index}].name"):
                findings.wrong(
                    f"{place}.{task}.env[{index}]", "the variable has no name", 'Write {"name": …, "value": …}'
                )
