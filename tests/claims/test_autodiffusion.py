"""Claim 07: the rule on made-up numbers, and what its arms cost."""

from __future__ import annotations

from typing import Any

import pytest

from scoreline.claims import autodiffusion as claim
from scoreline.claims.autodiffusion import CLAIM
from scoreline.claims.engine import BUDGET, Memo, measure

SEEDS = 5


def made_up(**changes: Any) -> dict[str, dict[str, list[float]]]:
    """All uniform grids at 1 but the best, 0.5; evolution 0.4; with changes by arm, spaces written as _."""
    numbers = {}
    for arm in CLAIM.arms:
        how = arm.split(" ")[1]
        value = {"leading": 0.5, "evolution": 0.4, "random": 0.45}.get(how, 1.0)
        numbers[arm] = {"frechet_distance": [value] * SEEDS}
    for arm, value in changes.items():
        values = list(value) if isinstance(value, tuple) else [value] * SEEDS
        numbers[arm.replace("__", " ").replace("_", "-")]["frechet_distance"] = values
    return numbers


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(**changes))
    return verdict, [part.holds for part in parts]


def test_the_rule_at_its_borders() -> None:
    assert judged() == ("holds", [True, True])
    # 15 % below the best uniform grid is enough, less is not; another grid may be the best one.
    assert judged(linear_4__evolution=0.5 * 0.85 - 1e-9) == ("holds", [True, True])
    assert judged(linear_4__evolution=0.5 * 0.85 + 1e-9) == ("in part", [False, True])
    assert judged(cosine_4__trailing=0.45) == ("in part", [True, False])
    assert judged(cosine_4__linspace=0.45, linear_4__evolution=0.6) == ("refuted", [False, False])
    # The median over seeds decides, each against the grids at its own noise.
    assert judged(linear_4__evolution=(0.4, 0.4, 0.4, 0.9, 0.9)) == ("holds", [True, True])
    assert judged(linear_4__evolution=(0.4, 0.4, 0.9, 0.9, 0.9)) == ("in part", [False, True])
    # Six steps and random search are no part of it.
    assert judged(linear_6__evolution=9.0, cosine_4__random=0.1) == ("holds", [True, True])


def test_what_is_told_beside_it() -> None:
    said = CLAIM.findings(made_up(linear_4__random=(0.1, 0.45, 0.45, 0.45, 0.45)))
    assert len(said) == 4
    assert said[0].startswith("linear, 4 steps: evolution 0.4, random search of as many evaluations 0.45;")
    assert "better in 4 of 5 seeds" in said[0]
    assert "20%" in said[3]


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    return measure(CLAIM, scale="smoke", quiet=True)


def test_the_smoke_run_measures_every_arm_and_stores_nothing(smoke: dict[str, Any]) -> None:
    assert smoke["stored"] == []
    assert {(run["arm"], run["seed"]) for run in smoke["runs"]} == {(arm, 0) for arm in CLAIM.arms}
    assert len(CLAIM.arms) == 20
    assert len(CLAIM.seeds) == 5


def test_searches_have_the_same_budget_and_nothing_is_trained(smoke: dict[str, Any]) -> None:
    runs = {run["arm"]: run for run in smoke["runs"]}
    for arm, run in runs.items():
        steps = int(arm.split(" ")[0][-1])
        searched = arm.endswith(claim.SEARCHED)
        assert run[BUDGET] == 0
        assert run["nfe"] == steps
        assert run["search_evaluations"] == (16 * 70 * steps if searched else 0)
        assert (run["seen_in_search"] is not None) == searched


def test_a_seed_decides_an_arm() -> None:
    runs = [CLAIM.run("cosine-4 evolution", seed, "smoke", Memo()) for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]
