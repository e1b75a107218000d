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

__all__ = ["LEVELS", "antithetic", "draw_levels", "lognormal", "logit_normal", "mirrored", "one_sided"]
__all__ += ["u_shaped", "u_shaped_density", "u_shaped_quantile", "uniform", "uniform_index"]


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


def u_shaped(u: Tensor, schedule: Schedule, *, a: float = 4.0) -> Tensor:
    """t from the U-shaped density, squeezed into the range: t_min + (t_max - t_min) :func:`u_shaped_quantile`.

    On `Flow(t_min=1e-5, t_max=1 - 1e-5)` this is the law of 2-rectified flow++. Reference: Lee et al. 2024.
    """
    return schedule.t_min + u_shaped_quantile(u, a) * (schedule.t_max - schedule.t_min)


def u_shaped_density(t: Tensor, a: float = 4.0) -> Tensor:
    """p(t) = a (e^{a t} + e^{a(1-t)}) / (2 (e^a - 1)) = a/(2 sinh(a/2)) cosh(a (t - 1/2)) on [0, 1].

    What the paper prints, p(t) ~ e^{a t} + e^{-a t}, only rises on [0, 1]; this is the law of its code and figures.

    Args:
        t: times in [0, 1], any shape.
        a: steepness, >= 0; 0 is uniform.

    Raises:
        InputError: a is negative.

    Reference: Lee et al. 2024, section 4.1 and code.

    >>> [round(float(p), 4) for p in u_shaped_density(torch.tensor([0.0, 0.5, 1.0]).double())]
    [2.0746, 0.5514, 2.0746]
    """
    _steepness(a)
    if a == 0:
        return torch.ones_like(t)
    return a / (2 * math.sinh(a / 2)) * torch.cosh(a * (t - 0.5))


def u_shaped_quantile(u: Tensor, a: float = 4.0) -> Tensor:
    """Inverse distribution function of :func:`u_shaped_density`: 1/2 + asinh((2u - 1) sinh(a/2)) / a, in [0, 1].

    Args:
        u: uniform on [0, 1), any shape.
        a: steepness, >= 0; 0 gives u itself.

    Raises:
        InputError: a is negative.
    """
    _steepness(a)
    return u if a == 0 else (0.5 + torch.asinh((2 * u - 1) * math.sinh(a / 2)) / a).clamp(0, 1)


def one_sided(r: Tensor, a: float = 4.0) -> Tensor:
    """Inverse distribution function of q(u) = a e^{a u}/(e^a - 1), one half of the U: ln(1 + r (e^a - 1))/a.

    Args:
        r: uniform on [0, 1), any shape.
        a: steepness, >= 0; 0 gives r itself.

    Raises:
        InputError: a is negative.
    """
    _steepness(a)
    return r if a == 0 else torch.log1p(r * math.expm1(a)) / a


def mirrored(r: Tensor, keys: Tensor, a: float = 4.0) -> Tensor:
    """A batch of the U as its paper's code draws it: a random half of u_i ~ q and their mirror images 1 - u_i, (B,).

    Each time has the law of :func:`u_shaped_density`, but a time and its mirror image can stand in one batch, and which
    do depends on the whole batch.

    Args:
        r: (B,) uniform on [0, 1).
        keys: (2B,) uniform; the B smallest say which of (u_1, ..., u_B, 1 - u_1, ..., 1 - u_B) stay, and their order.
        a: steepness, >= 0.

    Raises:
        InputError: a is negative, or there are not two keys for each image.
    """
    if keys.shape != (2 * len(r),):
        raise InputError("keys", tuple(keys.shape), f"two for each image, ({2 * len(r)},)")
    u = one_sided(r, a)
    return torch.cat([u, 1 - u])[keys.argsort()[: len(r)]]


def _steepness(a: float) -> None:
    if not 0 <= a < 700:
        raise InputError("a", a, "is the steepness of the U, 0 (uniform) or more; 4 in the paper")


LEVELS = {"lognormal": lognormal, "uniform": uniform, "uniform-index": uniform_index, "logit-normal": logit_normal}
LEVELS["u-shaped"] = u_shaped


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
