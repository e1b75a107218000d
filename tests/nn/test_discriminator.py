from __future__ import annotations

import pytest
import torch

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.diffusion.preconditioned import Preconditioned
from scoreline.diffusion.schedules import EDM
from scoreline.nn.digits_net import DigitsNet
from scoreline.nn.discriminator import FeatureDiscriminator, PairDiscriminator, TapDiscriminator, head_for
from scoreline.nn.dit import DiT
from scoreline.nn.mlp import MLP
from scoreline.nn.unet import UNet

SHAPE = (1, 8, 8)


def small(name: str, **more: object):
    if name == "unet":
        return UNet(in_shape=SHAPE, base_channels=16, channel_mult=(1, 2), num_blocks=1, attention=(4,), **more)
    if name == "mlp":
        return MLP(in_shape=SHAPE, width=16, depth=2, **more)
    return DiT(in_shape=SHAPE, patch=2, width=16, depth=2, heads=2, **more)


@pytest.mark.parametrize(("name", "logits"), [("unet", 16), ("mlp", 1), ("dit", 16)])
def test_a_tapped_network_judges_and_gradients_reach_the_image_but_not_the_network(name: str, logits: int):
    torch.manual_seed(0)
    net = small(name, num_classes=10)
    critic = TapDiscriminator(net).train()
    x = torch.randn(3, *SHAPE, requires_grad=True)
    out = critic(x, torch.full((3,), 0.5), Cond(labels=torch.tensor([1, 2, 10])))
    assert out.shape == (3, logits)
    out.sum().backward()
    assert x.grad is not None
    assert all(p.grad is None for p in net.parameters())
    assert all(p.grad is not None for p in critic.heads.parameters())
    assert not net.training
    trained = TapDiscriminator(small(name), head="pool", trained="all")
    trained(x, 0.5).sum().backward()
    assert any(p.grad is not None for p in trained.trunk.parameters())


def test_a_tapped_denoiser_is_told_its_own_coordinates():
    net = small("unet")
    model = Preconditioned(net, EDM(), sigma_data=0.5)
    critic = TapDiscriminator(model, ("bottleneck", "layer.0")).eval()
    x, sigma = torch.randn(2, *SHAPE), torch.tensor([0.3, 5.0], dtype=torch.float64)
    raw = TapDiscriminator(net, ("bottleneck", "layer.0")).eval()
    raw.heads.load_state_dict(critic.heads.state_dict())
    c_in = (1 / (sigma**2 + 0.25).sqrt()).float().view(-1, 1, 1, 1)
    assert torch.allclose(critic(x, sigma), raw(x * c_in, sigma.log() / 4), atol=1e-5)
    assert critic(x, sigma).shape == (2, 16 + 64)


def test_feature_networks_judge_outside_their_range_and_by_modules():
    encoder = DigitsNet()
    critic = FeatureDiscriminator(encoder, ("conv2", "conv4", encoder.tap)).train()
    x = (3 * torch.randn(2, *SHAPE)).requires_grad_()
    out = critic(x, 0.0)
    assert out.shape == (2, 64 + 16 + 1)
    out.sum().backward()
    assert (x.grad[x.detach() > 1] != 0).any()
    assert all(p.grad is None for p in encoder.parameters())
    assert not encoder.training
    with pytest.raises(InputError, match="conv22"):
        FeatureDiscriminator(encoder, ("conv22",))


@pytest.mark.parametrize("name", ["unet", "mlp", "dit"])
def test_pairs_are_judged_in_order(name: str):
    torch.manual_seed(1)
    net = small(name)
    critic = PairDiscriminator(net).eval()
    x, y = torch.randn(2, 2, *SHAPE)
    out = critic(x, 19.0, y, 0.0)
    assert out.shape == (2, 1)
    # Both states count, each in its own place; so do both levels where a new network looks at them at all.
    others = [critic(y, 0.0, x, 19.0), critic(y, 19.0, y, 0.0), critic(x, 19.0, x, 0.0)]
    if name == "mlp":
        others += [critic(x, 0.0, y, 0.0), critic(x, 19.0, y, 19.0)]
    assert not any(torch.allclose(out, other) for other in others)
    assert critic.trunk.model is not net
    assert all(p.requires_grad for p in critic.parameters())


@pytest.mark.check(system=11, number=9)
def test_parameters_of_the_published_networks():
    settings = {"base_channels": 128, "channel_mult": (1, 1, 2, 2, 4, 4), "num_blocks": 2, "attention": (16,)}
    with torch.device("meta"):
        net = UNet(in_shape=(3, 256, 256), image_channels=1, resampling="conv", init="default", **settings)
        critic = PairDiscriminator(net)
    assert critic.trunk.shapes == [(512, 8, 8)]
    counts = [sum(p.numel() for p in module.parameters()) for module in (net, critic, critic.head)]
    assert counts == [113_674_371, 68_835_713, 26_221_569]


def test_bad_input_is_refused():
    net = small("mlp")
    for make in (
        lambda: TapDiscriminator(net, ("layer.9",)),
        lambda: TapDiscriminator(net, "layer.1"),
        lambda: TapDiscriminator(net, trained="head"),
        lambda: head_for((3, 4, 4), "convs"),
        lambda: TapDiscriminator(torch.nn.Linear(1, 1)),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            make()
