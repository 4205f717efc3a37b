"""Addresses of W&B servers, as W&B's own client reads them (wandb/sdk/lib/urls.py). Pure.

The client is not imported, because that takes a second.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

_CLOUD = {
    "api.wandb.ai": "https://api.wandb.ai",
    "api.forge.coreweave.com": "https://api.wandb.ai",
    "api.qa.wandb.ai": "https://api.qa.wandb.ai",
    "api.qa.forge.coreweave.com": "https://api.qa.wandb.ai",
}
"""The hosts of W&B's cloud, each with what its server is called here, whichever of its names is used."""

FORGE = ("forge.coreweave.com", "qa.forge.coreweave.com")
"""Hosts of the app. Its API is at the host with ``api.`` before it, and below FORGE_PATH."""

FORGE_PATH = "/api/wandb"


@cache
def default() -> str:
    """Return the address that the installed client uses if none is set."""
    spec = find_spec("wandb")
    for folder in (spec and spec.submodule_search_locations) or ():
        source = Path(folder, "sdk/lib/urls.py")
        if source.is_file() and (
            found := re.search(r'^DEFAULT_BASE_URL = "(https://[^"]+)"', source.read_text(), re.M)
        ):
            return found[1]
    return "https://api.wandb.ai"


@lru_cache(100)
def server(base_url: str) -> str:
    """Return what stands for the server at an address: the same for all addresses of W&B's cloud, else the address."""
    address = base_url.rstrip("/")
    try:
        url = urlsplit(address)
        is_plain = url.scheme == "https" and url.port in (None, 443) and not url.path
    except ValueError:
        return address
    return _CLOUD.get(url.hostname or "", address) if is_plain else address


def is_cloud(hostname: str) -> bool:
    """Return whether a host is the API of W&B's cloud."""
    return hostname in _CLOUD
