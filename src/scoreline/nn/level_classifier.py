"""The noise-level classifier of denoising MCMC, Kim & Ye 2023 (arXiv 2209.14593): which level is this image at?

    table_j = sigma_min (sigma_max/sigma_min)^tau_j,   tau from 1 down to 1/1000 in even steps; index 0 is the LARGEST
    logits = linear(flatten(blocks(x))),   a block: 3x3 convolution, ReLU, average pool 2x2

The levels are those of data in [0, 1], as in the paper; images come in [-1, 1], where the same noise is twice as large.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.errors import InputError

__all__ = ["LevelClassifier", "fitting_strides", "level_table"]


def level_table(sigma_min: float = 0.01, sigma_max: float = 50.0, count: int = 1000) -> np.ndarray:
    """The noise levels, (count,) float64, log-uniform, the largest first and the last slightly above sigma_min.

    Args:
        sigma_min: > 0, for data in [0, 1].
        sigma_max: above sigma_min; 50 for CIFAR-10, 348 for CelebA-HQ-256.
        count: number of levels, 2 or more.

    Raises:
        InputError: the range is empty or there are too few levels.

    >>> table = level_table(0.01, 50.0, 1000)
    >>> float(table[0]), bool(table[-1] > 0.01)
    (50.0, True)
    """
    if not 0 < sigma_min < sigma_max:
        raise InputError("sigma_min, sigma_max", (sigma_min, sigma_max), "need 0 < sigma_min < sigma_max")
    if count < 2:
        raise InputError("levels", count, "a table has at least 2 levels")
    tau = np.linspace(1.0, 1e-3, count)
    table = sigma_min * (sigma_max / sigma_min) ** tau
    table[0] = sigma_max
    return table


def fitting_strides(size: int, blocks: int = 4) -> tuple[int, ...]:
    """Strides of the pools (2 or 4) that bring a square image down to 2x2, the larger ones first.

    >>> fitting_strides(32), fitting_strides(256), fitting_strides(8)
    ((2, 2, 2, 2), (4, 4, 4, 2), (2, 2))

    Raises:
        InputError: the side is not a power of two from 4 to 2 * 4^blocks.
    """
    halvings = round(math.log2(max(size, 1))) - 1
    if size != 2 ** (halvings + 1) or not 1 <= halvings <= 2 * blocks:
        raise InputError("image side", size, f"must be a power of two from 4 to {2 * 4**blocks}; give strides")
    depth = min(blocks, halvings)
    fours = halvings - depth
    return (4,) * fours + (2,) * (depth - fours)


class LevelClassifier(nn.Module):
    """The convolutional classifier; with the defaults the paper's net for CIFAR-10, 1,413,416 parameters.

    Args:
        in_shape: (C, H, W) of the images.
        channels: of the blocks' convolutions.
        strides: of the blocks' pools, whose windows are always 2x2; None takes `fitting_strides`.
        levels: number of classes.

    Raises:
        InputError: not images, or the image is too small for the pools.
    """

    def __init__(
        self,
        *,
        in_shape: Sequence[int] = (3, 32, 32),
        channels: Sequence[int] = (32, 64, 128, 256),
        strides: Sequence[int] | None = None,
        levels: int = 1000,
    ) -> None:
        super().__init__()
        if len(in_shape) != 3:
            raise InputError("in_shape", tuple(in_shape), "the level classifier takes images, (C, H, W)")
        height, width = in_shape[1:]
        if strides is None:
            if height != width:
                raise InputError("in_shape", tuple(in_shape), "is not square; give strides")
            strides = fitting_strides(height, len(channels))
        channels = tuple(channels)[: len(strides)]
        if len(channels) != len(strides):
            raise InputError("strides", tuple(strides), f"give one for each of {len(channels)} blocks")
        self.in_shape, self.levels, self.strides = tuple(in_shape), levels, tuple(strides)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in zip((in_shape[0], *channels), channels)
        )
        for stride in self.strides:
            height, width = (height - 2) // stride + 1, (width - 2) // stride + 1
        if height < 1 or width < 1:
            raise InputError("strides", self.strides, f"nothing is left of images of {in_shape[1]}x{in_shape[2]}")
        self.head = nn.Linear(channels[-1] * height * width, levels)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, levels) of noisy images x (B, C, H, W) = x_0 + noise, x_0 in [-1, 1]."""
        h = 0.5 * (x + 1)  # the paper's network sees data in [0, 1]
        for conv, stride in zip(self.convs, self.strides):
            h = F.avg_pool2d(F.relu(conv(h)), 2, stride)
        return self.head(h.flatten(1))
