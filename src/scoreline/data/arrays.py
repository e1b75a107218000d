"""Arrays as data sets: .npy and .npz files, and arrays or tensors that are in memory already."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data.decode import prepare
from scoreline.data.images import Images
from scoreline.data.pixels import ArrayPixels, check_options
from scoreline.data.transforms import fit_square

__all__ = ["load_arrays", "from_arrays", "to_nchw"]

_IMAGE_KEYS = ("arr_0", "images", "image")
_LABEL_KEYS = ("arr_1", "labels", "label")


def load_arrays(path: str | os.PathLike[str], *, size: int | None = None, channels: int | None = None) -> Images:
    """Read a .npy or .npz file.

    A .npy file holds the images; a .npz file holds them under `arr_0` (or `images`), and may hold labels under `arr_1`
    (or `labels`). Pickled objects are never read.

    Args:
        path: images as (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float in [-1, 1]. An uncompressed .npy file is
            mapped into memory, not read whole.
        size: resize the shorter side to this and cut the middle square.
        channels: 1, 3, or None to keep what is there.

    Raises:
        ArtefactError: the file is missing, broken or truncated, holds pickled objects, or lacks the images.
        InputError: shape, type or range do not fit.
    """
    path = Path(path)
    labels = None
    try:
        if path.suffix.lower() == ".npy":
            images = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                if not isinstance(archive, np.lib.npyio.NpzFile):
                    raise ArtefactError(str(path), None, "is no .npz archive; name single arrays .npy")
                image_key = next((key for key in _IMAGE_KEYS if key in archive), None)
                label_key = next((key for key in _LABEL_KEYS if key in archive), None)
                if image_key is None:
                    held = ", ".join(archive.files) or "nothing"
                    raise ArtefactError(str(path), None, f"holds {held}; images are looked for under arr_0 or images")
                images = archive[image_key]
                labels = archive[label_key] if label_key is not None else None
    except FileNotFoundError:
        raise ArtefactError(str(path), None, "no such file") from None
    except ArtefactError:
        raise
    except Exception as error:  # zip, zlib and header parsing meet hostile bytes and raise nearly anything
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            mend = "holds pickled objects, which could run code on reading; save plain uint8 or float arrays"
        else:
            mend = f"is broken or truncated ({type(error).__name__}: {error})"
        raise ArtefactError(str(path), None, mend) from error
    return from_arrays(images, labels, name=path.name, size=size, channels=channels)


def from_arrays(
    images: np.ndarray | Tensor,
    labels: np.ndarray | Tensor | Sequence[int] | None = None,
    *,
    name: str = "arrays",
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    extras: Mapping[str, Any] | None = None,
    size: int | None = None,
    channels: int | None = None,
) -> Images:
    """A data set from arrays or tensors in memory.

    Args:
        images: (N, H, W), (N, H, W, C) or (N, C, H, W), uint8 or float in [-1, 1]; kept, not copied.
        labels: (N,) integers, -1 where missing.
        name: shown in summaries and errors.
        num_classes: number of classes; None takes the largest label plus one.
        class_names: one name a class.
        extras: per image, under the names mask, view, domain, group, caption.
        size: resize the shorter side to this and cut the middle square.
        channels: 1, 3, or None to keep what is there.

    Raises:
        InputError: shape, type or range do not fit.

    >>> from_arrays(torch.zeros(5, 1, 4, 4), [0, 1, 2, 0, 1])
    Images('arrays', 5 of shape (1, 4, 4), 3 classes)
    """
    check_options(size, channels, "error")
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    array = _checked(to_nchw(array, name), name)
    side = (array.shape[3], array.shape[2])
    changed = (size is not None and array.shape[2:] != (size, size)) or (
        channels is not None and array.shape[1] != channels
    )
    preparation = "none"
    if changed:
        if extras is not None and "mask" in extras:
            raise InputError("size", size, "masks would not be resized with the images; resize both beforehand")
        array = _prepared(array, channels or array.shape[1], size)
        preparation = f"channels={array.shape[1]} size={size} filter={'none' if size is None else 'bicubic'}"
    return Images(
        ArrayPixels(array, preparation=preparation, side=side),
        name=name,
        labels=labels,
        num_classes=num_classes,
        class_names=class_names,
        extras=extras,
    )


def to_nchw(array: np.ndarray, name: str) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) as (N, C, H, W), a view.

    Raises:
        InputError: another shape, or one that could be read both ways.
    """
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise InputError(f"images in {name}", array.shape, "need shape (N, H, W), (N, H, W, C) or (N, C, H, W)")
    first, last = array.shape[1] in (1, 3), array.shape[3] in (1, 3)
    if first and last:
        raise InputError(f"images in {name}", array.shape, "could be (N, H, W, C) or (N, C, H, W); use larger images")
    if not first and not last:
        raise InputError(f"images in {name}", array.shape, "have neither 1 nor 3 channels, first or last")
    return array if first else array.transpose(0, 3, 1, 2)


def _checked(array: np.ndarray, name: str) -> np.ndarray:
    if array.size == 0:
        raise InputError(f"images in {name}", array.shape, "hold no pixels")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise InputError(f"images in {name}", str(array.dtype), "need uint8, or floats in [-1, 1]")
    for start in range(0, len(array), 1024):  # in parts: the array may be a mapped file larger than memory
        part = array[start : start + 1024]
        low, high = float(part.min()), float(part.max())
        if not np.isfinite([low, high]).all():
            raise InputError(f"images in {name}", None, "hold NaN or infinity; repair or leave out those images")
        if low < -1.0 or high > 1.0:
            hint = "store 0 to 255 as uint8" if high > 2.0 else "scale them"
            raise InputError(f"images in {name}", [low, high], f"floats must lie in [-1, 1]; {hint}")
    return array.astype(np.float32, copy=False)


def _prepared(array: np.ndarray, channels: int, size: int | None) -> np.ndarray:
    """Channels and size as asked: bytes go the way of decoded pictures, floats are never rounded."""
    if array.dtype == np.uint8:
        pictures = (Image.fromarray(np.ascontiguousarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0))) for x in array)
        return np.stack([prepare(p, channels=channels, size=size) for p in pictures]).transpose(0, 3, 1, 2)
    x = torch.from_numpy(np.array(array))
    if channels < x.shape[1]:
        luma = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype)  # ITU-R 601, as Pillow converts to grey
        x = (x * luma[:, None, None]).sum(dim=1, keepdim=True).clamp_(-1.0, 1.0)
    x = x.expand(-1, channels, -1, -1)
    return (x if size is None else torch.cat([fit_square(part, size) for part in x.split(256)])).numpy()
