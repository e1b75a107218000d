"""The contract of a noise schedule: x_t = alpha(t) x_0 + sigma(t) eps.

Noise grows with t. Every function takes a Python float (host arithmetic, the fast path of samplers), a NumPy array or a
torch tensor, and answers in kind, in float64.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError

__all__ = ["Schedule", "Time", "arithmetic", "double", "spread"]

Time = Any  # float | np.ndarray | Tensor


def arithmetic(t: Time) -> Any:
    """The module (math, numpy or torch) whose sqrt, exp, log, ... fit `t`."""
    if isinstance(t, Tensor):
        return torch
    return np if isinstance(t, np.ndarray) else math


def double(t: Time) -> Time:
    """`t` in float64, in its own kind; integers become floats."""
    if isinstance(t, Tensor):
        return t if t.dtype == torch.float64 else t.to(torch.float64)
    if isinstance(t, np.ndarray):
        return t.astype(np.float64, copy=False)
    return float(t)


def spread(value: Time, like: Tensor) -> Any:
    """A per-image value (B,) shaped to multiply `like` (B, ...) in its dtype; floats pass unchanged."""
    if isinstance(value, Tensor):
        return value.to(like).reshape(-1, *[1] * (like.dim() - 1)) if value.dim() else value.to(like)
    return float(value)


class Schedule:
    """Base of all schedules; subclasses give `alpha`, `sigma`, `time` and `rates`.

    Attributes:
        t_min, t_max: the range in which a model of this schedule was trained.
        clean: the time of x_0 itself, where alpha = 1, sigma = 0 and lam = inf.
        grid: name of the spacing that samplers use on it unless told otherwise.
        known: the only times a discrete model knows, ascending float64, or None when every time in the range is known.
    """

    t_min: float
    t_max: float
    clean: float = 0.0
    grid: str = "time"
    known: np.ndarray | None = None

    def alpha(self, t: Time) -> Time:
        """Factor on x_0."""
        raise NotImplementedError

    def sigma(self, t: Time) -> Time:
        """Factor on the noise."""
        raise NotImplementedError

    def time(self, lam: Time) -> Time:
        """The time at which lam(t) = log(alpha/sigma) has this value."""
        raise NotImplementedError

    def rates(self, t: Time) -> tuple[Time, Time]:
        """Time derivatives (alpha'(t), sigma'(t))."""
        raise NotImplementedError

    def lam(self, t: Time) -> Time:
        """lambda(t) = log(alpha(t)/sigma(t)), half the log signal-to-noise ratio; inf at the clean end."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        if isinstance(t, Tensor):
            return alpha.log() - sigma.log()
        with np.errstate(divide="ignore"):
            value = np.log(alpha) - np.log(sigma)
        return value if isinstance(t, np.ndarray) else float(value)

    def drift(self, t: Time) -> tuple[Time, Time]:
        """(f, g^2) of the forward SDE dx = f x dt + g dw: f = alpha'/alpha, g^2 = 2 sigma (sigma' - f sigma)."""
        da, ds = self.rates(t)
        f = da / self.alpha(t)
        sigma = self.sigma(t)
        return f, 2 * sigma * (ds - f * sigma)

    def prior(self, t: Time | None = None) -> Time:
        """Standard deviation of the start noise at time `t` (default t_max)."""
        return self.sigma(self.t_max if t is None else t)

    def snap(self, t: Time) -> Time:
        """The nearest time that a model of this schedule knows; the clean end stays."""
        if self.known is None:
            return t
        if isinstance(t, Tensor):
            known = torch.as_tensor(self.known, device=t.device)
            near = known[(t.double().unsqueeze(-1) - known).abs().argmin(-1)]
            return torch.where(t <= self.clean, t.double(), near)
        values = np.asarray(t, dtype=np.float64)
        closest = self.known[np.abs(values[..., None] - self.known).argmin(-1)]
        closest = np.where(values <= self.clean, values, closest)
        return closest if isinstance(t, np.ndarray) else float(closest)

    def marginal(self, x: Tensor, t: Time, noise: Tensor) -> Tensor:
        """x_t = alpha(t) x_0 + sigma(t) eps for clean images `x` (B, ...) and `noise` of the same shape."""
        return spread(self.alpha(t), x) * x + spread(self.sigma(t), x) * noise

    def renoise(self, x: Tensor, s: Time, t: Time, noise: Tensor) -> Tensor:
        """From level s up to the noisier level t with fresh noise: x_t = (alpha_t/alpha_s) x_s + std eps."""
        ratio, std = self.transition(s, t)
        return spread(ratio, x) * x + spread(std, x) * noise

    def transition(self, s: Time, t: Time) -> tuple[Time, Time]:
        """(alpha_t/alpha_s, std) of q(x_t | x_s) for s < t: std^2 = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2."""
        ratio = self.alpha(t) / self.alpha(s)
        variance = self.sigma(t) ** 2 - (ratio * self.sigma(s)) ** 2
        if isinstance(variance, Tensor):
            return ratio, variance.clamp_min(0).sqrt()
        root = np.sqrt(np.maximum(variance, 0.0))
        return ratio, root if isinstance(root, np.ndarray) else float(root)

    def check(self, t: Time, *, thing: str = "time") -> None:
        """Refuse times outside [clean, t_max].

        Raises:
            InputError: a time leaves the schedule.
        """
        values = np.asarray(t.detach().cpu() if isinstance(t, Tensor) else t, dtype=np.float64)
        bad = values[~((values >= self.clean) & (values <= self.t_max * (1 + 1e-12)))]
        if bad.size:
            name = type(self).__name__
            raise InputError(thing, float(bad.flat[0]), f"{name} knows times from {self.clean} to {self.t_max}")
