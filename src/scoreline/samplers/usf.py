"""USF: the unified sampling framework, Liu et al. 2024 (arXiv 2312.07243): one sampler that runs any solver schedule.

What every step does is decided by a :class:`~scoreline.samplers.solver_schedule.SolverSchedule`; the formulas of a
step are in `scoreline.samplers.solver_step`. At point i of the run
    F_i = network(x_i, t_i);   if the step to i is corrected: x_i <- that step again, with F_i;   x_{i+1} = next step
so that a pseudo corrector costs nothing, and an implicit one asks the network again at the corrected x_i.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import describe, recorded
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.names import lookup
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sample, Sampler, State
from scoreline.core.schedule import Schedule
from scoreline.nn.plan import Plan
from scoreline.samplers.calibrations import find
from scoreline.samplers.exponential import LeastSteps
from scoreline.samplers.known_solvers import KNOWN, known_solver, singlestep_groups
from scoreline.samplers.model_statistics import ModelStatistics
from scoreline.samplers.solver_schedule import SolverSchedule, Step, read_plans
from scoreline.samplers.solver_step import Sum, ems_weights, kept, needed, update_weights

__all__ = ["USF"]

# The forms in which a network's answer is stored: the clean image, the noise, and DPM-Solver-v3's f.
FORMS = ("data", "noise", "ems")


@recorded
class USF(Sampler):
    """The unified sampling framework: any solver schedule, one evaluation a step.

    Args:
        plan: file of searched or written solver schedules (or its content); the costliest that fits nfe, or the one
            with this many steps, is run.
        like: a published solver in place of a plan: ddim, dpm-solver++2m, deis-2, unipc-3, ...; unipc-2 unless a plan
            is given.
        variant: "paper", or "released" for what the authors' code does: implicit correctors never ask the network
            again, the analytic first step's clean image is made with eps := x_T, and the third-order DPM-Solvers halve
            the second derivative.
        statistics: file of the model's statistics for "ems" predictions; None finds the calibration of the model.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`; a plan brings its own times.

    Raises:
        InputError: both plan and like, an unknown solver, an infeasible plan.

    Reference:
        Liu et al. 2024, A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models.
    """

    min_steps: int = LeastSteps()  # type: ignore[assignment]

    def __init__(
        self,
        *,
        plan: str | Mapping[str, Any] | None = None,
        like: str | None = None,
        variant: str = "paper",
        statistics: str | None = None,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        if plan is not None and like is not None:
            raise InputError("plan and like", (str(plan), like), "give one of them")
        if variant not in ("paper", "released"):
            raise unknown_name("variant", variant, ("paper", "released"))
        if like is not None and like not in KNOWN:
            raise unknown_name("solver", like, KNOWN)
        self.variant, self.statistics = variant, statistics
        self.like = like or ("unipc-2" if plan is None else None)
        self._plans: list[SolverSchedule] = []
        self._mean: Any = None
        self._schedule: Any = None
        self._statistics: ModelStatistics | None = None
        if plan is not None:
            if grid is not None:
                raise InputError("grid", grid, "a plan brings its own times; leave it out")
            content = read_plans(plan)
            self._plans = [SolverSchedule.from_dict(each["plan"]) for each in content["plans"]]
            self._mean, self._schedule = content.get("mean"), content.get("schedule")
            # A description must stand for these schedules, whatever becomes of the file.
            self._arguments = {**getattr(self, "_arguments", {}), "plan": content}
            if self._mean is None and any(p.afs == "average" for p in self._plans):
                raise InputError("plan", None, "afs average needs the mean image of the training set in the file")
            self.order = 1
        else:
            solver = KNOWN[str(self.like)]
            released = variant == "released" and str(self.like) in ("dpm-solver-3m", "dpm-solver++3m")
            self.order = 2 if released else solver.convergence
        super().__init__(steps=steps, nfe=nfe, grid=grid)

    def _least(self) -> int:
        if self._plans:
            return min(len(p.steps) for p in self._plans)
        solver = KNOWN[str(self.like)]
        # The clean end is reached by a step of first order, and the first steps are of a lower order too.
        return solver.order + (solver.order > 1) if solver.single == 1 else solver.single + 1

    # --- which run is made ---------------------------------------------------------------------------------------

    def _chosen(self, evaluations: int = 1) -> SolverSchedule:
        """The plan that fits steps or nfe."""
        costs = {len(p.steps): p.nfe(variant=self.variant) for p in self._plans}
        if self.steps is not None:
            for each in self._plans:
                if len(each.steps) == self.steps:
                    return each
            raise InputError("steps", self.steps, f"the plans have {', '.join(map(str, sorted(costs)))} steps")
        if self.nfe is None:
            if len(self._plans) == 1:
                return self._plans[0]
            held = ", ".join(map(str, sorted(costs.values())))
            raise InputError("nfe", None, f"the file holds plans of {held} evaluations; say which")
        fitting = [p for p in self._plans if p.nfe(variant=self.variant) * evaluations <= self.nfe]
        if not fitting:
            least = min(costs.values()) * evaluations
            raise InputError("nfe", self.nfe, f"the cheapest plan needs {least} on this model")
        return max(fitting, key=lambda p: p.nfe(variant=self.variant))

    def _made(self, schedule: Schedule, times: np.ndarray) -> SolverSchedule:
        """The solver schedule of a run through `times`."""
        if self.like is not None:
            return SolverSchedule(tuple(times), known_solver(self.like, schedule.lam(times), variant=self.variant))
        fitting = [p for p in self._plans if len(p.steps) == len(times) - 1]
        if not fitting:
            have = ", ".join(str(len(p.times)) for p in self._plans)
            raise InputError("times", len(times), f"the plan needs {have} of them")
        best = min(fitting, key=lambda p: np.abs(np.array(p.times) - times).max())
        return SolverSchedule(tuple(times), best.steps, best.afs, best.skips)

    def cost(self, steps: int) -> int:
        for plan in self._plans:
            if len(plan.steps) == steps:
                return plan.nfe(variant=self.variant)
        return steps

    def plan(self, evaluations: int = 1) -> int:
        return len(self._chosen(evaluations).steps) if self._plans else super().plan(evaluations)

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        if self._plans:
            self._fits(schedule)
            return np.array(self._chosen(evaluations).times)
        solver = KNOWN[str(self.like)]
        if solver.single == 1:
            return super().times(schedule, evaluations)
        return self._singlestep_times(schedule, self.plan(evaluations), solver.single)

    def _singlestep_times(self, schedule: Schedule, steps: int, size: int) -> np.ndarray:
        """The grid gives the ends of the groups; inside a group lambda is even, r = 1/2 and 1/3, 2/3."""
        finite = [bool(np.isfinite(schedule.lam(schedule.t_max))), *[True] * (steps - 1), False]
        groups = singlestep_groups(steps, size, finite)[:-1]
        ends = np.asarray(lookup("grid", self.grid or schedule.grid)(schedule, len(groups) + 1))
        lam = schedule.lam(ends)
        levels = [ends[0]]
        for i, count in enumerate(groups):
            inner = lam[i] + np.arange(1, count) / count * (lam[i + 1] - lam[i]) if count > 1 else np.empty(0)
            levels += [*np.atleast_1d(schedule.snap(schedule.time(inner))), ends[i + 1]]
        if (np.diff(levels) >= 0).any():
            raise InputError("steps", steps, "two levels fall together; use fewer steps or another grid")
        return np.append(levels, schedule.clean)

    def _fits(self, schedule: Schedule) -> None:
        if self._schedule is not None and describe(schedule) != self._schedule:
            made = f"{self._schedule.get('name')} {self._schedule.get('args')}"
            raise InputError("plan", describe(schedule)["name"], f"was made for another noise schedule, {made}")

    def calibrated(self, denoiser: Denoiser) -> Self:
        """A copy with the one plan that is run, and the model's statistics where the plan needs them."""
        if len(self._plans) > 1:
            ready = copy.copy(self)
            ready._plans = [self._chosen(denoiser.evaluations)]
            return ready.calibrated(denoiser)
        ems = any(step.prediction == "ems" for plan in self._plans for step in plan.steps)
        if ems and self._statistics is None:
            return self.using(find("dpm-solver-v3", denoiser, self.statistics))
        return self

    def using(self, statistics: ModelStatistics) -> Self:
        """A copy that holds these statistics of the model, for plans with "ems" predictions."""
        ready = copy.copy(self)
        ready._statistics = statistics
        return ready

    # --- the arithmetic ------------------------------------------------------------------------------------------

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        times = np.asarray(times, dtype=np.float64)
        if self._plans:
            self._fits(schedule)
        plan = self._made(schedule, times)
        with np.errstate(divide="ignore"):
            lam = schedule.lam(times)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)

        def sum_of(step: Step, i: int, end: int) -> Sum:
            """The step from the visited points 0 ... i to times[end]."""
            start, seen = i + 1 + step.start, [*range(i + 1), end]
            clean = step.prediction == "ems" and np.isposinf(lam[end])
            if step.order == 1 and (np.isneginf(lam[start]) or clean):
                # Without signal the noise says nothing of the image; statistics end before the clean end.
                step = Step("data", 1, step.start)
            if step.prediction == "ems":
                if self._statistics is None:
                    mend = "ems predictions need them; run `scoreline calibrate MODEL --for dpm-solver-v3`"
                    raise InputError("statistics of the model", None, mend)
                A, on, constant = ems_weights(step, lam[seen], alpha[seen], self._statistics)
                return Sum("ems", i - start, A, {i - p: w for p, w in on.items()}, constant)
            a, w = update_weights(step, lam[seen], alpha[seen], sigma[seen])
            used = {start, *(i + 1 + p for extra in step.points for p in extra)}
            return Sum(step.prediction, i - start, float(a), {i - p: float(w[p]) for p in sorted(used, reverse=True)})

        steps = plan.steps
        predictors = [sum_of(step, i, i + 1) for i, step in enumerate(steps)]
        # A step is corrected at the start of the next one, when the network has answered at its end.
        correctors = [
            None,
            *(sum_of(s.corrected(), i + 1, i + 1) if s.corrector else None for i, s in enumerate(steps[:-1])),
        ]
        sums = [[p] if c is None else [p, c] for p, c in zip(predictors, correctors)]
        implicit = [False, *(s.corrector == "implicit" and self.variant == "paper" for s in steps[:-1])]
        first = np.arange(len(steps)) == 0
        rows = Rows(
            times,
            **_table(predictors, ""),
            **_table(correctors, "corrector_"),
            implicit=np.array(implicit),
            keep=np.array(kept(sums)),
            **{f"needs_{form}": needed(form, sums) for form in FORMS},
            zero=first & (plan.afs == "zero"),
            average=first & (plan.afs == "average"),
            alpha=alpha[:-1],
            sigma=sigma[:-1],
        )
        for row, predictor, corrector in zip(rows, predictors, correctors):
            row.predictor, row.corrector = predictor, corrector
            row.l = self._statistics.at([lam[row.i]])[0][0] if row.needs_ems and self._statistics is not None else None
        return rows

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        state = super().init(denoiser, noise, rows, x)
        for row in rows:
            row.sums = [each.on(state.x) if each is not None else None for each in (row.predictor, row.corrector)]
            row.l_here = None if row.l is None else row.l.to(state.x)
        return state

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        predictor, corrector = row.sums
        post = self._analytic(x, row) if row.zero or row.average else denoiser(x, row.t)
        points = ((x, _answers(post, row)), *state.memory)
        if corrector is not None:
            x = corrector.of(points)
            answers = _answers(denoiser(x, row.t), row) if row.implicit else points[0][1]
            points = ((x, answers), *state.memory)
        return State(predictor.of(points), state.noise, points[: int(row.keep)])

    def _analytic(self, x: Tensor, row: SimpleNamespace) -> Posterior:
        """What is taken for the answer at the first level, where the network is not asked."""
        if row.average:
            mean = torch.as_tensor(self._mean, dtype=x.dtype).to(x.device).expand_as(x)
            return Posterior.of_mean(x, mean, row.alpha, row.sigma)
        # The released code makes eps from x_0 = 0, but x_0 from eps = x_T.
        clean = ((1 - row.sigma) / row.alpha, 0.0) if self.variant == "released" else (0.0, 0.0)
        return Posterior(x, x, mean=clean, eps=(1 / row.sigma, 0.0), sigma=row.sigma)

    def __call__(
        self,
        denoiser: Denoiser,
        noise: Draws,
        *,
        times: Any = None,
        x: Tensor | None = None,
        trajectory: bool = False,
    ) -> Sample:
        skips = self._chosen(denoiser.evaluations).skips if self._plans and times is None else None
        if skips is not None:
            denoiser = denoiser.under(Plan(skip_scale=skips))
        return super().__call__(denoiser, noise, times=times, x=x, trajectory=trajectory)


def _answers(post: Posterior, row: SimpleNamespace) -> dict[str, Tensor]:
    """The network's answer in the forms in which later sums want it."""
    out = {}
    if row.needs_data:
        out["data"] = post.mean
    if row.needs_noise:
        out["noise"] = post.eps
    if row.needs_ems:
        out["ems"] = post.combine(-row.l_here / row.alpha, 0.0, row.sigma / row.alpha)
    return out


def _table(sums: Sequence[Sum | None], prefix: str) -> dict[str, Any]:
    """Coefficients of all steps: a (S,) and w (S, S), point 0 the newest; NaN where they are tensors (ems)."""
    a, w = np.zeros(len(sums)), np.zeros((len(sums), len(sums)))
    for i, each in enumerate(sums):
        if each is not None:
            a[i] = each.a if each.constant is None else np.nan
            for point, weight in each.w.items():
                w[i, point] = weight if each.constant is None else np.nan
    return {f"{prefix}a": a, f"{prefix}w": w}
