"""JSON read by the descriptors of protocol buffers; every deviation becomes a finding with its place.

Called by ``run_spec`` and ``arguments``. The descriptors know the keys, types and enum names, so a field that a newer client
library adds is accepted without a change here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from vertex_launch.codes import Code
from vertex_launch.job.findings import Findings, printable
from vertex_launch.limits import MOST_ENTRIES
from vertex_launch.problems import LONGEST_SHOWN, kind, nearest, shown

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

BLANK = "<REQUIRED>"
"""What W&B's queue templates contain where a person has to fill in a value."""

_TEMPLATE = re.compile(r"\{\{\s*[\w.-]+\s*\}\}")
_FREE_TEXT = re.compile(r"\.(command|args)\[\d+\]$|\.env\[\d+\]\.value$")
"""Places whose text belongs to the user's program, which may use braces for itself."""


_VARIABLES = "Write a list of variables, for example:\n- name: LEARNING_RATE\n  value: '0.1'"

_CHIP_WORDS = ("MEGA", "RTX", "PRO")
_FAMILIES = {"V5E": "V5"}
"""What people call a chip, and what Vertex AI calls it."""


class Reader:
    """Reads the JSON values of one run spec. Each method returns the value, or an empty one of its type and a finding."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings

    def mapping(self, value: Any, place: str) -> dict[str, Any]:
        """Read a mapping; null counts as an empty one."""
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self._mistyped(value, place, "a mapping")
        return {}

    def items(self, value: Any, place: str) -> list[Any]:
        """Read a list."""
        if isinstance(value, list):
            return value
        self._mistyped(value, place, "a list")
        return []

    def texts(self, value: Any, place: str) -> tuple[str, ...]:
        """Read a list of texts; null counts as an empty one."""
        items = [] if value is None else self.items(value, place)
        return tuple(self.text(one, f"{place}[{index}]") for index, one in enumerate(items))

    def text(self, value: Any, place: str) -> str:
        """Read text that a process can be given and whose blanks are filled in. Findings never show it: it may be secret."""
        if not isinstance(value, str):
            self._mistyped(value, place, "text", "Write it in quotes" if isinstance(value, int | float) else "")
        elif not is_plain(value):
            found = "it contains a NUL character or half of a surrogate pair"
            self.findings.wrong(place, found, "Write it as plain Unicode text", Code.SPEC_VALUE)
        elif not self._unfilled(value, place):
            return value
        return ""

    def flag(self, value: Any, place: str) -> bool:
        """Read true or false."""
        if isinstance(value, bool):
            return value
        self._mistyped(value, place, "true or false", "Write it without quotes" if isinstance(value, str) else "")
        return False

    def whole(self, value: Any, place: str, least: int, most: int, unit: str = "a whole number") -> int:
        """Read a whole number from ``least`` to ``most``."""
        if isinstance(value, bool) or not isinstance(value, int):
            self._mistyped(value, place, unit, _as_number(value))
        elif not least <= value <= most:
            remedy = f"Write {unit} from {least} to {most}"
            self.findings.wrong(place, f"{shown(value)} is out of range", remedy, Code.SPEC_VALUE)
        else:
            return value
        return 0

    def unknown(self, key: str, known: Collection[str], place: str, remedy: str = "") -> None:
        """Report an unknown key of the mapping at ``place``."""
        where = f"{place}.{printable(key)}"
        self.findings.wrong(where, "unknown key", remedy or nearest(key, known), Code.SPEC_UNKNOWN_KEY)

    def field(self, value: Any, shape: FieldDescriptor, place: str) -> Any:
        """Read the value of a message's field."""
        if shape.is_repeated:
            if shape.name == "env" and isinstance(value, dict):
                self._mistyped(value, place, "a list", _VARIABLES)
                return []
            items = self.items(value, place)
            if shape.message_type is not None and len(items) > MOST_ENTRIES:
                found = f"it has {len(items)} entries, and at most {MOST_ENTRIES} are accepted (MOST_ENTRIES)"
                self.findings.wrong(place, found, "Remove some of them", Code.SPEC_SIZE)
                return []
            return [self._single(one, shape, f"{place}[{index}]") for index, one in enumerate(items)]
        return self._single(value, shape, place)

    def _single(self, value: Any, shape: FieldDescriptor, place: str) -> Any:
        if shape.message_type is not None:
            return self._message(value, shape.message_type, place)
        if shape.enum_type is not None:
            return self._enum(value, shape.enum_type, place)
        if shape.type == shape.TYPE_BOOL:
            return self.flag(value, place)
        if shape.type in (shape.TYPE_INT32, shape.TYPE_INT64):
            bits = 31 if shape.type == shape.TYPE_INT32 else 63
            return self.whole(value, place, 0, 2**bits - 1)  # each is a count or a size
        return self.text(value, place)

    def _message(self, value: Any, shape: Descriptor, place: str) -> dict[str, Any]:
        """Read a mapping that becomes a message of that shape; nulls are left out."""
        value = self.mapping(value, place)
        known = {one.name: one for one in shape.fields}
        for key in [key for key in value if key not in known]:
            self.unknown(key, known, place)
        return {
            name: self.field(value[name], one, f"{place}.{name}")
            for name, one in known.items()
            if value.get(name) is not None
        }

    def _enum(self, value: Any, shape: EnumDescriptor, place: str) -> int:
        # Not shape.values_by_name: asking it for half of a surrogate pair leaves the interpreter with an error pending.
        names = {one.name: one.number for one in shape.values}
        use = f"Use {' or '.join([', '.join(list(names)[:-1]), list(names)[-1]])}"
        if isinstance(value, str) and value in names:
            return names[value]
        if isinstance(value, int) and not isinstance(value, bool) and value in names.values():
            return value
        if not isinstance(value, int | str) or isinstance(value, bool):
            self._mistyped(value, place, "a name", use)
        elif not (isinstance(value, str) and self._unfilled(value, place)):
            close = _nearest(value, shape.name, list(names)) if isinstance(value, str) else ""
            remedy = f"Did you mean {close}? {use}" if close else use
            self.findings.wrong(place, f"{shown(value)} is not a known value", remedy, Code.SPEC_VALUE)
        return 0

    def _mistyped(self, value: Any, place: str, wanted: str, remedy: str = "") -> None:
        if not (isinstance(value, str) and self._unfilled(value, place)):
            found = f"found {kind(value)}, expected {wanted}"
            self.findings.wrong(place, found, remedy or f"Write {wanted} there", Code.SPEC_VALUE)

    def _unfilled(self, value: str, place: str) -> bool:
        """Report a blank or a template variable that was not filled in, and return whether it makes the text unusable."""
        template = _TEMPLATE.search(value)
        if BLANK in value:
            found, remedy = f"it still contains {BLANK} from W&B's queue template", "Write a value there, or remove it"
        elif template is None:
            return False
        else:
            found = f"the template variable {printable(template.group())} was not filled in"
            remedy = "Declare it among the queue's template variables, or write the value itself"
            if _FREE_TEXT.search(place):
                self.findings.warn(f"{place}: {found} and is passed to the program as it is.", Code.SPEC_TEMPLATE)
                return False
        self.findings.wrong(place, found, remedy, Code.SPEC_TEMPLATE)
        return True


