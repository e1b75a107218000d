"""The claim of system 30, measured on digits: several students, each for a share of the classes, at equal total cost.

Song et al. 2025 (arXiv 2410.23274). Two parts:
- Scatter, without a network: eight class means on the ellipse (2 cos, sin) at multiples of 45 degrees; what a student
  has to cover, in partitions of neighbours and in partitions that deal neighbours out, K = 1, 2, 4, 8.
- Digits 0 to 7: the teacher is exact, the images of each class under Gaussian kernels of 0.15. Students are small MLPs
  of width 48 on purpose, first fitted to the teacher (TSM) on their share, then trained by distribution matching with
  a large critic that starts as a fit to the teacher, in equal numbers of turns:
  (A) one student at a batch of 128, (B) one at 32, (C) four at 32, neighbours together, (D) four at 32, shares at
  random, (E) eight at 16, (F) four at 32 without TSM, (G) the teacher's own draws. A, C, D, E and F see equal samples
  in all. Scored by the Frechet distance of raw pixels between the images and 2000 pooled samples, labels in turn.

The rule, from the plan of this claim:
- confirmed: C below A on all seeds, and the mean falls from A to C to E.
- refuted: A is within one standard deviation over seeds of C, or below it.
- expected besides: without TSM the distance is at least twice as large; scatter falls strictly from 2.5 to 0 where
  neighbours stay together, and stays at 2.5 until K = 8 where they do not.
Random shares are reported beside; the paper promises nothing of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.evaluate.specs import labels_for
from scoreline.fewstep.class_shares import (
    ClassRouter,
    consecutive_shares,
    interleaved_shares,
    of_classes,
    random_shares,
    within_share_scatter,
)
from scoreline.fewstep.dmd2 import DMD2
from scoreline.fewstep.mean_map import mean_map
from scoreline.fewstep.msd import Routed
from scoreline.fewstep.teacher_matching import TeacherMatching
from scoreline.metrics.frechet import frechet_distance
from scoreline.nn.mlp import MLP
from scoreline.samplers.generator import Sampled
from scoreline.samplers.jumps import Jumps
from scoreline.train import fit

__all__ = ["ARMS", "CLAIM", "MSDClaim", "class_means"]

CLASSES, SMOOTHING, SIGMA_DATA = 8, 0.15, 0.75
COUNTS = (1, 2, 4, 8)
SCATTER = ("scatter, neighbours together", "scatter, dealt out")
A, B, C, D, E, F = (
    "A: one student, batch 128",
    "B: one student, batch 32",
    "C: four students, batch 32",
    "D: four at random, batch 32",
    "E: eight students, batch 16",
    "F: four students without TSM",
)
EXACT = "G: exact samples"
ARMS = (*SCATTER, A, B, C, D, E, F, EXACT)
STUDENTS = {A: (1, 128), B: (1, 32), C: (4, 32), D: (4, 32), E: (8, 16), F: (4, 32)}
RATIO, LR, CRITIC_LR, TSM_LR, AVERAGE = 5, 1e-3, 1e-3, 1e-3, 0.99


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        turns: of distribution matching, a student; it is updated on every fifth.
        fitted: updates of TSM, a student.
        critic_fitted: updates that fit the critic to the teacher.
        count: pooled samples.
        width, critic_width: of the MLPs.
    """

    turns: int
    fitted: int
    critic_fitted: int
    count: int
    width: int
    critic_width: int


SIZES = {
    "laptop": Scale(turns=1200, fitted=300, critic_fitted=1500, count=2000, width=48, critic_width=256),
    "smoke": Scale(turns=3, fitted=2, critic_fitted=2, count=80, width=8, critic_width=16),
}


def class_means() -> Tensor:
    """(8, 2): (2 cos, sin) at multiples of 45 degrees."""
    angles = torch.arange(CLASSES, dtype=torch.float64) * torch.pi / 4
    return torch.stack([2 * angles.cos(), angles.sin()], 1)


