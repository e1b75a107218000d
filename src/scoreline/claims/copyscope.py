"""The claim of system 05, measured on digits: contributions to similarity can be told apart by FD-based Shapley values.

Zhou, Gao, Wang & Wei 2023 (arXiv 2311.12847) name the parts of a workflow that make its images similar to a protected
set. Here the truth is known: the "artwork" are the first 90 threes of the digits, moved one pixel to the right (round
the edge). The workflow has four parts: base (real digits of all classes; without it pixel noise of the digits' mean and
standard deviation), adapter (draws only threes that are no artwork; without the base it blends 30 % of the mean three
into the noise), control (moves by one pixel) and prompt (does nothing, on purpose). F is the Frechet distance of the 64
raw pixels in [0, 1], from 400 images a coalition, the same seeds in all.

The rule, from the plan of this claim:
- confirmed if (1) the dummy is within 2 sd of 0, (2) the order base > adapter > control holds in all seeds,
  (3) efficiency holds, (4) leave-one-out ranks control first, that is, the two rules disagree;
- refuted if with 100 images a coalition the ranking flips between seeds.
The further arms (coalitions with seeds of their own, another stand-in at the edge, other threes as artwork, unrelated
artwork, an adapter made of the artwork itself, equal kernel distance at unequal diversity) are told beside it; the
verdict rests on none of them. The plan says neither which 90 threes are the artwork nor what happens at the edge: the
first 90 and a shift round the edge are what gives the figures that stand in it, and were chosen for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from scoreline.claims.engine import BUDGET, Claim, Memo, Numbers, Part, settle
from scoreline.core.encoder import Encoder
from scoreline.core.noise import Noise, derive
from scoreline.data import load_images
from scoreline.explain.copyscope import CopyScope
from scoreline.metrics import frechet_distance, polynomial_mmd

__all__ = ["CLAIM", "COMPONENTS", "CopyScopeClaim", "Workflow"]

COMPONENTS = ("base", "adapter", "control", "prompt")
ARTWORK = 90
BLEND = 0.3

PLAN = "400 images"
SMALL = "100 images"
KERNEL = "400 images, KID"
OWN = "400 images, own seeds"
EDGE = "400 images, empty edge"
OTHERS = "400 images, other artwork"
UNRELATED = "unrelated artwork"
COPIED = "adapter made of the artwork"
DIVERSE = "equal KID, unequal diversity"

# Variances 1 - d and 1 + d have the same population KID to N(0, I), 3 d^2 / dim, but not the same diversity.
DELTA, DIM, DRAWN = 0.2, 64, 100


class UnitPixels(Encoder):
    """The pixels in [0, 1], flattened; noise may reach beyond, as in the plan."""

    dim = DIM
    protocol = {  # noqa: RUF012
        "features": "pixels", "tap": "0 to 1", "weights": "none", "resize": "none", "quantisation": "none",
        "precision": "float32",
    }  # fmt: skip

    def features(self, x: Tensor) -> Tensor:
        return ((x + 1) / 2).flatten(1)


class Workflow:
    """The workflow of the plan.

    Args:
        count: images a coalition.
        wrap: whether control moves the last column round the edge (the plan) or leaves the first one empty.
        own_seeds: give each coalition noise of its own, the mistake that same seeds avoid.
        copied: let the adapter draw the artwork itself, already moved.
        drawn: seed that chooses the 90 threes of the artwork, None for the first 90.
        scrambled: put the artwork's pixels in another order, the same for all: artwork that nothing here makes.
    """

    def __init__(
        self,
        count: int,
        *,
        wrap: bool = True,
        own_seeds: bool = False,
        copied: bool = False,
        drawn: int | None = None,
        scrambled: bool = False,
    ) -> None:
        self.count, self.wrap, self.own_seeds, self.copied = count, wrap, own_seeds, copied
        digits = load_images("digits")
        batch = digits.batch(range(len(digits)))
        assert batch.label is not None
        self.digits = batch.image
        threes = batch.image[batch.label == 3]
        if drawn is not None:
            threes = threes[torch.randperm(len(threes), generator=torch.Generator().manual_seed(drawn))]
        self.artwork = self.moved(threes[:ARTWORK])
        self.threes = self.artwork if copied else threes[ARTWORK:]
        if scrambled:
            order = torch.randperm(DIM, generator=torch.Generator().manual_seed(0))
            self.artwork = self.artwork.flatten(1)[:, order].view_as(self.artwork)

    def moved(self, x: Tensor) -> Tensor:
        """One pixel to the right."""
        out = x.roll(1, -1)
        if not self.wrap:
            out[..., 0] = -1
        return out

    def __call__(self, active: frozenset[str], noise: Noise) -> Tensor:
        if self.own_seeds:
            noise = Noise(derive(noise.seed, *sorted(active)))
        draws = noise.at(range(self.count), self.digits.shape[1:])
        adapted = "adapter" in active
        if "base" in active:
            pool = self.threes if adapted else self.digits
            x = pool[draws.integers(len(pool), part=1)]
        else:
            x = self.digits.mean() + self.digits.std() * draws.normal()
            if adapted:
                x = (1 - BLEND) * x + BLEND * self.threes.mean(0)
        # What is made of the artwork is where it belongs already.
        return self.moved(x) if "control" in active and not (adapted and self.copied) else x


ARMS: dict[str, dict[str, Any]] = {
    PLAN: {"count": 400},
    SMALL: {"count": 100},
    KERNEL: {"count": 400},
    OWN: {"count": 400, "own_seeds": True},
    EDGE: {"count": 400, "wrap": False},
    OTHERS: {"count": 400},
    UNRELATED: {"count": 400, "scrambled": True},
    COPIED: {"count": 400, "copied": True},
}


class CopyScopeClaim(Claim):
    """Shapley values of a workflow with known parts."""

    system = "05"
    statement = "FD-based Shapley values quantify how much each component of a workflow contributes to similarity."
    arms = (*ARMS, DIVERSE)
    seeds = (0, 1, 2, 3, 4)
    seconds: Mapping[str, float] = {"laptop": 3.0, "smoke": 2.0}
    shrunk = (
        "8x8 digits drawn from the data set in place of Stable Diffusion with LoRA, ControlNet and prompt",
        "raw pixels in place of Inception features; 400 images a coalition and 90 of artwork",
    )

    def run(self, arm: str, seed: int, scale: str, memo: Memo) -> dict[str, float | None]:
        if arm == DIVERSE:
            return {**_diversity(seed, repeats=20 if scale == "laptop" else 2), BUDGET: 0}
        settings = dict(ARMS[arm])
        if scale == "smoke":
            settings["count"] //= 10
        if arm == OTHERS:
            settings["drawn"] = seed
        workflow = Workflow(**settings)
        utility = "kid" if arm == KERNEL else "fd"
        scope = CopyScope(COMPONENTS, workflow, workflow.artwork, {"raw": UnitPixels()},
                          utilities=[utility], seeds=[seed])  # fmt: skip
        (found,) = scope.run().values()
        assert found.banzhaf is not None
        out: dict[str, float | None] = {}
        for i, name in enumerate(COMPONENTS):
            out[name] = found.phi[i].mean
            out[f"{name}_leave_one_out"] = found.leave_one_out[i].mean
            out[f"{name}_banzhaf"] = found.banzhaf[i].mean
        full = 2 ** len(COMPONENTS) - 1
        out |= {"empty": found.distance[0].mean, "full": found.distance[full].mean, "residual": found.residual}
        return {**out, BUDGET: 0}

    def verdict(self, numbers: Numbers) -> tuple[str, list[Part]]:
        plan, small = numbers[PLAN], numbers[SMALL]
        dummy = _known(plan["prompt"])
        sd = stdev(dummy) if len(dummy) > 1 else 0.0
        orders = [_order(plan, s) for s in range(len(dummy))]
        left_out = [_order(plan, s, "_leave_one_out") for s in range(len(dummy))]
        small_orders = [_order(small, s) for s in range(len(dummy))]
        residual = max(_known(plan["residual"]))
        flips = len(set(small_orders)) > 1
        shown = ", ".join(f"{name} {_text(plan[name])}" for name in COMPONENTS)
        parts = [
            Part(
                "the dummy's value is within 2 sd of 0", abs(mean(dummy)) <= 2 * sd, f"{mean(dummy):.3g}, sd {sd:.2g}"
            ),
            Part(
                "the order base > adapter > control holds in all seeds",
                all(order == ("base", "adapter", "control") for order in orders),
                shown,
            ),
            Part("efficiency: contributions sum to v(N) - v(empty), to 1e-9", residual <= 1e-9, f"{residual:.1g} off"),
            Part(
                "leave-one-out ranks control first, so that the two rules disagree",
                all(order[0] == "control" for order in left_out),
                ", ".join(f"{name} {_text(plan[f'{name}_leave_one_out'])}" for name in COMPONENTS),
            ),
            Part(
                "with 100 images a coalition the ranking does not flip between seeds",
                not flips,
                "; ".join(sorted({" > ".join(order) for order in small_orders})),
            ),
        ]
        return "refuted" if flips else settle(parts), parts

    def findings(self, numbers: Numbers) -> list[str]:
        def told(arm: str) -> str:
            return ", ".join(f"{name} {_text(numbers[arm][name])}" for name in COMPONENTS)

        copied = numbers[COPIED]
        others = [_order(numbers[OTHERS], s) for s in range(len(numbers[OTHERS]["base"]))]
        first = [_order(copied, s)[0] for s in range(len(copied["base"]))]
        wide = {name: mean(_known(values)) for name, values in numbers[DIVERSE].items() if name != BUDGET}
        return [
            f"With noise of its own for each coalition, the mistake that same seeds avoid: {told(OWN)}.",
            f"By the unbiased kernel distance, times 1000: {_told_scaled(numbers[KERNEL], 1000)}.",
            f"Stand-ins decide: with an empty first column in place of the wrapped one, {told(EDGE)}.",
            f"With 90 other threes as artwork, drawn at random for each seed: {told(OTHERS)}; the order base > "
            f"adapter > control in {others.count(COMPONENTS[:3])} of {len(others)} seeds.",
            f"Artwork that no part aims at (the same threes, their pixels scrambled): {told(UNRELATED)}.",
            f"An adapter made of the artwork itself rises from {mean(_known(numbers[PLAN]['adapter'])):.3g} to "
            f"{mean(_known(copied['adapter'])):.3g} ({told(COPIED)}); it is first in {first.count('adapter')} of "
            f"{len(first)} seeds. What two parts reach only together, Shapley's value gives to both alike, so that the "
            "base without which this adapter only tints noise stays beside it.",
            "Two coalitions of equal kernel distance to the artwork, one less and one more diverse than it, "
            f"{DRAWN} images each: FD {wide['fd_narrow']:.3g} and {wide['fd_wide']:.3g}, in truth "
            f"{wide['fd_narrow_true']:.3g} and {wide['fd_wide_true']:.3g}; the bias turns their order round. "
            f"KID times 1000: {1000 * wide['kid_narrow']:.3g} and {1000 * wide['kid_wide']:.3g}, in truth "
            f"{1000 * wide['kid_true']:.3g} for both.",
        ]


def _diversity(seed: int, repeats: int) -> dict[str, float | None]:
    """FD and KID of a narrow and a wide Gaussian to N(0, I), means over repeats, and their population values.

    FD = dim (1 - s)^2 and KID = 3 (1 - s^2)^2 / dim for N(0, s^2 I) in dim dimensions (cubic kernel, gamma 1 / dim).
    """
    sets: dict[str, list[float]] = {name: [] for name in ("fd_narrow", "fd_wide", "kid_narrow", "kid_wide")}
    widths = {"narrow": math.sqrt(1 - DELTA), "wide": math.sqrt(1 + DELTA)}
    distances: dict[str, Callable[[Tensor, Tensor], float]] = {"fd": frechet_distance, "kid": polynomial_mmd}
    for repeat in range(repeats):
        draws = Noise(derive(seed, "copyscope", "diversity", repeat)).at(range(DRAWN), (DIM,), dtype=torch.float64)
        artwork, images = draws.normal(part=0), draws.normal(part=1)
        for name, width in widths.items():
            for distance, function in distances.items():
                sets[f"{distance}_{name}"].append(function(artwork, width * images))
    out: dict[str, float | None] = {name: mean(values) for name, values in sets.items()}
    out |= {f"fd_{name}_true": DIM * (1 - width) ** 2 for name, width in widths.items()}
    return {**out, "kid_true": 3 * DELTA**2 / DIM}


def _told_scaled(columns: Mapping[str, Any], factor: float) -> str:
    """The contributions of an arm, multiplied."""
    return ", ".join(f"{name} {_text([factor * v for v in _known(columns[name])])}" for name in COMPONENTS)


def _order(columns: Mapping[str, Any], seed: int, suffix: str = "") -> tuple[str, ...]:
    """The components besides the dummy, from the largest to the smallest contribution in one seed."""
    return tuple(sorted(COMPONENTS[:3], key=lambda name: -columns[f"{name}{suffix}"][seed]))


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _text(values: Any) -> str:
    known = _known(values)
    return f"{mean(known):.3g}" + (f" ± {stdev(known):.2g}" if len(known) > 1 else "")


CLAIM = CopyScopeClaim()
