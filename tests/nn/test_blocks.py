"""The shared parts of the U-Net on their own: the quick CPU paths against the plain formulas."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scoreline.nn.blocks import group_norm, norm_silu, pointwise


@pytest.mark.parametrize("size", [(8, 8), (4, 2), (32, 32)])
@pytest.mark.parametrize("channels", [16, 48, 12])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_norm_silu_is_one_function_in_every_layout(size, channels, rows):
    torch.manual_seed(0)
    norm = group_norm(channels, 1e-3).double()
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    h = torch.randn(3, channels, *size, dtype=torch.float64) * 2 + 5
    params = torch.randn(rows, 2 * channels, dtype=torch.float64) if rows else None
    groups = h.view(3, norm.num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    want = (centred / (centred.square().mean(2, keepdim=True) + 1e-3).sqrt()).view_as(h)
    want = want * norm.weight[:, None, None] + norm.bias[:, None, None]
    if params is not None:
        scale, shift = params[:, :channels, None, None], params[:, channels:, None, None]
        want = want * (1 + scale) + shift
    want = want * want.sigmoid()
    single, params32 = norm.float(), None if params is None else params.float()
    for layout in (torch.contiguous_format, torch.channels_last):
        x = h.float().contiguous(memory_format=layout)
        before = x.clone()
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                got = norm_silu(x, single, params32)
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
            assert torch.equal(x, before)


def test_a_constant_map_stays_finite():
    norm = group_norm(16, 1e-6)
    x = torch.full((2, 16, 4, 4), 1e3).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert norm_silu(x, norm).abs().max() < 1e-2 * 1e3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_is_a_1x1_convolution(layout):
    conv = torch.nn.Conv2d(5, 7, 1)
    x = torch.randn(2, 5, 4, 6).contiguous(memory_format=layout)
    got = pointwise(x, conv)
    torch.testing.assert_close(got, F.conv2d(x.contiguous(), conv.weight, conv.bias), rtol=1e-5, atol=1e-5)
