"""The claim of system 21, measured on a line and on digits: which divergence decides what a student covers.

Xu, Nie & Vahdat 2025 (arXiv 2502.15681). Two parts:
- A known answer, without a network: the teacher is 0.7 N(-2, 0.5^2) + 0.3 N(2, 0.5^2), the student one Gaussian
  x = m + s z, ratio and scores are exact, no noise is added. Each divergence is minimised by its weighted score
  difference from m = 0, s = 2. With one mode to spend, Jensen-Shannon does not cover either.
- Digits: the teacher is the exact denoiser of the 1797 images, each a Gaussian of standard deviation 0.15. The student,
  a small unconditional MLP, first learns to make the digits 0 to 4 alone, by regression on the ODE of these; critic and
  discriminator, MLPs as well, first learn that student. Then the arms go on from there with equal seeds and budgets:
  h = 1 (reverse KL, DMD2), Jensen-Shannon, forward KL, and Jensen-Shannon with a ratio that is not learned but that of
  the two densities, the student's by a kernel density of 1024 of its images with the bandwidth of the teacher's.
  Scored: entropy of the classes that a 3-nearest-neighbour classifier sees in 2000 images, in nats, and the Frechet
  distance of their pixels to the 1797 images.

The rule, from the plan of this claim:
- the line: forward KL ends within 0.1 of mean -0.80 and of standard deviation 1.90, with 28 to 40 % of its mass right
  of 0; reverse KL, softened reverse KL, Jensen-Shannon and Hellinger end within 0.15 of mean -2 and of standard
  deviation 0.5, with less than 1 % right of 0; Jeffreys lies between reverse and forward KL in both; with every seed.
- digits: the entropies of forward KL and of Jensen-Shannon lie above that of reverse KL with every seed; their mean
  Frechet distances lie above reverse KL's by at most its spread over seeds.
- refuted: neither mean entropy lies above that of reverse KL by more than the largest spread over seeds of the three.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.cond import Cond
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.f_distill import FDistill, divergence_direction, f_of
from scoreline.fewstep.matching import Turn
from scoreline.fewstep.mean_map import MeanMap, mean_map
from scoreline.metrics import frechet_distance
from scoreline.nn.discriminator import TapDiscriminator
from scoreline.nn.mlp import MLP
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun
from scoreline.train import fit

__all__ = ["ARMS", "CLAIM", "DIGITS", "LINE", "FDistillClaim", "KernelRatio", "class_entropy"]
__all__ += ["line_divergence", "minimised"]

LINE = tuple(f"line: {name}" for name in ("rkl", "sf", "js", "sh", "jf", "kl"))
DIGITS = ("digits: rkl", "digits: js", "digits: kl", "digits: js, exact ratio")
ARMS = (*LINE, *DIGITS)
WEIGHTS, MEANS, STD = (0.7, 0.3), (-2.0, 2.0), 0.5
POINTS, LINE_LR = 1024, 0.02
SMOOTHING, SIGMA_DATA, KEPT = 0.15, 0.75, 5
BATCH, LR, RATIO = 128, 1e-3, 5


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        line: updates on the line.
        first: updates of the student on pairs of the digits 0 to 4.
        pairs: their number.
        warm: turns in which critic and discriminator learn the student alone.
        turns: of each arm; every fifth updates the student.
        count: images that are scored.
        bank: images of the student's kernel density.
        width, depth: of the MLPs.
    """

    line: int
    first: int
    pairs: int
    warm: int
    turns: int
    count: int
    bank: int
    width: int
    depth: int


SIZES = {
    "laptop": Scale(2000, first=3000, pairs=4000, warm=1000, turns=4000, count=2000, bank=1024, width=128, depth=3),
    "smoke": Scale(20, first=4, pairs=40, warm=2, turns=6, count=60, bank=16, width=16, depth=1),
}


