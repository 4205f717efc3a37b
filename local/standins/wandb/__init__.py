"""A W&B server for tests and demos: real protocol, unmodified clients, memory only."""

from local.standins.wandb.server import DEFAULT_API_KEYS, WandbServer
from local.standins.wandb.store import Store

__all__ = ["DEFAULT_API_KEYS", "Store", "WandbServer"]
