"""Learns the square root of two in small steps, and goes on where it was when its run is resumed.

The run in W&B is its checkpoint: it holds how many steps were reported and what was known after the last of them.
"""

import argparse
import time

import wandb

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--pause", type=float, default=0.1, help="seconds that a step takes")
chosen = parser.parse_args()

# In whole seconds; a killed program loses what was not sent, and usually that is the last 15 seconds.
with wandb.init(config=vars(chosen), settings=wandb.Settings(x_file_stream_transmit_interval=1)) as run:
    root = run.summary.get("root", 1.0)
    print(f"begins at step {run.starting_step} with {root:.4f}", flush=True)
    for _ in range(run.starting_step, chosen.steps):
        time.sleep(chosen.pause)
        root -= 0.1 * (root * root - 2)
        run.log({"root": root, "loss": abs(root * root - 2)})
    print(f"ends with {root:.4f}", flush=True)
