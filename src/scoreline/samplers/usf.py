"""USF: the unified sampling framework, Liu et al. 2024 (arXiv 2312.07243): one sampler that runs any solver schedule.

With h = lambda_t - lambda_s, derivatives with respect to lambda at the start point s and a Taylor order q:
    noise:  x_t = alpha_t/alpha_s x_s - sigma_t sum_{k<q} h^{k+1} phi_{k+1}(h)  eps^(k)
    data:   x_t = sigma_t/sigma_s x_s + alpha_t sum_{k<q} h^{k+1} phi_{k+1}(-h) x0^(k)
    F^(k) = R_k(h) sum_p a_p (F_p - F_s),  sum_p a_p delta_p^i/i! = [i = k],  delta_p = lambda_p - lambda_s
Everything is linear in the stored states and network answers, so a step is one sum with ready-made weights. What every
step does is decided by a :class:`~scoreline.samplers.solver_schedule.SolverSchedule`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple, Self

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
from scoreline.samplers.exponential import difference_weights, phi, taylor_weights
from scoreline.samplers.solver_schedule import (
    KNOWN,
    SolverSchedule,
    Step,
    known_solver,
    read_plans,
    singlestep_groups,
)

__all__ = ["USF", "derivative_scales", "derivative_weights", "update_weights"]

OUTPUTS = ("data", "noise", "ems")


def derivative_scales(
    scaling: str | None, h: float, order: int, *, prediction: str = "data", linear: float = 0.0
) -> Any:
    """R_k(h), the factors on the derivatives 1 ... q-1; 1 where nothing is scaled.

    With z = h for noise and -h for data prediction, R_1 is
        linear: 1 + c h (h in both);  unipc-bh1: (z^2/2)/(e^z - 1 - z);  unipc-bh2 = dpmsolver-2:
        (z/2)(e^z - 1)/(e^z - 1 - z);  0.5exp, -0.5exp: 1 +- (e^z - 1)/2.
    "adams" gives all derivatives the weights of Adams-Bashforth, R_k = phi_1(z)/((k+1)! phi_{k+1}(z)), as PNDM has
    them; "dpmsolver-3-released" halves the second derivative, as the released third-order DPM-Solvers do.

    Args:
        scaling: one of `SCALINGS`, or None.
        h: lambda_t - lambda_s.
        order: Taylor order q.
        prediction: "noise" or "data" ("ems" takes h like noise).
        linear: c.

    Returns:
        (q-1,) factors.
    """
    scales = np.ones(max(order - 1, 0))
    if scaling is None or order < 2:
        return scales
    z = -h if prediction == "data" else h
    if scaling == "adams":
        return np.array([phi(1, z) / (math.factorial(k + 1) * phi(k + 1, z)) for k in range(1, order)])
    if scaling == "dpmsolver-3-released":
        scales[1:2] = 0.5
        return scales
    scales[0] = {
        "linear": 1 + linear * h,
        "unipc-bh1": 0.5 / phi(2, z),
        "unipc-bh2": 0.5 * phi(1, z) / phi(2, z),
        "dpmsolver-2": 0.5 * phi(1, z) / phi(2, z),
        "0.5exp": 1 + 0.5 * math.expm1(z),
        "-0.5exp": 1 - 0.5 * math.expm1(z),
    }[scaling]
    return scales


def derivative_weights(step: Step, lam: Sequence[float], target: float) -> np.ndarray:
    """R_k F^(k) = sum_p weights[k-1, p] F_p over the visited points, the start point included.

    Args:
        step: the decisions.
        lam: (n,) lambda at the visited points, the newest last.
        target: lambda at the end of the step.

    Returns:
        (q-1, n) weights.
    """
    n, s = len(lam), len(lam) + step.start
    h = target - lam[s]
    out = np.zeros((step.order - 1, n))
    for k, extra in enumerate(step.points, start=1):
        at = [n + p for p in extra]
        offsets = [(p - s) * h for p in at] if step.even else [lam[p] - lam[s] for p in at]
        out[k - 1, at] = difference_weights(offsets, k)
        out[k - 1, s] = -out[k - 1, at].sum()
    scales = derivative_scales(step.scaling, h, step.order, prediction=step.prediction, linear=step.linear)
    return out * scales[:, None]


def update_weights(
    step: Step, lam: Sequence[float], alpha: Sequence[float], sigma: Sequence[float]
) -> tuple[float, np.ndarray]:
    """(a, w) of x_t = a x_s + sum_p w_p F_p, F the noise or the clean image at the visited points.

    Args:
        step: the decisions; prediction "noise" or "data".
        lam, alpha, sigma: (n+1,) at the n visited points, the newest last, and then at the end of the step.

    Returns:
        The factor on the start state and (n,) weights.

    Raises:
        InputError: the step goes to or comes from a level where lambda is infinite, and is of an order above one.
    """
    n, s = len(lam) - 1, len(lam) - 1 + step.start
    h = lam[n] - lam[s]
    noise = step.prediction == "noise"
    a = alpha[n] / alpha[s] if noise else sigma[n] / sigma[s]
    w = np.zeros(n)
    if step.order == 1:
        if np.isfinite(h):
            w[s] = -sigma[n] * math.expm1(h) if noise else -alpha[n] * math.expm1(-h)
        else:
            w[s] = sigma[n] - sigma[s] * a if noise else alpha[n] - alpha[s] * a
        return a, w
    used = [lam[n], lam[s], *(lam[n + p] for extra in step.points for p in extra)]
    if not np.isfinite(used).all():
        mend = "a step to the clean end, or that uses a level without signal, can only be of order 1"
        raise InputError("order", step.order, mend)
    taylor = taylor_weights(h, step.order, prediction=step.prediction) * (-sigma[n] if noise else alpha[n])
    w[s] = taylor[0]
    return a, w + taylor[1:] @ derivative_weights(step, lam[:n], lam[n])


@recorded
class USF(Sampler):
    """The unified sampling framework: any solver schedule, one evaluation a step.

    Args:
        plan: file of searched or written solver schedules (or its content); the costliest that fits nfe, or the one
            with this many steps, is run.
        like: a published solver in place of a plan: ddim, dpm-solver++2m, deis-2, unipc-3, ...; unipc-3 unless a plan
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
        self.like = like or ("unipc-3" if plan is None else None)
        self._plans: list[SolverSchedule] = []
        self._mean: Any = None
        self._schedule: Any = None
        self._tables: Any = None
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
            self.min_steps = min(len(p.steps) for p in self._plans)
        else:
            solver = KNOWN[str(self.like)]
            released = variant == "released" and str(self.like) in ("dpm-solver-3m", "dpm-solver++3m")
            self.order = 2 if released else solver.convergence
            # The clean end is reached by a step of first order, and one level more is needed for each order.
            self.min_steps = solver.single + 1 if solver.single > 1 else solver.order + (solver.order > 1)
        super().__init__(steps=steps, nfe=nfe, grid=grid)

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
        return self

    # --- the arithmetic ------------------------------------------------------------------------------------------

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        times = np.asarray(times, dtype=np.float64)
        if self._plans:
            self._fits(schedule)
        plan = self._made(schedule, times)
        with np.errstate(divide="ignore"):
            lam = schedule.lam(times)
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)

        def sum_of(step: Step, i: int, end: int) -> _Sum:
            """The step from the visited points 0 ... i to times[end]."""
            if step.order == 1 and alpha[i + 1 + step.start] == 0:
                step = Step("data", 1, step.start)  # without signal the noise says nothing of the image
            seen = [*range(i + 1), end]
            a, w = update_weights(step, lam[seen], alpha[seen], sigma[seen])
            return _Sum(step.prediction, -step.start - 1, float(a), w[::-1].tolist())

        predictors = [sum_of(step, i, i + 1) for i, step in enumerate(plan.steps)]
        # A step is corrected at the start of the next one, when the network has answered at its end.
        correctors = [None] + [
            None if step.corrector is None else sum_of(step.corrected(), i + 1, i + 1)
            for i, step in enumerate(plan.steps[:-1])
        ]
        implicit = [False] + [s.corrector == "implicit" and self.variant == "paper" for s in plan.steps[:-1]]
        return Rows(
            times,
            **_columns(predictors, "", len(times)),
            **_columns([c or _Sum("data", 0, 0.0, []) for c in correctors], "c_", len(times)),
            correct=np.array([c is not None for c in correctors]),
            implicit=np.array(implicit),
            keep=np.array(_kept(predictors, correctors)),
            **{f"needs_{kind}": _needed(kind, predictors, correctors) for kind in OUTPUTS},
            zero=np.arange(len(plan.steps)) < (plan.afs == "zero"),
            average=np.arange(len(plan.steps)) < (plan.afs == "average"),
            alpha=alpha[:-1],
            sigma=sigma[:-1],
        )

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x = state.x
        answers = self._analytic(x, row) if row.zero or row.average else self._answers(denoiser(x, row.t), row)
        points = ((x, answers), *state.memory)
        if row.correct:
            x = _combined(points, row.c_kind, row.c_start, row.c_a, row.c_w)
            if row.implicit:
                answers = self._answers(denoiser(x, row.t), row)
            points = ((x, answers), *state.memory)
        x = _combined(points, row.kind, row.start, row.a, row.w)
        return State(x, state.noise, points[: int(row.keep)])

    def _answers(self, post: Posterior, row: SimpleNamespace) -> tuple[Tensor | None, ...]:
        """The network's answer in the forms in which later sums want it: clean image, noise."""
        return post.mean if row.needs_data else None, post.eps if row.needs_noise else None

    def _analytic(self, x: Tensor, row: SimpleNamespace) -> tuple[Tensor, Tensor]:
        """What is taken for the answer at the first level, where the network is not asked."""
        if row.average:
            mean = torch.as_tensor(self._mean, dtype=x.dtype).to(x.device).expand_as(x)
            return mean, (x - row.alpha * mean) / row.sigma
        clean = (x - row.sigma * x) / row.alpha if self.variant == "released" else torch.zeros_like(x)
        return clean, x / row.sigma

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


