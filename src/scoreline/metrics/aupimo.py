"""AUPIMO: recall in every anomalous image while the model (nearly) never fires on normal ones.

Bertoldo, Ameln, Vaidya & Akcay 2024 (arXiv 2401.01984). With s the anomaly maps, m the masks, and a pixel positive at
threshold t where s >= t:

F_i(t) = FP_i / (FP_i + TN_i),  Fsh(t) = mean of F_i(t) over the NORMAL images,  T_i(t) = TP_i / (TP_i + FN_i)
AUPIMO_i = 1 / ln(U / L) * integral of T_i d ln Fsh from L to U

Normal images have no T_i: their scores are NaN. Pixels of anomalous images outside their masks never enter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.metrics.pixel_curves import maps_and_masks

__all__ = ["FPR_BOUNDS", "NUM_THRESHOLDS", "ROUTES", "AupimoResult", "PimoCurves", "Route"]
__all__ += ["aupimo", "aupimo_from_curves", "check_options", "pimo_curves", "random_model_aupimo"]

Route = Literal["plain", "fast", "exact"]
ROUTES = ("plain", "fast", "exact")
FPR_BOUNDS = (1e-5, 1e-4)

# Of the two routes that place thresholds; the exact one places none.
NUM_THRESHOLDS = {"plain": 300_000, "fast": 300}

LEAST_POINTS, ADVISED_POINTS = 31, 300
BOUND_TOLERANCE = 1e-2


class PimoCurves(NamedTuple):
    """Curves of N images at K thresholds.

    Attributes:
        thresholds: (K,) strictly rising, in the type of the maps.
        shared_fpr: (K,) Fsh, float64, falling.
        per_image_tpr: (N, K) T_i, float64; NaN for normal images.
        classes: (N,) bool, True for anomalous images.
    """

    thresholds: Tensor
    shared_fpr: Tensor
    per_image_tpr: Tensor
    classes: Tensor


class AupimoResult(NamedTuple):
    """Per-image scores and what they were integrated from.

    Attributes:
        scores: (N,) AUPIMO_i in [0, 1], float64; NaN for normal images.
        classes: (N,) bool, True for anomalous images.
        reached: the levels of Fsh between which was integrated, the lower one first.
        curves: the integrated piece of the curves; :func:`pimo_curves` has them whole.
    """

    scores: Tensor
    classes: Tensor
    reached: tuple[float, float]
    curves: PimoCurves

    @property
    def mean(self) -> float:
        """The data set's score: the mean over anomalous images, each counting alike whatever its defect's size."""
        return float(self.scores[self.classes].mean())


class _Pixels:
    """The pixels that count: those of normal images, and the masked ones of each anomalous image."""

    def __init__(self, maps: Tensor | Sequence[Tensor], masks: Tensor | Sequence[Tensor]) -> None:
        pairs = maps_and_masks(maps, masks)
        self.classes = np.array([bool(mask.any()) for _, mask in pairs])
        self.normal_images = int((~self.classes).sum())
        if self.normal_images == 0 or self.normal_images == len(pairs):
            have = f"{self.normal_images} normal of {len(pairs)} images"
            raise InputError("images", have, "AUPIMO needs at least one normal and one anomalous image")
        self.dtype = pairs[0][0].dtype
        # Images of one size can be pooled: the mean of their F_i is the pooled rate.
        sizes = sorted({s.size for (s, _), anomalous in zip(pairs, self.classes) if not anomalous})
        self.normal = {
            size: np.concatenate([s for (s, _), bad in zip(pairs, self.classes) if not bad and s.size == size], None)
            for size in sizes
        }
        self.masked = [np.sort(s[m]) for (s, m), anomalous in zip(pairs, self.classes) if anomalous]
        self.low = min(pooled.min() for pooled in self.normal.values())
        self.high = max(pooled.max() for pooled in self.normal.values())

    def sort(self) -> None:
        for pooled in self.normal.values():
            pooled.sort()

    def fpr(self, t: np.ndarray, side: Literal["left", "right"] = "left") -> np.ndarray:
        """Fsh(t) of sorted pixels: s >= t, or s > t with side="right"."""
        total = np.zeros(len(t))
        for size, pooled in self.normal.items():
            total += (pooled.size - np.searchsorted(pooled, t, side)) / size
        return total / self.normal_images

    def recall(self, t: np.ndarray, side: Literal["left", "right"] = "left") -> np.ndarray:
        """T_i(t), NaN for normal images."""
        rates = np.full((len(self.classes), len(t)), np.nan)
        for i, masked in zip(np.flatnonzero(self.classes), self.masked):
            rates[i] = (masked.size - np.searchsorted(masked, t, side)) / masked.size
        return rates

    def levels(self, bounds: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The distinct normal scores t that matter below Fsh = U, rising, with Fsh(t) and its limit from above.

        The first of them has Fsh >= U. Only the highest scores are sorted.
        """
        tails = {}
        for size, pooled in self.normal.items():
            count = min(int(bounds[1] * size * self.normal_images) + 1, pooled.size)
            tails[size] = np.sort(np.partition(pooled, pooled.size - count)[pooled.size - count :])
        # Below the first score of a tail that was cut off, Fsh is above U whatever the other sizes have there.
        first = max((t[0] for size, t in tails.items() if t.size < self.normal[size].size), default=self.low)
        found = np.unique(np.concatenate(list(tails.values())))
        found = found[found >= first]
        fpr, above = (
            sum((tail.size - np.searchsorted(tail, found, side)) / size for size, tail in tails.items())
            / self.normal_images
            for side in ("left", "right")
        )
        least = float(fpr[-1])
        if bounds[0] < least:
            _refuse_level(bounds, least, self.normal, self.normal_images)
        return found, fpr, above

    def curves(self, t: np.ndarray, fpr: np.ndarray) -> PimoCurves:
        """The curves at some thresholds whose Fsh is known."""
        tensors = (torch.from_numpy(np.ascontiguousarray(a)) for a in (t, fpr, self.recall(t), self.classes))
        return PimoCurves(*tensors)


