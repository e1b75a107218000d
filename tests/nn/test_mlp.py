"""The residual MLP: its formula, plan laws, conditions, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from scoreline.core.cond import Cond
from scoreline.core.errors import InputError
from scoreline.nn.mlp import MLP
from scoreline.nn.plan import Plan


def test_formula():
    torch.manual_seed(0)
    net = MLP(in_shape=(2,), width=8, depth=2, num_classes=3, time_channels=4)
    x, t, labels = torch.randn(5, 2), torch.rand(5), torch.tensor([0, 1, 2, 3, 0])
    angle = torch.stack([t, t * 1e-4], 1)
    features = torch.cat([angle.sin(), angle.cos()], 1)
    table = net.embedding.label.weight
    assert table.shape == (4, 8)
    emb = F.silu(net.embedding.mlp.linear1(F.silu(net.embedding.mlp.linear0(features))) + table[labels])
    h = net.input(x)
    for layer in net.layers:
        h = h + F.silu(layer.linear(h) + layer.affine(emb))
    torch.testing.assert_close(net(x, t, Cond(labels=labels)), net.output(h))


def test_points_and_images():
    for shape in ((2,), (1, 8, 8), (3, 2, 4)):
        x = torch.randn(4, *shape)
        assert MLP(in_shape=shape)(x, torch.zeros(1)).shape == x.shape
        assert MLP(in_shape=shape, out_channels=7)(x, torch.zeros(4)).shape == (4, 7, *shape[1:])
    with torch.device("meta"):
        net = MLP(in_shape=(1, 8, 8))
    assert sum(p.numel() for p in net.parameters()) == (65 + 33 + 129 + 3 * 2 * 129) * 128 + 129 * 64


def test_plan_laws():
    torch.manual_seed(0)
    net = MLP(in_shape=(1, 4, 4), width=16, depth=3)
    x, t = torch.randn(4, 1, 4, 4), torch.rand(4)
    names = ("input", "layer.0", "layer.1", "layer.2", "decoder")
    plain = net(x, t)
    out, taps = net.trace(x, t, None, Plan(taps=names))
    assert torch.equal(out, plain)
    assert torch.equal(net.trace(x, t, None, Plan())[0], plain)
    assert torch.equal(taps["layer.2"], taps["decoder"])
    for i in range(3):
        out, dropped = net.trace(x, t, None, Plan(drop={i}, taps=names))
        assert torch.equal(dropped[f"layer.{i}"], taps[names[i]])
        assert not torch.equal(out, plain)
    out, _ = net.trace(x, t, None, Plan(drop={0, 1, 2}))
    torch.testing.assert_close(out, net.output(net.input(x.flatten(1))).view_as(x))
    for name in net.taps:
        out, stopped = net.trace(x, t, None, Plan(taps=(name,), stop=True))
        assert out is None
        assert list(stopped) == [name]
    for plan in (Plan(drop={3}), Plan(hidden_scale=(1.0,)), Plan(taps=("bottleneck",))):
        with pytest.raises(InputError):
            net.trace(x, t, None, plan)


def test_conditions_and_gradients():
    torch.manual_seed(0)
    net = MLP(in_shape=(2,), num_classes=3, second_time=True, vector_dim=2, weight_input=True)
    torch.nn.init.normal_(net.embedding.weight.weight)
    x, t = torch.randn(4, 2), torch.rand(4, 2)
    cond = Cond(labels=torch.arange(4), vector=torch.randn(4, 2), weight=torch.rand(4))
    out = net(x, t, cond)
    for name, value in cond.items():
        other = (value + 1) % 4 if name == "labels" else value + 1
        assert not torch.allclose(net(x, t, cond.replace(**{name: other})), out), name
    assert not torch.allclose(net(x, t.flip(1), cond), out)
    null = net.null(cond)
    assert (null.labels == 3).all()
    assert null.vector.abs().max() == 0
    assert torch.equal(null.weight, cond.weight)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())
    single = torch.cat([net(x[i : i + 1], t[i : i + 1], cond[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(single, out)


def test_compiles_as_one_graph():
    net = MLP(in_shape=(2,), num_classes=3)
    x, t, cond = torch.randn(4, 2), torch.rand(4), Cond(labels=torch.arange(4))
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x, t, cond), net(x, t, cond))


def test_refusals():
    for settings, thing in (
        ({"in_shape": (2, 2)}, "in_shape"),
        ({"in_shape": (2,), "depth": 0}, "depth"),
        ({"in_shape": (2,), "width": 0}, "width"),
        ({"in_shape": (2,), "time_channels": 5}, "time channels"),
    ):
        with pytest.raises(InputError) as error:
            MLP(**settings)
        assert error.value.thing == thing
    net = MLP(in_shape=(2,), num_classes=3)
    x, t, cond = torch.randn(4, 2), torch.rand(4), Cond(labels=torch.arange(4))
    for args in ((x[:, :1], t, cond), (x, t[:3], cond), (x, t, None), (x, t, cond.replace(vector=x))):
        with pytest.raises(InputError):
            net(*args)
