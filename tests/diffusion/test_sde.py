"""The SDEs of score SDE: ends, marginals, discretisations, and the ODE in the angle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from scoreline.core.names import lookup, names
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import VE, VP, Discrete, SubVP
from scoreline.diffusion.sde import (
    angle,
    discretised,
    flow_slope,
    radius,
    released_table,
    reverse_drift,
    time_at,
)

every_schedule = pytest.mark.parametrize("name", names("schedule"))


@pytest.mark.check(system=15, number=1)
def test_noise_and_signal_at_the_end() -> None:
    assert VP().sigma(1.0) == pytest.approx(0.99998, abs=5e-6)
    assert SubVP().sigma(1.0) == pytest.approx(0.99996, abs=5e-6)
    assert VE().sigma(1.0) == pytest.approx(50.0, rel=1e-12)
    assert VP().alpha(1.0) == pytest.approx(math.exp(-5.025), rel=1e-12)
    assert VP().alpha(1.0) == pytest.approx(0.006571, abs=1e-6)


@pytest.mark.check(system=15, number=2)
def test_sub_vp_has_the_square_of_the_noise_of_vp() -> None:
    t = np.linspace(1e-5, 1, 400)
    assert np.allclose(SubVP().sigma(t), VP().sigma(t) ** 2, rtol=1e-12)
    assert (SubVP().sigma(t) ** 2 <= VP().sigma(t) ** 2).all()
    # g^2 = beta (1 - m^4), as printed.
    vp = VP()
    assert np.allclose(SubVP().drift(t)[1], vp.beta(t) * (1 - vp.alpha(t) ** 4), rtol=1e-9)
    assert np.allclose(SubVP().drift(t)[0], vp.drift(t)[0], rtol=1e-12)


@pytest.mark.check(system=15, number=3)
@pytest.mark.parametrize("t", [0.2, 0.7, 1.0])
def test_ve_gains_the_noise_that_it_diffuses(t: float) -> None:
    ve = VE()
    gained = quad(lambda s: float(ve.drift(s)[1]), 0, t, epsabs=0, epsrel=1e-11)[0]
    assert gained == pytest.approx(ve.sigma(t) ** 2 - ve.sigma_min**2, rel=1e-9)
    printed = (ve.sigma(t) * math.sqrt(2 * math.log(ve.sigma_max / ve.sigma_min))) ** 2
    assert ve.drift(t)[1] == pytest.approx(printed, rel=1e-12)


@every_schedule
def test_angle_and_radius_are_polar_coordinates_and_the_angle_can_be_inverted(name: str) -> None:
    schedule = lookup("schedule", name)()
    t = np.linspace(schedule.t_min + 1e-3, schedule.t_max, 57)
    phi, r = angle(schedule, t), radius(schedule, t)
    assert np.allclose(r * np.cos(phi), schedule.alpha(t), atol=1e-12)
    assert np.allclose(r * np.sin(phi), schedule.sigma(t), rtol=1e-12)
    assert np.allclose(time_at(schedule, phi[:-1]), t[:-1], rtol=1e-7)
    assert (np.diff(phi) > 0).all()
    assert angle(schedule, schedule.clean) == 0
    for kind in (float, torch.tensor):
        assert float(angle(schedule, kind(t[5]))) == pytest.approx(phi[5], rel=1e-12)
        assert float(radius(schedule, kind(t[5]))) == pytest.approx(r[5], rel=1e-12)
        assert float(time_at(schedule, kind(phi[5]))) == pytest.approx(t[5], rel=1e-7)


def mixture(name: str) -> Mixture:
    means = torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=torch.float64)
    return Mixture(lookup("schedule", name)(), means, torch.tensor([0.05, 0.2], dtype=torch.float64))


@every_schedule
def test_the_slope_in_the_angle_is_the_velocity_in_time(name: str) -> None:
    """d(x/r)/dphi = (velocity - x r'/r)/(r phi'), with phi' and r' by differences."""
    model, x = mixture(name), torch.tensor([[0.3, -0.2], [1.0, 0.7]], dtype=torch.float64)
    schedule = model.schedule
    t = float(schedule.time(0.3))
    if schedule.known is not None:
        t = float(np.floor(t)) + 0.4  # between two entries, where the table's slope is one number
    h = 1e-5 * (t - schedule.clean)
    dphi = (angle(schedule, t + h) - angle(schedule, t - h)) / (2 * h)
    dr = (radius(schedule, t + h) - radius(schedule, t - h)) / (2 * h)
    r = radius(schedule, t)
    wanted = (model.velocity(x, t) - x * dr / r) / (r * dphi)
    assert (flow_slope(model, x / r, angle(schedule, t)) - wanted).abs().max() < 1e-6
    phis = torch.full((2,), angle(schedule, t), dtype=torch.float64)
    assert (flow_slope(model, x / r, phis) - wanted).abs().max() < 1e-6


@every_schedule
def test_the_ode_drift_is_the_velocity_and_the_reverse_drift_has_twice_the_score(name: str) -> None:
    model, x = mixture(name), torch.tensor([[0.3, -0.2]], dtype=torch.float64)
    t = float(model.schedule.time(0.3))
    f, g2 = model.schedule.drift(t)
    score = model.score(x, t)
    assert (reverse_drift(model, x, t, ode=True) - model.velocity(x, t)).abs().max() < 1e-8
    assert (reverse_drift(model, x, t) - (f * x - g2 * score)).abs().max() < 1e-8


@every_schedule
def test_the_forward_step_keeps_the_marginals(name: str) -> None:
    schedule = lookup("schedule", name)()
    s, t = schedule.time(1.0), schedule.time(0.2)
    a, G2 = discretised(schedule, s, t)
    assert a * schedule.alpha(s) == pytest.approx(schedule.alpha(t))
    assert (a * schedule.sigma(s)) ** 2 + G2 == pytest.approx(schedule.sigma(t) ** 2)
    a, G2 = discretised(schedule, schedule.clean, t)
    assert (a, G2) == (pytest.approx(schedule.alpha(t)), pytest.approx(schedule.sigma(t) ** 2))


def test_on_a_table_the_forward_step_is_its_beta() -> None:
    table = Discrete()
    t = np.array([999.0, 400.0, 1.0])
    a, G2 = discretised(table, t - 1, t)
    assert np.allclose(G2, table.betas[[999, 400, 1]], rtol=1e-9)
    assert np.allclose(a, np.sqrt(1 - table.betas[[999, 400, 1]]), rtol=1e-12)


def test_the_released_tables() -> None:
    t = np.linspace(1, 1e-3, 1000)
    a, G2 = released_table(VP(), t, 1000)
    betas = np.linspace(0.1 / 1000, 20 / 1000, 1000)
    assert (G2[0], G2[-1]) == (betas[999], betas[0])
    assert np.allclose(a**2, 1 - G2)
    # Truncated, so that an index may be one too low, never too high.
    assert set(np.round((np.interp(t, np.linspace(0, 1, 1000), betas) - G2) / (betas[1] - betas[0]), 2)) <= set(
        np.round(np.arange(0, 1.001, 0.01), 2)
    )
    a, G2 = released_table(VE(), np.array([1.0, 0.5, 1e-5]), 1000)
    sigmas = 0.01 * 5000 ** np.linspace(0, 1, 1000)
    index = int(np.float32(0.5) * 999)
    assert np.allclose(G2, [sigmas[-1] ** 2 - sigmas[-2] ** 2, sigmas[index] ** 2 - sigmas[index - 1] ** 2, 1e-4])
    assert (a == 1).all()
    sub = SubVP()
    a, G2 = released_table(sub, np.array([0.3]), 500)
    assert a[0] == pytest.approx(1 - sub.beta(0.3) / 1000)
    assert G2[0] == pytest.approx(sub.drift(0.3)[1] / 500)


@pytest.mark.check(system=15, number=5)
@every_schedule
def test_the_ode_maps_quantiles_of_a_gaussian_exactly(name: str) -> None:
    """u = m cos phi + std(phi) z with the same z at every angle."""
    schedule = lookup("schedule", name)()
    model = Gaussian(schedule, torch.tensor([0.4], dtype=torch.float64), torch.tensor([0.3], dtype=torch.float64))
    from scoreline.diffusion.dormand_prince import integrate

    z = torch.linspace(-3, 3, 7, dtype=torch.float64)[:, None]

    def at(t: float) -> torch.Tensor:
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return (alpha * 0.4 + math.sqrt(alpha**2 * 0.3 + sigma**2) * z) / float(radius(schedule, t))

    t0, t1 = schedule.t_max, schedule.t_min
    ends = angle(schedule, t0), angle(schedule, t1)
    solved = integrate(lambda u, phi, rows: flow_slope(model, u, phi), at(t0), *ends, rtol=1e-7, atol=1e-7)
    assert (solved.y - at(t1)).abs().max() < 1e-5
