"""Claim 09: the rule on made-up numbers, and what its arms cost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from scoreline.claims import enhanced_ddpm as claim
from scoreline.claims.engine import BUDGET, Memo, measure
from scoreline.claims.enhanced_ddpm import ARMS, CLAIM, ddim_flow_error
from scoreline.guidance.thresholding import Thresholded

SEEDS = 5


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_up(**changes: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """Numbers with which every part holds, with changes by arm: {name: value or one value a seed}."""
    numbers = {
        arm: {
            "frechet_distance": [10.0] * SEEDS,
            "label_accuracy": [0.9] * SEEDS,
            "seconds_per_image": [0.001 * how.nfe] * SEEDS,
        }
        for arm, how in ARMS.items()
    }
    good = {
        claim.FAST_2: {"label_accuracy": 0.95},
        claim.FAST_4: {"frechet_distance": 10.1},
        claim.EQUAL[1]: {"frechet_distance": 12.0},
    }
    names = {
        "reference": claim.REFERENCE, "fast": claim.FAST, "fast_2": claim.FAST_2, "fast_4": claim.FAST_4,
        "ddim_20": claim.EQUAL[0], "ddpm_20": claim.EQUAL[1],
    }  # fmt: skip
    for arm, values in [*good.items(), *((names[name], values) for name, values in changes.items())]:
        for name, value in values.items():
            numbers[arm][name] = list(value) if isinstance(value, (list, tuple)) else [value] * SEEDS
    return numbers


def judged(**changes: dict[str, Any]) -> tuple[str, list[bool | None]]:
    verdict, parts = CLAIM.verdict(made_up(**changes))
    return verdict, [part.holds for part in parts]


def test_all_parts_hold() -> None:
    assert judged() == ("holds", [True, True, True, True])


@pytest.mark.parametrize(
    "changes, parts",
    [
        # Within 20 % of the distance: 10/12 exactly is within, less is not.
        ({"reference": {"frechet_distance": 10 / 1.2 + 1e-6}}, [True, True, True, True]),
        ({"reference": {"frechet_distance": 10 / 1.2 - 1e-6}}, [False, True, True, True]),
        # At a tenth of the time; a single slow seed moves no median.
        ({"reference": {"seconds_per_image": 0.499}}, [False, True, True, True]),
        ({"reference": {"seconds_per_image": 0.501}}, [True, True, True, True]),
        ({"fast": {"seconds_per_image": [0.05, 0.05, 0.05, 0.05, 9.0]}}, [True, True, True, True]),
        # Four of five seeds are enough, three are not, and a draw is no win.
        ({"ddim_20": {"frechet_distance": [10, 10, 10, 10, 99]}}, [True, True, True, True]),
        ({"ddim_20": {"frechet_distance": [10, 10, 10, 99, 99]}}, [True, False, True, True]),
        ({"ddim_20": {"frechet_distance": 12.0}}, [True, False, True, True]),
        # Guidance of 2: more accuracy at no more than 20 % of distance.
        ({"fast_2": {"label_accuracy": 0.9}}, [True, True, False, True]),
        ({"fast_2": {"frechet_distance": 12.0}}, [True, True, True, True]),
        ({"fast_2": {"frechet_distance": 12.01}}, [True, True, False, True]),
        # Guidance of 4 raises the distance.
        ({"fast_4": {"frechet_distance": 10.0}}, [True, True, True, False]),
    ],
)
def test_each_part_at_its_border(changes: dict[str, dict[str, Any]], parts: list[bool]) -> None:
    assert judged(**changes) == ("holds" if all(parts) else "in part", parts)


def test_refuted_when_no_part_holds() -> None:
    changes = {
        "reference": {"frechet_distance": 5.0},
        "ddpm_20": {"frechet_distance": 9.0},
        "fast_2": {"label_accuracy": 0.8},
        "fast_4": {"frechet_distance": 9.0},
    }
    assert judged(**changes) == ("refuted", [False] * 4)


def test_networks_that_draw_no_digits_tell_nothing() -> None:
    assert judged(reference={"label_accuracy": 0.49}) == ("not seen", [None] * 4)
    assert judged(reference={"label_accuracy": 0.5})[0] == "holds"


def test_three_seeds_must_all_win() -> None:
    numbers = {arm: {name: values[:3] for name, values in columns.items()} for arm, columns in made_up().items()}
    numbers[claim.EQUAL[0]]["frechet_distance"][0] = 99.0
    assert [part.holds for part in CLAIM.verdict(numbers)[1]] == [True, False, True, True]


def test_the_arms_are_those_of_the_plan() -> None:
    for model in ("linear", "cosine", "latent"):
        for sampler, steps in (("ddpm-large", 1000), ("ddpm-small", 100), ("ddpm-small", 50)):
            assert f"{model} {sampler}-{steps} s=1" in CLAIM.arms
        for steps in (50, 20, 10):
            assert f"{model} ddim-{steps} s=1" in CLAIM.arms
    assert sum(arm.startswith("linear") and arm.endswith(("s=2", "s=4")) for arm in CLAIM.arms) == 12
    assert len(CLAIM.seeds) == 5
    assert claim.EQUAL == ("linear ddim-20 s=1", "linear ddpm-small-20 s=1")


@pytest.fixture(scope="module")
def smoke() -> dict[str, Any]:
    return measure(CLAIM, scale="smoke", quiet=True)


def test_the_smoke_run_measures_every_arm_and_stores_nothing(smoke: dict[str, Any]) -> None:
    assert smoke["stored"] == []
    assert {(run["arm"], run["seed"]) for run in smoke["runs"]} == {(arm, 0) for arm in CLAIM.arms}
    assert smoke["verdict"] == "not seen"  # two steps of training draw no digits


def test_guidance_counts_twice_and_budgets_are_equal(smoke: dict[str, Any]) -> None:
    run = {run["arm"]: run for run in smoke["runs"]}
    assert run[claim.FAST_2]["nfe"] == run[claim.FAST_4]["nfe"] == 2 * run[claim.FAST]["nfe"]
    assert len({r[BUDGET] for arm, r in run.items() if not arm.startswith("latent")}) == 1
    # Forward 1 and backward 2, of 128 images a step; the autoencoder comes on top.
    sizes = claim.SIZES["smoke"]
    assert run[claim.FAST][BUDGET] == 3 * 128 * sizes.steps
    assert run["latent ddim-50 s=1"][BUDGET] == 3 * (128 * sizes.steps + 64 * sizes.autoencoder_steps)


def test_arms_of_a_seed_share_a_network_and_seeds_do_not() -> None:
    sizes = claim.SIZES["smoke"]
    first, again, other = (claim._trained("linear", seed, sizes)[0] for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("arm, clipped", [("cosine ddim-50 s=2", True), ("latent ddim-50 s=2", False)])
def test_pixels_are_clipped_and_latents_are_not(arm: str, clipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    genuine = claim._sampled

    def watched(model: Any, *rest: Any) -> Any:
        seen.append(model)
        return genuine(model, *rest)

    monkeypatch.setattr(claim, "_sampled", watched)
    CLAIM.run(arm, 0, "smoke", Memo())
    assert isinstance(seen[0], Thresholded) is clipped
    assert seen[0].evaluations == 2


def test_samples_are_counted_and_labelled_in_equal_shares() -> None:
    model, _ = claim._trained("linear", 0, claim.SIZES["smoke"])
    images, labels, nfe, seconds = claim._sampled(model, ARMS[claim.EQUAL[0]].make(), 0, 20)
    assert images.shape == (20, 1, 8, 8)
    assert labels.bincount().tolist() == [2] * 10
    assert nfe == 20  # the warm-up call is none of the sampler's
    assert seconds > 0


def test_ddim_reaches_the_exact_flow_at_first_order() -> None:
    errors = [ddim_flow_error(steps) for steps in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.07)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.07)
    assert errors[2] < 0.01
