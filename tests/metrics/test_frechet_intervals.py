"""Intervals of Frechet distances: derivatives against differences, widths against new draws, pairing against none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.moments import Moments
from scoreline.metrics.frechet import frechet_distance, frechet_distance_from_statistics
from scoreline.metrics.frechet_intervals import frechet_influence, frechet_interval, paired_frechet_difference


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(d: int) -> Moments:
    """Fixed moments of a standard normal, known exactly."""
    tensors = {"count": torch.tensor(10**9), "mean": torch.zeros(d), "scatter": torch.eye(d) * (10**9 - 1)}
    return Moments.from_tensors(tensors)


def weighted(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    p = weights / weights.sum()
    mean = p @ x
    return mean, (x - mean).T @ (p[:, None] * (x - mean))


@pytest.mark.parametrize("deficient", ["neither", "real", "generated", "both"])
@pytest.mark.parametrize("side", ["real", "generated"])
def test_influence_is_the_derivative_by_the_weight_of_an_image(side: str, deficient: str) -> None:
    """Also where features are constant (dead units) or combinations of others, on either side."""
    real, generated = draw(900, 3, 0), draw(700, 3, 1) @ draw(3, 3, 2) + 0.4
    if deficient in ("real", "both"):
        real[:, 2] = real[:, 0] - real[:, 1]
    if deficient in ("generated", "both"):
        generated[:, 1] = 0.25
    influence = getattr(frechet_influence(real, generated), side)
    chosen = real if side == "real" else generated
    n = len(chosen)
    assert influence.shape == (n,)
    assert abs(influence.mean()) < 1e-10
    for j in (0, 17, int(influence.argmax()), int(influence.argmin())):

        def distance(step: float, j: int = j) -> float:
            weights = {"real": torch.ones(900).double(), "generated": torch.ones(700).double()}
            weights[side][j] += step
            moments = *weighted(real, weights["real"]), *weighted(generated, weights["generated"])
            return frechet_distance_from_statistics(*moments)

        slope = (distance(1e-3) - distance(-1e-3)) / 2e-3 * n
        # ddof: the derivative was taken of scatter / n, the distance is of scatter / (n - 1)
        assert float(influence[j]) == pytest.approx(slope, rel=0.01, abs=0.02)


WAYS = [("linear", {}), ("jackknife", {}), ("bootstrap", {"resamples": 60})]


@pytest.mark.parametrize("method, settings", WAYS)
@pytest.mark.parametrize("fixed_reference", [True, False])
def test_frechet_interval_has_the_width_of_new_draws(method: str, settings: dict, fixed_reference: bool) -> None:
    """The interval's standard error, averaged, against the spread of FD over 200 independent draws."""

    def sets(seed: int) -> tuple[Tensor | Moments, Tensor]:
        return reference(3) if fixed_reference else draw(150, 3, 1000 + seed), 1.3 * draw(200, 3, seed) + 0.3

    spread = torch.tensor([frechet_distance(*sets(seed)) for seed in range(200)]).std()
    errors = []
    for seed in range(300, 308):
        real, generated = sets(seed)
        value, interval = frechet_interval(real, generated, method=method, **settings)
        assert value == frechet_distance(real, generated)
        errors.append((interval.high - interval.low) / (2 * 1.96))
    assert sum(errors) / len(errors) == pytest.approx(float(spread), rel=0.25)


def test_the_linear_way_holds_where_dimensions_are_not_few() -> None:
    """64 dimensions and 3 to 8 images a dimension, spectra that fall: still the width of new draws, to a third."""
    scale = 1 / torch.arange(1, 65).double()
    for n in (192, 512):
        values = [frechet_distance(reference(64), 1.1 * scale * draw(n, 64, seed)) for seed in range(40)]
        spread = float(torch.tensor(values).std())
        _, interval = frechet_interval(reference(64), 1.1 * scale * draw(n, 64, 99), method="linear")
        assert (interval.high - interval.low) / 2 / 1.96 == pytest.approx(spread, rel=0.34)


def test_auto_takes_the_linear_way_where_the_distance_is_smooth() -> None:
    assert "influence" in frechet_interval(draw(90, 4, 0), draw(80, 4, 1))[1].method
    few = frechet_interval(draw(90, 40, 0), draw(80, 40, 1))[1]  # 80 is not above 2 * 40
    assert few.method == "jackknife over images, 20 groups, seed 0"
    assert few == frechet_interval(draw(90, 40, 0), draw(80, 40, 1), method="jackknife")[1]


