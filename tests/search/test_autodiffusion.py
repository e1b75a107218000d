"""AutoDiffusion's operators and its search."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scoreline.core.errors import InputError
from scoreline.search.autodiffusion import Evolution, RandomSearch, crossover, mutate
from scoreline.search.candidates import Candidate, Space, random_candidate, uniform
from scoreline.search.engine import search

SPACE = Space.of_steps(1000, 6)
JOINT = Space.of_steps(1000, 10, layers=58)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def bare(*steps: int) -> Candidate:
    return Candidate(steps, ((),) * len(steps))


@pytest.mark.check(system=7, number=6)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_mutation_and_crossover(variant: str) -> None:
    draws = rng()
    for _ in range(50):
        parent = random_candidate(SPACE, draws)
        for p in (0.0, 0.25, 1.0):
            child = mutate(parent, SPACE, p, draws, variant=variant)
            assert len(set(child.steps)) == 6
            assert all(0 <= s < 1000 for s in child.steps)
            if p == 0:
                assert child == parent
            if p == 1:
                assert not set(child.steps) & set(parent.steps)
            if variant == "paper":
                assert list(child.steps) == sorted(child.steps)
        assert crossover(parent, parent, draws, variant=variant) == parent


def test_entries_mutate_with_their_probability() -> None:
    draws, parent = rng(), uniform(6, 1000)
    kept = [len(set(mutate(parent, SPACE, 0.25, draws).steps) & set(parent.steps)) for _ in range(2000)]
    assert np.mean(kept) == pytest.approx(6 * 0.75, abs=0.1)
    # Replacements are uniform over what is free.
    new = [s for _ in range(500) for s in mutate(parent, SPACE, 1.0, draws).steps]
    assert np.mean(new) == pytest.approx(499.5, abs=15)


def test_crossover_takes_each_position_from_either() -> None:
    a, b, draws = bare(1, 3, 5, 7), bare(2, 4, 6, 8), rng()
    children = [crossover(a, b, draws) for _ in range(400)]
    shares = np.mean([[step in a.steps for step in child.steps] for child in children if child], axis=0)
    assert shares == pytest.approx([0.5] * 4, abs=0.08)
    assert all(c is not None and abs(c.steps[i] - (2 * i + 1.5)) == 0.5 for c in children for i in range(4))


def test_a_step_is_never_there_twice() -> None:
    # Position by position these can meet: 5 stands first in one and second in the other.
    a, b, draws = bare(5, 9), bare(1, 5), rng()
    for _ in range(50):
        child = crossover(a, b, draws)
        assert child is None or len(set(child.steps)) == 2
    released = {crossover(a, b, draws, variant="released") for _ in range(50)}
    assert bare(5, 5) in released
    assert len(bare(5, 5).visited()) == 1  # and is then visited once
    swapped = crossover(bare(5, 9), bare(9, 5), rng(1), variant="released")
    assert swapped is not None  # unsorted lists stay as they are


def test_the_longer_parent_gives_the_rest() -> None:
    short, long = Candidate((10, 20), ((0,), (1,))), Candidate((11, 21, 31, 41), ((2,), (3,), (4,), (5,)))
    for a, b in ((short, long), (long, short)):
        child = crossover(a, b, rng())
        assert child is not None
        assert child.steps[2:] == (31, 41)
        assert child.drop[2:] == ((4,), (5,))
        # A step keeps its layers.
        pairs = dict(zip(short.steps + long.steps, short.drop + long.drop))
        assert all(pairs[s] == d for s, d in zip(child.steps, child.drop))
    # The released code compares the lists: (11, ...) < (11, 21, 31, 41) pads, (11, 21) against (10, 20) does not.
    padded = {len(c.steps) for i in range(40) if (c := crossover(short, long, rng(i), variant="released"))}
    assert padded == {4}
    low = Candidate((1, 2, 3), ((), (), ()))
    lengths = {len(c.steps) for i in range(40) if (c := crossover(bare(5, 6), low, rng(i), variant="released"))}
    assert lengths == {2, 3}


def test_skip_sets_mutate() -> None:
    parent = Candidate(tuple(range(10)), ((1, 2, 3, 4),) * 5 + ((),) * 5)
    some = [mutate(parent, JOINT, 0.5, rng(i), high=0.1) for i in range(60)]
    # With no step moved the pairs can be told apart.
    for child in some:
        for drop in child.drop:
            assert len(drop) == len(set(drop)) <= 5
            assert all(0 <= i < 58 for i in drop)
    fixed = mutate(parent, JOINT, 0.0, rng(), high=0.1)
    assert fixed == parent
    assert mutate(parent, JOINT, 0.5, rng(), high=0.0).tidy().drop.count((1, 2, 3, 4)) == 5
    moved = [d for child in some for d in child.drop if len(d) == 4]
    assert sum(d != (1, 2, 3, 4) for d in moved) > 100
    all_new = mutate(parent, JOINT, 1.0, rng(), high=0.1)
    assert all(not set(d) & {1, 2, 3, 4} for d in all_new.drop if len(d) == 4)
    # The published code compares where it should assign: sets that are not empty never change.
    released = [mutate(parent, JOINT, 0.5, rng(i), high=0.1, variant="released") for i in range(60)]
    assert all(child.drop[:5] == parent.drop[:5] for child in released)
    assert any(child.drop[5:] != parent.drop[5:] for child in released)


class Judge:
    """A smooth landscape over steps (and fewer layers out is better); remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Candidate] = []

    def __call__(self, genotype: dict[str, Any]) -> dict[str, float]:
        candidate = Candidate.of(genotype)
        self.asked.append(candidate)
        best = np.array([40, 150, 310, 500, 720, 960])
        pairs = candidate.visited()
        where = np.interp(np.linspace(0, 1, 6), np.linspace(0, 1, len(pairs)), [s for s, _ in pairs])
        out = sum(len(d) for _, d in pairs)
        return {"value": float(np.abs(where - best).sum()) + out}


