"""Intervals must cover what they promise to cover."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.moments import Moments
from scoreline.metrics.frechet import frechet_distance
from scoreline.metrics.intervals import frechet_interval, mean_interval, paired_difference


def draw(n: int, d: int, seed: int) -> torch.Tensor:
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


@pytest.mark.parametrize("method, settings", [("jackknife", {}), ("bootstrap", {"resamples": 60})])
@pytest.mark.parametrize("fixed_reference", [True, False])
def test_frechet_interval_has_the_width_of_new_draws(method: str, settings: dict, fixed_reference: bool) -> None:
    """The interval's standard error, averaged, against the spread of FD over 200 independent draws."""
    reference = Moments.from_tensors(
        {"count": torch.tensor(10**6), "mean": torch.zeros(3), "scatter": torch.eye(3) * (10**6 - 1)}
    )

    def sets(seed: int) -> tuple[torch.Tensor | Moments, torch.Tensor]:
        real = reference if fixed_reference else draw(150, 3, 1000 + seed)
        return real, 1.3 * draw(200, 3, seed) + 0.3

    spread = torch.tensor([frechet_distance(*sets(seed)) for seed in range(200)]).std()
    errors = []
    for seed in range(300, 308):
        real, generated = sets(seed)
        value, interval = frechet_interval(real, generated, method=method, **settings)
        assert value == frechet_distance(real, generated)
        errors.append((interval.high - interval.low) / (2 * 1.96))
    assert sum(errors) / len(errors) == pytest.approx(float(spread), rel=0.25)


def test_the_bootstrap_does_not_move_the_value() -> None:
    """Naive percentiles of FD* would lie wholly above FD here: resampling repeats images, and bias grows."""
    real, generated = draw(100, 20, 0), draw(100, 20, 1)
    value, interval = frechet_interval(real, generated, method="bootstrap", resamples=60)
    assert value in interval
    assert abs((interval.low + interval.high) / 2 - value) < 0.3 * (interval.high - interval.low)


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
    with pytest.raises(InputError, match="between 2 and 16"):
        frechet_interval(draw(50, 2, 0), draw(60, 2, 1))
    with pytest.raises(InputError, match="jackknife"):
        frechet_interval(draw(50, 2, 0), draw(60, 2, 1), method="jacknife")
