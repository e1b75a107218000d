"""phi functions against their integrals, Lagrange weights against polynomials."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from scoreline.core.errors import InputError
from scoreline.samplers.exponential import difference_weights, lagrange, lagrange_integrals, phi, taylor_weights


def exact(k: int, z: float) -> float:
    """phi_k(z) by its power series in rational arithmetic."""
    x, total, term = Fraction(z), Fraction(0), Fraction(1, math.factorial(k))
    for n in range(80):
        total += term
        term *= x / (n + 1 + k)
    return float(total)


@pytest.mark.each("k", range(8))
@pytest.mark.each("z", [0.0, 1e-20, 1e-12, -1e-5, 3e-4, -0.1, 0.5, -1.0, 1.999, -2.0, 2.0, 2.5, -7.0, 9.0, -15.0])
def test_phi_is_its_series(k: int, z: float) -> None:
    assert phi(k, z) == pytest.approx(exact(k, z), rel=1e-12)


@pytest.mark.each("k", [1, 2, 3, 4])
@pytest.mark.each("z", [-30.0, -0.3, 0.7, 12.0])
def test_phi_is_its_integral(k: int, z: float) -> None:
    """phi_k(z) = int_0^1 e^{(1-u) z} u^{k-1}/(k-1)! du."""
    integral = quad(lambda u: math.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1), 0, 1, epsabs=0)[0]
    assert phi(k, z) == pytest.approx(integral, rel=1e-10)


def test_phi_far_out_and_kinds() -> None:
    for k in (1, 2, 3):
        assert phi(k, -math.inf) == 0.0
        assert phi(k, math.inf) == math.inf
        assert math.isnan(phi(k, math.nan))
    assert isinstance(phi(2, 0.3), float)
    at = np.array([[-math.inf, 0.0], [1.0, 50.0]])
    values = phi(2, at)
    assert values.shape == (2, 2)
    assert values.dtype == np.float64
    assert values[1, 0] == pytest.approx(math.e - 2)
    assert phi(0, np.array([1.0]))[0] == pytest.approx(math.e)
    with pytest.raises(InputError, match="k"):
        phi(-1, 0.0)


spaced = st.lists(st.floats(0.2, 2.0), min_size=1, max_size=4).map(lambda gaps: -np.cumsum([0.0, *gaps]))


@settings(max_examples=25, deadline=None)
@given(nodes=spaced, low=st.floats(-1, 1), high=st.floats(1.5, 3))
def test_integrals_are_exact_for_polynomials(nodes: np.ndarray, low: float, high: float) -> None:
    weights = lagrange_integrals(nodes, low, high)
    assert weights.sum() == pytest.approx(high - low, rel=1e-10)
    for power in range(len(nodes)):
        want = (high ** (power + 1) - low ** (power + 1)) / (power + 1)
        assert weights @ nodes**power == pytest.approx(want, rel=1e-8, abs=1e-8)
    assert lagrange_integrals(nodes, high, low) == pytest.approx(-weights, rel=1e-9, abs=1e-9)


def test_integrals_through_a_map() -> None:
    """int_1^2 of log u by the line through log 1 and log 3."""
    nodes = np.log([1.0, 3.0])
    weights = lagrange_integrals(nodes, 1.0, 2.0, of=np.log)
    assert weights @ nodes == pytest.approx(2 * math.log(2) - 1, rel=1e-14)


def test_lagrange_is_one_at_its_own_node() -> None:
    nodes = np.array([0.3, -1.0, 2.0])
    assert lagrange(nodes, nodes) == pytest.approx(np.eye(3), abs=1e-15)


def _moment(u: float, sign: int, h: float, k: int) -> float:
    return math.exp(sign * (h - u)) * u**k / math.factorial(k)


@settings(max_examples=25, deadline=None)
@given(h=st.floats(-3, 3), order=st.integers(1, 4))
def test_taylor_weights_are_integrals(h: float, order: int) -> None:
    data, noise = taylor_weights(h, order), taylor_weights(h, order, prediction="noise")
    for k in range(order):
        for weights, sign in ((data, -1), (noise, 1)):
            want = quad(_moment, 0, h, args=(sign, h, k))[0]
            assert weights[k] == pytest.approx(want, rel=1e-8, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(nodes=spaced, scale=st.floats(1e-3, 10))
def test_differences_are_exact_for_polynomials(nodes: np.ndarray, scale: float) -> None:
    delta = nodes[1:] * scale
    for k in range(1, len(delta) + 1):
        a = difference_weights(delta, k)
        for power in range(1, len(delta) + 1):
            # In units of the scale; F = u^power has k-th derivative power! at 0 if k = power, else 0.
            got = (a * scale**k) @ nodes[1:] ** power
            assert got == pytest.approx(math.factorial(k) if power == k else 0.0, abs=1e-6 * max(1, abs(a).max()))


def test_differences_refuse_what_they_cannot_give() -> None:
    for k in (0, 3):
        with pytest.raises(InputError, match="derivatives 1 to 2"):
            difference_weights([-0.5, -1.0], k)
