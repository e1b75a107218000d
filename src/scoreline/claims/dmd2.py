"""The claim of system 32, measured with a teacher in closed form: two time scales, an adversary, simulated inputs.

Yin et al. 2024 (arXiv 2405.14867). The teacher is the posterior mean of the 1797 digits, each smoothed by a Gaussian of
standard deviation 0.15; small MLPs, fitted to it by regression first, become student and critic. Arms, at an equal
number of updates of the critic:
- A, distribution matching with one update of the critic for each of the student; B, with five; C, with five and an
  adversary whose head stands on the critic's hidden layer; D, the adversary alone;
- B and C again with a teacher that is wrong: its answers go nine tenths of the way, x + 0.9 (D - x);
- B for two steps, trained on inputs of its own making, or on noised real images.
Scored by the Frechet distance of raw pixels, 2000 images against the 1797; two-step arms at two steps.

The rule, from the plan of this claim:
- (i) B below A on all seeds. Refuted if the mean of B is not below that of A by more than one standard deviation of the
  seeds.
- (ii) C at or below B in the mean; with the wrong teacher C below B on all seeds, and by more than one standard
  deviation in the mean.
- (iii) for two steps simulated inputs are better than noised real images in the mean.

The weight of the adversary is the paper's times 192: matching is a mean over an image's entries, the adversary has one
number an image, and the paper's images have 192 times as many entries.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.cost import evaluations
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.distill import networks
from scoreline.fewstep.dmd2 import DMD2
from scoreline.fewstep.matching import critic_of
from scoreline.fewstep.mean_map import level_table, mean_map
from scoreline.metrics.frechet import frechet_distance
from scoreline.nn.mlp import MLP
from scoreline.train import fit

__all__ = ["ARMS", "CLAIM", "Arm", "DMD2Claim", "fitted"]

BATCH, LR, START_LR, START_STEPS = 128, 5e-4, 1e-3, 600
SMOOTHING, WRONG, SIGMA_DATA = 0.15, 0.9, 0.75
SCALED = 64 * 64 * 3 / 64  # entries of the paper's images over those of a digit


@dataclass(frozen=True)
class Arm:
    """What an arm changes.

    Args:
        ratio: updates of the critic for each of the student.
        matching, adversary: which terms there are.
        wrong: whether the teacher is.
        steps: that the student is made for.
        simulate: whether later inputs are of its own making.
    """

    ratio: int = 5
    matching: bool = True
    adversary: bool = False
    wrong: bool = False
    steps: int = 1
    simulate: bool = True


ARMS: dict[str, Arm] = {
    "A: one time scale": Arm(ratio=1),
    "B: two time scales": Arm(),
    "C: and an adversary": Arm(adversary=True),
    "D: adversary alone": Arm(matching=False, adversary=True),
    "B, wrong teacher": Arm(wrong=True),
    "C, wrong teacher": Arm(adversary=True, wrong=True),
    "two steps, simulated": Arm(steps=2),
    "two steps, noised images": Arm(steps=2, simulate=False),
}
A, B, C, D, B_WRONG, C_WRONG, SIMULATED, NOISED = ARMS


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        turns: updates of the critic.
        start: updates of the regression before.
        count: images an arm.
        width: of the MLPs.
    """

    turns: int
    start: int
    count: int
    width: int


SIZES = {
    "laptop": Scale(turns=3000, start=START_STEPS, count=2000, width=256),
    "smoke": Scale(turns=6, start=3, count=70, width=16),
}


