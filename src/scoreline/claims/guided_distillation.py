"""The claim of system 17, measured on exact teachers: one student for all strengths, as good in 4 steps as its teacher.

Meng et al. 2023 (arXiv 2210.03142). The teacher is exact: the training digits smoothed by h = 0.15, of one class for
x(z, c), of all for x(z), so that x_w needs no training. A small MLP with a v head is told the strength, w ~ U[0, 4]
(stage one), and its 64 steps are halved to 32, ..., 1 (stage two). At equal numbers N of network evaluations:
    (A) the guided teacher, DDIM in N/2 steps of two evaluations (none for N = 1),  (B) the student of stage one, DDIM,
    (C) the student halved to N,  (D) C trained on for double steps, with the stochastic sampler,
    (T) the guided teacher in 64 steps
for w = 0, 1, 3: Frechet distance of pixels to samples of the teacher in 256 steps at the same w, and accuracy of the
class that was asked for (3 nearest training images). Of stage one alone: relative error of x_1 against x_w.

The rule, from the plan of this claim:
- confirmed: C at N = 4 lies within 20 % of T's distance, and clearly (by more than the larger standard deviation over
  seeds) below A and B at N <= 4, for every w; one network serves all of them. D is told, not judged.
- refuted: B at N = 4 lies within seed noise of C, for every w.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser
from scoreline.core.noise import Noise, derive
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.schedules import Cosine
from scoreline.fewstep.guidance_students import DistilledGuidance
from scoreline.fewstep.guided import WeightGuided
from scoreline.fewstep.guided_distillation import GuidanceDistillation, guidance_error
from scoreline.fewstep.halving import GRID, LOW
from scoreline.fewstep.progressive import Progressive
from scoreline.metrics.frechet import frechet_distance
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.double_step import DoubleStep
from scoreline.train import fit
from scoreline.train.lr import Linear

__all__ = ["ARMS", "CLAIM", "GuidedDistillationClaim"]

ARMS = ("A: guided teacher", "B: stage one", "C: distilled", "D: stochastic", "T: teacher, 64 steps")
COUNTS, EARLY, WEIGHTS = (1, 2, 4, 8), (1, 2, 4), (0, 1, 3)
INTERVAL, BATCH, LR, SMOOTHING = (0.0, 4.0), 128, 1e-3, 0.15
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        first: steps of stage one.
        halving: steps of each halving.
        start: N of the first halving; stage one is taken for 2 N steps.
        width: of the MLP of 3 layers.
        count: samples of each arm, count and strength.
        steps: of the reference.
        images: training images of the teacher.
    """

    first: int
    halving: int
    start: int
    width: int
    count: int
    steps: int
    images: int


SIZES = {
    "laptop": Scale(first=3000, halving=800, start=32, width=256, count=2000, steps=256, images=1297),
    "smoke": Scale(first=3, halving=2, start=8, width=16, count=80, steps=6, images=60),
}


