"""Training of the KL autoencoder: the loss in closed form, its noise, and that it learns."""

from __future__ import annotations

import math

import pytest
import torch

from scoreline.core.artefact import build, describe
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.generators.autoencoding import KLAutoencoding, autoencoding_loss, reconstruction
from scoreline.nn.autoencoder import KLAutoencoder, kl
from scoreline.train import fit

F8 = torch.float64


def small(seed: int = 0) -> KLAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = KLAutoencoder(
            in_shape=(1, 4, 4), latent_channels=2, base_channels=8, channel_mult=(1, 2), middle_attention=False
        )
        for p in net.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
    return net


def images(count: int = 8, *, low: int = 0) -> torch.Tensor:
    return torch.rand(64, 1, 4, 4, generator=torch.Generator().manual_seed(1))[low : low + count] * 2 - 1


def batch(count: int = 8, *, low: int = 0) -> Batch:
    index = torch.arange(low, low + count)
    return Batch(images(count, low=low), None, index, draws=Noise(3).at(index, (1, 4, 4)))


def value(method: KLAutoencoding, b: Batch, entry: str = "loss") -> torch.Tensor:
    return method.loss(b, None, 0)[entry].detach()


def test_reconstruction_is_a_mean_over_each_image():
    x = torch.zeros(2, 1, 2, 2, dtype=F8)
    xhat = torch.tensor([[1.0, -1, 0, 0], [2, 2, 2, -4]], dtype=F8).view(2, 1, 2, 2)
    assert reconstruction(x, xhat).tolist() == [0.5, 2.5]
    assert reconstruction(x, xhat, distance="l2").tolist() == [0.5, 7.0]
    with pytest.raises(InputError, match="did you mean 'l2'"):
        reconstruction(x, xhat, distance="L22")


def test_loss_in_closed_form():
    x = torch.zeros(2, 1, 4, 4, dtype=F8)
    xhat = x + torch.tensor([0.25, -0.75], dtype=F8).view(2, 1, 1, 1)
    mean = torch.full((2, 2, 2, 2), 0.5, dtype=F8)
    logvar = torch.full_like(mean, math.log(0.04))
    # Eight latents an image, summed: 4 (0.25 + 0.04 - 1 - ln 0.04).
    bound = 4 * (0.29 - 1 - math.log(0.04))
    for weight in (0.0, 1e-6, 0.3):
        assert float(autoencoding_loss(x, xhat, mean, logvar, kl_weight=weight)) == pytest.approx(0.5 + weight * bound)
    got = autoencoding_loss(x, xhat, mean, logvar, kl_weight=0.3, distance="l2")
    assert float(got) == pytest.approx(0.3125 + 0.3 * bound)
    assert float(autoencoding_loss(x, x, mean * 0, logvar * 0, kl_weight=1.0)) == 0


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_the_method_makes_that_loss_with_the_images_own_noise(distance):
    method = KLAutoencoding(small(), kl_weight=0.01, distance=distance)
    b, net = batch(), method.autoencoder
    mean, logvar = net.encode(b.image)
    z = mean + (logvar / 2).exp() * b.draws.reshaped((2, 2, 2)).normal()
    want = autoencoding_loss(b.image, net.decode(z), mean, logvar, kl_weight=0.01, distance=distance).detach()
    torch.testing.assert_close(value(method, b), want)
    torch.testing.assert_close(value(method, b, "kl"), kl(mean, logvar).mean().detach())
    torch.testing.assert_close(want, value(method, b, distance) + 0.01 * value(method, b, "kl"))
    torch.testing.assert_close(want, (value(method, batch(4)) + value(method, batch(4, low=4))) / 2)


def test_the_noise_carries_gradients_to_the_variance():
    method = KLAutoencoding(small(), kl_weight=0.0)
    method.loss(batch(), None, 0)["loss"].backward()
    assert float(method.autoencoder.encoder[-1].weight.grad[2:].abs().max()) > 0
    assert all(p.grad is not None for p in method.parameters())


def test_it_learns_and_leaves_the_averaged_network_in_evaluation_mode():
    data = torch.where(images(16) > 0, 0.8, -0.8)
    method = KLAutoencoding(small(), lr=1e-2)
    assert method.averaged() is method.autoencoder
    with torch.no_grad():
        before = float((method.autoencoder(data) - data).abs().mean())
    net = fit(method, data, steps=60, batch_size=16, ema=0.8).result()
    assert net is method.autoencoder
    assert not net.training
    with torch.no_grad():
        assert float((net(data) - data).abs().mean()) < 0.5 * before


def test_a_heavy_kl_empties_the_latents():
    net = fit(KLAutoencoding(small(), kl_weight=10.0, lr=2e-2), images(16), steps=40, batch_size=16).result()
    with torch.no_grad():
        assert float(kl(*net.encode(images(16))).mean()) < 0.05


def test_what_is_left_can_be_described():
    again = build(describe(KLAutoencoding(small()).result()))
    assert again.latent_shape == (2, 2, 2)


@pytest.mark.parametrize("settings", [{"kl_weight": -1e-6}, {"kl_weight": math.nan}, {"distance": "mse"}])
def test_refusals(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        KLAutoencoding(small(), **settings)
