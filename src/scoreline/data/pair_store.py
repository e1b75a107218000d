"""Pairs of noise and image, the training data of reflow and regression: in memory, or a folder that is memory-mapped.

A pair is (z, x): z standard normal, x where a deterministic sampler of a teacher took it. A batch holds x as `image`
and z as `extras["noise"]`. The folder holds `pairs.json`, which says how the pairs were made, and per shard the files
`image-00000.npy`, `noise-00000.npy` (unless the noise is kept as a seed only) and `label-00000.npy` (of models with
classes). A shard is there when its image file is; `scoreline pairs` writes them (:mod:`scoreline.evaluate.pairs`).

Flips: with probability 1/2 a batch is seen in the mirror, noise and image together; this doubles the pairs of a teacher
that was trained with flips.

Reference: Liu et al. 2023 (Flow Straight and Fast), for the pairs; Zhu et al. 2024 (SlimFlow), for the flips.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.core.files import read_json
from scoreline.core.noise import Noise, derive
from scoreline.data.images import Batch
from scoreline.data.transforms import from_uint8

__all__ = ["FORMAT", "HEADER", "PairStore", "Pairs", "part_path", "parts_of", "shard_count"]

FORMAT = "scoreline/pairs/1"
HEADER = "pairs.json"


class Pairs:
    """Pairs in memory.

    Args:
        noise: z, (N, *shape) standard normal.
        image: x, (N, *shape), the data ends.
        label: (N,) integer classes, or None.
        num_classes: number of classes; None takes the largest label plus one.
        flips: see a batch in the mirror with probability 1/2, noise and image together.
        name: shown in errors.

    Raises:
        InputError: shapes or counts differ, nothing is there, or flips are asked of what is no picture.

    >>> pairs = Pairs(torch.zeros(3, 1, 8, 8), torch.ones(3, 1, 8, 8))
    >>> batch = pairs.batch(np.array([2, 0]))
    >>> batch.extras["noise"].shape, batch.index.tolist()
    (torch.Size([2, 1, 8, 8]), [2, 0])
    """

    def __init__(
        self,
        noise: Tensor,
        image: Tensor,
        label: Tensor | None = None,
        *,
        num_classes: int | None = None,
        flips: bool = False,
        name: str = "pairs",
    ) -> None:
        if noise.shape != image.shape or noise.dim() < 2 or len(noise) == 0:
            mend = f"need one shape, (N, ...), and at least one pair; the images are {tuple(image.shape)}"
            raise InputError("noise", tuple(noise.shape), mend)
        if label is not None and (label.shape != (len(noise),) or label.is_floating_point()):
            raise InputError("label", tuple(label.shape), f"needs one whole number for each of {len(noise)} pairs")
        _check_flips(flips, tuple(image.shape[1:]))
        self.noise, self.image, self.flips, self.name = noise, image, flips, name
        self.label = None if label is None else label.long()
        self.shape = tuple(image.shape[1:])
        self.index = np.arange(len(image))
        self.num_classes = None if self.label is None else num_classes or int(self.label.max()) + 1

    def __len__(self) -> int:
        return len(self.image)

    def batch(self, positions: np.ndarray) -> Batch:
        """The pairs at some positions, (B,) 0 to len - 1: x as `image`, z as `extras["noise"]`."""
        places = _places(positions, len(self), self.name)
        rows = torch.from_numpy(places).to(self.image.device)
        label = None if self.label is None else self.label[rows.to(self.label.device)]
        noise, image = self.noise[rows.to(self.noise.device)], self.image[rows]
        if self.flips and _mirrored(self.fingerprint, places):
            noise, image = noise.flip(-1), image.flip(-1)
        return Batch(image, label, torch.from_numpy(places), extras={"noise": noise})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the pairs, in hex; flips are part of it."""
        total = hashlib.sha256(f"scoreline pairs {self.flips}".encode())
        for part in (self.noise, self.image, self.label):
            if part is not None:
                total.update(f"{part.dtype}{tuple(part.shape)}".encode())
                total.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


