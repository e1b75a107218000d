"""The claim of system 14, measured on a point and on digits: iCT's changes carry consistency training.

Song & Dhariwal 2024 (arXiv 2310.14189). Two parts:
- Proposition 1, without a network: data are the point xi = 1, the model is f(x, s) = (s_min/s) x + (1 - s_min/s) theta
  with theta = 0 at the start; 400 steps of plain gradient descent at 1e-3 on 256 pairs each, squared distance, weight
  1/gap, gaps drawn evenly, N levels from 11 to 1281; the target is the student itself, or its average (decay 0.9).
- Digits: a small unconditional MLP is trained from all 1797 images by (A) consistency training as first published with
  the squared distance, (B) iCT, (C) iCT with an averaged target, (D) iCT with the squared distance; equal updates,
  optimizer and average for sampling. Scored against the same images: Frechet distance of raw pixels, and the sliced
  Wasserstein distance, at one and two steps.

The rule, from the plan of this claim:
- point, confirmed: without an average theta > 0.9 for every N; with it theta falls monotonically with N and is at least
  3 times behind at N = 1281. Refuted: no dependence on N with the average.
- digits, expected: B below A by at least 30 % on all seeds; C and D each between A and B. Refuted if B is not below A
  on the seed median. Distances are those of one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, median

import numpy as np
import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.method import Method
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.consistency_models import CT, uniform_pair
from scoreline.fewstep.curricula import ascending_levels
from scoreline.fewstep.distances import squared
from scoreline.fewstep.ict import ICT, PointMass, ict_loss
from scoreline.fewstep.maps import ConsistencyFunction
from scoreline.fewstep.teachers import copied, ema_update
from scoreline.metrics.frechet import frechet_distance
from scoreline.nn.mlp import MLP
from scoreline.train import fit

__all__ = ["ARMS", "CLAIM", "ICTClaim", "point_theta", "sliced_wasserstein"]

POINTS = (11, 41, 161, 641, 1281)
TARGET_EMA = 0.9
BATCH, LR, AVERAGE, MIDDLE = 128, 1e-3, 0.999, 0.821
POINT_BATCH, POINT_LR, POINT_STEPS = 256, 1e-3, 400
DIGITS = ("A: CT", "B: iCT", "C: iCT, averaged target", "D: iCT, squared")
EXACT = tuple(f"point, {kind}, N={n}" for kind in ("itself", "average") for n in POINTS)
ARMS = EXACT + DIGITS


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        steps: updates on digits.
        count: images an arm.
        width, depth: of the MLP.
        projections: directions of the sliced distance.
    """

    steps: int
    count: int
    width: int
    depth: int
    projections: int


SIZES = {
    "laptop": Scale(steps=4000, count=5000, width=128, depth=3, projections=256),
    "smoke": Scale(steps=8, count=80, width=16, depth=1, projections=8),
}


def point_theta(points: int, averaged: bool, seed: int, steps: int = POINT_STEPS) -> float:
    """Where theta is after gradient descent on a single data point at 1.

    Args:
        points: N, the number of levels.
        averaged: whether the target is an average of the student, decay 0.9, or the student itself.
        seed: of the draws.
        steps: of gradient descent.
    """
    model = PointMass(torch.zeros(1, dtype=torch.float64))
    target = copied(model) if averaged else None
    levels = torch.from_numpy(ascending_levels(points))
    x0 = torch.ones(POINT_BATCH, 1, dtype=torch.float64)
    descent = torch.optim.SGD(model.parameters(), lr=POINT_LR)
    for step in range(steps):
        draws = Noise(derive(seed, "point", step)).at([0], (POINT_BATCH,), dtype=torch.float64)
        i = uniform_pair(draws.uniform(part=1, shape=(POINT_BATCH,))[0], points)
        noise = draws.normal().view(-1, 1)
        descent.zero_grad()
        ict_loss(model, x0, noise, levels[i], levels[i + 1], apart=squared, target=target).backward()
        descent.step()
        if target is not None:
            ema_update(target, model, TARGET_EMA)
    return float(model.theta.detach())


def sliced_wasserstein(a: Tensor, b: Tensor, seed: int, projections: int) -> float:
    """Mean over random directions of the 1-Wasserstein distance between the projections of two sets.

    Args:
        a, b: (N, D), (M, D).
        seed: of the directions.
        projections: their number.
    """
    directions = Noise(derive(seed, "sliced")).at(range(projections), (a.shape[1],), dtype=torch.float64).normal()
    directions = directions / directions.norm(dim=1, keepdim=True)
    at = torch.from_numpy((np.arange(2000) + 0.5) / 2000)
    left, right = (torch.quantile(x.double() @ directions.T, at, dim=0) for x in (a, b))
    return float((left - right).abs().mean())


