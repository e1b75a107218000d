"""The contract of a flow map: a model that jumps along the probability-flow ODE in one evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.schedule import Time

__all__ = ["FlowMap"]


class FlowMap(Denoiser):
    """A model of G(x, t, s): where the path of the probability-flow ODE through (x, t) stands at the level s <= t.

    Attributes:
        end: the cleanest level it jumps to; jumps from there are the identity.
        anywhere: whether s may be any level from `end` to t; otherwise it is `end` alone (a consistency function).
        scored: whether calling it as a denoiser gives E[x_0|x_t], so that solvers and guidance may use it.
    """

    end: float
    anywhere: bool = False
    scored: bool = False

    def jump(self, x: Tensor, t: Time, s: Time, cond: Cond | None = None) -> Tensor:
        """G(x, t, s), (B, *shape).

        Args:
            x: x_t, (B, *shape).
            t: the level of x, a float or (B,).
            s: the level wanted, a float or (B,); whatever lies below `end`, the clean end too, means `end`.
            cond: conditions of the batch; None uses those bound by `given`.
        """
        raise NotImplementedError

    def prior(self, t: float) -> float:
        """Standard deviation of the noise with which a run from the level t starts."""
        return float(self.schedule.prior(t))

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        """Refused, unless the map knows the score.

        Raises:
            InputError: always.
        """
        raise InputError("model", type(self).__name__, "says where paths end, not E[x_0|x_t]; sample it with jumps")

    def levels(self, steps: int) -> Any:
        """The levels at which a run of so many jumps starts them, (steps,) float64, the noisiest first."""
        return np.asarray(lookup("grid", self.schedule.grid)(self.schedule, steps + 1))[:steps]
