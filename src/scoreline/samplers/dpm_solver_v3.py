"""DPM-Solver-v3: a multistep predictor-corrector with the model's own statistics, Zheng et al. 2023 (arXiv 2310.13268).

With y = x/alpha and the statistics l, s, b of the model, functions of lambda (see `model_statistics`):
    f = (sigma eps - l x)/alpha = (1 - l) y - E[x_0|x]
    y_t = e^{-L} (y_s - sum_{n<p} I_n g^(n) - C)
and g^(n) at the start of the step from g there and at p - 1 points visited before. The corrector repeats the step that
was made with the network's answer at its end as a further point, and leaves that answer's f as it is, so that it costs
no evaluation. All of it is linear in the f of the points: a step is x_t = a x_s + sum_k w_k f_k + c, entry by entry.

The last step has no evaluation to come and none is wasted on its end: it goes to the highest lambda of the statistics,
and from there to the clean image by x_0 = (1 - l) y - f with f from the same polynomial.
"""

from __future__ import annotations

import copy
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
from scoreline.samplers.model_statistics import (
    ModelStatistics,
    Weights,
    data_prediction,
    derivative_weights,
    noise_prediction,
    step_weights,
)

__all__ = ["DPMSolverV3", "corrector_order", "last_weights", "predictor_order"]

