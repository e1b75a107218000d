"""Which pixels of an image are known, from what a user types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError, unknown_name

__all__ = ["parse_mask"]

_HALVES = ("left-half", "right-half", "top-half", "bottom-half")


def parse_mask(text: str, height: int, width: int) -> Tensor:
    """What of an image is known, (H, W) bool.

    Args:
        text: left-half, right-half, top-half or bottom-half (that half is known); box:LEFT,TOP,RIGHT,BOTTOM in pixels,
            the last two not included (known inside), hole:... (known outside); or a PNG, white where known.
        height, width: of the images.

    Raises:
        InputError: an unknown word, a box outside the image, or a picture of another size or with greys.
        ArtefactError: the picture is missing or broken.
    """
    mask = torch.zeros(height, width, dtype=torch.bool)
    word, colon, numbers = text.partition(":")
    if text in _HALVES:
        down, right = {"left": (0, 1), "right": (0, -1), "top": (1, 0), "bottom": (-1, 0)}[text.removesuffix("-half")]
        if right:
            mask[:, : width // 2] = True
        else:
            mask[: height // 2] = True
        return mask if down + right > 0 else ~mask
    if colon and word in ("box", "hole"):
        parts = numbers.split(",")
        if len(parts) != 4 or not all(part.strip().isdecimal() for part in parts):
            raise InputError("mask", text, f"write {word}:LEFT,TOP,RIGHT,BOTTOM with four numbers of pixels")
        left, top, right, bottom = map(int, parts)
        if not (left < right <= width and top < bottom <= height):
            raise InputError("mask", text, f"the box must lie inside {width} x {height} pixels and hold at least one")
        mask[top:bottom, left:right] = True
        return mask if word == "box" else ~mask
    if not text.lower().endswith(".png"):
        raise unknown_name("mask", text, (*_HALVES, "box:LEFT,TOP,RIGHT,BOTTOM", "hole:LEFT,TOP,RIGHT,BOTTOM"))
    return _picture_mask(Path(text).expanduser(), height, width)


def _picture_mask(path: Path, height: int, width: int) -> Tensor:
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
    except FileNotFoundError:
        raise ArtefactError("mask", str(path), "no such file") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ArtefactError("mask", str(path), f"is no picture that can be read ({error})") from None
    if pixels.shape != (height, width):
        found = f"{pixels.shape[1]} x {pixels.shape[0]}"
        raise InputError("mask", str(path), f"is {found} pixels, the images are {width} x {height}")
    if not np.isin(pixels, (0, 255)).all():
        raise InputError("mask", str(path), "holds greys; make it black and white, white where the image is known")
    return torch.from_numpy(pixels == 255)
