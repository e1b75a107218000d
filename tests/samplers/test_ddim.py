"""DDIM: its published forms, its exact error on Gaussians, encoding."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import Schedule
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.grids import leading
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.ddpm import DDPM

F8 = torch.float64


def mixture(schedule: Schedule) -> Mixture:
    means = torch.tensor([[-1.0, 0.4], [0.8, 1.0], [0.2, -1.2]], dtype=F8)
    return Mixture(schedule, means, torch.tensor([0.05, 0.1, 0.2], dtype=F8))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_coefficients_are_the_papers(eta: float) -> None:
    """x' = sqrt(abar') x0 + sqrt(1 - abar' - s^2) eps + s xi, s = eta sqrt((1-abar')/(1-abar)) sqrt(1 - abar/abar')."""
    schedule = Discrete()
    times = np.array([999.0, 700.0, 340.0, 20.0, 0.0, -1.0])
    rows = DDIM(eta=eta).coefficients(schedule, times)
    abar = np.append(schedule.abar, 1.0)[times.astype(int)]
    a, b = abar[:-1], abar[1:]
    std = eta * np.sqrt((1 - b) / (1 - a)) * np.sqrt(1 - a / b)
    on_eps = np.sqrt(1 - b - std**2)
    assert rows["std"] == pytest.approx(std, abs=1e-13)
    # in terms of x: eps = (x - sqrt(abar) x0)/sqrt(1 - abar)
    assert rows["a"] == pytest.approx(on_eps / np.sqrt(1 - a), abs=1e-13)
    assert rows["b"] == pytest.approx(np.sqrt(b) - on_eps * np.sqrt(a / (1 - a)), abs=1e-13)


@pytest.mark.check(system=9, number=3)
@pytest.mark.parametrize(
    "times",
    [list(range(999, -2, -4)), list(range(30, -2, -1)), [980, 700, 350, 20, 0, -1], [999, 3, -1], [999, 500, 40]],
)
def test_eta_one_is_ddpm_with_the_small_variance_of_the_respaced_process(times: list[int]) -> None:
    schedule = Discrete()
    draws = Noise(4).at(range(3), (2,), dtype=F8)
    one = DDIM(eta=1.0)(mixture(schedule), draws, times=times).x
    other = DDPM(variance="small")(mixture(schedule), draws, times=times).x
    assert (one - other).abs().max() < 1e-12 * len(times)
    ddim, ddpm = (
        s.coefficients(schedule, np.array(times, dtype=float)) for s in (DDIM(eta=1.0), DDPM(variance="small"))
    )
    for name in ("a", "b", "std"):
        assert ddim[name] == pytest.approx(ddpm[name], abs=1e-12)


@pytest.mark.check(system=9, number=4)
def test_on_standard_normal_data_a_step_multiplies_by_a_cosine() -> None:
    """cos(theta - theta'), cos^2 theta = abar: a slight shrinkage, gone as steps grow."""
    schedule = Discrete()
    model = Gaussian(schedule, torch.zeros(2, dtype=F8), 1.0)
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    x = draws.normal()
    shrunk = []
    for steps in (10, 40, 160):
        times = np.append(leading(schedule, 10 if steps == 10 else 40 if steps == 40 else 143), -1.0)
        theta = np.arccos(np.sqrt(np.append(schedule.abar, 1.0)[times.astype(int)]))
        factor = np.cos(np.diff(theta)).prod()
        assert torch.allclose(DDIM()(model, draws, times=times, x=x).x, factor * x, rtol=1e-11)
        shrunk.append(1 - factor)
    assert shrunk[0] > shrunk[1] > shrunk[2] > 0
    assert shrunk[2] < 0.02


@pytest.mark.check(system=9, number=5)
def test_first_order_in_uniform_index() -> None:
    """Halving the step halves the distance to the exact flow."""
    schedule = Discrete()
    model = Gaussian(schedule, torch.tensor([0.5, -0.2], dtype=F8), torch.tensor([0.3, 0.8], dtype=F8))
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    x = draws.normal()
    errors = []
    for stride in (40, 20, 10, 5):
        times = np.arange(960, 159, -stride).astype(float)
        exact = model.flow(x, 960.0, 160.0)
        errors.append((DDIM()(model, draws, times=times, x=x).x - exact).abs().max().item())
    ratios = np.array(errors[:-1]) / errors[1:]
    assert ratios == pytest.approx([2, 2, 2], abs=0.25)


@pytest.mark.check(system=9, number=6)
def test_encoding_then_decoding_returns_the_input_up_to_one_over_steps() -> None:
    schedule = Discrete()
    model = mixture(schedule)
    draws = Noise(1).at(range(4), (2,), dtype=F8)
    x = mixture(schedule).means[[0, 1, 2, 0]] + 0.2 * draws.normal()
    errors = []
    for steps in (25, 50, 100, 200):
        up = np.arange(0, 1000, 1000 // steps).astype(float)
        code = DDIM()(model, draws, times=up, x=x).x
        back = DDIM()(model, draws, times=up[::-1].copy(), x=code).x
        errors.append((back - x).abs().max().item())
    ratios = np.array(errors[:-1]) / errors[1:]
    assert (ratios[1:] > 1.6).all(), errors
    assert (ratios[1:] < 2.6).all(), errors
    assert errors[-1] < 0.1


@pytest.mark.parametrize("schedule", [VP(), EDM(), Discrete()], ids=lambda s: type(s).__name__)
def test_an_exact_denoiser_of_a_point_lands_on_the_point_in_one_step(schedule: Schedule) -> None:
    point = torch.tensor([0.3, -0.7], dtype=F8)
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    for eta in (0.0, 1.0):
        x = DDIM(eta=eta, steps=1)(Gaussian(schedule, point, 0.0), draws).x
        assert torch.allclose(x, point.expand(3, 2), atol=1e-11)


def test_images_can_be_encoded_up_to_pure_noise() -> None:
    """A flow ends at t = 1, where alpha = 0: the code is the noise itself."""
    model = Gaussian(Flow(), torch.tensor([0.3, -0.7], dtype=F8), 0.2)
    draws = Noise(0).at(range(3), (2,), dtype=F8)
    x = draws.normal()
    code = DDIM()(model, draws, times=np.linspace(0.01, 1.0, 400), x=x).x
    assert torch.isfinite(code).all()
    assert (code - model.flow(x, 0.01, 1.0)).abs().max() < 0.05


def test_eta_spreads_what_it_should() -> None:
    """On standard normal data eta = 1 keeps more variance than eta = 0 loses; noise follows the image's own stream."""
    schedule = Discrete()
    draws = Noise(2).at(range(3), (2,), dtype=F8)
    model = mixture(schedule)
    times = [999.0, 500.0]
    half, none = (DDIM(eta=e)(model, draws, times=times).x for e in (0.5, 0.0))
    rows = DDIM(eta=0.5).coefficients(schedule, np.array(times))
    x = draws.normal() * schedule.sigma(999.0)
    mean = model(x, 999.0).mean
    expected = rows["a"][0] * x + rows["b"][0] * mean + rows["std"][0] * draws.normal(1)
    assert torch.allclose(half, expected, atol=1e-12)
    assert (half - none).abs().max() > 1e-3


def test_settings() -> None:
    assert (DDIM().order, DDIM().rising, DDIM().stochastic) == (1, True, False)
    assert (DDIM(eta=0.1).order, DDIM(eta=0.1).rising, DDIM(eta=0.1).stochastic) == (None, False, True)
    for eta in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="eta"):
            DDIM(eta=eta)
