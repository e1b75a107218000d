"""The contract of whatever makes images: a denoiser with a sampler, a flow map, a GAN, an autoregressive model."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from scoreline.core.cond import Cond
from scoreline.core.noise import Noise

__all__ = ["ImageGenerator"]


class ImageGenerator(nn.Module):
    """Makes images by number: image i of a seed is the same picture in any batch.

    Attributes:
        shape: (C, H, W).
        num_classes: number of classes, or None.
        nfe: network evaluations per image, counted in the last call; None before the first.
    """

    shape: tuple[int, ...]
    num_classes: int | None = None
    nfe: float | None = None

    def generate(
        self, indices: Sequence[int] | Tensor, noise: Noise, cond: Cond | None = None, *, steps: int | None = None
    ) -> Tensor:
        """Images number `indices` of the source `noise`.

        Args:
            indices: (B,) image numbers.
            noise: the source, one stream an image.
            cond: conditions of the batch.
            steps: number of steps; None takes the generator's own.

        Returns:
            (B, C, H, W) float32 in [-1, 1].
        """
        raise NotImplementedError
