"""Winograd's convolution against the direct one, and when it is taken."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scoreline.core.cost import count_macs
from scoreline.nn.unet import UNet
from scoreline.nn.winograd import Conv3x3, winograd_conv2d, winograd_weight


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b).norm() / b.norm())


@pytest.mark.parametrize("size", [(4, 4), (8, 12), (5, 7), (17, 9), (1, 1), (3, 30)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_convolution(size: tuple[int, int], bias: bool) -> None:
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, *size, generator=gen)
    weight, b = torch.randn(7, 5, 3, 3, generator=gen), torch.randn(7, generator=gen) if bias else None
    exact = F.conv2d(x.double(), weight.double(), None if b is None else b.double(), padding=1)
    for memory in (torch.contiguous_format, torch.channels_last):
        made = winograd_conv2d(x.contiguous(memory_format=memory), winograd_weight(weight), b)
        assert made.shape == exact.shape
        assert made.is_contiguous(memory_format=torch.channels_last)
        assert relative(made, exact) < 1e-5


def test_every_filter_place_counts() -> None:
    """A filter that is 1 at one place moves the image, edges included."""
    x = torch.randn(1, 1, 9, 6, generator=torch.Generator().manual_seed(1))
    for i in range(3):
        for j in range(3):
            weight = torch.zeros(1, 1, 3, 3)
            weight[0, 0, i, j] = 1
            moved = F.pad(x, (1, 1, 1, 1))[:, :, i : i + 9, j : j + 6]
            torch.testing.assert_close(winograd_conv2d(x, winograd_weight(weight), None), moved, atol=2e-5, rtol=0)


@pytest.fixture
def conv() -> Conv3x3:
    torch.manual_seed(0)
    return Conv3x3(128, 128, 3, padding=1)


def took_it(conv: nn.Module, x: Tensor) -> bool:
    conv._kept = None  # type: ignore[assignment]
    conv(x)
    return conv._kept is not None


def test_it_is_taken_only_where_it_suits(conv: Conv3x3) -> None:
    x = torch.randn(2, 128, 8, 8)
    assert not took_it(conv, x), "gradients are on"
    with torch.no_grad():
        assert took_it(conv, x)
        assert not took_it(conv, x[:, :, :3])
        assert not took_it(Conv3x3(64, 128, 3, padding=1), x[:, :64])
        assert not took_it(Conv3x3(128, 64, 3, padding=1), x)
        with torch.autocast("cpu", torch.bfloat16):
            assert not took_it(conv, x)
        conv.winograd = False
        assert not took_it(conv, x)
        conv.winograd = True
        assert not took_it(copy.deepcopy(conv).double(), x.double())
    with torch.inference_mode():
        assert took_it(conv, x)
        assert not took_it(Conv3x3(128, 128, 3, padding=1), x), "weights without a version"


@torch.no_grad()
def test_changed_weights_are_seen(conv: Conv3x3) -> None:
    x = torch.randn(2, 128, 8, 8)

    def right() -> bool:
        return relative(conv(x), F.conv2d(x.double(), conv.weight.double(), conv.bias.double(), padding=1)) < 1e-5  # type: ignore[union-attr]

    assert right()
    conv.weight.mul_(2)
    assert right()
    conv.load_state_dict({name: torch.randn_like(value) for name, value in conv.state_dict().items()})
    assert right()
    conv.weight = nn.Parameter(torch.randn(128, 128, 3, 3))
    assert right()
    conv.bfloat16().float()
    assert right()
    conv.weight.data = torch.randn(128, 128, 3, 3)
    assert right()
    conv.weight.data.mul_(2)
    conv.forget()
    assert right()
    with torch.enable_grad():
        optimiser = torch.optim.SGD(conv.parameters(), lr=1.0)
        conv(x).square().mean().backward()
        optimiser.step()
    assert right()


@torch.no_grad()
def test_copies_go_without_the_transformed_filters(conv: Conv3x3) -> None:
    x = torch.randn(1, 128, 8, 8)
    made = conv(x)
    for other in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert other._kept is None
        assert torch.equal(other(x), made)
    assert set(conv.state_dict()) == {"weight", "bias"}


def test_its_arithmetic_counts_as_that_of_the_convolution(conv: Conv3x3) -> None:
    for x in (torch.zeros(1, 128, 8, 8), torch.zeros(1, 128, 8, 8, device="meta")):
        net = conv.to(x.device)
        assert count_macs(net, x) == 8 * 8 * 9 * 128 * 128


@torch.no_grad()
def test_a_wide_network_gives_the_same_images() -> None:
    torch.manual_seed(0)
    net = UNet(in_shape=(3, 16, 16), base_channels=128, channel_mult=(1, 2), num_blocks=1, attention=(8,)).eval()
    for parameter in net.parameters():
        parameter.normal_(std=0.02)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([1.0, 2.0])
    made = net(x, t)
    fast = [m for m in net.modules() if isinstance(m, Conv3x3) and m._kept is not None]
    assert len(fast) > 8
    for module in fast:
        module.winograd = False
    torch.testing.assert_close(made, net(x, t), atol=1e-5, rtol=1e-5)
