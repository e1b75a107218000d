"""Euler with ancestral noise in sigma/alpha, as k-diffusion and most user interfaces run it.

With levels s = sigma/alpha:  s_up = eta sqrt(s'^2 (s^2 - s'^2)/s^2),  s_down = sqrt(s'^2 - s_up^2);
an Euler step to s_down, then noise of size s_noise s_up. With s_noise = 1 this is DDIM with the same eta.

Reference: Song et al. 2021 (score SDE), appendix F; Karras et al. 2022, appendix B.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, spread
from scoreline.samplers.steps import eta_step

__all__ = ["Ancestral"]


@recorded
class Ancestral(Sampler):
    """Ancestral Euler.

    Args:
        eta: share of the posterior's noise, in [0, 1].
        s_noise: factor on the added noise.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    per_image = True
    stochastic = True

    def __init__(
        self,
        *,
        eta: float = 1.0,
        s_noise: float = 1.0,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if not 0 < eta <= 1:
            raise InputError("eta", eta, "must lie in (0, 1]; use ddim for the deterministic case")
        self.eta, self.s_noise = eta, s_noise

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        a, b, std = eta_step(schedule, times[:-1], times[1:], self.eta)
        return Rows(times, a=a, b=b, std=std * self.s_noise)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        assert state.noise is not None
        x = denoiser(state.x, row.t).combine(spread(row.a, state.x), spread(row.b, state.x))
        return state._replace(x=x + state.noise.normal(row.i + 1) * spread(row.std, x))
