"""The stand-in for W&B: the real protocol for unmodified clients, in memory."""

from local.standins.wandb.server import DEFAULT_API_KEYS, WandbServer
from local.standins.wandb.store import Store

__all__ = ["DEFAULT_API_KEYS", "Store", "WandbServer"]
