"""Latent denoisers: scale, encoding, decoding, and that they survive a file."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.core.noise import Noise
from scoreline.data.images import Batch
from scoreline.diffusion.closed_form import Gaussian
from scoreline.diffusion.denoising import Denoising
from scoreline.diffusion.latent import Latent, latent_scale
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM, Discrete
from scoreline.guidance.extrapolate import ClassifierFree
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.mlp import MLP
from scoreline.samplers.ddim import DDIM
from scoreline.samplers.heun import Heun

LATENT = (2, 2, 2)


@pytest.fixture(scope="module")
def autoencoder() -> KLAutoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = KLAutoencoder(in_shape=(1, 4, 4), latent_channels=2, base_channels=8, channel_mult=(1, 2))
        for p in net.parameters():
            p.data.add_(0.1 * torch.randn_like(p))
    return net.eval()


def images(count: int = 16) -> torch.Tensor:
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)


def denoiser(schedule: Any = None, *, classes: int | None = None) -> Preconditioned:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = MLP(in_shape=LATENT, width=16, depth=1, num_classes=classes)
        for p in net.parameters():
            p.data.add_(0.2 * torch.randn_like(p))
    return Preconditioned(net, schedule or EDM()).eval()


def test_scaled_latents_have_unit_deviation(autoencoder):
    x = images()
    scale = latent_scale(autoencoder, x)
    latent = Latent(denoiser(), autoencoder, scale=scale)
    z = latent.encode(x)
    assert float(z.std()) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(z, autoencoder.encode(x)[0].detach() * scale)
    assert not z.requires_grad


def test_decode_divides_by_the_scale(autoencoder):
    latent = Latent(denoiser(), autoencoder, scale=0.18215)
    x = images()
    # decode(encode(x)) is the autoencoder's own reconstruction, whatever the scale.
    torch.testing.assert_close(latent.decode(latent.encode(x)), autoencoder(x).detach(), rtol=1e-4, atol=1e-5)
    z = torch.randn(3, *LATENT, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(latent.decode(z), autoencoder.decode(z / 0.18215).detach())


def test_it_answers_as_the_inner_model(autoencoder):
    inner = denoiser(classes=3)
    latent = Latent(inner, autoencoder, scale=0.5)
    x, cond = torch.randn(4, *LATENT), Cond(labels=torch.tensor([0, 1, 2, 3]))
    for t in (0.7, torch.tensor([0.1, 0.5, 2.0, 9.0], dtype=torch.float64)):
        torch.testing.assert_close(latent(x, t, cond).mean, inner(x, t, cond).mean)
    assert (latent.shape, latent.num_classes, latent.evaluations) == (LATENT, 3, 1)
    assert latent.schedule is inner.schedule
    assert latent.null(cond).labels.tolist() == [3] * 4


def test_sampling_makes_scaled_latents_and_never_clips_them(autoencoder):
    """Latents of deviation 3 around 5 leave [-1, 1] far behind and must arrive there."""
    exact = Gaussian(Discrete(), torch.full(LATENT, 5.0), 9.0)
    latent = Latent(exact, autoencoder, scale=2.0)
    draws = Noise(0).at(range(200), LATENT)
    z = DDIM(steps=100)(latent, draws).x
    assert float(z.mean()) == pytest.approx(5, abs=0.4)
    assert float(z.std()) == pytest.approx(3, rel=0.05)
    assert latent.decode(z[:4]).shape == (4, 1, 4, 4)


def test_guidance_of_latents_decodes_too(autoencoder):
    latent = Latent(denoiser(classes=3), autoencoder, scale=2.0)
    guided = ClassifierFree(latent, 2.0).given(Cond(labels=torch.tensor([0, 1])))
    sample = Heun(steps=2)(guided, Noise(0).at(range(2), LATENT))
    assert sample.nfe == 2 * 3
    torch.testing.assert_close(guided.decode(sample.x), latent.decode(sample.x))


def test_file_holds_model_autoencoder_and_scale(autoencoder, tmp_path):
    latent = Latent(denoiser(classes=3), autoencoder, scale=0.7)
    save_artefact(tmp_path / "latent.safetensors", latent)
    again, header = load_artefact(tmp_path / "latent.safetensors", kind="denoiser")
    assert (header["kind"], header["name"]) == ("denoiser", "latent")
    assert isinstance(again, Latent)
    assert again.scale == 0.7
    x, z = images(3), torch.randn(3, *LATENT)
    cond = Cond(labels=torch.tensor([0, 1, 2]))
    assert torch.equal(again.encode(x), latent.encode(x))
    assert torch.equal(again.decode(z), latent.decode(z))
    assert torch.equal(again(z, 0.5, cond).mean, latent(z, 0.5, cond).mean)


def test_denoising_trains_on_encoded_images(autoencoder):
    latent = Latent(denoiser(), autoencoder, scale=2.0)
    method = Denoising(latent.inner, transform=lambda image, draws: latent.encode(image))
    index = torch.arange(5)
    b = Batch(images(5), None, index, draws=Noise(0).at(index, (1, 4, 4)))
    shared = method.prepare(b, 0)
    torch.testing.assert_close(shared.x0, latent.encode(b.image))
    assert shared.x.shape == (5, *LATENT)
    assert math.isfinite(float(method.loss(b, shared, 0)["loss"].detach()))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_must_be_positive(autoencoder, scale):
    with pytest.raises(InputError, match="latent_scale"):
        Latent(denoiser(), autoencoder, scale=scale)


def test_shapes_must_fit(autoencoder):
    with pytest.raises(InputError, match=r"latent shape \(1, 4, 4\)"):
        Latent(Preconditioned(MLP(in_shape=(1, 4, 4), width=8, depth=1), EDM()), autoencoder, scale=1.0)
