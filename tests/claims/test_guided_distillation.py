"""Claim 17: the rule on made-up numbers, the smoke run."""

from __future__ import annotations

from typing import Any

import pytest

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.guided_distillation import ARMS, CLAIM, COUNTS, WEIGHTS

A, B, C, D, T = ARMS
MADE: dict[str, dict[int, float]] = {
    A: {2: 9.0, 4: 5.0, 8: 3.0}, B: {1: 20.0, 2: 8.0, 4: 4.0, 8: 2.0}, C: {1: 3.0, 2: 1.5, 4: 1.1, 8: 1.0},
    D: {1: 3.0, 2: 1.6, 4: 1.0, 8: 1.0},
}  # fmt: skip


def judged(**changes: list[float]) -> tuple[str, list[bool | None]]:
    """With numbers that hold, but for changes as `c_fd_1_4=` over three seeds."""
    numbers: dict[str, dict[str, list[float | None]]] = {arm: {} for arm in ARMS}
    for w in WEIGHTS:
        for arm, row in MADE.items():
            for n in COUNTS:
                value = row.get(n)
                numbers[arm][f"fd_{w}_{n}"] = [None] * 3 if value is None else [value, value + 0.01, value - 0.01]
                numbers[arm][f"accuracy_{w}_{n}"] = [None if value is None else 0.9] * 3
        numbers[T] |= {f"fd_{w}": [1.0] * 3, f"accuracy_{w}": [0.95] * 3}
    numbers[B] |= {"error_mean": [0.1] * 3, "error_max": [0.4] * 3}
    for key, value in changes.items():
        arm, _, name = key.partition("_")
        numbers[{"a": A, "b": B, "c": C, "t": T}[arm]][name] = list(value)
    verdict, parts = CLAIM.verdict(numbers)
    assert len(CLAIM.findings(numbers)) == 8
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True, True, True]),
    ({"c_fd_3_4": [1.21] * 3}, "in part", [False, True, True]),
    ({"t_fd_0": [0.9] * 3}, "in part", [False, True, True]),
    ({"c_fd_1_8": [9.0] * 3}, "holds", [True, True, True]),
    ({"a_fd_1_2": [1.5] * 3}, "in part", [True, False, True]),
    ({"b_fd_1_1": [1.0, 3.0, 6.0]}, "in part", [True, True, False]),
    ({"b_fd_1_4": [0.0, 1.1, 2.0]}, "in part", [True, True, False]),
    ({f"b_fd_{w}_4": [0.0, 1.1, 2.0] for w in WEIGHTS}, "refuted", [True, True, False]),
], ids=["good", "far", "near-teacher", "eight", "guided", "one", "one-weight", "agree"])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == ARMS
    assert runs[A][BUDGET] == runs[T][BUDGET] == 0
    assert runs[B][BUDGET] < runs[C][BUDGET] < runs[D][BUDGET]
    assert runs[A]["fd_0_1"] is None
    for w in WEIGHTS:
        # Exact models make digits, more like the reference in more steps; a few steps of training make none.
        assert runs[T][f"fd_{w}"] < runs[A][f"fd_{w}_2"]
        assert runs[A][f"fd_{w}_8"] < runs[C][f"fd_{w}_8"]
        assert runs[T][f"accuracy_{w}"] > runs[C][f"accuracy_{w}_8"]
        assert runs[C][f"fd_{w}_1"] == runs[D][f"fd_{w}_1"]
        assert runs[C][f"fd_{w}_2"] != runs[D][f"fd_{w}_2"]
