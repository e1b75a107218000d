"""One step of the unified sampling framework: weights against closed forms, exact integrals and polynomials."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from scoreline.core.errors import InputError
from scoreline.samplers.exponential import difference_weights, phi
from scoreline.samplers.model_statistics import data_prediction, noise_prediction
from scoreline.samplers.solver_schedule import SCALINGS, Step
from scoreline.samplers.solver_step import derivative_scales, derivative_weights, ems_weights, update_weights

h_ = st.floats(0.02, 3.0)


def levels(lam: list[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lambda, alpha, sigma), variance preserving."""
    at = np.array(lam)
    return at, np.sqrt(1 / (1 + np.exp(-2 * at))), np.sqrt(1 / (1 + np.exp(2 * at)))


def integral(prediction: str, degree: int, s: float, t: float, alpha: float, sigma: float) -> float:
    """What F(lambda) = (lambda - s)^degree contributes to x_t."""
    if prediction == "noise":
        return -quad(lambda u: alpha * math.exp(-u) * (u - s) ** degree, s, t, epsabs=1e-13)[0]
    return quad(lambda u: sigma * math.exp(u) * (u - s) ** degree, s, t, epsabs=1e-13)[0]


@pytest.mark.check(system=18, number=1)
@settings(max_examples=25)
@given(lam=st.floats(-4, 2), h=h_)
def test_first_order_updates_coincide_and_equal_ddim(lam: float, h: float) -> None:
    at, alpha, sigma = levels([lam, lam + h])
    x, eps = 0.7, -0.4
    x0 = (x - sigma[0] * eps) / alpha[0]
    a, w = update_weights(Step("noise"), at, alpha, sigma)
    b, v = update_weights(Step("data"), at, alpha, sigma)
    ddim = alpha[1] * x0 + sigma[1] * eps
    assert a * x + w[0] * eps == pytest.approx(ddim, abs=1e-12)
    assert b * x + v[0] * x0 == pytest.approx(ddim, abs=1e-12)


@pytest.mark.check(system=18, number=2)
def test_phi_functions() -> None:
    assert [phi(k, 0.0) for k in (1, 2, 3)] == pytest.approx([1, 1 / 2, 1 / 6], abs=0)
    assert phi(2, 1.0) == pytest.approx(math.e - 2, abs=1e-15)
    for z in (-3.0, -1e-7, 1e-9, 0.4, 2.5):
        for k in (1, 2, 3, 4):
            # The recursion, and where it cancels the series.
            series = sum(z**n / math.factorial(n + k) for n in range(40))
            assert phi(k, z) == pytest.approx(series, rel=1e-12)


@pytest.mark.check(system=18, number=3)
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_difference_m_is_exact_up_to_degree_m(m: int) -> None:
    lam = np.array([-0.9, -0.2, 0.1, 0.75, 1.3])
    extra = tuple(range(-2, -2 - m, -1))
    for k in range(1, m + 1):
        step = Step("data", 2, -1, (extra,)) if k == 1 else None
        weights = difference_weights([lam[p] - lam[-1] for p in extra], k)
        for degree in range(m + 1):
            F = lam**degree
            exact = math.perm(degree, k) * lam[-1] ** (degree - k) if degree >= k else 0.0
            seen = sum(a * (F[p] - F[-1]) for a, p in zip(weights, extra))
            assert seen == pytest.approx(exact, abs=1e-9)
            if step is not None:
                assert derivative_weights(step, lam, 2.0)[0] @ F == pytest.approx(exact, abs=1e-9)


def test_low_order_estimates_are_single_differences() -> None:
    """Order 3 whose first derivative comes from one point only."""
    lam = np.array([-0.5, 0.1, 0.4])
    weights = derivative_weights(Step("data", 3, -1, ((-2,), (-2, -3))), lam, 1.0)
    assert weights[0] == pytest.approx([0, -1 / 0.3, 1 / 0.3])
    assert weights[1] @ lam**2 == pytest.approx(2.0)
    assert weights[1] @ lam == pytest.approx(0.0, abs=1e-12)


@pytest.mark.check(system=18, number=5)
@given(h=h_)
def test_unipc_bh2_and_dpmsolver_2_are_the_same(h: float) -> None:
    for prediction in ("noise", "data"):
        a, b = (derivative_scales(name, h, 2, prediction=prediction) for name in ("unipc-bh2", "dpmsolver-2"))
        assert a == b


@pytest.mark.parametrize("h", [0.3, 1.7])
def test_scalings_are_the_published_functions(h: float) -> None:
    for prediction, z in (("noise", h), ("data", -h), ("ems", h)):
        e = math.expm1(z)
        wanted = {
            "linear": 1 + 0.2 * h,  # the step itself in both predictions
            "unipc-bh1": 0.5 * z * z / (e - z),
            "unipc-bh2": 0.5 * z * e / (e - z),
            "dpmsolver-2": 0.5 * z * e / (e - z),
            "0.5exp": 1 + 0.5 * e,
            "-0.5exp": 1 - 0.5 * e,
            "dpmsolver-3-released": 1.0,
        }
        assert {*wanted, "adams"} == set(SCALINGS)
        for name, value in wanted.items():
            scales = derivative_scales(name, h, 3, prediction=prediction, linear=0.2)
            assert scales[0] == pytest.approx(value, rel=1e-12), (name, prediction)
            assert scales[1] == (0.5 if name == "dpmsolver-3-released" else 1.0)
    assert derivative_scales(None, h, 4).tolist() == [1, 1, 1]
    assert derivative_scales("linear", h, 1).tolist() == []


