"""Claim 18: the rule on made-up numbers, and one small search measured."""

from __future__ import annotations

from typing import Any

import pytest

from scoreline.claims import usf as claim
from scoreline.claims.engine import BUDGET, Memo
from scoreline.claims.usf import ARMS, CLAIM, NFES, REACHED, ToFineSolution
from scoreline.search.solver_space import SolverSpace

SEEDS = 5


def made_up(**columns: Any) -> dict[str, dict[str, list[float | None]]]:
    """Numbers with which every part holds; a column is `method` or `method_nfe` (its held-out error)."""
    errors = {"best uniform": 0.1, "random": 0.11, "evolution": 0.08, "s3": 0.07}
    numbers: dict[str, dict[str, list[float | None]]] = {}
    for arm in ARMS:
        method, _, nfe = arm.partition(" nfe=")
        error = columns.get(f"{method}_{nfe}", columns.get(method, errors[method]))
        reached = {"evolution": 200.0, "s3": columns.get("s3_reached", 150.0)}.get(method)
        numbers[arm] = {
            "held_out_rmse": [error] * SEEDS,
            "train_rmse": [0.9 * error] * SEEDS,
            "true_evaluations": [250.0] * SEEDS,
            REACHED: [reached] * SEEDS if not isinstance(reached, list) else reached,
            "kendall_tau": [columns.get("tau", 0.5) if method == "s3" else None] * SEEDS,
        }
    return numbers


def judged(**columns: Any) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(**columns))
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize(
    ("columns", "verdict", "parts"),
    [
        ({}, "holds", [True, True, True, True]),
        ({"evolution_5": 0.0899}, "holds", [True, True, True, True]),
        ({"evolution_5": 0.0901}, "in part", [False, True, True, True]),
        ({"s3_6": 0.0901}, "in part", [True, False, True, True]),
        ({"s3_reached": 199.0}, "holds", [True, True, True, True]),
        ({"s3_reached": 200.0}, "in part", [True, True, False, True]),
        ({"s3_reached": None}, "in part", [True, True, False, True]),
        ({"s3_reached": [150.0, 150.0, 150.0, None, 240.0]}, "holds", [True, True, True, True]),
        ({"s3_reached": [150.0, 150.0, None, None, 240.0]}, "in part", [True, True, False, True]),
        ({"tau": 0.2}, "holds", [True, True, True, True]),
        ({"tau": 0.19}, "refuted", [True, True, True, False]),
        ({"evolution": 0.1, "s3": 0.11}, "refuted", [False, False, True, True]),
        ({"evolution": 0.1, "s3": 0.11, "s3_4": 0.099}, "in part", [False, False, True, True]),
    ],
)
def test_each_part_at_its_border(columns: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**columns) == (verdict, parts)


def test_findings_name_what_the_training_noise_flatters() -> None:
    said = CLAIM.findings(made_up())
    assert len(said) == len(NFES)
    assert "best uniform 0.1, random 0.11, evolution 0.08, s3 0.07" in said[0]
    assert "flatters it by 11 %" in said[0]


def test_the_score_is_the_distance_to_the_fine_solution() -> None:
    score = ToFineSolution(3, 4, 60)
    plan = SolverSpace(score.model.schedule, (5,)).known(5)[0]
    sample = score.sampler_of(plan.to_dict())(score.model, score.draws).x
    errors = sorted(float(e) for e in (sample - score.exact).square().mean(1).sqrt())
    assert score(plan.to_dict())["value"] == pytest.approx(errors[1])
    better = ToFineSolution(3, 4, 240)
    assert (better.exact - score.exact).abs().max() < 0.02


def test_arms_use_three_sets_of_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = claim.Scale(evaluations=46, first_stage=60, train=4, held_out=6, fine=40)
    monkeypatch.setitem(claim.SIZES, "smoke", sizes)
    memo = Memo()
    run = CLAIM.run("best uniform nfe=4", 0, "smoke", memo)
    evolution = CLAIM.run("evolution nfe=4", 0, "smoke", memo)
    assert run["true_evaluations"] == 18
    assert evolution["true_evaluations"] == 46
    assert run[BUDGET] == 18 * 4 * 4
    assert evolution["train_rmse"] is not None
    assert run["train_rmse"] is not None
    assert evolution["train_rmse"] <= run["train_rmse"]
    assert evolution[REACHED] is not None
    noises = {name: memo(name, lambda: ToFineSolution(0, 1, 10)).draws for name in ("train", "choice", "report")}
    assert len({draws.seed for draws in noises.values()}) == 3
    assert [len(draws) for draws in noises.values()] == [4, 6, 6]
    # Another process, without the memory of the evolution, says the same.
    assert CLAIM.run("best uniform nfe=4", 0, "smoke", Memo()) == run
