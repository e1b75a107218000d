"""Which images a step sees, and with which noise: pure functions of (seed, step).

Epochs are permutations drawn from (seed, epoch), laid end to end; step s takes places s B ... s B + B - 1 of that line.
Several processes, or the parts of an accumulated step, each take a consecutive piece of the same global batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise, derive
from scoreline.data.images import Batch, Images

__all__ = ["Data", "Feed", "Order", "Source"]


class Source(Protocol):
    """A data set of another kind than Images, such as pairs: batches by position, numbers, a shape, a fingerprint."""

    shape: tuple[int, ...]
    index: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Of the content, in hex."""

    def __len__(self) -> int: ...

    def batch(self, positions: np.ndarray) -> Batch:
        """What stands at some positions, (B,) 0 to len - 1."""


Data = Images | Tensor | tuple[Tensor, Tensor] | Source | None


class Order:
    """The order in which a training meets its images.

    Args:
        count: number of images.
        batch_size: images a step, over all processes.
        seed: any integer.

    >>> order = Order(count=4, batch_size=3, seed=0)
    >>> sorted([*order.positions(0).tolist(), int(order.positions(1)[0])])
    [0, 1, 2, 3]
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, batch_size, seed
        self._epochs: dict[int, np.ndarray] = {}

    def positions(self, step: int) -> np.ndarray:
        """Positions in the data set of the global batch of a step, (batch_size,) int64."""
        first = step * self.batch_size
        last = first + self.batch_size - 1
        epochs = range(first // self.count, last // self.count + 1)
        self._epochs = {epoch: self._epoch(epoch) for epoch in epochs}
        line = np.concatenate([self._epochs[epoch] for epoch in epochs]) if len(epochs) > 1 else self._epochs[epochs[0]]
        start = first - epochs[0] * self.count
        return line[start : start + self.batch_size]

    def crosses(self, step: int) -> bool:
        """Whether the batch of a step lies across the end of an epoch, so that an image may come twice."""
        return step * self.batch_size // self.count != ((step + 1) * self.batch_size - 1) // self.count

    def _epoch(self, epoch: int) -> np.ndarray:
        if epoch in self._epochs:
            return self._epochs[epoch]
        return np.random.default_rng(derive(self.seed, "order", epoch)).permutation(self.count)


class _Arrays:
    """A tensor of images or points (N, ...), with or without labels, as a data set; it stays where it is."""

    def __init__(self, image: Tensor, label: Tensor | None) -> None:
        if image.dim() == 0 or len(image) == 0:
            raise InputError("data", tuple(image.shape), "needs a first dimension that counts the images, 1 or more")
        if label is not None and len(label) != len(image):
            raise InputError("labels", len(label), f"need one for each of {len(image)} images")
        self.image = image
        self.label = None if label is None else label.to(image.device)
        self.shape = tuple(image.shape[1:])
        self.index = np.arange(len(image))

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, positions: np.ndarray) -> Batch:
        rows = torch.from_numpy(positions).to(self.image.device)
        return Batch(self.image[rows], None if self.label is None else self.label[rows], rows)

    @property
    def fingerprint(self) -> str:
        total = hashlib.sha256()
        for part in (self.image, self.label):
            if part is not None:
                total.update(f"{part.dtype}{tuple(part.shape)}".encode())
                total.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


class Feed:
    """Batches of a training, ready for the loop: on the device, with their draws.

    Args:
        data: Images; or another :class:`Source`; or a tensor (N, ...), or a pair (images, labels); or None for methods
            that make their own data, whose batches then hold images of shape (B, 0) and numbers that never come twice.
        batch_size: images a step, over all processes.
        seed: any integer.
        device: where batches go.
        pieces: number of pieces of a global batch: processes times accumulated parts.
    """

    def __init__(self, data: Data, *, batch_size: int, seed: int, device: torch.device, pieces: int = 1) -> None:
        if batch_size < 1 or batch_size % pieces:
            raise InputError("batch_size", batch_size, f"must be a multiple of processes x accumulate = {pieces}")
        self.source: Any
        if data is None:
            self.source = None
        elif isinstance(data, Tensor):
            self.source = _Arrays(data, None)
        elif isinstance(data, tuple):
            self.source = _Arrays(*data)
        elif all(hasattr(data, name) for name in ("batch", "index", "shape", "__len__")):
            self.source = data
        else:
            raise InputError("data", type(data).__name__, "give Images, a tensor, a pair (images, labels), or None")
        self.batch_size, self.seed, self.device, self.size = batch_size, seed, device, batch_size // pieces
        self.order = None if self.source is None else Order(len(self.source), batch_size, seed)
        self._once = self.source is not None and len(np.unique(self.source.index)) == len(self.source)

    def piece(self, step: int, number: int) -> Batch:
        """Piece `number` of the global batch of a step."""
        part = slice(number * self.size, (number + 1) * self.size)
        if self.order is None:
            streams = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[part]
            batch = Batch(torch.empty(self.size, 0), None, torch.from_numpy(streams))
            shape: tuple[int, ...] = ()
        else:
            positions = self.order.positions(step)
            streams = np.asarray(self.source.index)[positions]
            if not self._once or self.order.crosses(step):
                streams = _streams(streams)
            streams = streams[part]
            batch = self.source.batch(positions[part])
            shape = tuple(self.source.shape)
        draws = Noise(derive(self.seed, "train", step)).at(streams, shape, device=self.device)
        if batch.image.device != self.device:
            batch = batch.to(self.device)
        return replace(batch, draws=draws)

    def describe(self) -> dict[str, Any]:
        """Count, shape and fingerprint, for the record of a run."""
        if self.source is None:
            return {"count": None, "shape": None, "fingerprint": None}
        return {
            "count": len(self.source),
            "shape": list(self.source.shape),
            "fingerprint": self.source.fingerprint,
        }


def _streams(index: np.ndarray) -> np.ndarray:
    # A batch larger than the data set, or one across the end of an epoch, may hold an image twice; the second one
    # must not see the same noise again. Its stream lies 2^32 further on.
    earlier: dict[int, int] = {}
    out = np.empty_like(index)
    for place, number in enumerate(index.tolist()):
        times = earlier.get(number, 0)
        earlier[number] = times + 1
        out[place] = number + (times << 32)
    return out
