"""Claim 08: the rule on made-up numbers, what its arms cost, and its measures."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scoreline.claims import denoising_mcmc as claim
from scoreline.claims.denoising_mcmc import ARMS, BUDGETS, CHAIN, CLAIM, ETAS, Arm, lag_one
from scoreline.claims.engine import BUDGET, Memo
from scoreline.samplers.denoising_mcmc import DenoisingMCMC


def made_up(share: dict[int, float], **changes: Any) -> dict[str, dict[str, list[float]]]:
    """KAR1 at 10 everywhere, the best eta at `share` of it, the others at the same distance as KAR1."""
    numbers: dict[str, dict[str, list[float]]] = {}
    for name, arm in ARMS.items():
        distance = 10.0 * share[arm.budget] if arm.eta == 0.1 else 10.0
        numbers[name] = {"frechet_distance": [distance] * 3}
    for name, values in changes.items():
        numbers[name.replace("__", " ").replace("eta_", "eta=")]["frechet_distance"] = values
    return numbers


GOOD = {5: 0.2, 7: 0.3, 9: 0.5, 13: 0.9, 19: 1.1}


@pytest.mark.parametrize(
    ("share", "wanted"),
    [
        ({}, ("holds", [True, True])),
        ({9: 0.51}, ("in part", [False, True])),
        ({5: 0.6}, ("in part", [False, True])),
        ({13: 0.5}, ("in part", [True, False])),
        ({19: 0.4}, ("in part", [True, False])),
        ({5: 0.9, 13: 0.3}, ("refuted", [False, False])),
        ({5: 1.2, 7: 1.1, 9: 1.0}, ("refuted", [False, True])),
        ({5: 1.2, 7: 1.1, 9: 0.99}, ("in part", [False, True])),
    ],
)
def test_the_rule(share: dict[int, float], wanted: tuple[str, list[bool]]) -> None:
    verdict, parts = CLAIM.verdict(made_up({**GOOD, **share}))
    assert (verdict, [part.holds for part in parts]) == wanted


def test_a_gain_must_be_seen_in_every_seed() -> None:
    numbers = made_up(GOOD)
    numbers["dlg 7 eta=0.1"]["frechet_distance"] = [1.0, 1.0, 10.5]
    assert CLAIM.verdict(numbers)[1][0].holds is False
    numbers["dlg 7 eta=0.1"]["frechet_distance"] = [1.0, 1.0, 9.5]
    assert CLAIM.verdict(numbers)[1][0].holds is True


@pytest.mark.parametrize("budget", BUDGETS)
def test_arms_of_a_budget_cost_it_all_counted(budget: int) -> None:
    sizes = claim.SIZES["laptop"]
    assert sizes.emissions >= 50
    for eta in ETAS:
        sampler = claim._sampler(Arm(budget, eta), sizes)
        assert isinstance(sampler, DenoisingMCMC)
        N, n_skip = CHAIN[budget]
        assert sampler.startup() == 47
        assert sampler.cost(N - 1) == budget
        assert 2 * (N - 1) - 1 + n_skip + 1 + 47 / sizes.emissions <= budget
    assert claim.ONE_STEP.chain == (2, 6)
    assert claim._sampler(claim.ONE_STEP, sizes).cost(1) == 9
    plain = CLAIM.run(f"kar1 {budget}", 0, "smoke", Memo())
    assert plain["nfe"] == budget


def test_a_run_counts_and_reports_what_it_should() -> None:
    memo = Memo()
    out = CLAIM.run("dlg 7 eta=0.1", 0, "smoke", memo)
    assert out[BUDGET] == 0
    assert out["nfe_startup"] == pytest.approx(47 / 3)
    assert out["nfe"] == pytest.approx(1 + 4 + 1 + 47 / 3)
    assert out["nfe_without_startup_and_tweedie"] == pytest.approx(5)
    world = memo("world", claim._world)
    assert world.levels.table[0] == pytest.approx(40.0)
    assert float(world.model.variances[0]) == pytest.approx(4 * 0.003)
    # The data's own points are at no distance but the smoothing.
    assert torch.allclose(world.covariance - claim.VARIANCE * torch.eye(64, dtype=torch.float64), _cov(world))


def _cov(world: claim.World) -> torch.Tensor:
    pixels = (0.5 * (world.model.means + 1)).double()
    return (pixels - pixels.mean(0)).T @ (pixels - pixels.mean(0)) / len(pixels)


def test_findings_are_sentences_about_all_arms() -> None:
    numbers = made_up(GOOD)
    for name, arm in ARMS.items():
        more = ["distinct_images", "class_distance"]
        if arm.eta is not None:
            more += ["nfe_without_startup_and_tweedie", "nfe_startup", "lag_one_correlation"]
            more += ["level_first_third", "level_last_third"]
        numbers[name] |= {key: [0.25] * 3 for key in more}
    found = CLAIM.findings(numbers)
    assert len(found) == 6
    assert all("nan" not in text and text.endswith(".") for text in found)


def test_correlation_of_successive_emissions() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(400, 30, 2, generator=g)
    x = [z[0]]
    for step in z[1:]:
        x.append(0.6 * x[-1] + 0.8 * step)
    assert lag_one(torch.stack(x)) == pytest.approx(0.6, abs=0.03)
    assert lag_one(z) == pytest.approx(0.0, abs=0.03)
