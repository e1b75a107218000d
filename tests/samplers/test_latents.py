"""Encoding, decoding, interpolation."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.ddpm import DDPM
from scoreline.samplers.dpm_solver_pp import DPMSolverPP2M
from scoreline.samplers.euler import Euler
from scoreline.samplers.heun import Heun
from scoreline.samplers.latents import decode, encode, interpolate
from scoreline.samplers.rk45 import RK45

MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=torch.float64)
every_schedule = pytest.mark.parametrize("name", names("schedule"))


def mixture(name: str) -> Mixture:
    return Mixture(lookup("schedule", name)(), MEANS, 0.1, labels=torch.tensor([0, 1, 2]))


@every_schedule
def test_decoding_is_the_inverse_of_encoding(name: str) -> None:
    model, x = mixture(name), MEANS + 0.1
    z = encode(model, x)
    assert z.shape == x.shape
    assert (decode(model, z) - x).abs().max() < 2e-4
    assert (decode(model, z, denoise=True) - x).abs().max() < 0.05
    assert (decode(model, z, denoise=True) - decode(model, z)).abs().max() > 1e-11


@every_schedule
def test_latents_of_a_gaussian_are_its_standard_scores(name: str) -> None:
    """z = (x_T)/std, with x_T the exact flow of the image."""
    model = Gaussian(lookup("schedule", name)(), torch.tensor([0.4, -0.3], dtype=torch.float64), 0.5)
    schedule = model.schedule
    x = torch.tensor([[1.0, 0.2], [-0.5, 0.0]], dtype=torch.float64)
    ends = (schedule.t_min, schedule.t_max)
    exact = model.flow(x * float(schedule.alpha(schedule.t_min)), *ends) / float(schedule.prior())
    assert (encode(model, x, RK45(rtol=1e-8)) - exact).abs().max() < 1e-6
    assert (exact - (x - torch.tensor([0.4, -0.3])) / math.sqrt(0.5)).abs().max() < 0.05


def test_conditions_of_the_images_are_used_in_both_directions() -> None:
    labels = torch.tensor([0, 1, 2])
    model, x = mixture("vp"), MEANS + 0.1
    z = encode(model.given(Cond(labels=labels)), x)
    assert (decode(model.given(Cond(labels=labels)), z) - x).abs().max() < 2e-4
    other = decode(model.given(Cond(labels=labels.roll(1))), z)
    assert (other - (x - MEANS + MEANS.roll(1, 0))).abs().max() < 0.02


@pytest.mark.parametrize("make", [Euler, DDIM, Heun], ids=lambda c: c.__name__)
def test_any_rising_sampler_encodes(make: type) -> None:
    model, x = mixture("edm"), MEANS + 0.1
    exact = encode(model, x)
    errors = [(encode(model, x, make(steps=n)) - exact).abs().max().item() for n in (50, 200)]
    assert errors[1] < errors[0] / 2
    back = decode(model, encode(model, x, make(steps=200)), make(steps=200))
    assert (back - x).abs().max() < 0.2


def test_samplers_that_cannot_are_refused() -> None:
    model, x = mixture("vp"), MEANS
    for sampler in (DDPM(steps=9), DPMSolverPP2M(steps=9), DDIM(eta=1.0, steps=9)):
        with pytest.raises(InputError, match="runs upwards"):
            encode(model, x, sampler)
    with pytest.raises(InputError, match="adds noise"):
        decode(model, x, DDPM(steps=9))
    with pytest.raises(InputError, match=r"the model makes|needs shape"):
        encode(model, torch.zeros(2, 4))


def test_interpolation_goes_along_the_arc() -> None:
    a, b = torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 3.0], [0.0, 5.0]])
    assert torch.allclose(interpolate(a, b, 0.0), a)
    assert torch.allclose(interpolate(a, b, 1.0), b, atol=1e-6)
    third = interpolate(a, b, 1 / 3)
    assert torch.allclose(third[0], torch.tensor([3 * math.cos(math.pi / 6), 3 * math.sin(math.pi / 6)]))
    assert torch.allclose(third[1], torch.tensor([0.0, 3.0]))  # the same direction: a straight line
    mixed = interpolate(a, b, torch.tensor([0.0, 1.0]))
    assert torch.allclose(mixed, torch.stack([a[0], b[1]]), atol=1e-6)
    with pytest.raises(InputError, match="same shape"):
        interpolate(a, b[:1], 0.5)


def test_interpolated_noise_keeps_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(8, 3, 16, 16, generator=generator) for _ in range(2))
    for w in (0.2, 0.5):
        assert interpolate(a, b, w).square().mean() == pytest.approx(1.0, abs=0.05)
        assert ((1 - w) * a + w * b).square().mean() < 0.75
