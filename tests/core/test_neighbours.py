"""Neighbours and balls: literal loops, and the filtered way against differences, bit by bit, where it is hardest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scoreline.core import neighbours
from scoreline.core.errors import InputError
from scoreline.core.neighbours import ball_counts, kth_nearest


def points(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_TILE", 16)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("way", ["direct", "filtered"])
def test_kth_nearest_leaves_the_point_itself_out(k: int, way: str) -> None:
    a = points(9, 3, 3)
    table = torch.tensor([[float((x - y).square().sum()) for y in a] for x in a], dtype=torch.float64)
    sorted_rows = table.sort(dim=1).values  # column 0 is the point itself
    torch.testing.assert_close(kth_nearest(a, k, way=way), sorted_rows[:, k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["direct", "filtered"])
def test_duplicates_are_neighbours_at_distance_zero(way: str) -> None:
    a = torch.tensor([[0.0], [0.0], [3.0]])
    assert kth_nearest(a, 1, way=way).tolist() == [0.0, 0.0, 9.0]
    assert kth_nearest(a, 2, way=way).tolist() == [9.0, 9.0, 9.0]


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("way", ["direct", "filtered"])
def test_balls_equal_the_loops(strict: bool, way: str) -> None:
    x, y = points(11, 2, 0).round(), points(8, 2, 1).round()  # a grid: pairs at exactly the radius
    x_radii, y_radii = (torch.arange(11.0).double() / 2).square(), torch.arange(8.0).double().square()

    def inside(a: Tensor, b: Tensor, radius: Tensor) -> bool:
        squared = float((a - b).square().sum())
        return squared < float(radius) if strict else squared <= float(radius)

    found = ball_counts(x, y, x_radii=x_radii, y_radii=y_radii, strict=strict, way=way)
    assert found.in_x_balls.tolist() == [sum(inside(p, q, r) for p, r in zip(x, x_radii)) for q in y]
    assert found.of_x_balls.tolist() == [sum(inside(p, q, r) for q in y) for p, r in zip(x, x_radii)]
    assert found.in_y_balls.tolist() == [sum(inside(p, q, r) for q, r in zip(y, y_radii)) for p in x]


def clusters(n: int, apart: float, wide: float, seed: int) -> Tensor:
    return apart * points(5, 6, 7)[torch.arange(n) % 5] + wide * points(n, 6, seed)


HARD: dict[str, Callable[[int, int], Tensor]] = {
    "normal": lambda n, seed: points(n, 5, seed),
    "many dimensions": lambda n, seed: points(n, 200, seed),
    "far from zero": lambda n, seed: points(n, 5, seed) + 1e7,
    "ties": lambda n, seed: (2 * points(n, 2, seed)).round(),
    "all alike": lambda n, seed: torch.ones(n, 3, dtype=torch.float64),
    "all at zero": lambda n, seed: torch.zeros(n, 3, dtype=torch.float64),
    "tight clusters": lambda n, seed: clusters(n, 1e4, 1e-3, seed),
    "clusters beyond float64": lambda n, seed: clusters(n, 1e9, 1e-7, seed),
    "one outlier": lambda n, seed: torch.cat([points(n - 1, 4, seed), torch.full((1, 4), 1e6).double()]),
    "beyond float32": lambda n, seed: points(n, 3, seed) * 1e100,
    "below float32": lambda n, seed: points(n, 3, seed) * 1e-100,
    "float32": lambda n, seed: points(n, 4, seed).float(),
    "half precision": lambda n, seed: points(n, 4, seed).half(),
}


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize("kind", HARD)
def test_the_filter_changes_no_bit(kind: str) -> None:
    for n, m, seed in ((50, 61, 0), (70, 33, 1)):
        x, y = HARD[kind](n, seed), HARD[kind](m, seed + 100)
        for k in (1, 3, 20):
            x_radii, y_radii = (kth_nearest(s, k, way="direct") for s in (x, y))
            assert torch.equal(kth_nearest(x, k, way="filtered"), x_radii)
            for strict in (True, False):
                found, exact = (
                    ball_counts(x, y, x_radii=x_radii, y_radii=y_radii, strict=strict, way=way)
                    for way in ("filtered", "direct")
                )
                assert all(torch.equal(a, b) for a, b in zip(found, exact))


@pytest.mark.usefixtures("small_tiles")
def test_a_set_against_itself_meets_its_own_radii() -> None:
    """Every radius is the distance of some pair: < must leave it out and <= take it in, for each of them."""
    x = points(90, 7, 0)
    radii = kth_nearest(x, 4)
    for way in ("direct", "filtered"):
        for strict, inside in ((True, 4), (False, 5)):
            counts = ball_counts(x, x.clone(), x_radii=radii, y_radii=radii, strict=strict, way=way)
            assert counts.of_x_balls.tolist() == [inside] * 90


def test_few_pairs_are_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The point of the filter: of 3 * 2000^2 pairs, differences are taken of a handful a point."""
    seen = []
    pairs = neighbours._pairs
    monkeypatch.setattr(neighbours, "_pairs", lambda x, i, y, j: (seen.append(len(i)), pairs(x, i, y, j))[1])
    monkeypatch.setattr(neighbours, "_DIRECT_LIMIT", 0)
    x, y = points(2000, 16, 0), points(2000, 16, 1)
    x_radii, y_radii = kth_nearest(x, 5), kth_nearest(y, 5)
    ball_counts(x, y, x_radii=x_radii, y_radii=y_radii, strict=True)
    assert sum(seen) < 3 * 2000 * 1.5


