"""Plans on diffusers' networks: against a pass written out by hand, and nothing left behind."""

from __future__ import annotations

import diffusers
import pytest
import torch
from torch import Tensor, nn

from scoreline.bridges.diffusers_models import as_denoiser
from scoreline.bridges.diffusers_networks import DiffusersDiT, DiffusersUNet
from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.nn.plan import Plan

SKIP = (0.5, 0.7, 0.9, 1.1)
HIDDEN = (1.2, 1.0, 0.8, 0.9)


def by_hand(net, x: Tensor, t: float, skip=(1, 1, 1, 1), hidden=(1, 1, 1, 1), drop=()) -> tuple[Tensor, dict]:
    """The pass of the small U-Net of these tests, block by block: down (resnet, down conv), (resnet, attention)."""
    seen: dict[str, Tensor] = {}
    emb = net.time_embedding(net.time_proj(torch.full((len(x),), t)))
    counter = iter(range(100))

    def layer(part: nn.Module, h: Tensor, *more: Tensor) -> Tensor:
        i = next(counter)
        if i in drop:
            shortcut = getattr(part, "conv_shortcut", None)
            out = h if shortcut is None else shortcut(h)
        else:
            out = part(h, *more)
        seen[f"layer.{i}"] = out
        return out

    h = seen["input"] = net.conv_in(x)
    skips = [h]
    first, second = net.down_blocks
    h = layer(first.resnets[0], h, emb)
    skips.append(h)
    h = first.downsamplers[0](h)
    skips.append(h)
    h = layer(second.resnets[0], h, emb)
    h = layer(second.attentions[0], h)
    skips.append(h)
    seen["bottleneck"] = h
    h = layer(net.mid_block.resnets[0], h, emb)
    h = layer(net.mid_block.attentions[0], h)
    h = seen["middle"] = layer(net.mid_block.resnets[1], h, emb)
    joint = 0
    for block in net.up_blocks:
        for i, resnet in enumerate(block.resnets):
            side = skips.pop() * skip[joint]
            h = h * hidden[joint]
            seen[f"joint.{joint}.skip"], seen[f"joint.{joint}.hidden"] = side, h
            h = layer(resnet, torch.cat([h, side], 1), emb)
            if hasattr(block, "attentions"):
                h = layer(block.attentions[i], h)
            joint += 1
        for up in block.upsamplers or ():
            h = up(h)
    seen["decoder"] = h
    return net.conv_out(net.conv_act(net.conv_norm_out(h))), seen


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 2, 8, 8, generator=torch.manual_seed(5))


T = torch.tensor([12.0])


