"""CMMD against a literal double loop, its closed form and its laws."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.cmmd import cmmd


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def literal(x: Tensor, y: Tensor, sigma: float, scale: float) -> float:
    def mean(a: Tensor, b: Tensor) -> float:
        kernels = [math.exp(-float((p - q).square().sum()) / (2 * sigma**2)) for p in a for q in b]
        return sum(kernels) / len(kernels)  # i = j stays in: the V-statistic

    return scale * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**31), sigma=st.sampled_from([0.7, 3.0, 10.0]), normalise=st.booleans())
def test_equals_the_loops(seed: int, sigma: float, normalise: bool) -> None:
    x, y = draw(7, 3, seed), draw(5, 3, seed + 1) + 0.5
    u, v = (x / x.norm(dim=1, keepdim=True), y / y.norm(dim=1, keepdim=True)) if normalise else (x, y)
    found = cmmd(x, y, sigma=sigma, scale=10, normalise=normalise)
    assert found == pytest.approx(literal(u, v, sigma, 10), rel=1e-8, abs=1e-11)


@pytest.mark.check(system=0, number=7)
def test_a_set_against_itself_is_0() -> None:
    x = draw(40, 6, 0)
    assert abs(cmmd(x, x)) < 1e-10
    assert abs(cmmd(x, x.flip(0))) < 1e-10


def test_two_points_and_the_defaults() -> None:
    """Opposite unit vectors: |x - y|^2 = 4, at sigma 10 and scale 1000."""
    x = torch.tensor([[3.0, 0.0]])
    assert cmmd(x, -x) == pytest.approx(1000 * (2 - 2 * math.exp(-4 / 200)), rel=1e-12)
    assert cmmd(x, -x, normalise=False) == pytest.approx(1000 * (2 - 2 * math.exp(-36 / 200)), rel=1e-12)


def test_lengths_and_a_common_rotation_do_not_count_and_it_is_symmetric() -> None:
    x, y = draw(30, 4, 0), draw(20, 4, 1) + 0.3
    turn = torch.linalg.qr(draw(4, 4, 2)).Q
    value = cmmd(x, y)
    assert value > 0.01
    assert cmmd(y, x) == pytest.approx(value, rel=1e-9)
    assert cmmd(5 * x, y * draw(20, 1, 3).abs()) == pytest.approx(value, rel=1e-9)
    assert cmmd(x @ turn, y @ turn) == pytest.approx(value, rel=1e-9)


def test_small_distances_keep_their_digits() -> None:
    """Unit vectors 1e-5 apart, in float64: 2000 (1 - exp(-1e-10 / 200)) is far below what 1 - k in float32 can show."""
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[math.cos(1e-5), math.sin(1e-5)]], dtype=torch.float64)
    assert cmmd(x, y) == pytest.approx(1000 * 1e-10 / 100, rel=1e-5)


@pytest.mark.parametrize("parts", [1, 3, 8, 40])
def test_parts_give_the_same_sum(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(23, 4, 0), draw(5, 4, 1)
    u, v = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    # the package attribute of that name is the function
    monkeypatch.setattr(sys.modules[cmmd.__module__], "_PARTS", parts)
    assert cmmd(x, y, sigma=1) == pytest.approx(literal(u, v, 1, 1000), rel=1e-9)


def test_bad_input() -> None:
    x = draw(5, 3, 0)
    for bad in (draw(5, 2, 0), x * float("inf"), x[:0], x[0]):
        with pytest.raises(InputError):
            cmmd(x, bad)
    with pytest.raises(InputError, match="direction"):
        cmmd(x, torch.zeros(2, 3))
    with pytest.raises(InputError, match="positive"):
        cmmd(x, x, sigma=0)
