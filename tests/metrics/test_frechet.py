"""The Frechet distance against closed forms, its laws, and the peers' own routes."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scoreline.core.errors import InputError, NonFiniteError
from scoreline.core.moments import Moments
from scoreline.metrics.frechet import METHODS, frechet_distance, frechet_distance_from_statistics, trace_of_root

LAW = settings(deadline=None, max_examples=25)
SEEDS = st.integers(0, 2**31)


def draw(n: int, d: int, seed: int, *, spread: float = 1.0) -> Tensor:
    """Correlated features with a mean off zero."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return spread * torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + torch.randn(
        d, generator=generator, dtype=torch.float64
    )


def nuclear(x: Tensor, y: Tensor) -> float:
    """FD of two sets from its definition with the nuclear norm of the N x M product, in plain NumPy terms."""
    xc, yc = x - x.mean(0), y - y.mean(0)
    n, m = len(x) - 1, len(y) - 1
    norm = torch.linalg.matrix_norm(xc @ yc.T, "nuc") / (n * m) ** 0.5
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return float(shift + xc.square().sum() / n + yc.square().sum() / m - 2 * norm)


@pytest.mark.check(system=0, number=1)
@pytest.mark.parametrize("method", METHODS)
def test_one_dimension_and_diagonal_closed_forms(method: str) -> None:
    def f64(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    one = frechet_distance_from_statistics(f64(0), f64(1)[None], f64(3), f64(4)[None], method=method)
    assert one == pytest.approx(9 + 1 + 4 - 2 * 2, rel=1e-12)
    m1, m2, v1, v2 = f64(0, 1, 2), f64(1, 1, 4), f64(1, 4, 9), f64(25, 4, 0.25)
    exact = float((m1 - m2).square().sum() + (v1.sqrt() - v2.sqrt()).square().sum())
    diagonal = frechet_distance_from_statistics(m1, v1.diag(), m2, v2.diag(), method=method)
    assert diagonal == pytest.approx(exact, rel=1e-12)


@pytest.mark.check(system=0, number=2)
@LAW
@given(seed=SEEDS, d=st.integers(1, 6), scale=st.floats(0.1, 10))
def test_laws(seed: int, d: int, scale: float) -> None:
    x, y = draw(40, d, seed), draw(30, d, seed + 1)
    fd = frechet_distance(x, y)
    shift = draw(1, d, seed + 2)[0]
    orthogonal = torch.linalg.qr(draw(d, d, seed + 3)).Q
    size = float(x.square().mean() + y.square().mean()) * d
    assert abs(frechet_distance(x, x)) < 1e-6 * max(1, size)
    assert frechet_distance(x, x + shift) == pytest.approx(float(shift.square().sum()), abs=1e-9 * size)
    assert frechet_distance(y, x) == pytest.approx(fd, rel=1e-8, abs=1e-9 * size)
    assert frechet_distance(x @ orthogonal, y @ orthogonal) == pytest.approx(fd, rel=1e-8, abs=1e-9 * size)
    assert frechet_distance(scale * x, scale * y) == pytest.approx(scale**2 * fd, rel=1e-8, abs=1e-9 * scale**2 * size)
    assert fd > -1e-9 * size


@pytest.mark.check(system=0, number=3)
@pytest.mark.filterwarnings("ignore:.*rank deficient:UserWarning")
@LAW
@given(seed=SEEDS, n=st.integers(2, 40), m=st.integers(2, 40), d=st.integers(8, 24))
def test_fewer_rows_than_dimensions_equal_the_nuclear_norm(seed: int, n: int, m: int, d: int) -> None:
    x, y = draw(n, d, seed), draw(m, d, seed + 1)
    exact = nuclear(x, y)
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-9)
    # from moments the rows are gone, and the rank has to be found in the covariance
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(x, Moments.of(y)) == pytest.approx(exact, rel=1e-9)


@pytest.mark.filterwarnings("ignore:.*rank deficient:UserWarning")
def test_deficient_statistics_without_a_count() -> None:
    """Statistics from a file do not tell n: the null space has to be seen in the eigenvalues."""
    x, y = draw(30, 100, 0), draw(60, 100, 1)
    a, b = Moments.of(x), Moments.of(y)
    distance = frechet_distance_from_statistics(a.mean, a.cov(), b.mean, b.cov())
    assert distance == pytest.approx(nuclear(x, y), rel=1e-11)


def test_ill_conditioned_covariances_keep_their_digits() -> None:
    """Diagonal spectra over 12 decades, turned alike: eigvalsh alone loses the small roots, and FD is exact here."""
    q = torch.linalg.qr(draw(60, 60, 0)).Q
    w = torch.logspace(0, -12, 60, dtype=torch.float64)
    v = w.flip(0)
    zero = torch.zeros(60, dtype=torch.float64)
    fd = frechet_distance_from_statistics(zero, q @ w.diag() @ q.T, zero, q @ v.diag() @ q.T)
    assert fd == pytest.approx(float((w.sqrt() - v.sqrt()).square().sum()), rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*rank deficient:UserWarning")
def test_constant_columns_and_single_images() -> None:
    x, y = draw(50, 5, 0), draw(50, 5, 1)
    x[:, 2] = y[:, 2] = 7.0
    keep = [0, 1, 3, 4]
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(x[:, keep], y[:, keep]), rel=1e-9)
    # one image repeated: both covariances vanish, and only the squared distance of two vectors is left
    assert frechet_distance(x[:1].expand(9, -1), y[:1].expand(9, -1)) == pytest.approx(
        float((x[0] - y[0]).square().sum()), rel=1e-12
    )


