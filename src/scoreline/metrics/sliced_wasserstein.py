"""Sliced Wasserstein distance: the mean over directions of the one-dimensional Wasserstein-1 distance.

    SW_1(P, Q) = mean_k int |F_k^-1(q) - G_k^-1(q)| dq,   F_k, G_k the laws of the projections on direction k
For as many samples of both the integral is the mean absolute difference of the sorted projections.

Reference: Rabin et al. 2012; Bonneel et al. 2015.
"""

from __future__ import annotations

from torch import Tensor

from scoreline.core.errors import InputError

__all__ = ["sliced_wasserstein"]


def sliced_wasserstein(real: Tensor, generated: Tensor, directions: Tensor) -> float:
    """Mean over directions of the Wasserstein-1 distance of the projections.

    Args:
        real, generated: (N, ...), as many of both; what follows the first dimension is flattened.
        directions: (K, D), of any length > 0.

    Raises:
        InputError: the counts or sizes differ.

    >>> import torch
    >>> sliced_wasserstein(torch.zeros(4, 1), torch.full((4, 1), 3.0), torch.ones(2, 1))
    3.0
    """
    a, b = real.flatten(1).double(), generated.flatten(1).double()
    if a.shape != b.shape:
        raise InputError("generated", tuple(b.shape), f"give as many as of the real ones, {tuple(a.shape)}")
    if directions.shape[1] != a.shape[1]:
        raise InputError("directions", tuple(directions.shape), f"need {a.shape[1]} entries each")
    along = (directions / directions.norm(dim=1, keepdim=True)).T.double()
    return float(((a @ along).sort(0).values - (b @ along).sort(0).values).abs().mean())
