"""The fields of artifacts and of their collections, types and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ariadne import InterfaceType, ObjectType, QueryType, UnionType

from local.standins.wandb.artifact_files import file_node
from local.standins.wandb.artifacts import Artifact, ArtifactCollection, Entry
from local.standins.wandb.context import page
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


artifact_type.set_field("digestAlgorithm", lambda *_: "MANIFEST_MD5")
artifact_type.set_field("ttlIsInherited", lambda *_: False)


@query.field("artifact")
def _artifact(_: None, info: Info, id: str) -> Artifact | None:  # noqa: A002 - the schema's name
    return _readable(info, info.context.store.artifacts.get(id))


@query.field("clientIDMapping")
def _client_id_mapping(_: None, info: Info, client_id: str) -> dict[str, str] | None:
    artifact = _readable(info, info.context.store.artifacts.by_client_id(client_id))
    return {"server_id": artifact.id} if artifact else None


@project_type.field("artifact")
def _artifact_of_project(project: Project, info: Info, name: str) -> Artifact | None:
    return info.context.store.artifacts.find(project.entity_name, project.name, name)


@project_type.field("artifactCollectionMembership")
def _membership_by_name(project: Project, info: Info, name: str) -> Member | None:
    return _member(info.context.store.artifacts.find(project.entity_name, project.name, name))


@project_type.field("artifactCollection")
def _collection_of_project(project: Project, info: Info, name: str) -> ArtifactCollection | None:
    return next((one for one in _collections(project, info) if one.name == name), None)


@project_type.field("artifactTypes")
def _artifact_types(project: Project, info: Info, first: int | None = None, after: str | None = None) -> dict[str, Any]:
    return page(list(_kinds(project, info).values()), first, after)


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


@collection_type.field("project")
def _project_of_collection(collection: ArtifactCollection, info: Info) -> Project:
    return _project_of(collection, info)


@collection_type.field("defaultArtifactType")
def _type_of_collection(collection: ArtifactCollection, info: Info) -> Kind:
    return _kind_of(collection, info)


@collection_type.field("latestArtifact")
def _latest(collection: ArtifactCollection, _: Info) -> Artifact | None:
    return collection.latest()


@collection_type.field("tags")
def _tags_of_collection(_: ArtifactCollection, __: Info) -> dict[str, Any]:
    return page([])


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


@member_type.field("versionIndex")
def _member_version(member: Member, _: Info) -> int | None:
    return member.artifact.version


@member_type.field("createdAt")
def _member_since(member: Member, _: Info) -> float:
    return member.artifact.created_at


@member_type.field("artifactCollection")
def _collection_of_member(member: Member, _: Info) -> ArtifactCollection:
    return member.artifact.of


@member_type.field("aliases")
def _aliases_of_member(member: Member, _: Info) -> list[dict[str, Any]]:
    return _alias_nodes(member.artifact)


@member_type.field("files")
def _files_of_member(member: Member, info: Info, **which: Any) -> dict[str, Any]:
    return _file_page(member.artifact, info, **which)


@artifact_type.field("artifactType")
def _type_of_artifact(artifact: Artifact, info: Info) -> Kind:
    return _kind_of(artifact.of, info)


@artifact_type.field("artifactSequence")
def _sequence(artifact: Artifact, _: Info) -> ArtifactCollection:
    return artifact.of


@artifact_type.field("versionIndex")
def _version(artifact: Artifact, _: Info) -> int | None:
    return artifact.version


@artifact_type.field("aliases")
def _aliases(artifact: Artifact, _: Info) -> list[dict[str, Any]]:
    return _alias_nodes(artifact)


@artifact_type.field("tags")
def _tags(artifact: Artifact, _: Info) -> list[dict[str, str]]:
    return [{"id": f"Tag:{tag}", "name": tag} for tag in artifact.tags]


@artifact_type.field("ttlDurationSeconds")
def _ttl(artifact: Artifact, _: Info) -> int:
    return artifact.ttl


@artifact_type.field("size")
def _size(artifact: Artifact, _: Info) -> int:
    return sum(entry.size for entry in artifact.entries.values())


@artifact_type.field("fileCount")
def _file_count(artifact: Artifact, _: Info) -> int:
    return len(artifact.entries)


@artifact_type.field("currentManifest")
def _current_manifest(artifact: Artifact, _: Info) -> Artifact | None:
    return artifact if artifact.state == "COMMITTED" else None


@artifact_type.field("files")
def _files(artifact: Artifact, info: Info, **which: Any) -> dict[str, Any]:
    return _file_page(artifact, info, **which)


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
def _input_artifacts(run: Run, info: Info, first: int | None = None, after: str | None = None) -> dict[str, Any]:
    return page([one for one in info.context.store.artifacts if run.path in one.used_by], first, after)


@run_type.field("outputArtifacts")
def _output_artifacts(run: Run, info: Info, first: int | None = None, after: str | None = None) -> dict[str, Any]:
    logged = [one for one in info.context.store.artifacts if run.path in one.logged_by and one.state != "PENDING"]
    return page(logged, first, after)


@manifest_type.field("id")
def _manifest_id(artifact: Artifact, _: Info) -> str:
    return f"ArtifactManifest:{artifact.id}"


@manifest_type.field("file")
def _manifest_file(artifact: Artifact, info: Info) -> dict[str, Any]:
    """Return the artifact itself, which also represents its manifest here."""
    return file_node(artifact, Entry("wandb_manifest.json", artifact.manifest or "", 0), info.context.base_url)


def _alias_nodes(artifact: Artifact) -> list[dict[str, Any]]:
    return [
        {"id": f"ArtifactAlias:{artifact.of.id}:{alias}", "alias": alias, "artifact_collection": artifact.of}
        for alias in artifact.aliases
    ]


def _file_page(
    artifact: Artifact,
    info: Info,
    names: Sequence[str] | None = None,
    first: int | None = None,
    after: str | None = None,
) -> dict[str, Any]:
    entries = [entry for entry in artifact.entries.values() if not names or entry.name in names]
    return page([file_node(artifact, entry, info.context.base_url) for entry in entries], first, after)


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
