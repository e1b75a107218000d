"""Claim 19: the rule on made-up numbers, and what it measures with."""

from __future__ import annotations

import pytest
import torch

from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.rfpp import ARMS, BATCH, CLAIM, COUNTS, NFE, SIZES, TIMES, loss_at, teacher_pairs
from scoreline.data import load_images
from scoreline.diffusion.closed_form import Empirical
from scoreline.diffusion.schedules import Flow
from scoreline.samplers.straight import RULES


@pytest.mark.parametrize("arm, name, values, verdict, parts", [
    ("u", "paired_new_1", [0.9] * 3, "holds", [True, True, True]),
    ("u", "paired_new_1", [0.9, 0.94, 0.99], "holds", [True, True, True]),
    ("u", "paired_new_1", [0.9, 0.9, 1.01], "in part", [False, True, True]),
    ("u", "paired_new_1", [0.951] * 3, "in part", [False, True, True]),
    ("u", "paired_new_1", [1.0] * 3, "refuted", [False, True, True]),
    ("u", "paired_new_1", [0.5, 1.01, 1.02], "refuted", [False, True, True]),
    ("uniform", "loss_0.02", [0.9] * 3, "in part", [True, False, True]),
    ("uniform", "loss_0.98", [1.0] * 3, "in part", [True, False, True]),
    ("u", "paired_new_3", [1.0] * 3, "in part", [True, True, False]),
    ("u", "paired_default_4", [0.98] * 3, "in part", [True, True, False]),
])  # fmt: skip
def test_each_part_at_its_border(arm: str, name: str, values: list[float], verdict: str, parts: list[bool]) -> None:
    numbers = numbers_with({"u": "u-shaped"}.get(arm, arm), name, values)
    found, judged_parts = CLAIM.verdict(numbers)
    assert CLAIM.findings(numbers)
    assert (found, [part.holds for part in judged_parts]) == (verdict, parts)


def numbers_with(arm: str, name: str, values: list[float]) -> dict[str, dict[str, list[float]]]:
    base = {f"{kind}_{rule}_{n}": [1.0] * 3 for kind in ("paired", "frechet") for rule in RULES for n in COUNTS}
    base |= {f"loss_{t:g}": [1.0 if 0.05 < t < 0.95 else 2.0] * 3 for t in TIMES}
    numbers = {each: dict(base) for each in ARMS}
    numbers["u-shaped"] |= {"paired_new_1": [0.9] * 3, "paired_new_3": [0.99] * 3, "paired_new_4": [0.99] * 3}
    numbers[arm][name] = values
    return numbers


def test_the_smoke_run_measures_every_arm() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    runs = {run["arm"]: run for run in result["runs"]}
    assert set(runs) == set(ARMS)
    sizes = SIZES["smoke"]
    spent = NFE * (sizes.pairs + sizes.held + sizes.samples) + 3 * BATCH * sizes.updates
    for run in runs.values():
        assert run[BUDGET] == spent
    assert len({run["paired_new_1"] for run in runs.values()}) == len(ARMS)
    one = runs["uniform"]
    for n in (1, 2):  # the rules are one up to there
        assert one[f"paired_new_{n}"] == pytest.approx(one[f"paired_default_{n}"], rel=1e-5)
    assert one["paired_new_4"] != pytest.approx(one["paired_default_4"], rel=1e-5)


def test_pairs_belong_together() -> None:
    sizes = SIZES["smoke"]
    pairs, held, images = teacher_pairs(sizes)
    assert (len(pairs), len(held), len(images)) == (sizes.pairs, sizes.held, sizes.samples)
    data = load_images("digits", split="train").batch(torch.arange(sizes.images)).image
    nearest = (held.image[:, None] - data).flatten(2).norm(dim=2).min(1).values
    assert nearest.max() < 0.05 * 8 * 1.5
    # a flow that is known exactly has the least loss of all on independent couplings, and some on these pairs
    exact = Empirical(Flow(), data, smoothing=0.05)
    assert loss_at(exact, held, 0.02) < loss_at(exact, held, 0.98)
