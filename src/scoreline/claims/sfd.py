"""The claim of system 36, measured on digits: a class is forgotten without data, and the others stay.

Chen, Zhang & Zhou 2024 (arXiv 2409.11219). The teacher is exact and class-conditional: the digits of a class, each
smoothed by h = 0.15. Generator and critic are MLPs that know the class, started from one short fit to the teacher's
E[x_0|x_t]; sigma 0.137 to 13.0, the generator starts at 2.5023: the paper's algorithm in the coordinates of EDM.
    (A) distillation alone, all ten classes;  (B) class 0 is forgotten for class 1, coefficient 0.01;
    (C) coefficient 0.1;  (D) naive: only the term on forgotten requests;
    (E) B, but the critic never sees what the generator makes of forgotten requests.
Scores: unlearning accuracy, the share of requests for 0 that a judge (3 nearest neighbours, 1200 digits) does not call
0, at the end and after a tenth of the iterations; the share that it calls 1; the Frechet distance of the pixels of
classes 1 to 9 against their digits.

The rule, from the plan of this claim; "ruins" is read as at least twice A's distance:
- confirmed: B's unlearning accuracy above 0.95 and its distance within 10 % of A's, on all seeds; D forgets (above
  0.95) and ruins the rest; E forgets less than B, or later, on the seed mean.
- refuted: B's unlearning accuracy under 0.8, or its distance at least D's, on the seed median.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.generator import ImageGenerator
from scoreline.core.method import Method, Update
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.data.images import Images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.mean_map import mean_map
from scoreline.fewstep.sfd import SFD, forgetting_levels
from scoreline.fewstep.teachers import rebuilt
from scoreline.metrics.frechet import frechet_distance
from scoreline.nn.mlp import MLP
from scoreline.train import fit

__all__ = ["ARMS", "CLAIM", "Imitation", "SFDClaim", "neighbours_say"]

ARMS = ("A: distillation", "B: forget, 0.01", "C: forget, 0.1", "D: forgetting alone", "E: critic not told")
SETTINGS: dict[str, dict[str, Any]] = {
    ARMS[0]: {},
    ARMS[1]: {"forget": [0], "override": 1, "forget_weight": 0.01, "critic_forget_weight": 0.01},
    ARMS[2]: {"forget": [0], "override": 1, "forget_weight": 0.1, "critic_forget_weight": 0.1},
    ARMS[3]: {"forget": [0], "override": 1, "forget_weight": 1.0, "critic_forget_weight": 1.0, "keep_weight": 0.0},
    ARMS[4]: {"forget": [0], "override": 1, "forget_weight": 0.01, "critic_forget_weight": 0.0},
}
SMOOTHING, JUDGED, FIT_LR, LR, AVERAGE, BATCH = 0.15, 1200, 1e-3, 5e-4, 0.99, 64


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        fitted: steps in which the network is fitted to the teacher.
        steps: iterations of an arm.
        width: of the MLP of 3 layers.
        count: images of the forgotten class; nine times as many of the others.
    """

    fitted: int
    steps: int
    width: int
    count: int


SIZES = {
    "laptop": Scale(fitted=1500, steps=1500, width=128, count=400),
    "smoke": Scale(fitted=3, steps=3, width=16, count=20),
}


class Imitation(Method):
    """Fit a network to the teacher's answers at the levels of SFD: the mean square in the network's own kind.

    Args:
        student: what is fitted.
        teacher: class-conditional.
    """

    def __init__(self, student: Preconditioned, teacher: Denoiser) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher
        self.register_buffer("times", torch.from_numpy(forgetting_levels(student.schedule)))
        self.times: Tensor
        self.updates = [Update(student.net, self.loss, lr=FIT_LR)]

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def loss(self, batch: Any, shared: Any, step: int) -> Tensor:
        t, noise = self.times[batch.draws.integers(len(self.times), part=1)], batch.draws.normal()
        x, cond = self.student.schedule.marginal(batch.image, t, noise), Cond(labels=batch.label)
        with torch.no_grad():
            clean = self.teacher(x, t, cond).mean
        return (self.student(x, t, cond).raw - self.student.target(clean, x, t, noise)).square().mean()

    def result(self) -> Preconditioned:
        return self.student


def neighbours_say(known: Tensor, labels: Tensor, x: Tensor, k: int = 3) -> Tensor:
    """Classes by the majority of the k nearest known images, (N,); of equal votes the smallest class.

    Args:
        known, labels: (M, D) images and their classes, (M,).
        x: (N, D).
        k: neighbours.
    """
    near = torch.cdist(x, known).topk(k, largest=False).indices
    votes = torch.nn.functional.one_hot(labels[near], int(labels.max()) + 1).sum(1)
    return votes.argmax(1)


