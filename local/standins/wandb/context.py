"""What all resolvers share: the user of a request, the schema's scalars, and pages of a list."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ariadne import ObjectType, ScalarType
from graphql import GraphQLResolveInfo

from local.standins.faults import Faults
from local.standins.wandb.store import Store, User

if TYPE_CHECKING:
    Info = GraphQLResolveInfo["Context"]


class Raw(str):
    """A value that goes into an answer as it is, valid JSON or not. Surrogates stand for bytes that are not UTF-8."""

    __slots__ = ()


@dataclass(frozen=True)
class Context:
    """One request: the server's memory and faults, the user with the key, and the server's address."""

    store: Store
    faults: Faults
    user: User
    base_url: str
    acks_refused_in_errors: bool


def _json_string(value: object) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"JSONString has to be text, not {type(value).__name__}")  # noqa: TRY004 - GraphQL's contract
    return json.loads(value)


SCALARS = (
    ScalarType("DateTime", serializer=lambda at: datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
    ScalarType("Int64", serializer=int, value_parser=int),
    ScalarType("JSON"),
    ScalarType(
        "JSONString",
        serializer=lambda value: value if isinstance(value, str) else json.dumps(value),
        value_parser=_json_string,
    ),
)


def page(nodes: Sequence[Any], first: int | None = None, after: str | None = None) -> dict[str, Any]:
    """Return a connection: the ``first`` of ``nodes`` (None: all) after the cursor ``after``."""
    start = int(after) if after else 0
    end = len(nodes) if first is None else min(start + first, len(nodes))
    edges = [{"cursor": str(number), "node": node} for number, node in enumerate(nodes[start:end], start=start + 1)]
    info = {
        "end_cursor": edges[-1]["cursor"] if edges else None,
        "has_next_page": end < len(nodes),
    }
    return {"edges": edges, "page_info": info, "total_count": len(nodes)}


def resolve_with(type_: ObjectType, resolvers: Mapping[str, Callable[..., Any]]) -> None:
    """Set the resolvers of a type's fields."""
    for name, resolver in resolvers.items():
        type_.set_field(name, resolver)
