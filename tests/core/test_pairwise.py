"""Distances against literal loops."""

from __future__ import annotations

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.pairwise import distance_blocks, squared_distances


def points(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("way", ["direct", "gram"])
def test_distances_equal_the_loop(way: str) -> None:
    a, b = points(5, 3, 0) + 100, points(7, 3, 1) + 100
    loop = torch.tensor([[sum((x - y) ** 2 for x, y in zip(p, q)) for q in b.tolist()] for p in a.tolist()])
    torch.testing.assert_close(squared_distances(a, b, way=way), loop.double(), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("way", ["direct", "gram"])
def test_blocks_cover_the_matrix_in_bounded_memory(way: str) -> None:
    a, b = points(23, 4, 0), points(11, 4, 1)
    whole = squared_distances(a, b, way=way)
    seen = 0
    for rows, block in distance_blocks(a, b, way=way, block_bytes=3 * 11 * 8):
        assert len(block) <= 3
        assert rows.start == seen
        torch.testing.assert_close(block, whole[rows], rtol=1e-12, atol=1e-12)
        seen = rows.stop
    assert seen == 23


def test_direct_distances_do_not_depend_on_the_block() -> None:
    """Bit-equal, whatever the block, and symmetric: "inside the ball" then has one answer."""
    a = points(40, 65, 2)
    whole = squared_distances(a, a, way="direct")
    assert torch.equal(whole, whole.T)
    for rows, block in distance_blocks(a, a, way="direct", block_bytes=7 * 40 * 8):
        assert torch.equal(block, whole[rows])


def test_small_distances_survive_a_large_offset() -> None:
    """|a|^2 + |b|^2 - 2ab without centring would have lost 1e-8 at an offset of 1e6."""
    a = torch.tensor([[1e6, 0.0], [1e6, 1e-4]], dtype=torch.float64)
    for way in ("direct", "gram"):
        assert squared_distances(a, a, way=way)[0, 1].item() == pytest.approx(1e-8, rel=1e-3)


def test_bad_input() -> None:
    a = points(4, 2, 0)
    with pytest.raises(InputError):
        squared_distances(a, points(4, 3, 0))
    with pytest.raises(InputError):
        squared_distances(a, a * float("inf"))
    with pytest.raises(InputError, match="gram"):
        squared_distances(a, a, way="grm")
