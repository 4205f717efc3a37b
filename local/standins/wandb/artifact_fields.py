"""The fields of artifacts and of their collections, types and files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ariadne import InterfaceType, ObjectType, QueryType, UnionType

from local.standins.wandb.artifact_files import file_node
from local.standins.wandb.artifacts import Artifact, ArtifactCollection, Entry
from local.standins.wandb.context import page, resolve_with
from local.standins.wandb.errors import invalid
from local.standins.wandb.runs import Run
from local.standins.wandb.store import Project, User

if TYPE_CHECKING:
    from local.standins.wandb.context import Info

query = QueryType()
project_type = ObjectType("Project")
run_type = ObjectType("Run")
kind_type = ObjectType("ArtifactType")
collection_type = ObjectType("ArtifactSequence")
member_type = ObjectType("ArtifactCollectionMembership")
artifact_type = ObjectType("Artifact")
manifest_type = ObjectType("ArtifactManifest")

TYPES = (
    query,
    project_type,
    run_type,
    kind_type,
    collection_type,
    member_type,
    artifact_type,
    manifest_type,
    InterfaceType("ArtifactCollection", lambda *_: "ArtifactSequence"),
    UnionType("ArtifactCreator", lambda creator, *_: "Run" if isinstance(creator, Run) else "User"),
)


@dataclass(frozen=True)
class Kind:
    """A type of artifacts in a project."""

    project: Project
    name: str
    created_at: float
    description: str | None = None

    @property
    def id(self) -> str:
        """The id of the type."""
        return f"ArtifactType:{self.project.id}:{self.name}"


@dataclass(frozen=True)
class Member:
    """A version as a member of its collection."""

    artifact: Artifact

    @property
    def id(self) -> str:
        """The id of the membership."""
        return f"ArtifactCollectionMembership:{self.artifact.id}"


@query.field("artifact")
def _artifact(_: None, info: Info, id: str) -> Artifact | None:  # noqa: A002 - the schema's name
    return _readable(info, info.context.store.artifacts.get(id))


@query.field("clientIDMapping")
def _client_id_mapping(_: None, info: Info, client_id: str) -> dict[str, str] | None:
    artifact = _readable(info, info.context.store.artifacts.by_client_id(client_id))
    return {"server_id": artifact.id} if artifact else None


@project_type.field("artifact")
def _artifact_called(project: Project, info: Info, name: str) -> Artifact | None:
    return info.context.store.artifacts.find(project.entity_name, project.name, name)


@project_type.field("artifactCollectionMembership")
def _membership_by_name(project: Project, info: Info, name: str) -> Member | None:
    return _member(_artifact_called(project, info, name))


@project_type.field("artifactCollection")
def _collection_of_project(project: Project, info: Info, name: str) -> ArtifactCollection | None:
    return next((one for one in _collections(project, info) if one.name == name), None)


@project_type.field("artifactTypes")
def _artifact_types(project: Project, info: Info, **which: Any) -> dict[str, Any]:
    return page(list(_kinds(project, info).values()), **which)


@project_type.field("artifactType")
def _artifact_type(project: Project, info: Info, name: str) -> Kind | None:
    return _kinds(project, info).get(name)


@kind_type.field("artifactCollection")
def _collection_of_type(kind: Kind, info: Info, name: str) -> ArtifactCollection | None:
    return next((one for one in _of_kind(kind, info) if one.name == name), None)


@kind_type.field("artifactCollections")
def _collections_of_type(
    kind: Kind, info: Info, first: int | None = None, after: str | None = None, **narrowed: Any
) -> dict[str, Any]:
    _plain(**narrowed)
    return page(_of_kind(kind, info), first, after)


@collection_type.field("artifactMembership")
def _membership(collection: ArtifactCollection, info: Info, alias_name: str) -> Member | None:
    return _member(info.context.store.artifacts.member(collection, alias_name))


@collection_type.field("artifacts")
def _versions(
    collection: ArtifactCollection, _: Info, first: int | None = None, after: str | None = None, **narrowed: Any
) -> dict[str, Any]:
    """Return the versions, the newest first as from the real server."""
    _plain(**narrowed)
    found = page(collection.versions()[::-1], first, after)
    for edge in found["edges"]:
        edge["version"] = f"v{edge['node'].version}"
    return found


@member_type.field("files")
def _files_of_member(member: Member, info: Info, **which: Any) -> dict[str, Any]:
    return _file_page(member.artifact, info, **which)


def _file_page(
    artifact: Artifact,
    info: Info,
    names: Sequence[str] | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    entries = [entry for entry in artifact.entries.values() if not names or entry.name in names]
    return page([file_node(artifact, entry, info.context.base_url) for entry in entries], first, after)


@artifact_type.field("createdBy")
def _created_by(artifact: Artifact, info: Info) -> Run | User | None:
    """Return the run that made it, null if that was deleted, or the user if a person made it."""
    if artifact.logged_by:
        return info.context.store.runs.by_path(artifact.logged_by[0])
    return info.context.store.users[artifact.username]


@artifact_type.field("usedBy")
def _used_by(artifact: Artifact, info: Info) -> dict[str, Any]:
    runs = [info.context.store.runs.by_path(path) for path in artifact.used_by]
    return page([run for run in runs if run])


@run_type.field("inputArtifacts")
def _input_artifacts(run: Run, info: Info, **which: Any) -> dict[str, Any]:
    return page([one for one in info.context.store.artifacts if run.path in one.used_by], **which)


@run_type.field("outputArtifacts")
def _output_artifacts(run: Run, info: Info, **which: Any) -> dict[str, Any]:
    logged = [one for one in info.context.store.artifacts if run.path in one.logged_by and one.state != "PENDING"]
    return page(logged, **which)


@manifest_type.field("file")
def _manifest_file(artifact: Artifact, info: Info) -> dict[str, Any]:
    """Return the artifact itself, which also represents its manifest here."""
    return file_node(artifact, Entry("wandb_manifest.json", artifact.manifest or "", 0), info.context.base_url)


def _alias_nodes(artifact: Artifact) -> list[dict[str, Any]]:
    return [
        {"id": f"ArtifactAlias:{artifact.of.id}:{alias}", "alias": alias, "artifact_collection": artifact.of}
        for alias in artifact.aliases
    ]


def _readable(info: Info, artifact: Artifact | None) -> Artifact | None:
    entities = info.context.store.entities
    return artifact if artifact and info.context.user.username in entities[artifact.of.entity].members else None


def _member(artifact: Artifact | None) -> Member | None:
    return Member(artifact) if artifact else None


def _project_of(collection: ArtifactCollection, info: Info) -> Project:
    return info.context.store.projects[collection.entity, collection.project]


def _kind_of(collection: ArtifactCollection, info: Info) -> Kind:
    return _kinds(_project_of(collection, info), info)[collection.kind]


def _collections(project: Project, info: Info) -> list[ArtifactCollection]:
    return info.context.store.artifacts.collections_of(project.entity_name, project.name)


def _of_kind(kind: Kind, info: Info) -> list[ArtifactCollection]:
    return [one for one in _collections(kind.project, info) if one.kind == kind.name]


def _kinds(project: Project, info: Info) -> Mapping[str, Kind]:
    """Return the types of the project's artifacts, by name."""
    kinds: dict[str, Kind] = {}
    for one in _collections(project, info):
        kinds.setdefault(one.kind, Kind(project, one.kind, one.created_at))
    return kinds


