"""The SDEs of score-based generative modelling, and their probability-flow ODE, on any schedule.

forward   dx = f x dt + g dw                   reverse   dx = (f x - g^2 score) dt + g dw
ODE       dx = (f x - g^2 score/2) dt          (the same marginals, no noise)
with f and g^2 from :meth:`scoreline.core.schedule.Schedule.drift`; VE, VP and sub-VP are schedules like all others.

In the angle phi = atan2(sigma, alpha) and with u = x/r, r = sqrt(alpha^2 + sigma^2), the ODE of every schedule is
    du/dphi = cos(phi) eps - sin(phi) E[x_0|x_t]
which is finite from the clean end (phi = 0) to pure noise (phi = pi/2), so that one tolerance means the same on all.

Reference: Song et al. 2021 (arXiv 2011.13456), sections 3 and 4.3, appendices B and D; Salimans & Ho 2022 (the angle).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, Time, arithmetic, spread
from scoreline.diffusion.schedules import VE, VP, SubVP

__all__ = ["angle", "bound_inside", "discretised", "flow_slope", "radius", "released_table", "reverse_drift", "time_at"]


def angle(schedule: Schedule, t: Time) -> Time:
    """phi(t) = atan2(sigma, alpha), 0 at the clean end, pi/2 where nothing is left of the image."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if isinstance(sigma, Tensor):
        return torch.atan2(sigma, torch.as_tensor(alpha, dtype=sigma.dtype, device=sigma.device))
    value = np.arctan2(sigma, alpha)
    return value if isinstance(t, np.ndarray) else float(value)


def radius(schedule: Schedule, t: Time) -> Time:
    """r(t) = sqrt(alpha^2 + sigma^2): 1 on variance-preserving schedules, about sigma where noise explodes."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    xp = arithmetic(sigma)
    return xp.sqrt(alpha * alpha + sigma * sigma)


def time_at(schedule: Schedule, phi: Time) -> Time:
    """The time with angle phi, inverse of :func:`angle`: lambda = log(cos phi/sin phi)."""
    xp = arithmetic(phi)
    return schedule.time(xp.log(xp.cos(phi)) - xp.log(xp.sin(phi)))


def flow_slope(denoiser: Denoiser, u: Tensor, phi: Time, cond: Cond | None = None) -> Tensor:
    """du/dphi of the probability-flow ODE at angle phi.

    Args:
        denoiser: the model.
        u: (B, ...) state x/r.
        phi: a float, or (B,) float64 angles.
        cond: conditions of these images; None uses those bound to the denoiser.
    """
    schedule = denoiser.schedule
    t = time_at(schedule, phi)
    xp = arithmetic(phi)
    post = denoiser(u * spread(radius(schedule, t), u), t, cond)
    return post.combine(0.0, spread(-xp.sin(phi), u), spread(xp.cos(phi), u))


def bound_inside(denoiser: Denoiser) -> bool:
    """Whether a model further inside holds the conditions of the whole batch, so that no part of it can be asked."""
    inner = (m for m in denoiser.modules() if isinstance(m, Denoiser) and m is not denoiser)
    return any(m._given is not None for m in inner)


def reverse_drift(denoiser: Denoiser, x: Tensor, t: Time, *, ode: bool = False) -> Tensor:
    """f x - g^2 score, the drift of the reverse SDE, or with `ode` f x - g^2 score/2, that of the ODE; (B, ...).

    Args:
        denoiser: the model.
        x: x_t, (B, ...).
        t: a float, or (B,) times at which some of the image is left.
    """
    f, g2 = denoiser.schedule.drift(t)
    sigma = denoiser.schedule.sigma(t)
    return denoiser(x, t).combine(spread(f, x), 0.0, spread((0.5 if ode else 1.0) * g2 / sigma, x))


def discretised(schedule: Schedule, s: Time, t: Time) -> tuple[Time, Time]:
    """(a, G^2) of the forward step x_t = a x_s + G z from time s up to t, exact: a = alpha_t/alpha_s.

    On neighbouring entries of a table of betas a = sqrt(1 - beta), G^2 = beta; on VE a = 1,
    G^2 = sigma_t^2 - sigma_s^2. From the clean end a = alpha_t, G^2 = sigma_t^2.

    Reference: Song et al. 2021, eq. 7-10 and 46.
    """
    ratio, std = schedule.transition(s, t)
    return ratio, std * std


def released_table(schedule: Schedule, t: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(a, G^2) of the released code at times t: from a table of N entries, at index trunc(t (N - 1)).

    VE: sigma_i geometric, G^2 = sigma_i^2 - sigma_{i-1}^2 with sigma_{-1} = 0.  VP: beta_i linear from beta_min/N to
    beta_max/N.  sub-VP has no table there; its forward step is Euler's, a = 1 - beta/(2N), G^2 = g^2/N.

    Args:
        schedule: VE, VP or sub-VP, with times in [0, 1].
        t: (S,) times.
        count: N.

    Raises:
        InputError: on VP, so few entries that the largest beta would not be below 1.
    """
    # In float32, as released: at an exact grid value the index can be one too low.
    index = (torch.tensor(t, dtype=torch.float32) * (count - 1)).long().numpy()
    if isinstance(schedule, VE):
        sigmas = np.exp(np.linspace(math.log(schedule.sigma_min), math.log(schedule.sigma_max), count))
        below = np.where(index > 0, sigmas[index - 1], 0.0)
        return np.ones(len(t)), sigmas[index] ** 2 - below**2
    assert isinstance(schedule, VP)
    if isinstance(schedule, SubVP):
        return 1 - 0.5 * schedule.beta(t) / count, np.asarray(schedule.drift(t)[1]) / count
    if schedule.beta_max >= count:
        mend = f"the released table has as many entries as steps and needs more than {schedule.beta_max:g}; use more"
        raise InputError("steps", count, mend)
    betas = np.linspace(schedule.beta_min / count, schedule.beta_max / count, count)[index]
    return np.sqrt(1 - betas), betas
