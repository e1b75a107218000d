"""DPM-Solver++ multistep in the data prediction, Lu et al. 2022 (arXiv 2211.01095).

With lambda = log(alpha/sigma), h = lambda_s - lambda_t and D_i = E[x_0|x_{t_i}]:
    x_s = sigma_s/sigma_t x_t + alpha_s (w_0 D_0 + w_1 D_1 + w_2 D_2)
with the weights of `second_order` (2M, the paper's midpoint form) or `third_order` (3M).
The first steps and the one to the clean end, where h is infinite, use what history and h allow.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import unknown_name
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule

__all__ = ["DPMSolverPP2M", "DPMSolverPP3M", "first_order", "second_order", "third_order"]


def first_order(h: float) -> tuple[float]:
    """Weights of (D_0) in alpha_s (...): (1 - e^{-h})."""
    return (-np.expm1(-h),)


def second_order(h: float, h1: float) -> tuple[float, float]:
    """Weights of (D_0, D_1): (1 - e^{-h}) ((1 + 1/(2r)), -1/(2r)), r = h1/h; h1 is the step before this one."""
    phi = -np.expm1(-h)
    half = 0.5 * h / h1
    return phi * (1 + half), -phi * half


def third_order(h: float, h1: float, h2: float, *, variant: str = "paper") -> tuple[float, float, float]:
    """Weights of (D_0, D_1, D_2) from the quadratic through the last three predictions.

    In units of h, with r0 = h1/h, r1 = h2/h and divided differences d10 = (D_0 - D_1)/r0, d11 = (D_1 - D_2)/r1,
    d2 = (d10 - d11)/(r0 + r1):   x_s/alpha_s gains  phi_1 D_0 + phi_2 (d10 + r0 d2) + phi_3 d2,
    phi_1 = 1 - e^{-h},  phi_2 = 1 - phi_1/h,  phi_3 = 1 - 2 phi_2/h.

    Args:
        h, h1, h2: this step in lambda and the two before it.
        variant: "paper" integrates the quadratic exactly (order 3); "released" halves phi_3, as the authors' code and
            its ports do, taking d2 for the second derivative when it is half of it (order 2 with a small constant).
    """
    r0, r1 = h1 / h, h2 / h
    phi1 = -np.expm1(-h)
    phi2 = 1 - phi1 / h
    phi3 = (1 - 2 * phi2 / h) * (0.5 if variant == "released" else 1.0)
    bend = (phi2 * r0 + phi3) / (r0 + r1)  # weight of d10 - d11
    on_10, on_11 = phi2 + bend, -bend
    return phi1 + on_10 / r0, -on_10 / r0 + on_11 / r1, -on_11 / r1


class _Multistep(Sampler):
    """Rows and step that both orders share."""

    depth: int
    variant: str = "paper"

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        steps = len(times) - 1
        with np.errstate(divide="ignore", invalid="ignore"):
            gaps = np.diff(schedule.lam(times))
        weights = np.zeros((steps, 3))
        orders = np.ones(steps)
        for i in range(steps):
            known = [g for g in gaps[max(i - self.depth + 1, 0) : i][::-1] if np.isfinite(g)]
            if not np.isfinite(gaps[i]) or not known:
                # From a level without signal, or to the clean end: exact for constant D, nothing better is defined.
                weights[i, 0] = np.nan
            elif len(known) == 1:
                weights[i, :2], orders[i] = second_order(gaps[i], known[0]), 2
            else:
                weights[i] = third_order(gaps[i], known[0], known[1], variant=self.variant)
                orders[i] = 3
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        a = sigma[1:] / sigma[:-1]
        w = weights * alpha[1:, None]
        # alpha_s (1 - e^{-h}) = alpha_s - alpha_t sigma_s/sigma_t also where h is infinite.
        w[:, 0] = np.where(np.isnan(w[:, 0]), alpha[1:] - alpha[:-1] * a, w[:, 0])
        more = np.arange(steps) < steps - 1
        return Rows(times, a=a, w0=w[:, 0], w1=w[:, 1], w2=w[:, 2], order=orders, more=more)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        post = denoiser(state.x, row.t)
        if row.w1 == 0:
            x = post.combine(row.a, row.w0)
            return State(x, state.noise, (post.mean, *state.memory)[: self.depth - 1] if row.more else ())
        D0 = post.mean
        x = (state.x * row.a).add_(D0, alpha=row.w0).add_(state.memory[0], alpha=row.w1)
        if row.w2:
            x = x.add_(state.memory[1], alpha=row.w2)
        memory: tuple[Tensor, ...] = (D0, *state.memory)
        return State(x, state.noise, memory[: self.depth - 1])


@recorded
class DPMSolverPP2M(_Multistep):
    """DPM-Solver++(2M), one evaluation a step.

    Args:
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    order = depth = 2
    min_steps = 3


@recorded
class DPMSolverPP3M(_Multistep):
    """DPM-Solver++(3M), one evaluation a step.

    Args:
        variant: "paper", or "released" for the numbers of the authors' code and its ports; see :func:`third_order`.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`.
    """

    order: int | None = 3
    depth = 3
    min_steps = 4

    def __init__(
        self,
        *,
        variant: str = "paper",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        super().__init__(steps=steps, nfe=nfe, grid=grid)
        if variant not in ("paper", "released"):
            raise unknown_name("variant", variant, ("paper", "released"))
        self.variant = variant
        if variant == "released":
            self.order = 2
