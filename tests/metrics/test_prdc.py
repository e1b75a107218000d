"""Precision, recall, density, coverage against literal loops, and what they must do on real digits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.prdc import prdc


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(real: Tensor, generated: Tensor, k: int, strict: bool) -> tuple[float, float, float, float]:
    def distance(a: Tensor, b: Tensor) -> float:
        return float((a - b).square().sum().sqrt())

    def radius(points: Tensor, i: int) -> float:
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    def inside(d: float, r: float) -> bool:
        return d < r if strict else d <= r

    in_real = [[inside(distance(x, y), radius(real, i)) for y in generated] for i, x in enumerate(real)]
    in_generated = [[inside(distance(x, y), radius(generated, j)) for j, y in enumerate(generated)] for x in real]
    n, m = len(real), len(generated)
    precision = sum(any(in_real[i][j] for i in range(n)) for j in range(m)) / m
    recall = sum(any(row) for row in in_generated) / n
    density = sum(map(sum, in_real)) / (k * m)
    return precision, recall, density, sum(any(row) for row in in_real) / n


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**31), k=st.integers(1, 4), strict=st.booleans(), ties=st.booleans())
def test_equals_the_loops(seed: int, k: int, strict: bool, ties: bool) -> None:
    real, generated = draw(9, 2, seed), 0.8 * draw(7, 2, seed + 1) + 0.4
    if ties:  # a small grid: equal distances and duplicates everywhere, in exact arithmetic
        real, generated = real.round(), generated.round()
    expected = literal(real, generated, k, strict)
    for distance in ("direct", "filtered"):
        assert prdc(real, generated, k=k, strict=strict, distance=distance) == pytest.approx(expected)


@pytest.mark.check(system=0, number=6)
def test_identical_sets() -> None:
    x = draw(60, 5, 0)
    assert prdc(x, x) == (1, 1, 1, 1)
    assert prdc(x, x, k=3) == (1, 1, 1, 1)
    assert prdc(x, x, mode="kynkaanniemi") == pytest.approx((1, 1, 4 / 3, 1))
    assert prdc(x, x, strict=False) == pytest.approx((1, 1, 6 / 5, 1))
    same = torch.ones(10, 3)
    for distance in ("direct", "filtered"):
        assert prdc(same, same, distance=distance) == (0, 0, 0, 0)
        assert prdc(same, same, mode="kynkaanniemi", distance=distance)[:2] == (1, 1)
        assert prdc(x, x.clone(), distance=distance) == (1, 1, 1, 1)
        assert prdc(x, x.clone(), strict=False, distance=distance).density == 6 / 5


def test_modes_choose_k_and_comparison() -> None:
    real, generated = draw(40, 3, 0), draw(30, 3, 1) + 0.5
    assert prdc(real, generated) == prdc(real, generated, k=5, strict=True)
    assert prdc(real, generated, mode="kynkaanniemi") == prdc(real, generated, k=3, strict=False)


def test_sides_are_not_exchangeable() -> None:
    """A collapsed generator is precise and has no recall, not the other way round."""
    real, collapsed = draw(100, 2, 0), 0.01 * draw(100, 2, 1)
    found = prdc(real, collapsed)
    assert found.precision > 0.95
    assert found.recall < 0.05
    turned = prdc(collapsed, real)
    assert (turned.precision, turned.recall) == (found.recall, found.precision)


def test_digits() -> None:
    """The calibration on real digits: what missing classes and added noise do to each of the four."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, labels = torch.from_numpy(digits.data) / 8 - 1, torch.from_numpy(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    real, other, other_labels = x[order[:898]], x[order[898:]], labels[order[898:]]
    same = prdc(real, other)
    assert min(same) > 0.93
    half = prdc(real, other[other_labels < 5])
    assert half.recall < same.recall - 0.25
    assert half.coverage < same.coverage - 0.25
    assert half.precision > same.precision - 0.05
    noisy = prdc(real, other + 0.25 * draw(len(other), 64, 1))
    assert noisy.recall > 0.99  # the known defect: noise RAISES recall
    assert noisy.precision < 0.7
    assert noisy.density < 0.4
    assert noisy.coverage < 0.6


def test_bad_input() -> None:
    x = draw(10, 3, 0)
    for bad in (draw(10, 2, 0), x[:5], x * float("nan")):
        with pytest.raises(InputError):
            prdc(x, bad)
    with pytest.raises(InputError, match="kynkaanniemi"):
        prdc(x, x, mode="kynkanniemi")
    with pytest.raises(InputError, match="from 1 to 9"):
        prdc(x, x, k=0)
