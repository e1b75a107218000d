"""Statistics of data sets that were computed before, by fingerprint, in the user's cache folder.

An entry is one .safetensors file: count, mean and scatter of the features (float64) and the sample of rows that
intervals are estimated from; where a metric needed all rows, they lie beside it in a .raw file of at most 1 GiB, with
its SHA-256 in the entry. The name is a hash of the data's fingerprint and of the network's whole protocol, so that a
changed picture, weight or resize rule is another entry; a damaged file counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from scoreline.core.errors import InputError
from scoreline.core.files import atomic_path
from scoreline.core.moments import Moments
from scoreline.evaluate.extraction import SAMPLE, Taken
from scoreline.evaluate.rows import FeatureFile

__all__ = ["cached", "store"]

_VERSION = 1
_MOST_BYTES = 2**30


def _path(folder: Path, fingerprint: str, protocol: Mapping[str, str], tap: str) -> Path:
    job = [_VERSION, fingerprint, dict(protocol), tap, SAMPLE]
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:24]
    return folder / "statistics" / f"{digest}.safetensors"


def cached(folder: Path, fingerprint: str, protocol: Mapping[str, str], tap: str, *, rows: bool) -> Taken | None:
    """The entry of a data set at one tap, or None; with `rows` only one that holds all rows."""
    path = _path(folder, fingerprint, protocol, tap)
    if not path.is_file():
        return None
    try:
        state = load_file(path)
        taken = Taken(Moments.from_tensors(state), state["sample"])
        if rows:
            with open(path.with_suffix(".raw"), "rb") as file:
                if hashlib.file_digest(file, "sha256").digest() != bytes(state["rows_sha256"].tolist()):
                    return None
            dim = taken.moments.dim
            taken.rows = FeatureFile(path.with_suffix(".raw"), 0, taken.count, dim, np.dtype(np.float32))
    except (SafetensorError, OSError, KeyError, InputError):
        return None
    if taken.sample.shape != (min(taken.count, SAMPLE), taken.moments.dim) or taken.sample.dtype != torch.float32:
        return None
    return taken


def store(folder: Path, fingerprint: str, protocol: Mapping[str, str], tap: str, taken: Taken) -> None:
    """Keep what a pass took for the next run.

    Raises:
        ArtefactError: the folder cannot be written to.
    """
    path = _path(folder, fingerprint, protocol, tap)
    state = taken.moments.to_tensors() | {"sample": taken.sample.to(torch.float32)}
    if taken.rows is not None and taken.count * taken.moments.dim * 4 <= _MOST_BYTES:
        with atomic_path(path.with_suffix(".raw")) as temporary:
            shutil.copyfile(taken.rows.path, temporary)
            with open(temporary, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").digest()
        state["rows_sha256"] = torch.tensor(list(digest), dtype=torch.uint8)
    with atomic_path(path) as temporary:
        save_file({key: value.contiguous() for key, value in state.items()}, temporary)
