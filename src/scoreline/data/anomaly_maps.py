"""Anomaly maps and their masks from folders and array files, matched by name.

A folder holds one file an image: .npy, .npz (one array), .tif/.tiff (float), or grey .png; masks also .bmp, .gif and
.jpg. The name of an image is its path inside the folder without the suffix; a mask may carry `_mask` behind it. One
.npy or .npz file with an (N, H, W) array holds all images, by number.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data.decode import decode
from scoreline.data.folder import SUFFIXES

__all__ = ["AnomalySet", "read_anomaly_set", "read_pictures"]

_ARRAYS = (".npy", ".npz")
_MAPS = (*_ARRAYS, ".tif", ".tiff", ".png")
_MASKS = (*_MAPS, ".bmp", ".gif", ".jpg", ".jpeg")

Files = dict[str, Callable[[], np.ndarray]]


class AnomalySet(NamedTuple):
    """What one model says about a set of images.

    Attributes:
        names: of the images, sorted.
        maps: (H_i, W_i) scores of each, all float32 or all float64.
        masks: (H_i, W_i) bool of each.
        resized: how many maps were enlarged to their mask's size.
        unmasked: how many images had no mask and count as normal.
    """

    names: list[str]
    maps: list[Tensor]
    masks: list[Tensor]
    resized: int
    unmasked: int


def read_anomaly_set(
    maps: str | os.PathLike[str],
    masks: str | os.PathLike[str],
    *,
    unmasked: str = "error",
    mask_above: int | None = None,
) -> AnomalySet:
    """Read the maps of one model and their masks.

    A map smaller than its mask is enlarged bilinearly (corners not aligned); masks are never resized. 8-bit and 16-bit
    pictures of scores count as v / 255 and v / 65535.

    Args:
        maps, masks: a folder, or a .npy or .npz file.
        unmasked: what an image without a mask is: "error", or "normal".
        mask_above: pixels above this are anomalous; None asks for masks with 0 and one other value.

    Raises:
        ArtefactError: a path or file is missing, broken or empty.
        InputError: maps and masks do not match, or hold what they cannot hold.
    """
    scores, truths = _files(Path(maps), "maps", _MAPS), _files(Path(masks), "masks", _MASKS)
    truths = {name if name in scores else name.removesuffix("_mask"): read for name, read in truths.items()}
    _check_match(scores, truths, str(maps), str(masks), unmasked)
    read_masks = {name: _mask(read(), name, mask_above) for name, read in sorted(truths.items())}
    sizes = {mask.shape for mask in read_masks.values()}
    common = next(iter(sizes)) if len(sizes) == 1 else None
    found, resized = [], 0
    for name, read in sorted(scores.items()):
        score = _map(read(), name)
        size = tuple(read_masks[name].shape) if name in read_masks else common or tuple(score.shape)
        if name not in read_masks:
            read_masks[name] = torch.zeros(size, dtype=torch.bool)
        if tuple(score.shape) != size:
            score, resized = _enlarged(score, size, name), resized + 1
        found.append(score)
    widest = torch.float64 if any(score.dtype == torch.float64 for score in found) else torch.float32
    names = sorted(scores)
    return AnomalySet(
        names, [s.to(widest) for s in found], [read_masks[n] for n in names], resized, len(scores) - len(truths)
    )


def read_pictures(folder: str | os.PathLike[str], names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some of the pictures that the maps were made of, (H, W, 3) uint8 by name.

    Args:
        folder: pictures under the names of the maps.
        names: the images wanted.

    Raises:
        ArtefactError: no such folder, or a picture is broken.
        InputError: a picture is missing.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ArtefactError(str(top), None, "no such folder of pictures")
    there = {f.relative_to(top).with_suffix("").as_posix(): f for f in top.rglob("*") if f.suffix.lower() in SUFFIXES}
    missing = [name for name in names if name not in there]
    if missing:
        raise InputError("images", str(top), f"holds no picture {missing[0]!r}; pictures need the names of the maps")
    return {name: decode(there[name].read_bytes(), str(there[name]), channels=3) for name in names}


def _check_match(scores: Files, truths: Files, maps: str, masks: str, unmasked: str) -> None:
    lonely = sorted(truths.keys() - scores.keys())
    if lonely:
        raise InputError("masks", masks, f"{len(lonely)} have no map in {maps}, the first is {lonely[0]!r}")
    without = sorted(scores.keys() - truths.keys())
    if without and unmasked != "normal":
        mend = f"{len(without)} images have none, the first is {without[0]!r}"
        raise InputError("masks", masks, f"{mend}; are these normal? Then say --unmasked normal")


def _files(path: Path, what: str, suffixes: tuple[str, ...]) -> Files:
    """Image name -> reader of its file."""
    if path.is_file():
        if path.suffix.lower() not in _ARRAYS:
            raise InputError(what, str(path), "is one picture; give a folder, or one .npy or .npz file for all images")
        array = _array(path)
        if array.ndim == 4 and 1 in (array.shape[1], array.shape[3]):
            array = array[:, 0] if array.shape[1] == 1 else array[..., 0]
        if array.ndim != 3 or array.size == 0:
            raise InputError(f"array in {path}", array.shape, "one file for all images needs shape (N, H, W)")
        return {f"{i:06d}": lambda i=i: array[i] for i in range(len(array))}  # type: ignore[misc]
    if not path.is_dir():
        raise ArtefactError(str(path), None, f"no such folder or file of {what}")
    found: Files = {}
    for file in sorted(path.rglob("*")):
        inside = file.relative_to(path)
        if file.suffix.lower() not in suffixes or any(part.startswith(".") for part in inside.parts):
            continue
        name = inside.with_suffix("").as_posix()
        if name in found:
            raise InputError(what, str(file), "another file has the same name with another suffix; keep one of them")
        found[name] = lambda file=file: _array(file) if file.suffix.lower() in _ARRAYS else _picture(file)  # type: ignore[misc]
    if not found:
        raise ArtefactError(f"folder {path}", None, f"holds no {what} ({', '.join(suffixes)})")
    return found


def _array(path: Path) -> np.ndarray:
    try:
        if path.suffix.lower() == ".npy":
            found = np.load(path, allow_pickle=False)
        else:
            with np.load(path, allow_pickle=False) as archive:
                if len(archive.files) != 1:
                    raise InputError(str(path), archive.files[:5], "an .npz file here holds one array")
                found = archive[archive.files[0]]
    except InputError:
        raise
    except Exception as error:  # zip, zlib and header parsing meet hostile bytes and raise nearly anything
        pickled = "allow_pickle" in str(error) or "Python objects" in str(error)
        mend = "holds pickled objects; save plain arrays" if pickled else f"is broken or truncated ({error})"
        raise ArtefactError(str(path), None, mend) from error
    if not isinstance(found, np.ndarray) or found.dtype.kind not in "biuf":
        raise ArtefactError(str(path), None, "holds no array of numbers")
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _picture(path: Path) -> np.ndarray:
    """(H, W) floats or integers, or (H, W, 3) for colours."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of broken metadata; what matters is said below
            with Image.open(path) as picture:
                picture.load()
                if picture.mode in ("P", "PA", "RGBA", "LA", "CMYK", "YCbCr"):
                    return np.asarray(picture.convert("L" if picture.mode == "LA" else "RGB"))
                pixels = np.asarray(picture)
    except Exception as error:  # decoders meet hostile bytes and raise nearly anything
        raise ArtefactError(f"image {path}", None, f"is broken, or no picture ({type(error).__name__})") from error
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _plane(array: np.ndarray, name: str, what: str) -> np.ndarray:
    """(H, W), from (1, H, W) or (H, W, 1) too, or from three equal channels."""
    if array.ndim == 3 and array.shape[2] == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[2]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or array.size == 0:
        mend = "is coloured; give the scores themselves, not a picture of them" if what == "map" else "needs (H, W)"
        raise InputError(f"{what} of {name!r}", array.shape, mend if array.ndim == 3 else "needs shape (H, W)")
    return array


