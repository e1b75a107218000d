"""scikit-learn's 1,797 handwritten digits, 8 x 8 grey levels 0 to 16, with one split that never changes.

Reference: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from scoreline.core.errors import ArtefactError, unknown_name
from scoreline.data.images import Images
from scoreline.data.pixels import ArrayPixels
from scoreline.data.splits import choose

__all__ = ["load_digits", "DIGITS_SHA256", "DIGITS_TEST"]

DIGITS_SHA256 = "68aea062d35a127749050fa0e52dca09d6569ac08092c925610e0954e172dde2"
"""SHA-256 of the 1,797 x 65 bytes (64 grey levels, then the label) that the package must hold."""

DIGITS_TEST = 500
"""Size of the test part; the other 1,297 images are the training part."""


def load_digits(split: str | None = None) -> Images:
    """The digits, x / 8 - 1 in [-1, 1], shape (1, 8, 8), classes 0 to 9.

    Args:
        split: "train" (1,297 images), "test" (500), or None for all. The parts are chosen class by class with
            :func:`scoreline.data.splits.choose`, seed 0.

    Raises:
        InputError: unknown split.
        ArtefactError: the installed scikit-learn holds other data.
    """
    if split not in (None, "train", "test"):
        raise unknown_name("digits split", str(split), ["train", "test"])
    table = _table()
    labels = table[:, 64].astype(np.int64)
    pixels = (table[:, :64].astype(np.float32) / 8.0 - 1.0).reshape(-1, 1, 8, 8)
    images = Images(ArrayPixels(pixels), name="digits", labels=labels, num_classes=10)
    if split is None:
        return images
    test = choose(images.index, labels, DIGITS_TEST)
    part = images.subset(np.flatnonzero(test if split == "test" else ~test))
    part.name = f"digits:{split}"
    return part


@cache
def _table() -> np.ndarray:
    # The packaged file is read directly: importing sklearn.datasets takes seconds, this takes 20 milliseconds.
    package = find_spec("sklearn")
    places = list(package.submodule_search_locations or []) if package else []
    path = next((p for p in (Path(place) / "datasets/data/digits.csv.gz" for place in places) if p.exists()), None)
    if path is None:
        raise ArtefactError("digits", None, "scikit-learn, which holds the images, is missing; install scikit-learn")
    try:
        text = gzip.decompress(path.read_bytes())
        table = np.array(text.replace(b"\n", b",").rstrip(b",").split(b","), dtype=np.uint8).reshape(-1, 65)
    except (OSError, EOFError, ValueError) as error:
        raise ArtefactError(str(path), None, f"is broken ({error}); install scikit-learn again") from error
    if hashlib.sha256(table.tobytes()).hexdigest() != DIGITS_SHA256:
        raise ArtefactError(str(path), None, "holds other digits than the known ones; install scikit-learn again")
    return table
