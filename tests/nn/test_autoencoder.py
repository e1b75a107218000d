"""The KL autoencoder: shapes, the KL term, sampling, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scoreline.core.errors import InputError
from scoreline.nn.autoencoder import KLAutoencoder, kl, sample


@pytest.mark.check(system=9, number=9)
def test_kl_at_the_prior_and_beyond_the_clamp():
    zero = torch.zeros(2, 4, 2, 2)
    assert torch.equal(kl(zero, zero), torch.zeros(2))
    assert torch.equal(kl(zero, torch.full_like(zero, 50.0)), kl(zero, torch.full_like(zero, 20.0)))
    torch.testing.assert_close(kl(zero, torch.full_like(zero, 50.0)), torch.full((2,), 8 * (math.exp(20) - 21)))
    assert torch.equal(kl(zero, torch.full_like(zero, -99.0)), kl(zero, torch.full_like(zero, -30.0)))


def test_kl_is_the_divergence_of_two_gaussians():
    torch.manual_seed(0)
    mean, logvar = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64).unbind(0)
    want = kl_divergence(Normal(mean, (logvar / 2).exp()), Normal(torch.zeros_like(mean), torch.ones_like(mean)))
    torch.testing.assert_close(kl(mean, logvar), want.flatten(1).sum(1))


def test_sample_has_the_stated_moments():
    mean, logvar = torch.full((1, 1), 1.5), torch.full((1, 1), math.log(4.0))
    torch.testing.assert_close(sample(mean, logvar, torch.tensor([[0.0]])), mean)
    torch.testing.assert_close(sample(mean, logvar, torch.tensor([[1.0]])), torch.tensor([[3.5]]))
    huge = sample(mean, torch.full((1, 1), 50.0), torch.tensor([[1.0]]))
    torch.testing.assert_close(huge, torch.tensor([[1.5 + math.exp(10)]]))


@pytest.mark.parametrize(
    "shape, mult, channels, latent",
    [
        ((1, 8, 8), (1, 2), 2, (2, 4, 4)),
        ((1, 8, 8), (1, 2, 2), 4, (4, 2, 2)),
        ((3, 16, 32), (1, 1, 2, 2), 4, (4, 2, 4)),
        ((3, 8, 8), (1,), 3, (3, 8, 8)),
    ],
)
def test_shapes_batches_and_gradients(shape, mult, channels, latent):
    torch.manual_seed(0)
    net = KLAutoencoder(in_shape=shape, latent_channels=channels, base_channels=8, channel_mult=mult)
    x = torch.randn(3, *shape)
    mean, logvar = net.encode(x)
    assert mean.shape == logvar.shape == (3, *latent)
    assert net.latent_shape == latent
    assert net.factor == shape[1] // latent[1]
    torch.testing.assert_close(net(x), net.decode(mean))
    z = net.sample(x, torch.ones_like(mean))
    torch.testing.assert_close(z, mean + (logvar / 2).exp())
    single = torch.cat([net(row[None]) for row in x])
    torch.testing.assert_close(single, net(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in net.parameters():  # residual branches start at zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    (net.decode(net.sample(x, torch.ones_like(mean))).square().sum() + kl(*net.encode(x)).sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_encode_clamps():
    net = KLAutoencoder(in_shape=(1, 8, 8), base_channels=8, channel_mult=(1, 2))
    with torch.no_grad():
        net.encoder[-1].bias[4:6] = 1e3
        net.encoder[-1].bias[6:] = -1e3
    logvar = net.encode(torch.randn(2, 1, 8, 8))[1]
    assert (logvar[:, :2] == 20).all()
    assert (logvar[:, 2:] == -30).all()


def test_refusals():
    for settings, thing in (
        ({"in_shape": (8, 8)}, "in_shape"),
        ({"in_shape": (1, 6, 8)}, "in_shape"),
        ({"in_shape": (1, 8, 8), "latent_channels": 0}, "latent_channels"),
        ({"in_shape": (1, 8, 8), "channel_mult": ()}, "channel_mult"),
    ):
        with pytest.raises(InputError) as error:
            KLAutoencoder(**settings)
        assert error.value.thing == thing
    net = KLAutoencoder(in_shape=(1, 8, 8), base_channels=8)
    with pytest.raises(InputError, match="image shape"):
        net.encode(torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="latent shape"):
        net.decode(torch.zeros(1, 4, 4, 4))
