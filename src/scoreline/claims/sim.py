"""The claim of system 20, measured on digits: the pseudo-Huber distance is fast and robust.

Luo et al. 2024 (arXiv 2410.16794). The teacher is exact: every digit smoothed by h = 0.15. An MLP is fitted to it for a
short while; generator and online network start as copies of that. From 2.5 z, in one step, the generator then learns by
    pseudo-Huber                  SIM's default, c = 0.01
    squared                       SIM's squared distance, no normaliser
    squared, normalised           the same over SiD's mean |x - D_r|
    KL                            Diff-Instruct's gradient D_f - D_r, no gradient through the networks
all in the same turn, on clean images, with the same levels, optimizer and number of updates. Each is scored along the
way by the Frechet distance of 2000 images' pixels to the digits, and is trained a second time with five times the
learning rate: it has diverged if a number is no longer finite or if it ends further away than it started.

The rule, from the plan of this claim. Distances are those of LEVELS, the iterations at which a curve first is at or
below one are medians over seeds, never counting as infinitely many:
- confirmed: at every distance pseudo-Huber needs no more iterations than each of the two squared arms, and diverges on
  no more seeds than each of them at five times the learning rate.
- refuted: the squared arm with the normaliser is equal or better on all seeds, in the mean distance along the curve.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.denoiser import Denoiser
from scoreline.core.errors import NonFiniteError
from scoreline.core.method import Method, Update
from scoreline.core.moments import Moments
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.levels import draw_levels
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.matching import Matched, matching_direction, matching_surrogate
from scoreline.fewstep.sid import SiD
from scoreline.fewstep.sim import SIM
from scoreline.fewstep.teachers import copied
from scoreline.fewstep.through import SIGMA_INIT, Through
from scoreline.metrics.frechet import frechet_distance
from scoreline.nn.mlp import MLP
from scoreline.train import fit

__all__ = ["ARMS", "CLAIM", "LEVELS", "IntegralKL", "SIMClaim", "first_below"]

ARMS = ("pseudo-Huber", "squared", "squared, normalised", "KL")
HUBER, SQUARED, NORMALISED, KL = ARMS
LEVELS = (6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.0)
SMOOTHING, SIGMA_DATA = 0.15, 0.75
LR, FIT_LR, FASTER = 5e-4, 1e-3, 5


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        fitted: updates in which the network is fitted to the teacher.
        steps: updates of each method; half as many at five times the rate.
        every: updates between two scores.
        batch: images an update.
        width: of the MLP of 3 layers.
        count: images of each score.
    """

    fitted: int
    steps: int
    every: int
    batch: int
    width: int
    count: int


SIZES = {
    "laptop": Scale(fitted=600, steps=1200, every=50, batch=64, width=128, count=2000),
    "smoke": Scale(fitted=2, steps=4, every=2, batch=8, width=16, count=80),
}


class Fitting(Method):
    """Fit a network to a denoiser's answer at lognormal levels, with EDM's weight.

    Args:
        model: what is fitted.
        teacher: whose answer is learned.
    """

    def __init__(self, model: Preconditioned, teacher: Denoiser) -> None:
        super().__init__()
        self.model, self.teacher = model, teacher
        self.updates = [Update(model.net, self.loss, lr=FIT_LR, clip=1.0)]

    def frozen(self) -> tuple[nn.Module, ...]:
        return (self.teacher,)

    def prepare(self, batch: Any, step: int) -> tuple[Tensor, Tensor, Tensor]:
        t = draw_levels("lognormal", batch.draws.uniform(part=1), self.model.schedule)
        noise = batch.draws.normal()
        return self.model.schedule.marginal(batch.image, t, noise), t, noise

    def loss(self, batch: Any, shared: Any, step: int) -> Tensor:
        x, t, noise = shared
        with torch.no_grad():
            wanted = self.model.target(self.teacher(x, t).mean, x, t, noise)
        return (self.model(x, t).raw - wanted).square().mean()

    def result(self) -> Preconditioned:
        return self.model.eval()


