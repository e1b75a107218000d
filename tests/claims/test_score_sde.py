"""Claim 15: the rule on made-up numbers, and what its arms do."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from scoreline.claims import score_sde as claim
from scoreline.claims.engine import BUDGET, measure
from scoreline.claims.score_sde import CLAIM, CorrelatedPairs
from scoreline.core.noise import Noise
from scoreline.data import load_images
from scoreline.diffusion.likelihood import log_likelihood
from scoreline.diffusion.schedules import VP
from scoreline.samplers.score_sde import PC, ReverseDiffusion

SEEDS = 3


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def word(arm: str) -> str:
    """An arm's name as a Python name."""
    return re.sub(r"\W", "_", arm)


def made_up(**changes: Any) -> dict[str, dict[str, list[Any]]]:
    """Numbers with which every part holds; changes as arm__name=value or one value a seed, blanks and = as _."""
    numbers: dict[str, dict[str, Any]] = {arm: {} for arm in CLAIM.arms}
    for arm, columns in numbers.items():
        kind = arm[0]
        if kind == "a":
            columns |= {"error": 0.001, "bias": 0.5, "ratio": 4.0 if arm.endswith("mixture") else None}
        elif kind == "b":
            columns |= {"bits": [3.0, 3.1, 3.2] if arm == "b vp" else [2.9, 3.01, 3.1], "largest_bits": [4.0, 4.5, 4.1]}
        elif kind == "c":
            columns |= {"frechet_distance": 5.0 if "PC" in arm else 6.0, "noise_distance": 50.0}
        else:
            steps, corrections = (int(word[2:]) for word in arm.split()[1:])
            columns |= {"offset": -0.5 / math.sqrt(steps) / (1 + corrections), "standard_error": 0.01}
    for key, value in changes.items():
        arm, name = key.split("__")
        matching = [a for a in numbers if word(a) == arm]
        assert len(matching) == 1, key
        numbers[matching[0]][name] = value
    return {
        arm: {name: value if isinstance(value, list) else [value] * SEEDS for name, value in columns.items()}
        for arm, columns in numbers.items()
    }


def judged(**changes: Any) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(**changes))
    return verdict, [part.holds for part in parts]


def test_all_parts_hold() -> None:
    assert judged() == ("holds", [True] * 7)


@pytest.mark.parametrize(
    "changes, part, holds",
    [
        ({"a_ve_mixture__error": [0.001, -0.011, 0.0]}, 0, False),
        ({"a_ve_mixture__error": -0.0099}, 0, True),
        ({"a_vp_mixture__bias": -4.1}, 1, False),
        ({"a_vp_mixture__ratio": 2.9}, 1, False),
        ({"a_vp_mixture__ratio": 5.1}, 1, False),
        ({"b_subvp__bits": [3.0, 3.1, 3.2]}, 2, None),
        ({"b_subvp__bits": [2.0, 3.3, 3.2]}, 2, None),
        ({"b_subvp__bits": [3.1, 3.21, 3.3]}, 2, False),
        ({"c_C_N_200__frechet_distance": 5.0}, 3, False),
        ({"c_C_N_200__frechet_distance": 5.1}, 3, True),
        ({"c_P_N_500__frechet_distance": 4.9}, 4, False),
        # The better of the two snr counts.
        ({"c_PC_0_16_N_50__frechet_distance": 9.0}, 4, True),
        ({"d_N_20_n_0__offset": 0.02, "d_N_20_n_2__offset": 0.01}, 5, False),
        ({"d_N_400_n_0__offset": 0.2}, 5, False),
        ({"d_N_20_n_2__offset": 0.2}, 6, False),
        ({"d_N_20_n_2__offset": -0.1}, 6, True),
    ],
)
def test_each_part_at_its_border(changes: dict[str, Any], part: int, holds: bool | None) -> None:
    found = judged(**changes)[1]
    assert found[part] is holds
    assert all(v is True for i, v in enumerate(found) if i != part)


def test_samples_that_are_no_digits_tell_nothing() -> None:
    changes = {f"{word(arm)}__noise_distance": 1.0 for arm in claim._C}
    assert judged(**changes)[1][3:5] == [None, None]


def test_one_seed_has_no_interval() -> None:
    numbers = {arm: {name: values[:1] for name, values in columns.items()} for arm, columns in made_up().items()}
    assert CLAIM.verdict(numbers)[1][2].holds is None


def test_arms_of_a_length_spend_the_same() -> None:
    for n in claim.LENGTHS:
        costs = {}
        for kind in ("P", "PC-0.08", "PC-0.16", "C"):
            sampler = claim._sampler(kind, n)
            costs[kind] = sampler.cost(sampler.plan())
        assert costs["P"] == costs["PC-0.08"] == costs["PC-0.16"] == 2 * n
        assert costs["C"] == 2 * n + 1
    assert isinstance(claim._sampler("P", 5), ReverseDiffusion)
    found = claim._sampler("PC-0.08", 5)
    assert isinstance(found, PC)
    assert found.snr == 0.08


def test_correlated_pairs_are_a_gaussian() -> None:
    """E[x_0|x_t] = alpha S (alpha^2 S + sigma^2)^-1 x_t, with the 2 x 2 matrices written out."""
    model, t = CorrelatedPairs(VP(), 0.8), 0.4
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    S = torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64)
    x = torch.randn(3, 2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = alpha * S @ torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(2, dtype=torch.float64)) @ x
    assert torch.allclose(model(x, t).mean, wanted)


@pytest.mark.parametrize("sde", ["vp", "subvp"])
def test_an_image_unlike_all_others_stays_within_the_reach_of_the_prior(sde: str) -> None:
    """One test image with ink in a corner had latents of mean square 2e7, and with them the mean bits/dim of an arm."""
    sizes = replace(claim.SIZES["smoke"], width=32, depth=2, steps=100)
    model = claim._trained(sde, 0, sizes)
    batch = load_images("digits", split="test").batch([174, 160, 0])
    # Ten times the contrast: farther out than any image.
    solved = log_likelihood(model, 10 * batch.image, draws=Noise(0).at(batch.index, model.shape), rtol=1e-3)
    assert float(solved.latents.flatten(1).square().mean(1).max()) < 3


def test_findings_name_the_worst_image() -> None:
    assert CLAIM.findings(made_up())[-1] == "Largest bits/dim of any test image: vp 4.5, subvp 4.5."


def test_the_smoke_run_measures_every_arm_and_stores_nothing() -> None:
    result = measure(CLAIM, scale="smoke", quiet=True)
    assert result["stored"] == []
    assert {(run["arm"], run["seed"]) for run in result["runs"]} == {(arm, 0) for arm in CLAIM.arms}
    runs = {run["arm"]: run for run in result["runs"]}
    assert runs["b vp"][BUDGET] == runs["b subvp"][BUDGET] == runs["c P N=50"][BUDGET] == 3 * 128 * 2
    assert runs["a ve gaussian"][BUDGET] == 0
    assert runs["a ve gaussian"]["ratio"] is None
    assert abs(runs["a vp mixture"]["error"]) < 0.01
    # Equal noise for both SDEs of (b), so that their difference is the model's.
    assert runs["b vp"]["bits"] != runs["b subvp"]["bits"]
