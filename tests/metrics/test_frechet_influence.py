"""The influence of single images, against leaving them out, and its interval, against new draws."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.moments import Moments
from scoreline.metrics import frechet_distance
from scoreline.metrics import frechet_distance_from_statistics as distance
from scoreline.metrics import frechet_influence as whole_influence
from scoreline.metrics.frechet_influence import (
    Gaussian,
    influence_functions,
    resampled_interval,
    resampled_means,
)


def draw(count: int, dim: int, seed: int, shift: float = 0.0, stretch: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    return x * torch.linspace(1, stretch, dim, dtype=torch.float64) + shift


def gaussian(x: torch.Tensor) -> Gaussian:
    moments = Moments.of(x)
    return Gaussian(moments.mean, moments.cov())


def test_in_one_dimension_it_is_the_derivative_of_the_closed_form() -> None:
    """FD = (m_r - m_g)^2 + (s_r - s_g)^2: dFD = 2 (m_g - m_r) y + (1 - s_r / s_g) y^2, y less the mean."""
    of = influence_functions(
        Gaussian(torch.tensor([1.0]).double(), torch.tensor([[4.0]]).double()),
        Gaussian(torch.tensor([3.0]).double(), torch.tensor([[9.0]]).double()),
    )
    y = torch.tensor([[-1.0], [0.0], [5.0]]).double()
    torch.testing.assert_close(of.generated(3 + y)[:, None], 2 * 2 * y + (1 - 2 / 3) * y**2)
    torch.testing.assert_close(of.real(1 + y)[:, None], 2 * -2 * y + (1 - 3 / 2) * y**2)


@pytest.mark.parametrize("counts", [(400, 500), (40, 600), (600, 40), (40, 50)], ids=str)
def test_weight_on_an_image_moves_the_distance_by_its_influence(counts: tuple[int, int]) -> None:
    """Central differences; full rank, and fewer images than the 60 dimensions on either side or both."""
    x, y = draw(counts[0], 60, 0), draw(counts[1], 60, 1, 0.3, 2.0)
    r, g = gaussian(x), gaussian(y)
    of, step = influence_functions(r, g), 1e-4

    def weighted(side: Gaussian, rows: torch.Tensor, i: int, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        away = rows[i] - side.mean
        mean_square = side.cov * (len(rows) - 1) / len(rows)
        return side.mean + weight * away, side.cov + weight * (torch.outer(away, away) - mean_square)

    for i in range(3):
        moved = [distance(r.mean, r.cov, *weighted(g, y, i, w)) for w in (step, -step)]
        values = of.generated(y)
        assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(float(values[i] - values.mean()), rel=1e-3)
        moved = [distance(*weighted(r, x, i, w), g.mean, g.cov) for w in (step, -step)]
        values = of.real(x)
        assert (moved[0] - moved[1]) / (2 * step) == pytest.approx(float(values[i] - values.mean()), rel=1e-3)


def test_of_full_rank_it_is_the_influence_that_the_metrics_compute() -> None:
    x, y = draw(300, 10, 0), draw(200, 10, 1, 0.5, 1.5)
    of, whole = influence_functions(gaussian(x), gaussian(y)), whole_influence(x, y)
    values = of.generated(y)
    torch.testing.assert_close(values - values.mean(), whole.generated, rtol=1e-7, atol=1e-8)
    values = of.real(x)
    torch.testing.assert_close(values - values.mean(), whole.real, rtol=1e-7, atol=1e-8)


def test_the_interval_covers_what_other_draws_give() -> None:
    """The standard error from one draw against the spread over 200 draws."""
    values, errors = [], []
    for seed in range(200):
        x, y = draw(150, 4, 2 * seed), draw(250, 4, 2 * seed + 1, 0.3, 1.5)
        values.append(frechet_distance(x, y))
        if seed < 20:
            of = influence_functions(gaussian(x), gaussian(y))
            draws = resampled_means(of.real(x), 150, 500, 0) + resampled_means(of.generated(y), 250, 500, 1)
            errors.append(float(draws.std()))
    spread = float(torch.tensor(values).std())
    assert sum(errors) / len(errors) == pytest.approx(spread, rel=0.15)


def test_a_sample_stands_for_all() -> None:
    values = draw(4000, 1, 0)[:, 0]
    whole, part = resampled_means(values, 4000, 2000, 0), resampled_means(values[:500], 4000, 2000, 0)
    assert float(whole.std()) == pytest.approx(1 / math.sqrt(4000), rel=0.06)
    assert float(part.std()) == pytest.approx(1 / math.sqrt(4000), rel=0.1)


def test_the_interval_is_seeded_and_around_the_value() -> None:
    draws = resampled_means(draw(100, 1, 0)[:, 0], 100, 1000, 3)
    assert torch.equal(draws, resampled_means(draw(100, 1, 0)[:, 0], 100, 1000, 3))
    assert not torch.equal(draws, resampled_means(draw(100, 1, 0)[:, 0], 100, 1000, 4))
    interval = resampled_interval(5.0, draws + 77, 0.9, 3)
    assert interval.low < 5 < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.645 * float(draws.std()), rel=0.1)
    assert "seed 3" in interval.method
