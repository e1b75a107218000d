"""A data set that is read in order only, for what fits neither memory nor disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

import numpy as np
import torch

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data.arrays import from_arrays
from scoreline.data.decode import decode, inspect
from scoreline.data.images import Batch, Images
from scoreline.data.pixels import OnBadImage
from scoreline.data.transforms import from_uint8

__all__ = ["ImageStream", "Encoded"]

Encoded = tuple[bytes, int]
"""An encoded picture and its label (-1 without)."""

_RANDOM_ACCESS = ("batch", "subset", "split", "relabel", "labels", "index", "fingerprint", "describe")


class ImageStream:
    """Images in the order of their source: `batches` and `take`, and no random access.

    The first picture decides channels and, without `size`, height and width of all.

    Args:
        open: starts a pass over the encoded pictures; every pass must give the same ones.
        name: shown in errors.
        num_classes: number of classes, None without labels.
        class_names: one name a class.
        size: resize the shorter side to this and cut the middle square.
        channels: 1, 3, or None to see from the first picture.
        on_bad_image: "error", or "skip" to leave bad pictures out and list those of the latest pass in `.skipped`.
    """

    def __init__(
        self,
        open: Callable[[], Iterable[Encoded]],
        *,
        name: str,
        num_classes: int | None = None,
        class_names: list[str] | None = None,
        size: int | None = None,
        channels: int | None = None,
        on_bad_image: OnBadImage = "error",
    ) -> None:
        self.name, self.num_classes, self.class_names = name, num_classes, class_names
        self.skipped: list[tuple[str, str]] = []
        self._open, self._size, self._on_bad_image = open, size, on_bad_image
        self.shape = self._first_shape(channels)

    def _first_shape(self, channels: int | None) -> tuple[int, int, int]:
        reason = "it is empty"
        for position, (data, _) in enumerate(self._open()):
            try:
                header = inspect(data, self._place(position))
                decode(data, self._place(position), channels=3)
            except ArtefactError as error:
                if self._on_bad_image == "error":
                    raise
                reason = error.mend
                continue
            height, width = (self._size, self._size) if self._size else (header.height, header.width)
            self._assumed_grey = channels is None and header.grey
            return channels or (1 if header.grey else 3), height, width
        raise ArtefactError(self.name, None, f"holds no picture that can be read ({reason})")

    def _place(self, position: int) -> str:
        return f"{position} of {self.name}"

    def _images(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """(position, label, (C, H, W) uint8) of every good picture."""
        self.skipped = []
        for position, (data, label) in enumerate(self._open()):
            try:
                if self._assumed_grey and not inspect(data, self._place(position)).grey:
                    raise InputError(
                        "channels", None, f"image {position} is coloured, the first is grey; give channels"
                    )
                pixels = decode(data, self._place(position), channels=self.shape[0], size=self._size)
            except ArtefactError as error:
                if self._on_bad_image == "error":
                    raise
                self.skipped.append((self._place(position), error.mend))
                continue
            if pixels.shape[:2] != self.shape[1:]:
                raise InputError(
                    "image sizes", None, f"differ: image {self._place(position)} is {pixels.shape[1]} x "
                    f"{pixels.shape[0]}, the first is {self.shape[2]} x {self.shape[1]}; give size= (--size)"
                )  # fmt: skip
            yield position, label, pixels.transpose(2, 0, 1)

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """One pass over the stream; an image's index is its position, and the last batch may be smaller."""
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "needs 1 or more")
        waiting: list[tuple[int, int, np.ndarray]] = []
        for item in self._images():
            waiting.append(item)
            if len(waiting) == batch_size:
                yield self._batch(waiting)
                waiting = []
        if waiting:
            yield self._batch(waiting)

    def _batch(self, items: list[tuple[int, int, np.ndarray]]) -> Batch:
        positions, labels, pixels = zip(*items, strict=True)
        return Batch(
            image=from_uint8(torch.from_numpy(np.stack(pixels))),
            label=None if self.num_classes is None else torch.tensor(labels, dtype=torch.int64),
            index=torch.tensor(positions, dtype=torch.int64),
        )

    def take(self, count: int) -> Images:
        """The first `count` good images as a set in memory, with random access."""
        if count < 1:
            raise InputError("count", count, "needs 1 or more")
        items = [item for _, item in zip(range(count), self._images(), strict=False)]
        positions, labels, pixels = zip(*items, strict=True)
        taken = from_arrays(
            np.stack(pixels),
            None if self.num_classes is None else labels,
            name=f"{self.name}, first {len(items)}",
            num_classes=self.num_classes,
            class_names=self.class_names,
        )
        taken.index = np.array(positions, dtype=np.int64)
        return taken

    def __len__(self) -> int:
        self._refuse("len()")

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute in _RANDOM_ACCESS:
            self._refuse(f".{attribute}")
        raise AttributeError(attribute)

    def _refuse(self, what: str) -> NoReturn:
        raise InputError(
            "stream", self.name, f"is read in order only and has no {what}; use batches(), take(n), or no streaming"
        )