def pimo_curves(
    maps: Tensor | Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    num_thresholds: int = NUM_THRESHOLDS["plain"],
    *,
    spacing: Literal["linear", "log-fpr"] = "linear",
) -> PimoCurves:
    """The PIMO curves: T_i against the shared Fsh, one curve an image.

    Args:
        maps: (N, H, W), or N maps (H_i, W_i); floating point, finite, higher = more anomalous.
        masks: likewise; bool, or integers 0 and 1; at least one empty and one that is not.
        num_thresholds: K >= 2; K x N rates are kept.
        spacing: "linear" places K thresholds evenly between the lowest and the highest score of the normal images.
            "log-fpr" places at most K at normal scores whose Fsh falls by equal factors, which is what a plot needs.

    Raises:
        InputError: no normal or no anomalous image, K < 2, thresholds that cannot be told apart, integer maps, shapes.

    Reference: arXiv 2401.01984, section 3.
    """
    if spacing not in ("linear", "log-fpr"):
        raise unknown_name("spacing", spacing, ["linear", "log-fpr"])
    _check_count(num_thresholds)
    pixels = _Pixels(maps, masks)
    pixels.sort()
    if spacing == "linear":
        t = _evenly(pixels.low, pixels.high, num_thresholds, pixels.dtype)
    else:
        pooled = np.sort(np.concatenate(list(pixels.normal.values())))
        ranks = np.geomspace(pooled.size, 1, num_thresholds)
        t = np.unique(pooled[pooled.size - np.ceil(ranks - 1e-9).astype(np.int64)])
    return pixels.curves(t, pixels.fpr(t))


