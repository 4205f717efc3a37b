"""Mutations of artifacts: create, alias, finish, delete and use a version."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from local.standins.wandb.artifact_files import file_node
from local.standins.wandb.artifacts import Artifact, Entry
from local.standins.wandb.context import Context
from local.standins.wandb.errors import invalid
from local.standins.wandb.mutation import Mutations, Payload, run_called

mutation = Mutations()

Aliases = Sequence[Mapping[str, str]]


@mutation.performs("createArtifact")
def _create_artifact(
    context: Context,
    entity_name: str,
    project_name: str,
    artifact_type_name: str,
    digest: str,
    artifact_collection_name: str | None = None,
    artifact_collection_names: Sequence[str] | None = None,
    run_name: str | None = None,
    client_id: str | None = None,
    aliases: Aliases | None = None,
    tags: Sequence[Mapping[str, str]] | None = None,
    ttl_duration_seconds: int | None = None,
    enable_digest_deduplication: bool = False,
    description: str | None = None,
    metadata: Any = None,
    history_step: int | None = None,
    **_: object,
) -> Payload:
    entity = context.store.entity_for(context.user, entity_name)
    names = artifact_collection_names or [artifact_collection_name or ""]
    if len(names) != 1 or not names[0]:
        raise invalid("an artifact belongs to one collection, which has a name")
    name = names[0]
    run = run_called(context, entity, project_name, run_name) if run_name else None
    context.store.project(entity, project_name)
    artifact = context.store.artifacts.create(
        entity,
        project_name,
        artifact_type_name,
        name,
        digest,
        username=context.user.username,
        client_id=client_id,
        run=run.path if run else None,
        aliases=_names(aliases, name),
        deduplicate=enable_digest_deduplication,
        description=description,
        metadata=metadata,
        tags=[tag["tag_name"] for tag in tags or ()],
        history_step=history_step,
        **({"ttl": ttl_duration_seconds} if ttl_duration_seconds else {}),
    )
    return {"artifact": artifact}


@mutation.performs("createArtifactManifest")
def _create_artifact_manifest(context: Context, artifact_id: str, digest: str, type: str, **_: object) -> Payload:  # noqa: A002
    artifact = _artifact(context, artifact_id)
    if type != "FULL":
        raise invalid(f"the local W&B takes whole manifests only, not one of the type {type}")
    if digest:
        context.store.artifacts.set_manifest(artifact, digest)
    return {"artifact_manifest": artifact}


@mutation.performs("createArtifactFiles")
def _create_artifact_files(context: Context, artifact_files: Sequence[Mapping[str, Any]], **_: object) -> Payload:
    nodes = [_announced(context, **given) for given in artifact_files]
    return {"files": {"edges": [{"cursor": str(number), "node": node} for number, node in enumerate(nodes)]}}


@mutation.performs("commitArtifact")
def _commit_artifact(context: Context, artifact_id: str) -> Payload:
    artifact = _artifact(context, artifact_id)
    context.store.artifacts.commit(artifact)
    return {"artifact": artifact}


@mutation.performs("updateArtifact")
def _update_artifact(
    context: Context,
    artifact_id: str,
    tags_to_add: Sequence[Mapping[str, str]] | None = None,
    tags_to_delete: Sequence[Mapping[str, str]] | None = None,
    ttl_duration_seconds: int | None = None,
    description: str | None = None,
    metadata: Any = None,
) -> Payload:
    artifact = _artifact(context, artifact_id)
    gone = [tag["tag_name"] for tag in tags_to_delete or ()]
    artifact.tags = [tag for tag in artifact.tags if tag not in gone]
    artifact.tags += [tag["tag_name"] for tag in tags_to_add or () if tag["tag_name"] not in artifact.tags]
    artifact.ttl = artifact.ttl if ttl_duration_seconds is None else ttl_duration_seconds
    artifact.description = artifact.description if description is None else description
    artifact.metadata = artifact.metadata if metadata is None else metadata
    artifact.updated_at = context.store.clock()
    return {"artifact": artifact}


@mutation.performs("addAliases")
def _add_aliases(context: Context, artifact_id: str, aliases: Aliases) -> Payload:
    artifact = _artifact(context, artifact_id)
    context.store.artifacts.add_aliases(artifact, _names(aliases, artifact.of.name))
    return {"success": True}


@mutation.performs("deleteAliases")
def _delete_aliases(context: Context, artifact_id: str, aliases: Aliases) -> Payload:
    artifact = _artifact(context, artifact_id)
    context.store.artifacts.delete_aliases(artifact, _names(aliases, artifact.of.name))
    return {"success": True}


@mutation.performs("deleteArtifact")
def _delete_artifact(context: Context, artifact_id: str, delete_aliases: bool = False) -> Payload:
    artifact = _artifact(context, artifact_id)
    context.store.artifacts.delete(artifact, with_aliases=delete_aliases)
    return {"artifact": artifact}


@mutation.performs("useArtifact")
def _use_artifact(
    context: Context, entity_name: str, project_name: str, run_name: str, artifact_id: str, **_: object
) -> Payload:
    artifact = _artifact(context, artifact_id)
    context.store.artifacts.use(artifact, run_called(context, entity_name, project_name, run_name).path)
    return {"artifact": artifact}


def _announced(
    context: Context,
    artifact_id: str,
    name: str,
    md5: str,
    upload_parts_input: Sequence[Any] | None = None,
    **_: object,
) -> dict[str, Any]:
    """The schema's File, with an address for the upload if the server does not have it yet."""
    artifact = _artifact(context, artifact_id)
    if upload_parts_input:
        raise invalid(f"{name}: the local W&B takes files in one piece, which a client sends below 2 GB")
    birth, missing = context.store.artifacts.contents.announce(artifact.of.entity, md5, artifact.id)
    came_with = context.store.artifacts.by_id(birth)
    return file_node(artifact, Entry(name, md5, 0), context.base_url, birth=came_with, missing=missing)


def _artifact(context: Context, id_: str) -> Artifact:
    artifact = context.store.artifacts.by_id(id_)
    context.store.entity_for(context.user, artifact.of.entity)
    return artifact


def _names(aliases: Aliases | None, collection: str) -> list[str]:
    if strange := [one for one in aliases or () if one["artifact_collection_name"] != collection]:
        raise invalid(f"aliases for another collection than {collection}: {strange}")
    return [one["alias"] for one in aliases or ()]
