"""Claim 05: the rule on made-up numbers, the workflow of the plan, and the honesty test."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims import copyscope as claim
from scoreline.claims.copyscope import ARMS, CLAIM, COMPONENTS, PLAN, SMALL, Workflow
from scoreline.claims.engine import Memo, measure
from scoreline.core.noise import Noise

GOOD = {"base": 4.5, "adapter": 3.6, "control": 3.2, "prompt": 0.0}
LEFT_OUT = {"base": 5.1, "adapter": 2.6, "control": 6.5, "prompt": 0.0}


def made_up(changes: dict[str, dict[str, Any]] | None = None) -> dict[str, dict[str, list[float]]]:
    """Numbers with which every part holds, with changes by arm: {name: value or one value a seed}."""
    columns = {**GOOD, **{f"{name}_leave_one_out": value for name, value in LEFT_OUT.items()}, "residual": 1e-16}
    numbers = {arm: {name: [value] * 5 for name, value in columns.items()} for arm in ARMS}
    for arm, values in (changes or {}).items():
        for name, value in values.items():
            numbers[arm][name] = list(value) if isinstance(value, list) else [value] * 5
    return numbers


def judged(changes: dict[str, dict[str, Any]] | None = None) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(changes))
    return verdict, [part.holds for part in parts]


def test_all_parts_hold() -> None:
    assert judged() == ("holds", [True] * 5)


@pytest.mark.parametrize(
    "changes, verdict, parts",
    [
        ({PLAN: {"prompt": [0.1, -0.1, 0.1, -0.1, 0.1]}}, "holds", [True] * 5),
        ({PLAN: {"prompt": [0.1, 0.3, 0.1, 0.3, 0.1]}}, "holds", [True] * 5),  # 1.6 sd
        ({PLAN: {"prompt": 0.01}}, "in part", [False, True, True, True, True]),
        ({PLAN: {"prompt": [0.3, 0.29, 0.31, 0.3, 0.3]}}, "in part", [False, True, True, True, True]),
        ({PLAN: {"control": [3.2, 3.2, 3.2, 3.2, 3.7]}}, "in part", [True, False, True, True, True]),
        ({PLAN: {"residual": 2e-9}}, "in part", [True, True, False, True, True]),
        ({PLAN: {"base_leave_one_out": [5, 5, 5, 5, 7]}}, "in part", [True, True, True, False, True]),
        ({SMALL: {"control": [3.2, 3.2, 3.2, 3.2, 3.7]}}, "refuted", [True, True, True, True, False]),
        # Another ranking that is the same in all seeds is no flip.
        ({SMALL: {"control": 3.7}}, "holds", [True] * 5),
    ],
)
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, parts: list[bool]) -> None:
    assert judged(changes) == (verdict, parts)


def test_the_workflow_is_that_of_the_plan() -> None:
    workflow = Workflow(50)
    assert workflow.artwork.shape == (90, 1, 8, 8)
    noise = Noise(0)
    threes = workflow(frozenset({"base", "adapter"}), noise)
    moved = workflow(frozenset({"base", "adapter", "control"}), noise)
    assert torch.equal(moved[..., 1:], threes[..., :-1])
    assert torch.equal(moved[..., 0], threes[..., -1])
    # The adapter never draws what the artwork was made of.
    unmoved = workflow.artwork.roll(-1, -1).flatten(1)
    assert torch.cdist(threes.flatten(1), unmoved).min() > 0
    assert torch.equal(workflow(frozenset({"prompt"}), noise), workflow(frozenset(), noise))
    blank = workflow(frozenset(), noise)
    tinted = workflow(frozenset({"adapter"}), noise)
    torch.testing.assert_close(tinted, 0.7 * blank + 0.3 * workflow.threes.mean(0))


def test_the_arms_differ_as_they_say() -> None:
    noise, everything = Noise(1), frozenset(COMPONENTS)
    copied = Workflow(30, copied=True)
    assert torch.cdist(copied(everything, noise).flatten(1), copied.artwork.flatten(1)).min(1).values.max() == 0
    edge = Workflow(30, wrap=False)
    assert (edge(everything, noise)[..., 0] == -1).all()
    own = Workflow(30, own_seeds=True)
    assert not torch.equal(own(frozenset(), noise), own(frozenset({"prompt"}), noise))
    other = Workflow(30, drawn=1)
    assert not torch.equal(other.artwork, Workflow(30).artwork)
    assert torch.cdist(other.threes.flatten(1), other.artwork.roll(-1, -1).flatten(1)).min() > 0
    plain, scrambled = Workflow(30).artwork, Workflow(30, scrambled=True).artwork
    assert not torch.equal(plain, scrambled)
    assert torch.equal(plain.flatten().sort().values, scrambled.flatten().sort().values)


def test_one_seed_of_the_plan_gives_the_ranking() -> None:
    run = CLAIM.run(PLAN, 0, "laptop", Memo())
    assert run["prompt"] == 0
    assert run["base"] > run["adapter"] > run["control"] > 1  # type: ignore[operator]
    assert run["control_leave_one_out"] > run["base_leave_one_out"] > run["adapter_leave_one_out"]  # type: ignore[operator]
    assert sum(run[name] or 0 for name in COMPONENTS) == pytest.approx((run["empty"] or 0) - (run["full"] or 0))
    assert run["empty"] == pytest.approx(12.3, abs=0.5)


def test_the_frechet_distance_punishes_diversity_and_the_kernel_distance_does_not() -> None:
    """Two coalitions of the same similarity, one more diverse: the bias of FD sets them apart, KID does not."""
    found = {name: value or 0.0 for name, value in claim._diversity(0, repeats=20).items()}
    assert found["fd_narrow_true"] > found["fd_wide_true"]
    assert found["fd_wide"] - found["fd_narrow"] > 2  # the wrong way round, by far more than the truth is apart
    spread = 0.005 / 20**0.5  # of one KID of 100 images, over 20 repeats
    assert abs(found["kid_wide"] - found["kid_narrow"]) < 3 * spread
    assert abs(found["kid_narrow"] - found["kid_true"]) < 3 * spread


def test_the_smoke_run_measures_every_arm_and_stores_nothing() -> None:
    smoke = measure(CLAIM, scale="smoke", quiet=True)
    assert smoke["stored"] == []
    assert {run["arm"] for run in smoke["runs"]} == set(CLAIM.arms)
    assert len(smoke["findings"]) == 7
    assert len(CLAIM.seeds) == 5