@pytest.mark.check(system=7, number=7)
def test_the_best_never_worsens_and_nothing_is_evaluated_twice() -> None:
    evolution, judge, best = Evolution(SPACE, seed=3), Judge(), []
    tell = evolution.tell

    def told(genotypes: Any, results: Any) -> None:
        tell(genotypes, results)
        best.append(evolution.top[0][0])
        values = [value for value, _ in evolution.top]
        assert values == sorted(values)

    evolution.tell = told  # type: ignore[method-assign]
    history = search(evolution, judge)
    assert best == sorted(best, reverse=True)
    assert best[-1] == min(row["result"]["value"] for row in history)
    assert len({frozenset(c.steps) for c in judge.asked}) == len(judge.asked) == len(history)
    # It learns: far better than the first generation and than as many random candidates.
    random = RandomSearch(SPACE, evaluations=len(history), seed=3)
    search(random, Judge())
    assert best[-1] < 0.5 * best[0]
    assert best[-1] < random.top[0][0]


@pytest.mark.check(system=7, number=9)
def test_how_many_are_evaluated() -> None:
    evolution = Evolution(SPACE)
    history = search(evolution, Judge())
    sizes = np.bincount([row["generation"] for row in history])
    assert list(sizes) == [50] * 11
    assert len(history) == 550
    # The published script never ranks its last fifty.
    released = Evolution(SPACE, variant="released")
    history = search(released, Judge())
    assert len(history) == 550
    ranked = sorted(row["result"]["value"] for row in history if row["generation"] < 10)
    assert [value for value, _ in released.top] == ranked[:50]
    assert min(row["result"]["value"] for row in history if row["generation"] == 10) not in ranked[:1]


def test_the_first_generation() -> None:
    members = [Candidate.of(g) for g in Evolution(SPACE, seed=1).ask()]
    assert members[0] == uniform(6, 1000)
    near = [len(set(c.steps) & set(members[0].steps)) for c in members]
    # 25 random candidates, which share hardly anything with the uniform one, and 24 mutants, which share most.
    assert max(near[1:26]) <= 2
    assert np.mean(near[26:]) > 4.2
    assert len(members) == 50


def test_children_are_mutants_crossovers_and_random_ones() -> None:
    evolution = Evolution(SPACE, population=50, parents=2, mutants=20, crossovers=10, seed=0)
    first = evolution.ask()
    a, b = bare(100, 200, 300, 400, 500, 600), bare(101, 201, 301, 401, 501, 601)
    evolution.tell(first, [{"value": 10.0}] * 50)
    evolution.top = [(1.0, a), (2.0, b), (3.0, bare(0, 1, 2, 3, 4, 5))]
    children = [Candidate.of(g) for g in evolution.ask()]
    parents = set(a.steps) | set(b.steps)
    shared = [len(set(c.steps) & parents) for c in children]
    assert len(children) == 50
    assert sum(n == 6 for n in shared[20:30]) == 10  # crossovers hold nothing else
    assert min(shared[:20]) >= 2
    assert max(shared[30:]) <= 2
    assert not any(set(c.steps) <= {0, 1, 2, 3, 4, 5} for c in children)  # the third is no parent


@pytest.mark.check(system=7, number=8)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_no_run_executes_more_layers_than_the_budget(variant: str) -> None:
    judge = Judge()
    evolution = Evolution(JOINT, max_prune=0.2, seed=0, variant=variant)
    search(evolution, judge)
    assert len(judge.asked) > 500
    for candidate in judge.asked:
        executed = sum(58 - len(drop) for _, drop in candidate.visited())
        assert executed <= 580
    assert any(any(candidate.drop) for candidate in judge.asked)
    # Pruning buys steps.
    assert max(len(candidate.steps) for candidate in judge.asked) > 10


