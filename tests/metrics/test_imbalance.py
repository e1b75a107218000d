"""Metrics of a confusion matrix: identities, scikit-learn, and what imbalance does to each."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as peer

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import Cells
from scoreline.metrics.imbalance import (
    FACTS,
    METRICS,
    cell_metrics,
    f1,
    f_beta,
    fpr,
    g_mean,
    jaccard,
    kappa,
    mcc,
    single_point_auroc,
)
from scoreline.metrics.label_noise import noisy_cells

PI = 492 / 284807
COUNTS = st.tuples(*[st.integers(1, 10**6)] * 4)


def of(cells: tuple[float, ...]) -> dict[str, float]:
    return {name: float(value) for name, value in cell_metrics(cells).items()}


@pytest.mark.check(system=27, number=1)
def test_the_worked_example() -> None:
    found = of((400, 100, 92, 284215))
    expected = {
        "precision": 0.8, "recall": 0.813008, "f1": 0.806452, "youden-j": 0.812656,
        "accuracy": (400 + 284215) / 284807, "g-mean": math.sqrt(400 / 492 * 284215 / 284315),
        "g-measure": math.sqrt(0.8 * 400 / 492), "jaccard": 400 / 592,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.check(system=27, number=2)
@given(COUNTS)
def test_identities(cells: tuple[int, ...]) -> None:
    tp, fp, fn, _ = cells
    m = of(cells)
    p, r = m["precision"], m["recall"]
    assert m["f1"] == pytest.approx(2 * p * r / (p + r), rel=1e-12)
    assert m["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn), rel=1e-12)
    assert m["jaccard"] == pytest.approx(m["f1"] / (2 - m["f1"]), rel=1e-12)
    assert float(single_point_auroc(Cells(*cells), 0.0)) == pytest.approx(m["balanced-accuracy"], abs=1e-15)
    assert m["mcc"] ** 2 == pytest.approx(m["youden-j"] * m["markedness"], rel=1e-6, abs=1e-13)
    if abs(m["mcc"]) > 1e-6:
        assert math.copysign(1, m["mcc"]) == math.copysign(1, m["youden-j"]) == math.copysign(1, m["markedness"])


@pytest.mark.parametrize(
    "cells",
    [(3, 2, 1, 9), (0, 0, 4, 9), (0, 3, 4, 0), (5, 0, 0, 7), (0, 5, 0, 7), (5, 0, 3, 0), (2, 3, 0, 0), (1, 30, 2, 300)],
)
def test_scikit_learn_agrees_where_it_has_the_metric(cells: tuple[int, ...]) -> None:
    tp, fp, fn, tn = cells
    y = [1] * tp + [0] * fp + [1] * fn + [0] * tn
    d = [1] * (tp + fp) + [0] * (fn + tn)
    m = of(cells)
    assert m["accuracy"] == pytest.approx(peer.accuracy_score(y, d))
    for name, value in (
        ("precision", peer.precision_score(y, d, zero_division=0)),
        ("recall", peer.recall_score(y, d, zero_division=0)),
        ("specificity", peer.recall_score(y, d, pos_label=0, zero_division=0)),
        ("npv", peer.precision_score(y, d, pos_label=0, zero_division=0)),
        ("f1", peer.f1_score(y, d, zero_division=0)),
        ("f2", peer.fbeta_score(y, d, beta=2, zero_division=0)),
        ("f0.5", peer.fbeta_score(y, d, beta=0.5, zero_division=0)),
        ("jaccard", peer.jaccard_score(y, d, zero_division=0)),
        ("mcc", peer.matthews_corrcoef(y, d)),
    ):
        assert m[name] == pytest.approx(value, abs=1e-12), name
    both = len(set(y)) == 2 or len(set(d)) == 2
    if both:  # with a single class throughout, scikit-learn's kappa is NaN
        assert m["kappa"] == pytest.approx(peer.cohen_kappa_score(y, d), abs=1e-12)


def test_kappa_is_agreement_beyond_chance() -> None:
    tp, fp, fn, tn = 30.0, 5.0, 10.0, 55.0
    observed, expected = 0.85, (35 * 40 + 65 * 60) / 100**2
    assert float(kappa(Cells(*map(torch.tensor, (tp, fp, fn, tn))), 0.0)) == pytest.approx(
        (observed - expected) / (1 - expected)
    )


@pytest.mark.check(system=27, number=7)
def test_what_a_prevalence_moves_and_what_it_does_not() -> None:
    pi = torch.tensor([0.5, 0.1, 0.01, PI, 1e-4], dtype=torch.float64)
    t, f = 0.83, 0.004
    m = cell_metrics(noisy_cells(pi, t, f))
    for name in ("recall", "specificity", "g-mean", "youden-j", "balanced-accuracy"):
        assert float(m[name].max() - m[name].min()) <= 1e-15, name
        assert FACTS[name].prevalence == "value"
    assert torch.allclose(m["precision"], t * pi / (t * pi + f * (1 - pi)), rtol=1e-14)
    for name in ("precision", "f1", "mcc", "kappa", "accuracy"):
        assert float(m[name].max() - m[name].min()) > 1e-3, name


def test_the_two_orders_are_opposite() -> None:
    first, second = (of(noisy_cells(PI, t, f)) for t, f in ((0.9, 0.01), (0.6, 0.0001)))
    for m, values in ((first, (0.234, 0.944, 0.346)), (second, (0.724, 0.775, 0.739))):
        assert [round(m[name], 3) for name in ("f1", "g-mean", "mcc")] == list(values)
    none = of((0, 0, 492, 284315))
    assert none["accuracy"] == pytest.approx(0.99827, abs=1e-5)
    assert none["f1"] == none["g-mean"] == none["mcc"] == 0


def test_zero_division_is_what_was_asked_for() -> None:
    empty = Cells(*torch.zeros(4))
    for name, metric in METRICS.items():
        if name in ("youden-j", "markedness"):
            assert float(metric(empty, 0.5)) == 0.0
            continue
        assert float(metric(empty, 0.25)) == 0.25, name
        assert math.isnan(float(metric(empty, math.nan))), name
    assert float(f1(Cells(*map(torch.tensor, (0, 0, 0, 5))), 1.0)) == 1.0
    assert float(fpr(empty, 1.0)) == 1.0


def test_large_counts_and_rare_false_alarms_stay_exact() -> None:
    huge = Cells(*(torch.tensor(n) for n in (3 * 10**9, 10**9, 10**9, 3 * 10**9)))  # their product passes int64
    assert float(mcc(huge, 0.0)) == pytest.approx(0.5, abs=1e-15)
    rare = Cells(*(torch.tensor(n, dtype=torch.int32) for n in (1, 1, 1, 10**9 - 1)))
    assert float(fpr(rare, 0.0)) == pytest.approx(1e-9, rel=1e-15)
    assert float(mcc(Cells(*map(torch.tensor, (7, 0, 0, 5))), 0.0)) == 1.0
    assert float(mcc(Cells(*map(torch.tensor, (0, 7, 5, 0))), 0.0)) == -1.0
    # p_e = 1 - 2e-9: the difference 1 - p_e would keep only half of the digits
    sparse = Cells(*map(torch.tensor, (1, 0, 1, 10**9)))
    assert float(kappa(sparse, 0.0)) == pytest.approx(2 * 10**9 / (10**9 + 2 * (10**9 + 1)), rel=1e-14)


def test_any_shape_at_once() -> None:
    cells = Cells(*(torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(i)) for i in range(4)))
    found = cell_metrics(cells)
    for name, values in found.items():
        assert values.shape == (3, 4, 5)
        assert values.dtype == torch.float64
        single = METRICS[name](Cells(*(c[1, 2, 3] for c in cells)), 0.0)
        assert float(single) == float(values[1, 2, 3])


def test_pooled_cells_are_no_mean_of_folds() -> None:
    folds = Cells(*(torch.tensor(v) for v in ([9, 0], [1, 0], [1, 3], [9, 9])))
    assert float(f1(folds, 0.0).mean()) != pytest.approx(float(f1(Cells(*(c.sum() for c in folds)), 0.0)))


def test_g_mean_and_g_measure_are_different_things() -> None:
    m = of((50, 50, 50, 850))
    assert m["g-measure"] == pytest.approx(0.5)
    assert m["g-mean"] == pytest.approx(math.sqrt(0.5 * 850 / 900))


def _orders_agree(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool(((a[:, None] - a) * (b[:, None] - b) >= -1e-18).all())


@pytest.mark.parametrize("name", METRICS)
def test_the_facts_are_those_of_a_thousand_classifiers(name: str) -> None:
    draws = torch.rand(2, 600, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, f = draws[0], draws[0] * draws[1]
    clean = METRICS[name](noisy_cells(0.3, t, f), 0.0)
    rarer = METRICS[name](noisy_cells(0.01, t, f), 0.0)
    noisy = METRICS[name](noisy_cells(0.3, t, f, 0.2, 0.05), 0.0)
    kept = "value" if (clean - rarer).abs().max() < 1e-14 else "ranking" if _orders_agree(clean, rarer) else "no"
    assert FACTS[name].prevalence == kept
    assert FACTS[name].noise == ("ranking" if _orders_agree(clean, noisy) else "no")
    even = METRICS[name](noisy_cells(0.3, t, f, 0.1, 0.1), 0.0)
    if name == "accuracy":
        assert _orders_agree(clean, even)


def test_refusals() -> None:
    with pytest.raises(InputError, match="did you mean 'g-mean'"):
        cell_metrics((1, 1, 1, 1), ["gmean"])
    with pytest.raises(InputError, match="at least 0"):
        cell_metrics((1, -1, 1, 1))
    with pytest.raises(InputError, match="at least 0"):
        cell_metrics((1, math.nan, 1, 1))
    with pytest.raises(InputError, match="TP, FP, FN, TN"):
        cell_metrics((1, 1, 1))
    with pytest.raises(InputError, match="beta"):
        f_beta(Cells(*torch.ones(4)), beta=0.0)
    assert set(METRICS) < set(FACTS)
    assert float(g_mean(Cells(*torch.ones(4)))) == 0.5
    assert float(jaccard(Cells(*torch.ones(4)))) == pytest.approx(1 / 3)