def _as_number(value: Any) -> str:
    """Return what to write instead of a value that is not a whole number, the empty text if that is not clear."""
    if isinstance(value, float):
        return f"Write a whole number, such as {value:.0f}" if abs(value) < 2**53 else ""
    digits = re.fullmatch(r"\s*(\d{1,15})\s*(s|sec|seconds)?\s*", value) if isinstance(value, str) else None
    if digits is None:
        return ""
    return f"Write {int(digits[1])} without quotes{' and without a unit' if digits[2] else ''}"


def _nearest(value: str, enum: str, names: list[str]) -> str:
    """Return the name that was most likely meant, the empty text for none. An accelerator is never taken for another one."""
    if enum != "AcceleratorType":
        return next(iter(difflib.get_close_matches(value[:LONGEST_SHOWN].upper(), names, n=1)), "")
    wanted = _chip(value[:LONGEST_SHOWN])
    found = [(len(_chip(name) - wanted), name) for name in names if wanted and wanted <= _chip(name)]
    return min(found, default=(0, ""))[1]


def _chip(name: str) -> frozenset[str]:
    """Return the words of an accelerator's name that say which one it is: without NVIDIA, TESLA and the like."""
    words = re.split(r"[\W_]+", name.upper())
    chips = [word for word in words if any(map(str.isdigit, word)) or word in _CHIP_WORDS]
    return frozenset(_FAMILIES.get(word, re.sub(r"(?<=\d)GB?\Z", "", word)) for word in chips)


def is_plain(text: str) -> bool:
    """Return whether a process can be given the text: JSON can name NUL and half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text
