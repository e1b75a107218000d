"""What AutoDiffusion searches over: candidates, their cost, the uniform ones, and the diffusion each stands for.

Li et al. 2023 (arXiv 2309.10438): a candidate is K of the T steps of the base process, each with the layers of the
network that are left out there, under a budget for the whole run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.names import lookup
from scoreline.core.schedule import Schedule
from scoreline.diffusion.schedules import Discrete

__all__ = [
    "GRIDS", "Candidate", "Rebased", "Space", "base_levels", "grid_steps", "random_candidate", "rebase", "some_layers",
    "uniform",
]  # fmt: skip

GRIDS = ("leading", "trailing", "linspace", "quadratic")
TRIES = 10


class Rebased(NamedTuple):
    """The tables of a diffusion shortened to some steps of another, ascending in the step."""

    betas: np.ndarray
    abar: np.ndarray
    abar_prev: np.ndarray
    posterior_variance: np.ndarray
    posterior_log_variance: np.ndarray
    c1: np.ndarray
    c2: np.ndarray


def rebase(abar: np.ndarray, steps: Sequence[int]) -> Rebased:
    """The diffusion that visits only some steps: abar' = abar at the steps, beta'_i = 1 - abar'_i/abar'_{i-1}.

    beta~_i = beta'_i (1 - abar'_{i-1})/(1 - abar'_i), its logarithm with entry 0 replaced by entry 1;
    posterior mean c1 x_0 + c2 x_t: c1 = beta'_i sqrt(abar'_{i-1})/(1 - abar'_i),
    c2 = (1 - abar'_{i-1}) sqrt(1 - beta'_i)/(1 - abar'_i).

    Args:
        abar: (T,) cumulated products of the base process.
        steps: which of them; the order and repetitions mean nothing.

    Returns:
        float64 tables of as many entries as there are different steps, abar'_{-1} = 1.

    Reference: Nichol & Dhariwal 2021; Li et al. 2023, released code.
    """
    kept = np.asarray(abar, dtype=np.float64)[sorted(set(steps))]
    prev = np.append(1.0, kept[:-1])
    betas = 1 - kept / prev
    variance = betas * (1 - prev) / (1 - kept)
    clipped = np.append(variance[1:2], variance[1:]) if len(kept) > 1 else variance
    with np.errstate(divide="ignore"):
        log_variance = np.log(clipped)
    return Rebased(
        betas, kept, prev, variance, log_variance,
        betas * np.sqrt(prev) / (1 - kept), (1 - prev) * np.sqrt(1 - betas) / (1 - kept),
    )  # fmt: skip


def base_levels(schedule: Schedule, count: int = 1001) -> np.ndarray:
    """The levels that steps are chosen from, ascending: all that a discrete model knows, else `count` of its own grid.

    On VP with its uniform times this is the paper's grid for DPM-Solver.
    """
    if schedule.known is not None:
        return schedule.known
    return lookup("grid", schedule.grid)(schedule, count)[::-1].copy()


def grid_steps(name: str, count: int, levels: int = 1000) -> list[int]:
    """The steps of a uniform baseline, ascending: leading, trailing, linspace or quadratic.

    Raises:
        InputError: an unknown grid, or one that has not exactly so many steps.

    >>> grid_steps("leading", 6), grid_steps("linspace", 4)
    ([0, 167, 334, 501, 668, 835], [0, 333, 666, 999])
    """
    if name not in GRIDS:
        raise unknown_name("grid", name, GRIDS)
    steps = [int(t) for t in lookup("grid", name)(Discrete(betas="constant", T=levels), count)[::-1]]
    if len(steps) != count:
        raise InputError("steps", count, f"the {name} grid has {len(steps)} different ones")
    return steps


@dataclass(frozen=True)
class Candidate:
    """Steps of the base process and the layers left out at each.

    Args:
        steps: numbers of base levels, 0 the cleanest.
        drop: for each step the layers left out.
    """

    steps: tuple[int, ...]
    drop: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, genotype: Mapping[str, Any]) -> Candidate:
        """From plain values {"steps": [...], "drop": [[...], ...]}; without drop nothing is left out."""
        steps = tuple(int(i) for i in genotype["steps"])
        drop = genotype.get("drop") or [[]] * len(steps)
        return cls(steps, tuple(tuple(int(i) for i in d) for d in drop))

    def genotype(self) -> dict[str, Any]:
        """Plain values."""
        drop = {"drop": [list(d) for d in self.drop]} if any(self.drop) else {}
        return {"steps": list(self.steps), **drop}

    def key(self) -> str:
        """What tells one candidate from another."""
        return json.dumps(self.genotype())

    def tidy(self) -> Candidate:
        """Pairs sorted by step, layers by number: one way to write a candidate."""
        pairs = sorted(zip(self.steps, (tuple(sorted(d)) for d in self.drop), strict=True))
        return Candidate(tuple(s for s, _ in pairs), tuple(d for _, d in pairs))

    def visited(self) -> list[tuple[int, tuple[int, ...]]]:
        """(step, layers left out), ascending, each step once; the i-th skip set is that of the i-th smallest step."""
        return list(zip(sorted(set(self.steps)), self.drop))


@dataclass(frozen=True)
class Space:
    """What a run may cost.

    Args:
        levels: number of base levels.
        budget: N_max, of the whole run.
        full: cost of one evaluation of the whole network, in the same unit.
        saved: what leaving out each layer saves; empty for a search over steps alone.

    `Space.of_steps(1000, 10)` is ten evaluations; with 58 layers the paper's unit is executed layers, N_max = 580.
    """

    levels: int
    budget: float
    full: float = 1.0
    saved: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.full <= 0 or self.budget < self.full - sum(self.saved):
            mend = (
                f"one evaluation costs {self.full:g}, and at least {self.full - sum(self.saved):g} with all layers out"
            )
            raise InputError("budget", self.budget, mend)

    @classmethod
    def of_steps(cls, levels: int, steps: int, layers: int = 0) -> Space:
        """`steps` evaluations of the whole network; with `layers` counted in executed layers."""
        if not 1 <= steps <= levels:
            raise InputError("steps", steps, f"choose 1 to {levels} of the {levels} levels")
        full = float(layers) if layers else 1.0
        return cls(levels, full * steps, full, (1.0,) * layers)

    @property
    def layers(self) -> int:
        """Number of layers that may be left out."""
        return len(self.saved)

    @property
    def steps(self) -> int:
        """Evaluations of the whole network that the budget buys."""
        return min(int(self.budget / self.full * (1 + 1e-12)), self.levels)

    def cost(self, candidate: Candidate) -> float:
        """sum over steps of the network's cost less that of the layers left out."""
        return sum(self.full - sum(self.saved[i] for i in drop) for _, drop in candidate.visited())

    def allows(self, candidate: Candidate) -> bool:
        """Whether the candidate keeps the budget."""
        return self.cost(candidate) <= self.budget * (1 + 1e-9)


def some_layers(space: Space, low: float, high: float, rng: np.random.Generator) -> tuple[int, ...]:
    """int(fraction L) layers, the fraction uniform between `low` and `high`; sorted."""
    count = int(rng.uniform(low, high) * space.layers)
    return tuple(sorted(rng.permutation(space.layers)[:count].tolist()))


def random_candidate(
    space: Space, rng: np.random.Generator, *, low: float = 0.0, high: float = 0.0, tidy: bool = True
) -> Candidate:
    """Steps drawn without replacement, each with int(fraction L) layers left out, until the budget is used.

    Args:
        space: levels and budget.
        rng: source of draws.
        low, high: the fraction is uniform between them.
        tidy: sort the pairs.
    """
    order = rng.permutation(space.levels).tolist()
    steps: list[int] = []
    drop: list[tuple[int, ...]] = []
    used = 0.0
    while len(steps) < space.levels:
        for attempt in range(TRIES + 1):
            # The last try leaves out as much as is allowed.
            layers = some_layers(space, high if attempt == TRIES else low, high, rng)
            cost = space.full - sum(space.saved[i] for i in layers)
            if used + cost <= space.budget * (1 + 1e-9):
                break
        else:
            break
        used += cost
        steps.append(order[len(steps)])
        drop.append(layers)
    made = Candidate(tuple(steps), tuple(drop))
    return made.tidy() if tidy else made


def uniform(count: int, levels: int) -> Candidate:
    """The uniform candidate: leading, or linspace where no whole stride gives exactly `count` steps."""
    for name in ("leading", "linspace", "trailing"):
        try:
            return Candidate(tuple(grid_steps(name, count, levels)), ((),) * count)
        except InputError:
            continue
    raise InputError("steps", count, f"no grid over {levels} levels has so many")
