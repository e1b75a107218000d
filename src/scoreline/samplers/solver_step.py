"""One step of the unified sampling framework as a sum, Liu et al. 2024 (arXiv 2312.07243).

With h = lambda_t - lambda_s, derivatives with respect to lambda at the start point s and a Taylor order q:
    noise:  x_t = alpha_t/alpha_s x_s - sigma_t sum_{k<q} h^{k+1} phi_{k+1}(h)  eps^(k)
    data:   x_t = sigma_t/sigma_s x_s + alpha_t sum_{k<q} h^{k+1} phi_{k+1}(-h) x0^(k)
    ems:    DPM-Solver-v3's step with the statistics of the model, x_t = A x_s - sum_{k<q} E_k g^(k) - C
    F^(k) = R_k(h) sum_p a_p (F_p - F_s),  sum_p a_p delta_p^i/i! = [i = k],  delta_p = lambda_p - lambda_s
Everything is linear in the stored states and network answers; the weights are float64 and made once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.samplers.exponential import difference_weights, phi, taylor_weights
from scoreline.samplers.model_statistics import ModelStatistics, step_weights
from scoreline.samplers.solver_schedule import Step

Levels = Sequence[float] | np.ndarray

__all__ = ["Sum", "derivative_scales", "derivative_weights", "ems_weights", "kept", "needed", "update_weights"]


def derivative_scales(
    scaling: str | None, h: float, order: int, *, prediction: str = "data", linear: float = 0.0
) -> Any:
    """R_k(h), the factors on the derivatives 1 ... q-1; 1 where nothing is scaled.

    With z = h for noise and -h for data prediction, R_1 is
        linear: 1 + c h (h in both);  unipc-bh1: (z^2/2)/(e^z - 1 - z);  unipc-bh2 = dpmsolver-2:
        (z/2)(e^z - 1)/(e^z - 1 - z);  0.5exp, -0.5exp: 1 +- (e^z - 1)/2.
    "dpmsolver-3-released" halves the second derivative, as the released third-order DPM-Solvers do; "adams" is no
    factor, see :func:`update_weights`.

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


def derivative_weights(step: Step, lam: Levels, target: float) -> np.ndarray:
    """R_k F^(k) = sum_p weights[k-1, p] F_p over the visited points, the start point included.

    Args:
        step: the decisions.
        lam: (n,) lambda at the visited points, the newest last.
        target: lambda at the end of the step.

    Returns:
        (q-1, n) weights.
    """
    h = target - lam[len(lam) + step.start]
    scales = derivative_scales(step.scaling, h, step.order, prediction=step.prediction, linear=step.linear)
    return _differences(step, lam) * scales[:, None]


def _differences(step: Step, places: Levels) -> np.ndarray:
    """F^(k), unscaled, as weights on F at points that lie at `places`."""
    n, s = len(places), len(places) + step.start
    out = np.zeros((step.order - 1, n))
    for k, extra in enumerate(step.points, start=1):
        at = [n + p for p in extra]
        out[k - 1, at] = difference_weights([places[p] - places[s] for p in at], k)
        out[k - 1, s] = -out[k - 1, at].sum()
    return out


