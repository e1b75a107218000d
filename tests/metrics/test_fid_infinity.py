"""FID_infinity: exact on a line, and the calibration on Gaussian digits."""

from __future__ import annotations

import sys

import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.moments import Moments
from scoreline.metrics.fid_infinity import fid_infinity
from scoreline.metrics.frechet import frechet_distance


def draw(n: int, d: int, seed: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_line_is_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """With FD = 2 + 30 / n exactly, the intercept is 2, the slope 30, and the error nothing."""
    home = sys.modules[fid_infinity.__module__]  # the package attribute of that name is the function
    monkeypatch.setattr(home, "frechet_distance", lambda real, generated, method: 2 + 30 / generated.count)
    fit = fid_infinity(draw(50, 3, 0), draw(400, 3, 1))
    assert fit.value == pytest.approx(2, abs=1e-10)
    assert fit.slope == pytest.approx(30, rel=1e-10)
    assert fit.stderr == pytest.approx(0, abs=1e-10)
    assert fit.sizes[0] == 40
    assert fit.sizes[-1] == 400
    assert len(fit.sizes) == 15


def test_the_error_is_that_of_least_squares() -> None:
    from scipy.stats import linregress

    fit = fid_infinity(draw(300, 3, 0), draw(300, 3, 1) + 0.1, points=9)
    reference = linregress([1 / n for n in fit.sizes], fit.distances)
    assert fit.value == pytest.approx(reference.intercept, rel=1e-9)
    assert fit.slope == pytest.approx(reference.slope, rel=1e-9)
    assert fit.stderr == pytest.approx(reference.intercept_stderr, rel=1e-9)
    half = 2.364624 * fit.stderr  # t quantile .975 of 7 degrees of freedom
    assert (fit.interval.low, fit.interval.high) == pytest.approx((fit.value - half, fit.value + half), rel=1e-5)


def test_the_last_point_is_the_whole_set_and_seeds_decide_the_rest() -> None:
    real, generated = draw(200, 3, 0), draw(200, 3, 1)
    a, b, c = (fid_infinity(real, generated, seed=seed) for seed in (0, 0, 1))
    assert a == b
    assert a.distances[:-1] != c.distances[:-1]
    assert a.distances[-1] == pytest.approx(frechet_distance(real, generated), rel=1e-9)


def test_subsets_are_never_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows may lie in a file larger than the memory: they are gathered a block at a time."""
    real, generated = Moments.of(draw(300, 3, 0)), draw(1000, 3, 1)
    whole, seen, update = fid_infinity(real, generated), [], Moments.update

    def watched(self: Moments, features: torch.Tensor) -> Moments:
        seen.append(len(features))
        return update(self, features)

    monkeypatch.setattr(Moments, "update", watched)
    monkeypatch.setattr(sys.modules[fid_infinity.__module__], "_ROWS", 64)
    parts = fid_infinity(real, generated)
    assert max(seen) == 64
    assert parts.distances == pytest.approx(whole.distances, rel=1e-9)


@pytest.mark.filterwarnings("ignore:.*rank deficient:UserWarning")
def test_gaussian_digits() -> None:
    """2000 draws from the digits' own Gaussian: FD is all bias, about .08, and the extrapolation takes it away.

    Against a finite reference the reference's share of the bias stays.
    """
    from sklearn.datasets import load_digits

    x = torch.from_numpy(load_digits().data) / 8 - 1
    exact = Moments.of(x)
    cov = exact.cov() + 0.02 * torch.eye(64, dtype=torch.float64)
    root = torch.linalg.cholesky(cov)
    reference = Moments.from_tensors({"count": torch.tensor(10**9), "mean": exact.mean, "scatter": cov * (10**9 - 1)})
    values, plain = [], []
    for seed in range(6):
        generated = draw(2000, 64, seed) @ root.T + exact.mean
        fit = fid_infinity(reference, generated, seed=seed)
        values.append(fit.value)
        plain.append(fit.distances[-1])
    mean = sum(values) / 6
    assert sum(plain) / 6 == pytest.approx(0.080, abs=0.008)
    assert abs(mean) < 0.016  # 3 standard errors of six fits with a spread of .013

    half = draw(898, 64, 100) @ root.T + exact.mean
    finite = fid_infinity(half, draw(898, 64, 101) @ root.T + exact.mean)
    assert 0.3 * finite.distances[-1] < finite.value < 0.7 * finite.distances[-1]


def test_bad_input() -> None:
    real, generated = draw(50, 3, 0), draw(60, 3, 1)
    with pytest.raises(InputError, match="at least 3"):
        fid_infinity(real, generated, points=2)
    for smallest in (1, 60):
        with pytest.raises(InputError, match="from 2 to 59"):
            fid_infinity(real, generated, smallest=smallest)
    with pytest.raises(InputError, match="NaN"):
        fid_infinity(real, generated * float("nan"))
