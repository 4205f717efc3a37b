"""The container images that a local Vertex AI can run, and how: each is a folder of programs in ``local/images``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REGISTRY = "us-docker.pkg.dev/demo-project/train"
FOLDERS = Path(__file__).parent / "images"
"""The programs that are in the images, a folder each."""


@dataclass(frozen=True)
class Image:
    """How to run an image here.

    ``folder`` is what stands in the container's working directory; ``entrypoint`` and ``cmd`` are the image's
    ENTRYPOINT and CMD, where ``python`` is the interpreter that runs this cloud. An exit status in ``out_of_memory``
    means that the program was killed because it took too much memory. With ``own_packages`` there is a Python environment
    for this container alone, which has what this cloud has, and into which it may install what it likes.
    """

    folder: Path | None
    entrypoint: tuple[str, ...] = ("python", "main.py")
    cmd: tuple[str, ...] = ()
    out_of_memory: frozenset[int] = frozenset()
    own_packages: bool = False


EXAMPLES: Mapping[str, Image] = {
    # Trains a classifier and reports its metrics with the W&B SDK.
    f"{REGISTRY}/mnist:1": Image(FOLDERS / "mnist", cmd=("--epochs", "5")),
    # Starts and finishes a W&B run, nothing else.
    f"{REGISTRY}/quick:1": Image(FOLDERS / "quick"),
    # Works, but never calls wandb.init.
    f"{REGISTRY}/no-init:1": Image(FOLDERS / "no_init"),
    # Ends with status 3.
    f"{REGISTRY}/fail:1": Image(FOLDERS / "fail", cmd=("3",)),
    # Crashes before wandb.init, with last words that mislead.
    f"{REGISTRY}/crash:1": Image(FOLDERS / "crash"),
    # Takes memory until it is killed.
    f"{REGISTRY}/hog:1": Image(FOLDERS / "hog", out_of_memory=frozenset({137})),
    # Trains in small steps and resumes; with many of them it runs until somebody stops its run in W&B.
    f"{REGISTRY}/steps:1": Image(FOLDERS / "steps"),
    # Runs until it is stopped; knows nothing of W&B.
    f"{REGISTRY}/sleep:1": Image(FOLDERS / "sleep"),
    # The official image of this Python, in which W&B jobs made from code and from git run. W&B's client is there already.
    f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim": Image(None, ("python3",), own_packages=True),
    # Prints its arguments and its environment's names; does not need W&B.
    f"{REGISTRY}/hello:1": Image(FOLDERS / "hello", cmd=("world",)),
}
"""The images of the demo, by the URI that a job names."""
