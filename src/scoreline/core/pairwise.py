"""Pairwise squared distances in float64, block by block, in bounded memory (neighbours: see `neighbours`).

Two ways of computing |a - b|^2: "direct" differences, whose result for a pair does not depend on the blocks around it
(so that "is this point inside the ball?" has the same answer wherever it is asked), and "gram", |a|^2 + |b|^2 - 2 a.b
of centred data, several times faster in many dimensions but only good to about 1e-16 (|a|^2 + |b|^2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from scoreline.core.errors import unknown_name
from scoreline.core.moments import check_features

__all__ = ["squared_distances", "distance_blocks"]

Way = Literal["auto", "direct", "gram"]

# Above this many multiplications differences take minutes on a CPU core; Gram products then take seconds.
_DIRECT_LIMIT = 2e10
_BLOCK_BYTES = 2**26


def _prepare(a: Tensor, b: Tensor, way: Way) -> tuple[Tensor, Tensor, bool]:
    check_features(a, "points")
    check_features(b, "points", dim=a.shape[1])
    if way not in ("auto", "direct", "gram"):
        raise unknown_name("distance", way, ["auto", "direct", "gram"])
    direct = way == "direct" or (way == "auto" and float(len(a)) * len(b) * a.shape[1] <= _DIRECT_LIMIT)
    x, y = a.to(torch.float64), b.to(torch.float64)
    if not direct:  # a common shift leaves distances alone and takes the large, useless part out of |a|^2
        centre = x.mean(dim=0)
        x, y = x - centre, y - centre
    return x, y, direct


def _block(x: Tensor, y: Tensor, direct: bool) -> Tensor:
    if direct:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
    norms = x.square().sum(1)[:, None] + y.square().sum(1)
    return torch.addmm(norms, x, y.T, alpha=-2).clamp_(min=0)


def squared_distances(a: Tensor, b: Tensor, *, way: Way = "auto") -> Tensor:
    """All |a_i - b_j|^2 at once, as a (N, M) float64 matrix.

    Args:
        a: (N, D). b: (M, D).
        way: "direct", "gram", or "auto" (direct up to N M D = 2e10).

    Raises:
        InputError: shapes that do not fit, values that are not finite.
    """
    return _block(*_prepare(a, b, way))


def distance_blocks(
    a: Tensor, b: Tensor, *, way: Way = "auto", block_bytes: int = _BLOCK_BYTES
) -> Iterator[tuple[slice, Tensor]]:
    """The same matrix in blocks of rows: yields (rows, |a_rows - b|^2), each block at most `block_bytes` large.

    Raises:
        InputError: shapes that do not fit, values that are not finite.
    """
    x, y, direct = _prepare(a, b, way)
    height = max(1, block_bytes // (8 * len(y)))
    for start in range(0, len(x), height):
        rows = slice(start, min(start + height, len(x)))
        yield rows, _block(x[rows], y, direct)