class IntegralKL(Through):
    """Diff-Instruct's gradient D_f - D_r in the turn of the other arms."""

    through = False

    def term(self, m: Matched) -> Tensor:
        return matching_surrogate(m.x, matching_direction(m.x, m.real, m.fake, floor=None))


def first_below(curve: Mapping[int, float], level: float) -> float:
    """Iterations at which a curve first is at or below a distance; infinity where it never is.

    >>> first_below({0: 7.0, 50: 3.0, 100: 3.5}, 3.5), first_below({0: 7.0}, 1.0)
    (50.0, inf)
    """
    return float(next((k for k, value in sorted(curve.items()) if value <= level), math.inf))


class SIMClaim(Claim):
    """Distances between scores, by iterations and at a high learning rate."""

    system = "20"
    statement = (
        "Score implicit matching with the pseudo-Huber distance converges faster, and survives higher learning rates, "
        "than with the squared distance, with or without SiD's normaliser."
    )
    arms = ARMS
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 190.0, "smoke": 2.0}
    shrunk = (
        "1797 8x8 digits, each smoothed by 0.15, with the exact denoiser as teacher, in place of CIFAR-10 and EDM",
        "MLPs of 3 layers of 128 as generator and online network; pixels in place of Inception",
        "1200 updates of 64 images in place of the plan's 6000 of 128; 600 at five times the learning rate",
    )

    def weight(self, arm: str, scale: str) -> float:
        return 0.7 if arm == KL else 1.0

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes = SIZES[scale]
        images = memo("images", lambda: load_images("digits").batch(range(1797)).image)
        teacher = memo("teacher", lambda: Empirical(EDM(), images, smoothing=SMOOTHING))
        real = memo("real", lambda: Moments.of(images.flatten(1).double()))
        noise = memo("noise", lambda: Noise(derive(seed, "sim", "samples")).at(range(sizes.count), (1, 8, 8)).normal())
        fitted = memo("fitted", lambda: _fitted(teacher, images, seed, sizes))
        # The critic's turn: an answer and 3; the generator's: 3, and two networks forward and back to their input.
        out: dict[str, float | None] = {
            BUDGET: sizes.batch * (4.0 * sizes.fitted + (4 + 3 + (2 if arm == KL else 4)) * 1.5 * sizes.steps)
        }
        for rate, steps, tail in ((LR, sizes.steps, ""), (FASTER * LR, sizes.steps // 2, "_fast")):
            method = _method(arm, fitted, teacher, rate)
            curve = _curve(method, noise, real, steps, derive(seed, "sim"), sizes)
            last = curve[max(curve)]
            out[f"last{tail}"] = last if math.isfinite(last) else None
            out[f"diverged{tail}"] = float(not last <= curve[0])
            if not tail:
                finite = {k: value for k, value in curve.items() if math.isfinite(value)}
                out |= {f"fd_{k}": finite.get(k) for k in range(0, steps + 1, sizes.every)}
                out["mean"] = sum(finite.values()) / len(finite) if math.isfinite(last) else None
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        parts = []
        for arm in (SQUARED, NORMALISED):
            pairs = [(_iterations(numbers, HUBER, level), _iterations(numbers, arm, level)) for level in LEVELS]
            parts.append(
                Part(
                    f"at every distance pseudo-Huber needs no more iterations than the arm {arm!r}",
                    None if all(math.isinf(a) and math.isinf(b) for a, b in pairs) else all(a <= b for a, b in pairs),
                    ", ".join(f"{level:g}: {a:g} and {b:g}" for level, (a, b) in zip(LEVELS, pairs)),
                )
            )
        for arm in (SQUARED, NORMALISED):
            a, b = (sum(v for v in numbers[name]["diverged_fast"] if v is not None) for name in (HUBER, arm))
            parts.append(
                Part(
                    f"at five times the learning rate it diverges on no more seeds than the arm {arm!r}",
                    a <= b,
                    f"{a:g} and {b:g} of {len(numbers[arm]['diverged_fast'])}",
                )
            )
        ours, other = ([math.inf if v is None else v for v in numbers[arm]["mean"]] for arm in (HUBER, NORMALISED))
        return "refuted" if all(b <= a and b < math.inf for a, b in zip(ours, other)) else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def told(arm: str, name: str) -> str:
            values = [v for v in numbers[arm][name] if v is not None]
            return f"{arm} {median(values):.3g}" if values else f"{arm} none"

        level = "; ".join(
            f"{arm} " + ", ".join(f"{_iterations(numbers, arm, level):g}" for level in LEVELS) for arm in ARMS
        )
        return [
            f"Median distance at the end: {', '.join(told(arm, 'last') for arm in ARMS)}; with five times the rate "
            f"{', '.join(told(arm, 'last_fast') for arm in ARMS)}; at the start {told(HUBER, 'fd_0').split()[-1]}.",
            f"Median mean distance along the curve: {', '.join(told(arm, 'mean') for arm in ARMS)}.",
            f"Median iterations to {', '.join(f'{level:g}' for level in LEVELS)}: {level}.",
        ]


def _iterations(numbers: Numbers, arm: str, level: float) -> float:
    """Median over seeds of the iterations to a distance."""
    columns = {int(name[3:]): values for name, values in numbers[arm].items() if name.startswith("fd_")}
    seeds = range(len(next(iter(columns.values()))))
    curves = [{k: v for k, values in columns.items() if (v := values[seed]) is not None} for seed in seeds]
    return median(first_below(curve, level) for curve in curves)


def _fitted(teacher: Denoiser, images: Tensor, seed: int, sizes: Scale) -> Preconditioned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "sim", "net") % 2**63)
        net = MLP(in_shape=(1, 8, 8), width=sizes.width, depth=3)
    method = Fitting(Preconditioned(net, EDM(), sigma_data=SIGMA_DATA), teacher)
    return fit(method, images, steps=sizes.fitted, batch_size=sizes.batch, seed=derive(seed, "sim", "fit")).result()


