"""DDPM: the ancestral chain of denoising diffusion probabilistic models, Ho, Jain & Abbeel 2020 (arXiv 2006.11239).

x_s = c1 E[x_0|x_t] + c2 x_t + std xi on any sub-sequence of levels (the process is respaced, the network still sees
the original times). std^2 is beta~ ("small"), beta ("large"), or learned between the two in the log domain
(Nichol & Dhariwal 2021, eq. 15). No noise is added on the step to the clean end.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule
from scoreline.samplers.steps import posterior_step

__all__ = ["DDPM", "VARIANCES", "learned_log_variance"]

VARIANCES = ("small", "large", "learned")


def learned_log_variance(mix: Tensor, log_large: float, log_small: float) -> Tensor:
    """log variance = frac log beta + (1 - frac) log beta~, frac = (mix + 1)/2.

    Args:
        mix: raw network output, (B, ...), unbounded.
        log_large: log beta.
        log_small: log beta~, with entry 0 replaced by entry 1.
    """
    frac = (mix + 1) / 2
    return frac * log_large + (1 - frac) * log_small


@recorded
class DDPM(Sampler):
    """Ancestral sampling.

    Args:
        variance: "small" (beta~), "large" (beta) or "learned" (the model's own).
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    stochastic = True

    def __init__(
        self,
        *,
        variance: str = "large",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if variance not in VARIANCES:
            raise unknown_name("variance", variance, VARIANCES)
        self.variance = variance

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        t, s = times[:-1], times[1:]
        c1, c2, small, large = posterior_step(schedule, t, s)
        noisy = s > schedule.clean
        # beta~ of the step to the clean end is 0 and its log is replaced by the one before it, as in the released code.
        safe = np.where(noisy, small, np.append(small[:-1], small[-2] if len(small) > 1 else large[-1]))
        safe = np.where(safe > 0, safe, large)
        variance = large if self.variance == "large" else small
        return Rows(
            times,
            a=c2,
            b=c1,
            std=np.sqrt(np.where(noisy, variance, 0.0)),
            log_small=np.log(safe),
            log_large=np.log(large),
            noisy=noisy,
        )

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        post = denoiser(state.x, row.t)
        x = post.combine(row.a, row.b)
        if row.noisy:
            assert state.noise is not None
            noise = state.noise.normal(row.i + 1)
            if self.variance == "learned":
                if post.mix is None:
                    mend = "this model learned no variance; use variance='small' or 'large'"
                    raise InputError("variance", "learned", mend)
                log_variance = learned_log_variance(post.mix, row.log_large, row.log_small)
                x = x.addcmul(noise, (0.5 * log_variance).exp())
            else:
                x = x.add(noise, alpha=row.std)
        return state._replace(x=x)
