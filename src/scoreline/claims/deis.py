"""The claim of system 12, measured on digits: each ingredient of DEIS lowers the error at ten evaluations.

Zhang & Chen 2023 (arXiv 2204.13902). The training digits as a kernel density (each image a Gaussian of variance 0.02)
on the VP schedule give the exact noise estimate, so that only discretisation is measured: the root mean square distance
of each image to the probability-flow ODE solved to 1e-8 from the same noise, at t = 1e-3. All starts count; the median
is told, since starts near a boundary between modes flip, and the share of flips beside it.

The rule, from the plan of this claim:
- confirmed: at N = 10, error(Euler) > error(DDIM) > error(tAB1) > error(tAB2) >= error(tAB3); tAB3 at least 2x below
  DDIM. Errors are means over seeds of the medians.
- refuted: tAB3 not better than DDIM at 10, 15 or 20 steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.noise import Draws, Noise, derive
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Schedule
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.grids import power_t
from scoreline.diffusion.schedules import VP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.deis import DEIS
from scoreline.samplers.euler import Euler

__all__ = ["ARMS", "BUDGETS", "CLAIM", "DEISClaim", "converged", "paper_grid"]

BUDGETS = (5, 8, 10, 15, 20)
VARIANCE = 0.02
T_END = 1e-3


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        count: starts a seed.
        images: of the kernel density, from the front of the training split.
        tolerance: of the reference.
    """

    count: int
    images: int
    tolerance: float


SIZES = {"laptop": Scale(count=256, images=1297, tolerance=1e-8), "smoke": Scale(count=8, images=60, tolerance=1e-4)}

ARMS: dict[str, Sampler] = {
    "euler": Euler(),
    "ddim": DDIM(),
    **{f"tab{r}": DEIS(family="tab", degree=r) for r in (1, 2, 3)},
    **{f"rhoab{r}": DEIS(family="rhoab", degree=r) for r in (1, 2, 3)},
    "rhork 2heun": DEIS(family="rhork", tableau="2heun"),
    "rhork 4rk": DEIS(family="rhork", tableau="4rk"),
    "ipndm3": DEIS(family="ipndm", degree=3),
    "log-rho2": DEIS(family="log-rho", degree=2),
}
STAGES = {"rhork 2heun": 2, "rhork 4rk": 4}


def paper_grid(schedule: Schedule, steps: int) -> np.ndarray:
    """N + 1 times from 1 to 1e-3, even in the square root of t: N evaluations."""
    return np.append(power_t(schedule, steps), schedule.t_min)


