"""JSON held against the descriptors of protocol buffers, every deviation with its place.

Called by ``run_spec`` and ``job_arguments``. Which keys, types and enum names are right stands in the descriptors, so that a
field that a newer client library brings is accepted without a change here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from vertex_launch.job.findings import Findings
from vertex_launch.problems import nearest, shown

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

BLANK = "<REQUIRED>"
"""What W&B's queue templates hold where a person has to write something."""

_TEMPLATE = re.compile(r"\{\{\s*[\w.-]+\s*\}\}")
_FREE_TEXT = re.compile(r"\.(command|args)\[\d+\]$|\.env\[\d+\]\.value$")
"""Places whose text belongs to the user's program, which may have a use of its own for braces."""


def kind(value: Any) -> str:
    """Say what sort of JSON value it is, without the value."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "a mapping"}
    return names[type(value)]


class Shapes:
    """Reads JSON values of one run spec; each method gives the value, or an empty one of its kind beside a finding.

    While ``final`` is false, text that holds a macro is taken for right, since only its value can tell.
    """

    def __init__(self, findings: Findings, *, final: bool = True) -> None:
        self.findings = findings
        self._final = final

    def open(self, value: str) -> bool:
        """Tell whether a macro in the text still waits for its value."""
        return not self._final and "${" in value

    def mapping(self, value: Any, place: str) -> dict[str, Any]:
        """Read a mapping; null counts as an empty one."""
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self._mistyped(value, place, "a mapping")
        return {}

    def keys(self, value: Mapping[str, Any], known: Collection[str], place: str) -> None:
        """Note every key that is not known, with the one that is meant."""
        for key in value:
            if key not in known:
                self.findings.wrong(f"{place}.{printable(key)}", "this key is not known", nearest(key, known))

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
        """Read text that a process can be given and that nobody forgot to fill in. Never shows it: it may be secret."""
        if not isinstance(value, str):
            self._mistyped(value, place, "text", "Write it in quotes" if isinstance(value, int | float) else "")
        elif "\0" in value or not encodable(value):
            self.findings.wrong(
                place, "it holds a NUL character or half of a surrogate pair", "Write it as plain Unicode text"
            )
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
            self._mistyped(value, place, unit, "Write it without quotes" if isinstance(value, str) else "")
        elif not least <= value <= most:
            self.findings.wrong(place, f"{shown(value)} is out of range", f"Write {unit} from {least} to {most}")
        else:
            return value
        return 0

    def message(self, value: Any, shape: Descriptor, place: str) -> dict[str, Any]:
        """Read a mapping that is to become a message of that shape; nulls are left out."""
        value = self.mapping(value, place)
        known = {one.name: one for one in shape.fields}
        self.keys(value, known, place)
        return {
            name: self.field(value[name], one, f"{place}.{name}")
            for name, one in known.items()
            if value.get(name) is not None
        }

    def field(self, value: Any, shape: FieldDescriptor, place: str) -> Any:
        """Read the value of a message's field."""
        if shape.is_repeated:
            items = enumerate(self.items(value, place))
            return [self._single(one, shape, f"{place}[{index}]") for index, one in items]
        return self._single(value, shape, place)

    def _single(self, value: Any, shape: FieldDescriptor, place: str) -> Any:
        if shape.message_type is not None:
            return self.message(value, shape.message_type, place)
        if shape.enum_type is not None:
            return self._enum(value, shape.enum_type, place)
        if shape.type == shape.TYPE_BOOL:
            return self.flag(value, place)
        if shape.type in (shape.TYPE_INT32, shape.TYPE_INT64):
            bits = 31 if shape.type == shape.TYPE_INT32 else 63
            return self.whole(value, place, -(2**bits), 2**bits - 1)
        return self.text(value, place)

    def _enum(self, value: Any, shape: EnumDescriptor, place: str) -> int:
        # Not shape.values_by_name: asking it for half of a surrogate pair leaves the interpreter with an error pending.
        names = {one.name: one.number for one in shape.values}
        if isinstance(value, str) and value in names:
            return names[value]
        if isinstance(value, int) and not isinstance(value, bool) and value in names.values():
            return value
        if not isinstance(value, int | str) or isinstance(value, bool):
            self._mistyped(value, place, "a name", f"Allowed are {', '.join(names)}")
        elif not (isinstance(value, str) and (self.open(value) or self._unfilled(value, place))):
            close = difflib.get_close_matches(str(value).upper(), list(names), n=1)
            hint = f"Did you mean {close[0]}? " if close else ""
            self.findings.wrong(place, f"{shown(value)} is not known", f"{hint}Allowed are {', '.join(names)}")
        return 0

    def _mistyped(self, value: Any, place: str, wanted: str, remedy: str = "") -> None:
        if not (isinstance(value, str) and self._unfilled(value, place)):
            found = f"{kind(value)} stands where {wanted} is expected"
            self.findings.wrong(place, found, remedy or f"Write {wanted} there")

    def _unfilled(self, value: str, place: str) -> bool:
        """Note a blank or a template variable that nobody filled in, and tell whether the text is of no use for it."""
        if BLANK in value:
            self.findings.wrong(
                place, f"it still holds {BLANK}, the blank of W&B's queue template", "Write a value there, or remove it"
            )
            return True
        template = _TEMPLATE.search(value)
        if template is None:
            return False
        found = f"the template variable {printable(template.group())} was not filled in"
        if _FREE_TEXT.search(place):
            self.findings.odd(f"{place}: {found}, and is passed on as it is.")
            return False
        self.findings.wrong(place, found, "Declare it among the queue's template variables, or write the value itself")
        return True


def encodable(text: str) -> bool:
    """Tell whether the text can be sent: JSON can name half of a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """Give text that was not checked yet in a form that fits into a sentence."""
    shown = text if text.isprintable() else text.encode("ascii", "backslashreplace").decode()
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
