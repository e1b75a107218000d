"""Claim 12: the rule on made-up numbers, its grid and its reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims import deis as claim
from scoreline.claims.deis import ARMS, BUDGETS, CLAIM
from scoreline.claims.engine import BUDGET, measure
from scoreline.core.noise import Noise
from scoreline.diffusion.schedules import VP

GOOD = {"euler": 9.0, "ddim": 4.0, "tab1": 3.0, "tab2": 2.0, "tab3": 2.0}


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    """With errors that hold at every budget, but for changes `arm_budget=`."""
    numbers: dict[str, dict[str, list[float]]] = {
        arm: {f"rmse_{n}": [GOOD.get(arm, 3.0)] * 3 for n in BUDGETS} | {f"flips_{n}": [0.0] * 3 for n in BUDGETS}
        for arm in ARMS
    }
    for name, value in changes.items():
        arm, _, budget = name.rpartition("_")
        numbers[arm][f"rmse_{budget}"] = value if isinstance(value, list) else [value] * 3
    verdict, parts = CLAIM.verdict(numbers)
    assert CLAIM.findings(numbers)
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True, True, True]),
    ({"euler_10": 4.0}, "in part", [False, True, True]),
    ({"tab1_10": 4.1}, "in part", [False, True, True]),
    ({"tab2_10": 3.0}, "in part", [False, True, True]),
    ({"tab3_10": 2.01}, "in part", [False, False, True]),
    ({"ddim_10": 3.99}, "in part", [True, False, True]),
    ({"tab3_20": 4.0}, "in part", [True, True, False]),
    ({"tab3_10": 4.0, "tab3_15": 4.0, "tab3_20": 4.0}, "refuted", [False, False, False]),
    # The ladder is one of means over seeds, and at 10 only.
    ({"euler_10": [1.0, 1.0, 25.1], "tab1_5": 99.0}, "holds", [True, True, True]),
])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_better_nowhere_is_refuted_whatever_else_holds() -> None:
    changes = {"tab3_10": 2.0, "ddim_10": 2.0, "tab1_10": 1.5, "tab2_10": 1.2, "tab3_15": 9.0, "tab3_20": 9.0}
    assert judged(**changes)[0] == "refuted"


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert set(runs) == set(ARMS)
    for arm, run in runs.items():
        assert run[BUDGET] == 0
        for n in BUDGETS:
            stages = claim.STAGES.get(arm, 1)
            assert run[f"nfe_{n}"] == n // stages * stages
    assert runs["tab3"]["rmse_20"] < runs["ddim"]["rmse_20"]


def test_the_grid_is_the_papers() -> None:
    times = claim.paper_grid(VP(t_min=1e-3), 10)
    assert len(times) == 11
    assert times[0] == 1.0
    assert times[1] == pytest.approx(0.81570, abs=5e-6)
    assert times[-1] == 1e-3


def test_the_reference_is_where_fine_steps_lead() -> None:
    model = claim._model(claim.Scale(count=3, images=20, tolerance=1e-8))
    draws = Noise(4).at(range(3), model.shape, dtype=torch.float64)
    exact = claim.converged(model, draws, 1e-8)
    fine = ARMS["rhork 4rk"](model, draws, times=claim.paper_grid(model.schedule, 300)).x
    assert (fine - exact).abs().max() < 1e-5
    assert model.variances.unique().tolist() == pytest.approx([0.02])
