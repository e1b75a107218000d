"""DEIS: exponential integrators that extrapolate the noise estimate, Zhang & Chen 2023 (arXiv 2204.13902).

With rho = sigma/alpha and v = x/alpha the probability-flow ODE is dv/drho = eps, on any schedule. Freezing eps gives
DDIM; the multistep families put a polynomial through the last r + 1 noise estimates e_i, e_{i-1}, ...:
    x_{i+1} = Psi x_i + sum_j C_ij e_{i-j},   Psi = alpha_{i+1}/alpha_i
    tab      C_ij = alpha_{i+1} int L_j(t(rho)) drho over [rho_i, rho_{i+1}]: Lagrange polynomials in t
    rhoab    the same with polynomials in rho: variable-step Adams-Bashforth
    log-rho  the same with polynomials in log rho, as diffusers has it
    ipndm    the DDIM step with eps replaced by its even-step Adams-Bashforth sum, whatever the grid
    rhork    explicit Runge-Kutta steps for v in rho
Every row is kept as the DDIM step plus sum_j C_ij (e_{i-j} - e_i), which is also defined where no signal is left.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from scoreline.core.artefact import recorded
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import InputError, unknown_name
from scoreline.core.names import lookup
from scoreline.core.sampler import Rows, Sampler, State
from scoreline.core.schedule import Schedule
from scoreline.samplers.exponential import ADAMS_BASHFORTH, LeastSteps, lagrange_integrals
from scoreline.samplers.steps import eta_step, scaled_levels

__all__ = ["DEIS", "FAMILIES", "TABLEAUX", "Tableau", "multistep_table", "runge_kutta_table"]

FAMILIES = ("tab", "rhoab", "rhork", "ipndm", "log-rho")


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: stage places c, stage weights a (row by row), final weights b."""

    order: int
    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]