def minimised(divergence: str, seed: int, steps: int) -> tuple[float, float]:
    """(m, s) of one Gaussian after so many updates, by Adam, along the weighted score difference from (0, 2).

    Args:
        divergence: see :data:`scoreline.fewstep.f_distill.DIVERGENCES`.
        seed: of the draws.
        steps: updates of 1024 draws each, the rate falling to 0 by a half cosine.
    """
    m, log_s = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.0, math.log(2)))
    descent = torch.optim.Adam([m, log_s], lr=LINE_LR)
    noise = Noise(derive(seed, "line")).at([0], (POINTS,), dtype=torch.float64)
    weights, means = (torch.tensor(value, dtype=torch.float64) for value in (WEIGHTS, MEANS))
    for step in range(steps):
        descent.param_groups[0]["lr"] = LINE_LR * 0.5 * (1 + math.cos(math.pi * step / steps))
        z = noise.normal(step=step)[0]
        x, s = m + log_s.exp() * z, log_s.detach().exp()
        at = x.detach()
        each = weights.log() - (at[:, None] - means).square() / (2 * STD**2) - math.log(STD)
        log_p = each.logsumexp(1)
        score_p = ((each - log_p[:, None]).exp() * (means - at[:, None])).sum(1) / STD**2
        direction = divergence_direction((log_p + z.square() / 2 + s.log()).exp(), score_p, -z / s, divergence)
        descent.zero_grad()
        (x * direction).mean().backward()
        descent.step()
    return float(m.detach()), float(log_s.detach().exp())


def line_divergence(divergence: str, m: float, s: float) -> float:
    """D_f of the teacher on the line to N(m, s^2), by quadrature."""
    x = torch.linspace(-12, 12, 6001, dtype=torch.float64)
    weights, means = (torch.tensor(value, dtype=torch.float64) for value in (WEIGHTS, MEANS))
    each = weights.log() - (x[:, None] - means).square() / (2 * STD**2) - math.log(STD)
    log_q = -(x - m).square() / (2 * s**2) - math.log(s)
    # Where a density is nothing, so is its share of the whole.
    r = (each.logsumexp(1) - log_q).clamp(-300, 300).exp()
    return float(torch.trapezoid(log_q.exp() * f_of(r, divergence), x)) / math.sqrt(2 * math.pi)


def class_entropy(images: Tensor, labels: Tensor, made: Tensor) -> tuple[float, float]:
    """Entropy in nats of the classes of images, by a 3-nearest-neighbour classifier, and the share of digits 5 to 9.

    Args:
        images, labels: what the classifier knows, (N, D) and (N,).
        made: what it looks at, (M, D).
    """
    from sklearn.neighbors import KNeighborsClassifier

    known = KNeighborsClassifier(3).fit(images.numpy(), labels.numpy())
    share = torch.bincount(torch.from_numpy(known.predict(made.numpy())), minlength=10).double() / len(made)
    return float(-torch.xlogy(share, share).sum()), float(share[KEPT:].sum())


