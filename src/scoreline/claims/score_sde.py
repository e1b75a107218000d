"""The claim of system 15, measured small: exact likelihoods, sub-VP against VP, predictor-corrector, inpainting.

Song et al. 2021 (arXiv 2011.13456). The rule, from the plan of this claim:
- (a) bits/dim of the ODE, a mean over points, agree with the closed form of a Gaussian and of a mixture in 8 dimensions
  to 0.01, for VE, VP and sub-VP; Hutchinson's estimate is unbiased (within 4 standard errors) and its deviation shrinks
  as 1/sqrt(probes) (16 probes: a factor of 4 to within 25 %).
- (b) the same network trained with both has no more bits/dim under sub-VP than under VP: seen if the 95 % interval of
  the mean difference over seeds lies below 0, not seen if it lies above 0, else nothing can be told.
- (c) with a learned score, PC(N) beats C(2N), and beats P(2N), in mean Frechet distance over seeds, at every N; PC with
  the better of two snr. Samples that are no digits at all (every arm farther than the uniform noise images) tell
  nothing.
- (d) the replacement method is biased on a correlated Gaussian, less so with more steps, and with more corrections.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.noise import Noise, derive
from scoreline.core.sampler import Sampler
from scoreline.core.schedule import Schedule, Time, spread
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.denoising import Denoising
from scoreline.diffusion.likelihood import bin_width, bits_per_dim, dequantised, log_likelihood
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import VE, VP, SubVP
from scoreline.evaluate.protocols import FrechetProtocol, digits_net, features_of
from scoreline.guidance.inpainting import Inpainting
from scoreline.metrics.intervals import mean_interval
from scoreline.nn.mlp import MLP
from scoreline.samplers.score_sde import PC, ReverseDiffusion
from scoreline.train import fit
from scoreline.train.lr import Cosine

__all__ = ["CLAIM", "CorrelatedPairs", "ScoreSDE"]


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale.

    Args:
        width, depth: of the residual MLP.
        steps: of its training, at batch 128.
        count: samples an arm of (c), test images of (b).
        points: of (a).
        repeats: independent probes of Hutchinson's estimate in (a).
        chains: of (d), each of 16 pairs.
        rtol: of the likelihoods with random probes.
        divide: N is divided by this (the smoke test only).
    """

    width: int
    depth: int
    steps: int
    count: int
    points: int
    repeats: int
    chains: int
    rtol: float
    divide: int = 1


SIZES = {
    "laptop": Scale(width=192, depth=4, steps=1500, count=200, points=64, repeats=256, chains=200, rtol=1e-4),
    "smoke": Scale(width=16, depth=1, steps=2, count=70, points=4, repeats=16, chains=4, rtol=1e-2, divide=50),
}
BATCH, PEAK_LR, AVERAGE, LEVELS = 128, 2e-3, 0.995, 17
# The largest distance between two training images is 9.6 ("about the largest pairwise distance").
SDES: dict[str, Schedule] = {"ve": VE(sigma_max=10.0), "vp": VP(t_min=1e-5), "subvp": SubVP(t_min=1e-5)}
# For the closed forms the paper's settings on CIFAR-10.
EXACT: dict[str, Schedule] = {"ve": VE(sigma_max=50.0), "vp": VP(t_min=1e-5), "subvp": SubVP(t_min=1e-5)}
LENGTHS, SNRS = (50, 200, 500), (0.08, 0.16)
REPLACED, CORRECTIONS = (20, 100, 400), (0, 1, 2)
CORRELATION, KNOWN = 0.8, 1.5

FORMS = ("gaussian", "mixture")
_A = tuple(f"a {sde} {form}" for sde in EXACT for form in FORMS)
_B = ("b vp", "b subvp")
_C = tuple(f"c {kind} N={n}" for n in LENGTHS for kind in ("P", *(f"PC-{r}" for r in SNRS), "C"))
_D = tuple(f"d N={n} n={k}" for n in REPLACED for k in CORRECTIONS)


class CorrelatedPairs(Denoiser):
    """Data of 16 independent pairs, each N(0, [[1, rho], [rho, 1]]): (2, 16), the first row to be known.

    Along (1, 1)/sqrt(2) the variance is 1 + rho, along (1, -1)/sqrt(2) it is 1 - rho.

    Args:
        schedule: coordinates.
        rho: correlation, in (-1, 1).
    """

    def __init__(self, schedule: Schedule, rho: float) -> None:
        super().__init__()
        self.schedule, self.shape, self.rho = schedule, (2, 16), rho

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        alpha, sigma = spread(self.schedule.alpha(t), x), spread(self.schedule.sigma(t), x)
        plus, minus = x.sum(1, keepdim=True) / 2, (x[:, :1] - x[:, 1:]) / 2
        p, m = 1 + self.rho, 1 - self.rho
        p, m = alpha * p / (alpha**2 * p + sigma**2), alpha * m / (alpha**2 * m + sigma**2)
        return Posterior.of_mean(x, torch.cat([p * plus + m * minus, p * plus - m * minus], 1), alpha, sigma)


