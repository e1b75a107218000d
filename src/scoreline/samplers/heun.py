"""EDM's Heun sampler with optional churn, Karras et al. 2022 (arXiv 2206.00364), algorithms 1 and 2.

With levels s = sigma/alpha and y = x/alpha the ODE is dy/ds = eps, on any schedule:
    gamma = min(S_churn/N, sqrt(2) - 1) if S_min <= s <= S_max else 0;   s^ = (1 + gamma) s
    y^ = y + sqrt(s^^2 - s^2) S_noise xi
    y' = y^ + (s' - s^) eps(y^, s^);     unless s' = 0:  y' = y^ + (s' - s^) (eps(y^, s^) + eps(y', s'))/2
N levels cost 2N - 1 evaluations when the last step goes to the clean end.

On a flow schedule s = t/(1-t) has no end, and the mean of the slopes over a step from s = 1e5 to s = 7 is no answer:
its error grows as s does. There the ODE is solved in the flow's own time, dx/dt = v = eps - E[x_0|x_t], which is smooth
up to pure noise:
    x' = x^ + (t' - t^) v(x^, t^);       unless t' = 0:  x' = x^ + (t' - t^) (v(x^, t^) + v(x', t'))/2
The first line is the same step in both coordinates, the second is not. Churn raises s in both.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser, affine
from scoreline.core.errors import InputError
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, spread
from scoreline.diffusion.schedules import Flow
from scoreline.samplers.steps import need_signal, scaled_levels

__all__ = ["Heun"]


@recorded
class Heun(Sampler):
    """Second-order Heun in sigma/alpha; on a flow schedule, in its time.

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
        if not s_churn >= 0:
            raise InputError("s_churn", s_churn, "must be 0 or more")
        if not s_min <= s_max:
            raise InputError("s_min, s_max", (s_min, s_max), "need s_min <= s_max")
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise
        self.rising = not s_churn
        if s_churn:
            self.order, self.stochastic = None, True

    def cost(self, steps: int) -> int:
        return 2 * steps - 1

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        straight = isinstance(schedule, Flow)
        if not straight or self.s_churn:
            need_signal(schedule, times, "Heun with churn" if self.s_churn else "Heun")
        xp: Any = torch if isinstance(times, Tensor) else np
        t, s = times[:-1], times[1:]
        up, lift, churn = t, t * 0.0 + 1.0, t * 0.0
        if self.s_churn:
            level = scaled_levels(schedule, t)
            gamma = level * 0.0 + min(self.s_churn / len(t), math.sqrt(2) - 1)
            gamma = gamma * ((level >= self.s_min) & (level <= self.s_max))
            # The raised level passes through the model's rounding, as in the released code.
            raised = schedule.snap(schedule.time(-xp.log(level * (1 + gamma))))
            up = xp.where(gamma > 0, xp.maximum(raised, t), t)
            churn = xp.sqrt(xp.clip(scaled_levels(schedule, up) ** 2 - level**2, 0, None)) * self.s_noise
            lift = schedule.alpha(up) / schedule.alpha(t)
            churn = schedule.alpha(up) * churn
        if straight:
            a, h = t * 0.0 + 1.0, s - up
        else:
            as_ = schedule.alpha(s)
            a, h = as_ / schedule.alpha(up), as_ * (scaled_levels(schedule, s) - scaled_levels(schedule, up))
        noisy = s > schedule.clean
        return Rows(
            times,
            up=up,
            lift=lift,
            churn=churn,
            a=a,
            h=h,
            # The slope is eps + mean E[x_0|x_t]: eps in sigma/alpha, the velocity on a flow.
            mean=[-1.0 if straight else 0.0] * len(t),
            # An image that goes to the clean end takes the Euler step; beside it others may take the second stage.
            half=0.5 * h * noisy,
            at=xp.where(noisy, s, up),
            second=noisy if noisy.ndim == 1 else noisy.any(1).tolist(),
        )

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        if self.stochastic:
            assert state.noise is not None
            # One draw is consumed every step, churned or not, so that settings do not shift the stream.
            x = affine(spread(row.lift, x), x, spread(row.churn, x), state.noise.normal(row.i + 1))
        slope = denoiser(x, row.up).combine(0.0, row.mean, 1.0)
        ahead = affine(spread(row.a, x), x, spread(row.h, x), slope)
        if row.second:
            half = spread(row.half, x)
            ahead = ahead + denoiser(ahead, row.at).combine(0.0, row.mean * half, half) - slope * half
        return state._replace(x=ahead)
