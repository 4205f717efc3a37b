"""The documents for W&B, and the parts of them that a server may refuse or not know. Pure.

A name with a question mark is optional: ``run(name: $id:String!) { state heartbeatAt? }``. A document is sent without the
optional parts that its server refuses. Such a part is named by the field around it and by itself, as ``run.heartbeatAt``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from vertex_launch.model import RunId

_VARIABLE = re.compile(r"\$(\w+):([\w!\[\]]+)")
_PART = re.compile(r"(?:(\w+): )?(\w+)(\?)?(\([^()]*\))?(?: (\{))?|(\})")


@dataclass(frozen=True)
class Part:
    """A field of a document and what is selected in it; ``shown`` is its name in an answer."""

    key: str
    shown: str
    head: str
    optional: bool
    parts: tuple[Part, ...]

    def text(self, without: Set[str]) -> str:
        """Return it as it is sent, without these parts; the empty text if nothing of it is left."""
        if self.key in without:
            return ""
        inner = " ".join(filter(None, (part.text(without) for part in self.parts)))
        return f"{self.head} {{ {inner} }}" if inner else "" if self.parts else self.head

    def walk(self, optional: str = "") -> Iterator[tuple[Part, str]]:
        """Return it and all parts of it, the inner ones first, each with the innermost optional part that it belongs to."""
        optional = self.key if self.optional else optional
        for part in self.parts:
            yield from part.walk(optional)
        yield self, optional


class Field:
    """One field of a request: its text, in which each variable stands with its type (``$name:String!``), and their values."""

    def __init__(self, text: str, **variables: Any) -> None:
        self.text = text
        self.variables = variables

    @property
    def part(self) -> Part:
        """Its structure."""
        return _parsed(self.text)


def project_field(of: RunId, selection: str) -> Field:
    """Return the question about a run or a sweep in its project; ``selection`` has ``$id:String!``."""
    text = f"project(name: $project:String!, entityName: $entity:String!) {{ {selection} }}"
    return Field(text, project=of.project, entity=of.entity, id=of.id)


def document(kind: str, fields: Sequence[Field], without: Set[str]) -> tuple[str, dict[str, Any], list[int]]:
    """Join fields into one document, each under an alias ``f<n>`` and with variables of its own, without these parts.

    Return it with the values of its variables and the indices of the fields that it has.
    """
    declared, selected, sent, values = list[str](), list[str](), list[int](), dict[str, Any]()
    left_out = frozenset(without)
    for i, one in enumerate(fields):
        text, types = _pruned(one.text, left_out)
        if text:
            declared += [f"${name}_{i}: {type_}" for name, type_ in types.items()]
            values |= {f"{name}_{i}": one.variables[name] for name in types}
            selected.append(f"f{i}: " + _VARIABLE.sub(rf"$\1_{i}", text))
            sent.append(i)
    head = f"{kind} VertexLaunch" + (f"({', '.join(declared)})" if declared else "")
    return f"{head} {{ {' '.join(selected)} }}", values, sent


def named_in(words: str, kind: str, fields: Sequence[Field]) -> list[str]:
    """Return the optional parts with a field that a server names when it refuses a document, the inner ones first."""
    said = re.split(r"did you mean", words, flags=re.IGNORECASE)[0]
    parts = [pair for text in dict.fromkeys(one.text for one in fields) for pair in _parsed(text).walk()]
    named = {optional for part, optional in parts if optional and _names(said, part.key.rpartition(".")[2], kind)}
    return list(dict.fromkeys(part.key for part, _ in parts if part.key in named))


def _names(words: str, name: str, kind: str) -> bool:
    """Return whether words name a field: in quotes, unless no English word has its form.

    A change may be refused for what it says, so that there it has to be called a field.
    """
    before = r"field\W+" if kind == "mutation" else ""
    quoted = kind == "mutation" or name.lower() == name
    return re.search(rf"{before}[\"'`]{name}[\"'`]" if quoted else rf"\b{name}\b", words) is not None


def removable(fields: Sequence[Field]) -> list[str]:
    """Return the optional parts without which something of each field is left, the inner ones first."""
    keys = dict.fromkeys(part.key for one in fields for part, _ in one.part.walk() if part.optional)
    return [key for key in keys if all(_pruned(one.text, frozenset([key]))[0] for one in fields)]


def spoiler(one: Field, value: Any, path: Sequence[Any]) -> str:
    """Return the optional part whose error, at this path in the field's value, made what is around it null as well."""
    part, found, blamed = one.part, value, ""
    for step in path:
        if isinstance(step, str):
            inner = next((each for each in part.parts if each.shown == step), None)
            if inner is None:
                break
            part = inner
            if part.optional:
                blamed = part.key if found is None else ""
        found = _at(found, step)
    return blamed


def _at(value: Any, step: Any) -> Any:
    if isinstance(value, dict):
        return value.get(step)
    return value[step] if isinstance(value, list) and isinstance(step, int) and 0 <= step < len(value) else None


@lru_cache(500)
def _pruned(text: str, without: frozenset[str]) -> tuple[str, Mapping[str, str]]:
    """Return a field's text without these parts, and the types of its variables."""
    left = _parsed(text).text(without)
    return left, dict(_VARIABLE.findall(left))


@lru_cache(500)
def _parsed(text: str) -> Part:
    (part,) = _parts(iter(_PART.findall(text)), "")
    return part


def _parts(tokens: Iterator[tuple[str, ...]], around: str) -> list[Part]:
    """Read the fields up to the closing brace."""
    parts = list[Part]()
    for alias, name, mark, arguments, opens, closes in tokens:
        if closes:
            break
        head = f"{alias}: {name}{arguments}" if alias else f"{name}{arguments}"
        inner = tuple(_parts(tokens, name)) if opens else ()
        parts.append(Part(f"{around}.{name}".lstrip("."), alias or name, head, bool(mark), inner))
    return parts
