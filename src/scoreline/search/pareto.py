"""Several aims at once: which results no other beats in all of them.

All aims are minimised. A result dominates another when it is nowhere worse and somewhere better; the front holds what
nothing dominates. Sorting and crowding distance follow NSGA-II (Deb et al. 2002).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from scoreline.core.errors import InputError

__all__ = ["crowding_distance", "front", "non_dominated_sort", "survivors"]


def _matrix(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 2:
        raise InputError("objectives", found.shape, "give one row a candidate and one column an aim")
    if np.isnan(found).any():
        raise InputError("objectives", "NaN", "cannot be ranked; use infinity for what failed")
    return found


def non_dominated_sort(values: Sequence[Sequence[float]] | np.ndarray) -> list[np.ndarray]:
    """The fronts, best first: front k is what only results of the fronts before it dominate.

    Args:
        values: (N, M) aims, smaller is better; infinity is the worst.

    Returns:
        Index arrays, ascending, together 0 ... N-1; equal rows share a front.

    Reference: Deb et al. 2002, section III-A.

    >>> [f.tolist() for f in non_dominated_sort([[1, 5], [2, 2], [3, 3], [1, 5]])]
    [[0, 1, 3], [2]]
    """
    f = _matrix(values)
    # dominates[i, j]: i is nowhere worse than j and somewhere better.
    dominates = np.logical_and((f[:, None] <= f[None]).all(-1), (f[:, None] < f[None]).any(-1))
    left, fronts = np.ones(len(f), dtype=bool), []
    while left.any():
        best = left & ~dominates[left].any(0)
        fronts.append(np.flatnonzero(best))
        left &= ~best
    return fronts


def crowding_distance(values: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """How far apart the neighbours of each result are, (N,): sum_m (f_m[i+1] - f_m[i-1])/(max f_m - min f_m).

    The two ends of every aim are infinitely far; an aim in which all are equal counts nothing.

    Reference: Deb et al. 2002, section III-B.

    >>> crowding_distance([[0, 4], [1, 2], [4, 0]]).tolist()
    [inf, 2.0, inf]
    """
    f = _matrix(values)
    distance = np.zeros(len(f))
    for column in f.T:
        order = np.argsort(column, kind="stable")
        low, high = column[order[0]], column[order[-1]]
        distance[order[[0, -1]]] = np.inf
        if high > low and np.isfinite(high):
            distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / (high - low)
    return distance


def survivors(values: Sequence[Sequence[float]] | np.ndarray, count: int) -> np.ndarray:
    """The `count` best, by front and within the last one by crowding distance: indices, best first.

    Raises:
        InputError: there are fewer than `count`.

    Reference: Deb et al. 2002, section III-C.
    """
    f = _matrix(values)
    if not 0 <= count <= len(f):
        raise InputError("count", count, f"there are {len(f)} candidates")
    chosen: list[int] = []
    for members in non_dominated_sort(f):
        far = np.argsort(-crowding_distance(f[members]), kind="stable")
        chosen += members[far][: count - len(chosen)].tolist()
        if len(chosen) == count:
            break
    return np.array(chosen, dtype=np.int64)


def front(rows: Sequence[Mapping[str, float]], aims: Sequence[str]) -> list[int]:
    """Numbers of the rows on the front of some aims, sorted by the first; of equal rows the first one.

    >>> front([{"value": 3, "nfe": 4}, {"value": 1, "nfe": 6}, {"value": 2, "nfe": 8}], ["nfe", "value"])
    [0, 1]
    """
    if not rows:
        return []
    values = [tuple(float(row[aim]) for aim in aims) for row in rows]
    best = non_dominated_sort(values)[0]
    unique = {values[i]: int(i) for i in reversed(best)}
    return [unique[key] for key in sorted(unique)]
