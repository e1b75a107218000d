"""Pixel-wise scores of anomaly maps that pool all images: AUROC, area under precision-recall, AUPRO.

Scores stay raw: squashing them through a sigmoid in float32 makes ties and moves the value. Counts are 64-bit integers
or float64, because a float32 running sum of ones stalls at 2^24 pixels.

AUPRO: Bergmann et al. 2019 (MVTec AD); in two conventions that differ a little, see :func:`aupro`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.metrics import binary_curves

__all__ = ["CONVENTIONS", "Convention", "aupr", "aupro", "auroc", "image_auroc", "maps_and_masks"]

Convention = Literal["distinct", "authors"]
CONVENTIONS = ("distinct", "authors")


def maps_and_masks(
    maps: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor], *, planes: bool = True
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Scores and mask of every image, as NumPy arrays on the host; half-precision scores as float32, exactly.

    Args:
        maps: (N, H, W), or N maps (H_i, W_i) where sizes differ; floating point, finite, higher = more anomalous.
        masks: likewise; bool, or integers 0 and 1.
        planes: whether an image must have two dimensions.

    Returns:
        N pairs of float32 or float64 scores and boolean masks.

    Raises:
        InputError: shapes or types that do not fit, scores that are not finite, masks with other values than 0 and 1.
    """
    if len(maps) != len(masks) or len(maps) == 0:
        raise InputError("images", (len(maps), len(masks)), "give as many maps as masks, at least one")
    pairs = []
    for i, (scores, mask) in enumerate(zip(map(torch.as_tensor, maps), map(torch.as_tensor, masks))):
        if scores.shape != mask.shape:
            shapes = (tuple(scores.shape), tuple(mask.shape))
            raise InputError(
                f"map and mask of image {i}",
                shapes,
                "differ in size; bring the map to its mask's size, not the reverse",
            )
        if planes and scores.ndim != 2:
            raise InputError(f"map of image {i}", tuple(scores.shape), "needs two dimensions, (H, W)")
        if not scores.is_floating_point():
            mend = "anomaly maps are floating point; convert them with .float()"
            raise InputError(f"map of image {i}", str(scores.dtype).removeprefix("torch."), mend)
        pairs.append((_host(scores), _truth(mask, i)))
    kinds = {values.dtype for values, _ in pairs}
    if len(kinds) > 1:
        raise InputError("maps", sorted(map(str, kinds)), "need one type for all images; convert them with .double()")
    for i, (values, _) in enumerate(pairs):
        if not np.isfinite(values).all():
            raise InputError(f"map of image {i}", None, "holds NaN or infinity; repair it, or leave the image out")
    return pairs


def _host(scores: Tensor) -> np.ndarray:
    scores = scores.detach().cpu()
    return (scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores).numpy()


def _truth(mask: Tensor, i: int) -> np.ndarray:
    given = mask.detach().cpu().numpy()
    if given.dtype == np.bool_:
        return given
    if given.dtype.kind not in "iu":
        raise InputError(f"mask of image {i}", str(given.dtype), "masks are bool, or integers 0 and 1")
    if given.size and (given.min() < 0 or given.max() > 1):
        found = np.unique(given).tolist()[:5]
        raise InputError(f"mask of image {i}", found, "holds other values than 0 and 1; pass mask > 0")
    return given.astype(bool)


def _pooled(scores: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Scores and targets of all elements."""
    if isinstance(scores, Tensor) and isinstance(targets, Tensor) and scores.ndim == targets.ndim == 1:
        scores, targets = scores[None], targets[None]  # one row of scores, not N images of one pixel
    pairs = maps_and_masks(scores, targets, planes=False)
    pooled = np.concatenate([s for s, _ in pairs], axis=None)
    truth = np.concatenate([m for _, m in pairs], axis=None)
    positive = int(truth.sum())
    if positive in (0, truth.size):
        raise InputError("targets", (positive, truth.size - positive), "need at least one positive and one negative")
    return torch.from_numpy(pooled), torch.from_numpy(truth)


def auroc(scores: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> float:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counted half.

    AUROC = #{(p, n): s_p > s_n} + #{s_p = s_n} / 2, over n_pos n_neg

    Args:
        scores: any shape, one score an element (maps: all pixels of all images are pooled); raw, no sigmoid.
        targets: the same shape; bool, or integers 0 and 1.

    Returns:
        In [0, 1].

    Raises:
        InputError: shapes or types that do not fit, or one class is missing.

    >>> auroc(torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([0, 0, 1, 1]))
    0.875
    """
    return binary_curves.auroc(*_pooled(scores, targets))


def aupr(scores: Tensor | Sequence[Tensor], targets: Tensor | Sequence[Tensor]) -> float:
    """Area under the precision-recall curve as steps: sum over distinct scores t of (R(t) - R(t+)) P(t).

    Args:
        scores, targets: as for :func:`auroc`.

    Returns:
        In (0, 1]; the share of positives for random scores.

    Raises:
        InputError: as for :func:`auroc`.
    """
    return binary_curves.average_precision(*_pooled(scores, targets))


def image_auroc(maps: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor]) -> float:
    """AUROC of whole images: the score of an image is the maximum of its map, its class whether its mask is not empty.

    A model's own image scores go to :func:`auroc`.

    Args:
        maps: (N, H, W), or N maps (H_i, W_i).
        masks: likewise.

    Raises:
        InputError: as for :func:`auroc`.
    """
    pairs = maps_and_masks(maps, masks)
    scores = torch.from_numpy(np.array([scores.max() for scores, _ in pairs]))
    return auroc(scores, torch.tensor([bool(mask.any()) for _, mask in pairs]))


