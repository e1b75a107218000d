"""Fronts against their definition, on every small case and on random ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from scoreline.core.errors import InputError
from scoreline.search.pareto import crowding_distance, front, non_dominated_sort, survivors


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return all(a <= b) and any(a < b)


@pytest.mark.parametrize("seed", range(20))
def test_a_front_is_what_only_earlier_fronts_dominate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 6, size=(25, 2 + seed % 2)).astype(float)
    values[rng.random(values.shape) < 0.05] = math.inf
    fronts = non_dominated_sort(values)
    assert sorted(itertools.chain(*fronts)) == list(range(25))
    rank = {int(i): k for k, members in enumerate(fronts) for i in members}
    for i in range(25):
        above = [rank[j] for j in range(25) if dominates(values[j], values[i])]
        assert rank[i] == (max(above) + 1 if above else 0)


def test_crowding_by_hand() -> None:
    values = [[1.0, 10.0], [2.0, 6.0], [4.0, 5.0], [9.0, 2.0]]
    expected = [math.inf, (4 - 1) / 8 + (10 - 5) / 8, (9 - 2) / 8 + (6 - 2) / 8, math.inf]
    assert crowding_distance(values) == pytest.approx(expected)
    order = [2, 0, 3, 1]
    assert crowding_distance([values[i] for i in order]) == pytest.approx([expected[i] for i in order])
    # An aim in which all are equal tells nothing but its two ends.
    flat = crowding_distance([[1.0, 7.0], [2.0, 7.0], [5.0, 7.0]])
    assert flat[1] == pytest.approx(1.0)


def test_survivors_fill_fronts_and_then_the_least_crowded() -> None:
    first = [[0.0, 10.0], [1.0, 9.0], [1.1, 8.9], [5.0, 5.0], [10.0, 0.0]]
    second = [[6.0, 6.0], [20.0, 20.0]]
    values = np.array(second[1:] + first + second[:1])
    assert sorted(survivors(values, 5).tolist()) == [1, 2, 3, 4, 5]
    assert sorted(survivors(values, 6).tolist()) == [1, 2, 3, 4, 5, 6]
    kept = survivors(values, 3).tolist()
    assert set(kept) == {1, 4, 5}  # the ends, and the one with most room
    with pytest.raises(InputError, match="count"):
        survivors(values, 9)


def test_the_front_of_rows() -> None:
    rows = [{"value": 3.0, "nfe": 4.0}, {"value": 1.0, "nfe": 9.0}, {"value": 3.0, "nfe": 4.0},
            {"value": 2.0, "nfe": 9.0}, {"value": math.inf, "nfe": 1.0}]  # fmt: skip
    assert front(rows, ["nfe", "value"]) == [4, 0, 1]
    assert front([], ["nfe"]) == []


def test_bad_objectives() -> None:
    with pytest.raises(InputError, match="one row a candidate"):
        non_dominated_sort([1.0, 2.0])  # type: ignore[list-item]
    with pytest.raises(InputError, match="NaN"):
        non_dominated_sort([[math.nan, 1.0]])
