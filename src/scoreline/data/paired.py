"""Images with the images they are made from: pairs of one place by two sensors, or a synthetic stand-in for them.

Folders hold one picture a pair under the same name on both sides. Two layouts are read:
    two folders   FOLDER/s1/x.png and FOLDER/s2/x.png (any two names), with the same paths below them
    SEN1-2        FOLDER/ROIs1158_spring/s1_12/ROIs1158_spring_s1_12_p30.png, with s2 twice in the partner's path

The sensor `sar-like` is a stand-in made from real images, and no radar: s = log-compressed (g * speckle), g the
gradient magnitude of the grey image in [0, 1], speckle ~ Gamma(L, 1/L) of L = 4 looks,
    s = 2 min(1, ln(1 + 10 g speckle)/ln(1 + 10)) - 1
fixed for each image by its number, as one exposure would be.

Reference: Schmitt, Hughes & Zhu 2018 (The SEN1-2 dataset); Bai & Xu 2024 (arXiv 2407.06095).
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.noise import Noise, derive
from scoreline.data.folder import SUFFIXES, FileRecords
from scoreline.data.images import Batch, Images
from scoreline.data.load import load_images
from scoreline.data.pixels import OnBadImage, open_records

__all__ = ["SENSORS", "Paired", "load_paired", "pictures_in", "sar_like"]

COMPRESSION = 10.0


class Paired:
    """Images and, for each, the image it is made from; a batch holds that as `extras["source"]`.

    Args:
        images: what a model makes (the optical side).
        source: what it is told, image i beside image i: other Images of the same height and width, or a function from a
            batch of `images` to (B, C', H, W).
        name: shown in errors and cards.
        tag: what the function is, for the fingerprint; needed with a function.
        stand_in: says that the source is synthetic.

    Attributes:
        source_shape: (C', H, W).

    Raises:
        InputError: counts or sizes differ.
    """

    def __init__(
        self,
        images: Images,
        source: Images | Callable[[Batch], Tensor],
        *,
        name: str | None = None,
        tag: str = "",
        stand_in: bool = False,
    ) -> None:
        if isinstance(source, Images) and len(source) != len(images):
            raise InputError("source", len(source), f"needs one image for each of the {len(images)} images")
        self.images, self.source, self.tag, self.stand_in = images, source, tag, stand_in
        self.name = name or images.name
        self.shape: tuple[int, ...] = images.shape
        self.index = images.index
        self.labels, self.num_classes, self.class_names = images.labels, images.num_classes, images.class_names
        self.source_shape: tuple[int, ...] = tuple(self.batch([0]).extras["source"].shape[1:])
        if self.source_shape[1:] != tuple(self.shape[1:]):
            mend = f"the images are {self.shape[1]} x {self.shape[2]}; give size= to bring both to one size"
            raise InputError("source", self.source_shape, mend)

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        kind = "stand-in source" if self.stand_in else "source"
        return f"Paired({self.name!r}, {len(self)} of shape {self.shape}, {kind} {self.source_shape})"

    def batch(self, indices: Any) -> Batch:
        """The pairs at some positions: the image as `image`, what it is made from as `extras["source"]`."""
        batch = self.images.batch(indices)
        source = self.source.batch(indices).image if isinstance(self.source, Images) else self.source(batch)
        return replace(batch, extras={**batch.extras, "source": source})

    def subset(self, indices: Any) -> Paired:
        """The pairs at some positions, which keep their original index."""
        source = self.source.subset(indices) if isinstance(self.source, Images) else self.source
        return Paired(self.images.subset(indices), source, name=self.name, tag=self.tag, stand_in=self.stand_in)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of both sides."""
        other = self.source.fingerprint if isinstance(self.source, Images) else self.tag
        return hashlib.sha256(f"scoreline paired 1 {self.images.fingerprint} {other}".encode()).hexdigest()


def sar_like(image: Tensor, index: Sequence[int] | Tensor, *, looks: int = 4, seed: int = 0) -> Tensor:
    """A stand-in for a radar amplitude image, (B, 1, H, W) in [-1, 1]: edges under multiplicative speckle.

    Args:
        image: (B, 1 or 3, H, W) in [-1, 1].
        index: (B,) number of each image, which fixes its speckle.
        looks: L; the speckle has mean 1 and variance 1/L.
        seed: another exposure.

    >>> sar_like(torch.zeros(1, 1, 8, 8), [0]).unique().tolist()
    [-1.0]
    """
    if looks < 1:
        raise InputError("looks", looks, "speckle is a mean over 1 or more")
    x = image
    if x.shape[1] == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype, device=x.device).view(1, 3, 1, 1)).sum(1, True)
    grey = F.pad((x + 1) / 2, (1, 1, 1, 1), mode="replicate")
    across = (grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]) / 2
    down = (grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]) / 2
    strength = (across.square() + down.square()).sqrt()
    # A sum of L exponentials is Gamma(L, 1).
    draws = Noise(derive(seed, "speckle")).at(index, tuple(x.shape[1:]))
    u = draws.uniform(shape=(looks, *x.shape[1:])).to(x.device)
    speckle = -torch.log1p(-u).mean(1).to(x.dtype)
    bright = torch.log1p(COMPRESSION * strength * speckle) / math.log1p(COMPRESSION)
    return 2 * bright.clamp(max=1.0) - 1


