"""The contract of a sampler: settings and arithmetic, never the model.

`coefficients` does the paper's arithmetic once, in float64; `init` and `step` carry the state; calling the sampler runs
them in order. A step is a handful of tensor operations with ready-made numbers and never waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from scoreline.core.cost import Counted
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.noise import Draws
from scoreline.core.schedule import Schedule

__all__ = ["Rows", "Sample", "Sampler", "State", "check_shapes"]

Array = Any  # np.ndarray | Tensor


class Rows:
    """Coefficients of all steps; `rows["name"]` is a float64 column (S,), or (S, B) with per-image times.

    Iterating gives one namespace a step: `row.i` and one attribute a column, a float, or a (B,) tensor.
    """

    def __init__(self, times: Array, **columns: Array) -> None:
        self.times = times
        self.columns = {"t": times[:-1], "s": times[1:], **columns}
        self._steps = [self._row(i) for i in range(len(times) - 1)]

    def _row(self, i: int) -> SimpleNamespace:
        values = {}
        for name, column in self.columns.items():
            value = column[i]
            values[name] = value.item() if isinstance(value, np.generic) else value
        return SimpleNamespace(i=i, **values)

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter(self._steps)


class State(NamedTuple):
    """What passes from step to step: the image, its noise streams, and what multistep methods remember."""

    x: Tensor
    noise: Draws | None = None
    memory: tuple[Any, ...] = ()


@dataclass
class Sample:
    """Result of a sampler.

    Attributes:
        x: (B, ...) images at the last time.
        nfe: counted network evaluations per image (mean over the batch for adaptive solvers).
        nfe_max: the largest count of any image.
        times: the times visited, (S+1,) or (S+1, B).
        trajectory: the states at those times, when asked for.
    """

    x: Tensor
    nfe: float
    nfe_max: int
    times: Array
    trajectory: list[Tensor] | None = None


class Sampler:
    """Base of all samplers.

    Args:
        steps: number of noise levels at which the model is evaluated.
        nfe: budget of network evaluations per image; the largest run not above it is made. Give steps or nfe, not both.
        grid: name of the spacing of the levels (`scoreline.diffusion.grids`); None takes the schedule's own.

    Attributes:
        order: order of convergence on a smooth ODE, or None where noise is added.
        per_image: whether each image may have its own times.
        rising: whether it may run from clean to noisy (encoding).
        stochastic: whether it draws noise after the start.
        min_steps: the fewest steps with which `order` is reached at all.
        of_maps: whether it samples flow maps (`scoreline.core.flow_map`) and nothing else.
    """

    order: int | None = None
    per_image: bool = False
    rising: bool = False
    stochastic: bool = False
    min_steps: int = 1
    of_maps: bool = False

    def __init__(self, *, steps: int | None = None, nfe: int | None = None, grid: str | None = None) -> None:
        if steps is not None and nfe is not None:
            raise InputError("steps and nfe", (steps, nfe), "give one of them")
        for thing, value in (("steps", steps), ("nfe", nfe)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise InputError(thing, value, "must be a positive whole number")
        if steps is not None and steps < self.min_steps:
            raise InputError("steps", steps, f"{type(self).__name__} needs at least {self.min_steps}")
        if grid is not None:
            lookup("grid", grid)
        self.steps, self.nfe, self.grid = steps, nfe, grid

    def cost(self, steps: int) -> int:
        """Network evaluations of a run of `steps` levels that ends at the clean image, guidance not counted."""
        return steps

    def calibrated(self, denoiser: Denoiser) -> Self:
        """This sampler, or a copy that holds what was estimated on this model beforehand.

        Raises:
            InputError: there is no calibration for the model; how to make one is named.
        """
        return self

    def plan(self, evaluations: int = 1) -> int:
        """The number of steps that this sampler will make on a model that costs `evaluations` a call.

        Raises:
            InputError: neither steps nor nfe is set, or no run fits the budget.
        """
        if self.steps is not None:
            return self.steps
        if self.nfe is None:
            raise InputError("steps", None, f"{type(self).__name__} needs steps=, nfe= or times=")
        need = self.cost(self.min_steps) * evaluations
        if need > self.nfe:
            raise InputError("nfe", self.nfe, f"{type(self).__name__} needs at least {need} on this model")
        steps = self.min_steps
        while self.cost(steps + 1) * evaluations <= self.nfe:
            steps += 1
        return steps

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        """The levels of a run on `schedule`, (S+1,) float64, descending, the clean end last."""
        steps = self.plan(evaluations)
        levels = lookup("grid", self.grid or schedule.grid)(schedule, steps)
        return np.append(levels, schedule.clean)

    def coefficients(self, schedule: Schedule, times: Array) -> Rows:
        """The paper's arithmetic for all steps, in float64; subclasses define this."""
        raise NotImplementedError

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        """The state at the first time: pure noise of the schedule's start size, or a given `x` at that time."""
        if x is None:
            start = rows.times[0]
            std = denoiser.schedule.prior(float(start) if np.ndim(start) == 0 else start)
            draw = noise.normal()
            x = draw * (std.to(draw).view(-1, *[1] * (draw.dim() - 1)) if isinstance(std, Tensor) else std)
        return State(x, noise)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        """From row.t to row.s; subclasses define this."""
        raise NotImplementedError

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Draws,
        *,
        times: Array | None = None,
        x: Tensor | None = None,
        trajectory: bool = False,
    ) -> Sample:
        """Sample a batch.

        Args:
            denoiser: the model, with its conditions bound by `given`.
            noise: the images' streams, `Noise(seed).at(indices, denoiser.shape)`.
            times: explicit levels (S+1,), the start first and the end last; overrides steps, nfe and grid.
            x: start from this state at times[0] instead of from pure noise.
            trajectory: keep every state.

        Returns:
            The images, the counted evaluations and the times visited.

        Raises:
            InputError: the times are not monotone, leave the schedule, or do not fit this sampler.
        """
        ready = self.calibrated(denoiser)
        if ready is not self:
            return ready(denoiser, noise, times=times, x=x, trajectory=trajectory)
        schedule = denoiser.schedule
        check_shapes(denoiser, noise, x)
        grid = self.times(schedule, denoiser.evaluations) if times is None else times
        grid = self._checked(denoiser, grid, noise)
        rows = self.coefficients(schedule, grid)
        counted = Counted(denoiser)
        with torch.no_grad():
            state = self.init(counted, noise, rows, x)
            path = [state.x] if trajectory else None
            for row in rows:
                state = self.step(counted, state, row)
                if path is not None:
                    path.append(state.x)
        return Sample(state.x, counted.nfe, counted.nfe, grid, path)

    def _checked(self, denoiser: Denoiser, times: Array, noise: Draws) -> Array:
        who, batch = type(self).__name__, len(noise)
        if np.ndim(times) not in (1, 2):
            raise InputError("times", times, "give a list of times, (S+1,), or one for each image, (S+1, B)")
        if not isinstance(times, Tensor):
            times = np.asarray(times, dtype=np.float64)
        elif times.dim() == 1:
            times = times.double().cpu().numpy()
        if len(times) < 2:
            raise InputError("times", len(times), "give at least a start and an end")
        if times.ndim == 2:
            if not self.per_image:
                raise InputError("times", tuple(times.shape), f"{who} takes one list of times for the whole batch")
            if times.shape[1] != batch:
                raise InputError("times", tuple(times.shape), f"the second dimension must be the batch, {batch}")
            times = torch.as_tensor(times, dtype=torch.float64).to(noise.device)
        denoiser.check(times)
        clean = denoiser.schedule.clean
        if bool((times[:-1] <= clean).any()):
            mend = f"no model can be asked at the clean end, {clean}; start an encoding from t_min"
            raise InputError("time", clean, mend)
        # Which way the run goes is judged on the host, once, before the first evaluation.
        gaps = np.diff(times.cpu().numpy() if isinstance(times, Tensor) else times, axis=0)
        if not ((gaps < 0).all() or (self.rising and (gaps > 0).all())):
            way = "strictly decreasing or increasing" if self.rising else "strictly decreasing"
            raise InputError("times", [float(v) for v in np.ravel(times)[:6]], f"{who} needs {way} times")
        return times

    def __repr__(self) -> str:
        # What follows from the arguments, or was taken over from a sampler inside, is no argument.
        hidden = {"order", "per_image", "rising", "stochastic", "min_steps"}
        shown = {k: v for k, v in vars(self).items() if v is not None and k not in hidden and not k.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in shown.items())})"


def check_shapes(denoiser: Denoiser, noise: Draws, x: Tensor | None = None) -> None:
    """Refuse noise, or a start x, of another shape than the model's images.

    Args:
        denoiser: the model.
        noise: the streams of B images.
        x: (B, *shape) where the run starts, or None.

    Raises:
        InputError: a shape does not fit.
    """
    if noise.shape != tuple(denoiser.shape):
        raise InputError("noise shape", noise.shape, f"the model makes {tuple(denoiser.shape)}")
    if x is not None and x.shape != (len(noise), *noise.shape):
        raise InputError("x", tuple(x.shape), f"needs shape {(len(noise), *noise.shape)}")
