"""Curricula of consistency training against the published figures."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scoreline.core.errors import InputError
from scoreline.fewstep.curricula import ascending_levels, doubling_points, growing_points, lognormal_pairs, target_rate


def test_levels():
    levels = ascending_levels(11)
    assert levels[0] == 0.002
    assert levels[-1] == 80.0
    assert round(levels[1], 6) == 0.016721
    assert (np.diff(ascending_levels(1281)) > 0).all()
    with pytest.raises(InputError, match="2 or more"):
        ascending_levels(1)


def test_the_number_of_levels_doubles_in_eight_equal_stages():
    points = [doubling_points(k, 400_000) for k in range(0, 400_000, 10_000)]
    assert sorted(set(points)) == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert all(points.count(n) == 5 for n in set(points))
    assert doubling_points(49_999, 400_000) == 11
    assert doubling_points(399_999, 400_000) == 1281


def test_the_first_curriculum():
    assert growing_points(0, 800_000) == 2
    assert growing_points(800_000, 800_000) == 151
    assert growing_points(400_000, 800_000) == math.ceil(math.sqrt((151**2 - 4) / 2 + 4) - 1) + 1
    assert target_rate(151) == pytest.approx(0.95 ** (2 / 151))
    assert target_rate(2, mu0=0.9) == pytest.approx(0.9)


@pytest.mark.parametrize("points", [11, 1281])
def test_pair_weights_telescope_and_lose_nothing_far_up(points):
    levels = ascending_levels(points)
    weights = lognormal_pairs(levels)
    root = 2 * math.sqrt(2)
    assert weights.sum() == pytest.approx(
        math.erf((math.log(80) + 1.1) / root) - math.erf((math.log(0.002) + 1.1) / root)
    )
    i = points - 2
    density = 2 / math.sqrt(math.pi) * math.exp(-(((math.log(levels[i]) + 1.1) / root) ** 2))
    gap = math.log(levels[i + 1] / levels[i]) / root
    assert weights[i] == pytest.approx(density * gap, rel=0.7 if points == 11 else 0.02)
