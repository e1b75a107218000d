"""Sampling with a flow map: jump, put noise back, jump again.

From level t to the next level t' with gamma in [0, 1]:
    s = end + sqrt(1 - gamma^2) (t' - end),   x <- G(x, t, s),   x <- renoise(x, s, t')
gamma = 1 is multistep sampling of consistency models (s = end), gamma = 0 long deterministic jumps (s = t', no noise).
The last jump goes to the end and takes no noise.

Reference: Song et al. 2023, algorithm 1; Kim et al. 2024 (CTM), algorithm 3, whose s = sqrt(1 - gamma^2) t' is meant
with the end at 0.
"""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.flow_map import FlowMap
from scoreline.core.names import lookup
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, spread

__all__ = ["Jumps"]


@recorded
class Jumps(Sampler):
    """Sample a flow map in as many evaluations as steps.

    Args:
        gamma: how much of the way is made of fresh noise; None takes 0 where the map jumps anywhere, else 1.
        steps, nfe: see :class:`scoreline.core.sampler.Sampler`.
        grid: spacing of the levels; None takes the map's own.

    Raises:
        InputError: gamma leaves [0, 1], the model is no flow map, or it jumps to its end only and gamma is below 1.
    """

    of_maps = True

    def __init__(
        self,
        *,
        gamma: float | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if gamma is not None and not 0 <= gamma <= 1:
            raise InputError("gamma", gamma, "must lie in [0, 1]")
        self.gamma = gamma
        self.stochastic = gamma is None or gamma > 0
        self._map: FlowMap | None = None

    def calibrated(self, denoiser: Denoiser) -> Self:
        if not isinstance(denoiser, FlowMap):
            mend = "jumps needs a flow map (a consistency or trajectory model); take another sampler, such as heun"
            raise InputError("model", type(denoiser).__name__, mend)
        if self._map is denoiser:
            return self
        gamma = (0.0 if denoiser.anywhere else 1.0) if self.gamma is None else self.gamma
        if gamma < 1 and not denoiser.anywhere:
            raise InputError("gamma", gamma, "this model jumps to its end only; gamma must be 1")
        ready = copy.copy(self)
        ready._map, ready.gamma, ready.stochastic = denoiser, gamma, gamma > 0
        return ready

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        if self._map is None or self.grid is not None:
            end = schedule.t_min if self._map is None else self._map.end
            return np.append(self._spaced(schedule, self.plan(evaluations), end), schedule.clean)
        return np.append(self._map.levels(self.plan(evaluations)), schedule.clean)

    def _spaced(self, schedule: Schedule, steps: int, end: float) -> np.ndarray:
        """Levels by the grid's name; one that stops at the end itself, where a jump stands still, takes one more."""
        grid = lookup("grid", self.grid or schedule.grid)
        levels = np.asarray(grid(schedule, steps))
        return levels if levels[-1] > end else np.asarray(grid(schedule, steps + 1))[:steps]

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        end = schedule.t_min if self._map is None else self._map.end
        gamma = 1.0 if self.gamma is None else self.gamma
        following = np.maximum(np.asarray(times[1:], dtype=np.float64), end)
        # Without noise the goal is the next level to the last bit: a rounded one would call for a little noise.
        goal = end + np.sqrt(1 - gamma**2) * (following - end) if gamma else following.copy()
        goal[-1] = end
        if schedule.known is not None:
            goal = np.asarray(schedule.snap(goal))
        ratio, std = schedule.transition(goal, following)
        std = np.where(following > goal, std, 0.0)
        ratio[-1], std[-1] = 1.0, 0.0  # a run that ends above `end` is refused by the check of its times
        return Rows(times, goal=goal, ratio=ratio, std=std)

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        if x is None and self._map is not None and np.ndim(rows.times[0]) == 0:
            return State(noise.normal() * self._map.prior(float(rows.times[0])), noise)
        return super().init(denoiser, noise, rows, x)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = denoiser.jump(state.x, row.t, row.goal)  # type: ignore[operator]
        if row.std > 0:
            assert state.noise is not None
            x = x * row.ratio + state.noise.normal(row.i + 1) * spread(row.std, x)
        return state._replace(x=x)