@pytest.mark.filterwarnings("ignore:.*rank deficient:UserWarning")
@pytest.mark.parametrize("d", [3, 70, 55])
def test_groups_are_left_out_by_subtraction_as_by_leaving_out(d: int) -> None:
    """d = 3: moments throughout; 70: rows throughout; 55: moments of the whole, rows of what a group leaves."""
    real, generated = draw(60, d, 0) + 100, draw(62, d, 1) * 1.2 + 100
    _, interval = frechet_interval(real, generated, method="jackknife", groups=10)
    generator = torch.Generator().manual_seed(0)
    variance = 0.0
    for side in (0, 1):
        left = []
        order = torch.randperm(60 if side == 0 else 62, generator=generator)
        for group in order.tensor_split(10):
            sets = [real, generated]
            keep = torch.ones(len(order), dtype=torch.bool)
            keep[group] = False
            sets[side] = sets[side][keep]
            left.append(frechet_distance(*sets))
        spread = torch.tensor(left, dtype=torch.float64)
        variance += 9 / 10 * float((spread - spread.mean()).square().sum())
    assert (interval.high - interval.low) / 2 == pytest.approx(1.959964 * math.sqrt(variance), rel=1e-6)


def test_sets_without_any_spread_have_no_error_of_it() -> None:
    """One image repeated: FD is a squared distance, moved by its mean alone, and no image differs."""
    x = torch.ones(9, 3)
    influence = frechet_influence(x, 2 * x)
    assert influence.real is not None
    assert influence.real.tolist() == influence.generated.tolist() == [0.0] * 9


def test_the_bootstrap_does_not_move_the_value() -> None:
    """Naive percentiles of FD* would lie wholly above FD here: resampling repeats images, and bias grows."""
    real, generated = draw(100, 20, 0), draw(100, 20, 1)
    value, interval = frechet_interval(real, generated, method="bootstrap", resamples=60)
    assert value in interval
    assert abs((interval.low + interval.high) / 2 - value) < 0.3 * (interval.high - interval.low)


@pytest.mark.parametrize("method, settings", WAYS)
@pytest.mark.parametrize("fixed_reference", [True, False])
def test_paired_differences_have_the_width_of_new_draws(method: str, settings: dict, fixed_reference: bool) -> None:
    """b is a made from the same noise, somewhat larger: paired, the error is far below that of two distances."""

    def sets(seed: int) -> tuple[Tensor | Moments, Tensor, Tensor]:
        noise = draw(150, 3, seed)
        real = reference(3) if fixed_reference else draw(150, 3, 1000 + seed)
        return real, 1.2 * noise + 0.2, 1.25 * noise + 0.25

    def difference(real: Tensor | Moments, a: Tensor, b: Tensor) -> float:
        return frechet_distance(real, a) - frechet_distance(real, b)

    spread = float(torch.tensor([difference(*sets(seed)) for seed in range(150)]).std())
    errors = []
    for seed in range(300, 306):
        real, a, b = sets(seed)
        found = paired_frechet_difference(real, a, b, method=method, **settings)
        assert found.value == pytest.approx(difference(real, a, b))
        assert (found.a, found.b) == (frechet_distance(real, a), frechet_distance(real, b))
        assert found.value in found.interval
        errors.append((found.interval.high - found.interval.low) / (2 * 1.96))
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.25)
    _, alone = frechet_interval(real, a, method=method, **settings)
    assert (alone.high - alone.low) / (2 * 1.96) > 2 * spread


def test_p_values_of_equal_generators_are_spread_evenly() -> None:
    p = torch.tensor(
        [paired_frechet_difference(draw(300, 2, s), draw(300, 2, 5000 + s) + 1, draw(300, 2, 9000 + s) + 1).p_value
         for s in range(200)]
    )  # fmt: skip
    assert float((p < 0.05).double().mean()) < 0.10
    assert 0.4 < float(p.mean()) < 0.6


def test_a_worse_generator_is_found_and_an_equal_one_is_not() -> None:
    real, a = draw(400, 3, 0), draw(400, 3, 1) + 0.3
    worse = paired_frechet_difference(real, a, a + 0.3)
    assert worse.value < 0
    assert worse.p_value < 1e-6
    assert worse.interval.high < 0
    same = paired_frechet_difference(real, a, a.clone())
    assert (same.value, same.p_value) == (0, 1)
    turned = paired_frechet_difference(real, a + 0.3, a)
    assert turned.value == -worse.value
    assert turned.p_value == pytest.approx(worse.p_value)


def test_bad_input() -> None:
    x, y = draw(50, 2, 0), draw(60, 2, 1)
    with pytest.raises(InputError, match="between 2 and 16"):
        frechet_interval(x, y, method="jackknife")
    with pytest.raises(InputError, match="jackknife"):
        frechet_interval(x, y, method="jacknife")
    with pytest.raises(InputError, match="jackknife"):
        paired_frechet_difference(x, y, y, method="jacknife")
    with pytest.raises(InputError, match="0 and 1"):
        frechet_interval(x, y, level=95)
    with pytest.raises(InputError, match="at least 2"):
        frechet_interval(x, y, method="bootstrap", resamples=1)
    with pytest.raises(InputError, match="one pair"):
        paired_frechet_difference(x, x, y)
    with pytest.raises(InputError, match="d = 2"):
        frechet_influence(reference(3), y)
