"""Clipping and dynamic thresholding: laws, and a noise estimate that stays consistent."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.denoiser import Denoiser, Posterior
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.core.schedule import spread
from scoreline.diffusion.closed_form import Gaussian, Mixture
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, VP, Discrete, Flow
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.guidance.thresholding import Thresholded, dynamic_threshold
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM

F8 = torch.float64
SHAPE = (1, 4, 4)
schedules = pytest.mark.parametrize("schedule", [EDM(), VP(), Discrete(T=50), Flow()], ids=lambda s: type(s).__name__)


def wide(schedule) -> Gaussian:
    return Gaussian(schedule, torch.full(SHAPE, 0.5, dtype=F8), 4.0)


def noisy(count: int = 5) -> torch.Tensor:
    return 3 * torch.randn(count, *SHAPE, dtype=F8, generator=torch.Generator().manual_seed(0))


@schedules
@pytest.mark.parametrize("percentile", [None, 0.9])
@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_the_mean_is_kept_in_range_and_eps_goes_with_it(schedule, percentile, limit):
    model = wide(schedule)
    x = noisy()
    shared = float(schedule.time(torch.tensor(0.3, dtype=F8)).round() if schedule.known is not None else 0.4)
    for t in (shared, torch.full((5,), shared, dtype=F8)):
        before, post = model(x, t), Thresholded(model, limit=limit, percentile=percentile)(x, t)
        assert float(before.mean.abs().max()) > 1
        if percentile is None:
            torch.testing.assert_close(post.mean, before.mean.clamp(-limit, limit))
        else:
            torch.testing.assert_close(post.mean, limit * dynamic_threshold(before.mean / limit, percentile))
        assert float(post.mean.abs().max()) <= limit * (1 + 1e-12)
        alpha, sigma = spread(schedule.alpha(t), x), spread(schedule.sigma(t), x)
        torch.testing.assert_close(alpha * post.mean + sigma * post.eps, x)
        torch.testing.assert_close(post.score, -post.eps / sigma)


@schedules
def test_what_is_in_range_is_left_alone(schedule):
    model = Gaussian(schedule, torch.zeros(SHAPE, dtype=F8), 0.01)
    t = schedule.t_max / 2 if schedule.known is None else 25.0
    x = noisy() / 10
    before = model(x, t)
    for view in (Thresholded(model), Thresholded(model, percentile=0.995)):
        torch.testing.assert_close(view(x, t).mean, before.mean)
        torch.testing.assert_close(view(x, t).eps, before.eps, rtol=1e-6, atol=1e-8)


def test_dynamic_threshold_laws():
    mean = torch.randn(6, 3, 5, 5, dtype=F8, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [0.1, 0.2, 1, 2, 5, 50], dtype=F8
    ).view(-1, 1, 1, 1)
    for percentile in (0.5, 0.9, 0.995, 1.0):
        out = dynamic_threshold(mean, percentile)
        assert float(out.abs().max()) <= 1
        limit = mean.flatten(1).abs().quantile(percentile, dim=1).clamp_min(1)
        # Below its limit an image is divided, above it set to 1.
        want = (mean / limit.view(-1, 1, 1, 1)).clamp(-1, 1)
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)
        # An image whose limit is below 1 is clipped as usual.
        assert torch.equal(out[:2], mean[:2].clamp(-1, 1))
        # Each image has its own limit.
        torch.testing.assert_close(dynamic_threshold(mean[3:4], percentile), out[3:4])
        assert torch.equal(dynamic_threshold(-mean, percentile), -out)
    saturated = (dynamic_threshold(mean, 0.9).abs() > 1 - 1e-9).flatten(1).double().mean(1)[3:]
    assert ((saturated - 0.1).abs() <= 1 / 75 + 1e-9).all()
    assert float(dynamic_threshold(mean, 1.0)[5].abs().max()) == pytest.approx(1)
    # Without thresholding a factor goes through; with it, large images forget their scale.
    torch.testing.assert_close(dynamic_threshold(mean[5:] * 7, 0.9), dynamic_threshold(mean[5:], 0.9))


def test_mix_and_taps_pass():
    class Taps(Denoiser):
        schedule, shape = EDM(), SHAPE

        def posterior(self, x, t, cond):
            return Posterior(x, 2 * x, mean=(0.0, 1.0), eps=(1.0, -1.0), sigma=1.0, mix=x + 1, taps={"a": x})

    x = noisy()
    post = Thresholded(Taps())(x, 1.0)
    assert torch.equal(post.mix, x + 1)
    assert torch.equal(post.taps["a"], x)


def test_it_tames_guidance_and_samples_stay_in_range():
    means = torch.tensor([[[[0.9]]], [[[-0.9]]]], dtype=F8)
    model = Mixture(Discrete(T=100), means, 0.02, labels=torch.tensor([0, 1]))
    cond, draws = Cond(labels=torch.tensor([0, 1] * 10)), Noise(0).at(range(20), (1, 1, 1), dtype=F8)
    guided = ClassifierFree(model, 8.0)
    bare = DDIM(steps=10)(guided.given(cond), draws).x
    view = Thresholded(guided)
    assert (view.evaluations, view.num_classes) == (2, 2)
    kept = DDIM(steps=10)(view.given(cond), draws)
    assert float(bare.abs().max()) > 1.05
    assert float(kept.x.abs().max()) <= 1
    assert kept.nfe == 20
    assert (kept.x[::2] > 0).all()
    assert (kept.x[1::2] < 0).all()


def test_refusals():
    model = wide(EDM())
    for percentile in (0.0, 1.5, math.nan):
        with pytest.raises(InputError, match="percentile"):
            Thresholded(model, percentile=percentile)
    for limit in (0.0, -1.0):
        with pytest.raises(InputError, match="limit"):
            Thresholded(model, limit=limit)


def test_latents_are_refused():
    autoencoder = KLAutoencoder(in_shape=(1, 4, 4), latent_channels=1, base_channels=8, channel_mult=(1, 2))
    inner = Preconditioned(MLP(in_shape=(1, 2, 2), width=8, depth=1, num_classes=2), EDM())
    latent = Latent(inner, autoencoder, scale=1.0)
    for model in (latent, ClassifierFree(latent, 2.0)):
        with pytest.raises(InputError, match="latents have no range"):
            Thresholded(model)
