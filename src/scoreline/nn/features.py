"""Feature networks that need no weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from scoreline.core.encoder import Encoder, check_images
from scoreline.core.errors import InputError

__all__ = ["Pixels"]


class Pixels(Encoder):
    """Features = the pixels themselves, flattened, in [-1, 1].

    A Frechet distance on them is called fd-pixel, never FID: at 8 x 8 it sees what matters, on photographs it does not.

    Args:
        shape: (C, H, W) of the images; others are refused, never resized.
    """

    def __init__(self, shape: Sequence[int] = (1, 8, 8)) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise InputError("shape", tuple(shape), "(C, H, W), each at least 1")
        self.shape = tuple(int(s) for s in shape)
        self.dim = self.shape[0] * self.shape[1] * self.shape[2]

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "features": "pixels",
            "tap": "x".join(map(str, self.shape)),
            "weights": "none",
            "resize": "none",
            "quantisation": "none",
            "precision": "float32",
        }

    def features(self, x: Tensor) -> Tensor:
        """(N, C H W) pixels of (N, C, H, W) images in [-1, 1]."""
        check_images(x, channels=self.shape[0], size=(self.shape[1], self.shape[2]))
        return x.flatten(1)