class SFDClaim(Claim):
    """Forgetting a digit, with each part of the method left out in turn."""

    system = "36"
    statement = (
        "A one-step generator distilled without data forgets a class: its requests give the override class, and the "
        "other classes are as good as without forgetting."
    )
    arms = ARMS
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 200.0, "smoke": 2.0}
    shrunk = (
        "1797 8x8 digits and an exact teacher in place of CIFAR-10 and a trained DDPM; MLPs of 3 layers of 128",
        "1500 iterations of 64 in place of 5000 of 128 (the paper: 50,000), at 5e-4 in place of 1e-5",
        "3 nearest neighbours in place of a ResNet-34; the Frechet distance of raw pixels in place of FID",
    )

    def weight(self, arm: str, scale: str) -> float:
        return 1.0 if arm in (ARMS[0], ARMS[3]) else 2.0

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes, images = SIZES[scale], memo("data", lambda: load_images("digits"))
        teacher = memo("teacher", lambda: _teacher(images))
        started = memo("fitted", lambda: _fitted(teacher, images, seed, sizes))
        method, early = self.method(arm, started, teacher), {}

        def look(step: int, losses: dict[str, Tensor]) -> None:
            if step + 1 == max(sizes.steps // 10, 1):
                early.update(self.scores(method.result(), images, sizes, seed))
                method.train()

        trained = fit(
            method, None, steps=sizes.steps, batch_size=BATCH, seed=derive(seed, "sfd"), ema=AVERAGE, on_step=look
        )
        out: dict[str, float | None] = {BUDGET: BATCH * (4 * sizes.fitted + _evaluations(method) * sizes.steps)}
        out |= {f"early_{name}": value for name, value in early.items()}
        return out | self.scores(trained.result(), images, sizes, seed)

    def method(self, arm: str, started: Preconditioned, teacher: Denoiser) -> SFD:
        """The method of an arm, from copies of the fitted network."""
        student, critic = (_copy(started) for _ in range(2))
        return SFD(mean_map(None, student), teacher, critic, lr=LR, critic_lr=LR, **SETTINGS[arm])

    def scores(self, made: ImageGenerator, images: Images, sizes: Scale, seed: int) -> dict[str, float | None]:
        """Unlearning accuracy, override hits, and the distance of the kept classes."""
        batch = images.batch(range(len(images)))
        known, labels = batch.image[:JUDGED].flatten(1), batch.label[:JUDGED]  # type: ignore[index]
        noise = Noise(derive(seed, "samples"))
        zeros = torch.zeros(sizes.count, dtype=torch.int64)
        seen = neighbours_say(known, labels, made.generate(range(sizes.count), noise, Cond(labels=zeros)).flatten(1))
        others = 1 + torch.arange(9 * sizes.count) % 9
        x = made.generate(range(9 * sizes.count), noise, Cond(labels=others)).flatten(1)
        real = batch.image[batch.label != 0].flatten(1)
        right = neighbours_say(known, labels, x) == others
        return {
            "ua": float((seen != 0).double().mean()),
            "override": float((seen == 1).double().mean()),
            "fd_rest": frechet_distance(real.double(), x.double()),
            "rest_right": float(right.double().mean()),
        }

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        a, b, _, d, e = ARMS

        def of(arm: str, name: str) -> list[float]:
            return [value for value in numbers[arm][name] if value is not None]

        def told(arm: str, name: str) -> str:
            return ", ".join(f"{value:.3g}" for value in of(arm, name))

        worse = [y / x for x, y in zip(of(a, "fd_rest"), of(b, "fd_rest"))]
        ruined = [y / x for x, y in zip(of(a, "fd_rest"), of(d, "fd_rest"))]
        less = mean(of(e, "ua")) < mean(of(b, "ua")) or mean(of(e, "early_ua")) < mean(of(b, "early_ua"))
        parts = [
            Part("with coefficient 0.01 the class is forgotten", min(of(b, "ua")) > 0.95, told(b, "ua")),
            Part(
                "the distance of the rest is within 10 % of plain distillation's",
                max(worse) <= 1.1,
                ", ".join(f"{value:.2f} times" for value in worse),
            ),
            Part(
                "the forgetting term alone forgets, and ruins the rest",
                min(of(d, "ua")) > 0.95 and min(ruined) >= 2,
                f"{told(d, 'ua')}; {', '.join(f'{value:.3g} times' for value in ruined)}",
            ),
            Part(
                "a critic that is not told of forgotten requests forgets less, or later",
                less,
                f"{told(e, 'early_ua')} after a tenth, {told(e, 'ua')} at the end; "
                f"told: {told(b, 'early_ua')}, {told(b, 'ua')}",
            ),
        ]
        failed = median(of(b, "ua")) < 0.8 or median(of(b, "fd_rest")) >= median(of(d, "fd_rest"))
        return "refuted" if failed else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def row(name: str) -> str:
            return ", ".join(f"{arm} {mean(v for v in numbers[arm][name] if v is not None):.3g}" for arm in ARMS)

        return [
            f"Mean share of requests for 0 that are judged to be 1: {row('override')}.",
            f"Mean unlearning accuracy: {row('ua')}; after a tenth of the iterations: {row('early_ua')}.",
            f"Mean Frechet distance of classes 1 to 9: {row('fd_rest')}; judged right: {row('rest_right')}.",
        ]


def _teacher(images: Images) -> Empirical:
    batch = images.batch(range(len(images)))
    return Empirical(EDM(), batch.image, smoothing=SMOOTHING, labels=batch.label, num_classes=10)


def _fitted(teacher: Denoiser, images: Images, seed: int, sizes: Scale) -> Preconditioned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "net") % 2**63)
        net = MLP(in_shape=(1, 8, 8), width=sizes.width, depth=3, num_classes=10)
    method = Imitation(Preconditioned(net, teacher.schedule, sigma_data=0.75), teacher)
    return fit(method, images, steps=sizes.fitted, batch_size=BATCH, seed=derive(seed, "fit")).result()


def _copy(model: Preconditioned) -> Preconditioned:
    net, _ = rebuilt(model.net, {})
    return Preconditioned(net.requires_grad_(True), model.schedule, sigma_data=model.sigma_data)


def _evaluations(method: SFD) -> int:
    """Network evaluations an image of the batch, a backward pass counted as 2: 1 + 3 in the critic's update; in the
    generator's 3, and as many through critic and teacher each."""
    sides = [sum(weight > 0 for weight in weights) for weights in (method.critic_weights, method.weights)]
    return 4 * sides[0] + (3 + 2 * 3) * sides[1]


CLAIM = SFDClaim()