def aupro(
    maps: Tensor | Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    *,
    fpr_limit: float = 0.3,
    convention: Convention = "distinct",
    positions: int = 100,
) -> float:
    """Area under the per-region overlap curve, up to a false-positive rate.

    PRO(t) = mean over regions of |region and {s > t}| / |region|,  FPR(t) = share of the pixels outside all regions
    with s > t,  AUPRO = integral of PRO dFPR from 0 to fpr_limit, over fpr_limit

    Regions are the 8-connected components of each mask; the pixels outside them, of normal and anomalous images
    alike, are pooled.

    Args:
        maps: (N, H, W), or N maps (H_i, W_i).
        masks: likewise; at least one region, at least one pixel outside.
        fpr_limit: in (0, 1].
        convention: "distinct" starts at (0, 0) and steps through every distinct score (s >= t). "authors" is the data
            set authors' script: s > t at `positions` scores, evenly spaced in the sorted scores outside all regions;
            its FPR is that of the position, also where scores tie, and it starts at the PRO measured at FPR 0.
        positions: of "authors"; 100 in the script.

    Returns:
        In [0, 1].

    Raises:
        InputError: no region, nothing outside, a limit outside (0, 1], and as for :func:`auroc`.

    Reference: Bergmann et al. 2019 (MVTec AD), section 4; Bergmann et al. 2021, 10.1007/s11263-020-01400-4.
    """
    if convention not in CONVENTIONS:
        raise unknown_name("AUPRO convention", convention, CONVENTIONS)
    if not 0 < fpr_limit <= 1:
        raise InputError("fpr_limit", fpr_limit, "a share of false positives in (0, 1]; 0.3 in the literature")
    if positions < 2:
        raise InputError("positions", positions, "at least 2")
    pairs = maps_and_masks(maps, masks)
    inside, overlap = _regions(pairs)
    outside = np.concatenate([scores[~mask] for scores, mask in pairs])
    if inside.size == 0 or outside.size == 0:
        raise InputError("masks", (inside.size, outside.size), "need at least one region and one pixel outside of them")
    outside.sort()
    if convention == "authors":
        at = np.linspace(0, outside.size - 1, positions, dtype=np.int64)[::-1]
        fpr = np.append(1 - (at + 1) / outside.size, 1.0)
        pro = np.append(overlap[inside.size - np.searchsorted(inside, outside[at], side="right")], 1.0)
        return _area_to(fpr, pro, fpr_limit)
    # Between two distinct scores outside the regions PRO alone moves, straight up, and adds no area. So every score
    # outside is one piece of the curve: from PRO above it to PRO at it, as wide as its share of the pixels.
    tail = outside[-min(int(fpr_limit * outside.size) + 1, outside.size) :]
    begins = np.flatnonzero(np.append(True, tail[1:] != tail[:-1]))
    levels = tail[begins]
    begins += outside.size - tail.size
    begins[0] = np.searchsorted(outside, levels[0], side="left")
    ends = (1 - begins / outside.size)[::-1]
    above = overlap[_beyond(inside, levels, "left")][::-1]
    at_least = overlap[_beyond(inside, levels, "right")][::-1]
    starts = np.concatenate([[0.0], ends[:-1]])
    widths = np.clip(fpr_limit - starts, 0, ends - starts)
    reached = above + (at_least - above) * widths / (ends - starts)
    return float((widths * (above + reached)).sum() / (2 * fpr_limit))


def _beyond(inside: np.ndarray, levels: np.ndarray, side: Literal["left", "right"]) -> np.ndarray:
    """How many scores lie above each of many rising levels, or with side="right" at or above it."""
    passed = np.searchsorted(levels, inside, side)
    return inside.size - np.cumsum(np.bincount(passed, minlength=levels.size + 1))[: levels.size]


def _regions(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Scores inside regions, rising, and [PRO of the k highest of them, for k = 0, 1, ...]."""
    from scipy import ndimage

    scores, weights, regions = [], [], 0
    for image, mask in pairs:
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        inside = labels[mask]
        scores.append(image[mask])
        weights.append(1 / np.bincount(inside)[inside])
        regions += count
    pooled, shares = np.concatenate(scores), np.concatenate(weights)
    order = np.argsort(pooled)
    overlap = np.concatenate([[0.0], np.cumsum(shares[order[::-1]], dtype=np.float64)])
    return pooled[order], np.minimum(overlap / max(regions, 1), 1.0)


def _area_to(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Trapezoid of y(x) from x[0] = 0 to `limit`, over `limit`; the end point lies on the last piece."""
    kept = int(np.searchsorted(x, limit))
    end = y[kept - 1] + (y[kept] - y[kept - 1]) * (limit - x[kept - 1]) / (x[kept] - x[kept - 1])
    return float(np.trapezoid(np.append(y[:kept], end), np.append(x[:kept], limit)) / limit)
