"""Intervals: of a mean, of any metric over sets of images, and of the difference between two arms or two generators.

Bootstrap: Efron & Tibshirani 1993. Drawing images WITH replacement leaves about 63 % of them distinct, and metrics
that compare images with each other notice: Frechet distances rise, radii of nearest neighbours shrink to 0, unbiased
kernel estimates are no longer unbiased. Halves drawn WITHOUT replacement hold no duplicates, and the spread of a mean
over random halves is exactly that of the mean over draws of the whole: var = s^2/m (1 - m/n) = s^2/n at m = n/2 (the
delete-d jackknife of Shao & Wu 1989 with d = n/2). Halves are therefore the default here. All ways keep the value
measured at the full count and take only the spread from the resampling.

The Frechet distance has quicker ways of its own in `frechet_intervals`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.moments import check_features
from scoreline.core.score import Interval

__all__ = [
    "PairedDifference",
    "Spread",
    "mean_interval",
    "metric_interval",
    "metric_intervals",
    "normal_p",
    "paired_difference",
    "paired_metric_difference",
    "replicates",
    "spread_interval",
]

Resampling = Literal["halves", "bootstrap"]
RESAMPLINGS = ("halves", "bootstrap")


class Spread(NamedTuple):
    """Mean and standard deviation (ddof 0) of a metric over splits or subsets, with the values themselves."""

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float] | Tensor) -> Spread:
        v = torch.as_tensor(values, dtype=torch.float64)
        return cls(float(v.mean()), float(v.std(correction=0)), tuple(v.tolist()))


class PairedDifference(NamedTuple):
    """The difference of a metric between two generators.

    Attributes:
        value: metric of a minus metric of b.
        interval: for that difference.
        p_value: two-sided, of "no difference".
        a, b: the two metrics.
    """

    value: float
    interval: Interval
    p_value: float
    a: float
    b: float


# --- means -------------------------------------------------------------------------------------------------------


def mean_interval(
    values: Sequence[float] | Tensor,
    *,
    level: float = 0.95,
    method: Literal["bootstrap", "t"] = "bootstrap",
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """An interval for the mean of independent values.

    "bootstrap": percentiles of the means of `resamples` seeded resamples; "t": mean +- t s / sqrt n, which is the
    better one for a handful of seeds, where the bootstrap is too narrow.

    Args:
        values: (n,), n >= 2.
        level: nominal coverage in (0, 1).
        resamples: bootstrap repeats.
        seed: of the resampling.

    Raises:
        InputError: fewer than two values, values that are not finite, a level outside (0, 1), an unknown method.
    """
    v = torch.as_tensor(values, dtype=torch.float64).flatten().cpu()
    if len(v) < 2 or not torch.isfinite(v).all():
        raise InputError("values", v.tolist()[:5], "an interval needs at least two finite values")
    check_level(level)
    if method == "t":
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, len(v) - 1)) * float(v.std()) / math.sqrt(len(v))
        return Interval(float(v.mean()) - half, float(v.mean()) + half, level, f"student-t over {len(v)} values")
    if method != "bootstrap":
        raise unknown_name("interval method", method, ["bootstrap", "t"])
    check_resamples(resamples)
    generator = torch.Generator().manual_seed(seed)
    # blocks bound the memory: 10,000 resamples of 50,000 values would be 4 GB of indices
    block = max(1, 4_000_000 // len(v))
    means = torch.cat(
        [
            v[torch.randint(len(v), (min(block, resamples - start), len(v)), generator=generator)].mean(dim=1)
            for start in range(0, resamples, block)
        ]
    )
    low, high = torch.quantile(means, _ends(level)).tolist()
    return Interval(low, high, level, f"bootstrap of the mean, {resamples} resamples, seed {seed}")


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    level: float = 0.95,
    method: Literal["bootstrap", "t"] = "t",
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Mean of a_s - b_s over seeds s that both arms share, with its interval.

    Pairing removes what the seed does to both, often most of the spread.

    Args:
        a, b: one value a seed, in the same order of seeds.
        level, method, resamples, seed: as for :func:`mean_interval`.

    Returns:
        (mean difference, interval).

    Raises:
        InputError: different lengths, or fewer than two seeds.
    """
    if len(a) != len(b):
        raise InputError("seeds", (len(a), len(b)), "both arms need a value for each seed, in the same order")
    difference = torch.as_tensor(a, dtype=torch.float64) - torch.as_tensor(b, dtype=torch.float64)
    return float(difference.mean()) if len(a) else math.nan, mean_interval(
        difference, level=level, method=method, resamples=resamples, seed=seed
    )


# --- any metric --------------------------------------------------------------------------------------------------


def metric_interval(
    metric: Callable[..., float],
    *sets: Tensor,
    level: float = 0.95,
    method: Resampling = "halves",
    resamples: int = 50,
    seed: int = 0,
) -> tuple[float, Interval]:
    """Any metric of sets of images, with an interval for what the draw of the images does to it.

    "halves": value +- z sd(metric of halves drawn without replacement); "bootstrap": value + (quantiles of the metric
    of resamples drawn with replacement - their mean), for metrics that duplicates do not disturb (means over images).
    The metric's bias at this count stays in the value.

    Args:
        metric: called with one tensor a set, for instance `cmmd`, or `lambda logits: inception_score(logits).mean`.
        sets: rows are images; drawn independently of each other. A set that is to stay fixed belongs into `metric`.
        level: nominal coverage in (0, 1).
        resamples: evaluations of the metric besides the first; with 50, sd is good to 10 %.
        seed: of the draws.

    Returns:
        (value, interval).

    Raises:
        InputError: fewer than four rows in a set, an unknown method, and what the metric refuses.

    Reference: Shao & Wu 1989, Annals of Statistics 17; Efron & Tibshirani 1993.
    """
    found = metric_intervals(
        lambda *s: (metric(*s),), *sets, level=level, method=method, resamples=resamples, seed=seed
    )
    return found[0]


