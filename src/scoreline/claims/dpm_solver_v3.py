"""The claim of system 25, measured on a mixture with the exact score: the model's own statistics save evaluations.

Zheng et al. 2023 (arXiv 2310.13268). The data are a mixture of three Gaussians in 12 dimensions on the VP schedule, so
that the score is exact and nothing is trained. The statistics are estimated from 128 points drawn from the mixture, on
120 nodes, with exact Jacobian diagonals; a second set comes from points of one wide Gaussian. Each arm solves the ODE
from t = 1 to t = 0.001 for 256 starts on levels uniform in lambda, M evaluations for M steps, and is compared start by
start with a solution of 1500 steps. The degenerate choice l = 1, s = b = 0 is DPM-Solver++ in Taylor form.

The rule, from the plan of this claim:
- confirmed: the median error with the model's statistics is at most 0.7 of that of the degenerate arm at 5, 6, 8 and 10
  evaluations for orders 2 and 3, with and without corrector; the gap closes or reverses, in the mean, at 15 and 20;
- refuted: the ratio is 1 or more at 5 to 8 evaluations (the geometric mean over these arms).
Statistics from the wrong data should help less; that is told beside the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.noise import Noise, derive
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.schedules import VP
from scoreline.samplers.dpm_solver_pp import DPMSolverPP3M
from scoreline.samplers.dpm_solver_v3 import DPMSolverV3
from scoreline.samplers.model_statistics import ModelStatistics
from scoreline.samplers.statistics_estimation import estimate

__all__ = ["ARMS", "CLAIM", "Arm", "DPMSolverV3Claim", "exact_mixture", "levels"]

D, NFES = 12, (5, 6, 8, 10, 15, 20)
FEW, FEWEST, MANY = (5, 6, 8, 10), (5, 6, 8), (15, 20)
RATIO = 0.7


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        points: from which the statistics are estimated.
        nodes: N.
        starts: on which errors are measured.
        fine: steps of the solution they are compared with.
    """

    points: int
    nodes: int
    starts: int
    fine: int


SIZES = {
    "laptop": Scale(points=128, nodes=120, starts=256, fine=1500),
    "smoke": Scale(points=48, nodes=24, starts=16, fine=200),
}


@dataclass(frozen=True)
class Arm:
    """One way of solving.

    Args:
        statistics: "model", "data" (degenerate) or "wrong" (from other data).
        order: of the predictor.
        corrector: whether there is one.
    """

    statistics: str
    order: int
    corrector: bool

    @property
    def name(self) -> str:
        return f"{self.statistics} order {self.order}{' corrected' if self.corrector else ''}"

    def of(self, statistics: str) -> str:
        """The name of the arm with other statistics."""
        return Arm(statistics, self.order, self.corrector).name


OWN = tuple(Arm("model", order, corrector) for order in (2, 3) for corrector in (False, True))
ARMS = {arm.name: arm for kind in ("model", "data", "wrong") for arm in (Arm(kind, o.order, o.corrector) for o in OWN)}


def exact_mixture() -> Mixture:
    """Three Gaussians in 12 dimensions, standard deviations 0.2, 0.3 and 0.4, the exact model of them on VP."""
    means = Noise(25).at(range(3), (D,), dtype=torch.float64).normal() * 0.8
    return Mixture(VP(), means, torch.tensor([0.04, 0.09, 0.16], dtype=torch.float64))


def levels(steps: int) -> np.ndarray:
    """steps + 1 times uniform in lambda, from t = 1 to t = 0.001."""
    schedule = VP()
    times = schedule.time(np.linspace(schedule.lam(schedule.t_max), schedule.lam(schedule.t_min), steps + 1))
    times[0], times[-1] = schedule.t_max, schedule.t_min
    return times


def _points(count: int, seed: int, *, wrong: bool) -> Tensor:
    """Points of the mixture, component k mod 3 for point k; or of one Gaussian with its mean and twice its spread."""
    model = exact_mixture()
    draw = Noise(seed).at(range(count), (D,), dtype=torch.float64).normal()
    of = torch.arange(count) % 3
    points = model.means[of] + model.variances[of].sqrt()[:, None] * draw
    return points.mean(0) + 2 * points.std(0) * draw if wrong else points


