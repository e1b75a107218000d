"""Likelihoods against closed forms; probes; dequantisation and its offset."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior, View
from scoreline.core.errors import InputError
from scoreline.core.names import lookup, names
from scoreline.core.noise import Noise
from scoreline.core.schedule import Time
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.likelihood import bin_width, bits_per_dim, dequantised, log_likelihood

MEANS = torch.tensor([[-1.0, 0.4, 0.3], [0.8, 1.0, -0.5], [0.2, -1.2, 0.9]], dtype=torch.float64)
VARIANCES = torch.tensor([0.05, 0.1, 0.2], dtype=torch.float64)
every_schedule = pytest.mark.parametrize("name", names("schedule"))


def mixture(name: str, **more: Tensor) -> Mixture:
    return Mixture(lookup("schedule", name)(), MEANS, VARIANCES, **more)


def some(count: int = 6) -> Tensor:
    return MEANS.repeat(2, 1)[:count] + 0.3 * Noise(1).at(range(count), (3,), dtype=torch.float64).normal()


def draws(count: int, seed: int = 0) -> object:
    return Noise(seed).at(range(count), (3,), dtype=torch.float64)


@pytest.mark.check(system=15, number=5)
@every_schedule
def test_bits_a_dimension_of_a_mixture_are_the_closed_form(name: str) -> None:
    """All that is left is the prior's error: below 0.01 bits a dimension."""
    model, x = mixture(name), some()
    found = log_likelihood(model, x, divergence="exact")
    t = model.schedule.t_min
    alpha = float(model.schedule.alpha(t))
    true = model.log_density(alpha * x, t) + 3 * math.log(alpha)
    assert (bits_per_dim(found.log_p - true, 3)).abs().max() < 0.01
    assert found.latents.shape == x.shape
    assert found.latents.square().mean() < 4


@pytest.mark.parametrize("name", ["vp", "ve", "subvp", "flow"])
def test_a_later_start_gives_the_density_of_the_image_at_that_noise(name: str) -> None:
    """p(x) = alpha^D p_t(alpha x): every factor of alpha and r counts here."""
    model, x = mixture(name), some()
    t = float(model.schedule.time(0.5))
    alpha = float(model.schedule.alpha(t))
    true = model.log_density(alpha * x, t) + 3 * math.log(alpha)
    found = log_likelihood(model, x, divergence="exact", t=t).log_p
    assert bits_per_dim(found - true, 3).abs().max() < 0.01


@pytest.mark.check(system=15, number=5)
@every_schedule
def test_rademacher_is_exact_for_an_isotropic_gaussian_and_gaussian_probes_are_not(name: str) -> None:
    model = Gaussian(lookup("schedule", name)(), torch.zeros(3, dtype=torch.float64), 0.3)
    x = some()
    exact = log_likelihood(model, x, divergence="exact")
    rademacher = log_likelihood(model, x, draws=draws(6), divergence="rademacher")
    gaussian = log_likelihood(model, x, draws=draws(6), divergence="gaussian")
    assert (exact.log_p - rademacher.log_p).abs().max() < 1e-9
    assert (exact.log_p - gaussian.log_p).abs().min() > 1e-3
    # Against the density itself, in closed form.
    t = model.schedule.t_min
    v = 0.3 + float(model.schedule.sigma(t) / model.schedule.alpha(t)) ** 2
    true = -0.5 * x.square().sum(1) / v - 1.5 * math.log(2 * math.pi * v)
    assert (exact.log_p - true).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased_and_shrinks_with_the_root_of_the_probes(kind: str) -> None:
    model, x = mixture("vp"), some(1).expand(256, 3)
    exact = float(log_likelihood(model, x[:1], divergence="exact").log_p)
    stds = []
    for probes in (1, 4):
        found = log_likelihood(model, x, draws=draws(256), divergence=kind, probes=probes, rtol=1e-4).log_p
        stds.append(float(found.std()))
        assert abs(float(found.mean()) - exact) < 4 * stds[-1] / 16 + 1e-3
    assert stds[0] / stds[1] == pytest.approx(2, rel=0.25)


def test_a_probe_belongs_to_the_image_and_not_to_the_batch() -> None:
    model, x = mixture("ve"), some()
    together = log_likelihood(model, x, draws=draws(6)).log_p
    for i in (0, 3):
        alone = log_likelihood(model, x[i : i + 1], draws=Noise(0).at([i], (3,), dtype=torch.float64)).log_p
        assert abs(float(alone[0] - together[i])) < 1e-10