class PairStore:
    """Pairs in a folder, memory-mapped: only what a batch needs is read.

    Args:
        folder: written by `scoreline pairs` and finished.
        flips: see a batch in the mirror with probability 1/2, noise and image together; one coin a batch, which is a
            function of the batch's positions, so that a resumed training sees the same. None does what the store says.
        teacher: refuse pairs of another model than the one with this fingerprint.
        shape: refuse pairs of another shape.

    Attributes:
        header: what `pairs.json` says: teacher, sampler, nfe, guidance, labels, seed, count.

    Raises:
        ArtefactError: no finished store, a damaged one, or one of another teacher or shape.
        InputError: flips are asked of what is no picture.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        flips: bool | None = None,
        teacher: str | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        self.folder, self.name = Path(folder), str(folder)
        self.header = _header(self.folder)
        self.flips: bool = self.header["flips"] if flips is None else flips
        self.shape = tuple(self.header["shape"])
        self.num_classes: int | None = self.header["num_classes"]
        self.index = np.arange(self.header["count"])
        if teacher is not None and self.header["teacher"]["fingerprint"] != teacher:
            made = self.header["teacher"]["name"]
            mend = f"holds pairs of another teacher ({made}); make them with scoreline pairs of this one"
            raise ArtefactError("pair store", self.name, mend)
        if shape is not None and self.shape != tuple(shape):
            raise ArtefactError("pair store", self.name, f"holds pairs of shape {self.shape}, not {tuple(shape)}")
        _check_flips(self.flips, self.shape)
        self._shards = [self._open(number) for number in range(shard_count(self.header))]

    def __len__(self) -> int:
        return int(self.header["count"])

    def __repr__(self) -> str:
        return f"PairStore({self.name!r}, {len(self)} of shape {self.shape})"

    def batch(self, positions: np.ndarray) -> Batch:
        """The pairs at some positions, (B,) 0 to len - 1: x as `image`, z as `extras["noise"]`, both float32."""
        places = _places(positions, len(self), self.name)
        image = self._read("image", places)
        if self.header["noise"] == "seed":
            noise = Noise(self.header["seed"]).at(places, self.shape).normal()
        else:
            noise = self._read("noise", places)
        label = self._read("label", places) if self.num_classes is not None else None
        if image.dtype == torch.uint8:
            image = from_uint8(image)
        if self.flips and _mirrored(self.fingerprint, places):
            noise, image = noise.flip(-1), image.flip(-1)
        return Batch(image, label, torch.from_numpy(places), extras={"noise": noise})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what the header says, which holds the SHA-256 of every file; flips are part of it."""
        told = json.dumps({**self.header, "flips": self.flips}, sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    def _open(self, number: int) -> dict[str, np.ndarray]:
        size = self.header["shard_size"]
        count = min(size, len(self) - number * size)
        shapes = {"image": (count, *self.shape), "noise": (count, *self.shape), "label": (count,)}
        arrays = {}
        for part in parts_of(self.header):
            path = part_path(self.folder, part, number)
            try:
                arrays[part] = np.load(path, mmap_mode="r", allow_pickle=False)
            except FileNotFoundError:
                raise ArtefactError("pair store", self.name, f"{path.name} is missing; run scoreline pairs") from None
            except (OSError, ValueError) as error:
                mend = f"{path.name} cannot be read ({error}); delete it and run scoreline pairs again"
                raise ArtefactError("pair store", self.name, mend) from None
            if arrays[part].shape != shapes[part]:
                mend = f"{path.name} holds {arrays[part].shape}, not {shapes[part]}; delete it and make it again"
                raise ArtefactError("pair store", self.name, mend)
        return arrays

    def _read(self, part: str, places: np.ndarray) -> Tensor:
        shards, rows = np.divmod(places, self.header["shard_size"])
        first = self._shards[0][part]
        out = np.empty((len(places), *first.shape[1:]), dtype=first.dtype)
        for number in np.unique(shards):
            here = shards == number
            out[here] = self._shards[number][part][rows[here]]
        return torch.from_numpy(out)


def part_path(folder: Path, part: str, number: int) -> Path:
    """The file of one part (image, noise or label) of shard `number`."""
    return folder / f"{part}-{number:05d}.npy"


def parts_of(header: dict[str, Any]) -> list[str]:
    """The parts that every shard of a store has, the image last, which marks a shard as done."""
    parts = ["noise"] if header["noise"] == "stored" else []
    return [*parts, *(["label"] if header["num_classes"] is not None else []), "image"]


def shard_count(header: dict[str, Any]) -> int:
    """How many shards a store has."""
    return -(-int(header["count"]) // int(header["shard_size"]))


def _header(folder: Path) -> dict[str, Any]:
    path = folder / HEADER
    if not path.is_file():
        raise ArtefactError("pair store", str(folder), f"has no {HEADER}; make one with scoreline pairs")
    header = read_json(path)
    wanted = {"format", "count", "shape", "num_classes", "shard_size", "dtype", "noise", "seed", "flips", "teacher"}
    wanted |= {"files"}
    if not isinstance(header, dict) or header.get("format") != FORMAT or not wanted <= header.keys():
        raise ArtefactError("pair store", str(folder), f"{HEADER} is damaged, or of another version")
    if header["files"] is None:
        raise ArtefactError("pair store", str(folder), "is not finished; run the same scoreline pairs again")
    return header


def _places(positions: Any, count: int, name: str) -> np.ndarray:
    places = np.asarray(positions, dtype=np.int64)
    if places.size and (places.min() < 0 or places.max() >= count):
        raise InputError("position", int(places.max()), f"{name} has positions 0 to {count - 1}")
    return places


def _check_flips(flips: bool, shape: tuple[int, ...]) -> None:
    if flips and len(shape) != 3:
        raise InputError("flips", flips, f"only pictures can be seen in the mirror; these pairs have shape {shape}")


def _mirrored(fingerprint: str, places: np.ndarray) -> bool:
    # Positions of an epoch are another permutation than those of the last, so the coin of a batch is drawn anew.
    return bool(derive(0, "flip", fingerprint, *places.tolist()) & 1)
