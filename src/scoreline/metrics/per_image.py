"""Statistics on per-image scores: boxplots tied to images, and paired tests between models on the same images.

Wilcoxon's signed-rank test and the paired t-test, with the conventions of Bertoldo et al. 2024 (arXiv 2401.01984).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name

__all__ = ["Alternative", "Comparison", "ImageStatistic", "boxplot_statistics", "compare_models"]

Alternative = Literal["greater", "less", "two-sided"]
ALTERNATIVES = ("greater", "less", "two-sided")
TESTS = ("wilcoxon", "t")


class ImageStatistic(NamedTuple):
    """A statistic and the image that stands for it.

    Attributes:
        name: "mean", "median", "q1", "q3", "whisker-low", "whisker-high" or "outlier".
        value: of the statistic.
        image: index of the image, among all scores that were given.
        score: of that image.
    """

    name: str
    value: float
    image: int
    score: float


class Comparison(NamedTuple):
    """Pairwise tests of models.

    Attributes:
        models: names, the best first, or in the order asked for.
        merit: what they are ordered by: mean rank (1 is best) for Wilcoxon's test, mean score for the t-test.
        confidence: (M, M) 1 - p of "row is better than column" (alternative "greater"); NaN on the diagonal.
        images: how many images were compared.
        test: "wilcoxon" or "t".
        alternative: as asked for.
    """

    models: tuple[str, ...]
    merit: tuple[float, ...]
    confidence: Tensor
    images: int
    test: str
    alternative: str


def boxplot_statistics(
    scores: Tensor | Sequence[float], *, outliers: bool = False, tolerance: float = 1e-2
) -> list[ImageStatistic]:
    """Mean, median, quartiles and whiskers of per-image scores, each tied to the image with the nearest score.

    Quartiles interpolate linearly; whiskers are the furthest scores within 1.5 (q3 - q1) of the box. Statistics are
    taken from the lowest to the highest; where an image stands for one already, the nearest free image within
    `tolerance` of the value takes its place, and where there is none, the image stands for both.

    Args:
        scores: (N,) one score an image, NaN for images without one.
        outliers: also list the scores beyond the whiskers.
        tolerance: absolute.

    Returns:
        The statistics, rising.

    Raises:
        InputError: no score at all, or infinite ones.

    >>> [(s.name, s.image) for s in boxplot_statistics([float("nan"), 0.0, 0.5, 1.0])][:3]
    [('whisker-low', 1), ('q1', 1), ('median', 2)]
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1:
        raise InputError("scores", values.shape, "one score an image")
    images = np.flatnonzero(~np.isnan(values))
    known = values[images]
    if known.size == 0 or not np.isfinite(known).all():
        raise InputError("scores", values[:5].tolist(), "need at least one score, and only finite ones")
    q1, median, q3 = np.quantile(known, [0.25, 0.5, 0.75])
    reach = 1.5 * (q3 - q1)
    # Between two scores, a quartile can lie outside all scores within reach; the whisker then stays at the box.
    low = min(known[known >= q1 - reach].min(), q1)
    high = max(known[known <= q3 + reach].max(), q3)
    wanted = [("whisker-low", low), ("q1", q1), ("median", median), ("mean", known.mean())]
    wanted += [("q3", q3), ("whisker-high", high)]
    if outliers:
        wanted += [("outlier", value) for value in np.sort(known) if not low <= value <= high]
    taken: set[int] = set()
    found = []
    for name, value in sorted(wanted, key=lambda pair: pair[1]):
        distance = np.abs(known - value)
        # A median between two images is as near to the one as to the other: the lower score then, not the rounding.
        order = np.lexsort((known, distance.round(12)))
        free = [i for i in order if int(i) not in taken and (distance[i] <= tolerance or i == order[0])]
        chosen = int(free[0] if free else order[0])
        taken.add(chosen)
        found.append(ImageStatistic(name, float(value), int(images[chosen]), float(known[chosen])))
    return found


