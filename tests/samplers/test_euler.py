"""Euler in the schedule's own time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VE, VP, Discrete, Flow, SubVP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.euler import Euler

F8 = torch.float64
MEANS = torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_a_step_is_velocity_times_the_step(schedule: Schedule) -> None:
    model = Mixture(schedule, MEANS, 0.1)
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    t, s = schedule.time(np.array([-0.5, 0.3])).tolist()
    x = draws.normal()
    f, g2 = schedule.drift(t)
    expected = x + (s - t) * (f * x - 0.5 * g2 * model.score(x, t))
    assert torch.allclose(Euler()(model, draws, times=[t, s], x=x).x, expected, atol=1e-10)
    last = Euler()(model, draws, times=[t, schedule.clean], x=x).x
    assert torch.allclose(last, model(x, t).mean, atol=1e-10)


@pytest.mark.parametrize("schedule", [EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_on_edm_and_flow_it_is_ddim_and_the_clean_step_is_no_exception(schedule: Schedule) -> None:
    """On EDM and on flow, x_s = x + (s - t) v is DDIM's step; to the clean end it is E[x_0|x_t]."""
    model, draws = Mixture(schedule, MEANS, 0.1), Noise(0).at(range(3), (2,), dtype=F8)
    one, other = (s(steps=9)(model, draws).x for s in (Euler, DDIM))
    assert torch.allclose(one, other, atol=1e-10)


def test_on_vp_it_is_not_ddim() -> None:
    model, draws = Mixture(VP(), MEANS, 0.1), Noise(0).at(range(3), (2,), dtype=F8)
    one, other = (s(steps=9)(model, draws).x for s in (Euler, DDIM))
    assert (one - other).abs().max() > 1e-3


def test_rectified_flow_of_a_point_is_straight() -> None:
    """One step suffices, whatever the step: the path is a line."""
    model, draws = Gaussian(Flow(), torch.tensor([0.3, 0.1], dtype=F8), 0.0), Noise(0).at(range(3), (2,), dtype=F8)
    for steps in (1, 2, 7):
        assert torch.allclose(Euler(steps=steps)(model, draws).x, model.mean_.expand(3, 2), atol=1e-12)
    x = Euler()(model, draws, times=[1.0, 0.6]).x
    assert torch.allclose(x, 0.4 * model.mean_ + 0.6 * draws.normal())


def test_on_a_coarse_table_it_converges_to_the_ode_of_the_table() -> None:
    """Between entries log alpha is linear and alpha, sigma are what they are: their rates must be the derivatives of
    these, or finer steps converge to another image."""
    schedule = Discrete(betas="cosine", T=20)
    model = Gaussian(schedule, torch.tensor([0.4, -0.3], dtype=F8), torch.tensor([0.5, 0.1], dtype=F8))
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    x = draws.normal()
    errors = []
    for parts in (5, 20, 80):
        times = np.linspace(16.0, 2.0, 14 * parts + 1)
        errors.append((Euler()(model, draws, times=times, x=x).x - model.flow(x, 16.0, 2.0)).abs().max().item())
    assert errors[1] / errors[2] > 3, errors


def test_a_table_without_terminal_signal_gives_finite_images() -> None:
    schedule = Discrete(zero_terminal_snr=True)
    model = Gaussian(schedule, torch.tensor([0.4, -0.3], dtype=F8), 0.3)
    x = Euler(steps=50)(model, Noise(0).at(range(3), (2,), dtype=F8)).x
    assert torch.isfinite(x).all()
