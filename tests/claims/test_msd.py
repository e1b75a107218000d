"""Claim 30: the rule on made-up numbers, its exact part, and that the arms cost what they say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.msd import ARMS, CLAIM, EXACT, SCATTER, A, B, C, D, E, F, _drawn, class_means

TOGETHER = {"scatter_1": 2.5, "scatter_2": 1.9, "scatter_4": 0.4, "scatter_8": 0.0}
DEALT = {"scatter_1": 2.5, "scatter_2": 2.5, "scatter_4": 2.5, "scatter_8": 0.0}


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    """With numbers that hold, and changes `a=`, `c=`, `e=`, `f=`, `together=` over three seeds."""
    usual = dict(zip((A, B, C, D, E, F, EXACT), (4.0, 5.0, 2.0, 2.1, 1.0, 6.0, 0.3)))
    numbers: dict[str, dict[str, list[float]]] = {arm: {"fd": [value] * 3} for arm, value in usual.items()}
    for letter, arm in zip("acef", (A, C, E, F)):
        if letter in changes:
            numbers[arm] = {"fd": changes[letter]}
    for arm, found in zip(SCATTER, (TOGETHER | changes.get("together", {}), DEALT)):
        numbers[arm] = {name: [value] * 3 for name, value in found.items()}
    verdict, parts = CLAIM.verdict(numbers)
    assert len(CLAIM.findings(numbers)) == 3
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True] * 4),
    ({"a": [2.9, 4.0, 5.1]}, "holds", [True] * 4),
    ({"c": [2.0, 2.0, 4.1]}, "in part", [False, True, True, True]),
    ({"a": [3.0, 4.0, 5.0], "c": [2.9, 3.0, 3.1], "f": [6.0] * 3}, "refuted", [True] * 4),
    ({"a": [2.0, 2.0, 2.0]}, "refuted", [False, False, True, True]),
    ({"a": [1.0, 1.0, 1.0]}, "refuted", [False, False, True, True]),
    ({"e": [2.0] * 3}, "in part", [True, False, True, True]),
    ({"f": [3.9] * 3}, "in part", [True, True, False, True]),
    ({"together": {"scatter_4": 1.9}}, "in part", [True, True, True, False]),
    ({"together": {"scatter_8": 0.1}}, "in part", [True, True, True, False]),
], ids=["good", "wide", "one-seed", "within", "same", "worse", "eight", "tsm", "flat", "rest"])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == ARMS
    assert [runs[SCATTER[0]][f"scatter_{k}"] for k in (1, 8)] == pytest.approx([2.5, 0])
    # Equal samples in all, B a quarter of them, F without the first fit.
    assert runs[A][BUDGET] == runs[C][BUDGET] == runs[D][BUDGET] == runs[E][BUDGET] == 4 * runs[B][BUDGET]
    assert runs[F][BUDGET] < runs[C][BUDGET]
    assert runs[E]["parameters"] == 2 * runs[C]["parameters"] == 8 * runs[A]["parameters"]
    assert runs[EXACT]["fd"] < min(runs[arm]["fd"] for arm in (A, B, C, D, E, F))


def test_exact_draws_have_their_class() -> None:
    image, label = torch.arange(16.0).view(16, 1, 1, 1).expand(-1, 1, 8, 8) / 16, torch.arange(16) % 8
    made = _drawn(image, label, 160, 0)
    assert class_means().shape == (8, 2)
    # Class y holds the images y and y + 8, so that its draws lie about their mean.
    for y in range(8):
        assert made[y::8].mean() == pytest.approx((2 * y + 8) / 32, abs=0.13)