def aupimo(
    maps: Tensor | Sequence[Tensor],
    masks: Tensor | Sequence[Tensor],
    num_thresholds: int | None = None,
    *,
    fpr_bounds: tuple[float, float] = FPR_BOUNDS,
    route: Route = "plain",
    force: bool = False,
) -> AupimoResult:
    """Area under the per-image overlap curve, of every anomalous image.

    AUPIMO_i = clip(trapezoid(T_i, ln Fsh) / ln(U / L), 0, 1), between the thresholds whose Fsh is nearest to L and U.

    "plain" is the authors' arithmetic: K thresholds, evenly from the lowest to the highest normal score, nearly all of
    them outside [L, U]. "fast" finds the scores with Fsh nearest to U and L first and places K thresholds between them.
    "exact" places none: Fsh and T_i are step functions, and are integrated as such from exactly L to exactly U. The
    first two integrate between the levels they reach but divide by the nominal ln(U / L), so that an image found whole
    may score slightly less than 1; the third has no such error, and is what the others tend to.

    Args:
        maps: (N, H, W), or N maps (H_i, W_i), each of its mask's size; floating point, finite, higher = more anomalous.
        masks: likewise; bool, or integers 0 and 1; at least one empty and one that is not.
        num_thresholds: K; None: 300,000 for "plain" (the authors' evaluation script takes 30,000), 300 for "fast".
        fpr_bounds: (L, U), 0 < L < U <= 1.
        route: "plain", "fast" or "exact".
        force: integrate also over fewer than 31 thresholds, with a warning.

    Returns:
        Scores by image, NaN for normal ones, with the integrated piece of the curves; `.mean` is the data set's score.

    Raises:
        InputError: Fsh does not reach down to L (the message names the level it reaches and bounds that work), too few
            thresholds lie between L and U, no normal or no anomalous image, integer maps, K < 2, L >= U.

    Reference: arXiv 2401.01984, section 3.3.

    >>> normal, anomalous = torch.arange(100.0).view(1, 10, 10), torch.full((1, 10, 10), 95.5)
    >>> masks = torch.tensor([False, True])[:, None, None].expand(2, 10, 10)
    >>> result = aupimo(torch.cat([normal, anomalous]), masks, fpr_bounds=(0.01, 0.1), route="exact")
    >>> round(result.mean, 3)  # found from Fsh = 4 % on: ln(0.1 / 0.04) / ln(0.1 / 0.01)
    0.398
    """
    check_options(num_thresholds, fpr_bounds, route)
    low, high = bounds = float(fpr_bounds[0]), float(fpr_bounds[1])
    pixels = _Pixels(maps, masks)
    if route == "exact":
        return _exact(pixels, bounds)
    count = NUM_THRESHOLDS[route] if num_thresholds is None else num_thresholds
    if route == "plain":
        pixels.sort()
        t = _evenly(pixels.low, pixels.high, count, pixels.dtype)
        fpr = pixels.fpr(t)
        if low < fpr[-1]:
            _refuse_level(bounds, float(fpr[-1]), pixels.normal, pixels.normal_images)
    else:
        levels, at_least, _ = pixels.levels(bounds)
        start, end = (float(levels[_index(at_least, level)]) for level in (high, low))
        # Neighbouring floats are all there is between the ends where the maps are coarse.
        t = np.unique(np.linspace(start, end, count).astype(pixels.dtype))
        pixels.sort()
        fpr = pixels.fpr(t)
    used = _integrated(fpr, bounds, force)
    t, fpr = t[used], fpr[used]
    curves = pixels.curves(t, fpr)
    scores = _area(fpr, curves.per_image_tpr.numpy(), bounds)
    return AupimoResult(torch.from_numpy(scores), curves.classes, (float(fpr[-1]), float(fpr[0])), curves)


def aupimo_from_curves(
    curves: PimoCurves, *, fpr_bounds: tuple[float, float] = FPR_BOUNDS, force: bool = False
) -> AupimoResult:
    """AUPIMO of curves that are there already, for instance from several bounds.

    Args:
        curves: as :func:`pimo_curves` gives them; Fsh falling.
        fpr_bounds: (L, U), within the levels of Fsh.
        force: integrate also over fewer than 31 thresholds, with a warning.

    Raises:
        InputError: bounds that Fsh does not reach, or too few thresholds between them.
    """
    bounds = _check_bounds(fpr_bounds)
    fpr = curves.shared_fpr.detach().cpu().numpy()
    for level in bounds:
        if not fpr.min() <= level <= fpr.max():
            mend = f"the shared FPR of these curves lies in [{fpr.min():.3g}, {fpr.max():.3g}]"
            raise InputError("fpr_bounds", bounds, mend)
    used = _integrated(fpr, bounds, force)
    scores = _area(fpr[used], curves.per_image_tpr.detach().cpu().numpy()[:, used], bounds)
    piece = PimoCurves(curves.thresholds[used], curves.shared_fpr[used], curves.per_image_tpr[:, used], curves.classes)
    reached = float(fpr[used][-1]), float(fpr[used][0])
    return AupimoResult(torch.from_numpy(scores), curves.classes, reached, piece)


def random_model_aupimo(fpr_bounds: tuple[float, float] = FPR_BOUNDS) -> float:
    """What a model with T = F everywhere scores: (U - L) / ln(U / L).

    >>> f"{random_model_aupimo():.4e}"
    '3.9087e-05'
    """
    low, high = _check_bounds(fpr_bounds)
    return (high - low) / math.log(high / low)


def check_options(num_thresholds: int | None, fpr_bounds: tuple[float, float], route: str) -> None:
    """Refuse what :func:`aupimo` refuses without looking at any image.

    Raises:
        InputError: an unknown route, bounds that are none, K < 2, thresholds for the exact route.
    """
    if route not in ROUTES:
        raise unknown_name("AUPIMO route", route, ROUTES)
    _check_bounds(fpr_bounds)
    if num_thresholds is not None:
        if route == "exact":
            raise InputError("num_thresholds", num_thresholds, "the exact route places no thresholds; leave it out")
        _check_count(num_thresholds)


def _check_bounds(fpr_bounds: tuple[float, float]) -> tuple[float, float]:
    low, high = fpr_bounds
    if not 0 < low < high <= 1:
        raise InputError("fpr_bounds", (low, high), "0 < lower < upper <= 1, for instance (1e-5, 1e-4)")
    return float(low), float(high)