def _method(arm: str, fitted: Preconditioned, teacher: Denoiser, rate: float) -> Through:
    """The method of an arm: generator and online network are copies of the fitted one."""
    critic = copied(fitted)
    student = SIM.student_of(None, copied(fitted))
    if arm == KL:
        return IntegralKL(student, teacher, critic, lr=rate, critic_lr=rate)
    if arm == NORMALISED:
        return SiD(student, teacher, critic, alpha=1.0, lr=rate, critic_lr=rate)
    distance = "pseudo-huber" if arm == HUBER else "squared"
    return SIM(student, teacher, critic, distance=distance, lr=rate, critic_lr=rate)


def _curve(method: Through, noise: Tensor, real: Moments, steps: int, seed: int, sizes: Scale) -> dict[int, float]:
    """Iterations -> distance along a training, which ends where a number is no longer finite."""
    curve = {0: _distance(method, noise, real)}

    def on_step(step: int, losses: Mapping[str, Tensor]) -> bool:
        done = step + 1
        if done % sizes.every == 0:
            curve[done] = _distance(method, noise, real)
        return not math.isfinite(curve.get(done, 0.0))

    try:
        fit(method, None, steps=steps, batch_size=sizes.batch, seed=seed, on_step=on_step)
    except NonFiniteError:
        curve[steps] = math.inf
    return curve


def _distance(method: Through, noise: Tensor, real: Moments) -> float:
    """Frechet distance of the generator's images to the digits; infinity where they are not finite."""
    with torch.no_grad():
        x = method.student.answer(SIGMA_INIT * noise, SIGMA_INIT)
    return frechet_distance(real, x.flatten(1).double()) if bool(x.isfinite().all()) else math.inf


CLAIM = SIMClaim()
