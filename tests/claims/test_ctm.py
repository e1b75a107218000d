"""Claim 34: the rule on made-up numbers, its data and its budgets."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.ctm import ARMS, CLAIM, GAMMAS, SIZES, STEPS, _method, _points, teacher
from scoreline.claims.engine import BUDGET, measure

# Values that hold: (arm, gamma) -> with 1, 2, 4, 8, 16 evaluations.
GOOD = {"A1": 0.05, "B0": 0.05, "B0.5": 0.05, "B1": 0.05, "C0": 0.06, "C0.5": 0.05, "C1": 0.05}


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    """B at gamma 0 falls from 0.1 to 0.05; changes are `A1_8=`, with p for the point of a gamma."""
    numbers: dict[str, dict[str, list[float]]] = {arm: {"floor": [0.01] * 3} for arm in ARMS}
    for arm in ARMS:
        for gamma in GAMMAS[arm]:
            for n in STEPS:
                numbers[arm][f"sw_gamma{gamma:g}_{n}"] = [GOOD[f"{arm[0]}{gamma:g}"]] * 3
    numbers[ARMS[1]]["sw_gamma0_1"] = [0.09, 0.1, 0.11]
    for name, value in changes.items():
        place, _, steps = name.rpartition("_")
        arm = next(arm for arm in ARMS if arm[0] == place[0])
        numbers[arm][f"sw_gamma{place[1:].replace('p', '.')}_{steps}"] = (
            value if isinstance(value, list) else [value] * 3
        )
    verdict, parts = CLAIM.verdict(numbers)
    assert CLAIM.findings(numbers)
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True, True, True, True, True]),
    ({"B0_8": 0.085}, "holds", [True, True, True, True, True]),
    ({"B0_8": 0.0851}, "in part", [False, True, True, True, True]),
    ({"B0_8": [0.0999, 0.05, 0.05]}, "holds", [True, True, True, True, True]),
    ({"B0_8": [0.1001, 0.05, 0.05]}, "in part", [True, False, True, True, True]),
    ({"A1_8": 0.049}, "in part", [True, True, False, True, True]),
    ({"B1_8": 0.049}, "in part", [True, True, True, False, True]),
    ({"C0_16": 0.05}, "in part", [True, True, True, True, False]),
    ({"B0_8": 0.101}, "refuted", [False, False, True, True, True]),
    # Medians over seeds, and at 2 and 8 only.
    ({"A1_8": [0.0, 0.05, 0.06], "A1_16": 0.0, "B1_1": 0.0}, "holds", [True, True, True, True, True]),
])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert set(runs) == set(ARMS)
    for arm, run in runs.items():
        assert run[BUDGET] > 0
        assert run["sw_gamma1_16"] > 0
        assert (run["sw_gamma0_8"] is None) == (arm == ARMS[0])
    # the networks of B and C begin alike
    assert runs[ARMS[1]]["floor"] == runs[ARMS[2]]["floor"]


def test_eight_modes_and_what_an_update_costs() -> None:
    points = _points(2000, 5)
    near = torch.cdist(points, teacher().means).min(1)
    assert near.values.max() < 5 * 0.075
    assert torch.bincount(near.indices).min() > 180
    assert points.std(0).mean() == pytest.approx((0.125 + 0.075**2) ** 0.5, rel=0.05)
    costs = [_method(arm, 0, SIZES["laptop"])[1] for arm in ARMS]
    assert costs == pytest.approx([6, 11 + 70 / 3, 8 + 70 / 3])