DEGENERATE = {"data": data_prediction, "noise": noise_prediction}
VARIANTS = ("paper", "released")
# A corrector of the pseudo order above order 3 has four points.
POINTS = 4


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
        order: of the predictor, 1 to 3; 3 suits models without guidance, 2 those with.
        corrector: repeat each step, but for the last, once the network has answered at its end.
        pseudo: estimate derivatives by the pseudo order in the predictor; calmer at 5 evaluations.
        pseudo_corrector: the same in the corrector, whose order is then one higher.
        half: correct only in the cleaner half of the time, t <= t_max/2; for strong guidance.
        lower_order_final: lower the order over the last steps.
        statistics: "model" for those that were estimated on the model, the path of a file, "data" for l = 1, s = b = 0
            (DPM-Solver++ in Taylor form) or "noise" for l = 0, s = -1, b = 0 (DPM-Solver).
        variant: "paper"; or "released" for what the authors' code does: integrals by the trapezoid rule over the nodes,
            levels moved to the nearest node, and `half` correcting the noisier half.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`. Where a grid ends at the cleanest level, the run
            ends there without asking the model, as in the paper, and the other levels lie closer for it.

    Raises:
        InputError: a setting is out of range, or too few steps to reach the order.
    """

    _held: ModelStatistics | None = None

    def __init__(
        self,
        *,
        order: int = 3,
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
        if order not in (1, 2, 3):
            raise InputError("order", order, "is 1, 2 or 3")
        if variant not in VARIANTS:
            raise unknown_name("variant", variant, VARIANTS)
        self.min_steps = 2 * order - 1 if lower_order_final else order
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        self.highest, self.corrector, self.pseudo, self.pseudo_corrector = order, corrector, pseudo, pseudo_corrector
        self.half, self.lower_order_final, self.statistics, self.variant = half, lower_order_final, statistics, variant
        # Lower orders at the end, and derivatives of the pseudo order, leave the second.
        lowered = lower_order_final or pseudo or (corrector and pseudo_corrector)
        self.order = min(order, 2) if lowered else order
        if statistics in DEGENERATE:
            self._held = DEGENERATE[statistics]()
        self._kept: tuple[Schedule, Rows] | None = None
        self._ready: Self | None = None

    def calibrated(self, denoiser: Denoiser) -> Self:
        """This sampler with the statistics of the model.

        Raises:
            InputError: nothing was estimated on the model, or the file belongs to another one.
            ArtefactError: the file cannot be read.
        """
        if self._held is not None:
            return self
        path = None if self.statistics == "model" else self.statistics
        found = find("dpm-solver-v3", denoiser, path)
        if self._ready is None or self._ready._held is not found:
            self._ready = copy.copy(self)
            self._ready._held, self._ready._ready = found, None
        return self._ready

    def using(self, statistics: ModelStatistics) -> Self:
        """This sampler with statistics at hand."""
        made = copy.copy(self)
        made._held, made._kept, made._ready = statistics, None, None
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
        return np.append(levels, schedule.clean)

    def _with_steps(self, steps: int, schedule: Schedule) -> np.ndarray:
        """All but the last of so many levels."""
        self.steps, self.nfe = steps, None
        return Sampler.times(self, schedule)[:-2]

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        if self._held is None:
            mend = "need the model's: call calibrated(model), or give statistics=data, noise or a path"
            raise InputError("statistics", self.statistics, mend)
        # The batches of a run share their rows.
        if self._kept is None or self._kept[0] is not schedule or not np.array_equal(self._kept[1].times, times):
            self._kept = (schedule, self._rows(self._held, schedule, times))
        return self._kept[1]

    def _rows(self, statistics: ModelStatistics, schedule: Schedule, times: np.ndarray) -> Rows:
        steps, rule = len(times) - 1, "gauss" if self.variant == "paper" else "trapezoid"
        lam = np.asarray(schedule.lam(np.asarray(times)), dtype=np.float64)
        alpha, sigma = np.asarray(schedule.alpha(times)), np.asarray(schedule.sigma(times))
        first = 0 if np.isfinite(lam[0]) else 1  # a level without signal is no point of the statistics
        statistics.check(lam[first:][np.isfinite(lam[first:])], thing="lambda of a level")
        zero = torch.zeros(statistics.shape, dtype=torch.float64)
        names = ["a", *(f"w{k}" for k in range(POINTS)), "c", "ca", *(f"cw{k}" for k in range(POINTS)), "cc", "fx"]
        columns: dict[str, list[Any]] = {name: [] for name in [*names, "fm", "fe", "correct"]}
        orders: list[int] = []
        for i in range(steps):
            m = i + 1 - first
            p = predictor_order(m, steps - first, self.highest, self.lower_order_final) if m > 0 else 1
            orders.append(p)
            alphas = (alpha[i], alpha[i + 1])
            past = list(lam[max(i - p + 1, first) : i][::-1]) if p > 1 else []
            if i < first:
                # DDIM's step with f = -E[x_0|x]: exact for a constant prediction, nothing better is defined.
                a = sigma[i + 1] / sigma[i]
                made = Weights(zero + a, (zero + a * alpha[i] - alpha[i + 1],), zero)
            elif np.isinf(lam[i + 1]):
                made = last_weights(statistics, lam[i], past, alpha=alpha[i], pseudo=self.pseudo, rule=rule)
            else:
                made = step_weights(statistics, lam[i], lam[i + 1], past, alphas=alphas, pseudo=self.pseudo, rule=rule)
            again = Weights(zero, (), zero)
            c = corrector_order(orders[i - 1], self.pseudo_corrector) if self.corrector and m > 1 else 0
            if c and self.half:
                clean = times[i] <= 0.5 * schedule.t_max
                c *= clean if self.variant == "paper" else not clean
            if c:
                # The step before this one, from i - 1 to i; its end is the first further point.
                more = [lam[i], *lam[max(i - c + 1, first) : i - 1][::-1]]
                again = step_weights(
                    statistics, lam[i - 1], lam[i], more, alphas=(alpha[i - 1], alpha[i]),
                    pseudo=self.pseudo_corrector, rule=rule,
                )  # fmt: skip
            on = (*made.on, *[zero] * (POINTS - len(made.on)))
            # In the order of the points' age: the end of the step, its start, and those before.
            aged = (again.on[1], again.on[0], *again.on[2:]) if c else ()
            fixed = (*aged, *[zero] * (POINTS - len(aged)))
            noisy = i < first or sigma[i] > alpha[i]
            l = zero + 1.0 if i < first else statistics.at([lam[i]])[0][0]  # noqa: E741
            # f by whichever of its two forms does not cancel.
            fx = zero if i < first else ((1 - l) if noisy else -l) / alpha[i]
            values = (made.a, *on, made.constant, again.a, *fixed, again.constant, fx)
            for name, value in zip(names, values):
                columns[name].append(value)
            for name, number in (("fm", -1.0 if noisy else 0.0), ("fe", 0.0 if noisy else sigma[i] / alpha[i])):
                columns[name].append(number)
            columns["correct"].append(bool(c))
        stacked = {name: torch.stack(columns[name]) for name in names}
        plain = {name: np.array(columns[name]) for name in ("fm", "fe", "correct")}
        return Rows(times, **stacked, **plain)

    def init(self, denoiser: Denoiser, noise: Draws, rows: Rows, x: Tensor | None = None) -> State:
        state = super().init(denoiser, noise, rows, x)
        # All coefficients in one transfer, in the type of the state: a step then only reads them.
        names = ["a", *(f"w{k}" for k in range(POINTS)), "c", "ca", *(f"cw{k}" for k in range(POINTS)), "cc", "fx"]
        ready = torch.stack([rows[name] for name in names], 1).to(state.x)
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


def last_weights(
    statistics: ModelStatistics,
    start: float,
    others: list[float],
    *,
    alpha: float = 1.0,
    pseudo: bool = False,
    rule: str = "gauss",
) -> Weights:
    """The step from lambda `start` to the clean image without a further evaluation.

    First to the highest lambda of the statistics; there E[x_0|x] = (1 - l) y - f with f = e^S (g + B) and g from its
    Taylor polynomial at the start.

    Args:
        statistics: of the model.
        start: lambda.
        others: lambda of further points, nearest first.
        alpha: at the start.
        pseudo, rule: see :func:`scoreline.samplers.model_statistics.step_weights`.

    Returns:
        Weights on x at the start and on f there and at the other points.
    """
    end = statistics.high
    start = min(start, end)
    derivatives = derivative_weights([p - start for p in others], pseudo=pseudo)
    y = step_weights(statistics, start, end, others, derivatives=derivatives, rule=rule)
    step = statistics.between(start, end, rule=rule)
    l, grow = statistics.at([end])[0][0], step.S.exp()  # noqa: E741
    taylor = [step.h ** (j + 1) / float(np.prod(range(1, j + 2))) for j in range(len(derivatives))]
    shares = taylor @ derivatives if taylor else np.zeros(1)
    shares = np.asarray(shares) + np.eye(len(others) + 1)[0]
    on, constant = [(1 - l) * y.on[0] - grow * float(shares[0])], (1 - l) * y.constant - grow * step.B
    for k, point in enumerate(others, start=1):
        back = statistics.between(start, point, rule=rule)
        on.append((1 - l) * y.on[k] - grow * float(shares[k]) * (-back.S).exp())
        constant = constant + grow * float(shares[k]) * back.B
    return Weights((1 - l) * y.a / alpha, tuple(on), constant)
