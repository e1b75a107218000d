"""Grids: at which noise levels a sampler stops.

Every grid is a function (schedule, steps) -> (steps,) float64 levels, the noisiest first; the clean end that follows
the last level is added by the sampler. Discrete schedules get levels that their model knows.
"""

from __future__ import annotations

import numpy as np

from scoreline.core.errors import InputError
from scoreline.core.schedule import Schedule

__all__ = ["fractional", "karras", "leading", "linspace", "logsnr", "power_t", "quadratic", "time", "time_to_clean"]
__all__ += ["trailing"]


def karras(schedule: Schedule, steps: int, *, rho: float = 7.0) -> np.ndarray:
    """sigma_i = (smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho in sigma/alpha, i = 0 ... N-1.

    Reference: Karras et al. 2022, eq. 5.

    >>> from scoreline.diffusion.schedules import EDM
    >>> karras(EDM(), 5).round(3).tolist()
    [80.0, 17.528, 2.515, 0.17, 0.002]
    """
    ends = np.array([schedule.t_max, schedule.t_min])
    with np.errstate(divide="ignore"):
        high, low = np.exp(-schedule.lam(ends))
    if not np.isfinite(high):
        raise InputError("grid", "karras", "needs a schedule whose noisiest level keeps some signal")
    i = np.arange(steps) / max(steps - 1, 1)
    levels = (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    return _known(schedule, _ends(schedule, schedule.time(-np.log(levels))))


def logsnr(schedule: Schedule, steps: int) -> np.ndarray:
    """Uniform in lambda from t_max to t_min. Reference: Lu et al. 2022 (DPM-Solver)."""
    high, low = schedule.lam(np.array([schedule.t_max, schedule.t_min]))
    if not np.isfinite(high):
        raise InputError("grid", "logsnr", "needs a schedule whose noisiest level keeps some signal")
    return _known(schedule, _ends(schedule, schedule.time(np.linspace(high, low, steps))))


def time(schedule: Schedule, steps: int) -> np.ndarray:
    """Uniform in time from t_max to t_min, both included."""
    return _known(schedule, np.linspace(schedule.t_max, schedule.t_min, steps))


def time_to_clean(schedule: Schedule, steps: int) -> np.ndarray:
    """Uniform in time from t_max down to the clean end, which is not a level: t_max (1 - i/N) for flows."""
    # Where the clean end is no limit of the schedule but a time of its own, the levels stop short of t_min instead.
    low = schedule.clean if schedule.clean >= 0 else schedule.t_min
    return _known(schedule, np.linspace(schedule.t_max, low, steps + 1)[:-1])


def power_t(schedule: Schedule, steps: int, *, k: float = 2.0) -> np.ndarray:
    """t_i = (T^(1/k) + i/N (t_end^(1/k) - T^(1/k)))^k, i = 0 ... N-1; the clean end takes the place of t_N = t_end.

    On tables the times are rounded down; those that fall together give way to the smallest free entries.

    Reference: Zhang & Chen 2023 (DEIS), k = 2.

    >>> from scoreline.diffusion.schedules import VP
    >>> power_t(VP(), 10)[:2].round(5).tolist()
    [1.0, 0.8157]
    """
    root = schedule.t_max ** (1 / k)
    levels = (root + np.arange(steps) / steps * (schedule.t_min ** (1 / k) - root)) ** k
    levels[0] = schedule.t_max
    if schedule.known is None:
        return _known(schedule, levels)
    if steps > len(schedule.known):
        raise InputError("steps", steps, f"the model knows {len(schedule.known)} levels; use fewer steps")
    chosen = np.unique(np.floor(levels + 1e-9))
    free = np.setdiff1d(schedule.known, chosen)[: steps - len(chosen)]
    return np.sort(np.append(chosen, free))[::-1].copy()


def leading(schedule: Schedule, steps: int) -> np.ndarray:
    """0, T//S, 2 T//S, ...: DDIM's spacing; the last index is below T - T//S, so the noisiest levels are not visited.

    Raises:
        InputError: no whole stride gives exactly this many levels.
    """
    T = _table(schedule, "leading")
    _not_one(steps, "leading")
    for stride in range(1, T + 1):
        levels = np.arange(0, T, stride)
        if len(levels) == steps:
            return levels[::-1].astype(np.float64)
    mend = f"no whole stride over {T} levels gives exactly {steps}; use --grid trailing or linspace"
    raise InputError("steps", steps, mend)


def trailing(schedule: Schedule, steps: int) -> np.ndarray:
    """T-1, T-1 - T/S, ...: always starts from the noisiest level. Reference: Lin et al. 2023."""
    T = _table(schedule, "trailing")
    return _known(schedule, np.round(np.arange(T, 0, -T / steps))[:steps] - 1)


def linspace(schedule: Schedule, steps: int) -> np.ndarray:
    """Evenly spaced from T-1 to 0, both included, rounded down: K = 4 gives 999, 666, 333, 0."""
    T = _table(schedule, "linspace")
    return _known(schedule, np.floor(np.linspace(0, T - 1, steps) + 1e-9)[::-1] if steps > 1 else np.array([T - 1.0]))


def fractional(schedule: Schedule, steps: int) -> np.ndarray:
    """Even spacing with both ends, rounded to the nearest index. Reference: Nichol & Dhariwal 2021."""
    T = _table(schedule, "fractional")
    return _known(schedule, np.round(np.linspace(0, T - 1, steps))[::-1] if steps > 1 else np.array([T - 1.0]))


def quadratic(schedule: Schedule, steps: int) -> np.ndarray:
    """floor(linspace(0, sqrt(0.8 T), S)^2) on tables; uniform in sqrt(t) elsewhere. Ref.: Song et al. 2021."""
    _not_one(steps, "quadratic")
    if schedule.known is not None:
        T = len(schedule.known)
        if steps > T:
            raise InputError("steps", steps, f"the model knows {T} levels; use fewer steps")
        # The first entries fall together where steps are many; a level is visited once, which makes the run cheaper.
        return np.unique(np.floor(np.linspace(0, np.sqrt(0.8 * T), steps) ** 2))[::-1].copy()
    root = np.linspace(np.sqrt(schedule.t_max), np.sqrt(schedule.t_min), steps)
    return _ends(schedule, root**2)


def _not_one(steps: int, grid: str) -> None:
    if steps == 1:
        raise InputError("steps", 1, f"the {grid} grid of one step is the cleanest level; use --grid trailing")


def _table(schedule: Schedule, grid: str) -> int:
    if schedule.known is None:
        mend = f"{type(schedule).__name__} has no table of steps; use --grid time, logsnr or karras"
        raise InputError("grid", grid, mend)
    return len(schedule.known)


def _ends(schedule: Schedule, levels: np.ndarray) -> np.ndarray:
    """Rounding of a map there and back must not leave the range."""
    levels = np.array(levels, dtype=np.float64)
    levels[0] = schedule.t_max
    if len(levels) > 1:
        levels[-1] = schedule.t_min
    return levels


def _known(schedule: Schedule, levels: np.ndarray) -> np.ndarray:
    """Snap to known levels and refuse a grid in which two of them fall together."""
    levels = np.asarray(schedule.snap(np.asarray(levels, dtype=np.float64)))
    if (np.diff(levels) >= 0).any():
        if schedule.known is None:
            raise InputError("steps", len(levels), "the levels do not decrease; use another grid")
        mend = f"two of them fall on one of the {len(schedule.known)} known levels; use fewer steps or another grid"
        raise InputError("steps", len(levels), mend)
    return levels
