"""Tables of betas of discrete diffusions, float64.

Reference: Ho et al. 2020 (linear), Nichol & Dhariwal 2021 (cosine), Rombach et al. 2022 (quadratic), Lin et al. 2023
(zero terminal SNR).
"""

from __future__ import annotations

import math

import numpy as np

from scoreline.core.errors import unknown_name

__all__ = [
    "BETAS",
    "beta_table",
    "constant_betas",
    "cosine_betas",
    "jsd_betas",
    "linear_betas",
    "quadratic_betas",
    "rescale_zero_terminal_snr",
    "sigmoid_betas",
]


def linear_betas(T: int, *, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """beta from start*(1000/T) to end*(1000/T), evenly spaced, (T,) float64. Reference: Ho et al. 2020."""
    scale = 1000.0 / T
    return np.linspace(start * scale, end * scale, T, dtype=np.float64)


def cosine_betas(T: int, *, s: float = 0.008, clip: float = 0.999) -> np.ndarray:
    """beta_t = min(1 - f((t+1)/T)/f(t/T), clip), f(u) = cos^2(pi/2 (u + s)/(1 + s)). Ref.: Nichol & Dhariwal 2021."""
    f = np.cos((np.arange(T + 1, dtype=np.float64) / T + s) / (1 + s) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], clip)


def quadratic_betas(T: int, *, start: float = 0.00085, end: float = 0.012) -> np.ndarray:
    """linspace(sqrt(start), sqrt(end))^2, the "scaled linear" table of latent diffusion, (T,) float64."""
    return np.linspace(math.sqrt(start), math.sqrt(end), T, dtype=np.float64) ** 2


def sigmoid_betas(T: int, *, start: float = 1e-4, end: float = 0.02) -> np.ndarray:
    """start + (end - start) sigmoid(linspace(-6, 6, T)), (T,) float64."""
    return start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, T, dtype=np.float64)))


def constant_betas(T: int, *, end: float = 0.02) -> np.ndarray:
    """beta = end everywhere, (T,) float64."""
    return np.full(T, end, dtype=np.float64)


def jsd_betas(T: int) -> np.ndarray:
    """1/T, 1/(T-1), ..., 1, (T,) float64; the last beta is 1, which leaves no signal."""
    return 1.0 / np.linspace(T, 1, T, dtype=np.float64)


BETAS = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "quadratic": quadratic_betas,
    "sigmoid": sigmoid_betas,
    "constant": constant_betas,
    "jsd": jsd_betas,
}


def beta_table(name: str, T: int) -> np.ndarray:
    """The raw table of betas of a named schedule, (T,) float64.

    Raises:
        InputError: the name is unknown.
    """
    if name not in BETAS:
        raise unknown_name("beta schedule", name, BETAS)
    return BETAS[name](T)


def rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Betas whose last abar is exactly 0 and whose first is unchanged.

    s_t = sqrt(abar_t);  s'_t = (s_t - s_{T-1}) s_0/(s_0 - s_{T-1});  betas from the ratios of s'^2.

    Reference: Lin et al. 2023.
    """
    s = np.sqrt(np.cumprod(1 - betas))
    scaled = (s - s[-1]) * (s[0] / (s[0] - s[-1]))
    abar = scaled**2
    abar[0], abar[-1] = 1 - betas[0], 0.0
    return np.append(betas[:1], 1 - abar[1:] / abar[:-1])