def compare_models(
    scores: Mapping[str, Tensor | Sequence[float]],
    *,
    test: Literal["wilcoxon", "t"] = "wilcoxon",
    alternative: Alternative = "greater",
    order: Sequence[str] | None = None,
    tolerance: float = 1e-3,
) -> Comparison:
    """Is one model better than another on the same images? Every ordered pair of models is tested.

    "wilcoxon": signed-rank test of d = a - b, where |d| <= tolerance counts as 0; p = 1 where all d are 0. Models are
    ordered by their mean rank over images (ties averaged, without the tolerance). "t": paired t-test, models ordered by
    their mean score. Confidence is 1 - p; nothing corrects for the number of pairs.

    Args:
        scores: model -> (N,) one score an image, higher = better; NaN at the same images for all models.
        test: "wilcoxon" or "t".
        alternative: "greater" (row above column), "less" or "two-sided".
        order: all models' names, in the order wanted; None orders them from the best to the worst.
        tolerance: of Wilcoxon's test, absolute.

    Raises:
        InputError: fewer than two models or images, scores missing at different images, unknown names.
    """
    if test not in TESTS:
        raise unknown_name("test", test, TESTS)
    if alternative not in ALTERNATIVES:
        raise unknown_name("alternative", alternative, ALTERNATIVES)
    if len(scores) < 2:
        raise InputError("models", list(scores), "a comparison needs at least two")
    table = _table(scores)
    merit = dict(zip(scores, _mean_ranks(table) if test == "wilcoxon" else table.mean(axis=1)))
    if order is None:
        names = tuple(sorted(scores, key=lambda name: merit[name] if test == "wilcoxon" else -merit[name]))
    elif sorted(order) == sorted(scores):
        names = tuple(order)
    else:
        raise InputError("order", list(order), f"name every model once: {', '.join(scores)}")
    rows = dict(zip(scores, table))
    confidence = torch.full((len(names), len(names)), math.nan, dtype=torch.float64)
    for i, first in enumerate(names):
        for j, second in enumerate(names):
            if i != j:
                difference = rows[first] - rows[second]
                p = (
                    _wilcoxon(np.where(np.abs(difference) <= tolerance, 0.0, difference), alternative)
                    if test == "wilcoxon"
                    else _paired_t(difference, alternative)
                )
                confidence[i, j] = 1 - p
    return Comparison(names, tuple(float(merit[n]) for n in names), confidence, table.shape[1], test, alternative)


def _table(scores: Mapping[str, Tensor | Sequence[float]]) -> np.ndarray:
    """(models, images that have a score)."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in scores.items()}
    first, reference = next(iter(arrays.items()))
    for name, values in arrays.items():
        if values.ndim != 1 or values.shape != reference.shape:
            shapes = f"has shape {values.shape}, {first} {reference.shape}; both need one score an image"
            raise InputError("scores of", name, shapes)
        if not np.array_equal(np.isnan(values), np.isnan(reference)):
            raise InputError("scores of", name, f"are NaN at other images than those of {first}; compare the same ones")
        if np.isinf(values).any():
            raise InputError("scores of", name, "are infinite")
    table = np.stack([values[~np.isnan(reference)] for values in arrays.values()])
    if table.shape[1] < 2:
        raise InputError("images", table.shape[1], "a paired test needs at least two images with scores")
    return table


def _mean_ranks(table: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    return rankdata(-table, method="average", axis=0).mean(axis=1)


def _wilcoxon(difference: np.ndarray, alternative: str) -> float:
    from scipy.stats import wilcoxon

    return 1.0 if not difference.any() else float(wilcoxon(difference, alternative=alternative).pvalue)


def _paired_t(difference: np.ndarray, alternative: str) -> float:
    from scipy.stats import t

    error = difference.std(ddof=1) / math.sqrt(difference.size)
    if error == 0:
        # The same difference in every image: certain where there is one, and nothing to test where there is none.
        sign = float(np.sign(difference[0]))
        return 0.0 if {"greater": sign > 0, "less": sign < 0, "two-sided": sign != 0}[alternative] else 1.0
    statistic, freedom = difference.mean() / error, difference.size - 1
    if alternative == "two-sided":
        return float(2 * t.sf(abs(statistic), freedom))
    return float(t.sf(statistic if alternative == "greater" else -statistic, freedom))
