"""Nearest neighbours and "is it inside the ball?", exact to the last bit, at the price of single-precision products.

The answers are defined by differences: |a - b|^2 summed in float64, whatever the block around the pair. Few pairs need
that. A product of centred rows gives every squared distance up to a rigorous bound,

    |fl(|a|^2 + |b|^2 - 2 a.b) - |a - b|^2|  <=  g (|a|^2 + |b|^2),   g = (d + 32) u,   u = unit roundoff

(Higham 2002, section 3.1), and decides all pairs farther than the bound from the threshold; the others are recomputed
from differences. Products are taken in float32, tile by tile so that they stay in the cache; where the bound leaves too
many pairs open (tight clusters far apart, duplicates) in float64; and where that fails too the tile is computed from
differences. Distances inside one set are computed once for both points of a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.core.errors import InputError, unknown_name
from scoreline.core.moments import check_features

__all__ = ["BallCounts", "ball_counts", "kth_nearest"]

Way = Literal["auto", "direct", "filtered"]
WAYS = ("auto", "direct", "filtered")

# Below so many multiplications filtering costs more than it saves.
_DIRECT_LIMIT = 2e6
_TILE = 1024
_EXACT_BYTES = 2**25


class BallCounts(NamedTuple):
    """How often points lie in balls around the points of another set.

    Attributes:
        in_x_balls: (M,) around how many x each y lies.
        of_x_balls: (N,) how many y lie in the ball of each x.
        in_y_balls: (N,) around how many y each x lies.
    """

    in_x_balls: Tensor
    of_x_balls: Tensor
    in_y_balls: Tensor


def kth_nearest(points: Tensor, k: int, *, way: Way = "auto") -> Tensor:
    """Squared distance from each point to its k-th nearest OTHER point of the same set, (N,) float64.

    A duplicate of a point counts as another point, at distance 0.

    Args:
        points: (N, D), N > k.
        k: 1 for the nearest other point.
        way: "filtered" by products, "direct" differences for all pairs, or "auto"; the result is the same, bit by bit.

    Raises:
        InputError: k < 1 or N <= k, values that are not finite, an unknown way.
    """
    check_features(points, "points")
    n = len(points)
    if k < 1 or n <= k:
        raise InputError("k", k, f"{n} points have k-th nearest others for k from 1 to {n - 1}")
    if _direct(way, n, n, points.shape[1]):
        radii = torch.empty(n, dtype=torch.float64, device=points.device)
        height = max(1, _EXACT_BYTES // (8 * n))
        for start in range(0, n, height):
            rows = torch.arange(start, min(start + height, n), device=points.device)
            block = _differences(points[rows], points)
            block[rows - start, rows] = torch.inf
            radii[rows] = block.kthvalue(k, dim=1).values
        return radii
    return _Neighbours(points, k).radii()


def ball_counts(
    x: Tensor, y: Tensor, *, x_radii: Tensor, y_radii: Tensor, strict: bool, way: Way = "auto"
) -> BallCounts:
    """Which points of each set lie in the balls around the points of the other.

    Args:
        x: (N, D). y: (M, D).
        x_radii: (N,) squared radii, as :func:`kth_nearest` gives them. y_radii: (M,).
        strict: inside is < (True) or <= (False).
        way: as for :func:`kth_nearest`.

    Raises:
        InputError: shapes that do not fit, values that are not finite, an unknown way.
    """
    check_features(x, "points")
    check_features(y, "points", dim=x.shape[1])
    for name, radii, count in (("x_radii", x_radii, len(x)), ("y_radii", y_radii, len(y))):
        if radii.shape != (count,):
            raise InputError(name, tuple(radii.shape), f"one squared radius a point is needed: ({count},)")
    inside = torch.lt if strict else torch.le
    counts = BallCounts(*(torch.zeros(n, dtype=torch.int64, device=x.device) for n in (len(y), len(x), len(x))))
    if _direct(way, len(x), len(y), x.shape[1]):
        height = max(1, _EXACT_BYTES // (8 * len(y)))
        for start in range(0, len(x), height):
            rows = slice(start, start + height)
            block = _differences(x[rows], y)
            around_x = inside(block, x_radii[rows, None])
            counts.in_x_balls.add_(around_x.sum(dim=0))
            counts.of_x_balls[rows] = around_x.sum(dim=1)
            counts.in_y_balls[rows] = inside(block, y_radii).sum(dim=1)
        return counts
    filter_ = _Filter(x, y)
    for rows in _tiles(len(x), _TILE):
        for cols in _tiles(len(y), _TILE):
            balls = _TileBalls(filter_, x, y, rows, cols, inside)
            per_row, per_col = balls.count(x_radii[rows, None])
            counts.of_x_balls[rows] += per_row
            counts.in_x_balls[cols] += per_col
            counts.in_y_balls[rows] += balls.count(y_radii[None, cols])[0]
    return counts


# --- exact distances ---------------------------------------------------------------------------------------------


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2, (..., N, M) float64: what every answer here is defined by."""
    a, b = a.to(torch.float64), b.to(torch.float64)
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square_()


