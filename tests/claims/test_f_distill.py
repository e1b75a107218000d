"""Claim 21: the rule on made-up numbers, the line, the coverage, the ratio of two kernel densities."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from scoreline.claims.engine import BUDGET, Memo, measure
from scoreline.claims.f_distill import (
    ARMS,
    CLAIM,
    DIGITS,
    LINE,
    SIZES,
    KernelRatio,
    class_entropy,
    line_divergence,
    minimised,
)
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.fewstep.mean_map import mean_map
from scoreline.nn.mlp import MLP

MODE = (-2.0, 0.5, 0.0)
GOOD: dict[str, list[tuple[float, ...]]] = {arm: [MODE] * 3 for arm in LINE[:4]}
GOOD |= {LINE[4]: [(-1.5, 1.2, 0.1)] * 3, LINE[5]: [(-0.8, 1.9, 0.337)] * 3}
GOOD |= {DIGITS[0]: [(1.6, 0.1, 4.0), (1.7, 0.1, 5.0), (1.65, 0.1, 4.5)]}
GOOD |= {arm: [(2.0, 0.4, 4.0), (2.1, 0.4, 4.5), (2.05, 0.4, 4.2)] for arm in DIGITS[1:]}


def judged(**changes: list[tuple[float, ...]]) -> tuple[str, list[bool | None]]:
    """With numbers that hold, but for those of `a0` ... `a9`, arms by their number."""
    rows = {arm: changes.get(f"a{k}", GOOD[arm]) for k, arm in enumerate(ARMS)}
    names: dict[str, tuple[str, ...]] = {
        arm: ("mean", "std", "right") if arm in LINE else ("entropy", "new", "fd") for arm in ARMS
    }
    numbers = {arm: dict(zip(names[arm], map(list, zip(*rows[arm])))) for arm in ARMS}
    for arm in LINE:
        numbers[arm] |= {"divergence": [0.4] * 3, "at the mode": [0.2] * 3}
    verdict, parts = CLAIM.verdict(numbers)
    assert CLAIM.findings(numbers)
    return verdict, [part.holds for part in parts]


@pytest.mark.parametrize("changes, verdict, wrong", [
    ({}, "holds", []),
    ({"a5": [(-0.8, 1.9, 0.337)] * 2 + [(-0.69, 1.9, 0.337)]}, "in part", [0]),
    ({"a5": [(-0.8, 1.79, 0.337)] * 3}, "in part", [0]),
    ({"a5": [(-0.8, 1.9, 0.41)] * 3}, "in part", [0]),
    ({"a2": [MODE, MODE, (-1.84, 0.5, 0.0)]}, "in part", [1]),
    ({"a3": [(-2.0, 0.66, 0.0)] * 3}, "in part", [1]),
    ({"a1": [(-2.0, 0.5, 0.02)] * 3}, "in part", [1]),
    ({"a4": [(-0.7, 1.2, 0.1)] * 3}, "in part", [2]),
    ({"a4": [(-1.5, 2.0, 0.1)] * 3}, "in part", [2]),
    ({"a7": [(1.59, 0.4, 4.0), (2.1, 0.4, 4.0), (2.05, 0.4, 4.0)]}, "in part", [3]),
    ({"a7": [(2.0, 0.4, 5.1), (2.1, 0.4, 5.1), (2.05, 0.4, 5.1)]}, "in part", [4]),
    ({"a7": [(2.0, 0.4, 4.9), (2.1, 0.4, 4.9), (2.05, 0.4, 4.9)]}, "holds", []),
    ({"a8": [(1.6, 0.4, 4.0), (2.1, 0.4, 4.0), (2.05, 0.4, 4.0)]}, "in part", [5]),
    ({"a8": [(2.0, 0.4, 9.0), (2.1, 0.4, 4.0), (2.05, 0.4, 4.0)]}, "in part", [6]),
    ({"a7": [(1.64, 0.4, 4.0), (1.74, 0.4, 4.0), (1.69, 0.4, 4.0)],
      "a8": [(1.5, 0.4, 4.0)] * 3}, "refuted", [5]),
], ids=["good", "mean", "std", "right", "js", "sh", "sf", "jf-mean", "jf-std", "one-seed", "js-fd", "fd-border",
        "kl-seed", "kl-fd", "agree"])  # fmt: skip
def test_each_part_at_its_border(changes: dict[str, Any], verdict: str, wrong: list[int]) -> None:
    assert judged(**changes) == (verdict, [k not in wrong for k in range(7)])


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert tuple(runs) == ARMS
    assert len({runs[arm][BUDGET] for arm in DIGITS}) == 1
    assert all(0 <= runs[arm]["entropy"] <= math.log(10) for arm in DIGITS)


def test_on_the_line_forward_kl_keeps_its_width_and_reverse_kl_does_not() -> None:
    (m, s), (n, u) = (minimised(name, 0, 150) for name in ("kl", "rkl"))
    assert n < m < -0.3
    assert u < 1.5 < s
    assert minimised("kl", 0, 20) != minimised("kl", 1, 20)


def test_divergences_on_the_line() -> None:
    """Jensen-Shannon has two minima: one mode, and both; the start lies above the second of them."""
    mode, both, start = (line_divergence("js", m, s) for m, s in ((-2, 0.5004), (-0.849, 1.857), (0, 2)))
    # 2 JS with its natural logarithms is r ln r - (r+1) ln((r+1)/2) under q.
    assert (mode, both) == (pytest.approx(0.2345, abs=1e-3), pytest.approx(0.4021, abs=1e-3))
    assert mode < both < start
    assert line_divergence("kl", -0.8, 1.9) == pytest.approx(0.7242, abs=1e-3)


def test_entropy_and_the_new_digits() -> None:
    images, labels = torch.arange(30.0)[:, None], torch.arange(30) // 3
    found, share = class_entropy(images, labels, images)
    assert found == pytest.approx(math.log(10))
    assert share == 0.5
    assert class_entropy(images, labels, images[:3]) == (0, 0)


def test_the_ratio_of_kernel_densities() -> None:
    schedule, data = EDM(), torch.randn(7, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    teacher = Empirical(schedule, data, smoothing=0.3)
    torch.manual_seed(0)
    student = mean_map(None, Preconditioned(MLP(in_shape=(1, 2, 2), width=8, depth=1), schedule))
    judge = KernelRatio(teacher, student, 5)
    made = student.answer(judge.noise * 80, 80.0).detach()
    x, t = torch.randn(4, 1, 2, 2), torch.tensor([0.1, 0.5, 1.0, 2.0])
    expected = teacher.log_density(x, t) - Empirical(schedule, made, smoothing=0.3).log_density(x, t)
    torch.testing.assert_close(judge(x, t)[:, 0], expected, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(judge(x, t)[:, 0], expected, rtol=1e-4, atol=1e-4)
    judge.refresh()
    assert not torch.allclose(judge(x, t)[:, 0], expected, rtol=1e-2)


def test_arms_start_alike_and_differ_in_the_weight() -> None:
    sizes, memo = SIZES["smoke"], Memo()
    CLAIM.run(DIGITS[0], 0, "smoke", memo)
    teacher: Any = memo("teacher", dict)
    begun: Any = memo("start", dict)
    methods = [CLAIM.method(arm.partition(": ")[2], teacher, copy.deepcopy(begun), sizes) for arm in DIGITS]
    assert [m.divergence for m in methods] == ["rkl", "js", "kl", "js"]
    assert [isinstance(m.discriminator, KernelRatio) for m in methods] == [False, False, False, True]
    weights = [[p for part in (m.student, m.critic) for p in part.parameters()] for m in methods]
    assert all(torch.equal(a, b) for other in weights[1:] for a, b in zip(weights[0], other))
