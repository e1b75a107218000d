"""The bootstrap by multinomials against resampling rows one by one, and closed forms of its spread."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.metrics.binary_curves import Cells, auroc, average_precision
from scoreline.metrics.binormal import Binormal
from scoreline.metrics.cell_intervals import bootstrap_cells, bootstrap_curve, cell_intervals, percentiles
from scoreline.metrics.label_noise import corrected_cells, noisy_cells
from scoreline.metrics.threshold_choice import best_threshold


def counts(*cells: int) -> Cells:
    return Cells(*map(torch.tensor, cells))


def test_spread_is_that_of_binomials() -> None:
    drawn = bootstrap_cells(counts(400, 100, 92, 284215), resamples=20_000)
    recall = drawn.tp / 492
    # 492 positives: a recall of 0.8 has a standard error of 0.018
    assert float(recall.std()) == pytest.approx(math.sqrt(0.813 * 0.187 / 492), rel=0.03)
    assert float(drawn.fp.std()) == pytest.approx(10.0, rel=0.03)
    assert torch.equal(drawn.tp + drawn.fn, torch.full((20_000,), 492.0, dtype=torch.float64))
    plain = bootstrap_cells(counts(400, 100, 92, 284215), resamples=20_000, stratified=False)
    assert float((plain.tp + plain.fn).std()) == pytest.approx(math.sqrt(492), rel=0.03)
    assert torch.equal(sum(plain), torch.full((20_000,), 284807.0, dtype=torch.float64))


@pytest.mark.parametrize("stratified", [True, False])
def test_an_interval_covers_what_it_should(stratified: bool) -> None:
    truth = noisy_cells(0.1, 0.7, 0.05)
    generator = torch.Generator().manual_seed(0)
    shares = torch.stack(list(truth)).double()
    expected = float(2 * truth.tp / (2 * truth.tp + truth.fp + truth.fn))
    hits = 0
    for i in range(200):
        sample = torch.multinomial(shares, 2000, replacement=True, generator=generator).bincount(minlength=4)
        interval = cell_intervals(counts(*sample.tolist()), ["f1"], resamples=400, stratified=stratified, seed=i)["f1"]
        hits += expected in interval
    assert 0.88 <= hits / 200 <= 0.99


@pytest.mark.parametrize("stratified", [True, False])
def test_bins_resample_as_rows_do(stratified: bool) -> None:
    s, y = Binormal(1.5, 1.0).sample(15, 60, seed=0)
    s = (s * 4).round() / 4  # ties within and between the classes
    generator = torch.Generator().manual_seed(1)
    rows: dict[str, list[float]] = {"auroc": [], "ap": [], "threshold": []}
    for _ in range(500):
        if stratified:
            pick = torch.cat([torch.randint(15, (15,), generator=generator),
                              15 + torch.randint(60, (60,), generator=generator)])  # fmt: skip
        else:
            pick = torch.randint(75, (75,), generator=generator)
        rows["auroc"].append(auroc(s[pick], y[pick]))
        rows["ap"].append(average_precision(s[pick], y[pick]))
        rows["threshold"].append(best_threshold(s[pick], y[pick], "f1").threshold)
    found = bootstrap_curve(s, y, {"f1": "f1"}, resamples=6000, stratified=stratified, seed=2)
    for name, draws in (("auroc", found.auroc), ("ap", found.average_precision), ("threshold", found.thresholds["f1"])):
        literal = torch.tensor(rows[name], dtype=torch.float64)
        assert float(draws.mean()) == pytest.approx(float(literal.mean()), abs=4 * float(literal.std()) / 500**0.5)
        assert float(draws.std()) == pytest.approx(float(literal.std()), rel=0.15)


def test_resampling_a_perfect_or_an_empty_order_changes_nothing() -> None:
    y = torch.tensor([1, 1, 1, 0, 0])
    perfect = bootstrap_curve(torch.arange(5, 0, -1), y, resamples=50)
    assert torch.equal(perfect.auroc, torch.ones(50, dtype=torch.float64))
    assert torch.equal(perfect.average_precision, torch.ones(50, dtype=torch.float64))
    flat = bootstrap_curve(torch.zeros(5), y, resamples=50)
    assert torch.equal(flat.auroc, torch.full((50,), 0.5, dtype=torch.float64))
    assert torch.equal(flat.average_precision, torch.full((50,), 0.6, dtype=torch.float64))


def test_resamples_without_a_positive_are_left_out_and_counted() -> None:
    s, y = torch.rand(40, generator=torch.Generator().manual_seed(0)), torch.arange(40) < 1
    plain = bootstrap_curve(s, y, {"f1": "f1"}, resamples=4000, stratified=False)
    # P(no positive) = (1 - 1/40)^40
    assert plain.empty / 4000 == pytest.approx((39 / 40) ** 40, abs=0.03)
    assert len(plain.auroc) == len(plain.thresholds["f1"]) == 4000 - plain.empty
    assert bootstrap_curve(s, y, resamples=10).empty == 0


def test_blocks_and_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    s, y = Binormal().sample(20, 100, seed=0)
    one, again, other = (bootstrap_curve(s, y, resamples=60, seed=seed).auroc for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    monkeypatch.setattr("scoreline.metrics.cell_intervals._BLOCK", 500)
    blocks = bootstrap_curve(s, y, {"mcc": "mcc"}, resamples=60, seed=0)
    assert len(blocks.auroc) == len(blocks.thresholds["mcc"]) == 60
    assert float(blocks.auroc.mean()) == pytest.approx(float(one.mean()), abs=0.02)


def test_many_positives_are_drawn_in_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    s, y = Binormal(1.5, 1.0).sample(300, 900, seed=0)
    s = (s * 100).round() / 100
    fine = bootstrap_curve(s, y, {"f1": "f1"}, resamples=3000)
    monkeypatch.setattr("scoreline.metrics.cell_intervals._GROUPS", 40)
    coarse = bootstrap_curve(s, y, {"f1": "f1"}, resamples=3000, seed=1)
    for a, b in ((fine.auroc, coarse.auroc), (fine.average_precision, coarse.average_precision)):
        assert float(b.mean()) == pytest.approx(float(a.mean()), abs=5 * float(a.std()) / 3000**0.5)
        assert float(b.std()) == pytest.approx(float(a.std()), rel=0.07)
    assert set(coarse.thresholds["f1"].tolist()) <= set(s[y].tolist())
    assert len(set(coarse.thresholds["f1"].tolist())) < len(set(fine.thresholds["f1"].tolist()))
    assert float(coarse.thresholds["f1"].median()) == pytest.approx(float(fine.thresholds["f1"].median()), abs=0.1)


def test_correction_widens_the_interval_and_moves_it_to_the_truth() -> None:
    e1, e0 = 0.1, 0.01
    seen = counts(*(int(c) for c in (10**6 * torch.stack(list(noisy_cells(0.02, 0.8, 0.003, e1, e0)))).round()))
    plain = cell_intervals(seen, ["f1", "recall"])
    mended = cell_intervals(seen, ["f1", "recall"], correct=lambda cells: corrected_cells(cells, e1, e0))
    truth = noisy_cells(0.02, 0.8, 0.003)
    assert float(2 * truth.tp / (2 * truth.tp + truth.fp + truth.fn)) in mended["f1"]
    assert 0.8 in mended["recall"]
    assert 0.8 not in plain["recall"]
    assert mended["recall"].high - mended["recall"].low > plain["recall"].high - plain["recall"].low


def test_refusals() -> None:
    with pytest.raises(InputError, match="whole counts"):
        bootstrap_cells(noisy_cells(0.1, 0.5, 0.1))
    with pytest.raises(InputError, match="whole counts"):
        bootstrap_cells(Cells(*torch.ones(4, 3)))
    with pytest.raises(InputError, match="both classes"):
        cell_intervals(counts(0, 3, 0, 5))
    with pytest.raises(InputError, match="resamples"):
        bootstrap_cells(counts(1, 1, 1, 1), resamples=0)
    with pytest.raises(InputError, match="both classes"):
        bootstrap_curve(torch.rand(3), torch.ones(3))
    with pytest.raises(InputError, match="level"):
        percentiles(torch.rand(4), level=95)
    with pytest.raises(InputError, match="finite"):
        percentiles(torch.tensor([math.inf, 1.0]))
