"""Low-rank adapters: the sum they stand for, what is trained, merging, saving."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scoreline.core.artefact import load_artefact, save_artefact
from scoreline.core.errors import InputError
from scoreline.nn.adapters import LoRA, is_adapted, merged
from scoreline.nn.unet import UNet
from scoreline.nn.winograd import Conv3x3


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, stride=2), nn.Conv2d(6, 6, 3, groups=2), nn.Flatten(), nn.Linear(24, 5)
    )


def trained(lora: LoRA) -> LoRA:
    with torch.no_grad():
        for p in lora.parameters():
            p.add_(torch.randn(p.shape))
    return lora


def test_the_sum() -> None:
    net, x = small(), torch.randn(2, 3, 8, 8)
    plain = copy.deepcopy(net)
    lora = LoRA.of(net, rank=2, alpha=3.0)
    assert lora.names == ["0", "3"]  # a grouped convolution is left alone
    assert lora.attach(net) is net
    assert torch.equal(net(x), plain(x))
    trained(lora)
    # A convolution to r channels and a 1x1 one; D and U of a dense layer.
    down, up = lora.down["0"].view(2, 3, 3, 3), lora.up["0"][:, :, None, None]
    h = plain[0](x) + 1.5 * F.conv2d(F.conv2d(x, down, stride=2, padding=1), up)
    h = plain[2](plain[1](h))
    want = plain[3](h) + 1.5 * h @ lora.down["3"].T @ lora.up["3"].T
    assert torch.allclose(net(x), want, atol=1e-4)
    assert torch.allclose(net[3].weight - plain[3].weight, lora.delta("3"), atol=1e-5)
    made = merged(net)
    assert torch.equal(made(x), net(x))
    assert not is_adapted(made)
    assert is_adapted(net)
    assert type(made[0]) is nn.Conv2d
    assert list(made.state_dict()) == list(plain.state_dict())
    assert all(p.requires_grad for p in made.parameters())


def test_only_adapters_are_trained() -> None:
    net = small()
    lora = LoRA.of(net, rank=2).attach(net)
    assert {id(p) for p in net.parameters() if p.requires_grad} == {
        id(p) for name, p in net.named_parameters() if name.endswith((".up", ".down"))
    }
    assert lora is net
    before = {name: p.clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # in the first step U is zero, so that D does not move
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8)).square().mean().backward()
        optimizer.step()
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) != name.endswith((".up", ".down")), name


def test_a_copy_is_independent_and_sees_its_own_filters_change() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Conv3x3(128, 128, 3, padding=1)).eval()
    LoRA.of(net, rank=2).attach(net)
    assert not net[0].winograd  # its kept filters go by address and version, which two sums may share
    assert merged(net)[0].winograd
    twin, x = copy.deepcopy(net), torch.randn(1, 128, 8, 8)
    with torch.no_grad():
        for _ in range(3):
            first = twin(x)
            for p in twin.parameters():
                if p.requires_grad:
                    p.add_(0.1 * torch.randn(p.shape))
            assert not torch.allclose(twin(x), first, atol=1e-3)
            assert torch.allclose(twin(x), F.conv2d(x, twin[0].weight, twin[0].bias, padding=1), atol=1e-3)
        assert torch.allclose(merged(twin)(x), twin(x), atol=1e-3)
        assert not torch.allclose(net(x), twin(x), atol=1e-3)


def test_adapters_are_saved_apart_from_their_network(tmp_path: Path) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"in_shape": (1, 4, 4), "base_channels": 8, "channel_mult": (1,), "num_blocks": 1}
    net = UNet(**settings, attention=())
    lora = LoRA.of(net, rank=3, layers=["decoder.*", "output"])
    assert all(name.startswith(("decoder.", "output")) for name in lora.names)
    save_artefact(tmp_path / "lora.safetensors", trained(lora), belongs_to="x")
    again = load_artefact(tmp_path / "lora.safetensors", kind="adapter", belongs_to="x")[0]
    twin = copy.deepcopy(net)
    x, t = torch.randn(2, 1, 4, 4), torch.ones(2)
    before = net(x, t)
    lora.attach(net)
    again.attach(twin)
    assert torch.equal(net(x, t), twin(x, t))
    assert not torch.allclose(net(x, t), before, atol=1e-3)
    assert torch.equal(merged(net.double())(x.double(), t.double()), net(x.double(), t.double()))


def test_what_is_refused() -> None:
    net = small()
    for make, said in (
        (lambda: LoRA.of(net, rank=0), "rank"),
        (lambda: LoRA.of(net, layers=["7"]), "fits none of 2 layers"),
        (lambda: LoRA.of(net, layers="3"), "list of patterns"),
        (lambda: LoRA.of(nn.ReLU()), "at least one"),
        (lambda: LoRA({"a": [3]}), "shape of a"),
        (lambda: LoRA({"9": [3, 3]}).attach(net), "no dense layer"),
        (lambda: LoRA({"3": [3, 3]}).attach(net), "these are for"),
    ):
        with pytest.raises(InputError, match=said):
            make()
    LoRA.of(net).attach(net)
    with pytest.raises(InputError, match="adapters already"):
        LoRA.of(net)
    with pytest.raises(InputError, match="adapters of its own"):
        LoRA({"3": [5, 24]}).attach(net)
