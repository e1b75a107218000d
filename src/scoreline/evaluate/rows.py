"""Feature matrices in files, so that a set of any size costs no memory: streamed in chunks, or mapped.

Streaming reads with plain file reads rather than through a memory map, whose touched pages would count as resident
memory of this process.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError

__all__ = ["FeatureFile", "open_features"]

# chunk of a streaming pass, bytes as float64
_CHUNK_BYTES = 2**26
_KEYS = ("features", "arr_0")


class FeatureFile:
    """(N, D) floating point features that lie one row after the other in a file.

    Args:
        path: the file.
        offset: bytes before the first row.
        count, dim: N and D.
        dtype: of an entry.
    """

    def __init__(self, path: Path, offset: int, count: int, dim: int, dtype: np.dtype) -> None:
        self.path, self.offset, self.count, self.dim, self.dtype = path, offset, count, dim, dtype

    def __len__(self) -> int:
        return self.count

    @classmethod
    def create(cls, path: Path, count: int, dim: int) -> FeatureFile:
        """A file of float32 zeros, which takes no space on disk before it is written; an older one is kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = cls(path, 0, count, dim, np.dtype(np.float32))
        with open(path, "ab") as file:
            file.truncate(count * dim * 4)
        return rows

    def write(self, start: int, features: Tensor) -> None:
        """Put rows at their place."""
        with open(self.path, "r+b") as file:
            file.seek(self.offset + start * self.dim * self.dtype.itemsize)
            file.write(np.ascontiguousarray(features.numpy(), dtype=self.dtype).tobytes())

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop as a tensor of its own."""
        size = (stop - start) * self.dim
        with open(self.path, "rb") as file:
            file.seek(self.offset + start * self.dim * self.dtype.itemsize)
            flat = np.fromfile(file, dtype=self.dtype, count=size)
        if len(flat) != size:
            raise ArtefactError(f"features in {self.path}", None, "end too early: the file is truncated")
        if not flat.dtype.isnative:
            flat = flat.astype(flat.dtype.newbyteorder("="))
        return torch.from_numpy(flat).view(stop - start, self.dim)

    def take(self, rows: Tensor) -> Tensor:
        """Some rows, in the order of `rows`, as a tensor of its own."""
        chosen = np.array(self._map()[rows.numpy()])
        return torch.from_numpy(chosen if chosen.dtype.isnative else chosen.astype(chosen.dtype.newbyteorder("=")))

    def chunks(self, share: int = 0, shares: int = 1) -> Iterator[Tensor]:
        """The rows of one of several equal shares in order, in chunks of a size that depends on D alone."""
        size = max(1, _CHUNK_BYTES // (8 * self.dim))
        first, last = share * self.count // shares, (share + 1) * self.count // shares
        for start in range(first, last, size):
            yield self.read(start, min(start + size, last))

    def tensor(self) -> Tensor:
        """All rows, mapped into memory; changes stay private."""
        mapped = self._map()
        # another byte order has no tensor; it is rare enough to be copied
        return torch.from_numpy(mapped if mapped.dtype.isnative else mapped.astype(mapped.dtype.newbyteorder("=")))

    def _map(self) -> np.ndarray:
        shape = (self.count, self.dim)
        return np.memmap(self.path, dtype=self.dtype, mode="c", offset=self.offset, shape=shape).view(np.ndarray)


def open_features(path: str | Path, folder: Path) -> FeatureFile | None:
    """The features in a .npy or .npz file, or None when it holds something else (images or statistics, say).

    A floating point array of shape (N, D), in a .npz under `features` or `arr_0`. A packed or column-wise array is
    copied to `folder`, since only rows one after the other can be streamed (and a .npz is read whole for that).

    Raises:
        ArtefactError: the file is damaged or truncated.
        InputError: no rows, or no columns.
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if suffix not in (".npy", ".npz") or not file.is_file():
        return None
    try:
        with open(file, "rb") as start:
            magic = start.read(6)
        if magic != b"\x93NUMPY" and magic[:2] != b"PK":
            raise ValueError("no .npy or .npz file")
        loaded = np.load(file, mmap_mode="r" if suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            array = loaded if loaded.ndim == 2 else None
        else:
            with loaded:
                key = next((key for key in _KEYS if key in loaded.files), None)
                array = None if key is None else loaded[key]
    except Exception as error:  # zip, zlib and header parsing meet hostile bytes and raise nearly anything
        if "allow_pickle" in str(error) or "Python objects" in str(error):
            mend = "holds pickled objects, which could run code on reading; save a plain array"
        else:
            mend = f"is broken or truncated ({type(error).__name__}: {error})"
        raise ArtefactError(str(path), None, mend) from None
    if array is None or array.ndim != 2:
        return None
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        mend = "features are floating point numbers, one row an image; images have three or four dimensions"
        raise InputError(f"features in {path}", str(array.dtype), mend)
    if 0 in array.shape:
        raise InputError(f"features in {path}", array.shape, "need at least one row and one column")
    count, dim = array.shape
    if isinstance(array, np.memmap) and array.flags.c_contiguous:
        return FeatureFile(file, int(array.offset), count, dim, array.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"features-{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]}.raw"
    with contextlib.closing(open(copy, "wb")) as out:
        np.ascontiguousarray(array).tofile(out)
    return FeatureFile(copy, 0, count, dim, array.dtype)