class DEISClaim(Claim):
    """DDIM, tAB, rhoAB, rhoRK, iPNDM and Euler against the ODE."""

    system = "12"
    statement = (
        "Good samples in about 10 evaluations without training: the exponential integrator, the noise parameterisation "
        "and polynomial extrapolation each lower the error."
    )
    arms = tuple(ARMS)
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 25.0, "smoke": 1.0}
    shrunk = (
        "a kernel density of 1297 8x8 digits with the exact noise estimate in place of trained networks on CIFAR-10",
        "256 starts a seed and the distance to the ODE in place of 50,000 samples and FID",
    )

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes = SIZES[scale]
        model = memo("model", lambda: _model(sizes))
        draws = Noise(derive(seed, "deis")).at(range(sizes.count), model.shape, dtype=torch.float64)
        exact = memo("exact", lambda: converged(model, draws, sizes.tolerance))
        home = memo("home", lambda: _nearest(model, exact))
        out: dict[str, float | None] = {BUDGET: 0}
        for budget in BUDGETS:
            times = paper_grid(model.schedule, budget // STAGES.get(arm, 1))
            sample = ARMS[arm](model, draws, times=times)
            distance = (sample.x - exact).flatten(1).square().mean(1).sqrt()
            out[f"rmse_{budget}"] = float(distance.median())
            out[f"flips_{budget}"] = float((_nearest(model, sample.x) != home).double().mean())
            out[f"nfe_{budget}"] = sample.nfe
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        at10 = {arm: _error(numbers, arm, 10) for arm in ("euler", "ddim", "tab1", "tab2", "tab3")}
        shown = ", ".join(f"{arm} {value:.3g}" for arm, value in at10.items())
        ladder = at10["euler"] > at10["ddim"] > at10["tab1"] > at10["tab2"] >= at10["tab3"]
        ratio = at10["ddim"] / at10["tab3"]
        better = [_error(numbers, "tab3", n) < _error(numbers, "ddim", n) for n in (10, 15, 20)]
        parts = [
            Part("at 10 evaluations Euler, DDIM, tAB1, tAB2, tAB3 err less and less", ladder, f"median RMSE: {shown}"),
            Part("tAB3 errs at most half as much as DDIM at 10 evaluations", ratio >= 2, f"{ratio:.2f} times less"),
            Part(
                "tAB3 is better than DDIM at 10, 15 and 20 evaluations",
                all(better),
                ", ".join(
                    f"{_error(numbers, 'ddim', n) / _error(numbers, 'tab3', n):.2f}x at {n}" for n in (10, 15, 20)
                ),
            ),
        ]
        return settle(parts) if any(better) else "refuted", parts

    def findings(self, numbers: Numbers) -> list[str]:
        best = {n: min(numbers, key=lambda arm: _error(numbers, arm, n)) for n in BUDGETS}
        said = ", ".join(f"{arm} ({_error(numbers, arm, n):.3g}) at {n}" for n, arm in best.items())
        flips = {arm: mean(_known(numbers[arm]["flips_10"])) for arm in ("ddim", "tab3")}
        rho = ", ".join(f"{_error(numbers, f'rhoab{r}', 10):.3g}" for r in (1, 2, 3))
        return [
            f"Smallest median error: {said}.",
            f"Starts that end nearest to another digit than the ODE does, at 10: DDIM {flips['ddim']:.1%}, tAB3 "
            f"{flips['tab3']:.1%}.",
            f"Polynomials in rho on the same grid at 10 (rhoAB1, 2, 3): {rho}.",
        ]


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _error(numbers: Numbers, arm: str, budget: int) -> float:
    return mean(_known(numbers[arm][f"rmse_{budget}"]))


def _model(sizes: Scale) -> Empirical:
    data = load_images("digits", split="train")
    images = data.batch(range(min(sizes.images, len(data)))).image.double()
    return Empirical(VP(t_min=T_END), images, smoothing=math.sqrt(VARIANCE))


def _nearest(model: Empirical, x: Tensor) -> Tensor:
    """Number of the image whose Gaussian holds most of x at t = 1e-3."""
    return model.responsibilities(x, T_END).argmax(1)


@torch.no_grad()
def converged(model: Empirical, draws: Draws, tolerance: float) -> Tensor:
    """The probability-flow ODE from t = 1 to 1e-3 by an eighth-order adaptive solver of SciPy in u = log rho.

    With v = x/alpha: dv/du = rho eps(alpha v, t).

    Args:
        model: the kernel density.
        draws: the images' noise, float64.
        tolerance: relative and absolute.
    """
    from scipy.integrate import solve_ivp

    schedule = model.schedule
    start, end = 1.0, T_END
    shape = (len(draws), *model.shape)

    def slope(u: float, v: np.ndarray) -> np.ndarray:
        t = float(np.clip(schedule.time(-u), end, start))
        x = torch.from_numpy(v).reshape(shape) * schedule.alpha(t)
        return (math.exp(u) * model(x, t).eps).numpy().ravel()

    first = (draws.normal() * schedule.prior(start) / schedule.alpha(start)).numpy().ravel()
    span = (-schedule.lam(start), -schedule.lam(end))
    run = solve_ivp(slope, span, first, method="DOP853", rtol=tolerance, atol=tolerance)
    return torch.from_numpy(run.y[:, -1].copy()).reshape(shape) * schedule.alpha(end)


CLAIM = DEISClaim()
