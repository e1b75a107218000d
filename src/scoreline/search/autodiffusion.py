"""AutoDiffusion: which noise levels to visit and which layers to leave out at each, found by evolution.

Li, Li, Zheng, Wu, Xiao, Wang, Zheng, Pan, Chao & Ji 2023 (arXiv 2309.10438).

A candidate is K pairs (step of the base process, layers left out there), under a budget for the whole run:
    sum_i (cost of the network - cost of the layers left out at i) <= N_max
Population 50: the uniform candidate, random ones, mutants of the uniform one. Each generation: merge the new members
into a list of the best kept over the whole run, take its first 10 as parents, make 25 mutants and 15 crossovers of
them, fill with random candidates. In the joint search the share of layers that may be left out rises from 0 after the
first five generations, or as soon as the best candidate stays the same.

variant="paper" keeps candidates sorted, pairs together and steps distinct. variant="released" is the published code:
lists are not sorted, so that a crossover mixes unrelated steps, may hold a step twice (which is visited once), and the
i-th skip set belongs to the i-th smallest step; sets that are not empty never mutate; and the last generation is
evaluated but not ranked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scoreline.core.errors import InputError, unknown_name
from scoreline.search.candidates import TRIES, Candidate, Space, random_candidate, some_layers, uniform

__all__ = ["Evolution", "RandomSearch", "crossover", "mutate"]


def mutate(
    parent: Candidate, space: Space, p: float, rng: np.random.Generator, *, low: float = 0.0, high: float = 0.0,
    variant: str = "paper",
) -> Candidate:  # fmt: skip
    """Each step is replaced with probability p by one that is neither in the parent nor drawn already.

    With high > 0 an empty skip set is replaced with probability p by a random one, and each layer of another with
    probability p by one that is not in it (variant "released": the latter never happens).

    Args:
        parent: the candidate.
        space: levels and layers.
        p: probability of a replacement, 0 to 1; 0 returns the parent, 1 keeps none of its steps.
        rng: source of draws.
        low, high: bounds of the share of layers of a new skip set.
        variant: "paper" or "released".
    """
    free = [i for i in range(space.levels) if i not in set(parent.steps)]
    steps = list(parent.steps)
    for i in range(len(steps)):
        if rng.random() < p and free:
            steps[i] = free.pop(int(rng.integers(len(free))))
    drop = [list(d) for d in parent.drop]
    for i, layers in enumerate(drop if high > 0 else []):
        if not layers:
            if rng.random() < p:
                drop[i] = list(some_layers(space, low, high, rng))
            continue
        others = [k for k in range(space.layers) if k not in layers]
        for j in range(len(layers)):
            if rng.random() < p and others and variant == "paper":
                layers[j] = others.pop(int(rng.integers(len(others))))
    made = Candidate(tuple(steps), tuple(tuple(d) for d in drop))
    return made.tidy() if variant == "paper" else made


def crossover(a: Candidate, b: Candidate, rng: np.random.Generator, *, variant: str = "paper") -> Candidate | None:
    """Each position from either parent with probability 1/2; what the longer one has more is taken from it.

    Args:
        a, b: the parents, sorted in variant "paper": position i is the i-th smallest step.
        rng: source of draws.
        variant: "paper" draws again where a step would be there twice; "released" leaves it, and decides by comparing
            the lists, not their lengths, which parent to pad with.

    Returns:
        The child, or None when ten draws all held a step twice (variant "paper" only).
    """
    common, longer = min(len(a.steps), len(b.steps)), max(a, b, key=lambda c: len(c.steps))
    for _ in range(TRIES):
        pick = [(a, b)[int(rng.random() >= 0.5)] for _ in range(common)]
        steps, drop = [c.steps[i] for i, c in enumerate(pick)], [c.drop[i] for i, c in enumerate(pick)]
        if variant == "released":
            for parent in (a, b):
                if steps < list(parent.steps):
                    steps, drop = steps + list(parent.steps[len(steps) :]), drop + list(parent.drop[len(drop) :])
            return Candidate(tuple(steps), tuple(drop))
        steps, drop = steps + list(longer.steps[common:]), drop + list(longer.drop[common:])
        if len(set(steps)) == len(steps):
            return Candidate(tuple(steps), tuple(drop)).tidy()
    return None


class Evolution:
    """The paper's search, as a :class:`scoreline.search.engine.Searcher`.

    Args:
        space: levels, layers and budget.
        population: members of a generation.
        parents: the best so many are parents.
        mutants, crossovers: children a generation by each; random candidates fill up.
        generations: after the initial population; None takes 10, or 15 in a joint search.
        mutation, start_mutation: probability of a replacement, in children and in the initial mutants.
        max_prune, min_prune: bounds of the share of layers left out; with max_prune 0 only steps are searched.
        evaluations: end after so many candidates, None for no such end.
        start: candidates to begin with, the first of them the one whose mutants begin; None takes the uniform one:
            leading, or linspace where no whole stride gives so many steps.
        seed: of all draws.
        variant: "paper" or "released", see the top of this file.

    Attributes:
        top: (value, candidate) of the best 50 of the whole run, best first.
        bounds: current (low, high) share of layers left out.

    Raises:
        InputError: nothing feasible, or a number that makes no sense.
    """

    KEPT = 50

    def __init__(
        self,
        space: Space,
        *,
        population: int = 50,
        parents: int = 10,
        mutants: int = 25,
        crossovers: int = 15,
        generations: int | None = None,
        mutation: float = 0.25,
        start_mutation: float = 0.1,
        max_prune: float = 0.0,
        min_prune: float = 0.0,
        evaluations: int | None = None,
        start: Sequence[Candidate] | None = None,
        seed: int = 0,
        variant: str = "paper",
    ) -> None:
        if variant not in ("paper", "released"):
            raise unknown_name("variant", variant, ("paper", "released"))
        if not 1 <= parents <= population or mutants < 0 or crossovers < 0 or mutants + crossovers > population:
            numbers = (population, parents, mutants, crossovers)
            mend = "need 1 <= parents <= population and mutants + crossovers <= population"
            raise InputError("population, parents, mutants, crossovers", numbers, mend)
        if not 0 <= min_prune <= max_prune < 1:
            raise InputError("min_prune, max_prune", (min_prune, max_prune), "need 0 <= min_prune <= max_prune < 1")
        if max_prune and not space.layers:
            raise InputError("max_prune", max_prune, "this network has no layers to leave out; search steps alone")
        if max_prune and int(max_prune * space.layers) == 0:
            mend = f"is not one whole layer of {space.layers}; give at least {1 / space.layers:.3f}"
            raise InputError("max_prune", max_prune, mend)
        if not 0 <= mutation <= 1 or not 0 <= start_mutation <= 1:
            raise InputError("mutation", (mutation, start_mutation), "is a probability")
        if evaluations is not None and evaluations < 1:
            raise InputError("evaluations", evaluations, "must be 1 or more")
        if space.steps < 1:
            raise InputError("budget", space.budget, f"not one evaluation of the whole network ({space.full:g}) fits")
        self.space, self.population, self.parents = space, population, parents
        self.mutants, self.crossovers, self.variant = mutants, crossovers, variant
        self.generations = generations if generations is not None else 15 if max_prune else 10
        self.mutation, self.start_mutation = mutation, start_mutation
        self.max_prune, self.min_prune = max_prune, min_prune
        self.left = evaluations
        self.start = list(start) if start is not None else [uniform(space.steps, space.levels)]
        for candidate in self.start:
            if not space.allows(candidate) or any(not 0 <= s < space.levels for s in candidate.steps):
                raise InputError("start", candidate.genotype(), "does not keep the budget or the levels")
        self.rng = np.random.default_rng(seed)
        self.top: list[tuple[float, Candidate]] = []
        self.bounds = (0.0, 0.0)
        self._generation, self._rises = 0, 0
        self._visited: set[str] = set()
        self._last_best: Candidate | None = None

    def ask(self) -> list[dict[str, Any]]:
        if self._generation > self.generations:
            return []
        asked = self._first() if self._generation == 0 else self._children()
        self._generation += 1
        if self.left is not None:
            asked = asked[: self.left]
            self.left -= len(asked)
        return [candidate.genotype() for candidate in asked]

    def tell(self, genotypes: list[dict[str, Any]], results: list[dict[str, float]]) -> None:
        if self.variant == "released" and self._generation > self.generations:
            return
        new = [(result["value"], Candidate.of(genotype)) for genotype, result in zip(genotypes, results, strict=True)]
        # The sort is stable: of equal values the older one stays in front.
        self.top = sorted([*self.top, *new], key=lambda member: member[0])[: self.KEPT]
        self._prune_more()

    def _prune_more(self) -> None:
        low, high = self.bounds
        ranked, best = self._generation - 1, self.top[0][1]
        if (high == 0 and (best == self._last_best or ranked > 4)) or 0 < high < self.max_prune:
            self._rises = min(self._rises + 1, 5)
            high = self.max_prune * self._rises / 5
        if ranked > 5:
            low = min(self.min_prune, high)
        self.bounds, self._last_best = (low, high), best

    def _new(self, candidate: Candidate | None) -> bool:
        if candidate is None or candidate.key() in self._visited or not self.space.allows(candidate):
            return False
        self._visited.add(candidate.key())
        return True

    def _fill(self, members: list[Candidate], count: int, make: Any, tries: int = TRIES) -> None:
        """Add up to `count` new candidates; what was visited already is skipped."""
        wanted = len(members) + count
        for _ in range(tries * count):
            if len(members) >= wanted:
                return
            candidate = make()
            if self._new(candidate):
                members.append(candidate)

    def _random(self) -> Candidate:
        low, high = self.bounds
        return random_candidate(self.space, self.rng, low=low, high=high, tidy=self.variant == "paper")

    def _mutant(self, parent: Candidate, p: float) -> Candidate:
        low, high = self.bounds
        return mutate(parent, self.space, p, self.rng, low=low, high=high, variant=self.variant)

    def _first(self) -> list[Candidate]:
        members = [candidate for candidate in self.start[: self.population] if self._new(candidate)]
        self._fill(members, self.population // 2 + 1 - len(members), self._random)
        self._fill(members, self.population - len(members), lambda: self._mutant(self.start[0], self.start_mutation))
        self._fill(members, self.population - len(members), self._random)
        return members

    def _children(self) -> list[Candidate]:
        parents = [candidate for _, candidate in self.top[: self.parents]]

        def one() -> Candidate:
            return parents[int(self.rng.integers(len(parents)))]

        members: list[Candidate] = []
        self._fill(members, self.mutants, lambda: self._mutant(one(), self.mutation))
        self._fill(members, self.crossovers, lambda: crossover(one(), one(), self.rng, variant=self.variant))
        self._fill(members, self.population - len(members), self._random)
        return members


class RandomSearch:
    """As many random candidates as the search it is compared with evaluates.

    Args:
        space: levels, layers and budget.
        evaluations: how many candidates.
        max_prune: the share of layers left out is uniform between 0 and this.
        seed: of all draws.
        batch: candidates a generation.
    """

    def __init__(
        self, space: Space, *, evaluations: int, max_prune: float = 0.0, seed: int = 0, batch: int = 50
    ) -> None:
        if evaluations < 1:
            raise InputError("evaluations", evaluations, "must be 1 or more")
        self.space, self.left, self.max_prune, self.batch = space, evaluations, max_prune, batch
        self.rng = np.random.default_rng(seed)
        self.top: list[tuple[float, Candidate]] = []

    def ask(self) -> list[dict[str, Any]]:
        count = min(self.left, self.batch)
        self.left -= count
        return [random_candidate(self.space, self.rng, high=self.max_prune).genotype() for _ in range(count)]

    def tell(self, genotypes: list[dict[str, Any]], results: list[dict[str, float]]) -> None:
        new = [(result["value"], Candidate.of(genotype)) for genotype, result in zip(genotypes, results, strict=True)]
        self.top = sorted([*self.top, *new], key=lambda member: member[0])[: Evolution.KEPT]
