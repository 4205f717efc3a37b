"""Problems of what a person wrote, in one vocabulary: values as they are quoted, and translations of pydantic's errors.

Everything that checks a person's input uses it. No text of pydantic's own and no API key reaches the reader.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from vertex_launch.codes import Code
from vertex_launch.errors import Problem

Location: TypeAlias = tuple[int | str, ...]
"""Where a value is: keys and indexes, from the outside in."""

API_KEY = re.compile(r"wandb_v1_\w+|(?:\b[A-Za-z]\w*-)?[0-9a-fA-F]{40,}")
"""W&B API keys: the current form, the old one, and that of a self-managed server (``local-…``)."""

LONGEST_SHOWN = 160
"""Characters of a value that a problem repeats. An image with its digest has up to 150."""

LONGEST_SCANNED = 1000
"""Characters of a value that are searched for API keys; a problem gives only the length of a longer one."""

_EXPECTED = {
    "string_type": ("text", "text, in quotes if it looks like a number or a date"),
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), ("a whole number",) * 2),
    **dict.fromkeys(("float_type", "float_parsing", "finite_number"), ("a finite number",) * 2),
    **dict.fromkeys(("bool_type", "bool_parsing"), ("true or false", "true or false, without quotes")),
    **dict.fromkeys(("tuple_type", "list_type"), ("a list", "a list")),
    **dict.fromkeys(("model_type", "dict_type"), ("a mapping", "a mapping, key: value")),
}
"""Type of pydantic's error: what the value should be, and what to write."""


def redact(text: str) -> str:
    """Return the text without anything that looks like an API key."""
    return API_KEY.sub("<redacted>", text)


class Codes(NamedTuple):
    """The codes for input that has an unknown key, lacks one, or has a wrong value."""

    unknown: Code
    missing: Code
    value: Code


def problem(place: str, found: str, remedy: str, *, code: Code) -> Problem:
    """Return a problem without any API key that the input may hold."""
    return Problem(redact(place), redact(found), redact(remedy), code)


def wrong(found: str, remedy: str, *, code: Code | None = None, about: bool = False) -> PydanticCustomError:
    """Return the error for a validator that words the problem itself; without ``code`` it has that of a wrong value.

    With ``about``, the field's example and description follow the remedy.
    """
    return PydanticCustomError("wrong", "{found}", {"found": found, "remedy": remedy, "code": code, "about": about})


def kind(value: object) -> str:
    """Return what sort of JSON or YAML value it is, without the value."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "a mapping"
        case list() | tuple() | set() | frozenset():
            return "a list"
        case _:
            return f"a {type(value).__name__}"


def shown(value: object) -> str:
    """Return a value as a problem repeats it: short, on one line, without API keys."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case int() if abs(value) >= 10**LONGEST_SHOWN:
            return "a huge number"  # Python itself refuses to write out the hugest.
        case str() if len(value) > LONGEST_SCANNED:
            return f"a text of {len(value)} characters"
        case str() | int() | float():
            # Keys go first: half a key at the cut would no longer look like one.
            return beginning(redact(repr(value)))
        case _:
            return kind(value)


def beginning(text: str) -> str:
    """Return a text that may hold keys as a problem repeats it: cut between words, and of one long word only its length.

    The exits know keys of any form, but no half of one.
    """
    if len(text) <= LONGEST_SHOWN:
        return text
    words = text[:LONGEST_SHOWN].rpartition(" ")[0]
    return f"{words}…" if words else f"a text of {len(text)} characters"


