"""Claim 32: the rule on made-up numbers, what each arm is, the regression before."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims.dmd2 import ARMS, B_WRONG, C_WRONG, CLAIM, NOISED, SIMULATED, SIZES, A, B, C, D, Scale, fitted
from scoreline.claims.engine import BUDGET, measure
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.schedules import EDM

GOOD = {A: 9.0, B: 5.0, C: 4.0, D: 6.0, B_WRONG: 8.0, C_WRONG: 5.0, SIMULATED: 3.0, NOISED: 4.0}


def judged(changes: dict[str, list[float]]) -> tuple[str, list[bool | None]]:
    numbers = {arm: {"fd": changes.get(arm, [value] * 3), "fd_start": [10.0] * 3} for arm, value in GOOD.items()}
    verdict, parts = CLAIM.verdict(numbers)
    assert len(CLAIM.findings(numbers)) == 2
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, parts", [
    ({}, "holds", [True] * 4),
    ({A: [9.0, 5.1, 4.9]}, "refuted", [False, True, True, True]),
    ({A: [9.0, 9.0, 9.0], B: [5.0, 5.0, 9.1]}, "in part", [False, True, True, True]),
    ({A: [9.0, 5.1, 5.1]}, "refuted", [True] * 4),
    ({A: [4.0] * 3}, "refuted", [False, True, True, True]),
    ({C: [5.0] * 3}, "holds", [True] * 4),
    ({C: [5.0, 5.0, 5.1]}, "in part", [True, False, True, True]),
    ({C_WRONG: [5.0, 5.0, 8.0]}, "in part", [True, True, False, True]),
    ({B_WRONG: [5.1, 8.0, 5.1], C_WRONG: [5.0, 5.0, 5.0]}, "in part", [True, True, False, True]),
    ({SIMULATED: [4.0] * 3}, "in part", [True, True, True, False]),
], ids=["good", "noisy", "one-seed", "within-noise", "worse", "equal", "c", "wrong", "spread", "few"])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, list[float]], verdict: str, parts: list[bool]) -> None:
    assert judged(changes) == (verdict, parts)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == tuple(ARMS)
    assert all(run["fd"] > 1 for run in runs.values())
    assert runs[A]["fd_start"] == runs[B]["fd_start"] == runs[C]["fd_start"] != runs[B_WRONG]["fd_start"]
    assert runs[B][BUDGET] < runs[A][BUDGET]
    assert runs[B][BUDGET] < runs[C][BUDGET]
    # The regression; on each turn critic 3, an image 1, or with its gradient 3 and the critic's answer 1 on two of six.
    assert runs[B][BUDGET] == 128 * (3 * 3 + 6 * 3 + 4 * 1 + 2 * 4)


def test_arms_change_one_thing_each() -> None:
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    exact = Empirical(EDM(), images, smoothing=0.15)
    start = fitted(exact, images, 0, SIZES["smoke"])
    made: dict[str, Any] = {arm: CLAIM.method(given, exact, start) for arm, given in ARMS.items()}
    assert [made[arm].updates[0].every for arm in (A, B, C, D)] == [1, 5, 5, 5]
    assert [made[arm].discriminator is not None for arm in ARMS] == [
        False,
        False,
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert made[C].discriminator.trunk.model is made[C].critic
    assert made[C].gan_weight == pytest.approx(0.576)
    assert made[C].critic_gan_weight == pytest.approx(1.92)
    assert [made[arm].matching_weight for arm in (B, C, D)] == [1.0, 1.0, 0.0]
    assert [(made[arm].made_for, made[arm].simulate) for arm in (SIMULATED, NOISED)] == [((2,), True), ((2,), False)]
    weights = [p for m in made.values() for net in (m.student.net, m.critic.net) for p in net.parameters()]
    assert len({id(p) for p in weights}) == len(weights)  # no arm shares weights with another, nor with the start
    assert torch.equal(made[A].student.net.output.weight, start.net.output.weight)


def test_the_start_is_fitted_to_the_teacher() -> None:
    images = torch.rand(20, 1, 8, 8) * 2 - 1
    exact = Empirical(EDM(), images, smoothing=0.15)
    errors = []
    for steps in (0, 60):
        model = fitted(exact, images, 0, Scale(turns=1, start=steps, count=1, width=32))
        t = torch.full((20,), 2.0, dtype=torch.float64)
        x_t = images + 2.0 * Noise(0).at(range(20), (1, 8, 8)).normal()
        errors.append(float((model(x_t, t).mean - exact(x_t, t).mean).square().mean().detach()))
    assert errors[1] < 0.6 * errors[0]
