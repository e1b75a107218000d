"""The diffusion transformer: published sizes, the published start, plan laws, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.nn.dit import DiT, dit_preset, sincos_positions
from scoreline.nn.plan import Plan

SMALL: dict[str, Any] = {"in_shape": (2, 4, 8), "patch": 2, "width": 16, "depth": 2, "heads": 2, "num_classes": 3}


def alive(settings: dict[str, Any]) -> DiT:
    """A network whose zero layers are not zero, in evaluation mode."""
    torch.manual_seed(0)
    net = DiT(**settings).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def inputs(net: DiT, batch: int = 3) -> tuple[Tensor, Tensor, Cond]:
    torch.manual_seed(1)
    t = torch.rand(batch, *((2,) if net.second_time else ()))
    labels = None if net.num_classes is None else torch.arange(batch) % (net.num_classes + 1)
    return torch.randn(batch, *net.in_shape), t, Cond(labels=labels)


# Trainable parameters; the published 675,129,632 of DiT-XL/2 include its 256 x 1152 fixed positions.
@pytest.mark.parametrize(
    "name, trainable",
    [
        ("DiT-S/2", 32_865_056),
        ("DiT-B/4", 130_426_496),
        ("DiT-L/2", 457_840_672),
        ("DiT-XL/2", 675_129_632 - 256 * 1152),
        ("DiT-XL/8", 675_664_640),
    ],
)
def test_published_parameter_counts(name, trainable):
    with torch.device("meta"):
        net = DiT(**dit_preset(name))
    assert sum(p.numel() for p in net.parameters()) == trainable
    assert not any("positions" in key for key in net.state_dict())
    if name == "DiT-XL/2":
        # What bias tuning trains (Xie et al. 2023): 28 blocks of 15 widths, embeddings and head.
        biases = sum(p.numel() for key, p in net.named_parameters() if key.endswith("bias"))
        assert biases == 489_632
        assert net.num_layers == 56


def test_positions_closed_form():
    table = sincos_positions(3, 5, 8, scale=0.5).view(3, 5, 8)
    row, column = 2 * 0.5, 4 * 0.5
    want = [f(p * w) for p in (column, row) for f in (math.sin, math.cos) for w in (1.0, 0.01)]
    torch.testing.assert_close(table[2, 4], torch.tensor(want))


def test_fresh_blocks_are_identities_and_the_output_is_zero():
    net = DiT(**SMALL)
    x, t, cond = inputs(net)
    out, taps = net.trace(x, t, cond, Plan(taps=("input", "decoder")))
    assert torch.equal(taps["input"], taps["decoder"])
    assert out.abs().max() == 0


def test_patches_and_pixels_stay_in_place():
    # Identity weights carry every pixel of a patch to its own place in the output.
    net = DiT(in_shape=(1, 4, 6), patch=2, width=4, depth=1, heads=1)
    with torch.no_grad():
        net.patches.weight.copy_(torch.eye(4))
        net.output.weight.copy_(torch.eye(4))
        net.positions.zero_()
    x = torch.randn(2, 1, 4, 6)
    out = net(x, torch.zeros(2))
    patch = x[1, 0, 2:4, 4:6].flatten()
    want = (patch - patch.mean()) / (patch.var(unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(out[1, 0, 2:4, 4:6].flatten(), want)


def test_plan_laws():
    net = alive(SMALL)
    x, t, cond = inputs(net)
    plain = net(x, t, cond)
    assert torch.equal(net.trace(x, t, cond, Plan())[0], plain)
    names = ("input", *(f"layer.{i}" for i in range(net.num_layers)), "decoder")
    out, taps = net.trace(x, t, cond, Plan(taps=names))
    assert torch.equal(out, plain)
    for i in range(net.num_layers):
        out, dropped = net.trace(x, t, cond, Plan(drop={i}, taps=names))
        before = names[names.index(f"layer.{i}") - 1]
        assert torch.equal(dropped[f"layer.{i}"], taps[before])
        assert not torch.equal(out, plain)
    out, dropped = net.trace(x, t, cond, Plan(drop=frozenset(range(net.num_layers)), taps=names))
    assert torch.equal(dropped["decoder"], taps["input"])
    for name in net.taps:
        out, stopped = net.trace(x, t, cond, Plan(taps=(name,), stop=True))
        assert out is None
        assert torch.equal(stopped[name], net.trace(x, t, cond, Plan(taps=(name,)))[1][name])
    for plan in (Plan(drop={4}), Plan(skip_scale=(1.0,)), Plan(taps=("bottleneck",))):
        with pytest.raises(InputError):
            net.trace(x, t, cond, plan)


def test_attention_maps():
    net = alive(SMALL)
    x, t, cond = inputs(net)
    out, taps = net.trace(x, t, cond, Plan(taps=("attention.1",)))
    assert taps["attention.1"].shape == (3, 2, 8, 8)
    torch.testing.assert_close(taps["attention.1"].sum(-1), torch.ones(3, 2, 8))
    torch.testing.assert_close(out, net(x, t, cond))
    assert torch.autograd.grad(out.sum(), taps["attention.1"])[0].abs().max() > 0


@pytest.mark.parametrize("changes", [{}, {"second_time": True}, {"vector_dim": 4, "weight_input": True}])
def test_conditions_batches_and_gradients(changes):
    net = alive(SMALL | changes)
    x, t, cond = inputs(net)
    if "vector" in net.accepts:
        cond = cond.replace(vector=torch.randn(3, 4), weight=torch.rand(3))
    out = net(x, t, cond)
    assert out.shape == x.shape
    single = torch.cat([net(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(single, out, rtol=1e-4, atol=1e-5)
    for column in range(t.shape[1] if t.ndim > 1 else 1):
        moved = t.clone()
        moved[(slice(None), column) if t.ndim > 1 else slice(None)] += 0.5
        assert not torch.allclose(net(x, moved, cond), out)
    for name, value in cond.items():
        other = (value + 1) % 4 if name == "labels" else value + 1
        assert not torch.allclose(net(x, t, cond.replace(**{name: other})), out), name
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    torch.testing.assert_close(net(x, t[:1], cond), net(x, t[:1].expand_as(t), cond))


def test_null_is_the_last_label():
    net = alive(SMALL)
    x, t, cond = inputs(net)
    null = net.null(cond)
    assert torch.equal(null.labels, torch.full((3,), 3))
    assert not torch.allclose(net(x, t, null), net(x, t, cond))


def test_compiles_as_one_graph():
    net = alive(SMALL)
    x, t, cond = inputs(net)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, cond), net(x, t, cond))


@pytest.mark.parametrize(
    "changes, thing",
    [
        ({"patch": 3}, "patch"),
        ({"heads": 3}, "width"),
        ({"depth": 0}, "depth"),
        ({"in_shape": (8,)}, "in_shape"),
    ],
)
def test_impossible_settings_are_refused(changes, thing):
    with pytest.raises(InputError) as error:
        DiT(**(SMALL | changes))
    assert error.value.thing == thing


def test_bad_calls_and_names_are_refused():
    net = DiT(**SMALL)
    x, t, cond = inputs(net)
    for args in ((x[..., :4], t, cond), (x, t[:2], cond), (x, t, None), (x, t, cond.replace(weight=t))):
        with pytest.raises(InputError):
            net(*args)
    with pytest.raises(InputError, match="DiT-XL/2"):
        dit_preset("DiT-XL2")