def test_float64_products_come_before_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clusters that float32 cannot resolve: no tile needs all its differences."""
    x, y = clusters(300, 1e4, 1e-2, 0), clusters(300, 1e4, 1e-2, 1)
    radii = kth_nearest(x, 3, way="direct"), kth_nearest(y, 3, way="direct")
    differences = neighbours._differences

    def pairs_only(a: Tensor, b: Tensor) -> Tensor:
        assert a.ndim == 3, "a whole tile was recomputed"
        return differences(a, b)

    monkeypatch.setattr(neighbours, "_differences", pairs_only)
    assert torch.equal(kth_nearest(x, 3, way="filtered"), radii[0])
    ball_counts(x, y, x_radii=radii[0], y_radii=radii[1], strict=True, way="filtered")


def test_reduced_products_are_not_trusted() -> None:
    """Where float32 products may be taken in bfloat16, the bound would not hold: float64 is used."""
    x = points(300, 8, 0)
    exact = kth_nearest(x, 3, way="direct")
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert neighbours._Filter(x, x).dtypes == [torch.float64]
        assert torch.equal(kth_nearest(x, 3, way="filtered"), exact)
    finally:
        torch.set_float32_matmul_precision(before)


def test_settings_that_torch_does_not_tell_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str:
        raise RuntimeError("mix of the legacy and new APIs")

    x = points(30, 3, 0)
    assert neighbours._Filter(x, x).dtypes == [torch.float32, torch.float64]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuse)
    assert neighbours._Filter(x, x).dtypes == [torch.float64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["normal", "many dimensions", "far from zero", "tight clusters", "one outlier"])
def test_the_bound_holds(kind: str, dtype: torch.dtype) -> None:
    x, y = HARD[kind](80, 0), HARD[kind](60, 1)
    filter_ = neighbours._Filter(x, y)
    rows, cols = slice(10, 80), slice(0, 50)
    exact = neighbours._differences(x[rows], y[cols]) / filter_.unit**2
    error = (filter_.tile(rows, cols, dtype).double() - exact).abs()
    assert (error <= filter_.bound(0, rows, dtype)[:, None]).all()
    assert (error <= filter_.bound(1, cols, dtype)).all()


def test_bad_input() -> None:
    a = points(4, 2, 0)
    for k in (0, 4):
        with pytest.raises(InputError, match="from 1 to 3"):
            kth_nearest(a, k)
    with pytest.raises(InputError, match="filtered"):
        kth_nearest(a, 1, way="filterd")
    for bad in (a[:, :1], a * float("nan")):
        with pytest.raises(InputError):
            ball_counts(a, bad, x_radii=torch.ones(4), y_radii=torch.ones(4), strict=True)
    with pytest.raises(InputError, match="y_radii"):
        ball_counts(a, a, x_radii=torch.ones(4), y_radii=torch.ones(3), strict=True)
