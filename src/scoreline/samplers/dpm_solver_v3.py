"""DPM-Solver-v3: a multistep predictor-corrector with the model's own statistics, Zheng et al. 2023 (arXiv 2310.13268).

With y = x/alpha and the statistics l, s, b of the model, functions of lambda (see `model_statistics`):
    f = (sigma eps - l x)/alpha = (1 - l) y - E[x_0|x]
    y_t = e^{-L} (y_s - sum_{n<p} I_n g^(n) - C)
and g^(n) at the start of the step from g there and at p - 1 points visited before. The corrector repeats the step that
was made with the network's answer at its end as a further point, and leaves that answer's f as it is, so that it costs
no evaluation. All of it is linear in the f of the points: a step is x_t = a x_s + sum_k w_k f_k + c, entry by entry.

As in the paper no evaluation is wasted on the cleanest level: a grid that ends there is made one level longer, and left
without it. The last step goes to that level with g constant, and on to the clean image: E[x_0|x] = (1 - l) y - f there,
with the f that g implies, e^S (g + B).
"""

from __future__ import annotations

import copy
import functools
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import Draws
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule
from scoreline.samplers.calibrations import find
from scoreline.samplers.exponential import LeastSteps
from scoreline.samplers.model_statistics import (
    ModelStatistics,
    Visited,
    Weights,
    data_prediction,
    derivative_weights,
    noise_prediction,
    weights_of,
)

__all__ = ["DPMSolverV3", "corrector_order", "predictor_order"]

DEGENERATE = {"data": data_prediction, "noise": noise_prediction}
VARIANTS = ("paper", "released")
# What coefficients depend on.
SETTINGS = ("solver_order", "corrector", "pseudo", "pseudo_corrector", "half", "lower_order_final", "variant")
# A corrector of the pseudo order above order 3 has four points.
POINTS = 4
# Step x = a x + sum_k w_k f_k + c, its correction likewise, and f's share of x.
NAMES = ["a", *(f"w{k}" for k in range(POINTS)), "c", "ca", *(f"cw{k}" for k in range(POINTS)), "cc", "fx"]


def predictor_order(m: int, steps: int, order: int, lower_order_final: bool) -> int:
    """p_m = min(order, m) of step m = 1 ... M; with lower_order_final also at most M + 1 - m.

    >>> [predictor_order(m, 6, 3, True) for m in range(1, 7)]
    [1, 2, 3, 3, 2, 1]
    """
    return min(order, m, steps + 1 - m) if lower_order_final else min(order, m)


def corrector_order(predictor: int, pseudo: bool) -> int:
    """Order of the corrector after a predictor of order p: p, or p + 1 by the pseudo order; below 2 there is none."""
    order = predictor + pseudo
    return order if order > 1 else 0


