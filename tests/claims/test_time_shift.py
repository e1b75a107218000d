"""Claim 26: the rule on made-up numbers, and what its arms are."""

from __future__ import annotations

from typing import Any

import pytest

from scoreline.claims.engine import BUDGET, Memo, measure
from scoreline.claims.time_shift import ARMS, BIASES, CLAIM, HOWS, PAPER, SETTINGS, STEPS, Arm
from scoreline.guidance.epsilon_scaling import EpsilonScaling
from scoreline.guidance.time_shift import TimeShift

SEEDS = 3


def made_up(**changes: float) -> dict[str, dict[str, list[float]]]:
    """Numbers with which every part holds; `ddim_105=2.0` changes DDIM's distance at b = 1.05 and 10 steps."""
    distance = {1.0: 1.0, 1.02: 1.5, 1.05: 2.0}
    numbers = {}
    for name, arm in ARMS.items():
        value = distance[arm.bias] if arm.how in ("ddim", "scaling") else min(distance[arm.bias], 1.05)
        key = f"{arm.how.replace(' ', '_')}_{round(100 * arm.bias)}"
        value = changes.get(key, value) if arm.steps == 10 else value
        numbers[name] = {"frechet_distance": [value] * SEEDS, "variance_gap": [0.1] * SEEDS}
    return numbers


def judged(**changes: float) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(**changes))
    return verdict, [part.holds for part in parts]


def test_all_parts_hold() -> None:
    assert judged() == ("holds", [True, True, True])


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"paper_80_300_105": 2.0}, ("in part", [False, True, True])),
        ({"paper_20_200_102": 1.6}, ("in part", [True, False, True])),
        ({"paper_40_200_100": 1.11}, ("in part", [True, True, False])),
        ({"paper_40_200_100": 1.09}, ("holds", [True, True, True])),
        ({f"paper_{w}_{c}_105": 2.0 for w, c in SETTINGS}, ("refuted", [False, True, True])),
        ({"target_40_300_105": 9.0, "calibrated_40_0_105": 9.0, "scaling_105": 9.0}, ("holds", [True, True, True])),
    ],
)
def test_each_sentence_is_judged_by_its_own_numbers(
    changes: dict[str, float], expected: tuple[str, list[bool]]
) -> None:
    assert judged(**changes) == expected


def test_twenty_steps_are_told_and_not_judged() -> None:
    numbers = made_up()
    for arm in ARMS.values():
        if arm.steps == 20:
            numbers[arm.name]["frechet_distance"] = [99.0] * SEEDS
    assert CLAIM.verdict(numbers)[0] == "holds"
    assert any("20 steps" in text and "99" in text for text in CLAIM.findings(numbers))


def test_the_arms_are_the_samplers_they_name() -> None:
    assert len(ARMS) == len(BIASES) * len(STEPS) * len(HOWS)
    plain, paper, target = (Arm(how, 1.05).make(0.5) for how in ("ddim", PAPER[3], "target 40 300"))
    calibrated, scaling = (Arm(how, 1.05, 20).make(0.5) for how in ("calibrated 40 0", "scaling"))
    assert isinstance(plain, TimeShift)
    assert isinstance(paper, TimeShift)
    assert isinstance(target, TimeShift)
    assert isinstance(calibrated, TimeShift)
    assert isinstance(scaling, EpsilonScaling)
    assert (plain.window, paper.window, paper.cutoff, paper.mode) == (0, 80, 300, "paper")
    assert (target.mode, target.window, target.variance) == ("official_target", 40, 0.0)
    assert (calibrated.window, calibrated.cutoff, calibrated.variance, calibrated.steps) == (40, 0, 0.5, 20)
    assert (scaling.scale, scaling.slope, scaling.steps) == (1.05, 0.0, 20)


def test_arms_of_a_seed_share_their_noise_and_the_true_factor_undoes_the_bias() -> None:
    memo = Memo()

    def run(how: str, bias: float) -> dict[str, Any]:
        return CLAIM.run(Arm(how, bias).name, 0, "smoke", memo)

    exact, undone, biased = run("ddim", 1.0), run("scaling", 1.05), run("ddim", 1.05)
    assert undone["frechet_distance"] == pytest.approx(exact["frechet_distance"], rel=1e-4)
    assert biased["frechet_distance"] > 1.1 * exact["frechet_distance"]
    assert biased["variance_gap"] > 2 * exact["variance_gap"]
    assert biased[BUDGET] == 0


def test_the_smoke_scale_runs(tmp_path: Any) -> None:
    result = measure(CLAIM, scale="smoke", out=tmp_path, quiet=True)
    assert result["stored"] == []
    assert set(result["summary"]) == set(ARMS)