def _plain(filters: Any = None, order: str | None = None) -> None:
    """Refuse filters and orders that are not supported."""
    if filters not in (None, {}, {"state": "COMMITTED"}) or order not in (None, "-createdAt"):
        raise invalid(f"the local W&B lists all committed artifacts, newest first, and not by {filters or order}")


_OF_COLLECTION: Mapping[str, Callable[[ArtifactCollection, Any], Any]] = {
    "project": _project_of,
    "defaultArtifactType": _kind_of,
    "latestArtifact": lambda collection, _: collection.latest(),
    "tags": lambda *_: page([]),
}
_OF_MEMBER: Mapping[str, Callable[[Member, Any], Any]] = {
    "versionIndex": lambda member, _: member.artifact.version,
    "createdAt": lambda member, _: member.artifact.created_at,
    "artifactCollection": lambda member, _: member.artifact.of,
    "aliases": lambda member, _: _alias_nodes(member.artifact),
}
_OF_ARTIFACT: Mapping[str, Callable[[Artifact, Any], Any]] = {
    "artifactType": lambda artifact, info: _kind_of(artifact.of, info),
    "artifactSequence": lambda artifact, _: artifact.of,
    "versionIndex": lambda artifact, _: artifact.version,
    "digestAlgorithm": lambda *_: "MANIFEST_MD5",
    "aliases": lambda artifact, _: _alias_nodes(artifact),
    "tags": lambda artifact, _: [{"id": f"Tag:{tag}", "name": tag} for tag in artifact.tags],
    "ttlDurationSeconds": lambda artifact, _: artifact.ttl,
    "ttlIsInherited": lambda *_: False,
    "size": lambda artifact, _: sum(entry.size for entry in artifact.entries.values()),
    "fileCount": lambda artifact, _: len(artifact.entries),
    "currentManifest": lambda artifact, _: artifact if artifact.state == "COMMITTED" else None,
}

resolve_with(collection_type, _OF_COLLECTION)
resolve_with(member_type, _OF_MEMBER)
resolve_with(artifact_type, _OF_ARTIFACT)
artifact_type.set_field("files", _file_page)
manifest_type.set_field("id", lambda artifact, _: f"ArtifactManifest:{artifact.id}")
