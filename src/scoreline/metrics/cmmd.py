"""CLIP maximum mean discrepancy (Jayasumana et al. 2024, 2401.09603): Gaussian-kernel MMD^2 of unit embeddings.

k(x, y) = exp(-|x - y|^2 / (2 sigma^2)),  sigma = 10
CMMD = 1000 (mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j))     (biased: a V-statistic, never < 0)

Comparable only on image embeddings of CLIP ViT-L/14@336, centre crop and bicubic resize to 336. At sigma = 10 every
kernel value lies within 2 % of 1, so that 1 is taken out before the sums: the three means of k - 1 give the same MMD^2,
and float64 then keeps all its digits where float32 sums of k would keep three.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.moments import check_features
from scoreline.core.pairwise import distance_blocks

__all__ = ["cmmd"]

_PARTS = 8


def cmmd(
    real: Tensor, generated: Tensor, *, sigma: float = 10.0, scale: float = 1000.0, normalise: bool = True
) -> float:
    """CMMD of two sets of CLIP image embeddings.

    CMMD = scale (mean k(x, x') + mean k(y, y') - 2 mean k(x, y)),  k(x, y) = exp(-|x - y|^2 / (2 sigma^2))

    Args:
        real: (N, d) embeddings. generated: (M, d). One row each at least.
        sigma: width of the kernel, in units of the embeddings.
        scale: what the MMD^2 is multiplied with; print it with the value.
        normalise: divide every row by its length first, as the definition asks.

    Returns:
        The biased estimate, >= 0 up to rounding (about 1e-13 of `scale`), whatever the counts.

    Raises:
        InputError: shapes that do not fit, values that are not finite, a row of zeros, a sigma that is not positive.

    Reference: Jayasumana et al. 2024, 2401.09603.

    >>> x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    >>> round(cmmd(x, y), 6)  # 1000 (2 - 2 exp(-2 / 200))
    19.900333
    """
    check_features(real, "real")
    check_features(generated, "generated", dim=real.shape[1])
    if not (0 < sigma < float("inf")):
        raise InputError("sigma", sigma, "the kernel's width is a positive number")
    x, y = real.to(torch.float64), generated.to(torch.float64)
    if normalise:
        x, y = _unit(x, "real"), _unit(y, "generated")
    within = _within(x, sigma) / len(x) ** 2 + _within(y, sigma) / len(y) ** 2
    return scale * (within - 2 * _between(x, y, sigma) / (len(x) * len(y)))


def _between(x: Tensor, y: Tensor, sigma: float) -> float:
    """Sum of k(x_i, y_j) - 1 over all pairs."""
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for _, squared in distance_blocks(x, y, way="gram"):
        total += squared.mul_(-0.5 / sigma**2).expm1_().sum()
    return float(total)


def _within(x: Tensor, sigma: float) -> float:
    """Sum of k(x_i, x_j) - 1 over all pairs, i = j included; most pairs are computed once, not twice."""
    total, cuts = 0.0, [len(x) * i // _PARTS for i in range(_PARTS + 1)]
    for start, stop in itertools.pairwise(cuts):
        if start < stop:
            total += _between(x[start:stop], x[start:stop], sigma)
            if stop < len(x):
                total += 2 * _between(x[start:stop], x[stop:], sigma)
    return total


def _unit(rows: Tensor, name: str) -> Tensor:
    length = rows.norm(dim=1, keepdim=True)
    if not bool((length > 0).all()):
        raise InputError(name, "a row of zeros", "an embedding of length 0 has no direction; look at the network")
    return rows / length
