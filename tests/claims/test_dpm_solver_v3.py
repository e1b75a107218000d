"""Claim 25: the rule on made-up numbers, and the pieces of its measurement."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scoreline.claims.dpm_solver_v3 import ARMS, CLAIM, NFES, SIZES, Scale, exact_mixture, levels
from scoreline.claims.engine import BUDGET, Memo
from scoreline.core.noise import Noise
from scoreline.diffusion.schedules import VP
from scoreline.samplers.dpm_solver_pp import DPMSolverPP3M


def made_up(ratio: dict[int, float], *, changes: dict[str, float] | None = None) -> dict[str, dict[str, list[float]]]:
    """Degenerate arms at 1, the others at a ratio by NFE, with other values for `arm nfe`."""
    numbers = {}
    for name, arm in ARMS.items():
        numbers[name] = {}
        for nfe in NFES:
            value = 1.0 if arm.statistics == "data" else ratio[nfe]
            for what in ("median", "mean"):
                numbers[name][f"{what}_{nfe}"] = [(changes or {}).get(f"{name} {what} {nfe}", value)] * 3
    return numbers


GOOD = {5: 0.3, 6: 0.3, 8: 0.4, 10: 0.6, 15: 0.8, 20: 1.3}


def judged(ratio: dict[int, float], **changes: float) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(ratio, changes={k.replace("_", " "): v for k, v in changes.items()}))
    return verdict, [part.holds for part in parts]


def test_the_rule() -> None:
    assert judged(GOOD) == ("holds", [True, True, True])
    assert judged(GOOD, **{"model_order_2_median_10": 0.71}) == ("in part", [False, True, True])
    assert judged(GOOD, **{"model_order_3_corrected_median_5": 0.71}) == ("in part", [True, False, True])
    assert judged(GOOD, **{"model_order_3_corrected_median_15": 5.0}) == ("holds", [True, True, True])
    assert judged({**GOOD, 15: 0.2, 20: 0.2}) == ("in part", [True, True, False])
    assert judged({**GOOD, 5: 1.0, 6: 1.0, 8: 1.0})[0] == "refuted"
    assert judged({**GOOD, 5: 0.9, 6: 1.0, 8: 1.05})[0] == "in part"


def test_arms_and_levels() -> None:
    assert len(ARMS) == 12
    times = levels(8)
    lam = VP().lam(times)
    assert len(times) == 9
    assert (times[0], times[-1]) == (1.0, 1e-3)
    np.testing.assert_allclose(np.diff(lam), np.diff(lam)[0], rtol=1e-9)
    assert SIZES["laptop"].points == 128
    assert SIZES["laptop"].nodes == 120
    assert len(CLAIM.seeds) >= 3


def test_the_solution_that_errors_are_measured_from_is_fine_enough() -> None:
    """Half the steps change it by far less than any arm's error."""
    draws = Noise(0).at(range(4), (12,), dtype=torch.float64)
    half, whole = (DPMSolverPP3M()(exact_mixture(), draws, times=levels(n)).x for n in (300, 600))
    assert (half - whole).abs().max() < 1e-4


@pytest.mark.parametrize("arm", ["data order 2", "model order 3 corrected"])
def test_a_run_measures_what_the_rule_reads(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "smoke", Scale(points=24, nodes=12, starts=8, fine=60))
    numbers = CLAIM.run(arm, 0, "smoke", Memo())
    for nfe in NFES:
        for what in ("median", "mean"):
            value = numbers[f"{what}_{nfe}"]
            assert value is not None
            assert math.isfinite(value)
            assert value > 0
    assert (numbers[BUDGET] == 0) == arm.startswith("data")
    assert numbers["median_5"] > numbers["median_20"]  # type: ignore[operator]
