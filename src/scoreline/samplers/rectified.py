"""How rectified flows are sampled by the code of their papers: grids, time labels, Euler with or without noise.

Time is the papers': t = 0 is noise, t = 1 is data, v = E[X_1 - X_0 | X_t]; of a model of this package
v(x, t) = -model.velocity(x, 1 - t). The samplers `euler` (the same on a flow schedule as "paper" here) and `rk45` with
rtol 1e-5 take any model; the functions below are the arithmetic alone, for comparing with released figures.

    Euler            t_i = i/N, Z <- Z + v(Z, t_i)/N
    released Euler   t_i = (i/N)(1 - eps) + eps, eps = 1e-3, and the same step 1/N
    with noise       dZ = (v + sigma_t^2/2 score) dt + sigma_t dW,
                     sigma_t = (1 - t) sigma_var, score = (t v - Z)/(1 - t)

Reference: Liu et al. 2022 (arXiv 2209.03003); Liu et al. 2023 (InstaFlow, arXiv 2309.06380), and their code.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.core.schedule import Time

__all__ = ["euler", "euler_times", "pipeline_labels", "stochastic_drift", "time_label"]

VARIANTS = ("paper", "released")


def time_label(t: Time, rule: str = "cifar10") -> Time:
    """What the network is told: 999 t on CIFAR-10, 1000 (1 - t) by Stable Diffusion's U-Net.

    Args:
        t: the papers' time, 0 for noise.
        rule: "cifar10" or "pipeline".

    >>> time_label(0.5), time_label(0.25, "pipeline")
    (499.5, 750.0)
    """
    if rule not in ("cifar10", "pipeline"):
        raise unknown_name("rule", rule, ("cifar10", "pipeline"))
    return 999.0 * t if rule == "cifar10" else 1000.0 * (1 - t)


def pipeline_labels(steps: int) -> list[float]:
    """1000 (1 - i/N), i = 0 ... N-1: the time labels of InstaFlow's Euler loop, whose steps are x <- x + v/N.

    >>> pipeline_labels(4)
    [1000.0, 750.0, 500.0, 250.0]
    """
    return [1000.0 * (1 - i / steps) for i in range(steps)]


def euler_times(steps: int, *, eps: float = 1e-3, variant: str = "paper") -> tuple[np.ndarray, np.ndarray]:
    """(t_i, step sizes) of an Euler run in the papers' time, (N,) float64 each.

    "paper" runs from 0 to 1: t_i = i/N. "released" asks the model at t_i = (i/N)(1 - eps) + eps and still steps by
    1/N, as the code does: what it is told is ahead of where it is by eps at the start.

    Args:
        steps: N.
        eps: 1e-3 in the code.
        variant: "paper" or "released".

    >>> euler_times(2, variant="released")[0].tolist()
    [0.001, 0.5005]
    """
    if steps < 1:
        raise InputError("steps", steps, "must be 1 or more")
    _check(variant)
    even = np.arange(steps) / steps
    return even if variant == "paper" else even * (1 - eps) + eps, np.full(steps, 1.0 / steps)


@torch.no_grad()
def euler(
    velocity: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    steps: int,
    *,
    eps: float = 1e-3,
    variant: str = "paper",
    sigma_var: float = 0.0,
    draws: Draws | None = None,
) -> Tensor:
    """Z <- Z + drift(Z, t_i)/N + sigma_t sqrt(1/N) xi from noise to data, (B, ...).

    Args:
        velocity: v(x, t), t = 0 for noise.
        noise: X_0, (B, ...).
        steps, eps, variant: see :func:`euler_times`; "released" also takes its own drift.
        sigma_var: size of the noise, 0 for the ODE.
        draws: the images' streams; step i takes draw (i + 1, 0). Needed with sigma_var.

    Raises:
        InputError: noise is asked for and there are no streams.
    """
    if sigma_var and draws is None:
        raise InputError("draws", None, "a run with noise needs the images' streams")
    z = noise
    for i, (t, h) in enumerate(zip(*(column.tolist() for column in euler_times(steps, eps=eps, variant=variant)))):
        v = velocity(z, t)
        if sigma_var and draws is not None:
            sigma = (1 - t) * sigma_var
            z = z + h * stochastic_drift(v, z, t, sigma, variant=variant)
            z = z + sigma * math.sqrt(h) * draws.normal(i + 1).to(z)
        else:
            z = z + h * v
    return z


def stochastic_drift(velocity: Tensor, x: Tensor, t: float, sigma: float, *, variant: str = "paper") -> Tensor:
    """v + sigma^2/2 score, the drift with which noise of size sigma leaves every marginal as it is, (B, ...).

    score = (t v - x)/(1 - t). "released" adds sigma^2/(2 (1-t)^2) (t (1-t) v/2 - (2-t) x/2) as the code does, which is
    the same at t = 0 only.

    Args:
        velocity: v(x, t), (B, ...).
        x: the state, (B, ...).
        t: 0 (noise) to below 1.
        sigma: sigma_t.
        variant: "paper" or "released".
    """
    _check(variant)
    half = sigma * sigma / (2 * (1 - t) ** 2)
    if variant == "released":
        return velocity + half * (0.5 * t * (1 - t) * velocity - 0.5 * (2 - t) * x)
    return velocity + half * (1 - t) * (t * velocity - x)


def _check(variant: str) -> None:
    if variant not in VARIANTS:
        raise unknown_name("variant", variant, VARIANTS)
