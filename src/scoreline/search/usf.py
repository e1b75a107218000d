"""S^3: the search for solver schedules, Liu et al. 2024 (arXiv 2312.07243), predictor-based and in several stages.

    1. the published and the uniform solvers, on every grid, are evaluated truly;
    2. stage 1, while there are few evaluations: children of the best ones (mutation, crossover), all evaluated truly;
    3. later stages: a predictor is trained on all (schedule, score) pairs; of many children those that it ranks best
       are evaluated truly and added; again, until the budget is spent.
The released code holds the evolution of step 2 alone ("evolution"); "random" draws schedules and learns nothing. All of
them count the same true evaluations, the only ones that ask the network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.noise import derive
from scoreline.core.sampler import Sampler
from scoreline.samplers.solver_schedule import KIND, SolverSchedule
from scoreline.samplers.usf import USF
from scoreline.search.engine import Genotype, Result, genotype_key
from scoreline.search.schedule_predictor import encode, fit_predictor, kendall_tau, one_thread
from scoreline.search.solver_space import SolverSpace

__all__ = ["METHODS", "SamplerOf", "SolverSearch"]

METHODS = ("s3", "evolution", "random")


@dataclass(frozen=True)
class SamplerOf:
    """Genotype (the JSON values of a solver schedule) -> its sampler.

    Args:
        schedule: description of the noise schedule to which the times belong.
        mean: nested list, the mean image of the training set, for the analytic first step "average".
        variant: see :class:`scoreline.samplers.usf.USF`.
    """

    schedule: Any = None
    mean: Any = None
    variant: str = "paper"

    def __call__(self, genotype: Genotype) -> Sampler:
        content = {
            "format": "scoreline/1", "kind": KIND, "schedule": self.schedule, "mean": self.mean,
            "plans": [{"plan": genotype}],
        }  # fmt: skip
        return USF(plan=content, variant=self.variant)


class SolverSearch:
    """A searcher over solver schedules, for :func:`scoreline.search.engine.search`.

    Args:
        space: where it looks.
        evaluations: true evaluations in all.
        method: "s3", "evolution" or "random".
        seed: of all draws; the same proposals whoever evaluates them.
        generation: true evaluations a generation while there is no predictor.
        first_stage: true evaluations before the predictor is used.
        later: true evaluations a generation afterwards.
        candidates: children among which the predictor chooses, each generation.
        rank_bar: parents are drawn among so many best of a budget.
        crossover: probability of a child of two parents.
        deep: probability that a crossover also mixes step by step.

    Attributes:
        told: every (schedule, score) in the order of evaluation.
        taus: Kendall's tau of the predictor on schedules that were held out of its training, one a later stage.

    Raises:
        InputError: an unknown method, no evaluations, or no feasible schedule.
    """

    def __init__(
        self,
        space: SolverSpace,
        *,
        evaluations: int = 250,
        method: str = "s3",
        seed: int = 0,
        generation: int = 10,
        first_stage: int = 100,
        later: int = 25,
        candidates: int = 200,
        rank_bar: int = 15,
        crossover: float = 0.3,
        deep: float = 0.5,
    ) -> None:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS)
        sizes = {"evaluations": evaluations, "generation": generation, "later": later, "rank_bar": rank_bar}
        for thing, value in sizes.items():
            if value < 1:
                raise InputError(thing, value, "must be 1 or more")
        if candidates < later:
            raise InputError("candidates", candidates, f"must be at least the {later} that are evaluated of them")
        self.space, self.evaluations, self.method, self.seed = space, evaluations, method, seed
        self.generation, self.first_stage, self.later, self.candidates = generation, first_stage, later, candidates
        self.rank_bar, self.crossover, self.deep = rank_bar, crossover, deep
        self.told: list[tuple[SolverSchedule, float]] = []
        self.taus: list[float] = []
        self._seen: set[str] = set()
        self._turn = 0
        # Budgets take turns, so that a short search knows a little of each.
        known = [space.known(nfe) for nfe in space.nfe] if method != "random" else []
        self._start = [plans[i] for i in range(max(map(len, known), default=0)) for plans in known if i < len(plans)]
        if method != "random" and not self._start:
            raise InputError("space", space.nfe, "holds no feasible solver to start from")

    # --- the loop ------------------------------------------------------------------------------------------------

    def ask(self) -> list[Genotype]:
        """The next generation; empty when the evaluations are spent."""
        left = self.evaluations - len(self.told)
        if left <= 0:
            return []
        rng = np.random.default_rng(derive(self.seed, "generation", self._turn))
        self._turn += 1
        if self.method == "random":
            plans = [self._random(rng) for _ in range(min(self.generation, left))]
        elif self._start:
            plans, self._start = self._start[:left], []
        elif self.method == "evolution" or len(self.told) < self.first_stage:
            plans = self._children(min(self.generation, left), rng)
        else:
            plans = self._ranked(min(self.later, left), rng)
        self._seen.update(genotype_key(p.to_dict()) for p in plans)
        return [p.to_dict() for p in plans]

    def tell(self, genotypes: list[Genotype], results: list[Result]) -> None:
        """The true scores of what was asked for; smaller is better."""
        self.told += [(SolverSchedule.from_dict(g), float(r["value"])) for g, r in zip(genotypes, results)]

    def best(self, nfe: int, count: int = 1) -> list[tuple[SolverSchedule, float]]:
        """The best of a budget by the score of the search, best first; what is reported needs other noise."""
        found = dict(e for e in self.told if e[0].nfe() == nfe)
        return sorted(found.items(), key=lambda e: e[1])[:count]

    # --- proposals -----------------------------------------------------------------------------------------------

    def _random(self, rng: np.random.Generator) -> SolverSchedule:
        return self.space.random(int(rng.choice(self.space.nfe)), rng)

    def _child(self, rng: np.random.Generator) -> SolverSchedule:
        """One child of the best of a budget that is drawn at random."""
        parents = [p for p, _ in self.best(int(rng.choice(self.space.nfe)), self.rank_bar)]
        if not parents:
            return self._random(rng)
        child = parents[int(rng.integers(len(parents)))]
        if rng.random() < self.crossover:
            for _ in range(5):
                other = parents[int(rng.integers(len(parents)))]
                if other is not child and len(other.steps) == len(child.steps):
                    child = self.space.cross(child, other, rng, deep=self.deep)
                    break
        return self.space.mutate(child, rng)

    def _children(self, count: int, rng: np.random.Generator) -> list[SolverSchedule]:
        """New children, none of which was evaluated before; where those run out, random schedules."""
        found: dict[str, SolverSchedule] = {}
        for _ in range(20 * count):
            child = self._child(rng)
            key = genotype_key(child.to_dict())
            if key not in self._seen and child.nfe() in self.space.nfe:
                found[key] = child
            if len(found) == count:
                break
        while len(found) < count:
            plan = self._random(rng)
            found[genotype_key(plan.to_dict())] = plan
        return list(found.values())

    def _ranked(self, count: int, rng: np.random.Generator) -> list[SolverSchedule]:
        """Of many children those that the predictor ranks best, in equal shares of every budget."""
        plans, scores = [p for p, _ in self.told], np.array([s for _, s in self.told])
        self.taus.append(self._tau(plans, scores, rng))
        net = fit_predictor(plans, scores, self.space.schedule, seed=derive(self.seed, "predictor", self._turn))
        children = self._children(self.candidates, rng)
        with torch.no_grad(), one_thread():
            badness = net(*encode(children, self.space.schedule)).numpy()
        order = np.argsort(badness, kind="stable")
        queues = {nfe: [children[i] for i in order if children[i].nfe() == nfe] for nfe in self.space.nfe}
        chosen: list[SolverSchedule] = []
        while len(chosen) < count and any(queues.values()):
            for queue in queues.values():
                if queue and len(chosen) < count:
                    chosen.append(queue.pop(0))
        return chosen

    def _tau(self, plans: list[SolverSchedule], scores: np.ndarray, rng: np.random.Generator) -> float:
        """Kendall's tau on a fifth of what is known, after training on the rest."""
        order = rng.permutation(len(plans))
        held, rest = order[: len(plans) // 5], order[len(plans) // 5 :]
        seed = derive(self.seed, "held out", self._turn)
        net = fit_predictor([plans[i] for i in rest], scores[rest], self.space.schedule, seed=seed)
        with torch.no_grad(), one_thread():
            predicted = net(*encode([plans[i] for i in held], self.space.schedule)).numpy()
        return kendall_tau(predicted, scores[held], [plans[i].nfe() for i in held])
