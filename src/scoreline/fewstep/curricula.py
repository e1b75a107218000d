"""How consistency training is scheduled: the grid of noise levels, how it grows, and which pair of levels is drawn.

Indices are those of an ascending grid: i = 0 ... N-2 is the pair (levels[i], levels[i+1]), and i names its gap.

Reference: Song et al. 2023 (Consistency Models), section 5; Song & Dhariwal 2024 (iCT), sections 3.4 and 3.5; Luo et
al. 2023 (Latent Consistency Models), for the levels of a solver.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.schedule import Schedule

__all__ = ["ascending_levels", "doubling_points", "growing_points", "lognormal_pairs", "skipping_levels"]
__all__ += ["solver_levels", "target_rate"]


def ascending_levels(
    points: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> NDArray[np.float64]:
    """sigma_i = (smin^(1/rho) + i/(N-1) (smax^(1/rho) - smin^(1/rho)))^rho, i = 0 ... N-1, ascending, (N,).

    Args:
        points: N >= 2.
        sigma_min, sigma_max: the ends, which come out exactly.
        rho: spacing.

    >>> ascending_levels(11).round(6)[:2].tolist()
    [0.002, 0.016721]
    """
    if points < 2:
        raise InputError("points", points, "a grid of levels has 2 or more")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = (low + np.arange(points) / (points - 1) * (high - low)) ** rho
    levels[0], levels[-1] = sigma_min, sigma_max
    return levels


def doubling_points(step: int, steps: int, *, s0: int = 10, s1: int = 1280) -> int:
    """N(k) = min(s0 2^floor(k/K'), s1) + 1, K' = floor(K / (log2(floor(s1/s0)) + 1)): iCT's number of levels.

    Args:
        step: k = 0, 1, ...
        steps: K, all updates of the training.
        s0, s1: first and largest number of gaps.

    >>> [doubling_points(k, 400_000) for k in (0, 49_999, 50_000, 399_999)]
    [11, 11, 21, 1281]
    """
    stage = max(1, math.floor(steps / (math.log2(s1 // s0) + 1)))
    return min(s0 * 2 ** (step // stage), s1) + 1


def growing_points(step: int, steps: int, *, s0: int = 2, s1: int = 150) -> int:
    """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1: the number of levels of CT as first published.

    Args:
        step, steps, s0, s1: as of :func:`doubling_points`.

    >>> growing_points(0, 1000), growing_points(1000, 1000)
    (2, 151)
    """
    return math.ceil(math.sqrt(step / steps * ((s1 + 1) ** 2 - s0**2) + s0**2) - 1) + 1


def target_rate(points: int, *, s0: int = 2, mu0: float = 0.95) -> float:
    """mu(k) = exp(s0 ln(mu0) / N(k)): decay of CT's target network.

    Args:
        points: N(k).
        s0: first number of gaps.
        mu0: decay at the start (0.95; 0.9 on CIFAR-10).

    >>> round(target_rate(2), 4)
    0.95
    """
    return math.exp(s0 * math.log(mu0) / points)


def lognormal_pairs(levels: NDArray[np.float64], *, mean: float = -1.1, std: float = 2.0) -> NDArray[np.float64]:
    """Unnormalised weight of each gap, (N-1,): erf((ln s_{i+1} - mean)/(sqrt2 std)) - erf((ln s_i - mean)/(sqrt2 std)).

    Args:
        levels: (N,) ascending.
        mean, std: of ln sigma.
    """
    edges = (np.log(levels) - mean) / (math.sqrt(2) * std)
    low, high = edges[:-1], edges[1:]
    erf, erfc = np.vectorize(math.erf), np.vectorize(math.erfc)
    # Far up both are near 1 and their difference is all rounding; the complements are not.
    return np.where(low > 0, erfc(low) - erfc(high), erf(high) - erf(low))


def solver_levels(schedule: Schedule, points: int) -> np.ndarray:
    """The levels from which the teacher's solver steps in latent consistency distillation, (points,), ascending.

    On a table of T: T/points (j + 1) - 1; elsewhere the schedule's own grid without its cleanest level.

    Args:
        schedule: of teacher and student.
        points: how many; 50 in the paper.

    Raises:
        InputError: fewer than one, or more than the table has.

    >>> from scoreline.diffusion.schedules import Discrete
    >>> solver_levels(Discrete(), 50)[[0, 1, -1]].tolist()
    [19.0, 39.0, 999.0]
    """
    if points < 1 or (schedule.known is not None and points > len(schedule.known)):
        most = "" if schedule.known is None else f" to {len(schedule.known)}"
        raise InputError("points", points, f"a solver steps from 1{most} levels")
    if schedule.known is not None:
        return np.asarray(lookup("grid", "trailing")(schedule, points))[::-1].copy()
    return np.asarray(lookup("grid", schedule.grid)(schedule, points + 1))[:points][::-1].copy()


def skipping_levels(schedule: Schedule, points: int, steps: int) -> np.ndarray:
    """`steps` of the solver's levels, the noisiest first: entry floor(i points/steps) counted from the noisiest.

    Args:
        schedule, points: as of :func:`solver_levels`.
        steps: 1 to points.

    Raises:
        InputError: more steps than there are levels.

    >>> from scoreline.diffusion.schedules import Discrete
    >>> skipping_levels(Discrete(), 50, 4).tolist()
    [999.0, 759.0, 499.0, 259.0]
    """
    if not 1 <= steps <= points:
        raise InputError("steps", steps, f"the student knows {points} levels; take 1 to {points}")
    return solver_levels(schedule, points)[::-1][np.arange(steps) * points // steps]
