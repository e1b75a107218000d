"""EDM's Heun: order, cost, levels, churn."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Draws, Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.schedules import EDM, VP, Cosine, Discrete, Flow
from scoreline.samplers.heun import Heun
from scoreline.samplers.straight import Straight

F8 = torch.float64
MEANS = torch.tensor([[-1.0, 0.4], [0.8, 1.0]], dtype=F8)


def edm_reference(model: Mixture, x: torch.Tensor, levels: list[float], noise: Draws, churn: tuple) -> torch.Tensor:
    """Algorithm 2 of Karras et al. 2022, as written, for alpha = 1."""
    s_churn, s_min, s_max, s_noise = churn
    n = len(levels) - 1
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= t <= s_max else 0.0
        up = t + gamma * t
        x = x + math.sqrt(up**2 - t**2) * s_noise * noise.normal(i + 1)
        d = (x - model(x, up).mean) / up
        ahead = x + (s - up) * d
        if s > 0:
            ahead = x + (s - up) * (d + (ahead - model(ahead, s).mean) / s) / 2
        x = ahead
    return x


@pytest.mark.parametrize("churn", [(0.0, 0.0, math.inf, 1.0), (3.0, 0.05, 20.0, 1.01), (40.0, 0.0, math.inf, 1.0)])
def test_it_is_the_algorithm(churn: tuple[float, float, float, float]) -> None:
    model, noise = Mixture(EDM(), MEANS, 0.1), Noise(2).at(range(4), (2,), dtype=F8)
    sampler = Heun(s_churn=churn[0], s_min=churn[1], s_max=churn[2], s_noise=churn[3], steps=7)
    levels = sampler.times(EDM()).tolist()
    expected = edm_reference(model, noise.normal() * 80.0, levels, noise, churn)
    assert torch.allclose(sampler(model, noise).x, expected, atol=1e-9)


@pytest.mark.parametrize("schedule", [VP(), Cosine()], ids=lambda s: type(s).__name__)
def test_other_schedules_run_the_same_algorithm_in_sigma_over_alpha(schedule: Schedule) -> None:
    churn = (2.0, 0.1, 5.0, 1.02)
    noise = Noise(2).at(range(4), (2,), dtype=F8)
    levels = np.array([6.0, 3.0, 1.0, 0.2])
    times = np.append(schedule.time(-np.log(levels)), 0.0)
    y = noise.normal() * 6.0
    sampler = Heun(s_churn=churn[0], s_min=churn[1], s_max=churn[2], s_noise=churn[3])
    x = sampler(Mixture(schedule, MEANS, 0.1), noise, times=times, x=y * float(schedule.alpha(times[0]))).x
    expected = edm_reference(Mixture(EDM(), MEANS, 0.1), y, [*levels.tolist(), 0.0], noise, churn)
    assert torch.allclose(x, expected, atol=1e-9)


@pytest.mark.check(system=22, number=7)
def test_order_two_on_a_gaussian() -> None:
    model = Gaussian(EDM(), torch.tensor([0.4, -0.3], dtype=F8), torch.tensor([0.5, 0.1], dtype=F8))
    noise = Noise(0).at(range(3), (2,), dtype=F8)
    x = noise.normal() * 80.0
    errors = []
    for steps in (32, 64, 128):
        times = Heun(steps=steps).times(EDM())[:-1]
        exact = model.flow(x, 80.0, 0.002)
        errors.append((Heun()(model, noise, times=times, x=x).x - exact).abs().max().item())
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.2)
    assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


@pytest.mark.check(system=22, number=7)
@pytest.mark.parametrize("steps", [2, 5, 18])
def test_cost_and_levels(steps: int) -> None:
    sample = Heun(steps=steps)(Mixture(EDM(), MEANS, 0.1), Noise(0).at([0], (2,)))
    assert sample.nfe == 2 * steps - 1
    if steps == 5:
        assert list(sample.times) == pytest.approx([80, 17.528, 2.515, 0.1698, 0.002, 0], rel=1e-3)


@pytest.mark.check(system=22, number=8)
def test_it_reaches_the_exact_flow_of_a_gaussian() -> None:
    """x(0) = mu + (x(S) - mu) s/sqrt(s^2 + S^2)."""
    mu, s = torch.tensor([0.4, -0.3], dtype=F8), torch.tensor([0.7, 0.3], dtype=F8)
    noise = Noise(0).at(range(3), (2,), dtype=F8)
    x = noise.normal() * 80.0
    end = Heun(steps=200)(Gaussian(EDM(), mu, s**2), noise).x
    assert torch.allclose(end, mu + (x - mu) * s / (s**2 + 80.0**2).sqrt(), atol=2e-3)


@pytest.mark.check(system=22, number=9)
def test_draws_are_the_steps_and_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without churn one draw, the start; with it N more, also where the level lies outside [s_min, s_max]."""
    seen: list[tuple[int, int]] = []
    normal = Draws.normal

    def counted(self: Draws, step: int = 0, part: int = 0) -> torch.Tensor:
        seen.append((step, part))
        return normal(self, step, part)

    monkeypatch.setattr(Draws, "normal", counted)
    model, noise = Mixture(EDM(), MEANS, 0.1), Noise(2).at(range(2), (2,))
    first = Heun(steps=6)(model, noise).x
    assert seen == [(0, 0)]
    seen.clear()
    assert torch.equal(Heun(steps=6)(model, noise).x, first)
    seen.clear()
    Heun(steps=6, s_churn=2.0, s_min=0.1, s_max=10.0)(model, noise)
    assert seen == [(i, 0) for i in range(7)]


