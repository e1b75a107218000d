"""Where the pixels of a data set lie: an array in memory, or encoded pictures that are decoded when asked for."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError
from scoreline.data.decode import Header, decode, inspect
from scoreline.data.transforms import from_uint8

__all__ = ["Pixels", "ArrayPixels", "Records", "EncodedPixels", "OnBadImage", "open_records", "check_options"]

OnBadImage = Literal["error", "skip"]

# Decoded pictures are kept while all of them fit into this many bytes: later epochs then cost no decoding.
_KEEP_BYTES = 256 * 2**20


class Pixels(Protocol):
    """A sequence of images of one shape."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def preparation(self) -> str:
        """What was done to the stored pixels; a part of the fingerprint."""

    @property
    def formats(self) -> Mapping[str, int]:
        """How many images are stored in which format."""

    @property
    def sides(self) -> Mapping[tuple[int, int], int]:
        """How many images are stored with which (width, height), before any resizing."""

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> Tensor:
        """(B, C, H, W) float32 in [-1, 1]."""

    def digest(self, row: int) -> bytes:
        """Hash of one image as it is stored."""


class ArrayPixels:
    """Images in an array (in memory or memory-mapped).

    Args:
        array: (N, C, H, W), uint8 or float32 in [-1, 1]; not checked here.
        preparation: what was done to it before.
        side: (width, height) before that; None where it is the array's own.
    """

    def __init__(self, array: np.ndarray, *, preparation: str = "none", side: tuple[int, int] | None = None) -> None:
        self.array = array
        self.preparation = preparation
        self.shape: tuple[int, int, int] = (array.shape[1], array.shape[2], array.shape[3])
        self.sides: Mapping[tuple[int, int], int] = {side or (self.shape[2], self.shape[1]): len(array)}
        self.formats: Mapping[str, int] = {f"{array.dtype} array": len(array)}

    def __len__(self) -> int:
        return len(self.array)

    def read(self, rows: np.ndarray) -> Tensor:
        # Indexing by an array copies: a batch never shares memory with the data set.
        chosen = torch.from_numpy(np.ascontiguousarray(self.array[rows]))
        return from_uint8(chosen) if chosen.dtype == torch.uint8 else chosen

    def digest(self, row: int) -> bytes:
        pixels = self.array[row]
        little_endian = pixels.astype(pixels.dtype.newbyteorder("<"), copy=False)
        return hashlib.sha256(f"{pixels.dtype.name}{pixels.shape}".encode() + little_endian.tobytes()).digest()


class Records(Protocol):
    """A sequence of encoded pictures: files of a folder, rows of a table."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """For error messages."""

    def key(self, row: int) -> bytes:
        """What of its name belongs to the content (a file's path inside its folder), or nothing."""

    def data(self, row: int) -> bytes:
        """The encoded picture."""


class EncodedPixels:
    """Pictures that are decoded when asked for; those already decoded are kept while all fit into 256 MiB.

    Args:
        records: the encoded pictures.
        rows: which of them are in use.
        shape: (C, H, W) of every decoded picture.
        size: resize and crop to this side, or None.
        formats: how many pictures have which file format.
        sides: how many pictures have which (width, height) in their files.
    """

    def __init__(
        self,
        records: Records,
        rows: np.ndarray,
        shape: tuple[int, int, int],
        *,
        size: int | None,
        formats: Mapping[str, int],
        sides: Mapping[tuple[int, int], int],
    ) -> None:
        self.records, self.rows, self.shape, self.size = records, rows, shape, size
        self.formats, self.sides = formats, sides
        self.preparation = f"channels={shape[0]} size={size} filter={'none' if size is None else 'bicubic'}"
        self._kept: np.ndarray | None = None
        self._have = np.zeros(0, dtype=bool)

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: np.ndarray) -> Tensor:
        if self._kept is None and len(self) * int(np.prod(self.shape)) <= _KEEP_BYTES:
            self._kept = np.empty((len(self), *self.shape), dtype=np.uint8)
            self._have = np.zeros(len(self), dtype=bool)
        if self._kept is None:
            decoded = np.stack([self._decode(int(self.rows[row])) for row in rows])
            return from_uint8(torch.from_numpy(decoded))
        for row in rows[~self._have[rows]]:
            self._kept[row] = self._decode(int(self.rows[row]))
            self._have[row] = True
        return from_uint8(torch.from_numpy(self._kept[rows]))

    def _decode(self, record: int) -> np.ndarray:
        name = self.records.name(record)
        pixels = decode(self.records.data(record), name, channels=self.shape[0], size=self.size)
        if pixels.shape[:2] != self.shape[1:]:
            raise ArtefactError(
                f"image {name}", None, f"has {pixels.shape[:2]} pixels where {self.shape[1:]} were found on opening"
            )
        return pixels.transpose(2, 0, 1)

    def digest(self, row: int) -> bytes:
        record = int(self.rows[row])
        data = self.records.data(record)
        return hashlib.sha256(self.records.key(record) + f"\0{len(data)}\0".encode() + data).digest()

    def __getstate__(self) -> dict[str, Any]:
        # A worker process keeps what it decodes itself.
        return {**self.__dict__, "_kept": None, "_have": np.zeros(0, dtype=bool)}


