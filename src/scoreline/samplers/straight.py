"""Sampling nearly straight flows: each step goes back to the noise that the run started from (2-rectified flow++).

In the time of flows, t = 0 data and t = 1 noise, with xhat = z_t - t v(z_t, t):
    default   z_s = z_t + (s - t) v = (1 - s) xhat + s (xhat + v)
    new       z_s = (1 - s) xhat + s z_1
Where paths are straight, xhat + v is z_1 and the two are the same. They are the same on any path with one step or two,
since the first step leaves from z_1 and the last one keeps nothing of it; from the third step on they differ, and on
bent paths the new rule solves no ODE: it asks the model where its own line from z_1 to xhat passes.
    Heun      v <- (v(z_t, t) + v(z', s))/2 with z' from the chosen rule, which is then applied from z_t; the last step
              is a plain one, so that N steps cost 2N - 1 evaluations

On any schedule xhat is D = E[x_0|x_t] and xhat + v the noise estimate eps:
    x_s = alpha_s D + sigma_s eps   (default, DDIM's step)      x_s = alpha_s D + sigma_s eps_1   (new)
with eps_1 the noise estimate at the start of the run: the start itself where no signal is left, and its noisy part
where a run starts in between.

Reference: Lee, Lin & Fanti 2024 (arXiv 2405.20320), section 4.5, and code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, arithmetic, spread

__all__ = ["RULES", "Straight", "straight_path", "straight_times"]

RULES = ("new", "default")


@recorded
class Straight(Sampler):
    """Sampler of 2-rectified flow++, on any schedule.

    Args:
        rule: "new" keeps the first noise; "default" follows the ODE (order 1, or 2 with `heun`).
        heun: average the velocities at both ends of a step, in the time of flows.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: the rule is unknown.
    """

    per_image = True

    def __init__(
        self,
        *,
        rule: str = "new",
        heun: bool = False,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if rule not in RULES:
            raise unknown_name("rule", rule, RULES)
        self.rule, self.heun = rule, heun
        if rule == "default":
            self.order, self.rising = 2 if heun else 1, True

    def cost(self, steps: int) -> int:
        return 2 * steps - 1 if self.heun else steps

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        t, s = times[:-1], times[1:]
        noisy = s > schedule.clean
        here = schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))  # the flow's time
        columns: dict[str, Any] = {"a": schedule.alpha(s), "b": schedule.sigma(s)}
        if self.heun:
            # An image that goes to the clean end takes the plain step; beside it others may take the second stage.
            columns |= {"up": 0.5 * here * noisy, "down": 0.5 * (1 - here) * noisy}
            columns |= {"at": arithmetic(t).where(noisy, s, t)}
            columns |= {"second": noisy if noisy.ndim == 1 else noisy.any(1).tolist()}
        return Rows(times, **columns)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        a, b = spread(row.a, x), spread(row.b, x)
        post = denoiser(x, row.t)
        first = None
        if self.rule == "new":
            first = state.memory[0] if state.memory else post.eps
        ahead = post.combine(0.0, a, b) if first is None else post.combine(0.0, a) + b * first
        if self.heun and row.second:
            # v - v' of the flow, v = eps - D: the mean of both changes D by tau/2 of it and eps by -(1 - tau)/2.
            gap = post.combine(0.0, -1.0, 1.0) - denoiser(ahead, row.at).combine(0.0, -1.0, 1.0)
            change = a * spread(row.up, x)
            if first is None:
                change = change - b * spread(row.down, x)
            ahead = ahead + change * gap
        return state._replace(x=ahead, memory=() if first is None else (first,))


def straight_times(steps: int, *, top: float = 1 - 1e-5) -> np.ndarray:
    """i/N for i = N ... 0 with the first replaced by `top`, (N+1,) float64: the released grid.

    Args:
        steps: N, 1 or more.
        top: the first time.

    >>> straight_times(2).tolist()
    [0.99999, 0.5, 0.0]
    """
    if steps < 1:
        raise InputError("steps", steps, "must be 1 or more")
    return np.append(top, np.arange(steps - 1, -1, -1) / steps)


@torch.no_grad()
def straight_path(
    velocity: Callable[[Tensor, float], Tensor],
    noise: Tensor,
    times: Sequence[float],
    *,
    rule: str = "new",
    heun: bool = False,
) -> list[Tensor]:
    """The states of a run as the released code makes them, N + 1 of (B, ...): the arithmetic alone, on a velocity.

    It starts from z_1 = (1 - 1e-5) noise and goes back to that same z_1; :class:`Straight` differs from it by 1e-5.

    Args:
        velocity: v(z, t), t = 1 for noise.
        noise: (B, ...) standard normal.
        times: falling from below 1 to 0, such as :func:`straight_times`, or a list of one's own.
        rule: "new" or "default".
        heun: see the top of this file; the last step is a plain one.

    Raises:
        InputError: the rule is unknown, or the times do not fall.
    """
    if rule not in RULES:
        raise unknown_name("rule", rule, RULES)
    if len(times) < 2 or not (np.diff(np.asarray(times, dtype=np.float64)) < 0).all():
        raise InputError("times", list(times), "must fall, from noise to data")
    start = z = noise * (1 - 1e-5)

    def ahead(v: Tensor, t: float, s: float) -> Tensor:
        return z + (s - t) * v if rule == "default" else (1 - s) * (z - t * v) + s * start

    path, steps = [z], len(times) - 1
    for i, (t, s) in enumerate(zip(list(times[:-1]), list(times[1:]))):
        v = velocity(z, float(t))
        if heun and i < steps - 1:
            v = (v + velocity(ahead(v, t, s), float(s))) / 2
        z = ahead(v, t, s)
        path.append(z)
    return path
