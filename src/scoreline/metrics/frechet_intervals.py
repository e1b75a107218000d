"""Intervals of a Frechet distance, and of the difference between two generators, affordable at d = 2048.

Give every image a weight: the Frechet distance is a smooth function of them. With delta = mu_r - mu_g, factors
S_r = L_r L_r^T and S_g = L_g L_g^T (of any rank), K = L_r^T L_g, and an image y = mu_g + L_g z of the generated set,

    IF_g(y) = -2 delta.(y - mu_g) + |y - mu_g|^2 - z^T (K^T K)^{1/2} z - (the mean of that)

is M times its first-order effect, by tr (S_r S_g)^{1/2} = |K|_*; a real image has +2 delta and (K K^T)^{1/2}. At full
rank the quadratic form is that of I - T with the map T that carries N(0, S_g) onto N(0, S_r). The infinitesimal
jackknife, var FD = mean IF_r^2 / N + mean IF_g^2 / M, costs one eigh and one product of the features with a d x d
matrix, instead of hundreds of distances. Two generators are compared by the difference of the influences, row by row,
in which what they share cancels.

Jaeckel 1972; Efron & Tibshirani 1993; the map T: Olkin & Pukelsheim 1982.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from statistics import NormalDist
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.moments import Moments, check_features
from scoreline.core.score import Interval
from scoreline.metrics.frechet import Method, frechet_distance
from scoreline.metrics.frechet_influence import Gaussian, influence_functions
from scoreline.metrics.intervals import (
    PairedDifference,
    check_level,
    check_pair,
    check_resamples,
    normal_p,
    paired,
    replicates,
    spread_interval,
)

__all__ = ["FrechetInfluence", "frechet_influence", "frechet_interval", "paired_frechet_difference"]

Way = Literal["auto", "linear", "jackknife", "bootstrap"]
WAYS = ("auto", "linear", "jackknife", "bootstrap")


class FrechetInfluence(NamedTuple):
    """First-order influence of every image on a Frechet distance; each side's mean is 0.

    Attributes:
        real: (N,) float64, or None where the real side is fixed moments.
        generated: (M,) float64.
    """

    real: Tensor | None
    generated: Tensor


def frechet_influence(real: Tensor | Moments, generated: Tensor) -> FrechetInfluence:
    """How much every single image moves the Frechet distance, to first order: the formulas above.

    Leaving image j out changes FD by about -IF(j) / M. Large values name the images that make a distance large.

    Args:
        real: (N, d) features, or fixed moments.
        generated: (M, d) features. With few rows more than d, or fewer, leaving one out is no small step, and the
            first order says less.

    Returns:
        The influences of both sides, in units of the distance.

    Raises:
        InputError: shapes that do not fit, values that are not finite, fewer than two rows.

    Reference: Efron & Tibshirani 1993, chapter 21; Olkin & Pukelsheim 1982.
    """
    check_features(generated, "generated", least=2)
    d = generated.shape[1]
    g = Moments(d, generated.device).update(generated)
    if isinstance(real, Moments):
        r = real
    else:
        check_features(real, "real", dim=d, least=2)
        r = Moments(d, real.device).update(real)
    if r.dim != d:
        raise InputError("generated", f"d = {d}", f"real features have d = {r.dim}")
    few_r = real if isinstance(real, Tensor) and len(real) <= d else None
    few_g = generated if len(generated) <= d else None
    of = influence_functions(
        Gaussian(r.mean, r.cov(), few_r), Gaussian(g.mean.to(r.mean.device), g.cov().to(r.mean.device), few_g)
    )
    influence_g = of.generated(generated)
    influence_r = None if isinstance(real, Moments) else of.real(real)
    return FrechetInfluence(
        None if influence_r is None else influence_r - influence_r.mean(), influence_g - influence_g.mean()
    )


def frechet_interval(
    real: Tensor | Moments,
    generated: Tensor,
    *,
    level: float = 0.95,
    method: Way = "auto",
    groups: int = 20,
    resamples: int = 200,
    seed: int = 0,
    root: Method = "symmetric",
) -> tuple[float, Interval]:
    """Frechet distance with an interval for what the draw of images does to it.

    Where `real` is moments only the generated images vary. The interval says how far another draw of as many images
    would move the value, not where the FD of infinitely many images lies (the bias c/n stays; see FID_infinity).

    Args:
        real: (N, d) features, whose draw then counts too, or fixed moments.
        generated: (M, d) features.
        level: nominal coverage in (0, 1).
        method: how the spread is found.
            "linear": value +- z se, se^2 = mean IF_r^2 / N + mean IF_g^2 / M of :func:`frechet_influence`; one
            evaluation, no randomness; good where both sides have clearly more than d images.
            "jackknife": delete-a-group over seeded random groups, se^2 = (g-1)/g sum_j (FD_(j) - mean FD_(.))^2, each
            side's share added; up to 2 `groups` evaluations, each from the groups' own moments, without the images.
            "bootstrap": images drawn with replacement, value + (quantiles of FD* - mean FD*); `resamples` evaluations.
            "auto": "linear" where both sides have more than 2 d images, else "jackknife".
        groups: of the jackknife.
        resamples: of the bootstrap.
        seed: of groups or resamples.
        root: the Frechet method.

    Returns:
        (value, interval).

    Raises:
        InputError: too few images for the method, or what :func:`frechet_distance` refuses.

    Reference: Efron & Tibshirani 1993, chapters 11, 13 and 21.
    """
    check_level(level)
    if method not in WAYS:
        raise unknown_name("interval method", method, WAYS)
    value = frechet_distance(real, generated, method=root)
    check_features(generated, "generated")
    sides = [(generated,)] if isinstance(real, Moments) else [(real,), (generated,)]
    how = _chosen(method, real, generated)
    if how == "linear":
        influence = frechet_influence(real, generated)
        error = math.sqrt(sum(_variance(i) for i in influence if i is not None))
        return value, _normal(value, error, level, "first-order influence of every image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said once already, for the whole sets
        if how == "bootstrap":
            check_resamples(resamples)

            def distance(*sets: Tensor) -> tuple[float]:
                return (frechet_distance(real if len(sets) == 1 else sets[0], sets[-1], method=root),)

            draws = replicates(distance, sides, "bootstrap", resamples, seed)[:, 0]
            words = f"centred bootstrap over images, {resamples} resamples, seed {seed}"
            return value, spread_interval(value, draws, level, "bootstrap", words)

        def of(*sets: Tensor | Moments) -> float:
            return frechet_distance(sets[0], sets[1], method=root)

        error = _jackknife(of, [(real,), (generated,)], groups, seed)
    return value, _normal(value, error, level, f"jackknife over images, {groups} groups, seed {seed}")


def paired_frechet_difference(
    real: Tensor | Moments,
    a: Tensor,
    b: Tensor,
    *,
    level: float = 0.95,
    method: Way = "auto",
    groups: int = 20,
    resamples: int = 200,
    seed: int = 0,
    root: Method = "symmetric",
) -> PairedDifference:
    """FD(real, a) - FD(real, b) of two generators, with interval and p-value: a test instead of two bare numbers.

    Real images are drawn jointly for both, and image i of a together with image i of b, so that what they share (the
    reference; the noise, where image i of both was made from seed i) cancels. Unpaired generators may be given too:
    the order of rows then carries nothing, and the test is only less sharp.

    Args:
        real: (N, d) features, whose draw then counts too, or fixed moments.
        a, b: (M, d) features.
        level: nominal coverage in (0, 1).
        method: as for :func:`frechet_interval`, of the difference; "linear" takes the influences' differences
            IF(a_i) - IF(b_i) and, for real images, IF^a(x) - IF^b(x). p is normal, or for "bootstrap" the share of
            centred differences that are at least as large.
        groups, resamples, seed, root: as there.

    Returns:
        The difference, its interval, its two-sided p-value, and both distances.

    Raises:
        InputError: a and b of different shape, or what :func:`frechet_interval` refuses.

    Reference: Efron & Tibshirani 1993, chapters 11, 16 and 21.
    """
    check_level(level)
    if method not in WAYS:
        raise unknown_name("interval method", method, WAYS)
    check_pair(a, b)
    values = frechet_distance(real, a, method=root), frechet_distance(real, b, method=root)
    how = _chosen(method, real, a)
    difference = values[0] - values[1]
    if how == "linear":
        of_a, of_b = frechet_influence(real, a), frechet_influence(real, b)
        variance = _variance(of_a.generated - of_b.generated)
        if of_a.real is not None and of_b.real is not None:
            variance += _variance(of_a.real - of_b.real)
        error, words = math.sqrt(variance), "paired first-order influence of every image"
        interval = _normal(difference, error, level, words)
        return PairedDifference(difference, interval, normal_p(difference, error), *values)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # said once already, for the whole sets

        def of(*sets: Tensor | Moments) -> float:
            r, x, y = sets if len(sets) == 3 else (real, *sets)
            return frechet_distance(r, x, method=root) - frechet_distance(r, y, method=root)

        if how == "bootstrap":
            check_resamples(resamples)
            sides: list[tuple[Tensor, ...]] = [(a, b)] if isinstance(real, Moments) else [(real,), (a, b)]
            draws = replicates(lambda *sets: (of(*sets),), sides, "bootstrap", resamples, seed)[:, 0]
            words = f"paired centred bootstrap over images, {resamples} resamples, seed {seed}"
            return paired(*values, draws, level, "bootstrap", words)
        error = _jackknife(of, [(real,), (a, b)], groups, seed)
    interval = _normal(difference, error, level, f"paired jackknife over images, {groups} groups, seed {seed}")
    return PairedDifference(difference, interval, normal_p(difference, error), *values)


def _chosen(method: str, real: Tensor | Moments, generated: Tensor) -> str:
    if method != "auto":
        return method
    count = real.count if isinstance(real, Moments) else len(real)
    return "linear" if min(count, len(generated)) > 2 * generated.shape[1] else "jackknife"


def _variance(influence: Tensor) -> float:
    """Of the mean over as many independent images."""
    return float(influence.square().sum()) / (len(influence) * (len(influence) - 1))


def _normal(value: float, error: float, level: float, how: str) -> Interval:
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(value - half, value + half, level, how)


def _jackknife(
    statistic: Callable[..., float], sides: list[tuple[Tensor | Moments, ...]], groups: int, seed: int
) -> float:
    """Standard error by leaving out one group of one side at a time; the sides' variances add, since they are drawn
    independently. The sets of a side lose the same rows. Fixed moments have no rows to lose.
    """
    smallest = min(len(s) for side in sides for s in side if isinstance(s, Tensor))
    if groups < 2 or smallest < 3 * groups:
        raise InputError("groups", groups, f"between 2 and {smallest // 3} for {smallest} images")
    generator = torch.Generator().manual_seed(seed)
    # Sets with more rows than columns enter by their moments: what one group leaves is a subtraction.
    full = [tuple(_moments(s) for s in side) for side in sides]
    variance = 0.0
    for position, side in enumerate(sides):
        rows = [s for s in side if isinstance(s, Tensor)]
        if not rows:
            continue
        left_out = []
        for group in torch.randperm(len(rows[0]), generator=generator).tensor_split(groups):
            sets = list(full)
            sets[position] = tuple(_without(s, m, group) for s, m in zip(rows, full[position]))
            left_out.append(statistic(*(s for part in sets for s in part)))
        spread = torch.tensor(left_out, dtype=torch.float64)
        variance += (groups - 1) / groups * float((spread - spread.mean()).square().sum())
    return math.sqrt(variance)


def _moments(source: Tensor | Moments) -> Tensor | Moments:
    if isinstance(source, Moments) or len(source) <= source.shape[1]:
        return source
    return Moments(source.shape[1], source.device).update(source)


def _without(rows: Tensor, whole: Tensor | Moments, group: Tensor) -> Tensor | Moments:
    """The set without some of its rows, from its moments where there are any and enough rows stay."""
    group = group.to(rows.device)
    if isinstance(whole, Tensor) or len(rows) - len(group) <= rows.shape[1]:
        keep = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        keep[group] = False
        return rows[keep]
    part = Moments(whole.dim, rows.device).update(rows[group])
    count = whole.count - part.count
    mean = (whole.count * whole.mean - part.count * part.mean) / count
    delta = part.mean - mean
    scatter = whole.scatter - part.scatter - torch.outer(delta, delta) * (count * part.count / whole.count)
    return Moments.from_tensors({"count": torch.tensor(count), "mean": mean, "scatter": scatter})
