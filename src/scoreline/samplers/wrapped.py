"""A sampler around a sampler: what skip-tuning, time shifts, stored plans and inpainting have in common."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
from torch import Tensor

from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule

__all__ = ["Wrapped"]


class Wrapped(Sampler):
    """Base of samplers around one other; everything that a subclass does not change is the inner one's.

    Args:
        of: the sampler inside, a name or an object.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: the inner sampler chooses its own steps, between which nothing can be changed.
    """

    def __init__(
        self, of: str | Sampler, *, steps: int | None = None, nfe: int | None = None, grid: str | None = None
    ) -> None:
        inner: Sampler = lookup("sampler", of)() if isinstance(of, str) else of
        self.of = of
        self.min_steps = inner.min_steps
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if type(inner).__call__ is not Sampler.__call__ and getattr(inner, "adaptive", True):
            raise InputError("of", type(inner).__name__, "makes steps of its own; use a sampler with a fixed grid")
        self._inner = copy.copy(inner)
        self._inner.steps, self._inner.nfe, self._inner.grid = steps, nfe, grid or inner.grid
        self.order, self.stochastic = inner.order, inner.stochastic
        self.per_image, self.rising = inner.per_image, inner.rising

    def cost(self, steps: int) -> int:
        return self._inner.cost(steps)

    def plan(self, evaluations: int = 1) -> int:
        return self._inner.plan(evaluations)

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        return self._inner.times(schedule, evaluations)

    def calibrated(self, denoiser: Denoiser) -> Self:
        ready = self._inner.calibrated(denoiser)
        if ready is self._inner:
            return self
        other = copy.copy(self)
        other._inner = ready
        return other

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        return self._inner.coefficients(schedule, times)

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        return self._inner.init(denoiser, noise, rows, x)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        return self._inner.step(denoiser, state, row)
