"""Every generator through the same questions: image i of a seed is one picture, whatever the batch, order or steps of
memory; the cost is counted; what comes out is float32 in [-1, 1].

A generator is found by itself: every class in the package that derives from ImageGenerator must have a line in SMALL.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import pytest
import torch

import scoreline
from scoreline.core.cond import Cond
from scoreline.core.generator import ImageGenerator
from scoreline.core.noise import Noise
from scoreline.diffusion.closed_form import Mixture
from scoreline.diffusion.latent import Latent
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.autoencoder import KLAutoencoder
from scoreline.nn.mlp import MLP
from scoreline.samplers.ancestral import Ancestral
from scoreline.samplers.generator import Sampled
from scoreline.samplers.heun import Heun

SHAPE = (1, 8, 8)


def _mixture() -> Mixture:
    means = torch.linspace(-0.5, 0.5, 4).view(4, 1, 1, 1).expand(4, *SHAPE).clone()
    return Mixture(EDM(), means, 0.02, labels=torch.tensor([0, 0, 1, 1]))


def _latent() -> Latent:
    autoencoder = KLAutoencoder(in_shape=SHAPE, channel_mult=(1, 2), base_channels=8)
    net = MLP(in_shape=autoencoder.latent_shape, width=16, num_classes=2)
    return Latent(Preconditioned(net, EDM()), autoencoder, scale=0.7).eval()


SMALL: dict[str, Callable[[], ImageGenerator]] = {
    "Sampled": lambda: Sampled(_mixture(), Heun(steps=4)),
    "Sampled, noise in every step": lambda: Sampled(_mixture(), Ancestral(steps=4)),
    "Sampled, latents": lambda: Sampled(_latent(), Heun(steps=3)),
}


def _classes() -> set[str]:
    found = set()
    for info in pkgutil.walk_packages(scoreline.__path__, "scoreline."):
        if not info.name.endswith("__main__"):
            for name, cls in inspect.getmembers(importlib.import_module(info.name), inspect.isclass):
                if issubclass(cls, ImageGenerator) and cls is not ImageGenerator:
                    found.add(name)
    return found


def labels(indices: range | list[int]) -> Cond:
    return Cond(labels=torch.tensor([i % 2 for i in indices]))


def test_every_generator_is_asked() -> None:
    assert _classes() <= {name.split(",")[0] for name in SMALL}


@pytest.fixture(params=SMALL, ids=list(SMALL))
def generator(request: pytest.FixtureRequest) -> ImageGenerator:
    torch.manual_seed(0)
    return SMALL[request.param]()


def test_a_picture_does_not_depend_on_its_batch_or_place(generator: ImageGenerator) -> None:
    together = generator.generate(range(6), Noise(3), labels(range(6)))
    assert together.shape == (6, *SHAPE)
    assert together.dtype == torch.float32
    assert together.abs().max() <= 1
    order = [4, 1, 5, 0]
    mixed = generator.generate(order, Noise(3), labels(order))
    assert (mixed - together[order]).abs().max() < 1e-4
    for i in (0, 5):
        assert (generator.generate([i], Noise(3), labels([i]))[0] - together[i]).abs().max() < 1e-4
    # Another seed and another image are other pictures: the test above could not pass by making one picture.
    assert (generator.generate(range(6), Noise(4), labels(range(6))) - together).abs().max() > 1e-3
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_the_cost_is_counted_and_steps_change_it(generator: ImageGenerator) -> None:
    assert generator.nfe is None
    generator.generate([0], Noise(0), labels([0]))
    first = generator.nfe
    generator.generate([0], Noise(0), labels([0]), steps=7)
    assert first is not None
    assert generator.nfe is not None
    assert generator.nfe > first
    generator.generate([0], Noise(0), labels([0]))
    assert generator.nfe == first