@torch.no_grad()
def test_joints_and_layers_are_counted(unet):
    net = DiffusersUNet(unet())
    assert [tuple(joint) for joint in net.joints] == [(4, 16, 16), (4, 16, 8), (8, 16, 8), (8, 8, 8)]
    assert net.num_layers == 12
    large = DiffusersUNet(
        unet(
            block_out_channels=(8, 8, 16), layers_per_block=2,
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    )  # fmt: skip
    assert len(large.joints) == 9  # one a residual block of the decoder


@torch.no_grad()
def test_a_plan_of_ones_is_the_network_to_the_last_bit(unet, x):
    module = unet()
    net = DiffusersUNet(module)
    plain = module(x, 12).sample
    assert torch.equal(net(x, T), plain)
    out, taps = net.trace(x, T, None, Plan(skip_scale=(1.0,) * 4, hidden_scale=(1.0,) * 4))
    assert torch.equal(out, plain)
    assert taps == {}


@torch.no_grad()
def test_scaled_joints_are_those_of_a_pass_by_hand(unet, x):
    module = unet()
    net = DiffusersUNet(module)
    want, seen = by_hand(module, x, 12.0)
    assert torch.allclose(want, module(x, 12).sample, atol=1e-6)
    for skip, hidden in ((SKIP, None), (None, HIDDEN), (SKIP, HIDDEN)):
        want, seen = by_hand(module, x, 12.0, skip or (1,) * 4, hidden or (1,) * 4)
        out, taps = net.trace(x, T, None, Plan(skip_scale=skip, hidden_scale=hidden, taps=net.taps))
        assert torch.allclose(out, want, atol=1e-6)
        assert taps.keys() == seen.keys() == set(net.taps)
        for name in taps:
            assert torch.allclose(taps[name], seen[name], atol=1e-6), name
    assert (want - module(x, 12).sample).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("drop", [{0}, {1}, {2}, {4}, {6}, {7}, {11}, {0, 3, 6, 9}])
def test_dropped_layers_are_left_out(unet, x, drop):
    module = unet()
    net = DiffusersUNet(module)
    want, _ = by_hand(module, x, 12.0, drop=drop)
    out, _ = net.trace(x, T, None, Plan(drop=frozenset(drop)))
    assert torch.allclose(out, want, atol=1e-6)
    assert (out - module(x, 12).sample).abs().max() > 1e-4


@torch.no_grad()
def test_a_dropped_layer_costs_nothing_and_a_pass_may_stop(unet, x):
    from scoreline.core.cost import count_macs

    net = DiffusersUNet(unet())
    full = count_macs(net, x, T)
    assert count_macs(net.trace, x, T, None, Plan(drop=frozenset(range(5, 12)))) < 0.6 * full
    stopped = Plan(taps=("bottleneck",), stop=True)
    assert count_macs(net.trace, x, T, None, stopped) < 0.6 * full
    out, taps = net.trace(x, T, None, stopped)
    assert out is None
    assert list(taps) == ["bottleneck"]


@torch.no_grad()
def test_nothing_is_left_behind(unet, x):
    module = unet()
    net = DiffusersUNet(module)
    plain = net(x, T)
    for plan in (Plan(skip_scale=SKIP), Plan(drop=frozenset({1})), Plan(taps=("input",), stop=True)):
        net.trace(x, T, None, plan)
        assert all("forward" not in part.__dict__ for part in module.modules())
        assert torch.equal(net(x, T), plain)
    with pytest.raises(InputError, match="input shape"):
        net.trace(x[:, :1], T, None, Plan(skip_scale=SKIP))
    mine = module.conv_in.forward = lambda h: nn.Conv2d.forward(module.conv_in, h)
    net.trace(x, T, None, Plan(skip_scale=SKIP))
    assert module.conv_in.forward is mine  # somebody else's replacement comes back too


def test_plans_that_do_not_fit(unet):
    model = as_denoiser(unet(), diffusers.DDIMScheduler())
    with pytest.raises(InputError, match="give 4 factors"):
        model.under(Plan(skip_scale=(0.5,) * 3))
    with pytest.raises(InputError, match="numbered 0 to 11"):
        model.under(Plan(drop=frozenset({12})))
    with pytest.raises(InputError, match=r"did you mean 'layer\.1'"):
        model.under(Plan(taps=("layers.1",)))


@torch.no_grad()
def test_a_view_leaves_the_model_alone(unet, x):
    model = as_denoiser(unet(), diffusers.DDIMScheduler())
    before = model(x, 12.0).eps
    view = model.under(Plan(skip_scale=SKIP, taps=("middle",)))
    assert (view(x, 12.0).eps - before).abs().max() > 1e-3
    assert view(x, 12.0).taps["middle"].shape == (3, 16, 4, 4)
    assert torch.equal(model(x, 12.0).eps, before)


@torch.no_grad()
def test_blocks_that_resample_keep_their_shortcut(unet, x):
    types = ("ResnetDownsampleBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "ResnetUpsampleBlock2D")
    module = unet(down_block_types=types[0], up_block_types=types[1], downsample_type="resnet", upsample_type="resnet")
    net = DiffusersUNet(module)
    assert torch.equal(net.trace(x, T, None, Plan(skip_scale=(1.0,) * 4))[0], module(x, 12).sample)
    out, taps = net.trace(x, T, None, Plan(drop=frozenset({0, 1}), taps=("input", "layer.0", "layer.1")))
    assert torch.equal(taps["layer.0"], taps["input"])
    assert torch.equal(taps["layer.1"], module.down_blocks[0].downsamplers[0].downsample(taps["input"]))
    assert out is not None


@torch.no_grad()
def test_layers_of_a_transformer(dit):
    module = dit()
    net = DiffusersDiT(module)
    x, labels = torch.randn(2, 4, 4, 4), torch.tensor([3, 1000])
    cond = Cond(labels=labels)
    plain = module(x, timestep=torch.tensor([9, 9]), class_labels=labels).sample
    assert torch.equal(net(x, torch.tensor([9.0]), cond), plain)
    t = torch.full((2,), 9.0)

    def block(i: int, h: Tensor, attention: bool = True, mlp: bool = True) -> tuple[Tensor, Tensor]:
        part = module.transformer_blocks[i]
        normed, gate_a, shift, scale, gate_m = part.norm1(h, t, labels, hidden_dtype=h.dtype)
        h = h + gate_a[:, None] * part.attn1(normed) if attention else h
        middle = h
        inner = part.norm3(h) * (1 + scale[:, None]) + shift[:, None]
        return middle, h + gate_m[:, None] * part.ff(inner) if mlp else h

    start = module.pos_embed(x)
    m0, h0 = block(0, start, attention=False)
    m1, h1 = block(1, h0, mlp=False)
    out, taps = net.trace(x, t, cond, Plan(drop=frozenset({0, 3}), taps=net.taps))
    want = {"input": start, "layer.0": m0, "layer.1": h0, "layer.2": m1, "layer.3": h1, "decoder": h1}
    assert taps.keys() == want.keys()
    for name in want:
        assert torch.allclose(taps[name], want[name], atol=1e-5), name
    assert torch.equal(taps["layer.0"], taps["input"])
    assert (out - plain).abs().max() > 1e-4
    assert torch.equal(net.trace(x, t, cond, Plan())[0], plain)
    with pytest.raises(InputError, match="no skip joints"):
        net.check(Plan(skip_scale=(0.5,)))
