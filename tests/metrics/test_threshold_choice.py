"""Choices by a criterion against trying everything, and the lexicographic pair."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import Cells, confusion
from scoreline.metrics.binormal import Binormal
from scoreline.metrics.imbalance import METRICS, cell_metrics
from scoreline.metrics.label_noise import annotate
from scoreline.metrics.threshold_choice import CRITERIA, best_index, best_threshold, rank

ROWS = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=25).filter(
    lambda rows: {True, False} == {y for _, y in rows}
)


@given(ROWS, st.sampled_from(["accuracy", "f1", "g-mean", "balanced-accuracy", "mcc", "kappa", "f0.5", "markedness"]))
def test_the_best_of_all_thresholds_and_the_highest_of_equals(rows: list[tuple[int, bool]], name: str) -> None:
    s, y = torch.tensor([float(a) for a, _ in rows]), torch.tensor([b for _, b in rows])
    every = [math.inf, *sorted({float(a) for a, _ in rows}, reverse=True)]
    values = [float(METRICS[name](confusion(s, y, tau), 0.0)) for tau in every]
    found = best_threshold(s, y, name)
    assert found.threshold == every[values.index(max(values))]
    assert found.values == (max(values),)
    assert [int(c) for c in found.cells] == [int(c) for c in confusion(s, y, found.threshold)]


def test_the_pair_asks_g_mean_only_where_f1_is_tied() -> None:
    # F1 0.8000 and 0.8003 round alike, 0.81 does not.
    models = {
        "a": {"f1": 0.8003, "g-mean": 0.7}, "b": {"f1": 0.8, "g-mean": 0.9}, "c": {"f1": 0.81, "g-mean": 0.1},
        "d": {"f1": 0.7, "g-mean": 0.99},
    }  # fmt: skip
    found = rank(models)
    assert [row.name for row in found] == ["c", "b", "a", "d"]
    assert found[2].values == (0.8003, 0.7)
    assert found[2].key == (0.8, 0.7)
    assert [row.name for row in rank(models, digits=4)] == ["c", "a", "b", "d"]
    assert [row.name for row in rank(models, ["g-mean"])] == ["d", "b", "a", "c"]
    assert [row.name for row in rank(models, ["g-mean", "f1"], digits=1)] == ["d", "b", "a", "c"]
    assert [row.name for row in rank({"x": {"ap": 1.0}, "y": {"ap": 1.0}}, ["ap"])] == ["x", "y"]


def test_the_pair_over_thresholds() -> None:
    # Two columns with F1 0.8 and 0.8004, g-mean higher in the first; a third with a lower F1 and a perfect g-mean.
    cells = Cells(*(torch.tensor(v, dtype=torch.float64) for v in (
        [800.0, 668.0, 500.0], [200.0, 1.0, 400.0], [200.0, 332.0, 0.0], [9e4, 9e4, 9e4])))  # fmt: skip
    f1 = cell_metrics(cells, ["f1"])["f1"]
    assert f1.tolist() == pytest.approx([0.8, 0.80048, 0.714286], abs=1e-5)
    assert int(best_index(cells)) == 0
    assert int(best_index(cells, digits=5)) == int(best_index(cells, "f1")) == 1
    assert int(best_index(cells, ("g-mean",))) == 2
    assert int(best_index(cells, ("g-mean", "f1"), digits=0)) == 1
    batched = Cells(*(torch.stack([c, c.flip(0)]) for c in cells))
    assert best_index(batched).tolist() == [0, 2]


def test_other_readings_have_their_own_names() -> None:
    a = Cells(*(torch.tensor(v, dtype=torch.float64) for v in ([90.0, 50.0], [100.0, 5.0], [10.0, 50.0], [9e4, 9e4])))
    m = cell_metrics(a, ["f1", "g-mean"])
    for name, combined in (
        ("f1-times-g-mean", m["f1"] * m["g-mean"]),
        ("mean-of-f1-and-g-mean", (m["f1"] + m["g-mean"]) / 2),
    ):
        assert int(best_index(a, name)) == int(combined.argmax())
    assert CRITERIA["f1-then-g-mean"] == ("f1", "g-mean")


def test_known_noise_moves_the_choice_back() -> None:
    model, pi, e0 = Binormal(), 0.01, 0.01
    s, y = model.sample(4000, 396_000, seed=0)
    a = annotate(y, 0.0, e0, seed=1)
    truth = model.best_threshold("f1", pi)
    seen = best_threshold(s, a, "f1")
    mended = best_threshold(s, a, "f1", e0=e0)
    assert abs(mended.threshold - truth) < 0.15 < abs(seen.threshold - truth)
    assert sum(int(c) for c in mended.cells) == 400_000  # counts as annotated
    at = model.cells(mended.threshold, pi)
    f1 = float(2 * at.tp / (2 * at.tp + at.fp + at.fn))
    assert mended.values[0] == pytest.approx(f1, abs=0.02)
    assert seen.values[0] < f1 - 0.1


def test_predicting_nobody_can_be_best() -> None:
    found = best_threshold(torch.tensor([0.9, 0.8, 0.1]), torch.tensor([0, 0, 1]), "accuracy")
    assert found.threshold == math.inf
    assert found.values == (2 / 3,)


def test_refusals() -> None:
    s, y = torch.tensor([0.1, 0.9]), torch.tensor([0, 1])
    with pytest.raises(InputError, match="did you mean 'f1'"):
        best_threshold(s, y, "f11")
    with pytest.raises(InputError, match="did you mean 'g-mean'"):
        best_threshold(s, y, ("f1", "g_mean"))
    with pytest.raises(InputError, match="at least one metric"):
        best_threshold(s, y, ())
    with pytest.raises(InputError, match="digits"):
        best_threshold(s, y, digits=-1)
    with pytest.raises(InputError, match="did you mean 'g-mean'"):
        rank({"a": {"f1": 1.0, "g-mean": 1.0}}, ["f1", "gmean"])
    with pytest.raises(InputError, match="NaN"):
        rank({"a": {"f1": math.nan}}, ["f1"])
    with pytest.raises(InputError, match="at least one metric"):
        rank({}, [])
    with pytest.raises(InputError, match="false alarms alone"):
        best_threshold(s, y, "f1", e0=0.6)
