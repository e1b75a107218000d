"""FID_infinity: the Frechet distance extrapolated to infinitely many images (Chong & Forsyth 2020, 1911.07023).

FD of M images is FD_inf + c/M to first order. Only the generated side's bias goes: against a FINITE reference the part
that the reference's own count adds stays, so that FID_infinity of two halves of one data set is not 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.moments import Moments, check_features
from scoreline.core.score import Interval
from scoreline.metrics.frechet import Method, frechet_distance

__all__ = ["FIDInfinity", "fid_infinity"]

_ROWS = 4096


@dataclass(frozen=True)
class FIDInfinity:
    """The fitted line FD = value + slope / size.

    Args:
        value: its intercept, FID_infinity.
        stderr: standard error of the intercept from the residuals. The subsets overlap, so that it is too small as
            an error over new draws of images; it tells how straight the line is.
        interval: value +- t stderr.
        slope: c in FD = FD_inf + c/M.
        sizes: how many generated images each point used.
        distances: the Frechet distance of each point.
    """

    value: float
    stderr: float
    interval: Interval
    slope: float
    sizes: tuple[int, ...]
    distances: tuple[float, ...]


def _subset(features: Tensor, rows: Tensor) -> Tensor | Moments:
    """Some rows; where they outnumber the dimensions their moments, so that no large part is ever copied."""
    if len(rows) <= features.shape[1]:
        return features[rows]
    moments = Moments(features.shape[1], features.device)
    for part in rows.split(_ROWS):
        moments.update(features[part])
    return moments


def fid_infinity(
    real: Tensor | Moments,
    generated: Tensor,
    *,
    points: int = 15,
    smallest: int | None = None,
    seed: int = 0,
    level: float = 0.95,
    method: Method = "symmetric",
) -> FIDInfinity:
    """Least-squares line of FD against 1/size over random subsets of the generated features, at 1/size = 0.

    Args:
        real: (N, d) reference features or their moments; always used in full.
        generated: (M, d) features.
        points: how many sizes, linspace(smallest, M, points).
        smallest: the first size; None: min(5000, max(M / 10, 2)), which is the paper's 5000 from M = 50,000 on.
        seed: of the subsets, each drawn without replacement.
        level: nominal coverage of the interval.
        method: the Frechet route.

    Returns:
        The line, with FID_infinity as its `value`.

    Raises:
        InputError: fewer than three points, or sizes that do not differ.

    Reference: Chong & Forsyth 2020, 1911.07023.
    """
    from scipy.stats import t

    check_features(generated, "generated", least=2)
    count = len(generated)
    first = min(5000, max(count // 10, 2)) if smallest is None else smallest
    if points < 3:
        raise InputError("points", points, "a line with an error needs at least 3 points")
    if not 2 <= first < count:
        raise InputError("smallest", first, f"the first size lies from 2 to {count - 1} for {count} generated images")
    if not isinstance(real, Moments):
        check_features(real, "real", least=2)
        if len(real) > real.shape[1]:  # once, instead of once a point
            real = Moments(real.shape[1], real.device).update(real)
    sizes = torch.linspace(first, count, points, dtype=torch.float64).long()
    generator = torch.Generator().manual_seed(seed)
    distances = []
    for n in sizes.tolist():
        rows = torch.randperm(count, generator=generator)[:n].sort().values.to(generated.device)
        distances.append(frechet_distance(real, _subset(generated, rows), method=method))
    x, y = 1 / sizes.double(), torch.tensor(distances, dtype=torch.float64)
    spread = (x - x.mean()).square().sum()
    slope = ((x - x.mean()) * (y - y.mean())).sum() / spread
    intercept = y.mean() - slope * x.mean()
    variance = (y - intercept - slope * x).square().sum() / (points - 2)
    stderr = float((variance * (1 / points + x.mean().square() / spread)).sqrt())
    half = float(t.ppf((1 + level) / 2, points - 2)) * stderr
    value = float(intercept)
    interval = Interval(value - half, value + half, level, f"least squares over {points} subset sizes, seed {seed}")
    return FIDInfinity(value, stderr, interval, float(slope), tuple(sizes.tolist()), tuple(distances))
