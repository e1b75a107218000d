"""Streamed moments against NumPy, and the laws of merging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scoreline.core.errors import InputError
from scoreline.core.moments import Moments


def close(a: Moments, b: Moments, rtol: float = 1e-9) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean, b.mean, rtol=rtol, atol=1e-12)
    torch.testing.assert_close(a.cov(), b.cov(), rtol=rtol, atol=1e-12)


def test_moments_equal_numpy() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    moments = Moments(4)
    for part in x.split([7, 1, 30, 12]):
        moments.update(part)
    reference = x.double().numpy()
    np.testing.assert_allclose(moments.mean.numpy(), reference.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.cov().numpy(), np.cov(reference.T, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(moments.cov(ddof=0).numpy(), np.cov(reference.T, ddof=0), rtol=1e-12)
    assert moments.mean.dtype == torch.float64
    assert moments.count == 50


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**31), sizes=st.lists(st.integers(0, 20), min_size=1, max_size=6), order=st.randoms())
def test_merge_is_associative_and_order_free(seed: int, sizes: list[int], order) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 1e3 + torch.randn(sum(sizes) + 2, 3, generator=generator, dtype=torch.float64)
    whole = Moments.of(x)
    parts = [Moments(3).update(rows) for rows in x.split([*sizes, 2])]
    order.shuffle(parts)
    left = Moments(3)
    for part in parts:
        left.merge(part)
    right = Moments(3)
    for part in reversed(parts):
        right = Moments.from_tensors(part.to_tensors()).merge(right)
    assert left.count == right.count == whole.count
    for merged in (left, right):
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-9, atol=0)
        torch.testing.assert_close(merged.cov(), whole.cov(), rtol=1e-9, atol=1e-9)


def test_large_mean_does_not_cancel() -> None:
    """Raw sums of squares lose everything here: 1e8^2 = 1e16 leaves no digit for a variance of 1."""
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = Moments(2)
    for rows in (x + 1e8).split(37):
        moved.update(rows)
    torch.testing.assert_close(moved.cov(), Moments.of(x).cov(), rtol=1e-6, atol=1e-7)


def test_merging_an_empty_stream_changes_nothing() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    close(Moments.of(x).merge(Moments(2)), Moments.of(x))
    close(Moments(2).merge(Moments.of(x)), Moments.of(x))
    close(Moments.of(x).update(torch.empty(0, 2)), Moments.of(x))


def test_merge_leaves_the_other_alone() -> None:
    a, b = Moments.of(torch.tensor([[1.0], [2.0]])), Moments.of(torch.tensor([[5.0], [9.0]]))
    a.merge(b).update(torch.tensor([[100.0]]))
    assert (b.count, b.mean.item(), b.cov().item()) == (2, 7.0, 8.0)


def test_bad_input_is_refused_and_adds_nothing() -> None:
    moments = Moments.of(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    for bad in (torch.zeros(3, 3), torch.zeros(3), torch.tensor([[1.0, float("nan")]]), torch.zeros(3, 2).long()):
        with pytest.raises(InputError):
            moments.update(bad)
    assert moments.count == 2
    with pytest.raises(InputError, match="dimension 2"):
        moments.merge(Moments(3))
    with pytest.raises(InputError, match="at least 2 rows"):
        Moments.of(torch.zeros(1, 2)).cov()
    with pytest.raises(InputError, match="scatter"):
        Moments.from_tensors({"count": torch.tensor(1), "mean": torch.zeros(2)})