@recorded
class DPMSolverV3(Sampler):
    """DPM-Solver-v3, one evaluation a step.

    Args:
        solver_order: of the predictor, 1 to 3; the authors take 2 for models with conditions, 3 for those without.
        corrector: repeat each step, but for the last, once the network has answered at its end.
        pseudo: estimate derivatives by the pseudo order in the predictor; calmer at 5 evaluations.
        pseudo_corrector: the same in the corrector, whose order is then one higher.
        half: correct only in the cleaner half of the time, t <= t_max/2; for strong guidance.
        lower_order_final: lower the order over the last steps.
        statistics: "model" for those that were estimated on the model, the path of a file, "data" for l = 1, s = b = 0
            (DPM-Solver++ in Taylor form) or "noise" for l = 0, s = -1, b = 0 (DPM-Solver).
        variant: "paper"; or "released" for what the authors' code does: integrals by the trapezoid rule over the nodes,
            levels moved to the nearest node, and `half` correcting the noisier half.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`. A grid that ends at the cleanest level is made
            one level longer and left without it, as in the paper, whose runs end there without asking the model.

    Raises:
        InputError: a setting is out of range, or too few steps to reach the order.
    """

    min_steps: int = LeastSteps()  # type: ignore[assignment]
    _held: ModelStatistics | None = None

    def __init__(
        self,
        *,
        solver_order: int = 2,
        corrector: bool = True,
        pseudo: bool = False,
        pseudo_corrector: bool = False,
        half: bool = False,
        lower_order_final: bool = True,
        statistics: str = "model",
        variant: str = "paper",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        if solver_order not in (1, 2, 3):
            raise InputError("solver_order", solver_order, "is 1, 2 or 3")
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        self.solver_order, self.corrector, self.half, self.lower_order_final = (
            solver_order, corrector, half, lower_order_final
        )  # fmt: skip
        self.pseudo, self.pseudo_corrector, self.statistics, self.variant = (
            pseudo,
            pseudo_corrector,
            statistics,
            variant,
        )
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        # Lower orders at the end, and derivatives of the pseudo order, leave the second.
        lowered = lower_order_final or pseudo or (corrector and pseudo_corrector)
        self.order = min(solver_order, 2) if lowered else solver_order
        if statistics in DEGENERATE:
            self._held = DEGENERATE[statistics]()

    def _least(self) -> int:
        return 2 * self.solver_order - 1 if self.lower_order_final else self.solver_order

    def calibrated(self, denoiser: Denoiser) -> Self:
        """This sampler with the statistics of the model.

        Raises:
            InputError: nothing was estimated on the model, or the file belongs to another one.
            ArtefactError: the file cannot be read.
        """
        if self._held is not None:
            return self
        path = None if self.statistics == "model" else self.statistics
        return self.using(find("dpm-solver-v3", denoiser, path))

    def using(self, statistics: ModelStatistics) -> Self:
        """This sampler with statistics at hand."""
        made = copy.copy(self)
        made._held = statistics
        return made

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        steps = self.plan(evaluations)
        levels = super().times(schedule, evaluations)[:-1]
        if levels[-1] <= schedule.t_min:
            with suppress(InputError):  # not every grid has one level more
                levels = copy.copy(self)._with_steps(steps + 1, schedule)
        if self.variant == "released" and self._held is not None and schedule.known is None:
            lam = schedule.lam(levels)
            inside = np.isfinite(lam)
            nodes = self._held.lam[self._held.nearest(lam[inside])]
            levels[inside] = np.clip(schedule.time(nodes), schedule.t_min, schedule.t_max)
            if (np.diff(levels) >= 0).any():
                mend = f"two levels fall on one of the {len(self._held.lam)} nodes of the statistics; take fewer steps"
                raise InputError("steps", steps, f"{mend}, other levels, or variant=paper")
        return np.append(levels, schedule.clean)

    def _with_steps(self, steps: int, schedule: Schedule) -> np.ndarray:
        """All but the last of so many levels."""
        self.steps, self.nfe = steps, None
        return Sampler.times(self, schedule)[:-2]

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        if self._held is None:
            mend = "need the model's: call calibrated(model), or give statistics=data, noise or a path"
            raise InputError("statistics", self.statistics, mend)
        settings = tuple((name, getattr(self, name)) for name in SETTINGS)
        return _kept(settings, self._held, schedule, tuple(np.asarray(times, dtype=np.float64).tolist()))

    def _rows(self, statistics: ModelStatistics, schedule: Schedule, times: np.ndarray) -> Rows:
        steps, rule = len(times) - 1, "gauss" if self.variant == "paper" else "trapezoid"
        lam = np.asarray(schedule.lam(np.asarray(times)), dtype=np.float64)
        alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
        first = 0 if np.isfinite(lam[0]) else 1  # a level without signal is no point of the statistics
        zero = torch.zeros(statistics.shape, dtype=torch.float64)
        columns: dict[str, list[Any]] = {name: [] for name in [*NAMES, "fm", "fe", "correct"]}
        points: list[float] = lam[first:][np.isfinite(lam[first:])].tolist()
        statistics.check(points, thing="lambda of a level")
        run = Visited(statistics, points, top=POINTS - 1, rule=rule)

        def step(i: int, others: list[int], pseudo: bool) -> Weights:
            """From point i to the next one, with f at i and at other points known."""
            derivatives = derivative_weights([lam[j] - lam[i] for j in others], pseudo=pseudo)
            seen = [run.seen(i - first, j - first) for j in others]
            a, on, c = weights_of(run.steps[i - first], seen, derivatives)
            return Weights(a * (alpha[i + 1] / alpha[i]), tuple(alpha[i + 1] * w for w in on), alpha[i + 1] * c)

        orders: list[int] = []
        for i in range(steps):
            m = i + 1 - first
            p = predictor_order(m, steps - first, self.solver_order, self.lower_order_final) if m > 0 else 1
            orders.append(p)
            if i < first:
                # DDIM's step with f = -E[x_0|x]: exact for a constant prediction, nothing better is defined.
                a = sigma[i + 1] / sigma[i]
                made = Weights(zero + a, (zero + a * alpha[i] - alpha[i + 1],), zero)
            elif np.isinf(lam[i + 1]):
                made = _clean(statistics, lam[i], float(schedule.lam(schedule.t_min)), alpha[i], rule)
            else:
                made = step(i, list(range(i - 1, i - p, -1)), self.pseudo)
            c = corrector_order(orders[i - 1], self.pseudo_corrector) if self.corrector and m > 1 else 0
            if c and self.half:
                clean = times[i] <= 0.5 * schedule.t_max
                c *= clean if self.variant == "paper" else not clean
            # The step before this one, from i - 1 to i; its end is the first further point.
            again = step(i - 1, [i, *range(i - 2, i - c, -1)], self.pseudo_corrector) if c else Weights(zero, (), zero)
            on = (*made.on, *[zero] * (POINTS - len(made.on)))
            # In the order of the points' age: the end of the step, its start, and those before.
            aged = (again.on[1], again.on[0], *again.on[2:]) if c else ()
            fixed = (*aged, *[zero] * (POINTS - len(aged)))
            noisy = i < first or sigma[i] > alpha[i]
            l = zero + 1.0 if i < first else statistics.at([lam[i]])[0][0]  # noqa: E741
            # f by whichever of its two forms does not cancel.
            fx = zero if i < first else ((1 - l) if noisy else -l) / alpha[i]
            values = (made.a, *on, made.constant, again.a, *fixed, again.constant, fx)
            for name, value in zip(NAMES, values):
                columns[name].append(value)
            for name, number in (("fm", -1.0 if noisy else 0.0), ("fe", 0.0 if noisy else sigma[i] / alpha[i])):
                columns[name].append(number)
            columns["correct"].append(bool(c))
        stacked = {name: torch.stack(columns[name]) for name in NAMES}
        plain = {name: np.array(columns[name]) for name in ("fm", "fe", "correct")}
        return Rows(times, **stacked, **plain)

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        state = super().init(denoiser, noise, rows, x)
        # All coefficients in one transfer, in the type of the state: a step then only reads them.
        ready = torch.stack([rows[name] for name in NAMES], 1).to(state.x)
        return State(state.x, noise, (ready, None, ()))

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        x, (ready, before, past) = state.x, state.memory
        a, *w, c, ca, w_end, w_start, w_older, w_oldest, cc, fx = ready[row.i].unbind()
        f = denoiser(x, row.t).combine(fx, row.fm, row.fe)
        if row.correct:
            x = cc + ca * before
            for weight, point in zip((w_end, w_start, w_older, w_oldest), (f, *past)):
                x = torch.addcmul(x, weight, point)
        points = (f, *past)[:POINTS]
        ahead = c + a * x
        for weight, point in zip(w, points):
            ahead = torch.addcmul(ahead, weight, point)
        return State(ahead, state.noise, (ready, x, points[:3]))


def _clean(statistics: ModelStatistics, start: float, end: float, alpha: float, rule: str) -> Weights:
    """E[x_0|x] at lambda `end`, or at `start` if that is no noisier, after a step with g constant."""
    end = max(min(end, statistics.high), start)
    over = statistics.between(start, end, rule=rule)
    a, (on,), c = weights_of(over, [], np.zeros((0, 1)))
    rest, grown = 1 - statistics.at([end])[0][0], over.S.exp()
    return Weights(rest * a / alpha, (rest * on - grown,), rest * c - grown * over.B)


@functools.lru_cache(maxsize=16)
def _kept(
    settings: tuple[tuple[str, Any], ...], statistics: ModelStatistics, schedule: Schedule, times: tuple[float, ...]
) -> Rows:
    """The rows of a run, which its batches share."""
    return DPMSolverV3(**dict(settings))._rows(statistics, schedule, np.array(times))
