"""How training draws its noise levels: each image's time is a function of its own uniform draw.

Every function maps u ~ U[0, 1), shape (B,) float64, to times of a schedule, so that a batch's levels do not depend on
the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.schedule import Schedule

__all__ = ["LEVELS", "antithetic", "draw_levels", "lognormal", "logit_normal", "uniform", "uniform_index"]


def lognormal(u: Tensor, schedule: Schedule, *, mean: float = -1.2, std: float = 1.2) -> Tensor:
    """ln(sigma/alpha) ~ N(mean, std^2). Reference: Karras et al. 2022, table 1."""
    ln_sigma = mean + std * _normal(u)
    return schedule.time(-ln_sigma)


def uniform(u: Tensor, schedule: Schedule) -> Tensor:
    """t uniform on [t_min, t_max]. Reference: Song et al. 2021 (score SDE)."""
    return schedule.t_min + u * (schedule.t_max - schedule.t_min)


def uniform_index(u: Tensor, schedule: Schedule) -> Tensor:
    """One of the T levels of a table, all equally likely. Reference: Ho et al. 2020."""
    if schedule.known is None:
        raise InputError("levels", "uniform-index", f"{type(schedule).__name__} has no table of levels")
    count = len(schedule.known)
    return (u * count).floor().clamp(max=count - 1)


def logit_normal(u: Tensor, schedule: Schedule, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(t) ~ N(mean, std^2), t within the schedule's range. Reference: Esser et al. 2024."""
    return torch.sigmoid(mean + std * _normal(u)).clamp(schedule.t_min, schedule.t_max)


LEVELS = {"lognormal": lognormal, "uniform": uniform, "uniform-index": uniform_index, "logit-normal": logit_normal}


def draw_levels(name: str, u: Tensor, schedule: Schedule) -> Tensor:
    """Times (B,) float64 by the rule `name` from uniform draws u (B,); on a table, the nearest of its levels.

    Raises:
        InputError: the rule is unknown or does not fit the schedule.
    """
    if name not in LEVELS:
        raise unknown_name("levels", name, LEVELS)
    t = LEVELS[name](u, schedule)
    return t if schedule.known is None else schedule.snap(t)


def antithetic(t: Tensor, T: int) -> Tensor:
    """Pair levels t with T-1-t: of a batch of B, the first floor(B/2)+1 are kept, the mirrored ones follow, cut to B.

    Args:
        t: (B,) levels 0 ... T-1.
        T: number of levels.
    """
    half = t[: len(t) // 2 + 1]
    return torch.cat([half, T - 1 - half])[: len(t)]


def _normal(u: Tensor) -> Tensor:
    """Standard normal quantile; u = 0 is moved to the middle of its float64 cell."""
    return torch.special.ndtri(u.clamp(2.0**-54, 1 - 2.0**-53)) if u.numel() else u * math.nan
