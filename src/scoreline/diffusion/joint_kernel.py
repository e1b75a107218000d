"""The exact denoiser of a kernel density of pairs: E[y|y_t, s] without a network, for models that are told an image.

With pairs (y_i, s_i), a Gaussian kernel of width h on y and one of width rho on s,
    w_i ~ exp(-|y_t - alpha y_i|^2/(2 (alpha^2 h^2 + sigma^2)) - |s - s_i|^2/(2 rho^2)),   E = sum_i w_i E[y|y_t, i]
A narrow rho believes the nearest source alone, a wide one forgets the source.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, Time
from scoreline.diffusion.closed_form import Empirical

__all__ = ["JointKernel", "nearest_distance"]


def nearest_distance(points: Tensor) -> float:
    """Median over points of the distance to the nearest other one: a width for a kernel on them.

    Args:
        points: (N, ...), N >= 2.

    >>> nearest_distance(torch.tensor([[0.0], [1.0], [1.5]]))
    0.5
    """
    flat = points.flatten(1).double()
    apart = torch.cdist(flat, flat).fill_diagonal_(torch.inf)
    return float(apart.min(1).values.median())


class JointKernel(Empirical):
    """A kernel density of pairs; `Cond(image=...)` says s, without it this is `Empirical`.

    Args:
        schedule: coordinates.
        data: y_i, (N, *shape).
        source: s_i, (N, ...), any shape.
        smoothing: h >= 0.
        width: rho > 0; None takes the median distance of a source to its nearest neighbour.

    Raises:
        InputError: counts differ, or rho is not positive.
    """

    source: Tensor

    def __init__(
        self, schedule: Schedule, data: Tensor, source: Tensor, *, smoothing: float = 0.15, width: float | None = None
    ) -> None:
        super().__init__(schedule, data, smoothing=smoothing)
        if len(source) != len(data):
            raise InputError("source", len(source), f"needs one for each of the {len(data)} images")
        self.width = nearest_distance(source) if width is None else width
        if not self.width > 0:
            raise InputError("width", self.width, "must be positive; equal sources need one that is given")
        self.register_buffer("source", source.flatten(1))

    def given(self, cond: Cond | None) -> Self:
        if cond is not None:
            cond.require(("image",), type(self).__name__)
        view = super().given(None)
        view._given = cond
        return view

    def log_shares(self, x: Tensor, t: Time, cond: Cond | None = None) -> Tensor:
        shares = super().log_shares(x, t)
        if cond is None or cond.image is None:
            return shares
        told, known = cond.image.flatten(1).to(shares), self.source.to(shares)
        apart = (told * told).sum(1, keepdim=True) - 2 * told @ known.T + (known * known).sum(1)
        return shares - apart / (2 * self.width**2)
