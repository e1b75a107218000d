"""The integrals of DPM-Solver-v3 against quadrature, its derivative weights, and the laws of its one-step update."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, simpson

from scoreline.core.errors import InputError
from scoreline.samplers.model_statistics import (
    ModelStatistics,
    Visited,
    data_prediction,
    derivative_weights,
    noise_prediction,
    step_weights,
)


def random_statistics(*, nodes: int = 10, low: float = -3.0, high: float = 3.0, seed: int = 0) -> ModelStatistics:
    made = ModelStatistics(shape=(2,), nodes=nodes, low=low, high=high).double()
    generator = torch.Generator().manual_seed(seed)
    for name in ("l", "s", "b"):
        getattr(made, name).copy_(torch.randn(nodes + 1, 2, generator=generator))
    return made


def piecewise(function: Any, a: float, b: float, nodes: np.ndarray) -> float:
    """The integral of something smooth between nodes, either way."""
    low, high = min(a, b), max(a, b)
    cuts = [low, *[n for n in nodes if low < n < high], high]
    return math.copysign(1, b - a) * sum(quad(function, p, q, epsabs=1e-13)[0] for p, q in pairwise(cuts))


@pytest.mark.parametrize("start, end", [(-2.2, 1.7), (1.7, -2.2), (0.05, 0.3)])
def test_integrals_are_those_of_straight_lines_between_the_nodes(start: float, end: float) -> None:
    stats, entry = random_statistics(), 1
    nodes = stats.lam

    def value(name: str) -> Any:
        curve = getattr(stats, name)[:, entry].numpy()
        return lambda lam: np.interp(lam, nodes, curve)

    def rise(name: str, lam: float) -> float:
        return piecewise(value(name), start, lam, nodes)

    def B(lam: float) -> float:
        return piecewise(lambda r: np.exp(-rise("s", r)) * value("b")(r), start, lam, nodes)

    found = stats.between(start, end, top=2)
    assert found.h == pytest.approx(end - start)
    assert float(found.L[entry]) == pytest.approx(rise("l", end), abs=1e-12)
    assert float(found.S[entry]) == pytest.approx(rise("s", end), abs=1e-12)
    assert float(found.B[entry]) == pytest.approx(B(end), rel=1e-7)

    def growth(lam: float) -> float:
        return np.exp(rise("l", lam) + rise("s", lam))

    for n in (0, 2):
        wanted = piecewise(lambda r, n=n: growth(r) * (r - start) ** n / math.factorial(n), start, end, nodes)
        assert float(found.I[n][entry]) == pytest.approx(wanted, rel=1e-7)
    if abs(end - start) < 1:  # three integrals inside each other take long
        wanted = piecewise(lambda r: growth(r) * B(r), start, end, nodes)
        assert float(found.C[entry]) == pytest.approx(wanted, rel=1e-7)


def test_the_integral_of_the_inhomogeneous_part_solves_its_differential_equation() -> None:
    """C' = e^{L + S} B at the end of the step, where B is the step's own."""
    stats, start, end, d = random_statistics(), -2.2, 1.63, 1e-4
    at = stats.between(start, end)
    slope = (stats.between(start, end + d).C - stats.between(start, end - d).C) / (2 * d)
    torch.testing.assert_close(slope, (at.L + at.S).exp() * at.B, rtol=1e-6, atol=1e-9)


def test_trapezoids_over_the_nodes() -> None:
    """With both ends at nodes: cumulative trapezoid sums, as the tables of the paper."""
    stats = random_statistics()
    found = stats.between(stats.lam[2], stats.lam[7], top=1, rule="trapezoid")
    l, s, b = (getattr(stats, name)[2:8].numpy() for name in ("l", "s", "b"))  # noqa: E741
    h = stats.lam[1] - stats.lam[0]

    def cumulative(v: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros((1, 2)), np.cumsum(0.5 * h * (v[1:] + v[:-1]), axis=0)])

    L, S = cumulative(l), cumulative(s)
    B = cumulative(np.exp(-S) * b)
    growth, past = np.exp(L + S), (np.arange(6) * h)[:, None]
    for value, wanted in (
        (found.L, L), (found.S, S), (found.B, B), (found.C, cumulative(growth * B)), (found.I[0], cumulative(growth)),
        (found.I[1], cumulative(growth * past)),
    ):  # fmt: skip
        np.testing.assert_allclose(value.numpy(), wanted[-1], rtol=1e-12)


def test_integrals_over_several_points_follow_from_those_of_the_steps() -> None:
    stats, lam = random_statistics(), [-2.5, -1.1, 0.3, 0.9, 2.0]
    run = Visited(stats, lam, top=0)
    for i, start in enumerate(lam):
        for j, point in enumerate(lam):
            wanted = stats.between(start, point)
            S, B = run.seen(i, j)
            torch.testing.assert_close(S, wanted.S, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(B, wanted.B, rtol=1e-9, atol=1e-12)


@pytest.mark.check(system=25, number=1)
@pytest.mark.parametrize("make", [data_prediction, noise_prediction])
def test_degenerate_statistics_of_order_one_are_ddim(make: Any) -> None:
    """To the error of the trapezoid rule, which falls by 4 when the nodes are doubled; to rounding by Gauss' rule."""
    start, end = -2.0, 1.0
    alpha, sigma = ([(1 + math.exp(-sign * 2 * lam)) ** -0.5 for lam in (start, end)] for sign in (1, -1))
    x, D = 0.7, -0.3
    eps = (x - alpha[0] * D) / sigma[0]
    ddim = alpha[1] * D + sigma[1] * eps
    l = float(make().l[0])  # noqa: E741

    def error(nodes: int, rule: str) -> float:
        stats = make(low=-5.0, high=5.0, nodes=nodes)
        a, (w,), c = step_weights(stats, start, end, alphas=(alpha[0], alpha[1]), rule=rule)
        f = (sigma[0] * eps - l * x) / alpha[0]
        return float(a * x + w * f + c) - ddim

    errors = [error(nodes, "trapezoid") for nodes in (100, 200, 400)]
    assert abs(errors[0]) > 1e-6
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4, rel=0.02)
    assert error(100, "gauss") == pytest.approx(0, abs=1e-12)