class ScoreSDE(Claim):
    """Exactness, likelihoods, predictor-corrector and replacement."""

    system = "15"
    statement = (
        "The probability-flow ODE gives exact likelihoods, sub-VP better ones than VP, and predictor-corrector "
        "samplers beat predictors and correctors alone at equal cost."
    )
    arms = (*_A, *_B, *_C, *_D)
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 100.0, "smoke": 10.0}
    shrunk = (
        "8x8 digits, 1297 training images dequantised from 17 levels, in place of CIFAR-10",
        "a residual MLP of 4 layers of 192 in place of NCSN++ and DDPM++, 1500 steps of 128 images in place of 950,000",
        "that MLP ends in a normalisation in (b), as the paper's networks do; in (c) it has none",
        "200 samples an arm and the 64 features of the digits classifier in place of 50,000 and Inception",
        "likelihood of 200 test images, one dequantisation each, in place of 10,000 and five",
    )

    def weight(self, arm: str, scale: str) -> float:
        kind, *rest = arm.split()
        if kind == "c":
            return 2.0 * float(rest[1].removeprefix("N="))
        return {"a": 60.0, "b": 600.0}.get(kind) or 0.6 * float(rest[0].removeprefix("N="))

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        sizes, (part, *rest) = SIZES[scale], arm.split()
        if part == "a":
            return {**_exactness(EXACT[rest[0]], rest[1], seed, sizes), BUDGET: 0}
        if part == "d":
            steps, corrections = (int(word[2:]) for word in rest)
            return {**_replacement(max(steps // sizes.divide, 2), corrections, seed, sizes), BUDGET: 0}
        sde = rest[0] if part == "b" else "ve"
        model = memo(sde, lambda: _trained(sde, seed, sizes))
        spent = 3 * sizes.steps * BATCH
        if part == "b":
            return {**_bits(model, seed, sizes), BUDGET: spent}
        steps = max(int(rest[1][2:]) // sizes.divide, 2)
        protocol = memo("protocol", _protocol)
        return {**_sampled(model, _sampler(rest[0], steps), protocol, seed, sizes), BUDGET: spent}

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        worst = max(abs(v) for arm in _A for v in _known(numbers[arm]["error"]))
        bias = max(mean(map(abs, _known(numbers[arm]["bias"]))) for arm in _A)
        ratios = [mean(_known(numbers[arm]["ratio"])) for arm in _A if arm.endswith("mixture")]
        shrinks = all(3.0 <= ratio <= 5.0 for ratio in ratios)
        parts = [
            Part("the ODE's bits/dim agree with the closed form to 0.01", worst < 0.01, f"off by at most {worst:.2g}"),
            Part(
                "Hutchinson's estimate is unbiased and shrinks as 1/sqrt(probes)",
                bias < 4 and shrinks,
                f"bias at most {bias:.2g} standard errors in the mean; 16 probes shrink it by "
                f"{', '.join(f'{r:.2f}' for r in ratios)}",
            ),
        ]
        pairs = list(zip(_known(numbers["b subvp"]["bits"]), _known(numbers["b vp"]["bits"]), strict=True))
        gaps = [sub - vp for sub, vp in pairs]
        low, high = _interval(gaps)
        parts.append(
            Part(
                "sub-VP needs no more bits/dim than VP",
                True if high < 0 else False if low > 0 else None,
                f"{mean(sub for sub, _ in pairs):.3f} against {mean(vp for _, vp in pairs):.3f}, difference "
                f"{mean(gaps):+.3f} [{low:+.3f}, {high:+.3f}]",
            )
        )
        parts += [_against(numbers, "C"), _against(numbers, "P")]
        off = {arm: mean(_known(numbers[arm]["offset"])) for arm in _D}
        first, last = f"d N={REPLACED[0]}", f"d N={REPLACED[-1]}"
        error = mean(_known(numbers[f"{first} n=0"]["standard_error"]))
        parts += [
            Part(
                "replacement is biased, less so with more steps",
                abs(off[f"{first} n=0"]) > 3 * error and abs(off[f"{last} n=0"]) < abs(off[f"{first} n=0"]),
                f"{off[f'{first} n=0']:+.3f} at N = {REPLACED[0]}, {off[f'{last} n=0']:+.3f} at N = {REPLACED[-1]}, "
                f"standard error {error:.3f}",
            ),
            Part(
                "and less so with more corrections",
                abs(off[f"{first} n={CORRECTIONS[-1]}"]) < abs(off[f"{first} n=0"]),
                f"N = {REPLACED[0]}: " + ", ".join(f"{off[f'{first} n={k}']:+.3f} with {k}" for k in CORRECTIONS),
            ),
        ]
        return settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        rows = []
        for n in LENGTHS:
            arms = [arm for arm in _C if arm.endswith(f"N={n}")]
            shown = ", ".join(f"{arm.split()[1]} {mean(_known(numbers[arm]['frechet_distance'])):.3g}" for arm in arms)
            rows.append(f"N = {n}, 2N evaluations each, mean Frechet distance: {shown}.")
        worst = {arm: max(_known(numbers[arm]["largest_bits"])) for arm in _B}
        shown = ", ".join(f"{arm.removeprefix('b ')} {bits:.3g}" for arm, bits in worst.items())
        rows.append(f"Largest bits/dim of any test image: {shown}.")
        return rows


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _interval(values: list[float]) -> tuple[float, float]:
    """95 % of the mean; without an end where there is one value only."""
    if len(values) < 2:
        return -math.inf, math.inf
    found = mean_interval(values, method="t")
    return found.low, found.high


def _against(numbers: Numbers, other: str) -> Part:
    """Whether PC(N), with the better snr, has the smaller distance than the other's 2N, at every N."""
    wins, seen, drawn = [], [], []
    for n in LENGTHS:
        both = {r: mean(_known(numbers[f"c PC-{r} N={n}"]["frechet_distance"])) for r in SNRS}
        snr = min(both, key=lambda r: both[r])
        theirs = mean(_known(numbers[f"c {other} N={n}"]["frechet_distance"]))
        wins.append(both[snr] < theirs)
        seen.append(f"N = {n}: {both[snr]:.3g} (snr {snr}) against {theirs:.3g}")
        drawn.append(both[snr] < mean(_known(numbers[f"c {other} N={n}"]["noise_distance"])))
    what = "correctors" if other == "C" else "the predictor"
    return Part(
        f"predictor-corrector beats {what} alone at equal evaluations",
        all(wins) if any(drawn) else None,
        "; ".join(seen),
    )


def _exactness(schedule: Schedule, form: str, seed: int, sizes: Scale) -> dict[str, float | None]:
    """(a): the error of bits/dim with the exact trace, and what Hutchinson's probes add."""
    draws = Noise(derive(seed, "score-sde", "exact"))
    rows = range(sizes.points)
    where = draws.at(range(3), (8,), dtype=torch.float64).normal()
    centres = where[:1] * 0.5 if form == "gaussian" else where
    spreads = torch.tensor([0.25] if form == "gaussian" else [0.05, 0.1, 0.3], dtype=torch.float64)
    model = Mixture(schedule, centres, spreads)
    chosen = torch.arange(sizes.points) % len(centres)
    x = centres[chosen] + spreads[chosen, None].sqrt() * draws.at(rows, (8,), dtype=torch.float64).normal(1)
    t = schedule.t_min
    alpha = float(schedule.alpha(t))
    true = model.log_density(alpha * x, t) + 8 * math.log(alpha)
    exact = log_likelihood(model, x, divergence="exact")
    error = bits_per_dim(exact.log_p - true, 8)
    many = x[:1].expand(sizes.repeats, -1)
    streams = draws.at(range(sizes.repeats), (8,), dtype=torch.float64)
    one, sixteen = (
        log_likelihood(model, many, draws=streams, probes=probes, rtol=sizes.rtol).log_p - exact.log_p[0]
        for probes in (1, 16)
    )
    deviation = float(one.std())
    # An isotropic Gaussian has a multiple of the identity for its Jacobian: every Rademacher probe is exact.
    exactly = deviation < 1e-4
    return {
        "error": float(error.mean()),
        "largest": float(error.abs().max()),
        "bias": 0.0 if exactly else float(one.mean()) / (deviation / math.sqrt(sizes.repeats)),
        "deviation": deviation,
        "ratio": None if exactly else deviation / float(sixteen.std()),
        "nfe": float(exact.evaluations.double().mean()),
    }


def _trained(sde: str, seed: int, sizes: Scale) -> Preconditioned:
    """The network of (b) or (c), on digits dequantised anew at every turn."""
    data = load_images("digits", split="train")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "score-sde", "network") % 2**63)
        net = MLP(in_shape=data.shape, width=sizes.width, depth=sizes.depth)
    if sde == "ve":
        # x/sigma stands beside the network, whose share in eps vanishes where noise is large.
        how: dict[str, Any] = {"kind": "edm", "sigma_data": 0.75}
    else:
        # Here the network alone makes eps. Off its training data a plain MLP goes on linearly, and where its slope is
        # above 1 the ODE drives an unusual image away by exp(integral of beta (slope - 1)/2). The paper's networks end
        # in a normalisation and a linear layer: their answer is bounded, and far out the ODE pulls back.
        net.add_module("output", nn.Sequential(nn.LayerNorm(sizes.width), net.output))
        how = {"kind": "eps", "time_input": "999t"}
    method = Denoising(
        Preconditioned(net, SDES[sde], **how),
        levels="uniform",
        lr=Cosine(PEAK_LR, sizes.steps, warmup=min(50, sizes.steps - 1)),
        transform=lambda image, draws: dequantised(image, LEVELS, draws.uniform(0, 7, shape=image.shape[1:])).float(),
    )
    model: Preconditioned = fit(method, data, steps=sizes.steps, batch_size=BATCH, seed=seed, ema=AVERAGE).result()
    return model


def _bits(model: Preconditioned, seed: int, sizes: Scale) -> dict[str, float | None]:
    """(b): bits/dim of test images, the same dequantisation and probes for both SDEs."""
    batch = load_images("digits", split="test").batch(range(sizes.count))
    draws = Noise(derive(seed, "score-sde", "bits")).at(batch.index, model.shape)
    x = dequantised(batch.image, LEVELS, draws.uniform(shape=model.shape))
    solved = log_likelihood(model, x, draws=draws, rtol=sizes.rtol)
    bits = bits_per_dim(solved.log_p, math.prod(model.shape), bin_width(LEVELS))
    return {
        "bits": float(bits.mean()),
        "largest_bits": float(bits.max()),
        # 1 if latents are as the prior has them.
        "largest_latent": float(solved.latents.flatten(1).square().mean(1).max()),
        "nfe": float(solved.evaluations.double().mean()),
    }


def _sampler(kind: str, steps: int) -> Sampler:
    """The arms of (c): 2N evaluations each; correctors alone end with one more, which removes the noise."""
    if kind == "P":
        return ReverseDiffusion(steps=2 * steps)
    if kind == "C":
        return PC(predictor="none", snr=SNRS[-1], steps=2 * steps)
    return PC(snr=float(kind.removeprefix("PC-")), steps=steps)


def _protocol() -> FrechetProtocol:
    return FrechetProtocol(digits_net(), load_images("digits", split="test"), split="test", conditions="none")


def _sampled(
    model: Denoiser, sampler: Sampler, protocol: FrechetProtocol, seed: int, sizes: Scale
) -> dict[str, float | None]:
    draws = Noise(derive(seed, "score-sde", "samples")).at(range(sizes.count), model.shape)
    sample = sampler(model, draws)
    noise = draws.uniform(1, 9, shape=model.shape).float() * 2 - 1

    def distance(images: Tensor) -> float:
        return protocol.distance(features_of(protocol.encoder, images.clamp(-1, 1)))

    return {"frechet_distance": distance(sample.x), "noise_distance": distance(noise), "nfe": sample.nfe}


def _replacement(steps: int, corrections: int, seed: int, sizes: Scale) -> dict[str, float | None]:
    """(d): the mean of the unknown half minus its exact conditional mean rho y."""
    model = CorrelatedPairs(VP(), CORRELATION)
    draws = Noise(derive(seed, "score-sde", "replaced")).at(range(sizes.chains), (2, 16), dtype=torch.float64)
    image = torch.full((1, 2, 16), KNOWN, dtype=torch.float64)
    mask = torch.tensor([[True], [False]]).expand(2, 16)
    sampler = Inpainting(PC(corrector_steps=corrections, steps=steps), image=image, mask=mask)
    unknown = sampler(model, draws).x[:, 1]
    return {
        "offset": float(unknown.mean()) - CORRELATION * KNOWN,
        "standard_error": float(unknown.std()) / math.sqrt(unknown.numel()),
        "deviation": float(unknown.std()),
    }


CLAIM = ScoreSDE()
