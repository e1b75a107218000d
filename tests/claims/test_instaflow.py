"""Claim 13: the rule on made-up numbers, and what it measures with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.instaflow import ARMS, BATCH, CLAIM, SIZES, first_flow, make_pairs
from scoreline.core.noise import Noise
from scoreline.samplers.euler import Euler

GOOD: dict[str, dict[str, float]] = {
    "direct": {"digits_distance": 10.0},
    "reflow, distil": {"digits_distance": 8.0},
    "same pairs": {"digits_distance": 8.0},
    "2-rf": {"digits_distance": 9.0, "digits_straightness": 2.0},
    "1-rf": {"digits_distance": 18.0, "digits_straightness": 10.0},
}


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    numbers: dict[str, dict[str, list[float]]] = {}
    for arm, values in GOOD.items():
        full = {"modes_distance": 1.0, "modes_straightness": 1.0, **values}
        numbers[arm] = {name: [value] * 3 for name, value in full.items()}
    for key, value in changes.items():
        arm, _, name = key.partition("__")
        found = {"direct": "direct", "ours": "reflow, distil", "two": "2-rf", "one": "1-rf"}[arm]
        numbers[found][f"digits_{name}"] = value if isinstance(value, list) else [value] * 3
    verdict, parts = CLAIM.verdict(numbers)
    assert CLAIM.findings(numbers)
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True, True, True]),
    ({"two__straightness": 2.01}, "in part", [False, True, True]),
    ({"ours__distance": 9.0}, "in part", [True, False, True]),
    ({"ours__distance": [8.99, 50.0, 1.0]}, "holds", [True, True, True]),
    ({"two__distance": 9.01}, "in part", [True, True, False]),
    ({"ours__distance": 10.0}, "refuted", [True, False, True]),
    ({"ours__distance": [10.0, 11.0, 9.99]}, "in part", [True, False, True]),
])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert set(runs) == set(ARMS)
    # Equal updates, a forward pass 1 and a backward 2; pairs come on top.
    made = runs["direct"][BUDGET] - 2 * 2 * SIZES["smoke"].updates * 3 * BATCH
    assert made > 0
    assert runs["same pairs"][BUDGET] == pytest.approx(runs["direct"][BUDGET])
    assert runs["2-rf"][BUDGET] == pytest.approx(made + 2 * SIZES["smoke"].updates * 3 * BATCH)
    assert runs["reflow, distil"][BUDGET] > runs["direct"][BUDGET]
    assert runs["1-rf"][BUDGET] == 0


def test_the_first_flow_ends_at_its_points() -> None:
    model = first_flow("digits", 40)
    pairs, spent = make_pairs(model, Noise(1).at(range(4), model.shape))
    nearest = (pairs.image[:, None] - model.means.view(-1, 1, 8, 8)).flatten(2).norm(dim=2).min(1).values  # type: ignore[operator]
    assert nearest.max() < 1e-3
    assert spent > 4 * 20
    assert torch.equal(pairs.noise, Noise(1).at(range(4), model.shape).normal())
    modes = first_flow("modes")
    middle = Euler(steps=1)(modes, Noise(0).at(range(3), (2,))).x
    assert middle.abs().max() < 1e-5