class DPMSolverV3Claim(Claim):
    """The model's statistics against none."""

    system = "25"
    statement = "With the model's own statistics the ODE takes fewer evaluations than the best earlier solvers need."
    arms = tuple(ARMS)
    seconds: Mapping[str, float] = {"laptop": 60.0, "smoke": 5.0}
    shrunk = (
        "a mixture of three Gaussians in 12 dimensions with the exact score in place of CIFAR-10 networks",
        "distance to the ODE's solution, start by start, in place of FID",
    )

    def weight(self, arm: str, scale: str) -> float:
        return 1.0

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        how, sizes, model = ARMS[arm], SIZES[scale], exact_mixture()
        draws = Noise(derive(seed, "dpm-solver-v3", "starts")).at(range(sizes.starts), (D,), dtype=torch.float64)
        exact = memo("exact", lambda: DPMSolverPP3M()(model, draws, times=levels(sizes.fine)).x)
        sampler = DPMSolverV3(solver_order=how.order, corrector=how.corrector, statistics="data")
        if how.statistics != "data":
            sampler = sampler.using(memo(how.statistics, lambda: _statistics(how.statistics, seed, sizes)))
        out: dict[str, float | None] = {}
        for nfe in NFES:
            sample = sampler(model, draws, times=levels(nfe))
            error = (sample.x - exact).square().mean(1).sqrt()
            out[f"median_{nfe}"], out[f"mean_{nfe}"] = float(error.median()), float(error.mean())
            if sample.nfe != nfe:
                raise AssertionError("the arms do not cost the same")
        # A Jacobian-vector product counts as two evaluations.
        spent = 0 if how.statistics == "data" else sizes.points * (sizes.nodes + 1) * (1 + 2 * D + 2)
        return {**out, BUDGET: spent}

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        parts = []
        for order in (2, 3):
            shares = {
                (nfe, arm.corrector): _ratio(numbers, arm, f"median_{nfe}")
                for arm in OWN
                for nfe in FEW
                if arm.order == order
            }
            parts.append(
                Part(
                    f"order {order}: at most {RATIO} of the degenerate error at 5 to 10 evaluations, median",
                    max(shares.values()) <= RATIO,
                    f"ratio {min(shares.values()):.2f} to {max(shares.values()):.2f}",
                )
            )
        few, many = (_together(numbers, nfes, "mean") for nfes in (FEW, MANY))
        parts.append(
            Part(
                "the gap closes or reverses at 15 and 20 evaluations, mean",
                many > few,
                f"ratio {few:.2f} at 5 to 10, {many:.2f} at 15 and 20",
            )
        )
        if _together(numbers, FEWEST, "median") >= 1:
            return "refuted", parts
        return settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def worded(statistics: str, what: str) -> str:
            values = (_together(numbers, (nfe,), what, statistics) for nfe in NFES)
            return ", ".join(f"{value:.2f} at {nfe}" for nfe, value in zip(NFES, values))

        best = min(OWN, key=lambda arm: _mean(numbers, arm.name, "median_10"))
        return [
            "Error over that of the degenerate arm, geometric mean of the four solvers: median "
            f"{worded('model', 'median')} evaluations; mean {worded('model', 'mean')}.",
            f"With statistics from the wrong data: median {worded('wrong', 'median')}.",
            f"Least median error at 10 evaluations: {best.name}.",
        ]


def _statistics(kind: str, seed: int, sizes: Scale) -> ModelStatistics:
    points = _points(sizes.points, derive(seed, "dpm-solver-v3", "points"), wrong=kind == "wrong")
    return estimate(
        exact_mixture(), (points, None), samples=sizes.points, nodes=sizes.nodes, diagonal="exact",
        seed=derive(seed, "dpm-solver-v3", "noise"),
    )  # fmt: skip


def _ratio(numbers: Numbers, arm: Arm, name: str, statistics: str = "model") -> float:
    """Mean over seeds with these statistics over that of the degenerate arm."""
    return _mean(numbers, arm.of(statistics), name) / _mean(numbers, arm.of("data"), name)


def _mean(numbers: Numbers, arm: str, name: str) -> float:
    return mean(value for value in numbers[arm][name] if value is not None)


def _together(numbers: Numbers, nfes: tuple[int, ...], what: str, statistics: str = "model") -> float:
    """Geometric mean of the ratios of all four solvers at some costs."""
    logs = [math.log(_ratio(numbers, arm, f"{what}_{nfe}", statistics)) for arm in OWN for nfe in nfes]
    return math.exp(mean(logs))


CLAIM = DPMSolverV3Claim()
