"""KID against literal loops and the identities of its estimators."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.metrics.kid import kernel_distance, polynomial_mmd


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def k(x: Tensor, y: Tensor) -> float:
    return (float(x.double() @ y.double()) / len(x) + 1) ** 3


@pytest.mark.check(system=0, number=5)
@pytest.mark.parametrize("m", [2, 7])
def test_a_set_against_itself(m: int) -> None:
    x = draw(m, 4, 0)
    same = sum(k(x[i], x[i]) for i in range(m))
    other = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j)
    expected = -2 / m**2 * same + 2 / (m**2 * (m - 1)) * other
    assert polynomial_mmd(x, x) == pytest.approx(expected, rel=1e-10)
    assert expected < 0
    assert polynomial_mmd(x, x, estimator="biased") == pytest.approx(0, abs=1e-12)
    assert polynomial_mmd(x, x, estimator="u-statistic") == pytest.approx(0, abs=1e-12)


def test_estimators_equal_the_loops_for_unequal_counts() -> None:
    x, y = draw(5, 3, 0), draw(8, 3, 1) + 0.5
    n, m = len(x), len(y)
    xx = sum(k(x[i], x[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    yy = sum(k(y[i], y[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    xy = sum(k(a, b) for a in x for b in y) / (n * m)
    assert polynomial_mmd(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-10)
    biased = sum(k(a, b) for a in x for b in x) / n**2 + sum(k(a, b) for a in y for b in y) / m**2 - 2 * xy
    assert polynomial_mmd(x, y, estimator="biased") == pytest.approx(biased, rel=1e-10)
    z = y[:n]
    pairs = sum(k(x[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    zz = sum(k(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    assert polynomial_mmd(x, z, estimator="u-statistic") == pytest.approx(xx + zz - 2 * pairs, rel=1e-10)


def test_rows_in_blocks_give_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(23, 4, 0), draw(17, 4, 1)
    whole = {e: polynomial_mmd(x, y, estimator=e) for e in ("unbiased", "biased")}
    monkeypatch.setattr("scoreline.metrics.kid._BLOCK_BYTES", 5 * 8 * 17)
    for estimator, value in whole.items():
        assert polynomial_mmd(x, y, estimator=estimator) == pytest.approx(value, rel=1e-10)


def test_kernel_settings_count() -> None:
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [5.0]])
    # (2 x y + 1)^1: 2 * 5 / 2 pairs within, 2 * 31 / 2, and across 2 (1 + 2)(3 + 5) / 4 + 1 = 13
    value = polynomial_mmd(x, y, degree=1, gamma=2.0, coef0=1.0)
    assert value == pytest.approx((2 * 2 + 1) + (2 * 15 + 1) - 2 * 13)


@pytest.mark.parametrize("mode", ["torch-fidelity", "clean-fid"])
def test_subsets_are_the_peers_own(mode: str) -> None:
    """Generated rows drawn first, from RandomState(2020), without replacement."""
    real, generated = draw(30, 4, 0), draw(20, 4, 1) + 0.3
    spread = kernel_distance(real, generated, mode=mode, subsets=4, subset_size=10)
    rng = np.random.RandomState(2020)
    expected = []
    for _ in range(4):
        g, r = generated[rng.choice(20, 10, replace=False)], real[rng.choice(30, 10, replace=False)]
        expected.append(polynomial_mmd(r, g))
    np.testing.assert_allclose(spread.values, expected, rtol=1e-12)
    assert spread.mean == pytest.approx(np.mean(expected))
    assert spread.std == pytest.approx(np.std(expected))


def test_small_sets() -> None:
    real, generated = draw(30, 4, 0), draw(20, 4, 1)
    with pytest.raises(InputError, match="at most 20"):
        kernel_distance(real, generated)
    # clean-fid shrinks the subset to the smaller set: all 20 generated rows, every time
    shrunk = kernel_distance(real[:20], generated, mode="clean-fid", subsets=3)
    np.testing.assert_allclose(shrunk.values, [polynomial_mmd(real[:20], generated)] * 3, rtol=1e-10)


def test_bad_input() -> None:
    x = draw(5, 3, 0)
    for bad in (draw(5, 2, 0), x[:1], x * float("inf")):
        with pytest.raises(InputError):
            polynomial_mmd(x, bad)
    with pytest.raises(InputError, match="unbiased"):
        polynomial_mmd(x, x, estimator="unbiassed")
    with pytest.raises(InputError, match="as many"):
        polynomial_mmd(x, x[:4], estimator="u-statistic")
    with pytest.raises(InputError, match="clean-fid"):
        kernel_distance(x, x, mode="cleanfid")
    with pytest.raises(InputError, match="at least one subset"):
        kernel_distance(x, x, subsets=0, subset_size=3)


def test_two_halves_of_the_digits() -> None:
    """KID of two halves of one data set is 0 within its spread, whatever n; the Frechet distance falls like c/n."""
    from sklearn.datasets import load_digits

    from scoreline.metrics.frechet import frechet_distance

    x = torch.from_numpy(load_digits().data) / 8 - 1
    distance, kid = {}, {}
    for n in (50, 200, 800):
        orders = [torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)) for seed in range(10)]
        pairs = [(x[order[:n]], x[order[n : 2 * n]]) for order in orders]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            distance[n] = float(np.mean([frechet_distance(a, b) for a, b in pairs]))
        values = [polynomial_mmd(a, b) for a, b in pairs]
        kid[n] = np.mean(values), np.std(values, ddof=1) / np.sqrt(10)
    assert distance[50] == pytest.approx(4.8, rel=0.2)  # a spread of .9 over draws: .3 in the mean
    assert distance[200] == pytest.approx(1.34, rel=0.1)
    assert distance[800] == pytest.approx(0.35, rel=0.1)
    for mean, error in kid.values():
        assert abs(mean) < 3 * error
