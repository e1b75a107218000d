"""Epsilon scaling: what is divided, at which step, and that the true factor undoes a bias."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.evaluate.specs import make_sampler
from scoreline.guidance.epsilon_scaling import EpsilonScaling, ScaledNoise
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.rk45 import RK45

F8 = torch.float64


def model(schedule: Any) -> Gaussian:
    return Gaussian(schedule, torch.tensor([0.4, -0.3, 0.1], dtype=F8), 0.3)


@pytest.mark.parametrize("schedule", [Discrete(), VP(), EDM(), Flow()], ids=lambda s: type(s).__name__)
def test_the_noise_is_divided_and_the_mean_follows(schedule: Any) -> None:
    plain, scaled = model(schedule), ScaledNoise(model(schedule), 1.25)
    x, t = Noise(0).at(range(4), (3,), dtype=F8).normal(), 0.7 * schedule.t_max
    for time in (t, torch.full((4,), t, dtype=F8)):
        post = scaled(x, time)
        assert (post.eps - plain.eps(x, t) / 1.25).abs().max() < 1e-12
        again = schedule.alpha(t) * post.mean + schedule.sigma(t) * post.eps
        assert (again - x).abs().max() < 1e-9
    assert torch.equal(ScaledNoise(model(schedule), 1.0)(x, t).eps, plain.eps(x, t))


def test_a_state_without_signal_is_left_alone() -> None:
    x = torch.ones(2, 3, dtype=F8)
    assert torch.isfinite(ScaledNoise(model(Flow()), 1.1)(x, 1.0).eps).all()


def test_the_true_factor_undoes_a_bias() -> None:
    schedule, draws = Discrete(), Noise(0).at(range(4), (3,), dtype=F8)
    biased = ScaledNoise(model(schedule), 1 / 1.05)
    right = DDIM(steps=10)(model(schedule), draws).x
    assert (EpsilonScaling(scale=1.05, steps=10)(biased, draws).x - right).abs().max() < 1e-9
    assert (DDIM(steps=10)(biased, draws).x - right).abs().max() > 1e-2


def test_the_slope_counts_steps() -> None:
    schedule, draws = Discrete(), Noise(0).at(range(4), (3,), dtype=F8)
    sampler = EpsilonScaling(scale=1.01, slope=0.02, steps=5)
    rows, x = DDIM().coefficients(schedule, sampler.times(schedule)), draws.normal() * schedule.prior()
    for i, row in enumerate(rows):
        eps: Tensor = model(schedule).eps(x, row.t) / (1.01 + 0.02 * i)
        x0 = (x - schedule.sigma(row.t) * eps) / schedule.alpha(row.t)
        x = schedule.alpha(row.s) * x0 + schedule.sigma(row.s) * eps
    assert (sampler(model(schedule), draws).x - x).abs().max() < 1e-9


@pytest.mark.parametrize("settings", [{"scale": 0.0}, {"slope": -0.1}, {"of": "dddim"}, {"of": RK45(rtol=1e-3)}])
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        EpsilonScaling(**settings)
    with pytest.raises(InputError, match="positive"):
        ScaledNoise(model(VP()), -1.0)


def test_it_is_typed_on_the_command_line() -> None:
    sampler = make_sampler("epsilon-scaling:of=dpm-solver++2m:scale=1.005", nfe=8)
    assert isinstance(sampler, EpsilonScaling)
    assert "scale=1.005" in repr(sampler)
