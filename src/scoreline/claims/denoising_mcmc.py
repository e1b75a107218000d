"""The claim of system 08, measured on digits: an integrator is faster when chains over noise levels hand over to it.

Kim & Ye 2023 (arXiv 2209.14593). The model is exact: the training split of the digits (1297 images, in [0, 1]), each
smoothed by a Gaussian of variance 0.003, with the score that follows and the exact posterior over 100 levels, so that
nothing is trained. KAR1 (EDM's deterministic Heun) from pure noise at sigma_max = 20 stands against denoising Langevin
Gibbs (DLG) with KAR1, both with the same number of evaluations per image, none left out: sweeps, integrator, the
Tweedie step, and the start-up of 47 (37 of the first run, 10 of burn-in with the working eta), shared by the 50 images
that a chain makes.

The distance is the Frechet distance of the pixels' Gaussians, in [0, 1], to the exact mean and covariance of the data.

The rule, from the plan of this claim:
- confirmed: below about 10 evaluations DLG is clearly better than the integrator from noise, and the gap vanishes at 13
  and more. "Clearly": at 5, 7 and 9 its distance, with the best step eta of 0.05, 0.1 and 0.2, is at most half of the
  integrator's, in the mean over seeds, and it is better in every seed. "Vanishes": at 13 and 19 it is not at most half.
- refuted: no gain at 9 evaluations or fewer for any eta.
Diversity is told beside it (classes, images drawn, correlation of successive emissions), since a distance of Gaussians
hides slow mixing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean

import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.noise import Noise, derive
from scoreline.core.sampler import Sampler
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.schedules import EDM
from scoreline.metrics.frechet import frechet_distance_from_statistics
from scoreline.samplers.denoising_mcmc import ChainSample, DenoisingMCMC, levels_from
from scoreline.samplers.heun import Heun
from scoreline.samplers.level_prediction import ExactLevels

__all__ = ["ARMS", "CLAIM", "Arm", "DenoisingMCMCClaim", "lag_one"]

BUDGETS = (5, 7, 9, 13, 19)
LOW = (5, 7, 9)
ETAS = (0.05, 0.1, 0.2)
# Budget -> (N of KAR1, n_skip): 2(N-1) - 1 + n_skip + 1 (Tweedie) + 47/50 (start-up).
CHAIN = {5: (2, 2), 7: (2, 4), 9: (3, 4), 13: (4, 6), 19: (6, 8)}
EMISSIONS, BURN_IN = 50, 10
SIGMA_MIN, SIGMA_MAX, VARIANCE, LEVELS = 0.01, 20.0, 0.003, 100
CLEARLY = 0.5


@dataclass(frozen=True)
class Arm:
    """One way of sampling at a budget: eta None is KAR1 from noise; `one_step` leaves KAR1 one step and gives the
    rest to the chain."""

    budget: int
    eta: float | None = None
    one_step: bool = False

    @property
    def name(self) -> str:
        if self.eta is None:
            return f"kar1 {self.budget}"
        return f"dlg {self.budget} eta={self.eta:g}" + (" one-step" if self.one_step else "")

    @property
    def chain(self) -> tuple[int, int]:
        """(N of KAR1, n_skip) of a chain."""
        return (2, self.budget - 3) if self.one_step else CHAIN[self.budget]


# Told beside the rest and no part of the rule: the same evaluations with one step of KAR1 in place of two.
ONE_STEP = Arm(9, 0.1, one_step=True)
_RULED = [arm for budget in BUDGETS for arm in (Arm(budget), *(Arm(budget, eta) for eta in ETAS))]
ARMS = {arm.name: arm for arm in (*_RULED, ONE_STEP)}


@dataclass(frozen=True)
class Scale:
    """Sizes of one scale: chains, and images that each makes (also the number of images from noise)."""

    chains: int
    emissions: int


SIZES = {"laptop": Scale(20, EMISSIONS), "smoke": Scale(3, 3)}


@dataclass(frozen=True)
class World:
    """The exact model, its levels, and the moments and classes of its data, pixels in [0, 1]."""

    model: Empirical
    levels: ExactLevels
    mean: Tensor
    covariance: Tensor
    labels: Tensor


class DenoisingMCMCClaim(Claim):
    """DLG + KAR1 against KAR1, with an exact score."""

    system = "08"
    statement = (
        "Chains over image and noise level make an integrator faster: better images at the same few evaluations."
    )
    arms = tuple(ARMS)
    seeds = (0, 1, 2)
    seconds: Mapping[str, float] = {"laptop": 110.0, "smoke": 3.0}
    shrunk = (
        "8x8 digits with the exact score of a smoothed data set in place of networks for CIFAR-10 and CelebA-HQ-256",
        "one integrator, KAR1, in place of six",
        "1,000 images an arm (20 chains of 50) and pixels in place of 50,000 and Inception",
    )

    def weight(self, arm: str, scale: str) -> float:
        how = ARMS[arm]
        return 1.0 if how.eta is None else 1.0 + how.chain[1]

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        how, sizes = ARMS[arm], SIZES[scale]
        world = memo("world", _world)
        count = sizes.chains * sizes.emissions
        sampler = _sampler(how, sizes)
        if isinstance(sampler, DenoisingMCMC):
            sampler = sampler.holding(world.levels)
        draws = Noise(derive(seed, "denoising-mcmc claim")).at(range(count), world.model.shape)
        if how.eta is None:
            times = levels_from(2 * SIGMA_MAX, 2 * SIGMA_MIN, (how.budget + 1) // 2, "karras", world.model.schedule)
            sample = sampler(world.model, draws, times=times)
        else:
            sample = sampler(world.model, draws)
        pixels = (0.5 * (sample.x + 1)).flatten(1).double()
        out: dict[str, float | None] = {
            "frechet_distance": frechet_distance_from_statistics(
                world.mean, world.covariance, pixels.mean(0), pixels.T.cov()
            ),
            "nfe": sample.nfe,
            **_diversity(world, sample.x),
            BUDGET: 0,
        }
        if isinstance(sample, ChainSample):
            assert sample.levels is not None
            levels = 0.5 * sample.levels.view(sizes.emissions, sizes.chains)
            third = max(sizes.emissions // 3, 1)
            out |= {
                "nfe_without_startup_and_tweedie": sample.nfe - sample.startup - 1,
                "nfe_startup": sample.startup,
                "lag_one_correlation": lag_one(pixels.view(sizes.emissions, sizes.chains, -1)),
                "level_handed_over": float(levels.median()),
                "level_first_third": float(levels[:third].median()),
                "level_last_third": float(levels[-third:].median()),
            }
        return out

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        best = {budget: _best(numbers, budget) for budget in BUDGETS}
        noise = {budget: _distance(numbers, Arm(budget)) for budget in BUDGETS}

        def said(budgets: tuple[int, ...]) -> str:
            return "; ".join(
                f"at {b}: {_distance(numbers, best[b]):.3g} (eta {best[b].eta:g}) against {noise[b]:.3g}"
                for b in budgets
            )

        def better_in_every_seed(budget: int) -> bool:
            pairs = zip(_values(numbers, best[budget]), _values(numbers, Arm(budget)), strict=True)
            return all(chain < plain for chain, plain in pairs)

        share = {budget: _distance(numbers, best[budget]) / noise[budget] for budget in BUDGETS}
        late = tuple(budget for budget in BUDGETS if budget not in LOW)
        parts = [
            Part(
                "at 5, 7 and 9 evaluations, all counted, the distance is at most half of the integrator's from noise",
                all(share[b] <= CLEARLY and better_in_every_seed(b) for b in LOW),
                said(LOW),
            ),
            Part(
                "the gap vanishes at 13 evaluations and more",
                all(share[b] > CLEARLY for b in late),
                said(late),
            ),
        ]
        gain = any(_distance(numbers, Arm(b, eta)) < noise[b] for b in LOW for eta in ETAS)
        return (settle(parts) if gain else "refuted"), parts

    def findings(self, numbers: Numbers) -> list[str]:
        best = {budget: _best(numbers, budget) for budget in BUDGETS}

        def of(arm: Arm, name: str) -> float:
            return mean(value for value in numbers[arm.name][name] if value is not None)

        counted = ", ".join(
            f"{b} ({of(best[b], 'nfe_without_startup_and_tweedie'):.3g} in the paper's count)" for b in BUDGETS
        )
        drawn = "; ".join(
            f"at {b} DLG {of(best[b], 'distinct_images'):.2f}, from noise {of(Arm(b), 'distinct_images'):.2f}"
            for b in BUDGETS
        )
        classes = "; ".join(
            f"at {b} {of(best[b], 'class_distance'):.2f} and {of(Arm(b), 'class_distance'):.2f}" for b in BUDGETS
        )
        lags = ", ".join(f"{of(best[b], 'lag_one_correlation'):.2f} at {b}" for b in BUDGETS)
        creep = ", ".join(
            f"{of(Arm(9, eta), 'level_first_third'):.2g} to {of(Arm(9, eta), 'level_last_third'):.2g} (eta {eta:g})"
            for eta in ETAS
        )
        return [
            f"Evaluations of DLG: {counted}; the start-up alone is {of(best[9], 'nfe_startup'):.3g} an image.",
            f"With one step of KAR1 in place of two and n_skip 6 in place of 4 (no part of the rule), at 9: distance "
            f"{of(ONE_STEP, 'frechet_distance'):.3g} (eta {ONE_STEP.eta:g}). With two levels Heun's second slope is "
            "taken at the lowest of all.",
            f"Correlation of successive emissions of a chain (pixels): {lags}.",
            f"Different training images drawn, as a share of the images made: {drawn}.",
            f"Total variation between the classes drawn and those of the data, DLG and from noise: {classes}.",
            f"Median level handed over at 9 evaluations, first third of a chain's emissions to last: {creep}.",
        ]


def _sampler(arm: Arm, sizes: Scale) -> Sampler:
    if arm.eta is None:
        return Heun()
    N, n_skip = arm.chain
    return DenoisingMCMC(
        of="kar1", steps=N - 1, n_skip=n_skip, eta=arm.eta, chains=sizes.chains, emissions=sizes.emissions,
        burn_in=0, settle=BURN_IN,
    )  # fmt: skip


def _world() -> World:
    images = load_images("digits", split="train")
    batch = images.batch(range(len(images)))
    assert batch.label is not None
    # Variances in [0, 1] are four times as large in [-1, 1].
    model = Empirical(EDM(t_max=2 * SIGMA_MAX), batch.image, smoothing=2 * math.sqrt(VARIANCE))
    levels = ExactLevels(model, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, levels=LEVELS)
    pixels = (0.5 * (batch.image + 1)).flatten(1).double()
    covariance = pixels.T.cov(correction=0) + VARIANCE * torch.eye(pixels.shape[1], dtype=torch.float64)
    return World(model, levels, pixels.mean(0), covariance, batch.label)


def _diversity(world: World, images: Tensor) -> dict[str, float | None]:
    """Each image belongs to its nearest training image: how many different ones, and how far their classes are off."""
    distance = torch.cdist(images.flatten(1), world.model.means)
    nearest = distance.argmin(1)
    made = torch.bincount(world.labels[nearest], minlength=10) / len(images)
    real = torch.bincount(world.labels, minlength=10) / len(world.labels)
    return {
        "distinct_images": len(nearest.unique()) / len(images),
        "class_distance": float(0.5 * (made - real).abs().sum()),
    }


def lag_one(emissions: Tensor) -> float:
    """Correlation of successive emissions of a chain, over all chains and pixels; emissions (E, C, D).

    >>> lag_one(torch.tensor([1.0, -1.0, 1.0, -1.0]).view(4, 1, 1))
    -1.0
    """
    centred = emissions - emissions.mean((0, 1))
    if len(centred) < 2:
        return 0.0
    return float((centred[1:] * centred[:-1]).mean() / centred.square().mean())


def _values(numbers: Numbers, arm: Arm) -> list[float]:
    return [value for value in numbers[arm.name]["frechet_distance"] if value is not None]


def _distance(numbers: Numbers, arm: Arm) -> float:
    return mean(_values(numbers, arm))


def _best(numbers: Numbers, budget: int) -> Arm:
    return min((Arm(budget, eta) for eta in ETAS), key=lambda arm: _distance(numbers, arm))


CLAIM = DenoisingMCMCClaim()