TABLEAUX = {
    "1euler": Tableau(1, (0.0,), ((),), (1.0,)),
    "2heun": Tableau(2, (0.0, 1.0), ((), (1.0,)), (1 / 2, 1 / 2)),
    "3kutta": Tableau(3, (0.0, 1 / 2, 1.0), ((), (1 / 2,), (-1.0, 2.0)), (1 / 6, 4 / 6, 1 / 6)),
    "3ral": Tableau(3, (0.0, 1 / 2, 3 / 4), ((), (1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "3heun": Tableau(3, (0.0, 1 / 3, 2 / 3), ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "3vdh": Tableau(3, (0.0, 8 / 15, 2 / 3), ((), (8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4)),
    "3ssprk": Tableau(3, (0.0, 1.0, 1 / 2), ((), (1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "4rk": Tableau(
        4, (0.0, 1 / 2, 1 / 2, 1.0), ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
    ),
}


def multistep_table(
    schedule: Schedule, times: np.ndarray, *, family: str = "tab", degree: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """(Psi, C) of x_{i+1} = Psi_i x_i + sum_j C_ij e_{i-j}, the coefficients of a multistep family.

    C_ij = alpha_{i+1} int_{rho_i}^{rho_{i+1}} L_j d rho with L_j in t, rho or log rho; "ipndm": D_i w_j with
    D_i = sigma_{i+1} - Psi_i sigma_i.

    Args:
        schedule: coordinates.
        times: (N+1,) levels; the first needs some signal, since Psi is infinite without.
        family: "tab", "rhoab", "ipndm" or "log-rho".
        degree: r = 0 ... 3, of the polynomial; the first steps use what there is.

    Returns:
        (N,) and (N, degree + 1), float64; sum_j C_ij = D_i, the coefficient of DDIM.

    Reference: Zhang & Chen 2023, eq. 14-15.

    >>> from scoreline.diffusion.schedules import EDM
    >>> multistep_table(EDM(), np.array([4.0, 3.0, 2.0]), family="rhoab", degree=1)[1].round(12).tolist()
    [[-1.0, 0.0], [-1.5, 0.5]]
    """
    times = np.asarray(times, dtype=np.float64)
    psi, ddim = _transfer(schedule, times)
    history = _history(schedule, times, family, degree)
    return psi, np.column_stack([ddim - history.sum(1), history])


def _transfer(schedule: Schedule, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Psi, D): x_s = Psi x_t + D eps is the DDIM step."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    with np.errstate(divide="ignore"):
        psi = alpha[1:] / alpha[:-1]
    return psi, sigma[1:] - psi * sigma[:-1]


def _history(schedule: Schedule, times: np.ndarray, family: str, degree: int) -> np.ndarray:
    """(N, degree): C_ij of the older noise estimates, j = 1 ... degree."""
    steps = len(times) - 1
    out = np.zeros((steps, degree))
    if not degree:
        return out
    alpha = schedule.alpha(times)
    with np.errstate(divide="ignore"):
        rho = scaled_levels(schedule, times)
    if family == "ipndm":
        ddim = _transfer(schedule, times)[1]
        for i in range(1, steps):
            weights = ADAMS_BASHFORTH[min(degree, i)]
            out[i, : len(weights) - 1] = ddim[i] * np.array(weights[1:])
        return out
    for i in range(1, steps):
        to_clean = times[i + 1] <= schedule.clean
        r = min(degree, i)
        if family == "log-rho":
            # As in diffusers: runs of few steps end with lower orders. log rho has no value at the clean end.
            r = 0 if to_clean else min(r, steps - 1 - i) if steps < 15 else r
        if family == "tab" and to_clean and schedule.clean < 0 and schedule.known is None:
            r = 0  # the clean end is a time of its own there, not where t(rho) leads
        while family != "tab" and r and not np.isfinite(rho[i - r]):
            r -= 1
        if not r:
            continue
        past = slice(i - r, i + 1)
        if family == "tab":
            nodes, low, high = times[past], rho[i], rho[i + 1]
            whole = lagrange_integrals(nodes[::-1], low, high, of=lambda u: schedule.time(-np.log(u)))
        elif family == "rhoab":
            whole = lagrange_integrals(rho[past][::-1], rho[i], rho[i + 1])
        else:
            nodes = np.log(rho[past])
            whole = lagrange_integrals(nodes[::-1], np.log(rho[i]), np.log(rho[i + 1]), weight=np.exp)
        out[i, :r] = alpha[i + 1] * whole[1:]
    return out


def runge_kutta_table(schedule: Schedule, times: np.ndarray, *, tableau: str = "3kutta") -> dict[str, np.ndarray]:
    """Stages of Runge-Kutta steps in rho, in the coordinates of x.

    Stage j is asked at t_j = t(rho_i + c_j H), H = rho_{i+1} - rho_i, with
        x_j = m_j x_i + sum_l k_jl e_l,   m_j = alpha(t_j)/alpha_i,   k_jl = alpha(t_j) H a_jl
        x_{i+1} = Psi x_i + sum_l k_l e_l,   k_l = alpha_{i+1} H b_l

    Args:
        schedule: coordinates.
        times: (N+1,) levels. A step to the clean end, where no stage can be asked, and one from a level without signal
            have `stages` False: the DDIM step is taken.
        tableau: name in `TABLEAUX`.

    Returns:
        columns by name, each (N,): "stages", "t2", "m2", "k21", "t3", "m3", "k31", ..., "k1", "k2", ...

    Reference: Zhang & Chen 2023, section 3.3 (rhoRK).
    """
    times = np.asarray(times, dtype=np.float64)
    method = TABLEAUX[tableau]
    alpha = schedule.alpha(times)
    stages = (times[1:] > schedule.clean) & (alpha[:-1] > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rho = scaled_levels(schedule, times)
        h, start = np.where(stages, np.diff(rho), 0.0), np.where(stages, alpha[:-1], 1.0)
        columns = {"stages": stages}
        for j in range(1, len(method.c)):
            at = np.where(stages, rho[:-1] + method.c[j] * h, 1.0)
            time = times[1:] if method.c[j] == 1 else schedule.time(-np.log(at))
            columns[f"t{j + 1}"] = time = np.where(stages, time, times[:-1])
            columns[f"m{j + 1}"] = schedule.alpha(time) / start
            for k, weight in enumerate(method.a[j]):
                columns[f"k{j + 1}{k + 1}"] = schedule.alpha(time) * h * weight
        columns["m"] = alpha[1:] / start
    for k, weight in enumerate(method.b):
        columns[f"k{k + 1}"] = alpha[1:] * h * weight
    return columns


@recorded
class DEIS(Sampler):
    """Diffusion exponential integrator sampler.

    Args:
        family: "tab" (polynomials in t), "rhoab" (in rho), "log-rho" (in log rho, as diffusers), "ipndm" or "rhork".
        degree: r = 0 ... 3 of the multistep families, which use r + 1 noise estimates and are of order r + 1 (ipndm: at
            most 2, and that on even grids only). The `solver_order` of diffusers is r + 1.
        tableau: Runge-Kutta method of "rhork", a name in `TABLEAUX`; its stages go to real times also on tables.
        steps, nfe, grid: see :class:`scoreline.core.sampler.Sampler`; without `grid`, levels are even in the square
            root of t on VP, cosine and discrete schedules (even in t for ipndm), the schedule's own elsewhere.

    Raises:
        InputError: an unknown family or tableau, or a degree out of range.
    """

    order: int | None = 4
    rising = True
    min_steps: int = LeastSteps()  # type: ignore[assignment]

    def __init__(
        self,
        *,
        family: str = "tab",
        degree: int = 3,
        tableau: str = "3kutta",
        steps: int | None = None,
        nfe: int | None = None,
        grid: str | None = None,
    ) -> None:
        if family not in FAMILIES:
            raise unknown_name("family", family, FAMILIES)
        if isinstance(degree, bool) or degree not in range(4):
            raise InputError("degree", degree, "must be 0, 1, 2 or 3")
        if tableau not in TABLEAUX:
            raise unknown_name("tableau", tableau, TABLEAUX)
        self.family, self.degree, self.tableau = family, degree, tableau
        if family == "rhork":
            self.order = TABLEAUX[tableau].order
        else:
            self.order = degree + 1 if family != "ipndm" else min(degree + 1, 2)
        super().__init__(steps=steps, nfe=nfe, grid=grid)

    def _least(self) -> int:
        if self.family == "rhork":
            return min(2, len(TABLEAUX[self.tableau].c))
        return self.degree + 1 + (self.family == "log-rho" and self.degree > 0)

    def cost(self, steps: int) -> int:
        return steps if self.family != "rhork" else len(TABLEAUX[self.tableau].c) * (steps - 1) + 1

    def times(self, schedule: Schedule, evaluations: int = 1) -> np.ndarray:
        if self.grid is not None or self.family == "ipndm":
            return super().times(schedule, evaluations)
        # The paper's spacing is made for schedules whose signal fades with time as VP's does.
        fades = schedule.grid in ("time", "trailing") and schedule.alpha(schedule.t_max) < 1
        levels = lookup("grid", "power-t" if fades else schedule.grid)(schedule, self.plan(evaluations))
        return np.append(levels, schedule.clean)

    def coefficients(self, schedule: Schedule, times: Any) -> Rows:
        a, b, _ = eta_step(schedule, times[:-1], times[1:], 0.0)
        if self.family == "rhork":
            return Rows(times, a=a, b=b, **runge_kutta_table(schedule, times, tableau=self.tableau))
        history = _history(schedule, times, self.family, self.degree)
        older = {f"c{j + 1}": history[:, j] for j in range(self.degree)}
        more = np.arange(len(a)) < len(a) - 1
        return Rows(times, a=a, b=b, c=-history.sum(1), more=more, **older)

    def step(self, denoiser: Denoiser, state: State, row: SimpleNamespace) -> State:
        if self.family == "rhork":
            return state._replace(x=self._runge_kutta(denoiser, state.x, row))
        post = denoiser(state.x, row.t)
        x = post.combine(row.a, row.b, row.c)
        for j, eps in enumerate(state.memory, 1):
            # What comes first may be the network's own output and is not written to.
            x = (x.add if j == 1 else x.add_)(eps, alpha=getattr(row, f"c{j}"))
        memory = (post.eps, *state.memory)[: self.degree] if row.more else ()
        return State(x, state.noise, memory)

    def _runge_kutta(self, denoiser: Denoiser, x: Tensor, row: SimpleNamespace) -> Tensor:
        post = denoiser(x, row.t)
        if not row.stages:
            return post.combine(row.a, row.b)
        columns, method = vars(row), TABLEAUX[self.tableau]
        first = post.eps
        known = [first]
        for j in range(2, len(method.c) + 1):
            known.append(denoiser(_sum(x, columns[f"m{j}"], known, columns, f"k{j}"), columns[f"t{j}"]).eps)
        return _sum(x, row.m, known, columns, "k")


def _sum(x: Tensor, factor: float, known: list[Tensor], columns: dict[str, Any], name: str) -> Tensor:
    """factor x + sum_l columns[name + l] known_l."""
    out = x * factor
    for k, eps in enumerate(known, 1):
        if weight := columns[f"{name}{k}"]:
            out = out.add_(eps, alpha=weight)
    return out