class MSDClaim(Claim):
    """One, four and eight students for eight digits, at equal total cost."""

    system = "30"
    statement = (
        "Several one-step students, each for a share of the classes, are together better than one student trained at "
        "the same total cost, and the better the more there are."
    )
    arms = ARMS
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 200.0, "smoke": 2.0}
    shrunk = (
        "8x8 digits 0 to 7 and their exact kernel density in place of ImageNet-64 and a trained U-Net",
        "students of width 48 and 3 layers; 1200 turns in place of 4000 (20,000 in the paper); no adversarial stage",
        "the critic starts as a fit to the exact teacher, which has no network to copy; that fit is in no arm's cost",
    )

    def weight(self, arm: str, scale: str) -> float:
        return float(STUDENTS[arm][0]) if arm in STUDENTS else 0.05

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        if arm in SCATTER:
            cut = consecutive_shares if arm == SCATTER[0] else interleaved_shares
            found = {f"scatter_{k}": within_share_scatter(class_means(), cut(CLASSES, k)) for k in COUNTS}
            return {BUDGET: 0.0, **found}
        sizes = SIZES[scale]
        images: Images = memo("images", lambda: of_classes(load_images("digits"), range(CLASSES)))
        real = memo("real", lambda: images.batch(range(len(images))))
        assert real.label is not None
        teacher = memo(
            "teacher",
            lambda: Empirical(EDM(), real.image, smoothing=SMOOTHING, labels=real.label, num_classes=CLASSES),
        )
        if arm == EXACT:
            made, budget, parameters = _drawn(real.image, real.label, sizes.count, seed), 0.0, 0
        else:
            critic = memo(
                "critic", lambda: _fitted(teacher, images, sizes.critic_width, 128, sizes.critic_fitted, seed)
            )
            students, batch = STUDENTS[arm]
            shares = consecutive_shares(CLASSES, students)
            if arm == D:
                shares = random_shares(CLASSES, students, derive(seed, "shares"))
            tsm = 0 if arm == F else sizes.fitted
            parts = []
            for k, share in enumerate(shares):
                kept = of_classes(images, share)
                own = derive(seed, "student", k)
                start = _fitted(teacher, kept, sizes.width, batch, tsm, own)
                method = DMD2(
                    mean_map(None, start), teacher, copy.deepcopy(critic), ratio=RATIO, classes=share, gan_weight=0.0,
                    lr=LR, critic_lr=CRITIC_LR,
                )  # fmt: skip
                trained = fit(method, None, steps=sizes.turns, batch_size=batch, seed=own, ema=AVERAGE)
                parts.append(trained.result().denoiser)
            routed = Routed(parts, ClassRouter(shares))
            parameters = sum(p.numel() for p in routed.parameters())
            # A turn: student 1, critic 3; every fifth: student 2, teacher 1, critic 1 more. TSM: student 3, teacher 1.
            budget = students * batch * (sizes.turns * (4 + 4 / RATIO) + 4.0 * tsm)
            cond = labels_for(range(sizes.count), CLASSES)
            made = Sampled(routed, Jumps(steps=1)).generate(range(sizes.count), Noise(derive(seed, "samples")), cond)
        distance = frechet_distance(real.image.flatten(1).double(), made.flatten(1).double())
        return {BUDGET: budget, "fd": distance, "parameters": float(parameters)}

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        fd = {arm: _values(numbers, arm, "fd") for arm in (*STUDENTS, EXACT)}
        centre = {arm: mean(values) for arm, values in fd.items()}
        apart = max(_spread(fd[A]), _spread(fd[C]))
        together, dealt = ([mean(_values(numbers, arm, f"scatter_{k}")) for k in COUNTS] for arm in SCATTER)
        parts = [
            Part(
                "four students at a batch of 32 are better than one at 128 on every seed",
                all(four < one for one, four in zip(fd[A], fd[C])),
                ", ".join(f"{one:.3g} and {four:.3g}" for one, four in zip(fd[A], fd[C])),
            ),
            Part(
                "the distance falls from one student to four to eight",
                centre[A] > centre[C] > centre[E],
                f"{centre[A]:.3g}, {centre[C]:.3g}, {centre[E]:.3g}",
            ),
            Part(
                "without teacher score matching small students are at least twice as far",
                centre[F] >= 2 * centre[C],
                f"{centre[C]:.3g} with it, {centre[F]:.3g} without",
            ),
            Part(
                "scatter within shares falls strictly from 2.5 to 0 where neighbours stay together, and stays at 2.5 "
                "until every class has its student where they do not",
                all(a > b for a, b in pairwise(together))
                and np.allclose([together[0], together[-1], *dealt], [2.5, 0, 2.5, 2.5, 2.5, 0], atol=1e-9),
                f"{', '.join(f'{v:.3g}' for v in together)}; {', '.join(f'{v:.3g}' for v in dealt)}",
            ),
        ]
        return "refuted" if centre[A] - centre[C] <= apart else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        centre = {arm: mean(_values(numbers, arm, "fd")) for arm in (*STUDENTS, EXACT)}
        return [
            f"One student at a batch of 32: {centre[B]:.3g}; at 128: {centre[A]:.3g}.",
            f"Four shares at random: {centre[D]:.3g}; of consecutive digits, which need not be alike: {centre[C]:.3g}.",
            f"Exact samples, the floor: {centre[EXACT]:.3g}.",
        ]


def _fitted(teacher: Empirical, images: Images, width: int, batch: int, steps: int, seed: int) -> Preconditioned:
    """A denoiser over a new MLP, fitted to the teacher on some images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "net", width) % 2**63)
        net = MLP(in_shape=(1, 8, 8), width=width, depth=3, num_classes=CLASSES)
    start = Preconditioned(net, EDM(), sigma_data=SIGMA_DATA)
    if steps == 0:
        return start
    trained = fit(TeacherMatching(start, teacher, lr=TSM_LR), images, steps=steps, batch_size=batch, seed=seed)
    made: Preconditioned = trained.result().denoiser
    return made


def _drawn(image: Tensor, label: Tensor, count: int, seed: int) -> Tensor:
    """The teacher's own samples, labels in turn: an image of the class and a draw of its kernel."""
    draws = Noise(derive(seed, "exact")).at(range(count), tuple(image.shape[1:]))
    pick = draws.uniform(part=1)
    rows = [(label == y).nonzero()[:, 0] for y in range(CLASSES)]
    chosen = torch.stack([rows[i % CLASSES][int(pick[i] * len(rows[i % CLASSES]))] for i in range(count)])
    return (image[chosen] + SMOOTHING * draws.normal()).clamp(-1, 1)


def _values(numbers: Numbers, arm: str, name: str) -> list[float]:
    return [value for value in numbers[arm][name] if value is not None]


def _spread(values: list[Any]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


CLAIM = MSDClaim()
