"""Inception score: its bounds, and each way of splitting against a literal loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.metrics.inception_score import inception_score


def literal(logits: torch.Tensor) -> float:
    z = logits.double().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    q = p.mean(0)
    return float(np.exp(np.mean([sum(a * (np.log(a) - np.log(b)) for a, b in zip(row, q)) for row in p])))


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(23, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.check(system=0, number=4)
def test_bounds() -> None:
    same = torch.randn(1, 7).expand(40, 7)
    assert inception_score(same).mean == pytest.approx(1, rel=1e-12)
    one_hot = 1000 * torch.eye(7)  # softmax is exactly one-hot: log of exact zeros must not appear
    spread = inception_score(one_hot, splits=1)
    assert spread.mean == pytest.approx(7, rel=1e-12)
    assert spread.std == 0


def test_splits_of_torch_fidelity(logits: torch.Tensor) -> None:
    shuffled = logits[np.random.RandomState(2020).permutation(23)]
    expected = [literal(shuffled[i * 23 // 4 : (i + 1) * 23 // 4]) for i in range(4)]
    spread = inception_score(logits, splits=4)
    np.testing.assert_allclose(spread.values, expected, rtol=1e-10)
    assert spread.mean == pytest.approx(np.mean(expected))
    assert spread.std == pytest.approx(np.std(expected))
    in_order = [literal(logits[i * 23 // 4 : (i + 1) * 23 // 4]) for i in range(4)]
    np.testing.assert_allclose(inception_score(logits, splits=4, seed=None).values, in_order, rtol=1e-10)


def test_the_remainder_is_dropped_or_kept(logits: torch.Tensor) -> None:
    dropped = inception_score(logits, mode="drop-remainder", splits=4)
    np.testing.assert_allclose(dropped.values, [literal(logits[i * 5 : i * 5 + 5]) for i in range(4)], rtol=1e-10)
    chunks = inception_score(logits, mode="guided-diffusion", chunk=10)
    parts = (logits[:10], logits[10:20], logits[20:])
    np.testing.assert_allclose(chunks.values, [literal(part) for part in parts], rtol=1e-10)


def test_a_common_offset_changes_nothing(logits: torch.Tensor) -> None:
    offset = logits + torch.arange(23.0)[:, None]
    assert inception_score(offset, splits=2).mean == pytest.approx(inception_score(logits, splits=2).mean, rel=1e-5)


def test_bad_input(logits: torch.Tensor) -> None:
    with pytest.raises(InputError, match="from 1 to 23"):
        inception_score(logits, splits=24)
    with pytest.raises(InputError, match="NaN"):
        inception_score(logits * float("nan"))
    with pytest.raises(InputError, match="guided-diffusion"):
        inception_score(logits, mode="guided_diffusion")
    with pytest.raises(InputError, match="chunk"):
        inception_score(logits, mode="guided-diffusion", chunk=0)
