"""Curves of two classes against literal counting, scikit-learn, and cases known by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import (
    auroc,
    average_precision,
    binary_curve,
    brier_score,
    check_binary,
    confusion,
    log_loss,
)

ROWS = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: {True, False} == {y for _, y in rows}
)


def split(rows: list[tuple[int, bool]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([float(s) for s, _ in rows]), torch.tensor([y for _, y in rows])


@given(ROWS)
def test_areas_are_those_of_the_pairs_and_of_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    s, y = split(rows)
    pairs = [(a > b) + (a == b) / 2 for a, p in rows if p for b, q in rows if not q]
    assert auroc(s, y) == pytest.approx(sum(pairs) / len(pairs), abs=1e-15)
    assert auroc(s, y) == pytest.approx(roc_auc_score(y, s), abs=1e-12)
    assert average_precision(s, y) == pytest.approx(average_precision_score(y, s), abs=1e-12)


@given(ROWS)
def test_the_counts_are_those_of_the_rule(rows: list[tuple[int, bool]]) -> None:
    s, y = split(rows)
    curve = binary_curve(s, y)
    at = torch.tensor([[-math.inf, 0.0, 2.0], [2.5, 5.0, math.inf]])
    for thresholds, cells in ((at, confusion(s, y, at)), (curve.thresholds, curve.cells)):
        for i, tau in enumerate(thresholds.flatten().tolist()):
            literal = [
                sum(p is actual and (score >= tau) is said for score, actual in rows)
                for p, said in ((True, True), (False, True), (True, False), (False, False))
            ]
            assert [int(cell.flatten()[i]) for cell in cells] == literal
            assert all(cell.dtype == torch.int64 and cell.shape == thresholds.shape for cell in cells)
    assert curve.thresholds.tolist() == sorted({float(score) for score, _ in rows}, reverse=True)


def test_ties_make_the_order_of_rows_irrelevant_and_ap_is_no_trapezoid() -> None:
    s, y = torch.tensor([0.5, 0.5, 0.5, 0.5]), torch.tensor([1, 0, 0, 0])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        assert average_precision(s[order], y[order]) == 0.25
        assert auroc(s[order], y[order]) == 0.5
    # Steps of precision 1, 1/2, 2/3: the trapezoid would give 0.79.
    assert average_precision(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1, 0, 1])) == pytest.approx((1 + 2 / 3) / 2)


def test_a_million_rows_are_counted_without_rounding() -> None:
    n = 1_000_000
    s = torch.arange(n, dtype=torch.float64)
    y = torch.zeros(n, dtype=torch.bool)
    y[n // 2 :] = True
    assert auroc(s, y) == 1.0
    assert auroc(-s, y) == 0.0
    y[n // 2 - 1], y[n // 2] = True, False  # one pair swapped
    assert auroc(s, y) == 1 - 1 / (n // 2) ** 2


def test_infinite_scores_are_ordered_and_neighbouring_floats_stay_apart() -> None:
    assert auroc(torch.tensor([math.inf, 1.0, -math.inf]), torch.tensor([1, 1, 0])) == 1.0
    near = torch.tensor([1.0, 1.0 + 2**-52], dtype=torch.float64)
    assert len(binary_curve(near, torch.tensor([0, 1])).thresholds) == 2


def test_losses_of_rows() -> None:
    p, y = torch.tensor([0.9, 0.2, 1e-9, 0.5]), torch.tensor([1, 0, 0, 1])
    assert float(log_loss(p, y).mean()) == pytest.approx(sklearn_log_loss(y, p.double()), abs=1e-9)
    assert float(brier_score(p, y).mean()) == pytest.approx(brier_score_loss(y, p.double()), abs=1e-9)
    assert log_loss(torch.tensor([0.0]), torch.tensor([1])).isinf().all()
    assert log_loss(torch.tensor([0.0, 1.0]), torch.tensor([0, 1])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 1]), torch.tensor([0.0, 1.0]), torch.tensor([False, True]), torch.tensor([[0], [1]])]
)
def test_encodings_that_are_taken(labels: torch.Tensor) -> None:
    s, y = check_binary(torch.tensor([1, 2]).reshape(labels.shape), labels)
    assert y.tolist() == [False, True]
    assert s.dtype == torch.float64


@pytest.mark.parametrize(
    "scores, labels, words",
    [
        ([1.0, 2.0], [-1, 1], "-1 and 1"),
        ([1.0, 2.0], [1, 2], "labels are 0 and 1"),
        ([1.0, 2.0], [0.0, 0.5], "labels are 0 and 1"),
        ([1.0, math.nan], [0, 1], "NaN"),
        ([1.0], [0, 1], "one label a score"),
        ([], [], "one label a score"),
        ([1.0, 2.0], [0, 0], "both classes"),
        ([1.0, 2.0], [1, 1], "both classes"),
    ],
)
def test_refusals(scores: list[float], labels: list[float], words: str) -> None:
    with pytest.raises(InputError, match=words):
        auroc(torch.tensor(scores), torch.tensor(labels))


def test_further_refusals() -> None:
    s, y = torch.tensor([-0.1, 0.5]), torch.tensor([0, 1])
    for loss in (log_loss, brier_score):
        with pytest.raises(InputError, match="probabilities"):
            loss(s, y)
    with pytest.raises(InputError, match="NaN"):
        confusion(s, y, math.nan)
    with pytest.raises(InputError, match="at least one positive"):
        average_precision(s, torch.tensor([0, 0]))
    assert average_precision(s, torch.tensor([1, 1])) == 1.0
