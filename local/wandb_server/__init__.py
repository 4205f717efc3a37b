"""A W&B server for tests and demos: real protocol, unmodified clients, memory only."""

from local.wandb_server.server import DEFAULT_API_KEYS, WandbServer
from local.wandb_server.store import Store

__all__ = ["DEFAULT_API_KEYS", "Store", "WandbServer"]