@pytest.mark.parametrize("method", METHODS)
def test_routes_agree_on_full_rank_sets(method: str) -> None:
    x, y = draw(300, 20, 0), draw(200, 20, 1)
    assert frechet_distance(x, y, method=method) == pytest.approx(nuclear(x, y), rel=1e-9)
    assert frechet_distance(x.float(), y.float(), method=method) == pytest.approx(nuclear(x, y), rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*rank deficient:UserWarning")
def test_sqrtm_rescues_a_root_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """eps goes to BOTH covariances, and only when the first root failed."""
    import numpy as np
    import scipy.linalg

    seen: list[np.ndarray] = []
    real_sqrtm = scipy.linalg.sqrtm

    def first_fails(a: np.ndarray) -> np.ndarray:
        seen.append(a)
        return np.full_like(a, np.nan) if len(seen) == 1 else real_sqrtm(a)

    monkeypatch.setattr(scipy.linalg, "sqrtm", first_fails)
    x, y = draw(300, 4, 0), draw(200, 4, 1)
    a, b = Moments.of(x).cov(), Moments.of(y).cov()
    frechet_distance(x, y, method="sqrtm", eps=1e-2)
    offset = 1e-2 * torch.eye(4, dtype=torch.float64)
    np.testing.assert_allclose(seen[1], ((a + offset) @ (b + offset)).numpy(), rtol=1e-12)


def test_an_imaginary_part_is_refused_or_dropped_as_the_original_does(monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import scipy.linalg

    cov = torch.diag(torch.tensor([1.0, 4.0, 9.0]))
    zero = torch.zeros(3)
    for size in (0.9e-3, 1.1e-3):  # pytorch-fid's limit is 1e-3, on the diagonal only
        root = np.diag([1, 4 - size * 1j, 9]) + 5j * np.eye(3, k=1)
        monkeypatch.setattr(scipy.linalg, "sqrtm", lambda product, root=root: root)
        dropped = frechet_distance_from_statistics(zero, cov, zero, cov, method="sqrtm-clean")
        assert dropped == pytest.approx(14 + 14 - 2 * (1 + 4 + 9), abs=1e-12)
        if size < 1e-3:
            assert frechet_distance_from_statistics(zero, cov, zero, cov, method="sqrtm") == dropped
        else:
            with pytest.raises(NonFiniteError, match=r"0\.0011.*symmetric"):
                frechet_distance_from_statistics(zero, cov, zero, cov, method="sqrtm")


@pytest.mark.parametrize("method", ["sqrtm", "sqrtm-clean"])
def test_a_root_that_stays_not_finite_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.linalg

    monkeypatch.setattr(scipy.linalg, "sqrtm", lambda product: product * float("nan"))
    with pytest.raises(NonFiniteError, match="symmetric"):
        frechet_distance(draw(30, 3, 0), draw(30, 3, 1), method=method)


def test_negative_eigenvalues_of_the_product_count_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch-fidelity takes real parts: the root of a negative round-off eigenvalue is imaginary."""
    monkeypatch.setattr(torch.linalg, "eigvals", lambda product: torch.tensor([4.0, -9.0, 1.0], dtype=torch.complex128))
    eye, zero = torch.eye(3), torch.zeros(3)
    assert frechet_distance_from_statistics(zero, eye, zero, eye, method="eigvals") == pytest.approx(6 - 2 * (2 + 1))


def test_trace_of_root_of_commuting_matrices() -> None:
    v = torch.tensor([4.0, 9.0]), torch.tensor([1.0, 16.0])
    assert trace_of_root(v[0].diag(), v[1].diag()) == pytest.approx(2 + 12)


def test_few_rows_warn_and_enough_rows_do_not() -> None:
    with pytest.warns(UserWarning, match="real: 5 rows in 8 dimensions"):
        frechet_distance(draw(5, 8, 0), draw(50, 8, 1))
    with pytest.warns(UserWarning, match="generated: 8 rows"):
        frechet_distance(draw(50, 8, 0), draw(8, 8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(draw(50, 8, 0), draw(9, 8, 1))


def test_bad_input() -> None:
    x = draw(10, 3, 0)
    nan = x.clone()
    nan[3, 1] = float("nan")
    for bad, words in ((x[:1], "at least 2"), (nan, "NaN"), (draw(10, 4, 0), "d = 4"), (x[0], r"\(N, D\)")):
        with pytest.raises(InputError, match=words):
            frechet_distance(x, bad)
    with pytest.raises(InputError, match="at least 2"):
        frechet_distance(Moments.of(x[:1]), x)
    with pytest.raises(InputError, match="symmetric"):
        frechet_distance(x, x, method="symetric")
    mean, cov = torch.zeros(2), torch.eye(2)
    with pytest.raises(InputError, match="expected"):
        frechet_distance_from_statistics(mean, cov, torch.zeros(3), torch.eye(3))
    with pytest.raises(InputError, match="not symmetric"):
        frechet_distance_from_statistics(mean, cov, mean, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    with pytest.raises(InputError, match="not finite"):
        frechet_distance_from_statistics(mean * float("nan"), cov, mean, cov)


@pytest.mark.filterwarnings("ignore:.*rank deficient:UserWarning")
def test_deficient_moments_far_from_zero() -> None:
    """Row by row and 1e7 away from zero: round-off in the null space must not add to the sum of roots."""
    x, y = draw(20, 60, 0) + 1e7, draw(25, 60, 1) + 1e7
    moments = []
    for features in (x, y):
        merged = Moments(60)
        for row in features.split(1):
            merged.update(row)
        moments.append(merged)
    assert frechet_distance(*moments) == pytest.approx(nuclear(x, y), rel=1e-8)
