"""Randomness that belongs to an image, not to a batch.

Every image has its own stream, a pure function of (seed, index): the same picture comes out whatever the batch, the
order or the number of processes. A stream is addressed, not consumed: draw `(step, part)` of image `index` is always
the same numbers, so that a resumed run needs no generator state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError

__all__ = ["Noise", "Draws", "derive"]

_WORD = (1 << 64) - 1


def derive(seed: int, *tags: int | str) -> int:
    """A 64-bit seed that depends on `seed` and every tag; for independent uses of one user-given seed.

    >>> derive(0, "train", 3) == derive(0, "train", 3) != derive(0, "train", 4)
    True
    """
    text = repr((int(seed), *(tag if isinstance(tag, str) else int(tag) for tag in tags)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Noise:
    """The source of all noise of a run.

    Args:
        seed: 0 to 2^64 - 1; two seeds give independent streams.

    >>> a = Noise(0).at([3, 5], (2,)).normal()
    >>> b = Noise(0).at([5], (2,)).normal()
    >>> bool((a[1] == b[0]).all())
    True
    """

    def __init__(self, seed: int) -> None:
        self.seed = int(seed)
        if not 0 <= self.seed <= _WORD:
            raise InputError("seed", seed, "must be 0 or more and fit into 64 bits")

    def at(
        self,
        indices: Sequence[int] | Tensor | np.ndarray,
        shape: Sequence[int],
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Draws:
        """The streams of some images.

        Args:
            indices: (B,) non-negative image numbers.
            shape: shape of one image, without the batch, e.g. (1, 8, 8).
            device: where the draws are put.
            dtype: float32 or float64; the two hold the same numbers up to rounding.
        """
        return Draws(self.seed, indices, shape, torch.device(device), dtype)

    def __repr__(self) -> str:
        return f"Noise({self.seed})"


class Draws:
    """The noise of a fixed batch of images; made by :meth:`Noise.at`."""

    def __init__(
        self,
        seed: int,
        indices: Sequence[int] | Tensor | np.ndarray,
        shape: Sequence[int],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise InputError("noise dtype", str(dtype), "use torch.float32 or torch.float64")
        self.seed, self.shape, self.device, self.dtype = seed, tuple(int(n) for n in shape), device, dtype
        self.indices = np.array([int(i) for i in indices], dtype=np.int64)
        if (self.indices < 0).any():
            raise InputError("index", int(self.indices.min()), "image indices start at 0")
        self._bits = np.random.Philox(key=0)
        self._generator = np.random.Generator(self._bits)
        self._state = self._bits.state

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def numbers(self) -> Tensor:
        """The images' numbers, (B,) int64 on the draws' device."""
        return torch.from_numpy(self.indices).to(self.device)

    def _at(self, index: int, step: int, part: int) -> np.random.Generator:
        # Philox is counter-based: (seed, index) is the key, (step, part) the upper half of the counter, so that every
        # draw starts at a place of its own and the lower half never runs into the next one.
        state = self._state
        state["state"]["key"][:] = (self.seed & _WORD, index)
        state["state"]["counter"][:] = (0, 0, part & _WORD, step & _WORD)
        state["buffer_pos"], state["has_uint32"] = 4, 0
        self._bits.state = state
        return self._generator

    def normal(self, step: int = 0, part: int = 0) -> Tensor:
        """Standard normal draw (step, part) of each image, (B, *shape).

        Drawn in float64 and rounded, so that float32 and float64 runs see the same noise.
        """
        out = np.empty((len(self.indices), *self.shape), dtype=np.float64)
        for row, index in enumerate(self.indices):
            self._at(int(index), step, part).standard_normal(out=out[row, ...])
        return torch.from_numpy(out).to(self.dtype).to(self.device, non_blocking=True)

    def uniform(self, step: int = 0, part: int = 0, *, shape: Sequence[int] = ()) -> Tensor:
        """Uniform draw on [0, 1) of each image, (B, *shape), float64."""
        out = np.empty((len(self.indices), *shape), dtype=np.float64)
        for row, index in enumerate(self.indices):
            out[row] = self._at(int(index), step, part).random(tuple(shape))
        return torch.from_numpy(out).to(self.device, non_blocking=True)

    def integers(self, high: int, step: int = 0, part: int = 0) -> Tensor:
        """One integer in [0, high) for each image, (B,) int64."""
        if high < 1:
            raise InputError("high", high, "needs at least one value to draw from")
        return (self.uniform(step, part) * high).long().clamp_(max=high - 1)

    def reshaped(self, shape: Sequence[int]) -> Draws:
        """The same streams for images of another shape (latents, say)."""
        return Draws(self.seed, self.indices, shape, self.device, self.dtype)

    def derived(self, *tags: int | str) -> Draws:
        """Independent streams for the same images, named by `tags`."""
        return Draws(derive(self.seed, *tags), self.indices, self.shape, self.device, self.dtype)

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(self.seed, self.indices[rows], self.shape, self.device, self.dtype)
