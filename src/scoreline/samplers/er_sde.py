"""ER-SDE: first-order steps of extended reverse-time SDEs, whose noise is set by a function phi.

With lambda = sigma/alpha and r = phi(lambda_s)/phi(lambda_t), from t to s:
    x_s = (alpha_s/alpha_t) r x_t + alpha_s (1 - r) E[x_0|x_t] + alpha_s sqrt(lambda_s^2 - lambda_t^2 r^2) xi
phi(l) = l is the probability-flow ODE (DDIM with eta 0), l^2 the reverse SDE (DDIM with eta 1); between them lie the
weaker noises of the paper. phi must vanish at 0 and phi(l)/l must not fall, so that the radicand is not negative.

Reference: Cui et al. 2023 (Elucidating the solution space of extended reverse-time SDE for diffusion models,
arXiv 2309.06169), first-order solver and appendix on noise scale functions, numbered as in its code.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import unknown_name
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, arithmetic, spread
from scoreline.samplers.steps import need_signal, scaled_levels

__all__ = ["NOISE_SCALES", "ERSDE", "er_sde_step", "noise_scale"]

Array = Any

NOISE_SCALES: dict[str, Callable[[Array, Any], Array]] = {
    "ode": lambda x, xp: x * 1.0,
    "sde": lambda x, xp: x * x,
    "er-sde-1": lambda x, xp: x * (xp.exp(-1 / x) + 10),
    "er-sde-2": lambda x, xp: x**1.5,
    "er-sde-3": lambda x, xp: x**2.5,
    "er-sde-4": lambda x, xp: x**0.9 * xp.log10(1 + 100 * x**1.5),
    "er-sde-5": lambda x, xp: x * (xp.exp(x**0.3) + 10),
}


def noise_scale(level: Array, phi: str = "er-sde-5") -> Array:
    """phi(lambda), >= 0.

    ode: l;  sde: l^2;  er-sde-1: l (exp(-1/l) + 10);  er-sde-2: l^1.5;  er-sde-3: l^2.5;
    er-sde-4: l^0.9 log10(1 + 100 l^1.5);  er-sde-5: l (exp(l^0.3) + 10).

    Args:
        level: sigma/alpha >= 0, float, array or tensor.
        phi: a name in `NOISE_SCALES`.

    Raises:
        InputError: an unknown name.

    >>> float(noise_scale(1.0, "sde")), round(float(noise_scale(1.0)), 4)
    (1.0, 12.7183)
    """
    if phi not in NOISE_SCALES:
        raise unknown_name("phi", phi, NOISE_SCALES)
    if isinstance(level, Tensor):
        return NOISE_SCALES[phi](level + 0.0, arithmetic(level))  # a clean end of -0 is 0, of which exp(-1/0) is 0
    with np.errstate(divide="ignore"):
        return NOISE_SCALES[phi](np.asarray(level, dtype=np.float64) + 0.0, np)


def er_sde_step(schedule: Schedule, t: Array, s: Array, phi: str = "er-sde-5") -> tuple[Array, Array, Array]:
    """(a, b, std) of x_s = a x_t + b E[x_0|x_t] + std xi.

    a = (alpha_s/alpha_t) r,   b = alpha_s (1 - r),   std = alpha_s sqrt(lambda_s^2 - lambda_t^2 r^2)

    Args:
        schedule: coordinates; some signal is left at t, unless phi is "ode".
        t, s: times, arrays or tensors of one shape.
        phi: a name in `NOISE_SCALES`.

    Raises:
        InputError: an unknown name.
    """
    xp = arithmetic(t)
    later, alpha = scaled_levels(schedule, s), schedule.alpha(s)
    if phi == "ode":  # no infinity where no signal is left, and no noise made by rounding
        keep = schedule.sigma(t)
        return schedule.sigma(s) / keep, alpha - alpha * later * schedule.alpha(t) / keep, later * 0.0
    now = scaled_levels(schedule, t)
    ratio = noise_scale(later, phi) / noise_scale(now, phi)
    # phi(l)/l does not fall, so that the radicand is not negative; rounding may be.
    rest = xp.clip(later * later - (now * ratio) ** 2, 0, None)
    return alpha / schedule.alpha(t) * ratio, alpha * (1 - ratio), alpha * xp.sqrt(rest)


@recorded
class ERSDE(Sampler):
    """First-order ER-SDE solver.

    Args:
        phi: noise scale function, a name in `NOISE_SCALES`: "ode" adds no noise, "er-sde-5" little, "sde" DDPM's.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: an unknown phi; phi is not "ode" and no signal is left at a time.
    """

    order: int | None = None
    per_image = True
    stochastic = True

    def __init__(
        self,
        *,
        phi: str = "er-sde-5",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        noise_scale(1.0, phi)
        self.phi = phi
        if phi == "ode":
            self.order, self.stochastic, self.rising = 1, False, True

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        if self.stochastic and not isinstance(times, Tensor):  # of tensors the device would be asked
            need_signal(schedule, np.asarray(times), "er-sde")
        a, b, std = er_sde_step(schedule, times[:-1], times[1:], self.phi)
        return Rows(times, a=a, b=b, std=std)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = denoiser(state.x, row.t).combine(spread(row.a, state.x), spread(row.b, state.x))
        if self.stochastic:
            assert state.noise is not None
            x = x + state.noise.normal(row.i + 1) * spread(row.std, x)
        return state._replace(x=x)
