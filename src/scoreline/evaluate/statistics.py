"""Means and covariances of features in .npz files, in the layouts that others read and write.

pytorch-fid (mseitzer/pytorch-fid), clean-fid (GaParmar/clean-fid) and EDM (NVlabs/edm) store `mu` (d,) and `sigma`
(d, d); guided-diffusion (openai/guided-diffusion) adds `mu_s` and `sigma_s` of the spatial features of sFID, and keeps
images under `arr_0`. None of them says how many images or which network; the layout "scoreline" adds that under names
which the others ignore.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import ArtefactError, InputError, unknown_name
from scoreline.core.files import atomic_path
from scoreline.core.moments import Moments

__all__ = ["LAYOUTS", "Statistics", "read_statistics", "write_statistics"]

LAYOUTS = ("scoreline", "pytorch-fid", "clean-fid", "edm", "guided-diffusion")

# names of mean and covariance, by metric
_NAMES = {"fd": ("mu", "sigma"), "sfid": ("mu_s", "sigma_s")}
_KNOWN_OF = ("features", "weights", "resize", "quantisation", "precision")


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, and what is known of where they are from.

    Args:
        mean, cov: (d,) and (d, d), float64.
        spatial: mean and covariance of the features of sFID, where they are stored.
        count: how many images, None where the file does not say.
        known: features, weights, resize, quantisation and precision of the network, as far as the file says.
    """

    mean: Tensor
    cov: Tensor
    spatial: tuple[Tensor, Tensor] | None = None
    count: int | None = None
    known: Mapping[str, str] | None = None

    def pair(self, metric: str) -> tuple[Tensor, Tensor]:
        """Mean and covariance for "fd" or "sfid".

        Raises:
            InputError: sFID, and the file holds no statistics for it.
        """
        if metric == "fd":
            return self.mean, self.cov
        if self.spatial is None:
            raise InputError("metric", metric, "the statistics hold no mu_s and sigma_s; make them from images")
        return self.spatial


def write_statistics(
    path: str | Path,
    moments: Moments,
    *,
    known: Mapping[str, str] | None = None,
    spatial: Moments | None = None,
    layout: str = "scoreline",
) -> None:
    """Mean and covariance as .npz, float64, whole or not at all.

    Args:
        path: name of the file, ending in .npz.
        moments: of the features.
        known: the network's protocol, kept by the layout "scoreline".
        spatial: moments of the features of sFID; "guided-diffusion" needs them, "scoreline" keeps them.
        layout: one of `LAYOUTS`.

    Raises:
        InputError: an unknown layout, another suffix, or moments that the layout needs are missing.
    """
    if layout not in LAYOUTS:
        raise unknown_name("statistics layout", layout, LAYOUTS)
    if Path(path).suffix != ".npz":
        raise InputError("save_statistics", str(path), "takes a name ending in .npz")
    if layout == "guided-diffusion" and spatial is None:
        raise InputError("statistics layout", layout, "holds mu_s and sigma_s too; add sfid to the metrics")
    arrays: dict[str, Any] = {"mu": moments.mean.cpu().numpy(), "sigma": moments.cov().cpu().numpy()}
    if spatial is not None and layout in ("scoreline", "guided-diffusion"):
        arrays |= {"mu_s": spatial.mean.cpu().numpy(), "sigma_s": spatial.cov().cpu().numpy()}
    if layout == "scoreline":
        arrays |= {"count": moments.count} | {name: (known or {}).get(name, "") for name in _KNOWN_OF}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)


def read_statistics(path: str | Path) -> Statistics | None:
    """The statistics in an .npz file, or None when it holds something else (images or features, say).

    Raises:
        ArtefactError: the file is damaged.
        InputError: mean and covariance do not fit together, are not finite or no covariance, or one is missing.
    """
    file = Path(path).expanduser()
    if file.suffix.lower() != ".npz" or not file.is_file():
        return None
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    try:
        with np.load(file, allow_pickle=False) as arrays:
            held = set(arrays.files) if isinstance(arrays, np.lib.npyio.NpzFile) else set()
            if not held & {name for names in _NAMES.values() for name in names}:
                return None
            for metric, names in _NAMES.items():
                if set(names) <= held:
                    found = (np.asarray(arrays[name]) for name in names)
                    mean, cov = (torch.from_numpy(a.astype(np.float64, casting="same_kind")) for a in found)
                    pairs[metric] = mean, cov
            count = int(arrays["count"]) if "count" in held else None
            known = {name: str(arrays[name]) for name in _KNOWN_OF if name in held and str(arrays[name])}
    except Exception as error:  # zip, zlib and header parsing meet hostile bytes and raise nearly anything
        raise ArtefactError("statistics", str(path), f"cannot be read ({error})") from None
    if "fd" not in pairs:
        have = ", ".join(sorted(held))
        raise InputError(f"statistics in {path}", None, f"need mu and sigma, both; the file holds {have}")
    for metric, (mean, cov) in pairs.items():
        _check(path, _NAMES[metric], mean, cov)
    if count is not None and count < 2:
        raise InputError(f"statistics in {path}", count, "count is the number of images, 2 or more")
    return Statistics(*pairs["fd"], pairs.get("sfid"), count, known)


def _check(path: str | Path, names: tuple[str, str], mean: Tensor, cov: Tensor) -> None:
    thing = f"statistics in {path}"
    if mean.dim() != 1 or len(mean) == 0 or cov.shape != (len(mean), len(mean)):
        shapes = (tuple(mean.shape), tuple(cov.shape))
        raise InputError(thing, shapes, f"{names[0]} has shape (d,), {names[1]} has shape (d, d)")
    if not bool(mean.isfinite().all() and cov.isfinite().all()):
        raise InputError(thing, None, "hold NaN or infinity; make them again")
    size = float(cov.abs().max())
    if float((cov - cov.T).abs().max()) > 1e-5 * size or float(cov.diagonal().min()) < -1e-5 * size:
        raise InputError(thing, names[1], "is no covariance: not symmetric, or with a negative variance")
