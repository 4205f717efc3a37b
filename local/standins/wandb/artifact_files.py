"""The files of artifacts as clients see them: the addresses for upload and download."""

from __future__ import annotations

import mimetypes
from typing import Any
from urllib.parse import quote

from local.standins.wandb.artifacts import Artifact, Entry
from local.standins.wandb.contents import hex_digest


def file_node(
    artifact: Artifact, entry: Entry, base_url: str, *, birth: Artifact | None = None, missing: bool = True
) -> dict[str, Any]:
    """The schema's File. A reference is at the place that it refers to.

    ``birth`` is the artifact that its content came with. ``missing`` is true before the upload.
    """
    path = "" if entry.ref else f"/_artifacts/{quote(artifact.of.entity)}/{hex_digest(entry.digest)}"
    address = entry.ref or f"{base_url}{path}"
    return {
        "id": f"{artifact.id}/{entry.name}",
        "name": entry.name,
        "display_name": entry.name,
        "url": address,
        "direct_url": address,
        "upload_url": address if missing else None,
        "upload_headers": [],
        "storage_path": path,
        "size_bytes": entry.size,
        "mimetype": mimetypes.guess_type(entry.name)[0],
        "digest": entry.digest,
        "md5": entry.digest,
        "updated_at": artifact.updated_at,
        "artifact": birth or artifact,
    }
