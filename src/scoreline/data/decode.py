"""One encoded picture (PNG, JPEG, ...) to uint8 pixels, with a clear error for every bad one.

What comes out is what a person sees in a viewer: the EXIF orientation is applied; transparent parts stand on white;
palettes, CMYK and 1-bit images become plain colours; 16-bit grey keeps its range (v / 257) instead of being clipped;
of an animation the first frame is taken. All functions are pure and can be pickled for worker processes.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from PIL import Image, ImageOps

from scoreline.core.errors import ArtefactError
from scoreline.data.transforms import scaled_sides

__all__ = ["Header", "inspect", "decode", "prepare"]

_GREY16 = ("I;16", "I;16B", "I;16L", "I;16N")
_GREY = ("1", "L", "LA", *_GREY16)
_COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Header:
    """What a picture says about itself before it is decoded."""

    height: int
    width: int
    grey: bool
    format: str


def inspect(data: bytes, name: str) -> Header:
    """Read the header of an encoded picture; pixels are not decoded.

    Args:
        data: the content of the file.
        name: for error messages.

    Raises:
        ArtefactError: empty, no picture, over the size limit, or of a mode that has no plain colours.
    """
    try:
        with _quiet(), _open(data, name) as picture:
            height, width = picture.height, picture.width
            # Pillow decodes a whole PNG to look for a late EXIF chunk; only an early one is looked at here.
            if (picture.format != "PNG" or "exif" in picture.info) and picture.getexif().get(_ORIENTATION) in _TURNED:
                height, width = width, height
            return Header(height, width, _is_grey(picture, name), str(picture.format))
    except ArtefactError:
        raise
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything
        _refuse(name, error)


def decode(data: bytes, name: str, *, channels: int, size: int | None = None) -> np.ndarray:
    """Decode a picture to (H, W, channels) uint8.

    Args:
        data: the content of the file.
        name: for error messages.
        channels: 1 for grey (ITU-R 601 luma of coloured ones), 3 for RGB.
        size: resize the shorter side to this many pixels (antialiased bicubic) and cut the middle square.

    Raises:
        ArtefactError: the picture is broken, truncated, too large or of an unknown mode.
    """
    try:
        with _quiet(), _open(data, name) as picture:
            _is_grey(picture, name)
            picture.load()
            return prepare(_plain(ImageOps.exif_transpose(picture)), channels=channels, size=size)
    except ArtefactError:
        raise
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything
        _refuse(name, error)


def prepare(picture: Image.Image, *, channels: int, size: int | None) -> np.ndarray:
    """Convert an L or RGB picture to `channels`, resize its shorter side to `size` and cut the middle square."""
    picture = picture.convert("L" if channels == 1 else "RGB")
    if size is not None:
        height, width = scaled_sides(picture.height, picture.width, size)
        if (width, height) != picture.size:
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        top, left = (height - size) // 2, (width - size) // 2
        picture = picture.crop((left, top, left + size, top + size))
    pixels = np.array(picture)
    return pixels[:, :, None] if channels == 1 else pixels


@contextmanager
def _quiet() -> Iterator[None]:
    # Pillow warns on broken metadata and from its size limit on; what matters is said by the errors here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(data: bytes, name: str) -> Image.Image:
    if not data:
        raise ArtefactError(f"image {name}", None, "is empty (0 bytes); remove it or fetch it again")
    picture = Image.open(io.BytesIO(data))
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and picture.width * picture.height > limit:
        raise _too_large(name, f"{picture.width} x {picture.height} pixels")
    return picture


def _too_large(name: str, what: str) -> ArtefactError:
    return ArtefactError(
        f"image {name}",
        None,
        f"is too large ({what}; the limit is {Image.MAX_IMAGE_PIXELS:,} pixels, against decompression bombs); "
        "shrink it, or set PIL.Image.MAX_IMAGE_PIXELS if you trust it",
    )


def _is_grey(picture: Image.Image, name: str) -> bool:
    mode = picture.mode
    # Older Pillow hands 16-bit grey PNG and PGM over as 32-bit integers; in other formats their range is unknown.
    if mode in _GREY or (mode == "I" and picture.format in ("PNG", "PPM")):
        return True
    if mode not in _COLOUR:
        raise ArtefactError(
            f"image {name}",
            None,
            f"has pixel mode {mode!r}, whose range is not that of a plain picture; convert it to 8-bit grey or RGB",
        )
    return False


def _plain(picture: Image.Image) -> Image.Image:
    """L or RGB, 8 bits, transparency composited on white."""
    mode = picture.mode
    if mode in _GREY16 or mode == "I":
        wide = np.asarray(picture).astype(np.uint32)
        return Image.fromarray(((wide + 128) // 257).astype(np.uint8))  # 65535 = 257 * 255: rounds, never clips
    grey = mode in _GREY
    if mode not in ("LA", "PA", "RGBA") and "transparency" not in picture.info:
        return picture.convert("L" if grey else "RGB")
    layered = picture.convert("LA" if grey else "RGBA")
    white = Image.new("L" if grey else "RGB", picture.size, "white")
    white.paste(layered.convert(white.mode), mask=layered.getchannel("A"))
    return white


def _refuse(name: str, error: Exception) -> NoReturn:
    if isinstance(error, Image.DecompressionBombError):
        raise _too_large(name, "more than twice the limit") from error
    if isinstance(error, Image.UnidentifiedImageError):
        raise ArtefactError(
            f"image {name}", None, "is no picture that can be read, or is cut off; remove it or fetch it again"
        ) from error
    said = f"{type(error).__name__}: {error}"
    raise ArtefactError(
        f"image {name}", None, f"is broken or truncated ({said}); remove it or fetch it again"
    ) from error
