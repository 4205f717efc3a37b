"""The container images that the local Vertex AI can run. Each is a folder of programs in ``images``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REGISTRY = "us-docker.pkg.dev/demo-project/train"
FOLDERS = Path(__file__).parent / "images"
"""The programs of the images, one folder for each image."""


@dataclass(frozen=True)
class Image:
    """How to run an image on this machine.

    ``about`` is for people. ``folder`` holds the files of the container's working directory. ``entrypoint`` and ``cmd`` are
    the image's ENTRYPOINT and CMD; ``python`` in them is the interpreter of this cloud. An exit status in
    ``out_of_memory`` means that the kernel killed the program for its memory. With ``own_packages`` each container gets a
    Python environment of its own, with the packages of this one, into which it can install more. With ``memory`` a process
    gets no more than so many KiB of data, where the system has that limit.
    """

    about: str
    folder: Path | None
    entrypoint: tuple[str, ...] = ("python", "main.py")
    cmd: tuple[str, ...] = ()
    out_of_memory: frozenset[int] = frozenset()
    own_packages: bool = False
    memory: int | None = None


PYTHON = Image(
    "runs W&B jobs made from code or git, and schedulers of sweeps",
    None,
    ("python3",),
    out_of_memory=frozenset({137}),
    own_packages=True,
    memory=2**20,
)

EXAMPLES: Mapping[str, Image] = {
    f"{REGISTRY}/mnist:1": Image("trains a classifier and reports metrics", FOLDERS / "mnist", cmd=("--epochs", "5")),
    f"{REGISTRY}/quick:1": Image("starts and finishes a run", FOLDERS / "quick"),
    f"{REGISTRY}/steps:1": Image("trains in small steps and resumes; arguments --steps N --pause S", FOLDERS / "steps"),
    f"{REGISTRY}/no-init:1": Image("works, but never calls wandb.init", FOLDERS / "no_init"),
    f"{REGISTRY}/fail:1": Image("exits with status 3", FOLDERS / "fail", cmd=("3",)),
    f"{REGISTRY}/crash:1": Image("crashes before wandb.init", FOLDERS / "crash"),
    f"{REGISTRY}/hog:1": Image("takes memory until it is killed", FOLDERS / "hog", out_of_memory=frozenset({137})),
    f"{REGISTRY}/sleep:1": Image("runs until it is stopped, without W&B", FOLDERS / "sleep"),
    f"{REGISTRY}/hello:1": Image("prints its arguments, without W&B", FOLDERS / "hello", cmd=("world",)),
    # The official images of Python, which is this one in both. W&B's client is already there.
    f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim": PYTHON,
    "python:3.11-slim": PYTHON,
}
"""The images of the local cloud, by the URI that a job names."""