def fitted(teacher: Denoiser, images: Tensor, seed: int, sizes: Scale) -> Preconditioned:
    """An MLP fitted to a teacher's answers by regression, with EDM's weight, at the table's levels.

    Args:
        teacher: in closed form.
        images: (N, 1, 8, 8), what is noised.
        seed: of weights and draws.
        sizes: width and steps.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "net") % 2**63)
        net = MLP(in_shape=tuple(images.shape[1:]), width=sizes.width, depth=2)
    model = Preconditioned(net, EDM(), sigma_data=SIGMA_DATA)
    table = torch.from_numpy(level_table(EDM()))
    descent = torch.optim.AdamW(model.parameters(), lr=START_LR)
    for step in range(sizes.start):
        draws = Noise(derive(seed, "start", step)).at(range(BATCH), images.shape[1:])
        t, noise = table[draws.integers(len(table), part=1)], draws.normal()
        x_t = model.schedule.marginal(images[draws.integers(len(images), part=2)], t, noise)
        with torch.no_grad():
            target = model.target(teacher(x_t, t).mean, x_t, t, noise)
        descent.zero_grad()
        (model(x_t, t).raw - target).square().mean().backward()
        descent.step()
    return model


class DMD2Claim(Claim):
    """Two time scales, an adversary, and inputs of the student's own making, one at a time."""

    system = "32"
    statement = (
        "A critic that learns five times as often makes the regression on pairs needless, an adversary on real images "
        "repairs the teacher's own error, and students of several steps must be trained on inputs of their own making."
    )
    arms = tuple(ARMS)
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 190.0, "smoke": 3.0}
    shrunk = (
        "8x8 digits, 1797 of them, and a teacher in closed form in place of ImageNet and EDM's network",
        "MLPs of two layers of 256 in place of the U-Net; no classes",
        "3000 updates of the critic of 128 images in place of the plan's 12,000 and the paper's 200,000 of 280",
        "raw pixels in place of Inception for scores, 2000 images, scored against the images trained on",
    )

    def weight(self, arm: str, scale: str) -> float:
        given = ARMS[arm]
        return 1.0 + 1.0 * given.adversary + 1.0 * (given.ratio == 1) + 0.3 * (given.steps > 1)

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        given, sizes = ARMS[arm], SIZES[scale]
        images = load_images("digits")
        real = memo("real", lambda: images.batch(range(len(images))).image)
        teacher = Empirical(EDM(), real, smoothing=SMOOTHING, perturbation=WRONG if given.wrong else 1.0)
        start = memo(f"start {given.wrong}", lambda: fitted(teacher, real, seed, sizes))
        first = self.score(self.method(given, teacher, start).result(), seed, sizes, real)
        method = self.method(given, teacher, start)
        with evaluations(networks(method)) as counted:
            trained = fit(method, images, steps=sizes.turns, batch_size=BATCH, seed=derive(seed, "dmd2"))
        # The regression before: student 1 and its gradient 2.
        spent = counted.total + 3 * BATCH * sizes.start
        return {BUDGET: spent, "fd": self.score(trained.result(), seed, sizes, real), "fd_start": first}

    def method(self, given: Arm, teacher: Denoiser, start: Preconditioned) -> DMD2:
        """The method of an arm, student and critic copied from `start`."""
        return DMD2(
            mean_map(None, copy.deepcopy(start)), teacher, critic_of(start), ratio=given.ratio,
            student_steps=given.steps, simulate=given.simulate, matching_weight=float(given.matching),
            gan_weight=3e-3 * SCALED if given.adversary else 0.0, critic_gan_weight=1e-2 * SCALED,
            taps=["layer.1"], lr=LR, critic_lr=LR,
        )  # fmt: skip

    def score(self, made: object, seed: int, sizes: Scale, real: Tensor) -> float:
        """Frechet distance of pixels at the steps that the student is made for."""
        x = made.generate(range(sizes.count), Noise(derive(seed, "samples")))  # type: ignore[attr-defined]
        return frechet_distance(real.flatten(1).double(), x.flatten(1).double())

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        fd = {arm: _values(numbers, arm) for arm in ARMS}
        gain, noise = mean(fd[A]) - mean(fd[B]), _noise(fd[A], fd[B])
        repaired, wrong_noise = mean(fd[B_WRONG]) - mean(fd[C_WRONG]), _noise(fd[B_WRONG], fd[C_WRONG])
        parts = [
            Part(
                "five updates of the critic for each of the student are better than one, on every seed",
                all(b < a for a, b in zip(fd[A], fd[B])),
                f"{_told(fd[B])} against {_told(fd[A])}",
            ),
            Part(
                "an adversary makes it no worse",
                mean(fd[C]) <= mean(fd[B]),
                f"{mean(fd[C]):.3g} against {mean(fd[B]):.3g}",
            ),
            Part(
                "with a wrong teacher an adversary makes it clearly better, on every seed",
                all(c < b for b, c in zip(fd[B_WRONG], fd[C_WRONG])) and repaired > wrong_noise,
                f"{_told(fd[C_WRONG])} against {_told(fd[B_WRONG])}",
            ),
            Part(
                "for two steps simulated inputs are better than noised real images",
                mean(fd[SIMULATED]) < mean(fd[NOISED]),
                f"{mean(fd[SIMULATED]):.3g} against {mean(fd[NOISED]):.3g}",
            ),
        ]
        return "refuted" if gain <= noise else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        start = mean(value for value in numbers[B]["fd_start"] if value is not None)
        return [
            f"Before any matching the fitted network's one step has a distance of {start:.3g}.",
            f"The adversary alone comes to {_told(_values(numbers, D))}.",
        ]


def _values(numbers: Numbers, arm: str) -> list[float]:
    return [value for value in numbers[arm]["fd"] if value is not None]


def _noise(a: Sequence[float], b: Sequence[float]) -> float:
    """The larger standard deviation over seeds; 0 of one seed."""
    return max(stdev(values) if len(values) > 1 else 0.0 for values in (a, b))


def _told(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


CLAIM = DMD2Claim()