def _map(array: np.ndarray, name: str) -> Tensor:
    plane = _plane(array, name, "map")
    if plane.dtype in (np.uint8, np.uint16):
        plane = plane.astype(np.float32) / np.iinfo(plane.dtype).max
    if plane.dtype.kind != "f":
        raise InputError(f"map of {name!r}", str(plane.dtype), "store floats, or grey pictures of 8 or 16 bits")
    plane = plane.astype(np.float64 if plane.dtype.itemsize > 4 else np.float32, copy=False)
    if not np.isfinite(plane).all():
        raise InputError(f"map of {name!r}", None, "holds NaN or infinity; repair it, or leave the image out")
    return torch.from_numpy(np.array(plane))


def _mask(array: np.ndarray, name: str, above: int | None) -> Tensor:
    if array.ndim == 3 and array.shape[2] == 3:
        array = array.max(axis=2)
    plane = _plane(array, name, "mask")
    if above is None and plane.dtype != np.bool_:
        values = np.unique(plane)
        if len(values) > 2 or values[0] < 0 or (len(values) == 2 and values[0] != 0) or not np.isfinite(values).all():
            mend = "holds other values than 0 and one more; say which count with --mask-above (0 takes all but zeros)"
            raise InputError(f"mask of {name!r}", values[:5].tolist(), mend)
    truth = plane > (0 if above is None or plane.dtype == np.bool_ else above)
    return torch.from_numpy(np.ascontiguousarray(truth))


def _enlarged(score: Tensor, size: tuple[int, ...], name: str) -> Tensor:
    if any(small > large for small, large in zip(score.shape, size)):
        sizes = (tuple(score.shape), size)
        raise InputError(f"map and mask of {name!r}", sizes, "the map is larger; bring it to the mask's size yourself")
    mode = torch.nn.functional.interpolate(score[None, None], size=size, mode="bilinear", align_corners=False)
    return mode[0, 0]
