"""How far another draw of images would move a Frechet distance, from moments of all images and a sample of rows.

The infinitesimal jackknife (Jaeckel 1972; Efron & Tibshirani 1993, chapter 21), here linearised bootstrap: one image y
of M generated ones moves FD to first order by 1/M times its influence

    IF(y) = 2 (mu_g - mu_r).y + |y|^2 - z^T (K^T K)^{1/2} z - (the mean of that),   y less mu_g,

with S = L L^T for both sides, K = L_r^T L_g and z the coordinates of y, y = L_g z. This is y^T T y with the optimal map
T of N(0, S_g) onto N(0, S_r), but needs no inverse and so holds for fewer images than dimensions too, where the map
does not exist. Real images likewise. It costs one to three eigendecompositions whatever N is, where a bootstrap of the
distance itself would cost hundreds; the influences are then resampled with a seed. Only a sample of rows (4096) is
needed, whose spread stands for that of all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.core.score import Interval

__all__ = ["Gaussian", "Influence", "influence_functions", "resampled_interval", "resampled_means"]

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and covariance (d, d) of features, float64; all rows (n, d) too where they are fewer than d."""

    mean: Tensor
    cov: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class Influence:
    """Functions from rows (n, d) of either side to their influences (n,), not centred."""

    real: Callable[[Tensor], Tensor]
    generated: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Factor:
    """L (d, r) with S = L L^T: triangular where S has full rank, else with orthogonal columns that span its range."""

    lower: Tensor
    triangular: bool

    @classmethod
    def of(cls, side: Gaussian) -> _Factor:
        if side.rows is not None:  # fewer rows than dimensions: the eigenvectors of their small Gram matrix suffice
            centred = (side.rows.detach().to(side.mean.device, torch.float64) - side.mean) / math.sqrt(
                len(side.rows) - 1
            )
            w, u = torch.linalg.eigh(centred @ centred.T)
            return cls(centred.T @ u[:, w > len(w) * _EPS * w[-1].clamp(min=0)], False)
        lower, info = torch.linalg.cholesky_ex(side.cov)
        pivots = lower.diagonal().square()
        if info == 0 and pivots.min() > len(pivots) * _EPS * side.cov.diagonal().max():
            return cls(lower, True)
        w, q = torch.linalg.eigh(side.cov)
        keep = w > len(w) * _EPS * w[-1].clamp(min=0)
        return cls(q[:, keep] * w[keep].sqrt(), False)

    def into(self, directions: Tensor) -> Tensor:
        """(n, d) D^T L^+ of directions D (r, n)."""
        if self.triangular:
            return torch.linalg.solve_triangular(self.lower.T, directions, upper=True).T
        return directions.T @ (self.lower / self.lower.square().sum(0)).T


def influence_functions(real: Gaussian, generated: Gaussian) -> Influence:
    """The influence of single images on the Frechet distance of two sets, to first order.

    Args:
        real, generated: moments of all images of each side, of any rank.

    Returns:
        Functions of rows; leaving one of N images out moves the distance by about -(IF - mean IF) / N.

    Reference: Efron & Tibshirani 1993, chapter 21.
    """
    factor_r, factor_g = _Factor.of(real), _Factor.of(generated)
    k = factor_r.lower.T @ factor_g.lower
    w, v = torch.linalg.eigh(k.T @ k)
    s = w.clamp(min=0).sqrt()
    # the root of round-off is 1e-8 of the largest: below, the directions mean nothing
    keep = s > 1e-7 * s.max() if len(s) else s > 0
    v, s = v[:, keep], s[keep]
    shift = generated.mean - real.mean
    to_g, to_r = factor_g.into(v), factor_r.into(k @ (v / s))  # (rank, d)

    def influence(mean: Tensor, towards: Tensor, to_root: Tensor) -> Callable[[Tensor], Tensor]:
        def of(rows: Tensor) -> Tensor:
            found = []
            for chunk in rows.split(4096):
                y = chunk.detach().to(mean.device, torch.float64) - mean
                found.append(2 * y @ towards + y.square().sum(1) - ((y @ to_root.T).square() * s).sum(1))
            return torch.cat(found)

        return of

    return Influence(influence(real.mean, -shift, to_r), influence(generated.mean, shift, to_g))


def resampled_means(values: Tensor, count: int, resamples: int, seed: int) -> Tensor:
    """Deviations of the mean of `count` values under resampling, (resamples,), from a sample (n,) of them.

    The sample is resampled with replacement; a sample of n < count values overstates the spread by sqrt(count / n),
    which is taken back.
    """
    centred = values - values.mean()
    generator = torch.Generator().manual_seed(seed)
    block = max(1, 2_000_000 // len(values))
    means = [
        centred[torch.randint(len(values), (min(block, resamples - start), len(values)), generator=generator)].mean(1)
        for start in range(0, resamples, block)
    ]
    return torch.cat(means) * math.sqrt(len(values) / count)


def resampled_interval(value: float, draws: Tensor, level: float, seed: int) -> Interval:
    """Percentiles of the resampled deviations, around the value that all images gave."""
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = (value + torch.quantile(draws - draws.mean(), ends)).tolist()
    how = f"linearised bootstrap over images, {len(draws)} resamples, seed {seed}"
    return Interval(low, high, level, how)
