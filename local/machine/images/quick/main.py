"""Starts a W&B run and finishes it."""

import wandb

wandb.init().finish()