class GuidedDistillationClaim(Claim):
    """Guided teacher, student of stage one, and halved students, by evaluations and strength."""

    system = "17"
    statement = (
        "One student that is told the guidance strength, its steps halved again and again, makes images in 4 "
        "evaluations that are as good as those of the guided teacher in many, for every strength."
    )
    arms = ARMS
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 150.0, "smoke": 2.0}
    shrunk = (
        "the exact teacher of 1297 smoothed 8x8 digits in place of U-Nets on CIFAR-10 and ImageNet-64",
        "an MLP of 3 layers of 256 as student; 64 steps halved six times in place of 1024 ten times",
        "3000 steps of stage one and 800 a halving, of 128 images, in place of 50,000 and more",
    )

    def weight(self, arm: str, scale: str) -> float:
        return {"A": 0.5, "B": 2.0, "C": 3.0, "D": 2.0, "T": 1.0}[arm[0]]

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes = SIZES[scale]
        guided = WeightGuided(_teacher(sizes.images))
        out: dict[str, float | None] = {BUDGET: 0.0}
        if arm[0] == "T":
            steps = min(64, sizes.steps)
            return out | _scores(guided, DDIM(steps=steps, grid=GRID), seed, sizes, "")
        if arm[0] == "A":
            for n in COUNTS:
                if n > 1:
                    out |= _scores(guided, DDIM(steps=n // 2, grid=GRID), seed, sizes, f"_{n}")
                else:
                    out |= {f"{name}_{w}_1": None for w in WEIGHTS for name in ("fd", "accuracy")}
            return out
        first: DistilledGuidance = memo("first", lambda: _first(seed, sizes))
        # Stage one: a teacher of 2 evaluations, a student of 3. A halving: two of the teacher, three of the student.
        out[BUDGET] = spent = float(BATCH * 5 * sizes.first)
        if arm[0] == "B":
            out |= _errors(first, sizes)
            for n in COUNTS:
                out |= _scores(first, DDIM(steps=n, grid=GRID), seed, sizes, f"_{n}")
            return out
        halved: dict[int, DistilledGuidance] = memo("halved", lambda: _halved(first, seed, sizes))
        out[BUDGET] = spent = spent + BATCH * 5 * sizes.halving * sizes.start.bit_length()
        for n in COUNTS:
            if arm[0] == "C" or n == 1:  # with one step the two samplers are the same
                out |= _scores(halved[n], DDIM(steps=n, grid=GRID), seed, sizes, f"_{n}")
                continue
            student = _halving(halved[n], n, derive(seed, "stochastic", str(n)), sizes, stochastic=True)
            out |= _scores(student, DoubleStep(steps=n, grid=GRID), seed, sizes, f"_{n}")
            out[BUDGET] = spent = spent + BATCH * 5 * sizes.halving
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        a, b, c, _, t = ARMS
        near = {w: mean(_of(numbers, c, f"fd_{w}_4")) / mean(_of(numbers, t, f"fd_{w}")) for w in WEIGHTS}
        parts = [
            Part(
                "in 4 evaluations the distilled student lies within 20 % of its teacher in 64 steps, for every w",
                all(value <= 1.2 for value in near.values()),
                ", ".join(f"w = {w}: {value:.2f} times" for w, value in near.items()),
            )
        ]
        for arm, name in ((a, "the guided teacher"), (b, "the student of stage one")):
            counts = [n for n in EARLY if _of(numbers, arm, f"fd_0_{n}")]
            told = [
                f"w = {w}, N = {n}: {mean(_of(numbers, arm, f'fd_{w}_{n}')):.3g} to "
                f"{mean(_of(numbers, c, f'fd_{w}_{n}')):.3g}"
                for w in WEIGHTS
                for n in counts
            ]
            part = Part(
                f"with up to 4 evaluations it is clearly below {name} with as many, for every w",
                all(_below(numbers, c, arm, f"fd_{w}_{n}") for w in WEIGHTS for n in counts),
                ", ".join(told),
            )
            parts.append(part)
        agree = all(
            abs(mean(_of(numbers, b, f"fd_{w}_4")) - mean(_of(numbers, c, f"fd_{w}_4")))
            <= max(_spread(_of(numbers, arm, f"fd_{w}_4")) for arm in (b, c))
            for w in WEIGHTS
        )
        return "refuted" if agree else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def row(arm: str, name: str, w: int) -> str:
            values = [_of(numbers, arm, f"{name}_{w}_{n}") for n in COUNTS]
            return ", ".join(f"{mean(v):.3g}" if v else "none" for v in values)

        said = []
        for name, text in (("fd", "Frechet distance"), ("accuracy", "accuracy of the class")):
            for w in WEIGHTS:
                arms = "; ".join(f"{arm} {row(arm, name, w)}" for arm in ARMS[:4])
                last = mean(_of(numbers, ARMS[4], f"{name}_{w}"))
                said.append(f"Mean {text}, w = {w}, with 1, 2, 4, 8 evaluations: {arms}; {ARMS[4]} {last:.3g}.")
        better = [
            f"w = {w}, N = {n}" for w in WEIGHTS for n in COUNTS[1:] if _below(numbers, ARMS[3], ARMS[2], f"fd_{w}_{n}")
        ]
        said.append(
            f"The stochastic sampler is clearly better than the deterministic one at {'; '.join(better) or 'none'}."
        )
        error = [mean(_of(numbers, ARMS[1], name)) for name in ("error_mean", "error_max")]
        said.append(
            f"Relative error of x_1 against x_w over levels and strengths: mean {error[0]:.2g}, most {error[1]:.2g}."
        )
        return said


@functools.lru_cache(maxsize=2)
def _data(images: int) -> tuple[Tensor, Tensor]:
    batch = load_images("digits", split="train").batch(torch.arange(images))
    assert batch.label is not None
    return batch.image, batch.label


@functools.lru_cache(maxsize=2)
def _teacher(images: int) -> Empirical:
    image, label = _data(images)
    schedule = Cosine(s=0.0, t_min=LOW, t_max=1 - LOW)
    return Empirical(schedule, image, smoothing=SMOOTHING, labels=label, num_classes=10)


def _labels(count: int) -> Tensor:
    return torch.arange(count) % 10


@torch.no_grad()
def _made(model: Denoiser, sampler: Sampler, w: float, noise: Noise, count: int) -> Tensor:
    parts = []
    for rows in torch.arange(count).split(500):
        cond = Cond(labels=rows % 10, weight=torch.full((len(rows),), float(w)))
        parts.append(sampler(model.given(cond), noise.at(rows, model.shape)).x)
    return torch.cat(parts)


@functools.lru_cache(maxsize=6)
def _reference(w: int, count: int, steps: int, images: int) -> Tensor:
    """Samples of the guided teacher, the same for every seed, of noise that no arm has."""
    noise = Noise(derive(0, "guided-distillation", "reference"))
    return _made(WeightGuided(_teacher(images)), DDIM(steps=steps, grid=GRID), w, noise, count).flatten(1)


def _scores(model: Denoiser, sampler: Sampler, seed: int, sizes: Scale, tail: str) -> dict[str, float | None]:
    out: dict[str, float | None] = {}
    noise = Noise(derive(seed, "guided-distillation", "samples"))
    image, label = _data(sizes.images)
    for w in WEIGHTS:
        made = _made(model, sampler, w, noise, sizes.count).flatten(1)
        out[f"fd_{w}{tail}"] = frechet_distance(_reference(w, sizes.count, sizes.steps, sizes.images), made)
        near = label[torch.cdist(made, image.flatten(1)).topk(3, largest=False).indices]
        # Where all three differ, the nearest decides.
        voted = torch.where((near[:, 1] == near[:, 2]), near[:, 1], near[:, 0])
        out[f"accuracy_{w}{tail}"] = float((voted == _labels(sizes.count)).double().mean())
    return out


def _first(seed: int, sizes: Scale) -> DistilledGuidance:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "guided-distillation", "init") % 2**63)
        net = MLP(in_shape=(1, 8, 8), width=sizes.width, num_classes=10, time_scale=10.0, weight_input=True)
    student = GuidanceDistillation.student_of(None, net)
    method = GuidanceDistillation(student, _teacher(sizes.images), guidance=INTERVAL, lr=Linear(LR, sizes.first))
    fit(method, _data(sizes.images), steps=sizes.first, batch_size=BATCH, seed=derive(seed, "first"))
    return method.student.eval()