def _pairs(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
    """|x_i - y_j|^2 of a list of pairs, with the bits of :func:`_differences`."""
    step = max(1, _EXACT_BYTES // (16 * x.shape[1]))
    parts = [_differences(x[p][:, None], y[q][:, None])[:, 0, 0] for p, q in zip(i.split(step), j.split(step))]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.float64, device=x.device)


def _direct(way: str, n: int, m: int, d: int) -> bool:
    if way not in WAYS:
        raise unknown_name("distance", way, WAYS)
    return way == "direct" or (way == "auto" and float(n) * m * d <= _DIRECT_LIMIT)


# --- approximate distances ---------------------------------------------------------------------------------------


class _Filter:
    """Squared distances of x and y in tiles, up to a known bound, in units of `unit`^2.

    Both sets are moved by the mean of x and divided by the largest length, so that float32 neither overflows nor
    wastes digits on a common offset.
    """

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.sets, self.same = (x, y), x is y
        self.centre = torch.stack([p.to(torch.float64).sum(dim=0) for p in x.split(4096)]).sum(dim=0) / len(x)
        raw = [self._lengths(p) for p in ((x,) if self.same else (x, y))]
        largest = max(float(length.max()) for length in raw)
        self.unit = largest if largest > 0 else 1.0
        norms = [(length / self.unit).square() for length in raw]
        self.x_norms, self.y_norms = norms[0], norms[-1]
        self.dtypes = [torch.float32, torch.float64] if _full_float32() else [torch.float64]
        self._cast: dict[tuple[int, torch.dtype], Tensor] = {}

    def _moved(self, rows: Tensor) -> Tensor:
        return rows.to(torch.float64) - self.centre

    def _lengths(self, points: Tensor) -> Tensor:
        return torch.cat([self._moved(p).norm(dim=1) for p in points.split(4096)])

    def _rows(self, side: int, dtype: torch.dtype) -> Tensor:
        side = 0 if self.same else side
        if (side, dtype) not in self._cast:
            points = self.sets[side]
            cast = torch.empty(points.shape, dtype=dtype, device=points.device)
            for start in range(0, len(points), 4096):
                rows = slice(start, start + 4096)
                cast[rows] = self._moved(points[rows]).div_(self.unit)
            self._cast[side, dtype] = cast
        return self._cast[side, dtype]

    def tile(self, rows: slice, cols: slice, dtype: torch.dtype) -> Tensor:
        """Approximate squared distances, in units^2."""
        x, y = self._rows(0, dtype)[rows], self._rows(1, dtype)[cols]
        block = torch.addmm(self.y_norms[cols].to(dtype), x, y.T, alpha=-2)
        return block.add_(self.x_norms[rows, None].to(dtype))

    def bound(self, side: int, part: slice, dtype: torch.dtype) -> Tensor:
        """How far `tile` may be off for any pair with these points of that side."""
        own, other = (self.x_norms, self.y_norms) if side == 0 else (self.y_norms, self.x_norms)
        d = self.sets[0].shape[1]
        # unit roundoffs: of the products, and of the float64 differences that they are compared with
        g = (d + 32) * (torch.finfo(dtype).eps / 2 + torch.finfo(torch.float64).eps)
        return g * (own[part] + other.max()) + torch.finfo(dtype).tiny * d


def _full_float32() -> bool:
    """Whether float32 products keep float32's bits; CPUs and GPUs may be told otherwise, which the bound ignores."""
    try:
        return torch.get_float32_matmul_precision() == "highest" and not torch.backends.cuda.matmul.allow_tf32
    except RuntimeError:  # torch gives no answer where its older and newer settings were mixed
        return False


def _tiles(n: int, size: int) -> Iterator[slice]:
    """Nearly equal parts of range(n), none longer than `size`."""
    count = -(-n // size)
    for i in range(count):
        yield slice(i * n // count, (i + 1) * n // count)


def _true(mask: Tensor) -> Tensor:
    """Flat indices of what is true."""
    if mask.device.type == "cpu":  # NumPy skips zeros eight at a time
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    return mask.flatten().nonzero()[:, 0]


class _TileBalls:
    """One tile of x against y, and how many of its pairs lie within given radii."""

    def __init__(
        self, filter_: _Filter, x: Tensor, y: Tensor, rows: slice, cols: slice, inside: Callable[..., Tensor]
    ) -> None:
        self.filter, self.x, self.y, self.rows, self.cols, self.inside = filter_, x[rows], y[cols], rows, cols, inside
        self.block: Tensor | None = None
        self.exact: Tensor | None = None

    def count(self, radii: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs inside, by row and by column; radii (n, 1) or (1, m), squared."""
        if self.exact is None:
            while self.filter.dtypes:
                dtype = self.filter.dtypes[0]
                if self.block is None or self.block.dtype != dtype:
                    self.block = self.filter.tile(self.rows, self.cols, dtype)
                found = self._decided(radii, self.block)
                if found is not None:
                    n, m = self.block.shape
                    return torch.bincount(found // m, minlength=n), torch.bincount(found % m, minlength=m)
                if len(self.filter.dtypes) == 1:  # float64 fails for this tile only
                    break
                self.filter.dtypes.pop(0)  # float32 failed: the rest of the data is likely to be no better
            self.exact = _differences(self.x, self.y)
        inside = self.inside(self.exact, radii)
        return inside.sum(dim=1), inside.sum(dim=0)

    def _decided(self, radii: Tensor, block: Tensor) -> Tensor | None:
        """Flat indices of the pairs inside; None where too many would have to be recomputed."""
        by_row, m = radii.shape[1] == 1, block.shape[1]
        side, part = (0, self.rows) if by_row else (1, self.cols)
        bound = self.filter.bound(side, part, block.dtype)
        threshold = radii.flatten() / self.filter.unit**2
        surely, perhaps = (threshold - bound).to(block.dtype), (threshold + bound).to(block.dtype)
        found = _true(block <= perhaps.view_as(radii))
        centre = found // m if by_row else found % m
        open_ = block.view(-1)[found] >= surely[centre]
        pairs = found[open_]
        if len(pairs) > block.numel() // (256 if block.dtype == torch.float32 else 8):
            return None
        keep = ~open_
        keep[open_] = self.inside(_pairs(self.x, pairs // m, self.y, pairs % m), radii.flatten()[centre[open_]])
        return found[keep]


class _Neighbours:
    """k-th nearest others by candidates: pairs that one tile shows to be nearer than the k-th nearest seen so far."""

    def __init__(self, points: Tensor, k: int) -> None:
        self.points, self.k = points, k
        self.filter = _Filter(points, points)

    def radii(self) -> Tensor:
        """(N,) exact squared distances to the k-th nearest."""
        for dtype in self.filter.dtypes:
            last = dtype == self.filter.dtypes[-1]
            if self._search(dtype, last):
                break
        return self._chosen()

    def _search(self, dtype: torch.dtype, last: bool) -> bool:
        """Fill the candidates; False where too many pairs cannot be told apart in this arithmetic."""
        n, device = len(self.points), self.points.device
        self.bound = self.filter.bound(0, slice(0, n), dtype)
        self.limit = torch.full((n,), torch.inf, dtype=torch.float64, device=device)
        empty = torch.empty(0, dtype=torch.int64, device=device)
        self.rows, self.others, self.values = [empty], [empty], [empty.to(torch.float64)]
        tiles = list(_tiles(n, max(_TILE, 4 * self.k)))
        merge_at = 1
        for offset in range(len(tiles)):
            for i in range(len(tiles) - offset):
                if not self._tile(tiles[i], tiles[i + offset], dtype):
                    if not last:
                        return False
                    self._tile_by_differences(tiles[i], tiles[i + offset])
                if sum(map(len, self.rows)) > 2**22:
                    self._merge()
            if offset + 1 == merge_at:  # limits tighten each time that twice as many tiles were seen
                self._merge()
                merge_at *= 2
        self._merge()
        return True

    def _tile(self, rows: slice, cols: slice, dtype: torch.dtype) -> bool:
        """Add the candidates among x_rows and x_cols, for both points of each pair; False where they are too many."""
        diagonal = rows == cols
        block = self.filter.tile(rows, cols, dtype)
        n, m = block.shape
        if diagonal:
            block.fill_diagonal_(torch.inf)
            if m > self.k:
                nearest = block.topk(self.k, dim=1, largest=False).values[:, -1].to(torch.float64)
                self.limit[rows] = torch.minimum(self.limit[rows], nearest + 2 * self.bound[rows])
        up = 1 + 2 * torch.finfo(dtype).eps  # the limit is rounded upwards, so that nothing at it is lost
        found = [_true(block <= (self.limit[rows, None] * up).to(dtype))]
        if not diagonal:
            found.append(_true(block <= (self.limit[None, cols] * up).to(dtype)))
        if sum(map(len, found)) > 4 * self.k * (n + m):
            return False
        for side, flat in enumerate(found):
            self._add(side, rows, cols, flat, block.view(-1)[flat].to(torch.float64))
        return True

    def _tile_by_differences(self, rows: slice, cols: slice) -> None:
        exact = _differences(self.points[rows], self.points[cols]).div_(self.filter.unit**2)
        diagonal, m = rows == cols, exact.shape[1]
        if diagonal:
            exact.fill_diagonal_(torch.inf)
        for side in (0,) if diagonal else (0, 1):
            least = exact.topk(min(self.k, exact.shape[1 - side]), dim=1 - side, largest=False)
            along = torch.arange(exact.shape[side], device=exact.device)
            flat = along[:, None] * m + least.indices if side == 0 else least.indices * m + along
            finite = least.values.isfinite()
            self._add(side, rows, cols, flat[finite], least.values[finite])

    def _add(self, side: int, rows: slice, cols: slice, flat: Tensor, values: Tensor) -> None:
        m = cols.stop - cols.start
        i, j = flat // m + rows.start, flat % m + cols.start
        self.rows.append(i if side == 0 else j)
        self.others.append(j if side == 0 else i)
        self.values.append(values)

    def _merge(self) -> None:
        """Sort candidates by point and distance, lower the limits to the k-th of each, drop what is above."""
        rows, others, values = torch.cat(self.rows), torch.cat(self.others), torch.cat(self.values)
        order = values.argsort()
        order = order[rows[order].argsort(stable=True)]
        rows, others, values = rows[order], others[order], values[order]
        counts = torch.bincount(rows, minlength=len(self.points))
        enough = counts >= self.k
        kth = (counts.cumsum(0) - counts + self.k - 1)[enough]
        self.limit[enough] = torch.minimum(self.limit[enough], values[kth] + 2 * self.bound[enough])
        keep = values <= self.limit[rows]
        self.rows, self.others, self.values = [rows[keep]], [others[keep]], [values[keep]]

    def _chosen(self) -> Tensor:
        """Exact distances of the candidates that may be the k-th, and the right one of them."""
        (rows,), (others,), (values,) = self.rows, self.others, self.values
        n = len(self.points)
        floor = (self.limit - 4 * self.bound)[rows]
        near = values < floor
        missing = self.k - torch.bincount(rows[near], minlength=n)  # its place among the open ones, from 1
        rows, others = rows[~near], others[~near]
        exact = _pairs(self.points, rows, self.points, others)
        order = exact.argsort()
        order = order[rows[order].argsort(stable=True)]
        counts = torch.bincount(rows, minlength=n)
        return exact[order][counts.cumsum(0) - counts + missing - 1]