@settings(max_examples=15)
@given(h=h_, r=st.lists(st.floats(0.05, 1.5), min_size=3, max_size=3), prediction=st.sampled_from(["noise", "data"]))
def test_full_order_integrates_polynomials_exactly(h: float, r: list[float], prediction: str) -> None:
    """x_t = (...) x_s + int e^{...} F dlambda with F a polynomial of degree q - 1, for every order."""
    gaps = np.array(r)
    lam, alpha, sigma = levels([-1.0, -1.0 + gaps[0], -1.0 + gaps[:2].sum(), -1.0 + gaps.sum(), -1.0 + gaps.sum() + h])
    s, t = lam[3], lam[4]
    for order in (1, 2, 3, 4):
        extra = tuple(range(-2, -1 - order, -1))
        _, w = update_weights(Step(prediction, order, -1, (extra,) * (order - 1)), lam, alpha, sigma)
        for degree in range(order):
            exact = integral(prediction, degree, s, t, alpha[4], sigma[4])
            assert w @ (lam[:4] - s) ** degree == pytest.approx(exact, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_adams_has_the_weights_of_even_steps(prediction: str) -> None:
    """The DDIM coefficient times 55, -59, 37, -9 over 24, whatever the true spacing and the end."""
    lam, alpha, sigma = levels([-1.2, -0.7, 0.1, 0.4, 1.0])
    extra = (-2, -3, -4)
    for end in (1.0, np.inf):
        lam[-1] = end
        if end == np.inf:
            alpha[-1], sigma[-1] = 1.0, 0.0
        _, w = update_weights(Step(prediction, 4, -1, (extra,) * 3, "adams"), lam, alpha, sigma)
        _, first = update_weights(Step(prediction), lam, alpha, sigma)
        assert w == pytest.approx(first[3] * np.array([-9, 37, -59, 55]) / 24)


def test_steps_from_an_older_point() -> None:
    lam, alpha, sigma = levels([-1.0, -0.4, 0.5])
    a, w = update_weights(Step("noise", 1, -2), lam, alpha, sigma)
    assert a == pytest.approx(alpha[2] / alpha[0])
    assert w == pytest.approx([-sigma[2] * math.expm1(1.5), 0.0])


def test_ends() -> None:
    """To the clean end the step is the clean image; from pure noise it is DDIM's, and nothing higher is defined."""
    lam, alpha, sigma = np.array([-1.0, 0.3, np.inf]), np.array([0.5, 0.8, 1.0]), np.array([0.9, 0.6, 0.0])
    assert update_weights(Step("data"), lam, alpha, sigma) == (0.0, pytest.approx([0, 1]))
    a, w = update_weights(Step("noise"), lam, alpha, sigma)
    assert (a, w[1]) == pytest.approx((1 / 0.8, -0.6 / 0.8))
    with pytest.raises(InputError, match="only be of order 1"):
        update_weights(Step("data", 2, -1, ((-2,),)), lam, alpha, sigma)
    lam = np.array([-np.inf, 0.3, 1.0])
    with pytest.raises(InputError, match="only be of order 1"):
        update_weights(Step("data", 2, -1, ((-2,),)), lam, alpha, sigma)


@pytest.mark.check(system=18, number=6)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_ems_with_constant_statistics_is_data_or_noise_prediction(order: int) -> None:
    """l = 1, s = b = 0 is the data type and l = 0, s = -1, b = 0 the noise type, whatever the points."""
    lam, alpha, sigma = levels([-1.2, -0.7, 0.1, 0.9])
    extra = tuple(range(-2, -1 - order, -1))
    x, x0, eps = 0.3, np.array([0.2, -0.5, 0.9]), np.array([-0.1, 0.7, 0.4])
    for kind, statistics, F, f in (
        ("data", data_prediction(), x0, -x0),  # f = (sigma eps - x)/alpha
        ("noise", noise_prediction(), eps, sigma[:3] / alpha[:3] * eps),
    ):
        a, w = update_weights(Step(kind, order, -1, (extra,) * (order - 1)), lam, alpha, sigma)
        A, on, constant = ems_weights(Step("ems", order, -1, (extra,) * (order - 1)), lam, alpha, statistics)
        seen = float(A) * x + sum(float(on[p]) * f[p] for p in on) + float(constant)
        assert seen == pytest.approx(a * x + w @ F, abs=1e-10)
        assert sorted(on) == list(range(3 - order, 3))


def test_ems_has_one_number_an_entry() -> None:
    statistics = data_prediction(low=-5, high=5)
    statistics = type(statistics)(shape=(2,), nodes=10, low=-5.0, high=5.0).double()
    statistics.l.copy_(torch.tensor([1.0, 0.0]).expand(11, 2))
    statistics.s.copy_(torch.tensor([0.0, -1.0]).expand(11, 2))
    lam, alpha, sigma = levels([-1.2, -0.7, 0.1])
    step = Step("ems", 2, -1, ((-2,),), "dpmsolver-2")
    A, on, _ = ems_weights(step, lam, alpha, statistics)
    assert A.shape == (2,)
    assert A[1].item() == pytest.approx(alpha[2] / alpha[1])
    assert A[0].item() == pytest.approx(sigma[2] / sigma[1])
    # In the noise coordinates the scaling "dpmsolver-2" is the midpoint rule of DPM-Solver.
    a, w = update_weights(Step("noise", 2, -1, ((-2,),), "dpmsolver-2"), lam, alpha, sigma)
    assert a == pytest.approx(A[1].item())
    assert on[0][1].item() * sigma[0] / alpha[0] == pytest.approx(w[0])