def metric_intervals(
    metric: Callable[..., Sequence[float]],
    *sets: Tensor,
    level: float = 0.95,
    method: Resampling = "halves",
    resamples: int = 50,
    seed: int = 0,
) -> list[tuple[float, Interval]]:
    """:func:`metric_interval` for a metric of several numbers, such as `prdc`, at the price of one.

    Args:
        metric: returns a sequence of numbers.
        sets, level, method, resamples, seed: as there.

    Returns:
        (value, interval) of each number.

    Raises:
        InputError: as there.
    """
    _check(sets, level, method, resamples)
    values = [float(v) for v in metric(*sets)]
    draws = replicates(metric, [(s,) for s in sets], method, resamples, seed)
    how = f"{_HOW[method]}, {resamples} resamples, seed {seed}"
    return [(v, spread_interval(v, column, level, method, how)) for v, column in zip(values, draws.T)]


def paired_metric_difference(
    metric: Callable[[Tensor, Tensor], float],
    real: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    level: float = 0.95,
    method: Resampling = "halves",
    resamples: int = 50,
    seed: int = 0,
) -> PairedDifference:
    """metric(real, a) - metric(real, b) of two generators, with interval and p-value.

    Both see the same draws: the same real rows, and the same indices of a and b, so that what they share (the real
    set; the noise, where image i of both was made from seed i) cancels.

    Args:
        metric: (real, generated) -> number.
        real: (N, d) features.
        a, b: (M, d) features, row i of both from the same noise, prompt or label.
        level, method, resamples, seed: as for :func:`metric_interval`.

    Returns:
        The difference, its interval, its two-sided p-value ("halves": normal; "bootstrap": share of centred
        differences at least as large), and the two values.

    Raises:
        InputError: a and b of different shape, and what :func:`metric_interval` refuses.
    """
    _check((real, a, b), level, method, resamples)
    check_pair(a, b)
    value_a, value_b = metric(real, a), metric(real, b)
    draws = replicates(lambda r, x, y: (metric(r, x) - metric(r, y),), [(real,), (a, b)], method, resamples, seed)
    how = f"paired {_HOW[method]}, {resamples} resamples, seed {seed}"
    return paired(value_a, value_b, draws[:, 0], level, method, how)


# --- shared with the Frechet distance's own intervals ------------------------------------------------------------

_HOW = {"halves": "spread over halves of the images", "bootstrap": "centred bootstrap over images"}


def replicates(
    metric: Callable[..., Sequence[float]],
    sides: Sequence[tuple[Tensor, ...]],
    method: Resampling,
    resamples: int,
    seed: int,
) -> Tensor:
    """(resamples, K) values of a metric of K numbers; the sets of one side are drawn with the same indices."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(resamples):
        drawn = []
        for side in sides:
            n = len(side[0])
            if method == "halves":
                index = torch.randperm(n, generator=generator)[: n // 2]
            else:
                index = torch.randint(n, (n,), generator=generator)
            drawn += [s[index.to(s.device)] for s in side]
        rows.append([float(v) for v in metric(*drawn)])
    return torch.tensor(rows, dtype=torch.float64)


def spread_interval(value: float, draws: Tensor, level: float, method: str, how: str) -> Interval:
    """The interval around `value`: centred percentiles of a bootstrap, else normal with the spread of the draws."""
    if method == "bootstrap":
        low, high = (value + torch.quantile(draws, _ends(level)) - draws.mean()).tolist()
    else:
        half = NormalDist().inv_cdf((1 + level) / 2) * float(draws.std())
        low, high = value - half, value + half
    return Interval(low, high, level, how)


def paired(a: float, b: float, draws: Tensor, level: float, method: str, how: str) -> PairedDifference:
    """The paired difference from resampled differences."""
    if method == "bootstrap":
        beyond = int(((draws - draws.mean()).abs() >= abs(a - b)).sum())
        p = (1 + beyond) / (1 + len(draws))
    else:
        p = normal_p(a - b, float(draws.std()))
    return PairedDifference(a - b, spread_interval(a - b, draws, level, method, how), p, a, b)


def normal_p(value: float, error: float) -> float:
    """Two-sided p-value of a normal estimate; 1 for an exact 0."""
    if value == 0:
        return 1.0
    return math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else 0.0


def check_pair(a: Tensor, b: Tensor) -> None:
    """Refuse generated sets that cannot be paired row by row."""
    if a.shape != b.shape:
        shapes = tuple(a.shape), tuple(b.shape)
        raise InputError("generated sets", shapes, "row i of both is one pair: as many rows and columns are needed")


def check_level(level: float) -> None:
    """Refuse a coverage outside (0, 1)."""
    if not 0 < level < 1:
        raise InputError("level", level, "a level lies between 0 and 1, for instance 0.95")


def check_resamples(resamples: int) -> None:
    """Refuse what gives no spread."""
    if resamples < 2:
        raise InputError("resamples", resamples, "a spread needs at least 2")


def _check(sets: Sequence[Tensor], level: float, method: str, resamples: int) -> None:
    check_level(level)
    check_resamples(resamples)
    if method not in RESAMPLINGS:
        raise unknown_name("interval method", method, RESAMPLINGS)
    if not sets:
        raise InputError("sets", None, "give at least one set of images")
    for s in sets:
        check_features(s, "set", least=4)


def _ends(level: float) -> Tensor:
    return torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
