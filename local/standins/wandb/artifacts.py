"""Artifacts in memory: collections and their versions, aliases, files, and the runs that logged and used them."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal

from local.standins.wandb.contents import Contents, md5
from local.standins.wandb.errors import conflict, invalid, not_found

LATEST = "latest"
"""The alias of the latest version."""

VERSION = re.compile(r"v(\d+)")
"""The alias that a version always keeps."""


@dataclass(frozen=True)
class Entry:
    """A file of a version or, with ``ref``, a reference to one elsewhere. ``digest`` is its MD5 in base64."""

    name: str
    digest: str
    size: int
    birth: str | None = None
    """The id of the artifact that its content came with."""
    ref: str | None = None


@dataclass(eq=False)
class Artifact:
    """A version of a collection. It gets its ``version`` when it is committed. Times are Unix seconds.

    ``logged_by`` and ``used_by`` are runs, as ``entity/project/run``, in order. The first run that logged it made it.
    """

    id: str
    of: ArtifactCollection = field(repr=False)
    digest: str
    username: str
    created_at: float
    updated_at: float
    client_id: str | None = None
    state: Literal["PENDING", "COMMITTED", "DELETED"] = "PENDING"
    version: int | None = None
    description: str | None = None
    metadata: Any = None
    wanted: list[str] = field(default_factory=list)
    """The aliases that it gets when it is committed."""
    tags: list[str] = field(default_factory=list)
    manifest: str | None = None
    """The digest of its manifest."""
    entries: dict[str, Entry] = field(default_factory=dict)
    ttl: int = -2
    """Seconds until it is deleted. The server never deletes it."""
    history_step: int | None = None
    logged_by: list[str] = field(default_factory=list)
    used_by: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Collection and version (``train:v0``), or the collection before the commit."""
        return self.of.name if self.version is None else f"{self.of.name}:v{self.version}"

    @property
    def path(self) -> str:
        """The full name: ``entity/project/name:version``."""
        return f"{self.of.entity}/{self.of.project}/{self.name}"

    @property
    def aliases(self) -> list[str]:
        """Its aliases, including its version."""
        own = [f"v{self.version}"] if self.state == "COMMITTED" else []
        return own + [alias for alias, artifact in self.of.aliases.items() if artifact is self]


@dataclass(eq=False)
class ArtifactCollection:
    """All versions of one name. ``kind`` is their type: ``job`` or ``code``."""

    id: str
    entity: str
    project: str
    name: str
    kind: str
    created_at: float
    artifacts: list[Artifact] = field(default_factory=list)
    aliases: dict[str, Artifact] = field(default_factory=dict)
    """The version of each alias, without the versions themselves."""

    def versions(self) -> list[Artifact]:
        """The versions that are committed and not deleted, the oldest first."""
        return [artifact for artifact in self.artifacts if artifact.state == "COMMITTED"]

    def latest(self) -> Artifact | None:
        """The newest of ``versions``."""
        return next(reversed(self.versions()), None)


