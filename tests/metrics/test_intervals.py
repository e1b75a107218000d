"""Intervals must cover what they promise to cover."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.inception_score import inception_score
from scoreline.metrics.intervals import (
    mean_interval,
    metric_interval,
    metric_intervals,
    normal_p,
    paired,
    paired_difference,
    paired_metric_difference,
)
from scoreline.metrics.kid import polynomial_mmd
from scoreline.metrics.prdc import PRDC, prdc


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_student_interval_equals_the_table() -> None:
    interval = mean_interval([1.0, 2.0, 3.0], method="t")
    half = 4.302653 * 1 / math.sqrt(3)
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half), rel=1e-6)


def test_bootstrap_of_many_values_is_the_normal_interval() -> None:
    values = draw(400, 1, 0)[:, 0]
    interval = mean_interval(values)
    half = 1.96 * float(values.std()) / 20
    mean = float(values.mean())
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half), abs=0.05 * half)
    assert interval == mean_interval(values)
    assert interval != mean_interval(values, seed=1)
    assert "10000 resamples, seed 0" in interval.method
    narrow = mean_interval(values, level=0.5)
    assert narrow.high - narrow.low == pytest.approx((interval.high - interval.low) * 0.6745 / 1.96, rel=0.05)


def test_pairing_removes_what_the_seeds_share() -> None:
    seeds = 10 * draw(5, 1, 0)[:, 0]
    a = seeds + torch.tensor([1.0, 1.1, 0.9, 1.05, 0.95])
    difference, interval = paired_difference(a.tolist(), seeds.tolist())
    assert difference == pytest.approx(1.0)
    half = 2.776445 * 0.0790569 / math.sqrt(5)
    assert (interval.low, interval.high) == pytest.approx((1 - half, 1 + half), rel=1e-5)
    assert paired_difference(seeds.tolist(), a.tolist())[0] == pytest.approx(-1.0)


def test_halves_have_the_spread_of_the_mean() -> None:
    """For a mean the spread over halves is s / sqrt n exactly (in expectation); sides add their variances."""
    x, y = draw(400, 1, 0), 2 * draw(300, 1, 1)
    exact = math.sqrt(float(x.var()) / 400 + float(y.var()) / 300)

    def gap(a: Tensor, b: Tensor) -> float:
        return float(a.mean() - b.mean())

    for method in ("halves", "bootstrap"):
        value, interval = metric_interval(gap, x, y, method=method, resamples=400)
        assert value == gap(x, y)
        assert value in interval
        assert (interval.high - interval.low) / 2 / 1.96 == pytest.approx(exact, rel=0.12)
        assert (value, interval) == metric_interval(gap, x, y, method=method, resamples=400)
        assert interval != metric_interval(gap, x, y, method=method, resamples=400, seed=1)[1]


@pytest.mark.parametrize("metric", ["kid", "recall", "is"])
def test_halves_have_the_width_of_new_draws(metric: str) -> None:
    """Metrics that duplicates would disturb: the standard error against the spread over independent draws."""

    def sets(seed: int) -> tuple[Tensor, ...]:
        x, y = draw(120, 3, 1000 + seed), 0.6 * draw(120, 3, seed) + 0.5
        return (y,) if metric == "is" else (x, y)

    def value(*s: Tensor) -> float:
        if metric == "kid":
            return polynomial_mmd(*s)
        return prdc(*s).recall if metric == "recall" else inception_score(s[0], splits=1).mean

    spread = torch.tensor([value(*sets(seed)) for seed in range(80)]).std()
    errors = []
    for seed in range(300, 306):
        _, interval = metric_interval(value, *sets(seed), resamples=40)
        errors.append((interval.high - interval.low) / (2 * 1.96))
    assert sum(errors) / len(errors) == pytest.approx(float(spread), rel=0.35)


def test_several_numbers_at_the_price_of_one() -> None:
    x, y = draw(60, 2, 0), draw(50, 2, 1) + 0.5
    calls = []

    def all_four(a: Tensor, b: Tensor) -> PRDC:
        calls.append((len(a), len(b)))
        return prdc(a, b)

    found = metric_intervals(all_four, x, y, resamples=8)
    assert calls == [(60, 50)] + [(30, 25)] * 8
    assert [v for v, _ in found] == list(prdc(x, y))
    for i, (v, interval) in enumerate(found):
        assert (v, interval) == metric_interval(lambda a, b, i=i: prdc(a, b)[i], x, y, resamples=8)


@pytest.mark.parametrize("method", ["halves", "bootstrap"])
def test_paired_differences_cancel_what_is_shared(method: str) -> None:
    """a and b share all their noise but a shift: paired the difference is sharp, unpaired (b turned) it is not."""
    real, a = draw(200, 2, 0), draw(200, 2, 1)
    b = a + 0.2

    def mean_square(r: Tensor, g: Tensor) -> float:
        return float((g - r.mean(0)).square().sum(1).mean())

    found = paired_metric_difference(mean_square, real, a, b, method=method, resamples=99)
    turned = paired_metric_difference(mean_square, real, a, b[torch.randperm(200)], method=method, resamples=99)
    assert found.value == pytest.approx(mean_square(real, a) - mean_square(real, b))
    assert (found.a, found.b) == (mean_square(real, a), mean_square(real, b))
    assert turned.value == pytest.approx(found.value)
    # only the shift's cross term is left: var = (2 * .2)^2 * 2 * (1/200 + 1/200)
    assert (found.interval.high - found.interval.low) / 2 / 1.96 == pytest.approx(0.4 * math.sqrt(2 / 100), rel=0.25)
    assert turned.interval.high - turned.interval.low > 3 * (found.interval.high - found.interval.low)
    assert turned.p_value > found.p_value
    same = paired_metric_difference(mean_square, real, a, a, method=method, resamples=9)
    assert (same.value, same.p_value) == (0, 1)


def test_p_values_of_a_normal_difference() -> None:
    assert normal_p(1.959964, 1.0) == pytest.approx(0.05, rel=1e-5)
    assert normal_p(-2 * 1.644854, 2.0) == pytest.approx(0.10, rel=1e-5)
    assert normal_p(0.0, 0.0) == 1


def test_p_values_of_a_bootstrap_count_the_measured_difference_too() -> None:
    draws = 3 + torch.linspace(-1, 1, 9, dtype=torch.float64)  # six of nine lie .5 or more from their mean
    found = paired(2.5, 2.0, draws, 0.5, "bootstrap", "how")
    assert (found.value, found.p_value) == (0.5, (1 + 6) / (1 + 9))
    assert (found.interval.low, found.interval.high) == pytest.approx((0.5 - 0.5, 0.5 + 0.5))
    assert paired(9.0, 2.0, draws, 0.5, "bootstrap", "how").p_value == 1 / 10


def test_bad_input() -> None:
    with pytest.raises(InputError, match="two finite"):
        mean_interval([1.0])
    with pytest.raises(InputError, match="two finite"):
        mean_interval([1.0, float("nan")])
    with pytest.raises(InputError, match="0 and 1"):
        mean_interval([1.0, 2.0], level=95)
    with pytest.raises(InputError, match="bootstrap"):
        mean_interval([1.0, 2.0], method="bootstap")
    with pytest.raises(InputError, match="each seed"):
        paired_difference([1.0, 2.0], [1.0])
    x = draw(20, 2, 0)
    for bad, words in (
        ({"method": "halfs"}, "halves"),
        ({"resamples": 1}, "at least 2"),
        ({"level": 0.0}, "between 0 and 1"),
    ):
        with pytest.raises(InputError, match=words):
            metric_interval(lambda a: float(a.mean()), x, **bad)
    with pytest.raises(InputError, match="at least 4"):
        metric_interval(lambda a: float(a.mean()), x[:3])
    with pytest.raises(InputError, match="at least one set"):
        metric_interval(lambda: 0.0)
    with pytest.raises(InputError, match="one pair"):
        paired_metric_difference(lambda r, g: 0.0, x, x, x[:19])
