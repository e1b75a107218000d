"""Claim 36: the rule on made-up numbers, the judge, the arms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.sfd import ARMS, CLAIM, SETTINGS, SIZES, neighbours_say
from scoreline.data import load_images

A, B, C, D, E = ARMS
NAMES = ("ua", "early_ua", "override", "fd_rest", "rest_right")


def judged(changes: dict[tuple[str, str], list[float]]) -> tuple[str, list[bool | None]]:
    """With numbers that hold, and changes (arm, name) -> three seeds."""
    numbers: dict[str, dict[str, list[float]]] = {arm: dict.fromkeys(NAMES, [1.0] * 3) for arm in ARMS}
    numbers[E] = numbers[E] | {"ua": [0.7] * 3, "early_ua": [0.2] * 3}
    numbers[D] = numbers[D] | {"fd_rest": [9.0] * 3}
    for (arm, name), values in changes.items():
        numbers[arm] = numbers[arm] | {name: values}
    verdict, parts = CLAIM.verdict(numbers)
    assert len(CLAIM.findings(numbers)) == 3
    return verdict, [part.holds for part in parts]


@pytest.mark.each("changes, verdict, parts", [
    ({}, "holds", [True] * 4),
    ({(B, "ua"): [1.0, 0.95, 1.0]}, "in part", [False, True, True, True]),
    ({(B, "fd_rest"): [1.0, 1.11, 1.0]}, "in part", [True, False, True, True]),
    ({(B, "fd_rest"): [1.0, 1.1, 1.0]}, "holds", [True] * 4),
    ({(D, "fd_rest"): [9.0, 1.9, 9.0]}, "in part", [True, True, False, True]),
    ({(D, "ua"): [1.0, 0.9, 1.0]}, "in part", [True, True, False, True]),
    ({(E, "ua"): [1.0] * 3}, "holds", [True] * 4),
    ({(E, "ua"): [1.0] * 3, (E, "early_ua"): [1.0] * 3}, "in part", [True, True, True, False]),
    ({(B, "ua"): [0.79, 0.79, 1.0]}, "refuted", [False, True, True, True]),
    ({(B, "fd_rest"): [9.0, 9.0, 1.0]}, "refuted", [True, False, True, True]),
])  # fmt: skip
def test_each_part_at_its_border(changes: Any, verdict: str, parts: list[bool]) -> None:
    assert judged(changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == ARMS
    assert all(set(NAMES) <= runs[arm].keys() for arm in ARMS)
    assert all(0 <= runs[arm]["ua"] <= 1 for arm in ARMS)
    # One side of each update in A and D, both in B; E leaves out one of the critic's.
    budgets = {arm: runs[arm][BUDGET] - 64 * 4 * SIZES["smoke"].fitted for arm in ARMS}
    assert [budgets[arm] / (64 * SIZES["smoke"].steps) for arm in ARMS] == [13, 26, 26, 13, 22]


def test_the_judge_knows_digits() -> None:
    images = load_images("digits")
    batch = images.batch(range(len(images)))
    known, rest = slice(0, 1200), slice(1200, None)
    assert batch.label is not None
    seen = neighbours_say(batch.image[known].flatten(1), batch.label[known], batch.image[rest].flatten(1))
    assert float((seen == batch.label[rest]).double().mean()) == pytest.approx(0.97, abs=0.015)
    votes = neighbours_say(
        torch.tensor([[0.0], [0.1], [0.2], [5.0]]), torch.tensor([2, 1, 1, 0]), torch.tensor([[0.0]])
    )
    assert votes.tolist() == [1]


def test_the_arms_leave_one_thing_out_each() -> None:
    assert SETTINGS[A] == {}
    assert SETTINGS[B] | {"critic_forget_weight": 0.0} == SETTINGS[E]
    assert SETTINGS[D]["keep_weight"] == 0.0
    assert SETTINGS[C]["forget_weight"] == SETTINGS[C]["critic_forget_weight"] == 0.1
