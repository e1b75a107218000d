"""Steps of double length and noise back: the marginal stays, the levels are those of the paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM, VP, Cosine, Flow
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.double_step import DoubleStep
from scoreline.samplers.steps import eta_step

SCHEDULES = {"cosine": Cosine(s=0.0, t_min=1e-3, t_max=0.99), "vp": VP(), "edm": EDM(), "flow": Flow(t_max=0.99)}


@pytest.mark.check(system=17, number=7)
@pytest.mark.parametrize("name", SCHEDULES)
def test_noise_put_back_reaches_the_level(name: str) -> None:
    schedule = SCHEDULES[name]
    sampler = DoubleStep(steps=6)
    times = sampler.times(schedule)
    rows = sampler.coefficients(schedule, times)
    s, k = rows["s"], rows["k"]
    assert np.array_equal(k[:-1], times[2:])
    assert k[-1] == times[-1]
    ratio = schedule.alpha(s) / schedule.alpha(k)
    assert np.allclose(ratio**2 * schedule.sigma(k) ** 2 + rows["std"] ** 2, schedule.sigma(s) ** 2, rtol=1e-9)
    with np.errstate(invalid="ignore"):
        share = 1 - np.exp(2 * (schedule.lam(s[:-1]) - schedule.lam(k[:-1])))  # lam is half of the paper's lambda
    assert np.allclose(rows["std"][:-1] ** 2, share * schedule.sigma(s[:-1]) ** 2, rtol=1e-7)
    assert rows["std"][-1] == 0
    # without noise, the part before it is DDIM to k
    a, b, _ = eta_step(schedule, rows["t"], k, 0.0)
    assert np.allclose(rows["a"], ratio * a)
    assert np.allclose(rows["b"], ratio * b)


def test_a_step_written_out() -> None:
    """N = 2 on alpha = cos(pi t/2): one double step from t to the clean end, noise up to t/2, one single step."""
    schedule: Any = SCHEDULES["cosine"]
    model = Gaussian(schedule, torch.tensor([0.3, -0.2]), 0.5)
    draws = Noise(2).at(range(5), (2,))
    t, s = schedule.t_max, schedule.t_max / 2
    x0 = model(draws.normal(), t).mean
    middle = schedule.alpha(s) * x0 + schedule.sigma(s) * draws.normal(1)
    want = model(middle, s).mean
    made = DoubleStep(steps=2, grid="time-to-clean")(model, draws)
    assert torch.allclose(made.x, want, atol=1e-5)
    assert made.nfe == 2


@pytest.mark.check(system=17, number=8)
@pytest.mark.parametrize("name", SCHEDULES)
def test_with_one_step_it_is_ddim(name: str) -> None:
    model = Gaussian(SCHEDULES[name], torch.tensor([0.3, -0.2]), 0.5)
    draws = Noise(2).at(range(5), (2,))
    assert torch.equal(DoubleStep(steps=1)(model, draws).x, DDIM(steps=1)(model, draws).x)


def test_many_steps_keep_the_variance_of_the_data() -> None:
    model = Gaussian(SCHEDULES["cosine"], torch.zeros(2), 0.5)
    made = DoubleStep(steps=60, grid="time-to-clean")(model, Noise(1).at(range(1000), (2,))).x
    assert made.var().item() == pytest.approx(0.5, rel=0.12)
