"""How mutations are registered, and look-ups that several of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ariadne import MutationType

from local.standins.wandb.context import Context
from local.standins.wandb.errors import not_found
from local.standins.wandb.runs import Run

if TYPE_CHECKING:
    from local.standins.wandb.context import Info

Payload = dict[str, Any] | None
Resolver = Callable[..., Payload]


class Mutations(MutationType):
    """Some of the schema's mutations."""

    def performs(self, name: str) -> Callable[[Resolver], Resolver]:
        """Register a mutation, which gets its input as keyword arguments. It runs under the store's lock, after its faults."""

        def register(perform: Resolver) -> Resolver:
            @self.field(name)
            def resolve(_: None, info: Info, input: Mapping[str, Any]) -> Payload:  # noqa: A002
                context = info.context
                context.faults.before_field(name)
                given = dict(input)
                token = given.pop("client_mutation_id", None)
                with context.store.lock:
                    payload = perform(context, **given)
                return None if payload is None else {**payload, "client_mutation_id": token}

            return perform

        return register


def run_called(context: Context, entity: str, project: str, name: str) -> Run:
    """Return the run with a name, of an entity that the user can write to. Raise Refused."""
    run = context.store.runs.get(context.store.entity_for(context.user, entity), project, name)
    if run is None:
        raise not_found(f"run {entity}/{project}/{name}")
    return run


def run_by_id(context: Context, id_: str) -> Run:
    """Return the run with a ``Run.id``, of an entity that the user can write to. Raise Refused."""
    run = context.store.runs.by_id(id_)
    context.store.entity_for(context.user, run.entity)
    return run
