"""Dormand-Prince 5(4) on the probability-flow ODE: the black-box solver of score SDE, adaptive or with fixed steps.

The ODE is integrated in the angle phi = atan2(sigma, alpha), where it is du/dphi = cos(phi) eps - sin(phi) E[x_0|x_t]
on every schedule (:mod:`scoreline.diffusion.sde`). With `rtol` every image chooses its own steps until the local error
is below atol + rtol |u|; with `steps` or `nfe` all images take the steps of the grid. The step to the clean end, where
no model can be asked, jumps to E[x_0|x_t].

Reference: Song et al. 2021 (arXiv 2011.13456), section 4.3 and appendix D; Dormand & Prince 1980.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sample, Sampler, State, check_shapes
from scoreline.core.schedule import Schedule, spread
from scoreline.diffusion.dormand_prince import A, B, C, check_tolerances, integrate
from scoreline.diffusion.sde import angle, bound_inside, flow_slope, radius, time_at

__all__ = ["RK45"]


@recorded
class RK45(Sampler):
    """Fifth order; adaptive with `rtol`, else six evaluations for every step of the grid.

    Args:
        rtol: relative tolerance of an adaptive run, 1e-5 in the paper; nothing takes fixed steps.
        atol: its absolute tolerance, in units of data of variance 1; nothing takes rtol.
        steps, nfe, grid: of a run with fixed steps, see :class:`scoreline.core.sampler.Sampler`. An adaptive run has
            no fixed cost and takes none of them.

    Raises:
        InputError: a tolerance is out of range, or steps are asked for beside it.
    """

    order: int | None = 5
    per_image = True
    rising = True
    min_steps = 2

    def __init__(
        self,
        *,
        rtol: float | None = None,
        atol: float | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if rtol is None and atol is not None:
            raise InputError("atol", atol, "belongs to an adaptive run; give rtol too")
        if rtol is not None:
            check_tolerances(rtol, rtol if atol is None else atol)
            for thing, value in (("nfe", nfe), ("steps", steps), ("grid", grid)):
                if value is not None:
                    mend = "with rtol the run is adaptive and chooses its steps; leave out one of the two"
                    raise InputError(thing, value, mend)
        self.rtol, self.atol = rtol, atol

    @property
    def adaptive(self) -> bool:
        """Whether every image chooses its own steps, so that the cost is known only afterwards."""
        return self.rtol is not None

    def cost(self, steps: int) -> int:
        return 6 * steps - 5

    def plan(self, evaluations: int = 1) -> int:
        if self.steps is None and self.nfe is None:
            raise InputError("steps", None, "RK45 needs rtol= (adaptive, 1e-5 in the paper), or steps=, nfe= or times=")
        return super().plan(evaluations)

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        if self.adaptive:
            return np.array([schedule.t_max, schedule.t_min, schedule.clean])
        return super().times(schedule, evaluations)

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        xp: Any = torch if isinstance(times, Tensor) else np
        t, s = times[:-1], times[1:]
        # An image on its way to the clean end stands still in all stages but the first.
        ends = s <= schedule.clean
        here, there = angle(schedule, t), angle(schedule, xp.where(ends, t, s))
        h = there - here
        columns = {"h": h, "stages": ~ends if ends.ndim == 1 else (~ends).any(1).tolist()}
        columns |= {"r": radius(schedule, t), "cos": xp.cos(here), "sin": xp.sin(here), "jump": 1.0 * ends}
        columns |= {"end": xp.where(ends, 0.0, 1.0) * radius(schedule, s)}
        for i in range(1, 6):
            phi = here + C[i] * h
            at = xp.where(ends, t, s) if C[i] == 1 else xp.where(ends, t, time_at(schedule, phi))
            columns |= {f"t{i}": at, f"r{i}": radius(schedule, at), f"cos{i}": xp.cos(phi), f"sin{i}": xp.sin(phi)}
        return Rows(times, **columns)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        post = denoiser(x, row.t)
        if not row.stages:
            return state._replace(x=post.mean)
        u, h = x / spread(row.r, x), spread(row.h, x)
        ks = [post.combine(0.0, spread(-row.sin, x), spread(row.cos, x))]
        for i in range(1, 6):
            stage = u + h * _sum(A[i], ks)
            r, t, cos, sin = (getattr(row, f"{name}{i}") for name in ("r", "t", "cos", "sin"))
            post_i = denoiser(stage * spread(r, x), t)
            ks.append(post_i.combine(0.0, spread(-sin, x), spread(cos, x)))
        ahead = (u + h * _sum(B, ks)) * spread(row.end, x)
        if isinstance(row.jump, Tensor):
            ahead = ahead + post.combine(0.0, spread(row.jump, x))
        return state._replace(x=ahead)

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Draws,
        *,
        times: Any = None,
        x: Tensor | None = None,
        trajectory: bool = False,
    ) -> Sample:
        if not self.adaptive:
            return super().__call__(denoiser, noise, times=times, x=x, trajectory=trajectory)
        return self._adaptive(denoiser, noise, times, x, trajectory)

    def _adaptive(self, denoiser: Denoiser, noise: Draws, times: Any, x: Tensor | None, trajectory: bool) -> Sample:
        schedule = denoiser.schedule
        check_shapes(denoiser, noise, x)
        grid = self._checked(denoiser, self.times(schedule) if times is None else times, noise)
        if isinstance(grid, Tensor):
            raise InputError("times", tuple(grid.shape), "an adaptive run takes one list of times for the whole batch")
        assert self.rtol is not None
        atol = self.rtol if self.atol is None else self.atol
        cond, whole = denoiser._given, bound_inside(denoiser)
        spent = torch.zeros(len(noise), dtype=torch.int64, device=noise.device)

        def slope(u: Tensor, phi: Tensor, rows: Tensor | None) -> Tensor:
            given = cond if cond is None or rows is None else cond[rows]
            return flow_slope(denoiser, u, phi, given)

        with torch.no_grad():
            state = self.init(denoiser, noise, Rows(grid), x).x
            path = [state] if trajectory else None
            for t, s in zip(grid[:-1].tolist(), grid[1:].tolist()):
                if s <= schedule.clean:
                    state = denoiser(state, t).mean
                    spent += 1
                else:
                    u = state / float(radius(schedule, t))
                    ends = angle(schedule, t), angle(schedule, s)
                    solved = integrate(slope, u, *ends, rtol=self.rtol, atol=atol, compact=not whole)
                    state = solved.y * float(radius(schedule, s))
                    spent += solved.evaluations
                if path is not None:
                    path.append(state)
        spent *= denoiser.evaluations
        return Sample(state, float(spent.double().mean()), int(spent.max()), grid, path)


def _sum(weights: tuple[float, ...], ks: list[Tensor]) -> Tensor:
    total = ks[0] * weights[0]
    for weight, k in zip(weights[1:], ks[1:]):
        if weight:
            total = total + k * weight
    return total
