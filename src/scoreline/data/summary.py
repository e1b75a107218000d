"""What `scoreline data NAME` shows: a summary of a data set and a picture of some of its images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from scoreline.core.errors import InputError
from scoreline.data.grid import picture_grid, write_png
from scoreline.data.images import Images
from scoreline.data.load import load_images
from scoreline.data.pixels import OnBadImage

__all__ = ["summarise", "overview"]

_ROWS = 10
_COLUMNS = 10


def summarise(
    source: str | os.PathLike[str],
    *,
    split: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    on_bad_image: OnBadImage = "error",
    out: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Read a whole data set, describe it, and write a grid of its images.

    Args:
        source: as for :func:`scoreline.data.load_images`.
        split: as there.
        size: as there.
        channels: as there.
        on_bad_image: as there.
        out: PNG file to write the grid to; None writes none.

    Returns:
        :meth:`Images.describe`, with the path of the picture under "grid" (None without one).
    """
    if out is not None and Path(out).suffix.lower() != ".png":
        raise InputError("out", str(out), "is a picture; give it a name that ends with .png")
    images = load_images(source, split=split, size=size, channels=channels, on_bad_image=on_bad_image)
    summary = images.describe()
    if out is not None:
        positions, labels = overview(images)
        grid = picture_grid(images.batch(positions).image, columns=_COLUMNS, row_labels=labels)
        write_png(out, grid)
    return {**summary, "grid": None if out is None else str(out)}


def overview(images: Images) -> tuple[np.ndarray, list[str] | None]:
    """Positions of up to 100 images that show the whole set, and the labels of their rows.

    Up to ten classes with ten images each have a row of their own; other sets give evenly spaced images, unlabelled.
    """
    everything = np.arange(len(images))
    names = images.class_names
    if images.labels is not None and images.labels.ndim == 1 and names is not None:
        members = [everything[images.labels == label] for label in range(len(names))]
        full = [label for label, group in enumerate(members) if len(group) >= _COLUMNS][:_ROWS]
        if full:
            return np.concatenate([_spread(members[label]) for label in full]), [names[label] for label in full]
    return _spread(everything, _ROWS * _COLUMNS), None


def _spread(positions: np.ndarray, count: int = _COLUMNS) -> np.ndarray:
    if len(positions) <= count:
        return positions
    return positions[np.linspace(0, len(positions) - 1, count).astype(np.int64)]