def _check_count(num_thresholds: int) -> None:
    if num_thresholds < 2:
        raise InputError("num_thresholds", num_thresholds, "at least 2")


def _evenly(low: float, high: float, count: int, dtype: np.dtype) -> np.ndarray:
    """K thresholds from the lowest to the highest normal score, built in float64."""
    t = np.linspace(float(low), float(high), count).astype(dtype)
    if not (t[1:] > t[:-1]).all():
        mend = f"{dtype} does not tell so many thresholds apart between the normal scores {low:.6g} and {high:.6g}; "
        raise InputError("num_thresholds", count, mend + 'take fewer, float64 maps, or route="exact"')
    return t


def _refuse_level(bounds: tuple[float, float], least: float, normal: dict[int, np.ndarray], images: int) -> None:
    pixels = sum(pooled.size for pooled in normal.values())
    decade = 10.0 ** math.ceil(round(math.log10(least), 9))
    works = f"bounds such as ({decade:.0e}, {10 * decade:.0e})" if 10 * decade <= 1 else "maps with fewer equal scores"
    mend = (
        f"the shared FPR reaches down to {least:.3g} only, with {images} normal images of {pixels} pixels together; "
        f"take more normal images, or {works}"
    )
    raise InputError("fpr_bounds", bounds, mend)


def _index(fpr: np.ndarray, level: float) -> int:
    """Of the threshold whose Fsh is nearest; the first of several, but for Fsh = 1 the last."""
    if level == 1:
        return int(np.flatnonzero(fpr == 1)[-1])
    return int(np.argmin(np.abs(fpr - level)))


def _integrated(fpr: np.ndarray, bounds: tuple[float, float], force: bool) -> slice:
    """The thresholds between the bounds, both ends included."""
    first, last = _index(fpr, bounds[1]), _index(fpr, bounds[0])
    if first >= last:
        raise InputError(
            "fpr_bounds", bounds, "lie at one and the same threshold; take more thresholds, bounds further apart, or "
            'route="exact"',
        )  # fmt: skip
    points = last - first + 1
    if points < LEAST_POINTS and not force:
        mend = f"only {points} thresholds lie between them, {LEAST_POINTS} are needed; take more thresholds, "
        raise InputError("fpr_bounds", bounds, mend + 'route="exact", or force=True')
    if points < ADVISED_POINTS:
        warnings.warn(f"AUPIMO is integrated over {points} thresholds; {ADVISED_POINTS} are advised", stacklevel=3)
    for level, reached in zip(bounds, (fpr[last], fpr[first])):
        if abs(reached - level) > BOUND_TOLERANCE * level:
            warnings.warn(f"AUPIMO: FPR bound {level:g} was asked for, {reached:.4g} is reached", stacklevel=3)
    return slice(first, last + 1)


def _area(fpr: np.ndarray, tpr: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Trapezoid over ln Fsh between the levels reached, over the nominal width."""
    with np.errstate(divide="ignore"):
        z = np.log(fpr[::-1])
    known = np.isfinite(z)
    if not known.all():
        warnings.warn(f"AUPIMO: {int((~known).sum())} thresholds with a shared FPR of 0 are left out", stacklevel=3)
        if not known.any():
            raise InputError("fpr_bounds", bounds, "the shared FPR is 0 throughout; take thresholds of normal scores")
    area = np.trapezoid(tpr[:, ::-1][:, known], z[known], axis=1) / math.log(bounds[1] / bounds[0])
    return np.clip(area, 0, 1)


def _exact(pixels: _Pixels, bounds: tuple[float, float]) -> AupimoResult:
    """Fsh jumps at each normal score, from its limit above to its value there; between those T_i is joined in ln Fsh.

    This is what the trapezoid tends to for ever more thresholds: T_i is constant over a jump unless masked pixels have
    the very same score, and then goes half and half.
    """
    t, fpr, above = pixels.levels(bounds)
    low, high = bounds
    with np.errstate(divide="ignore"):
        top, bottom = np.log(fpr), np.log(above)
    start, end = np.maximum(bottom, math.log(low)), np.minimum(top, math.log(high))
    width = np.maximum(end - start, 0)
    used = width > 0
    t, fpr, width = t[used], fpr[used], width[used]
    share = ((start + end)[used] / 2 - bottom[used]) / (top - bottom)[used]
    curves = pixels.curves(t, fpr)
    at_least, over = curves.per_image_tpr.numpy(), pixels.recall(t, "right")
    scores = (at_least @ (width * share) + over @ (width * (1 - share))) / math.log(high / low)
    return AupimoResult(torch.from_numpy(np.clip(scores, 0, 1)), curves.classes, bounds, curves)
