"""The predictor of the S^3 search: loss, tau, encoding, and that it learns to rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from scoreline.diffusion.schedules import EDM
from scoreline.samplers.solver_schedule import SolverSchedule
from scoreline.search.schedule_predictor import encode, fit_predictor, kendall_tau, ranking_loss
from scoreline.search.solver_space import SolverSpace


def test_ranking_loss_by_hand() -> None:
    predicted = torch.tensor([0.0, 0.05, -1.0, 7.0])
    scores, groups = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([4, 4, 4, 5])
    # Pairs (0,1), (0,2), (1,2) of group 4: 0.1 - 0.05, 0.1 + 1.0, 0.1 + 1.05.
    assert ranking_loss(predicted, scores, groups).item() == pytest.approx((0.05 + 1.1 + 1.15) / 3)
    assert ranking_loss(predicted, scores, groups, margin=0.0).item() == pytest.approx((0 + 1.0 + 1.05) / 3)


def test_tau_is_kendalls_within_groups() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=20), rng.normal(size=20)
    assert kendall_tau(a, b, [1] * 20) == pytest.approx(kendalltau(a, b).statistic)
    assert kendall_tau([1, 2, 9, 8], [1, 2, 1, 2], [3, 3, 4, 4]) == 0.0
    assert np.isnan(kendall_tau([1.0], [1.0], [1]))


def test_padding_changes_nothing() -> None:
    schedule, rng = EDM(), np.random.default_rng(0)
    space = SolverSpace(schedule, (3, 8))
    short, long = space.random(3, rng), space.random(8, rng)
    net = fit_predictor([short, long, space.random(3, rng)], [1.0, 2.0, 3.0], schedule, steps=2)
    alone, together = net(*encode([short], schedule)), net(*encode([short, long], schedule))
    assert alone[0].item() == pytest.approx(together[0].item(), abs=1e-6)


def test_every_decision_is_seen() -> None:
    schedule, rng = EDM(), np.random.default_rng(1)
    space = SolverSpace(schedule, (5,))
    plan = next(p for p in (space.random(5, rng) for _ in range(100)) if p.steps[2].order == 3 and p.afs is None)
    step = plan.steps[2]
    changes: list[dict[str, Any]] = [
        {"prediction": "ems"}, {"scaling": "unipc-bh1"}, {"scaling": "linear", "linear": 0.4},
        {"corrector": None if step.corrector else "pseudo"}, {"points": ((-2,), (-2, -3))},
        {"points": ((-2, -3), (-2, -3))},
    ]  # fmt: skip
    others = [replace(plan, steps=(*plan.steps[:2], replace(step, **c), *plan.steps[3:])) for c in changes]
    others += [replace(plan, times=(80.0, 30.0, *plan.times[2:]))] if plan.times[2] < 30 else []
    plans = [plan, *dict.fromkeys(p for p in others if p != plan)]
    net = fit_predictor(plans, list(range(len(plans))), schedule, steps=3)
    values = net(*encode(plans, schedule)).tolist()
    assert len({round(v, 12) for v in values}) == len(plans)


def test_learns_to_rank_schedules_it_has_not_seen() -> None:
    """A made-up score that depends on times and decisions."""
    schedule, rng = EDM(), np.random.default_rng(2)
    space = SolverSpace(schedule, (5,))
    plans = [space.random(5, rng) for _ in range(160)]

    def score(plan: SolverSchedule) -> float:
        return abs(np.log(plan.times[2])) + 0.8 * sum(s.prediction == "noise" for s in plan.steps)

    scores = [score(p) for p in plans]
    net = fit_predictor(plans[:120], scores[:120], schedule, seed=1)
    with torch.no_grad():
        tau = kendall_tau(net(*encode(plans[120:], schedule)).numpy(), scores[120:], [5] * 40)
    assert tau > 0.5
    again = fit_predictor(plans[:120], scores[:120], schedule, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters()))


def test_skip_coefficients_are_seen() -> None:
    schedule, rng = EDM(), np.random.default_rng(2)
    plan = SolverSpace(schedule, (4,), joints=2).random(4, rng)
    plans = [plan, replace(plan, skips=(0.9, 1.0)), replace(plan, skips=(1.0, 0.9))]
    assert encode(plans, schedule)[0][..., 3:].mean(1).flatten().tolist() == pytest.approx([0, 0, 0.1, 0, 0, 0.1])
    net = fit_predictor(plans, [0.0, 1.0, 2.0], schedule, steps=3)
    assert len({round(v, 12) for v in net(*encode(plans, schedule)).tolist()}) == 3
    assert encode([replace(plan, skips=None)], schedule)[0].shape[-1] == 3