def _halved(first: DistilledGuidance, seed: int, sizes: Scale) -> dict[int, DistilledGuidance]:
    """The student of every N, from the first halving's down to 1."""
    found, model, n = {}, first, sizes.start
    while n >= 1:
        model = _halving(model, n, derive(seed, "halving", str(n)), sizes)
        found[n], n = model, n // 2
    return found


def _halving(model: DistilledGuidance, n: int, seed: int, sizes: Scale, stochastic: bool = False) -> DistilledGuidance:
    student = copy.deepcopy(model).requires_grad_(True)
    rate = Linear(LR, sizes.halving)
    method = Progressive(student, copy.deepcopy(model), n=n, stochastic=stochastic, lr=rate)
    fit(method, _data(sizes.images), steps=sizes.halving, batch_size=BATCH, seed=seed)
    return student.eval()


def _errors(first: DistilledGuidance, sizes: Scale) -> dict[str, float | None]:
    image, label = _data(sizes.images)
    noise = Noise(derive(0, "guided-distillation", "errors")).at(range(len(image)), (1, 8, 8)).normal()
    teacher = _teacher(sizes.images)
    errors: list[Any] = [
        guidance_error(first, teacher, image, t, w, noise, label) for t in LEVELS for w in (0.0, 1.0, 2.0, 3.0, 4.0)
    ]
    return {"error_mean": mean(errors), "error_max": max(errors)}


def _of(numbers: Numbers, arm: str, name: str) -> list[float]:
    return [value for value in numbers[arm].get(name, []) if value is not None]


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _below(numbers: Numbers, lower: str, upper: str, name: str) -> bool:
    """Whether one arm's mean is below another's by more than the larger standard deviation over seeds."""
    small, large = _of(numbers, lower, name), _of(numbers, upper, name)
    return mean(large) - mean(small) > max(_spread(small), _spread(large))


CLAIM = GuidedDistillationClaim()
