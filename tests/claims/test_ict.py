"""Claim 14: the rule on made-up numbers, the point without a network, the sliced distance."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.ict import ARMS, CLAIM, DIGITS, EXACT, SIZES, point_theta, sliced_wasserstein
from scoreline.fewstep.consistency_models import CT
from scoreline.fewstep.ict import ICT

AVERAGE = (0.95, 0.8, 0.6, 0.4, 0.3)


def judged(average: tuple[float, ...] = AVERAGE, **changes: Any) -> tuple[str, list[bool | None]]:
    """With numbers that hold, but for theta under an average, and changes `a=` ... `d=`, `itself=` over three seeds."""
    numbers: dict[str, dict[str, list[float]]] = {arm: {"theta": [0.95] * 3} for arm in EXACT}
    for arm, theta in zip(EXACT[5:], average):
        numbers[arm]["theta"] = [theta] * 3
    numbers[EXACT[2]]["theta"] = changes.get("itself", [0.95] * 3)
    for letter, arm, usual in zip("abcd", DIGITS, (10.0, 4.0, 6.0, 7.0)):
        numbers[arm] = {"fd_1": changes.get(letter, [usual] * 3)}
        numbers[arm] |= {name: [1.0] * 3 for name in ("fd_2", "sliced_1", "sliced_2")}
    verdict, parts = CLAIM.verdict(numbers)
    assert CLAIM.findings(numbers)
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True] * 5),
    ({"itself": [0.95, 0.9, 0.95]}, "in part", [False, True, True, True, True]),
    ({"average": (0.95, 0.8, 0.6, 0.4, 0.32)}, "in part", [True, False, True, True, True]),
    ({"average": (0.95, 0.8, 0.81, 0.4, 0.3)}, "in part", [True, False, True, True, True]),
    ({"average": (0.3, 0.3, 0.3, 0.3, 0.3)}, "refuted", [True, False, True, True, True]),
    ({"b": [4.0, 4.0, 7.1]}, "in part", [True, True, False, True, True]),
    ({"b": [4.0, 4.0, 7.0]}, "holds", [True] * 5),
    ({"b": [10.0, 10.0, 1.0]}, "refuted", [True, True, False, False, False]),
    ({"c": [4.0] * 3}, "in part", [True, True, True, False, True]),
    ({"d": [10.0] * 3}, "in part", [True, True, True, True, False]),
], ids=["good", "slow", "near", "rises", "flat", "one-seed", "thirty", "worse", "c", "d"])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == ARMS
    assert all(runs[arm]["theta"] > 0 for arm in EXACT)
    assert len({runs[arm][BUDGET] for arm in DIGITS}) == 1
    assert all(runs[arm]["fd_1"] > 1 for arm in DIGITS)


def test_the_arms_undo_one_change_each() -> None:
    a, b, c, d = (CLAIM.method(arm, 0, SIZES["smoke"]) for arm in DIGITS)
    assert isinstance(a, CT)
    assert isinstance(b, ICT)
    assert isinstance(c, ICT)
    assert isinstance(d, ICT)
    assert b.target is None
    assert c.target_ema == 0.95
    x, y = torch.zeros(1, 4), torch.ones(1, 4)
    assert float(d.apart(x, y)) == 1.0
    assert float(b.apart(x, y)) == float(c.apart(x, y)) == pytest.approx(2.0, abs=2e-3)
    assert all(torch.equal(p, q) for p, q in zip(a.student.parameters(), b.student.parameters()))
    assert b.student.levels(2)[1] == 0.821


def test_a_point_is_found_sooner_without_an_average() -> None:
    itself, average = (point_theta(1281, averaged, 0, steps=40) for averaged in (False, True))
    assert 2 * average < itself < 1
    assert point_theta(1281, False, 0, steps=40) == itself


def test_the_sliced_distance_of_a_shift() -> None:
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    assert sliced_wasserstein(x, x, 0, 50) == 0
    # Directions on the sphere have a mean absolute coordinate of 1/2 in three dimensions.
    assert sliced_wasserstein(x, x + torch.tensor([2.0, 0.0, 0.0]), 0, 400) == pytest.approx(1.0, abs=0.06)