class ICTClaim(Claim):
    """Consistency training as first published, improved, and with one change at a time undone."""

    system = "14"
    statement = (
        "Consistency training from data alone becomes far better without an average in its target, with the "
        "pseudo-Huber distance, the weight 1/gap, doubling levels and lognormal draws."
    )
    arms = ARMS
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 180.0, "smoke": 4.0}
    shrunk = (
        "1797 8x8 digits in place of CIFAR-10 and ImageNet, trained and scored on the same images",
        "an MLP of 3 layers of 128 in place of the U-Net; no dropout",
        "4000 updates of 128 images in place of 400,000 of 1024: absolute numbers mean nothing",
        "the squared distance in place of LPIPS for CT; raw pixels in place of Inception for scores",
    )

    def weight(self, arm: str, scale: str) -> float:
        return 1.0 if arm in EXACT else 30.0

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        if arm in EXACT:
            points, steps = int(arm.rpartition("=")[2]), POINT_STEPS if scale != "smoke" else 5
            theta = point_theta(points, "average" in arm, derive(seed, "ict"), steps)
            return {BUDGET: 4 * POINT_BATCH * steps, "theta": theta}
        sizes = SIZES[scale]
        images = load_images("digits")
        trained = fit(
            self.method(arm, seed, sizes), images, steps=sizes.steps, batch_size=BATCH, seed=derive(seed, "ict"),
            ema=AVERAGE,
        )  # fmt: skip
        made = trained.result()
        real = memo("real", lambda: images.batch(range(len(images))).image.flatten(1))
        # Student 1 and its gradient 2, target 1.
        out: dict[str, float | None] = {BUDGET: 4 * BATCH * sizes.steps}
        for steps in (1, 2):
            x = made.generate(range(sizes.count), Noise(derive(seed, "samples")), steps=steps).flatten(1)
            out[f"fd_{steps}"] = frechet_distance(real.double(), x.double())
            out[f"sliced_{steps}"] = sliced_wasserstein(real, x, seed, sizes.projections)
        return out

    def method(self, arm: str, seed: int, sizes: Scale) -> Method:
        """The method of an arm on a network of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "net") % 2**63)
            net = MLP(in_shape=(1, 8, 8), width=sizes.width, depth=sizes.depth)
        student = ConsistencyFunction(net, EDM(), middle=MIDDLE)
        if arm == DIGITS[0]:
            return CT(student, steps=sizes.steps, lr=LR)
        if arm == DIGITS[2]:
            return ICT(student, steps=sizes.steps, lr=LR, target_ema=0.95)
        return ICT(student, steps=sizes.steps, lr=LR, distance="squared" if arm == DIGITS[3] else "pseudo-huber")

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        itself, average = ([_values(numbers, arm, "theta") for arm in EXACT[k : k + 5]] for k in (0, 5))
        least = min(min(values) for values in itself)
        means = [mean(values) for values in average]
        falls = all(a > b for a, b in pairwise(means))
        behind = mean(itself[-1]) / max(means[-1], 1e-12)
        first = {arm: _values(numbers, arm, "fd_1") for arm in DIGITS}
        a, b, c, d = (median(first[arm]) for arm in DIGITS)
        gains = [1 - after / before for before, after in zip(first[DIGITS[0]], first[DIGITS[1]])]
        parts = [
            Part(
                "without an average theta comes to more than 0.9 of the way at every number of levels",
                least > 0.9,
                f"least theta {least:.3f}",
            ),
            Part(
                "with an averaged target theta falls with the number of levels and is 3 times behind at 1281",
                falls and behind >= 3,
                f"{', '.join(f'{n}: {value:.3f}' for n, value in zip(POINTS, means))}; {behind:.1f} times behind",
            ),
            Part(
                "iCT's distance is at least 30 % below that of CT on every seed",
                all(gain >= 0.3 for gain in gains),
                ", ".join(f"{gain:.0%}" for gain in gains),
            ),
            Part("with an averaged target iCT lies between the two", b < c < a, f"{c:.3g} in {b:.3g} ... {a:.3g}"),
            Part("with the squared distance iCT lies between the two", b < d < a, f"{d:.3g} in {b:.3g} ... {a:.3g}"),
        ]
        independent = means[-1] >= means[0]
        return "refuted" if independent or b >= a else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        second = ", ".join(f"{arm} {median(_values(numbers, arm, 'fd_2')):.3g}" for arm in DIGITS)
        sliced = ", ".join(f"{arm} {median(_values(numbers, arm, 'sliced_1')):.3g}" for arm in DIGITS)
        return [
            f"Median Frechet distance at two steps, the second from {MIDDLE}: {second}.",
            f"Median sliced Wasserstein distance at one step: {sliced}.",
        ]


def _values(numbers: Numbers, arm: str, name: str) -> list[float]:
    return [value for value in numbers[arm][name] if value is not None]


CLAIM = ICTClaim()