def test_the_share_of_layers_left_out_rises_in_five_steps() -> None:
    evolution = Evolution(JOINT, max_prune=0.1, min_prune=0.05, generations=15)
    shown = []
    while asked := evolution.ask():
        full = [not any(Candidate.of(g).drop) for g in asked]
        shown.append((evolution.bounds, all(full)))
        # A new best in every generation: nothing but the count raises the bound.
        evolution.tell(asked, [{"value": -float(len(shown)) + i / 100} for i in range(len(asked))])
    highs = [round(high, 3) for (_, high), _ in shown]
    assert highs[:6] == [0.0] * 6
    assert highs[6:11] == [0.02, 0.04, 0.06, 0.08, 0.1]
    assert set(highs[11:]) == {0.1}
    assert all(whole for _, whole in shown[:6])
    assert not any(whole for _, whole in shown[8:])
    assert [round(low, 3) for (low, _), _ in shown][6:9] == [0.0, 0.04, 0.05]


def test_pruning_begins_early_when_the_best_stays() -> None:
    evolution = Evolution(JOINT, max_prune=0.1)
    for generation in range(3):
        asked = evolution.ask()
        assert evolution.bounds[1] == pytest.approx([0.0, 0.0, 0.02][generation])
        evolution.tell(asked, [{"value": float(generation * 100 + i)} for i in range(len(asked))])


def test_true_cost_as_the_constraint() -> None:
    saved = tuple(float(1 + i % 7) for i in range(20))
    space = Space(1000, budget=600.0, full=100.0, saved=saved)
    judge = Judge()
    search(Evolution(space, max_prune=0.5, generations=8, seed=1), judge)
    costs = [space.cost(c) for c in judge.asked]
    assert max(costs) <= 600 * (1 + 1e-9)
    assert max(len(c.steps) for c in judge.asked) >= 7


def test_evaluations_end_the_search_and_random_search_spends_as_many() -> None:
    history = search(Evolution(SPACE, evaluations=120), Judge())
    assert len(history) == 120
    random = RandomSearch(SPACE, evaluations=120, seed=5)
    assert len(search(random, Judge())) == 120
    assert random.top[0][0] <= random.top[1][0]


def test_a_seed_decides_everything() -> None:
    runs = [[row["genotype"] for row in search(Evolution(SPACE, seed=s, evaluations=130), Judge())] for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_a_space_smaller_than_the_population_ends() -> None:
    history = search(Evolution(Space.of_steps(5, 2)), Judge())
    assert len(history) == 10  # all there are


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="not one whole layer of 4"):
        Evolution(Space.of_steps(1000, 4, layers=4), max_prune=0.1)
    with pytest.raises(InputError, match="no layers to leave out"):
        Evolution(SPACE, max_prune=0.1)
    with pytest.raises(InputError, match="min_prune <= max_prune"):
        Evolution(JOINT, max_prune=0.1, min_prune=0.2)
    with pytest.raises(InputError, match="mutants"):
        Evolution(SPACE, mutants=40, crossovers=20)
    with pytest.raises(InputError, match="start"):
        Evolution(SPACE, start=[bare(1, 2, 3, 4, 5, 6, 7)])
    with pytest.raises(InputError, match="start"):
        Evolution(SPACE, start=[bare(1, 2, 3, 4, 5, 1000)])
    with pytest.raises(InputError, match="did you mean 'paper'"):
        Evolution(SPACE, variant="papr")
    for evaluations in (0, -1):
        with pytest.raises(InputError, match="evaluations"):
            Evolution(SPACE, evaluations=evaluations)
        with pytest.raises(InputError, match="evaluations"):
            RandomSearch(SPACE, evaluations=evaluations)
    # The budget buys a run without layers, but no whole network to begin with.
    with pytest.raises(InputError, match="not one evaluation"):
        Evolution(Space(1000, budget=5.0, full=10.0, saved=(8.0,)), max_prune=0.0)


def test_children_that_cost_too_much_are_not_evaluated() -> None:
    space = Space.of_steps(100, 2, layers=4)
    evolution = Evolution(space, population=20, parents=2, mutants=0, crossovers=10, max_prune=0.75, seed=0)
    asked = evolution.ask()
    evolution.tell(asked, [{"value": 5.0}] * len(asked))
    # Both cost 8, but two whole steps of the one and the rest of the other would cost 12.
    half = Candidate((10, 20, 30, 40), ((0, 1),) * 4)
    evolution.top = [(1.0, half), (2.0, bare(11, 21))]
    children = [Candidate.of(g) for g in evolution.ask()]
    crossed = [c for c in children if c.steps[-2:] == (30, 40)]
    assert all(space.cost(c) <= 8 for c in children)
    assert len(crossed) <= 1  # what remains of four crossovers: that of `half` with itself
