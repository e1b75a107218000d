"""EDM's Heun sampler with optional churn, Karras et al. 2022 (arXiv 2206.00364), algorithms 1 and 2.

With levels s = sigma/alpha and y = x/alpha the ODE is dy/ds = eps, on any schedule:
    gamma = min(S_churn/N, sqrt(2) - 1) if S_min <= s <= S_max else 0;   s^ = (1 + gamma) s
    y^ = y + sqrt(s^^2 - s^2) S_noise xi
    y' = y^ + (s' - s^) eps(y^, s^);     unless s' = 0:  y' = y^ + (s' - s^) (eps(y^, s^) + eps(y', s'))/2
N levels cost 2N - 1 evaluations when the last step goes to the clean end.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser, affine
from scoreline.core.errors import InputError
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, spread
from scoreline.samplers.steps import need_signal, scaled_levels

__all__ = ["Heun"]


@recorded
class Heun(Sampler):
    """Second-order Heun in sigma/alpha.

    Args:
        s_churn: total amount of noise put back over the run; 0 is deterministic.
        s_min, s_max: levels (sigma/alpha) between which noise is put back.
        s_noise: factor on that noise.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    order: int | None = 2
    per_image = True
    min_steps = 2

    def __init__(
        self,
        *,
        s_churn: float = 0.0,
        s_min: float = 0.0,
        s_max: float = math.inf,
        s_noise: float = 1.0,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if s_churn < 0:
            raise InputError("s_churn", s_churn, "must not be negative")
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise
        self.rising = not s_churn
        if s_churn:
            self.order, self.stochastic = None, True

    def cost(self, steps: int) -> int:
        return 2 * steps - 1

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        need_signal(schedule, times, "Heun")
        t, s = times[:-1], times[1:]
        level = scaled_levels(schedule, t)
        gamma = min(self.s_churn / len(t), math.sqrt(2) - 1) * ((level >= self.s_min) & (level <= self.s_max))
        if self.s_churn:
            # The raised level passes through the model's rounding, as in the released code.
            up = schedule.snap(schedule.time(-np.log(np.asarray(level * (1 + gamma)))))
            up = np.where(gamma > 0, np.maximum(up, t), t)
        else:
            up = t
        raised = scaled_levels(schedule, up)
        churn = np.sqrt(np.maximum(raised**2 - level**2, 0.0)) if self.s_churn else level * 0.0
        at, au, as_ = schedule.alpha(t), schedule.alpha(up), schedule.alpha(s)
        h = as_ * (scaled_levels(schedule, s) - raised)
        return Rows(
            times,
            up=up,
            lift=au / at,
            churn=au * churn * self.s_noise,
            a=as_ / au,
            h=h,
            # With per-image times all images reach the clean end together, on the last step.
            second=[bool(np.all(np.asarray(v) > schedule.clean)) for v in s],
        )

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        if self.stochastic:
            assert state.noise is not None
            # One draw is consumed every step, churned or not, so that settings do not shift the stream.
            noise = state.noise.normal(row.i + 1)
            if row.churn:
                x = affine(row.lift, x, row.churn, noise)
        a, h = spread(row.a, x), spread(row.h, x)
        eps = denoiser(x, row.up).eps
        ahead = affine(a, x, h, eps)
        if row.second:
            half = denoiser(ahead, row.s).combine(0.0, 0.0, h / 2)
            ahead = ahead.add_(half).sub_(eps * (h / 2))
        return state._replace(x=ahead)