def dotted(location: Location) -> str:
    """Return a location as people write it: ``regions[1].staging_bucket``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in location if part != "[key]")
    return text.removeprefix(".")


def _name(key: str) -> str:
    return key if key.isprintable() and len(key) <= LONGEST_SHOWN else shown(key)


def nearest(key: str, known: Iterable[str]) -> str:
    """Return the remedy for an unknown key: the known one that may be meant, else all there are."""
    names = sorted(known)
    close = difflib.get_close_matches(key[:LONGEST_SHOWN].lower(), names, n=1)
    return f"Did you mean {close[0]}?" if close else f"Remove it, or use one of {', '.join(names)}"


def translate(
    error: ValidationError,
    model: type[BaseModel],
    place: Callable[[Location], str],
    *,
    codes: Codes,
    most: int | None = None,
    not_missing: Collection[str] = (),
    elsewhere: Mapping[Any, str] = MappingProxyType({}),
) -> list[Problem]:
    """Return the problems, at most ``most``, of input that ``model`` refused.

    ``place`` names a location to the reader. Top-level fields in ``not_missing`` may be absent. ``elsewhere`` maps unknown
    keys at the top level to the place where they belong.
    """
    problems = []
    for detail in islice(error.errors(include_url=False), most):
        location = detail["loc"]
        if detail["type"] == "missing" and len(location) == 1 and location[0] in not_missing:
            continue
        if detail["type"] == "too_short" and detail["input"]:
            continue  # It has entries, and each of them has a problem of its own.
        if len(location) == 1 and detail["type"] == "extra_forbidden" and location[0] in elsewhere:
            found, remedy = "does not belong here", f"Move it to {elsewhere[location[0]]}"
        else:
            found, remedy = _sentences(detail, model)
        match detail["type"]:
            case "extra_forbidden" | "invalid_key":
                code = codes.unknown
            case "missing" | "too_short":
                code = codes.missing
            case _:
                code = detail.get("ctx", {}).get("code") or codes.value
        problems.append(problem(place(location), found, remedy, code=code))
    return problems


def _sentences(detail: ErrorDetails, model: type[BaseModel]) -> tuple[str, str]:
    """Return what was found and the remedy."""
    kind, value, location, context = detail["type"], detail["input"], detail["loc"], detail.get("ctx", {})
    if kind == "wrong":
        return context["found"], context["remedy"] + (_about(model, location) if context["about"] else "")
    if kind == "extra_forbidden":
        return "is not a known key", nearest(str(location[-1]), _fields(model, location[:-1]))
    if kind == "invalid_key" or location[-1:] == ("[key]",):
        return "is not a valid key: keys must be text", "Put it in quotes, or remove it"
    about = _about(model, location)
    if kind == "missing":
        return "is not set", f"Set it{about}"
    if kind == "too_short":
        return "is empty", f"Name at least one{about}"
    match kind:
        case "greater_than_equal":
            noun = write = f"a number of {context['ge']:g} or more"
        case "greater_than":
            noun = write = f"a number greater than {context['gt']:g}"
        case "literal_error":
            noun = write = f"one of {context['expected']}"
        case _:
            noun, write = _EXPECTED.get(kind, ("accepted", "another value"))
    return "has no value" if value is None else f"{shown(value)} is not {noun}", f"Write {write}{about}"


def _about(model: type[BaseModel], location: Location) -> str:
    """Return an example and the description's first sentence, of the innermost field at a location."""
    field, example = None, ""
    for end, part in enumerate(location):
        if isinstance(part, int):
            continue
        inner = _fields(model, location[:end]).get(part)
        field = inner or field
        example = f", such as {inner.examples[0]}" if inner and inner.examples else ""
    text = " ".join(((field and field.description) or "").split()).partition(". ")[0]
    return f"{example} ({text})" if text else example


def _fields(model: type[BaseModel], location: Location) -> dict[str, FieldInfo]:
    """Return the fields of the section at a location, none if there is no section."""
    section: type[BaseModel] | None = model
    for part in location:
        if section and isinstance(part, str):
            field = section.model_fields.get(part)
            section = next(_sections(field.annotation), None) if field else None
    return section.model_fields if section else {}


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """Return the models inside an annotation such as ``tuple[Region, ...]`` or ``Builder | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
