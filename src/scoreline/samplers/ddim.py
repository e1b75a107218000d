"""DDIM: denoising diffusion implicit models, Song, Meng & Ermon 2021 (arXiv 2010.02502).

x_s = alpha_s E[x_0|x_t] + sqrt(sigma_s^2 - std^2) eps + std xi,
std = eta sigma_s sqrt(1 - (alpha_t sigma_s / alpha_s sigma_t)^2)
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

__all__ = ["DDIM"]


@recorded
class DDIM(Sampler):
    """First-order exponential integrator of the probability-flow ODE (eta = 0), or its stochastic family.

    Args:
        eta: share of the posterior's noise; 0 is deterministic, 1 is DDPM with the small variance.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: eta leaves [0, 1].
    """

    order: int | None = 1
    per_image = True
    rising = True

    def __init__(
        self, *, eta: float = 0.0, steps: int | None = None, nfe: int | None = None, grid: str | None = None
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if not 0 <= eta <= 1:
            raise InputError("eta", eta, "must lie in [0, 1]")
        self.eta = eta
        if eta:
            self.order, self.stochastic, self.rising = None, True, False

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        a, b, std = eta_step(schedule, times[:-1], times[1:], self.eta)
        return Rows(times, a=a, b=b, std=std)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        post = denoiser(state.x, row.t)
        x = post.combine(spread(row.a, state.x), spread(row.b, state.x))
        if self.stochastic:
            assert state.noise is not None
            x = x + state.noise.normal(row.i + 1) * spread(row.std, x)
        return state._replace(x=x)