class KernelRatio(nn.Module):
    """log p_t(x)/q_t(x) as logits, (B, 1): p of a teacher in closed form, q a kernel density of the student's images.

    Args:
        teacher: an exact denoiser, whose bandwidth is taken for both.
        student: whose images are taken, from the same noise every time.
        count: images of the kernel density.
    """

    def __init__(self, teacher: Empirical, student: MeanMap, count: int) -> None:
        super().__init__()
        self.known, self.noise = (teacher, student), Noise(21).at(range(count), student.shape).normal()
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take the images of the student as it is now."""
        teacher, student = self.known
        start = student.schedule.t_max
        images = student.answer(self.noise * student.prior(start), start)
        self.bank = (Empirical(teacher.schedule, images, smoothing=teacher.smoothing),)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        # Both sums leave out the same constant.
        log_p, log_q = (model.log_shares(x, t).logsumexp(1) for model in (self.known[0], self.bank[0]))
        return (log_p - log_q)[:, None]


class _Exact(FDistill):
    """f-distill with a discriminator that follows the student by itself."""

    def critic_loss(self, batch: Any, turn: Turn, step: int) -> dict[str, Tensor]:
        draws = batch.draws.reshaped(self.student.shape)
        return {"loss": self.denoising(self.made(turn), draws, turn.cond, 6)}

    def after_update(self, step: int) -> None:
        if (step + 1) % RATIO == 0 and isinstance(self.discriminator, KernelRatio):
            self.discriminator.refresh()


class FDistillClaim(Claim):
    """Six divergences on a line; three, and an exact ratio, on digits of which the student knows half."""

    system = "21"
    statement = (
        "Distribution matching can minimise any f-divergence by weighting the score difference; forward KL and "
        "Jensen-Shannon cover more than reverse KL, and are no worse."
    )
    arms = ARMS
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 200.0, "smoke": 2.0}
    shrunk = (
        "a line, and digits with an exact teacher and MLPs, in place of ImageNet and CIFAR-10",
        "the plan's 8000 turns of 128 digits are 4000, of which 800 update the student",
    )

    def weight(self, arm: str, scale: str) -> float:
        return 1.0 if arm in LINE else 25.0

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes = SIZES[scale]
        name = arm.partition(": ")[2]
        if arm in LINE:
            m, s = minimised(name, seed, sizes.line)
            right = 0.5 * math.erfc(-m / s / math.sqrt(2))
            whole, mode = line_divergence(name, m, s), line_divergence(name, MEANS[0], STD)
            cost = POINTS * sizes.line
            return {BUDGET: cost, "mean": m, "std": s, "right": right, "divergence": whole, "at the mode": mode}
        images = memo("images", lambda: load_images("digits").batch(range(1797)))
        teacher = memo("teacher", lambda: Empirical(EDM(), images.image, smoothing=SMOOTHING))
        begun = memo("start", lambda: self.start(teacher, images, seed, sizes))
        method = self.method(name, teacher, copy.deepcopy(begun), sizes)
        made = fit(
            method, images.image, steps=sizes.turns, batch_size=BATCH, seed=derive(seed, "arms"), ema=0.99
        ).result()
        x = made.generate(range(sizes.count), Noise(derive(seed, "samples"))).flatten(1)
        assert images.label is not None
        entropy, share = class_entropy(images.image.flatten(1), images.label, x)
        distance = frechet_distance(images.image.flatten(1).double(), x.double())
        # Student's turn: student 3, teacher 1, critic 1, discriminator 3; others: student 1, critic 3, discriminator 6.
        rounds = -(-sizes.turns // RATIO)
        cost = BATCH * (8 * rounds + 10 * (sizes.turns - rounds))
        return {BUDGET: cost, "entropy": entropy, "new": share, "fd": distance}

    def method(self, name: str, teacher: Empirical, begun: Any, sizes: Scale) -> FDistill:
        """The method of an arm on digits, from (student, critic, discriminator) as they are."""
        student, critic, judge = begun
        cls = _Exact if name.endswith("exact ratio") else FDistill
        if cls is _Exact:
            judge = KernelRatio(teacher, student, sizes.bank)
        return cls(
            student, teacher, critic, divergence=name.partition(",")[0], discriminator=judge, ratio=RATIO, bin_rate=0.5,
            lr=LR, critic_lr=LR,
        )  # fmt: skip

    def start(self, teacher: Empirical, images: Any, seed: int, sizes: Scale) -> tuple[MeanMap, Preconditioned, Any]:
        """A student of the digits 0 to 4, and a critic and a discriminator that know it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "nets") % 2**63)
            nets = [
                Preconditioned(
                    MLP(in_shape=(1, 8, 8), width=sizes.width, depth=sizes.depth), EDM(), sigma_data=SIGMA_DATA
                )
                for _ in "scd"
            ]
            judge = TapDiscriminator(nets[2], head="pool", trained="all")
        student, critic = mean_map(None, nets[0]), nets[1]
        half = Empirical(EDM(), images.image[images.label < KEPT], smoothing=SMOOTHING)
        noise = Noise(derive(seed, "pairs"))
        z = noise.at(range(sizes.pairs), student.shape).normal()
        made = Sampled(half, Heun(steps=18)).generate(range(sizes.pairs), noise)
        descent, top = torch.optim.Adam(student.net.parameters(), lr=1e-3), student.schedule.t_max
        for step in range(sizes.first):
            descent.param_groups[0]["lr"] = 1e-3 * (1 - step / sizes.first)
            chosen = Noise(derive(seed, "rows", step)).at([0], (BATCH,)).uniform(shape=(BATCH,))[0]
            rows = (chosen * sizes.pairs).long()
            descent.zero_grad()
            (student.answer(z[rows] * top, top) - made[rows]).square().mean().backward()
            descent.step()
        method = FDistill(student, teacher, critic, discriminator=judge, critic_lr=1e-3, ratio=RATIO)
        method.updates = [method.updates[1]]
        fit(method, images.image, steps=sizes.warm, batch_size=BATCH, seed=derive(seed, "warm"))
        return student, critic, judge

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        def of(arm: str, name: str) -> list[float]:
            return [value for value in numbers[arm][name] if value is not None]

        def seen(arm: str) -> str:
            m, s, right = (mean(of(arm, name)) for name in ("mean", "std", "right"))
            return f"{arm.partition(': ')[2]}: mean {m:.2f}, std {s:.2f}, {right:.1%} right of 0"

        rkl, jf, kl = LINE[0], LINE[4], LINE[5]
        moments = all(
            abs(m + 0.8) <= 0.1 and abs(s - 1.9) <= 0.1 and 0.28 <= right <= 0.4
            for m, s, right in zip(of(kl, "mean"), of(kl, "std"), of(kl, "right"))
        )
        seeking = all(
            abs(m + 2) <= 0.15 and abs(s - 0.5) <= 0.15 and right < 0.01
            for arm in LINE[:4]
            for m, s, right in zip(of(arm, "mean"), of(arm, "std"), of(arm, "right"))
        )
        between = all(a < b < c for x in ("mean", "std") for a, b, c in zip(of(rkl, x), of(jf, x), of(kl, x)))
        parts = [
            Part("forward KL on a line matches the teacher's moments", moments, seen(kl)),
            Part("reverse KL, its soft form, JS and Hellinger take one mode", seeking, "; ".join(map(seen, LINE[:4]))),
            Part("Jeffreys lies between reverse and forward KL", between, seen(jf)),
        ]
        base, bound = of(DIGITS[0], "entropy"), of(DIGITS[0], "fd")
        entropies = {arm: of(arm, "entropy") for arm in DIGITS[:3]}
        spread = max(stdev(values) if len(values) > 1 else 0.0 for values in entropies.values())
        limit = mean(bound) + (stdev(bound) if len(bound) > 1 else 0.0)
        for arm, spoken in ((DIGITS[1], "Jensen-Shannon"), (DIGITS[2], "forward KL")):
            more = [after - before for before, after in zip(base, entropies[arm])]
            found = ", ".join(f"{value:+.3f}" for value in more)
            parts.append(
                Part(f"{spoken} covers more digits than reverse KL", all(v > 0 for v in more), f"nats: {found}")
            )
            distance = mean(of(arm, "fd"))
            says = f"{spoken} is no worse in Frechet distance"
            parts.append(
                Part(says, distance <= limit, f"{distance:.3g}, reverse KL {mean(bound):.3g} within {limit:.3g}")
            )
        gain = max(mean(entropies[arm]) for arm in DIGITS[1:3]) - mean(base)
        return "refuted" if gain <= spread else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def told(name: str, digits: int) -> str:
            return ", ".join(
                f"{arm.partition(': ')[2]} {mean([v for v in numbers[arm][name] if v is not None]):.{digits}f}"
                for arm in DIGITS
            )

        ends = ", ".join(
            f"{arm.partition(': ')[2]} {mean([v for v in numbers[arm]['divergence'] if v is not None]):.3f} "
            f"({mean([v for v in numbers[arm]['at the mode'] if v is not None]):.3f})"
            for arm in LINE
        )
        return [
            f"The divergence that each reaches on the line (its value for the left mode alone): {ends}.",
            f"Mean entropy of classes (ten equal ones 2.30, five 1.61): {told('entropy', 2)}.",
            f"Share of the digits 5 to 9, which the student did not know: {told('new', 2)}.",
            f"Mean Frechet distance of pixels: {told('fd', 2)}.",
        ]


CLAIM = FDistillClaim()
