"""PNDM: pseudo numerical methods for diffusion models, Liu et al. 2022 (arXiv 2202.09778).

Classical formulas combine noise estimates into one e', and the DDIM step phi(x, e', t, s) takes it from t to s:
    F-PNDM  three Runge-Kutta steps, e' = (e_1 + 2 e_2 + 2 e_3 + e_4)/6 with two estimates half way in time,
            then e' = (55 e_i - 59 e_{i-1} + 37 e_{i-2} - 9 e_{i-3})/24
    S-PNDM  one improved Euler step, e' = (e_1 + e_2)/2, then e' = (3 e_i - e_{i-1})/2
The Runge-Kutta steps cost four evaluations each (two for S-PNDM), of which the first is remembered. The weights are
those of even steps, whatever the grid; the method is of second order.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser, affine
from scoreline.core.errors import unknown_name
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule
from scoreline.samplers.exponential import ADAMS_BASHFORTH, LeastSteps
from scoreline.samplers.steps import eta_step

__all__ = ["PNDM"]

# kind: (degree of the multistep part, which is also the number of start steps; evaluations of a start step)
KINDS = {"f": (3, 4), "s": (1, 2)}


@recorded
class PNDM(Sampler):
    """F-PNDM or S-PNDM.

    Args:
        kind: "f" (fourth-order formulas) or "s" (second-order ones).
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`. A run of N steps costs N + 9 evaluations with
            "f" and N + 1 with "s"; fewer where the first level holds no signal, from which a DDIM step is taken.

    Raises:
        InputError: an unknown kind.
    """

    order: int | None = 2
    min_steps: int = LeastSteps()  # type: ignore[assignment]

    def __init__(
        self, *, kind: str = "f", steps: int | None = None, nfe: int | None = None, grid: str | None = None
    ) -> None:
        if kind not in KINDS:
            raise unknown_name("kind", kind, KINDS)
        self.kind = kind
        super().__init__(steps=steps, nfe=nfe, grid=grid)

    def _least(self) -> int:
        return KINDS[self.kind][0] + 1

    def cost(self, steps: int) -> int:
        start, stages = KINDS[self.kind]
        return steps + start * (stages - 1)

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        degree, _ = KINDS[self.kind]
        t, s = times[:-1], times[1:]
        a, b, _ = eta_step(schedule, t, s, 0.0)
        at = schedule.alpha(t)
        signal = at > 0
        start = (np.arange(len(t)) < degree) & signal & (s > schedule.clean)
        half = schedule.snap(0.5 * (t + s))
        half = np.where((half < t) & (half > s), half, 0.5 * (t + s))  # neighbours on a table have no entry between
        safe = np.where(signal, at, 1.0)

        def transfer(to: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            psi = np.where(signal, schedule.alpha(to) / safe, 0.0)
            return psi, np.where(signal, schedule.sigma(to) - psi * schedule.sigma(t), 0.0)

        psi, d = transfer(s)
        psi_half, d_half = transfer(half)
        weights = np.zeros((len(t), degree))
        for i in range(1, len(t)):
            if not start[i]:
                ab = ADAMS_BASHFORTH[min(degree, i)]
                weights[i, : len(ab) - 1] = d[i] * np.array(ab[1:])
        older = {f"w{k + 1}": weights[:, k] for k in range(degree)}
        return Rows(
            times, a=a, b=b, c=-weights.sum(1), start=start, half=half, psi=psi, d=d, psi_half=psi_half, d_half=d_half,
            more=np.arange(len(t)) < len(t) - 1, **older,
        )  # fmt: skip

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        post = denoiser(state.x, row.t)
        first = post.eps
        if row.start:
            x = self._start(denoiser, state, row, first)
        else:
            x = post.combine(row.a, row.b, row.c)
            for k, eps in enumerate(state.memory, 1):
                x = x.add(eps, alpha=getattr(row, f"w{k}"))
        memory = (first, *state.memory)[: KINDS[self.kind][0]] if row.more else ()
        return State(x, state.noise, memory)

    def _start(self, denoiser: Denoiser, state: State, row: SimpleNamespace, e1: Any) -> Any:
        x = state.x
        if self.kind == "s":
            e2 = denoiser(affine(row.psi, x, row.d, e1), row.s).eps
            return affine(row.psi, x, 0.5 * row.d, e1 + e2)
        e2 = denoiser(affine(row.psi_half, x, row.d_half, e1), row.half).eps
        e3 = denoiser(affine(row.psi_half, x, row.d_half, e2), row.half).eps
        e4 = denoiser(affine(row.psi, x, row.d, e3), row.s).eps
        return affine(row.psi, x, row.d / 6, e1 + 2 * e2 + 2 * e3 + e4)
