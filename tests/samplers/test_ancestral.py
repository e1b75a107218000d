"""Ancestral Euler: k-diffusion's form, and DDIM with the same eta."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.schedules import EDM, VP, Discrete
from scoreline.samplers.ancestral import Ancestral
from scoreline.samplers.ddim import DDIM

F8 = torch.float64
MEANS = torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8)


@pytest.mark.parametrize("eta, s_noise", [(1.0, 1.0), (0.4, 1.0), (0.7, 1.1)])
def test_it_is_an_euler_step_down_and_noise_up(eta: float, s_noise: float) -> None:
    """s_up = eta sqrt(s'^2 (s^2 - s'^2)/s^2), s_down = sqrt(s'^2 - s_up^2)."""
    model, noise = Mixture(EDM(), MEANS, 0.1), Noise(1).at(range(3), (2,), dtype=F8)
    levels = [20.0, 6.0, 1.5, 0.3, 0.0]
    x = noise.normal() * 20.0
    for i, (s, s_next) in enumerate(itertools.pairwise(levels)):
        up = eta * math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2)
        down = math.sqrt(s_next**2 - up**2)
        d = (x - model(x, s).mean) / s
        x = x + (down - s) * d + s_noise * up * noise.normal(i + 1)
    assert torch.allclose(Ancestral(eta=eta, s_noise=s_noise)(model, noise, times=levels).x, x, atol=1e-11)


@pytest.mark.parametrize("schedule", [EDM(), VP(), Discrete()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_it_is_ddim_with_the_same_eta(schedule: Schedule, eta: float) -> None:
    model, noise = Mixture(schedule, MEANS, 0.1), Noise(1).at(range(3), (2,), dtype=F8)
    one, other = (s(eta=eta, steps=7)(model, noise).x for s in (Ancestral, DDIM))
    assert torch.allclose(one, other, atol=1e-12)


def test_the_clean_step_adds_no_noise() -> None:
    rows = Ancestral().coefficients(VP(), np.array([1.0, 0.5, 0.0]))
    assert rows["std"][-1] == 0
    assert rows["std"][0] > 0


def test_settings() -> None:
    for eta in (0.0, 1.5, -1.0, math.nan):
        with pytest.raises(InputError, match="eta"):
            Ancestral(eta=eta)
    assert Ancestral().order is None
    assert Ancestral().stochastic
