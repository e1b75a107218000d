"""The claim of system 34, measured in the plane: long jumps get better with more of them, renoised ones do not.

Kim, Lai et al. 2024 (arXiv 2310.02279). Data are eight modes of standard deviation 0.075 on a circle of radius 0.5, of
which the exact denoiser is the teacher, so that no teacher is trained. An MLP of three layers of 128 learns by
(A) consistency distillation: always to the end, one Heun step, (B) CTM with its consistency and denoising losses,
squared distance, no adversarial term, (C) the same without the denoising loss; equal updates and optimizer. Sampled by
1 to 16 evaluations at gamma 0, 0.5 and 1 (A at 1 alone) and scored by the sliced Wasserstein-1 distance to real points.

The rule, from the plan of this claim:
- confirmed: B at gamma 0 with 8 evaluations lies at least 15 % below 1 evaluation on the seed median, and on no seed
  above it by more than the spread (the standard deviation over seeds with 1 evaluation); A, and B at gamma 1, are not
  better with 8 evaluations than with 2 on the seed median; C is worse than B with 16 at gamma 0 on the seed median.
- refuted: B at gamma 0 is worse with 8 evaluations than with 1 on the seed median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median, stdev
from typing import Any

import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.flow_map import FlowMap
from scoreline.core.method import Method
from scoreline.core.noise import Noise, derive
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.consistency_models import CD
from scoreline.fewstep.ctm import CTM, number_of_steps_weights
from scoreline.fewstep.maps import ConsistencyFunction, Trajectory
from scoreline.metrics.sliced_wasserstein import sliced_wasserstein
from scoreline.nn.mlp import MLP
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

__all__ = ["ARMS", "CLAIM", "STEPS", "CTMClaim", "teacher"]

RADIUS, STD, MODES = 0.5, 0.075, 8
SIGMA_DATA = math.sqrt(RADIUS**2 / 2 + STD**2)
POINTS, BATCH, LR, AVERAGE = 18, 128, 1e-3, 0.999
STEPS = (1, 2, 4, 8, 16)
ARMS = ("A: CD", "B: CTM", "C: CTM without DSM")
CD_ARM, CTM_ARM, BARE_ARM = ARMS
GAMMAS = {CD_ARM: (1.0,), CTM_ARM: (0.0, 0.5, 1.0), BARE_ARM: (0.0, 0.5, 1.0)}


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        updates: of each arm.
        teacher_steps: M of CTM.
        samples: points of each score.
        directions: of the sliced distance.
        data: points trained on.
    """

    updates: int
    teacher_steps: int
    samples: int
    directions: int
    data: int


SIZES = {
    "laptop": Scale(updates=3000, teacher_steps=17, samples=5000, directions=200, data=20000),
    "smoke": Scale(updates=2, teacher_steps=2, samples=50, directions=10, data=256),
}


def teacher() -> Mixture:
    """The exact denoiser of the eight modes, on EDM's schedule."""
    angle = torch.arange(MODES) * (2 * math.pi / MODES)
    return Mixture(EDM(), RADIUS * torch.stack([angle.cos(), angle.sin()], 1), STD**2)


