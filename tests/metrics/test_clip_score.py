"""CLIP scores: three conventions on cosines that are known."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.metrics.clip_score import CONVENTIONS, clip_score, cosines


def at(*angles: float) -> torch.Tensor:
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64)


def test_conventions() -> None:
    image, text = at(0, 0, 0), 7 * at(math.pi / 3, math.pi / 2, math.pi)  # cosines 1/2, 0, -1
    assert cosines(image, text).tolist() == pytest.approx([0.5, 0, -1])
    assert clip_score(image, text, convention="cosine") == pytest.approx(-1 / 6)
    assert clip_score(image, text, convention="clipscore") == pytest.approx(2.5 * 0.5 / 3)  # each cut at 0
    assert clip_score(image, text) == 0  # the mean cut at 0
    assert clip_score(image[:1], text[:1]) == pytest.approx(50)
    assert clip_score(image[:2], text[:2]) == pytest.approx(25)


@pytest.mark.parametrize("convention, best", list(zip(CONVENTIONS, (100, 2.5, 1))))
def test_an_embedding_fits_itself_best_and_lengths_do_not_count(convention: str, best: float) -> None:
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    assert clip_score(x, 3 * x, convention=convention) == pytest.approx(best)
    assert clip_score(x, 3 * x, convention=convention) > clip_score(x, x.roll(1, 0), convention=convention)


def test_bad_input() -> None:
    x = at(0, 1)
    with pytest.raises(InputError, match="own text"):
        clip_score(x, x[:1])
    with pytest.raises(InputError, match="clipscore"):
        clip_score(x, x, convention="clip-score")
    with pytest.raises(InputError, match="direction"):
        clip_score(x, 0 * x)
    for bad in (x[:, :1], x * float("nan"), x[0]):
        with pytest.raises(InputError):
            clip_score(x, bad)
