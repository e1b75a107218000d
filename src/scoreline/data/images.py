"""One typed object for every set of images, whatever it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.noise import Draws
from scoreline.data.pixels import Pixels
from scoreline.data.splits import choose

__all__ = ["Batch", "Images", "EXTRAS"]

EXTRAS = ("mask", "view", "domain", "group", "caption")

Indices = Sequence[int] | Tensor | np.ndarray | range


@dataclass(frozen=True)
class Batch:
    """Some images and what belongs to them.

    Args:
        image: (B, C, H, W) float32 in [-1, 1].
        label: (B,) int64, -1 where missing ((B, L) for multi-label sets), or None for a set without labels.
        index: (B,) int64, each image's place in the original set, whatever subset it came through.
        extras: what else is known, under the names mask, view, domain, group (tensors) and caption (tuple of str);
            pairs hold their other half under noise or source.
        draws: each image's own noise for this turn, put there by the training loop.
    """

    image: Tensor
    label: Tensor | None
    index: Tensor
    extras: Mapping[str, Any] = field(default_factory=dict)
    draws: Draws | None = None

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""

        def move(value: Any) -> Any:
            return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

        draws = self.draws
        if draws is not None:
            draws = Draws(draws.seed, draws.indices, draws.shape, torch.device(device), draws.dtype)
        return replace(
            self,
            image=move(self.image),
            label=move(self.label),
            index=move(self.index),
            extras={name: move(value) for name, value in self.extras.items()},
            draws=draws,
        )


class Images:
    """A set of images of one shape: batches by position, classes, splits and a fingerprint.

    Positions run from 0 to len - 1 in this set. `index` is an image's place in the set it was first read from;
    subsets and splits keep it, so that an image has the same noise, flips and name everywhere. Most sets come from
    :func:`scoreline.data.load_images` or :func:`scoreline.data.from_arrays`.

    Args:
        pixels: where the pixels lie.
        name: shown in summaries and errors.
        labels: (N,) integers, -1 where missing, or (N, L) for multi-label sets; None without labels.
        num_classes: number of classes; None counts the names, or else takes the largest label plus one.
        class_names: one name a class; None names classes by number.
        index: (N,) original indices; None counts from 0.
        extras: per image, under the names mask, view, domain, group (arrays) and caption (strings).
        skipped: (name, reason) of bad images that were left out on reading.

    >>> from scoreline.data import load_images
    >>> digits = load_images("digits", split="test")
    >>> len(digits), digits.shape, digits.num_classes
    (500, (1, 8, 8), 10)
    """

    def __init__(
        self,
        pixels: Pixels,
        *,
        name: str,
        labels: Indices | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        index: Indices | None = None,
        extras: Mapping[str, Any] | None = None,
        skipped: Sequence[tuple[str, str]] = (),
    ) -> None:
        count = len(pixels)
        if count == 0:
            raise InputError("data set", name, "holds no images")
        self.name = name
        self.skipped = list(skipped)
        self._pixels = pixels
        self._rows = np.arange(count)
        self.index = np.arange(count) if index is None else np.asarray(index, dtype=np.int64)
        if self.index.shape != (count,):
            raise InputError("index", self.index.shape, f"needs one entry for each of {count} images")
        self.labels, self.num_classes, self.class_names = _check_labels(labels, num_classes, class_names, count)
        self.extras = _check_extras(extras or {}, count)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        classes = "no labels" if self.num_classes is None else f"{self.num_classes} classes"
        return f"Images({self.name!r}, {len(self)} of shape {self.shape}, {classes})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self._pixels.shape

    @property
    def formats(self) -> dict[str, int]:
        """How many images the set was read from, by file format ("JPEG", "PNG", "uint8 array", ...)."""
        return dict(self._pixels.formats)

    @property
    def sides(self) -> dict[tuple[int, int], int]:
        """How many images the set was read from, by (width, height) before any resizing."""
        return dict(self._pixels.sides)

    captions: str | None = None
    """Where captions come from, when they are not the set's own: "made from labels"."""

    def with_captions(self, captions: Sequence[str], origin: str) -> Images:
        """The same images with captions.

        Args:
            captions: one an image.
            origin: where they come from; `captions` and :meth:`describe` say it.
        """
        other = self._copy()
        other.extras = {**self.extras, **_check_extras({"caption": captions}, len(self))}
        other.captions = origin
        return other

    def batch(self, indices: Indices) -> Batch:
        """The images at some positions of this set.

        Args:
            indices: (B,) positions, 0 to len - 1, in any order, repeats allowed.

        Raises:
            InputError: a position is out of range.
            ArtefactError: a picture turns out to be broken while it is decoded.
        """
        places = self._places(indices)
        return Batch(
            image=self._pixels.read(self._rows[places]),
            label=None if self.labels is None else torch.from_numpy(self.labels[places]),
            index=torch.from_numpy(self.index[places]),
            extras={
                name: tuple(value[places].tolist()) if name == "caption" else torch.from_numpy(value[places])
                for name, value in self.extras.items()
            },
        )

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """All images in order; the last batch may be smaller."""
        if batch_size < 1:
            raise InputError("batch_size", batch_size, "needs 1 or more")
        for start in range(0, len(self), batch_size):
            yield self.batch(range(start, min(start + batch_size, len(self))))

    def subset(self, indices: Indices) -> Images:
        """The images at some positions, which keep their original index, labels and extras."""
        places = self._places(indices)
        if len(places) == 0:
            raise InputError("subset", self.name, "would hold no images")
        part = self._copy()
        part._rows, part.index = self._rows[places], self.index[places]
        part.labels = None if self.labels is None else self.labels[places]
        part.extras = {name: value[places] for name, value in self.extras.items()}
        return part

    def split(self, part: int | float, *, seed: int = 0) -> tuple[Images, Images]:
        """Split off a part, each class by its share; the rule is fixed for ever (:func:`scoreline.data.splits.choose`).

        Args:
            part: how many images go to the second set (int), or which fraction of them (float in (0, 1)).
            seed: another seed gives another split.

        Returns:
            (rest, part), both in the order of this set.
        """
        count = round(part * len(self)) if isinstance(part, float) and 0 < part < 1 else part
        if not isinstance(count, int) or not 0 < count < len(self):
            raise InputError("part", part, f"give a fraction in (0, 1), or a count from 1 to {len(self) - 1}")
        labels = self.labels if self.labels is not None and self.labels.ndim == 1 else None
        chosen = choose(self.index, labels, count, seed=seed)
        return self.subset(np.flatnonzero(~chosen)), self.subset(np.flatnonzero(chosen))

    def relabel(
        self, labels: Indices | None, *, num_classes: int | None = None, class_names: Sequence[str] | None = None
    ) -> Images:
        """The same images with other labels (None: without); the original index stays."""
        other = self._copy()
        other.labels, other.num_classes, other.class_names = _check_labels(labels, num_classes, class_names, len(self))
        return other

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of pixels, labels, extras and preparation.

        It is the same on every machine and for every batch size, and for files it depends on names inside the folder,
        sizes and contents, not on dates. The original indices do not enter it.
        """
        total = hashlib.sha256(f"scoreline images 1 {len(self)} {self.shape} {self._pixels.preparation}".encode())
        for row in self._rows:
            total.update(self._pixels.digest(int(row)))
        parts = {"label": self.labels, **{name: self.extras[name] for name in sorted(self.extras)}}
        for name, value in parts.items():
            total.update(f"\0{name}\0".encode())
            if value is not None and name == "caption":
                total.update("\0".join(value).encode())
            elif value is not None:
                total.update(str(value.shape).encode() + value.astype(value.dtype.newbyteorder("<")).tobytes())
        return total.hexdigest()

    def describe(self) -> dict[str, Any]:
        """What a person wants to know first, ready for JSON: reads every image once."""
        low, high = float("inf"), float("-inf")
        total = torch.zeros(self.shape[0], dtype=torch.float64)
        squares = torch.zeros(self.shape[0], dtype=torch.float64)
        for batch in self.batches(256):
            low, high = min(low, batch.image.min().item()), max(high, batch.image.max().item())
            wide = batch.image.double()
            total += wide.sum(dim=(0, 2, 3))
            squares += wide.square().sum(dim=(0, 2, 3))
        count = len(self) * self.shape[1] * self.shape[2]
        mean = total / count
        classes = None
        if self.labels is not None and self.labels.ndim == 1 and self.class_names is not None:
            counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))
            classes = dict(zip(self.class_names, counts.tolist(), strict=True))
        return {
            "name": self.name,
            "count": len(self),
            "shape": list(self.shape),
            "num_classes": self.num_classes,
            "classes": classes,
            "missing_labels": None if self.labels is None else int((self.labels == -1).sum()),
            "range": [low, high],
            "mean": mean.tolist(),
            "std": (squares / count - mean.square()).clamp(min=0).sqrt().tolist(),
            "formats": self.formats,
            "preparation": self._pixels.preparation,
            **({} if self.captions is None else {"captions": self.captions}),
            "fingerprint": self.fingerprint,
            "skipped": [{"name": name, "reason": reason} for name, reason in self.skipped],
        }

    def _copy(self) -> Images:
        other = object.__new__(Images)
        other.__dict__.update({key: value for key, value in self.__dict__.items() if key != "fingerprint"})
        return other

    def _places(self, indices: Indices) -> np.ndarray:
        places = np.asarray(indices)
        if places.size == 0:
            return np.zeros(0, dtype=np.int64)
        if places.ndim != 1 or places.dtype.kind not in "iu":
            raise InputError("indices", f"{places.dtype} {places.shape}", "give a list of positions (integers)")
        low, high = int(places.min()), int(places.max())
        if low < 0 or high >= len(self):
            raise InputError("position", low if low < 0 else high, f"{self.name} has positions 0 to {len(self) - 1}")
        return places.astype(np.int64)


def _check_labels(
    labels: Indices | None, num_classes: int | None, class_names: Sequence[str] | None, count: int
) -> tuple[np.ndarray | None, int | None, list[str] | None]:
    if labels is None:
        if num_classes is not None or class_names is not None:
            raise InputError("labels", None, "are missing, but classes were given; give both or neither")
        return None, None, None
    values = np.asarray(labels)
    if values.dtype.kind not in "iu" or values.ndim not in (1, 2) or len(values) != count:
        raise InputError("labels", f"{values.dtype} {values.shape}", f"need one integer for each of {count} images")
    values = values.astype(np.int64)
    names = None if class_names is None else [str(name) for name in class_names]
    if values.ndim == 2:
        classes = values.shape[1]
        low, high, rule = -1, 1, "multi-label entries are 0, 1 or -1 (missing)"
    else:
        classes = num_classes or (len(names) if names is not None else max(int(values.max()) + 1, 1))
        low, high, rule = -1, classes - 1, f"labels are 0 to {classes - 1}, or -1 where missing"
    outside = values[(values < low) | (values > high)]
    if outside.size:
        raise InputError("label", int(outside[0]), rule)
    names = names if names is not None else [str(k) for k in range(classes)]
    if len(names) != classes or (num_classes is not None and num_classes != classes):
        raise InputError("class_names", len(names), f"{num_classes or classes} classes need as many names")
    return values, classes, names


def _check_extras(extras: Mapping[str, Any], count: int) -> dict[str, np.ndarray]:
    out: dict[str, np.ndarray] = {}
    for name, value in extras.items():
        if name not in EXTRAS:
            raise InputError("extra", name, f"known extras: {', '.join(EXTRAS)}")
        array = np.array(list(value), dtype=object) if name == "caption" else np.asarray(value)
        if array.ndim < 1 or len(array) != count:
            raise InputError(name, array.shape, f"needs one entry for each of {count} images")
        out[name] = array
    return out
