"""A consistency function as a denoiser: f(x, t) = c_skip x + c_out F(c_in x), which is x itself at sigma_min.

    c_skip = sd^2/((s - s_min)^2 + sd^2),   c_out = (s - s_min) sd/sqrt(s^2 + sd^2),   c_in = 1/sqrt(s^2 + sd^2)

f is where the path through x_t ends, not E[x_0|x_t]: one step of DDIM from t_max to the clean end is one-step
generation, and more deterministic steps are no better approximation of anything.

Reference: Song et al. 2023, Consistency Models (arXiv 2303.01469), appendix C.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Pair
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, Time, arithmetic, spread
from scoreline.diffusion.preconditioned import Preconditioned

__all__ = ["ConsistencyFunction", "boundary_scalings"]


def boundary_scalings(sigma: Time, sigma_data: float = 0.5, sigma_min: float = 0.002) -> tuple[Time, Time, Time]:
    """(c_skip, c_out, c_in) with f(x, sigma_min) = x.

    Args:
        sigma: noise level, float, array or tensor.
        sigma_data: standard deviation of the data.
        sigma_min: the level at which f is the identity.

    >>> boundary_scalings(0.002)[:2]
    (1.0, 0.0)
    """
    past, total = sigma - sigma_min, sigma * sigma + sigma_data * sigma_data
    root = arithmetic(sigma).sqrt(total)
    return sigma_data**2 / (past * past + sigma_data**2), past * sigma_data / root, 1 / root


@recorded
class ConsistencyFunction(Preconditioned):
    """A consistency model; its `mean` is f(x, t).

    Args:
        net: network `net(x, t, cond)`, told ln(sigma)/4.
        schedule: EDM's, from sigma_min to sigma_max.
        sigma_data: standard deviation of the data.

    Raises:
        InputError: the schedule scales the data.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, *, sigma_data: float = 0.5) -> None:
        super().__init__(net, schedule, kind="edm", sigma_data=sigma_data)
        if schedule.alpha(schedule.t_max) != 1:
            raise InputError("schedule", type(schedule).__name__, "consistency functions are defined with alpha = 1")

    def _make_coefficients(self, x: Tensor, t: Time) -> tuple[Tensor, Any, Pair, Pair, Any]:
        times, scale, _, _, _ = super()._make_coefficients(x, t)
        sigma = self.schedule.sigma(t)
        c_skip, c_out, _ = boundary_scalings(sigma, self.sigma_data, self.schedule.sigma(self.schedule.t_min))
        skip, out, s = spread(c_skip, x), spread(c_out, x), spread(sigma, x)
        return times, scale, (skip, out), ((1 - skip) / s, -out / s), s

    def target(self, x0: Tensor, x: Tensor, t: Time, noise: Tensor) -> Tensor:
        """A consistency function is not trained by denoising.

        Raises:
            InputError: always.
        """
        raise InputError("target", type(self).__name__, "a consistency function is not trained by denoising")
