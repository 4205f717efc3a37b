"""One GraphQL request, from its body to its answer, with W&B's HTTP statuses."""

from __future__ import annotations

import json
import logging
import re
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from ariadne import load_schema_from_path, make_executable_schema
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    execute_sync,
    parse,
    validate,
)

from local.standins.faults import FaultError
from local.standins.wandb import artifact_fields, artifact_mutations, mutations, queries, run_fields, sweep_fields
from local.standins.wandb.context import SCALARS, Context, Raw
from local.standins.wandb.errors import Refused

ErrorStatus = Literal["alone", "always", "never"]
"""When the HTTP status shows a field's error: only if no field succeeded, always, or never (then 200)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """An answer, with a body that becomes JSON. ``raw`` is sent instead of the body, if there is one."""

    status: int
    body: dict[str, Any]
    raw: str | None = None

    def content(self) -> bytes:
        """Return the bytes to send. A field, or a field of it, can be Raw."""
        if self.raw is not None:
            return self.raw.encode(errors="surrogateescape")
        text = json.dumps(self.body)
        for value in (self.body.get("data") or {}).values():
            for part in (value, *(value.values() if isinstance(value, dict) else ())):
                if isinstance(part, Raw):
                    text = text.replace(json.dumps(part), part, 1)
        return text.encode(errors="surrogateescape")


@dataclass(frozen=True)
class Operation:
    """A valid request. ``fields`` maps the keys of the answer to the names of the top-level fields."""

    document: DocumentNode
    name: str | None
    variables: dict[str, Any]
    fields: dict[str, str]
    is_mutation: bool


class BadRequest(Exception):
    """The body is not a valid GraphQL request for this schema. Nothing was done."""

    def __init__(self, *errors: GraphQLError) -> None:
        super().__init__("; ".join(error.message for error in errors))
        self.answer = Answer(400, {"errors": [{**error.formatted, "message": _quoted(error)} for error in errors]})


def _snake_case(name: str, _schema: GraphQLSchema, _path: tuple[str, ...]) -> str:
    """Return a GraphQL name in snake case: ``default_resource_config_id`` for ``defaultResourceConfigID``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


SCHEMA = make_executable_schema(
    load_schema_from_path(str(Path(__file__).parent)),
    *SCALARS,
    *queries.TYPES,
    *artifact_fields.TYPES,
    *sweep_fields.TYPES,
    run_fields.run_type,
    mutations.mutation,
    artifact_mutations.mutation,
    convert_names_case=_snake_case,
)


def read(body: bytes) -> Operation:
    """Parse and validate a request. Raise BadRequest."""
    try:
        request = json.loads(body)
    except ValueError as error:
        raise BadRequest(GraphQLError(f"the body is not JSON: {error}")) from error
    if not isinstance(request, dict) or not isinstance(request.get("query"), str):
        raise BadRequest(GraphQLError("the body has to be an object with a query"))
    document = _valid(request["query"])
    name = request.get("operationName") or None
    operation = _operation(document, name)
    fields = _fields(document, operation.selection_set)
    is_mutation = operation.operation is OperationType.MUTATION
    return Operation(document, name, request.get("variables") or {}, fields, is_mutation)


def execute(operation: Operation, context: Context, error_status: ErrorStatus) -> Answer:
    """Execute a request. A query sees one state of the store. The fields of a mutation are done in order."""
    with nullcontext() if operation.is_mutation else context.store.lock:
        result = execute_sync(
            SCHEMA,
            operation.document,
            context_value=context,
            variable_values=operation.variables,
            operation_name=operation.name,
        )
    body: dict[str, Any] = {"data": result.data}
    if not result.errors:
        return Answer(200, body)
    statuses = [_status(error) for error in result.errors]
    body["errors"] = [error.formatted for error in result.errors]
    if result.data is None and all(error.path is None for error in result.errors):
        return Answer(400, {"errors": body["errors"]})
    failed = {error.path[0] for error in result.errors if error.path}
    told = error_status == "always" or (error_status == "alone" and failed == set(operation.fields))
    return Answer(statuses[0] if told else 200, body)


def refused(operation: Operation, status: int, message: str, *, code: str | None = None) -> Answer:
    """Return the same error for each field, as W&B does for an unknown key."""
    error: dict[str, Any] = {"message": message}
    if code:
        error["extensions"] = {"code": code}
    errors = [{**error, "path": [key]} for key in operation.fields]
    return Answer(status, {"errors": errors, "data": dict.fromkeys(operation.fields)})


@lru_cache(maxsize=512)
def _valid(query: str) -> DocumentNode:
    try:
        document = parse(query)
    except GraphQLError as error:
        raise BadRequest(error) from error
    if errors := validate(SCHEMA, document):
        raise BadRequest(*errors)
    return document


def _operation(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    operations = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    named = [node for node in operations if node.name and node.name.value == name] if name else operations
    if len(named) != 1:
        raise BadRequest(GraphQLError("name one of the document's operations in operationName"))
    return named[0]


def _fields(document: DocumentNode, selections: SelectionSetNode) -> dict[str, str]:
    fields: dict[str, str] = {}
    for node in selections.selections:
        if isinstance(node, FieldNode):
            fields[(node.alias or node.name).value] = node.name.value
        elif isinstance(node, InlineFragmentNode):
            fields |= _fields(document, node.selection_set)
        elif isinstance(node, FragmentSpreadNode):
            named = (n for n in document.definitions if isinstance(n, FragmentDefinitionNode) and n.name == node.name)
            fields |= _fields(document, next(named).selection_set)
    return fields


def _quoted(error: GraphQLError) -> str:
    """Return a message in W&B's form, which clients search: ``Cannot query field "x" on type "Y"``, with double quotes."""
    return error.message.replace("'", '"')


def _status(error: GraphQLError) -> int:
    cause = error.original_error
    if isinstance(cause, Refused):
        return cause.status
    if isinstance(cause, FaultError):
        return cause.http_status
    if not isinstance(cause, GraphQLError | None):
        log.error("a resolver failed at %s", error.path, exc_info=cause)
    return 500
