"""Candidates, their cost, the uniform ones and the diffusion each stands for."""

from __future__ import annotations

import numpy as np
import pytest

from scoreline.core.errors import InputError
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.samplers.steps import posterior_step
from scoreline.search.candidates import Candidate, Space, base_levels, grid_steps, random_candidate, rebase, uniform


@pytest.mark.check(system=7, number=1)
def test_leading_and_even_candidates() -> None:
    assert grid_steps("leading", 4) == [0, 250, 500, 750]
    assert grid_steps("leading", 6) == [0, 167, 334, 501, 668, 835]
    assert grid_steps("leading", 10) == list(range(0, 1000, 100))
    assert grid_steps("linspace", 4) == [0, 333, 666, 999]
    assert grid_steps("trailing", 4) == [249, 499, 749, 999]
    with pytest.raises(InputError, match="no whole stride"):
        grid_steps("leading", 37)
    with pytest.raises(InputError, match="did you mean 'leading'"):
        grid_steps("leding", 4)


def test_quadratic_candidates_have_as_many_steps_as_asked() -> None:
    assert grid_steps("quadratic", 4) == [0, 88, 355, 800]
    with pytest.raises(InputError, match="different"):
        grid_steps("quadratic", 200)


def test_the_uniform_candidate_is_there_for_every_count() -> None:
    assert uniform(4, 1000).steps == (0, 250, 500, 750)
    assert uniform(37, 1000).steps == tuple(grid_steps("linspace", 37))
    assert uniform(1, 1000).steps == (999,)
    for count in range(1, 60):
        assert len(set(uniform(count, 60).steps)) == count


STEPS = [6, 67, 134, 268, 335, 402, 469, 536, 603, 639, 644, 670, 737, 804, 871]


@pytest.mark.check(system=7, number=2)
@pytest.mark.parametrize("betas", ["linear", "cosine"])
def test_rebasing_keeps_abar_and_reproduces_the_base(betas: str) -> None:
    base = Discrete(betas=betas)
    short = rebase(base.abar, [*STEPS[::-1], STEPS[0]])
    assert np.abs(np.cumprod(1 - short.betas) - base.abar[STEPS]).max() < 1e-12
    assert np.array_equal(short.abar, base.abar[STEPS])
    whole = rebase(base.abar, range(1000))
    assert np.abs(whole.betas - base.betas).max() < 1e-12
    assert np.abs(np.cumprod(1 - whole.betas) - base.abar).max() < 1e-12


def test_the_posterior_of_the_short_process_is_that_of_its_steps() -> None:
    base = Discrete()
    short = rebase(base.abar, STEPS)
    t, s = np.array(STEPS[1:], dtype=float), np.array(STEPS[:-1], dtype=float)
    c1, c2, small, large = posterior_step(base, t, s)
    # beta'_i is the variance of x_t given x_s.
    assert short.betas[1:] == pytest.approx(large, rel=1e-9)
    assert short.posterior_variance[1:] == pytest.approx(small, rel=1e-9)
    assert short.c1[1:] == pytest.approx(c1, rel=1e-9)
    assert short.c2[1:] == pytest.approx(c2, rel=1e-9)
    # The first step's variance is zero; its logarithm is taken from the second.
    assert short.posterior_variance[0] == 0
    assert short.posterior_log_variance[0] == short.posterior_log_variance[1] == np.log(short.posterior_variance[1])
    assert (short.c1[0], short.c2[0]) == pytest.approx((1.0, 0.0))


def test_the_levels_steps_are_chosen_from() -> None:
    assert np.array_equal(base_levels(Discrete()), np.arange(1000.0))
    assert base_levels(VP()) == pytest.approx(np.linspace(1e-3, 1, 1001))
    levels = base_levels(EDM())
    assert (levels[0], levels[-1], len(levels)) == (0.002, 80.0, 1001)
    assert (np.diff(levels) > 0).all()


def test_pairs_stay_together_and_each_step_is_visited_once() -> None:
    mixed = Candidate((500, 20, 500, 7), ((3, 1), (), (2,), (0,)))
    assert mixed.tidy() == Candidate((7, 20, 500, 500), ((0,), (), (1, 3), (2,)))
    # As the released code looks sets up: by the position in the ascending list of different steps.
    assert mixed.visited() == [(7, (3, 1)), (20, ()), (500, (2,))]
    again = Candidate.of(mixed.genotype())
    assert again == mixed
    plain = Candidate((1, 5), ((), ()))
    assert plain.genotype() == {"steps": [1, 5]}
    assert Candidate.of({"steps": [1, 5]}) == plain


def test_the_cost_is_what_is_executed() -> None:
    space = Space.of_steps(1000, 10, layers=58)
    assert (space.budget, space.steps, space.layers) == (580, 10, 58)
    assert space.cost(Candidate((1, 2, 3), ((), (0, 5), (7,)))) == 3 * 58 - 3
    # In another unit layers cost what they cost.
    macs = Space(1000, budget=21.0, full=10.0, saved=(4.0, 1.0))
    assert macs.steps == 2
    assert macs.cost(Candidate((1, 2, 3), ((0,), (0, 1), ()))) == 6 + 5 + 10
    assert macs.allows(Candidate((1, 2, 3), ((0,), (0, 1), ())))
    assert not macs.allows(Candidate((1, 2, 3), ((0,), (0,), ())))


@pytest.mark.parametrize("budget", [10.0, 9.999])
def test_a_budget_that_buys_nothing_is_refused(budget: float) -> None:
    if budget == 10.0:
        assert Space(1000, budget, full=10.0).steps == 1
    else:
        with pytest.raises(InputError, match="one evaluation costs 10"):
            Space(1000, budget, full=10.0)
    with pytest.raises(InputError, match="choose 1 to 1000"):
        Space.of_steps(1000, 1001)


def test_random_candidates_use_the_budget_and_no_more() -> None:
    space, rng = Space.of_steps(1000, 10, layers=58), np.random.default_rng(0)
    lengths, fewest = set(), 580.0
    for _ in range(300):
        candidate = random_candidate(space, rng, high=0.1)
        assert list(candidate.steps) == sorted(set(candidate.steps))
        assert all(len(d) <= 5 for d in candidate.drop)
        assert all(list(d) == sorted(set(d)) and all(0 <= i < 58 for i in d) for d in candidate.drop)
        assert space.cost(candidate) <= 580
        fewest = min(fewest, space.cost(candidate))
        lengths.add(len(candidate.steps))
    # Leaving layers out never buys an eleventh step at a tenth: 11 * 53 = 583; at a fifth it does.
    assert lengths == {10}
    assert fewest >= 580 - 53
    more = {len(random_candidate(space, rng, high=0.2).steps) for _ in range(100)}
    assert more == {10, 11} or more == {11}
    assert {len(random_candidate(space, rng).steps) for _ in range(20)} == {10}