def check_options(size: int | None, channels: int | None, on_bad_image: str) -> None:
    """Refuse impossible reading options before anything is read."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= 2**14):
        raise InputError("size", size, "the side of the images in pixels, 1 to 16384")
    if channels not in (None, 1, 3):
        raise InputError("channels", channels, "use 1 for grey, 3 for RGB, or None to see from the images")
    if on_bad_image not in ("error", "skip"):
        raise InputError("on_bad_image", on_bad_image, "use 'error' or 'skip'")


def open_records(
    records: Records, *, what: str, size: int | None, channels: int | None, on_bad_image: OnBadImage
) -> tuple[EncodedPixels, list[tuple[str, str]]]:
    """Look at every picture once and decide the common shape.

    With "error" only headers are read (broken pixels are named when they are decoded); with "skip" every picture is
    decoded, because that is the only way to know which are bad.

    Args:
        records: the encoded pictures, at least one.
        what: the data set, for error messages.
        size: side of the square to resize and crop to; None takes the pictures' own common size.
        channels: 1, 3, or None for 1 where every picture is grey and 3 otherwise.
        on_bad_image: "error" or "skip".

    Returns:
        The pixels of the good pictures (`.rows` are their numbers), and (name, reason) for each skipped one.

    Raises:
        ArtefactError: a picture is bad and `on_bad_image` is "error", or all are bad.
        InputError: sizes differ and no `size` was given.
    """
    rows: list[int] = []
    headers: list[Header] = []
    skipped: list[tuple[str, str]] = []
    for record in range(len(records)):
        name = records.name(record)
        try:
            data = records.data(record)
            header = inspect(data, name)
            if on_bad_image == "skip":
                decode(data, name, channels=channels or 3)
        except ArtefactError as error:
            if on_bad_image == "error":
                raise ArtefactError(error.thing, error.value, f"{error.mend}; or use --on-bad-image skip") from error
            skipped.append((name, error.mend))
            continue
        rows.append(record)
        headers.append(header)
    if not rows:
        first = f"; the first: {skipped[0][0]} {skipped[0][1]}" if skipped else ""
        raise ArtefactError(what, None, f"holds no picture that can be read ({len(skipped)} bad{first})")
    if all(header.height == header.width == size for header in headers):
        size = None  # nothing to do, and the fingerprint must say so
    if size is None:
        _check_sizes(records, rows, headers)
    if channels is None:
        channels = 1 if all(header.grey for header in headers) else 3
    shape = (channels, size or headers[0].height, size or headers[0].width)
    formats = Counter(header.format for header in headers)
    sides = Counter((header.width, header.height) for header in headers)
    return EncodedPixels(
        records, np.array(rows, dtype=np.int64), shape, size=size, formats=dict(sorted(formats.items())),
        sides=dict(sorted(sides.items())),
    ), skipped  # fmt: skip


def _check_sizes(records: Records, rows: list[int], headers: list[Header]) -> None:
    """Refuse pictures of different sizes, naming two of them."""
    first = headers[0]
    for row, header in zip(rows, headers, strict=True):
        if (header.height, header.width) != (first.height, first.width):
            raise InputError(
                "image sizes",
                None,
                f"differ: {records.name(rows[0])} is {first.width} x {first.height}, {records.name(row)} is "
                f"{header.width} x {header.height}; give size= (--size), the side to resize and crop them all to",
            )
