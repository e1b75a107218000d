"""Arithmetic that several samplers share, in float64, on arrays of times or per-image tensors."""

from __future__ import annotations

from typing import Any

from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule, arithmetic

__all__ = ["eta_step", "need_signal", "posterior_step", "scaled_levels"]

Array = Any


def eta_step(schedule: Schedule, t: Array, s: Array, eta: float) -> tuple[Array, Array, Array]:
    """(a, b, std) of x_s = a x_t + b E[x_0|x_t] + std xi: DDIM's update with variance share eta^2.

    std = eta sigma_s sqrt(1 - (alpha_t sigma_s / alpha_s sigma_t)^2), the rest, sqrt(sigma_s^2 - std^2),
    stays along the noise estimate.

    Reference: Song et al. 2021 (DDIM), eq. 12 and 16, written for any alpha and sigma.
    """
    xp = arithmetic(t)
    at, st, as_, ss = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    if not eta:
        return ss / st, as_ - at * ss / st, ss * 0.0
    ratio = at * ss / (as_ * st)
    std = eta * ss * xp.sqrt(xp.clip(1 - ratio * ratio, 0, None))
    along = xp.sqrt(xp.clip(ss * ss - std * std, 0, None)) / st
    return along, as_ - at * along, std


def posterior_step(schedule: Schedule, t: Array, s: Array) -> tuple[Array, Array, Array, Array]:
    """(c1, c2, small, large): q(x_s|x_t, x_0) has mean c1 x_0 + c2 x_t, variance `small`; q(x_t|x_s) has `large`.

    With alpha_ts = alpha_t/alpha_s and sigma_ts^2 = sigma_t^2 - alpha_ts^2 sigma_s^2:
    c1 = alpha_s sigma_ts^2/sigma_t^2, c2 = alpha_ts sigma_s^2/sigma_t^2,
    small = sigma_ts^2 sigma_s^2/sigma_t^2, large = sigma_ts^2.
    On neighbouring entries of a table these are beta~_t and beta_t.

    Reference: Ho et al. 2020, eq. 6-7.
    """
    at, st, as_, ss = schedule.alpha(t), schedule.sigma(t), schedule.alpha(s), schedule.sigma(s)
    ratio = at / as_
    large = st * st - (ratio * ss) ** 2
    share = large / (st * st)
    return as_ * share, ratio * ss * ss / (st * st), share * ss * ss, large


def scaled_levels(schedule: Schedule, t: Array) -> Array:
    """sigma/alpha, the noise level in EDM's coordinates."""
    return schedule.sigma(t) / schedule.alpha(t)


def need_signal(schedule: Schedule, times: Array, who: str) -> None:
    """Refuse times at which nothing is left of the image, where sigma/alpha is infinite."""
    gone = schedule.alpha(times) <= 0
    if bool(gone.any()):
        mend = f"{who} works in sigma/alpha, which is infinite there; stay below, or use ddim, euler or dpm-solver++2m"
        raise InputError("time", float(times[gone].flatten()[0]), mend)