def update_weights(step: Step, lam: Levels, alpha: Levels, sigma: Levels) -> tuple[float, np.ndarray]:
    """(a, w) of x_t = a x_s + sum_p w_p F_p, F the noise or the clean image at the visited points.

    With the scaling "adams" the points count as evenly spaced and the sum over k is that of Adams-Bashforth,
    w_s sum_k h^k F^(k)/(k+1)!, where w_s is the weight of the first-order step.

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
    adams = step.scaling == "adams"
    if step.order > 1 and (alpha[s] == 0 if adams else True):
        _finite(step, lam)
    a = alpha[n] / alpha[s] if noise else sigma[n] / sigma[s]
    w = np.zeros(n)
    if np.isfinite(h):
        w[s] = -sigma[n] * math.expm1(h) if noise else -alpha[n] * math.expm1(-h)
    else:
        w[s] = sigma[n] - sigma[s] * a if noise else alpha[n] - alpha[s] * a
    if step.order == 1:
        return a, w
    if adams:
        places = np.arange(n, dtype=np.float64)
        shares = [w[s] / math.factorial(k + 1) for k in range(1, step.order)]
        return a, w + shares @ _differences(step, places)
    taylor = taylor_weights(h, step.order, prediction=step.prediction) * (-sigma[n] if noise else alpha[n])
    return a, w + taylor[1:] @ derivative_weights(step, lam[:n], lam[n])


def ems_weights(
    step: Step, lam: Levels, alpha: Levels, statistics: ModelStatistics
) -> tuple[Tensor, dict[int, Tensor], Tensor]:
    """(a, w, constant) of x_t = a x_s + sum_p w_p f_p + constant, f = (sigma eps - l x)/alpha at the visited points.

    Args:
        step: the decisions; prediction "ems".
        lam, alpha: see :func:`update_weights`.
        statistics: l, s, b of the model.

    Returns:
        float64 tensors of the statistics' shape; w by point, 0 the oldest.

    Raises:
        InputError: a level is outside the range of the statistics.

    Reference: Zheng et al. 2023 (arXiv 2310.13268), eq. 8-13.
    """
    _finite(step, lam)
    n, s = len(lam) - 1, len(lam) - 1 + step.start
    others = sorted({n + p for extra in step.points for p in extra}, reverse=True)
    derivatives = derivative_weights(step, lam[:n], lam[n])[:, [s, *others]]
    made = step_weights(
        statistics, lam[s], lam[n], [lam[p] for p in others], alphas=(alpha[s], alpha[n]), derivatives=derivatives
    )
    return made.a, dict(zip([s, *others], made.on)), made.constant


def _finite(step: Step, lam: Levels) -> None:
    n = len(lam) - 1
    used = [lam[n], lam[n + step.start], *(lam[n + p] for extra in step.points for p in extra)]
    if not np.isfinite(used).all():
        mend = "a step to the clean end, or that uses a level without signal, can only be of order 1"
        raise InputError("order", step.order, mend)


class Sum(NamedTuple):
    """x = a x_start + sum_p w_p F_p + constant; points are counted backwards from the newest, 0.

    Attributes:
        kind: which answer of the network F is: "noise", "data" or "ems".
        start: the point from which the step is made.
        a: factor on its state; a tensor for "ems".
        w: by point, those that are looked at.
        constant: of "ems".
    """

    kind: str
    start: int
    a: float | Tensor
    w: dict[int, Any]
    constant: Tensor | None = None

    def on(self, like: Tensor) -> Sum:
        """With its tensors in the type and on the device of the images."""
        if self.constant is None:
            return self
        w = {point: weight.to(like) for point, weight in self.w.items()}
        return self._replace(a=self.a.to(like), w=w, constant=self.constant.to(like))  # type: ignore[union-attr]

    def of(self, points: Sequence[tuple[Tensor, dict[str, Tensor]]]) -> Tensor:
        """The sum over stored (state, answers), the newest first."""
        x = points[self.start][0] * self.a
        for point, weight in self.w.items():
            F = points[point][1][self.kind]
            x = x.addcmul_(F, weight) if isinstance(weight, Tensor) else x.add_(F, alpha=weight)
        return x if self.constant is None else x.add_(self.constant)


def kept(sums: Sequence[Sequence[Sum]]) -> list[float]:
    """How many of the newest points the steps after each one still look at; `sums` are those of each step."""
    reach = [max(max(s.start, *s.w) for s in each) for each in sums]
    return [float(max([0, *(reach[j] - (j - i) + 1 for j in range(i + 1, len(reach)))])) for i in range(len(reach))]


def needed(kind: str, sums: Sequence[Sequence[Sum]]) -> np.ndarray:
    """Whether any sum wants the answer at each point in this form."""
    out = np.zeros(len(sums), dtype=bool)
    for i, each in enumerate(sums):
        for s in each:
            if s.kind == kind:
                out[[i - point for point in s.w]] = True
    return out