class CTMClaim(Claim):
    """Consistency distillation, CTM, and CTM without denoising, by evaluations and gamma."""

    system = "34"
    statement = (
        "Samples of a consistency trajectory model get better with more evaluations by deterministic long jumps, those "
        "of renoised jumps, and of consistency models, do not; the denoising loss helps where evaluations are many."
    )
    arms = ARMS
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 180.0, "smoke": 1.0}
    shrunk = (
        "eight modes in the plane, an MLP and the exact denoiser as teacher in place of networks on CIFAR-10",
        "squared distance in place of LPIPS, no adversarial term, sliced Wasserstein-1 of 5000 points in place of FID",
        "points only: the plan's second run, on digits as a kernel density, is left out",
    )

    def weight(self, arm: str, scale: str) -> float:
        return 0.4 if arm == CD_ARM else 1.0

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes = SIZES[scale]
        data = memo("data", lambda: _points(sizes.data, derive(seed, "ctm", "data")))
        method, evaluations = _method(arm, seed, sizes)
        trained = fit(method, data, steps=sizes.updates, batch_size=BATCH, seed=derive(seed, "ctm"), ema=AVERAGE)
        model: FlowMap = trained.result().denoiser
        real = memo("real", lambda: _points(sizes.samples, derive(seed, "ctm", "real")))
        across = Noise(derive(seed, "ctm", "directions")).at(range(sizes.directions), (2,)).normal()
        draws = Noise(derive(seed, "ctm", "samples")).at(range(sizes.samples), (2,))
        other = memo("floor", lambda: _points(sizes.samples, derive(seed, "ctm", "floor")))
        out: dict[str, float | None] = {BUDGET: float(evaluations * BATCH * sizes.updates)}
        out["floor"] = sliced_wasserstein(real, other, across)
        for gamma in (0.0, 0.5, 1.0):
            for steps in STEPS:
                name = f"sw_gamma{gamma:g}_{steps}"
                out[name] = None
                if gamma in GAMMAS[arm]:
                    x = Jumps(gamma=gamma, steps=steps)(model, draws).x
                    out[name] = sliced_wasserstein(real, x, across)
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        one, eight = _column(numbers, CTM_ARM, 0, 1), _column(numbers, CTM_ARM, 0, 8)
        spread = stdev(one) if len(one) > 1 else 0.0
        ratio = median(eight) / median(one)
        above = max(b - a for a, b in zip(one, eight))
        two_a, eight_a = (median(_column(numbers, CD_ARM, 1, n)) for n in (2, 8))
        two_b, eight_b = (median(_column(numbers, CTM_ARM, 1, n)) for n in (2, 8))
        with_dsm, without = (median(_column(numbers, arm, 0, 16)) for arm in (CTM_ARM, BARE_ARM))
        parts = [
            Part(
                "CTM at gamma 0 is at least 15% better with 8 evaluations than with 1",
                ratio <= 0.85,
                f"{median(one):.4f} with 1, {median(eight):.4f} with 8",
            ),
            Part(
                "on no seed is it worse with 8 than with 1 by more than the spread over seeds",
                above <= spread,
                f"at most {above:+.4f}, spread {spread:.4f}",
            ),
            Part(
                "consistency distillation is not better with 8 evaluations than with 2",
                eight_a >= two_a,
                f"{two_a:.4f} with 2, {eight_a:.4f} with 8",
            ),
            Part(
                "CTM at gamma 1 is not better with 8 evaluations than with 2",
                eight_b >= two_b,
                f"{two_b:.4f} with 2, {eight_b:.4f} with 8",
            ),
            Part(
                "without the denoising loss CTM is worse with 16 evaluations at gamma 0",
                without > with_dsm,
                f"{with_dsm:.4f} with it, {without:.4f} without",
            ),
        ]
        return settle(parts) if ratio <= 1 else "refuted", parts

    def findings(self, numbers: Numbers) -> list[str]:
        curves = [
            f"{arm} at gamma {gamma:g}: "
            + ", ".join(f"{median(_column(numbers, arm, gamma, n)):.4f} with {n}" for n in STEPS)
            for arm in ARMS
            for gamma in GAMMAS[arm]
        ]
        floor = median(_known(numbers[CTM_ARM]["floor"]))
        return [f"Medians over seeds. {'; '.join(curves)}.", f"Two sets of real points lie {floor:.4f} apart."]


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _column(numbers: Numbers, arm: str, gamma: float, steps: int) -> list[float]:
    return _known(numbers[arm][f"sw_gamma{gamma:g}_{steps}"])


def _points(count: int, seed: int) -> Tensor:
    draws = Noise(seed).at(range(count), (2,))
    return teacher().means[draws.integers(MODES, part=1)] + STD * draws.normal()


def _method(arm: str, seed: int, sizes: Scale) -> tuple[Method, float]:
    """The method of an arm, and its evaluations an image and update: forward 1, backward 2, the teacher's counted."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "ctm", "net") % 2**63)
        net = MLP(in_shape=(2,), width=128, depth=3, second_time=arm != CD_ARM)
    if arm == CD_ARM:
        student = ConsistencyFunction(net, EDM(), sigma_data=SIGMA_DATA)
        return CD(student, teacher(), steps=sizes.updates, points=POINTS, distance="squared", lr=LR), 3 + 1 + 2
    method = CTM(
        Trajectory(net, EDM(), sigma_data=SIGMA_DATA),
        teacher(),
        points=POINTS,
        teacher_steps=sizes.teacher_steps,
        distance="squared",
        dsm_weight=0.0 if arm == BARE_ARM else None,
        lr=LR,
    )
    weights = number_of_steps_weights(sizes.teacher_steps)
    walked = 2 * float((weights * range(1, len(weights) + 1)).sum())
    # Estimate and target take two jumps each, the way back goes through both of the estimate.
    return method, 4 + 4 + walked + (0 if arm == BARE_ARM else 3)


CLAIM = CTMClaim()
