"""Start a W&B run and finish it."""

import wandb

wandb.init().finish()
