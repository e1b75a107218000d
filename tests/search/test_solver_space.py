"""Operators of the S^3 search: whatever they make is feasible, costs a budget and is drawn as it should be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.samplers.solver_schedule import SolverSchedule, Step
from scoreline.search.solver_space import UNIFORM, SolverSpace

SPACES = [
    *(pytest.param(SolverSpace(lookup("schedule", name)(), (4, 6)), id=name) for name in names("schedule")),
    pytest.param(SolverSpace(EDM(), (5,), clean=True), id="clean"),
    pytest.param(SolverSpace(VP(), (3, 5), ems=True, average=True, joints=4), id="everything"),
]


def assert_valid(plan: SolverSchedule, space: SolverSpace) -> None:
    """What SolverSchedule holds by itself, and what the space adds."""
    schedule = space.schedule
    assert (np.diff(plan.times) < 0).all()
    assert plan.times[0] == schedule.t_max
    assert space.last[0] <= plan.times[-1] <= space.last[1]
    schedule.check(np.array(plan.times))
    if schedule.known is not None:
        assert set(plan.times) <= set(schedule.known)
    for i, step in enumerate(plan.steps):
        assert step.order <= min(i + 1, 4)
        assert all(-i - 1 <= p <= -1 for extra in step.points for p in extra)
        assert step.corrector != "implicit"
    assert plan.steps[-1].corrector is None
    assert plan.nfe() in space.nfe
    assert SolverSchedule.from_dict(plan.to_dict()) == plan
    with np.errstate(divide="ignore"):
        lam = schedule.lam(np.array(plan.times))
    for i, step in enumerate(plan.steps):
        used = [lam[i + 1], lam[i + 1 + step.start], *(lam[i + 1 + p] for extra in step.points for p in extra)]
        assert step.order == 1 or np.isfinite(used).all()


@pytest.mark.check(system=18, number=8)
@pytest.mark.parametrize("space", SPACES)
def test_mutated_and_crossed_schedules_are_always_valid(space: SolverSpace) -> None:
    rng = np.random.default_rng(0)
    family = [space.random(int(rng.choice(space.nfe)), rng) for _ in range(6)] + space.known(space.nfe[0])
    for plan in family:
        assert_valid(plan, space)
    for _ in range(120):
        child = space.mutate(family[int(rng.integers(len(family)))], rng)
        assert_valid(child, space)
        equals = [p for p in family if len(p.steps) == len(child.steps)]
        if equals:
            other = equals[int(rng.integers(len(equals)))]
            crossed = space.cross(child, other, rng)
            # The first step may be another one, so that the cost is; a mutation mends it.
            assert_valid(space.mutate(crossed, rng) if crossed.nfe() not in space.nfe else crossed, space)
        family.append(child)


def test_random_schedules_differ_and_cost_what_was_asked() -> None:
    space, rng = SolverSpace(EDM(), (3, 7)), np.random.default_rng(1)
    made = [space.random(7, rng) for _ in range(30)]
    assert {p.nfe() for p in made} == {7}
    assert len({p.times for p in made}) == 30
    assert {p.afs for p in made} == {None, "zero"}
    kinds = Counter(step.prediction for p in made for step in p.steps)
    assert set(kinds) == {"noise", "data"}


def test_orders_follow_their_probabilities() -> None:
    space, rng = SolverSpace(EDM(), (12,)), np.random.default_rng(2)
    orders = Counter(step.order for _ in range(150) for step in space.random(12, rng).steps[4:])
    total = sum(orders.values())
    for order, share in enumerate((0.2, 0.4, 0.3, 0.1), start=1):
        assert orders[order] / total == pytest.approx(share, abs=0.05)


def test_mutations_move_times_a_little_and_keep_the_rest() -> None:
    space = SolverSpace(EDM(), (8,), change=1.0, insert=0.0, delete=0.0, time_noise=0.05)
    parent = SolverSchedule((80.0, 40.0, 20.0, 10.0, 5.0, 2.0, 1.0, 0.3, 0.0025), (Step(),) * 8)
    rng = np.random.default_rng(3)
    ratios = []
    for _ in range(60):
        child = space.mutate(parent, rng)
        if len(child.steps) == 8:
            ratios += list(np.array(child.times[1:-1]) / np.array(parent.times[1:-1]) - 1)
    assert np.std(ratios) == pytest.approx(0.05, abs=0.01)
    still = SolverSpace(EDM(), (8,), change=0.0, insert=0.0, delete=0.0)
    assert still.mutate(parent, rng) == parent


def test_steps_come_and_go() -> None:
    space = SolverSpace(EDM(), (4, 5, 6), change=0.0, insert=0.5, delete=0.0)
    parent = SolverSchedule((80.0, 20.0, 5.0, 1.0, 0.1, 0.002), (Step(),) * 5)
    rng = np.random.default_rng(4)
    assert {len(space.mutate(parent, rng).steps) for _ in range(30)} == {5, 6}
    assert {len(replace(space, insert=0.0, delete=0.5).mutate(parent, rng).steps) for _ in range(30)} == {4, 5}


def test_a_crossover_takes_everything_from_its_parents() -> None:
    space, rng = SolverSpace(EDM(), (4,)), np.random.default_rng(5)
    a = SolverSchedule((80.0, 10.0, 1.0, 0.1, 0.002), (Step("data"),) * 4)
    b = SolverSchedule(
        (80.0, 20.0, 2.0, 0.2, 0.003), (Step("noise"), *(Step("noise", 2, -1, ((-2,),)) for _ in range(3)))
    )
    seen = set()
    for _ in range(80):
        child = space.cross(a, b, rng, deep=0.5)
        assert child.times in (a.times, b.times)
        seen.add((child.times == a.times, *((s.prediction, s.order) for s in child.steps)))
        for i, step in enumerate(child.steps):
            assert step.order in (a.steps[i].order, b.steps[i].order)
    assert len(seen) > 10
    whole = {tuple(s.prediction for s in space.cross(a, b, rng, deep=0.0).steps) for _ in range(30)}
    assert whole == {("data",) * 4, ("noise",) * 4}
    with pytest.raises(InputError, match="as many steps"):
        space.cross(a, SolverSchedule((80.0, 1.0), (Step(),)), rng)


def test_known_solvers_are_on_every_grid() -> None:
    space = SolverSpace(EDM(), (5,))
    known = space.known(5, solvers=UNIFORM)
    assert len(known) == len(set(known)) == 6 * len(space.grids(5))
    assert all(p.times[-1] == 0.002 and p.nfe() == 5 for p in known)
    assert {max(s.order for s in p.steps) for p in known} == {1, 2, 3}


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"nfe": ()}, "at least 2"), ({"nfe": (1,)}, "at least 2"), ({"nfe": (4,), "end": (0.001, 0.1)}, "interval"),
     ({"nfe": (4,), "end": (3.0, 2.0)}, "interval")],
)  # fmt: skip
def test_spaces_with_nothing_feasible_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        SolverSpace(EDM(), **settings)


def test_budgets_beyond_a_table_are_refused() -> None:
    with pytest.raises(InputError, match="knows 20 levels"):
        SolverSpace(Discrete(betas="cosine", T=20), (15,))


def test_a_small_table_is_enough() -> None:
    space, rng = SolverSpace(Discrete(betas="cosine", T=20), (10,)), np.random.default_rng(6)
    for _ in range(5):
        assert_valid(space.random(10, rng), space)
        assert_valid(space.mutate(space.random(10, rng), rng), space)
