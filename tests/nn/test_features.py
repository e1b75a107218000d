"""Pixels, the feature network without weights, and what every encoder has beside its features."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from torch import Tensor

from scoreline.core.encoder import Encoder, check_images
from scoreline.core.errors import InputError
from scoreline.core.names import lookup
from scoreline.core.score import Protocol
from scoreline.nn.digits_net import DigitsNet
from scoreline.nn.features import Pixels


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_pixels() -> None:
    pixels = lookup("encoder", "pixels")((3, 2, 4))
    assert isinstance(pixels, Pixels)
    x = noise(5, 3, 2, 4) * 2 - 1
    assert pixels.dim == 24
    assert torch.equal(pixels.features(x), x.reshape(5, 24))
    assert torch.equal(pixels(x), pixels.features(x))
    assert Protocol(metric="fd-pixel", **pixels.protocol).features == "pixels"
    for bad in (x[:, :1], x[..., :3], x + 2):
        with pytest.raises(InputError):
            pixels.features(bad)
    with pytest.raises(InputError, match="at least 1"):
        Pixels((3, 0, 4))
    assert inspect.signature(Pixels).parameters["shape"].default == (1, 8, 8)


@pytest.mark.parametrize("net", [Pixels(), DigitsNet(width=4, dim=6)], ids=["pixels", "digits"])
@torch.no_grad()
def test_features_are_the_preprocessed_images_activations(net: Pixels | DigitsNet) -> None:
    x = noise(3, 1, 8, 8) * 2 - 1
    assert net.tap in net.tap_names
    assert net.protocol["tap"] == net.tap
    prepared = pickle.loads(pickle.dumps(net.preprocess))(x)
    assert len(pickle.dumps(net.preprocess)) < 500
    found = net.activations(prepared, net.tap_names)
    assert list(found) == list(net.tap_names)
    assert torch.equal(found[net.tap], net.features(x))
    assert found[net.tap].shape == (3, net.dim)
    with pytest.raises(InputError, match="tap 'hiden'"):
        net.activations(prepared, ["hiden"])
    with pytest.raises(InputError):
        net.preprocess(x[:, :, :5])
    assert net.fast() is net
    with pytest.raises(InputError, match="float32"):
        net.fast(dtype=torch.bfloat16)
    with pytest.raises(InputError, match="not compiled"):
        net.fast(compile=True)


@torch.no_grad()
def test_logits_are_a_tap_of_a_classifier() -> None:
    net, x = DigitsNet(width=4, dim=6), noise(3, 1, 8, 8)
    assert torch.equal(net.activations(x, ["logits"])["logits"], net(x))


class Mean(Encoder):
    """An encoder of the simplest kind: one tap, nothing to prepare, features alone."""

    dim = 1

    @property
    def protocol(self) -> dict[str, str]:
        return {"features": "mean"}

    def features(self, x: Tensor) -> Tensor:
        check_images(x)
        return x.flatten(1).mean(1, keepdim=True)


class Nothing(Encoder):
    dim = 1

    @property
    def protocol(self) -> dict[str, str]:
        return {"features": "nothing"}


def test_an_encoder_may_define_features_alone() -> None:
    net, x = Mean(), noise(3, 1, 4, 4)
    assert net.tap_names == ("features",)
    assert torch.equal(net.preprocess(x), x)
    assert torch.equal(net.activations(net.preprocess(x), ["features"])["features"], net.features(x))
    assert torch.equal(net(x), net.features(x))
    with pytest.raises(InputError, match="range"):
        net.preprocess(x + 1)
    with pytest.raises(InputError, match="did you mean 'features'"):
        net.activations(x, ["feature"])
    with pytest.raises(NotImplementedError, match="neither"):
        Nothing().features(x)
