"""The hypothetical classifier: its curves against sampling, its best thresholds, and the study."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import auroc, confusion
from scoreline.metrics.binormal import MODELS, POSITIVES, ROWS, Binormal, simulate, sweep

PI = POSITIVES / ROWS
NOISES = [(0.0, 0.005), (0.3, 0.0), (0.2, 0.01)]


def test_expected_cells_are_those_of_a_large_sample() -> None:
    model = Binormal(2.0, 1.5)
    s, y = model.sample(100_000, 100_000, seed=3)
    tau = torch.tensor([-1.0, 0.5, 2.0])
    for found, expected in zip(confusion(s, y, tau), model.cells(tau, 0.5)):
        assert torch.allclose(found.double() / 200_000, expected, atol=0.003)
    assert auroc(s, y) == pytest.approx(model.auroc, abs=0.003)
    assert model.auroc == pytest.approx(0.5 * math.erfc(-2 / math.sqrt(1 + 1.5**2) / math.sqrt(2)))


@pytest.mark.check(system=27, number=6)
@pytest.mark.parametrize("e1, e0", NOISES)
@pytest.mark.parametrize("criterion", ["mcc", "balanced-accuracy"])
def test_the_best_threshold_of_mcc_and_balanced_accuracy_does_not_move(criterion: str, e1: float, e0: float) -> None:
    model = Binormal()
    assert model.best_threshold(criterion, PI, e1, e0) == pytest.approx(model.best_threshold(criterion, PI), abs=1e-4)


@pytest.mark.check(system=27, number=6)
@pytest.mark.parametrize("e1, e0", NOISES)
def test_the_best_threshold_of_f1_moves(e1: float, e0: float) -> None:
    assert abs(Binormal().best_threshold("f1", PI, e1, e0) - Binormal().best_threshold("f1", PI)) > 0.01


def test_g_mean_drifts_to_far_too_low_thresholds() -> None:
    model = Binormal()
    assert model.best_threshold("g-mean", PI) == pytest.approx(1.55, abs=0.005)
    assert model.best_threshold("g-mean", PI, 0.0, 0.005) == pytest.approx(0.41, abs=0.005)
    assert model.best_threshold("mcc", PI) == pytest.approx(3.58, abs=0.006)


def test_a_best_threshold_is_where_the_derivative_vanishes() -> None:
    # J is largest where both densities are equal.
    model = Binormal()
    tau = model.best_threshold("youden-j", PI)
    assert math.exp(-0.5 * ((tau - 3.5) / 1.5) ** 2) / 1.5 == pytest.approx(math.exp(-0.5 * tau**2), abs=1e-5)


def test_a_sweep_holds_every_combination() -> None:
    found = sweep(Binormal(), [1.0, 2.0], prevalences=[0.5, PI], miss_rates=[0.0, 0.1, 0.2], false_rates=[0.0])
    assert found["f1"].shape == (2, 3, 1, 2)
    single = Binormal().cells(2.0, PI, 0.1, 0.0)
    f1 = 2 * single.tp / (2 * single.tp + single.fp + single.fn)
    assert float(found["f1"][1, 1, 0, 1]) == pytest.approx(float(f1), abs=1e-15)


CRITERIA = {name: name for name in ("accuracy", "f1", "g-mean", "balanced-accuracy", "mcc", "kappa", "f1-then-g-mean")}


def test_without_noise_the_choice_by_f1_loses_no_f1() -> None:
    (found,) = simulate({"f1": "f1"}, miss_rates=[0.0], false_rates=[0.0])
    assert found.f1 == found.worst_f1 == 0.0
    assert found.cost > 0


def test_regret_is_what_the_chosen_threshold_loses_by_hand() -> None:
    pi, e0 = 0.01, 0.01
    model, tau = Binormal(), torch.linspace(8, -4, 241, dtype=torch.float64)
    seen, clean = model.cells(tau, pi, 0.0, e0), model.cells(tau, pi)
    seen_f1, clean_f1 = (2 * c.tp / (2 * c.tp + c.fp + c.fn) for c in (seen, clean))
    cost = 100 * clean.fn + clean.fp
    at = int(seen_f1.argmax())
    grid = {"prevalences": [pi], "miss_rates": [0.0], "false_rates": [e0]}
    (found,) = simulate({"f1": "f1"}, models={"good": model}, **grid)
    assert found.f1 == found.worst_f1 == pytest.approx(float(clean_f1.max() - clean_f1[at]), abs=1e-12)
    # "all" costs 0.99 here, "none" 1
    assert found.cost == pytest.approx(float(cost[at] - cost.min()) / 0.99, abs=1e-12)
    assert found.cost > 0.01


def test_mcc_chooses_the_same_whatever_the_noise() -> None:
    clean = simulate({"mcc": "mcc"}, miss_rates=[0.0], false_rates=[0.0])
    noisy = simulate({"mcc": "mcc"}, miss_rates=[0.3], false_rates=[0.01])
    assert noisy[0].f1 == clean[0].f1
    assert noisy[0].cost == clean[0].cost


def test_the_study_ranks_mcc_first_on_expected_cells() -> None:
    found = simulate(CRITERIA)
    assert found[0].criterion == "mcc"
    assert found[0].worst_f1 < 0.01
    by = {regret.criterion: regret for regret in found}
    assert by["g-mean"].f1 > 0.3 > by["accuracy"].f1 > by["f1"].f1 > by["mcc"].f1


def test_samples_come_near_expected_cells_and_are_seeded() -> None:
    one = {"f1": "f1"}
    grid = {"models": {"good": MODELS["good"]}, "prevalences": [0.1], "miss_rates": [0.1], "false_rates": [0.01]}
    expected = simulate(one, **grid)[0].f1
    assert simulate(one, rows=10_000_000, seed=1, **grid)[0].f1 == pytest.approx(expected, abs=2e-3)
    small = [simulate(one, rows=200, seed=seed, **grid)[0].f1 for seed in (1, 1, 2, 3)]
    assert small[0] == small[1]
    assert len(set(small)) > 1
    assert max(small) > expected


def test_refusals() -> None:
    with pytest.raises(InputError, match="sigma"):
        Binormal(1.0, 0.0)
    with pytest.raises(InputError, match="counts"):
        Binormal().sample(0, 0)
    with pytest.raises(InputError, match="rows"):
        simulate({"f1": "f1"}, rows=0)
    with pytest.raises(InputError, match="at least one"):
        simulate({})
    with pytest.raises(InputError, match="did you mean 'mcc'"):
        simulate({"x": "mc"})
    with pytest.raises(InputError, match="larger width"):
        Binormal().hard_cells(torch.tensor([1.0]), 0.1, 0.9, 0.0, width=0.1)
