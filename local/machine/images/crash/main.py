"""Crash before wandb.init, with a last line that mentions many other causes."""


def load(shard: int) -> None:
    """Fail to load a shard of a data set."""
    try:
        raise MemoryError("Job completed successfully.")
    except MemoryError as error:
        raise RuntimeError(
            f"shard {shard}: Internal error occurred for the current attempt, STOCKOUT: the loader was preempted and ran "
            "out of memory, image not found"
        ) from error


load(7)
