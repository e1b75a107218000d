"""The variational bound of a discrete diffusion with learned variance.

L_t = KL(q(x_{t-1}|x_t,x_0) || p_theta) in bits per dimension for t > 0, and the discretised Gaussian likelihood of x_0
with bins of width 2/255 at t = 0.

Reference: Ho et al. 2020, section 3.3; Nichol & Dhariwal 2021, section 3.1 and eq. 15-16.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from scoreline.diffusion.schedules import Discrete

__all__ = ["approximate_normal_cdf", "discretized_gaussian_nll", "log_variances", "normal_kl", "prior_bits", "vlb_term"]


def normal_kl(mean1: Tensor, log_variance1: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL(N(mean1, exp log_variance1) || N(mean2, exp log_variance2)) in nats, elementwise."""
    return 0.5 * (
        log_variance2
        - log_variance1
        - 1
        + torch.exp(log_variance1 - log_variance2)
        + (mean1 - mean2) ** 2 * torch.exp(-log_variance2)
    )


def approximate_normal_cdf(x: Tensor) -> Tensor:
    """0.5 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def discretized_gaussian_nll(x: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """-log of the mass that N(mean, exp(log_std)^2) puts on the bin of x, in nats, elementwise.

    Args:
        x: images on the 256 levels of [-1, 1]; bins have width 2/255 and the two end bins are open.
        mean, log_std: same shape as x.
    """
    inverse = torch.exp(-log_std)
    above = approximate_normal_cdf((x - mean + 1 / 255) * inverse)
    below = approximate_normal_cdf((x - mean - 1 / 255) * inverse)
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return -mass.clamp(min=1e-12).log()


def log_variances(schedule: Discrete) -> tuple[np.ndarray, np.ndarray]:
    """(log beta~ with entry 0 replaced by entry 1, log beta), each (T,) float64."""
    previous = np.append(1.0, schedule.abar[:-1])
    small = schedule.betas * (1 - previous) / (1 - schedule.abar)
    return np.log(np.append(small[1:2], small[1:])), np.log(schedule.betas)


def posterior_coefficients(schedule: Discrete) -> tuple[np.ndarray, np.ndarray]:
    """(c1, c2) of the mean c1 x_0 + c2 x_t of q(x_{t-1}|x_t, x_0), each (T,) float64."""
    previous = np.append(1.0, schedule.abar[:-1])
    c1 = schedule.betas * np.sqrt(previous) / (1 - schedule.abar)
    return c1, (1 - previous) * np.sqrt(1 - schedule.betas) / (1 - schedule.abar)


def vlb_term(schedule: Discrete, x0: Tensor, x: Tensor, t: Tensor, mean: Tensor, mix: Tensor) -> Tensor:
    """L_t of each image in bits per dimension, (B,).

    Args:
        schedule: a discrete table.
        x0: (B, ...) clean images in [-1, 1].
        x: (B, ...) x_t.
        t: (B,) levels.
        mean: (B, ...) the model's E[x_0|x_t]; detach it so that only the variance learns.
        mix: (B, ...) raw share between log beta~ (-1) and log beta (1).
    """
    shape = (-1, *[1] * (x.dim() - 1))
    index = t.long()

    def at(table: np.ndarray) -> Tensor:
        return torch.as_tensor(table, device=x.device)[index].to(x).view(shape)

    small, large = log_variances(schedule)
    c1, c2 = posterior_coefficients(schedule)
    frac = (mix + 1) / 2
    log_variance = frac * at(large) + (1 - frac) * at(small)
    model_mean = at(c1) * mean + at(c2) * x
    kl = normal_kl(at(c1) * x0 + at(c2) * x, at(small), model_mean, log_variance)
    nll = discretized_gaussian_nll(x0, model_mean, 0.5 * log_variance)
    each = torch.where((index == 0).view(shape), nll, kl)
    return each.flatten(1).mean(1) / math.log(2)


def prior_bits(schedule: Discrete, x0: Tensor) -> Tensor:
    """KL(q(x_T|x_0) || N(0, I)) in bits per dimension, (B,)."""
    abar = float(schedule.abar[-1])
    zero = torch.zeros_like(x0)
    kl = normal_kl(math.sqrt(abar) * x0, zero + math.log1p(-abar), zero, zero)
    return kl.flatten(1).mean(1) / math.log(2)
