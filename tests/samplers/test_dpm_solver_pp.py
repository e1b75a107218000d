"""DPM-Solver++ multistep: weights against exact integrals, orders, ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, Cosine, Flow
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.dpm_solver_pp import (
    DPMSolverPP2M,
    DPMSolverPP3M,
    first_order,
    second_order,
    third_order,
)

F8 = torch.float64
steps = st.floats(0.05, 3.0)


def integral(power: int, h: float) -> float:
    """int_0^h e^{-(h - u)} u^power du: what D(u) = u^power contributes to x_s/alpha_s, lambda counted from t."""
    return quad(lambda u: np.exp(-(h - u)) * u**power, 0, h, epsabs=1e-13)[0]


@settings(max_examples=25, deadline=None)
@given(h=steps, h1=steps, h2=steps)
def test_third_order_integrates_quadratics_exactly(h: float, h1: float, h2: float) -> None:
    w = third_order(h, h1, h2)
    at = np.array([0.0, -h1, -h1 - h2])
    for power in (0, 1, 2):
        assert np.dot(w, at**power) == pytest.approx(integral(power, h), rel=1e-6, abs=1e-8)


@settings(max_examples=25, deadline=None)
@given(h=steps, h1=steps)
def test_second_order_is_the_papers_midpoint_form(h: float, h1: float) -> None:
    """Exact for constants; for D(u) = u it gives (1 - e^{-h}) h/2, which agrees with the integral to h^3."""
    w = second_order(h, h1)
    assert sum(w) == pytest.approx(integral(0, h), rel=1e-9)
    assert -h1 * w[1] == pytest.approx(-np.expm1(-h) * h / 2, rel=1e-9)
    assert first_order(h)[0] == pytest.approx(integral(0, h), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(h=steps, h1=steps, h2=steps)
def test_the_released_form_is_exact_for_lines_and_halves_the_last_term(h: float, h1: float, h2: float) -> None:
    w, at = third_order(h, h1, h2, variant="released"), np.array([0.0, -h1, -h1 - h2])
    for power in (0, 1):
        assert np.dot(w, at**power) == pytest.approx(integral(power, h), rel=1e-6, abs=1e-8)
    paper = third_order(h, h1, h2)
    phi1 = -np.expm1(-h)
    phi3 = 1 - 2 * (1 - phi1 / h) / h
    # The second divided difference of u^2 is 1; in units of h it is h^2.
    assert np.dot(paper, at**2) - np.dot(w, at**2) == pytest.approx(0.5 * phi3 * h**2, rel=1e-5, abs=1e-9)


def slope(sampler: DPMSolverPP3M) -> float:
    model = Mixture(EDM(), torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8), 0.1)
    draws = Noise(0).at(range(4), (2,), dtype=F8)
    x = draws.normal() * np.exp(1.5)

    def run(sampler: DPMSolverPP3M, n: int) -> torch.Tensor:
        # A start that grows from h^2 hides the low order of the first steps.
        h = 3.5 / n
        lam, gap = [-1.5], 0.3 * h * h
        while gap < h:
            lam.append(lam[-1] + gap)
            gap *= 2
        rest = 2.0 - lam[-1]
        lam = np.append(lam, lam[-1] + rest * np.linspace(0, 1, int(np.ceil(rest / h)) + 1)[1:])
        return sampler(model, draws, times=np.exp(-lam), x=x).x

    truth = run(DPMSolverPP3M(), 600)
    errors = [(run(sampler, n) - truth).abs().max().item() for n in (50, 100)]
    return float(np.log2(errors[0] / errors[1]))


def test_the_paper_form_is_of_order_three_and_the_released_one_of_order_two() -> None:
    assert slope(DPMSolverPP3M()) == pytest.approx(3, abs=0.25)
    assert slope(DPMSolverPP3M(variant="released")) == pytest.approx(2, abs=0.25)


def test_the_released_form_declares_the_order_that_it_has() -> None:
    assert DPMSolverPP3M().order == 3
    assert DPMSolverPP3M(variant="released").order == 2


@pytest.mark.parametrize("cls", [DPMSolverPP2M, DPMSolverPP3M])
@pytest.mark.parametrize("name", names("schedule"))
def test_first_and_last_steps_are_first_order(cls: type, name: str) -> None:
    """The step to the clean end is E[x_0|x_t], exactly; nothing is extrapolated over an infinite step."""
    schedule = lookup("schedule", name)()
    times = cls(steps=6).times(schedule)
    rows, ddim = cls().coefficients(schedule, times), DDIM().coefficients(schedule, times)
    assert rows["order"][0] == rows["order"][-1] == 1
    for i in (0, -1):
        assert rows["a"][i] == pytest.approx(ddim["a"][i], abs=1e-13)
        assert rows["w0"][i] == pytest.approx(ddim["b"][i], abs=1e-13)
        assert rows["w1"][i] == rows["w2"][i] == 0
    assert rows["w0"][-1] == 1
    assert rows["a"][-1] == 0
    top = np.isfinite(schedule.lam(schedule.t_max))
    assert rows["order"].max() == cls().order
    assert rows["order"][1] == (2 if top else 1)


@pytest.mark.parametrize("cls", [DPMSolverPP2M, DPMSolverPP3M])
def test_weights_sum_to_what_a_constant_needs(cls: type) -> None:
    """alpha_s - alpha_t sigma_s/sigma_t in total, on every row."""
    schedule = Cosine()
    times = schedule.time(np.linspace(-2, 3, 12))
    rows = cls().coefficients(schedule, times)
    total = rows["w0"] + rows["w1"] + rows["w2"]
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    assert total == pytest.approx(alpha[1:] - alpha[:-1] * sigma[1:] / sigma[:-1], abs=1e-12)


@pytest.mark.parametrize("cls", [DPMSolverPP2M, DPMSolverPP3M])
def test_a_point_is_reached_exactly(cls: type) -> None:
    """D is constant: every order is exact, from pure noise too."""
    point = torch.tensor([0.3, -0.7], dtype=F8)
    for schedule in (EDM(), Flow(), Cosine()):
        model, draws = Gaussian(schedule, point, 0.0), Noise(0).at(range(3), (2,), dtype=F8)
        assert torch.allclose(cls(steps=8)(model, draws).x, point.expand(3, 2), atol=1e-10)
        x, t, s = draws.normal(), schedule.t_max * 0.9, schedule.t_max * 0.1
        times = np.linspace(t, s, 7)
        assert torch.allclose(cls()(model, draws, times=times, x=x).x, model.flow(x, t, s), atol=1e-10)


def test_history_is_what_the_order_needs() -> None:
    for cls, kept in ((DPMSolverPP2M, 1), (DPMSolverPP3M, 2), (lambda: DPMSolverPP3M(variant="released"), 2)):
        sampler, schedule = cls(), EDM()
        model, draws = Gaussian(schedule, torch.zeros(2), 1.0), Noise(0).at([0], (2,))
        rows = sampler.coefficients(schedule, np.array([9.0, 6.0, 4.0, 2.0, 1.0, 0.5]))
        state = sampler.init(model, draws, rows)
        for row in list(rows)[:4]:
            state = sampler.step(model, state, row)
        assert len(state.memory) == kept


def test_settings() -> None:
    with pytest.raises(InputError, match="did you mean 'released'"):
        DPMSolverPP3M(variant="release")
    with pytest.raises(InputError, match="variant"):
        DPMSolverPP3M(variant=None)  # type: ignore[arg-type]
