"""The stochastic sampler of guided distillation: a DDIM step of double length, then noise for half of the way back.

On levels t_0 > t_1 > ... > t_N, from t = t_i with s = t_{i+1}, k = t_{i+2}:
    z_k = alpha_k x + sigma_k eps                                     DDIM, double length
    z_s = (alpha_s/alpha_k) z_k + sigma_{s|k} e,   sigma_{s|k}^2 = (1 - exp(lambda_s - lambda_k)) sigma_s^2
and from the last level one single step to the clean end. The model is evaluated N times; for N = 1 it is DDIM. Here
lambda is log(alpha^2/sigma^2), so that sigma_{s|k}^2 = sigma_s^2 - (alpha_s/alpha_k)^2 sigma_k^2. A student must know
steps of double length from every level, see :func:`scoreline.fewstep.halving.double_times`.

Reference: Meng et al. 2023 (arXiv 2210.03142), section 3.3 and algorithm 4; Karras et al. 2022, for noise put back.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, spread
from scoreline.samplers.steps import eta_step

__all__ = ["DoubleStep"]


@recorded
class DoubleStep(Sampler):
    """DDIM steps of double length, each followed by noise for half of its way; the last step is single.

    Args:
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`; students of halving take "time-to-clean".
    """

    order: int | None = None
    per_image = True
    stochastic = True

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        t, s = times[:-1], times[1:]
        far = torch.cat([times[2:], times[-1:]]) if isinstance(times, Tensor) else np.append(times[2:], times[-1])
        a, b, _ = eta_step(schedule, t, far, 0.0)
        ratio, std = schedule.transition(far, s)  # at the last level far = s, and nothing is put back
        return Rows(times, k=far, a=ratio * a, b=ratio * b, std=std)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = denoiser(state.x, row.t).combine(spread(row.a, state.x), spread(row.b, state.x))
        assert state.noise is not None
        return state._replace(x=x + state.noise.normal(row.i + 1) * spread(row.std, x))
