"""Compute the square root of two in small steps, and continue from the last step when the run is resumed.

The run in W&B is the checkpoint: it holds the number of reported steps and the last value.
"""

import argparse
import time

import wandb

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--pause", type=float, default=0.1, help="seconds that a step takes")
chosen = parser.parse_args()

# In whole seconds. A killed program loses what it has not sent: with the default up to 15 seconds.
with wandb.init(config=vars(chosen), settings=wandb.Settings(x_file_stream_transmit_interval=1)) as run:
    root = run.summary.get("root", 1.0)
    print(f"begins at step {run.starting_step} with {root:.4f}", flush=True)
    for _ in range(run.starting_step, chosen.steps):
        time.sleep(chosen.pause)
        root -= 0.1 * (root * root - 2)
        run.log({"root": root, "loss": abs(root * root - 2)})
    print(f"ends with {root:.4f}", flush=True)