class _Sum(NamedTuple):
    """x = a x_start + sum_p w_p F_p; start and w count points backwards from the newest, 0."""

    kind: str
    start: int
    a: float
    w: list[float]

    def points(self) -> list[int]:
        """The points that are looked at."""
        return [self.start, *(p for p, weight in enumerate(self.w) if weight)]


def _columns(sums: Sequence[_Sum], prefix: str, width: int) -> dict[str, Any]:
    values = {
        "kind": np.array([float(OUTPUTS.index(s.kind)) for s in sums]),
        "start": np.array([float(s.start) for s in sums]),
        "a": np.array([s.a for s in sums]),
        # Plain lists: a step multiplies by Python floats.
        "w": [s.w + [0.0] * (width - len(s.w)) for s in sums],
    }
    return {prefix + name: column for name, column in values.items()}


def _kept(predictors: Sequence[_Sum], correctors: Sequence[_Sum | None]) -> list[float]:
    """How many of the newest points the steps after each one still look at."""
    reach = [max([*p.points(), *(c.points() if c else [])]) for p, c in zip(predictors, correctors)]
    return [float(max([0, *(reach[j] - (j - i) + 1 for j in range(i + 1, len(reach)))])) for i in range(len(reach))]


def _needed(kind: str, predictors: Sequence[_Sum], correctors: Sequence[_Sum | None]) -> np.ndarray:
    """Whether any sum wants the answer at each point in this form."""
    out = np.zeros(len(predictors), dtype=bool)
    for i, each in [*enumerate(predictors), *enumerate(correctors)]:
        if each is not None and each.kind == kind:
            out[[i - p for p, weight in enumerate(each.w) if weight]] = True
    return out


def _combined(points: Sequence[Any], kind: float, start: float, a: float, w: Sequence[float]) -> Tensor:
    """The sum of a row over the stored (state, answers), the newest first."""
    x = points[int(start)][0] * a
    which = int(kind)
    for weight, (_, answers) in zip(w, points):
        if weight:
            x = x.add_(answers[which], alpha=weight)
    return x
