"""Claim 31: the rule on made-up numbers, and what it measures with."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.slimflow import ARMS, BATCH, CLAIM, DISTILS, REFLOWS, SIZES, first_flow
from scoreline.core.noise import Noise

GOOD = {
    "reflow": 10.0, "annealed": 9.0, "independent": 12.0, "distil": 20.0, "two-step": 18.0, "distil, few": 30.0,
    "two-step, few": 24.0,
}  # fmt: skip


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    values: dict[str, Any] = {**GOOD, **{key.replace("two_step", "two-step"): v for key, v in changes.items()}}
    numbers = {
        arm: {
            "distance": value if isinstance(value, list) else [value] * 5,
            "straightness": [1.0] * 5,
            "error": [1.0] * 5,
        }
        for arm, value in values.items()
    }
    verdict, parts = CLAIM.verdict(numbers)
    assert "gains 20.0%" in CLAIM.findings(numbers)[0]
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True, True]),
    ({"annealed": 9.7}, "holds", [True, True]),
    ({"annealed": 9.71}, "in part", [None, True]),
    ({"annealed": 10.01}, "in part", [False, True]),
    ({"annealed": [9.0, 9.0, 9.0, 9.0, 11.0]}, "holds", [True, True]),
    ({"annealed": [9.0, 9.0, 9.0, 11.0, 11.0]}, "in part", [False, True]),
    ({"two_step": 19.5}, "in part", [True, None]),
    ({"two_step": 20.0}, "in part", [True, False]),
    ({"two_step": 21.0, "annealed": 10.0}, "refuted", [False, False]),
])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(**changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", seeds=[0, 1, 2], quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert set(runs) == set(ARMS) == {*REFLOWS, *DISTILS}
    # Equal updates in stage 1; the two-step term costs four passes more an image.
    assert len({runs[arm][BUDGET] for arm in REFLOWS}) == 1
    extra = runs["two-step"][BUDGET] - runs["distil"][BUDGET]
    assert extra == pytest.approx(SIZES["smoke"].distil * BATCH * 4)


def test_the_teacher_is_the_smoothed_digits() -> None:
    model = first_flow(3)
    x = model.means.view(3, 1, 8, 8)  # type: ignore[operator]
    noise = Noise(0).at(range(3), (1, 8, 8)).normal()
    at = 0.95 * x + 0.05 * noise
    gain = 0.95 * 0.05**2 / (0.95**2 * 0.05**2 + 0.05**2)
    assert torch.allclose(model(at, 0.05).mean, x + gain * 0.05 * noise, atol=1e-4)