def test_churn_settings_do_not_shift_the_stream() -> None:
    """An interval that no level lies in changes nothing."""
    model, noise = Mixture(EDM(), MEANS, 0.1), Noise(2).at(range(2), (2,), dtype=F8)
    plain = Heun(steps=6)(model, noise).x
    assert torch.allclose(Heun(steps=6, s_churn=5.0, s_min=1e3)(model, noise).x, plain, atol=1e-13)
    assert (Heun(steps=6, s_churn=5.0)(model, noise).x - plain).abs().max() > 1e-3


def test_on_a_table_raised_levels_are_known_ones() -> None:
    rows = Heun(s_churn=10.0).coefficients(Discrete(), np.array([900.0, 500.0, 100.0, -1.0]))
    assert set(rows["up"]) <= set(Discrete().known)
    assert (rows["up"] >= rows["t"]).all()
    assert (rows["up"] > rows["t"]).any()


def flow_reference(model: Mixture, x: torch.Tensor, times: list[float], noise: Draws, churn: tuple) -> torch.Tensor:
    """Churn in sigma/alpha, then Heun on dx/dt = v, the last step alone."""
    s_churn, s_min, s_max, s_noise = churn
    n = len(times) - 1
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        level = t / (1 - t)
        gamma = min(s_churn / n, math.sqrt(2) - 1) if s_min <= level <= s_max else 0.0
        raised = (1 + gamma) * level
        up = raised / (1 + raised)
        y = x / (1 - t) + math.sqrt(raised**2 - level**2) * s_noise * noise.normal(i + 1)
        x = (1 - up) * y
        v = model.velocity(x, up)
        if s > 0:
            v = (v + model.velocity(x + (s - up) * v, s)) / 2
        x = x + (s - up) * v
    return x


@pytest.mark.parametrize("churn", [(0.0, 0.0, math.inf, 1.0), (2.0, 0.1, 5.0, 1.02)])
def test_on_a_flow_it_averages_velocities(churn: tuple[float, float, float, float]) -> None:
    model, noise = Mixture(Flow(t_max=0.999), MEANS, 0.1), Noise(2).at(range(4), (2,), dtype=F8)
    sampler = Heun(s_churn=churn[0], s_min=churn[1], s_max=churn[2], s_noise=churn[3], steps=7)
    x, times = noise.normal() * 0.999, sampler.times(model.schedule)
    expected = flow_reference(model, x, times.tolist(), noise, churn)
    assert torch.allclose(sampler(model, noise).x, expected, atol=1e-9)
    own = torch.from_numpy(times)[:, None].expand(-1, 4)
    assert torch.allclose(sampler(model, noise, times=own).x, expected, atol=1e-9)


@pytest.mark.parametrize("top", [1.0, 1 - 1e-5, 0.9])
def test_order_two_on_a_flow_from_pure_noise_and_back_up(top: float) -> None:
    """In sigma/alpha the error of a first step from t = 1 - 1e-5 grows with sigma/alpha, to a thousand."""
    model = Gaussian(Flow(t_max=top), torch.tensor([0.4, -0.3], dtype=F8), torch.tensor([0.5, 0.1], dtype=F8))
    noise = Noise(0).at(range(3), (2,), dtype=F8)
    x = noise.normal() * top
    for start, end in ((top, 0.02), (0.02, top)):
        exact, errors = model.flow(x, start, end), []
        for steps in (16, 64, 128):
            times = np.linspace(start, end, steps + 1)
            errors.append((Heun()(model, noise, times=times, x=x).x - exact).abs().max().item())
        assert errors[0] < 0.05
        assert np.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)
        x = exact
    few = Heun(steps=8)(model, noise)
    assert (few.nfe, len(few.times)) == (15, 9)
    assert (few.x - model.flow(noise.normal() * top, top, 0.0)).abs().max() < 0.05
    assert torch.allclose(few.x, Straight(rule="default", heun=True, steps=8)(model, noise).x, atol=1e-10)


def test_a_run_from_or_to_no_signal_is_refused() -> None:
    model, noise = Mixture(Flow(), MEANS, 0.1), Noise(0).at([0], (2,), dtype=F8)
    with pytest.raises(InputError, match="churn works in sigma/alpha, which is infinite there"):
        Heun(steps=5, s_churn=1.0)(model, noise)
    table = Mixture(Discrete(zero_terminal_snr=True), MEANS, 0.1)
    with pytest.raises(InputError, match="Heun works in sigma/alpha, which is infinite there"):
        Heun(steps=5)(table, noise)
    with pytest.raises(InputError):
        Heun()(table, noise, times=[100.0, 500.0, 999.0], x=torch.ones(1, 2, dtype=F8))


def test_settings() -> None:
    assert (Heun().order, Heun().rising, Heun().stochastic) == (2, True, False)
    assert (Heun(s_churn=1.0).order, Heun(s_churn=1.0).rising, Heun(s_churn=1.0).stochastic) == (None, False, True)
    for bad in ({"s_churn": -1.0}, {"s_min": 5.0, "s_max": 1.0}, {"s_churn": math.nan}):
        with pytest.raises(InputError):
            Heun(**bad)
