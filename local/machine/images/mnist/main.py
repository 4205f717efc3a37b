"""Train a softmax classifier on small drawn digits, in plain Python, and report every epoch to W&B.

The digits 0, 1, 4 and 7 are drawn on 6 by 7 pixels, shifted, and made noisy. The seed selects them.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Sequence

import wandb

WIDTH, HEIGHT = 6, 7
SHAPES = {
    0: (".##...", "#..#..", "#..#..", "#..#..", "#..#..", ".##..."),
    1: (".#....", "##....", ".#....", ".#....", ".#....", "###..."),
    4: ("#.#...", "#.#...", "#.#...", "####..", "..#...", "..#..."),
    7: ("####..", "...#..", "..#...", "..#...", ".#....", ".#...."),
}
CLASSES = sorted(SHAPES)

Image = list[float]


def draw(digit: int, noise: float, dice: random.Random) -> Image:
    """Draw a digit somewhere in the picture, with ``noise`` as the standard deviation of every pixel."""
    right, down = dice.randrange(2), dice.randrange(2)
    pixels = [[0.0] * WIDTH for _ in range(HEIGHT)]
    for y, row in enumerate(SHAPES[digit]):
        for x, mark in enumerate(row[: WIDTH - right]):
            pixels[y + down][x + right] = float(mark == "#")
    return [pixel + dice.gauss(0, noise) for row in pixels for pixel in row] + [1.0]


def dataset(size: int, noise: float, dice: random.Random) -> list[tuple[Image, int]]:
    """Draw ``size`` pictures with the index of their class."""
    chosen = [dice.randrange(len(CLASSES)) for _ in range(size)]
    return [(draw(CLASSES[index], noise, dice), index) for index in chosen]


def probabilities(weights: Sequence[Sequence[float]], image: Image) -> list[float]:
    """Return the probability of each class (softmax of a linear model)."""
    scores = [sum(w * x for w, x in zip(row, image, strict=True)) for row in weights]
    top = max(scores)
    powers = [math.exp(score - top) for score in scores]
    return [power / sum(powers) for power in powers]


def train_epoch(weights: list[list[float]], data: Sequence[tuple[Image, int]], rate: float) -> float:
    """Train on all data once, by stochastic gradient descent. Return the mean cross entropy."""
    loss = 0.0
    for image, label in data:
        found = probabilities(weights, image)
        loss -= math.log(max(found[label], 1e-12))
        for index, row in enumerate(weights):
            slope = rate * (found[index] - (index == label))
            for place, x in enumerate(image):
                row[place] -= slope * x
    return loss / len(data)


def accuracy(weights: Sequence[Sequence[float]], data: Sequence[tuple[Image, int]]) -> float:
    """Return the share of pictures that are classified correctly."""
    hits = 0
    for image, label in data:
        found = probabilities(weights, image)
        hits += found.index(max(found)) == label
    return hits / len(data)


def main() -> None:
    """Train with the options of the command line. The run's configuration in W&B overrides them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=0.02)
    parser.add_argument("--noise", type=float, default=0.4)
    parser.add_argument("--size", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    with wandb.init(config=vars(parser.parse_args())) as run:
        chosen = run.config
        dice = random.Random(chosen["seed"])
        data, unseen = (dataset(chosen["size"], chosen["noise"], dice) for _ in range(2))
        weights = [[0.0] * (WIDTH * HEIGHT + 1) for _ in CLASSES]
        for epoch in range(1, chosen["epochs"] + 1):
            loss = train_epoch(weights, data, chosen["learning_rate"])
            right = accuracy(weights, unseen)
            run.log({"epoch": epoch, "loss": loss, "accuracy": right})
            print(f"epoch {epoch}: loss {loss:.4f}, accuracy {right:.3f}", flush=True)


if __name__ == "__main__":
    main()