@pytest.mark.check(system=25, number=5)
def test_pseudo_and_full_order_agree_up_to_order_two_only() -> None:
    np.testing.assert_allclose(derivative_weights([-0.7]), derivative_weights([-0.7], pseudo=True))
    full, pseudo = derivative_weights([-0.4, -1.1]), derivative_weights([-0.4, -1.1], pseudo=True)
    np.testing.assert_allclose(pseudo[0], [1 / 0.4, -1 / 0.4, 0])  # the first divided difference alone
    np.testing.assert_allclose(pseudo[1], full[1])  # the highest derivative is the same
    assert abs(full[0] - pseudo[0]).max() > 0.1


@settings(max_examples=20, deadline=None)
@given(
    gaps=st.lists(st.floats(0.2, 1.0), min_size=1, max_size=3),
    coefficients=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
def test_the_full_order_differentiates_polynomials_exactly(gaps: list[float], coefficients: list[float]) -> None:
    at = np.concatenate([[0.0], -np.cumsum(gaps)])
    n = len(gaps)
    polynomial = np.polynomial.Polynomial(coefficients[: n + 1])
    found = derivative_weights(at[1:]) @ polynomial(at)
    np.testing.assert_allclose(found, [polynomial.deriv(k)(0.0) for k in range(1, n + 1)], rtol=1e-6, atol=1e-7)


@pytest.mark.check(system=25, number=9)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_step_is_exact_where_g_is_a_polynomial_of_lower_degree(order: int) -> None:
    """y_t = e^{-L} (y_s - int e^{L + S} (g + B)), with that integral by Simpson's rule."""
    stats, start, end = random_statistics(), -0.3, 0.6
    others = [-0.9, -1.4, -2.0][: order - 1]
    g = np.polynomial.Polynomial([0.4, -0.7, 0.5, 0.3][:order])
    y = 0.8

    def f(point: float) -> torch.Tensor:
        between = stats.between(start, point)
        return between.S.exp() * (float(g(point - start)) + between.B)

    values, grid = [], np.linspace(start, end, 101)
    for lam in grid:
        between = stats.between(start, lam)
        values.append((between.L + between.S).exp() * (float(g(lam - start)) + between.B))
    integral = torch.as_tensor(simpson(torch.stack(values), x=grid, axis=0))
    exact = (-stats.between(start, end).L).exp() * (y - integral)

    def run(points: list[float], rule: str = "gauss", parts: int = 1) -> torch.Tensor:
        finer = ModelStatistics(shape=(2,), nodes=parts * stats.nodes, low=stats.low, high=stats.high).double()
        for name, value in zip(("l", "s", "b"), stats.at(finer.lam)):
            getattr(finer, name).copy_(value)
        a, on, c = step_weights(finer, start, end, points, rule=rule)
        return a * y + sum(w * f(p) for w, p in zip(on, [start, *points])) + c

    torch.testing.assert_close(run(others), exact, rtol=2e-5, atol=2e-5)
    # The sums over the nodes come near as their distance squared; with an order less nothing does.
    coarse, fine = ((run(others, "trapezoid", parts) - exact).abs().max() for parts in (32, 64))
    assert fine < 1e-2
    assert coarse / fine == pytest.approx(4, rel=0.1)
    if order > 1:
        assert (run(others[:-1]) - exact).abs().max() > 1e-3


def test_levels_outside_the_nodes_are_refused() -> None:
    stats = random_statistics()
    for bad in (-3.1, 3.1, float("nan"), float("inf")):
        with pytest.raises(InputError, match="-3 to 3"):
            stats.check([0.0, bad])
        with pytest.raises(InputError):
            stats.between(0.0, bad)
    stats.check([-3.0, 3.0])
    with pytest.raises(InputError, match="did you mean 'gauss'"):
        stats.between(0.0, 1.0, rule="gaus")


def test_nodes() -> None:
    stats = random_statistics(nodes=12, low=-2.0, high=4.0)
    assert stats.lam.tolist() == np.linspace(-2, 4, 13).tolist()
    assert stats.nearest([-9.0, -2.0, 0.26, 4.0, np.inf]).tolist() == [0, 0, 5, 12, 12]
    l, s, b = stats.at([0.25])  # noqa: E741 (halfway between the nodes 0 and 0.5)
    torch.testing.assert_close(l[0], 0.5 * (stats.l[4] + stats.l[5]))
    torch.testing.assert_close(s[0], 0.5 * (stats.s[4] + stats.s[5]))
    torch.testing.assert_close(b[0], 0.5 * (stats.b[4] + stats.b[5]))
    rosenbrock = stats.only_l()
    assert torch.equal(rosenbrock.l, stats.l)
    assert not rosenbrock.s.any()
    assert not rosenbrock.b.any()
    for bad in ({"nodes": 1}, {"nodes": 2.5}, {"low": 4.0}, {"high": float("inf")}):
        with pytest.raises(InputError):
            ModelStatistics(**{"shape": (2,), "nodes": 4, "low": -1.0, "high": 1.0, **bad})
