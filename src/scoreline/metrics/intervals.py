"""Intervals: of a mean, of a paired difference between two arms over seeds, and of a Frechet distance.

Bootstrap: Efron & Tibshirani 1993. A Frechet distance cannot be bootstrapped naively: resampling with replacement
leaves about 63 % of the images distinct, and the distance, biased by c/n, rises. Both ways offered here keep the value
measured at the full count and take only the spread from the resampling.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.moments import Moments, check_features
from scoreline.core.score import Interval
from scoreline.metrics.frechet import Method, frechet_distance

__all__ = ["Spread", "frechet_interval", "mean_interval", "paired_difference"]


class Spread(NamedTuple):
    """Mean and standard deviation (ddof 0) of a metric over splits or subsets, with the values themselves."""

    mean: float
    std: float
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float] | Tensor) -> Spread:
        v = torch.as_tensor(values, dtype=torch.float64)
        return cls(float(v.mean()), float(v.std(correction=0)), tuple(v.tolist()))


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
    _check_level(level)
    if method == "t":
        from scipy.stats import t

        half = float(t.ppf((1 + level) / 2, len(v) - 1)) * float(v.std()) / math.sqrt(len(v))
        return Interval(float(v.mean()) - half, float(v.mean()) + half, level, f"student-t over {len(v)} values")
    if method != "bootstrap":
        raise unknown_name("interval method", method, ["bootstrap", "t"])
    generator = torch.Generator().manual_seed(seed)
    # blocks bound the memory: 10,000 resamples of 50,000 values would be 4 GB of indices
    block = max(1, 4_000_000 // len(v))
    means = torch.cat(
        [
            v[torch.randint(len(v), (min(block, resamples - start), len(v)), generator=generator)].mean(dim=1)
            for start in range(0, resamples, block)
        ]
    )
    low, high = torch.quantile(means, torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)).tolist()
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


def frechet_interval(
    real: Tensor | Moments,
    generated: Tensor,
    *,
    level: float = 0.95,
    method: Literal["jackknife", "bootstrap"] = "jackknife",
    groups: int = 20,
    resamples: int = 200,
    seed: int = 0,
    root: Method = "symmetric",
) -> tuple[float, Interval]:
    """Frechet distance with an interval for what the draw of images does to it.

    "jackknife": delete-a-group over seeded random groups, se^2 = (g-1)/g sum_j (FD_(j) - mean FD_(.))^2, value +- z se;
    `groups` evaluations. "bootstrap": images drawn with replacement, value + (quantiles of FD* - mean FD*);
    `resamples` evaluations. Where `real` is moments, or was measured in full, only the generated images vary: the
    interval then says how far another draw of as many images would move the value, not where the FD of infinitely many
    images lies (the bias c/n stays; see FID_infinity).

    Args:
        real: (N, d) features, whose draw then counts too, or fixed moments.
        generated: (M, d) features.
        level: nominal coverage.
        groups: of the jackknife.
        resamples: of the bootstrap.
        seed: of groups or resamples.
        root: the Frechet method.

    Returns:
        (value, interval).

    Raises:
        InputError: too few images for the groups, or what :func:`frechet_distance` refuses.

    Reference: Efron & Tibshirani 1993, chapters 11 and 13.
    """
    _check_level(level)
    if method not in ("jackknife", "bootstrap"):
        raise unknown_name("interval method", method, ["jackknife", "bootstrap"])
    value = frechet_distance(real, generated, method=root)
    check_features(generated, "generated")
    sets: list[Tensor | Moments] = [real, generated]
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said once already, for the whole sets
        if method == "bootstrap":
            draws = [frechet_distance(*(_resampled(s, generator) for s in sets), method=root) for _ in range(resamples)]
            spread = torch.tensor(draws, dtype=torch.float64)
            ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
            low, high = (value + torch.quantile(spread, ends) - spread.mean()).tolist()
            how = f"centred bootstrap over images, {resamples} resamples, seed {seed}"
            return value, Interval(low, high, level, how)
        smallest = min(len(s) for s in sets if isinstance(s, Tensor))
        if groups < 2 or smallest < 3 * groups:
            raise InputError("groups", groups, f"between 2 and {smallest // 3} for {smallest} images")
        variance = 0.0
        # the two sets are drawn independently, so their variances add
        for side, features in enumerate(sets):
            if isinstance(features, Moments):
                continue
            order = torch.randperm(len(features), generator=generator).to(features.device)
            left_out = []
            for group in order.tensor_split(groups):
                keep = torch.ones(len(features), dtype=torch.bool, device=features.device)
                keep[group] = False
                pair = [*sets]
                pair[side] = features[keep]
                left_out.append(frechet_distance(pair[0], pair[1], method=root))
            spread = torch.tensor(left_out, dtype=torch.float64)
            variance += (groups - 1) / groups * float((spread - spread.mean()).square().sum())
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(variance)
    return value, Interval(value - half, value + half, level, f"jackknife over images, {groups} groups, seed {seed}")


def _resampled(source: Tensor | Moments, generator: torch.Generator) -> Tensor | Moments:
    if isinstance(source, Moments):
        return source
    return source[torch.randint(len(source), (len(source),), generator=generator).to(source.device)]


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise InputError("level", level, "a level lies between 0 and 1, for instance 0.95")
