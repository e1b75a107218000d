"""The rule of the Time-Shift Sampler: which time fits a state, and what it chooses from.

    t_s = argmin over tau in [c - floor(w/2), c + floor(w/2)] of (v - (1 - abar_tau))^2   if c > t_c, else c,
with v the unbiased variance over all entries of one state. It neglects abar var(x_0) beside 1 - abar, which is small at
large t only, and takes the pixels of an image for independent: a heuristic.

Reference: Li, Qu, Yao, Sun & Moens 2024 (arXiv 2305.15583), algorithm 3.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.core.schedule import Schedule
from scoreline.diffusion.betas import beta_table

__all__ = ["Table", "image_variance", "nearest", "shift_times", "state_variance", "suggest", "transfer"]


def state_variance(x: Tensor) -> Tensor:
    """Unbiased variance over the entries of each state, (B,) float64.

    Args:
        x: (B, ...) with at least two entries a state.
    """
    return x.flatten(1).double().var(1)


def image_variance(images: Tensor) -> float:
    """Mean over images (N, ...) of the variance of their entries; 0.25 on CIFAR-10, 0.56 on the digits."""
    return float(state_variance(images).mean())


def nearest(variance: Tensor, levels: Tensor) -> Tensor:
    """Place of the level nearest to each variance, the first of equals, (B,) int64; levels (K,)."""
    return (variance.unsqueeze(1) - levels).square().argmin(1)


def shift_times(variance: Tensor, center: int, levels: Tensor, *, window: int, cutoff: int) -> Tensor:
    """argmin over tau in [c - floor(w/2), c + floor(w/2)] and in the table of (v - levels_tau)^2; c itself if c <= t_c.

    Args:
        variance: v of each state, (B,).
        center: c, an index of the table.
        levels: (T,) ascending; 1 - abar in the paper.
        window: w >= 0.
        cutoff: t_c.

    Returns:
        (B,) int64 indices of the table.

    Reference: Li et al. 2024, algorithm 3.

    >>> levels = torch.linspace(0, 1, 11)
    >>> shift_times(torch.tensor([0.31, 0.72, 0.95]), 6, levels, window=4, cutoff=2).tolist()
    [4, 7, 8]
    """
    half = window // 2
    if center <= cutoff or half == 0:
        return torch.full_like(variance, center, dtype=torch.int64)
    low, high = max(center - half, 0), min(center + half, len(levels) - 1)
    return low + nearest(variance, levels[low : high + 1])


def transfer(x: Tensor, eps: Tensor, abar: Any, abar_to: Any) -> Tensor:
    """DDIM from abar = a to abar_to = a', as the released code for PNDM writes it, without a difference of like roots.

    x' = x + (a' - a) [x / (sqrt(a) (sqrt(a) + sqrt(a'))) - eps / (sqrt(a) (sqrt((1 - a') a) + sqrt((1 - a) a')))]

    Args:
        x, eps: (B, ...) state and noise estimate.
        abar, abar_to: in (0, 1], floats or tensors that broadcast against x.

    Reference: Liu et al. 2022 (PNDM), eq. 11.
    """
    a, b = (torch.as_tensor(v, dtype=torch.float64, device=x.device) for v in (abar, abar_to))
    on_x = (b - a) / (a.sqrt() * (a.sqrt() + b.sqrt()))
    on_eps = (b - a) / (a.sqrt() * (((1 - b) * a).sqrt() + ((1 - a) * b).sqrt()))
    return x + on_x.to(x) * x - on_eps.to(x) * eps


def suggest(schedule: Schedule, steps: int, variance: float) -> tuple[int, int]:
    """(window, cut-off) to begin a search with: w = 0.4 T/S, t_c the last t with abar_t var(x_0) > 0.1.

    The rule neglects abar_t var(x_0) beside 1 - abar_t, so it may only be used where that is small; on CIFAR-10 this
    gives the settings that the paper uses at 10 steps. The window is 0.4 of the grid's spacing.

    Args:
        schedule: of the model.
        steps: S, levels of the run.
        variance: of the data, see :func:`image_variance`.
    """
    table = Table.of(schedule)
    signal = 1 - table.levels
    above = np.flatnonzero(signal * variance > 0.1)
    return max(2, round(0.4 * len(signal) / steps)), int(above[-1]) if above.size else 0


class Table(NamedTuple):
    """The times among which the rule chooses, with what it compares.

    Attributes:
        times: (T,) of the schedule, ascending.
        levels: (T,) variances in y = x / sqrt(alpha^2 + sigma^2): 1 - abar, plus abar var(x_0) where that is given.
        norms: (T,) sqrt(alpha^2 + sigma^2).
    """

    times: np.ndarray
    levels: np.ndarray
    norms: np.ndarray

    @classmethod
    def of(cls, schedule: Schedule, variance: float = 0.0) -> Table:
        """The table of a schedule: its own, or the linear one of 1000 steps at equal lambda."""
        if schedule.known is not None:
            times = schedule.known
        else:
            abar = np.cumprod(1 - beta_table("linear", 1000))
            times = schedule.time(0.5 * (np.log(abar) - np.log1p(-abar)))
            times = np.clip(times, schedule.t_min, schedule.t_max)
        signal, noise = np.asarray(schedule.alpha(times)) ** 2, np.asarray(schedule.sigma(times)) ** 2
        total = signal + noise
        return cls(times, (noise + variance * signal) / total, np.sqrt(total))

    def entry(self, t: Any) -> Any:
        """The nearest entry in time; -1 for the clean end and what lies below the table by more than its first step."""
        t = np.asarray(t, dtype=np.float64)
        right = np.searchsorted(self.times, t).clip(1, len(self.times) - 1)
        at = right - (t - self.times[right - 1] <= self.times[right] - t)
        at = np.where(t < self.times[0] - (self.times[1] - self.times[0]) / 2, -1, at)
        return at if at.ndim else int(at)
