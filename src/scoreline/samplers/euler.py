"""Euler on the probability-flow ODE in the schedule's own time: x_s = x_t + (s - t) dx/dt.

On a flow schedule this is the sampler of rectified flow; on EDM's it is EDM's Euler; on VP it is the plain Euler that
exponential integrators are compared with. The step to the clean end, where some schedules have no derivative, jumps to
E[x_0|x_t]; for EDM and flow the two are the same.

Reference: Song et al. 2021 (score SDE), section 4.3; Liu et al. 2022.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule, spread

__all__ = ["Euler"]


@recorded
class Euler(Sampler):
    """Euler in time.

    Args:
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    order = 1
    per_image = True
    rising = True

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        t, s = times[:-1], times[1:]
        da, ds = schedule.rates(t)
        last = s <= schedule.clean
        h = s - t
        return Rows(times, a=1.0 * ~last, b=h * da * ~last + 1.0 * last, c=h * ds * ~last)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        return state._replace(x=denoiser(x, row.t).combine(spread(row.a, x), spread(row.b, x), spread(row.c, x)))