class Artifacts:
    """All artifacts. Every method is atomic. Methods that look up by id or change something raise Refused.

    To add a version, call ``create``, put its files and its manifest into ``contents``, then call ``set_manifest`` and
    ``commit``. With ``deleted_by_name`` the name of a deleted version still finds it, with state DELETED.
    """

    def __init__(self, clock: Callable[[], float], lock: threading.RLock, *, deleted_by_name: bool = True) -> None:
        self.clock = clock
        self.deleted_by_name = deleted_by_name
        self.contents = Contents(lock)
        self.collections: dict[tuple[str, str, str], ArtifactCollection] = {}
        self._lock = lock
        self._numbers = count(1001)
        self._artifacts: dict[str, Artifact] = {}

    def __iter__(self) -> Iterator[Artifact]:
        """Every artifact in any state, the oldest first."""
        with self._lock:
            return iter(list(self._artifacts.values()))

    def collections_of(self, entity: str, project: str) -> list[ArtifactCollection]:
        """Return the project's collections, the oldest first."""
        with self._lock:
            return [one for (*where, _), one in self.collections.items() if where == [entity, project]]

    def find(self, entity: str, project: str, name: str) -> Artifact | None:
        """Return the artifact with the name ``name:alias`` or ``name:version``; a name alone means the latest."""
        name, _, alias = name.partition(":")
        with self._lock:
            collection = self.collections.get((entity, project, name))
            return self.member(collection, alias or LATEST) if collection else None

    def member(self, collection: ArtifactCollection, alias: str) -> Artifact | None:
        """Return the artifact of a collection with an alias or a version."""
        with self._lock:
            version = VERSION.fullmatch(alias)
            if version is None:
                return collection.aliases.get(alias)
            numbered = (one for one in collection.artifacts if one.version == int(version[1]))
            found = next(numbered, None)
            return found if found and (self.deleted_by_name or found.state != "DELETED") else None

    def by_id(self, id_: str) -> Artifact:
        """Return the artifact with an id, in any state."""
        if id_ not in self._artifacts:
            raise not_found(f'artifact "{id_}"')
        return self._artifacts[id_]

    def get(self, id_: str) -> Artifact | None:
        """Return the artifact with an id, or None if the id is not known."""
        return self._artifacts.get(id_)

    def by_client_id(self, client_id: str) -> Artifact | None:
        """Return the artifact to which a client gave an id before it was logged."""
        with self._lock:
            return next((one for one in self._artifacts.values() if one.client_id == client_id), None)

    def content(self, artifact: Artifact, name: str) -> bytes:
        """Return a file of an artifact."""
        entry = artifact.entries.get(name)
        if entry is None or entry.ref:
            raise not_found(f"file {name} of artifact {artifact.path}")
        return self.contents.get(artifact.of.entity, entry.digest)

    def create(
        self,
        entity: str,
        project: str,
        kind: str,
        name: str,
        digest: str,
        *,
        username: str,
        client_id: str | None = None,
        run: str | None = None,
        aliases: Collection[str] = (),
        deduplicate: bool = True,
        **details: Any,
    ) -> Artifact:
        """Create a version, or return the one that a client has already created or that has the same content.

        ``run`` logs it. ``details`` are fields of Artifact.
        """
        with self._lock:
            collection = self._collection(entity, project, kind, name)
            known = self._begun(collection, client_id) or (self._same(collection, digest) if deduplicate else None)
            now = self.clock()
            artifact = known or Artifact(
                self._id("Artifact"), collection, digest, username, now, now, client_id, **details
            )
            if known is None:
                self._artifacts[artifact.id] = artifact
                collection.artifacts.append(artifact)
            if run and run not in artifact.logged_by:
                artifact.logged_by.append(run)
            if artifact.state == "COMMITTED":
                self.add_aliases(artifact, aliases)
            else:
                artifact.wanted += [alias for alias in aliases if alias not in artifact.wanted]
            return artifact

    def put(self, artifact: Artifact, files: Mapping[str, bytes]) -> Artifact:
        """Upload and commit a version without a client. A committed version does not change."""
        with self._lock:
            if artifact.state != "COMMITTED":
                contents = {name: {"digest": md5(content), "size": len(content)} for name, content in files.items()}
                layout = {"storagePolicy": "wandb-storage-policy-v1", "storagePolicyConfig": {"storageLayout": "V2"}}
                manifest = json.dumps({"version": 1, **layout, "contents": contents}).encode()
                for content in (*files.values(), manifest):
                    self.contents.announce(artifact.of.entity, md5(content), artifact.id)
                    self.contents.put(artifact.of.entity, md5(content), content)
                self.set_manifest(artifact, md5(manifest))
                self.commit(artifact)
            return artifact

    def set_manifest(self, artifact: Artifact, digest: str) -> None:
        """Announce the manifest, which is uploaded like a file."""
        with self._lock:
            artifact.manifest = digest

    def commit(self, artifact: Artifact) -> None:
        """Commit a version after all uploads: it gets its number and its aliases."""
        with self._lock:
            if artifact.state != "PENDING":
                raise conflict(f"artifact {artifact.path} is {artifact.state.lower()} already")
            artifact.entries = self._entries(artifact)
            artifact.version = sum(one.version is not None for one in artifact.of.artifacts)
            artifact.state = "COMMITTED"
            self.add_aliases(artifact, [*artifact.wanted, LATEST])

    def add_aliases(self, artifact: Artifact, aliases: Collection[str]) -> None:
        """Set aliases of a version, and remove them from other versions of its collection."""
        with self._lock:
            if artifact.state != "COMMITTED":
                raise conflict(f"artifact {artifact.path} is {artifact.state.lower()} and cannot have aliases")
            if wrong := [alias for alias in aliases if VERSION.fullmatch(alias) and alias != f"v{artifact.version}"]:
                raise invalid(f"{', '.join(wrong)}: a version cannot be set as an alias")
            for alias in aliases:
                if not VERSION.fullmatch(alias):
                    artifact.of.aliases[alias] = artifact
            artifact.updated_at = self.clock()

    def delete_aliases(self, artifact: Artifact, aliases: Collection[str]) -> None:
        """Remove aliases from a version if it has them."""
        with self._lock:
            for alias in aliases:
                if artifact.of.aliases.get(alias) is artifact:
                    del artifact.of.aliases[alias]

    def delete(self, artifact: Artifact, *, with_aliases: bool = False) -> None:
        """Delete a version. It keeps its id and its number, and loses files and aliases."""
        with self._lock:
            aliases = [alias for alias, one in artifact.of.aliases.items() if one is artifact]
            if aliases and not with_aliases:
                raise conflict(f"artifact {artifact.path} has aliases and cannot be deleted: {', '.join(aliases)}")
            self.delete_aliases(artifact, aliases)
            artifact.entries = {}
            artifact.state = "DELETED"

    def use(self, artifact: Artifact, run: str) -> None:
        """Record that a run uses an artifact as its input."""
        with self._lock:
            if artifact.state != "COMMITTED":
                raise conflict(f"artifact {artifact.path} is {artifact.state.lower()} and cannot be used")
            if run not in artifact.used_by:
                artifact.used_by.append(run)

    def _collection(self, entity: str, project: str, kind: str, name: str) -> ArtifactCollection:
        key = (entity, project, name)
        if key not in self.collections:
            id_ = self._id("ArtifactCollection")
            self.collections[key] = ArtifactCollection(id_, entity, project, name, kind, self.clock())
        found = self.collections[key]
        if found.kind != kind:
            raise conflict(f'artifacts called {name} have the type "{found.kind}" in {entity}/{project}, not "{kind}"')
        return found

    def _begun(self, collection: ArtifactCollection, client_id: str | None) -> Artifact | None:
        mine = (one for one in collection.artifacts if client_id and one.client_id == client_id)
        return next(mine, None)

    def _same(self, collection: ArtifactCollection, digest: str) -> Artifact | None:
        return next((one for one in collection.versions() if one.digest == digest), None)

    def _entries(self, artifact: Artifact) -> dict[str, Entry]:
        """Return the entries of the manifest. Refuse if one of them was not uploaded."""
        entity = artifact.of.entity
        if artifact.manifest is None:
            raise conflict(f"artifact {artifact.path} has no manifest yet and cannot be committed")
        manifest = json.loads(self.contents.get(entity, artifact.manifest))
        entries = {name: _entry(name, given) for name, given in manifest["contents"].items()}
        for entry in entries.values():
            if not entry.ref:
                self.contents.get(entity, entry.digest)
        return entries

    def _id(self, kind: str) -> str:
        return base64.b64encode(f"{kind}:{next(self._numbers)}".encode()).decode()


def _entry(name: str, given: Mapping[str, Any]) -> Entry:
    return Entry(name, given["digest"], int(given.get("size") or 0), given.get("birthArtifactID"), given.get("ref"))
