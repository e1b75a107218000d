"""Kernel inception distance: squared maximum mean discrepancy with a cubic kernel (Binkowski et al. 2018, 1801.01401).

k(x, y) = (gamma x.y + coef0)^degree,  gamma = 1/d,  coef0 = 1,  degree = 3

The unbiased estimate may be negative. Papers print it times 1, 100 or 1000; nothing is multiplied here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.moments import check_features
from scoreline.metrics.intervals import Spread

__all__ = ["kernel_distance", "polynomial_mmd"]

Estimator = Literal["unbiased", "biased", "u-statistic"]
ESTIMATORS = ("unbiased", "biased", "u-statistic")
MODES = ("torch-fidelity", "clean-fid")

_BLOCK_BYTES = 2**26


def _kernel_sums(x: Tensor, y: Tensor, degree: int, gamma: float, coef0: float) -> tuple[Tensor, Tensor]:
    """Sum of all k(x_i, y_j), and of the pairs i = j (as many as there are)."""
    total = trace = torch.zeros((), dtype=torch.float64, device=x.device)
    rows = max(1, _BLOCK_BYTES // (8 * len(y)))  # so that whole sets need no matrix of all pairs
    for start in range(0, len(x), rows):
        kernel = (x[start : start + rows] @ y.T).mul_(gamma).add_(coef0).pow_(degree)
        total = total + kernel.sum()
        trace = trace + kernel[:, start:].diagonal().sum()
    return total, trace


def polynomial_mmd(
    real: Tensor,
    generated: Tensor,
    *,
    estimator: Estimator = "unbiased",
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
) -> float:
    """MMD^2 of two whole sets with the polynomial kernel.

    unbiased: sum_{i!=j} k(x_i, x_j) / (n(n-1)) + sum_{i!=j} k(y_i, y_j) / (m(m-1)) - 2 sum_ij k(x_i, y_j) / (nm)
    biased: the means of the three full kernel matrices. u-statistic: unbiased without the pairs i = j of the last
    sum too (n = m only).

    Args:
        real: (N, d). generated: (M, d). At least two rows each.
        estimator: "unbiased", "biased" or "u-statistic".
        degree, gamma, coef0: of the kernel; gamma None is 1/d.

    Returns:
        The estimate, in float64; negative values are legal for the unbiased ones.

    Raises:
        InputError: shapes that do not fit, values that are not finite, an unknown estimator.

    Reference: Gretton et al. 2012; Binkowski et al. 2018, 1801.01401.
    """
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    check_features(real, "real", least=2)
    check_features(generated, "generated", dim=real.shape[1], least=2)
    if estimator == "u-statistic" and len(real) != len(generated):
        raise InputError("counts", (len(real), len(generated)), "the u-statistic needs as many real as generated rows")
    x, y = real.to(torch.float64), generated.to(torch.float64)
    g = 1 / x.shape[1] if gamma is None else gamma
    (xx, xx_diag), (yy, yy_diag), (xy, xy_diag) = (
        _kernel_sums(a, b, degree, g, coef0) for a, b in ((x, x), (y, y), (x, y))
    )
    n, m = len(x), len(y)
    if estimator == "biased":
        return float(xx / n**2 + yy / m**2 - 2 * xy / (n * m))
    within = (xx - xx_diag) / (n * (n - 1)) + (yy - yy_diag) / (m * (m - 1))
    if estimator == "u-statistic":
        return float(within - 2 * (xy - xy_diag) / (n * (n - 1)))
    return float(within - 2 * xy / (n * m))


def kernel_distance(
    real: Tensor,
    generated: Tensor,
    *,
    mode: Literal["torch-fidelity", "clean-fid"] = "torch-fidelity",
    subsets: int = 100,
    subset_size: int = 1000,
    estimator: Estimator = "unbiased",
    degree: int = 3,
    gamma: float | None = None,
    coef0: float = 1.0,
    seed: int = 2020,
) -> Spread:
    """KID: MMD^2 averaged over random subsets, each drawn without replacement.

    Args:
        real: (N, d). generated: (M, d).
        mode: "torch-fidelity" refuses sets smaller than `subset_size`; "clean-fid" takes min(subset_size, N, M). Both
            draw the generated rows first, from NumPy's RandomState(seed), so that equal features in the same order
            give the peers' own subsets (clean-fid: where its global state was seeded so).
        subsets, subset_size: 100 of 1000 in all published codes.
        estimator, degree, gamma, coef0: as for :func:`polynomial_mmd`.
        seed: of the subsets.

    Returns:
        Mean and standard deviation over the subsets (the latter is NOT the standard error of the former), and all
        values.

    Raises:
        InputError: sets smaller than a subset, shapes that do not fit, values that are not finite.

    Reference: Binkowski et al. 2018, 1801.01401.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    check_features(real, "real", least=2)
    check_features(generated, "generated", dim=real.shape[1], least=2)
    fewest = min(len(real), len(generated))
    if mode == "clean-fid":
        subset_size = min(subset_size, fewest)
    if not 2 <= subset_size <= fewest:
        raise InputError("subset_size", subset_size, f"at most {fewest}, the smaller set; or mode='clean-fid'")
    if subsets < 1:
        raise InputError("subsets", subsets, "at least one subset is needed")
    rng = np.random.RandomState(seed)  # the peers' generator, so that the subsets are theirs
    values = []
    for _ in range(subsets):
        y, x = (
            s[torch.from_numpy(rng.choice(len(s), subset_size, replace=False)).to(s.device)] for s in (generated, real)
        )
        values.append(polynomial_mmd(x, y, estimator=estimator, degree=degree, gamma=gamma, coef0=coef0))
    return Spread.of(values)
