"""Claim 10: the rule on made-up numbers, its teachers and its smallest run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.scott import ARMS, CLAIM, SINES, STEPS, TEACHERS, TOO_LARGE, _method, coverage, teacher
from scoreline.core.noise import Noise

GOOD = {"A": 0.11, "B": 0.10, "C": 0.09, "D": 0.3, "E": 0.05}


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    """Changes are `C_imperfect_sw_2=`, a number or one a seed."""
    numbers: dict[str, dict[str, list[float]]] = {arm: {"floor": [0.01] * 3} for arm in ARMS}
    for arm in ARMS:
        for name in TEACHERS:
            for n in STEPS:
                distance = 0.1 if name == "exact" else GOOD[arm[0]]
                values = {"sw": distance, "coverage": 1.0, "variance": 0.1 if arm[0] == "D" else 1.0}
                for what, value in values.items():
                    changed = changes.get(f"{arm[0]}_{name}_{what}_{n}", value)
                    numbers[arm][f"{name}_{what}_{n}"] = changed if isinstance(changed, list) else [changed] * 3
    verdict, parts = CLAIM.verdict(numbers)
    assert len(CLAIM.findings(numbers)) == 7
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True] * 6),
    ({"C_imperfect_sw_2": 0.0949}, "holds", [True] * 6),
    ({"C_imperfect_sw_2": 0.0951}, "in part", [False, True, True, True, True, True]),
    ({"C_imperfect_sw_4": [0.09, 0.0951, 0.2]}, "in part", [True, False, True, True, True, True]),
    ({"E_imperfect_sw_1": 0.091}, "in part", [True, True, False, True, True, True]),
    ({"E_imperfect_sw_2": 0.091}, "in part", [True, True, True, False, True, True]),
    ({"E_imperfect_sw_4": 0.4}, "holds", [True] * 6),
    ({"D_exact_variance_1": [0.1, 0.1, 0.5]}, "in part", [True, True, True, True, False, True]),
    ({"D_imperfect_variance_1": [0.1, 0.1, 0.5]}, "in part", [True, True, True, True, False, True]),
    ({"C_exact_sw_2": 0.0949}, "in part", [True, True, True, True, True, False]),
    ({"C_exact_sw_4": 0.0949}, "in part", [True, True, True, True, True, False]),
    ({"C_exact_sw_4": 0.0951}, "holds", [True] * 6),
    ({f"C_imperfect_sw_{n}": 0.101 for n in STEPS}, "refuted", [False, False, True, True, True, True]),
    ({f"C_imperfect_sw_{n}": 0.101 for n in (2, 4)}, "in part", [False, False, True, True, True, True]),
    ({"D_exact_variance_1": [0.2, 0.9, 0.95]}, "refuted", [True, True, True, True, False, True]),
])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert set(runs) == set(ARMS)
    assert all(run[BUDGET] > 0 for run in runs.values())
    assert all(run[f"{name}_sw_{n}"] > 0 for run in runs.values() for name in TEACHERS for n in STEPS)


def test_the_teachers_and_what_an_update_costs() -> None:
    exact, wrong = (teacher(name) for name in TEACHERS)
    x = Noise(0).at(range(500), (2,), dtype=torch.float64).normal()
    for t in (100.0, 500.0, 999.0):
        given, said = exact(x, t), wrong(x, t)
        rest = said.eps - TOO_LARGE * given.eps
        assert 0.05 < float(rest.square().mean().sqrt()) < 0.1
        assert float(rest.abs().max()) <= SINES * 2**0.5
        alpha, sigma = (float(f(t)) for f in (exact.schedule.alpha, exact.schedule.sigma))
        assert torch.allclose(alpha * said.mean + sigma * said.eps, x, atol=1e-9)
    costs = [_method(arm, 0, "exact")[1] for arm in ARMS]
    assert costs == [5, 7, 7, 7, 16]
    starts = [_method(arm, 0, "exact")[0].student.net.input.weight for arm in ARMS]
    assert all(torch.equal(starts[0], start) for start in starts)


def test_coverage() -> None:
    modes = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    points = torch.cat([torch.zeros(97, 1), torch.ones(2, 1), torch.full((1, 1), 3.0)])
    assert coverage(points, modes) == 0.5
