"""Feature networks that need no weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from scoreline.core.encoder import Checked, Encoder
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
        self.tap = "x".join(map(str, self.shape))

    @property
    def protocol(self) -> dict[str, str]:
        return {
            "features": "pixels",
            "tap": self.tap,
            "weights": "none",
            "resize": "none",
            "quantisation": "none",
            "precision": "float32",
        }

    @property
    def preprocess(self) -> Callable[[Tensor], Tensor]:
        return Checked(self.shape[0], (self.shape[1], self.shape[2]))

    def activations(self, prepared: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """The (N, C H W) pixels of (N, C, H, W) images."""
        self.check_taps(names)
        return dict.fromkeys(names, prepared.flatten(1))