def test_conditions_go_with_their_images() -> None:
    """Images arrive at different times; each keeps its own label until then."""
    model = mixture("vp", labels=torch.tensor([0, 1, 2]))
    labels = torch.tensor([0, 1, 2, 2, 1, 0])
    found = log_likelihood(model.given(Cond(labels=labels)), some(), divergence="exact").log_p
    for i in range(6):
        one = Mixture(model.schedule, MEANS[labels[i] : labels[i] + 1], VARIANCES[labels[i] : labels[i] + 1])
        assert abs(float(log_likelihood(one, some()[i : i + 1], divergence="exact").log_p - found[i])) < 1e-6


class Wrapped(View):
    """A denoiser around one that already has its conditions."""

    def posterior(self, x: Tensor, t: Time, cond: Cond | None) -> Posterior:
        return self.inner(x, t, None)


def test_conditions_bound_further_inside_are_kept_whole() -> None:
    model: Denoiser = mixture("vp", labels=torch.tensor([0, 1, 2]))
    cond = Cond(labels=torch.tensor([0, 1, 2, 2, 1, 0]))
    plain = log_likelihood(model.given(cond), some(), divergence="exact")
    inside = log_likelihood(Wrapped(model.given(cond)), some(), divergence="exact")
    assert (plain.log_p - inside.log_p).abs().max() < 1e-9
    assert torch.equal(plain.evaluations, inside.evaluations)


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
@pytest.mark.parametrize("bins", ["paper", "centred"])
def test_dequantised_pixels_stay_in_their_bins(levels: int, bins: str) -> None:
    k = torch.tensor([0, 1, levels // 2, levels - 1])
    x = (2 * k / (levels - 1) - 1)[None].double()
    width = bin_width(levels, bins)
    low, high = (dequantised(x, levels, torch.full_like(x, u), bins=bins) for u in (0.0, 1.0))
    assert torch.allclose(high - low, torch.full_like(x, width), atol=1e-12)
    if bins == "paper":
        assert float(low[0, 0]) == -1
        assert float(high[0, -1]) == pytest.approx(1)
        if levels == 256:
            assert torch.allclose(low, 2 * (255 * (x + 1) / 2) / 256 - 1, atol=1e-6)
    else:
        assert torch.allclose((low + high) / 2, x, atol=1e-6)


def test_the_offset_is_seven_for_eight_bits_on_the_papers_range() -> None:
    """bits/dim of a density p is -log2 p of one dimension, plus -log2 of the bin: +7 on [-1, 1] (+8 on [0, 1])."""
    log_p = torch.tensor([-3.0, 10.0])
    for levels, offset in ((256, 7.0), (17, math.log2(17 / 2)), (65536, 15.0)):
        wanted = -log_p / (64 * math.log(2)) + offset
        assert torch.allclose(bits_per_dim(log_p, 64, bin_width(levels)), wanted.double())
    assert float(bits_per_dim(torch.tensor([44.36]), 64)) == pytest.approx(-1.0, abs=1e-3)


def test_a_uniform_density_over_all_bins_costs_the_logarithm_of_the_levels() -> None:
    """Of L equally likely levels, each costs log2 L bits."""
    for levels in (2, 17, 256):
        log_p = torch.tensor([5 * math.log(0.5)])  # the density 1/2 on [-1, 1], 5 dimensions
        assert float(bits_per_dim(log_p, 5, bin_width(levels))) == pytest.approx(math.log2(levels))


BAD = {
    "a misspelt divergence": ({"divergence": "rademacer"}, "did you mean 'rademacher'"),
    "no draws": ({"divergence": "gaussian"}, "stream an image"),
    "no probes": ({"divergence": "exact", "probes": 0}, "probes 0"),
    "a tolerance of nothing": ({"divergence": "exact", "rtol": 0.0}, "rtol 0.0"),
    "a time at the clean end": ({"divergence": "exact", "t": 0.0}, "starts after"),
    "a time beyond": ({"divergence": "exact", "t": 2.0}, "before 1.0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str) -> None:
    settings, words = BAD[case]
    with pytest.raises(InputError, match=words):
        log_likelihood(mixture("vp"), some(), **settings)  # type: ignore[arg-type]


def test_images_of_another_shape_or_off_their_levels_are_refused() -> None:
    with pytest.raises(InputError, match="images of shape"):
        log_likelihood(mixture("vp"), torch.zeros(2, 4), divergence="exact")
    for x in (torch.tensor([[0.01]]), torch.tensor([[-1.125]]), torch.tensor([[float("nan")]])):
        with pytest.raises(InputError, match="levels 17"):
            dequantised(x, 17, torch.zeros_like(x))
    with pytest.raises(InputError, match="levels 1"):
        bin_width(1)
    with pytest.raises(InputError, match="centred"):
        bin_width(256, "centered")
