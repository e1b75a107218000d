"""Sliced Wasserstein: by hand in one dimension, by SciPy along each direction, and what a shift costs."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import wasserstein_distance

from scoreline.core.errors import InputError
from scoreline.metrics.sliced_wasserstein import sliced_wasserstein

A = torch.randn(40, 2, 2, generator=torch.Generator().manual_seed(0))
B = 2 * torch.randn(40, 2, 2, generator=torch.Generator().manual_seed(1)) + 0.3
K = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))


def test_it_is_the_mean_of_scipys_distances_along_the_directions():
    unit = K / K.norm(dim=1, keepdim=True)
    each = [wasserstein_distance(A.flatten(1) @ k, B.flatten(1) @ k) for k in unit]
    assert sliced_wasserstein(A, B, K) == pytest.approx(sum(each) / 5, rel=1e-5)
    assert sliced_wasserstein(A, A.flip(0), K) == 0.0
    assert sliced_wasserstein(A, B, 7 * K) == pytest.approx(sliced_wasserstein(B, A, K))


def test_a_shift_costs_the_mean_of_its_projections():
    angle = torch.arange(360) * math.pi / 180
    around = torch.stack([angle.cos(), angle.sin()], 1)
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(3))
    assert sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), around) == pytest.approx(5 * 2 / math.pi, rel=1e-3)


def test_refusals():
    with pytest.raises(InputError, match="as many"):
        sliced_wasserstein(A, B[:39], K)
    with pytest.raises(InputError, match="4 entries"):
        sliced_wasserstein(A, B, K[:, :3])
