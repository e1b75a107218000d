"""Where the S^3 search looks: random solver schedules, known ones, mutation and crossover, Liu et al. 2024.

The operators and their probabilities are those of the released search (arXiv 2312.07243, official repository); every
schedule that leaves this file is feasible: times in order and distinct, orders within the visited points, no corrector
at the last step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.schedule import Schedule
from scoreline.samplers.known_solvers import KNOWN, Solver, known_solver, uniform
from scoreline.samplers.solver_schedule import SolverSchedule, Step

__all__ = ["UNIFORM", "SolverSpace"]

# Uniform solvers in Taylor form, beside the published ones: order and prediction, the same at every step.
UNIFORM = tuple(Solver(prediction, order) for prediction in ("data", "noise") for order in (1, 2, 3))
PUBLISHED = ("unipc-3", "unipc-2", "dpm-solver++3m", "dpm-solver++2m", "deis-2", "dpm-solver-2")
TRIES = 50


@dataclass(frozen=True)
class SolverSpace:
    """The schedules that a search may propose.

    Args:
        schedule: noise schedule of the model.
        nfe: budgets; every proposal costs one of them.
        clean: end at the clean image, by a step of first order. Otherwise the last time is a level in `end`, as in the
            paper, and the last step may be of any order.
        end: interval of the last time; None takes (t_min, 1.5 t_min). A table of levels ends at its first level.
        ems: allow DPM-Solver-v3's predictions; the model needs its statistics.
        average: allow the analytic first step from the mean image.
        joints: number of skip joints whose coefficients are searched; 0 leaves them alone.
        orders: probabilities of the Taylor orders 1, 2, ...
        change: probability of each decision of a step to be drawn again.
        time_noise: standard deviation of the factor on an inner time.
        scaling_noise: standard deviation of what is added to the linear scaling.
        skip_noise: mean and standard deviation of what is added to a skip coefficient.
        insert, delete: probabilities of one more and one less step.

    Raises:
        InputError: a budget below 2 or an end that is no level of the schedule.
    """

    schedule: Schedule
    nfe: tuple[int, ...]
    clean: bool = False
    end: tuple[float, float] | None = None
    ems: bool = False
    average: bool = False
    joints: int = 0
    orders: tuple[float, ...] = (0.2, 0.4, 0.3, 0.1)
    change: float = 0.3
    time_noise: float = 0.08
    scaling_noise: float = 0.03
    skip_noise: tuple[float, float] = (0.0, 0.02)
    insert: float = 0.2
    delete: float = 0.2

    def __post_init__(self) -> None:
        object.__setattr__(self, "nfe", tuple(sorted(set(self.nfe))))
        if not self.nfe or self.nfe[0] < 2:
            raise InputError("nfe", self.nfe, "give budgets of at least 2 evaluations")
        s = self.schedule
        if self.end is not None and not s.t_min <= self.end[0] <= self.end[1] < s.t_max:
            raise InputError("end", self.end, f"must be an interval of times from {s.t_min} to {s.t_max}")
        if s.known is not None and self.nfe[-1] > len(s.known) // 2:
            raise InputError("nfe", self.nfe[-1], f"the model knows {len(s.known)} levels only")

    # --- times ---------------------------------------------------------------------------------------------------

    @property
    def last(self) -> tuple[float, float]:
        """The interval of the last time."""
        s = self.schedule
        if self.clean:
            return s.clean, s.clean
        if s.known is not None:
            return s.t_min, s.t_min
        return self.end or (s.t_min, 1.5 * s.t_min)

    def _close(self, t: float, others: Sequence[float]) -> bool:
        gap = 0.5 if self.schedule.known is not None else 1e-6 * self.schedule.t_max
        return any(abs(t - other) <= gap for other in others)

    def _inner(self, t: float) -> bool:
        """Whether a time keeps its distance from both ends."""
        margin = 0.5 if self.schedule.known is not None else min(1e-3, 0.5 * self.schedule.t_min)
        return max(self.last) + margin < t < self.schedule.t_max - margin

    def _random_time(self, rng: np.random.Generator) -> float:
        """A time whose lambda is uniform between the ends; where an end has none, uniform in time."""
        s = self.schedule
        low, high = s.lam(np.array([s.t_max, s.t_min]))
        draw = rng.random()
        if np.isfinite(low):
            return float(s.snap(float(s.time(low + draw * (high - low)))))
        return float(s.snap(s.t_min + draw * (s.t_max - s.t_min)))

    # --- schedules -----------------------------------------------------------------------------------------------

    def grids(self, steps: int) -> list[np.ndarray]:
        """Times of `steps` steps on every usual grid of this noise schedule."""
        found: list[np.ndarray] = []
        for name in ("logsnr", "karras", "time", "quadratic"):
            count = steps if self.clean else steps + 1
            try:
                levels = np.asarray(lookup("grid", name)(self.schedule, count), dtype=np.float64)
            except InputError:
                continue
            if len(levels) != count or levels[0] != self.schedule.t_max:
                continue
            times = np.append(levels, self.schedule.clean) if self.clean else levels
            if not any(np.allclose(times, other) for other in found):
                found.append(times)
        return found

    def known(self, nfe: int, *, solvers: Sequence[Solver | str] = (*PUBLISHED, *UNIFORM)) -> list[SolverSchedule]:
        """The solvers that a search starts from, on every grid."""
        found: dict[SolverSchedule, None] = {}
        for solver in solvers:
            for times in self.grids(nfe):
                with np.errstate(divide="ignore"):
                    lam = self.schedule.lam(times)
                steps = known_solver(solver, lam) if isinstance(solver, str) else uniform(solver, lam)
                single = isinstance(solver, str) and KNOWN[solver].single > 1
                feasible = steps if single else self._feasible(times, steps)
                found.setdefault(SolverSchedule(tuple(times), feasible, None, self._unscaled))
        return list(found)

    def random(self, nfe: int, rng: np.random.Generator) -> SolverSchedule:
        """Random times and decisions of `nfe` evaluations."""
        afs = self._draw_afs(rng) if rng.random() < self.change else None
        count = nfe + (afs is not None)
        inner: list[float] = []
        tries = 0
        while len(inner) < count - 1:
            tries += 1
            # Few levels of a table lie where lambda changes fast; what is left then comes from anywhere.
            anywhere = self.schedule.snap(float(rng.uniform(max(self.last), self.schedule.t_max)))
            t = self._random_time(rng) if tries < 20 * count else float(anywhere)
            if self._inner(t) and not self._close(t, inner):
                inner.append(t)
        times = [self.schedule.t_max, *sorted(inner, reverse=True), float(rng.uniform(*self.last))]
        steps = [self._random_step(i, rng) for i in range(count)]
        return SolverSchedule(tuple(times), self._feasible(times, steps), afs, self._unscaled)

    @property
    def _unscaled(self) -> tuple[float, ...] | None:
        """The skip coefficients from which mutation starts, those of the network as it is."""
        return (1.0,) * self.joints if self.joints else None

    def _random_step(self, i: int, rng: np.random.Generator) -> Step:
        step = _with_order(Step(self._draw_prediction(rng)), self._draw_order(i, rng))
        step = _with_first(step, int(rng.integers(1, 3)), i)
        if step.order > 1 and rng.random() < self.change:
            step = replace(step, scaling="linear", linear=float(rng.normal(0, self.scaling_noise)))
        return replace(step, corrector="pseudo" if rng.random() < 0.5 else None)

    def _draw_order(self, i: int, rng: np.random.Generator) -> int:
        return min(int(rng.choice(len(self.orders), p=self.orders)) + 1, i + 1)

    def _draw_prediction(self, rng: np.random.Generator) -> str:
        kinds, p = (["noise", "data", "ems"], [0.3, 0.3, 0.4]) if self.ems else (["noise", "data"], [0.5, 0.5])
        return str(rng.choice(kinds, p=p))

    def _draw_afs(self, rng: np.random.Generator) -> str | None:
        kinds: list[Any] = [None, "zero", "average"] if self.average else [None, "zero"]
        p = [0.3, 0.3, 0.4] if self.average else [0.5, 0.5]
        return kinds[int(rng.choice(len(kinds), p=p))]

    def _feasible(self, times: Sequence[float] | np.ndarray, steps: Sequence[Step]) -> tuple[Step, ...]:
        """The decisions, where one is infeasible at its place the nearest feasible one."""
        with np.errstate(divide="ignore"):
            finite = np.isfinite(self.schedule.lam(np.asarray(times, dtype=np.float64)))
        out = []
        for i, step in enumerate(steps):
            first = 0 if finite[0] else 1
            usable = i + 1 - first
            top = max(usable, 1) if finite[i] and finite[i + 1] else 1
            reach = [step.start, *(p for extra in step.points for p in extra)]
            if step.order > top or min(reach) < -max(usable, 1) or (top == 1 and step.order > 1):
                step = _with_order(step, min(step.order, top))
            last = i == len(steps) - 1 or not finite[i + 1] or not finite[i]
            corrector = None if last else step.corrector
            scaling = None if step.order == 1 else step.scaling
            out.append(replace(step, corrector=corrector, scaling=scaling,
                               linear=step.linear if scaling == "linear" else 0.0,
                               corrector_scaling=step.corrector_scaling if corrector else None))  # fmt: skip
        return tuple(out)

    # --- operators -----------------------------------------------------------------------------------------------

    def mutate(self, parent: SolverSchedule, rng: np.random.Generator) -> SolverSchedule:
        """A feasible neighbour that costs one of the budgets.

        A step may come or go; every inner time is multiplied by 1 + N(0, time_noise^2), and every decision drawn again,
        each with its own probability; then the times are sorted and correctors made new from the steps.
        """
        for _ in range(TRIES):
            times, steps = list(parent.times), list(parent.steps)
            if rng.random() < self.insert:
                t = self._random_time(rng)
                if self._inner(t) and not self._close(t, times):
                    at = int(np.sum(np.array(times) > t))
                    times.insert(at, t)
                    steps.insert(at, self._random_step(at, rng))
            if rng.random() < self.delete and len(steps) > 2:
                at = int(rng.integers(1, len(steps)))
                del times[at], steps[at]
            times = self._moved(times, rng)
            steps = [self._changed(step, i, rng) for i, step in enumerate(steps)]
            afs = self._draw_afs(rng) if rng.random() < self.change else parent.afs
            skips = parent.skips
            if skips is not None and rng.random() < self.change:
                moved = np.array(skips) + rng.normal(*self.skip_noise, size=len(skips))
                skips = tuple(float(v) for v in np.clip(moved, 0, 1))
            child = SolverSchedule(tuple(times), self._feasible(times, steps), afs, skips)
            if child.nfe() in self.nfe:
                return child
        return parent

    def _moved(self, times: list[float], rng: np.random.Generator) -> list[float]:
        low = -1.0 if self.schedule.known is not None else 0.0
        out = list(times)
        for i in range(1, len(times) - 1):
            if rng.random() >= self.change:
                continue
            # A table counts from 0, so that its first level stays where it is unless one is added.
            t = (times[i] - low) * (1 + rng.normal(0, self.time_noise)) + low
            t = float(self.schedule.snap(float(np.clip(t, self.schedule.clean, self.schedule.t_max))))
            if self._inner(t) and not self._close(t, [v for j, v in enumerate(out) if j != i]):
                out[i] = t
        if rng.random() < self.change:
            out[-1] = float(rng.uniform(*self.last))
        return sorted(out, reverse=True)

    def _changed(self, step: Step, i: int, rng: np.random.Generator) -> Step:
        if rng.random() < self.change:
            order = self._draw_order(i, rng)
            if order != step.order:
                step = _with_order(step, order)
        if rng.random() < self.change:
            step = replace(step, prediction=self._draw_prediction(rng))
        if rng.random() < self.change and step.order > 1:
            step = replace(step, scaling="linear", linear=step.linear + float(rng.normal(0, self.scaling_noise)))
        if rng.random() < self.change:
            step = _with_first(step, int(rng.integers(1, 3)), i)
        if rng.random() < self.change:
            step = replace(step, corrector="pseudo" if rng.random() < 0.5 else None)
        return replace(step, corrector_scaling=None)

    def cross(
        self, a: SolverSchedule, b: SolverSchedule, rng: np.random.Generator, *, deep: float = 0.5
    ) -> SolverSchedule:
        """A child of two parents of equal length: times, orders with their points, predictions, correctors, first step
        and skips each from either; with probability `deep` predictions and orders are mixed step by step as well."""
        if len(a.steps) != len(b.steps):
            raise InputError("parents", (len(a.steps), len(b.steps)), "must have as many steps")

        def either(x: Any, y: Any) -> Any:
            return x if rng.random() < 0.5 else y

        times, solver, kind, corrector = (either(a, b) for _ in range(4))
        afs, skips = either(a, b).afs, either(a, b).skips
        mixed = rng.random() < deep
        steps = []
        for i in range(len(a.steps)):
            own = either(a, b).steps[i] if mixed else solver.steps[i]
            prediction = either(a, b).steps[i].prediction if mixed else kind.steps[i].prediction
            if own.scaling == "adams" and prediction == "ems":
                prediction = own.prediction
            steps.append(
                replace(own, prediction=prediction, corrector=corrector.steps[i].corrector, corrector_scaling=None)
            )
        return SolverSchedule(times.times, self._feasible(times.times, steps), afs, skips)


def _with_order(step: Step, order: int) -> Step:
    """The step at another order, from the newest point, its derivatives estimated from those before it."""
    extra = tuple(range(-2, -order - 1, -1))
    return replace(step, order=order, start=-1, points=(extra,) * (order - 1))


def _with_first(step: Step, points: int, visited: int) -> Step:
    """The step with this many points in the estimate of its first derivative, as far as there are."""
    if step.order == 1:
        return step
    others = [p for p in range(-1, -visited - 2, -1) if p != step.start]
    return replace(step, points=(tuple(others[:points]), *step.points[1:]))
