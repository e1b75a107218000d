"""Claim 11: the rule on made-up numbers, the joint kernel, the smoke run."""

from __future__ import annotations

from typing import Any

import pytest

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.sar_to_optical import ARMS, CLAIM, STEPS

A, B, C, D = ARMS


def judged(**changes: list[float]) -> tuple[str, list[bool | None]]:
    """With numbers that hold, but for changes as `b_fd_4=` over three seeds."""
    numbers: dict[str, dict[str, list[float]]] = {}
    for arm, fd, shift, psnr in ((A, 4.0, 0.2, 15.0), (B, 2.0, 0.1, 14.5), (C, 2.0, 0.1, 14.5)):
        numbers[arm] = {}
        for k in STEPS:
            values = {"fd": fd, "shift": shift, "psnr": psnr, "ssim": 0.5, "nfe": float(k), "milliseconds": 1.0}
            numbers[arm] |= {f"{name}_{k}": [value] * 3 for name, value in values.items()}
    last = {"fd": 2.0, "shift": 0.1, "psnr": 14.0, "ssim": 0.5, "nfe": 50.0, "milliseconds": 20.0}
    numbers[D] = {name: [value] * 3 for name, value in last.items()}
    for key, value in changes.items():
        arm, _, name = key.partition("_")
        numbers[{"a": A, "b": B, "d": D}[arm]][name] = value
    verdict, parts = CLAIM.verdict(numbers)
    assert CLAIM.findings(numbers)
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True] * 4),
    ({"b_fd_2": [2.0, 2.0, 4.0]}, "in part", [False, True, True, True]),
    ({"b_fd_8": [9.0] * 3}, "holds", [True] * 4),
    ({"b_shift_1": [0.1, 0.3, 0.1]}, "in part", [True, False, True, True]),
    ({"b_psnr_1": [14.0] * 3}, "in part", [True, True, False, True]),
    ({"b_fd_4": [2.0, 2.0, 2.31]}, "in part", [True, True, True, False]),
    ({"b_fd_4": [2.0, 2.0, 2.29]}, "holds", [True] * 4),
    ({"d_nfe": [39.0] * 3}, "in part", [True, True, True, False]),
    ({f"b_fd_{k}": [3.0, 4.0, 5.0] for k in (1, 2, 4)}, "refuted", [False, True, True, False]),
], ids=["good", "one-seed", "eight", "shift", "psnr", "far", "near", "calls", "agree"])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == ARMS
    assert runs[A][BUDGET] < runs[B][BUDGET] == runs[C][BUDGET]
    assert runs[D]["nfe"] == 50
    assert [runs[B][f"nfe_{k}"] for k in STEPS] == list(STEPS)
    # The exact teacher is told the source and makes digits; three steps of training make none.
    assert runs[D]["fd"] < runs[A]["fd_1"]
