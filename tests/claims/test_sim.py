"""Claim 20: the rule on made-up numbers, the arms, and the smoke run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, Memo, measure
from scoreline.claims.sim import ARMS, CLAIM, HUBER, KL, NORMALISED, SIZES, SQUARED, IntegralKL, _method, first_below
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.matching import Matched
from scoreline.fewstep.sid import SiD
from scoreline.fewstep.sim import SIM
from scoreline.nn.mlp import MLP

CURVES = {HUBER: (7.0, 2.0, 0.5), SQUARED: (7.0, 4.0, 1.0), NORMALISED: (7.0, 3.0, 0.8), KL: (7.0, 6.0, 5.0)}


def judged(curves: dict[str, Any] | None = None, **diverged: list[float]) -> tuple[str, list[bool | None]]:
    """Verdict on three seeds; curves by arm, or three of them, and seeds diverged at the high rate."""
    numbers: dict[str, dict[str, list[float | None]]] = {}
    for arm, curve in (CURVES | (curves or {})).items():
        seeds = curve if isinstance(curve, list) else [curve] * 3
        numbers[arm] = {f"fd_{50 * k}": [c[k] for c in seeds] for k in range(3)}
        numbers[arm]["mean"] = [None if None in c else sum(c) / 3 for c in seeds]
        numbers[arm] |= {"last": [c[2] for c in seeds], "last_fast": [None, 1.0, 2.0]}
        numbers[arm]["diverged_fast"] = [0.0, 0.0, 1.0]
    for name, values in diverged.items():
        numbers[{"huber": HUBER, "squared": SQUARED, "normalised": NORMALISED}[name]]["diverged_fast"] = list(values)
    verdict, parts = CLAIM.verdict(numbers)
    assert len(CLAIM.findings(numbers)) == 3
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("curves, diverged, verdict, parts", [
    ({}, {}, "holds", [True] * 4),
    ({SQUARED: (7.0, 1.4, 1.0)}, {}, "in part", [False, True, True, True]),
    ({NORMALISED: (7.0, 2.0, 0.5)}, {}, "refuted", [True] * 4),
    ({NORMALISED: [(7.0, 1.4, 1.0)] * 2 + [(7.0, 5.0, 5.0)]}, {}, "in part", [True, False, True, True]),
    ({NORMALISED: [(7.0, 1.4, 1.0)] * 3}, {}, "refuted", [True, False, True, True]),
    ({HUBER: (7.0, None, None)}, {}, "refuted", [False, False, True, True]),
    ({}, {"huber": [1.0, 1.0, 0.0]}, "in part", [True, True, False, False]),
    ({}, {"huber": [0.0, 0.0, 0.0]}, "holds", [True] * 4),
    ({}, {"squared": [0.0, 0.0, 0.0]}, "in part", [True, True, False, True]),
    (dict.fromkeys(CURVES, (9.0, 8.0, 7.0)) | {HUBER: (9.0, 8.0, 6.5)}, {}, "in part", [None, None, True, True]),
], ids=["good", "squared", "tie", "one", "refuted", "lost", "diverges", "stable", "calm", "far"])  # fmt: skip
def test_each_part_at_its_border(curves: Any, diverged: Any, verdict: str, parts: list[bool]) -> None:
    assert judged(curves, **diverged) == (verdict, parts)


def test_a_level_is_reached_at_the_first_score_at_or_below_it() -> None:
    assert first_below({0: 7.0, 50: 3.0, 100: 3.5}, 3.0) == 50
    assert first_below({0: 7.0}, 1.0) == math.inf


def test_the_arms_differ_in_their_loss_alone() -> None:
    torch.manual_seed(0)
    fitted = Preconditioned(MLP(in_shape=(3,), width=8, depth=1), EDM(), sigma_data=0.75)
    made = {arm: _method(arm, fitted, Gaussian(EDM(), torch.zeros(3), 0.2), 0.1) for arm in ARMS}
    assert [type(m) for m in made.values()] == [SIM, SIM, SiD, IntegralKL]
    x, real, fake = torch.randn(3, 4, 3).unbind(0)
    m = Matched(x.clone().requires_grad_(), x, torch.ones(4), x, real, fake)
    gradient = {arm: torch.autograd.grad(method.term(m), m.x)[0] for arm, method in made.items()}
    gap = fake - real
    assert torch.allclose(gradient[KL], gap / 12)
    assert torch.allclose(gradient[SQUARED], 2 * gap / 4)
    assert torch.allclose(gradient[HUBER], gap / (gap.square().sum(1, keepdim=True) + 1e-4).sqrt() / 4)
    assert torch.allclose(gradient[NORMALISED], 100 * gap / (x - real).abs().mean(1, keepdim=True) / 4)
    for method in made.values():
        assert method.start_levels == [2.5]
        assert {update.lr for update in method.updates} == {0.1}
        assert torch.equal(method.critic.net.output.weight, method.student.net.output.weight)


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == ARMS
    assert all(run["fd_0"] == runs[HUBER]["fd_0"] for run in runs.values())
    assert runs[KL][BUDGET] < runs[HUBER][BUDGET] == runs[NORMALISED][BUDGET]
    assert {"fd_2", "fd_4", "last_fast"} <= set(runs[HUBER])


def test_a_training_that_blows_up_is_counted_as_diverged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scoreline.claims.sim.LR", 1e30)
    out = CLAIM.run(SQUARED, 0, "smoke", Memo())
    assert (out["diverged"], out["diverged_fast"], out["last"], out["mean"]) == (1.0, 1.0, None, None)
    assert out[f"fd_{SIZES['smoke'].steps}"] is None