def _sar_like(batch: Batch) -> Tensor:
    return sar_like(batch.image, batch.index)


SENSORS: dict[str, Callable[[Batch], Tensor]] = {"sar-like": _sar_like}
"""Synthetic sources by name; each is a stand-in and says so where it shows."""


def load_paired(
    source: str | os.PathLike[str],
    *,
    paired: str,
    split: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    source_channels: int | None = None,
    on_bad_image: OnBadImage = "error",
) -> Paired:
    """Open a set of pairs.

    Args:
        source: with a sensor, any data set of :func:`scoreline.data.load_images`; with folders, the folder above them.
        paired: name of a sensor (`SENSORS`: a stand-in made from the images), or the two sides of a folder, the one the
            model is told first, as "s1,s2".
        split: as in `load_images`; of folders, the subfolder.
        size: both sides are resized to this and cut to a square.
        channels: of the images made.
        source_channels: of the images told; None sees from the files.
        on_bad_image: as in `load_images`; bad pictures of pairs cannot be skipped.

    Raises:
        InputError: an unknown sensor, or a picture without its partner, the first of which is named.
        ArtefactError: no such folder, no pairs in it, or a bad picture.

    >>> load_paired("digits", split="test", paired="sar-like")
    Paired('digits:test, sar-like stand-in', 500 of shape (1, 8, 8), stand-in source (1, 8, 8))
    """
    if paired in SENSORS:
        images = load_images(source, split=split, size=size, channels=channels, on_bad_image=on_bad_image)
        if source_channels not in (None, 1):
            raise InputError("source_channels", source_channels, f"{paired} makes one channel")
        name = f"{images.name}, {paired} stand-in"
        return Paired(images, SENSORS[paired], name=name, tag=f"{paired} 1", stand_in=True)
    sides = paired.split(",")
    if len(sides) != 2 or not all(re.fullmatch(r"[\w-]+", side) for side in sides) or sides[0] == sides[1]:
        error = unknown_name("paired", paired, SENSORS)
        raise InputError("paired", paired, f'{error.mend}; or name two folders, as "s1,s2"')
    if on_bad_image != "error":
        raise InputError("on_bad_image", on_bad_image, "a pair lives by both pictures; repair or remove them")
    top = Path(source).expanduser()
    root = top if split is None else top / split
    if not root.is_dir():
        raise ArtefactError(f"folder {root}", None, "no such folder")
    told, made = _partners(root, sides[0], sides[1])
    opened = []
    for paths, wanted in ((made, channels), (told, source_channels)):
        pixels, _ = open_records(
            FileRecords(root, paths), what=f"folder {root}", size=size, channels=wanted, on_bad_image="error"
        )
        opened.append(Images(pixels, name=f"{top.name}:{split}" if split else top.name))
    return Paired(*opened)


def pictures_in(root: Path) -> list[str]:
    """Paths of the pictures below a folder, with forward slashes, in the order in which `load_folder` reads them."""
    found = []
    for here, folders, names in os.walk(root):
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(Path(here, name).relative_to(root).as_posix())
    return sorted(found, key=lambda path: path.split("/"))


def _partners(root: Path, first: str, second: str) -> tuple[list[str], list[str]]:
    """Paths inside `root` of both sides, in one order.

    A path is of a side where one of its folders is called like it, or so with a number, as SEN1-2's s1_12; its partner
    has the other side's name in that folder and, where the side stands between underscores, in the file's name.
    """
    files = pictures_in(root)
    keys: dict[str, dict[str, str]] = {first: {}, second: {}}
    for path in files:
        for side in (first, second):
            pattern = re.compile(rf"(?<![^/_]){re.escape(side)}(?=[_/])")
            if any(re.fullmatch(rf"{re.escape(side)}(_\w+)?", folder) for folder in path.split("/")[:-1]):
                keys[side][pattern.sub("\0", path)] = path
                break
    for side in (first, second):
        if not keys[side]:
            raise ArtefactError(f"folder {root}", None, f"holds no pictures under a folder {side}")
    for side, other in ((first, second), (second, first)):
        for key, path in keys[side].items():
            if key not in keys[other]:
                missing = key.replace("\0", other)
                raise InputError("pair", path, f"has no partner; {missing} is missing; add it, or remove the one")
    order = sorted(keys[first])
    return [keys[first][key] for key in order], [keys[second][key] for key in order]
