"""Pictures side by side in one PNG, without a plotting library."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.files import atomic_path
from scoreline.data.transforms import to_uint8

__all__ = ["picture_grid", "write_png"]

_VISIBLE = 48  # small images are enlarged to about this many pixels a side
_PAPER = (255, 255, 255)
_INK = (40, 40, 40)


def picture_grid(
    images: Tensor,
    *,
    columns: int | None = None,
    scale: int | None = None,
    pad: int = 2,
    row_labels: Sequence[str] | None = None,
) -> Image.Image:
    """Arrange images in rows, left to right and top to bottom.

    Args:
        images: (N, 1 or 3, H, W) float in [-1, 1].
        columns: images a row; None makes the grid about square.
        scale: whole factor by which pixels are repeated (never smoothed); None enlarges small images to about 48.
        pad: white pixels between images and around them.
        row_labels: a text for each row, written to its left.

    Returns:
        An RGB picture.

    Raises:
        InputError: no images, or a shape, count or factor that does not fit.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise InputError("images", tuple(images.shape), "a grid takes (N, 1 or 3, H, W) with N of 1 or more")
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count)) if columns is None else columns
    scale = max(1, round(_VISIBLE / max(height, width))) if scale is None else scale
    if columns < 1 or scale < 1 or pad < 0:
        raise InputError("grid", (columns, scale, pad), "needs columns and scale of 1 or more, pad of 0 or more")
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    if row_labels is not None and len(row_labels) != rows:
        raise InputError("row_labels", len(row_labels), f"needs one text for each of {rows} rows")

    font = ImageFont.load_default(size=12)
    texts = [_shortened(text) for text in row_labels or []]
    margin = max((math.ceil(font.getlength(text)) for text in texts), default=0)
    left = pad + (margin + 12 if margin else 0)
    step_y, step_x = height * scale + pad, width * scale + pad
    sheet = Image.new("RGB", (left + columns * step_x, pad + rows * step_y), _PAPER)
    pixels = to_uint8(images.detach().float().cpu()).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    for number in range(count):
        row, column = divmod(number, columns)
        large = np.repeat(np.repeat(pixels[number], scale, axis=0), scale, axis=1)
        sheet.paste(Image.fromarray(large), (left + column * step_x, pad + row * step_y))
    draw = ImageDraw.Draw(sheet)
    for row, text in enumerate(texts):
        draw.text((left - 6, pad + row * step_y + height * scale // 2), text, fill=_INK, font=font, anchor="rm")
    return sheet


def write_png(path: str | os.PathLike[str], picture: Image.Image) -> None:
    """Write a picture as PNG, atomically.

    Raises:
        ArtefactError: the file cannot be written.
    """
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


def _shortened(text: str) -> str:
    return text if len(text) <= 24 else text[:23] + "…"
