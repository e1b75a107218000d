"""A small attribution in a process of its own, for tests that kill it: folder, workers, seconds a coalition."""

from __future__ import annotations

import sys
import time

import torch
from torch import Tensor

from scoreline.core.noise import Noise
from scoreline.explain.copyscope import CopyScope
from scoreline.nn.features import Pixels

SHAPE = (1, 3, 3)
NAMES = ["a", "b", "c"]


def make(active: frozenset[str], noise: Noise, seconds: float = 0.0) -> Tensor:
    """40 images whose mean moves with each component; c does nothing."""
    time.sleep(seconds)
    x = 0.2 * noise.at(range(40), SHAPE).normal()
    x = x + 0.3 * ("a" in active) + (0.2 + 0.1 * ("a" in active)) * ("b" in active)
    return x.clamp(-1, 1)


def scope(seconds: float = 0.0, **settings: object) -> CopyScope:
    artwork = (0.6 + 0.2 * Noise(99).at(range(30), SHAPE).normal()).clamp(-1, 1)
    arguments = {"seeds": (0, 1), **settings}
    return CopyScope(
        NAMES, lambda active, noise: make(active, noise, seconds), artwork, {"pixels": Pixels(SHAPE)}, **arguments
    )  # type: ignore[arg-type]


if __name__ == "__main__":
    torch.set_num_threads(1)
    scope(float(sys.argv[3])).run(sys.argv[1], workers=int(sys.argv[2]))
