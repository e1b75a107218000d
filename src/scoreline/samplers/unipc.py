"""UniPC: a multistep predictor with a corrector that costs no evaluation, Zhao et al. 2023 (arXiv 2302.04867).

With h = lambda_s - lambda_t, z = -h for predictions m of x_0 ("data"), z = h for predictions of the noise, K = alpha_s
or sigma_s, and DDIM(x, m) the first-order step:
    predictor  x_s  = DDIM(x_t, m_0) - K B(h) sum_j rho_j (m_j - m_0)/r_j,   r_j = (lambda_j - lambda_t)/h
    corrector  x_s' = the same with the new value m_s, taken at x_s, as one more point at r = 1
    sum_j rho_j r_j^{i-1} = i! z phi_{i+1}(z)/B(h),  i = 1 ... number of points
B(h) = z (bh1) or e^z - 1 (bh2). It cancels where the system is solved; it counts where the paper sets rho = 1/2: the
predictor of order 2 and the corrector of order 1. Both parts of a step are linear in what is known, so they are
written as one sum, without keeping the corrected state:
    x_s' = x_s + sum_j g_j m_j + q m_s;   next  x = A x_s' + ...
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule
from scoreline.samplers.exponential import LeastSteps, phi
from scoreline.samplers.steps import eta_step

__all__ = ["PREDICTIONS", "SOLVERS", "UniPC", "point_weights"]

SOLVERS = ("bh1", "bh2", "vary")
PREDICTIONS = ("data", "noise")


def point_weights(
    h: float, r: np.ndarray, *, prediction: str = "data", solver: str = "bh2", corrector: bool = False
) -> np.ndarray:
    """w_j = -B(h) rho_j/r_j, the weights of (m_j - m_0) in units of K; see the head of this file.

    Args:
        h: step in lambda.
        r: (n,) places of the points in units of h; the corrector's new point, r = 1, is the last.
        prediction: "data" or "noise".
        solver: "bh1", "bh2", or "vary", which solves the system for every order.
        corrector: whether the points are the corrector's; decides where 1/2 is set.

    Returns:
        (n,) weights.

    Reference: Zhao et al. 2023, theorem 3.1 and appendix (UniPC_v for "vary").

    >>> point_weights(0.5, np.array([-1.0])).round(6).tolist()  # bh2, order 2: (1 - e^-h) / 2 with its sign
    [-0.196735]
    """
    z = h if prediction == "noise" else -h
    B = z if solver == "bh1" else math.expm1(z)
    if len(r) == 1 and solver != "vary":
        # One point: order 2 of the predictor, order 1 of the corrector.
        return np.array([-0.5 * B / r[0]])
    right = np.array([math.factorial(i) * z * phi(i + 1, z) for i in range(1, len(r) + 1)])
    return -np.linalg.solve(r ** np.arange(len(r))[:, None], right) / r


@recorded
class UniPC(Sampler):
    """Unified predictor-corrector, one evaluation a step.

    Args:
        solver_order: p, points that the predictor uses; the corrector raises the order of convergence to p + 1.
        solver: "bh1", "bh2" or "vary", the choice of B(h).
        prediction: what is extrapolated, "data" (x_0) or "noise".
        corrector: use the corrector.
        lower_order_final: let the last steps of a run to the clean end fall to order ... 3, 2, 1, as released.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.

    Raises:
        InputError: an unknown solver or prediction, or an order below 1 or above 4.
    """

    order: int | None = 3
    min_steps: int = LeastSteps()  # type: ignore[assignment]

    def __init__(
        self,
        *,
        solver_order: int = 2,
        solver: str = "bh2",
        prediction: str = "data",
        corrector: bool = True,
        lower_order_final: bool = True,
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        if isinstance(solver_order, bool) or solver_order not in range(1, 5):
            raise InputError("solver_order", solver_order, "must be 1, 2, 3 or 4")
        if solver not in SOLVERS:
            raise unknown_name("solver", solver, SOLVERS)
        if prediction not in PREDICTIONS:
            raise unknown_name("prediction", prediction, PREDICTIONS)
        self.solver_order, self.solver, self.prediction = solver_order, solver, prediction
        self.corrector, self.lower_order_final = corrector, lower_order_final
        self.order = solver_order + corrector
        self._depth = solver_order if corrector else solver_order - 1
        super().__init__(steps=steps, nfe=nfe, grid=grid)

    def _least(self) -> int:
        return self.solver_order + 1

    def orders(self, gaps: np.ndarray, *, clean: bool) -> np.ndarray:
        """Order of each step: what history, finite steps in lambda and the end of the run allow.

        Args:
            gaps: (N,) steps in lambda, infinite at the clean end and from a level without signal.
            clean: whether the run ends at the clean end.
        """
        steps = len(gaps)
        out = np.ones(steps, dtype=np.int64)
        for i in range(steps):
            if not np.isfinite(gaps[i]):
                continue
            known = 1
            while known < min(self.solver_order, i + 1) and np.isfinite(gaps[i - known]):
                known += 1
            out[i] = min(known, steps - i) if clean and self.lower_order_final else known
        return out

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        steps, depth = len(times) - 1, self._depth
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        with np.errstate(divide="ignore", invalid="ignore"):
            lam = schedule.lam(times)
            gaps = np.diff(lam)
        orders = self.orders(gaps, clean=times[-1] <= schedule.clean)
        data = self.prediction == "data"
        K = alpha[1:] if data else sigma[1:]
        a, b, _ = eta_step(schedule, times[:-1], times[1:], 0.0)
        x, m, past = a.copy(), b.copy(), np.zeros((steps, depth))
        mean, eps = np.ones(steps), np.zeros(steps)
        if not data:
            on = alpha[:-1] > 0  # without signal the noise estimate is x itself: the DDIM step stays in terms of x_0
            x[on] = alpha[1:][on] / alpha[:-1][on]
            m[on] = sigma[1:][on] - x[on] * sigma[:-1][on]
            mean, eps = 1.0 - on, 1.0 * on
        before = np.zeros(depth)  # the last predictor's weights, aligned with the memory of this step
        for i in range(steps):
            points = np.zeros(depth)
            if orders[i] > 1:
                h, known = gaps[i], np.arange(1, orders[i])
                w = self._weights(h, (lam[i - known] - lam[i]) / h, corrector=False)
                points[: len(w)] = K[i] * w
            if self.corrector and i and np.isfinite(gaps[i - 1]):
                h, known = gaps[i - 1], np.arange(1, orders[i - 1])
                r = np.append((lam[i - 1 - known] - lam[i - 1]) / h, 1.0)
                w = K[i - 1] * self._weights(h, r, corrector=True)
                g = np.zeros(depth)
                g[1 : len(w)] = w[:-1] - before[: len(w) - 1]
                g[0] = -(w[-1] + g.sum())
                past[i] = x[i] * g
                m[i] += x[i] * w[-1]
            past[i] += points
            m[i] -= points.sum()
            before = points
        more = np.arange(steps) < steps - 1
        history = {f"w{k + 1}": past[:, k] for k in range(depth)}
        return Rows(times, x=x, m=m * mean, e=m * eps, more=more, order=orders * 1.0, **history)

    def _weights(self, h: float, r: np.ndarray, *, corrector: bool) -> np.ndarray:
        return point_weights(h, r, prediction=self.prediction, solver=self.solver, corrector=corrector)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        post = denoiser(state.x, row.t)
        x = post.combine(row.x, row.m, row.e)
        for k, value in enumerate(state.memory, 1):
            # What comes first may be the network's own output and is not written to.
            x = (x.add if k == 1 else x.add_)(value, alpha=getattr(row, f"w{k}"))
        if not row.more or not self._depth:
            return State(x, state.noise, ())
        value = post.mean if self.prediction == "data" else post.eps
        return State(x, state.noise, (value, *state.memory)[: self._depth])
